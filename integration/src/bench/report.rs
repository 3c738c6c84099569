//! From measurements to the tables and the JSON rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::Scenario;
use super::contender::{Contender, Group};
use super::metric::Metric;
use super::parts::Part;
use super::tapd::Variant;
use super::verdict;
use crate::stats::Spread;

/// Contenders beside each other in a table: a line stays readable.
const COLUMNS: usize = 4;
/// Width of a contender's column, and of the two before.
const WIDTH: usize = 30;
const HEAD: usize = 37;

/// Who was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// An overlay.
    Contender(Contender),
    /// A part of tapd's work.
    Part(Part),
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Contender(contender) => contender.name(),
            Self::Part(part) => part.name(),
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// On which underlay.
    pub scenario: Scenario,
    /// Of whom.
    pub subject: Subject,
    /// Of what.
    pub metric: Metric,
    /// In the metric's unit.
    pub value: f64,
}

/// One row of the JSON file.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// On which underlay.
    pub scenario: &'static str,
    /// Whose values these are.
    pub contender: &'static str,
    /// Compared with whom, in the same run; none for a part.
    pub rival: Option<&'static str>,
    /// Of what.
    pub metric: &'static str,
    /// Of the three values below.
    pub unit: &'static str,
    /// Median, least and greatest of the rounds.
    #[serde(flatten)]
    pub spread: Spread,
    /// Median of the contender over median of the rival; none if there is no rival or its is 0.
    pub ratio: Option<f64>,
    /// Version of the contender, and what it encrypts with.
    pub version: Option<String>,
}

/// What a variant of tapd takes beside the sum of what it cannot do without.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnCost {
    /// The variant's CPU seconds for 10^9 bytes of one TCP stream.
    pub spread: Spread,
    /// The same for each part alone, medians.
    pub parts: Vec<(Part, f64)>,
}

impl OwnCost {
    /// Of all parts.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.parts.iter().map(|(_, cost)| cost).sum()
    }

    /// The whole over the sum of its parts.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.spread.median / self.sum()
    }
}

/// All measurements of a run.
#[derive(Debug, Default)]
pub struct Report {
    cells: Vec<Cell>,
    /// Of scenarios that are not measured in cells.
    others: Vec<Row>,
    versions: BTreeMap<Contender, String>,
}

impl Report {
    /// Adds measurements.
    pub fn add(&mut self, cells: Vec<Cell>) {
        self.cells.extend(cells);
    }

    /// Adds rows of a scenario that is not measured in cells.
    pub fn add_rows(&mut self, rows: Vec<Row>) {
        self.others.extend(rows);
    }

    /// Notes what ran under a contender's name.
    pub fn add_version(&mut self, contender: Contender, version: &str) {
        self.versions.insert(contender, version.to_owned());
    }

    /// Median and extremes of a cell's rounds.
    #[must_use]
    pub fn spread(&self, scenario: Scenario, subject: Subject, metric: Metric) -> Option<Spread> {
        let values: Vec<f64> = self
            .cells
            .iter()
            .filter(|c| (c.scenario, c.subject, c.metric) == (scenario, subject, metric))
            .map(|c| c.value)
            .collect();
        Spread::of(&values)
    }

    /// Median of one contender over that of another one.
    #[must_use]
    pub fn ratio(
        &self,
        scenario: Scenario,
        contender: Contender,
        rival: Contender,
        metric: Metric,
    ) -> Option<f64> {
        let median = |who| Some(self.spread(scenario, Subject::Contender(who), metric)?.median);
        let rival = median(rival).filter(|&rival| rival > 0.0)?;
        Some(median(contender)? / rival)
    }

    /// What a variant of tapd cost in a scenario, if it and all of its parts were measured.
    #[must_use]
    pub fn own_cost(&self, scenario: Scenario, variant: Variant) -> Option<OwnCost> {
        let whole = Subject::Contender(Contender::Tapd(variant));
        let spread = self.spread(scenario, whole, Metric::Tcp1CpuSecondsPerGb)?;
        let parts = Part::of(variant)?.into_iter().map(|part| {
            let cost =
                self.spread(scenario, Subject::Part(part), Metric::PartCpuSecondsPerGb)?.median;
            Some((part, cost))
        });
        Some(OwnCost { spread, parts: parts.collect::<Option<_>>()? })
    }

    fn row(&self, scenario: Scenario, subject: Subject, metric: Metric) -> Option<Row> {
        let spread = self.spread(scenario, subject, metric)?;
        let (rival, ratio, version) = match subject {
            Subject::Contender(contender) => (
                Some(Contender::RIVAL.name()),
                self.ratio(scenario, contender, Contender::RIVAL, metric),
                self.versions.get(&contender).cloned(),
            ),
            Subject::Part(_) => (None, None, None),
        };
        let (metric, unit) = (metric.name(), metric.unit());
        let (scenario, contender) = (scenario.name(), subject.name());
        Some(Row { scenario, contender, rival, metric, unit, spread, ratio, version })
    }

    /// One row for every cell measured, and one for every comparison with another rival than the
    /// usual one.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let subjects = Contender::ALL.map(Subject::Contender).into_iter();
        let subjects: Vec<Subject> = subjects.chain(Part::ALL.map(Subject::Part)).collect();
        let mut rows = Vec::new();
        for scenario in Scenario::MEASURED {
            for metric in Metric::ALL {
                rows.extend(subjects.iter().filter_map(|&s| self.row(scenario, s, metric)));
            }
        }
        rows.extend(verdict::judge(self).into_iter().filter_map(|line| {
            let scenario = line.scenario;
            let rival = line.rival.filter(|&rival| rival != Contender::RIVAL.name())?;
            let subject = Subject::Contender(line.contender);
            let row = self.row(scenario, subject, line.metric)?;
            Some(Row { rival: Some(rival), ratio: Some(line.value?), ..row })
        }));
        rows.extend(self.others.iter().cloned());
        rows
    }

    /// The rows as a JSON list.
    ///
    /// # Errors
    /// Never in practice: a value was not finite.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows())? + "\n")
    }

    /// The tables of one scenario: every contender's median with its extremes, and its ratio to
    /// the rival in the same run; the parts, and what tapd takes beside them.
    #[must_use]
    pub fn table(&self, scenario: Scenario) -> String {
        let mut text = String::new();
        let there = |subject: &Subject| {
            self.cells.iter().any(|c| (c.scenario, c.subject) == (scenario, *subject))
        };
        for group in Group::ALL {
            let columns: Vec<Subject> = Contender::ALL
                .into_iter()
                .filter(|contender| contender.group() == group)
                .map(Subject::Contender)
                .filter(there)
                .collect();
            for columns in columns.chunks(COLUMNS) {
                self.block(scenario, columns, &mut text);
            }
        }
        let parts: Vec<Subject> = Part::ALL.map(Subject::Part).into_iter().filter(there).collect();
        if !parts.is_empty() {
            self.block(scenario, &parts, &mut text);
        }
        for contender in Contender::ALL {
            let Contender::Tapd(variant) = contender else { continue };
            let Some(own) = self.own_cost(scenario, variant) else { continue };
            let parts: Vec<String> =
                own.parts.iter().map(|(part, cost)| format!("{} {cost:.2}", part.name())).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:<18} {:.2} s/GB of tcp1 / ({} = {:.2}) = {:.2}",
                contender.name(),
                own.spread.median,
                parts.join(" + "),
                own.sum(),
                own.ratio()
            );
        }
        text
    }

    /// What ran under each name.
    #[must_use]
    pub fn versions(&self) -> String {
        let lines = self.versions.iter().map(|(who, what)| format!("{:<24}{what}\n", who.name()));
        lines.collect()
    }

    fn block(&self, scenario: Scenario, columns: &[Subject], text: &mut String) {
        let head = format!("scenario {}", scenario.name());
        let _ = write!(text, "\n{head:<HEAD$}");
        for subject in columns {
            let _ = write!(text, "{:<WIDTH$}", subject.name());
        }
        for metric in Metric::ALL {
            let cells: Vec<Option<Row>> =
                columns.iter().map(|&subject| self.row(scenario, subject, metric)).collect();
            if cells.iter().all(Option::is_none) {
                continue;
            }
            let _ = write!(text, "\n{:<24}{:<13}", metric.name(), metric.unit());
            for row in cells {
                let cell = row.map_or("-".to_owned(), |row| {
                    let Spread { median, min, max } = row.spread;
                    let ratio = match row.ratio {
                        Some(ratio) if row.contender != Contender::RIVAL.name() => {
                            format!("x{ratio:.2}")
                        }
                        _ => String::new(),
                    };
                    format!("{} [{}..{}] {ratio}", short(median), short(min), short(max))
                });
                // A cell wider than its column keeps its distance.
                let _ = write!(text, "{cell:<w$} ", w = WIDTH - 1);
            }
        }
        text.push('\n');
        // Nothing but blanks behind the last column.
        let lines: Vec<&str> = text.split('\n').map(str::trim_end).collect();
        *text = lines.join("\n");
    }
}

/// About three digits: more would be noise.
fn short(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cells: &[(Subject, Metric, f64)]) -> Report {
        let mut report = Report::default();
        let scenario = Scenario::Wire;
        let cells = cells.iter();
        let cells =
            cells.map(|&(subject, metric, value)| Cell { scenario, subject, metric, value });
        report.add(cells.collect());
        report
    }

    fn who(contender: Contender) -> Subject {
        Subject::Contender(contender)
    }

    #[test]
    fn the_ratio_is_contender_over_rival() {
        let mut report = report(&[
            (who(Contender::KernelVxlan), Metric::Tcp1Gbps, 4.0),
            (who(Contender::SEALED), Metric::Tcp1Gbps, 1.0),
            (who(Contender::SEALED), Metric::Tcp1Gbps, 3.0),
        ]);
        report.add_version(Contender::SEALED, "tapd 9.9");
        let rows = report.rows();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].ratio, Some(0.5));
        assert_eq!((rows[1].spread.min, rows[1].spread.max), (1.0, 3.0));
        let json = report.to_json().unwrap();
        assert!(json.contains("\"median\": 2.0") && json.contains("tapd 9.9"), "{json}");
        assert!(report.table(Scenario::Wire).contains("x0.50"));
        assert!(report.versions().contains("tapd 9.9"));
    }

    #[test]
    fn own_cost_is_the_whole_over_the_sum_of_its_parts() {
        let cost = Metric::PartCpuSecondsPerGb;
        let report = report(&[
            (who(Contender::SEALED), Metric::Tcp1CpuSecondsPerGb, 4.5),
            (Subject::Part(Part::UdpRun), cost, 1.0),
            (Subject::Part(Part::TapPass), cost, 0.5),
            (Subject::Part(Part::Aead(Variant::Sealed)), cost, 1.5),
        ]);
        let own = report.own_cost(Scenario::Wire, Variant::Sealed).unwrap();
        assert_eq!((own.sum(), own.ratio()), (3.0, 1.5));
        assert_eq!(report.own_cost(Scenario::Wire, Variant::Clear), None);
        assert_eq!(report.own_cost(Scenario::Bare, Variant::Sealed), None);
        assert!(report.table(Scenario::Wire).contains("= 3.00) = 1.50"));
        let rows = report.rows();
        let row = rows.iter().find(|row| row.rival == Some(verdict::PARTS)).unwrap();
        assert_eq!((row.contender, row.ratio), ("tapd-sealed", Some(1.5)));
    }

    #[test]
    fn a_line_of_a_table_is_not_endless() {
        let cells = Contender::ALL.map(|c| (who(c), Metric::Tcp1Gbps, 1.0));
        let table = report(&cells).table(Scenario::Wire);
        for contender in Contender::ALL {
            assert!(table.contains(contender.name()));
        }
        assert!(table.lines().all(|line| line.len() <= HEAD + COLUMNS * WIDTH), "{table}");
    }
}
