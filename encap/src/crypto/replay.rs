//! The replay window of one (epoch, lane): a number is accepted once.
//!
//! Check, open, commit: [`ReplayWindow::check`] stops copies and ancient numbers before any
//! decryption and changes nothing; only [`ReplayWindow::commit`], called for an authentic
//! datagram, moves the window. A ring of 64-bit blocks as in RFC 6479. It starts small and grows
//! when authentic numbers show that the lane skips far ahead; what was unknown before stays
//! refused. Rules R1 to R4 are in `docs/protocol.md`.
//!
//! Next: [`super::open`].

/// What the window says of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen.
    Fresh,
    /// Seen: a replay, or a copy that came over another link.
    Duplicate,
    /// Below the window.
    TooOld,
}

/// Numbers that a new window remembers.
pub const INITIAL_SPAN: u32 = 1 << 10;
/// Most numbers that a window remembers, 16 KiB of bitmap.
pub const MAX_SPAN: u32 = 1 << 17;

const BLOCK_BITS: u32 = u64::BITS;

/// Which numbers of a lane have been accepted.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// Ring of bitmap blocks; number n lives in block n / 64 modulo their count (a power of two).
    blocks: Box<[u64]>,
    /// One above the highest number accepted; 0 at first. u64, for 2^32 - 1 is a number too.
    next: u64,
    /// Numbers below are refused whatever the bitmap says.
    floor: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplayWindow {
    /// An empty window: any number is fresh.
    #[must_use]
    pub fn new() -> Self {
        let blocks = vec![0; (INITIAL_SPAN / BLOCK_BITS) as usize].into_boxed_slice();
        Self { blocks, next: 0, floor: 0 }
    }

    /// Numbers remembered behind the highest: one block is always being recycled.
    #[must_use]
    pub fn span(&self) -> u64 {
        (self.blocks.len() as u64 - 1) * u64::from(BLOCK_BITS)
    }

    fn place(&self, sequence: u64) -> (usize, u64) {
        let block = sequence / u64::from(BLOCK_BITS);
        // The count is a power of two and far below usize::MAX.
        let index = (block & (self.blocks.len() as u64 - 1)) as usize;
        (index, 1 << (sequence % u64::from(BLOCK_BITS)))
    }

    /// What [`Self::commit`] would say; changes nothing (rule R1).
    #[must_use]
    pub fn check(&self, sequence: u32) -> Verdict {
        let sequence = u64::from(sequence);
        if sequence >= self.next {
            return if sequence < self.floor { Verdict::TooOld } else { Verdict::Fresh };
        }
        if sequence < self.floor {
            return Verdict::TooOld;
        }
        let (index, bit) = self.place(sequence);
        match self.blocks.get(index) {
            Some(block) if block & bit == 0 => Verdict::Fresh,
            _ => Verdict::Duplicate,
        }
    }

    /// Accepts a number that was opened; [`Verdict::Fresh`] at most once for each (rule R2).
    pub fn commit(&mut self, sequence: u32) -> Verdict {
        let verdict = self.check(sequence);
        if verdict != Verdict::Fresh {
            return verdict;
        }
        let sequence = u64::from(sequence);
        if sequence >= self.next {
            self.advance(sequence);
        }
        let (index, bit) = self.place(sequence);
        if let Some(block) = self.blocks.get_mut(index) {
            *block |= bit;
        }
        Verdict::Fresh
    }

    /// Moves the upper edge to `sequence`, clearing the blocks that change their meaning.
    fn advance(&mut self, sequence: u64) {
        let gap = sequence - self.next;
        while self.next > 0
            && gap > self.span() / 2
            && self.blocks.len() < (MAX_SPAN / BLOCK_BITS) as usize
        {
            self.grow();
        }
        let bits = u64::from(BLOCK_BITS);
        // The block that `next - 1` lies in is in use already; an empty window has none in use,
        // and all of its blocks are zero.
        let first_new = self.next.div_ceil(bits);
        let last_new = sequence / bits;
        let count = (last_new + 1).saturating_sub(first_new).min(self.blocks.len() as u64);
        for block in (last_new + 1 - count)..=last_new {
            let (index, _) = self.place(block * bits);
            if let Some(block) = self.blocks.get_mut(index) {
                *block = 0;
            }
        }
        self.next = sequence + 1;
        let lowest_kept = (last_new + 1).saturating_sub(self.blocks.len() as u64) * bits;
        self.floor = self.floor.max(lowest_kept);
    }

    /// Doubles the ring (rule R3). Blocks keep their numbers; what the small ring had already
    /// forgotten stays below the floor.
    fn grow(&mut self) {
        let bits = u64::from(BLOCK_BITS);
        let mut larger = Self {
            blocks: vec![0; self.blocks.len() * 2].into_boxed_slice(),
            next: self.next,
            floor: self.floor,
        };
        let last = self.next.saturating_sub(1) / bits;
        let first = (last + 1).saturating_sub(self.blocks.len() as u64);
        for block in first..=last {
            let (from, _) = self.place(block * bits);
            let (to, _) = larger.place(block * bits);
            if let (Some(to), Some(from)) = (larger.blocks.get_mut(to), self.blocks.get(from)) {
                *to = *from;
            }
        }
        *self = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// The naive model: remembers every number for ever.
    #[derive(Default)]
    struct Model(HashSet<u32>);

    fn run(numbers: impl IntoIterator<Item = u32>) {
        let (mut window, mut model) = (ReplayWindow::new(), Model::default());
        let mut highest = None;
        for number in numbers {
            let seen = model.0.contains(&number);
            let checked = window.check(number);
            assert_eq!(checked, window.check(number), "check changes nothing");
            let verdict = window.commit(number);
            assert_eq!(verdict, checked);
            match verdict {
                Verdict::Fresh => {
                    assert!(!seen, "{number} accepted twice");
                    model.0.insert(number);
                    highest = highest.max(Some(number));
                }
                Verdict::Duplicate => assert!(seen, "{number} was never accepted"),
                Verdict::TooOld => {
                    let highest = highest.expect("an empty window refuses nothing");
                    assert!(
                        u64::from(number) + u64::from(INITIAL_SPAN) - 64 <= u64::from(highest) + 1,
                        "{number} refused though within the guaranteed span of {highest}"
                    );
                }
            }
        }
    }

    #[test]
    fn first_number_may_be_any_and_the_last_number_counts() {
        run([5, 5, 4, 6]);
        run([u32::MAX, u32::MAX, u32::MAX - 1, 0]);
        run([0, 0, u32::MAX, u32::MAX, 0]);
    }

    #[test]
    fn grows_to_its_cap_and_no_further() {
        let mut window = ReplayWindow::new();
        let mut number = 0;
        for step in [100, 600, 1_200, 3_000, 9_000, 30_000, 100_000, 1_000_000, 1_000_000] {
            assert_eq!(window.commit(number), Verdict::Fresh);
            number += step;
        }
        assert_eq!(window.span(), u64::from(MAX_SPAN - BLOCK_BITS));
        assert_eq!(window.check(0), Verdict::TooOld);
    }

    #[test]
    fn growth_does_not_accept_what_was_forgotten() {
        let mut window = ReplayWindow::new();
        for number in 0..5_000 {
            assert_eq!(window.commit(number), Verdict::Fresh);
        }
        assert_eq!(window.commit(5_000 + 900), Verdict::Fresh);
        assert!(window.span() > u64::from(INITIAL_SPAN));
        for number in 0..5_000 {
            assert_ne!(window.check(number), Verdict::Fresh, "{number}");
        }
        assert_eq!(window.check(5_100), Verdict::Fresh);
    }

    /// All orders of commits over a small universe of numbers around block and window edges.
    #[test]
    fn edges_exhaustively() {
        let edges = [0, 63, 64, 959, 960, 1_023, 1_024, 1_025, 2_047];
        for a in edges {
            for b in edges {
                for c in edges {
                    for d in edges {
                        run([a, b, c, d, a, b, c, d]);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn equals_the_naive_model(
            start in prop_oneof![Just(0u32), any::<u32>()],
            steps in prop::collection::vec((-1_500i64..2_000, 0u8..20), 1..400),
        ) {
            let mut at = i64::from(start);
            let numbers: Vec<u32> = steps
                .into_iter()
                .map(|(step, far)| {
                    at += if far == 0 { step * 100 } else { step };
                    at = at.clamp(0, i64::from(u32::MAX));
                    at as u32
                })
                .collect();
            run(numbers);
        }
    }
}
