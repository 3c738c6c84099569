//! Two hosts joined by several cables, each of which can be cut in several ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::ValueEnum;

use crate::command::Running;
use crate::config::ClusterConfig;
use crate::netns::{Netns, VethEnd, veth_pair, with_prefix};
use crate::relay::Relay;
use crate::skip;
use crate::topology::{Family, Offloads};

/// nft's table for everything that the harness does to frames.
const TABLE: &str = "tapdtest";

/// The ways in which a cable fails, seen from alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cut {
    /// alpha's interface is set down: alpha's kernel knows at once, beta's sees no carrier
    Carrier,
    /// beta's interface is set down: alpha's sees no carrier
    CarrierFar,
    /// nothing arrives at either end, and nobody is told
    DropBoth,
    /// nothing of beta arrives at alpha, and nobody is told
    DropIn,
    /// nothing of alpha arrives at beta, and nobody is told
    DropOut,
    /// alpha's address is removed from its interface
    Address,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Carrier,
        Self::CarrierFar,
        Self::DropBoth,
        Self::DropIn,
        Self::DropOut,
        Self::Address,
    ];

    /// Its name on command lines and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Carrier => "carrier",
            Self::CarrierFar => "carrier-far",
            Self::DropBoth => "drop-both",
            Self::DropIn => "drop-in",
            Self::DropOut => "drop-out",
            Self::Address => "address",
        }
    }
}

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Node 1.
    Alpha,
    /// Node 2.
    Beta,
}

/// Between these two instants a cable failed.
#[derive(Debug, Clone, Copy)]
pub struct CutTime {
    /// It still worked.
    pub before: Instant,
    /// It no longer worked.
    pub after: Instant,
}

/// What a cable is to be.
#[derive(Debug, Clone, Copy)]
pub struct LaneSpec {
    /// What it speaks.
    pub family: Family,
    /// Interface MTU in L3 bytes, 68 to 65535 (1280 and up for IPv6).
    pub interface_mtu: u32,
    /// Whether a [`Relay`] is in the middle of it; the interfaces are then without offloads.
    pub relayed: bool,
}

impl LaneSpec {
    /// A plain cable of 1500 bytes.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self { family, interface_mtu: 1500, relayed: false }
    }

    /// The same with another MTU.
    #[must_use]
    pub fn with_mtu(self, interface_mtu: u32) -> Self {
        Self { interface_mtu, ..self }
    }

    /// The same with a relay in the middle.
    #[must_use]
    pub fn relayed(self) -> Self {
        Self { relayed: true, ..self }
    }
}

/// One cable.
#[derive(Debug)]
pub struct Lane {
    /// Name of the interface at both ends: `under` and the lane's number.
    pub interface: String,
    /// What it speaks.
    pub family: Family,
    /// alpha's address.
    pub alpha: IpAddr,
    /// beta's address.
    pub beta: IpAddr,
    /// The relay in the middle, if one was asked for. (Dropped before its namespace.)
    pub relay: Option<Relay>,
    _middle: Option<Netns>,
}

/// Two hosts joined by 2 to 8 cables, a network for each.
///
/// ```text
///   alpha                                   beta
///  +-----------------------+               +-----------------------+
///  | under0  198.18.0.1 o--|---------------|--o 198.18.0.2  under0 |
///  | under1  198.18.1.1 o--|---------------|--o 198.18.1.2  under1 |
///  | ...                   |               |                       |
///  +-----------------------+               +-----------------------+
/// ```
///
/// An IPv6 lane n is 2001:db8:0:n::1 and ::2.
#[derive(Debug)]
pub struct Lanes {
    /// The cables. (Dropped before the hosts.)
    pub lanes: Vec<Lane>,
    /// Host 1.
    pub alpha: Arc<Netns>,
    /// Host 2.
    pub beta: Arc<Netns>,
}

impl Lanes {
    /// Hosts with the given cables.
    ///
    /// # Errors
    /// Not root, or a tool is missing.
    pub fn new(specs: &[LaneSpec]) -> Result<Self> {
        ensure!((1..=8).contains(&specs.len()), "{} lanes, not 1 to 8", specs.len());
        let (alpha, beta) = (Arc::new(Netns::new("alpha")?), Arc::new(Netns::new("beta")?));
        for netns in [&alpha, &beta] {
            // A link that was down comes back as it was, and is usable at once.
            for place in ["all", "default"] {
                netns.sysctl(&format!("net/ipv6/conf/{place}/keep_addr_on_down"), "1")?;
                netns.sysctl(&format!("net/ipv6/conf/{place}/accept_dad"), "0")?;
            }
            // Nobody answers for an address of another interface.
            netns.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        }
        let lanes: Result<Vec<Lane>> =
            (0..).zip(specs).map(|(number, spec)| join(&alpha, &beta, number, *spec)).collect();
        let this = Self { lanes: lanes?, alpha, beta };
        for side in [Side::Alpha, Side::Beta] {
            this.nft(side, &this.tables())?;
        }
        let names = format!("alpha ({}), beta ({})", this.alpha.name(), this.beta.name());
        skip::note(format!("topology: {names}, {} cables", this.lanes.len()));
        Ok(this)
    }

    /// Hosts with `count` plain cables of 1500 bytes.
    ///
    /// # Errors
    /// As [`Lanes::new`].
    pub fn plain(family: Family, count: usize) -> Result<Self> {
        Self::new(&vec![LaneSpec::new(family); count])
    }

    /// A host.
    #[must_use]
    pub fn host(&self, side: Side) -> &Arc<Netns> {
        match side {
            Side::Alpha => &self.alpha,
            Side::Beta => &self.beta,
        }
    }

    /// The configuration of two nodes on these hosts, a link for each cable, called by its number.
    #[must_use]
    pub fn config(&self) -> ClusterConfig {
        let mut config = ClusterConfig::new(Family::V4, 2);
        for lane in &self.lanes {
            if lane.interface == "under0" {
                config.nodes.iter_mut().for_each(|node| node.addresses.clear());
            }
            for (node, address) in config.nodes.iter_mut().zip([lane.alpha, lane.beta]) {
                node.addresses.push(address);
            }
        }
        config
    }

    /// Leaves all lanes to DPDK: takes the kernel's addresses off, switches off what only kernels
    /// know of each other, and gives the configuration of two nodes with a DPDK port on each cable.
    /// Such cables are cut by [`Cut::Carrier`] and [`Cut::CarrierFar`] only: DPDK sees frames before
    /// the kernel's filters do.
    ///
    /// # Errors
    /// A tool failed.
    pub fn give_to_dpdk(&self) -> Result<ClusterConfig> {
        self.set_offloads(Offloads::Bare)?;
        let mut config = ClusterConfig::new(Family::V4, 2);
        let mut links = [Vec::new(), Vec::new()];
        for lane in &self.lanes {
            let interface = &lane.interface;
            let ends = [(&self.alpha, lane.alpha), (&self.beta, lane.beta)];
            for ((netns, address), links) in ends.into_iter().zip(&mut links) {
                netns.ip(&["addr", "flush", "dev", interface])?;
                let prefix = if address.is_ipv4() { 24 } else { 64 };
                links.push(format!(
                    "{{ name = {interface:?}, address = \"{address}\", dpdk = {{ \
                     port = \"net_af_packet,iface={interface}\", prefix = {prefix} }} }}"
                ));
            }
        }
        for (node, links) in config.nodes.iter_mut().zip(links) {
            node.addresses.clear();
            node.extra = format!("links = [{}]\n", links.join(", "));
        }
        Ok(config)
    }

    /// Sets what the interfaces of all lanes may do.
    ///
    /// # Errors
    /// An interface does not do what was asked.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        for lane in &self.lanes {
            for netns in [&self.alpha, &self.beta] {
                offloads.apply(netns, &lane.interface)?;
            }
        }
        Ok(())
    }

    /// A lane by its number.
    ///
    /// # Errors
    /// There is none.
    pub fn lane(&self, number: usize) -> Result<&Lane> {
        self.lanes.get(number).ok_or_else(|| anyhow!("there is no lane {number}"))
    }

    /// Cuts a lane.
    ///
    /// # Errors
    /// There is no such lane, or a tool failed.
    pub fn cut(&self, number: usize, how: Cut) -> Result<CutTime> {
        let lane = self.lane(number)?;
        let interface = lane.interface.as_str();
        let drop = format!("add rule netdev {TABLE} cut_{interface} drop");
        let before = Instant::now();
        match how {
            Cut::Carrier => self.alpha.ip(&["link", "set", interface, "down"]).map(|_| ())?,
            Cut::CarrierFar => self.beta.ip(&["link", "set", interface, "down"]).map(|_| ())?,
            Cut::DropBoth => self.nft_at(&[Side::Alpha, Side::Beta], &drop)?,
            // What is dropped on its way out is known to the sender (ENOBUFS), so all that is to
            // be silent is dropped on its way in.
            Cut::DropIn => self.nft(Side::Alpha, &drop)?,
            Cut::DropOut => self.nft(Side::Beta, &drop)?,
            Cut::Address => {
                let address = with_prefix(lane.alpha);
                self.alpha.ip(&["addr", "del", &address, "dev", interface]).map(|_| ())?;
            }
        }
        Ok(CutTime { before, after: Instant::now() })
    }

    /// Undoes [`Lanes::cut`].
    ///
    /// # Errors
    /// There is no such lane, or a tool failed.
    pub fn heal(&self, number: usize, how: Cut) -> Result<()> {
        let lane = self.lane(number)?;
        let interface = lane.interface.as_str();
        let flush = format!("flush chain netdev {TABLE} cut_{interface}");
        match how {
            Cut::Carrier => self.alpha.ip(&["link", "set", interface, "up"]).map(|_| ()),
            Cut::CarrierFar => self.beta.ip(&["link", "set", interface, "up"]).map(|_| ()),
            Cut::DropBoth => self.nft_at(&[Side::Alpha, Side::Beta], &flush),
            Cut::DropIn => self.nft(Side::Alpha, &flush),
            Cut::DropOut => self.nft(Side::Beta, &flush),
            Cut::Address => self.alpha.add_address(interface, &with_prefix(lane.alpha)),
        }
    }

    /// Applies a rule of nft to whatever arrives by a lane at one host, for example
    /// `ip length > 1400 drop`. Offloads should be off, or packets arrive several at a time.
    ///
    /// # Errors
    /// There is no such lane, or nft refused.
    pub fn add_rule(&self, side: Side, number: usize, rule: &str) -> Result<()> {
        let interface = &self.lane(number)?.interface;
        self.nft(side, &format!("add rule netdev {TABLE} rules_{interface} {rule}"))
    }

    /// Removes all rules of [`Lanes::add_rule`] of a lane at one host.
    ///
    /// # Errors
    /// There is no such lane, or nft refused.
    pub fn clear_rules(&self, side: Side, number: usize) -> Result<()> {
        let interface = &self.lane(number)?.interface;
        self.nft(side, &format!("flush chain netdev {TABLE} rules_{interface}"))
    }

    /// Two chains for each lane: one to cut it by, one for the tests' own rules.
    fn tables(&self) -> String {
        let mut script = format!("add table netdev {TABLE};");
        for Lane { interface, .. } in &self.lanes {
            for (priority, chain) in ["cut", "rules"].iter().enumerate() {
                script += &format!(
                    " add chain netdev {TABLE} {chain}_{interface} {{ type filter hook ingress \
                     device \"{interface}\" priority {priority}; policy accept; }};"
                );
            }
        }
        script
    }

    fn nft(&self, side: Side, script: &str) -> Result<()> {
        self.nft_at(&[side], script)
    }

    /// Runs nft at several hosts at the same time.
    fn nft_at(&self, sides: &[Side], script: &str) -> Result<()> {
        let start = |side: &Side| {
            let mut command = self.host(*side).command("nft");
            command.arg(script).stdout(Stdio::null()).stderr(Stdio::piped());
            Running::spawn(&mut command)
        };
        let running: Result<Vec<Running>> = sides.iter().map(start).collect();
        for nft in running? {
            let output = nft.complete()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "nft {script}: {said}");
        }
        Ok(())
    }
}

/// Addresses of lane `number`, alpha's and beta's.
fn addresses(family: Family, number: u8) -> [IpAddr; 2] {
    [1, 2].map(|host| match family {
        Family::V4 => Ipv4Addr::new(198, 18, number, host).into(),
        Family::V6 => {
            Ipv6Addr::new(0x2001, 0xdb8, 0, number.into(), 0, 0, 0, u16::from(host)).into()
        }
    })
}

fn join(alpha: &Netns, beta: &Netns, number: u8, spec: LaneSpec) -> Result<Lane> {
    let interface = format!("under{number}");
    let ends = [alpha, beta].map(|netns| VethEnd { netns, name: &interface });
    let mut relay = None;
    let mut middle = None;
    if spec.relayed {
        let between = Netns::new(&format!("middle{number}"))?;
        for (end, port) in ends.into_iter().zip(["near", "far"]) {
            veth_pair(end, VethEnd { netns: &between, name: port }, spec.interface_mtu)?;
            Offloads::Bare.apply(end.netns, end.name)?;
        }
        relay = Some(Relay::start(&between, "near", "far", u64::from(number) + 1)?);
        middle = Some(between);
    } else {
        veth_pair(ends[0], ends[1], spec.interface_mtu)?;
    }
    let [near, far] = addresses(spec.family, number);
    for (end, address) in ends.into_iter().zip([near, far]) {
        end.netns
            .add_address(&interface, &with_prefix(address))
            .with_context(|| format!("lane {number}"))?;
    }
    let family = spec.family;
    Ok(Lane { interface, family, alpha: near, beta: far, relay, _middle: middle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_a_network_of_its_own() {
        assert_eq!(addresses(Family::V4, 3).map(|a| a.to_string()), ["198.18.3.1", "198.18.3.2"]);
        let v6 = addresses(Family::V6, 1).map(|a| a.to_string());
        assert_eq!(v6, ["2001:db8:0:1::1", "2001:db8:0:1::2"]);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for cut in Cut::ALL {
            assert_eq!(Cut::from_str(cut.name(), false), Ok(cut));
        }
    }
}
