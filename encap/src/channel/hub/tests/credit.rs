//! Credit: what idle conduits hold, and what is left for others.

use super::super::*;
use super::world::*;
use crate::channel::incoming::{Credit, GUARANTEED, IncomingMessages, TOP_WINDOW};
use crate::wire::channel::{ChannelId, MAX_MESSAGE_LEN, Opener};

/// 1 Gbit/s and 100 ms there and back.
const LONG: Weather = Weather {
    delay: Duration::from_millis(50),
    bottleneck: Some((125_000_000, 25_000_000)),
    ..CALM
};

fn streams(world: &mut World) {
    world.configure(&[config("s", Mode::Stream)]);
}

/// Opens streams, by turns from each side, and has them accepted.
fn open(world: &mut World, count: usize, want: [usize; 2]) -> Vec<Pipe> {
    let mut pipes = Vec::new();
    while pipes.len() < count {
        // Fewer than may wait.
        for opener in [0, 1] {
            let mut some: Vec<Pipe> = (0..50).map(|_| Pipe::open(world, 1, opener, want)).collect();
            let limit = world.now + SECOND * 5;
            while some.iter().any(|pipe| pipe.keys[1 - opener].is_none()) {
                assert!(world.step() && world.now < limit);
                some.iter_mut().for_each(|pipe| pipe.accept(world));
            }
            pipes.extend(some);
        }
    }
    pipes
}

/// Bytes that are booked at the second node.
fn booked(world: &World) -> u64 {
    world.hubs[1].memory.booked()
}

/// How long one new stream takes for 10 MB.
fn ten_megabytes(world: &mut World) -> Duration {
    let before = world.now;
    let mut pipes = [Pipe::open(world, 1, 0, [10_000_000, 0])];
    pipe(world, &mut pipes, SECOND * 60, |_| {});
    world.now - before
}

#[test]
fn chan_idle_streams_leave_a_new_one_its_speed() {
    let mut world = World::new(1, LONG, 1);
    streams(&mut world);
    let alone = ten_megabytes(&mut world);
    let idle = open(&mut world, 2_000, [0, 0]);
    assert_eq!(world.hubs[1].streams.len(), idle.len());
    let beside = ten_megabytes(&mut world);
    assert!(beside < alone * 5 / 4, "{beside:?} beside idle ones, {alone:?} alone");
    assert_eq!(world.faults(), []);
}

/// Reads and forgets what came of streams, and says how many bytes.
fn drain(world: &mut World, keys: &[StreamKey]) -> usize {
    let mut count = 0;
    for key in keys {
        while let StreamRead::Bytes(bytes) = world.hubs[1].read_stream(*key) {
            let len = bytes.len();
            count += len;
            world.hubs[1].consume_stream(*key, len);
        }
    }
    count
}

/// Writes `each` bytes to streams of the first node and has them read.
fn fill(world: &mut World, pipes: &[Pipe], each: usize, limit: Duration) {
    let bytes = vec![7; 1 << 16];
    let theirs: Vec<_> = pipes.iter().map(|pipe| pipe.keys[1].unwrap()).collect();
    let (mut left, mut got) = (vec![each; pipes.len()], 0);
    let end = world.now + limit;
    while got < each * pipes.len() {
        for (pipe, left) in pipes.iter().zip(&mut left) {
            let (mut more, key) = (true, pipe.keys[0].unwrap());
            while *left > 0 && more {
                let some = &bytes[..bytes.len().min(*left)];
                let taken = world.hubs[0].write_stream(key, some);
                *left -= taken;
                more = taken == some.len();
            }
        }
        world.run_for(MS * 2);
        got += drain(world, &theirs);
        assert!(world.now < end, "{got} bytes after {limit:?}");
    }
}

/// One stream that has the memory for itself fills a long and wide path.
#[test]
fn chan_a_stream_fills_a_long_path() {
    let mut world = World::new(1, LONG, 2);
    world.configure(&[ChannelConfig { send_buffer: 64 << 20, ..config("s", Mode::Stream) }]);
    let pipes = open(&mut world, 1, [0, 0]);
    fill(&mut world, &pipes[..1], 60_000_000, SECOND * 5);
    let before = world.now;
    fill(&mut world, &pipes[..1], 60_000_000, SECOND * 5);
    // 0.48 s if nothing but the path held it up, and the round trip in which the last bytes come.
    assert!(world.now - before < MS * 750, "{:?}", world.now - before);
}

/// Windows that grew and are idle leave room for others, and are given back when it is scarce.
#[test]
fn chan_grown_windows_that_are_idle_are_given_back() {
    let mut world = World::new(1, LONG, 3);
    streams(&mut world);
    let idle = open(&mut world, 100, [0, 0]);
    let idle: Vec<Pipe> = idle.into_iter().filter(|pipe| pipe.opener == 0).collect();
    fill(&mut world, &idle, 2_000_000, SECOND * 60);
    let held = booked(&world);
    assert!(held > 32 << 20, "{held} bytes are held by idle streams");
    // New ones go on at once.
    let before = world.now;
    let new = open(&mut world, 200, [0, 0]);
    let new: Vec<Pipe> = new.into_iter().filter(|pipe| pipe.opener == 0).collect();
    assert_eq!(new.len(), 100);
    fill(&mut world, &new, 200_000, SECOND * 5);
    assert!(world.now - before < SECOND * 5, "{:?}", world.now - before);
    world.run_for(SECOND * 4);
    let (held, report) = (booked(&world), world.hubs[1].report());
    assert!(held < 40 << 20 && report.credit_returned > 10 << 20, "{held} {report:?}");
    // Those that were idle go on, too.
    fill(&mut world, &idle, 200_000, SECOND * 5);
    assert_eq!(world.faults(), []);
    world.assert_quiet();
}

/// Nobody needs to ask: messages whose sender gave its credit back go on as others.
#[test]
fn chan_idle_messages_give_their_credit_back() {
    let mut world = World::new(1, Weather { loss: 100, ..CALM }, 5);
    let configs: Vec<_> = (1..201).map(|n| config(&format!("m{n}"), Mode::Ordered)).collect();
    world.configure(&configs);
    let mut talks: Vec<Talk> = (1..201).map(|n| Talk::new(n, 0, vec![2_000; 2])).collect();
    run(&mut world, &mut talks, SECOND * 10, |_| {});
    assert!(booked(&world) > 30 << 20);
    // One that wants much.
    talks[0].lengths.resize(40, 2_000_000);
    run(&mut world, &mut talks, SECOND * 60, |_| {});
    world.run_for(SECOND * 4);
    assert!(world.hubs[1].report().credit_returned > 10 << 20);
    for talk in &mut talks[1..] {
        talk.lengths.extend([50_000, 10, 300_000]);
    }
    run(&mut world, &mut talks, SECOND * 60, |_| {});
    talks.iter().for_each(Talk::assert_ordered);
    assert_eq!(world.faults(), []);
    world.assert_quiet();
}

/// As many streams as have their guarantee hold all there is, and a program that does not read
/// holds up no other. When they go, one that got nothing goes on.
#[test]
fn chan_a_stream_without_credit_gets_it_when_there_is_some() {
    let mut world = World::new(1, CALM, 4);
    streams(&mut world);
    let now = world.now;
    let hub = &mut world.hubs[1];
    // Another peer's, as it were.
    let mut hold = Vec::new();
    while hub.memory.booked() + GUARANTEED <= hub.report_limit() / 4 * 3 {
        let window = 64 << 10;
        hold.push(Credit::new(now, window, window, &mut hub.memory));
    }
    assert!(hold.len() as u64 >= hub.memory.channels());
    let mut pipes = [Pipe::open(&mut world, 1, 0, [100_000, 100_000])];
    let end = world.now + SECOND * 2;
    while world.now < end {
        pipes[0].work(&mut world);
        world.run_for(MS);
    }
    assert_eq!(pipes[0].got, [100_000, 0]);
    assert!(world.hubs[1].report().credit_limited > 0);
    hold.pop().unwrap().close(&mut world.hubs[1].memory);
    let before = world.now;
    pipe(&mut world, &mut pipes, SECOND * 5, |_| {});
    assert!(world.now - before < SECOND * 2, "{:?}", world.now - before);
}

/// Large messages of another peer, as it were, leave so little of the second node's memory that the
/// longest message does not get the credit that it needs. It expires.
fn long_message_expires(world: &mut World, talk: &mut Talk) -> [IncomingMessages; 2] {
    run(world, std::slice::from_mut(talk), SECOND * 5, |_| {});
    // Until that it came is known.
    world.run_for(SECOND);
    let (now, hub) = (world.now, &mut world.hubs[1]);
    let hold = [(); 2].map(|()| {
        let credit = Credit::new(now, 1, TOP_WINDOW, &mut hub.memory);
        let channel = ChannelId { number: 0, opener: Opener::Receiver };
        let mut messages = IncomingMessages::new(channel, true, credit);
        messages.on_blocked(1, 46 << 20);
        assert!(messages.next_frame(now, MS, &mut hub.memory).is_some());
        messages
    });
    let options = SendOptions { ttl: Some(MS * 300), ..SendOptions::default() };
    let long = vec![0; MAX_MESSAGE_LEN as usize];
    assert!(world.hubs[0].send(now, talk.key, node(1), options, long).is_ok());
    world.run_for(MS * 400);
    let expired = ChannelEvent::Expired(talk.key, node(1), 1);
    assert!(world.events[0].contains(&expired), "there was room for it");
    hold
}

/// What is next needs less, and there is as much: it does not wait for what the message before it
/// would have needed.
#[test]
fn chan_a_smaller_need_takes_the_place_of_one_that_is_over() {
    for loss in [0, 300] {
        let mut world = World::new(1, Weather { loss, jitter: MS, ..CALM }, 6);
        world.configure(&[config("m", Mode::Ordered)]);
        let mut talks = [Talk::new(1, 0, vec![100])];
        let hold = long_message_expires(&mut world, &mut talks[0]);
        talks[0].lengths.push(2 << 20);
        run(&mut world, &mut talks, SECOND * 20, |_| {});
        talks[0].assert_ordered();
        let memory = &mut world.hubs[1].memory;
        hold.into_iter().for_each(|messages| messages.close(memory));
    }
}

/// Nothing is next: no memory goes to a message that was given up.
#[test]
fn chan_a_need_that_is_over_takes_no_memory() {
    let mut world = World::new(1, CALM, 7);
    world.configure(&[config("m", Mode::Ordered)]);
    let mut talk = Talk::new(1, 0, vec![100]);
    let hold = long_message_expires(&mut world, &mut talk);
    let memory = &mut world.hubs[1].memory;
    hold.into_iter().for_each(|messages| messages.close(memory));
    world.run_for(SECOND);
    assert!(booked(&world) < 8 << 20, "{} bytes", booked(&world));
    assert_eq!(world.faults(), []);
}
