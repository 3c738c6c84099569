//! Streams: both ways, half closed, reset, refused, accepted by nobody.

use super::super::*;
use super::world::*;

fn streams(world: &mut World) {
    world.configure(&[config("s", Mode::Stream)]);
}

#[test]
fn chan_streams_go_both_ways() {
    for seed in 1..4 {
        let weather = Weather { loss: 300, copies: 500, delay: MS, jitter: MS * 5, ..CALM };
        let mut world = World::new(2, weather, seed);
        streams(&mut world);
        let mut pipes = [
            Pipe::open(&mut world, 1, 0, [300_000, 70_000]),
            Pipe::open(&mut world, 1, 0, [0, 100_000]),
            Pipe::open(&mut world, 1, 0, [0, 0]),
        ];
        // Which of them is accepted first is not said: each side writes to its own.
        for pipe in &mut pipes {
            let limit = world.now + SECOND * 10;
            while pipe.keys[1].is_none() {
                pipe.accept(&mut world);
                world.step();
                assert!(world.now < limit);
            }
            pipe_one(&mut world, pipe);
        }
        assert_eq!(world.faults(), []);
        world.run_for(SECOND * 2);
        assert!(world.hubs.iter().all(|hub| hub.streams.is_empty()));
        assert_eq!(world.count(0, |event| matches!(event, ChannelEvent::StreamDone(_))), 3);
        assert_eq!(world.count(1, |event| matches!(event, ChannelEvent::StreamDone(_))), 3);
        assert_eq!((world.hubs[0].memory.booked(), world.hubs[1].memory.booked()), (0, 0));
        world.assert_quiet();
    }
}

fn pipe_one(world: &mut World, one: &mut Pipe) {
    let pipes = std::slice::from_mut(one);
    pipe(world, pipes, SECOND * 60, |_| {});
}

/// Opens a stream and has it accepted.
fn opened(world: &mut World) -> (StreamKey, StreamKey) {
    let key = world.hubs[0].open_stream(world.now, ChannelKey(1), node(1)).unwrap();
    world.run_for(MS * 50);
    assert_eq!(world.count(1, |event| matches!(event, ChannelEvent::StreamWaiting(_))), 1);
    let (other, from) = world.hubs[1].accept_stream(world.now, ChannelKey(1)).unwrap();
    assert_eq!(from, node(0));
    world.run_for(MS * 50);
    assert_eq!(world.count(0, |event| *event == ChannelEvent::StreamOpened(key)), 1);
    world.events = Default::default();
    (key, other)
}

fn read_all(world: &mut World, side: usize, key: StreamKey) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    loop {
        match world.hubs[side].read_stream(key) {
            StreamRead::Bytes(bytes) => {
                all.extend_from_slice(bytes);
                let len = bytes.len();
                world.hubs[side].consume_stream(key, len);
            }
            StreamRead::Nothing => return (all, false),
            StreamRead::End => return (all, true),
        }
    }
}

#[test]
fn chan_a_stream_is_half_closed() {
    let mut world = World::new(1, CALM, 1);
    streams(&mut world);
    let (key, other) = opened(&mut world);
    assert_eq!(world.hubs[0].write_stream(key, b"question"), 8);
    world.hubs[0].finish_stream(key);
    world.run_for(MS * 50);
    assert_eq!(read_all(&mut world, 1, other), (b"question".to_vec(), true));
    assert_eq!(world.hubs[0].write_stream(key, b"more"), 0);
    assert_eq!(world.hubs[1].write_stream(other, b"answer"), 6);
    world.run_for(MS * 50);
    assert_eq!(read_all(&mut world, 0, key), (b"answer".to_vec(), false));
    assert_eq!(world.count(0, |event| matches!(event, ChannelEvent::StreamDone(_))), 0);
    // The end comes alone: nothing is left that the program would take.
    world.hubs[1].finish_stream(other);
    world.run_for(MS * 50);
    assert_eq!(world.count(0, |event| *event == ChannelEvent::StreamDone(key)), 1);
    assert_eq!(world.count(1, |event| *event == ChannelEvent::StreamDone(other)), 1);
    assert!(world.hubs.iter().all(|hub| hub.streams.is_empty() && hub.memory.booked() == 0));
    world.assert_quiet();
}

#[test]
fn chan_a_reset_is_told_with_its_code() {
    for side in 0..2 {
        let mut world = World::new(1, Weather { loss: 200, ..CALM }, 2);
        streams(&mut world);
        let keys: [StreamKey; 2] = opened(&mut world).into();
        world.hubs[side].write_stream(keys[side], &[1; 100_000]);
        world.run_for(MS * 5);
        world.hubs[side].reset_stream(keys[side], 77);
        world.hubs[1 - side].write_stream(keys[1 - side], &[1; 100_000]);
        world.run_for(SECOND);
        let failed = ChannelEvent::StreamFailed(keys[1 - side], StreamError::Reset(77));
        assert_eq!(world.count(1 - side, |event| *event == failed), 1);
        assert!(world.hubs.iter().all(|hub| hub.streams.is_empty() && hub.memory.booked() == 0));
        assert_eq!(world.faults(), []);
        world.assert_quiet();
    }
}

/// What was given up before it was asked for is never opened, whatever overtakes what.
#[test]
fn chan_a_reset_overtakes_its_open() {
    for seed in 0..40 {
        let weather = Weather { loss: 300, delay: MS, jitter: MS * 20, ..CALM };
        let mut world = World::new(1, weather, seed);
        streams(&mut world);
        for _ in 0..20 {
            let key = world.hubs[0].open_stream(world.now, ChannelKey(1), node(1)).unwrap();
            if seed % 2 == 0 {
                world.run_for(MS);
            }
            world.hubs[0].reset_stream(key, 5);
        }
        world.run_for(SECOND * 4);
        assert_eq!(world.hubs[1].accept_stream(world.now, ChannelKey(1)), None, "seed {seed}");
        assert!(world.hubs[1].streams.is_empty() && world.hubs[1].memory.booked() == 0);
        assert_eq!(world.faults(), []);
    }
}

/// Streams that were given up before they were asked for leave no gaps to remember.
#[test]
fn chan_many_streams_are_given_up_at_once() {
    let mut world = World::new(1, CALM, 3);
    streams(&mut world);
    for _ in 0..6_000 {
        let key = world.hubs[0].open_stream(world.now, ChannelKey(1), node(1)).unwrap();
        world.hubs[0]
            .open_stream(world.now, ChannelKey(1), node(1))
            .map(|key| {
                world.run_for(MS);
                world.hubs[0].reset_stream(key, 5);
            })
            .unwrap();
        world.hubs[0].reset_stream(key, 5);
        world.run_for(MS);
    }
    world.run_for(SECOND);
    assert!(world.hubs[1].peers[&node(0)].seen.len() <= 2);
    opened_after(&mut world);
    // A peer that does not answer does not have them pile up.
    world.linked = false;
    world.publish();
    let mut full = false;
    for _ in 0..5_000 {
        match world.hubs[0].open_stream(world.now, ChannelKey(1), node(1)) {
            Ok(key) => world.hubs[0].reset_stream(key, 5),
            Err(error) => full = error == SendError::Full,
        }
    }
    let peer = &world.hubs[0].peers[&node(1)];
    assert!(full && peer.replies.len() <= 1_024 && peer.round.len() <= 1_100);
}

fn opened_after(world: &mut World) {
    world.events = Default::default();
    while world.hubs[1].accept_stream(world.now, ChannelKey(1)).is_some() {}
    let (key, other) = opened(world);
    world.hubs[0].write_stream(key, b"x");
    world.run_for(MS * 50);
    assert_eq!(read_all(world, 1, other), (b"x".to_vec(), false));
}

#[test]
fn chan_nobody_accepts_or_there_is_no_channel() {
    let mut world = World::new(1, Weather { loss: 200, ..CALM }, 4);
    streams(&mut world);
    let key = world.hubs[0].open_stream(world.now, ChannelKey(1), node(1)).unwrap();
    world.run_for(SECOND * 4);
    assert_eq!(world.count(0, |event| matches!(event, ChannelEvent::StreamFailed(..))), 0);
    world.run_for(SECOND * 2);
    let nobody = ChannelEvent::StreamFailed(key, StreamError::NobodyAccepts);
    assert_eq!(world.count(0, |event| *event == nobody), 1);
    assert_eq!(world.hubs[1].accept_stream(world.now, ChannelKey(1)), None);
    world.configure_one(1, &[config("s", Mode::Ordered)]);
    let key = world.hubs[0].open_stream(world.now, ChannelKey(1), node(1)).unwrap();
    world.run_for(SECOND);
    let refused = ChannelEvent::StreamFailed(key, StreamError::Refused);
    assert_eq!(world.count(0, |event| *event == refused), 1);
    assert!(world.hubs.iter().all(|hub| hub.streams.is_empty() && hub.memory.booked() == 0));
    world.assert_quiet();
}

/// The first bytes come before the word that the stream was accepted.
#[test]
fn chan_bytes_overtake_the_acceptance() {
    for seed in 0..20 {
        let mut world = World::new(1, Weather { delay: MS, jitter: MS * 20, ..CALM }, seed);
        streams(&mut world);
        let key = world.hubs[0].open_stream(world.now, ChannelKey(1), node(1)).unwrap();
        world.run_for(MS * 50);
        let (other, _) = world.hubs[1].accept_stream(world.now, ChannelKey(1)).unwrap();
        world.run_for(MS / 2);
        world.hubs[1].write_stream(other, b"first");
        world.run_for(SECOND);
        let events: Vec<_> = world.events[0]
            .iter()
            .filter(|event| !matches!(event, ChannelEvent::PeerUp(..)))
            .collect();
        let wanted = [ChannelEvent::StreamOpened(key), ChannelEvent::StreamReadable(key)];
        assert!(events.iter().copied().eq(&wanted), "{events:?}");
    }
}
