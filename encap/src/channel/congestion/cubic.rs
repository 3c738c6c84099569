//! CUBIC (RFC 9438), counted in bytes, with HyStart++ (RFC 9406) as its first slow start.
//!
//! After a loss the window follows a cubic curve over time, not over round trips: steep at first,
//! flat where the loss happened, steep again beyond it. Where Reno would be faster it does as
//! Reno does.

use std::time::{Duration, Instant};

use super::episode::Episodes;
use super::hystart::HyStart;
use super::{Controller, MAX_WINDOW, Rtt, initial_window, min_window, packet_size};

/// Steepness of the curve, in packets per cubic second (RFC 9438 section 5.1).
const C: f64 = 0.4;
/// What a loss leaves of the window (RFC 9438 section 4.6).
const BETA: f64 = 0.7;
/// Packets per round trip that make Reno with [`BETA`] as fast as Reno with one half
/// (RFC 9438 section 4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// The window grows to at most this multiple of itself within a round trip (RFC 9438
/// section 4.2).
const MAX_TARGET: f64 = 1.5;

/// One stage of congestion avoidance: the curve from one reduction to the next.
#[derive(Debug, Clone, Copy)]
struct Stage {
    /// When it began, later by all the time in which the application had too little to send.
    start: Instant,
    /// When the window was last looked at to grow it.
    grew: Instant,
    /// Seconds from there to the plateau.
    k: f64,
    /// Window that Reno would have, in bytes.
    w_est: f64,
}

/// What one congestion event changes, and what its undoing brings back. All windows in bytes.
#[derive(Debug, Clone, Copy)]
struct State {
    window: f64,
    ssthresh: f64,
    /// Plateau of the curve. 0: there was no loss yet, or a timeout since.
    w_max: f64,
    /// Window before the newest reduction.
    prior: f64,
    /// `None` until the first growth after slow start or a reduction.
    stage: Option<Stage>,
}

/// CUBIC.
#[derive(Debug, Clone)]
pub struct Cubic {
    mtu: f64,
    state: State,
    episodes: Episodes<State>,
    hystart: HyStart,
    /// Round trip of the acknowledgement that is being told.
    sample: Option<Duration>,
    /// The application is what limits since the window last grew.
    is_limited: bool,
    /// Since when nothing is on its way.
    idle_from: Option<Instant>,
}

impl Cubic {
    /// For packets of at most `mtu` bytes.
    #[must_use]
    pub fn new(mtu: u16) -> Self {
        let mtu = packet_size(mtu);
        Self {
            mtu,
            state: State {
                window: initial_window(mtu),
                ssthresh: f64::INFINITY,
                w_max: 0.0,
                prior: 0.0,
                stage: None,
            },
            episodes: Episodes::default(),
            hystart: HyStart::new(),
            sample: None,
            is_limited: false,
            idle_from: None,
        }
    }

    /// The first slow start: no loss has set a threshold yet. HyStart++ is for this one only
    /// (RFC 9406 section 4.3).
    fn is_first_slow_start(&self) -> bool {
        self.state.ssthresh.is_infinite()
    }

    /// RFC 9438 sections 4.6 and 4.7.
    fn reduce(&mut self) {
        let state = &mut self.state;
        // Less than last time: somebody else came, so leave room sooner.
        let converges = state.window < state.w_max;
        state.w_max = if converges { state.window * (1.0 + BETA) / 2.0 } else { state.window };
        state.prior = state.window;
        state.ssthresh = (state.window * BETA).max(min_window(self.mtu));
        state.window = state.ssthresh;
        state.stage = None;
    }

    /// Grows for `bytes` acknowledged bytes in congestion avoidance (RFC 9438 sections 4.2 to
    /// 4.5).
    fn avoid(&mut self, now: Instant, bytes: f64, rtt: Duration) {
        let c = C * self.mtu;
        let state = &mut self.state;
        let stage = state.stage.get_or_insert_with(|| {
            // Without a plateau ahead the curve begins on it (sections 4.8 and 4.10).
            state.w_max = state.w_max.max(state.window);
            let k = ((state.w_max - state.window) / c).cbrt();
            Stage { start: now, grew: now, k, w_est: state.window }
        });
        if self.is_limited {
            stage.skip(now.saturating_duration_since(stage.grew), now);
        }
        stage.grew = now;
        let curve = |t: f64| c * (t - stage.k).powi(3) + state.w_max;
        let t = now.saturating_duration_since(stage.start).as_secs_f64();
        let alpha = if stage.w_est < state.prior { ALPHA } else { 1.0 };
        stage.w_est += alpha * self.mtu * bytes / state.window;
        if curve(t) < stage.w_est {
            // What the curve gained by looking one round trip ahead is not taken back.
            state.window = state.window.max(stage.w_est);
        } else {
            let target = curve(t + rtt.as_secs_f64());
            let target = target.clamp(state.window, MAX_TARGET * state.window);
            state.window += (target - state.window) * bytes / state.window;
        }
    }
}

impl Stage {
    /// Time with too little to send is not on the curve (RFC 9438 section 5.8).
    fn skip(&mut self, gap: Duration, now: Instant) {
        self.start = (self.start + gap).min(now);
        self.grew = (self.grew + gap).min(now);
    }
}

impl Controller for Cubic {
    fn on_sent(&mut self, now: Instant, _bytes: u64, last_packet_number: u64) {
        if self.is_first_slow_start() {
            self.hystart.on_sent(last_packet_number);
        }
        if let Some(from) = self.idle_from.take()
            && let Some(stage) = &mut self.state.stage
        {
            stage.skip(now.saturating_duration_since(from), now);
        }
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &Rtt) {
        self.sample = Some(rtt.latest);
        if app_limited {
            self.is_limited = true;
            return;
        }
        if self.episodes.covers(sent) {
            return;
        }
        let bytes = bytes as f64;
        if self.state.window < self.state.ssthresh {
            self.state.window += bytes / f64::from(self.hystart.divisor());
        } else {
            self.avoid(now, bytes, rtt.smoothed);
        }
        self.is_limited = false;
        self.state.window = self.state.window.min(MAX_WINDOW as f64);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest: Option<u64>,
    ) {
        if in_flight == 0 {
            self.idle_from.get_or_insert(now);
        }
        let (Some(sample), Some(largest)) = (self.sample.take(), largest) else { return };
        // A window that nobody fills says nothing about queues.
        if self.is_first_slow_start() && !app_limited && self.hystart.on_ack(largest, sample) {
            self.state.ssthresh = self.state.window;
            self.state.prior = self.state.window;
        }
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
            self.state.w_max = 0.0;
            self.state.stage = None;
        }
    }

    fn on_ecn(&mut self, now: Instant, sent: Instant) {
        if self.episodes.on_mark(now, sent) {
            self.reduce();
        }
    }

    fn on_spurious(&mut self, _now: Instant, sent: Instant, bytes: u64) {
        let Some(before) = self.episodes.on_spurious(sent, bytes) else { return };
        // RFC 9438 section 4.9.2: what has become larger since is newer and better.
        if self.state.window < before.window {
            self.state = before;
        }
    }

    fn on_mtu_update(&mut self, new: u16) {
        let is_fresh = self.state.window == initial_window(self.mtu) && self.is_first_slow_start();
        self.mtu = packet_size(new);
        // A window that was in use does not grow in bytes because packets do (RFC 8899 section 3).
        let least = if is_fresh { initial_window(self.mtu) } else { min_window(self.mtu) };
        self.state.window = if is_fresh { least } else { self.state.window.max(least) };
        // The curve was made of packets of another size.
        self.state.stage = None;
    }

    fn window(&self) -> u64 {
        self.state.window as u64
    }

    fn ssthresh(&self) -> Option<u64> {
        (!self.is_first_slow_start()).then_some(self.state.ssthresh as u64)
    }

    fn is_slow_start(&self) -> bool {
        self.state.window < self.state.ssthresh
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn name(&self) -> &'static str {
        "cubic"
    }
}

#[cfg(test)]
mod tests;
