//! What a peer cannot send that obeys, and what memory that costs.

use super::*;

fn credit(window: u64, memory: &mut Memory) -> Credit {
    Credit::new(Instant::now(), window, TOP_WINDOW, memory)
}

fn messages(ordered: bool, window: u64) -> (IncomingMessages, Memory) {
    let mut memory = Memory::new(LIMIT);
    let credit = credit(window, &mut memory);
    (IncomingMessages::new(CHANNEL, ordered, credit), memory)
}

fn piece(id: u64, offset: u32, total: u32, bytes: &[u8]) -> Message<'_> {
    Message { channel: CHANNEL, id, priority: 0, offset, total, bytes }
}

fn stream(offset: u64, fin: bool, bytes: &[u8]) -> Stream<'_> {
    Stream { channel: CHANNEL, offset, fin, bytes }
}

#[test]
fn messages_that_cannot_be_have_a_name() {
    let (mut to, mut memory) = messages(false, 1000);
    assert_eq!(to.on_message(&piece(0, 0, 1001, b"a")), Err(Fault::BeyondCredit));
    assert_eq!(to.on_message(&piece(0, 0, 600, b"a")), Ok(()));
    assert_eq!(to.on_message(&piece(1, 0, 401, b"a")), Err(Fault::BeyondCredit));
    assert_eq!(to.on_expired(1, 401, &mut memory), Err(Fault::BeyondCredit));
    assert_eq!(to.on_message(&piece(0, 1, 599, b"a")), Err(Fault::ConflictingLength));
    assert_eq!(to.on_message(&piece(1, 2, 2, b"a")), Err(Fault::ConflictingLength));
    let long = piece(1, 0, MAX_MESSAGE_LEN + 1, b"a");
    assert_eq!(to.on_message(&long), Err(Fault::ConflictingLength));
    assert_eq!(to.on_expired(0, 599, &mut memory), Err(Fault::ConflictingLength));
    let far = piece(MESSAGE_WINDOW, 0, 1, b"a");
    assert_eq!(to.on_message(&far), Err(Fault::TooFarAhead));
    assert_eq!(to.on_expired(u64::MAX, 0, &mut memory), Err(Fault::TooFarAhead));
    assert_eq!(to.on_message(&piece(MESSAGE_WINDOW - 1, 0, 1, b"a")), Ok(()));
    assert_eq!(to.on_close(MESSAGE_WINDOW - 1), Err(Fault::FinalSize));
    assert_eq!(to.on_close(MESSAGE_WINDOW), Ok(()));
    assert_eq!(to.on_close(MESSAGE_WINDOW + 1), Err(Fault::FinalSize));
    assert_eq!(to.memory(), 601);

    let (mut to, mut memory) = messages(true, 1000);
    assert_eq!(to.on_close(1), Ok(()));
    assert_eq!(to.on_message(&piece(1, 0, 1, b"a")), Err(Fault::FinalSize));
    assert_eq!(to.on_expired(0, 900, &mut memory), Ok(()));
    assert!(to.is_finished());
    assert_eq!(memory.booked(), 1000, "what is set aside stays so");
    assert_eq!(to.on_message(&piece(0, 0, 900, b"a")), Ok(()), "late, and not wanted");
    assert_eq!(to.memory(), 0);
}

#[test]
fn the_first_copy_of_a_byte_holds() {
    let (mut to, mut memory) = messages(true, 1000);
    for (offset, bytes) in [(2, &b"cd"[..]), (3, b"xyz"), (0, b"abXX"), (4, b"ef")] {
        assert_eq!(to.on_message(&piece(0, offset, 6, bytes)), Ok(()));
    }
    assert_eq!(to.next_message(&mut memory).unwrap().bytes, b"abcdyz");

    let mut memory = Memory::new(LIMIT);
    let mut to = IncomingStream::new(CHANNEL, credit(1000, &mut memory));
    for (offset, bytes) in [(2, &b"cd"[..]), (3, b"xyz"), (0, b"abXX"), (4, b"ef")] {
        assert_eq!(to.on_stream(&stream(offset, false, bytes)), Ok(()));
    }
    assert_eq!(to.readable(), b"abcdyz");
}

#[test]
fn streams_that_cannot_be_have_a_name() {
    let mut memory = Memory::new(LIMIT);
    let mut to = IncomingStream::new(CHANNEL, credit(1000, &mut memory));
    assert_eq!(to.on_stream(&stream(999, false, b"ab")), Err(Fault::BeyondCredit));
    assert_eq!(to.on_stream(&stream(u64::MAX, false, b"ab")), Err(Fault::BeyondCredit));
    assert_eq!(to.on_stream(&stream(99, false, b"a")), Ok(()));
    assert_eq!(to.on_stream(&stream(98, true, b"a")), Err(Fault::FinalSize));
    assert_eq!(to.on_stream(&stream(99, true, b"a")), Ok(()));
    assert_eq!(to.on_stream(&stream(100, false, b"a")), Err(Fault::FinalSize));
    assert_eq!(to.on_stream(&stream(0, true, b"a")), Err(Fault::FinalSize));
    assert!(!to.is_finished() && to.readable().is_empty());
}

#[test]
fn gaps_are_bounded_and_filled() {
    let total = 1 << 16;
    let (mut to, mut memory) = messages(false, START_WINDOW);
    let mut refused = 0;
    for offset in (1..total).step_by(2) {
        match to.on_message(&piece(0, offset, total, b"a")) {
            Ok(()) => assert_eq!(refused, 0),
            Err(fault) => {
                assert_eq!(fault, Fault::Gaps);
                assert!(!fault.is_hostile());
                refused += 1;
            }
        }
    }
    assert_eq!(total / 2 - refused, 16 + total / 256);
    // What fills gaps is taken.
    let all = vec![b'a'; total as usize];
    assert_eq!(to.on_message(&piece(0, 0, total, &all[1..])), Ok(()));
    assert_eq!(to.on_message(&piece(0, total - 1, total, b"a")), Ok(()));
    assert!(to.next_message(&mut memory).unwrap().bytes == all);

    let mut memory = Memory::new(LIMIT);
    let mut to = IncomingStream::new(CHANNEL, credit(1 << 16, &mut memory));
    let taken =
        (1..1 << 16).step_by(2).take_while(|at| to.on_stream(&stream(*at, false, b"a")).is_ok());
    assert_eq!(taken.count(), 16 + 256);
    assert_eq!(to.on_stream(&stream(0, false, &all[..1000])), Ok(()));
    assert_eq!(to.readable(), &all[..1000]);
}

#[test]
fn credit_is_said_by_halves_again_when_lost_and_grows() {
    let start = Instant::now();
    let mut memory = Memory::new(LIMIT);
    let mut credit = Credit::new(start, 1000, 4000, &mut memory);
    let at = |credit: &mut Credit, ms: u64, memory: &mut Memory| {
        credit.poll(start + Duration::from_millis(ms), RTT, 1, memory)
    };
    assert_eq!(at(&mut credit, 80, &mut memory), None);
    credit.release(499, &mut memory);
    assert_eq!(at(&mut credit, 100, &mut memory), None);
    credit.release(1, &mut memory);
    assert_eq!(at(&mut credit, 100, &mut memory), Some(1500));
    assert_eq!(at(&mut credit, 100, &mut memory), None);
    credit.on_lost(1000);
    assert_eq!(at(&mut credit, 100, &mut memory), None, "an old one");
    credit.on_lost(1500);
    assert_eq!(at(&mut credit, 100, &mut memory), Some(1500));
    assert_eq!(memory.booked(), 1000);
    // Another half within two round trips.
    credit.release(500, &mut memory);
    assert_eq!(at(&mut credit, 103, &mut memory), Some(3000));
    assert_eq!(credit.window(), 2000);
    for ms in [104, 105, 106] {
        credit.release(credit.outstanding(), &mut memory);
        at(&mut credit, ms, &mut memory).unwrap();
    }
    assert_eq!(credit.window(), 4000, "it grows no further");
    credit.set_window(1 << 30);
    assert_eq!((credit.window(), memory.booked()), (4000, 4000));
    credit.close(&mut memory);
    assert_eq!(memory.booked(), 0);
}

/// When a sender in slow start hears that `used` bytes arrived, it has so many more on their way and
/// the first window, and was sent the credit for them before.
#[test]
fn credit_keeps_ahead_of_slow_start() {
    const PACKET: u64 = 1431;
    let (start, mut memory) = (Instant::now(), Memory::new(1 << 30));
    let mut credit = credit(64 << 10, &mut memory);
    let (mut used, mut packets) = (0, 10);
    for round in 1..10 {
        for _ in 0..packets {
            used += PACKET;
            assert!(credit.granted() >= 2 * used + 10 * PACKET, "{used}: {credit:?}");
            credit.release(PACKET, &mut memory);
            credit.poll(start + RTT * (10 + round), RTT, used, &mut memory);
        }
        packets *= 2;
    }
    // Once it was slower, halves are enough.
    let mut later = |credit: &mut Credit, round: u32, released: u64| {
        credit.release(released, &mut memory);
        credit.poll(start + RTT * round, RTT, used, &mut memory)
    };
    let window = credit.window();
    let all = credit.outstanding();
    assert!(later(&mut credit, 30, all).is_some());
    assert_eq!(later(&mut credit, 40, window / 2 - 1), None);
    assert!(later(&mut credit, 40, 1).is_some());
    assert_eq!(credit.window(), window);
}

#[test]
fn credit_in_messages_is_said_by_halves_and_again_when_lost() {
    let (mut to, mut memory) = messages(false, 1000);
    let now = Instant::now();
    for id in 0..MESSAGE_WINDOW / 2 {
        assert_eq!(to.next_frame(now, RTT, &mut memory), None, "{id}");
        to.on_message(&piece(id, 0, 0, b"")).unwrap();
        assert_eq!(to.next_frame(now, RTT, &mut memory), None, "not taken by the program");
        to.next_message(&mut memory).unwrap();
    }
    let limit = MESSAGE_WINDOW / 2 * 3;
    let said = to.next_frame(now, RTT, &mut memory).unwrap();
    assert_eq!(said.0, Frame::MaxMessages { channel: CHANNEL, limit });
    assert_eq!(to.next_frame(now, RTT, &mut memory), None);
    to.on_lost(&Carried::MaxMessages { limit: MESSAGE_WINDOW });
    assert_eq!(to.next_frame(now, RTT, &mut memory), None, "an old one");
    to.on_lost(&said.1);
    assert_eq!(to.next_frame(now, RTT, &mut memory), Some(said));
    to.on_message(&piece(limit - 1, 0, 0, b"")).unwrap();
    assert_eq!(to.on_message(&piece(limit, 0, 0, b"")), Err(Fault::TooFarAhead));
}

#[test]
fn memory_is_shared_and_a_large_message_always_gets_its_turn() {
    let mut memory = Memory::new(LIMIT);
    // Idle windows take three quarters at most.
    let mut channels: Vec<_> = (0..4000)
        .map(|_| IncomingMessages::new(CHANNEL, true, credit(START_WINDOW, &mut memory)))
        .collect();
    let least = LIMIT / 4 * 3 - GUARANTEED;
    assert!((least..=LIMIT / 4 * 3).contains(&memory.booked()));
    let (mut last, mut other) = (channels.pop().unwrap(), channels.pop().unwrap());
    assert_eq!(last.credit_mut().granted(), 0);
    assert!(memory.limited() > 2000);
    let (now, long) = (Instant::now(), u64::from(MAX_MESSAGE_LEN));
    assert!(other.next_frame(now, RTT, &mut memory).is_none());
    other.on_blocked(1, long);
    last.on_blocked(1, long);
    let (frame, _) = last.next_frame(now, RTT, &mut memory).unwrap();
    assert_eq!(frame, Frame::MaxData { channel: CHANNEL, limit: long });
    assert!(other.next_frame(now, RTT, &mut memory).is_none(), "all or nothing");
    assert!((least + long..=LIMIT).contains(&memory.booked()));
    last.close(&mut memory);
    let (frame, _) = other.next_frame(now, RTT, &mut memory).unwrap();
    assert_eq!(frame, Frame::MaxData { channel: CHANNEL, limit: long });
    // What no window will ever be is not granted.
    let mut memory = Memory::new(1 << 40);
    let mut to = IncomingMessages::new(CHANNEL, true, credit(START_WINDOW, &mut memory));
    to.on_blocked(1, u64::MAX);
    assert!(to.next_frame(now, RTT, &mut memory).is_none());
}

/// A smaller need takes the place of a larger one, but not one that was overtaken on its way.
#[test]
fn the_last_need_counts() {
    let (now, mut memory) = (Instant::now(), Memory::new(8 << 20));
    let mut to = IncomingMessages::new(CHANNEL, true, credit(1000, &mut memory));
    let long = u64::from(MAX_MESSAGE_LEN);
    to.on_blocked(1, long);
    assert_eq!(to.next_frame(now, RTT, &mut memory), None);
    assert!(to.is_starved());
    to.on_blocked(3, 5000);
    to.on_blocked(2, long);
    to.on_blocked(1, 1);
    let (frame, _) = to.next_frame(now, RTT, &mut memory).unwrap();
    assert_eq!(frame, Frame::MaxData { channel: CHANNEL, limit: 5000 });
    assert!(!to.is_starved());
}

/// What was granted for a large message before memory was set aside is covered by that then.
#[test]
fn what_is_set_aside_late_is_not_booked_twice() {
    let (now, mut memory) = (Instant::now(), Memory::new(LIMIT));
    let mut others: Vec<_> = (0..4000).map(|_| credit(START_WINDOW, &mut memory)).collect();
    let mut last = others.pop().unwrap();
    last.on_blocked(1, 1 << 20);
    assert_eq!(last.poll(now, RTT, 0, &mut memory), Some(1 << 20));
    others.iter_mut().for_each(|other| other.close(&mut memory));
    last.poll(now, RTT, 0, &mut memory);
    assert_eq!(memory.booked(), 1 << 20);
    last.close(&mut memory);
    assert_eq!(memory.booked(), 0);
}

#[test]
fn idle_credit_that_was_kept_is_asked_for_again_but_seldom() {
    let mut memory = Memory::new(LIMIT);
    let mut kept = credit(START_WINDOW, &mut memory);
    let asked: Vec<u32> = (0..30).filter(|_| kept.look(0) && kept.take_recall()).collect();
    assert_eq!(asked, [1, 9, 17, 25]);
}

/// Whatever windows and messages hold, so many channels have what is set aside for each, and one
/// that has it goes on for ever.
#[test]
fn so_many_channels_have_their_guarantee_whatever_others_hold() {
    let (start, long) = (Instant::now(), u64::from(MAX_MESSAGE_LEN));
    let mut memory = Memory::new(LIMIT);
    let mut hold = Vec::new();
    // As much as two thirds by windows that grew and are idle now, the rest by messages.
    for _ in 0..8 {
        let mut grown = credit(START_WINDOW, &mut memory);
        for _ in 0..20 {
            grown.release(grown.outstanding(), &mut memory);
            grown.poll(start, RTT, 1, &mut memory);
        }
        hold.push(grown);
    }
    for _ in 0..8 {
        let mut message = credit(START_WINDOW, &mut memory);
        message.on_blocked(1, long);
        message.poll(start, RTT, 0, &mut memory);
        hold.push(message);
    }
    assert!(memory.booked() > LIMIT / 2);
    let count = memory.channels() - hold.len() as u64;
    let more: Vec<_> = (0..count).map(|_| credit(64 << 10, &mut memory)).collect();
    assert!(more.iter().all(|credit| credit.granted() >= GUARANTEED));
    assert!(memory.booked() <= LIMIT);
    let mut last = credit(64 << 10, &mut memory);
    assert_eq!((last.granted(), last.is_starved()), (0, true));
    assert_eq!(last.poll(start, RTT, 0, &mut memory), None);
    // The first that ends has the last one go on.
    hold.pop().unwrap().close(&mut memory);
    assert_eq!(last.poll(start, RTT, 0, &mut memory), Some(GUARANTEED));
    for turn in 2..100 {
        last.release(GUARANTEED, &mut memory);
        let said = last.poll(start + RTT * 10 * turn, RTT, 0, &mut memory);
        assert!(said >= Some(GUARANTEED * u64::from(turn)), "{said:?}");
        assert!(memory.booked() <= LIMIT);
    }
}

#[test]
fn what_is_given_back_is_not_to_be_used() {
    let mut memory = Memory::new(LIMIT);
    let mut to = IncomingStream::new(CHANNEL, credit(100_000, &mut memory));
    assert_eq!(to.on_stream(&stream(0, false, &[1; 1000])), Ok(()));
    assert_eq!(to.on_return(99_001, &mut memory), Err(Fault::BeyondCredit));
    assert_eq!(memory.booked(), 100_000);
    assert_eq!(to.on_return(60_000, &mut memory), Ok(()));
    assert_eq!(to.on_return(50_000, &mut memory), Ok(()), "an old one");
    assert_eq!((memory.booked(), memory.returned()), (40_000, 60_000));
    assert_eq!(to.on_stream(&stream(40_000, false, b"1")), Err(Fault::BeyondCredit));
    assert_eq!(to.on_stream(&stream(39_999, false, b"1")), Ok(()));
    let (mut to, mut memory) = messages(true, 100_000);
    assert_eq!(to.on_message(&piece(0, 0, 1000, b"1")), Ok(()));
    assert_eq!(to.on_return(u64::MAX, &mut memory), Err(Fault::BeyondCredit));
    assert_eq!(to.on_return(60_000, &mut memory), Ok(()));
    assert_eq!(to.on_message(&piece(1, 0, 39_001, b"1")), Err(Fault::BeyondCredit));
    assert_eq!(to.on_message(&piece(1, 0, 39_000, b"1")), Ok(()));
    assert_eq!(memory.booked(), 40_000);
}

/// While there is no memory to grow, credit is said as seldom as otherwise.
#[test]
fn a_window_that_cannot_grow_is_not_granted_in_crumbs() {
    let now = Instant::now();
    let mut memory = Memory::new(LIMIT);
    let hold: Vec<_> = (0..400).map(|_| credit(START_WINDOW, &mut memory)).collect();
    while memory.book_some(1 << 20) > 0 {}
    let mut credit = credit(64 << 10, &mut memory);
    assert_eq!(credit.granted(), GUARANTEED);
    let mut said = 0;
    for _ in 0..1600 {
        credit.release(100, &mut memory);
        said += u32::from(credit.poll(now, RTT, 0, &mut memory).is_some());
    }
    assert!((10..=20).contains(&said), "{said} times for ten windows");
    // As soon as there is, it grows.
    hold.into_iter().for_each(|mut credit| credit.close(&mut memory));
    memory.release(LIMIT);
    for _ in 0..10 {
        credit.release(credit.outstanding(), &mut memory);
        credit.poll(now, RTT, 0, &mut memory);
    }
    assert!(credit.window() >= 4 << 20, "{}", credit.window());
}

#[test]
fn more_urgent_messages_are_delivered_first() {
    let (mut to, mut memory) = messages(false, 1000);
    for (id, priority) in [(0, 7), (1, 3), (2, 3), (3, 0)] {
        to.on_message(&Message { priority, ..piece(id, 0, 1, b"a") }).unwrap();
    }
    let ids: Vec<_> =
        std::iter::from_fn(|| to.next_message(&mut memory)).map(|got| got.id).collect();
    assert_eq!(ids, [3, 1, 2, 0]);
}

fn unreliable(id: u32, offset: u32, total: u32, bytes: &[u8]) -> Unreliable<'_> {
    Unreliable { channel: CHANNEL, id, priority: 0, offset, total, bytes }
}

#[test]
fn unreliable_messages_come_once() {
    let now = Instant::now();
    let mut to = IncomingUnreliable::new();
    let mut random = Random(7);
    let mut delivered = std::collections::BTreeSet::new();
    // Past 2^32, in jumps, with copies and stragglers.
    let mut newest = (1u64 << 32) - 3000;
    to.on_message(now, &unreliable(0x4000_0000, 0, 1, b"a")).unwrap();
    to.on_message(now, &unreliable(0xa000_0000, 0, 1, b"a")).unwrap();
    for _ in 0..20_000 {
        newest += random.below(3) / 2 * random.below(5);
        let id = newest - random.below(6000);
        let got = to.on_message(now, &unreliable(id as u32, 0, 1, b"a"));
        match got {
            Ok(Some(got)) => assert!(got.id == id && delivered.insert(id), "{id} again"),
            Err(UnreliableDrop::Duplicate) => assert!(delivered.contains(&id)),
            Err(UnreliableDrop::TooOld) => assert!(newest - id >= 4096),
            other => panic!("{other:?}"),
        }
    }
    assert!(newest > 1 << 32 && delivered.len() > 5000);
}

#[test]
fn unreliable_pieces_are_bounded_in_number_and_time() {
    let start = Instant::now();
    let mut to = IncomingUnreliable::new();
    let half = |id, offset| unreliable(id, offset, 4, if offset == 0 { b"ab" } else { b"cd" });
    assert_eq!(to.on_message(start, &half(0, 2)), Ok(None));
    assert_eq!(to.on_message(start, &half(0, 2)), Err(UnreliableDrop::Duplicate));
    let other = unreliable(0, 0, 5, b"ab");
    assert_eq!(to.on_message(start, &other), Err(UnreliableDrop::ConflictingLength));
    assert_eq!(to.on_message(start, &half(0, 0)).unwrap().unwrap().bytes, b"abcd");
    assert_eq!(to.on_message(start, &half(0, 0)), Err(UnreliableDrop::Duplicate));

    for id in 1..=MAX_OPEN_UNRELIABLE as u32 + 1 {
        let long = unreliable(id, 0, MAX_UNRELIABLE_LEN, b"ab");
        assert_eq!(to.on_message(start, &long), Ok(None));
        assert!(to.memory() <= UNRELIABLE_MEMORY);
    }
    assert_eq!(to.take_given_up(), 1);
    assert_eq!(to.on_message(start, &half(1, 2)), Err(UnreliableDrop::Duplicate), "given up");
    let later = start + Duration::from_secs(1);
    to.on_message(later, &half(50, 0)).unwrap();
    assert_eq!((to.take_given_up(), to.memory()), (MAX_OPEN_UNRELIABLE as u64, 4));
    // An id far ahead leaves what was open behind.
    to.on_message(later, &half(50_000, 0)).unwrap();
    assert_eq!((to.take_given_up(), to.memory()), (1, 4));
    assert_eq!(to.on_message(later, &half(50, 2)), Err(UnreliableDrop::TooOld));
}
