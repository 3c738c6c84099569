//! What a reload changes, and what of it needs a restart.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use encap::id::{NodeId, Vni};

use super::channels::{ChannelConfig, congestion_name, mode_name};
use super::traffic::Level;
use super::{Config, DetectorConfig, MacPolicy, NetworkConfig, NodeConfig, NodeLink, TapMtu};

/// Something that a running daemon can change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    /// A node is new: a peer to connect to.
    NodeAdded(NodeId),
    /// A node is gone: its session ends, its entries go.
    NodeRemoved(NodeId),
    /// A peer's name, links, policy or protection, or this node's name, are different.
    NodeChanged(NodeId),
    /// A network of this node is new: a tap to make.
    NetworkAdded(Vni),
    /// A network of this node is gone: its tap goes.
    NetworkRemoved(Vni),
    /// A network has another name.
    NameChanged(Vni),
    /// A network has other members; this node stays one.
    MembersChanged(Vni),
    /// Spanning-tree frames pass, or no longer do.
    StpChanged(Vni),
    /// Other static entries.
    StaticFdbChanged(Vni),
    /// A network's policy, marks, or what is done about its large frames and its loops.
    NetworkOptionsChanged(Vni),
    /// Other VM ports.
    VmPortsChanged(Vni),
    /// A channel of this node is new: a socket to make.
    ChannelAdded(String),
    /// A channel of this node is gone: its socket goes, its programs are cut off.
    ChannelRemoved(String),
    /// A channel is another one, though of the same name: it ends and begins anew.
    ChannelChanged(String),
    /// Others may connect to a channel's socket; all else stays.
    ChannelAccessChanged(String),
    /// The cluster's policy, protection or marks.
    TrafficChanged,
    /// Another profile, or other values of it.
    DetectorChanged,
    /// Other options of links.
    LinkOptionsChanged,
    /// The key or the next key is another.
    KeysChanged,
    /// Another log filter.
    LogChanged,
    /// Another time between handshakes.
    RehandshakeChanged,
    /// Other limits: forwarding database, flooding, key rotation.
    LimitsChanged,
}

/// What a reload does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// What is applied while running, each with a line for people. Removals come before additions.
    pub(crate) live: Vec<(Change, String)>,
    /// What only a restart applies, one line each.
    pub(crate) restart: Vec<String>,
}

impl Changes {
    fn live(&mut self, change: Change, line: impl fmt::Display) {
        self.live.push((change, line.to_string()));
    }

    fn restart<T: PartialEq + fmt::Display>(&mut self, what: impl fmt::Display, old: T, new: T) {
        if old != new {
            self.restart.push(format!("{what}: {old} -> {new}"));
        }
    }
}

/// See [`Config::diff`].
pub(super) fn diff(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes::default();
    nodes(old, new, &mut changes);
    networks(old, new, &mut changes);
    channels(old, new, &mut changes);
    settings(old, new, &mut changes);
    traffic(old, new, &mut changes);
    link_options(old, new, &mut changes);
    restart_only(old, new, &mut changes);
    changes
}

/// See [`Config::with_live_changes`].
pub(super) fn with_live_changes(old: &Config, new: &Config) -> Config {
    let mut merged = new.clone();
    merged.own = old.own;
    merged.cluster.ciphers.clone_from(&old.cluster.ciphers);
    merged.cluster.insecure = old.cluster.insecure;
    merged.cluster.port = old.cluster.port;
    merged.cluster.mesh = old.cluster.mesh;
    merged.daemon.workers = old.daemon.workers;
    merged.daemon.dedicated = old.daemon.dedicated;
    merged.daemon.spin = old.daemon.spin;
    merged.daemon.control_socket.clone_from(&old.daemon.control_socket);
    merged.offload = old.offload;
    merged.dpdk.clone_from(&old.dpdk);
    merged.transport = old.transport;
    if let (Some(kept), Some(node)) =
        (old.own_node(), merged.nodes.iter_mut().find(|node| node.id == old.own))
    {
        // Links pair by their names: other ones for the peers would have no counterpart here.
        let same = same_ends(&node.links, &kept.links);
        node.links.clone_from(&kept.links);
        if !same {
            for node in &mut merged.nodes {
                if let Some(kept) = old.nodes.iter().find(|kept| kept.id == node.id) {
                    node.links.clone_from(&kept.links);
                }
            }
        }
    }
    for network in merged.networks.iter_mut().filter(|n| n.members.contains(&old.own)) {
        if let Some(kept) = old.own_networks().find(|kept| kept.vni == network.vni) {
            network.tap.clone_from(&kept.tap);
            network.existing = kept.existing;
            network.tap_mtu = kept.tap_mtu;
            network.subnets.clone_from(&kept.subnets);
            network.mac = kept.mac;
        }
    }
    merged
}

fn nodes(old: &Config, new: &Config, changes: &mut Changes) {
    let find = |nodes: &[NodeConfig], id| nodes.iter().position(|node| node.id == id);
    let own_links =
        |config: &Config| config.nodes.iter().find(|n| n.id == old.own).map(|n| n.links.clone());
    let own_links_change = match (own_links(old), own_links(new)) {
        (Some(before), Some(after)) => !same_ends(&before, &after),
        (before, after) => before.is_some() || after.is_some(),
    };
    for node in old.nodes.iter().filter(|node| node.id != old.own) {
        if find(&new.nodes, node.id).is_none() {
            changes.live(
                Change::NodeRemoved(node.id),
                format_args!("node {} ({}) removed", node.id, node.name),
            );
        }
    }
    for node in &new.nodes {
        let before = find(&old.nodes, node.id).and_then(|position| old.nodes.get(position));
        let Some(before) = before else {
            changes.live(
                Change::NodeAdded(node.id),
                format_args!("node {} ({}) added", node.id, node.name),
            );
            continue;
        };
        let mut different = Vec::new();
        if before.name != node.name {
            different.push(format!("name {} -> {}", before.name, node.name));
        }
        // What is said of this node is for its links, which need a restart, or for its peers.
        if node.id != old.own {
            if !same_ends(&before.links, &node.links) {
                let (what, from, to) = links(&before.links, &node.links);
                if own_links_change {
                    // They pair with ours, which are other ones only after a restart.
                    changes.restart.push(format!("node {}: {what} {from} -> {to}", node.id));
                } else {
                    different.push(format!("{what} {from} -> {to}"));
                }
            }
            if before.policy != node.policy {
                different.push(format!("policy = {}", own_or_cluster(node.policy.as_ref())));
            }
            if before.protect != node.protect {
                different.push(format!("protect = {}", own_or_cluster(node.protect.as_ref())));
            }
        }
        if !different.is_empty() {
            changes.live(
                Change::NodeChanged(node.id),
                format_args!("node {}: {}", node.id, different.join(", ")),
            );
        }
    }
}

fn networks(old: &Config, new: &Config, changes: &mut Changes) {
    // Membership of this daemon's node counts, whatever the new file says this machine is.
    let own = old.own;
    let ours = |network: &&NetworkConfig| network.members.contains(&own);
    let before: Vec<_> = old.networks.iter().filter(ours).collect();
    let after: Vec<_> = new.networks.iter().filter(ours).collect();
    for network in &before {
        if !after.iter().any(|other| other.vni == network.vni) {
            let line = format!("network {} ({}) removed", network.vni, network.name);
            changes.live(Change::NetworkRemoved(network.vni), line);
        }
    }
    for network in &after {
        match before.iter().find(|other| other.vni == network.vni) {
            None => {
                let line = format!("network {} ({}) added", network.vni, network.name);
                changes.live(Change::NetworkAdded(network.vni), line);
            }
            Some(before) => network_changes(before, network, changes),
        }
    }
}

fn channels(old: &Config, new: &Config, changes: &mut Changes) {
    // As with networks.
    let own = old.own;
    let before: Vec<_> = old.channels.iter().filter(|channel| channel.has(own)).collect();
    let after: Vec<_> = new.channels.iter().filter(|channel| channel.has(own)).collect();
    for ChannelConfig { name, .. } in &before {
        if !after.iter().any(|other| other.name == *name) {
            changes
                .live(Change::ChannelRemoved(name.clone()), format_args!("channel {name} removed"));
        }
    }
    for channel in &after {
        let name = channel.name.clone();
        match before.iter().find(|other| other.name == name) {
            None => {
                let line = format!("channel {name} added");
                changes.live(Change::ChannelAdded(name), line);
            }
            Some(before) => channel_changes(before, channel, changes),
        }
    }
}

fn channel_changes(old: &ChannelConfig, new: &ChannelConfig, changes: &mut Changes) {
    let name = &new.name;
    let mut different = Vec::new();
    if old.mode != new.mode {
        different.push(format!("mode {} -> {}", mode_name(old.mode), mode_name(new.mode)));
    }
    if old.members != new.members {
        let members = |channel: &ChannelConfig| {
            channel.members.as_deref().map_or_else(|| "all".to_owned(), list)
        };
        different.push(format!("members {} -> {}", members(old), members(new)));
    }
    if old.socket != new.socket {
        let socket = |channel: &ChannelConfig| {
            let path = channel.socket.as_ref().map(|path| path.display().to_string());
            path.unwrap_or_else(|| "the default".to_owned())
        };
        different.push(format!("socket {} -> {}", socket(old), socket(new)));
    }
    if old.copies != new.copies {
        different.push(format!("copies = {}", new.copies));
    }
    if old.send_buffer != new.send_buffer {
        different.push(format!("send_buffer_kb = {}", new.send_buffer >> 10));
    }
    if old.compression != new.compression {
        different.push(compression(new.compression));
    }
    if !different.is_empty() {
        let line = format!("channel {name} begins anew: {}", different.join(", "));
        changes.live(Change::ChannelChanged(name.clone()), line);
    } else if old.access != new.access {
        let line = format!("channel {name}: socket {} -> {}", old.access, new.access);
        changes.live(Change::ChannelAccessChanged(name.clone()), line);
    }
}

fn compression(level: Option<Level>) -> String {
    match level {
        Some(level) => format!("compression = zstd, level {}", level.get()),
        None => "compression = off".to_owned(),
    }
}

fn network_changes(old: &NetworkConfig, new: &NetworkConfig, changes: &mut Changes) {
    let vni = new.vni;
    if old.name != new.name {
        let line = format!("network {vni}: name {} -> {}", old.name, new.name);
        changes.live(Change::NameChanged(vni), line);
    }
    if old.members != new.members {
        let line =
            format!("network {vni}: members {} -> {}", list(&old.members), list(&new.members));
        changes.live(Change::MembersChanged(vni), line);
    }
    if old.stp != new.stp {
        changes.live(Change::StpChanged(vni), format_args!("network {vni}: stp = {}", new.stp));
    }
    if old.static_fdb != new.static_fdb {
        let line = format!(
            "network {vni}: {} static fdb entries, {} before",
            new.static_fdb.len(),
            old.static_fdb.len()
        );
        changes.live(Change::StaticFdbChanged(vni), line);
    }
    let mut options = Vec::new();
    for (key, before, after) in [
        ("mss_clamp", old.mss_clamp, new.mss_clamp),
        ("too_big", old.too_big, new.too_big),
        ("loop_probe", old.loop_probe, new.loop_probe),
    ] {
        if before != after {
            options.push(format!("{key} = {after}"));
        }
    }
    if old.compression != new.compression {
        options.push(compression(new.compression));
    }
    if old.policy != new.policy {
        options.push(format!("policy = {}", own_or_cluster(new.policy.as_ref())));
    }
    if old.dscp != new.dscp {
        options.push(format!("dscp = {}", own_or_cluster(new.dscp.as_ref())));
    }
    if !options.is_empty() {
        let line = format!("network {vni}: {}", options.join(", "));
        changes.live(Change::NetworkOptionsChanged(vni), line);
    }
    if old.vhost_user != new.vhost_user {
        let line = format!(
            "network {vni}: vhost_user {} -> {}",
            list(&old.vhost_user),
            list(&new.vhost_user)
        );
        changes.live(Change::VmPortsChanged(vni), line);
    }
    network_restarts(old, new, changes);
}

fn network_restarts(old: &NetworkConfig, new: &NetworkConfig, changes: &mut Changes) {
    let vni = new.vni;
    let tap = |network: &NetworkConfig| network.tap.clone().unwrap_or_else(|| "none".to_owned());
    changes.restart(format_args!("network {vni}: tap"), tap(old), tap(new));
    changes.restart(format_args!("network {vni}: existing"), old.existing, new.existing);
    let mtu = |network: &NetworkConfig| match network.tap_mtu {
        TapMtu::Auto => "auto".to_owned(),
        TapMtu::Fixed(bytes) => bytes.to_string(),
    };
    changes.restart(format_args!("network {vni}: tap_mtu"), mtu(old), mtu(new));
    changes.restart(format_args!("network {vni}: subnets"), list(&old.subnets), list(&new.subnets));
    let mac = |network: &NetworkConfig| match network.mac {
        MacPolicy::Derived => "derived",
        MacPolicy::Random => "random",
    };
    changes.restart(format_args!("network {vni}: mac"), mac(old), mac(new));
}

fn settings(old: &Config, new: &Config, changes: &mut Changes) {
    if old.cluster.key != new.cluster.key || old.cluster.next_key != new.cluster.next_key {
        let next = if new.cluster.next_key.is_some() { "with" } else { "without" };
        changes.live(Change::KeysChanged, format_args!("cluster keys changed, {next} a next key"));
    }
    let (before, after) = (&old.daemon, &new.daemon);
    if before.log != after.log {
        changes.live(
            Change::LogChanged,
            format_args!("log = {:?}, {:?} before", after.log, before.log),
        );
    }
    if before.rehandshake_interval != after.rehandshake_interval {
        let minutes = after.rehandshake_interval.as_secs() / 60;
        changes.live(Change::RehandshakeChanged, format_args!("rehandshake_minutes = {minutes}"));
    }
    let mut limits = Vec::new();
    if before.fdb_ageing != after.fdb_ageing {
        limits.push(format!("fdb_ageing_s = {}", after.fdb_ageing.as_secs()));
    }
    if before.fdb_max_entries != after.fdb_max_entries {
        limits.push(format!("fdb_max_entries = {}", after.fdb_max_entries));
    }
    if before.bum_frames_per_s != after.bum_frames_per_s {
        limits.push(format!("bum_frames_per_s = {}", after.bum_frames_per_s));
    }
    if before.rotate_packets != after.rotate_packets {
        limits.push(format!("rotate_packets = {}", after.rotate_packets));
    }
    if !limits.is_empty() {
        changes.live(Change::LimitsChanged, limits.join(", "));
    }
}

fn traffic(old: &Config, new: &Config, changes: &mut Changes) {
    let (before, after) = (&old.cluster, &new.cluster);
    let mut different = Vec::new();
    if before.policy != after.policy {
        different.push(format!("policy = {}", after.policy));
    }
    if before.protect != after.protect {
        different.push(format!("protect = {}", after.protect));
    }
    if before.dscp != after.dscp {
        different.push(format!("dscp = {}", after.dscp));
    }
    if before.ecn != after.ecn {
        different.push(format!("ecn = {}", after.ecn));
    }
    if !different.is_empty() {
        changes.live(Change::TrafficChanged, different.join(", "));
    }
    if old.detector != new.detector {
        let DetectorConfig { profile, .. } = new.detector;
        let overrides = match (DetectorConfig { profile, ..old.detector.clone() }) == new.detector {
            true => "",
            false => ", [detector] changed",
        };
        changes.live(Change::DetectorChanged, format_args!("profile = {profile}{overrides}"));
    }
}

fn link_options(old: &Config, new: &Config, changes: &mut Changes) {
    // A link without an entry has the defaults: writing them down changes nothing.
    let names: BTreeSet<_> = old.links.keys().chain(new.links.keys()).collect();
    let differs = |name: &&&String| old.link_options(name) != new.link_options(name);
    let different: Vec<_> = names.iter().filter(differs).map(|name| name.as_str()).collect();
    if !different.is_empty() {
        let line = format!("options of link {}", different.join(", "));
        changes.live(Change::LinkOptionsChanged, line);
    }
}

fn restart_only(old: &Config, new: &Config, changes: &mut Changes) {
    changes.restart("this node's id", old.own, new.own);
    let ciphers = |config: &Config| {
        config.cluster.ciphers.iter().map(|cipher| cipher.name()).collect::<Vec<_>>().join(", ")
    };
    changes.restart("ciphers", ciphers(old), ciphers(new));
    changes.restart("insecure", old.cluster.insecure, new.cluster.insecure);
    changes.restart("port", old.cluster.port, new.cluster.port);
    changes.restart("workers", old.daemon.workers, new.daemon.workers);
    changes.restart("dedicated", old.daemon.dedicated, new.daemon.dedicated);
    let spin = |spin: Option<Duration>| match spin {
        Some(spin) => spin.as_micros().to_string(),
        None => "by default".to_owned(),
    };
    changes.restart("spin_us", spin(old.daemon.spin), spin(new.daemon.spin));
    changes.restart(
        "control_socket",
        old.daemon.control_socket.display().to_string(),
        new.daemon.control_socket.display().to_string(),
    );
    changes.restart("mesh", old.cluster.mesh, new.cluster.mesh);
    for ((key, before), (_, after)) in
        old.offload.switches().into_iter().zip(new.offload.switches())
    {
        changes.restart(key, before, after);
    }
    for ((key, before), (_, after)) in old.dpdk.values().into_iter().zip(new.dpdk.values()) {
        changes.restart(format_args!("dpdk {key}"), before, after);
    }
    let congestion = |config: &Config| congestion_name(config.transport.congestion);
    changes.restart("congestion", congestion(old), congestion(new));
    let memory = |config: &Config| config.transport.receive_memory >> 20;
    changes.restart("receive_memory_mb", memory(old), memory(new));
    let own = |config: &Config| {
        let node = config.nodes.iter().find(|node| node.id == old.own);
        node.map(|node| node.links.clone()).unwrap_or_default()
    };
    let (what, before, after) = links(&own(old), &own(new));
    changes.restart(format_args!("this node's {what}"), before, after);
    ports(&own(old), &own(new), changes);
}

/// What this node's links are on.
fn ports(old: &[NodeLink], new: &[NodeLink], changes: &mut Changes) {
    let port = |link: &NodeLink| {
        link.dpdk.as_ref().map_or_else(|| "the kernel's".to_owned(), ToString::to_string)
    };
    for link in new {
        let Some(before) = old.iter().find(|before| before.is_same_end(link)) else { continue };
        if before.dpdk == link.dpdk {
            continue;
        }
        let (before, after) = (port(before), port(link));
        changes.restart.push(match before == after {
            true => format!("link {}: other options of port {after}", link.name),
            false => format!("link {}: port: {before} -> {after}", link.name),
        });
    }
}

/// Whether two lists of links are the same to other nodes.
fn same_ends(one: &[NodeLink], other: &[NodeLink]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.is_same_end(other))
}

/// Two lists of links as they are written: `addresses` where each is called by its position.
fn links(old: &[NodeLink], new: &[NodeLink]) -> (&'static str, String, String) {
    let numbered = |links: &[NodeLink]| {
        links.iter().zip(0..).all(|(link, position): (_, u8)| link.name == position.to_string())
    };
    if numbered(old) && numbered(new) {
        let show = |links: &[NodeLink]| -> Vec<_> {
            links.iter().map(|link| link.address.to_string()).collect()
        };
        return ("addresses", list(&show(old)), list(&show(new)));
    }
    let show = |links: &[NodeLink]| -> Vec<_> {
        links.iter().map(|link| format!("{} {}", link.name, link.address)).collect()
    };
    ("links", list(&show(old)), list(&show(new)))
}

/// A value, or that there is none of its own any more.
fn own_or_cluster(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "the cluster's".to_owned(), ToString::to_string)
}

/// Items with commas between them.
fn list<T: fmt::Display>(items: &[T]) -> String {
    let texts: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(", "))
}

#[cfg(test)]
mod tests;
