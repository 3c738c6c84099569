//! Which sizes to try next, and when a size has failed.

use super::PRECISION;

/// Unanswered probes of a size that make it fail, on a path that loses nothing else.
pub(super) const TRIES: u32 = 3;
/// Most tries of a size on a lossy path.
const MAX_TRIES: u32 = 12;
/// Wanted probability that chance alone makes a size fail.
const CHANCE: f64 = 1e-4;
/// Parts of a gap.
const PARTS: usize = 8;
/// Doubtful sizes tried again in one volley, smallest first.
const RETRIES_PER_VOLLEY: usize = 3;

/// IP packet sizes at which paths are wont to end: 65520 and 2044 InfiniBand, 9216 to 8000 jumbo
/// frames, 4352 FDDI, 1500 Ethernet, and what tunnels leave of that.
pub(super) const LIKELY_IP_MTUS: [usize; 17] = [
    65_520, 9216, 9001, 9000, 8000, 4352, 2044, 1500, 1492, 1480, 1460, 1450, 1422, 1420, 1400,
    1372, 1300,
];

/// How many probes got lost among those of sizes that pass.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Loss {
    passed: u32,
    lost: u32,
}

impl Loss {
    pub(super) fn add(&mut self, passed: u32, lost: u32) {
        self.passed += passed;
        self.lost += lost;
        // Old ones count less.
        if self.passed + self.lost >= 256 {
            self.passed /= 2;
            self.lost /= 2;
        }
    }

    /// Whether any was lost lately.
    pub(super) fn any(self) -> bool {
        self.lost > 0
    }

    /// Unanswered probes that make chance an unlikely reason.
    pub(super) fn tries(self) -> u32 {
        let rate = f64::from(self.lost) / f64::from((self.passed + self.lost).max(1));
        let mut tries = TRIES;
        while tries < MAX_TRIES && rate.powi(tries as i32) > CHANCE {
            tries += 1;
        }
        tries
    }
}

/// A size above the one in use that was tried.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    size: usize,
    /// Tries that were not answered while others were.
    missed: u32,
}

/// What is known of the sizes above the one in use.
#[derive(Debug, Clone)]
pub(super) struct Search {
    ip_overhead: usize,
    /// Smallest size that failed.
    failed: Option<usize>,
    /// Sizes tried and neither passed nor failed, ascending, below the one that failed.
    doubts: Vec<Doubt>,
    pub(super) loss: Loss,
}

impl Search {
    pub(super) fn new(ip_overhead: usize) -> Self {
        Self { ip_overhead, failed: None, doubts: Vec::new(), loss: Loss::default() }
    }

    /// Begins anew, below a size that failed if there is one.
    pub(super) fn restart(&mut self, failed: Option<usize>) {
        self.failed = failed;
        self.doubts.clear();
    }

    /// What was tried says nothing.
    pub(super) fn forget_doubts(&mut self) {
        self.doubts.clear();
    }

    /// The last volley says nothing.
    pub(super) fn forget_last(&mut self) {
        self.doubts.retain(|doubt| doubt.missed > 0);
    }

    /// Sizes above are of no interest any more.
    pub(super) fn limit(&mut self, ceiling: usize) {
        self.doubts.retain(|doubt| doubt.size <= ceiling);
        self.failed = self.failed.filter(|size| *size <= ceiling);
    }

    /// A size passed, and so would smaller ones; false when it was thought to have failed.
    pub(super) fn passed(&mut self, size: usize) -> bool {
        let below = self.doubts.iter().filter(|doubt| doubt.size <= size);
        self.loss.add(0, below.map(|doubt| doubt.missed).sum());
        self.doubts.retain(|doubt| doubt.size > size);
        let wrong = self.failed.is_some_and(|failed| failed <= size);
        if wrong {
            self.failed = None;
        }
        !wrong
    }

    /// A size was not answered while others were.
    pub(super) fn missed(&mut self, size: usize) {
        if let Some(doubt) = self.doubts.iter_mut().find(|doubt| doubt.size == size) {
            doubt.missed += 1;
        }
    }

    /// Lets the smallest size fail that was tried often enough, and with it the larger ones.
    pub(super) fn judge(&mut self) {
        let tries = self.loss.tries();
        if let Some(size) = self.doubts.iter().find(|d| d.missed >= tries).map(|d| d.size) {
            self.failed = Some(size);
            self.doubts.retain(|doubt| doubt.size < size);
        }
    }

    /// Whether nothing is left to find above `size`.
    pub(super) fn is_over(&self, size: usize, ceiling: usize) -> bool {
        let near = |failed: usize| failed.saturating_sub(size) <= PRECISION;
        size >= ceiling || self.doubts.is_empty() && self.failed.is_some_and(near)
    }

    /// Adds what to try next above `size`: the smallest doubts again; and below them the likely
    /// sizes, largest first, or else the ends of equal parts.
    pub(super) fn add_next(
        &mut self,
        sizes: &mut Vec<usize>,
        size: usize,
        ceiling: usize,
        hint: Option<usize>,
    ) {
        sizes.extend(self.doubts.iter().take(RETRIES_PER_VOLLEY).map(|doubt| doubt.size));
        let doubtful = self.doubts.first().map(|doubt| doubt.size);
        let upper = doubtful.or(self.failed).unwrap_or(ceiling + 1);
        let between = |at: &usize| *at > size && *at < upper;
        let likely = LIKELY_IP_MTUS.iter().map(|mtu| mtu.saturating_sub(self.ip_overhead));
        let mut new: Vec<_> = likely.chain([ceiling]).filter(between).collect();
        let gap = upper.saturating_sub(size);
        if new.is_empty() && gap > PRECISION {
            let step = gap.div_ceil(PARTS).max(PRECISION);
            new.extend((size + step..upper).step_by(step));
        }
        new.extend(hint.filter(between));
        new.sort_unstable();
        new.dedup();
        sizes.extend(new.iter().rev());
        self.doubts.extend(new.into_iter().map(|size| Doubt { size, missed: 0 }));
        self.doubts.sort_unstable_by_key(|doubt| doubt.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lossy_paths_ask_for_more_tries() {
        let tries = |passed, lost| Loss { passed, lost }.tries();
        assert_eq!([tries(0, 0), tries(50, 1), tries(10, 1), tries(4, 1)], [3, 3, 4, 6]);
        assert_eq!([tries(64, 36), tries(0, 10)], [10, 12]);
        let mut loss = Loss::default();
        loss.add(100, 1);
        assert!(loss.any());
        loss.add(200, 0);
        assert!(!loss.any(), "forgotten in time");
    }

    #[test]
    fn likely_sizes_come_first_then_equal_parts() {
        let mut search = Search::new(28);
        let mut sizes = Vec::new();
        search.add_next(&mut sizes, 1252, 1472, None);
        let likely = [1472, 1464, 1452, 1432, 1422, 1394, 1392, 1372, 1344, 1272];
        assert_eq!(sizes, likely);
        assert!(search.passed(1272));
        for size in &likely[..9] {
            search.missed(*size);
        }
        sizes.clear();
        search.add_next(&mut sizes, 1272, 1472, Some(1300));
        assert_eq!(sizes, [1344, 1372, 1392, 1335, 1326, 1317, 1308, 1300, 1299, 1290, 1281]);
        assert!(!search.is_over(1272, 1472));
        search.missed(1281);
        search.missed(1281);
        search.missed(1281);
        search.judge();
        assert!(!search.is_over(1272, 1472) && search.is_over(1273, 1472));
        assert!(!search.passed(1281), "it had failed");
    }
}
