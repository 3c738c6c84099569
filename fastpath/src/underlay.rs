//! The outer headers of a port without a kernel: what is written in front of a datagram, and what
//! a frame that arrives is.
//!
//! Ethernet with at most one 802.1Q tag, IPv4 (RFC 791) or IPv6 (RFC 8200), UDP (RFC 768). A
//! [`Template`] is built once for each remote end and patched in place for each datagram;
//! [`classify`] reads a frame once and says whose it is. Both are pure, take any bytes and never
//! panic.
//!
//! Next: out, a port's transmit queue; in, [`encap::rx`] for datagrams, [`crate::neighbor`] for
//! ARP and neighbour discovery.

mod classify;
mod echo;
mod template;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::wire::checksum::{fold_sum, sum_of};
use encap::wire::ethernet::{ETHERNET_HEADER_LEN, EtherType, MacAddr, VLAN_TAG_LEN};

use crate::counter::counters;

pub(crate) use classify::link_layer;
pub use classify::{Classified, RxChecksum, classify};
pub use echo::echo_reply;
pub use template::{Template, UdpChecksum, Varying};

/// Longest outer header in bytes: Ethernet, one tag, IPv6, UDP.
pub const MAX_UNDERLAY_HEADER_LEN: usize =
    ETHERNET_HEADER_LEN + VLAN_TAG_LEN + IPV6_HEADER_LEN + UDP_HEADER_LEN;

/// IPv4 header without options, in bytes (RFC 791 section 3.1).
pub(crate) const IPV4_HEADER_LEN: usize = 20;
/// IPv6 header, in bytes (RFC 8200 section 3).
pub(crate) const IPV6_HEADER_LEN: usize = 40;
/// UDP header, in bytes (RFC 768).
pub(crate) const UDP_HEADER_LEN: usize = 8;
/// TTL or hop limit of what we send beyond the link.
pub(crate) const TTL: u8 = 64;
/// The low 12 bits of a tag: VLAN identifier (IEEE 802.1Q section 9.6).
const VLAN_ID_MASK: u16 = 0x0fff;

/// IP protocol numbers, which are also IPv6 next-header values.
pub(crate) mod protocol {
    pub(crate) const IPV6_HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const IPV6_FRAGMENT: u8 = 44;
    pub(crate) const ICMPV6: u8 = 58;
}

/// Who we are on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress {
    /// The port's unicast MAC address.
    pub mac: MacAddr,
    /// Our only IP address there.
    pub ip: IpAddr,
    /// Length of the on-link prefix in bits, 0 to 32 (IPv4) or 128 (IPv6).
    pub prefix: u8,
    /// The VLAN that we live in, 1 to 4094; none for untagged frames.
    pub vlan: Option<u16>,
}

impl LocalAddress {
    /// Whether `ip` is of our family and within the on-link prefix. Link-local IPv6 addresses
    /// always are (RFC 4291 section 2.5.6).
    #[must_use]
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        let link_local = matches!((self.ip, ip), (IpAddr::V6(_), IpAddr::V6(ip))
            if ip.is_unicast_link_local());
        link_local || is_within(ip, self.ip, self.prefix)
    }

    /// Whether `ip` is a station's address: neither unspecified, loopback, multicast nor a
    /// broadcast address of our prefix, nor of the other family.
    #[must_use]
    pub fn is_station(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(_), IpAddr::V4(ip)) => {
                let group = ip.is_multicast() || self.is_broadcast(ip);
                !(group || ip.is_loopback() || ip.octets()[0] == 0)
            }
            (IpAddr::V6(_), IpAddr::V6(ip)) => {
                !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
                    && ip.to_ipv4_mapped().is_none()
            }
            _ => false,
        }
    }

    /// The groups that the port must let in, beside broadcast, for neighbour discovery: all nodes
    /// and our solicited-node address (RFC 4291 section 2.7.1). None over IPv4.
    #[must_use]
    pub fn multicast_macs(&self) -> Vec<MacAddr> {
        match self.ip {
            IpAddr::V4(_) => Vec::new(),
            IpAddr::V6(ip) => {
                vec![multicast_mac(ALL_NODES), multicast_mac(solicited_node(ip))]
            }
        }
    }

    /// 255.255.255.255, or the broadcast address of our prefix.
    pub(crate) fn is_broadcast(&self, ip: Ipv4Addr) -> bool {
        let host_bits = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        let of_prefix = host_bits > 1
            && ip.to_bits() & host_bits == host_bits
            && is_within(ip.into(), self.ip, self.prefix);
        ip.is_broadcast() || of_prefix
    }

    /// Appends the Ethernet header, tag included, of a frame that we send.
    pub(crate) fn write_link_header(&self, to: MacAddr, ether_type: EtherType, out: &mut Vec<u8>) {
        out.extend(to.0);
        out.extend(self.mac.0);
        if let Some(vlan) = self.vlan {
            out.extend(EtherType::C_TAG.0.to_be_bytes());
            out.extend((vlan & VLAN_ID_MASK).to_be_bytes());
        }
        out.extend(ether_type.0.to_be_bytes());
    }
}

/// ff02::1 (RFC 4291 section 2.7.1).
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The solicited-node multicast address of `ip` (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The Ethernet group of an IPv6 multicast address (RFC 2464 section 7).
pub(crate) fn multicast_mac(ip: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = ip.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// Whether the first `prefix` bits of both are the same; never of different families.
pub(crate) fn is_within(ip: IpAddr, network: IpAddr, prefix: u8) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let differ = ip.to_bits() ^ network.to_bits();
            u32::from(prefix.min(32)) <= differ.leading_zeros()
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let differ = ip.to_bits() ^ network.to_bits();
            u32::from(prefix.min(128)) <= differ.leading_zeros()
        }
        _ => false,
    }
}

/// The folded, not complemented sum of RFC 1071 over at most 2^17 bytes, in host order; an odd
/// last byte is padded with 0.
pub(crate) fn wire_sum(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(fold_sum(sum_of(bytes)).to_ne_bytes())
}

/// The sum over the pseudo header without its length: addresses and protocol (RFC 768, RFC 8200
/// section 8.1). At most 17 words, not folded.
#[inline]
pub(crate) fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: u8) -> u64 {
    let sum = |ip| match ip {
        IpAddr::V4(ip) => {
            let bits = u64::from(Ipv4Addr::to_bits(ip));
            (bits >> 16) + (bits & 0xffff)
        }
        IpAddr::V6(ip) => Ipv6Addr::segments(&ip).into_iter().map(u64::from).sum(),
    };
    sum(source) + sum(destination) + u64::from(protocol)
}

/// Why a frame that is meant for us is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnderlayDrop {
    /// The frame ends inside a header or before the end that its IP header announces.
    Truncated,
    /// No tag where we live in a VLAN, or the tag of another VLAN. It may be the host's.
    BadVlan,
    /// The source MAC address is a group's, or zero.
    BadSourceMac,
    /// IP version or header length are wrong, or the total length is less than the header's.
    BadIpHeader,
    /// The IPv4 header checksum is wrong.
    BadIpChecksum,
    /// A fragment of an IP packet; ours are never fragmented.
    Fragment,
    /// An IP address that is neither ours nor a group's. It may be the host's, if that shares our
    /// MAC address.
    WrongDestination,
    /// To our IP address, but to a group of stations (RFC 1122 section 3.3.6).
    GroupMac,
    /// The source IP address is not a station's, or ours.
    BadSource,
    /// Shorter than a UDP header, or longer than the IP packet.
    BadUdpLength,
    /// The UDP checksum is wrong.
    BadUdpChecksum,
    /// No UDP checksum over IPv6 (RFC 8200 section 8.1).
    NoUdpChecksum,
    /// Neighbour discovery that came through a router (RFC 4861 section 7.1).
    NdHopLimit,
}

impl UnderlayDrop {
    /// Whether a host that shares the port with us may have a use for the frame, as for those that
    /// are [`Classified::Foreign`].
    #[must_use]
    pub fn may_be_hosts(self) -> bool {
        matches!(self, Self::BadVlan | Self::WrongDestination)
    }
}

counters! {
    /// Frames that [`classify`] refused, by reason. Written by the worker that owns the queue.
    pub struct UnderlayCounters {
        /// Frames dropped: they end inside a header, or before the IP packet does.
        rx_dropped_truncated,
        /// Frames dropped: no tag where there should be one, or of another VLAN.
        rx_dropped_bad_vlan,
        /// Frames dropped: source MAC address of a group, or zero.
        rx_dropped_bad_source_mac,
        /// Frames dropped: IP version, header length or total length.
        rx_dropped_bad_ip_header,
        /// Frames dropped: IPv4 header checksum.
        rx_dropped_bad_ip_checksum,
        /// Frames dropped: fragments of IP packets.
        rx_dropped_fragment,
        /// Frames dropped: to our MAC, but not to our IP address.
        rx_dropped_wrong_destination,
        /// Frames dropped: to our IP address, but to a group MAC address.
        rx_dropped_group_mac,
        /// Frames dropped: source IP address of no other station.
        rx_dropped_bad_source,
        /// Frames dropped: UDP length.
        rx_dropped_bad_udp_length,
        /// Frames dropped: UDP checksum.
        rx_dropped_bad_udp_checksum,
        /// Frames dropped: no UDP checksum over IPv6.
        rx_dropped_no_udp_checksum,
        /// Frames dropped: neighbour discovery from beyond the link.
        rx_dropped_nd_hop_limit,
    }
}

impl UnderlayCounters {
    /// Counts one frame that was dropped for `reason`.
    pub fn count(&self, reason: UnderlayDrop) {
        let counter = match reason {
            UnderlayDrop::Truncated => &self.rx_dropped_truncated,
            UnderlayDrop::BadVlan => &self.rx_dropped_bad_vlan,
            UnderlayDrop::BadSourceMac => &self.rx_dropped_bad_source_mac,
            UnderlayDrop::BadIpHeader => &self.rx_dropped_bad_ip_header,
            UnderlayDrop::BadIpChecksum => &self.rx_dropped_bad_ip_checksum,
            UnderlayDrop::Fragment => &self.rx_dropped_fragment,
            UnderlayDrop::WrongDestination => &self.rx_dropped_wrong_destination,
            UnderlayDrop::GroupMac => &self.rx_dropped_group_mac,
            UnderlayDrop::BadSource => &self.rx_dropped_bad_source,
            UnderlayDrop::BadUdpLength => &self.rx_dropped_bad_udp_length,
            UnderlayDrop::BadUdpChecksum => &self.rx_dropped_bad_udp_checksum,
            UnderlayDrop::NoUdpChecksum => &self.rx_dropped_no_udp_checksum,
            UnderlayDrop::NdHopLimit => &self.rx_dropped_nd_hop_limit,
        };
        counter.add(1);
    }
}
