//! tapd as a contender, and what it costs when nothing happens.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::rivals::Site;
use crate::cluster::{Mesh, wait_measured};
use crate::command::{built_binary, output_of, run_command};
use crate::config::{ClusterConfig, ClusterDir, NetworkEntry};
use crate::node::Node;
use crate::topology::{Family, Star, UNDERLAY};

/// A configuration of tapd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// The cipher `none`.
    Clear,
    /// As it comes: AES-256-GCM.
    Sealed,
    /// AEGIS-256.
    Aegis256,
    /// AEGIS-128L.
    Aegis128L,
    /// As it comes, but with two workers.
    Sealed2Workers,
    /// As it comes, with two links and a copy of every frame on each.
    Sealed2Links,
}

impl Variant {
    /// As in tables, JSON and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clear => "tapd-clear",
            Self::Sealed => "tapd-sealed",
            Self::Aegis256 => "tapd-aegis256",
            Self::Aegis128L => "tapd-aegis128l",
            Self::Sealed2Workers => "tapd-sealed-2w",
            Self::Sealed2Links => "tapd-sealed-2links",
        }
    }

    /// The name of its cipher in configurations.
    #[must_use]
    pub fn cipher(self) -> &'static str {
        match self {
            Self::Clear => "none",
            Self::Sealed | Self::Sealed2Workers | Self::Sealed2Links => "aes-256-gcm",
            Self::Aegis256 => "aegis-256",
            Self::Aegis128L => "aegis-128l",
        }
    }

    fn config(self, number: u8, port: u16) -> ClusterConfig {
        let network = NetworkEntry {
            // No IPv6: the kernel's own messages would be in the other contenders' way.
            subnets: vec![format!("10.{number}.0.0/24")],
            ..NetworkEntry::new(number.into())
        };
        let usual = ClusterConfig::new(Family::V4, 2);
        let mut config = ClusterConfig { port, networks: vec![network], ..usual };
        config.ciphers = vec![self.cipher().to_owned()];
        match self {
            Self::Clear => config.insecure = true,
            Self::Sealed2Workers => config.workers = 2,
            Self::Sealed2Links => {
                config.cluster_extra = "policy = \"active\"\n".to_owned();
                for (host, node) in (1..).zip(&mut config.nodes) {
                    node.addresses.push(second_address(host).into());
                }
            }
            Self::Sealed | Self::Aegis256 | Self::Aegis128L => {}
        }
        config
    }
}

/// The underlay address of a host's second link; it shares the cable with the first.
fn second_address(host: u8) -> std::net::Ipv4Addr {
    [198, 51, 100, host].into()
}

/// Two daemons that are up with each other.
#[derive(Debug)]
pub struct Tapd {
    /// What runs, for the report.
    pub version: String,
    /// Dropped before the files that they use.
    _nodes: [Node; 2],
    _dir: ClusterDir,
}

impl Tapd {
    /// Starts it on both hosts and makes sure that it carries pings of every size.
    ///
    /// # Errors
    /// This tapd knows no such configuration, or it does not work.
    pub fn set_up(variant: Variant, site: &Site<'_>) -> Result<Self> {
        let dir = ClusterDir::new(&variant.config(site.number, site.port()))?;
        let mut check = Command::new(built_binary("tapd")?);
        let check = output_of(check.arg("check").arg(dir.config_file()))?;
        let faults = [check.stdout, check.stderr].concat();
        ensure!(check.status.success(), "{}", String::from_utf8_lossy(&faults).trim());
        let hosts = [(&site.pair.alpha, "alpha", 1), (&site.pair.beta, "beta", 2)];
        if variant == Variant::Sealed2Links {
            for (netns, _, host) in hosts {
                netns.add_address(UNDERLAY, &format!("{}/24", second_address(host)))?;
            }
        }
        let [alpha, beta] = hosts.map(|(netns, name, _)| Node::start(&dir, netns, name));
        let (alpha, beta) = (alpha?, beta?);
        for (node, peer) in [(&alpha, 2), (&beta, 1)] {
            node.wait_peer_up(peer)?;
            wait_measured(node, peer)?;
        }
        site.prove(&format!("tap{}", site.number))?;
        let version = run_command(Command::new(built_binary("tapd")?).arg("--version"))?;
        let version = format!("{} ({})", version.trim(), variant.cipher());
        Ok(Self { version, _nodes: [alpha, beta], _dir: dir })
    }
}

/// How long a daemon is left alone before it counts as idle: what it finds out about its paths
/// and what the load left is over by then.
const SETTLE: Duration = Duration::from_secs(3);
/// How long it is watched.
const WATCH: Duration = Duration::from_secs(5);

/// CPU time of a node with two peers and no traffic, sealed, adaptive mode, in percent of a core.
///
/// # Errors
/// The three nodes are not up with each other.
pub fn idle_percent() -> Result<f64> {
    let config = ClusterConfig {
        networks: vec![NetworkEntry::without_addresses(100)],
        ..ClusterConfig::new(Family::V4, 3)
    };
    let star = Star::new(Family::V4, 3)?;
    for host in &star.hosts {
        host.silence_ipv6()?;
    }
    let mesh = Mesh::with(star, &config)?;
    let node = mesh.nodes.first().context("no node")?;
    // Nothing to wait for: that nothing happens is what is measured.
    std::thread::sleep(SETTLE);
    let before = cpu_seconds(node.pid())?;
    std::thread::sleep(WATCH);
    Ok((cpu_seconds(node.pid())? - before) / WATCH.as_secs_f64() * 100.0)
}

/// CPU time of all threads of a process so far, to the nanosecond where the kernel counts so.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // "time on a CPU, time waiting for one, time slices", in ns.
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let field = text.split(' ').next().context("schedstat is empty")?;
        nanos += field.trim().parse::<u64>().context("schedstat has an unknown shape")?;
    }
    Ok(nanos as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_differ_where_they_should() {
        let text = |variant: Variant| variant.config(102, 21_020).to_toml();
        assert!(text(Variant::Clear).contains("insecure = true"));
        assert!(text(Variant::Aegis256).contains("ciphers = [\"aegis-256\"]"));
        assert!(text(Variant::Sealed2Workers).contains("workers = 2"));
        let links = text(Variant::Sealed2Links);
        assert!(links.contains("addresses = [\"192.0.2.2\", \"198.51.100.2\"]"), "{links}");
        assert!(links.contains("policy = \"active\""));
    }

    #[test]
    fn cpu_time_is_that_of_the_process() {
        let me = std::process::id();
        let before = cpu_seconds(me).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        let used = cpu_seconds(me).unwrap() - before;
        assert!(used > 0.005, "{used} s");
    }
}
