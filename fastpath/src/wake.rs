//! Waiting for several descriptors, and being woken by another thread.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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

    /// Takes pending wake-ups back.
    pub fn clear(&self) {
        let mut count = [0_u8; 8];
        // Nothing pending is EAGAIN and fine.
        // SAFETY: the buffer is 8 bytes, as many as eventfd gives, and lives during the call.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
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

    /// Waits until one is readable or in error, at the longest for `timeout` (rounded up to a
    /// millisecond). Says whether one is; a signal ends the wait too.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        let ms = timeout.as_nanos().div_ceil(1_000_000);
        let ms = i32::try_from(ms).unwrap_or(i32::MAX);
        let count = self.0.len() as libc::nfds_t;
        // SAFETY: the pointer and the count are those of the vector, which lives during the call
        // and is not touched by anyone else (&mut self).
        let ready = unsafe { libc::poll(self.0.as_mut_ptr(), count, ms) };
        ready > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
