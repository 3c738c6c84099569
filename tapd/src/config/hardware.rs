//! What a node's own hardware and VMs are attached by, as it is written: `[dpdk]`, `dpdk` of a
//! link, `vhost_user` of a network.
//!
//! Next: [`super::dpdk`] and [`super::vhost`], which check it.

use std::net::IpAddr;

use encap::wire::ethernet::MacAddr;
use ipnet::IpNet;

use super::dpdk::{Hugepages, Port};
use super::fault::{At, Collector, Located};
use super::fields::{Field, Fields, parse_with, text_of};
use super::sections::{DPDK, LINK_DPDK, NEIGHBOR, ROUTE, VHOST_USER};
use super::tree::{Item, Table, Value};
use super::vhost::{MAX_QUEUES, Mode};
use super::{MAX_PORT_MTU, MIN_UNDERLAY_MTU};

/// `[dpdk]`.
#[derive(Debug, Default)]
pub(super) struct RawDpdk {
    pub(super) memory_mb: Field<u32>,
    pub(super) hugepages: Field<Hugepages>,
    pub(super) eal: Vec<Located<String>>,
    pub(super) shim: Field<String>,
    pub(super) max_sleep_us: Field<u32>,
    pub(super) interrupts: Field<bool>,
}

/// `dpdk` of a link.
#[derive(Debug)]
pub(super) struct RawPort {
    pub(super) port: Field<Port>,
    pub(super) prefix: Field<u8>,
    pub(super) gateway: Field<IpAddr>,
    pub(super) routes: Vec<Located<RawRoute>>,
    pub(super) neighbors: Vec<Located<RawNeighbor>>,
    pub(super) vlan: Field<u16>,
    pub(super) mac: Field<MacAddr>,
    pub(super) mtu: Field<u16>,
    pub(super) exception_tap: Field<String>,
    pub(super) udp_checksum: Field<bool>,
}

#[derive(Debug)]
pub(super) struct RawRoute {
    pub(super) to: Field<IpNet>,
    pub(super) via: Field<IpAddr>,
}

#[derive(Debug)]
pub(super) struct RawNeighbor {
    pub(super) address: Field<IpAddr>,
    pub(super) mac: Field<MacAddr>,
}

/// One of a network's `vhost_user`.
#[derive(Debug)]
pub(super) struct RawVhost {
    pub(super) socket: Field<String>,
    pub(super) mode: Field<Mode>,
    pub(super) queues: Field<u16>,
}

/// How a link's `dpdk` looks.
const LINK_DPDK_EXAMPLE: &str = "{ port = \"0000:3b:00.0\", prefix = 24 }";
/// How a port's `routes` look.
const ROUTES_EXAMPLE: &str = "a list such as [{ to = \"10.0.0.0/8\", via = \"192.0.2.253\" }]";
/// How a port's `neighbors` look.
const NEIGHBORS_EXAMPLE: &str =
    "a list such as [{ address = \"192.0.2.9\", mac = \"02:00:00:00:00:09\" }]";
/// How a network's `vhost_user` looks.
const VHOST_EXAMPLE: &str =
    "a list such as [\"/run/tapd/vm1.sock\", { socket = \"/run/tapd/vm2.sock\", queues = 2 }]";

pub(super) fn read_dpdk(table: &Table, faults: &mut Collector) -> RawDpdk {
    let mut fields = Fields::open(table, &DPDK, faults);
    RawDpdk {
        memory_mb: fields.integer("memory_mb", 64..=65_536),
        hugepages: read_hugepages(&mut fields),
        eal: fields
            .list("eal", "a list such as [\"--log-level=pmd:debug\"]", |item, faults| {
                Some(text_of(item, "an EAL argument", faults)?.value)
            })
            .map_or_else(Vec::new, |list| list.value),
        shim: fields.text("shim"),
        max_sleep_us: fields.integer("max_sleep_us", 0..=10_000),
        interrupts: fields.boolean("interrupts"),
    }
}

fn read_hugepages(fields: &mut Fields<'_, '_>) -> Field<Hugepages> {
    let item = fields.get("hugepages")?;
    let value = match &item.value {
        Value::Text(text) if text == "auto" => Some(Hugepages::Auto),
        Value::Boolean(true) => Some(Hugepages::Always),
        Value::Boolean(false) => Some(Hugepages::Never),
        _ => None,
    };
    if value.is_none() {
        fields.faults.add(item.at, "hugepages must be \"auto\", or true or false without quotes");
    }
    Some(Located { at: item.at, value: value? })
}

/// `dpdk` of a link, where it has one.
pub(super) fn read_port(fields: &mut Fields<'_, '_>) -> Field<RawPort> {
    let item = fields.get("dpdk")?;
    let Value::Table(table) = &item.value else {
        fields.wrong(item, "dpdk", &format!("a table such as {LINK_DPDK_EXAMPLE}"));
        return None;
    };
    let (at, mut fields) = (item.at, Fields::open(table, &LINK_DPDK, fields.faults));
    fields.require(at, "port", "write the card's PCI address as port = \"0000:3b:00.0\"");
    fields.require(at, "prefix", "write how long the subnet's prefix is, as prefix = 24");
    let value = RawPort {
        port: fields.parsed("port", Port::parse),
        prefix: fields.integer("prefix", 0..=128),
        gateway: read_address(&mut fields, "gateway"),
        routes: read_tables(&mut fields, "routes", ROUTES_EXAMPLE, read_route),
        neighbors: read_tables(&mut fields, "neighbors", NEIGHBORS_EXAMPLE, read_neighbor),
        vlan: fields.integer("vlan", 1..=4094),
        mac: read_mac(&mut fields),
        mtu: fields.integer("mtu", MIN_UNDERLAY_MTU.into()..=MAX_PORT_MTU.into()),
        exception_tap: fields.text("exception_tap"),
        udp_checksum: fields.boolean("udp_checksum"),
    };
    Some(Located { at, value })
}

fn read_route(at: At, table: &Table, faults: &mut Collector) -> RawRoute {
    let mut fields = Fields::open(table, &ROUTE, faults);
    fields.require(at, "to", "write where it leads as to = \"10.0.0.0/8\"");
    fields.require(at, "via", "write the router's address as via = \"192.0.2.253\"");
    let to = fields.get("to").and_then(|item| {
        let what = "a subnet such as \"10.0.0.0/8\" or \"fd00::/8\"";
        Some(Located { at: item.at, value: parse_with(what)(item, fields.faults)? })
    });
    RawRoute { to, via: read_address(&mut fields, "via") }
}

fn read_neighbor(at: At, table: &Table, faults: &mut Collector) -> RawNeighbor {
    let mut fields = Fields::open(table, &NEIGHBOR, faults);
    fields.require(at, "address", "write whose it is as address = \"192.0.2.9\"");
    fields.require(at, "mac", "write where it is as mac = \"02:00:00:00:00:09\"");
    RawNeighbor { address: read_address(&mut fields, "address"), mac: read_mac(&mut fields) }
}

/// A list of tables.
fn read_tables<T>(
    fields: &mut Fields<'_, '_>,
    key: &'static str,
    example: &'static str,
    read: impl Fn(At, &Table, &mut Collector) -> T,
) -> Vec<Located<T>> {
    let list = fields.list(key, example, |item, faults| match &item.value {
        Value::Table(table) => Some(read(item.at, table, faults)),
        other => {
            let kind = other.kind();
            faults.add(item.at, format!("one of {key} is {kind}; write {example}"));
            None
        }
    });
    list.map_or_else(Vec::new, |list| list.value)
}

fn read_address(fields: &mut Fields<'_, '_>, key: &str) -> Field<IpAddr> {
    let item = fields.get(key)?;
    let what = "an IP address such as \"192.0.2.1\" or \"2001:db8::1\"";
    Some(Located { at: item.at, value: parse_with(what)(item, fields.faults)? })
}

/// `mac`, as six bytes; whose it can be is checked later.
pub(super) fn read_mac(fields: &mut Fields<'_, '_>) -> Field<MacAddr> {
    let text = fields.text("mac")?;
    match text.value.parse() {
        Ok(mac) => Some(Located { at: text.at, value: mac }),
        Err(error) => {
            fields.faults.add(text.at, format!("\"{}\" is {error}", text.value));
            None
        }
    }
}

/// `vhost_user` of a network: each is a path, or a table with more.
pub(super) fn read_vhost(fields: &mut Fields<'_, '_>) -> Field<Vec<Located<RawVhost>>> {
    fields.list("vhost_user", VHOST_EXAMPLE, read_vhost_port)
}

fn read_vhost_port(item: &Item, faults: &mut Collector) -> Option<RawVhost> {
    match &item.value {
        Value::Text(path) => {
            let socket = Some(Located { at: item.at, value: path.clone() });
            Some(RawVhost { socket, mode: None, queues: None })
        }
        Value::Table(table) => {
            let mut fields = Fields::open(table, &VHOST_USER, faults);
            fields.require(item.at, "socket", "write socket = \"/run/tapd/vm1.sock\"");
            Some(RawVhost {
                socket: fields.text("socket"),
                mode: fields.parsed("mode", Mode::parse),
                queues: fields.integer("queues", 1..=MAX_QUEUES.into()),
            })
        }
        other => {
            let kind = other.kind();
            faults.add(item.at, format!("one of vhost_user is {kind}; write {VHOST_EXAMPLE}"));
            None
        }
    }
}
