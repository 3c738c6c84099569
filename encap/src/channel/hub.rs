//! All channels of a node: what programs send becomes packets, and packets become what programs
//! read.
//!
//! The hub belongs to one worker. It knows peers by what is published of them ([`PeerView`]), and
//! neither keys nor sockets: who owns it seals what [`Hub::transmit`] gives and hands in what was
//! opened.
//!
//! 1. `programs`: what programs do, in this direction and that
//! 2. `conduit`: one channel with one peer
//! 3. `association`: all of them with one peer, and the paths there
//! 4. `transmit`: packets are filled in turns
//! 5. `receive`: packets are taken apart

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::channel::incoming::Memory;
use crate::channel::recovery::ranges::PacketRange;
use crate::compress::Level;
use crate::id::NodeId;
use crate::wire::channel::Mode;

use association::Association;
use conduit::{Body, Conduit, ConduitId};
use encoding::{Decoder, Encoder};

mod association;
mod channels;
mod conduit;
mod encoding;
mod path;
mod programs;
mod receive;
mod report;
#[cfg(test)]
mod tests;
mod transmit;
mod view;

pub use receive::ChannelDrop;
pub use report::{ChannelReport, HubReport, PathReport, PeerReport, PeerState};
pub use transmit::{Packet, Progress};
pub use view::{LEAST_ROOM, LinkView, PeerView, SessionView};

use channels::{Channel, Membership};

/// A configured channel on this node; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelKey(pub u32);

/// A stream of this node; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey(pub u64);

/// What the configuration says of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelConfig {
    /// Its name, 1 to [`crate::wire::channel::MAX_NAME_LEN`] bytes; the same on both nodes.
    pub name: String,
    /// What it carries; the same on both nodes.
    pub mode: Mode,
    /// Which nodes may take part; none for all peers.
    pub peers: Option<Vec<NodeId>>,
    /// Unreliable messages leave by the best link, or a copy by each that is alive.
    pub copies: bool,
    /// Bytes of messages that are kept for one peer until it has them, at most.
    pub send_buffer: usize,
    /// How hard messages are compressed; not those of streams.
    pub compression: Option<Level>,
}

/// What holds for all channels together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubOptions {
    /// How fast may be sent.
    pub congestion: Congestion,
    /// Bytes of memory for what came and no program took, at least [`MIN_RECEIVE_MEMORY`].
    pub receive_memory: u64,
}

/// Least memory in bytes for what came and no program took.
pub const MIN_RECEIVE_MEMORY: u64 = 64 << 20;

impl Default for HubOptions {
    fn default() -> Self {
        Self { congestion: Congestion::Cubic, receive_memory: 2 * MIN_RECEIVE_MEMORY }
    }
}

/// Which congestion control paths begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Congestion {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// NewReno (RFC 9002 section 7).
    NewReno,
    /// So many bytes a second, whatever is lost.
    Fixed(u64),
}

/// How a message is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendOptions {
    /// 0 (first) to 7 (last).
    pub priority: u8,
    /// Given up when it is not there after so long.
    pub ttl: Option<Duration>,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SendError {
    /// There is no room now: [`ChannelEvent::Writable`] says when there is.
    #[error("no room for the message now")]
    Full,
    /// It is longer than the mode allows: 16 MiB, or 64 KiB for unreliable ones.
    #[error("message is too long for the channel")]
    TooLong,
    /// There is no such channel, or it is a stream's.
    #[error("no such channel of messages")]
    NoChannel,
    /// The node is none of the channel's peers.
    #[error("no such peer of the channel")]
    NoPeer,
}

/// A message that was not taken, given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendRefused {
    /// Why.
    pub error: SendError,
    /// The message.
    pub bytes: Vec<u8>,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// Who sent it.
    pub from: NodeId,
    /// 0 (first) to 7 (last).
    pub priority: u8,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Why a stream ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamError {
    /// The peer has no such channel of streams, or not for this node.
    Refused,
    /// Nobody there accepts streams.
    NobodyAccepts,
    /// The peer's program gave it up, with this code.
    Reset(u64),
    /// The peer was restarted, or is no peer any more.
    PeerGone,
    /// The peer did what it must not.
    Protocol,
}

/// What programs are to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelEvent {
    /// [`Hub::next_message`] has something.
    Readable(ChannelKey),
    /// A message for this peer that was refused as [`SendError::Full`] may be tried again.
    Writable(ChannelKey, NodeId),
    /// The peer can be reached; also said of each one when a channel is new.
    PeerUp(ChannelKey, NodeId),
    /// It cannot be reached now. What is on its way stays.
    PeerDown(ChannelKey, NodeId),
    /// The peer was restarted: what it has not acknowledged was given up, so many messages. Some of
    /// them may have arrived. What is sent from now on is for the new process.
    EpochChanged(ChannelKey, NodeId, u64),
    /// So many messages for the peer were given up as their time was over.
    Expired(ChannelKey, NodeId, u64),
    /// The peer has no such channel, or of another mode, or not for this node. Messages wait; it is
    /// asked again now and then.
    Refused(ChannelKey, NodeId),
    /// The peer that refused it has it now.
    Accepted(ChannelKey, NodeId),
    /// The peer asked for it and was refused: in another mode, or though it is not for that node.
    /// Said once, until the peer does better.
    Mismatched(ChannelKey, NodeId),
    /// What [`Hub::is_settled`] was asked of this peer may be so now. Not said of messages that were
    /// given up: of those other events tell.
    Settled(ChannelKey, NodeId),
    /// [`Hub::accept_stream`] has something.
    StreamWaiting(ChannelKey),
    /// The peer accepted the stream.
    StreamOpened(StreamKey),
    /// [`Hub::read_stream`] has something, or the stream's end.
    StreamReadable(StreamKey),
    /// [`Hub::write_stream`] takes bytes again.
    StreamWritable(StreamKey),
    /// All that was written has arrived, its end included, and all was read, up to the peer's end,
    /// which is said by this if it was not read before: the key is forgotten.
    StreamDone(StreamKey),
    /// The stream is over; the key is forgotten.
    StreamFailed(StreamKey, StreamError),
}

/// What the program can read of a stream now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamRead<'a> {
    /// These bytes, at least one: [`Hub::consume_stream`] takes them.
    Bytes(&'a [u8]),
    /// Nothing now.
    Nothing,
    /// All was read: the peer's program has ended its side.
    End,
}

/// All channels of a node.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    memory: Memory,
    channels: BTreeMap<ChannelKey, Channel>,
    peers: BTreeMap<NodeId, Association>,
    streams: HashMap<StreamKey, (NodeId, ConduitId)>,
    next_stream: u64,
    events: VecDeque<ChannelEvent>,
    /// The peer whose turn it is to send.
    turn: Option<NodeId>,
    /// Something may be there to be sent.
    work: bool,
    /// Bytes of memory that were booked when a conduit got none: with less, they are asked again.
    starved_at: Option<u64>,
    /// When idle conduits are next asked for credit, if memory is short then.
    recall_at: Option<Instant>,
    /// When something is due, if nothing happens before.
    due: Option<Instant>,
    /// The packet at hand.
    buf: Vec<u8>,
    ranges: Vec<PacketRange>,
    /// Conduits of which something was acknowledged.
    heard: Vec<ConduitId>,
    encoder: Encoder,
    decoder: Decoder,
}

impl Hub {
    /// No channels, no peers.
    #[must_use]
    pub fn new(options: HubOptions) -> Self {
        Self {
            options,
            memory: Memory::new(options.receive_memory.max(MIN_RECEIVE_MEMORY)),
            channels: BTreeMap::new(),
            peers: BTreeMap::new(),
            streams: HashMap::new(),
            next_stream: 0,
            events: VecDeque::new(),
            turn: None,
            work: false,
            starved_at: None,
            recall_at: None,
            due: None,
            buf: Vec::new(),
            ranges: Vec::new(),
            heard: Vec::new(),
            encoder: Encoder::default(),
            decoder: Decoder::default(),
        }
    }

    /// Whether there is any channel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let silent = |peer: &Association| peer.view.is_none() || peer.replies.is_empty();
        self.channels.is_empty() && self.peers.values().all(silent)
    }

    /// The peers that there are from now on, and how they can be reached.
    pub fn set_peers(&mut self, now: Instant, views: Vec<PeerView>) {
        let kept: Vec<NodeId> = views.iter().map(|view| view.node).collect();
        let removed: Vec<NodeId> = self
            .peers
            .values()
            .filter(|peer| peer.view.is_some() && !kept.contains(&peer.node))
            .map(|peer| peer.node)
            .collect();
        for node in removed {
            self.remove_peer(node);
        }
        for view in views {
            let node = view.node;
            let boot = view.session.as_ref().map(|session| session.boot);
            let peer = self.peers.entry(node).or_insert_with(|| Association::new(node));
            let boot = boot.filter(|boot| !peer.is_over(*boot));
            peer.set_view(now, view);
            if let Some(boot) = boot {
                self.meet(node, boot);
            }
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.decide_encoding();
            }
            self.tell_reachable(node);
        }
        self.work = true;
    }

    /// The peer's process is this one.
    fn meet(&mut self, node: NodeId, boot: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(conduits) = peer.meet(boot) else { return };
        self.give_up(node, conduits);
    }

    fn remove_peer(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.view = None;
        peer.round.clear();
        peer.datagrams.clear();
        let conduits = std::mem::take(&mut peer.conduits);
        // It is told when it comes back, unless it is another process by then.
        for id in conduits.keys() {
            peer.reply(*id, association::Reply::Reset(0));
        }
        self.give_up(node, conduits.into_values().collect());
        self.tell_reachable(node);
    }

    /// The conduits of a peer's process that is no more end, or of a peer that is none any more.
    fn give_up(&mut self, node: NodeId, conduits: Vec<Conduit>) {
        let mut lost: BTreeMap<ChannelKey, u64> = BTreeMap::new();
        for conduit in conduits {
            let key = conduit.channel;
            *lost.entry(key).or_default() += self.end(node, conduit, StreamError::PeerGone);
        }
        for (key, channel) in &mut self.channels {
            if let Some(member) = channel.peers.get_mut(&node) {
                // What another process refused says nothing of the next one.
                member.refused = false;
            }
            if channel.takes(node) && channel.config.mode != Mode::Stream {
                let count = lost.get(key).copied().unwrap_or(0);
                self.events.push_back(ChannelEvent::EpochChanged(*key, node, count));
            }
        }
    }

    /// A conduit is over, without its end: gives the messages that are given up with it. Those that
    /// came are for programs nevertheless.
    fn end(&mut self, node: NodeId, conduit: Conduit, error: StreamError) -> u64 {
        let (id, key, full) = (conduit.id, conduit.channel, conduit.full);
        let encoded = conduit.encoded;
        let mut lost = 0;
        let channel = self.channels.get_mut(&key);
        match conduit.body {
            Body::MessagesOut(messages) => {
                lost = messages.count() as u64;
                if let Some(member) = channel.and_then(|channel| channel.peers.get_mut(&node)) {
                    member.forget(id);
                    member.stats.given_up += lost;
                    member.over += messages.taken_in();
                }
                if full {
                    self.events.push_back(ChannelEvent::Writable(key, node));
                }
            }
            Body::MessagesIn(mut messages) => {
                if let Some(channel) = channel {
                    while let Some(delivery) = messages.next_message(&mut self.memory) {
                        channel.take_in(node, delivery, encoded);
                    }
                    channel.member(node).forget(id);
                    if !channel.inbox.is_empty() {
                        channel.tell(key, &mut self.events);
                    }
                }
                messages.close(&mut self.memory);
            }
            Body::Stream(stream) => {
                self.streams.remove(&stream.key);
                stream.input.close(&mut self.memory);
                if let Some(channel) = channel {
                    channel.waiting.retain(|(waiting, ..)| *waiting != stream.key);
                }
                if stream.taken {
                    self.events.push_back(ChannelEvent::StreamFailed(stream.key, error));
                }
            }
            Body::DatagramsOut(datagrams) => {
                if let Some(member) = channel.and_then(|channel| channel.peers.get_mut(&node)) {
                    member.forget(id);
                    member.stats.dropped += datagrams.queue.len() as u64;
                }
                if full {
                    self.events.push_back(ChannelEvent::Writable(key, node));
                }
            }
            Body::DatagramsIn(_) => {
                if let Some(member) = channel.and_then(|channel| channel.peers.get_mut(&node)) {
                    member.forget(id);
                }
            }
        }
        lost
    }

    /// Programs hear which peers of a channel can be reached.
    fn tell_reachable(&mut self, node: NodeId) {
        let up = self.peers.get(&node).is_some_and(Association::is_reachable);
        for (key, channel) in &mut self.channels {
            if !channel.takes(node) {
                continue;
            }
            let member = channel.member(node);
            if std::mem::replace(&mut member.up, up) != up {
                let event = if up { ChannelEvent::PeerUp } else { ChannelEvent::PeerDown };
                self.events.push_back(event(*key, node));
                if !up && let Some(id) = member.out {
                    let peer = self.peers.get_mut(&node);
                    let conduit = peer.and_then(|peer| peer.conduits.get_mut(&id));
                    member.drop_waiting(*key, node, conduit, &mut self.events);
                }
            }
        }
    }

    /// Whether [`Self::poll_event`] has something.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What programs are to hear of, oldest first.
    pub fn poll_event(&mut self) -> Option<ChannelEvent> {
        self.events.pop_front()
    }
}
