//! Packets of a program, received and sent many in a call; the arrays are made once and reused.
//!
//! All pointers are written right before the call that follows them, from borrows that outlive it,
//! and are never followed on this side: a stale one left behind is only a number.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::framing::{HEADER_LEN, MAX_RECORD_LEN};

/// Packets in one call: more gain nothing, and they hold the others up.
pub(super) const BATCH: usize = 64;

/// From one packet's room to the next: a few cache lines more than it needs, as small packets would
/// else all lie in the same set of the cache.
const STRIDE: usize = MAX_RECORD_LEN + 192;

const EMPTY_IOVEC: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn empty_header() -> libc::mmsghdr {
    // SAFETY: `mmsghdr` is made of integers and pointers, for which all zeros is a value.
    unsafe { mem::zeroed() }
}

/// A packet that was received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) bytes: &'a [u8],
    /// It was longer than [`MAX_RECORD_LEN`].
    pub(super) truncated: bool,
}

/// Room for packets to be received.
#[derive(Debug)]
pub(super) struct RxBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    /// [`STRIDE`] bytes for each packet. Pages of it that no packet reached take no memory.
    memory: Box<[u8]>,
    /// How many packets the last call gave.
    count: usize,
}

// SAFETY: the pointers in `headers` and `iovecs` are written anew before each use, through
// `&mut self`, and point only into memory that `self` owns and that moves along with it.
unsafe impl Send for RxBatch {}

impl RxBatch {
    pub(super) fn new() -> Self {
        Self {
            headers: (0..BATCH).map(|_| empty_header()).collect(),
            iovecs: vec![EMPTY_IOVEC; BATCH].into(),
            memory: vec![0; BATCH * STRIDE].into(),
            count: 0,
        }
    }

    /// Receives up to [`BATCH`] packets without waiting; says how many.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.count = 0;
        let rooms = self.memory.chunks_exact_mut(STRIDE);
        for ((header, iovec), room) in self.headers.iter_mut().zip(&mut self.iovecs).zip(rooms) {
            iovec.iov_base = room.as_mut_ptr().cast();
            iovec.iov_len = MAX_RECORD_LEN;
            header.msg_len = 0;
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_flags = 0;
        }
        let count = self.headers.len() as libc::c_uint;
        let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
        // SAFETY: all headers were written above; each points to one iovec of its own and to no
        // name or control buffer, and its iovec to MAX_RECORD_LEN bytes of its own in `memory`. All
        // live in `self`, which is borrowed exclusively and not moved during the call. No timeout
        // is given.
        let result =
            unsafe { libc::recvmmsg(fd, self.headers.as_mut_ptr(), count, flags, ptr::null_mut()) };
        self.count = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        Ok(self.count)
    }

    /// The packets that [`Self::receive`] gave.
    pub(super) fn packets(&self) -> impl ExactSizeIterator<Item = Packet<'_>> {
        let headers = self.headers.iter().take(self.count);
        headers.zip(self.memory.chunks_exact(STRIDE)).map(|(header, room)| {
            let len = (header.msg_len as usize).min(MAX_RECORD_LEN);
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            Packet { bytes: room.get(..len).unwrap_or_default(), truncated }
        })
    }

    /// Room for one record, for who receives it otherwise.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.memory.get_mut(..MAX_RECORD_LEN).unwrap_or_default()
    }
}

/// A packet to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutPacket<'a> {
    /// In front of the payload; none on a descriptor that carries no headers.
    pub(super) header: Option<[u8; HEADER_LEN]>,
    pub(super) payload: &'a [u8],
}

/// Room for packets to be sent.
#[derive(Debug)]
pub(super) struct TxBatch {
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[[libc::iovec; 2]]>,
    records: Box<[[u8; HEADER_LEN]]>,
}

// SAFETY: the pointers in `headers` and `iovecs` are written anew before each use, through
// `&mut self`, and are not followed otherwise.
unsafe impl Send for TxBatch {}

impl TxBatch {
    pub(super) fn new() -> Self {
        Self {
            headers: (0..BATCH).map(|_| empty_header()).collect(),
            iovecs: vec![[EMPTY_IOVEC; 2]; BATCH].into(),
            records: vec![[0; HEADER_LEN]; BATCH].into(),
        }
    }

    /// Sends the first [`BATCH`] packets without waiting; says how many the kernel took, and of how
    /// many. Of no packets it takes none.
    ///
    /// # Errors
    /// The first packet was not taken.
    pub(super) fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        packets: impl Iterator<Item = OutPacket<'a>>,
    ) -> io::Result<(usize, usize)> {
        let slots = self.headers.iter_mut().zip(&mut self.iovecs).zip(&mut self.records);
        let mut count = 0_u32;
        for (((header, iovecs), record), packet) in slots.zip(packets) {
            let [first, second] = iovecs;
            let prefix = packet.header.map_or(0, |bytes| {
                *record = bytes;
                HEADER_LEN
            });
            first.iov_base = record.as_mut_ptr().cast();
            first.iov_len = prefix;
            second.iov_base = packet.payload.as_ptr().cast_mut().cast();
            second.iov_len = packet.payload.len();
            header.msg_hdr.msg_iov = iovecs.as_mut_ptr();
            header.msg_hdr.msg_iovlen = 2;
            count += 1;
        }
        if count == 0 {
            return Ok((0, 0));
        }
        let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        // SAFETY: the first `count` headers were all written above; each points to two iovecs of
        // its own in `self` and to no name or control buffer, the iovecs to a record's header in
        // `self` and to a payload, with their true lengths. `self` stays borrowed during the call,
        // the payloads for `'a`, and the call only reads what they point to.
        let result = unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), count, flags) };
        let sent = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        Ok((sent, count as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use socket2::{Domain, Socket, Type};

    #[test]
    fn packets_come_as_they_went() {
        let (a, b) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let payloads = (0..BATCH + 1).map(|at| vec![at as u8; at * 3]).collect::<Vec<_>>();
        let packets = payloads.iter().map(|payload| OutPacket { header: Some([7; 16]), payload });
        let (mut tx, mut rx) = (TxBatch::new(), RxBatch::new());
        assert_eq!(tx.send(a.as_fd(), packets).unwrap(), (BATCH, BATCH));
        assert_eq!(rx.receive(b.as_fd()).unwrap(), BATCH);
        for (packet, payload) in rx.packets().zip(&payloads) {
            assert_eq!(packet.bytes[..16], [7; 16]);
            assert_eq!((&packet.bytes[16..], packet.truncated), (&payload[..], false));
        }
        assert_eq!(rx.receive(b.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(rx.packets().len(), 0);
        assert_eq!(tx.send(a.as_fd(), std::iter::empty()).unwrap(), (0, 0));
    }

    #[test]
    fn long_packets_are_marked() {
        let (a, b) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        a.send(&vec![1; MAX_RECORD_LEN + 1]).unwrap();
        let mut rx = RxBatch::new();
        assert_eq!(rx.receive(b.as_fd()).unwrap(), 1);
        let packet = rx.packets().next().unwrap();
        assert_eq!((packet.bytes.len(), packet.truncated), (MAX_RECORD_LEN, true));
    }
}
