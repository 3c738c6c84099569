//! DPDK in this daemon: when it starts, with what rights, and what its uplinks tell.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use encap::event::Event;
use encap::id::NodeId;
use encap::link::id::LinkIndex;
use encap::link::liveness::State;
use encap::vtep::UplinkNews;
use encap::wire::buf::UplinkId;
use fastpath::dpdk::{DpdkError, Eal, EalOptions, Hugepages, Pool};
use fastpath::neighbor::NeighborEvent;
use fastpath::uplink::dpdk::{DpdkEvent, DpdkUplinkOptions};
use log::{error, info, warn};

use super::Daemon;
use super::uplinks::Uplink;
use crate::config::{self, Config, DpdkConfig, DpdkPort, Port};
use crate::exit::Failure;
use crate::privileges;

/// Bytes of packet in each buffer of VM ports; larger frames lie in several.
const VM_BUFFER_LEN: u16 = 2048;
/// Bytes of memory that such a buffer takes, with what DPDK keeps of it.
const VM_BUFFER_FOOTPRINT: u64 = 2500;
/// Fewest buffers that VM ports work with.
const MIN_VM_BUFFERS: u32 = 4095;
/// How often DPDK uplinks are asked what happened to them.
pub(super) const UPLINK_INTERVAL: Duration = Duration::from_millis(10);
/// How often VM ports are asked.
pub(super) const VM_INTERVAL: Duration = Duration::from_millis(100);
/// How often neighbours are told to be alive by what peers tell.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// DPDK, started.
pub(super) struct Dpdk {
    pub(super) eal: Eal,
    memory_mb: u32,
    /// Made for the first VM port.
    vm_pool: Option<Pool>,
}

impl Dpdk {
    /// Starts it if this node needs it.
    ///
    /// Where no card is to be driven it gets no more rights than the daemon keeps: the threads that
    /// it starts live as long as the process does.
    pub(super) fn start(config: &Config) -> Result<Option<Self>, Failure> {
        if !config.needs_dpdk() {
            return Ok(None);
        }
        let options = eal_options(config);
        let cards = !options.pci.is_empty();
        let start = move || {
            if !cards {
                privileges::drop_all_but_net_admin()?;
            }
            Ok::<_, anyhow::Error>(Eal::start(&options)?)
        };
        let thread = std::thread::spawn(start);
        let started = thread.join().unwrap_or_else(|_| Err(anyhow!("DPDK's start panicked")));
        let eal = started.map_err(Failure::cannot_start)?;
        let pages = if eal.hugepages() { "huge" } else { "ordinary" };
        let DpdkConfig { memory_mb, .. } = config.dpdk;
        info!("{} by {}, {memory_mb} MiB in {pages} pages", eal.version(), eal.shim().display());
        Ok(Some(Self { eal, memory_mb, vm_pool: None }))
    }

    /// Where the frames of VM ports lie.
    pub(super) fn vm_pool(&mut self) -> Result<Pool, DpdkError> {
        if let Some(pool) = &self.vm_pool {
            return Ok(pool.clone());
        }
        let mut count = vm_buffers(self.memory_mb);
        let pool = loop {
            match Pool::new(&self.eal, count, VM_BUFFER_LEN) {
                // What uplinks with many queues took is more than half, or lies in the middle.
                Err(DpdkError::NoMemory { .. }) if count > MIN_VM_BUFFERS => count /= 2,
                made => break made?,
            }
        };
        info!("VM ports share {} packet buffers of {VM_BUFFER_LEN} bytes", pool.count());
        Ok(self.vm_pool.insert(pool).clone())
    }
}

/// Packet buffers of all VM ports together, in up to half of the memory: uplinks need some too.
/// A power of two less one, as pools have.
fn vm_buffers(memory_mb: u32) -> u32 {
    let fit = u64::from(memory_mb) * 1024 * 1024 / 2 / VM_BUFFER_FOOTPRINT;
    let count = (1_u64 << (fit + 1).ilog2()) - 1;
    u32::try_from(count).unwrap_or(u32::MAX).max(MIN_VM_BUFFERS)
}

fn eal_options(config: &Config) -> EalOptions {
    let DpdkConfig { memory_mb, hugepages, eal, shim, max_sleep: _, interrupts: _ } = &config.dpdk;
    let links = config.own_node().map_or(&[][..], |own| own.links.as_slice());
    let ports = links.iter().filter_map(|link| link.dpdk.as_ref());
    let card = |port: &DpdkPort| match &port.port {
        Port::Pci { .. } => Some(port.port.to_string()),
        Port::Virtual { .. } => None,
    };
    EalOptions {
        shim: shim.clone(),
        memory_mb: *memory_mb,
        hugepages: match hugepages {
            config::Hugepages::Auto => Hugepages::Auto,
            config::Hugepages::Always => Hugepages::Always,
            config::Hugepages::Never => Hugepages::Never,
        },
        pci: ports.filter_map(card).collect(),
        extra: eal.clone(),
    }
}

/// A link's port as it is opened.
pub(super) fn uplink_options(
    id: UplinkId,
    address: IpAddr,
    port: &DpdkPort,
    config: &Config,
) -> DpdkUplinkOptions {
    DpdkUplinkOptions {
        id,
        device: port.port.to_string(),
        local: SocketAddr::new(address, config.cluster.port),
        prefix: port.prefix,
        gateway: port.gateway,
        routes: port.routes.iter().map(|r| ((r.to.addr(), r.to.prefix_len()), r.via)).collect(),
        neighbors: port.neighbors.iter().map(|n| (n.address, n.mac)).collect(),
        vlan: port.vlan,
        mac: port.mac,
        mtu: port.mtu,
        exception_tap: port.exception_tap.clone(),
        udp_checksum: port.udp_checksum,
        workers: config.daemon.workers,
        interrupts: config.dpdk.interrupts,
    }
}

/// When ports that wake nobody were asked last.
pub(super) struct Looked {
    uplinks: Instant,
    vm_ports: Instant,
    confirmed: Instant,
    /// Authentic datagrams that each link had brought then.
    heard: HashMap<(NodeId, LinkIndex), u64>,
}

impl Looked {
    pub(super) fn new(now: Instant) -> Self {
        Self { uplinks: now, vm_ports: now, confirmed: now, heard: HashMap::new() }
    }
}

/// Whether a link that something came by is proof that what we send arrives, too: what came is none
/// by itself (RFC 4861 section 7.3.1).
fn sending_works(state: State, heard_by_peer: bool) -> bool {
    state == State::Up && heard_by_peer
}

/// The attachment that the frames to a peer leave by from now on, where that is another one.
fn moved_to(config: &Config, event: &Event) -> Option<UplinkId> {
    let Event::Moved { node, moved } = event else { return None };
    let pairs = config.pairs(config.nodes.iter().find(|peer| peer.id == *node)?);
    let local = |link: LinkIndex| pairs.get(link.at()).map(|pair| pair.local);
    let (from, to) = (local(moved.from), local(moved.to)?);
    if from == Some(to) {
        return None;
    }
    u8::try_from(to).ok().map(UplinkId)
}

/// Whether an interval has gone by; begins another one then.
fn is_due(last: &mut Instant, interval: Duration, now: Instant) -> bool {
    let due = now.saturating_duration_since(*last) >= interval;
    if due {
        *last = now;
    }
    due
}

impl Daemon {
    /// Longest that the control thread may sleep so that no port waits too long.
    pub(super) fn longest_wait(&self) -> Duration {
        if self.uplinks.has_dpdk() {
            UPLINK_INTERVAL
        } else if self.networks.has_vm_ports() {
            VM_INTERVAL
        } else {
            super::LONGEST_WAIT
        }
    }

    /// Asks the ports that wake nobody what happened.
    pub(super) fn look_at_ports(&mut self, now: Instant) {
        if self.uplinks.has_dpdk() {
            if is_due(&mut self.looked.uplinks, UPLINK_INTERVAL, now) {
                let events = self.uplinks.poll_dpdk();
                for (uplink, event) in events {
                    self.take_dpdk_event(now, uplink, event);
                }
            }
            if is_due(&mut self.looked.confirmed, CONFIRM_INTERVAL, now) {
                self.confirm_neighbors(now);
            }
        }
        if is_due(&mut self.looked.vm_ports, VM_INTERVAL, now) {
            self.networks.poll_vm_ports();
        }
    }

    /// Takes the links of DPDK ports as they are now.
    pub(super) fn look_at_dpdk_links(&mut self, now: Instant) {
        for (uplink, up) in self.uplinks.dpdk_links() {
            self.vtep.handle_uplink(now, uplink, UplinkNews::Carrier(up));
        }
    }

    fn take_dpdk_event(&mut self, now: Instant, uplink: UplinkId, event: DpdkEvent) {
        let number = uplink.0;
        match event {
            DpdkEvent::Link(up) => {
                info!("uplink {number}: its port's link is {}", if up { "up" } else { "down" });
                self.vtep.handle_uplink(now, uplink, UplinkNews::Carrier(up));
            }
            DpdkEvent::Neighbor(NeighborEvent::Reachable(ip)) => {
                self.tell_neighbor(now, uplink, ip, true);
            }
            DpdkEvent::Neighbor(NeighborEvent::Failed(ip)) => {
                self.tell_neighbor(now, uplink, ip, false);
            }
            DpdkEvent::Neighbor(NeighborEvent::Moved { ip, from, to }) => {
                if let Some(more) = self.notices.of_uplink(now, "neighbour moved", uplink) {
                    info!("uplink {number}: {ip} moved from {from} to {to}{more}");
                }
            }
            DpdkEvent::Neighbor(NeighborEvent::Conflict { mac }) => {
                let local = self.uplinks.get(uplink).map(|uplink| uplink.local.ip().to_string());
                let local = local.unwrap_or_default();
                error!("uplink {number}: {mac} uses our address {local} too; correct one of them");
            }
        }
        self.drain();
    }

    /// A next hop answers, or does not: so it is with all that are reached by it.
    fn tell_neighbor(&mut self, now: Instant, uplink: UplinkId, hop: IpAddr, found: bool) {
        for remote in self.behind(uplink, hop) {
            self.vtep.handle_neighbour(now, uplink, remote, found);
        }
        if !found {
            warn!("uplink {}: {hop} does not answer for its MAC address", uplink.0);
        }
    }

    /// The peers' fixed addresses that are reached over `hop` by a DPDK port.
    fn behind(&self, uplink: UplinkId, hop: IpAddr) -> Vec<IpAddr> {
        let Some(port) = self.uplinks.get(uplink).and_then(Uplink::dpdk) else {
            return Vec::new();
        };
        let pairs = self.config.peers().flat_map(|peer| self.config.pairs(peer));
        let here = pairs.filter(|pair| pair.local == usize::from(uplink.0));
        here.filter_map(|pair| pair.remote.fixed())
            .filter(|remote| port.next_hop(*remote) == Some(hop))
            .collect()
    }

    /// Frames go by another link now: where that is on a DPDK port, switches and routers on the way are
    /// told where we are, as a kernel does not do it there.
    pub(super) fn announce_move(&self, event: &Event) {
        let uplink = moved_to(&self.config, event).and_then(|uplink| self.uplinks.get(uplink));
        if let Some(port) = uplink.and_then(Uplink::dpdk) {
            port.announce();
        }
    }

    /// Where both ends hear each other, what we send passes the next hop.
    fn confirm_neighbors(&mut self, now: Instant) {
        let peers = self.vtep.peer_status(now);
        for peer in &peers {
            for link in &peer.links {
                let Some(remote) = link.remote else { continue };
                if !self.uplinks.is_dpdk(link.uplink) {
                    continue;
                }
                let before = self.looked.heard.insert((peer.node, link.link), link.rx.0);
                let news = link.rx.0 > before.unwrap_or(0);
                if news && sending_works(link.state, link.heard_by_peer) {
                    self.uplinks.confirm(link.uplink, remote.ip());
                }
            }
        }
        self.looked.heard.retain(|(node, _), _| peers.iter().any(|peer| peer.node == *node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;
    use encap::link::choice::{MoveCause, Moved};

    /// Two links of our own, and a peer that both lead to, by name or each to each.
    fn two_links() -> Config {
        let links = |number: u8| {
            let link = |name: u8| config::NodeLink {
                name: name.to_string(),
                address: config::NodeAddress::Static([192, 0, 2, number + name].into()),
                dpdk: None,
            };
            vec![link(0), link(1)]
        };
        testing::config(vec![testing::node_with(1, links(10)), testing::node_with(2, links(20))])
    }

    #[test]
    fn frames_that_move_to_another_attachment_are_announced_there() {
        let config = two_links();
        let link = |number| LinkIndex::new(number).unwrap();
        let moved = |node, from, to| {
            let moved = Moved { from: link(from), to: link(to), cause: MoveCause::FailOver };
            moved_to(&config, &Event::Moved { node: testing::id(node), moved })
        };
        assert_eq!(moved(2, 0, 1), Some(UplinkId(1)));
        assert_eq!(moved(2, 1, 0), Some(UplinkId(0)));
        assert_eq!(moved(2, 1, 1), None, "by the same attachment");
        assert_eq!((moved(2, 0, 5), moved(3, 0, 1)), (None, None), "not in the configuration");
        let other = Event::Rekeyed { node: testing::id(2) };
        assert_eq!(moved_to(&config, &other), None);
    }

    #[test]
    fn half_of_the_memory_is_for_buffers_of_vm_ports() {
        for (memory_mb, count) in
            [(0, 4095), (1, 4095), (64, 8191), (128, 16_383), (256, 32_767), (65_536, 8_388_607)]
        {
            assert_eq!(vm_buffers(memory_mb), count, "{memory_mb} MiB");
        }
    }

    #[test]
    fn only_links_that_both_ends_hear_prove_that_sending_works() {
        assert!(sending_works(State::Up, true));
        assert!(!sending_works(State::Up, false));
        assert!(!sending_works(State::Suspect, true));
        assert!(!sending_works(State::Down, true));
    }

    #[test]
    fn intervals_begin_anew_when_they_are_over() {
        let start = Instant::now();
        let mut last = start;
        assert!(!is_due(&mut last, VM_INTERVAL, start));
        assert!(is_due(&mut last, VM_INTERVAL, start + VM_INTERVAL));
        assert!(!is_due(&mut last, VM_INTERVAL, start + VM_INTERVAL));
    }
}
