//! `integration/run bench`: tapd and its rivals, same topology, same run, one report.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use clap::builder::PossibleValuesParser;
use integration::bench::contender::Contender;
use integration::bench::{self, Options, Scenario, verdict};

/// Compare tapd with the kernel's vxlan and other programs in the same two network namespaces, in
/// turns
#[derive(Parser)]
#[command(name = "integration/run bench", after_help = HELP)]
struct Cli {
    /// Less of everything, in three minutes
    #[arg(long)]
    quick: bool,
    /// Write one JSON row per cell to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these underlays, with commas between
    #[arg(long, alias = "scenario", value_enum, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// Only these contenders beside the kernel's vxlan, with commas between
    #[arg(
        long,
        alias = "contender",
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(words()),
    )]
    contenders: Vec<String>,
    /// The other programs too; installs what they need
    #[arg(long)]
    rivals: bool,
    /// How often every cell is measured [default: 5, with --quick up to 3]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Leave out the parts of tapd's work by themselves and the idle node
    #[arg(long)]
    no_parts: bool,
    /// Print what the contenders need that may be missing, one line each, and measure nothing
    #[arg(long, hide = true)]
    list_needs: bool,
}

const HELP: &str = "\
Examples:
  integration/run bench --quick                          a look
  integration/run bench --json rows.json                 all of tapd's, five rounds
  integration/run bench --rivals --scenarios wire        with everything that can be had
  integration/run bench --quick --contenders tapd-sealed,openvpn,kronosnet
  integration/run bench --quick --scenarios dpdk         virtual machines on DPDK ports
  integration/run bench --quick --scenarios channels     messages and streams of programs

Words that stand for many contenders: all, tapd (its variants), rivals (the other programs).
Only the kernel's vxlan and tapd need nothing more. The others come from Debian and crates.io and
are installed when they are named; one that cannot be had is skipped aloud.

Each value is a median [least..greatest]; x is its ratio to kernel-vxlan in the same run. The last
block says which bars of docs/performance.md the run met. Run nothing else meanwhile: figures of a
busy machine mean nothing. The exit code never judges a figure.";

/// What --contenders takes.
fn words() -> Vec<&'static str> {
    let words = ["all", "tapd", "rivals"].into_iter();
    words.chain(Contender::ALL.map(Contender::name)).collect()
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut options = if cli.quick { Options::quick() } else { Options::thorough() };
    if !cli.scenarios.is_empty() {
        options.scenarios = cli.scenarios;
    }
    if !cli.contenders.is_empty() {
        options.contenders =
            cli.contenders.iter().filter_map(|word| Contender::choose(word)).flatten().collect();
    }
    if cli.rivals {
        options.contenders.extend(Contender::choose("rivals").unwrap_or_default());
    }
    options.rounds = cli.rounds.unwrap_or(options.rounds).max(1);
    options.json = cli.json;
    options.parts = !cli.no_parts;
    if cli.list_needs {
        list_needs(&options);
        return Ok(());
    }
    println!(
        "median [least..greatest] of {} rounds; x = ratio to {} in the same run",
        options.rounds,
        Contender::RIVAL.name()
    );
    let report = bench::run(&options)?;
    if options.scenarios.iter().any(|scenario| scenario.is_of_kernel()) {
        print!("{}", verdict::text(&report));
    }
    Ok(())
}

/// For `integration/run`, which installs them.
fn list_needs(options: &Options) {
    let of_contenders = options.contenders.iter().flat_map(|contender| contender.needs());
    let dpdk = options.scenarios.contains(&Scenario::Dpdk);
    let of_dpdk = dpdk.then_some(bench::dpdk::NEEDS).into_iter().flatten();
    let channels = options.scenarios.contains(&Scenario::Channels);
    let of_channels = channels.then(bench::channels::needs).into_iter().flatten();
    let needs = of_contenders.copied().chain(of_dpdk).chain(of_channels);
    let mut lines: Vec<String> = needs.map(|need| need.line()).collect();
    lines.sort();
    lines.dedup();
    for line in lines {
        println!("{line}");
    }
}
