//! How long frames pause, and how many are lost, when the link that carries them fails.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::config::ClusterConfig;
use crate::dpdk;
use crate::flow::{Flow, FlowOptions, Outcome};
use crate::lanes::{Cut, Lanes};
use crate::links::{self, LaneDuo, Link, PATIENCE};
use crate::stats::percentile;
use crate::topology::Family;
use crate::wait;

/// What happens to a link after it failed is seen within this time.
const WINDOW: Duration = Duration::from_millis(500);
/// UDP payload of the flow: frames of 100 bytes.
const PAYLOAD: usize = 58;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each kind of failure is made.
    pub cuts: usize,
    /// The failures.
    pub kinds: Vec<Failure>,
    /// `[cluster] policy`.
    pub policy: String,
    /// `[cluster] protect`.
    pub protect: String,
    /// `[cluster] profile`.
    pub profile: String,
    /// Frames per second.
    pub rate: f64,
    /// Links between the two nodes, 2 to 8.
    pub links: usize,
    /// Whether the links are on DPDK ports (`net_af_packet`) and not on the kernel's UDP. DPDK sees
    /// frames before the kernel's filters do, so only carriers can fail.
    pub dpdk: bool,
    /// Where the rows go as JSON, if anywhere.
    pub json: Option<PathBuf>,
}

/// A way in which a link goes out of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Its cable fails.
    Cut(Cut),
    /// An administrator drains it.
    Drain,
}

impl Failure {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cut(cut) => cut.name(),
            Self::Drain => "drain",
        }
    }
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the failures were not worse.
    pub p50: f64,
    /// 99 of 100 were not worse.
    pub p99: f64,
    /// The worst.
    pub max: f64,
}

impl Percentiles {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent| percentile(&sorted, percent);
        Some(Self { p50: at(50.0)?, p99: at(99.0)?, max: at(100.0)? })
    }
}

/// What one kind of failure did.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The failure.
    pub kind: String,
    /// `[cluster] policy`.
    pub policy: String,
    /// `[cluster] protect`.
    pub protect: String,
    /// `[cluster] profile`.
    pub profile: String,
    /// Links between the two nodes.
    pub links: usize,
    /// Frames per second.
    pub rate: f64,
    /// Failures made.
    pub cuts: usize,
    /// Longest gap of each failure, the sender's own stalls taken off.
    pub gap_ms: Percentiles,
    /// Longest gap of each failure, whoever made it.
    pub raw_gap_ms: Percentiles,
    /// Longest stall of the sender about each failure.
    pub stall_ms: Percentiles,
    /// Frames lost within 500 ms of the failures.
    pub lost: u64,
    /// Frames that arrived twice within 500 ms of the failures.
    pub duplicated: u64,
    /// Frames that were overtaken within 500 ms of the failures.
    pub reordered: u64,
    /// Frames lost at other times: when the link came back.
    pub lost_between: u64,
    /// Frames that arrived twice at other times.
    pub duplicated_between: u64,
}

/// Measures and prints a table; gives its rows.
///
/// # Errors
/// The nodes or their links do not come up, or do not come up again. Never because of a figure.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    ensure!((2..=8).contains(&options.links), "{} links, not 2 to 8", options.links);
    ensure!(options.cuts > 0 && options.rate >= 100.0, "at least one cut, at least 100 frames/s");
    let filtered = |kind: &Failure| matches!(kind, Failure::Cut(cut) if !matches!(cut, Cut::Carrier | Cut::CarrierFar));
    ensure!(
        !options.dpdk || !options.kinds.iter().any(filtered),
        "DPDK ports fail by carrier and carrier-far only: name these with --kind"
    );
    let lanes = Lanes::plain(Family::V4, options.links)?;
    let mut config = match options.dpdk {
        true => {
            dpdk::require()?;
            ClusterConfig { sections: dpdk::SMALL.to_owned(), ..lanes.give_to_dpdk()? }
        }
        false => lanes.config(),
    };
    config.cluster_extra = format!(
        "policy = {:?}\nprotect = {:?}\nprofile = {:?}\n",
        options.policy, options.protect, options.profile
    );
    let duo = LaneDuo::with(lanes, &config).context("setting up two nodes")?;
    println!(
        "{:11} {:11} {:8} {:>5}  {:>8} {:>8} {:>8}  {:>8}  {:>6} {:>5} {:>6}  {:>8}",
        "kind",
        "policy",
        "protect",
        "cuts",
        "p50 ms",
        "p99 ms",
        "max ms",
        "raw max",
        "lost",
        "dup",
        "reord",
        "lost btw"
    );
    let mut rows = Vec::new();
    for kind in &options.kinds {
        let row = measure(&duo, *kind, options).with_context(|| kind.name())?;
        print(&row);
        rows.push(row);
        if let Some(path) = &options.json {
            std::fs::write(path, serde_json::to_string_pretty(&rows)?)
                .with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(rows)
}

fn print(row: &Row) {
    println!(
        "{:11} {:11} {:8} {:5}  {:8.2} {:8.2} {:8.2}  {:8.2}  {:6} {:5} {:6}  {:8}",
        row.kind,
        row.policy,
        row.protect,
        row.cuts,
        row.gap_ms.p50,
        row.gap_ms.p99,
        row.gap_ms.max,
        row.raw_gap_ms.max,
        row.lost,
        row.duplicated,
        row.reordered,
        row.lost_between,
    );
}

fn measure(duo: &LaneDuo, kind: Failure, options: &Options) -> Result<Row> {
    let flow = duo.flow(FlowOptions::at(options.rate).with_payload(PAYLOAD))?;
    // Half a second of traffic, so that the nodes are at their fast interval.
    flow.wait_received((options.rate / 2.0) as u64, PATIENCE)?;
    let mut at_cuts = Vec::new();
    let mut between = Vec::new();
    let mut restored = (Instant::now(), Instant::now());
    for number in 0..options.cuts {
        let link = victim(duo, number)?;
        let (cut, outcome) =
            fail_once(duo, &flow, kind, link).with_context(|| format!("cut {number}"))?;
        at_cuts.push(outcome);
        // Only now, when nothing of that time is under way any more.
        between.push(flow.outcome(restored.0, cut));
        restored.0 = cut + WINDOW;
        restore(duo, kind, link).with_context(|| format!("after cut {number}"))?;
        restored.1 = Instant::now();
    }
    flow.wait_received(10, PATIENCE)?;
    between.push(flow.outcome(restored.0, restored.1));
    flow.finish()?;
    summary(kind, options, &at_cuts, &between).context("no cut was made")
}

/// The link that carries frames; in turns if all do.
fn victim(duo: &LaneDuo, number: usize) -> Result<usize> {
    let all = links::links(&duo.alpha, 2)?;
    if !all.is_empty() && all.iter().all(Link::is_sending) {
        return Ok(number % all.len());
    }
    duo.sending()
}

/// Lets a link fail and looks at the flow from just before until the window is over.
fn fail_once(duo: &LaneDuo, flow: &Flow, kind: Failure, link: usize) -> Result<(Instant, Outcome)> {
    let begin = Instant::now();
    match kind {
        Failure::Cut(cut) => {
            duo.lanes.cut(link, cut)?;
        }
        Failure::Drain => {
            duo.alpha.tapd(&["link", "drain", "beta", &link.to_string()])?;
        }
    }
    wait::until("the window to be over", WINDOW * 2, || begin.elapsed() >= WINDOW)?;
    // Frames flow again, or the outcome would be that of a moment.
    flow.wait_received(10, PATIENCE).context("frames do not flow again")?;
    Ok((begin, flow.outcome(begin, begin + WINDOW)))
}

fn restore(duo: &LaneDuo, kind: Failure, link: usize) -> Result<()> {
    match kind {
        Failure::Cut(cut) => duo.lanes.heal(link, cut)?,
        Failure::Drain => {
            duo.alpha.tapd(&["link", "undrain", "beta", &link.to_string()])?;
        }
    }
    duo.wait_all_up()
}

fn summary(kind: Failure, options: &Options, at: &[Outcome], between: &[Outcome]) -> Option<Row> {
    let sum = |of: &[Outcome], what: fn(&Outcome) -> u64| of.iter().map(what).sum();
    Some(Row {
        kind: kind.name().to_owned(),
        policy: options.policy.clone(),
        protect: options.protect.clone(),
        profile: options.profile.clone(),
        links: options.links,
        rate: options.rate,
        cuts: at.len(),
        gap_ms: Percentiles::of(at.iter().map(|outcome| outcome.gap_ms))?,
        raw_gap_ms: Percentiles::of(at.iter().map(|outcome| outcome.raw_gap_ms))?,
        stall_ms: Percentiles::of(at.iter().map(|outcome| outcome.stall_ms))?,
        lost: sum(at, |outcome| outcome.lost),
        duplicated: sum(at, |outcome| outcome.duplicated),
        reordered: sum(at, |outcome| outcome.reordered),
        lost_between: sum(between, |outcome| outcome.lost),
        duplicated_between: sum(between, |outcome| outcome.duplicated),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(gap_ms: f64, lost: u64) -> Outcome {
        Outcome {
            sent: 100,
            lost,
            duplicated: 1,
            reordered: 2,
            damaged: 0,
            raw_gap_ms: gap_ms + 1.0,
            gap_ms,
            stall_ms: 0.0,
        }
    }

    #[test]
    fn a_row_sums_up_its_cuts() {
        let options = Options {
            cuts: 3,
            kinds: vec![Failure::Drain],
            policy: "passive".to_owned(),
            protect: "control".to_owned(),
            profile: "fast".to_owned(),
            rate: 1000.0,
            links: 2,
            dpdk: false,
            json: None,
        };
        let cuts = [outcome(5.0, 1), outcome(3.0, 0), outcome(9.0, 4)];
        let row = summary(Failure::Drain, &options, &cuts, &[outcome(0.0, 2)]).unwrap();
        assert_eq!(row.gap_ms, Percentiles { p50: 5.0, p99: 9.0, max: 9.0 });
        assert_eq!((row.raw_gap_ms.max, row.lost, row.reordered), (10.0, 5, 6));
        assert_eq!((row.kind.as_str(), row.lost_between), ("drain", 2));
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["gap_ms"]["p99"] == 9.0 && json["duplicated"] == 3);
        assert!(summary(Failure::Drain, &options, &[], &[]).is_none());
    }
}
