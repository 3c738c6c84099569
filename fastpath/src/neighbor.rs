//! The neighbours of a port without a kernel: ARP (RFC 826, RFC 5227) and IPv6 neighbour discovery
//! (RFC 4861, RFC 4862) as one machine without sockets and clock.
//!
//! [`Neighbors`] belongs to whoever holds its lock. Workers keep what [`Neighbors::resolve`] told
//! them for a second, or until [`Neighbors::generation`] changes.
//!
//! What a neighbour says is not authenticated. It is believed as far as the RFCs ask for, with these
//! exceptions: an address that just proved by authentic traffic to be where it is does not move
//! before its station was asked and stayed silent, nor does one that has just moved, and of two
//! answers the first counts. Redirects and router advertisements are not obeyed.
//!
//! Next: [`crate::underlay`] for the headers that the addresses go into.

mod counters;
mod entry;
mod held;
mod message;
mod own;
mod routes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use encap::forward::policer::Policer;
use encap::wire::ethernet::MacAddr;

use crate::underlay::LocalAddress;

use entry::{Ask, Change, Entry, State, Step};
use held::Held;
use message::{Message, NoMessage};
use own::{Own, OwnFrame};

pub use counters::NeighborCounters;
pub use held::Pending;
pub use routes::Routes;

/// Frames and events that wait to be fetched; more than that are dropped.
const MAX_QUEUED: usize = 1024;
/// Replies that may leave at once, and claims that may be looked into at once.
const BURST: u32 = 20;

/// What the machine is told at its start.
#[derive(Debug, Clone)]
pub struct NeighborConfig {
    /// Our own address.
    pub local: LocalAddress,
    /// The station on the link that takes what no prefix matches.
    pub gateway: Option<IpAddr>,
    /// Network and prefix length in bits, and the station on the link that leads there.
    pub routes: Vec<((IpAddr, u8), IpAddr)>,
    /// Stations whose MAC address is given, and is never asked for.
    pub statics: Vec<(IpAddr, MacAddr)>,
    /// Bounds of memory and work.
    pub limits: NeighborLimits,
}

/// Bounds of memory and work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighborLimits {
    /// Neighbours that are known at a time, static ones included.
    pub entries: usize,
    /// Datagrams that wait for one neighbour.
    pub held_per_neighbor: usize,
    /// Datagrams that wait in all.
    pub held: usize,
    /// Replies to requests per second, 0 for no limit. Neighbours in use have as many again for
    /// themselves, so that a flood of others does not make us unreachable for them.
    pub replies_per_second: u32,
    /// Claims per second to addresses of known neighbours that move one, or have it asked whether it
    /// is there; 0 for no limit. Neighbours in use have as many again for themselves.
    pub claims_per_second: u32,
}

impl Default for NeighborLimits {
    fn default() -> Self {
        Self {
            entries: 1024,
            held_per_neighbor: 16,
            held: 256,
            replies_per_second: 100,
            claims_per_second: 20,
        }
    }
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// To this station.
    Known(MacAddr),
    /// To this next hop, which is being asked for: see [`Neighbors::hold`].
    Pending(IpAddr),
    /// This next hop did not answer, and is not asked again for 3 s.
    Failed(IpAddr),
    /// No route leads there.
    NoRoute,
}

/// What the owner should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighborEvent {
    /// A wanted neighbour has answered, for the first time or again.
    Reachable(IpAddr),
    /// A wanted neighbour does not answer.
    Failed(IpAddr),
    /// A neighbour has another MAC address now.
    Moved {
        /// Its IP address.
        ip: IpAddr,
        /// Its MAC address up to now.
        from: MacAddr,
        /// Its new one.
        to: MacAddr,
    },
    /// Another station uses our IP address. Told at most once in 10 s.
    Conflict {
        /// That station.
        mac: MacAddr,
    },
}

/// How far a neighbour is believed (RFC 4861 section 7.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighborState {
    /// Being asked for.
    Incomplete,
    /// Confirmed within the last 30 s.
    Reachable,
    /// Not confirmed, and not in use.
    Stale,
    /// Not confirmed; asked for within 5 s.
    Delay,
    /// Not confirmed; being asked for while its address is used on.
    Probe,
    /// Did not answer.
    Failed,
    /// Configured.
    Static,
}

/// One line of the list of neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighborInfo {
    /// IP address.
    pub ip: IpAddr,
    /// MAC address, where there is one.
    pub mac: Option<MacAddr>,
    /// How far it is believed.
    pub state: NeighborState,
    /// How long it has been in this state.
    pub age: Duration,
}

/// How often something may be done for strangers, and for neighbours in use.
#[derive(Debug)]
struct Rations {
    others: Policer,
    in_use: Policer,
}

impl Rations {
    fn new(now: Instant, rate: u32) -> Self {
        let policer = Policer::new(now, rate, BURST);
        Self { others: policer.clone(), in_use: policer }
    }

    fn take(&mut self, now: Instant, in_use: bool) -> bool {
        if in_use { self.in_use.take(now) } else { self.others.take(now) }
    }
}

/// The neighbour machine of one port and one IP address.
///
/// After each call but plain readers, drain [`Self::poll_frame`], [`Self::poll_released`] and
/// [`Self::poll_event`], and call [`Self::handle_timeout`] at [`Self::poll_timeout`]. Whoever sends
/// by what it was told before calls [`Self::resolve`] at least every 10 s for what it sends to: that
/// keeps an entry in use, and an entry in use is confirmed again before it expires.
#[derive(Debug)]
pub struct Neighbors {
    local: LocalAddress,
    routes: Routes,
    limits: NeighborLimits,
    entries: BTreeMap<IpAddr, Entry>,
    held: Held,
    own: Own,
    replies: Rations,
    claims: Rations,
    frames: VecDeque<Vec<u8>>,
    released: VecDeque<(MacAddr, Pending)>,
    events: VecDeque<NeighborEvent>,
    generation: u64,
    /// Not after the first timer.
    next_timeout: Option<Instant>,
    counters: Arc<NeighborCounters>,
}

impl Neighbors {
    /// Begins to probe for our own address; traffic does not wait for that.
    ///
    /// Routes, gateway and static neighbours of the other IP version are left out.
    #[must_use]
    pub fn new(now: Instant, config: NeighborConfig) -> Self {
        let NeighborConfig { local, gateway, routes, statics, limits } = config;
        let usable = |ip: &IpAddr| local.is_station(*ip) && *ip != local.ip;
        let statics: Vec<_> = statics.into_iter().filter(|(ip, _)| usable(ip)).collect();
        let fixed = |(ip, mac): &(IpAddr, MacAddr)| (*ip, Entry::fixed(now, *mac));
        let entries = statics.iter().map(fixed).collect();
        let own = Own::new(now, &local);
        Self {
            routes: Routes::new(local.clone(), gateway, &routes, statics.iter().map(|(ip, _)| *ip)),
            next_timeout: own.timer(),
            replies: Rations::new(now, limits.replies_per_second),
            claims: Rations::new(now, limits.claims_per_second),
            held: Held::default(),
            frames: VecDeque::new(),
            released: VecDeque::new(),
            events: VecDeque::new(),
            generation: 0,
            counters: Arc::default(),
            local,
            limits,
            entries,
            own,
        }
    }

    /// Our own address.
    #[must_use]
    pub fn local(&self) -> &LocalAddress {
        &self.local
    }

    /// The routes, for readers without the lock.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// See [`Routes::next_hop`].
    #[must_use]
    pub fn next_hop(&self, remote: IpAddr) -> Option<IpAddr> {
        self.routes.next_hop(remote)
    }

    /// What has been counted; readable without the lock.
    #[must_use]
    pub fn counters(&self) -> &Arc<NeighborCounters> {
        &self.counters
    }

    /// Changes with the MAC address of any neighbour.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All neighbours, in the order of their addresses.
    #[must_use]
    pub fn list(&self, now: Instant) -> Vec<NeighborInfo> {
        let info = |(ip, entry): (&IpAddr, &Entry)| NeighborInfo {
            ip: *ip,
            mac: entry.mac(),
            state: match entry.state() {
                State::Incomplete { .. } => NeighborState::Incomplete,
                State::Reachable => NeighborState::Reachable,
                State::Stale => NeighborState::Stale,
                State::Delay => NeighborState::Delay,
                State::Probe { .. } => NeighborState::Probe,
                State::Failed => NeighborState::Failed,
                State::Static => NeighborState::Static,
            },
            age: now.saturating_duration_since(entry.since()),
        };
        self.entries.iter().map(info).collect()
    }

    /// Where datagrams to `remote` go. Asks for a next hop that is not known, and keeps one that
    /// is known in use.
    pub fn resolve(&mut self, now: Instant, remote: IpAddr) -> Resolution {
        let Some(hop) = self.routes.next_hop(remote) else {
            self.counters.no_route.add(1);
            return Resolution::NoRoute;
        };
        let Some(entry) = self.entries.get_mut(&hop) else {
            if !self.make_room(now) {
                return Resolution::Failed(hop);
            }
            let (entry, step) = Entry::wanted(now);
            self.entries.insert(hop, entry);
            self.apply(hop, step);
            return Resolution::Pending(hop);
        };
        entry.on_use(now);
        let resolution = match (entry.mac(), entry.state()) {
            (Some(mac), _) => Resolution::Known(mac),
            (None, State::Failed) => Resolution::Failed(hop),
            (None, _) => Resolution::Pending(hop),
        };
        let timer = entry.timer();
        self.wake_at(timer);
        resolution
    }

    /// Keeps a datagram until its next hop, which [`Self::resolve`] said is pending, is known or
    /// has failed. Gives back a datagram that has to give way, for the caller to count: an older
    /// one where too many wait, or `pending` itself when nobody is asking for the next hop.
    pub fn hold(&mut self, _now: Instant, next_hop: IpAddr, pending: Pending) -> Option<Pending> {
        let entry = self.entries.get(&next_hop);
        match entry.map(|entry| (entry.mac(), entry.state())) {
            // It has answered since.
            Some((Some(mac), _)) if self.released.len() + self.held.len() < self.limits.held => {
                self.released.push_back((mac, pending));
                None
            }
            Some((None, State::Incomplete { .. })) => {
                self.counters.held.add(1);
                let NeighborLimits { held_per_neighbor, held, .. } = self.limits;
                // What was released and not yet fetched takes memory as well.
                let all = held.saturating_sub(self.released.len());
                self.held.push(next_hop, pending, held_per_neighbor, all)
            }
            _ => Some(pending),
        }
    }

    /// What we sent to `remote` has arrived there: proof that the next hop works. That something came
    /// from there is none (RFC 4861 section 7.3.1). Once a second is enough.
    pub fn confirm(&mut self, now: Instant, remote: IpAddr) {
        let Some(hop) = self.routes.next_hop(remote) else { return };
        if let Some(entry) = self.entries.get_mut(&hop) {
            entry.on_traffic(now);
            let timer = entry.timer();
            self.wake_at(timer);
        }
    }

    /// Tells everybody where our address is, three times within 3 s: when the link has come up, and
    /// when frames go by this port that went by another. Once a second at most, however often it is
    /// called.
    pub fn announce(&mut self, now: Instant) {
        self.own.announce(now);
        self.send_own(now);
    }

    /// Takes in an ARP or neighbour discovery frame; anything else is counted and dropped.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        match message::parse(frame, &self.local) {
            Ok(Message::Request { sender, sender_mac, reply_to, target }) => {
                self.counters.rx_requests.add(1);
                self.handle_request(now, sender, sender_mac, reply_to, target);
            }
            Ok(Message::Answer { subject, mac, station, directed, overrides }) => {
                self.counters.rx_answers.add(1);
                if subject == self.local.ip {
                    self.handle_conflict(now, mac.unwrap_or(station));
                } else if !self.handle_claim(now, subject, mac, directed, overrides) {
                    self.counters.rx_dropped_unsolicited.add(1);
                }
            }
            Err(NoMessage::Malformed) => self.counters.rx_dropped_malformed.add(1),
            Err(NoMessage::Other) => self.counters.rx_dropped_other.add(1),
            Err(NoMessage::Own) => self.counters.rx_dropped_own.add(1),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_timeout.is_none_or(|at| at > now) {
            return;
        }
        self.send_own(now);
        let due =
            self.entries.iter().filter(|(_, entry)| entry.timer().is_some_and(|at| at <= now));
        let due: Vec<_> = due.map(|(ip, _)| *ip).collect();
        for ip in due {
            if let Some(entry) = self.entries.get_mut(&ip) {
                let step = entry.on_timeout(now);
                self.apply(ip, step);
            }
        }
        let timers = self.entries.values().filter_map(Entry::timer);
        self.next_timeout = timers.chain(self.own.timer()).min();
    }

    /// When [`Self::handle_timeout`] is to be called, or earlier.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timeout
    }

    /// Whether there is something to send: [`Self::poll_frame`] or [`Self::poll_released`] gives some.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !(self.frames.is_empty() && self.released.is_empty())
    }

    /// The next complete Ethernet frame to send, tag included and padded to 60 bytes.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// The next datagram whose neighbour is known now, and its MAC address.
    pub fn poll_released(&mut self) -> Option<(MacAddr, Pending)> {
        let released = self.released.pop_front();
        self.counters.held_released.add(released.is_some().into());
        released
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<NeighborEvent> {
        self.events.pop_front()
    }

    fn handle_request(
        &mut self,
        now: Instant,
        sender: Option<IpAddr>,
        sender_mac: Option<MacAddr>,
        reply_to: MacAddr,
        target: IpAddr,
    ) {
        let for_us = target == self.local.ip;
        if sender == Some(self.local.ip) || (sender.is_none() && for_us && self.own.is_probing()) {
            self.handle_conflict(now, reply_to);
            return;
        }
        let claim = sender.zip(sender_mac);
        if !for_us {
            // RFC 826: what a known sender says of itself counts, whomever it asks.
            if !claim.is_some_and(|(ip, mac)| self.handle_claim(now, ip, Some(mac), false, true)) {
                self.counters.rx_dropped_not_ours.add(1);
            }
            return;
        }
        let entry = sender.and_then(|ip| self.entries.get(&ip));
        let in_use =
            entry.is_some_and(|entry| entry.is_in_use(now) && entry.mac() == Some(reply_to));
        if !self.replies.take(now, in_use) {
            self.counters.rx_dropped_rate_limited.add(1);
            return;
        }
        if let Some((ip, mac)) = claim
            && !self.handle_claim(now, ip, Some(mac), false, true)
            && self.routes.is_neighbor(ip)
            && self.make_room(now)
        {
            let entry = Entry::learnt(now, mac);
            let timer = entry.timer();
            self.entries.insert(ip, entry);
            self.generation += 1;
            self.wake_at(timer);
        }
        self.counters.tx_replies.add(1);
        self.send(message::reply(&self.local, reply_to, sender));
    }

    /// Hands what a station says of `ip` to its entry; false when there is none.
    fn handle_claim(
        &mut self,
        now: Instant,
        ip: IpAddr,
        mac: Option<MacAddr>,
        directed: bool,
        overrides: bool,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(&ip) else { return false };
        let mut claimed = entry.clone();
        let step = claimed.on_claim(now, mac, directed, overrides);
        let contested = step.ask.is_some() || matches!(step.change, Some(Change::Moved { .. }));
        if contested && !self.claims.take(now, entry.is_in_use(now)) {
            self.counters.claims_dropped_rate_limited.add(1);
            return true;
        }
        *entry = claimed;
        self.apply(ip, step);
        true
    }

    fn handle_conflict(&mut self, now: Instant, mac: MacAddr) {
        self.counters.address_conflicts.add(1);
        let (tell, defend) = self.own.on_conflict(now);
        if tell {
            self.event(NeighborEvent::Conflict { mac });
        }
        if defend {
            self.counters.tx_announcements.add(1);
            self.send(message::announcement(&self.local));
        }
    }

    /// Does what an entry asks for, and notes its timer.
    fn apply(&mut self, ip: IpAddr, step: Step) {
        self.counters.spoof_suspected.add(step.suspected.into());
        self.counters.static_contradicted.add(step.contradicted.into());
        let timer = self.entries.get(&ip).and_then(Entry::timer);
        self.wake_at(timer);
        match step.change {
            Some(Change::Found(mac)) => {
                self.generation += 1;
                self.counters.neighbors_found.add(1);
                self.released.extend(self.held.take(ip).map(|pending| (mac, pending)));
                self.event(NeighborEvent::Reachable(ip));
            }
            Some(Change::Moved { from, to }) => {
                self.generation += 1;
                self.counters.neighbors_moved.add(1);
                self.event(NeighborEvent::Moved { ip, from, to });
            }
            Some(Change::Failed) => {
                self.generation += 1;
                self.counters.neighbors_failed.add(1);
                self.counters.held_dropped_failed.add(self.held.take(ip).len() as u64);
                self.event(NeighborEvent::Failed(ip));
            }
            Some(Change::Forget) => {
                self.entries.remove(&ip);
                self.generation += 1;
            }
            None => {}
        }
        if let Some(ask) = step.ask {
            let to = match ask {
                Ask::Everybody => None,
                Ask::Station(mac) => Some(mac),
            };
            self.counters.tx_requests.add(1);
            self.send(message::request(&self.local, ip, to));
        }
    }

    /// Whether there is room for another entry, if need be in place of the one that nobody has used
    /// for the longest time.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.entries.len() < self.limits.entries {
            return true;
        }
        let idle = self.entries.iter().filter(|(ip, entry)| {
            entry.state() != State::Static && !entry.is_in_use(now) && !self.held.has(**ip)
        });
        let Some(ip) = idle.min_by_key(|(_, entry)| entry.last_use()).map(|(ip, _)| *ip) else {
            self.counters.neighbors_dropped_table_full.add(1);
            return false;
        };
        self.entries.remove(&ip);
        self.generation += 1;
        self.counters.neighbors_evicted.add(1);
        true
    }

    fn send_own(&mut self, now: Instant) {
        while let Some(frame) = self.own.poll(now) {
            let frame = match frame {
                OwnFrame::Membership => {
                    self.counters.tx_memberships.add(1);
                    message::membership(&self.local)
                }
                OwnFrame::Probe => {
                    self.counters.tx_probes.add(1);
                    message::probe(&self.local)
                }
                OwnFrame::Announcement => {
                    self.counters.tx_announcements.add(1);
                    message::announcement(&self.local)
                }
            };
            self.send(frame);
        }
        self.wake_at(self.own.timer());
    }

    fn wake_at(&mut self, timer: Option<Instant>) {
        self.next_timeout = match (self.next_timeout, timer) {
            (Some(next), Some(timer)) => Some(next.min(timer)),
            (next, timer) => next.or(timer),
        };
    }

    fn send(&mut self, frame: Vec<u8>) {
        if self.frames.len() < MAX_QUEUED {
            self.frames.push_back(frame);
        } else {
            self.counters.tx_dropped_queue_full.add(1);
        }
    }

    fn event(&mut self, event: NeighborEvent) {
        if self.events.len() < MAX_QUEUED {
            self.events.push_back(event);
        } else {
            self.counters.events_dropped.add(1);
        }
    }
}
