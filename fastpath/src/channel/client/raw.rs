//! Giving tapd a socket whose packets are messages, without headers.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use encap::id::NodeId;
use socket2::{MsgHdr, Type};

use super::messages::attach;
use super::{Channel, asked, connect, uninterrupted};
use crate::channel::framing::Flags;

/// Hands one end of a pair of sockets over to tapd: each packet that is sent into the other end is
/// a message to `to`, or to all that can be reached; with `receive` each message that comes is a
/// packet there.
///
/// `fd` is of `SOCK_SEQPACKET` or `SOCK_DGRAM` and connected. The caller may close it afterwards.
/// The channel that comes back is its lifeline and brings the events: when it is dropped, tapd lets
/// go of the descriptor. [`Channel::finish`] on it ends the sending: what the descriptor holds is
/// sent, and what became of it is told as for records.
///
/// # Errors
/// As [`Channel::connect`]; `InvalidInput` for a descriptor that cannot carry messages.
pub fn hand_over(
    path: &Path,
    fd: BorrowedFd<'_>,
    to: Option<NodeId>,
    receive: bool,
) -> io::Result<Channel> {
    let socket = connect(path, Type::SEQPACKET)?;
    let header = attach(receive, Flags::RAW, to).encode();
    let record = [IoSlice::new(&header)];
    let control = rights(fd);
    let message = MsgHdr::new().with_buffers(&record).with_control(&control);
    asked(uninterrupted(|| socket.sendmsg(&message, libc::MSG_NOSIGNAL)))?;
    Channel::welcomed(socket)
}

/// The control message with one descriptor: length (a word of the machine), level, type, and the
/// data in as many words as it needs.
fn rights(fd: BorrowedFd<'_>) -> Vec<u8> {
    const DATA: usize = size_of::<libc::c_int>();
    const LEN: usize = size_of::<libc::cmsghdr>() + DATA;
    // The header ends on a word, so nothing is between it and the data.
    const _: () = assert!(size_of::<libc::cmsghdr>() == size_of::<usize>() + 8);
    let mut control = Vec::with_capacity(LEN.next_multiple_of(size_of::<usize>()));
    control.extend(LEN.to_ne_bytes());
    control.extend(libc::SOL_SOCKET.to_ne_bytes());
    control.extend(libc::SCM_RIGHTS.to_ne_bytes());
    control.extend(fd.as_raw_fd().to_ne_bytes());
    control.resize(LEN.next_multiple_of(size_of::<usize>()), 0);
    control
}
