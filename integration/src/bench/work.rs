//! What the contenders have to do, and how it is measured.

use std::fs::File;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::contender::{Contender, Overlay};
use super::metric::Metric;
use super::tapd::Variant;
use crate::load::rate::{self, MAX_FLOWS, Search};
use crate::load::{Place, UdpPath, pingpong};
use crate::netns;
use crate::stats::machine_busy_seconds;
use crate::topology::Pair;
use crate::traffic::{IperfReport, IperfRun, IperfServer, iperf, start_iperf};

/// Loss that counts as none in the frames-per-second search.
const MAX_LOSS: f64 = 0.001;
/// Payload of the latency measurement in bytes.
const PINGPONG_PAYLOAD: usize = 64;
/// The cost of a frame is measured at this share of the highest rate, where nothing is lost.
const COST_RATE: f64 = 0.9;
/// How long at least: /proc/stat counts in steps of 10 ms.
const COST_SPAN: Duration = Duration::from_millis(400);
/// A TCP stream has all it gets after so long.
const LOAD_START: Duration = Duration::from_millis(400);

/// How long the measurements take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Seconds of one TCP run.
    pub tcp_seconds: u32,
    /// One trial of the frames-per-second search.
    pub udp_trial: Duration,
    /// The whole search.
    pub udp_budget: Duration,
    /// The latency measurement.
    pub pingpong: Duration,
    /// The latency measurement under load; none leaves it out.
    pub pingload: Option<Duration>,
    /// One part that is not made with iperf3.
    pub part: Duration,
}

impl Pace {
    /// For a look.
    pub const QUICK: Self = Self {
        tcp_seconds: 1,
        udp_trial: Duration::from_millis(120),
        udp_budget: Duration::from_millis(900),
        pingpong: Duration::from_millis(250),
        pingload: None,
        part: Duration::from_millis(500),
    };
    /// For figures.
    pub const FULL: Self = Self {
        tcp_seconds: 3,
        udp_trial: Duration::from_millis(400),
        udp_budget: Duration::from_secs(4),
        pingpong: Duration::from_secs(1),
        pingload: Some(Duration::from_secs(1)),
        part: Duration::from_secs(2),
    };
}

/// A piece of work; it yields one or more metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One TCP stream.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// Small datagrams.
    Udp64,
    /// Small datagrams of four flows.
    Udp64x4,
    /// Large datagrams.
    Udp1400,
    /// One datagram at a time.
    PingPong,
    /// The same beside a TCP stream.
    PingLoad,
}

/// The iperf3 server and the namespaces' handles, shared by all contenders.
#[derive(Debug)]
pub struct Servers {
    pub(super) alpha: File,
    pub(super) beta: File,
    _iperf: IperfServer,
}

impl Servers {
    /// Starts what the work needs on the second host.
    ///
    /// # Errors
    /// iperf3 cannot be run.
    pub fn start(pair: &Pair) -> Result<Self> {
        let (alpha, beta) = (netns::open(pair.alpha.name())?, netns::open(pair.beta.name())?);
        Ok(Self { alpha, beta, _iperf: IperfServer::start(&pair.beta)? })
    }
}

impl Work {
    /// All of it, in the order it is done.
    pub const ALL: [Self; 7] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Udp64,
        Self::Udp64x4,
        Self::Udp1400,
        Self::PingPong,
        Self::PingLoad,
    ];

    /// For the progress line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Udp64 => "udp64",
            Self::Udp64x4 => "udp64x4",
            Self::Udp1400 => "udp1400",
            Self::PingPong => "pingpong",
            Self::PingLoad => "pingload",
        }
    }

    /// Whether `contender` does it: several flows are for the comparison of one worker with two
    /// (`scaling`), and two workers are for nothing else.
    #[must_use]
    pub fn is_for(self, contender: Contender, pace: Pace, scaling: bool) -> bool {
        let two_workers = contender == Contender::Tapd(Variant::Sealed2Workers);
        match self {
            Self::Udp64x4 => {
                scaling
                    && (two_workers || [Contender::RIVAL, Contender::SEALED].contains(&contender))
            }
            Self::Tcp4 => true,
            Self::PingLoad => pace.pingload.is_some() && !two_workers,
            _ => !two_workers,
        }
    }

    /// Does the work once over `overlay`.
    ///
    /// # Errors
    /// A program failed or nothing got through.
    pub fn measure(
        self,
        pair: &Pair,
        servers: &Servers,
        overlay: &Overlay,
        pace: Pace,
    ) -> Result<Vec<(Metric, f64)>> {
        let over = || path(servers, overlay);
        Ok(match self {
            Self::Tcp1 => {
                let (rate, cost) = tcp(pair, overlay, pace, 1)?;
                vec![(Metric::Tcp1Gbps, rate), (Metric::Tcp1CpuSecondsPerGb, cost)]
            }
            Self::Tcp4 => {
                let (rate, cost) = tcp(pair, overlay, pace, 4)?;
                vec![(Metric::Tcp4Gbps, rate), (Metric::Tcp4CpuSecondsPerGb, cost)]
            }
            Self::Udp64 => {
                let path = over()?;
                let rate = search(std::slice::from_ref(&path), pace, 64)?;
                let mut metrics = vec![(Metric::Udp64Kfps, rate / 1e3)];
                let cost = frame_cost(&path, rate, pace)?;
                metrics.extend(cost.map(|cost| (Metric::Udp64CpuSecondsPerMframe, cost)));
                metrics
            }
            Self::Udp64x4 => {
                let paths = (0..MAX_FLOWS).map(|_| over()).collect::<Result<Vec<_>>>()?;
                vec![(Metric::Udp64x4Kfps, search(&paths, pace, 64)? / 1e3)]
            }
            Self::Udp1400 => vec![(Metric::Udp1400Kfps, search(&[over()?], pace, 1400)? / 1e3)],
            Self::PingPong => {
                let trips = pingpong::measure(&over()?, PINGPONG_PAYLOAD, pace.pingpong)?;
                vec![
                    (Metric::PingpongP50, trips.p50_us),
                    (Metric::PingpongP99, trips.p99_us),
                    (Metric::PingpongP999, trips.p999_us),
                ]
            }
            Self::PingLoad => {
                let span = pace.pingload.unwrap_or(pace.pingpong);
                let seconds = (LOAD_START + span).as_secs() as u32 + 1;
                let run = IperfRun { seconds, streams: 1, reverse: false, udp: None };
                let load = start_iperf(&pair.alpha, overlay.beta, run)?;
                // Not a condition that could be awaited: TCP does not say when it is at its best.
                std::thread::sleep(LOAD_START);
                let trips = pingpong::measure(&over()?, PINGPONG_PAYLOAD, span)?;
                load.finish()?;
                vec![(Metric::PingloadP50, trips.p50_us), (Metric::PingloadP99, trips.p99_us)]
            }
        })
    }
}

/// Gbit/s, and busy seconds of the machine for 10^9 bytes.
fn tcp(pair: &Pair, overlay: &Overlay, pace: Pace, streams: u32) -> Result<(f64, f64)> {
    let (report, cost) = timed_tcp(pair, overlay.beta, pace.tcp_seconds, streams)?;
    Ok((report.bits_per_second / 1e9, cost))
}

/// A TCP run from the first host to `to`, and busy seconds of the machine for 10^9 bytes of it.
pub(super) fn timed_tcp(
    pair: &Pair,
    to: std::net::IpAddr,
    seconds: u32,
    streams: u32,
) -> Result<(IperfReport, f64)> {
    let run = IperfRun { seconds, streams, reverse: false, udp: None };
    let busy = machine_busy_seconds()?;
    let report = iperf(&pair.alpha, to, run)?;
    let busy = machine_busy_seconds()? - busy;
    ensure!(report.bytes > 0.0, "no byte got through to {to}");
    Ok((report, busy / (report.bytes / 1e9)))
}

fn path(servers: &Servers, overlay: &Overlay) -> Result<UdpPath> {
    UdpPath::open(
        &Place { netns: &servers.alpha, address: overlay.alpha },
        &Place { netns: &servers.beta, address: overlay.beta },
    )
}

/// Datagrams per second.
fn search(paths: &[UdpPath], pace: Pace, payload: usize) -> Result<f64> {
    let search =
        Search { payload, max_loss: MAX_LOSS, trial: pace.udp_trial, budget: pace.udp_budget };
    Ok(rate::search_flows(paths, search)?.rate)
}

/// Busy seconds of the machine for a million datagrams of 64 bytes, if any rate was found.
fn frame_cost(path: &UdpPath, rate: f64, pace: Pace) -> Result<Option<f64>> {
    if rate <= 0.0 {
        return Ok(None);
    }
    let busy = machine_busy_seconds()?;
    let trial = rate::trial(path, 64, Some(rate * COST_RATE), pace.udp_trial.max(COST_SPAN))?;
    let busy = machine_busy_seconds()? - busy;
    Ok((trial.received > 0).then(|| busy / (trial.received as f64 / 1e6)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_do_the_scaling_cells_alone() {
        let two = Contender::Tapd(Variant::Sealed2Workers);
        let done: Vec<Work> =
            Work::ALL.into_iter().filter(|w| w.is_for(two, Pace::FULL, true)).collect();
        assert_eq!(done, [Work::Tcp4, Work::Udp64x4]);
        assert!(!Work::Udp64x4.is_for(Contender::SEALED, Pace::FULL, false));
        assert!(!Work::PingLoad.is_for(Contender::SEALED, Pace::QUICK, true));
        assert!(Work::PingLoad.is_for(Contender::Tinc, Pace::FULL, true));
    }
}
