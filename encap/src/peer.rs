//! One other node: its sessions, the handshake in progress, what it told us.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crypto::key::KEY_ID_LEN;
use crate::crypto::seal::TxLane;
use crate::crypto::session::Session;
use crate::event::DownReason;
use crate::handshake::psk::Initiator;
use crate::id::PeerIndex;
use crate::id::{NodeId, Vni};
use crate::link::id::LinkIndex;
use crate::paths::Paths;
use crate::stats::Traffic;
use crate::timer::TimerTable;
use crate::vtep::config::PeerConfig;
use crate::wire::control::{Binding, Bindings};
use crate::wire::header::{Handle, Slot};
use crate::wire::long::LongHeader;

/// Most answered initiations of one peer that wait for their confirmation.
pub(crate) const MAX_PENDING: usize = 4;
/// An answered initiation this young is not pushed out by another.
pub(crate) const PENDING_MIN_AGE: Duration = Duration::from_secs(1);
/// How long an answered initiation waits for its confirmation.
pub(crate) const PENDING_LIFE: Duration = Duration::from_secs(10);
/// How long a replaced session still opens stragglers.
pub(crate) const RETIRED_LIFE: Duration = Duration::from_secs(3);
/// Initiations without an answer after which nobody waits for one any more: about 2 s.
pub(crate) const HOPEFUL_ATTEMPTS: u32 = 3;
/// Boot numbers that are remembered, to tell a restart from two nodes with one id.
const BOOTS: usize = 4;

/// A session and what belongs to it alone.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) session: Arc<Session>,
    pub(crate) since: Instant,
    /// Under which cluster key it was agreed.
    pub(crate) key_id: [u8; KEY_ID_LEN],
    /// The handshake's token.
    pub(crate) token: u64,
    /// The peer process that it was agreed with.
    pub(crate) boot: u64,
    /// Whether this node began the handshake.
    pub(crate) initiated: bool,
}

/// An answered initiation that waits for its confirmation.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) established: Established,
    /// The answer, for an initiation that is sent again.
    pub(crate) response: Vec<u8>,
    /// The peer's networks as it listed them.
    pub(crate) bindings: Bindings,
}

/// An initiation that waits for its answer.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) noise: Initiator,
    pub(crate) header: LongHeader,
    pub(crate) message: Vec<u8>,
    pub(crate) key_id: [u8; KEY_ID_LEN],
    pub(crate) slot: Slot,
    pub(crate) started: Instant,
}

/// The peer's networks, collected from slices.
#[derive(Debug, Default)]
pub(crate) struct RemoteBindings {
    /// The complete list in force.
    pub(crate) entries: Vec<Binding>,
    /// Whether any list is complete.
    pub(crate) known: bool,
    revision: Option<u32>,
    collecting: Vec<Option<Vec<Binding>>>,
    collecting_revision: u32,
}

impl RemoteBindings {
    /// Takes a slice; says whether a list became complete (rule C4). An older revision than the
    /// one in force changes nothing.
    pub(crate) fn take(&mut self, slice: Bindings) -> bool {
        if self.revision.is_some_and(|revision| slice.revision <= revision) {
            return false;
        }
        let parts = usize::from(slice.parts);
        if self.collecting_revision != slice.revision || self.collecting.len() != parts {
            if self.collecting_revision > slice.revision && !self.collecting.is_empty() {
                return false;
            }
            self.collecting_revision = slice.revision;
            self.collecting = vec![None; parts];
        }
        if let Some(place) = self.collecting.get_mut(usize::from(slice.part)) {
            *place = Some(slice.entries);
        }
        if self.collecting.iter().any(Option::is_none) {
            return false;
        }
        self.entries =
            std::mem::take(&mut self.collecting).into_iter().flatten().flatten().collect();
        self.entries.truncate(usize::from(Handle::MAX));
        self.revision = Some(slice.revision);
        self.known = true;
        true
    }

    pub(crate) fn get(&self, vni: Vni) -> Option<&Binding> {
        self.entries.iter().find(|entry| entry.vni == vni)
    }
}

/// Our networks as this peer is told them.
#[derive(Debug, Default)]
pub(crate) struct LocalBindings {
    pub(crate) parts: Vec<Bindings>,
    /// By part: whether the peer has it.
    pub(crate) received: Vec<bool>,
    pub(crate) backoff: u32,
}

/// Another node.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    pub(crate) index: PeerIndex,
    pub(crate) timers: TimerTable,
    pub(crate) current: Option<Established>,
    pub(crate) retired: Vec<(Arc<Session>, Instant)>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) outgoing: Option<Outgoing>,
    /// Initiations sent since the last success: sets the next delay.
    pub(crate) attempts: u32,
    /// Stamp of the newest initiation taken.
    pub(crate) last_stamp: u64,
    boots: Vec<u64>,
    pub(crate) remote_bindings: RemoteBindings,
    pub(crate) local_bindings: LocalBindings,
    pub(crate) up: bool,
    pub(crate) down_reason: Option<DownReason>,
    pub(crate) paths: Paths,
    pub(crate) control_lane: Option<TxLane>,
    /// Epoch below which receiving contexts are wiped when the timer fires.
    pub(crate) wipe_before: u32,
    pub(crate) handshakes: u64,
    pub(crate) traffic: Arc<[Traffic]>,
}

impl Peer {
    pub(crate) fn new(now: Instant, config: PeerConfig, index: PeerIndex, workers: usize) -> Self {
        Self {
            paths: Paths::new(now, &config, workers),
            config,
            index,
            timers: TimerTable::default(),
            current: None,
            retired: Vec::new(),
            pending: Vec::new(),
            outgoing: None,
            attempts: 0,
            last_stamp: 0,
            boots: Vec::new(),
            remote_bindings: RemoteBindings::default(),
            local_bindings: LocalBindings::default(),
            up: false,
            down_reason: Some(DownReason::NoAnswer),
            control_lane: None,
            wipe_before: 0,
            handshakes: 0,
            traffic: (0..=workers).map(|_| Traffic::default()).collect(),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.config.node
    }

    /// Whether a first session is probably a moment away.
    pub(crate) fn is_connecting(&self) -> bool {
        let under_way = self.outgoing.is_some() || !self.pending.is_empty();
        self.current.is_none() && under_way && self.attempts <= HOPEFUL_ATTEMPTS
    }

    /// Links that an initiation goes by: all while there is no session, for none is known to work;
    /// then one, and another with each repetition.
    pub(crate) fn initiation_links(&self) -> Vec<LinkIndex> {
        let all = self.paths.addresses();
        let best = &self.paths.order.best;
        if !self.up || best.is_empty() {
            return all;
        }
        let turn = self.attempts as usize % best.len();
        best.get(turn).copied().into_iter().collect()
    }

    /// When anything authentic came last, in ms of the node's clock.
    pub(crate) fn last_opened_ms(&self) -> u64 {
        let current = self.current.as_ref().map(|current| &current.session);
        let retired = self.retired.iter().map(|(session, _)| session);
        current.into_iter().chain(retired).map(|s| s.last_opened_ms()).max().unwrap_or(0)
    }

    /// Notes which process of the peer is talking; true when one that was replaced is back, which
    /// a restart cannot do: two nodes run with one id.
    pub(crate) fn note_boot(&mut self, boot: u64) -> bool {
        if self.boots.last() == Some(&boot) {
            return false;
        }
        let conflict = self.boots.contains(&boot);
        self.boots.retain(|known| *known != boot);
        if self.boots.len() >= BOOTS {
            self.boots.remove(0);
        }
        self.boots.push(boot);
        conflict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(vni: u32) -> Binding {
        Binding {
            vni: Vni::new(vni).unwrap(),
            handle: Handle::new(1).unwrap(),
            max_frame_len: 1446,
        }
    }

    fn slice(revision: u32, part: u8, parts: u8, vni: u32) -> Bindings {
        Bindings { revision, part, parts, entries: vec![binding(vni)] }
    }

    #[test]
    fn bindings_replace_each_other_only_when_whole_and_newer() {
        let mut remote = RemoteBindings::default();
        assert!(!remote.take(slice(5, 1, 2, 11)));
        assert!(!remote.known);
        assert!(remote.take(slice(5, 0, 2, 10)));
        assert_eq!(remote.entries, [binding(10), binding(11)]);
        assert!(!remote.take(slice(4, 0, 1, 99)), "older");
        assert!(!remote.take(slice(5, 0, 2, 99)), "repeated");
        assert!(!remote.take(slice(6, 0, 2, 20)));
        assert!(remote.take(slice(7, 0, 1, 30)), "overtaken by a newer one");
        assert!(!remote.take(slice(6, 1, 2, 21)));
        assert_eq!(remote.entries, [binding(30)]);
        assert!(remote.get(Vni::new(30).unwrap()).is_some());
    }
}
