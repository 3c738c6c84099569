//! Unreliable messages on their way in: copies are taken out, pieces put together.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::spans::Spans;
use super::messages::Delivery;
use crate::wire::channel::extend_number;
use crate::wire::channel::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};

/// Most messages of a channel of which something is missing: a sender hands out one after the other,
/// so more than the few that links of different speed hold back have lost a piece.
pub const MAX_OPEN_UNRELIABLE: usize = 16;
/// Most bytes of such messages.
pub const UNRELIABLE_MEMORY: usize = 1 << 20;
/// How long pieces may take from the first that came: longer than links of any use differ.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How far behind the newest message one may come; copies are known for so long. At a million
/// messages a second it is 4 ms, which is more than links of one peer mostly differ.
const WINDOW: u64 = 4096;

const _: () = assert!(UNRELIABLE_MEMORY / MAX_OPEN_UNRELIABLE >= MAX_UNRELIABLE_LEN as usize);

/// Why a message or piece was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum UnreliableDrop {
    /// It was there already, or its message was given up.
    #[error("copy of an unreliable message")]
    Duplicate,
    /// It is too far behind to say.
    #[error("unreliable message from too long ago")]
    TooOld,
    /// Its message has another length, or an impossible one.
    #[error("unreliable message with conflicting lengths")]
    ConflictingLength,
}

/// A message of which something is missing.
#[derive(Debug)]
struct Open {
    id: u64,
    priority: u8,
    started: Instant,
    bytes: Vec<u8>,
    have: Spans,
}

/// What the receiver keeps of one channel of unreliable messages.
#[derive(Debug)]
pub struct IncomingUnreliable {
    /// One more than the largest id that came.
    expected: u64,
    /// Which of the last [`WINDOW`] ids are over: a bit for each, at the id modulo the window.
    closed: Box<[u64; (WINDOW / 64) as usize]>,
    /// Oldest first.
    open: VecDeque<Open>,
    given_up: u64,
}

impl Default for IncomingUnreliable {
    fn default() -> Self {
        Self::new()
    }
}

impl IncomingUnreliable {
    /// Nothing came yet.
    #[must_use]
    pub fn new() -> Self {
        let closed = Box::new([0; (WINDOW / 64) as usize]);
        Self { expected: 0, closed, open: VecDeque::new(), given_up: 0 }
    }

    /// Takes a message or a piece; gives the message when it is complete.
    ///
    /// # Errors
    /// [`UnreliableDrop`]; it was not taken.
    pub fn on_message(
        &mut self,
        now: Instant,
        message: &Unreliable<'_>,
    ) -> Result<Option<Delivery>, UnreliableDrop> {
        let Unreliable { priority, offset, total, bytes, .. } = *message;
        let end = u64::from(offset) + bytes.len() as u64;
        if total > MAX_UNRELIABLE_LEN || end > u64::from(total) {
            return Err(UnreliableDrop::ConflictingLength);
        }
        self.expire(now);
        let id = extend_number(self.expected, message.id);
        self.admit(id)?;
        if bytes.len() == total as usize {
            if let Some(at) = self.open.iter().position(|open| open.id == id) {
                self.open.remove(at);
            }
            self.close(id);
            return Ok(Some(Delivery { id, priority, bytes: bytes.to_vec() }));
        }
        let at = match self.open.iter().position(|open| open.id == id) {
            Some(at) => at,
            None => self.begin(now, id, priority, total),
        };
        let Some(open) = self.open.get_mut(at) else { return Ok(None) };
        if open.bytes.len() != total as usize {
            return Err(UnreliableDrop::ConflictingLength);
        }
        let piece = u64::from(offset)..end;
        if open.have.missing(piece.clone()).next().is_none() {
            return Err(UnreliableDrop::Duplicate);
        }
        // Within the message, whose length was checked. A sender cuts a message once: pieces do not
        // overlap, and if they do the last one holds.
        if let Some(place) = open.bytes.get_mut(offset as usize..end as usize) {
            place.copy_from_slice(bytes);
        }
        open.have.insert(piece);
        if open.have.prefix() < u64::from(total) {
            return Ok(None);
        }
        self.close(id);
        let whole = self.open.remove(at);
        Ok(whole.map(|Open { id, priority, bytes, .. }| Delivery { id, priority, bytes }))
    }

    /// Messages that were given up since the last call, some of whose pieces came.
    pub fn take_given_up(&mut self) -> u64 {
        std::mem::take(&mut self.given_up)
    }

    /// Bytes of messages of which something is missing.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.open.iter().map(|open| open.bytes.capacity()).sum()
    }

    /// Gives up messages whose time is over.
    pub fn expire(&mut self, now: Instant) {
        while let Some(open) = self.open.front()
            && now.saturating_duration_since(open.started) >= TIMEOUT
        {
            self.give_up_oldest();
        }
    }

    /// Whether something of this message is still wanted.
    fn admit(&mut self, id: u64) -> Result<(), UnreliableDrop> {
        if id >= self.expected {
            // The places of ids between are those of ids that fall out of the window.
            for new in self.expected.max((id + 1).saturating_sub(WINDOW))..=id {
                self.set(new, false);
            }
            self.expected = id + 1;
            let oldest = self.expected.saturating_sub(WINDOW);
            while self.open.front().is_some_and(|open| open.id < oldest) {
                self.give_up_oldest();
            }
            return Ok(());
        }
        if self.expected - id > WINDOW {
            return Err(UnreliableDrop::TooOld);
        }
        let word = self.closed.get((id % WINDOW / 64) as usize).copied().unwrap_or(0);
        if word >> (id % 64) & 1 == 0 { Ok(()) } else { Err(UnreliableDrop::Duplicate) }
    }

    fn set(&mut self, id: u64, closed: bool) {
        if let Some(word) = self.closed.get_mut((id % WINDOW / 64) as usize) {
            let bit = 1 << (id % 64);
            *word = if closed { *word | bit } else { *word & !bit };
        }
    }

    fn close(&mut self, id: u64) {
        if self.expected - id <= WINDOW {
            self.set(id, true);
        }
    }

    fn give_up_oldest(&mut self) {
        if let Some(open) = self.open.pop_front() {
            self.close(open.id);
            self.given_up += 1;
        }
    }

    /// Makes room for a message and enters it: its place.
    fn begin(&mut self, now: Instant, id: u64, priority: u8, total: u32) -> usize {
        if self.open.len() >= MAX_OPEN_UNRELIABLE {
            self.give_up_oldest();
        }
        let (bytes, have) = (vec![0; total as usize], Spans::new());
        self.open.push_back(Open { id, priority, started: now, bytes, have });
        self.open.len() - 1
    }
}
