//! Channel packets: the payload of kind 4, and unreliable messages: that of kind 8
//! ([`unreliable`]).
//!
//! ```text
//! |   path (8)    |
//! |              packet number, low 32 bits (32)                  |
//! |  frames ...
//! ```
//!
//! Big-endian. *Path* is the sender's number of the link; each path has a sequence of packet
//! numbers of its own, 64 bits, from 0, never reused. A frame is a type byte and its fields in the
//! order of the table. A number is a variable-length integer of RFC 9000 section 16 in its shortest
//! form, unless a size in bits stands there; `bytes` is their count, a number, and as many bytes.
//!
//! | type | frame | fields | comes from |
//! | --- | --- | --- | --- |
//! | 0x00 | PADDING | none; any count of them in a row | either |
//! | 0x01 | PING | none; asks for an acknowledgement | either |
//! | 0x02 | ACK | path (8), largest, delay in 8 us, count of further ranges (at most 31), length of the first range - 1, then as often as counted: gap - 2, length - 1 | receiver of packets |
//! | 0x03 | ACK | as 0x02, then counts of ECT(0), ECT(1), CE | receiver of packets |
//! | 0x04 | STREAM | channel, offset, bytes | sender of the stream |
//! | 0x05 | STREAM | as 0x04; the stream ends with these bytes | sender of the stream |
//! | 0x06 | EXPIRED | channel, message id, length of the message | sender of the message |
//! | 0x07 | BLOCKED | channel, credit in bytes that it needs to go on | sender |
//! | 0x08 | MAX_DATA | channel, credit in bytes since the beginning | receiver |
//! | 0x09 | MAX_MESSAGES | channel, count of messages since the beginning | receiver |
//! | 0x0a | RECALL | channel; the receiver has use for credit that is idle | receiver |
//! | 0x0b | RETURN | channel, credit in bytes since the beginning that is given back | sender |
//! | 0x10 | OPEN | channel, mode (8, see below), credit in bytes, count of messages, name as bytes | opener |
//! | 0x11 | ACCEPT | channel, credit in bytes, count of messages | who was asked |
//! | 0x12 | REFUSE | channel, reason | who was asked |
//! | 0x13 | CLOSE | channel, final size: count of message ids that were used; reserved | sender |
//! | 0x14 | RESET | channel, error code of the program | either |
//! | 0x15 | CLOSED | channel; reserved | receiver |
//! | 0x20 + p | MESSAGE | channel, message id, bytes: a whole message of priority p | sender |
//! | 0x28 + p | MESSAGE | channel, message id, offset, length of the message, bytes: a piece | sender |
//!
//! A *channel* field is the opener's number (32 bits) times two, plus 0 where the frame's sender
//! opened the channel and 1 where its receiver did: each side counts its own. Modes: 0 stream, 1
//! ordered messages, 2 unordered messages, 3 unreliable messages; with 16 added, each message begins
//! with a byte that says how it is encoded. Priorities: 0 goes first, 7 last
//! (as the urgency of RFC 9218 section 4.1).
//!
//! Message ids of a channel and direction count from 0 in the order in which messages are begun. A
//! message takes its whole length from the credit when it is begun, so that what was begun can
//! always be ended; EXPIRED says that length again, for the receiver of which no piece came.
//!
//! Next: the frames of one channel go to and come from [`crate::channel`].

use super::reader::{Malformed, Reader};
use super::varint::{read_varint, varint_len, write_varint};

mod ack;
#[cfg(test)]
mod tests;
pub mod unreliable;

pub use ack::{Ack, AckRanges, EcnCounts, MAX_ACK_RANGES, write_ack};

/// Bytes in front of the frames.
pub const PACKET_HEADER_LEN: usize = 5;
/// Longest message in bytes, 16 MiB.
pub const MAX_MESSAGE_LEN: u32 = 16 << 20;
/// Longest name of a channel in bytes: an OPEN always fits a packet.
pub const MAX_NAME_LEN: usize = 128;
/// The last priority; 0 is the first.
pub const MAX_PRIORITY: u8 = 7;

/// In the mode of an OPEN: messages begin with a byte that says how they are encoded.
const ENCODED: u8 = 16;

mod code {
    pub(super) const PADDING: u8 = 0x00;
    pub(super) const PING: u8 = 0x01;
    pub(super) const ACK: u8 = 0x02;
    pub(super) const ACK_ECN: u8 = 0x03;
    pub(super) const STREAM: u8 = 0x04;
    pub(super) const STREAM_FIN: u8 = 0x05;
    pub(super) const EXPIRED: u8 = 0x06;
    pub(super) const BLOCKED: u8 = 0x07;
    pub(super) const MAX_DATA: u8 = 0x08;
    pub(super) const MAX_MESSAGES: u8 = 0x09;
    pub(super) const RECALL: u8 = 0x0a;
    pub(super) const RETURN: u8 = 0x0b;
    pub(super) const OPEN: u8 = 0x10;
    pub(super) const ACCEPT: u8 = 0x11;
    pub(super) const REFUSE: u8 = 0x12;
    pub(super) const CLOSE: u8 = 0x13;
    pub(super) const RESET: u8 = 0x14;
    pub(super) const CLOSED: u8 = 0x15;
    pub(super) const MESSAGE: u8 = 0x20;
    pub(super) const PIECE: u8 = 0x28;
    /// Last type of the pieces.
    pub(super) const PIECE_END: u8 = 0x2f;
}

/// What stands in front of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketHeader {
    /// The sender's number of the link.
    pub path: u8,
    /// Low 32 bits of the packet number; [`extend_number`] gives the rest.
    pub number: u32,
}

impl PacketHeader {
    /// Takes the header off a payload; the rest is frames.
    ///
    /// # Errors
    /// [`FrameFault::Truncated`].
    pub fn read(payload: &[u8]) -> Result<(Self, Frames<'_>), FrameFault> {
        let (header, rest) = payload.split_first_chunk().ok_or(FrameFault::Truncated)?;
        let [path, number @ ..]: [u8; PACKET_HEADER_LEN] = *header;
        Ok((Self { path, number: u32::from_be_bytes(number) }, Frames::new(rest)))
    }

    /// The bytes.
    #[must_use]
    pub fn write(self) -> [u8; PACKET_HEADER_LEN] {
        let [a, b, c, d] = self.number.to_be_bytes();
        [self.path, a, b, c, d]
    }
}

/// The number with these low 32 bits that is nearest to `expected`, which is one more than the
/// largest number seen so far (RFC 9000 appendix A.3).
#[must_use]
pub const fn extend_number(expected: u64, low: u32) -> u64 {
    const SPAN: u64 = 1 << 32;
    let near = expected & !(SPAN - 1) | low as u64;
    if near.saturating_add(SPAN / 2) <= expected && near < u64::MAX - SPAN {
        near + SPAN
    } else if near > expected.saturating_add(SPAN / 2) && near >= SPAN {
        near - SPAN
    } else {
        near
    }
}

/// Why frames do not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FrameFault {
    /// The packet ends inside a frame, or a number is not in its shortest form.
    #[error("channel packet ends inside a frame, or has a number in a long form")]
    Truncated,
    /// A frame of a later version, or of none: what follows cannot be read.
    #[error("unknown channel frame {0:#04x}")]
    Type(u8),
    /// A field has a value that it must not have.
    #[error("channel frame {0:#04x} with an impossible field")]
    Value(u8),
}

impl From<Malformed> for FrameFault {
    fn from(_: Malformed) -> Self {
        Self::Truncated
    }
}

/// Who opened a channel, seen from the sender of the frame that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Opener {
    /// The sender of the frame.
    Sender,
    /// The receiver of the frame.
    Receiver,
}

/// A channel as a frame names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId {
    /// The opener's number.
    pub number: u32,
    /// Whose number it is.
    pub opener: Opener,
}

impl ChannelId {
    /// The same channel in a frame of the other side.
    #[must_use]
    pub const fn flipped(self) -> Self {
        let opener = match self.opener {
            Opener::Sender => Opener::Receiver,
            Opener::Receiver => Opener::Sender,
        };
        Self { number: self.number, opener }
    }

    const fn code(self) -> u64 {
        (self.number as u64) << 1 | matches!(self.opener, Opener::Receiver) as u64
    }

    const fn len(self) -> usize {
        varint_len(self.code())
    }

    fn write(self, out: &mut Vec<u8>) {
        write_varint(self.code(), out);
    }

    /// `code` is the type of the frame that it stands in.
    fn read(reader: &mut Reader<'_>, code: u8) -> Result<Self, FrameFault> {
        let word = read_varint(reader)?;
        let number = u32::try_from(word >> 1).map_err(|_| FrameFault::Value(code))?;
        let opener = if word & 1 == 0 { Opener::Sender } else { Opener::Receiver };
        Ok(Self { number, opener })
    }
}

/// What a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Bytes in order.
    Stream = 0,
    /// Messages in order.
    Ordered = 1,
    /// Messages, each as soon as it is complete.
    Unordered = 2,
    /// Messages that may be lost.
    Unreliable = 3,
}

impl Mode {
    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Stream),
            1 => Some(Self::Ordered),
            2 => Some(Self::Unordered),
            3 => Some(Self::Unreliable),
            _ => None,
        }
    }
}

/// Bytes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream<'a> {
    /// Which.
    pub channel: ChannelId,
    /// Where in the stream they begin; offset and length together are at most 2^62 - 1.
    pub offset: u64,
    /// Whether the stream ends with them.
    pub fin: bool,
    /// The bytes; none is allowed, for an end that came late.
    pub bytes: &'a [u8],
}

/// A message or a piece of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Which channel.
    pub channel: ChannelId,
    /// Which message of the channel, at most 2^62 - 1.
    pub id: u64,
    /// 0 (first) to 7 (last).
    pub priority: u8,
    /// Where in the message the bytes begin.
    pub offset: u32,
    /// Length of the whole message, at most [`MAX_MESSAGE_LEN`]; a message is whole when `bytes`
    /// has this length, and only a whole one is empty.
    pub total: u32,
    /// The bytes, within the message.
    pub bytes: &'a [u8],
}

/// One frame of a channel packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame<'a> {
    /// So many bytes of nothing, at least one.
    Padding(usize),
    /// Asks for an acknowledgement.
    Ping,
    /// Packets that came.
    Ack(Ack<'a>),
    /// Bytes of a stream.
    Stream(Stream<'a>),
    /// A message or a piece of one.
    Message(Message<'a>),
    /// The sender gave the message up: nothing more of it will come.
    Expired {
        /// Which channel.
        channel: ChannelId,
        /// Which message.
        id: u64,
        /// Its length, which it took from the credit.
        total: u32,
    },
    /// The sender cannot go on.
    Blocked {
        /// Which channel.
        channel: ChannelId,
        /// How often that changed, from 1: the largest number that came says what holds.
        number: u64,
        /// Credit in bytes since the beginning with which it could.
        at: u64,
    },
    /// Credit.
    MaxData {
        /// Which channel.
        channel: ChannelId,
        /// Bytes since the beginning.
        limit: u64,
    },
    /// Credit.
    MaxMessages {
        /// Which channel.
        channel: ChannelId,
        /// Messages since the beginning: ids are below this.
        limit: u64,
    },
    /// The receiver has use for credit that the sender has none for.
    Recall {
        /// Which channel.
        channel: ChannelId,
    },
    /// Credit that the sender will not use.
    Return {
        /// Which channel.
        channel: ChannelId,
        /// Bytes of it since the beginning.
        total: u64,
    },
    /// A channel is asked for.
    Open {
        /// Its number.
        channel: ChannelId,
        /// What it carries.
        mode: Mode,
        /// Each message begins with a byte that says how it is encoded.
        encoded: bool,
        /// First credit in bytes for the other side.
        credit: u64,
        /// First credit in messages for the other side.
        messages: u64,
        /// Who is asked for, 1 to [`MAX_NAME_LEN`] bytes.
        name: &'a str,
    },
    /// It is granted.
    Accept {
        /// Which channel.
        channel: ChannelId,
        /// First credit in bytes for the opener.
        credit: u64,
        /// First credit in messages for the opener.
        messages: u64,
    },
    /// It is not.
    Refuse {
        /// Which channel.
        channel: ChannelId,
        /// Why; numbers of a later version may come.
        reason: u64,
    },
    /// No more messages will be begun.
    Close {
        /// Which channel.
        channel: ChannelId,
        /// How many were: ids are below this.
        count: u64,
    },
    /// Nothing more is sent or wanted.
    Reset {
        /// Which channel.
        channel: ChannelId,
        /// The program's reason.
        error: u64,
    },
    /// All was taken.
    Closed {
        /// Which channel.
        channel: ChannelId,
    },
}

impl Frame<'_> {
    /// Bytes that [`Self::write`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let one = |channel: &ChannelId, value: u64| 1 + channel.len() + varint_len(value);
        match self {
            Self::Padding(len) => *len,
            Self::Ping => 1,
            Self::Ack(ack) => ack.encoded_len(),
            Self::Stream(stream) => stream.header_len(stream.bytes.len()) + stream.bytes.len(),
            Self::Message(message) => message.header_len(message.bytes.len()) + message.bytes.len(),
            Self::Expired { channel, id, total } => {
                one(channel, *id) + varint_len(u64::from(*total))
            }
            Self::Blocked { channel, number, at } => one(channel, *number) + varint_len(*at),
            Self::MaxData { channel, limit: value }
            | Self::MaxMessages { channel, limit: value }
            | Self::Return { channel, total: value }
            | Self::Refuse { channel, reason: value }
            | Self::Close { channel, count: value }
            | Self::Reset { channel, error: value } => one(channel, *value),
            Self::Open { channel, credit, messages, name, .. } => {
                let numbers = varint_len(*credit) + varint_len(*messages);
                2 + channel.len() + numbers + varint_len(name.len() as u64) + name.len()
            }
            Self::Accept { channel, credit, messages } => {
                one(channel, *credit) + varint_len(*messages)
            }
            Self::Closed { channel } | Self::Recall { channel } => 1 + channel.len(),
        }
    }

    /// Appends the frame. Its fields are within the ranges that they say.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut plain = |code: u8, channel: &ChannelId, values: &[u64]| {
            out.push(code);
            channel.write(out);
            for value in values {
                write_varint(*value, out);
            }
        };
        match self {
            Self::Padding(len) => out.resize(out.len() + len, code::PADDING),
            Self::Ping => out.push(code::PING),
            Self::Ack(ack) => ack.write(out),
            Self::Stream(stream) => stream.write(out),
            Self::Message(message) => message.write(out),
            Self::Expired { channel, id, total } => {
                plain(code::EXPIRED, channel, &[*id, u64::from(*total)]);
            }
            Self::Blocked { channel, number, at } => {
                plain(code::BLOCKED, channel, &[*number, *at]);
            }
            Self::MaxData { channel, limit } => plain(code::MAX_DATA, channel, &[*limit]),
            Self::MaxMessages { channel, limit } => plain(code::MAX_MESSAGES, channel, &[*limit]),
            Self::Recall { channel } => plain(code::RECALL, channel, &[]),
            Self::Return { channel, total } => plain(code::RETURN, channel, &[*total]),
            Self::Open { channel, mode, encoded, credit, messages, name } => {
                plain(code::OPEN, channel, &[]);
                out.push(*mode as u8 | if *encoded { ENCODED } else { 0 });
                write_varint(*credit, out);
                write_varint(*messages, out);
                write_bytes(name.as_bytes(), out);
            }
            Self::Accept { channel, credit, messages } => {
                plain(code::ACCEPT, channel, &[*credit, *messages]);
            }
            Self::Refuse { channel, reason } => plain(code::REFUSE, channel, &[*reason]),
            Self::Close { channel, count } => plain(code::CLOSE, channel, &[*count]),
            Self::Reset { channel, error } => plain(code::RESET, channel, &[*error]),
            Self::Closed { channel } => plain(code::CLOSED, channel, &[]),
        }
    }
}

impl Stream<'_> {
    /// Bytes in front of `len` bytes of the stream.
    #[must_use]
    pub fn header_len(&self, len: usize) -> usize {
        1 + self.channel.len() + varint_len(self.offset) + varint_len(len as u64)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(if self.fin { code::STREAM_FIN } else { code::STREAM });
        self.channel.write(out);
        write_varint(self.offset, out);
        write_bytes(self.bytes, out);
    }
}

impl Message<'_> {
    /// Bytes in front of `len` bytes of the message.
    #[must_use]
    pub fn header_len(&self, len: usize) -> usize {
        let place = if len == self.total as usize {
            0
        } else {
            varint_len(u64::from(self.offset)) + varint_len(u64::from(self.total))
        };
        1 + self.channel.len() + varint_len(self.id) + place + varint_len(len as u64)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let whole = self.bytes.len() == self.total as usize;
        let first = if whole { code::MESSAGE } else { code::PIECE };
        out.push(first + self.priority.min(MAX_PRIORITY));
        self.channel.write(out);
        write_varint(self.id, out);
        if !whole {
            write_varint(u64::from(self.offset), out);
            write_varint(u64::from(self.total), out);
        }
        write_bytes(self.bytes, out);
    }
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    write_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A count and as many bytes.
fn read_bytes<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], FrameFault> {
    let len = read_varint(reader)?;
    let len = usize::try_from(len).map_err(|_| FrameFault::Truncated)?;
    Ok(reader.take(len)?)
}

/// The frames of a packet, one after the other; nothing after the first fault.
///
/// A receiver runs through a clone first ([`Self::check`]), so that it uses all of a packet or
/// nothing.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// The frames in these bytes, which stood behind a [`PacketHeader`].
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether all that is left parses.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), FrameFault> {
        self.clone().try_for_each(|frame| frame.map(|_| ()))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let (code, rest) = self.rest.split_first()?;
        let mut reader = Reader(rest);
        let frame = read_frame(*code, &mut reader);
        self.rest = if frame.is_ok() { reader.0 } else { &[] };
        Some(frame)
    }
}

fn read_frame<'a>(code: u8, reader: &mut Reader<'a>) -> Result<Frame<'a>, FrameFault> {
    match code {
        code::PADDING => {
            let more = reader.0.iter().take_while(|byte| **byte == code::PADDING).count();
            reader.take(more)?;
            return Ok(Frame::Padding(1 + more));
        }
        code::PING => return Ok(Frame::Ping),
        code::ACK | code::ACK_ECN => return Ack::read(code, reader).map(Frame::Ack),
        _ => {}
    }
    let known = code <= code::RETURN
        || (code::OPEN..=code::CLOSED).contains(&code)
        || (code::MESSAGE..=code::PIECE_END).contains(&code);
    if !known {
        return Err(FrameFault::Type(code));
    }
    let channel = ChannelId::read(reader, code)?;
    Ok(match code {
        code::STREAM | code::STREAM_FIN => {
            let (offset, bytes) = (read_varint(reader)?, read_bytes(reader)?);
            if offset + bytes.len() as u64 > super::varint::MAX_VARINT {
                return Err(FrameFault::Value(code));
            }
            Frame::Stream(Stream { channel, offset, fin: code == code::STREAM_FIN, bytes })
        }
        code::EXPIRED => {
            let id = read_varint(reader)?;
            Frame::Expired { channel, id, total: read_total(reader, code)? }
        }
        code::BLOCKED => {
            let (number, at) = (read_varint(reader)?, read_varint(reader)?);
            Frame::Blocked { channel, number, at }
        }
        code::MAX_DATA => Frame::MaxData { channel, limit: read_varint(reader)? },
        code::MAX_MESSAGES => Frame::MaxMessages { channel, limit: read_varint(reader)? },
        code::RECALL => Frame::Recall { channel },
        code::RETURN => Frame::Return { channel, total: read_varint(reader)? },
        code::OPEN => read_open(channel, reader)?,
        code::ACCEPT => {
            let (credit, messages) = (read_varint(reader)?, read_varint(reader)?);
            Frame::Accept { channel, credit, messages }
        }
        code::REFUSE => Frame::Refuse { channel, reason: read_varint(reader)? },
        code::CLOSE => Frame::Close { channel, count: read_varint(reader)? },
        code::RESET => Frame::Reset { channel, error: read_varint(reader)? },
        code::CLOSED => Frame::Closed { channel },
        _ => Frame::Message(read_message(code, channel, reader)?),
    })
}

fn read_total(reader: &mut Reader<'_>, code: u8) -> Result<u32, FrameFault> {
    let total = u32::try_from(read_varint(reader)?).unwrap_or(u32::MAX);
    if total <= MAX_MESSAGE_LEN { Ok(total) } else { Err(FrameFault::Value(code)) }
}

fn read_open<'a>(channel: ChannelId, reader: &mut Reader<'a>) -> Result<Frame<'a>, FrameFault> {
    let invalid = FrameFault::Value(code::OPEN);
    let code = reader.u8()?;
    let (mode, encoded) = (Mode::from_code(code & !ENCODED).ok_or(invalid)?, code & ENCODED != 0);
    if encoded && mode == Mode::Stream {
        return Err(invalid);
    }
    let (credit, messages) = (read_varint(reader)?, read_varint(reader)?);
    let name = std::str::from_utf8(read_bytes(reader)?).map_err(|_| invalid)?;
    if name.is_empty() || name.len() > MAX_NAME_LEN {
        return Err(invalid);
    }
    Ok(Frame::Open { channel, mode, encoded, credit, messages, name })
}

fn read_message<'a>(
    code: u8,
    channel: ChannelId,
    reader: &mut Reader<'a>,
) -> Result<Message<'a>, FrameFault> {
    let (id, priority) = (read_varint(reader)?, code & MAX_PRIORITY);
    if code < code::PIECE {
        let bytes = read_bytes(reader)?;
        let total = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if total > MAX_MESSAGE_LEN {
            return Err(FrameFault::Value(code));
        }
        return Ok(Message { channel, id, priority, offset: 0, total, bytes });
    }
    let offset = read_varint(reader)?;
    let total = read_total(reader, code)?;
    let bytes = read_bytes(reader)?;
    let offset = within(offset, total, bytes).ok_or(FrameFault::Value(code))?;
    Ok(Message { channel, id, priority, offset, total, bytes })
}

/// The offset of a piece, if these bytes can be one: some, but not all, of a message.
fn within(offset: u64, total: u32, bytes: &[u8]) -> Option<u32> {
    let len = bytes.len() as u64;
    let piece = (1..u64::from(total)).contains(&len);
    let inside = offset.checked_add(len)? <= u64::from(total);
    if piece && inside { u32::try_from(offset).ok() } else { None }
}
