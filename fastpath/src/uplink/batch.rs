//! The arrays that `recvmmsg` and `sendmmsg` work on, made once and reused.
//!
//! A message header points into its neighbours' memory: iovec, address, control buffer, packet.
//! All pointers are written right before the call that follows them, from borrows that outlive
//! it, and are never followed on this side: a stale one left behind is only a number.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use encap::wire::buf::{BufPool, Datagram, PacketBuf};

use super::address::RawAddress;
use crate::port::MAX_BURST;

/// Room for one control message with the kernel's drop count, aligned to 8 bytes.
type Control = [u64; 4];

const EMPTY_IOVEC: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn empty_header() -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is made of integers and pointers, for which all zeros is a value.
    unsafe { std::mem::zeroed() }
}

/// One received datagram.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) buf: PacketBuf,
    /// None if it is no IP address.
    pub(super) remote: Option<SocketAddr>,
    /// It was longer than the buffer.
    pub(super) truncated: bool,
    /// Datagrams dropped on this socket since it was made, when the kernel says so.
    pub(super) kernel_drops: Option<u32>,
}

/// A burst to be received.
#[derive(Debug)]
pub(super) struct RxBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[Control]>,
    buffers: Vec<PacketBuf>,
}

// SAFETY: the pointers in `headers` and `iovecs` are written anew before each use, through
// `&mut self`, and point only into memory that `self` owns and that moves along with it.
unsafe impl Send for RxBatch {}

impl RxBatch {
    pub(super) fn new() -> Self {
        Self {
            headers: (0..MAX_BURST).map(|_| empty_header()).collect(),
            iovecs: vec![EMPTY_IOVEC; MAX_BURST].into(),
            addresses: vec![RawAddress::EMPTY; MAX_BURST].into(),
            controls: vec![[0; 4]; MAX_BURST].into(),
            buffers: Vec::with_capacity(MAX_BURST),
        }
    }

    /// Takes empty buffers from `pool` until there is one for each datagram of a burst.
    pub(super) fn fill(&mut self, pool: &mut BufPool) {
        while self.buffers.len() < MAX_BURST {
            self.buffers.push(pool.alloc());
        }
    }

    /// Receives up to as many datagrams as there are buffers, without waiting.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let slots = self.headers.iter_mut().zip(&mut self.iovecs).zip(&mut self.addresses);
        let slots = slots.zip(&mut self.controls).zip(&mut self.buffers);
        let mut count = 0;
        for ((((header, iovec), address), control), buf) in slots {
            let room = buf.spare_mut();
            iovec.iov_base = room.as_mut_ptr().cast();
            iovec.iov_len = room.len();
            header.msg_len = 0;
            header.msg_hdr.msg_name = ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = RawAddress::ROOM;
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = size_of::<Control>() as _;
            header.msg_hdr.msg_flags = 0;
            count += 1;
        }
        // SAFETY: the first `count` headers were all written above; each points to one iovec,
        // one address and one control buffer of its own, with their true lengths, and its iovec
        // to the spare room of a packet buffer of its own. All live in `self`, which is
        // borrowed exclusively and not moved during the call. No timeout is given.
        let result = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Takes the first `count` datagrams out, `count` being what [`Self::receive`] returned.
    pub(super) fn take(&mut self, count: usize) -> impl Iterator<Item = Received> {
        let count = count.min(self.buffers.len());
        let slots = self.headers.iter().zip(&self.addresses).zip(&mut self.controls);
        self.buffers.drain(..count).zip(slots).map(|(mut buf, ((header, address), control))| {
            buf.set_len(header.msg_len as usize);
            Received {
                buf,
                remote: address.get(header.msg_hdr.msg_namelen),
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                kernel_drops: kernel_drops(control, header.msg_hdr.msg_controllen),
            }
        })
    }
}

/// The count that `SO_RXQ_OVFL` attaches once there is one: in the first `len` bytes of `control`.
fn kernel_drops(control: &mut Control, len: usize) -> Option<u32> {
    if len == 0 {
        return None;
    }
    let mut message = empty_header().msg_hdr;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = len.min(size_of::<Control>()) as _;
    // SAFETY: the control buffer is as long as `msg_controllen` says and aligned to 8 bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: `next` is null or a header that lies within the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        let least = size_of::<libc::cmsghdr>() + size_of::<u32>();
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SO_RXQ_OVFL)
            && header.cmsg_len >= least as _
        {
            // SAFETY: the message holds at least a u32; it may be unaligned.
            return Some(unsafe { libc::CMSG_DATA(header).cast::<u32>().read_unaligned() });
        }
        // SAFETY: `header` is one of this message's.
        next = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    None
}

/// What can be sent: a payload and where it goes.
pub(super) trait Outgoing {
    fn payload(&self) -> &[u8];
    fn remote(&self) -> SocketAddr;
}

impl Outgoing for Datagram {
    fn payload(&self) -> &[u8] {
        self.buf.data()
    }

    fn remote(&self) -> SocketAddr {
        self.remote
    }
}

impl Outgoing for (&[u8], SocketAddr) {
    fn payload(&self) -> &[u8] {
        self.0
    }

    fn remote(&self) -> SocketAddr {
        self.1
    }
}

/// Room for a burst to be sent.
#[derive(Debug)]
pub(super) struct TxBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
}

// SAFETY: the pointers in `headers` and `iovecs` are written anew before each use, through
// `&mut self`, and are not followed otherwise.
unsafe impl Send for TxBatch {}

impl TxBatch {
    pub(super) fn new() -> Self {
        Self {
            headers: (0..MAX_BURST).map(|_| empty_header()).collect(),
            iovecs: vec![EMPTY_IOVEC; MAX_BURST].into(),
            addresses: vec![RawAddress::EMPTY; MAX_BURST].into(),
        }
    }

    /// Sends the first [`MAX_BURST`] items without waiting; returns how many the kernel took.
    ///
    /// # Errors
    /// The first item was not taken.
    pub(super) fn send<T: Outgoing>(
        &mut self,
        socket: BorrowedFd<'_>,
        items: &[T],
    ) -> io::Result<usize> {
        let slots = self.headers.iter_mut().zip(&mut self.iovecs).zip(&mut self.addresses);
        let mut count = 0;
        for (((header, iovec), address), item) in slots.zip(items) {
            let payload = item.payload();
            iovec.iov_base = payload.as_ptr().cast_mut().cast();
            iovec.iov_len = payload.len();
            header.msg_hdr.msg_namelen = address.set(item.remote());
            header.msg_hdr.msg_name = ptr::from_mut(address).cast();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            count += 1;
        }
        // SAFETY: the first `count` headers were all written above; each points to one iovec and
        // one address of its own in `self`, and its iovec to a payload of `items`, with their
        // true lengths. All stay borrowed during the call, which only reads the payloads. The
        // control pointers are null since creation.
        let result = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}
