//! What the control half publishes to the workers: immutable, replaced as a whole.
//!
//! A worker loads the pointer once per burst. Lookup on the packet path is by index only.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::crypto::key::ClusterKey;
use crate::crypto::session::Session;
use crate::forward::fdb::Fdb;
use crate::id::{NodeId, PeerIndex, Vni};
use crate::stats::Traffic;
use crate::wire::buf::UplinkId;
use crate::wire::header::{Handle, Slot};

/// Milliseconds since the node's start: small enough for atomics.
#[derive(Debug, Clone, Copy)]
pub struct Clock(pub Instant);

impl Clock {
    /// Milliseconds from the start to `now`.
    #[must_use]
    pub fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Where datagrams for a peer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddress {
    /// By which local attachment.
    pub uplink: UplinkId,
    /// To which address.
    pub remote: SocketAddr,
    /// Largest UDP payload in bytes that the path takes.
    pub max_udp_payload: usize,
}

/// The address without an IPv4-mapped form, which a dual-stack socket may give.
pub(crate) fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

/// A peer as the workers see it.
#[derive(Debug)]
pub struct PeerEntry {
    /// Its index.
    pub index: PeerIndex,
    /// Its node id.
    pub node: NodeId,
    /// The session to send by, when there is one.
    pub session: Option<Arc<Session>>,
    /// Whether a first session is probably a moment away: frames wait for it then.
    pub connecting: bool,
    /// The link to send by.
    pub link: LinkAddress,
    /// All addresses that its datagrams may come from.
    pub sources: Vec<IpAddr>,
    /// One set of traffic counters per worker, and one for the control thread.
    pub traffic: Arc<[Traffic]>,
}

/// A node that may take part in a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its name for the network; [`Handle::NONE`] while that is not known.
    pub handle: Handle,
    /// False once it said that it does not have the network: no copy of a flood is for it.
    pub present: bool,
}

/// A network as the workers see it.
#[derive(Debug)]
pub struct NetworkEntry {
    /// Its identifier.
    pub vni: Vni,
    /// Who has which MAC address.
    pub fdb: Arc<Fdb>,
    /// Whether STP frames pass.
    pub stp: bool,
    /// Broadcast, unknown and multicast frames per second and worker; 0 for no limit.
    pub bum_rate: u32,
    /// By peer index: none for a node that may not take part.
    pub members: Vec<Option<Member>>,
    /// One set of traffic counters per worker.
    pub traffic: Arc<[Traffic]>,
}

impl NetworkEntry {
    /// What is known of the peer in this network, if it may take part.
    #[must_use]
    pub fn member(&self, peer: PeerIndex) -> Option<Member> {
        self.members.get(peer.0 as usize).copied().flatten()
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Tables {
    /// Differs from that of all other tables.
    pub generation: u64,
    /// Peers by [`PeerIndex`].
    pub peers: Vec<Option<Arc<PeerEntry>>>,
    /// Networks by our handle.
    pub networks: Vec<Option<Arc<NetworkEntry>>>,
    /// Our handle by identifier.
    pub handles: HashMap<Vni, Handle>,
    /// Sessions by our slot.
    pub sessions: Vec<Option<Arc<Session>>>,
    /// Cluster keys: only who has one of them is handed to the control thread.
    pub keys: Vec<ClusterKey>,
}

impl Tables {
    /// The peer at `index`.
    #[must_use]
    pub fn peer(&self, index: PeerIndex) -> Option<&Arc<PeerEntry>> {
        self.peers.get(index.0 as usize)?.as_ref()
    }

    /// The network that `handle` names here.
    #[must_use]
    pub fn network(&self, handle: Handle) -> Option<&Arc<NetworkEntry>> {
        self.networks.get(usize::from(handle.get()))?.as_ref()
    }

    /// The session at `slot`.
    #[must_use]
    pub fn session(&self, slot: Slot) -> Option<&Arc<Session>> {
        self.sessions.get(slot.0 as usize)?.as_ref()
    }
}
