//! Why a port could not be opened, and what to do about it.

use std::io;
use std::net::SocketAddr;

/// Why a tap could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name cannot be an interface's.
    #[error(
        "{0:?} cannot be a tap's name: use 1 to 15 bytes without space, '/', ':' or '%', and not \".\" or \"..\""
    )]
    InvalidName(String),
    /// The number of queues is out of range.
    #[error("tap {tap}: {queues} queues asked for; a tap has 1 to 256")]
    QueueCount {
        /// Name of the tap.
        tap: String,
        /// What was asked for.
        queues: usize,
    },
    /// The device node is not there, or no driver is behind it.
    #[error(
        "/dev/net/tun is missing: load the driver (modprobe tun), or give the container the device (--device /dev/net/tun)"
    )]
    NoTunDevice,
    /// The device node may not be opened.
    #[error(
        "/dev/net/tun may not be opened: run as root, or allow the device to the container (--device /dev/net/tun)"
    )]
    TunDeviceForbidden,
    /// The kernel refuses to create the tap or to attach to it.
    #[error(
        "not permitted to open tap {tap}: CAP_NET_ADMIN is needed (run as root, or add the capability to the container)"
    )]
    NotPermitted {
        /// Name of the tap.
        tap: String,
    },
    /// An interface of that name exists and a new one was asked for.
    #[error(
        "an interface {tap} exists already: stop the program that made it, remove it (ip link del {tap}), choose another name, or set existing = true to attach to it"
    )]
    Exists {
        /// Name of the tap.
        tap: String,
    },
    /// The existing tap is attached to by another program.
    #[error("tap {tap} is in use by another program: stop that program, or choose another tap")]
    InUse {
        /// Name of the tap.
        tap: String,
    },
    /// An existing tap was asked for and there is none.
    #[error(
        "there is no tap {tap} to attach to: create it (ip tuntap add {tap} mode tap), or leave existing = true away"
    )]
    Missing {
        /// Name of the tap.
        tap: String,
    },
    /// The interface of that name is not a tap.
    #[error("interface {tap} is not a tap (ip -d link show {tap}): choose another name")]
    NotATap {
        /// Name of the tap.
        tap: String,
    },
    /// A step of the set-up failed.
    #[error("tap {tap}: cannot {action}")]
    Setup {
        /// Name of the tap.
        tap: String,
        /// What failed, to be read after "cannot".
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a UDP uplink could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket has the address and port.
    #[error(
        "UDP {0} is in use by another program: stop it (ss -ulpn shows it), or choose another port"
    )]
    InUse(SocketAddr),
    /// The address is not one of this node.
    #[error(
        "{0} is not an address of this node: correct the address, or add it to an interface (ip addr)"
    )]
    NotLocal(SocketAddr),
    /// The interface that the socket is to be held to does not exist.
    #[error(
        "UDP {local}: there is no interface {interface}: correct its name, or create it (ip link)"
    )]
    NoInterface {
        /// The address that was to be bound.
        local: SocketAddr,
        /// Name of the interface.
        interface: String,
    },
    /// The kernel forbids the port.
    #[error("not permitted to bind UDP {0}: choose a port above 1023, or run as root")]
    NotPermitted(SocketAddr),
    /// A step of the set-up failed.
    #[error("UDP {local}: cannot {action}")]
    Setup {
        /// The address that was to be bound.
        local: SocketAddr,
        /// What failed, to be read after "cannot".
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error;

    #[test]
    fn the_kernels_answer_is_said_once() {
        let source = || io::Error::from_raw_os_error(libc::EIO);
        let tap = "tap100".to_owned();
        let open = OpenError::Setup { tap, action: "set its MTU", source: source() };
        let local = SocketAddr::from(([127, 0, 0, 1], 26026));
        let bind = BindError::Setup { local, action: "share the port", source: source() };
        let errors: [(&dyn Error, &str); 2] = [
            (&open, "tap tap100: cannot set its MTU"),
            (&bind, "UDP 127.0.0.1:26026: cannot share the port"),
        ];
        for (error, expected) in errors {
            assert_eq!(error.to_string(), expected);
            let next = error.source().map(ToString::to_string);
            assert_eq!(next, Some(source().to_string()));
        }
    }
}
