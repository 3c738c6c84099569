//! Messages on their way out.
//!
//! A message gets its id, and takes its length from the credit, when its first piece is handed out:
//! what expires before that never was. Ordered channels send in the order of the program. On
//! unordered ones each priority is a queue, of which the first with work has its turn; within a
//! queue what was lost comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::super::Carried;
use super::super::spans::Spans;
use super::grant::Grant;
use super::{Notice, piece_len};
use crate::wire::channel::{ChannelId, Frame, MAX_MESSAGE_LEN, MAX_PRIORITY, Message};

/// What a message takes from the limit beside its bytes: about what is kept to know of it, so that
/// empty messages are bounded too.
pub const MESSAGE_COST: usize = 256;
/// A queue that waits for so long is treated as one priority more urgent, twice as long as two, and
/// so on; having sent a piece, it waits anew. So nothing waits for more than about seven times this
/// for a piece, and what is urgent gives up no more than a piece for that.
pub const AGE_STEP: Duration = Duration::from_millis(50);
/// Queues: one for each priority.
const QUEUES: usize = MAX_PRIORITY as usize + 1;

/// A message of this node, for as long as it is kept; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How a message is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// 0 (first) to 7 (last); a larger one is taken for 7. Ordered channels only tell the receiver.
    pub priority: u8,
    /// When the message is given up, whatever of it was sent.
    pub deadline: Option<Instant>,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PushError {
    /// There is no room now; there will be when the peer has acknowledged some.
    #[error("no room for the message now")]
    Full,
    /// It is longer than [`MAX_MESSAGE_LEN`].
    #[error("message of more than 16 MiB")]
    TooLong,
    /// The channel was closed on this side.
    #[error("channel is closed")]
    Closed,
}

/// A message that was not taken, given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub error: PushError,
    /// The message.
    pub bytes: Vec<u8>,
}

/// A message that is neither acknowledged nor given up.
#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    priority: u8,
    queued: Instant,
    deadline: Option<Instant>,
    /// Given when it is begun.
    id: Option<u64>,
    /// All before were handed out at least once.
    sent: u64,
    acked: Spans,
    lost: Spans,
}

impl Pending {
    fn total(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Messages by ticket, that is in the order of the program.
#[derive(Debug, Default)]
struct Queue {
    /// Those of which something was lost.
    lost: BTreeSet<Ticket>,
    /// Those that were not all handed out. Only the first can have been begun.
    fresh: BTreeSet<Ticket>,
    /// When a piece was last taken from here.
    served: Option<Instant>,
}

/// What the sender keeps of one channel of messages.
///
/// Memory: the limit, or one message if that is larger. Messages that were given up count as empty
/// ones until the peer knows.
///
/// Before packets are filled: [`Self::expire`].
#[derive(Debug)]
pub struct OutgoingMessages {
    channel: ChannelId,
    ordered: bool,
    limit: usize,
    kept: usize,
    next_ticket: u64,
    messages: BTreeMap<Ticket, Pending>,
    begun: BTreeMap<u64, Ticket>,
    queues: [Queue; QUEUES],
    deadlines: BTreeSet<(Instant, Ticket)>,
    /// Ids and lengths of begun messages that were given up.
    given_up: BTreeMap<u64, u32>,
    /// Those of them that are to be said.
    to_tell: BTreeSet<u64>,
    /// Lengths of all messages that were begun.
    taken: u64,
    /// Lengths of those that are kept and were not.
    fresh: u64,
    credit: Grant,
    /// Messages that were begun: the next id.
    count: u64,
    count_credit: u64,
    close: Notice,
}

impl OutgoingMessages {
    /// A channel that keeps at most `limit` bytes, [`MESSAGE_COST`] for each message included, and
    /// may begin `count_credit` messages of `credit` bytes together.
    #[must_use]
    pub fn new(
        channel: ChannelId,
        ordered: bool,
        limit: usize,
        credit: u64,
        count_credit: u64,
    ) -> Self {
        Self {
            channel,
            ordered,
            limit,
            kept: 0,
            next_ticket: 0,
            messages: BTreeMap::new(),
            begun: BTreeMap::new(),
            queues: Default::default(),
            deadlines: BTreeSet::new(),
            given_up: BTreeMap::new(),
            to_tell: BTreeSet::new(),
            taken: 0,
            fresh: 0,
            credit: Grant::new(credit),
            count: 0,
            count_credit,
            close: Notice::Idle,
        }
    }

    /// Takes a message from the program. One that is larger than the limit is taken when nothing
    /// else is kept.
    ///
    /// # Errors
    /// The message comes back, with the reason.
    pub fn try_push(
        &mut self,
        now: Instant,
        bytes: Vec<u8>,
        options: Options,
    ) -> Result<Ticket, Refused> {
        let cost = bytes.len() + MESSAGE_COST;
        let error = if bytes.len() > MAX_MESSAGE_LEN as usize {
            PushError::TooLong
        } else if self.close != Notice::Idle {
            PushError::Closed
        } else if !self.has_room(bytes.len()) {
            PushError::Full
        } else {
            let ticket = Ticket(self.next_ticket);
            self.next_ticket += 1;
            self.kept += cost;
            self.fresh += bytes.len() as u64;
            let Options { priority, deadline } = options;
            let priority = priority.min(MAX_PRIORITY);
            if let Some(deadline) = deadline {
                self.deadlines.insert((deadline, ticket));
            }
            let (acked, lost) = (Spans::new(), Spans::new());
            let (id, sent, queued) = (None, 0, now);
            let pending = Pending { bytes, priority, queued, deadline, id, sent, acked, lost };
            if let Some(queue) = self.queue_of(priority) {
                queue.fresh.insert(ticket);
            }
            self.messages.insert(ticket, pending);
            return Ok(ticket);
        };
        Err(Refused { error, bytes })
    }

    /// Whether [`Self::try_push`] would take a message of `len` bytes.
    #[must_use]
    pub const fn has_room(&self, len: usize) -> bool {
        self.kept == 0 || self.kept + len + MESSAGE_COST <= self.limit
    }

    /// No more messages will come from the program.
    pub fn finish(&mut self) {
        if self.close == Notice::Idle {
            self.close = Notice::Due;
        }
    }

    /// Bytes kept, [`MESSAGE_COST`] for each message included.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Messages that the peer is not known to have.
    #[must_use]
    pub fn count(&self) -> usize {
        self.messages.len()
    }

    /// Messages that were ever taken from programs.
    #[must_use]
    pub const fn taken_in(&self) -> u64 {
        self.next_ticket
    }

    /// Of those the first so many are acknowledged or given up.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.messages.first_key_value().map_or(self.next_ticket, |(ticket, _)| ticket.0)
    }

    /// Puts a byte in front of each message, before anything was handed out. They may take as many
    /// bytes more than the limit as they are.
    pub(in crate::channel) fn prefix(&mut self, byte: u8) {
        for pending in self.messages.values_mut() {
            debug_assert!(pending.id.is_none());
            // Not twice the memory, as by itself it would.
            pending.bytes.reserve_exact(1);
            pending.bytes.insert(0, byte);
            self.kept += 1;
            self.fresh += 1;
        }
    }

    /// Another name, before anything was handed out.
    pub(in crate::channel) const fn set_channel(&mut self, channel: ChannelId) {
        self.channel = channel;
    }

    /// Whether the peer has, or knows to be given up, all messages, and knows that there are no
    /// more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.close == Notice::Known && self.messages.is_empty() && self.given_up.is_empty()
    }

    /// Credit in bytes since the beginning; an older, smaller one changes nothing.
    pub fn on_max_data(&mut self, limit: u64) {
        self.credit.on_max_data(limit);
    }

    /// Credit in messages since the beginning; an older, smaller one changes nothing.
    pub fn on_max_messages(&mut self, limit: u64) {
        self.count_credit = self.count_credit.max(limit);
    }

    /// When [`Self::expire`] has something to do next.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Gives up the messages whose time is over, and says which. Some of them may have arrived
    /// nevertheless.
    pub fn expire(&mut self, now: Instant) -> Vec<Ticket> {
        let mut expired = Vec::new();
        while let Some((deadline, ticket)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let Some(pending) = self.forget(ticket) else { continue };
            if let Some(id) = pending.id {
                // It goes on to count, or a peer that never says that it knows could have this grow.
                self.kept += MESSAGE_COST;
                self.given_up.insert(id, pending.bytes.len() as u32);
                self.to_tell.insert(id);
            }
            expired.push(ticket);
        }
        expired
    }

    /// Ends what is kept of a message, whatever became of it.
    fn forget(&mut self, ticket: Ticket) -> Option<Pending> {
        let pending = self.messages.remove(&ticket)?;
        self.kept = self.kept.saturating_sub(pending.bytes.len() + MESSAGE_COST);
        if let Some(deadline) = pending.deadline {
            self.deadlines.remove(&(deadline, ticket));
        }
        match pending.id {
            Some(id) => _ = self.begun.remove(&id),
            None => self.fresh -= pending.total(),
        }
        if let Some(queue) = self.queue_of(pending.priority) {
            queue.lost.remove(&ticket);
            queue.fresh.remove(&ticket);
        }
        Some(pending)
    }

    fn queue_of(&mut self, priority: u8) -> Option<&mut Queue> {
        self.queues.get_mut(if self.ordered { 0 } else { usize::from(priority) })
    }

    /// The receiver has use for credit that is idle here. What waits to be begun keeps its own.
    pub fn on_recall(&mut self) {
        self.credit.on_recall(self.taken, self.fresh);
    }

    /// The next frame that goes into `room` bytes: what is to be said first, then pieces.
    pub fn next_frame(&mut self, now: Instant, room: usize) -> Option<(Frame<'_>, Carried)> {
        if let Some(found) = self.next_notice(room) {
            return Some(found);
        }
        let mut tried = [false; QUEUES];
        let mut may_begin = true;
        while let Some(at) = self.most_urgent(now, &tried) {
            if let Some(slot) = tried.get_mut(at) {
                *slot = true;
            }
            if let Some((ticket, start, len)) = self.choose(at, room, &mut may_begin) {
                return self.hand_out(now, at, ticket, start, len);
            }
        }
        self.next_notice(room)
    }

    fn next_notice(&mut self, room: usize) -> Option<(Frame<'static>, Carried)> {
        let channel = self.channel;
        if let Some(id) = self.to_tell.first().copied() {
            let total = self.given_up.get(&id).copied().unwrap_or(0);
            let frame = Frame::Expired { channel, id, total };
            if frame.encoded_len() <= room {
                self.to_tell.remove(&id);
                return Some((frame, Carried::Expired { id }));
            }
        }
        // The count is known when all were begun, or have expired before.
        if self.close == Notice::Due && self.messages.len() == self.begun.len() {
            let frame = Frame::Close { channel, count: self.count };
            if frame.encoded_len() <= room {
                self.close = Notice::Said;
                return Some((frame, Carried::Close));
            }
        }
        if self.credit.is_short() && self.messages.len() == self.begun.len() {
            // What needed it was given up, and nothing waits: the memory is for others.
            self.credit.need(self.credit.limit());
        }
        self.credit.next_frame(channel, room)
    }

    /// The queue whose turn it is, of those not tried that have something to send.
    fn most_urgent(&self, now: Instant, tried: &[bool; QUEUES]) -> Option<usize> {
        let queues = self.queues.iter().enumerate().zip(tried).filter(|(_, tried)| !**tried);
        let ranked = queues.filter_map(|((at, queue), _)| {
            let ticket = queue.lost.first().or(queue.fresh.first())?;
            let queued = self.messages.get(ticket)?.queued;
            let since = queue.served.map_or(queued, |served| served.max(queued));
            let waited = now.saturating_duration_since(since).as_millis() / AGE_STEP.as_millis();
            let rank = (at as u128).saturating_sub(waited);
            Some(((rank, since), at))
        });
        ranked.min().map(|(_, at)| at)
    }

    /// The piece that comes next in a queue and fits: its message, start and length. Clears
    /// `may_begin` when credit forbids to begin the next message: then none of a later queue is
    /// begun either, or a large one would never be.
    fn choose(
        &mut self,
        at: usize,
        room: usize,
        may_begin: &mut bool,
    ) -> Option<(Ticket, u64, usize)> {
        let queue = self.queues.get(at)?;
        if let Some(ticket) = queue.lost.first().copied() {
            let lost = self.messages.get(&ticket)?.lost.first()?;
            let len = self.fit(ticket, lost.start, lost.end, room)?;
            return Some((ticket, lost.start, len));
        }
        let ticket = queue.fresh.first().copied()?;
        let pending = self.messages.get(&ticket)?;
        if pending.id.is_none() {
            let needed = self.taken + pending.total();
            let enough = needed <= self.credit.limit();
            if *may_begin && !enough {
                self.credit.need(needed);
            }
            *may_begin &= enough && self.count < self.count_credit;
            if !*may_begin {
                return None;
            }
        }
        let len = self.fit(ticket, pending.sent, pending.total(), room)?;
        Some((ticket, pending.sent, len))
    }

    /// How many bytes of a message from `start` on fit.
    fn fit(&self, ticket: Ticket, start: u64, end: u64, room: usize) -> Option<usize> {
        let pending = self.messages.get(&ticket)?;
        let frame = self.frame(pending, start, 0);
        let left = usize::try_from(end - start).unwrap_or(usize::MAX);
        if left == pending.bytes.len() {
            let whole = frame.header_len(left);
            if whole + left <= room {
                return Some(left);
            }
        }
        // A piece that is not the whole message has a longer header; the length 0 stands for one
        // whose own length takes as many bytes as that of what there is room for.
        let longest = left.min(room);
        let is_all = longest as u64 == pending.total();
        let longest = if is_all { longest.saturating_sub(1) } else { longest };
        let len = piece_len(left as u64, frame.header_len(longest), room)?;
        (len > 0 && (len as u64) < pending.total()).then_some(len)
    }

    fn frame<'a>(&self, pending: &'a Pending, start: u64, len: usize) -> Message<'a> {
        let at = usize::try_from(start).unwrap_or(usize::MAX);
        let rest = pending.bytes.get(at..).unwrap_or_default();
        Message {
            channel: self.channel,
            id: pending.id.unwrap_or(self.count),
            priority: pending.priority,
            offset: start as u32,
            total: pending.bytes.len() as u32,
            bytes: rest.get(..len).unwrap_or_default(),
        }
    }

    /// Enters that a piece goes out, and gives its frame.
    fn hand_out(
        &mut self,
        now: Instant,
        at: usize,
        ticket: Ticket,
        start: u64,
        len: usize,
    ) -> Option<(Frame<'_>, Carried)> {
        let pending = self.messages.get_mut(&ticket)?;
        let total = pending.total();
        let id = *pending.id.get_or_insert_with(|| {
            let id = self.count;
            self.count += 1;
            self.taken += total;
            self.fresh -= total;
            self.begun.insert(id, ticket);
            id
        });
        let end = start + len as u64;
        pending.lost.remove(start..end);
        pending.sent = pending.sent.max(end);
        if let Some(queue) = self.queues.get_mut(at) {
            queue.served = Some(now);
            if pending.lost.is_empty() {
                queue.lost.remove(&ticket);
            }
            if pending.sent == pending.total() {
                queue.fresh.remove(&ticket);
            }
        }
        let carried = Carried::Message { id, offset: start as u32, len: len as u32 };
        let pending = self.messages.get(&ticket)?;
        Some((Frame::Message(self.frame(pending, start, len)), carried))
    }

    /// The packet with this arrived. Gives the message of which the peer now has all.
    pub fn on_acked(&mut self, carried: &Carried) -> Option<Ticket> {
        match *carried {
            Carried::Message { id, offset, len } => {
                let ticket = self.begun.get(&id).copied()?;
                let pending = self.messages.get_mut(&ticket)?;
                let range = u64::from(offset)..u64::from(offset) + u64::from(len);
                pending.lost.remove(range.clone());
                pending.acked.insert(range);
                if pending.acked.prefix() == pending.total() {
                    return self.forget(ticket).map(|_| ticket);
                }
                let (settled, priority) = (pending.lost.is_empty(), pending.priority);
                if settled && let Some(queue) = self.queue_of(priority) {
                    queue.lost.remove(&ticket);
                }
            }
            Carried::Expired { id } => {
                if self.given_up.remove(&id).is_some() {
                    self.kept = self.kept.saturating_sub(MESSAGE_COST);
                }
                self.to_tell.remove(&id);
            }
            Carried::Close => self.close = Notice::Known,
            Carried::Blocked { .. } | Carried::Return { .. } => self.credit.on_acked(carried),
            _ => {}
        }
        None
    }

    /// The packet with this was lost: what of it is still wanted comes again.
    pub fn on_lost(&mut self, carried: &Carried) {
        match *carried {
            Carried::Message { id, offset, len } => {
                let Some(ticket) = self.begun.get(&id).copied() else { return };
                let Some(pending) = self.messages.get_mut(&ticket) else { return };
                let range = u64::from(offset)..u64::from(offset) + u64::from(len);
                for gap in pending.acked.missing(range) {
                    pending.lost.insert(gap);
                }
                let (again, empty) = (!pending.lost.is_empty(), pending.bytes.is_empty());
                let priority = pending.priority;
                let Some(queue) = self.queue_of(priority) else { return };
                if empty {
                    // There is no range of it to be lost.
                    queue.fresh.insert(ticket);
                } else if again {
                    queue.lost.insert(ticket);
                }
            }
            Carried::Expired { id } if self.given_up.contains_key(&id) => {
                self.to_tell.insert(id);
            }
            Carried::Close => self.close.on_lost(),
            Carried::Blocked { .. } | Carried::Return { .. } => self.credit.on_lost(carried),
            _ => {}
        }
    }
}
