//! Receive interrupts: one descriptor for the queues that one worker reads.
//!
//! Whoever is to wait has the queues armed first. A packet that came before that raises no interrupt any
//! more, so each queue is looked at once more when it is armed; what is found stays in the queue and
//! comes with its next burst. The descriptor tells of edges: nothing has to be read from the port's own
//! descriptors, which may be the guest's, and change with it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::queue::RxQueue;
use crate::port::Armed;

/// Events that are taken back at once; more are taken back the next time.
const EVENTS: usize = 16;

/// The interrupts of some receive queues.
#[derive(Debug)]
pub struct Interrupts(Arc<OwnedFd>);

impl Interrupts {
    /// Those of these queues; none where one of them has no interrupts.
    #[must_use]
    pub fn of(queues: &mut [RxQueue]) -> Option<Self> {
        // SAFETY: epoll_create1 takes a number only.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            log::warn!("no receive interrupts: {error}");
            return None;
        }
        // SAFETY: the descriptor was just opened here, so nobody else owns it.
        let epoll = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let all = queues.iter_mut().all(|queue| queue.interrupt_by(&epoll));
        all.then_some(Self(epoll))
    }

    /// Waits for something else too: for as long as it is readable, or each time that it becomes so.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn add(&self, fd: RawFd, edges: bool) -> io::Result<()> {
        let edges = if edges { libc::EPOLLET } else { 0 };
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | edges) as u32, u64: 0 };
        // SAFETY: `event` is of this frame and only read.
        let result =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Becomes readable with the first packet after [`Self::arm`], of any of the queues.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Asks for an interrupt with the next packet of each of `queues`, and looks whether there is one
    /// already. They are those that this was made of.
    pub fn arm(&self, queues: &mut [RxQueue]) -> Armed {
        self.clear();
        let mut armed = Armed::Ready;
        for queue in queues {
            if !queue.arm(true) {
                return Armed::Impossible;
            }
            if queue.look() {
                armed = Armed::Pending;
            }
        }
        armed
    }

    /// Asks for no more interrupts, and takes back those that came.
    pub fn disarm(&self, queues: &mut [RxQueue]) {
        for queue in queues {
            queue.arm(false);
        }
        self.clear();
    }

    fn clear(&self) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // SAFETY: there is room for as many events as are said, in this frame; it does not wait.
        unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), EVENTS as i32, 0) };
    }
}
