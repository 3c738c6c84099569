//! Checks of `[[nodes]]`, and of `[[links]]`, which is about the links that the nodes have.
//!
//! Next: [`super::networks`] for `[[networks]]`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use fastpath::interface;

use super::checks::{Unique, check_name, or};
use super::fault::{At, Collector, Located};
use super::fields::Field;
use super::links::{Family, LinkOptions, NodeAddress, NodeLink, joints};
use super::ranges::AddressRange;
use super::reader::{Address, RawLink, RawNode, RawNodeLink};
use super::{MAX_LINKS, NodeConfig, dpdk};

/// Checks all nodes, each and against one another.
pub(super) fn validate(
    raw: Vec<RawNode>,
    mesh: bool,
    faults: &mut Collector,
) -> Vec<Located<NodeConfig>> {
    let mut ids = Unique::new("node id");
    let mut names = Unique::new("node name");
    let mut addresses = Unique::new("address");
    let mut families = Families::default();
    let mut nodes = Vec::with_capacity(raw.len());
    let mut sound = Vec::with_capacity(raw.len());
    for node in raw {
        let before = faults.count();
        let links_at = node.links.as_ref().map(|links| links.at);
        let links_at = links_at.or(node.addresses.as_ref().map(|list| list.at));
        let links = match (node.links, node.addresses) {
            (Some(links), _) => named_links(links, mesh, faults),
            (None, Some(list)) => numbered_links(list, faults),
            (None, None) => Vec::new(),
        };
        check_dynamic(&links, faults);
        for link in &links {
            if let Some(address) = link.value.address.fixed() {
                addresses.check(address, link.at, faults);
            }
        }
        if !mesh {
            families.check(&links, faults);
        }
        let Some(id) = node.id else { continue };
        ids.check(id.value, id.at, faults);
        let name =
            node.name.unwrap_or_else(|| Located { at: id.at, value: format!("node{}", id.value) });
        check_name("node", &name, faults);
        names.check(name.value.clone(), name.at, faults);
        if let Some(at) = links_at.filter(|_| faults.count() == before && !links.is_empty()) {
            sound.push((nodes.len(), at));
        }
        nodes.push(Located {
            at: node.at,
            value: NodeConfig {
                id: id.value,
                name: name.value,
                links: links.into_iter().map(|link| link.value).collect(),
                policy: node.policy.map(|policy| policy.value),
                protect: node.protect.map(|protect| protect.value),
            },
        });
    }
    let sound: Vec<_> = sound
        .into_iter()
        .filter_map(|(position, at)| Some(Located { at, value: &nodes.get(position)?.value }))
        .collect();
    check_partners(&sound, mesh, faults);
    nodes
}

/// `addresses`: links that are called by their position.
fn numbered_links(
    list: Located<Vec<Located<Address>>>,
    faults: &mut Collector,
) -> Vec<Located<NodeLink>> {
    check_count(list.at, list.value.len(), "addresses", faults);
    let mut links = Vec::with_capacity(list.value.len());
    for (position, Located { at, value }) in list.value.into_iter().enumerate() {
        let address = value.into_node_address(at, Family::default(), None, faults);
        let link = NodeLink { name: position.to_string(), address, dpdk: None };
        links.push(Located { at, value: link });
    }
    links
}

/// `links`: each with a name of its own.
fn named_links(
    list: Located<Vec<Located<RawNodeLink>>>,
    mesh: bool,
    faults: &mut Collector,
) -> Vec<Located<NodeLink>> {
    check_count(list.at, list.value.len(), "links", faults);
    let mut names = Unique::new("link name");
    let mut taken = dpdk::Taken::default();
    let mut links = Vec::with_capacity(list.value.len());
    for Located { at: _, value: raw } in list.value {
        if let Some(name) = &raw.name {
            check_link_name(name, mesh, faults);
            names.check(name.value.clone(), name.at, faults);
        }
        if let Some(interface) = &raw.interface
            && !interface::is_valid_name(&interface.value)
        {
            faults.add(
                interface.at,
                format!(
                    "{:?} cannot be an interface's name; write it as ip link shows it",
                    interface.value
                ),
            );
        }
        let Some(address) = raw.address else { continue };
        let mut port = None;
        match (address.value, raw.dpdk) {
            (Address::Static(address), dpdk) => {
                only_if_dynamic("family", raw.family.as_ref().map(|family| family.at), faults);
                only_if_dynamic("interface", raw.interface.as_ref().map(|name| name.at), faults);
                port = dpdk.and_then(|raw| dpdk::validate_port(raw, address, &mut taken, faults));
            }
            (Address::Dynamic, Some(dpdk)) => faults.add(
                dpdk.at,
                "a DPDK port has no DHCP and so no dynamic address; write address = \"192.0.2.1\"",
            ),
            (Address::Dynamic, None) => {}
        }
        let interface = raw.interface.map(|interface| interface.value);
        let family = or(raw.family, Family::default());
        let node_address = address.value.into_node_address(address.at, family, interface, faults);
        let Some(name) = raw.name else { continue };
        let value = NodeLink { name: name.value, address: node_address, dpdk: port };
        links.push(Located { at: address.at, value });
    }
    links
}

fn only_if_dynamic(key: &str, at: Option<At>, faults: &mut Collector) {
    if let Some(at) = at {
        faults.add(at, format!("{key} is only for address = \"dynamic\"; remove it"));
    }
}

fn check_count(at: At, count: usize, what: &str, faults: &mut Collector) {
    if count > MAX_LINKS {
        let advice = "more links than there can be; keep at most";
        faults.add(at, format!("{count} {what} are {advice} {MAX_LINKS}"));
    }
}

/// A name of [`check_name`], or a position as those nodes have it that only write addresses.
fn check_link_name(name: &Located<String>, mesh: bool, faults: &mut Collector) {
    if (0..MAX_LINKS).any(|position| name.value == position.to_string()) {
        return;
    }
    check_name("link", name, faults);
    if mesh && name.value.contains('-') {
        faults.add(
            name.at,
            format!(
                "link name {:?} has a '-', which stands between the names of two ends where \
                mesh = true; leave it out",
                name.value
            ),
        );
    }
}

impl Address {
    fn into_node_address(
        self,
        at: At,
        family: Family,
        interface: Option<String>,
        faults: &mut Collector,
    ) -> NodeAddress {
        match self {
            Self::Dynamic => NodeAddress::Dynamic { family, interface },
            Self::Static(address) => {
                if let Some(fault) = address_fault(address) {
                    faults.add(at, format!("address {address} {fault}"));
                }
                NodeAddress::Static(address)
            }
        }
    }
}

fn address_fault(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("stands for every address; write the one that other nodes send to");
    }
    if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("is a group's; write the node's own unicast address");
    }
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(
            "is link-local and means something else on each interface; use a global or unique \
                local one",
        ),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("is an IPv4 address in disguise; write it in its IPv4 form")
        }
        _ => None,
    }
}

/// Two dynamic links that send alike would be one link twice.
fn check_dynamic(links: &[Located<NodeLink>], faults: &mut Collector) {
    let mut seen = HashMap::new();
    for link in links {
        let NodeAddress::Dynamic { family, interface } = &link.value.address else { continue };
        if let Some(first) = seen.insert((family, interface), &link.value.name) {
            faults.add(
                link.at,
                format!(
                    "links {first:?} and {:?} both are {}; give each an interface of its own",
                    link.value.name, link.value.address
                ),
            );
        }
    }
}

/// The address family of each link name: it must be the same on all nodes.
#[derive(Default)]
struct Families(HashMap<String, Located<NodeAddress>>);

impl Families {
    fn check(&mut self, links: &[Located<NodeLink>], faults: &mut Collector) {
        for Located { at, value: NodeLink { name, address, .. } } in links.iter().take(MAX_LINKS) {
            // Said already; its family is no news.
            if address.fixed().and_then(address_fault).is_some() {
                continue;
            }
            let first = self.0.entry(name.clone());
            let first = first.or_insert_with(|| Located { at: *at, value: address.clone() });
            if first.value.family() != address.family() {
                faults.add(
                    *at,
                    format!(
                        "{address} and {} ({}) both are link {name:?} of their node, but of \
                            different families; such a link cannot work, so use one family",
                        first.value,
                        first.at.seen_from(*at)
                    ),
                );
            }
        }
    }
}

/// What two nodes have in common if they join to every third node in the same way.
type Kind<'n> = Vec<(&'n str, Family, bool)>;

/// Every two nodes must have a link, and not more than there can be.
///
/// Nodes of one kind are looked at once: a cluster has thousands of nodes and few kinds.
fn check_partners(nodes: &[Located<&NodeConfig>], mesh: bool, faults: &mut Collector) {
    if !mesh && has_common_name(nodes) {
        return;
    }
    let mut kinds: Vec<Vec<&Located<&NodeConfig>>> = Vec::new();
    let mut known: HashMap<Kind<'_>, usize> = HashMap::new();
    for node in nodes {
        let kind = *known.entry(kind(node.value, mesh)).or_insert(kinds.len());
        match kinds.get_mut(kind) {
            Some(members) => members.push(node),
            None => kinds.push(vec![node]),
        }
    }
    for (position, members) in kinds.iter().enumerate() {
        let Some((first, rest)) = members.split_first() else { continue };
        let others = kinds.iter().take(position).filter_map(|others| others.first());
        let found = others.filter(|other| partner_fault(first.value, other.value, mesh).is_some());
        let among_themselves =
            rest.first().and_then(|other| partner_fault(other.value, first.value, mesh));
        if let Some(other) = found.into_iter().next() {
            members.iter().for_each(|node| say_partner_fault(node, other, mesh, faults));
        } else if among_themselves.is_some() {
            rest.iter().for_each(|node| say_partner_fault(node, first, mesh, faults));
        }
    }
}

/// Whether all nodes have a fixed address on links of one name.
fn has_common_name(nodes: &[Located<&NodeConfig>]) -> bool {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let links = nodes.iter().flat_map(|node| &node.value.links);
    for link in links.filter(|link| link.address.fixed().is_some()) {
        *counts.entry(&link.name).or_default() += 1;
    }
    counts.values().any(|count| *count == nodes.len())
}

fn kind(node: &NodeConfig, mesh: bool) -> Kind<'_> {
    let mut kind: Vec<_> = node
        .links
        .iter()
        .map(|NodeLink { name, address, .. }| {
            let name = if mesh { "" } else { name.as_str() };
            (name, address.family(), address.fixed().is_none())
        })
        .collect();
    kind.sort_unstable();
    kind
}

fn say_partner_fault(
    node: &Located<&NodeConfig>,
    other: &Located<&NodeConfig>,
    mesh: bool,
    faults: &mut Collector,
) {
    if let Some(fault) = partner_fault(node.value, other.value, mesh) {
        let NodeConfig { id, name, .. } = node.value;
        let (to, line) = (&other.value, other.at.seen_from(node.at));
        let subject = format!("node {id} ({name}) and node {} ({}, {line})", to.id, to.name);
        faults.add(node.at, format!("{subject} {fault}"));
    }
}

/// What keeps two nodes apart, to be read behind their names.
fn partner_fault(one: &NodeConfig, other: &NodeConfig, mesh: bool) -> Option<String> {
    let (lower, higher) = if one.id <= other.id { (one, other) } else { (other, one) };
    let count = joints(&lower.links, &higher.links, mesh).len();
    if count > MAX_LINKS {
        return Some(format!(
            "would have {count} links, as mesh = true joins every two addresses of one family; \
            keep it to {MAX_LINKS}"
        ));
    }
    if count > 0 {
        return None;
    }
    let names: HashSet<_> = one.links.iter().map(|link| &link.name).collect();
    Some(if mesh {
        "have no link: no two of their addresses are of one family without both being dynamic; \
            give one of them a fixed address of the other's family"
            .to_owned()
    } else if other.links.iter().any(|link| names.contains(&link.name)) {
        "have no link: where their link names are equal, both addresses are dynamic; give one of \
            them a fixed address"
            .to_owned()
    } else {
        "have no link: no name of their links is equal; give one link of each the same name, or \
            set mesh = true in [cluster]"
            .to_owned()
    })
}

/// Checks `[[links]]` and gives the options by name.
pub(super) fn validate_links(
    raw: Vec<RawLink>,
    nodes: &[Located<NodeConfig>],
    mesh: bool,
    faults: &mut Collector,
) -> BTreeMap<String, LinkOptions> {
    let ends: HashMap<&str, Family> = nodes
        .iter()
        .flat_map(|node| &node.value.links)
        .map(|link| (link.name.as_str(), link.address.family()))
        .collect();
    let mut names = Unique::new("link");
    let mut links = BTreeMap::new();
    for link in raw {
        let Some(name) = link.name else { continue };
        names.check(name.value.clone(), name.at, faults);
        check_known(&name, &ends, mesh, faults);
        // In a mesh one name may be an end of either family.
        let family = ends.get(name.value.as_str()).copied().filter(|_| !mesh);
        let mut texts = |list: Vec<Located<AddressRange>>| -> Vec<String> {
            for range in &list {
                check_range_family(range, &name.value, family, faults);
            }
            list.into_iter().map(|range| range.value.text).collect()
        };
        let options = LinkOptions {
            allow: texts(link.allow),
            deny: texts(link.deny),
            priority: or(link.priority, 0),
            weight: or(link.weight, 1),
            mtu: value(link.mtu),
        };
        links.insert(name.value, options);
    }
    links
}

fn value<T>(field: Field<T>) -> Option<T> {
    field.map(|located| located.value)
}

/// A name that no link has is a mistake that nobody would notice otherwise.
fn check_known(
    name: &Located<String>,
    ends: &HashMap<&str, Family>,
    mesh: bool,
    faults: &mut Collector,
) {
    let known = match (mesh, name.value.split_once('-')) {
        (false, _) => ends.contains_key(name.value.as_str()),
        (true, Some((lower, higher))) => ends.contains_key(lower) && ends.contains_key(higher),
        (true, None) => false,
    };
    // Without any end there is nothing to compare with, and a fault already.
    if known || ends.is_empty() {
        return;
    }
    let mut all: Vec<_> = ends.keys().copied().collect();
    all.sort_unstable();
    all.truncate(MAX_LINKS);
    let form = match mesh {
        true => "; as mesh = true, write two names with '-' between them, the lower node's first",
        false => "",
    };
    faults.add(
        name.at,
        format!("no node has a link {:?}; nodes have {}{form}", name.value, all.join(", ")),
    );
}

fn check_range_family(
    range: &Located<AddressRange>,
    name: &str,
    family: Option<Family>,
    faults: &mut Collector,
) {
    if let Some(family) = family
        && family != range.value.family
    {
        let Located { at, value: AddressRange { text, .. } } = range;
        faults.add(
            *at,
            format!(
                "\"{text}\" can hold no address of link {name:?}, which is {family}; remove it"
            ),
        );
    }
}
