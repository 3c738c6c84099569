//! What a reload changes, and what of it needs a restart.

use std::collections::BTreeSet;
use std::fmt;

use encap::id::{NodeId, Vni};

use super::{Config, DetectorConfig, MacPolicy, NetworkConfig, NodeConfig, NodeLink, TapMtu};

/// Something that a running daemon can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    merged.daemon.control_socket.clone_from(&old.daemon.control_socket);
    merged.offload = old.offload;
    if let (Some(kept), Some(node)) =
        (old.own_node(), merged.nodes.iter_mut().find(|node| node.id == old.own))
    {
        // Links pair by their names: other ones for the peers would have no counterpart here.
        let same = node.links == kept.links;
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
    let own_links_change = own_links(old) != own_links(new);
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
            if before.links != node.links {
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
        options.push(match new.compression {
            Some(level) => format!("compression = zstd, level {}", level.get()),
            None => "compression = off".to_owned(),
        });
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
    network_restarts(old, new, changes);
}

fn network_restarts(old: &NetworkConfig, new: &NetworkConfig, changes: &mut Changes) {
    let vni = new.vni;
    changes.restart(format_args!("network {vni}: tap"), &old.tap, &new.tap);
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
    let own = |config: &Config| {
        let node = config.nodes.iter().find(|node| node.id == old.own);
        node.map(|node| node.links.clone()).unwrap_or_default()
    };
    let (what, before, after) = links(&own(old), &own(new));
    changes.restart(format_args!("this node's {what}"), before, after);
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
mod tests {
    use super::*;
    use crate::config::links::{Family, NodeAddress};
    use crate::config::testing::{self, id, key, network, node, vni};
    use crate::config::{
        Cipher, DaemonConfig, Dscp, Level, LinkOptions, Policy, Profile, Protect, StaticEntry,
        derived_mac,
    };
    use std::time::Duration;

    fn config() -> Config {
        let networks = vec![network(1, &[1, 2]), network(2, &[2])];
        Config { networks, ..testing::config(vec![node(1), node(2)]) }
    }

    fn set_address(node: &mut NodeConfig, last: u8) {
        node.links[0].address = NodeAddress::Static([192, 0, 2, last].into());
    }

    fn live(change: impl FnOnce(&mut Config)) -> Vec<Change> {
        let (old, mut new) = (config(), config());
        change(&mut new);
        let changes = old.diff(&new);
        assert_eq!(changes.restart, Vec::<String>::new());
        assert_eq!(old.with_live_changes(&new), new);
        changes.live.into_iter().map(|(change, _)| change).collect()
    }

    #[test]
    fn equal_configurations_change_nothing() {
        let changes = config().diff(&config());
        assert!(changes.live.is_empty() && changes.restart.is_empty());
    }

    #[test]
    fn what_is_applied_while_running() {
        assert_eq!(live(|new| new.nodes.push(node(3))), [Change::NodeAdded(id(3))]);
        let replaced = live(|new| new.nodes[1] = node(3));
        assert_eq!(replaced, [Change::NodeRemoved(id(2)), Change::NodeAdded(id(3))]);
        let moved = live(|new| set_address(&mut new.nodes[1], 9));
        assert_eq!(moved, [Change::NodeChanged(id(2))]);
        assert_eq!(live(|new| new.nodes[0].name = "a".into()), [Change::NodeChanged(id(1))]);
        let added = live(|new| new.networks.push(network(3, &[1])));
        assert_eq!(added, [Change::NetworkAdded(vni(3))]);
        let joined = live(|new| new.networks[1] = network(2, &[1, 2]));
        assert_eq!(joined, [Change::NetworkAdded(vni(2))]);
        let left = live(|new| new.networks[0].members = vec![id(2)]);
        assert_eq!(left, [Change::NetworkRemoved(vni(1))]);
        assert_eq!(
            live(|new| new.networks[0].members = vec![id(1)]),
            [Change::MembersChanged(vni(1))]
        );
        assert_eq!(live(|new| new.networks[0].name = "x".into()), [Change::NameChanged(vni(1))]);
        assert_eq!(live(|new| new.networks[0].stp = false), [Change::StpChanged(vni(1))]);
        let entry = StaticEntry { mac: derived_mac(vni(1), id(2)), node: id(2) };
        let entries = live(|new| new.networks[0].static_fdb.push(entry));
        assert_eq!(entries, [Change::StaticFdbChanged(vni(1))]);
        assert_eq!(live(|new| new.cluster.next_key = Some(key("1"))), [Change::KeysChanged]);
        assert_eq!(live(|new| new.daemon.log = "warn".into()), [Change::LogChanged]);
        let hours = live(|new| new.daemon.rehandshake_interval = Duration::from_secs(7200));
        assert_eq!(hours, [Change::RehandshakeChanged]);
        assert_eq!(live(|new| new.daemon.bum_frames_per_s = 0), [Change::LimitsChanged]);
    }

    #[test]
    fn what_frames_do_is_applied_while_running() {
        assert_eq!(live(|new| new.cluster.policy = Policy::FlowHash), [Change::TrafficChanged]);
        assert_eq!(live(|new| new.cluster.protect = Protect::All), [Change::TrafficChanged]);
        assert_eq!(live(|new| new.cluster.dscp = Dscp::Inherit), [Change::TrafficChanged]);
        assert_eq!(live(|new| new.cluster.ecn = false), [Change::TrafficChanged]);
        assert_eq!(live(|new| new.detector.profile = Profile::Wan), [Change::DetectorChanged]);
        let fast = Some(Duration::from_millis(2));
        assert_eq!(live(|new| new.detector.fast = fast), [Change::DetectorChanged]);
        let weight = |weight| LinkOptions { weight, ..LinkOptions::default() };
        let heavy = live(|new| drop(new.links.insert("0".into(), weight(2))));
        assert_eq!(heavy, [Change::LinkOptionsChanged]);
        assert!(live(|new| drop(new.links.insert("0".into(), weight(1)))).is_empty());
        for change in [
            |network: &mut NetworkConfig| network.mss_clamp = false,
            |network: &mut NetworkConfig| network.too_big = false,
            |network: &mut NetworkConfig| network.loop_probe = false,
            |network: &mut NetworkConfig| network.compression = Some(Level::default()),
            |network: &mut NetworkConfig| network.policy = Some(Policy::Passive),
            |network: &mut NetworkConfig| network.dscp = Some(Dscp::Fixed(0)),
        ] {
            let changed = live(|new| change(&mut new.networks[0]));
            assert_eq!(changed, [Change::NetworkOptionsChanged(vni(1))]);
        }
    }

    #[test]
    fn what_is_said_of_a_peer_is_live_and_of_this_node_is_for_its_peers() {
        let policy = Some(Policy::Active { copies: 2 });
        assert_eq!(live(|new| new.nodes[1].policy = policy), [Change::NodeChanged(id(2))]);
        let protect = Some(Protect::Off);
        assert_eq!(live(|new| new.nodes[1].protect = protect), [Change::NodeChanged(id(2))]);
        assert!(live(|new| new.nodes[0].policy = policy).is_empty());
        let (old, mut new) = (config(), config());
        let second = NodeLink {
            name: "wan".to_owned(),
            address: NodeAddress::Dynamic { family: Family::Ipv4, interface: None },
        };
        new.nodes[1].links.push(second);
        new.nodes[1].policy = policy;
        let lines: Vec<_> = old.diff(&new).live.into_iter().map(|(_, line)| line).collect();
        let expected = "node 2: links [0 192.0.2.2] -> [0 192.0.2.2, wan dynamic ipv4], \
            policy = active:2";
        assert_eq!(lines, [expected]);
    }

    #[test]
    fn networks_of_other_nodes_change_nothing_here() {
        assert!(live(|new| new.networks[1].tap = "other".into()).is_empty());
        assert!(live(|new| drop(new.networks.pop())).is_empty());
    }

    #[test]
    fn what_needs_a_restart_stays_as_it_was() {
        let (old, mut new) = (config(), config());
        new.cluster.port = 30000;
        new.cluster.ciphers.push(Cipher::None);
        new.cluster.insecure = true;
        new.daemon.workers = 2;
        new.daemon.dedicated = true;
        new.daemon.control_socket = "/tmp/x".into();
        new.cluster.mesh = true;
        new.offload.tap_tcp = false;
        new.offload.bundles = false;
        set_address(&mut new.nodes[0], 9);
        new.networks[0].tap = "blue".into();
        new.networks[0].existing = true;
        new.networks[0].tap_mtu = TapMtu::Fixed(1400);
        new.networks[0].subnets = vec!["10.0.0.0/24".parse().unwrap()];
        new.networks[0].mac = MacPolicy::Random;
        new.daemon.log = "warn".into();
        let changes = old.diff(&new);
        assert_eq!(changes.live.len(), 1, "{changes:#?}");
        for expected in [
            "ciphers: aes-256-gcm -> aes-256-gcm, none",
            "insecure: false -> true",
            "port: 26026 -> 30000",
            "mesh: false -> true",
            "tap_tcp: true -> false",
            "bundles: true -> false",
            "workers: 1 -> 2",
            "dedicated: false -> true",
            "control_socket: /run/tapd.sock -> /tmp/x",
            "this node's addresses: [192.0.2.1] -> [192.0.2.9]",
            "network 1: tap: tap1 -> blue",
            "network 1: existing: false -> true",
            "network 1: tap_mtu: auto -> 1400",
            "network 1: subnets: [] -> [10.0.0.0/24]",
            "network 1: mac: derived -> random",
        ] {
            assert!(
                changes.restart.iter().any(|line| line == expected),
                "{expected}\n{changes:#?}"
            );
        }
        assert_eq!(changes.restart.len(), 15);
        let kept = old.with_live_changes(&new);
        let expected =
            Config { daemon: DaemonConfig { log: "warn".into(), ..old.daemon.clone() }, ..old };
        assert_eq!(kept, expected);
        assert_eq!(kept.diff(&new).restart.len(), 15);
    }
}
