//! The arrays that `recvmmsg` and `sendmmsg` work on, made once and reused.
//!
//! A message header points into its neighbours' memory: iovec, address, control buffer, packet.
//! All pointers are written right before the call that follows them, from borrows that outlive
//! it, and are never followed on this side: a stale one left behind is only a number.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use encap::wire::buf::{BufPool, Datagram, PacketBuf};

use super::address::RawAddress;
use crate::port::MAX_BURST;

/// Room for the control messages of one received datagram, aligned to 8 bytes.
type RxControl = [u64; 10];

// The kernel's drop count, the traffic class, and a time stamp should one be asked for.
// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(
    size_of::<RxControl>()
        == unsafe {
            (2 * libc::CMSG_SPACE(size_of::<libc::c_int>() as u32)
                + libc::CMSG_SPACE(size_of::<libc::timespec>() as u32)) as usize
        }
);

/// The control message that gives one datagram its TOS (ip(7)) or traffic class (RFC 3542).
#[derive(Clone, Copy)]
#[repr(C)]
struct MarkMessage {
    header: libc::cmsghdr,
    /// An int for both families.
    value: libc::c_int,
}

// The data begins where CMSG_DATA looks for it, and the last message needs no padding.
// SAFETY: CMSG_LEN only computes.
const _: () = assert!(mem::offset_of!(MarkMessage, value) == unsafe { libc::CMSG_LEN(0) as usize });

impl MarkMessage {
    // SAFETY: CMSG_LEN only computes.
    const LEN: usize = unsafe { libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as usize };

    fn empty() -> Self {
        // SAFETY: `cmsghdr` is made of integers, for which all zeros is a value.
        Self { header: unsafe { mem::zeroed() }, value: 0 }
    }

    fn set(&mut self, ipv4: bool, mark: u8) {
        self.header.cmsg_len = Self::LEN as _;
        (self.header.cmsg_level, self.header.cmsg_type) = if ipv4 {
            (libc::IPPROTO_IP, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
        };
        self.value = mark.into();
    }
}

impl std::fmt::Debug for MarkMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value.fmt(f)
    }
}

const EMPTY_IOVEC: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn empty_header() -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is made of integers and pointers, for which all zeros is a value.
    unsafe { mem::zeroed() }
}

/// One received datagram.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) buf: PacketBuf,
    /// None if it is no IP address.
    pub(super) remote: Option<SocketAddr>,
    /// It was longer than the buffer.
    pub(super) truncated: bool,
    /// What the kernel said beside it.
    pub(super) told: Told,
}

/// What control messages say about one received datagram.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    /// Datagrams dropped on this socket since it was made, when the kernel says so.
    pub(super) kernel_drops: Option<u32>,
    /// Its TOS or traffic class byte; 0 when the kernel does not say.
    pub(super) mark: u8,
}

/// A burst to be received.
#[derive(Debug)]
pub(super) struct RxBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[RxControl]>,
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
            controls: vec![[0; 10]; MAX_BURST].into(),
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
            header.msg_hdr.msg_controllen = size_of::<RxControl>() as _;
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
                told: told(control, header.msg_hdr.msg_controllen),
            }
        })
    }
}

/// Reads the control messages in the first `len` bytes of `control`.
fn told(control: &mut RxControl, len: usize) -> Told {
    let mut told = Told::default();
    if len == 0 {
        return told;
    }
    let mut message = empty_header().msg_hdr;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = len.min(size_of::<RxControl>()) as _;
    // SAFETY: the control buffer is as long as `msg_controllen` says and aligned to 8 bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: `next` is null or a header that lies within the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        // SAFETY: CMSG_LEN only computes.
        let least = |bytes: usize| header.cmsg_len >= unsafe { libc::CMSG_LEN(bytes as u32) } as _;
        // SAFETY: only points behind the header, which lies within the control buffer.
        let data = unsafe { libc::CMSG_DATA(header) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if least(size_of::<u32>()) => {
                // SAFETY: the message holds at least a u32; it may be unaligned.
                told.kernel_drops = Some(unsafe { data.cast::<u32>().read_unaligned() });
            }
            // A byte here, an int in IPv6 (ip(7), RFC 3542 section 6.5).
            (libc::IPPROTO_IP, libc::IP_TOS) if least(1) => {
                // SAFETY: the message holds at least a byte.
                told.mark = unsafe { data.read() };
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if least(size_of::<libc::c_int>()) => {
                // SAFETY: the message holds at least an int; it may be unaligned.
                told.mark = unsafe { data.cast::<libc::c_int>().read_unaligned() } as u8;
            }
            _ => {}
        }
        // SAFETY: `header` is one of this message's.
        next = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    told
}

/// What can be sent: a payload, where it goes, and its TOS or traffic class byte.
pub(super) trait Outgoing {
    fn payload(&self) -> &[u8];
    fn remote(&self) -> SocketAddr;
    fn mark(&self) -> u8;
}

impl Outgoing for Datagram {
    fn payload(&self) -> &[u8] {
        self.buf.data()
    }

    fn remote(&self) -> SocketAddr {
        self.remote
    }

    fn mark(&self) -> u8 {
        self.mark
    }
}

impl Outgoing for (&[u8], SocketAddr, u8) {
    fn payload(&self) -> &[u8] {
        self.0
    }

    fn remote(&self) -> SocketAddr {
        self.1
    }

    fn mark(&self) -> u8 {
        self.2
    }
}

/// Room for a burst to be sent.
#[derive(Debug)]
pub(super) struct TxBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    marks: Box<[MarkMessage]>,
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
            marks: vec![MarkMessage::empty(); MAX_BURST].into(),
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
        let slots = slots.zip(&mut self.marks);
        let mut count = 0;
        for ((((header, iovec), address), mark), item) in slots.zip(items) {
            let payload = item.payload();
            iovec.iov_base = payload.as_ptr().cast_mut().cast();
            iovec.iov_len = payload.len();
            header.msg_hdr.msg_namelen = address.set(item.remote());
            header.msg_hdr.msg_name = ptr::from_mut(address).cast();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            if item.mark() == 0 {
                // What the socket sends by itself: the kernel is spared the message.
                header.msg_hdr.msg_control = ptr::null_mut();
                header.msg_hdr.msg_controllen = 0;
            } else {
                mark.set(item.remote().is_ipv4(), item.mark());
                header.msg_hdr.msg_control = ptr::from_mut(mark).cast();
                header.msg_hdr.msg_controllen = MarkMessage::LEN as _;
            }
            count += 1;
        }
        // SAFETY: the first `count` headers were all written above; each points to one iovec and
        // one address of its own in `self`, to one mark of its own or to no control buffer, and
        // its iovec to a payload of `items`, with their true lengths. All stay borrowed during
        // the call, which only reads what they point to.
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
