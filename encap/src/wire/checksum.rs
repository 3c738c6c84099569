//! The L4 checksum that a sending kernel left for a device to finish.
//!
//! A kernel that hands a frame to a device with checksum offload stores only the pseudo-header
//! sum (folded, not complemented) in the checksum field. The frame then travels as it is: the
//! receiver finds the place again with [`derive_partial`] and lets its own device finish the
//! sum, or finishes it with [`complete_checksum`].
//!
//! Both functions take any bytes, from any sender, and never panic. [`sum_of`] and [`fold_sum`] are
//! the sum itself (RFC 1071), for code that writes or checks headers of its own.

use super::buf::Checksum;
use super::ethernet::{EtherType, EthernetView};

/// Offset of the checksum within a TCP header, in bytes (RFC 9293 section 3.1).
pub const TCP_CHECKSUM_OFFSET: u16 = 16;
/// Offset of the checksum within a UDP header, in bytes (RFC 768).
pub const UDP_CHECKSUM_OFFSET: u16 = 6;

/// IP protocol numbers, which are also IPv6 next-header values.
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
}

const IPV6_HEADER_LEN: usize = 40;
/// RFC 8200 section 4.1 lists at most four headers of the kinds that are looked through.
const MAX_EXTENSION_HEADERS: usize = 4;

/// The checksum field would lie outside of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("checksum field lies outside of the frame")]
pub struct OutsideFrame;

/// Finds the TCP or UDP checksum: a [`Checksum::Partial`] whose field lies within the frame.
///
/// Looks through at most two VLAN tags, IPv4 options, and the IPv6 hop-by-hop, routing and
/// destination-options headers. None for anything else, fragments included: no kernel leaves
/// the checksum of a fragment partial.
#[must_use]
pub fn derive_partial(frame: &[u8]) -> Option<Checksum> {
    let ethernet = EthernetView::new(frame).ok()?;
    let packet = ethernet.payload();
    let (next_header, header_len) = match ethernet.ether_type() {
        EtherType::IPV4 => transport_in_ipv4(packet)?,
        EtherType::IPV6 => transport_in_ipv6(packet)?,
        _ => return None,
    };
    let offset = match next_header {
        protocol::TCP => TCP_CHECKSUM_OFFSET,
        protocol::UDP => UDP_CHECKSUM_OFFSET,
        _ => return None,
    };
    let start = u16::try_from(ethernet.payload_offset() + header_len).ok()?;
    field(frame, start, offset).ok()?;
    Some(Checksum::Partial { start, offset })
}

/// Takes the sum over `frame[start..]`, seeded by what the checksum field holds, and stores its
/// complement at `start + offset` (both in bytes).
///
/// A UDP checksum (offset 6) that comes out as 0 is stored as 0xffff, since 0 says "none".
///
/// # Errors
/// [`OutsideFrame`] when the field does not lie within the frame; the frame is unchanged.
pub fn complete_checksum(frame: &mut [u8], start: u16, offset: u16) -> Result<(), OutsideFrame> {
    let at = field(frame, start, offset)?;
    let covered = frame.get(usize::from(start)..).ok_or(OutsideFrame)?;
    let mut checksum = !ones_complement_sum(covered);
    if checksum == 0 && offset == UDP_CHECKSUM_OFFSET {
        checksum = 0xffff;
    }
    let stored = frame.get_mut(at..at + 2).ok_or(OutsideFrame)?;
    stored.copy_from_slice(&checksum.to_ne_bytes());
    Ok(())
}

/// Position of the checksum field in the frame, which holds all of it.
fn field(frame: &[u8], start: u16, offset: u16) -> Result<usize, OutsideFrame> {
    let at = usize::from(start) + usize::from(offset);
    if at + 2 <= frame.len() { Ok(at) } else { Err(OutsideFrame) }
}

/// Protocol and header length in bytes of an unfragmented IPv4 packet (RFC 791 section 3.1).
fn transport_in_ipv4(packet: &[u8]) -> Option<(u8, usize)> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let more_or_later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] >> 4 != 4 || header_len < header.len() || more_or_later_fragment {
        return None;
    }
    Some((header[9], header_len))
}

/// Last next-header value and length in bytes of the IPv6 header with its extension headers
/// (RFC 8200 sections 3 and 4).
fn transport_in_ipv6(packet: &[u8]) -> Option<(u8, usize)> {
    let header: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut next_header = header[6];
    let mut len = IPV6_HEADER_LEN;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next_header {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                let extension: &[u8; 2] = packet.get(len..)?.first_chunk()?;
                next_header = extension[0];
                len += (usize::from(extension[1]) + 1) * 8;
            }
            _ => break,
        }
    }
    Some((next_header, len))
}

/// The folded sum of RFC 1071 in native byte order: the sum commutes with swapping bytes, so
/// whole native words are added and the result is stored as native bytes.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    fold_sum(sum_of(bytes))
}

/// The sum of at most 2^17 bytes as native words, an odd one padded with 0; not folded. May be
/// added to others of its kind, as long as all but the last are of an even number of bytes.
#[inline]
#[must_use]
pub fn sum_of(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_LEN>();
    let mut sum = if blocks.is_empty() { 0 } else { sum_of_blocks(blocks) };
    let (words, tail) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    sum + u64::from(u32::from_ne_bytes(last))
}

/// Two vectors of the least machine that we are built for.
const BLOCK_LEN: usize = 32;

/// Sums words of 32 bits without widening each: a wrapping sum of the words and an exact one of
/// their upper halves give that of the lower halves, which fits 32 bits as well.
fn sum_of_blocks(blocks: &[[u8; BLOCK_LEN]]) -> u64 {
    let mut words = [0_u32; BLOCK_LEN / 4];
    let mut upper = [0_u32; BLOCK_LEN / 4];
    for block in blocks {
        let (chunks, _) = block.as_chunks::<4>();
        // By index, into arrays whose length is known: nothing is left to the optimiser's mood.
        for at in 0..BLOCK_LEN / 4 {
            let word = u32::from_ne_bytes(chunks[at]);
            words[at] = words[at].wrapping_add(word);
            upper[at] = upper[at].wrapping_add(word >> 16);
        }
    }
    let lanes = words.iter().zip(&upper).map(|(words, upper)| {
        let lower = words.wrapping_sub(upper << 16);
        u64::from(lower) + (u64::from(*upper) << 16)
    });
    lanes.sum()
}

/// Folds a sum into 16 bits, in the byte order of its words. Of words that are not all zero it is
/// never 0.
#[inline]
#[must_use]
pub fn fold_sum(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    // At most 33 bits: 18 after the first step, 17 after the second.
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions,
        Ipv6FlowLabel, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, PacketHeaders,
    };
    use proptest::prelude::*;

    /// What a test frame is made of.
    #[derive(Debug, Clone)]
    struct Shape {
        ipv6: bool,
        tcp: bool,
        tags: usize,
        /// IPv4 options or an IPv6 hop-by-hop header, in units of 4 or 8 bytes.
        extra: usize,
        payload: Vec<u8>,
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        (
            any::<bool>(),
            any::<bool>(),
            0..3_usize,
            0..4_usize,
            prop::collection::vec(any::<u8>(), 0..600),
        )
            .prop_map(|(ipv6, tcp, tags, extra, payload)| Shape {
                ipv6,
                tcp,
                tags,
                extra,
                payload,
            })
    }

    fn ip_headers(shape: &Shape) -> IpHeaders {
        let number = if shape.tcp { IpNumber::TCP } else { IpNumber::UDP };
        if shape.ipv6 {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: number,
                hop_limit: 64,
                source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                destination: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            };
            let mut extensions = Ipv6Extensions::default();
            if shape.extra > 0 {
                // 6 bytes fill the first unit of 8; PadN options.
                let mut options = vec![0; 6 + 8 * (shape.extra - 1)];
                options[0] = 1;
                options[1] = (options.len() - 2) as u8;
                extensions.hop_by_hop_options =
                    Some(Ipv6RawExtHeader::new_raw(number, &options).unwrap());
            }
            IpHeaders::Ipv6(header, extensions)
        } else {
            let mut header = Ipv4Header::new(0, 64, number, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
            header.options = Ipv4Options::try_from(&vec![1; 4 * shape.extra][..]).unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
    }

    /// The frame with the checksum that etherparse computes.
    fn complete_frame(shape: &Shape) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let vlan = |id: u16| id.try_into().unwrap();
        let ip = ip_headers(shape);
        let ip = match shape.tags {
            0 => builder.ip(ip),
            1 => builder.single_vlan(vlan(7)).ip(ip),
            _ => builder.double_vlan(vlan(7), vlan(8)).ip(ip),
        };
        let mut frame = Vec::new();
        if shape.tcp {
            ip.tcp(4000, 5000, 0x0102_0304, 4096).write(&mut frame, &shape.payload).unwrap();
        } else {
            ip.udp(4000, 5000).write(&mut frame, &shape.payload).unwrap();
        }
        frame
    }

    /// Where etherparse says that the transport header starts.
    fn oracle_start(frame: &[u8]) -> usize {
        let headers = PacketHeaders::from_ethernet_slice(frame).unwrap();
        let transport_len = headers.transport.unwrap().header_len();
        frame.len() - headers.payload.slice().len() - transport_len
    }

    /// Pseudo-header sum by the book, one 16-bit word at a time.
    fn pseudo_header_sum(shape: &Shape, l4_len: usize) -> u16 {
        let mut bytes = Vec::new();
        match ip_headers(shape) {
            IpHeaders::Ipv4(header, _) => {
                bytes.extend(header.source);
                bytes.extend(header.destination);
            }
            IpHeaders::Ipv6(header, _) => {
                bytes.extend(header.source);
                bytes.extend(header.destination);
            }
        }
        bytes.extend((l4_len as u32).to_be_bytes());
        bytes.extend([0, if shape.tcp { 6 } else { 17 }]);
        let mut sum = 0_u32;
        for word in bytes.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word[1]);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn derives_and_completes_as_the_oracle_does(shape in shapes()) {
            let expected = complete_frame(&shape);
            let start = oracle_start(&expected);
            let offset = if shape.tcp { 16 } else { 6 };
            let derived = Checksum::Partial { start: start as u16, offset };
            prop_assert_eq!(derive_partial(&expected), Some(derived));

            let mut frame = expected.clone();
            let sum = pseudo_header_sum(&shape, frame.len() - start);
            let at = start + usize::from(offset);
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            complete_checksum(&mut frame, start as u16, offset).unwrap();
            prop_assert_eq!(frame, expected);
        }

        #[test]
        fn sums_are_those_of_the_book(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(ones_complement_sum(&bytes), sum_by_the_book(&bytes));
        }

        #[test]
        fn any_bytes_give_a_place_inside_or_none(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            if let Some(Checksum::Partial { start, offset }) = derive_partial(&bytes) {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= bytes.len());
            }
        }

        /// Valid frames with a few bytes overwritten reach deeper than noise does.
        #[test]
        fn mutated_and_cut_frames_give_a_place_inside_or_none(
            shape in shapes(),
            faults in prop::collection::vec((0..80_usize, any::<u8>()), 0..6),
            keep in 0..700_usize,
        ) {
            let mut frame = complete_frame(&shape);
            for (at, byte) in faults {
                if let Some(target) = frame.get_mut(at) {
                    *target = byte;
                }
            }
            frame.truncate(keep);
            if let Some(Checksum::Partial { start, offset }) = derive_partial(&frame) {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
                prop_assert_eq!(complete_checksum(&mut frame, start, offset), Ok(()));
            }
        }

        #[test]
        fn any_place_is_completed_or_refused(
            mut bytes in prop::collection::vec(any::<u8>(), 0..128),
            start in any::<u16>(),
            offset in any::<u16>(),
        ) {
            let inside = usize::from(start) + usize::from(offset) + 2 <= bytes.len();
            let before = bytes.clone();
            let done = complete_checksum(&mut bytes, start, offset);
            prop_assert_eq!(done.is_ok(), inside);
            if !inside {
                prop_assert_eq!(bytes, before);
            }
        }
    }

    /// One 16-bit word at a time, in native byte order.
    fn sum_by_the_book(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for word in bytes.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([word[0], *word.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn sums_of_any_length_and_of_the_largest_words_do_not_overflow() {
        for byte in [0, 1, 0x80, 0xff] {
            let bytes = vec![byte; 1 << 17];
            for len in (0..200).chain([1448, 65_535, 65_557, 1 << 17]) {
                let expected = sum_by_the_book(&bytes[..len]);
                assert_eq!(ones_complement_sum(&bytes[..len]), expected, "{len} of {byte}");
            }
        }
        assert_eq!(fold_sum(u64::MAX), 0xffff);
        assert_eq!(fold_sum(0xffff_ffff_0000_0001), 1);
        assert_eq!(fold_sum(0), 0);
    }

    #[test]
    fn checksum_zero_of_udp_is_stored_as_all_ones() {
        // Four bytes of UDP header that sum to 0xffff: the complement is 0.
        let mut udp = [0xff, 0xff, 0, 0, 0, 0, 0, 0];
        complete_checksum(&mut udp, 0, UDP_CHECKSUM_OFFSET).unwrap();
        assert_eq!(udp[6..], [0xff, 0xff]);
        let mut tcp = [0; 20];
        tcp[0..2].copy_from_slice(&[0xff, 0xff]);
        complete_checksum(&mut tcp, 0, TCP_CHECKSUM_OFFSET).unwrap();
        assert_eq!(tcp[16..18], [0, 0]);
    }

    #[test]
    fn fragments_and_other_protocols_have_no_partial_checksum() {
        let shape = Shape { ipv6: false, tcp: false, tags: 0, extra: 0, payload: vec![1; 40] };
        let frame = complete_frame(&shape);
        for (at, byte) in [(14, 0x65), (14, 0x44), (20, 0x20), (21, 1), (23, 1), (12, 0x86)] {
            let mut changed = frame.clone();
            changed[at] = byte;
            assert_eq!(derive_partial(&changed), None, "byte {at}");
        }
        let shape = Shape { ipv6: true, ..shape };
        let mut fragment = complete_frame(&shape);
        fragment[20] = 44;
        assert_eq!(derive_partial(&fragment), None);
    }

    #[test]
    fn chain_of_extension_headers_is_followed_only_so_far() {
        let mut frame = vec![0; 12];
        frame.extend(0x86dd_u16.to_be_bytes());
        let mut header = [0; IPV6_HEADER_LEN];
        header[0] = 0x60;
        header[6] = protocol::DESTINATION_OPTIONS;
        frame.extend(header);
        for _ in 0..MAX_EXTENSION_HEADERS {
            frame.extend([protocol::DESTINATION_OPTIONS, 0, 1, 4, 0, 0, 0, 0]);
        }
        let last = frame.len() - 8;
        frame.extend([0; 64]);
        assert_eq!(derive_partial(&frame), None);
        frame[last] = protocol::UDP;
        let start = (last + 8) as u16;
        assert_eq!(derive_partial(&frame), Some(Checksum::Partial { start, offset: 6 }));
    }
}
