//! Loss, copies, disorder, silence and distance; programs that are slow; priorities and times.

use std::time::Duration;

use super::super::*;
use super::world::*;

fn lengths(count: usize, up_to: usize) -> Vec<usize> {
    (0..count).map(|n| (n * 7_919) % up_to).collect()
}

#[test]
fn chan_messages_arrive_in_order() {
    let mut world = World::new(1, CALM, 1);
    world.configure(&[config("test", Mode::Ordered)]);
    let lengths = vec![8, 8, 100, 1_400, 1_500, 70_000, 3_000_000, 16 << 20, 9];
    let mut talks = [Talk::new(1, 0, lengths)];
    run(&mut world, &mut talks, SECOND * 20, |_| {});
    talks[0].assert_ordered();
    assert_eq!(world.errors, []);
    world.assert_quiet();
    assert_eq!(world.count(1, |event| matches!(event, ChannelEvent::PeerUp(..))), 1);
}

#[test]
fn chan_loss_copies_and_disorder_are_not_seen() {
    for seed in 1..6 {
        let weather = Weather { loss: 300, copies: 500, delay: MS, jitter: MS * 5, ..CALM };
        let mut world = World::new(2, weather, seed);
        world.configure(&[config("a", Mode::Ordered), config("b", Mode::Unordered)]);
        let mut talks = [
            Talk::new(1, 0, lengths(300, 5_000)),
            Talk::new(1, 1, lengths(200, 300)),
            Talk::new(2, 0, lengths(60, 40_000)),
        ];
        run(&mut world, &mut talks, SECOND * 60, |_| {});
        talks[0].assert_ordered();
        talks[1].assert_ordered();
        talks[2].assert_once();
        assert_eq!(world.faults(), [], "seed {seed}");
        world.assert_quiet();
    }
}

/// The time between two packets is far below the jitter: thousands overtake each other.
#[test]
fn chan_reordering_of_thousands_of_packets() {
    let weather = Weather { delay: MS * 5, jitter: MS * 40, ..CALM };
    let mut world = World::new(1, weather, 3);
    world.configure(&[config("a", Mode::Ordered)]);
    let mut talks = [Talk::new(1, 0, vec![60_000; 400])];
    run(&mut world, &mut talks, SECOND * 60, |_| {});
    talks[0].assert_ordered();
    assert_eq!(world.faults(), []);
}

#[test]
fn chan_silence_of_two_seconds_is_made_up_for() {
    for links in 1..3 {
        let mut world = World::new(links, Weather { loss: 10, ..CALM }, 4);
        world.configure(&[config("a", Mode::Ordered), config("b", Mode::Unordered)]);
        let mut talks =
            [Talk::new(1, 0, lengths(3_000, 9_000)), Talk::new(2, 1, lengths(3_000, 900))];
        for round in 0..3 {
            for talk in &mut talks {
                talk.write(&mut world);
            }
            world.run_for(MS * 30);
            talks.iter_mut().for_each(|talk| talk.read(&mut world));
            world.cut.fill(true);
            world.run_for(SECOND * 2);
            world.cut.fill(false);
            let before = [talks[0].got.len(), talks[1].got.len()];
            for _ in 0..500 {
                talks.iter_mut().for_each(|talk| talk.write(&mut world));
                world.run_for(MS * 10);
                talks.iter_mut().for_each(|talk| talk.read(&mut world));
            }
            for (talk, before) in talks.iter().zip(before) {
                let moved = talk.got.len() > before || talk.is_done();
                assert!(moved, "nothing within 5 s, round {round}, {links} links");
            }
        }
        run(&mut world, &mut talks, SECOND * 20, |_| {});
        talks[0].assert_ordered();
        talks[1].assert_once();
    }
}

#[test]
fn chan_any_distance() {
    for (delay, limit) in [(Duration::from_micros(25), 5), (MS * 10, 20), (MS * 750, 120)] {
        let mut world = World::new(1, Weather { delay, loss: 5, ..CALM }, 5);
        world.configure(&[config("a", Mode::Ordered)]);
        let mut talks = [Talk::new(1, 0, lengths(400, 20_000)), Talk::new(1, 1, vec![9; 50])];
        run(&mut world, &mut talks, SECOND * limit, |_| {});
        talks[0].assert_ordered();
        talks[1].assert_ordered();
        world.assert_quiet();
    }
}

/// The receiver's memory holds; its program's pace becomes the sender's.
#[test]
fn chan_a_program_that_does_not_read_stops_the_sender() {
    for mode in [Mode::Ordered, Mode::Unordered] {
        let mut world = World::new(1, CALM, 6);
        world.configure(&[config("a", mode), config("b", mode)]);
        let mut talks = [Talk::new(1, 0, vec![10_000; 2_000])];
        talks[0].reads = false;
        for _ in 0..50 {
            talks[0].write(&mut world);
            world.run_for(MS * 20);
        }
        assert!(talks[0].refused > 0 && talks[0].next < 1_000, "{}", talks[0].next);
        // Others go on.
        let mut others = [Talk::new(2, 0, vec![10_000; 100])];
        run(&mut world, &mut others, SECOND * 5, |_| {});
        // Full stands for as long as nothing is read.
        let before = world.packets;
        world.run_for(SECOND * 20);
        assert!(world.packets - before < 20, "{}", world.packets - before);
        talks[0].reads = true;
        talks[0].read(&mut world);
        run(&mut world, &mut talks, SECOND * 60, |_| {});
        talks[0].assert_once();
        world.assert_quiet();
    }
}

#[test]
fn chan_a_slow_writer_gets_each_message_through_at_once() {
    let mut world = World::new(1, CALM, 7);
    world.configure(&[config("a", Mode::Ordered)]);
    let mut talk = Talk::new(1, 0, Vec::new());
    for _ in 0..20 {
        talk.lengths.push(500);
        talk.write(&mut world);
        world.run_for(MS * 2);
        talk.read(&mut world);
        assert!(talk.is_done());
        world.run_for(SECOND);
    }
    talk.assert_ordered();
}

#[test]
fn chan_priorities_go_first() {
    let slow = Weather { delay: MS * 5, bottleneck: Some((1_000_000, 60_000)), ..CALM };
    let mut world = World::new(1, slow, 8);
    world.configure(&[config("a", Mode::Unordered)]);
    let mut bulk = Talk::new(1, 0, vec![20_000; 50]);
    bulk.options.priority = 7;
    bulk.write(&mut world);
    world.run_for(MS * 100);
    let before = world.now;
    let urgent = SendOptions { priority: 0, ttl: None };
    world.hubs[0].send(world.now, ChannelKey(1), node(1), urgent, body(1 << 40, 800)).unwrap();
    let mut behind = 0;
    let waited = loop {
        world.step();
        let Some(message) = world.hubs[1].next_message(ChannelKey(1)) else { continue };
        if message.priority == 0 {
            break world.now - before;
        }
        behind += 1;
    };
    // A queue of 60 kB at 1 MB/s, and some of what was begun.
    assert!(waited < MS * 150, "{waited:?}, {behind} others before it");
    assert!(world.elapsed() < SECOND);
}

#[test]
fn chan_times_end_messages_and_ordered_channels_go_on() {
    for mode in [Mode::Ordered, Mode::Unordered] {
        let mut world = World::new(1, Weather { loss: 200, ..CALM }, 9);
        world.configure(&[config("a", mode)]);
        let mut talk = Talk::new(1, 0, lengths(200, 9_000));
        talk.write(&mut world);
        run(&mut world, std::slice::from_mut(&mut talk), SECOND * 20, |_| {});
        // Nothing gets through for longer than these may take.
        talk.options.ttl = Some(MS * 100);
        talk.lengths.extend([7_000; 50]);
        world.cut.fill(true);
        talk.write(&mut world);
        world.run_for(SECOND);
        world.cut.fill(false);
        talk.options.ttl = None;
        talk.lengths.extend([700; 50]);
        talk.write(&mut world);
        world.run_for(SECOND * 5);
        talk.read(&mut world);
        let expired: u64 = world.events[0].iter().fold(0, |sum, event| match event {
            ChannelEvent::Expired(_, _, count) => sum + count,
            _ => sum,
        });
        assert_eq!(talk.got.len() as u64 + expired, 300);
        assert!((1..=50).contains(&expired), "{expired}");
        let late: Vec<u64> = talk.got.iter().copied().filter(|index| *index >= 250).collect();
        assert_eq!(late.len(), 50);
        assert!(mode == Mode::Unordered || talk.got.is_sorted());
        let report = world.hubs[0].report();
        assert_eq!(report.channels[0].peers[0].expired, expired);
        assert_eq!(report.channels[0].peers[0].queued, 0);
        world.assert_quiet();
        // A time that no clock reaches is none.
        let options = SendOptions { priority: 0, ttl: Some(Duration::MAX) };
        let bytes = body(0, 8);
        world.hubs[0].send(world.now, ChannelKey(1), node(1), options, bytes).unwrap();
    }
}

#[test]
fn chan_unreliable_messages_arrive_at_most_once() {
    for copies in [false, true] {
        let mut world = World::new(2, Weather { loss: 200, copies: 300, ..CALM }, 10);
        world.configure(&[ChannelConfig { copies, ..config("a", Mode::Unreliable) }]);
        let mut talk = Talk::new(1, 0, Vec::new());
        for len in lengths(1_000, 5_000) {
            talk.lengths.push(len);
            talk.write(&mut world);
            world.run_for(MS);
            talk.read(&mut world);
        }
        world.run_for(SECOND * 2);
        talk.read(&mut world);
        assert_eq!(talk.next, 1_000);
        let mut once = talk.got.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), talk.got.len(), "one came twice");
        // By one link a message of 1 to 4 pieces, by two each piece unless both lose it.
        let range = if copies { 850..1_000 } else { 450..800 };
        assert!(range.contains(&once.len()), "{} arrived, copies {copies}", once.len());
        assert_eq!(world.by_link[1] > 1_000_000, copies);
        world.assert_quiet();
    }
}

/// Nothing of a burst on one channel holds up the reliable ones.
#[test]
fn chan_channels_do_not_block_each_other() {
    let rate = Weather { delay: MS, bottleneck: Some((12_500_000, 200_000)), ..CALM };
    let mut world = World::new(1, rate, 11);
    let modes = [Mode::Ordered, Mode::Unordered, Mode::Unreliable, Mode::Stream, Mode::Ordered];
    let names = ["a", "b", "c", "d", "e"];
    let configs: Vec<_> = names.iter().zip(modes).map(|(name, mode)| config(name, mode)).collect();
    world.configure(&configs);
    let mut stuck = [Talk::new(1, 0, vec![100_000; 2_000])];
    stuck[0].reads = false;
    let mut flood = Talk::new(3, 0, vec![1_000; 1_000_000]);
    let mut talks = [
        Talk::new(2, 0, vec![30_000; 20]),
        Talk::new(5, 0, vec![2_000; 200]),
        Talk::new(5, 1, vec![2_000; 200]),
    ];
    let mut pipes = [Pipe::open(&mut world, 4, 0, [500_000, 500_000])];
    let mut until = 0;
    while !(talks.iter().all(Talk::is_done) && pipes.iter().all(Pipe::is_done)) {
        stuck[0].write(&mut world);
        until += 40;
        flood.lengths.truncate(flood.next);
        flood.lengths.resize(until.max(flood.next), 1_000);
        flood.write(&mut world);
        talks.iter_mut().for_each(|talk| talk.write(&mut world));
        pipes.iter_mut().for_each(|pipe| pipe.work(&mut world));
        world.run_for(MS * 5);
        talks.iter_mut().for_each(|talk| talk.read(&mut world));
        flood.read(&mut world);
        pipes.iter_mut().for_each(|pipe| pipe.work(&mut world));
        assert!(world.elapsed() < SECOND * 10);
    }
    talks[0].assert_once();
    talks[1].assert_ordered();
    talks[2].assert_ordered();
}

/// Memory that some hold and never read is not all that there is; what they give back goes on.
#[test]
fn chan_memory_is_shared() {
    let mut world = World::new(1, CALM, 12);
    let configs: Vec<_> = (1..121).map(|n| config(&format!("m{n}"), Mode::Ordered)).collect();
    world.configure(&configs);
    let mut stuck: Vec<Talk> = (1..111).map(|n| Talk::new(n, 0, vec![20_000; 60])).collect();
    stuck.iter_mut().for_each(|talk| talk.reads = false);
    for _ in 0..200 {
        stuck.iter_mut().for_each(|talk| talk.write(&mut world));
        world.run_for(MS * 5);
    }
    // First windows take a third of what windows may have.
    assert!(world.hubs[1].memory.booked() > MIN_RECEIVE_MEMORY / 3);
    let mut talks: Vec<Talk> = (111..121).map(|n| Talk::new(n, 0, vec![20_000; 20])).collect();
    run(&mut world, &mut talks, SECOND * 10, |_| {});
    talks.iter().for_each(Talk::assert_ordered);
    stuck.iter_mut().for_each(|talk| talk.reads = true);
    run(&mut world, &mut stuck, SECOND * 60, |_| {});
    stuck.iter().for_each(Talk::assert_ordered);
    let now = world.now;
    world.hubs.iter_mut().for_each(|hub| hub.configure(now, Vec::new()));
    assert_eq!((world.hubs[0].memory.booked(), world.hubs[1].memory.booked()), (0, 0));
}

#[test]
fn chan_compressed_messages_are_those_that_were_sent() {
    let key = ChannelKey(1);
    let text = |number: u8| [b"again and again and ".repeat(5_000), vec![number]].concat();
    for mode in [Mode::Ordered, Mode::Unordered, Mode::Unreliable] {
        let mut world = World::new(1, CALM, 9);
        let compression = Level::new(3);
        // The receiver's own messages are another matter.
        world.configure_one(0, &[ChannelConfig { compression, ..config("a", mode) }]);
        world.configure_one(1, &[config("a", mode)]);
        let len = if mode == Mode::Unreliable { 60_000 } else { 100_001 };
        for number in 0..20 {
            let bytes = text(number)[..len].to_vec();
            world.hubs[0].send(world.now, key, node(1), SendOptions::default(), bytes).unwrap();
            world.run_for(MS * 10);
            let got = world.hubs[1].next_message(key).unwrap();
            assert!(got.bytes == text(number)[..len], "{mode:?} {number}");
            assert_eq!(world.hubs[1].next_message(key), None);
        }
        assert!(world.packets < 200, "{} packets for 2 MB", world.packets);
        let noise = body(1, 50_000);
        world.hubs[0].send(world.now, key, node(1), SendOptions::default(), noise.clone()).unwrap();
        world.run_for(MS * 10);
        assert!(world.hubs[1].next_message(key).unwrap().bytes == noise);
    }
}
