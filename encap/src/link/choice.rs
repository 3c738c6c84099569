//! Which links to a peer carry frames, and when frames move from one to another.
//!
//! Away from a link that fails at once; back to it, or to a better one, only after it has been
//! good for a while, and then without a gap: the old link gets copies until what it carries has
//! arrived (make before break).
//!
//! Next: `forward::policy`, which picks among these links for each frame.

use std::time::{Duration, Instant};

use super::id::{LinkIndex, LinkSet, MAX_LINKS};
use super::liveness::State;
use super::profile::Profile;

#[cfg(test)]
mod tests;

/// Loss counts only if it differs by this much: a percentage point.
const LOSS_STEP: f64 = 0.01;
/// A round trip counts only if it is less than half, and shorter by this much.
const RTT_STEP: Duration = Duration::from_millis(1);
/// How fast a link that flapped is forgiven: each time, its hold halves.
const FORGIVE: Duration = Duration::from_secs(60);
/// Least time for which the old link gets copies.
const FADE: Duration = Duration::from_millis(5);
/// Most time.
const LONGEST_FADE: Duration = Duration::from_secs(5);

/// What is known of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its state.
    pub state: State,
    /// It is in [`super::liveness::Liveness::sendable`].
    pub sendable: bool,
    /// The peer hears us on it.
    pub heard_by_peer: bool,
    /// Out of service by order.
    pub drained: bool,
    /// Higher is better.
    pub priority: u8,
    /// Its share, for policies that spread frames.
    pub weight: u16,
    /// Part of the datagrams that are lost, 0 to 1: the larger of both ways.
    pub loss: f64,
    /// Smoothed round-trip time; zero if not known.
    pub srtt: Duration,
}

/// Why frames moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveCause {
    /// The link failed.
    FailOver,
    /// The link that frames had left, by failure or by order, has been good for long enough.
    FailBack,
    /// Another link has been better for long enough.
    Preferred,
    /// The link was taken out of service.
    Drain,
}

/// The best link changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The best link before.
    pub from: LinkIndex,
    /// The best link now.
    pub to: LinkIndex,
    /// Why.
    pub cause: MoveCause,
}

/// Which links carry frames.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// Links that may carry frames, best first; never empty if there is a link.
    pub best: Vec<LinkIndex>,
    /// All links that are up and in service, and the best one in any case: for policies that send
    /// on all of them.
    pub live: LinkSet,
    /// A link that frames moved away from by plan: it gets copies until then.
    pub fade: Option<(LinkIndex, Instant)>,
    /// The best link changed by this update.
    pub moved: Option<Moved>,
}

/// What is remembered of a link.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    /// It was up at the last update.
    up: bool,
    /// It was up in this session.
    was_up: bool,
    /// Up since then, and in need of a hold before it carries frames again.
    held_from: Option<Instant>,
    /// Better than the best one since then, without a break.
    better_from: Option<Instant>,
    /// It has just come up for the first time, at the start of the session: nothing to wait for.
    fresh: bool,
    /// Times that it left the state up, halved as it is forgiven.
    flaps: u32,
    /// When it is forgiven one.
    forgive_at: Option<Instant>,
    /// Frames left it by failure or by order, not because another was better.
    owed: bool,
}

/// The choice among the links to one peer.
#[derive(Debug, Clone)]
pub struct Choice {
    profile: Profile,
    links: [Memory; MAX_LINKS],
    first: Option<LinkIndex>,
    /// When the first link of the session came up.
    started: Option<Instant>,
    fade: Option<(LinkIndex, Instant)>,
    /// What the last update was given and gave, to save work.
    given: Vec<Candidate>,
    order: Order,
    timeout: Option<Instant>,
}

impl Choice {
    /// Nothing is chosen yet.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            links: [Memory::default(); MAX_LINKS],
            first: None,
            started: None,
            fade: None,
            given: Vec::new(),
            order: Order::default(),
            timeout: None,
        }
    }

    /// The session is over: the links of the next one need no hold. How often they flapped is
    /// remembered.
    pub fn reset(&mut self) {
        for link in &mut self.links {
            *link = Memory { flaps: link.flaps, forgive_at: link.forgive_at, ..Memory::default() };
        }
        (self.first, self.started, self.fade, self.timeout) = (None, None, None, None);
        self.given.clear();
        self.order = Order::default();
    }

    /// Other holds from now on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
        self.given.clear();
    }

    /// When to call [`Self::update`] at the latest, although nothing changed.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
    }

    /// The links as they are now, in order of their index. To be called when a state, an estimate
    /// or an order changed, and as [`Self::poll_timeout`] says; cheap when nothing did.
    pub fn update(&mut self, now: Instant, links: &[Candidate]) -> Order {
        let links = links.get(..MAX_LINKS).unwrap_or(links);
        if links == self.given && self.timeout.is_none_or(|due| now < due) {
            return self.order.clone();
        }
        self.given.clear();
        self.given.extend_from_slice(links);
        self.note_states(now);
        let usable = self.usable();
        let eligible = self.eligible(now, usable);
        let moved = self.choose_first(now, usable, eligible);
        if let Some(moved) = moved {
            self.move_frames(now, moved, usable);
        }
        self.fade = self.fade.filter(|(link, _)| self.first != Some(*link));
        for memory in &mut self.links {
            memory.fresh = false;
        }
        self.order = self.order_of(eligible);
        if self.started.is_none() {
            // Nothing was up yet: a guess to talk to the peer by, which nothing moves away from.
            self.first = None;
        }
        self.timeout = self.next_timeout(now, usable);
        Order { moved, ..self.order.clone() }
    }

    /// Ups and downs since the last update.
    fn note_states(&mut self, now: Instant) {
        let profile = self.profile;
        let started = &mut self.started;
        for (index, memory) in self.links.iter_mut().enumerate() {
            let Some(link) = self.given.get(index) else {
                *memory = Memory::default();
                continue;
            };
            memory.forgive(now);
            let up = link.state == State::Up;
            if up && !memory.up {
                let started = *started.get_or_insert(now);
                memory.fresh =
                    !memory.was_up && now.saturating_duration_since(started) <= profile.hold;
                memory.held_from = (!memory.fresh).then_some(now);
                memory.was_up = true;
            } else if !up && memory.up {
                (memory.held_from, memory.better_from) = (None, None);
                memory.flapped(now, &profile);
            }
            memory.up = up;
        }
        if self.first.is_some_and(|first| first.at() >= self.given.len()) {
            self.first = None;
        }
        let given = &self.given;
        self.fade = self.fade.filter(|(link, until)| {
            now < *until && given.get(link.at()).is_some_and(|link| link.sendable)
        });
    }

    /// Links that frames may be sent on: those in service, if there is any.
    fn usable(&self) -> LinkSet {
        let in_service = self.select(|link| link.sendable && !link.drained);
        let sendable = self.select(|link| link.sendable);
        [in_service, sendable]
            .into_iter()
            .find(|set| !set.is_empty())
            .unwrap_or_else(|| self.select(|_| true))
    }

    /// The usable links without those that are held, as long as another one is up.
    fn eligible(&mut self, now: Instant, usable: LinkSet) -> LinkSet {
        let profile = self.profile;
        let mut held = LinkSet::EMPTY;
        for index in usable.iter() {
            let Some(memory) = self.links.get_mut(index.at()) else { continue };
            let until = memory.held_from.map(|from| from + memory.hold(&profile));
            if until.is_some_and(|until| now < until) && self.first != Some(index) {
                held.set(index, true);
            } else {
                memory.held_from = None;
            }
        }
        let rest = usable.minus(held);
        let up = self.select(|link| link.state == State::Up);
        if !rest.minus(rest.minus(up)).is_empty() {
            return rest;
        }
        // They are needed: now they have proved themselves, or nothing has.
        for index in held.iter() {
            if let Some(memory) = self.links.get_mut(index.at()) {
                memory.held_from = None;
            }
        }
        usable
    }

    /// Sees to it that the best link is one that can be it, or a better one whose time has come.
    fn choose_first(&mut self, now: Instant, usable: LinkSet, eligible: LinkSet) -> Option<Moved> {
        let Some(first) = self.first else {
            self.first = self.best_of(eligible);
            return None;
        };
        if !usable.contains(first) {
            let drained = self.given.get(first.at()).is_some_and(|link| link.sendable);
            let cause = if drained { MoveCause::Drain } else { MoveCause::FailOver };
            return self.best_of(eligible).map(|to| Moved { from: first, to, cause });
        }
        self.note_better(now, first, usable);
        let ready = |link: &LinkIndex| {
            self.links.get(link.at()).is_some_and(|memory| {
                let wait = if memory.fresh { Duration::ZERO } else { memory.hold(&self.profile) };
                memory.better_from.is_some_and(|from| now >= from + wait)
            })
        };
        let to = self.best_of(eligible.iter().filter(ready).collect())?;
        let owed = self.links.get(to.at()).is_some_and(|memory| memory.owed);
        let cause = if owed { MoveCause::FailBack } else { MoveCause::Preferred };
        Some(Moved { from: first, to, cause })
    }

    /// Since when each usable link is better than the best one.
    fn note_better(&mut self, now: Instant, first: LinkIndex, usable: LinkSet) {
        for index in LinkIndex::all(MAX_LINKS) {
            let better = index != first && usable.contains(index) && self.beats(index, first);
            if let Some(memory) = self.links.get_mut(index.at()) {
                memory.better_from = better.then(|| memory.better_from.unwrap_or(now));
            }
        }
    }

    fn move_frames(&mut self, now: Instant, moved: Moved, usable: LinkSet) {
        let Moved { from, to, cause } = moved;
        self.first = Some(to);
        let planned = cause != MoveCause::FailOver;
        let srtt = |link: LinkIndex| self.given.get(link.at()).map_or(FADE, |link| link.srtt);
        // What the one way takes longer than the other is at most what the round trips differ by.
        let fade = srtt(from).saturating_mul(2).saturating_add(srtt(from).abs_diff(srtt(to)));
        self.fade = planned.then(|| (from, now + fade.clamp(FADE, LONGEST_FADE)));
        if let Some(memory) = self.links.get_mut(from.at()) {
            memory.owed = matches!(cause, MoveCause::FailOver | MoveCause::Drain);
        }
        if let Some(memory) = self.links.get_mut(to.at()) {
            (memory.owed, memory.held_from) = (false, None);
        }
        if planned {
            // Each must now be better than the new one for long enough: three links of which each
            // is better than the next do not make frames run in a circle.
            self.links.iter_mut().for_each(|memory| memory.better_from = None);
        }
        self.note_better(now, to, usable);
    }

    fn order_of(&self, eligible: LinkSet) -> Order {
        let mut rest = eligible;
        let mut best = Vec::with_capacity(MAX_LINKS);
        let mut live = self.select(|link| link.state == State::Up && !link.drained);
        let mut next = self.first;
        while let Some(link) = next {
            best.push(link);
            rest.set(link, false);
            next = self.best_of(rest);
        }
        if let Some(first) = self.first {
            live.set(first, true);
        }
        Order { best, live, fade: self.fade, moved: None }
    }

    fn next_timeout(&self, now: Instant, usable: LinkSet) -> Option<Instant> {
        let waiting = usable.iter().filter_map(|index| self.links.get(index.at()));
        let waiting = waiting.flat_map(|memory| {
            let hold = memory.hold(&self.profile);
            let ends = [memory.held_from, memory.better_from].map(|from| from.map(|at| at + hold));
            let waits = ends.iter().any(Option::is_some);
            ends.into_iter().chain([memory.forgive_at.filter(|_| waits)]).flatten()
        });
        // What is over already had its say in this update.
        waiting.chain(self.fade.map(|(_, until)| until)).filter(|at| *at > now).min()
    }

    fn select(&self, wanted: impl Fn(&Candidate) -> bool) -> LinkSet {
        let links = LinkIndex::all(MAX_LINKS).zip(&self.given);
        links.filter(|(_, link)| wanted(link)).map(|(index, _)| index).collect()
    }

    /// The one that none before it beats. Steps in loss and time make the relation no total order,
    /// so this does not sort.
    fn best_of(&self, links: LinkSet) -> Option<LinkIndex> {
        links.iter().reduce(|best, link| if self.beats(link, best) { link } else { best })
    }

    /// Priority, then loss, then round-trip time, then index; before all, whether it works at all.
    fn beats(&self, a: LinkIndex, b: LinkIndex) -> bool {
        let (Some(left), Some(right)) = (self.given.get(a.at()), self.given.get(b.at())) else {
            return false;
        };
        let rank = |link: &Candidate| (link.state == State::Up, link.heard_by_peer, link.priority);
        if rank(left) != rank(right) {
            return rank(left) > rank(right);
        }
        let (lost, other) = (left.loss, right.loss);
        if (lost - other).abs() >= LOSS_STEP {
            return lost < other;
        }
        if is_faster(left.srtt, right.srtt) || is_faster(right.srtt, left.srtt) {
            return is_faster(left.srtt, right.srtt);
        }
        a < b
    }
}

impl Memory {
    /// How long it must be good before frames come back: doubled by every flap but the first.
    fn hold(&self, profile: &Profile) -> Duration {
        let factor = 1_u32.checked_shl(self.flaps.saturating_sub(1)).unwrap_or(u32::MAX);
        let most = profile.max_hold.max(profile.hold);
        profile.hold.checked_mul(factor).unwrap_or(most).min(most)
    }

    fn flapped(&mut self, now: Instant, profile: &Profile) {
        // No more than what makes the longest hold, so that the next halving shows.
        if self.flaps < 16 && self.hold(profile) < profile.max_hold {
            self.flaps += 1;
        }
        self.forgive_at = Some(now + FORGIVE);
    }

    fn forgive(&mut self, now: Instant) {
        while let Some(at) = self.forgive_at.filter(|at| *at <= now) {
            self.flaps = self.flaps.saturating_sub(1);
            self.forgive_at = (self.flaps > 0).then(|| at + FORGIVE);
        }
    }
}

/// Whether a round trip is so much shorter that it counts. Zero is unknown.
fn is_faster(a: Duration, b: Duration) -> bool {
    !a.is_zero() && a.saturating_mul(2) < b && b - a >= RTT_STEP
}
