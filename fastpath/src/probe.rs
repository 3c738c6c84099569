//! What this machine can do, tried out: for `tapd doctor`.
//!
//! Nothing of the host is changed and nothing leaves it. Taps are made in network namespaces that
//! exist only as long as the trial; what goes to a real interface is multicast that the kernel drops
//! where it would leave.

mod tap;
mod uplink;

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

use crate::interface::request_for;

pub use self::tap::{TapTrial, try_tap};
pub use self::uplink::{UplinkTrial, try_uplink};

/// Numbers of calls that the C library has no names for (linux/sockios.h, linux/ethtool.h).
const SIOCETHTOOL: u32 = 0x8946;
const ETHTOOL_GRXCSUM: u32 = 0x14;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GTSO: u32 = 0x1e;
const ETHTOOL_GGSO: u32 = 0x23;
const ETHTOOL_GGRO: u32 = 0x2b;

/// How packets that belong together got across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// In one piece.
    Whole,
    /// One by one.
    Cut,
    /// Not, or not all of them.
    Lost,
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "in one piece",
            Self::Cut => "one by one",
            Self::Lost => "lost",
        })
    }
}

/// Calls `body` on a thread of its own inside a new network namespace. The namespace is gone when
/// the last socket or tap of it is closed.
///
/// # Errors
/// The kernel refuses: [`io::ErrorKind::PermissionDenied`] without CAP_SYS_ADMIN.
pub fn in_private_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> io::Result<T> {
    let inside = || {
        // SAFETY: unshare takes a number and touches no memory; it concerns this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(body())
    };
    std::thread::scope(|scope| {
        let joined = scope.spawn(inside).join();
        joined.unwrap_or_else(|_| Err(io::Error::other("the trial panicked")))
    })
}

/// What an interface does by itself (ethtool(8)); None where it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// It takes checksums of what leaves.
    pub tx_checksum: Option<bool>,
    /// It checks those of what arrives.
    pub rx_checksum: Option<bool>,
    /// It cuts super-frames of TCP.
    pub tso: Option<bool>,
    /// The kernel hands it super-frames, and cuts them just before.
    pub gso: Option<bool>,
    /// The kernel puts together what arrives.
    pub gro: Option<bool>,
}

/// Asks for the features of an interface; needs no privilege.
///
/// # Errors
/// The name is not usable, or no socket can be made.
pub fn features(interface: &str) -> io::Result<Features> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let ask = |command| ethtool(&socket, interface, command);
    Ok(Features {
        tx_checksum: ask(ETHTOOL_GTXCSUM)?,
        rx_checksum: ask(ETHTOOL_GRXCSUM)?,
        tso: ask(ETHTOOL_GTSO)?,
        gso: ask(ETHTOOL_GGSO)?,
        gro: ask(ETHTOOL_GGRO)?,
    })
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn ethtool(socket: &Socket, interface: &str, command: u32) -> io::Result<Option<bool>> {
    let mut value = EthtoolValue { command, data: 0 };
    let mut request = request_for(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the commands passed to this private function are those that read and write one
    // `ethtool_value`, to which the request points; both live until the call is over.
    let result = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::Ioctl::from(SIOCETHTOOL), &raw mut request)
    };
    Ok((result == 0).then_some(value.data != 0))
}

/// State of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkState {
    /// Administratively up.
    pub up: bool,
    /// Operational: there is a carrier.
    pub running: bool,
    /// It knows multicast.
    pub multicast: bool,
}

/// Asks for the state of an interface; needs no privilege.
///
/// # Errors
/// There is no such interface.
pub fn link_state(interface: &str) -> io::Result<LinkState> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut request = request_for(interface)?;
    // SAFETY: SIOCGIFFLAGS reads and writes one `ifreq`; `request` is one, exclusively ours.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS fills this member.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    let has = |flag| flags & flag != 0;
    Ok(LinkState {
        up: has(libc::IFF_UP),
        running: has(libc::IFF_RUNNING),
        multicast: has(libc::IFF_MULTICAST),
    })
}

/// Whether the wall clock follows another one (`adjtimex`).
///
/// # Errors
/// The kernel does not say.
pub fn is_clock_synchronised() -> io::Result<bool> {
    // SAFETY: `timex` is made of integers, for which all zeros is a value; `modes` 0 only reads.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: adjtimex reads and writes one `timex`; it is ours and lives during the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    match state {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(timex.status & libc::STA_UNSYNC == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known() {
        let state = link_state("lo").unwrap();
        assert!(state.up || !state.running);
        let lo = features("lo").unwrap();
        assert_eq!(lo.tx_checksum, Some(true), "{lo:?}");
        assert!(link_state("none-such").is_err());
        assert_eq!(features("none-such").unwrap(), Features::default());
        assert!(features("a name with spaces").is_err());
    }

    #[test]
    fn namespace_is_private() {
        let names = || crate::interface::local_addresses().unwrap();
        match in_private_namespace(names) {
            // Even its loopback interface is down and has no address.
            Ok(inside) => assert!(inside.is_empty(), "{inside:?}"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    #[test]
    fn clock_is_one_or_the_other() {
        assert!(is_clock_synchronised().is_ok());
    }
}
