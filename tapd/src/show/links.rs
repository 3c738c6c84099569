//! `tapd show links`: a table that fits a terminal, and what happened to each link lately.

use std::fmt::Write as _;

use super::{Table, bytes, dash, duration};
use crate::control::{LinkReply, TransitionReply};

/// Widest line of the table, in characters.
const MAX_WIDTH: usize = 140;
/// Widest name of a peer in it.
const MAX_PEER: usize = 16;
/// Widest name of a link in it.
const MAX_LINK: usize = 12;
/// Column of the remote address, which gets what the others leave.
const REMOTE: usize = 5;
/// Changes of state that are shown of each link.
const TRANSITIONS: usize = 3;

/// The table and the notes below it; all that is known of each link with `verbose`.
pub(super) fn text(links: &[LinkReply], verbose: bool) -> String {
    let mut table = Table::new(&[
        "PEER",
        "#",
        "LINK",
        "STATE",
        "USE",
        "REMOTE",
        "MTU",
        "RTT",
        "P99",
        "JITTER",
        "LOSS RX/TX",
        "RX",
        "TX",
    ]);
    for link in links {
        table.row([
            elided(&link.peer, MAX_PEER),
            link.index.to_string(),
            elided(&name(link), MAX_LINK),
            link.state.clone(),
            usage(link).to_owned(),
            link.remote.clone(),
            path_mtu(link),
            link.rtt_us.map_or_else(dash, micros),
            link.rtt_p99_us.map_or_else(dash, micros),
            link.jitter_us.map_or_else(dash, micros),
            loss(link),
            bytes(link.rx_bytes),
            bytes(link.tx_bytes),
        ]);
    }
    table.shrink(REMOTE, MAX_WIDTH);
    let mut text = table.text("no links: the configuration has no other node");
    let notes: Vec<_> = links.iter().map(|link| notes(link, verbose)).collect();
    if notes.iter().any(|notes| !notes.is_empty()) {
        text.push('\n');
        text.extend(notes);
    }
    text
}

/// What people call it; an older daemon gives only the index.
fn name(link: &LinkReply) -> String {
    if link.name.is_empty() { link.index.to_string() } else { link.name.clone() }
}

/// What frames it carries.
const fn usage(link: &LinkReply) -> &'static str {
    match (link.sending, link.drained) {
        (true, false) => "sending",
        // Nothing else is left to send by.
        (true, true) => "draining",
        (false, true) => "drained",
        (false, false) => "standby",
    }
}

fn loss(link: &LinkReply) -> String {
    match (link.loss_rx_ppm, link.loss_tx_ppm) {
        (None, None) => dash(),
        (rx, tx) => format!("{}/{}%", percent(rx), percent(tx)),
    }
}

fn path_mtu(link: &LinkReply) -> String {
    let searching = if link.searching { "?" } else { "" };
    link.path_mtu.map_or_else(dash, |mtu| format!("{mtu}{searching}"))
}

/// What the table has no room for; nothing of a link that has been well all the time.
fn notes(link: &LinkReply, verbose: bool) -> String {
    let errors = link.errors.iter().filter(|(_, count)| **count > 0);
    let errors: Vec<_> = errors.map(|(kind, count)| format!("{kind} {count}")).collect();
    let mut facts = vec![link.state.clone()];
    facts.extend(link.reason.clone());
    if !errors.is_empty() {
        facts.push(format!("errors: {}", errors.join(", ")));
    }
    if !verbose && facts.len() == 1 && link.transitions.is_empty() {
        return String::new();
    }
    let mut text = format!("{} {}: {}\n", link.peer, name(link), facts.join("; "));
    if verbose {
        text.push_str(&details(link));
    }
    let shown = if verbose { usize::MAX } else { TRANSITIONS };
    for TransitionReply { ago_ms, from, to, cause } in link.transitions.iter().take(shown) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:>9} ago  {from:>7} -> {to:<7}  {cause}", ago(*ago_ms));
    }
    text
}

fn details(link: &LinkReply) -> String {
    let time = |us: Option<u64>| us.map_or_else(dash, micros);
    let size = |bytes: Option<u32>| bytes.map_or_else(dash, |bytes| bytes.to_string());
    let mut how: Vec<_> = link.path_mtu_how.iter().cloned().collect();
    how.extend(link.path_mtu_age_s.map(|age| format!("for {}", duration(age))));
    how.extend(link.searching.then(|| "searching".to_owned()));
    let how = if how.is_empty() { String::new() } else { format!(" ({})", how.join(", ")) };
    let skew = link.skew_us.map_or_else(dash, |us| format!("{us}us"));
    [
        format!("from {} to {}", link.local, link.remote),
        format!("priority {}, weight {}", link.priority, link.weight),
        format!(
            "path MTU {}{how}, UDP payload {}, uplink MTU {}",
            size(link.path_mtu),
            link.max_udp_payload,
            size(link.uplink_mtu)
        ),
        format!(
            "heartbeat every {}; round trip min {}, p50 {}, p99 {}, p99.9 {}; skew {skew}",
            time(link.interval_us),
            time(link.rtt_min_us),
            time(link.rtt_p50_us),
            time(link.rtt_p99_us),
            time(link.rtt_p999_us)
        ),
        format!(
            "received {} datagrams, {} of them copies; sent {}, and again {}",
            link.rx_datagrams, link.copies, link.tx_datagrams, link.resent
        ),
    ]
    .map(|line| format!("  {line}\n"))
    .concat()
}

/// At most `width` characters; `..` stands for what is left out.
pub(super) fn elided(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(2)).collect();
    format!("{kept}..")
}

/// `9999us`, `9999ms`, `10s`: at most four digits for what a network can take.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..10_000 => format!("{us}us"),
        10_000..10_000_000 => format!("{}ms", us / 1_000),
        _ => format!("{}s", us / 1_000_000),
    }
}

/// `12ms`, `1.5s`, `3m 4s`.
fn ago(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms / 100 % 10),
        _ => duration(ms / 1_000),
    }
}

/// Millionths as a percentage, without its sign.
fn percent(ppm: Option<u32>) -> String {
    ppm.map_or_else(dash, |ppm| match ppm {
        0 => "0".to_owned(),
        // Not nothing, so not shown as nothing.
        1..100 => "<0.01".to_owned(),
        _ => format!("{:.2}", f64::from(ppm) / 10_000.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> LinkReply {
        LinkReply {
            node: 2,
            peer: "beta".into(),
            name: "lan".into(),
            local: "192.0.2.1:26026".into(),
            remote: "192.0.2.2:26026".into(),
            state: "up".into(),
            sending: true,
            path_mtu: Some(1500),
            rtt_us: Some(210),
            rtt_p99_us: Some(12_345),
            jitter_us: Some(9),
            loss_rx_ppm: Some(0),
            loss_tx_ppm: Some(10_000),
            ..LinkReply::default()
        }
    }

    fn change(ago_ms: u64) -> TransitionReply {
        TransitionReply {
            ago_ms,
            from: "up".into(),
            to: "suspect".into(),
            cause: format!("{ago_ms} rounds behind link wan"),
        }
    }

    #[test]
    fn a_link_is_one_row() {
        let expected = "\
PEER  #  LINK  STATE  USE      REMOTE           MTU   RTT    P99   JITTER  LOSS RX/TX  RX   TX
beta  0  lan   up     sending  192.0.2.2:26026  1500  210us  12ms  9us     0/1.00%     0 B  0 B
";
        assert_eq!(text(&[link()], false), expected);
        assert!(text(&[], false).starts_with("no links"));
        let bare = LinkReply { peer: "beta".into(), state: "up".into(), ..LinkReply::default() };
        let shown = text(&[bare], true);
        assert!(
            shown.contains("beta  0  0     up     standby          -    -    -    -       -  ")
        );
        assert!(shown.contains("\nbeta 0: up\n"), "{shown}");
        let usages = [(true, true), (false, true), (false, false)]
            .map(|(sending, drained)| usage(&LinkReply { sending, drained, ..link() }));
        assert_eq!(usages, ["draining", "drained", "standby"]);
    }

    #[test]
    fn the_table_fits_whatever_is_in_it() {
        let full = LinkReply {
            peer: "p".repeat(63),
            name: "l".repeat(63),
            index: 7,
            state: "suspect".into(),
            drained: true,
            remote: "[2001:db8:1111:2222:3333:4444:5555:6666]:26026".into(),
            path_mtu: Some(65_535),
            searching: true,
            rtt_us: Some(9_999_999),
            rtt_p99_us: Some(9_999_999),
            jitter_us: Some(9_999_999),
            loss_rx_ppm: Some(1_000_000),
            loss_tx_ppm: Some(1_000_000),
            rx_bytes: (1 << 30) - 1,
            tx_bytes: (1 << 30) - 1,
            ..link()
        };
        let table = text(&[full, link()], false);
        let table: Vec<_> = table.lines().take(3).collect();
        assert!(table.iter().all(|line| line.chars().count() <= MAX_WIDTH), "{table:#?}");
        let header = table[0].find("REMOTE").unwrap();
        assert!(table[1][header..].starts_with("[2001:db"), "{table:#?}");
        assert!(table[2][header..].starts_with("192.0.2"), "{table:#?}");
    }

    #[test]
    fn changes_are_below_the_table() {
        let well = text(&[link()], false);
        assert_eq!(well.lines().count(), 2, "{well}");
        let transitions: Vec<_> = (1..=16).map(|n| change(n * 1_000)).collect();
        let ill = LinkReply {
            state: "down".into(),
            reason: Some("no carrier".into()),
            transitions,
            ..link()
        };
        let short = text(&[link(), ill.clone()], false);
        assert!(short.contains("\n\nbeta lan: down; no carrier\n"), "{short}");
        assert!(short.contains("1.0s ago       up -> suspect  1000 rounds behind"), "{short}");
        assert_eq!(short.matches("->").count(), 3, "{short}");
        let long = text(&[ill], true);
        assert_eq!(long.matches("->").count(), 16, "{long}");
        assert!(long.contains("  from 192.0.2.1:26026 to 192.0.2.2:26026\n"), "{long}");
        assert!(text(&[link()], true).contains("path MTU 1500, UDP payload 0"), "{long}");
    }

    #[test]
    fn quantities_are_short() {
        let times = [9_999, 10_000, 9_999_999, 10_000_000].map(micros);
        assert_eq!(times, ["9999us", "10ms", "9999ms", "10s"]);
        assert_eq!([999, 1_549, 61_000].map(ago), ["999ms", "1.5s", "1m 1s"]);
        let losses = [None, Some(0), Some(1), Some(100), Some(123_456)].map(percent);
        assert_eq!(losses, ["-", "0", "<0.01", "0.01", "12.35"]);
        assert_eq!([elided("lan", 3), elided("lane", 3)], ["lan", "l.."]);
    }
}
