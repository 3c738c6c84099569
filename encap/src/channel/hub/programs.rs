//! What programs do.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Instant;

use super::association::Reply;
use super::conduit::{Datagram, Datagrams, Stream};
use super::encoding::ENCODING_LEN;
use super::receive::CODE_PROTOCOL;
use super::{
    Body, Channel, ChannelConfig, ChannelEvent, ChannelKey, Conduit, ConduitId, Hub, Membership,
    ReceivedMessage, SendError, SendOptions, SendRefused, StreamError, StreamKey, StreamRead,
};
use crate::channel::incoming::{Credit, IncomingStream, TOP_WINDOW};
use crate::channel::outgoing::{Notice, Options, OutgoingMessages, OutgoingStream, PushError};
use crate::id::NodeId;
use crate::wire::channel::unreliable::MAX_UNRELIABLE_LEN;
use crate::wire::channel::{MAX_MESSAGE_LEN, Mode};

/// Streams that this node may have open with one peer.
const MAX_STREAMS: usize = 1024;
/// First window of a stream in bytes; it grows as fast as a sender's congestion window. There may be
/// thousands of streams that carry little.
pub(super) const STREAM_WINDOW: u64 = 64 << 10;
/// The largest code of a reset: the one above says that the other side did what it must not.
const MAX_CODE: u64 = CODE_PROTOCOL - 1;

impl Hub {
    /// Sets the channels that there are from now on. One whose key and configuration stay goes on;
    /// others end: their streams fail and their messages are given up.
    pub fn configure(&mut self, _now: Instant, channels: Vec<(ChannelKey, ChannelConfig)>) {
        let mut wanted: BTreeMap<ChannelKey, ChannelConfig> = channels.into_iter().collect();
        let old: BTreeSet<ChannelKey> = self.channels.keys().copied().collect();
        for key in old {
            let same = self
                .channels
                .get(&key)
                .zip(wanted.get(&key))
                .is_some_and(|(had, wants)| had.config == *wants);
            if same {
                wanted.remove(&key);
            } else {
                self.remove_channel(key);
            }
        }
        for (key, config) in wanted {
            self.channels.insert(key, Channel::new(config));
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.tell_reachable(node));
        self.work = true;
    }

    fn remove_channel(&mut self, key: ChannelKey) {
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let of_it = |_: &ConduitId, conduit: &mut Conduit| conduit.channel == key;
            let over: Vec<Conduit> =
                peer.conduits.extract_if(.., of_it).map(|(_, conduit)| conduit).collect();
            for conduit in over {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.reply(conduit.id, Reply::Reset(0));
                }
                self.end(node, conduit, StreamError::PeerGone);
            }
        }
        self.channels.remove(&key);
    }

    /// The nodes that a message to all is for: those of the channel's peers that can be reached.
    #[must_use]
    pub fn reachable(&self, key: ChannelKey) -> Vec<NodeId> {
        let Some(channel) = self.channels.get(&key) else { return Vec::new() };
        let peers = self.peers.values().filter(|peer| peer.is_reachable());
        peers.map(|peer| peer.node).filter(|node| channel.takes(*node)).collect()
    }

    /// The peers that refused a channel, as far as they were asked, and still do.
    #[must_use]
    pub fn refused(&self, key: ChannelKey) -> Vec<NodeId> {
        self.members_with(key, |member| member.refused)
    }

    /// The peers that asked for a channel as what it is not here, and have not done better since.
    #[must_use]
    pub fn mismatched(&self, key: ChannelKey) -> Vec<NodeId> {
        self.members_with(key, |member| member.mismatched)
    }

    fn members_with(&self, key: ChannelKey, is_it: impl Fn(&Membership) -> bool) -> Vec<NodeId> {
        let Some(channel) = self.channels.get(&key) else { return Vec::new() };
        let members = channel.peers.iter().filter(|(_, member)| is_it(member));
        members.map(|(node, _)| *node).collect()
    }

    /// Takes a message for one peer.
    ///
    /// # Errors
    /// The message comes back, with the reason.
    pub fn send(
        &mut self,
        now: Instant,
        key: ChannelKey,
        to: NodeId,
        options: SendOptions,
        mut bytes: Vec<u8>,
    ) -> Result<(), SendRefused> {
        let refuse = |error, bytes| Err(SendRefused { error, bytes });
        let Some(channel) = self.channels.get_mut(&key) else {
            return refuse(SendError::NoChannel, bytes);
        };
        let limit = match channel.config.mode {
            Mode::Stream => return refuse(SendError::NoChannel, bytes),
            Mode::Unreliable => MAX_UNRELIABLE_LEN,
            Mode::Ordered | Mode::Unordered => MAX_MESSAGE_LEN,
        };
        let spare = if channel.config.compression.is_some() { ENCODING_LEN } else { 0 };
        if bytes.len() + spare > limit as usize {
            return refuse(SendError::TooLong, bytes);
        }
        let peer = self.peers.get_mut(&to).filter(|peer| peer.view.is_some());
        let Some(peer) = peer.filter(|_| channel.takes(to)) else {
            return refuse(SendError::NoPeer, bytes);
        };
        let reachable = peer.is_reachable();
        let (config, member) =
            (&channel.config, channel.peers.entry(to).or_insert_with(|| Membership::new(to)));
        let len = bytes.len() as u64;
        if config.mode == Mode::Unreliable && (!reachable || member.refused) {
            // Nobody waits for a moment that may never come.
            member.stats.dropped += 1;
            return Ok(());
        }
        let id = match member.out {
            Some(id) => id,
            None => {
                let Some(number) = peer.take_number() else {
                    return refuse(SendError::NoPeer, bytes);
                };
                let id = ConduitId { ours: true, number };
                let session = peer.way().and_then(|view| view.session.as_ref());
                let mut conduit = Conduit::new(id, key, outgoing(id, config), (0, 0));
                conduit.encoded = config.compression.is_some()
                    && session.is_some_and(|session| session.compression);
                conduit.undecided = config.compression.is_some() && session.is_none();
                peer.insert(conduit);
                *member.out.insert(id)
            }
        };
        let Some(conduit) = peer.conduits.get_mut(&id) else {
            return refuse(SendError::NoPeer, bytes);
        };
        let deadline = options.ttl.and_then(|ttl| now.checked_add(ttl));
        let has_room = match &conduit.body {
            Body::MessagesOut(messages) => messages.has_room(bytes.len()),
            _ => true,
        };
        if !has_room {
            // Before it is encoded, perhaps again and again.
            conduit.full = true;
            return refuse(SendError::Full, bytes);
        }
        // The message comes back as it was when there is no room.
        let original = match config.compression.filter(|_| conduit.encoded) {
            Some(level) => {
                let encoded = self.encoder.encode(level, &bytes);
                Some(std::mem::replace(&mut bytes, encoded))
            }
            None => None,
        };
        let priority = options.priority;
        let mut first = false;
        let refused = match &mut conduit.body {
            Body::MessagesOut(messages) => {
                let pushed = messages.try_push(now, bytes, Options { priority, deadline });
                pushed.err().map(|refused| match refused.error {
                    PushError::TooLong => (SendError::TooLong, refused.bytes),
                    PushError::Full | PushError::Closed => (SendError::Full, refused.bytes),
                })
            }
            Body::DatagramsOut(datagrams) => {
                first = datagrams.queue.is_empty();
                let pushed = datagrams.push(Datagram { priority, deadline, bytes });
                pushed.err().map(|bytes| (SendError::Full, bytes))
            }
            _ => return refuse(SendError::NoChannel, bytes),
        };
        if let Some((error, bytes)) = refused {
            conduit.full |= error == SendError::Full;
            return refuse(error, original.unwrap_or(bytes));
        }
        member.stats.messages_out += 1;
        member.stats.bytes_out += len;
        if first && !peer.datagrams.contains(&id) {
            peer.datagrams.push(id);
        }
        peer.look_at(deadline);
        peer.activate(id);
        self.work = true;
        Ok(())
    }

    /// How many messages programs have sent to a peer in a channel; of unreliable ones none counts.
    #[must_use]
    pub fn sent(&self, key: ChannelKey, to: NodeId) -> u64 {
        let member = self.channels.get(&key).and_then(|channel| channel.peers.get(&to));
        let Some(member) = member else { return 0 };
        match self.conduit_to(to, member).map(|conduit| &conduit.body) {
            Some(Body::MessagesOut(messages)) => member.over + messages.taken_in(),
            _ => member.over,
        }
    }

    /// Whether of the messages that were sent to a peer the first so many, which [`Self::sent`]
    /// gave, have arrived or were given up. If not, [`ChannelEvent::Settled`] says when to ask
    /// again; one such event is for all who asked.
    pub fn is_settled(&mut self, key: ChannelKey, to: NodeId, count: u64) -> bool {
        let member = self.channels.get(&key).and_then(|channel| channel.peers.get(&to));
        let Some(member) = member else { return true };
        if member.settled(self.conduit_to(to, member)) >= count {
            return true;
        }
        if let Some(channel) = self.channels.get_mut(&key) {
            let member = channel.member(to);
            member.awaited = Some(member.awaited.map_or(count, |awaited| awaited.min(count)));
        }
        false
    }

    /// The conduit by which messages go to a peer.
    fn conduit_to(&self, to: NodeId, member: &Membership) -> Option<&Conduit> {
        self.peers.get(&to)?.conduits.get(&member.out?)
    }

    /// Whether [`Self::send`] would have room for a message of `len` bytes: then it is not copied in
    /// vain. Says so as well where it would refuse for another reason. If not,
    /// [`ChannelEvent::Writable`] will come.
    pub fn has_room(&mut self, key: ChannelKey, to: NodeId, len: usize) -> bool {
        let member = self.channels.get(&key).and_then(|channel| channel.peers.get(&to));
        let Some(id) = member.and_then(|member| member.out) else { return true };
        let conduit = self.peers.get_mut(&to).and_then(|peer| peer.conduits.get_mut(&id));
        let Some(conduit) = conduit else { return true };
        let has_room = match &conduit.body {
            Body::MessagesOut(messages) => messages.has_room(len),
            Body::DatagramsOut(datagrams) => datagrams.has_room(len),
            _ => true,
        };
        conduit.full |= !has_room;
        has_room
    }

    /// The next message that came in a channel; peers take turns.
    pub fn next_message(&mut self, key: ChannelKey) -> Option<ReceivedMessage> {
        let channel = self.channels.get_mut(&key)?;
        if let Some(message) = channel.pop(&mut self.decoder) {
            return Some(message);
        }
        // Those behind the last one first, then from the beginning.
        let mut undecodable = None;
        let mut at = channel.last_read;
        for _ in 0..channel.peers.len() {
            let Some(node) = next_in_turn(&channel.peers, at) else { break };
            at = Some(node);
            let Some(id) = channel.peers.get(&node).and_then(|member| member.input) else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let Some(conduit) = peer.conduits.get_mut(&id) else { continue };
            let encoded = conduit.encoded;
            let Body::MessagesIn(messages) = &mut conduit.body else { continue };
            let Some(mut delivery) = messages.next_message(&mut self.memory) else { continue };
            if encoded {
                let Ok(bytes) = self.decoder.decode(delivery.bytes, MAX_MESSAGE_LEN) else {
                    channel.member(node).stats.dropped += 1;
                    undecodable = Some((node, id));
                    break;
                };
                delivery.bytes = bytes;
            }
            // There may be credit to say.
            peer.activate(id);
            self.work = true;
            channel.last_read = Some(node);
            if let Some(member) = channel.peers.get_mut(&node) {
                member.stats.messages_in += 1;
                member.stats.bytes_in += delivery.bytes.len() as u64;
            }
            let (priority, bytes) = (delivery.priority, delivery.bytes);
            return Some(ReceivedMessage { from: node, priority, bytes });
        }
        if let Some((node, id)) = undecodable {
            // Nothing that such a peer says is to be relied on. What it sent before goes first.
            self.fail(node, id, CODE_PROTOCOL, StreamError::Protocol);
            return self.next_message(key);
        }
        channel.on_empty();
        None
    }

    /// Asks a peer for a stream. [`ChannelEvent::StreamOpened`] or [`ChannelEvent::StreamFailed`]
    /// will say what came of it; bytes may be written before.
    ///
    /// # Errors
    /// [`SendError::NoChannel`], [`SendError::NoPeer`], or [`SendError::Full`] while there are as
    /// many streams as there may be.
    pub fn open_stream(
        &mut self,
        now: Instant,
        key: ChannelKey,
        to: NodeId,
    ) -> Result<StreamKey, SendError> {
        let channel = self.channels.get_mut(&key).ok_or(SendError::NoChannel)?;
        if channel.config.mode != Mode::Stream {
            return Err(SendError::NoChannel);
        }
        let peer = self.peers.get_mut(&to).filter(|peer| peer.view.is_some());
        let peer = peer.filter(|_| channel.takes(to)).ok_or(SendError::NoPeer)?;
        // Those that were reset and the peer has not heard of it count too, or one that is silent
        // could have them grow without end.
        let open = peer.conduits.keys().filter(|id| id.ours).count();
        if open + peer.replies.len() >= MAX_STREAMS {
            return Err(SendError::Full);
        }
        let number = peer.take_number().ok_or(SendError::NoPeer)?;
        let id = ConduitId { ours: true, number };
        let stream_key = StreamKey(self.next_stream);
        self.next_stream += 1;
        let credit = Credit::new(now, STREAM_WINDOW, TOP_WINDOW, &mut self.memory);
        let offer = (credit.granted(), 0);
        let output = OutgoingStream::new(id.outward(), channel.config.send_buffer, 0);
        let input = IncomingStream::new(id.outward(), credit);
        let stream = Stream {
            key: stream_key,
            output,
            input,
            told_readable: false,
            taken: true,
            left: false,
        };
        peer.insert(Conduit::new(id, key, Body::Stream(Box::new(stream)), offer));
        self.streams.insert(stream_key, (to, id));
        channel.member(to).stats.messages_out += 1;
        self.work = true;
        Ok(stream_key)
    }

    /// Takes a stream that a peer asks for.
    pub fn accept_stream(&mut self, _now: Instant, key: ChannelKey) -> Option<(StreamKey, NodeId)> {
        let channel = self.channels.get_mut(&key)?;
        while let Some((stream_key, node, _)) = channel.waiting.pop_front() {
            let Some((_, id)) = self.streams.get(&stream_key) else { continue };
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let Some(conduit) = peer.conduits.get_mut(id) else { continue };
            let Body::Stream(stream) = &mut conduit.body else { continue };
            stream.taken = true;
            conduit.greeting = Notice::Due;
            peer.activate(*id);
            self.work = true;
            channel.member(node).stats.messages_in += 1;
            return Some((stream_key, node));
        }
        None
    }

    /// Takes bytes of a stream as far as there is room, and says how many; when not all,
    /// [`ChannelEvent::StreamWritable`] will come.
    pub fn write_stream(&mut self, key: StreamKey, bytes: &[u8]) -> usize {
        let Some((node, id)) = self.streams.get(&key).copied() else { return 0 };
        let Some(peer) = self.peers.get_mut(&node) else { return 0 };
        let Some(conduit) = peer.conduits.get_mut(&id) else { return 0 };
        let Body::Stream(stream) = &mut conduit.body else { return 0 };
        let taken = stream.output.try_push(bytes);
        conduit.full |= taken < bytes.len();
        let channel = self.channels.get_mut(&conduit.channel);
        if let Some(member) = channel.and_then(|channel| channel.peers.get_mut(&node)) {
            member.stats.bytes_out += taken as u64;
        }
        if taken > 0 {
            peer.activate(id);
            self.work = true;
        }
        taken
    }

    /// Nothing more will be written.
    pub fn finish_stream(&mut self, key: StreamKey) {
        let Some((node, id)) = self.streams.get(&key).copied() else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(Conduit { body: Body::Stream(stream), .. }) = peer.conduits.get_mut(&id) {
            stream.output.finish();
            peer.activate(id);
            self.work = true;
        }
    }

    /// The program has ended its side and is gone: what it wrote goes on its way. Bytes that come for
    /// it are not dropped in silence: the stream is reset, as TCP does it. The key is of no more use.
    pub fn leave_stream(&mut self, key: StreamKey) {
        let Some((node, id)) = self.streams.get(&key).copied() else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(Conduit { body: Body::Stream(stream), .. }) = peer.conduits.get_mut(&id) {
            (stream.taken, stream.left) = (false, true);
            stream.output.finish();
            self.refuse_input(node, id);
        }
    }

    /// Nobody reads what comes.
    pub(super) fn refuse_input(&mut self, node: NodeId, id: ConduitId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(Conduit { body: Body::Stream(stream), .. }) = peer.conduits.get(&id) else {
            return;
        };
        if stream.input.readable().is_empty() {
            self.check_done(node, id);
        } else {
            self.fail(node, id, 0, StreamError::Reset(0));
        }
    }

    /// Gives the stream up, with a code for the peer's program, below 2^62 - 1. The key is forgotten.
    pub fn reset_stream(&mut self, key: StreamKey, code: u64) {
        let Some((node, id)) = self.streams.remove(&key) else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(conduit) = peer.conduits.remove(&id) {
            peer.reply(id, Reply::Reset(code.min(MAX_CODE)));
            conduit.close(&mut self.memory);
            self.work = true;
        }
    }

    /// What can be read of a stream: at most 16 KiB, of which a program may be given more at once
    /// by [`Self::read_stream_vectored`].
    #[must_use]
    pub fn read_stream(&self, key: StreamKey) -> StreamRead<'_> {
        let Some(stream) = self.stream(key) else { return StreamRead::Nothing };
        match stream.input.readable() {
            [] if stream.input.is_finished() => StreamRead::End,
            [] => StreamRead::Nothing,
            bytes => StreamRead::Bytes(bytes),
        }
    }

    /// The bytes of [`Self::read_stream`], and those after them, in pieces of at most 16 KiB. Pieces
    /// that there is nothing for are empty.
    #[must_use]
    pub fn read_stream_vectored<const N: usize>(&self, key: StreamKey) -> [&[u8]; N] {
        self.stream(key).map_or([&[]; N], |stream| stream.input.readable_pieces())
    }

    fn stream(&self, key: StreamKey) -> Option<&Stream> {
        let (node, id) = self.streams.get(&key)?;
        match &self.peers.get(node)?.conduits.get(id)?.body {
            Body::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    /// The program took so many bytes of what [`Self::read_stream`] gave.
    pub fn consume_stream(&mut self, key: StreamKey, len: usize) {
        let Some((node, id)) = self.streams.get(&key).copied() else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(conduit) = peer.conduits.get_mut(&id) else { return };
        let Body::Stream(stream) = &mut conduit.body else { return };
        stream.input.consume(len, &mut self.memory);
        if stream.input.readable().is_empty() {
            stream.told_readable = false;
        }
        let channel = self.channels.get_mut(&conduit.channel);
        if let Some(member) = channel.and_then(|channel| channel.peers.get_mut(&node)) {
            member.stats.bytes_in += len as u64;
        }
        peer.activate(id);
        self.work = true;
        self.check_done(node, id);
    }

    /// Ends a stream of which both sides have all.
    pub(super) fn check_done(&mut self, node: NodeId, id: ConduitId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let done = match peer.conduits.get(&id) {
            Some(Conduit { body: Body::Stream(stream), .. }) => {
                stream.output.is_done() && stream.input.is_finished()
            }
            _ => false,
        };
        if done && let Some(Conduit { body: Body::Stream(stream), .. }) = peer.conduits.remove(&id)
        {
            self.streams.remove(&stream.key);
            self.events.push_back(ChannelEvent::StreamDone(stream.key));
            stream.input.close(&mut self.memory);
        }
    }
}

/// Whose turn it is after this node's: the one with the next larger number, or with the smallest.
pub(super) fn next_in_turn<T>(map: &BTreeMap<NodeId, T>, after: Option<NodeId>) -> Option<NodeId> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let next = map.range((from, Bound::Unbounded)).next().or_else(|| map.first_key_value());
    next.map(|(node, _)| *node)
}

fn outgoing(id: ConduitId, config: &ChannelConfig) -> Body {
    let channel = id.outward();
    if config.mode == Mode::Unreliable {
        return Body::DatagramsOut(Datagrams::new(channel));
    }
    let ordered = config.mode == Mode::Ordered;
    let messages = OutgoingMessages::new(channel, ordered, config.send_buffer, 0, 0);
    Body::MessagesOut(Box::new(messages))
}
