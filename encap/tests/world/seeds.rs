//! What replays a run: seeds, and the randomness that comes of them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use encap::rng::Rng;

/// Runs a scenario under several seeds, `TAPD_SEEDS` of them if that is set; a failure says which
/// one.
pub fn for_seeds(count: u64, scenario: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let count = number("TAPD_SEEDS").unwrap_or(count);
    let seeds = number("TAPD_SEED").map_or(1..=count, |seed| seed..=seed);
    for seed in seeds {
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("failed under seed {seed}; repeat with TAPD_SEED={seed}");
            resume_unwind(failure);
        }
    }
}

/// SplitMix64: small, seedable, good enough for a simulation and for nothing else.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in `parts` of a million cases.
    pub fn chance(&mut self, parts: u32) -> bool {
        self.below(1_000_000) < u64::from(parts)
    }
}

impl Rng for Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }
}
