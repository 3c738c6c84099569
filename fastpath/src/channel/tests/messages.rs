//! Messages from program to program, and programs that come, go and do not read.

use std::net::Shutdown;
use std::time::Duration;

use encap::channel::hub::SendOptions;
use encap::wire::channel::{MAX_MESSAGE_LEN, Mode};

use super::world::{KEY, Node, Program, World, attach, config, data, node, pattern};
use crate::channel::framing::{Code, Flags, Header, Kind, MAX_PIECE_LEN, VERSION, mode_number};
use crate::channel::sockets::MAX_CONNECTIONS;

/// Numbered messages of so many bytes.
fn numbered(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..8].copy_from_slice(&number.to_ne_bytes());
    bytes
}

fn number(message: &[u8]) -> usize {
    usize::from_ne_bytes(message[..8].try_into().unwrap())
}

/// Sends numbered messages until the socket takes no more with the world turning; says how many.
fn fill(world: &mut World, program: &Program, len: usize) -> usize {
    fill_to(2, world, program, len)
}

/// The same to any node, or to all.
fn fill_to(peer: u16, world: &mut World, program: &Program, len: usize) -> usize {
    let mut count = 0;
    loop {
        if program.send(data(peer, len), &numbered(count, len)).is_ok() {
            count += 1;
            assert!(count < 100_000, "there is no end to the room");
            continue;
        }
        world.settle();
        if program.send(data(peer, len), &numbered(count, len)).is_err() {
            return count;
        }
        count += 1;
    }
}

#[test]
fn programs_are_welcome_and_told_of_peers() {
    for mode in [Mode::Ordered, Mode::Unordered, Mode::Unreliable, Mode::Stream] {
        let mut world = World::new(mode);
        let mut program = world.nodes[0].connect();
        program.send(attach(Flags::NONE), &[]).unwrap();
        world.settle();
        let (welcome, name) = program.record().unwrap();
        let longest = match mode {
            Mode::Unreliable => 64 << 10,
            Mode::Stream => 4,
            _ => MAX_MESSAGE_LEN,
        };
        let expected = Header {
            peer: 1,
            number: VERSION,
            length: longest,
            priority: mode_number(mode),
            ..Header::new(Kind::Welcome)
        };
        assert_eq!((welcome, &name[..]), (expected, &b"blue"[..]));
        let (up, name) = program.record().unwrap();
        assert_eq!((up.kind, up.peer, &name[..]), (Kind::PeerUp, 2, &b"two"[..]));
        assert!(program.record().is_none());
        let report = &world.nodes[0].sockets.report()[0];
        assert_eq!((report.key, &report.name[..], report.mode), (KEY, "blue", mode));
        assert_eq!((report.programs, report.receiving), (1, false));
        drop(program);
        world.settle();
        assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
    }
}

#[test]
fn messages_go_both_ways() {
    for mode in [Mode::Ordered, Mode::Unordered, Mode::Unreliable] {
        let mut world = World::new(mode);
        let mut programs = [world.attach(0, Flags::RECEIVE), world.attach(1, Flags::RECEIVE)];
        for (from, to) in [(0, 1), (1, 0)] {
            // To one, to all, and to a set that has the peer twice.
            let id = to as u16 + 1;
            let ids = [id.to_ne_bytes(), id.to_ne_bytes()].concat();
            for (header, sent) in [
                (Header { priority: 3, ..data(id, 5) }, &b"hello"[..]),
                (data(0, 0), b""),
                (Header { count: 2, ..data(9, 3) }, b"set"),
            ] {
                let ids = if header.count == 0 { &[][..] } else { &ids };
                programs[from].send(header, &[ids, sent].concat()).unwrap();
                world.settle();
                let (came, bytes) = programs[to].message().unwrap();
                assert_eq!((came.peer, came.priority), (from as u16 + 1, header.priority));
                assert_eq!(bytes, sent);
            }
            assert!(programs[to].record().is_none());
        }
        let counters = world.nodes[0].counters();
        // ATTACH and three messages; WELCOME, PEER_UP and three messages.
        assert_eq!((counters.records_in, counters.records_out), (4, 5));
    }
}

#[test]
fn long_messages_come_in_pieces() {
    for len in [MAX_PIECE_LEN, MAX_PIECE_LEN + 1, 64 << 10, MAX_MESSAGE_LEN as usize] {
        let mode = if len <= 64 << 10 { Mode::Unreliable } else { Mode::Ordered };
        let mut world = World::new(mode);
        let sender = world.attach(0, Flags::NONE);
        let mut receiver = world.attach(1, Flags::RECEIVE);
        let message = pattern(len);
        sender.send_message(&mut world, data(2, 0), &message);
        let (_, bytes) = world.until(|_| receiver.message());
        assert!(bytes == message, "{len}");
    }
}

#[test]
fn one_program_receives() {
    let mut world = World::new(Mode::Ordered);
    let first = world.attach(1, Flags::RECEIVE);
    let mut second = world.nodes[1].connect();
    second.send(attach(Flags::RECEIVE), &[]).unwrap();
    assert_eq!(world.error(&mut second).0, Code::Busy);
    assert_eq!(world.nodes[1].counters().refused_connections, 1);
    drop(first);
    world.settle();
    let mut third = world.attach(1, Flags::RECEIVE);
    world.attach(0, Flags::NONE).send(data(2, 1), b"x").unwrap();
    world.settle();
    assert_eq!(third.message().unwrap().1, b"x");
}

#[test]
fn who_does_not_read_stops_who_sends() {
    let mut world = World::new(Mode::Ordered);
    let sender = world.attach(0, Flags::NONE);
    let len = 1000;
    let mut count = fill(&mut world, &sender, len);
    assert!(world.nodes[0].counters().held_back > 0);
    // Nothing is done over and over while nothing can be done.
    assert!(!world.nodes[0].is_busy() && !world.nodes[1].is_busy());
    // Still nothing is read, but what there is is in the program's socket as well.
    let mut receiver = world.attach(1, Flags::RECEIVE);
    count += {
        let mut more = 0;
        while sender.send(data(2, len), &numbered(count + more, len)).is_ok() {
            more += 1;
            world.settle();
        }
        more
    };
    assert!(count < 10_000, "{count} messages found room");
    for expected in 0..count {
        let (_, bytes) = world.until(|_| receiver.message());
        assert_eq!((number(&bytes), bytes.len()), (expected, len));
    }
    sender.send(data(2, len), &numbered(count, len)).unwrap();
    world.settle();
    assert_eq!(number(&receiver.message().unwrap().1), count);
}

#[test]
fn programs_that_wait_for_room_get_it_in_turn() {
    let mut world = World::new(Mode::Ordered);
    let senders = [0; 3].map(|_| world.attach(0, Flags::NONE));
    let mut count = 0;
    for sender in &senders {
        count += fill(&mut world, sender, 1000);
    }
    let mut receiver = world.attach(1, Flags::RECEIVE);
    for _ in 0..count {
        world.until(|_| receiver.message());
    }
    // Now each has a flood of them, and each finds room.
    let mut sent = [0_usize; 3];
    for _ in 0..20_000 {
        for (number, sender) in senders.iter().enumerate() {
            if sender.send(data(2, 1000), &numbered(number, 1000)).is_ok() {
                sent[number] += 1;
            }
        }
        world.turn();
        while receiver.message().is_some() {}
    }
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(least * 4 > *most, "{sent:?}");
}

#[test]
fn what_was_sent_before_the_end_arrives() {
    let mut world = World::new(Mode::Ordered);
    let sender = world.attach(0, Flags::NONE);
    let count = fill(&mut world, &sender, 3000);
    drop(sender);
    world.settle();
    assert_eq!(world.nodes[0].sockets.report()[0].programs, 1, "its messages still wait");
    assert!(!world.nodes[0].is_busy());
    let mut receiver = world.attach(1, Flags::RECEIVE);
    for expected in 0..count {
        assert_eq!(number(&world.until(|_| receiver.message()).1), expected);
    }
    world.settle();
    assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
    assert_eq!(world.nodes[0].counters().abandoned, 0);
}

#[test]
fn the_end_of_sending_is_answered_when_all_has_arrived() {
    let mut world = World::new(Mode::Ordered);
    let mut sender = world.attach(0, Flags::NONE);
    fill(&mut world, &sender, 3000);
    sender.socket.shutdown(Shutdown::Write).unwrap();
    world.settle();
    assert!(sender.record().is_none() && !sender.is_at_end());
    let mut receiver = world.attach(1, Flags::RECEIVE);
    let lost = world.until(|_| {
        while receiver.message().is_some() {}
        sender.closed()
    });
    assert_eq!(lost, 0);
    assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
    // One that has sent nothing waits for nothing.
    let mut idle = world.attach(0, Flags::NONE);
    idle.socket.shutdown(Shutdown::Write).unwrap();
    world.settle();
    assert_eq!(idle.closed(), Some(0));
}

/// tapd has it, and still the peer has not: nothing is said before.
#[test]
fn the_end_of_sending_waits_for_the_peer_and_not_for_the_node() {
    let mut world = World::new(Mode::Unordered);
    let mut sender = world.attach(0, Flags::NONE);
    world.set_up(0, false);
    sender.send(data(2, 1), b"x").unwrap();
    sender.socket.shutdown(Shutdown::Write).unwrap();
    world.settle();
    assert_eq!(sender.record().unwrap().0.kind, Kind::PeerDown);
    assert!(sender.record().is_none() && !sender.is_at_end());
    assert!(!world.nodes[0].is_busy());
    world.set_up(0, true);
    world.settle();
    assert_eq!(sender.record().unwrap().0.kind, Kind::PeerUp);
    assert_eq!(sender.closed(), Some(0));
}

#[test]
fn who_ends_hears_what_was_given_up() {
    let mut world = World::new(Mode::Ordered);
    let mut sender = world.attach(0, Flags::NONE);
    let mut other = world.attach(0, Flags::NONE);
    // Both nodes have to have met before one can be restarted.
    sender.send(data(2, 1), b"x").unwrap();
    world.settle();
    world.set_up(0, false);
    sender.send(data(2, 1), b"y").unwrap();
    sender.send(Header { number: 1, ..data(2, 1) }, b"z").unwrap();
    for program in [&sender, &other] {
        program.socket.shutdown(Shutdown::Write).unwrap();
    }
    world.settle();
    world.restart_second();
    world.settle();
    let mut expected = [Kind::PeerDown, Kind::Expired, Kind::Epoch].into_iter();
    let lost = loop {
        let (header, _) = sender.record().unwrap();
        match header.kind {
            Kind::Closed => break header.number,
            Kind::PeerUp => {}
            kind => assert_eq!(Some(kind), expected.next()),
        }
    };
    assert_eq!((lost, expected.next()), (2, None));
    // That one has sent nothing.
    while let Some((header, _)) = other.record() {
        assert!(header.kind != Kind::Closed || header.number == 0);
    }
}

/// Messages to all wait for room, and meanwhile all that they were for are removed.
#[test]
fn messages_whose_last_node_was_removed_are_counted_and_told() {
    let mut world = World::new(Mode::Ordered);
    let mut sender = world.attach(0, Flags::NONE);
    let sent = fill_to(0, &mut world, &sender, 3000);
    let taken = world.nodes[0].hub.report().channels[0].peers[0].messages_out;
    sender.socket.shutdown(Shutdown::Write).unwrap();
    world.settle();
    assert_eq!(world.nodes[0].counters().dropped_nobody_reachable, 0);
    world.nodes[0].hub.set_peers(world.now, Vec::new());
    world.settle();
    let dropped = world.nodes[0].counters().dropped_nobody_reachable;
    assert!(dropped > 0 && dropped + taken == sent as u64, "{dropped} + {taken}, {sent}");
    let (lost, given_up) = closed_and_given_up(&mut sender);
    assert_eq!(u64::from(lost), dropped + u64::from(given_up));
}

/// The last message of a program, to all, waits for room. That there is room, as others were given
/// up, is heard before how many those were.
#[test]
fn room_that_comes_of_what_was_given_up_is_not_the_end_of_it() {
    let mut world = World::new(Mode::Ordered);
    let other = world.attach(0, Flags::NONE);
    fill(&mut world, &other, 3000);
    let mut sender = world.attach(0, Flags::NONE);
    sender.send(data(2, 1), b"x").unwrap();
    sender.send(data(0, 10_000), &[0; 10_000]).unwrap();
    sender.socket.shutdown(Shutdown::Write).unwrap();
    world.settle();
    assert_eq!(world.nodes[0].counters().held_back, 2);
    world.nodes[0].hub.set_peers(world.now, Vec::new());
    world.settle();
    let (lost, given_up) = closed_and_given_up(&mut sender);
    assert!(given_up > 0);
    assert_eq!(lost, given_up + 1);
}

/// Reads all that a program is told; says what CLOSED told, and what was given up before it.
fn closed_and_given_up(sender: &mut Program) -> (u32, u32) {
    let mut given_up = 0;
    loop {
        match sender.record().expect("CLOSED").0 {
            Header { kind: Kind::Closed, number, .. } => return (number, given_up),
            Header { kind: Kind::Epoch | Kind::Expired, number, .. } => given_up += number,
            _ => {}
        }
    }
}

/// The hub gave messages up and the program says its end before anybody heard of that.
#[test]
fn what_was_given_up_just_before_the_end_is_counted() {
    for restarted in [false, true] {
        let mut world = World::new(Mode::Ordered);
        let mut sender = world.attach(0, Flags::NONE);
        // Both nodes have to have met before one can be restarted.
        sender.send(data(2, 1), b"x").unwrap();
        world.settle();
        world.set_up(0, false);
        sender.send(Header { number: 1, ..data(2, 1) }, b"y").unwrap();
        world.turn();
        if restarted {
            world.restart_second();
        } else {
            world.now += Duration::from_millis(2);
            world.turn();
        }
        assert!(world.nodes[0].hub.has_events());
        sender.socket.shutdown(Shutdown::Write).unwrap();
        world.settle();
        assert_eq!(closed_and_given_up(&mut sender), (1, 1), "{restarted}");
        assert!(sender.is_at_end() && !world.nodes[0].is_busy());
        assert_eq!(world.nodes[0].sockets.report()[0].programs, 0);
    }
}

#[test]
fn the_next_receiver_gets_what_the_last_one_was_not_sent() {
    let mut world = World::new(Mode::Ordered);
    let sender = world.attach(0, Flags::NONE);
    let first = world.attach(1, Flags::RECEIVE);
    let count = fill(&mut world, &sender, 5000);
    let mut first = first;
    let taken = {
        // What is in its socket is all that it will ever get.
        let mut taken = 0;
        for _ in 0..10 {
            assert_eq!(number(&first.message().unwrap().1), taken);
            taken += 1;
        }
        taken
    };
    drop(first);
    let mut second = world.attach(1, Flags::RECEIVE);
    let begin = number(&world.until(|_| second.message()).1);
    assert!((taken..count).contains(&begin), "{begin}");
    for expected in begin + 1..count {
        assert_eq!(number(&world.until(|_| second.message()).1), expected);
    }
}

#[test]
fn a_message_that_a_receiver_got_in_part_begins_anew_for_the_next() {
    let mut world = World::new(Mode::Ordered);
    let sender = world.attach(0, Flags::NONE);
    let first = world.attach(1, Flags::RECEIVE);
    let message = pattern(8 << 20);
    sender.send_message(&mut world, data(2, 0), &message);
    world.settle();
    assert!(world.nodes[1].counters().records_out > 2, "no piece was written");
    drop(first);
    let mut second = world.attach(1, Flags::RECEIVE);
    assert!(world.until(|_| second.message()).1 == message);
}

#[test]
fn datagrams_nobody_takes_are_dropped() {
    let mut world = World::new(Mode::Unreliable);
    let sender = world.attach(0, Flags::NONE);
    let send = |world: &mut World, count: usize| {
        for number in 0..count {
            world.until(|_| sender.send(data(2, 500), &numbered(number, 500)).ok());
        }
        world.settle();
    };
    send(&mut world, 100);
    assert_eq!(world.nodes[1].counters().dropped_no_receiver, 100);
    let mut receiver = world.attach(1, Flags::RECEIVE);
    assert!(receiver.message().is_none());
    send(&mut world, 20_000);
    let mut received = 0;
    while receiver.message().is_some() {
        received += 1;
        world.turn();
    }
    let dropped = world.nodes[1].counters().dropped_slow_receiver;
    assert!(received > 100 && dropped > 100, "{received} {dropped}");
    assert_eq!(received + dropped, 20_000);
    // It reads again, so it gets them again.
    send(&mut world, 1);
    assert!(receiver.message().is_some());
}

#[test]
fn a_message_that_is_cut_short_is_counted() {
    let mut world = World::new(Mode::Ordered);
    let sender = world.attach(0, Flags::NONE);
    let mut receiver = world.attach(1, Flags::RECEIVE);
    sender.send(Header { flags: Flags::MORE, ..data(2, 100) }, b"begin").unwrap();
    drop(sender);
    world.settle();
    assert_eq!(world.nodes[0].counters().cut_short, 1);
    assert!(receiver.message().is_none());
}

#[test]
fn events_wait_for_programs_that_do_not_read() {
    const COUNT: u32 = 8000;
    let mut world = World::new(Mode::Ordered);
    let mut sender = world.attach(0, Flags::NONE);
    world.set_up(0, false);
    for _ in 0..COUNT {
        world.until(|_| sender.send(Header { number: 1, ..data(2, 1) }, b"x").ok());
        world.now += Duration::from_millis(2);
        world.turn();
    }
    world.now += Duration::from_millis(2);
    world.turn();
    world.set_up(0, true);
    world.settle();
    let (mut records, mut expired, mut last) = (0, 0, None);
    world.until(|_| {
        while let Some((header, _)) = sender.record() {
            records += 1;
            match header.kind {
                Kind::Expired => expired += header.number,
                kind => last = Some(kind),
            }
        }
        (expired == COUNT && last == Some(Kind::PeerUp)).then_some(())
    });
    assert!(records < COUNT, "{records}");
}

#[test]
fn programs_hear_of_restarts_and_refusals() {
    let mut world = World::new(Mode::Ordered);
    let mut program = world.attach(0, Flags::NONE);
    world.set_up(0, false);
    world.turn();
    assert_eq!(program.record().unwrap().0, Header::event(Kind::PeerDown, node(2), 0, 0));
    program.send(data(2, 1), b"x").unwrap();
    world.set_up(0, true);
    world.settle();
    assert_eq!(program.record().unwrap().0.kind, Kind::PeerUp);
    program.send(data(2, 1), b"x").unwrap();
    // It is with the hub and has not left.
    world.set_up(0, false);
    world.turn();
    world.restart_second();
    world.turn();
    world.turn();
    let mut told = std::iter::from_fn(|| program.record()).map(|(header, _)| header);
    let epoch = told.find(|header| header.kind == Kind::Epoch).unwrap();
    assert_eq!(epoch, Header::event(Kind::Epoch, node(2), 1, 0));
    let mut world = World::new(Mode::Ordered);
    let now = world.now;
    world.nodes[1].hub.configure(now, Vec::new());
    let mut other = world.attach(0, Flags::NONE);
    other.send(data(2, 1), b"x").unwrap();
    world.settle();
    let refused = std::iter::from_fn(|| other.record())
        .map(|(header, _)| header)
        .find(|header| header.kind == Kind::Refused)
        .unwrap();
    let code = Code::NoChannel.number();
    assert_eq!(refused, Header { code, ..Header::event(Kind::Refused, node(2), 0, 0) });
    // Who comes later hears it too.
    let mut late = world.attach(0, Flags::NONE);
    assert_eq!(late.record().unwrap().0, refused);
}

#[test]
fn connections_have_a_bound() {
    let mut world = World::new(Mode::Ordered);
    let programs = (0..MAX_CONNECTIONS).map(|_| world.nodes[0].connect()).collect::<Vec<_>>();
    world.settle();
    let mut one_more = world.nodes[0].connect();
    assert_eq!(world.error(&mut one_more).0, Code::TooMany);
    assert_eq!(world.nodes[0].counters().refused_connections, 1);
    drop(programs);
    world.settle();
    world.attach(0, Flags::NONE);
}

#[test]
fn a_message_to_nobody_is_counted() {
    let mut world = World::new(Mode::Ordered);
    world.set_up(0, false);
    let sender = world.nodes[0].connect();
    sender.send(attach(Flags::NONE), &[]).unwrap();
    sender.send(data(0, 1), b"x").unwrap();
    world.settle();
    assert_eq!(world.nodes[0].counters().dropped_nobody_reachable, 1);
    let mut sender = sender;
    sender.socket.shutdown(Shutdown::Write).unwrap();
    world.settle();
    assert_eq!(sender.record().unwrap().0.kind, Kind::Welcome);
    assert_eq!(sender.closed(), Some(1));
}

#[test]
fn a_channel_that_is_removed_says_so() {
    for mode in [Mode::Ordered, Mode::Stream] {
        let mut world = World::new(mode);
        let mut program = world.attach(0, Flags::NONE);
        let mut silent = world.nodes[0].connect();
        world.settle();
        world.nodes[0].sockets.remove(KEY);
        assert_eq!(world.error(&mut program).0, Code::Closed);
        assert_eq!(world.error(&mut silent).0, Code::Closed);
        assert!(world.nodes[0].sockets.report().is_empty());
    }
}

#[test]
fn a_channel_that_does_not_fit_is_in_the_log_once() {
    let mut world = World::new(Mode::Ordered);
    let mut configs = vec![(KEY, config(Mode::Unordered))];
    world.nodes[1].hub.configure(world.now, configs.clone());
    let sender = world.attach(0, Flags::NONE);
    let logged = |world: &World| [0, 1].map(|on: usize| world.nodes[on].sockets.misfits(KEY));
    for _ in 0..3 {
        sender.send(data(2, 1), b"x").unwrap();
        world.now += Duration::from_secs(2);
        world.settle();
    }
    let refused = "channel blue: two has no such channel of mode message, or not for this node";
    let asked = "channel blue: one asked for it in another mode";
    let [here, there] = logged(&world);
    assert!(here.len() == 1 && here[0].starts_with(refused), "{here:?}");
    assert!(there.len() == 1 && there[0].starts_with(asked), "{there:?}");
    let Node { hub, sockets, .. } = &mut world.nodes[0];
    sockets.warn_anew(world.now, hub);
    assert_eq!(logged(&world)[0], here);
    configs[0].1.mode = Mode::Ordered;
    world.nodes[1].hub.configure(world.now, configs);
    world.now += Duration::from_secs(2);
    world.settle();
    assert_eq!(logged(&world)[0], [""; 0]);
}

/// A peer asks for the channel in the wrong mode, in the right one, in the wrong one, ...
#[test]
fn a_peer_that_changes_its_mind_does_not_fill_the_log() {
    const CHANGES: u64 = 5;
    let mut world = World::new(Mode::Ordered);
    // What came is read, or the peer would be told to come back later.
    let _receiver = world.attach(1, Flags::RECEIVE);
    let ask_wrongly = |world: &mut World| {
        for mode in [Mode::Ordered, Mode::Unordered] {
            let hub = &mut world.nodes[0].hub;
            hub.configure(world.now, vec![(KEY, config(mode))]);
            hub.send(world.now, KEY, node(2), SendOptions::default(), vec![1]).unwrap();
            world.settle();
        }
    };
    let begun = world.now;
    for _ in 0..CHANGES {
        ask_wrongly(&mut world);
    }
    assert!(world.now.duration_since(begun) < Duration::from_secs(50));
    // The first one is in the log.
    assert_eq!(world.nodes[1].counters().warnings_held_back, CHANGES - 1);
    assert_eq!(world.nodes[1].sockets.misfits(KEY).len(), 1);
    // So is the next one, a minute later.
    world.now += Duration::from_secs(60);
    for _ in 0..CHANGES {
        ask_wrongly(&mut world);
    }
    assert_eq!(world.nodes[1].counters().warnings_held_back, 2 * (CHANGES - 1));
}
