//! A configured channel, and what it has with each peer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::conduit::{Body, Conduit, ConduitId};
use super::encoding::{Decoder, Undecodable};
use super::{
    ChannelConfig, ChannelEvent, ChannelKey, PeerReport, PeerState, ReceivedMessage, StreamKey,
};
use crate::channel::incoming::Delivery;
use crate::id::NodeId;
use crate::wire::channel::MAX_MESSAGE_LEN;

/// What a message that waits for its program counts besides its bytes.
const INBOX_COST: usize = 128;
/// Bytes of unreliable messages that wait for their program: a moment's worth.
pub(super) const DATAGRAM_INBOX: usize = 4 << 20;

/// What a channel has with a peer.
#[derive(Debug)]
pub(super) struct Membership {
    /// By which this node's messages go there.
    pub(super) out: Option<ConduitId>,
    /// By which the peer's come.
    pub(super) input: Option<ConduitId>,
    /// The peer said that it does not have the channel.
    pub(super) refused: bool,
    /// The peer asked for it as what it is not here.
    pub(super) mismatched: bool,
    /// Programs know that it can be reached.
    pub(super) up: bool,
    /// Messages that programs sent by conduits that are over.
    pub(super) over: u64,
    /// The least of the counts that [`super::Hub::is_settled`] was asked for and could not confirm.
    pub(super) awaited: Option<u64>,
    pub(super) stats: PeerReport,
}

impl Membership {
    pub(super) const fn new(peer: NodeId) -> Self {
        let stats = PeerReport {
            peer,
            state: PeerState::Idle,
            messages_out: 0,
            bytes_out: 0,
            messages_in: 0,
            bytes_in: 0,
            queued: 0,
            waiting: 0,
            expired: 0,
            given_up: 0,
            resent: 0,
            dropped: 0,
            streams: 0,
        };
        let (out, input, awaited) = (None, None, None);
        let (refused, mismatched, up) = (false, false, false);
        Self { out, input, refused, mismatched, up, over: 0, awaited, stats }
    }

    /// Unreliable messages that cannot leave are dropped: nobody waits for a moment that may never
    /// come. `conduit` is the one of [`Self::out`].
    pub(super) fn drop_waiting(
        &mut self,
        key: ChannelKey,
        node: NodeId,
        conduit: Option<&mut Conduit>,
        events: &mut VecDeque<ChannelEvent>,
    ) {
        let Some(conduit) = conduit else { return };
        let Body::DatagramsOut(datagrams) = &mut conduit.body else { return };
        while datagrams.pop().is_some() {
            self.stats.dropped += 1;
        }
        if std::mem::take(&mut conduit.full) {
            events.push_back(ChannelEvent::Writable(key, node));
        }
    }

    /// The peer has it. Says so if it had refused it.
    pub(super) fn accept(
        &mut self,
        key: ChannelKey,
        node: NodeId,
        events: &mut VecDeque<ChannelEvent>,
    ) {
        if std::mem::take(&mut self.refused) {
            events.push_back(ChannelEvent::Accepted(key, node));
        }
    }

    /// Of the messages that programs sent so many are with the peer or were given up, and none
    /// before them is not. `conduit` is the one of [`Self::out`].
    pub(super) fn settled(&self, conduit: Option<&Conduit>) -> u64 {
        match conduit.map(|conduit| &conduit.body) {
            Some(Body::MessagesOut(messages)) => self.over + messages.settled(),
            _ => self.over,
        }
    }

    /// Whether what somebody waits for is settled; says so once.
    pub(super) fn take_settled(&mut self, conduit: &Conduit) -> bool {
        let settled = self.settled(Some(conduit));
        self.awaited.take_if(|awaited| settled >= *awaited).is_some()
    }

    /// A conduit is no more.
    pub(super) fn forget(&mut self, id: ConduitId) {
        self.out.take_if(|out| *out == id);
        self.input.take_if(|input| *input == id);
    }
}

/// A configured channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) config: ChannelConfig,
    pub(super) peers: BTreeMap<NodeId, Membership>,
    /// Messages for programs that are in no conduit: unreliable ones, and those of conduits that
    /// are over.
    pub(super) inbox: VecDeque<(ReceivedMessage, bool)>,
    inbox_bytes: usize,
    /// Programs know that there is something to read.
    told: bool,
    /// Streams that peers opened and no program has accepted, with when they are refused.
    pub(super) waiting: VecDeque<(StreamKey, NodeId, Instant)>,
    /// The peer whose message was the last one to be read.
    pub(super) last_read: Option<NodeId>,
}

impl Channel {
    pub(super) const fn new(config: ChannelConfig) -> Self {
        Self {
            config,
            peers: BTreeMap::new(),
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            told: false,
            waiting: VecDeque::new(),
            last_read: None,
        }
    }

    /// Whether this node may take part.
    pub(super) fn takes(&self, node: NodeId) -> bool {
        self.config.peers.as_ref().is_none_or(|peers| peers.contains(&node))
    }

    pub(super) fn member(&mut self, node: NodeId) -> &mut Membership {
        self.peers.entry(node).or_insert_with(|| Membership::new(node))
    }

    /// There is something to read, which programs hear once.
    pub(super) fn tell(&mut self, key: ChannelKey, events: &mut VecDeque<ChannelEvent>) {
        if !std::mem::replace(&mut self.told, true) {
            events.push_back(ChannelEvent::Readable(key));
        }
    }

    /// All was read.
    pub(super) const fn on_empty(&mut self) {
        self.told = false;
    }

    /// A message for the inbox, which the caller bounds.
    /// An encoded one stays so until it is read: what it decodes to may be far larger.
    pub(super) fn take_in(&mut self, from: NodeId, delivery: Delivery, encoded: bool) {
        let Delivery { priority, bytes, .. } = delivery;
        let stats = &mut self.member(from).stats;
        stats.messages_in += 1;
        stats.bytes_in += bytes.len() as u64;
        self.inbox_bytes += bytes.len() + INBOX_COST;
        self.inbox.push_back((ReceivedMessage { from, priority, bytes }, encoded));
    }

    /// The next message of the inbox. After one that does not decode no other of that peer's is
    /// tried.
    pub(super) fn pop(&mut self, decoder: &mut Decoder) -> Option<ReceivedMessage> {
        loop {
            let (mut message, encoded) = self.inbox.pop_front()?;
            self.inbox_bytes -= message.bytes.len() + INBOX_COST;
            if !encoded {
                return Some(message);
            }
            match decoder.decode(message.bytes, MAX_MESSAGE_LEN) {
                Ok(bytes) => {
                    message.bytes = bytes;
                    return Some(message);
                }
                Err(Undecodable) => self.drop_encoded(message.from),
            }
        }
    }

    fn drop_encoded(&mut self, from: NodeId) {
        let before = self.inbox.len();
        let freed = &mut self.inbox_bytes;
        self.inbox.retain(|(message, encoded)| {
            let goes = *encoded && message.from == from;
            if goes {
                *freed -= message.bytes.len() + INBOX_COST;
            }
            !goes
        });
        let dropped = (before - self.inbox.len()) as u64 + 1;
        self.member(from).stats.dropped += dropped;
    }

    /// Whether the inbox has room for one more unreliable message.
    pub(super) const fn has_room(&self) -> bool {
        self.inbox_bytes < DATAGRAM_INBOX
    }
}
