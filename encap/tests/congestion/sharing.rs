//! Our CUBIC and the one of s2n-quic at one bottleneck with a queue that drops its tail: neither may
//! starve the other, whoever is first.

use std::time::{Duration, Instant};

use encap::channel::congestion::{Controller, Cubic, Rtt};
use s2n_quic_core::packet::number::PacketNumberSpace;
use s2n_quic_core::recovery::{CongestionController, CubicCongestionController, RttEstimator};
use s2n_quic_core::time::{Clock, NoopClock, Timestamp};

use crate::bottleneck::{Loss, MTU, RTT, SECOND, World, megabits, path};
use crate::oracle::{NoRandom, Silent};

/// Runs that are summed up.
const RUNS: u32 = 4;
/// So much later than the first the second flow begins.
const HEAD_START: Duration = Duration::from_secs(2);
/// Not counted: several losses until the first flow has given way.
const SETTLE: Duration = Duration::from_secs(30);
const COUNTED: Duration = Duration::from_secs(40);
/// Two packets' time or so. Without any, packets of two flows meet at the queue in one and the same
/// order for seconds, as they never do outside of simulations.
const JITTER: Duration = Duration::from_micros(300);

/// The controller of s2n-quic in the place of ours.
#[derive(Debug, Clone)]
struct Textbook {
    cubic: CubicCongestionController,
    rtt: RttEstimator,
    zero: Instant,
    origin: Timestamp,
    /// The newest reduction: losses of packets from before it belong to it.
    reduced: Option<Instant>,
}

impl Textbook {
    fn new() -> Self {
        Self {
            cubic: CubicCongestionController::new(MTU, Default::default()),
            rtt: RttEstimator::default(),
            zero: Instant::now(),
            origin: NoopClock.get_time(),
            reduced: None,
        }
    }

    fn at(&self, time: Instant) -> Timestamp {
        // The simulation may have begun a moment before this was made.
        self.origin + SECOND + time.saturating_duration_since(self.zero)
    }
}

impl Controller for Textbook {
    fn on_sent(&mut self, now: Instant, bytes: u64, _number: u64) {
        let at = self.at(now);
        self.cubic.on_packet_sent(at, bytes as usize, Some(false), &self.rtt, &mut Silent);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _limited: bool, rtt: &Rtt) {
        let (now, sent) = (self.at(now), self.at(sent));
        let space = PacketNumberSpace::ApplicationData;
        self.rtt.update_rtt(Duration::ZERO, rtt.latest, now, true, space);
        self.cubic.on_rtt_update(sent, now, &self.rtt, &mut Silent);
        let random = &mut NoRandom;
        self.cubic.on_ack(sent, bytes as usize, (), &self.rtt, random, now, &mut Silent);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, _persistent: bool, lost: u64) {
        // Its owner keeps no losses of an earlier round trip from it.
        if self.reduced.is_some_and(|reduced| sent <= reduced) {
            let at = self.at(now);
            let random = &mut NoRandom;
            self.cubic.on_packet_lost(lost as u32, (), false, false, random, at, &mut Silent);
            return;
        }
        self.reduced = Some(now);
        let at = self.at(now);
        self.cubic.on_packet_lost(lost as u32, (), false, true, &mut NoRandom, at, &mut Silent);
    }

    fn on_ecn(&mut self, _now: Instant, _sent: Instant) {}

    fn on_mtu_update(&mut self, _new: u16) {}

    fn window(&self) -> u64 {
        self.cubic.congestion_window().into()
    }

    fn ssthresh(&self) -> Option<u64> {
        // Paced as in congestion avoidance from the beginning.
        Some(0)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn name(&self) -> &'static str {
        "textbook"
    }
}

/// A flow's controller, and whether a pacer spreads what it allows. The kernel's TCP has none unless
/// told otherwise.
#[derive(Clone, Copy)]
enum Sender {
    Ours,
    Theirs { paced: bool },
}

impl Sender {
    fn controller(self) -> Box<dyn Controller> {
        match self {
            Self::Ours => Box::new(Cubic::new(MTU)),
            Self::Theirs { .. } => Box::new(Textbook::new()),
        }
    }
}

/// Bytes that two flows carry at 100 Mbit/s once they had [`SETTLE`], summed up over runs that differ
/// in when the second one begins: a single run is decided by whose packet comes to the full queue.
fn share(flows: [Sender; 2]) -> [f64; 2] {
    let mut sum = [0.0; 2];
    for run in 0..RUNS {
        let late = HEAD_START + run * Duration::from_micros(1_237);
        let starts = [Duration::ZERO, late];
        let controllers = flows.map(Sender::controller).into_iter().zip(starts).collect();
        let mut path = path(megabits(100), RTT, Loss::None);
        path.jitter = JITTER;
        let mut world = World::new(path, controllers);
        for (at, sender) in flows.into_iter().enumerate() {
            if matches!(sender, Sender::Theirs { paced: false }) {
                world.unpace(at);
            }
        }
        let before = world.run(SETTLE);
        let after = world.run(SETTLE + COUNTED);
        for (sum, (after, before)) in sum.iter_mut().zip(after.iter().zip(before)) {
            *sum += (after - before) as f64;
        }
    }
    sum
}

/// For each order of beginning: ours by theirs.
fn assert_fair(paced: bool) {
    let (ours, theirs) = (Sender::Ours, Sender::Theirs { paced });
    let [as_first, other] = share([ours, theirs]);
    let first = as_first / other;
    let [other, as_second] = share([theirs, ours]);
    let second = as_second / other;
    println!("paced {paced}: {first:.2} as the first, {second:.2} as the second");
    assert!((0.7..1.43).contains(&first), "as the first {first:.2} of the other flow");
    assert!((0.7..1.43).contains(&second), "as the second {second:.2} of the other flow");
}

#[test]
fn shares_with_a_textbook_sender() {
    assert_fair(true);
}

#[test]
fn shares_with_a_textbook_sender_without_pacing() {
    assert_fair(false);
}
