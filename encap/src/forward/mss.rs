//! TCP maximum segment size, lowered in passing so that segments fit the path.
//!
//! RFC 9293 section 3.7.1; clamping is what RFC 4459 section 3.2 describes. Both ends of a
//! connection announce theirs in the SYN, so clamping what comes out of the own tap on either
//! node covers both ways.

use std::ops::Range;

use crate::wire::buf::Checksum;
use crate::wire::checksum::TCP_CHECKSUM_OFFSET;
use crate::wire::inner_ip::{InnerIp, adjust_checksum, protocol};

/// IPv4 and TCP headers without options (RFC 6691 section 2), in bytes.
const IPV4_HEADERS_LEN: usize = 40;
/// IPv6 and TCP headers without options, in bytes.
const IPV6_HEADERS_LEN: usize = 60;
/// The least that is written: what every IPv4 host takes (RFC 9293 section 3.7.1).
const IPV4_LEAST_MSS: usize = 536;
/// The least that is written: the IPv6 minimum MTU of 1280 without headers.
const IPV6_LEAST_MSS: usize = 1220;

const TCP_HEADER_LEN: usize = 20;
const TCP_SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_MSS_LEN: usize = 4;

/// Lowers the MSS option of a TCP SYN so that its packets are at most `max_l3` bytes with their
/// IP header. Says whether the frame was changed.
///
/// Never raises it, and never goes below what the IP version promises to carry. The TCP checksum
/// follows when it is complete; a partial one does not cover the options yet. A SYN without the
/// option stays without, and one whose options do not parse is let alone. `ip` was found in `frame`.
pub fn clamp(frame: &mut [u8], ip: &InnerIp, checksum: Checksum, max_l3: usize) -> bool {
    let Some((tcp, options)) = syn(frame, ip) else { return false };
    let limit = if ip.version == 4 {
        max_l3.saturating_sub(IPV4_HEADERS_LEN).max(IPV4_LEAST_MSS)
    } else {
        max_l3.saturating_sub(IPV6_HEADERS_LEN).max(IPV6_LEAST_MSS)
    };
    let limit = u16::try_from(limit).unwrap_or(u16::MAX);
    let Some(places) = frame.get(options.clone()).and_then(mss_places) else { return false };
    let mut changed = false;
    for place in (0..u64::BITS as usize).filter(|place| places >> place & 1 == 1) {
        changed |= lower(frame, tcp, options.start + place, limit, checksum).is_some();
    }
    changed
}

/// Offset of the TCP header and the place of its options, both in the frame. None unless it is a
/// whole header with SYN set.
fn syn(frame: &[u8], ip: &InnerIp) -> Option<(usize, Range<usize>)> {
    if ip.proto != protocol::TCP {
        return None;
    }
    let at = ip.l4_offset?;
    let header: &[u8; TCP_HEADER_LEN] = frame.get(at..)?.first_chunk()?;
    let end = at + usize::from(header[12] >> 4) * 4;
    let whole = end <= frame.len() && end <= ip.l3_offset + ip.total_len;
    let options = at + TCP_HEADER_LEN..end;
    (header[13] & TCP_SYN != 0 && whole).then_some((at, options))
}

/// Where the values of MSS options are: bit n for the one at byte n of the (at most 40) option
/// bytes. None when any option does not parse.
fn mss_places(options: &[u8]) -> Option<u64> {
    let mut places = 0;
    let mut at = 0;
    while let Some(kind) = options.get(at) {
        match *kind {
            OPTION_END => break,
            OPTION_NOP => at += 1,
            kind => {
                let len = usize::from(*options.get(at + 1)?);
                if len < 2 || at + len > options.len() {
                    return None;
                }
                if kind == OPTION_MSS {
                    if len != OPTION_MSS_LEN {
                        return None;
                    }
                    places |= 1 << (at + 2);
                }
                at += len;
            }
        }
    }
    Some(places)
}

/// Lowers the value at `place` of the frame; None when it is low enough already.
fn lower(frame: &mut [u8], tcp: usize, place: usize, limit: u16, checksum: Checksum) -> Option<()> {
    let value: &mut [u8; 2] = frame.get_mut(place..)?.first_chunk_mut()?;
    let old = u16::from_be_bytes(*value);
    if old <= limit {
        return None;
    }
    *value = limit.to_be_bytes();
    if checksum == Checksum::Complete {
        let at = tcp + usize::from(TCP_CHECKSUM_OFFSET);
        let stored: &mut [u8; 2] = frame.get_mut(at..)?.first_chunk_mut()?;
        // At an odd place the value lies across two words of the sum: its bytes count the other
        // way round.
        let (old, new) = if (place - tcp).is_multiple_of(2) {
            (old, limit)
        } else {
            (old.swap_bytes(), limit.swap_bytes())
        };
        *stored = adjust_checksum(u16::from_be_bytes(*stored), old, new).to_be_bytes();
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
    use proptest::prelude::*;

    fn clamped(frame: &mut [u8], checksum: Checksum, max_l3: usize) -> bool {
        InnerIp::find(frame).is_some_and(|ip| clamp(frame, &ip, checksum, max_l3))
    }

    /// A SYN with these option bytes, behind so many tags; the checksum is etherparse's.
    fn syn_frame(ipv6: bool, tags: usize, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = if ipv6 {
            let builder = PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64);
            let mut bytes = Vec::new();
            builder.tcp(1, 2, 3, 4).write(&mut bytes, &[]).unwrap();
            PacketHeaders::from_ip_slice(&bytes).unwrap().net
        } else {
            let builder = PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            let mut bytes = Vec::new();
            builder.tcp(1, 2, 3, 4).write(&mut bytes, &[]).unwrap();
            PacketHeaders::from_ip_slice(&bytes).unwrap().net
        };
        let ip = match ip.unwrap() {
            NetHeaders::Ipv4(header, extensions) => etherparse::IpHeaders::Ipv4(header, extensions),
            NetHeaders::Ipv6(header, extensions) => etherparse::IpHeaders::Ipv6(header, extensions),
            NetHeaders::Arp(_) => unreachable!(),
        };
        let vlan = |id: u16| id.try_into().unwrap();
        let builder = match tags {
            0 => builder.ip(ip),
            1 => builder.single_vlan(vlan(7)).ip(ip),
            _ => builder.double_vlan(vlan(7), vlan(8)).ip(ip),
        };
        let mut bytes = Vec::new();
        let tcp = builder.tcp(4000, 80, 99, 65_000).syn();
        tcp.options_raw(options).unwrap().write(&mut bytes, payload).unwrap();
        bytes
    }

    /// Whether the stored TCP checksum is what etherparse computes over the whole packet.
    fn checksum_is_right(frame: &[u8]) -> bool {
        let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP") };
        let payload = headers.payload.slice();
        let expected = match headers.net.unwrap() {
            NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(&ip, payload),
            NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(&ip, payload),
            NetHeaders::Arp(_) => unreachable!(),
        };
        tcp.checksum == expected.unwrap()
    }

    fn options_of(frame: &[u8]) -> Vec<u8> {
        let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
        headers.transport.unwrap().tcp().unwrap().options.as_slice().to_vec()
    }

    #[test]
    fn only_lowers_and_not_below_the_least() {
        for (ipv6, mss, max_l3, expected) in [
            (false, 1460, 1432, 1392),
            (true, 1440, 1412, 1352),
            (false, 1392, 1432, 1392),
            (false, 500, 1432, 500),
            (false, 1460, 0, 536),
            (true, 1440, 1000, 1220),
            (false, 65_495, 1_000_000, 65_495),
            (false, 65_535, 65_535, 65_495),
            (false, 0, 1432, 0),
        ] {
            let [high, low] = u16::to_be_bytes(mss);
            let mut frame = syn_frame(ipv6, 1, &[2, 4, high, low], &[]);
            assert_eq!(clamped(&mut frame, Checksum::Complete, max_l3), mss != expected);
            assert_eq!(options_of(&frame)[2..4], u16::to_be_bytes(expected));
            assert!(checksum_is_right(&frame));
        }
    }

    #[test]
    fn partial_checksum_keeps_its_value() {
        let mut frame = syn_frame(false, 0, &[2, 4, 5, 0xb4], &[]);
        let before = frame[50..52].to_vec();
        let partial = Checksum::Partial { start: 34, offset: 16 };
        assert!(clamped(&mut frame, partial, 1432));
        assert_eq!(frame[50..52], before);
        assert_eq!(options_of(&frame)[2..4], 1392_u16.to_be_bytes());
    }

    #[test]
    fn repeated_and_odd_options_are_all_lowered() {
        let options = [1, 2, 4, 5, 0xb4, 1, 2, 4, 0x23, 0, 4, 2];
        let mut frame = syn_frame(false, 2, &options, b"fast open");
        assert!(clamped(&mut frame, Checksum::Complete, 1432));
        assert_eq!(options_of(&frame), [1, 2, 4, 5, 0x70, 1, 2, 4, 5, 0x70, 4, 2]);
        assert!(checksum_is_right(&frame));
    }

    #[test]
    fn malformed_options_stay_as_they_are() {
        for options in [
            &[2, 4, 5, 0xb4, 8, 0, 0, 0][..],
            &[2, 4, 5, 0xb4, 8, 1, 0, 0],
            &[2, 4, 5, 0xb4, 8, 9, 0, 0],
            &[2, 4, 5, 0xb4, 1, 1, 1, 8],
            &[2, 3, 5, 0, 0, 0, 0, 0],
            &[1, 1, 2, 4],
        ] {
            let mut frame = syn_frame(false, 0, options, &[]);
            let before = frame.clone();
            assert!(!clamped(&mut frame, Checksum::Complete, 1000), "{options:?}");
            assert_eq!(frame, before);
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_no_option() {
        let mut frame = syn_frame(false, 0, &[0, 0, 0, 0, 2, 4, 5, 0xb4], &[]);
        assert!(!clamped(&mut frame, Checksum::Complete, 1000));
    }

    #[test]
    fn other_packets_stay_as_they_are() {
        let good = syn_frame(false, 0, &[2, 4, 5, 0xb4], &[]);
        for (at, byte, what) in [
            (47, 0x10, "ACK without SYN"),
            (23, 17, "UDP"),
            (21, 1, "later fragment"),
            (12, 0x88, "not IP"),
            (46, 0x40, "header shorter than its least"),
            (46, 0xf0, "header longer than the frame"),
            (17, 40, "packet shorter than its header"),
        ] {
            let mut frame = good.clone();
            frame[at] = byte;
            let before = frame.clone();
            assert!(!clamped(&mut frame, Checksum::Complete, 1000), "{what}");
            assert_eq!(frame, before);
        }
        let mut first_fragment = good.clone();
        first_fragment[20] = 0x20;
        assert!(clamped(&mut first_fragment, Checksum::Complete, 1000));
        let mut syn_ack = good;
        syn_ack[47] = 0x12;
        assert!(clamped(&mut syn_ack, Checksum::Complete, 1000));
    }

    /// Option lists of well-formed options at any alignment, filled up with NOPs.
    fn options() -> impl Strategy<Value = Vec<u8>> {
        let option = prop_oneof![
            Just(vec![1]),
            any::<u16>().prop_map(|mss| [[2, 4], mss.to_be_bytes()].concat()),
            Just(vec![3, 3, 7]),
            Just(vec![4, 2]),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(|data| [
                vec![30, data.len() as u8 + 2],
                data
            ]
            .concat()),
        ];
        prop::collection::vec(option, 0..8).prop_map(|parts| {
            let mut bytes = Vec::new();
            for part in parts {
                if bytes.len() + part.len() <= 40 {
                    bytes.extend(part);
                }
            }
            bytes.resize(bytes.len().next_multiple_of(4), 1);
            bytes
        })
    }

    proptest! {
        #[test]
        fn checksum_stays_right_and_nothing_else_changes(
            ipv6 in any::<bool>(),
            tags in 0..3_usize,
            options in options(),
            payload in prop::collection::vec(any::<u8>(), 0..50),
            max_l3 in 0..10_000_usize,
        ) {
            let before = syn_frame(ipv6, tags, &options, &payload);
            let mut frame = before.clone();
            let changed = clamped(&mut frame, Checksum::Complete, max_l3);
            prop_assert_eq!(changed, frame != before);
            prop_assert!(checksum_is_right(&frame));
            let (headers, least) = if ipv6 { (60, 1220) } else { (40, 536) };
            let limit = max_l3.saturating_sub(headers).max(least);
            let mut expected = options;
            let places = mss_places(&expected).unwrap();
            for place in (0..40).filter(|place| places >> place & 1 == 1) {
                let value = u16::from_be_bytes([expected[place], expected[place + 1]]);
                let value = usize::from(value).min(limit) as u16;
                expected[place..place + 2].copy_from_slice(&value.to_be_bytes());
            }
            prop_assert_eq!(options_of(&frame), expected);
            prop_assert!(!clamped(&mut frame, Checksum::Complete, max_l3));
        }

        #[test]
        fn random_options_never_panic(
            ipv6 in any::<bool>(),
            options in prop::collection::vec(any::<u8>(), 0..=40),
            faults in prop::collection::vec((0..120_usize, any::<u8>()), 0..6),
            keep in 0..150_usize,
            max_l3 in any::<usize>(),
        ) {
            let mut frame = syn_frame(ipv6, 0, &options, &[]);
            clamped(&mut frame.clone(), Checksum::Complete, max_l3);
            for (at, byte) in faults {
                if let Some(target) = frame.get_mut(at) {
                    *target = byte;
                }
            }
            frame.truncate(keep);
            let len = frame.len();
            clamped(&mut frame, Checksum::Complete, max_l3);
            prop_assert_eq!(frame.len(), len);
        }
    }
}
