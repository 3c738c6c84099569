//! How long a frame takes at each stage, in ns: `cargo bench -p encap [-- NAME]`.
// A benchmark reads the clock, and may stop where it cannot measure.
#![allow(unreachable_pub, clippy::disallowed_methods)]

#[allow(dead_code)] // what only the count of instructions asks
mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use support::Stage;

/// Time for so many frames. Preparations, and the clock, are outside of it: one reading is for all
/// the frames of a round.
fn time(stage: &mut dyn Stage, frames: u64) -> Duration {
    let rounds = frames.div_ceil(stage.frames() as u64);
    let mut total = Duration::ZERO;
    for _ in 0..rounds {
        stage.prepare();
        let begin = Instant::now();
        let done = black_box(stage.work());
        total += begin.elapsed();
        assert_eq!(done, stage.frames(), "not all frames came through");
    }
    let done = rounds * stage.frames() as u64;
    total.mul_f64(frames as f64 / done as f64)
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .without_plots()
        .configure_from_args();
    for case in support::cases() {
        let mut stage = None;
        criterion.bench_function(&case.name, |bencher| {
            let stage = stage.get_or_insert_with(|| (case.make)());
            bencher.iter_custom(|frames| time(stage.as_mut(), frames));
        });
    }
    criterion.final_summary();
}
