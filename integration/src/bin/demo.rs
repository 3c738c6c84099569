//! `integration/run demo`: two nodes, and a look at what they do, from a ping to the head-to-head.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use integration::bench::contender::Contender;
use integration::bench::{self, Options, Scenario};
use integration::cluster::overlay_v4;
use integration::config::ClusterDir;
use integration::look::{self, BothSides, SEALED_OVERHEAD, packets_with};
use integration::node::Node;
use integration::topology::{Family, Offloads, Pair, UNDERLAY};
use integration::traffic::{IperfRun, IperfServer, iperf, ping};

/// Two nodes in two network namespaces, and a look at what they do
#[derive(Parser)]
#[command(name = "integration/run demo")]
struct Cli {
    /// The configuration to show
    #[arg(long, default_value = "docs/example/cluster.toml")]
    config: PathBuf,
    /// Leave out the comparison with the kernel's vxlan
    #[arg(long)]
    no_bench: bool,
}

/// What is sent across, to be looked for on the link.
const PLAINTEXT: &[u8] = b"tapd demo: can you read this on the wire?";

fn main() -> Result<()> {
    let cli = Cli::parse();
    title("Two hosts, one cable, one network across it");
    println!(
        "  namespace alpha                                namespace beta\n\
         +------------------------------+   cable   +------------------------------+\n\
         | tap100 10.100.0.1            |           |            10.100.0.2 tap100 |\n\
         |    |                         |           |                         |    |\n\
         |  tapd ---- under0 192.0.2.1 -o-----------o- 192.0.2.2 under0 ---- tapd  |\n\
         +------------------------------+           +------------------------------+"
    );
    let pair = Pair::new(Family::V4, 1500)?;
    // As a network card without TSO: what a capture shows is what a cable would carry.
    pair.set_offloads(Offloads::Wire)?;
    let (mut alpha, mut beta, _dir) = start(&cli.config, &pair)?;
    pings(&pair)?;
    throughput(&pair)?;
    secrecy(&pair)?;
    overhead_of_26(&pair)?;
    title("Stopping both with SIGTERM");
    for node in [&mut alpha, &mut beta] {
        node.stop(&["tap100"])?;
        println!("{}: exit code 0, tap and control socket are gone", node.name());
    }
    drop((alpha, beta, pair));
    if !cli.no_bench {
        head_to_head()?;
    }
    println!("\nThe demo is over; its namespaces are removed.");
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text} ==");
}

/// Starts both nodes with the example configuration and a new key.
fn start(config: &Path, pair: &Pair) -> Result<(Node, Node, ClusterDir)> {
    title("One configuration file for both, and one key");
    let text = fs::read_to_string(config)
        .with_context(|| format!("reading {} (run from the project's folder)", config.display()))?;
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.trim().starts_with('#')) {
        println!("    {line}");
    }
    let dir = ClusterDir::from_text(&text)?;
    let mode = fs::metadata(dir.path("cluster.key"))?.permissions().mode() & 0o777;
    println!("$ tapd keygen cluster.key       # made with mode {mode:04o}");
    println!("$ tapd run --config cluster.toml --node alpha     # and beta on the other host");
    let begin = Instant::now();
    let alpha = Node::start(&dir, &pair.alpha, "alpha")?;
    let beta = Node::start(&dir, &pair.beta, "beta")?;
    alpha.wait_peer_up(2)?;
    beta.wait_peer_up(1)?;
    println!("both ready and up with each other after {} ms", begin.elapsed().as_millis());
    println!("$ tapd show peers               # on alpha\n{}", alpha.tapd(&["show", "peers"])?);
    Ok((alpha, beta, dir))
}

fn pings(pair: &Pair) -> Result<()> {
    title("Ping across");
    for (netns, from, to) in [(&pair.alpha, 1, 2), (&pair.beta, 2, 1)] {
        let report = ping(netns, overlay_v4(100, to), 20, 56)?;
        println!(
            "{} -> {}: {} of {} pings answered",
            overlay_v4(100, from),
            overlay_v4(100, to),
            report.received,
            report.sent
        );
        ensure!(report.received == report.sent, "pings were lost");
    }
    Ok(())
}

fn throughput(pair: &Pair) -> Result<()> {
    title("iperf3 across, sealed with AES-256-GCM");
    let _server = IperfServer::start(&pair.beta)?;
    for (reverse, name) in [(false, "alpha -> beta"), (true, "beta -> alpha")] {
        let run = IperfRun { seconds: 2, streams: 1, reverse, udp: None };
        let report = iperf(&pair.alpha, overlay_v4(100, 2), run)?;
        println!("TCP {name}: {:.2} Gbit/s", report.bits_per_second / 1e9);
    }
    Ok(())
}

/// Sends a known text across and looks for it on both sides of tapd.
fn secrecy(pair: &Pair) -> Result<()> {
    title("What can be read on the cable?");
    println!("sent 100 times in UDP across: {:?}", String::from_utf8_lossy(PLAINTEXT));
    let ends = (overlay_v4(100, 1), overlay_v4(100, 2));
    let BothSides { tap, cable } =
        look::send_text(&pair.alpha, "tap100", UNDERLAY, ends, PLAINTEXT, 100)?;
    let (on_tap, on_cable) = (packets_with(&tap, PLAINTEXT), packets_with(&cable, PLAINTEXT));
    println!("on tap100 the text is in    {on_tap:3} of {} packets", tap.len());
    println!("on the cable the text is in {on_cable:3} of {} packets", cable.len());
    for (name, address) in [("source", [10, 100, 0, 1]), ("destination", [10, 100, 0, 2])] {
        println!(
            "the overlay's {name} address: on tap100 in {} packets, on the cable in {}",
            packets_with(&tap, &address),
            packets_with(&cable, &address)
        );
    }
    ensure!(on_tap == 100, "the text should have been seen 100 times on the tap");
    ensure!(on_cable == 0, "the text can be read on the cable");
    let shown = cable.iter().rev().find(|p| p.len() > 42 + PLAINTEXT.len() && p.len() < 300);
    if let Some(packet) = shown {
        println!("one of those packets, from its UDP payload on:");
        for line in packet[42..].chunks(16).take(5) {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("    {}", hex.join(" "));
        }
    }
    Ok(())
}

/// Compares lengths on both sides of tapd.
fn overhead_of_26(pair: &Pair) -> Result<()> {
    title("What does sealing add?");
    let sizes = [150, 300, 600, 900, 1200];
    println!("frame on tap100   UDP payload on the cable   beyond the frame");
    for carried in look::overheads(&pair.alpha, "tap100", UNDERLAY, overlay_v4(100, 2), &sizes)? {
        println!("{:15}   {:24}   {:16}", carried.frame, carried.datagram, carried.overhead());
        ensure!(carried.overhead() == SEALED_OVERHEAD, "that should be {SEALED_OVERHEAD}");
    }
    println!("8 clear + 2 sealed header bytes + 16 bytes of tag = 26");
    Ok(())
}

fn head_to_head() -> Result<()> {
    title("The same work over the kernel's vxlan, in the same two namespaces, in turns");
    println!(
        "scenario wire: checksum offload, no segmentation offload; x = ratio to {}",
        Contender::RIVAL.name()
    );
    let options = Options {
        scenarios: vec![Scenario::Wire],
        budget: Duration::from_secs(45),
        ..Options::quick()
    };
    bench::run(&options).map(|_| ())
}
