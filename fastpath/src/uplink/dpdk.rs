//! The DPDK uplink: a port with a MAC and an IP address of our own, past the kernel.
//!
//! Datagrams leave behind an outer header that is written from a template ([`crate::underlay`]);
//! who has the next hop's address is asked by our own ARP and neighbour discovery
//! ([`crate::neighbor`]). All workers, and the control thread, share one table of neighbours behind
//! a lock that is taken only while an address is not known, and once a second to keep it fresh.
//!
//! The lock of the neighbours is never taken while one of a transmit queue is held.
//!
//! [`DpdkPort`] is the owner's handle and the control thread's way to send; each worker has a
//! [`DpdkUplink`], the [`DatagramPort`](crate::port::DatagramPort).

mod receive;
mod sender;
mod exception;

pub use receive::DpdkUplink;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use encap::wire::buf::UplinkId;
use encap::wire::ethernet::MacAddr;

use crate::counter::counters;
use crate::dpdk::{DpdkError, Eal, Pool, Port, PortOptions, TxQueue, capability};
use crate::error::OpenError;
use crate::interface::Interface;
use crate::neighbor::{
    NeighborConfig, NeighborCounters, NeighborEvent, NeighborInfo, NeighborLimits, Neighbors,
    Routes,
};
use crate::port::TxReport;
use crate::underlay::{LocalAddress, RxChecksum, UdpChecksum, UnderlayCounters};
use crate::wake::Waker;
use exception::Exception;
use sender::{Run, Sender};

/// Descriptors of each queue.
const DESCRIPTORS: u16 = 1024;
/// Buffers that an AF_XDP port keeps for each queue in its fill ring and its completion ring,
/// whatever it is asked for (`ETH_AF_XDP_DFLT_NUM_DESCS` of DPDK's driver, twice). With fewer it
/// starts, and stops receiving under load.
const XDP_BUFFERS: u32 = 2 * 2048;
/// What every port takes, in bytes (IEEE 802.3).
const ETHERNET_MTU: u16 = 1500;
/// A driver whose interrupts are left alone: with them it calls back when its port is gone (22.11).
const VIRTIO_USER: &str = "net_virtio_user";
/// UDP ports of a node, from its base port on.
const PORT_COUNT: u16 = 16;
/// What happened and nobody has asked for yet; the oldest gives way.
const MAX_EVENTS: usize = 256;

counters! {
    /// What one worker's queue of a DPDK uplink, or the control thread's, has seen.
    pub struct DpdkCounters {
        /// Datagrams received.
        rx_datagrams,
        /// Bytes of UDP payload received.
        rx_bytes,
        /// Messages received: datagrams of one sender that came together are one.
        rx_messages,
        /// Frames for other stations, dropped.
        rx_dropped_not_ours,
        /// Frames that are neither datagrams of ours nor about neighbours, given to the exception
        /// tap.
        rx_exception,
        /// The same, dropped: there is no exception tap, or it has no room.
        rx_dropped_foreign,
        /// Frames dropped: in several buffers and longer than a datagram can be.
        rx_dropped_long,
        /// Frames about neighbours.
        rx_neighbor,
        /// Echo requests that were answered.
        rx_echoes,
        /// Echo requests dropped: more than are answered in a second, or malformed.
        rx_dropped_echo,
        /// Datagrams that the port took.
        tx_datagrams,
        /// Bytes of UDP payload that the port took.
        tx_bytes,
        /// Datagrams that wait for their neighbour's address.
        tx_held,
        /// Datagrams dropped: they waited for a neighbour, and newer ones took their place. Those that
        /// waited in vain are among the neighbours' counters.
        tx_dropped_held,
        /// Datagrams dropped: the neighbour does not answer.
        tx_dropped_unreachable,
        /// Datagrams dropped: no route leads there.
        tx_dropped_no_route,
        /// Datagrams dropped: larger than the port's MTU.
        tx_dropped_too_large,
        /// Datagrams dropped: no packet buffer was left.
        tx_dropped_no_buffer,
        /// Packets dropped: the port had no room.
        tx_dropped_no_room,
        /// Frames of the host that left from the exception tap.
        tx_exception,
    }
}

/// How a DPDK uplink is opened.
#[derive(Debug, Clone)]
pub struct DpdkUplinkOptions {
    /// The local attachment that datagrams are labelled with.
    pub id: UplinkId,
    /// A PCI address, or a virtual device and its arguments.
    pub device: String,
    /// Our address and base UDP port there.
    pub local: SocketAddr,
    /// Length of the on-link prefix in bits.
    pub prefix: u8,
    /// Router for what no prefix matches.
    pub gateway: Option<IpAddr>,
    /// Network with prefix length, and the router there.
    pub routes: Vec<((IpAddr, u8), IpAddr)>,
    /// Neighbours that are never asked for.
    pub neighbors: Vec<(IpAddr, MacAddr)>,
    /// 802.1Q tag of all frames.
    pub vlan: Option<u16>,
    /// The port's own without it.
    pub mac: Option<MacAddr>,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Name of the tap that gets the frames that are not ours.
    pub exception_tap: Option<String>,
    /// Whether datagrams have a UDP checksum; over IPv6 they always do.
    pub udp_checksum: bool,
    /// Workers that serve it, each by a queue of its own.
    pub workers: usize,
    /// Whether the port is to wake workers that have nothing to do, if it can.
    pub interrupts: bool,
}

/// Why a DPDK uplink cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DpdkUplinkError {
    /// The port.
    #[error(transparent)]
    Dpdk(#[from] DpdkError),
    /// The port takes only smaller packets.
    #[error(
        "DPDK port {device} takes no IP packets of {wanted} bytes: set mtu to less, or give the \
         device room for more (framesz= of net_af_packet)"
    )]
    Mtu {
        /// The port as it was named.
        device: String,
        /// What was asked for.
        wanted: u16,
    },
    /// The exception tap.
    #[error(transparent)]
    Exception(#[from] OpenError),
    /// The exception tap cannot be set up.
    #[error("exception tap {name} cannot be set up")]
    ExceptionSetup {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The port's MAC address or filters.
    #[error("DPDK port {device}: cannot {action}")]
    Setup {
        /// The port as it was named.
        device: String,
        /// What was asked of it.
        action: &'static str,
        /// DPDK's errno.
        source: io::Error,
    },
}

/// What happened to a DPDK uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DpdkEvent {
    /// Its link came up, or went down.
    Link(bool),
    /// About a neighbour.
    Neighbor(NeighborEvent),
}

/// What all threads share.
#[derive(Debug)]
struct Shared {
    id: UplinkId,
    local: LocalAddress,
    ports: RangeInclusive<u16>,
    /// Largest IP packet in bytes.
    ip_mtu: u16,
    checksum: UdpChecksum,
    /// What a checksum is that the port says nothing of.
    unchecked: RxChecksum,
    neighbors: Mutex<Neighbors>,
    /// Changes with what the neighbours know: ways are looked up anew then.
    generation: AtomicU64,
    routes: Routes,
    /// When the neighbours want to be looked at, in microseconds since `started`.
    due_us: AtomicU64,
    /// Wakes the worker that serves them.
    due_sooner: Waker,
    started: Instant,
    events: Mutex<VecDeque<DpdkEvent>>,
    queues: Vec<Mutex<TxQueue>>,
}

/// Has the port receive what is for `mac`. Ports in memory have no address to change, and no filter
/// either; frames are looked at in any case.
fn give_mac(port: &Port, mac: MacAddr) -> io::Result<()> {
    let unsupported = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
    match port.set_mac(mac) {
        Err(error) if unsupported(&error) => match port.set_promiscuous(true) {
            Err(error) if !unsupported(&error) => Err(error),
            _ => Ok(()),
        },
        result => result,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn us(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// What the port says of a datagram's checksum. One that is left to the receiver's card has
    /// crossed nothing but memory.
    fn rx_checksum(&self, flags: u32) -> RxChecksum {
        if flags & dpdk_sys::RX_L4_BAD != 0 {
            RxChecksum::Bad
        } else if flags & (dpdk_sys::RX_L4_GOOD | dpdk_sys::RX_L4_PARTIAL) != 0 {
            RxChecksum::Good
        } else {
            self.unchecked
        }
    }

    /// Publishes what the neighbours know, and keeps what they tell.
    fn publish(&self, neighbors: &mut Neighbors) {
        self.generation.store(neighbors.generation(), Ordering::Release);
        let due = if neighbors.has_output() {
            0
        } else {
            neighbors.poll_timeout().map_or(u64::MAX, |at| self.us(at))
        };
        if due < self.due_us.swap(due, Ordering::Relaxed) {
            self.due_sooner.wake();
        }
        while let Some(event) = neighbors.poll_event() {
            self.tell(DpdkEvent::Neighbor(event));
        }
    }

    fn tell(&self, event: DpdkEvent) {
        let mut events = lock(&self.events);
        if events.len() >= MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }
}

/// A DPDK uplink, as its owner has it.
#[derive(Debug)]
pub struct DpdkPort {
    port: Port,
    shared: Arc<Shared>,
    sender: Sender,
    /// The kernel's interface below, of ports that have one: DPDK does not tell of its carrier.
    below: Option<Interface>,
    up: Option<bool>,
    counters: Vec<Arc<DpdkCounters>>,
    underlay: Vec<Arc<UnderlayCounters>>,
    neighbor_counters: Arc<NeighborCounters>,
}

impl DpdkPort {
    /// Opens the port; gives an uplink for each worker.
    ///
    /// # Errors
    /// See [`DpdkUplinkError`].
    pub fn open(
        eal: &Eal,
        options: &DpdkUplinkOptions,
    ) -> Result<(Self, Vec<DpdkUplink>), DpdkUplinkError> {
        let workers = u16::try_from(options.workers.max(1)).unwrap_or(u16::MAX);
        // A frame lies in one buffer: Ethernet, a tag, and what drivers align to.
        let room = (options.mtu + 14 + 8).next_multiple_of(128).max(2048);
        let driver = if options.device.starts_with("net_af_xdp") { XDP_BUFFERS } else { 0 };
        let count = u32::from(workers) * (2 * u32::from(DESCRIPTORS) + driver) + 1024;
        let too_small =
            || DpdkUplinkError::Mtu { device: options.device.clone(), wanted: options.mtu };
        let opened = Port::open(
            eal,
            &PortOptions {
                device: options.device.clone(),
                queues: workers,
                rx_descriptors: DESCRIPTORS,
                tx_descriptors: DESCRIPTORS,
                mtu: Some(options.mtu),
                interrupts: options.interrupts && !options.device.starts_with(VIRTIO_USER),
                capabilities: capability::RX_IP_SUM
                    | capability::RX_L4_SUM
                    | capability::TX_UDP_SUM,
                pool: Pool::new(eal, count, room)?,
            },
        );
        let (port, rx, tx) = opened.map_err(|error| match error {
            // All that drivers say of it.
            DpdkError::Port { ref source, .. }
                if options.mtu > ETHERNET_MTU && source.kind() == io::ErrorKind::InvalidInput =>
            {
                too_small()
            }
            error => error.into(),
        })?;
        let setup = |action| {
            let device = options.device.clone();
            move |source| DpdkUplinkError::Setup { device, action, source }
        };
        if port.mtu() < options.mtu {
            return Err(too_small());
        }
        if let Some(mac) = options.mac {
            give_mac(&port, mac).map_err(setup("give it that MAC address"))?;
        }
        let info = port.info().map_err(setup("ask what it is"))?;
        if options.local.is_ipv6()
            && let Err(error) = port.set_all_multicast(true)
        {
            // Ports in memory have no filters.
            log::debug!("{}: no multicast filter to open: {error}", options.device);
        }
        let mac = options.mac.unwrap_or(info.mac);
        let local = LocalAddress {
            mac,
            ip: options.local.ip(),
            prefix: options.prefix,
            vlan: options.vlan,
        };
        let hardware = port.capabilities() & capability::TX_UDP_SUM != 0;
        let checksum = match (options.udp_checksum || options.local.is_ipv6(), hardware) {
            (false, _) => UdpChecksum::Zero,
            (true, true) => UdpChecksum::Hardware,
            (true, false) => UdpChecksum::Software,
        };
        let exceptions = match &options.exception_tap {
            Some(name) => Exception::open(name, &local, options.mtu, workers.into())?,
            None => Vec::new(),
        };
        let started = Instant::now();
        let neighbors = Neighbors::new(
            started,
            NeighborConfig {
                local: local.clone(),
                gateway: options.gateway,
                routes: options.routes.clone(),
                statics: options.neighbors.clone(),
                limits: NeighborLimits::default(),
            },
        );
        let neighbor_counters = Arc::clone(neighbors.counters());
        let base = options.local.port();
        let shared = Arc::new(Shared {
            id: options.id,
            local,
            ports: base..=base.saturating_add(PORT_COUNT - 1),
            ip_mtu: options.mtu,
            checksum,
            // These share the cable of the kernel's interface, whose other end may be on this machine.
            unchecked: match info.driver.as_str() {
                "net_af_packet" | "net_af_xdp" => RxChecksum::MaybePartial,
                _ => RxChecksum::Unknown,
            },
            routes: neighbors.routes().clone(),
            neighbors: Mutex::new(neighbors),
            generation: AtomicU64::new(0),
            due_us: AtomicU64::new(0),
            due_sooner: Waker::new().map_err(setup("make a descriptor for it"))?,
            started,
            events: Mutex::default(),
            queues: tx.into_iter().map(Mutex::new).collect(),
        });
        let mut exceptions = exceptions.into_iter();
        let uplinks: Vec<_> = rx
            .into_iter()
            .enumerate()
            .map(|(number, rx)| {
                let exception = exceptions.next();
                DpdkUplink::new(&shared, rx, number, exception, options.interrupts)
            })
            .collect();
        let sender = Sender::new(Arc::clone(&shared), 0, Arc::default());
        let of_uplinks = uplinks.iter().map(|uplink| Arc::clone(&uplink.share.sender.counters));
        let counters = of_uplinks.chain([Arc::clone(&sender.counters)]).collect();
        let underlay = uplinks.iter().map(|uplink| Arc::clone(&uplink.share.underlay)).collect();
        let below = info.interface.and_then(|index| Interface::of_index(index).ok());
        let port =
            Self { port, shared, sender, below, up: None, counters, underlay, neighbor_counters };
        Ok((port, uplinks))
    }

    /// Sends each payload to its remote address with its mark, for the control thread.
    pub fn send_many<'i>(&mut self, items: &[(&'i [u8], SocketAddr, u8)]) -> TxReport {
        let run = |(bytes, remote, mark): &(&'i [u8], SocketAddr, u8)| Run {
            bytes,
            segment_size: bytes.len(),
            remote: *remote,
            mark: *mark,
        };
        self.sender.send(Instant::now(), items.iter().map(run))
    }

    /// The next thing that happened; call to the end every few milliseconds.
    pub fn poll_event(&mut self) -> Option<DpdkEvent> {
        let up = self.link_is_up();
        if self.up.replace(up) != Some(up) {
            if up {
                // Switches learn where we are now.
                let mut neighbors = lock(&self.shared.neighbors);
                neighbors.announce(Instant::now());
                self.shared.publish(&mut neighbors);
            }
            return Some(DpdkEvent::Link(up));
        }
        lock(&self.shared.events).pop_front()
    }

    /// Whether the port's link, and that of the kernel's interface below it, is up.
    #[must_use]
    pub fn link_is_up(&self) -> bool {
        let below = self.below.as_ref().is_none_or(|below| below.is_running().unwrap_or(false));
        below && self.port.link_is_up().unwrap_or(false)
    }

    /// What we send to `remote` arrives there: its next hop works. Once a second is enough.
    pub fn confirm(&self, remote: IpAddr) {
        let mut neighbors = lock(&self.shared.neighbors);
        neighbors.confirm(Instant::now(), remote);
        self.shared.publish(&mut neighbors);
    }

    /// Tells everybody on the link where our address is: when frames go by this uplink now. Cheap, and
    /// no more than one frame per second comes of it.
    pub fn announce(&self) {
        let mut neighbors = lock(&self.shared.neighbors);
        neighbors.announce(Instant::now());
        self.shared.publish(&mut neighbors);
    }

    /// Whom datagrams to `remote` are handed to on the link; none without a route.
    #[must_use]
    pub fn next_hop(&self, remote: IpAddr) -> Option<IpAddr> {
        self.shared.routes.next_hop(remote)
    }

    /// The neighbours, in the order of their addresses.
    #[must_use]
    pub fn neighbors(&self) -> Vec<NeighborInfo> {
        lock(&self.shared.neighbors).list(Instant::now())
    }

    /// The DPDK port.
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Who we are on it.
    #[must_use]
    pub fn local(&self) -> &LocalAddress {
        &self.shared.local
    }

    /// Largest IP packet in bytes.
    #[must_use]
    pub fn ip_mtu(&self) -> u16 {
        self.shared.ip_mtu
    }

    /// Counters of each worker's uplink, and last of the control thread's.
    #[must_use]
    pub fn counters(&self) -> &[Arc<DpdkCounters>] {
        &self.counters
    }

    /// What each worker's uplink refused.
    #[must_use]
    pub fn underlay_counters(&self) -> &[Arc<UnderlayCounters>] {
        &self.underlay
    }

    /// What the neighbours counted.
    #[must_use]
    pub fn neighbor_counters(&self) -> &Arc<NeighborCounters> {
        &self.neighbor_counters
    }
}
