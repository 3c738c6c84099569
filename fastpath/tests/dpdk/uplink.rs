//! DPDK uplinks, joined by shared memory (memif), and a bare port that says what it likes.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use encap::wire::buf::{BufPool, Transmits, UplinkId};
use encap::wire::ethernet::MacAddr;
use etherparse::PacketBuilder;
use fastpath::dpdk::{Eal, Pool, Port, RxQueue, TxQueue};
use fastpath::neighbor::{NeighborEvent, NeighborState};
use fastpath::port::{DatagramPort, TxReport};
use fastpath::uplink::dpdk::{DpdkEvent, DpdkPort, DpdkUplink, DpdkUplinkError, DpdkUplinkOptions};

use crate::support::{open, wait_for, with_dpdk};

const PORT: u16 = 26026;
const MAC: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 0xa]), MacAddr([2, 0, 0, 0, 0, 0xb])];

/// The devices of the two ends of a cable.
fn cable() -> [String; 2] {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("tapd-test-{}-{number}", std::process::id());
    ["server", "client"].map(|role| {
        format!("net_memif,role={role},socket=/tmp/{name},socket-abstract=yes,id={number}")
    })
}

fn addresses(v6: bool) -> [SocketAddr; 2] {
    let texts = if v6 { ["2001:db8::1", "2001:db8::2"] } else { ["198.18.0.1", "198.18.0.2"] };
    texts.map(|text| SocketAddr::new(text.parse::<IpAddr>().unwrap(), PORT))
}

fn uplink_options(device: &str, end: usize, v6: bool) -> DpdkUplinkOptions {
    DpdkUplinkOptions {
        id: UplinkId(0),
        device: device.to_owned(),
        local: addresses(v6)[end],
        prefix: if v6 { 64 } else { 24 },
        gateway: None,
        routes: Vec::new(),
        neighbors: Vec::new(),
        vlan: None,
        mac: Some(MAC[end]),
        mtu: 1500,
        exception_tap: None,
        udp_checksum: true,
        workers: 1,
        interrupts: true,
    }
}

/// One node's end.
struct End {
    port: DpdkPort,
    uplink: DpdkUplink,
    pool: BufPool,
}

impl End {
    fn new(eal: &Eal, options: &DpdkUplinkOptions) -> Self {
        let (port, mut uplinks) = DpdkPort::open(eal, options).unwrap();
        Self { port, uplink: uplinks.remove(0), pool: BufPool::new(65_535, 64) }
    }

    /// Sends datagrams to an address.
    fn send(&mut self, to: SocketAddr, datagrams: &[Vec<u8>]) -> TxReport {
        let mut out = Transmits::default();
        for datagram in datagrams {
            let start = out.memory.len();
            out.memory.extend_from_slice(datagram);
            out.extend_run(start, [(UplinkId(0), to)].into_iter(), 0xb8);
        }
        self.uplink.tx_burst(&out.memory, &out.list)
    }

    /// What came: payloads, with the sender and the mark.
    fn receive(&mut self) -> Vec<(Vec<u8>, SocketAddr, u8)> {
        let mut received = Vec::new();
        self.uplink.rx_burst(&mut self.pool, &mut received).unwrap();
        let mut all = Vec::new();
        for run in received {
            let datagrams = run.buf.data().chunks(run.segment_size);
            all.extend(datagrams.map(|bytes| (bytes.to_vec(), run.remote, run.mark)));
            self.pool.free(run.buf);
        }
        all
    }

    fn counter(&self, name: &str) -> u64 {
        let of_uplink = self.port.counters().iter().flat_map(|set| set.values());
        let refused = self.port.underlay_counters().iter().flat_map(|set| set.values());
        let neighbors = self.port.neighbor_counters().values();
        let all: Vec<_> = of_uplink.chain(refused).chain(neighbors).collect();
        assert!(all.iter().any(|(known, _)| *known == name), "no counter {name}");
        all.iter().filter(|(known, _)| *known == name).map(|(_, count)| count).sum()
    }
}

/// Two ends of a cable.
fn pair(eal: &Eal, change: impl Fn(&mut DpdkUplinkOptions), v6: bool) -> [End; 2] {
    let devices = cable();
    let ends = [0, 1].map(|end| {
        let mut options = uplink_options(&devices[end], end, v6);
        change(&mut options);
        End::new(eal, &options)
    });
    wait_for("the cable", || ends.iter().all(|end| end.port.link_is_up()).then_some(()));
    ends
}

/// Polls both ends until `to` has received `count` datagrams.
fn arrive(ends: &mut [End; 2], to: usize, count: usize) -> Vec<(Vec<u8>, SocketAddr, u8)> {
    let mut found = Vec::new();
    wait_for("the datagrams", || {
        assert!(ends[1 - to].receive().is_empty());
        found.extend(ends[to].receive());
        (found.len() >= count).then_some(())
    });
    found
}

#[test]
fn datagrams_wait_for_their_neighbour_and_arrive_in_order() {
    with_dpdk(|eal| {
        for v6 in [false, true] {
            let mut ends = pair(&eal, |_| (), v6);
            let [a, b] = addresses(v6);
            let datagrams: Vec<_> = (0..10_u8).map(|n| vec![n; 100 + usize::from(n)]).collect();
            assert_eq!(ends[0].send(b, &datagrams).sent, 10);
            assert_eq!(ends[0].counter("tx_held"), 10);
            let found = arrive(&mut ends, 1, 10);
            assert_eq!(
                found.iter().map(|(bytes, ..)| bytes.clone()).collect::<Vec<_>>(),
                datagrams
            );
            assert!(found.iter().all(|(_, from, mark)| (*from, *mark) == (a, 0xb8)));
            // Known by now, on both sides.
            let many: Vec<_> = (0..200_u32).map(|n| vec![n as u8; 1400]).collect();
            assert_eq!(ends[0].send(b, &many).sent, 200);
            let found = arrive(&mut ends, 1, 200);
            assert!(found.iter().map(|(bytes, ..)| bytes).eq(&many));
            assert_eq!(ends[0].counter("tx_held"), 10);
            assert_eq!(ends[1].counter("rx_datagrams"), 210);
            assert!(ends[1].counter("rx_messages") < 30, "equal datagrams come as runs");
            assert_eq!(ends[1].send(a, &many[..5]).sent, 5);
            arrive(&mut ends, 0, 5);
            let neighbors = ends[0].port.neighbors();
            assert_eq!(neighbors.len(), 1);
            assert_eq!((neighbors[0].ip, neighbors[0].mac), (b.ip(), Some(MAC[1])));
            assert_eq!(neighbors[0].state, NeighborState::Reachable);
            // The control thread's way.
            assert_eq!(ends[0].port.send_many(&[(b"control", b, 0)]).sent, 1);
            assert_eq!(arrive(&mut ends, 1, 1)[0].0, b"control");
        }
    });
}

#[test]
fn headers_are_as_configured() {
    with_dpdk(|eal| {
        let devices = cable();
        let mut options = uplink_options(&devices[0], 0, false);
        options.vlan = Some(77);
        options.udp_checksum = false;
        options.neighbors = vec![(addresses(false)[1].ip(), MAC[1])];
        let mut end = End::new(&eal, &options);
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        let (port, mut rx, _tx) = open(&eal, &pool, &devices[1]);
        wait_for("the cable", || {
            (port.link_is_up().unwrap() && end.port.link_is_up()).then_some(())
        });
        // The other end can send only into what this one has made ready.
        bare(&mut rx);
        assert_eq!(end.send(addresses(false)[1], &[b"\x20datagram".to_vec()]).sent, 1);
        let frame = wait_for("the datagram", || bare(&mut rx).into_iter().find(|f| f[16] == 8));
        assert_eq!(frame[..6], MAC[1].0);
        assert_eq!(frame[6..12], MAC[0].0);
        assert_eq!(frame[12..18], [0x81, 0, 0, 77, 8, 0]);
        let sliced = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
        assert_eq!((udp.source_port(), udp.destination_port(), udp.checksum()), (PORT, PORT, 0));
        assert_eq!(udp.payload(), b"\x20datagram");
        assert_eq!(frame.len(), 60);
        let too_large = end.send(addresses(false)[1], &[vec![0; 1473]]);
        assert_eq!((too_large.sent, too_large.too_large), (0, 1));
        assert_eq!(end.send(addresses(false)[1], &[vec![0; 1472]]).sent, 1);
    });
}

/// All frames that a bare port has.
fn bare(rx: &mut RxQueue) -> Vec<Vec<u8>> {
    let burst = rx.receive(64);
    burst
        .iter()
        .map(|packet| {
            let mut frame = vec![0; packet.len()];
            packet.copy_to(&mut frame).unwrap();
            frame
        })
        .collect()
}

fn send_bare(tx: &mut TxQueue, frame: &[u8]) {
    tx.push(frame.len()).unwrap().copy_from_slice(frame);
    assert_eq!(tx.flush(1000), 1);
}

/// One end of a cable, and at the other a bare port, over IPv4.
fn end_and_bare_port(eal: &Eal) -> (End, Port, RxQueue, TxQueue) {
    let devices = cable();
    let end = End::new(eal, &uplink_options(&devices[0], 0, false));
    let pool = Pool::new(eal, 2000, 2048).unwrap();
    let (port, mut rx, tx) = open(eal, &pool, &devices[1]);
    wait_for("the cable", || (port.link_is_up().unwrap() && end.port.link_is_up()).then_some(()));
    // The other end can send only into what this one has made ready.
    bare(&mut rx);
    (end, port, rx, tx)
}

#[test]
fn hostile_frames_are_counted_and_dropped() {
    with_dpdk(|eal| {
        let (mut end, _port, mut rx, mut tx) = end_and_bare_port(&eal);
        let good = |payload: &[u8]| {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(MAC[1].0, MAC[0].0)
                .ipv4([198, 18, 0, 2], [198, 18, 0, 1], 64)
                .udp(PORT, PORT)
                .write(&mut frame, payload)
                .unwrap();
            frame
        };
        let flip = |at: usize, to: u8| {
            let mut frame = good(b"payload");
            frame[at] = to;
            frame
        };
        let cases = [
            (good(b"payload")[..40].to_vec(), "rx_dropped_truncated"),
            (flip(0, 4), "rx_dropped_not_ours"),
            (flip(6, 3), "rx_dropped_bad_source_mac"),
            (flip(14, 0x65), "rx_dropped_bad_ip_header"),
            (flip(24, 0xff), "rx_dropped_bad_ip_checksum"),
            (flip(45, 0xff), "rx_dropped_bad_udp_checksum"),
            (flip(12, 0x88), "rx_dropped_foreign"),
        ];
        for (frame, counter) in cases {
            let before = end.counter(counter);
            send_bare(&mut tx, &frame);
            wait_for(counter, || {
                assert!(end.receive().is_empty());
                (end.counter(counter) == before + 1).then_some(())
            });
        }
        // Noise of all lengths, and requests without end.
        let mut seed = 1_u64;
        for round in 0..2000_usize {
            let mut frame = good(&[0; 64]);
            for _ in 0..1 + round % 7 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) as usize % frame.len();
                frame[at] = (seed >> 20) as u8;
            }
            frame.truncate(14 + (seed >> 40) as usize % (frame.len() - 13));
            send_bare(&mut tx, &frame);
            end.receive();
        }
        for station in 0..5000_u32 {
            let [_, b, c, d] = station.to_be_bytes();
            let mut arp = vec![0xff; 6];
            arp.extend([2, 1, 1, b, c, d, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 1, 1, b, c, d]);
            arp.extend([198, 18, 0, 3 + d % 250, 0, 0, 0, 0, 0, 0, 198, 18, 0, 1]);
            arp.resize(60, 0);
            send_bare(&mut tx, &arp);
            end.receive();
            bare(&mut rx);
        }
        assert!(end.port.neighbors().len() <= 1024);
        // And it still works.
        let answer = addresses(false)[1];
        send_bare(&mut tx, &good(b"after all"));
        let found = wait_for("a datagram", || end.receive().pop());
        assert_eq!((found.0.as_slice(), found.1), (&b"after all"[..], answer));
    });
}

#[test]
fn echo_requests_are_answered_with_measure() {
    with_dpdk(|eal| {
        let (mut end, _port, mut rx, mut tx) = end_and_bare_port(&eal);
        let mut request = Vec::new();
        PacketBuilder::ethernet2(MAC[1].0, MAC[0].0)
            .ipv4([198, 18, 0, 2], [198, 18, 0, 1], 64)
            .icmpv4_echo_request(7, 9)
            .write(&mut request, b"are you there?")
            .unwrap();
        send_bare(&mut tx, &request);
        let reply = wait_for("the reply", || {
            end.receive();
            bare(&mut rx).into_iter().find(|frame| frame[23] == 1 && frame[34] == 0)
        });
        assert_eq!((&reply[..6], &reply[6..12]), (&MAC[1].0[..], &MAC[0].0[..]));
        assert_eq!(&reply[42..56], b"are you there?");
        for _ in 0..500 {
            send_bare(&mut tx, &request);
            end.receive();
            bare(&mut rx);
        }
        wait_for("a limit", || {
            end.receive();
            (end.counter("rx_dropped_echo") > 100).then_some(())
        });
    });
}

#[test]
fn who_does_not_answer_is_told_and_what_waited_is_bounded() {
    with_dpdk(|eal| {
        let devices = cable();
        let mut end = End::new(&eal, &uplink_options(&devices[0], 0, false));
        let pool = Pool::new(&eal, 2000, 2048).unwrap();
        let (port, mut rx, _tx) = open(&eal, &pool, &devices[1]);
        wait_for("the cable", || {
            (port.link_is_up().unwrap() && end.port.link_is_up()).then_some(())
        });
        // The other end can send only into what this one has made ready.
        bare(&mut rx);
        let nobody = SocketAddr::from(([198, 18, 0, 9], PORT));
        let datagrams = vec![vec![0; 100]; 60];
        assert_eq!(end.send(nobody, &datagrams).sent, 60);
        assert!(end.counter("tx_dropped_held") >= 40, "few wait");
        let mut events = Vec::new();
        wait_for("the failure", || {
            end.receive();
            bare(&mut rx);
            events.extend(std::iter::from_fn(|| end.port.poll_event()));
            let failed = DpdkEvent::Neighbor(NeighborEvent::Failed(nobody.ip()));
            events.contains(&failed).then_some(())
        });
        assert!(events.contains(&DpdkEvent::Link(true)));
        let report = end.send(nobody, &datagrams);
        assert_eq!((report.sent, report.failed), (0, 60));
        assert_eq!(end.counter("tx_dropped_unreachable"), 60);
        // Not on the link, and no router.
        let far = SocketAddr::from(([203, 0, 113, 1], PORT));
        assert_eq!(end.send(far, &datagrams[..1]).failed, 1);
        assert_eq!(end.counter("tx_dropped_no_route"), 1);
    });
}

#[test]
fn vlans_and_routers() {
    with_dpdk(|eal| {
        let change = |options: &mut DpdkUplinkOptions| {
            options.vlan = Some(5);
            options.gateway = Some("198.18.0.2".parse().unwrap());
        };
        let mut ends = pair(&eal, change, false);
        let b = addresses(false)[1];
        assert_eq!(ends[0].send(b, &[vec![1; 1472]]).sent, 1);
        assert_eq!(arrive(&mut ends, 1, 1)[0].0, vec![1; 1472]);
        // By way of the router, which drops what is not for it.
        let far = SocketAddr::from(([203, 0, 113, 1], PORT));
        assert_eq!(ends[0].send(far, &[vec![2; 100]]).sent, 1);
        wait_for("the router", || {
            ends[0].receive();
            assert!(ends[1].receive().is_empty());
            (ends[1].counter("rx_dropped_wrong_destination") == 1).then_some(())
        });
    });
}

#[test]
fn a_port_that_is_too_small_says_so() {
    with_dpdk(|eal| {
        let [device, _] = cable();
        let options = DpdkUplinkOptions { mtu: 9000, ..uplink_options(&device, 0, false) };
        let error = DpdkPort::open(&eal, &options).unwrap_err();
        assert!(matches!(error, DpdkUplinkError::Mtu { wanted: 9000, .. }), "{error}");
        assert!(error.to_string().contains("net_memif"), "{error}");
    });
}
