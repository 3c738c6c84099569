//! What happens to the node's interfaces and paths, told to the protocol; and what people do to
//! links.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Instant;

use encap::datapath::ControlInput;
use encap::id::NodeId;
use encap::link::id::LinkIndex;
use encap::vtep::{PathTrouble, UplinkNews};
use fastpath::interface;
use fastpath::monitor::{LinkNews, Monitor};
use fastpath::uplink::{UplinkError, UplinkErrorKind};
use fastpath::wake::PollSet;
use fastpath::worker::{Command, PULSE_QUEUE};
use log::{info, warn};

use super::Daemon;
use super::uplinks::{Uplinks, waiting_for};
use crate::config::{Config, Pair, missing_advice};

/// Begins to listen to the kernel's news of interfaces, addresses and neighbours. Without it links
/// fail a little later: by their heartbeats.
pub(super) fn open_monitor(config: &Config, uplinks: &Uplinks) -> Option<Monitor> {
    let remotes = remotes(config);
    let opened = Monitor::open(&uplinks.addresses()).and_then(|mut monitor| {
        monitor.watch_remotes(&remotes)?;
        Ok(monitor)
    });
    opened
        .inspect_err(|error| {
            warn!("the kernel does not tell of its interfaces ({error}); heartbeats have to do");
        })
        .ok()
}

/// The peers' addresses that the kernel sends to.
fn remotes(config: &Config) -> Vec<IpAddr> {
    let links = config.own_node().map_or(&[][..], |own| own.links.as_slice());
    let by_kernel = |pair: &Pair| links.get(pair.local).is_some_and(|link| link.dpdk.is_none());
    let pairs = config.peers().flat_map(|peer| config.pairs(peer)).filter(by_kernel);
    pairs.filter_map(|pair| pair.remote.fixed()).collect()
}

impl Daemon {
    /// Takes the interfaces as they are now.
    pub(super) fn look_at_interfaces(&mut self) {
        match self.monitor.as_ref().map(Monitor::snapshot) {
            Some(news) => self.tell_news(news),
            None => self.uplinks.open_gates(),
        }
        self.look_at_dpdk_links(Instant::now());
    }

    /// Takes what the kernel says of interfaces.
    pub(super) fn take_interface_news(&mut self) {
        let Some(monitor) = &mut self.monitor else { return };
        match monitor.poll() {
            Ok(news) => self.tell_news(news),
            Err(error) => {
                warn!("the kernel's news of interfaces broke off ({error}); asking anew");
                self.monitor = None;
            }
        }
    }

    /// Opens the monitor again after it broke off, and takes the interfaces as they are then.
    pub(super) fn mend_monitor(&mut self, poll_set: &mut PollSet, fixed: [RawFd; 3]) {
        if self.monitor.is_some() {
            return;
        }
        self.monitor = open_monitor(&self.config, &self.uplinks);
        poll_set.set(fixed.into_iter().chain(self.monitor.as_ref().map(Monitor::fd)));
        self.look_at_interfaces();
    }

    /// Other peers: their neighbour entries are watched now.
    pub(super) fn watch_remotes(&mut self) {
        let remotes = remotes(&self.config);
        let Some(monitor) = &mut self.monitor else { return };
        match monitor.watch_remotes(&remotes) {
            Ok(news) => self.tell_news(news),
            Err(error) => warn!("cannot watch the peers' neighbour entries: {error}"),
        }
    }

    fn tell_news(&mut self, news: Vec<LinkNews>) {
        let now = Instant::now();
        for item in news {
            match item {
                LinkNews::Carrier { addresses, up, .. } => {
                    for uplink in self.uplinks.with_addresses(&addresses) {
                        self.vtep.handle_uplink(now, uplink, UplinkNews::Carrier(up));
                    }
                }
                LinkNews::Address { address, present } => {
                    for uplink in self.uplinks.with_addresses(&[address]) {
                        self.uplinks.set_present(uplink, present);
                        self.tell_addresses(now);
                        self.vtep.handle_uplink(now, uplink, UplinkNews::Address(present));
                    }
                }
                LinkNews::Mtu { interface, addresses, mtu } => {
                    for uplink in self.uplinks.with_addresses(&addresses) {
                        let before = self.uplinks.get(uplink).map(|uplink| uplink.ip_mtu);
                        let size = self.uplinks.set_interface(uplink, &interface, mtu);
                        let Some(size) = size else { continue };
                        if before != Some(mtu) {
                            info!("uplink {}: MTU of {interface} is {mtu} now", uplink.0);
                        }
                        self.vtep.handle_uplink(now, uplink, UplinkNews::MaxUdpPayload(size));
                    }
                }
                LinkNews::Neighbour { address, failed } => {
                    for uplink in self.uplinks.of_kernel() {
                        self.vtep.handle_neighbour(now, uplink, address, !failed);
                    }
                }
            }
            self.drain();
        }
    }

    /// Addresses of this node came or went: people are told what the links wait for. Called again
    /// and again, as what is held back now is told of later.
    pub(super) fn tell_addresses(&mut self, now: Instant) {
        for (uplink, address, present) in self.uplinks.address_news(now) {
            match present {
                true => info!("uplink {}: {address} is there now", uplink.0),
                false => warn!(
                    "uplink {}: {}; {}",
                    uplink.0,
                    waiting_for(address),
                    missing_advice(address)
                ),
            }
        }
    }

    /// Heartbeats that workers received: all there are, as links must not be judged without them.
    pub(super) fn take_pulses(&mut self) {
        for _ in 0..PULSE_QUEUE {
            let Some(pulse) = self.pulses.pop() else { break };
            self.vtep.handle_input(Instant::now(), ControlInput::Pulse(Box::new(pulse)));
        }
    }

    /// A socket had trouble with a datagram.
    pub(super) fn take_uplink_error(&mut self, now: Instant, error: &UplinkError) {
        self.notices.uplink_error(now, &self.config, error);
        let trouble = match error.kind {
            UplinkErrorKind::TooBig => PathTrouble::TooBig(error.ip_mtu.map(|mtu| mtu as usize)),
            UplinkErrorKind::Unreachable | UplinkErrorKind::Refused => PathTrouble::Unreachable,
            UplinkErrorKind::Other => return,
        };
        let remote = error.remote.ip();
        self.vtep.handle_trouble(now, error.uplink, remote, trouble, error.local);
    }

    /// Writes loop probes into taps that are part of a bridge: behind others there is no loop.
    pub(super) fn inject_tap_frames(&mut self) {
        while let Some((vni, frame)) = self.vtep.poll_tap_frame() {
            let Some(network) = self.networks.get(vni) else { continue };
            let Some(tap) = &network.config.tap else { continue };
            if !network.config.loop_probe || !interface::is_bridged(tap) {
                continue;
            }
            let handle = self.vtep.tables().handles.get(&vni).copied();
            if let (Some(handle), Some(worker)) = (handle, self.workers.first()) {
                worker.handle.send(Command::Inject { handle, frame });
            }
        }
    }

    pub(super) fn drain_link(
        &mut self,
        now: Instant,
        node: &str,
        link: &str,
        drained: bool,
    ) -> Result<(), String> {
        let (node, link) = self.link(node, link)?;
        self.vtep.drain_link(now, node, link, drained).map_err(|error| error.to_string())
    }

    /// A path takes no more than the interface that it begins at.
    pub(super) fn check_link_mtu(
        &self,
        node: NodeId,
        link: LinkIndex,
        size: Option<u16>,
    ) -> Result<(), String> {
        let peer = self.config.nodes.iter().find(|peer| peer.id == node);
        let pairs = peer.map(|peer| self.config.pairs(peer)).unwrap_or_default();
        let uplink = pairs.get(link.at()).and_then(|pair| self.uplinks.iter().nth(pair.local));
        match (size, uplink) {
            (Some(size), Some(uplink)) if u32::from(size) > uplink.ip_mtu => Err(format!(
                "{size} is more than the interface {} takes, {}; raise its MTU first",
                uplink.interface, uplink.ip_mtu
            )),
            _ => Ok(()),
        }
    }

    /// A peer's link by its name, or by its index.
    pub(super) fn link(&self, node: &str, link: &str) -> Result<(NodeId, LinkIndex), String> {
        let peer = self
            .config
            .find_node(node)
            .ok_or_else(|| format!("no node {node:?} in the configuration"))?;
        if peer.id == self.config.own {
            return Err(format!("{node} is this node; links lead to others"));
        }
        let pairs = self.config.pairs(peer);
        let by_name = pairs.iter().position(|pair| pair.name == link);
        let by_index = || link.parse::<usize>().ok().filter(|index| *index < pairs.len());
        let found = by_name.or_else(by_index).and_then(|at| LinkIndex::new(u8::try_from(at).ok()?));
        let names: Vec<_> = pairs.iter().map(|pair| pair.name.as_str()).collect();
        let index = found.ok_or_else(|| {
            format!("no link {link:?} to {}; its links are: {}", peer.name, names.join(", "))
        })?;
        Ok((peer.id, index))
    }
}
