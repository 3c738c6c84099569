//! Two nodes with a judge each, joined by links with loss, jitter and cuts, in virtual time.
//!
//! Each node is a control thread, which sends rounds and judges, and a worker, which reads one
//! socket after the other; both stall at times. A seed replays a run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Judgement, Liveness, State, Transition};
use crate::link::estimate::Estimate;
use crate::link::id::{LinkIndex, LinkSet};
use crate::link::profile::{FAST, missed_for};

/// Virtual time, in microseconds.
type Us = u64;

const INTERVAL: Us = 1_000;
const FOR_EVER: Us = Us::MAX;

/// SplitMix64.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn chance(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One direction of a link.
#[derive(Clone, Default)]
struct Wire {
    delay: Us,
    jitter: Us,
    loss_ppm: u64,
    /// Nothing that is sent in these times arrives.
    cuts: Vec<(Us, Us)>,
}

struct Beat {
    round: u32,
    sent: Us,
    lost: LinkSet,
    /// Highest round received and number of rounds received, by link.
    received: Vec<(u32, u32)>,
}

struct Node {
    liveness: Liveness,
    estimates: Vec<Estimate>,
    round: u32,
    sockets: Vec<VecDeque<Rc<Beat>>>,
    received: Vec<(u32, u32)>,
    /// Times in which neither thread, only the worker, only the control thread runs.
    stalls: Vec<(Us, Us, bool, bool)>,
    pass: u64,
    reading: bool,
    wanted: u64,
    /// What [`Judgement`]s told.
    told: Vec<(Us, LinkIndex, Transition)>,
    silent_at: Option<Us>,
    /// When each link was last read from, when rounds were read from it, and when it was first
    /// called missing since.
    read: Vec<Us>,
    rounds_read: Vec<Vec<(Us, u32)>>,
    missing_at: Vec<Option<Us>>,
    unheard_at: Vec<Option<Us>>,
}

#[derive(Clone)]
enum What {
    Tick { due: Us },
    Judge,
    Arrive { link: usize, beat: Rc<Beat> },
    Read { link: usize },
}

/// An event; compared by time and number alone.
struct Event(Us, u64, usize, What);

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct World {
    base: Instant,
    dice: Dice,
    nodes: [Node; 2],
    /// By sending node and link.
    wires: [Vec<Wire>; 2],
    events: BinaryHeap<Reverse<Event>>,
    number: u64,
    now: Us,
}

fn link(index: usize) -> LinkIndex {
    LinkIndex::new(index as u8).unwrap()
}

impl World {
    fn new(seed: u64, links: usize) -> Self {
        let mut dice = Dice(seed);
        let base = Instant::now();
        let mut node = || {
            let mut liveness = Liveness::new(base, FAST, links);
            LinkIndex::all(links).for_each(|link| liveness.set_path_usable(link, true));
            Node {
                liveness,
                estimates: vec![Estimate::new(base); links],
                round: dice.next() as u32,
                sockets: vec![VecDeque::new(); links],
                received: vec![(0, 0); links],
                stalls: Vec::new(),
                pass: 0,
                reading: false,
                wanted: 0,
                told: Vec::new(),
                silent_at: None,
                read: vec![0; links],
                rounds_read: vec![Vec::new(); links],
                missing_at: vec![None; links],
                unheard_at: vec![None; links],
            }
        };
        let nodes = [node(), node()];
        let wires = [vec![Wire::default(); links], vec![Wire::default(); links]];
        let mut world =
            Self { base, dice, nodes, wires, events: BinaryHeap::new(), number: 0, now: 0 };
        for node in 0..2 {
            let due = world.dice.below(INTERVAL);
            world.push(due, node, What::Tick { due });
        }
        world
    }

    /// All wires get a delay, some jitter and a loss that is one of these.
    fn wires_at_random(&mut self, losses_ppm: &[u64]) {
        for wire in self.wires.iter_mut().flatten() {
            wire.delay = 50 + self.dice.below(3_000);
            wire.jitter = self.dice.below(500);
            wire.loss_ppm = self.dice.pick(losses_ppm);
        }
    }

    /// Each node is held up so many times until `end`, for 1 to 50 ms.
    fn stalls_at_random(&mut self, count: u64, end: Us) {
        for node in &mut self.nodes {
            for _ in 0..count {
                let from = self.dice.below(end);
                let until = from + 1_000 + self.dice.below(49_000);
                let (worker, control) =
                    self.dice.pick(&[(true, true), (true, false), (false, true)]);
                node.stalls.push((from, until, worker, control));
            }
        }
    }

    fn cut(&mut self, from: usize, link: usize, since: Us, until: Us) {
        self.wires[from][link].cuts.push((since, until));
    }

    fn push(&mut self, at: Us, node: usize, what: What) {
        self.number += 1;
        self.events.push(Reverse(Event(at, self.number, node, what)));
    }

    fn instant(&self, at: Us) -> Instant {
        self.base + Duration::from_micros(at)
    }

    fn run_until(&mut self, end: Us) {
        while let Some(Reverse(event)) = self.events.pop() {
            if event.0 >= end {
                self.events.push(Reverse(event));
                break;
            }
            let Event(at, _, node, what) = event;
            self.now = at;
            let threads = match &what {
                What::Tick { .. } | What::Judge => (false, true),
                What::Read { .. } => (true, false),
                What::Arrive { .. } => (false, false),
            };
            let free = self.nodes[node].free_at(at, threads);
            if free > at {
                self.push(free, node, what);
                continue;
            }
            match what {
                What::Tick { due } => self.tick(node, due),
                What::Judge => self.judge(node, at),
                What::Arrive { link, beat } => {
                    self.nodes[node].sockets[link].push_back(beat);
                    self.wake_worker(node);
                }
                What::Read { link } => self.read(node, link),
            }
        }
        self.now = end;
    }

    fn wake_worker(&mut self, node: usize) {
        if !self.nodes[node].reading {
            self.nodes[node].reading = true;
            self.push(self.now + 10, node, What::Read { link: 0 });
        }
    }

    fn tick(&mut self, node: usize, due: Us) {
        self.judge(node, due);
        let sender = &mut self.nodes[node];
        sender.round = sender.round.wrapping_add(1);
        let beat = Rc::new(Beat {
            round: sender.round,
            sent: self.now,
            lost: sender.liveness.lost(),
            received: sender.received.clone(),
        });
        for index in 0..self.wires[node].len() {
            let wire = &self.wires[node][index];
            let cut = wire.cuts.iter().any(|(from, until)| (*from..*until).contains(&self.now));
            let (loss, delay, jitter) = (wire.loss_ppm, wire.delay, wire.jitter);
            if !cut && !self.dice.chance(loss) {
                let at = self.now + delay + self.dice.below(jitter + 1);
                self.push(at, 1 - node, What::Arrive { link: index, beat: Rc::clone(&beat) });
            }
        }
        let next = (due + INTERVAL).max(self.now);
        self.push(next, node, What::Tick { due: next });
    }

    fn judge(&mut self, node: usize, due: Us) {
        let (now, due) = (self.instant(self.now), self.instant(due));
        let at = self.now;
        let this = &mut self.nodes[node];
        let Judgement { transitions, wants_pass, peer_silent } =
            this.liveness.judge(now, due, this.pass, Duration::from_micros(INTERVAL));
        this.told.extend(transitions.into_iter().map(|(link, transition)| (at, link, transition)));
        if peer_silent && this.silent_at.is_none() {
            this.silent_at = Some(at);
        }
        this.check(at, now);
        if wants_pass && this.wanted <= this.pass {
            this.wanted = this.pass + 2;
            self.wake_worker(node);
        }
    }

    fn read(&mut self, node: usize, index: usize) {
        let now = self.instant(self.now);
        let this = &mut self.nodes[node];
        while let Some(beat) = this.sockets[index].pop_front() {
            this.take(self.now, now, index, &beat);
        }
        let links = this.sockets.len();
        if index + 1 < links {
            let pause = 5 + self.dice.below(200);
            return self.push(self.now + pause, node, What::Read { link: index + 1 });
        }
        this.pass += 1;
        let wanted = this.wanted;
        if this.pass < wanted || this.sockets.iter().any(|socket| !socket.is_empty()) {
            return self.push(self.now + 5, node, What::Read { link: 0 });
        }
        this.reading = false;
        if this.pass == wanted {
            self.push(self.now + 5, node, What::Judge);
        }
    }
}

impl Node {
    /// When the thread (worker, control) runs again.
    fn free_at(&self, at: Us, threads: (bool, bool)) -> Us {
        let held = |stall: &&(Us, Us, bool, bool)| {
            (stall.0..stall.1).contains(&at) && (stall.2 && threads.0 || stall.3 && threads.1)
        };
        self.stalls.iter().filter(held).map(|stall| stall.1).max().unwrap_or(at)
    }

    /// When both threads have run for an interval and a half, from `at` on.
    fn unstalled(&self, mut at: Us) -> Us {
        const SPAN: Us = INTERVAL * 3 / 2;
        let hits = |stall: &&(Us, Us, bool, bool), at: Us| stall.0 < at + SPAN && stall.1 > at;
        while let Some(stall) = self.stalls.iter().find(|stall| hits(stall, at)) {
            at = stall.1;
        }
        at + SPAN
    }

    fn take(&mut self, at: Us, now: Instant, index: usize, beat: &Beat) {
        let estimate = &mut self.estimates[index];
        let (highest, count) = &mut self.received[index];
        *count = count.wrapping_add(1);
        if *count == 1 || beat.round.wrapping_sub(*highest) < 1 << 31 {
            *highest = beat.round;
        }
        estimate.on_arrival(now, beat.sent as u32);
        estimate.on_round(beat.round);
        let (jitter, transit) = (estimate.jitter(), estimate.transit_us());
        let loss = estimate.loss_in();
        assert!(loss.is_finite());
        for (estimate, (highest, count)) in self.estimates.iter_mut().zip(&beat.received) {
            estimate.on_report(*highest, *count);
        }
        self.liveness.on_round(now, link(index), beat.round, jitter, transit, loss);
        self.liveness.on_report(link(index), beat.lost, Duration::from_micros(INTERVAL));
        self.read[index] = at;
        self.missing_at[index] = None;
        self.rounds_read[index].push((at, beat.round));
    }

    /// What must hold after every judgement.
    fn check(&mut self, at: Us, now: Instant) {
        let links: Vec<LinkIndex> = LinkIndex::all(self.sockets.len()).collect();
        let up = |index: LinkIndex| self.liveness.state(index) == State::Up;
        for index in &links {
            let history = self.liveness.history(*index);
            assert!(history.len() <= super::HISTORY);
            assert!(history.windows(2).all(|pair| pair[0].to == pair[1].from));
            let lost = self.liveness.lost().contains(*index);
            let unheard = !self.liveness.heard_by_peer(*index);
            // A bad link is up only where there is no other.
            let others_up = links.iter().any(|other| other != index && up(*other));
            assert!(!(lost || unheard) || !up(*index) || !others_up, "link {index} at {at}");
            let (missing, unheard_at) =
                (&mut self.missing_at[index.at()], &mut self.unheard_at[index.at()]);
            *missing = lost.then(|| missing.unwrap_or(at));
            *unheard_at = unheard.then(|| unheard_at.unwrap_or(at));
        }
        assert_eq!(self.liveness.sendable().is_empty(), links.is_empty());
        // A busy loop otherwise: what is due at a judge must be settled by it.
        assert!(self.liveness.poll_timeout().is_none_or(|due| due > now));
    }

    /// When `index`, last read before it was cut, had to be called missing at the latest.
    fn latest_verdict(&self, index: usize) -> Option<Us> {
        let estimate = &self.estimates[index];
        let needed = missed_for(estimate.loss_in(), Duration::from_micros(INTERVAL), &FAST) + 3;
        let newest = self.rounds_read[index].iter().map(|(_, round)| *round).max()?;
        let others = (0..self.sockets.len()).filter(|other| *other != index);
        others
            .filter_map(|other| {
                let later = self.rounds_read[other].iter();
                let mut later =
                    later.filter(|(at, round)| *at > self.read[index] && *round > newest);
                let (kth, _) = later.nth(needed as usize - 1)?;
                let skew = estimate.skew_to(&self.estimates[other]).max(0) as Us;
                let grace = (estimate.jitter().as_micros() as Us * 4 + skew).max(200);
                // The next judge is an interval away, and both passes take a moment.
                Some(self.unstalled(self.unstalled(kth + grace)))
            })
            .min()
    }
}

const LOSSES: [u64; 7] = [0, 0, 0, 1_000, 10_000, 50_000, 200_000];

#[test]
fn a_cut_is_found_in_time() {
    for seed in 0..1_500 {
        let mut dice = Dice(seed);
        let links = dice.pick(&[2, 2, 3, 4]);
        let mut world = World::new(seed, links);
        // Round numbers that wrap have tests of their own.
        world.nodes.iter_mut().for_each(|node| node.round = 1);
        world.wires_at_random(&LOSSES);
        let at = 100_000 + dice.below(20_000);
        let stalls = dice.below(3);
        world.stalls_at_random(stalls, 140_000);
        let cut = dice.below(links as u64) as usize;
        let ways = dice.pick(&[[true, false], [false, true], [true, true]]);
        for (from, _) in ways.iter().enumerate().filter(|(_, cut)| **cut) {
            world.cut(from, cut, at, FOR_EVER);
        }
        world.run_until(215_000 + stalls * 50_000);
        for (from, _) in ways.iter().enumerate().filter(|(_, cut)| **cut) {
            let hearer = &world.nodes[1 - from];
            let Some(latest) = hearer.latest_verdict(cut) else { continue };
            let missing = hearer.missing_at[cut].unwrap_or(FOR_EVER);
            assert!(missing <= latest, "seed {seed}: missing at {missing}, not by {latest}");
            assert!(hearer.liveness.state(link(cut)) != State::Up, "seed {seed}");
            // The sender learns it from the heartbeats over the other links.
            let sender = &world.nodes[from];
            let unheard = sender.unheard_at[cut].unwrap_or(FOR_EVER);
            let learnt = sender.unstalled(hearer.unstalled(missing) + 20_000) + 10_000;
            assert!(unheard <= learnt, "seed {seed}: {unheard}, not by {learnt}");
            assert!(sender.liveness.state(link(cut)) != State::Up, "seed {seed}");
            assert!(!sender.liveness.sendable().contains(link(cut)), "seed {seed}");
        }
    }
}

#[test]
fn stalls_and_loss_take_no_link_down() {
    let mut suspicions = 0;
    for seed in 0..400 {
        let mut world = World::new(seed, 2 + seed as usize % 2);
        world.wires_at_random(&LOSSES);
        world.stalls_at_random(6, 500_000);
        world.run_until(500_000);
        for node in &world.nodes {
            for (at, link, transition) in &node.told {
                assert!(transition.to != State::Down, "seed {seed}: {link} {transition:?} at {at}");
                suspicions += u32::from(transition.to == State::Suspect);
            }
            let up = LinkIndex::all(node.sockets.len());
            let up = up.filter(|link| node.liveness.state(*link) == State::Up).count();
            assert!(up > 0, "seed {seed}");
        }
    }
    // Of some 10^6 judged rounds, half of them on links whose loss was not known yet.
    assert!(suspicions < 100, "{suspicions} false suspicions");
}

#[test]
fn silence_of_all_links_changes_nothing_until_the_peer_is_given_up() {
    for seed in 0..60 {
        let mut world = World::new(seed, 2 + seed as usize % 3);
        world.wires_at_random(&[0, 10_000]);
        let at = 150_000 + world.dice.below(10_000);
        for from in 0..2 {
            (0..world.wires[from].len()).for_each(|link| world.cut(from, link, at, FOR_EVER));
        }
        if seed % 2 == 0 {
            world.stalls_at_random(3, 1_000_000);
        }
        world.run_until(at);
        let told = world.nodes.each_ref().map(|node| node.told.len());
        world.run_until(1_600_000);
        for (node, told) in world.nodes.iter().zip(told) {
            assert_eq!(node.told.len(), told, "seed {seed}: {:?}", node.told);
            let silent = node.silent_at.unwrap();
            let heard = node.read.iter().max().unwrap();
            let wait = silent - heard;
            assert!((1_000_000..1_300_000).contains(&wait), "seed {seed}: {wait} after {heard}");
        }
    }
}

/// More rounds are under way on the slow link than the judge remembers, and senders stall.
#[test]
fn a_much_slower_link_is_given_its_time() {
    for seed in 0..30 {
        let mut world = World::new(seed, 2);
        world.wires_at_random(&[0, 1_000]);
        world.wires.iter_mut().for_each(|wires| wires[0].delay = 90_000 + seed * 1_000);
        world.stalls_at_random(6, 550_000);
        let at = 600_000;
        (0..2).for_each(|from| world.cut(from, 0, at, FOR_EVER));
        world.run_until(at);
        for node in &world.nodes {
            assert!(node.told.iter().all(|(_, _, told)| told.to == State::Up), "seed {seed}");
            assert_eq!(node.liveness.state(link(0)), State::Up, "seed {seed}");
        }
        world.run_until(at + 280_000);
        for node in &world.nodes {
            let (missing, latest) = (node.missing_at[0].unwrap(), node.latest_verdict(0).unwrap());
            assert!(missing > at + 90_000 && missing <= latest, "seed {seed}");
        }
    }
}

/// Nothing from A to B on link 1, nothing from B to A on link 2.
#[test]
fn two_one_way_cuts_leave_both_ends_a_way() {
    for seed in 0..100 {
        let mut world = World::new(seed, 2);
        world.wires_at_random(&[0, 1_000, 10_000]);
        let at = [100_000 + world.dice.below(50_000), 100_000 + world.dice.below(50_000)];
        world.cut(0, 0, at[0], FOR_EVER);
        world.cut(1, 1, at[1], FOR_EVER);
        world.run_until(400_000);
        let [a, b] = &world.nodes;
        assert_eq!(a.liveness.sendable(), LinkSet::only(link(1)), "seed {seed}");
        assert_eq!(b.liveness.sendable(), LinkSet::only(link(0)), "seed {seed}");
        assert!(a.silent_at.is_none() && b.silent_at.is_none());
    }
}

#[test]
fn a_flapping_link_comes_back_each_time() {
    for seed in 0..60 {
        let mut world = World::new(seed, 2);
        world.wires_at_random(&[0, 0, 1_000]);
        let mut at = 100_000;
        for _ in 0..6 {
            let until = at + 2_000 + world.dice.below(120_000);
            let ways = world.dice.pick(&[[true, false], [false, true], [true, true]]);
            for (from, _) in ways.iter().enumerate().filter(|(_, cut)| **cut) {
                world.cut(from, 0, at, until);
            }
            at = until + 60_000;
            world.run_until(at);
            for node in &world.nodes {
                assert_eq!(node.liveness.state(link(0)), State::Up, "seed {seed} at {at}");
                assert_eq!(node.liveness.state(link(1)), State::Up, "seed {seed} at {at}");
                assert!(node.liveness.lost().is_empty());
            }
        }
    }
}
