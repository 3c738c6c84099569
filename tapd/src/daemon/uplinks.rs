//! The node's attachments to the underlay: one UDP address per configured link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use encap::vtep::Transmit;
use encap::wire::buf::UplinkId;
use encap::wire::header::{CLEAR_OVERHEAD, SEALED_OVERHEAD};
use fastpath::interface;
use fastpath::port::DatagramPort;
use fastpath::uplink::any;
use fastpath::uplink::dpdk::{DpdkEvent, DpdkPort};
use fastpath::uplink::socket::UdpUplink;
use fastpath::uplink::steering;
use fastpath::uplink::{UplinkCounters, UplinkError, UplinkGate, UplinkOffload, UplinkOptions};
use log::{info, warn};

use super::dpdk::{Dpdk, uplink_options};
use super::notices::AddressNews;
use crate::config::{self, Cipher, Config, Family, MIN_UNDERLAY_MTU, NodeAddress, NodeLink};
use crate::exit::Failure;

/// IP MTU that is taken where the interface of an address cannot be found.
const DEFAULT_IP_MTU: u32 = 1500;
/// Largest UDP payload over IPv4 in bytes (RFC 768, RFC 791); IPv6's is a little larger.
const MAX_UDP_PAYLOAD: u32 = 65_507;
/// Stands for the interface of an address that no interface has.
const NO_INTERFACE: &str = "?";
/// Bytes of a UDP header.
pub(super) const UDP_LEN: u32 = 8;
/// Bytes of an Ethernet header without tags.
pub(super) const ETHERNET_LEN: u32 = 14;

/// One attachment.
pub(super) struct Uplink {
    /// Name of its link.
    pub(super) name: String,
    pub(super) local: SocketAddr,
    /// Name of the interface that owns the address, or of the device that DPDK drives.
    pub(super) interface: String,
    pub(super) ip_mtu: u32,
    /// Whether this machine has the address. One of several may come later than the node does.
    pub(super) present: bool,
    /// What people were told of that.
    told: AddressNews,
    /// One for each worker, until they are handed over.
    queues: Vec<any::Uplink>,
    pub(super) kind: Kind,
}

/// What an attachment is.
pub(super) enum Kind {
    /// Sockets of the kernel.
    Udp(Box<Sockets>),
    /// A port past the kernel.
    Dpdk(Box<DpdkPort>),
}

/// The kernel's sockets of an attachment.
pub(super) struct Sockets {
    /// The control thread's own handle on the first socket.
    control: UdpUplink,
    /// Counters of every socket, for readers.
    pub(super) counters: Vec<Arc<UplinkCounters>>,
    /// Offloads of every worker's socket, for readers.
    pub(super) offloads: Vec<Arc<UplinkOffload>>,
    /// Gates of every worker's socket, which are closed while no interface has the address. None
    /// for a socket that was bound to an address that this machine had.
    gates: Vec<Arc<UplinkGate>>,
}

/// All attachments, by [`UplinkId`].
pub(super) struct Uplinks {
    list: Vec<Uplink>,
    /// What a datagram adds above UDP.
    overhead: u32,
}

/// Bytes of an IP header without options.
pub(super) const fn ip_header_len(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

const fn ip_name(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4 20",
        IpAddr::V6(_) => "IPv6 40",
    }
}

/// What a link is at whose address of this node no interface has.
pub(super) fn waiting_for(address: IpAddr) -> String {
    format!("waiting: no interface has {address}")
}

impl Uplinks {
    pub(super) fn open(config: &Config, dpdk: Option<&Dpdk>) -> Result<Self, Failure> {
        let own = config.own_node().ok_or_else(|| anyhow!("the own node is not in the list"))?;
        let sealed = config.cluster.ciphers.iter().any(|cipher| *cipher != Cipher::None);
        let overhead = if sealed { SEALED_OVERHEAD } else { CLEAR_OVERHEAD };
        let mut list = Vec::new();
        for (number, link) in own.links.iter().enumerate() {
            let id = UplinkId(u8::try_from(number).unwrap_or(u8::MAX));
            list.push(match &link.dpdk {
                Some(port) => Uplink::open_dpdk(id, link, port, config, dpdk)?,
                None => Uplink::open(id, link, config)?,
            });
        }
        Ok(Self { list, overhead: u32::try_from(overhead).unwrap_or(0) })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Uplink> {
        self.list.iter()
    }

    pub(super) fn get(&self, id: UplinkId) -> Option<&Uplink> {
        self.list.get(usize::from(id.0))
    }

    /// Gives up the workers' queues: one list for each worker, in the order of the uplinks.
    pub(super) fn take_worker_queues(&mut self) -> Vec<Vec<any::Uplink>> {
        let workers = self.list.first().map_or(0, |uplink| uplink.queues.len());
        let mut lists: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
        for uplink in &mut self.list {
            for (list, queue) in lists.iter_mut().zip(uplink.queues.drain(..)) {
                list.push(queue);
            }
        }
        lists
    }

    /// Sends datagrams of the control half, those of one uplink together; gives the errors that the
    /// paths report. What fails is counted by the socket, and whatever mattered is sent again.
    pub(super) fn send(&mut self, transmits: &[Transmit]) -> Vec<UplinkError> {
        let mut errors = Vec::new();
        for (id, uplink) in (0..).map(UplinkId).zip(&mut self.list) {
            let mine = transmits.iter().filter(|transmit| transmit.uplink == id);
            let items: Vec<_> = mine.map(|t| (t.payload.as_slice(), t.remote, t.mark)).collect();
            if items.is_empty() {
                continue;
            }
            match &mut uplink.kind {
                Kind::Udp(sockets) => {
                    sockets.control.send_many(&items);
                    errors.extend(std::iter::from_fn(|| sockets.control.poll_error()));
                }
                Kind::Dpdk(port) => {
                    port.send_many(&items);
                }
            }
        }
        errors
    }

    /// The DPDK ports.
    fn dpdk(&self) -> impl Iterator<Item = (UplinkId, &DpdkPort)> {
        (0..).map(UplinkId).zip(&self.list).filter_map(|(id, uplink)| Some((id, uplink.dpdk()?)))
    }

    pub(super) fn has_dpdk(&self) -> bool {
        self.dpdk().next().is_some()
    }

    pub(super) fn is_dpdk(&self, id: UplinkId) -> bool {
        self.get(id).is_some_and(|uplink| uplink.dpdk().is_some())
    }

    /// The attachments by sockets of the kernel, whose news of neighbours are about all of them.
    pub(super) fn of_kernel(&self) -> Vec<UplinkId> {
        let list = (0..).map(UplinkId).zip(&self.list);
        list.filter(|(_, uplink)| uplink.sockets().is_some()).map(|(id, _)| id).collect()
    }

    /// What happened to the DPDK ports.
    pub(super) fn poll_dpdk(&mut self) -> Vec<(UplinkId, DpdkEvent)> {
        let mut events = Vec::new();
        for (id, uplink) in (0..).map(UplinkId).zip(&mut self.list) {
            if let Kind::Dpdk(port) = &mut uplink.kind {
                events.extend(std::iter::from_fn(|| Some((id, port.poll_event()?))));
            }
        }
        events
    }

    /// Whether the links of the DPDK ports are up.
    pub(super) fn dpdk_links(&self) -> Vec<(UplinkId, bool)> {
        self.dpdk().map(|(id, port)| (id, port.link_is_up())).collect()
    }

    /// What a DPDK port sends to `remote` arrives there.
    pub(super) fn confirm(&self, id: UplinkId, remote: IpAddr) {
        if let Some(port) = self.get(id).and_then(Uplink::dpdk) {
            port.confirm(remote);
        }
    }

    /// The attachments whose address is one of these, of the kernel's interfaces.
    pub(super) fn with_addresses(&self, addresses: &[IpAddr]) -> Vec<UplinkId> {
        let has =
            |uplink: &Uplink| uplink.dpdk().is_none() && addresses.contains(&uplink.local.ip());
        (0..).map(UplinkId).zip(&self.list).filter(|(_, u)| has(u)).map(|(id, _)| id).collect()
    }

    /// The fixed addresses that interfaces of the kernel have.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let fixed = |uplink: &Uplink| Some(uplink.local.ip()).filter(|ip| !ip.is_unspecified());
        self.list.iter().filter(|uplink| uplink.dpdk().is_none()).filter_map(fixed).collect()
    }

    /// Takes whether this machine has the address of an attachment, which sends only then.
    pub(super) fn set_present(&mut self, id: UplinkId, present: bool) {
        if let Some(uplink) = self.list.get_mut(usize::from(id.0)) {
            uplink.set_gates(present);
            uplink.present = present;
        }
    }

    /// What people are to be told now of addresses that came or went: the attachment, the address,
    /// and whether this machine has it.
    pub(super) fn address_news(&mut self, now: Instant) -> Vec<(UplinkId, IpAddr, bool)> {
        let mut news = Vec::new();
        for (id, uplink) in (0..).map(UplinkId).zip(&mut self.list) {
            if uplink.told.is_due(now, uplink.present) {
                news.push((id, uplink.local.ip(), uplink.present));
            }
        }
        news
    }

    /// Nobody says any more which addresses this machine has: each attachment sends, as one whose
    /// address comes would never do so otherwise.
    pub(super) fn open_gates(&self) {
        for uplink in &self.list {
            uplink.set_gates(true);
        }
    }

    /// The interface of an attachment, which may be another one now, takes other sizes; gives the
    /// largest UDP payload in bytes.
    pub(super) fn set_interface(
        &mut self,
        id: UplinkId,
        interface: &str,
        ip_mtu: u32,
    ) -> Option<usize> {
        let uplink = self.list.get_mut(usize::from(id.0))?;
        interface.clone_into(&mut uplink.interface);
        uplink.ip_mtu = ip_mtu;
        Some(uplink.max_udp_payload() as usize)
    }

    /// Largest tap MTU that fits every usable uplink without fragments.
    pub(super) fn tap_mtu(&self) -> u32 {
        let fits =
            |uplink: &Uplink| uplink.max_udp_payload().saturating_sub(self.overhead + ETHERNET_LEN);
        self.narrowest().map_or(0, fits)
    }

    /// The uplink that takes the least, of those that links can use at all.
    fn narrowest(&self) -> Option<&Uplink> {
        let usable = self.list.iter().filter(|uplink| uplink.ip_mtu >= MIN_UNDERLAY_MTU.into());
        let narrowest = usable.min_by_key(|uplink| uplink.max_udp_payload());
        narrowest.or_else(|| self.list.iter().max_by_key(|uplink| uplink.ip_mtu))
    }

    /// How [`Self::tap_mtu`] comes about.
    pub(super) fn tap_mtu_arithmetic(&self) -> String {
        self.narrowest().map_or_else(String::new, |uplink| {
            format!(
                "uplink {} {} - {} - UDP 8 - tapd {} - Ethernet 14 = {}",
                uplink.interface,
                uplink.ip_mtu,
                ip_name(uplink.local.ip()),
                self.overhead,
                self.tap_mtu()
            )
        })
    }
}

impl Uplink {
    fn open_dpdk(
        id: UplinkId,
        link: &NodeLink,
        port: &config::DpdkPort,
        config: &Config,
        dpdk: Option<&Dpdk>,
    ) -> Result<Self, Failure> {
        let dpdk = dpdk.ok_or_else(|| anyhow!("DPDK is not started"))?;
        let address = link.address.fixed();
        let address = address.ok_or_else(|| anyhow!("a DPDK port has no fixed address"))?;
        let options = uplink_options(id, address, port, config);
        let (port, queues) = DpdkPort::open(&dpdk.eal, &options).map_err(Failure::cannot_start)?;
        let (local, ip_mtu) = (options.local, u32::from(port.ip_mtu()));
        info!(
            "uplink {}: {local} on DPDK port {}, MAC {}, MTU {ip_mtu}",
            id.0,
            options.device,
            port.local().mac
        );
        Ok(Self {
            name: link.name.clone(),
            local,
            interface: options.device,
            ip_mtu,
            present: true,
            told: AddressNews::new(true),
            queues: queues.into_iter().map(|queue| any::Uplink::Dpdk(Box::new(queue))).collect(),
            kind: Kind::Dpdk(Box::new(port)),
        })
    }

    /// The DPDK port, if it is on one.
    pub(super) fn dpdk(&self) -> Option<&DpdkPort> {
        match &self.kind {
            Kind::Udp(_) => None,
            Kind::Dpdk(port) => Some(port),
        }
    }

    /// The sockets, if it is the kernel's.
    pub(super) fn sockets(&self) -> Option<&Sockets> {
        match &self.kind {
            Kind::Udp(sockets) => Some(sockets),
            Kind::Dpdk(_) => None,
        }
    }

    fn set_gates(&self, open: bool) {
        for gate in self.sockets().into_iter().flat_map(|sockets| &sockets.gates) {
            gate.set_open(open);
        }
    }

    fn open(id: UplinkId, link: &NodeLink, config: &Config) -> Result<Self, Failure> {
        let address = &link.address;
        let (local, options) = Self::socket_options(address, config);
        let sockets = steering::bind_group(id, local, config.daemon.workers, &options)
            .map_err(Failure::cannot_start)?;
        let local = sockets.first().map_or(local, UdpUplink::local);
        let (interface, ip_mtu) = Self::interface(address)?;
        let present = interface != NO_INTERFACE;
        if !present {
            let ip = local.ip();
            warn!("uplink {}: {}; {}", id.0, waiting_for(ip), config::missing_advice(ip));
        }
        if ip_mtu < MIN_UNDERLAY_MTU.into() {
            warn!(
                "uplink {}: {interface} has an MTU of {ip_mtu}, and tapd needs \
                 {MIN_UNDERLAY_MTU}: its links stay down until that is raised",
                id.0
            );
        }
        let first = sockets.first().context("no socket was opened")?;
        let granted = first.granted_buffers();
        let place = if present {
            format!("on {interface}, MTU {ip_mtu}")
        } else {
            format!("on no interface yet, MTU {ip_mtu} until then")
        };
        info!(
            "uplink {}: {local} {place}, socket buffers {} / {} bytes",
            id.0, granted.receive, granted.send
        );
        let control = first.try_clone().context("cannot clone a socket")?;
        let counters =
            sockets.iter().chain([&control]).map(|socket| Arc::clone(socket.counters())).collect();
        let offloads = sockets.iter().map(|socket| Arc::clone(socket.offload())).collect();
        let gated = sockets.iter().filter(|_| options.freebind);
        let gates = gated.map(|socket| Arc::clone(socket.gate())).collect();
        let uplink = Self {
            name: link.name.clone(),
            local,
            interface,
            ip_mtu,
            present,
            told: AddressNews::new(present),
            queues: sockets.into_iter().map(|socket| any::Uplink::Udp(Box::new(socket))).collect(),
            kind: Kind::Udp(Box::new(Sockets { control, counters, offloads, gates })),
        };
        // Before the first handshake, which goes out with the kernel's first news.
        uplink.set_gates(present);
        Ok(uplink)
    }

    /// The address that the sockets are bound to, and how.
    fn socket_options(address: &NodeAddress, config: &Config) -> (SocketAddr, UplinkOptions) {
        let common = UplinkOptions {
            segmentation: config.offload.uplink_segmentation,
            receive_coalescing: config.offload.uplink_coalescing,
            ..UplinkOptions::default()
        };
        match address {
            NodeAddress::Static(address) => {
                // One of several links may come up later than the node does.
                let freebind = config.own_node().is_some_and(|own| own.links.len() > 1);
                let source_ports = config.offload.source_ports;
                let options = UplinkOptions { freebind, source_ports, ..common };
                (SocketAddr::new(*address, config.cluster.port), options)
            }
            // Nobody has to know the port of an address that nobody knows.
            NodeAddress::Dynamic { family, interface } => {
                let any = match family {
                    Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    Family::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                };
                let interface = interface.clone();
                (SocketAddr::new(any, 0), UplinkOptions { interface, ..common })
            }
        }
    }

    /// Name and IP MTU of the interface that an address is on.
    fn interface(address: &NodeAddress) -> Result<(String, u32), Failure> {
        match address {
            NodeAddress::Static(address) => {
                let found =
                    interface::interface_of(*address).context("cannot list the interfaces")?;
                if let Some(found) = found {
                    return Ok((found.name, found.ip_mtu));
                }
                Ok((NO_INTERFACE.to_owned(), DEFAULT_IP_MTU))
            }
            NodeAddress::Dynamic { interface: Some(name), .. } => {
                let mtu = interface::Interface::open(name).and_then(|i| i.tap_mtu());
                let mtu =
                    mtu.with_context(|| format!("cannot ask interface {name} for its MTU"))?;
                Ok((name.clone(), mtu))
            }
            NodeAddress::Dynamic { interface: None, .. } => Ok(("any".to_owned(), DEFAULT_IP_MTU)),
        }
    }

    /// Largest UDP payload that leaves unfragmented, in bytes.
    pub(super) fn max_udp_payload(&self) -> u32 {
        let fits = self.ip_mtu.saturating_sub(ip_header_len(self.local.ip()) + UDP_LEN);
        // The length fields of IPv4 and UDP end before the MTU of a loopback interface does.
        fits.min(MAX_UDP_PAYLOAD)
    }
}
