//! Pacing: a token bucket that spreads what the window allows over the round trip (RFC 9002
//! section 7.7).

use std::time::{Duration, Instant};

/// Packets of full size that may leave at once.
pub const BURST_PACKETS: u64 = 10;
/// The largest batch that one system call takes, in bytes: one burst where the kernel or the card
/// cuts it into packets.
pub const SUPER_PACKET: u64 = 65_536;
/// A bucket never holds more, in bytes, however coarse the timers of its owner are.
pub const MAX_BURST: u64 = 4 << 20;

/// A bucket of bytes that may leave now.
#[derive(Debug, Clone)]
pub struct Pacer {
    /// Bytes per second; `u64::MAX` for no limit.
    rate: u64,
    /// Bytes that may leave at once.
    burst: u64,
    /// What the owner's timers are late by. What flows in during that time is not lost.
    lateness: Duration,
    /// Bytes; below 0 after a packet that was larger than the bucket.
    tokens: f64,
    filled: Instant,
}

impl Pacer {
    /// A full bucket of `burst` bytes (see [`Self::burst_of`]). `lateness`: zero for an owner that
    /// polls all the time, else how late its timers come, so that it keeps up with rates of more
    /// than a burst per timer.
    #[must_use]
    pub fn new(now: Instant, burst: u64, lateness: Duration) -> Self {
        let burst = burst.clamp(1, MAX_BURST);
        Self { rate: u64::MAX, burst, lateness, tokens: burst as f64, filled: now }
    }

    /// Bytes of a burst for packets of `mtu` bytes: ten packets, or what one system call takes
    /// where `segments` (segmentation offload) makes that cheap.
    #[must_use]
    pub fn burst_of(mtu: u16, segments: bool) -> u64 {
        let packets = BURST_PACKETS * u64::from(mtu);
        if segments { SUPER_PACKET.max(u64::from(mtu)) } else { packets }
    }

    /// Bytes per second from now on; `u64::MAX` for no limit.
    pub fn set_rate(&mut self, now: Instant, rate: u64) {
        self.fill(now);
        // A rate of nothing would never end.
        self.rate = rate.max(1);
        self.tokens = self.tokens.min(self.capacity());
    }

    /// Another size of burst, in bytes, from now on.
    pub fn set_burst(&mut self, burst: u64) {
        self.burst = burst.clamp(1, MAX_BURST);
        self.tokens = self.tokens.min(self.capacity());
    }

    /// How long a packet of `bytes` bytes has to wait; `None`: it may leave now. Changes nothing
    /// but the time.
    pub fn delay(&mut self, now: Instant, bytes: u64) -> Option<Duration> {
        if self.rate == u64::MAX {
            return None;
        }
        self.fill(now);
        // What is larger than the bucket waits until it is full.
        let missing = (bytes as f64).min(self.capacity()) - self.tokens;
        if missing <= 0.0 {
            return None;
        }
        // Rounded up by more than the arithmetic loses: who waits that long need not wait again.
        let nanos = (missing / self.rate as f64 * 1e9) as u64;
        Some(Duration::from_nanos(nanos.saturating_add(2)))
    }

    /// A packet of `bytes` bytes left.
    pub fn on_sent(&mut self, now: Instant, bytes: u64) {
        if self.rate == u64::MAX {
            return;
        }
        self.fill(now);
        // Packets that may not wait, such as probes, leave debts: one bucketful or packet at most.
        let bytes = bytes as f64;
        self.tokens = (self.tokens - bytes).max(-bytes.max(self.capacity()));
    }

    /// Bytes that the bucket holds when it is full.
    fn capacity(&self) -> f64 {
        let during = self.rate as f64 * self.lateness.as_secs_f64();
        during.clamp(self.burst as f64, MAX_BURST as f64)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        let inflow = self.rate as f64 * elapsed.as_secs_f64();
        self.tokens = (self.tokens + inflow).min(self.capacity());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends packets of `size` bytes as soon as they may leave; gives bytes sent in `time`.
    fn send(pacer: &mut Pacer, from: Instant, time: Duration, size: u64, late: Duration) -> u64 {
        let (mut now, mut sent) = (from, 0);
        while now <= from + time {
            match pacer.delay(now, size) {
                None => {
                    pacer.on_sent(now, size);
                    sent += size;
                }
                Some(delay) => now += delay + late,
            }
        }
        sent
    }

    #[test]
    fn a_burst_then_the_rate() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now, Pacer::burst_of(1_200, false), Duration::ZERO);
        pacer.set_rate(now, 1_000_000);
        for _ in 0..10 {
            assert_eq!(pacer.delay(now, 1_200), None);
            pacer.on_sent(now, 1_200);
        }
        let delay = pacer.delay(now, 1_200).unwrap();
        assert!((1_200_000..1_200_010).contains(&delay.as_nanos()), "{delay:?}");
        let sent = send(&mut pacer, now, 100 * MS, 1_200, Duration::ZERO);
        assert!((98_800..=100_000).contains(&sent), "{sent}");
    }

    #[test]
    fn late_timers_cost_nothing_that_was_told() {
        let now = Instant::now();
        let rate = 1_000_000_000;
        let mut exact = Pacer::new(now, SUPER_PACKET, Duration::ZERO);
        let mut late = Pacer::new(now, SUPER_PACKET, 2 * MS);
        exact.set_rate(now, rate);
        late.set_rate(now, rate);
        let lost = send(&mut exact, now, 100 * MS, 1_200, MS);
        let kept = send(&mut late, now, 100 * MS, 1_200, MS);
        assert!(lost < 10_000_000, "64 KiB each millisecond: {lost}");
        assert!((98_000_000..=102_000_000).contains(&kept), "{kept}");
    }

    #[test]
    fn large_packets_wait_for_a_full_bucket_only() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now, 1_000, Duration::ZERO);
        pacer.set_rate(now, 1_000_000);
        assert_eq!(pacer.delay(now, 65_000), None);
        pacer.on_sent(now, 65_000);
        pacer.on_sent(now, 65_000);
        let delay = pacer.delay(now, 65_000).unwrap();
        assert_eq!(delay.as_millis(), 66, "debts are bounded");
        assert_eq!(pacer.delay(now + delay, 65_000), None);
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now, 1, Duration::ZERO);
        for _ in 0..1_000 {
            assert_eq!(pacer.delay(now, 65_000), None);
            pacer.on_sent(now, 65_000);
        }
        // The first limit begins with a full bucket, without debts.
        pacer.set_rate(now, 1_000);
        assert_eq!(pacer.delay(now, 1), None);
        pacer.set_rate(now, 0);
        pacer.on_sent(now, 1);
        assert!(pacer.delay(now, 1).is_some());
        assert_eq!(Pacer::burst_of(1_200, false), 12_000);
        assert_eq!(Pacer::burst_of(1_200, true), 65_536);
    }

    proptest! {
        /// Never more than a burst beyond the rate, and who waited as told may send.
        #[test]
        fn never_faster_than_told(
            // From one kilobyte to 16 gigabytes, each magnitude as likely.
            (bits, rest) in (10_u32..34, 0.0..1.0_f64),
            burst in 1_500_u64..200_000,
            sizes in prop::collection::vec(1_u64..1_500, 1..400),
            pauses in prop::collection::vec(0_u64..300_000, 1..400),
        ) {
            let rate = ((1_u64 << bits) as f64 * (1.0 + rest)) as u64;
            let start = Instant::now();
            let mut pacer = Pacer::new(start, burst, Duration::ZERO);
            pacer.set_rate(start, rate);
            let (mut now, mut sent) = (start, 0_u64);
            for (size, pause) in sizes.iter().zip(&pauses) {
                now += Duration::from_nanos(*pause);
                if let Some(delay) = pacer.delay(now, *size) {
                    now += delay;
                    prop_assert_eq!(pacer.delay(now, *size), None);
                }
                pacer.on_sent(now, *size);
                sent += size;
                let most = burst as f64 + rate as f64 * (now - start).as_secs_f64();
                prop_assert!(sent as f64 <= most + 1.0, "{} of {}", sent, most);
            }
        }
    }
}
