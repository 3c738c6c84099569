//! The tree as typed values: unknown keys, wrong types and single values out of range.
//!
//! What depends on two values is left to [`super::validate`].

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use encap::id::{NodeId, Vni};
use encap::wire::ethernet::MacAddr;
use ipnet::IpNet;

use super::fault::{At, Collector, Located};
use super::tree::{Item, Table, Value};
use super::{Cipher, MAX_TAP_MTU, MIN_TAP_MTU, MacPolicy, TapMtu};

/// A table of the configuration and the keys it may have.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) keys: &'static [&'static str],
}

pub(super) const TOP: Section =
    Section { title: "the file", keys: &["cluster", "daemon", "nodes", "networks"] };
pub(super) const CLUSTER: Section = Section {
    title: "[cluster]",
    keys: &["key_file", "next_key_file", "ciphers", "insecure", "port"],
};
pub(super) const DAEMON: Section = Section {
    title: "[daemon]",
    keys: &[
        "workers",
        "dedicated",
        "control_socket",
        "log",
        "rehandshake_minutes",
        "fdb_ageing_s",
        "fdb_max_entries",
        "bum_frames_per_s",
        "rotate_packets",
    ],
};
pub(super) const NODE: Section = Section { title: "[[nodes]]", keys: &["id", "name", "addresses"] };
pub(super) const NETWORK: Section = Section {
    title: "[[networks]]",
    keys: &["vni", "name", "tap", "tap_mtu", "subnets", "mac", "existing", "members", "stp", "fdb"],
};
pub(super) const FDB: Section = Section { title: "an fdb entry", keys: &["mac", "node"] };

/// Every section, for "did you mean" and for the test of the documentation.
pub(super) const SECTIONS: [&Section; 6] = [&TOP, &CLUSTER, &DAEMON, &NODE, &NETWORK, &FDB];

/// Edits between a mistyped key and the one that is meant, at most.
const MAX_TYPOS: usize = 2;

pub(super) type Field<T> = Option<Located<T>>;

/// The files' values, each by itself plausible.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) cluster: Option<RawCluster>,
    pub(super) daemon: RawDaemon,
    pub(super) nodes: Vec<RawNode>,
    pub(super) networks: Vec<RawNetwork>,
}

#[derive(Debug)]
pub(super) struct RawCluster {
    pub(super) key_file: Field<String>,
    pub(super) next_key_file: Field<String>,
    pub(super) ciphers: Field<Vec<Located<Cipher>>>,
    pub(super) insecure: Field<bool>,
    pub(super) port: Field<u16>,
}

#[derive(Debug, Default)]
pub(super) struct RawDaemon {
    pub(super) workers: Field<usize>,
    pub(super) dedicated: Field<bool>,
    pub(super) control_socket: Field<String>,
    pub(super) log: Field<String>,
    pub(super) rehandshake_minutes: Field<u32>,
    pub(super) fdb_ageing_s: Field<u32>,
    pub(super) fdb_max_entries: Field<usize>,
    pub(super) bum_frames_per_s: Field<u32>,
    pub(super) rotate_packets: Field<u64>,
}

#[derive(Debug)]
pub(super) struct RawNode {
    pub(super) at: At,
    pub(super) id: Field<NodeId>,
    pub(super) name: Field<String>,
    pub(super) addresses: Field<Vec<Located<IpAddr>>>,
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
    let daemon = top.table("daemon");
    let nodes = top.tables("nodes");
    let networks = top.tables("networks");
    Raw {
        cluster: cluster.map(|found| read_cluster(found.at, found.value, faults)),
        daemon: daemon.map(|found| read_daemon(found.value, faults)).unwrap_or_default(),
        nodes: nodes.into_iter().map(|found| read_node(found.at, found.value, faults)).collect(),
        networks: networks
            .into_iter()
            .map(|found| read_network(found.at, found.value, faults))
            .collect(),
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
        port: fields.integer("port", 1..=65_535),
    }
}

fn read_daemon(table: &Table, faults: &mut Collector) -> RawDaemon {
    let mut fields = Fields::open(table, &DAEMON, faults);
    RawDaemon {
        workers: fields.integer("workers", 1..=super::MAX_WORKERS as i64),
        dedicated: fields.boolean("dedicated"),
        control_socket: fields.text("control_socket"),
        log: fields.text("log"),
        rehandshake_minutes: fields.integer("rehandshake_minutes", 1..=1440),
        fdb_ageing_s: fields.integer("fdb_ageing_s", 1..=86_400),
        fdb_max_entries: fields.integer("fdb_max_entries", 1..=1_048_576),
        bum_frames_per_s: fields.integer("bum_frames_per_s", 0..=10_000_000),
        rotate_packets: fields.integer("rotate_packets", 1000..=1 << 28),
    }
}

fn read_node(at: At, table: &Table, faults: &mut Collector) -> RawNode {
    let mut fields = Fields::open(table, &NODE, faults);
    fields.require(at, "id", "give it a number from 1 to 65535 that no other node has");
    fields.require(at, "addresses", "write addresses = [\"192.0.2.1\"], with one for each link");
    let id = fields.integer("id", 1..=65_535);
    RawNode {
        at,
        id: id.and_then(|id| Some(Located { at: id.at, value: NodeId::new(id.value)? })),
        name: fields.text("name"),
        addresses: fields.filled_list(
            "addresses",
            "a list such as [\"192.0.2.1\"]",
            parse_with("an IP address such as \"192.0.2.1\" or \"2001:db8::1\""),
        ),
    }
}

fn read_network(at: At, table: &Table, faults: &mut Collector) -> RawNetwork {
    let mut fields = Fields::open(table, &NETWORK, faults);
    fields.require(at, "vni", "give it a number from 0 to 16777215 that no other network has");
    let vni = fields.integer("vni", 0..=Vni::MAX.into());
    RawNetwork {
        vni: vni.and_then(|vni| Some(Located { at: vni.at, value: Vni::new(vni.value)? })),
        name: fields.text("name"),
        tap: fields.text("tap"),
        tap_mtu: fields.tap_mtu(),
        subnets: fields
            .list(
                "subnets",
                "a list such as [\"10.100.0.0/24\"]",
                parse_with("a subnet such as \"10.100.0.0/24\" or \"fd00:100::/64\""),
            )
            .map_or_else(Vec::new, |list| list.value),
        mac: fields.text("mac").and_then(|mac| fields.mac_policy(&mac)),
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
    }
}

fn read_entry(at: At, table: &Table, faults: &mut Collector) -> RawEntry {
    let mut fields = Fields::open(table, &FDB, faults);
    fields.require(at, "mac", "write the station's address as mac = \"02:00:00:00:00:05\"");
    fields.require(at, "node", "write the node that it is behind as node = 2");
    let mac = fields.text("mac").and_then(|text| match text.value.parse() {
        Ok(mac) => Some(Located { at: text.at, value: mac }),
        Err(error) => {
            fields.faults.add(text.at, format!("\"{}\" is {error}", text.value));
            None
        }
    });
    let node = fields.get("node").and_then(|item| {
        Some(Located { at: item.at, value: node_reference(item, fields.faults)? })
    });
    RawEntry { mac, node }
}

/// A node id or name.
fn node_reference(item: &Item, faults: &mut Collector) -> Option<String> {
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

fn text_of(item: &Item, what: &str, faults: &mut Collector) -> Field<String> {
    match &item.value {
        Value::Text(text) => Some(Located { at: item.at, value: text.clone() }),
        other => {
            faults.add(item.at, format!("{what} must be a string in quotes, not {}", other.kind()));
            None
        }
    }
}

/// An element of a list that is written as a string and parsed.
fn parse_with<T: FromStr>(what: &'static str) -> impl Fn(&Item, &mut Collector) -> Option<T> {
    move |item, faults| {
        let text = text_of(item, what, faults)?;
        let parsed = text.value.parse().ok();
        if parsed.is_none() {
            faults.add(item.at, format!("\"{}\" is not {what}", text.value));
        }
        parsed
    }
}

/// A table being read: knows its section's keys.
struct Fields<'t, 'f> {
    table: &'t Table,
    section: &'static Section,
    faults: &'f mut Collector,
}

impl<'t, 'f> Fields<'t, 'f> {
    fn open(table: &'t Table, section: &'static Section, faults: &'f mut Collector) -> Self {
        for entry in &table.entries {
            if !section.keys.contains(&entry.key.as_str()) {
                faults.add(entry.key_at, unknown_key(&entry.key, section));
            }
        }
        Self { table, section, faults }
    }

    fn get(&self, key: &str) -> Option<&'t Item> {
        debug_assert!(self.section.keys.contains(&key), "{key} is not in the section's list");
        self.table.get(key)
    }

    /// Notes a key that has no default and is not there.
    fn require(&mut self, at: At, key: &str, advice: &str) {
        if self.get(key).is_none() {
            self.faults.add(at, format!("{} has no {key}; {advice}", self.section.title));
        }
    }

    fn wrong(&mut self, item: &Item, key: &str, expected: &str) {
        let kind = item.value.kind();
        self.faults.add(item.at, format!("{key} must be {expected}, not {kind}"));
    }

    fn text(&mut self, key: &str) -> Field<String> {
        let item = self.get(key)?;
        match &item.value {
            Value::Text(text) => Some(Located { at: item.at, value: text.clone() }),
            _ => {
                self.wrong(item, key, "a string in quotes");
                None
            }
        }
    }

    fn boolean(&mut self, key: &str) -> Field<bool> {
        let item = self.get(key)?;
        match item.value {
            Value::Boolean(value) => Some(Located { at: item.at, value }),
            _ => {
                self.wrong(item, key, "true or false, without quotes");
                None
            }
        }
    }

    fn integer<T: TryFrom<i64>>(&mut self, key: &str, range: RangeInclusive<i64>) -> Field<T> {
        let item = self.get(key)?;
        let (least, most) = (range.start(), range.end());
        let Value::Integer(number) = item.value else {
            self.wrong(item, key, &format!("a whole number from {least} to {most}"));
            return None;
        };
        let value = range.contains(&number).then(|| T::try_from(number).ok()).flatten();
        if value.is_none() {
            self.faults.add(
                item.at,
                format!("{key} = {number} is out of range; choose {least} to {most}"),
            );
        }
        Some(Located { at: item.at, value: value? })
    }

    fn tap_mtu(&mut self) -> Field<TapMtu> {
        let item = self.get("tap_mtu")?;
        let range = i64::from(MIN_TAP_MTU)..=i64::from(MAX_TAP_MTU);
        let value = match &item.value {
            Value::Text(text) if text == "auto" => Some(TapMtu::Auto),
            Value::Integer(number) if range.contains(number) => {
                u16::try_from(*number).ok().map(TapMtu::Fixed)
            }
            _ => None,
        };
        if value.is_none() {
            self.faults.add(
                item.at,
                format!("tap_mtu must be \"auto\" or {MIN_TAP_MTU} to {MAX_TAP_MTU} bytes"),
            );
        }
        Some(Located { at: item.at, value: value? })
    }

    fn mac_policy(&mut self, mac: &Located<String>) -> Field<MacPolicy> {
        let value = match mac.value.as_str() {
            "derived" => MacPolicy::Derived,
            "random" => MacPolicy::Random,
            other => {
                self.faults.add(
                    mac.at,
                    format!("mac = \"{other}\" is neither \"derived\" nor \"random\""),
                );
                return None;
            }
        };
        Some(Located { at: mac.at, value })
    }

    /// A list whose elements `read` accepts; those that it does not are faults already.
    fn list<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Item, &mut Collector) -> Option<T>,
    ) -> Field<Vec<Located<T>>> {
        let item = self.get(key)?;
        let Value::Array(elements) = &item.value else {
            self.wrong(item, key, expected);
            return None;
        };
        let mut value = Vec::with_capacity(elements.len());
        for element in elements {
            if let Some(read) = read(element, self.faults) {
                value.push(Located { at: element.at, value: read });
            }
        }
        Some(Located { at: item.at, value })
    }

    /// A [`Self::list`] that must not be empty.
    fn filled_list<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&Item, &mut Collector) -> Option<T>,
    ) -> Field<Vec<Located<T>>> {
        let item = self.get(key)?;
        if matches!(&item.value, Value::Array(elements) if elements.is_empty()) {
            self.faults.add(item.at, format!("{key} is empty; write {expected}"));
        }
        self.list(key, expected, read)
    }

    fn table(&mut self, key: &str) -> Field<&'t Table> {
        let item = self.get(key)?;
        match &item.value {
            Value::Table(table) => Some(Located { at: item.at, value: table }),
            _ => {
                self.wrong(item, key, &format!("a section that starts with [{key}]"));
                None
            }
        }
    }

    fn tables(&mut self, key: &str) -> Vec<Located<&'t Table>> {
        let expected = format!("sections that start with [[{key}]], in two brackets");
        let Some(item) = self.get(key) else { return Vec::new() };
        let Value::Array(elements) = &item.value else {
            self.wrong(item, key, &expected);
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(elements.len());
        for element in elements {
            match &element.value {
                Value::Table(table) => tables.push(Located { at: element.at, value: table }),
                _ => self.wrong(element, key, &expected),
            }
        }
        tables
    }
}

/// What to say about a key that is not one.
fn unknown_key(key: &str, section: &Section) -> String {
    let title = section.title;
    let fault = format!("unknown key \"{key}\" in {title}");
    let close = section
        .keys
        .iter()
        .map(|known| (strsim::osa_distance(known, key), known))
        .filter(|(distance, known)| *distance <= MAX_TYPOS.min(known.len() / 2))
        .min();
    if let Some((_, known)) = close {
        return format!("{fault}; did you mean \"{known}\"?");
    }
    let elsewhere = SECTIONS.iter().find(|other| other.keys.contains(&key));
    if let Some(other) = elsewhere {
        return format!("{fault}; it belongs into {}", other.title);
    }
    format!("{fault}; known are {}", section.keys.join(", "))
}
