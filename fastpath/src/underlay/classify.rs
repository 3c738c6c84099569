//! What a frame that arrived is, and where in it the part lies that matters.
//!
//! One function reads the frame in its order: link, IP, UDP. Next: [`encap::rx`] for datagrams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};

use encap::wire::checksum::fold_sum;
use encap::wire::ethernet::{ETHERNET_HEADER_LEN, EtherType, MacAddr, VLAN_TAG_LEN};

use super::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, LocalAddress, UDP_HEADER_LEN, UnderlayDrop, VLAN_ID_MASK,
    protocol, pseudo_header_sum, wire_sum,
};

/// 802.1p priority without a VLAN (IEEE 802.1Q table 9-2).
const PRIORITY_TAG: u16 = 0;
/// RFC 792: echo request; its code is 0.
const ICMP_ECHO_REQUEST: u8 = 8;
/// RFC 4443 section 4.1: echo request; its code is 0.
const ICMPV6_ECHO_REQUEST: u8 = 128;
/// Router solicitation to redirect (RFC 4861 section 4).
const ND_TYPES: RangeInclusive<u8> = 133..=137;
/// Proof that no router has passed a packet on (RFC 4861 section 7.1).
const ND_HOP_LIMIT: u8 = 255;

/// What the port says of a frame's UDP checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxChecksum {
    /// Nothing: it is checked here.
    Unknown,
    /// The same, and the sender may be on this machine and have left the sum to a card that does
    /// not exist: then the field holds the sum over the pseudo header only.
    MaybePartial,
    /// It is right.
    Good,
    /// It is wrong. A datagram without one is taken all the same.
    Bad,
}

/// What a frame is. Ranges are of the frame's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Classified {
    /// A datagram to one of our ports.
    Datagram {
        /// Who sent it.
        remote: SocketAddr,
        /// To which of our ports.
        port: u16,
        /// TOS byte or traffic class.
        mark: u8,
        /// The UDP payload.
        payload: Range<usize>,
    },
    /// An ARP packet, unchecked, padding included; only where our address is IPv4.
    Arp(Range<usize>),
    /// A neighbour discovery message (RFC 4861): the ICMPv6 message, its checksum unchecked.
    Nd(Range<usize>),
    /// An echo request to our address: the ICMP message, its checksum unchecked.
    Echo(Range<usize>),
    /// Nothing of ours, but maybe the host's.
    Foreign,
    /// A frame to another station.
    NotOurs,
    /// Meant for us, but not to be taken.
    Drop(UnderlayDrop),
}

/// The checked Ethernet header of a frame that we should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    pub(crate) ether_type: EtherType,
    /// Offset of the first byte behind the type.
    pub(crate) payload: usize,
}

/// Says what `frame` is to `local`, whose UDP ports are `ports`.
///
/// The frame has its VLAN tag still. The IPv4 header checksum is always checked here, whatever
/// `checksum` says, which is about UDP.
#[must_use]
pub fn classify(
    frame: &[u8],
    local: &LocalAddress,
    ports: &RangeInclusive<u16>,
    checksum: RxChecksum,
) -> Classified {
    let link = match link_layer(frame, local) {
        Ok(link) => link,
        Err(other) => return other,
    };
    let taken = match (local.ip, link.ether_type) {
        (IpAddr::V4(ip), EtherType::IPV4) => ipv4(frame, &link, local, ip),
        (IpAddr::V6(ip), EtherType::IPV6) => ipv6(frame, &link, local, ip),
        (IpAddr::V4(_), EtherType::ARP) => Err(Classified::Arp(link.payload..frame.len())),
        _ => Err(Classified::Foreign),
    };
    taken.and_then(|packet| udp(frame, &packet, ports, checksum)).unwrap_or_else(|other| other)
}

/// Reads addresses, tag and type; an error says what the frame is instead.
pub(crate) fn link_layer(frame: &[u8], local: &LocalAddress) -> Result<Link, Classified> {
    let truncated = Classified::Drop(UnderlayDrop::Truncated);
    let Some(header) = frame.first_chunk::<ETHERNET_HEADER_LEN>() else { return Err(truncated) };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
    let destination = MacAddr([d0, d1, d2, d3, d4, d5]);
    let source = MacAddr([s0, s1, s2, s3, s4, s5]);
    if destination != local.mac && !destination.is_multicast() {
        return Err(Classified::NotOurs);
    }
    if source.is_multicast() || source.is_zero() {
        return Err(Classified::Drop(UnderlayDrop::BadSourceMac));
    }
    let untagged = Link {
        destination,
        source,
        ether_type: EtherType(u16::from_be_bytes([t0, t1])),
        payload: ETHERNET_HEADER_LEN,
    };
    let bad_vlan = Classified::Drop(UnderlayDrop::BadVlan);
    match untagged.ether_type {
        EtherType::C_TAG => {}
        // A service tag is another VLAN, whatever its number.
        EtherType::S_TAG | EtherType::OLD_S_TAG => return Err(bad_vlan),
        _ if local.vlan.is_some() => return Err(bad_vlan),
        _ => return Ok(untagged),
    }
    let tag = frame.get(ETHERNET_HEADER_LEN..).and_then(|rest| rest.first_chunk());
    let Some(&[control0, control1, t0, t1]) = tag else { return Err(truncated) };
    let vlan = u16::from_be_bytes([control0, control1]) & VLAN_ID_MASK;
    if vlan != local.vlan.unwrap_or(PRIORITY_TAG) {
        return Err(bad_vlan);
    }
    Ok(Link {
        ether_type: EtherType(u16::from_be_bytes([t0, t1])),
        payload: ETHERNET_HEADER_LEN + VLAN_TAG_LEN,
        ..untagged
    })
}

/// A UDP packet to our address, its IP header checked.
struct UdpPacket {
    source: IpAddr,
    destination: IpAddr,
    mark: u8,
    /// All behind the IP header, without padding.
    body: Range<usize>,
}

fn ipv4(
    frame: &[u8],
    link: &Link,
    local: &LocalAddress,
    ours: Ipv4Addr,
) -> Result<UdpPacket, Classified> {
    let drop = |reason| Err(Classified::Drop(reason));
    let packet = frame.get(link.payload..).unwrap_or_default();
    let Some(header) = packet.first_chunk::<IPV4_HEADER_LEN>() else {
        return drop(UnderlayDrop::Truncated);
    };
    let [vihl, mark, l0, l1, _, _, f0, f1, _, number, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *header;
    let header_len = usize::from(vihl & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([l0, l1]));
    if vihl >> 4 != 4 || header_len < IPV4_HEADER_LEN || total_len < header_len {
        return drop(UnderlayDrop::BadIpHeader);
    }
    let (Some(whole_header), true) = (packet.get(..header_len), total_len <= packet.len()) else {
        return drop(UnderlayDrop::Truncated);
    };
    let sum =
        if header_len == IPV4_HEADER_LEN { short_sum(header) } else { wire_sum(whole_header) };
    if sum != 0xffff {
        return drop(UnderlayDrop::BadIpChecksum);
    }
    let destination = Ipv4Addr::new(d0, d1, d2, d3);
    if destination != ours {
        let group = destination.is_multicast() || local.is_broadcast(destination);
        let wrong = Classified::Drop(UnderlayDrop::WrongDestination);
        return Err(if group { Classified::Foreign } else { wrong });
    }
    if link.destination.is_multicast() {
        return drop(UnderlayDrop::GroupMac);
    }
    // More fragments, or an offset.
    if u16::from_be_bytes([f0, f1]) & 0x3fff != 0 {
        return drop(UnderlayDrop::Fragment);
    }
    let source = IpAddr::from([s0, s1, s2, s3]);
    if source == local.ip || !local.is_station(source) {
        return drop(UnderlayDrop::BadSource);
    }
    let body = link.payload + header_len..link.payload + total_len;
    match number {
        protocol::UDP => Ok(UdpPacket { source, destination: destination.into(), mark, body }),
        protocol::ICMP if starts_with(frame, &body, [ICMP_ECHO_REQUEST, 0]) => {
            Err(Classified::Echo(body))
        }
        _ => Err(Classified::Foreign),
    }
}

fn ipv6(
    frame: &[u8],
    link: &Link,
    local: &LocalAddress,
    ours: Ipv6Addr,
) -> Result<UdpPacket, Classified> {
    let drop = |reason| Err(Classified::Drop(reason));
    let packet = frame.get(link.payload..).unwrap_or_default();
    let Some((header, rest)) = packet.split_first_chunk::<IPV6_HEADER_LEN>() else {
        return drop(UnderlayDrop::Truncated);
    };
    let ([v0, v1, _, _, l0, l1, next_header, hop_limit], addresses) = header
        .split_first_chunk::<8>()
        .map_or(([0; 8], &[][..]), |(first, addresses)| (*first, addresses));
    if v0 >> 4 != 6 {
        return drop(UnderlayDrop::BadIpHeader);
    }
    let body_len = usize::from(u16::from_be_bytes([l0, l1]));
    if body_len > rest.len() {
        return drop(UnderlayDrop::Truncated);
    }
    let (source, destination) = address_pair(addresses);
    let start = link.payload + IPV6_HEADER_LEN;
    let body = start..start + body_len;
    if destination != ours && !destination.is_multicast() {
        return drop(UnderlayDrop::WrongDestination);
    }
    let icmp_type = match frame.get(body.clone()) {
        Some(&[icmp_type, ..]) if next_header == protocol::ICMPV6 => Some(icmp_type),
        _ => None,
    };
    if icmp_type.is_some_and(|icmp_type| ND_TYPES.contains(&icmp_type)) {
        let near = hop_limit == ND_HOP_LIMIT;
        return Err(if near {
            Classified::Nd(body)
        } else {
            Classified::Drop(UnderlayDrop::NdHopLimit)
        });
    }
    if destination.is_multicast() {
        return Err(Classified::Foreign);
    }
    if link.destination.is_multicast() {
        return drop(UnderlayDrop::GroupMac);
    }
    if next_header == protocol::IPV6_FRAGMENT {
        return drop(UnderlayDrop::Fragment);
    }
    let source = IpAddr::V6(source);
    if source == local.ip || !local.is_station(source) {
        return drop(UnderlayDrop::BadSource);
    }
    let mark = v0 << 4 | v1 >> 4;
    match next_header {
        protocol::UDP => Ok(UdpPacket { source, destination: destination.into(), mark, body }),
        protocol::ICMPV6 if starts_with(frame, &body, [ICMPV6_ECHO_REQUEST, 0]) => {
            Err(Classified::Echo(body))
        }
        _ => Err(Classified::Foreign),
    }
}

/// The sum over a header without options. Of a right one it is all ones in any byte order.
fn short_sum(header: &[u8; IPV4_HEADER_LEN]) -> u16 {
    let (words, _) = header.as_chunks();
    fold_sum(words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum())
}

/// Both addresses of an IPv6 header; unspecified ones where there are no bytes.
fn address_pair(bytes: &[u8]) -> (Ipv6Addr, Ipv6Addr) {
    let at = |start: usize| {
        let octets = bytes.get(start..).and_then(|rest| rest.first_chunk::<16>());
        octets.map_or(Ipv6Addr::UNSPECIFIED, |octets| Ipv6Addr::from_octets(*octets))
    };
    (at(0), at(16))
}

fn starts_with(frame: &[u8], body: &Range<usize>, start: [u8; 2]) -> bool {
    frame.get(body.clone()).is_some_and(|body| body.starts_with(&start))
}

fn udp(
    frame: &[u8],
    packet: &UdpPacket,
    ports: &RangeInclusive<u16>,
    checksum: RxChecksum,
) -> Result<Classified, Classified> {
    let drop = |reason| Err(Classified::Drop(reason));
    let body = frame.get(packet.body.clone()).unwrap_or_default();
    let Some(header) = body.first_chunk::<UDP_HEADER_LEN>() else {
        return drop(UnderlayDrop::BadUdpLength);
    };
    let [s0, s1, d0, d1, l0, l1, c0, c1] = *header;
    let len = u16::from_be_bytes([l0, l1]);
    // What lies behind the datagram is options that nobody here knows (RFC 9868).
    let (Some(datagram), true) = (body.get(..usize::from(len)), usize::from(len) >= UDP_HEADER_LEN)
    else {
        return drop(UnderlayDrop::BadUdpLength);
    };
    let port = u16::from_be_bytes([d0, d1]);
    if !ports.contains(&port) {
        return Err(Classified::Foreign);
    }
    let partial_sum = || {
        let pseudo = pseudo_header_sum(packet.source, packet.destination, protocol::UDP);
        fold_sum(pseudo + u64::from(len))
    };
    let sum_is_good =
        || fold_sum(u64::from(partial_sum()) + u64::from(wire_sum(datagram))) == 0xffff;
    match ([c0, c1], checksum) {
        ([0, 0], _) if packet.source.is_ipv4() => {}
        ([0, 0], _) => return drop(UnderlayDrop::NoUdpChecksum),
        (_, RxChecksum::Good) => {}
        (_, RxChecksum::Unknown | RxChecksum::MaybePartial) if sum_is_good() => {}
        (field, RxChecksum::MaybePartial) if u16::from_be_bytes(field) == partial_sum() => {}
        _ => return drop(UnderlayDrop::BadUdpChecksum),
    }
    Ok(Classified::Datagram {
        remote: SocketAddr::new(packet.source, u16::from_be_bytes([s0, s1])),
        port,
        mark: packet.mark,
        payload: packet.body.start + UDP_HEADER_LEN..packet.body.start + usize::from(len),
    })
}
