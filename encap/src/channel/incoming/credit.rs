//! Flow control: how much a peer may send.
//!
//! Credit is a total since the beginning. It is the sum of what the program took and of a window.
//! The window doubles as long as a half of it is used within two round trips, since then it is the
//! window that holds the sender up. In the beginning a quarter suffices: a sender in slow start doubles
//! what it has on its way each round trip, and credit that does the same would always be a little
//! behind it. A message that is larger than the window gets its credit when the sender asks by BLOCKED
//! and the program has taken all that came before.
//!
//! Credit that was given is the sender's until it gives it back: RECALL asks for that when memory is
//! short and a channel was idle, and RETURN answers. A peer may not answer, so what idle channels
//! hold is bounded beforehand, too. [`GUARANTEED`] bytes of memory are set aside for each
//! channel as long as it lives: whatever others hold, it goes on. All that windows have beyond that
//! comes from a share of memory that leaves room for the guarantees of others. Promising more than
//! there is and dropping what does not fit would need less, but a packet carries what is of several
//! channels, and one that nobody reads would hold up the others.

use std::time::{Duration, Instant};

use super::Fault;

/// Largest first window in bytes of a channel of messages, if memory has it.
pub const START_WINDOW: u64 = 1 << 20;
/// Largest window in bytes. The longest message fits, as it must.
pub const TOP_WINDOW: u64 = 64 << 20;
/// Bytes of memory that are set aside for each channel: about what a sender may have on its way
/// when it begins (RFC 9002 section 7.2), so that a small window costs it no round trip.
pub const GUARANTEED: u64 = 16 << 10;

const _: () = assert!(TOP_WINDOW >= crate::wire::channel::MAX_MESSAGE_LEN as u64);

/// Smallest grant in bytes that memory is asked for when it is short: with less, a sender would cut
/// its data into crumbs.
const LEAST_GRANT: u64 = 16 << 10;

/// Looks after which a channel whose sender kept idle credit is asked for it once more.
const ASK_AGAIN: u32 = 8;

/// Memory that credit may be given for, by all channels that share it: those of a peer, or of the
/// node. What is given and was not yet taken by a program is booked here, whether it came or not,
/// and so is what is set aside.
///
/// - Three quarters are for windows. What is set aside may take all of that, and at least a quarter
///   of the limit is kept for it, so that [`Self::channels`] have theirs whatever others hold.
/// - Windows have two thirds of what is not set aside. None gets more than a half of what is free,
///   so that one that is never read leaves some for others, and first windows, of which nobody
///   knows that they will be used, leave a half of it.
/// - The last quarter is for large messages only: these are begun by their sender when they have
///   all the credit that they need, and so do not wait for each other, whereas windows that nobody
///   uses could hold all of it for ever. The limit is to be at least 64 MiB, so that a quarter holds
///   the longest message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    limit: u64,
    /// Bytes that are set aside.
    reserved: u64,
    /// Bytes that are booked beyond that.
    grown: u64,
    /// Times that there was less than a window wanted.
    limited: u64,
    /// Bytes of credit that senders gave back.
    returned: u64,
}

impl Memory {
    /// Memory of `limit` bytes.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { limit, reserved: 0, grown: 0, limited: 0, returned: 0 }
    }

    /// Bytes that are booked.
    #[must_use]
    pub const fn booked(&self) -> u64 {
        self.reserved + self.grown
    }

    /// Times that a window got less than it wanted, or a channel nothing.
    #[must_use]
    pub const fn limited(&self) -> u64 {
        self.limited
    }

    /// Bytes of credit that senders gave back when they were asked to.
    #[must_use]
    pub const fn returned(&self) -> u64 {
        self.returned
    }

    /// Whether windows hold so much that those that are idle are to give theirs back.
    #[must_use]
    pub const fn is_short(&self) -> bool {
        self.grown > self.for_growth() / 2
    }

    /// How many channels have [`GUARANTEED`] bytes each, whatever windows hold.
    #[must_use]
    pub const fn channels(&self) -> u64 {
        self.limit / 4 / GUARANTEED
    }

    const fn for_windows(&self) -> u64 {
        self.limit - self.limit / 4
    }

    /// Bytes that are kept for what is still to be set aside.
    const fn kept(&self) -> u64 {
        (self.limit / 4).saturating_sub(self.reserved)
    }

    /// Bytes that windows may have in all.
    const fn for_growth(&self) -> u64 {
        self.for_windows().saturating_sub(self.reserved) / 3 * 2
    }

    /// Sets `len` bytes aside, or none.
    fn reserve(&mut self, len: u64) -> bool {
        let fits = len <= self.kept() || self.booked().saturating_add(len) <= self.for_windows();
        if fits {
            self.reserved += len;
        }
        fits
    }

    /// Books up to `wanted` bytes for a first window, and says how many: all, or no crumbs.
    fn book_first(&mut self, wanted: u64) -> u64 {
        self.book_below(self.for_growth() / 2, wanted)
    }

    /// Books up to `wanted` bytes for a window, and says how many: all, or no crumbs.
    pub(super) fn book_some(&mut self, wanted: u64) -> u64 {
        self.book_below(self.for_growth(), wanted)
    }

    fn book_below(&mut self, limit: u64, wanted: u64) -> u64 {
        let unbooked = self.for_windows().saturating_sub(self.booked());
        let free = limit.saturating_sub(self.grown).min(unbooked);
        let share = (free / 2).max(LEAST_GRANT).min(free);
        let some = if free < wanted.min(LEAST_GRANT) { 0 } else { wanted.min(share) };
        self.grown += some;
        self.limited += u64::from(some < wanted);
        some
    }

    /// Books `wanted` bytes for a message, or none.
    fn book_all(&mut self, wanted: u64) -> bool {
        let booked = self.booked() + self.kept();
        let fits = booked.saturating_add(wanted) <= self.limit;
        if fits {
            self.grown += wanted;
        }
        fits
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.grown = self.grown.saturating_sub(bytes);
    }
}

/// The credit of one channel and direction, in bytes.
#[derive(Debug)]
pub struct Credit {
    window: u64,
    top: u64,
    /// Bytes to be set aside: [`GUARANTEED`], or all of a smaller first window.
    sure: u64,
    /// They are.
    reserved: bool,
    /// Total that the peer may send.
    granted: u64,
    /// Total that is not kept any more: the program took it, or it was given up.
    released: u64,
    /// Total that the peer gave back: it is never sent.
    returned: u64,
    /// What had come when the channel was last looked at.
    looked: Option<u64>,
    /// What was granted and had come when credit was last asked back.
    asked: Option<(u64, u64)>,
    /// Looks since then.
    looks: u32,
    /// Whether that is to be said.
    recall: bool,
    /// Total that the peer needs to go on, as it said last.
    demand: u64,
    /// Which of its needs that was.
    demands: u64,
    /// Whether `granted` is to be said.
    due: bool,
    /// There is to be more of it, and memory had none.
    starved: bool,
    phase: Phase,
    /// When more was last granted, or the first of it was used.
    grown_at: Instant,
}

/// How far the use of a credit has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing came.
    Unused,
    /// It was used so fast ever since that the sender may be in slow start.
    Begins,
    /// It was not, at least once.
    Steady,
}

impl Credit {
    /// A window of `window` bytes that may grow to `top`, or what memory has of it. OPEN or ACCEPT
    /// say the first [`Self::granted`].
    #[must_use]
    pub fn new(now: Instant, window: u64, top: u64, memory: &mut Memory) -> Self {
        let (top, sure) = (top.max(window), window.min(GUARANTEED));
        let mut credit = Self {
            window: sure,
            top,
            sure,
            reserved: false,
            granted: 0,
            released: 0,
            returned: 0,
            looked: None,
            asked: None,
            looks: 0,
            recall: false,
            demand: 0,
            demands: 0,
            due: false,
            starved: false,
            phase: Phase::Unused,
            grown_at: now,
        };
        if credit.reserve(memory) {
            credit.granted = sure + memory.book_first(window - sure);
            credit.window = credit.granted;
        }
        credit
    }

    /// Has memory set aside if it was not; says whether it is.
    fn reserve(&mut self, memory: &mut Memory) -> bool {
        if !self.reserved {
            let before = self.beyond(0);
            self.reserved = memory.reserve(self.sure);
            // What was granted meanwhile, for a large message, is covered by it now.
            memory.release(before - self.beyond(0));
            memory.limited += u64::from(!self.reserved && !self.starved);
        }
        self.starved = !self.reserved;
        self.reserved
    }

    /// Total in bytes that was granted, as OPEN, ACCEPT and MAX_DATA say it.
    #[must_use]
    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// Total in bytes that the peer may send: without what it gave back.
    pub(super) const fn limit(&self) -> u64 {
        self.granted - self.returned
    }

    /// Looks whether the channel is idle, of which `used` bytes came: it is if fewer came since it was
    /// last looked at than are set aside for it. Says whether credit is to be asked back.
    pub(super) fn look(&mut self, used: u64) -> bool {
        let before = self.looked.replace(used);
        let idle = before.is_some_and(|before| used.saturating_sub(before) < GUARANTEED);
        let unused = self.limit().saturating_sub(used);
        let now = Some((self.granted, used));
        self.looks = self.looks.saturating_add(1);
        // One that has use for it is not asked all the time; but the question may have come before
        // the credit did, or the use may have ended.
        let again = self.asked != now || self.looks >= ASK_AGAIN;
        if idle && unused > GUARANTEED && again {
            (self.asked, self.recall, self.looks) = (now, true, 0);
        }
        self.recall
    }

    /// Whether it is to be said that credit is asked back.
    pub(super) fn take_recall(&mut self) -> bool {
        std::mem::take(&mut self.recall)
    }

    /// The packet that asked for credit was lost.
    pub(super) fn on_recall_lost(&mut self) {
        self.recall = self.asked.is_some_and(|(granted, _)| granted == self.granted);
    }

    /// The peer gives back so many bytes since the beginning, and has sent `used`. The window is
    /// what it kept, and grows again when it is used.
    pub(super) fn on_return(
        &mut self,
        total: u64,
        used: u64,
        memory: &mut Memory,
    ) -> Result<(), Fault> {
        if total > self.granted.saturating_sub(used) {
            return Err(Fault::BeyondCredit);
        }
        let bytes = total.saturating_sub(self.returned);
        let before = self.beyond(0);
        self.returned += bytes;
        memory.release(before - self.beyond(0));
        memory.returned += bytes;
        self.window = self.window.saturating_sub(bytes).max(self.sure);
        Ok(())
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

    /// The peer says that it cannot go on with less than this total; `number` counts its needs. One
    /// that was overtaken on its way is over: links differ, and so do packet numbers on them.
    pub(super) const fn on_blocked(&mut self, number: u64, at: u64) {
        if number > self.demands {
            (self.demands, self.demand) = (number, at);
        }
    }

    /// So many bytes are not kept any more.
    pub(super) fn release(&mut self, bytes: u64, memory: &mut Memory) {
        let bytes = bytes.min(self.outstanding());
        let before = self.beyond(0);
        self.released += bytes;
        memory.release(before - self.beyond(0));
    }

    /// Bytes that are granted and neither released nor given back: what the channel may come to keep.
    pub(super) const fn outstanding(&self) -> u64 {
        self.granted - self.released - self.returned
    }

    /// Bytes that are booked beyond what is set aside once `more` are granted.
    const fn beyond(&self, more: u64) -> u64 {
        let sure = if self.reserved { self.sure } else { 0 };
        (self.outstanding() + more).saturating_sub(sure)
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
        if used > 0 && self.phase == Phase::Unused {
            (self.phase, self.grown_at) = (Phase::Begins, now);
        }
        if self.reserve(memory) {
            self.extend(now, rtt, memory);
        }
        // While anything is kept, it is the program that the peer waits for.
        let (wanted, idle) = (self.demand.saturating_sub(self.granted), used == self.released);
        let window = self.demand.saturating_sub(self.released + self.returned);
        if wanted > 0 && idle && window <= self.top {
            if memory.book_all(self.beyond(wanted) - self.beyond(0)) {
                self.window = self.window.max(window);
                self.granted += wanted;
                (self.due, self.starved) = (true, false);
            } else {
                self.starved = true;
            }
        }
        std::mem::take(&mut self.due).then_some(self.granted)
    }

    /// Grants what the window has room for, when that is half of it, or a quarter in the beginning.
    fn extend(&mut self, now: Instant, rtt: Duration, memory: &mut Memory) {
        let room = self.window.saturating_sub(self.outstanding());
        let soon = now.saturating_duration_since(self.grown_at) < rtt * 2;
        if !soon && self.phase == Phase::Begins {
            self.phase = Phase::Steady;
        }
        let begins = self.phase != Phase::Steady && !memory.is_short();
        if room == 0 || room < self.window / if begins { 4 } else { 2 } {
            return;
        }
        if soon {
            self.window = (self.window * 2).min(self.top);
        }
        let wanted = self.window.saturating_sub(self.outstanding());
        let beyond = self.beyond(wanted) - self.beyond(0);
        let some = wanted - beyond + memory.book_some(beyond);
        self.granted += some;
        if some < wanted {
            // As much as there is: else each byte that is taken would be granted by itself.
            self.window = self.outstanding().max(self.sure);
        }
        if some > 0 {
            self.grown_at = now;
            self.due = true;
        }
    }

    /// The packet that said this total was lost.
    pub(super) fn on_lost(&mut self, limit: u64) {
        self.due |= limit == self.granted;
    }

    /// The channel is over.
    pub(in crate::channel) fn close(&mut self, memory: &mut Memory) {
        self.release(self.outstanding(), memory);
        if std::mem::take(&mut self.reserved) {
            memory.reserved = memory.reserved.saturating_sub(self.sure);
        }
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
