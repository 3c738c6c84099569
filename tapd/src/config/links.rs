//! The links of a node, and which of them join it to another node.

use std::fmt;
use std::net::IpAddr;

use super::{Config, DpdkPort, MAX_LINKS, NodeConfig};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Family {
    /// IPv4.
    #[default]
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    pub(crate) const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// From the configuration's text.
    ///
    /// # Errors
    /// What is wrong, to be read behind the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "ipv4" => Ok(Self::Ipv4),
            "ipv6" => Ok(Self::Ipv6),
            _ => Err("is neither \"ipv4\" nor \"ipv6\"".to_owned()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// One end of a link, as its node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeLink {
    /// Unique in its node; the position where only addresses are written.
    pub(crate) name: String,
    /// Where the node is reached by it.
    pub(crate) address: NodeAddress,
    /// The port that the address is on; the kernel's without it. Only on fixed addresses.
    pub(crate) dpdk: Option<DpdkPort>,
}

impl NodeLink {
    /// Whether the two are one end to other nodes, by whatever port.
    pub(super) fn is_same_end(&self, other: &Self) -> bool {
        (&self.name, &self.address) == (&other.name, &other.address)
    }
}

/// Where a node is reached by a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeAddress {
    /// Always here; unique in the cluster.
    Static(IpAddr),
    /// Wherever its authenticated datagrams come from.
    Dynamic {
        /// Family of the addresses that it can have.
        family: Family,
        /// Interface that the node sends by; any without it.
        interface: Option<String>,
    },
}

impl NodeAddress {
    /// The family of its address, now or later.
    pub(crate) const fn family(&self) -> Family {
        match self {
            Self::Static(address) => Family::of(*address),
            Self::Dynamic { family, .. } => *family,
        }
    }

    /// The address, where it is known beforehand.
    pub(crate) const fn fixed(&self) -> Option<IpAddr> {
        match self {
            Self::Static(address) => Some(*address),
            Self::Dynamic { .. } => None,
        }
    }

    const fn is_dynamic(&self) -> bool {
        matches!(self, Self::Dynamic { .. })
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(address) => address.fmt(f),
            Self::Dynamic { family, interface: None } => write!(f, "dynamic {family}"),
            Self::Dynamic { family, interface: Some(interface) } => {
                write!(f, "dynamic {family} on {interface}")
            }
        }
    }
}

/// What `[[links]]` says of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkOptions {
    /// Links of a higher one are preferred.
    pub(crate) priority: u8,
    /// Share of the flows or frames, 1 to 1000.
    pub(crate) weight: u16,
    /// MTU of the path in bytes of IP, [`super::MIN_UNDERLAY_MTU`] or more; discovered without it.
    pub(crate) mtu: Option<u16>,
    /// Ranges that a dynamic end's address must be in one of; anything where it is empty.
    pub(crate) allow: Vec<String>,
    /// Ranges that a dynamic end's address must be in none of.
    pub(crate) deny: Vec<String>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { priority: 0, weight: 1, mtu: None, allow: Vec::new(), deny: Vec::new() }
    }
}

/// A link to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// Name that its options have: the one of both ends, or `a-b` in a mesh.
    pub(crate) name: String,
    /// Position in the own node's links.
    pub(crate) local: usize,
    /// Where the peer is reached.
    pub(crate) remote: NodeAddress,
    /// What `[[links]]` says of it.
    pub(crate) options: LinkOptions,
}

/// A link between two nodes, by the positions of its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Joint {
    pub(super) name: String,
    pub(super) lower: usize,
    pub(super) higher: usize,
}

/// The links between two nodes, the one of the lower id first, however many there are.
///
/// Both ends call this with the same arguments and number the links by the order of the result: by
/// the lower node's positions, then by the higher one's.
pub(super) fn joints(lower: &[NodeLink], higher: &[NodeLink], mesh: bool) -> Vec<Joint> {
    let mut joints = Vec::new();
    for (position, link) in lower.iter().enumerate() {
        for (other_position, other) in higher.iter().enumerate() {
            let together = (mesh || link.name == other.name)
                && link.address.family() == other.address.family()
                // One end has to be the first to send, and must know where to.
                && !(link.address.is_dynamic() && other.address.is_dynamic());
            if together {
                let name = match mesh {
                    true => format!("{}-{}", link.name, other.name),
                    false => link.name.clone(),
                };
                joints.push(Joint { name, lower: position, higher: other_position });
            }
        }
    }
    joints
}

impl NodeConfig {
    /// The addresses that are known beforehand, by ascending link position.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.links.iter().filter_map(|link| link.address.fixed())
    }
}

impl Config {
    /// The links to a peer, at most [`MAX_LINKS`], in the order in which both ends number them: by
    /// the position in the lower node's links, then in the higher one's.
    pub(crate) fn pairs(&self, peer: &NodeConfig) -> Vec<Pair> {
        let Some(own) = self.own_node().filter(|own| own.id != peer.id) else { return Vec::new() };
        let own_is_lower = own.id < peer.id;
        let (lower, higher) = if own_is_lower { (own, peer) } else { (peer, own) };
        let joints = joints(&lower.links, &higher.links, self.cluster.mesh);
        joints
            .into_iter()
            .take(MAX_LINKS)
            .filter_map(|Joint { name, lower, higher }| {
                let (local, remote) = if own_is_lower { (lower, higher) } else { (higher, lower) };
                let remote = peer.links.get(remote)?.address.clone();
                let options = self.link_options(&name);
                Some(Pair { name, local, remote, options })
            })
            .collect()
    }

    /// What `[[links]]` says of a link, defaults where it says nothing.
    pub(crate) fn link_options(&self, name: &str) -> LinkOptions {
        self.links.get(name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(name: &str, address: &str) -> NodeLink {
        let address = match address {
            "dynamic" => NodeAddress::Dynamic { family: Family::Ipv4, interface: None },
            text => NodeAddress::Static(text.parse().unwrap()),
        };
        NodeLink { name: name.to_owned(), address, dpdk: None }
    }

    fn found(lower: &[NodeLink], higher: &[NodeLink], mesh: bool) -> Vec<(String, usize, usize)> {
        joints(lower, higher, mesh).into_iter().map(|j| (j.name, j.lower, j.higher)).collect()
    }

    #[test]
    fn equal_names_are_joined_in_the_order_of_the_lower_node() {
        let lower = [link("lan", "192.0.2.1"), link("own", "192.0.2.2"), link("wan", "192.0.2.3")];
        let higher = [link("wan", "192.0.2.4"), link("lan", "dynamic")];
        let expected = [("lan".to_owned(), 0, 1), ("wan".to_owned(), 2, 0)];
        assert_eq!(found(&lower, &higher, false), expected);
        let expected = [("wan".to_owned(), 0, 2), ("lan".to_owned(), 1, 0)];
        assert_eq!(found(&higher, &lower, false), expected);
    }

    #[test]
    fn two_dynamic_ends_make_no_link() {
        let one = [link("lan", "192.0.2.1"), link("wan", "dynamic")];
        let other = [link("lan", "192.0.2.2"), link("wan", "dynamic")];
        assert_eq!(found(&one, &other, false), [("lan".to_owned(), 0, 0)]);
        assert_eq!(found(&one, &other, true).len(), 3);
    }

    #[test]
    fn mesh_joins_all_of_one_family() {
        let lower = [link("a", "192.0.2.1"), link("b", "2001:db8::1"), link("c", "192.0.2.2")];
        let higher = [link("a", "2001:db8::2"), link("d", "192.0.2.3")];
        let expected =
            [("a-d".to_owned(), 0, 1), ("b-a".to_owned(), 1, 0), ("c-d".to_owned(), 2, 1)];
        assert_eq!(found(&lower, &higher, true), expected);
    }

    #[test]
    fn addresses_are_shown_as_they_are_meant() {
        let dynamic = |interface: Option<&str>| NodeAddress::Dynamic {
            family: Family::Ipv6,
            interface: interface.map(str::to_owned),
        };
        assert_eq!(link("lan", "192.0.2.1").address.to_string(), "192.0.2.1");
        assert_eq!(dynamic(None).to_string(), "dynamic ipv6");
        assert_eq!(dynamic(Some("wwan0")).to_string(), "dynamic ipv6 on wwan0");
        assert_eq!(dynamic(None).fixed(), None);
    }

    fn any_links() -> impl Strategy<Value = Vec<NodeLink>> {
        let names = prop::sample::subsequence(vec!["a", "b", "c", "d", "e"], 1..=5).prop_shuffle();
        names.prop_flat_map(|names| {
            let count = names.len();
            prop::collection::vec(0..3, count).prop_map(move |kinds| {
                let link = |(name, kind): (&&str, &i32)| {
                    link(name, ["192.0.2.1", "2001:db8::1", "dynamic"][*kind as usize])
                };
                names.iter().zip(&kinds).map(link).collect()
            })
        })
    }

    proptest! {
        #[test]
        fn both_ends_number_the_links_alike(
            one in any_links(), other in any_links(), mesh in any::<bool>(),
        ) {
            use crate::config::testing::{config, node_with};
            let mut config = config(vec![node_with(1, one.clone()), node_with(2, other.clone())]);
            config.cluster.mesh = mesh;
            let (lower, higher) = (config.nodes[0].clone(), config.nodes[1].clone());
            config.own = lower.id;
            let from_lower = config.pairs(&higher);
            config.own = higher.id;
            let from_higher = config.pairs(&lower);
            prop_assert_eq!(from_lower.len(), from_higher.len());
            prop_assert!(from_lower.len() <= MAX_LINKS);
            for (a, b) in from_lower.iter().zip(&from_higher) {
                prop_assert_eq!(&a.name, &b.name);
                prop_assert_eq!(&one[a.local].address, &b.remote);
                prop_assert_eq!(&other[b.local].address, &a.remote);
            }
            let locals: Vec<_> = from_lower.iter().map(|pair| pair.local).collect();
            prop_assert!(locals.is_sorted());
        }
    }
}
