//! `tapd keygen`: a fresh cluster key.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use zeroize::Zeroizing;

use crate::config::KEY_LEN;
use crate::exit::Failure;

/// Permission bits of a new key file: read and written by its owner only.
const KEY_FILE_MODE: u32 = 0o600;

/// Prints a key, or writes it to a new file; an existing file is never touched.
pub(crate) fn run(file: Option<&Path>) -> Result<(), Failure> {
    let text = random_key_line()?;
    match file {
        None => {
            io::stdout().write_all(text.as_bytes()).context("cannot print the key")?;
        }
        Some(path) => {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(KEY_FILE_MODE)
                .open(path)
                .map_err(|error| explain(error, path))?;
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

fn explain(error: io::Error, path: &Path) -> anyhow::Error {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return anyhow::anyhow!(
            "{} exists and is not overwritten; choose another name, or delete it first if no \
                node uses it",
            path.display()
        );
    }
    anyhow::Error::new(error).context(format!("cannot create {}", path.display()))
}

/// 64 hexadecimal digits and a line end.
fn random_key_line() -> anyhow::Result<Zeroizing<String>> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(key.as_mut_slice())
        .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    // Sized at once: a growing string would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_LEN + 1));
    for byte in key.iter() {
        for nibble in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hex_and_differ() {
        let (one, two) = (random_key_line().unwrap(), random_key_line().unwrap());
        assert_ne!(*one, *two);
        assert_eq!(one.trim_end().len(), 2 * KEY_LEN);
        assert!(one.trim_end().bytes().all(|b| b.is_ascii_hexdigit()));
    }
}
