//! From measurements to the table and the JSON rows.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::Scenario;
use super::contender::Contender;
use super::work::Metric;
use crate::stats::Spread;

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// On which underlay.
    pub scenario: Scenario,
    /// By whom.
    pub contender: Contender,
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
    /// By whom.
    pub contender: &'static str,
    /// Compared with whom, in the same run.
    pub rival: &'static str,
    /// Of what.
    pub metric: &'static str,
    /// Of the three values below.
    pub unit: &'static str,
    /// Median, least and greatest of the rounds.
    #[serde(flatten)]
    pub spread: Spread,
    /// Median of the contender over median of the rival; none if the rival's is 0.
    pub ratio: Option<f64>,
}

/// All measurements of a run.
#[derive(Debug, Default)]
pub struct Report {
    cells: Vec<Cell>,
}

impl Report {
    /// Adds measurements.
    pub fn add(&mut self, cells: Vec<Cell>) {
        self.cells.extend(cells);
    }

    fn spread(&self, scenario: Scenario, contender: Contender, metric: Metric) -> Option<Spread> {
        let values: Vec<f64> = self
            .cells
            .iter()
            .filter(|c| (c.scenario, c.contender, c.metric) == (scenario, contender, metric))
            .map(|c| c.value)
            .collect();
        Spread::of(&values)
    }

    fn row(&self, scenario: Scenario, contender: Contender, metric: Metric) -> Option<Row> {
        let spread = self.spread(scenario, contender, metric)?;
        let rival = self.spread(scenario, Contender::RIVAL, metric).map(|s| s.median);
        Some(Row {
            scenario: scenario.name(),
            contender: contender.name(),
            rival: Contender::RIVAL.name(),
            metric: metric.name(),
            unit: metric.unit(),
            spread,
            ratio: rival.filter(|&rival| rival > 0.0).map(|rival| spread.median / rival),
        })
    }

    /// One row for every cell measured.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for scenario in Scenario::ALL {
            for metric in Metric::ALL {
                for contender in Contender::ALL {
                    rows.extend(self.row(scenario, contender, metric));
                }
            }
        }
        rows
    }

    /// The rows as a JSON list.
    ///
    /// # Errors
    /// Never in practice: a value was not finite.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows())? + "\n")
    }

    /// The table of one scenario: every contender's median with its extremes, and its ratio to the
    /// rival in the same run.
    #[must_use]
    pub fn table(&self, scenario: Scenario) -> String {
        let mut text = format!("\nscenario {}\n{:<18}{:<11}", scenario.name(), "metric", "unit");
        // Writing to a String cannot fail.
        for contender in Contender::ALL {
            let _ = write!(text, "{:<32}", contender.name());
        }
        for metric in Metric::ALL {
            let _ = write!(text, "\n{:<18}{:<11}", metric.name(), metric.unit());
            for contender in Contender::ALL {
                let cell = self.row(scenario, contender, metric).map_or("-".to_owned(), |row| {
                    let Spread { median, min, max } = row.spread;
                    let ratio = match row.ratio {
                        Some(ratio) if contender != Contender::RIVAL => format!("x{ratio:.2}"),
                        _ => String::new(),
                    };
                    format!("{median:.2} [{min:.2}..{max:.2}] {ratio}")
                });
                let _ = write!(text, "{cell:<32}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_contender_over_rival() {
        let mut report = Report::default();
        let cell = |contender, value| Cell {
            scenario: Scenario::Wire,
            contender,
            metric: Metric::Tcp1Gbps,
            value,
        };
        report.add(vec![
            cell(Contender::KernelVxlan, 4.0),
            cell(Contender::TapdSealed, 1.0),
            cell(Contender::TapdSealed, 3.0),
        ]);
        let rows = report.rows();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].ratio, Some(0.5));
        assert_eq!((rows[1].spread.min, rows[1].spread.max), (1.0, 3.0));
        assert!(report.to_json().unwrap().contains("\"median\": 2.0"));
        assert!(report.table(Scenario::Wire).contains("x0.50"));
    }
}
