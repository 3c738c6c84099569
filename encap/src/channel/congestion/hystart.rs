//! HyStart++ (RFC 9406): the first slow start ends when the round trip grows, before the queue of
//! the bottleneck overflows.

use std::time::Duration;

/// Smallest growth of the round trip that counts (RFC 9406 section 4.3, as all that follow).
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
/// Largest growth of the round trip that is waited for.
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
/// Between the two: this part of the round trip.
const MIN_RTT_DIVISOR: u32 = 8;
/// Samples that a round must have to be judged.
const N_RTT_SAMPLE: u32 = 8;
/// Conservative slow start is slower by this factor.
const CSS_GROWTH_DIVISOR: u32 = 4;
/// Rounds of conservative slow start, the one that it began in included.
const CSS_ROUNDS: u32 = 5;

/// What to make of the round trips so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The window doubles in each round.
    Standard,
    /// The round trip grew to `baseline`: grow slowly and see whether that was a mistake.
    Conservative { baseline: Duration, rounds: u32 },
}

/// The state of the first slow start.
#[derive(Debug, Clone)]
pub(super) struct HyStart {
    phase: Phase,
    /// Smallest sample of the round before.
    last_min: Option<Duration>,
    /// Smallest sample of this round.
    current_min: Option<Duration>,
    samples: u32,
    /// Number that the next packet will have.
    next: u64,
    /// The round ends when this packet is acknowledged.
    window_end: Option<u64>,
}

impl HyStart {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Standard,
            last_min: None,
            current_min: None,
            samples: 0,
            next: 0,
            window_end: None,
        }
    }

    pub(super) fn on_sent(&mut self, number: u64) {
        self.next = number.saturating_add(1);
    }

    /// The window grows by what is acknowledged divided by this. Pacing makes a limit on what one
    /// acknowledgement adds unnecessary (RFC 9406 section 4.2, L is infinite).
    pub(super) fn divisor(&self) -> u32 {
        match self.phase {
            Phase::Standard => 1,
            Phase::Conservative { .. } => CSS_GROWTH_DIVISOR,
        }
    }

    /// An acknowledgement came with this sample of the round trip; says whether slow start ends.
    pub(super) fn on_ack(&mut self, largest: u64, latest: Duration) -> bool {
        let ends = largest >= *self.window_end.get_or_insert(self.next) && self.next_round();
        self.current_min = Some(self.current_min.map_or(latest, |min| min.min(latest)));
        self.samples = self.samples.saturating_add(1);
        if self.samples >= N_RTT_SAMPLE {
            self.judge();
        }
        ends
    }

    /// Says whether the round that is over was the last slow one.
    fn next_round(&mut self) -> bool {
        self.last_min = self.current_min.take();
        self.samples = 0;
        self.window_end = Some(self.next);
        let Phase::Conservative { rounds, .. } = &mut self.phase else { return false };
        *rounds += 1;
        *rounds >= CSS_ROUNDS
    }

    fn judge(&mut self) {
        let (Some(current), Some(last)) = (self.current_min, self.last_min) else { return };
        match self.phase {
            Phase::Standard => {
                let growth = (last / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if current >= last.saturating_add(growth) {
                    self.phase = Phase::Conservative { baseline: current, rounds: 0 };
                }
            }
            Phase::Conservative { baseline, .. } => {
                if current < baseline {
                    self.phase = Phase::Standard;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_ROUND: u64 = 10;

    /// Ten packets and their acknowledgements with this round trip; whether slow start ends then.
    fn round(hystart: &mut HyStart, number: &mut u64, rtt: u64) -> bool {
        let first = *number;
        *number += PER_ROUND;
        (first..*number).for_each(|number| hystart.on_sent(number));
        let ack = |number| hystart.on_ack(number, Duration::from_millis(rtt));
        (first..*number).map(ack).fold(false, |ends, end| ends | end)
    }

    #[test]
    fn a_steady_round_trip_never_ends_it() {
        let (mut hystart, mut number) = (HyStart::new(), 0);
        for _ in 0..100 {
            assert!(!round(&mut hystart, &mut number, 20));
        }
        assert_eq!(hystart.divisor(), 1);
    }

    #[test]
    fn growth_ends_it_after_five_slow_rounds() {
        let (mut hystart, mut number) = (HyStart::new(), 0);
        assert!(!round(&mut hystart, &mut number, 40));
        // Below max(4 ms, 40 ms / 8) = 5 ms of growth.
        assert!(!round(&mut hystart, &mut number, 44));
        assert_eq!(hystart.divisor(), 1);
        for slow in 1..=6 {
            // 44 ms / 8 = 5.5 ms.
            let ends = round(&mut hystart, &mut number, 50);
            assert_eq!(hystart.divisor(), 4);
            // The first packet of the next round says that the fifth is over.
            assert_eq!(ends, slow == 6, "round {slow}");
        }
    }

    #[test]
    fn a_mistake_is_taken_back() {
        let (mut hystart, mut number) = (HyStart::new(), 0);
        round(&mut hystart, &mut number, 20);
        round(&mut hystart, &mut number, 30);
        assert_eq!(hystart.divisor(), 4);
        round(&mut hystart, &mut number, 29);
        assert_eq!(hystart.divisor(), 1);
    }

    #[test]
    fn thresholds_have_bounds() {
        let (mut hystart, mut number) = (HyStart::new(), 0);
        round(&mut hystart, &mut number, 1);
        round(&mut hystart, &mut number, 4);
        assert_eq!(hystart.divisor(), 1, "3 ms are below the least growth");
        round(&mut hystart, &mut number, 400);
        assert_eq!(hystart.divisor(), 4);
        let (mut hystart, mut number) = (HyStart::new(), 0);
        round(&mut hystart, &mut number, 400);
        round(&mut hystart, &mut number, 416);
        assert_eq!(hystart.divisor(), 4, "16 ms suffice however long the round trip");
    }

    #[test]
    fn few_samples_say_nothing() {
        let mut hystart = HyStart::new();
        for number in 0..1_000 {
            hystart.on_sent(number);
            // Each acknowledgement is a round of its own.
            assert!(!hystart.on_ack(number, Duration::from_millis(number)));
            assert_eq!(hystart.divisor(), 1);
        }
    }
}
