//! The head-to-head comparison: all contenders up in the same two namespaces at the same time,
//! measured in turns.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::topology::{Family, Offloads, Pair};

pub mod contender;
pub mod work;
pub mod report;

use contender::{Contender, Overlay};
use report::{Cell, Report};
use work::{Pace, Work};

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
}

impl Scenario {
    /// All of them, the headline first.
    pub const ALL: [Self; 4] = [Self::Wire, Self::Superpacket, Self::Bare, Self::Jumbo];

    /// As in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Superpacket => "superpacket",
            Self::Bare => "bare",
            Self::Jumbo => "jumbo",
        }
    }

    fn offloads(self) -> Offloads {
        match self {
            Self::Wire | Self::Jumbo => Offloads::Wire,
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
    /// Everything, three rounds if there is time, within three minutes.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            scenarios: Scenario::ALL.to_vec(),
            contenders: Contender::ALL.to_vec(),
            rounds: 3,
            pace: Pace::QUICK,
            budget: Duration::from_secs(160),
            json: None,
        }
    }

    /// Everything, five rounds.
    #[must_use]
    pub fn thorough() -> Self {
        Self { rounds: 5, pace: Pace::FULL, budget: Duration::from_secs(3600), ..Self::quick() }
    }
}

/// Measures everything asked for, prints the table as scenarios finish, writes the JSON.
///
/// # Errors
/// Namespaces cannot be made, or the rival itself does not work.
pub fn run(options: &Options) -> Result<Report> {
    let start = Instant::now();
    let mut report = Report::default();
    // Every scenario has its fair share of the time that is left.
    for (scenario, scenarios_left) in
        options.scenarios.iter().zip((1..=options.scenarios.len() as u32).rev())
    {
        let left = options.budget.saturating_sub(start.elapsed());
        let cells = run_scenario(*scenario, options, left / scenarios_left)?;
        report.add(cells);
        println!("{}", report.table(*scenario));
    }
    if let Some(path) = &options.json {
        std::fs::write(path, report.to_json()?)?;
        println!("rows written to {}", path.display());
    }
    Ok(report)
}

fn run_scenario(scenario: Scenario, options: &Options, budget: Duration) -> Result<Vec<Cell>> {
    let start = Instant::now();
    let pair = Pair::new(Family::V4, scenario.interface_mtu())?;
    pair.set_offloads(scenario.offloads())?;
    let mut overlays = Vec::new();
    for contender in Contender::ALL {
        if contender != Contender::RIVAL && !options.contenders.contains(&contender) {
            continue;
        }
        match Overlay::set_up(contender, &pair) {
            Ok(overlay) => overlays.push(overlay),
            Err(error) if contender != Contender::RIVAL => {
                eprintln!("*** SKIPPED *** {} in {}: {error:#}", contender.name(), scenario.name());
            }
            Err(error) => return Err(error),
        }
    }
    ensure!(!overlays.is_empty(), "no contender works");
    let servers = work::Servers::start(&pair)?;
    let mut cells = Vec::new();
    for round in 0..options.rounds {
        if round > 0 && start.elapsed() * (round + 1) / round > budget {
            eprintln!("{}: {round} rounds, for lack of time", scenario.name());
            break;
        }
        for work in Work::ALL {
            // The turns A B C A B C: neighbours in time are compared with each other.
            for overlay in &overlays {
                if std::io::stderr().is_terminal() {
                    let (scenario, total) = (scenario.name(), options.rounds);
                    let (work, who) = (work.name(), overlay.contender.name());
                    eprint!("\r{scenario:12} round {}/{total} {work:8} {who:13}", round + 1);
                }
                for (metric, value) in work.measure(&pair, &servers, overlay, options.pace)? {
                    cells.push(Cell { scenario, contender: overlay.contender, metric, value });
                }
            }
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r{:60}\r", "");
    }
    Ok(cells)
}
