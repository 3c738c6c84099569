//! The overlays that are compared.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use crate::cluster::overlay_v4;
use crate::config::{ClusterConfig, ClusterDir, NetworkEntry};
use crate::netns::Netns;
use crate::node::{Node, PATIENCE};
use crate::topology::{Family, Pair, UNDERLAY};
use crate::traffic::{ping_all, ping_until_answer};

/// An overlay between the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Contender {
    /// The kernel's vxlan, in clear
    KernelVxlan,
    /// tapd with the cipher `none`
    TapdClear,
    /// tapd with AES-256-GCM
    TapdSealed,
}

impl Contender {
    /// All of them, in the order of their turns.
    pub const ALL: [Self; 3] = [Self::KernelVxlan, Self::TapdClear, Self::TapdSealed];
    /// What the others are compared with.
    pub const RIVAL: Self = Self::KernelVxlan;

    /// As in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KernelVxlan => "kernel-vxlan",
            Self::TapdClear => "tapd-clear",
            Self::TapdSealed => "tapd-sealed",
        }
    }

    /// Network id, which is also part of the overlay's addresses.
    fn vni(self) -> u8 {
        match self {
            Self::KernelVxlan => 102,
            Self::TapdClear => 101,
            Self::TapdSealed => 100,
        }
    }
}

/// A contender that is up; taken down on drop (the kernel's with its namespaces).
#[derive(Debug)]
pub struct Overlay {
    /// Which one.
    pub contender: Contender,
    /// Its address on the first host.
    pub alpha: IpAddr,
    /// Its address on the second host.
    pub beta: IpAddr,
    _daemons: Vec<Node>,
    _dir: Option<ClusterDir>,
}

impl Overlay {
    /// Sets a contender up between the two hosts and makes sure that it carries pings.
    ///
    /// # Errors
    /// It cannot be had here or does not work.
    pub fn set_up(contender: Contender, pair: &Pair) -> Result<Self> {
        let vni = contender.vni();
        let config = match contender {
            Contender::KernelVxlan => None,
            Contender::TapdSealed => Some(tapd_config(vni, 26026)),
            Contender::TapdClear => Some(tapd_config(vni, 26126).in_clear()),
        };
        let (mut daemons, mut dir) = (Vec::new(), None);
        if let Some(config) = config {
            let files = ClusterDir::new(&config)?;
            for (netns, name) in [(&pair.alpha, "alpha"), (&pair.beta, "beta")] {
                daemons.push(Node::start(&files, netns, name)?);
            }
            dir = Some(files);
        } else {
            for (netns, host, remote) in [(&pair.alpha, 1, 2), (&pair.beta, 2, 1)] {
                make_vxlan(netns, vni, host, remote).context("the kernel has no vxlan")?;
            }
        }
        let (alpha, beta) = (overlay_v4(vni, 1), overlay_v4(vni, 2));
        ping_until_answer(&pair.alpha, beta, PATIENCE)?;
        ping_all(&pair.alpha, beta)?;
        Ok(Self { contender, alpha, beta, _daemons: daemons, _dir: dir })
    }
}

fn tapd_config(vni: u8, port: u16) -> ClusterConfig {
    let network = NetworkEntry {
        // No IPv6: the kernel's own messages would be in the other contenders' way.
        subnets: vec![format!("10.{vni}.0.0/24")],
        ..NetworkEntry::new(vni.into())
    };
    ClusterConfig { port, networks: vec![network], ..ClusterConfig::new(Family::V4, 2) }
}

/// A vxlan interface as an administrator makes it; its MTU is the kernel's choice.
fn make_vxlan(netns: &Netns, vni: u8, host: u8, remote: u8) -> Result<()> {
    let name = format!("vxlan{vni}");
    netns.ip(&[
        "link",
        "add",
        &name,
        "type",
        "vxlan",
        "id",
        &vni.to_string(),
        "dstport",
        "4789",
        "local",
        &Family::V4.address(host).to_string(),
        "remote",
        &Family::V4.address(remote).to_string(),
        "dev",
        UNDERLAY,
    ])?;
    netns.add_address(&name, &format!("{}/24", overlay_v4(vni, host)))?;
    netns.ip(&["link", "set", &name, "up"]).map(|_| ())
}
