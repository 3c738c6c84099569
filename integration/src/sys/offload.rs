//! Taps and sockets that carry many packets at a time, for the parts of the benches.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use super::{check, set_int};

/// What the kernel may hand over in a super-frame: partial checksums, TCP over IPv4 and IPv6.
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// Makes a tap called `name` in the calling thread's namespace. Frames of up to 64 KB are read
/// from and written to the file, one each, behind the 10 bytes of a virtio-net header; it never
/// blocks. The tap goes with the file.
///
/// # Errors
/// No permission, no `/dev/net/tun`, a name that is taken or too long.
pub fn open_super_tap(name: &str) -> io::Result<File> {
    let tap = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is plain bytes and integers, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request takes an ifreq, which outlives the call; the descriptor is open.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: the request takes an integer by value and no pointer.
    check(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(OFFLOADS))
    })?;
    Ok(tap)
}

/// Makes every send of a UDP socket a run of datagrams with `bytes` of payload each, the last one
/// with what is left.
///
/// # Errors
/// The kernel knows no `UDP_SEGMENT`.
pub fn send_in_segments(socket: BorrowedFd<'_>, bytes: u16) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_SEGMENT, bytes.into())
}

/// Lets a UDP socket receive runs of equal datagrams in one piece.
///
/// # Errors
/// The kernel knows no `UDP_GRO`.
pub fn receive_runs(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}
