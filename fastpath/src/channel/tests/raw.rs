//! Descriptors that carry messages without headers.

use std::io::Read;
use std::net::{Shutdown, UdpSocket};
use std::os::fd::AsFd;

use encap::wire::channel::Mode;
use socket2::{Domain, Socket, Type};

use super::world::{Program, World, attach, data};
use crate::channel::framing::{Code, Flags, Header, Kind, MAX_RECORD_LEN};

fn raw(peer: u16) -> Header {
    Header { peer, priority: 5, ..attach(Flags::RAW.with(Flags::RECEIVE)) }
}

/// A program on the first node that has handed one of two sockets over.
fn hand_over(world: &mut World, theirs: &impl AsFd) -> Program {
    let mut program = world.nodes[0].connect();
    program.send_with(raw(2), &[theirs.as_fd()]);
    world.settle();
    let (welcome, _) = program.record().unwrap();
    assert_eq!((welcome.kind, welcome.length), (Kind::Welcome, 64 << 10));
    assert_eq!(program.record().unwrap().0.kind, Kind::PeerUp);
    program
}

fn pair(kind: Type) -> (Socket, Socket) {
    let (mine, theirs) = Socket::pair(Domain::UNIX, kind, None).unwrap();
    mine.set_nonblocking(true).unwrap();
    (mine, theirs)
}

#[test]
fn packets_are_messages() {
    for kind in [Type::SEQPACKET, Type::DGRAM] {
        let mut world = World::new(Mode::Ordered);
        let mut other = world.attach(1, Flags::RECEIVE);
        let (mine, theirs) = pair(kind);
        let _program = hand_over(&mut world, &theirs);
        drop(theirs);
        mine.send(b"out").unwrap();
        world.settle();
        let (header, bytes) = other.message().unwrap();
        assert_eq!((header.peer, header.priority, &bytes[..]), (1, 5, &b"out"[..]));
        other.send(data(1, 2), b"in").unwrap();
        world.settle();
        let mut room = [0; 10];
        assert_eq!((&mine).read(&mut room).unwrap(), 2);
        assert_eq!(&room[..2], b"in");
    }
}

#[test]
fn datagrams_of_the_network_are_messages() {
    let mut world = World::new(Mode::Unreliable);
    let mut other = world.attach(1, Flags::RECEIVE);
    let (mine, theirs) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    mine.connect(theirs.local_addr().unwrap()).unwrap();
    theirs.connect(mine.local_addr().unwrap()).unwrap();
    mine.set_nonblocking(true).unwrap();
    let _program = hand_over(&mut world, &theirs);
    mine.send(b"").unwrap();
    mine.send(b"out").unwrap();
    assert_eq!(world.until(|_| other.message()).1, b"");
    assert_eq!(world.until(|_| other.message()).1, b"out");
    other.send(data(1, 2), b"in").unwrap();
    let mut room = [0; 10];
    assert_eq!(world.until(|_| mine.recv(&mut room).ok()), 2);
    // Nobody is there any more: what is sent is lost, and nothing ends or turns in circles.
    drop(mine);
    for _ in 0..3 {
        other.send(data(1, 2), b"in").unwrap();
        world.settle();
    }
    assert!(world.nodes[0].counters().dropped_raw_failed > 0);
    assert_eq!(world.nodes[0].sockets.report()[0].programs, 1);
}

#[test]
fn what_does_not_fit_a_packet_is_counted() {
    let mut world = World::new(Mode::Ordered);
    let mut other = world.attach(1, Flags::RECEIVE);
    let (mine, theirs) = pair(Type::SEQPACKET);
    let _program = hand_over(&mut world, &theirs);
    mine.send(&vec![0; MAX_RECORD_LEN + 1]).unwrap();
    mine.send(&vec![1; MAX_RECORD_LEN]).unwrap();
    assert_eq!(world.until(|_| other.message()).1.len(), MAX_RECORD_LEN);
    assert_eq!(world.nodes[0].counters().dropped_raw_too_long, 1);
    other.send_message(&mut world, data(1, 0), &vec![0; MAX_RECORD_LEN + 1]);
    other.send_message(&mut world, data(1, 0), &vec![1; MAX_RECORD_LEN]);
    world.settle();
    assert_eq!((&mine).read(&mut vec![0; MAX_RECORD_LEN + 2]).unwrap(), MAX_RECORD_LEN);
    assert_eq!(world.nodes[0].counters().dropped_raw_too_long, 2);
}

#[test]
fn empty_messages_do_not_look_like_the_end() {
    for kind in [Type::SEQPACKET, Type::DGRAM] {
        let mut world = World::new(Mode::Ordered);
        let other = world.attach(1, Flags::RECEIVE);
        let (mine, theirs) = pair(kind);
        let _program = hand_over(&mut world, &theirs);
        for bytes in [&b""[..], b"in"] {
            other.send(data(1, bytes.len()), bytes).unwrap();
        }
        world.settle();
        let mut room = [0; 10];
        let keeps = kind == Type::DGRAM;
        if keeps {
            assert_eq!((&mine).read(&mut room).unwrap(), 0);
        }
        assert_eq!((&mine).read(&mut room).unwrap(), 2);
        assert_eq!(world.nodes[0].counters().dropped_raw_empty, u64::from(!keeps));
    }
}

#[test]
fn who_does_not_read_packets_stops_who_sends() {
    for kind in [Type::SEQPACKET, Type::DGRAM] {
        let mut world = World::new(Mode::Ordered);
        let other = world.attach(1, Flags::NONE);
        let (mine, theirs) = pair(kind);
        let _program = hand_over(&mut world, &theirs);
        let mut count = 0;
        loop {
            world.settle();
            if other.send(data(1, 4000), &[0; 4000]).is_err() {
                break;
            }
            count += 1;
            assert!(count < 10_000, "there is no end to the room");
        }
        let mut room = [0; 5000];
        for _ in 0..count {
            assert_eq!(world.until(|_| (&mine).read(&mut room).ok()), 4000);
        }
    }
}

#[test]
fn the_connection_is_the_lifeline() {
    let mut world = World::new(Mode::Ordered);
    let mut other = world.attach(1, Flags::RECEIVE);
    let (mine, theirs) = pair(Type::SEQPACKET);
    let program = hand_over(&mut world, &theirs);
    drop(theirs);
    mine.send(b"last").unwrap();
    drop(program);
    world.settle();
    assert_eq!(other.message().unwrap().1, b"last");
    let report = &world.nodes[0].sockets.report()[0];
    assert_eq!((report.programs, report.receiving), (0, false));
    assert_eq!((&mine).read(&mut [0; 1]).unwrap(), 0);
    assert!(!world.nodes[0].is_busy());
}

/// Whatever the descriptor holds and the hub has no room for comes before.
#[test]
fn the_end_of_sending_on_the_lifeline_is_answered() {
    for kind in [Type::SEQPACKET, Type::DGRAM] {
        for fills in [false, true] {
            let mut world = World::new(Mode::Ordered);
            let (mine, theirs) = pair(kind);
            let mut program = hand_over(&mut world, &theirs);
            drop(theirs);
            let mut count = 0_u64;
            while mine.send(&[&count.to_ne_bytes()[..], &[0; 4000]].concat()).is_ok() {
                count += 1;
                if !fills {
                    break;
                }
                world.settle();
            }
            program.socket.shutdown(Shutdown::Write).unwrap();
            world.settle();
            assert!(!world.nodes[0].is_busy());
            let mut other = world.attach(1, Flags::RECEIVE);
            for expected in 0..count {
                let (_, bytes) = world.until(|_| other.message());
                assert_eq!(bytes[..8], expected.to_ne_bytes());
            }
            world.settle();
            assert_eq!(program.closed(), Some(0));
            assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
        }
    }
}

#[test]
fn what_a_descriptor_still_holds_arrives() {
    for keeps in [false, true] {
        let mut world = World::new(Mode::Ordered);
        let (mine, theirs) = pair(Type::SEQPACKET);
        let program = hand_over(&mut world, &theirs);
        drop(theirs);
        let mut count = 0_u64;
        loop {
            world.settle();
            if mine.send(&[&count.to_ne_bytes()[..], &[0; 4000]].concat()).is_err() {
                break;
            }
            count += 1;
        }
        drop(program);
        // Another process may have the other end too.
        let _mine = keeps.then_some(mine);
        world.settle();
        assert_eq!(world.nodes[0].sockets.report()[0].programs, 1, "its packets still wait");
        assert!(!world.nodes[0].is_busy());
        let mut other = world.attach(1, Flags::RECEIVE);
        for expected in 0..count {
            let (_, bytes) = world.until(|_| other.message());
            assert_eq!(bytes[..8], expected.to_ne_bytes());
        }
        world.settle();
        assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
    }
}

#[test]
fn the_end_of_a_descriptor_ends_the_connection() {
    let mut world = World::new(Mode::Ordered);
    let mut other = world.attach(1, Flags::RECEIVE);
    let (mine, theirs) = pair(Type::SEQPACKET);
    let mut program = hand_over(&mut world, &theirs);
    drop(theirs);
    mine.send(b"last").unwrap();
    drop(mine);
    world.settle();
    assert_eq!(other.message().unwrap().1, b"last");
    assert_eq!(program.closed(), Some(0));
    assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
}

#[test]
fn a_descriptor_that_is_shut_down_ends_the_connection() {
    for (kind, how) in [Type::DGRAM, Type::SEQPACKET]
        .into_iter()
        .flat_map(|kind| [(kind, Shutdown::Read), (kind, Shutdown::Both)])
    {
        let mut world = World::new(Mode::Ordered);
        let mut other = world.attach(1, Flags::RECEIVE);
        let (mine, theirs) = pair(kind);
        let mut program = hand_over(&mut world, &theirs);
        mine.send(b"last").unwrap();
        theirs.shutdown(how).unwrap();
        world.settle();
        assert_eq!(other.message().unwrap().1, b"last");
        assert!(program.closed() == Some(0) && !world.nodes[0].is_busy());
        assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
    }
}

#[test]
fn records_beside_a_descriptor_end_the_connection() {
    let mut world = World::new(Mode::Ordered);
    let (_mine, theirs) = pair(Type::SEQPACKET);
    let mut program = hand_over(&mut world, &theirs);
    program.send(data(2, 1), b"x").unwrap();
    assert_eq!(world.error(&mut program).0, Code::Invalid);
}

#[test]
fn descriptors_that_cannot_carry_messages_are_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let stream = pair(Type::STREAM).0;
    let alone = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
    let (good, _other) = pair(Type::SEQPACKET);
    let refuse = |header: Header, descriptors: &[_]| {
        let mut world = World::new(Mode::Ordered);
        let mut program = world.nodes[0].connect();
        program.send_with(header, descriptors);
        let (code, text) = world.error(&mut program);
        assert_eq!((code, world.nodes[0].counters().protocol_errors), (Code::Invalid, 1));
        assert!(!world.nodes[0].sockets.report()[0].receiving);
        text
    };
    assert!(refuse(raw(2), &[file.as_fd()]).contains("no socket"));
    assert!(refuse(raw(2), &[stream.as_fd()]).contains("no socket of packets"));
    assert!(refuse(raw(2), &[alone.as_fd()]).contains("not connected"));
    assert!(refuse(raw(2), &[good.as_fd(), good.as_fd()]).contains("one descriptor"));
    assert!(refuse(attach(Flags::NONE), &[good.as_fd()]).contains("one descriptor"));
}
