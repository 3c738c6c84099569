//! Unreliable messages on their way out: numbered and cut, and not kept.

use super::MIN_PIECE;
use crate::wire::channel::ChannelId;
use crate::wire::channel::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};

/// What the sender of a channel of unreliable messages knows.
#[derive(Debug)]
pub struct OutgoingUnreliable {
    channel: ChannelId,
    next_id: u32,
}

impl OutgoingUnreliable {
    /// Nothing was sent yet.
    #[must_use]
    pub const fn new(channel: ChannelId) -> Self {
        Self { channel, next_id: 0 }
    }

    /// The number of the next message, modulo 2^32.
    #[must_use]
    pub const fn next_id(&self) -> u32 {
        self.next_id
    }

    /// A message as payloads of at most `room` bytes: itself, or as few pieces as there can be, as
    /// equal as they can be, so that a path with a little more overhead does not cut them again.
    ///
    /// None for more than [`MAX_UNRELIABLE_LEN`] bytes, or pieces of less than [`MIN_PIECE`].
    pub fn cut<'a>(
        &mut self,
        priority: u8,
        bytes: &'a [u8],
        room: usize,
    ) -> Option<impl Iterator<Item = Unreliable<'a>> + use<'a>> {
        let total = u32::try_from(bytes.len()).ok().filter(|len| *len <= MAX_UNRELIABLE_LEN)?;
        let (channel, id) = (self.channel, self.next_id);
        let whole = Unreliable { channel, id, priority, offset: 0, total, bytes };
        let len = if whole.header_len() + bytes.len() <= room {
            bytes.len().max(1)
        } else {
            // The offset of the last piece has the longest header.
            let last = Unreliable { offset: total, bytes: &[], ..whole };
            let most = room.checked_sub(last.header_len()).filter(|most| *most >= MIN_PIECE)?;
            bytes.len().div_ceil(bytes.len().div_ceil(most))
        };
        self.next_id = self.next_id.wrapping_add(1);
        // An empty message has no chunk.
        let empty = bytes.is_empty().then_some(whole);
        let pieces = (0u32..).step_by(len).zip(bytes.chunks(len));
        let pieces = pieces.map(move |(offset, bytes)| Unreliable { offset, bytes, ..whole });
        Some(empty.into_iter().chain(pieces))
    }
}
