//! NewReno as RFC 9002 appendix B has it: one packet more each round trip, one half after a loss.

use std::time::Instant;

use super::episode::Episodes;
use super::{Controller, MAX_WINDOW, Rtt, initial_window, min_window, packet_size};

/// What a loss leaves of the window (RFC 9002 appendix B.1, kLossReductionFactor).
const LOSS_REDUCTION: f64 = 0.5;

/// Both in bytes.
#[derive(Debug, Clone, Copy)]
struct State {
    window: f64,
    ssthresh: f64,
}

/// NewReno.
#[derive(Debug, Clone)]
pub struct NewReno {
    mtu: f64,
    state: State,
    episodes: Episodes<State>,
}

impl NewReno {
    /// For packets of at most `mtu` bytes.
    #[must_use]
    pub fn new(mtu: u16) -> Self {
        let mtu = packet_size(mtu);
        let state = State { window: initial_window(mtu), ssthresh: f64::INFINITY };
        Self { mtu, state, episodes: Episodes::default() }
    }

    fn reduce(&mut self) {
        let half = self.state.window * LOSS_REDUCTION;
        self.state.ssthresh = half.max(min_window(self.mtu));
        self.state.window = self.state.ssthresh;
    }
}

impl Controller for NewReno {
    fn on_ack(&mut self, _now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &Rtt) {
        if app_limited || self.episodes.covers(sent) {
            return;
        }
        let bytes = bytes as f64;
        let window = self.state.window;
        let growth = if self.is_slow_start() { bytes } else { self.mtu * bytes / window };
        self.state.window = (window + growth).min(MAX_WINDOW as f64);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent: bool,
        lost_bytes: u64,
    ) {
        if self.episodes.on_loss(now, sent, lost_bytes, self.state) {
            self.reduce();
        }
        if is_persistent {
            self.episodes.on_persistent(now);
            self.state.window = min_window(self.mtu);
        }
    }

    fn on_ecn(&mut self, now: Instant, sent: Instant) {
        if self.episodes.on_mark(now, sent) {
            self.reduce();
        }
    }

    fn on_spurious(&mut self, _now: Instant, sent: Instant, bytes: u64) {
        let Some(before) = self.episodes.on_spurious(sent, bytes) else { return };
        if self.state.window < before.window {
            self.state = before;
        }
    }

    fn on_mtu_update(&mut self, new: u16) {
        let first = initial_window(self.mtu);
        let is_fresh = self.state.window == first && self.state.ssthresh.is_infinite();
        self.mtu = packet_size(new);
        self.state.window = if is_fresh {
            initial_window(self.mtu)
        } else {
            self.state.window.max(min_window(self.mtu))
        };
    }

    fn window(&self) -> u64 {
        self.state.window as u64
    }

    fn ssthresh(&self) -> Option<u64> {
        self.state.ssthresh.is_finite().then_some(self.state.ssthresh as u64)
    }

    fn is_slow_start(&self) -> bool {
        self.state.window < self.state.ssthresh
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn name(&self) -> &'static str {
        "new-reno"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RTT: Duration = Duration::from_millis(20);
    const SAMPLE: Rtt = Rtt { latest: RTT, min: RTT, smoothed: RTT };

    /// Acknowledges one full window of packets; gives the time after it.
    fn round(reno: &mut NewReno, now: Instant) -> Instant {
        let after = now + RTT;
        for _ in 0..reno.window() / 1_200 {
            reno.on_ack(after, now, 1_200, false, &SAMPLE);
        }
        after
    }

    #[test]
    fn doubles_then_adds_one_packet_each_round_trip() {
        let mut reno = NewReno::new(1_200);
        let mut now = Instant::now();
        for packets in [10, 20, 40] {
            assert_eq!(reno.window(), packets * 1_200);
            assert!(reno.is_slow_start() && reno.ssthresh().is_none());
            now = round(&mut reno, now);
        }
        reno.on_congestion_event(now, now, false, 1_200);
        assert_eq!((reno.window(), reno.ssthresh()), (48_000, Some(48_000)));
        now += RTT;
        round(&mut reno, now);
        // The window grows within the round, so a little less than one packet.
        assert!((49_170..=49_200).contains(&reno.window()), "{}", reno.window());
    }

    #[test]
    fn halves_once_each_round_trip_and_goes_back() {
        let mut reno = NewReno::new(1_200);
        let zero = Instant::now();
        let now = round(&mut reno, zero);
        reno.on_congestion_event(now, zero, false, 1_200);
        reno.on_congestion_event(now, zero, false, 1_200);
        assert_eq!(reno.window(), 12_000);
        reno.on_ack(now, zero, 1_200, false, &SAMPLE);
        assert_eq!(reno.window(), 12_000, "a packet from before the loss");
        reno.on_spurious(now, zero, 2_400);
        assert_eq!((reno.window(), reno.ssthresh()), (24_000, None));
        reno.on_ecn(now, now);
        assert_eq!(reno.window(), 12_000);
        reno.on_congestion_event(now + RTT, now + RTT, true, 12_000);
        assert_eq!((reno.window(), reno.ssthresh()), (2_400, Some(6_000)));
    }

    #[test]
    fn needs_no_window_that_nobody_fills() {
        let mut reno = NewReno::new(1_200);
        let now = Instant::now();
        reno.on_ack(now + RTT, now, 1_200, true, &SAMPLE);
        assert_eq!(reno.window(), 12_000);
        reno.on_mtu_update(1_400);
        assert_eq!(reno.window(), 14_000);
        reno.on_ack(now + RTT, now, 1_400, false, &SAMPLE);
        reno.on_mtu_update(8_900);
        assert_eq!(reno.window(), 17_800, "two packets at least");
    }
}
