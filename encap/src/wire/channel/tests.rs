use super::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};
use super::*;
use crate::wire::varint::MAX_VARINT;
use proptest::prelude::*;

/// Numbers of all lengths.
fn number() -> impl Strategy<Value = u64> {
    (0..=MAX_VARINT, 0u32..62).prop_map(|(value, shift)| value >> shift)
}

fn channel() -> impl Strategy<Value = ChannelId> {
    (any::<u32>(), 0u32..32, any::<bool>()).prop_map(|(number, shift, own)| ChannelId {
        number: number >> shift,
        opener: if own { Opener::Sender } else { Opener::Receiver },
    })
}

/// What frames of a test are made of; a frame borrows from it.
#[derive(Debug, Clone)]
struct Parts {
    which: u8,
    channel: ChannelId,
    a: u64,
    b: u64,
    small: u8,
    flag: bool,
    bytes: Vec<u8>,
    name: String,
    ranges: Vec<(u64, u64)>,
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        0u8..16,
        channel(),
        number(),
        number(),
        0u8..8,
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..100),
        "[a-zé./]{1,30}",
        proptest::collection::vec((0u64..300, 0u64..300), 1..40),
    )
        .prop_map(|(which, channel, a, b, small, flag, bytes, name, ranges)| Parts {
            which,
            channel,
            a,
            b,
            small,
            flag,
            bytes,
            name,
            ranges,
        })
}

/// Descending ranges below `largest`, from gaps and lengths.
fn descending(largest: u64, steps: &[(u64, u64)]) -> Vec<std::ops::RangeInclusive<u64>> {
    let mut ranges = Vec::new();
    let mut end = Some(largest);
    for (gap, len) in steps {
        let Some(start) = end.and_then(|end| end.checked_sub(*len)) else { break };
        ranges.push(start..=end.unwrap());
        end = start.checked_sub(gap + 2);
    }
    ranges
}

impl Parts {
    fn ecn(&self) -> Option<EcnCounts> {
        self.flag.then_some(EcnCounts { ect0: self.b, ect1: 0, ce: self.small.into() })
    }

    fn write(&self, out: &mut Vec<u8>) {
        if self.which == 15 {
            let ranges = descending(self.a, &self.ranges);
            // Not even one range, where the first is longer than the largest number.
            write_ack(self.small, self.b, ranges, self.ecn(), 2000, out);
        } else {
            self.frame().write(out);
        }
    }

    fn frame(&self) -> Frame<'_> {
        let Self { channel, a, b, bytes, .. } = self;
        let (channel, a, b) = (*channel, *a, *b);
        let total = (b % (u64::from(MAX_MESSAGE_LEN) + 1)) as u32;
        match self.which {
            0 => Frame::Padding(1 + usize::from(self.small)),
            1 => Frame::Ping,
            2 => Frame::Stream(Stream { channel, offset: a / 2, fin: self.flag, bytes }),
            3 => Frame::Expired { channel, id: a, total },
            4 => Frame::Blocked { channel, number: b, at: a },
            5 => Frame::MaxData { channel, limit: a },
            6 => Frame::MaxMessages { channel, limit: a },
            7 => {
                let modes = [Mode::Stream, Mode::Ordered, Mode::Unordered, Mode::Unreliable];
                let mode = modes[usize::from(self.small % 4)];
                let encoded = mode != Mode::Stream && a % 2 == 1;
                Frame::Open { channel, mode, encoded, credit: a, messages: b, name: &self.name }
            }
            8 => Frame::Accept { channel, credit: a, messages: b },
            9 => Frame::Refuse { channel, reason: a },
            10 => Frame::Close { channel, count: a },
            11 => Frame::Reset { channel, error: a },
            12 => Frame::Closed { channel },
            13 => {
                let (priority, total) = (self.small, bytes.len() as u32);
                Frame::Message(Message { channel, id: a, priority, offset: 0, total, bytes })
            }
            14 => Frame::Recall { channel },
            15 => Frame::Return { channel, total: a },
            _ => {
                let bytes = if bytes.is_empty() { &[7][..] } else { bytes };
                let total = total.max(bytes.len() as u32 + 1);
                let offset = (a % (u64::from(total) - bytes.len() as u64 + 1)) as u32;
                let message =
                    Message { channel, id: a, priority: self.small, offset, total, bytes };
                Frame::Message(message)
            }
        }
    }
}

fn read_all(bytes: &[u8]) -> Result<Vec<Frame<'_>>, FrameFault> {
    let frames = Frames::new(bytes);
    assert_eq!(frames.check().err(), frames.clone().find_map(Result::err));
    frames.collect()
}

const CHANNEL: ChannelId = ChannelId { number: 5, opener: Opener::Receiver };

#[test]
fn frames_have_the_bytes_of_the_table() {
    let piece =
        Message { channel: CHANNEL, id: 1, priority: 3, offset: 64, total: 100, bytes: b"x" };
    let whole = Message { offset: 0, total: 1, ..piece };
    let stream = Stream { channel: CHANNEL, offset: 0x4000, fin: true, bytes: b"yz" };
    let open = Frame::Open {
        channel: ChannelId { number: 32, opener: Opener::Sender },
        mode: Mode::Unordered,
        encoded: false,
        credit: 64,
        messages: 2,
        name: "a",
    };
    let cases: [(Frame<'_>, &[u8]); 12] = [
        (Frame::Padding(3), &[0, 0, 0]),
        (Frame::Ping, &[1]),
        (Frame::Stream(stream), &[5, 11, 0x80, 0, 0x40, 0, 2, b'y', b'z']),
        (Frame::Expired { channel: CHANNEL, id: 2, total: 3 }, &[6, 11, 2, 3]),
        (Frame::Blocked { channel: CHANNEL, number: 1, at: 64 }, &[7, 11, 1, 0x40, 64]),
        (Frame::MaxData { channel: CHANNEL, limit: 63 }, &[8, 11, 63]),
        (Frame::Recall { channel: CHANNEL }, &[10, 11]),
        (Frame::Return { channel: CHANNEL, total: 64 }, &[11, 11, 0x40, 64]),
        (open, &[0x10, 0x40, 64, 2, 0x40, 64, 2, 1, b'a']),
        (Frame::Closed { channel: CHANNEL }, &[0x15, 11]),
        (Frame::Message(whole), &[0x23, 11, 1, 1, b'x']),
        (Frame::Message(piece), &[0x2b, 11, 1, 0x40, 64, 0x40, 100, 1, b'x']),
    ];
    for (frame, bytes) in cases {
        let mut out = Vec::new();
        frame.write(&mut out);
        assert_eq!(out, bytes, "{frame:?}");
        assert_eq!(frame.encoded_len(), bytes.len(), "{frame:?}");
        assert_eq!(read_all(bytes), Ok(vec![frame]));
    }
}

#[test]
fn what_is_no_frame_has_a_name() {
    use FrameFault::{Truncated, Type, Value};
    let fault = |bytes: &[u8]| read_all(bytes).unwrap_err();
    assert_eq!(fault(&[0x0c]), Type(0x0c));
    assert_eq!(fault(&[1, 0xff]), Type(0xff));
    assert_eq!(fault(&[0x30]), Type(0x30));
    assert_eq!(fault(&[0x15, 0x40, 11]), Truncated, "a number in a long form");
    assert_eq!(fault(&[0x15, 0xc0, 0, 0, 2, 0, 0, 0, 0]), Value(0x15), "channel of 33 bits");
    assert_eq!(fault(&[0x10, 0, 4, 0, 0, 1, b'a']), Value(0x10), "unknown mode");
    assert_eq!(fault(&[0x10, 0, 0, 0, 0, 0]), Value(0x10), "no name");
    assert_eq!(fault(&[0x10, 0, 0, 0, 0, 1, 0xff]), Value(0x10), "a name that is no text");
    assert_eq!(fault(&[0x06, 0, 0, 0x81, 0, 0, 1]), Value(0x06), "16 MiB and one byte");
    assert_eq!(fault(&[0x04, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 9]), Value(4));
    assert_eq!(fault(&[0x28, 0, 0, 0, 1, 1, 9]), Value(0x28), "a whole message as a piece");
    assert_eq!(fault(&[0x28, 0, 0, 0, 2, 0]), Value(0x28), "an empty piece");
    assert_eq!(fault(&[0x28, 0, 0, 2, 2, 1, 9]), Value(0x28), "past the end of its message");
    assert_eq!(fault(&[0x02, 0, 5, 0, 0, 6]), Value(0x02), "below 0");
    assert_eq!(fault(&[0x02, 0, 5, 0, 1, 1, 3, 0]), Value(0x02), "a gap below 0");
    assert_eq!(fault(&[0x02, 0, 5, 0, 32, 0]), Value(0x02), "33 ranges");
    let long = [&[0x10, 0, 0, 0, 0, 0x40, 129][..], &[b'a'; 129]].concat();
    assert_eq!(fault(&long), Value(0x10), "a long name");
}

#[test]
fn acknowledgements_are_cut_to_their_room() {
    let ranges: Vec<_> = (0..40u64).map(|n| 1000 - 10 * n - 2..=1000 - 10 * n).collect();
    let ecn = Some(EcnCounts { ect0: 100, ect1: 0, ce: 3 });
    let mut kept = Vec::new();
    for room in 0..120 {
        let mut out = vec![9];
        let written = write_ack(3, 7, ranges.clone(), ecn, room, &mut out);
        assert!(out.len() - 1 <= room && out[0] == 9);
        assert_eq!(written, out.len() > 1);
        if !written {
            continue;
        }
        let [Frame::Ack(ack)] = read_all(&out[1..]).unwrap()[..] else { unreachable!() };
        assert_eq!((ack.path, ack.largest, ack.delay, ack.ecn), (3, 1000, 7, ecn));
        let read: Vec<_> = ack.ranges.iter().collect();
        assert_eq!(read, ranges[..read.len()]);
        kept.push(read.len());
    }
    assert!(kept.is_sorted());
    assert_eq!((kept.first(), kept.last()), (Some(&1), Some(&MAX_ACK_RANGES)));
    assert!(!write_ack(0, 0, [], None, 100, &mut Vec::new()));
}

#[test]
fn numbers_are_extended_to_the_nearest() {
    assert_eq!(extend_number(0, 7), 7);
    assert_eq!(extend_number(0, u32::MAX), u64::from(u32::MAX), "nothing lies below 0");
    assert_eq!(extend_number(0x1_0000_0002, 0xffff_fffe), 0xffff_fffe);
    assert_eq!(extend_number(0xffff_fffe, 3), 0x1_0000_0003);
    assert_eq!(extend_number(0x5_8000_0000, 0), 0x6_0000_0000);
    assert_eq!(extend_number(u64::MAX, 5), u64::MAX - u64::from(u32::MAX) + 5);
}

#[test]
fn packets_begin_with_path_and_number() {
    let header = PacketHeader { path: 3, number: 0x0102_0304 };
    let payload = [&header.write()[..], &[1]].concat();
    assert_eq!(payload, [3, 1, 2, 3, 4, 1]);
    let (read, mut frames) = PacketHeader::read(&payload).unwrap();
    assert_eq!(read, header);
    assert_eq!(frames.next(), Some(Ok(Frame::Ping)));
    assert_eq!(PacketHeader::read(&payload[..4]).unwrap_err(), FrameFault::Truncated);
}

#[test]
fn unreliable_messages_have_their_bytes() {
    let whole =
        Unreliable { channel: CHANNEL, id: 9, priority: 2, offset: 0, total: 2, bytes: b"ab" };
    let piece = Unreliable { offset: 1, total: 70, ..whole };
    let cases: [(Unreliable<'_>, &[u8]); 2] = [
        (whole, &[11, 0x82, 0, 0, 0, 9, b'a', b'b']),
        (piece, &[11, 0x02, 0, 0, 0, 9, 1, 0x40, 70, b'a', b'b']),
    ];
    for (message, bytes) in cases {
        let mut out = Vec::new();
        message.write(&mut out);
        assert_eq!((&out[..], message.header_len()), (bytes, bytes.len() - 2));
        assert_eq!(Unreliable::read(bytes), Ok(message));
    }
    let fault = |bytes: &[u8]| Unreliable::read(bytes).unwrap_err();
    assert_eq!(fault(&[11, 0x0a, 0, 0, 0, 9, 1, 2, 3]), FrameFault::Value(8), "reserved bit");
    assert_eq!(fault(&[11, 0x82, 0, 0, 0]), FrameFault::Truncated);
    assert_eq!(fault(&[11, 2, 0, 0, 0, 9, 1, 2, 3, 4]), FrameFault::Value(8), "past its end");
    let long = vec![0; MAX_UNRELIABLE_LEN as usize + 1];
    let mut out = Vec::new();
    Unreliable { total: MAX_UNRELIABLE_LEN + 1, bytes: &long, ..whole }.write(&mut out);
    assert_eq!(fault(&out), FrameFault::Value(8));
}

proptest! {
    #[test]
    fn frames_round_trip(all in proptest::collection::vec(parts(), 1..6)) {
        let mut out = Vec::new();
        for one in &all {
            one.write(&mut out);
        }
        let frames = read_all(&out).unwrap();
        let sum: usize = frames.iter().map(Frame::encoded_len).sum();
        prop_assert_eq!(sum, out.len());
        let mut again = Vec::new();
        for frame in &frames {
            frame.write(&mut again);
        }
        prop_assert_eq!(&again, &out);
        // Runs of padding become one frame, so only those without any compare one by one.
        let written: Vec<_> = all.iter().filter(|one| ![0, 15].contains(&one.which)).collect();
        let read = frames.iter().filter(|f| !matches!(f, Frame::Padding(_) | Frame::Ack(_)));
        prop_assert!(written.iter().map(|one| one.frame()).eq(read.copied()));
    }

    #[test]
    fn acknowledgements_round_trip(one in parts()) {
        let ranges = descending(one.a, &one.ranges);
        let mut out = Vec::new();
        let written = write_ack(one.small, one.b, ranges.clone(), one.ecn(), 2000, &mut out);
        prop_assert_eq!(written, !ranges.is_empty());
        if written {
            let [Frame::Ack(ack)] = read_all(&out).unwrap()[..] else { unreachable!() };
            prop_assert_eq!((ack.path, ack.largest, ack.delay), (one.small, one.a, one.b));
            prop_assert_eq!(ack.ecn, one.ecn());
            prop_assert_eq!(ack.ranges.len(), ranges.len().min(MAX_ACK_RANGES));
            prop_assert!(ack.ranges.iter().eq(ranges.into_iter().take(MAX_ACK_RANGES)));
        }
    }

    #[test]
    fn every_truncation_is_a_fault(one in parts()) {
        let mut out = Vec::new();
        one.write(&mut out);
        // What is left of padding is padding.
        if one.which != 0 && !out.is_empty() {
            for len in 1..out.len() {
                prop_assert_eq!(read_all(&out[..len]), Err(FrameFault::Truncated));
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(frames) = read_all(&bytes) {
            let mut again = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut again));
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn damaged_frames_are_read_or_refused(
        all in proptest::collection::vec(parts(), 1..4),
        at: prop::sample::Index,
        change in 1u8..,
    ) {
        let mut out = vec![1];
        all.iter().for_each(|one| one.write(&mut out));
        *at.get_mut(&mut out[..]) ^= change;
        if let Ok(frames) = read_all(&out) {
            let mut again = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut again));
            prop_assert_eq!(again, out);
        }
    }

    #[test]
    fn any_unreliable_bytes_are_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Ok(message) = Unreliable::read(&bytes) {
            let mut again = Vec::new();
            message.write(&mut again);
            prop_assert_eq!(again.len(), message.header_len() + message.bytes.len());
            prop_assert_eq!(again, bytes);
        }
    }
}
