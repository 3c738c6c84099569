//! The rules one by one; [`super::simulation`] has them all at once.

use super::*;
use crate::link::profile::{FAST, KNET_LIKE};

const MS: Duration = Duration::from_millis(1);

/// Two or more links to a peer that sends a round every millisecond.
struct Bench {
    now: Instant,
    round: u32,
    pass: u64,
    liveness: Liveness,
}

fn link(index: u8) -> LinkIndex {
    LinkIndex::new(index).unwrap()
}

fn set(links: &[u8]) -> LinkSet {
    links.iter().map(|index| link(*index)).collect()
}

impl Bench {
    fn new(links: usize) -> Self {
        let now = Instant::now();
        let mut liveness = Liveness::new(now, FAST, links);
        LinkIndex::all(links).for_each(|link| liveness.set_path_usable(link, true));
        Self { now, round: u32::MAX - 3, pass: 0, liveness }
    }

    /// A bench whose links are all up.
    fn up(links: usize) -> Self {
        let mut bench = Self::new(links);
        let all = LinkSet::from_iter(LinkIndex::all(links));
        bench.rounds(30, all);
        all.iter().for_each(|link| assert_eq!(bench.liveness.state(link), State::Up));
        bench
    }

    fn judge(&mut self) -> Judgement {
        self.pass += 2;
        self.liveness.judge(self.now, self.now, self.pass, MS)
    }

    /// One round over each of these links, and a judge; what it changed.
    fn round(&mut self, over: LinkSet) -> Vec<(LinkIndex, Transition)> {
        self.now += MS;
        self.round = self.round.wrapping_add(1);
        for index in over.iter() {
            self.liveness.on_round(self.now, index, self.round, Duration::ZERO, 0, 0.0);
        }
        self.judge().transitions
    }

    /// So many rounds; what they changed, without the time.
    fn rounds(&mut self, count: u32, over: LinkSet) -> Vec<(u8, State, Cause)> {
        let all = (0..count).flat_map(|_| self.round(over)).collect::<Vec<_>>();
        all.into_iter().map(|(link, change)| (link.get(), change.to, change.cause)).collect()
    }

    fn report(&mut self, came_by: u8, lost: &[u8]) {
        self.liveness.on_report(link(came_by), set(lost), MS);
    }
}

#[test]
fn the_first_link_heard_is_up_at_once_and_others_after_some_rounds() {
    let mut bench = Bench::new(2);
    assert!(bench.judge().transitions.is_empty());
    assert_eq!(bench.liveness.cause(link(0)), Cause::Starting);
    assert_eq!(bench.liveness.sendable(), set(&[0, 1]));
    bench.liveness.on_heard(bench.now, link(1));
    let changes = bench.judge().transitions;
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].0, changes[0].1.cause), (link(1), Cause::FirstHeard));
    assert_eq!(bench.liveness.sendable(), set(&[1]));
    assert!(bench.rounds(4, set(&[0, 1])).is_empty());
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Up, Cause::RoundsBack(5))]);
}

#[test]
fn a_link_that_falls_behind_is_suspect_then_down_then_back() {
    let mut bench = Bench::up(2);
    let missed = Cause::Missed { rounds: 3, than: link(1) };
    // Three rounds, and the grace: the fourth round finds it.
    assert!(bench.rounds(3, set(&[1])).is_empty());
    assert!(bench.liveness.lost().is_empty());
    assert_eq!(bench.liveness.poll_timeout(), Some(bench.now + FAST.min_grace));
    bench.now += FAST.min_grace;
    assert!(bench.judge().wants_pass);
    let changes = bench.judge();
    assert!(!changes.wants_pass);
    assert_eq!(changes.transitions[0].1.cause, missed);
    assert_eq!(bench.liveness.lost(), set(&[0]));
    assert_eq!(bench.liveness.since(link(0)), Some(bench.now));
    assert_eq!(bench.rounds(60, set(&[1])), [(0, State::Down, Cause::StillBad)]);
    assert_eq!(bench.liveness.cause(link(0)), missed);
    assert_eq!(bench.liveness.sendable(), set(&[1]));
    // It was up before: 5 rounds are not enough, of the last 20 only one may be missing.
    assert!(bench.rounds(18, set(&[0, 1])).is_empty());
    assert!(bench.liveness.lost().is_empty());
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Up, Cause::RoundsBack(19))]);
}

/// What lies unread in a socket does not count as missing.
#[test]
fn a_verdict_waits_for_the_workers() {
    let mut bench = Bench::up(2);
    let judge = |bench: &mut Bench, pass| bench.liveness.judge(bench.now, bench.now, pass, MS);
    let round = bench.round;
    for ahead in 1..=10 {
        let later = round.wrapping_add(ahead);
        bench.liveness.on_round(bench.now + MS, link(1), later, Duration::ZERO, 0, 0.0);
    }
    bench.now += MS * 2;
    for pass in [100, 100, 101] {
        let judgement = judge(&mut bench, pass);
        assert!(judgement.wants_pass && judgement.transitions.is_empty());
    }
    // Data is as good as a heartbeat.
    bench.liveness.on_heard(bench.now, link(0));
    assert_eq!(judge(&mut bench, 102), Judgement::default());
    assert!(bench.liveness.lost().is_empty());
}

#[test]
fn a_suspicion_is_cleared_by_rounds_in_a_row() {
    let mut bench = Bench::up(2);
    bench.rounds(6, set(&[1]));
    assert_eq!(bench.liveness.state(link(0)), State::Suspect);
    bench.rounds(2, set(&[0, 1]));
    bench.rounds(1, set(&[1]));
    assert!(bench.rounds(2, set(&[0, 1])).is_empty());
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Up, Cause::Recovered)]);
}

/// A link that is heard again but loses too much to be cleared gets more time, not for ever.
#[test]
fn a_suspect_that_is_heard_gets_more_time() {
    let mut bench = Bench::up(2);
    bench.rounds(5, set(&[1]));
    let since = bench.liveness.since(link(0)).unwrap();
    while bench.liveness.state(link(0)) == State::Suspect {
        bench.round(set(&[0, 1]));
        bench.round(set(&[1]));
    }
    let took = bench.liveness.since(link(0)).unwrap() - since;
    assert!((FAST.down_after * 4..FAST.down_after * 4 + MS * 3).contains(&took), "{took:?}");
}

#[test]
fn the_only_link_stays_up() {
    let mut bench = Bench::up(2);
    bench.rounds(100, set(&[1]));
    assert_eq!(bench.liveness.state(link(0)), State::Down);
    // Not heard by the peer either way, the kernel complains: there is nowhere else.
    bench.report(1, &[1]);
    bench.liveness.on_signal(link(1), Signal::Unreachable);
    assert!(bench.rounds(100, set(&[1])).is_empty());
    // Where the peer hears us is the better guess, though.
    assert_eq!(bench.liveness.sendable(), set(&[0]));
    assert!(!bench.liveness.heard_by_peer(link(1)));
    // A drained link is nowhere to go.
    let mut bench = Bench::up(2);
    bench.liveness.set_drained(link(1), true);
    assert!(bench.liveness.is_drained(link(1)));
    assert!(bench.rounds(100, set(&[1])).is_empty());
    bench.liveness.set_drained(link(1), false);
    assert_eq!(bench.rounds(2, set(&[1])).len(), 1);
}

#[test]
fn what_the_peer_reports_counts_and_is_not_reported_back() {
    let mut bench = Bench::up(2);
    bench.report(1, &[0]);
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Suspect, Cause::NotHeardByPeer)]);
    assert!(bench.liveness.lost().is_empty());
    assert_eq!(bench.rounds(60, set(&[0, 1])), [(0, State::Down, Cause::StillBad)]);
    assert_eq!(bench.liveness.cause(link(0)), Cause::NotHeardByPeer);
    bench.report(1, &[]);
    assert!(bench.rounds(4, set(&[0, 1])).is_empty());
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Up, Cause::RoundsBack(5))]);
}

#[test]
fn an_old_report_over_a_slow_link_is_ignored() {
    let mut bench = Bench::up(2);
    bench.rounds(2, set(&[1]));
    bench.report(1, &[]);
    // Link 0 is two rounds late: what it brings is older.
    bench.report(0, &[1]);
    assert!(bench.liveness.heard_by_peer(link(1)));
    bench.rounds(1, set(&[0, 1]));
    bench.report(0, &[1]);
    assert!(!bench.liveness.heard_by_peer(link(1)));
}

#[test]
fn hard_signals_count_at_once_and_hold() {
    let causes = [
        (Signal::Carrier(false), Signal::Carrier(true), Cause::Carrier),
        (Signal::Address(false), Signal::Address(true), Cause::AddressGone),
        (Signal::Neighbour(false), Signal::Neighbour(true), Cause::NeighbourFailed),
    ];
    for (bad, fine, cause) in causes {
        let mut bench = Bench::up(2);
        bench.liveness.on_signal(link(0), bad);
        assert_eq!(bench.judge().transitions[0].1.cause, cause);
        // Heard all the time: not while the signal holds.
        assert_eq!(bench.rounds(200, set(&[0, 1])), [(0, State::Down, Cause::StillBad)]);
        // The last one too, for it can not send.
        bench.liveness.on_signal(link(1), bad);
        assert_eq!(bench.rounds(1, set(&[0, 1])), [(1, State::Suspect, cause)]);
        assert_eq!(bench.liveness.sendable(), set(&[0, 1]));
        bench.liveness.on_signal(link(0), fine);
        assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Up, Cause::FirstHeard)]);
        assert_eq!(bench.liveness.sendable(), set(&[0]));
    }
}

#[test]
fn a_refusal_to_send_is_a_suspicion_that_clears() {
    let mut bench = Bench::up(2);
    bench.liveness.on_signal(link(0), Signal::Unreachable);
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Suspect, Cause::Unreachable)]);
    assert!(bench.rounds(2, set(&[0, 1])).is_empty());
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Up, Cause::Recovered)]);
}

#[test]
fn a_path_that_is_too_small_is_down() {
    let mut bench = Bench::up(2);
    for index in [0, 1] {
        bench.liveness.set_path_usable(link(index), false);
        let down = (index, State::Down, Cause::PathTooSmall);
        assert_eq!(bench.rounds(50, set(&[0, 1])), [down]);
    }
    bench.liveness.set_path_usable(link(1), true);
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(1, State::Up, Cause::RoundsBack(50))]);
    // One that is not known waits until it is, unless it is the first.
    let mut bench = Bench::up(1);
    bench.liveness.set_count(bench.now, 2);
    assert!(bench.rounds(50, set(&[0, 1])).is_empty());
    bench.liveness.set_path_usable(link(1), true);
    assert_eq!(bench.rounds(1, set(&[0, 1])).len(), 1);
}

#[test]
fn our_own_stall_moves_deadlines() {
    let mut bench = Bench::up(2);
    bench.rounds(5, set(&[1]));
    let since = bench.liveness.since(link(0)).unwrap();
    let due = bench.now + MS;
    bench.now = since + FAST.down_after + MS;
    let late = bench.now - due;
    bench.liveness.on_heard(bench.now, link(1));
    assert!(bench.liveness.judge(bench.now, due, 1_000, MS).transitions.is_empty());
    let changes = bench.rounds(60, set(&[1]));
    assert_eq!(changes, [(0, State::Down, Cause::StillBad)]);
    let took = bench.liveness.since(link(0)).unwrap() - since;
    assert!((FAST.down_after + late..FAST.down_after + late + MS * 2).contains(&took));
}

/// A peer that stalls cannot tell that it hears us again.
#[test]
fn the_peers_stall_moves_deadlines() {
    let mut bench = Bench::up(2);
    bench.report(1, &[0]);
    bench.rounds(10, set(&[0, 1]));
    assert_eq!(bench.liveness.state(link(0)), State::Suspect);
    assert!(bench.rounds(200, set(&[])).is_empty());
    bench.report(1, &[]);
    assert_eq!(bench.rounds(3, set(&[0, 1])), [(0, State::Up, Cause::Recovered)]);
    // What our own side says is true all the same.
    bench.liveness.on_signal(link(0), Signal::Carrier(false));
    assert_eq!(bench.rounds(200, set(&[])).len(), 2);
}

#[test]
fn a_silent_peer_is_reported_not_failed_over() {
    let mut bench = Bench::up(2);
    bench.report(0, &[]);
    let last = bench.now;
    assert_eq!(bench.liveness.poll_timeout(), Some(last + FAST.peer_timeout));
    bench.now = last + FAST.peer_timeout;
    let judgement = bench.judge();
    assert!(judgement.wants_pass && !judgement.peer_silent);
    let judgement = bench.judge();
    assert!(judgement.peer_silent && judgement.transitions.is_empty());
    let changes = bench.liveness.reset(bench.now, Cause::PeerSilent);
    assert_eq!(changes.len(), 2);
    assert_eq!(bench.liveness.cause(link(1)), Cause::PeerSilent);
    assert_eq!(bench.liveness.poll_timeout(), None);
    assert!(!bench.judge().peer_silent);
    // As in the beginning, and the silence counts from the first judge.
    assert_eq!(bench.liveness.poll_timeout(), Some(bench.now + FAST.peer_timeout));
    assert_eq!(bench.rounds(1, set(&[0, 1])), [(0, State::Up, Cause::FirstHeard)]);
}

#[test]
fn patience_with_a_peer_follows_its_pace() {
    let mut bench = Bench::up(1);
    bench.liveness.set_profile(KNET_LIKE);
    bench.liveness.on_report(link(0), LinkSet::EMPTY, MS * 2_000);
    assert_eq!(bench.liveness.poll_timeout(), Some(bench.now + MS * 6_000));
    // Rounds that come in fits and starts take longer to be missed, three times at most.
    bench.liveness.on_report(link(0), LinkSet::EMPTY, MS);
    for gap in [10, 2_900, 10, 2_900, 10, 2_900] {
        bench.now += MS * gap;
        bench.round(set(&[0]));
    }
    let patience = bench.liveness.poll_timeout().unwrap() - bench.now;
    assert!((MS * 4_000..MS * 9_000).contains(&patience), "{patience:?}");
}

#[test]
fn history_is_bounded_and_survives_a_reset() {
    let mut bench = Bench::up(2);
    for _ in 0..20 {
        bench.liveness.on_signal(link(0), Signal::Unreachable);
        bench.rounds(6, set(&[0, 1]));
    }
    assert_eq!(bench.liveness.history(link(0)).len(), HISTORY);
    bench.liveness.reset(bench.now, Cause::SessionEnded);
    let history = bench.liveness.history(link(0));
    assert_eq!((history.len(), history[15].cause), (HISTORY, Cause::SessionEnded));
    assert!(history.windows(2).all(|pair| pair[0].to == pair[1].from && pair[0].at <= pair[1].at));
    bench.liveness.set_count(bench.now, 1);
    assert!(bench.liveness.history(link(1)).is_empty());
    assert_eq!(bench.liveness.since(link(1)), None);
    assert_eq!(bench.liveness.sendable(), set(&[0]));
}

#[test]
fn causes_read_as_words() {
    let missed = Cause::Missed { rounds: 4, than: link(1) };
    assert_eq!(missed.to_string(), "missed 4 rounds that link 1 had");
    assert_eq!(Cause::RoundsBack(5).to_string(), "5 rounds in a row");
    assert_eq!(State::Suspect.to_string(), "suspect");
}
