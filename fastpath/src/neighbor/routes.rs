//! Which station on the link a remote address is reached by.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::underlay::{LocalAddress, is_within};

/// The routes of a port: its on-link prefix, static routes and a gateway. Never changes.
#[derive(Debug, Clone)]
pub struct Routes {
    local: LocalAddress,
    /// Network, prefix length and next hop; longest prefix first, then in order of configuration.
    routes: Vec<(IpAddr, u8, IpAddr)>,
    gateway: Option<IpAddr>,
    /// Stations whose MAC address is configured: on the link, wherever their address is.
    statics: BTreeSet<IpAddr>,
}

impl Routes {
    /// Routes by way of an address of the other IP version are left out.
    pub(super) fn new(
        local: LocalAddress,
        gateway: Option<IpAddr>,
        routes: &[((IpAddr, u8), IpAddr)],
        statics: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let ours = |ip: &IpAddr| local.is_station(*ip) && *ip != local.ip;
        let of_family =
            routes.iter().filter(|((to, _), via)| to.is_ipv4() == local.ip.is_ipv4() && ours(via));
        let mut routes: Vec<_> = of_family.map(|((to, len), via)| (*to, *len, *via)).collect();
        routes.sort_by_key(|(_, len, _)| u8::MAX - len);
        let gateway = gateway.filter(ours);
        Self { routes, gateway, statics: statics.into_iter().collect(), local }
    }

    /// The station on the link that datagrams to `remote` go to: that with the longest matching
    /// prefix, where the on-link prefix wins over a route of the same length, or else the gateway.
    /// None without a way, and for addresses that are no other station's.
    #[must_use]
    pub fn next_hop(&self, remote: IpAddr) -> Option<IpAddr> {
        if !self.local.is_station(remote) || remote == self.local.ip {
            return None;
        }
        if self.statics.contains(&remote) {
            return Some(remote);
        }
        let on_link = self.local.is_on_link(remote).then_some(self.local.prefix);
        let route = self.routes.iter().find(|(to, len, _)| is_within(remote, *to, *len));
        match (on_link, route) {
            (Some(prefix), Some((_, len, via))) if *len > prefix => Some(*via),
            (Some(_), _) => Some(remote),
            (None, Some((_, _, via))) => Some(*via),
            (None, None) => self.gateway,
        }
    }

    /// Whether `ip` may be a neighbour: on the link, or a configured next hop.
    pub(super) fn is_neighbor(&self, ip: IpAddr) -> bool {
        self.next_hop(ip) == Some(ip)
            || self.gateway == Some(ip)
            || self.routes.iter().any(|(_, _, via)| *via == ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use encap::wire::ethernet::MacAddr;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn routes(local: &str, prefix: u8, gateway: &str, list: &[(&str, u8, &str)]) -> Routes {
        let local =
            LocalAddress { mac: MacAddr([2, 0, 0, 0, 0, 1]), ip: ip(local), prefix, vlan: None };
        let list: Vec<_> = list.iter().map(|(to, len, via)| ((ip(to), *len), ip(via))).collect();
        Routes::new(local, Some(ip(gateway)), &list, [ip("198.51.100.77")])
    }

    #[test]
    fn longest_prefix_wins_and_the_gateway_takes_the_rest() {
        let list = [
            ("10.0.0.0", 8, "192.0.2.8"),
            ("10.1.0.0", 16, "192.0.2.16"),
            ("192.0.2.64", 26, "192.0.2.26"),
            ("192.0.2.0", 24, "192.0.2.24"),
            ("0.0.0.0", 0, "2001:db8::1"),
        ];
        let routes = routes("192.0.2.1", 24, "192.0.2.254", &list);
        for (remote, hop) in [
            ("10.2.3.4", "192.0.2.8"),
            ("10.1.3.4", "192.0.2.16"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.70", "192.0.2.26"),
            ("203.0.113.5", "192.0.2.254"),
            ("198.51.100.77", "198.51.100.77"),
        ] {
            assert_eq!(routes.next_hop(ip(remote)), Some(ip(hop)), "{remote}");
        }
        for nowhere in [
            "192.0.2.1",
            "192.0.2.255",
            "255.255.255.255",
            "224.0.0.1",
            "127.0.0.1",
            "0.0.0.0",
            "::2",
        ] {
            assert_eq!(routes.next_hop(ip(nowhere)), None, "{nowhere}");
        }
        assert!(routes.is_neighbor(ip("192.0.2.254")) && routes.is_neighbor(ip("192.0.2.9")));
        assert!(!routes.is_neighbor(ip("203.0.113.5")));
    }

    #[test]
    fn a_gateway_off_the_prefix_is_a_neighbor_and_link_local_is_on_link() {
        let routes = routes("2001:db8::1", 128, "fe80::1", &[("2001:db8:1::", 48, "fe80::2")]);
        assert_eq!(routes.next_hop(ip("2001:db8::2")), Some(ip("fe80::1")));
        assert_eq!(routes.next_hop(ip("2001:db8:1::2")), Some(ip("fe80::2")));
        assert_eq!(routes.next_hop(ip("fe80::9")), Some(ip("fe80::9")));
        assert_eq!(routes.next_hop(ip("ff02::1")), None);
        assert!(routes.is_neighbor(ip("fe80::1")));
    }
}
