//! The bars that are set for tapd (docs/performance.md), and whether a run met them. Figures of a
//! shared machine are no reason to fail: nothing here is an assertion.

use std::fmt::Write as _;

use super::Scenario;
use super::contender::Contender;
use super::metric::Metric;
use super::report::{Report, Subject};
use super::tapd::Variant;

/// The rival's name where tapd is compared with the sum of what it cannot do without.
pub const PARTS: &str = "sum-of-parts";

/// What is good enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Less than this.
    Below(f64),
    /// There is none: worth knowing.
    None,
}

impl Bar {
    fn met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(bar) => Some(value >= bar),
            Self::AtMost(bar) => Some(value <= bar),
            Self::Below(bar) => Some(value < bar),
            Self::None => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bar) => format!(">= {bar}"),
            Self::AtMost(bar) => format!("<= {bar}"),
            Self::Below(bar) => format!("< {bar}"),
            Self::None => String::new(),
        }
    }
}

/// One bar and how far a run got.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Name of the goal.
    pub goal: &'static str,
    /// On which underlay.
    pub scenario: Scenario,
    /// Who has to meet it.
    pub contender: Contender,
    /// In comparison with whom; none if the bar is the figure itself.
    pub rival: Option<&'static str>,
    /// Of what.
    pub metric: Metric,
    /// Ratio of the medians, or the median itself; none if it was not measured.
    pub value: Option<f64>,
    /// What is good enough.
    pub bar: Bar,
}

/// Bars on ratios to the kernel's vxlan.
fn usual_bars() -> Vec<(&'static str, Scenario, Variant, Metric, Bar)> {
    use Metric::{PingpongP50, Tcp1Gbps, Tcp4Gbps, Udp64Kfps};
    use Scenario::{Superpacket, Wire};
    let mut bars = Vec::new();
    for metric in [Tcp1Gbps, Tcp4Gbps] {
        bars.push(("P1", Wire, Variant::Sealed, metric, Bar::AtLeast(0.5)));
        bars.push(("P1", Wire, Variant::Aegis256, metric, Bar::AtLeast(0.65)));
        bars.push(("P1", Wire, Variant::Aegis128L, metric, Bar::AtLeast(0.65)));
        bars.push(("P2", Wire, Variant::Clear, metric, Bar::AtLeast(0.8)));
        bars.push(("P3", Superpacket, Variant::Clear, metric, Bar::AtLeast(0.45)));
        bars.push(("P3", Superpacket, Variant::Sealed, metric, Bar::AtLeast(0.23)));
    }
    bars.push(("P4", Wire, Variant::Sealed, Udp64Kfps, Bar::AtLeast(2.5)));
    bars.push(("P5", Wire, Variant::Sealed, PingpongP50, Bar::AtMost(1.6)));
    bars.sort_by_key(|bar| bar.0);
    bars
}

/// Every bar with what the run says of it.
#[must_use]
pub fn judge(report: &Report) -> Vec<Line> {
    let mut lines = Vec::new();
    let against = |goal, scenario, variant, rival: Contender, metric, bar| {
        let contender = Contender::Tapd(variant);
        let value = report.ratio(scenario, contender, rival, metric);
        Line { goal, scenario, contender, rival: Some(rival.name()), metric, value, bar }
    };
    for (goal, scenario, variant, metric, bar) in usual_bars() {
        lines.push(against(goal, scenario, variant, Contender::RIVAL, metric, bar));
    }
    for rival in Contender::ALL.into_iter().filter(|rival| rival.seals_frames()) {
        let bar = Bar::AtLeast(3.0);
        lines.push(against("P6", Scenario::Wire, Variant::Sealed, rival, Metric::Tcp1Gbps, bar));
    }
    let idle =
        report.spread(Scenario::Quiet, Subject::Contender(Contender::SEALED), Metric::IdlePercent);
    lines.push(Line {
        goal: "P10",
        scenario: Scenario::Quiet,
        contender: Contender::SEALED,
        rival: None,
        metric: Metric::IdlePercent,
        value: idle.map(|spread| spread.median),
        bar: Bar::Below(1.0),
    });
    for scenario in Scenario::ALL {
        for variant in [Variant::Clear, Variant::Sealed, Variant::Aegis256, Variant::Aegis128L] {
            lines.push(Line {
                goal: "P11",
                scenario,
                contender: Contender::Tapd(variant),
                rival: Some(PARTS),
                metric: Metric::Tcp1CpuSecondsPerGb,
                value: report.own_cost(scenario, variant).map(|own| own.ratio()),
                bar: Bar::AtMost(1.15),
            });
        }
        // What the second worker brings.
        for metric in [Metric::Tcp4Gbps, Metric::Udp64x4Kfps] {
            let two = Variant::Sealed2Workers;
            lines.push(against("2w", scenario, two, Contender::SEALED, metric, Bar::None));
        }
    }
    lines
}

/// The closing block: a line for every bar that was measured, and the names of the others.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = String::from("\nbars; figures of a busy or shared machine decide nothing\n");
    let mut missing: Vec<&str> = Vec::new();
    for line in judge(report) {
        let Some(value) = line.value else {
            if line.bar != Bar::None && !missing.contains(&line.goal) {
                missing.push(line.goal);
            }
            continue;
        };
        let verdict = match line.bar.met(value) {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        let who = match line.rival {
            Some(rival) => format!("{} / {rival}", line.contender.name()),
            None => line.contender.name().to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<5}{:<12}{:<20}{who:<42}{value:>6.2}  {:<8} {verdict}",
            line.goal,
            line.scenario.name(),
            line.metric.name(),
            line.bar.text(),
        );
    }
    if !missing.is_empty() {
        let _ = writeln!(text, "not measured, or not in all cells: {}", missing.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::report::Cell;
    use super::*;

    fn cell(scenario: Scenario, contender: Contender, metric: Metric, value: f64) -> Cell {
        Cell { scenario, subject: Subject::Contender(contender), metric, value }
    }

    #[test]
    fn each_kind_of_bar_is_met_and_missed() {
        assert_eq!(Bar::AtLeast(0.5).met(0.5), Some(true));
        assert_eq!(Bar::AtLeast(0.5).met(0.49), Some(false));
        assert_eq!(Bar::AtMost(1.6).met(1.6), Some(true));
        assert_eq!(Bar::AtMost(1.6).met(1.61), Some(false));
        assert_eq!(Bar::Below(1.0).met(1.0), Some(false));
        assert_eq!(Bar::None.met(1.0), None);
    }

    #[test]
    fn a_run_is_judged_by_what_it_measured() {
        let mut report = Report::default();
        let wire = Scenario::Wire;
        report.add(vec![
            cell(wire, Contender::KernelVxlan, Metric::Tcp1Gbps, 4.0),
            cell(wire, Contender::SEALED, Metric::Tcp1Gbps, 2.4),
            cell(wire, Contender::Openvpn, Metric::Tcp1Gbps, 1.0),
            cell(Scenario::Quiet, Contender::SEALED, Metric::IdlePercent, 0.4),
        ]);
        let text = text(&report);
        let line = |part: &str| text.lines().find(|l| l.contains(part)).unwrap_or_default();
        assert!(line("tapd-sealed / kernel-vxlan").ends_with("met"), "{text}");
        assert!(line("tapd-sealed / openvpn").ends_with("missed"), "{text}");
        assert!(line("idle_cpu_percent").ends_with("met"), "{text}");
        assert!(line("not measured").contains("P4"), "{text}");
        assert!(!text.contains("tinc"));
        let rows = report.rows();
        let p6 = rows.iter().find(|row| row.rival == Some("openvpn")).unwrap();
        assert_eq!((p6.contender, p6.ratio), ("tapd-sealed", Some(2.4)));
    }
}
