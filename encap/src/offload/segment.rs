//! A super-frame and the segments that it stands for: software segmentation (TSO, USO).
//!
//! A tap that was told so hands over one frame of up to 64 KiB for several that share their
//! headers. [`SuperFrame::new`] believes nothing of what comes with it; [`SuperFrame::write`]
//! gives each segment as Linux's own segmentation would have made it.

use crate::wire::buf::{Checksum, SegmentKind, Segmentation};
use crate::wire::checksum::{TCP_CHECKSUM_OFFSET, complete_checksum, derive_partial, fold_sum};
use crate::wire::ethernet::{EtherType, EthernetView};

use super::tcp::{CWR, FIN, PSH};

/// Most segments of one super-frame. 64 KiB in segments of the least size that TCP's peers agree
/// on in earnest (RFC 879: 536 bytes) are 123; more than this is someone who wants many frames
/// for few bytes.
pub const MAX_SEGMENTS: usize = 2048;

/// Why a super-frame is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFault {
    /// No TCP or UDP header of an unfragmented IP packet behind at most two VLAN tags.
    #[error("super-frame without a TCP or UDP header that is found")]
    Headers,
    /// TCP where UDP was said, or the other version of IP.
    #[error("super-frame is of another protocol than announced")]
    Kind,
    /// The checksum is complete, or said to be elsewhere than it is.
    #[error("super-frame whose checksum is not partial at its place")]
    Checksum,
    /// Segments of no bytes.
    #[error("super-frame with segments of size 0")]
    Size,
    /// An ECN mark on what is not TCP.
    #[error("super-frame that has TCP's ECN mark without being TCP")]
    Ecn,
    /// A length in the IP, TCP or UDP header that does not fit the frame.
    #[error("super-frame whose headers give another length")]
    Length,
    /// More than [`MAX_SEGMENTS`].
    #[error("super-frame of too many segments")]
    TooMany,
}

/// A super-frame whose headers were checked, ready to be cut.
#[derive(Debug, Clone, Copy)]
pub struct SuperFrame<'a> {
    /// Ethernet to L4.
    header: &'a [u8],
    payload: &'a [u8],
    /// Payload bytes of each segment but the last.
    size: usize,
    count: usize,
    l3: usize,
    l4: usize,
    is_v6: bool,
    is_tcp: bool,
    place: Checksum,
    /// IPv4 identification of the first segment.
    id: u16,
    /// TCP sequence number of the first segment.
    sequence: u32,
    /// The IPv4 header without total length and identification, as a sum that was not folded.
    ip_sum: u64,
    /// The pseudo-header without the L4 length, as a sum that was not folded.
    pseudo_sum: u64,
}

impl<'a> SuperFrame<'a> {
    /// Checks everything that cutting relies on. What a header says of its own length (`hdr_len`
    /// of virtio-net) is never used.
    ///
    /// # Errors
    /// What does not fit together; the frame must be dropped.
    pub fn new(
        frame: &'a [u8],
        segmentation: Segmentation,
        checksum: Checksum,
    ) -> Result<Self, SegmentFault> {
        let place = derive_partial(frame).ok_or(SegmentFault::Headers)?;
        let Checksum::Partial { start, offset } = place else { return Err(SegmentFault::Headers) };
        let ethernet = EthernetView::new(frame).map_err(|_| SegmentFault::Headers)?;
        let (l3, l4) = (ethernet.payload_offset(), usize::from(start));
        let is_v6 = ethernet.ether_type() == EtherType::IPV6;
        let is_tcp = offset == TCP_CHECKSUM_OFFSET;
        let size = usize::from(segmentation.size);
        match segmentation.kind {
            SegmentKind::Tcp4 if is_tcp && !is_v6 => {}
            SegmentKind::Tcp6 if is_tcp && is_v6 => {}
            SegmentKind::Udp if !is_tcp => {}
            _ => return Err(SegmentFault::Kind),
        }
        if checksum != place {
            return Err(SegmentFault::Checksum);
        }
        if segmentation.ecn && !is_tcp {
            return Err(SegmentFault::Ecn);
        }
        if size == 0 {
            return Err(SegmentFault::Size);
        }
        let ip = Ip::check(ethernet.payload(), is_v6)?;
        let l4_len = frame.len() - l4;
        let transport = Transport::check(frame.get(l4..).unwrap_or_default(), is_tcp)?;
        let (header, payload) =
            frame.split_at_checked(l4 + transport.header_len).ok_or(SegmentFault::Length)?;
        // Without payload it is one segment of headers alone.
        let count = payload.len().div_ceil(size).max(1);
        if count > MAX_SEGMENTS {
            return Err(SegmentFault::TooMany);
        }
        Ok(Self {
            header,
            payload,
            size,
            count,
            l3,
            l4,
            is_v6,
            is_tcp,
            place,
            id: ip.id,
            sequence: transport.sequence,
            ip_sum: ip.sum,
            pseudo_sum: u64::from(transport.checksum) + u64::from(!(l4_len as u16)),
        })
    }

    /// Number of segments, 1 to [`MAX_SEGMENTS`].
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes in front of the payload of each segment: Ethernet to L4.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.header.len()
    }

    /// Bytes of segment `index` as a frame; 0 where there is no such segment.
    #[must_use]
    pub fn segment_len(&self, index: usize) -> usize {
        self.payload_of(index).map_or(0, |payload| self.header.len() + payload.len())
    }

    /// Where the checksum of each segment is, when left partial: where that of the whole is.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.place
    }

    /// Appends segment `index` to `out`; nothing where there is no such segment.
    ///
    /// Its L4 checksum is left partial, or with `complete` is taken here. As in Linux it goes by
    /// what the field of the whole holds: a wrong one gives wrong ones.
    pub fn write(&self, index: usize, complete: bool, out: &mut Vec<u8>) {
        let Some(payload) = self.payload_of(index) else { return };
        let begin = out.len();
        out.reserve(self.header.len() + payload.len());
        out.extend_from_slice(self.header);
        if let Some(header) = out.get_mut(begin..) {
            self.write_ip(index, payload.len(), header);
            self.write_transport(index, payload.len(), header);
        }
        out.extend_from_slice(payload);
        if let (true, Checksum::Partial { start, offset }) = (complete, self.place)
            && let Some(frame) = out.get_mut(begin..)
        {
            // The place is inside the header, so inside the segment.
            let _ = complete_checksum(frame, start, offset);
        }
    }

    fn payload_of(&self, index: usize) -> Option<&'a [u8]> {
        if index >= self.count {
            return None;
        }
        let start = index * self.size;
        self.payload.get(start..self.payload.len().min(start + self.size))
    }

    /// Length, identification and header checksum. A header checksum that was wrong stays so.
    fn write_ip(&self, index: usize, payload_len: usize, header: &mut [u8]) {
        let len = self.header.len() - self.l3 + payload_len;
        let Some(ip) = header.get_mut(self.l3..) else { return };
        if self.is_v6 {
            if let Some([_, _, _, _, l0, l1]) = ip.first_chunk_mut() {
                [*l0, *l1] = ((len - IPV6_HEADER_LEN) as u16).to_be_bytes();
            }
            return;
        }
        let len = len as u16;
        if let Some([_, _, l0, l1, i0, i1, _, _, _, _, c0, c1]) = ip.first_chunk_mut() {
            let id = self.id.wrapping_add(index as u16);
            [*l0, *l1] = len.to_be_bytes();
            [*i0, *i1] = id.to_be_bytes();
            [*c0, *c1] = (!fold_sum(self.ip_sum + u64::from(len) + u64::from(id))).to_be_bytes();
        }
    }

    /// Sequence number and flags, or length; and the pseudo-header's sum.
    fn write_transport(&self, index: usize, payload_len: usize, header: &mut [u8]) {
        let len = (self.header.len() - self.l4 + payload_len) as u16;
        let checksum = fold_sum(self.pseudo_sum + u64::from(len)).to_be_bytes();
        let Some(l4) = header.get_mut(self.l4..) else { return };
        if !self.is_tcp {
            if let Some([_, _, _, _, l0, l1, c0, c1]) = l4.first_chunk_mut() {
                [*l0, *l1] = len.to_be_bytes();
                [*c0, *c1] = checksum;
            }
        } else if let Some([_, _, _, _, s0, s1, s2, s3, _, _, _, _, _, flags, _, _, c0, c1]) =
            l4.first_chunk_mut()
        {
            let sequence = self.sequence.wrapping_add((index * self.size) as u32);
            [*s0, *s1, *s2, *s3] = sequence.to_be_bytes();
            if index > 0 {
                *flags &= !CWR;
            }
            if index + 1 < self.count {
                *flags &= !(FIN | PSH);
            }
            [*c0, *c1] = checksum;
        }
    }
}

/// Bytes of the fixed IPv6 header, which its length field leaves out.
const IPV6_HEADER_LEN: usize = 40;
/// Bytes of a UDP header.
const UDP_HEADER_LEN: usize = 8;

/// What varies in an IP header whose length is that of the packet.
struct Ip {
    id: u16,
    sum: u64,
}

impl Ip {
    fn check(packet: &[u8], is_v6: bool) -> Result<Self, SegmentFault> {
        let header: &[u8; 12] = packet.first_chunk().ok_or(SegmentFault::Headers)?;
        if is_v6 {
            let [_, _, _, _, l0, l1, ..] = *header;
            let len = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([l0, l1]));
            let is_sound = len == packet.len();
            return if is_sound { Ok(Self { id: 0, sum: 0 }) } else { Err(SegmentFault::Length) };
        }
        let [_, _, l0, l1, i0, i1, _, _, _, _, c0, c1] = *header;
        let len = u16::from_be_bytes([l0, l1]);
        if usize::from(len) != packet.len() {
            return Err(SegmentFault::Length);
        }
        let id = u16::from_be_bytes([i0, i1]);
        // RFC 1624: what the checksum covers, less the two words that will change.
        let sum = [u16::from_be_bytes([c0, c1]), len, id].into_iter().map(|word| u64::from(!word));
        Ok(Self { id, sum: sum.sum() })
    }
}

/// What varies in an L4 header that lies within the packet.
struct Transport {
    header_len: usize,
    sequence: u32,
    checksum: u16,
}

impl Transport {
    fn check(segment: &[u8], is_tcp: bool) -> Result<Self, SegmentFault> {
        if is_tcp {
            let header: &[u8; 20] = segment.first_chunk().ok_or(SegmentFault::Length)?;
            let [_, _, _, _, s0, s1, s2, s3, _, _, _, _, data_offset, _, _, _, c0, c1, _, _] =
                *header;
            let header_len = usize::from(data_offset >> 4) * 4;
            if header_len < header.len() || header_len > segment.len() {
                return Err(SegmentFault::Length);
            }
            let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
            return Ok(Self { header_len, sequence, checksum: u16::from_be_bytes([c0, c1]) });
        }
        let header: &[u8; UDP_HEADER_LEN] = segment.first_chunk().ok_or(SegmentFault::Length)?;
        let [_, _, _, _, l0, l1, c0, c1] = *header;
        if usize::from(u16::from_be_bytes([l0, l1])) != segment.len() {
            return Err(SegmentFault::Length);
        }
        let checksum = u16::from_be_bytes([c0, c1]);
        Ok(Self { header_len: UDP_HEADER_LEN, sequence: 0, checksum })
    }
}

#[cfg(test)]
mod tests;
