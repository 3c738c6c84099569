//! The probes on their way.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Probe;

/// Probes remembered for late answers.
const REMEMBERED: usize = 128;
/// The low bits of an id, which count.
const ID_COUNT: u32 = 0x00ff_ffff;

/// Probes sent at once, until all are answered or their time is over.
#[derive(Debug)]
pub(super) struct Volley {
    /// The probes, and whether they were answered.
    pub(super) probes: Vec<(Probe, bool)>,
    /// Largest size that was answered; 0 for none.
    pub(super) largest: usize,
    pub(super) sent_at: Instant,
    deadline: Instant,
}

/// The present volley, what of it is still to be sent, and all probes that may yet be answered.
#[derive(Debug, Default)]
pub(super) struct Flight {
    volley: Option<Volley>,
    queue: VecDeque<Probe>,
    /// Oldest first.
    sent: VecDeque<(Probe, Instant)>,
    next_id: u32,
    id_prefix: u32,
}

impl Flight {
    pub(super) fn set_id_prefix(&mut self, prefix: u8) {
        self.id_prefix = u32::from(prefix) << 24;
    }

    /// Drops all without blame; their answers count no more.
    pub(super) fn forget(&mut self) {
        self.drop_volley();
        self.sent.clear();
    }

    /// Waits for nothing any more; late answers still count.
    pub(super) fn drop_volley(&mut self) {
        self.volley = None;
        self.queue.clear();
    }

    /// Drops those above the ceiling without blame.
    pub(super) fn limit(&mut self, ceiling: usize) {
        self.queue.retain(|probe| probe.size <= ceiling);
        self.sent.retain(|(probe, _)| probe.size <= ceiling);
        if let Some(volley) = &mut self.volley {
            volley.probes.retain(|(probe, _)| probe.size <= ceiling);
        }
    }

    /// Begins a volley.
    pub(super) fn launch(&mut self, now: Instant, timer: Duration, sizes: Vec<usize>) {
        self.queue.clear();
        for size in sizes {
            self.next_id = self.next_id.wrapping_add(1) & ID_COUNT;
            self.queue.push_back(Probe { id: self.id_prefix | self.next_id, size });
        }
        let probes = self.queue.iter().map(|probe| (*probe, false)).collect();
        self.volley = Some(Volley { probes, largest: 0, sent_at: now, deadline: now + timer });
    }

    /// The next probe to send; the time for the answers counts from the last one.
    pub(super) fn pop(&mut self, now: Instant, timer: Duration) -> Option<Probe> {
        let probe = self.queue.pop_front()?;
        if let Some(volley) = &mut self.volley {
            volley.deadline = now + timer;
        }
        if self.sent.len() >= REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((probe, now));
        Some(probe)
    }

    /// Takes an answer; gives when its probe was sent, if it is one of ours.
    pub(super) fn answered(&mut self, probe: Probe) -> Option<Instant> {
        let at = self.sent.iter().position(|(sent, _)| *sent == probe)?;
        let (_, sent_at) = self.sent.remove(at)?;
        if let Some(volley) = &mut self.volley
            && let Some((_, answered)) = volley.probes.iter_mut().find(|(of, _)| *of == probe)
        {
            *answered = true;
            volley.largest = volley.largest.max(probe.size);
        }
        Some(sent_at)
    }

    /// The round trip turned out to be shorter than was assumed.
    pub(super) fn shorten(&mut self, timer: Duration) {
        if let Some(volley) = &mut self.volley {
            volley.deadline = volley.deadline.min(volley.sent_at + timer);
        }
    }

    /// Whether the time of the volley is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.queue.is_empty() && self.volley.as_ref().is_some_and(|volley| now >= volley.deadline)
    }

    /// Whether all of the volley is sent and answered.
    pub(super) fn is_answered(&self) -> bool {
        let all = |volley: &Volley| volley.probes.iter().all(|(_, answered)| *answered);
        self.queue.is_empty() && self.volley.as_ref().is_some_and(all)
    }

    /// Whether there is no volley.
    pub(super) fn is_empty(&self) -> bool {
        self.volley.is_none()
    }

    /// Ends the volley.
    pub(super) fn take(&mut self) -> Option<Volley> {
        self.volley.take()
    }

    /// When there is something to do, while there is a volley.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let volley = self.volley.as_ref()?;
        Some(if self.queue.is_empty() { volley.deadline } else { volley.sent_at })
    }
}
