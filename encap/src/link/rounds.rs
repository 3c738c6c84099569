//! Which of the last 64 rounds of heartbeats came over a link.
//!
//! Next: [`super::estimate`] and [`super::liveness`], which both keep one.

/// What a round was when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// The first of all.
    First,
    /// The newest; so many between it and the one before have not come.
    Newer(u32),
    /// Older than the newest by so much, and not seen before.
    Late(u32),
    /// Seen before, or too old to tell.
    Again,
}

/// The newest round, and which of the 63 before it came. Rounds before the first count as if they
/// had come: nobody was there to miss them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rounds {
    newest: Option<u32>,
    /// Bit n: round `newest - n` came.
    seen: u64,
}

impl Rounds {
    /// Rounds remembered.
    const SPAN: u32 = u64::BITS;

    /// Notes a round. Numbers may wrap.
    pub(crate) fn on_round(&mut self, round: u32) -> Came {
        let Some(newest) = self.newest else {
            *self = Self { newest: Some(round), seen: u64::MAX };
            return Came::First;
        };
        let ahead = round.wrapping_sub(newest);
        if ahead != 0 && ahead <= u32::MAX / 2 {
            self.newest = Some(round);
            self.seen = if ahead < Self::SPAN { self.seen << ahead | 1 } else { 1 };
            return Came::Newer(ahead - 1);
        }
        let behind = newest.wrapping_sub(round);
        if behind >= Self::SPAN || self.seen & (1 << behind) != 0 {
            return Came::Again;
        }
        self.seen |= 1 << behind;
        Came::Late(behind)
    }

    /// The highest round that came.
    pub(crate) fn newest(&self) -> Option<u32> {
        self.newest
    }

    /// Whether this round is newer than any that came.
    pub(crate) fn is_newer(&self, round: u32) -> bool {
        self.newest.is_none_or(|newest| is_newer(round, newest))
    }

    /// Rounds up to the newest that came without a gap, at most 64.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.seen.trailing_ones()
    }

    /// How many of the last `span` rounds (1 to 64) have not come.
    pub(crate) fn lost_of(&self, span: u32) -> u32 {
        if self.newest.is_none() {
            return 0;
        }
        let span = span.clamp(1, Self::SPAN);
        (!self.seen << (Self::SPAN - span)).count_ones()
    }
}

/// Whether round `a` is newer than round `b`. Numbers may wrap.
pub(crate) fn is_newer(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b);
    ahead != 0 && ahead <= u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn tells_gaps_copies_and_late_ones() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.lost_of(64), 0);
        assert_eq!(rounds.on_round(u32::MAX), Came::First);
        assert_eq!(rounds.on_round(2), Came::Newer(2));
        assert_eq!((rounds.in_a_row(), rounds.lost_of(20)), (1, 2));
        assert_eq!(rounds.on_round(1), Came::Late(1));
        assert_eq!(rounds.on_round(0), Came::Late(2));
        assert_eq!(rounds.on_round(0), Came::Again);
        assert_eq!((rounds.in_a_row(), rounds.lost_of(20)), (64, 0));
        assert_eq!(rounds.on_round(102), Came::Newer(99));
        assert_eq!((rounds.in_a_row(), rounds.lost_of(20)), (1, 19));
        assert!(rounds.is_newer(103) && !rounds.is_newer(102) && !rounds.is_newer(2));
    }

    proptest! {
        #[test]
        fn equals_a_set(start: u32, steps in prop::collection::vec(0_u32..90, 1..200)) {
            let mut rounds = Rounds::default();
            let mut set = BTreeSet::new();
            let mut at = 100_u64;
            rounds.on_round(start);
            set.insert(at);
            for step in steps {
                // Mostly forward, with late ones among them.
                at = (at + u64::from(step)).saturating_sub(40).max(100);
                let newest = *set.last().unwrap();
                let came = rounds.on_round(start.wrapping_add((at - 100) as u32));
                if at + 64 > newest {
                    prop_assert_eq!(set.contains(&at), came == Came::Again);
                    set.insert(at);
                }
                let newest = *set.last().unwrap();
                let lost = (0..64).filter(|back| newest - back >= 100)
                    .filter(|back| !set.contains(&(newest - back))).count();
                prop_assert_eq!(rounds.lost_of(64), lost as u32);
            }
        }
    }
}
