use super::*;
use crate::offload::testing::Shape;
use proptest::prelude::*;

fn segmentation(shape: &Shape, size: usize) -> Segmentation {
    Segmentation { kind: shape.kind(), size: size as u16, ecn: false }
}

/// Cuts the super-frame and compares each segment, complete and completed, with what a sender
/// without offloads makes.
fn check(shape: &Shape, size: usize) {
    let (whole, place) = shape.partial();
    let cut = SuperFrame::new(&whole, segmentation(shape, size), place).unwrap();
    let expected = shape.segments(size);
    assert_eq!(cut.count(), expected.len());
    assert_eq!(cut.checksum(), place);
    assert_eq!(cut.header_len() + shape.payload.len(), whole.len());
    let mut out = Vec::new();
    for (index, segment) in expected.iter().enumerate() {
        let frame = segment.frame();
        assert_eq!(cut.segment_len(index), frame.len());
        out.clear();
        out.extend(b"before");
        cut.write(index, true, &mut out);
        assert_eq!(out.split_at(6), (&b"before"[..], &frame[..]), "{index} of {shape:?}");
        out.clear();
        cut.write(index, false, &mut out);
        assert_eq!(out, segment.partial().0, "{index} of {shape:?}");
    }
    out.clear();
    cut.write(expected.len(), true, &mut out);
    assert!(out.is_empty());
    assert_eq!(cut.segment_len(expected.len()), 0);
}

#[test]
fn segments_are_those_of_a_sender_without_offloads() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        for tags in 0..3 {
            for count in [0, 1, 2, 63, 64, 65, 127, 128, 129] {
                for tail in [0, 1, 37] {
                    let shape = Shape { tags, ..Shape::new(v6, tcp, count * 100 + tail) };
                    check(&shape, 100);
                }
            }
        }
    }
}

#[test]
fn largest_super_frames_are_cut() {
    for (v6, tcp, headers_len) in
        [(false, true, 40), (false, false, 28), (true, true, 20), (true, false, 8)]
    {
        check(&Shape::new(v6, tcp, 65_535 - headers_len), 1448);
        check(&Shape::new(v6, tcp, 65_535 - headers_len), 65_535);
    }
}

#[test]
fn options_and_extension_headers_are_repeated() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let timestamp = Some(0x0a0b_0c0d);
        check(&Shape { extra: true, tags: 1, timestamp, ..Shape::new(v6, tcp, 500) }, 99);
    }
}

#[test]
fn flags_are_on_the_segments_that_they_belong_to() {
    for flags in 0..=255 {
        check(&Shape { flags, ..Shape::new(false, true, 30) }, 10);
        check(&Shape { flags, ..Shape::new(false, true, 3) }, 10);
    }
}

#[test]
fn sequence_and_identification_wrap() {
    let shape = Shape { id: 0xfffe, sequence: u32::MAX - 14, ..Shape::new(false, true, 45) };
    check(&shape, 10);
}

#[test]
fn faults_of_a_header_checksum_stay_and_pass_on() {
    let shape = Shape::new(false, true, 30);
    let (mut whole, place) = shape.partial();
    whole[24] ^= 0x40;
    let cut = SuperFrame::new(&whole, segmentation(&shape, 10), place).unwrap();
    let mut out = Vec::new();
    cut.write(1, true, &mut out);
    let good = shape.segments(10)[1].frame();
    assert_eq!((out[24] ^ 0x40, &out[..24], &out[25..]), (good[24], &good[..24], &good[25..]));
}

/// The fault of a changed super-frame of 30 payload bytes in segments of 10.
fn fault(
    shape: &Shape,
    change: impl FnOnce(&mut Vec<u8>, &mut Segmentation, &mut Checksum),
) -> Option<SegmentFault> {
    let (mut whole, mut place) = shape.partial();
    let mut segmentation = segmentation(shape, 10);
    change(&mut whole, &mut segmentation, &mut place);
    SuperFrame::new(&whole, segmentation, place).err()
}

#[test]
fn lies_are_refused() {
    let tcp = Shape::new(false, true, 30);
    let udp = Shape::new(false, false, 30);
    let tcp6 = Shape::new(true, true, 30);
    for shape in [&tcp, &udp, &tcp6] {
        assert_eq!(fault(shape, |_, _, _| ()), None);
        for kind in [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp] {
            let expected = (kind != shape.kind()).then_some(SegmentFault::Kind);
            assert_eq!(fault(shape, |_, s, _| s.kind = kind), expected);
        }
        assert_eq!(fault(shape, |_, s, _| s.size = 0), Some(SegmentFault::Size));
        let complete = fault(shape, |_, _, c| *c = Checksum::Complete);
        assert_eq!(complete, Some(SegmentFault::Checksum));
        for (by, of) in [(2, 0), (0, 2)] {
            let elsewhere = fault(shape, |_, _, c| {
                let Checksum::Partial { start, offset } = c else { unreachable!() };
                (*start, *offset) = (*start + by, *offset + of);
            });
            assert_eq!(elsewhere, Some(SegmentFault::Checksum));
        }
        // Padding, and a cut end.
        assert_eq!(fault(shape, |f, _, _| f.push(0)), Some(SegmentFault::Length));
        assert_eq!(fault(shape, |f, _, _| f.truncate(f.len() - 1)), Some(SegmentFault::Length));
        assert_eq!(fault(shape, |f, _, _| f.truncate(20)), Some(SegmentFault::Headers));
        assert_eq!(fault(shape, |f, _, _| f[12] ^= 0x86), Some(SegmentFault::Headers));
    }
    assert_eq!(fault(&tcp, |_, s, _| s.ecn = true), None);
    assert_eq!(fault(&udp, |_, s, _| s.ecn = true), Some(SegmentFault::Ecn));
    // Fragments.
    assert_eq!(fault(&tcp, |f, _, _| f[20] |= 0x20), Some(SegmentFault::Headers));
    assert_eq!(fault(&udp, |f, _, _| f[21] = 1), Some(SegmentFault::Headers));
    assert_eq!(fault(&tcp6, |f, _, _| f[20] = 44), Some(SegmentFault::Headers));
    // A TCP header shorter than any, and one longer than the frame.
    assert_eq!(fault(&tcp, |f, _, _| f[46] = 0x40), Some(SegmentFault::Length));
    assert_eq!(fault(&tcp, |f, _, _| f[46] = 0xf0), Some(SegmentFault::Length));
    // A UDP length, an IP length, and the jumbogram's 0.
    assert_eq!(fault(&udp, |f, _, _| f[39] ^= 1), Some(SegmentFault::Length));
    assert_eq!(fault(&udp, |f, _, _| f[17] ^= 1), Some(SegmentFault::Length));
    assert_eq!(fault(&tcp6, |f, _, _| f[18..20].fill(0)), Some(SegmentFault::Length));
}

#[test]
fn segments_are_at_most_so_many() {
    let many = |count: usize| {
        let shape = Shape::new(false, true, count);
        let (whole, place) = shape.partial();
        SuperFrame::new(&whole, segmentation(&shape, 1), place).map(|cut| cut.count())
    };
    assert_eq!(many(MAX_SEGMENTS), Ok(MAX_SEGMENTS));
    assert_eq!(many(MAX_SEGMENTS + 1), Err(SegmentFault::TooMany));
}

fn kinds() -> impl Strategy<Value = SegmentKind> {
    prop_oneof![Just(SegmentKind::Tcp4), Just(SegmentKind::Tcp6), Just(SegmentKind::Udp)]
}

/// Writes all segments; their payloads must be that of the whole.
fn write_all(cut: &SuperFrame<'_>) -> Vec<u8> {
    let (mut out, mut payload) = (Vec::new(), Vec::new());
    for index in 0..cut.count() {
        out.clear();
        cut.write(index, index % 2 == 0, &mut out);
        assert_eq!(out.len(), cut.segment_len(index));
        payload.extend_from_slice(&out[cut.header_len()..]);
    }
    payload
}

proptest! {
    #[test]
    fn any_bytes_are_cut_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind in kinds(),
        size in 0..50_u16,
        ecn in any::<bool>(),
        (start, offset) in (0..80_u16, 0..20_u16),
    ) {
        let checksum = Checksum::Partial { start, offset };
        if let Ok(cut) = SuperFrame::new(&bytes, Segmentation { kind, size, ecn }, checksum) {
            prop_assert_eq!(write_all(&cut), &bytes[cut.header_len()..]);
        }
    }

    /// Valid super-frames with a few bytes overwritten reach deeper than noise does.
    #[test]
    fn mutated_super_frames_are_cut_or_refused(
        (v6, tcp, extra, tags) in (any::<bool>(), any::<bool>(), any::<bool>(), 0..3_usize),
        payload_len in 0..400_usize,
        size in 1..100_u16,
        faults in prop::collection::vec((0..100_usize, any::<u8>()), 0..4),
        keep in 0..500_usize,
    ) {
        let shape = Shape { extra, tags, ..Shape::new(v6, tcp, payload_len) };
        let (mut whole, place) = shape.partial();
        for (at, byte) in faults {
            if let Some(target) = whole.get_mut(at) {
                *target = byte;
            }
        }
        if keep % 4 == 0 {
            whole.truncate(keep);
        }
        let segmentation = Segmentation { kind: shape.kind(), size, ecn: false };
        if let Ok(cut) = SuperFrame::new(&whole, segmentation, place) {
            prop_assert_eq!(write_all(&cut), &whole[cut.header_len()..]);
        }
    }

    #[test]
    fn any_shape_is_cut_as_a_sender_would(
        (v6, tcp, extra, df) in any::<(bool, bool, bool, bool)>(),
        (tags, payload_len, size) in (0..3_usize, 0..3000_usize, 1..1500_usize),
        (id, sequence, flags, tos) in any::<(u16, u32, u8, u8)>(),
    ) {
        let shape = Shape::new(v6, tcp, payload_len);
        let shape = Shape { extra, df, tags, id, sequence, flags, tos, ..shape };
        if payload_len.div_ceil(size) <= MAX_SEGMENTS {
            check(&shape, size);
        }
    }
}
