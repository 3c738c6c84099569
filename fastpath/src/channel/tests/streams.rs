//! Streams from program to program.

use std::io::ErrorKind;

use encap::wire::channel::Mode;

use super::world::{Program, World, data, node, pattern};
use crate::channel::framing::{Code, Flags, Header, Kind};

/// A stream between a program on each node.
fn stream(world: &mut World) -> [Program; 2] {
    let mut connecting = world.attach(0, Flags::NONE);
    let mut accepting = world.attach(1, Flags::NONE);
    accepting.send(Header::new(Kind::Accept), &[]).unwrap();
    connecting.send(Header { peer: 2, ..Header::new(Kind::Connect) }, &[]).unwrap();
    world.settle();
    for (program, peer) in [(&mut connecting, 2), (&mut accepting, 1)] {
        let (header, _) = program.record().unwrap();
        assert_eq!(header, Header::event(Kind::Connected, node(peer), 0, 0));
    }
    [connecting, accepting]
}

fn fin(program: &Program) {
    program.send(Header::new(Kind::Fin), &[]).unwrap();
}

/// Moves bytes from one program to the other until all are there. They are in records of `len`
/// bytes, which the socket may take in parts.
fn carry(world: &mut World, from: &Program, to: &mut Program, bytes: &[u8], len: usize) {
    let mut wire = Vec::new();
    for part in bytes.chunks(len) {
        wire.extend(data(0, part.len()).encode());
        wire.extend(part);
    }
    let (mut sent, mut received) = (0, Vec::new());
    world.until(|_| {
        while sent < wire.len() {
            match from.socket.send(&wire[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Some((header, payload)) = to.record() {
            assert_eq!(header.kind, Kind::Data);
            received.extend(payload);
        }
        (received.len() >= bytes.len()).then_some(())
    });
    assert!(received == bytes);
}

#[test]
fn bytes_go_both_ways_until_both_ends() {
    let mut world = World::new(Mode::Stream);
    let [mut a, mut b] = stream(&mut world);
    for len in [1, 100, 100_000, 1 << 20] {
        let bytes = pattern(3 * len);
        carry(&mut world, &a, &mut b, &bytes, len);
        carry(&mut world, &b, &mut a, &bytes, len);
    }
    fin(&a);
    world.settle();
    assert_eq!(b.record().unwrap().0, Header::new(Kind::Fin));
    carry(&mut world, &b, &mut a, &pattern(1000), 10);
    assert!(!b.is_at_end());
    fin(&b);
    world.settle();
    assert_eq!(a.record().unwrap().0, Header::new(Kind::Fin));
    assert_eq!([a.closed(), b.closed()], [Some(0); 2]);
    assert_eq!(world.nodes[0].counters().streams_reset, 0);
    assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
}

#[test]
fn records_may_come_in_any_parts() {
    let mut world = World::new(Mode::Stream);
    let [a, mut b] = stream(&mut world);
    let record = [&data(0, 5).encode()[..], b"hello", &data(0, 0).encode()].concat();
    for byte in &record {
        a.socket.send(std::slice::from_ref(byte)).unwrap();
        world.turn();
    }
    world.settle();
    let mut received = Vec::new();
    while let Some((_, payload)) = b.record() {
        received.extend(payload);
    }
    assert_eq!(received, b"hello");
    // All at once, with the end.
    let all = [&record[..], &record, &Header::new(Kind::Fin).encode()].concat();
    a.socket.send(&all).unwrap();
    world.settle();
    assert_eq!(b.record().unwrap().1, b"hellohello");
    assert_eq!(b.record().unwrap().0.kind, Kind::Fin);
}

#[test]
fn bytes_may_be_sent_before_the_peer_accepts() {
    let mut world = World::new(Mode::Stream);
    let mut a = world.attach(0, Flags::NONE);
    a.send(Header { peer: 2, ..Header::new(Kind::Connect) }, &[]).unwrap();
    a.send(data(0, 5), b"early").unwrap();
    fin(&a);
    world.settle();
    assert!(a.record().is_none());
    let mut b = world.attach(1, Flags::NONE);
    b.send(Header::new(Kind::Accept), &[]).unwrap();
    world.settle();
    assert_eq!(b.record().unwrap().0.kind, Kind::Connected);
    assert_eq!(b.record().unwrap().1, b"early");
    assert_eq!(b.record().unwrap().0.kind, Kind::Fin);
    assert_eq!(a.record().unwrap().0.kind, Kind::Connected);
}

#[test]
fn who_does_not_read_a_stream_stops_who_writes() {
    let mut world = World::new(Mode::Stream);
    let [a, mut b] = stream(&mut world);
    let (len, mut count) = (10_000, 0);
    let mut rest = Vec::new();
    loop {
        world.settle();
        let record = [&data(0, len).encode()[..], &[count as u8; 10_000]].concat();
        match a.socket.send(&record) {
            Ok(sent) if sent == record.len() => count += 1,
            Ok(sent) => {
                rest = record[sent..].to_vec();
                count += 1;
                break;
            }
            Err(_) => break,
        }
        assert!(count < 10_000, "there is no end to the room");
    }
    assert!(world.nodes[0].counters().held_back > 0);
    assert!(!world.nodes[0].is_busy() && !world.nodes[1].is_busy());
    let mut received = Vec::new();
    world.until(|_| {
        while let Some((_, payload)) = b.record() {
            received.extend(payload);
        }
        if let Ok(sent) = a.socket.send(&rest) {
            rest.drain(..sent);
        }
        (received.len() >= count * len).then_some(())
    });
    for (number, part) in received.chunks(len).enumerate() {
        assert!(part.iter().all(|byte| *byte == number as u8), "{number}");
    }
}

#[test]
fn who_gives_up_says_why() {
    let mut world = World::new(Mode::Stream);
    let [a, mut b] = stream(&mut world);
    a.send(Header { number: 42, ..Header::new(Kind::Reset) }, &[]).unwrap();
    world.settle();
    let (header, _) = b.record().unwrap();
    let code = Code::Reset.number();
    assert_eq!(header, Header { code, number: 42, ..Header::new(Kind::Reset) });
    assert!(a.is_at_end() && b.is_at_end());
}

#[test]
fn a_stream_whose_program_goes_without_its_end_is_reset() {
    let mut world = World::new(Mode::Stream);
    let [a, mut b] = stream(&mut world);
    a.send(data(0, 2), b"ab").unwrap();
    world.settle();
    drop(a);
    world.settle();
    assert_eq!(world.nodes[0].counters().streams_reset, 1);
    let mut kinds = Vec::new();
    while let Some((header, _)) = b.record() {
        kinds.push((header.kind, header.number));
    }
    assert_eq!(kinds, [(Kind::Data, 0), (Kind::Reset, 0)]);
    assert!(b.is_at_end());
}

#[test]
fn who_has_said_its_end_may_go_at_once() {
    let mut world = World::new(Mode::Stream);
    let [a, mut b] = stream(&mut world);
    let much = vec![7; 60_000];
    for _ in 0..3 {
        a.send(data(0, 60_000), &much).unwrap();
    }
    fin(&a);
    drop(a);
    world.settle();
    let mut got = 0;
    let last = loop {
        let (header, bytes) = b.record().unwrap();
        got += bytes.len();
        if header.kind != Kind::Data {
            break header.kind;
        }
    };
    assert_eq!((got, last), (180_000, Kind::Fin));
    fin(&b);
    world.settle();
    assert_eq!(b.closed(), Some(0));
    for node in &world.nodes {
        assert_eq!(node.counters().streams_reset, 0);
        assert_eq!(node.hub.report().channels[0].peers[0].streams, 0);
    }
}

#[test]
fn bytes_for_a_program_that_has_gone_reset_the_stream() {
    let mut world = World::new(Mode::Stream);
    let [a, mut b] = stream(&mut world);
    fin(&a);
    world.settle();
    assert_eq!(b.record().unwrap().0.kind, Kind::Fin);
    drop(a);
    world.settle();
    b.send(data(0, 2), b"ab").unwrap();
    world.settle();
    assert_eq!(b.record().unwrap().0.kind, Kind::Reset);
    assert!(b.is_at_end());
    assert_eq!(world.nodes[0].hub.report().channels[0].peers[0].streams, 0);
}

#[test]
fn who_has_both_ends_may_go_at_once() {
    let mut world = World::new(Mode::Stream);
    let [mut a, mut b] = stream(&mut world);
    fin(&b);
    world.settle();
    assert_eq!(a.record().unwrap().0.kind, Kind::Fin);
    a.send(data(0, 4), b"last").unwrap();
    fin(&a);
    drop(a);
    world.settle();
    assert_eq!(b.record().unwrap().1, b"last");
    assert_eq!(b.record().unwrap().0.kind, Kind::Fin);
    assert_eq!(b.closed(), Some(0));
    assert_eq!(world.nodes[0].counters().streams_reset, 0);
}

#[test]
fn a_record_is_ended_before_the_reset() {
    let mut world = World::new(Mode::Stream);
    let [a, mut b] = stream(&mut world);
    for _ in 0..100 {
        let _ = a.socket.send(&[&data(0, 60_000).encode()[..], &[7; 60_000]].concat());
        world.settle();
    }
    drop(a);
    world.settle();
    let mut last = None;
    world.until(|_| {
        while let Some((header, payload)) = b.record() {
            assert!(payload.iter().all(|byte| *byte == 7));
            last = Some(header.kind);
        }
        (last == Some(Kind::Reset)).then_some(())
    });
    world.settle();
    assert!(b.is_at_end());
}

#[test]
fn programs_that_wait_get_streams_in_turn() {
    let mut world = World::new(Mode::Stream);
    let mut accepting = [world.attach(1, Flags::NONE), world.attach(1, Flags::NONE)];
    for program in &accepting {
        program.send(Header::new(Kind::Accept), &[]).unwrap();
        world.settle();
    }
    let mut connecting = Vec::new();
    for number in 0..3 {
        let program = world.attach(0, Flags::NONE);
        program.send(Header { peer: 2, ..Header::new(Kind::Connect) }, &[]).unwrap();
        program.send(data(0, 1), &[number]).unwrap();
        world.settle();
        connecting.push(program);
    }
    for (number, program) in accepting.iter_mut().enumerate() {
        assert_eq!(program.record().unwrap().0.kind, Kind::Connected);
        assert_eq!(program.record().unwrap().1, [number as u8]);
    }
    // One that went is not in the way.
    let gone = world.attach(1, Flags::NONE);
    gone.send(Header::new(Kind::Accept), &[]).unwrap();
    drop(gone);
    let mut third = world.attach(1, Flags::NONE);
    third.send(Header::new(Kind::Accept), &[]).unwrap();
    world.settle();
    assert_eq!(third.record().unwrap().0.kind, Kind::Connected);
    assert_eq!(third.record().unwrap().1, [2]);
}

#[test]
fn streams_that_come_to_nothing_say_why() {
    let mut world = World::new(Mode::Stream);
    let connect = Header { peer: 2, ..Header::new(Kind::Connect) };
    let told = |world: &mut World, program: &mut Program, code: Code| {
        let (header, _) = world.until(|_| program.record());
        assert_eq!(header, Header { code: code.number(), ..Header::new(Kind::Reset) });
        world.settle();
        assert!(program.is_at_end());
    };
    let mut program = world.attach(0, Flags::NONE);
    program.send(connect, &[]).unwrap();
    told(&mut world, &mut program, Code::NobodyAccepts);
    let [mut program, _other] = stream(&mut world);
    world.restart_second();
    told(&mut world, &mut program, Code::PeerGone);
    let mut world = World::new(Mode::Stream);
    let now = world.now;
    world.nodes[1].hub.configure(now, Vec::new());
    let mut program = world.attach(0, Flags::NONE);
    program.send(connect, &[]).unwrap();
    told(&mut world, &mut program, Code::NoChannel);
}
