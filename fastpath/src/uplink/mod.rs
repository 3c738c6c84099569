//! Underlay ports: where datagrams leave for other nodes and arrive from them.

pub mod socket;
pub mod steering;
pub mod dpdk;
pub mod any;

mod receive;
mod send;

mod address;
mod batch;
mod error_queue;
mod message;

use std::net::SocketAddr;

use encap::wire::buf::UplinkId;

pub(crate) use batch::RX_BATCH;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::counter::counters;

/// How a UDP uplink's socket is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkOptions {
    /// Let several sockets share the address and port; see [`steering::bind_group`].
    pub reuse_port: bool,
    /// Kernel buffer asked for in each direction, in bytes.
    pub buffer_len: usize,
    /// Send and receive by this interface only (`SO_BINDTODEVICE`), whatever the routes say of
    /// others: for an uplink on the wildcard address that follows an interface whose own
    /// addresses change. Sockets on the same port but other interfaces do not meet.
    ///
    /// A remote address that no route leads to by this interface is taken for a neighbour on it
    /// (IPv4). The interface keeps its hold by number: one that is deleted and made anew is
    /// another one, and the socket has to be bound anew too.
    pub interface: Option<String>,
    /// Each worker but the first sends from a port of its own, the base port plus its number, so that
    /// routers, cards and clouds that look at ports take one node's traffic for several flows; see
    /// [`steering::bind_group`].
    pub source_ports: bool,
    /// Bind even if no interface has the address at the moment (`IP_FREEBIND`). Who asks for that
    /// closes the [`UplinkGate`] while none has.
    pub freebind: bool,
    /// Send runs of datagrams in one piece where the kernel can (`UDP_SEGMENT`).
    pub segmentation: bool,
    /// Take runs of datagrams in one piece where the kernel can (`UDP_GRO`).
    pub receive_coalescing: bool,
}

impl Default for UplinkOptions {
    /// One socket, 8 MiB in each direction, by any interface, runs in one piece.
    fn default() -> Self {
        Self {
            reuse_port: false,
            buffer_len: 8 << 20,
            source_ports: false,
            interface: None,
            freebind: false,
            segmentation: true,
            receive_coalescing: true,
        }
    }
}

/// Which offloads of an uplink's socket are at work; shared by all ports over the socket and
/// readable by any thread.
#[derive(Debug, Default)]
pub struct UplinkOffload {
    segmentation: AtomicBool,
    receive_coalescing: bool,
}

impl UplinkOffload {
    fn new(segmentation: bool, receive_coalescing: bool) -> Self {
        Self { segmentation: AtomicBool::new(segmentation), receive_coalescing }
    }

    /// Whether runs of datagrams leave in one piece.
    #[must_use]
    pub fn segmentation(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    /// Whether runs of datagrams may arrive in one piece.
    #[must_use]
    pub fn receive_coalescing(&self) -> bool {
        self.receive_coalescing
    }

    /// Switches segmentation off; says whether it was on.
    fn end_segmentation(&self) -> bool {
        self.segmentation.swap(false, Ordering::Relaxed)
    }
}

/// Whether an uplink's socket sends; shared by all ports over the socket, set by any thread.
///
/// It is for a socket whose address no interface has. IPv4 refuses to send from such an address,
/// but IPv6 sends all the same, and the datagrams would leave by another interface with a source
/// that is none of this node's there. What is to be sent while the gate is closed is dropped and
/// counted as `tx_dropped_no_address`; receiving goes on.
#[derive(Debug, Default)]
pub struct UplinkGate {
    closed: AtomicBool,
}

impl UplinkGate {
    /// Opens or closes it. A burst that is being sent in that moment may still leave.
    pub fn set_open(&self, open: bool) {
        self.closed.store(!open, Ordering::Relaxed);
    }

    /// Whether datagrams may leave: at first they may.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }
}

/// Kernel buffers that were granted, in bytes as the kernel accounts them: it doubles what is
/// asked for, to cover its own overhead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantedBuffers {
    /// For received datagrams.
    pub receive: usize,
    /// For datagrams to be sent.
    pub send: usize,
}

/// What kind of trouble a datagram met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UplinkErrorKind {
    /// Nobody listens on the remote port.
    Refused,
    /// There is no way to the remote address, or it does not answer.
    Unreachable,
    /// The datagram is larger than the path allows.
    TooBig,
    /// Anything else.
    Other,
}

impl UplinkErrorKind {
    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ECONNREFUSED => Self::Refused,
            libc::EMSGSIZE => Self::TooBig,
            libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::ENODEV
            | libc::EADDRNOTAVAIL => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

/// Trouble with a datagram that was sent, attributed to where it went.
///
/// Only a hint when it came from the network: anybody on the path can forge one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UplinkError {
    /// By which local attachment it was sent.
    pub uplink: UplinkId,
    /// Where the datagram was sent.
    pub remote: SocketAddr,
    /// What happened to it.
    pub kind: UplinkErrorKind,
    /// The kernel's number for it.
    pub errno: i32,
    /// Bytes of the largest IP packet that would pass, where that was said.
    pub ip_mtu: Option<u32>,
    /// Whether this node's own kernel says so, and not a packet from the network.
    pub local: bool,
}

counters! {
    /// What one uplink socket has seen. Written by the worker that owns the port.
    pub struct UplinkCounters {
        /// Datagrams received.
        rx_datagrams,
        /// Bytes of UDP payload received.
        rx_bytes,
        /// Messages received: a run of datagrams is one.
        rx_messages,
        /// Datagrams received in runs.
        rx_coalesced,
        /// Datagrams, or runs of them, dropped: longer than a packet buffer.
        rx_dropped_truncated,
        /// Datagrams dropped: sender's address of no IP family.
        rx_dropped_bad_address,
        /// Datagrams that the kernel dropped, the receive buffer being full. Counted when the
        /// next datagram arrives.
        rx_dropped_kernel,
        /// Datagrams that the kernel took.
        tx_datagrams,
        /// Bytes of UDP payload that the kernel took.
        tx_bytes,
        /// Messages that the kernel took: a run of datagrams is one.
        tx_messages,
        /// Datagrams that the kernel took in runs.
        tx_segmented,
        /// Runs that the kernel refused as such; their datagrams were sent one by one.
        tx_segmentation_failed,
        /// Times that segmentation was switched off for good.
        tx_segmentation_ended,
        /// Datagrams dropped: no room in the kernel, after a few attempts.
        tx_dropped_no_room,
        /// Datagrams dropped: larger than the interface allows.
        tx_dropped_too_large,
        /// Datagrams dropped: no way to the remote address.
        tx_dropped_unreachable,
        /// Datagrams dropped: no interface has the uplink's own address.
        tx_dropped_no_address,
        /// Datagrams dropped: remote address of the other IP version.
        tx_dropped_wrong_family,
        /// Datagrams dropped: refused by the kernel for another reason.
        tx_dropped_refused,
        /// ICMP errors: nobody listens.
        icmp_refused,
        /// ICMP errors: no way there.
        icmp_unreachable,
        /// ICMP errors: larger than the path allows.
        icmp_too_big,
        /// ICMP errors of other kinds.
        icmp_other,
        /// Errors that nobody fetched with `poll_error` before newer ones came.
        errors_overflowed,
    }
}
