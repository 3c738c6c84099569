//! What follows from the ids of a node and a network: its MAC and IP addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::id::{NodeId, Vni};
use encap::wire::ethernet::MacAddr;
use ipnet::IpNet;

/// First byte of derived addresses: locally administered, unicast.
const LOCAL_UNICAST: u8 = 0x02;

/// The MAC address of a node's tap: 02, the VNI (3 bytes), the node id (2 bytes), all big-endian.
pub(crate) fn derived_mac(vni: Vni, node: NodeId) -> MacAddr {
    let [v0, v1, v2] = vni.to_be_bytes();
    let [n0, n1] = node.get().to_be_bytes();
    MacAddr([LOCAL_UNICAST, v0, v1, v2, n0, n1])
}

/// A node's address in a subnet, base + node id, with the subnet's prefix length.
///
/// `None` when the subnet is too small: the address would lie outside, or be IPv4's broadcast.
pub(crate) fn derived_address(subnet: IpNet, node: NodeId) -> Option<IpNet> {
    let address = match subnet.network() {
        IpAddr::V4(base) => {
            IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().checked_add(node.get().into())?))
        }
        IpAddr::V6(base) => {
            IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().checked_add(node.get().into())?))
        }
    };
    // RFC 3021: a /31 has no broadcast address.
    let broadcast = subnet.addr().is_ipv4() && subnet.prefix_len() < 31;
    if !subnet.contains(&address) || (broadcast && address == subnet.broadcast()) {
        return None;
    }
    IpNet::new(address, subnet.prefix_len()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u16) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn mac_holds_network_and_node() {
        let mac = derived_mac(Vni::new(0x12_3456).unwrap(), node(0xabcd));
        assert_eq!(mac.to_string(), "02:12:34:56:ab:cd");
        assert!(!mac.is_multicast());
    }

    #[test]
    fn address_is_base_plus_id() {
        for (subnet, id, expected) in [
            ("10.100.0.0/24", 1, Some("10.100.0.1/24")),
            ("10.100.0.0/24", 254, Some("10.100.0.254/24")),
            ("10.100.0.0/24", 255, None),
            ("10.100.0.0/24", 256, None),
            ("10.100.0.0/16", 256, Some("10.100.1.0/16")),
            ("10.0.0.0/31", 1, Some("10.0.0.1/31")),
            ("10.0.0.0/31", 2, None),
            ("10.0.0.0/32", 1, None),
            ("255.255.255.0/24", 300, None),
            ("fd00:100::/64", 65535, Some("fd00:100::ffff/64")),
            ("fd00::/120", 255, Some("fd00::ff/120")),
            ("fd00::/120", 256, None),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 256, None),
        ] {
            let derived = derived_address(subnet.parse().unwrap(), node(id));
            assert_eq!(derived, expected.map(|text| text.parse().unwrap()), "{subnet} + {id}");
        }
    }
}
