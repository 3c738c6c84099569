//! vhost-user ports, with DPDK's own virtio driver in the place of a guest.

use std::mem::ManuallyDrop;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use encap::wire::buf::{
    Checksum, FrameBurst, Offload, OutFrame, PacketBuf, Pieces, SegmentKind, Span,
};
use encap::wire::checksum::{complete_checksum, derive_partial};
use etherparse::PacketBuilder;
use fastpath::dpdk::{Eal, Pool, Port, PortOptions, RxQueue, TxOffload, TxQueue, capability};
use fastpath::port::FramePort;
use fastpath::tap::OffloadSwitches;
use fastpath::vhost::{VhostError, VhostEvent, VhostOptions, VhostPort, VhostQueue};

use crate::support::{alone, options, wait_for, with_dpdk};

pub(crate) fn socket(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tapd-test-{}-{name}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

pub(crate) struct Pair {
    pub(crate) port: VhostPort,
    pub(crate) queues: Vec<VhostQueue>,
    pub(crate) guest: Guest,
}

/// A virtio card as a guest drives it.
pub(crate) struct Guest {
    _port: Port,
    pub(crate) rx: Vec<RxQueue>,
    pub(crate) tx: Vec<TxQueue>,
}

impl Guest {
    pub(crate) fn start(eal: &Eal, pool: &Pool, socket: &Path, queues: u16, server: bool) -> Self {
        Self::open(eal, pool, socket, queues, server, false)
    }

    /// One that can wait. Its driver calls back when it has been closed, so it is not to be.
    pub(crate) fn with_interrupts(eal: &Eal, pool: &Pool, socket: &Path) -> ManuallyDrop<Self> {
        ManuallyDrop::new(Self::open(eal, pool, socket, 1, false, true))
    }

    fn open(
        eal: &Eal,
        pool: &Pool,
        socket: &Path,
        queues: u16,
        server: bool,
        interrupts: bool,
    ) -> Self {
        let device = format!(
            "net_virtio_user,path={},queues={queues},queue_size=256,server={}",
            socket.display(),
            u8::from(server)
        );
        let capabilities = capability::TX_TCP_SUM
            | capability::TX_UDP_SUM
            | capability::TX_TCP_SEG
            | capability::TX_MULTI
            | capability::RX_L4_SUM
            | capability::RX_SCATTER
            | capability::RX_LRO;
        let options = PortOptions {
            device,
            queues,
            rx_descriptors: 256,
            tx_descriptors: 256,
            mtu: None,
            interrupts,
            capabilities,
            pool: pool.clone(),
        };
        let (port, rx, tx) = Port::open(eal, &options).unwrap();
        Self { _port: port, rx, tx }
    }

    pub(crate) fn send(&mut self, queue: usize, frame: &[u8]) {
        let tx = &mut self.tx[queue];
        tx.push(frame.len()).unwrap().copy_from_slice(frame);
        assert_eq!(tx.flush(0), 1);
    }

    /// The next frame on a queue, its flags and segment size.
    pub(crate) fn receive(&mut self, queue: usize) -> (Vec<u8>, u32, Option<u16>) {
        let rx = &mut self.rx[queue];
        wait_for("a frame for the guest", || {
            let burst = rx.receive(1);
            let packet = burst.iter().next()?;
            let mut frame = vec![0; packet.len()];
            packet.copy_to(&mut frame).unwrap();
            Some((frame, packet.flags(), packet.segment_size()))
        })
    }
}

pub(crate) fn vhost_options(eal: &Eal, socket: &Path, queues: u16, workers: usize) -> VhostOptions {
    VhostOptions {
        socket: socket.to_owned(),
        client: false,
        queues,
        workers,
        offload: OffloadSwitches::ALL,
        interrupts: true,
        pool: Pool::new(eal, 2000, 2048).unwrap(),
    }
}

pub(crate) fn connected(port: &mut VhostPort) -> u64 {
    wait_for("the guest", || match port.poll() {
        Some(VhostEvent::Connected { features }) => Some(features),
        _ => None,
    })
}

pub(crate) fn pair(eal: &Eal, name: &str, queues: u16, workers: usize) -> Pair {
    let socket = socket(name);
    let (mut port, queues_of_port) =
        VhostPort::open(eal, &vhost_options(eal, &socket, queues, workers)).unwrap();
    let pool = Pool::new(eal, 2000, 2048).unwrap();
    let guest = Guest::start(eal, &pool, &socket, queues, false);
    connected(&mut port);
    if queues > 1 {
        wait_for("all queues", || {
            port.poll();
            (port.enabled_queues() == usize::from(queues)).then_some(())
        });
    }
    Pair { port, queues: queues_of_port, guest }
}

pub(crate) fn read(queue: &mut VhostQueue, burst: &mut FrameBurst) {
    burst.clear();
    wait_for("a frame of the guest", || {
        queue.rx_burst(burst).unwrap();
        (!burst.is_empty()).then_some(())
    });
}

pub(crate) fn burst() -> FrameBurst {
    FrameBurst::new(160 << 10, 64)
}

pub(crate) fn write(
    queue: &mut VhostQueue,
    frames: &[(Vec<u8>, Checksum)],
) -> fastpath::port::TxReport {
    let mut pieces = Pieces::default();
    let mut out = Vec::new();
    for (piece, (frame, checksum)) in frames.iter().enumerate() {
        pieces.0.push(PacketBuf::from_slice(frame));
        let span = Span { piece, start: 0, len: frame.len() };
        out.push(OutFrame { span, checksum: *checksum });
    }
    queue.tx_burst(&mut pieces, &out)
}

fn tcp(payload: &[u8], sequence: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 2000, sequence, 8000)
        .ack(77)
        .write(&mut frame, payload)
        .unwrap();
    // Do not fragment: what every TCP of today sends.
    frame[20] |= 0x40;
    let sum: u32 = (14..34)
        .step_by(2)
        .filter(|at| *at != 24)
        .map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame with the pseudo-header sum in the place of its TCP checksum.
fn partial(mut frame: Vec<u8>) -> (Vec<u8>, Checksum) {
    let checksum = derive_partial(&frame).unwrap();
    let len = (frame.len() - 34) as u32;
    let words =
        (26..34).step_by(2).map(|at| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]])));
    let sum = words.sum::<u32>() + 6 + len;
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
    (frame, checksum)
}

#[test]
fn frames_cross_both_ways_whole() {
    with_dpdk(|eal| {
        let Pair { mut port, mut queues, mut guest } = pair(&eal, "both", 1, 1);
        let queue = &mut queues[0];
        let mut burst = burst();
        for len in [60, 61, 1514, 1518] {
            let frame: Vec<u8> = (0..len).map(|at| at as u8).collect();
            guest.send(0, &frame);
            read(queue, &mut burst);
            let (found, bytes) = burst.get(0).unwrap();
            assert_eq!((bytes, found.offload), (&frame[..], Offload::default()));
            assert_eq!(write(queue, &[(frame.clone(), Checksum::Complete)]).sent, 1);
            assert_eq!(guest.receive(0).0, frame);
        }
        // Larger than a buffer.
        let frame: Vec<u8> = (0..9000_u32).map(|at| (at % 253) as u8).collect();
        assert_eq!(write(queue, &[(frame.clone(), Checksum::Complete)]).sent, 1);
        assert_eq!(guest.receive(0).0, frame);
        let mut writer = guest.tx[0].start(frame.len(), TxOffload::default()).unwrap();
        writer.write(&frame);
        assert_eq!(guest.tx[0].flush(0), 1);
        read(queue, &mut burst);
        assert_eq!(burst.get(0).unwrap().1, &frame[..]);
        assert!(port.poll().is_none());
        let counters = queue.counters();
        assert_eq!((counters.rx_frames.get(), counters.tx_frames.get()), (5, 5));
    });
}

#[test]
fn what_a_guest_leaves_to_its_card_is_kept() {
    with_dpdk(|eal| {
        let Pair { mut queues, mut guest, .. } = pair(&eal, "offload", 1, 1);
        let mut burst = burst();
        let offload = |flags, segment_size| TxOffload {
            flags: dpdk_sys::TX_IPV4 | dpdk_sys::TX_TCP_SUM | flags,
            l2_len: 14,
            l3_len: 20,
            l4_len: 20,
            segment_size,
        };
        // A checksum.
        let (frame, checksum) = partial(tcp(b"payload", 1));
        let mut writer = guest.tx[0].start(frame.len(), offload(0, 0)).unwrap();
        writer.write(&frame);
        assert_eq!(guest.tx[0].flush(0), 1);
        read(&mut queues[0], &mut burst);
        let (found, bytes) = burst.get(0).unwrap();
        assert_eq!((bytes, found.offload.checksum), (&frame[..], checksum));
        // A super-frame.
        let (frame, checksum) = partial(tcp(&vec![9; 20_000], 1));
        let mut writer =
            guest.tx[0].start(frame.len(), offload(dpdk_sys::TX_TCP_SEG, 1000)).unwrap();
        writer.write(&frame);
        assert_eq!(guest.tx[0].flush(0), 1);
        read(&mut queues[0], &mut burst);
        let (found, bytes) = burst.get(0).unwrap();
        assert_eq!((bytes.len(), found.offload.checksum), (frame.len(), checksum));
        let segmentation = found.offload.segmentation.unwrap();
        assert_eq!((segmentation.kind, segmentation.size), (SegmentKind::Tcp4, 1000));
        assert_eq!(&bytes[54..], &frame[54..]);
        assert_eq!(queues[0].counters().rx_super_frames.get(), 1);
    });
}

#[test]
fn segments_reach_the_guest_as_one_and_checksums_are_left_to_it() {
    with_dpdk(|eal| {
        let Pair { mut queues, mut guest, .. } = pair(&eal, "coalesce", 1, 1);
        let frames: Vec<_> =
            (0..10).map(|n| partial(tcp(&vec![n as u8; 1000], 1 + 1000 * n))).collect();
        let report = write(&mut queues[0], &frames);
        assert_eq!(report.sent, 10);
        let (bytes, flags, size) = guest.receive(0);
        assert_eq!(bytes.len(), 54 + 10_000);
        assert_eq!(size, Some(1000));
        assert_ne!(flags & dpdk_sys::RX_SUPER, 0);
        let payload: Vec<u8> = (0..10_u8).flat_map(|n| [n; 1000]).collect();
        assert_eq!(&bytes[54..], &payload[..]);
        assert_eq!(queues[0].counters().tx_super_frames.get(), 1);
        // One alone keeps its checksum partial, and it can be completed there.
        let whole = tcp(b"alone", 1);
        assert_eq!(write(&mut queues[0], &[partial(whole.clone())]).sent, 1);
        let (mut bytes, flags, _) = guest.receive(0);
        assert_ne!(flags & dpdk_sys::RX_L4_PARTIAL, 0);
        complete_checksum(&mut bytes, 34, 16).unwrap();
        assert_eq!(bytes, whole);
        // A checksum in a place that no header has is completed here.
        let mut odd = vec![0; 100];
        odd[12] = 0x88;
        let report = write(&mut queues[0], &[(odd, Checksum::Partial { start: 50, offset: 4 })]);
        assert_eq!(report.sent, 1);
        assert_eq!(guest.receive(0).1 & dpdk_sys::RX_L4_PARTIAL, 0);
        let report = write(
            &mut queues[0],
            &[
                (vec![0; 60], Checksum::Partial { start: 59, offset: 4 }),
                (vec![0; 9], Checksum::Complete),
            ],
        );
        assert_eq!(report.failed, 2);
        assert_eq!(queues[0].counters().tx_dropped_malformed.get(), 2);
    });
}

#[test]
fn a_burst_that_is_full_leaves_the_rest_for_the_next() {
    with_dpdk(|eal| {
        let Pair { mut queues, mut guest, .. } = pair(&eal, "full", 1, 1);
        for number in 0..30_u8 {
            guest.tx[0].push(100).unwrap().fill(number);
        }
        assert_eq!(guest.tx[0].flush(0), 30);
        let mut burst = FrameBurst::new(128 * 7, 64);
        let mut seen = Vec::new();
        wait_for("all frames", || {
            burst.clear();
            queues[0].rx_burst(&mut burst).unwrap();
            seen.extend(burst.iter().map(|(_, bytes)| bytes[0]));
            (seen.len() == 30).then_some(())
        });
        assert_eq!(seen, (0..30).collect::<Vec<_>>());
    });
}

#[test]
fn queues_are_shared_among_workers() {
    with_dpdk(|eal| {
        // More queues than workers, and the other way about.
        let Pair { mut queues, mut guest, port } = pair(&eal, "many", 4, 2);
        assert_eq!((queues.len(), port.enabled_queues()), (2, 4));
        let mut burst = burst();
        for number in 0..4_u8 {
            guest.send(usize::from(number), &[number; 60]);
            read(&mut queues[usize::from(number) % 2], &mut burst);
            assert_eq!(burst.get(0).unwrap().1, &[number; 60]);
        }
        for (number, queue) in queues.iter_mut().enumerate() {
            assert_eq!(write(queue, &[(vec![number as u8; 60], Checksum::Complete)]).sent, 1);
            assert_eq!(guest.receive(number).0, [number as u8; 60]);
        }
        let Pair { mut queues, mut guest, .. } = pair(&eal, "few", 1, 3);
        for (number, queue) in queues.iter_mut().enumerate() {
            assert_eq!(write(queue, &[(vec![number as u8; 60], Checksum::Complete)]).sent, 1);
            assert_eq!(guest.receive(0).0, [number as u8; 60]);
        }
        guest.send(0, &[7; 60]);
        read(&mut queues[0], &mut burst);
        assert_eq!(burst.len(), 1);
    });
}

#[test]
fn guests_come_and_go() {
    with_dpdk(|eal| {
        let socket = socket("again");
        let (mut port, mut queues) =
            VhostPort::open(&eal, &vhost_options(&eal, &socket, 1, 1)).unwrap();
        let mut burst = burst();
        queues[0].rx_burst(&mut burst).unwrap();
        assert!(burst.is_empty() && port.poll().is_none());
        let report = write(&mut queues[0], &[(vec![0; 60], Checksum::Complete)]);
        assert_eq!(report.failed, 1);
        assert_eq!(queues[0].counters().tx_dropped_no_guest.get(), 1);
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        for _ in 0..3 {
            let mut guest = Guest::start(&eal, &pool, &socket, 1, false);
            assert_ne!(connected(&mut port) & (1 << 32), 0, "virtio 1");
            guest.send(0, &[3; 60]);
            read(&mut queues[0], &mut burst);
            assert_eq!(burst.get(0).unwrap().1, &[3; 60]);
            drop(guest);
            wait_for("the guest's end", || {
                (port.poll() == Some(VhostEvent::Disconnected)).then_some(())
            });
        }
    });
}

#[test]
fn a_guest_that_returns_with_fewer_queues_gets_its_frames_by_those() {
    with_dpdk(|eal| {
        let socket = socket("fewer");
        let (mut port, mut queues) =
            VhostPort::open(&eal, &vhost_options(&eal, &socket, 2, 2)).unwrap();
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        for count in [2, 1, 2] {
            let mut guest = Guest::start(&eal, &pool, &socket, count, false);
            connected(&mut port);
            wait_for("its queues", || (port.enabled_queues() == usize::from(count)).then_some(()));
            for (number, queue) in queues.iter_mut().enumerate() {
                let frame = vec![number as u8; 60];
                assert_eq!(write(queue, &[(frame.clone(), Checksum::Complete)]).sent, 1);
                assert_eq!(guest.receive(number % usize::from(count)).0, frame);
            }
            drop(guest);
            wait_for("the guest's end", || port.poll());
            assert_eq!(port.enabled_queues(), 0);
        }
    });
}

#[test]
fn super_frames_of_tiny_segments_cannot_hold_a_worker() {
    with_dpdk(|eal| {
        let Pair { mut queues, mut guest, .. } = pair(&eal, "tiny", 1, 1);
        let mut burst = burst();
        let send = |guest: &mut Guest, payload: usize, segment_size| {
            let (frame, _) = partial(tcp(&vec![9; payload], 1));
            let offload = TxOffload {
                flags: dpdk_sys::TX_IPV4 | dpdk_sys::TX_TCP_SUM | dpdk_sys::TX_TCP_SEG,
                l2_len: 14,
                l3_len: 20,
                l4_len: 20,
                segment_size,
            };
            let mut writer = guest.tx[0].start(frame.len(), offload).unwrap();
            writer.write(&frame);
            assert_eq!(guest.tx[0].flush(0), 1);
        };
        send(&mut guest, 2000, 1);
        wait_for("the refusal", || {
            queues[0].rx_burst(&mut burst).unwrap();
            (queues[0].counters().rx_dropped_bad_offload.get() == 1).then_some(())
        });
        assert!(burst.is_empty());
        for _ in 0..8 {
            send(&mut guest, 19_200, 48);
        }
        // 400 segments each: two in a burst.
        let mut seen = Vec::new();
        wait_for("all of them", || {
            burst.clear();
            queues[0].rx_burst(&mut burst).unwrap();
            assert!(burst.len() <= 2);
            seen.push(burst.len());
            (seen.iter().sum::<usize>() == 8).then_some(())
        });
    });
}

#[test]
fn sockets_that_are_taken_are_refused_and_stale_ones_removed() {
    with_dpdk(|eal| {
        let path = socket("taken");
        let open = || VhostPort::open(&eal, &vhost_options(&eal, &path, 1, 1)).map(drop);
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(open(), Err(VhostError::InUse(_))));
        drop(listener);
        open().unwrap();
        assert!(!path.exists(), "a port takes its socket with it");
        std::fs::write(&path, b"a file").unwrap();
        assert!(matches!(open(), Err(VhostError::NoSocket(_))));
        std::fs::remove_file(&path).unwrap();
        let nowhere = vhost_options(&eal, Path::new("/nonexistent/a"), 1, 1);
        assert!(matches!(VhostPort::open(&eal, &nowhere), Err(VhostError::NoDirectory(_))));
        let bad = vhost_options(&eal, Path::new("/tmp/a,b"), 1, 1);
        assert!(matches!(VhostPort::open(&eal, &bad), Err(VhostError::BadPath(_))));
    });
}

#[test]
fn a_client_connects_when_the_socket_comes() {
    alone(|| {
        let eal = Eal::start(&options()).unwrap();
        let path = socket("client");
        let options = VhostOptions { client: true, ..vhost_options(&eal, &path, 1, 1) };
        let (mut port, mut queues) = VhostPort::open(&eal, &options).unwrap();
        assert!(port.poll().is_none());
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        let mut guest = Guest::start(&eal, &pool, &path, 1, true);
        connected(&mut port);
        guest.send(0, &[5; 60]);
        let mut burst = burst();
        read(&mut queues[0], &mut burst);
        assert_eq!(burst.get(0).unwrap().1, &[5; 60]);
    });
}
