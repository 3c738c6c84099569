//! Holds `docs/protocol.md` against the code: every rule that is cited is defined, every counter and
//! every test that it names is there.
#![allow(missing_docs, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use encap::stats::DropReason;

const PROTOCOL: &str = include_str!("../../docs/protocol.md");

// The document.

/// Rules by id, with their text: paragraphs that begin with `**H1. `, up to the next rule.
fn rules() -> BTreeMap<String, String> {
    let (body, _) = PROTOCOL.split_once("\n## 14 ").expect("the section of the counters");
    let mut rules = BTreeMap::new();
    for part in body.split("\n**").skip(1) {
        let Some((rule, text)) = part.split_once(". ").filter(|(rule, _)| is_id(rule)) else {
            continue;
        };
        let text = text.split("\n## ").next().unwrap_or_default();
        assert!(rules.insert(rule.to_owned(), text.to_owned()).is_none(), "{rule} is there twice");
    }
    rules
}

/// A letter and a number from 1 to 99.
fn is_id(word: &str) -> bool {
    let Some((letter, number)) = word.split_at_checked(1) else { return false };
    letter.bytes().all(|b| b.is_ascii_uppercase())
        && (1..=2).contains(&number.len())
        && number.bytes().all(|b| b.is_ascii_digit())
        && !number.starts_with('0')
}

/// The rows of the table under a heading: first and second column.
fn table(heading: &str) -> Vec<(String, String)> {
    let (_, section) = PROTOCOL.split_once(heading).expect("the heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches(['|', ' ']).split(" | ").collect();
        assert_eq!(cells.len(), 2, "{row}");
        (cells[0].trim_matches('`').to_owned(), cells[1].to_owned())
    })
    .collect()
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).expect("a source folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// The ids that stand behind the word "rule" or "rules": `H1`, `H1, H2 and H3`, `H1 to H6`.
fn citations(text: &str) -> BTreeSet<String> {
    let comment = |word: &&str| !matches!(*word, "//" | "///" | "//!");
    let words: Vec<_> = text.split_whitespace().filter(comment).collect();
    let mut cited = BTreeSet::new();
    let mut at = 0;
    while at < words.len() {
        let word = words[at].trim_start_matches('(');
        at += 1;
        if !matches!(word, "rule" | "rules" | "Rule" | "Rules") {
            continue;
        }
        let (mut last, mut range): (Option<&str>, bool) = (None, false);
        while let Some(word) = words.get(at) {
            let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            match bare {
                "to" => range = true,
                "and" | "or" => {}
                id if is_id(id) => {
                    let number = |id: &str| id[1..].parse::<u8>().expect("a number");
                    let first = last.filter(|_| range).map_or(number(id), number);
                    let letter = &id[..1];
                    cited.extend((first..=number(id)).map(|n| format!("{letter}{n}")));
                    (last, range) = (Some(id), false);
                }
                _ => break,
            }
            at += 1;
            if bare.len() < word.len() && !word.ends_with(',') {
                break;
            }
        }
    }
    cited
}

#[test]
fn every_cited_rule_is_defined() {
    let defined = rules();
    let mut count = 0;
    for folder in ["src", "tests", "../fastpath/src"] {
        for (path, text) in sources(folder) {
            for rule in citations(&text) {
                count += 1;
                assert!(defined.contains_key(&rule), "{}: no rule {rule}", path.display());
            }
            for name in test_names(&text).filter_map(|name| name.strip_prefix("rule_")) {
                let rule = name.split('_').next().unwrap_or_default().to_ascii_uppercase();
                assert!(defined.contains_key(&rule), "{}: no rule {rule}", path.display());
            }
        }
    }
    assert!(count > 40, "only {count} citations were found");
}

#[test]
fn citations_are_found_in_all_their_forms() {
    let found = |text| citations(text).into_iter().collect::<Vec<_>>();
    assert_eq!(found("a frame (rule H1)."), ["H1"]);
    assert_eq!(found("the peer (rules F1, F3, F4)."), ["F1", "F3", "F4"]);
    assert_eq!(found("//! Rules E1 to E3 and L2 are in\n//! `docs`"), ["E1", "E2", "E3", "L2"]);
    assert_eq!(found("rules D8 to D11, and more"), ["D10", "D11", "D8", "D9"]);
    assert_eq!(found("as the rule\n    /// K5 says"), ["K5"]);
    assert_eq!(found("the rule of H1; IPv4 and V6"), [] as [&str; 0]);
}

#[test]
fn every_rule_says_what_its_breach_gives() {
    let counters: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    for (rule, text) in rules() {
        let quoted: BTreeSet<_> = text.split('`').skip(1).step_by(2).collect();
        let named = quoted.iter().any(|name| counters.contains(name) || *name == "learn_refused");
        let event = text.to_lowercase().contains("event `");
        assert!(named || event || text.contains("unseen"), "{rule} names no counter and no event");
        // No counter of that name would be worse than none.
        for name in quoted.iter().filter(|name| name.contains('_') && !name.contains('(')) {
            let fields = [
                "max_frame_len",
                "learn_refused",
                "frames_local",
                "resend_overruns",
                "epoch_opened",
                "sent_us",
                "interval_us",
                "echo_us",
                "echo_delay_us",
            ];
            let known = counters.contains(name)
                || fields.contains(name)
                || *name == "Noise_NNpsk0_25519_AESGCM_SHA256";
            assert!(known, "{rule}: nothing is called {name}");
        }
    }
}

#[test]
fn every_drop_reason_is_in_the_document() {
    let listed = table("\n## 14 Drop counters\n");
    let names: Vec<_> = listed.iter().map(|(name, _)| name.as_str()).collect();
    let all: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names, all, "the table lists each once, in the order of the counters");
    let rules = rules();
    for (name, cited) in &listed {
        for rule in cited.split(", ") {
            let text = rules.get(rule).unwrap_or_else(|| panic!("{name}: no rule {rule}"));
            assert!(text.contains(&format!("`{name}`")), "{rule} does not say {name}");
        }
    }
}

fn test_names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("fn ")?.split('(').next())
}

#[test]
fn every_rule_has_tests_that_exist() {
    let texts: Vec<_> = ["src", "tests"].into_iter().flat_map(sources).collect();
    let known: BTreeSet<_> = texts.iter().flat_map(|(_, text)| test_names(text)).collect();
    let mut without: BTreeSet<_> = rules().into_keys().collect();
    for (rule, tests) in table("\n## Appendix: where each rule is tested\n") {
        assert!(without.remove(&rule), "{rule} is no rule, or is there twice");
        let names: Vec<_> = tests.split(", ").map(|name| name.trim_matches('`')).collect();
        assert!(!names.is_empty());
        for name in names {
            assert!(known.contains(name), "{rule}: there is no test {name}");
        }
    }
    assert!(without.is_empty(), "no tests are named for {without:?}");
}

// The rules.
