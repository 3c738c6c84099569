//! The round-trip time of one path (RFC 9002 section 5).
//!
//! Two things differ from the RFC. The first value comes from the link's heartbeats, so that nothing
//! begins with a guess. And the least round trip is that of the last 5 to 10 s, so that a path that
//! became longer is not measured by what it once was.
//!
//! Next: [`super::Recovery`].

use std::time::{Duration, Instant};

/// What a round trip is taken for before anything is known (RFC 9002 section 6.2.2).
pub const INITIAL: Duration = Duration::from_millis(333);

/// Steps below this are not waited for (kGranularity, RFC 9002 section 6.1.2).
pub const GRANULARITY: Duration = Duration::from_millis(1);

/// Longest round trip that is believed: sums and multiples of it must not overflow.
const LONGEST: Duration = Duration::from_secs(60);

/// Longest time that an ACK may be held back for, whatever was agreed (RFC 9000 section 18.2 allows
/// 16 s; here a second is long).
pub const LONGEST_ACK_DELAY: Duration = Duration::from_secs(1);

/// The least round trip is that of one to two halves of this length.
const HALF: Duration = Duration::from_secs(5);

/// What is known of a path's round trips.
#[derive(Debug, Clone)]
pub struct RttEstimate {
    latest: Duration,
    smoothed: Duration,
    var: Duration,
    /// The least of the half that fills, and of the one that is full.
    least: [Duration; 2],
    /// When the filling half was begun.
    begun: Option<Instant>,
    /// Since when there is a value, seeded or measured.
    known_since: Option<Instant>,
    /// A packet of this path was measured: no seed counts any more.
    sampled: bool,
    /// The next sample is the least one.
    forget: bool,
}

impl Default for RttEstimate {
    fn default() -> Self {
        Self::new()
    }
}

impl RttEstimate {
    /// Nothing is known: 333 ms.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            latest: INITIAL,
            smoothed: INITIAL,
            var: Duration::from_micros(166_500),
            least: [INITIAL; 2],
            begun: None,
            known_since: None,
            sampled: false,
            forget: false,
        }
    }

    /// What the link's heartbeats say: smoothed round trip and its mean deviation. Ignored from the
    /// first sample of the path's own on.
    pub fn seed(&mut self, now: Instant, rtt: Duration, var: Duration) {
        if self.sampled {
            return;
        }
        let rtt = rtt.min(LONGEST);
        (self.latest, self.smoothed, self.var) = (rtt, rtt, var.min(LONGEST));
        (self.least, self.begun) = ([rtt; 2], Some(now));
        self.known_since = self.known_since.or(Some(now));
    }

    /// A round trip: from sending a packet to reading the ACK that had it as the largest, for the
    /// first time. `ack_delay` is what the peer says that it held the ACK back for, `max_ack_delay`
    /// the most that it may.
    pub fn on_sample(
        &mut self,
        now: Instant,
        rtt: Duration,
        ack_delay: Duration,
        max_ack_delay: Duration,
    ) {
        let rtt = rtt.min(LONGEST);
        self.latest = rtt;
        self.note_least(now, rtt);
        if self.known_since.is_none() {
            (self.smoothed, self.var) = (rtt, rtt / 2);
        } else {
            let delay = ack_delay.min(max_ack_delay);
            // The delay is not believed below what the path can do (RFC 9002 section 5.3).
            let adjusted = if rtt >= self.min() + delay { rtt - delay } else { rtt };
            self.var = (self.var * 3 + self.smoothed.abs_diff(adjusted)) / 4;
            self.smoothed = (self.smoothed * 7 + adjusted) / 8;
        }
        self.known_since = self.known_since.or(Some(now));
        self.sampled = true;
    }

    /// The path may have become another: the next sample is its least round trip (RFC 9002 section
    /// 5.2).
    pub const fn forget_min(&mut self) {
        self.forget = true;
    }

    fn note_least(&mut self, now: Instant, rtt: Duration) {
        let Some(begun) = self.begun.filter(|_| !self.forget) else {
            (self.least, self.begun, self.forget) = ([rtt; 2], Some(now), false);
            return;
        };
        let [filling, full] = self.least;
        if now.saturating_duration_since(begun) >= HALF {
            (self.least, self.begun) = ([rtt, filling], Some(now));
        } else {
            self.least = [filling.min(rtt), full];
        }
    }

    /// The last round trip, ack delay included.
    #[must_use]
    pub const fn latest(&self) -> Duration {
        self.latest
    }

    /// The smoothed round trip, ack delay taken off.
    #[must_use]
    pub const fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// The mean deviation of the round trip.
    #[must_use]
    pub const fn var(&self) -> Duration {
        self.var
    }

    /// The least round trip of the last 5 to 10 s with samples.
    #[must_use]
    pub fn min(&self) -> Duration {
        let [filling, full] = self.least;
        filling.min(full)
    }

    /// Since when there is a value, seeded or measured.
    #[must_use]
    pub const fn known_since(&self) -> Option<Instant> {
        self.known_since
    }

    /// How long an ACK may be waited for, without backoff (RFC 9002 section 6.2.1).
    #[must_use]
    pub fn pto(&self, max_ack_delay: Duration) -> Duration {
        self.smoothed + (self.var * 4).max(GRANULARITY) + max_ack_delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// RFC 9002 section 5.3, by hand.
    #[test]
    fn smooths_as_rfc_9002_does() {
        let now = Instant::now();
        let mut rtt = RttEstimate::new();
        assert_eq!(rtt.pto(MS * 25), MS * (333 + 666 + 25));
        // The first sample has no delay taken off.
        rtt.on_sample(now, MS * 100, MS * 10, MS * 25);
        assert_eq!((rtt.smoothed(), rtt.var(), rtt.min()), (MS * 100, MS * 50, MS * 100));
        // 140 - 20: 7/8 of 100 and 1/8 of 120; 3/4 of 50 and 1/4 of 20.
        rtt.on_sample(now, MS * 140, MS * 20, MS * 25);
        assert_eq!((rtt.latest(), rtt.smoothed()), (MS * 140, Duration::from_micros(102_500)));
        assert_eq!(rtt.var(), Duration::from_micros(42_500));
        // No more than the peer may wait for: 140 - 25.
        let mut other = rtt.clone();
        other.on_sample(now, MS * 140, MS * 90, MS * 25);
        assert_eq!(other.smoothed(), Duration::from_nanos(104_062_500));
        // Nothing, where it would go below the least round trip.
        rtt.on_sample(now, MS * 110, MS * 20, MS * 25);
        assert_eq!(rtt.smoothed(), Duration::from_nanos(103_437_500));
        assert_eq!(rtt.pto(MS * 25), rtt.smoothed() + rtt.var() * 4 + MS * 25);
    }

    #[test]
    fn begins_with_what_the_link_knows() {
        let now = Instant::now();
        let mut rtt = RttEstimate::new();
        assert_eq!(rtt.known_since(), None);
        rtt.seed(now, MS / 10, MS / 100);
        assert_eq!(rtt.known_since(), Some(now));
        assert_eq!(rtt.pto(MS), MS / 10 + MS * 2);
        rtt.seed(now + MS, MS * 8, MS * 2);
        assert_eq!((rtt.known_since(), rtt.min()), (Some(now), MS * 8));
        rtt.on_sample(now, MS * 16, Duration::ZERO, MS);
        assert_eq!((rtt.smoothed(), rtt.var()), (MS * 9, Duration::from_micros(3_500)));
        rtt.seed(now, MS, MS);
        assert_eq!(rtt.smoothed(), MS * 9);
    }

    #[test]
    fn a_longer_path_is_seen_after_a_while() {
        let start = Instant::now();
        let mut rtt = RttEstimate::new();
        let mut run = |from: u32, to: u32, value: Duration| {
            for ms in (from..to).step_by(10) {
                rtt.on_sample(start + MS * ms, value, Duration::ZERO, MS);
            }
            rtt.min()
        };
        assert_eq!(run(0, 3_000, MS), MS);
        assert_eq!(run(3_000, 5_000, MS * 80), MS);
        assert_eq!(run(5_000, 10_100, MS * 80), MS * 80);
        assert_eq!(run(10_100, 10_110, MS * 20), MS * 20);
        rtt.forget_min();
        rtt.on_sample(start + MS * 10_200, MS * 90, Duration::ZERO, MS);
        assert_eq!(rtt.min(), MS * 90);
    }

    proptest! {
        #[test]
        fn takes_anything(
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..100),
        ) {
            let now = Instant::now();
            let mut rtt = RttEstimate::new();
            for (a, b, c) in steps {
                let [a, b, c] = [a, b, c].map(Duration::from_nanos);
                if a < b { rtt.seed(now, a, b) } else { rtt.on_sample(now + c / 1_000, a, b, c) }
                prop_assert!(rtt.min() <= LONGEST && rtt.smoothed() <= LONGEST);
                prop_assert!(rtt.pto(MS) <= LONGEST * 6);
            }
        }
    }
}
