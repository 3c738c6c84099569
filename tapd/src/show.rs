//! `tapd show`: a daemon's state as tables for people, or as JSON.

mod channels;
mod links;
mod offloads;
mod ports;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use crate::control::{
    Client, CountersReply, FdbReply, NetworkReply, PeerReply, ReloadReply, Request, StatusReply,
    Topic,
};
use crate::exit::{Exit, Failure};

/// What a network without a tap has in its place.
const NO_TAP: &str = "none";

/// Asks the daemon and prints.
///
/// # Errors
/// Also where a topic does not take the `name`.
pub(crate) fn run(
    socket: &Path,
    topic: Topic,
    name: Option<String>,
    json: bool,
    verbose: bool,
) -> Result<(), Failure> {
    if name.is_some() && topic != Topic::Channels {
        let message = "only `tapd show channels` takes a name";
        return Err(Failure::message(Exit::Usage, message));
    }
    let request = Request::Show { topic, name };
    let data: serde_json::Value = Client::connect(socket)?.request(request)?;
    let text = if json {
        let mut text = serde_json::to_string_pretty(&data).context("cannot write JSON")?;
        text.push('\n');
        text
    } else {
        text(topic, data, verbose).context(
            "the daemon's reply is not understood; client and daemon may differ in version",
        )?
    };
    crate::print(text.as_bytes())
}

fn text(topic: Topic, data: serde_json::Value, verbose: bool) -> serde_json::Result<String> {
    Ok(match topic {
        Topic::Status => status_text(&serde_json::from_value(data)?),
        Topic::Peers => peers_text(&serde_json::from_value::<Vec<_>>(data)?),
        Topic::Links => links::text(&serde_json::from_value::<Vec<_>>(data)?, verbose),
        Topic::Networks => networks_text(&serde_json::from_value::<Vec<_>>(data)?),
        Topic::Fdb => fdb_text(&serde_json::from_value::<Vec<_>>(data)?),
        Topic::Offloads => offloads::text(&serde_json::from_value(data)?),
        Topic::Ports => ports::text(&serde_json::from_value::<Vec<_>>(data)?),
        Topic::Channels => channels::text(&serde_json::from_value(data)?),
        Topic::Neighbors => ports::neighbors_text(&serde_json::from_value::<Vec<_>>(data)?),
        Topic::Counters => counters_text(&serde_json::from_value(data)?),
    })
}

fn status_text(status: &StatusReply) -> String {
    let mut text = String::new();
    let last_port = u32::from(status.port) + u32::from(crate::config::PORT_COUNT) - 1;
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<9} {value}");
    };
    line("node", format!("{} ({})", status.node, status.name));
    line("version", format!("{}, pid {}", status.version, status.pid));
    line("up for", duration(status.uptime_s));
    line("peers", format!("{} of {} up", status.peers_up, status.peers));
    let insecure = if status.insecure { " (insecure = true: clear mode is allowed)" } else { "" };
    line("ciphers", format!("{}{insecure}", status.ciphers.join(", ")));
    line("UDP ports", format!("{} to {last_port}", status.port));
    line("workers", status.workers.to_string());
    if let Some(rss) = status.rss_bytes {
        line("memory", bytes(rss));
    }
    for (position, arithmetic) in status.tap_mtu.iter().enumerate() {
        line(if position == 0 { "tap MTU" } else { "" }, arithmetic.clone());
    }
    text
}

fn peers_text(peers: &[PeerReply]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "NAME",
        "STATE",
        "LINKS",
        "POLICY",
        "PROTECT",
        "CIPHER",
        "KEY",
        "ADDRESS",
        "AGE",
        "EPOCH TX/RX",
        "RTT",
        "LAST SEEN",
        "HANDSHAKES",
        "RX FRAMES",
        "TX FRAMES",
        "RX",
        "TX",
        "REASON",
    ]);
    for peer in peers {
        let epoch = |epoch: Option<u32>| epoch.map_or_else(dash, |epoch| epoch.to_string());
        table.row([
            peer.node.to_string(),
            peer.name.clone(),
            peer.state.clone(),
            format!("{}/{}", peer.links_up, peer.links),
            peer.policy.clone(),
            peer.protect.clone(),
            peer.cipher.clone().unwrap_or_else(dash),
            peer.key_id.clone().unwrap_or_else(dash),
            peer.address.clone(),
            peer.age_s.map_or_else(dash, duration),
            format!("{}/{}", epoch(peer.epoch_tx), epoch(peer.epoch_rx)),
            peer.rtt_us.map_or_else(dash, |us| format!("{us} us")),
            peer.last_seen_ms.map_or_else(dash, |ms| format!("{ms} ms")),
            peer.handshakes.to_string(),
            peer.rx_frames.to_string(),
            peer.tx_frames.to_string(),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
            peer.down_reason.clone().unwrap_or_default(),
        ]);
    }
    table.text("no peers: the configuration has no other node")
}

fn networks_text(networks: &[NetworkReply]) -> String {
    let mut table = Table::new(&[
        "VNI",
        "NAME",
        "TAP",
        "TAP MTU",
        "MAC",
        "ADDRESSES",
        "MEMBERS",
        "FDB",
        "RX FRAMES",
        "TX FRAMES",
        "RX",
        "TX",
    ]);
    for network in networks {
        let members: Vec<_> =
            network.members.iter().map(|m| format!("{} {}", m.name, m.state)).collect();
        table.row([
            network.vni.to_string(),
            network.name.clone(),
            network.tap.clone(),
            network.tap_mtu.to_string(),
            network.mac.clone(),
            if network.addresses.is_empty() { dash() } else { network.addresses.join(", ") },
            members.join(", "),
            network.fdb_entries.to_string(),
            network.rx_frames.to_string(),
            network.tx_frames.to_string(),
            bytes(network.rx_bytes),
            bytes(network.tx_bytes),
        ]);
    }
    let mut text = table.text(
        "no networks: this node is a member of none, or their taps are gone and a reload makes them \
         anew",
    );
    for network in networks {
        // What has no tap has an MTU all the same, for its machines.
        let whose = if network.tap == NO_TAP { &network.name } else { &network.tap };
        let _ = writeln!(text, "tap MTU of {whose}: {}", network.tap_mtu_arithmetic);
        if network.looped {
            let _ = writeln!(text, "{} is closed for a while: its network loops", network.tap);
        }
    }
    text
}

fn fdb_text(entries: &[FdbReply]) -> String {
    let mut table = Table::new(&["VNI", "MAC", "WHERE", "KIND", "AGE", ""]);
    for entry in entries {
        table.row([
            entry.vni.to_string(),
            entry.mac.clone(),
            match &entry.port {
                Some(port) => format!("{} {port}", entry.behind),
                None => entry.behind.clone(),
            },
            entry.kind.clone(),
            entry.age_s.map_or_else(dash, |age| format!("{age} s")),
            if entry.frozen { "frozen".to_owned() } else { String::new() },
        ]);
    }
    table.text("no entries: nothing was learnt yet")
}

fn counters_text(counters: &CountersReply) -> String {
    let mut totals = Table::new(&["TOTAL", "COUNT"]);
    for (name, count) in &counters.totals {
        totals.row([name.clone(), count.to_string()]);
    }
    let mut text = totals.text("no totals");
    text.push('\n');
    let mut drops = Table::new(&["DROPPED", "COUNT", "MEANING"]);
    for (name, count) in counters.drops.iter().filter(|(_, count)| **count > 0) {
        let help = counters.drop_help.get(name).cloned().unwrap_or_default();
        drops.row([name.clone(), count.to_string(), help]);
    }
    text.push_str(&drops.text("nothing was dropped"));
    let workers = counters.workers.iter().map(|w| (format!("worker {}", w.worker), &w.counters));
    let ports = counters.ports.iter().map(|(name, counters)| (name.clone(), counters));
    let mut parts = Table::new(&["PART", "COUNTER", "COUNT"]);
    let channels = counters.channels.iter();
    let channels = channels.map(|(name, counters)| (format!("channel {name}"), counters));
    for (part, counters) in workers.chain(ports).chain(channels) {
        for (name, count) in counters.iter().filter(|(_, count)| **count > 0) {
            parts.row([part.clone(), name.clone(), count.to_string()]);
        }
    }
    text.push('\n');
    text.push_str(&parts.text("no worker, port or channel counted anything"));
    text
}

/// What a reload did.
pub(crate) fn reload_text(reply: &ReloadReply) -> String {
    if *reply == ReloadReply::default() {
        return "nothing changed\n".to_owned();
    }
    let applied = reply.applied.iter().map(|line| format!("applied: {line}\n"));
    let restart = reply.needs_restart.iter().map(|line| format!("needs a restart: {line}\n"));
    let failed = reply.failed.iter().map(|line| format!("failed: {line}\n"));
    applied.chain(restart).chain(failed).collect()
}

fn dash() -> String {
    "-".to_owned()
}

/// `1d 2h`, `3m 4s`: the two largest units.
fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Bytes in binary units, three significant digits or so.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value >= 1024.0 {
        let Some(next) = units.next() else { break };
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// Rows in aligned columns, two spaces apart.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|name| (*name).to_owned()).collect()] }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }

    /// Takes from one column what the lines have above `most` characters.
    fn shrink(&mut self, column: usize, most: usize) {
        let widths = self.widths();
        let whole = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let Some(width) = widths.get(column).filter(|_| whole > most) else { return };
        let left = width.saturating_sub(whole - most);
        for cell in self.rows.iter_mut().filter_map(|row| row.get_mut(column)) {
            *cell = links::elided(cell, left);
        }
    }

    /// The table, or `empty` where it has no row below the header.
    fn text(&self, empty: &str) -> String {
        if self.rows.len() == 1 {
            return format!("{empty}\n");
        }
        let widths = self.widths();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::LinkReply;
    use std::collections::BTreeMap;

    fn json(value: &impl serde::Serialize) -> serde_json::Value {
        serde_json::to_value(value).unwrap()
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["A", "LONG HEADER", "C"]);
        table.row(["longer cell".into(), "x".into(), "1".into()]);
        table.row(["y".into(), String::new(), String::new()]);
        let expected = "A            LONG HEADER  C\nlonger cell  x            1\ny\n";
        assert_eq!(table.text("empty"), expected);
        assert_eq!(Table::new(&["A"]).text("empty"), "empty\n");
    }

    #[test]
    fn quantities_are_readable() {
        let durations = [0, 61, 3660, 90_000].map(duration);
        assert_eq!(durations, ["0s", "1m 1s", "1h 1m", "1d 1h"]);
        let sizes = [1023, 1024, 1_572_864, u64::MAX].map(bytes);
        assert_eq!(sizes, ["1023 B", "1.0 KiB", "1.5 MiB", "16.0 EiB"]);
    }

    #[test]
    fn every_topic_shows_what_its_reply_says() {
        let arithmetic = "uplink eth0 1500 - IPv4 20 - UDP 8 - tapd 26 - Ethernet 14 = 1432";
        let status = StatusReply {
            name: "alpha".into(),
            port: 26026,
            tap_mtu: vec![arithmetic.into()],
            ..Default::default()
        };
        let text = |topic, data| text(topic, data, false);
        let shown = text(Topic::Status, json(&status)).unwrap();
        assert!(shown.contains("26026 to 26041") && shown.contains(arithmetic), "{shown}");
        let peer = PeerReply { name: "beta".into(), state: "up".into(), ..Default::default() };
        assert!(text(Topic::Peers, json(&vec![peer])).unwrap().contains("beta  up"));
        let errors = BTreeMap::from([("unreachable".into(), 3), ("none".into(), 0)]);
        let link = LinkReply { peer: "beta".into(), errors, ..Default::default() };
        let shown = text(Topic::Links, json(&vec![link])).unwrap();
        assert!(shown.contains("unreachable 3\n"), "{shown}");
        let network = NetworkReply { tap_mtu_arithmetic: arithmetic.into(), ..Default::default() };
        assert!(text(Topic::Networks, json(&vec![network])).unwrap().contains(arithmetic));
        let entry = FdbReply { behind: "local".into(), frozen: true, ..Default::default() };
        assert!(text(Topic::Fdb, json(&vec![entry])).unwrap().contains("frozen"));
        let counters = CountersReply {
            drops: BTreeMap::from([("bad_tag".into(), 7), ("replayed".into(), 0)]),
            drop_help: BTreeMap::from([("bad_tag".into(), "failed authentication".into())]),
            channels: BTreeMap::from([(
                "backup".into(),
                BTreeMap::from([("held_back".into(), 3), ("cut_short".into(), 0)]),
            )]),
            ..Default::default()
        };
        let shown = text(Topic::Counters, json(&counters)).unwrap();
        assert!(shown.contains("bad_tag  7      failed authentication"), "{shown}");
        assert!(!shown.contains("replayed"), "{shown}");
        assert!(shown.contains("channel backup  held_back  3\n"), "{shown}");
        assert!(!shown.contains("cut_short"), "{shown}");
    }

    #[test]
    fn reload_says_what_happened() {
        let reply = ReloadReply {
            applied: vec!["a".into()],
            needs_restart: vec!["b".into()],
            failed: vec!["c: d".into()],
        };
        assert_eq!(reload_text(&reply), "applied: a\nneeds a restart: b\nfailed: c: d\n");
        assert_eq!(reload_text(&ReloadReply::default()), "nothing changed\n");
    }
}
