use super::super::Carried;
use super::*;
use crate::wire::channel::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};
use crate::wire::channel::{ChannelId, Frame, MAX_MESSAGE_LEN, Message, Opener};
use std::time::{Duration, Instant};

const CHANNEL: ChannelId = ChannelId { number: 3, opener: Opener::Sender };
const PLENTY: u64 = 1 << 40;

fn messages(ordered: bool, credit: u64) -> OutgoingMessages {
    OutgoingMessages::new(CHANNEL, ordered, 1 << 20, credit, PLENTY)
}

fn urgent(priority: u8) -> Options {
    Options { priority, deadline: None }
}

/// The next message frame, by id, offset, length and total, and what it carried.
fn next(out: &mut OutgoingMessages, now: Instant, room: usize) -> Option<(Vec<u64>, Carried)> {
    let (frame, carried) = out.next_frame(now, room)?;
    assert!(frame.encoded_len() <= room);
    let Frame::Message(Message { id, offset, total, bytes, .. }) = frame else {
        panic!("{frame:?}");
    };
    Some((vec![id, offset.into(), bytes.len() as u64, total.into()], carried))
}

#[test]
fn lost_pieces_come_first_and_are_cut_anew() {
    let now = Instant::now();
    let mut out = messages(true, PLENTY);
    let ticket = out.try_push(now, vec![1; 1000], Options::default()).unwrap();
    let (place, first) = next(&mut out, now, 408).unwrap();
    assert_eq!(place, [0, 0, 400, 1000]);
    let (place, second) = next(&mut out, now, 10_000).unwrap();
    assert_eq!(place, [0, 400, 600, 1000]);
    assert_eq!(next(&mut out, now, 10_000), None);
    let other = out.try_push(now, vec![2; 10], Options::default()).unwrap();
    out.on_lost(&first);
    let (place, third) = next(&mut out, now, 209).unwrap();
    assert_eq!(place[..2], [0, 0]);
    // It was there after all, while a part of it is on its way again.
    assert_eq!(out.on_acked(&first), None);
    let (place, fourth) = next(&mut out, now, 10_000).unwrap();
    assert_eq!(place, [1, 0, 10, 10], "nothing is lost any more");
    out.on_lost(&third);
    assert_eq!(next(&mut out, now, 10_000), None);
    assert_eq!(out.kept(), 1010 + 2 * MESSAGE_COST);
    assert_eq!(out.on_acked(&second), Some(ticket));
    assert_eq!(out.on_acked(&second), None);
    out.on_lost(&first);
    assert_eq!(next(&mut out, now, 10_000), None, "what is done stays done");
    assert_eq!(out.on_acked(&fourth), Some(other));
    assert_eq!(out.kept(), 0);
}

#[test]
fn empty_messages_are_sent_lost_and_acknowledged() {
    let now = Instant::now();
    let mut out = messages(false, 0);
    let ticket = out.try_push(now, Vec::new(), Options::default()).unwrap();
    let (place, carried) = next(&mut out, now, 4).unwrap();
    assert_eq!(place, [0, 0, 0, 0]);
    assert_eq!(next(&mut out, now, 100), None);
    out.on_lost(&carried);
    assert_eq!(next(&mut out, now, 3), None, "no room");
    assert_eq!(next(&mut out, now, 100).unwrap().0, place);
    assert_eq!(out.on_acked(&carried), Some(ticket));
    out.on_lost(&carried);
    assert_eq!(next(&mut out, now, 100), None);
}

#[test]
fn every_room_is_respected_and_no_crumbs_are_sent() {
    let now = Instant::now();
    for len in [1usize, 63, 64, 65, 66, 100, 16_383, 16_384, 20_000] {
        for room in (1..200).chain(16_380..16_420) {
            let mut out = messages(true, PLENTY);
            out.try_push(now, vec![1; len], Options::default()).unwrap();
            let mut sent = 0;
            while let Some((place, _)) = next(&mut out, now, room) {
                assert_eq!(place[1], sent);
                sent += place[2];
                assert!(place[2] >= MIN_PIECE as u64 || sent == len as u64);
            }
            assert!(sent == len as u64 || room < MIN_PIECE + 14, "{len} by {room}");
        }
    }
}

#[test]
fn the_limit_pushes_back() {
    let now = Instant::now();
    let mut out = messages(true, PLENTY);
    let mut count = 0;
    let refused = loop {
        match out.try_push(now, vec![7; 100], Options::default()) {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused { error: PushError::Full, bytes: vec![7; 100] });
    assert_eq!(count, (1 << 20) / (100 + MESSAGE_COST));
    assert!(out.kept() <= 1 << 20);
    let (_, carried) = next(&mut out, now, 1000).unwrap();
    out.on_acked(&carried);
    out.try_push(now, vec![7; 100], Options::default()).unwrap();

    // The longest message goes alone; a longer one never.
    let mut out = messages(true, PLENTY);
    let long = vec![0; MAX_MESSAGE_LEN as usize + 1];
    let refused = out.try_push(now, long, Options::default()).unwrap_err();
    assert_eq!(refused.error, PushError::TooLong);
    out.try_push(now, refused.bytes[1..].to_vec(), Options::default()).unwrap();
    let refused = out.try_push(now, Vec::new(), Options::default()).unwrap_err();
    assert_eq!(refused.error, PushError::Full);
    out.finish();
    let refused = out.try_push(now, Vec::new(), Options::default()).unwrap_err();
    assert_eq!(refused.error, PushError::Closed);
}

#[test]
fn urgent_messages_overtake_and_nothing_starves() {
    let mut now = Instant::now();
    let mut out = messages(false, PLENTY);
    out.try_push(now, vec![7; 100_000], urgent(7)).unwrap();
    assert_eq!(next(&mut out, now, 1000).unwrap().0[0], 0);
    out.try_push(now, vec![3; 100], urgent(3)).unwrap();
    out.try_push(now, vec![0; 100], urgent(0)).unwrap();
    assert_eq!(next(&mut out, now, 1000).unwrap().0[0], 1, "the urgent one is begun first");
    out.try_push(now, vec![3; 100], urgent(3)).unwrap();
    let lens: Vec<_> = (0..3).map(|_| next(&mut out, now, 1000).unwrap().0[3]).collect();
    assert_eq!(lens, [100, 100, 100_000]);

    // With something urgent to send all the time.
    let mut waits = Vec::new();
    let mut last = now;
    for _ in 0..2000 {
        now += Duration::from_millis(1);
        out.try_push(now, vec![0; 100], urgent(0)).unwrap();
        let (place, carried) = next(&mut out, now, 1000).unwrap();
        if place[3] == 100_000 {
            waits.push(now - last);
            last = now;
        }
        out.on_acked(&carried);
    }
    assert!(waits.len() >= 4, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= AGE_STEP * 9), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait >= AGE_STEP * 6), "{waits:?}");
}

#[test]
fn ordered_channels_keep_the_order_of_the_program() {
    let now = Instant::now();
    let mut out = messages(true, PLENTY);
    for len in 1..=8 {
        out.try_push(now, vec![0; len], urgent(8 - len as u8)).unwrap();
    }
    for len in 1..=8 {
        assert_eq!(next(&mut out, now, 1000).unwrap().0, [len - 1, 0, len, len]);
    }
}

#[test]
fn credit_holds_back_what_was_not_begun() {
    let now = Instant::now();
    let mut out = messages(false, 1500);
    out.try_push(now, vec![5; 1000], urgent(5)).unwrap();
    next(&mut out, now, 500).unwrap();
    out.try_push(now, vec![1; 501], urgent(1)).unwrap();
    out.try_push(now, vec![6; 10], urgent(6)).unwrap();
    // What was begun goes on; the small one would fit and has to wait for the large one.
    assert_eq!(next(&mut out, now, 5000).unwrap().0[0], 0);
    let (frame, carried) = out.next_frame(now, 5000).unwrap();
    assert_eq!(frame, Frame::Blocked { channel: CHANNEL, number: 1, at: 1501 });
    assert_eq!(out.next_frame(now, 5000), None, "it is said once");
    out.on_lost(&carried);
    assert_eq!(out.next_frame(now, 5000).unwrap().1, carried);
    out.on_max_data(1501);
    out.on_max_data(7);
    assert_eq!(next(&mut out, now, 5000).unwrap().0, [1, 0, 501, 501]);
    out.on_lost(&carried);
    let (frame, _) = out.next_frame(now, 5000).unwrap();
    assert_eq!(frame, Frame::Blocked { channel: CHANNEL, number: 2, at: 1511 });

    let mut out = OutgoingMessages::new(CHANNEL, false, 1 << 20, PLENTY, 2);
    for _ in 0..3 {
        out.try_push(now, vec![0; 10], Options::default()).unwrap();
    }
    assert!(next(&mut out, now, 100).is_some() && next(&mut out, now, 100).is_some());
    assert_eq!(out.next_frame(now, 100), None);
    out.on_max_messages(3);
    assert_eq!(next(&mut out, now, 100).unwrap().0[0], 2);
}

/// Each need that differs from the one before is said, under a number of its own; none twice.
#[test]
fn a_need_is_said_anew_when_it_is_another_one() {
    let now = Instant::now();
    let blocked = |number, at| Some(Frame::Blocked { channel: CHANNEL, number, at });
    let mut out = messages(true, 1000);
    let brief = Options { deadline: Some(now + Duration::from_millis(1)), ..urgent(0) };
    out.try_push(now, vec![0; 9000], brief).unwrap();
    let (frame, first) = out.next_frame(now, 5000).unwrap();
    assert_eq!(Some(frame), blocked(1, 9000));
    out.try_push(now, vec![0; 3000], Options::default()).unwrap();
    assert_eq!(out.next_frame(now, 5000), None);
    let later = now + Duration::from_millis(1);
    assert_eq!(out.expire(later).len(), 1);
    let (frame, second) = out.next_frame(later, 5000).unwrap();
    assert_eq!(Some(frame), blocked(2, 3000));
    // What became of the first one does not count any more.
    out.on_lost(&first);
    assert_eq!(out.next_frame(later, 5000), None);
    out.on_lost(&second);
    assert_eq!(out.next_frame(later, 5000).map(|(_, carried)| carried), Some(second));
    out.on_acked(&second);
    out.on_lost(&second);
    assert_eq!(out.next_frame(later, 5000), None);
    // The receiver counts what was given back, too.
    out.on_recall();
    out.on_max_data(2000);
    assert_eq!(out.next_frame(later, 5000), None, "all of it waits to be used");
    out.on_max_data(3000);
    assert_eq!(next(&mut out, later, 5000).unwrap().0[0], 0);
    assert_eq!(out.next_frame(later, 5000), None);
}

/// When nothing waits any more, the need is taken back.
#[test]
fn a_need_that_is_over_is_taken_back() {
    let now = Instant::now();
    let mut out = messages(false, 1000);
    let brief = Options { deadline: Some(now), ..urgent(0) };
    out.try_push(now, vec![0; 9000], brief).unwrap();
    assert!(out.next_frame(now, 5000).is_some());
    out.expire(now);
    let (frame, carried) = out.next_frame(now, 5000).unwrap();
    assert_eq!(frame, Frame::Blocked { channel: CHANNEL, number: 2, at: 1000 });
    out.on_lost(&carried);
    assert_eq!(out.next_frame(now, 5000).map(|(_, carried)| carried), Some(carried));
    assert_eq!(out.next_frame(now, 5000), None);
    // The same need again is one more.
    out.try_push(now, vec![0; 9000], urgent(0)).unwrap();
    let (frame, _) = out.next_frame(now, 5000).unwrap();
    assert_eq!(frame, Frame::Blocked { channel: CHANNEL, number: 3, at: 9000 });
}

#[test]
fn messages_are_given_up_when_their_time_is_over() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let ttl = |ms| Options { priority: 0, deadline: Some(at(ms)) };
    let mut out = messages(true, PLENTY);
    let begun = out.try_push(start, vec![1; 1000], ttl(10)).unwrap();
    let waiting = out.try_push(start, vec![2; 1000], ttl(20)).unwrap();
    let other = out.try_push(start, vec![3; 100], ttl(30)).unwrap();
    let (_, piece) = next(&mut out, start, 500).unwrap();
    assert_eq!(out.timeout(), Some(at(10)));
    assert_eq!(out.expire(at(9)), []);
    assert_eq!(out.expire(at(20)), [begun, waiting]);
    let (frame, carried) = out.next_frame(at(20), 100).unwrap();
    assert_eq!(frame, Frame::Expired { channel: CHANNEL, id: 0, total: 1000 });
    assert_eq!(carried, Carried::Expired { id: 0 });
    out.on_lost(&piece);
    // What was never begun needs no word, and has no id.
    let (place, last) = next(&mut out, at(20), 1000).unwrap();
    assert_eq!(place, [1, 0, 100, 100]);
    out.on_lost(&carried);
    assert_eq!(out.next_frame(at(20), 100).unwrap().1, carried, "until the peer knows");
    out.finish();
    let (frame, close) = out.next_frame(at(20), 100).unwrap();
    assert_eq!(frame, Frame::Close { channel: CHANNEL, count: 2 });
    assert_eq!(out.on_acked(&last), Some(other));
    assert_eq!((out.timeout(), out.kept()), (None, MESSAGE_COST));
    out.on_acked(&close);
    assert!(!out.is_done());
    out.on_acked(&carried);
    out.on_acked(&carried);
    assert!(out.is_done() && out.kept() == 0);
}

#[test]
fn messages_given_up_are_bounded_while_the_peer_says_nothing() {
    let mut now = Instant::now();
    let mut out = messages(false, PLENTY);
    let mut count = 0;
    while out.try_push(now, vec![1; 100], Options { priority: 0, deadline: Some(now) }).is_ok() {
        next(&mut out, now, 1000).unwrap();
        assert_eq!(out.expire(now).len(), 1);
        assert_eq!(out.next_frame(now, 1000).unwrap().1, Carried::Expired { id: count });
        now += Duration::from_millis(1);
        count += 1;
    }
    assert_eq!(count as usize, ((1 << 20) - 100) / MESSAGE_COST);
}

#[test]
fn unreliable_messages_are_cut_into_equal_pieces() {
    let mut out = OutgoingUnreliable::new(CHANNEL);
    for (len, room, count) in [(0, 100, 1), (92, 100, 1), (100, 100, 2), (65_536, 1400, 48)] {
        let bytes: Vec<_> = (0..len).map(|at| (at % 251) as u8).collect();
        let id = out.next_id();
        let pieces: Vec<_> = out.cut(2, &bytes, room).unwrap().collect();
        assert_eq!(pieces.len(), count, "{len} by {room}");
        let mut joined: Vec<u8> = Vec::new();
        for piece in pieces {
            assert_eq!((piece.id, piece.offset as usize, piece.total), (id, joined.len(), len));
            let mut payload = Vec::new();
            piece.write(&mut payload);
            assert!(payload.len() <= room);
            assert_eq!(Unreliable::read(&payload), Ok(piece));
            joined.extend(piece.bytes);
        }
        assert_eq!(joined, bytes);
    }
    assert_eq!(out.next_id(), 4);
    assert!(out.cut(0, &[0; MAX_UNRELIABLE_LEN as usize + 1], 1400).is_none());
    assert!(out.cut(0, &[0; 2000], 50).is_none(), "crumbs");
    assert_eq!(out.next_id(), 4, "no number is spent on what is not sent");
}

#[test]
fn streams_push_back_and_say_their_end() {
    let mut out = OutgoingStream::new(CHANNEL, 50_000, 40_000);
    assert_eq!(out.try_push(&vec![1; 60_000]), 50_000);
    assert_eq!(out.try_push(&[1]), 0);
    let mut carried = Vec::new();
    while let Some((frame, one)) = out.next_frame(1200) {
        assert!(frame.encoded_len() <= 1200);
        carried.push(one);
    }
    assert_eq!(carried.pop(), Some(Carried::Blocked { number: 1 }));
    let last = carried.last().copied().unwrap();
    let Carried::Stream { offset, len, fin: false } = last else { panic!("{last:?}") };
    assert_eq!(offset + u64::from(len), 40_000);
    // What is acknowledged out of order is kept until all before it is.
    carried[1..].iter().for_each(|one| out.on_acked(one));
    assert_eq!(out.kept(), 50_000);
    out.on_acked(&carried[0]);
    assert_eq!(out.kept(), 10_000);
    out.on_max_data(50_000);
    out.finish();
    assert_eq!(out.try_push(&[1]), 0);
    let mut rest = Vec::new();
    while let Some((_, one)) = out.next_frame(20_000) {
        rest.push(one);
    }
    assert!(matches!(rest.last(), Some(Carried::Stream { fin: true, .. })));
    let end = rest.pop().unwrap();
    out.on_lost(&end);
    let (frame, again) = out.next_frame(20_000).unwrap();
    assert!(matches!(frame, Frame::Stream(stream) if stream.fin));
    assert_eq!(again, end);
    rest.iter().chain([&end]).for_each(|one| out.on_acked(one));
    assert!(out.is_done() && out.kept() == 0);
    out.on_lost(&end);
    assert_eq!(out.next_frame(20_000), None);
}

#[test]
fn an_end_that_comes_late_has_a_frame_of_its_own() {
    let mut out = OutgoingStream::new(CHANNEL, 100, PLENTY);
    out.try_push(b"abc");
    let (_, data) = out.next_frame(100).unwrap();
    out.on_acked(&data);
    assert_eq!(out.next_frame(100), None);
    out.finish();
    let (frame, end) = out.next_frame(100).unwrap();
    assert!(matches!(frame, Frame::Stream(s) if s.fin && s.offset == 3 && s.bytes.is_empty()));
    assert_eq!(out.next_frame(100), None);
    out.on_lost(&end);
    assert_eq!(out.next_frame(100).map(|(_, carried)| carried), Some(end));
    assert!(!out.is_done());
    out.on_acked(&end);
    assert!(out.is_done());
}
