//! How late a packet may be before it counts as lost.
//!
//! Two limits, as in QUIC: so many packets with larger numbers were acknowledged, or so much time
//! has passed since a later packet could have been acknowledged (RACK, RFC 8985). A packet that was
//! called lost and is acknowledged after all widens the limit that it fell to; losses that remain
//! losses narrow both again.
//!
//! Next: [`super::Recovery`].

use std::time::Duration;

use super::rtt::{GRANULARITY, RttEstimate};

/// Packets in the beginning (kPacketThreshold, RFC 9002 section 6.1.1).
const FIRST_PACKETS: u64 = 3;

/// Packets at most. Where packets are later than that, only time counts: a limit of thousands would
/// find no loss that time does not find first.
const MOST_PACKETS: u64 = 64;

/// Episodes of loss without a wrong one until the limits narrow by a step (RFC 8985 section 7.2 has
/// 16 recoveries).
const PATIENCE: u32 = 16;

/// Why a packet counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Too many later ones were acknowledged.
    Packets,
    /// It is overdue.
    Time,
    /// Given up by order.
    Abandoned,
}

/// The two limits of a path.
#[derive(Debug, Clone)]
pub(super) struct Reordering {
    /// `None`: only time counts.
    packets: Option<u64>,
    /// Quarters of the least round trip.
    quarters: u32,
    /// The episode of loss ends with this number: it was the next when the episode began.
    episode_end: u64,
    /// Time is widened once in a round trip: not again for packets below this number.
    widened_until: u64,
    /// Episodes until the limits narrow.
    patience: u32,
}

impl Default for Reordering {
    fn default() -> Self {
        Self {
            packets: Some(FIRST_PACKETS),
            quarters: 1,
            episode_end: 0,
            widened_until: 0,
            patience: PATIENCE,
        }
    }
}

impl Reordering {
    /// Packets with larger numbers, the largest acknowledged one included, that a packet may be
    /// behind; `None` if any number.
    pub(super) const fn packets(&self) -> Option<u64> {
        self.packets
    }

    /// How long after being sent a packet is overdue, once a later one was acknowledged: a round
    /// trip and a window, between a quarter of the least round trip and the smoothed one.
    pub(super) fn delay(&self, rtt: &RttEstimate) -> Duration {
        let window = (rtt.min() / 4).saturating_mul(self.quarters).min(rtt.smoothed());
        (rtt.smoothed().max(rtt.latest()) + window).max(GRANULARITY)
    }

    /// A packet was declared lost, when `next` was the next number to send.
    pub(super) fn on_lost(&mut self, number: u64, next: u64) {
        if number < self.episode_end {
            return;
        }
        self.episode_end = next;
        if self.patience > 0 {
            self.patience -= 1;
            return;
        }
        self.patience = PATIENCE;
        self.quarters = (self.quarters / 2).max(1);
        self.packets = Some(match self.packets {
            None => MOST_PACKETS,
            Some(packets) => (packets / 2).max(FIRST_PACKETS),
        });
    }

    /// A packet that had been declared lost is acknowledged, `age` after it was sent and `behind`
    /// below the largest number.
    pub(super) fn on_spurious(
        &mut self,
        number: u64,
        cause: Cause,
        behind: u64,
        age: Duration,
        next: u64,
        rtt: &RttEstimate,
    ) {
        match cause {
            Cause::Packets => {
                self.packets = self
                    .packets
                    .map(|packets| packets.max(behind.saturating_add(1)))
                    .filter(|packets| *packets <= MOST_PACKETS);
            }
            Cause::Time => self.widen(number, age, next, rtt),
            Cause::Abandoned => return,
        }
        self.patience = PATIENCE;
    }

    /// Widens the window to what the packet would have needed; once in a round trip by twice at
    /// least, since what is measured now may be less than what was judged by then.
    fn widen(&mut self, number: u64, age: Duration, next: u64, rtt: &RttEstimate) {
        let quarter = (rtt.min() / 4).max(Duration::from_nanos(1)).as_nanos();
        let quarters = |time: Duration| u32::try_from(time.as_nanos().div_ceil(quarter));
        let late = age.saturating_sub(rtt.smoothed().max(rtt.latest()));
        let mut wanted = quarters(late).unwrap_or(u32::MAX);
        if number >= self.widened_until {
            self.widened_until = next;
            wanted = wanted.max(self.quarters.saturating_mul(2));
        }
        // More than one smoothed round trip would only take longer to narrow again.
        let most = quarters(rtt.smoothed()).unwrap_or(u32::MAX).max(1);
        self.quarters = self.quarters.max(wanted).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const MS: Duration = Duration::from_millis(1);

    fn rtt(smoothed: Duration) -> RttEstimate {
        let mut rtt = RttEstimate::new();
        rtt.seed(Instant::now(), smoothed, smoothed / 2);
        rtt
    }

    #[test]
    fn the_window_grows_to_one_round_trip_once_a_round_and_narrows() {
        let mut limits = Reordering::default();
        let rtt = rtt(MS * 40);
        assert_eq!(limits.delay(&rtt), MS * 50);
        for (number, next, wanted) in [(0, 100, 60), (50, 150, 60), (120, 200, 80), (300, 400, 80)]
        {
            limits.on_spurious(number, Cause::Time, 1, MS, next, &rtt);
            assert_eq!(limits.delay(&rtt), MS * wanted, "{number}");
        }
        assert_eq!(limits.packets(), Some(3));
        limits.on_spurious(500, Cause::Abandoned, 1_000, MS * 900, 600, &rtt);
        assert_eq!((limits.delay(&rtt), limits.packets()), (MS * 80, Some(3)));
        for episode in 0..60 {
            // Only the first loss of an episode counts.
            (0..30)
                .for_each(|loss| limits.on_lost(1_000 + episode * 50 + loss, 1_050 + episode * 50));
        }
        assert_eq!(limits.delay(&rtt), MS * 50);
        // As late as measured, and no more than that.
        limits.on_spurious(9_000, Cause::Time, 1, MS * 69, 9_100, &rtt);
        assert_eq!(limits.delay(&rtt), MS * 70);
        limits.on_spurious(9_001, Cause::Time, 1, MS * 9_999, 9_100, &rtt);
        assert_eq!((limits.delay(&rtt), limits.quarters), (MS * 80, 4));
    }

    #[test]
    fn packets_grow_by_what_was_seen_and_end_at_time_alone() {
        let mut limits = Reordering::default();
        let rtt = rtt(MS * 40);
        limits.on_spurious(0, Cause::Packets, 2, MS, 100, &rtt);
        assert_eq!(limits.packets(), Some(3));
        limits.on_spurious(1, Cause::Packets, 20, MS, 100, &rtt);
        assert_eq!(limits.packets(), Some(21));
        limits.on_spurious(2, Cause::Packets, u64::MAX, MS, 100, &rtt);
        assert_eq!(limits.packets(), None);
        let mut seen = Vec::new();
        for episode in 0..150 {
            limits.on_lost(episode * 10, episode * 10 + 10);
            if seen.last() != Some(&limits.packets()) {
                seen.push(limits.packets());
            }
        }
        assert_eq!(seen, [None, Some(64), Some(32), Some(16), Some(8), Some(4), Some(3)]);
    }

    /// A wrong loss now and then keeps the limits as wide as they are.
    #[test]
    fn only_losses_in_a_row_that_stay_losses_narrow() {
        let mut limits = Reordering::default();
        let rtt = rtt(MS * 40);
        for round in 0..20_u64 {
            let first = round * 1_000;
            limits.on_spurious(first, Cause::Packets, 40, MS, first + 1, &rtt);
            (1..12).for_each(|loss| limits.on_lost(first + loss * 10, first + loss * 10 + 5));
            assert_eq!(limits.packets(), Some(41), "{round}");
        }
    }

    #[test]
    fn a_short_path_is_not_judged_below_the_granularity() {
        assert_eq!(Reordering::default().delay(&rtt(MS / 20)), GRANULARITY);
    }
}
