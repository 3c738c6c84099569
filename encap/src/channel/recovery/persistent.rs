//! Persistent congestion: nothing got through for a long time (RFC 9002 section 7.6).
//!
//! Next: [`super::Recovery`].

use std::time::{Duration, Instant};

/// Timeouts that the losses must span (kPersistentCongestionThreshold).
const TIMEOUTS: u32 = 3;

/// How long the losses must span, for a timeout without backoff of this length.
pub(super) const fn span(pto: Duration) -> Duration {
    pto.saturating_mul(TIMEOUTS)
}

/// Packets lost in a row, in the order in which they were sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LostRun {
    /// When the first of them was sent.
    first: Option<Instant>,
    /// The position that continues the run. Positions count the packets that ask for an ACK, so one
    /// that was acknowledged leaves a gap.
    next: u64,
    /// The run was found to be long, which is said once.
    told: bool,
}

impl LostRun {
    /// A packet was declared lost. Says whether the run has just grown longer than `span`. Packets
    /// sent before `known_since`, the first round trip, say nothing: how long to wait was a guess.
    pub(super) fn on_lost(
        &mut self,
        position: u64,
        sent: Instant,
        known_since: Option<Instant>,
        span: Duration,
    ) -> bool {
        if known_since.is_none_or(|since| sent < since) {
            return false;
        }
        let Some(first) = self.first.filter(|_| self.next == position) else {
            *self = Self { first: Some(sent), next: position + 1, told: false };
            return false;
        };
        self.next = position + 1;
        let long = !self.told && sent.saturating_duration_since(first) > span;
        self.told |= long;
        long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The example of RFC 9002 section 7.6.2: packets 2 to 8, sent at 1, 2, 3, 4, 5, 6 and 12 s, are
    /// lost; the RTT was known at 1.2 s; the span is 6 s.
    #[test]
    fn the_example_of_rfc_9002() {
        let start = Instant::now();
        let known = Some(start + Duration::from_millis(1_200));
        let mut run = LostRun::default();
        let found: Vec<_> = [1, 2, 3, 4, 5, 6, 12]
            .into_iter()
            .zip(1..)
            .map(|(sent, position)| run.on_lost(position, start + SECOND * sent, known, SECOND * 6))
            .collect();
        assert_eq!(found, [false, false, false, false, false, false, true]);
    }

    #[test]
    fn one_that_got_through_ends_the_run() {
        let start = Instant::now();
        let mut run = LostRun::default();
        let mut lost = |position: u64, at: u32| {
            run.on_lost(position, start + SECOND * at, Some(start), SECOND * 3)
        };
        assert!(!lost(0, 0) && !lost(1, 3));
        // 2 was acknowledged.
        assert!(!lost(3, 4) && !lost(4, 7));
        assert!(lost(5, 8));
        // Told once for a run.
        assert!(!lost(6, 20));
        assert!(!lost(8, 21) && lost(9, 25));
    }

    #[test]
    fn without_a_round_trip_nothing_is_persistent() {
        let start = Instant::now();
        let mut run = LostRun::default();
        assert!(
            !run.on_lost(0, start, None, SECOND)
                && !run.on_lost(1, start + SECOND * 9, None, SECOND)
        );
    }
}
