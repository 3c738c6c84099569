//! What the receiver of a channel keeps: what came and the program has not taken.
//!
//! Memory is bounded by the credit that was given, and credit by [`Memory`]. What a peer that obeys
//! cannot send is a [`Fault`].

mod credit;
mod messages;
mod stream;
#[cfg(test)]
mod tests;
mod unreliable;

pub use credit::{Credit, GUARANTEED, Memory, START_WINDOW, TOP_WINDOW};
pub use messages::{Delivery, IncomingMessages, MESSAGE_WINDOW};
pub use stream::IncomingStream;
pub use unreliable::{IncomingUnreliable, MAX_OPEN_UNRELIABLE, UNRELIABLE_MEMORY, UnreliableDrop};

/// What cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// More bytes than the credit.
    #[error("channel data beyond the credit")]
    BeyondCredit,
    /// A message with an id beyond the credit in messages.
    #[error("channel message far ahead")]
    TooFarAhead,
    /// A message whose pieces say different lengths, or an impossible one.
    #[error("channel message with conflicting lengths")]
    ConflictingLength,
    /// Something behind the end, or a second end elsewhere.
    #[error("channel data behind its end")]
    FinalSize,
    /// So many gaps that the piece was not taken. A peer that obeys may see this happen: the packet
    /// is not to be acknowledged, so that it comes again.
    #[error("channel data with too many gaps")]
    Gaps,
}

impl Fault {
    /// Whether only a peer that does not obey can have caused it: the channel is to be reset.
    #[must_use]
    pub const fn is_hostile(self) -> bool {
        !matches!(self, Self::Gaps)
    }
}

/// Bytes of a window for each gap that may be in it. Pieces are seldom smaller than
/// [`super::outgoing::MIN_PIECE`], and gaps are as large as pieces.
const BYTES_PER_GAP: u64 = 256;
/// Gaps that may be in any window, however small.
const FREE_GAPS: u64 = 16;

/// Most ranges between gaps in `window` bytes.
fn max_ranges(window: u64) -> usize {
    usize::try_from(FREE_GAPS + window / BYTES_PER_GAP).unwrap_or(usize::MAX)
}
