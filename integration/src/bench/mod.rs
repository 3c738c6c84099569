//! The head-to-head comparison: all contenders up in the same two namespaces at the same time,
//! measured in turns.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::topology::{Family, Offloads, Pair};

pub mod contender;
pub mod tapd;
pub mod rivals;
pub mod metric;
pub mod work;
pub mod parts;
pub mod dpdk;
pub mod channels;
mod figures;
pub mod report;
pub mod verdict;

use contender::{Contender, Overlay};
use metric::Metric;
use parts::Parts;
use report::{Cell, Report, Subject};
use tapd::Variant;
use work::{Pace, Servers, Work};

/// What the underlay is like; see docs/performance.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Scenario {
    /// Checksum offload and GRO, no segmentation offload: a NIC without TSO. The headline
    Wire,
    /// All offloads: two containers on one host
    Superpacket,
    /// No offloads: the worst case
    Bare,
    /// MTU 9000 with the offloads of `wire`: a storage network
    Jumbo,
    /// DPDK ports: virtual machines and a wire in memory, beside OVS-DPDK
    Dpdk,
    /// Messages and streams of programs, beside libknet, TCP and QUIC
    Channels,
    /// Three nodes at a switch and no traffic: no underlay to choose, but a place for what idle
    /// nodes cost.
    #[value(skip)]
    Quiet,
}

impl Scenario {
    /// All underlays of the kernel, the headline first.
    pub const ALL: [Self; 4] = [Self::Wire, Self::Superpacket, Self::Bare, Self::Jumbo];
    /// All places of measurements.
    pub const MEASURED: [Self; 5] =
        [Self::Wire, Self::Superpacket, Self::Bare, Self::Jumbo, Self::Quiet];

    /// As in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Superpacket => "superpacket",
            Self::Bare => "bare",
            Self::Jumbo => "jumbo",
            Self::Dpdk => "dpdk",
            Self::Channels => "channels",
            Self::Quiet => "quiet",
        }
    }

    /// Whether its contenders are those of [`Contender`], measured in cells.
    #[must_use]
    pub fn is_of_kernel(self) -> bool {
        !matches!(self, Self::Dpdk | Self::Channels)
    }

    fn offloads(self) -> Offloads {
        match self {
            Self::Wire | Self::Jumbo | Self::Dpdk | Self::Channels | Self::Quiet => Offloads::Wire,
            Self::Superpacket => Offloads::Superpacket,
            Self::Bare => Offloads::Bare,
        }
    }

    /// MTU of the underlay's interfaces, L3 bytes.
    fn interface_mtu(self) -> u32 {
        if self == Self::Jumbo { 9000 } else { 1500 }
    }
}

/// What to compare and how thoroughly.
#[derive(Debug, Clone)]
pub struct Options {
    /// In this order.
    pub scenarios: Vec<Scenario>,
    /// The rival is added if it is missing.
    pub contenders: Vec<Contender>,
    /// Whether to measure the parts of tapd's work by themselves, and what an idle node costs.
    pub parts: bool,
    /// How often every cell is measured.
    pub rounds: u32,
    /// How long the measurements take.
    pub pace: Pace,
    /// No further round starts after this (the first always does).
    pub budget: Duration,
    /// Where the JSON rows go.
    pub json: Option<PathBuf>,
}

impl Options {
    /// tapd in clear, sealed and with AEGIS, three rounds if there is time, within three minutes.
    #[must_use]
    pub fn quick() -> Self {
        let variants = [Variant::Clear, Variant::Sealed, Variant::Aegis256];
        let contenders = variants.map(Contender::Tapd).into_iter();
        Self {
            scenarios: Scenario::ALL.to_vec(),
            contenders: contenders.chain([Contender::RIVAL]).collect(),
            parts: false,
            rounds: 3,
            pace: Pace::QUICK,
            budget: Duration::from_secs(150),
            json: None,
        }
    }

    /// All of tapd's, five rounds.
    #[must_use]
    pub fn thorough() -> Self {
        Self {
            contenders: Contender::choose("tapd").unwrap_or_default(),
            rounds: 5,
            pace: Pace::FULL,
            budget: Duration::from_secs(4 * 3600),
            ..Self::quick()
        }
    }
}

/// Measures everything asked for, prints the tables as scenarios finish, writes the JSON.
///
/// # Errors
/// Namespaces cannot be made, or the rival itself does not work.
pub fn run(options: &Options) -> Result<Report> {
    let start = Instant::now();
    let mut report = Report::default();
    let kernel: Vec<_> =
        options.scenarios.iter().copied().filter(|scenario| scenario.is_of_kernel()).collect();
    let quick = options.pace == Pace::QUICK;
    if options.scenarios.contains(&Scenario::Dpdk) {
        report.add_rows(dpdk::run(options.rounds, quick)?);
    }
    if options.scenarios.contains(&Scenario::Channels) {
        report.add_rows(channels::run(options.rounds, quick)?);
    }
    if options.parts && !kernel.is_empty() && options.contenders.contains(&Contender::SEALED) {
        progress("three nodes at a switch, no traffic");
        let value = tapd::idle_percent()?;
        let subject = Subject::Contender(Contender::SEALED);
        let (scenario, metric) = (Scenario::Quiet, Metric::IdlePercent);
        report.add(vec![Cell { scenario, subject, metric, value }]);
    }
    // Every scenario has its fair share of the time that is left.
    for (scenario, scenarios_left) in kernel.iter().zip((1..=kernel.len() as u32).rev()) {
        let left = options.budget.saturating_sub(start.elapsed());
        run_scenario(*scenario, options, left / scenarios_left, &mut report)?;
        progress("");
        println!("{}", report.table(*scenario));
    }
    print!("{}", report.versions());
    if let Some(path) = &options.json {
        std::fs::write(path, report.to_json()?)?;
        println!("rows written to {}", path.display());
    }
    Ok(report)
}

fn run_scenario(
    scenario: Scenario,
    options: &Options,
    budget: Duration,
    report: &mut Report,
) -> Result<()> {
    let start = Instant::now();
    let pair = Pair::new(Family::V4, scenario.interface_mtu())?;
    pair.set_offloads(scenario.offloads())?;
    let mut overlays = set_up(scenario, options, &pair)?;
    for overlay in &overlays {
        report.add_version(overlay.contender, &overlay.version);
    }
    let servers = Servers::start(&pair)?;
    let mut parts = options.parts.then(|| Parts::set_up(&pair, scenario.interface_mtu()));
    for round in 0..options.rounds {
        if round > 0 && start.elapsed() * (round + 1) / round > budget {
            eprintln!("{}: {round} rounds, for lack of time", scenario.name());
            break;
        }
        let at = format!("{:12} round {}/{}", scenario.name(), round + 1, options.rounds);
        for work in Work::ALL {
            report.add(in_turns(work, scenario, options, &pair, &servers, &mut overlays, &at)?);
        }
        if let Some(parts) = &mut parts {
            progress(&format!("{at} parts"));
            let values = parts.measure(&pair, &servers, options.pace)?.into_iter();
            let cells = values.map(|(part, metric, value)| {
                let subject = Subject::Part(part);
                Cell { scenario, subject, metric, value }
            });
            report.add(cells.collect());
        }
    }
    Ok(())
}

/// The contenders that work here; those that do not are said aloud.
fn set_up(scenario: Scenario, options: &Options, pair: &Pair) -> Result<Vec<Overlay>> {
    let mut overlays = Vec::new();
    for contender in Contender::ALL {
        if contender != Contender::RIVAL && !options.contenders.contains(&contender) {
            continue;
        }
        progress(&format!("{:12} setting up {}", scenario.name(), contender.name()));
        match Overlay::set_up(contender, pair, scenario.interface_mtu()) {
            Ok(overlay) => overlays.push(overlay),
            Err(error) if contender != Contender::RIVAL => {
                progress("");
                eprintln!("*** SKIPPED *** {} in {}: {error:#}", contender.name(), scenario.name());
            }
            Err(error) => return Err(error),
        }
    }
    ensure!(!overlays.is_empty(), "no contender works");
    Ok(overlays)
}

/// A piece of work by all contenders, one after the other: neighbours in time are compared with
/// each other. A contender that fails at it takes no further part, and that is said aloud.
fn in_turns(
    work: Work,
    scenario: Scenario,
    options: &Options,
    pair: &Pair,
    servers: &Servers,
    overlays: &mut Vec<Overlay>,
    at: &str,
) -> Result<Vec<Cell>> {
    let scaling = options.contenders.contains(&Contender::Tapd(Variant::Sealed2Workers));
    let mut cells = Vec::new();
    let mut failed = Vec::new();
    for overlay in overlays.iter() {
        let contender = overlay.contender;
        if !work.is_for(contender, options.pace, scaling) {
            continue;
        }
        progress(&format!("{at} {:8} {}", work.name(), contender.name()));
        match work.measure(pair, servers, overlay, options.pace) {
            Ok(values) => cells.extend(values.into_iter().map(|(metric, value)| {
                let subject = Subject::Contender(contender);
                Cell { scenario, subject, metric, value }
            })),
            Err(error) if contender != Contender::RIVAL => {
                progress("");
                let (who, what) = (contender.name(), work.name());
                eprintln!("*** FAILED *** {who} at {what} in {}: {error:#}", scenario.name());
                failed.push(contender);
            }
            Err(error) => return Err(error),
        }
    }
    overlays.retain(|overlay| !failed.contains(&overlay.contender));
    Ok(cells)
}

/// Says what is under way, on a terminal; with nothing to say, clears the line.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:70}\r");
    }
}
