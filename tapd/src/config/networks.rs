//! Checks of `[[networks]]`: taps, members, subnets, static entries.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use encap::id::{NodeId, Vni};
use ipnet::IpNet;

use super::checks::{Unique, check_name, check_station, check_tap_name, or};
use super::derive::derived_address;
use super::fault::{Collector, Located};
use super::fields::Field;
use super::reader::{RawEntry, RawNetwork};
use super::traffic::Level;
use super::{MIN_IPV6_TAP_MTU, MacPolicy, NetworkConfig, NodeConfig, StaticEntry, TapMtu, vhost};

/// The nodes by everything they can be called.
pub(super) struct Names<'n> {
    by_name: HashMap<&'n str, NodeId>,
    ids: BTreeSet<NodeId>,
}

impl<'n> Names<'n> {
    pub(super) fn new(nodes: &'n [Located<NodeConfig>]) -> Self {
        Self {
            by_name: nodes.iter().map(|node| (node.value.name.as_str(), node.value.id)).collect(),
            ids: nodes.iter().map(|node| node.value.id).collect(),
        }
    }

    fn find(&self, reference: &str) -> Option<NodeId> {
        let id = reference.parse().ok().and_then(NodeId::new);
        id.filter(|id| self.ids.contains(id)).or_else(|| self.by_name.get(reference).copied())
    }
}

/// What `[[networks]]` says.
pub(super) struct Checked {
    /// By ascending VNI.
    pub(super) networks: Vec<NetworkConfig>,
    /// Those with neither a tap nor a VM port: wrong on the node that the files are for, and what
    /// other nodes may well have, whose local files are not here.
    pub(super) portless: Vec<Located<Vni>>,
}

/// What stands for no tap at all.
const NO_TAP: &str = "none";

/// Checks all networks, each and against one another.
pub(super) fn validate(
    raw: Vec<RawNetwork>,
    nodes: &[Located<NodeConfig>],
    control_socket: &Path,
    faults: &mut Collector,
) -> Checked {
    let known = Names::new(nodes);
    let mut vnis = Unique::new("vni");
    let mut names = Unique::new("network name");
    let mut taps = Unique::new("tap");
    let mut networks = Vec::with_capacity(raw.len());
    let mut placed = Vec::new();
    let mut sockets = vhost::Sockets::new(control_socket);
    let mut portless = Vec::new();
    for network in raw {
        let Some(vni) = network.vni else {
            // Nothing can be derived, but what is there is checked all the same.
            network.name.iter().for_each(|name| check_name("network", name, faults));
            network.tap.iter().for_each(|tap| check_tap_name(tap, faults));
            continue;
        };
        vnis.check(vni.value, vni.at, faults);
        let default = |text: String| Located { at: vni.at, value: text };
        let name = network.name.unwrap_or_else(|| default(format!("vni{}", vni.value)));
        check_name("network", &name, faults);
        names.check(name.value.clone(), name.at, faults);
        let tap = tap(network.tap.as_ref(), &vni, nodes, &mut taps, faults);
        let vhost_user = vhost::validate(network.vhost_user, &mut sockets, faults);
        if tap.is_none() && vhost_user.is_empty() {
            let at = network.tap.as_ref().map_or(vni.at, |tap| tap.at);
            portless.push(Located { at, value: vni.value });
        }
        let members = members(network.members, &known, faults);
        for subnet in &network.subnets {
            check_subnet(subnet, &members, nodes, faults);
            placed.push(Placed { subnet: subnet.clone(), members: members.clone() });
        }
        check_tap_mtu(&network.tap_mtu, &network.subnets, faults);
        networks.push(NetworkConfig {
            vni: vni.value,
            name: name.value,
            tap,
            vhost_user,
            tap_mtu: or(network.tap_mtu, TapMtu::Auto),
            subnets: network.subnets.into_iter().map(|subnet| subnet.value).collect(),
            mac: or(network.mac, MacPolicy::Derived),
            existing: or(network.existing, false),
            static_fdb: static_entries(network.fdb, &known, &members, faults),
            members: members.into_iter().collect(),
            stp: or(network.stp, true),
            mss_clamp: or(network.mss_clamp, true),
            too_big: or(network.too_big, true),
            loop_probe: or(network.loop_probe, true),
            compression: or(network.compression, false).then(|| level(network.compression_level)),
            policy: network.policy.map(|policy| policy.value),
            dscp: network.dscp.map(|dscp| dscp.value),
        });
    }
    check_overlaps(&placed, faults);
    networks.sort_by_key(|network| network.vni);
    Checked { networks, portless }
}

/// In range, or a fault already.
fn level(field: Field<u8>) -> Level {
    field.and_then(|level| Level::new(level.value)).unwrap_or_default()
}

/// Name of the tap, unless there is to be none.
fn tap(
    written: Option<&Located<String>>,
    vni: &Located<Vni>,
    nodes: &[Located<NodeConfig>],
    taps: &mut Unique<String>,
    faults: &mut Collector,
) -> Option<String> {
    let tap = match written {
        Some(tap) if tap.value == NO_TAP => return None,
        Some(tap) => tap.clone(),
        None => Located { at: vni.at, value: format!("tap{}", vni.value) },
    };
    check_tap_name(&tap, faults);
    taps.check(tap.value.clone(), tap.at, faults);
    for node in nodes {
        let ports = node.value.links.iter().filter_map(|link| link.dpdk.as_ref());
        if ports.filter_map(|port| port.exception_tap.as_ref()).any(|name| *name == tap.value) {
            faults.add(
                tap.at,
                format!(
                    "tap {} is the exception_tap of a port of node {} ({}); choose another name \
                    for one of them",
                    tap.value,
                    node.value.id,
                    node.at.seen_from(tap.at)
                ),
            );
        }
    }
    Some(tap.value)
}

/// Nodes by their ids or names; all of them without a list.
pub(super) fn members(
    field: Field<Vec<Located<String>>>,
    known: &Names<'_>,
    faults: &mut Collector,
) -> BTreeSet<NodeId> {
    let Some(list) = field else { return known.ids.clone() };
    let mut members = BTreeSet::new();
    for member in list.value {
        match known.find(&member.value) {
            None => faults.add(
                member.at,
                format!(
                    "member {:?} is not in [[nodes]]; add the node or correct its id or name",
                    member.value
                ),
            ),
            Some(id) if !members.insert(id) => {
                faults.add(member.at, format!("node {id} is a member twice; remove one"));
            }
            Some(_) => {}
        }
    }
    members
}

fn check_subnet(
    subnet: &Located<IpNet>,
    members: &BTreeSet<NodeId>,
    nodes: &[Located<NodeConfig>],
    faults: &mut Collector,
) {
    let net = subnet.value;
    if net.addr() != net.network() {
        faults.add(
            subnet.at,
            format!("subnet {net} has bits behind its prefix; write {}", net.trunc()),
        );
    }
    let group = net.network().is_multicast() || net.network().is_unspecified();
    if group || net.network().is_loopback() {
        faults.add(
            subnet.at,
            format!(
                "subnet {net} is not one that hosts can have; write a private one such as \
                10.100.0.0/24"
            ),
        );
    } else if let Some(lost) = members.iter().rev().find(|id| derived_address(net, **id).is_none())
    {
        faults.add(
            subnet.at,
            format!(
                "subnet {net} is too small for node {lost}, whose address would be its \
                base + {lost}; widen the subnet or choose smaller node ids"
            ),
        );
    }
    for node in nodes {
        for address in node.value.addresses().filter(|address| net.contains(address)) {
            faults.add(
                subnet.at,
                format!(
                    "subnet {net} contains {address}, a link address of node {} ({}): \
                    datagrams would be sent into the tap; choose another subnet",
                    node.value.id,
                    node.at.seen_from(subnet.at)
                ),
            );
        }
    }
}

fn check_tap_mtu(tap_mtu: &Field<TapMtu>, subnets: &[Located<IpNet>], faults: &mut Collector) {
    let Some(Located { at, value: TapMtu::Fixed(bytes) }) = tap_mtu else { return };
    if *bytes < MIN_IPV6_TAP_MTU && subnets.iter().any(|subnet| subnet.value.addr().is_ipv6()) {
        faults.add(
            *at,
            format!(
                "tap_mtu = {bytes} is below {MIN_IPV6_TAP_MTU}, where the kernel has no \
                IPv6; raise it or remove the IPv6 subnet"
            ),
        );
    }
}

struct Placed {
    subnet: Located<IpNet>,
    members: BTreeSet<NodeId>,
}

/// Two subnets may only overlap where no node has both.
fn check_overlaps(placed: &[Placed], faults: &mut Collector) {
    // By network address: what overlaps a subnet stands, in this order, right behind it.
    let mut order: Vec<_> = placed.iter().collect();
    order.sort_by_key(|place| (place.subnet.value.network(), place.subnet.value.prefix_len()));
    for (position, wide) in order.iter().enumerate() {
        let inside = order.iter().skip(position + 1);
        for narrow in
            inside.take_while(|other| wide.subnet.value.contains(&other.subnet.value.network()))
        {
            let Some(shared) = wide.members.intersection(&narrow.members).next() else { continue };
            let (first, second) = if wide.subnet.at <= narrow.subnet.at {
                (&wide.subnet, &narrow.subnet)
            } else {
                (&narrow.subnet, &wide.subnet)
            };
            faults.add(
                second.at,
                format!(
                    "subnet {} overlaps {} ({}), and node {shared} would have both; \
                    separate them",
                    second.value,
                    first.value,
                    first.at.seen_from(second.at)
                ),
            );
        }
    }
}

fn static_entries(
    raw: Vec<Located<RawEntry>>,
    known: &Names<'_>,
    members: &BTreeSet<NodeId>,
    faults: &mut Collector,
) -> Vec<StaticEntry> {
    let mut macs = Unique::new("fdb entry");
    let mut entries = Vec::with_capacity(raw.len());
    for Located { value: entry, .. } in raw {
        let node = entry.node.and_then(|node| static_node(&node, known, members, faults));
        let Some(mac) = entry.mac else { continue };
        check_station("fdb entry", &mac, faults);
        macs.check(mac.value, mac.at, faults);
        if let Some(node) = node {
            entries.push(StaticEntry { mac: mac.value, node });
        }
    }
    entries.sort();
    entries
}

fn static_node(
    node: &Located<String>,
    known: &Names<'_>,
    members: &BTreeSet<NodeId>,
    faults: &mut Collector,
) -> Option<NodeId> {
    let Some(id) = known.find(&node.value) else {
        faults.add(
            node.at,
            format!(
                "fdb node {:?} is not in [[nodes]]; add the node or correct its id or name",
                node.value
            ),
        );
        return None;
    };
    if !members.contains(&id) {
        faults.add(
            node.at,
            format!(
                "fdb node {id} is not a member of this network; add it to \
            members or remove the entry"
            ),
        );
    }
    Some(id)
}
