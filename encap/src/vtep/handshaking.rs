//! Handshakes: our own initiations, and answers to the peers'.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Transmit, Vtep};
use crate::crypto::aead::Suite;
use crate::crypto::key::ClusterKey;
use crate::event::{DownReason, Event};
use crate::forward::marks::CONTROL_MARK;
use crate::handshake::cookie::Admission;
use crate::handshake::features::Features;
use crate::handshake::hello::{Hello, Status, Welcome};
use crate::handshake::psk::{Initiator, NOISE_OVERHEAD, Responder};
use crate::id::PeerIndex;
use crate::link::id::LinkIndex;
use crate::peer::{Established, MAX_PENDING, Outgoing, PENDING_LIFE, PENDING_MIN_AGE, Pending};
use crate::rng;
use crate::stats::DropReason;
use crate::tables::{Arrival, canonical};
use crate::timer::Timer;
use crate::wire::buf::UplinkId;
use crate::wire::control::Bindings;
use crate::wire::header::Slot;
use crate::wire::long::{
    COOKIE_LEN, INITIATION_LEN, LONG_HEADER_LEN, LongError, LongHeader, Type, VERSION,
};

/// Delay before an initiation is sent again, the first time; doubles.
const RETRY: Duration = Duration::from_millis(250);
/// The largest delay.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// An initiation is repeated byte for byte this long, then made anew.
const OUTGOING_LIFE: Duration = Duration::from_secs(8);
/// Room for the payload of an initiation.
const HELLO_LEN: usize = INITIATION_LEN - LONG_HEADER_LEN - NOISE_OVERHEAD;

impl Vtep {
    /// Begins a handshake, instead of one that is under way.
    pub(super) fn start_handshake(&mut self, now: Instant, index: PeerIndex) {
        self.cancel_outgoing(index);
        // Whatever stands in the way now, it is tried again.
        self.schedule_late_attempt(now, index);
        let Some(key) = self.config.keys.first().cloned() else { return };
        let Some(peer) = self.peer(index) else { return };
        let (to, mut parts) = (peer.node(), self.bindings_for(peer));
        let bindings = if parts.is_empty() { return } else { parts.swap_remove(0) };
        let Some(slot) = self.reserve_slot() else { return };
        let hello = Hello {
            from: self.config.node,
            to,
            boot: self.boot,
            stamp: self.next_stamp(now),
            slot,
            suites: self.config.suites.clone(),
            bindings,
            features: self.config.features,
        };
        let header = LongHeader {
            kind: Type::Initiation,
            highest_version: VERSION,
            key_id: key.id(),
            token: rng::u64(&mut *self.rng),
            cookie: [0; COOKIE_LEN],
        };
        let started =
            Initiator::start(&key, &header.prologue(), &hello.write(HELLO_LEN), &mut *self.rng);
        let Ok((noise, message)) = started else {
            self.release_slot(slot);
            return;
        };
        self.by_token.insert(header.token, index);
        let Some(peer) = self.peer_mut(index) else { return };
        peer.timers.stop(Timer::Attempt);
        peer.timers.stop(Timer::Rekey);
        peer.outgoing =
            Some(Outgoing { noise, header, message, key_id: key.id(), slot, started: now });
        self.send_initiation(now, index);
    }

    /// A number above all before, in this process and, by the clock, in earlier ones.
    fn next_stamp(&mut self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.clock.0).as_micros();
        let clock = self.config.start_stamp.saturating_add(u64::try_from(elapsed).unwrap_or(0));
        self.last_stamp = clock.max(self.last_stamp.saturating_add(1));
        self.last_stamp
    }

    fn send_initiation(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else { return };
        let links = peer.initiation_links();
        let doubled = RETRY * (1 << peer.attempts.min(6));
        let hopeful = peer.is_connecting();
        peer.attempts = peer.attempts.saturating_add(1);
        // The workers are told when it begins and when it ends that frames wait.
        let told = peer.attempts > 1 && peer.is_connecting() == hopeful;
        let Some(outgoing) = &mut peer.outgoing else { return };
        let (header, key_id) = (outgoing.header, outgoing.key_id);
        let message = outgoing.message.clone();
        let delay = rng::jitter(&mut *self.rng, doubled.min(MAX_RETRY), 4);
        let Some(key) = self.config.keys.iter().find(|key| key.id() == key_id) else { return };
        let mut payload = header.write(key).to_vec();
        payload.extend(message);
        for link in links {
            self.transmit_on(index, link, payload.clone(), CONTROL_MARK);
        }
        self.stale |= !told;
        if let Some(peer) = self.peer_mut(index) {
            peer.timers.set(Timer::Retry, now + delay);
        }
    }

    pub(super) fn retry_handshake(&mut self, now: Instant, index: PeerIndex) {
        let Some(outgoing) = self.peer(index).and_then(|peer| peer.outgoing.as_ref()) else {
            return;
        };
        let first_key = self.config.keys.first().map(ClusterKey::id);
        let stale = now.saturating_duration_since(outgoing.started) >= OUTGOING_LIFE
            || first_key != Some(outgoing.key_id);
        if stale {
            self.start_handshake(now, index);
        } else {
            self.send_initiation(now, index);
        }
    }

    pub(super) fn cancel_outgoing(&mut self, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else { return };
        peer.timers.stop(Timer::Retry);
        if let Some(outgoing) = peer.outgoing.take() {
            self.by_token.remove(&outgoing.header.token);
            self.release_slot(outgoing.slot);
        }
    }

    /// Comes back for a handshake after the delay that the attempts so far ask for.
    pub(super) fn schedule_attempt(&mut self, now: Instant, index: PeerIndex) {
        let delay = rng::jitter(&mut *self.rng, Duration::from_secs(1), 4);
        if let Some(peer) = self.peer_mut(index) {
            peer.timers.set(Timer::Attempt, now + delay);
        }
    }

    /// Takes a handshake datagram.
    pub(super) fn handle_long(
        &mut self,
        now: Instant,
        uplink: UplinkId,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let header = LongHeader::read(datagram).map_err(|error| match error {
            LongError::Type => DropReason::LongTypeUnknown,
            LongError::Length => DropReason::LongInvalid,
            LongError::Version(..) => DropReason::LongVersionUnknown,
        })?;
        let key = self
            .config
            .keys
            .iter()
            .find(|key| key.id() == header.key_id)
            .cloned()
            .ok_or(DropReason::HandshakeKeyUnknown)?;
        if !LongHeader::authenticate(datagram, &key) {
            return Err(DropReason::HandshakeBadMac);
        }
        let message = datagram.get(LONG_HEADER_LEN..).unwrap_or_default();
        match header.kind {
            Type::Initiation => self.handle_initiation(now, (uplink, from), &header, &key, message),
            Type::Response => self.handle_response(now, (uplink, from), &header, message),
            Type::Cookie => self.handle_cookie(now, (uplink, from), &header),
        }
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        (uplink, from): (UplinkId, SocketAddr),
        header: &LongHeader,
        key: &ClusterKey,
        message: &[u8],
    ) -> Result<(), DropReason> {
        // A spoofed flood must not use up what the peers' own initiations need.
        if !self.may_be_a_source(uplink, from) && !self.strangers.take(now) {
            return Err(DropReason::HandshakeSourceUnknown);
        }
        let admission = self.guard.admit(now, from, &header.cookie, &mut *self.rng);
        if admission != Admission::Read {
            self.send_cookie((uplink, from), header, key, admission);
            return Err(DropReason::HandshakeRateLimited);
        }
        let (responder, payload) =
            Responder::read(key, &header.prologue(), message, &mut *self.rng)
                .map_err(|_| DropReason::HandshakeInvalid)?;
        let hello = Hello::read(&payload).map_err(|_| DropReason::HandshakeInvalid)?;
        let index = self.identify((uplink, from), &hello)?;
        if self.is_answered(index, header.token) {
            return Err(DropReason::HandshakeStale);
        }
        if self.answer_again(index, (uplink, from), header.token) {
            return Ok(());
        }
        let last_stamp = self.peer(index).map_or(0, |peer| peer.last_stamp);
        if hello.stamp <= last_stamp && !self.guard.proves_address(from, &header.cookie) {
            let admission = self.guard.challenge(now, from);
            self.send_cookie((uplink, from), header, key, admission);
            return Err(DropReason::HandshakeReplayed);
        }
        let Some(suite) = self.choose_suite(&hello.suites) else {
            self.refuse(index, (uplink, from), header, key, responder, &hello);
            return Err(DropReason::HandshakeNoSuite);
        };
        self.answer(now, index, (uplink, from), header, key, responder, hello, suite)?;
        self.give_way(now, index);
        Ok(())
    }

    /// Which peer an authentic initiation is from, if it is for us and from where it may be.
    fn identify(
        &mut self,
        (uplink, from): (UplinkId, SocketAddr),
        hello: &Hello,
    ) -> Result<PeerIndex, DropReason> {
        let node = hello.from;
        if node == self.config.node {
            if hello.boot == self.boot {
                return Err(DropReason::HandshakeReflected);
            }
            self.events.push_back(Event::NodeIdConflict { node, from });
            return Err(DropReason::HandshakeWrongNode);
        }
        if hello.to != self.config.node {
            return Err(DropReason::HandshakeWrongNode);
        }
        let index = *self.by_node.get(&node).ok_or(DropReason::HandshakeWrongNode)?;
        if self.peer(index).is_some_and(|peer| peer.paths.arrival(uplink, from).is_some()) {
            return Ok(index);
        }
        self.events.push_back(Event::SourceUnknown { node, from });
        Err(DropReason::HandshakeSourceUnknown)
    }

    /// Whether a peer may send from there: at a configured address, or by a dynamic link.
    fn may_be_a_source(&self, uplink: UplinkId, from: SocketAddr) -> bool {
        self.sources.contains(&canonical(from))
            || self.peers.iter().flatten().any(|peer| peer.paths.arrival(uplink, from).is_some())
    }

    /// Whether the session of this initiation is in force already.
    fn is_answered(&self, index: PeerIndex, token: u64) -> bool {
        let current = self.peer(index).and_then(|peer| peer.current.as_ref());
        current.is_some_and(|current| current.token == token)
    }

    /// An initiation that was answered before is answered the same again.
    fn answer_again(
        &mut self,
        index: PeerIndex,
        (uplink, remote): (UplinkId, SocketAddr),
        token: u64,
    ) -> bool {
        let Some(peer) = self.peer(index) else { return false };
        let pending = peer.pending.iter().find(|p| p.established.token == token);
        let Some(payload) = pending.map(|pending| pending.response.clone()) else { return false };
        self.transmits.push_back(Transmit { uplink, remote, payload, mark: CONTROL_MARK });
        true
    }

    /// Simultaneous open: the lower node id's initiation wins (rule G6). The higher id gives its
    /// own up; the lower id answers all the same, for its own may have been lost, and
    /// [`Self::handle_proven`] keeps its own if both come through.
    fn give_way(&mut self, now: Instant, index: PeerIndex) {
        let me = self.config.node;
        if self.peer(index).is_some_and(|peer| peer.outgoing.is_some() && me > peer.node()) {
            self.cancel_outgoing(index);
            self.schedule_late_attempt(now, index);
        }
    }

    /// The first of our suites that the other side takes too.
    fn choose_suite(&self, theirs: &[Suite]) -> Option<Suite> {
        self.config.suites.iter().find(|suite| theirs.contains(suite)).copied()
    }

    /// Tells the initiator, authentically, that there is no common suite. Keeps nothing.
    fn refuse(
        &mut self,
        index: PeerIndex,
        (uplink, remote): (UplinkId, SocketAddr),
        header: &LongHeader,
        key: &ClusterKey,
        responder: Responder,
        hello: &Hello,
    ) {
        let welcome = Welcome {
            from: self.config.node,
            to: hello.from,
            boot: self.boot,
            status: Status::NoCommonSuite,
            slot: Slot(0),
            suite: Suite::Aes256Gcm,
            bindings: Bindings { revision: 0, part: 0, parts: 1, entries: Vec::new() },
            features: Features::NONE,
        };
        if let Ok((message, _)) = responder.respond(&welcome.write()) {
            let payload = response_datagram(header, key, &message);
            self.transmits.push_back(Transmit { uplink, remote, payload, mark: CONTROL_MARK });
        }
        self.note_no_suite(index);
    }

    fn note_no_suite(&mut self, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else { return };
        if !peer.up {
            peer.down_reason = Some(DownReason::NoCommonSuite);
        }
        let node = peer.node();
        self.events.push_back(Event::NoCommonSuite { node });
    }

    #[allow(clippy::too_many_arguments)] // everything that one initiation brought
    fn answer(
        &mut self,
        now: Instant,
        index: PeerIndex,
        (uplink, remote): (UplinkId, SocketAddr),
        header: &LongHeader,
        key: &ClusterKey,
        responder: Responder,
        hello: Hello,
        suite: Suite,
    ) -> Result<(), DropReason> {
        self.make_room_for_pending(now, index)?;
        let bindings = self.peer(index).and_then(|peer| self.bindings_for(peer).into_iter().next());
        let bindings = bindings.ok_or(DropReason::HandshakeInvalid)?;
        let slot = self.reserve_slot().ok_or(DropReason::HandshakeBusy)?;
        let welcome = Welcome {
            from: self.config.node,
            to: hello.from,
            boot: self.boot,
            status: Status::Accepted,
            slot,
            suite,
            bindings,
            features: self.config.features,
        };
        let Ok((message, agreement)) = responder.respond(&welcome.write()) else {
            self.release_slot(slot);
            return Err(DropReason::HandshakeInvalid);
        };
        let features = self.config.features.agree(hello.features, suite);
        let agreed = (suite, features, hello.boot);
        let session = self.make_session(index, (slot, hello.slot), agreed, &agreement, false);
        let payload = response_datagram(header, key, &message);
        let established = Established {
            session,
            since: now,
            key_id: key.id(),
            token: header.token,
            boot: hello.boot,
            initiated: false,
        };
        if let Some(peer) = self.peer_mut(index) {
            peer.last_stamp = peer.last_stamp.max(hello.stamp);
            let response = payload.clone();
            peer.pending.push(Pending { established, response, bindings: hello.bindings });
            peer.timers.set_earliest(Timer::Forget, now + PENDING_LIFE);
        }
        self.transmits.push_back(Transmit { uplink, remote, payload, mark: CONTROL_MARK });
        Ok(())
    }

    /// Keeps the number of unconfirmed sessions bounded without letting new ones push out young
    /// ones.
    fn make_room_for_pending(&mut self, now: Instant, index: PeerIndex) -> Result<(), DropReason> {
        let Some(peer) = self.peer_mut(index) else { return Err(DropReason::HandshakeWrongNode) };
        if peer.pending.len() < MAX_PENDING {
            return Ok(());
        }
        let old_enough = peer.pending.first().is_some_and(|oldest| {
            now.saturating_duration_since(oldest.established.since) >= PENDING_MIN_AGE
        });
        if !old_enough {
            return Err(DropReason::HandshakeBusy);
        }
        let slot = peer.pending.remove(0).established.session.facts().local_slot;
        self.release_slot(slot);
        Ok(())
    }

    fn send_cookie(
        &mut self,
        (uplink, remote): (UplinkId, SocketAddr),
        header: &LongHeader,
        key: &ClusterKey,
        admission: Admission,
    ) {
        let Admission::SendCookie(cookie) = admission else { return };
        let reply = LongHeader { kind: Type::Cookie, highest_version: VERSION, cookie, ..*header };
        let payload = reply.write(key).to_vec();
        self.transmits.push_back(Transmit { uplink, remote, payload, mark: CONTROL_MARK });
    }

    /// The outgoing initiation that an answer belongs to, if it came from the right place.
    fn answered(
        &self,
        (uplink, from): (UplinkId, SocketAddr),
        header: &LongHeader,
    ) -> Result<(PeerIndex, LinkIndex), DropReason> {
        let index = *self.by_token.get(&header.token).ok_or(DropReason::HandshakeStale)?;
        let peer = self.peer(index).ok_or(DropReason::HandshakeStale)?;
        let outgoing = peer.outgoing.as_ref().ok_or(DropReason::HandshakeStale)?;
        if outgoing.key_id != header.key_id {
            return Err(DropReason::HandshakeStale);
        }
        match peer.paths.arrival(uplink, from) {
            Some(Arrival::Known(link) | Arrival::Elsewhere(link)) => Ok((index, link)),
            None => Err(DropReason::HandshakeSourceUnknown),
        }
    }

    fn handle_cookie(
        &mut self,
        now: Instant,
        origin: (UplinkId, SocketAddr),
        header: &LongHeader,
    ) -> Result<(), DropReason> {
        let (index, _) = self.answered(origin, header)?;
        let outgoing = self.peer_mut(index).and_then(|peer| peer.outgoing.as_mut());
        let outgoing = outgoing.ok_or(DropReason::HandshakeStale)?;
        if outgoing.header.cookie == header.cookie {
            return Err(DropReason::HandshakeStale);
        }
        // Only the first is answered at once, so that recorded ones do not make us flood the peer;
        // later ones go out with the next repetition.
        let first = outgoing.header.cookie == [0; COOKIE_LEN];
        outgoing.header.cookie = header.cookie;
        if first {
            self.send_initiation(now, index);
        }
        Ok(())
    }

    fn handle_response(
        &mut self,
        now: Instant,
        origin: (UplinkId, SocketAddr),
        header: &LongHeader,
        message: &[u8],
    ) -> Result<(), DropReason> {
        let (index, link) = self.answered(origin, header)?;
        let me = self.config.node;
        let peer = self.peer_mut(index).ok_or(DropReason::HandshakeStale)?;
        let node = peer.config.node;
        let outgoing = peer.outgoing.as_mut().ok_or(DropReason::HandshakeStale)?;
        let payload = outgoing.noise.finish(message).map_err(|_| DropReason::HandshakeInvalid)?;
        let welcome = Welcome::read(&payload).map_err(|_| DropReason::HandshakeInvalid);
        // Authentic from here on: whatever it says, the initiation has been answered.
        let outgoing = peer.outgoing.take().ok_or(DropReason::HandshakeStale)?;
        peer.timers.stop(Timer::Retry);
        self.by_token.remove(&header.token);
        let accepted = welcome.and_then(|welcome| {
            if welcome.from != node || welcome.to != me {
                return Err(DropReason::HandshakeWrongNode);
            }
            if welcome.status == Status::NoCommonSuite {
                return Err(DropReason::HandshakeNoSuite);
            }
            // Never a suite that we did not offer.
            if !self.config.suites.contains(&welcome.suite) {
                return Err(DropReason::HandshakeNoSuite);
            }
            let agreement = outgoing.noise.agreement().map_err(|_| DropReason::HandshakeInvalid)?;
            Ok((welcome, agreement))
        });
        let (welcome, agreement) = match accepted {
            Ok(accepted) => accepted,
            Err(reason) => {
                self.release_slot(outgoing.slot);
                if reason == DropReason::HandshakeNoSuite {
                    self.note_no_suite(index);
                }
                self.schedule_late_attempt(now, index);
                return Err(reason);
            }
        };
        let slots = (outgoing.slot, welcome.slot);
        let features = self.config.features.agree(welcome.features, welcome.suite);
        let agreed = (welcome.suite, features, welcome.boot);
        let session = self.make_session(index, slots, agreed, &agreement, true);
        let established = Established {
            session,
            since: now,
            key_id: outgoing.key_id,
            token: header.token,
            boot: welcome.boot,
            initiated: true,
        };
        self.install(now, index, established, welcome.bindings);
        // The answer came by this link: it carries frames at once.
        if let Some(peer) = self.peer_mut(index) {
            peer.paths.liveness.on_heard(now, link);
        }
        self.watch(now, index);
        Ok(())
    }

    /// After a refusal that another try will not change soon.
    fn schedule_late_attempt(&mut self, now: Instant, index: PeerIndex) {
        let delay = rng::jitter(&mut *self.rng, MAX_RETRY, 4);
        if let Some(peer) = self.peer_mut(index) {
            peer.timers.set(Timer::Attempt, now + delay);
        }
    }
}

fn response_datagram(header: &LongHeader, key: &ClusterKey, message: &[u8]) -> Vec<u8> {
    let reply = LongHeader {
        kind: Type::Response,
        highest_version: VERSION,
        cookie: [0; COOKIE_LEN],
        ..*header
    };
    let mut datagram = reply.write(key).to_vec();
    datagram.extend(message);
    datagram
}
