//! Control messages inside sessions: heartbeats, acknowledgements, bindings.

use std::time::{Duration, Instant};

use super::{HEARTBEAT_INTERVAL, Transmit, UNPROVEN_INTERVAL, Vtep};
use crate::datapath::current_lane;
use crate::event::DownReason;
use crate::id::PeerIndex;
use crate::peer::LocalBindings;
use crate::stats::DropReason;
use crate::timer::Timer;
use crate::wire::buf::PacketBuf;
use crate::wire::control::Message;
use crate::wire::header::{Handle, InnerHeader, Kind, Lane, Slot};

/// First delay before unacknowledged bindings are sent again; doubles up to 8 s.
const BINDINGS_RETRY: Duration = Duration::from_millis(250);

impl Vtep {
    /// Seals messages for a peer in the control thread's own lane.
    pub(super) fn send_control(&mut self, _now: Instant, index: PeerIndex, messages: &[Message]) {
        let Some(peer) = self.peer_mut(index) else { return };
        let (Some(current), Some(link)) = (&peer.current, peer.config.links.first().copied())
        else {
            return;
        };
        let mut payload = Vec::new();
        messages.iter().for_each(|message| message.write(&mut payload));
        let mut buf = PacketBuf::from_slice(&payload);
        let inner = InnerHeader { kind: Kind::Control, handle: Handle::NONE };
        let sealed = current_lane(&mut peer.control_lane, &current.session, Lane::CONTROL)
            .and_then(|lane| lane.seal(inner, &mut buf));
        if sealed.is_err() {
            self.drop_packet(DropReason::KeyExhausted);
            return;
        }
        let payload = buf.data().to_vec();
        self.transmits.push_back(Transmit { uplink: link.uplink, remote: link.remote, payload });
    }

    pub(super) fn send_heartbeat(&mut self, now: Instant, index: PeerIndex) {
        let sent_us = self.micros(now);
        let Some(peer) = self.peer_mut(index) else { return };
        let Some(current) = &peer.current else { return };
        let proven = current.session.is_proven();
        let epoch_opened = current.session.rx_epoch();
        let (echo_us, echo_delay_us) = peer.heartbeats.heard.map_or((0, 0), |(echo, at)| {
            let delay = now.saturating_duration_since(at).as_micros();
            (echo, u32::try_from(delay).unwrap_or(u32::MAX))
        });
        peer.heartbeats.round = peer.heartbeats.round.wrapping_add(1);
        let round = peer.heartbeats.round;
        let interval = if proven { HEARTBEAT_INTERVAL } else { UNPROVEN_INTERVAL };
        peer.timers.set(Timer::Heartbeat, now + interval);
        let heartbeat = Message::Heartbeat { round, epoch_opened, sent_us, echo_us, echo_delay_us };
        self.send_control(now, index, &[heartbeat]);
    }

    /// Microseconds of the node's clock, wrapping, never 0.
    fn micros(&self, now: Instant) -> u32 {
        let micros = now.saturating_duration_since(self.clock.0).as_micros();
        (micros as u32).max(1)
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
            self.send_control(now, index, &[Message::Bindings(part)]);
        }
    }

    fn is_current(&self, index: PeerIndex, serial: u64) -> bool {
        let current = self.peer(index).and_then(|peer| peer.current.as_ref());
        current.is_some_and(|current| current.session.facts().serial == serial)
    }

    /// Takes the payload of an authentic control datagram.
    pub(super) fn handle_payload(
        &mut self,
        now: Instant,
        slot: Slot,
        serial: u64,
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
                Message::Heartbeat { epoch_opened, sent_us, echo_us, echo_delay_us, .. } => {
                    session.confirm_tx(epoch_opened);
                    if is_current {
                        self.note_heartbeat(now, index, sent_us, echo_us, echo_delay_us);
                    }
                }
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
                    self.drop_sessions(index, DownReason::Goodbye);
                    self.schedule_attempt(now, index);
                }
                Message::Goodbye => {}
            }
        }
        if !replies.is_empty() {
            // One datagram for one datagram.
            self.send_control(now, index, &replies);
        }
        Ok(())
    }

    fn note_heartbeat(
        &mut self,
        now: Instant,
        index: PeerIndex,
        sent_us: u32,
        echo_us: u32,
        echo_delay_us: u32,
    ) {
        let now_us = self.micros(now);
        let Some(peer) = self.peer_mut(index) else { return };
        peer.heartbeats.heard = Some((sent_us, now));
        let rtt = now_us.wrapping_sub(echo_us).wrapping_sub(echo_delay_us);
        // An echo older than a minute, or from before the delay, says nothing.
        if echo_us != 0 && rtt < 60_000_000 {
            peer.heartbeats.rtt = Some(Duration::from_micros(rtt.into()));
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
