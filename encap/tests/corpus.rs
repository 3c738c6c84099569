//! Replays the fuzz corpus through the checks of the fuzz targets.
#![allow(missing_docs, unreachable_pub)]
// The world begins its virtual time somewhere, the corpus is read from files, a check may panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

#[path = "../fuzz/checks/mod.rs"]
mod checks;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// Names in a folder without their extension, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let stem = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries.map(|entry| stem(entry.unwrap().path())).collect();
    names.sort();
    names
}

fn replay(target: &str) {
    let (_, check) = checks::TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let folder = folder("corpus").join(target);
    let inputs: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    for input in inputs {
        let bytes = fs::read(&input).unwrap();
        if let Err(fault) = catch_unwind(AssertUnwindSafe(|| check(&bytes))) {
            eprintln!("the input was {}", input.display());
            resume_unwind(fault);
        }
    }
}

#[test]
fn corpus_header() {
    replay("header");
}

#[test]
fn corpus_long_header() {
    replay("long_header");
}

#[test]
fn corpus_frame_view() {
    replay("frame_view");
}

#[test]
fn corpus_control() {
    replay("control");
}

#[test]
fn corpus_hello() {
    replay("hello");
}

#[test]
fn corpus_bundle() {
    replay("bundle");
}

#[test]
fn corpus_compressed() {
    replay("compressed");
}

#[test]
fn corpus_channel() {
    replay("channel");
}

#[test]
fn corpus_hub() {
    replay("hub");
}

/// Scripts by chance, as the corpus of a target that is young has few: `TAPD_HUB_SCRIPTS` of them,
/// of which the first is the one of seed `TAPD_HUB_SEED`.
#[test]
fn hub_scripts_by_chance() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let first = number("TAPD_HUB_SEED", 1);
    for seed in first..first + number("TAPD_HUB_SCRIPTS", 100) {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        // Half of them without what a hostile peer does: these say more of what arrives.
        let kinds = if below(2) == 0 { 13 } else { 15 };
        let mut script = vec![below(2) as u8];
        for _ in 0..below(400) {
            let what = if below(3) == 0 { 6 + below(3) } else { below(kinds) };
            // Seldom, or nothing would ever come of anything.
            let what = if matches!(what, 11 | 12) && below(4) > 0 { 15 } else { what };
            script.extend([what as u8, below(256) as u8, below(256) as u8, below(256) as u8]);
            if what == 14 {
                script.extend((0..below(60)).map(|_| below(64) as u8));
            }
        }
        let run = catch_unwind(AssertUnwindSafe(|| checks::hub(&script)));
        if let Err(fault) = run {
            eprintln!("the seed was {seed}");
            resume_unwind(fault);
        }
    }
}

#[test]
fn corpus_decapsulate() {
    replay("decapsulate");
}

#[test]
fn every_target_has_a_corpus_and_the_reverse() {
    let mut targets: Vec<_> = checks::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    targets.sort();
    assert_eq!(names(&folder("corpus")), targets);
    assert_eq!(names(&folder("fuzz_targets")), targets);
}
