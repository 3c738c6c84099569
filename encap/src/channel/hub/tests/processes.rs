//! Processes end and begin; channels come and go.

use super::super::*;
use super::world::*;
use crate::compress::Level;
use crate::link::id::LinkIndex;

fn lost(world: &World, index: usize) -> Vec<u64> {
    let counts = world.events[index].iter().filter_map(|event| match event {
        ChannelEvent::EpochChanged(_, _, count) => Some(*count),
        _ => None,
    });
    counts.collect()
}

#[test]
fn chan_a_restarted_peer_is_a_new_one() {
    for mode in [Mode::Ordered, Mode::Unordered] {
        let weather = Weather { loss: 100, copies: 300, delay: MS, jitter: MS * 4, ..CALM };
        let mut world = World::new(2, weather, 1);
        world.configure(&[config("a", mode)]);
        let mut talk = Talk::new(1, 0, vec![3_000; 200]);
        talk.write(&mut world);
        world.run_for(MS * 40);
        talk.read(&mut world);
        let before = talk.got.len();
        assert!(before > 0 && before < 200);
        world.restart(1);
        talk.got.clear();
        world.run_for(SECOND * 5);
        talk.read(&mut world);
        // None of what was sent to the old process is given to the new one.
        assert!(talk.got.is_empty());
        let counts = lost(&world, 0);
        assert!(counts.len() == 1 && counts[0] as usize <= 200, "{counts:?}");
        assert!(before as u64 + counts[0] >= 200 - 20, "{before} {counts:?}");
        talk.lengths.extend([500; 100]);
        talk.write(&mut world);
        world.run_for(SECOND * 5);
        talk.read(&mut world);
        talk.got.sort_unstable();
        assert!(talk.got.iter().copied().eq(200..300));
        assert_eq!(lost(&world, 0).len(), 1);
        assert_eq!(lost(&world, 1).len(), 0);
    }
}

/// The sender is the one that begins anew: what came of the old one is read before.
#[test]
fn chan_messages_of_the_old_process_are_read_first() {
    let mut world = World::new(1, CALM, 2);
    world.configure(&[config("a", Mode::Ordered)]);
    let mut old = Talk::new(1, 0, vec![100; 50]);
    old.write(&mut world);
    world.run_for(MS * 50);
    world.restart(0);
    let mut new = Talk::new(1, 0, vec![200; 50]);
    new.write(&mut world);
    world.run_for(SECOND);
    for index in 0..50 {
        let message = world.hubs[1].next_message(ChannelKey(1)).unwrap();
        assert!(message.bytes == body(index, 100));
    }
    run(&mut world, std::slice::from_mut(&mut new), SECOND * 5, |_| {});
    new.assert_ordered();
    let report = world.hubs[1].report();
    assert_eq!(report.channels[0].peers[0].messages_in, 100);
    assert_eq!(report.channels[0].peers[0].bytes_in, 50 * 300);
    world.assert_quiet();
}

/// Tables are late, or early: packets of both processes come while they change.
#[test]
fn chan_tables_and_packets_disagree_about_the_process() {
    let mut world = World::new(1, CALM, 3);
    world.configure(&[config("a", Mode::Ordered)]);
    let mut talk = Talk::new(1, 1, vec![100; 5]);
    run(&mut world, std::slice::from_mut(&mut talk), SECOND, |_| {});
    let old = world.boots[1];
    world.boots[1] += 1_000;
    world.hubs[1] = Hub::new(HubOptions::default());
    let configs = world.configs[1].clone();
    world.hubs[1].configure(world.now, configs);
    world.publish_to(1);
    let mut talk = Talk::new(1, 1, vec![100; 5]);
    talk.write(&mut world);
    world.run_for(MS * 20);
    // The packets were first; a table from before says nothing against them.
    assert_eq!(lost(&world, 0).len(), 1);
    world.boots[1] = old;
    world.publish_to(0);
    world.boots[1] = old + 1_000;
    assert_eq!(
        world.hubs[0].on_packet(world.now, node(1), old, LinkIndex::FIRST, &[0; 9], 0),
        Err(ChannelDrop::Stale)
    );
    world.publish_to(0);
    run(&mut world, std::slice::from_mut(&mut talk), SECOND * 5, |_| {});
    talk.assert_ordered();
    assert_eq!(lost(&world, 0).len(), 1);
}

/// A channel that the old process refused is asked for again, unreliable ones too.
#[test]
fn chan_a_refusal_ends_with_the_process() {
    for mode in [Mode::Unreliable, Mode::Ordered] {
        let mut world = World::new(1, CALM, 4);
        world.configure_one(0, &[config("a", mode)]);
        let mut talk = Talk::new(1, 0, vec![100; 3]);
        talk.write(&mut world);
        world.run_for(SECOND * 5);
        let refused = |event: &ChannelEvent| matches!(event, ChannelEvent::Refused(..));
        assert_eq!(world.count(0, refused), 1);
        world.configs[1] = world.configs[0].clone();
        world.restart(1);
        talk.lengths.extend([100; 20]);
        for _ in 0..20 {
            talk.write(&mut world);
            world.run_for(MS * 100);
            talk.read(&mut world);
        }
        assert!(talk.got.contains(&22), "{mode:?} {:?}", talk.got);
    }
}

#[test]
fn chan_a_refused_channel_is_asked_for_again() {
    let mut world = World::new(1, Weather { loss: 100, ..CALM }, 5);
    world.configure_one(0, &[config("a", Mode::Ordered), config("u", Mode::Unreliable)]);
    let mut talks = [Talk::new(1, 0, vec![100; 30])];
    talks[0].write(&mut world);
    // Nobody waits with unreliable ones: not with what was queued, and not with what comes.
    let mut flood = Talk::new(2, 0, vec![60_000; 500]);
    for _ in 0..50 {
        flood.write(&mut world);
        world.run_for(MS * 100);
    }
    assert_eq!(flood.next, 500);
    assert_eq!(world.hubs[0].report().channels[1].peers[0].dropped, 500);
    assert_eq!(world.count(0, |event| matches!(event, ChannelEvent::Refused(..))), 2);
    world.configure_one(1, &[config("a", Mode::Ordered), config("u", Mode::Unreliable)]);
    run(&mut world, &mut talks, SECOND * 3, |_| {});
    talks[0].assert_ordered();
    world.run_for(SECOND * 2);
    let mut later = Talk::new(2, 0, vec![100; 20]);
    later.write(&mut world);
    world.run_for(SECOND);
    later.read(&mut world);
    assert!(later.got.len() > 10);
    world.assert_quiet();
}

#[test]
fn chan_a_channel_is_configured_anew() {
    let mut world = World::new(1, Weather { loss: 100, ..CALM }, 6);
    world.configure(&[config("a", Mode::Ordered)]);
    for round in 0..10 {
        let mut talk = Talk::new(1, 0, vec![2_000; 50]);
        talk.write(&mut world);
        run(&mut world, std::slice::from_mut(&mut talk), SECOND * 10, |_| {});
        talk.assert_ordered();
        let side = round % 2;
        world.configure_one(side, &[]);
        world.run_for(MS * (round as u32 * 3));
        world.configure_one(side, &[config("a", Mode::Ordered)]);
        world.run_for(SECOND * 2);
    }
    assert_eq!(world.faults(), []);
    world.assert_quiet();
}

/// A peer that is away leaves nothing that asks for attention, and is met again.
#[test]
fn chan_a_peer_that_is_away_is_no_work() {
    let mut world = World::new(1, CALM, 7);
    world.configure(&[config("a", Mode::Ordered), config("u", Mode::Unreliable)]);
    let mut talks = [Talk::new(1, 0, vec![20_000; 40]), Talk::new(1, 1, vec![20_000; 40])];
    for talk in &mut talks {
        talk.write(&mut world);
    }
    world.run_for(Duration::from_micros(350));
    world.linked = false;
    world.publish();
    let mut flood = Talk::new(2, 0, vec![60_000; 100]);
    flood.write(&mut world);
    assert_eq!(flood.next, 100);
    let (before, end, mut wakes) = (world.packets, world.now + SECOND * 60, 0);
    while world.now < end && world.step() {
        wakes += 1;
    }
    assert!(wakes < 300, "{wakes} wakes in 60 s");
    assert_eq!(world.packets, before);
    world.linked = true;
    world.publish();
    run(&mut world, &mut talks, SECOND, |_| {});
    talks[0].assert_ordered();
    talks[1].assert_ordered();
    assert_eq!(world.count(0, |event| matches!(event, ChannelEvent::PeerDown(..))), 2);
    assert_eq!(world.count(0, |event| matches!(event, ChannelEvent::PeerUp(..))), 4);
}

#[test]
fn chan_a_peer_is_taken_out_and_put_in_again() {
    let mut world = World::new(1, CALM, 8);
    world.configure(&[config("a", Mode::Ordered), config("s", Mode::Stream)]);
    let mut talk = Talk::new(1, 0, vec![1_000; 10]);
    run(&mut world, std::slice::from_mut(&mut talk), SECOND, |_| {});
    let key = world.hubs[0].open_stream(world.now, ChannelKey(2), node(1)).unwrap();
    world.run_for(MS * 10);
    let (other, _) = world.hubs[1].accept_stream(world.now, ChannelKey(2)).unwrap();
    world.run_for(MS * 10);
    world.hubs[0].set_peers(world.now, Vec::new());
    let gone = ChannelEvent::StreamFailed(key, StreamError::PeerGone);
    world.run_for(SECOND * 5);
    assert_eq!(world.count(0, |event| *event == gone), 1);
    let bytes = body(0, 8);
    let refused =
        world.hubs[0].send(world.now, ChannelKey(1), node(1), SendOptions::default(), bytes);
    assert_eq!(refused.map_err(|refused| refused.error), Err(SendError::NoPeer));
    world.publish();
    world.run_for(SECOND * 5);
    let failed =
        |event: &ChannelEvent| matches!(event, ChannelEvent::StreamFailed(key, _) if *key == other);
    assert_eq!(world.count(1, failed), 1);
    let mut talk = Talk::new(1, 0, vec![1_000; 10]);
    run(&mut world, std::slice::from_mut(&mut talk), SECOND * 5, |_| {});
    talk.assert_ordered();
    world.assert_quiet();
}

/// Who asks hears when what was sent until then has arrived or was given up, and not before.
#[test]
fn chan_what_was_sent_is_settled_once() {
    let key = ChannelKey(1);
    let settled = |world: &World| {
        let is_it = |event: &&ChannelEvent| matches!(event, ChannelEvent::Settled(..));
        world.events[0].iter().filter(is_it).count()
    };
    for mode in [Mode::Ordered, Mode::Unordered] {
        let weather = Weather { loss: 200, delay: MS, jitter: MS * 4, ..CALM };
        let mut world = World::new(1, weather, 9);
        world.configure(&[config("a", mode)]);
        let mut talk = Talk::new(1, 0, vec![3_000; 100]);
        talk.write(&mut world);
        let sent = world.hubs[0].sent(key, node(1));
        assert_eq!(sent, 100);
        assert!(!world.hubs[0].is_settled(key, node(1), sent));
        assert!(world.hubs[0].is_settled(key, node(1), 0));
        world.run_for(SECOND * 5);
        assert!(world.hubs[0].is_settled(key, node(1), sent));
        assert_eq!(settled(&world), 1);
        // Counts go on over the end of the peer's process, with which messages are given up.
        world.cut[0] = true;
        talk.lengths.extend([3_000; 20]);
        talk.write(&mut world);
        let sent = world.hubs[0].sent(key, node(1));
        assert_eq!(sent, 120);
        world.run_for(SECOND);
        assert!(!world.hubs[0].is_settled(key, node(1), sent));
        world.restart(1);
        assert!(world.hubs[0].is_settled(key, node(1), sent));
        assert_eq!(world.hubs[0].sent(key, node(1)), 120);
    }
    // Nothing is promised of datagrams, so nothing is waited for.
    let mut world = World::new(1, CALM, 9);
    world.configure(&[config("a", Mode::Unreliable)]);
    Talk::new(1, 0, vec![100; 3]).write(&mut world);
    assert_eq!(world.hubs[0].sent(key, node(1)), 0);
    assert!(world.hubs[0].is_settled(key, node(1), 0));
}

/// Whether the peer takes compressed messages is known with the session, and asked anew with each.
#[test]
fn chan_compression_begins_with_the_session() {
    let mut world = World::new(1, CALM, 12);
    world.linked = false;
    world.publish();
    let mut compressed = config("a", Mode::Ordered);
    compressed.compression = Some(Level::default());
    world.configure(&[compressed]);
    let key = ChannelKey(1);
    let text = b"the same again and again; ".repeat(400);
    let send = |world: &mut World| {
        let (now, options) = (world.now, SendOptions::default());
        world.hubs[0].send(now, key, node(1), options, text.clone()).unwrap();
    };
    let bytes = |world: &mut World| {
        let before = world.by_link[0];
        world.run_for(SECOND);
        assert_eq!(world.hubs[1].next_message(key).unwrap().bytes, text);
        world.by_link[0] - before
    };
    send(&mut world);
    world.run_for(SECOND);
    world.linked = true;
    world.publish();
    // This one was taken before anything was known.
    assert!(bytes(&mut world) > text.len() as u64);
    for round in 0..2 {
        send(&mut world);
        let sent = bytes(&mut world);
        assert!(sent < text.len() as u64 / 4, "round {round}: {sent} bytes, so not compressed");
        world.restart(1);
    }
    assert_eq!(world.faults(), []);
}

/// What does not fit is said once, and again when it was well in between.
#[test]
fn chan_a_mismatch_is_said_once_until_it_is_well() {
    let key = ChannelKey(1);
    let count = |world: &World, index: usize, event: ChannelEvent| {
        world.events[index].iter().filter(|seen| **seen == event).count()
    };
    for mode in [Mode::Ordered, Mode::Stream] {
        let mut world = World::new(1, CALM, 13);
        let other = if mode == Mode::Stream { Mode::Ordered } else { Mode::Unordered };
        world.configure_one(0, &[config("a", mode)]);
        world.configure_one(1, &[config("a", other)]);
        let ask = |world: &mut World| {
            let (now, options) = (world.now, SendOptions::default());
            if mode == Mode::Stream {
                world.hubs[0].open_stream(now, key, node(1)).unwrap();
            } else {
                world.hubs[0].send(now, key, node(1), options, vec![1]).unwrap();
            }
            world.run_for(SECOND * 4);
        };
        for _ in 0..3 {
            ask(&mut world);
        }
        assert_eq!(count(&world, 0, ChannelEvent::Refused(key, node(1))), 1, "{mode:?}");
        assert_eq!(count(&world, 1, ChannelEvent::Mismatched(key, node(0))), 1, "{mode:?}");
        assert_eq!(world.hubs[0].refused(key), [node(1)]);
        assert_eq!(world.hubs[1].mismatched(key), [node(0)]);
        assert_eq!(world.hubs[0].report().channels[0].peers[0].state, PeerState::Refused);
        world.hubs[1].configure(world.now, vec![(ChannelKey(2), config("a", mode))]);
        ask(&mut world);
        if mode == Mode::Stream {
            assert!(world.hubs[1].accept_stream(world.now, ChannelKey(2)).is_some());
            world.run_for(SECOND);
        }
        assert_eq!(count(&world, 0, ChannelEvent::Accepted(key, node(1))), 1, "{mode:?}");
        assert!(world.hubs[0].refused(key).is_empty());
        assert!(world.hubs[1].mismatched(ChannelKey(2)).is_empty());
        world.hubs[1].configure(world.now, vec![(ChannelKey(3), config("a", other))]);
        // What the channel had before has ended by then.
        world.run_for(SECOND);
        ask(&mut world);
        assert_eq!(count(&world, 0, ChannelEvent::Refused(key, node(1))), 2, "{mode:?}");
        assert_eq!(count(&world, 1, ChannelEvent::Mismatched(ChannelKey(3), node(0))), 1);
    }
}
