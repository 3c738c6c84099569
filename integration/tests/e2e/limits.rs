//! Bounds on time and memory.

use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::cluster::{Duo, Mesh, overlay_v4};
use integration::config::{ClusterConfig, ClusterDir};
use integration::node::Node;
use integration::skip::case;
use integration::topology::{Family, Pair, Star};
use integration::traffic::{
    IperfRun, IperfServer, iperf, ping_all, ping_until_answer, start_iperf,
};
use integration::wait;

const MEGABYTE: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn perf_start_to_first_ping_under_a_second() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let begin = Instant::now();
        let _alpha = Node::spawn(&dir, &pair.alpha, "alpha", &[])?;
        let mut beta = Node::spawn(&dir, &pair.beta, "beta", &[])?;
        ping_until_answer(&pair.alpha, overlay_v4(100, 2), PATIENCE)?;
        let both = begin.elapsed();
        println!("both started together: first ping after {both:?}");
        ensure!(both < Duration::from_secs(1), "{both:?}");
        // And when one comes later.
        beta.wait_ready()?;
        beta.stop(&["tap100"])?;
        let begin = Instant::now();
        beta.restart()?;
        ping_until_answer(&pair.beta, overlay_v4(100, 1), PATIENCE)?;
        let late = begin.elapsed();
        println!("one started later: first ping after {late:?}");
        ensure!(late < Duration::from_secs(1), "{late:?}");
        beta.wait_ready()
    });
}

#[test]
fn perf_memory_with_two_peers_under_20_mb() {
    case(|| {
        let mesh = Mesh::with(Star::new(Family::V4, 3)?, &ClusterConfig::new(Family::V4, 3))?;
        let _server = IperfServer::start(&mesh.star.hosts[1])?;
        ping_all(&mesh.star.hosts[0], overlay_v4(100, 3))?;
        let run = IperfRun { seconds: 2, streams: 4, reverse: false, udp: None };
        iperf(&mesh.star.hosts[0], overlay_v4(100, 2), run)?;
        for node in &mesh.nodes {
            let bytes = node.resident_bytes()?;
            println!("{}: {:.1} MB resident", node.name(), bytes as f64 / 1e6);
            ensure!(bytes < 20_000_000, "{} has {bytes} bytes resident", node.name());
        }
        Ok(())
    });
}

#[test]
fn perf_idle_daemon_rests() {
    case(|| {
        let duo = Duo::new()?;
        // Fields 14 and 15 of /proc/PID/stat: user and system time in ticks of 10 ms.
        let ticks = || -> anyhow::Result<u64> {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", duo.alpha.pid()))?;
            let fields = stat.rsplit(") ").next().unwrap_or_default();
            Ok(fields.split(' ').skip(11).take(2).flat_map(str::parse::<u64>).sum())
        };
        let before = ticks()?;
        let span = Duration::from_secs(3);
        wait::holds_for("the peer is up", span, || duo.beta.pid() > 0)?;
        let used = ticks()? - before;
        println!("{used} ticks of CPU time in {span:?}");
        ensure!(used < 30, "{used} ticks of CPU time in {span:?}: it does not block when idle");
        Ok(())
    });
}

/// Ten minutes (or `TAPD_MEMORY_SECONDS`) of load; the second half must not grow.
#[test]
#[ignore = "takes 10 minutes: integration/run test --all runs it"]
fn perf_memory_does_not_grow() {
    case(|| {
        let seconds = std::env::var("TAPD_MEMORY_SECONDS").ok().and_then(|s| s.parse().ok());
        let seconds: u32 = seconds.unwrap_or(600);
        let duo = Duo::new()?;
        let _server = IperfServer::start(&duo.pair.beta)?;
        let run = IperfRun { seconds, streams: 2, reverse: false, udp: None };
        let load = start_iperf(&duo.pair.alpha, overlay_v4(100, 2), run)?;
        let begin = Instant::now();
        let half = Duration::from_secs(u64::from(seconds / 2));
        wait::until("half of the time", half + PATIENCE, || begin.elapsed() >= half)?;
        let sizes = || -> anyhow::Result<[u64; 2]> {
            Ok([duo.alpha.resident_bytes()?, duo.beta.resident_bytes()?])
        };
        let middle = sizes()?;
        let report = load.finish()?;
        let end = sizes()?;
        println!("resident bytes at half time {middle:?}, at the end {end:?}; {report:?}");
        for (middle, end) in middle.into_iter().zip(end) {
            ensure!(end < middle + MEGABYTE, "grew from {middle} to {end} bytes");
        }
        Ok(())
    });
}
