//! What the sender of a channel keeps: what the program gave and the peer has not acknowledged.
//!
//! Bytes are kept once. Packets take pieces of them as they have room, and what was lost is cut
//! anew. Nothing is sent beyond the receiver's credit.

mod grant;
mod messages;
mod stream;
#[cfg(test)]
mod tests;
mod unreliable;

pub use messages::{AGE_STEP, MESSAGE_COST, Options, OutgoingMessages, PushError, Refused, Ticket};
pub use stream::OutgoingStream;
pub use unreliable::OutgoingUnreliable;

/// Fewest bytes of a piece that is not the last one of what there is to send: smaller crumbs cost
/// more in headers and in the receiver's book-keeping than the room that they fill is worth.
pub const MIN_PIECE: usize = 64;

/// How many of `left` bytes go behind a header of `header` bytes into `room`; none when these would
/// be crumbs. The header's size is that for `room` bytes or for `left`.
fn piece_len(left: u64, header: usize, room: usize) -> Option<usize> {
    let space = room.checked_sub(header)?;
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(space);
    (len as u64 == left || len >= MIN_PIECE).then_some(len)
}

/// Something that is said once, and again if that was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::channel) enum Notice {
    /// There is no reason to say it yet.
    Idle,
    /// It is to be said.
    Due,
    /// It was said.
    Said,
    /// The peer knows.
    Known,
}

impl Notice {
    pub(in crate::channel) fn on_lost(&mut self) {
        if *self == Self::Said {
            *self = Self::Due;
        }
    }
}
