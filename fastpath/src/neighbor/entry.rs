//! What is known of one neighbour: the states of RFC 4861 section 7.3.2, for ARP as well.
//!
//! An entry has no I/O: each input gives a [`Step`] that says what is to be done.

use std::time::{Duration, Instant};

use encap::wire::ethernet::MacAddr;

/// RFC 4861 section 10: `REACHABLE_TIME`, how long a confirmation is good for.
pub(super) const REACHABLE_TIME: Duration = Duration::from_secs(30);
/// RFC 4861 section 10: `DELAY_FIRST_PROBE_TIME`.
pub(super) const DELAY_TIME: Duration = Duration::from_secs(5);
/// RFC 4861 section 10: `RETRANS_TIMER`.
pub(super) const RETRANS_TIME: Duration = Duration::from_secs(1);
/// RFC 4861 section 10: `MAX_MULTICAST_SOLICIT` and `MAX_UNICAST_SOLICIT`.
pub(super) const MAX_TRIES: u8 = 3;
/// An entry in use is asked for this long before it would be stale.
const REFRESH_LEAD: Duration = Duration::from_secs(5);
/// For this long traffic from a neighbour protects its entry; then its silence is looked into.
pub(super) const TRAFFIC_TIME: Duration = Duration::from_secs(5);
/// Used within this time: in use. Such an entry is refreshed and never evicted.
pub(super) const USE_TIME: Duration = Duration::from_secs(30);
/// An address that has just answered is not moved for this long: of two answers the first counts.
const LOCK_TIME: Duration = Duration::from_secs(1);
/// An address that has just moved does not move on at once: the station that it is at is asked first.
const SETTLE_TIME: Duration = Duration::from_secs(10);
/// Between two questions to a station whose address another one claims.
pub(super) const CHALLENGE_TIME: Duration = Duration::from_millis(300);
/// How long nobody is asked for an address after it did not answer.
pub(super) const FAILED_TIME: Duration = Duration::from_secs(3);
/// How long an entry that nobody uses is kept.
pub(super) const KEEP_TIME: Duration = Duration::from_secs(600);

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Everybody was asked `tries` times.
    Incomplete { tries: u8 },
    /// Confirmed not long ago.
    Reachable,
    /// Believed, and not in use.
    Stale,
    /// Believed and in use: asked for soon unless traffic confirms it.
    Delay,
    /// Believed; asked `tries` times, first the station itself, then everybody (RFC 7048).
    Probe {
        tries: u8,
        /// Another station that claims the address, and gets it if the old one is silent.
        challenger: Option<MacAddr>,
    },
    /// Did not answer; not asked for until the timer ends.
    Failed,
    /// Configured: never asked for, never moved.
    Static,
}

/// Whom to ask for the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Everybody,
    Station(MacAddr),
}

/// What became of the entry's MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Found(MacAddr),
    Moved {
        from: MacAddr,
        to: MacAddr,
    },
    /// There is none any more, or still none.
    Failed,
    /// The entry is to be forgotten.
    Forget,
}

/// What an input asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) ask: Option<Ask>,
    pub(super) change: Option<Change>,
    /// Somebody claims an address that its station seems to have still.
    pub(super) suspected: bool,
    /// Somebody claims an address whose station is configured.
    pub(super) contradicted: bool,
}

impl Step {
    const NOTHING: Self = Self { ask: None, change: None, suspected: false, contradicted: false };
    const SUSPECTED: Self = Self { suspected: true, ..Self::NOTHING };

    fn ask(ask: Ask) -> Self {
        Self { ask: Some(ask), ..Self::NOTHING }
    }

    fn change(change: Change) -> Self {
        Self { change: Some(change), ..Self::NOTHING }
    }
}

/// One neighbour.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    state: State,
    mac: Option<MacAddr>,
    timer: Option<Instant>,
    /// When somebody last wanted to send there, or heard from there.
    used_at: Option<Instant>,
    /// When it last answered a question of ours.
    answered_at: Option<Instant>,
    /// When authentic traffic last proved that it takes what we send.
    traffic_at: Option<Instant>,
    /// When it last moved to another MAC address.
    moved_at: Option<Instant>,
    /// When it entered its state.
    since: Instant,
}

impl Entry {
    /// A neighbour that is wanted, with the question that goes with it.
    pub(super) fn wanted(now: Instant) -> (Self, Step) {
        let mut entry = Self::new(now, State::Stale, None);
        entry.used_at = Some(now);
        let step = entry.ask_everybody(now);
        (entry, step)
    }

    /// A neighbour that made itself known.
    pub(super) fn learnt(now: Instant, mac: MacAddr) -> Self {
        let mut entry = Self::new(now, State::Stale, Some(mac));
        entry.enter(now, State::Stale, Some(KEEP_TIME));
        entry
    }

    /// A configured neighbour.
    pub(super) fn fixed(now: Instant, mac: MacAddr) -> Self {
        Self::new(now, State::Static, Some(mac))
    }

    fn new(now: Instant, state: State, mac: Option<MacAddr>) -> Self {
        Self {
            state,
            mac,
            timer: None,
            used_at: None,
            answered_at: None,
            traffic_at: None,
            moved_at: None,
            since: now,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn mac(&self) -> Option<MacAddr> {
        self.mac
    }

    pub(super) fn timer(&self) -> Option<Instant> {
        self.timer
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// What the eviction goes by: never used first, then the longest unused.
    pub(super) fn last_use(&self) -> (Option<Instant>, Instant) {
        (self.used_at, self.since)
    }

    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        within(self.used_at, USE_TIME, now)
    }

    /// Somebody wants to send there.
    pub(super) fn on_use(&mut self, now: Instant) {
        self.used_at = Some(now);
        if self.state == State::Stale {
            self.enter(now, State::Delay, Some(DELAY_TIME));
        }
    }

    /// What we sent has arrived there (RFC 4861 section 7.3.1).
    pub(super) fn on_traffic(&mut self, now: Instant) {
        match self.state {
            State::Incomplete { .. } | State::Failed => return,
            State::Static => {}
            State::Reachable => {
                let quiet_at = now + TRAFFIC_TIME;
                self.timer = self.timer.map(|at| at.min(quiet_at));
            }
            // Traffic may come back by another way than through the station that is asked for.
            State::Probe { challenger: Some(_), .. } => return,
            State::Stale | State::Delay | State::Probe { challenger: None, .. } => {
                self.enter(now, State::Reachable, Some(TRAFFIC_TIME));
            }
        }
        self.used_at = Some(now);
        self.traffic_at = Some(now);
    }

    /// A station says that the address is at `mac` (RFC 4861 section 7.2.5). `directed`: to us, as
    /// an answer. `overrides`: to replace what is known.
    pub(super) fn on_claim(
        &mut self,
        now: Instant,
        mac: Option<MacAddr>,
        directed: bool,
        overrides: bool,
    ) -> Step {
        let Some(old) = self.mac else {
            return mac.map_or(Step::NOTHING, |mac| self.on_found(now, mac, directed));
        };
        let to = mac.unwrap_or(old);
        if self.state == State::Static {
            return Step { contradicted: to != old, ..Step::NOTHING };
        }
        if to == old {
            if directed && matches!(self.state, State::Probe { .. }) {
                self.confirm(now);
            }
            return Step::NOTHING;
        }
        if !overrides {
            if self.state == State::Reachable {
                self.doubt(now);
            }
            return Step::NOTHING;
        }
        self.on_contest(now, old, to, directed)
    }

    /// The first that is heard of a wanted address.
    fn on_found(&mut self, now: Instant, mac: MacAddr, directed: bool) -> Step {
        let asked = matches!(self.state, State::Incomplete { .. });
        self.mac = Some(mac);
        if asked && directed {
            self.confirm(now);
        } else {
            self.doubt(now);
        }
        Step::change(Change::Found(mac))
    }

    /// Another station than `old` claims the address.
    fn on_contest(&mut self, now: Instant, old: MacAddr, to: MacAddr, directed: bool) -> Step {
        let reachable = self.state == State::Reachable;
        if reachable && within(self.answered_at, LOCK_TIME, now) {
            return Step::SUSPECTED;
        }
        match self.state {
            State::Probe { challenger: Some(_), .. } => return Step::SUSPECTED,
            // It is the old station's turn to answer, but it has to be quick now.
            State::Probe { tries, challenger: None } if tries <= MAX_TRIES => {}
            State::Reachable if within(self.traffic_at, TRAFFIC_TIME, now) => {}
            State::Probe { .. } if directed => {
                let step = self.move_to(now, old, to);
                self.confirm(now);
                return step;
            }
            _ if within(self.moved_at, SETTLE_TIME, now) => {}
            _ => {
                let step = self.move_to(now, old, to);
                self.doubt(now);
                return step;
            }
        }
        self.enter(now, State::Probe { tries: 1, challenger: Some(to) }, Some(CHALLENGE_TIME));
        Step { ask: Some(Ask::Station(old)), ..Step::SUSPECTED }
    }

    /// The entry's timer has ended.
    pub(super) fn on_timeout(&mut self, now: Instant) -> Step {
        match (self.state, self.mac) {
            (State::Static, _) => {
                self.timer = None;
                Step::NOTHING
            }
            (State::Incomplete { tries }, _) if tries < MAX_TRIES => self.ask_everybody(now),
            (State::Incomplete { .. }, _) => self.fail(now),
            (State::Failed | State::Stale, _) => Step::change(Change::Forget),
            (State::Delay, Some(mac)) => self.ask_station(now, mac),
            (State::Reachable, Some(mac)) => self.on_reachable_timeout(now, mac),
            (State::Probe { tries, challenger }, Some(mac)) => {
                self.on_probe_timeout(now, mac, tries, challenger)
            }
            // These states have an address.
            (State::Delay | State::Reachable | State::Probe { .. }, None) => self.fail(now),
        }
    }

    fn on_reachable_timeout(&mut self, now: Instant, mac: MacAddr) -> Step {
        // Traffic that confirmed the entry and then stopped is looked into at once; without any,
        // the entry is refreshed before it would be stale.
        let quiet_at = self.traffic_at.filter(|at| Some(*at) > self.answered_at);
        let refresh_at = match (quiet_at, self.answered_at) {
            (Some(traffic_at), _) => traffic_at + TRAFFIC_TIME,
            (None, Some(answered_at)) => answered_at + (REACHABLE_TIME - REFRESH_LEAD),
            (None, None) => now,
        };
        if now < refresh_at {
            self.timer = Some(refresh_at);
            return Step::NOTHING;
        }
        if self.is_in_use(now) {
            return self.ask_station(now, mac);
        }
        let confirmed_at = self.traffic_at.max(self.answered_at).unwrap_or(now);
        let stale_at = confirmed_at + REACHABLE_TIME;
        if now < stale_at {
            self.timer = Some(stale_at);
        } else {
            self.enter(now, State::Stale, Some(KEEP_TIME));
        }
        Step::NOTHING
    }

    fn on_probe_timeout(
        &mut self,
        now: Instant,
        mac: MacAddr,
        tries: u8,
        challenger: Option<MacAddr>,
    ) -> Step {
        let again = State::Probe { tries: tries.saturating_add(1), challenger };
        match challenger {
            Some(_) if tries < MAX_TRIES => {
                self.enter(now, again, Some(CHALLENGE_TIME));
                Step::ask(Ask::Station(mac))
            }
            // The old station is gone; the new one has to show that it is there.
            Some(to) => {
                let moved = self.move_to(now, mac, to);
                Step { ask: self.ask_station(now, to).ask, ..moved }
            }
            None if tries < 2 * MAX_TRIES => {
                self.enter(now, again, Some(RETRANS_TIME));
                let everybody = tries >= MAX_TRIES;
                Step::ask(if everybody { Ask::Everybody } else { Ask::Station(mac) })
            }
            None => self.fail(now),
        }
    }

    fn ask_everybody(&mut self, now: Instant) -> Step {
        let tries = match self.state {
            State::Incomplete { tries } => tries.saturating_add(1),
            _ => 1,
        };
        self.enter(now, State::Incomplete { tries }, Some(RETRANS_TIME));
        Step::ask(Ask::Everybody)
    }

    fn ask_station(&mut self, now: Instant, mac: MacAddr) -> Step {
        self.enter(now, State::Probe { tries: 1, challenger: None }, Some(RETRANS_TIME));
        Step::ask(Ask::Station(mac))
    }

    fn move_to(&mut self, now: Instant, from: MacAddr, to: MacAddr) -> Step {
        self.mac = Some(to);
        self.moved_at = Some(now);
        Step::change(Change::Moved { from, to })
    }

    /// It answered us.
    fn confirm(&mut self, now: Instant) {
        self.answered_at = Some(now);
        self.enter(now, State::Reachable, Some(REACHABLE_TIME - REFRESH_LEAD));
    }

    /// Believed from now on, but not confirmed.
    fn doubt(&mut self, now: Instant) {
        if self.is_in_use(now) {
            self.enter(now, State::Delay, Some(DELAY_TIME));
        } else {
            self.enter(now, State::Stale, Some(KEEP_TIME));
        }
    }

    fn fail(&mut self, now: Instant) -> Step {
        self.mac = None;
        self.enter(now, State::Failed, Some(FAILED_TIME));
        Step::change(Change::Failed)
    }

    fn enter(&mut self, now: Instant, state: State, time: Option<Duration>) {
        // Another try is the same state.
        if std::mem::discriminant(&self.state) != std::mem::discriminant(&state) {
            self.since = now;
        }
        self.state = state;
        self.timer = time.map(|time| now + time);
    }
}

/// Whether `at` was no longer than `time` ago.
fn within(at: Option<Instant>, time: Duration, now: Instant) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < time)
}
