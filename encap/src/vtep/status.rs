//! What people ask a node about itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CommandError, Vtep};
use crate::event::DownReason;
use crate::forward::fdb::{FdbRow, Place};
use crate::id::{NodeId, Vni};
use crate::peer::Peer;
use crate::stats::Traffic;
use crate::tables::LinkAddress;

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
    /// Where datagrams go.
    pub remote: Option<SocketAddr>,
    /// All links.
    pub links: Vec<LinkAddress>,
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
            remote: peer.config.links.first().map(|link| link.remote),
            links: peer.config.links.clone(),
            session_age: peer
                .current
                .as_ref()
                .map(|current| now.saturating_duration_since(current.since)),
            epochs: session.map(|session| (session.tx_epoch(), session.rx_epoch())),
            rtt: peer.heartbeats.rtt,
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
                    Place::Local => None,
                    Place::Peer(index) => self.peer(index).map(Peer::node),
                };
                (row, node)
            })
            .collect())
    }
}
