//! The scenario `channels`: messages and streams of programs, beside other ways to have them.
//!
//! ```text
//!  messages:  program -> tapd ---- wire ---- tapd -> program
//!             program with libknet - wire -  program with libknet
//!  streams:   the same, beside TCP through tapd's tap and a QUIC stream of quinn
//!  fairness:  a stream and a TCP flow of the kernel leave by one bottleneck
//! ```
//!
//! All of them are on the `wire` of the other scenarios: a veth pair without segmentation offload.
//! TCP is CUBIC, as are the streams of tapd and quinn. A flood is counted where it arrives.

mod fairness;
mod knet;
mod programs;
mod quic;
mod tapd;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use self::fairness::{Plan, Spans};
use self::knet::Knet;
use self::programs::{Program, Scratch, number};
use self::quic::Quinn;
use self::tapd::Nodes;
use super::figures::{self, Bar, Contestant, Quantity};
use super::report::Row;
use super::rivals::Need;
use crate::command::built_binary;
use crate::stats::machine_busy_seconds;
use crate::topology::{Family, Offloads, Pair};
use crate::traffic::{IperfRun, IperfServer, RunningIperf, start_iperf_with};

/// Bytes of a message.
const MESSAGE: usize = 64;
/// Port of a TCP flow that is measured like a stream.
const TCP_PORT: u16 = 25920;

/// What the scenario needs beyond tapd.
#[must_use]
pub fn needs() -> Vec<Need> {
    knet::NEEDS.into_iter().chain(knet::BENCH_NEEDS).chain(quic::NEEDS).collect()
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Sealed,
    Clear,
    KnetSealed,
    KnetClear,
    BenchSealed,
    BenchClear,
    Tcp,
    Quinn,
    TcpInTap,
}

impl Contestant for Who {
    fn name(self) -> &'static str {
        match self {
            Self::Sealed => "tapd-sealed",
            Self::Clear => "tapd-clear",
            Self::KnetSealed => "libknet-aes256-sha256",
            Self::KnetClear => "libknet-clear",
            Self::BenchSealed => "knet_bench-aes256-sha256",
            Self::BenchClear => "knet_bench-clear",
            Self::Tcp => "tcp",
            Self::Quinn => "quinn",
            Self::TcpInTap => "tcp-in-tapd-sealed",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    PingP50,
    PingP99,
    PingLost,
    OneWay,
    OneWayLost,
    StreamGbps,
    StreamCpuSecondsPerGb,
    /// At the bottleneck.
    BesideTcp,
    /// What the TCP flow beside it got.
    LeftToTcp,
    /// The first over the second, where the first was there before the second.
    ShareFirst,
    /// The same where it came later.
    ShareSecond,
}

impl Quantity for What {
    fn name(self) -> &'static str {
        match self {
            Self::PingP50 => "message_pingpong_p50_us",
            Self::PingP99 => "message_pingpong_p99_us",
            Self::PingLost => "message_pingpong_lost",
            Self::OneWay => "message_one_way_kps",
            Self::OneWayLost => "message_one_way_lost",
            Self::StreamGbps => "stream_gbps",
            Self::StreamCpuSecondsPerGb => "stream_cpu_s_per_gb",
            Self::BesideTcp => "beside_tcp_mbps",
            Self::LeftToTcp => "left_to_tcp_mbps",
            Self::ShareFirst => "share_beside_tcp_as_first",
            Self::ShareSecond => "share_beside_tcp_as_second",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::PingP50 | Self::PingP99 => "us",
            Self::OneWay => "kmessages/s",
            Self::PingLost | Self::OneWayLost => "%",
            Self::StreamGbps => "Gbit/s",
            Self::StreamCpuSecondsPerGb => "s/GB",
            Self::BesideTcp | Self::LeftToTcp => "Mbit/s",
            Self::ShareFirst | Self::ShareSecond => "of the TCP flow",
        }
    }
}

type Goal = figures::Goal<Who, What>;
type Figures = figures::Figures<Who, What>;

const GOALS: [Goal; 12] = [
    goal(Who::Sealed, Who::KnetSealed, What::PingP50, Bar::AtMost(0.5)),
    goal(Who::Sealed, Who::KnetSealed, What::PingP99, Bar::None),
    goal(Who::Sealed, Who::KnetSealed, What::OneWay, Bar::AtLeast(3.0)),
    goal(Who::Clear, Who::KnetClear, What::PingP50, Bar::None),
    goal(Who::Clear, Who::KnetClear, What::PingP99, Bar::None),
    goal(Who::Clear, Who::KnetClear, What::OneWay, Bar::None),
    goal(Who::Sealed, Who::BenchSealed, What::OneWay, Bar::None),
    goal(Who::Clear, Who::BenchClear, What::OneWay, Bar::None),
    goal(Who::Sealed, Who::TcpInTap, What::StreamGbps, Bar::AtLeast(0.8)),
    goal(Who::Sealed, Who::Quinn, What::StreamGbps, Bar::AtLeast(0.9)),
    goal(Who::Sealed, Who::Tcp, What::ShareFirst, Bar::None),
    goal(Who::Sealed, Who::Tcp, What::ShareSecond, Bar::None),
];

const fn goal(who: Who, rival: Who, what: What, bar: Bar) -> Goal {
    Goal { name: "channel", who, rival, what, bar }
}

/// One of the two hosts, for libknet.
#[derive(Debug, Clone, Copy)]
enum Ends {
    Near,
    Far,
}

impl Ends {
    fn id(self) -> &'static str {
        match self {
            Self::Near => "1",
            Self::Far => "2",
        }
    }

    fn own(self, pair: &Pair) -> IpAddr {
        pair.family.address(if matches!(self, Self::Near) { 1 } else { 2 })
    }

    fn other(self, pair: &Pair) -> IpAddr {
        pair.family.address(if matches!(self, Self::Near) { 2 } else { 1 })
    }
}

/// What a run has at hand; what cannot be had was said aloud.
struct Place {
    pair: Pair,
    scratch: Scratch,
    sealed: Option<Nodes>,
    clear: Option<Nodes>,
    knet: Option<Knet>,
    quinn: Option<Quinn>,
    _iperf: IperfServer,
}

/// A stream under way, the sender first; its seconds are those of the receiver.
type Stream = [Program; 2];

impl Place {
    fn new() -> Result<Self> {
        let pair = Pair::new(Family::V4, 1500)?;
        pair.set_offloads(Offloads::Wire)?;
        Ok(Self {
            scratch: Scratch::new()?,
            sealed: aloud("tapd-sealed", Nodes::start(&pair, true)),
            clear: aloud("tapd-clear", Nodes::start(&pair, false)),
            knet: aloud("libknet", Knet::build()),
            quinn: aloud("quinn", Quinn::find()),
            _iperf: IperfServer::start(&pair.beta)?,
            pair,
        })
    }

    /// Starts a stream; none if there is no such contender here.
    fn stream(&self, who: Who, span: Duration) -> Option<Result<Stream>> {
        Some(match who {
            Who::Sealed => self.sealed.as_ref()?.stream(span),
            Who::Clear => self.clear.as_ref()?.stream(span),
            Who::Quinn => self.quinn.as_ref()?.start(&self.pair, span),
            Who::Tcp => tcp(&self.pair, &self.scratch, TCP_PORT, span),
            _ => return None,
        })
    }

    fn iperf(&self, to: IpAddr, span: Duration) -> Result<RunningIperf> {
        let seconds = span.as_secs_f64().ceil() as u32;
        let run = IperfRun { seconds, streams: 1, reverse: false, udp: None };
        start_iperf_with(&self.pair.alpha, to, run, &["-C", "cubic"])
    }

    fn messages(&self, figures: &mut Figures, span: Duration) {
        for (who, nodes) in [(Who::Sealed, &self.sealed), (Who::Clear, &self.clear)] {
            add(figures, who, nodes.as_ref().map(|nodes| nodes.messages(span)));
        }
        for (who, sealed) in [(Who::KnetSealed, true), (Who::KnetClear, false)] {
            let values = self.knet.as_ref().map(|knet| knet.messages(&self.pair, sealed, span));
            add(figures, who, values);
        }
        for (who, sealed) in [(Who::BenchSealed, true), (Who::BenchClear, false)] {
            let values = self.knet.as_ref().map(|knet| knet.bench(&self.pair, sealed, span));
            add(figures, who, values);
        }
    }

    fn streams(&self, figures: &mut Figures, span: Duration) {
        for who in [Who::Sealed, Who::Clear, Who::Quinn, Who::Tcp] {
            let measure = || {
                let busy = machine_busy_seconds()?;
                let Some(stream) = self.stream(who, span) else { return Ok(None) };
                let (bytes, seconds) = end_of(stream?, span)?;
                Ok(Some(of_stream(bytes, seconds, machine_busy_seconds()? - busy)))
            };
            add(figures, who, measure().transpose());
        }
        let Some(nodes) = &self.sealed else { return };
        let measure = || {
            let busy = machine_busy_seconds()?;
            let report = self.iperf(nodes.overlay(), span)?.finish()?;
            let seconds = report.bytes * 8.0 / report.bits_per_second;
            Ok(of_stream(report.bytes, seconds, machine_busy_seconds()? - busy))
        };
        add(figures, Who::TcpInTap, Some(measure()));
    }
}

/// A TCP flow that is measured as streams are, with its sink at `port` of the second host.
fn tcp(pair: &Pair, scratch: &Scratch, port: u16, span: Duration) -> Result<Stream> {
    let address = format!("{}:{port}", pair.family.address(2));
    let mut command = pair.beta.command(built_binary("channel-traffic")?);
    command.args(["tcp-sink", &address]);
    let mut sink = Program::start(scratch, &format!("sink{port}"), &mut command)?;
    sink.wait_up()?;
    let mut command = pair.alpha.command(built_binary("channel-traffic")?);
    command.args(["tcp-source", &address, &format!("--seconds={}", span.as_secs_f64())]);
    Ok([Program::start(scratch, &format!("source{port}"), &mut command)?, sink])
}

/// What could be had; else says aloud what could not.
fn aloud<T>(who: &str, got: Result<T>) -> Option<T> {
    match got {
        Ok(got) => Some(got),
        Err(error) => {
            super::progress("");
            eprintln!("*** SKIPPED *** {who} in channels: {error:#}");
            None
        }
    }
}

/// Adds the values of a round; says aloud why there are none, unless nobody was there.
fn add(figures: &mut Figures, who: Who, values: Option<Result<Vec<(What, f64)>>>) {
    match values {
        Some(Ok(values)) => figures.add(who, &values),
        Some(Err(error)) => {
            super::progress("");
            eprintln!("*** FAILED *** {} in channels: {error:#}", who.name());
        }
        None => {}
    }
}

/// What a ping program says.
fn of_ping(said: &Value) -> Result<Vec<(What, f64)>> {
    let (count, lost) = (number(said, "count")?, number(said, "lost")?);
    Ok(vec![
        (What::PingP50, number(said, "p50_us")?),
        (What::PingP99, number(said, "p99_us")?),
        (What::PingLost, 100.0 * lost / (count + lost).max(1.0)),
    ])
}

/// What the two ends of a flood say.
fn of_flood(sent: &Value, received: &Value) -> Result<Vec<(What, f64)>> {
    let (sent, count) = (number(sent, "count")?, number(received, "count")?);
    let seconds = number(received, "seconds")?;
    ensure!(seconds > 0.0 && sent > 0.0, "next to nothing of a flood arrived");
    let lost = 100.0 * (sent - count).max(0.0) / sent;
    Ok(vec![(What::OneWay, count / seconds / 1e3), (What::OneWayLost, lost)])
}

fn of_stream(bytes: f64, seconds: f64, busy: f64) -> Vec<(What, f64)> {
    vec![
        (What::StreamGbps, bytes * 8e-9 / seconds),
        (What::StreamCpuSecondsPerGb, busy / (bytes / 1e9)),
    ]
}

/// Bytes, and the seconds that they took, where they arrived.
fn end_of([source, sink]: Stream, span: Duration) -> Result<(f64, f64)> {
    let said = sink.finish(span)?;
    source.finish(span)?;
    let (bytes, seconds) = (number(&said, "bytes")?, number(&said, "seconds")?);
    ensure!(bytes > 0.0 && seconds > 0.0, "nothing of a stream arrived");
    Ok((bytes, seconds))
}

/// Measures everything, prints the table and the bars, gives the rows.
///
/// # Errors
/// tapd itself does not work here; rivals that do not are skipped aloud.
pub fn run(rounds: u32, quick: bool) -> Result<Vec<Row>> {
    let messages = Duration::from_secs(if quick { 1 } else { 3 });
    let streams = Duration::from_secs(if quick { 2 } else { 10 });
    let (settle, count) = if quick { (10, 15) } else { (30, 40) };
    let fair = Plan {
        both: !quick,
        spans: Spans { settle: Duration::from_secs(settle), count: Duration::from_secs(count) },
    };
    let budget = Duration::from_secs(if quick { 160 } else { 3600 });
    let start = Instant::now();
    let place = Place::new()?;
    let mut figures = Figures::new();
    for round in 0..rounds {
        if round > 0 && start.elapsed() * (round + 1) / round > budget {
            eprintln!("channels: {round} rounds, for lack of time");
            break;
        }
        super::progress(&format!("channels round {}/{rounds}", round + 1));
        place.messages(&mut figures, messages);
        place.streams(&mut figures, streams);
        fairness::measure(&mut figures, place.quinn.as_ref(), fair, round)?;
    }
    super::progress("");
    print!("{}{}", figures.table("channels"), figures.bars(&GOALS));
    ensure!(place.sealed.is_some() && place.clear.is_some(), "tapd has no channels here");
    Ok(figures.rows("channels", &GOALS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_programs_say_becomes_figures() {
        let ping = of_ping(&json(r#"{"count":99,"lost":1,"p50_us":40.5,"p99_us":80}"#)).unwrap();
        assert_eq!(ping, [(What::PingP50, 40.5), (What::PingP99, 80.0), (What::PingLost, 1.0)]);
        let flood = |received| of_flood(&json(r#"{"count":4000,"seconds":1}"#), &json(received));
        let values = flood(r#"{"count":3000,"seconds":2}"#).unwrap();
        assert_eq!(values, [(What::OneWay, 1.5), (What::OneWayLost, 25.0)]);
        assert!(flood(r#"{"count":1,"seconds":0}"#).is_err());
        let stream = of_stream(2e9, 4.0, 3.0);
        assert_eq!(stream, [(What::StreamGbps, 4.0), (What::StreamCpuSecondsPerGb, 1.5)]);
    }
}
