//! The virtio-net header in front of every frame of a tap: offload state, checked.
//!
//! The 12-byte form (virtio 1.2 section 5.1.6), in native byte order as on every tap file. A
//! header that speaks of super-frames of a kind that nobody asked for is refused.

use encap::wire::buf::{Checksum, Offload, SegmentKind, Segmentation};
use encap::wire::checksum::{
    TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, complete_checksum, derive_partial,
};
use encap::wire::ethernet::{EtherType, EthernetView};

use crate::tap::OffloadSwitches;

/// Length of the header, in bytes.
pub const VNET_HEADER_LEN: usize = 12;

/// `csum_start` and `csum_offset` are valid and the sum is still to be taken.
const FLAG_NEEDS_CSUM: u8 = 1;
/// The sender vouches for the checksum: the frame is complete.
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Beside the kind: the first segment bears CWR.
const GSO_ECN: u8 = 0x80;

/// Why a header is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VnetFault {
    /// A super-frame, which nobody asked for.
    #[error("header announces segmentation that was not negotiated")]
    Segmentation,
    /// Receive coalescing information or a flag from the future.
    #[error("header has flags that were not negotiated")]
    Flags,
    /// The checksum field would lie outside of the frame.
    #[error("checksum field lies outside of the frame")]
    ChecksumOutside,
    /// Not the super-frame that it is said to be.
    #[error("header announces a super-frame that the frame is not")]
    SuperFrame,
}

/// The header's fields. `hdr_len` and `num_buffers` are hints that a reader must not believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    num_buffers: u16,
}

impl VnetHeader {
    /// The header of a frame that leaves with `checksum` to be done.
    #[must_use]
    pub fn for_checksum(checksum: Checksum) -> Self {
        match checksum {
            Checksum::Complete => Self::default(),
            Checksum::Partial { start, offset } => Self {
                flags: FLAG_NEEDS_CSUM,
                csum_start: start,
                csum_offset: offset,
                ..Self::default()
            },
        }
    }

    /// The header of a frame that leaves with `offload` to be done; of a super-frame also the
    /// bytes of its headers, Ethernet to L4.
    #[must_use]
    pub fn for_offload(offload: Offload, header_len: usize) -> Self {
        let header = Self::for_checksum(offload.checksum);
        let Some(segmentation) = offload.segmentation else { return header };
        let kind = match segmentation.kind {
            SegmentKind::Tcp4 => GSO_TCPV4,
            SegmentKind::Tcp6 => GSO_TCPV6,
            SegmentKind::Udp => GSO_UDP_L4,
        };
        let ecn = if segmentation.ecn { GSO_ECN } else { 0 };
        // A hint: one that does not fit is none.
        let hdr_len = u16::try_from(header_len).unwrap_or(0);
        Self { gso_type: kind | ecn, gso_size: segmentation.size, hdr_len, ..header }
    }

    /// Reads the fields; nothing is checked yet.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; VNET_HEADER_LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
            num_buffers: u16::from_ne_bytes([n0, n1]),
        }
    }

    /// Writes the fields.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VNET_HEADER_LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        let [n0, n1] = self.num_buffers.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// What the header says about the checksum of a frame of `frame_len` bytes.
    ///
    /// # Errors
    /// The header has flags that were not negotiated, or points outside of the frame.
    pub fn checksum(&self, frame_len: usize) -> Result<Checksum, VnetFault> {
        if self.flags & !(FLAG_NEEDS_CSUM | FLAG_DATA_VALID) != 0 {
            return Err(VnetFault::Flags);
        }
        if self.flags & FLAG_NEEDS_CSUM == 0 {
            return Ok(Checksum::Complete);
        }
        let (start, offset) = (self.csum_start, self.csum_offset);
        if usize::from(start) + usize::from(offset) + 2 > frame_len {
            return Err(VnetFault::ChecksumOutside);
        }
        Ok(Checksum::Partial { start, offset })
    }

    /// What the header says about how a frame is to be cut: not at all, if it is no super-frame.
    ///
    /// # Errors
    /// A super-frame of a kind that was not negotiated, or of segments without payload.
    pub fn segmentation(
        &self,
        negotiated: OffloadSwitches,
    ) -> Result<Option<Segmentation>, VnetFault> {
        let kind = match self.gso_type & !GSO_ECN {
            GSO_NONE if self.gso_type == GSO_NONE => return Ok(None),
            GSO_TCPV4 => SegmentKind::Tcp4,
            GSO_TCPV6 => SegmentKind::Tcp6,
            GSO_UDP_L4 => SegmentKind::Udp,
            _ => return Err(VnetFault::Segmentation),
        };
        if !negotiated.allow(kind) {
            return Err(VnetFault::Segmentation);
        }
        let ecn = self.gso_type & GSO_ECN != 0;
        if self.gso_size == 0 || (ecn && kind == SegmentKind::Udp) {
            return Err(VnetFault::SuperFrame);
        }
        Ok(Some(Segmentation { kind, size: self.gso_size, ecn }))
    }
}

/// What [`settle`] did with a frame's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The state stands as the header said it.
    AsAnnounced(Offload),
    /// The place was not one that the other end would find again: the sum was taken here.
    CompletedHere,
}

/// Checks a header against its frame and makes the state one that can travel.
///
/// The far end derives start and offset by parsing. A partial checksum that sits elsewhere (that
/// of an inner header of a tunnel, say) is completed here, so that none leaves unmarked.
///
/// # Errors
/// As [`VnetHeader::checksum`] and [`VnetHeader::segmentation`]; or the frame is not the super-frame
/// that the header announces.
pub fn settle(
    header: &VnetHeader,
    frame: &mut [u8],
    negotiated: OffloadSwitches,
) -> Result<Settled, VnetFault> {
    let checksum = header.checksum(frame.len())?;
    let segmentation = header.segmentation(negotiated)?;
    let announced = Settled::AsAnnounced(Offload { checksum, segmentation });
    if let Some(segmentation) = segmentation {
        let sound = is_super_frame(frame, segmentation.kind, checksum);
        return if sound { Ok(announced) } else { Err(VnetFault::SuperFrame) };
    }
    let Checksum::Partial { start, offset } = checksum else {
        return Ok(announced);
    };
    if derive_partial(frame) == Some(checksum) {
        return Ok(announced);
    }
    complete_checksum(frame, start, offset).map_err(|_| VnetFault::ChecksumOutside)?;
    Ok(Settled::CompletedHere)
}

/// Whether a frame bears what the header says of its kind, and a partial checksum where its
/// headers have theirs.
///
/// `hdr_len` plays no part: of a forwarded packet it may be that of the whole first segment.
fn is_super_frame(frame: &[u8], kind: SegmentKind, checksum: Checksum) -> bool {
    let Checksum::Partial { offset, .. } = checksum else { return false };
    if derive_partial(frame) != Some(checksum) {
        return false;
    }
    let version = EthernetView::new(frame).map(|ethernet| ethernet.ether_type());
    match kind {
        SegmentKind::Tcp4 => offset == TCP_CHECKSUM_OFFSET && version == Ok(EtherType::IPV4),
        SegmentKind::Tcp6 => offset == TCP_CHECKSUM_OFFSET && version == Ok(EtherType::IPV6),
        SegmentKind::Udp => offset == UDP_CHECKSUM_OFFSET,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn udp_frame() -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut frame, b"payload")
            .unwrap();
        frame
    }

    const UDP: Checksum = Checksum::Partial { start: 34, offset: 6 };

    #[test]
    fn layout_is_that_of_virtio() {
        let header = VnetHeader::for_checksum(Checksum::Partial { start: 0x0102, offset: 0x0304 });
        let mut expected = [0; VNET_HEADER_LEN];
        expected[0] = 1;
        expected[6..8].copy_from_slice(&0x0102_u16.to_ne_bytes());
        expected[8..10].copy_from_slice(&0x0304_u16.to_ne_bytes());
        assert_eq!(header.to_bytes(), expected);
        assert_eq!(VnetHeader::for_checksum(Checksum::Complete).to_bytes(), [0; VNET_HEADER_LEN]);
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let refused = Err(VnetFault::Segmentation);
        let tcp = OffloadSwitches { segmentation_udp: false, ..OffloadSwitches::ALL };
        let udp = OffloadSwitches { segmentation_tcp: false, ..OffloadSwitches::ALL };
        let gso = |gso_type| VnetHeader { gso_type, gso_size: 9, ..VnetHeader::default() };
        for gso_type in [1, 3, 4, 5, 0x80, 0x81] {
            assert_eq!(gso(gso_type).segmentation(OffloadSwitches::CHECKSUM), refused);
        }
        for gso_type in [2, 3, 6, 0x20, 0x25, 0x80, 0x83] {
            assert_eq!(gso(gso_type).segmentation(OffloadSwitches::ALL), refused, "{gso_type}");
        }
        for gso_type in [1, 4, 0x81, 0x84] {
            assert!(gso(gso_type).segmentation(tcp).is_ok_and(|found| found.is_some()));
            assert_eq!(gso(gso_type).segmentation(udp), refused);
        }
        assert!(gso(5).segmentation(udp).is_ok_and(|found| found.is_some()));
        assert_eq!(gso(5).segmentation(tcp), refused);
        for flags in [4, 5, 8, 0x80] {
            let header = VnetHeader { flags, ..VnetHeader::default() };
            assert_eq!(header.checksum(100), Err(VnetFault::Flags));
        }
        let data_valid = VnetHeader { flags: FLAG_DATA_VALID, ..VnetHeader::default() };
        assert_eq!(data_valid.checksum(100), Ok(Checksum::Complete));
    }

    #[test]
    fn checksum_field_must_lie_in_the_frame() {
        let header = VnetHeader::for_checksum(UDP);
        assert_eq!(header.checksum(41), Err(VnetFault::ChecksumOutside));
        assert_eq!(header.checksum(42), Ok(UDP));
        let header = VnetHeader::for_checksum(Checksum::Partial { start: 0xffff, offset: 0xffff });
        assert_eq!(header.checksum(65_535), Err(VnetFault::ChecksumOutside));
    }

    #[test]
    fn partial_stays_partial_only_where_the_far_end_finds_it() {
        let mut frame = udp_frame();
        let none = OffloadSwitches::CHECKSUM;
        let settled = settle(&VnetHeader::for_checksum(UDP), &mut frame, none);
        let as_it_is = Offload { checksum: UDP, segmentation: None };
        assert_eq!(settled, Ok(Settled::AsAnnounced(as_it_is)));
        assert_eq!(frame, udp_frame());

        let elsewhere = Checksum::Partial { start: 36, offset: 6 };
        let settled = settle(&VnetHeader::for_checksum(elsewhere), &mut frame, none);
        assert_eq!(settled, Ok(Settled::CompletedHere));
        assert_ne!(frame, udp_frame());
    }

    fn tcp_frame(ipv6: bool) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let builder = if ipv6 {
            builder.ipv6([1; 16], [2; 16], 64)
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut frame = Vec::new();
        builder.tcp(1, 2, 3, 4).write(&mut frame, &[7; 100]).unwrap();
        frame
    }

    #[test]
    fn super_frames_are_what_their_headers_say() {
        use SegmentKind::{Tcp4, Tcp6, Udp};
        let frames = [(tcp_frame(false), Tcp4), (tcp_frame(true), Tcp6), (udp_frame(), Udp)];
        for (frame, of_frame) in &frames {
            let checksum = derive_partial(frame).unwrap();
            for kind in [Tcp4, Tcp6, Udp] {
                let segmentation = Some(Segmentation { kind, size: 9, ecn: false });
                let offload = Offload { checksum, segmentation };
                let header = VnetHeader::for_offload(offload, 1234);
                assert_eq!(VnetHeader::from_bytes(&header.to_bytes()), header);
                let settled = settle(&header, &mut frame.clone(), OffloadSwitches::ALL);
                if kind == *of_frame {
                    assert_eq!(settled, Ok(Settled::AsAnnounced(offload)));
                } else {
                    assert_eq!(settled, Err(VnetFault::SuperFrame), "{kind:?} {of_frame:?}");
                }
            }
        }
    }

    #[test]
    fn super_frames_without_what_they_need_are_refused() {
        let mut frame = tcp_frame(false);
        let checksum = derive_partial(&frame).unwrap();
        let segmentation = Segmentation { kind: SegmentKind::Tcp4, size: 9, ecn: true };
        let good =
            VnetHeader::for_offload(Offload { checksum, segmentation: Some(segmentation) }, 54);
        let beside = Checksum::Partial { start: 36, offset: 16 };
        let of_udp = VnetHeader::for_checksum(UDP);
        for header in [
            VnetHeader { gso_size: 0, ..good },
            VnetHeader { flags: 0, ..good },
            VnetHeader { flags: FLAG_DATA_VALID, ..good },
            VnetHeader { gso_type: 1, gso_size: 9, ..VnetHeader::for_checksum(beside) },
            VnetHeader { gso_type: 0x85, gso_size: 9, ..of_udp },
        ] {
            let settled = settle(&header, &mut frame, OffloadSwitches::ALL);
            assert_eq!(settled, Err(VnetFault::SuperFrame), "{header:?}");
        }
        // The length of the headers is a hint that is not believed.
        for hdr_len in [0, 1, 0xffff] {
            let header = VnetHeader { hdr_len, ..good };
            assert!(settle(&header, &mut frame, OffloadSwitches::ALL).is_ok());
        }
        assert_eq!(frame, tcp_frame(false));
        // A fragment is no super-frame.
        frame[20] |= 0x20;
        assert_eq!(settle(&good, &mut frame, OffloadSwitches::ALL), Err(VnetFault::SuperFrame));
    }

    proptest! {
        #[test]
        fn any_header_over_any_frame_is_settled_or_refused(
            bytes in any::<[u8; VNET_HEADER_LEN]>(),
            calm in any::<bool>(),
            negotiated in prop::sample::select(vec![OffloadSwitches::ALL, OffloadSwitches::CHECKSUM]),
            mut frame in prop::collection::vec(any::<u8>(), 0..128),
        ) {
            let mut header = VnetHeader::from_bytes(&bytes);
            prop_assert_eq!(header.to_bytes(), bytes);
            if calm {
                header = VnetHeader { flags: 1, gso_type: 0, ..header };
            }
            if let Ok(Settled::AsAnnounced(offload)) = settle(&header, &mut frame, negotiated) {
                if let Checksum::Partial { start, offset } = offload.checksum {
                    prop_assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
                }
                if let Some(segmentation) = offload.segmentation {
                    prop_assert!(segmentation.size > 0 && negotiated.allow(segmentation.kind));
                    prop_assert_eq!(derive_partial(&frame), Some(offload.checksum));
                }
            }
        }
    }
}
