//! What a node is told about itself and its cluster. Checked by whoever builds it.

use std::time::Duration;

use crate::crypto::aead::Suite;
use crate::crypto::key::ClusterKey;
use crate::crypto::seal::KeyLimits;
use crate::forward::fdb::FdbLimits;
use crate::id::{NodeId, Vni};
use crate::tables::LinkAddress;
use crate::wire::ethernet::MacAddr;

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its id.
    pub node: NodeId,
    /// Ways to it, best first; not empty. Datagrams are taken from these addresses only.
    pub links: Vec<LinkAddress>,
}

/// A virtual network of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its identifier.
    pub vni: Vni,
    /// Nodes that take part, this one left out.
    pub members: Vec<NodeId>,
    /// Whether STP frames pass.
    pub stp: bool,
    /// Largest untagged frame in bytes that the own tap takes.
    pub max_frame_len: u16,
    /// Configured entries of the forwarding table.
    pub static_fdb: Vec<(MacAddr, NodeId)>,
}

/// Rates and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How much one key may seal.
    pub key: KeyLimits,
    /// Age at which an epoch is followed by the next, give or take a tenth.
    pub epoch_life: Duration,
    /// Age at which the keys are replaced by a new handshake, give or take a tenth.
    pub rehandshake: Duration,
    /// Sizes and times of the forwarding tables.
    pub fdb: FdbLimits,
    /// Broadcast, unknown and multicast frames per second and network; 0 for no limit.
    pub bum_rate: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key: KeyLimits::AES_256_GCM,
            epoch_life: Duration::from_secs(15 * 60),
            rehandshake: Duration::from_secs(60 * 60),
            fdb: FdbLimits::default(),
            bum_rate: 10_000,
        }
    }
}

/// All that a [`super::Vtep`] needs to know.
#[derive(Debug, Clone)]
pub struct VtepConfig {
    /// This node.
    pub node: NodeId,
    /// The cluster key to begin handshakes with, then others that are accepted as well.
    pub keys: Vec<ClusterKey>,
    /// Suites to offer and to take, best first.
    pub suites: Vec<Suite>,
    /// The other nodes.
    pub peers: Vec<PeerConfig>,
    /// The networks of this node.
    pub networks: Vec<NetworkConfig>,
    /// Rates and times.
    pub limits: Limits,
    /// Number of workers, 1 to 15.
    pub workers: usize,
    /// A number that is larger at every start of the node while its clock is right:
    /// microseconds since 1970.
    pub start_stamp: u64,
}
