//! One slot per named timer, earliest deadline first.

use std::time::Instant;

/// The timers of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Timer {
    /// Begin a handshake.
    Attempt,
    /// Send the initiation again.
    Retry,
    /// Send a round of heartbeats and look at the links.
    Heartbeat,
    /// Look at the links.
    Watch,
    /// See whether the peer is still heard.
    Silence,
    /// Replace the keys by a new handshake.
    Rekey,
    /// Begin the next epoch.
    Rotate,
    /// Wipe what opens the epoch before last.
    Wipe,
    /// Send bindings again that were not acknowledged.
    Bindings,
    /// Forget answered initiations that were never confirmed, and retired sessions.
    Forget,
}

impl Timer {
    pub(crate) const ALL: [Self; 10] = [
        Self::Attempt,
        Self::Retry,
        Self::Heartbeat,
        Self::Watch,
        Self::Silence,
        Self::Rekey,
        Self::Rotate,
        Self::Wipe,
        Self::Bindings,
        Self::Forget,
    ];
}

/// Deadlines by timer.
#[derive(Debug, Default)]
pub(crate) struct TimerTable([Option<Instant>; Timer::ALL.len()]);

impl TimerTable {
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = Some(at);
        }
    }

    /// Sets the timer unless it is set to an earlier time.
    pub(crate) fn set_earliest(&mut self, timer: Timer, at: Instant) {
        let earliest = self.get(timer).map_or(at, |set| set.min(at));
        self.set(timer, earliest);
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = None;
        }
    }

    pub(crate) fn get(&self, timer: Timer) -> Option<Instant> {
        self.0.get(timer as usize).copied().flatten()
    }

    /// Stops and gives one timer that is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let due = Timer::ALL.into_iter().find(|t| self.get(*t).is_some_and(|at| at <= now))?;
        self.stop(due);
        Some(due)
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn gives_each_due_timer_once() {
        let now = Instant::now();
        let mut table = TimerTable::default();
        table.set(Timer::Retry, now + Duration::from_secs(2));
        table.set(Timer::Heartbeat, now);
        table.set_earliest(Timer::Heartbeat, now + Duration::from_secs(1));
        assert_eq!(table.next(), Some(now));
        assert_eq!(table.take_due(now), Some(Timer::Heartbeat));
        assert_eq!(table.take_due(now), None);
        assert_eq!(table.next(), Some(now + Duration::from_secs(2)));
        for (index, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timer as usize, index);
        }
    }
}
