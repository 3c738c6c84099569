//! Two whole nodes in memory: ports with faults, workers stepped by hand, real protocol.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use encap::channel::hub::HubOptions;
use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::datapath::ControlInput;
use encap::handshake::features::Features;
use encap::id::{LocalPort, NodeId, Vni};
use encap::rng::Rng;
use encap::stats::DropReason;
use encap::vtep::Vtep;
use encap::vtep::config::{Limits, LinkConfig, NetworkConfig, PeerConfig, VtepConfig};
use encap::wire::buf::{
    BufPool, Checksum, FrameBurst, Offload, OutFrame, PacketBuf, Pieces, Span, Transmit, UplinkId,
};
use fastpath::capture::{Capture, CaptureFilter};
use fastpath::memory::{Faults, MemoryDatagramPort, MemoryFramePort, datagram_cable, frame_cable};
use fastpath::port::{DatagramPort, FrameCapabilities, FramePort, TxReport};
use fastpath::wake::Waker;
use fastpath::worker::{
    Command, Notice, PULSE_QUEUE, Pulses, ToControl, Worker, WorkerHandle, WorkerOptions,
};

const MAX_FRAME: usize = 1446;

struct Seeded(u64);

impl Rng for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

fn vni() -> Vni {
    Vni::new(100).unwrap()
}

fn address(node: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node], 26026))
}

/// A node, its worker, and the host's end of its tap.
struct Node {
    vtep: Vtep,
    worker: Worker<MemoryFramePort, MemoryDatagramPort>,
    handle: WorkerHandle<MemoryFramePort>,
    notices: Receiver<Notice>,
    pulses: Arc<Pulses>,
    host: MemoryFramePort,
    /// The control thread's way out: the same end of the cable.
    out: Vec<(SocketAddr, Vec<u8>)>,
    capture: Capture,
}

/// Node `me` of two, in these networks.
fn config(me: u8, vnis: &[u32]) -> VtepConfig {
    let other = 3 - me;
    VtepConfig {
        node: NodeId::new(me.into()).unwrap(),
        keys: vec![ClusterKey::new([5; 32])],
        suites: vec![Suite::Aes256Gcm],
        features: Features::SUPPORTED,
        peers: vec![PeerConfig::new(
            NodeId::new(other.into()).unwrap(),
            vec![LinkConfig::to(UplinkId(0), address(other), 1472)],
        )],
        networks: vnis
            .iter()
            .map(|vni| NetworkConfig {
                vni: Vni::new(*vni).unwrap(),
                members: vec![NodeId::new(other.into()).unwrap()],
                stp: true,
                max_frame_len: 1446,
                follows_path: true,
                static_fdb: vec![],
                policy: None,
                dscp: None,
                mss_clamp: true,
                too_big: true,
                compression: None,
            })
            .collect(),
        limits: Limits { bum_rate: 0, ..Limits::default() },
        channels: HubOptions::default(),
        workers: 1,
        start_stamp: 1,
    }
}

fn to_control(notices: SyncSender<Notice>, pulses: &Arc<Pulses>) -> ToControl {
    ToControl { notices, pulses: Arc::clone(pulses), waker: Waker::new().unwrap() }
}

fn node(me: u8, now: Instant, uplink: MemoryDatagramPort, faults: Faults) -> Node {
    let mut vtep = Vtep::new(now, config(me, &[100]), Box::new(Seeded(u64::from(me))));
    let (tx, notices) = sync_channel(256);
    let capture = Capture::new();
    let options = WorkerOptions::default();
    let pulses = Arc::new(Pulses::new(PULSE_QUEUE));
    let (worker, handle) =
        Worker::new(vtep.datapath(), vec![uplink], to_control(tx, &pulses), capture.tap(), options)
            .unwrap();
    let (host, tap) = frame_cable(MAX_FRAME, faults, u64::from(me));
    let network = vtep.tables().handles[&vni()];
    handle.send(Command::AddPort { handle: network, vni: vni(), local: LocalPort::TAP, port: tap });
    Node { vtep, worker, handle, notices, pulses, host, out: Vec::new(), capture }
}

/// Both nodes and the cable between them. The middle of the cable is the test's: what the control
/// halves send is put in there.
struct Pair {
    nodes: [Node; 2],
    /// The far ends of the nodes' uplinks.
    ends: [MemoryDatagramPort; 2],
    pool: BufPool,
    now: Instant,
}

impl Pair {
    fn new(faults: Faults) -> Self {
        let now = Instant::now();
        let cable = |me: u8| {
            let ends = [(UplinkId(0), address(me)), (UplinkId(0), address(3 - me))];
            datagram_cable(ends, 1472, faults, u64::from(me) + 10)
        };
        let (a, a_end) = cable(1);
        let (b, b_end) = cable(2);
        let mut pair = Self {
            nodes: [node(1, now, a, Faults::default()), node(2, now, b, Faults::default())],
            ends: [a_end, b_end],
            pool: BufPool::new(2048, 64),
            now,
        };
        pair.run(200);
        for node in &pair.nodes {
            assert!(node.vtep.peer_status(pair.now)[0].up, "no session");
        }
        pair
    }

    /// Steps both nodes until nothing moves, a millisecond at a time.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += Duration::from_millis(1);
            while self.step() > 0 {}
        }
    }

    fn step(&mut self) -> usize {
        let mut moved = 0;
        for node in &mut self.nodes {
            moved += node.worker.step(self.now).unwrap();
            for notice in node.notices.try_iter() {
                if let Notice::Control(input) = notice {
                    node.vtep.handle_input(self.now, input);
                }
            }
            while let Some(pulse) = node.pulses.pop() {
                node.vtep.handle_input(self.now, ControlInput::Pulse(Box::new(pulse)));
            }
            if node.vtep.poll_timeout() <= self.now {
                node.vtep.handle_timeout(self.now);
            }
            while let Some(transmit) = node.vtep.poll_transmit() {
                node.out.push((transmit.remote, transmit.payload));
            }
        }
        for from in 0..2 {
            let to = 1 - from;
            let mut received = Vec::new();
            self.ends[from].rx_burst(&mut self.pool, &mut received).unwrap();
            let control = std::mem::take(&mut self.nodes[from].out);
            let payloads = received.iter().map(|run| run.buf.data());
            for payload in payloads.chain(control.iter().map(|(_, payload)| payload.as_slice())) {
                moved += 1;
                let run = Transmit {
                    range: 0..payload.len(),
                    segment_size: payload.len().max(1),
                    uplink: UplinkId(0),
                    // What was received is labelled with its sender; it goes on to the other node.
                    remote: address(to as u8 + 1),
                    mark: 0,
                };
                self.ends[to].tx_burst(payload, &[run]);
            }
        }
        moved
    }

    fn send(&mut self, from: usize, bytes: &[u8]) {
        put(&mut self.nodes[from].host, bytes);
    }

    fn received(&mut self, at: usize) -> Vec<Vec<u8>> {
        take(&mut self.nodes[at].host)
    }

    /// Gives node 0 one more local port; its other end is what a virtual machine has.
    fn add_machine(&mut self, local: LocalPort) -> MemoryFramePort {
        let Node { vtep, handle, .. } = &mut self.nodes[0];
        let tables = vtep.tables();
        let network = tables.handles[&vni()];
        let ports = tables.network(network).unwrap().local_ports.bits();
        vtep.set_local_ports(vni(), ports | 1 << local.get()).unwrap();
        let (machine, port) = frame_cable(MAX_FRAME, Faults::default(), 7);
        handle.send(Command::AddPort { handle: network, vni: vni(), local, port });
        machine
    }
}

fn put(port: &mut MemoryFramePort, bytes: &[u8]) {
    let mut pieces = Pieces(vec![PacketBuf::from_slice(bytes)]);
    let span = Span { piece: 0, start: 0, len: bytes.len() };
    let frame = OutFrame { span, checksum: Checksum::Complete };
    assert_eq!(port.tx_burst(&mut pieces, &[frame]).sent, 1);
}

fn take(port: &mut MemoryFramePort) -> Vec<Vec<u8>> {
    let (mut all, mut frames) = (Vec::new(), FrameBurst::new(65_536, 64));
    loop {
        frames.clear();
        port.rx_burst(&mut frames).unwrap();
        if frames.is_empty() {
            return all;
        }
        all.extend(frames.iter().map(|(_, bytes)| bytes.to_vec()));
    }
}

fn frame(number: u16, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    bytes.extend(number.to_be_bytes());
    bytes.resize(len.max(16), number as u8);
    bytes
}

/// A frame between stations, the broadcast address being 0xff.
fn between(to: u8, from: u8, payload: &[u8]) -> Vec<u8> {
    let to = if to == 0xff { [0xff; 6] } else { [2, 0, 0, 0, 0, to] };
    [&to[..], &[2, 0, 0, 0, 0, from, 0x88, 0xb5], payload].concat()
}

#[test]
fn flow_frames_cross_between_two_workers_in_order() {
    let mut pair = Pair::new(Faults::default());
    let sent: Vec<_> = (0..500).map(|n| frame(n, 16 + usize::from(n) * 2)).collect();
    for bytes in &sent {
        pair.send(0, bytes);
    }
    pair.run(5);
    assert!(pair.received(1) == sent, "lost, changed or out of order");
}

#[test]
fn flow_a_bad_cable_loses_frames_but_never_changes_or_repeats_one() {
    let faults = Faults { drop: 50, duplicate: 100, corrupt: 100, reorder: 100 };
    let mut pair = Pair::new(faults);
    let sent: Vec<_> = (0..2_000).map(|n| frame(n, 64)).collect();
    for chunk in sent.chunks(50) {
        chunk.iter().for_each(|bytes| pair.send(0, bytes));
        pair.run(1);
    }
    pair.run(5);
    let got = pair.received(1);
    assert!(got.len() > 1_200 && got.len() < 2_000, "{}", got.len());
    let unique: HashSet<_> = got.iter().collect();
    assert_eq!(unique.len(), got.len(), "a frame came twice");
    let known: HashSet<_> = sent.iter().collect();
    assert!(got.iter().all(|bytes| known.contains(bytes)), "a frame that was never sent");
}

#[test]
fn api_a_tap_can_be_taken_away_and_its_frames_are_counted() {
    let mut pair = Pair::new(Faults::default());
    let handle = pair.nodes[1].vtep.tables().handles[&vni()];
    let (give_back, given) = channel();
    pair.nodes[1].handle.send(Command::RemovePorts { handle, give_back });
    pair.run(1);
    assert!(given.try_recv().is_ok(), "the port is given back, not closed by the worker");
    pair.send(0, &frame(1, 64));
    pair.run(2);
    assert!(pair.received(1).is_empty());
    let drops: u64 = pair.nodes[1].worker.counters().dropped(DropReason::NetworkUnknown);
    assert_eq!(drops, 1);
}

#[test]
fn api_a_capture_sees_both_directions_and_costs_nothing_when_it_is_over() {
    let mut pair = Pair::new(Faults::default());
    let filter = CaptureFilter { vni: Some(vni()), snap_len: None };
    let drains = [0, 1].map(|at| pair.nodes[at].capture.start(filter).unwrap());
    pair.send(0, &frame(7, 100));
    pair.run(2);
    for drain in &drains {
        assert_eq!(drain.try_next().unwrap().data, frame(7, 100));
        assert!(drain.try_next().is_none());
        drain.stop();
    }
    pair.send(0, &frame(8, 100));
    pair.run(2);
    assert!(drains[0].try_next().is_none());
    assert_eq!(pair.received(1).len(), 2);
}

#[test]
fn api_a_running_worker_stops_when_told() {
    let now = Instant::now();
    let (uplink, _end) = datagram_cable(
        [(UplinkId(0), address(1)), (UplinkId(0), address(2))],
        1472,
        Faults::default(),
        1,
    );
    let Node { mut worker, handle, .. } = node(1, now, uplink, Faults::default());
    let thread = std::thread::spawn(move || worker.run());
    handle.stop();
    thread.join().unwrap().unwrap();
}

/// A tap that gives some frames and is gone in the middle of the burst.
struct Dying(Option<Vec<Vec<u8>>>);

impl FramePort for Dying {
    fn rx_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()> {
        let Some(given) = self.0.take() else { return Ok(()) };
        for bytes in &given {
            assert!(frames.push_slice(bytes, Offload::default()));
        }
        if given.len() == 1 { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
    }

    fn tx_burst(&mut self, _: &mut Pieces, _: &[OutFrame]) -> TxReport {
        TxReport::default()
    }

    fn capabilities(&self) -> FrameCapabilities {
        FrameCapabilities { max_frame_len: MAX_FRAME, tx_partial_checksum: true }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

#[test]
fn sec_frames_of_a_dying_tap_are_not_taken_for_another_network() {
    let now = Instant::now();
    let (uplink, mut end) = datagram_cable(
        [(UplinkId(0), address(1)), (UplinkId(0), address(2))],
        1472,
        Faults::default(),
        1,
    );
    let (tx, notices) = sync_channel(16);
    let mut vtep = Vtep::new(now, config(1, &[100, 200]), Box::new(Seeded(1)));
    let options = WorkerOptions::default();
    let capture = Capture::new();
    let pulses = Arc::new(Pulses::new(PULSE_QUEUE));
    let (mut worker, handle) =
        Worker::new(vtep.datapath(), vec![uplink], to_control(tx, &pulses), capture.tap(), options)
            .unwrap();
    let drain = capture.start(CaptureFilter::default()).unwrap();
    let handles = vtep.tables().handles.clone();
    let ports = [
        (200, Dying(Some(vec![frame(9, 64)]))),
        (100, Dying(Some(vec![frame(1, 64), frame(2, 64)]))),
    ];
    for (number, port) in ports {
        let vni = Vni::new(number).unwrap();
        handle.send(Command::AddPort { handle: handles[&vni], vni, local: LocalPort::TAP, port });
    }
    worker.step(now).unwrap();
    worker.step(now).unwrap();
    let captured = drain.try_next().unwrap();
    assert_eq!((captured.vni.get(), captured.data), (200, frame(9, 64)));
    assert!(drain.try_next().is_none(), "frames of the dying tap went on");
    let gone =
        notices.try_iter().any(|n| matches!(n, Notice::PortGone { vni, .. } if vni.get() == 100));
    assert!(gone);
    let mut pool = BufPool::new(2048, 8);
    let mut datagrams = Vec::new();
    end.rx_burst(&mut pool, &mut datagrams).unwrap();
    assert!(datagrams.is_empty());
}

#[test]
fn flow_local_ports_reach_each_other_and_the_peer() {
    let mut pair = Pair::new(Faults::default());
    let port = |number| LocalPort::new(number).unwrap();
    let (mut one, mut two) = (pair.add_machine(port(1)), pair.add_machine(port(2)));
    // Node 0: station 1 behind the tap, 11 and 12 in machines. Node 1: station 2.
    let mut all = |pair: &mut Pair, one: &mut MemoryFramePort| {
        pair.run(2);
        [pair.received(0), take(one), take(&mut two), pair.received(1)]
    };
    let hello = between(0xff, 1, b"tap");
    pair.send(0, &hello);
    assert_eq!(
        all(&mut pair, &mut one),
        [vec![], vec![hello.clone()], vec![hello.clone()], vec![hello]]
    );
    let hello = between(0xff, 2, b"peer");
    pair.send(1, &hello);
    assert_eq!(
        all(&mut pair, &mut one),
        [vec![hello.clone()], vec![hello.clone()], vec![hello], vec![]]
    );
    let hello = between(0xff, 11, b"one");
    put(&mut one, &hello);
    put(&mut one, &between(1, 11, b"tap alone"));
    put(&mut one, &between(2, 11, b"peer alone"));
    let [tap, one_got, two_got, peer] = all(&mut pair, &mut one);
    assert_eq!(tap, [hello.clone(), between(1, 11, b"tap alone")]);
    assert_eq!((one_got, two_got), (vec![], vec![hello.clone()]));
    assert_eq!(peer, [hello, between(2, 11, b"peer alone")]);
    for from in [0, 1] {
        let bytes = between(11, 1 + from, b"for one");
        pair.send(usize::from(from), &bytes);
        assert_eq!(all(&mut pair, &mut one), [vec![], vec![bytes], vec![], vec![]], "{from}");
    }
    let counters = pair.nodes[0].worker.counters();
    assert_eq!(counters.frames_local.get(), 2);
    assert_eq!(counters.dropped(DropReason::FrameLocalDestination), 0);
    // One port goes; the others stay.
    let handle = pair.nodes[0].vtep.tables().handles[&vni()];
    let (give_back, given) = channel();
    pair.nodes[0].handle.send(Command::RemovePort { handle, local: port(1), give_back });
    pair.run(1);
    assert!(given.try_recv().is_ok() && given.try_recv().is_err(), "one port is given back");
    let bytes = between(11, 2, b"nobody");
    pair.send(1, &bytes);
    assert_eq!(all(&mut pair, &mut one), [const { Vec::<Vec<u8>>::new() }; 4]);
    assert_eq!(pair.nodes[0].worker.counters().dropped(DropReason::NetworkUnknown), 1);
    pair.nodes[0].vtep.set_local_ports(vni(), 0b101).unwrap();
    pair.send(1, &bytes);
    assert_eq!(all(&mut pair, &mut one), [vec![bytes.clone()], vec![], vec![bytes], vec![]]);
    let (give_back, given) = channel();
    pair.nodes[0].handle.send(Command::RemovePorts { handle, give_back });
    pair.run(1);
    assert_eq!(given.try_iter().count(), 2);
}

/// Gives some frames once, and changes what it writes, as a port may.
#[derive(Default)]
struct Scribbler {
    gives: Vec<Vec<u8>>,
    wrote: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl FramePort for Scribbler {
    fn rx_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()> {
        for bytes in self.gives.drain(..) {
            assert!(frames.push_slice(&bytes, Offload::default()));
        }
        Ok(())
    }

    fn tx_burst(&mut self, pieces: &mut Pieces, frames: &[OutFrame]) -> TxReport {
        for frame in frames {
            let bytes = pieces.get_mut(frame.span);
            self.wrote.lock().unwrap().push(bytes.to_vec());
            bytes.fill(0xee);
        }
        TxReport { sent: frames.len(), ..TxReport::default() }
    }

    fn capabilities(&self) -> FrameCapabilities {
        FrameCapabilities { max_frame_len: MAX_FRAME, tx_partial_checksum: true }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

/// A worker of a node alone, and what it needs to live.
struct Alone<F> {
    worker: Worker<F, MemoryDatagramPort>,
    handle: WorkerHandle<F>,
    vtep: Vtep,
    /// The other end of the uplink.
    _end: MemoryDatagramPort,
    _notices: Receiver<Notice>,
}

impl<F: FramePort> Alone<F> {
    fn new(now: Instant, options: WorkerOptions) -> Self {
        let ends = [(UplinkId(0), address(1)), (UplinkId(0), address(2))];
        let (memory, end) = datagram_cable(ends, 1472, Faults::default(), 1);
        let mut vtep = Vtep::new(now, config(1, &[100]), Box::new(Seeded(1)));
        let (tx, notices) = sync_channel(16);
        let control = to_control(tx, &Arc::new(Pulses::new(PULSE_QUEUE)));
        let tap = Capture::new().tap();
        let (worker, handle) =
            Worker::new(vtep.datapath(), vec![memory], control, tap, options).unwrap();
        Self { worker, handle, vtep, _end: end, _notices: notices }
    }

    /// Gives it these local ports, from the tap on.
    fn add(&mut self, ports: impl IntoIterator<Item = F>) {
        let handle = self.vtep.tables().handles[&vni()];
        for (number, port) in (0..).zip(ports) {
            self.vtep.set_local_ports(vni(), (2 << number) - 1).unwrap();
            let local = LocalPort::new(number).unwrap();
            self.handle.send(Command::AddPort { handle, vni: vni(), local, port });
        }
    }
}

#[test]
fn flow_each_of_several_ports_gets_a_copy_of_its_own() {
    let now = Instant::now();
    let mut alone = Alone::new(now, WorkerOptions::default());
    let sent: Vec<_> = (0..5).map(|number| frame(number, 200)).collect();
    let ports: Vec<_> = (0..4).map(|_| Scribbler::default()).collect();
    let wrote: Vec<_> = ports.iter().map(|port| Arc::clone(&port.wrote)).collect();
    let giver = Scribbler { gives: sent.clone(), ..Scribbler::default() };
    let echo = Arc::clone(&giver.wrote);
    alone.add(ports.into_iter().chain([giver]));
    alone.worker.step(now).unwrap();
    for wrote in wrote {
        assert_eq!(*wrote.lock().unwrap(), sent);
    }
    assert!(echo.lock().unwrap().is_empty(), "a frame came back to where it came from");
}

/// Waits until `done`, for as long as a busy machine may take.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn flow_a_worker_with_ports_that_cannot_be_waited_for_sleeps_and_looks() {
    let mut alone = Alone::new(Instant::now(), WorkerOptions::default());
    let cables = [1, 2].map(|seed| frame_cable(MAX_FRAME, Faults::default(), seed));
    let [(mut one, first), (mut two, second)] = cables;
    alone.add([first, second]);
    let Alone { mut worker, handle, .. } = alone;
    let counters = Arc::clone(handle.counters());
    let thread = std::thread::spawn(move || worker.run());
    for number in 0..3 {
        let before = counters.sleeps.get();
        wait_for("it does not sleep", || counters.sleeps.get() > before + 20);
        let bytes = frame(number, 64);
        put(&mut one, &bytes);
        wait_for("it does not look", || take(&mut two) == [bytes.clone()]);
    }
    assert_eq!(counters.waits.get(), 0, "it blocked, and nothing would have woken it");
    assert!(counters.slept_us.get() > 0);
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn api_the_start_comes_once_on_the_workers_own_thread() {
    let (started, starts) = channel();
    let start = move || started.send(std::thread::current().id()).unwrap();
    let options = WorkerOptions { on_start: Some(Box::new(start)), ..WorkerOptions::default() };
    let now = Instant::now();
    let mut alone = Alone::<MemoryFramePort>::new(now, options);
    alone.worker.step(now).unwrap();
    assert!(starts.try_recv().is_err(), "it started before it ran");
    let Alone { mut worker, handle, .. } = alone;
    let thread = std::thread::spawn(move || worker.run());
    assert_eq!(starts.recv().unwrap(), thread.thread().id());
    handle.stop();
    thread.join().unwrap().unwrap();
    assert!(starts.recv().is_err(), "it started twice");
}
