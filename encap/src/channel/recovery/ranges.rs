//! Which packets of a path have come: the receiver's memory of packet numbers.
//!
//! It tells copies from new packets, and says what the next ACK reports. Memory is bounded: the
//! oldest ranges are forgotten, and what lies below counts as received, though it is never reported
//! again.
//!
//! An ACK has room for [`REPORTED`] ranges. The largest is always among them, then those that no
//! ACK has told of since they changed, then those that the peer is not known to have heard of. So a
//! packet that was late by thousands is reported even where there are more gaps than room.
//!
//! Next: [`super::ack`], which says when an ACK is sent.

use std::collections::VecDeque;

/// Most ranges in one ACK: with a gap and a length each, below 200 bytes in the usual case.
pub const REPORTED: usize = 32;

/// Most ranges that are remembered, 32 KiB. At 30 % random loss a range is 3.3 packets of the
/// sender long, so this tells copies apart over the last 4,800 packets.
pub const KEPT: usize = 1_024;

/// Packet numbers without a gap, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketRange {
    /// The smallest number.
    pub first: u64,
    /// The largest number, not below `first`.
    pub last: u64,
}

impl PacketRange {
    /// Whether the number lies in it.
    #[must_use]
    pub const fn contains(self, number: u64) -> bool {
        self.first <= number && number <= self.last
    }
}

/// What a packet number is when it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// Not seen.
    Fresh,
    /// Seen.
    Duplicate,
    /// Below what is remembered: counts as seen.
    TooOld,
}

/// What the peer has been told of a range since it last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    /// It was in the report with this serial number first.
    In(u64),
    /// It has heard of it.
    Heard,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    range: PacketRange,
    told: Told,
}

/// The packet numbers received on one path.
#[derive(Debug, Clone, Default)]
pub struct AckRanges {
    /// Ascending, with at least one missing number between two.
    entries: VecDeque<Entry>,
    /// Numbers below count as received.
    floor: u64,
    /// Serial number of the next report.
    serial: u64,
}

impl AckRanges {
    /// Nothing has come.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The largest number received.
    #[must_use]
    pub fn largest(&self) -> Option<u64> {
        self.entries.back().map(|entry| entry.range.last)
    }

    /// The smallest number that is remembered: those below count as received.
    #[must_use]
    pub const fn floor(&self) -> u64 {
        self.floor
    }

    /// Ranges that are remembered, at most [`KEPT`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no number is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All ranges, largest first.
    pub fn iter(&self) -> impl Iterator<Item = PacketRange> {
        self.entries.iter().rev().map(|entry| entry.range)
    }

    /// The number whose low 32 bits these are, the one nearest to what is expected next
    /// (RFC 9000 section 17.1 and appendix A.3).
    #[must_use]
    pub fn expand(&self, low: u32) -> u64 {
        const SPAN: u64 = 1 << 32;
        let expected = self.largest().map_or(0, |largest| largest.saturating_add(1));
        let near = (expected & !(SPAN - 1)) | u64::from(low);
        if near < expected && expected - near > SPAN / 2 {
            return near.checked_add(SPAN).unwrap_or(near);
        }
        if near > expected && near - expected >= SPAN / 2 && near >= SPAN {
            return near - SPAN;
        }
        near
    }

    /// What [`Self::insert`] would say; changes nothing.
    #[must_use]
    pub fn check(&self, number: u64) -> Receipt {
        if number < self.floor {
            return Receipt::TooOld;
        }
        let index = self.entries.partition_point(|entry| entry.range.last < number);
        match self.entries.get(index) {
            Some(entry) if entry.range.first <= number => Receipt::Duplicate,
            // It would have to push itself out.
            _ if index == 0 && self.is_full() && !self.touches_next(0, number) => Receipt::TooOld,
            _ => Receipt::Fresh,
        }
    }

    /// Notes a number; [`Receipt::Fresh`] at most once for each.
    pub fn insert(&mut self, number: u64) -> Receipt {
        let receipt = self.check(number);
        if receipt != Receipt::Fresh {
            return receipt;
        }
        // The first range above the number.
        let index = self.entries.partition_point(|entry| entry.range.last < number);
        let before = index.checked_sub(1).filter(|before| {
            let entry = self.entries.get(*before);
            entry.is_some_and(|entry| entry.range.last.checked_add(1) == Some(number))
        });
        let mut range = PacketRange { first: number, last: number };
        let joins_next = self.touches_next(index, number);
        if joins_next && let Some(next) = self.entries.get(index) {
            range.last = next.range.last;
        }
        if let Some(before) = before.and_then(|before| self.entries.get(before)) {
            range.first = before.range.first;
        }
        let entry = Entry { range, told: Told::Nothing };
        match (before, joins_next) {
            (Some(before), true) => {
                self.entries.remove(index);
                self.put(before, entry);
            }
            (Some(before), false) => self.put(before, entry),
            (None, true) => self.put(index, entry),
            (None, false) => self.entries.insert(index, entry),
        }
        if self.entries.len() > KEPT
            && let Some(oldest) = self.entries.pop_front()
        {
            self.floor = oldest.range.last.saturating_add(1);
        }
        Receipt::Fresh
    }

    /// Writes into `out` what an ACK reports, largest first, at most [`REPORTED`] ranges. Gives the
    /// serial number of the report, for [`Self::on_report_heard`].
    pub fn report(&mut self, out: &mut Vec<PacketRange>) -> u64 {
        out.clear();
        let serial = self.serial;
        self.serial += 1;
        let untold = self.entries.iter().filter(|entry| entry.told == Told::Nothing).count();
        // The largest is there whatever is known of it.
        let mut spare = REPORTED.saturating_sub(untold).max(1);
        for entry in self.entries.iter_mut().rev() {
            if out.len() >= REPORTED {
                break;
            }
            match entry.told {
                Told::Nothing => entry.told = Told::In(serial),
                Told::Heard if !out.is_empty() => continue,
                _ if spare == 0 => continue,
                _ => spare -= 1,
            }
            out.push(entry.range);
        }
        serial
    }

    /// The peer has the report with this serial number, or a newer one. What was told by then is
    /// not repeated. (A range that had no room in that report, though in an earlier one, may be
    /// among it: at worst, a packet is sent twice.)
    pub fn on_report_heard(&mut self, serial: u64) {
        for entry in &mut self.entries {
            if matches!(entry.told, Told::In(first) if first <= serial) {
                entry.told = Told::Heard;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= KEPT
    }

    /// Whether the range at `index` begins right above the number.
    fn touches_next(&self, index: usize, number: u64) -> bool {
        let first = self.entries.get(index).map(|entry| entry.range.first);
        first.is_some() && first == number.checked_add(1)
    }

    fn put(&mut self, index: usize, entry: Entry) {
        if let Some(place) = self.entries.get_mut(index) {
            *place = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(first: u64, last: u64) -> PacketRange {
        PacketRange { first, last }
    }

    fn of(numbers: impl IntoIterator<Item = u64>) -> AckRanges {
        let mut ranges = AckRanges::new();
        numbers.into_iter().for_each(|number| _ = ranges.insert(number));
        ranges
    }

    #[test]
    fn ranges_grow_meet_and_stay_apart() {
        let mut ranges = of([5, 7, 9, 8, 0, u64::MAX]);
        let shown: Vec<_> = ranges.iter().collect();
        assert_eq!(shown, [range(u64::MAX, u64::MAX), range(7, 9), range(5, 5), range(0, 0)]);
        assert_eq!(ranges.insert(6), Receipt::Fresh);
        assert_eq!(ranges.insert(u64::MAX), Receipt::Duplicate);
        assert_eq!(ranges.insert(u64::MAX - 1), Receipt::Fresh);
        let shown: Vec<_> = ranges.iter().collect();
        assert_eq!(shown, [range(u64::MAX - 1, u64::MAX), range(5, 9), range(0, 0)]);
    }

    #[test]
    fn the_oldest_are_forgotten_and_count_as_received() {
        let mut ranges = of((0..KEPT as u64).map(|index| 10 + index * 2));
        assert_eq!((ranges.len(), ranges.floor()), (KEPT, 0));
        // A new oldest range would push itself out; a number that joins one does not.
        assert_eq!(ranges.check(3), Receipt::TooOld);
        assert_eq!(ranges.insert(3), Receipt::TooOld);
        assert_eq!(ranges.insert(9), Receipt::Fresh);
        assert_eq!(ranges.insert(10_000), Receipt::Fresh);
        assert_eq!((ranges.len(), ranges.floor()), (KEPT, 11));
        assert_eq!(ranges.insert(9), Receipt::TooOld);
        assert_eq!(ranges.insert(11), Receipt::Fresh);
    }

    #[test]
    fn a_late_packet_is_reported_behind_any_number_of_gaps() {
        let mut ranges = of((0..500).map(|index| index * 3));
        let mut told = Vec::new();
        (0..40).for_each(|_| _ = ranges.report(&mut told));
        assert_eq!((told.len(), told[0], told[31]), (32, range(1_497, 1_497), range(1_404, 1_404)));
        ranges.insert(31);
        ranges.report(&mut told);
        assert_eq!((told.len(), told[0], told[31]), (32, range(1_497, 1_497), range(30, 31)));
        assert!(told.is_sorted_by(|a, b| a.first > b.last));
    }

    #[test]
    fn what_was_heard_is_not_repeated() {
        let mut ranges = of([1, 3, 5]);
        let mut told = Vec::new();
        let first = ranges.report(&mut told);
        ranges.insert(7);
        ranges.report(&mut told);
        assert_eq!(told.len(), 4);
        ranges.on_report_heard(first);
        ranges.report(&mut told);
        assert_eq!(told, [range(7, 7)]);
        ranges.insert(4);
        ranges.report(&mut told);
        assert_eq!(told, [range(7, 7), range(3, 5)]);
        ranges.on_report_heard(u64::MAX);
        // The largest is there in any case.
        ranges.report(&mut told);
        assert_eq!(told, [range(7, 7)]);
    }

    #[test]
    fn numbers_are_expanded_around_the_expected_one() {
        assert_eq!(AckRanges::new().expand(7), 7);
        assert_eq!(AckRanges::new().expand(u32::MAX), u64::from(u32::MAX));
        let span = 1_u64 << 32;
        assert_eq!(of([span * 3 - 2]).expand(0), span * 3);
        assert_eq!(of([span * 3 + 2]).expand(u32::MAX), span * 3 - 1);
        assert_eq!(of([span * 3 + 2]).expand(3), span * 3 + 3);
        // RFC 9000 appendix A.3, with 32 bits.
        assert_eq!(of([0xa82f_30ea]).expand(0xa82f_9b32), 0xa82f_9b32);
        assert_eq!(of([u64::MAX]).expand(5), (u64::MAX - 0xffff_ffff) + 5);
    }

    proptest! {
        #[test]
        fn expands_what_is_near(largest in any::<u64>(), off in -(1_i64 << 31)..1 << 31) {
            let expected = largest.saturating_add(1);
            if let Some(number) = expected.checked_add_signed(off) {
                prop_assert_eq!(of([largest]).expand(number as u32), number);
            }
        }

        #[test]
        fn equals_a_set(
            start in prop_oneof![Just(1_u64 << 40), Just(0), Just(u64::MAX - 5_000)],
            steps in prop::collection::vec((-40_i64..60, 0_u8..40), 1..3_000),
        ) {
            let (mut ranges, mut model) = (AckRanges::new(), BTreeSet::new());
            let mut at = start;
            for (step, far) in steps {
                let step = if far == 0 { step * 50 } else { step };
                at = at.saturating_add_signed(step);
                let checked = ranges.check(at);
                let receipt = ranges.insert(at);
                prop_assert_eq!(checked, receipt);
                match receipt {
                    Receipt::Fresh => prop_assert!(model.insert(at)),
                    Receipt::Duplicate => prop_assert!(model.contains(&at)),
                    Receipt::TooOld => prop_assert!(at < ranges.floor() || ranges.len() == KEPT),
                }
                prop_assert!(ranges.len() <= KEPT);
            }
            // Exactly the numbers above the floor, in ranges that are as large as can be.
            let shown: Vec<_> = ranges.iter().collect();
            prop_assert!(shown.is_sorted_by(|a, b| a.first - 1 > b.last && b.first <= b.last));
            let total: u64 = shown.iter().map(|range| range.last - range.first + 1).sum();
            let above = model.range(ranges.floor()..);
            prop_assert_eq!(above.clone().count() as u64, total);
            for number in above {
                prop_assert!(shown.iter().any(|range| range.contains(*number)));
            }
        }

        /// However packets come and ACKs are lost, every packet is reported by some ACK at once.
        #[test]
        fn every_packet_is_reported_at_once(
            numbers in prop::collection::vec(0_u64..3_000, 1..600),
            heard in prop::collection::vec(any::<bool>(), 600),
        ) {
            let mut ranges = AckRanges::new();
            let mut told = Vec::new();
            for (number, heard) in numbers.into_iter().zip(heard) {
                if ranges.insert(number) == Receipt::Fresh {
                    let serial = ranges.report(&mut told);
                    prop_assert!(told.len() <= REPORTED);
                    prop_assert_eq!(told.first().map(|range| range.last), ranges.largest());
                    prop_assert!(told.is_sorted_by(|a, b| a.first > b.last));
                    prop_assert!(told.iter().any(|range| range.contains(number)));
                    if heard {
                        ranges.on_report_heard(serial);
                    }
                }
            }
        }
    }
}
