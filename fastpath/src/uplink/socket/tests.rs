//! The socket on loopback, with a kernel that refuses runs where it is told to.

use super::*;
use encap::wire::buf::{Received, Transmit};

use crate::port::MAX_BURST;

fn uplink() -> UdpUplink {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    UdpUplink::bind(UplinkId(3), local, &UplinkOptions::default()).unwrap()
}

#[test]
fn an_address_that_is_nowhere_is_bound_only_where_that_is_asked_for() {
    for ip in ["203.0.113.77", "2001:db8::77"] {
        let local = SocketAddr::new(ip.parse().unwrap(), 0);
        let strict = UdpUplink::bind(UplinkId(0), local, &UplinkOptions::default());
        assert!(matches!(strict, Err(BindError::NotLocal(_))), "{strict:?}");
        let options = UplinkOptions { freebind: true, ..UplinkOptions::default() };
        let early = UdpUplink::bind(UplinkId(0), local, &options).unwrap();
        assert_eq!(early.local().ip(), local.ip());
    }
}

#[test]
fn nothing_leaves_while_the_gate_is_closed() {
    let (mut a, mut b) = (uplink(), uplink());
    let mut control = a.try_clone().unwrap();
    let (memory, list) = transmits(b.local(), &[(100, 5), (60, 1)]);
    a.gate().set_open(false);
    let refused = TxReport { failed: 6, ..TxReport::default() };
    assert_eq!(a.send_burst(&memory, &list), refused);
    assert_eq!(a.counters.tx_dropped_no_address.get(), 6);
    assert_eq!((a.counters.tx_datagrams.get(), a.poll_error()), (0, None));
    // A port over the same socket has the same gate.
    assert_eq!(control.send_to(b"x", b.local(), 0).failed, 1);
    assert_eq!(control.counters.tx_dropped_no_address.get(), 1);

    control.gate().set_open(true);
    assert_eq!(a.send_burst(&memory, &list), sent(6));
    assert_eq!(datagrams(&receive(&mut b, 6)).len(), 6);
}

/// Runs of `size` bytes a datagram, `count` datagrams each, all to one address.
fn transmits(to: SocketAddr, runs: &[(usize, usize)]) -> (Vec<u8>, Vec<Transmit>) {
    let mut memory = vec![0xee; 7];
    let mut list = Vec::new();
    for (index, (segment_size, count)) in runs.iter().enumerate() {
        let start = memory.len();
        memory.extend((0..segment_size * count).map(|n| (n / segment_size + index) as u8));
        list.push(Transmit {
            range: start..memory.len(),
            segment_size: *segment_size,
            uplink: UplinkId(3),
            remote: to,
            mark: 0,
        });
    }
    (memory, list)
}

fn sent(count: usize) -> TxReport {
    TxReport { sent: count, ..TxReport::default() }
}

/// Receives until `count` datagrams came: runs of them.
fn receive(uplink: &mut UdpUplink, count: usize) -> Vec<Received> {
    let mut pool = BufPool::new(65_535, 2 * MAX_BURST);
    let mut received = Burst::new();
    let start = Instant::now();
    while uplink.counters.rx_datagrams.get() < count as u64 {
        assert!(start.elapsed().as_secs() < 10, "{:?}", uplink.counters);
        uplink.receive_burst(&mut pool, &mut received).unwrap();
    }
    received
}

fn datagrams(received: &[Received]) -> Vec<Vec<u8>> {
    let cut = received.iter().flat_map(|run| run.buf.data().chunks(run.segment_size));
    cut.map(<[u8]>::to_vec).collect()
}

fn expected(memory: &[u8], list: &[Transmit]) -> Vec<Vec<u8>> {
    let runs = list.iter().flat_map(|run| memory[run.range.clone()].chunks(run.segment_size));
    runs.map(<[u8]>::to_vec).collect()
}

const RUNS: [(usize, usize); 4] = [(500, 10), (100, 1), (1200, 20), (700, 64)];
const COUNT: usize = 95;

#[test]
fn grant_is_measured_as_it_is_asked_for() {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    // Below every system's limit and above the kernel's own minimum.
    let asked = 16 << 10;
    let granted = enlarge_buffers(&socket, asked).unwrap();
    assert_eq!(granted_len(granted), asked, "{granted:?}");
}

#[test]
fn runs_leave_and_arrive_in_one_piece() {
    let (mut a, mut b) = (uplink(), uplink());
    assert!(a.segmentation() && b.receive_coalescing());
    let (memory, list) = transmits(b.local(), &RUNS);
    assert_eq!(a.send_burst(&memory, &list), sent(COUNT));
    let received = receive(&mut b, COUNT);
    assert_eq!(datagrams(&received), expected(&memory, &list));
    let sizes: Vec<_> = received.iter().map(|run| run.segment_size).collect();
    assert_eq!(sizes, [500, 100, 1200, 700]);
    assert!(received.iter().all(|run| run.remote == a.local() && run.uplink == UplinkId(3)));
    assert_eq!((a.counters.tx_datagrams.get(), a.counters.tx_segmented.get()), (95, 94));
    assert_eq!((b.counters.rx_datagrams.get(), b.counters.rx_coalesced.get()), (95, 94));
    assert_eq!(b.counters.rx_bytes.get(), a.counters.tx_bytes.get());
    assert_eq!(a.counters.tx_segmentation_failed.get(), 0);
}

#[test]
fn refused_runs_are_sent_apart_and_nothing_is_lost() {
    for errno in [libc::EIO, libc::EINVAL] {
        let (mut a, mut b) = (uplink(), uplink());
        let clone = a.try_clone().unwrap();
        a.tx.refuse_runs = Some(errno);
        let (memory, list) = transmits(b.local(), &RUNS);
        assert_eq!(a.send_burst(&memory, &list), sent(COUNT));
        let received = receive(&mut b, COUNT);
        assert_eq!(datagrams(&received), expected(&memory, &list));
        assert!(!a.segmentation() && !clone.segmentation());
        let ended = |a: &UdpUplink| {
            (a.counters.tx_segmentation_failed.get(), a.counters.tx_segmentation_ended.get())
        };
        assert_eq!((ended(&a), a.counters.tx_segmented.get()), ((1, 1), 0));
        // From then on runs are not even tried.
        assert_eq!(a.send_burst(&memory, &list), sent(COUNT));
        assert_eq!(datagrams(&receive(&mut b, 2 * COUNT)).len(), COUNT);
        assert_eq!(ended(&a), (1, 1));
    }
}

#[test]
fn kernel_that_cannot_take_the_checksums_of_a_run_is_not_asked_again() {
    let (mut a, mut b) = (uplink(), uplink());
    // Without checksums (SO_NO_CHECK, socket(7)) Linux refuses runs: EINVAL.
    set_int(a.socket(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    let (memory, list) = transmits(b.local(), &RUNS);
    assert_eq!(a.send_burst(&memory, &list), sent(COUNT));
    assert_eq!(datagrams(&receive(&mut b, COUNT)), expected(&memory, &list));
    assert!(!a.segmentation());
    assert_eq!(a.counters.tx_segmentation_failed.get(), 1);
}

#[test]
fn runs_that_are_too_large_for_the_interface_end_nothing() {
    let (mut a, mut b) = (uplink(), uplink());
    a.tx.refuse_runs = Some(libc::EMSGSIZE);
    let (memory, list) = transmits(b.local(), &RUNS);
    assert_eq!(a.send_burst(&memory, &list), sent(COUNT));
    assert_eq!(datagrams(&receive(&mut b, COUNT)), expected(&memory, &list));
    assert!(a.segmentation());
    assert_eq!(a.counters.tx_segmentation_failed.get(), 3);
    assert_eq!(a.counters.tx_segmentation_ended.get(), 0);
    // The next ones are tried as runs again.
    a.tx.refuse_runs = None;
    assert_eq!(a.send_burst(&memory, &list), sent(COUNT));
    assert_eq!(a.counters.tx_segmented.get(), 94);
}

#[test]
fn refusal_of_the_datagrams_themselves_ends_nothing() {
    let mut a = uplink();
    a.tx.refuse_runs = Some(libc::EINVAL);
    // A socket on a loopback address may not leave it: EINVAL, or no route: ENETUNREACH.
    let (memory, list) = transmits("192.0.2.1:9".parse().unwrap(), &[(500, 10)]);
    let report = a.send_burst(&memory, &list);
    assert_eq!(report, TxReport { failed: 10, ..TxReport::default() });
    assert!(a.segmentation());
    assert_eq!(a.counters.tx_segmentation_failed.get(), 1);
}

#[test]
fn switches_are_obeyed() {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let off = UplinkOptions {
        segmentation: false,
        receive_coalescing: false,
        ..UplinkOptions::default()
    };
    let mut a = UdpUplink::bind(UplinkId(3), local, &off).unwrap();
    let mut b = UdpUplink::bind(UplinkId(3), local, &off).unwrap();
    assert!(!a.segmentation() && !a.receive_coalescing());
    let (memory, list) = transmits(b.local(), &RUNS);
    assert_eq!(a.send_burst(&memory, &list), sent(COUNT));
    assert_eq!(a.counters.tx_segmented.get(), 0);
    assert_eq!(datagrams(&receive(&mut b, COUNT)), expected(&memory, &list));
    // Runs from who sends them arrive apart.
    let mut c = uplink();
    assert_eq!(c.send_burst(&memory, &list), sent(COUNT));
    assert_eq!(c.counters.tx_segmented.get(), 94);
    assert_eq!(receive(&mut b, 2 * COUNT).len(), COUNT);
    assert_eq!(b.counters.rx_coalesced.get(), 0);
}

#[test]
fn run_without_room_costs_itself_or_all_that_is_left() {
    // A full queue further down may have room for the next one, a full socket buffer has not.
    for (errno, sent, no_room) in [(libc::ENOBUFS, 1, 94), (libc::EAGAIN, 0, 95)] {
        let (mut a, b) = (uplink(), uplink());
        a.tx.refuse_runs = Some(errno);
        let (memory, list) = transmits(b.local(), &RUNS);
        let report = a.send_burst(&memory, &list);
        assert_eq!(report, TxReport { sent, no_room, ..TxReport::default() });
        assert_eq!(a.counters.tx_dropped_no_room.get(), no_room as u64);
        assert!(a.segmentation());
        assert_eq!(a.counters.tx_segmentation_failed.get(), 0);
    }
}

#[test]
fn kernel_without_runs_is_noticed() {
    let udp = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    assert!(can_segment(&udp) && coalesce(&udp));
    // TCP knows these options as little as an old kernel's UDP: ENOPROTOOPT.
    let tcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    assert!(!can_segment(&tcp) && !coalesce(&tcp));
}
