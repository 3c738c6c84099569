//! Segmentation and coalescing of overlay frames, in software.
//!
//! [`segment`] cuts a super-frame as a tap gives it into the frames that it stands for;
//! [`coalesce`] makes super-frames of frames on their way into one tap. Neither changes a byte
//! that a receiver goes by: the segments of a group are its members again.
//!
//! From: [`crate::wire::buf::FrameBurst`]. Next: [`crate::tx`], and on the way in the tap.

pub mod segment;
pub mod coalesce;

pub use coalesce::{Coalescer, Group, Limits, Member, Members};
pub use segment::{MAX_SEGMENTS, SegmentFault, SuperFrame};

/// Flags of the TCP header (RFC 9293 section 3.1, RFC 3168 section 6.1).
mod tcp {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const CWR: u8 = 0x80;
}

/// A one's-complement sum of 16-bit words, folded (RFC 1071). Of words that are not all zero it
/// is never 0.
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod testing;
