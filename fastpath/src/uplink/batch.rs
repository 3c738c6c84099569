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

use encap::wire::buf::{BufPool, PacketBuf};

use super::address::RawAddress;
use super::message::Message;
use crate::port::MAX_BURST;

/// Messages received in one call. With runs in them, more gain nothing.
pub(crate) const RX_BATCH: usize = 8;

/// Room for the control messages of one received message, aligned to 8 bytes.
type RxControl = [u64; 13];

// The kernel's drop count, the traffic class, the size of a run's datagrams, and a time stamp should
// one be asked for.
// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(
    size_of::<RxControl>()
        == unsafe {
            (3 * libc::CMSG_SPACE(size_of::<libc::c_int>() as u32)
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

/// The control message that has one send cut into datagrams of equal size (udp(7)).
#[derive(Clone, Copy)]
#[repr(C)]
struct SegmentMessage {
    header: libc::cmsghdr,
    /// UDP payload of each datagram but the last, in bytes.
    value: u16,
}

impl SegmentMessage {
    // SAFETY: CMSG_LEN only computes.
    const LEN: usize = unsafe { libc::CMSG_LEN(size_of::<u16>() as u32) as usize };

    fn empty() -> Self {
        // SAFETY: `cmsghdr` is made of integers, for which all zeros is a value.
        Self { header: unsafe { mem::zeroed() }, value: 0 }
    }

    fn set(&mut self, size: u16) {
        self.header.cmsg_len = Self::LEN as _;
        (self.header.cmsg_level, self.header.cmsg_type) = (libc::SOL_UDP, libc::UDP_SEGMENT);
        self.value = size;
    }
}

/// The control messages of one message to be sent: both, either or none are passed.
#[derive(Clone, Copy)]
#[repr(C)]
struct TxControl {
    mark: MarkMessage,
    segment: SegmentMessage,
}

// The second message stands where CMSG_NXTHDR finds it behind the first.
// SAFETY: CMSG_SPACE only computes.
const _: () = assert!(
    mem::offset_of!(TxControl, segment)
        == unsafe { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) as usize }
);

impl TxControl {
    fn empty() -> Self {
        Self { mark: MarkMessage::empty(), segment: SegmentMessage::empty() }
    }

    /// Writes what `message` needs; says where that begins and how long it is.
    fn set(&mut self, message: &Message<'_>) -> (*mut libc::c_void, usize) {
        // A mark of 0 is what the socket sends by itself: the kernel is spared the message.
        if message.mark != 0 {
            self.mark.set(message.remote.is_ipv4(), message.mark);
        }
        let size = message.cut();
        if let Some(size) = size {
            self.segment.set(size);
        }
        let both = mem::offset_of!(Self, segment) + SegmentMessage::LEN;
        match (message.mark != 0, size.is_some()) {
            (false, false) => (ptr::null_mut(), 0),
            (true, false) => (ptr::from_mut(self).cast(), MarkMessage::LEN),
            (false, true) => ((&raw mut self.segment).cast(), SegmentMessage::LEN),
            (true, true) => (ptr::from_mut(self).cast(), both),
        }
    }
}

impl std::fmt::Debug for TxControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (self.mark.value, self.segment.value).fmt(f)
    }
}

const EMPTY_IOVEC: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn empty_header() -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is made of integers and pointers, for which all zeros is a value.
    unsafe { mem::zeroed() }
}

/// One received message: a datagram, or a run of them.
#[derive(Debug)]
pub(super) struct RxMessage {
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
    /// Bytes of each datagram of a run but the last; None for a single one.
    pub(super) segment_size: Option<libc::c_int>,
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
            headers: (0..RX_BATCH).map(|_| empty_header()).collect(),
            iovecs: vec![EMPTY_IOVEC; RX_BATCH].into(),
            addresses: vec![RawAddress::EMPTY; RX_BATCH].into(),
            controls: vec![[0; 13]; RX_BATCH].into(),
            buffers: Vec::with_capacity(RX_BATCH),
        }
    }

    /// Takes empty buffers from `pool` until there is one for each message of a burst.
    pub(super) fn fill(&mut self, pool: &mut BufPool) {
        while self.buffers.len() < RX_BATCH {
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
    pub(super) fn take(&mut self, count: usize) -> impl Iterator<Item = RxMessage> {
        let count = count.min(self.buffers.len());
        let slots = self.headers.iter().zip(&self.addresses).zip(&mut self.controls);
        self.buffers.drain(..count).zip(slots).map(|(mut buf, ((header, address), control))| {
            buf.set_len(header.msg_len as usize);
            RxMessage {
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
            (libc::SOL_UDP, libc::UDP_GRO) if least(size_of::<libc::c_int>()) => {
                // SAFETY: the message holds at least an int; it may be unaligned.
                told.segment_size = Some(unsafe { data.cast::<libc::c_int>().read_unaligned() });
            }
            _ => {}
        }
        // SAFETY: `header` is one of this message's.
        next = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    told
}

/// Room for a burst to be sent.
#[derive(Debug)]
pub(super) struct TxBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[TxControl]>,
    /// The errno of every call that begins with a run, for tests; one behind others stops it.
    #[cfg(test)]
    pub(super) refuse_runs: Option<i32>,
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
            controls: vec![TxControl::empty(); MAX_BURST].into(),
            #[cfg(test)]
            refuse_runs: None,
        }
    }

    /// Sends the first [`MAX_BURST`] messages without waiting; returns how many the kernel took.
    ///
    /// # Errors
    /// The first message was not taken.
    pub(super) fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        messages: impl Iterator<Item = Message<'a>>,
    ) -> io::Result<usize> {
        let slots = self.headers.iter_mut().zip(&mut self.iovecs).zip(&mut self.addresses);
        let slots = slots.zip(&mut self.controls);
        let mut count = 0;
        for ((((header, iovec), address), control), message) in slots.zip(messages) {
            #[cfg(test)]
            if let Some(errno) = self.refuse_runs.filter(|_| message.cut().is_some()) {
                if count == 0 {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                break;
            }
            iovec.iov_base = message.bytes.as_ptr().cast_mut().cast();
            iovec.iov_len = message.bytes.len();
            header.msg_hdr.msg_namelen = address.set(message.remote);
            header.msg_hdr.msg_name = ptr::from_mut(address).cast();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            let (start, len) = control.set(&message);
            header.msg_hdr.msg_control = start;
            header.msg_hdr.msg_controllen = len as _;
            count += 1;
        }
        // SAFETY: the first `count` headers were all written above; each points to one iovec and
        // one address of its own in `self`, to the control messages of its own or to none, and its
        // iovec to the bytes of a message, with their true lengths. `self` stays borrowed during
        // the call, the bytes for `'a`, and the call only reads what they point to.
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
