//! Our own address: whether somebody else has it, and telling everybody that we do; over IPv6 also
//! that switches are to pass on the group in which it is asked for.

use std::time::{Duration, Instant};

use crate::underlay::LocalAddress;

/// RFC 5227 section 1.1: `PROBE_NUM`.
const PROBES: u8 = 3;
/// Between two probes, and the longest wait before the first (`PROBE_MIN`, `PROBE_WAIT`).
const PROBE_TIME: Duration = Duration::from_secs(1);
/// Between the last probe and the first announcement (`ANNOUNCE_WAIT`).
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);
/// Announcements in a row.
const ANNOUNCEMENTS: u8 = 3;
/// Between two announcements.
const ANNOUNCE_TIME: Duration = Duration::from_secs(1);
/// RFC 5227 section 1.1: `DEFEND_INTERVAL`.
const DEFEND_TIME: Duration = Duration::from_secs(10);

/// Between two membership reports: well below the 260 s after which a switch forgets a member
/// (RFC 3810 section 9.4), so that queries need not be waited for.
const REPORT_TIME: Duration = Duration::from_secs(60);

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnFrame {
    /// That we listen to the group in which our address is asked for.
    Membership,
    Probe,
    Announcement,
}

/// A number of frames that are still to be sent, and when the next is.
#[derive(Debug, Clone, Copy, Default)]
struct Series {
    left: u8,
    timer: Option<Instant>,
}

impl Series {
    /// Counts a frame that is due, if one is; the next one comes after `time`.
    fn take(&mut self, now: Instant, time: Duration) -> bool {
        let due = self.left > 0 && self.timer.is_some_and(|at| at <= now);
        if due {
            self.left -= 1;
            self.timer = (self.left > 0).then(|| now + time);
        }
        due
    }
}

/// The state of our own address. Traffic never waits for it.
#[derive(Debug)]
pub(super) struct Own {
    probes: Series,
    announcements: Series,
    /// When the next membership report is due; none over IPv4, where requests are broadcast.
    report_at: Option<Instant>,
    /// When the last one was sent.
    reported_at: Option<Instant>,
    /// When the last announcement was sent.
    announced_at: Option<Instant>,
    /// When the last conflict was told of.
    told_at: Option<Instant>,
    /// The address was another's when we came.
    taken: bool,
}

impl Own {
    /// Begins to probe, up to a second from now: stations that start together do not all ask at
    /// the same time.
    pub(super) fn new(now: Instant, local: &LocalAddress) -> Self {
        let [.., a, b] = local.mac.0;
        let wait = Duration::from_millis(u64::from(u16::from_be_bytes([a, b])) % 1000);
        Self {
            probes: Series { left: PROBES, timer: Some(now + wait) },
            announcements: Series::default(),
            report_at: local.ip.is_ipv6().then_some(now + wait),
            reported_at: None,
            announced_at: None,
            told_at: None,
            taken: false,
        }
    }

    pub(super) fn timer(&self) -> Option<Instant> {
        let timers = [self.probes.timer, self.announcements.timer, self.report_at];
        timers.into_iter().flatten().min()
    }

    /// Announces from now on, if the address is known to be ours: after the probes it is announced
    /// in any case (RFC 5227 section 2.1.1). However often this is called, no more than one frame
    /// leaves per second.
    pub(super) fn announce(&mut self, now: Instant) {
        // Another switch may be behind the port now.
        let soonest = self.reported_at.map_or(now, |at| now.max(at + ANNOUNCE_TIME));
        self.report_at = self.report_at.map(|at| at.min(soonest));
        if self.is_probing() || self.taken {
            return;
        }
        let next = self.announced_at.map_or(now, |at| now.max(at + ANNOUNCE_TIME));
        self.announcements = Series { left: ANNOUNCEMENTS, timer: Some(next) };
    }

    /// The next frame that is due; to be asked to the end.
    pub(super) fn poll(&mut self, now: Instant) -> Option<OwnFrame> {
        // Before the first probe, whose answer comes by the group (RFC 4862 section 5.4.2).
        if self.report_at.is_some_and(|at| at <= now) {
            (self.reported_at, self.report_at) = (Some(now), Some(now + REPORT_TIME));
            return Some(OwnFrame::Membership);
        }
        if self.probes.take(now, PROBE_TIME) {
            if self.probes.left == 0 && self.announcements.left == 0 {
                let timer = Some(now + ANNOUNCE_WAIT);
                self.announcements = Series { left: ANNOUNCEMENTS, timer };
            }
            return Some(OwnFrame::Probe);
        }
        if !self.announcements.take(now, ANNOUNCE_TIME) {
            return None;
        }
        self.announced_at = Some(now);
        Some(OwnFrame::Announcement)
    }

    /// Whether it is still being found out if the address is free.
    pub(super) fn is_probing(&self) -> bool {
        self.probes.left > 0
    }

    /// Somebody else has or wants the address. Says whether that is to be told, and whether the
    /// address is to be defended: both at most once in 10 s (RFC 5227 section 2.4, case c). An
    /// address that was another's when we came is not.
    pub(super) fn on_conflict(&mut self, now: Instant) -> (bool, bool) {
        if self.is_probing() {
            self.probes = Series::default();
            self.announcements = Series::default();
            self.taken = true;
        }
        let recent = self.told_at.is_some_and(|at| now.saturating_duration_since(at) < DEFEND_TIME);
        if recent {
            return (false, false);
        }
        self.told_at = Some(now);
        (true, !self.taken)
    }
}
