//! Holds `docs/testing.md` against the sources: every test that it names is there.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use integration::skip::case;

const TESTING: &str = include_str!("../../../docs/testing.md");
const HEADING: &str = "\n## Kronosnet's properties\n";
/// How a row begins for which there is no test of ours, and what must follow.
const WITHOUT: [&str; 2] = ["not applicable: ", "comes with "];

/// The rows of a table: first and second column.
fn rows(heading: &str) -> Result<Vec<(&'static str, &'static str)>> {
    let (_, section) = TESTING.split_once(heading).context("the heading")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.map(|row| {
        let mut cells = row.trim_matches(['|', ' ']).split(" | ");
        let pair = cells.next().zip(cells.next()).with_context(|| row.to_owned())?;
        ensure!(cells.next().is_none(), "more than two columns: {row}");
        Ok(pair)
    })
    .collect()
}

/// The words in backticks that look like names of tests.
fn named(cell: &str) -> impl Iterator<Item = &str> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.filter(|word| {
        word.contains('_') && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

/// The names of all functions, also of those that a macro makes tests of.
fn tests(folder: &Path, into: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            tests(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let functions = text.lines().filter_map(|line| line.trim().strip_prefix("fn "));
            into.extend(functions.filter_map(|rest| rest.split('(').next()).map(str::to_owned));
        }
    }
    Ok(())
}

#[test]
fn harness_testing_document_names_tests_that_exist() {
    case(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?;
        let mut known = BTreeSet::new();
        for folder in ["encap/src", "encap/tests", "fastpath", "tapd/src", "integration"] {
            tests(&root.join(folder), &mut known)?;
        }
        let rows = rows(HEADING)?;
        ensure!(rows.len() >= 25, "only {} rows were found", rows.len());
        for (property, ours) in rows {
            let without = WITHOUT
                .iter()
                .any(|start| ours.strip_prefix(start).is_some_and(|reason| reason.len() > 10));
            ensure!(without || named(ours).count() > 0, "{property}: neither test nor reason");
            for name in named(ours) {
                ensure!(known.contains(name), "{property}: there is no test {name}");
            }
        }
        Ok(())
    });
}

#[test]
fn harness_names_are_found_in_a_cell() {
    let found: Vec<_> = named("`flow_a`, `sec_b2` and `TAPD_X=1`, not `word`").collect();
    assert_eq!(found, ["flow_a", "sec_b2"]);
}
