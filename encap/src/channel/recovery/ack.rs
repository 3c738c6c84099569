//! When the receiver sends an ACK (RFC 9000 section 13.2).
//!
//! At once for a gap, for a packet that others overtook, and for a congestion mark. Otherwise after
//! two packets that ask for an ACK, when the burst that was received ends ([`AckSchedule::flush`]),
//! or when the oldest of them has waited for long enough. An ACK alone never asks for one.
//!
//! Next: `wire::channel`, which writes what [`AckSchedule::poll_ack`] gives.

use std::time::{Duration, Instant};

use super::ecn::EcnCounts;
use super::ranges::{AckRanges, PacketRange, Receipt};
use super::rtt::LONGEST_ACK_DELAY;

/// How long an ACK is held back at most where nothing else is agreed: a LAN's value.
pub const MAX_ACK_DELAY: Duration = Duration::from_millis(1);

/// Packets that ask for an ACK until one is sent, where nothing else is agreed (RFC 9000 section
/// 13.2.2).
pub const ACK_EVERY: u32 = 2;

/// The head of an ACK; its ranges are written into the caller's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckHead {
    /// For how long the packet with the largest number has been here.
    pub delay: Duration,
    /// Marks counted, unless none was ever seen.
    pub ecn: Option<EcnCounts>,
    /// For [`AckSchedule::on_ack_heard`], when the packet with this ACK is acknowledged itself.
    pub serial: u64,
}

/// The receiving half of a path: what came, and when to say so.
///
/// After [`Self::on_received`] ask [`Self::poll_ack`]; when a burst has been read, call
/// [`Self::flush`] and ask again; come back at [`Self::timeout`]. When a packet leaves anyway,
/// [`Self::take_ack`] gives it what there is to report.
#[derive(Debug, Clone)]
pub struct AckSchedule {
    received: AckRanges,
    ecn: EcnCounts,
    max_delay: Duration,
    every: u32,
    /// When the packet with the largest number came.
    largest_at: Option<Instant>,
    /// Packets since the last ACK that ask for one.
    pending: u32,
    /// When the oldest of them has waited for long enough.
    due: Option<Instant>,
    /// Do not wait.
    urgent: bool,
}

impl Default for AckSchedule {
    fn default() -> Self {
        Self::new(MAX_ACK_DELAY)
    }
}

impl AckSchedule {
    /// Nothing has come. No ACK is held back for longer than `max_delay`, a second or less.
    #[must_use]
    pub fn new(max_delay: Duration) -> Self {
        Self {
            received: AckRanges::new(),
            ecn: EcnCounts::default(),
            max_delay: max_delay.min(LONGEST_ACK_DELAY),
            every: ACK_EVERY,
            largest_at: None,
            pending: 0,
            due: None,
            urgent: false,
        }
    }

    /// An ACK after so many packets that ask for one, at least 1: what a fast peer asks for.
    pub fn set_every(&mut self, packets: u32) {
        self.every = packets.max(1);
    }

    /// What came.
    #[must_use]
    pub const fn received(&self) -> &AckRanges {
        &self.received
    }

    /// A packet was opened. `ecn` are the two ECN bits of its outer header. What is not
    /// [`Receipt::Fresh`] must be dropped: it was here before, or will come again under another
    /// number.
    pub fn on_received(
        &mut self,
        now: Instant,
        number: u64,
        ack_eliciting: bool,
        ecn: u8,
    ) -> Receipt {
        let expected = self.received.largest().map_or(0, |largest| largest.saturating_add(1));
        let receipt = self.received.insert(number);
        if receipt != Receipt::Fresh {
            return receipt;
        }
        if number >= expected {
            self.largest_at = Some(now);
        }
        let marked = self.ecn.on_received(ecn);
        if ack_eliciting {
            self.pending = self.pending.saturating_add(1);
            self.due = self.due.or(Some(now + self.max_delay));
            self.urgent |= number != expected || marked || self.pending >= self.every;
        }
        receipt
    }

    /// The burst that was received has ended: what is pending is reported without waiting for more.
    /// A caller that would rather spare an ACK per lonely packet leaves this out.
    pub const fn flush(&mut self) {
        self.urgent |= self.pending > 0;
    }

    /// When to call [`Self::poll_ack`] at the latest: the moment of [`Self::on_received`] itself if
    /// an ACK is due.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        if self.urgent { self.largest_at } else { self.due }
    }

    /// The ACK that has to leave now, if any. Its ranges are written into `ranges`, largest first.
    pub fn poll_ack(&mut self, now: Instant, ranges: &mut Vec<PacketRange>) -> Option<AckHead> {
        let due = self.urgent || self.due.is_some_and(|due| due <= now);
        if due { self.take_ack(now, ranges) } else { None }
    }

    /// The ACK for a packet that leaves anyway, if a packet that asks for one is pending.
    pub fn take_ack(&mut self, now: Instant, ranges: &mut Vec<PacketRange>) -> Option<AckHead> {
        if self.pending == 0 {
            return None;
        }
        (self.pending, self.due, self.urgent) = (0, None, false);
        let serial = self.received.report(ranges);
        let delay = self.largest_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let ecn = Some(self.ecn).filter(|ecn| *ecn != EcnCounts::default());
        Some(AckHead { delay, ecn, serial })
    }

    /// The peer has acknowledged a packet with the ACK of this serial number: what that reported is
    /// not repeated. Of several, the newest is enough.
    pub fn on_ack_heard(&mut self, serial: u64) {
        self.received.on_report_heard(serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// Receives numbers in a row and says after which of them an ACK was due at once.
    fn acked_after(schedule: &mut AckSchedule, now: Instant, numbers: &[u64]) -> Vec<u64> {
        let mut ranges = Vec::new();
        let mut after = Vec::new();
        for number in numbers {
            assert_eq!(schedule.on_received(now, *number, true, 0), Receipt::Fresh);
            if schedule.poll_ack(now, &mut ranges).is_some() {
                after.push(*number);
            }
        }
        after
    }

    #[test]
    fn every_second_packet_and_every_disorder() {
        let now = Instant::now();
        let mut schedule = AckSchedule::default();
        assert_eq!(acked_after(&mut schedule, now, &[0, 1, 2, 3, 4]), [1, 3]);
        // A gap, one that fills it, and then in turn again.
        assert_eq!(acked_after(&mut schedule, now, &[7, 5, 8, 9, 10, 6]), [7, 5, 9, 6]);
        schedule.set_every(4);
        assert_eq!(acked_after(&mut schedule, now, &[11, 12, 13, 14, 15]), [14]);
        assert_eq!(schedule.on_received(now, 15, true, 0), Receipt::Duplicate);
        assert_eq!(acked_after(&mut AckSchedule::default(), now, &[3]), [3]);
    }

    #[test]
    fn one_packet_waits_for_the_delay_or_the_end_of_the_burst() {
        let now = Instant::now();
        let mut ranges = Vec::new();
        let mut schedule = AckSchedule::new(US * 1_000);
        schedule.flush();
        assert_eq!((schedule.poll_ack(now, &mut ranges), schedule.timeout()), (None, None));
        schedule.on_received(now, 0, true, 0);
        assert_eq!(schedule.timeout(), Some(now + US * 1_000));
        assert_eq!(schedule.poll_ack(now + US * 999, &mut ranges), None);
        let head = schedule.poll_ack(now + US * 1_000, &mut ranges).unwrap();
        assert_eq!((head.delay, head.ecn, schedule.timeout()), (US * 1_000, None, None));
        assert_eq!(ranges, [PacketRange { first: 0, last: 0 }]);
        schedule.on_received(now, 1, true, 0);
        schedule.flush();
        assert!(schedule.timeout().is_some_and(|at| at <= now));
        assert!(schedule.poll_ack(now, &mut ranges).is_some());
        assert_eq!(ranges, [PacketRange { first: 0, last: 1 }]);
    }

    /// The round trip is that of the largest number, so its wait is what is taken off.
    #[test]
    fn the_delay_is_that_of_the_largest_number() {
        let now = Instant::now();
        let mut ranges = Vec::new();
        let mut schedule = AckSchedule::default();
        schedule.on_received(now, 5, true, 0);
        schedule.on_received(now + US * 300, 3, true, 0);
        let head = schedule.poll_ack(now + US * 310, &mut ranges).unwrap();
        assert_eq!(head.delay, US * 310);
    }

    #[test]
    fn what_asks_for_nothing_gets_nothing() {
        let now = Instant::now();
        let mut ranges = Vec::new();
        let mut schedule = AckSchedule::default();
        for number in [0, 1, 5, 3] {
            schedule.on_received(now, number, false, 3);
            schedule.flush();
            assert_eq!(schedule.poll_ack(now, &mut ranges), None);
            assert_eq!((schedule.take_ack(now, &mut ranges), schedule.timeout()), (None, None));
        }
        // It is reported with the next that does.
        schedule.on_received(now, 6, true, 0);
        let head = schedule.take_ack(now + US, &mut ranges).unwrap();
        assert_eq!((ranges.len(), head.ecn.map(|ecn| ecn.ce)), (3, Some(4)));
        assert_eq!(head.delay, US);
        schedule.on_ack_heard(head.serial);
        schedule.on_received(now, 7, true, 0);
        schedule.take_ack(now, &mut ranges).unwrap();
        assert_eq!(ranges, [PacketRange { first: 5, last: 7 }]);
    }

    #[test]
    fn a_congestion_mark_is_reported_at_once() {
        let now = Instant::now();
        let mut ranges = Vec::new();
        let mut schedule = AckSchedule::default();
        schedule.on_received(now, 0, true, 2);
        assert_eq!(schedule.poll_ack(now, &mut ranges), None);
        schedule.on_received(now, 1, true, 2);
        assert!(schedule.poll_ack(now, &mut ranges).is_some());
        schedule.on_received(now, 2, true, 3);
        let head = schedule.poll_ack(now, &mut ranges).unwrap();
        assert_eq!(head.ecn, Some(EcnCounts { ect0: 2, ect1: 0, ce: 1 }));
    }
}
