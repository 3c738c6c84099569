//! The node's attachments to the underlay: one UDP address per configured link.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use encap::vtep::Transmit;
use encap::wire::buf::UplinkId;
use encap::wire::header::{CLEAR_OVERHEAD, SEALED_OVERHEAD};
use fastpath::interface;
use fastpath::port::DatagramPort;
use fastpath::uplink::socket::UdpUplink;
use fastpath::uplink::steering;
use fastpath::uplink::{UplinkCounters, UplinkError, UplinkOptions};
use log::{info, warn};

use crate::config::{Cipher, Config};
use crate::exit::Failure;

/// IP MTU that is taken where the interface of an address cannot be found.
const DEFAULT_IP_MTU: u32 = 1500;
/// Largest UDP payload over IPv4 in bytes (RFC 768, RFC 791); IPv6's is a little larger.
const MAX_UDP_PAYLOAD: u32 = 65_507;
/// Bytes of a UDP header.
const UDP_LEN: u32 = 8;
/// Bytes of an Ethernet header without tags.
pub(super) const ETHERNET_LEN: u32 = 14;

/// One attachment.
pub(super) struct Uplink {
    pub(super) local: SocketAddr,
    /// Name of the interface that owns the address.
    pub(super) interface: String,
    pub(super) ip_mtu: u32,
    /// One socket per worker, until they are handed over.
    sockets: Vec<UdpUplink>,
    /// The control thread's own handle on the first socket.
    control: UdpUplink,
    /// Counters of every socket, for readers.
    pub(super) counters: Vec<Arc<UplinkCounters>>,
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

impl Uplinks {
    pub(super) fn open(config: &Config) -> Result<Self, Failure> {
        let own = config.own_node().ok_or_else(|| anyhow!("the own node is not in the list"))?;
        let sealed = config.cluster.ciphers.iter().any(|cipher| *cipher != Cipher::None);
        let overhead = if sealed { SEALED_OVERHEAD } else { CLEAR_OVERHEAD };
        let mut list = Vec::new();
        for (number, link) in own.links.iter().enumerate() {
            let address = link.address.fixed().ok_or_else(|| {
                let name = &link.name;
                Failure::cannot_start(anyhow!("this node's link {name} has no fixed address"))
            })?;
            let id = UplinkId(u8::try_from(number).unwrap_or(u8::MAX));
            list.push(Uplink::open(id, address, config)?);
        }
        Ok(Self { list, overhead: u32::try_from(overhead).unwrap_or(0) })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Uplink> {
        self.list.iter()
    }

    pub(super) fn get(&self, id: UplinkId) -> Option<&Uplink> {
        self.list.get(usize::from(id.0))
    }

    /// Gives up the sockets: one list for each worker, in the order of the uplinks.
    pub(super) fn take_worker_sockets(&mut self) -> Vec<Vec<UdpUplink>> {
        let workers = self.list.first().map_or(0, |uplink| uplink.sockets.len());
        let mut lists: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
        for uplink in &mut self.list {
            for (list, socket) in lists.iter_mut().zip(uplink.sockets.drain(..)) {
                list.push(socket);
            }
        }
        lists
    }

    /// Sends a datagram of the control half; gives the errors that the path reports. What fails
    /// is counted by the socket, and whatever mattered is sent again.
    pub(super) fn send(&mut self, transmit: &Transmit) -> Vec<UplinkError> {
        let Some(uplink) = self.list.get_mut(usize::from(transmit.uplink.0)) else {
            return Vec::new();
        };
        uplink.control.send_to(&transmit.payload, transmit.remote, 0);
        std::iter::from_fn(|| uplink.control.poll_error()).collect()
    }

    /// Largest datagram in bytes that may come, and what a buffer needs beside it.
    pub(super) fn max_packet_len(&self) -> usize {
        let largest = self.list.iter().map(Uplink::max_udp_payload).max().unwrap_or(0);
        largest as usize + 64
    }

    /// Largest tap MTU that fits every uplink without fragments.
    pub(super) fn tap_mtu(&self) -> u32 {
        let fits =
            |uplink: &Uplink| uplink.max_udp_payload().saturating_sub(self.overhead + ETHERNET_LEN);
        self.list.iter().map(fits).min().unwrap_or(0)
    }

    /// How [`Self::tap_mtu`] comes about.
    pub(super) fn tap_mtu_arithmetic(&self) -> String {
        let narrowest = self.list.iter().min_by_key(|uplink| uplink.max_udp_payload());
        narrowest.map_or_else(String::new, |uplink| {
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
    fn open(id: UplinkId, address: IpAddr, config: &Config) -> Result<Self, Failure> {
        let local = SocketAddr::new(address, config.cluster.port);
        let sockets =
            steering::bind_group(id, local, config.daemon.workers, &UplinkOptions::default())
                .map_err(Failure::cannot_start)?;
        let found = interface::interface_of(address).context("cannot list the interfaces")?;
        let (interface, ip_mtu) = match found {
            Some(found) => (found.name, found.ip_mtu),
            None => {
                warn!("no interface owns {address}; taking an MTU of {DEFAULT_IP_MTU} for granted");
                ("?".to_owned(), DEFAULT_IP_MTU)
            }
        };
        let first = sockets.first().context("no socket was opened")?;
        let granted = first.granted_buffers();
        info!(
            "uplink {}: {local} on {interface}, MTU {ip_mtu}, socket buffers {} / {} bytes",
            id.0, granted.receive, granted.send
        );
        let control = first.try_clone().context("cannot clone a socket")?;
        let counters =
            sockets.iter().chain([&control]).map(|socket| Arc::clone(socket.counters())).collect();
        Ok(Self { local, interface, ip_mtu, sockets, control, counters })
    }

    /// Largest UDP payload that leaves unfragmented, in bytes.
    pub(super) fn max_udp_payload(&self) -> u32 {
        let fits = self.ip_mtu.saturating_sub(ip_header_len(self.local.ip()) + UDP_LEN);
        // The length fields of IPv4 and UDP end before the MTU of a loopback interface does.
        fits.min(MAX_UDP_PAYLOAD)
    }
}
