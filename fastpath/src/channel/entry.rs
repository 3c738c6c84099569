//! A channel's side of its sockets: who is connected, who receives, who waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Instant;

use encap::channel::hub::{ChannelKey, Hub, ReceivedMessage};
use encap::wire::channel::{MAX_MESSAGE_LEN, Mode};

use super::batch::{BATCH, OutPacket};
use super::framing::{Flags, Header, Kind, MAX_PIECE_LEN, MAX_RECORD_LEN};
use super::port::ConnectionId;
use super::report::{SocketCounters, SocketReport};
use super::sockets::Misfit;

/// Longest unreliable message in bytes, 64 KiB.
pub(super) const MAX_UNRELIABLE_LEN: u32 = 64 << 10;
/// Bytes of messages that are taken from the hub before the program's socket took them: enough for
/// one call, and little beside what the socket holds.
const READ_AHEAD: usize = 256 << 10;
/// Unreliable messages that are dropped in one turn at most.
const DROPS_PER_TURN: usize = 1024;

/// A configured channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) key: ChannelKey,
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) listener: OwnedFd,
    /// Whether new connections are waited for; not while there are no descriptors for them.
    pub(super) listening: bool,
    /// Its messages are compressed.
    pub(super) compressed: bool,
    /// Who is connected, in the order in which they came.
    pub(super) connections: Vec<ConnectionId>,
    /// The one that gets the messages.
    pub(super) receiver: Option<ConnectionId>,
    /// Those whose message the hub had no room for; the next to be tried comes first.
    pub(super) blocked: VecDeque<ConnectionId>,
    /// Those that wait for a stream; the next to get one comes first.
    pub(super) accepting: VecDeque<ConnectionId>,
    /// The hub may have messages for programs.
    pub(super) readable: bool,
    /// It is to be delivered from in the next turn.
    pub(super) queued: bool,
    pub(super) outbox: Outbox,
    pub(super) counters: SocketCounters,
    /// What is in the log, until it is well or the configuration is read anew. Two for each peer at
    /// most.
    pub(super) misfits: BTreeSet<Misfit>,
    /// When the log was last told of what, since the configuration was read. Two for each peer at
    /// most.
    pub(super) warned: BTreeMap<Misfit, Instant>,
}

impl Channel {
    pub(super) fn new(key: ChannelKey, name: String, mode: Mode, listener: OwnedFd) -> Self {
        Self {
            key,
            name,
            mode,
            listener,
            listening: false,
            compressed: false,
            connections: Vec::new(),
            receiver: None,
            blocked: VecDeque::new(),
            accepting: VecDeque::new(),
            readable: true,
            queued: false,
            outbox: Outbox::default(),
            counters: SocketCounters::default(),
            misfits: BTreeSet::new(),
            warned: BTreeMap::new(),
        }
    }

    /// Bytes of a message at most.
    pub(super) fn max_message_len(&self) -> u32 {
        let longest =
            if self.mode == Mode::Unreliable { MAX_UNRELIABLE_LEN } else { MAX_MESSAGE_LEN };
        // A byte says how the rest is encoded.
        longest - u32::from(self.compressed)
    }

    /// Takes messages from the hub as far as is needed for one call.
    pub(super) fn fill_outbox(&mut self, hub: &mut Hub) {
        while self.readable && self.outbox.has_room() {
            match hub.next_message(self.key) {
                Some(message) => self.outbox.push(message),
                None => self.readable = false,
            }
        }
    }

    /// Drops unreliable messages that nobody takes, some in a turn; says how many.
    pub(super) fn drop_unreliable(&mut self, hub: &mut Hub) -> usize {
        let mut dropped = 0;
        while self.readable && dropped < DROPS_PER_TURN {
            match hub.next_message(self.key) {
                Some(_) => dropped += 1,
                None => self.readable = false,
            }
        }
        let counter = if self.receiver.is_some() {
            &mut self.counters.dropped_slow_receiver
        } else {
            &mut self.counters.dropped_no_receiver
        };
        *counter += dropped as u64;
        dropped
    }

    /// Nobody receives any more. What was read ahead waits for the next one, from its beginning.
    pub(super) fn lose_receiver(&mut self) {
        self.receiver = None;
        self.outbox.sent = 0;
        if self.mode == Mode::Unreliable {
            self.counters.dropped_no_receiver += self.outbox.messages.len() as u64;
            self.outbox = Outbox::default();
        }
    }

    /// Forgets a connection.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        self.connections.retain(|other| *other != id);
        self.blocked.retain(|other| *other != id);
        self.accepting.retain(|other| *other != id);
        if self.receiver == Some(id) {
            self.lose_receiver();
        }
    }

    pub(super) fn report(&self, programs: usize) -> SocketReport {
        SocketReport {
            key: self.key,
            name: self.name.clone(),
            mode: self.mode,
            programs,
            receiving: self.receiver.is_some(),
            counters: self.counters,
        }
    }
}

/// Messages that were taken from the hub and not yet by the program's socket.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: VecDeque<ReceivedMessage>,
    /// Bytes in them.
    bytes: usize,
    /// Bytes of the first one that were written.
    sent: usize,
}

impl Outbox {
    fn has_room(&self) -> bool {
        self.messages.len() < BATCH && self.bytes < READ_AHEAD
    }

    fn push(&mut self, message: ReceivedMessage) {
        self.bytes += message.bytes.len();
        self.messages.push_back(message);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn pop(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.bytes -= message.bytes.len();
        }
        self.sent = 0;
    }

    /// What is to be written: records, or packets without headers.
    pub(super) fn packets(&self, raw: bool) -> impl Iterator<Item = OutPacket<'_>> {
        let starts = std::iter::once(self.sent).chain(std::iter::repeat(0));
        self.messages.iter().zip(starts).flat_map(move |(message, start)| Pieces {
            message,
            rest: message.bytes.get(start..),
            raw,
        })
    }

    /// So many of [`Self::packets`] were written.
    pub(super) fn written(&mut self, packets: usize, raw: bool) {
        for _ in 0..packets {
            let Some(message) = self.messages.front() else { return };
            let left = message.bytes.len().saturating_sub(self.sent);
            if raw || left <= MAX_PIECE_LEN {
                self.pop();
            } else {
                self.sent += MAX_PIECE_LEN;
            }
        }
    }

    /// Drops the first message, which the descriptor refused.
    pub(super) fn drop_first(&mut self) {
        self.pop();
    }

    /// Drops messages at the front that are too long for a packet without header; says how many.
    pub(super) fn drop_long(&mut self) -> u64 {
        let before = self.messages.len();
        self.messages.retain(|message| message.bytes.len() <= MAX_RECORD_LEN);
        self.bytes = self.messages.iter().map(|message| message.bytes.len()).sum();
        (before - self.messages.len()) as u64
    }

    /// Whether there are messages without bytes.
    pub(super) fn has_empty(&self) -> bool {
        self.messages.iter().any(|message| message.bytes.is_empty())
    }

    /// Drops messages without bytes; says how many.
    pub(super) fn drop_empty(&mut self) -> u64 {
        let before = self.messages.len();
        self.messages.retain(|message| !message.bytes.is_empty());
        (before - self.messages.len()) as u64
    }
}

/// The records of one message.
struct Pieces<'a> {
    message: &'a ReceivedMessage,
    /// Bytes that are left; None when the last piece was given.
    rest: Option<&'a [u8]>,
    raw: bool,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = OutPacket<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        if self.raw {
            return Some(OutPacket { header: None, payload: rest });
        }
        let (payload, rest) = rest.split_at(rest.len().min(MAX_PIECE_LEN));
        self.rest = Some(rest).filter(|rest| !rest.is_empty());
        let header = Header {
            flags: if self.rest.is_some() { Flags::MORE } else { Flags::NONE },
            priority: self.message.priority,
            peer: self.message.from.get(),
            length: u32::try_from(self.message.bytes.len()).unwrap_or(u32::MAX),
            ..Header::new(Kind::Data)
        };
        Some(OutPacket { header: Some(header.encode()), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use encap::id::NodeId;

    fn outbox(lens: &[usize]) -> Outbox {
        let mut outbox = Outbox::default();
        for len in lens {
            let from = NodeId::new(3).unwrap();
            outbox.push(ReceivedMessage { from, priority: 2, bytes: vec![1; *len] });
        }
        outbox
    }

    fn lens(outbox: &Outbox, raw: bool) -> Vec<usize> {
        outbox.packets(raw).map(|packet| packet.payload.len()).collect()
    }

    #[test]
    fn long_messages_go_on_where_they_were_left() {
        let mut outbox = outbox(&[0, MAX_PIECE_LEN, 2 * MAX_PIECE_LEN + 5, 1]);
        assert_eq!(lens(&outbox, false), [0, MAX_PIECE_LEN, MAX_PIECE_LEN, MAX_PIECE_LEN, 5, 1]);
        let headers = outbox.packets(false).map(|packet| packet.header.unwrap());
        let more = headers.map(|header| {
            let header = Header::decode(header).unwrap();
            assert_eq!((header.peer, header.priority), (3, 2));
            header.flags.contains(Flags::MORE)
        });
        assert_eq!(more.collect::<Vec<_>>(), [false, false, true, true, false, false]);
        outbox.written(3, false);
        assert_eq!(lens(&outbox, false), [MAX_PIECE_LEN, 5, 1]);
        outbox.written(2, false);
        assert_eq!((lens(&outbox, false), outbox.bytes), (vec![1], 1));
        outbox.written(1, false);
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn raw_packets_are_whole() {
        let mut outbox = outbox(&[MAX_RECORD_LEN, MAX_RECORD_LEN + 1, 7]);
        assert_eq!(outbox.drop_long(), 1);
        assert_eq!(lens(&outbox, true), [MAX_RECORD_LEN, 7]);
        outbox.written(1, true);
        assert_eq!(lens(&outbox, true), [7]);
    }

    #[test]
    fn read_ahead_has_bounds() {
        assert!(outbox(&[1; BATCH - 1]).has_room());
        assert!(!outbox(&[1; BATCH]).has_room());
        assert!(!outbox(&[READ_AHEAD]).has_room());
    }
}
