//! Segmentation and coalescing of overlay frames, in software.
//!
//! [`segment`] cuts a super-frame as a tap gives it into the frames that it stands for;
//! [`coalesce`] makes super-frames of frames on their way into one tap. Neither changes a byte
//! that a receiver goes by: the segments of a group are its members again.
//!
//! From: [`crate::wire::buf::FrameBurst`]. Next: [`crate::tx`], and on the way in the tap.

pub mod segment;
pub mod coalesce;
mod flow;

pub use coalesce::{Coalescer, Group, Limits, Member, Members};
pub use segment::{MAX_SEGMENTS, SegmentFault, SuperFrame};

/// Flags of the TCP header (RFC 9293 section 3.1, RFC 3168 section 6.1).
mod tcp {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const CWR: u8 = 0x80;
}

#[cfg(test)]
mod testing;
