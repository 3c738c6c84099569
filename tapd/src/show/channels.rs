//! `tapd show channels`: raw channels, their peers, and the paths that the reliable ones share.

use std::fmt::Write as _;

use super::links::micros;
use super::{Table, bytes, dash};
use crate::control::{ChannelReply, ChannelsReply};

pub(super) fn text(reply: &ChannelsReply) -> String {
    let mut text = sockets(&reply.channels);
    if reply.channels.is_empty() {
        return text;
    }
    text.push('\n');
    text.push_str(&peers(&reply.channels));
    if !reply.paths.is_empty() {
        text.push('\n');
        text.push_str(&paths(reply));
    }
    let (booked, limit) = (bytes(reply.memory_booked), bytes(reply.memory_limit));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\nmemory for what no program took yet: {booked} of {limit} booked");
    if reply.credit_limited > 0 || reply.credit_returned > 0 {
        let (limited, returned) = (reply.credit_limited, bytes(reply.credit_returned));
        let _ =
            writeln!(text, "credit: limited {limited} times, {returned} given back by idle peers");
    }
    text.extend(reply.channels.iter().map(notes));
    text
}

fn sockets(channels: &[ChannelReply]) -> String {
    let mut table = Table::new(&["CHANNEL", "MODE", "PROGRAMS", "RECEIVER", "SOCKET"]);
    for channel in channels {
        table.row([
            channel.name.clone(),
            channel.mode.clone(),
            channel.programs.to_string(),
            if channel.receiving { "yes" } else { "no" }.to_owned(),
            channel.socket.clone(),
        ]);
    }
    table.text("no channels: this node is a member of none")
}

fn peers(channels: &[ChannelReply]) -> String {
    let mut table = Table::new(&[
        "CHANNEL",
        "PEER",
        "STATE",
        "TX MESSAGES",
        "RX MESSAGES",
        "TX",
        "RX",
        "QUEUED",
        "WAITING",
        "RESENT",
        "EXPIRED",
        "GIVEN UP",
        "DROPPED",
        "STREAMS",
    ]);
    for channel in channels {
        for peer in &channel.peers {
            table.row([
                channel.name.clone(),
                peer.peer.clone(),
                peer.state.clone(),
                peer.tx_messages.to_string(),
                peer.rx_messages.to_string(),
                bytes(peer.tx_bytes),
                bytes(peer.rx_bytes),
                bytes(peer.queued_bytes),
                bytes(peer.waiting_bytes),
                peer.resent.to_string(),
                peer.expired.to_string(),
                peer.given_up.to_string(),
                peer.dropped.to_string(),
                peer.streams.to_string(),
            ]);
        }
    }
    table.text("no peers: no other node is a member")
}

fn paths(reply: &ChannelsReply) -> String {
    let mut table = Table::new(&[
        "PEER",
        "#",
        "LINK",
        "RTT",
        "WINDOW",
        "IN FLIGHT",
        "SENT",
        "LOST",
        "SPURIOUS",
        "TIMEOUTS",
        "CONGESTION",
    ]);
    for path in &reply.paths {
        table.row([
            path.peer.clone(),
            path.index.to_string(),
            path.name.clone(),
            path.rtt_us.map_or_else(dash, micros),
            bytes(path.window_bytes),
            bytes(path.in_flight_bytes),
            path.sent.to_string(),
            path.lost.to_string(),
            path.spurious.to_string(),
            path.timeouts.to_string(),
            path.congestion.clone(),
        ]);
    }
    table.text("no paths")
}

/// What happened at a channel's socket, if anything did.
fn notes(channel: &ChannelReply) -> String {
    let counters = channel.counters.iter().filter(|(_, count)| **count > 0);
    let counters: Vec<_> = counters.map(|(name, count)| format!("{name} {count}")).collect();
    match counters.is_empty() {
        true => String::new(),
        false => format!("{}: {}\n", channel.name, counters.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::control::{ChannelPathReply, ChannelPeerReply};

    #[test]
    fn all_of_a_report_is_shown() {
        let peer = ChannelPeerReply {
            peer: "beta".into(),
            state: "open".into(),
            tx_messages: 1000,
            tx_bytes: 64_000,
            queued_bytes: 2048,
            resent: 3,
            ..ChannelPeerReply::default()
        };
        let counters =
            BTreeMap::from([("records_in".into(), 1000), ("dropped_no_receiver".into(), 0)]);
        let channel = ChannelReply {
            name: "backup".into(),
            mode: "message".into(),
            socket: "/run/tapd-channels/backup".into(),
            programs: 1,
            receiving: true,
            counters,
            peers: vec![peer],
        };
        let path = ChannelPathReply {
            peer: "beta".into(),
            name: "lan".into(),
            rtt_us: Some(150),
            window_bytes: 14_720,
            sent: 40,
            congestion: "cubic".into(),
            ..ChannelPathReply::default()
        };
        let reply = ChannelsReply {
            channels: vec![channel],
            paths: vec![path],
            memory_booked: 1 << 20,
            memory_limit: 128 << 20,
            credit_limited: 7,
            credit_returned: 3 << 20,
        };
        let expected = "\
CHANNEL  MODE     PROGRAMS  RECEIVER  SOCKET
backup   message  1         yes       /run/tapd-channels/backup

CHANNEL  PEER  STATE  TX MESSAGES  RX MESSAGES  TX        RX   QUEUED   WAITING  RESENT  EXPIRED  GIVEN UP  DROPPED  STREAMS
backup   beta  open   1000         0            62.5 KiB  0 B  2.0 KiB  0 B      3       0        0         0        0

PEER  #  LINK  RTT    WINDOW    IN FLIGHT  SENT  LOST  SPURIOUS  TIMEOUTS  CONGESTION
beta  0  lan   150us  14.4 KiB  0 B        40    0     0         0         cubic

memory for what no program took yet: 1.0 MiB of 128.0 MiB booked
credit: limited 7 times, 3.0 MiB given back by idle peers
backup: records_in 1000
";
        assert_eq!(text(&reply), expected);
    }

    #[test]
    fn a_node_without_channels_is_said_so() {
        let empty = "no channels: this node is a member of none\n";
        assert_eq!(text(&ChannelsReply::default()), empty);
        let alone = ChannelReply { name: "a".into(), ..ChannelReply::default() };
        let reply = ChannelsReply { channels: vec![alone], ..ChannelsReply::default() };
        assert!(text(&reply).contains("no peers: no other node is a member\n"));
    }
}
