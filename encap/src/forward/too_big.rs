//! The ICMP error that goes back into the tap when a packet is too large for the path.
//!
//! RFC 792 type 3 code 4 with the MTU of RFC 1191, and RFC 4443 section 3.2. The overlay is one
//! Ethernet segment without a router that could speak, so the error comes in the name of the
//! destination; Linux does the same for bridged tunnels. The frame itself is carried all the
//! same, in fragments: the error only makes the next ones fit.
//!
//! Off the hot path: an error is rare, and [`TooBigLimiter`] keeps it so.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};

use crate::wire::ethernet::EthernetView;
use crate::wire::inner_ip::{InnerIp, protocol};

/// Largest ICMPv4 error with its IP header, in bytes (RFC 1812 section 4.3.2.3).
const IPV4_MAX_ERROR_LEN: usize = 576;
/// Largest ICMPv6 error with its IP header, in bytes (RFC 4443 section 2.4).
const IPV6_MAX_ERROR_LEN: usize = 1280;
/// IPv4 and ICMP headers, in bytes.
const IPV4_HEADERS_LEN: usize = 28;
/// IPv6 and ICMPv6 headers, in bytes.
const IPV6_HEADERS_LEN: usize = 48;
/// No IPv6 link is smaller (RFC 8200 section 5), and hosts refuse to hear otherwise.
const IPV6_MIN_MTU: u32 = 1280;
const HOP_LIMIT: u8 = 64;
/// First byte behind the two MAC addresses: the tags and the EtherType.
const ETHERNET_TYPE_OFFSET: usize = 12;

/// The frame that tells the sender of `frame` that its packets may have at most `mtu` bytes with
/// their IP header (IPv6: at least 1280 is said).
///
/// None for what must not be answered: no IP packet, or a cut one; IPv4 that may be fragmented;
/// an ICMP error or redirect; a later fragment; a source that is no single host; a destination,
/// MAC or IP, that is a group or nobody.
#[must_use]
pub fn build(frame: &[u8], mtu: u32) -> Option<Vec<u8>> {
    let ethernet = EthernetView::new(frame).ok()?;
    let ip = InnerIp::find(frame)?;
    if !may_be_answered(frame, &ethernet, &ip) {
        return None;
    }
    let packet = frame.get(ip.l3_offset..)?;
    let packet = packet.get(..ip.total_len).unwrap_or(packet);
    let mut reply = Vec::with_capacity(ip.l3_offset + IPV6_MAX_ERROR_LEN);
    reply.extend_from_slice(&ethernet.source().0);
    reply.extend_from_slice(&ethernet.destination().0);
    reply.extend_from_slice(frame.get(ETHERNET_TYPE_OFFSET..ip.l3_offset)?);
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let next_hop_mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
            let error = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
            let quote = quote(packet, IPV4_MAX_ERROR_LEN - IPV4_HEADERS_LEN);
            PacketBuilder::ipv4(dst.octets(), src.octets(), HOP_LIMIT)
                .icmpv4(Icmpv4Type::DestinationUnreachable(error))
                .write(&mut reply, quote)
                .ok()?;
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mtu = mtu.max(IPV6_MIN_MTU);
            let quote = quote(packet, IPV6_MAX_ERROR_LEN - IPV6_HEADERS_LEN);
            PacketBuilder::ipv6(dst.octets(), src.octets(), HOP_LIMIT)
                .icmpv6(Icmpv6Type::PacketTooBig { mtu })
                .write(&mut reply, quote)
                .ok()?;
        }
        _ => return None,
    }
    Some(reply)
}

fn quote(packet: &[u8], max_len: usize) -> &[u8] {
    packet.get(..max_len).unwrap_or(packet)
}

/// RFC 1122 section 3.2.2 and RFC 4443 section 2.4 (e). RFC 4443 would allow an error about a
/// group destination; it would have to come in the name of the group.
fn may_be_answered(frame: &[u8], ethernet: &EthernetView<'_>, ip: &InnerIp) -> bool {
    let Some(l4_offset) = ip.l4_offset else { return false };
    let of_one_station = !ethernet.destination().is_multicast()
        && !ethernet.source().is_multicast()
        && !ethernet.source().is_zero();
    let whole = l4_offset <= ip.l3_offset + ip.total_len;
    of_one_station
        && whole
        && ip.dont_fragment
        && is_one_host(ip.src)
        && is_one_host(ip.dst)
        && !is_icmp_error(frame, ip, l4_offset)
}

fn is_one_host(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !ip.is_loopback() && !is_broadcast
}

/// Whether it is an ICMP error or redirect, or ICMP that is cut before its type.
fn is_icmp_error(frame: &[u8], ip: &InnerIp, l4_offset: usize) -> bool {
    let icmp_type = frame.get(l4_offset).copied();
    match ip.proto {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        protocol::ICMP => icmp_type.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        protocol::ICMPV6 => icmp_type.is_none_or(|kind| kind < 128 || kind == 137),
        _ => false,
    }
}

/// Pairs of hosts that are remembered; the one that came first gives way.
const MAX_PAIRS: usize = 1024;
/// At most one error in so many ms to each pair: ten in a second.
const INTERVAL_MS: u64 = 100;

/// Keeps errors rare: each pair of hosts gets one at once, and then at most ten in a second.
#[derive(Debug)]
pub struct TooBigLimiter {
    last_ms: HashMap<(IpAddr, IpAddr), u64>,
    /// The keys of `last_ms`, as they came.
    pairs: VecDeque<(IpAddr, IpAddr)>,
}

impl Default for TooBigLimiter {
    fn default() -> Self {
        Self {
            last_ms: HashMap::with_capacity(MAX_PAIRS),
            pairs: VecDeque::with_capacity(MAX_PAIRS),
        }
    }
}

impl TooBigLimiter {
    /// A limiter that remembers nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an error about a packet from `src` to `dst` may be sent now; if so, it counts as
    /// sent. `now_ms` is milliseconds since any moment, never going back.
    pub fn admits(&mut self, src: IpAddr, dst: IpAddr, now_ms: u64) -> bool {
        let pair = (src, dst);
        if let Some(last_ms) = self.last_ms.get_mut(&pair) {
            let due = now_ms.saturating_sub(*last_ms) >= INTERVAL_MS;
            if due {
                *last_ms = now_ms;
            }
            return due;
        }
        if self.pairs.len() >= MAX_PAIRS
            && let Some(oldest) = self.pairs.pop_front()
        {
            self.last_ms.remove(&oldest);
        }
        self.pairs.push_back(pair);
        self.last_ms.insert(pair, now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{LinkHeader, NetHeaders, PacketHeaders, TransportHeader, VlanHeader, icmpv6};
    use proptest::prelude::*;

    const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const V6_HERE: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const V6_THERE: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    /// A UDP frame from here to there, with DF.
    fn udp(ipv6: bool, tags: usize, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(HERE, THERE);
        let vlan = |id: u16| id.try_into().unwrap();
        let mut bytes = Vec::new();
        let builder = match (ipv6, tags) {
            (false, 0) => builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            (false, 1) => builder.single_vlan(vlan(7)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            (false, _) => {
                builder.double_vlan(vlan(7), vlan(8)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            }
            (true, 0) => builder.ipv6(V6_HERE, V6_THERE, 64),
            (true, 1) => builder.single_vlan(vlan(7)).ipv6(V6_HERE, V6_THERE, 64),
            (true, _) => builder.double_vlan(vlan(7), vlan(8)).ipv6(V6_HERE, V6_THERE, 64),
        };
        builder.udp(4000, 5000).write(&mut bytes, payload).unwrap();
        bytes
    }

    #[test]
    fn ipv4_error_is_what_a_host_expects() {
        for (tags, len) in [(0, 2000), (1, 2000), (2, 100)] {
            let frame = udp(false, tags, &vec![7; len]);
            let reply = build(&frame, 1432).unwrap();
            let headers = PacketHeaders::from_ethernet_slice(&reply).unwrap();
            let Some(LinkHeader::Ethernet2(ethernet)) = &headers.link else {
                panic!("no Ethernet")
            };
            assert_eq!((ethernet.source, ethernet.destination), (THERE, HERE));
            match (tags, headers.vlan()) {
                (0, None) => {}
                (1, Some(VlanHeader::Single(tag))) => assert_eq!(tag.vlan_id.value(), 7),
                (2, Some(VlanHeader::Double(tags))) => {
                    assert_eq!((tags.outer.vlan_id.value(), tags.inner.vlan_id.value()), (7, 8));
                }
                other => panic!("{other:?}"),
            }
            let Some(NetHeaders::Ipv4(ip, _)) = headers.net else { panic!("no IPv4") };
            assert_eq!((ip.source, ip.destination), ([10, 0, 0, 2], [10, 0, 0, 1]));
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            let l3_offset = 14 + 4 * tags;
            assert_eq!(usize::from(ip.total_len), reply.len() - l3_offset);
            assert_eq!(usize::from(ip.total_len), (28 + 28 + len).min(576));
            let Some(TransportHeader::Icmpv4(icmp)) = headers.transport else { panic!("no ICMP") };
            let error = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1432 };
            assert_eq!(icmp.icmp_type, Icmpv4Type::DestinationUnreachable(error));
            let quote = headers.payload.slice();
            assert_eq!(icmp.checksum, icmp.icmp_type.calc_checksum(quote));
            assert!(frame[l3_offset..].starts_with(quote));
        }
    }

    #[test]
    fn ipv6_error_is_what_a_host_expects() {
        for (tags, len, mtu, said) in
            [(0, 2000, 1412, 1412), (1, 2000, 900, 1280), (2, 100, 1300, 1300)]
        {
            let frame = udp(true, tags, &vec![7; len]);
            let reply = build(&frame, mtu).unwrap();
            let headers = PacketHeaders::from_ethernet_slice(&reply).unwrap();
            let Some(NetHeaders::Ipv6(ip, _)) = headers.net else { panic!("no IPv6") };
            assert_eq!((ip.source, ip.destination), (V6_THERE, V6_HERE));
            let l3_offset = 14 + 4 * tags;
            assert_eq!(reply.len() - l3_offset, (48 + 48 + len).min(1280));
            let Some(TransportHeader::Icmpv6(icmp)) = headers.transport else { panic!("no ICMP") };
            assert_eq!(icmp.icmp_type, Icmpv6Type::PacketTooBig { mtu: said });
            let quote = headers.payload.slice();
            let sum = icmp.icmp_type.calc_checksum(ip.source, ip.destination, quote).unwrap();
            assert_eq!(icmp.checksum, sum);
            assert!(frame[l3_offset..].starts_with(quote));
        }
    }

    #[test]
    fn padding_is_not_quoted_and_large_mtus_are_cut_to_the_field() {
        let mut frame = udp(false, 0, &[7; 4]);
        frame.resize(60, 0xee);
        let reply = build(&frame, 100_000).unwrap();
        assert_eq!(reply.len(), 14 + 28 + 32);
        assert_eq!(reply[40..42], [0xff, 0xff]);
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let v4 = udp(false, 0, &[7; 100]);
        assert!(build(&v4, 1000).is_some());
        for (at, bytes, what) in [
            (20, &[0][..], "no DF"),
            (21, &[9], "later fragment"),
            (12, &[8, 6], "ARP"),
            (0, &[3], "group MAC"),
            (6, &[3], "from a group MAC"),
            (6, &[0; 6], "from no MAC"),
            (26, &[224, 0, 0, 1], "from a group"),
            (26, &[0; 4], "from nobody"),
            (26, &[127, 0, 0, 1], "from loopback"),
            (26, &[0xff; 4], "from all"),
            (30, &[239, 1, 1, 1], "to a group"),
            (30, &[0xff; 4], "to all"),
            (30, &[0; 4], "to nobody"),
            (16, &[0, 19], "shorter than its header"),
        ] {
            let mut frame = v4.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(build(&frame, 1000), None, "{what}");
        }
        let v6 = udp(true, 0, &[7; 100]);
        for (at, bytes, what) in [
            (22, &[0xff, 2][..], "from a group"),
            (22, &[0; 16], "from nobody"),
            (38, &[0xff, 2], "to a group"),
            (38, &[0; 16], "to nobody"),
        ] {
            let mut frame = v6.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(build(&frame, 1300), None, "{what}");
        }
        // A fragment header: offset 0 is answered, any other is not.
        let mut frame = v6;
        frame[20] = protocol::FRAGMENT;
        frame[54..62].copy_from_slice(&[17, 0, 0, 1, 0, 0, 0, 9]);
        assert!(build(&frame, 1300).is_some());
        frame[57] = 8;
        assert_eq!(build(&frame, 1300), None);
    }

    #[test]
    fn pings_are_answered_and_errors_are_not() {
        let mut ping = udp(false, 0, &[7; 100]);
        ping[23] = protocol::ICMP;
        for (kind, answered) in
            [(8, true), (0, true), (3, false), (5, false), (11, false), (12, false)]
        {
            ping[34] = kind;
            assert_eq!(build(&ping, 1000).is_some(), answered, "{kind}");
        }
        ping[34] = 8;
        assert_eq!(build(&ping[..34], 1000), None, "cut before its type");
        let mut ping = udp(true, 0, &[7; 100]);
        ping[20] = protocol::ICMPV6;
        for (kind, answered) in
            [(icmpv6::TYPE_ECHO_REQUEST, true), (1, false), (2, false), (127, false), (137, false)]
        {
            ping[54] = kind;
            assert_eq!(build(&ping, 1300).is_some(), answered, "{kind}");
        }
    }

    #[test]
    fn no_pair_gets_more_than_ten_in_a_second() {
        let mut limiter = TooBigLimiter::new();
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let count = |limiter: &mut TooBigLimiter, from, to, span: std::ops::Range<u64>| {
            span.filter(|now_ms| limiter.admits(from, to, *now_ms)).count()
        };
        assert_eq!(count(&mut limiter, a, b, 0..1000), 10);
        assert_eq!(count(&mut limiter, a, b, 1000..2000), 10);
        assert!(limiter.admits(b, a, 1999), "the other way is another pair");
        assert!(!limiter.admits(a, b, 1999));
        assert!(limiter.admits(a, b, 9999));
        assert!(!limiter.admits(a, b, 0), "a clock that goes back opens nothing");
    }

    #[test]
    fn oldest_pair_gives_way() {
        let mut limiter = TooBigLimiter::new();
        let pair = |n: u32| (IpAddr::from(n.to_be_bytes()), IpAddr::from([10, 0, 0, 2]));
        for n in 0..5000 {
            let (src, dst) = pair(n);
            assert!(limiter.admits(src, dst, 0));
            assert!(limiter.pairs.len() <= MAX_PAIRS && limiter.last_ms.len() <= MAX_PAIRS);
        }
        let (src, dst) = pair(5000 - MAX_PAIRS as u32);
        assert!(!limiter.admits(src, dst, 1), "still remembered");
        let (src, dst) = pair(5000 - MAX_PAIRS as u32 - 1);
        assert!(limiter.admits(src, dst, 1), "forgotten");
    }

    proptest! {
        #[test]
        fn mutated_and_cut_frames_never_panic(
            ipv6 in any::<bool>(),
            tags in 0..3_usize,
            faults in prop::collection::vec((0..90_usize, any::<u8>()), 0..8),
            keep in 0..200_usize,
            mtu in any::<u32>(),
        ) {
            let mut frame = udp(ipv6, tags, &[7; 120]);
            for (at, byte) in faults {
                if let Some(target) = frame.get_mut(at) {
                    *target = byte;
                }
            }
            frame.truncate(keep);
            if let Some(reply) = build(&frame, mtu) {
                prop_assert!(reply.len() <= 22 + IPV6_MAX_ERROR_LEN);
                let (asked, said) =
                    (InnerIp::find(&frame).unwrap(), InnerIp::find(&reply).unwrap());
                prop_assert_eq!((asked.src, asked.dst), (said.dst, said.src));
                prop_assert_eq!(build(&reply, mtu), None, "an error is never answered");
            }
        }
    }
}
