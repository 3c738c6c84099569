//! Watching the links of a peer: heartbeat rounds, what they tell, which links carry frames.
//!
//! Rules D1 to D8 are in `docs/protocol.md`.

use std::time::{Duration, Instant};

use super::{CommandError, Transmit, UNPROVEN_INTERVAL, Vtep};
use crate::crypto::aead::Suite;
use crate::datapath::{Pulse, current_lane};
use crate::event::{DownReason, Event};
use crate::forward::marks::CONTROL_MARK;
use crate::id::{NodeId, PeerIndex};
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use crate::link::liveness::{Cause, Signal, State as LinkState, Transition};
use crate::paths::{Pace, Paths};
use crate::peer::Peer;
use crate::stats::DropReason;
use crate::timer::Timer;
use crate::wire::buf::UplinkId;
use crate::wire::control::Message;
use crate::wire::header::{CLEAR_OVERHEAD, Handle, InnerHeader, Kind, Lane, SEALED_OVERHEAD};
use crate::wire::heartbeat::Heartbeat;
use crate::wire::probe;

/// How often the budget of heartbeats is shared out anew.
pub(super) const PACE_INTERVAL: Duration = Duration::from_millis(200);
/// When to judge again after the workers were asked to read their sockets.
const PASS_PATIENCE: Duration = Duration::from_micros(300);
/// A round trip longer than this is a misunderstanding.
const MAX_RTT_US: u32 = 60_000_000;

/// What happened to a local attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkNews {
    /// Its interface came up or went down.
    Carrier(bool),
    /// Its address appeared or is gone.
    Address(bool),
    /// It takes UDP payloads up to this many bytes now.
    MaxUdpPayload(usize),
}

/// What a socket said of a datagram to some address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathTrouble {
    /// Larger than the path takes; the largest IP packet in bytes, where that was said.
    TooBig(Option<usize>),
    /// No way there, or nobody listens.
    Unreachable,
}

impl Vtep {
    /// Seals a control payload in the control thread's own lane.
    pub(super) fn seal_control(
        &mut self,
        index: PeerIndex,
        kind: Kind,
        payload: &[u8],
    ) -> Option<Vec<u8>> {
        let peer = self.peer_mut(index)?;
        let current = peer.current.as_ref()?;
        let inner = InnerHeader { kind, handle: Handle::NONE };
        let sealed = current_lane(&mut peer.control_lane, &current.session, Lane::CONTROL, true)
            .and_then(|lane| lane.seal_payload(inner, payload));
        if sealed.is_err() {
            self.drop_packet(DropReason::KeyExhausted);
        }
        sealed.ok()
    }

    /// Puts something on one link.
    pub(super) fn transmit_on(
        &mut self,
        index: PeerIndex,
        link: LinkIndex,
        payload: Vec<u8>,
        mark: u8,
    ) {
        let path = self.peer(index).and_then(|peer| peer.paths.get(link));
        let Some((uplink, Some(remote))) = path.map(|path| (path.config.uplink, path.remote))
        else {
            return;
        };
        let own = self.config.workers;
        if let Some(meter) = self.peer(index).and_then(|peer| peer.paths.meter(own, link)) {
            // Probes are no sign that frames need the size that they test.
            meter.sent(payload.len(), false);
        }
        self.transmits.push_back(Transmit { uplink, remote, payload, mark });
    }

    /// The heartbeat timer: a look at all links, then a round that tells what was seen.
    pub(super) fn beat(&mut self, now: Instant, index: PeerIndex) {
        self.watch(now, index);
        self.send_round(now, index);
        self.schedule_beat(now, index);
    }

    fn schedule_beat(&mut self, now: Instant, index: PeerIndex) {
        let start = self.clock.0;
        let Some(peer) = self.peer_mut(index) else { return };
        let Some(current) = &peer.current else { return };
        let interval =
            if current.session.is_proven() { peer.paths.interval() } else { UNPROVEN_INTERVAL };
        // All peers' rounds fall together, so that one wake-up serves them all.
        let step = interval.as_nanos().max(1);
        let elapsed = now.saturating_duration_since(start).as_nanos();
        let next = (elapsed / step + 1) * step;
        let at = start + Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX));
        peer.paths.due = at;
        peer.timers.set(Timer::Heartbeat, at);
    }

    /// Sends one round: the same heartbeat on every link, each sealed for itself (rule D1).
    pub(super) fn send_round(&mut self, now: Instant, index: PeerIndex) {
        let sent_us = self.micros(now);
        let Some(peer) = self.peer_mut(index) else { return };
        let Some(current) = &peer.current else { return };
        let epoch_opened = current.session.rx_epoch();
        let paths = &mut peer.paths;
        paths.round = paths.round.wrapping_add(1).max(1);
        let interval = paths.announced_interval();
        let mut heartbeat = Heartbeat {
            round: paths.round,
            epoch_opened,
            sent_us,
            interval_us: u32::try_from(interval.as_micros()).unwrap_or(u32::MAX),
            lost: paths.liveness.lost(),
            drained: paths.drained_here(),
            ..Heartbeat::default()
        };
        for link in paths.indices() {
            heartbeat.push(paths.report(now, link));
        }
        let links: Vec<_> = {
            let all = paths.indices();
            all.filter(|link| paths.is_worth_a_try(now, *link)).collect()
        };
        let mut payload = Vec::new();
        Message::Heartbeat(heartbeat).write(&mut payload);
        for link in links {
            let Some(sealed) = self.seal_control(index, Kind::Control, &payload) else { return };
            self.transmit_on(index, link, sealed, CONTROL_MARK);
        }
    }

    /// Microseconds of the node's clock, wrapping, never 0.
    fn micros(&self, now: Instant) -> u32 {
        (self.clock.us(now) as u32).max(1)
    }

    /// Takes a heartbeat.
    pub(super) fn handle_pulse(&mut self, now: Instant, pulse: &Pulse) {
        let Pulse { slot, session: serial, link, at, heartbeat } = pulse;
        let Some(session) = self.session(*slot, *serial).cloned() else { return };
        let index = session.facts().peer;
        session.confirm_tx(heartbeat.epoch_opened);
        if !self.is_current(index, *serial) {
            // The notice that the session is proven may have been lost in a full queue.
            self.handle_proven(now, *slot, *serial);
        }
        if !self.is_current(index, *serial) {
            return;
        }
        self.note_alive(index, false);
        let at_us = self.micros(*at);
        let Some(peer) = self.peer_mut(index) else { return };
        note_pulse(&mut peer.paths, at_us, *at, *link, heartbeat);
        let paths = &peer.paths;
        let settled = paths.liveness.state(*link) == LinkState::Up;
        if !settled || !heartbeat.lost.is_empty() {
            self.watch(now, index);
        }
    }

    /// Looks at the links of a peer, and does what follows.
    pub(super) fn watch(&mut self, now: Instant, index: PeerIndex) {
        let (clock, pass) = (self.clock, self.pass());
        let Some(peer) = self.peer_mut(index) else { return };
        if peer.current.is_none() {
            return;
        }
        let frames = peer.traffic.iter().map(|t| t.tx_frames.get() + t.rx_frames.get()).sum();
        let paths = &mut peer.paths;
        paths.read_meters(now, clock, frames);
        let before = paths.pace;
        paths.set_pace(now);
        let quickened = before != paths.pace && paths.pace == Pace::Fast;
        for link in paths.indices() {
            let may_probe = paths.may_probe(now, link);
            if let Some(path) = paths.get_mut(link) {
                path.pmtu.set_enabled(now, may_probe);
            }
            if let Some(usable) = paths.path_usable(link) {
                paths.liveness.set_path_usable(link, usable);
            }
        }
        let (due, interval) = (paths.due, paths.interval());
        let judgement = paths.liveness.judge(now, due, pass, interval);
        let changed = !judgement.transitions.is_empty();
        let down = |state: LinkState| state == LinkState::Down;
        let in_or_out = judgement.transitions.iter().any(|(_, t)| down(t.from) || down(t.to));
        for (link, _) in judgement.transitions.iter().filter(|(_, t)| down(t.to)) {
            paths.liveness.forget_path_usable(*link);
        }
        let window = paths.window();
        let grown = window > paths.window_told;
        if grown || changed {
            paths.window_told = window;
        }
        self.wants_wake |= judgement.wants_pass;
        self.report_transitions(now, index, judgement.transitions);
        let resized = self.probe_paths(now, index);
        self.choose_links(now, index, changed || resized || grown);
        if in_or_out || resized {
            // The workers first: what follows takes longer.
            self.publish_if_stale();
            self.settle_frame_lengths(now);
        }
        if judgement.peer_silent {
            self.handle_silent_peer(now, index);
        }
        self.schedule_watch(now, index);
        if judgement.wants_pass {
            // The workers take microseconds; the next round may be long away.
            if let Some(peer) = self.peer_mut(index) {
                peer.timers.set_earliest(Timer::Watch, now + PASS_PATIENCE);
            }
        }
        if quickened {
            self.schedule_beat(now, index);
        }
    }

    fn report_transitions(
        &mut self,
        now: Instant,
        index: PeerIndex,
        transitions: Vec<(LinkIndex, Transition)>,
    ) {
        let Some(peer) = self.peer_mut(index) else { return };
        if !transitions.is_empty() {
            peer.paths.note_change(now);
        }
        let node = peer.node();
        for (link, transition) in transitions {
            self.events.push_back(Event::Link { node, link, transition });
        }
    }

    /// Sends path-MTU probes that are due; says whether a size changed.
    fn probe_paths(&mut self, now: Instant, index: PeerIndex) -> bool {
        let Some(peer) = self.peer_mut(index) else { return false };
        let clear = peer.current.as_ref().is_some_and(|c| c.session.facts().suite == Suite::Clear);
        let overhead = if clear { CLEAR_OVERHEAD } else { SEALED_OVERHEAD };
        let node = peer.node();
        let (mut due, mut changes) = (Vec::new(), Vec::new());
        for link in peer.paths.indices() {
            let Some(path) = peer.paths.get_mut(link) else { continue };
            while let Some(probe) = path.pmtu.poll_probe(now) {
                due.push((link, probe));
            }
            let ip = path.config.ip_overhead;
            while let Some(change) = path.pmtu.poll_change() {
                let (from, to) = (change.from + ip, change.to + ip);
                changes.push(Event::PathMtu { node, link, from, to, how: change.how });
            }
        }
        for (link, probe) in due {
            let payload = probe::write(probe.id, probe.size.saturating_sub(overhead));
            if let Some(sealed) = self.seal_control(index, Kind::Probe, &payload) {
                self.transmit_on(index, link, sealed, 0);
            }
        }
        let changed = !changes.is_empty();
        self.events.extend(changes);
        changed
    }

    /// Chooses the links that carry frames, and tells the workers what changed.
    fn choose_links(&mut self, now: Instant, index: PeerIndex, stale: bool) {
        let Some(peer) = self.peer_mut(index) else { return };
        let node = peer.node();
        let failures = peer.paths.failures;
        let chosen = peer.paths.choose(now);
        let failed = peer.paths.failures != failures;
        let moved = peer.paths.order.moved.take();
        if let Some(moved) = moved {
            self.events.push_back(Event::Moved { node, moved });
        }
        if failed || chosen || stale {
            self.stale_peers.insert(index);
        }
        // Blocked workers must look at the new tables and send again what may be lost.
        self.wants_wake |= failed;
    }

    fn schedule_watch(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else { return };
        let paths = &peer.paths;
        let probes = paths.list.iter().filter_map(|path| path.pmtu.poll_timeout());
        let next = [paths.liveness.poll_timeout(), paths.choice.poll_timeout()];
        match next.into_iter().flatten().chain(probes).min() {
            // What is overdue was just seen to: it comes again a little later, not at once.
            Some(at) => {
                let at = at.max(now + Duration::from_micros(200));
                peer.timers.set(Timer::Watch, at);
            }
            None => peer.timers.stop(Timer::Watch),
        }
    }

    /// Nothing comes by any link: there is nothing to compare, and nowhere to go.
    fn handle_silent_peer(&mut self, now: Instant, index: PeerIndex) {
        self.mark_down(index, DownReason::Silent);
        self.reset_paths(now, index, Cause::PeerSilent);
        if self.peer(index).is_some_and(|peer| peer.outgoing.is_none()) {
            self.start_handshake(now, index);
        }
    }

    /// Begins anew with all links of a peer.
    pub(super) fn reset_paths(&mut self, now: Instant, index: PeerIndex, cause: Cause) {
        let Some(peer) = self.peer_mut(index) else { return };
        let transitions = peer.paths.reset(now, cause);
        self.report_transitions(now, index, transitions);
        self.stale_peers.insert(index);
    }

    /// Passes over all sockets that every worker has completed.
    fn pass(&self) -> u64 {
        let passes = self.passes.iter().map(|p| p.load(std::sync::atomic::Ordering::Acquire));
        passes.min().unwrap_or(0)
    }

    /// Shares the budget of heartbeats out: intervals are stretched alike where it does not do.
    pub(super) fn share_budget(&mut self) {
        let budget = f64::from(self.config.limits.heartbeats_per_second.max(1));
        let connected = || self.peers.iter().flatten().filter(|peer| peer.current.is_some());
        let demand: f64 = connected().map(rounds_per_second).sum();
        let stretch_milli = (demand / budget * 1000.0).max(1000.0) as u64;
        for peer in self.peers.iter_mut().flatten() {
            peer.paths.stretch_milli = stretch_milli;
        }
    }

    /// A worker saw frames of a peer whose heartbeats rested.
    pub(super) fn handle_awake(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else { return };
        peer.paths.note_traffic(now);
        peer.timers.set(Timer::Heartbeat, now);
    }

    /// Something happened to a local attachment.
    pub fn handle_uplink(&mut self, now: Instant, uplink: UplinkId, news: UplinkNews) {
        for index in self.indices() {
            let Some(peer) = self.peer_mut(index) else { continue };
            let paths = &mut peer.paths;
            let mut touched = false;
            for link in paths.indices() {
                let Some(path) = paths.get_mut(link) else { continue };
                if path.config.uplink != uplink {
                    continue;
                }
                touched = true;
                match news {
                    UplinkNews::Carrier(up) => {
                        paths.liveness.on_signal(link, Signal::Carrier(up));
                    }
                    UplinkNews::Address(there) => {
                        paths.liveness.on_signal(link, Signal::Address(there));
                    }
                    UplinkNews::MaxUdpPayload(size) => {
                        path.config.max_udp_payload = size;
                        path.pmtu.on_local_limit(now, size);
                    }
                }
            }
            if touched {
                self.watch(now, index);
            }
        }
        self.publish_if_stale();
    }

    /// Behind a local attachment an address does not answer as a neighbour, or does so again. What
    /// leads there by other attachments is not touched.
    pub fn handle_neighbour(
        &mut self,
        now: Instant,
        uplink: UplinkId,
        address: std::net::IpAddr,
        found: bool,
    ) {
        self.for_links_to(now, uplink, address, |paths, link| {
            paths.liveness.on_signal(link, Signal::Neighbour(found));
        });
    }

    /// A socket of a local attachment reported trouble with a datagram. What this node's own kernel says counts; what came
    /// from the network anybody can have sent, so it only has us look (rule D5).
    pub fn handle_trouble(
        &mut self,
        now: Instant,
        uplink: UplinkId,
        remote: std::net::IpAddr,
        trouble: PathTrouble,
        local: bool,
    ) {
        let touched = self.for_links_to(now, uplink, remote, |paths, link| {
            let Some(path) = paths.get_mut(link) else { return };
            let ip = path.config.ip_overhead;
            match (trouble, local) {
                (PathTrouble::TooBig(Some(mtu)), true) => {
                    path.pmtu.on_local_limit(now, mtu.saturating_sub(ip));
                }
                (PathTrouble::TooBig(Some(mtu)), false) => {
                    path.pmtu.on_too_big_hint(now, mtu.saturating_sub(ip));
                }
                (PathTrouble::TooBig(None), _) => {}
                (PathTrouble::Unreachable, true) => {
                    paths.liveness.on_signal(link, Signal::Unreachable);
                }
                (PathTrouble::Unreachable, false) => {}
            }
        });
        if trouble == PathTrouble::Unreachable && !local {
            for index in touched {
                if self.strangers.take(now) {
                    self.send_round(now, index);
                }
            }
        }
    }

    fn for_links_to(
        &mut self,
        now: Instant,
        uplink: UplinkId,
        address: std::net::IpAddr,
        mut act: impl FnMut(&mut Paths, LinkIndex),
    ) -> Vec<PeerIndex> {
        let mut touched = Vec::new();
        for index in self.indices() {
            let Some(peer) = self.peer_mut(index) else { continue };
            let leads_there = |link: &LinkIndex| {
                let path = peer.paths.get(*link).filter(|path| path.config.uplink == uplink);
                path.and_then(|path| path.remote)
                    .is_some_and(|r| crate::tables::canonical(r) == address.to_canonical())
            };
            let links: Vec<_> = peer.paths.indices().filter(leads_there).collect();
            if links.is_empty() {
                continue;
            }
            for link in links {
                act(&mut peer.paths, link);
            }
            touched.push(index);
            self.watch(now, index);
        }
        self.publish_if_stale();
        touched
    }

    /// Takes a link out of use for frames, or back in. Nothing is lost.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn drain_link(
        &mut self,
        now: Instant,
        node: NodeId,
        link: LinkIndex,
        drained: bool,
    ) -> Result<(), CommandError> {
        let index = self.with_path(node, link, |path| path.drained = drained)?;
        if let Some(peer) = self.peer_mut(index) {
            let either = peer.paths.get(link).is_some_and(crate::paths::Path::is_drained);
            peer.paths.liveness.set_drained(link, either);
        }
        self.choose_links(now, index, true);
        self.schedule_watch(now, index);
        // The other end is to leave it too.
        self.send_round(now, index);
        self.publish_if_stale();
        Ok(())
    }

    /// Fixes the largest IP packet of a link in bytes, or lets it be found again.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn set_link_mtu(
        &mut self,
        now: Instant,
        node: NodeId,
        link: LinkIndex,
        ip_mtu: Option<usize>,
    ) -> Result<(), CommandError> {
        let index = self.with_path(node, link, |path| {
            path.manual = ip_mtu.map(|mtu| mtu.saturating_sub(path.config.ip_overhead));
            path.pmtu.set_manual(now, path.manual.or(path.config.fixed_udp_payload));
        })?;
        self.watch(now, index);
        self.publish_if_stale();
        Ok(())
    }

    fn with_path(
        &mut self,
        node: NodeId,
        link: LinkIndex,
        act: impl FnOnce(&mut crate::paths::Path),
    ) -> Result<PeerIndex, CommandError> {
        let index = *self.by_node.get(&node).ok_or(CommandError::NoSuchNode(node))?;
        let path = self.peer_mut(index).and_then(|peer| peer.paths.get_mut(link));
        act(path.ok_or(CommandError::NoSuchLink(link))?);
        Ok(index)
    }

    /// The link that a control message goes by.
    pub(super) fn control_link(&self, index: PeerIndex) -> Option<LinkIndex> {
        let paths = &self.peer(index)?.paths;
        paths.order.best.first().copied()
    }

    /// The peer's answer to a path-MTU probe.
    pub(super) fn handle_probe_received(
        &mut self,
        now: Instant,
        index: PeerIndex,
        id: u32,
        size: u16,
    ) {
        let Some(peer) = self.peer_mut(index) else { return };
        for path in &mut peer.paths.list {
            // Ids are the link's own, so a size of another link's probe may be tried in vain.
            path.pmtu.on_ack(now, id, usize::from(size));
        }
        self.watch(now, index);
    }
}

/// Datagrams a second that the pace of a peer and our own ask for.
fn rounds_per_second(peer: &Peer) -> f64 {
    let interval = peer.paths.common_interval().as_secs_f64().max(1e-6);
    peer.paths.list.len() as f64 / interval
}

/// Takes over what a heartbeat says.
fn note_pulse(paths: &mut Paths, at_us: u32, at: Instant, link: LinkIndex, heartbeat: &Heartbeat) {
    let own = paths.mapping(heartbeat);
    let translate = |set: LinkSet| -> LinkSet {
        LinkIndex::all(MAX_LINKS).filter(|l| set.contains(*l)).filter_map(|l| own[l.at()]).collect()
    };
    let (lost, drained) = (translate(heartbeat.lost), translate(heartbeat.drained));
    let mut echo = None;
    for (other, report) in own.into_iter().zip(heartbeat.reports()) {
        let Some(path) = other.and_then(|other| paths.list.get_mut(other.at())) else { continue };
        path.estimate.on_report(report.highest, report.rounds);
        if other == Some(link) {
            echo = Some(*report);
        }
    }
    let up_to_date = paths.is_up_to_date(heartbeat.round);
    for other in paths.indices().filter(|_| up_to_date) {
        let there = drained.contains(other);
        let Some(path) = paths.list.get_mut(other.at()) else { continue };
        path.drained_there = there;
        let either = path.is_drained();
        paths.liveness.set_drained(other, either);
    }
    let Some(path) = paths.list.get_mut(link.at()) else { return };
    path.note_round(at, heartbeat.round, heartbeat.sent_us);
    path.estimate.on_arrival(at, heartbeat.sent_us);
    path.estimate.on_round(heartbeat.round);
    // The echo is of our round on the same link: there and back by one way.
    if let Some(echo) = echo.filter(|report| path.is_new_echo(report.echo_us)) {
        let rtt = at_us.wrapping_sub(echo.echo_us).wrapping_sub(echo.echo_delay_us);
        if rtt < MAX_RTT_US {
            path.estimate.on_rtt(at, Duration::from_micros(rtt.into()));
            path.pmtu.set_srtt(path.estimate.srtt());
        }
    }
    let (jitter, transit) = (path.estimate.jitter(), path.estimate.transit_us());
    let loss = path.estimate.loss_in();
    paths.liveness.on_round(at, link, heartbeat.round, jitter, transit, loss);
    let interval = Duration::from_micros(heartbeat.interval_us.into());
    paths.liveness.on_report(link, lost, interval);
    if up_to_date {
        paths.peer_interval = interval;
    }
}
