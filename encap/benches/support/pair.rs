//! Two nodes with a session, which they make in virtual time over a perfect wire.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use encap::channel::hub::HubOptions;
use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::datapath::{Datapath, Deliveries};
use encap::handshake::features::Features;
use encap::id::{LocalPort, NodeId, Vni};
use encap::rng::Rng;
use encap::stats::DropReason;
use encap::vtep::Vtep;
use encap::vtep::config::{Limits, LinkConfig, NetworkConfig, PeerConfig, VtepConfig};
use encap::wire::buf::{BufPool, FrameBurst, PacketBuf, Received, Transmits, UplinkId};
use encap::wire::header::Handle;

use super::frames;

/// Bytes of UDP payload that the link takes: whole frames of an overlay with an MTU of 1,500.
const MAX_UDP_PAYLOAD: usize = 1_600;
/// One way over the wire.
const DELAY: Duration = Duration::from_micros(50);

/// SplitMix64: the same keys in every run, good for nothing else.
struct Random(u64);

impl Rng for Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8;
        }
    }
}

/// One end.
pub struct Node {
    vtep: Vtep,
    /// Its only worker's half of the packet path.
    pub datapath: Datapath,
    /// Where its datagrams come from.
    pub address: SocketAddr,
    vni: Vni,
}

impl Node {
    fn new(now: Instant, me: u8, other: u8, suite: Suite) -> Self {
        let vni = Vni::new(100).expect("a valid network");
        let config = config(me, other, suite, vni);
        let mut vtep = Vtep::new(now, config, Box::new(Random(u64::from(me))));
        let datapath = vtep.datapath();
        Self { vtep, datapath, address: address(me), vni }
    }

    /// Its handle of the network.
    pub fn handle(&self) -> Handle {
        self.vtep.tables().handles.get(&self.vni).copied().expect("the network is configured")
    }

    /// Takes a datagram in as worker and control thread do; gives the number of frames in it.
    fn hear(&mut self, now: Instant, from: SocketAddr, mark: u8, bytes: &[u8]) -> usize {
        let mut received =
            vec![Received::single(PacketBuf::from_slice(bytes), UplinkId(0), from, mark)];
        let (mut out, mut control) = (Deliveries::default(), Vec::new());
        let mut pool = BufPool::new(0, 0);
        self.datapath.decapsulate(now, &mut pool, &mut received, &mut out, &mut control);
        control.extend(self.datapath.take_news());
        for input in control {
            self.vtep.handle_input(now, input);
        }
        self.datapath.end_pass();
        out.list.len()
    }

    /// Whether frames may go to the other one.
    fn is_ready(&self, now: Instant) -> bool {
        let is_present = |(_, present): &(NodeId, bool)| *present;
        self.vtep.peer_status(now).iter().all(|peer| peer.up)
            && self.vtep.network_status().iter().all(|net| net.members.iter().all(is_present))
    }

    /// Packets that were dropped, for whatever reason.
    pub fn drops(&self) -> u64 {
        let counters = self.datapath.counters();
        DropReason::ALL.iter().map(|reason| counters.dropped(*reason)).sum()
    }
}

/// Two nodes that know each other's stations.
pub struct Pair {
    /// Stands still once they are up.
    pub now: Instant,
    /// Who sends.
    pub near: Node,
    /// Who receives.
    pub far: Node,
}

impl Pair {
    /// Two nodes that are up with each other under `suite`.
    pub fn new(suite: Suite) -> Self {
        let now = Instant::now();
        let (near, far) = (Node::new(now, 1, 2, suite), Node::new(now, 2, 1, suite));
        let mut pair = Self { now, near, far };
        let end = now + Duration::from_secs(5);
        while !(pair.near.is_ready(pair.now) && pair.far.is_ready(pair.now)) {
            assert!(pair.now < end, "the nodes do not come up");
            pair.step();
        }
        // Each learns where the other's station is.
        let (there, back) = (frames::udp(64, true), frames::udp(64, false));
        let Self { now, near, far } = &mut pair;
        introduce(*now, near, far, &there);
        introduce(*now, far, near, &back);
        introduce(*now, near, far, &there);
        pair
    }

    /// Carries what is to be sent; when there is nothing, goes on to the next timer.
    fn step(&mut self) {
        self.now += DELAY;
        let there = carry(self.now, &mut self.near, &mut self.far);
        let back = carry(self.now, &mut self.far, &mut self.near);
        if there + back > 0 {
            return;
        }
        let timeout = self.near.vtep.poll_timeout().min(self.far.vtep.poll_timeout());
        self.now = self.now.max(timeout);
        for node in [&mut self.near, &mut self.far] {
            if node.vtep.poll_timeout() <= self.now {
                node.vtep.handle_timeout(self.now);
            }
        }
    }
}

/// Delivers what one control half wants sent; gives the number of datagrams.
fn carry(now: Instant, from: &mut Node, to: &mut Node) -> usize {
    let mut count = 0;
    while let Some(transmit) = from.vtep.poll_transmit() {
        to.hear(now, from.address, transmit.mark, &transmit.payload);
        count += 1;
    }
    while from.vtep.poll_event().is_some() {}
    if from.vtep.poll_wake() {
        from.datapath.end_pass();
        from.datapath.end_pass();
    }
    count
}

/// A frame goes from one end to the other, which learns by it.
fn introduce(now: Instant, from: &mut Node, to: &mut Node, frame: &frames::Frame) {
    let mut burst = burst_of(std::slice::from_ref(frame));
    refill(&mut burst, std::slice::from_ref(frame));
    let mut out = Transmits::default();
    from.datapath.admit(now, from.handle(), LocalPort::TAP, &burst);
    assert!(from.datapath.encapsulate(now, &mut burst, &mut out));
    let heard = out.datagrams().map(|(run, bytes)| to.hear(now, from.address, run.mark, bytes));
    assert_eq!(heard.sum::<usize>(), 1, "the frame does not get across");
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)), 26026)
}

fn config(me: u8, other: u8, suite: Suite, vni: Vni) -> VtepConfig {
    let id = |number: u8| NodeId::new(u16::from(number)).expect("a valid id");
    let link = LinkConfig {
        fixed_udp_payload: Some(MAX_UDP_PAYLOAD),
        ..LinkConfig::to(UplinkId(0), address(other), MAX_UDP_PAYLOAD)
    };
    VtepConfig {
        node: id(me),
        keys: vec![ClusterKey::new([7; 32])],
        suites: vec![suite],
        features: Features::SUPPORTED,
        peers: vec![PeerConfig::new(id(other), vec![link])],
        networks: vec![NetworkConfig {
            vni,
            members: vec![id(other)],
            stp: true,
            max_frame_len: 1_514,
            follows_path: false,
            static_fdb: vec![],
            policy: None,
            dscp: None,
            mss_clamp: true,
            too_big: true,
            compression: None,
        }],
        limits: Limits { bum_rate: 0, ..Limits::default() },
        channels: HubOptions::default(),
        workers: 1,
        start_stamp: 1_000_000,
    }
}

/// An empty burst with room for `frames`.
pub fn burst_of(frames: &[frames::Frame]) -> FrameBurst {
    let room = frames.iter().map(|frame| frame.bytes.len().next_multiple_of(64)).sum();
    FrameBurst::new(room, frames.len())
}

/// Fills a burst with copies of `frames`: sending changes them in place.
pub fn refill(burst: &mut FrameBurst, frames: &[frames::Frame]) {
    burst.clear();
    for frame in frames {
        assert!(burst.push_slice(&frame.bytes, frame.offload), "the burst has room");
    }
}
