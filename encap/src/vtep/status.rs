//! What people ask a node about itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CommandError, Vtep};
use crate::event::DownReason;
use crate::forward::fdb::{FdbRow, Place};
use crate::forward::policy::Policy;
use crate::forward::protect::Protect;
use crate::handshake::features::Features;
use crate::id::{NodeId, Vni};
use crate::link::estimate::Snapshot;
use crate::link::id::LinkIndex;
use crate::link::liveness::{Cause, State as LinkState, Transition};
use crate::link::pmtu::{How, State};
use crate::peer::Peer;
use crate::stats::Traffic;
use crate::vtep::config::Remote;
use crate::wire::buf::UplinkId;

/// A peer at one moment.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its id.
    pub node: NodeId,
    /// Whether it is reachable.
    pub up: bool,
    /// Why it is not, if it ever was.
    pub down_reason: Option<DownReason>,
    /// The cipher suite in use.
    pub cipher: Option<&'static str>,
    /// What both sides take, in the session in use.
    pub features: Features,
    /// Where datagrams go.
    pub remote: Option<SocketAddr>,
    /// All links.
    pub links: Vec<LinkStatus>,
    /// How frames are spread over them.
    pub policy: Policy,
    /// Which datagrams are sent again when a link fails.
    pub protect: Protect,
    /// Largest UDP payload in bytes that is sent.
    pub max_udp_payload: usize,
    /// Age of the session.
    pub session_age: Option<Duration>,
    /// Epoch that is sent in, and highest that was opened.
    pub epochs: Option<(u32, u32)>,
    /// Last round-trip time of a heartbeat.
    pub rtt: Option<Duration>,
    /// Since when nothing authentic came.
    pub last_heard: Option<Duration>,
    /// Completed handshakes.
    pub handshakes: u64,
    /// Public name of the cluster key of the session.
    pub key_id: Option<[u8; 8]>,
    /// Frames and bytes, by worker.
    pub traffic: Arc<[Traffic]>,
}

/// A link at one moment.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// Which.
    pub link: LinkIndex,
    /// The local attachment.
    pub uplink: UplinkId,
    /// The other end, where it is known.
    pub remote: Option<SocketAddr>,
    /// Whether the other end may move.
    pub dynamic: bool,
    /// Whether it is alive.
    pub state: LinkState,
    /// Since when.
    pub since: Duration,
    /// Why.
    pub cause: Cause,
    /// Whether the peer hears us on it, as far as it has told.
    pub heard_by_peer: bool,
    /// Taken out of use by command.
    pub drained: bool,
    /// Whether it carries frames now.
    pub sending: bool,
    /// Higher is preferred.
    pub priority: u8,
    /// Share of the flows.
    pub weight: u16,
    /// Bytes of IP and UDP header.
    pub ip_overhead: usize,
    /// Largest UDP payload in bytes.
    pub max_udp_payload: usize,
    /// How that was found.
    pub how: How,
    /// How long ago.
    pub found_ago: Duration,
    /// Whether a larger one is being looked for.
    pub searching: bool,
    /// Time between heartbeats.
    pub interval: Duration,
    /// What was measured.
    pub measured: Snapshot,
    /// One-way delay beyond that of the fastest link, in microseconds.
    pub skew_us: i64,
    /// Authentic datagrams received, and their bytes.
    pub rx: (u64, u64),
    /// Datagrams sent by workers, and their bytes.
    pub tx: (u64, u64),
    /// Copies received that had come by another link.
    pub copies: u64,
    /// Datagrams sent again here when another link failed.
    pub resent: u64,
    /// The last changes of state, oldest first, and how long ago each was.
    pub transitions: Vec<(Duration, Transition)>,
}

/// A network at one moment.
#[derive(Debug, Clone)]
pub struct NetworkStatus {
    /// Its identifier.
    pub vni: Vni,
    /// Our handle for it.
    pub handle: u16,
    /// Nodes that may take part, and whether each is reachable and has the network.
    pub members: Vec<(NodeId, bool)>,
    /// Entries of the forwarding table.
    pub fdb_entries: usize,
    /// Largest untagged frame in bytes that every known member takes.
    pub max_frame_len: u16,
    /// A loop was found: the network is closed here for a while.
    pub looped: bool,
    /// Frames and bytes, by worker.
    pub traffic: Arc<[Traffic]>,
}

impl Vtep {
    /// All peers, in the order of their ids.
    #[must_use]
    pub fn peer_status(&self, now: Instant) -> Vec<PeerStatus> {
        let mut rows: Vec<_> =
            self.peers.iter().flatten().map(|peer| self.one_peer(now, peer)).collect();
        rows.sort_by_key(|row| row.node);
        rows
    }

    fn one_peer(&self, now: Instant, peer: &Peer) -> PeerStatus {
        let session = peer.current.as_ref().map(|current| &current.session);
        let last_ms = peer.last_opened_ms();
        let silence = Duration::from_millis(self.clock.ms(now).saturating_sub(last_ms));
        PeerStatus {
            node: peer.node(),
            up: peer.up,
            down_reason: peer.down_reason,
            cipher: session.map(|session| session.facts().suite.name()),
            features: session.map_or(Features::NONE, |session| session.facts().features),
            remote: peer.paths.order.best.first().and_then(|link| peer.paths.get(*link)?.remote),
            links: peer.paths.indices().filter_map(|link| one_link(now, peer, link)).collect(),
            policy: peer.config.policy,
            protect: peer.config.protect,
            max_udp_payload: peer.paths.max_udp_payload(),
            session_age: peer
                .current
                .as_ref()
                .map(|current| now.saturating_duration_since(current.since)),
            epochs: session.map(|session| (session.tx_epoch(), session.rx_epoch())),
            rtt: peer.paths.last_rtt(),
            last_heard: (last_ms > 0).then_some(silence),
            handshakes: peer.handshakes,
            key_id: peer.current.as_ref().map(|current| current.key_id),
            traffic: Arc::clone(&peer.traffic),
        }
    }

    /// All networks, in the order of their identifiers.
    #[must_use]
    pub fn network_status(&self) -> Vec<NetworkStatus> {
        let mut rows: Vec<_> = self
            .networks
            .values()
            .map(|network| NetworkStatus {
                vni: network.config.vni,
                handle: network.handle.get(),
                members: self
                    .peers
                    .iter()
                    .flatten()
                    .filter(|peer| network.config.members.contains(&peer.node()))
                    .map(|peer| {
                        let has = peer.remote_bindings.get(network.config.vni).is_some();
                        (peer.node(), peer.up && has)
                    })
                    .collect(),
                fdb_entries: network.fdb.len(),
                max_frame_len: network.max_frame_len,
                looped: network.is_looped(),
                traffic: Arc::clone(&network.traffic),
            })
            .collect();
        rows.sort_by_key(|row| row.vni);
        rows
    }

    /// The forwarding table of a network; no node means this one.
    ///
    /// # Errors
    /// [`CommandError::NoSuchNetwork`].
    pub fn fdb_rows(
        &self,
        now: Instant,
        vni: Vni,
    ) -> Result<Vec<(FdbRow, Option<NodeId>)>, CommandError> {
        let network = self.network(vni).ok_or(CommandError::NoSuchNetwork(vni))?;
        let rows = network.fdb.rows(self.clock.ms(now));
        Ok(rows
            .into_iter()
            .map(|row| {
                let node = match row.place {
                    Place::Local(_) => None,
                    Place::Peer(index) => self.peer(index).map(Peer::node),
                };
                (row, node)
            })
            .collect())
    }
}

fn one_link(now: Instant, peer: &Peer, link: LinkIndex) -> Option<LinkStatus> {
    let paths = &peer.paths;
    let path = paths.get(link)?;
    let ago = |at: Instant| now.saturating_duration_since(at);
    let slowest = paths.list.iter().map(|other| path.estimate.skew_to(&other.estimate)).max();
    let history = paths.liveness.history(link);
    let sending = paths.order.best.first() == Some(&link)
        || !matches!(peer.config.policy, Policy::Passive)
            && (paths.order.best.contains(&link) || paths.order.live.contains(link));
    Some(LinkStatus {
        link,
        uplink: path.config.uplink,
        remote: path.remote,
        dynamic: matches!(path.config.remote, Remote::Dynamic(_)),
        state: paths.liveness.state(link),
        since: paths.liveness.since(link).map_or(Duration::ZERO, ago),
        cause: paths.cause(link),
        heard_by_peer: paths.liveness.heard_by_peer(link),
        drained: path.is_drained(),
        sending: sending && peer.current.is_some(),
        priority: path.config.priority,
        weight: path.config.weight,
        ip_overhead: path.config.ip_overhead,
        max_udp_payload: path.pmtu.size(),
        how: path.pmtu.how(),
        found_ago: ago(path.pmtu.since()),
        searching: path.pmtu.state() == State::Searching,
        interval: paths.interval(),
        measured: path.estimate.snapshot(),
        skew_us: slowest.unwrap_or(0),
        rx: (paths.received(link), paths.sum(link, |m| m.rx_bytes.get())),
        tx: (paths.sum(link, |m| m.tx_datagrams.get()), paths.sum(link, |m| m.tx_bytes.get())),
        copies: paths.sum(link, |m| m.copies.get()),
        resent: paths.sum(link, |m| m.resent.get()),
        transitions: history.iter().map(|t| (ago(t.at), *t)).collect(),
    })
}
