//! The frame around every end-to-end test: loud skips, and the nodes' logs when it fails.

use std::cell::RefCell;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Result;

thread_local! {
    /// What the fixtures of the running test left for the case that it fails.
    static NOTES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The error of a test that cannot run here; make it with [`skip`].
#[derive(Debug)]
pub struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// An error that ends the running test as skipped, for `reason`.
#[must_use]
pub fn skip(reason: impl Into<String>) -> anyhow::Error {
    Skipped(reason.into()).into()
}

/// Whether a skip is a failure (`TAPD_STRICT=1`).
#[must_use]
pub fn strict() -> bool {
    std::env::var_os("TAPD_STRICT").is_some_and(|v| v == "1")
}

/// Keeps `text` (a log, a picture of the topology) to be printed if the running test fails.
pub fn note(text: impl Into<String>) {
    NOTES.with_borrow_mut(|notes| notes.push(text.into()));
}

/// Runs the body of a test. On failure everything that was noted is printed; a skip is said aloud
/// (also in the file named by `TAPD_SKIP_FILE`) and fails the test in strict mode.
pub fn case(body: impl FnOnce() -> Result<()>) {
    NOTES.with_borrow_mut(Vec::clear);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let notes = NOTES.with_borrow_mut(std::mem::take);
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is::<Skipped>() => announce_skip(&error),
        Ok(Err(error)) => {
            print_notes(&notes);
            fail(&error);
        }
        Err(panic) => {
            print_notes(&notes);
            resume_unwind(panic);
        }
    }
}

#[expect(clippy::panic, reason = "this is how a test fails")]
fn fail(error: &anyhow::Error) -> ! {
    panic!("{error:#}")
}

fn print_notes(notes: &[String]) {
    for note in notes {
        eprintln!("{note}");
    }
}

fn announce_skip(error: &anyhow::Error) {
    let test = std::thread::current().name().unwrap_or("unnamed").to_owned();
    assert!(!strict(), "{test} {error} (TAPD_STRICT=1 makes that a failure)");
    // Not eprintln!: the test runner swallows the output of tests that pass.
    let line = format!("\n*** SKIPPED *** {test}: {error}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("TAPD_SKIP_FILE")
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(file, "{test}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "the reason")]
    fn an_error_fails_the_test() {
        case(|| anyhow::bail!("the reason"));
    }

    #[test]
    fn a_skip_is_known_by_type_not_by_words() {
        assert!(skip("no docker").is::<Skipped>());
        assert!(!anyhow::anyhow!("skipped: no").is::<Skipped>());
    }
}
