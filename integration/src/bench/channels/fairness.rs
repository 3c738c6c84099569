//! A stream and a TCP flow of the kernel share a bottleneck.
//!
//! ```text
//!  alpha             middle                                  beta
//!  under0 o==veth==o near -- relay, 10 ms each way -- far o==veth==o under0
//!                                      100 Mbit/s behind a queue    what arrives is counted
//! ```
//!
//! The bottleneck is not the interface of the host that sends: there the kernel's TCP, which knows
//! how much of its own is queued, holds back, and whatever else leaves takes the queue. Nor is the
//! queue all of the distance, or who has more of it has all of the line.
//!
//! The flow that is there first is ahead of the other one for tens of seconds, as CUBIC takes several
//! losses to give way. So the beginning is not counted, and each of the two begins first once. What
//! two TCP flows make of it says how far the figures can be trusted.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::programs::{Program, Scratch};
use super::quic::{self, Quinn};
use super::tapd::Nodes;
use super::{Figures, Stream, What, Who, add, tcp};
use crate::netns::{Netns, VethEnd, veth_pair, with_prefix};
use crate::relay::Relay;
use crate::topology::{Family, Offloads, Pair, UNDERLAY};

/// One way, without the queue.
const DELAY: Duration = Duration::from_millis(10);
/// 100 Mbit/s, a burst of a few packets, and a queue of 20 ms: all that is on its way without one.
const BOTTLENECK: [&str; 7] = ["tbf", "rate", "100mbit", "burst", "16kb", "latency", "20ms"];
/// So much later than the first the second flow begins: the first has filled the queue by then.
const HEAD_START: Duration = Duration::from_secs(2);
/// Ports of the TCP flow that is in the place of the stream, and of the one that is beside it.
const TCP_PORTS: [u16; 2] = [25921, 25922];
/// A flow would go on for so much longer than it is looked at: it must not end while it is.
const MARGIN: Duration = Duration::from_secs(60);
/// With less of the bottleneck in use, bits a second, something else was one: a machine that is too
/// busy to carry the packets.
const FULL: f64 = 85e6;
/// Of the counters at beta.
const TABLE: [&str; 2] = ["netdev", "fairness"];

/// For how long flows are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    /// Not counted, after both have begun.
    pub(super) settle: Duration,
    /// Counted.
    pub(super) count: Duration,
}

/// Who begins first.
#[derive(Debug, Clone, Copy)]
enum First {
    /// The stream that is looked at.
    Stream,
    /// The TCP flow beside it.
    Tcp,
}

/// The two hosts, the bottleneck between them, and the counters.
struct Line {
    // Dropped before its namespace.
    _relay: Relay,
    _middle: Netns,
    pair: Pair,
    scratch: Scratch,
}

impl Line {
    fn new() -> Result<Self> {
        let (alpha, beta) = (Netns::new("alpha")?, Netns::new("beta")?);
        let middle = Netns::new("middle")?;
        let family = Family::V4;
        for (host, port, number) in [(&alpha, "near", 1), (&beta, "far", 2)] {
            let end = VethEnd { netns: host, name: UNDERLAY };
            veth_pair(end, VethEnd { netns: &middle, name: port }, 1500)?;
            Offloads::Bare.apply(host, UNDERLAY)?;
            host.add_address(UNDERLAY, &with_prefix(family.address(number)))?;
        }
        let place = ["qdisc", "add", "dev", "far", "root"];
        middle.run("tc", &[&place, &BOTTLENECK[..]].concat())?;
        let relay = Relay::start(&middle, "near", "far", 1)?;
        for way in relay.both() {
            way.set_delay(DELAY, Duration::ZERO);
        }
        let pair = Pair { alpha: alpha.into(), beta: beta.into(), family };
        Ok(Self { _relay: relay, _middle: middle, pair, scratch: Scratch::new()? })
    }

    /// Counts what arrives at these ports from now on.
    fn count(&self, ports: [u16; 2]) -> Result<()> {
        let table = TABLE.join(" ");
        let mut script = format!(
            "add table {table}; delete table {table}; add table {table}; add chain {table} arrivals \
             {{ type filter hook ingress device \"{UNDERLAY}\" priority 0; policy accept; }};"
        );
        for port in ports {
            script += &format!(
                " add counter {table} port{port}; add rule {table} arrivals meta l4proto \
                 {{ tcp, udp }} th dport {port} counter name port{port};"
            );
        }
        self.pair.beta.run("nft", &[&script]).map(|_| ())
    }

    /// Bytes that arrived at `ports`, with their headers of IP and above.
    fn arrived(&self, ports: [u16; 2]) -> Result<[f64; 2]> {
        let listing = [&["-j", "list", "counters", "table"], &TABLE[..]].concat();
        let said = self.pair.beta.run("nft", &listing)?;
        let said: Value = serde_json::from_str(&said)?;
        Ok([bytes_of(&said, ports[0])?, bytes_of(&said, ports[1])?])
    }

    /// Bits a second of `stream` and of a TCP flow beside it.
    fn share(&self, stream: &Flow<'_>, first: First, spans: Spans) -> Result<[f64; 2]> {
        let beside = Flow::Tcp(TCP_PORTS[1]);
        let ports = [stream.port(), beside.port()];
        let [before, after] = match first {
            First::Stream => [stream, &beside],
            First::Tcp => [&beside, stream],
        };
        // Longer than it is looked at: the programs are ended before.
        let long = spans.settle + spans.count + MARGIN;
        self.count(ports)?;
        let mut programs = before.start(self, long)?.into_iter().collect::<Vec<_>>();
        sleep(HEAD_START);
        programs.extend(after.start(self, long)?);
        sleep(spans.settle);
        let (before, start) = (self.arrived(ports)?, Instant::now());
        sleep(spans.count);
        let (after, seconds) = (self.arrived(ports)?, start.elapsed().as_secs_f64());
        programs.iter_mut().try_for_each(Program::still_runs)?;
        Ok([0, 1].map(|flow| (after[flow] - before[flow]) * 8.0 / seconds))
    }
}

/// A flow that can be begun.
enum Flow<'a> {
    /// Of a channel. What a tapd learnt of the line in an earlier flow would be a head start of its
    /// own, so these two are new.
    Channel(Box<Nodes>),
    Quinn(&'a Quinn),
    /// To this port.
    Tcp(u16),
}

impl Flow<'_> {
    /// Where its packets go.
    fn port(&self) -> u16 {
        match self {
            Self::Channel(nodes) => nodes.port(),
            Self::Quinn(_) => quic::PORT,
            Self::Tcp(port) => *port,
        }
    }

    fn start(&self, line: &Line, span: Duration) -> Result<Stream> {
        match self {
            Self::Channel(nodes) => nodes.stream(span),
            Self::Quinn(quinn) => quinn.start(&line.pair, span),
            Self::Tcp(port) => tcp(&line.pair, &line.scratch, *port, span),
        }
    }
}

/// Bytes of the counter of a port in what nft says.
fn bytes_of(said: &Value, port: u16) -> Result<f64> {
    let name = format!("port{port}");
    let counters = said["nftables"].as_array().into_iter().flatten();
    let mut counters = counters.map(|entry| &entry["counter"]);
    let counter = counters.find(|counter| counter["name"] == name.as_str());
    let bytes = counter.and_then(|counter| counter["bytes"].as_f64());
    bytes.with_context(|| format!("no {name} in {said}"))
}

/// What a round looks at: in which order flows begin, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Both orders; else one, in turns.
    pub(super) both: bool,
    pub(super) spans: Spans,
}

/// One round: each contender beside a TCP flow.
///
/// # Errors
/// There is no such line to be had here.
pub(super) fn measure(
    figures: &mut Figures,
    quinn: Option<&Quinn>,
    plan: Plan,
    round: u32,
) -> Result<()> {
    let line = Line::new()?;
    let orders = [(First::Stream, What::ShareFirst), (First::Tcp, What::ShareSecond)];
    for (number, (first, what)) in (0..).zip(orders) {
        if !plan.both && round % 2 != number {
            continue;
        }
        for who in [Who::Sealed, Who::Tcp, Who::Quinn] {
            let flow = match (who, quinn) {
                (Who::Tcp, _) => Ok(Flow::Tcp(TCP_PORTS[0])),
                (Who::Quinn, Some(quinn)) => Ok(Flow::Quinn(quinn)),
                (Who::Quinn, None) => continue,
                _ => Nodes::start(&line.pair, true).map(|nodes| Flow::Channel(nodes.into())),
            };
            let rates = flow.and_then(|flow| line.share(&flow, first, plan.spans));
            add(figures, who, Some(rates.and_then(|rates| of_share(rates, what))));
        }
    }
    Ok(())
}

/// Bits a second of a stream and of the TCP flow beside it.
fn of_share([own, other]: [f64; 2], what: What) -> Result<Vec<(What, f64)>> {
    ensure!(own > 0.0 && other > 0.0, "one of two flows got nothing");
    ensure!(
        own + other >= FULL,
        "the machine is too busy: {:.0} Mbit/s at a bottleneck of 100",
        (own + other) / 1e6
    );
    Ok(vec![(What::BesideTcp, own / 1e6), (What::LeftToTcp, other / 1e6), (what, own / other)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_port() {
        let said = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1"}},
            {"counter": {"name": "port80", "packets": 1, "bytes": 60}},
            {"counter": {"name": "port81", "packets": 3, "bytes": 180}},
        ]});
        assert_eq!(bytes_of(&said, 81).unwrap(), 180.0);
        assert!(bytes_of(&said, 82).is_err());
    }

    #[test]
    fn a_line_that_was_not_full_says_nothing_of_shares() {
        let values = of_share([60e6, 30e6], What::ShareFirst).unwrap();
        let wanted = [(What::BesideTcp, 60.0), (What::LeftToTcp, 30.0), (What::ShareFirst, 2.0)];
        assert_eq!(values, wanted);
        assert!(of_share([40e6, 40e6], What::ShareFirst).is_err());
        assert!(of_share([95e6, 0.0], What::ShareFirst).is_err());
    }
}
