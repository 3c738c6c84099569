//! Properties: streams of frames with whatever may befall them.

use super::tests::{Input, check, coalesce, complete};
use super::*;
use crate::offload::SuperFrame;
use crate::offload::testing::Shape;
use proptest::prelude::*;

/// What happens to one frame of a flow.
#[derive(Debug, Clone, Copy)]
enum Event {
    Nothing,
    Pushed,
    Control(u8),
    Marked,
    Window,
    Repeated,
    Lost,
    Padded,
    Broken,
    Partial,
    Exotic,
    Empty,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Nothing),
        4 => Just(Event::Partial),
        2 => Just(Event::Pushed),
        1 => any::<u8>().prop_map(Event::Control),
        1 => Just(Event::Marked),
        1 => Just(Event::Window),
        1 => Just(Event::Repeated),
        1 => Just(Event::Lost),
        1 => Just(Event::Padded),
        1 => Just(Event::Broken),
        1 => Just(Event::Exotic),
        1 => Just(Event::Empty),
    ]
}

/// The frames of one flow, with what befell them.
fn stream(flow: usize, shape: &Shape, size: usize, events: &[Event]) -> Vec<Input> {
    let whole = Shape {
        port: 4000 + flow as u16,
        payload: vec![flow as u8 + 1; events.len() * size - size / 2],
        ..shape.clone()
    };
    let mut frames = Vec::new();
    for (mut segment, event) in whole.segments(size).into_iter().zip(events) {
        match event {
            Event::Pushed => segment.flags |= 8,
            Event::Control(flags) => segment.flags = *flags,
            Event::Marked => segment.tos |= 3,
            Event::Window => segment.window ^= 1,
            Event::Empty => segment.payload.clear(),
            _ => {}
        }
        let mut frame = complete(&segment);
        match event {
            Event::Partial => frame = segment.partial(),
            Event::Repeated => frames.push(frame.clone()),
            Event::Padded => frame.0.push(0),
            Event::Broken => *frame.0.last_mut().unwrap() ^= 1,
            Event::Exotic => frame.0[12] = 0x88,
            _ => {}
        }
        if !matches!(event, Event::Lost) {
            frames.push(frame);
        }
    }
    frames
}

fn shapes() -> impl Strategy<Value = Shape> {
    (any::<(bool, bool, bool)>(), 0..3_usize, any::<(u16, u32)>(), any::<Option<u32>>()).prop_map(
        |((v6, tcp, df), tags, (id, sequence), timestamp)| Shape {
            df,
            tags,
            id,
            sequence,
            timestamp,
            ..Shape::new(v6, tcp, 0)
        },
    )
}

proptest! {
    /// Whatever befell the frames and however the flows are interleaved: all frames arrive, each
    /// flow's in its order, none overtakes what has no flow, and each is what it was (`check`).
    #[test]
    fn streams_are_the_same(
        flows in prop::collection::vec(
            (shapes(), 1..300_usize, prop::collection::vec(events(), 1..40)), 1..5),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
    ) {
        let mut queues: Vec<_> = flows.iter().enumerate().map(|(flow, (shape, size, events))| {
            (flow, stream(flow, shape, *size, events).into_iter())
        }).collect();
        let (mut frames, mut owners) = (Vec::new(), Vec::new());
        let mut picks = picks.into_iter();
        while !queues.is_empty() {
            let at = picks.next().map_or(0, |pick| pick.index(queues.len()));
            match queues[at].1.next() {
                Some(frame) => {
                    frames.push(frame);
                    owners.push(queues[at].0);
                }
                None => drop(queues.remove(at)),
            }
        }
        let groups = coalesce(&frames);
        prop_assert!(groups.windows(2).all(|pair| pair[0][0] < pair[1][0]));
        let order = groups.concat();
        prop_assert_eq!(order.len(), frames.len());
        for flow in 0..flows.len() {
            let own: Vec<_> = order.iter().filter(|at| owners[**at] == flow).collect();
            prop_assert!(own.is_sorted(), "{:?}", groups);
        }
        for (place, exotic) in order.iter().enumerate() {
            if Flow::find(&frames[*exotic].0).is_none() {
                prop_assert!(order[..place].iter().all(|at| at < exotic));
                prop_assert!(order[place..].iter().all(|at| at >= exotic));
            }
        }
    }

    /// A run without events is as few groups as the limits allow.
    #[test]
    fn cut_super_frames_come_together_again(
        (v6, tcp, tags, partial) in (any::<bool>(), any::<bool>(), 0..3_usize, any::<bool>()),
        (size, count, short) in (2..1000_usize, 2..65_usize, 0..1000_usize),
    ) {
        let payload_len = (count * size).min(65_000) - short % size;
        let shape = Shape { tags, df: false, ..Shape::new(v6, tcp, payload_len) };
        let (whole, place) = shape.partial();
        let segmentation = Segmentation { kind: shape.kind(), size: size as u16, ecn: false };
        let cut = SuperFrame::new(&whole, segmentation, place).unwrap();
        let mut coalescer = Coalescer::new();
        for index in 0..cut.count() {
            let mut out = Vec::new();
            cut.write(index, !partial, &mut out);
            let checksum = if partial { place } else { Checksum::Complete };
            coalescer.add(index, &out, checksum, Limits::default());
        }
        let groups: Vec<_> = coalescer.groups().collect();
        prop_assert_eq!(groups.len(), 1);
        if cut.count() > 1 {
            prop_assert_eq!(groups[0].header, &whole[..cut.header_len()]);
            let expected = Offload { checksum: place, segmentation: Some(segmentation) };
            prop_assert_eq!(groups[0].offload, expected);
        }
    }

    #[test]
    fn any_bytes_are_grouped(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20),
        (start, offset) in any::<(u16, u16)>(),
    ) {
        let place = |at: usize| match at % 2 {
            0 => Checksum::Complete,
            _ => Checksum::Partial { start, offset },
        };
        let mut coalescer = Coalescer::new();
        for (at, frame) in frames.iter().enumerate() {
            coalescer.add(at, frame, place(at), Limits::default());
        }
        prop_assert_eq!(coalescer.groups().map(|group| group.members.len()).sum::<usize>(), frames.len());
    }

    /// Frames that belong together, with a few bytes overwritten, cut or lengthened.
    #[test]
    fn mutated_runs_are_grouped(
        shape in shapes(),
        faults in prop::collection::vec((0..8_usize, 0..110_usize, any::<u8>()), 0..6),
        (victim, len) in (0..8_usize, 0..200_usize),
        partial in any::<bool>(),
    ) {
        let shape = Shape { payload: vec![5; 320], ..shape };
        let segments = shape.segments(40);
        let make = |segment| if partial { Shape::partial(segment) } else { complete(segment) };
        let mut frames: Vec<_> = segments.iter().map(make).collect();
        for (frame, at, byte) in faults {
            if let Some(target) = frames[frame].0.get_mut(at) {
                *target = byte;
            }
        }
        frames[victim].0.resize(len, 0);
        let mut coalescer = Coalescer::new();
        for (at, (frame, checksum)) in frames.iter().enumerate() {
            coalescer.add(at, frame, *checksum, Limits::default());
        }
        for group in coalescer.groups().filter(|group| group.members.len() > 1) {
            let members: Vec<_> = group.members.clone().collect();
            check(&group, &members, &frames);
        }
    }
}
