//! What a worker does when nothing comes: it gives the core to others, and blocks when that has gone
//! on for a while.

use std::time::{Duration, Instant};

use super::Worker;
use crate::port::{DatagramPort, FramePort};

/// How long a worker polls on after the last packet before it blocks: shorter than a context
/// switch costs, long enough to catch the answer to what was just sent.
const SPIN: Duration = Duration::from_micros(20);
/// A blocked worker looks around this often even if nothing wakes it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// While frames wait for a session it looks this often.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(5);

impl<F: FramePort, D: DatagramPort> Worker<F, D> {
    pub(super) fn watch(&mut self) {
        let ports = self.ports.iter().filter_map(|slot| slot.port.poll_fd());
        let uplinks = self.uplinks.iter().filter_map(DatagramPort::poll_fd);
        self.poll_set.set(std::iter::once(self.waker.fd()).chain(ports).chain(uplinks));
    }

    /// Nothing to do: gives the core to others, and blocks when that has gone on for a while.
    pub(super) fn idle(&mut self, now: Instant, busy_at: Instant) {
        if now.saturating_duration_since(busy_at) < SPIN {
            std::thread::yield_now();
            return;
        }
        if std::mem::take(&mut self.woken) {
            return;
        }
        self.counters.waits.add(1);
        let longest = if self.datapath.has_waiting() { HANDSHAKE_WAIT } else { LONGEST_WAIT };
        if self.poll_set.wait(longest) {
            self.woken = self.waker.clear();
        }
    }
}
