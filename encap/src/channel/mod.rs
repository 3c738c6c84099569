//! Raw channels: messages and streams between nodes, beside the Ethernet frames.
//!
//! What goes out waits in [`outgoing`], which fills packets with frames of
//! [`crate::wire::channel`]; what comes in is put together in [`incoming`]. Neither knows of packet
//! numbers: they are told what was acknowledged and what was lost, which [`recovery`] finds out for
//! each path. [`congestion`] says how much may be on its way.
//!
//! Pure state machines. Nothing here knows keys, sockets or the peer.

pub mod outgoing;
pub mod incoming;
mod spans;
pub mod hub;
pub mod recovery;
pub mod congestion;

/// What a frame carried of a channel: kept with the packet that it went out in, and given back when
/// that was acknowledged or lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Bytes of a stream.
    Stream {
        /// Where they begin.
        offset: u64,
        /// How many.
        len: u32,
        /// Whether the end was said with them.
        fin: bool,
    },
    /// A message or a piece of one.
    Message {
        /// Which message.
        id: u64,
        /// Where the piece begins.
        offset: u32,
        /// Bytes of the piece.
        len: u32,
    },
    /// That a message was given up.
    Expired {
        /// Which message.
        id: u64,
    },
    /// That credit is short.
    Blocked {
        /// Which of the needs there were, counted from 1.
        number: u64,
    },
    /// That no more messages will be begun.
    Close,
    /// Credit in bytes.
    MaxData {
        /// Bytes since the beginning.
        limit: u64,
    },
    /// That idle credit is asked for.
    Recall,
    /// That credit is given back.
    Return {
        /// Bytes of it since the beginning.
        total: u64,
    },
    /// Credit in messages.
    MaxMessages {
        /// Messages since the beginning.
        limit: u64,
    },
}
