//! The scenario `dpdk`: frames of virtual machines, without the kernel in between.
//!
//! ```text
//!  source -> vhost-user -> tapd A -> vhost/virtio -> tapd B -> vhost-user -> sink
//!  source -> vhost-user -> OVS-DPDK vxlan -> vhost/virtio ----------------> sink
//!  source -> vhost-user -> plain forwarding -> vhost/virtio --------------> sink
//! ```
//!
//! What counts is what one core does: frames that arrived for each second of CPU time of the thread
//! in the middle, while nearly none is lost. A frame that finds a full ring costs less than one
//! that arrives, so a flood that loses frames says nothing of their cost. Everything of tapd shares one
//! core for that: each program runs when there is work for it and as long as there is, yields, and
//! hands on what the next one has room for. Open vSwitch never yields; it has a core of its own,
//! and the share of its CPU time counts in which there were frames. Beside it stand the frames that
//! came through, and tapd with its nodes on one core and on two while 256 frames go round between a
//! source and an echo. The same source
//! also feeds a vhost-user port with a kernel UDP uplink behind it, and a veth with a bridge and
//! the kernel's vxlan behind it.

mod kernel;
mod ovs;
mod tapd;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::figures::{self, Bar, Contestant, Quantity};
use super::report::Row;
use super::rivals::Need;
use crate::command::{built_binary, run_command};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Clear,
    Sealed,
    Aegis128L,
    OvsDpdk,
    Forward,
    AeadAes,
    AeadAegis128L,
    VhostUdp,
    KernelVxlan,
    OneCore,
    TwoCores,
}

impl Contestant for Who {
    fn name(self) -> &'static str {
        match self {
            Self::Clear => "tapd-clear",
            Self::Sealed => "tapd-sealed",
            Self::Aegis128L => "tapd-aegis128l",
            Self::OvsDpdk => "ovs-dpdk-vxlan",
            Self::Forward => "io-forward",
            Self::AeadAes => "aead-aes-256-gcm",
            Self::AeadAegis128L => "aead-aegis-128l",
            Self::VhostUdp => "tapd-vhost-udp",
            Self::KernelVxlan => "kernel-vxlan-bridge-tap",
            Self::OneCore => "tapd-one-core",
            Self::TwoCores => "tapd-two-cores",
        }
    }
}

impl Who {
    fn cipher(self) -> &'static str {
        match self {
            Self::Clear => "none",
            Self::Aegis128L => "aegis-128l",
            _ => "aes-256-gcm",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Core60,
    Core1400,
    /// Of the node that receives.
    Receiver60,
    Receiver1400,
    Through60,
    Through1400,
    Lost60,
    Lost1400,
    ReadyMs,
    FirstFrameMs,
    ResidentMb,
}

impl Quantity for What {
    fn name(self) -> &'static str {
        match self {
            Self::Core60 => "core_60_kfps",
            Self::Core1400 => "core_1400_kfps",
            Self::Receiver60 => "receiver_core_60_kfps",
            Self::Receiver1400 => "receiver_core_1400_kfps",
            Self::Through60 => "through_60_kfps",
            Self::Through1400 => "through_1400_kfps",
            Self::Lost60 => "lost_60_percent",
            Self::Lost1400 => "lost_1400_percent",
            Self::ReadyMs => "ready_ms",
            Self::FirstFrameMs => "start_to_first_frame_ms",
            Self::ResidentMb => "resident_mb",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Core60 | Self::Core1400 | Self::Receiver60 | Self::Receiver1400 => {
                "kframes/s of CPU"
            }
            Self::Through60 | Self::Through1400 => "kframes/s",
            Self::Lost60 | Self::Lost1400 => "%",
            Self::ReadyMs | Self::FirstFrameMs => "ms",
            Self::ResidentMb => "MB",
        }
    }
}

type Goal = figures::Goal<Who, What>;
type Figures = figures::Figures<Who, What>;

const GOALS: [Goal; 11] = [
    goal("P7", Who::Sealed, Who::AeadAes, What::Core1400, Some(0.7)),
    goal("P7", Who::Aegis128L, Who::AeadAegis128L, What::Core1400, Some(0.7)),
    goal("P8", Who::Clear, Who::OvsDpdk, What::Core60, Some(1.5)),
    goal("P8", Who::Sealed, Who::OvsDpdk, What::Core60, Some(0.8)),
    goal("", Who::Clear, Who::OvsDpdk, What::Core1400, None),
    goal("", Who::Sealed, Who::OvsDpdk, What::Core1400, None),
    goal("", Who::Clear, Who::Forward, What::Core60, None),
    goal("", Who::Clear, Who::Forward, What::Core1400, None),
    goal("vhost", Who::VhostUdp, Who::KernelVxlan, What::Through1400, Some(2.0)),
    goal("yield", Who::OneCore, Who::TwoCores, What::Through60, Some(0.67)),
    goal("yield", Who::OneCore, Who::TwoCores, What::Through1400, Some(0.67)),
];

const fn goal(name: &'static str, who: Who, rival: Who, what: What, bar: Option<f64>) -> Goal {
    let bar = match bar {
        Some(bar) => Bar::AtLeast(bar),
        None => Bar::None,
    };
    Goal { name, who, rival, what, bar }
}

/// What the scenario needs beyond tapd.
pub const NEEDS: [Need; 1] = [Need::Debian {
    proof: "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk",
    package: "openvswitch-switch-dpdk",
}];

/// Sets a contender up, measures it for so long, takes it down.
type Measure = fn(Duration) -> Result<Vec<(What, f64)>>;

/// Measures everything, prints the table and the bars, gives the rows.
///
/// # Errors
/// tapd itself does not work here; rivals that do not are skipped aloud.
pub fn run(rounds: u32, quick: bool) -> Result<Vec<Row>> {
    let span = Duration::from_millis(if quick { 1500 } else { 4000 });
    let budget = Duration::from_secs(if quick { 160 } else { 3600 });
    let start = Instant::now();
    let mut figures = Figures::new();
    let mut skipped = Vec::new();
    for round in 0..rounds {
        if round > 0 && start.elapsed() * (round + 1) / round > budget {
            eprintln!("dpdk: {round} rounds, for lack of time");
            break;
        }
        super::progress(&format!("dpdk round {}/{rounds}", round + 1));
        for who in [Who::Clear, Who::Sealed, Who::Aegis128L] {
            figures.add(who, &tapd::measure(who.cipher(), span)?);
        }
        figures.add(Who::Sealed, &tapd::measure_start()?);
        figures.add(Who::TwoCores, &tapd::measure_loop(true, span)?);
        figures.add(Who::OneCore, &tapd::measure_loop(false, span)?);
        for (who, values) in aead()? {
            figures.add(who, &[(What::Core1400, values)]);
        }
        let others: [(Who, Measure); 4] = [
            (Who::OvsDpdk, ovs::measure),
            (Who::Forward, traffic::measure_forward),
            (Who::VhostUdp, kernel::measure_tapd),
            (Who::KernelVxlan, kernel::measure_vxlan),
        ];
        for (who, measure) in others {
            if skipped.contains(&who) {
                continue;
            }
            match measure(span) {
                Ok(values) => figures.add(who, &values),
                Err(error) => {
                    skipped.push(who);
                    super::progress("");
                    eprintln!("*** SKIPPED *** {} in dpdk: {error:#}", who.name());
                }
            }
        }
    }
    super::progress("");
    print!("{}{}", figures.table("dpdk"), figures.bars(&GOALS));
    Ok(figures.rows("dpdk", &GOALS))
}

/// Frames of 1400 bytes that one core seals in a second and does nothing else, in thousands.
fn aead() -> Result<Vec<(Who, f64)>> {
    let mut command = std::process::Command::new(built_binary("tapd")?);
    command.args(["bench-crypto", "--json", "--seconds", "1", "--size", "1400"]);
    let report: Value = serde_json::from_str(&run_command(&mut command)?)?;
    let results = report["results"].as_array().context("tapd bench-crypto has no results")?;
    let mut found = Vec::new();
    for (who, cipher) in [(Who::AeadAes, "aes-256-gcm"), (Who::AeadAegis128L, "aegis-128l")] {
        let result = results.iter().find(|result| result["cipher"] == cipher);
        let ns = result.and_then(|result| result["seal"]["ns"].as_f64());
        found.push((who, 1e6 / ns.context("tapd bench-crypto told no time")?));
    }
    Ok(found)
}
