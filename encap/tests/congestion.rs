//! Congestion control against an independent implementation, and on a simulated bottleneck.
#![allow(missing_docs, unreachable_pub)]
// The simulation begins its virtual time somewhere.
#![allow(clippy::disallowed_methods)]

#[path = "congestion/bottleneck.rs"]
mod bottleneck;
#[path = "congestion/oracle.rs"]
mod oracle;
#[path = "congestion/sharing.rs"]
mod sharing;

/// Deterministic random numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True with this probability.
    fn hits(&mut self, probability: f64) -> bool {
        self.share() < probability
    }
}
