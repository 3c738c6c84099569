use super::*;
use crate::offload::SuperFrame;
use crate::offload::testing::Shape;
use crate::wire::checksum::{complete_checksum, derive_partial};
use crate::wire::ethernet::EthernetView;
use crate::wire::inner_ip::adjust_checksum;

pub(super) type Input = (Vec<u8>, Checksum);

pub(super) fn complete(shape: &Shape) -> Input {
    (shape.frame(), Checksum::Complete)
}

/// A frame as its receiver counts it: with its L4 checksum, and without an identification that
/// means nothing.
fn settled(frame: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Checksum::Partial { start, offset } = checksum {
        complete_checksum(&mut frame, start, offset).unwrap();
    }
    let l3 = EthernetView::new(&frame).map_or(frame.len(), |view| view.payload_offset());
    if frame.len() > l3 + 20 && frame[l3] == 0x45 && frame[l3 + 6] & 0x40 != 0 {
        frame[l3 + 4..l3 + 6].fill(0);
        frame[l3 + 10..l3 + 12].fill(0);
    }
    frame
}

/// Coalesces, checks each group against its members, and gives their indices.
fn coalesce_with(coalescer: &mut Coalescer, frames: &[Input], limits: Limits) -> Vec<Vec<usize>> {
    coalescer.clear();
    for (index, (frame, checksum)) in frames.iter().enumerate() {
        coalescer.add(index, frame, *checksum, limits);
    }
    let groups = coalescer.groups().map(|group| {
        let members: Vec<_> = group.members.clone().collect();
        assert_eq!(group.members.len(), members.len());
        if let [member] = &members[..] {
            let (frame, checksum) = &frames[member.index];
            assert_eq!(member.payload, 0..frame.len());
            assert!(group.header.is_empty());
            assert_eq!(group.offload, Offload { checksum: *checksum, segmentation: None });
        } else {
            check(&group, &members, frames);
        }
        members.iter().map(|member| member.index).collect()
    });
    groups.collect()
}

/// The super-frame of the group is one, and its segments are the members.
pub(super) fn check(group: &Group<'_>, members: &[Member], frames: &[Input]) {
    let mut whole = group.header.to_vec();
    for member in members {
        whole.extend_from_slice(&frames[member.index].0[member.payload.clone()]);
    }
    assert_eq!(derive_partial(&whole), Some(group.offload.checksum));
    let segmentation = group.offload.segmentation.unwrap();
    let cut = SuperFrame::new(&whole, segmentation, group.offload.checksum).unwrap();
    assert_eq!(cut.count(), members.len());
    for (index, member) in members.iter().enumerate() {
        let mut out = Vec::new();
        cut.write(index, true, &mut out);
        let (frame, checksum) = &frames[member.index];
        assert_eq!(settled(&out, Checksum::Complete), settled(frame, *checksum));
    }
}

pub(super) fn coalesce(frames: &[Input]) -> Vec<Vec<usize>> {
    coalesce_with(&mut Coalescer::new(), frames, Limits::default())
}

fn coalesce_shapes(shapes: &[Shape]) -> Vec<Vec<usize>> {
    coalesce(&shapes.iter().map(complete).collect::<Vec<_>>())
}

/// `count` frames of 100 payload bytes that belong together.
fn run(v6: bool, tcp: bool, count: usize) -> Vec<Shape> {
    Shape::new(v6, tcp, count * 100).segments(100)
}

const ALL: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// The groups when the frame at 2 of 5 was changed: for TCP or UDP over either version.
fn with_changed(v6: bool, tcp: bool, change: impl Fn(&mut Shape)) -> Vec<Vec<usize>> {
    let mut shapes = run(v6, tcp, 5);
    change(&mut shapes[2]);
    coalesce_shapes(&shapes)
}

/// Of five frames the third goes by itself.
const ALONE: [&[usize]; 3] = [&[0, 1], &[2], &[3, 4]];

#[test]
fn runs_become_groups() {
    for (v6, tcp) in ALL {
        for tags in 0..3 {
            for count in [0, 1, 2, 63, 64, 65, 127, 128, 129] {
                for tail in [0, 1, 37] {
                    let whole =
                        Shape { tags, df: false, ..Shape::new(v6, tcp, count * 100 + tail) };
                    let shapes = whole.segments(100);
                    let groups = coalesce_shapes(&shapes);
                    assert_eq!(groups.len(), shapes.len().div_ceil(64));
                    assert_eq!(groups.concat(), (0..shapes.len()).collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn partial_checksums_join_with_complete_ones_without_a_sum() {
    for (v6, tcp) in ALL {
        let shapes = run(v6, tcp, 4);
        let mut frames: Vec<_> = shapes.iter().map(Shape::partial).collect();
        frames[1] = complete(&shapes[1]);
        assert_eq!(coalesce(&frames), [[0, 1, 2, 3]]);
        // Said to be elsewhere, or not the pseudo-header's sum.
        let Checksum::Partial { start, offset } = frames[2].1 else { unreachable!() };
        frames[2].1 = Checksum::Partial { start: start - 2, offset: offset + 2 };
        assert_eq!(coalesce(&frames), [&[0, 1][..], &[2], &[3]]);
    }
    let mut frames: Vec<_> = run(false, true, 5).iter().map(Shape::partial).collect();
    frames[2].0[50] ^= 1;
    assert_eq!(coalesce(&frames), ALONE);
}

#[test]
fn wrong_checksums_break_the_group_and_are_not_repaired() {
    for (v6, tcp) in ALL {
        let mut frames: Vec<_> = run(v6, tcp, 5).iter().map(complete).collect();
        *frames[2].0.last_mut().unwrap() ^= 1;
        assert_eq!(coalesce(&frames), ALONE);
    }
    let mut frames: Vec<_> = run(false, true, 5).iter().map(complete).collect();
    frames[2].0[24] ^= 1;
    assert_eq!(coalesce(&frames), ALONE);
}

/// Sums of 0 in their other form would be written anew as 0.
#[test]
fn checksums_of_all_ones_are_not_made_zeroes() {
    let mut shapes = run(false, true, 5);
    // Moves the sum of the frame to 0 by its last two payload bytes.
    let stored = |shape: &Shape| u16::from_be_bytes(shape.frame()[50..52].try_into().unwrap());
    shapes[2].payload[98..].fill(0);
    let rest = stored(&shapes[2]);
    shapes[2].payload[98..].copy_from_slice(&rest.to_be_bytes());
    let mut frames: Vec<_> = shapes.iter().map(complete).collect();
    assert_eq!(frames[2].0[50..52], [0, 0]);
    assert_eq!(coalesce(&frames), [[0, 1, 2, 3, 4]]);
    frames[2].0[50..52].fill(0xff);
    assert_eq!(coalesce(&frames), ALONE);

    // The same of the IPv4 header, by its identification.
    let mut shapes = run(false, true, 5);
    shapes[2].id = (0..=u16::MAX)
        .find(|id| Shape { id: *id, ..Shape::new(false, true, 100) }.frame()[24..26] == [0, 0])
        .unwrap();
    let mut frames: Vec<_> = shapes.iter().map(complete).collect();
    assert_eq!(coalesce(&frames), [[0, 1, 2, 3, 4]]);
    frames[2].0[24..26].fill(0xff);
    assert_eq!(coalesce(&frames), ALONE);
}

#[test]
fn udp_without_checksum_goes_as_it_is() {
    for (v6, at) in [(false, 40), (true, 60)] {
        let mut shapes = run(v6, false, 5);
        let mut frames: Vec<_> = shapes.iter().map(complete).collect();
        frames[2].0[at..at + 2].fill(0);
        assert_eq!(coalesce(&frames), ALONE);
        // Even where 0 is what the sum over the rest asks for.
        shapes[2].payload[98..].fill(0);
        let rest = shapes[2].frame()[at..at + 2].to_vec();
        shapes[2].payload[98..].copy_from_slice(&rest);
        frames[2] = complete(&shapes[2]);
        assert_eq!(frames[2].0[at..at + 2], [0xff, 0xff]);
        assert_eq!(coalesce(&frames), [[0, 1, 2, 3, 4]]);
        frames[2].0[at..at + 2].fill(0);
        assert_eq!(coalesce(&frames), ALONE);
    }
}

#[test]
fn identification_counts_up_or_may_not_be_fragmented() {
    let ids = |df: bool, tcp: bool, ids: [u16; 5]| {
        let mut shapes = run(false, tcp, 5);
        for (shape, id) in shapes.iter_mut().zip(ids) {
            (shape.df, shape.id) = (df, id);
        }
        coalesce_shapes(&shapes)
    };
    for tcp in [false, true] {
        assert_eq!(ids(false, tcp, [65_534, 65_535, 0, 1, 2]), [[0, 1, 2, 3, 4]]);
        assert_eq!(ids(false, tcp, [9; 5]), [[0], [1], [2], [3], [4]]);
        assert_eq!(ids(false, tcp, [1, 2, 40, 41, 42]), [&[0, 1][..], &[2, 3, 4]]);
        assert_eq!(ids(true, tcp, [7, 7, 900, 1, 0]), [[0, 1, 2, 3, 4]]);
    }
}

#[test]
fn marks_hops_and_labels_are_those_of_all() {
    for (v6, tcp) in ALL {
        assert_eq!(with_changed(v6, tcp, |_| ()), [[0, 1, 2, 3, 4]]);
        // Congestion was met.
        assert_eq!(with_changed(v6, tcp, |shape| shape.tos = 3), ALONE);
        assert_eq!(with_changed(v6, tcp, |shape| shape.tos = 0xb8), ALONE);
        assert_eq!(with_changed(v6, tcp, |shape| shape.ttl = 63), ALONE);
        assert_eq!(with_changed(v6, tcp, |shape| shape.df = false).len(), if v6 { 1 } else { 3 });
        let labelled = with_changed(v6, tcp, |shape| shape.flow_label = 5);
        assert_eq!(labelled.len(), if v6 { 3 } else { 1 });
    }
}

#[test]
fn what_tells_the_sender_something_is_not_lost() {
    for v6 in [false, true] {
        assert_eq!(with_changed(v6, true, |shape| shape.ack = 100), ALONE);
        assert_eq!(with_changed(v6, true, |shape| shape.window = 1), ALONE);
        assert_eq!(with_changed(v6, true, |shape| shape.timestamp = Some(1)), ALONE);
        let mut shapes = run(v6, true, 5);
        for (shape, timestamp) in shapes.iter_mut().zip([1, 1, 2, 3, 3]) {
            shape.timestamp = Some(timestamp);
        }
        assert_eq!(coalesce_shapes(&shapes), ALONE);
    }
}

#[test]
fn control_flags_keep_their_place() {
    for v6 in [false, true] {
        // FIN, SYN, RST, URG, ECE, CWR, each with ACK; and without ACK.
        for flags in [0x11, 0x12, 0x14, 0x30, 0x50, 0x90, 0xd0, 0x00, 0x08] {
            assert_eq!(with_changed(v6, true, |shape| shape.flags = flags), ALONE, "{flags:#x}");
        }
        let mut shapes = run(v6, true, 3);
        shapes[0].flags = 0x90;
        assert_eq!(coalesce_shapes(&shapes), [&[0][..], &[1, 2]], "CWR first");
    }
    let mut frames: Vec<_> = run(false, true, 5).iter().map(complete).collect();
    // The accurate-ECN bit beside the header length, with the checksum that goes with it.
    let (bytes, sum) = (&mut frames[2].0, [50, 51]);
    bytes[46] |= 1;
    let checksum = u16::from_be_bytes(sum.map(|at| bytes[at]));
    let checksum = adjust_checksum(checksum, 0x5010, 0x5110);
    bytes[50..52].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(coalesce(&frames), ALONE);
}

#[test]
fn push_ends_a_group() {
    let pushed = |at: usize| {
        let mut shapes = run(false, true, 5);
        shapes[at].flags = 0x18;
        coalesce_shapes(&shapes)
    };
    assert_eq!(pushed(0), [&[0][..], &[1, 2, 3, 4]]);
    assert_eq!(pushed(2), [&[0, 1, 2][..], &[3, 4]]);
    assert_eq!(pushed(4), [[0, 1, 2, 3, 4]]);
}

#[test]
fn acknowledgements_without_data_keep_their_place() {
    let mut shapes = run(false, true, 4);
    let next = shapes[2].sequence;
    shapes.insert(2, Shape { sequence: next, ..Shape::new(false, true, 0) });
    assert_eq!(coalesce_shapes(&shapes), ALONE);
    let acks = vec![Shape::new(true, true, 0); 3];
    assert_eq!(coalesce_shapes(&acks), [[0], [1], [2]]);
}

#[test]
fn sequence_numbers_that_are_not_next_begin_anew() {
    let in_order = |order: &[usize]| {
        let shapes = run(false, true, 5);
        coalesce_shapes(&order.iter().map(|at| shapes[*at].clone()).collect::<Vec<_>>())
    };
    assert_eq!(in_order(&[0, 1, 3, 4]), [[0, 1], [2, 3]]);
    assert_eq!(in_order(&[0, 1, 1, 2]), [[0, 1], [2, 3]]);
    assert_eq!(in_order(&[2, 1, 0]), [[0], [1], [2]]);
    let shape = Shape { sequence: u32::MAX - 150, ..Shape::new(true, true, 500) };
    assert_eq!(coalesce_shapes(&shape.segments(100)), [[0, 1, 2, 3, 4]]);
}

#[test]
fn a_short_payload_ends_a_group_and_a_longer_one_begins_one() {
    for tcp in [false, true] {
        let lens = |lens: &[usize]| {
            let mut shape = Shape::new(false, tcp, 0);
            let mut shapes = Vec::new();
            for len in lens {
                shape.payload = vec![3; *len];
                shapes.push(shape.clone());
                shape.sequence += *len as u32;
            }
            coalesce_shapes(&shapes)
        };
        assert_eq!(lens(&[9, 9, 5, 5, 5]), [&[0, 1, 2][..], &[3, 4]]);
        assert_eq!(lens(&[9, 9, 10, 10]), [[0, 1], [2, 3]]);
        assert_eq!(lens(&[5, 9, 5]), [&[0][..], &[1, 2]]);
        assert_eq!(lens(&[9, 0, 9]), [[0], [1], [2]]);
    }
}

#[test]
fn options_extensions_and_fragments_go_as_they_are() {
    for (v6, tcp) in ALL {
        assert_eq!(with_changed(v6, tcp, |shape| shape.extra = true), ALONE);
    }
    for fragment in [0x2000, 1] {
        let mut frames: Vec<_> = run(false, false, 5).iter().map(complete).collect();
        for (frame, _) in &mut frames {
            change_ip(frame, 20, fragment);
        }
        assert_eq!(coalesce(&frames), [[0], [1], [2], [3], [4]]);
    }
}

/// Changes a word of an IPv4 header, and the header's checksum with it.
fn change_ip(frame: &mut [u8], at: usize, new: u16) {
    let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let checksum = adjust_checksum(word(frame, 24), word(frame, at), new);
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// All else holds, the L4 checksum over what the frame has included.
#[test]
fn lengths_that_lie_are_not_corrected() {
    let mut frames: Vec<_> = run(false, true, 5).iter().map(complete).collect();
    change_ip(&mut frames[2].0, 16, 139);
    assert_eq!(coalesce(&frames), ALONE);
    let mut frames: Vec<_> = run(true, true, 5).iter().map(complete).collect();
    frames[2].0[19] -= 1;
    assert_eq!(coalesce(&frames), ALONE);
}

#[test]
fn padding_goes_as_it_is() {
    for (v6, tcp) in ALL {
        let mut frames: Vec<_> = run(v6, tcp, 5).iter().map(complete).collect();
        frames[2].0.push(0);
        assert_eq!(coalesce(&frames), ALONE);
        frames[2].0.truncate(80);
        assert_eq!(coalesce(&frames), ALONE);
    }
    // To the least length of Ethernet.
    let small = Shape::new(false, true, 1).segments(1);
    let mut frames: Vec<_> = small.iter().chain(&small).map(complete).collect();
    frames.iter_mut().for_each(|(bytes, _)| bytes.resize(60, 0));
    assert_eq!(coalesce(&frames), [[0], [1]]);
}

#[test]
fn what_has_no_flow_ends_the_groups_of_its_stations_only() {
    let mut arp = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 6];
    arp.resize(60, 0);
    let mut llc = arp.clone();
    llc[12..14].copy_from_slice(&[0, 38]);
    // ICMP; IP whose claimed length ends in front of the ports.
    let mut icmp = Shape::new(false, false, 40).frame();
    icmp[23] = 1;
    let mut cut = Shape::new(false, false, 40).frame();
    cut[17] = 22;
    for exotic in [&mut arp, &mut llc, &mut icmp, &mut cut] {
        exotic[..12].copy_from_slice(&Shape::new(false, false, 0).frame()[..12]);
        let mut frames: Vec<_> = run(false, true, 4).iter().map(complete).collect();
        frames.insert(2, (exotic.clone(), Checksum::Complete));
        // Another flow of the two stations, tagged.
        let mut other = run(false, false, 2);
        other.iter_mut().for_each(|shape| shape.tags = 1);
        frames.insert(1, complete(&other[0]));
        frames.push(complete(&other[1]));
        assert_eq!(coalesce(&frames), [&[0, 2][..], &[1], &[3], &[4, 5], &[6]]);
        frames[3].0[5] ^= 8;
        assert_eq!(coalesce(&frames), [&[0, 2, 4, 5][..], &[1, 6], &[3]]);
    }
    let mut frames: Vec<_> = run(false, true, 4).iter().map(complete).collect();
    frames.insert(2, (vec![1; 11], Checksum::Complete));
    assert_eq!(coalesce(&frames), [&[0, 1][..], &[2], &[3, 4]]);
}

#[test]
fn flows_stay_apart() {
    for (v6, tcp) in ALL {
        let base = run(v6, tcp, 3);
        type Change = fn(&mut Vec<u8>);
        // Stations; and whatever lies in the other's flow.
        let changes: [Change; 2] = [|frame| frame[0] ^= 8, |frame| frame[11] ^= 1];
        for change in changes {
            let mut frames = Vec::new();
            for shape in &base {
                frames.push(complete(shape));
                let mut other = complete(shape);
                change(&mut other.0);
                frames.push(other);
            }
            assert_eq!(coalesce(&frames), [[0, 2, 4], [1, 3, 5]]);
        }
        let shapes = base.iter().flat_map(|shape| {
            let port = Shape { port: 4001, ..shape.clone() };
            let tagged = Shape { tags: 1, ..shape.clone() };
            [shape.clone(), port, tagged]
        });
        let shapes: Vec<_> = shapes.collect();
        assert_eq!(coalesce_shapes(&shapes), [[0, 3, 6], [1, 4, 7], [2, 5, 8]]);
    }
}

#[test]
fn limits_hold() {
    let mut coalescer = Coalescer::new();
    let mut lens = |v6: bool, tcp: bool, count: usize, size: usize, limits: Limits| {
        let shapes = Shape::new(v6, tcp, (count * size).min(65_000)).segments(size);
        let frames: Vec<_> = shapes.iter().map(complete).collect();
        let groups = coalesce_with(&mut coalescer, &frames, limits);
        groups.iter().map(Vec::len).collect::<Vec<_>>()
    };
    let all = Limits::default();
    assert_eq!(lens(false, true, 5, 10, Limits { max_segments: 2, ..all }), [2, 2, 1]);
    assert_eq!(lens(false, true, 3, 10, Limits { max_segments: 0, ..all }), [1, 1, 1]);
    assert_eq!(lens(false, true, 5, 10, Limits { max_len: 60, ..all }), [2, 2, 1]);
    assert_eq!(lens(true, true, 5, 10, Limits { max_len: 79, ..all }), [1, 1, 1, 1, 1]);
    assert_eq!(lens(false, true, 3, 10, Limits { tcp: false, ..all }), [1, 1, 1]);
    assert_eq!(lens(false, false, 3, 10, Limits { tcp: false, ..all }), [3]);
    assert_eq!(lens(false, false, 3, 10, Limits { udp: false, ..all }), [1, 1, 1]);

    // 65,535 bytes are reached and not exceeded.
    for (v6, headers_len) in [(false, 40), (true, 60)] {
        let size = (65_535 - headers_len) / 5;
        let first = Shape::new(v6, true, size);
        let shapes: Vec<_> = (0..6)
            .map(|at| Shape { sequence: first.sequence + (at * size) as u32, ..first.clone() })
            .collect();
        let limits = Limits { max_len: usize::MAX, ..all };
        let frames: Vec<_> = shapes.iter().map(complete).collect();
        assert_eq!(coalesce_with(&mut coalescer, &frames, limits), [&[0, 1, 2, 3, 4][..], &[5]]);
    }
}

#[test]
fn many_flows_are_searched_within_bounds() {
    let flows = MAX_OPEN + 10;
    let mut shapes = Vec::new();
    for segment in run(false, true, 2) {
        shapes.extend((0..flows).map(|at| Shape { port: at as u16, ..segment.clone() }));
    }
    let mut coalescer = Coalescer::new();
    let frames: Vec<_> = shapes.iter().map(complete).collect();
    let groups = coalesce_with(&mut coalescer, &frames, Limits::default());
    assert!(coalescer.open.len() <= MAX_OPEN);
    let mut all = groups.concat();
    all.sort_unstable();
    assert_eq!(all, (0..2 * flows).collect::<Vec<_>>());
}
