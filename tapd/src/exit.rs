//! Exit codes: one table, used by the program, its help and its documentation.

use std::fmt;
use std::process::ExitCode;

/// Why a command ended; the number is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Something failed while running.
    Runtime = 1,
    /// The command line is wrong; mostly clap exits with this itself.
    Usage = 2,
    /// The configuration has faults.
    Config = 3,
    /// A port, tap or socket is in use, or a permission is missing.
    CannotStart = 4,
    /// No daemon answers on the control socket.
    Unreachable = 5,
    /// The daemon answered, and refused or could not do all of it.
    Refused = 6,
    /// What was waited for did not come in the time that the user gave.
    TimedOut = 7,
}

/// Every exit code with its meaning, in the order of the numbers.
pub(crate) const EXIT_CODES: [(u8, &str); 8] = [
    (0, "success"),
    (Exit::Runtime as u8, "failed while running"),
    (Exit::Usage as u8, "wrong command line"),
    (Exit::Config as u8, "the configuration has faults"),
    (Exit::CannotStart as u8, "cannot start: port, tap or socket in use, or permission missing"),
    (Exit::Unreachable as u8, "the daemon cannot be reached"),
    (Exit::Refused as u8, "the daemon refused the request, or could not do all of it"),
    (Exit::TimedOut as u8, "the time of --timeout was over (tapd send)"),
];

/// The table as lines for the help text.
pub(crate) fn exit_code_help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, meaning) in EXIT_CODES {
        text.push_str(&format!("  {code}  {meaning}\n"));
    }
    text.truncate(text.trim_end().len());
    text
}

/// A command's end that is not success: an exit code and what to tell the user.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

impl Failure {
    /// A failure with its exit code; context already on `error` is printed as a chain.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: error.into() }
    }

    /// A failure that is one sentence.
    pub(crate) fn message(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, error: anyhow::anyhow!("{message}") }
    }

    /// The daemon could not start: exit code 4.
    pub(crate) fn cannot_start(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::CannotStart, error)
    }

    /// The process's exit code.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }

    /// Which row of the table this is.
    #[cfg(test)]
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Runtime, error }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_order_and_whole() {
        for (position, (code, meaning)) in EXIT_CODES.iter().enumerate() {
            assert_eq!(usize::from(*code), position);
            assert!(exit_code_help().contains(meaning));
        }
    }

    #[test]
    fn chain_is_printed() {
        let error = anyhow::anyhow!("address in use").context("cannot bind port 26026");
        let failure = Failure::cannot_start(error);
        assert_eq!(failure.to_string(), "cannot bind port 26026: address in use");
        assert_eq!(failure.exit(), Exit::CannotStart);
    }
}
