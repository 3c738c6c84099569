//! UDP uplinks.

use std::net::SocketAddr;
use std::time::Instant;

use encap::wire::buf::{BufPool, Burst, Received, Transmit, UplinkId};
use fastpath::error::BindError;
use fastpath::interface::Interface;
use fastpath::port::{DatagramPort, MAX_BURST, TxReport};
use fastpath::uplink::socket::UdpUplink;
use fastpath::uplink::steering::bind_group;
use fastpath::uplink::{UplinkErrorKind, UplinkOptions};

use crate::cable::{cable, far_ipv4, near_ipv4};
use crate::{PATIENCE, in_namespace, wait_readable};

pub(crate) fn uplink(address: &str) -> UdpUplink {
    UdpUplink::bind(UplinkId(0), address.parse().unwrap(), &UplinkOptions::default()).unwrap()
}

/// A datagram on its way out, or as it came.
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    pub(crate) remote: SocketAddr,
    pub(crate) mark: u8,
}

pub(crate) fn datagram(payload: &[u8], remote: SocketAddr) -> Datagram {
    Datagram { bytes: payload.to_vec(), remote, mark: 0 }
}

/// Sends each by itself, all in one burst.
pub(crate) fn send(uplink: &mut UdpUplink, datagrams: &[Datagram]) -> TxReport {
    let mut memory = Vec::new();
    let transmit = |datagram: &Datagram| {
        let start = memory.len();
        memory.extend(&datagram.bytes);
        Transmit {
            range: start..memory.len(),
            segment_size: datagram.bytes.len(),
            uplink: uplink.id(),
            remote: datagram.remote,
            mark: datagram.mark,
        }
    };
    let transmits: Vec<_> = datagrams.iter().map(transmit).collect();
    uplink.tx_burst(&memory, &transmits)
}

/// Receives what there is, runs cut into datagrams.
pub(crate) fn receive_now(uplink: &mut UdpUplink, pool: &mut BufPool) -> Vec<Datagram> {
    let mut received = Burst::new();
    uplink.rx_burst(pool, &mut received).unwrap();
    let mut datagrams = Vec::new();
    for Received { buf, segment_size, uplink: by, remote, mark } in received {
        assert_eq!(by, uplink.id());
        let count = buf.len().div_ceil(segment_size).max(1);
        for index in 0..count {
            let end = buf.len().min((index + 1) * segment_size);
            let bytes = buf.data()[index * segment_size..end].to_vec();
            datagrams.push(Datagram { bytes, remote, mark });
        }
        pool.free(buf);
    }
    datagrams
}

/// Receives `count` datagrams.
pub(crate) fn receive(uplink: &mut UdpUplink, pool: &mut BufPool, count: usize) -> Vec<Datagram> {
    let deadline = Instant::now() + PATIENCE;
    let mut datagrams = Vec::new();
    while datagrams.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} datagrams came", datagrams.len());
        wait_readable(uplink.poll_fd().unwrap());
        datagrams.extend(receive_now(uplink, pool));
    }
    datagrams
}

fn batch_over(address: &str) {
    let (mut a, mut b) = (uplink(address), uplink(address));
    assert!(a.granted_buffers().receive >= 8 << 20, "{:?}", a.granted_buffers());
    let mut pool = BufPool::new(2048, 2 * MAX_BURST);
    let payload = |n: usize| vec![n as u8; 1 + n * 7];
    let count = 2 * MAX_BURST + 5;
    let burst: Vec<_> = (0..count).map(|n| datagram(&payload(n), b.local())).collect();
    let report = send(&mut a, &burst);
    assert_eq!(report, TxReport { sent: count, ..TxReport::default() });
    let received = receive(&mut b, &mut pool, count);
    assert_eq!(received.len(), count);
    for (n, got) in received.iter().enumerate() {
        assert_eq!(got.bytes, payload(n));
        assert_eq!(got.remote, a.local());
    }
    let bytes: u64 = (0..count).map(|n| payload(n).len() as u64).sum();
    assert_eq!(a.counters().tx_datagrams.get(), count as u64);
    assert_eq!(a.counters().tx_bytes.get(), bytes);
    assert_eq!(b.counters().rx_datagrams.get(), count as u64);
    assert_eq!(b.counters().rx_bytes.get(), bytes);

    // A clone sends from the same address.
    let mut clone = b.try_clone().unwrap();
    assert_eq!(clone.send_to(b"from the clone", a.local(), 0).sent, 1);
    let got = receive(&mut a, &mut pool, 1);
    assert_eq!((got[0].bytes.as_slice(), got[0].remote), (b"from the clone".as_slice(), b.local()));
    assert_eq!(clone.counters().tx_datagrams.get(), 1);

    assert!(receive_now(&mut b, &mut pool).is_empty() && b.poll_error().is_none());
}

#[test]
fn bursts_of_datagrams_cross_ipv4() {
    in_namespace(|| batch_over("127.0.0.1:0"));
}

#[test]
fn bursts_of_datagrams_cross_ipv6() {
    in_namespace(|| batch_over("[::1]:0"));
}

fn marks_over(address: &str) {
    let (mut a, mut b) = (uplink(address), uplink(address));
    let mut pool = BufPool::new(2048, 2 * MAX_BURST);
    // Every DSCP with every ECN, and unmarked ones between.
    let marks: Vec<u8> = (0..=255).flat_map(|mark| [mark, 0]).collect();
    let burst: Vec<_> =
        marks.iter().map(|&mark| Datagram { mark, ..datagram(&[mark], b.local()) }).collect();
    let report = send(&mut a, &burst);
    assert_eq!(report, TxReport { sent: marks.len(), ..TxReport::default() });
    let received = receive(&mut b, &mut pool, marks.len());
    let got: Vec<_> = received.iter().map(|datagram| datagram.mark).collect();
    assert_eq!(got, marks);
    assert!(received.iter().all(|datagram| datagram.bytes == [datagram.mark]));

    // From the control thread: one by one, and a round to many at once.
    let mut control = b.try_clone().unwrap();
    assert_eq!(control.send_to(b"one", a.local(), 0xba).sent, 1);
    let mut others = [uplink(address), uplink(address)];
    let rounds = MAX_BURST;
    let remotes = [a.local(), others[0].local(), others[1].local()];
    let items: Vec<_> = (0..rounds)
        .flat_map(|n| remotes.map(|remote| (b"round".as_slice(), remote, n as u8)))
        .collect();
    let report = control.send_many(&items);
    assert_eq!(report, TxReport { sent: 3 * rounds, ..TxReport::default() });
    assert_eq!(control.counters().tx_datagrams.get(), 1 + 3 * rounds as u64);
    let expected: Vec<_> = (0..rounds).map(|n| n as u8).collect();
    let of_a = receive(&mut a, &mut pool, 1 + rounds);
    assert_eq!((of_a[0].bytes.as_slice(), of_a[0].mark), (b"one".as_slice(), 0xba));
    assert!(of_a[1..].iter().map(|datagram| datagram.mark).eq(expected.iter().copied()));
    for other in &mut others {
        let got = receive(other, &mut pool, rounds);
        assert!(got.iter().map(|datagram| datagram.mark).eq(expected.iter().copied()));
        assert!(got.iter().all(|datagram| datagram.remote == b.local()));
    }
}

#[test]
fn marks_cross_ipv4() {
    in_namespace(|| marks_over("127.0.0.1:0"));
}

#[test]
fn marks_cross_ipv6() {
    in_namespace(|| marks_over("[::1]:0"));
}

/// Sends to `b` with datagrams to a closed port between; all to `b` must arrive.
fn refused_among_others(address: &str) {
    let (mut a, mut b) = (uplink(address), uplink(address));
    let closed = uplink(address).local();
    let mut pool = BufPool::new(2048, 2 * MAX_BURST);
    let rounds = 20;
    let per_round = MAX_BURST / 2;
    for _ in 0..rounds {
        let pairs = (0..per_round).flat_map(|_| [closed, b.local()]);
        let burst: Vec<_> = pairs.map(|remote| datagram(b"payload", remote)).collect();
        let report = send(&mut a, &burst);
        assert_eq!(report, TxReport { sent: MAX_BURST, ..TxReport::default() });
        assert_eq!(receive(&mut b, &mut pool, per_round).len(), per_round);
    }
    // Loopback answers within the call: all answers are in by now. Replies still get through.
    assert_eq!(b.send_to(b"reply", a.local(), 0).sent, 1);
    assert_eq!(receive(&mut a, &mut pool, 1)[0].bytes, b"reply");
    assert!(a.counters().icmp_refused.get() > 0);
    let error = a.poll_error().unwrap();
    assert_eq!((error.remote, error.kind), (closed, UplinkErrorKind::Refused));
    assert_eq!((error.errno, error.local), (libc::ECONNREFUSED, false));
    while let Some(error) = a.poll_error() {
        assert_eq!(error.remote, closed);
    }
}

#[test]
fn refused_datagrams_are_attributed_and_stop_nothing_ipv4() {
    in_namespace(|| refused_among_others("127.0.0.1:0"));
}

#[test]
fn refused_datagrams_are_attributed_and_stop_nothing_ipv6() {
    in_namespace(|| refused_among_others("[::1]:0"));
}

fn too_large_among_others(address: &str) {
    let lo = Interface::open("lo").unwrap();
    lo.set_tap_mtu(1400).unwrap();
    let (mut a, mut b) = (uplink(address), uplink(address));
    let mut pool = BufPool::new(2048, 2 * MAX_BURST);
    let remote = b.local();
    let max_udp_payload = 1400 - 8 - if remote.is_ipv4() { 20 } else { 40 };
    let sizes = [10, max_udp_payload + 1, 20, max_udp_payload, 2000, 30];
    let burst: Vec<_> = sizes.iter().map(|&n| datagram(&vec![1; n], remote)).collect();
    let report = send(&mut a, &burst);
    assert_eq!(report, TxReport { sent: 4, too_large: 2, ..TxReport::default() });
    assert_eq!(a.counters().tx_dropped_too_large.get(), 2);
    let received = receive(&mut b, &mut pool, 4);
    let lens: Vec<_> = received.iter().map(|datagram| datagram.bytes.len()).collect();
    assert_eq!(lens, [10, 20, max_udp_payload, 30]);
    for _ in 0..2 {
        let error = a.poll_error().unwrap();
        assert_eq!((error.remote, error.kind), (remote, UplinkErrorKind::TooBig));
        assert_eq!((error.ip_mtu, error.local), (Some(1400), true));
    }
    assert_eq!(a.poll_error(), None);
}

#[test]
fn datagrams_above_the_mtu_are_counted_and_stop_nothing_ipv4() {
    in_namespace(|| too_large_among_others("127.0.0.1:0"));
}

#[test]
fn datagrams_above_the_mtu_are_counted_and_stop_nothing_ipv6() {
    in_namespace(|| {
        // IPv6 leaves an interface whose MTU falls below 1280, and 1400 is above.
        too_large_among_others("[::1]:0");
    });
}

#[test]
fn no_way_there_and_the_wrong_family_stop_nothing() {
    in_namespace(|| {
        let (mut a, mut b) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        let mut pool = BufPool::new(2048, 2 * MAX_BURST);
        let nowhere = "192.0.2.1:9".parse().unwrap();
        let other = "[::1]:9".parse().unwrap();
        let remotes = [other, b.local(), nowhere, b.local(), other];
        let burst: Vec<_> = remotes.map(|remote| datagram(b"payload", remote)).into();
        let report = send(&mut a, &burst);
        assert_eq!(report, TxReport { sent: 2, failed: 3, ..TxReport::default() });
        assert_eq!(receive(&mut b, &mut pool, 2).len(), 2);
        assert_eq!(a.counters().tx_dropped_wrong_family.get(), 2);
        // A socket on a loopback address may not leave it: EINVAL, or no route: ENETUNREACH.
        let counters = a.counters();
        let lost = counters.tx_dropped_unreachable.get() + counters.tx_dropped_refused.get();
        assert_eq!(lost, 1);
        assert_eq!(a.poll_error().unwrap().remote, nowhere);
    });
}

#[test]
fn truncated_datagrams_are_dropped_and_counted() {
    in_namespace(|| {
        let (mut a, mut b) = (uplink("127.0.0.1:0"), uplink("127.0.0.1:0"));
        let mut small = BufPool::new(100, 2 * MAX_BURST);
        let largest = small.alloc().spare_mut().len();
        for len in [largest + 1, largest, 2000, 0, 3] {
            assert_eq!(a.send_to(&vec![7; len], b.local(), 0).sent, 1);
        }
        let received = receive(&mut b, &mut small, 3);
        let lens: Vec<_> = received.iter().map(|datagram| datagram.bytes.len()).collect();
        assert_eq!(lens, [largest, 0, 3]);
        assert_eq!(b.counters().rx_dropped_truncated.get(), 2);
    });
}

#[test]
fn what_the_kernel_drops_is_counted() {
    in_namespace(|| {
        let narrow = UplinkOptions { buffer_len: 4096, ..UplinkOptions::default() };
        let address = "127.0.0.1:0".parse().unwrap();
        let mut b = UdpUplink::bind(UplinkId(0), address, &narrow).unwrap();
        let mut a = uplink("127.0.0.1:0");
        let mut pool = BufPool::new(2048, 2 * MAX_BURST);
        let sent = 500;
        for _ in 0..sent {
            assert_eq!(a.send_to(&[7; 1000], b.local(), 0).sent, 1);
        }
        let mut received = receive(&mut b, &mut pool, 1);
        loop {
            let more = receive_now(&mut b, &mut pool);
            if more.is_empty() {
                break;
            }
            received.extend(more);
        }
        // The count travels with the next datagram that is queued after the drops, and its mark.
        assert_eq!(a.send_to(b"last", b.local(), 0x2e).sent, 1);
        assert_eq!(receive(&mut b, &mut pool, 1)[0].mark, 0x2e);
        assert_eq!(b.counters().rx_dropped_kernel.get(), (sent - received.len()) as u64);
        assert!(b.counters().rx_dropped_kernel.get() > 0);
    });
}

#[test]
fn bind_says_why_not() {
    in_namespace(|| {
        let first = uplink("127.0.0.1:26026");
        let bind = |address: &str, reuse_port| {
            let options = UplinkOptions { reuse_port, ..UplinkOptions::default() };
            UdpUplink::bind(UplinkId(0), address.parse().unwrap(), &options)
        };
        for reuse_port in [false, true] {
            let error = bind("127.0.0.1:26026", reuse_port).unwrap_err();
            assert!(matches!(error, BindError::InUse(at) if at == first.local()), "{error:?}");
            assert!(error.to_string().contains("127.0.0.1:26026 is in use"));
        }
        let error = bind("192.0.2.1:26026", false).unwrap_err();
        assert!(matches!(error, BindError::NotLocal(_)), "{error:?}");
        // IPv6 takes only its own half of the port.
        bind("[::]:26026", false).unwrap();
    });
}

#[test]
fn every_worker_sends_from_a_port_of_its_own() {
    in_namespace(|| {
        let taken = uplink("127.0.0.1:26028");
        let options = UplinkOptions { source_ports: true, ..UplinkOptions::default() };
        let local = "127.0.0.1:26026".parse().unwrap();
        let mut group = bind_group(UplinkId(0), local, 4, &options).unwrap();
        let mut there = uplink("127.0.0.1:0");
        let mut pool = BufPool::new(65_535, 32);
        // The third worker's port is taken: it sends from the base port.
        for (member, port) in group.iter_mut().zip([26026, 26027, 26026, 26029]) {
            assert_eq!(member.local(), local);
            assert_eq!(member.source().unwrap().port(), port);
            assert_eq!(member.send_to(b"hello", there.local(), 0).sent, 1);
            let mut received = Burst::new();
            wait_readable(there.poll_fd().unwrap());
            there.rx_burst(&mut pool, &mut received).unwrap();
            assert_eq!(received[0].remote.port(), port);
        }
        drop(taken);
        // What the network says of a datagram from such a port is heard.
        let closed = there.local();
        drop(there);
        let worker = &mut group[1];
        let deadline = Instant::now() + PATIENCE;
        let error = loop {
            assert!(Instant::now() < deadline, "no error came");
            worker.send_to(b"hello", closed, 0);
            if let Some(error) = worker.poll_error() {
                break error;
            }
        };
        assert_eq!((error.remote, error.kind), (closed, UplinkErrorKind::Refused));
    });
}

/// Binds a group to `address` and sends to its port at `at`, from there.
fn steered(address: &str, at: &str, options: &UplinkOptions) {
    let workers = 3;
    let mut group = bind_group(UplinkId(0), address.parse().unwrap(), workers, options).unwrap();
    let local = group[0].local();
    assert!(group.iter().all(|member| member.local() == local));
    let error = bind_group(UplinkId(0), local, workers, options).unwrap_err();
    assert!(matches!(error, BindError::InUse(_)), "{error:?}");

    // Each case: a datagram and the worker that must get it.
    let mut cases: Vec<(Vec<u8>, usize)> = vec![
        (vec![], 0),
        (vec![0x40, 0, 0], 0),
        (vec![0x20, 0, 0, 0x10, 1], 0),
        (vec![0x3f, 0, 0, 0x2f, 2], 0),
    ];
    for (format, lane) in
        [0x40, 0x7f, 0x80, 0xbf].iter().flat_map(|f| (0..=255).map(move |l| (f, l)))
    {
        let bucket = usize::from(lane >> 4);
        let worker = if bucket == 15 { 0 } else { bucket % workers };
        cases.push((vec![*format, 1, 2, lane, 9], worker));
    }
    // Several senders: the hash of the addresses must not matter.
    let mut senders = [uplink(at), uplink(at), uplink(at)];
    let local = SocketAddr::new(senders[0].local().ip(), local.port());
    let mut expected: Vec<Vec<Vec<u8>>> = vec![Vec::new(); workers];
    for (n, (payload, worker)) in cases.into_iter().enumerate() {
        let sender = &mut senders[n % 3];
        assert_eq!(sender.send_to(&payload, local, 0).sent, 1);
        expected[worker].push(payload);
    }
    let mut pool = BufPool::new(2048, 2 * MAX_BURST);
    for (member, expected) in group.iter_mut().zip(expected) {
        let received = receive(member, &mut pool, expected.len());
        let payloads: Vec<_> = received.iter().map(|d| d.bytes.clone()).collect();
        assert_eq!(payloads, expected);
    }
}

#[test]
fn lanes_steer_to_their_workers_ipv4() {
    in_namespace(|| steered("127.0.0.1:0", "127.0.0.1:0", &UplinkOptions::default()));
}

#[test]
fn lanes_steer_to_their_workers_ipv6() {
    in_namespace(|| steered("[::1]:0", "[::1]:0", &UplinkOptions::default()));
}

#[test]
fn lanes_steer_on_the_wildcard_address_of_an_interface() {
    in_namespace(|| {
        let options = on_interface("lo");
        steered("0.0.0.0:0", "127.0.0.1:0", &options);
        steered("[::]:0", "[::1]:0", &options);
    });
}

fn on_interface(name: &str) -> UplinkOptions {
    UplinkOptions { interface: Some(name.to_owned()), ..UplinkOptions::default() }
}

#[test]
fn uplinks_of_two_interfaces_share_a_port_and_nothing_else() {
    in_namespace(|| {
        let far = cable(1);
        let any = "0.0.0.0:0".parse().unwrap();
        let mut here = bind_group(UplinkId(0), any, 2, &on_interface("near1")).unwrap();
        let local = here[0].local();
        assert_ne!(local.port(), 0);
        assert!(here.iter().all(|member| member.local() == local));
        let mut lo = bind_group(UplinkId(1), local, 2, &on_interface("lo")).unwrap();
        let error = bind_group(UplinkId(2), local, 2, &on_interface("lo")).unwrap_err();
        assert!(matches!(error, BindError::InUse(at) if at == local), "{error:?}");

        let mut pool = BufPool::new(2048, 2 * MAX_BURST);
        let near = SocketAddr::new(near_ipv4(1).into(), local.port());
        let from_far = far.run(move || {
            let mut there = uplink(&SocketAddr::new(far_ipv4(1).into(), 0).to_string());
            assert_eq!(there.send_to(b"by cable", near, 0).sent, 1);
            there.local()
        });
        let got = receive(&mut here[0], &mut pool, 1);
        assert_eq!((got[0].bytes.as_slice(), got[0].remote), (b"by cable".as_slice(), from_far));
        // Not to the address of `near1`: the kernel takes that for having come by `near1`.
        let mut within = uplink("127.0.0.1:0");
        let to_lo = SocketAddr::new(within.local().ip(), local.port());
        assert_eq!(within.send_to(b"by lo", to_lo, 0).sent, 1);
        assert_eq!(receive(&mut lo[0], &mut pool, 1)[0].bytes, b"by lo");
        for member in here.iter_mut().chain(&mut lo) {
            assert!(receive_now(member, &mut pool).is_empty());
        }
    });
}

#[test]
fn uplinks_of_no_interface_are_refused() {
    in_namespace(|| {
        for name in ["no-such-if", "a-name-beyond-15-bytes", ""] {
            let any = "0.0.0.0:0".parse().unwrap();
            let error = bind_group(UplinkId(0), any, 1, &on_interface(name)).unwrap_err();
            let BindError::NoInterface { interface, .. } = &error else { panic!("{error:?}") };
            assert_eq!(interface, name);
        }
    });
}
