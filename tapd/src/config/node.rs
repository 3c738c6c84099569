//! Which node of the cluster this machine is.

use std::net::IpAddr;

use encap::id::NodeId;
use fastpath::interface;

use super::NodeConfig;

/// How a daemon learns which node it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeSelector {
    /// By id or name, from `--node` or the environment.
    Named(String),
    /// By owning one of the listed addresses.
    ByAddress,
}

impl From<Option<String>> for NodeSelector {
    fn from(name: Option<String>) -> Self {
        // An environment variable that is set to nothing names nobody.
        name.filter(|name| !name.is_empty()).map_or(Self::ByAddress, Self::Named)
    }
}

/// Whether an interface of this machine has the address. Binding a socket would not tell: that
/// succeeds for any address while no interface is up.
pub(super) fn is_own_address(address: IpAddr) -> bool {
    interface::local_addresses().is_ok_and(|own| own.iter().any(|local| local.address == address))
}

/// The links of a node whose fixed address no interface of this machine has, each with the address.
/// The kernel knows nothing of those on DPDK ports: they are not among them.
pub(super) fn missing_addresses(node: &NodeConfig) -> Vec<(String, IpAddr)> {
    let of_kernel = node.links.iter().filter(|link| link.dpdk.is_none());
    let fixed = of_kernel.filter_map(|link| Some((link.name.clone(), link.address.fixed()?)));
    fixed.filter(|(_, address)| !is_own_address(*address)).collect()
}

/// What to do where no interface has an address of this node.
pub(crate) fn missing_advice(address: IpAddr) -> String {
    format!("run: ip addr add {address}/LENGTH dev INTERFACE, or correct the file")
}

/// A node by id or name. Names are never all digits, so the two cannot be confused.
pub(super) fn find<'n>(nodes: &'n [NodeConfig], id_or_name: &str) -> Option<&'n NodeConfig> {
    let id = id_or_name.parse().ok().and_then(NodeId::new);
    nodes.iter().find(|node| Some(node.id) == id || node.name == id_or_name)
}

/// Finds this machine among the nodes, or says why it is none.
pub(super) fn resolve(
    selector: &NodeSelector,
    nodes: &[NodeConfig],
    is_own: &dyn Fn(IpAddr) -> bool,
) -> Result<NodeId, String> {
    match selector {
        NodeSelector::Named(name) => find(nodes, name).map(|node| node.id).ok_or_else(|| {
            format!(
                "node \"{name}\" (from --node or TAPD_NODE) is not in [[nodes]]; known are {}",
                list(nodes.iter())
            )
        }),
        NodeSelector::ByAddress => {
            let own: Vec<_> = nodes.iter().filter(|node| node.addresses().any(is_own)).collect();
            match own.as_slice() {
                [node] => Ok(node.id),
                [] => Err(format!(
                    "this machine owns none of the addresses in [[nodes]]; {}say which node it \
                     is with --node ID|NAME or TAPD_NODE",
                    on_ports(nodes)
                )),
                several => Err(format!(
                    "this machine owns addresses of several nodes, {}; \
                     say which one it is with --node ID|NAME or TAPD_NODE",
                    list(several.iter().copied())
                )),
            }
        }
    }
}

/// Why a node's addresses may be nowhere in the kernel.
fn on_ports(nodes: &[NodeConfig]) -> &'static str {
    let dpdk = nodes.iter().any(|node| node.links.iter().any(|link| link.dpdk.is_some()));
    if dpdk { "the kernel knows nothing of addresses on DPDK ports: " } else { "" }
}

/// Names shown in a message, at most.
const MAX_LISTED: usize = 8;

fn list<'n>(nodes: impl Iterator<Item = &'n NodeConfig>) -> String {
    let mut names: Vec<_> =
        nodes.take(MAX_LISTED + 1).map(|node| format!("{} ({})", node.id, node.name)).collect();
    if names.len() > MAX_LISTED {
        names.truncate(MAX_LISTED);
        names.push("...".to_owned());
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn nodes() -> Vec<NodeConfig> {
        [(1, "alpha"), (2, "beta")]
            .map(|(id, name)| NodeConfig { name: name.to_owned(), ..testing::node(id) })
            .to_vec()
    }

    #[test]
    fn by_id_by_name_and_by_address() {
        let nobody = |_: IpAddr| false;
        let named = |name: &str| resolve(&Some(name.to_owned()).into(), &nodes(), &nobody);
        assert_eq!(named("2").unwrap().get(), 2);
        assert_eq!(named("alpha").unwrap().get(), 1);
        assert!(named("gamma").unwrap_err().contains("known are 1 (alpha), 2 (beta)"));
        assert_eq!(NodeSelector::from(Some(String::new())), NodeSelector::ByAddress);
        let second = |address: IpAddr| nodes()[1].addresses().any(|own| own == address);
        assert_eq!(resolve(&NodeSelector::ByAddress, &nodes(), &second).unwrap().get(), 2);
    }

    #[test]
    fn none_and_several_are_faults() {
        let none = resolve(&NodeSelector::ByAddress, &nodes(), &|_| false).unwrap_err();
        assert!(none.contains("owns none"), "{none}");
        let several = resolve(&NodeSelector::ByAddress, &nodes(), &|_| true).unwrap_err();
        assert!(several.contains("several nodes, 1 (alpha), 2 (beta)"), "{several}");
    }

    #[test]
    fn own_addresses_are_found() {
        assert!(is_own_address("127.0.0.1".parse().unwrap()));
        assert!(!is_own_address("203.0.113.77".parse().unwrap()));
    }
}
