//! What this node and one other have together, for as long as both processes live.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::conduit::{Conduit, ConduitId};
use super::path::{Path, Sent};
use super::{Congestion, PeerView};
use crate::channel::Carried;
use crate::channel::outgoing::Notice;
use crate::channel::recovery::Outcome;
use crate::channel::spans::Spans;
use crate::id::NodeId;
use crate::link::id::{LinkIndex, MAX_LINKS};

/// Conduits that a peer may have open with this node, streams mostly: what is kept for an idle one
/// is about a kilobyte.
pub(super) const MAX_CONDUITS: usize = 4096;
/// Answers that wait for their acknowledgement: with more, what a peer opens is not taken.
const MAX_REPLIES: usize = 1024;
/// Boots of the peer that are over, as tables may still name them for a moment.
const OLD_BOOTS: usize = 64;

/// What a frame was, for when its packet was acknowledged or lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Something of a channel.
    Carried(Carried),
    /// That it was opened.
    Open,
    /// That it was accepted.
    Accept,
    /// A refusal or a reset.
    Reply,
    /// Nothing but the wish for an acknowledgement.
    Ping,
}

/// A frame in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: ConduitId,
    pub(super) what: What,
}

/// What is said of a conduit that this node does not have (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// It was never had.
    Refuse(u64),
    /// It was given up.
    Reset(u64),
}

/// What this node and one other have together.
#[derive(Debug)]
pub(super) struct Association {
    pub(super) node: NodeId,
    /// How the peer can be reached; none while it cannot.
    pub(super) view: Option<PeerView>,
    /// The peer's process.
    pub(super) boot: Option<u64>,
    old_boots: VecDeque<u64>,
    pub(super) paths: [Option<Box<Path>>; MAX_LINKS],
    failures: [u32; MAX_LINKS],
    pub(super) conduits: BTreeMap<ConduitId, Conduit>,
    /// Conduits that may have something to send, in the order of their turns.
    pub(super) round: VecDeque<ConduitId>,
    pub(super) replies: BTreeMap<ConduitId, (Reply, Notice)>,
    pub(super) next_number: u32,
    /// Numbers that the peer has used.
    pub(super) seen: Spans,
    /// Packets to send whatever the windows say.
    pub(super) probes: u8,
    /// The link whose silence the probes are for.
    pub(super) silent: Option<LinkIndex>,
    /// Conduits with unreliable messages to send.
    pub(super) datagrams: Vec<ConduitId>,
    /// When a message's time is over, or a conduit is to be asked for again.
    pub(super) check_at: Option<Instant>,
    outcome: Outcome<Sent>,
}

impl Association {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            view: None,
            boot: None,
            old_boots: VecDeque::new(),
            paths: Default::default(),
            failures: [0; MAX_LINKS],
            conduits: BTreeMap::new(),
            round: VecDeque::new(),
            replies: BTreeMap::new(),
            next_number: 0,
            seen: Spans::new(),
            probes: 0,
            silent: None,
            datagrams: Vec::new(),
            check_at: None,
            outcome: Outcome::default(),
        }
    }

    /// Whether packets may leave for the peer.
    pub(super) fn is_reachable(&self) -> bool {
        let session = self.view.as_ref().and_then(|view| view.session.as_ref());
        session.is_some_and(|session| !session.links.is_empty())
    }

    /// Whether the peer has opened as much as it may.
    pub(super) fn is_crowded(&self) -> bool {
        self.conduits.len() >= MAX_CONDUITS
    }

    /// A number for a conduit that this node opens; none when all are used up.
    pub(super) fn take_number(&mut self) -> Option<u32> {
        let number = self.next_number;
        self.next_number = number.checked_add(1)?;
        Some(number)
    }

    /// Whether there is room for an answer to something new.
    pub(super) fn may_reply(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// The peer's process is this one: gives the conduits of the one before, if it is another.
    pub(super) fn meet(&mut self, boot: u64) -> Option<Vec<Conduit>> {
        if self.boot == Some(boot) {
            return None;
        }
        let before = self.boot.replace(boot)?;
        if self.old_boots.len() >= OLD_BOOTS {
            self.old_boots.pop_front();
        }
        self.old_boots.push_back(before);
        self.paths = Default::default();
        self.round.clear();
        self.replies.clear();
        (self.next_number, self.seen) = (0, Spans::new());
        (self.probes, self.silent, self.check_at) = (0, None, None);
        self.datagrams.clear();
        Some(std::mem::take(&mut self.conduits).into_values().collect())
    }

    /// Whether this was a process of the peer before the present one.
    pub(super) fn is_over(&self, boot: u64) -> bool {
        self.boot != Some(boot) && self.old_boots.contains(&boot)
    }

    /// The way to the peer, if packets may leave for the process that it was met as.
    pub(super) fn way(&self) -> Option<&PeerView> {
        self.view.as_ref().filter(|view| {
            view.session.as_ref().is_some_and(|session| Some(session.boot) == self.boot)
        })
    }

    /// How the peer can be reached changed: what was on its way by links that failed is lost.
    pub(super) fn set_view(&mut self, now: Instant, view: PeerView) {
        if let Some(session) = &view.session {
            for (link, failures) in LinkIndex::all(MAX_LINKS).zip(session.failures) {
                let Some(seen) = self.failures.get_mut(link.at()) else { continue };
                let failed = std::mem::replace(seen, failures) != failures;
                if failed {
                    self.abandon(link);
                }
            }
            for way in &session.links {
                let known = self.view.as_ref().is_some_and(|view| view.way(way.link).is_some());
                if let Some(Some(path)) = self.paths.get_mut(way.link.at()) {
                    path.set_room(way.room);
                    way.seed(now, &mut path.recovery);
                    if !known {
                        path.trust();
                    }
                }
            }
        }
        self.view = Some(view);
    }

    /// What the peer's features are to tell of conduits that were made without a session, before
    /// anything of them leaves.
    pub(super) fn decide_encoding(&mut self) {
        let session = self.way().and_then(|view| view.session.as_ref());
        let Some(takes) = session.map(|session| session.compression) else { return };
        for conduit in self.conduits.values_mut() {
            conduit.decide_encoding(takes);
        }
    }

    /// What is on its way by this link leaves again by another.
    fn abandon(&mut self, link: LinkIndex) {
        let mut outcome = std::mem::take(&mut self.outcome);
        if let Some(Some(path)) = self.paths.get_mut(link.at()) {
            path.recovery.abandon(&mut outcome);
            self.settle(&outcome);
        }
        self.outcome = outcome;
    }

    /// The path of a link, made when it is first wanted.
    pub(super) fn path(
        &mut self,
        now: Instant,
        link: LinkIndex,
        congestion: Congestion,
    ) -> Option<&mut Path> {
        let way = self.view.as_ref().and_then(|view| view.way(link)).copied();
        let place = self.paths.get_mut(link.at())?;
        if place.is_none() {
            let room = way.map_or(super::LEAST_ROOM, |way| way.room);
            let mut path = Path::new(now, room, congestion);
            if let Some(way) = way {
                way.seed(now, &mut path.recovery);
            }
            *place = Some(Box::new(path));
        }
        place.as_deref_mut()
    }

    /// The link that packets leave by now: the best one, unless it is silent and another is not.
    pub(super) fn best_link(&self) -> Option<LinkIndex> {
        let links = &self.way()?.session.as_ref()?.links;
        let trusted = links.iter().find(|way| !self.is_suspect(way.link));
        trusted.or(links.first()).map(|way| way.link)
    }

    fn is_suspect(&self, link: LinkIndex) -> bool {
        let path = self.paths.get(link.at()).and_then(Option::as_ref);
        path.is_some_and(|path| path.is_suspect())
    }

    /// Whether packets may leave by another link than this one, which is not silent.
    fn has_better_than(&self, link: LinkIndex) -> bool {
        let session = self.way().and_then(|view| view.session.as_ref());
        let mut links = session.into_iter().flat_map(|session| &session.links);
        links.any(|way| way.link != link && !self.is_suspect(way.link))
    }

    /// Whether packets may leave by this link.
    pub(super) fn may_use(&self, link: LinkIndex) -> bool {
        self.way().is_some_and(|view| view.way(link).is_some())
    }

    /// A link for what is to probe because `silent` is: another one, if there is any.
    pub(super) fn probe_link(&self, silent: LinkIndex) -> Option<LinkIndex> {
        let links = &self.way()?.session.as_ref()?.links;
        let other = links.iter().find(|way| way.link != silent);
        other.or(links.first()).map(|way| way.link)
    }

    /// Round trip of the link that packets leave by.
    pub(super) fn rtt(&self) -> Duration {
        let path = self.best_link().and_then(|link| self.paths.get(link.at())?.as_ref());
        path.map_or(crate::channel::recovery::rtt::INITIAL, |path| path.rtt())
    }

    pub(super) fn insert(&mut self, conduit: Conduit) {
        let id = conduit.id;
        self.conduits.insert(id, conduit);
        self.activate(id);
    }

    /// Something is to be looked after then.
    pub(super) fn look_at(&mut self, at: Option<Instant>) {
        self.check_at = [self.check_at, at].into_iter().flatten().min();
    }

    /// Enters a conduit into the round of those that may have something to send.
    pub(super) fn activate(&mut self, id: ConduitId) {
        if let Some(conduit) = self.conduits.get_mut(&id)
            && !std::mem::replace(&mut conduit.active, true)
        {
            self.round.push_back(id);
        }
    }

    /// Says this of a conduit, until the peer knows.
    pub(super) fn reply(&mut self, id: ConduitId, reply: Reply) {
        self.replies.insert(id, (reply, Notice::Due));
    }

    /// What became of packets is told to those whose frames they carried.
    fn settle(&mut self, outcome: &Outcome<Sent>) {
        for packet in &outcome.acked {
            if let Some((link, serial)) = packet.item.ack
                && let Some(Some(path)) = self.paths.get_mut(usize::from(link))
            {
                path.acks.on_ack_heard(serial);
            }
            for item in packet.item.iter() {
                if item.what == What::Reply {
                    self.replies.remove(&item.id);
                } else if let Some(conduit) = self.conduits.get_mut(&item.id) {
                    conduit.on_acked(&item.what);
                }
            }
        }
        for packet in &outcome.lost {
            packet.item.iter().for_each(|item| self.lose(item));
        }
    }

    pub(super) fn lose(&mut self, item: &Item) {
        if item.what == What::Reply {
            if let Some((_, notice)) = self.replies.get_mut(&item.id) {
                notice.on_lost();
            }
        } else if let Some(conduit) = self.conduits.get_mut(&item.id) {
            conduit.on_lost(&item.what);
            self.activate(item.id);
        }
    }

    /// An ACK of what left by a link. Gives the conduits of which something arrived.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        link: usize,
        ack: &crate::channel::recovery::Ack<'_>,
        heard: &mut Vec<ConduitId>,
    ) {
        let Some(Some(path)) = self.paths.get_mut(link) else { return };
        let mut outcome = std::mem::take(&mut self.outcome);
        if path.recovery.on_ack(now, ack, &mut outcome).is_ok() {
            path.on_outcome(now, &outcome, true);
            if !outcome.acked.is_empty() {
                path.trust();
            }
            self.settle(&outcome);
            let items = outcome.acked.iter().flat_map(|packet| packet.item.iter());
            heard.extend(items.map(|item| item.id));
        }
        self.outcome = outcome;
    }

    /// Looks after the timers of the paths.
    pub(super) fn on_timers(&mut self, now: Instant) {
        for link in LinkIndex::all(MAX_LINKS) {
            let Some(Some(path)) = self.paths.get_mut(link.at()) else { continue };
            if path.recovery.timeout().is_none_or(|due| due > now) {
                continue;
            }
            let mut outcome = std::mem::take(&mut self.outcome);
            path.recovery.on_timeout(now, &mut outcome);
            path.on_outcome(now, &outcome, false);
            self.settle(&outcome);
            let probes = outcome.probes;
            self.outcome = outcome;
            if probes > 0 {
                self.on_silence(link, probes);
            }
        }
    }

    /// Nothing is heard of what left by this link. The first time what is longest on its way leaves
    /// once more, by another link if there is one. The second time all of it does: nothing that
    /// comes back by the other link would tell what became of it.
    fn on_silence(&mut self, link: LinkIndex, probes: u8) {
        let better = self.has_better_than(link);
        let Some(Some(path)) = self.paths.get_mut(link.at()) else { return };
        if better && path.distrusted {
            path.ping = true;
        } else if better && path.is_suspect() {
            path.distrust();
            self.abandon(link);
        } else {
            (self.probes, self.silent) = (probes, Some(link));
            self.repeat(link);
        }
    }

    /// What a probe repeats: what is longest on its way by the silent link.
    fn repeat(&mut self, link: LinkIndex) {
        let Some(Some(path)) = self.paths.get(link.at()) else { return };
        let oldest = path.recovery.unacked().take(self.probes.into());
        let items: Vec<Item> = oldest.flat_map(|(_, sent)| sent.iter().copied()).collect();
        items.iter().for_each(|item| self.lose(item));
    }
}
