//! The data header: 8 clear bytes, all of them associated data, and 2 sealed ones.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! |FMT|EPO|          session slot (20)            |   lane (8)    |   clear
//! |                    sequence number (32)                       |   clear
//! | kind  |     handle (12)       |  payload ...                      sealed
//! |                  AES-256-GCM tag (16)                         |
//! ```
//!
//! Big-endian. Rules H1 to H6 are in `docs/protocol.md`.
//!
//! Next: [`crate::crypto::seal`] on the way out, [`crate::crypto::replay`] on the way in.

use crate::crypto::aead::TAG_LEN;

/// Bytes of the clear part.
pub const CLEAR_HEADER_LEN: usize = 8;
/// Bytes of the sealed part in front of the payload.
pub const INNER_HEADER_LEN: usize = 2;
/// What a sealed datagram adds to its payload.
pub const SEALED_OVERHEAD: usize = CLEAR_HEADER_LEN + INNER_HEADER_LEN + TAG_LEN;
/// What a clear-mode datagram adds to its payload.
pub const CLEAR_OVERHEAD: usize = CLEAR_HEADER_LEN + INNER_HEADER_LEN;
/// Bytes of the explicit VNI (24 bits, then 8 reserved) of kind 1.
pub const EXPLICIT_VNI_LEN: usize = 4;

const _: () = assert!(SEALED_OVERHEAD == 26 && CLEAR_OVERHEAD == 10);

/// The first two bits: what the rest means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `00`: a handshake message.
    Long,
    /// `01`: protected data.
    Sealed,
    /// `10`: clear-mode data.
    Clear,
    /// `11`: reserved; counted and dropped.
    Reserved,
}

impl Format {
    /// The format that a first byte says.
    #[must_use]
    pub const fn of(first_byte: u8) -> Self {
        match first_byte >> 6 {
            0 => Self::Long,
            1 => Self::Sealed,
            2 => Self::Clear,
            _ => Self::Reserved,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Long => 0,
            Self::Sealed => 1,
            Self::Clear => 2,
            Self::Reserved => 3,
        }
    }
}

/// The receiver's index of a session, 20 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// Number of slots, 2^20.
    pub const COUNT: u32 = 1 << 20;
}

/// A sender's private sequence space: bucket (flow or worker) in the high four bits, home link or
/// class in the low four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u8);

impl Lane {
    /// Bucket that belongs to the control thread.
    pub const CONTROL_BUCKET: u8 = 15;
    /// Class of control messages, on any link.
    pub const CONTROL_CLASS: u8 = 14;
    /// The control thread's lane.
    pub const CONTROL: Self = Self::new(Self::CONTROL_BUCKET, Self::CONTROL_CLASS);
    /// Number of lanes.
    pub const COUNT: usize = 256;

    /// Lane of `bucket` (0..=15) and `class` (0..=7 home link, 14 control, 15 duplicated).
    #[must_use]
    pub const fn new(bucket: u8, class: u8) -> Self {
        Self(bucket << 4 | class & 0x0f)
    }

    /// The bucket, 0..=15.
    #[must_use]
    pub const fn bucket(self) -> u8 {
        self.0 >> 4
    }
}

/// The clear header of a data datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// [`Format::Sealed`] or [`Format::Clear`].
    pub format: Format,
    /// Low two bits of the sender's epoch.
    pub epoch_bits: u8,
    /// The receiver's session index.
    pub slot: Slot,
    /// The sender's lane.
    pub lane: Lane,
    /// Number of the datagram in its lane and epoch, from 0; never reused, never truncated.
    pub sequence: u32,
}

impl DataHeader {
    /// Reads the first [`CLEAR_HEADER_LEN`] bytes; every value of them is some header.
    #[must_use]
    pub fn read(bytes: &[u8; CLEAR_HEADER_LEN]) -> Self {
        let [a, b, c, lane, s0, s1, s2, s3] = *bytes;
        Self {
            format: Format::of(a),
            epoch_bits: a >> 4 & 3,
            slot: Slot(u32::from_be_bytes([0, a & 0x0f, b, c])),
            lane: Lane(lane),
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        }
    }

    /// The bytes, which are also the associated data of the AEAD.
    #[must_use]
    pub fn write(&self) -> [u8; CLEAR_HEADER_LEN] {
        let [_, slot_high, b, c] = self.slot.0.to_be_bytes();
        let [s0, s1, s2, s3] = self.sequence.to_be_bytes();
        let a = self.format.bits() << 6 | (self.epoch_bits & 3) << 4 | slot_high & 0x0f;
        [a, b, c, self.lane.0, s0, s1, s2, s3]
    }
}

/// What a datagram carries; hidden inside the seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An Ethernet frame of the network that the handle names.
    Frame = 0,
    /// An Ethernet frame behind its explicit VNI.
    FrameWithVni = 1,
    /// A piece of what does not fit into a datagram.
    Fragment = 2,
    /// Several small frames of the network that the handle names ([`super::bundle`]).
    Bundle = 3,
    /// A packet of channels ([`super::channel`]).
    Channel = 4,
    /// Heartbeats, acknowledgements, bindings.
    Control = 5,
    /// A path-MTU probe.
    Probe = 7,
    /// An unreliable message of a channel ([`super::channel::unreliable`]).
    Unreliable = 8,
    /// As [`Kind::Frame`], with the L4 checksum still partial.
    FramePartialChecksum = 9,
    /// The payload of kind 0, 3 or 9, compressed.
    Compressed = 10,
}

impl Kind {
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Frame),
            1 => Some(Self::FrameWithVni),
            2 => Some(Self::Fragment),
            3 => Some(Self::Bundle),
            4 => Some(Self::Channel),
            5 => Some(Self::Control),
            7 => Some(Self::Probe),
            8 => Some(Self::Unreliable),
            9 => Some(Self::FramePartialChecksum),
            10 => Some(Self::Compressed),
            _ => None,
        }
    }
}

/// The receiver's short name of a network, 1 to 4095; 0 where a kind needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Handle(u16);

impl Handle {
    /// No network.
    pub const NONE: Self = Self(0);
    /// The largest handle.
    pub const MAX: u16 = 0x0fff;

    /// A handle, unless it does not fit in 12 bits.
    #[must_use]
    pub const fn new(handle: u16) -> Option<Self> {
        if handle > Self::MAX { None } else { Some(Self(handle)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The two sealed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InnerHeader {
    /// What follows.
    pub kind: Kind,
    /// The network that it is for.
    pub handle: Handle,
}

/// A kind that this version does not know: counted, dropped, never fatal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind {0}")]
pub struct UnknownKind(pub u8);

impl InnerHeader {
    /// Reads the two bytes.
    ///
    /// # Errors
    /// [`UnknownKind`] for a kind of a later version.
    pub fn read(bytes: [u8; INNER_HEADER_LEN]) -> Result<Self, UnknownKind> {
        let word = u16::from_be_bytes(bytes);
        let code = bytes[0] >> 4;
        let kind = Kind::from_code(code).ok_or(UnknownKind(code))?;
        Ok(Self { kind, handle: Handle(word & Handle::MAX) })
    }

    /// The two bytes.
    #[must_use]
    pub fn write(self) -> [u8; INNER_HEADER_LEN] {
        (u16::from(self.kind as u8) << 12 | self.handle.0).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_bytes_keep_clear_of_vxlan() {
        // RFC 7348 flags 0x08 (and GPE's 0x0c, GBP's 0x88 is told apart by configuration).
        for first in [0x08, 0x0c] {
            assert_eq!(Format::of(first), Format::Long);
            assert!(crate::wire::long::Type::of(first).is_none());
        }
        assert_eq!(Format::of(0x40), Format::Sealed);
        assert_eq!(Format::of(0x80), Format::Clear);
        assert_eq!(Format::of(0xc0), Format::Reserved);
    }

    proptest! {
        #[test]
        fn every_clear_header_round_trips(bytes: [u8; 8]) {
            prop_assert_eq!(DataHeader::read(&bytes).write(), bytes);
        }

        #[test]
        fn inner_header_round_trips_or_is_unknown(bytes: [u8; 2]) {
            match InnerHeader::read(bytes) {
                Ok(inner) => prop_assert_eq!(inner.write(), bytes),
                Err(UnknownKind(code)) => prop_assert_eq!(code, bytes[0] >> 4),
            }
        }
    }
}
