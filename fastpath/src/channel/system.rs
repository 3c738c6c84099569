//! What the sockets of channels need of the kernel and no safe library gives.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// Descriptors that one [`Epoll::wait`] tells of at most.
pub(super) const MAX_READY: usize = 64;

/// Descriptors of which one record may bring as many; one more than is allowed, so that it is seen.
const MAX_DESCRIPTORS: usize = 2;

/// Room for the control message that brings descriptors, aligned to 8 bytes.
type DescriptorControl = [u64; 3];

// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(
    size_of::<DescriptorControl>()
        == unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32) as usize }
);

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What is ready of one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    /// What it was registered with.
    pub(super) token: u64,
    /// `EPOLLIN` and so on.
    pub(super) events: u32,
}

/// A set of descriptors of which the kernel says which are ready; itself readable while one is.
#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes numbers only.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor was just opened here, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn add(&self, fd: BorrowedFd<'_>, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, events)
    }

    pub(super) fn modify(&self, fd: BorrowedFd<'_>, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, events)
    }

    pub(super) fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, what: i32, fd: BorrowedFd<'_>, token: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        let (set, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: both descriptors are open, being borrowed; the event lives during the call, which
        // only reads it.
        check(unsafe { libc::epoll_ctl(set, what, fd, &raw mut event) }).map(|_| ())
    }

    /// Says what is ready now, without waiting.
    pub(super) fn wait(&self, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MAX_READY];
        // SAFETY: the array is as long as the call is told, and lives during it.
        let count = check(unsafe {
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), MAX_READY as i32, 0)
        })?;
        let count = usize::try_from(count).unwrap_or(0);
        ready.clear();
        let told = events.iter().take(count);
        ready.extend(told.map(|event| Ready { token: event.u64, events: event.events }));
        Ok(())
    }
}

/// A timer that is readable once its time has come.
#[derive(Debug)]
pub(super) struct Timer(OwnedFd);

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: timerfd_create takes numbers only.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        // SAFETY: the descriptor was just opened here, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn borrow(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }

    /// Fires once after `delay`, and not any more for what was set before; never for no delay.
    pub(super) fn set(&self, delay: Duration) -> io::Result<()> {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(delay.as_secs()).unwrap_or(libc::time_t::MAX),
            // Below 1,000,000,000, which every kind of long holds.
            tv_nsec: delay.subsec_nanos() as _,
        };
        let time = libc::itimerspec { it_interval: none, it_value: value };
        // SAFETY: the time lives during the call, which only reads it; the old one is not wanted.
        check(unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const time, ptr::null_mut())
        })
        .map(|_| ())
    }
}

/// Asks for room for `bytes` of what was sent and not read yet, beyond the system's limit if that is
/// permitted, else up to it.
pub(super) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_SNDBUFFORCE, libc::SO_SNDBUF] {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is a c_int of this frame, as the length says; the call only reads it.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                len,
            )
        };
        if result == 0 {
            return;
        }
    }
}

/// A first record, and what came with it.
#[derive(Debug)]
pub(super) struct First {
    /// Bytes of it; 0 at the end of the connection.
    pub(super) len: usize,
    /// It was longer than the room for it.
    pub(super) truncated: bool,
    /// The descriptors, at most [`MAX_DESCRIPTORS`] of those that were sent.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Receives a record into `room` and the descriptors that came with it, without waiting.
pub(super) fn receive_first(socket: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<First> {
    let mut iovec = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let mut control: DescriptorControl = [0; 3];
    // SAFETY: `msghdr` is made of integers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iovec;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<DescriptorControl>() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to one iovec and one control buffer of this frame with their true
    // lengths, the iovec to `room`, which is borrowed exclusively during the call.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    let descriptors = descriptors(&message);
    Ok(First { len, truncated: message.msg_flags & libc::MSG_TRUNC != 0, descriptors })
}

/// Takes the descriptors out of a message that was just received; they are nobody's yet.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the control buffer is the caller's, as long as `msg_controllen` says, and aligned to
    // 8 bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: `next` is null or a header that lies within the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let holds = |count: usize| {
                let bytes = (count * size_of::<RawFd>()) as u32;
                // SAFETY: CMSG_LEN only computes.
                header.cmsg_len >= unsafe { libc::CMSG_LEN(bytes) } as _
            };
            // SAFETY: only points behind the header, which lies within the control buffer.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for index in (0..MAX_DESCRIPTORS).take_while(|index| holds(index + 1)) {
                // SAFETY: the message is as long as its header says, so it holds this number; it
                // may be unaligned. The kernel opened the descriptor for this message, and the
                // message is gone through once, so nobody else owns it.
                found.push(unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) });
            }
        }
        // SAFETY: `header` is one of this message's.
        next = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    found
}
