//! `tapd-traffic`: batching UDP load between network namespaces; prints JSON.
//!
//! Made because iperf3's own limit is below that of what is measured. It refuses to work outside
//! of named network namespaces.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use integration::capture::{datagrams, read_pcap};
use integration::load::junk::{Junk, Kind};
use integration::load::rate::{self, Search};
use integration::load::{Place, UdpPath, pingpong};
use integration::netns;

/// Batching UDP load between network namespaces; prints JSON.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send at one rate and count what arrives
    Rate {
        #[command(flatten)]
        ends: Ends,
        /// UDP payload in bytes
        #[arg(long, default_value_t = 64)]
        payload: usize,
        /// Datagrams per second; 0 floods
        #[arg(long, default_value_t = 0.0)]
        rate: f64,
        /// How long to send
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Search for the highest rate at which nearly nothing is lost
    Search {
        #[command(flatten)]
        ends: Ends,
        /// UDP payload in bytes
        #[arg(long, default_value_t = 64)]
        payload: usize,
        /// Loss in percent that counts as none
        #[arg(long, default_value_t = 0.1)]
        max_loss: f64,
        /// How long one trial sends, in seconds
        #[arg(long, default_value_t = 0.3)]
        trial: f64,
        /// No trial starts after this many seconds
        #[arg(long, default_value_t = 8.0)]
        budget: f64,
    },
    /// Send one datagram at a time forth and back
    Pingpong {
        #[command(flatten)]
        ends: Ends,
        /// UDP payload in bytes
        #[arg(long, default_value_t = 64)]
        payload: usize,
        /// How long to measure
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Send hostile datagrams with any source address (IPv4)
    Junk {
        /// Namespace to send from
        #[arg(long)]
        from_netns: String,
        /// Source address on the packets
        #[arg(long)]
        from: Ipv4Addr,
        /// Source port on the packets
        #[arg(long, default_value_t = 26026)]
        from_port: u16,
        /// Where they go
        #[arg(long)]
        to: Ipv4Addr,
        /// Which port they go to
        #[arg(long, default_value_t = 26026)]
        to_port: u16,
        /// What they are
        #[arg(long, value_enum, default_value_t = JunkKind::Random)]
        kind: JunkKind,
        /// pcap file whose UDP payloads to the same port are replayed or mutated
        #[arg(long)]
        capture: Option<PathBuf>,
        /// Datagrams per second
        #[arg(long, default_value_t = 100_000.0)]
        rate: f64,
        /// How many in all
        #[arg(long, default_value_t = 100_000)]
        count: u64,
        /// Repeats a run
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Args)]
struct Ends {
    /// Namespace to send from
    #[arg(long)]
    from_netns: String,
    /// An address in that namespace
    #[arg(long)]
    from: IpAddr,
    /// Namespace to receive in
    #[arg(long)]
    to_netns: String,
    /// An address in that namespace
    #[arg(long)]
    to: IpAddr,
}

#[derive(Clone, Copy, ValueEnum)]
enum JunkKind {
    /// Random bytes
    Random,
    /// Exact copies of captured payloads
    Replay,
    /// Captured payloads with changes
    Mutate,
    /// A third of each
    Mix,
}

impl Ends {
    fn open(&self) -> Result<UdpPath> {
        let (near, far): (File, File) =
            (netns::open(&self.from_netns)?, netns::open(&self.to_netns)?);
        UdpPath::open(
            &Place { netns: &near, address: self.from },
            &Place { netns: &far, address: self.to },
        )
    }
}

fn main() -> Result<()> {
    let json = match Cli::parse().command {
        Command::Rate { ends, payload, rate, seconds } => {
            let rate = (rate > 0.0).then_some(rate);
            let span = Duration::from_secs_f64(seconds);
            serde_json::to_string(&rate::trial(&ends.open()?, payload, rate, span)?)?
        }
        Command::Search { ends, payload, max_loss, trial, budget } => {
            let search = Search {
                payload,
                max_loss: max_loss / 100.0,
                trial: Duration::from_secs_f64(trial),
                budget: Duration::from_secs_f64(budget),
            };
            serde_json::to_string(&rate::search(&ends.open()?, search)?)?
        }
        Command::Pingpong { ends, payload, seconds } => {
            let span = Duration::from_secs_f64(seconds);
            serde_json::to_string(&pingpong::measure(&ends.open()?, payload, span)?)?
        }
        Command::Junk {
            from_netns,
            from,
            from_port,
            to,
            to_port,
            kind,
            capture,
            rate,
            count,
            seed,
        } => {
            let packets = capture.map(|path| read_pcap(&path)).transpose()?.unwrap_or_default();
            let material = datagrams(&packets)
                .into_iter()
                .filter(|datagram| datagram.destination_port == to_port)
                .map(|datagram| datagram.payload);
            let kind = match kind {
                JunkKind::Random => Kind::Random,
                JunkKind::Replay => Kind::Replay,
                JunkKind::Mutate => Kind::Mutate,
                JunkKind::Mix => Kind::Mix,
            };
            let junk = Junk {
                kind,
                source: (from, from_port),
                destination: (to, to_port),
                rate,
                count,
                seed,
                material: material.collect(),
            };
            serde_json::to_string(&junk.send(&netns::open(&from_netns)?)?)?
        }
    };
    println!("{json}");
    Ok(())
}
