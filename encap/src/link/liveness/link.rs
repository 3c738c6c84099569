//! One link as its judge sees it, and the pace of the peer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::transition::{Cause, HISTORY, State, Transition};
use crate::link::id::MAX_LINKS;
use crate::link::rounds::{Came, Rounds, is_newer};

/// Distinct rounds of a link whose arrival times are kept.
const ARRIVALS: usize = 64;

/// Passes of the workers over their sockets that make sure of a candidate: one may have begun
/// before the verdict, the next began after.
const PASSES: u64 = 2;

/// The verdict "nothing came", which needs a look at what the workers have not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Verdict {
    /// Heard, or not expected to be.
    #[default]
    Current,
    /// Held first when the workers had completed so many passes.
    Candidate(u64),
    /// Held on after they had looked.
    Missing,
}

impl Verdict {
    /// The verdict when the condition holds at this pass.
    pub(super) fn at(self, pass: u64) -> Self {
        match self {
            Self::Current => Self::Candidate(pass),
            Self::Candidate(first) if pass >= first.saturating_add(PASSES) => Self::Missing,
            other => other,
        }
    }
}

/// Hard signals that are bad now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signals {
    pub(super) no_carrier: bool,
    pub(super) no_address: bool,
    pub(super) no_neighbour: bool,
}

impl Signals {
    pub(super) fn cause(self) -> Option<Cause> {
        [
            (self.no_carrier, Cause::Carrier),
            (self.no_address, Cause::AddressGone),
            (self.no_neighbour, Cause::NeighbourFailed),
        ]
        .into_iter()
        .find_map(|(bad, cause)| bad.then_some(cause))
    }

    pub(super) fn bad(self) -> bool {
        self.cause().is_some()
    }
}

/// One link.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) history: Vec<Transition>,
    pub(super) drained: bool,
    /// Whether a datagram of the smallest supported size gets through; unknown at first.
    pub(super) path_usable: Option<bool>,
    pub(super) signals: Signals,
    /// The kernel refused to send since the last judge.
    pub(super) unreachable: bool,
    /// It was up in this session.
    pub(super) was_up: bool,
    /// When the newest authentic datagram came.
    pub(super) life: Option<Instant>,
    /// Something came since the last judge.
    pub(super) heard: bool,
    /// Rounds and when they came, oldest arrival first.
    pub(super) arrivals: VecDeque<(u32, Instant)>,
    pub(super) rounds: Rounds,
    /// The newest round when something was last wrong: only later ones count in its favour.
    pub(super) wrong_until: Option<u32>,
    pub(super) verdict: Verdict,
    /// When each other link was as many rounds ahead as it takes, since this one was last heard.
    pub(super) overtaken: [Option<Instant>; MAX_LINKS],
    /// What R1 found.
    pub(super) missed: Option<Cause>,
    /// When the time of a suspect began, put off by our own stalls.
    pub(super) suspect_from: Instant,
    pub(super) jitter: Duration,
    pub(super) transit_us: i64,
    pub(super) loss: f64,
}

impl Link {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Down,
            since: now,
            history: Vec::new(),
            drained: false,
            path_usable: None,
            signals: Signals::default(),
            unreachable: false,
            was_up: false,
            life: None,
            heard: false,
            arrivals: VecDeque::with_capacity(ARRIVALS),
            rounds: Rounds::default(),
            wrong_until: None,
            verdict: Verdict::Current,
            overtaken: [None; MAX_LINKS],
            missed: None,
            suspect_from: now,
            jitter: Duration::ZERO,
            transit_us: 0,
            loss: 0.0,
        }
    }

    /// What a session left behind is gone; what the local system said still holds.
    pub(super) fn reset(&mut self, now: Instant) {
        let old = std::mem::replace(self, Self::new(now));
        (self.state, self.since, self.history) = (old.state, old.since, old.history);
        (self.drained, self.signals) = (old.drained, old.signals);
    }

    pub(super) fn on_heard(&mut self, at: Instant) {
        self.life = Some(self.life.map_or(at, |life| life.max(at)));
        self.heard = true;
        self.verdict = Verdict::Current;
        self.missed = None;
        self.overtaken = [None; MAX_LINKS];
    }

    pub(super) fn on_round(&mut self, at: Instant, round: u32) {
        if self.rounds.on_round(round) == Came::Again {
            return;
        }
        // Workers stamp arrivals independently; the order here is the order of time.
        let at = self.arrivals.back().map_or(at, |(_, last)| at.max(*last));
        if self.arrivals.len() >= ARRIVALS {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back((round, at));
    }

    /// When the rounds came that `link` has yet to show: later in time, and later rounds. After a
    /// stall one socket is read first, but what it held is no news.
    pub(super) fn ahead_of(&self, link: &Self) -> impl Iterator<Item = Instant> {
        let before = |(_, at): &(u32, Instant)| link.life.is_some_and(|life| *at <= life);
        let later = self.arrivals.range(self.arrivals.partition_point(before)..);
        later.filter(|(round, _)| link.rounds.is_newer(*round)).map(|(_, at)| *at)
    }

    /// Rounds in a row since something was last wrong.
    pub(super) fn good_rounds(&self) -> u32 {
        let since = match (self.rounds.newest(), self.wrong_until) {
            (Some(newest), Some(wrong)) => newest.wrapping_sub(wrong),
            (Some(_), None) => u32::MAX,
            (None, _) => 0,
        };
        // Rounds before the first one count as if they had come, but not in favour.
        self.rounds.in_a_row().min(since).min(self.arrivals.len() as u32)
    }

    /// Could carry frames if another link could not.
    pub(super) fn can_take_over(&self) -> bool {
        self.state == State::Up && !self.drained && !self.signals.bad()
    }

    /// Not known to be unusable whatever is heard on it.
    pub(super) fn admissible(&self) -> bool {
        !self.signals.bad() && self.path_usable != Some(false)
    }

    pub(super) fn move_to(&mut self, now: Instant, to: State, cause: Cause) -> Transition {
        let transition = Transition { at: now, from: self.state, to, cause };
        if self.history.len() >= HISTORY {
            self.history.remove(0);
        }
        self.history.push(transition);
        (self.state, self.since) = (to, now);
        match to {
            State::Up => self.was_up = true,
            State::Suspect => self.suspect_from = now,
            State::Down => {}
        }
        if to != State::Up {
            self.wrong_until = self.rounds.newest();
        }
        transition
    }
}

/// When rounds come from the peer, over whichever link first.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    newest: Option<(u32, Instant)>,
    /// Of the time between two rounds, in seconds: mean and variance, over some 32 rounds.
    mean: f64,
    variance: f64,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self { newest: None, mean: 0.0, variance: 0.0 }
    }

    pub(super) fn on_round(&mut self, at: Instant, round: u32) {
        let Some((newest, last)) = self.newest else {
            self.newest = Some((round, at));
            return;
        };
        if !is_newer(round, newest) {
            return;
        }
        let gap = at.saturating_duration_since(last).as_secs_f64();
        let off = gap - self.mean;
        self.mean += off / 32.0;
        self.variance += (off * off - self.variance) / 32.0;
        self.newest = Some((round, at.max(last)));
    }

    /// Silence longer than this happens once in 10^8 rounds.
    pub(super) fn surprise(&self) -> Duration {
        Duration::try_from_secs_f64(self.mean + 5.6 * self.variance.max(0.0).sqrt())
            .unwrap_or(Duration::ZERO)
    }
}
