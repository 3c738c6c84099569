//! Which links to a peer are alive.
//!
//! Links are compared with each other, not with a clock: the peer sends every round of heartbeats
//! on all links at once, so a link is *missing* when another one is some rounds ahead of it. A
//! stall of either end delays all links alike and says nothing. Four things make a link suspect,
//! and only while another one can take over:
//!
//! - R1, missing: another link is k rounds ahead, the last of which came longer ago than this link
//!   is later than that one; and the workers have looked at their sockets twice since;
//! - R2, reported: the peer says that we are missing on it;
//! - R3, a hard signal of the local kernel or driver;
//! - never silence as such (R4): if all links are silent nothing moves until the peer is given up.
//!
//! Next: [`super::choice`].

use std::time::{Duration, Instant};

use super::estimate;
use super::id::{LinkIndex, LinkSet, MAX_LINKS};
use super::profile::{Profile, missed_for};
use super::rounds::is_newer;

mod transition;
mod link;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod simulation;

use link::{Link, Pace, Verdict};
pub use transition::{Cause, HISTORY, State, Transition};

/// A judge later than this was held up; deadlines wait for it.
const LATE: Duration = Duration::from_millis(5);

/// Longest interval and grace that anything is made to wait for.
const LONGEST: Duration = Duration::from_secs(60);

/// A suspect that is heard again has so many times the usual time before it is down.
const PATIENCE: u32 = 4;

/// Rounds that a link which was up before must not have lost too many of.
const RECENT: u32 = 20;

/// Something that the local system says of a link. The first three hold until told otherwise;
/// `true` is fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The uplink has a carrier.
    Carrier(bool),
    /// The uplink has its address, and a route.
    Address(bool),
    /// The neighbour that the peer is reached through answers.
    Neighbour(bool),
    /// Our own kernel refused to send just now. Never from ICMP: that can be forged.
    Unreachable,
}

/// What [`Liveness::judge`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// What changed, in order.
    pub transitions: Vec<(LinkIndex, Transition)>,
    /// A link is about to be called missing: wake the workers so that they read their sockets, and
    /// judge again when they have.
    pub wants_pass: bool,
    /// Nothing came from the peer for too long. Stays so until [`Liveness::reset`].
    pub peer_silent: bool,
}

/// The judge of all links to one peer.
///
/// Feed it what comes: [`Self::on_round`] for each heartbeat, then [`Self::on_report`] for what is
/// in it; [`Self::on_heard`] for data; [`Self::on_signal`] and [`Self::set_path_usable`] as they
/// happen. Call [`Self::judge`] in every interval, whenever [`Self::poll_timeout`] says so, and
/// when the workers have made a pass that was wanted; only while there is a session.
#[derive(Debug, Clone)]
pub struct Liveness {
    profile: Profile,
    links: Vec<Link>,
    /// Links on which the peer hears nothing of us.
    not_heard: LinkSet,
    /// The newest round whose report was taken.
    reported: Option<u32>,
    /// Time between two rounds of the peer, and of our own.
    peer_interval: Option<Duration>,
    own_interval: Duration,
    pace: Pace,
    /// From when silence counts: the last arrival or the first judge, put off by our own stalls.
    silent_from: Option<Instant>,
    silence: Verdict,
    /// When it was last judged.
    judged: Option<Instant>,
}

impl Liveness {
    /// `count` links (at most 8), all down.
    #[must_use]
    pub fn new(now: Instant, profile: Profile, count: usize) -> Self {
        let mut liveness = Self {
            profile,
            links: Vec::new(),
            not_heard: LinkSet::EMPTY,
            reported: None,
            peer_interval: None,
            own_interval: profile.normal,
            pace: Pace::new(),
            silent_from: None,
            silence: Verdict::Current,
            judged: None,
        };
        liveness.set_count(now, count);
        liveness
    }

    /// Other times from now on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// Changes the number of links; those below it keep what they are.
    pub fn set_count(&mut self, now: Instant, count: usize) {
        self.links.resize_with(count.min(MAX_LINKS), || Link::new(now));
        self.not_heard = self.select(|index, _| self.not_heard.contains(index));
    }

    /// Takes a link out of service or puts it back, by order. Its state is judged as before.
    pub fn set_drained(&mut self, link: LinkIndex, drained: bool) {
        if let Some(link) = self.links.get_mut(link.at()) {
            link.drained = drained;
        }
    }

    /// A heartbeat of this round came over a link at `at`, which has this jitter, this
    /// [`super::estimate::Estimate::transit_us`] and this loss of what we receive (0 to 1).
    pub fn on_round(
        &mut self,
        at: Instant,
        link: LinkIndex,
        round: u32,
        jitter: Duration,
        transit_us: i64,
        loss: f64,
    ) {
        let Some(entry) = self.links.get_mut(link.at()) else { return };
        entry.on_round(at, round);
        (entry.jitter, entry.transit_us, entry.loss) = (jitter, transit_us, loss);
        self.pace.on_round(at, round);
        self.on_heard(at, link);
    }

    /// Any other authentic datagram came over a link at `at`.
    pub fn on_heard(&mut self, at: Instant, link: LinkIndex) {
        let Some(link) = self.links.get_mut(link.at()) else { return };
        link.on_heard(at);
        self.silent_from = Some(self.silent_from.map_or(at, |from| from.max(at)));
        self.silence = Verdict::Current;
    }

    /// A heartbeat, told by [`Self::on_round`] before, says on which links the peer does not hear
    /// us, and what time it leaves until its next round. What a slow link brings is out of date when a
    /// faster one has brought a later round: it is ignored.
    pub fn on_report(&mut self, came_by: LinkIndex, lost: LinkSet, interval: Duration) {
        let round = self.links.get(came_by.at()).and_then(|link| link.rounds.newest());
        if let (Some(round), Some(reported)) = (round, self.reported)
            && is_newer(reported, round)
        {
            return;
        }
        self.reported = round.or(self.reported);
        self.not_heard = lost;
        self.peer_interval = Some(interval.min(LONGEST));
    }

    /// The local system says something of a link.
    pub fn on_signal(&mut self, link: LinkIndex, signal: Signal) {
        let Some(link) = self.links.get_mut(link.at()) else { return };
        match signal {
            Signal::Carrier(fine) => link.signals.no_carrier = !fine,
            Signal::Address(fine) => link.signals.no_address = !fine,
            Signal::Neighbour(fine) => link.signals.no_neighbour = !fine,
            Signal::Unreachable => link.unreachable = true,
        }
    }

    /// Whether datagrams of the smallest supported size get through. While that is not known do
    /// not say anything: a link whose path is known to be unusable never carries frames, one whose
    /// path is unknown may be the first to come up.
    pub fn set_path_usable(&mut self, link: LinkIndex, usable: bool) {
        if let Some(link) = self.links.get_mut(link.at()) {
            link.path_usable = Some(usable);
        }
    }

    /// The path has to be measured again before the link comes up.
    pub fn forget_path_usable(&mut self, link: LinkIndex) {
        if let Some(link) = self.links.get_mut(link.at()) {
            link.path_usable = None;
        }
    }

    /// Looks at all links. `due` is when this call was meant to happen: if that was long ago we
    /// were held up ourselves, and deadlines move on by as much. `pass` counts the complete passes
    /// of all workers over all their sockets; `own_interval` is the time between our rounds.
    pub fn judge(
        &mut self,
        now: Instant,
        due: Instant,
        pass: u64,
        own_interval: Duration,
    ) -> Judgement {
        self.own_interval = own_interval.min(LONGEST);
        self.excuse(now, due);
        self.compare(now, pass);
        let mut judgement = Judgement::default();
        // Those that may come up first: they are where others can go.
        let up = self.select(|_, link| link.state == State::Up);
        let rest = self.select(|_, _| true).minus(up);
        for index in rest.iter().chain(up.iter()) {
            if let Some(transition) = self.judge_link(now, index) {
                judgement.transitions.push((index, transition));
            }
        }
        judgement.transitions.extend(self.first_up(now));
        for link in &mut self.links {
            (link.heard, link.unreachable) = (false, false);
        }
        let from = *self.silent_from.get_or_insert(now);
        let silent = now >= from + self.silence_limit();
        self.silence = if silent { self.silence.at(pass) } else { Verdict::Current };
        judgement.peer_silent = self.silence == Verdict::Missing;
        let candidate = |verdict| matches!(verdict, Verdict::Candidate(_));
        judgement.wants_pass =
            candidate(self.silence) || self.links.iter().any(|link| candidate(link.verdict));
        judgement
    }

    /// The session is over: all links are down, what was heard is forgotten. What the local system
    /// said and what is drained still holds.
    pub fn reset(&mut self, now: Instant, cause: Cause) -> Vec<(LinkIndex, Transition)> {
        let mut transitions = Vec::new();
        for (index, link) in LinkIndex::all(MAX_LINKS).zip(&mut self.links) {
            if link.state != State::Down {
                transitions.push((index, link.move_to(now, State::Down, cause)));
            }
            link.reset(now);
        }
        self.not_heard = LinkSet::EMPTY;
        (self.reported, self.peer_interval, self.pace) = (None, None, Pace::new());
        (self.silent_from, self.silence) = (None, Verdict::Current);
        transitions
    }

    /// Links on which nothing comes from the peer although something comes elsewhere: what our
    /// heartbeats say. Never derived from what the peer reports, or both ends would hold each other
    /// down.
    #[must_use]
    pub fn lost(&self) -> LinkSet {
        self.select(|_, link| link.verdict == Verdict::Missing)
    }

    /// The state of a link; down if there is no such link.
    #[must_use]
    pub fn state(&self, link: LinkIndex) -> State {
        self.links.get(link.at()).map_or(State::Down, |link| link.state)
    }

    /// Since when it is in that state.
    #[must_use]
    pub fn since(&self, link: LinkIndex) -> Option<Instant> {
        self.links.get(link.at()).map(|link| link.since)
    }

    /// Why it is in that state: for one that is down, what made it suspect.
    #[must_use]
    pub fn cause(&self, link: LinkIndex) -> Cause {
        let causes = self.history(link).iter().rev().map(|transition| transition.cause);
        causes.into_iter().find(|cause| *cause != Cause::StillBad).unwrap_or(Cause::Starting)
    }

    /// The last 16 transitions of a link, oldest first.
    #[must_use]
    pub fn history(&self, link: LinkIndex) -> &[Transition] {
        self.links.get(link.at()).map_or(&[], |link| &link.history)
    }

    /// Whether something local speaks against a link: no carrier, no address, no neighbour.
    #[must_use]
    pub fn is_bad(&self, link: LinkIndex) -> bool {
        self.links.get(link.at()).is_some_and(|link| link.signals.bad())
    }

    /// Whether a link is out of service by order.
    #[must_use]
    pub fn is_drained(&self, link: LinkIndex) -> bool {
        self.links.get(link.at()).is_some_and(|link| link.drained)
    }

    /// Whether the peer hears us on a link, as far as it has told.
    #[must_use]
    pub fn heard_by_peer(&self, link: LinkIndex) -> bool {
        !self.not_heard.contains(link)
    }

    /// The links to send frames by, best guess: those that are up and heard by the peer. If there
    /// is none, the peer knows best: those that it hears, even if we hear nothing on them. Then
    /// those that are up, those that nothing local speaks against, all.
    #[must_use]
    pub fn sendable(&self) -> LinkSet {
        let heard = |index: LinkIndex| !self.not_heard.contains(index);
        let up = |link: &Link| link.state == State::Up && link.admissible();
        [
            self.select(|index, link| up(link) && heard(index)),
            self.select(|index, link| link.admissible() && heard(index)),
            self.select(|_, link| up(link)),
            self.select(|_, link| link.admissible()),
            self.select(|_, link| !link.signals.bad()),
        ]
        .into_iter()
        .find(|set| !set.is_empty())
        .unwrap_or_else(|| self.select(|_, _| true))
    }

    /// When to judge at the latest, besides what the doc of the type says.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let all = || LinkIndex::all(MAX_LINKS).zip(&self.links);
        let suspects = all().filter(|(_, link)| link.state == State::Suspect);
        let suspects = suspects.filter_map(|(index, link)| {
            let until = link.suspect_from + self.down_after(self.trouble(index, link).is_some());
            // Later than that the time stands still, until something is heard.
            let stands = self.silent_by().is_some_and(|by| by < until) && !link.signals.bad();
            (!stands).then_some(until)
        });
        // What is a candidate already waits for the workers, not for time.
        let current = all().filter(|(_, link)| link.verdict == Verdict::Current);
        let current = current.flat_map(|(index, link)| {
            LinkIndex::all(MAX_LINKS).filter_map(move |than| {
                Some(self.overtaken(index, link, than)? + self.grace(link, than))
            })
        });
        let silent = self.silent_from.filter(|_| self.silence == Verdict::Current);
        let silent = silent.map(|from| from + self.silence_limit());
        suspects.chain(current).chain(silent).min()
    }

    fn select(&self, mut wanted: impl FnMut(LinkIndex, &Link) -> bool) -> LinkSet {
        let links = LinkIndex::all(MAX_LINKS).zip(&self.links);
        links.filter(|(index, link)| wanted(*index, link)).map(|(index, _)| index).collect()
    }

    /// Puts deadlines off: by our own stall, and while all links are silent, for then it is the
    /// peer that stalls (R4). What the local system says needs no peer.
    fn excuse(&mut self, now: Instant, due: Instant) {
        let late = now.saturating_duration_since(due);
        let late = if late > LATE { late } else { Duration::ZERO };
        let step = now.saturating_duration_since(self.judged.unwrap_or(now));
        self.judged = Some(now);
        let silent = self.silent_by().is_some_and(|by| by < now);
        for link in &mut self.links {
            let put_off = if silent && !link.signals.bad() { step.max(late) } else { late };
            link.suspect_from = (link.suspect_from + put_off).min(now);
        }
        if let Some(from) = &mut self.silent_from {
            *from = (*from + late).min(now);
        }
    }

    /// When the peer will have missed a few rounds on all links.
    fn silent_by(&self) -> Option<Instant> {
        self.silent_from.map(|from| from + LATE.max(self.interval() * 3))
    }

    /// R1: which links fell behind others.
    fn compare(&mut self, now: Instant, pass: u64) {
        for index in LinkIndex::all(self.links.len()) {
            let Some(link) = self.links.get(index.at()) else { continue };
            // Once missing it is missing until it is heard.
            if link.verdict == Verdict::Missing {
                continue;
            }
            let mut overtaken = [None; MAX_LINKS];
            for (than, slot) in LinkIndex::all(MAX_LINKS).zip(&mut overtaken) {
                *slot = self.overtaken(index, link, than);
            }
            let found = LinkIndex::all(MAX_LINKS)
                .zip(overtaken)
                .find_map(|(than, since)| (since? + self.grace(link, than) <= now).then_some(than));
            let missed = found.map(|than| self.missed(link, than));
            let Some(link) = self.links.get_mut(index.at()) else { continue };
            (link.overtaken, link.missed) = (overtaken, missed);
            link.verdict = if missed.is_some() { link.verdict.at(pass) } else { Verdict::Current };
        }
    }

    /// When `than` was k rounds ahead of `link`, if it is.
    fn overtaken(&self, index: LinkIndex, link: &Link, than: LinkIndex) -> Option<Instant> {
        let known = link.overtaken.get(than.at()).copied().flatten();
        if known.is_some() || index == than {
            return known;
        }
        let other = self.links.get(than.at())?;
        // Most links are current.
        other.ahead_of(link).next()?;
        let needed = missed_for(link.loss, self.interval(), &self.profile) as usize;
        other.ahead_of(link).nth(needed - 1)
    }

    /// How long a link may be behind another one by what it is slower and less steady.
    fn grace(&self, link: &Link, than: LinkIndex) -> Duration {
        let other = self.links.get(than.at()).filter(|_| link.rounds.newest().is_some());
        let later = other.map_or(0, |other| {
            estimate::difference(link.transit_us, other.transit_us).max(0).unsigned_abs()
        });
        let grace = link.jitter.saturating_mul(4).saturating_add(Duration::from_micros(later));
        grace.max(self.profile.min_grace).min(LONGEST)
    }

    fn missed(&self, link: &Link, than: LinkIndex) -> Cause {
        let rounds = self.links.get(than.at()).map_or(0, |other| other.ahead_of(link).count());
        Cause::Missed { rounds: rounds as u32, than }
    }

    /// Time between the rounds that we receive, as far as we know.
    fn interval(&self) -> Duration {
        self.peer_interval.unwrap_or(self.own_interval)
    }

    /// How long a link stays suspect. One that is heard again needs some rounds in a row, which on
    /// a lossy link may take many.
    fn down_after(&self, in_trouble: bool) -> Duration {
        let Profile { down_after, clear_rounds, .. } = self.profile;
        if in_trouble {
            return down_after;
        }
        (down_after * PATIENCE).max(self.interval() * (u32::from(clear_rounds) + 1))
    }

    /// R4: how long all links may be silent.
    fn silence_limit(&self) -> Duration {
        let limit = self.profile.peer_timeout.max(self.interval() * 3);
        self.pace.surprise().clamp(limit, limit * 3)
    }

    /// What is wrong with a link now, except its path.
    fn trouble(&self, index: LinkIndex, link: &Link) -> Option<Cause> {
        link.signals.cause().or_else(|| {
            if link.unreachable {
                Some(Cause::Unreachable)
            } else if link.verdict == Verdict::Missing {
                link.missed
            } else if self.not_heard.contains(index) {
                Some(Cause::NotHeardByPeer)
            } else {
                None
            }
        })
    }

    fn judge_link(&mut self, now: Instant, index: LinkIndex) -> Option<Transition> {
        let link = self.links.get(index.at())?;
        let trouble = self.trouble(index, link);
        let way_out = self.select(|other, link| other != index && link.can_take_over());
        let down_after = self.down_after(trouble.is_some());
        let Profile { clear_rounds, up_rounds, max_up_loss_percent, .. } = self.profile;
        let link = self.links.get_mut(index.at())?;
        if trouble.is_some() {
            link.wrong_until = link.rounds.newest();
        }
        if link.path_usable == Some(false) {
            let up = link.state != State::Down;
            return up.then(|| link.move_to(now, State::Down, Cause::PathTooSmall));
        }
        match (link.state, trouble) {
            (State::Up, Some(cause)) if !way_out.is_empty() || link.signals.bad() => {
                Some(link.move_to(now, State::Suspect, cause))
            }
            (State::Suspect, None) if link.good_rounds() >= u32::from(clear_rounds) => {
                Some(link.move_to(now, State::Up, Cause::Recovered))
            }
            (State::Suspect, _) if now >= link.suspect_from + down_after => {
                Some(link.move_to(now, State::Down, Cause::StillBad))
            }
            (State::Down, None) => {
                let rounds = link.good_rounds();
                let lossy = link.was_up
                    && link.rounds.lost_of(RECENT) * 100 > u32::from(max_up_loss_percent) * RECENT;
                let good = rounds >= u32::from(up_rounds)
                    && link.verdict == Verdict::Current
                    && link.path_usable == Some(true)
                    && !lossy;
                let cause = Cause::RoundsBack(u8::try_from(rounds).unwrap_or(u8::MAX));
                good.then(|| link.move_to(now, State::Up, cause))
            }
            _ => None,
        }
    }

    /// Without a link that is up, the first one that is heard is.
    fn first_up(&mut self, now: Instant) -> Option<(LinkIndex, Transition)> {
        if self.links.iter().any(|link| link.state == State::Up) {
            return None;
        }
        let heard = self.select(|_, link| link.heard && link.admissible());
        let best = heard.iter().min_by_key(|index| {
            (self.is_drained(*index), self.not_heard.contains(*index), *index)
        })?;
        let link = self.links.get_mut(best.at())?;
        Some((best, link.move_to(now, State::Up, Cause::FirstHeard)))
    }
}
