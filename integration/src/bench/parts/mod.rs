//! What tapd cannot do without, each by itself: the least that its work could cost.
//!
//! A frame of TCP through tapd is read from a tap, sealed, sent over UDP, received, opened and
//! written to a tap. Each of these is measured alone on the same machine, in the same run and on
//! the same underlay; what tapd costs beyond their sum is its own.

use anyhow::Result;

use super::metric::Metric;
use super::tapd::Variant;
use super::work::{Pace, Servers};
use crate::topology::Pair;

pub mod udp_run;
pub mod tap_pass;
pub mod aead;

use tap_pass::TapPass;

/// A part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Runs of full datagrams from one host to the other: `UDP_SEGMENT`, `UDP_GRO`.
    UdpRun,
    /// Super-frames from one tap to another, with TCP at both ends.
    TapPass,
    /// Sealing and opening by the cipher of the variant.
    Aead(Variant),
}

impl Part {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 5] = [
        Self::UdpRun,
        Self::TapPass,
        Self::Aead(Variant::Sealed),
        Self::Aead(Variant::Aegis256),
        Self::Aead(Variant::Aegis128L),
    ];

    /// As in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UdpRun => "udp-run",
            Self::TapPass => "tap-pass",
            Self::Aead(variant) => match variant.cipher() {
                "aegis-256" => "aead-aegis-256",
                "aegis-128l" => "aead-aegis-128l",
                _ => "aead-aes-256-gcm",
            },
        }
    }

    /// The parts of a frame's way through a variant of tapd, if they say something about it.
    #[must_use]
    pub fn of(variant: Variant) -> Option<Vec<Self>> {
        match variant {
            Variant::Clear => Some(vec![Self::UdpRun, Self::TapPass]),
            Variant::Sealed | Variant::Aegis256 | Variant::Aegis128L => {
                Some(vec![Self::UdpRun, Self::TapPass, Self::Aead(variant)])
            }
            Variant::Sealed2Workers | Variant::Sealed2Links => None,
        }
    }
}

/// The parts that can be measured here.
#[derive(Debug)]
pub struct Parts {
    underlay_mtu: u32,
    tap_pass: Option<TapPass>,
    aead: bool,
}

impl Parts {
    /// Sets up what stays; what cannot be measured is said aloud.
    #[must_use]
    pub fn set_up(pair: &Pair, underlay_mtu: u32) -> Self {
        let tap_pass = TapPass::set_up(pair, underlay_mtu);
        let tap_pass = tap_pass.inspect_err(|e| eprintln!("*** SKIPPED *** tap-pass: {e:#}")).ok();
        Self { underlay_mtu, tap_pass, aead: true }
    }

    /// Measures each of them once.
    ///
    /// # Errors
    /// A socket failed or nothing got through.
    pub fn measure(
        &mut self,
        pair: &Pair,
        servers: &Servers,
        pace: Pace,
    ) -> Result<Vec<(Part, Metric, f64)>> {
        let mut values = Vec::new();
        let (rate, cost) = udp_run::measure(servers, self.underlay_mtu, pace.part)?;
        values.push((Part::UdpRun, Metric::PartGbps, rate));
        values.push((Part::UdpRun, Metric::PartCpuSecondsPerGb, cost));
        if let Some(tap_pass) = &self.tap_pass {
            let (rate, cost) = tap_pass.measure(pair, pace.tcp_seconds)?;
            values.push((Part::TapPass, Metric::PartGbps, rate));
            values.push((Part::TapPass, Metric::PartCpuSecondsPerGb, cost));
        }
        if self.aead {
            match aead::measure(self.underlay_mtu, pace.part) {
                Ok(costs) => values.extend(costs.into_iter().map(|(variant, cost)| {
                    (Part::Aead(variant), Metric::PartCpuSecondsPerGb, cost)
                })),
                Err(error) => {
                    eprintln!("*** SKIPPED *** aead: {error:#}");
                    self.aead = false;
                }
            }
        }
        Ok(values)
    }
}
