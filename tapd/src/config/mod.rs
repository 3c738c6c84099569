//! The configuration: one TOML file for the whole cluster, and an optional local one laid over it.
//!
//! Text becomes a tree that knows its lines ([`tree`]), the tree becomes typed values ([`reader`]),
//! and those become a [`Config`] once they agree with each other ([`validate`]). Faults are
//! collected on the way, never the first one only.

mod fault;
mod tree;
mod sections;
mod fields;
mod reader;
mod hardware;
mod validate;
mod checks;
mod nodes;
mod networks;
mod node;
mod links;
mod dpdk;
mod vhost;
mod channels;
mod ranges;
mod traffic;
mod detector;
mod key;
mod derive;
mod diff;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use encap::channel::hub::HubOptions;
use encap::crypto::aead::Suite;
use encap::id::{NodeId, Vni};
use encap::wire::ethernet::MacAddr;
use ipnet::IpNet;

pub(crate) use channels::{Account, ChannelConfig, Mode as ChannelMode, SocketAccess, mode_name};
pub(crate) use derive::{derived_address, derived_mac};
pub(crate) use detector::{DetectorConfig, Profile};
pub(crate) use diff::{Change, Changes};
pub(crate) use dpdk::{DpdkConfig, DpdkPort, Hugepages, Port};
pub(crate) use fault::Faults;
pub(crate) use key::{ClusterKey, KEY_LEN};
pub(crate) use links::{Family, LinkOptions, NodeAddress, NodeLink, Pair};
pub(crate) use node::{NodeSelector, missing_advice};
pub(crate) use traffic::{Dscp, Level, Policy, Protect};
pub(crate) use validate::check_socket_path;
pub(crate) use vhost::{Mode as VhostMode, VhostUser};

use fault::{At, Collector};

/// Default base UDP port.
pub(crate) const DEFAULT_PORT: u16 = 26026;
/// UDP ports in use from the base port on, one per bucket.
pub(crate) const PORT_COUNT: u16 = 16;
/// Ports that vxlan may use beside us.
pub(crate) const VXLAN_PORTS: [u16; 2] = [4789, 8472];
/// Default number of packet threads.
pub(crate) const DEFAULT_WORKERS: usize = 1;
/// Default of the time for which a worker polls on after the last frame, in microseconds.
pub(crate) const DEFAULT_SPIN_US: u32 = 200;
/// Most packet threads: one port bucket of [`PORT_COUNT`] belongs to the control thread.
pub(crate) const MAX_WORKERS: usize = 15;
/// Default path of the control socket.
pub(crate) const DEFAULT_CONTROL_SOCKET: &str = "/run/tapd.sock";
/// Longest path of a UNIX socket, in bytes.
pub(crate) const MAX_SOCKET_PATH_LEN: usize = 107;
/// Default log filter.
pub(crate) const DEFAULT_LOG: &str = "info";
/// Default time between handshakes with a peer, in minutes.
pub(crate) const DEFAULT_REHANDSHAKE_MINUTES: u32 = 60;
/// Default lifetime of an unused learnt entry, in seconds.
pub(crate) const DEFAULT_FDB_AGEING_S: u32 = 300;
/// Default limit of entries per network.
pub(crate) const DEFAULT_FDB_MAX_ENTRIES: usize = 65_536;
/// Default limit of broadcast, unknown and multicast frames per network and second.
pub(crate) const DEFAULT_BUM_FRAMES_PER_S: u32 = 10_000;
/// Default packets sealed under one epoch before the next, 2^28.
pub(crate) const DEFAULT_ROTATE_PACKETS: u64 = 1 << 28;
/// Most links of a node, and between two nodes.
pub(crate) const MAX_LINKS: usize = encap::link::id::MAX_LINKS;
/// Smallest MTU of a usable path, in bytes of IP of either version (RFC 8200).
pub(crate) const MIN_UNDERLAY_MTU: u16 = 1280;
/// Largest IP MTU of a DPDK port, in bytes: what jumbo frames carry.
pub(crate) const MAX_PORT_MTU: u16 = 9000;
/// Longest node or network name, in bytes.
pub(crate) const MAX_NAME_LEN: usize = 63;
/// Smallest fixed tap MTU, in bytes (RFC 791).
pub(crate) const MIN_TAP_MTU: u16 = 68;
/// Largest tap MTU, in bytes: the kernel's limit of 65,535 less the Ethernet header.
pub(crate) const MAX_TAP_MTU: u16 = 65_521;
/// Smallest tap MTU on which the kernel runs IPv6, in bytes (RFC 8200).
pub(crate) const MIN_IPV6_TAP_MTU: u16 = 1280;
/// Largest configuration file, in bytes: 65,535 nodes fit several times over.
const MAX_FILE_LEN: u64 = 64 << 20;

/// Everything that one node needs to know; checked, so that no value in it disagrees with another.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// Which of `nodes` this daemon is.
    pub(crate) own: NodeId,
    /// The same on every node.
    pub(crate) cluster: ClusterConfig,
    /// How fast failures are found.
    pub(crate) detector: DetectorConfig,
    /// How this daemon runs.
    pub(crate) daemon: DaemonConfig,
    /// What is left to kernel and cards, and what shares a datagram.
    pub(crate) offload: OffloadConfig,
    /// How this node runs DPDK, if it does: see [`Self::needs_dpdk`].
    pub(crate) dpdk: DpdkConfig,
    /// Every node of the cluster, this one included, by ascending id.
    pub(crate) nodes: Vec<NodeConfig>,
    /// What `[[links]]` says, by the name that [`Pair::name`] has.
    pub(crate) links: BTreeMap<String, LinkOptions>,
    /// Every network of the cluster, by ascending VNI, also those without this node.
    pub(crate) networks: Vec<NetworkConfig>,
    /// Every raw channel of the cluster, by ascending name, also those without this node.
    pub(crate) channels: Vec<ChannelConfig>,
    /// What holds for all of them: `[channel_transport]`.
    pub(crate) transport: HubOptions,
}

/// `[cluster]`: what all nodes share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClusterConfig {
    /// Secret that a node proves to know.
    pub(crate) key: ClusterKey,
    /// Accepted as well, while the key is being changed.
    pub(crate) next_key: Option<ClusterKey>,
    /// In order of preference; never empty.
    pub(crate) ciphers: Vec<Cipher>,
    /// Allows [`Cipher::None`].
    pub(crate) insecure: bool,
    /// Base UDP port; [`PORT_COUNT`] ports from here are used.
    pub(crate) port: u16,
    /// Unless a network or a peer has its own: see [`Config::policy`].
    pub(crate) policy: Policy,
    /// Unless a peer has its own: see [`Config::protect`].
    pub(crate) protect: Protect,
    /// Links join every two addresses of one family instead of equal names.
    pub(crate) mesh: bool,
    /// Unless a network has its own: see [`Config::dscp`].
    pub(crate) dscp: Dscp,
    /// Congestion marks are handed on between frames and datagrams (RFC 6040).
    pub(crate) ecn: bool,
}

/// How payloads are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm,
    /// AEGIS-256.
    Aegis256,
    /// AEGIS-128L.
    Aegis128L,
    /// Not at all: clear mode.
    None,
}

impl Cipher {
    /// Every cipher, by the name it has in the configuration.
    pub(crate) const ALL: [Self; 4] =
        [Self::Aes256Gcm, Self::Aegis256, Self::Aegis128L, Self::None];

    /// The name in the configuration and in `tapd show`.
    pub(crate) const fn name(self) -> &'static str {
        self.suite().name()
    }

    /// What the protocol calls it.
    pub(crate) const fn suite(self) -> Suite {
        match self {
            Self::Aes256Gcm => Suite::Aes256Gcm,
            Self::Aegis256 => Suite::Aegis256,
            Self::Aegis128L => Suite::Aegis128L,
            Self::None => Suite::Clear,
        }
    }
}

/// `[daemon]`: how this daemon runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DaemonConfig {
    /// Packet threads, 1 to [`MAX_WORKERS`].
    pub(crate) workers: usize,
    /// Workers spin instead of blocking when idle.
    pub(crate) dedicated: bool,
    /// How long a worker polls on at most after the last frame before it blocks, up to 10 ms; by
    /// default [`DEFAULT_SPIN_US`], and less where CPU time is rationed.
    pub(crate) spin: Option<Duration>,
    /// Where the control socket is made; absolute.
    pub(crate) control_socket: PathBuf,
    /// env_logger filter; parses.
    pub(crate) log: String,
    /// Time between handshakes with a peer, 1 minute to 1 day.
    pub(crate) rehandshake_interval: Duration,
    /// Lifetime of an unused learnt entry.
    pub(crate) fdb_ageing: Duration,
    /// Most entries per network.
    pub(crate) fdb_max_entries: usize,
    /// Most broadcast, unknown and multicast frames per network and second; 0 is no limit.
    pub(crate) bum_frames_per_s: u32,
    /// Packets sealed under one epoch before the next, 1000 to 2^28.
    pub(crate) rotate_packets: u64,
}

/// `[offload]`: what may be used where it is to be had. All of it is on unless switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OffloadConfig {
    /// Partial checksums at the taps; the two below need it.
    pub(crate) tap_checksum: bool,
    /// Super-frames of TCP, to and from the taps.
    pub(crate) tap_tcp: bool,
    /// Super-frames of UDP, to and from the taps.
    pub(crate) tap_udp: bool,
    /// Runs of datagrams leave in one piece (`UDP_SEGMENT`).
    pub(crate) uplink_segmentation: bool,
    /// Runs of datagrams arrive in one piece (`UDP_GRO`).
    pub(crate) uplink_coalescing: bool,
    /// Every worker sends from a port of its own.
    pub(crate) source_ports: bool,
    /// Small frames for one peer share a datagram, where the peer takes that too.
    pub(crate) bundles: bool,
}

impl OffloadConfig {
    /// Every switch by its key.
    pub(crate) fn switches(&self) -> [(&'static str, bool); 7] {
        [
            ("tap_checksum", self.tap_checksum),
            ("tap_tcp", self.tap_tcp),
            ("tap_udp", self.tap_udp),
            ("uplink_segmentation", self.uplink_segmentation),
            ("uplink_coalescing", self.uplink_coalescing),
            ("source_ports", self.source_ports),
            ("bundles", self.bundles),
        ]
    }
}

/// `[[nodes]]`: one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeConfig {
    /// Unique.
    pub(crate) id: NodeId,
    /// Unique; never all digits.
    pub(crate) name: String,
    /// At least one, at most [`MAX_LINKS`].
    pub(crate) links: Vec<NodeLink>,
    /// For frames to this node.
    pub(crate) policy: Option<Policy>,
    /// For frames to this node.
    pub(crate) protect: Option<Protect>,
}

/// `[[networks]]`: one virtual network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    /// Unique.
    pub(crate) vni: Vni,
    /// Unique.
    pub(crate) name: String,
    /// Interface name of the tap, which the kernel takes; unique. Without it there is no tap.
    pub(crate) tap: Option<String>,
    /// VM ports of this node.
    pub(crate) vhost_user: Vec<VhostUser>,
    /// Largest layer-3 packet that the tap takes.
    pub(crate) tap_mtu: TapMtu,
    /// A member's address in each is [`derived_address`].
    pub(crate) subnets: Vec<IpNet>,
    /// Where the tap's MAC address comes from.
    pub(crate) mac: MacPolicy,
    /// Attach to a persistent tap that somebody made, instead of making one.
    pub(crate) existing: bool,
    /// Nodes that carry the network, ascending, never empty.
    pub(crate) members: Vec<NodeId>,
    /// Whether spanning-tree frames pass.
    pub(crate) stp: bool,
    /// Entries that never age; may name this node itself, for stations behind its own tap.
    pub(crate) static_fdb: Vec<StaticEntry>,
    /// The MSS of TCP connections is lowered to what the path takes.
    pub(crate) mss_clamp: bool,
    /// Senders of packets that the path does not take are told by ICMP.
    pub(crate) too_big: bool,
    /// Loops through bridges behind the taps are looked for.
    pub(crate) loop_probe: bool,
    /// What is sent to nodes that take it is compressed, so hard.
    pub(crate) compression: Option<Level>,
    /// For frames of this network.
    pub(crate) policy: Option<Policy>,
    /// For frames of this network.
    pub(crate) dscp: Option<Dscp>,
}

/// The tap's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TapMtu {
    /// Follows from the uplinks.
    Auto,
    /// In bytes, [`MIN_TAP_MTU`] to [`MAX_TAP_MTU`].
    Fixed(u16),
}

/// Where a tap's MAC address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MacPolicy {
    /// [`derived_mac`].
    Derived,
    /// The kernel draws one.
    Random,
}

/// A MAC address that is known to be behind a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StaticEntry {
    /// Unicast; unique in its network.
    pub(crate) mac: MacAddr,
    /// A member of the network.
    pub(crate) node: NodeId,
}

/// What `tapd check` says about a configuration without faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Number of nodes.
    pub(crate) nodes: usize,
    /// Number of networks.
    pub(crate) networks: usize,
    /// Number of channels.
    pub(crate) channels: usize,
    /// This machine, if it is known which one it is.
    pub(crate) own: Option<(NodeId, String)>,
    /// Its links, by name, whose address no interface has now.
    pub(crate) missing: Vec<(String, IpAddr)>,
}

impl Config {
    /// Reads, merges and checks the files for one node.
    ///
    /// # Errors
    /// Every fault found, also those of the key files.
    pub(crate) fn load(
        cluster: &Path,
        local: Option<&Path>,
        node: &NodeSelector,
    ) -> Result<Self, Faults> {
        let (files, parts, mut faults) = read_and_validate(cluster, local)?;
        let Some(parts) = parts else { return Err(faults.into_faults(&files)) };
        let own = resolve_node(node, &parts.nodes)
            .map_err(|fault| fault.map(|text| faults.add(At::CLUSTER_FILE, text)));
        if let Ok(own) = own {
            check_own_networks(own, &parts, &mut faults);
        }
        let validate::Parts {
            cluster,
            detector,
            daemon,
            offload,
            dpdk,
            nodes,
            links,
            networks,
            channels,
            transport,
            portless: _,
        } = parts;
        match (own, cluster) {
            (Ok(own), Some(cluster)) if faults.is_empty() => Ok(Self {
                own,
                cluster,
                detector,
                daemon,
                offload,
                dpdk,
                nodes,
                links,
                networks,
                channels,
                transport,
            }),
            _ => Err(faults.into_faults(&files)),
        }
    }

    /// Checks the files for whichever node `node` selects; that this machine is none of them is
    /// only a fault if a node was named.
    ///
    /// # Errors
    /// Every fault found.
    pub(crate) fn check(
        cluster: &Path,
        local: Option<&Path>,
        node: &NodeSelector,
    ) -> Result<Checked, Faults> {
        let (files, parts, mut faults) = read_and_validate(cluster, local)?;
        let Some(parts) = parts else { return Err(faults.into_faults(&files)) };
        let own = resolve_node(node, &parts.nodes);
        match (&own, node) {
            (Err(Some(fault)), NodeSelector::Named(_)) => faults.add(At::CLUSTER_FILE, fault),
            (Ok(own), _) => check_own_networks(*own, &parts, &mut faults),
            _ => {}
        }
        if !faults.is_empty() {
            return Err(faults.into_faults(&files));
        }
        let own = parts.nodes.iter().find(|node| Ok(node.id) == own);
        Ok(Checked {
            own: own.map(|node| (node.id, node.name.clone())),
            missing: own.map(node::missing_addresses).unwrap_or_default(),
            nodes: parts.nodes.len(),
            networks: parts.networks.len(),
            channels: parts.channels.len(),
        })
    }

    /// The node that this daemon is.
    pub(crate) fn own_node(&self) -> Option<&NodeConfig> {
        self.nodes.iter().find(|node| node.id == self.own)
    }

    /// Every node but this one.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &NodeConfig> {
        self.nodes.iter().filter(|node| node.id != self.own)
    }

    /// A node by id or name, as people write it.
    pub(crate) fn find_node(&self, id_or_name: &str) -> Option<&NodeConfig> {
        node::find(&self.nodes, id_or_name)
    }

    /// The networks that this node is a member of.
    pub(crate) fn own_networks(&self) -> impl Iterator<Item = &NetworkConfig> {
        self.networks.iter().filter(|network| network.members.contains(&self.own))
    }

    /// Whether this node has a link on a DPDK port, or a VM port.
    pub(crate) fn needs_dpdk(&self) -> bool {
        self.own_node().is_some_and(|own| own.links.iter().any(|link| link.dpdk.is_some()))
            || self.own_networks().any(|network| !network.vhost_user.is_empty())
    }

    /// Which links carry the frames of a network to a peer, or of networks without a policy.
    pub(crate) fn policy(&self, network: Option<&NetworkConfig>, peer: &NodeConfig) -> Policy {
        let own = network.and_then(|network| network.policy);
        own.or(peer.policy).unwrap_or(self.cluster.policy)
    }

    /// What is kept to be sent again to a peer.
    pub(crate) fn protect(&self, peer: &NodeConfig) -> Protect {
        peer.protect.unwrap_or(self.cluster.protect)
    }

    /// The code point of datagrams with frames of a network.
    #[allow(dead_code, reason = "datagrams are not marked yet")]
    pub(crate) fn dscp<'c>(&'c self, network: &'c NetworkConfig) -> &'c Dscp {
        network.dscp.as_ref().unwrap_or(&self.cluster.dscp)
    }

    /// What a reload to `new` changes for this node.
    pub(crate) fn diff(&self, new: &Self) -> Changes {
        diff::diff(self, new)
    }

    /// The configuration that is in force after [`Changes::live`] of `new` was applied: `new`, but
    /// what needs a restart is still as it was.
    pub(crate) fn with_live_changes(&self, new: &Self) -> Self {
        diff::with_live_changes(self, new)
    }
}

/// The configuration's files and the overrides of the command line: what a reload reads again.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The cluster file.
    pub(crate) cluster: PathBuf,
    /// The local file.
    pub(crate) local: Option<PathBuf>,
    /// Which node this daemon is.
    pub(crate) node: NodeSelector,
    /// `--control-socket`: beats the files; passes [`check_socket_path`].
    pub(crate) control_socket: Option<PathBuf>,
    /// `--log`: beats the files; parses.
    pub(crate) log: Option<String>,
}

impl Source {
    /// [`Config::load`], with the command line's overrides laid over it.
    ///
    /// # Errors
    /// Every fault found.
    pub(crate) fn load(&self) -> Result<Config, Faults> {
        let mut config = Config::load(&self.cluster, self.local.as_deref(), &self.node)?;
        if let Some(path) = &self.control_socket {
            config.daemon.control_socket.clone_from(path);
        }
        if let Some(filter) = &self.log {
            config.daemon.log.clone_from(filter);
        }
        Ok(config)
    }
}

/// Which node this is; without any node there is nothing to say, because that is a fault already.
fn resolve_node(node: &NodeSelector, nodes: &[NodeConfig]) -> Result<NodeId, Option<String>> {
    if nodes.is_empty() {
        return Err(None);
    }
    node::resolve(node, nodes, &node::is_own_address).map_err(Some)
}

/// A network of this node has something that frames come from.
fn check_own_networks(own: NodeId, parts: &validate::Parts, faults: &mut Collector) {
    for portless in &parts.portless {
        let mut networks = parts.networks.iter().filter(|known| known.vni == portless.value);
        if networks.any(|network| network.members.contains(&own)) {
            faults.add(
                portless.at,
                format!(
                    "network {} has neither a tap nor a VM port on this node; name a tap, or \
                    write vhost_user in the local file",
                    portless.value
                ),
            );
        }
    }
}

type Read = (Vec<PathBuf>, Option<validate::Parts>, Collector);

fn read_and_validate(cluster: &Path, local: Option<&Path>) -> Result<Read, Faults> {
    let cluster_text = read_text(cluster);
    let local_text = local.map(read_text).transpose();
    let (cluster_text, local_text) = match (cluster_text, local_text) {
        (Ok(cluster), Ok(local)) => (cluster, local),
        (Err(fault), Ok(_)) | (Ok(_), Err(fault)) => return Err(fault),
        (Err(one), Err(two)) => return Err(one.and(two)),
    };
    let mut files = vec![cluster.to_owned()];
    files.extend(local.map(Path::to_owned));
    let mut faults = Collector::default();
    let parts = parse(&files, &cluster_text, local_text.as_deref(), &mut faults);
    Ok((files, parts, faults))
}

fn read_text(path: &Path) -> Result<String, Faults> {
    let length = fs::metadata(path).map(|metadata| metadata.len());
    if length.as_ref().is_ok_and(|length| *length > MAX_FILE_LEN) {
        return Err(Faults::of_file(path, "larger than 64 MiB; this is no tapd configuration"));
    }
    let bytes = fs::read(path).map_err(|error| {
        Faults::of_file(path, format!("cannot read this file: {error}; check path and permission"))
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        Faults::of_file(path, format!("byte {valid} is not UTF-8 text; save the file as UTF-8"))
    })
}

/// From text to parts; the only file access is to key files, and to none if there are faults
/// of syntax.
fn parse(
    files: &[PathBuf],
    cluster: &str,
    local: Option<&str>,
    faults: &mut Collector,
) -> Option<validate::Parts> {
    let cluster = tree::parse(cluster, 0, faults);
    let local = local.map(|text| tree::parse(text, 1, faults));
    let mut tree = cluster?;
    if let Some(local) = local {
        tree::merge(&mut tree, local?);
    }
    let raw = reader::read(&tree, faults);
    Some(validate::validate(raw, files, faults))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
