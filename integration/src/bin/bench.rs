//! `integration/run bench`: tapd and its rivals, same topology, same run, one table.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use integration::bench::contender::Contender;
use integration::bench::{self, Options, Scenario};

/// Compare tapd with the kernel's vxlan in the same two network namespaces, in turns
#[derive(Parser)]
#[command(name = "integration/run bench")]
struct Cli {
    /// Everything in under three minutes, with less certainty
    #[arg(long)]
    quick: bool,
    /// Write one JSON row per cell to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this scenario (may be given several times)
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Only this contender beside the kernel's vxlan (may be given several times)
    #[arg(long, value_enum)]
    contender: Vec<Contender>,
    /// How often every cell is measured
    #[arg(long)]
    rounds: Option<u32>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut options = if cli.quick { Options::quick() } else { Options::thorough() };
    if !cli.scenario.is_empty() {
        options.scenarios = cli.scenario;
    }
    if !cli.contender.is_empty() {
        options.contenders = cli.contender;
    }
    options.rounds = cli.rounds.unwrap_or(options.rounds).max(1);
    options.json = cli.json;
    println!(
        "median [least..greatest] of {} rounds; x = ratio to {} in the same run",
        options.rounds,
        Contender::RIVAL.name()
    );
    bench::run(&options).map(|_| ())
}
