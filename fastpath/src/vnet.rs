//! The virtio-net header in front of every frame of a tap: offload state, checked.
//!
//! The 12-byte form (virtio 1.2 section 5.1.6), in native byte order as on every tap file. No
//! segmentation offload is ever asked for, so a header that speaks of super-frames is refused.

use encap::wire::buf::Checksum;
use encap::wire::checksum::{complete_checksum, derive_partial};

/// Length of the header, in bytes.
pub const VNET_HEADER_LEN: usize = 12;

/// `csum_start` and `csum_offset` are valid and the sum is still to be taken.
const FLAG_NEEDS_CSUM: u8 = 1;
/// The sender vouches for the checksum: the frame is complete.
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;

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
    /// The header asks for something that was not negotiated, or points outside of the frame.
    pub fn checksum(&self, frame_len: usize) -> Result<Checksum, VnetFault> {
        if self.flags & !(FLAG_NEEDS_CSUM | FLAG_DATA_VALID) != 0 {
            return Err(VnetFault::Flags);
        }
        if self.gso_type != GSO_NONE {
            return Err(VnetFault::Segmentation);
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
}

/// What [`settle`] did with a frame's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The state stands as the header said it.
    AsAnnounced(Checksum),
    /// The place was not one that the other end would find again: the sum was taken here.
    CompletedHere,
}

/// Checks a header against its frame and makes the state one that can travel.
///
/// The far end derives start and offset by parsing. A partial checksum that sits elsewhere (that
/// of an inner header of a tunnel, say) is completed here, so that none leaves unmarked.
///
/// # Errors
/// As [`VnetHeader::checksum`].
pub fn settle(header: &VnetHeader, frame: &mut [u8]) -> Result<Settled, VnetFault> {
    let announced = header.checksum(frame.len())?;
    let Checksum::Partial { start, offset } = announced else {
        return Ok(Settled::AsAnnounced(announced));
    };
    if derive_partial(frame) == Some(announced) {
        return Ok(Settled::AsAnnounced(announced));
    }
    complete_checksum(frame, start, offset).map_err(|_| VnetFault::ChecksumOutside)?;
    Ok(Settled::CompletedHere)
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
        for gso_type in [1, 3, 4, 5, 0x80, 0x81] {
            let header = VnetHeader { gso_type, ..VnetHeader::for_checksum(UDP) };
            assert_eq!(header.checksum(100), Err(VnetFault::Segmentation));
        }
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
        let settled = settle(&VnetHeader::for_checksum(UDP), &mut frame);
        assert_eq!(settled, Ok(Settled::AsAnnounced(UDP)));
        assert_eq!(frame, udp_frame());

        let elsewhere = Checksum::Partial { start: 36, offset: 6 };
        let settled = settle(&VnetHeader::for_checksum(elsewhere), &mut frame);
        assert_eq!(settled, Ok(Settled::CompletedHere));
        assert_ne!(frame, udp_frame());
    }

    proptest! {
        #[test]
        fn any_header_over_any_frame_is_settled_or_refused(
            bytes in any::<[u8; VNET_HEADER_LEN]>(),
            calm in any::<bool>(),
            mut frame in prop::collection::vec(any::<u8>(), 0..128),
        ) {
            let mut header = VnetHeader::from_bytes(&bytes);
            prop_assert_eq!(header.to_bytes(), bytes);
            if calm {
                header = VnetHeader { flags: 1, gso_type: 0, ..header };
            }
            if let Ok(Settled::AsAnnounced(Checksum::Partial { start, offset })) =
                settle(&header, &mut frame)
            {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
            }
        }
    }
}
