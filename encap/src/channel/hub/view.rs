//! What the hub is told of peers.

use std::time::{Duration, Instant};

use crate::channel::recovery::Recovery;

use crate::id::{NodeId, PeerIndex};
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};

/// Least room in bytes for channel packets that a link is taken to have while nothing is known of
/// it: that of the smallest path that there may be.
pub const LEAST_ROOM: usize = 1_200;

/// A configured peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Its place in the tables.
    pub index: PeerIndex,
    /// Its name on the wire.
    pub node: NodeId,
    /// The session that packets leave in; none while there is none, or while the peer takes no
    /// channels.
    pub session: Option<SessionView>,
}

impl PeerView {
    pub(super) fn way(&self, link: LinkIndex) -> Option<&LinkView> {
        self.session.as_ref()?.links.iter().find(|way| way.link == link)
    }
}

/// A session with a peer, and the ways there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    /// The number that the peer's process drew when it was started.
    pub boot: u64,
    /// Links that may carry packets, best first.
    pub links: Vec<LinkView>,
    /// The links that unreliable messages leave by, each a copy, by the peer's policy.
    pub chosen: LinkSet,
    /// All links that are alive.
    pub live: LinkSet,
    /// Compressed messages may be sent.
    pub compression: bool,
    /// How often each link failed.
    pub failures: [u32; MAX_LINKS],
}

impl SessionView {
    /// Bytes of payload for which a datagram has room on all of these links.
    pub(super) fn room(&self, links: LinkSet) -> usize {
        let ways = self.links.iter().filter(|way| links.contains(way.link));
        ways.map(|way| way.room).min().unwrap_or(LEAST_ROOM)
    }
}

/// A link that may carry packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkView {
    /// Which.
    pub link: LinkIndex,
    /// Bytes of payload that a datagram has room for.
    pub room: usize,
    /// Round trip by heartbeats; zero if it is not known.
    pub rtt: Duration,
    /// Its mean deviation.
    pub rtt_var: Duration,
}

impl LinkView {
    pub(super) fn seed<T>(&self, now: Instant, recovery: &mut Recovery<T>) {
        if !self.rtt.is_zero() {
            recovery.seed(now, self.rtt, self.rtt_var);
        }
    }
}
