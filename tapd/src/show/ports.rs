//! `tapd show ports` and `tapd show neighbors`.

use std::fmt::Write as _;

use super::{Table, bytes, dash};
use crate::control::{NeighborReply, PortReply};

/// Ports of this node, and below what is left to the other side of each.
pub(super) fn text(ports: &[PortReply]) -> String {
    let mut table = Table::new(&[
        "PORT",
        "KIND",
        "DEVICE",
        "DRIVER",
        "VNI",
        "LINK",
        "MAC",
        "MTU",
        "STATE",
        "QUEUES",
        "RX PACKETS",
        "TX PACKETS",
        "RX",
        "TX",
        "RX/TX ERRORS",
        "MISSED",
        "NO BUFFER",
        "BUFFERS",
    ]);
    for port in ports {
        let number = |count: Option<u64>| count.map_or_else(dash, |count| count.to_string());
        let buffers = port.buffers_used.zip(port.buffers);
        table.row([
            port.port.clone(),
            port.kind.clone(),
            port.device.clone(),
            port.driver.clone().unwrap_or_else(dash),
            port.vni.map_or_else(dash, |vni| vni.to_string()),
            port.link.clone().unwrap_or_else(dash),
            port.mac.clone().unwrap_or_else(dash),
            port.mtu.map_or_else(dash, |mtu| mtu.to_string()),
            state(port).to_owned(),
            port.queues.to_string(),
            port.rx_packets.to_string(),
            port.tx_packets.to_string(),
            bytes(port.rx_bytes),
            bytes(port.tx_bytes),
            format!("{}/{}", number(port.rx_errors), number(port.tx_errors)),
            number(port.rx_missed),
            number(port.rx_no_buffer),
            buffers.map_or_else(dash, |(used, all)| format!("{used} of {all}")),
        ]);
    }
    let mut text = table.text("no ports");
    for port in ports.iter().filter(|port| !port.offloads.is_empty()) {
        let _ = writeln!(text, "{}: {}", port.port, port.offloads.join(", "));
    }
    text
}

fn state(port: &PortReply) -> &'static str {
    match (port.kind.as_str(), port.up) {
        ("vhost-user", Some(true)) => "guest",
        ("vhost-user", _) => "no guest",
        (_, Some(true)) => "up",
        (_, Some(false)) => "down",
        (_, None) => "-",
    }
}

/// Who is asked for at DPDK ports.
pub(super) fn neighbors_text(neighbors: &[NeighborReply]) -> String {
    let mut table = Table::new(&["PORT", "ADDRESS", "MAC", "STATE", "FOR"]);
    for neighbor in neighbors {
        table.row([
            neighbor.port.clone(),
            neighbor.address.clone(),
            neighbor.mac.clone().unwrap_or_else(dash),
            neighbor.state.clone(),
            format!("{} ms", neighbor.age_ms),
        ]);
    }
    table.text("no neighbours: no link is on a DPDK port, or nothing was sent by one yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_say_what_is_behind_them() {
        let vm = PortReply {
            port: "vm /run/vm1.sock".into(),
            kind: "vhost-user".into(),
            up: Some(false),
            buffers: Some(8191),
            buffers_used: Some(3),
            ..PortReply::default()
        };
        let tap = PortReply {
            port: "tap tap100".into(),
            kind: "tap".into(),
            up: Some(true),
            offloads: vec!["checksums".into(), "TCP super-frames in".into()],
            ..PortReply::default()
        };
        let shown = text(&[tap, vm]);
        assert!(shown.contains("no guest") && shown.contains("3 of 8191"), "{shown}");
        assert!(shown.ends_with("tap tap100: checksums, TCP super-frames in\n"), "{shown}");
        assert_eq!(text(&[]), "no ports\n");
    }

    #[test]
    fn neighbours_without_an_address_are_shown_too() {
        let neighbor = NeighborReply {
            address: "192.0.2.9".into(),
            state: "incomplete".into(),
            ..NeighborReply::default()
        };
        let shown = neighbors_text(&[neighbor]);
        assert!(shown.contains("192.0.2.9  -    incomplete  0 ms"), "{shown}");
    }
}
