//! The life of a session: pending, current, retired, gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{HEARTBEAT_INTERVAL, SESSION_SILENCE_LIMIT, SILENCE_LIMIT, Vtep};
use crate::crypto::aead::Suite;
use crate::crypto::key::EpochSecret;
use crate::crypto::seal::KeyLimits;
use crate::crypto::session::{Session, SessionFacts};
use crate::event::{DownReason, Event};
use crate::handshake::Agreement;
use crate::handshake::features::Features;
use crate::id::PeerIndex;
use crate::link::liveness::Cause;
use crate::peer::{Established, PENDING_LIFE, RETIRED_LIFE, RemoteBindings};
use crate::rng;
use crate::timer::Timer;
use crate::wire::control::{Bindings, Message};
use crate::wire::header::Slot;

/// Slots that are used once each before any is used again.
const MIN_SLOTS: usize = 256;
/// A replaced session that is still used is kept at most this long.
const RETIRED_LIMIT: Duration = Duration::from_secs(60);

impl Vtep {
    /// A free slot for a session to be.
    pub(super) fn reserve_slot(&mut self) -> Option<Slot> {
        let count = self.sessions.len();
        let is_free = |at: &usize| {
            self.sessions.get(*at).is_some_and(Option::is_none)
                && self.reserved.get(*at) == Some(&false)
        };
        // A slot is used again as late as can be: what a peer still sends in a session that is
        // over must not be tried with the keys of another.
        let free = if count < MIN_SLOTS {
            count
        } else {
            let in_turn = (0..count).map(|step| (self.next_slot + step) % count);
            in_turn.clone().find(is_free).unwrap_or(count)
        };
        self.next_slot = free + 1;
        let slot = u32::try_from(free).ok().filter(|slot| *slot < Slot::COUNT)?;
        if free == self.sessions.len() {
            self.sessions.push(None);
            self.reserved.push(false);
        }
        if let Some(reserved) = self.reserved.get_mut(free) {
            *reserved = true;
        }
        Some(Slot(slot))
    }

    pub(super) fn release_slot(&mut self, slot: Slot) {
        if let Some(reserved) = self.reserved.get_mut(slot.0 as usize) {
            *reserved = false;
        }
        if let Some(session) = self.sessions.get_mut(slot.0 as usize)
            && session.take().is_some()
        {
            self.stale = true;
        }
    }

    /// Makes a session at a reserved slot, ready to open what comes.
    pub(super) fn make_session(
        &mut self,
        peer: PeerIndex,
        (local_slot, remote_slot): (Slot, Slot),
        (suite, features, boot): (Suite, Features, u64),
        agreement: &Agreement,
        initiator: bool,
    ) -> Arc<Session> {
        let first = |split| EpochSecret::first(split, &agreement.transcript_hash, suite);
        let out = first(&agreement.initiator_to_responder);
        let back = first(&agreement.responder_to_initiator);
        let (tx, rx) = if initiator { (out, back) } else { (back, out) };
        let limits = self.config.limits.key.at_most(KeyLimits::of(suite));
        let serial = self.next_serial;
        self.next_serial += 1;
        let facts =
            SessionFacts { serial, peer, local_slot, remote_slot, suite, features, boot, limits };
        let session = Arc::new(Session::new(facts, tx, rx));
        if let Some(place) = self.sessions.get_mut(local_slot.0 as usize) {
            *place = Some(Arc::clone(&session));
        }
        self.stale = true;
        session
    }

    /// Sends by `established` from now on; the session before is retired.
    pub(super) fn install(
        &mut self,
        now: Instant,
        index: PeerIndex,
        established: Established,
        bindings: Bindings,
    ) {
        // What is still under way for the same purpose is not needed any more.
        self.cancel_outgoing(index);
        let rekey_in = rng::jitter(&mut *self.rng, self.config.limits.rehandshake, 10);
        let rotate_in = rng::jitter(&mut *self.rng, self.config.limits.epoch_life, 10);
        let Some(peer) = self.peer_mut(index) else { return };
        let boot = established.boot;
        let restarted = peer.current.as_ref().is_none_or(|current| current.boot != boot);
        if let Some(old) = peer.current.replace(established) {
            peer.retired.push((old.session, now));
        }
        let conflict = peer.note_boot(boot);
        let from = peer.paths.list.iter().find_map(|path| path.remote);
        if restarted {
            // Another process: its revisions begin anew.
            peer.remote_bindings = RemoteBindings::default();
        }
        peer.control_lane = None;
        peer.handshakes += 1;
        peer.attempts = 0;
        peer.timers.stop(Timer::Attempt);
        peer.timers.stop(Timer::Wipe);
        peer.timers.set(Timer::Rekey, now + rekey_in);
        peer.timers.set(Timer::Rotate, now + rotate_in);
        peer.timers.set(Timer::Silence, now + SILENCE_LIMIT);
        peer.timers.set(Timer::Forget, now + RETIRED_LIFE);
        if restarted {
            // And so do its rounds.
            self.reset_paths(now, index, Cause::SessionEnded);
        }
        self.take_bindings(now, index, bindings);
        self.stale = true;
        if let (true, Some(from), Some(peer)) = (conflict, from, self.peer(index)) {
            let node = peer.node();
            self.events.push_back(Event::NodeIdConflict { node, from });
        }
        self.announce_bindings(now, index);
        self.beat(now, index);
    }

    /// The peer sent something in a session: it has the keys.
    pub(super) fn handle_proven(&mut self, now: Instant, slot: Slot, serial: u64) {
        let Some(session) = self.session(slot, serial) else { return };
        let index = session.facts().peer;
        let me = self.config.node;
        let Some(peer) = self.peer_mut(index) else { return };
        if let Some(at) = peer.pending.iter().position(|p| is(&p.established.session, serial)) {
            let pending = peer.pending.remove(at);
            // Two handshakes of the same two processes crossed, this one answered before the own
            // one was: both sides keep the one that the lower node id began (rule G6).
            let answered = &pending.established;
            let keep = peer.current.as_ref().is_some_and(|current| {
                current.initiated
                    && current.boot == answered.boot
                    && me < peer.config.node
                    && answered.since <= current.since
            });
            if keep {
                peer.retired.push((pending.established.session, now));
                peer.timers.set_earliest(Timer::Forget, now + RETIRED_LIFE);
                return;
            }
            let rekeyed = peer.up;
            self.install(now, index, pending.established, pending.bindings);
            self.note_alive(index, rekeyed);
        } else if peer.current.as_ref().is_some_and(|current| is(&current.session, serial)) {
            let rekeyed = peer.up;
            self.note_alive(index, rekeyed);
            self.beat(now, index);
        }
    }

    /// Something authentic came in the current session.
    pub(super) fn note_alive(&mut self, index: PeerIndex, rekeyed: bool) {
        let Some(peer) = self.peer_mut(index) else { return };
        let Some(current) = &peer.current else { return };
        let (node, cipher) = (peer.config.node, current.session.facts().suite.name());
        if !peer.up {
            peer.up = true;
            peer.down_reason = None;
            self.events.push_back(Event::PeerUp { node, cipher });
            self.publish_reach(index);
        } else if rekeyed {
            self.events.push_back(Event::Rekeyed { node });
        }
    }

    pub(super) fn check_silence(&mut self, now: Instant, index: PeerIndex) {
        let now_ms = self.clock.ms(now);
        let Some(peer) = self.peer_mut(index) else { return };
        let Some(current) = &peer.current else { return };
        let since_ms = now.saturating_duration_since(current.since).as_millis();
        let silence =
            |last_ms: u64| u128::from(now_ms.saturating_sub(last_ms)).min(since_ms.max(1));
        let silent = silence(peer.last_opened_ms());
        // The peer may be heard in a retired session only: each side sends in another one. That
        // works for a while, and a new handshake mends it meanwhile.
        let apart = silence(current.session.last_opened_ms());
        peer.timers.set(Timer::Silence, now + HEARTBEAT_INTERVAL);
        if silent >= SESSION_SILENCE_LIMIT.as_millis() {
            self.drop_sessions(now, index, DownReason::Silent);
            self.start_handshake(now, index);
        } else if apart >= SILENCE_LIMIT.as_millis()
            && self.peer(index).is_some_and(|peer| peer.outgoing.is_none())
        {
            self.start_handshake(now, index);
        }
    }

    pub(super) fn mark_down(&mut self, index: PeerIndex, reason: DownReason) {
        let Some(peer) = self.peer_mut(index) else { return };
        if std::mem::take(&mut peer.up) {
            peer.down_reason = Some(reason);
            let node = peer.node();
            self.events.push_back(Event::PeerDown { node, reason });
            self.publish_reach(index);
        }
    }

    /// Programs at channels are told soon, also where the worker has nothing else to do.
    fn publish_reach(&mut self, index: PeerIndex) {
        self.stale_peers.insert(index);
        self.wants_wake = true;
    }

    /// Ends everything with a peer: nothing is sealed or opened with it until a new handshake.
    pub(super) fn drop_sessions(&mut self, now: Instant, index: PeerIndex, reason: DownReason) {
        self.mark_down(index, reason);
        self.reset_paths(now, index, Cause::SessionEnded);
        self.cancel_outgoing(index);
        let Some(peer) = self.peer_mut(index) else { return };
        peer.down_reason = Some(reason);
        peer.control_lane = None;
        let sessions: Vec<_> = peer
            .current
            .take()
            .map(|current| current.session)
            .into_iter()
            .chain(peer.retired.drain(..).map(|(session, _)| session))
            .chain(peer.pending.drain(..).map(|pending| pending.established.session))
            .collect();
        for timer in [
            Timer::Heartbeat,
            Timer::Watch,
            Timer::Silence,
            Timer::Rekey,
            Timer::Rotate,
            Timer::Wipe,
        ] {
            peer.timers.stop(timer);
        }
        for session in sessions {
            self.release_slot(session.facts().local_slot);
        }
        self.stale = true;
    }

    /// Forgets answered initiations that nobody confirmed, and retired sessions out of use.
    pub(super) fn forget_expired(&mut self, now: Instant, index: PeerIndex) {
        let now_ms = self.clock.ms(now);
        let mut gone = Vec::new();
        let Some(peer) = self.peer_mut(index) else { return };
        let proven = peer.current.as_ref().is_some_and(|current| current.session.is_proven());
        peer.pending.retain(|pending| {
            let keep = now.saturating_duration_since(pending.established.since) < PENDING_LIFE;
            if !keep {
                gone.push(pending.established.session.facts().local_slot);
            }
            keep
        });
        peer.retired.retain(|(session, since)| {
            let age = now.saturating_duration_since(*since);
            let idle = now_ms.saturating_sub(session.last_opened_ms());
            let used = !proven || u128::from(idle) < RETIRED_LIFE.as_millis();
            let keep = age < RETIRED_LIFE || used && age < RETIRED_LIMIT;
            if !keep {
                gone.push(session.facts().local_slot);
            }
            keep
        });
        if !peer.pending.is_empty() || !peer.retired.is_empty() {
            peer.timers.set(Timer::Forget, now + HEARTBEAT_INTERVAL);
        }
        for slot in gone {
            self.release_slot(slot);
        }
    }

    /// Something of a new epoch was opened: says so, and wipes the epoch before last a little later.
    pub(super) fn handle_epoch_opened(
        &mut self,
        now: Instant,
        slot: Slot,
        serial: u64,
        epoch: u32,
    ) {
        let Some(session) = self.session(slot, serial) else { return };
        let index = session.facts().peer;
        let Some(peer) = self.peer_mut(index) else { return };
        if peer.current.as_ref().is_some_and(|current| is(&current.session, serial)) {
            peer.wipe_before = epoch;
            peer.timers.set(Timer::Wipe, now + RETIRED_LIFE);
            // What is older than the previous epoch opens nothing any more, however fast they go.
            if let (Some(current), Some(previous)) = (&peer.current, epoch.checked_sub(1)) {
                current.session.wipe_rx_before(previous);
            }
            self.send_control(index, &[Message::EpochOpened { epoch }]);
        }
    }

    pub(super) fn wipe_epoch(&mut self, index: PeerIndex) {
        let Some(peer) = self.peer(index) else { return };
        if let Some(current) = &peer.current {
            current.session.wipe_rx_before(peer.wipe_before);
        }
    }

    /// The epoch in force is old: the next one begins, whatever it sealed.
    pub(super) fn rotate_epoch(&mut self, now: Instant, index: PeerIndex) {
        let rotate_in = rng::jitter(&mut *self.rng, self.config.limits.epoch_life, 10);
        let Some(peer) = self.peer_mut(index) else { return };
        let Some(current) = &peer.current else { return };
        let rotated = current.session.rotate_tx(current.session.tx_epoch());
        let again = if rotated { rotate_in } else { HEARTBEAT_INTERVAL };
        peer.timers.set(Timer::Rotate, now + again);
        if rotated {
            // A quiet peer learns of the epoch as well, and confirms it.
            self.send_round(now, index);
        }
    }
}

fn is(session: &Session, serial: u64) -> bool {
    session.facts().serial == serial
}
