//! Packets are taken apart: all of one, or nothing.

use std::time::{Duration, Instant};

use super::association::{Association, Reply};
use super::conduit::Stream;
use super::programs::STREAM_WINDOW;
use super::{Body, ChannelEvent, Conduit, ConduitId, Hub, StreamError, StreamKey};
use crate::channel::incoming::{
    Credit, Fault, IncomingMessages, IncomingStream, IncomingUnreliable, MESSAGE_WINDOW,
    START_WINDOW, TOP_WINDOW, UnreliableDrop,
};
use crate::channel::outgoing::{Notice, OutgoingStream};
use crate::channel::recovery::Ack;
use crate::channel::recovery::ecn::EcnCounts;
use crate::channel::recovery::ranges::{PacketRange, Receipt};
use crate::id::NodeId;
use crate::link::id::LinkIndex;
use crate::wire::channel::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};
use crate::wire::channel::{self as wire, Frame, MAX_ACK_RANGES, Mode, PacketHeader};

/// The peer has no such channel, or of another mode, or not for who asks.
pub(super) const REFUSED_NO_CHANNEL: u64 = 1;
/// Ask again in a moment.
pub(super) const REFUSED_BUSY: u64 = 2;
/// No program accepts streams.
pub(super) const REFUSED_NOBODY: u64 = 3;
/// The code of resets because of a fault of the other side.
pub(super) const CODE_PROTOCOL: u64 = (1 << 62) - 1;

/// Streams that wait for a program to accept them, by channel.
const MAX_WAITING_STREAMS: usize = 128;
/// How long they wait.
const ACCEPT_WAIT: Duration = Duration::from_secs(5);
/// Until a peer that does not have a channel is asked again.
const RETRY_REFUSED: Duration = Duration::from_secs(1);
/// Until a peer that is busy is asked again.
const RETRY_BUSY: Duration = Duration::from_millis(100);
/// Ranges of the numbers that a peer has used: one that obeys leaves out none but those whose OPEN
/// is on its way.
const MAX_SEEN: usize = super::association::MAX_CONDUITS;

/// Why a packet of channels was dropped, or a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ChannelDrop {
    /// It does not parse.
    #[error("malformed channel packet")]
    Malformed,
    /// It is of a process of the peer that is over, or of a channel that is.
    #[error("channel packet of what is over")]
    Stale,
    /// It was here before.
    #[error("copy of a channel packet")]
    Duplicate,
    /// It is not what a node that obeys sends.
    #[error("channel packet against the rules")]
    Fault,
    /// There is no room for it now; it will come again.
    #[error("no room for a channel packet")]
    NoRoom,
}

impl Hub {
    /// Takes a channel packet (kind 4) of a peer's process, which came by this link of ours; `ecn` are
    /// the two ECN bits of its outer header. (The packet names the link as the peer numbers it.)
    ///
    /// # Errors
    /// [`ChannelDrop`]: nothing of it was used, or not all if it is [`ChannelDrop::Fault`].
    pub fn on_packet(
        &mut self,
        now: Instant,
        node: NodeId,
        boot: u64,
        by: LinkIndex,
        payload: &[u8],
        ecn: u8,
    ) -> Result<(), ChannelDrop> {
        let (header, frames) = PacketHeader::read(payload).map_err(|_| ChannelDrop::Malformed)?;
        frames.check().map_err(|_| ChannelDrop::Malformed)?;
        let link = LinkIndex::new(header.path).ok_or(ChannelDrop::Malformed)?;
        if self.peers.get(&node).is_none_or(|peer| peer.view.is_none() || peer.is_over(boot)) {
            return Err(ChannelDrop::Stale);
        }
        self.meet(node, boot);
        let congestion = self.options.congestion;
        let peer = self.peers.get_mut(&node).ok_or(ChannelDrop::Stale)?;
        let path = peer.path(now, link, congestion).ok_or(ChannelDrop::Malformed)?;
        let number = path.acks.received().expand(header.number);
        if path.acks.received().check(number) != Receipt::Fresh {
            return Err(ChannelDrop::Duplicate);
        }
        self.work = true;
        let mut asks = false;
        let mut outcome = Ok(());
        for frame in frames.flatten() {
            asks |= !matches!(frame, Frame::Ack(_) | Frame::Padding(_));
            match self.on_frame(now, node, &frame) {
                // What was used already is the same when it comes again.
                Err(ChannelDrop::NoRoom) => return Err(ChannelDrop::NoRoom),
                Err(drop) => outcome = Err(drop),
                Ok(()) => {}
            }
        }
        let peer = self.peers.get_mut(&node).ok_or(ChannelDrop::Stale)?;
        if let Some(path) = peer.path(now, link, congestion) {
            path.on_received(now, number, asks, ecn);
            path.arrived_by = Some(by);
        }
        // By which the ACK leaves.
        peer.path(now, by, congestion);
        outcome
    }

    fn on_frame(
        &mut self,
        now: Instant,
        node: NodeId,
        frame: &Frame<'_>,
    ) -> Result<(), ChannelDrop> {
        match *frame {
            Frame::Padding(_) | Frame::Ping | Frame::Closed { .. } => Ok(()),
            Frame::Ack(ack) => {
                self.on_ack(now, node, &ack);
                Ok(())
            }
            Frame::Open { channel, mode, encoded, credit, name, .. } => {
                let id = ConduitId::inward(channel);
                self.on_open(now, node, id, (mode, encoded), credit, name)
            }
            Frame::Refuse { channel, reason } => {
                self.on_refuse(now, node, ConduitId::inward(channel), reason);
                Ok(())
            }
            Frame::Reset { channel, error } => {
                self.on_reset(node, ConduitId::inward(channel), error);
                Ok(())
            }
            Frame::Accept { channel, .. }
            | Frame::Expired { channel, .. }
            | Frame::Blocked { channel, .. }
            | Frame::MaxData { channel, .. }
            | Frame::MaxMessages { channel, .. }
            | Frame::Recall { channel }
            | Frame::Return { channel, .. }
            | Frame::Close { channel, .. } => {
                self.on_conduit(node, ConduitId::inward(channel), frame)
            }
            Frame::Stream(wire::Stream { channel, .. })
            | Frame::Message(wire::Message { channel, .. }) => {
                self.on_conduit(node, ConduitId::inward(channel), frame)
            }
        }
    }

    fn on_ack(&mut self, now: Instant, node: NodeId, ack: &wire::Ack<'_>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let mut ranges = [PacketRange { first: 0, last: 0 }; MAX_ACK_RANGES];
        let mut count = 0;
        for (place, range) in ranges.iter_mut().zip(ack.ranges.iter()) {
            *place = PacketRange { first: *range.start(), last: *range.end() };
            count += 1;
        }
        let ecn = ack.ecn.map(|ecn| EcnCounts { ect0: ecn.ect0, ect1: ecn.ect1, ce: ecn.ce });
        // In units of 8 us.
        let delay = Duration::from_micros(ack.delay.saturating_mul(8));
        let ranges = ranges.get(..count).unwrap_or_default();
        let mut heard = std::mem::take(&mut self.heard);
        peer.on_ack(now, ack.path.into(), &Ack { delay, ranges, ecn }, &mut heard);
        // Mostly all the same one.
        heard.dedup();
        for id in heard.drain(..) {
            self.on_heard(node, id);
        }
        self.heard = heard;
    }

    /// The peer has something of this conduit that it had not before.
    fn on_heard(&mut self, node: NodeId, id: ConduitId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(conduit) = peer.conduits.get_mut(&id) else { return };
        let key = conduit.channel;
        let member = self.channels.get_mut(&key).and_then(|channel| channel.peers.get_mut(&node));
        if member.is_some_and(|member| member.out == Some(id) && member.take_settled(conduit)) {
            self.events.push_back(ChannelEvent::Settled(key, node));
        }
        if conduit.full {
            let channel = self.channels.get(&conduit.channel);
            let limit = channel.map_or(0, |channel| channel.config.send_buffer);
            match &conduit.body {
                Body::MessagesOut(messages) if messages.kept() <= limit / 4 * 3 => {
                    conduit.full = false;
                    self.events.push_back(ChannelEvent::Writable(conduit.channel, node));
                }
                // Not for every crumb.
                Body::Stream(stream) if stream.output.kept() <= limit / 4 * 3 => {
                    conduit.full = false;
                    self.events.push_back(ChannelEvent::StreamWritable(stream.key));
                }
                _ => {}
            }
        }
        self.check_done(node, id);
    }

    /// A frame of a conduit that both sides know.
    fn on_conduit(
        &mut self,
        node: NodeId,
        id: ConduitId,
        frame: &Frame<'_>,
    ) -> Result<(), ChannelDrop> {
        let peer = self.peers.get_mut(&node).ok_or(ChannelDrop::Stale)?;
        let Some(conduit) = peer.conduits.get_mut(&id) else {
            return if peer.knew(id) { Ok(()) } else { Err(ChannelDrop::Fault) };
        };
        let key = conduit.channel;
        let mut told = false;
        // They bring no reason to say anything but an acknowledgement.
        let quiet = matches!(frame, Frame::Message(_) | Frame::Stream(_));
        if let (Body::Stream(stream), Frame::Stream(_)) = (&conduit.body, frame)
            && !std::mem::replace(&mut conduit.accepted, true)
        {
            // The ACCEPT is still on its way.
            self.events.push_back(ChannelEvent::StreamOpened(stream.key));
            if let Some(channel) = self.channels.get_mut(&key) {
                channel.member(node).accept(key, node, &mut self.events);
            }
        }
        let taken = match (&mut conduit.body, frame) {
            (body, Frame::Accept { credit, messages, .. }) if id.ours => {
                accept(body, *credit, *messages);
                if !std::mem::replace(&mut conduit.accepted, true) {
                    conduit.greeting = Notice::Known;
                    if let Body::Stream(stream) = &conduit.body {
                        self.events.push_back(ChannelEvent::StreamOpened(stream.key));
                    }
                    if let Some(channel) = self.channels.get_mut(&key) {
                        channel.member(node).accept(key, node, &mut self.events);
                    }
                }
                Ok(())
            }
            (Body::MessagesOut(messages), Frame::MaxData { limit, .. }) => {
                messages.on_max_data(*limit);
                Ok(())
            }
            (Body::MessagesOut(messages), Frame::MaxMessages { limit, .. }) => {
                messages.on_max_messages(*limit);
                Ok(())
            }
            (Body::MessagesOut(messages), Frame::Recall { .. }) => {
                messages.on_recall();
                Ok(())
            }
            (Body::MessagesIn(messages), Frame::Message(message)) => {
                told = true;
                messages.on_message(message)
            }
            (Body::MessagesIn(messages), Frame::Expired { id, total, .. }) => {
                told = true;
                messages.on_expired(*id, *total, &mut self.memory)
            }
            (Body::MessagesIn(messages), Frame::Blocked { number, at, .. }) => {
                messages.on_blocked(*number, *at);
                Ok(())
            }
            (Body::MessagesIn(messages), Frame::Return { total, .. }) => {
                messages.on_return(*total, &mut self.memory)
            }
            (Body::MessagesIn(messages), Frame::Close { count, .. }) => messages.on_close(*count),
            (Body::Stream(stream), Frame::Stream(bytes)) => stream.input.on_stream(bytes),
            (Body::Stream(stream), Frame::MaxData { limit, .. }) => {
                stream.output.on_max_data(*limit);
                Ok(())
            }
            (Body::Stream(stream), Frame::Recall { .. }) => {
                stream.output.on_recall();
                Ok(())
            }
            (Body::Stream(stream), Frame::Return { total, .. }) => {
                stream.input.on_return(*total, &mut self.memory)
            }
            // It is asked for credit below, and goes on with any.
            (Body::Stream(_), Frame::Blocked { .. }) => Ok(()),
            _ => Err(Fault::FinalSize),
        };
        match taken {
            Ok(()) => {
                if !quiet {
                    peer.activate(id);
                }
                self.tell_of(node, id, told);
                self.check_done(node, id);
                Ok(())
            }
            Err(fault) if !fault.is_hostile() => Err(ChannelDrop::NoRoom),
            Err(_) => {
                self.fail(node, id, CODE_PROTOCOL, StreamError::Protocol);
                Err(ChannelDrop::Fault)
            }
        }
    }

    /// Programs hear of what came.
    fn tell_of(&mut self, node: NodeId, id: ConduitId, messages: bool) {
        let conduit = self.peers.get_mut(&node).and_then(|peer| peer.conduits.get_mut(&id));
        let Some(conduit) = conduit else { return };
        if messages {
            if let Body::MessagesIn(messages) = &conduit.body
                && messages.is_ready()
                && let Some(channel) = self.channels.get_mut(&conduit.channel)
            {
                channel.tell(conduit.channel, &mut self.events);
            }
        } else if matches!(&conduit.body, Body::Stream(stream) if stream.left) {
            self.refuse_input(node, id);
        } else if let Body::Stream(stream) = &mut conduit.body
            && stream.taken
            && (!stream.input.readable().is_empty() || stream.input.is_finished())
            && !std::mem::replace(&mut stream.told_readable, true)
        {
            self.events.push_back(ChannelEvent::StreamReadable(stream.key));
        }
    }

    /// This side gives a conduit up.
    pub(super) fn fail(&mut self, node: NodeId, id: ConduitId, code: u64, error: StreamError) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(conduit) = peer.conduits.remove(&id) else { return };
        peer.reply(id, Reply::Reset(code));
        let (key, messages) = (conduit.channel, matches!(conduit.body, Body::MessagesOut(_)));
        let lost = self.end(node, conduit, error);
        if messages {
            self.events.push_back(ChannelEvent::EpochChanged(key, node, lost));
        }
    }

    fn on_reset(&mut self, node: NodeId, id: ConduitId, error: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(conduit) = peer.conduits.remove(&id) else {
            // It has overtaken the OPEN, or that was never sent.
            let number = u64::from(id.number);
            if !id.ours && peer.may_see(number) {
                peer.seen.insert(number..number + 1);
            }
            return;
        };
        let (key, messages) = (conduit.channel, matches!(conduit.body, Body::MessagesOut(_)));
        let why =
            if error == CODE_PROTOCOL { StreamError::Protocol } else { StreamError::Reset(error) };
        let lost = self.end(node, conduit, why);
        if messages {
            self.events.push_back(ChannelEvent::EpochChanged(key, node, lost));
        }
    }

    fn on_refuse(&mut self, now: Instant, node: NodeId, id: ConduitId, reason: u64) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // Of what was not asked for there is nothing to refuse.
        let asked = |conduit: &Conduit| {
            id.ours && !conduit.accepted && matches!(conduit.greeting, Notice::Said | Notice::Known)
        };
        if !peer.conduits.get(&id).is_some_and(asked) {
            return;
        }
        let Some(mut conduit) = peer.conduits.remove(&id) else { return };
        if matches!(conduit.body, Body::Stream(_)) {
            let nobody = reason == REFUSED_NOBODY || reason == REFUSED_BUSY;
            let why = if nobody { StreamError::NobodyAccepts } else { StreamError::Refused };
            let key = conduit.channel;
            self.end(node, conduit, why);
            if let Some(channel) = self.channels.get_mut(&key) {
                let member = channel.member(node);
                if nobody {
                    // It has the channel, at least.
                    member.accept(key, node, &mut self.events);
                } else if !std::mem::replace(&mut member.refused, true) {
                    self.events.push_back(ChannelEvent::Refused(key, node));
                }
            }
            return;
        }
        // It is asked again, under another number.
        let busy = reason == REFUSED_BUSY;
        let Some(number) = peer.take_number() else {
            let key = conduit.channel;
            let lost = self.end(node, conduit, StreamError::Refused);
            self.events.push_back(ChannelEvent::EpochChanged(key, node, lost));
            return;
        };
        conduit.rename(ConduitId { ours: true, number });
        conduit.greeting = Notice::Idle;
        conduit.retry_at = Some(now + if busy { RETRY_BUSY } else { RETRY_REFUSED });
        let (key, new) = (conduit.channel, conduit.id);
        conduit.active = false;
        peer.look_at(conduit.retry_at);
        if !busy && let Some(channel) = self.channels.get_mut(&key) {
            let member = channel.member(node);
            member.drop_waiting(key, node, Some(&mut conduit), &mut self.events);
        }
        if conduit.queued() > 0 && matches!(conduit.body, Body::DatagramsOut(_)) {
            peer.datagrams.push(new);
        }
        peer.insert(conduit);
        if let Some(channel) = self.channels.get_mut(&key) {
            let member = channel.member(node);
            member.out = Some(new);
            if !busy && !std::mem::replace(&mut member.refused, true) {
                self.events.push_back(ChannelEvent::Refused(key, node));
            }
        }
    }

    fn on_open(
        &mut self,
        now: Instant,
        node: NodeId,
        id: ConduitId,
        mode: (Mode, bool),
        credit: u64,
        name: &str,
    ) -> Result<(), ChannelDrop> {
        let peer = self.peers.get_mut(&node).ok_or(ChannelDrop::Stale)?;
        if id.ours {
            return Err(ChannelDrop::Fault);
        }
        if peer.seen.contains(id.number.into()) {
            return Ok(());
        }
        let number = u64::from(id.number);
        if !peer.may_see(number) {
            return Err(ChannelDrop::Fault);
        }
        if !peer.may_reply() {
            return Err(ChannelDrop::NoRoom);
        }
        peer.seen.insert(number..number + 1);
        if let Err(reason) = self.try_open(now, node, id, mode, credit, name)
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.reply(id, Reply::Refuse(reason));
        }
        Ok(())
    }

    fn try_open(
        &mut self,
        now: Instant,
        node: NodeId,
        id: ConduitId,
        (mode, encoded): (Mode, bool),
        credit: u64,
        name: &str,
    ) -> Result<(), u64> {
        let found = self.channels.iter_mut().find(|(_, channel)| channel.config.name == name);
        let (key, channel) = found.ok_or(REFUSED_NO_CHANNEL)?;
        let key = *key;
        let fits = channel.config.mode == mode && channel.takes(node);
        let mismatched = std::mem::replace(&mut channel.member(node).mismatched, !fits);
        if !fits {
            if !mismatched {
                self.events.push_back(ChannelEvent::Mismatched(key, node));
            }
            return Err(REFUSED_NO_CHANNEL);
        }
        let peer = self.peers.get_mut(&node).ok_or(REFUSED_NO_CHANNEL)?;
        let session = peer.view.as_ref().and_then(|view| view.session.as_ref());
        if encoded && session.is_none_or(|session| !session.compression) {
            return Err(REFUSED_NO_CHANNEL);
        }
        if peer.is_crowded() {
            return Err(REFUSED_BUSY);
        }
        let outward = id.outward();
        let (body, offer) = match mode {
            Mode::Stream => {
                if channel.waiting.len() >= MAX_WAITING_STREAMS {
                    return Err(REFUSED_NOBODY);
                }
                let mine = Credit::new(now, STREAM_WINDOW, TOP_WINDOW, &mut self.memory);
                let offer = (mine.granted(), 0);
                let stream_key = StreamKey(self.next_stream);
                self.next_stream += 1;
                self.streams.insert(stream_key, (node, id));
                channel.waiting.push_back((stream_key, node, now + ACCEPT_WAIT));
                self.events.push_back(ChannelEvent::StreamWaiting(key));
                let output = OutgoingStream::new(outward, channel.config.send_buffer, credit);
                let input = IncomingStream::new(outward, mine);
                let (told_readable, taken, left) = (false, false, false);
                let stream = Stream { key: stream_key, output, input, told_readable, taken, left };
                (Body::Stream(Box::new(stream)), offer)
            }
            Mode::Unreliable => (Body::DatagramsIn(IncomingUnreliable::new()), (0, 0)),
            Mode::Ordered | Mode::Unordered => {
                // What came before is read before.
                if channel.inbox.iter().any(|(message, _)| message.from == node) {
                    return Err(REFUSED_BUSY);
                }
                let mine = Credit::new(now, START_WINDOW, TOP_WINDOW, &mut self.memory);
                let offer = (mine.granted(), MESSAGE_WINDOW);
                let messages = IncomingMessages::new(outward, mode == Mode::Ordered, mine);
                (Body::MessagesIn(Box::new(messages)), offer)
            }
        };
        let mut conduit = Conduit::new(id, key, body, offer);
        conduit.encoded = encoded;
        if mode == Mode::Stream {
            // Until a program accepts it.
            conduit.greeting = Notice::Idle;
        } else {
            let before = channel.member(node).input.replace(id);
            if let Some(before) = before.and_then(|before| peer.conduits.remove(&before)) {
                self.end(node, before, StreamError::PeerGone);
            }
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.insert(conduit);
        }
        Ok(())
    }

    /// Refuses streams that nobody accepted in time; says when the next one's time is over.
    pub(super) fn refuse_waiting(&mut self, now: Instant) -> Option<Instant> {
        let mut over = Vec::new();
        let mut due: Option<Instant> = None;
        for channel in self.channels.values_mut() {
            while let Some((key, node, until)) = channel.waiting.front().copied() {
                if until > now {
                    due = Some(due.map_or(until, |due| due.min(until)));
                    break;
                }
                channel.waiting.pop_front();
                over.push((key, node));
            }
        }
        for (key, node) in over {
            let Some((_, id)) = self.streams.get(&key).copied() else { continue };
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let Some(conduit) = peer.conduits.remove(&id) else { continue };
            peer.reply(id, Reply::Refuse(REFUSED_NOBODY));
            self.end(node, conduit, StreamError::NobodyAccepts);
        }
        due
    }

    /// Takes an unreliable message or a piece (kind 8).
    ///
    /// # Errors
    /// [`ChannelDrop`].
    pub fn on_unreliable(
        &mut self,
        now: Instant,
        node: NodeId,
        boot: u64,
        payload: &[u8],
    ) -> Result<(), ChannelDrop> {
        let message = Unreliable::read(payload).map_err(|_| ChannelDrop::Malformed)?;
        let peer = self.peers.get_mut(&node).ok_or(ChannelDrop::Stale)?;
        if peer.boot != Some(boot) || peer.view.is_none() {
            return Err(ChannelDrop::Stale);
        }
        let id = ConduitId::inward(message.channel);
        let Some(conduit) = peer.conduits.get_mut(&id) else {
            return Err(if peer.knew(id) { ChannelDrop::Stale } else { ChannelDrop::Fault });
        };
        let Body::DatagramsIn(messages) = &mut conduit.body else {
            return Err(ChannelDrop::Fault);
        };
        let outcome = messages.on_message(now, &message);
        let given_up = messages.take_given_up();
        let key = conduit.channel;
        let channel = self.channels.get_mut(&key).ok_or(ChannelDrop::Stale)?;
        let has_room = channel.has_room();
        let member = channel.member(node);
        member.stats.dropped += given_up;
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(_)) if !has_room => {
                member.stats.dropped += 1;
                Err(ChannelDrop::NoRoom)
            }
            Ok(Some(mut delivery)) => {
                if conduit.encoded {
                    let Ok(bytes) = self.decoder.decode(delivery.bytes, MAX_UNRELIABLE_LEN) else {
                        member.stats.dropped += 1;
                        return Err(ChannelDrop::Fault);
                    };
                    delivery.bytes = bytes;
                }
                channel.take_in(node, delivery, false);
                channel.tell(key, &mut self.events);
                Ok(())
            }
            Err(UnreliableDrop::Duplicate) => Err(ChannelDrop::Duplicate),
            Err(UnreliableDrop::TooOld) => {
                member.stats.dropped += 1;
                Err(ChannelDrop::Stale)
            }
            Err(UnreliableDrop::ConflictingLength) => Err(ChannelDrop::Fault),
        }
    }
}

impl Association {
    /// Whether there is room to remember that the peer used this number.
    fn may_see(&self, number: u64) -> bool {
        self.seen.len() < MAX_SEEN || self.seen.joins(&(number..number + 1))
    }

    /// Whether a conduit of this name was there, and is no more.
    fn knew(&self, id: ConduitId) -> bool {
        if id.ours { id.number < self.next_number } else { self.seen.contains(id.number.into()) }
    }
}

fn accept(body: &mut Body, credit: u64, messages: u64) {
    match body {
        Body::MessagesOut(out) => {
            out.on_max_data(credit);
            out.on_max_messages(messages);
        }
        Body::Stream(stream) => stream.output.on_max_data(credit),
        _ => {}
    }
}
