//! `integration/run failover`: how long frames pause when a link fails.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use integration::failover::{self, Failure, Options};
use integration::lanes::Cut;

/// Let links fail again and again under a steady flow, and measure how long it pauses
///
/// Two nodes in two network namespaces are joined by several cables, a link each. A sender on alpha
/// sends numbered frames of 100 bytes through the tap network at a steady rate, and the kernel of
/// beta notes when each arrives. The link that carries the frames is made to fail, for half a
/// second; then it is healed, and once all links are up again the next failure follows.
///
/// For each failure the longest time without a new frame is taken, from just before the failure to
/// 500 ms after it. The table shows the percentiles of that, with the sender's own stalls taken off
/// ("raw max" is the worst with them), and the frames lost, received twice and overtaken in those
/// 500 ms of all failures. "lost btw" counts what was lost at other times, when a link came back.
///
/// The exit code says whether the measurement could be made, never whether a figure is good. Let
/// nothing else run meanwhile.
#[derive(Parser)]
#[command(name = "integration/run failover", after_help = EXAMPLES)]
struct Cli {
    /// Failures of each kind
    #[arg(long, default_value_t = 50)]
    cuts: usize,
    /// How the link fails (may be given several times)
    #[arg(long, value_enum, default_value = "drop-both")]
    kind: Vec<Kind>,
    /// passive, active, active:N, flow-hash or round-robin
    #[arg(long, default_value = "passive")]
    policy: String,
    /// Which frames are sent again by another link: off, control or all
    #[arg(long, default_value = "control")]
    protect: String,
    /// How fast failures are looked for: fast, normal, wan or knet-like
    #[arg(long, default_value = "fast")]
    profile: String,
    /// Frames per second, 100 and up
    #[arg(long, default_value_t = 10_000.0)]
    rate: f64,
    /// Links between the two nodes, 2 to 8
    #[arg(long, default_value_t = 2)]
    links: usize,
    /// Measure `tapd link drain` and `undrain` too, or instead if no --kind is given
    #[arg(long)]
    drain: bool,
    /// The links are on DPDK ports; only --kind carrier and carrier-far
    #[arg(long)]
    dpdk: bool,
    /// Write the rows to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  integration/run failover --kind all --cuts 200           a table of every kind, about 12 minutes
  integration/run failover --protect all                   nothing may be lost
  integration/run failover --policy active --links 3       every frame by every link
  integration/run failover --profile knet-like --cuts 10   as slow as kronosnet's defaults
  integration/run failover --dpdk --kind carrier           links on DPDK ports
  integration/run failover --drain --cuts 100              an administrator takes links out of use";

/// A cut, or all of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    One(Cut),
    All,
}

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::One(Cut::Carrier),
            Self::One(Cut::CarrierFar),
            Self::One(Cut::DropBoth),
            Self::One(Cut::DropIn),
            Self::One(Cut::DropOut),
            Self::One(Cut::Address),
            Self::All,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        match self {
            Self::One(cut) => cut.to_possible_value(),
            Self::All => Some(clap::builder::PossibleValue::new("all").help("each of these")),
        }
    }
}

fn main() -> Result<()> {
    use clap::{CommandFactory as _, FromArgMatches as _};
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches)?;
    let named = matches.value_source("kind") == Some(clap::parser::ValueSource::CommandLine);
    let mut kinds = Vec::new();
    if named || !cli.drain {
        for kind in &cli.kind {
            match kind {
                Kind::One(cut) => kinds.push(Failure::Cut(*cut)),
                Kind::All => kinds.extend(Cut::ALL.map(Failure::Cut)),
            }
        }
    }
    if cli.drain {
        kinds.push(Failure::Drain);
    }
    let options = Options {
        cuts: cli.cuts,
        kinds,
        policy: cli.policy,
        protect: cli.protect,
        profile: cli.profile,
        rate: cli.rate,
        links: cli.links,
        dpdk: cli.dpdk,
        json: cli.json,
    };
    println!(
        "longest pause of {} frames/s at each failure; {} links, profile {}",
        options.rate, options.links, options.profile
    );
    failover::run(&options).map(|_| ())
}
