//! Virtual networks: membership, handles, forwarding tables, the frame size all members take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::NetworkConfig;
use super::{CommandError, Vtep};
use crate::event::Event;
use crate::forward::fdb::{Fdb, Place};
use crate::forward::loop_probe::{LoopGuard, LoopProbe};
use crate::id::{LocalPort, LocalPorts, PeerIndex, Vni};
use crate::peer::Peer;
use crate::stats::Traffic;
use crate::tables::{Member, NetworkEntry, To};
use crate::wire::control::{Binding, Bindings};
use crate::wire::header::Handle;

/// The frame size of a network is raised only after it could have been for this long (rule M2).
const RAISE_DELAY: Duration = Duration::from_secs(60);

/// A network of this node.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) config: NetworkConfig,
    pub(super) handle: Handle,
    pub(super) fdb: Arc<Fdb>,
    pub(super) traffic: Arc<[Traffic]>,
    /// Largest untagged frame that every known member takes.
    pub(super) max_frame_len: u16,
    /// When it is raised, and to what it could be since a while before.
    pub(super) raise: Option<(Instant, u16)>,
    /// What the peers were told that this node takes.
    announced_len: u16,
    /// Looks for a loop through what the tap is bridged to.
    pub(super) guard: LoopGuard,
    looped: bool,
    local_ports: LocalPorts,
}

impl Network {
    pub(super) fn is_looped(&self) -> bool {
        self.looped
    }
}

impl Vtep {
    pub(super) fn network(&self, vni: Vni) -> Option<&Network> {
        self.networks.values().find(|network| network.config.vni == vni)
    }

    /// Makes the networks those of the configuration; tells the peers.
    pub(super) fn apply_networks(&mut self, now: Instant, configs: Vec<NetworkConfig>) {
        self.networks.retain(|_, network| configs.iter().any(|c| c.vni == network.config.vni));
        for config in configs {
            self.apply_network(now, config);
        }
        self.bindings_revision += 1;
        for index in self.indices() {
            self.announce_bindings(now, index);
        }
        self.settle_frame_lengths(now);
        self.stale = true;
    }

    fn apply_network(&mut self, now: Instant, config: NetworkConfig) {
        let now_ms = self.clock.ms(now);
        let known = self.network(config.vni).map(|network| network.handle.get());
        let at = known.unwrap_or_else(|| self.add_network(now, &config));
        let limits = self.config.limits.fdb;
        let places: Vec<_> =
            config.static_fdb.iter().map(|(mac, node)| (*mac, self.place_of(*node))).collect();
        let outsiders: Vec<_> = self
            .peers
            .iter()
            .flatten()
            .filter(|peer| !config.members.contains(&peer.node()))
            .map(|peer| peer.index)
            .collect();
        let Some(network) = self.networks.get_mut(&at) else { return };
        network.fdb.set_limits(limits);
        let gone = network.config.static_fdb.iter().filter(|e| !config.static_fdb.contains(e));
        for (mac, _) in gone {
            network.fdb.remove(*mac);
        }
        for (mac, place) in places {
            if let Some(place) = place {
                network.fdb.set_static(mac, place, now_ms);
            }
        }
        for peer in outsiders {
            network.fdb.forget_peer(peer);
        }
        network.config = config;
    }

    /// Says which ports a network has on this node: bit 0 is its tap, bits 1 to 63 are virtual
    /// machines' (rule F10). It has its tap alone until then. What was learnt behind a port that is
    /// gone is forgotten.
    ///
    /// Call this before a worker serves a new port, and after all have given an old one back.
    ///
    /// # Errors
    /// [`CommandError::NoSuchNetwork`].
    pub fn set_local_ports(&mut self, vni: Vni, ports: u64) -> Result<(), CommandError> {
        let ports = LocalPorts::from_bits(ports);
        let network = self.networks.values_mut().find(|network| network.config.vni == vni);
        let network = network.ok_or(CommandError::NoSuchNetwork(vni))?;
        let before = std::mem::replace(&mut network.local_ports, ports);
        if before == ports {
            return Ok(());
        }
        let fdb = Arc::clone(&network.fdb);
        self.stale = true;
        self.publish_if_stale();
        for port in before.iter().filter(|port| !ports.contains(*port)) {
            fdb.forget_port(port);
        }
        Ok(())
    }

    fn place_of(&self, node: crate::id::NodeId) -> Option<Place> {
        if node == self.config.node {
            return Some(Place::Local(LocalPort::TAP));
        }
        self.by_node.get(&node).map(|index| Place::Peer(*index))
    }

    /// Gives the network a handle that was not in use for as long as possible (rule C5).
    fn add_network(&mut self, now: Instant, config: &NetworkConfig) -> u16 {
        let free = (0..Handle::MAX)
            .map(|step| (self.next_handle - 1 + step) % Handle::MAX + 1)
            .find(|handle| !self.networks.contains_key(handle));
        // The daemon refuses configurations with more networks than handles.
        let number = free.unwrap_or(0);
        self.next_handle = number % Handle::MAX + 1;
        let network = Network {
            handle: Handle::new(number).unwrap_or(Handle::NONE),
            fdb: Arc::new(Fdb::new(self.config.limits.fdb)),
            traffic: (0..=self.config.workers).map(|_| Traffic::default()).collect(),
            max_frame_len: config.max_frame_len,
            raise: None,
            announced_len: config.max_frame_len,
            guard: LoopGuard::new(self.config.node, config.vni, now),
            looped: false,
            local_ports: LocalPorts::TAP,
            config: NetworkConfig { static_fdb: Vec::new(), ..config.clone() },
        };
        self.networks.insert(number, network);
        number
    }

    /// The networks that a peer may take part in, as it is to name them.
    pub(super) fn bindings_for(&self, peer: &Peer) -> Vec<Bindings> {
        let entries: Vec<_> = self
            .networks
            .values()
            .filter(|network| network.config.members.contains(&peer.node()))
            .map(|network| Binding {
                vni: network.config.vni,
                handle: network.handle,
                max_frame_len: network.announced_len,
            })
            .collect();
        Bindings::split(self.bindings_revision, &entries)
    }

    /// What the workers see of all networks, by handle.
    pub(super) fn network_entries(&self) -> Vec<Option<Arc<NetworkEntry>>> {
        let highest = self.networks.keys().next_back().copied().unwrap_or(0);
        (0..=highest).map(|handle| self.networks.get(&handle).map(|n| self.entry(n))).collect()
    }

    fn entry(&self, network: &Network) -> Arc<NetworkEntry> {
        let members = self
            .peers
            .iter()
            .map(|peer| peer.as_ref().and_then(|peer| member(network, peer)))
            .collect();
        let workers = u32::try_from(self.config.workers.max(1)).unwrap_or(1);
        Arc::new(NetworkEntry {
            vni: network.config.vni,
            handle: network.handle,
            fdb: Arc::clone(&network.fdb),
            stp: network.config.stp,
            bum_rate: self.config.limits.bum_rate.div_ceil(workers),
            members,
            policy: network.config.policy,
            dscp: network.config.dscp.clone(),
            mss_clamp: network.config.mss_clamp,
            too_big: network.config.too_big,
            compression: network.config.compression,
            looped: network.looped,
            local_ports: network.local_ports,
            all_inwards: To::all_inwards(network.local_ports),
            traffic: Arc::clone(&network.traffic),
        })
    }

    /// Ages the forwarding tables and reports what was frozen.
    pub(super) fn age_networks(&mut self, now: Instant) {
        let now_ms = self.clock.ms(now);
        for network in self.networks.values() {
            network.fdb.age(now_ms);
            let vni = network.config.vni;
            let frozen = network.fdb.take_frozen();
            self.events.extend(frozen.into_iter().map(|mac| Event::MacFrozen { vni, mac }));
        }
    }

    /// Works out the frame size of every network anew: lowered at once, raised after a while.
    pub(super) fn settle_frame_lengths(&mut self, now: Instant) {
        self.announce_frame_lengths(now);
        for handle in self.networks.keys().copied().collect::<Vec<_>>() {
            let Some(possible) = self.possible_frame_len(handle) else { continue };
            let Some(network) = self.networks.get_mut(&handle) else { continue };
            if possible > network.max_frame_len {
                if network.raise.is_none_or(|(_, to)| to != possible) {
                    network.raise = Some((now + RAISE_DELAY, possible));
                }
                continue;
            }
            network.raise = None;
            if possible < network.max_frame_len {
                network.max_frame_len = possible;
                let (vni, max_frame_len) = (network.config.vni, possible);
                self.events.push_back(Event::MaxFrameLen { vni, max_frame_len });
            }
        }
    }

    pub(super) fn raise_frame_lengths(&mut self, now: Instant) {
        let due = |network: &Network| network.raise.is_some_and(|(at, _)| at <= now);
        let handles: Vec<_> =
            self.networks.values().filter(|n| due(n)).map(|n| n.handle.get()).collect();
        for handle in handles {
            let Some(network) = self.networks.get_mut(&handle) else { continue };
            if let Some((_, max_frame_len)) = network.raise.take()
                && max_frame_len != network.max_frame_len
            {
                network.max_frame_len = max_frame_len;
                let vni = network.config.vni;
                self.events.push_back(Event::MaxFrameLen { vni, max_frame_len });
            }
        }
    }

    fn possible_frame_len(&self, handle: u16) -> Option<u16> {
        let network = self.networks.get(&handle)?;
        let members = self
            .peers
            .iter()
            .flatten()
            .filter(|peer| network.config.members.contains(&peer.node()))
            .filter_map(|peer| peer.remote_bindings.get(network.config.vni))
            .map(|binding| binding.max_frame_len);
        Some(members.fold(self.own_frame_len(network), u16::min))
    }

    /// Largest frame that this node takes for itself: its tap's, and what its paths to the members
    /// take where the tap follows them (rule M2).
    fn own_frame_len(&self, network: &Network) -> u16 {
        if !network.config.follows_path {
            return network.config.max_frame_len;
        }
        self.peers
            .iter()
            .flatten()
            .filter(|peer| peer.up && network.config.members.contains(&peer.node()))
            .filter_map(|peer| {
                let suite = peer.current.as_ref()?.session.facts().suite;
                u16::try_from(peer.paths.settled_frame_len(suite)?).ok()
            })
            .fold(network.config.max_frame_len, u16::min)
    }

    /// Tells the peers when this node takes other sizes than they know.
    fn announce_frame_lengths(&mut self, now: Instant) {
        let lengths: Vec<_> = self
            .networks
            .iter()
            .map(|(handle, network)| (*handle, self.own_frame_len(network)))
            .collect();
        let mut changed = false;
        for (handle, len) in lengths {
            if let Some(network) = self.networks.get_mut(&handle) {
                changed |= std::mem::replace(&mut network.announced_len, len) != len;
            }
        }
        if changed {
            self.bindings_revision += 1;
            for index in self.indices() {
                self.announce_bindings(now, index);
            }
        }
    }

    /// Sends loop probes that are due, and opens networks again whose loop is over.
    pub(super) fn guard_networks(&mut self, now: Instant) {
        for network in self.networks.values_mut() {
            let vni = network.config.vni;
            if network.guard.poll_timeout() > now {
                continue;
            }
            if let Some(probe) = network.guard.poll_probe(now, &mut *self.rng) {
                self.tap_frames.push_back((vni, probe));
            }
            if network.looped && !network.guard.blocked(now) {
                network.looped = false;
                self.stale = true;
                self.events.push_back(Event::LoopOver { vni });
            }
        }
    }

    /// A loop probe came out of a network or its tap: one of this node's own means a loop.
    pub(super) fn handle_loop_probe(&mut self, now: Instant, vni: Vni, probe: &LoopProbe) {
        let Some(network) = self.networks.values_mut().find(|n| n.config.vni == vni) else {
            return;
        };
        if !network.guard.on_probe_seen(now, probe) {
            return;
        }
        if !std::mem::replace(&mut network.looped, true) {
            let until = network.guard.blocked_until(now).unwrap_or(now);
            let blocked = until.saturating_duration_since(now);
            self.stale = true;
            self.events.push_back(Event::LoopFound { vni, blocked });
        }
    }

    /// Records a peer's networks; the workers see them from now on.
    pub(super) fn take_bindings(&mut self, now: Instant, index: PeerIndex, slice: Bindings) {
        let Some(peer) = self.peer_mut(index) else { return };
        if peer.remote_bindings.take(slice) {
            self.stale = true;
            self.settle_frame_lengths(now);
        }
    }
}

fn member(network: &Network, peer: &Peer) -> Option<Member> {
    if !network.config.members.contains(&peer.node()) {
        return None;
    }
    let binding = peer.remote_bindings.get(network.config.vni);
    Some(Member {
        handle: binding.map_or(Handle::NONE, |binding| binding.handle),
        present: binding.is_some() || !peer.remote_bindings.known,
    })
}
