//! Waiting for nodes: people are told of it after a while, and it ends where they said so.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::say;
use crate::exit::{Exit, Failure};

/// How often a command that waits looks how it stands.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// How long nothing is said: most waits are over by then.
const QUIET: Duration = Duration::from_secs(2);
/// Causes that are told of one wait: more than people follow, and a bound for what is remembered.
const MAX_SAID: usize = 16;

/// How long a command waits, and what it has said of that.
#[derive(Debug)]
pub(super) struct Patience {
    /// None is for ever.
    limit: Option<Duration>,
    /// The user set it.
    is_chosen: bool,
    /// When something went on last.
    since: Instant,
    /// What was said of this wait.
    said: BTreeSet<String>,
}

impl Patience {
    /// Begins to wait, for `limit` at most, but not for less than a [`TICK`]: nothing comes at once.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        let limit = limit.map(|limit| limit.max(TICK));
        Self { limit, is_chosen: true, since: Instant::now(), said: BTreeSet::new() }
    }

    /// Begins to wait, for `default` at most where the user chose nothing.
    pub(super) fn with_default(limit: Option<Duration>, default: Duration) -> Self {
        Self { is_chosen: limit.is_some(), ..Self::new(Some(limit.unwrap_or(default))) }
    }

    /// The command got on: a wait from here is a new one.
    pub(super) fn get_on(&mut self) {
        self.since = Instant::now();
        self.said.clear();
    }

    /// How long to sleep at most until [`Self::wait`] is called again; never no time at all.
    pub(super) fn tick(&self) -> Duration {
        let left = self.limit.map_or(TICK, |limit| limit.saturating_sub(self.since.elapsed()));
        left.clamp(Duration::from_millis(1), TICK)
    }

    /// Nothing goes on, for want of `what`. Says so once the wait is long, and again when it is for
    /// something that was not said of this wait.
    ///
    /// # Errors
    /// The time is over.
    pub(super) fn wait(&mut self, what: &str) -> Result<(), Failure> {
        let waited = self.since.elapsed();
        if self.limit.is_some_and(|limit| waited >= limit) {
            return Err(self.expired(what));
        }
        self.tell(what);
        Ok(())
    }

    /// The part of [`Self::wait`] that says for what, for one who does not give up yet.
    pub(super) fn tell(&mut self, what: &str) {
        let is_long = self.since.elapsed() >= QUIET && self.said.len() < MAX_SAID;
        if is_long && !self.said.contains(what) {
            say(format_args!("waiting for {what}"));
            self.said.insert(what.to_owned());
        }
    }

    /// The time was over before `what` came.
    pub(super) fn expired(&self, what: &str) -> Failure {
        let seconds = self.limit.unwrap_or_default().as_secs();
        let chosen = if self.is_chosen { " (--timeout)" } else { "" };
        Failure::message(
            Exit::TimedOut,
            format_args!("gave up after {seconds} s{chosen} of waiting for {what}"),
        )
    }
}

/// How a thread that writes gets on, for one that watches.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Odd while it waits for room.
    made: AtomicU64,
    /// All was written, the end too.
    ended: AtomicBool,
}

impl Steps {
    /// The other thread waits from here on, or does so no more.
    pub(super) fn step(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    /// Some of what the other thread waits to write went.
    pub(super) fn get_on(&self) {
        self.made.fetch_add(2, Ordering::Relaxed);
    }

    /// The other thread has written all, and its end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.get_on();
    }

    /// Whether all was written: what follows is the other side's.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// How many steps were made.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

/// Whether a thread that made so many steps waits.
pub(super) const fn is_waiting(steps: u64) -> bool {
    steps % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged(limit: Option<u64>, age: u64) -> Patience {
        let since = Instant::now().checked_sub(Duration::from_secs(age)).unwrap();
        Patience { since, ..Patience::new(limit.map(Duration::from_secs)) }
    }

    #[test]
    fn a_wait_ends_where_the_user_said_so() {
        assert!(aged(None, 1_000).wait("x").is_ok());
        assert!(aged(Some(10), 9).wait("x").is_ok());
        let ended = aged(Some(10), 10).wait("node beta: no link is up").unwrap_err();
        assert_eq!(ended.exit(), Exit::TimedOut);
        let said = "gave up after 10 s (--timeout) of waiting for node beta: no link is up";
        assert_eq!(ended.to_string(), said);
        let limit = Duration::from_secs(7);
        let default = Patience::with_default(None, limit).expired("x").to_string();
        assert_eq!(default, "gave up after 7 s of waiting for x");
        let chosen = Patience::with_default(Some(limit), Duration::ZERO).expired("x").to_string();
        assert_eq!(chosen, "gave up after 7 s (--timeout) of waiting for x");
        let mut late = aged(Some(10), 10);
        late.get_on();
        assert!(late.wait("x").is_ok());
    }

    #[test]
    fn long_waits_are_told_once_for_each_cause() {
        let mut patience = aged(None, 1);
        patience.wait("a").unwrap();
        assert!(patience.said.is_empty());
        let mut patience = aged(None, 2);
        for (what, said) in [("a", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 2)] {
            patience.wait(what).unwrap();
            assert_eq!(patience.said.len(), said);
        }
        (0..100).for_each(|number| patience.tell(&number.to_string()));
        assert_eq!(patience.said.len(), MAX_SAID);
    }

    #[test]
    fn another_wait_is_told_again() {
        let mut patience = aged(None, 2);
        patience.wait("a").unwrap();
        patience.get_on();
        patience.wait("a").unwrap();
        assert!(patience.said.is_empty());
        patience.since = aged(None, 2).since;
        patience.wait("a").unwrap();
        assert!(patience.said.contains("a"));
    }

    #[test]
    fn looks_are_frequent_and_never_busy() {
        assert_eq!(aged(None, 5).tick(), TICK);
        assert_eq!(aged(Some(100), 5).tick(), TICK);
        assert_eq!(aged(Some(5), 5).tick(), Duration::from_millis(1));
    }
}
