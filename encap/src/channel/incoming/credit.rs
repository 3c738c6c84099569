//! Flow control: how much a peer may send.
//!
//! Credit is a total since the beginning. It is the sum of what the program took and of a window.
//! The window begins at 1 MiB and doubles as long as a half of it is used within two round trips,
//! since then it is the window that holds the sender up. A message that is larger than the window
//! gets its credit when the sender asks by BLOCKED and the program has taken all that came before.

use std::time::{Duration, Instant};

/// First window in bytes.
pub const START_WINDOW: u64 = 1 << 20;
/// Largest window in bytes. The longest message fits, as it must.
pub const TOP_WINDOW: u64 = 64 << 20;

const _: () = assert!(TOP_WINDOW >= crate::wire::channel::MAX_MESSAGE_LEN as u64);

/// Smallest grant in bytes that memory is asked for when it is short: with less, a sender would cut
/// its data into crumbs.
const LEAST_GRANT: u64 = 16 << 10;

/// Memory that credit may be given for, by all channels that share it: those of a peer, or of the
/// node. What is given and was not yet taken by a program is booked here, whether it came or not.
/// No window gets more than a half of what is free, so that one that is never read leaves some for
/// others.
///
/// Of the last quarter only large messages get any: these are begun by their sender when they have
/// all the credit that they need, and so do not wait for each other, whereas windows that nobody
/// uses could hold all of it for ever. The limit is to be at least 64 MiB, so that a quarter holds
/// the longest message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    limit: u64,
    booked: u64,
}

impl Memory {
    /// Memory of `limit` bytes.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { limit, booked: 0 }
    }

    /// Bytes that are booked.
    #[must_use]
    pub const fn booked(&self) -> u64 {
        self.booked
    }

    /// Books up to `wanted` bytes for a window, and says how many: all, or no crumbs.
    fn book_some(&mut self, wanted: u64) -> u64 {
        let free = (self.limit - self.limit / 4).saturating_sub(self.booked);
        let share = (free / 2).max(LEAST_GRANT).min(free);
        let some = if free < wanted.min(LEAST_GRANT) { 0 } else { wanted.min(share) };
        self.booked += some;
        some
    }

    /// Books `wanted` bytes for a message, or none.
    fn book_all(&mut self, wanted: u64) -> bool {
        let fits = self.booked.saturating_add(wanted) <= self.limit;
        if fits {
            self.booked += wanted;
        }
        fits
    }

    fn release(&mut self, bytes: u64) {
        self.booked = self.booked.saturating_sub(bytes);
    }
}

/// The credit of one channel and direction, in bytes.
#[derive(Debug)]
pub struct Credit {
    window: u64,
    top: u64,
    /// Total that the peer may send.
    granted: u64,
    /// Total that is not kept any more: the program took it, or it was given up.
    released: u64,
    /// Total that the peer needs to go on, as far as it said.
    demand: u64,
    /// Whether `granted` is to be said.
    due: bool,
    /// There is to be more of it, and memory had none.
    starved: bool,
    grown_at: Instant,
}

impl Credit {
    /// A window of `window` bytes that may grow to `top`, or what memory has of it. OPEN or ACCEPT
    /// say the first [`Self::granted`].
    #[must_use]
    pub fn new(now: Instant, window: u64, top: u64, memory: &mut Memory) -> Self {
        let granted = memory.book_some(window);
        let top = top.max(window);
        let starved = granted == 0;
        Self { window, top, granted, released: 0, demand: 0, due: false, starved, grown_at: now }
    }

    /// Total in bytes that the peer may send.
    #[must_use]
    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// Whether memory was short when [`Self::poll`] was last asked: it is to be asked again when there
    /// is more.
    pub(super) const fn is_starved(&self) -> bool {
        self.starved
    }

    /// The window in bytes.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Sets the window, at most the largest one. A smaller one takes effect as the program takes
    /// what was granted.
    pub fn set_window(&mut self, window: u64) {
        self.window = window.min(self.top);
    }

    /// The peer says that it cannot go on with less than this total.
    pub(super) fn on_blocked(&mut self, at: u64) {
        self.demand = self.demand.max(at);
    }

    /// So many bytes are not kept any more.
    pub(super) fn release(&mut self, bytes: u64, memory: &mut Memory) {
        let bytes = bytes.min(self.granted - self.released);
        self.released += bytes;
        memory.release(bytes);
    }

    /// Bytes that are granted and not released: what the channel may come to keep.
    pub(super) const fn outstanding(&self) -> u64 {
        self.granted - self.released
    }

    /// The total to be said now, if one is: when half of the window was released, or when the peer
    /// waits for more, memory has it, and of `used` bytes that came none are kept. `rtt` is the
    /// round trip time.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        rtt: Duration,
        used: u64,
        memory: &mut Memory,
    ) -> Option<u64> {
        let room = (self.released + self.window).saturating_sub(self.granted);
        self.starved = false;
        if room > 0 && room >= self.window / 2 {
            if now.saturating_duration_since(self.grown_at) < rtt * 2 {
                self.window = (self.window * 2).min(self.top);
            }
            let wanted = (self.released + self.window).saturating_sub(self.granted);
            let some = memory.book_some(wanted);
            self.granted += some;
            self.starved = some == 0;
            if some > 0 {
                self.grown_at = now;
                self.due = true;
            }
        }
        // While anything is kept, it is the program that the peer waits for.
        let (wanted, idle) = (self.demand.saturating_sub(self.granted), used == self.released);
        let window = self.demand.saturating_sub(self.released);
        if wanted > 0 && idle && window <= self.top {
            if memory.book_all(wanted) {
                self.window = self.window.max(window);
                self.granted += wanted;
                (self.due, self.starved) = (true, false);
            } else {
                self.starved = true;
            }
        }
        std::mem::take(&mut self.due).then_some(self.granted)
    }

    /// The packet that said this total was lost.
    pub(super) fn on_lost(&mut self, limit: u64) {
        self.due |= limit == self.granted;
    }

    /// The channel is over.
    pub(super) fn close(&mut self, memory: &mut Memory) {
        self.release(self.outstanding(), memory);
    }
}

/// The credit of one channel and direction in messages, so that empty ones are bounded too.
#[derive(Debug)]
pub(super) struct Count {
    window: u64,
    pub(super) granted: u64,
    finished: u64,
    due: bool,
}

impl Count {
    pub(super) const fn new(window: u64) -> Self {
        Self { window, granted: window, finished: 0, due: false }
    }

    /// A message is not kept any more.
    pub(super) const fn finish_one(&mut self) {
        self.finished += 1;
    }

    pub(super) fn poll(&mut self) -> Option<u64> {
        if self.finished + self.window - self.granted >= self.window.div_ceil(2) {
            self.granted = self.finished + self.window;
            self.due = true;
        }
        std::mem::take(&mut self.due).then_some(self.granted)
    }

    pub(super) fn on_lost(&mut self, limit: u64) {
        self.due |= limit == self.granted;
    }
}
