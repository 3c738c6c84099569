//! What `integration/instructions` runs under callgrind: one stage, a few times.
//!
//! Without a name the names of all stages that are counted.
// Virtual time begins somewhere, and a count that means nothing must not be printed.
#![allow(unreachable_pub, clippy::disallowed_methods)]

#[path = "../benches/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::process::ExitCode;

use support::Stage;

/// Rounds until buffers have their size and lanes their keys.
const WARM_UP: usize = 2;
const ROUNDS: usize = 4;

/// The only function in which callgrind counts; it finds it by this name.
#[inline(never)]
fn counted(stage: &mut dyn Stage) -> usize {
    // Something is left to do after the call, so that it is a call and no jump.
    black_box(stage.work())
}

fn main() -> ExitCode {
    let cases = support::cases().into_iter().filter(|case| case.is_counted);
    let Some(name) = std::env::args().nth(1) else {
        cases.for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    };
    let Some(case) = cases.into_iter().find(|case| case.name == name) else {
        eprintln!("there is no stage {name}");
        return ExitCode::FAILURE;
    };
    let mut stage = (case.make)();
    for round in 0..WARM_UP + ROUNDS {
        stage.prepare();
        let done = if round < WARM_UP { stage.work() } else { counted(stage.as_mut()) };
        assert_eq!(done, stage.frames(), "not all frames came through");
    }
    println!("{}", ROUNDS * stage.frames());
    ExitCode::SUCCESS
}
