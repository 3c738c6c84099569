//! What a link is like: round-trip time, jitter, loss both ways, and how much slower it is than
//! its siblings. Fixed memory, about 3.5 KiB a link; no floating point that could go astray.
//!
//! Loss is what is missing here and there. A run of more than [`OUTAGE`] rounds is an outage:
//! [`super::liveness`] deals with it, and counting it as loss would make the judge of the link
//! patient for the next thousand rounds, just when it has shown that it can fail.
//!
//! Next: [`super::liveness`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::histogram::Histogram;
use super::rounds::{Came, Rounds};

/// Rounds lost in a row from which on it is no longer chance: at 20 % loss, once in 10^22 rounds.
pub const OUTAGE: u32 = 32;

/// Rounds that the loss is measured over.
const WINDOW: u32 = 1_024;
/// Fewest rounds that say something about loss.
const ENOUGH: u32 = 64;
const BLOCK_BITS: u32 = u64::BITS;
const BLOCKS: usize = (WINDOW / BLOCK_BITS) as usize;

/// Rounds between two marks of what the peer received.
const MARK_STEP: u32 = 128;
const MARKS: usize = (WINDOW / MARK_STEP) as usize + 1;

/// Seconds that the least round-trip time is taken over.
const MIN_SECONDS: usize = 10;

/// After so long without arrivals the two clocks may have drifted apart: measured afresh.
const STALE: Duration = Duration::from_secs(5);

/// The least one-way delay is that of one to two halves of this length, with this many arrivals at
/// least. Short, for clocks drift: 100 ppm are 0.1 ms in a second.
const TRANSIT_HALF: Duration = Duration::from_secs(1);
const TRANSITS: u32 = 16;

/// The estimates of a link, as integers for people and programs. All 0 before there are samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Last round-trip time, in microseconds.
    pub rtt_last_us: u32,
    /// Least round-trip time of the last 10 s with samples, in microseconds.
    pub rtt_min_us: u32,
    /// Smoothed round-trip time, in microseconds (RFC 6298).
    pub srtt_us: u32,
    /// Mean deviation of the round-trip time, in microseconds (RFC 6298).
    pub rttvar_us: u32,
    /// Half of the round trips of the last 60 to 120 s took less, in microseconds, within 3 %.
    pub rtt_p50_us: u32,
    /// 99 % of them took less.
    pub rtt_p99_us: u32,
    /// 99.9 % of them took less.
    pub rtt_p999_us: u32,
    /// Interarrival jitter of what the peer sends, in microseconds (RFC 3550).
    pub jitter_us: u32,
    /// Rounds lost from the peer to us, of the last 1,024, in millionths.
    pub loss_in_ppm: u32,
    /// Rounds lost from us to the peer, of about the last 1,024, in millionths.
    pub loss_out_ppm: u32,
    /// Rounds lost from the peer to us, of the last 64, in millionths; outages count here.
    pub loss_recent_ppm: u32,
    /// Runs of more than [`OUTAGE`] rounds that did not come from the peer.
    pub outages: u32,
}

/// What is measured of one link.
#[derive(Debug, Clone)]
pub struct Estimate {
    rtt: RoundTrip,
    arrivals: Arrivals,
    inbound: Inbound,
    outbound: Outbound,
}

// The promise of the module documentation; the marks are on the heap, 9 of 8 bytes.
const _: () = assert!(size_of::<Estimate>() <= 4_096 - 16 * 8);

impl Estimate {
    /// Nothing is known yet. `base` is when arrivals are counted from, and must be the same for all
    /// links of a peer: what [`Self::skew_to`] compares are times since then.
    #[must_use]
    pub fn new(base: Instant) -> Self {
        Self {
            rtt: RoundTrip::new(base),
            arrivals: Arrivals::new(base),
            inbound: Inbound::default(),
            outbound: Outbound::default(),
        }
    }

    /// Forgets all: a new session counts its rounds anew.
    pub fn reset(&mut self) {
        *self = Self::new(self.arrivals.base);
    }

    /// A round trip was measured.
    pub fn on_rtt(&mut self, now: Instant, rtt: Duration) {
        self.rtt.add(now, rtt);
    }

    /// A heartbeat came at `at` that the peer had sent when its clock showed `sent_us`, in
    /// microseconds, wrapping. Only for the first arrival of a round on this link.
    pub fn on_arrival(&mut self, at: Instant, sent_us: u32) {
        self.arrivals.add(at, sent_us);
    }

    /// A heartbeat of this round came. Reordered ones count as received, copies do not matter.
    pub fn on_round(&mut self, round: u32) {
        self.inbound.add(round);
    }

    /// The peer reports the highest round that it has received on this link, and how many it has
    /// received; both wrap. A report older than one known changes nothing.
    pub fn on_report(&mut self, peer_highest: u32, peer_count: u32) {
        self.outbound.add(peer_highest, peer_count);
    }

    /// Smoothed round-trip time; zero before the first.
    #[must_use]
    pub fn srtt(&self) -> Duration {
        Duration::from_nanos(self.rtt.smoothed_ns)
    }

    /// Interarrival jitter; zero before the second arrival.
    #[must_use]
    pub fn jitter(&self) -> Duration {
        Duration::from_micros(u64::from(self.arrivals.jitter_16 >> 4))
    }

    /// Least one-way delay of the last 1 to 2 s, plus an unknown that is the same for all links of
    /// the peer, in microseconds, known modulo 2^32: compare by [`Self::skew_to`] or truncate the
    /// difference to `i32`.
    #[must_use]
    pub fn transit_us(&self) -> i64 {
        self.arrivals.transit_us()
    }

    /// How much later than over `other` a datagram of the peer arrives over this link, in
    /// microseconds; negative if earlier, 0 while either is unknown.
    #[must_use]
    pub fn skew_to(&self, other: &Self) -> i64 {
        if self.arrivals.last.is_none() || other.arrivals.last.is_none() {
            return 0;
        }
        difference(self.transit_us(), other.transit_us())
    }

    /// Part of the peer's rounds that were lost on the way to us, 0 to 1, of the last 1,024; what
    /// it was before an outage until 64 rounds have been counted since, 0 in the beginning.
    #[must_use]
    pub fn loss_in(&self) -> f64 {
        f64::from(self.inbound.loss_ppm()) / 1e6
    }

    /// Part of the last `span` rounds (1 to 64) that did not come, 0 to 1; outages count.
    #[must_use]
    pub fn recent(&self, span: u32) -> f64 {
        let span = span.clamp(1, 64);
        f64::from(self.inbound.recent.lost_of(span)) / f64::from(span)
    }

    /// Part of our rounds that were lost on the way to the peer, 0 to 1, of about the last 1,024.
    #[must_use]
    pub fn loss_out(&self) -> f64 {
        f64::from(self.outbound.loss_ppm()) / 1e6
    }

    /// All of it.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let [rtt_p50_us, rtt_p99_us, rtt_p999_us] =
            self.rtt.histogram.quantiles([500_000, 990_000, 999_000]);
        Snapshot {
            rtt_last_us: micros(self.rtt.last_ns),
            rtt_min_us: micros(self.rtt.least_ns()),
            srtt_us: micros(self.rtt.smoothed_ns),
            rttvar_us: micros(self.rtt.deviation_ns),
            rtt_p50_us,
            rtt_p99_us,
            rtt_p999_us,
            jitter_us: self.arrivals.jitter_16 >> 4,
            loss_in_ppm: self.inbound.loss_ppm(),
            loss_out_ppm: self.outbound.loss_ppm(),
            loss_recent_ppm: self.inbound.recent.lost_of(64) * (1_000_000 / 64),
            outages: self.inbound.outages,
        }
    }
}

/// How much larger `a` is than `b`, both [`Estimate::transit_us`] of one peer's links.
#[must_use]
pub(crate) fn difference(a: i64, b: i64) -> i64 {
    // The peer's clock has 32 bits of microseconds, so differences are exact modulo 2^32.
    i64::from(a.wrapping_sub(b) as i32)
}

fn micros(ns: u64) -> u32 {
    u32::try_from(ns / 1_000).unwrap_or(u32::MAX)
}

/// `lost` of `expected`, in millionths.
fn ppm(lost: u32, expected: u32) -> u32 {
    if expected == 0 {
        return 0;
    }
    let part = u64::from(lost.min(expected)) * 1_000_000 / u64::from(expected);
    u32::try_from(part).unwrap_or(1_000_000)
}

/// Round-trip times: smoothed as in RFC 6298, least, and by how often.
#[derive(Debug, Clone)]
struct RoundTrip {
    base: Instant,
    last_ns: u64,
    /// 0: there was none yet.
    smoothed_ns: u64,
    deviation_ns: u64,
    /// The least of each second, by second since `base` modulo 10.
    least: [(u64, u64); MIN_SECONDS],
    /// The second of the last sample.
    second: u64,
    histogram: Histogram,
}

impl RoundTrip {
    fn new(base: Instant) -> Self {
        Self {
            base,
            last_ns: 0,
            smoothed_ns: 0,
            deviation_ns: 0,
            least: [(0, 0); MIN_SECONDS],
            second: 0,
            histogram: Histogram::new(base),
        }
    }

    fn add(&mut self, now: Instant, rtt: Duration) {
        // A minute is no round trip but a mistake; the bound keeps the sums from overflowing.
        let ns = rtt.clamp(Duration::from_nanos(1), Duration::from_secs(60)).as_nanos() as u64;
        self.last_ns = ns;
        if self.smoothed_ns == 0 {
            (self.smoothed_ns, self.deviation_ns) = (ns, ns / 2);
        } else {
            let off = ns.abs_diff(self.smoothed_ns);
            self.deviation_ns = self.deviation_ns - self.deviation_ns / 4 + off / 4;
            self.smoothed_ns = (self.smoothed_ns - self.smoothed_ns / 8 + ns / 8).max(1);
        }
        // Seconds count from 1: 0 marks a slot that never was used.
        self.second = now.saturating_duration_since(self.base).as_secs() + 1;
        if let Some((second, least)) =
            self.least.get_mut((self.second % MIN_SECONDS as u64) as usize)
        {
            *least = if *second == self.second { ns.min(*least) } else { ns };
            *second = self.second;
        }
        self.histogram.add(now, ns / 1_000);
    }

    fn least_ns(&self) -> u64 {
        let oldest = (self.second + 1).saturating_sub(MIN_SECONDS as u64).max(1);
        let recent = self.least.iter().filter(|(second, _)| *second >= oldest);
        recent.map(|(_, least)| *least).min().unwrap_or(0)
    }
}

/// Arrival times against send times.
#[derive(Debug, Clone)]
struct Arrivals {
    base: Instant,
    /// The last arrival: when, and its arrival minus its send time.
    last: Option<(Instant, i64)>,
    /// The least arrival minus send time of the half that fills, and of the one that is full. Our
    /// own stalls make arrivals late, never early, and a link can die right after one: a mean would
    /// then be wrong for ever.
    least: [i64; 2],
    /// When the filling half was begun, and how many arrivals it has had.
    begun: Instant,
    samples: u32,
    /// In sixteenths of a microsecond (RFC 3550, A.8).
    jitter_16: u32,
}

impl Arrivals {
    fn new(base: Instant) -> Self {
        Self { base, last: None, least: [0; 2], begun: base, samples: 0, jitter_16: 0 }
    }

    fn add(&mut self, at: Instant, sent_us: u32) {
        let arrived_us = at.saturating_duration_since(self.base).as_micros() as u32;
        let raw = arrived_us.wrapping_sub(sent_us);
        let fresh = self.last.filter(|(last, _)| at.saturating_duration_since(*last) < STALE);
        let Some((last_at, last)) = fresh else {
            let transit = i64::from(raw as i32);
            self.last = Some((at, transit));
            (self.least, self.begun, self.samples) = ([transit; 2], at, 1);
            return;
        };
        // Unwrapped: near the last one.
        let step = i64::from(raw.wrapping_sub(last as u32) as i32);
        let transit = last + step;
        self.last = Some((at.max(last_at), transit));
        let [filling, full] = self.least;
        if self.samples >= TRANSITS && at.saturating_duration_since(self.begun) >= TRANSIT_HALF {
            (self.least, self.begun, self.samples) = ([transit, filling], at, 1);
        } else {
            self.least = [filling.min(transit), full];
            self.samples += 1;
        }
        // Bounded as round trips are: a sender that invents times must not make us wait for ever.
        let off = u32::try_from(step.unsigned_abs().min(60_000_000)).unwrap_or(0);
        self.jitter_16 = self.jitter_16 + off - ((self.jitter_16 + 8) >> 4);
    }

    fn transit_us(&self) -> i64 {
        let [filling, full] = self.least;
        filling.min(full)
    }
}

/// Which of the last 1,024 rounds came.
#[derive(Debug, Clone, Default)]
struct Inbound {
    recent: Rounds,
    /// Bit `round % 1024`: it came.
    came: [u64; BLOCKS],
    /// Bit `round % 1024`: it counts, being neither before the first nor in an outage.
    counts: [u64; BLOCKS],
    /// Loss before the last outage, which emptied the window.
    before_ppm: u32,
    outages: u32,
}

impl Inbound {
    fn add(&mut self, round: u32) {
        let newest = self.recent.newest();
        match self.recent.on_round(round) {
            Came::First => {}
            Came::Newer(missing) => {
                let outage = missing > OUTAGE;
                if outage {
                    self.before_ppm = self.loss_ppm();
                    self.outages = self.outages.saturating_add(1);
                }
                let newest = newest.unwrap_or(round);
                // Beyond the window there is nothing more to clear.
                let steps = round.wrapping_sub(newest).min(WINDOW);
                for back in 1..steps {
                    self.put(round.wrapping_sub(back), false, !outage);
                }
            }
            Came::Late(_) => {}
            // Too late for the short memory, maybe not for the long one.
            Came::Again => {
                let behind = newest.unwrap_or(round).wrapping_sub(round);
                if behind >= WINDOW {
                    return;
                }
            }
        }
        self.put(round, true, true);
    }

    fn put(&mut self, round: u32, came: bool, counts: bool) {
        let index = (round % WINDOW / BLOCK_BITS) as usize;
        let bit = 1_u64 << (round % BLOCK_BITS);
        for (blocks, value) in [(&mut self.came, came), (&mut self.counts, counts)] {
            if let Some(block) = blocks.get_mut(index) {
                *block = if value { *block | bit } else { *block & !bit };
            }
        }
    }

    fn loss_ppm(&self) -> u32 {
        let counted: u32 = self.counts.iter().map(|block| block.count_ones()).sum();
        if counted < ENOUGH {
            return self.before_ppm;
        }
        // What came always counts.
        let came: u32 = self.came.iter().map(|block| block.count_ones()).sum();
        ppm(counted - came.min(counted), counted)
    }
}

/// How many of our rounds the peer has received.
#[derive(Debug, Clone, Default)]
struct Outbound {
    /// The last report.
    last: Option<(u32, u32)>,
    /// Rounds that the peer should have received since the first report, and those that it has;
    /// outages left out. Both wrap.
    expected: u32,
    received: u32,
    /// The two sums at every 128th round, oldest first.
    marks: VecDeque<(u32, u32)>,
}

impl Outbound {
    fn add(&mut self, highest: u32, count: u32) {
        let Some((last_highest, last_count)) = self.last else {
            self.last = Some((highest, count));
            self.marks.push_back((0, 0));
            return;
        };
        let (ahead, more) = (highest.wrapping_sub(last_highest), count.wrapping_sub(last_count));
        // Reports overtake each other on links of different speed.
        if ahead > u32::MAX / 2 || more > u32::MAX / 2 || (ahead == 0 && more == 0) {
            return;
        }
        self.last = Some((highest, count));
        let missing = ahead.saturating_sub(more);
        let expected = if missing > OUTAGE && missing > more { more } else { ahead };
        self.expected = self.expected.wrapping_add(expected);
        // A late one raises the count alone, and can make up for one that was taken for lost.
        self.received = self.received.wrapping_add(more);
        let newest_mark = self.marks.back().map_or(0, |(expected, _)| *expected);
        if self.expected.wrapping_sub(newest_mark) >= MARK_STEP {
            if self.marks.len() >= MARKS {
                self.marks.pop_front();
            }
            self.marks.push_back((self.expected, self.received));
        }
    }

    fn loss_ppm(&self) -> u32 {
        let Some((expected, received)) = self.marks.front() else { return 0 };
        let expected = self.expected.wrapping_sub(*expected);
        if expected < ENOUGH {
            return 0;
        }
        let received = self.received.wrapping_sub(*received);
        ppm(expected.saturating_sub(received), expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn round_trips_are_smoothed_as_in_rfc_6298() {
        let start = Instant::now();
        let mut estimate = Estimate::new(start);
        assert_eq!(estimate.snapshot(), Snapshot::default());
        estimate.on_rtt(start, MS * 8);
        assert_eq!((estimate.srtt(), estimate.snapshot().rttvar_us), (MS * 8, 4_000));
        estimate.on_rtt(start, MS * 16);
        let snapshot = estimate.snapshot();
        assert_eq!((snapshot.srtt_us, snapshot.rttvar_us), (9_000, 5_000));
        assert_eq!((snapshot.rtt_last_us, snapshot.rtt_min_us), (16_000, 8_000));
        assert!((15_500..16_500).contains(&snapshot.rtt_p999_us));
        // The least one is forgotten after 10 s, not before.
        estimate.on_rtt(start + MS * 9_900, MS * 20);
        assert_eq!(estimate.snapshot().rtt_min_us, 8_000);
        estimate.on_rtt(start + MS * 10_100, MS * 20);
        assert_eq!(estimate.snapshot().rtt_min_us, 20_000);
        estimate.reset();
        assert_eq!(estimate.snapshot(), Snapshot::default());
    }

    /// Two links, one of them 3 ms slower; the peer's clock is anywhere and wraps.
    #[test]
    fn skew_is_the_difference_of_delays() {
        let start = Instant::now();
        for clock in [0, 12_345_678, u32::MAX / 2, u32::MAX - 50_000] {
            let (mut near, mut far) = (Estimate::new(start), Estimate::new(start));
            assert_eq!(far.skew_to(&near), 0);
            for round in 0..200 {
                let sent = start + MS * round;
                let sent_us = clock.wrapping_add(round * 1_000);
                near.on_arrival(sent + MS, sent_us);
                far.on_arrival(sent + MS * 4, sent_us);
            }
            assert_eq!((far.skew_to(&near), near.skew_to(&far)), (3_000, -3_000));
            assert_eq!(near.jitter(), Duration::ZERO);
        }
    }

    #[test]
    fn a_long_silence_makes_the_skew_anew() {
        let start = Instant::now();
        let mut estimate = Estimate::new(start);
        estimate.on_arrival(start + MS, 0);
        estimate.on_arrival(start + MS * 6_000, 5_000_000);
        assert_eq!((estimate.transit_us(), estimate.jitter()), (1_000_000, Duration::ZERO));
        estimate.on_arrival(start + MS * 6_002, 5_001_000);
        assert_eq!(estimate.snapshot().jitter_us, 62);
    }

    #[test]
    fn loss_is_what_was_lost_and_outages_are_not_loss() {
        let mut estimate = Estimate::new(Instant::now());
        let first = u32::MAX - 1_000;
        let round = |index: u32| first.wrapping_add(index);
        (0..63).for_each(|index| estimate.on_round(round(index * 2)));
        assert!((estimate.loss_in() - 0.5).abs() < 0.01);
        (0..2_000).filter(|index| index % 10 != 9).for_each(|i| estimate.on_round(round(200 + i)));
        assert!((estimate.loss_in() - 0.1).abs() < 0.002, "{}", estimate.loss_in());
        assert_eq!(estimate.recent(20), 0.1);
        // An outage, however long, leaves the loss as it was before.
        for gap in [33, 500, 5_000] {
            estimate.on_round(round(10_000 + gap));
            assert!((estimate.loss_in() - 0.1).abs() < 0.002, "{}", estimate.loss_in());
            assert_eq!(estimate.recent(20), 0.95);
        }
        // The first was the step from round 124 to 200.
        assert_eq!(estimate.snapshot().outages, 4);
        (0..64).for_each(|index| estimate.on_round(round(15_001 + index)));
        assert_eq!(estimate.loss_in(), 0.0);
    }

    #[test]
    fn reordered_rounds_are_not_lost() {
        let mut estimate = Estimate::new(Instant::now());
        for block in (0..2_000).step_by(100) {
            (block..block + 100).rev().for_each(|round| estimate.on_round(round));
        }
        assert_eq!((estimate.loss_in(), estimate.recent(64)), (0.0, 0.0));
    }

    #[test]
    fn reports_give_the_loss_outward() {
        let mut estimate = Estimate::new(Instant::now());
        let (mut highest, mut count) = (u32::MAX - 700, u32::MAX - 5);
        let mut report = |estimate: &mut Estimate, ahead: u32, more: u32| {
            highest = highest.wrapping_add(ahead);
            count = count.wrapping_add(more);
            estimate.on_report(highest, count);
            // One that was overtaken.
            estimate.on_report(highest.wrapping_sub(3), count.wrapping_sub(3));
        };
        (0..1_000).for_each(|_| report(&mut estimate, 2, 1));
        assert!((estimate.loss_out() - 0.5).abs() < 0.01);
        // An outage of ours is none of it, and what was long ago is forgotten.
        report(&mut estimate, 5_000, 1);
        (0..300).for_each(|_| report(&mut estimate, 4, 4));
        assert_eq!(estimate.loss_out(), 0.0);
    }

    proptest! {
        #[test]
        fn measures_any_loss(seed: u64, percent in 0_u32..60, start: u32) {
            let mut state = seed | 1;
            let mut estimate = Estimate::new(Instant::now());
            let mut count = 0;
            for index in 0..3_000_u32 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let round = start.wrapping_add(index);
                if (state >> 33) % 100 >= u64::from(percent) {
                    count += 1;
                    estimate.on_round(round);
                    estimate.on_report(round, count);
                }
            }
            let real = f64::from(percent) / 100.0;
            prop_assert!((estimate.loss_in() - real).abs() < 0.08, "in {}", estimate.loss_in());
            prop_assert!((estimate.loss_out() - real).abs() < 0.08, "out {}", estimate.loss_out());
        }

        #[test]
        fn takes_anything(
            steps in prop::collection::vec((any::<u32>(), any::<u32>(), 0_u64..1 << 40), 1..200),
        ) {
            let start = Instant::now();
            let mut estimate = Estimate::new(start);
            for (a, b, us) in steps {
                let now = start + Duration::from_micros(us);
                estimate.on_rtt(now, Duration::from_micros(u64::from(a) * u64::from(b)));
                estimate.on_arrival(now, a);
                estimate.on_round(a);
                estimate.on_report(a, b);
                let snapshot = estimate.snapshot();
                prop_assert!(snapshot.loss_in_ppm <= 1_000_000);
                prop_assert!(snapshot.loss_out_ppm <= 1_000_000);
                prop_assert!((0.0..=1.0).contains(&estimate.recent(20)));
                prop_assert!(snapshot.rtt_min_us <= 60_000_000);
            }
        }
    }
}
