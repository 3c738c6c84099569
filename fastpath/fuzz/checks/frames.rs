//! Any bytes are a frame: it is refused, or it is what another reader of packets says that it is.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fastpath::underlay::{Classified, LocalAddress, RxChecksum, classify as read, echo_reply};

use super::{range_of, station};

const PORTS: std::ops::RangeInclusive<u16> = 26026..=26041;

/// The first byte: bits 0 and 1 the kind of segment, 2 and 3 what the port says of the checksum, 4
/// whether addresses and the IPv4 header checksum are put right. The rest is the frame.
pub fn classify(data: &[u8]) {
    let Some((&first, frame)) = data.split_first() else { return };
    let ours = station(first, 1);
    let checksum =
        [RxChecksum::Unknown, RxChecksum::MaybePartial, RxChecksum::Good, RxChecksum::Bad]
            [usize::from(first >> 2 & 3)];
    let mut frame = frame.to_vec();
    if first & 0x10 != 0 {
        mend(&mut frame, &ours);
    }
    let within = |range: &Range<usize>| {
        assert!(range.start <= range.end && range.end <= frame.len(), "{range:?}");
    };
    match read(&frame, &ours, &PORTS, checksum) {
        Classified::Datagram { remote, port, mark, payload } => {
            within(&payload);
            assert!(PORTS.contains(&port));
            assert!(ours.is_station(remote.ip()) && remote.ip() != ours.ip, "{remote}");
            let (from, to, oracle_mark, oracle_payload) = datagram(&frame, &ours, checksum);
            assert_eq!((from, to, oracle_mark), (remote, SocketAddr::new(ours.ip, port), mark));
            assert_eq!(oracle_payload, payload);
        }
        Classified::Arp(range) => {
            within(&range);
            assert!(ours.ip.is_ipv4());
            check_link(&frame, &ours);
        }
        Classified::Nd(range) => {
            within(&range);
            check_link(&frame, &ours);
            assert!(matches!(frame.get(range.start), Some(133..=137)));
            let packet = SlicedPacket::from_ethernet(&frame);
            if let Some(NetSlice::Ipv6(ip)) = packet.ok().and_then(|packet| packet.net) {
                assert_eq!(ip.header().hop_limit(), 255);
            }
        }
        Classified::Echo(range) => {
            within(&range);
            check_link(&frame, &ours);
            assert!(matches!(frame.get(range.start), Some(8 | 128)));
            if let Some(reply) = echo_reply(&frame, &ours) {
                check_echo(&frame, &reply);
            }
        }
        Classified::Foreign | Classified::NotOurs | Classified::Drop(_) => {
            assert_eq!(echo_reply(&frame, &ours), None);
        }
    }
}

/// Puts right what a mutation seldom hits.
fn mend(frame: &mut [u8], ours: &LocalAddress) {
    if let Some(to) = frame.first_chunk_mut() {
        *to = ours.mac.0;
    }
    let start = 14 + if ours.vlan.is_some() { 4 } else { 0 };
    let Some(packet) = frame.get_mut(start..) else { return };
    match ours.ip {
        IpAddr::V4(ip) => {
            if let Some(to) = packet.get_mut(16..20) {
                to.copy_from_slice(&ip.octets());
            }
            let len = usize::from(packet.first().copied().unwrap_or(0) & 0x0f) * 4;
            let Some(header) = packet.get_mut(..len).filter(|header| header.len() >= 20) else {
                return;
            };
            header[10..12].fill(0);
            let checksum = !sum(header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        IpAddr::V6(ip) => {
            if let Some(to) = packet.get_mut(24..40) {
                to.copy_from_slice(&ip.octets());
            }
        }
    }
}

/// The folded sum of RFC 1071 over an even number of bytes.
fn sum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1]));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What is for us was sent to us or to everybody, and in our VLAN.
fn check_link(frame: &[u8], ours: &LocalAddress) {
    assert!(frame[..6] == ours.mac.0 || frame[0] & 1 != 0);
    assert!(frame[6] & 1 == 0);
    if let Some(vlan) = ours.vlan {
        assert_eq!(frame[12..14], [0x81, 0]);
        assert_eq!(u16::from_be_bytes([frame[14], frame[15]]) & 0xfff, vlan);
    }
}

/// What etherparse says of a datagram: sender, receiver, mark, where its payload is.
fn datagram(
    frame: &[u8],
    ours: &LocalAddress,
    checksum: RxChecksum,
) -> (SocketAddr, SocketAddr, u8, Range<usize>) {
    check_link(frame, ours);
    assert_eq!(frame[..6], ours.mac.0);
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let vlans: Vec<u16> = packet.vlan_ids().iter().map(|id| id.value()).collect();
    assert!(vlans == ours.vlan.as_slice() || (ours.vlan.is_none() && vlans == [0]), "{vlans:?}");
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("{packet:?}") };
    let header = udp.to_header();
    let (from, to, mark, right): (IpAddr, IpAddr, u8, _) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            assert!(!ip.is_fragmenting_payload());
            // Not by etherparse's own: it leaves out the reserved flag (RFC 791 section 3.1).
            assert_eq!(sum(ip.slice()), 0xffff);
            let mark = ip.dcp().value() << 2 | ip.ecn().value();
            let sum = header.calc_checksum_ipv4(&ip.to_header(), udp.payload()).unwrap();
            (ip.source_addr().into(), ip.destination_addr().into(), mark, sum)
        }
        NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            let sum = header.calc_checksum_ipv6(&ip.to_header(), udp.payload()).unwrap();
            assert_ne!(header.checksum, 0);
            (ip.source_addr().into(), ip.destination_addr().into(), ip.traffic_class(), sum)
        }
        other => panic!("{other:?}"),
    };
    match checksum {
        _ if header.checksum == 0 => {}
        RxChecksum::Unknown => assert_eq!(header.checksum, right),
        RxChecksum::MaybePartial | RxChecksum::Good => {}
        RxChecksum::Bad => panic!("a checksum that the port calls wrong was taken"),
    }
    let from = SocketAddr::new(from, header.source_port);
    let to = SocketAddr::new(to, header.destination_port);
    (from, to, mark, range_of(frame, udp.payload()))
}

/// An answer goes back to where the request came from, with the same bytes.
fn check_echo(request: &[u8], reply: &[u8]) {
    assert_eq!((&reply[..6], &reply[6..12]), (&request[6..12], &request[..6]));
    let payload = |frame| match SlicedPacket::from_ethernet(frame).unwrap().transport {
        Some(TransportSlice::Icmpv4(icmp)) => icmp.slice()[4..].to_vec(),
        Some(TransportSlice::Icmpv6(icmp)) => icmp.slice()[4..].to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(payload(reply), payload(request));
}
