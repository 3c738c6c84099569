//! What the control half publishes to the workers: immutable, replaced as a whole.
//!
//! A worker loads the pointer once per burst. Lookup on the packet path is by index only.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::compress::Level;
use crate::crypto::key::ClusterKey;
use crate::crypto::session::Session;
use crate::forward::address_filter::AddressFilter;
use crate::forward::fdb::{Fdb, Place};
use crate::forward::marks::Dscp;
use crate::forward::policy::{Policy, Ways};
use crate::forward::protect::Protect;
use crate::id::{LocalPort, LocalPorts, NodeId, PeerIndex, Vni};
use crate::link::id::{LinkIndex, MAX_LINKS};
use crate::stats::{LinkMeter, Traffic};
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

    /// Microseconds from the start to `now`.
    #[must_use]
    pub fn us(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0).as_micros()).unwrap_or(u64::MAX)
    }

    /// The moment that is so many microseconds after the start.
    #[must_use]
    pub fn at_us(&self, us: u64) -> Instant {
        self.0 + Duration::from_micros(us)
    }
}

/// A link as the workers see it.
#[derive(Debug, Clone)]
pub struct LinkEntry {
    /// By which local attachment.
    pub uplink: UplinkId,
    /// To which address; none while a dynamic link has not been heard.
    pub remote: Option<SocketAddr>,
    /// For a dynamic link: from where it may be heard.
    pub roams: Option<AddressFilter>,
    /// Largest UDP payload in bytes that the path takes.
    pub max_udp_payload: usize,
    /// Largest UDP payload in bytes that any path takes: what is larger tests this one.
    pub base_udp_payload: usize,
    /// Round trip by heartbeats when this was published, and its mean deviation; zero while it is
    /// not known.
    pub rtt: (Duration, Duration),
}

/// How a datagram's origin fits the links of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is the other end of this link.
    Known(LinkIndex),
    /// It may be the other end of this dynamic link, at another address than before.
    Elsewhere(LinkIndex),
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
    /// Whether the peer is heard (rule S1): a session outlasts that for a while.
    pub up: bool,
    /// Whether a first session is probably a moment away: frames wait for it then.
    pub connecting: bool,
    /// All its links, by index.
    pub links: Vec<LinkEntry>,
    /// Which of them carry frames at the moment.
    pub ways: Ways,
    /// How frames are spread over them where the network does not say.
    pub policy: Policy,
    /// Largest UDP payload in bytes that every link takes which may have to carry it.
    pub max_udp_payload: usize,
    /// The same as it will be once all links are measured: for what senders are told.
    pub expected_udp_payload: usize,
    /// Whether a datagram must fit all links: it may have to be sent again by another one.
    pub fits_all: bool,
    /// Which sealed datagrams are kept to be sent again.
    pub protect: Protect,
    /// For how long.
    pub window: Duration,
    /// By link: grows whenever it stops carrying frames. What left by it is sent again.
    pub failures: [u32; MAX_LINKS],
    /// Set by the control thread when it lets the heartbeats rest for want of traffic.
    pub resting: Arc<AtomicBool>,
    /// Where the outer DSCP comes from where the network does not say.
    pub dscp: Dscp,
    /// Whether ECN marks are carried over.
    pub ecn: bool,
    /// For each thread, then for each link: see [`Self::meter`].
    pub meters: Arc<[LinkMeter]>,
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

/// Which of a network's local ports get a frame (rule F10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// This one.
    Port(LocalPort),
    /// All but this one.
    AllBut(LocalPort),
    /// All.
    All,
}

impl To {
    /// Who gets what peers send, if all of it goes the same way.
    pub(crate) fn all_inwards(ports: LocalPorts) -> Option<Self> {
        if ports.bits() == 0 { Some(Self::All) } else { ports.only().map(Self::Port) }
    }

    /// Whether this port gets it.
    #[must_use]
    pub fn takes_in(self, port: LocalPort) -> bool {
        match self {
            Self::Port(only) => port == only,
            Self::AllBut(not) => port != not,
            Self::All => true,
        }
    }
}

/// A network as the workers see it.
#[derive(Debug)]
pub struct NetworkEntry {
    /// Its identifier.
    pub vni: Vni,
    /// Our handle of it.
    pub handle: Handle,
    /// Who has which MAC address.
    pub fdb: Arc<Fdb>,
    /// Whether STP frames pass.
    pub stp: bool,
    /// Broadcast, unknown and multicast frames per second and worker; 0 for no limit.
    pub bum_rate: u32,
    /// How frames are spread over links, if not as the peer has it.
    pub policy: Option<Policy>,
    /// Where the outer DSCP comes from, if not as the peer has it.
    pub dscp: Option<Dscp>,
    /// Whether TCP's segment size is lowered to what the path takes.
    pub mss_clamp: bool,
    /// Whether senders of too large packets are told by ICMP.
    pub too_big: bool,
    /// How hard to try to compress what goes to peers that take that, if at all (rule Z2).
    pub compression: Option<Level>,
    /// A loop was found: nothing passes.
    pub looped: bool,
    /// The ports that it has on this node (rule F10).
    pub local_ports: LocalPorts,
    /// Who gets what peers send, where that is no matter of the destination: there are not several
    /// ports. Worked out here, as it is asked for with every frame.
    pub all_inwards: Option<To>,
    /// By peer index: none for a node that may not take part.
    pub members: Vec<Option<Member>>,
    /// One set of traffic counters per worker.
    pub traffic: Arc<[Traffic]>,
}

impl PeerEntry {
    /// What one thread saw of one link; the control thread comes after the workers.
    #[must_use]
    pub fn meter(&self, worker: usize, link: LinkIndex) -> Option<&LinkMeter> {
        self.meters.get(worker * MAX_LINKS + link.at())
    }

    /// Which link a datagram came by. Never told by the datagram: an address cannot be borrowed.
    pub(crate) fn arrival(&self, uplink: UplinkId, from: SocketAddr) -> Option<Arrival> {
        let ip = canonical(from);
        let mut elsewhere = None;
        for (index, link) in LinkIndex::all(MAX_LINKS).zip(&self.links) {
            if link.uplink != uplink {
                continue;
            }
            match (&link.roams, link.remote) {
                (None, Some(remote)) if canonical(remote) == ip => {
                    return Some(Arrival::Known(index));
                }
                (Some(_), Some(remote)) if same(remote, from) => {
                    return Some(Arrival::Known(index));
                }
                (Some(filter), _) if elsewhere.is_none() && filter.admits(ip) => {
                    elsewhere = Some(Arrival::Elsewhere(index));
                }
                _ => {}
            }
        }
        elsewhere
    }
}

/// Whether two addresses are the same, ports included.
pub(crate) fn same(one: SocketAddr, other: SocketAddr) -> bool {
    canonical(one) == canonical(other) && one.port() == other.port()
}

impl NetworkEntry {
    /// What is known of the peer in this network, if it may take part.
    #[must_use]
    pub fn member(&self, peer: PeerIndex) -> Option<Member> {
        self.members.get(peer.0 as usize).copied().flatten()
    }

    /// Who gets a frame from the local port `from` for a station that is known behind `to`, a local
    /// port too; none if there is no such port but that one. A port that the network does not have
    /// is that of a static entry, which names the node: all get it.
    pub(crate) fn across(&self, from: LocalPort, to: LocalPort) -> Option<To> {
        if from == to {
            None
        } else if self.local_ports.contains(to) {
            Some(To::Port(to))
        } else {
            self.to_others(from)
        }
    }

    /// All local ports but this one, if there are any.
    pub(crate) fn to_others(&self, from: LocalPort) -> Option<To> {
        self.local_ports.has_others(from).then_some(To::AllBut(from))
    }

    /// Who gets a frame from a peer for a station that is known there, or not known at all, where
    /// there are several ports.
    pub(crate) fn inwards(&self, place: Option<Place>) -> To {
        match place {
            Some(Place::Local(port)) if self.local_ports.contains(port) => To::Port(port),
            _ => To::All,
        }
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Differs from that of all other tables.
    pub generation: u64,
    /// This node.
    pub node: Option<NodeId>,
    /// Peers by [`PeerIndex`].
    pub peers: Vec<Option<Arc<PeerEntry>>>,
    /// Networks by our handle.
    pub networks: Vec<Option<Arc<NetworkEntry>>>,
    /// Our handle by identifier.
    pub handles: Arc<HashMap<Vni, Handle>>,
    /// Sessions by our slot.
    pub sessions: Vec<Option<Arc<Session>>>,
    /// Most bytes that one worker keeps for one peer to be sent again.
    pub resend_bytes: usize,
    /// How long an incomplete frame waits for its fragments, in ms.
    pub reassembly_ms: u64,
    /// Cluster keys: only who has one of them is handed to the control thread.
    pub keys: Arc<Vec<ClusterKey>>,
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
