//! Heartbeats: one round goes out on all links of a peer at once, and says what came in on each.
//!
//! ```text
//! round(4) epoch_opened(4) sent_us(4) interval_us(4) lost(1) drained(1) count(1)
//! count times: tag(4) highest(4) echo_us(4) echo_delay_us(4) rounds(4) datagrams(4)
//! ```
//!
//! Big-endian. Rule C2 is in `docs/protocol.md`.

use super::reader::{Malformed, Reader};
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};

/// What the sender received on one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkReport {
    /// Which link: the hash of its name, so that two nodes may number their links differently.
    pub tag: u32,
    /// Highest round that came.
    pub highest: u32,
    /// `sent_us` of that round; 0 for none.
    pub echo_us: u32,
    /// Microseconds that the echo waited at the sender.
    pub echo_delay_us: u32,
    /// Rounds that came in this session, wrapping.
    pub rounds: u32,
    /// Authentic datagrams that came in this session, wrapping.
    pub datagrams: u32,
}

/// One heartbeat. All links get the same, each sealed for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// Number of the round, from 1 in every session.
    pub round: u32,
    /// Highest epoch of the peer's in which something was opened.
    pub epoch_opened: u32,
    /// Sender's clock in microseconds, any origin, wrapping, never 0.
    pub sent_us: u32,
    /// Time to the next round as the sender intends it, in microseconds.
    pub interval_us: u32,
    /// Links on which the sender hears nothing although it hears others, by place in the reports.
    pub lost: LinkSet,
    /// Links that somebody took out of use at the sender, by place in the reports.
    pub drained: LinkSet,
    pub(crate) reports: [LinkReport; MAX_LINKS],
    pub(crate) count: u8,
}

impl Heartbeat {
    /// Adds the report on the next link; a ninth is left out.
    pub fn push(&mut self, report: LinkReport) {
        if let Some(place) = self.reports.get_mut(usize::from(self.count)) {
            *place = report;
            self.count += 1;
        }
    }

    /// The report on one link, if there is one.
    #[must_use]
    pub fn report(&self, link: LinkIndex) -> Option<&LinkReport> {
        self.reports().get(link.at())
    }

    /// The reports, by link.
    #[must_use]
    pub fn reports(&self) -> &[LinkReport] {
        self.reports.get(..usize::from(self.count)).unwrap_or_default()
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for word in [self.round, self.epoch_opened, self.sent_us, self.interval_us] {
            out.extend(word.to_be_bytes());
        }
        out.extend([self.lost.0, self.drained.0, self.count]);
        for report in self.reports() {
            let LinkReport { tag, highest, echo_us, echo_delay_us, rounds, datagrams } = report;
            for word in [tag, highest, echo_us, echo_delay_us, rounds, datagrams] {
                out.extend(word.to_be_bytes());
            }
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut heartbeat = Self {
            round: reader.u32()?,
            epoch_opened: reader.u32()?,
            sent_us: reader.u32()?,
            interval_us: reader.u32()?,
            lost: LinkSet(reader.u8()?),
            drained: LinkSet(reader.u8()?),
            ..Self::default()
        };
        let count = reader.u8()?;
        if usize::from(count) > MAX_LINKS {
            return Err(Malformed);
        }
        for _ in 0..count {
            heartbeat.push(LinkReport {
                tag: reader.u32()?,
                highest: reader.u32()?,
                echo_us: reader.u32()?,
                echo_delay_us: reader.u32()?,
                rounds: reader.u32()?,
                datagrams: reader.u32()?,
            });
        }
        Ok(heartbeat)
    }
}
