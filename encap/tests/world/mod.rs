//! A deterministic world: nodes, seeded wires between them, virtual time.
//!
//! Nothing here reads a clock or the system's randomness: a seed replays everything.

mod seeds;
mod setup;
mod wire;
mod worker;
pub mod flow;

pub use seeds::*;
pub use setup::*;
pub use wire::*;
pub use worker::*;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use encap::datapath::{Datapath, To};
use encap::event::Event;
use encap::id::{NodeId, Vni};
use encap::link::liveness::State;
use encap::stats::DropReason;
use encap::vtep::Vtep;
use encap::vtep::config::VtepConfig;

/// A node's place in the world.
pub type NodeIndex = usize;

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
}
