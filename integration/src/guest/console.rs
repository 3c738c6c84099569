//! A shell in a guest, at the other end of a virtio port.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::wait;

/// How long QEMU may take to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How much of what was written is shown when something fails, bytes.
const TAIL: usize = 4000;

/// The shell.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    text: Arc<Mutex<String>>,
    commands: u32,
}

/// A command that has been typed.
#[derive(Debug)]
pub struct Pending {
    begin: usize,
    number: u32,
}

impl Console {
    /// Waits for QEMU to connect; `gone` says that it never will.
    ///
    /// # Errors
    /// It did not.
    pub fn accept(listener: &UnixListener, mut gone: impl FnMut() -> bool) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let stream = wait::until_some("QEMU to connect", CONNECT_PATIENCE, || {
            if gone() { Some(None) } else { listener.accept().ok().map(Some) }
        })?;
        let Some((stream, _)) = stream else { bail!("QEMU ended at once") };
        Self::over(stream)
    }

    fn over(stream: UnixStream) -> Result<Self> {
        stream.set_nonblocking(false)?;
        let text = Arc::new(Mutex::new(String::new()));
        let (mut from, into) = (stream.try_clone()?, Arc::clone(&text));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                // What is looked for is ASCII; the rest need only not stop anything.
                let piece = String::from_utf8_lossy(&bytes[..count]).replace('\r', "");
                into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&piece);
            }
        });
        Ok(Self { stream, text, commands: 0 })
    }

    /// Types a line.
    ///
    /// # Errors
    /// The port is closed.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes()).context("the guest's shell")
    }

    /// Types a line of shell whose end can be awaited.
    ///
    /// # Errors
    /// The port is closed.
    pub fn start(&mut self, line: &str) -> Result<Pending> {
        self.commands += 1;
        let pending = Pending { begin: self.mark(), number: self.commands };
        // The answer is put together by the shell: an echo of the line does not look like it.
        self.write_line(&format!(
            "{{ {line}\n}} </dev/null; s=$?; echo; echo \"end\"-{}-$s-",
            pending.number
        ))?;
        Ok(pending)
    }

    /// The exit status of a command and what it wrote, if it has ended.
    #[must_use]
    pub fn answer(&self, pending: &Pending) -> Option<(i32, String)> {
        parse_answer(&self.since(pending.begin), pending.number)
    }

    /// A place in what is written, for [`Console::since`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What was written since that place.
    #[must_use]
    pub fn since(&self, mark: usize) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.get(mark..).unwrap_or_default().to_owned()
    }

    /// The end of what was written.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = self.since(0);
        let from =
            (text.len().saturating_sub(TAIL)..=text.len()).find(|&at| text.is_char_boundary(at));
        text.get(from.unwrap_or(0)..).unwrap_or_default().to_owned()
    }
}

/// Finds `end-NUMBER-STATUS-` on a line of its own.
fn parse_answer(text: &str, number: u32) -> Option<(i32, String)> {
    let sign = format!("\nend-{number}-");
    // Nothing is above the first line of an answer without output.
    let text = format!("\n{text}");
    let at = text.find(&sign)?;
    let (status, _) = text.get(at + sign.len()..)?.split_once('-')?;
    Some((status.parse().ok()?, text.get(..at)?.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_command_is_told_from_its_echo() {
        let echo = "{ ls\n}; echo; echo \"end\"-3-$?-\n";
        assert_eq!(parse_answer(echo, 3), None);
        let text = "one\ntwo\n\nend-3-7-\n";
        assert_eq!(parse_answer(text, 3), Some((7, "one\ntwo".to_owned())));
        assert_eq!(parse_answer(text, 4), None);
        assert_eq!(parse_answer("\nend-1-0-\n", 1), Some((0, String::new())));
        assert_eq!(parse_answer("\nend-1-0", 1), None);
    }

    #[test]
    fn a_console_reads_while_it_writes() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut console = Console::over(near).unwrap();
        let pending = console.start("true").unwrap();
        far.write_all(b"said\r\n\r\nend-1-0-\r\n").unwrap();
        let answer =
            wait::until_some("the answer", Duration::from_secs(5), || console.answer(&pending));
        assert_eq!(answer.unwrap(), (0, "said".to_owned()));
        assert!(console.tail().ends_with("end-1-0-\n"));
    }
}
