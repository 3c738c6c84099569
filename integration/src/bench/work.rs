//! What the contenders have to do, and what is measured meanwhile.

use std::fs::File;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::contender::Overlay;
use crate::load::rate::{self, Search};
use crate::load::{Place, UdpPath, pingpong};
use crate::netns;
use crate::stats::machine_busy_seconds;
use crate::topology::Pair;
use crate::traffic::{IperfReport, IperfRun, IperfServer, iperf};

/// Loss that counts as none in the frames-per-second search.
const MAX_LOSS: f64 = 0.001;
/// Payload of the latency measurement in bytes.
const PINGPONG_PAYLOAD: usize = 64;

/// How long the measurements take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Seconds of one TCP run.
    pub tcp_seconds: u32,
    /// One trial of the frames-per-second search.
    pub udp_trial: Duration,
    /// The whole search.
    pub udp_budget: Duration,
    /// The latency measurement.
    pub pingpong: Duration,
}

impl Pace {
    /// For a look.
    pub const QUICK: Self = Self {
        tcp_seconds: 1,
        udp_trial: Duration::from_millis(120),
        udp_budget: Duration::from_millis(900),
        pingpong: Duration::from_millis(250),
    };
    /// For figures.
    pub const FULL: Self = Self {
        tcp_seconds: 3,
        udp_trial: Duration::from_millis(400),
        udp_budget: Duration::from_secs(6),
        pingpong: Duration::from_secs(1),
    };
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// TCP payload, one stream, at the receiver.
    Tcp1Gbps,
    /// TCP payload, four streams together.
    Tcp4Gbps,
    /// Busy seconds of the whole machine, both ends and the programs that make the load, for
    /// 10^9 bytes of TCP payload.
    Tcp1CpuSecondsPerGb,
    /// Datagrams of 64 bytes per second with at most 0.1 % lost.
    Udp64Kfps,
    /// Datagrams of 1400 bytes per second with at most 0.1 % lost.
    Udp1400Kfps,
    /// Median round trip of one datagram at a time.
    PingpongP50,
    /// 99th percentile of the same.
    PingpongP99,
}

impl Metric {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 7] = [
        Self::Tcp1Gbps,
        Self::Tcp4Gbps,
        Self::Tcp1CpuSecondsPerGb,
        Self::Udp64Kfps,
        Self::Udp1400Kfps,
        Self::PingpongP50,
        Self::PingpongP99,
    ];

    /// As in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1Gbps => "tcp1_gbps",
            Self::Tcp4Gbps => "tcp4_gbps",
            Self::Tcp1CpuSecondsPerGb => "tcp1_cpu_s_per_gb",
            Self::Udp64Kfps => "udp64_kfps",
            Self::Udp1400Kfps => "udp1400_kfps",
            Self::PingpongP50 => "pingpong_p50_us",
            Self::PingpongP99 => "pingpong_p99_us",
        }
    }

    /// The unit of its values.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Tcp1Gbps | Self::Tcp4Gbps => "Gbit/s",
            Self::Tcp1CpuSecondsPerGb => "s/GB",
            Self::Udp64Kfps | Self::Udp1400Kfps => "kframes/s",
            Self::PingpongP50 | Self::PingpongP99 => "us",
        }
    }
}

/// A piece of work; it yields one or two metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One TCP stream.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// Small datagrams.
    Udp64,
    /// Large datagrams.
    Udp1400,
    /// One datagram at a time.
    PingPong,
}

/// The iperf3 server and the namespaces' handles, shared by all contenders.
#[derive(Debug)]
pub struct Servers {
    alpha: File,
    beta: File,
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
    pub const ALL: [Self; 5] = [Self::Tcp1, Self::Tcp4, Self::Udp64, Self::Udp1400, Self::PingPong];

    /// For the progress line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Udp64 => "udp64",
            Self::Udp1400 => "udp1400",
            Self::PingPong => "pingpong",
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
        match self {
            Self::Tcp1 => {
                let busy = machine_busy_seconds()?;
                let report = tcp(pair, overlay, pace, 1)?;
                let busy = machine_busy_seconds()? - busy;
                Ok(vec![
                    (Metric::Tcp1Gbps, report.bits_per_second / 1e9),
                    (Metric::Tcp1CpuSecondsPerGb, busy / (report.bytes / 1e9)),
                ])
            }
            Self::Tcp4 => {
                let report = tcp(pair, overlay, pace, 4)?;
                Ok(vec![(Metric::Tcp4Gbps, report.bits_per_second / 1e9)])
            }
            Self::Udp64 => Ok(vec![(Metric::Udp64Kfps, kfps(servers, overlay, pace, 64)?)]),
            Self::Udp1400 => Ok(vec![(Metric::Udp1400Kfps, kfps(servers, overlay, pace, 1400)?)]),
            Self::PingPong => {
                let path = path(servers, overlay)?;
                let trips = pingpong::measure(&path, PINGPONG_PAYLOAD, pace.pingpong)?;
                Ok(vec![(Metric::PingpongP50, trips.p50_us), (Metric::PingpongP99, trips.p99_us)])
            }
        }
    }
}

fn tcp(pair: &Pair, overlay: &Overlay, pace: Pace, streams: u32) -> Result<IperfReport> {
    let run = IperfRun { seconds: pace.tcp_seconds, streams, reverse: false, udp: None };
    let report = iperf(&pair.alpha, overlay.beta, run)?;
    ensure!(report.bytes > 0.0, "no byte got through {}", overlay.contender.name());
    Ok(report)
}

fn path(servers: &Servers, overlay: &Overlay) -> Result<UdpPath> {
    UdpPath::open(
        &Place { netns: &servers.alpha, address: overlay.alpha },
        &Place { netns: &servers.beta, address: overlay.beta },
    )
}

fn kfps(servers: &Servers, overlay: &Overlay, pace: Pace, payload: usize) -> Result<f64> {
    let search =
        Search { payload, max_loss: MAX_LOSS, trial: pace.udp_trial, budget: pace.udp_budget };
    Ok(rate::search(&path(servers, overlay)?, search)?.rate / 1e3)
}
