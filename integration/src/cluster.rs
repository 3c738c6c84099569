//! The clusters that most tests use: an underlay, a configuration, running nodes.

use std::net::IpAddr;

use anyhow::{Result, anyhow};

use crate::config::{ClusterConfig, ClusterDir, NODE_NAMES};
use crate::links::{Link, PATIENCE, wait_links};
use crate::node::Node;
use crate::topology::{Family, Pair, Star};

/// Overlay address of the node with this id in network `vni`, IPv4.
#[must_use]
pub fn overlay_v4(vni: u8, id: u8) -> IpAddr {
    IpAddr::from([10, vni, 0, id])
}

/// Overlay address of the node with this id in network `vni`, IPv6: the network's digits read as
/// hexadecimal, as `fd00:100::` is written.
#[must_use]
pub fn overlay_v6(vni: u8, id: u8) -> IpAddr {
    let digits = u16::from(vni / 100) << 8 | u16::from(vni / 10 % 10) << 4 | u16::from(vni % 10);
    IpAddr::from([0xfd00, digits, 0, 0, 0, 0, 0, u16::from(id)])
}

/// Waits until it is known what the paths to a peer take: before that, large frames go in fragments.
pub(crate) fn wait_measured(node: &Node, peer: u16) -> Result<()> {
    let measured = |links: &[Link]| {
        links.iter().all(|l| !l.flag("searching") && l.text("path_mtu_how") != "base")
    };
    wait_links(node, peer, "its paths to be measured", PATIENCE, measured).map(|_| ())
}

/// Two nodes on a cable, up with each other.
///
/// ```text
///   alpha                                        beta
///  +---------------------------+   +---------------------------+
///  | tap100 10.100.0.1         |   |         10.100.0.2 tap100 |
///  |    |                      |   |                      |    |
///  |  tapd -- under0 192.0.2.1 o---o 192.0.2.2 under0 -- tapd  |
///  +---------------------------+   +---------------------------+
/// ```
#[derive(Debug)]
pub struct Duo {
    /// Node 1. (Fields are dropped in this order: daemons before what they stand on.)
    pub alpha: Node,
    /// Node 2.
    pub beta: Node,
    /// Their files.
    pub dir: ClusterDir,
    /// Their hosts.
    pub pair: Pair,
}

impl Duo {
    /// The usual two: sealed, network 100, IPv4 underlay of 1500 bytes.
    ///
    /// # Errors
    /// Anything that keeps the two from being up with each other.
    pub fn new() -> Result<Self> {
        Self::with(Pair::new(Family::V4, 1500)?, &ClusterConfig::new(Family::V4, 2))
    }

    /// Two nodes with `config` on the hosts of `pair`.
    ///
    /// # Errors
    /// Anything that keeps the two from being up with each other.
    pub fn with(pair: Pair, config: &ClusterConfig) -> Result<Self> {
        let dir = ClusterDir::new(config)?;
        let alpha = Node::start(&dir, &pair.alpha, "alpha")?;
        let beta = Node::start(&dir, &pair.beta, "beta")?;
        alpha.wait_peer_up(2)?;
        beta.wait_peer_up(1)?;
        wait_measured(&alpha, 2)?;
        wait_measured(&beta, 1)?;
        Ok(Self { alpha, beta, dir, pair })
    }
}

/// Several nodes at one switch, all up with each other; node n runs on host n.
#[derive(Debug)]
pub struct Mesh {
    /// The nodes, id 1 first.
    pub nodes: Vec<Node>,
    /// Their files.
    pub dir: ClusterDir,
    /// Their hosts.
    pub star: Star,
}

impl Mesh {
    /// Nodes with `config` on the first hosts of `star`.
    ///
    /// # Errors
    /// Anything that keeps them from being up with each other.
    pub fn with(star: Star, config: &ClusterConfig) -> Result<Self> {
        let dir = ClusterDir::new(config)?;
        let mut nodes = Vec::new();
        for entry in &config.nodes {
            let host = star
                .hosts
                .get(usize::from(entry.id) - 1)
                .ok_or_else(|| anyhow!("no host for node {}", entry.id))?;
            nodes.push(Node::start(&dir, host, NODE_NAMES[usize::from(entry.id) - 1])?);
        }
        for node in &nodes {
            for peer in &config.nodes {
                if NODE_NAMES[usize::from(peer.id) - 1] != node.name() {
                    node.wait_peer_up(peer.id)?;
                    wait_measured(node, peer.id)?;
                }
            }
        }
        Ok(Self { nodes, dir, star })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_addresses_are_those_of_the_configuration() {
        assert_eq!(overlay_v4(100, 2).to_string(), "10.100.0.2");
        assert_eq!(overlay_v6(100, 2).to_string(), "fd00:100::2");
        assert_eq!(overlay_v6(57, 1).to_string(), "fd00:57::1");
    }
}
