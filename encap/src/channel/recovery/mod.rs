//! What became of the packets that were sent on one path to a peer: acknowledged, or lost.
//!
//! Each path has its own packet numbers, so loss on one link is never mixed with another's. As in
//! QUIC (RFC 9002) a number is never used twice: what a lost packet carried is given back and
//! leaves again in another packet. Lateness is judged as in RACK (RFC 8985).
//!
//! 1. `sent`: what is on its way, by number
//! 2. [`rtt`]: how long a round trip takes
//! 3. `reordering`: how late is lost
//! 4. `persistent`: nothing got through for long
//! 5. [`ecn`]: marks, and whether they mean anything
//! 6. [`ranges`], [`ack`]: the receiver's half
//!
//! Next: the congestion controller, which is told what an [`Outcome`] says.

use std::time::{Duration, Instant};

pub mod ack;
pub mod ecn;
mod persistent;
pub mod ranges;
mod reordering;
pub mod rtt;
mod sent;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use ecn::{EcnCheck, EcnCounts};
use persistent::LostRun;
use ranges::{PacketRange, REPORTED};
use reordering::{Cause, Reordering};
use rtt::{LONGEST_ACK_DELAY, RttEstimate};
use sent::Numbered;

/// Most packets between the oldest that is neither acknowledged nor lost and the newest. 94 MB of
/// 1,432-byte packets: 10 Gbit/s over a round trip of 75 ms.
pub const MAX_IN_FLIGHT: usize = 1 << 16;

/// Further packets that are taken for probes when there is no room for others.
const PROBE_RESERVE: usize = 16;

/// Packets declared lost that are remembered, to find out whether they were. Reordering of
/// thousands of packets is to be seen.
pub const MAX_TRACES: usize = 1 << 13;

/// Packets that are sent when nothing is heard (RFC 9002 section 6.2.4).
pub const PROBES: u8 = 2;

/// Longest time between probes because of backoff: the link's heartbeats say whether there is
/// anybody, so a longer silence would only delay what follows it.
const MAX_BACKOFF: Duration = Duration::from_secs(4);

/// Most doublings: 2^10 of the shortest timeout, 1 ms, is near [`MAX_BACKOFF`].
const MAX_DOUBLINGS: u32 = 12;

/// An ACK as it came from the peer.
#[derive(Debug, Clone, Copy)]
pub struct Ack<'a> {
    /// For how long the peer had the packet with the largest number before it sent this.
    pub delay: Duration,
    /// What it has received, largest first, at least one and at most [`REPORTED`] ranges, which
    /// neither touch nor overlap.
    pub ranges: &'a [PacketRange],
    /// Marks that it has counted since the beginning, if it counts any.
    pub ecn: Option<EcnCounts>,
}

/// Why an ACK was not taken. Nothing of it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AckFault {
    /// It acknowledges a packet that was never sent.
    #[error("acknowledges a packet that was never sent")]
    Unsent,
    /// Its ranges are not as [`Ack::ranges`] demands.
    #[error("ranges are none, too many, or out of order")]
    Malformed,
}

/// A packet that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentPacket<T> {
    /// Its number.
    pub number: u64,
    /// When it was sent.
    pub sent: Instant,
    /// Its size, in the unit that the congestion window is counted in.
    pub bytes: u32,
    /// What it carried.
    pub item: T,
}

/// A packet that was declared lost and was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spurious {
    /// Its number.
    pub number: u64,
    /// When it was sent.
    pub sent: Instant,
    /// Its size.
    pub bytes: u32,
}

/// What an ACK or a timeout told. One is kept and filled again and again.
#[derive(Debug, Clone)]
pub struct Outcome<T> {
    /// Packets that arrived, by ascending number.
    pub acked: Vec<SentPacket<T>>,
    /// Packets that count as lost, by ascending number. What they carried has to be sent again.
    pub lost: Vec<SentPacket<T>>,
    /// Packets that arrived although they had been declared lost. What they carried was given back
    /// then, and may be on its way once more.
    pub spurious: Vec<Spurious>,
    /// Bytes of `acked`.
    pub acked_bytes: u64,
    /// Bytes of `lost`.
    pub lost_bytes: u64,
    /// A round trip was measured: its length, ack delay included.
    pub rtt_sample: Option<Duration>,
    /// So many more packets were marked CE on the way.
    pub ce_increase: u64,
    /// The losses are persistent congestion (RFC 9002 section 7.6).
    pub persistent: bool,
    /// Packets to send now, whatever the congestion window says, each asking for an ACK: new data,
    /// else what [`Recovery::unacked`] gives first, else a PING. If another link to the peer is up,
    /// there.
    pub probes: u8,
}

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self {
            acked: Vec::new(),
            lost: Vec::new(),
            spurious: Vec::new(),
            acked_bytes: 0,
            lost_bytes: 0,
            rtt_sample: None,
            ce_increase: 0,
            persistent: false,
            probes: 0,
        }
    }
}

impl<T> Outcome<T> {
    /// Empties it; its memory stays.
    pub fn clear(&mut self) {
        self.acked.clear();
        self.lost.clear();
        self.spurious.clear();
        (self.acked_bytes, self.lost_bytes, self.ce_increase) = (0, 0, 0);
        (self.rtt_sample, self.persistent, self.probes) = (None, false, 0);
    }
}

/// What happened on a path since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets declared lost.
    pub lost: u64,
    /// Packets of these that arrived after all.
    pub spurious: u64,
    /// Timeouts at which probes were sent.
    pub probe_timeouts: u64,
    /// Times that nothing got through for long.
    pub persistent: u64,
    /// ACKs of packets that were never sent.
    pub unsent_acks: u64,
    /// ACKs with impossible ranges.
    pub malformed_acks: u64,
}

#[derive(Debug, Clone)]
struct InFlight<T> {
    sent: Instant,
    bytes: u32,
    ecn_marked: bool,
    item: T,
}

/// What is remembered of a packet that was declared lost.
#[derive(Debug, Clone, Copy)]
struct Trace {
    sent: Instant,
    bytes: u32,
    cause: Cause,
}

/// The sending half of one path. `T` is what a packet carried.
///
/// Ask [`Self::can_send`], number the packet with [`Self::next_number`], and tell
/// [`Self::on_sent`]. Every item taken there comes back once, in [`Outcome::acked`] or in
/// [`Outcome::lost`], from [`Self::on_ack`], [`Self::on_timeout`] or [`Self::abandon`]; come back
/// at [`Self::timeout`].
#[derive(Debug, Clone)]
pub struct Recovery<T> {
    in_flight: Numbered<InFlight<T>>,
    bytes: u64,
    traces: Numbered<Trace>,
    /// One above the largest number sent.
    next: u64,
    largest_acked: Option<u64>,
    last_sent: Option<Instant>,
    rtt: RttEstimate,
    reordering: Reordering,
    run: LostRun,
    ecn: EcnCheck,
    max_ack_delay: Duration,
    /// When the oldest packet is overdue, if a later one was acknowledged.
    loss_time: Option<Instant>,
    /// Since when nothing was sent or heard: the last packet that asks for an ACK, the last ACK
    /// that told something, or the last probe timeout.
    quiet_since: Option<Instant>,
    /// Probe timeouts since anything was heard.
    timeouts: u32,
    counters: Counters,
}

impl<T> Recovery<T> {
    /// Nothing was sent. The peer holds an ACK back for at most `max_ack_delay`, a second or less.
    #[must_use]
    pub fn new(max_ack_delay: Duration) -> Self {
        Self {
            in_flight: Numbered::default(),
            bytes: 0,
            traces: Numbered::default(),
            next: 0,
            largest_acked: None,
            last_sent: None,
            rtt: RttEstimate::new(),
            reordering: Reordering::default(),
            run: LostRun::default(),
            ecn: EcnCheck::default(),
            max_ack_delay: max_ack_delay.min(LONGEST_ACK_DELAY),
            loss_time: None,
            quiet_since: None,
            timeouts: 0,
            counters: Counters::default(),
        }
    }

    /// What the link's heartbeats say of the round trip: smoothed, and its mean deviation. Ignored
    /// once a packet was measured.
    pub fn seed(&mut self, now: Instant, rtt: Duration, var: Duration) {
        self.rtt.seed(now, rtt, var);
    }

    /// The number of the next packet.
    #[must_use]
    pub const fn next_number(&self) -> u64 {
        self.next
    }

    /// Whether there is room for one more packet that asks for an ACK. The congestion window is
    /// another matter.
    #[must_use]
    pub fn can_send(&self) -> bool {
        self.in_flight.span() < MAX_IN_FLIGHT
    }

    /// Bytes of the packets on their way.
    #[must_use]
    pub const fn bytes_in_flight(&self) -> u64 {
        self.bytes
    }

    /// Packets on their way that ask for an ACK.
    #[must_use]
    pub const fn packets_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The round trip.
    #[must_use]
    pub const fn rtt(&self) -> &RttEstimate {
        &self.rtt
    }

    /// Whether packets may be marked ECT(0): not when marks were found not to survive the way.
    #[must_use]
    pub const fn ecn_usable(&self) -> bool {
        !self.ecn.broken
    }

    /// Probe timeouts since anything was heard: from the second on, what is lost here had better
    /// leave by another link.
    #[must_use]
    pub const fn timeouts_in_a_row(&self) -> u32 {
        self.timeouts
    }

    /// What happened since the beginning.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// What was sent and neither acknowledged nor lost, oldest first: what a probe repeats.
    pub fn unacked(&self) -> impl Iterator<Item = (u64, &T)> {
        self.in_flight.iter().map(|(number, packet)| (number, &packet.item))
    }

    /// A packet leaves. Numbers only go up; one may be left out. A packet that does not ask for an
    /// ACK uses up its number and is forgotten, its item with it.
    ///
    /// # Errors
    ///
    /// The item is given back if the number is not above the last one, or there is no room: see
    /// [`Self::can_send`]. Then the packet must not be sent.
    pub fn on_sent(
        &mut self,
        now: Instant,
        number: u64,
        bytes: u32,
        ack_eliciting: bool,
        ecn_marked: bool,
        item: T,
    ) -> Result<(), T> {
        let full = self.in_flight.span() >= MAX_IN_FLIGHT + PROBE_RESERVE;
        if number < self.next || number == u64::MAX || (ack_eliciting && full) {
            return Err(item);
        }
        self.next = number + 1;
        if !ack_eliciting {
            return Ok(());
        }
        // The order of numbers is that of times, whatever the caller's clock does.
        let sent = self.last_sent.map_or(now, |last| last.max(now));
        (self.last_sent, self.quiet_since) = (Some(sent), Some(sent));
        self.bytes += u64::from(bytes);
        self.in_flight.push(number, InFlight { sent, bytes, ecn_marked, item });
        Ok(())
    }

    /// An ACK came. `out` is emptied first.
    ///
    /// # Errors
    ///
    /// An ACK that cannot be true is counted and changes nothing.
    pub fn on_ack(
        &mut self,
        now: Instant,
        ack: &Ack<'_>,
        out: &mut Outcome<T>,
    ) -> Result<(), AckFault> {
        out.clear();
        let largest = self.check(ack)?;
        let grows = self.largest_acked.is_none_or(|known| largest > known);
        self.largest_acked = self.largest_acked.max(Some(largest));
        let marked = self.take_acked(ack, out);
        self.take_spurious(now, ack, out);
        if let Some(newest) = out.acked.last() {
            if newest.number == largest {
                let rtt = now.saturating_duration_since(newest.sent);
                self.rtt.on_sample(now, rtt, ack.delay, self.max_ack_delay);
                out.rtt_sample = Some(rtt);
            }
            self.timeouts = 0;
            self.quiet_since = self.quiet_since.max(Some(now));
        }
        out.ce_increase = self.ecn.on_ack(grows, ack.ecn, marked);
        self.detect_lost(now, out);
        Ok(())
    }

    /// When to call [`Self::on_timeout`].
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        self.loss_time.or_else(|| self.probe_time())
    }

    /// The time of [`Self::timeout`] has come, or not yet: then nothing happens. `out` is emptied
    /// first.
    pub fn on_timeout(&mut self, now: Instant, out: &mut Outcome<T>) {
        out.clear();
        if self.loss_time.is_some() {
            self.detect_lost(now, out);
            return;
        }
        if self.probe_time().is_none_or(|due| due > now) {
            return;
        }
        self.timeouts = self.timeouts.saturating_add(1);
        self.counters.probe_timeouts += 1;
        self.quiet_since = Some(now);
        out.probes = PROBES.min(u8::try_from(self.in_flight.len()).unwrap_or(PROBES));
        // The reserve is for now; later probes need what the oldest packets take.
        while self.in_flight.len() > 0 && !self.can_send() {
            self.lose_first(Cause::Abandoned, out);
        }
    }

    /// The link is down, or another takes over: all that is on its way counts as lost, without
    /// being a sign of congestion. `out` is emptied first.
    pub fn abandon(&mut self, out: &mut Outcome<T>) {
        out.clear();
        while self.in_flight.len() > 0 {
            self.lose_first(Cause::Abandoned, out);
        }
        self.loss_time = None;
        self.timeouts = 0;
    }

    /// The link is heard again: the next probe leaves without the backoff of the silence.
    pub const fn on_link_up(&mut self) {
        self.timeouts = 0;
    }

    /// The largest number, if the ACK can be true.
    fn check(&mut self, ack: &Ack<'_>) -> Result<u64, AckFault> {
        let ordered = ack.ranges.iter().all(|range| range.first <= range.last)
            && ack.ranges.is_sorted_by(|above, below| {
                below.last.checked_add(1).is_some_and(|next| next < above.first)
            });
        let Some(newest) = ack.ranges.first().filter(|_| ordered && ack.ranges.len() <= REPORTED)
        else {
            self.counters.malformed_acks += 1;
            return Err(AckFault::Malformed);
        };
        if newest.last >= self.next {
            self.counters.unsent_acks += 1;
            return Err(AckFault::Unsent);
        }
        Ok(newest.last)
    }

    /// Takes what arrived out of what is on its way. Gives how many of these were marked ECT(0).
    fn take_acked(&mut self, ack: &Ack<'_>, out: &mut Outcome<T>) -> u64 {
        let mut marked = 0;
        for range in ack.ranges.iter().rev() {
            self.in_flight.take(*range, |number, packet| {
                let InFlight { sent, bytes, ecn_marked, item } = packet;
                marked += u64::from(ecn_marked);
                out.acked_bytes += u64::from(bytes);
                out.acked.push(SentPacket { number, sent, bytes, item });
            });
        }
        self.bytes = self.bytes.saturating_sub(out.acked_bytes);
        marked
    }

    /// Finds what had been called lost and arrived after all.
    fn take_spurious(&mut self, now: Instant, ack: &Ack<'_>, out: &mut Outcome<T>) {
        let largest = ack.ranges.first().map_or(0, |range| range.last);
        for range in ack.ranges.iter().rev() {
            self.traces.take(*range, |number, Trace { sent, bytes, cause }| {
                let behind = largest.saturating_sub(number);
                let age = now.saturating_duration_since(sent);
                let (next, rtt) = (self.next, &self.rtt);
                self.reordering.on_spurious(number, cause, behind, age, next, rtt);
                if cause != Cause::Abandoned {
                    self.counters.spurious += 1;
                    out.spurious.push(Spurious { number, sent, bytes });
                }
            });
        }
    }

    /// Declares lost what is too late (RFC 9002 appendix A.10). Numbers and times ascend together,
    /// so the first packet that is not too late ends the search.
    fn detect_lost(&mut self, now: Instant, out: &mut Outcome<T>) {
        self.loss_time = None;
        let Some(largest) = self.largest_acked else { return };
        let delay = self.reordering.delay(&self.rtt);
        while let Some((number, packet)) = self.in_flight.first() {
            if number > largest {
                return;
            }
            let overdue = packet.sent + delay;
            let behind = self.reordering.packets().is_some_and(|limit| largest - number >= limit);
            if !behind && overdue > now {
                self.loss_time = Some(overdue);
                return;
            }
            self.lose_first(if behind { Cause::Packets } else { Cause::Time }, out);
        }
    }

    /// Declares the oldest packet lost.
    fn lose_first(&mut self, cause: Cause, out: &mut Outcome<T>) {
        let Some((position, number, packet)) = self.in_flight.pop_first() else { return };
        let InFlight { sent, bytes, item, .. } = packet;
        if cause != Cause::Abandoned {
            self.reordering.on_lost(number, self.next);
            let span = persistent::span(self.rtt.pto(self.max_ack_delay));
            if self.run.on_lost(position, sent, self.rtt.known_since(), span) {
                self.counters.persistent += 1;
                out.persistent = true;
                self.rtt.forget_min();
            }
        }
        if self.traces.span() >= MAX_TRACES {
            self.traces.pop_first();
        }
        self.traces.push(number, Trace { sent, bytes, cause });
        self.counters.lost += 1;
        self.bytes = self.bytes.saturating_sub(u64::from(bytes));
        out.lost_bytes += u64::from(bytes);
        out.lost.push(SentPacket { number, sent, bytes, item });
    }

    /// When probes are sent: a timeout after the last sign of anything, twice as long for each
    /// timeout before it (RFC 9002 section 6.2).
    fn probe_time(&self) -> Option<Instant> {
        if self.in_flight.len() == 0 {
            return None;
        }
        let pto = self.rtt.pto(self.max_ack_delay);
        let backoff = pto.saturating_mul(1 << self.timeouts.min(MAX_DOUBLINGS));
        self.quiet_since.map(|since| since + backoff.min(MAX_BACKOFF.max(pto)))
    }
}
