//! Dynamic links: the other end's address is learnt, and believed only when it answers a challenge.
//!
//! Rules D9 and D10 are in `docs/protocol.md`.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Transmit, Vtep};
use crate::event::Event;
use crate::forward::marks::CONTROL_MARK;
use crate::id::PeerIndex;
use crate::link::id::LinkIndex;
use crate::paths::Challenge;
use crate::rng;
use crate::tables::same;
use crate::vtep::config::Remote;
use crate::wire::control::Message;
use crate::wire::header::{Kind, Slot};

impl Vtep {
    /// Something authentic came by a dynamic link from another address: is the peer there, or did
    /// somebody only send its datagram from there?
    pub(super) fn handle_elsewhere(
        &mut self,
        now: Instant,
        slot: Slot,
        serial: u64,
        link: LinkIndex,
        from: SocketAddr,
    ) {
        let Some(session) = self.session(slot, serial) else { return };
        let index = session.facts().peer;
        if !self.is_current(index, serial) {
            return;
        }
        let token = rng::u64(&mut *self.rng);
        let Some(path) = self.peer_mut(index).and_then(|peer| peer.paths.get_mut(link)) else {
            return;
        };
        let Remote::Dynamic(_) = path.config.remote else { return };
        if path.challenge.is_some_and(|asked| same(asked.to, from) && !asked.is_over(now)) {
            return;
        }
        path.challenge = Some(Challenge { token, to: from, at: now });
        self.send_to_address(index, link, from, &Message::PathChallenge { token });
    }

    /// The peer asks whether this node is where it was heard from.
    pub(super) fn handle_challenge(
        &mut self,
        index: PeerIndex,
        link: LinkIndex,
        from: SocketAddr,
        token: u64,
    ) {
        self.send_to_address(index, link, from, &Message::PathResponse { token });
    }

    /// The peer answers a challenge: from the address that was asked, it moves the link.
    pub(super) fn handle_response_to_challenge(
        &mut self,
        now: Instant,
        index: PeerIndex,
        link: LinkIndex,
        from: SocketAddr,
        token: u64,
    ) {
        let Some(peer) = self.peer_mut(index) else { return };
        let node = peer.node();
        let Some(path) = peer.paths.get_mut(link) else { return };
        let asked = path.challenge.filter(|asked| asked.token == token && same(asked.to, from));
        if asked.is_none_or(|asked| asked.is_over(now)) {
            return;
        }
        path.challenge = None;
        path.remote = Some(from);
        // Another path, another size.
        path.pmtu.reset(now);
        self.events.push_back(Event::Roamed { node, link, to: from });
        self.stale_peers.insert(index);
        self.watch(now, index);
    }

    fn send_to_address(
        &mut self,
        index: PeerIndex,
        link: LinkIndex,
        remote: SocketAddr,
        message: &Message,
    ) {
        let mut payload = Vec::new();
        message.write(&mut payload);
        let path = self.peer(index).and_then(|peer| peer.paths.get(link));
        let Some(uplink) = path.map(|path| path.config.uplink) else { return };
        if let Some(payload) = self.seal_control(index, Kind::Control, &payload) {
            self.transmits.push_back(Transmit { uplink, remote, payload, mark: CONTROL_MARK });
        }
    }
}
