//! Stations that find, keep and lose each other.

use super::segment::{Segment, destination};
use super::*;

/// The Ethernet group of ff02::16.
const MLD_ROUTERS: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 0x16]);

/// Sends a datagram from station 0 every 100 ms for `time`; calls `each` after each.
fn traffic(
    segment: &mut Segment,
    remote: IpAddr,
    numbers: std::ops::Range<u16>,
    mut each: impl FnMut(&mut Segment, u16),
) {
    for number in numbers {
        segment.send(0, remote, number);
        each(segment, number);
        segment.run(millis(100));
    }
}

fn requests_since(segment: &Segment, station: usize, since: Instant) -> Vec<(Duration, MacAddr)> {
    let sent = segment.stations[station].sent.iter().filter(|(at, _)| *at >= since);
    let sent = sent.map(|(at, frame)| (*at - since, destination(frame)));
    sent.filter(|(_, to)| *to != MLD_ROUTERS).collect()
}

#[test]
fn first_datagrams_wait_and_leave_in_order() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        // The answer takes a while: everything is lost for 100 ms.
        segment.loss = Box::new(|_| true);
        for number in 0..5 {
            let resolution = segment.send(0, segment.ip(1), number);
            assert_eq!(resolution, Resolution::Pending(segment.ip(1)), "{kind:?}");
        }
        segment.loss = Box::new(|_| false);
        segment.run(secs(1));
        assert_eq!(segment.send(0, segment.ip(1), 5), Resolution::Known(mac(2)));
        assert_eq!(segment.stations[1].received, [0, 1, 2, 3, 4, 5], "{kind:?}");
        assert_eq!(segment.stations[0].events, [NeighborEvent::Reachable(segment.ip(1))]);
        // The other side has learnt us by our question.
        assert_eq!(segment.send(1, segment.ip(0), 6), Resolution::Known(mac(1)));
        let counters = segment.stations[0].neighbors.counters();
        assert_eq!((counters.held.get(), counters.held_released.get()), (5, 5));
        assert_eq!((counters.tx_requests.get(), segment.lost.len()), (2, 0));
    }
}

#[test]
fn far_addresses_go_by_the_gateway() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        for number in 0..3 {
            segment.send(0, kind.ip(9, number), number);
        }
        assert_eq!(segment.stations[3].received, [0, 1, 2], "{kind:?}");
        let table = segment.stations[0].neighbors.table();
        assert_eq!(table, HashMap::from([(kind.ip(0, GATEWAY), mac(GATEWAY))]));
        let other = KINDS.into_iter().find(|other| other.ipv6 != kind.ipv6).unwrap();
        assert_eq!(segment.send(0, other.ip(0, 2), 3), Resolution::NoRoute);
        assert_eq!(segment.send(0, segment.ip(0), 4), Resolution::NoRoute);
        assert_eq!(segment.stations[0].neighbors.counters().no_route.get(), 2);
    }
}

#[test]
fn traffic_outlives_every_timer() {
    for kind in KINDS {
        for confirmed in [false, true] {
            let mut segment = Segment::of_four(kind);
            let remote = segment.ip(1);
            segment.send(0, remote, 0);
            segment.run(millis(100));
            let since = segment.now;
            // Five minutes.
            traffic(&mut segment, remote, 1..3000, |segment, number| {
                let known = segment.resolve(0, remote);
                assert_eq!(known, Resolution::Known(mac(2)), "{kind:?} {number}");
                if confirmed {
                    segment.confirm(0, remote);
                }
            });
            assert_eq!(segment.stations[1].received, (0..3000).collect::<Vec<_>>());
            assert_eq!(segment.lost, []);
            let asked = requests_since(&segment, 0, since);
            // Refreshed before 30 s by unicast; not at all while traffic says that all is well.
            let expected = if confirmed { 0..=0 } else { 10..=12 };
            assert!(expected.contains(&asked.len()), "{kind:?} {asked:?}");
            assert!(asked.iter().all(|(_, to)| *to == mac(2)));
        }
    }
}

#[test]
fn a_reader_of_the_table_that_resolves_now_and_then_keeps_its_entries() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let remote = segment.ip(1);
        segment.send(0, remote, 0);
        let generation = segment.neighbors(0).generation();
        for _ in 0..30 {
            segment.run(secs(10));
            let state = segment.list(0)[0].state;
            assert_eq!(state, NeighborState::Reachable, "{kind:?}");
            segment.resolve(0, remote);
        }
        assert_eq!(segment.neighbors(0).generation(), generation);
    }
}

#[test]
fn an_entry_that_nobody_uses_goes_stale_and_is_forgotten() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let remote = segment.ip(1);
        segment.send(0, remote, 0);
        let mut states = Vec::new();
        let mut watch = |segment: &mut Segment, time: Duration| {
            segment.run(time);
            states.push(segment.list(0).first().map(|info| info.state));
        };
        watch(&mut segment, secs(29));
        // It was in use when it was refreshed at 25 s: good until 55 s.
        watch(&mut segment, secs(27));
        // The first datagram after that does not wait, and nobody is asked for 5 s.
        let since = segment.now;
        assert_eq!(segment.send(0, remote, 1), Resolution::Known(mac(2)));
        watch(&mut segment, secs(4));
        assert_eq!(requests_since(&segment, 0, since), []);
        watch(&mut segment, secs(2));
        assert_eq!(requests_since(&segment, 0, since), [(secs(5), mac(2))]);
        watch(&mut segment, secs(100));
        watch(&mut segment, secs(700));
        let state = |state| Some(state);
        let expected = [
            state(NeighborState::Reachable),
            state(NeighborState::Stale),
            state(NeighborState::Delay),
            state(NeighborState::Reachable),
            state(NeighborState::Stale),
            None,
        ];
        assert_eq!(states, expected, "{kind:?}");
        assert!(segment.neighbors(0).table().is_empty());
    }
}

#[test]
fn lost_requests_are_sent_again_each_second_three_times() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let since = segment.now;
        let mut left = 2;
        segment.loss = Box::new(move |_| {
            left -= 1;
            left >= 0
        });
        traffic(&mut segment, kind.ip(0, 2), 0..30, |_, _| {});
        let asked: Vec<_> = requests_since(&segment, 0, since).iter().map(|(at, _)| *at).collect();
        assert_eq!(asked, [secs(0), secs(1), secs(2)], "{kind:?}");
        // 20 came in 2 s: the first 4 gave way.
        assert_eq!(segment.lost, (0..4).collect::<Vec<_>>());
        assert_eq!(segment.stations[1].received, (4..30).collect::<Vec<_>>());
    }
}

#[test]
fn a_silent_neighbor_fails_is_left_alone_and_recovers() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        segment.stations[1].up = false;
        let (remote, since) = (segment.ip(1), segment.now);
        let mut resolutions = Vec::new();
        traffic(&mut segment, remote, 0..100, |segment, _| {
            resolutions.push(segment.resolve(0, remote));
        });
        let failed = Resolution::Failed(remote);
        let waiting = Resolution::Pending(remote);
        for (at, expected) in
            [(0, waiting), (29, waiting), (31, failed), (59, failed), (61, waiting), (91, failed)]
        {
            assert_eq!(resolutions[at], expected, "{kind:?} {at}");
        }
        let asked = requests_since(&segment, 0, since);
        assert_eq!(asked.len(), 6, "{kind:?} {asked:?}");
        let event = NeighborEvent::Failed(remote);
        assert_eq!(segment.stations[0].events, [event, event]);
        assert_eq!(segment.stations[0].neighbors.counters().held_dropped_failed.get(), 32);

        // Back: the next question finds it.
        segment.stations[1].up = true;
        segment.lost.clear();
        traffic(&mut segment, remote, 100..200, |_, _| {});
        assert_eq!(segment.stations[0].events.last(), Some(&NeighborEvent::Reachable(remote)));
        assert!(segment.lost.len() <= 40, "{kind:?} {:?}", segment.lost);
        assert_eq!(segment.stations[1].received.last(), Some(&199));
    }
}

#[test]
fn an_announcement_ends_a_failure_at_once() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        segment.stations[1].up = false;
        let remote = segment.ip(1);
        traffic(&mut segment, remote, 0..35, |_, _| {});
        assert_eq!(segment.send(0, remote, 35), Resolution::Failed(remote));
        segment.stations[1].up = true;
        segment.announce(1);
        assert_eq!(segment.send(0, remote, 36), Resolution::Known(mac(2)), "{kind:?}");
        assert_eq!(segment.stations[1].received, [36]);
    }
}

/// Another station takes the gateway's place: station 4.
fn replace_gateway(segment: &mut Segment) -> usize {
    segment.stations[3].up = false;
    let mut config = segment.kind.config(GATEWAY);
    config.local.mac = mac(600);
    let new = segment.add(config);
    segment.stations[new].router = true;
    new
}

#[test]
fn a_gateway_that_announces_its_new_mac_is_followed() {
    for kind in KINDS {
        // Without proof by traffic at once; with it after the old one was asked in vain.
        for (confirmed, most_lost) in [(false, 0), (true, 10)] {
            let mut segment = Segment::of_four(kind);
            let remote = kind.ip(9, 1);
            traffic(&mut segment, remote, 0..50, |segment, _| {
                if confirmed {
                    segment.confirm(0, remote);
                }
            });
            let new = replace_gateway(&mut segment);
            // A router that takes over says so at once.
            let gateway = segment.neighbors(new).local().clone();
            segment.inject(0, &message::announcement(&gateway));
            traffic(&mut segment, remote, 50..100, |_, _| {});
            assert!(segment.lost.len() <= most_lost, "{kind:?} {:?}", segment.lost);
            assert_eq!(segment.stations[new].received.last(), Some(&99));
            let (ip, from, to) = (kind.ip(0, GATEWAY), mac(GATEWAY), mac(600));
            let moved = NeighborEvent::Moved { ip, from, to };
            assert!(segment.stations[0].events.contains(&moved), "{kind:?}");
        }
    }
}

#[test]
fn a_gateway_that_changes_silently_is_found_again() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let remote = kind.ip(9, 1);
        traffic(&mut segment, remote, 0..50, |segment, _| segment.confirm(0, remote));
        let new = replace_gateway(&mut segment);
        // It only speaks when it is asked.
        segment.loss =
            Box::new(|frame| frame[6..12] == mac(600).0 && destination(frame).is_multicast());
        traffic(&mut segment, remote, 50..200, |_, _| {});
        // 5 s until the silence is noticed, 3 s in which the old one does not answer.
        let lost = segment.lost.len();
        assert!((70..=82).contains(&lost), "{kind:?} {lost}");
        assert_eq!(segment.stations[new].received.len(), 150 - lost, "{kind:?}");
        // Nobody failed: the old address was used while the new one was looked for.
        let failed = segment.stations[0].neighbors.counters().neighbors_failed.get();
        assert_eq!(failed, 0, "{kind:?}");
    }
}

#[test]
fn an_address_is_probed_for_and_announced() {
    for kind in KINDS {
        let mut segment = Segment::new(kind);
        segment.add(kind.config(0));
        segment.add(kind.config(1));
        // Traffic does not wait for any of that.
        segment.send(0, segment.ip(1), 7);
        assert_eq!(segment.stations[1].received, [7], "{kind:?}");
        segment.run(secs(60));
        let counters = segment.stations[0].neighbors.counters();
        assert_eq!((counters.tx_probes.get(), counters.tx_announcements.get()), (3, 3));
        let mine = |(at, frame): &&(Instant, Vec<u8>)| {
            let to = destination(frame);
            to.is_multicast() && to != MLD_ROUTERS && *at > segment.start
        };
        let times = segment.stations[0].sent.iter().filter(mine);
        let times: Vec<_> = times.map(|(at, _)| (*at - segment.start).as_secs()).collect();
        assert_eq!(times, [1, 2, 4, 5, 6], "{kind:?}");
        segment.announce(0);
        segment.run(secs(60));
        assert_eq!(segment.stations[0].neighbors.counters().tx_announcements.get(), 6);
        assert_eq!(segment.stations[0].events, [NeighborEvent::Reachable(segment.ip(1))]);
    }
}

#[test]
fn switches_are_told_of_the_group_before_the_first_probe_and_again_and_again() {
    for kind in KINDS {
        let mut segment = Segment::new(kind);
        segment.add(kind.config(0));
        segment.run(secs(290));
        let sent = &segment.stations[0].sent;
        let reports: Vec<_> =
            sent.iter().filter(|(_, frame)| destination(frame) == MLD_ROUTERS).collect();
        if segment.ip(0).is_ipv4() {
            assert!(reports.is_empty(), "{kind:?}");
            continue;
        }
        assert_eq!(sent[0], *reports[0], "{kind:?}");
        let gaps = reports.windows(2).map(|pair| pair[1].0 - pair[0].0);
        assert_eq!(gaps.collect::<Vec<_>>(), vec![secs(60); reports.len() - 1], "{kind:?}");
        assert_eq!(reports.len(), 5, "{kind:?}");
        let before = reports.len() as u64;
        let reported = |segment: &Segment| {
            segment.stations[0].neighbors.counters().tx_memberships.get() - before
        };
        segment.announce(0);
        assert_eq!(reported(&segment), 1, "{kind:?}");
        // Not for each of many.
        for _ in 0..100 {
            segment.announce(0);
        }
        segment.run(secs(10));
        assert_eq!(reported(&segment), 2, "{kind:?}");
    }
}

#[test]
fn announcements_are_no_flood_however_often_they_are_wanted() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let since = segment.now;
        // Nearly 10 s in which frames move to this port and away 100 times a second.
        for _ in 0..995 {
            segment.announce(0);
            segment.run(millis(10));
        }
        let times = |segment: &Segment| -> Vec<_> {
            let all = requests_since(segment, 0, since);
            all.into_iter().filter(|(_, to)| to.is_multicast()).map(|(at, _)| at).collect()
        };
        assert_eq!(times(&segment), (0..10).map(secs).collect::<Vec<_>>(), "{kind:?}");
        // And the last one is repeated as any.
        segment.run(secs(60));
        assert_eq!(times(&segment)[10..], [10, 11, 12].map(secs), "{kind:?}");
    }
}

#[test]
fn an_address_is_not_announced_before_it_is_known_to_be_free() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let mut config = kind.config(2);
        config.local.mac = mac(77);
        let twin = segment.add(config);
        // Its link comes up, and it would like to tell everybody.
        segment.announce(twin);
        segment.run(secs(60));
        let counters = segment.stations[twin].neighbors.counters();
        assert!(counters.tx_probes.get() >= 1, "{kind:?}");
        assert_eq!(counters.tx_announcements.get(), 0, "{kind:?}");
        assert!(segment.stations[0].events.is_empty(), "{kind:?} the others noticed nothing");
    }
}

#[test]
fn two_that_have_one_address_hear_of_it() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let mut config = kind.config(2);
        config.local.mac = mac(77);
        let twin = segment.add(config);
        segment.run(secs(2));
        // Whoever comes later is told by its probe, and neither announces nor defends itself.
        let told = [NeighborEvent::Conflict { mac: mac(2) }];
        assert_eq!(segment.stations[twin].events, told, "{kind:?}");
        segment.run(secs(20));
        let announced = segment.stations[twin].neighbors.counters().tx_announcements.get();
        assert_eq!(announced, 0, "{kind:?}");
        // It uses the address nevertheless: the other one hears of it and defends itself, once.
        let before = segment.stations[1].neighbors.counters().tx_announcements.get();
        let frame = message::announcement(segment.stations[twin].neighbors.local());
        for _ in 0..1000 {
            segment.inject(1, &frame);
        }
        let counters = segment.stations[1].neighbors.counters();
        assert!(counters.address_conflicts.get() >= 1000);
        assert_eq!(counters.tx_announcements.get() - before, 1, "{kind:?}");
        assert_eq!(segment.stations[1].events, [NeighborEvent::Conflict { mac: mac(77) }]);
        segment.run(secs(11));
        segment.inject(1, &frame);
        assert_eq!(segment.stations[1].events.len(), 2, "{kind:?}");
    }
}

#[test]
fn static_neighbors_are_never_asked_for_and_never_move() {
    for kind in KINDS {
        let mut segment = Segment::of_four(kind);
        let mut config = kind.config(9);
        config.statics = vec![(kind.ip(0, 2), mac(2)), (kind.ip(7, 7), mac(3))];
        let ours = segment.add(config);
        segment.run(secs(10));
        let twin = LocalAddress { mac: mac(66), ..kind.local(2) };
        segment.inject(ours, &message::announcement(&twin));
        assert_eq!(segment.send(ours, kind.ip(0, 2), 0), Resolution::Known(mac(2)));
        assert_eq!(segment.send(ours, kind.ip(7, 7), 1), Resolution::Known(mac(3)));
        segment.run(secs(1000));
        let counters = segment.stations[ours].neighbors.counters();
        assert_eq!((counters.tx_requests.get(), counters.static_contradicted.get()), (0, 1));
        assert_eq!(segment.stations[ours].neighbors.table().len(), 2, "{kind:?}");
    }
}
