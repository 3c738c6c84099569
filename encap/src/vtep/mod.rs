//! The control half of a node: peers, handshakes, keys, networks, and what the workers see of it.
//!
//! Sans-IO: time and randomness are arguments. [`Vtep::handle_input`] and
//! [`Vtep::handle_timeout`] take input; after either, drain [`Vtep::poll_transmit`] and
//! [`Vtep::poll_event`] to the end and ask [`Vtep::poll_timeout`] when to come back.

pub mod config;
mod handshaking;
mod sessions;
mod messages;
mod links;
mod roaming;
mod networks;
mod status;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::channel::hub::Hub;
use crate::crypto::key::ClusterKey;
use crate::crypto::session::Session;
use crate::datapath::{ControlInput, Datapath};
use crate::event::{DownReason, Event};
use crate::forward::fdb::Place;
use crate::forward::policer::Policer;
use crate::handshake::cookie::Guard;
use crate::id::{LocalPort, NodeId, PeerIndex, Vni};
use crate::link::id::LinkIndex;
use crate::paths::fits_all;
use crate::peer::Peer;
use crate::rng::{self, Rng};
use crate::stats::{Counters, DropReason};
use crate::tables::{Clock, PeerEntry, Tables, canonical};
use crate::timer::Timer;
use crate::wire::buf::UplinkId;
use crate::wire::ethernet::MacAddr;
use crate::wire::header::{Lane, Slot};

use config::{PeerConfig, Remote, VtepConfig};
use links::PACE_INTERVAL;
pub use links::{PathTrouble, UplinkNews};
use networks::Network;
pub use status::{LinkStatus, NetworkStatus, PeerStatus};

/// How often sessions are looked after.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How often while the session is not proven yet.
const UNPROVEN_INTERVAL: Duration = Duration::from_millis(100);
/// Silence in the session in force after which it is replaced.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(3);
/// Silence after which the session of a peer that is down is wiped.
const SESSION_SILENCE_LIMIT: Duration = Duration::from_secs(180);
/// A gap between two calls larger than this means that the node was suspended: nothing is sealed
/// under keys from before, for a clone of it may have gone on with them.
const SUSPEND_LIMIT: Duration = Duration::from_secs(5);
/// Peer indices that are used once each before any is used again.
const MIN_PEER_INDICES: usize = 256;
/// Initiations from unlisted addresses that are looked at, to report them.
const STRANGERS_PER_SECOND: u32 = 10;
/// How often the forwarding tables are aged.
const FDB_INTERVAL: Duration = Duration::from_secs(5);

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// By which local attachment.
    pub uplink: UplinkId,
    /// To which address.
    pub remote: SocketAddr,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// Outer TOS or traffic class.
    pub mark: u8,
}

/// A command names a node or network that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such node in the configuration.
    #[error("no node {0} in the configuration")]
    NoSuchNode(NodeId),
    /// No such network in the configuration.
    #[error("no network {0} in the configuration")]
    NoSuchNetwork(Vni),
    /// No such link to that node.
    #[error("no link {0} to that node")]
    NoSuchLink(LinkIndex),
    /// The address is a group address or zero.
    #[error("{0} cannot be the address of a station")]
    NotAStation(MacAddr),
}

/// This node.
pub struct Vtep {
    config: VtepConfig,
    clock: Clock,
    rng: Box<dyn Rng>,
    /// Random number of this process.
    boot: u64,
    tables: Arc<ArcSwap<Tables>>,
    counters: Arc<Counters>,
    peers: Vec<Option<Peer>>,
    next_peer: usize,
    by_node: HashMap<NodeId, PeerIndex>,
    /// All addresses that peers may send from.
    sources: HashSet<IpAddr>,
    /// Rations initiations from elsewhere: enough to name a wrong address in the log.
    strangers: Policer,
    /// Outstanding initiations.
    by_token: HashMap<u64, PeerIndex>,
    /// Networks by our handle.
    networks: BTreeMap<u16, Network>,
    /// Where the search for the next free handle begins: a handle is used again as late as can be.
    next_handle: u16,
    bindings_revision: u32,
    /// Sessions by slot; a slot without one may be reserved by an outgoing initiation.
    sessions: Vec<Option<Arc<Session>>>,
    reserved: Vec<bool>,
    next_slot: usize,
    next_serial: u64,
    last_stamp: u64,
    guard: Guard,
    next_worker: usize,
    fdb_at: Instant,
    pace_at: Instant,
    last_call: Instant,
    /// Complete passes of each worker over its sockets.
    passes: Vec<Arc<AtomicU64>>,
    wants_wake: bool,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    /// Frames to go into taps.
    tap_frames: VecDeque<(Vni, Vec<u8>)>,
    /// Whether [`Tables`] must be published before the call returns.
    stale: bool,
    /// Peers of whom only their own entry must be published anew.
    stale_peers: HashSet<PeerIndex>,
    generation: u64,
}

impl std::fmt::Debug for Vtep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vtep").field("node", &self.config.node).finish_non_exhaustive()
    }
}

impl Vtep {
    /// A node that begins handshakes with all its peers at once; drain the polls.
    pub fn new(now: Instant, config: VtepConfig, mut rng: Box<dyn Rng>) -> Self {
        let boot = rng::u64(&mut *rng);
        let guard = Guard::new(now, &mut *rng);
        let mut vtep = Self {
            clock: Clock(now),
            boot,
            tables: Arc::default(),
            counters: Arc::default(),
            peers: Vec::new(),
            next_peer: 0,
            by_node: HashMap::new(),
            sources: HashSet::new(),
            strangers: Policer::new(now, STRANGERS_PER_SECOND, STRANGERS_PER_SECOND),
            by_token: HashMap::new(),
            networks: BTreeMap::new(),
            next_handle: 1,
            bindings_revision: 0,
            sessions: Vec::new(),
            reserved: Vec::new(),
            next_slot: 0,
            next_serial: 1,
            last_stamp: config.start_stamp,
            guard,
            next_worker: 0,
            fdb_at: now + FDB_INTERVAL,
            pace_at: now,
            last_call: now,
            passes: Vec::new(),
            wants_wake: false,
            stale_peers: HashSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            tap_frames: VecDeque::new(),
            stale: true,
            generation: 0,
            config: VtepConfig { peers: Vec::new(), networks: Vec::new(), ..config.clone() },
            rng,
        };
        vtep.reconfigure(now, config);
        vtep
    }

    /// One worker's half of the packet path. Each call gives the next worker's; there are as many
    /// as the configuration says.
    pub fn datapath(&mut self) -> Datapath {
        let worker = self.next_worker;
        self.next_worker += 1;
        let bucket = u8::try_from(worker).unwrap_or(0) % Lane::CONTROL_BUCKET;
        let lane = Lane::new(bucket, 0);
        let mut datapath = Datapath::new(Arc::clone(&self.tables), self.clock, worker, lane);
        if worker == 0 {
            datapath.hub = Some(Box::new(Hub::new(self.config.channels)));
        }
        self.passes.push(datapath.passes());
        datapath
    }

    /// Counters of the control half.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the workers see.
    #[must_use]
    pub fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// Takes what a worker handed over.
    pub fn handle_input(&mut self, now: Instant, input: ControlInput) {
        self.note_time(now);
        match input {
            ControlInput::Long { uplink, from, datagram } => {
                if let Err(reason) = self.handle_long(now, uplink, from, &datagram) {
                    self.counters.count_drop(reason);
                }
            }
            ControlInput::Foreign { from, version } => self.events.push_back(match version {
                Some((version, highest)) => Event::VersionUnknown { from, version, highest },
                None => Event::KeyUnknown { from },
            }),
            ControlInput::Pulse(pulse) => self.handle_pulse(now, &pulse),
            ControlInput::Message { slot, session, link, from, payload } => {
                let outcome = self.handle_payload(now, (slot, session), (link, from), &payload);
                if let Err(reason) = outcome {
                    self.counters.count_drop(reason);
                }
            }
            ControlInput::Probe { slot, session, id, size } => {
                self.handle_probe(slot, session, id, size);
            }
            ControlInput::Elsewhere { slot, session, link, from } => {
                self.handle_elsewhere(now, slot, session, link, from);
            }
            ControlInput::Awake(peer) => self.handle_awake(now, peer),
            ControlInput::LoopProbe { vni, probe } => self.handle_loop_probe(now, vni, &probe),
            ControlInput::SessionProven { slot, session } => {
                self.handle_proven(now, slot, session);
            }
            ControlInput::EpochOpened { slot, session, epoch } => {
                self.handle_epoch_opened(now, slot, session, epoch);
            }
        }
        self.publish_if_stale();
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.note_time(now);
        for index in 0..self.peers.len() {
            while let Some((peer, timer)) = self.due_timer(index, now) {
                self.handle_timer(now, peer, timer);
            }
        }
        if self.fdb_at <= now {
            self.fdb_at = now + FDB_INTERVAL;
            self.age_networks(now);
        }
        if self.pace_at <= now {
            self.pace_at = now + PACE_INTERVAL;
            self.share_budget();
        }
        self.raise_frame_lengths(now);
        self.guard_networks(now);
        self.publish_if_stale();
    }

    fn due_timer(&mut self, index: usize, now: Instant) -> Option<(PeerIndex, Timer)> {
        let peer = self.peers.get_mut(index)?.as_mut()?;
        peer.timers.take_due(now).map(|timer| (peer.index, timer))
    }

    fn handle_timer(&mut self, now: Instant, peer: PeerIndex, timer: Timer) {
        match timer {
            Timer::Attempt | Timer::Rekey => self.start_handshake(now, peer),
            Timer::Retry => self.retry_handshake(now, peer),
            Timer::Heartbeat => self.beat(now, peer),
            Timer::Watch => self.watch(now, peer),
            Timer::Silence => self.check_silence(now, peer),
            Timer::Rotate => self.rotate_epoch(now, peer),
            Timer::Wipe => self.wipe_epoch(peer),
            Timer::Bindings => self.send_bindings(now, peer),
            Timer::Forget => self.forget_expired(now, peer),
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.transmits.pop_front()?;
        self.counters.datagrams_out.add(1);
        self.counters.datagram_bytes_out.add(transmit.payload.len() as u64);
        Some(transmit)
    }

    /// The next thing to report.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next frame to write into the tap of a network, if that is bridged: a loop probe.
    pub fn poll_tap_frame(&mut self) -> Option<(Vni, Vec<u8>)> {
        self.tap_frames.pop_front()
    }

    /// Whether blocked workers must look at their sockets and at the tables now; asked once.
    pub fn poll_wake(&mut self) -> bool {
        std::mem::take(&mut self.wants_wake)
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        let peers = self.peers.iter().flatten().filter_map(|peer| peer.timers.next());
        let networks = self.networks.values().filter_map(|network| network.raise.map(|(at, _)| at));
        let guards = self.networks.values().map(|network| network.guard.poll_timeout());
        peers.chain(networks).chain(guards).fold(self.fdb_at.min(self.pace_at), Instant::min)
    }

    /// Notices a gap in time: the node was suspended, or is a clone that wakes.
    fn note_time(&mut self, now: Instant) {
        // Something is due every few seconds, so a gap has no other reason.
        let gap = now.saturating_duration_since(self.last_call);
        self.last_call = self.last_call.max(now);
        if gap > SUSPEND_LIMIT + FDB_INTERVAL {
            self.handle_suspend(now);
        }
    }

    /// This node was suspended: no key from before seals again, and every peer is asked for a new
    /// handshake at once. The daemon calls it when the clock that counts sleep ran ahead.
    pub fn handle_suspend(&mut self, now: Instant) {
        for index in self.indices() {
            self.drop_sessions(now, index, DownReason::Suspended);
            self.start_handshake(now, index);
        }
        self.publish_if_stale();
    }

    /// Says goodbye to every peer and wipes all keys. Drain [`Self::poll_transmit`] afterwards.
    pub fn shutdown(&mut self, now: Instant) {
        for index in self.indices() {
            self.send_goodbye(index);
            self.drop_sessions(now, index, DownReason::Goodbye);
            if let Some(peer) = self.peer_mut(index) {
                peer.timers = Default::default();
            }
        }
        self.publish_if_stale();
    }

    /// Asks a peer, or all, for a new handshake now.
    ///
    /// # Errors
    /// [`CommandError::NoSuchNode`].
    pub fn rehandshake(&mut self, now: Instant, node: Option<NodeId>) -> Result<(), CommandError> {
        let indices = match node {
            None => self.indices(),
            Some(node) => {
                vec![*self.by_node.get(&node).ok_or(CommandError::NoSuchNode(node))?]
            }
        };
        for index in indices {
            self.start_handshake(now, index);
        }
        self.publish_if_stale();
        Ok(())
    }

    /// Puts another configuration in force; what did not change goes on undisturbed. The node's
    /// id and the number of workers are fixed; suites count from the next handshake on.
    pub fn reconfigure(&mut self, now: Instant, new: VtepConfig) {
        let gone: Vec<_> = self
            .by_node
            .keys()
            .filter(|node| !new.peers.iter().any(|peer| peer.node == **node))
            .copied()
            .collect();
        for node in gone {
            self.remove_peer(now, node);
        }
        let keys_changed = self.apply_keys(&new.keys);
        self.config.limits = new.limits;
        self.config.suites = new.suites;
        let added: Vec<_> =
            new.peers.into_iter().filter_map(|peer| self.apply_peer(now, peer)).collect();
        self.sources = self.peers.iter().flatten().flat_map(static_sources).collect();
        self.apply_networks(now, new.networks);
        // Only now: a handshake lists the networks.
        for index in added {
            self.start_handshake(now, index);
        }
        if keys_changed {
            self.rehandshake_under_new_key(now);
        }
        self.stale = true;
        self.publish_if_stale();
    }

    /// Takes the keys over; says whether there are others now, or in another order.
    fn apply_keys(&mut self, keys: &[ClusterKey]) -> bool {
        let ids = |keys: &[ClusterKey]| keys.iter().map(ClusterKey::id).collect::<Vec<_>>();
        let changed = ids(&self.config.keys) != ids(keys);
        self.config.keys = keys.to_vec();
        changed
    }

    /// Sessions under a key that is not the first any more are replaced; those under a key that is
    /// gone end now.
    fn rehandshake_under_new_key(&mut self, now: Instant) {
        for index in self.indices() {
            self.drop_pending_under_removed_keys(index);
            let Some(key_id) = self.current_key_id(index) else { continue };
            if !self.config.keys.iter().any(|key| key.id() == key_id) {
                self.drop_sessions(now, index, DownReason::KeyRemoved);
                self.start_handshake(now, index);
            } else if self.config.keys.first().is_some_and(|key| key.id() != key_id) {
                self.start_handshake(now, index);
            }
        }
    }

    /// A session that waits for its confirmation must not come into force under a removed key.
    fn drop_pending_under_removed_keys(&mut self, index: PeerIndex) {
        let keys: Vec<_> = self.config.keys.iter().map(ClusterKey::id).collect();
        let Some(peer) = self.peer_mut(index) else { return };
        let mut gone = Vec::new();
        peer.pending.retain(|pending| {
            let kept = keys.contains(&pending.established.key_id);
            if !kept {
                gone.push(pending.established.session.facts().local_slot);
            }
            kept
        });
        for slot in gone {
            self.release_slot(slot);
        }
    }

    fn current_key_id(&self, index: PeerIndex) -> Option<[u8; 8]> {
        Some(self.peer(index)?.current.as_ref()?.key_id)
    }

    /// Takes a peer over; gives its index if it is new.
    fn apply_peer(&mut self, now: Instant, config: PeerConfig) -> Option<PeerIndex> {
        if let Some(index) = self.by_node.get(&config.node).copied() {
            if let Some(peer) = self.peer_mut(index)
                && peer.config != config
            {
                peer.paths.reconfigure(now, &config);
                peer.config = config;
            }
            return None;
        }
        // An index is used again as late as can be: a worker may still have tables in which it
        // means the peer before.
        let count = self.peers.len();
        let in_turn = (0..count).map(|step| (self.next_peer + step) % count);
        let free = in_turn.clone().find(|at| self.peers.get(*at).is_some_and(Option::is_none));
        let at = free.filter(|_| count >= MIN_PEER_INDICES).unwrap_or(count);
        self.next_peer = at + 1;
        let index = PeerIndex(u32::try_from(at).unwrap_or(u32::MAX));
        if at == self.peers.len() {
            self.peers.push(None);
        }
        self.by_node.insert(config.node, index);
        let peer = Peer::new(now, config, index, self.config.workers);
        if let Some(place) = self.peers.get_mut(at) {
            *place = Some(peer);
        }
        Some(index)
    }

    fn remove_peer(&mut self, now: Instant, node: NodeId) {
        let Some(index) = self.by_node.remove(&node) else { return };
        self.send_goodbye(index);
        self.drop_sessions(now, index, DownReason::Removed);
        for network in self.networks.values() {
            network.fdb.forget_peer(index);
        }
        if let Some(place) = self.peers.get_mut(index.0 as usize) {
            *place = None;
        }
    }

    /// Sets a static entry of a forwarding table.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn fdb_add(
        &mut self,
        now: Instant,
        vni: Vni,
        mac: MacAddr,
        node: NodeId,
    ) -> Result<(), CommandError> {
        if mac.is_multicast() || mac.is_zero() {
            return Err(CommandError::NotAStation(mac));
        }
        let place = if node == self.config.node {
            Place::Local(LocalPort::TAP)
        } else {
            Place::Peer(*self.by_node.get(&node).ok_or(CommandError::NoSuchNode(node))?)
        };
        let network = self.network(vni).ok_or(CommandError::NoSuchNetwork(vni))?;
        network.fdb.set_static(mac, place, self.clock.ms(now));
        Ok(())
    }

    /// Forgets an address; says whether it was known.
    ///
    /// # Errors
    /// [`CommandError::NoSuchNetwork`].
    pub fn fdb_del(&mut self, vni: Vni, mac: MacAddr) -> Result<bool, CommandError> {
        let network = self.network(vni).ok_or(CommandError::NoSuchNetwork(vni))?;
        Ok(network.fdb.remove(mac))
    }

    /// Forgets what was learnt in one network or in all; gives the number of entries.
    ///
    /// # Errors
    /// [`CommandError::NoSuchNetwork`].
    pub fn fdb_flush(&mut self, vni: Option<Vni>) -> Result<usize, CommandError> {
        match vni {
            Some(vni) => Ok(self.network(vni).ok_or(CommandError::NoSuchNetwork(vni))?.fdb.flush()),
            None => Ok(self.networks.values().map(|network| network.fdb.flush()).sum()),
        }
    }

    fn indices(&self) -> Vec<PeerIndex> {
        self.peers.iter().flatten().map(|peer| peer.index).collect()
    }

    fn peer(&self, index: PeerIndex) -> Option<&Peer> {
        self.peers.get(index.0 as usize)?.as_ref()
    }

    fn peer_mut(&mut self, index: PeerIndex) -> Option<&mut Peer> {
        self.peers.get_mut(index.0 as usize)?.as_mut()
    }

    /// The session of `serial` at `slot`, as slots are used again.
    fn session(&self, slot: Slot, serial: u64) -> Option<&Arc<Session>> {
        let session = self.sessions.get(slot.0 as usize)?.as_ref()?;
        (session.facts().serial == serial).then_some(session)
    }

    fn publish_if_stale(&mut self) {
        let stale_peers = std::mem::take(&mut self.stale_peers);
        let everything = std::mem::take(&mut self.stale);
        if !everything && stale_peers.is_empty() {
            return;
        }
        self.generation += 1;
        let tables = if everything { self.all_tables() } else { self.tables_with(&stale_peers) };
        self.tables.store(Arc::new(tables));
    }

    fn all_tables(&self) -> Tables {
        let peers = self.peers.iter().map(|peer| Some(Arc::new(self.peer_entry(peer.as_ref()?))));
        let reassembly_ms = self.config.limits.reassembly.as_millis();
        Tables {
            generation: self.generation,
            node: Some(self.config.node),
            peers: peers.collect(),
            networks: self.network_entries(),
            handles: Arc::new(self.networks.values().map(|n| (n.config.vni, n.handle)).collect()),
            sessions: self.sessions.clone(),
            keys: Arc::new(self.config.keys.clone()),
            resend_bytes: self.config.limits.resend_bytes / self.config.workers.max(1),
            reassembly_ms: u64::try_from(reassembly_ms).unwrap_or(u64::MAX),
        }
    }

    /// The tables in force, with the entries of some peers made anew: links change more often than
    /// anything else.
    fn tables_with(&self, changed: &HashSet<PeerIndex>) -> Tables {
        let mut tables = Tables::clone(&self.tables.load());
        tables.generation = self.generation;
        for index in changed {
            let entry = self.peer(*index).map(|peer| Arc::new(self.peer_entry(peer)));
            if let Some(place) = tables.peers.get_mut(index.0 as usize) {
                *place = entry;
            }
        }
        tables
    }

    fn peer_entry(&self, peer: &Peer) -> PeerEntry {
        let paths = &peer.paths;
        PeerEntry {
            index: peer.index,
            node: peer.node(),
            session: peer.current.as_ref().map(|current| Arc::clone(&current.session)),
            up: peer.up,
            connecting: peer.is_connecting(),
            links: paths.entries(),
            ways: paths.ways(),
            policy: peer.config.policy,
            max_udp_payload: paths.max_udp_payload(),
            expected_udp_payload: paths.expected_udp_payload(),
            fits_all: fits_all(peer.config.policy, peer.config.protect),
            protect: peer.config.protect,
            window: paths.window(),
            failures: paths.failures,
            resting: Arc::clone(&paths.resting),
            dscp: peer.config.dscp.clone(),
            ecn: self.config.limits.ecn,
            meters: Arc::clone(&paths.meters),
            traffic: Arc::clone(&peer.traffic),
        }
    }

    fn drop_packet(&self, reason: DropReason) {
        self.counters.count_drop(reason);
    }
}

/// The fixed addresses of a peer.
fn static_sources(peer: &Peer) -> impl Iterator<Item = IpAddr> {
    peer.config.links.iter().filter_map(|link| match &link.remote {
        Remote::Static(remote) => Some(canonical(*remote)),
        Remote::Dynamic(_) => None,
    })
}
