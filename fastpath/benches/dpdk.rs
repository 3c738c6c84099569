//! Two whole nodes on DPDK ports in one thread, stage by stage: what a frame costs where.
//!
//! ```text
//!  source -> virtio-user = vhost-user -> node A -> memif = memif -> node B -> vhost-user = virtio-user -> sink
//! ```
//!
//! `cargo bench -p fastpath --bench dpdk [-- SECONDS [CIPHER]]`, as anyone; needs the shim
//! (`fastpath/dpdk-sys/build-shim target/release`). One thread does all in turn, so that nothing
//! waits for another core: the times are those of warm caches, and each stage's own. They are CPU
//! time of the thread, so what else the machine does counts only by what it takes of the caches.
//! Beside them stands what the AEAD takes by itself for the same frames.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use encap::channel::hub::HubOptions;
use encap::crypto::aead::Suite;
use encap::crypto::bench::Load;
use encap::crypto::key::ClusterKey;
use encap::datapath::ControlInput;
use encap::handshake::features::Features;
use encap::id::{LocalPort, NodeId, Vni};
use encap::rng::Rng;
use encap::vtep::Vtep;
use encap::vtep::config::{Limits, LinkConfig, NetworkConfig, PeerConfig, VtepConfig};
use encap::wire::buf::UplinkId;
use fastpath::capture::Capture;
use fastpath::dpdk::{Eal, EalOptions, Hugepages, Pool, Port, PortOptions, RxQueue, TxQueue};
use fastpath::tap::OffloadSwitches;
use fastpath::uplink::dpdk::{DpdkPort, DpdkUplink, DpdkUplinkOptions};
use fastpath::vhost::{VhostOptions, VhostPort, VhostQueue};
use fastpath::wake::Waker;
use fastpath::worker::{
    Command, Notice, PULSE_QUEUE, Pulses, ToControl, Worker, WorkerHandle, WorkerOptions,
};

/// CPU time of this thread so far. To ask is a system call: a few ns for each frame of a burst.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is of this frame, and is only written to.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Frames on their way at a time.
const BURST: usize = 32;

struct Seeded(u64);

impl Rng for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

fn address(node: u8) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, node], 26026))
}

fn config(me: u8, suite: Suite, bundles: bool) -> VtepConfig {
    let other = 3 - me;
    let features = if bundles { Features::SUPPORTED } else { Features::COMPRESSION };
    VtepConfig {
        node: NodeId::new(me.into()).unwrap(),
        keys: vec![ClusterKey::new([5; 32])],
        suites: vec![suite],
        features,
        peers: vec![PeerConfig::new(
            NodeId::new(other.into()).unwrap(),
            vec![LinkConfig::to(UplinkId(0), address(other), 1472)],
        )],
        networks: vec![NetworkConfig {
            vni: Vni::new(100).unwrap(),
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
        }],
        limits: Limits { bum_rate: 0, ..Limits::default() },
        channels: HubOptions::default(),
        workers: 1,
        start_stamp: 1,
    }
}

struct Node {
    vtep: Vtep,
    worker: Worker<VhostQueue, DpdkUplink>,
    _handle: WorkerHandle<VhostQueue>,
    notices: Receiver<Notice>,
    pulses: Arc<Pulses>,
    port: DpdkPort,
    _vhost: VhostPort,
}

impl Node {
    fn new(eal: &Eal, me: u8, suite: Suite, bundles: bool, wire: &str, socket: &str) -> Self {
        let (port, uplinks) = DpdkPort::open(
            eal,
            &DpdkUplinkOptions {
                id: UplinkId(0),
                device: wire.to_owned(),
                local: address(me),
                prefix: 24,
                gateway: None,
                routes: vec![],
                neighbors: vec![],
                vlan: None,
                mac: None,
                mtu: 1500,
                exception_tap: None,
                // As vxlan does it over IPv4 (RFC 7348 section 5).
                udp_checksum: false,
                workers: 1,
                interrupts: false,
            },
        )
        .unwrap();
        let (vhost, mut queues) = VhostPort::open(
            eal,
            &VhostOptions {
                socket: socket.into(),
                client: false,
                queues: 1,
                workers: 1,
                offload: OffloadSwitches::ALL,
                interrupts: false,
                pool: Pool::new(eal, 4000, 2048).unwrap(),
            },
        )
        .unwrap();
        let now = Instant::now();
        let mut vtep = Vtep::new(now, config(me, suite, bundles), Box::new(Seeded(me.into())));
        let vni = Vni::new(100).unwrap();
        let (tx, notices) = sync_channel(256);
        let pulses = Arc::new(Pulses::new(PULSE_QUEUE));
        let to_control =
            ToControl { notices: tx, pulses: Arc::clone(&pulses), waker: Waker::new().unwrap() };
        let capture = Capture::new();
        let (worker, handle) = Worker::new(
            vtep.datapath(),
            uplinks,
            to_control,
            capture.tap(),
            WorkerOptions::default(),
        )
        .unwrap();
        let network = vtep.tables().handles[&vni];
        let local = LocalPort::TAP;
        handle.send(Command::AddPort { handle: network, vni, local, port: queues.remove(0) });
        Self { vtep, worker, _handle: handle, notices, pulses, port, _vhost: vhost }
    }

    /// What the control thread does.
    fn control(&mut self) {
        for notice in self.notices.try_iter() {
            if let Notice::Control(input) = notice {
                self.vtep.handle_input(Instant::now(), input);
            }
        }
        while let Some(pulse) = self.pulses.pop() {
            self.vtep.handle_input(Instant::now(), ControlInput::Pulse(Box::new(pulse)));
        }
        let now = Instant::now();
        if self.vtep.poll_timeout() <= now {
            self.vtep.handle_timeout(now);
        }
        while let Some(transmit) = self.vtep.poll_transmit() {
            self.port.send_many(&[(&transmit.payload, transmit.remote, transmit.mark)]);
        }
        while self.port.poll_event().is_some() {}
    }
}

fn guest(eal: &Eal, socket: &str) -> (Port, RxQueue, TxQueue) {
    let options = PortOptions {
        device: format!("net_virtio_user,path={socket},queues=1,queue_size=1024"),
        queues: 1,
        rx_descriptors: 1024,
        tx_descriptors: 1024,
        mtu: None,
        interrupts: false,
        capabilities: 0,
        pool: Pool::new(eal, 4000, 2048).unwrap(),
    };
    let (port, mut rx, mut tx) = Port::open(eal, &options).unwrap();
    (port, rx.remove(0), tx.remove(0))
}

struct Stages {
    source: Duration,
    a: Duration,
    b: Duration,
    sink: Duration,
    frames: u64,
}

struct World {
    nodes: [Node; 2],
    guests: [(Port, RxQueue, TxQueue); 2],
}

impl World {
    fn new(eal: &Eal, number: usize, suite: Suite, bundles: bool) -> Self {
        let id = std::process::id();
        let socket = |end: u8| format!("/tmp/tapd-bench-{id}-{number}-{end}.sock");
        let wire = |role: &str| {
            format!(
                "net_memif,role={role},socket=/tmp/tapd-bench-{id}-{number},socket-abstract=yes,id={number},rsize=10"
            )
        };
        let node =
            |me: u8, role: &str| Node::new(eal, me, suite, bundles, &wire(role), &socket(me));
        let nodes = [node(1, "server"), node(2, "client")];
        let guests = [guest(eal, &socket(1)), guest(eal, &socket(2))];
        let mut world = Self { nodes, guests };
        let start = Instant::now();
        while !world.nodes.iter().all(|node| node.vtep.peer_status(Instant::now())[0].up) {
            assert!(start.elapsed() < Duration::from_secs(10), "no session");
            world.turn();
        }
        // The sink says where it is, and paths are measured.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            world.send(1, 1, 60);
            world.turn();
            std::thread::sleep(Duration::from_micros(200));
            for (_, rx, _) in &mut world.guests {
                drop(rx.receive(64));
            }
        }
        world
    }

    fn turn(&mut self) {
        for node in &mut self.nodes {
            node.worker.step(Instant::now()).unwrap();
            node.control();
        }
    }

    fn send(&mut self, guest: usize, count: usize, len: usize) -> usize {
        let (_, _, tx) = &mut self.guests[guest];
        for _ in 0..count {
            let frame = tx.push(len).unwrap();
            frame.fill(0);
            frame[..14].copy_from_slice(&[
                2,
                0,
                0,
                0,
                0,
                2 - guest as u8,
                2,
                0,
                0,
                0,
                0,
                1 + guest as u8,
                8,
                0,
            ]);
            frame[14..34].copy_from_slice(&[
                0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
            ]);
            frame[16..18].copy_from_slice(&(len as u16 - 14).to_be_bytes());
        }
        tx.flush(64)
    }

    fn measure(&mut self, len: usize, time: Duration) -> Stages {
        let zero = Duration::ZERO;
        let mut stages = Stages { source: zero, a: zero, b: zero, sink: zero, frames: 0 };
        let (mut sent, mut turns, start) = (0, 0_u32, Instant::now());
        let mut at = cpu_time();
        let mut lap = |sum: &mut Duration| {
            let now = cpu_time();
            *sum += now - at;
            at = now;
        };
        while start.elapsed() < time {
            let mut rest = zero;
            lap(&mut rest);
            sent += self.send(0, BURST, len) as u64;
            lap(&mut stages.source);
            self.nodes[0].worker.step(Instant::now()).unwrap();
            lap(&mut stages.a);
            self.nodes[1].worker.step(Instant::now()).unwrap();
            lap(&mut stages.b);
            let count = self.guests[1].1.receive(64).len() as u64;
            stages.frames += count;
            lap(&mut stages.sink);
            turns += 1;
            if turns % 64 == 0 {
                for node in &mut self.nodes {
                    node.control();
                }
            }
        }
        assert!(stages.frames * 1000 >= sent * 999, "{} of {sent} frames arrived", stages.frames);
        stages
    }
}

/// ns that sealing a datagram with a frame of `len` bytes takes, and nothing else.
fn aead(suite: Suite, len: usize, time: Duration) -> Option<f64> {
    let mut load = Load::new(suite, len, 64 << 10)?;
    let (mut count, mut spent, start) = (0, Duration::ZERO, Instant::now());
    while start.elapsed() < time {
        let round = cpu_time();
        assert!(load.seal());
        spent += cpu_time() - round;
        count += load.count();
        assert!(load.open());
    }
    Some(spent.as_nanos() as f64 / count as f64)
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(1.0));
    let hugepages = Hugepages::Auto;
    let eal =
        Eal::start(&EalOptions { memory_mb: 256, hugepages, ..EalOptions::default() }).unwrap();
    eal.register_thread().unwrap();
    println!("{} hugepages {}", eal.version(), eal.hugepages());
    println!("ns per frame         len bundles    source    node A    node B      sink      AEAD");
    let named = |suite: &Suite| std::env::args().any(|argument| argument == suite.name());
    let all = [Suite::Clear, Suite::Aes256Gcm, Suite::Aegis128L];
    let chosen: Vec<_> = all.into_iter().filter(named).collect();
    let suites = if chosen.is_empty() { all.to_vec() } else { chosen };
    let mut number = 0;
    for suite in suites {
        for bundles in [true, false] {
            let mut world = World::new(&eal, number, suite, bundles);
            number += 1;
            for len in [60, 1400] {
                let stages = world.measure(len, time);
                let per = |time: Duration| time.as_nanos() as f64 / stages.frames as f64;
                println!(
                    "{:18} {len:5} {bundles:7} {:9.1} {:9.1} {:9.1} {:9.1} {:9.1}",
                    suite.name(),
                    per(stages.source),
                    per(stages.a),
                    per(stages.b),
                    per(stages.sink),
                    aead(suite, len, time / 4).unwrap_or(0.0),
                );
            }
        }
    }
}
