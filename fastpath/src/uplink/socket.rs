//! The kernel UDP uplink: bursts of datagrams by `recvmmsg` and `sendmmsg`.
//!
//! One socket per worker and link. Path MTU is found by the protocol's own probes, so the
//! kernel's idea of it is switched off (`IP_PMTUDISC_PROBE`); ICMP errors are read from the
//! error queue, attributed to the remote address, and never stop a burst.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use encap::wire::buf::{BufPool, Burst, Received, Transmit, UplinkId};
use socket2::{Domain, Protocol, Socket, Type};

use super::batch::{RxBatch, TxBatch};
use super::message::Message;
use super::{
    GrantedBuffers, UplinkCounters, UplinkError, UplinkErrorKind, UplinkGate, UplinkOffload,
    UplinkOptions, error_queue,
};
use crate::error::BindError;
use crate::interface::is_valid_name;
use crate::port::{DatagramCapabilities, DatagramPort, TxReport};

/// Errors kept for [`UdpUplink::poll_error`]; the oldest gives way.
const MAX_KEPT_ERRORS: usize = 32;
/// Errors taken from the kernel in one go, so that a flood of ICMP cannot hold the worker.
const MAX_DRAINED_ERRORS: usize = 64;
/// How long after an error from the network a call's error is not taken for our kernel's own, in ms.
const DOUBT_MS: u64 = 100;
/// Largest UDP payload: 65,535 bytes of IP packet or payload without the headers.
const MAX_UDP_PAYLOAD_V4: usize = 65_535 - 20 - 8;
const MAX_UDP_PAYLOAD_V6: usize = 65_535 - 8;

/// A kernel UDP socket as an underlay port.
#[derive(Debug)]
pub struct UdpUplink {
    pub(super) id: UplinkId,
    pub(super) socket: Socket,
    /// What datagrams leave by, if not by the same.
    pub(super) sender: Option<Socket>,
    pub(super) local: SocketAddr,
    granted: GrantedBuffers,
    pub(super) offload: Arc<UplinkOffload>,
    pub(super) gate: Arc<UplinkGate>,
    pub(super) counters: Arc<UplinkCounters>,
    pub(super) rx: RxBatch,
    pub(super) tx: TxBatch,
    errors: VecDeque<UplinkError>,
    /// The error queue was left before it was empty.
    pub(super) errors_remain: bool,
    /// The kernel's own count of drops on this socket, as last seen.
    pub(super) kernel_drops: u32,
    pub(super) doubt: Doubt,
}

/// When a packet from the network last put an error on a socket, for all ports over that socket: for
/// a while after that, what a call reports may be of the same origin, and anybody can forge it.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    start: Instant,
    until_ms: Arc<AtomicU64>,
}

impl Doubt {
    fn new() -> Self {
        Self { start: Instant::now(), until_ms: Arc::default() }
    }

    fn raise(&self) {
        let until = self.now_ms() + DOUBT_MS;
        self.until_ms.store(until, Ordering::Relaxed);
    }

    pub(super) fn is_raised(&self) -> bool {
        self.now_ms() < self.until_ms.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the error queue held.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drained {
    /// The MTU that our own kernel named when it refused a datagram.
    pub(super) own_mtu: Option<u32>,
    /// Whether there were errors that the network reported.
    pub(super) foreign: bool,
}

impl UdpUplink {
    /// Opens a socket on `local`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(
        id: UplinkId,
        local: SocketAddr,
        options: &UplinkOptions,
    ) -> Result<Self, BindError> {
        let setup = |action| move |source| BindError::Setup { local, action, source };
        let socket =
            Socket::new(Domain::for_address(local), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
                .map_err(setup("make a socket"))?;
        if local.is_ipv6() {
            socket.set_only_v6(true).map_err(setup("restrict the socket to IPv6"))?;
        }
        if let Some(interface) = &options.interface {
            // Before the bind, which then meets only sockets on the same interface.
            hold_to(&socket, local, interface)?;
        }
        if options.reuse_port {
            socket.set_reuse_port(true).map_err(setup("share the port"))?;
        }
        set_options(&socket, local).map_err(setup("set the socket's options"))?;
        if options.freebind {
            bind_freely(&socket, local).map_err(setup("bind to an address that may come later"))?;
        }
        let granted =
            enlarge_buffers(&socket, options.buffer_len).map_err(setup("size its buffers"))?;
        socket.bind(&local.into()).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => BindError::InUse(local),
            Some(libc::EADDRNOTAVAIL) => BindError::NotLocal(local),
            Some(libc::EACCES | libc::EPERM) => BindError::NotPermitted(local),
            _ => BindError::Setup { local, action: "bind", source },
        })?;
        let bound = socket.local_addr().map_err(setup("read its address"))?;
        let local = bound.as_socket().unwrap_or(local);
        // Once for each uplink: a group of sockets begins with one that does not share its port.
        if !options.reuse_port && granted_len(granted) < options.buffer_len {
            log::warn!(
                "UDP {local}: receive buffer of {} bytes granted instead of {}; bursts may be lost: raise net.core.rmem_max or give CAP_NET_ADMIN",
                granted_len(granted),
                options.buffer_len
            );
        }
        let offload = Arc::new(UplinkOffload::new(
            options.segmentation && can_segment(&socket),
            options.receive_coalescing && coalesce(&socket),
        ));
        Ok(Self::over(id, socket, local, granted, offload))
    }

    fn over(
        id: UplinkId,
        socket: Socket,
        local: SocketAddr,
        granted: GrantedBuffers,
        offload: Arc<UplinkOffload>,
    ) -> Self {
        Self {
            id,
            socket,
            sender: None,
            local,
            granted,
            offload,
            gate: Arc::default(),
            counters: Arc::default(),
            rx: RxBatch::new(),
            tx: TxBatch::new(),
            errors: VecDeque::with_capacity(MAX_KEPT_ERRORS),
            errors_remain: false,
            kernel_drops: 0,
            doubt: Doubt::new(),
        }
    }

    /// A second port over the same socket, with counters of its own: for a thread that only
    /// sends. What one of the two receives, or takes from the error queue, the other does not.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        let doubt = self.doubt.clone();
        let offload = Arc::clone(&self.offload);
        let gate = Arc::clone(&self.gate);
        Ok(Self { doubt, gate, ..Self::over(self.id, socket, self.local, self.granted, offload) })
    }

    /// Has datagrams leave from the port of another socket. Nothing is received by that; errors of
    /// what it sent are.
    pub(super) fn send_by(&mut self, other: Self) {
        self.sender = Some(other.socket);
    }

    /// The address that datagrams leave from.
    #[must_use]
    pub fn source(&self) -> Option<SocketAddr> {
        self.sender.as_ref().unwrap_or(&self.socket).local_addr().ok()?.as_socket()
    }

    /// The local attachment that datagrams are labelled with.
    #[must_use]
    pub fn id(&self) -> UplinkId {
        self.id
    }

    /// The address that the socket has.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The kernel buffers that were granted.
    #[must_use]
    pub fn granted_buffers(&self) -> GrantedBuffers {
        self.granted
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<UplinkCounters> {
        &self.counters
    }

    /// Which of its offloads are at work; any thread may keep it and look.
    #[must_use]
    pub fn offload(&self) -> &Arc<UplinkOffload> {
        &self.offload
    }

    /// Whether it sends; any thread may keep it and set it.
    #[must_use]
    pub fn gate(&self) -> &Arc<UplinkGate> {
        &self.gate
    }

    /// Whether runs of datagrams leave in one piece.
    #[must_use]
    pub fn segmentation(&self) -> bool {
        self.offload.segmentation()
    }

    /// Whether runs of datagrams may arrive in one piece.
    #[must_use]
    pub fn receive_coalescing(&self) -> bool {
        self.offload.receive_coalescing()
    }

    /// Largest UDP payload that the socket's IP version allows, in bytes.
    pub(super) fn max_udp_payload(&self) -> usize {
        if self.local.is_ipv4() { MAX_UDP_PAYLOAD_V4 } else { MAX_UDP_PAYLOAD_V6 }
    }

    /// Sends `payload` to `remote` at once, with `mark` for its TOS or traffic class byte; for a
    /// thread that sends a datagram now and then.
    pub fn send_to(&mut self, payload: &[u8], remote: SocketAddr, mark: u8) -> TxReport {
        self.send_many(&[(payload, remote, mark)])
    }

    /// Sends each payload to its remote address with its mark, up to [`MAX_BURST`](crate::port::MAX_BURST) in one system
    /// call; for a round of messages to many peers.
    pub fn send_many(&mut self, items: &[(&[u8], SocketAddr, u8)]) -> TxReport {
        let messages = items.iter();
        self.send_all(messages.map(|(bytes, remote, mark)| Message::single(bytes, *remote, *mark)))
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn keep(&mut self, error: UplinkError) {
        if self.errors.len() == MAX_KEPT_ERRORS {
            self.errors.pop_front();
            self.counters.errors_overflowed.add(1);
        }
        self.errors.push_back(error);
    }

    /// Empties the kernel's error queue, up to a limit.
    pub(super) fn drain_errors(&mut self) -> Drained {
        let mut drained = Drained::default();
        self.errors_remain = true;
        for _ in 0..MAX_DRAINED_ERRORS {
            let taken = match (error_queue::take(self.socket.as_fd(), self.id), &self.sender) {
                (Ok(None), Some(sender)) => error_queue::take(sender.as_fd(), self.id),
                (taken, _) => taken,
            };
            let Ok(Some(entry)) = taken else {
                self.errors_remain = false;
                break;
            };
            let Some(error) = entry else { continue };
            if error.local {
                // Told by the failing call as well, which knows the port too.
                drained.own_mtu = error.ip_mtu.or(drained.own_mtu);
                continue;
            }
            let counter = match error.kind {
                UplinkErrorKind::Refused => &self.counters.icmp_refused,
                UplinkErrorKind::Unreachable => &self.counters.icmp_unreachable,
                UplinkErrorKind::TooBig => &self.counters.icmp_too_big,
                UplinkErrorKind::Other => &self.counters.icmp_other,
            };
            counter.add(1);
            self.keep(error);
            self.doubt.raise();
            drained.foreign = true;
        }
        drained
    }
}

impl DatagramPort for UdpUplink {
    fn rx_burst(&mut self, pool: &mut BufPool, received: &mut Burst<Received>) -> io::Result<()> {
        self.receive_burst(pool, received)
    }

    fn poll_error(&mut self) -> Option<UplinkError> {
        self.errors.pop_front()
    }

    fn tx_burst(&mut self, memory: &[u8], transmits: &[Transmit]) -> TxReport {
        self.send_burst(memory, transmits)
    }

    fn capabilities(&self) -> DatagramCapabilities {
        DatagramCapabilities { max_udp_payload: self.max_udp_payload() }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }
}

/// Has the socket send and receive by this interface only.
fn hold_to(socket: &Socket, local: SocketAddr, interface: &str) -> Result<(), BindError> {
    let name = || interface.to_owned();
    if !is_valid_name(interface) {
        return Err(BindError::NoInterface { local, interface: name() });
    }
    socket.bind_device(Some(interface.as_bytes())).map_err(|source| match source.raw_os_error() {
        Some(libc::ENODEV) => BindError::NoInterface { local, interface: name() },
        _ => BindError::Setup { local, action: "hold the socket to its interface", source },
    })
}

/// Has the socket take an address that no interface has yet. Until one has, IPv4 refuses what is
/// sent from it, but IPv6 lets it leave: that is what the [`UplinkGate`] is for.
fn bind_freely(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    match local {
        SocketAddr::V4(_) => set_int(socket, libc::IPPROTO_IP, libc::IP_FREEBIND, 1),
        SocketAddr::V6(_) => set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1),
    }
}

/// Sets a socket option whose value is an int.
pub(crate) fn set_int(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let value: *const libc::c_int = &raw const value;
    // SAFETY: `value` points to an int of this frame, which is what `len` says.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel knows how to cut a run of datagrams (Linux 4.18).
fn can_segment(socket: &Socket) -> bool {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is an int of this frame and `len` says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    result == 0
}

/// Has the kernel hand over runs of datagrams in one piece; says whether it can (Linux 5.0).
fn coalesce(socket: &Socket) -> bool {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
}

/// Own path MTU discovery, errors by the error queue, kernel drops and the traffic class told with
/// each datagram.
fn set_options(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    if local.is_ipv4() {
        let probe = libc::IP_PMTUDISC_PROBE;
        set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)?;
        set_int(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
        set_int(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    } else {
        let probe = libc::IPV6_PMTUDISC_PROBE;
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    set_int(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
}

/// Bytes of the receive buffer in the measure of what is asked for: the kernel accounts twice that.
const fn granted_len(granted: GrantedBuffers) -> usize {
    granted.receive / 2
}

/// Asks for the buffers beyond the system's limit, then within it; returns what was granted.
fn enlarge_buffers(socket: &Socket, len: usize) -> io::Result<GrantedBuffers> {
    let value = i32::try_from(len).unwrap_or(i32::MAX);
    let ask = |force, plain| {
        set_int(socket, libc::SOL_SOCKET, force, value)
            .or_else(|_| set_int(socket, libc::SOL_SOCKET, plain, value))
    };
    ask(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)?;
    ask(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)?;
    Ok(GrantedBuffers { receive: socket.recv_buffer_size()?, send: socket.send_buffer_size()? })
}

#[cfg(test)]
mod tests;
