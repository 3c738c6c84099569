//! `tapd capture`: copies the daemon's pcapng stream to a file or to standard output.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use crate::control::{Client, Request};
use crate::exit::{Exit, Failure};

/// Permission bits of a new capture: it holds readable frames.
const CAPTURE_MODE: u32 = 0o600;
/// Bytes copied at once.
const CHUNK_LEN: usize = 64 * 1024;

/// Asks for a capture and writes it to `target`, `-` being standard output.
pub(crate) fn run(socket: &Path, request: Request, target: &Path) -> Result<(), Failure> {
    let to_stdout = target == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::message(
            Exit::Usage,
            "a capture is binary; name a file with --write FILE, or pipe it into a program",
        ));
    }
    let client = Client::connect(socket)?;
    let mut stream = client.stream(request)?;
    let copied = if to_stdout {
        copy(&mut stream, &mut io::stdout().lock())
    } else {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(CAPTURE_MODE)
            .open(target)
            .with_context(|| format!("cannot write {}", target.display()))?;
        copy(&mut stream, &mut file)
    };
    match copied {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::from(anyhow::Error::new(error).context("the capture broke off")))
        }
        _ => Ok(()),
    }
}

/// Hands on what arrives at once, so that a reader behind a pipe sees frames as they pass.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(chunk.get(..count).unwrap_or_default())?;
        to.flush()?;
    }
}
