//! Messages on their way in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::Carried;
use super::super::spans::Spans;
use super::credit::Count;
use super::{Credit, Fault, Memory, max_ranges};
use crate::wire::channel::{ChannelId, Frame, MAX_MESSAGE_LEN, Message};

/// How many messages a peer may have begun and the program not have taken, and the first credit in
/// messages, which OPEN or ACCEPT say. What is kept for each
/// beside its bytes is some hundred bytes.
pub const MESSAGE_WINDOW: u64 = 1024;

/// A message for the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its number in the channel, from 0 in the order of sending.
    pub id: u64,
    /// 0 (first) to 7 (last).
    pub priority: u8,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// A message of which something is missing.
#[derive(Debug)]
struct Partial {
    priority: u8,
    bytes: Vec<u8>,
    have: Spans,
}

/// What the receiver keeps of one channel of messages.
///
/// Memory: the bytes are those that the credit allows, as a message takes all of its length from
/// it when its first piece is sent. At most [`MESSAGE_WINDOW`] messages are kept; the ids that are
/// over are ranges with at least one of these between any two.
#[derive(Debug)]
pub struct IncomingMessages {
    channel: ChannelId,
    ordered: bool,
    credit: Credit,
    count: Count,
    partial: BTreeMap<u64, Partial>,
    /// Complete ones, by what says when it is their turn; none for one that was given up. On an
    /// ordered channel (0, id), else priority and order of completion.
    ready: BTreeMap<(u8, u64), Option<Delivery>>,
    /// Ids that are complete, delivered, or given up: nothing more of them is taken.
    closed: Spans,
    /// Lengths of all messages of which anything came.
    used: u64,
    /// The next id of an ordered channel.
    next: u64,
    /// How many were completed.
    completed: u64,
    /// One more than the largest id that came.
    seen: u64,
    end: Option<u64>,
}

impl IncomingMessages {
    /// Nothing came yet. `channel` is named as in frames that this node sends.
    #[must_use]
    pub fn new(channel: ChannelId, ordered: bool, credit: Credit) -> Self {
        Self {
            channel,
            ordered,
            credit,
            count: Count::new(MESSAGE_WINDOW),
            partial: BTreeMap::new(),
            ready: BTreeMap::new(),
            closed: Spans::new(),
            used: 0,
            next: 0,
            completed: 0,
            seen: 0,
            end: None,
        }
    }

    /// Takes a message or a piece.
    ///
    /// # Errors
    /// [`Fault`]; nothing was taken.
    pub fn on_message(&mut self, frame: &Message<'_>) -> Result<(), Fault> {
        let Message { id, priority, offset, total, bytes, .. } = *frame;
        let piece = u64::from(offset)..u64::from(offset) + bytes.len() as u64;
        if total > MAX_MESSAGE_LEN || piece.end > u64::from(total) {
            return Err(Fault::ConflictingLength);
        }
        self.check_id(id)?;
        if self.closed.contains(id) {
            return Ok(());
        }
        let partial = match self.partial.get_mut(&id) {
            Some(partial) => partial,
            None => {
                self.book(id, total)?;
                if piece == (0..u64::from(total)) {
                    self.complete(Delivery { id, priority, bytes: bytes.to_vec() });
                    return Ok(());
                }
                // Within the credit, which memory was booked for.
                let bytes = vec![0; total as usize];
                let new = Partial { priority, bytes, have: Spans::new() };
                self.partial.entry(id).or_insert(new)
            }
        };
        if partial.bytes.len() as u64 != u64::from(total) {
            return Err(Fault::ConflictingLength);
        }
        let full = partial.have.len() >= max_ranges(total.into());
        if full && !partial.have.joins(&piece) {
            return Err(Fault::Gaps);
        }
        for gap in partial.have.missing(piece.clone()) {
            // Both ends lie within the message, whose length was checked.
            let from = (gap.start - piece.start) as usize..(gap.end - piece.start) as usize;
            let place = partial.bytes.get_mut(gap.start as usize..gap.end as usize);
            if let (Some(place), Some(from)) = (place, bytes.get(from)) {
                place.copy_from_slice(from);
            }
        }
        partial.have.insert(piece);
        if partial.have.prefix() == u64::from(total)
            && let Some(Partial { priority, bytes, .. }) = self.partial.remove(&id)
        {
            self.complete(Delivery { id, priority, bytes });
        }
        Ok(())
    }

    fn check_id(&self, id: u64) -> Result<(), Fault> {
        if self.end.is_some_and(|end| id >= end) {
            return Err(Fault::FinalSize);
        }
        if id >= self.count.granted { Err(Fault::TooFarAhead) } else { Ok(()) }
    }

    /// Enters a message of which nothing was known.
    fn book(&mut self, id: u64, total: u32) -> Result<(), Fault> {
        let used = self.used + u64::from(total);
        if used > self.credit.limit() {
            return Err(Fault::BeyondCredit);
        }
        self.used = used;
        self.seen = self.seen.max(id + 1);
        Ok(())
    }

    fn complete(&mut self, delivery: Delivery) {
        self.closed.insert(delivery.id..delivery.id + 1);
        let turn =
            if self.ordered { (0, delivery.id) } else { (delivery.priority, self.completed) };
        self.completed += 1;
        self.ready.insert(turn, Some(delivery));
    }

    /// The peer gave a message up. One that is complete is delivered nevertheless.
    ///
    /// # Errors
    /// [`Fault`]; nothing was changed.
    pub fn on_expired(&mut self, id: u64, total: u32, memory: &mut Memory) -> Result<(), Fault> {
        self.check_id(id)?;
        if self.closed.contains(id) {
            return Ok(());
        }
        match self.partial.get(&id) {
            Some(partial) if partial.bytes.len() as u64 != u64::from(total) => {
                return Err(Fault::ConflictingLength);
            }
            Some(_) => {
                self.partial.remove(&id);
            }
            None => self.book(id, total)?,
        }
        self.closed.insert(id..id + 1);
        self.credit.release(total.into(), memory);
        if self.ordered {
            self.ready.insert((0, id), None);
        } else {
            self.count.finish_one();
        }
        self.skip_expired();
        Ok(())
    }

    /// Goes over messages that were given up, whose turn it is.
    fn skip_expired(&mut self) {
        while self.ordered && matches!(self.ready.get(&(0, self.next)), Some(None)) {
            self.ready.remove(&(0, self.next));
            self.next += 1;
            self.count.finish_one();
        }
    }

    /// The peer begins no messages but these.
    ///
    /// # Errors
    /// [`Fault::FinalSize`].
    pub fn on_close(&mut self, count: u64) -> Result<(), Fault> {
        if count < self.seen || self.end.is_some_and(|end| end != count) {
            return Err(Fault::FinalSize);
        }
        self.end = Some(count);
        Ok(())
    }

    /// Whether [`Self::next_message`] has something.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let first = self.ready.first_key_value();
        first.is_some_and(|((_, at), _)| !self.ordered || *at == self.next)
    }

    /// The next message for the program.
    pub fn next_message(&mut self, memory: &mut Memory) -> Option<Delivery> {
        let (turn, _) = self.ready.first_key_value()?;
        if self.ordered && turn.1 != self.next {
            return None;
        }
        let delivery = self.ready.pop_first()?.1?;
        if self.ordered {
            self.next = delivery.id + 1;
        }
        self.count.finish_one();
        self.credit.release(delivery.bytes.len() as u64, memory);
        self.skip_expired();
        Some(delivery)
    }

    /// Whether the peer said that there are no more messages, and all were taken or given up.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.ready.is_empty() && self.end == Some(self.closed.prefix())
    }

    /// Bytes of messages that are kept, complete or not.
    #[must_use]
    pub fn memory(&self) -> usize {
        let partial: usize = self.partial.values().map(|partial| partial.bytes.capacity()).sum();
        let ready = self.ready.values().flatten();
        partial + ready.map(|delivery| delivery.bytes.capacity()).sum::<usize>()
    }

    /// The peer cannot begin its next message with less credit in bytes since the beginning: the
    /// `number`-th of its needs, of which only the last counts.
    pub const fn on_blocked(&mut self, number: u64, at: u64) {
        self.credit.on_blocked(number, at);
    }

    /// Its credit in bytes, for who wants another window.
    pub fn credit_mut(&mut self) -> &mut Credit {
        &mut self.credit
    }

    /// Whether there would be more credit to say if memory had room.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.end.is_none() && self.credit.is_starved()
    }

    /// The peer gives back so many bytes of credit since the beginning.
    ///
    /// # Errors
    /// [`Fault::BeyondCredit`] if it used them; nothing was changed.
    pub fn on_return(&mut self, total: u64, memory: &mut Memory) -> Result<(), Fault> {
        self.credit.on_return(total, self.used, memory)
    }

    /// Looks whether it is idle; says whether credit is to be asked back.
    pub fn look(&mut self) -> bool {
        self.credit.look(self.used)
    }

    /// Credit that is to be said now. `rtt` is the round trip time.
    pub fn next_frame(
        &mut self,
        now: Instant,
        rtt: Duration,
        memory: &mut Memory,
    ) -> Option<(Frame<'static>, Carried)> {
        let channel = self.channel;
        if self.credit.take_recall() {
            return Some((Frame::Recall { channel }, Carried::Recall));
        }
        // Who has said its end needs none.
        if self.end.is_some() {
            return None;
        }
        if let Some(limit) = self.count.poll() {
            return Some((Frame::MaxMessages { channel, limit }, Carried::MaxMessages { limit }));
        }
        let limit = self.credit.poll(now, rtt, self.used, memory)?;
        Some((Frame::MaxData { channel, limit }, Carried::MaxData { limit }))
    }

    /// The packet with this was lost.
    pub fn on_lost(&mut self, carried: &Carried) {
        match *carried {
            Carried::MaxData { limit } => self.credit.on_lost(limit),
            Carried::Recall => self.credit.on_recall_lost(),
            Carried::MaxMessages { limit } => self.count.on_lost(limit),
            _ => {}
        }
    }

    /// The channel is over: gives its memory back.
    pub fn close(mut self, memory: &mut Memory) {
        self.credit.close(memory);
    }
}
