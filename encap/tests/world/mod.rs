//! A deterministic world: nodes, seeded wires between them, virtual time.
//!
//! Nothing here reads a clock or the system's randomness: a seed replays everything.

mod setup;
pub mod flow;

pub use setup::*;

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use encap::datapath::{ControlInput, Datapath, Deliveries, To};
use encap::event::Event;
use encap::id::{LocalPort, NodeId, Vni};
use encap::link::liveness::State;
use encap::rng::Rng;
use encap::stats::DropReason;
use encap::vtep::config::VtepConfig;
use encap::vtep::{Transmit, Vtep};
use encap::wire::buf::{BufPool, FrameBurst, Offload, PacketBuf, Received, Transmits, UplinkId};
use encap::wire::header::Handle;

/// Runs a scenario under several seeds, `TAPD_SEEDS` of them if that is set; a failure says which
/// one.
pub fn for_seeds(count: u64, scenario: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let count = number("TAPD_SEEDS").unwrap_or(count);
    let seeds = number("TAPD_SEED").map_or(1..=count, |seed| seed..=seed);
    for seed in seeds {
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("failed under seed {seed}; repeat with TAPD_SEED={seed}");
            resume_unwind(failure);
        }
    }
}

/// What a worker makes of frames from one tap.
pub fn encapsulate(
    datapath: &mut Datapath,
    now: Instant,
    handle: Handle,
    frames: &[(&[u8], Offload)],
) -> Transmits {
    encapsulate_from(datapath, now, (handle, LocalPort::TAP), frames)
}

/// The same, of frames from any local port.
pub fn encapsulate_from(
    datapath: &mut Datapath,
    now: Instant,
    (handle, port): (Handle, LocalPort),
    frames: &[(&[u8], Offload)],
) -> Transmits {
    let room = frames.iter().map(|(bytes, _)| bytes.len() + 64).sum();
    let mut burst = FrameBurst::new(room, frames.len());
    for (bytes, offload) in frames {
        assert!(burst.push_slice(bytes, *offload));
    }
    let mut all = Transmits::default();
    datapath.admit(now, handle, port, &burst);
    for _ in 0..1_000 {
        // A worker sends and clears after each part.
        let mut out = Transmits::default();
        let done = datapath.encapsulate(now, &mut burst, &mut out);
        let at = all.memory.len();
        all.memory.extend(out.memory);
        all.list.extend(out.list.into_iter().map(|mut run| {
            run.range = run.range.start + at..run.range.end + at;
            run
        }));
        if done {
            return all;
        }
    }
    panic!("this never ends");
}

/// What a worker makes of a datagram that came by an uplink, from an address, with a mark.
pub fn decapsulate(
    datapath: &mut Datapath,
    now: Instant,
    (uplink, remote, mark): (UplinkId, SocketAddr, u8),
    bytes: &[u8],
) -> (Deliveries, Vec<ControlInput>) {
    let mut received = vec![Received::single(PacketBuf::from_slice(bytes), uplink, remote, mark)];
    let (mut pool, mut out, mut control) = (BufPool::new(0, 0), Deliveries::default(), Vec::new());
    datapath.decapsulate(now, &mut pool, &mut received, &mut out, &mut control);
    (out, control)
}

/// SplitMix64: small, seedable, good enough for a simulation and for nothing else.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in `parts` of a million cases.
    pub fn chance(&mut self, parts: u32) -> bool {
        self.below(1_000_000) < u64::from(parts)
    }
}

impl Rng for Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }
}

/// What a wire does to datagrams, in one direction.
#[derive(Clone, Copy)]
pub struct Wire {
    /// Lost, in parts per million.
    pub loss: u32,
    /// Delivered twice, in parts per million.
    pub duplicate: u32,
    /// One bit changed, in parts per million.
    pub corrupt: u32,
    /// Least delay.
    pub delay: Duration,
    /// Added to it at random: what arrives out of order.
    pub jitter: Duration,
    /// Nothing overtakes what was sent before.
    pub fifo: bool,
    /// Largest UDP payload that passes.
    pub max_udp_payload: usize,
    /// Nothing passes.
    pub cut: bool,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            loss: 0,
            duplicate: 0,
            corrupt: 0,
            delay: Duration::from_micros(100),
            jitter: Duration::from_micros(20),
            fifo: false,
            max_udp_payload: 1472,
            cut: false,
        }
    }
}

/// A node's place in the world.
pub type NodeIndex = usize;

/// A datagram that was put on a wire once.
#[derive(Clone)]
pub struct Sent {
    pub from: NodeIndex,
    pub to: NodeIndex,
    pub bytes: Vec<u8>,
}

pub struct Node {
    pub vtep: Vtep,
    pub datapath: Datapath,
    pub config: VtepConfig,
    /// Its addresses, by uplink.
    pub addresses: Vec<SocketAddr>,
    pub alive: bool,
    pub suspended: bool,
    /// Frames that came out of its tap.
    pub delivered: Vec<(Vni, Vec<u8>)>,
    /// Which local ports each of them was for.
    pub delivered_to: Vec<To>,
    /// When, and by which way the last datagram of each came.
    pub delivered_at: Vec<Instant>,
    /// Frames that went back into its tap.
    pub returned: Vec<Vec<u8>>,
    /// Frames that it wrote into its tap of its own.
    pub injected: Vec<Vec<u8>>,
    /// Does nothing until then: its threads do not run.
    pub stalled_until: Option<Instant>,
    pub events: Vec<Event>,
}

impl Node {
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.datapath.counters().dropped(reason) + self.vtep.counters().dropped(reason)
    }

    pub fn all_drops(&self) -> HashMap<&'static str, u64> {
        DropReason::ALL
            .iter()
            .map(|reason| (reason.name(), self.drops(*reason)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    pub fn is_up(&self, now: Instant, peer: NodeId) -> bool {
        self.vtep.peer_status(now).iter().any(|status| status.node == peer && status.up)
    }
}

struct InFlight {
    from: SocketAddr,
    to: NodeIndex,
    uplink: UplinkId,
    mark: u8,
    bytes: Vec<u8>,
}

pub struct World {
    pub now: Instant,
    pub start: Instant,
    pub random: Random,
    pub nodes: Vec<Node>,
    pub wires: HashMap<(NodeIndex, NodeIndex), Wire>,
    /// Those of one link between two nodes, if not as [`Self::wires`].
    pub link_wires: HashMap<(NodeIndex, NodeIndex, u8), Wire>,
    pub default_wire: Wire,
    /// Everything ever put on a wire.
    pub sent: Vec<Sent>,
    pub keep_sent: bool,
    /// Datagrams that were put on each link, by sender and uplink.
    pub put: HashMap<(NodeIndex, u8), u64>,
    /// The uplinks of the datagrams that the last frame became.
    pub last_ways: Vec<u8>,
    /// Congestion marks that the wires set: on all that may be marked.
    pub congested: bool,
    /// The queue to the control half loses what says that a session is proven.
    pub drop_proofs: bool,
    /// The socket that is read first after a stall; the others follow, each to its end. Not to be
    /// changed during one.
    pub first_socket: u8,
    /// Who reads its sockets, and has more to read.
    reading: Option<NodeIndex>,
    /// When the last datagram of each wire comes, by sender, receiver and uplink.
    last: HashMap<(NodeIndex, NodeIndex, u8), Instant>,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    in_flight: HashMap<u64, InFlight>,
    next: u64,
    /// Sealed datagrams seen leaving, by sender and tag: the same tag with other bytes would be the
    /// same nonce, the same bytes are a copy on another link.
    tags: HashMap<(NodeIndex, [u8; 16]), u64>,
}

/// The bits of a datagram's number that say when it was sent; what is above, which socket holds it.
const ORDER_BITS: u32 = 48;

impl World {
    pub fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            now: start,
            start,
            random: Random(seed),
            nodes: Vec::new(),
            wires: HashMap::new(),
            link_wires: HashMap::new(),
            put: HashMap::new(),
            last_ways: Vec::new(),
            congested: false,
            default_wire: Wire::default(),
            sent: Vec::new(),
            keep_sent: true,
            drop_proofs: false,
            first_socket: 0,
            reading: None,
            last: HashMap::new(),
            queue: BinaryHeap::new(),
            in_flight: HashMap::new(),
            next: 0,
            tags: HashMap::new(),
        }
    }

    /// Nodes 1 to `count`, all up.
    pub fn cluster(seed: u64, count: u16) -> Self {
        let mut world = Self::new(seed);
        for me in 1..=count {
            world.add(config(me, count));
        }
        world.run_for(Duration::from_secs(2));
        for node in 0..world.nodes.len() {
            world.assert_all_up(node);
        }
        world
    }

    /// Nodes 1 and 2 with several links, all of them up and measured.
    pub fn pair(seed: u64, links: u8, change: impl Fn(&mut VtepConfig)) -> Self {
        Self::pair_by(seed, links, |_| {}, change)
    }

    /// The same, with wires that are set before anything goes by them.
    pub fn pair_by(
        seed: u64,
        links: u8,
        wires: impl FnOnce(&mut Self),
        change: impl Fn(&mut VtepConfig),
    ) -> Self {
        let mut world = Self::new(seed);
        world.keep_sent = false;
        wires(&mut world);
        for me in 1..=2 {
            let mut config = config_on(me, 2, links);
            change(&mut config);
            world.add(config);
        }
        let end = world.now + Duration::from_secs(20);
        assert!(world.run_until(end, Self::all_links_up), "links do not come up");
        world
    }

    /// Whether every link of every running node is up and of settled size.
    pub fn all_links_up(&self) -> bool {
        self.nodes.iter().filter(|node| node.alive).all(|node| {
            node.vtep.peer_status(self.now).iter().all(|peer| {
                peer.up && peer.links.iter().all(|l| l.state == State::Up && !l.searching)
            })
        })
    }

    /// Changes one direction of one link.
    pub fn on_link(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        link: u8,
        change: impl Fn(&mut Wire),
    ) {
        let usual = self.wires.get(&(from, to)).copied().unwrap_or(self.default_wire);
        change(self.link_wires.entry((from, to, link)).or_insert(usual));
    }

    /// Changes both directions of a link between nodes 0 and 1.
    pub fn on_both(&mut self, link: u8, change: impl Fn(&mut Wire)) {
        self.on_link(0, 1, link, &change);
        self.on_link(1, 0, link, &change);
    }

    /// Cuts or heals both directions of a link between nodes 0 and 1.
    pub fn cut(&mut self, link: u8, cut: bool) {
        self.on_both(link, |wire| wire.cut = cut);
    }

    /// Neither threads nor timers of the node run until then.
    pub fn stall(&mut self, node: NodeIndex, time: Duration) {
        let until = self.nodes[node].stalled_until.unwrap_or(self.now);
        self.nodes[node].stalled_until = Some(until.max(self.now + time));
    }

    pub fn is_stalled(&self, node: NodeIndex) -> bool {
        self.nodes[node].stalled_until.is_some_and(|until| until > self.now)
    }

    /// What a worker does about once a second.
    pub fn tidy(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        this.datapath.tidy(self.now);
    }

    pub fn link_state(&self, node: NodeIndex, link: u8) -> State {
        self.nodes[node].vtep.peer_status(self.now)[0].links[usize::from(link)].state
    }

    pub fn assert_all_up(&self, node: NodeIndex) {
        for status in self.nodes[node].vtep.peer_status(self.now) {
            assert!(
                status.up,
                "node {node}: peer {} is down; drops {:?}",
                status.node,
                self.nodes[node].all_drops()
            );
        }
    }

    pub fn add(&mut self, config: VtepConfig) -> NodeIndex {
        let links = config.peers.iter().map(|peer| peer.links.len()).max().unwrap_or(1);
        let number = config.node.get();
        let addresses = (0..links as u8).map(|uplink| address_on(number, uplink)).collect();
        self.add_with(config, addresses)
    }

    pub fn add_at(&mut self, config: VtepConfig, address: SocketAddr) -> NodeIndex {
        self.add_with(config, vec![address])
    }

    pub fn add_with(&mut self, config: VtepConfig, addresses: Vec<SocketAddr>) -> NodeIndex {
        let (vtep, datapath) = self.boot(&config);
        self.nodes.push(Node {
            vtep,
            datapath,
            config,
            addresses,
            alive: true,
            suspended: false,
            delivered: Vec::new(),
            delivered_to: Vec::new(),
            delivered_at: Vec::new(),
            returned: Vec::new(),
            injected: Vec::new(),
            stalled_until: None,
            events: Vec::new(),
        });
        let node = self.nodes.len() - 1;
        self.drain(node);
        node
    }

    fn boot(&mut self, config: &VtepConfig) -> (Vtep, Datapath) {
        let elapsed = self.now.duration_since(self.start).as_micros() as u64;
        let config = VtepConfig { start_stamp: config.start_stamp + elapsed, ..config.clone() };
        let rng = Box::new(Random(self.random.next()));
        let mut vtep = Vtep::new(self.now, config, rng);
        let datapath = vtep.datapath();
        (vtep, datapath)
    }

    /// The process ends without a word.
    pub fn kill(&mut self, node: NodeIndex) {
        self.nodes[node].alive = false;
    }

    /// A new process with the same configuration.
    pub fn restart(&mut self, node: NodeIndex) {
        let config = self.nodes[node].config.clone();
        let (vtep, datapath) = self.boot(&config);
        let node_ref = &mut self.nodes[node];
        (node_ref.vtep, node_ref.datapath, node_ref.alive) = (vtep, datapath, true);
        self.drain(node);
    }

    /// A frame comes out of the node's host and into its tap.
    pub fn transmit(&mut self, node: NodeIndex, bytes: &[u8]) {
        let now = self.now;
        let handle = self.nodes[node].vtep.tables().handles[&vni()];
        let this = &mut self.nodes[node];
        let mut resent = Transmits::default();
        this.datapath.resend(now, &mut resent);
        let out = encapsulate(&mut this.datapath, now, handle, &[(bytes, Offload::default())]);
        self.last_ways = out.datagrams().map(|(run, _)| run.uplink.0).collect();
        self.send_all(node, resent);
        self.send_all(node, out);
        self.take_returns(node);
    }

    /// Frames come out of one of a node's local ports at once; gives what stays on the node.
    pub fn transmit_from(
        &mut self,
        node: NodeIndex,
        port: LocalPort,
        frames: &[(&[u8], Offload)],
    ) -> Deliveries {
        let now = self.now;
        let this = &mut self.nodes[node];
        let handle = this.vtep.tables().handles[&vni()];
        let out = encapsulate_from(&mut this.datapath, now, (handle, port), frames);
        let mut returns = Deliveries::default();
        this.datapath.take_returns(&mut returns);
        self.last_ways = out.datagrams().map(|(run, _)| run.uplink.0).collect();
        self.send_all(node, out);
        self.take_returns(node);
        returns
    }

    fn send_all(&mut self, node: NodeIndex, out: Transmits) {
        for (run, bytes) in out.datagrams() {
            self.put_on_wire(node, run.uplink, run.remote, run.mark, bytes.to_vec());
        }
    }

    /// As the worker does after each half of its turn.
    fn take_returns(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        let mut returns = Deliveries::default();
        this.datapath.take_returns(&mut returns);
        this.returned.extend(returns.iter().map(|(_, bytes)| bytes.to_vec()));
        let news: Vec<_> = this.datapath.take_news().collect();
        self.hand_over(node, news);
    }

    /// As the worker does when frames wait for a session.
    fn send_waiting(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        if !this.datapath.has_waiting() {
            return;
        }
        let mut out = Transmits::default();
        this.datapath.send_waiting(self.now, &mut out);
        self.send_all(node, out);
    }

    /// As the worker does when the control half wakes it.
    fn wake(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        if !this.vtep.poll_wake() {
            return;
        }
        let mut out = Transmits::default();
        this.datapath.resend(self.now, &mut out);
        // In the middle of its sockets it has not seen all that came.
        if self.reading != Some(node) {
            this.datapath.end_pass();
            this.datapath.end_pass();
        }
        self.send_all(node, out);
    }

    /// A datagram of any origin reaches `to`, as if from `from`.
    pub fn inject(&mut self, from: SocketAddr, to: NodeIndex, bytes: Vec<u8>) {
        self.inject_on(from, to, 0, bytes);
    }

    /// The same, by one of its uplinks.
    pub fn inject_on(&mut self, from: SocketAddr, to: NodeIndex, uplink: u8, bytes: Vec<u8>) {
        self.deliver(InFlight { from, to, uplink: UplinkId(uplink), mark: 0, bytes });
        self.nodes[to].datapath.end_pass();
    }

    fn put_on_wire(
        &mut self,
        from: NodeIndex,
        uplink: UplinkId,
        remote: SocketAddr,
        mark: u8,
        bytes: Vec<u8>,
    ) {
        if bytes[0] >> 6 == 1 {
            let tag: [u8; 16] = bytes[bytes.len() - 16..].try_into().unwrap();
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            let before = self.tags.insert((from, tag), hasher.finish());
            assert!(
                before.is_none_or(|hash| hash == hasher.finish()),
                "a tag left twice with other bytes: the nonce was used twice"
            );
        }
        *self.put.entry((from, uplink.0)).or_default() += 1;
        let source = self.nodes[from].addresses[usize::from(uplink.0)];
        let targets: Vec<_> = (0..self.nodes.len())
            .filter_map(|to| {
                let at = self.nodes[to].addresses.iter().position(|a| *a == remote)?;
                Some((to, UplinkId(at as u8)))
            })
            .collect();
        for (to, to_uplink) in targets {
            let usual = self.wires.get(&(from, to)).copied().unwrap_or(self.default_wire);
            let wire = self.link_wires.get(&(from, to, uplink.0)).copied().unwrap_or(usual);
            if self.keep_sent {
                self.sent.push(Sent { from, to, bytes: bytes.clone() });
            }
            if wire.cut || bytes.len() > wire.max_udp_payload || self.random.chance(wire.loss) {
                continue;
            }
            let mark = if self.congested && mark & 3 != 0 { mark | 3 } else { mark };
            let copies = 1 + usize::from(self.random.chance(wire.duplicate));
            for _ in 0..copies {
                let mut bytes = bytes.clone();
                if self.random.chance(wire.corrupt) {
                    let at = self.random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << self.random.below(8);
                }
                let jitter = self.random.below(wire.jitter.as_nanos() as u64 + 1);
                let mut at = self.now + wire.delay + Duration::from_nanos(jitter);
                let last = self.last.entry((from, to, uplink.0)).or_insert(at);
                if wire.fifo {
                    at = at.max(*last);
                }
                *last = at;
                self.queue.push(Reverse((at, self.next)));
                let packet = InFlight { from: source, to, uplink: to_uplink, mark, bytes };
                self.in_flight.insert(self.next, packet);
                self.next += 1;
            }
        }
    }

    fn deliver(&mut self, packet: InFlight) {
        let now = self.now;
        let node = &mut self.nodes[packet.to];
        if !node.alive || node.suspended {
            return;
        }
        let from = (packet.uplink, packet.from, packet.mark);
        let (out, control) = decapsulate(&mut node.datapath, now, from, &packet.bytes);
        for (delivery, bytes) in out.iter() {
            node.delivered.push((delivery.vni, bytes.to_vec()));
            node.delivered_to.push(delivery.to);
            node.delivered_at.push(now);
        }
        self.hand_over(packet.to, control);
        self.take_returns(packet.to);
    }

    fn hand_over(&mut self, node: NodeIndex, control: Vec<ControlInput>) {
        for input in control {
            if self.drop_proofs && matches!(input, ControlInput::SessionProven { .. }) {
                continue;
            }
            self.nodes[node].vtep.handle_input(self.now, input);
            self.drain(node);
        }
    }

    /// Sends what the node wants sent and notes what it reports.
    pub fn drain(&mut self, node: NodeIndex) {
        while let Some(transmit) = self.nodes[node].vtep.poll_transmit() {
            if self.nodes[node].alive {
                let Transmit { uplink, remote, payload, mark } = transmit;
                self.put_on_wire(node, uplink, remote, mark, payload);
            }
        }
        while let Some((_, frame)) = self.nodes[node].vtep.poll_tap_frame() {
            self.nodes[node].injected.push(frame);
        }
        self.wake(node);
        while let Some(event) = self.nodes[node].vtep.poll_event() {
            self.nodes[node].events.push(event);
        }
        self.send_waiting(node);
    }

    /// Runs the world for a while.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.run_until(end, |_| false);
    }

    /// Runs until `done`, at the longest until `end`; says whether it was done.
    pub fn run_until(&mut self, end: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        let mut steps = 0_u64;
        loop {
            if done(self) {
                return true;
            }
            steps += 1;
            assert!(steps < 50_000_000, "the world does not come to rest");
            let running = |node: &&Node| node.alive && !node.suspended;
            let timeout = |node: &Node| {
                let at = node.vtep.poll_timeout();
                node.stalled_until.map_or(at, |until| at.max(until))
            };
            let timeout = self.nodes.iter().filter(running).map(timeout).min();
            let arrival = self.queue.peek().map(|Reverse((at, _))| *at);
            let Some(next) = timeout.into_iter().chain(arrival).min().filter(|at| *at <= end)
            else {
                self.now = self.now.max(end);
                return done(self);
            };
            self.now = self.now.max(next);
            self.read_sockets();
            for node in 0..self.nodes.len() {
                let this = &mut self.nodes[node];
                let stalled = this.stalled_until.is_some_and(|until| until > self.now);
                if this.alive && !this.suspended && !stalled && this.vtep.poll_timeout() <= self.now
                {
                    this.vtep.handle_timeout(self.now);
                    self.drain(node);
                }
            }
        }
    }

    /// Delivers all that is due.
    fn read_sockets(&mut self) {
        let mut readers = Vec::new();
        while let Some(Reverse((at, number))) = self.queue.peek().copied()
            && at <= self.now
        {
            self.queue.pop();
            let packet = self.in_flight.remove(&number).unwrap();
            // Sockets hold what comes while nobody reads.
            if let Some(until) = self.nodes[packet.to].stalled_until.filter(|u| *u > self.now) {
                let turn = packet.uplink.0.wrapping_sub(self.first_socket) & 7;
                let number = u64::from(turn) << ORDER_BITS | number & ((1 << ORDER_BITS) - 1);
                self.queue.push(Reverse((until, number)));
                self.in_flight.insert(number, packet);
                continue;
            }
            if !readers.contains(&packet.to) {
                readers.push(packet.to);
            }
            self.reading = Some(packet.to);
            self.deliver(packet);
            self.reading = None;
        }
        for node in readers {
            self.nodes[node].datapath.end_pass();
        }
    }
}
