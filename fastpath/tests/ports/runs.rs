//! Runs of datagrams in one piece: `UDP_SEGMENT` and `UDP_GRO`.

use std::net::SocketAddr;
use std::time::Instant;

use encap::wire::buf::{BufPool, Burst, Received, Transmit, UplinkId};
use fastpath::interface::Interface;
use fastpath::port::{DatagramPort, TxReport};
use fastpath::uplink::UplinkErrorKind;
use fastpath::uplink::socket::UdpUplink;

use crate::cable::{cable, far_ipv4, far_ipv6, near_ipv4, near_ipv6};
use crate::uplink::uplink;
use crate::{PATIENCE, in_namespace, wait_readable};

/// A run whose last datagram is shorter.
fn run(memory: &mut Vec<u8>, remote: SocketAddr, size: usize, len: usize, mark: u8) -> Transmit {
    let start = memory.len();
    memory.extend((0..len).map(|n| (n / 251 + n + len) as u8));
    Transmit { range: start..memory.len(), segment_size: size, uplink: UplinkId(0), remote, mark }
}

/// Receives until `len` bytes came.
fn receive(uplink: &mut UdpUplink, len: usize) -> Vec<Received> {
    let deadline = Instant::now() + PATIENCE;
    let mut pool = BufPool::new(65_535, 64);
    let mut received = Burst::new();
    while received.iter().map(|run: &Received| run.buf.len()).sum::<usize>() < len {
        assert!(Instant::now() < deadline, "{:?}", uplink.counters());
        wait_readable(uplink.poll_fd().unwrap());
        uplink.receive_burst(&mut pool, &mut received).unwrap();
    }
    received
}

/// Datagrams with their marks.
fn datagrams(received: &[Received]) -> Vec<(Vec<u8>, u8)> {
    let cut = |run: &Received| {
        let bytes = run.buf.data().chunks(run.segment_size).map(<[u8]>::to_vec);
        bytes.map(|bytes| (bytes, run.mark)).collect::<Vec<_>>()
    };
    received.iter().flat_map(cut).collect()
}

fn expected(memory: &[u8], list: &[Transmit]) -> Vec<(Vec<u8>, u8)> {
    let cut = |run: &Transmit| {
        let bytes = memory[run.range.clone()].chunks(run.segment_size).map(<[u8]>::to_vec);
        bytes.map(|bytes| (bytes, run.mark)).collect::<Vec<_>>()
    };
    list.iter().flat_map(cut).collect()
}

fn sent(count: usize) -> TxReport {
    TxReport { sent: count, ..TxReport::default() }
}

/// Sends runs of many shapes and marks from `a` to `b`.
fn runs_between(a: &mut UdpUplink, b: &mut UdpUplink, remote: SocketAddr) {
    let mut memory = Vec::new();
    let mut list = Vec::new();
    // Exact, with a short end, with an end of one byte, alone; beyond 64 datagrams and 64 KiB.
    for (size, len) in [
        (1000, 5000),
        (1000, 5500),
        (999, 3 * 999 + 1),
        (800, 800),
        (100, 9 * 1000),
        (1400, 70_000),
    ] {
        list.push(run(&mut memory, remote, size, len, (len % 64) as u8 & !3));
        list.push(run(&mut memory, remote, size, len, 0));
    }
    let count = list.iter().map(Transmit::count).sum();
    assert_eq!(a.send_burst(&memory, &list), sent(count));
    let received = receive(b, memory.len());
    assert_eq!(datagrams(&received), expected(&memory, &list));
    assert!(received.len() < count / 10, "{} messages", received.len());
    assert!(received.iter().all(|run| run.remote.port() == a.local().port()));
    assert!(a.segmentation() && b.receive_coalescing());
    assert_eq!(a.counters().tx_datagrams.get(), count as u64);
    assert_eq!(b.counters().rx_datagrams.get(), count as u64);
    assert!(b.counters().rx_coalesced.get() > count as u64 / 2);
    assert_eq!(a.counters().tx_segmentation_failed.get(), 0);
}

#[test]
fn runs_cross_loopback() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        in_namespace(move || {
            let (mut a, mut b) = (uplink(address), uplink(address));
            let remote = b.local();
            runs_between(&mut a, &mut b, remote);
        });
    }
}

#[test]
fn runs_cross_a_cable() {
    in_namespace(|| {
        let far = cable(1);
        for (near_ip, far_ip) in
            [(near_ipv4(1).into(), far_ipv4(1).into()), (near_ipv6(1).into(), far_ipv6(1).into())]
        {
            let mut a = uplink(&SocketAddr::new(near_ip, 0).to_string());
            let mut b = far.run(move || uplink(&SocketAddr::new(far_ip, 0).to_string()));
            let remote = b.local();
            runs_between(&mut a, &mut b, remote);
        }
    });
}

#[test]
fn datagrams_of_a_run_above_the_mtu_get_their_own_verdict() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        in_namespace(move || {
            Interface::open("lo").unwrap().set_tap_mtu(1400).unwrap();
            let (mut a, mut b) = (uplink(address), uplink(address));
            let remote = b.local();
            let fits = 1400 - 8 - if remote.is_ipv4() { 20 } else { 40 };
            let mut memory = Vec::new();
            let list = [
                run(&mut memory, remote, fits, 5 * fits, 0),
                run(&mut memory, remote, fits + 1, 3 * (fits + 1) + 9, 0),
                run(&mut memory, remote, fits, 4 * fits, 0),
            ];
            let report = a.send_burst(&memory, &list);
            assert_eq!(report, TxReport { sent: 10, too_large: 3, ..TxReport::default() });
            let received = datagrams(&receive(&mut b, 9 * fits + 9));
            let lens: Vec<_> = received.iter().map(|(bytes, _)| bytes.len()).collect();
            assert_eq!(lens, [vec![fits; 5], vec![9], vec![fits; 4]].concat());
            assert_eq!(a.counters().tx_dropped_too_large.get(), 3);
            for _ in 0..3 {
                let error = a.poll_error().unwrap();
                assert_eq!((error.kind, error.ip_mtu), (UplinkErrorKind::TooBig, Some(1400)));
            }
            assert_eq!(a.poll_error(), None);
            assert!(a.segmentation());
        });
    }
}

#[test]
fn trouble_of_one_run_stops_no_other() {
    in_namespace(|| {
        let (mut a, mut b) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        let closed = uplink("127.0.0.1:0").local();
        let (other, nowhere) = ("[::1]:9".parse().unwrap(), "192.0.2.1:9".parse().unwrap());
        let mut memory = Vec::new();
        let remotes = [other, b.local(), closed, b.local(), nowhere, closed, b.local(), other];
        let list = remotes.map(|remote| run(&mut memory, remote, 700, 7000, 0));
        let report = a.send_burst(&memory, &list);
        assert_eq!(report, TxReport { sent: 50, failed: 30, ..TxReport::default() });
        let received = datagrams(&receive(&mut b, 3 * 7000));
        assert_eq!(
            received,
            expected(&memory, &[list[1].clone(), list[3].clone(), list[6].clone()])
        );
        assert_eq!(a.counters().tx_dropped_wrong_family.get(), 20);
        assert!(a.counters().icmp_refused.get() > 0);
        assert!(a.segmentation());
    });
}

#[test]
fn runs_beyond_the_buffer_are_dropped_and_counted() {
    in_namespace(|| {
        let (mut a, mut b) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        let mut memory = Vec::new();
        let list = [(1000, 9000), (1000, 1000)]
            .map(|(size, len)| run(&mut memory, b.local(), size, len, 0));
        assert_eq!(a.send_burst(&memory, &list), sent(10));
        let mut small = BufPool::new(2048, 64);
        let mut received = Burst::new();
        wait_readable(b.poll_fd().unwrap());
        b.receive_burst(&mut small, &mut received).unwrap();
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].buf.data(), &memory[9000..]);
        assert_eq!(b.counters().rx_dropped_truncated.get(), 1);
    });
}
