//! The IP header inside an overlay frame: a checked view, and the two ECN bits in it.
//!
//! RFC 791, RFC 8200 and, for ECN across a tunnel, RFC 6040. The view says what the header
//! claims; of the lengths only those of the header itself are checked against the frame.
//!
//! Next: [`crate::forward::policy`], [`crate::forward::mss`] and [`crate::forward::too_big`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ethernet::{EtherType, EthernetView};

/// IP protocol numbers, which are also IPv6 next-header values.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP of IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP of IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const FRAGMENT_HEADER_LEN: usize = 8;
/// RFC 8200 section 4.1: hop-by-hop, destination options, routing, fragment, destination options.
const MAX_EXTENSION_HEADERS: usize = 5;
/// Low bits of the type-of-service or traffic-class byte (RFC 3168 section 5).
const ECN_MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable; L4S traffic where that is in use (RFC 9331).
pub const ECT_1: u8 = 0b01;
/// ECN-capable.
pub const ECT_0: u8 = 0b10;
/// Congestion was met.
pub const CE: u8 = 0b11;

/// What the IP header of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerIp {
    /// First byte of the IP header, counted from the start of the frame.
    pub l3_offset: usize,
    /// 4 or 6, as are the addresses.
    pub version: u8,
    /// Type of service or traffic class: DSCP above, ECN in the lower two bits.
    pub tos: u8,
    /// Whether routers may not fragment it; always so for IPv6.
    pub dont_fragment: bool,
    /// Whether it is a piece of a larger packet, the first or a later one.
    pub is_fragment: bool,
    /// Bytes of the IP packet with its header, as claimed: the frame may hold fewer, or padding.
    pub total_len: usize,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// First byte behind the IP header and its extensions, counted from the start of the frame
    /// and not beyond its end. None for later fragments, and where the extension headers are cut
    /// or too many.
    pub l4_offset: Option<usize>,
    /// Protocol of what is at `l4_offset`; where that is None, the last next-header value read.
    pub proto: u8,
}

impl InnerIp {
    /// Finds the IP header behind at most two VLAN tags. None where there is none, or it is cut.
    #[must_use]
    pub fn find(frame: &[u8]) -> Option<Self> {
        let ethernet = EthernetView::new(frame).ok()?;
        let at = ethernet.payload_offset();
        match ethernet.ether_type() {
            EtherType::IPV4 => Self::v4(ethernet.payload(), at),
            EtherType::IPV6 => Self::v6(ethernet.payload(), at),
            _ => None,
        }
    }

    /// RFC 791 section 3.1.
    fn v4(packet: &[u8], l3_offset: usize) -> Option<Self> {
        let header: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
        let [first, tos, l0, l1, _, _, f0, f1, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *header;
        let header_len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_len < IPV4_HEADER_LEN || header_len > packet.len() {
            return None;
        }
        let flags = u16::from_be_bytes([f0, f1]);
        let is_later_fragment = flags & 0x1fff != 0;
        Some(Self {
            l3_offset,
            version: 4,
            tos,
            dont_fragment: flags & 0x4000 != 0,
            is_fragment: flags & 0x3fff != 0,
            total_len: usize::from(u16::from_be_bytes([l0, l1])),
            src: Ipv4Addr::new(s0, s1, s2, s3).into(),
            dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
            l4_offset: if is_later_fragment { None } else { Some(l3_offset + header_len) },
            proto,
        })
    }

    /// RFC 8200 sections 3 and 4.
    fn v6(packet: &[u8], l3_offset: usize) -> Option<Self> {
        let (header, _) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
        let (fixed, addresses) = header.split_first_chunk::<8>()?;
        let [b0, b1, _, _, l0, l1, next_header, _] = *fixed;
        let (src, dst) = addresses.split_first_chunk::<16>()?;
        let dst: [u8; 16] = dst.try_into().ok()?;
        if b0 >> 4 != 6 {
            return None;
        }
        let chain = Chain::follow(packet, next_header);
        Some(Self {
            l3_offset,
            version: 6,
            tos: b0 << 4 | b1 >> 4,
            dont_fragment: true,
            is_fragment: chain.is_fragment,
            total_len: IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([l0, l1])),
            src: Ipv6Addr::from(*src).into(),
            dst: Ipv6Addr::from(dst).into(),
            l4_offset: chain.end.map(|end| l3_offset + end),
            proto: chain.proto,
        })
    }
}

/// Where the extension headers of an IPv6 packet lead.
struct Chain {
    proto: u8,
    is_fragment: bool,
    /// First byte behind the last of them, counted from the IPv6 header.
    end: Option<usize>,
}

impl Chain {
    fn follow(packet: &[u8], next_header: u8) -> Self {
        let mut chain = Self { proto: next_header, is_fragment: false, end: None };
        let mut at = IPV6_HEADER_LEN;
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !Self::is_extension(chain.proto) {
                break;
            }
            let Some(&[next, len, o0, o1]) = packet.get(at..at + 4) else { return chain };
            let kind = std::mem::replace(&mut chain.proto, next);
            if kind != protocol::FRAGMENT {
                at += (usize::from(len) + 1) * 8;
                continue;
            }
            chain.is_fragment = true;
            // The offset's 13 bits are above two reserved ones and the more flag.
            if u16::from_be_bytes([o0, o1]) & 0xfff8 != 0 {
                return chain;
            }
            at += FRAGMENT_HEADER_LEN;
        }
        if !Self::is_extension(chain.proto) && at <= packet.len() {
            chain.end = Some(at);
        }
        chain
    }

    fn is_extension(next_header: u8) -> bool {
        matches!(
            next_header,
            protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::FRAGMENT
                | protocol::DESTINATION_OPTIONS
        )
    }
}

/// Writes the ECN bits (`ecn` is 0 to 3) into the header that `at` found in this frame, and
/// brings the IPv4 header checksum along. A frame without that header stays as it is.
pub fn set_ecn(frame: &mut [u8], at: &InnerIp, ecn: u8) {
    let ecn = ecn & ECN_MASK;
    let Some(packet) = frame.get_mut(at.l3_offset..) else { return };
    if at.version == 6 {
        if let Some([_, second]) = packet.first_chunk_mut() {
            *second = *second & !(ECN_MASK << 4) | ecn << 4;
        }
        return;
    }
    let Some([first, tos, _, _, _, _, _, _, _, _, c0, c1]) = packet.first_chunk_mut() else {
        return;
    };
    let old = u16::from_be_bytes([*first, *tos]);
    *tos = *tos & !ECN_MASK | ecn;
    let new = u16::from_be_bytes([*first, *tos]);
    let checksum = adjust_checksum(u16::from_be_bytes([*c0, *c1]), old, new);
    [*c0, *c1] = checksum.to_be_bytes();
}

/// The checksum after one 16-bit word that it covers has changed: RFC 1624 equation 3.
#[must_use]
pub(crate) fn adjust_checksum(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    // Three words: twice folded is folded.
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

/// ECN bits of the outer header for a frame whose IP header has this type-of-service byte:
/// the same (RFC 6040 section 4.1, normal mode).
#[must_use]
pub const fn encap_ecn(inner_tos: u8) -> u8 {
    inner_tos & ECN_MASK
}

/// What the ECN bits of a datagram mean for the frame in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EcnOutcome {
    /// The frame goes on as it is.
    Keep,
    /// The frame goes on with these ECN bits.
    Set(u8),
    /// The frame is dropped: congestion was met, and its sender understands nothing but loss.
    Drop,
}

/// Combines the ECN bits of both headers as RFC 6040 figure 4 says. The arguments are ECN bits or
/// whole type-of-service bytes. See [`is_ecn_suspicious`] for what is worth a counter.
#[must_use]
pub const fn decap_ecn(inner: u8, outer: u8) -> EcnOutcome {
    match (inner & ECN_MASK, outer & ECN_MASK) {
        (NOT_ECT, CE) => EcnOutcome::Drop,
        (ECT_0 | ECT_1, CE) => EcnOutcome::Set(CE),
        (ECT_0, ECT_1) => EcnOutcome::Set(ECT_1),
        _ => EcnOutcome::Keep,
    }
}

/// Whether RFC 6040 figure 4 marks the combination `(!!!)`: no sender and router of today makes
/// it, so that someone on the way meddles or is broken. Arguments as for [`decap_ecn`].
#[must_use]
pub const fn is_ecn_suspicious(inner: u8, outer: u8) -> bool {
    matches!((inner & ECN_MASK, outer & ECN_MASK), (NOT_ECT, ECT_0 | ECT_1 | CE) | (CE, ECT_1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
        Ipv6Header, Ipv6RawExtHeader, NetHeaders, PacketBuilder, PacketHeaders,
    };
    use proptest::prelude::*;

    const V6_SRC: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const V6_DST: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    /// A UDP frame behind so many tags.
    fn frame(ip: IpHeaders, tags: usize, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let vlan = |id: u16| id.try_into().unwrap();
        let builder = match tags {
            0 => builder.ip(ip),
            1 => builder.single_vlan(vlan(7)).ip(ip),
            _ => builder.double_vlan(vlan(7), vlan(8)).ip(ip),
        };
        let mut bytes = Vec::new();
        builder.udp(4000, 5000).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn v4(tos: u8, dont_fragment: bool) -> IpHeaders {
        let mut header =
            Ipv4Header::new(0, 64, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.dscp = (tos >> 2).try_into().unwrap();
        header.ecn = (tos & 3).try_into().unwrap();
        header.dont_fragment = dont_fragment;
        IpHeaders::Ipv4(header, Default::default())
    }

    fn v6(tos: u8, extensions: Ipv6Extensions) -> IpHeaders {
        let header = Ipv6Header {
            traffic_class: tos,
            source: V6_SRC,
            destination: V6_DST,
            hop_limit: 64,
            next_header: IpNumber::UDP,
            ..Default::default()
        };
        IpHeaders::Ipv6(header, extensions)
    }

    fn fragment(offset: u16, more: bool) -> Ipv6Extensions {
        let offset = IpFragOffset::try_new(offset).unwrap();
        let header = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 9);
        Ipv6Extensions { fragment: Some(header), ..Default::default() }
    }

    #[test]
    fn both_versions_are_found_behind_tags() {
        for tags in 0..3 {
            let bytes = frame(v4(0xb9, true), tags, &[7; 10]);
            let l3_offset = 14 + 4 * tags;
            let found = InnerIp::find(&bytes).unwrap();
            let expected = InnerIp {
                l3_offset,
                version: 4,
                tos: 0xb9,
                dont_fragment: true,
                is_fragment: false,
                total_len: 38,
                src: [10, 0, 0, 1].into(),
                dst: [10, 0, 0, 2].into(),
                l4_offset: Some(l3_offset + 20),
                proto: protocol::UDP,
            };
            assert_eq!(found, expected);

            let bytes = frame(v6(0xb9, Ipv6Extensions::default()), tags, &[7; 10]);
            let expected = InnerIp {
                version: 6,
                total_len: 58,
                src: V6_SRC.into(),
                dst: V6_DST.into(),
                l4_offset: Some(l3_offset + 40),
                ..expected
            };
            assert_eq!(InnerIp::find(&bytes), Some(expected));
        }
        assert!(!InnerIp::find(&frame(v4(0, false), 0, &[])).unwrap().dont_fragment);
    }

    #[test]
    fn later_fragments_have_no_transport_header() {
        let mut bytes = frame(v4(0, false), 0, &[7; 10]);
        bytes[20] = 0x20;
        let first = InnerIp::find(&bytes).unwrap();
        assert_eq!((first.is_fragment, first.l4_offset), (true, Some(34)));
        bytes[21] = 1;
        let later = InnerIp::find(&bytes).unwrap();
        assert_eq!((later.is_fragment, later.l4_offset), (true, None));

        let first = InnerIp::find(&frame(v6(0, fragment(0, true)), 0, &[])).unwrap();
        assert_eq!((first.is_fragment, first.l4_offset), (true, Some(62)));
        let later = InnerIp::find(&frame(v6(0, fragment(5, true)), 0, &[])).unwrap();
        assert_eq!((later.is_fragment, later.l4_offset), (true, None));
        assert_eq!(later.proto, protocol::UDP);
    }

    #[test]
    fn extension_headers_are_followed_and_cut_ones_end_the_search() {
        let options =
            Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let extensions =
            Ipv6Extensions { hop_by_hop_options: Some(options.unwrap()), ..fragment(0, false) };
        let bytes = frame(v6(0, extensions), 1, &[7; 3]);
        let found = InnerIp::find(&bytes).unwrap();
        assert_eq!((found.l4_offset, found.proto), (Some(18 + 40 + 16 + 8), protocol::UDP));
        let cut = InnerIp::find(&bytes[..18 + 40 + 17]).unwrap();
        assert_eq!((cut.l4_offset, cut.proto), (None, protocol::FRAGMENT));
        let cut = InnerIp::find(&bytes[..18 + 40 + 5]).unwrap();
        assert_eq!((cut.l4_offset, cut.proto), (None, protocol::FRAGMENT));

        let mut endless = frame(v6(0, Ipv6Extensions::default()), 0, &[0; 200]);
        endless[20] = protocol::HOP_BY_HOP;
        endless[54..].fill(0);
        assert_eq!(InnerIp::find(&endless).unwrap().l4_offset, None);
    }

    #[test]
    fn what_is_not_a_whole_ip_header_is_none() {
        let good = frame(v4(0, true), 0, &[]);
        assert_eq!(InnerIp::find(&good[..33]), None);
        for (at, byte) in [(14, 0x65), (14, 0x44), (14, 0x4f), (13, 6), (12, 0x86)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(InnerIp::find(&bad), None, "byte {at} = {byte:#x}");
        }
        let good = frame(v6(0, Ipv6Extensions::default()), 0, &[]);
        assert_eq!(InnerIp::find(&good[..53]), None);
    }

    #[test]
    fn outcome_is_that_of_rfc_6040_figure_4() {
        use EcnOutcome::{Drop, Keep, Set};
        // Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NOT_ECT, [Keep, Keep, Keep, Drop], [false, true, true, true]),
            (ECT_0, [Keep, Keep, Set(ECT_1), Set(CE)], [false; 4]),
            (ECT_1, [Keep, Keep, Keep, Set(CE)], [false; 4]),
            (CE, [Keep; 4], [false, false, true, false]),
        ];
        for (inner, outcomes, suspicious) in table {
            for (column, outer) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().enumerate() {
                // The DSCP above plays no part.
                let (inner, outer) = (inner | 0xb8, outer | 0x28);
                assert_eq!(decap_ecn(inner, outer), outcomes[column], "{inner:x} {outer:x}");
                assert_eq!(is_ecn_suspicious(inner, outer), suspicious[column]);
            }
        }
        assert_eq!(encap_ecn(0xb9), ECT_1);
    }

    proptest! {
        #[test]
        fn set_ecn_changes_two_bits_and_keeps_the_checksum_right(
            ipv6 in any::<bool>(),
            tos in any::<u8>(),
            ecn in 0..4_u8,
            tags in 0..3_usize,
            payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let build = |tos| {
                let ip = if ipv6 { v6(tos, Ipv6Extensions::default()) } else { v4(tos, true) };
                frame(ip, tags, &payload)
            };
            let mut bytes = build(tos);
            let at = InnerIp::find(&bytes).unwrap();
            prop_assert_eq!(at.tos, tos);
            set_ecn(&mut bytes, &at, ecn);
            prop_assert_eq!(&bytes, &build(tos & !3 | ecn));
            if let Some(NetHeaders::Ipv4(header, _)) =
                PacketHeaders::from_ethernet_slice(&bytes).unwrap().net
            {
                prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
            }
        }

        #[test]
        fn any_and_mutated_bytes_never_panic_and_stay_inside(
            ipv6 in any::<bool>(),
            tags in 0..3_usize,
            faults in prop::collection::vec((0..80_usize, any::<u8>()), 0..8),
            keep in 0..120_usize,
            ecn in any::<u8>(),
        ) {
            let ip = if ipv6 { v6(0, fragment(0, true)) } else { v4(0, true) };
            let mut bytes = frame(ip, tags, &[0; 40]);
            for (at, byte) in faults {
                if let Some(target) = bytes.get_mut(at) {
                    *target = byte;
                }
            }
            bytes.truncate(keep);
            if let Some(at) = InnerIp::find(&bytes) {
                prop_assert!(at.l4_offset.is_none_or(|offset| offset <= bytes.len()));
                set_ecn(&mut bytes, &at, ecn);
                prop_assert_eq!(InnerIp::find(&bytes).unwrap().tos, at.tos & !3 | ecn & 3);
                bytes.truncate(at.l3_offset + 1);
                let before = bytes.clone();
                set_ecn(&mut bytes, &at, ecn);
                prop_assert_eq!(bytes, before);
            }
        }
    }
}
