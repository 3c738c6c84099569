//! Unreliable messages: the payload of kind 8, one message or a piece of one.
//!
//! ```text
//! | channel (number) |
//! |W|   0   | prio  |
//! |                 message id (32)                               |
//! | offset (number) | length of the message (number) |   only without W
//! |  bytes ... to the end of the payload
//! ```
//!
//! Big-endian; channel and numbers as in channel packets. W, the highest bit of the second field's
//! byte, says that the message is whole; its low three bits are the priority. Message ids are 32
//! bits of a count from 0; the receiver extends them as it does packet numbers, and takes out
//! copies by channel and id.

use super::super::reader::Reader;
use super::super::varint::{read_varint, varint_len, write_varint};
use super::{ChannelId, FrameFault, MAX_MESSAGE_LEN, MAX_PRIORITY, within};

const WHOLE: u8 = 0x80;
/// What faults of this payload are named by, there being no type byte: the kind.
const KIND: u8 = 8;

/// Longest unreliable message in bytes, 64 KiB: one with more pieces than that makes would seldom
/// come whole over a path that loses any.
pub const MAX_UNRELIABLE_LEN: u32 = 64 << 10;

const _: () = assert!(MAX_UNRELIABLE_LEN <= MAX_MESSAGE_LEN);

/// An unreliable message or a piece of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreliable<'a> {
    /// Which channel.
    pub channel: ChannelId,
    /// Which message, low 32 bits.
    pub id: u32,
    /// 0 (first) to 7 (last).
    pub priority: u8,
    /// Where in the message the bytes begin.
    pub offset: u32,
    /// Length of the whole message, at most [`MAX_UNRELIABLE_LEN`]; it is whole when `bytes` has
    /// this length, and only a whole one is empty.
    pub total: u32,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Unreliable<'a> {
    /// Reads a payload.
    ///
    /// # Errors
    /// [`FrameFault::Truncated`], or [`FrameFault::Value`] with the number of the kind.
    pub fn read(payload: &'a [u8]) -> Result<Self, FrameFault> {
        let invalid = FrameFault::Value(KIND);
        let mut reader = Reader(payload);
        let channel = ChannelId::read(&mut reader, KIND)?;
        let flags = reader.u8()?;
        if flags & !(WHOLE | MAX_PRIORITY) != 0 {
            return Err(invalid);
        }
        let (priority, id) = (flags & MAX_PRIORITY, reader.u32()?);
        if flags & WHOLE != 0 {
            let bytes = reader.0;
            let total = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let message = Self { channel, id, priority, offset: 0, total, bytes };
            return if total <= MAX_UNRELIABLE_LEN { Ok(message) } else { Err(invalid) };
        }
        let offset = read_varint(&mut reader)?;
        let total = u32::try_from(read_varint(&mut reader)?).unwrap_or(u32::MAX);
        let bytes = reader.0;
        let offset = within(offset, total, bytes).ok_or(invalid)?;
        let message = Self { channel, id, priority, offset, total, bytes };
        if total <= MAX_UNRELIABLE_LEN { Ok(message) } else { Err(invalid) }
    }

    /// Bytes in front of the message's: of a whole one, or of a piece at this offset.
    #[must_use]
    pub fn header_len(&self) -> usize {
        let place = if self.bytes.len() == self.total as usize {
            0
        } else {
            varint_len(u64::from(self.offset)) + varint_len(u64::from(self.total))
        };
        self.channel.len() + 1 + 4 + place
    }

    /// Appends the payload. The fields are within the ranges that they say.
    pub fn write(&self, out: &mut Vec<u8>) {
        let whole = self.bytes.len() == self.total as usize;
        self.channel.write(out);
        out.push(if whole { WHOLE } else { 0 } | self.priority.min(MAX_PRIORITY));
        out.extend(self.id.to_be_bytes());
        if !whole {
            write_varint(u64::from(self.offset), out);
            write_varint(u64::from(self.total), out);
        }
        out.extend_from_slice(self.bytes);
    }
}
