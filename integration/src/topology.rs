//! The underlays that tests run on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::command::run_command;
use crate::netns::{Netns, VethEnd, veth_pair, with_prefix};
use crate::skip;

/// The underlay's IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// 192.0.2.0/24.
    V4,
    /// 2001:db8::/64.
    V6,
}

impl Family {
    /// Underlay address of the host with this number (1 and up).
    #[must_use]
    pub fn address(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, host).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }
}

/// Name of the interface that leads to the underlay, in every host namespace.
pub const UNDERLAY: &str = "under0";

/// What the underlay's interfaces may do, with the names of docs/performance.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Checksum offload and GRO, no segmentation offload: MTU-sized packets on the wire.
    Wire,
    /// Everything on: 64 KB buffers pass unsegmented.
    Superpacket,
    /// Everything off.
    Bare,
}

impl Offloads {
    /// Feature and state as `ethtool -K` takes them and `ethtool -k` prints them.
    fn features(self) -> [(&'static str, &'static str, bool); 6] {
        let segmentation = self == Self::Superpacket;
        let rest = self != Self::Bare;
        [
            ("rx", "rx-checksumming", rest),
            ("tx", "tx-checksumming", rest),
            ("tso", "tcp-segmentation-offload", segmentation),
            ("gso", "generic-segmentation-offload", segmentation),
            ("tx-udp-segmentation", "tx-udp-segmentation", segmentation),
            ("gro", "generic-receive-offload", rest),
        ]
    }

    /// Sets the features of an interface and makes sure that they hold.
    ///
    /// # Errors
    /// The interface does not do what was asked.
    pub fn apply(self, netns: &Netns, interface: &str) -> Result<()> {
        for (short, _, on) in self.features() {
            let state = if on { "on" } else { "off" };
            run_command(netns.command("ethtool").args(["-K", interface, short, state]))?;
        }
        let now = run_command(netns.command("ethtool").args(["-k", interface]))?;
        for (_, long, on) in self.features() {
            let wanted = format!("{long}: {}", if on { "on" } else { "off" });
            ensure!(
                now.lines().any(|line| line.trim().starts_with(&wanted)),
                "{interface} in {} does not show `{wanted}`",
                netns.name()
            );
        }
        Ok(())
    }
}

/// Two hosts joined by a cable.
///
/// ```text
///   alpha                          beta
///  +----------------+             +----------------+
///  | under0         |    veth     |         under0 |
///  | 192.0.2.1 o----|-------------|----o 192.0.2.2 |
///  +----------------+             +----------------+
/// ```
///
/// The addresses are 2001:db8::1 and ::2 on an IPv6 underlay. A clone is the same two hosts.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Host 1.
    pub alpha: Arc<Netns>,
    /// Host 2.
    pub beta: Arc<Netns>,
    /// What the underlay speaks.
    pub family: Family,
}

impl Pair {
    /// Two hosts with the given family and interface MTU (L3 bytes).
    ///
    /// # Errors
    /// Not root, or a tool is missing.
    pub fn new(family: Family, interface_mtu: u32) -> Result<Self> {
        let (alpha, beta) = (Arc::new(Netns::new("alpha")?), Arc::new(Netns::new("beta")?));
        let ends = [&alpha, &beta].map(|netns| VethEnd { netns, name: UNDERLAY });
        veth_pair(ends[0], ends[1], interface_mtu)?;
        for (host, end) in (1..).zip(ends) {
            end.netns.add_address(UNDERLAY, &with_prefix(family.address(host)))?;
        }
        skip::note(format!("topology: alpha ({}) -- beta ({})", alpha.name(), beta.name()));
        Ok(Self { alpha, beta, family })
    }

    /// Sets what both ends of the cable may do.
    ///
    /// # Errors
    /// An interface does not do what was asked.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        offloads.apply(&self.alpha, UNDERLAY)?;
        offloads.apply(&self.beta, UNDERLAY)
    }
}

/// Several hosts at one switch.
///
/// ```text
///   host 1              host 2              host 3 ...
///  +-------------+     +-------------+     +-------------+
///  |   under0    |     |   under0    |     |   under0    |
///  |  192.0.2.1  |     |  192.0.2.2  |     |  192.0.2.3  |
///  +------o------+     +------o------+     +------o------+
///         |                   |                   |
///  +------o-------------------o-------------------o------+
///  |     port1              port2               port3    |
///  |                  bridge "switch"                    |
///  +-----------------------------------------------------+
/// ```
#[derive(Debug)]
pub struct Star {
    /// The hosts, number 1 first.
    pub hosts: Vec<Arc<Netns>>,
    /// The namespace with the switch.
    pub switch: Netns,
    /// What the underlay speaks.
    pub family: Family,
}

impl Star {
    /// As many hosts as wanted (1 to 8).
    ///
    /// # Errors
    /// Not root, or a tool is missing.
    pub fn new(family: Family, count: u8) -> Result<Self> {
        let switch = Netns::new("switch")?;
        make_bridge(&switch, "switch")?;
        let mut hosts = Vec::new();
        for host in 1..=count {
            let netns = Netns::new(&format!("host{host}"))?;
            let port = format!("port{host}");
            veth_pair(
                VethEnd { netns: &netns, name: UNDERLAY },
                VethEnd { netns: &switch, name: &port },
                1500,
            )?;
            switch.ip(&["link", "set", &port, "master", "switch"])?;
            netns.add_address(UNDERLAY, &with_prefix(family.address(host)))?;
            hosts.push(Arc::new(netns));
        }
        skip::note(format!("topology: {count} hosts at a switch ({})", switch.name()));
        Ok(Self { hosts, switch, family })
    }

    /// Plugs all hosts into one more switch, number 1 to 9: bridge `switchN`, interface `underN` of
    /// the hosts, their addresses [`second_address`]. The first switch has number 0.
    ///
    /// # Errors
    /// `ip` refused.
    pub fn add_switch(&self, number: u8) -> Result<()> {
        let (bridge, interface) = (bridge_name(number), format!("under{number}"));
        make_bridge(&self.switch, &bridge)?;
        for (host, netns) in (1..).zip(&self.hosts) {
            let port = format!("port{number}-{host}");
            veth_pair(
                VethEnd { netns, name: &interface },
                VethEnd { netns: &self.switch, name: &port },
                1500,
            )?;
            self.switch.ip(&["link", "set", &port, "master", &bridge])?;
            netns.add_address(&interface, &with_prefix(second_address(number, host)))?;
        }
        Ok(())
    }

    /// Lets a switch die (or live again) and tells nobody: the hosts keep their carrier.
    ///
    /// # Errors
    /// `ip` refused.
    pub fn set_switch(&self, number: u8, alive: bool) -> Result<()> {
        let state = if alive { "up" } else { "down" };
        self.switch.ip(&["link", "set", &bridge_name(number), state]).map(|_| ())
    }
}

/// Address of a host at switch `number` (1 and up) of [`Star::add_switch`].
#[must_use]
pub fn second_address(number: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, number, host).into()
}

fn bridge_name(number: u8) -> String {
    if number == 0 { "switch".to_owned() } else { format!("switch{number}") }
}

/// A bridge that forwards from the first moment, floods multicast and judges nothing.
///
/// # Errors
/// `ip` refused.
pub fn make_bridge(netns: &Netns, name: &str) -> Result<()> {
    netns.ip(&[
        "link",
        "add",
        name,
        "type",
        "bridge",
        "stp_state",
        "0",
        "forward_delay",
        "0",
        "mcast_snooping",
        "0",
    ])?;
    // Where the bridge's netfilter hooks are loaded (Docker does), they would judge IP headers
    // and drop what is meant to cross; where they are not, there is no such file.
    for family in ["ip", "ip6", "arp"] {
        let _ = netns.sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), "0");
    }
    netns.ip(&["link", "set", name, "up"]).map(|_| ())
}
