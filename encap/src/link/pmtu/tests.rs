use super::search::LIKELY_IP_MTUS;
use super::*;
use proptest::prelude::*;
use std::collections::BinaryHeap;

const MS: Duration = Duration::from_millis(1);
const LAN: Duration = Duration::from_micros(200);
const V4: usize = 28;
const V6: usize = 48;

/// A path, a peer that answers probes, and an owner that polls when it was told to.
struct Sim {
    pmtu: PathMtu,
    start: Instant,
    now: Instant,
    rtt: Duration,
    /// Answers come up to so many ms later.
    jitter: u64,
    /// Largest UDP payload from a time on.
    sizes: Vec<(Instant, usize)>,
    /// Part of the datagrams lost, each way, in 1/1,000.
    loss: u64,
    /// Nothing gets through between these.
    outage: (Instant, Instant),
    /// Large datagrams are being sent.
    busy: bool,
    answers: BinaryHeap<std::cmp::Reverse<(Instant, u32, usize)>>,
    seed: u64,
    probes: usize,
    changes: Vec<(Instant, Change)>,
}

impl Sim {
    fn new(path_mtu: usize, interface_mtu: usize, overhead: usize, rtt: Duration) -> Self {
        let start = Instant::now();
        let limits = Limits { base: 1280 - overhead, ceiling: interface_mtu - overhead };
        Self {
            pmtu: PathMtu::new(start, limits, overhead),
            start,
            now: start,
            rtt,
            jitter: 0,
            sizes: vec![(start, path_mtu - overhead)],
            loss: 0,
            outage: (start, start),
            busy: false,
            answers: BinaryHeap::new(),
            seed: 1,
            probes: 0,
            changes: Vec::new(),
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
        (self.seed >> 33) % below
    }

    fn path(&self) -> usize {
        self.sizes.iter().rev().find(|(at, _)| *at <= self.now).unwrap().1
    }

    fn passes(&mut self, at: Instant) -> bool {
        self.draw(1_000) >= self.loss && !(self.outage.0 <= at && at < self.outage.1)
    }

    /// Runs until `done` says so after an event, or for `time`; says whether it was done.
    fn run(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + time;
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 5_000_000, "spins");
            if self.busy && self.pmtu.size() > self.pmtu.limits.base {
                self.pmtu.on_large_sent(self.now);
            }
            while let Some(probe) = self.pmtu.poll_probe(self.now) {
                self.probes += 1;
                assert!(probe.size <= self.pmtu.limits.ceiling);
                let arrives = probe.size <= self.path() && self.passes(self.now);
                let back = self.now + self.rtt + self.draw(self.jitter + 1) as u32 * MS;
                if arrives && self.passes(back) {
                    self.answers.push(std::cmp::Reverse((back, probe.id, probe.size)));
                }
            }
            if let Some(change) = self.pmtu.poll_change() {
                self.changes.push((self.now, change));
            }
            if done(self) {
                return true;
            }
            let due = self.pmtu.poll_timeout().unwrap_or(end).max(self.now);
            let answer = self.answers.peek().map_or(end, |answer| answer.0.0);
            let tick = if self.busy { self.now + 5 * MS } else { end };
            self.now = due.min(answer).min(tick).min(end);
            if answer == self.now
                && let Some(std::cmp::Reverse((_, id, size))) = self.answers.pop()
            {
                self.pmtu.on_ack(self.now, id, size);
            } else if self.now >= end {
                return done(self);
            }
        }
    }

    #[track_caller]
    fn settle(&mut self, within: Duration) {
        let settled = self.run(within, |sim| sim.pmtu.state() == State::Settled);
        assert!(settled, "{:?}", self.pmtu);
    }

    /// Whether the size in use is right for the path: exactly where that is likely.
    fn is_right(&self) -> bool {
        let (size, path) = (self.pmtu.size(), self.path().min(self.pmtu.limits.ceiling));
        let likely = |size: usize| LIKELY_IP_MTUS.contains(&(size + self.pmtu.ip_overhead));
        let exact = path == self.pmtu.limits.ceiling || likely(path);
        if exact { size == path } else { size <= path && path - size < PRECISION }
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }
}

#[test]
fn ceiling_takes_one_round_trip() {
    for (mtu, overhead) in [(1281, V6), (1500, V4), (1500, V6), (9000, V4), (65_535, V4)] {
        let mut sim = Sim::new(mtu, mtu, overhead, LAN);
        assert_eq!((sim.pmtu.state(), sim.pmtu.settled_size()), (State::Unconfirmed, None));
        assert_eq!((sim.pmtu.size(), sim.pmtu.base_ok()), (1280 - overhead, None));
        sim.settle(500 * MS);
        assert_eq!((sim.elapsed(), sim.pmtu.size()), (LAN, mtu - overhead));
        assert_eq!((sim.pmtu.how(), sim.pmtu.since()), (How::Interface, sim.start + LAN));
        assert_eq!(sim.pmtu.settled_size(), Some(mtu - overhead));
        assert_eq!(sim.pmtu.base_ok(), Some(true));
    }
}

#[test]
fn any_path_below_an_ethernet_is_found_at_once() {
    for mtu in 1280..1500 {
        for (overhead, rtt) in [(V4, LAN), (V6, 4 * MS)] {
            let mut sim = Sim::new(mtu, 1500, overhead, rtt);
            sim.settle(500 * MS);
            assert!(sim.is_right(), "{mtu}: {}", sim.pmtu.size());
            let changed_above = sim.changes.iter().any(|(_, change)| change.to > sim.path());
            assert!(!changed_above && sim.probes < 60, "{mtu}: {} probes", sim.probes);
        }
    }
}

#[test]
fn any_path_of_any_size_is_found_at_once() {
    for mtu in (1280..=65_535).step_by(37) {
        let mut sim = Sim::new(mtu, 65_536, V4, 4 * MS);
        sim.settle(500 * MS);
        assert!(sim.is_right(), "{mtu}: {}", sim.pmtu.size());
    }
}

#[test]
fn round_trips_may_be_long_and_unknown() {
    for rtt in [1, 20, 60, 100, 200, 290, 400] {
        for mtu in [1300, 1377, 1480, 1500, 4000, 9000] {
            let mut sim = Sim::new(mtu, 9000, V4, rtt * MS);
            sim.settle(10 * Duration::from_secs(1));
            sim.run(20 * Duration::from_secs(1), |_| false);
            assert!(sim.is_right(), "{mtu} at {rtt} ms: {}", sim.pmtu.size());
            assert_eq!(sim.pmtu.state(), State::Settled);
        }
    }
}

#[test]
fn loss_is_not_mistaken_for_a_small_path() {
    let mut wrong_before = 0;
    for seed in 0..400 {
        let mut sim = Sim::new(1280, 9000, V4, LAN);
        sim.seed = seed * 7_919;
        sim.loss = sim.draw(201);
        sim.rtt = Duration::from_micros(100 + sim.draw(100) * sim.draw(2_000));
        let mtu = 1280 + sim.draw(if seed % 2 == 0 { 221 } else { 7_721 }) as usize;
        sim.sizes[0].1 = mtu - V4;
        if seed % 3 == 0 {
            sim.pmtu.set_srtt(sim.rtt);
        }
        sim.busy = seed % 5 != 0;
        sim.run(Duration::from_secs(5), |_| false);
        wrong_before += u32::from(!sim.is_right());
        sim.run(Duration::from_secs(55), |_| false);
        assert!(sim.is_right(), "{seed}: {mtu} {:?}", sim.pmtu);
        let falls = sim.changes.iter().filter(|(_, change)| change.how == How::BlackHole).count();
        assert!(falls <= 1, "{seed}: {falls} falls at a loss of {} in 1,000", sim.loss);
        assert!(sim.changes.iter().all(|(_, change)| change.to <= sim.path()));
    }
    assert!(wrong_before < 20, "{wrong_before} of 400 wrong after 5 s");
}

#[test]
fn steps_of_the_path_are_followed() {
    for seed in 0..300 {
        let mut sim = Sim::new(1500, 9000, V4, LAN);
        sim.seed = seed * 104_729;
        sim.busy = true;
        let mut at = sim.start;
        for _ in 0..6 {
            at += Duration::from_millis(1_000 + sim.draw(5_000));
            let size = 1252 + sim.draw(if seed % 2 == 0 { 250 } else { 7_700 }) as usize;
            sim.sizes.push((at, size));
        }
        for step in 1..sim.sizes.len() {
            let (at, path) = sim.sizes[step];
            sim.run(at - sim.now, |_| false);
            let hole = sim.pmtu.size() > path;
            let fits = |sim: &Sim| sim.pmtu.size() <= path;
            assert!(sim.run(400 * MS, fits), "{seed}: black hole stays");
            let done = |sim: &Sim| sim.is_right() && sim.pmtu.state() == State::Settled;
            if hole {
                assert!(sim.run(at + 950 * MS - sim.now, done), "{seed}: {:?}", sim.pmtu);
            }
        }
        // Upward it looks after ten minutes.
        sim.run(RAISE + Duration::from_secs(1), |_| false);
        assert!(sim.is_right(), "{seed}: {} of {}", sim.pmtu.size(), sim.path());
    }
}

#[test]
fn black_hole_falls_to_base_then_recovers() {
    let mut sim = Sim::new(1500, 1500, V4, LAN);
    sim.busy = true;
    sim.run(Duration::from_secs(3), |_| false);
    sim.sizes.push((sim.now, 1400 - V4));
    let hole = sim.now;
    assert!(sim.run(Duration::from_secs(1), |sim| sim.pmtu.how() == How::BlackHole));
    assert!(sim.now - hole <= 355 * MS, "{:?}", sim.now - hole);
    assert_eq!((sim.pmtu.size(), sim.pmtu.state()), (1252, State::Searching));
    assert_eq!(sim.pmtu.settled_size(), Some(1472), "taps are not shaken yet");
    sim.settle(500 * MS);
    assert_eq!((sim.pmtu.size(), sim.pmtu.how()), (1372, How::Probed));
    assert_eq!(sim.pmtu.settled_size(), Some(1372));
    let last: Vec<_> = sim.changes.iter().map(|(_, change)| *change).rev().take(2).collect();
    assert_eq!(
        last,
        [
            Change { from: 1252, to: 1372, how: How::Probed },
            Change { from: 1472, to: 1252, how: How::BlackHole },
        ]
    );
}

#[test]
fn answers_from_before_a_black_hole_do_not_cushion_the_fall() {
    let mut sim = Sim::new(9000, 9000, V4, LAN);
    // Likely sizes are answered right behind the ceiling; then the path shrinks.
    sim.run(MS, |_| false);
    sim.sizes.push((sim.now, 1300));
    sim.busy = true;
    assert!(sim.run(Duration::from_secs(1), |sim| sim.pmtu.how() == How::BlackHole));
    assert_eq!(sim.pmtu.size(), 1252);
}

#[test]
fn idle_paths_are_confirmed_too() {
    let mut sim = Sim::new(1500, 1500, V4, LAN);
    sim.settle(MS);
    sim.probes = 0;
    sim.run(Duration::from_secs(100), |_| false);
    assert_eq!(sim.probes, 20, "two each ten seconds");
    sim.sizes.push((sim.now, 1300));
    assert!(sim.run(CONFIRM_IDLE + 200 * MS, |sim| sim.pmtu.how() == How::BlackHole));
}

#[test]
fn bursts_of_loss_are_no_black_hole() {
    for rtt in [LAN, 5 * MS, 16 * MS, 40 * MS, 200 * MS] {
        for phase in 0..200 {
            let mut sim = Sim::new(1400, 1500, V4, rtt);
            sim.busy = phase % 2 == 0;
            sim.run(Duration::from_secs(3), |_| false);
            let before = sim.pmtu.size();
            let from = sim.now + phase * 2 * MS;
            sim.outage = (from, from + 100 * MS);
            sim.run(Duration::from_secs(15), |_| false);
            assert_eq!((sim.pmtu.size(), sim.pmtu.base_ok()), (before, Some(true)));
            let falls = sim.changes.iter().any(|(_, change)| change.how == How::BlackHole);
            assert!(!falls, "{rtt:?} {phase}");
        }
        // During the search neither.
        for phase in 0..100 {
            let mut sim = Sim::new(1400, 1500, V4, rtt);
            let from = sim.now + phase * 5 * MS;
            sim.outage = (from, from + 100 * MS);
            sim.settle(Duration::from_secs(5));
            assert!(sim.is_right(), "{rtt:?} {phase}");
        }
    }
}

#[test]
fn late_answers_are_answers() {
    for seed in 0..200 {
        let mut sim = Sim::new(1300 + seed as usize, 1500, V4, LAN);
        (sim.seed, sim.jitter, sim.busy) = (seed, 130, true);
        sim.pmtu.set_srtt(LAN);
        sim.run(Duration::from_secs(30), |_| false);
        assert!(sim.is_right(), "{seed}: {:?}", sim.pmtu);
        let falls = sim.changes.iter().any(|(_, change)| change.how == How::BlackHole);
        assert!(!falls, "{seed}");
    }
}

#[test]
fn path_below_1280_is_named_and_may_heal() {
    let mut sim = Sim::new(1200, 1500, V4, LAN);
    sim.pmtu.set_srtt(LAN);
    assert!(sim.run(155 * MS, |sim| sim.pmtu.base_ok() == Some(false)));
    assert_eq!((sim.pmtu.size(), sim.pmtu.state()), (1252, State::Unconfirmed));
    sim.probes = 0;
    sim.run(Duration::from_secs(100), |_| false);
    assert!((90..300).contains(&sim.probes), "{} probes", sim.probes);
    sim.sizes.push((sim.now, 1472));
    sim.settle(1_100 * MS);
    assert_eq!((sim.pmtu.size(), sim.pmtu.base_ok()), (1472, Some(true)));
    // Later it takes a second of nothing at all.
    sim.run(Duration::from_secs(5), |_| false);
    sim.sizes.push((sim.now, 1200));
    sim.busy = true;
    assert!(!sim.run(900 * MS, |sim| sim.pmtu.base_ok() == Some(false)));
    assert!(sim.run(2_000 * MS, |sim| sim.pmtu.base_ok() == Some(false)));
    assert_eq!((sim.pmtu.size(), sim.pmtu.how()), (1252, How::Base));
}

#[test]
fn a_link_that_is_down_is_not_probed_nor_blamed() {
    let mut sim = Sim::new(1500, 1500, V4, LAN);
    sim.busy = true;
    sim.run(Duration::from_secs(1), |_| false);
    sim.outage = (sim.now, sim.now + Duration::from_secs(60));
    sim.run(60 * MS, |_| false);
    sim.pmtu.set_enabled(sim.now, false);
    assert_eq!((sim.pmtu.poll_timeout(), sim.pmtu.poll_probe(sim.now)), (None, None));
    sim.probes = 0;
    sim.run(Duration::from_secs(60), |_| false);
    assert_eq!((sim.probes, sim.pmtu.size()), (0, 1472));
    sim.pmtu.set_enabled(sim.now, true);
    assert_eq!((sim.pmtu.state(), sim.pmtu.base_ok()), (State::Unconfirmed, None));
    sim.settle(MS);
    assert_eq!((sim.pmtu.size(), sim.probes, sim.pmtu.base_ok()), (1472, 2, Some(true)));
    // It may come back over another path.
    sim.pmtu.set_enabled(sim.now, false);
    sim.sizes.push((sim.now, 1400));
    sim.pmtu.set_enabled(sim.now, true);
    assert!(sim.run(160 * MS, |sim| sim.pmtu.size() <= 1400));
    sim.settle(500 * MS);
    assert!(sim.is_right());
}

#[test]
fn icmp_only_makes_us_probe() {
    let mut sim = Sim::new(1500, 1500, V4, LAN);
    sim.settle(MS);
    for _ in 0..1_000 {
        sim.now += MS;
        sim.pmtu.on_too_big_hint(sim.now, 1300);
        sim.run(Duration::ZERO, |_| false);
    }
    sim.run(50 * MS, |_| false);
    assert!(sim.changes.len() == 1 && sim.probes < 60, "{} probes", sim.probes);
    assert_eq!((sim.pmtu.size(), sim.pmtu.state()), (1472, State::Settled));
    sim.pmtu.on_too_big_hint(sim.now, 0);
    sim.pmtu.on_too_big_hint(sim.now, usize::MAX);
    sim.run(Duration::from_secs(1), |_| false);
    assert_eq!(sim.pmtu.size(), 1472);
    // An honest one finds the black hole without traffic, and the size beneath at once.
    sim.sizes.push((sim.now, 1333));
    sim.pmtu.on_too_big_hint(sim.now, 1333);
    assert!(sim.run(160 * MS, |sim| sim.pmtu.size() == 1333));
    assert_eq!(sim.pmtu.how(), How::BlackHole);
    sim.settle(500 * MS);
    assert_eq!(sim.pmtu.size(), 1333);
}

#[test]
fn the_local_interface_has_the_first_word() {
    let mut sim = Sim::new(1400, 1500, V4, LAN);
    sim.settle(500 * MS);
    sim.pmtu.on_local_limit(sim.now, 1350);
    assert_eq!((sim.pmtu.size(), sim.pmtu.how()), (1350, How::Interface));
    assert_eq!((sim.pmtu.settled_size(), sim.pmtu.state()), (Some(1350), State::Settled));
    sim.pmtu.on_local_limit(sim.now, 1472);
    assert_eq!(sim.pmtu.state(), State::Searching);
    sim.settle(500 * MS);
    assert_eq!(sim.pmtu.size(), 1372);
    sim.sizes.push((sim.now, 8972));
    sim.pmtu.on_local_limit(sim.now, 8972);
    sim.settle(MS);
    assert_eq!((sim.pmtu.size(), sim.pmtu.how()), (8972, How::Interface));
    // In the middle of a search.
    let mut sim = Sim::new(1400, 9000, V4, LAN);
    sim.run(60 * MS, |_| false);
    sim.pmtu.on_local_limit(sim.now, 1252);
    assert_eq!((sim.pmtu.size(), sim.pmtu.state()), (1252, State::Settled));
    sim.pmtu.on_local_limit(sim.now, 1000);
    assert_eq!((sim.pmtu.base_ok(), sim.pmtu.poll_timeout()), (Some(false), None));
    sim.pmtu.on_local_limit(sim.now, 1472);
    assert_eq!(sim.pmtu.base_ok(), None);
    sim.settle(500 * MS);
    assert_eq!(sim.pmtu.size(), 1372);
    let small = Limits { base: 1252, ceiling: 1000 };
    assert_eq!(PathMtu::new(sim.now, small, V4).base_ok(), Some(false));
}

#[test]
fn set_by_hand_and_back() {
    let mut sim = Sim::new(1500, 1500, V4, LAN);
    sim.settle(MS);
    sim.pmtu.set_manual(sim.now, Some(1_400));
    assert_eq!((sim.pmtu.size(), sim.pmtu.how()), (1400, How::Manual));
    assert_eq!((sim.pmtu.settled_size(), sim.pmtu.state()), (Some(1400), State::Settled));
    sim.sizes.push((sim.now, 1300));
    sim.busy = true;
    sim.run(Duration::from_secs(20), |_| false);
    assert_eq!((sim.pmtu.size(), sim.pmtu.base_ok()), (1400, Some(true)));
    sim.pmtu.on_local_limit(sim.now, 1390);
    assert_eq!((sim.pmtu.size(), sim.pmtu.how()), (1390, How::Manual));
    sim.pmtu.set_manual(sim.now, Some(9));
    assert_eq!(sim.pmtu.size(), 1252);
    sim.pmtu.set_manual(sim.now, None);
    assert_eq!((sim.pmtu.size(), sim.pmtu.state()), (1252, State::Searching));
    sim.settle(500 * MS);
    assert!(sim.is_right());
}

#[test]
fn answers_count_once_and_only_to_probes_of_ours() {
    let mut sim = Sim::new(1500, 1500, V4, LAN);
    sim.pmtu = PathMtu::new(sim.now, sim.pmtu.limits, V4).with_id_prefix(3);
    let probes: Vec<_> = std::iter::from_fn(|| sim.pmtu.poll_probe(sim.now)).collect();
    assert!(probes.iter().all(|probe| probe.id >> 24 == 3));
    let ids: std::collections::BTreeSet<_> = probes.iter().map(|probe| probe.id).collect();
    assert_eq!((ids.len(), probes[0].size, probes[1].size), (probes.len(), 1252, 1472));
    sim.pmtu.on_ack(sim.now, probes[0].id, 1472);
    sim.pmtu.on_ack(sim.now, 0x0400_0000, 1472);
    assert_eq!((sim.pmtu.size(), sim.pmtu.base_ok()), (1252, None));
    // What was sent before a reset says nothing of the session after it.
    sim.pmtu.reset(sim.now);
    sim.pmtu.on_ack(sim.now, probes[1].id, 1472);
    assert_eq!((sim.pmtu.size(), sim.pmtu.base_ok()), (1252, None));
    sim.settle(MS);
    assert_eq!(sim.pmtu.size(), 1472);
    sim.pmtu.reset(sim.now);
    assert_eq!((sim.pmtu.size(), sim.pmtu.settled_size()), (1252, None));
    assert_eq!(sim.pmtu.poll_change().unwrap().to, 1252);
}

#[derive(Debug, Clone)]
enum Call {
    Run(u16),
    Path(usize),
    Hint(usize),
    Limit(usize),
    Enable(bool),
    Manual(Option<usize>),
    Srtt(u16),
    Ack(u32, usize),
    Loss(u64),
    Busy(bool),
    Reset,
}

fn call() -> impl Strategy<Value = Call> {
    let size = || prop_oneof![1_000usize..1_600, 0usize..70_000];
    prop_oneof![
        6 => (0u16..2_000).prop_map(Call::Run),
        2 => size().prop_map(Call::Path),
        1 => size().prop_map(Call::Hint),
        1 => size().prop_map(Call::Limit),
        1 => any::<bool>().prop_map(Call::Enable),
        1 => prop::option::of(size()).prop_map(Call::Manual),
        1 => prop_oneof![0u16..300, Just(u16::MAX)].prop_map(Call::Srtt),
        1 => (0u32..400, size()).prop_map(|(id, size)| Call::Ack(id, size)),
        1 => (0u64..1_001).prop_map(Call::Loss),
        1 => any::<bool>().prop_map(Call::Busy),
        1 => Just(Call::Reset),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_finds_the_path_in_the_end(
        calls in prop::collection::vec(call(), 1..60),
        path in 1_280usize..9_000,
        ceiling in 1_300usize..9_001,
    ) {
        let mut sim = Sim::new(1500, 1500, V4, LAN);
        for call in calls {
            let now = sim.now;
            match call {
                Call::Run(ms) => _ = sim.run(u32::from(ms) * MS, |_| false),
                Call::Path(size) => sim.sizes.push((now, size)),
                Call::Hint(size) => sim.pmtu.on_too_big_hint(now, size),
                Call::Limit(size) => sim.pmtu.on_local_limit(now, size),
                Call::Enable(enabled) => sim.pmtu.set_enabled(now, enabled),
                Call::Manual(size) => sim.pmtu.set_manual(now, size),
                Call::Srtt(u16::MAX) => sim.pmtu.set_srtt(Duration::MAX),
                Call::Srtt(ms) => sim.pmtu.set_srtt(u32::from(ms) * MS),
                Call::Ack(id, size) => sim.pmtu.on_ack(now, id, size),
                Call::Loss(loss) => sim.loss = loss,
                Call::Busy(busy) => sim.busy = busy,
                Call::Reset => sim.pmtu.reset(now),
            }
            let limits = sim.pmtu.limits;
            prop_assert!(sim.pmtu.size() >= limits.base);
            prop_assert!(sim.pmtu.size() <= limits.ceiling.max(limits.base));
        }
        sim.pmtu.set_manual(sim.now, None);
        sim.pmtu.set_enabled(sim.now, true);
        sim.pmtu.on_local_limit(sim.now, ceiling - V4);
        (sim.loss, sim.busy) = (0, true);
        sim.pmtu.set_srtt(LAN);
        sim.sizes.push((sim.now, path - V4));
        sim.run(Duration::from_secs(5), |_| false);
        sim.busy = false;
        sim.run(Duration::from_secs(1_300), |_| false);
        prop_assert!(sim.is_right(), "{} of {path}: {:?}", sim.pmtu.size(), sim.pmtu);
        prop_assert_eq!((sim.pmtu.state(), sim.pmtu.base_ok()), (State::Settled, Some(true)));
        prop_assert_eq!(sim.pmtu.settled_size(), Some(sim.pmtu.size()));
    }
}
