//! The links to one peer: what was received on each, what it is worth, which carry frames.
//!
//! Holds the parts of [`crate::link`] together; [`crate::vtep`] gives them time and acts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::crypto::aead::Suite;
use crate::forward::policy::{Policy, Ways};
use crate::forward::protect::Protect;
use crate::link::choice::{Candidate, Choice, Order};
use crate::link::estimate::Estimate;
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use crate::link::liveness::{Cause, Liveness, State as LinkState, Transition};
use crate::link::pmtu::{Limits, PathMtu, State};
use crate::link::profile::{Profile, missed_for};
use crate::stats::LinkMeter;
use crate::tables::{Arrival, Clock, LinkEntry, canonical, same};
use crate::vtep::config::{LinkConfig, PeerConfig, Remote};
use crate::wire::header::{CLEAR_OVERHEAD, SEALED_OVERHEAD};
use crate::wire::heartbeat::{Heartbeat, LinkReport};

/// Smallest IP MTU of an underlay, in bytes (RFC 8200 section 5).
pub(crate) const MIN_UNDERLAY_MTU: usize = 1280;
/// Traffic this young makes a peer busy.
const BUSY: Duration = Duration::from_secs(1);
/// Without traffic for this long its heartbeats rest.
const REST_AFTER: Duration = Duration::from_secs(60);
/// A link that came or went this lately is watched at least at the usual pace.
const SETTLING: Duration = Duration::from_secs(10);
/// What a stalled thread at either end may add to the time until a failure is acted on.
const STALL_ALLOWANCE: Duration = Duration::from_millis(15);
/// The shortest time that datagrams are kept to be sent again.
const MIN_WINDOW: Duration = Duration::from_millis(25);
/// A link whose attachment is down is tried this often only: its signal may be wrong.
const TRY_BAD: Duration = Duration::from_millis(100);
/// The longest: what was sealed earlier the peer may not be able to open any more (rule E5).
const MAX_WINDOW: Duration = Duration::from_millis(2_500);
/// How long a challenge waits for its response.
const CHALLENGE_LIFE: Duration = Duration::from_secs(1);

/// A question to an address that a dynamic link was heard from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Challenge {
    pub(crate) token: u64,
    pub(crate) to: SocketAddr,
    pub(crate) at: Instant,
}

impl Challenge {
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= CHALLENGE_LIFE
    }
}

/// One link.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) config: LinkConfig,
    /// Where it leads at the moment.
    pub(crate) remote: Option<SocketAddr>,
    /// Taken out of use by command.
    pub(crate) drained: bool,
    /// The same at the other end.
    pub(crate) drained_there: bool,
    /// Largest UDP payload by command.
    pub(crate) manual: Option<usize>,
    pub(crate) pmtu: PathMtu,
    pub(crate) estimate: Estimate,
    pub(crate) challenge: Option<Challenge>,
    /// Highest round received, the peer's clock in it, and when it came.
    highest: u32,
    echo_us: u32,
    heard: Option<Instant>,
    rounds: u32,
    /// Datagrams received before this session.
    datagrams_before: u64,
    large_seen: u64,
    /// When anything came, as the workers last said.
    heard_us: u64,
    /// When it was last tried although its attachment is down.
    tried_bad: Option<Instant>,
    last_echo: u32,
}

impl Path {
    fn new(now: Instant, base: Instant, index: usize, config: LinkConfig) -> Self {
        let remote = match &config.remote {
            Remote::Static(remote) => Some(*remote),
            Remote::Dynamic(_) => None,
        };
        let smallest = MIN_UNDERLAY_MTU - config.ip_overhead;
        let limits = Limits { base: smallest, ceiling: config.max_udp_payload };
        // An answer may come by another link: it must not be taken for that one's.
        let prefix = u8::try_from(index).unwrap_or(0);
        let mut pmtu = PathMtu::new(now, limits, config.ip_overhead).with_id_prefix(prefix);
        pmtu.set_manual(now, config.fixed_udp_payload);
        pmtu.set_enabled(now, false);
        Self {
            remote,
            drained: false,
            drained_there: false,
            manual: None,
            pmtu,
            estimate: Estimate::new(base),
            challenge: None,
            highest: 0,
            echo_us: 0,
            heard: None,
            rounds: 0,
            datagrams_before: 0,
            large_seen: 0,
            heard_us: 0,
            tried_bad: None,
            last_echo: 0,
            config,
        }
    }

    /// Takes another configuration over; a change of address begins anew.
    /// Takes other settings of the same link over.
    fn reconfigure(&mut self, now: Instant, config: LinkConfig) {
        if config.max_udp_payload != self.config.max_udp_payload {
            self.pmtu.on_local_limit(now, config.max_udp_payload);
        }
        if config.fixed_udp_payload != self.config.fixed_udp_payload && self.manual.is_none() {
            self.pmtu.set_manual(now, config.fixed_udp_payload);
        }
        self.config = config;
    }

    /// Whether it leads the same way.
    fn is_same(&self, config: &LinkConfig) -> bool {
        let own = &self.config;
        own.uplink == config.uplink && own.remote == config.remote && own.tag == config.tag
    }

    /// Whether somebody took the link out of use, at either end.
    pub(crate) fn is_drained(&self) -> bool {
        self.drained || self.drained_there
    }

    /// Smallest UDP payload that every supported path takes.
    pub(crate) fn base(&self) -> usize {
        MIN_UNDERLAY_MTU - self.config.ip_overhead
    }

    /// Notes a round. Their numbers wrap.
    pub(crate) fn note_round(&mut self, at: Instant, round: u32, sent_us: u32) {
        self.rounds = self.rounds.wrapping_add(1);
        let newer = round.wrapping_sub(self.highest) as i32 > 0;
        if self.heard.is_none() || newer {
            (self.highest, self.echo_us, self.heard) = (round, sent_us, Some(at));
        }
    }

    /// Whether this echo was not measured yet: it comes again with every round of a faster peer.
    pub(crate) fn is_new_echo(&mut self, echo_us: u32) -> bool {
        echo_us != 0 && std::mem::replace(&mut self.last_echo, echo_us) != echo_us
    }

    fn report(&self, now: Instant, datagrams: u64) -> LinkReport {
        let delay = self.heard.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        LinkReport {
            tag: self.config.tag,
            highest: self.highest,
            echo_us: self.echo_us,
            echo_delay_us: u32::try_from(delay.as_micros()).unwrap_or(u32::MAX),
            rounds: self.rounds,
            datagrams: datagrams.wrapping_sub(self.datagrams_before) as u32,
        }
    }
}

/// How closely a peer's links are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Frames go there.
    Fast,
    /// None for a moment.
    Normal,
    /// None for long.
    Idle,
    /// There is nothing to compare a single link with.
    Sole,
}

/// All links of a peer.
#[derive(Debug)]
pub(crate) struct Paths {
    pub(crate) list: Vec<Path>,
    pub(crate) profile: Profile,
    pub(crate) liveness: Liveness,
    pub(crate) choice: Choice,
    pub(crate) order: Order,
    pub(crate) round: u32,
    /// When the next look at the links was meant to be.
    pub(crate) due: Instant,
    pub(crate) pace: Pace,
    /// Factor of intervals, in thousandths, that keeps all heartbeats within their budget.
    pub(crate) stretch_milli: u64,
    /// What the peer says its interval is.
    pub(crate) peer_interval: Duration,
    /// The newest round that the peer's own settings were taken from.
    told_round: Option<u32>,
    traffic_at: Option<Instant>,
    traffic_seen: u64,
    changed_at: Instant,
    /// What the estimates of all links count their time from.
    base: Instant,
    /// Links that carry no frames because they failed.
    pub(crate) dead: LinkSet,
    /// By link: failures that workers are to make good.
    pub(crate) failures: [u32; MAX_LINKS],
    /// The window that the workers were told.
    pub(crate) window_told: Duration,
    pub(crate) meters: Arc<[LinkMeter]>,
    pub(crate) resting: Arc<AtomicBool>,
}

impl Paths {
    pub(crate) fn new(now: Instant, config: &PeerConfig, workers: usize) -> Self {
        let links = config.links.iter().take(MAX_LINKS).enumerate();
        let list: Vec<_> = links.map(|(at, link)| Path::new(now, now, at, link.clone())).collect();
        let mut paths = Self {
            profile: config.profile,
            liveness: Liveness::new(now, config.profile, list.len()),
            choice: Choice::new(config.profile),
            order: Order::default(),
            list,
            round: 0,
            due: now,
            pace: Pace::Normal,
            stretch_milli: 1000,
            peer_interval: Duration::ZERO,
            told_round: None,
            traffic_at: None,
            traffic_seen: 0,
            changed_at: now,
            base: now,
            dead: LinkSet::EMPTY,
            failures: [0; MAX_LINKS],
            window_told: Duration::ZERO,
            meters: (0..(workers + 1) * MAX_LINKS).map(|_| LinkMeter::default()).collect(),
            resting: Arc::default(),
        };
        paths.choose(now);
        paths
    }

    pub(crate) fn reconfigure(&mut self, now: Instant, config: &PeerConfig) {
        self.profile = config.profile;
        self.liveness.set_profile(config.profile);
        self.choice.set_profile(config.profile);
        let links: Vec<_> = config.links.iter().take(MAX_LINKS).collect();
        let kept = self.list.len() == links.len()
            && self.list.iter().zip(&links).all(|(path, link)| path.is_same(link));
        if kept {
            for (path, link) in self.list.iter_mut().zip(links) {
                path.reconfigure(now, link.clone());
            }
            self.choose(now);
            return;
        }
        // What is known of a link by its place does not hold for another one in that place: all
        // begin anew, which a link that is alive does with the next datagram.
        let drained =
            |config: &LinkConfig| self.list.iter().any(|path| path.is_same(config) && path.drained);
        let mut list = Vec::new();
        for (at, link) in links.into_iter().enumerate() {
            let drained = drained(link);
            list.push(Path { drained, ..Path::new(now, self.base, at, link.clone()) });
        }
        self.list = list;
        self.liveness = Liveness::new(now, self.profile, self.list.len());
        for link in self.indices() {
            let drained = self.get(link).is_some_and(Path::is_drained);
            self.liveness.set_drained(link, drained);
        }
        self.choice.reset();
        for (link, before) in
            self.indices().map(|link| (link, self.received(link))).collect::<Vec<_>>()
        {
            if let Some(path) = self.get_mut(link) {
                path.datagrams_before = before;
            }
        }
        self.note_change(now);
        self.choose(now);
    }

    pub(crate) fn indices(&self) -> impl DoubleEndedIterator<Item = LinkIndex> + Clone + use<> {
        LinkIndex::all(self.list.len())
    }

    pub(crate) fn get(&self, link: LinkIndex) -> Option<&Path> {
        self.list.get(link.at())
    }

    pub(crate) fn get_mut(&mut self, link: LinkIndex) -> Option<&mut Path> {
        self.list.get_mut(link.at())
    }

    /// Which link something came by; see [`crate::tables::PeerEntry::arrival`].
    pub(crate) fn arrival(
        &self,
        uplink: crate::wire::buf::UplinkId,
        from: SocketAddr,
    ) -> Option<Arrival> {
        let mut elsewhere = None;
        for (index, path) in self.indices().zip(&self.list) {
            if path.config.uplink != uplink {
                continue;
            }
            match (&path.config.remote, path.remote) {
                (Remote::Static(remote), _) if canonical(*remote) == canonical(from) => {
                    return Some(Arrival::Known(index));
                }
                (Remote::Dynamic(_), Some(remote)) if same(remote, from) => {
                    return Some(Arrival::Known(index));
                }
                (Remote::Dynamic(filter), _)
                    if elsewhere.is_none() && filter.admits(canonical(from)) =>
                {
                    elsewhere = Some(Arrival::Elsewhere(index));
                }
                _ => {}
            }
        }
        elsewhere
    }

    /// The session is over, or the peer is another process: nothing of before counts.
    pub(crate) fn reset(&mut self, now: Instant, cause: Cause) -> Vec<(LinkIndex, Transition)> {
        let transitions = self.liveness.reset(now, cause);
        self.choice.reset();
        self.peer_interval = Duration::ZERO;
        self.told_round = None;
        let totals: Vec<_> = self.indices().map(|link| self.received(link)).collect();
        for (path, total) in self.list.iter_mut().zip(totals) {
            (path.highest, path.echo_us, path.heard, path.rounds) = (0, 0, None, 0);
            path.datagrams_before = total;
            path.estimate.reset();
            path.pmtu.set_enabled(now, false);
        }
        self.choose(now);
        transitions
    }

    /// What one thread notes of one link; the control thread comes after the workers.
    pub(crate) fn meter(&self, thread: usize, link: LinkIndex) -> Option<&LinkMeter> {
        self.meters.get(thread * MAX_LINKS + link.at())
    }

    fn meters_of(&self, link: LinkIndex) -> impl Iterator<Item = &LinkMeter> {
        self.meters.iter().skip(link.at()).step_by(MAX_LINKS)
    }

    /// Authentic datagrams received on a link.
    pub(crate) fn received(&self, link: LinkIndex) -> u64 {
        self.meters_of(link).map(|meter| meter.rx_datagrams.get()).sum()
    }

    /// Sums over all threads of a link's counters.
    pub(crate) fn sum(&self, link: LinkIndex, of: impl Fn(&LinkMeter) -> u64) -> u64 {
        self.meters_of(link).map(of).sum()
    }

    /// Takes over what the workers noted.
    pub(crate) fn read_meters(&mut self, now: Instant, clock: Clock, frames: u64) {
        for link in self.indices() {
            let heard = self.meters_of(link).map(|m| m.heard_us.load(Ordering::Relaxed)).max();
            if let (Some(us), Some(path)) = (heard, self.list.get_mut(link.at()))
                && std::mem::replace(&mut path.heard_us, us) != us
            {
                self.liveness.on_heard(clock.at_us(us), link);
            }
            let large = self.sum(link, |meter| meter.tx_large.get());
            if let Some(path) = self.list.get_mut(link.at())
                && std::mem::replace(&mut path.large_seen, large) != large
            {
                path.pmtu.on_large_sent(now);
            }
        }
        if std::mem::replace(&mut self.traffic_seen, frames) != frames {
            self.traffic_at = Some(now);
        }
    }

    /// Frames go there: said by a worker, ahead of the counters.
    pub(crate) fn note_traffic(&mut self, now: Instant) {
        self.traffic_at = Some(now);
    }

    pub(crate) fn note_change(&mut self, now: Instant) {
        self.changed_at = now;
    }

    /// Decides how closely the links are watched.
    pub(crate) fn set_pace(&mut self, now: Instant) {
        let quiet = self.traffic_at.map(|at| now.saturating_duration_since(at));
        let settling = now.saturating_duration_since(self.changed_at) < SETTLING;
        self.pace = match quiet {
            _ if self.list.len() < 2 => Pace::Sole,
            Some(quiet) if quiet < BUSY => Pace::Fast,
            Some(quiet) if quiet < REST_AFTER => Pace::Normal,
            _ if settling => Pace::Normal,
            _ => Pace::Idle,
        };
        self.resting.store(self.pace == Pace::Idle, Ordering::Relaxed);
    }

    /// Interval that the pace asks for.
    pub(crate) fn wanted_interval(&self) -> Duration {
        match self.pace {
            Pace::Fast => self.profile.fast,
            Pace::Normal => self.profile.normal,
            Pace::Idle => self.profile.idle,
            Pace::Sole => self.profile.sole,
        }
    }

    /// The same as this node says it, as the budget allows.
    pub(crate) fn announced_interval(&self) -> Duration {
        self.stretched(self.wanted_interval())
    }

    /// Interval that the paces of both ends ask for: as often as the peer, where that is oftener.
    pub(crate) fn common_interval(&self) -> Duration {
        let own = self.wanted_interval();
        if self.peer_interval.is_zero() || self.list.len() < 2 {
            return own;
        }
        own.min(self.peer_interval.max(self.profile.fast))
    }

    /// Time between rounds: a peer in a hurry takes no more of the budget than others do.
    pub(crate) fn interval(&self) -> Duration {
        self.stretched(self.common_interval())
    }

    fn stretched(&self, wanted: Duration) -> Duration {
        let stretched = wanted.as_micros() as u64 * self.stretch_milli / 1000;
        Duration::from_micros(stretched).min(self.profile.idle.max(wanted))
    }

    /// Whether a round goes out on a link.
    pub(crate) fn is_worth_a_try(&mut self, now: Instant, link: LinkIndex) -> bool {
        if !self.liveness.is_bad(link) {
            return true;
        }
        let Some(path) = self.list.get_mut(link.at()) else { return false };
        let recent = path.tried_bad.is_some_and(|at| now.saturating_duration_since(at) < TRY_BAD);
        if !recent {
            path.tried_bad = Some(now);
        }
        !recent
    }

    pub(crate) fn report(&self, now: Instant, link: LinkIndex) -> LinkReport {
        let datagrams = self.received(link);
        self.get(link).map_or_else(LinkReport::default, |path| path.report(now, datagrams))
    }

    /// Links that somebody took out of use here.
    pub(crate) fn drained_here(&self) -> LinkSet {
        self.indices().filter(|link| self.get(*link).is_some_and(|path| path.drained)).collect()
    }

    /// Whether a heartbeat is no older than all before it: one by a slow link may be out of date.
    pub(crate) fn is_up_to_date(&mut self, round: u32) -> bool {
        let newest = self.told_round.is_none_or(|told| round.wrapping_sub(told) as i32 >= 0);
        if newest {
            self.told_round = Some(round);
        }
        newest
    }

    /// Our link of each report of the peer, which may number its links otherwise.
    pub(crate) fn mapping(&self, heartbeat: &Heartbeat) -> [Option<LinkIndex>; MAX_LINKS] {
        let mut own = [None; MAX_LINKS];
        for (place, report) in own.iter_mut().zip(heartbeat.reports()) {
            let same = |(_, path): &(LinkIndex, &Path)| path.config.tag == report.tag;
            *place = self.indices().zip(&self.list).find(same).map(|(link, _)| link);
        }
        own
    }

    /// Links that may be sent by: a dynamic one only once it was heard.
    fn reachable(&self) -> LinkSet {
        self.indices().filter(|link| self.get(*link).is_some_and(|p| p.remote.is_some())).collect()
    }

    /// Links to begin a handshake on.
    pub(crate) fn addresses(&self) -> Vec<LinkIndex> {
        self.reachable().iter().collect()
    }

    /// Chooses anew which links carry frames; says whether that changed. A link that is left may be
    /// up all the same: the only one that is, and not heard by the peer.
    pub(crate) fn choose(&mut self, now: Instant) -> bool {
        let sendable = self.liveness.sendable();
        let dead = self.indices().collect::<LinkSet>().minus(sendable);
        for link in dead.minus(self.dead).iter() {
            if let Some(count) = self.failures.get_mut(link.at()) {
                *count = count.wrapping_add(1);
            }
        }
        self.dead = dead;
        let reachable = self.reachable();
        let candidates: Vec<_> = self
            .indices()
            .zip(&self.list)
            .map(|(link, path)| Candidate {
                state: self.liveness.state(link),
                sendable: sendable.contains(link) && reachable.contains(link),
                heard_by_peer: self.liveness.heard_by_peer(link),
                drained: path.is_drained(),
                priority: path.config.priority,
                weight: path.config.weight,
                loss: path.estimate.loss_in().max(path.estimate.loss_out()),
                srtt: path.estimate.srtt(),
            })
            .collect();
        let mut order = self.choice.update(now, &candidates);
        order.best.retain(|link| reachable.contains(*link));
        // A copy on a link that is only suspect costs little and may be the one that arrives.
        let suspect = |link: &LinkIndex| {
            self.liveness.state(*link) == LinkState::Suspect && !self.liveness.is_bad(*link)
        };
        let drained = |link: &LinkIndex| self.get(*link).is_some_and(Path::is_drained);
        let suspects: LinkSet = self.indices().filter(suspect).filter(|l| !drained(l)).collect();
        let live = order.live.union(suspects);
        order.live = live.iter().filter(|link| reachable.contains(*link)).collect();
        let same = order.best == self.order.best
            && order.live == self.order.live
            && order.fade.map(|(link, _)| link) == self.order.fade.map(|(link, _)| link);
        self.order = order;
        !same
    }

    pub(crate) fn ways(&self) -> Ways {
        let weight = |link: LinkIndex| self.get(link).map_or(1, |path| path.config.weight);
        Ways {
            order: self.order.best.iter().map(|link| (*link, weight(*link))).collect(),
            live: self.order.live,
            fade: self.order.fade.map(|(link, _)| link),
        }
    }

    /// Last round-trip time of the best link.
    pub(crate) fn last_rtt(&self) -> Option<Duration> {
        let path = self.get(*self.order.best.first()?)?;
        let us = path.estimate.snapshot().rtt_last_us;
        (us > 0).then(|| Duration::from_micros(us.into()))
    }

    /// Why a link is in its state.
    pub(crate) fn cause(&self, link: LinkIndex) -> Cause {
        if self.liveness.state(link) != LinkState::Up && self.path_usable(link) == Some(false) {
            return Cause::PathTooSmall;
        }
        self.liveness.cause(link)
    }

    /// Whether a link carries frames or may have to: also one that is down, if there is no better.
    fn is_in_use(&self, link: LinkIndex) -> bool {
        self.liveness.state(link) != LinkState::Down
            || self.order.best.contains(&link)
            || self.order.live.contains(link)
    }

    /// Largest UDP payload that all links take which may have to carry it (rule F7).
    pub(crate) fn max_udp_payload(&self) -> usize {
        let size = |link: LinkIndex| self.get(link).map(|path| path.pmtu.size());
        let smallest = self.indices().filter(|l| self.is_in_use(*l)).filter_map(size).min();
        let any = || self.indices().filter_map(size).min();
        smallest.or_else(any).unwrap_or(MIN_UNDERLAY_MTU - 48)
    }

    /// The same, where links that are still being measured are taken for as good as they can be: what
    /// senders are told lasts longer than the measurement.
    pub(crate) fn expected_udp_payload(&self) -> usize {
        let size = |link: LinkIndex| {
            let path = self.get(link)?;
            Some(path.pmtu.settled_size().unwrap_or(path.config.max_udp_payload))
        };
        let smallest = self.indices().filter(|l| self.is_in_use(*l)).filter_map(size).min();
        smallest.unwrap_or_else(|| self.max_udp_payload())
    }

    /// Largest frame that fits a datagram on every link in use, once all are measured.
    pub(crate) fn settled_frame_len(&self, suite: Suite) -> Option<usize> {
        let overhead = if suite == Suite::Clear { CLEAR_OVERHEAD } else { SEALED_OVERHEAD };
        let sizes = self
            .indices()
            .filter(|l| self.is_in_use(*l))
            .map(|link| self.get(link)?.pmtu.settled_size());
        let smallest = sizes.collect::<Option<Vec<_>>>()?.into_iter().min()?;
        Some(smallest.saturating_sub(overhead))
    }

    /// How long what was sent is kept: as long as it can take to notice that a link failed.
    pub(crate) fn window(&self) -> Duration {
        let interval = self.interval();
        let one = |path: &Path| {
            let loss = path.estimate.loss_in().max(path.estimate.loss_out());
            let rounds = missed_for(loss, interval, &self.profile) + 3;
            let grace = self.profile.min_grace.max(path.estimate.jitter() * 4);
            interval * rounds + grace * 2 + path.estimate.srtt()
        };
        let longest = self.list.iter().map(one).max().unwrap_or_default();
        (longest + STALL_ALLOWANCE).clamp(MIN_WINDOW, MAX_WINDOW)
    }

    pub(crate) fn entries(&self) -> Vec<LinkEntry> {
        let entry = |path: &Path| LinkEntry {
            uplink: path.config.uplink,
            remote: path.remote,
            roams: match &path.config.remote {
                Remote::Static(_) => None,
                Remote::Dynamic(filter) => Some(filter.clone()),
            },
            max_udp_payload: path.pmtu.size(),
            base_udp_payload: path.base(),
            rtt: (path.estimate.srtt(), path.estimate.jitter()),
        };
        self.list.iter().map(entry).collect()
    }

    /// Whether path-MTU probes on a link say something: it is heard, and hears.
    pub(crate) fn may_probe(&self, now: Instant, link: LinkIndex) -> bool {
        let Some(path) = self.get(link) else { return false };
        let patience = (self.peer_interval * 4).max(Duration::from_millis(100));
        let recent = path.heard.is_some_and(|at| now.saturating_duration_since(at) < patience);
        path.remote.is_some() && recent && self.liveness.heard_by_peer(link)
    }

    /// Whether a link may carry frames as far as its path MTU goes: none while unknown.
    pub(crate) fn path_usable(&self, link: LinkIndex) -> Option<bool> {
        let path = self.get(link)?;
        match path.pmtu.base_ok() {
            Some(true) if path.pmtu.state() == State::Settled => Some(true),
            Some(false) => Some(false),
            _ => None,
        }
    }
}

/// Whether a datagram must fit all links of a peer (rule F7).
pub(crate) fn fits_all(policy: Policy, protect: Protect) -> bool {
    protect != Protect::Off || matches!(policy, Policy::Active { .. })
}
