//! One entry of a UDP socket's error queue (ip(7), `IP_RECVERR`).

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use encap::wire::buf::UplinkId;

use super::address::RawAddress;
use super::{UplinkError, UplinkErrorKind};

/// Room for a `sock_extended_err` with the offender's address behind it, and for neighbours.
const CONTROL_WORDS: usize = 32;

/// What a control message of the error queue says.
struct Extended {
    errno: i32,
    origin: u8,
    info: u32,
}

/// Takes one error from the queue of a socket of `uplink`; None when it is empty.
///
/// An entry whose destination or cause cannot be read is returned as `Some(None)`.
///
/// # Errors
/// The socket is broken.
pub(super) fn take(
    socket: BorrowedFd<'_>,
    uplink: UplinkId,
) -> io::Result<Option<Option<UplinkError>>> {
    let mut remote = RawAddress::EMPTY;
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: `msghdr` is made of integers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut remote).cast();
    message.msg_namelen = RawAddress::ROOM;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: name and control point to live locals of the lengths given, there are no data
    // buffers, and the kernel writes nothing beyond these.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock => Ok(None),
            io::ErrorKind::Interrupted => Ok(Some(None)),
            _ => Err(error),
        };
    }
    // SAFETY: `message` was just filled by the kernel and still points to `control`.
    let extended = unsafe { extended_error(&message) };
    let error = extended.zip(remote.get(message.msg_namelen));
    Ok(Some(error.map(|(extended, remote)| attribute(extended, uplink, remote))))
}

fn attribute(extended: Extended, uplink: UplinkId, remote: SocketAddr) -> UplinkError {
    let Extended { errno, origin, info } = extended;
    let ip_mtu = (errno == libc::EMSGSIZE && info != 0).then_some(info);
    UplinkError {
        uplink,
        remote,
        kind: UplinkErrorKind::from_errno(errno),
        errno,
        ip_mtu,
        local: origin == libc::SO_EE_ORIGIN_LOCAL,
    }
}

/// Finds the `sock_extended_err` among the control messages.
///
/// # Safety
/// `message` was filled by `recvmsg` and its control buffer is still alive.
unsafe fn extended_error(message: &libc::msghdr) -> Option<Extended> {
    // SAFETY: the control buffer is as long as `msg_controllen` says and aligned to 8 bytes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: `next` is null or a header that lies within the control buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        let wanted =
            [(libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)];
        let least = size_of::<libc::cmsghdr>() + size_of::<libc::sock_extended_err>();
        if wanted.contains(&(header.cmsg_level, header.cmsg_type)) && header.cmsg_len >= least {
            // SAFETY: the message holds at least this struct's bytes; it may be unaligned.
            let error = unsafe {
                ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::sock_extended_err>())
            };
            return Some(Extended {
                errno: error.ee_errno.cast_signed(),
                origin: error.ee_origin,
                info: error.ee_info,
            });
        }
        // SAFETY: `header` is one of this message's.
        next = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
