//! How a node runs DPDK, and the ports that its links are on.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use encap::wire::ethernet::MacAddr;
use ipnet::IpNet;

use super::checks::{Unique, check_station, check_tap_name, or};
use super::fault::{Collector, Located};
use super::hardware::{RawDpdk, RawNeighbor, RawPort, RawRoute};

/// Default memory of DPDK, in MiB.
pub(crate) const DEFAULT_MEMORY_MB: u32 = 256;
/// Default of the longest sleep of an idle worker whose ports cannot wake it, in microseconds.
pub(crate) const DEFAULT_MAX_SLEEP_US: u32 = 100;
/// Default IP MTU of a port, in bytes.
pub(crate) const DEFAULT_PORT_MTU: u16 = 1500;

/// `[dpdk]`: how this node runs DPDK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DpdkConfig {
    /// Memory for packet buffers and drivers in MiB, 64 to 65,536.
    pub(crate) memory_mb: u32,
    /// Which pages that memory is in.
    pub(crate) hugepages: Hugepages,
    /// More arguments of the EAL, each by itself.
    pub(crate) eal: Vec<String>,
    /// The shim's library, absolute; looked for without it.
    pub(crate) shim: Option<PathBuf>,
    /// Longest sleep of an idle worker with a port that cannot wake it, at most 10 ms.
    pub(crate) max_sleep: Duration,
    /// Whether ports that can wake idle workers do it.
    pub(crate) interrupts: bool,
}

impl DpdkConfig {
    /// Every key with its value, for people.
    pub(super) fn values(&self) -> [(&'static str, String); 6] {
        let shim = self.shim.as_ref();
        [
            ("memory_mb", self.memory_mb.to_string()),
            ("hugepages", self.hugepages.name().to_owned()),
            ("eal", format!("[{}]", self.eal.join(", "))),
            ("shim", shim.map_or_else(|| "looked for".to_owned(), |p| p.display().to_string())),
            ("max_sleep_us", self.max_sleep.as_micros().to_string()),
            ("interrupts", self.interrupts.to_string()),
        ]
    }
}

/// Which pages DPDK's memory is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hugepages {
    /// Huge ones if enough of them are free, else ordinary ones.
    #[default]
    Auto,
    /// Huge ones; without them nothing starts.
    Always,
    /// Ordinary ones.
    Never,
}

impl Hugepages {
    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "true",
            Self::Never => "false",
        }
    }
}

/// What DPDK drives: a card by its PCI address, or a device of a driver that needs none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Port {
    /// A PCI device.
    Pci {
        /// Domain, bus, device and function in lower case: `0000:3b:00.0`.
        address: String,
        /// What its driver is told: `key=value`, with commas between them; often nothing.
        arguments: String,
    },
    /// A virtual device.
    Virtual {
        /// Driver and perhaps a number: `net_af_packet`, `net_tap0`.
        name: String,
        /// As for [`Self::Pci`].
        arguments: String,
    },
}

/// What the names of all virtual network devices begin with.
const VIRTUAL_PREFIX: &str = "net_";

impl Port {
    /// From the configuration's text.
    ///
    /// # Errors
    /// What is wrong, to be read behind the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, arguments) = text.split_once(',').unwrap_or((text, ""));
        let clean = |byte: u8| byte.is_ascii_graphic();
        let pairs = arguments.split(',').all(|pair| pair.contains('=') && !pair.starts_with('='));
        if !text.bytes().all(clean) || !(pairs || text == name) {
            return Err("has something else than key=value behind a comma; write it like \
                \"net_af_packet,iface=eth1\", without spaces"
                .to_owned());
        }
        let arguments = arguments.to_owned();
        if is_pci_address(name) {
            return Ok(Self::Pci { address: name.to_ascii_lowercase(), arguments });
        }
        let driver = name.strip_prefix(VIRTUAL_PREFIX).unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if driver.is_empty() || !driver.bytes().all(plain) {
            return Err("is neither a PCI address such as \"0000:3b:00.0\" nor a virtual device \
                such as \"net_af_packet,iface=eth1\""
                .to_owned());
        }
        Ok(Self::Virtual { name: name.to_owned(), arguments })
    }

    /// The value of one of its arguments.
    pub(crate) fn argument(&self, key: &str) -> Option<&str> {
        let (Self::Pci { arguments, .. } | Self::Virtual { arguments, .. }) = self;
        let mut pairs = arguments.split(',').filter_map(|pair| pair.split_once('='));
        pairs.find(|(known, _)| *known == key).map(|(_, value)| value)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Pci { address: name, arguments } | Self::Virtual { name, arguments }) = self;
        let comma = if arguments.is_empty() { "" } else { "," };
        write!(f, "{name}{comma}{arguments}")
    }
}

/// `DDDD:BB:DD.F`, all but the function in hexadecimal digits.
fn is_pci_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == "0000:3b:00.0".len()
        && bytes.iter().enumerate().all(|(position, byte)| match position {
            4 | 7 => *byte == b':',
            10 => *byte == b'.',
            11 => (b'0'..=b'7').contains(byte),
            _ => byte.is_ascii_hexdigit(),
        })
}

/// `dpdk` of a link: the port that its address is on, and what an IP stack of one address needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DpdkPort {
    /// Unique on the node.
    pub(crate) port: Port,
    /// Length of the subnet's prefix: who is in it is asked for, who is not is behind a router.
    pub(crate) prefix: u8,
    /// Router for everything that `routes` does not name; on the prefix.
    pub(crate) gateway: Option<IpAddr>,
    /// Other routers; unique destinations, without bits behind their prefixes.
    pub(crate) routes: Vec<Route>,
    /// Neighbours that are never asked for; unique addresses.
    pub(crate) neighbors: Vec<StaticNeighbor>,
    /// 802.1Q tag of everything that is sent and taken, 1 to 4094.
    pub(crate) vlan: Option<u16>,
    /// Unicast; the port's own without it.
    pub(crate) mac: Option<MacAddr>,
    /// Largest IP packet in bytes, [`super::MIN_UNDERLAY_MTU`] to [`super::MAX_PORT_MTU`].
    pub(crate) mtu: u16,
    /// Tap that gets the frames that are not ours.
    pub(crate) exception_tap: Option<String>,
    /// Whether datagrams have a UDP checksum; always over IPv6 (RFC 8200 section 8.1).
    pub(crate) udp_checksum: bool,
}

impl fmt::Display for DpdkPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}

/// A route of a DPDK port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// Where it leads.
    pub(crate) to: IpNet,
    /// The router; on the port's prefix.
    pub(crate) via: IpAddr,
}

/// A neighbour of a DPDK port that is known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StaticNeighbor {
    /// On the port's prefix.
    pub(crate) address: IpAddr,
    /// Unicast.
    pub(crate) mac: MacAddr,
}

pub(super) fn validate(raw: RawDpdk, faults: &mut Collector) -> DpdkConfig {
    if let Some(shim) = &raw.shim
        && !Path::new(&shim.value).is_absolute()
    {
        faults.add(
            shim.at,
            format!(
                "shim = {:?} must be an absolute path, such as \
                \"/usr/lib/tapd/libtapd-dpdk.so.1\"",
                shim.value
            ),
        );
    }
    for argument in &raw.eal {
        if argument.value.is_empty() || argument.value.contains('\0') {
            faults.add(argument.at, "an EAL argument is empty or has a zero byte; take it out");
        }
    }
    let max_sleep_us = or(raw.max_sleep_us, DEFAULT_MAX_SLEEP_US);
    DpdkConfig {
        memory_mb: or(raw.memory_mb, DEFAULT_MEMORY_MB),
        hugepages: or(raw.hugepages, Hugepages::default()),
        eal: raw.eal.into_iter().map(|argument| argument.value).collect(),
        shim: raw.shim.map(|shim| shim.value.into()),
        max_sleep: Duration::from_micros(max_sleep_us.into()),
        interrupts: or(raw.interrupts, true),
    }
}

/// What the ports of one node must not share.
pub(super) struct Taken {
    ports: Unique<String>,
    taps: Unique<String>,
}

impl Default for Taken {
    fn default() -> Self {
        Self { ports: Unique::new("port"), taps: Unique::new("exception_tap") }
    }
}

/// Checks the port of the link at `address`; `taken` is the node's.
pub(super) fn validate_port(
    raw: Located<RawPort>,
    address: IpAddr,
    taken: &mut Taken,
    faults: &mut Collector,
) -> Option<DpdkPort> {
    let raw = raw.value;
    if let Some(Located { at, value: port }) = &raw.port {
        // The same card twice is one too many, whatever its driver is told.
        let name = match port {
            Port::Pci { address, .. } => address.clone(),
            Port::Virtual { .. } => port.to_string(),
        };
        taken.ports.check(name, *at, faults);
    }
    let subnet = raw.prefix.as_ref().and_then(|prefix| subnet(address, prefix, faults));
    let beside = Beside { address, subnet };
    if let Some(gateway) = &raw.gateway {
        beside.check("gateway", gateway, faults);
    }
    raw.mac.iter().for_each(|mac| check_station("mac", mac, faults));
    if let Some(tap) = &raw.exception_tap {
        check_tap_name(tap, faults);
        taken.taps.check(tap.value.clone(), tap.at, faults);
    }
    if let Some(checksum) = &raw.udp_checksum
        && !checksum.value
        && address.is_ipv6()
    {
        faults.add(
            checksum.at,
            "udp_checksum = false is for IPv4 only, as IPv6 has no other checksum; remove it",
        );
    }
    let gateway = raw.gateway.map(|gateway| gateway.value);
    Some(DpdkPort {
        routes: routes(raw.routes, &beside, gateway.is_some(), faults),
        neighbors: neighbors(raw.neighbors, &beside, faults),
        port: raw.port?.value,
        prefix: raw.prefix?.value,
        gateway,
        vlan: raw.vlan.map(|vlan| vlan.value),
        mac: raw.mac.map(|mac| mac.value),
        mtu: or(raw.mtu, DEFAULT_PORT_MTU),
        exception_tap: raw.exception_tap.map(|tap| tap.value),
        udp_checksum: or(raw.udp_checksum, true),
    })
}

fn subnet(address: IpAddr, prefix: &Located<u8>, faults: &mut Collector) -> Option<IpNet> {
    let subnet = IpNet::new(address, prefix.value).ok();
    if subnet.is_none() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        faults.add(
            prefix.at,
            format!("prefix = {} is too long for {address}; choose 0 to {most}", prefix.value),
        );
    }
    subnet
}

/// What an address that is reached without a router must agree with.
struct Beside {
    address: IpAddr,
    /// Absent where it is at fault.
    subnet: Option<IpNet>,
}

impl Beside {
    fn check(&self, what: &str, found: &Located<IpAddr>, faults: &mut Collector) {
        let (own, address) = (self.address, found.value);
        let group = address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
        let fault = if own.is_ipv4() != address.is_ipv4() {
            format!("is of another family than {own}; write one of the same")
        } else if address == own {
            "is the link's own address; write the other one's".to_owned()
        } else if group || address.is_unspecified() {
            "is nobody's own address; write a unicast one".to_owned()
        } else if let Some(subnet) = self.subnet.filter(|subnet| !subnet.contains(&address)) {
            format!("is not in {}, the link's subnet; correct it, or prefix", subnet.trunc())
        } else {
            return;
        };
        faults.add(found.at, format!("{what} {address} {fault}"));
    }
}

fn routes(
    raw: Vec<Located<RawRoute>>,
    beside: &Beside,
    has_gateway: bool,
    faults: &mut Collector,
) -> Vec<Route> {
    let mut seen = Unique::new("route to");
    let mut routes = Vec::with_capacity(raw.len());
    for Located { value: route, .. } in raw {
        if let Some(to) = &route.to {
            check_destination(to, beside, has_gateway, faults);
            seen.check(to.value.trunc(), to.at, faults);
        }
        if let Some(via) = &route.via {
            beside.check("route via", via, faults);
        }
        if let (Some(to), Some(via)) = (route.to, route.via) {
            routes.push(Route { to: to.value, via: via.value });
        }
    }
    routes
}

fn check_destination(
    to: &Located<IpNet>,
    beside: &Beside,
    has_gateway: bool,
    faults: &mut Collector,
) {
    let net = to.value;
    if net.addr().is_ipv4() != beside.address.is_ipv4() {
        faults.add(
            to.at,
            format!("route to {net} is of another family than {}; remove it", beside.address),
        );
    } else if net.addr() != net.network() {
        faults.add(
            to.at,
            format!("route to {net} has bits behind its prefix; write {}", net.trunc()),
        );
    } else if net.prefix_len() == 0 && has_gateway {
        faults.add(to.at, format!("route to {net} is what gateway says; keep one of the two"));
    }
}

fn neighbors(
    raw: Vec<Located<RawNeighbor>>,
    beside: &Beside,
    faults: &mut Collector,
) -> Vec<StaticNeighbor> {
    let mut seen = Unique::new("neighbor");
    let mut neighbors = Vec::with_capacity(raw.len());
    for Located { value: neighbor, .. } in raw {
        if let Some(address) = &neighbor.address {
            beside.check("neighbor", address, faults);
            seen.check(address.value, address.at, faults);
        }
        neighbor.mac.iter().for_each(|mac| check_station("mac", mac, faults));
        if let (Some(address), Some(mac)) = (neighbor.address, neighbor.mac) {
            neighbors.push(StaticNeighbor { address: address.value, mac: mac.value });
        }
    }
    neighbors
}
