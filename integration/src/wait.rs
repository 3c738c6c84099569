//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Looks at `condition` until it gives something, and returns that.
///
/// # Errors
/// Nothing came within `deadline`; the error names `what` was waited for.
pub fn until_some<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {deadline:?} in vain for: {what}");
        }
        // The one sleep of the harness: the pause between two looks at a condition.
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Looks at `condition` until it holds.
///
/// # Errors
/// It did not hold within `deadline`; the error names `what` was waited for.
pub fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(what, deadline, || condition().then_some(()))
}

/// Looks at `condition` for the whole of `span` and insists that it holds every time.
///
/// # Errors
/// It failed to hold once.
pub fn holds_for(what: &str, span: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + span;
    match until_some(what, span, || {
        if !condition() {
            return Some(false);
        }
        (Instant::now() >= end).then_some(true)
    }) {
        Ok(false) => bail!("did not hold all the time: {what}"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_condition_gave() {
        let mut looks = 0;
        let got = until_some("three looks", Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(got.unwrap(), 3);
    }

    #[test]
    fn says_what_it_waited_for() {
        let error = until("a miracle", Duration::ZERO, || false).unwrap_err();
        assert!(error.to_string().contains("a miracle"));
    }

    #[test]
    fn notices_a_condition_that_breaks() {
        let mut looks = 0;
        let result = holds_for("fewer than three looks", Duration::from_secs(5), || {
            looks += 1;
            looks < 3
        });
        assert!(result.is_err());
        assert!(holds_for("always", Duration::from_millis(20), || true).is_ok());
    }
}
