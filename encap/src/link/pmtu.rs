//! Packetization-layer path-MTU discovery (RFC 8899) for one link and one direction.
//!
//! Sizes here are UDP payload bytes. Probes go out in volleys: every likely size at once, then the
//! gap between the largest that passed and the smallest that did not in up to eight parts, until it
//! is [`PRECISION`] or less. The next volley is sent while smaller doubts of the last one are still
//! tried again, so that a search takes few round trips and a handful of probe times.
//!
//! A probe that is lost says nothing of the path unless something else came through at the same
//! time. So each volley carries [`Limits::base`] and the current size too; where none of a volley
//! is answered, nobody is blamed (a burst of loss, a link that just died), and the next one waits
//! longer. A size fails after three unanswered probes; after more, where probes of sizes that do
//! pass get lost as well. ICMP can be forged: it only triggers probes.
//!
//! Timers and names are those of RFC 8899 section 5, but for the probe timer, which may be short
//! because every probe is acknowledged and round trips are measured.

mod flight;
mod search;

use std::time::{Duration, Instant};

use flight::{Flight, Volley};
use search::{Search, TRIES};

/// The search ends when the smallest size that failed is at most this many bytes above the largest
/// that passed.
pub const PRECISION: usize = 8;
/// Shortest time that a probe is waited for; else three round trips.
pub const MIN_PROBE_TIMER: Duration = Duration::from_millis(50);
/// How often the size in use is confirmed while large datagrams are sent.
pub const CONFIRM_BUSY: Duration = Duration::from_millis(200);
/// How often it is confirmed otherwise.
pub const CONFIRM_IDLE: Duration = Duration::from_secs(10);
/// How long after a search larger sizes are tried again.
pub const RAISE: Duration = Duration::from_secs(600);

/// Largest IP packet.
const MAX_IP_LEN: usize = 65_535;
/// Round trip assumed before any is known.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);
/// Longest round trip that is believed.
const MAX_RTT: Duration = Duration::from_secs(3);
/// Longest time between volleys that nothing answers.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How long nothing must be answered before a path that took the base size has lost that too.
const BASE_LOST: Duration = Duration::from_secs(1);
/// First time from a search on a lossy path to the next look upward; doubles up to [`RAISE`].
const LOSSY_RAISE: Duration = Duration::from_secs(10);
/// Shortest time between two hints that are acted on.
const HINT_INTERVAL: Duration = Duration::from_millis(100);

/// Between which sizes to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What every supported path takes: 1252 over IPv4, 1232 over IPv6, for 1280-byte packets.
    pub base: usize,
    /// What the local interface takes.
    pub ceiling: usize,
}

/// A probe to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// To be found in its answer.
    pub id: u32,
    /// UDP payload bytes that it must have, all headers and the tag of ours included.
    pub size: usize,
}

/// What is known of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing passed yet, since the start or since the link came back.
    Unconfirmed,
    /// A search is under way.
    Searching,
    /// The last search is over.
    Settled,
}

/// Where the size in use comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Nothing larger than the base size has passed.
    Base,
    /// A probe passed, larger ones may not.
    Probed,
    /// A probe of all that the local interface takes passed.
    Interface,
    /// Set by the operator.
    Manual,
    /// A larger size was in use and passes no more.
    BlackHole,
}

/// The size in use changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Before, in UDP payload bytes.
    pub from: usize,
    /// Now.
    pub to: usize,
    /// Why.
    pub how: How,
}

/// Which size the path of a link takes.
///
/// After any call, [`Self::poll_change`] may have news. When [`Self::poll_timeout`] is due, call
/// [`Self::poll_probe`] until it gives none: it also judges what was not answered in time.
#[derive(Debug)]
pub struct PathMtu {
    limits: Limits,
    ip_overhead: usize,
    enabled: bool,
    /// As the operator wants it, before it is fitted to the limits.
    manual: Option<usize>,
    srtt: Option<Duration>,
    /// Round trip of our own probes, while the owner gives none.
    own_rtt: Option<Duration>,

    size: usize,
    how: How,
    since: Instant,
    reported: usize,
    base_ok: Option<bool>,
    settled: Option<usize>,

    searching: bool,
    search: Search,
    /// Tries of the size in use that were not answered while others were.
    current_missed: u32,
    /// Largest size below the one in use that passed since that became doubtful.
    fallback: usize,
    hint: Option<usize>,
    hint_at: Option<Instant>,

    flight: Flight,
    last_volley: Option<Instant>,
    /// When the next volley is due, while none is on its way.
    next_at: Instant,
    large_at: Option<Instant>,
    raise_from: Instant,
    raise_after: Duration,
    /// Volleys in a row of which nothing was answered, and since when.
    dead: u32,
    dead_since: Option<Instant>,
}

impl PathMtu {
    /// Starts to search at once. `ip_overhead` is what IP and UDP add: 28 or 48 bytes.
    #[must_use]
    pub fn new(now: Instant, limits: Limits, ip_overhead: usize) -> Self {
        let ceiling = limits.ceiling.min(MAX_IP_LEN.saturating_sub(ip_overhead));
        Self {
            limits: Limits { ceiling, ..limits },
            ip_overhead,
            enabled: true,
            manual: None,
            srtt: None,
            own_rtt: None,
            size: limits.base,
            how: How::Base,
            since: now,
            reported: limits.base,
            base_ok: (ceiling < limits.base).then_some(false),
            settled: None,
            searching: true,
            search: Search::new(ip_overhead),
            current_missed: 0,
            fallback: limits.base,
            hint: None,
            hint_at: None,
            flight: Flight::default(),
            last_volley: None,
            next_at: now,
            large_at: None,
            raise_from: now,
            raise_after: LOSSY_RAISE,
            dead: 0,
            dead_since: None,
        }
    }

    /// Puts a number into the high byte of all probe ids, the link's for example: an answer that
    /// came by another link then finds who asked.
    #[must_use]
    pub fn with_id_prefix(mut self, prefix: u8) -> Self {
        self.flight.set_id_prefix(prefix);
        self
    }

    /// Gives the next probe to send, if one is due.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        if !self.can_probe() {
            return None;
        }
        if self.flight.is_due(now) {
            self.conclude(now);
        }
        if self.flight.is_empty() {
            if self.raise_at().is_some_and(|at| now >= at) {
                self.begin_search(now);
            }
            if now >= self.next_at {
                self.plan(now);
            }
        }
        self.flight.pop(now, self.probe_timer())
    }

    /// The peer received a probe with this many bytes of UDP payload.
    pub fn on_ack(&mut self, now: Instant, id: u32, size: usize) {
        let Some(sent_at) = self.flight.answered(Probe { id, size }) else { return };
        let first = self.own_rtt.is_none();
        let rtt = now.saturating_duration_since(sent_at);
        self.own_rtt = Some(self.own_rtt.map_or(rtt, |own| rtt.max((own * 7 + rtt) / 8)));
        if first {
            // The rest of the first volley need not wait for what was only assumed.
            self.flight.shorten(self.probe_timer());
        }
        self.search.loss.add(1, 0);
        self.heard();
        if self.manual.is_none() {
            self.passed(now, size);
        }
        if self.flight.is_answered() {
            self.conclude(now);
        }
    }

    /// ICMP says that only `size` bytes of UDP payload fit. It may be forged: that size and the
    /// one in use are probed, nothing else follows.
    pub fn on_too_big_hint(&mut self, now: Instant, size: usize) {
        let lately = self.hint_at.is_some_and(|at| now < at + HINT_INTERVAL);
        // Above the size in use it may only help a search.
        let useless = size >= self.limits.ceiling || size > self.size && !self.searching;
        if !self.can_probe() || self.manual.is_some() || useless || lately {
            return;
        }
        self.hint_at = Some(now);
        self.hint = (size > self.limits.base && size != self.size).then_some(size);
        self.next_at = self.next_at.min(now);
    }

    /// The local interface takes this much, or our own kernel refused to send more. Larger sizes
    /// are out at once; a higher ceiling begins a search.
    pub fn on_local_limit(&mut self, now: Instant, ceiling: usize) {
        let ceiling = ceiling.min(MAX_IP_LEN.saturating_sub(self.ip_overhead));
        let before = std::mem::replace(&mut self.limits.ceiling, ceiling);
        if ceiling == before {
            return;
        }
        // Those above never left, or are of no use any more; nobody is to blame.
        self.flight.limit(ceiling);
        self.search.limit(ceiling);
        let largest = ceiling.max(self.limits.base);
        self.settled = self.settled.map(|size| size.min(largest));
        if self.size > largest {
            (self.current_missed, self.fallback) = (0, self.limits.base);
            self.set_size(now, largest, How::Interface);
        }
        if ceiling < self.limits.base {
            self.forget_probes();
            self.base_failed(now);
        } else {
            if before < self.limits.base {
                self.base_unknown();
            }
            if ceiling > before {
                self.begin_search(now);
            }
        }
        self.fit_manual(now);
        self.finish_if_over(now);
    }

    /// Gives the round trip as measured elsewhere; three of them are waited for an answer.
    pub fn set_srtt(&mut self, srtt: Duration) {
        self.srtt = Some(srtt);
    }

    /// Datagrams larger than the base size are being sent: that they arrive is worth knowing soon.
    /// Cheap enough for every burst.
    pub fn on_large_sent(&mut self, now: Instant) {
        self.large_at = Some(now);
        if !self.searching
            && let Some(last) = self.last_volley
        {
            self.next_at = self.next_at.min(last + CONFIRM_BUSY);
        }
    }

    /// Probing stops while the link is down: what is on its way is forgotten without blame. When
    /// it is back, base size and size in use are confirmed anew.
    pub fn set_enabled(&mut self, now: Instant, enabled: bool) {
        if self.enabled == enabled {
            return;
        }
        self.enabled = enabled;
        self.forget_probes();
        if enabled {
            self.base_unknown();
            self.next_at = now;
        }
    }

    /// Sets the size by hand, as far as the limits allow it, or begins to search again. Only the
    /// base size is probed while it is set.
    pub fn set_manual(&mut self, now: Instant, size: Option<usize>) {
        let before = std::mem::replace(&mut self.manual, size);
        if before == size {
            return;
        }
        self.forget_probes();
        self.next_at = now;
        self.searching = false;
        if size.is_none() {
            self.set_size(now, self.limits.base, How::Base);
            self.begin_search(now);
        }
        self.fit_manual(now);
    }

    /// Forgets all that is known of the path; limits, round trip and manual size stay.
    pub fn reset(&mut self, now: Instant) {
        let mut fresh = Self::new(now, self.limits, self.ip_overhead);
        // Ids go on: what was sent before says nothing of what comes after.
        fresh.flight = std::mem::take(&mut self.flight);
        fresh.flight.forget();
        *self = Self {
            enabled: self.enabled,
            manual: self.manual,
            searching: self.manual.is_none(),
            srtt: self.srtt,
            size: self.size,
            since: self.since,
            reported: self.reported,
            ..fresh
        };
        self.set_size(now, self.limits.base, How::Base);
        self.fit_manual(now);
    }

    /// When to call [`Self::poll_probe`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.can_probe() {
            return None;
        }
        let idle = || self.raise_at().map_or(self.next_at, |at| at.min(self.next_at));
        Some(self.flight.timeout().unwrap_or_else(idle))
    }

    /// What may be sent: the base size until something larger passed.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// What is known of the path.
    #[must_use]
    pub fn state(&self) -> State {
        if self.manual.is_some() {
            State::Settled
        } else if self.base_ok != Some(true) {
            State::Unconfirmed
        } else if self.searching {
            State::Searching
        } else {
            State::Settled
        }
    }

    /// Whether the path takes the base size; none while that is not known. A path that does not is
    /// below 1280 bytes, or the local interface is.
    #[must_use]
    pub fn base_ok(&self) -> Option<bool> {
        self.base_ok
    }

    /// Where [`Self::size`] comes from.
    #[must_use]
    pub fn how(&self) -> How {
        self.how
    }

    /// Since when [`Self::size`] is what it is.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether the size in use changed since this was asked last. Two changes between are one.
    pub fn poll_change(&mut self) -> Option<Change> {
        let from = std::mem::replace(&mut self.reported, self.size);
        (from != self.size).then_some(Change { from, to: self.size, how: self.how })
    }

    /// What the last search found, for the MTU of taps: none before the first one is over. It
    /// stays while a later search is under way, also after a black hole, for what does not fit
    /// meanwhile is fragmented.
    #[must_use]
    pub fn settled_size(&self) -> Option<usize> {
        self.settled
    }

    fn can_probe(&self) -> bool {
        self.enabled && self.limits.ceiling >= self.limits.base
    }

    fn probe_timer(&self) -> Duration {
        let rtt = self.srtt.or(self.own_rtt).unwrap_or(UNKNOWN_RTT);
        (3 * rtt.min(MAX_RTT)).max(MIN_PROBE_TIMER)
    }

    fn set_size(&mut self, now: Instant, size: usize, how: How) {
        if self.size != size {
            (self.size, self.since) = (size, now);
        }
        self.how = how;
    }

    fn fit_manual(&mut self, now: Instant) {
        if let Some(wanted) = self.manual {
            let size = wanted.min(self.limits.ceiling).max(self.limits.base);
            self.set_size(now, size, How::Manual);
            self.settled = Some(size);
        }
    }

    /// Drops what is on its way, without blame.
    fn forget_probes(&mut self) {
        self.flight.forget();
        self.search.forget_doubts();
        self.hint = None;
        (self.current_missed, self.fallback) = (0, self.limits.base);
    }

    /// Any answer: every probe has the base size or more.
    fn heard(&mut self) {
        self.base_ok = Some(true);
        (self.dead, self.dead_since) = (0, None);
    }

    fn base_unknown(&mut self) {
        self.base_ok = (self.limits.ceiling < self.limits.base).then_some(false);
        (self.dead, self.dead_since) = (0, None);
    }

    /// A probe of `size` arrived.
    fn passed(&mut self, now: Instant, size: usize) {
        if size < self.size {
            return;
        }
        self.search.loss.add(0, self.current_missed);
        (self.current_missed, self.fallback) = (0, self.limits.base);
        if size == self.limits.ceiling {
            self.set_size(now, size, How::Interface);
        } else if size > self.size {
            self.set_size(now, size, How::Probed);
        }
        if !self.search.passed(size) && !self.searching {
            self.begin_search(now);
        }
        self.finish_if_over(now);
    }

    /// Looks for larger sizes, from the one in use on.
    fn begin_search(&mut self, now: Instant) {
        if self.manual.is_none() {
            self.searching = true;
            self.search.restart(None);
            self.next_at = now;
        }
    }

    /// Ends a search that has nothing left to find.
    fn finish_if_over(&mut self, now: Instant) {
        let over = self.search.is_over(self.size, self.limits.ceiling);
        if !self.searching || !over || self.base_ok != Some(true) {
            return;
        }
        self.searching = false;
        // What is not answered yet could only tell of sizes that are of no interest now.
        self.search.forget_doubts();
        self.flight.drop_volley();
        let same = self.settled == Some(self.size);
        self.raise_after = if same { (self.raise_after * 2).min(RAISE) } else { LOSSY_RAISE };
        self.raise_from = now;
        self.settled = Some(self.size);
        self.next_at = self.last_volley.unwrap_or(now) + self.confirm_interval();
    }

    fn confirm_interval(&self) -> Duration {
        let busy = self.large_at.is_some() && self.large_at >= self.last_volley;
        if busy { CONFIRM_BUSY } else { CONFIRM_IDLE }
    }

    /// When larger sizes are tried again. On a path that loses probes by chance the last search
    /// may have ended too low: sooner there.
    fn raise_at(&self) -> Option<Instant> {
        let above = !self.searching && self.manual.is_none() && self.size < self.limits.ceiling;
        let after = if self.search.loss.any() { self.raise_after } else { RAISE };
        (above && self.base_ok == Some(true)).then_some(self.raise_from + after)
    }

    /// Judges the volley: all of it is answered, or its time is over.
    fn conclude(&mut self, now: Instant) {
        let Some(volley) = self.flight.take() else { return };
        if volley.largest == 0 {
            self.nothing_answered(now, &volley);
            return;
        }
        for (probe, _) in volley.probes.iter().filter(|(_, answered)| !answered) {
            if probe.size < volley.largest {
                self.search.loss.add(0, 1);
            } else if probe.size == self.size {
                self.current_missed += 1;
                self.fallback = self.fallback.max(volley.largest);
            } else {
                self.search.missed(probe.size);
            }
        }
        if self.current_missed >= self.search.loss.tries() {
            self.fall(now);
            return;
        }
        self.search.judge();
        let again = self.searching || self.current_missed > 0 || self.hint.is_some();
        self.next_at = if again { now } else { volley.sent_at + self.confirm_interval() };
        self.finish_if_over(now);
    }

    /// The size in use passes no more, smaller ones do.
    fn fall(&mut self, now: Instant) {
        let failed = self.size;
        self.set_size(now, self.fallback, How::BlackHole);
        self.forget_probes();
        self.begin_search(now);
        self.search.restart(Some(failed));
        self.finish_if_over(now);
    }

    /// Of the whole volley: no size is to blame, unless even the base size is.
    fn nothing_answered(&mut self, now: Instant, volley: &Volley) {
        self.search.forget_last();
        self.dead += 1;
        let since = *self.dead_since.get_or_insert(volley.sent_at);
        let long = now.saturating_duration_since(since) >= BASE_LOST;
        if self.dead >= self.search.loss.tries() && (self.base_ok.is_none() || long) {
            self.base_failed(now);
        }
        let doublings = self.dead.saturating_sub(TRIES - 1).min(10);
        let longer = self.probe_timer() * ((1 << doublings) - 1);
        self.next_at = now + longer.min(MAX_BACKOFF);
    }

    fn base_failed(&mut self, now: Instant) {
        self.base_ok = Some(false);
        if self.manual.is_none() {
            (self.current_missed, self.fallback) = (0, self.limits.base);
            self.set_size(now, self.limits.base, How::Base);
            // It goes on with the first answer.
            self.begin_search(now);
        }
    }

    /// Sends the next volley.
    fn plan(&mut self, now: Instant) {
        let mut sizes = vec![self.limits.base];
        if self.manual.is_none() {
            sizes.extend((self.size > self.limits.base).then_some(self.size));
            // While nothing is heard there is nothing to be learnt of other sizes.
            if self.dead == 0 {
                let hint = self.hint.take().filter(|size| *size <= self.limits.ceiling);
                sizes.extend(hint.filter(|size| *size < self.size));
                if self.searching {
                    self.search.add_next(&mut sizes, self.size, self.limits.ceiling, hint);
                }
            }
        }
        self.flight.launch(now, self.probe_timer(), sizes);
        self.last_volley = Some(now);
    }
}

#[cfg(test)]
mod tests;
