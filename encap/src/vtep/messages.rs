//! Control messages inside sessions: heartbeats, acknowledgements, bindings.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Vtep;
use crate::event::DownReason;
use crate::forward::marks::CONTROL_MARK;
use crate::id::PeerIndex;
use crate::link::id::LinkIndex;
use crate::peer::LocalBindings;
use crate::stats::DropReason;
use crate::timer::Timer;
use crate::wire::control::Message;
use crate::wire::header::{Kind, Slot};

/// First delay before unacknowledged bindings are sent again; doubles up to 8 s.
const BINDINGS_RETRY: Duration = Duration::from_millis(250);

impl Vtep {
    /// Sends messages to a peer, by the link that carries frames.
    pub(super) fn send_control(&mut self, index: PeerIndex, messages: &[Message]) {
        let Some(link) = self.control_link(index) else { return };
        let mut payload = Vec::new();
        messages.iter().for_each(|message| message.write(&mut payload));
        if let Some(sealed) = self.seal_control(index, Kind::Control, &payload) {
            self.transmit_on(index, link, sealed, CONTROL_MARK);
        }
    }

    /// Says goodbye, by every link: it is not repeated.
    pub(super) fn send_goodbye(&mut self, index: PeerIndex) {
        let Some(peer) = self.peer(index) else { return };
        let mut payload = Vec::new();
        Message::Goodbye.write(&mut payload);
        for link in peer.paths.addresses() {
            if let Some(sealed) = self.seal_control(index, Kind::Control, &payload) {
                self.transmit_on(index, link, sealed, CONTROL_MARK);
            }
        }
    }

    /// Lists our networks to a peer anew.
    pub(super) fn announce_bindings(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer(index) else { return };
        let parts = self.bindings_for(peer);
        let received = vec![false; parts.len()];
        let Some(peer) = self.peer_mut(index) else { return };
        peer.local_bindings = LocalBindings { parts, received, backoff: 0 };
        if peer.current.is_some() {
            self.send_bindings(now, index);
        }
    }

    /// Sends every slice that was not acknowledged, and comes back for them.
    pub(super) fn send_bindings(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else { return };
        let local = &mut peer.local_bindings;
        let missing: Vec<_> = local
            .parts
            .iter()
            .zip(&local.received)
            .filter(|(_, received)| !**received)
            .map(|(part, _)| part.clone())
            .collect();
        if missing.is_empty() || peer.current.is_none() {
            return;
        }
        peer.timers.set(Timer::Bindings, now + BINDINGS_RETRY * (1 << local.backoff));
        local.backoff = (local.backoff + 1).min(5);
        for part in missing {
            self.send_control(index, &[Message::Bindings(part)]);
        }
    }

    pub(super) fn is_current(&self, index: PeerIndex, serial: u64) -> bool {
        let current = self.peer(index).and_then(|peer| peer.current.as_ref());
        current.is_some_and(|current| current.session.facts().serial == serial)
    }

    /// Takes the payload of an authentic control datagram.
    pub(super) fn handle_payload(
        &mut self,
        now: Instant,
        (slot, serial): (Slot, u64),
        (link, from): (LinkIndex, SocketAddr),
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let Some(session) = self.session(slot, serial).cloned() else { return Ok(()) };
        let index = session.facts().peer;
        let messages = Message::read_all(payload).map_err(|_| DropReason::ControlInvalid)?;
        if !self.is_current(index, serial) {
            // The notice that the session is proven may have been lost in a full queue.
            self.handle_proven(now, slot, serial);
        }
        let is_current = self.is_current(index, serial);
        if is_current {
            self.note_alive(index, false);
        }
        let mut replies = Vec::new();
        for message in messages {
            match message {
                // It has a datagram of its own, in which it stands first.
                Message::Heartbeat(_) => {}
                Message::EpochOpened { epoch } => session.confirm_tx(epoch),
                // What was said in a session that is over may be from a process that is gone.
                Message::Bindings(_) | Message::BindingsReceived { .. } if !is_current => {}
                Message::Bindings(bindings) => {
                    let (revision, part) = (bindings.revision, bindings.part);
                    self.take_bindings(now, index, bindings);
                    replies.push(Message::BindingsReceived { revision, part });
                }
                Message::BindingsReceived { revision, part } => {
                    self.note_bindings_received(index, revision, part);
                }
                Message::Goodbye if is_current => {
                    self.drop_sessions(now, index, DownReason::Goodbye);
                    self.schedule_attempt(now, index);
                }
                Message::Goodbye => {}
                Message::ProbeReceived { id, size } if is_current => {
                    self.handle_probe_received(now, index, id, size);
                }
                Message::PathChallenge { token } if is_current => {
                    self.handle_challenge(index, link, from, token);
                }
                Message::PathResponse { token } if is_current => {
                    self.handle_response_to_challenge(now, index, link, from, token);
                }
                Message::ProbeReceived { .. }
                | Message::PathChallenge { .. }
                | Message::PathResponse { .. } => {}
            }
        }
        if !replies.is_empty() {
            // One datagram for one datagram.
            self.send_control(index, &replies);
        }
        Ok(())
    }

    /// A path-MTU probe came: says so.
    pub(super) fn handle_probe(&mut self, slot: Slot, serial: u64, id: u32, size: usize) {
        let Some(session) = self.session(slot, serial) else { return };
        let index = session.facts().peer;
        if self.is_current(index, serial) {
            let size = u16::try_from(size).unwrap_or(u16::MAX);
            self.send_control(index, &[Message::ProbeReceived { id, size }]);
        }
    }

    fn note_bindings_received(&mut self, index: PeerIndex, revision: u32, part: u8) {
        let Some(peer) = self.peer_mut(index) else { return };
        let local = &mut peer.local_bindings;
        if local.parts.first().is_some_and(|first| first.revision == revision)
            && let Some(received) = local.received.get_mut(usize::from(part))
        {
            *received = true;
        }
        if local.received.iter().all(|received| *received) {
            peer.timers.stop(Timer::Bindings);
        }
    }
}
