//! Waiting for several descriptors, and being woken by another thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

/// Wakes the thread that waits with it; any thread may call.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker with nothing pending.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes numbers only.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened here, so nobody else owns it.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Makes the waiting thread's wait end, now or when it comes to it.
    pub fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // A counter that is full already wakes as well, so the result does not matter.
        // SAFETY: the buffer is 8 bytes, as many as eventfd wants, and lives during the call.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes pending wake-ups back; says whether there were any.
    pub fn clear(&self) -> bool {
        let mut count = [0_u8; 8];
        // Nothing pending is EAGAIN and fine.
        // SAFETY: the buffer is 8 bytes, as many as eventfd gives, and lives during the call.
        let result =
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        result > 0
    }

    /// The descriptor that becomes readable.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A set of descriptors to wait for.
#[derive(Default)]
pub struct PollSet(Vec<libc::pollfd>);

impl std::fmt::Debug for PollSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|entry| entry.fd)).finish()
    }
}

impl PollSet {
    /// Waits for these descriptors from now on.
    pub fn set(&mut self, fds: impl IntoIterator<Item = RawFd>) {
        self.0.clear();
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        self.0.extend(fds.into_iter().map(entry));
    }

    /// Waits until one is readable or in error, at the longest for `timeout`. Says whether one is;
    /// a signal ends the wait too.
    ///
    /// The timeout counts in nanoseconds and is never cut short. It ends late by the thread's
    /// timer slack, 50 us unless set otherwise ([`crate::process::prefer_latency`]), and by what
    /// the scheduler takes. With no time at all it only looks.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            // Below 1,000,000,000, which every kind of long holds.
            tv_nsec: timeout.subsec_nanos() as _,
        };
        let count = self.0.len() as libc::nfds_t;
        // SAFETY: the pointer and the count are those of the vector, which lives during the call
        // and is not touched by anyone else (&mut self). The timeout is a timespec of this
        // frame, which the call only reads, and no signal mask is given.
        let ready =
            unsafe { libc::ppoll(self.0.as_mut_ptr(), count, &raw const timeout, ptr::null()) };
        ready > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_wake_up_ends_the_wait_and_is_taken_back() {
        let waker = Waker::new().unwrap();
        let mut set = PollSet::default();
        set.set([waker.fd()]);
        assert!(!set.wait(Duration::ZERO));
        let other = waker.clone();
        std::thread::spawn(move || other.wake()).join().unwrap();
        assert!(set.wait(Duration::from_secs(10)));
        waker.clear();
        assert!(!set.wait(Duration::ZERO));
    }

    #[test]
    fn waits_are_not_rounded_to_milliseconds() {
        let waker = Waker::new().unwrap();
        let mut set = PollSet::default();
        set.set([waker.fd()]);
        let asked = Duration::from_micros(300);
        let wait = || {
            let start = Instant::now();
            assert!(!set.wait(asked));
            start.elapsed()
        };
        let waits: Vec<_> = std::iter::repeat_with(wait).take(50).collect();
        // What else runs on the machine only adds, so the shortest says what the call does.
        let shortest = waits.iter().min().unwrap();
        assert!(waits.iter().all(|wait| *wait >= asked), "{waits:?}");
        assert!(*shortest < Duration::from_millis(1), "{waits:?}");
    }

    #[test]
    fn endless_waits_end_with_a_wake_up() {
        let waker = Waker::new().unwrap();
        let mut set = PollSet::default();
        set.set([waker.fd()]);
        waker.wake();
        assert!(set.wait(Duration::MAX));
    }
}
