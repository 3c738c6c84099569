//! Spoofed frames, floods and noise.

use super::segment::Segment;
use super::*;
use proptest::prelude::*;

/// An answer of `mac` in the name of `ip`, as if station `to` had asked.
fn spoofed(kind: Kind, ip: IpAddr, mac: MacAddr, to: &LocalAddress) -> Vec<u8> {
    let liar = LocalAddress { mac, ip, ..kind.local(0) };
    message::reply(&liar, to.mac, Some(to.ip))
}

fn gratuitous(kind: Kind, ip: IpAddr, mac: MacAddr) -> Vec<u8> {
    message::announcement(&LocalAddress { mac, ip, ..kind.local(0) })
}

fn asking(kind: Kind, last: u16, target: IpAddr) -> Vec<u8> {
    message::request(&kind.local(last), target, None)
}

#[test]
fn an_address_that_traffic_proves_does_not_move_by_lies() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let (remote, us) = (segment.ip(1), kind.local(1));
        segment.send(0, remote, 0);
        segment.run(secs(2));
        let before = segment.stations[0].neighbors.counters().tx_requests.get();
        for step in 0..1000_u16 {
            segment.confirm(0, remote);
            let liar = mac(1000 + step);
            segment.inject(0, &spoofed(kind, remote, liar, &us));
            segment.inject(0, &gratuitous(kind, remote, liar));
            let asking = LocalAddress { mac: liar, ..kind.local(2) };
            segment.inject(0, &message::request(&asking, us.ip, None));
            segment.send(0, remote, step + 1);
            segment.run(millis(5));
        }
        assert_eq!(segment.stations[1].received, (0..=1000).collect::<Vec<_>>(), "{kind:?}");
        let counters = segment.stations[0].neighbors.counters();
        assert_eq!(counters.neighbors_moved.get(), 0);
        // Requests are limited to 100 per second: not all of the lies were looked at.
        assert!(counters.spoof_suspected.get() > 2000, "{kind:?}");
        // The old station was asked about once a second.
        let asked = counters.tx_requests.get() - before;
        assert!((1..=7).contains(&asked), "{kind:?} {asked}");
    }
}

#[test]
fn of_two_answers_the_first_counts() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let (remote, us) = (segment.ip(1), kind.local(1));
        segment.send(0, remote, 0);
        segment.inject(0, &spoofed(kind, remote, mac(66), &us));
        assert_eq!(segment.send(0, remote, 1), Resolution::Known(mac(2)), "{kind:?}");
        assert_eq!(segment.stations[0].neighbors.counters().spoof_suspected.get(), 1);
    }
}

#[test]
fn claims_by_turns_cost_little() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let (remote, other) = (segment.ip(1), segment.ip(2));
        segment.send(0, remote, 0);
        segment.send(0, other, 0);
        segment.run(secs(2));
        let before = segment.stations[0].neighbors.counters().tx_requests.get();
        let (generation, events) =
            (segment.neighbors(0).generation(), segment.stations[0].events.len());
        for step in 0..1000_u16 {
            segment.inject(0, &gratuitous(kind, remote, mac(1000 + step % 2)));
            segment.run(millis(5));
        }
        // It moved by the first lie, and then not before the liar was asked in vain, in 0.9 s.
        let changes = segment.neighbors(0).generation() - generation;
        let counters = segment.stations[0].neighbors.counters();
        assert!((1..=7).contains(&changes), "{kind:?} {changes}");
        assert!(segment.stations[0].events.len() - events <= 7, "{kind:?}");
        assert!(counters.tx_requests.get() - before <= 30, "{kind:?}");
        assert!(counters.spoof_suspected.get() > 400, "{kind:?}");
        // The others are not touched, and the true station is found again.
        assert_eq!(segment.send(0, other, 1), Resolution::Known(mac(3)), "{kind:?}");
        for _ in 0..20 {
            segment.run(secs(1));
            segment.resolve(0, remote);
        }
        assert_eq!(segment.resolve(0, remote), Resolution::Known(mac(2)), "{kind:?}");
    }
}

#[test]
fn claims_to_many_addresses_are_policed_and_neighbours_in_use_come_first() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let us = segment.ip(0);
        for last in 0..200 {
            segment.inject(0, &asking(kind, 1000 + last, us));
            segment.run(millis(20));
        }
        let remote = segment.ip(1);
        segment.send(0, remote, 0);
        segment.run(secs(2));
        let moved =
            |segment: &Segment| segment.stations[0].neighbors.counters().neighbors_moved.get();
        let before = moved(&segment);
        // 2 s, 10,000 claims per second to the addresses of 200 that nobody sends to.
        for round in 0..100_u16 {
            for last in 0..200 {
                let liar = mac(3000 + round);
                segment.inject(0, &gratuitous(kind, kind.ip(0, 1000 + last), liar));
            }
            segment.run(millis(20));
        }
        let moves = moved(&segment) - before;
        // A burst of 20, 20 per second, and those that were silent when they were asked.
        assert!((20..=120).contains(&moves), "{kind:?} {moves}");
        let counters = segment.stations[0].neighbors.counters();
        assert!(counters.claims_dropped_rate_limited.get() > 10_000, "{kind:?}");
        // One in use that moves is followed all the same.
        segment.inject(0, &gratuitous(kind, remote, mac(77)));
        assert_eq!(segment.resolve(0, remote), Resolution::Known(mac(77)), "{kind:?}");
    }
}

#[test]
fn a_lie_while_the_station_is_asked_gives_way_to_its_answer() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let (remote, us) = (segment.ip(1), kind.local(1));
        segment.send(0, remote, 0);
        segment.run(secs(20));
        segment.send(0, remote, 1);
        // The refresh at 25 s is lost, and somebody else answers.
        segment.loss = Box::new(|_| true);
        segment.run(millis(5100));
        segment.inject(0, &spoofed(kind, remote, mac(66), &us));
        segment.loss = Box::new(|_| false);
        segment.run(secs(1));
        assert_eq!(segment.send(0, remote, 2), Resolution::Known(mac(2)), "{kind:?}");
        assert_eq!(segment.stations[0].neighbors.counters().neighbors_moved.get(), 0);
    }
}

#[test]
fn nobody_is_learnt_that_nobody_asked_for() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let us = kind.local(1);
        segment.inject(0, &spoofed(kind, kind.ip(0, 50), mac(50), &us));
        segment.inject(0, &gratuitous(kind, kind.ip(0, 51), mac(51)));
        let counters = segment.stations[0].neighbors.counters();
        assert_eq!(counters.rx_dropped_unsolicited.get(), 2 + 9, "{kind:?}");
        // Questions for others' addresses. Those of ND go to a group that we are not in.
        let mut frame = asking(kind, 52, segment.ip(1));
        frame[..6].copy_from_slice(&us.mac.0);
        segment.inject(0, &frame);
        assert!(segment.stations[0].neighbors.counters().rx_dropped_not_ours.get() >= 1);
        // One who is off the link is answered, but not learnt.
        let far = LocalAddress { ip: kind.ip(9, 1), ..kind.local(53) };
        segment.inject(0, &message::request(&far, us.ip, None));
        assert_eq!(segment.neighbors(0).table(), HashMap::new(), "{kind:?}");
        assert_eq!(segment.stations[0].neighbors.counters().tx_replies.get(), 1);
        // One who asks us on the link is.
        segment.inject(0, &asking(kind, 54, us.ip));
        let learnt = HashMap::from([(kind.ip(0, 54), mac(54))]);
        assert_eq!(segment.neighbors(0).table(), learnt, "{kind:?}");
    }
}

#[test]
fn a_flood_of_requests_costs_little_and_evicts_nobody_in_use() {
    for kind in KINDS {
        let mut segment = Segment::new(kind);
        let mut config = kind.config(1);
        config.limits.entries = 64;
        segment.add(config);
        for last in 2..12 {
            segment.add(kind.config(last));
        }
        segment.run(secs(10));
        for station in 1..=10 {
            segment.send(0, segment.ip(station), 0);
        }
        let us = segment.ip(0);
        let replies = |segment: &Segment| segment.stations[0].neighbors.counters().tx_replies.get();
        let before = replies(&segment);
        // 10 s, 2000 questions per second of as many stations.
        for round in 0..1000_u16 {
            for one in 0..20 {
                segment.inject(0, &asking(kind, 1000 + round * 20 + one, us));
            }
            if round % 100 == 0 {
                // A neighbour in use is answered all the same.
                let answered = replies(&segment);
                segment.inject(0, &asking(kind, 2 + round / 100, us));
                assert_eq!(replies(&segment), answered + 1, "{kind:?} {round}");
            }
            segment.run(millis(10));
            assert!(segment.list(0).len() <= 64);
        }
        let answered = replies(&segment) - before;
        assert!((900..=1100).contains(&answered), "{kind:?} {answered}");
        let table = segment.neighbors(0).table();
        for station in 1..=10 {
            assert!(table.contains_key(&segment.ip(station)), "{kind:?} {station}");
        }
        let counters = segment.stations[0].neighbors.counters();
        assert!(counters.neighbors_evicted.get() > 500);
        assert!(counters.rx_dropped_rate_limited.get() > 18_000);
    }
}

#[test]
fn a_table_full_of_neighbors_in_use_takes_no_more() {
    for kind in KINDS {
        let mut segment = Segment::new(kind);
        let mut config = kind.config(1);
        config.limits.entries = 4;
        config.statics = vec![(kind.ip(0, 99), mac(99))];
        segment.add(config);
        for last in 2..7 {
            segment.add(kind.config(last));
        }
        for station in 1..=3 {
            segment.send(0, segment.ip(station), 0);
        }
        let full = Resolution::Failed(segment.ip(4));
        assert_eq!(segment.send(0, segment.ip(4), 0), full, "{kind:?}");
        segment.inject(0, &asking(kind, 6, segment.ip(0)));
        let counters = segment.stations[0].neighbors.counters();
        assert_eq!(counters.neighbors_dropped_table_full.get(), 2);
        // The least recently used one gives way once it is not in use any more.
        segment.run(secs(20));
        segment.send(0, segment.ip(2), 1);
        segment.send(0, segment.ip(3), 1);
        segment.run(secs(11));
        segment.send(0, segment.ip(4), 1);
        let mut known: Vec<_> = segment.neighbors(0).table().into_keys().collect();
        known.sort();
        assert_eq!(known, [3, 4, 5, 99].map(|last| kind.ip(0, last)), "{kind:?}");
    }
}

#[test]
fn held_datagrams_and_queues_are_bounded() {
    for kind in KINDS {
        let now = Instant::now();
        let mut neighbors = Neighbors::new(now, kind.config(1));
        let mut displaced = 0;
        for number in 0..2000_u16 {
            let remote = kind.ip(0, 2 + number % 100);
            if let Resolution::Pending(hop) = neighbors.resolve(now, remote) {
                displaced +=
                    usize::from(neighbors.hold(now, hop, pending(remote, number)).is_some());
            }
        }
        assert_eq!(displaced, 2000 - 256, "{kind:?}");
        // Nobody fetches anything.
        let us = kind.local(1);
        for step in 0..5000_u16 {
            let ip = kind.ip(0, 2 + step % 100);
            neighbors.handle_frame(now, &spoofed(kind, ip, mac(3000 + step), &us));
            // Everybody has answered before time passes.
            neighbors.handle_timeout(now + secs(u64::from(step.saturating_sub(100))));
        }
        // What was released takes the room of what waits.
        let later = now + secs(5000);
        let unknown = kind.ip(0, 5000);
        assert_eq!(neighbors.resolve(later, unknown), Resolution::Pending(unknown));
        assert_eq!(neighbors.hold(later, unknown, pending(unknown, 1)), Some(pending(unknown, 1)));
        let released = std::iter::from_fn(|| neighbors.poll_released()).count();
        let frames = std::iter::from_fn(|| neighbors.poll_frame()).count();
        let events = std::iter::from_fn(|| neighbors.poll_event()).count();
        assert!(released == 256 && frames <= MAX_QUEUED && events <= MAX_QUEUED, "{kind:?}");
        // A datagram without a question for its neighbour is given back.
        let stray = pending(kind.ip(0, 9999), 1);
        assert_eq!(neighbors.hold(now, kind.ip(0, 9999), stray.clone()), Some(stray));
    }
}

/// One thing that happens to a machine.
#[derive(Debug, Clone)]
enum Input {
    Resolve(u16),
    Hold(u16),
    Confirm(u16),
    Announce,
    Reply(u16, u16),
    Gratuitous(u16, u16),
    Ask(u16, u16),
    Noise(Vec<u8>),
    Pass(u64),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let ip = || 2..9_u16;
    let mac = || 2..9_u16;
    let one = prop_oneof![
        4 => ip().prop_map(Input::Resolve),
        2 => ip().prop_map(Input::Hold),
        2 => ip().prop_map(Input::Confirm),
        1 => Just(Input::Announce),
        3 => (ip(), mac()).prop_map(|(ip, mac)| Input::Reply(ip, mac)),
        2 => (ip(), mac()).prop_map(|(ip, mac)| Input::Gratuitous(ip, mac)),
        2 => (ip(), mac()).prop_map(|(ip, mac)| Input::Ask(ip, mac)),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Input::Noise),
        4 => prop_oneof![1..400_u64, 400..40_000_u64].prop_map(Input::Pass),
    ];
    prop::collection::vec(one, 1..120)
}

proptest! {
    /// Whatever happens, in whatever order: the bounds hold, the generation tells of every change,
    /// no datagram is lost or doubled unseen, and no timer is left behind.
    #[test]
    fn invariants_hold(inputs in inputs(), kind in 0..4_usize) {
        let kind = KINDS[kind];
        let mut now = Instant::now();
        let mut config = kind.config(1);
        config.statics = vec![(kind.ip(0, 8), mac(8))];
        config.limits = NeighborLimits { entries: 4, held_per_neighbor: 2, held: 5, ..config.limits };
        let mut neighbors = Neighbors::new(now, config);
        let us = kind.local(1);
        let (mut given, mut returned, mut number) = (0, 0, 0);
        let mut seen = (neighbors.generation(), neighbors.table());
        for input in inputs {
            match input {
                Input::Resolve(last) => {
                    let known = neighbors.resolve(now, kind.ip(0, last));
                    let entry = neighbors.table().get(&kind.ip(0, last)).copied();
                    match known {
                        Resolution::Known(mac) => prop_assert_eq!(Some(mac), entry),
                        _ => prop_assert_eq!(entry, None),
                    }
                }
                Input::Hold(last) => {
                    given += 1;
                    number += 1;
                    let datagram = pending(kind.ip(0, last), number);
                    let back = neighbors.hold(now, kind.ip(0, last), datagram);
                    returned += usize::from(back.is_some());
                }
                Input::Confirm(last) => neighbors.confirm(now, kind.ip(0, last)),
                Input::Announce => neighbors.announce(now),
                Input::Reply(ip, by) => {
                    neighbors.handle_frame(now, &spoofed(kind, kind.ip(0, ip), mac(by), &us));
                }
                Input::Gratuitous(ip, by) => {
                    neighbors.handle_frame(now, &gratuitous(kind, kind.ip(0, ip), mac(by)));
                }
                Input::Ask(ip, by) => {
                    let from = LocalAddress { mac: mac(by), ..kind.local(ip) };
                    neighbors.handle_frame(now, &message::request(&from, us.ip, None));
                }
                Input::Noise(bytes) => neighbors.handle_frame(now, &bytes),
                Input::Pass(time) => {
                    now += millis(time);
                    neighbors.handle_timeout(now);
                    prop_assert!(neighbors.poll_timeout().is_none_or(|at| at > now));
                }
            }
            let table = neighbors.table();
            prop_assert_eq!(table.get(&kind.ip(0, 8)), Some(&mac(8)));
            if table != seen.1 {
                prop_assert_ne!(neighbors.generation(), seen.0);
            }
            seen = (neighbors.generation(), table);
            prop_assert!(neighbors.list(now).len() <= 4);
            let timers = neighbors.entries.values().filter_map(Entry::timer);
            let first = timers.chain(neighbors.own.timer()).min();
            prop_assert!(neighbors.poll_timeout() <= first || first.is_none());
            while neighbors.poll_frame().is_some() {}
            while neighbors.poll_event().is_some() {}
        }
        // Everybody fails in the end.
        let counters = neighbors.counters().clone();
        for _ in 0..20 {
            now += secs(60);
            neighbors.handle_timeout(now);
        }
        let released = std::iter::from_fn(|| neighbors.poll_released()).count();
        let failed = counters.held_dropped_failed.get() as usize;
        prop_assert_eq!(given, returned + released + failed);
    }
}
