//! One channel with one peer, as the wire has it: who opened it has numbered it. Messages go from
//! the opener to the other side; a stream goes both ways.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::association::What;
use super::encoding::PLAIN;
use super::{ChannelKey, StreamKey};
use crate::channel::Carried;
use crate::channel::incoming::{IncomingMessages, IncomingStream, IncomingUnreliable, Memory};
use crate::channel::outgoing::{Notice, OutgoingMessages, OutgoingStream, OutgoingUnreliable};
use crate::wire::channel::{ChannelId, Frame, Mode, Opener};

/// Bytes of unreliable messages that wait for one peer at most: a moment's worth.
pub(super) const DATAGRAM_QUEUE: usize = 1 << 20;
/// What an unreliable message counts besides its bytes.
const DATAGRAM_COST: usize = 64;

/// A conduit of an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConduitId {
    /// This node opened it.
    pub(super) ours: bool,
    /// The opener's number.
    pub(super) number: u32,
}

impl ConduitId {
    /// As frames that this node sends name it.
    pub(super) const fn outward(self) -> ChannelId {
        let opener = if self.ours { Opener::Sender } else { Opener::Receiver };
        ChannelId { number: self.number, opener }
    }

    /// By the name in a frame that came.
    pub(super) const fn inward(channel: ChannelId) -> Self {
        Self { ours: matches!(channel.opener, Opener::Receiver), number: channel.number }
    }
}

/// An unreliable message that waits to be sent.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) priority: u8,
    pub(super) deadline: Option<Instant>,
    pub(super) bytes: Vec<u8>,
}

/// Unreliable messages on their way out.
#[derive(Debug)]
pub(super) struct Datagrams {
    pub(super) ids: OutgoingUnreliable,
    pub(super) queue: VecDeque<Datagram>,
    queued: usize,
}

impl Datagrams {
    pub(super) fn new(channel: ChannelId) -> Self {
        Self { ids: OutgoingUnreliable::new(channel), queue: VecDeque::new(), queued: 0 }
    }

    /// Takes a message, or gives it back when there is no room.
    pub(super) fn push(&mut self, datagram: Datagram) -> Result<(), Vec<u8>> {
        if !self.has_room(datagram.bytes.len()) {
            return Err(datagram.bytes);
        }
        self.queued += datagram.bytes.len() + DATAGRAM_COST;
        self.queue.push_back(datagram);
        Ok(())
    }

    /// Whether [`Self::push`] would take a message of `len` bytes.
    pub(super) const fn has_room(&self, len: usize) -> bool {
        self.queued + len + DATAGRAM_COST <= DATAGRAM_QUEUE
    }

    pub(super) fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.queue.pop_front()?;
        self.queued -= datagram.bytes.len() + DATAGRAM_COST;
        Some(datagram)
    }

    pub(super) const fn queued(&self) -> usize {
        self.queued
    }
}

/// A stream and what its program was told of it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) key: StreamKey,
    pub(super) output: OutgoingStream,
    pub(super) input: IncomingStream,
    /// The program knows that there is something to read.
    pub(super) told_readable: bool,
    /// It takes part: it opened the stream, or accepted it.
    pub(super) taken: bool,
    /// The program is gone, having ended its side: what comes is dropped.
    pub(super) left: bool,
}

/// What a conduit carries.
#[derive(Debug)]
pub(super) enum Body {
    MessagesOut(Box<OutgoingMessages>),
    MessagesIn(Box<IncomingMessages>),
    Stream(Box<Stream>),
    DatagramsOut(Datagrams),
    DatagramsIn(IncomingUnreliable),
}

/// One channel with one peer.
#[derive(Debug)]
pub(super) struct Conduit {
    pub(super) id: ConduitId,
    pub(super) channel: ChannelKey,
    pub(super) body: Body,
    /// Its messages begin with a byte that says how they are encoded.
    pub(super) encoded: bool,
    /// They are to be if the peer takes that, which no session has told yet.
    pub(super) undecided: bool,
    /// OPEN or ACCEPT.
    pub(super) greeting: Notice,
    /// Both sides know of it.
    pub(super) accepted: bool,
    /// What the greeting gives: credit in bytes and in messages.
    pub(super) offer: (u64, u64),
    /// When to ask again, after a refusal.
    pub(super) retry_at: Option<Instant>,
    /// The program waits for room.
    pub(super) full: bool,
    /// It is in the round of those that may have something to send.
    pub(super) active: bool,
    /// Bytes of its turn that are sent.
    pub(super) turn: usize,
    /// Pieces that were lost.
    pub(super) resent: u64,
}

impl Conduit {
    pub(super) fn new(id: ConduitId, channel: ChannelKey, body: Body, offer: (u64, u64)) -> Self {
        Self {
            id,
            channel,
            body,
            encoded: false,
            undecided: false,
            greeting: Notice::Due,
            // A node that was asked knows both.
            accepted: !id.ours,
            offer,
            retry_at: None,
            full: false,
            active: false,
            turn: 0,
            resent: 0,
        }
    }

    /// There is a session, by which the peer takes encoded messages or not. Those that wait were
    /// taken before and are encoded as they are: to compress all of them now would hold up others.
    pub(super) fn decide_encoding(&mut self, takes: bool) {
        if std::mem::take(&mut self.undecided) && takes {
            self.encoded = true;
            if let Body::MessagesOut(messages) = &mut self.body {
                messages.prefix(PLAIN);
            }
        }
    }

    /// It gets another number: nothing of it is on its way.
    pub(super) fn rename(&mut self, id: ConduitId) {
        self.id = id;
        match &mut self.body {
            Body::MessagesOut(messages) => messages.set_channel(id.outward()),
            Body::DatagramsOut(datagrams) => datagrams.ids = OutgoingUnreliable::new(id.outward()),
            _ => {}
        }
    }

    pub(super) const fn mode(&self, messages: Mode) -> Mode {
        match self.body {
            Body::Stream(_) => Mode::Stream,
            Body::DatagramsOut(_) | Body::DatagramsIn(_) => Mode::Unreliable,
            Body::MessagesOut(_) | Body::MessagesIn(_) => messages,
        }
    }

    /// Appends the next frame that goes into `room` bytes. `name` and `mode` are the channel's.
    pub(super) fn write_next(
        &mut self,
        now: Instant,
        room: usize,
        rtt: Duration,
        memory: &mut Memory,
        (name, mode): (&str, Mode),
        out: &mut Vec<u8>,
    ) -> Option<What> {
        if self.greeting == Notice::Due {
            return self.write_greeting(room, (name, mode), out);
        }
        if !self.accepted {
            return None;
        }
        let frame = match &mut self.body {
            Body::MessagesOut(messages) => messages.next_frame(now, room),
            Body::MessagesIn(messages) => fitting(messages.next_frame(now, rtt, memory), room),
            Body::Stream(stream) => {
                match fitting(stream.input.next_frame(now, rtt, memory), room) {
                    None => stream.output.next_frame(room),
                    credit => credit,
                }
            }
            Body::DatagramsOut(_) | Body::DatagramsIn(_) => None,
        };
        let (frame, carried) = frame?;
        frame.write(out);
        Some(What::Carried(carried))
    }

    fn write_greeting(
        &mut self,
        room: usize,
        (name, mode): (&str, Mode),
        out: &mut Vec<u8>,
    ) -> Option<What> {
        let (channel, (credit, messages)) = (self.id.outward(), self.offer);
        let (frame, what) = if self.id.ours {
            let mode = self.mode(mode);
            (
                Frame::Open { channel, mode, encoded: self.encoded, credit, messages, name },
                What::Open,
            )
        } else {
            (Frame::Accept { channel, credit, messages }, What::Accept)
        };
        if frame.encoded_len() > room {
            return None;
        }
        frame.write(out);
        self.greeting = Notice::Said;
        Some(what)
    }

    /// The packet with this arrived.
    pub(super) fn on_acked(&mut self, what: &What) {
        match what {
            What::Carried(carried) => match &mut self.body {
                Body::MessagesOut(messages) => {
                    messages.on_acked(carried);
                }
                Body::Stream(stream) => stream.output.on_acked(carried),
                _ => {}
            },
            What::Open | What::Accept => self.greeting = Notice::Known,
            What::Reply | What::Ping => {}
        }
    }

    /// The packet with this was lost.
    pub(super) fn on_lost(&mut self, what: &What) {
        match what {
            What::Carried(carried) => {
                if matches!(carried, Carried::Message { .. } | Carried::Stream { .. }) {
                    self.resent += 1;
                }
                match &mut self.body {
                    Body::MessagesOut(messages) => messages.on_lost(carried),
                    Body::MessagesIn(messages) => messages.on_lost(carried),
                    Body::Stream(stream) => match carried {
                        Carried::MaxData { .. } | Carried::Recall => stream.input.on_lost(carried),
                        _ => stream.output.on_lost(carried),
                    },
                    _ => {}
                }
            }
            What::Open | What::Accept => self.greeting.on_lost(),
            What::Reply | What::Ping => {}
        }
    }

    /// Whether the peer would get more credit if memory had room.
    pub(super) fn is_starved(&self) -> bool {
        match &self.body {
            Body::MessagesIn(messages) => messages.is_starved(),
            Body::Stream(stream) => stream.input.is_starved(),
            _ => false,
        }
    }

    /// Looks whether it is idle; says whether it is to ask for credit back.
    pub(super) fn look(&mut self) -> bool {
        match &mut self.body {
            Body::MessagesIn(messages) => messages.look(),
            Body::Stream(stream) => stream.input.look(),
            _ => false,
        }
    }

    /// Bytes that wait to be sent or acknowledged.
    pub(super) fn queued(&self) -> usize {
        match &self.body {
            Body::MessagesOut(messages) => messages.kept(),
            Body::Stream(stream) => stream.output.kept(),
            Body::DatagramsOut(datagrams) => datagrams.queued(),
            _ => 0,
        }
    }

    /// Bytes that wait for a program.
    pub(super) fn waiting(&self) -> usize {
        match &self.body {
            Body::MessagesIn(messages) => messages.memory(),
            Body::Stream(stream) => stream.input.memory(),
            Body::DatagramsIn(datagrams) => datagrams.memory(),
            _ => 0,
        }
    }

    /// It is over: gives its memory back.
    pub(super) fn close(self, memory: &mut Memory) {
        match self.body {
            Body::MessagesIn(messages) => messages.close(memory),
            Body::Stream(stream) => stream.input.close(memory),
            _ => {}
        }
    }
}

/// A frame of credit, which is always small: packets end before there is less room than it needs.
fn fitting<'a>(frame: Option<(Frame<'a>, Carried)>, room: usize) -> Option<(Frame<'a>, Carried)> {
    debug_assert!(frame.as_ref().is_none_or(|(frame, _)| frame.encoded_len() <= room));
    frame
}
