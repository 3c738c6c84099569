//! What a worker does when nothing comes: it gives the core to others, and blocks when that has gone
//! on for a while.
//!
//! To wake a CPU that sleeps takes longer than most of what a worker does, in a virtual machine above
//! all. So it looks on for longer before it blocks while frames come at intervals that this catches,
//! as questions and answers do, and for as long as nobody else wants the core.
//!
//! Before it blocks, every port is asked to wake it ([`Armed`]): a card or a guest that is polled does
//! not, and has to be told. What came in before a port was told is looked for after that, by the port.
//!
//! A port that cannot be waited for (a device without interrupts, memory) has to be looked at: with such
//! a port the worker never blocks, it sleeps. The sleeps begin short and grow, so that an answer to what
//! was just sent is met soon and an idle node costs little. Ports that have interrupts end the long ones.

use std::time::{Duration, Instant};

use super::Worker;
use crate::port::{Armed, DatagramPort, FramePort};
use crate::process;

/// It polls on for so long anyway, if it may: shorter than a context switch costs.
pub const SHORT_SPIN: Duration = Duration::from_micros(20);
/// After so many intervals in a row that a longer spin would have caught, it is tried.
const CATCHES: u32 = 8;
/// A core that another thread had for so long when the worker yielded is wanted.
const WANTED: Duration = Duration::from_micros(5);
/// A blocked worker looks around this often even if nothing wakes it.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// While frames wait for a session it looks this often.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(5);
/// The first sleep; each one after it is twice as long.
const FIRST_SLEEP: Duration = Duration::from_micros(1);
/// Without frames for so long, nobody is in a hurry.
const LONG_QUIET: Duration = Duration::from_secs(1);
/// The longest sleep from then on, where it may not be longer anyway.
const QUIET_SLEEP: Duration = Duration::from_millis(1);

/// What to do after a pass that moved no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Give the core to others for a moment.
    Yield,
    /// Wait for the descriptors of the ports.
    Block,
    /// The same, for so long at most: there are ports without one.
    Sleep(Duration),
}

/// For how long there has been nothing to do.
#[derive(Debug)]
pub(super) struct Idle {
    busy_at: Instant,
    /// The last sleep since then.
    sleep: Duration,
    /// How long it polls on after the last frame, at most.
    max_spin: Duration,
    /// Intervals in a row, none of which the short spin caught, and all of which the longest would.
    catches: u32,
    /// Another thread ran when the worker yielded last.
    wanted: bool,
    max_sleep: Duration,
    /// Whether every port can be waited for.
    waitable: bool,
    /// Whether this thread's timers were made to fire in time.
    sharp: bool,
}

impl Idle {
    pub(super) fn new(now: Instant, max_spin: Duration, max_sleep: Duration) -> Self {
        Self {
            busy_at: now,
            sleep: Duration::ZERO,
            max_spin,
            catches: 0,
            wanted: false,
            max_sleep,
            waitable: true,
            sharp: false,
        }
    }

    /// Frames went by.
    pub(super) fn busy(&mut self, now: Instant) {
        let quiet = now.saturating_duration_since(self.busy_at);
        if quiet > self.max_spin {
            self.catches = 0;
        } else if quiet >= SHORT_SPIN {
            self.catches = self.catches.saturating_add(1);
        }
        (self.busy_at, self.sleep, self.wanted) = (now, Duration::ZERO, false);
    }

    /// The worker gave the core away for so long.
    fn yielded(&mut self, time: Duration) {
        self.wanted = time >= WANTED;
    }

    fn rest(&mut self, now: Instant) -> Rest {
        let quiet = now.saturating_duration_since(self.busy_at);
        let patient = self.catches >= CATCHES && !self.wanted;
        let spin = if patient { self.max_spin } else { self.max_spin.min(SHORT_SPIN) };
        if quiet < spin {
            return Rest::Yield;
        }
        if patient {
            // It caught nothing this time.
            self.catches = 0;
        }
        if self.waitable {
            return Rest::Block;
        }
        if self.max_sleep.is_zero() {
            return Rest::Yield;
        }
        let longest = if quiet < LONG_QUIET { Duration::ZERO } else { QUIET_SLEEP };
        let grown = (self.sleep * 2).max(FIRST_SLEEP);
        self.sleep = grown.min(longest.max(self.max_sleep));
        Rest::Sleep(self.sleep)
    }
}

impl<F: FramePort, D: DatagramPort> Worker<F, D> {
    /// Takes down what there is to wait for.
    pub(super) fn watch(&mut self) {
        let ports = self.ports.iter().map(|slot| slot.port.poll_fd());
        let all = || ports.clone().chain(self.uplinks.iter().map(DatagramPort::poll_fd));
        self.idle.waitable = all().all(|fd| fd.is_some());
        let channels = self.channels.fd();
        let own = std::iter::once(self.waker.fd()).chain(channels);
        self.poll_set.set(own.chain(all().flatten()));
    }

    /// Nothing to do.
    pub(super) fn rest(&mut self, now: Instant) {
        let rest = self.idle.rest(now);
        if rest == Rest::Yield {
            let before = Instant::now();
            std::thread::yield_now();
            self.idle.yielded(before.elapsed());
            return;
        }
        if std::mem::take(&mut self.woken) {
            return;
        }
        let Some(channels) = self.channel_rest(now) else { return };
        if let Rest::Sleep(time) = rest {
            let time = time.min(channels);
            if time < QUIET_SLEEP || self.armed || self.arm() {
                self.sleep(time);
            }
            return;
        }
        if !self.arm() {
            return;
        }
        let longest = if self.datapath.has_waiting() { HANDSHAKE_WAIT } else { LONGEST_WAIT };
        let due = self.uplinks.iter().map(|uplink| uplink.longest_wait(now));
        let longest = due.fold(longest.min(channels), Duration::min);
        if !longest.is_zero() {
            self.counters.waits.add(1);
            self.wait(longest);
        }
    }

    /// Asks the ports to wake this worker; says whether it may wait.
    fn arm(&mut self) -> bool {
        self.armed = true;
        let ports = self.ports.iter_mut().map(|slot| slot.port.arm());
        let armed = ports.chain(self.uplinks.iter_mut().map(DatagramPort::arm));
        let (mut pending, mut impossible) = (false, false);
        for result in armed {
            pending |= result == Armed::Pending;
            impossible |= result == Armed::Impossible;
        }
        if impossible {
            self.watch();
        }
        !pending && !impossible
    }

    /// Lets the ports be: the worker looks at them by itself.
    pub(super) fn disarm(&mut self) {
        self.armed = false;
        self.ports.iter_mut().for_each(|slot| slot.port.disarm());
        self.uplinks.iter_mut().for_each(DatagramPort::disarm);
    }

    fn sleep(&mut self, time: Duration) {
        if !std::mem::replace(&mut self.idle.sharp, true)
            && let Err(error) = process::sharpen_timers()
        {
            log::warn!("a worker's sleeps are 50 us longer than they should be: {error}");
        }
        let start = Instant::now();
        self.wait(time);
        let slept = start.elapsed().as_micros();
        self.counters.sleeps.add(1);
        self.counters.slept_us.add(u64::try_from(slept).unwrap_or(u64::MAX));
    }

    fn wait(&mut self, longest: Duration) {
        if !self.poll_set.wait(longest) {
            return;
        }
        self.woken = self.waker.clear();
        if !self.woken {
            self.counters.wakes.add(1);
        }
        if !self.idle.waitable {
            // Or what woke it would end the next sleep, too.
            self.disarm();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// What comes of one look after the other, each at this time after the last frame.
    fn rests(idle: &mut Idle, start: Instant, times: &[Duration]) -> Vec<Rest> {
        times.iter().map(|time| idle.rest(start + *time)).collect()
    }

    #[test]
    fn ports_that_can_be_waited_for_are_waited_for() {
        let start = Instant::now();
        let mut idle = Idle::new(start, us(20), us(100));
        let rests = rests(&mut idle, start, &[us(0), us(19), us(20), us(5_000_000)]);
        assert_eq!(rests, [Rest::Yield, Rest::Yield, Rest::Block, Rest::Block]);
    }

    /// Frames at this interval, `times` of them; gives the time of the last one.
    fn frames(idle: &mut Idle, start: Instant, interval: Duration, times: u32) -> Instant {
        (1..=times).for_each(|time| idle.busy(start + interval * time));
        start + interval * times
    }

    #[test]
    fn regular_answers_are_waited_for_longer_until_one_does_not_come() {
        let start = Instant::now();
        let mut idle = Idle::new(start, us(100), us(100));
        let now = frames(&mut idle, start, us(60), CATCHES - 1);
        assert_eq!(rests(&mut idle, now, &[us(20)]), [Rest::Block]);
        let now = frames(&mut idle, now, us(60), 1);
        assert_eq!(rests(&mut idle, now, &[us(20), us(99)]), [Rest::Yield; 2]);
        // What another thread got of the core is over with the next frame.
        idle.yielded(WANTED);
        assert_eq!(rests(&mut idle, now, &[us(30)]), [Rest::Block]);
        let now = frames(&mut idle, now, us(60), 1);
        assert_eq!(rests(&mut idle, now, &[us(99), us(100)]), [Rest::Yield, Rest::Block]);
        // It did not pay.
        let now = frames(&mut idle, now, us(60), 1);
        assert_eq!(rests(&mut idle, now, &[us(19), us(20)]), [Rest::Yield, Rest::Block]);
    }

    #[test]
    fn frames_that_are_too_far_apart_or_come_in_bursts_are_no_reason_to_spin() {
        let start = Instant::now();
        for interval in [us(5), us(101), us(1000)] {
            let mut idle = Idle::new(start, us(100), us(100));
            let now = frames(&mut idle, start, interval, 100);
            assert_eq!(rests(&mut idle, now, &[us(20)]), [Rest::Block], "{interval:?}");
        }
        let mut none = Idle::new(start, us(0), us(100));
        let now = frames(&mut none, start, us(0), 100);
        assert_eq!(rests(&mut none, now, &[us(0)]), [Rest::Block]);
    }

    #[test]
    fn sleeps_grow_to_their_longest_and_begin_anew_with_a_frame() {
        let start = Instant::now();
        let mut idle = Idle { waitable: false, ..Idle::new(start, us(20), us(100)) };
        assert_eq!(rests(&mut idle, start, &[us(0), us(19)]), [Rest::Yield; 2]);
        let slept = |rests: Vec<Rest>| -> Vec<u128> {
            let us = |rest: Rest| match rest {
                Rest::Sleep(time) => time.as_micros(),
                other => panic!("{other:?}"),
            };
            rests.into_iter().map(us).collect()
        };
        let growing = slept(rests(&mut idle, start, &[us(30); 10]));
        assert_eq!(growing, [1, 2, 4, 8, 16, 32, 64, 100, 100, 100]);
        let second = us(1_000_000);
        let long = slept(rests(&mut idle, start, &[second; 6]));
        assert_eq!(long, [200, 400, 800, 1_000, 1_000, 1_000]);
        idle.busy(start + second);
        let again = [second + us(19), second + us(20)];
        assert_eq!(rests(&mut idle, start, &again), [Rest::Yield, Rest::Sleep(us(1))]);
    }

    #[test]
    fn the_longest_sleep_may_be_anything() {
        let start = Instant::now();
        let hour = us(3_600_000_000);
        for (max_sleep, rest) in [
            (us(0), Rest::Yield),
            (Duration::from_nanos(1), Rest::Sleep(Duration::from_nanos(1))),
            (us(10_000), Rest::Sleep(us(10_000))),
        ] {
            let mut idle = Idle { waitable: false, ..Idle::new(start, us(20), max_sleep) };
            let last = rests(&mut idle, start, &[us(500); 30]).pop();
            assert_eq!(last, Some(rest));
        }
        let mut idle = Idle { waitable: false, ..Idle::new(start, us(20), us(10_000)) };
        assert_eq!(rests(&mut idle, start, &[hour; 30]).pop(), Some(Rest::Sleep(us(10_000))));
    }
}
