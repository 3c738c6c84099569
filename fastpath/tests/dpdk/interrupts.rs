//! Waiting for the ports that have interrupts.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use encap::channel::hub::HubOptions;
use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::handshake::features::Features;
use encap::id::{LocalPort, NodeId, Vni};
use encap::rng::Rng;
use encap::vtep::Vtep;
use encap::vtep::config::{Limits, NetworkConfig, VtepConfig};
use encap::wire::buf::{BufPool, Burst, Checksum, FrameBurst, Received, Transmit};
use fastpath::capture::Capture;
use fastpath::dpdk::{Eal, Interrupts, Pool, RxQueue};
use fastpath::port::{Armed, DatagramCapabilities, DatagramPort, FramePort, TxReport};
use fastpath::vhost::{VhostEvent, VhostPort, VhostQueue};
use fastpath::wake::{PollSet, Waker};
use fastpath::worker::{
    Command, Notice, PULSE_QUEUE, Pulses, ToControl, Worker, WorkerCounters, WorkerHandle,
    WorkerOptions,
};

use crate::support::{open, wait_for, with_dpdk};
use crate::vhost::{Guest, burst, connected, socket, vhost_options, write};

/// How long a wake-up may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);
const PINGS: usize = 2000;

fn is_readable(fd: RawFd, timeout: Duration) -> bool {
    let mut set = PollSet::default();
    set.set([fd]);
    set.wait(timeout)
}

/// Waits until `look` has found something, by interrupts alone; gives how many there were.
fn by_interrupt(
    fd: RawFd,
    mut arm: impl FnMut() -> Armed,
    mut look: impl FnMut() -> bool,
) -> usize {
    let mut waits = 0;
    let mut pending = false;
    while !look() {
        assert!(!pending, "nothing was there");
        match arm() {
            Armed::Ready => assert!(is_readable(fd, PATIENCE), "a packet was missed"),
            Armed::Pending => pending = true,
            Armed::Impossible => panic!("no interrupts"),
        }
        waits += usize::from(!pending);
    }
    waits
}

fn guest_waits(interrupts: &Interrupts, rx: &mut [RxQueue]) -> usize {
    let queues = std::cell::RefCell::new(rx);
    by_interrupt(
        interrupts.fd(),
        || interrupts.arm(&mut queues.borrow_mut()),
        || !queues.borrow_mut()[0].receive(1).is_empty(),
    )
}

fn port_waits(queue: &mut VhostQueue, frames: &mut FrameBurst) -> usize {
    let fd = queue.poll_fd().unwrap();
    let parts = std::cell::RefCell::new((queue, frames));
    by_interrupt(
        fd,
        || parts.borrow_mut().0.arm(),
        || {
            let (queue, frames) = &mut *parts.borrow_mut();
            frames.clear();
            queue.rx_burst(frames).unwrap();
            !frames.is_empty()
        },
    )
}

#[test]
fn no_packet_is_missed_between_looking_and_waiting() {
    with_dpdk(|eal| {
        let path = socket("pingpong");
        let (mut port, mut queues) =
            VhostPort::open(&eal, &vhost_options(&eal, &path, 1, 1)).unwrap();
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        let mut guest = Guest::with_interrupts(&eal, &pool, &path);
        connected(&mut port);
        let interrupts = Interrupts::of(&mut guest.rx).unwrap();
        let pinging = std::thread::spawn(move || {
            let mut waits = 0;
            for number in 0..PINGS {
                guest.send(0, &[number as u8; 60]);
                waits += guest_waits(&interrupts, &mut guest.rx);
                // As a worker does while there is traffic; and sometimes there is none between.
                if number % 3 == 0 {
                    interrupts.disarm(&mut guest.rx);
                }
            }
            (waits, guest)
        });
        let (mut frames, mut waits) = (burst(), 0);
        for number in 0..PINGS {
            waits += port_waits(&mut queues[0], &mut frames);
            assert_eq!((frames.len(), frames.get(0).unwrap().1[0]), (1, number as u8));
            if number % 2 == 0 {
                queues[0].disarm();
            }
            assert_eq!(write(&mut queues[0], &[(vec![9; 60], Checksum::Complete)]).sent, 1);
        }
        let (guest_waits, _guest) = pinging.join().unwrap();
        // Else nobody ever slept, and the test shows nothing.
        assert!(waits > PINGS / 4 && guest_waits > PINGS / 4, "{waits} and {guest_waits} waits");
    });
}

#[test]
fn a_guest_that_comes_again_is_asked_for_its_own_interrupts() {
    with_dpdk(|eal| {
        let path = socket("anew");
        let (mut port, mut queues) =
            VhostPort::open(&eal, &vhost_options(&eal, &path, 2, 1)).unwrap();
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        let fd = queues[0].poll_fd().unwrap();
        assert!(port.port().has_interrupts());
        let mut frames = burst();
        for count in [2, 1, 2] {
            assert_eq!(queues[0].arm(), Armed::Ready);
            assert!(!is_readable(fd, Duration::ZERO), "there is nobody");
            let mut guest = Guest::start(&eal, &pool, &path, count, false);
            connected(&mut port);
            // It was armed for nobody, so this has to wake it.
            assert!(is_readable(fd, PATIENCE));
            wait_for("its queues", || (port.enabled_queues() == usize::from(count)).then_some(()));
            for queue in 0..usize::from(count) {
                assert_eq!(queues[0].arm(), Armed::Ready);
                assert!(!is_readable(fd, Duration::ZERO), "it sent nothing");
                guest.send(queue, &[5; 60]);
                port_waits(&mut queues[0], &mut frames);
                assert_eq!(frames.get(0).unwrap().1, &[5; 60]);
            }
            drop(guest);
            wait_for("its end", || (port.poll() == Some(VhostEvent::Disconnected)).then_some(()));
            assert_eq!(queues[0].arm(), Armed::Ready);
        }
    });
}

#[test]
fn ports_without_interrupts_say_so() {
    with_dpdk(|eal| {
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        for device in ["net_null", "net_ring", "net_memif,role=server,id=7,socket-abstract=yes"] {
            let (_port, rx, _tx) = open(&eal, &pool, device);
            assert!(Interrupts::of(&mut [rx]).is_none(), "{device}");
        }
        let options = fastpath::vhost::VhostOptions {
            interrupts: false,
            ..vhost_options(&eal, &socket("polled"), 1, 1)
        };
        let (port, queues) = VhostPort::open(&eal, &options).unwrap();
        assert_eq!((queues[0].poll_fd(), port.port().has_interrupts()), (None, false));
    });
}

/// An uplink that nothing comes by.
struct Silent(Option<Waker>);

impl DatagramPort for Silent {
    fn rx_burst(&mut self, _: &mut BufPool, _: &mut Burst<Received>) -> io::Result<()> {
        Ok(())
    }

    fn tx_burst(&mut self, _: &[u8], _: &[Transmit]) -> TxReport {
        TxReport::default()
    }

    fn capabilities(&self) -> DatagramCapabilities {
        DatagramCapabilities { max_udp_payload: 1472 }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.0.as_ref().map(Waker::fd)
    }
}

struct Counting(u64);

impl Rng for Counting {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (self.0 >> 33) as u8;
        }
    }
}

fn config(vni: Vni) -> VtepConfig {
    VtepConfig {
        node: NodeId::new(1).unwrap(),
        keys: vec![ClusterKey::new([5; 32])],
        suites: vec![Suite::Aes256Gcm],
        features: Features::SUPPORTED,
        peers: vec![],
        networks: vec![NetworkConfig {
            vni,
            members: vec![],
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

/// A worker that runs, with two machines' ports in one network.
struct Running {
    ports: Vec<VhostPort>,
    sockets: Vec<std::path::PathBuf>,
    handle: WorkerHandle<VhostQueue>,
    counters: Arc<WorkerCounters>,
    thread: Option<JoinHandle<io::Result<()>>>,
    _vtep: Vtep,
    _notices: Receiver<Notice>,
}

impl Running {
    fn start(eal: &Eal, name: &str, uplink: Silent) -> Self {
        let vni = Vni::new(100).unwrap();
        let mut vtep = Vtep::new(Instant::now(), config(vni), Box::new(Counting(1)));
        let (notices_in, notices) = sync_channel(16);
        let pulses = Arc::new(Pulses::new(PULSE_QUEUE));
        let control = ToControl { notices: notices_in, pulses, waker: Waker::new().unwrap() };
        let tap = Capture::new().tap();
        let options = WorkerOptions::default();
        let (mut worker, handle) =
            Worker::new(vtep.datapath(), vec![uplink], control, tap, options).unwrap();
        vtep.set_local_ports(vni, 0b110).unwrap();
        let network = vtep.tables().handles[&vni];
        let (mut ports, mut sockets) = (Vec::new(), Vec::new());
        for number in [1, 2] {
            let socket = socket(&format!("{name}-{number}"));
            let (port, mut queues) =
                VhostPort::open(eal, &vhost_options(eal, &socket, 1, 1)).unwrap();
            let (local, port_of_worker) = (LocalPort::new(number).unwrap(), queues.remove(0));
            handle.send(Command::AddPort { handle: network, vni, local, port: port_of_worker });
            ports.push(port);
            sockets.push(socket);
        }
        let counters = Arc::clone(handle.counters());
        let thread = Some(std::thread::spawn(move || worker.run()));
        Self { ports, sockets, handle, counters, thread, _vtep: vtep, _notices: notices }
    }

    fn guests(&mut self, eal: &Eal) -> [Guest; 2] {
        let pool = Pool::new(eal, 2000, 2048).unwrap();
        let guests = [0, 1].map(|at| Guest::start(eal, &pool, &self.sockets[at], 1, false));
        for port in &mut self.ports {
            connected(port);
        }
        guests
    }

    /// Waits for three waits of the worker; gives how long they took.
    fn three_waits(&self) -> Duration {
        let waits = || self.counters.waits.get();
        let (before, start) = (waits(), Instant::now());
        wait_for("the waits", || (waits() >= before + 3).then_some(()));
        start.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

/// A frame to everybody.
fn broadcast(number: u8) -> Vec<u8> {
    let mut frame = vec![number; 60];
    frame[..14].copy_from_slice(&[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame
}

#[test]
fn an_idle_worker_blocks_and_a_guests_packet_wakes_it() {
    with_dpdk(|eal| {
        let mut running = Running::start(&eal, "idle", Silent(Some(Waker::new().unwrap())));
        let quick = Duration::from_millis(1500);
        // Until it has started.
        running.three_waits();
        assert!(running.three_waits() > quick, "it waits for nobody, but not for long");
        let [mut one, mut other] = running.guests(&eal);
        // What comes of their coming.
        running.three_waits();
        assert!(running.three_waits() > quick, "idle guests wake it");
        let counters = Arc::clone(&running.counters);
        let before = counters.wakes.get();
        for number in 0..20 {
            let waits = counters.waits.get();
            one.send(0, &broadcast(number));
            assert_eq!(other.receive(0).0, broadcast(number));
            wait_for("the next wait", || (counters.waits.get() > waits).then_some(()));
        }
        let woken = counters.wakes.get() - before;
        assert!((20..=60).contains(&woken), "{woken} wake-ups for 20 packets");
        assert_eq!(counters.sleeps.get(), 0);
        drop(other);
        drop(one);
        running.three_waits();
        assert!(running.three_waits() > quick, "guests that are gone wake it");
    });
}

#[test]
fn long_sleeps_end_with_a_packet_too() {
    with_dpdk(|eal| {
        let mut running = Running::start(&eal, "asleep", Silent(None));
        let [mut one, mut other] = running.guests(&eal);
        let counters = Arc::clone(&running.counters);
        let mut woken = 0;
        for number in 0..5 {
            // Its sleeps are long when it has slept for more than a second since the last frame.
            let slept = counters.slept_us.get();
            wait_for("a quiet second", || {
                (counters.slept_us.get() > slept + 1_200_000).then_some(())
            });
            let before = counters.wakes.get();
            one.send(0, &broadcast(number));
            assert_eq!(other.receive(0).0, broadcast(number));
            woken += u64::from(counters.wakes.get() > before);
        }
        // It may just not have been asleep.
        assert!(woken >= 3, "{woken} wake-ups for 5 packets");
        assert_eq!(counters.waits.get(), 0);
    });
}
