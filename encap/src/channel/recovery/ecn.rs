//! Congestion marks: what the receiver counts, and whether the sender may believe it
//! (RFC 9000 section 13.4).
//!
//! Next: [`super::Recovery`].

/// Packets received on a path with each mark of the outer IP header, since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EcnCounts {
    /// With ECT(0).
    pub ect0: u64,
    /// With ECT(1).
    pub ect1: u64,
    /// With CE: a queue on the way was filling.
    pub ce: u64,
}

impl EcnCounts {
    /// Counts a packet by the two ECN bits of its outer header; says whether it was marked CE.
    pub const fn on_received(&mut self, bits: u8) -> bool {
        let count = match bits & 3 {
            0 => return false,
            1 => &mut self.ect1,
            2 => &mut self.ect0,
            _ => &mut self.ce,
        };
        *count = count.saturating_add(1);
        bits & 3 == 3
    }

    fn all(self) -> u64 {
        self.ect0.saturating_add(self.ect1).saturating_add(self.ce)
    }
}

/// Marked packets acknowledged without one more being counted, until marks are given up. Some are
/// no fault: an ACK can be the first to name packets that an earlier one had counted.
const UNMOVED: u64 = 64;

/// What the sender knows of the marks on a path.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EcnCheck {
    known: EcnCounts,
    /// Packets sent with ECT(0) that were acknowledged.
    marked: u64,
    /// Those of them since the counts last rose.
    unmoved: u64,
    /// The path or the peer does not keep marks: they say nothing any more.
    pub(super) broken: bool,
}

impl EcnCheck {
    /// An ACK, the first to name `marked` packets that were sent with ECT(0); `grows` if its
    /// largest number is larger than any before. Gives how many more were marked CE.
    ///
    /// Marks are given up for good when the peer has counted fewer than it acknowledged: they were
    /// wiped off, or it does not read them. RFC 9000 compares what is new in one ACK with what it
    /// adds to the counts. But an ACK counts all that has come and names only what it has room for,
    /// so sums since the beginning are compared here.
    pub(super) fn on_ack(&mut self, grows: bool, counts: Option<EcnCounts>, marked: u64) -> u64 {
        self.marked = self.marked.saturating_add(marked);
        self.unmoved = self.unmoved.saturating_add(marked);
        // The counts of an ACK that was overtaken are old.
        if self.broken || !grows {
            return 0;
        }
        let (known, counts) = (self.known, counts.unwrap_or_default());
        if counts.all() > known.all() {
            self.unmoved = 0;
        }
        let fell = counts.ect0 < known.ect0 || counts.ect1 < known.ect1 || counts.ce < known.ce;
        // ECT(1) is never sent: it is a mark that was changed on the way.
        self.broken = fell || counts.ect1 > 0;
        self.broken |= counts.all() < self.marked || self.unmoved > UNMOVED;
        if self.broken {
            return 0;
        }
        self.known = counts;
        counts.ce - known.ce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(ect0: u64, ect1: u64, ce: u64) -> Option<EcnCounts> {
        Some(EcnCounts { ect0, ect1, ce })
    }

    #[test]
    fn counts_marks() {
        let mut counts = EcnCounts::default();
        let ce: Vec<_> = [0, 1, 2, 3, 0xff].map(|bits| counts.on_received(bits)).into();
        assert_eq!(ce, [false, false, false, true, true]);
        assert_eq!(counts, EcnCounts { ect0: 1, ect1: 1, ce: 2 });
    }

    #[test]
    fn gives_the_increase_of_ce() {
        let mut check = EcnCheck::default();
        assert_eq!(check.on_ack(true, counts(4, 0, 0), 4), 0);
        assert_eq!(check.on_ack(true, counts(5, 0, 2), 3), 2);
        // More than known: their ACK was lost, or they asked for none.
        assert_eq!(check.on_ack(true, counts(9, 0, 3), 1), 1);
        // Counted before and named now.
        assert_eq!(check.on_ack(true, counts(9, 0, 3), 2), 0);
        // Overtaken.
        assert_eq!(check.on_ack(false, counts(1, 0, 0), 1), 0);
        assert!(!check.broken);
    }

    #[test]
    fn marks_that_get_lost_or_changed_are_given_up() {
        for (second, marked) in [
            (None, 1),
            (counts(4, 0, 0), 1),
            (counts(3, 0, 9), 1),
            (counts(9, 1, 0), 2),
            (counts(u64::MAX, u64::MAX, u64::MAX), 0),
        ] {
            let mut check = EcnCheck::default();
            assert_eq!(check.on_ack(true, counts(4, 0, 0), 4), 0);
            assert_eq!(check.on_ack(true, second, marked), 0);
            assert!(check.broken, "{second:?}");
            assert_eq!(check.on_ack(true, counts(9, 0, 9), 0), 0);
        }
        // A peer that does not count is no fault while nothing is marked.
        let mut check = EcnCheck::default();
        check.on_ack(true, None, 0);
        assert!(!check.broken);
    }

    /// Many packets with ACKs alone were counted before: the sum hides what happens then.
    #[test]
    fn a_path_that_begins_to_wipe_marks_off_is_found() {
        let mut check = EcnCheck::default();
        assert_eq!(check.on_ack(true, counts(10_000, 0, 0), 4), 0);
        for _ in 0..UNMOVED {
            check.on_ack(true, counts(10_000, 0, 0), 1);
            assert!(!check.broken);
        }
        check.on_ack(true, counts(10_000, 0, 0), 1);
        assert!(check.broken);
    }
}
