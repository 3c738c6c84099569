//! A token bucket: so many per second, with a burst of a tenth of a second's worth.

use std::time::{Duration, Instant};

/// Lets a rate pass and says no to the rest.
#[derive(Debug, Clone)]
pub struct Policer {
    /// Nanoseconds that one token takes to grow; 0 for no limit.
    interval_ns: u64,
    /// How far, in nanoseconds' worth of tokens, the bucket can be overdrawn: its depth.
    depth_ns: u64,
    /// When the bucket would be full again.
    full_at: Instant,
}

impl Policer {
    /// `rate` per second (0: no limit) and `burst` at once.
    #[must_use]
    pub fn new(now: Instant, rate: u32, burst: u32) -> Self {
        let interval_ns = if rate == 0 { 0 } else { 1_000_000_000 / u64::from(rate) };
        Self { interval_ns, depth_ns: interval_ns * u64::from(burst.max(1)), full_at: now }
    }

    /// The configured time between two, as given by [`Self::new`]; tells whether to make anew.
    #[must_use]
    pub fn is_rate(&self, rate: u32) -> bool {
        self.interval_ns == if rate == 0 { 0 } else { 1_000_000_000 / u64::from(rate) }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(now, 1)
    }

    /// Takes `count`, if there are as many or the bucket is full: then what is missing is owed.
    pub fn take_many(&mut self, now: Instant, count: u32) -> bool {
        if self.interval_ns == 0 {
            return true;
        }
        let missing = self.full_at.saturating_duration_since(now);
        let wanted = Duration::from_nanos(self.interval_ns * u64::from(count));
        if !missing.is_zero() && missing + wanted > Duration::from_nanos(self.depth_ns) {
            return false;
        }
        self.full_at = self.full_at.max(now) + wanted;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_burst_then_rate() {
        let start = Instant::now();
        let mut policer = Policer::new(start, 1_000, 10);
        assert_eq!((0..100).filter(|_| policer.take(start)).count(), 10);
        let later = start + Duration::from_millis(5);
        assert_eq!((0..100).filter(|_| policer.take(later)).count(), 5);
        let much_later = start + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| policer.take(much_later)).count(), 10);
    }

    #[test]
    fn many_at_once_are_charged_in_full() {
        let start = Instant::now();
        let mut policer = Policer::new(start, 1_000, 10);
        assert!(policer.take_many(start, 4) && policer.take_many(start, 6));
        assert!(!policer.take_many(start, 1));
        // A full bucket gives more than it holds, and is empty for as long as that takes.
        let full = start + Duration::from_millis(10);
        assert!(policer.take_many(full, 30));
        assert!(!policer.take(full + Duration::from_millis(20)));
        assert!(policer.take(full + Duration::from_millis(21)));
    }

    #[test]
    fn zero_is_no_limit() {
        let start = Instant::now();
        let mut policer = Policer::new(start, 0, 0);
        assert!((0..10_000).all(|_| policer.take(start)));
    }
}
