//! What a node is told about itself and its cluster. Checked by whoever builds it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::channel::hub::HubOptions;
use crate::compress::Level;
use crate::crypto::aead::Suite;
use crate::crypto::key::ClusterKey;
use crate::crypto::seal::KeyLimits;
use crate::forward::address_filter::AddressFilter;
use crate::forward::fdb::FdbLimits;
use crate::forward::marks::Dscp;
use crate::forward::policy::Policy;
use crate::forward::protect::Protect;
use crate::handshake::features::Features;
use crate::id::{NodeId, Vni};
use crate::link::profile::{FAST, Profile};
use crate::wire::buf::UplinkId;
use crate::wire::ethernet::MacAddr;

/// The other end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// At this address, always.
    Static(SocketAddr),
    /// Wherever the peer was last heard from and answered a challenge, within these addresses.
    Dynamic(AddressFilter),
}

/// One way to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkConfig {
    /// The local attachment.
    pub uplink: UplinkId,
    /// The other end.
    pub remote: Remote,
    /// Names the link to the other end: both give it the same.
    pub tag: u32,
    /// Higher is preferred.
    pub priority: u8,
    /// Share of the flows, relative to the other links'; at least 1.
    pub weight: u16,
    /// Largest UDP payload in bytes that the local attachment takes.
    pub max_udp_payload: usize,
    /// Bytes of IP and UDP header in front of the payload.
    pub ip_overhead: usize,
    /// Largest UDP payload in bytes as somebody decided, instead of what is found.
    pub fixed_udp_payload: Option<usize>,
}

impl LinkConfig {
    /// A plain link to a fixed address.
    #[must_use]
    pub fn to(uplink: UplinkId, remote: SocketAddr, max_udp_payload: usize) -> Self {
        Self {
            uplink,
            remote: Remote::Static(remote),
            tag: u32::from(uplink.0) + 1,
            priority: 0,
            weight: 1,
            max_udp_payload,
            ip_overhead: if remote.is_ipv4() { 28 } else { 48 },
            fixed_udp_payload: None,
        }
    }
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its id.
    pub node: NodeId,
    /// Ways to it, at least one and at most 8, in the same order at both ends. Datagrams are taken
    /// from these only.
    pub links: Vec<LinkConfig>,
    /// How frames are spread over them.
    pub policy: Policy,
    /// Which datagrams are sent again when a link fails.
    pub protect: Protect,
    /// How its links are watched.
    pub profile: Profile,
    /// Where the outer DSCP comes from.
    pub dscp: Dscp,
}

impl PeerConfig {
    /// A peer with the usual settings.
    #[must_use]
    pub fn new(node: NodeId, links: Vec<LinkConfig>) -> Self {
        Self {
            node,
            links,
            policy: Policy::Passive,
            protect: Protect::Control,
            profile: FAST,
            dscp: Dscp::default(),
        }
    }
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
    /// Whether the tap's size follows what the paths take.
    pub follows_path: bool,
    /// Configured entries of the forwarding table.
    pub static_fdb: Vec<(MacAddr, NodeId)>,
    /// How frames are spread over links, if not as the peer has it.
    pub policy: Option<Policy>,
    /// Where the outer DSCP comes from, if not as the peer has it.
    pub dscp: Option<Dscp>,
    /// Whether TCP's segment size is lowered to what the path takes.
    pub mss_clamp: bool,
    /// Whether senders of too large packets are told by ICMP.
    pub too_big: bool,
    /// Whether what is sent is compressed, where the peer takes that, and how hard to try. What comes
    /// compressed is taken in any case.
    pub compression: Option<Level>,
}

/// Rates and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How much one key may seal; what the suite allows counts where that is less.
    pub key: KeyLimits,
    /// Age at which an epoch is followed by the next, give or take a tenth.
    pub epoch_life: Duration,
    /// Age at which the keys are replaced by a new handshake, give or take a tenth.
    pub rehandshake: Duration,
    /// Sizes and times of the forwarding tables.
    pub fdb: FdbLimits,
    /// Broadcast, unknown and multicast frames per second and network; 0 for no limit.
    pub bum_rate: u32,
    /// Heartbeats a second that all links together may take; beyond that they come less often.
    pub heartbeats_per_second: u32,
    /// Whether ECN marks are carried over (RFC 6040).
    pub ecn: bool,
    /// How long an incomplete frame waits for its fragments.
    pub reassembly: Duration,
    /// Most bytes kept for one peer to be sent again when a link fails.
    pub resend_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key: KeyLimits::AES_256_GCM,
            epoch_life: Duration::from_secs(15 * 60),
            rehandshake: Duration::from_secs(60 * 60),
            fdb: FdbLimits::default(),
            bum_rate: 10_000,
            heartbeats_per_second: 5_000,
            ecn: true,
            reassembly: Duration::from_millis(200),
            resend_bytes: 8 << 20,
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
    /// What to say that the packet path takes: [`Features::SUPPORTED`], or less. Fixed for the life of
    /// a [`super::Vtep`], so that both ends of a handshake always work out the same.
    pub features: Features,
    /// The other nodes.
    pub peers: Vec<PeerConfig>,
    /// The networks of this node.
    pub networks: Vec<NetworkConfig>,
    /// Rates and times.
    pub limits: Limits,
    /// What holds for all raw channels together. Fixed for the life of a [`super::Vtep`].
    pub channels: HubOptions,
    /// Number of workers, 1 to 15.
    pub workers: usize,
    /// A number that is larger at every start of the node while its clock is right:
    /// microseconds since 1970.
    pub start_stamp: u64,
}
