//! Packets are filled: peers take turns, and so do the channels of a peer.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::association::{Association, Item, Reply, What};
use super::channels::Channel;
use super::conduit::{Body, ConduitId};
use super::path::Sent;
use super::programs::next_in_turn;
use super::{ChannelEvent, ChannelKey, Hub};
use crate::channel::incoming::Memory;
use crate::channel::outgoing::Notice;
use crate::channel::recovery::ranges::PacketRange;
use crate::id::{NodeId, PeerIndex};
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use crate::wire::channel::{Frame, PacketHeader, write_ack};
use crate::wire::header::Kind;

/// Bytes of one channel before the next one's turn.
const QUANTUM: usize = 16 << 10;
/// With less room a packet is full: no frame but crumbs would fit.
const LEAST_FRAME_ROOM: usize = 48;
/// With less room what a channel has may be too large for it: an OPEN with the longest name is not.
const ROOM_FOR_ANY: usize = 256;
/// A packet with so many bytes less than it has room for gets padding: packets of one size leave in one
/// system call.
const MOST_PADDING: usize = 128;
/// How long a hub without news is left alone: whatever was forgotten is seen to then.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// A payload that is to be sealed and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// To whom.
    pub peer: PeerIndex,
    /// The peer's process that it is for: in no other session may it leave.
    pub boot: u64,
    /// By which links, by each a copy.
    pub links: LinkSet,
    /// [`Kind::Channel`] or [`Kind::Unreliable`].
    pub kind: Kind,
    /// The payload.
    pub payload: &'a [u8],
}

/// How far [`Hub::transmit`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Packets that were given.
    pub packets: usize,
    /// Bytes of their payloads.
    pub bytes: usize,
    /// There is more that may leave now.
    pub more: bool,
}

/// How often conduits are looked at while memory is short: one that had no use for its credit for so
/// long is asked for it. No sooner than hubs look around of themselves, so it needs no timer.
const RECALL_EVERY: Duration = LOOK_AROUND;

/// What filling a packet needs of the hub.
struct Context<'a> {
    now: Instant,
    channels: &'a mut BTreeMap<ChannelKey, Channel>,
    memory: &'a mut Memory,
    buf: &'a mut Vec<u8>,
    ranges: &'a mut Vec<PacketRange>,
    events: &'a mut VecDeque<ChannelEvent>,
    /// A conduit had no credit to give as memory was short.
    starved: bool,
}

/// What a packet is for.
#[derive(Debug, Clone, Copy)]
struct Purpose {
    /// The link that it leaves by.
    link: LinkIndex,
    /// It may carry more than ACKs.
    data: bool,
    /// It leaves with a PING if nothing else in it asks for an acknowledgement.
    ping: bool,
}

impl Hub {
    /// When [`Self::transmit`] has something to do, if nothing happens before; now, if it has.
    #[must_use]
    pub fn timeout(&self, now: Instant) -> Option<Instant> {
        if self.work { Some(now) } else { self.due }
    }

    /// Gives packets of about `budget` bytes to `send`, which says whether it took them: what it did
    /// not take counts as lost on the way. To be called when packets came in, programs did
    /// something, or it is [`Self::timeout`].
    pub fn transmit(
        &mut self,
        now: Instant,
        budget: usize,
        send: &mut dyn FnMut(Packet<'_>) -> bool,
    ) -> Progress {
        let mut progress = Progress::default();
        if !self.work && self.due.is_none_or(|due| due > now) {
            return progress;
        }
        self.work = false;
        self.feed_starved();
        self.recall_idle(now);
        let mut due = now + LOOK_AROUND;
        if let Some(waiting) = self.refuse_waiting(now) {
            due = due.min(waiting);
        }
        let mut at = self.turn;
        for _ in 0..self.peers.len() {
            let Some(node) = next_in_turn(&self.peers, at) else { break };
            at = Some(node);
            if progress.bytes >= budget {
                progress.more = true;
                break;
            }
            self.expire(now, node);
            let left = budget - progress.bytes;
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let context = &mut Context {
                now,
                channels: &mut self.channels,
                memory: &mut self.memory,
                buf: &mut self.buf,
                ranges: &mut self.ranges,
                events: &mut self.events,
                starved: false,
            };
            peer.on_timers(now);
            let more = peer.send_all(context, self.options.congestion, left, &mut progress, send);
            progress.more |= more;
            if context.starved {
                self.starved_at = Some(self.memory.booked());
            }
            if more {
                // It had its turn; the next one begins.
                self.turn = Some(node);
            }
            if let Some(at) = peer.next_due(now) {
                due = due.min(at);
            }
        }
        self.work |= progress.more;
        self.due = Some(due);
        progress
    }

    /// When memory was given back, conduits that had none are asked for credit again.
    fn feed_starved(&mut self) {
        if self.starved_at.is_none_or(|booked| self.memory.booked() >= booked) {
            return;
        }
        self.starved_at = None;
        for peer in self.peers.values_mut() {
            let starved = peer.conduits.values().filter(|conduit| conduit.is_starved());
            let ids: Vec<ConduitId> = starved.map(|conduit| conduit.id).collect();
            ids.into_iter().for_each(|id| peer.activate(id));
        }
    }

    /// While memory is short, asks idle conduits for the credit that they have no use for.
    fn recall_idle(&mut self, now: Instant) {
        let short = self.memory.is_short() || self.starved_at.is_some();
        if !short || self.recall_at.is_some_and(|at| at > now) {
            return;
        }
        self.recall_at = Some(now + RECALL_EVERY);
        for peer in self.peers.values_mut() {
            let idle = peer.conduits.values_mut().filter_map(|one| one.look().then_some(one.id));
            let ids: Vec<ConduitId> = idle.collect();
            ids.into_iter().for_each(|id| peer.activate(id));
        }
    }

    /// Gives up messages whose time is over, and asks those again that refused.
    fn expire(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.check_at.is_none_or(|at| at > now) {
            return;
        }
        peer.check_at = None;
        let mut again = Vec::new();
        for (id, conduit) in &mut peer.conduits {
            if conduit.retry_at.take_if(|at| *at <= now).is_some() {
                conduit.greeting = Notice::Due;
                again.push(*id);
            }
            let (key, full) = (conduit.channel, &mut conduit.full);
            let mut next = conduit.retry_at;
            if let Body::MessagesOut(messages) = &mut conduit.body {
                let count = messages.expire(now).len() as u64;
                if count > 0 {
                    if let Some(channel) = self.channels.get_mut(&key) {
                        channel.member(node).stats.expired += count;
                    }
                    self.events.push_back(ChannelEvent::Expired(key, node, count));
                    if std::mem::take(full) {
                        self.events.push_back(ChannelEvent::Writable(key, node));
                    }
                    again.push(*id);
                }
                next = [next, messages.timeout()].into_iter().flatten().min();
            }
            peer.check_at = [peer.check_at, next].into_iter().flatten().min();
        }
        again.into_iter().for_each(|id| peer.activate(id));
    }
}

impl Association {
    /// Sends what may leave; says whether more might.
    fn send_all(
        &mut self,
        context: &mut Context<'_>,
        congestion: super::Congestion,
        budget: usize,
        progress: &mut Progress,
        send: &mut dyn FnMut(Packet<'_>) -> bool,
    ) -> bool {
        let now = context.now;
        let Some(link) = self.best_link() else { return false };
        let start = progress.bytes;
        // No window holds them back, so they leave something to the others.
        let more = self.send_datagrams(context, start + budget / 2, progress, send);
        self.send_aside(context, link, progress, send);
        if self.path(now, link, congestion).is_none() {
            return more;
        }
        while progress.bytes - start < budget {
            let ping = self.probes > 0;
            let silent = self.silent.filter(|_| ping);
            let by = silent.and_then(|silent| self.probe_link(silent)).unwrap_or(link);
            let Some(path) = self.path(now, by, congestion) else { return more };
            let data = ping || path.may_send(now);
            match self.send_one(context, Purpose { link: by, data, ping }, progress, send) {
                Some(true) => self.probes = self.probes.saturating_sub(1),
                Some(false) => {}
                None => {
                    self.probes = 0;
                    if data && let Some(Some(path)) = self.paths.get_mut(by.at()) {
                        path.on_idle();
                    }
                    return more;
                }
            }
        }
        true
    }

    /// Sends what leaves by other links than the one for data: ACKs of what came by them, as a link
    /// that brought something most likely takes something too, and PINGs by silent ones.
    fn send_aside(
        &mut self,
        context: &mut Context<'_>,
        best: LinkIndex,
        progress: &mut Progress,
        send: &mut dyn FnMut(Packet<'_>) -> bool,
    ) {
        for link in LinkIndex::all(MAX_LINKS) {
            if link == best || !self.may_use(link) {
                continue;
            }
            let Some(Some(path)) = self.paths.get_mut(link.at()) else { continue };
            let ping = std::mem::take(&mut path.ping);
            self.send_one(context, Purpose { link, data: false, ping }, progress, send);
        }
    }

    /// Fills one packet and sends it; says whether it asks for an acknowledgement. None if there is
    /// nothing to send.
    fn send_one(
        &mut self,
        context: &mut Context<'_>,
        purpose: Purpose,
        progress: &mut Progress,
        send: &mut dyn FnMut(Packet<'_>) -> bool,
    ) -> Option<bool> {
        let Purpose { link, data, ping } = purpose;
        let view = self.way()?;
        let (index, room) = (view.index, view.way(link)?.room);
        let boot = self.boot?;
        let number = self.paths.get(link.at())?.as_ref()?.recovery.next_number();
        context.buf.clear();
        let header = PacketHeader { path: link.get(), number: number as u32 };
        context.buf.extend_from_slice(&header.write());
        let mut sent = Sent::default();
        let acked = self.write_acks(context, purpose, room, &mut sent);
        if data {
            self.write_replies(context.buf, room, &mut sent);
            self.write_conduits(context, room, &mut sent);
        }
        if ping && sent.is_empty() {
            Frame::Ping.write(context.buf);
            sent.push(Item { id: ConduitId { ours: true, number: u32::MAX }, what: What::Ping });
        }
        if sent.is_empty() && !acked {
            return None;
        }
        let asks = !sent.is_empty();
        if asks && (1..MOST_PADDING).contains(&room.saturating_sub(context.buf.len())) {
            Frame::Padding(room - context.buf.len()).write(context.buf);
        }
        let payload = context.buf.as_slice();
        if let Some(Some(path)) = self.paths.get_mut(link.at())
            && let Err(sent) = path.on_sent(context.now, payload.len(), sent)
        {
            sent.iter().for_each(|item| self.lose(item));
            return None;
        }
        progress.packets += 1;
        progress.bytes += payload.len();
        let (links, kind) = (LinkSet::only(link), Kind::Channel);
        send(Packet { peer: index, boot, links, kind, payload });
        Some(asks)
    }

    /// Says what came: what is due, or all there is to say if the packet leaves anyway. That of a
    /// link that packets may leave by is said there, so that two links are never both deaf for one.
    fn write_acks(
        &mut self,
        context: &mut Context<'_>,
        Purpose { link: by, data, ping }: Purpose,
        room: usize,
        sent: &mut Sent,
    ) -> bool {
        let (now, mut any) = (context.now, false);
        let leaves = ping || data && !(self.round.is_empty() && self.replies.is_empty());
        for link in LinkIndex::all(MAX_LINKS) {
            let Some(Some(path)) = self.paths.get(link.at()) else { continue };
            let arrived_by = path.arrived_by.unwrap_or(link);
            if arrived_by != by && self.may_use(arrived_by) {
                continue;
            }
            let Some(Some(path)) = self.paths.get_mut(link.at()) else { continue };
            let head = if leaves || any {
                path.acks.take_ack(now, context.ranges)
            } else {
                path.acks.poll_ack(now, context.ranges)
            };
            let Some(head) = head else { continue };
            let delay = u64::try_from(head.delay.as_micros() / 8).unwrap_or(u64::MAX >> 2);
            let ranges = context.ranges.iter().map(|range| range.first..=range.last);
            let ecn = head.ecn.map(|ecn| crate::wire::channel::EcnCounts {
                ect0: ecn.ect0,
                ect1: ecn.ect1,
                ce: ecn.ce,
            });
            let left = room.saturating_sub(context.buf.len());
            if write_ack(link.get(), delay, ranges, ecn, left, context.buf) {
                any = true;
                sent.ack = sent.ack.or(Some((link.get(), head.serial)));
            }
        }
        any
    }

    fn write_replies(&mut self, buf: &mut Vec<u8>, room: usize, sent: &mut Sent) {
        for (id, (reply, notice)) in &mut self.replies {
            if *notice != Notice::Due {
                continue;
            }
            let channel = id.outward();
            let frame = match *reply {
                Reply::Refuse(reason) => Frame::Refuse { channel, reason },
                Reply::Reset(error) => Frame::Reset { channel, error },
            };
            if buf.len() + frame.encoded_len() > room {
                return;
            }
            frame.write(buf);
            *notice = Notice::Said;
            sent.push(Item { id: *id, what: What::Reply });
        }
    }

    fn write_conduits(&mut self, context: &mut Context<'_>, room: usize, sent: &mut Sent) {
        let rtt = self.rtt();
        loop {
            let left = room.saturating_sub(context.buf.len());
            let Some(id) = self.round.front().copied().filter(|_| left >= LEAST_FRAME_ROOM) else {
                return;
            };
            let channels = &*context.channels;
            let conduit = self.conduits.get_mut(&id).and_then(|conduit| {
                let config = &channels.get(&conduit.channel)?.config;
                Some((conduit, (config.name.as_str(), config.mode)))
            });
            let Some((conduit, channel)) = conduit else {
                self.round.pop_front();
                continue;
            };
            let before = context.buf.len();
            let (now, buf) = (context.now, &mut *context.buf);
            if let Some(what) = conduit.write_next(now, left, rtt, context.memory, channel, buf) {
                sent.push(Item { id, what });
                conduit.turn += buf.len() - before;
                if conduit.turn >= QUANTUM {
                    conduit.turn = 0;
                    self.round.rotate_left(1);
                }
            } else if left >= ROOM_FOR_ANY {
                context.starved |= conduit.is_starved();
                (conduit.active, conduit.turn) = (false, 0);
                self.round.pop_front();
            } else {
                // What it has may be too large for what room is left.
                return;
            }
        }
    }

    /// Sends unreliable messages; says whether more might leave.
    fn send_datagrams(
        &mut self,
        context: &mut Context<'_>,
        budget: usize,
        progress: &mut Progress,
        send: &mut dyn FnMut(Packet<'_>) -> bool,
    ) -> bool {
        let mut more = false;
        let Some(boot) = self.boot else { return more };
        for id in std::mem::take(&mut self.datagrams) {
            let view = self.view.as_ref();
            let session = view.and_then(|view| view.session.as_ref()).filter(|s| s.boot == boot);
            let Some(conduit) = self.conduits.get_mut(&id) else { continue };
            let Body::DatagramsOut(datagrams) = &mut conduit.body else { continue };
            let Some((session, view)) = session.zip(view).filter(|_| conduit.accepted) else {
                self.datagrams.push(id);
                continue;
            };
            let Some(channel) = context.channels.get_mut(&conduit.channel) else { continue };
            let links = if channel.config.copies { session.live } else { session.chosen };
            let room = session.room(links);
            while progress.bytes < budget
                && let Some(datagram) = datagrams.pop()
            {
                let stats = &mut channel.member(self.node).stats;
                if datagram.deadline.is_some_and(|deadline| deadline <= context.now) {
                    stats.expired += 1;
                    continue;
                }
                let pieces = datagrams.ids.cut(datagram.priority, &datagram.bytes, room);
                let Some(pieces) = pieces.filter(|_| !links.is_empty()) else {
                    stats.dropped += 1;
                    continue;
                };
                for piece in pieces {
                    context.buf.clear();
                    piece.write(context.buf);
                    let payload = context.buf.as_slice();
                    progress.packets += 1;
                    progress.bytes += payload.len();
                    let (peer, kind) = (view.index, Kind::Unreliable);
                    send(Packet { peer, boot, links, kind, payload });
                }
            }
            if !datagrams.queue.is_empty() {
                more = true;
                self.datagrams.push(id);
            }
            if datagrams.queued() <= super::conduit::DATAGRAM_QUEUE / 2
                && std::mem::take(&mut conduit.full)
            {
                context.events.push_back(ChannelEvent::Writable(conduit.channel, self.node));
            }
        }
        more
    }

    /// When something is due, if nothing happens before.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        // What cannot leave is no reason to look again.
        let way = self.best_link().is_some();
        let waits = way && !(self.round.is_empty() && self.replies.is_empty());
        let paths = self.paths.iter().flatten().flat_map(|path| {
            let paced = path.paced_until.filter(|until| *until > now && waits);
            [path.recovery.timeout(), path.acks.timeout().filter(|_| way), paced]
        });
        paths.chain([self.check_at]).flatten().min()
    }
}
