//! `tapd show offloads`: what is left to kernel and cards, and how much it brings.

use super::{Table, bytes, dash};
use crate::control::OffloadsReply;

/// The reply as two tables and a line.
pub(super) fn text(reply: &OffloadsReply) -> String {
    let mut switches = Table::new(&["PORT", "OFFLOAD", "STATE", "REFUSED"]);
    for row in &reply.offloads {
        switches.row([
            row.port.clone(),
            row.offload.clone(),
            row.state.clone(),
            row.refused.to_string(),
        ]);
    }
    let mut text = switches.text("no taps and no uplinks");
    text.push('\n');
    let mut runs =
        Table::new(&["PORT", "DIRECTION", "PACKETS", "CALLS", "PER CALL", "BYTES PER CALL"]);
    for row in &reply.runs {
        runs.row([
            row.port.clone(),
            row.direction.clone(),
            row.packets.map_or_else(dash, |packets| packets.to_string()),
            row.calls.to_string(),
            row.packets_per_call.map_or_else(dash, |ratio| format!("{ratio:.1}")),
            row.bytes_per_call.map_or_else(dash, bytes),
        ]);
    }
    text.push_str(&runs.text("nothing was carried"));
    text.push('\n');
    text.push_str(&format!("bundles of small frames: {}\n", reply.bundles));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{OffloadReply, RunsReply};

    #[test]
    fn states_and_ratios_are_shown() {
        let reply = OffloadsReply {
            offloads: vec![OffloadReply {
                port: "tap tap100".into(),
                offload: "tap_tcp".into(),
                state: "off: the kernel refused".into(),
                refused: 3,
                ..Default::default()
            }],
            runs: vec![
                RunsReply {
                    port: "uplink 0".into(),
                    direction: "sent".into(),
                    packets: Some(30),
                    calls: 10,
                    packets_per_call: Some(3.0),
                    bytes_per_call: Some(2048),
                },
                RunsReply { port: "tap tap100".into(), calls: 7, ..Default::default() },
            ],
            bundles: "off in the configuration".into(),
        };
        let shown = text(&reply);
        for part in [
            "tap tap100  tap_tcp  off: the kernel refused  3\n",
            "sent       30       10     3.0       2.0 KiB\n",
            "-        7      -         -\n",
            "bundles of small frames: off in the configuration\n",
        ] {
            assert!(shown.contains(part), "{part}\n{shown}");
        }
    }
}
