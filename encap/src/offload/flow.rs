//! What coalescing reads of a frame: whose it is, and whether it may be part of a group.
//!
//! The rules are those of [`super::coalesce`].

use std::ops::Range;

use super::coalesce::Limits;
use super::tcp;
use crate::wire::buf::{Checksum, SegmentKind};
use crate::wire::checksum::{TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, fold_sum, sum_of};
use crate::wire::ethernet::{EtherType, EthernetView};
use crate::wire::inner_ip::protocol;

/// UDP ports of vxlan (RFC 7348, and Linux's own), Geneve (RFC 8926) and its forerunner.
const TUNNEL_PORTS: [u16; 4] = [4789, 8472, 6081, 6080];

/// Where the headers of a frame lie, and whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) l3: usize,
    pub(super) l4: usize,
    pub(super) is_v6: bool,
    pub(super) is_tcp: bool,
}

impl Flow {
    /// Finds TCP or UDP right behind an IP header of the usual length, with both ports.
    pub(super) fn find(frame: &[u8]) -> Option<Self> {
        let ethernet = EthernetView::new(frame).ok()?;
        let packet = ethernet.payload();
        let l3 = ethernet.payload_offset();
        let (is_v6, header_len, len, proto) = match ethernet.ether_type() {
            EtherType::IPV4 => {
                let [first, _, l0, l1, _, _, f0, f1, _, proto] = *packet.first_chunk()?;
                let is_fragment = u16::from_be_bytes([f0, f1]) & 0x3fff != 0;
                if first != 0x45 || is_fragment {
                    return None;
                }
                (false, 20, usize::from(u16::from_be_bytes([l0, l1])), proto)
            }
            EtherType::IPV6 => {
                let [first, _, _, _, l0, l1, next_header] = *packet.first_chunk()?;
                if first >> 4 != 6 {
                    return None;
                }
                (true, 40, 40 + usize::from(u16::from_be_bytes([l0, l1])), next_header)
            }
            _ => return None,
        };
        let is_tcp = match proto {
            protocol::TCP => true,
            protocol::UDP => false,
            _ => return None,
        };
        // Ports, and not padding.
        if len.min(packet.len()) < header_len + 4 {
            return None;
        }
        Some(Self { l3, l4: l3 + header_len, is_v6, is_tcp })
    }

    pub(super) fn kind(&self) -> SegmentKind {
        match (self.is_tcp, self.is_v6) {
            (true, false) => SegmentKind::Tcp4,
            (true, true) => SegmentKind::Tcp6,
            (false, _) => SegmentKind::Udp,
        }
    }

    pub(super) fn place(&self) -> Checksum {
        let offset = if self.is_tcp { TCP_CHECKSUM_OFFSET } else { UDP_CHECKSUM_OFFSET };
        Checksum::Partial { start: self.l4 as u16, offset }
    }

    /// Addresses and ports, which lie next to each other.
    fn endpoints(&self) -> Range<usize> {
        let addresses_len = if self.is_v6 { 32 } else { 8 };
        self.l4 - addresses_len..self.l4 + 4
    }

    /// The same for all frames of a flow, and most probably for no others.
    pub(super) fn key(&self, frame: &[u8]) -> u64 {
        let endpoints = frame.get(self.endpoints()).unwrap_or_default();
        let (words, _) = endpoints.as_chunks::<4>();
        words.iter().fold(0, |key, word| {
            key.rotate_left(21).wrapping_add(u64::from(u32::from_ne_bytes(*word)))
        })
    }

    /// Whether two frames with headers in these places are of one flow.
    pub(super) fn is_same(&self, header: &[u8], frame: &[u8]) -> bool {
        let has_same_ends = if self.is_v6 {
            is_alike::<36>(header, frame, self.l4 - 32)
        } else {
            is_alike::<12>(header, frame, self.l4 - 8)
        };
        let has_same_tags = || header.get(14..self.l3) == frame.get(14..self.l3);
        has_same_ends && is_alike::<14>(header, frame, 0) && (self.l3 == 14 || has_same_tags())
    }

    /// Whether two frames of one flow agree in all else that every segment repeats.
    pub(super) fn agrees(&self, header: &[u8], frame: &[u8]) -> bool {
        let (l3, l4) = (self.l3, self.l4);
        let ip = if self.is_v6 {
            // Version, class and flow label; next header and hop limit.
            is_alike::<4>(header, frame, l3) && is_alike::<2>(header, frame, l3 + 6)
        } else {
            // Length and service; flags, time to live and protocol.
            is_alike::<2>(header, frame, l3) && is_alike::<4>(header, frame, l3 + 6)
        };
        // Acknowledgement; window; urgent pointer and options, as many as the payload's place says.
        let segment = || {
            is_alike::<4>(header, frame, l4 + 8)
                && is_alike::<2>(header, frame, l4 + 14)
                && header.get(l4 + 18..) == frame.get(l4 + 18..header.len())
        };
        ip && (!self.is_tcp || segment())
    }
}

/// Whether both have the same `N` bytes at `at`. Of a size known beforehand they are compared
/// without a call.
#[inline]
fn is_alike<const N: usize>(header: &[u8], frame: &[u8], at: usize) -> bool {
    let piece = |bytes: &[u8]| bytes.get(at..).and_then(<[u8]>::first_chunk::<N>).copied();
    piece(header) == piece(frame)
}

/// A frame that may be part of a group, its L4 checksum aside.
pub(super) struct Piece {
    /// First byte of its payload, of which there is at least one.
    pub(super) payload: usize,
    pub(super) sequence: u32,
    pub(super) id: u16,
    /// Whether the identification has no meaning: DF, or no such field.
    pub(super) is_id_free: bool,
    pub(super) ip_checksum: u16,
    /// Nothing may follow it.
    pub(super) is_last: bool,
}

impl Piece {
    pub(super) fn find(frame: &[u8], flow: &Flow, limits: Limits) -> Option<Self> {
        if !(if flow.is_tcp { limits.tcp } else { limits.udp }) {
            return None;
        }
        let segment = frame.get(flow.l4..)?;
        let (header_len, sequence, is_last) = if flow.is_tcp {
            let header: &[u8; 20] = segment.first_chunk()?;
            let [_, _, _, _, s0, s1, s2, s3, _, _, _, _, data_offset, flags, _, _, _, _, _, _] =
                *header;
            let header_len = usize::from(data_offset >> 4) * 4;
            if flags & !tcp::PSH != tcp::ACK || data_offset & 0x0f != 0 || header_len < 20 {
                return None;
            }
            (header_len, u32::from_be_bytes([s0, s1, s2, s3]), flags & tcp::PSH != 0)
        } else {
            let [_, _, to0, to1, l0, l1, c0, c1] = *segment.first_chunk()?;
            // Kernels before 6.8.5 take super-frames of tunnels apart wrongly.
            if TUNNEL_PORTS.contains(&u16::from_be_bytes([to0, to1])) {
                return None;
            }
            if usize::from(u16::from_be_bytes([l0, l1])) != segment.len() || c0 | c1 == 0 {
                return None;
            }
            (8, 0, false)
        };
        if segment.len() <= header_len {
            return None;
        }
        let mut piece = Self {
            payload: flow.l4 + header_len,
            sequence,
            id: 0,
            is_id_free: true,
            ip_checksum: 0,
            is_last,
        };
        piece.check_ip(frame.get(flow.l3..)?, flow.is_v6)?;
        Some(piece)
    }

    fn check_ip(&mut self, packet: &[u8], is_v6: bool) -> Option<()> {
        if is_v6 {
            let [_, _, _, _, l0, l1] = *packet.first_chunk()?;
            let len = usize::from(u16::from_be_bytes([l0, l1])) + 40;
            return (len == packet.len()).then_some(());
        }
        let header: &[u8; 20] = packet.first_chunk()?;
        let [_, _, l0, l1, i0, i1, flags, _, _, _, c0, c1, _, _, _, _, _, _, _, _] = *header;
        self.id = u16::from_be_bytes([i0, i1]);
        self.is_id_free = flags & 0x40 != 0;
        self.ip_checksum = u16::from_be_bytes([c0, c1]);
        let is_sound = usize::from(u16::from_be_bytes([l0, l1])) == packet.len()
            && self.ip_checksum != 0xffff
            && fold_sum(sum_of(header)) == 0xffff;
        is_sound.then_some(())
    }
}

/// The sum of the pseudo-header without the L4 length, if the L4 checksum of the frame is right:
/// not folded, in native byte order.
pub(super) fn sound_pseudo_sum(frame: &[u8], flow: &Flow, checksum: Checksum) -> Option<u64> {
    let segment = frame.get(flow.l4..)?;
    let addresses = if flow.is_v6 {
        sum_of(frame.get(flow.l4 - 32..)?.first_chunk::<32>()?)
    } else {
        sum_of(frame.get(flow.l4 - 8..)?.first_chunk::<8>()?)
    };
    let proto = if flow.is_tcp { protocol::TCP } else { protocol::UDP };
    let pseudo = addresses + native(u16::from(proto));
    let whole = pseudo + native(segment.len() as u16);
    let offset = if flow.is_tcp { TCP_CHECKSUM_OFFSET } else { UDP_CHECKSUM_OFFSET };
    let stored = u16::from_ne_bytes(*segment.get(usize::from(offset)..)?.first_chunk()?);
    let is_sound = match checksum {
        // No sender of TCP writes 0xffff: the complement of a sum is that only where all is zero.
        Checksum::Complete => {
            !(flow.is_tcp && stored == 0xffff) && fold_sum(whole + sum_of(segment)) == 0xffff
        }
        Checksum::Partial { .. } => checksum == flow.place() && stored == fold_sum(whole),
    };
    is_sound.then_some(pseudo)
}

/// A number in network byte order as a native word of a sum.
pub(super) fn native(number: u16) -> u64 {
    u64::from(number.to_be())
}
