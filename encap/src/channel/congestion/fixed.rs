//! A fixed rate: for links whose share somebody else has decided.

use std::time::Instant;

use super::{Controller, MAX_WINDOW, Rtt, initial_window, min_window, packet_size};

/// The window is larger than rate by round trip by this factor: acknowledgements that come in
/// bursts do not stop the pacer, which is what keeps the rate.
const WINDOW_GAIN: f64 = 1.25;

/// A rate that no loss changes, only silence.
#[derive(Debug, Clone)]
pub struct Fixed {
    mtu: f64,
    /// Bytes per second.
    rate: u64,
    window: f64,
    /// Persistent congestion: there may be no path at all, so nothing is poured into it until
    /// something that was sent since comes back (RFC 8085 section 3.1.10).
    silent_since: Option<Instant>,
}

impl Fixed {
    /// `rate` bytes per second in packets of at most `mtu` bytes.
    #[must_use]
    pub fn new(mtu: u16, rate: u64) -> Self {
        let mtu = packet_size(mtu);
        Self { mtu, rate, window: initial_window(mtu), silent_since: None }
    }
}

impl Controller for Fixed {
    fn on_ack(&mut self, _now: Instant, sent: Instant, _bytes: u64, _limited: bool, rtt: &Rtt) {
        if self.silent_since.is_some_and(|since| sent <= since) {
            return;
        }
        self.silent_since = None;
        let window = WINDOW_GAIN * self.rate as f64 * rtt.smoothed.as_secs_f64();
        // On a short path the timers of both ends count for more than the round trip.
        self.window = window.clamp(initial_window(self.mtu), MAX_WINDOW as f64);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        _sent: Instant,
        is_persistent: bool,
        _lost_bytes: u64,
    ) {
        if is_persistent {
            self.silent_since = Some(now);
            self.window = min_window(self.mtu);
        }
    }

    fn on_ecn(&mut self, _now: Instant, _sent: Instant) {}

    fn on_mtu_update(&mut self, new: u16) {
        self.mtu = packet_size(new);
        self.window = self.window.max(min_window(self.mtu));
    }

    fn window(&self) -> u64 {
        self.window as u64
    }

    fn ssthresh(&self) -> Option<u64> {
        None
    }

    fn is_slow_start(&self) -> bool {
        false
    }

    fn pacing_rate(&self, rtt: &Rtt) -> u64 {
        let by_window = self.window / rtt.smoothed.as_secs_f64();
        if self.silent_since.is_some() { self.rate.min(by_window as u64) } else { self.rate }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn name(&self) -> &'static str {
        "fixed"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn keeps_its_rate_through_losses_but_not_through_silence() {
        let rtt = Duration::from_millis(100);
        let rtt = Rtt { latest: rtt, min: rtt, smoothed: rtt };
        let mut fixed = Fixed::new(1_200, 1_000_000);
        let zero = Instant::now();
        let now = zero + rtt.latest;
        assert_eq!((fixed.window(), fixed.pacing_rate(&rtt)), (12_000, 1_000_000));
        fixed.on_ack(now, zero, 1_200, false, &rtt);
        assert_eq!(fixed.window(), 125_000);
        fixed.on_congestion_event(now, zero, false, 1_200);
        fixed.on_ecn(now, zero);
        assert_eq!((fixed.window(), fixed.pacing_rate(&rtt)), (125_000, 1_000_000));
        fixed.on_congestion_event(now, zero, true, 125_000);
        assert_eq!((fixed.window(), fixed.pacing_rate(&rtt)), (2_400, 24_000));
        fixed.on_ack(now, zero, 1_200, false, &rtt);
        assert_eq!(fixed.window(), 2_400, "sent before the silence");
        fixed.on_ack(now + rtt.latest, now + rtt.latest, 1_200, false, &rtt);
        assert_eq!((fixed.window(), fixed.pacing_rate(&rtt)), (125_000, 1_000_000));
    }
}
