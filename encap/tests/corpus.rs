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
