//! The tree as typed values: unknown keys, wrong types and single values out of range.
//!
//! What depends on two values is left to [`super::validate`].

use std::net::IpAddr;

use encap::id::{NodeId, Vni};
use encap::wire::ethernet::MacAddr;
use ipnet::IpNet;

use super::channels::{RawChannel, RawTransport, read_channel, read_transport};
use super::fault::{At, Collector, Located};
use super::fields::{Field, Fields, parse_with, text_of};
use super::hardware::{RawDpdk, RawPort, RawVhost, read_dpdk, read_mac, read_port, read_vhost};
use super::links::Family;
use super::ranges::AddressRange;
use super::sections::{
    CLUSTER, DAEMON, DETECTOR, FDB, LINK, NETWORK, NODE, NODE_LINK, OFFLOAD, TOP,
};
use super::traffic::{
    DSCP_MAX, Dscp, Level, Policy, Protect, parse_compression, parse_policy, parse_protect,
};
use super::tree::{Item, Table, Value};
use super::{
    Cipher, MAX_TAP_MTU, MIN_TAP_MTU, MIN_UNDERLAY_MTU, MacPolicy, PORT_COUNT, Profile, TapMtu,
};

/// The last base port that has room for all ports behind it.
const LAST_BASE_PORT: i64 = u16::MAX as i64 - (PORT_COUNT as i64 - 1);
/// What stands for an address that is not known beforehand.
const DYNAMIC: &str = "dynamic";

/// The files' values, each by itself plausible.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) cluster: Option<RawCluster>,
    pub(super) detector: RawDetector,
    pub(super) daemon: RawDaemon,
    pub(super) offload: RawOffload,
    pub(super) dpdk: RawDpdk,
    pub(super) nodes: Vec<RawNode>,
    pub(super) links: Vec<RawLink>,
    pub(super) networks: Vec<RawNetwork>,
    pub(super) channels: Vec<RawChannel>,
    pub(super) transport: RawTransport,
}

#[derive(Debug)]
pub(super) struct RawCluster {
    pub(super) key_file: Field<String>,
    pub(super) next_key_file: Field<String>,
    pub(super) ciphers: Field<Vec<Located<Cipher>>>,
    pub(super) insecure: Field<bool>,
    pub(super) port: Field<u16>,
    pub(super) policy: Field<Policy>,
    pub(super) protect: Field<Protect>,
    pub(super) profile: Field<Profile>,
    pub(super) mesh: Field<bool>,
    pub(super) dscp: Field<Dscp>,
    pub(super) ecn: Field<bool>,
}

/// Times are in the unit of their key's name.
#[derive(Debug, Default)]
pub(super) struct RawDetector {
    pub(super) fast_us: Field<u32>,
    pub(super) normal_ms: Field<u32>,
    pub(super) idle_ms: Field<u32>,
    pub(super) sole_ms: Field<u32>,
    pub(super) min_missed: Field<u8>,
    pub(super) max_missed: Field<u8>,
    pub(super) min_grace_us: Field<u32>,
    pub(super) down_after_ms: Field<u32>,
    pub(super) clear_rounds: Field<u8>,
    pub(super) up_rounds: Field<u8>,
    pub(super) max_up_loss_percent: Field<u8>,
    pub(super) hold_s: Field<u32>,
    pub(super) max_hold_s: Field<u32>,
    pub(super) peer_timeout_ms: Field<u32>,
    pub(super) heartbeats_per_s: Field<u32>,
}

#[derive(Debug, Default)]
pub(super) struct RawDaemon {
    pub(super) workers: Field<usize>,
    pub(super) dedicated: Field<bool>,
    pub(super) spin_us: Field<u32>,
    pub(super) control_socket: Field<String>,
    pub(super) log: Field<String>,
    pub(super) rehandshake_minutes: Field<u32>,
    pub(super) fdb_ageing_s: Field<u32>,
    pub(super) fdb_max_entries: Field<usize>,
    pub(super) bum_frames_per_s: Field<u32>,
    pub(super) rotate_packets: Field<u64>,
}

#[derive(Debug, Default)]
pub(super) struct RawOffload {
    pub(super) tap_checksum: Field<bool>,
    pub(super) tap_tcp: Field<bool>,
    pub(super) tap_udp: Field<bool>,
    pub(super) uplink_segmentation: Field<bool>,
    pub(super) uplink_coalescing: Field<bool>,
    pub(super) source_ports: Field<bool>,
    pub(super) bundles: Field<bool>,
}

#[derive(Debug)]
pub(super) struct RawNode {
    pub(super) at: At,
    pub(super) id: Field<NodeId>,
    pub(super) name: Field<String>,
    pub(super) addresses: Field<Vec<Located<Address>>>,
    pub(super) links: Field<Vec<Located<RawNodeLink>>>,
    pub(super) policy: Field<Policy>,
    pub(super) protect: Field<Protect>,
}

/// An address as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    Static(IpAddr),
    Dynamic,
}

/// One of a node's `links`.
#[derive(Debug)]
pub(super) struct RawNodeLink {
    pub(super) name: Field<String>,
    pub(super) address: Field<Address>,
    pub(super) family: Field<Family>,
    pub(super) interface: Field<String>,
    pub(super) dpdk: Field<RawPort>,
}

/// `[[links]]`.
#[derive(Debug)]
pub(super) struct RawLink {
    pub(super) name: Field<String>,
    pub(super) priority: Field<u8>,
    pub(super) weight: Field<u16>,
    pub(super) mtu: Field<u16>,
    pub(super) allow: Vec<Located<AddressRange>>,
    pub(super) deny: Vec<Located<AddressRange>>,
}

#[derive(Debug)]
pub(super) struct RawNetwork {
    pub(super) vni: Field<Vni>,
    pub(super) name: Field<String>,
    pub(super) tap: Field<String>,
    pub(super) tap_mtu: Field<TapMtu>,
    pub(super) subnets: Vec<Located<IpNet>>,
    pub(super) mac: Field<MacPolicy>,
    pub(super) existing: Field<bool>,
    pub(super) members: Field<Vec<Located<String>>>,
    pub(super) stp: Field<bool>,
    pub(super) fdb: Vec<Located<RawEntry>>,
    pub(super) mss_clamp: Field<bool>,
    pub(super) too_big: Field<bool>,
    pub(super) loop_probe: Field<bool>,
    pub(super) compression: Field<bool>,
    pub(super) compression_level: Field<u8>,
    pub(super) policy: Field<Policy>,
    pub(super) dscp: Field<Dscp>,
    pub(super) vhost_user: Field<Vec<Located<RawVhost>>>,
}

/// A static entry; the node is still text, an id or a name.
#[derive(Debug)]
pub(super) struct RawEntry {
    pub(super) mac: Field<MacAddr>,
    pub(super) node: Field<String>,
}

/// Reads the merged tree.
pub(super) fn read(tree: &Table, faults: &mut Collector) -> Raw {
    let mut top = Fields::open(tree, &TOP, faults);
    if top.get("cluster").is_none() {
        let advice = "there is no [cluster] section; add one with key_file = \"cluster.key\"";
        top.faults.add(At::CLUSTER_FILE, advice);
    }
    let no_nodes = |item: &Item| matches!(&item.value, Value::Array(nodes) if nodes.is_empty());
    if top.get("nodes").is_none_or(no_nodes) {
        let advice = "there are no [[nodes]]; add one for each node, with id and addresses";
        top.faults.add(At::CLUSTER_FILE, advice);
    }
    let cluster = top.table("cluster");
    let detector = top.table("detector");
    let daemon = top.table("daemon");
    let offload = top.table("offload");
    let dpdk = top.table("dpdk");
    let nodes = top.tables("nodes");
    let links = top.tables("links");
    let networks = top.tables("networks");
    let channels = top.tables("channels");
    let transport = top.table("channel_transport");
    Raw {
        cluster: cluster.map(|found| read_cluster(found.at, found.value, faults)),
        detector: detector.map(|found| read_detector(found.value, faults)).unwrap_or_default(),
        daemon: daemon.map(|found| read_daemon(found.value, faults)).unwrap_or_default(),
        offload: offload.map(|found| read_offload(found.value, faults)).unwrap_or_default(),
        dpdk: dpdk.map(|found| read_dpdk(found.value, faults)).unwrap_or_default(),
        nodes: nodes.into_iter().map(|found| read_node(found.at, found.value, faults)).collect(),
        links: links.into_iter().map(|found| read_link(found.at, found.value, faults)).collect(),
        networks: networks
            .into_iter()
            .map(|found| read_network(found.at, found.value, faults))
            .collect(),
        channels: channels
            .into_iter()
            .map(|found| read_channel(found.at, found.value, faults))
            .collect(),
        transport: transport.map(|found| read_transport(found.value, faults)).unwrap_or_default(),
    }
}

fn read_cluster(at: At, table: &Table, faults: &mut Collector) -> RawCluster {
    let mut fields = Fields::open(table, &CLUSTER, faults);
    fields.require(
        at,
        "key_file",
        "make a key with tapd keygen cluster.key and write key_file = \"cluster.key\"",
    );
    RawCluster {
        key_file: fields.text("key_file"),
        next_key_file: fields.text("next_key_file"),
        ciphers: fields.filled_list(
            "ciphers",
            "a list such as [\"aes-256-gcm\"]",
            |item, faults| {
                let name = text_of(item, "a cipher's name", faults)?;
                let cipher = Cipher::ALL.into_iter().find(|cipher| cipher.name() == name.value);
                if cipher.is_none() {
                    let known =
                        Cipher::ALL.map(|cipher| format!("\"{}\"", cipher.name())).join(", ");
                    faults.add(item.at, format!("no cipher \"{}\"; there are {known}", name.value));
                }
                cipher
            },
        ),
        insecure: fields.boolean("insecure"),
        port: fields.integer("port", 1..=LAST_BASE_PORT),
        policy: fields.parsed("policy", parse_policy),
        protect: fields.parsed("protect", parse_protect),
        profile: fields.parsed("profile", Profile::parse),
        mesh: fields.boolean("mesh"),
        dscp: read_dscp(&mut fields),
        ecn: fields.boolean("ecn"),
    }
}

fn read_detector(table: &Table, faults: &mut Collector) -> RawDetector {
    let mut fields = Fields::open(table, &DETECTOR, faults);
    RawDetector {
        fast_us: fields.integer("fast_us", 100..=10_000_000),
        normal_ms: fields.integer("normal_ms", 1..=60_000),
        idle_ms: fields.integer("idle_ms", 1..=60_000),
        sole_ms: fields.integer("sole_ms", 1..=60_000),
        min_missed: fields.integer("min_missed", 2..=32),
        max_missed: fields.integer("max_missed", 2..=32),
        min_grace_us: fields.integer("min_grace_us", 10..=10_000_000),
        down_after_ms: fields.integer("down_after_ms", 1..=60_000),
        clear_rounds: fields.integer("clear_rounds", 1..=64),
        up_rounds: fields.integer("up_rounds", 1..=64),
        max_up_loss_percent: fields.integer("max_up_loss_percent", 0..=100),
        hold_s: fields.integer("hold_s", 0..=3600),
        max_hold_s: fields.integer("max_hold_s", 0..=3600),
        peer_timeout_ms: fields.integer("peer_timeout_ms", 100..=600_000),
        heartbeats_per_s: fields.integer("heartbeats_per_s", 100..=1_000_000),
    }
}

/// A code point, `"inherit"`, or a table from inner to outer code points.
fn read_dscp(fields: &mut Fields<'_, '_>) -> Field<Dscp> {
    let item = fields.get("dscp")?;
    let value = match &item.value {
        Value::Integer(number) => u8::try_from(*number).ok().filter(is_dscp).map(Dscp::Fixed),
        Value::Text(text) if text == "inherit" => Some(Dscp::Inherit),
        Value::Table(table) => return read_dscp_map(item.at, table, fields.faults),
        _ => None,
    };
    if value.is_none() {
        fields.faults.add(
            item.at,
            format!(
                "dscp must be 0 to {DSCP_MAX}, \"inherit\", or a table such as \
                {{ \"46\" = 40, default = 0 }}"
            ),
        );
    }
    Some(Located { at: item.at, value: value? })
}

fn is_dscp(number: &u8) -> bool {
    *number <= DSCP_MAX
}

fn read_dscp_map(at: At, table: &Table, faults: &mut Collector) -> Field<Dscp> {
    let (mut pairs, mut default) = (Vec::with_capacity(table.entries.len()), 0);
    for entry in &table.entries {
        let key = entry.key.as_str();
        let inner = key.parse().ok().filter(is_dscp).filter(|number| number.to_string() == key);
        if inner.is_none() && key != "default" {
            faults.add(
                entry.key_at,
                format!(
                    "dscp maps from \"0\" to \"{DSCP_MAX}\" and from default, not from \"{key}\""
                ),
            );
            continue;
        }
        let outer = match &entry.item.value {
            Value::Integer(number) => u8::try_from(*number).ok().filter(is_dscp),
            _ => None,
        };
        let Some(outer) = outer else {
            faults.add(entry.item.at, format!("dscp maps to a number from 0 to {DSCP_MAX}"));
            continue;
        };
        match inner {
            Some(inner) => pairs.push((inner, outer)),
            None => default = outer,
        }
    }
    pairs.sort_unstable();
    Some(Located { at, value: Dscp::Map(pairs, default) })
}

fn read_daemon(table: &Table, faults: &mut Collector) -> RawDaemon {
    let mut fields = Fields::open(table, &DAEMON, faults);
    RawDaemon {
        workers: fields.integer("workers", 1..=super::MAX_WORKERS as i64),
        dedicated: fields.boolean("dedicated"),
        spin_us: fields.integer("spin_us", 0..=10_000),
        control_socket: fields.text("control_socket"),
        log: fields.text("log"),
        rehandshake_minutes: fields.integer("rehandshake_minutes", 1..=1440),
        fdb_ageing_s: fields.integer("fdb_ageing_s", 1..=86_400),
        fdb_max_entries: fields.integer("fdb_max_entries", 1..=1_048_576),
        bum_frames_per_s: fields.integer("bum_frames_per_s", 0..=10_000_000),
        rotate_packets: fields.integer("rotate_packets", 1000..=1 << 28),
    }
}

fn read_offload(table: &Table, faults: &mut Collector) -> RawOffload {
    let mut fields = Fields::open(table, &OFFLOAD, faults);
    RawOffload {
        tap_checksum: fields.boolean("tap_checksum"),
        tap_tcp: fields.boolean("tap_tcp"),
        tap_udp: fields.boolean("tap_udp"),
        uplink_segmentation: fields.boolean("uplink_segmentation"),
        uplink_coalescing: fields.boolean("uplink_coalescing"),
        source_ports: fields.boolean("source_ports"),
        bundles: fields.boolean("bundles"),
    }
}

fn read_node(at: At, table: &Table, faults: &mut Collector) -> RawNode {
    let mut fields = Fields::open(table, &NODE, faults);
    fields.require(at, "id", "give it a number from 1 to 65535 that no other node has");
    match (fields.get("addresses"), fields.get("links")) {
        (None, None) => fields.faults.add(
            at,
            format!(
                "{} has no addresses; write addresses = [\"192.0.2.1\"], with one for each link",
                NODE.title
            ),
        ),
        (Some(addresses), Some(links)) => fields.faults.add(
            links.at,
            format!(
                "{} has both links and addresses ({}); keep one of the two",
                NODE.title,
                addresses.at.seen_from(links.at)
            ),
        ),
        _ => {}
    }
    let id = fields.integer("id", 1..=65_535);
    RawNode {
        at,
        id: id.and_then(|id| Some(Located { at: id.at, value: NodeId::new(id.value)? })),
        name: fields.text("name"),
        addresses: fields.filled_list("addresses", "a list such as [\"192.0.2.1\"]", read_address),
        links: fields.filled_list("links", NODE_LINK_EXAMPLE, |item, faults| match &item.value {
            Value::Table(table) => Some(read_node_link(item.at, table, faults)),
            other => {
                let kind = other.kind();
                faults.add(item.at, format!("a link is {kind}; write {NODE_LINK_EXAMPLE}"));
                None
            }
        }),
        policy: fields.parsed("policy", parse_policy),
        protect: fields.parsed("protect", parse_protect),
    }
}

/// How a node's `links` look.
const NODE_LINK_EXAMPLE: &str = "a list such as [{ name = \"lan\", address = \"192.0.2.1\" }]";

fn read_node_link(at: At, table: &Table, faults: &mut Collector) -> RawNodeLink {
    let mut fields = Fields::open(table, &NODE_LINK, faults);
    fields.require(at, "name", "write what the other nodes call it too, as name = \"lan\"");
    fields.require(at, "address", "write address = \"192.0.2.1\", or address = \"dynamic\"");
    let address = fields
        .get("address")
        .and_then(|item| Some(Located { at: item.at, value: read_address(item, fields.faults)? }));
    RawNodeLink {
        name: fields.text("name"),
        address,
        family: fields.parsed("family", Family::parse),
        interface: fields.text("interface"),
        dpdk: read_port(&mut fields),
    }
}

fn read_address(item: &Item, faults: &mut Collector) -> Option<Address> {
    let what = "an IP address such as \"192.0.2.1\" or \"2001:db8::1\", or \"dynamic\"";
    if matches!(&item.value, Value::Text(text) if text == DYNAMIC) {
        return Some(Address::Dynamic);
    }
    parse_with(what)(item, faults).map(Address::Static)
}

fn read_link(at: At, table: &Table, faults: &mut Collector) -> RawLink {
    let mut fields = Fields::open(table, &LINK, faults);
    fields.require(at, "name", "write the name of the link that it is about, as name = \"lan\"");
    RawLink {
        name: fields.text("name"),
        priority: fields.integer("priority", 0..=255),
        weight: fields.integer("weight", 1..=1000),
        mtu: fields.integer("mtu", MIN_UNDERLAY_MTU.into()..=65_535),
        allow: read_ranges(&mut fields, "allow"),
        deny: read_ranges(&mut fields, "deny"),
    }
}

fn read_ranges(fields: &mut Fields<'_, '_>, key: &'static str) -> Vec<Located<AddressRange>> {
    let expected = "a list such as [\"203.0.113.0/24\"]";
    let list = fields.list(key, expected, |item, faults| {
        let text = text_of(item, "a range of addresses", faults)?;
        AddressRange::parse(&text.value)
            .map_err(|fault| faults.add(item.at, format!("\"{}\" {fault}", text.value)))
            .ok()
    });
    list.map_or_else(Vec::new, |list| list.value)
}

fn read_network(at: At, table: &Table, faults: &mut Collector) -> RawNetwork {
    let mut fields = Fields::open(table, &NETWORK, faults);
    fields.require(at, "vni", "give it a number from 0 to 16777215 that no other network has");
    let vni = fields.integer("vni", 0..=Vni::MAX.into());
    RawNetwork {
        vni: vni.and_then(|vni| Some(Located { at: vni.at, value: Vni::new(vni.value)? })),
        name: fields.text("name"),
        tap: fields.text("tap"),
        tap_mtu: read_tap_mtu(&mut fields),
        subnets: fields
            .list(
                "subnets",
                "a list such as [\"10.100.0.0/24\"]",
                parse_with("a subnet such as \"10.100.0.0/24\" or \"fd00:100::/64\""),
            )
            .map_or_else(Vec::new, |list| list.value),
        mac: fields.parsed("mac", |mac| match mac {
            "derived" => Ok(MacPolicy::Derived),
            "random" => Ok(MacPolicy::Random),
            _ => Err("is neither \"derived\" nor \"random\"".to_owned()),
        }),
        existing: fields.boolean("existing"),
        members: fields.filled_list("members", "a list such as [1, \"beta\"]", node_reference),
        stp: fields.boolean("stp"),
        fdb: fields
            .list(
                "fdb",
                "a list such as [ { mac = \"02:00:00:00:00:05\", node = 2 } ]",
                |item, faults| match &item.value {
                    Value::Table(table) => Some(read_entry(item.at, table, faults)),
                    other => {
                        let kind = other.kind();
                        faults.add(
                            item.at,
                            format!(
                                "an fdb entry is {kind}; write {{ mac = \
                            \"02:00:00:00:00:05\", node = 2 }}"
                            ),
                        );
                        None
                    }
                },
            )
            .map_or_else(Vec::new, |list| list.value),
        mss_clamp: fields.boolean("mss_clamp"),
        too_big: fields.boolean("too_big"),
        loop_probe: fields.boolean("loop_probe"),
        compression: fields.parsed("compression", parse_compression),
        compression_level: fields
            .integer("compression_level", Level::MIN.into()..=Level::MAX.into()),
        policy: fields.parsed("policy", parse_policy),
        dscp: read_dscp(&mut fields),
        vhost_user: read_vhost(&mut fields),
    }
}

fn read_tap_mtu(fields: &mut Fields<'_, '_>) -> Field<TapMtu> {
    let item = fields.get("tap_mtu")?;
    let range = i64::from(MIN_TAP_MTU)..=i64::from(MAX_TAP_MTU);
    let value = match &item.value {
        Value::Text(text) if text == "auto" => Some(TapMtu::Auto),
        Value::Integer(number) if range.contains(number) => {
            u16::try_from(*number).ok().map(TapMtu::Fixed)
        }
        _ => None,
    };
    if value.is_none() {
        fields.faults.add(
            item.at,
            format!("tap_mtu must be \"auto\" or {MIN_TAP_MTU} to {MAX_TAP_MTU} bytes"),
        );
    }
    Some(Located { at: item.at, value: value? })
}

fn read_entry(at: At, table: &Table, faults: &mut Collector) -> RawEntry {
    let mut fields = Fields::open(table, &FDB, faults);
    fields.require(at, "mac", "write the station's address as mac = \"02:00:00:00:00:05\"");
    fields.require(at, "node", "write the node that it is behind as node = 2");
    let mac = read_mac(&mut fields);
    let node = fields.get("node").and_then(|item| {
        Some(Located { at: item.at, value: node_reference(item, fields.faults)? })
    });
    RawEntry { mac, node }
}

/// A node id or name.
pub(super) fn node_reference(item: &Item, faults: &mut Collector) -> Option<String> {
    match &item.value {
        Value::Text(name) => Some(name.clone()),
        Value::Integer(id) => Some(id.to_string()),
        other => {
            faults.add(
                item.at,
                format!("a node is written as its id or name, not as {}", other.kind()),
            );
            None
        }
    }
}
