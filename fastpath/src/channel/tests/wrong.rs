//! Programs that send what they must not.

use encap::wire::channel::{MAX_MESSAGE_LEN, Mode};

use super::world::{World, attach, data};
use crate::channel::framing::{Code, Flags, HEADER_LEN, Header, Kind, MAX_RECORD_LEN};

/// Sends records of an attached program, of which the last is wrong; says what it is told.
fn answer(mode: Mode, records: &[(&[u8], &[u8])]) -> Code {
    let mut world = World::new(mode);
    let mut program = world.attach(0, Flags::NONE);
    let mut receiver = world.attach(1, Flags::RECEIVE);
    for (header, payload) in records {
        program.send_bytes(header, payload).unwrap();
    }
    let (code, text) = world.error(&mut program);
    assert!(!text.is_empty());
    let counters = world.nodes[0].counters();
    assert_eq!((counters.protocol_errors, counters.refused_connections), (1, 0), "{text}");
    assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
    assert!(mode == Mode::Stream || receiver.message().is_none());
    code
}

fn changed(at: usize, value: u8) -> [u8; HEADER_LEN] {
    let mut bytes = data(2, 1).encode();
    bytes[at] = value;
    bytes
}

#[test]
fn records_that_are_none_end_the_connection() {
    assert_eq!(answer(Mode::Ordered, &[(&[1; HEADER_LEN - 1], b"")]), Code::Invalid);
    // An unknown type, one that only tapd sends, flags and a priority that are none.
    for (at, value) in [(0, 99), (0, 0x10), (1, 8), (2, 8)] {
        assert_eq!(answer(Mode::Ordered, &[(&changed(at, value), b"x")]), Code::Invalid);
    }
    // Those of streams, and a second ATTACH.
    for kind in [Kind::Connect, Kind::Accept, Kind::Fin, Kind::Reset] {
        let header = Header { peer: 2, ..Header::new(kind) }.encode();
        assert_eq!(answer(Mode::Unordered, &[(&header, b"")]), Code::Invalid);
    }
    assert_eq!(answer(Mode::Ordered, &[(&attach(Flags::NONE).encode(), b"")]), Code::Invalid);
}

#[test]
fn messages_that_are_too_long_end_the_connection() {
    for (mode, longest) in [(Mode::Ordered, MAX_MESSAGE_LEN), (Mode::Unreliable, 64 << 10)] {
        let header = Header { flags: Flags::MORE, ..data(2, longest as usize + 1) };
        assert_eq!(answer(mode, &[(&header.encode(), b"x")]), Code::TooLong);
    }
    let long = vec![0; MAX_RECORD_LEN];
    let header = data(2, long.len()).encode();
    assert_eq!(answer(Mode::Ordered, &[(&header, &long)]), Code::TooLong);
}

#[test]
fn pieces_that_do_not_add_up_end_the_connection() {
    let more = |length| Header { flags: Flags::MORE, ..data(2, length) }.encode();
    let last = |length| data(2, length).encode();
    let cases: [&[(&[u8], &[u8])]; 5] = [
        &[(&last(3), b"ab")],
        &[(&more(3), b"abc")],
        &[(&more(3), b"")],
        &[(&more(4), b"ab"), (&last(4), b"c")],
        &[(&more(4), b"ab"), (&last(5), b"cde")],
    ];
    for case in cases {
        assert_eq!(answer(Mode::Ordered, case), Code::Invalid, "{case:?}");
    }
}

#[test]
fn peers_that_are_none_end_the_connection() {
    assert_eq!(answer(Mode::Ordered, &[(&data(77, 1).encode(), b"x")]), Code::NoPeer);
    let set = Header { count: 1, ..data(0, 1) }.encode();
    assert_eq!(answer(Mode::Ordered, &[(&set, &[0, 0, 9])]), Code::NoPeer);
    assert_eq!(answer(Mode::Ordered, &[(&set, &[1])]), Code::Invalid);
    let connect = Header { peer: 77, ..Header::new(Kind::Connect) }.encode();
    assert_eq!(answer(Mode::Stream, &[(&connect, b"")]), Code::NoPeer);
}

#[test]
fn the_first_record_attaches() {
    for mode in [Mode::Ordered, Mode::Stream] {
        for (header, expected) in [
            (data(2, 0), Code::NotAttached),
            (Header { number: 2, ..attach(Flags::NONE) }, Code::Version),
            (attach(Flags::RAW), Code::Invalid),
            (Header { peer: 2, ..Header::new(Kind::Connect) }, Code::NotAttached),
        ] {
            let mut world = World::new(mode);
            let mut program = world.nodes[0].connect();
            program.send(header, &[]).unwrap();
            let (code, text) = world.error(&mut program);
            assert_eq!(code, expected, "{header:?}");
            let takes_none = mode == Mode::Stream && header.flags == Flags::RAW;
            assert_eq!(text == "streams take no RAW", takes_none, "{text}");
            assert_eq!(world.nodes[0].counters().protocol_errors, 1);
        }
    }
}

#[test]
fn the_reason_is_seen_behind_records_that_were_not_read() {
    let mut world = World::new(Mode::Ordered);
    let mut program = world.attach(0, Flags::NONE);
    program.send(data(77, 1), b"x").unwrap();
    while program.send(data(2, 1000), &[0; 1000]).is_ok() {}
    assert_eq!(world.error(&mut program).0, Code::NoPeer);
}

#[test]
fn what_came_before_the_fault_is_sent() {
    let mut world = World::new(Mode::Ordered);
    let mut program = world.attach(0, Flags::NONE);
    let mut count = 0;
    loop {
        world.settle();
        if program.send(data(2, 10_000), &[0; 10_000]).is_err() {
            break;
        }
        count += 1;
    }
    let mut receiver = world.attach(1, Flags::RECEIVE);
    world.until(|_| program.send(data(77, 1), b"x").ok());
    let mut received = 0;
    world.until(|_| {
        received += usize::from(receiver.message().is_some());
        (received == count).then_some(())
    });
    assert_eq!(world.error(&mut program).0, Code::NoPeer);
    assert!(receiver.message().is_none());
}

#[test]
fn records_of_streams_have_their_time() {
    let connect = Header { peer: 2, ..Header::new(Kind::Connect) }.encode();
    let record = |kind| Header::new(kind).encode();
    let fin = record(Kind::Fin);
    for (records, expected) in [
        (vec![data(0, 0).encode()], Code::NotAttached),
        (vec![fin], Code::NotAttached),
        (vec![record(Kind::Reset)], Code::NotAttached),
        (vec![record(Kind::Accept), data(0, 0).encode()], Code::NotAttached),
        (vec![connect, connect], Code::Invalid),
        (vec![connect, record(Kind::Accept)], Code::Invalid),
        (vec![connect, fin, fin], Code::Invalid),
        (vec![connect, fin, data(0, 0).encode()], Code::Invalid),
        (vec![connect, Header { count: 1, ..data(0, 0) }.encode()], Code::Invalid),
        (vec![connect, data(0, (1 << 20) + 1).encode()], Code::TooLong),
        (vec![connect, record(Kind::PeerUp)], Code::Invalid),
        (vec![record(Kind::Connect)], Code::NoPeer),
        (vec![Header { length: 1, ..Header::new(Kind::Accept) }.encode()], Code::Invalid),
    ] {
        let slices = records.iter().map(|record| (&record[..], &b""[..])).collect::<Vec<_>>();
        assert_eq!(answer(Mode::Stream, &slices), expected, "{records:?}");
    }
}
