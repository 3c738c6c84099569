//! Round-trip times by how often they occur, in fixed memory.
//!
//! Log-linear: every power of two is split into 16, so a value is off by 3 % at most. Two halves:
//! one fills for [`HALF`] and then takes the place of the other, so what is read covers the last
//! 60 to 120 s in which there were samples.
//!
//! Next: [`super::estimate`].

use std::time::{Duration, Instant};

/// How long one half is filled.
const HALF: Duration = Duration::from_secs(60);

/// Buckets of one power of two.
const SPLIT: usize = 16;
const SPLIT_BITS: u32 = SPLIT.trailing_zeros();
/// Values up to this many bits, in microseconds, have buckets of their own: 67 s.
const VALUE_BITS: u32 = 26;
const BUCKETS: usize = (VALUE_BITS - SPLIT_BITS + 1) as usize * SPLIT;

/// Counts of values, in microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    /// The half that fills, and the one that is full.
    halves: [[u32; BUCKETS]; 2],
    /// When the filling half was begun.
    begun: Instant,
}

impl Histogram {
    pub(crate) fn new(now: Instant) -> Self {
        Self { halves: [[0; BUCKETS]; 2], begun: now }
    }

    pub(crate) fn add(&mut self, now: Instant, us: u64) {
        let age = now.saturating_duration_since(self.begun);
        if age >= HALF {
            let full = if age < HALF * 2 { self.halves[0] } else { [0; BUCKETS] };
            self.halves = [[0; BUCKETS], full];
            self.begun = now;
        }
        if let Some(count) = self.halves[0].get_mut(bucket(us)) {
            *count = count.saturating_add(1);
        }
    }

    /// The values below which these parts, in ppm and rising, of all values lie; 0 without values.
    pub(crate) fn quantiles<const N: usize>(&self, parts_ppm: [u32; N]) -> [u32; N] {
        let [filling, full] = &self.halves;
        let counts = || filling.iter().zip(full).map(|(a, b)| u64::from(*a) + u64::from(*b));
        let total: u64 = counts().sum();
        let mut values = [0; N];
        let mut below = 0;
        let mut next = 0;
        for (index, count) in counts().enumerate() {
            below += count;
            while let (Some(value), Some(part)) = (values.get_mut(next), parts_ppm.get(next)) {
                let rank = (u128::from(total) * u128::from(*part)).div_ceil(1_000_000).max(1);
                if u128::from(below) < rank {
                    break;
                }
                *value = middle(index);
                next += 1;
            }
        }
        values
    }
}

/// The bucket of a value; the last one for all that is too large.
fn bucket(us: u64) -> usize {
    if us < SPLIT as u64 {
        return us as usize;
    }
    let exponent = us.ilog2();
    if exponent >= VALUE_BITS {
        return BUCKETS - 1;
    }
    let within = (us >> (exponent - SPLIT_BITS)) as usize & (SPLIT - 1);
    (exponent - SPLIT_BITS + 1) as usize * SPLIT + within
}

/// The value that stands for a bucket.
fn middle(bucket: usize) -> u32 {
    if bucket < SPLIT {
        return bucket as u32;
    }
    let shift = (bucket / SPLIT - 1) as u32;
    let low = ((SPLIT + bucket % SPLIT) as u32) << shift;
    low + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_off_by_3_percent_at_most(us in 0_u64..1 << VALUE_BITS) {
            let shown = f64::from(middle(bucket(us)));
            prop_assert!((shown - us as f64).abs() <= us as f64 * 0.0313, "{} is {}", us, shown);
        }

        #[test]
        fn buckets_rise(a: u64, b: u64) {
            prop_assert!(bucket(a.min(b)) <= bucket(a.max(b)));
            prop_assert!(bucket(a) < BUCKETS);
        }
    }

    #[test]
    fn quantiles_of_the_last_minutes() {
        let start = Instant::now();
        let mut histogram = Histogram::new(start);
        assert_eq!(histogram.quantiles([500_000, 999_000]), [0, 0]);
        for us in 1..=1_000 {
            histogram.add(start, us);
        }
        let [half, most, all] = histogram.quantiles([500_000, 990_000, 1_000_000]);
        assert!((484..=516).contains(&half) && (960..=1_021).contains(&most), "{half} {most}");
        assert!((970..=1_031).contains(&all), "{all}");
        // One half later the old ones still count, two halves later they are gone.
        histogram.add(start + HALF, 5);
        assert!(histogram.quantiles([500_000])[0] > 400);
        histogram.add(start + HALF * 2, 5);
        assert_eq!(histogram.quantiles([999_999]), [5]);
        histogram.add(start + HALF * 9, 7);
        assert_eq!(histogram.quantiles([1, 999_999]), [7, 7]);
    }
}
