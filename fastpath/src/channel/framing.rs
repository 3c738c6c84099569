//! Records between a program and tapd: a header of 16 bytes and a payload.
//!
//! Numbers are in the byte order of the host: records never leave it. On a socket of messages
//! (`SOCK_SEQPACKET`) one record is one packet. On a socket of streams (`SOCK_STREAM`) the length in
//! the header says where the next one begins. docs/channels.md has the layout as a table.
//!
//! How a connection ends:
//! - A program that has sent all shuts the sending side of the socket down and reads to CLOSED,
//!   which comes when the peers have everything, or it was given up, however long that takes; then
//!   tapd hangs up.
//! - A stream that ended both ways is over when all that was written has arrived: then CLOSED comes,
//!   and not before, and tapd hangs up. A program that does not care may close the socket right
//!   after its FIN if it has read the peer's: tapd takes what is in the socket all the same.
//! - After RESET, either way, and after ERROR tapd hangs up.
//! - The end of the connection without CLOSED, RESET or ERROR is that of tapd itself: what became of
//!   what was sent is not known.
//! - A program that closes the socket otherwise is gone: its stream is reset, what it sent and tapd
//!   has not read yet is lost, and so is what tapd wrote and it has not read.

use encap::id::NodeId;
use encap::wire::channel::{MAX_PRIORITY, Mode};

/// Version of the records that is written here, in the `number` of ATTACH and of WELCOME.
pub const VERSION: u32 = 1;
/// Bytes of a record's header.
pub const HEADER_LEN: usize = 16;
/// Bytes of a record on a socket of messages at most, with its header and the ids of a set: a
/// packet of this length fits into a socket whose buffers are as the kernel makes them.
pub const MAX_RECORD_LEN: usize = 64 << 10;
/// Bytes of a message that one record holds at most; a longer message comes in pieces.
pub const MAX_PIECE_LEN: usize = MAX_RECORD_LEN - HEADER_LEN;
/// Bytes of payload of one record on a socket of streams at most: enough that headers cost nothing,
/// and what a program that keeps whole records has to hold.
pub const MAX_STREAM_PAYLOAD: usize = 1 << 20;
/// Bytes of one id in the set in front of a payload.
pub const PEER_ID_LEN: usize = 2;
/// Nodes in a set at most.
pub const MAX_PEERS: usize = u8::MAX as usize;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The program's first record: `number` is [`VERSION`]. With [`Flags::RECEIVE`] the program
    /// gets the messages of the channel. With [`Flags::RAW`] a descriptor comes with it by
    /// `SCM_RIGHTS`, and what is sent there goes to `peer`.
    Attach = 1,
    /// A message, a piece of one, or bytes of a stream; both ways.
    Data = 2,
    /// The program asks `peer` for a stream.
    Connect = 3,
    /// The program takes the next stream that a peer asks for.
    Accept = 4,
    /// No more bytes of the stream come from this side; both ways.
    Fin = 5,
    /// The stream is given up, both ways. `number` is what the program that did it says, `code` is
    /// why where tapd did it.
    Reset = 6,
    /// tapd's answer to ATTACH: `peer` is this node, `number` is [`VERSION`], `priority` the number
    /// of the mode, the payload the channel's name. On a socket of messages `length` is that of the
    /// longest message.
    Welcome = 0x10,
    /// The peer can be reached; the payload is its name.
    PeerUp = 0x11,
    /// The peer cannot be reached now.
    PeerDown = 0x12,
    /// The peer was restarted; `number` messages were given up, of which some may have arrived.
    Epoch = 0x13,
    /// `number` messages to the peer were given up as their time was over.
    Expired = 0x14,
    /// The peer has no such channel, or not for this node; `code` is [`Code::NoChannel`]. Messages
    /// wait, and it is asked again now and then.
    Refused = 0x15,
    /// The connection ends: `code` and, as payload, a text that say why.
    Error = 0x16,
    /// There is a stream with this peer: the answer to CONNECT and to ACCEPT.
    Connected = 0x17,
    /// All that the program sent has arrived or was given up, or its stream is over, having ended
    /// both ways: the connection ends. `number` messages may not have arrived: those to all that
    /// came to nobody, and those to peers it sent to that were given up meanwhile, which may be
    /// other programs'.
    Closed = 0x18,
}

impl Kind {
    /// What a number stands for.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Attach,
            2 => Self::Data,
            3 => Self::Connect,
            4 => Self::Accept,
            5 => Self::Fin,
            6 => Self::Reset,
            0x10 => Self::Welcome,
            0x11 => Self::PeerUp,
            0x12 => Self::PeerDown,
            0x13 => Self::Epoch,
            0x14 => Self::Expired,
            0x15 => Self::Refused,
            0x16 => Self::Error,
            0x17 => Self::Connected,
            0x18 => Self::Closed,
            _ => return None,
        })
    }

    /// Whether a program may send it.
    #[must_use]
    pub const fn is_from_program(self) -> bool {
        matches!(
            self,
            Self::Attach | Self::Data | Self::Connect | Self::Accept | Self::Fin | Self::Reset
        )
    }
}

/// Bits of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u8);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// DATA of a message: more pieces follow.
    pub const MORE: Self = Self(1);
    /// ATTACH: the program gets the messages of the channel.
    pub const RECEIVE: Self = Self(2);
    /// ATTACH: a descriptor comes with it that carries messages without headers.
    pub const RAW: Self = Self(4);

    const ALL: u8 = Self::MORE.0 | Self::RECEIVE.0 | Self::RAW.0;

    /// As one byte.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From one byte, unless bits are set that mean nothing.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits & !Self::ALL == 0 { Some(Self(bits)) } else { None }
    }

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and those.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why tapd refuses, ends or resets: `code` of a record, an `errno` of the host. 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// `EINVAL`: a record that is not understood or not allowed there, pieces that do not add up, a
    /// descriptor that cannot carry messages.
    Invalid,
    /// `EMSGSIZE`: longer than the mode of the channel allows.
    TooLong,
    /// `EHOSTUNREACH`: the node is none of the channel's peers.
    NoPeer,
    /// `ENOTCONN`: not attached, or there is no stream yet.
    NotAttached,
    /// `EBUSY`: another program gets the messages of the channel.
    Busy,
    /// `EMFILE`: as many programs use the channel, or as many streams are open, as may be.
    TooMany,
    /// `EPROTONOSUPPORT`: a version that this tapd does not speak.
    Version,
    /// `ESHUTDOWN`: the channel was taken out of the configuration, or tapd ends.
    Closed,
    /// `ENOENT`: the peer has no such channel, or of another mode, or not for this node.
    NoChannel,
    /// `ECONNREFUSED`: nobody at the peer accepts streams.
    NobodyAccepts,
    /// `ECONNRESET`: the program at the peer gave the stream up; `number` is what it says.
    Reset,
    /// `EHOSTDOWN`: the peer was restarted, or is no peer any more.
    PeerGone,
    /// `EPROTO`: the peer did what it must not.
    Protocol,
}

impl Code {
    /// Every one, and what it is as a number.
    pub const ALL: [(Self, libc::c_int); 13] = [
        (Self::Invalid, libc::EINVAL),
        (Self::TooLong, libc::EMSGSIZE),
        (Self::NoPeer, libc::EHOSTUNREACH),
        (Self::NotAttached, libc::ENOTCONN),
        (Self::Busy, libc::EBUSY),
        (Self::TooMany, libc::EMFILE),
        (Self::Version, libc::EPROTONOSUPPORT),
        (Self::Closed, libc::ESHUTDOWN),
        (Self::NoChannel, libc::ENOENT),
        (Self::NobodyAccepts, libc::ECONNREFUSED),
        (Self::Reset, libc::ECONNRESET),
        (Self::PeerGone, libc::EHOSTDOWN),
        (Self::Protocol, libc::EPROTO),
    ];

    /// As a number, never 0.
    #[must_use]
    pub const fn number(self) -> u16 {
        // Errors of the kernel are below 4,096.
        Self::ALL[self as usize].1 as u16
    }

    /// What a number stands for.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().find(|(code, _)| code.number() == number).map(|(code, _)| *code)
    }
}

/// The number of a mode in the `priority` of WELCOME.
#[must_use]
pub const fn mode_number(mode: Mode) -> u8 {
    mode as u8
}

/// The mode of a number in the `priority` of WELCOME.
#[must_use]
pub const fn mode_from_number(number: u8) -> Option<Mode> {
    match number {
        0 => Some(Mode::Stream),
        1 => Some(Mode::Ordered),
        2 => Some(Mode::Unordered),
        3 => Some(Mode::Unreliable),
        _ => None,
    }
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeaderFault {
    /// There are fewer than [`HEADER_LEN`].
    #[error("a record of fewer than {HEADER_LEN} bytes")]
    Short,
    /// No such type.
    #[error("a record of unknown type {0}")]
    Kind(u8),
    /// Flags that mean nothing.
    #[error("a record with unknown flags {0:#04x}")]
    Flags(u8),
    /// A priority above [`MAX_PRIORITY`].
    #[error("priority {0}; 0 to {MAX_PRIORITY} are possible")]
    Priority(u8),
}

/// What is in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the record is.
    pub kind: Kind,
    /// Bits of it.
    pub flags: Flags,
    /// 0 (first) to 7 (last); of WELCOME the number of the mode.
    pub priority: u8,
    /// Ids of nodes, of 2 bytes each, that are between a DATA record's header and its payload; then
    /// `peer` does not count.
    pub count: u8,
    /// A node's id; 0 for none, in DATA of a program for all that can be reached.
    pub peer: u16,
    /// A [`Code`] as a number, or 0.
    pub code: u16,
    /// Of DATA the milliseconds after which the message is given up, 0 for never; of ATTACH and
    /// WELCOME the version; of RESET what the program says; else a count of messages.
    pub number: u32,
    /// On a socket of messages the bytes of the whole message, the same in each of its pieces; on
    /// one of streams the bytes of payload that follow.
    pub length: u32,
}

impl Header {
    /// A header of this type; all else is 0.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            flags: Flags::NONE,
            priority: 0,
            count: 0,
            peer: 0,
            code: 0,
            number: 0,
            length: 0,
        }
    }

    /// Of an event: about this peer, with this count, with a payload of so many bytes.
    #[must_use]
    pub const fn event(kind: Kind, peer: NodeId, number: u32, length: u32) -> Self {
        Self { peer: peer.get(), number, length, ..Self::new(kind) }
    }

    /// As bytes.
    #[must_use]
    pub const fn encode(&self) -> [u8; HEADER_LEN] {
        let [peer, code] = [self.peer.to_ne_bytes(), self.code.to_ne_bytes()];
        let [number, length] = [self.number.to_ne_bytes(), self.length.to_ne_bytes()];
        [
            self.kind as u8,
            self.flags.bits(),
            self.priority,
            self.count,
            peer[0],
            peer[1],
            code[0],
            code[1],
            number[0],
            number[1],
            number[2],
            number[3],
            length[0],
            length[1],
            length[2],
            length[3],
        ]
    }

    /// From bytes.
    ///
    /// # Errors
    /// The type, the flags or the priority is none.
    pub const fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, HeaderFault> {
        let [kind, flags, priority, count, p0, p1, c0, c1, n0, n1, n2, n3, l0, l1, l2, l3] = bytes;
        let Some(kind) = Kind::from_number(kind) else { return Err(HeaderFault::Kind(kind)) };
        let Some(flags) = Flags::from_bits(flags) else { return Err(HeaderFault::Flags(flags)) };
        if priority > MAX_PRIORITY {
            return Err(HeaderFault::Priority(priority));
        }
        Ok(Self {
            kind,
            flags,
            priority,
            count,
            peer: u16::from_ne_bytes([p0, p1]),
            code: u16::from_ne_bytes([c0, c1]),
            number: u32::from_ne_bytes([n0, n1, n2, n3]),
            length: u32::from_ne_bytes([l0, l1, l2, l3]),
        })
    }

    /// The header at the beginning of a record, and what follows it.
    ///
    /// # Errors
    /// As [`Self::decode`], and [`HeaderFault::Short`].
    pub fn read(record: &[u8]) -> Result<(Self, &[u8]), HeaderFault> {
        let Some((header, rest)) = record.split_first_chunk() else {
            return Err(HeaderFault::Short);
        };
        Ok((Self::decode(*header)?, rest))
    }

    /// The peer, if there is one.
    #[must_use]
    pub const fn peer(&self) -> Option<NodeId> {
        NodeId::new(self.peer)
    }

    /// Splits what follows the header of a DATA record into the ids of the nodes and the payload;
    /// None when it is shorter than the ids.
    #[must_use]
    pub fn split_peers<'a>(&self, rest: &'a [u8]) -> Option<(PeerIds<'a>, &'a [u8])> {
        let (ids, payload) = rest.split_at_checked(usize::from(self.count) * PEER_ID_LEN)?;
        Some((PeerIds(ids), payload))
    }
}

/// The ids of a set of nodes, as they are in a record. What is 0 is given as None.
#[derive(Debug, Clone)]
pub struct PeerIds<'a>(&'a [u8]);

impl Iterator for PeerIds<'_> {
    type Item = Option<NodeId>;

    fn next(&mut self) -> Option<Self::Item> {
        let (id, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(NodeId::new(u16::from_ne_bytes(*id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATA: Header = Header {
        kind: Kind::Data,
        flags: Flags::MORE,
        priority: 7,
        count: 2,
        peer: 0x0102,
        code: 0x0304,
        number: 0x0506_0708,
        length: 0x090a_0b0c,
    };

    #[test]
    fn layout_is_the_documented_one() {
        let mut expected = vec![2, 1, 7, 2];
        expected.extend(0x0102_u16.to_ne_bytes());
        expected.extend(0x0304_u16.to_ne_bytes());
        expected.extend(0x0506_0708_u32.to_ne_bytes());
        expected.extend(0x090a_0b0c_u32.to_ne_bytes());
        assert_eq!(DATA.encode().as_slice(), expected);
        assert_eq!(MAX_PIECE_LEN, 65_520);
    }

    #[test]
    fn wrong_headers_are_named() {
        let changed = |at: usize, value: u8| {
            let mut bytes = DATA.encode();
            bytes[at] = value;
            Header::decode(bytes).unwrap_err()
        };
        assert_eq!(changed(0, 0), HeaderFault::Kind(0));
        assert_eq!(changed(0, 0x19), HeaderFault::Kind(0x19));
        assert_eq!(changed(1, 8), HeaderFault::Flags(8));
        assert_eq!(changed(2, 8), HeaderFault::Priority(8));
        assert_eq!(Header::read(&[1; HEADER_LEN - 1]).unwrap_err(), HeaderFault::Short);
    }

    #[test]
    fn kinds_and_codes_are_numbers_both_ways() {
        let kinds = (0..=u8::MAX).filter_map(Kind::from_number).collect::<Vec<_>>();
        assert_eq!(kinds.len(), 15);
        assert!(kinds.iter().all(|kind| Kind::from_number(*kind as u8) == Some(*kind)));
        assert_eq!(kinds.iter().filter(|kind| kind.is_from_program()).count(), 6);
        for (position, (code, number)) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, position);
            assert_eq!(libc::c_int::from(code.number()), number);
            assert_eq!(Code::from_number(code.number()), Some(code));
        }
        assert_eq!(Code::from_number(0), None);
    }

    #[test]
    fn modes_are_numbers_both_ways() {
        let modes = [Mode::Stream, Mode::Ordered, Mode::Unordered, Mode::Unreliable];
        for mode in modes {
            assert_eq!(mode_from_number(mode_number(mode)), Some(mode));
        }
        assert_eq!(mode_from_number(4), None);
    }

    #[test]
    fn sets_are_in_front_of_the_payload() {
        let mut record = DATA.encode().to_vec();
        record.extend(5_u16.to_ne_bytes());
        record.extend(0_u16.to_ne_bytes());
        record.extend(b"payload");
        let (header, rest) = Header::read(&record).unwrap();
        let (ids, payload) = header.split_peers(rest).unwrap();
        assert_eq!(ids.collect::<Vec<_>>(), [NodeId::new(5), None]);
        assert_eq!(payload, b"payload");
        assert!(header.split_peers(&rest[..3]).is_none());
    }

    proptest! {
        #[test]
        fn any_header_survives(bytes in prop::array::uniform16(0_u8..8)) {
            if let Ok(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((header, rest)) = Header::read(&bytes) {
                prop_assert_eq!(rest.len(), bytes.len() - HEADER_LEN);
                prop_assert_eq!(&header.encode()[..], &bytes[..HEADER_LEN]);
            }
        }
    }
}
