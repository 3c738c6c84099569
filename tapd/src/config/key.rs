//! The cluster's secret key and the file it comes from.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

/// Length of a cluster key, in bytes; its file holds twice as many hexadecimal digits.
pub(crate) const KEY_LEN: usize = 32;

/// Permission bits that give a file to its group or to others.
const GROUP_OR_OTHERS: u32 = 0o077;

/// More than this is not read from a key file, in bytes.
const MAX_KEY_FILE_LEN: u64 = 4096;

/// A secret of [`KEY_LEN`] bytes; wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClusterKey(Zeroizing<[u8; KEY_LEN]>);

impl ClusterKey {
    /// The secret.
    pub(crate) fn bytes(&self) -> &Zeroizing<[u8; KEY_LEN]> {
        &self.0
    }

    /// Reads a key file: 64 hexadecimal digits, white space around them ignored, mode at most 0700.
    ///
    /// # Errors
    /// One sentence on what is wrong with the file and what to do.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let explain = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                format!("key file {shown} does not exist; make one with: tapd keygen {shown}")
            }
            _ => format!("cannot read key file {shown}: {error}; let the user of tapd own it"),
        };
        // Looked at before it is opened: opening a pipe would wait for a writer.
        if !fs::metadata(path).map_err(explain)?.is_file() {
            return Err(format!("key file {shown} is not a regular file; name the file itself"));
        }
        let file = File::open(path).map_err(explain)?;
        let metadata = file.metadata().map_err(explain)?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & GROUP_OR_OTHERS != 0 {
            return Err(format!(
                "key file {shown} has mode {mode:04o}, so others than its owner can use it; \
                    run: chmod 600 {shown}"
            ));
        }
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE_LEN as usize));
        file.take(MAX_KEY_FILE_LEN).read_to_end(&mut text).map_err(explain)?;
        Self::parse(&text).map_err(|fault| {
            format!(
                "key file {shown} {fault}; make a new one with tapd keygen, and give every \
                node the same"
            )
        })
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let digits = text.trim_ascii();
        if digits.len() != 2 * KEY_LEN {
            return Err(format!(
                "holds {} characters instead of {} hexadecimal digits",
                digits.len(),
                2 * KEY_LEN
            ));
        }
        let mut key = Zeroizing::new([0; KEY_LEN]);
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit)
                    .to_digit(16)
                    .ok_or("holds something that is not a hexadecimal digit")?;
                *byte = *byte << 4 | value as u8;
            }
        }
        Ok(Self(key))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn hex_is_read_in_order_and_never_printed() {
        let text = (0..32).map(|n| format!("{n:02X}")).collect::<String>();
        let (_directory, path) = file(&format!("{text}\n"), 0o600);
        let key = ClusterKey::read(&path).unwrap();
        assert_eq!(key.bytes().as_slice(), (0..32).collect::<Vec<u8>>());
        assert_eq!(format!("{key:?}"), "ClusterKey(secret)");
    }

    #[test]
    fn faults_say_what_to_do() {
        let good = "0".repeat(64);
        let cases = [
            ("00", 0o600, "holds 2 characters"),
            (&*"0".repeat(66), 0o600, "holds 66 characters"),
            (&*"g".repeat(64), 0o600, "not a hexadecimal digit"),
            (&*good, 0o640, "chmod 600"),
            (&*good, 0o604, "mode 0604"),
        ];
        for (text, mode, expected) in cases {
            let (_directory, path) = file(text, mode);
            let fault = ClusterKey::read(&path).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
        let directory = tempfile::tempdir().unwrap();
        let missing = ClusterKey::read(&directory.path().join("none")).unwrap_err();
        assert!(missing.contains("tapd keygen"), "{missing}");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(ClusterKey::read(directory.path()).unwrap_err().contains("not a regular file"));
    }
}
