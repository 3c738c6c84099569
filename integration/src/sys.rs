//! The calls into the kernel that std and socket2 do not offer; the only unsafe code of the crate.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use socket2::SockAddr;

pub mod offload;

/// Most packets that one [`send_batch`] or [`recv_batch`] call carries.
pub const MAX_BATCH: usize = 64;

/// Moves the calling thread, and only it, into the network namespace that `namespace` refers to.
///
/// # Errors
/// The file is no network namespace, or the process lacks `CAP_SYS_ADMIN`.
pub fn enter_netns(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes two integers and touches no memory of ours; the descriptor is open
    // because `namespace` is borrowed for the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(|_| ())
}

/// Makes the kernel kill the child when the thread that spawned it ends, so that a harness that
/// dies by SIGKILL leaves no process behind.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec; prctl is async-signal-safe, and the closure
    // neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)).map(|_| ())
        })
    }
}

/// Sends `signal` to the one process `pid`, a child of ours that has not been reaped yet.
///
/// # Errors
/// There is no such process.
pub fn send_signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    if pid <= 0 {
        return Err(io::Error::other("a process id is positive"));
    }
    // SAFETY: kill takes two integers; a positive pid names one process, never a group.
    check(unsafe { libc::kill(pid, signal) }).map(|_| ())
}

/// The descriptor of a plain tap, borrowed for as long as the tap.
#[must_use]
pub fn tap_fd(tap: &tun_tap::Iface) -> BorrowedFd<'_> {
    // SAFETY: the tap owns an open descriptor until it is dropped, and the result borrows the tap.
    unsafe { BorrowedFd::borrow_raw(tap.as_raw_fd()) }
}

/// Whether `fd` becomes readable within `timeout` (rounded up to whole milliseconds).
///
/// # Errors
/// Whatever `poll` says, except an interruption by a signal, which reads as "not readable".
pub fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    poll_one(fd, libc::POLLIN, timeout)
}

/// Whether `fd` becomes writable within `timeout` (rounded up to whole milliseconds).
///
/// # Errors
/// As [`readable`].
pub fn writable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    poll_one(fd, libc::POLLOUT, timeout)
}

fn poll_one(fd: BorrowedFd<'_>, events: libc::c_short, timeout: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: one initialised pollfd that outlives the call, and the count says one.
    match check(unsafe { libc::poll(&raw mut entry, 1, millis) }) {
        Ok(n) => Ok(n > 0),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(e) => Err(e),
    }
}

/// Sets the receive buffer of a socket past the system's limit; needs `CAP_NET_ADMIN`.
///
/// # Errors
/// No permission.
pub fn force_recv_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// Sets the send buffer of a socket past the system's limit; needs `CAP_NET_ADMIN`.
///
/// # Errors
/// No permission.
pub fn force_send_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
}

fn set_int(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option takes an int; pointer and length describe `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
    .map(|_| ())
}

/// Lets sleeps of the calling thread end within a microsecond of their time instead of 50.
pub fn sharpen_timers() {
    // SAFETY: integers only; on refusal the slack stays what it was, which costs accuracy only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000 as libc::c_ulong) };
}

/// Ticks per second of the times in `/proc/stat`.
#[must_use]
pub fn clock_ticks_per_second() -> u64 {
    // SAFETY: sysconf takes an integer and has no other effect.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// Sends up to [`MAX_BATCH`] of `packets` in one call and says how many the kernel took.
///
/// # Errors
/// The first packet was refused; with a non-blocking socket this includes `WouldBlock`.
pub fn send_batch(
    socket: BorrowedFd<'_>,
    packets: &[&[u8]],
    to: Option<&SockAddr>,
) -> io::Result<usize> {
    let count = packets.len().min(MAX_BATCH);
    let empty_iov = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    let mut iovecs = [empty_iov; MAX_BATCH];
    // SAFETY: mmsghdr is integers and nullable pointers, for which all zeroes is a valid value.
    let mut headers: [libc::mmsghdr; MAX_BATCH] = unsafe { std::mem::zeroed() };
    for ((packet, iovec), header) in packets.iter().zip(&mut iovecs).zip(&mut headers) {
        iovec.iov_base = packet.as_ptr().cast_mut().cast();
        iovec.iov_len = packet.len();
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
        if let Some(address) = to {
            header.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = address.len();
        }
    }
    // SAFETY: the first `count` headers each point at one iovec of this frame, at a packet borrowed
    // for the call and at an address borrowed for the call; the kernel only reads through them.
    let sent = check(unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as libc::c_uint, 0)
    })?;
    usize::try_from(sent).map_err(io::Error::other)
}

/// Receives up to [`MAX_BATCH`] packets into `buffers` without waiting; `lengths` gets the sizes.
///
/// # Errors
/// `WouldBlock` when there is none, or whatever the socket has to say.
pub fn recv_batch(
    socket: BorrowedFd<'_>,
    buffers: &mut [Vec<u8>],
    lengths: &mut [usize],
) -> io::Result<usize> {
    let count = buffers.len().min(lengths.len()).min(MAX_BATCH);
    let empty_iov = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    let mut iovecs = [empty_iov; MAX_BATCH];
    // SAFETY: mmsghdr is integers and nullable pointers, for which all zeroes is a valid value.
    let mut headers: [libc::mmsghdr; MAX_BATCH] = unsafe { std::mem::zeroed() };
    for ((buffer, iovec), header) in buffers.iter_mut().zip(&mut iovecs).zip(&mut headers) {
        iovec.iov_base = buffer.as_mut_ptr().cast();
        iovec.iov_len = buffer.len();
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` headers each point at one iovec of this frame, which describes the
    // initialised bytes of a buffer borrowed mutably for the call; the timeout may be null.
    let got = check(unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    })?;
    let got = usize::try_from(got).map_err(io::Error::other)?;
    for (length, header) in lengths.iter_mut().zip(&headers[..got]) {
        *length = header.msg_len as usize;
    }
    Ok(got)
}

/// Waits until at least one of `fds` is readable or `timeout` (to the nanosecond) has passed, and
/// says which are.
///
/// # Errors
/// Whatever `ppoll` says, except an interruption by a signal, which reads as "none".
pub fn readable_any<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Duration,
) -> io::Result<[bool; N]> {
    let mut entries =
        fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: N initialised entries and a timespec that outlive the call, and the count says N; no
    // signal mask is given.
    let result = check(unsafe {
        libc::ppoll(entries.as_mut_ptr(), N as libc::nfds_t, &raw const timeout, ptr::null())
    });
    match result {
        Ok(_) => Ok(entries.map(|entry| entry.revents != 0)),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(e) => Err(e),
    }
}

/// Lets the kernel note when each datagram of a socket arrived, for [`recv_stamped`].
///
/// # Errors
/// The socket knows no such option.
pub fn stamp_arrivals(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)
}

/// Receives one datagram into `buffer` without waiting: its length and the kernel's note of its
/// arrival as time since 1970, if there is one.
///
/// # Errors
/// `WouldBlock` when there is none, or whatever the socket has to say.
pub fn recv_stamped(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Duration>)> {
    let mut iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // Aligned as a control message header is; one timestamp needs 32 bytes.
    let mut control = [0_u64; 16];
    // SAFETY: msghdr is integers and nullable pointers, for which all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: the header points at one iovec over a buffer borrowed mutably for the call and at a
    // control buffer of this frame; both lengths are theirs.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let Ok(length) = usize::try_from(got) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel filled the header in, so its control fields describe whole messages
    // inside `control`, which still lives; both macros only step within those bounds.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    let mut stamp = None;
    while !at.is_null() {
        // SAFETY: `at` is not null, so it points at a whole, aligned message header in `control`.
        let message = unsafe { &*at };
        if message.cmsg_level == libc::SOL_SOCKET && message.cmsg_type == libc::SCM_TIMESTAMPNS {
            // SAFETY: a message of this type carries one timespec; it may be unaligned.
            let time: libc::timespec = unsafe { ptr::read_unaligned(libc::CMSG_DATA(at).cast()) };
            let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
            stamp = Some(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)));
        }
        // SAFETY: as for CMSG_FIRSTHDR, and `at` came from it.
        at = unsafe { libc::CMSG_NXTHDR(&raw const header, at) };
    }
    Ok((length, stamp))
}

/// Binds a packet socket that was opened with protocol 0 to one interface of its namespace. From
/// then on it sees every frame that arrives there and none that leaves.
///
/// # Errors
/// It is no packet socket, or there is no such interface.
pub fn bind_packet(socket: BorrowedFd<'_>, interface_index: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface_index;
    // SAFETY: pointer and length describe `address`, which outlives the call.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })
    .map(|_| ())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
