use super::*;
use crate::wire::fragment;
use proptest::prelude::*;

const KEY: Key = Key { session: 1, peer: 7, lane: 3, epoch: 0 };

/// A piece on its way.
#[derive(Debug, Clone)]
struct Sent {
    key: Key,
    sequence: u32,
    header: FragmentHeader,
    piece: Vec<u8>,
}

/// Content that names its frame in every byte's neighbourhood.
fn content(number: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(31) ^ number.wrapping_mul(77) >> (at % 3)) as u8)
        .collect()
}

fn cut(key: Key, id: u16, first: u32, content: &[u8], max_piece: usize) -> Vec<Sent> {
    let plan = fragment::plan(content.len(), max_piece).unwrap();
    plan.zip(first..)
        .map(|((offset, range, more), sequence)| {
            let header = FragmentHeader { id, more, offset };
            Sent { key, sequence, header, piece: content[range].to_vec() }
        })
        .collect()
}

fn put(
    to: &mut Reassembler,
    pool: &mut BufPool,
    now_ms: u64,
    sent: &Sent,
) -> Result<Option<Vec<u8>>, FragmentDrop> {
    let whole =
        to.insert(now_ms, sent.key, sent.sequence, sent.header, false, &sent.piece, pool)?;
    Ok(whole.map(|whole| {
        let content = whole.buf.data().to_vec();
        pool.free(whole.buf);
        content
    }))
}

/// A pool whose buffers are full of something else.
fn dirty_pool(max_len: usize) -> BufPool {
    let mut pool = BufPool::new(max_len, 100);
    let mut dirty: Vec<_> = (0..100).map(|_| pool.alloc()).collect();
    for mut buf in dirty.drain(..) {
        buf.set_len(max_len);
        buf.data_mut().fill(0xee);
        pool.free(buf);
    }
    pool
}

#[test]
fn joins_pieces_and_their_congestion_marks() {
    let (mut to, mut pool) = (Reassembler::new(), dirty_pool(2048));
    let frame = content(1, 1516);
    let [first, second] = cut(KEY, 9, 40, &frame, 1440).try_into().unwrap();
    let mut insert = |sent: &Sent, ce| {
        to.insert(0, sent.key, sent.sequence, sent.header, ce, &sent.piece, &mut pool)
    };
    assert!(insert(&second, true).unwrap().is_none());
    let whole = insert(&first, false).unwrap().unwrap();
    assert_eq!(whole.buf.data(), frame);
    assert_eq!(whole.buf.capacity(), 2048, "from the pool");
    assert!(whole.ecn_ce);
    let idle = pool.idle();
    pool.free(whole.buf);
    assert_eq!(pool.idle(), idle + 1);
    assert_eq!((to.open_frames(), to.peer_memory(7)), (0, 0));
}

#[test]
fn frames_beyond_the_pool_get_buffers_of_their_own() {
    let (mut to, mut pool) = (Reassembler::new(), dirty_pool(2048));
    for len in [2049, 9018, MAX_CONTENT_LEN] {
        let frame = content(2, len);
        for order in [false, true] {
            let mut pieces = cut(KEY, 1, 0, &frame, 1440);
            if order {
                pieces.reverse();
            }
            let (end, rest) = pieces.split_last().unwrap();
            for sent in rest {
                assert_eq!(put(&mut to, &mut pool, 0, sent), Ok(None));
                assert!(to.peer_memory(7) <= MAX_CONTENT_LEN);
            }
            assert_eq!(put(&mut to, &mut pool, 0, end), Ok(Some(frame.clone())));
        }
    }
    assert_eq!(pool.idle(), 100, "those of the pool went back");
}

#[test]
fn time_is_limited_and_counted() {
    let (mut to, mut pool) = (Reassembler::new(), dirty_pool(2048));
    let pieces = cut(KEY, 1, 0, &content(1, 3000), 1000);
    assert_eq!(put(&mut to, &mut pool, 1_000, &pieces[0]), Ok(None));
    assert_eq!(put(&mut to, &mut pool, 1_199, &pieces[1]), Ok(None));
    to.expire(1_199, &mut pool);
    assert_eq!((to.open_frames(), to.take_dropped().count()), (1, 0));
    // Enforced at insertion too: what comes too late begins anew and never ends.
    assert_eq!(put(&mut to, &mut pool, 1_200, &pieces[2]), Ok(None));
    assert_eq!(to.take_dropped().collect::<Vec<_>>(), [(FragmentDrop::Expired, 1)]);
    to.expire(1_400, &mut pool);
    assert_eq!(to.take_dropped().collect::<Vec<_>>(), [(FragmentDrop::Expired, 1)]);
    assert_eq!((to.open_frames(), to.peer_memory(7), to.take_dropped().count()), (0, 0, 0));
    to.expire(1_200 + LANE_IDLE_MS, &mut pool);
    assert!(to.lanes.is_empty());
}

#[test]
fn oldest_of_a_full_lane_gives_way() {
    let (mut to, mut pool) = (Reassembler::new(), dirty_pool(2048));
    let frame = content(1, 100);
    let begun: Vec<_> =
        (0..=MAX_OPEN_PER_LANE as u32).map(|n| cut(KEY, n as u16, n * 2, &frame, 56)).collect();
    for sent in &begun {
        assert_eq!(put(&mut to, &mut pool, 0, &sent[0]), Ok(None));
    }
    assert_eq!(to.open_frames(), MAX_OPEN_PER_LANE);
    assert_eq!(to.take_dropped().collect::<Vec<_>>(), [(FragmentDrop::TooMany, 1)]);
    assert_eq!(put(&mut to, &mut pool, 0, &begun[1][1]), Ok(Some(frame)));
    // Another lane has a bound of its own.
    let other = cut(Key { lane: 4, ..KEY }, 0, 0, &content(1, 100), 56);
    assert_eq!(put(&mut to, &mut pool, 0, &other[0]), Ok(None));
    assert_eq!(to.take_dropped().count(), 0);
}

#[test]
fn memory_of_one_peer_is_limited() {
    let (mut to, mut pool) = (Reassembler::new(), dirty_pool(2048));
    to.set_peer_memory(20_000);
    let begin = |n: u32, peer| {
        let key = Key { peer, lane: n as u8, ..KEY };
        cut(key, 0, 0, &content(n, 4000), 2000).remove(0)
    };
    for n in 0..9 {
        assert_eq!(put(&mut to, &mut pool, 0, &begin(n, 7)), Ok(None));
    }
    assert_eq!(to.peer_memory(7), 9 * 2048);
    assert_eq!(put(&mut to, &mut pool, 0, &begin(9, 7)), Err(FragmentDrop::NoMemory));
    let other = Key { session: 2, peer: 8, ..KEY };
    let other = cut(other, 0, 0, &content(1, 4000), 2000);
    assert_eq!(put(&mut to, &mut pool, 0, &other[0]), Ok(None), "another peer has its own");
    // A frame that cannot grow is over.
    let grown = cut(KEY, 0, 0, &content(0, 4000), 2000).remove(1);
    let grown = Sent { key: Key { lane: 0, ..KEY }, ..grown };
    assert_eq!(put(&mut to, &mut pool, 0, &grown), Err(FragmentDrop::NoMemory));
    assert_eq!((to.peer_memory(7), to.open_frames()), (8 * 2048, 9));
    assert_eq!(to.take_dropped().count(), 0);
    // What is too old in any lane goes before a new one is refused.
    assert_eq!(put(&mut to, &mut pool, 100, &begin(20, 7)), Ok(None));
    assert_eq!(put(&mut to, &mut pool, 250, &begin(21, 7)), Ok(None));
    assert_eq!(to.peer_memory(7), 2 * 2048);
    assert_eq!(to.take_dropped().collect::<Vec<_>>(), [(FragmentDrop::Expired, 9)]);
}

#[test]
fn sessions_end_with_their_frames() {
    let (mut to, mut pool) = (Reassembler::new(), dirty_pool(2048));
    for session in [1, 1, 2] {
        let key = Key { session, lane: to.open_frames() as u8, ..KEY };
        let first = cut(key, 0, 0, &content(1, 100), 56).remove(0);
        assert_eq!(put(&mut to, &mut pool, 0, &first), Ok(None));
    }
    to.forget_session(1, &mut pool);
    assert_eq!(to.take_dropped().collect::<Vec<_>>(), [(FragmentDrop::Expired, 2)]);
    assert_eq!((to.open_frames(), to.peer_memory(7), to.lanes.len()), (1, 2048, 1));
}

/// What follows a frame of three pieces of 16 (first number 100), of which some came.
#[track_caller]
fn follows(came: &[usize], sequence: u32, header: (usize, bool), len: usize) -> (Fit, usize) {
    let (mut to, mut pool) = (Reassembler::new(), dirty_pool(2048));
    let pieces = cut(KEY, 5, 100, &content(1, 40), 16);
    for at in came {
        assert_eq!(put(&mut to, &mut pool, 0, &pieces[*at]), Ok(None));
    }
    let header = FragmentHeader { id: 5, more: header.1, offset: header.0 };
    let outcome =
        put(&mut to, &mut pool, 0, &Sent { key: KEY, sequence, header, piece: vec![1; len] });
    let fit = match outcome {
        Err(FragmentDrop::Invalid) => Fit::Contradiction,
        Err(FragmentDrop::Duplicate) => Fit::Duplicate,
        Ok(_) if to.take_dropped().any(|(reason, _)| reason == FragmentDrop::TooMany) => {
            Fit::Stranger
        }
        Ok(_) => Fit::New,
        Err(other) => panic!("{other:?}"),
    };
    (fit, to.open_frames())
}

#[test]
fn contradictions_drop_the_frame() {
    let dropped = (Fit::Contradiction, 0);
    // By themselves.
    assert_eq!(follows(&[0], 101, (16, true), 0), dropped, "no bytes");
    assert_eq!(follows(&[0], 102, (32, false), 0), dropped, "no bytes at the end");
    assert_eq!(follows(&[0], 101, (16, true), 12), dropped, "length no multiple of 8");
    assert_eq!(follows(&[0], 101, (8, true), 16), dropped, "offset no multiple of the length");
    assert_eq!(follows(&[0], 163, (63 * 16, true), 16), dropped, "a piece after the 64th");
    assert_eq!(follows(&[0], 0, (16, true), 16), dropped, "numbers before 0");
    assert_eq!(follows(&[0], 101, (65_528, false), 16), dropped, "too long");
    // With the others.
    assert_eq!(follows(&[0], 101, (8, true), 8), dropped, "another length, overlapping");
    assert_eq!(follows(&[0], 101, (16, false), 24), dropped, "last one longer than the others");
    assert_eq!(follows(&[0], 102, (24, false), 8), dropped, "last one not where it must be");
    assert_eq!(follows(&[0, 2], 103, (48, true), 16), dropped, "a piece beyond the end");
    assert_eq!(follows(&[0, 2], 102, (32, true), 16), dropped, "a piece in place of the end");
    assert_eq!(follows(&[0, 2], 101, (16, false), 8), dropped, "another end");
    assert_eq!(follows(&[0, 2], 102, (32, false), 7), dropped, "the same end, other length");
    assert_eq!(follows(&[0, 1], 101, (16, false), 16), dropped, "an end where a piece is");
    assert_eq!(follows(&[2], 102, (32, false), 7), dropped, "the same end, other length");
    assert_eq!(follows(&[2], 100, (0, true), 8), dropped, "too short for this end");
}

#[test]
fn pieces_of_another_frame_with_the_id_begin_it() {
    let anew = (Fit::Stranger, 1);
    assert_eq!(follows(&[0], 110, (0, true), 16), anew);
    assert_eq!(follows(&[0], 112, (16, true), 16), anew);
    assert_eq!(follows(&[0], 5_000, (32, false), 8), anew, "a far number is another frame's");
    assert_eq!(follows(&[0], 7, (32, false), 8), anew);
    assert_eq!(follows(&[2], 5_000, (0, true), 16), anew);
    assert_eq!(follows(&[2], 103, (48, false), 8), anew);
    assert_eq!(follows(&[0], 9_000, (0, false), 30), (Fit::Stranger, 0), "whole by itself");
    assert_eq!(follows(&[0, 1], 101, (16, true), 16), (Fit::Duplicate, 1));
    assert_eq!(follows(&[2], 102, (32, false), 8), (Fit::Duplicate, 1));
    assert_eq!(follows(&[1, 2], 100, (0, true), 16), (Fit::New, 0));
}

/// Reorders by sorting on drawn keys: pieces stay within `spread` places of their own.
fn shuffle(sent: &mut [Sent], mut seed: u64, spread: u64) {
    let mut draw = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut order: Vec<(u64, usize)> =
        (0..sent.len()).map(|at| (at as u64 + draw() % spread, at)).collect();
    order.sort_unstable();
    let moved: Vec<_> = order.iter().map(|(_, at)| sent[*at].clone()).collect();
    sent.clone_from_slice(&moved);
}

proptest! {
    #[test]
    fn whole_frames_come_out_exactly(
        lens in prop::collection::vec((1usize..4_000, 100usize..2_000, 0u8..2), 1..60),
        first_id in any::<u16>(),
        reused in any::<bool>(),
        loss in 0u8..30,
        copies in 0u8..30,
        spread in 1u64..40,
        fates in prop::collection::vec(0u8..100, 2_000),
        seed in any::<u64>(),
    ) {
        let (mut to, mut pool) = (Reassembler::new(), dirty_pool(1024));
        let (mut next, mut sent, mut frames) = ([0u32; 2], Vec::new(), Vec::new());
        for (number, (len, max_piece, lane)) in lens.into_iter().enumerate() {
            let key = Key { lane, ..KEY };
            // Ids that wrap; or, worse than any sender, one id in four for all.
            let id = if reused { number as u16 % 4 } else { first_id.wrapping_add(number as u16) };
            let frame = content(number as u32, len);
            let from = &mut next[usize::from(lane)];
            let pieces = cut(key, id, *from, &frame, max_piece);
            *from += pieces.len() as u32 + u32::from(lane);
            frames.push((key.lane, frame, pieces.len()));
            sent.extend(pieces);
        }
        let mut lost: HashMap<(u8, u32), ()> = HashMap::new();
        let mut arriving = Vec::new();
        for (piece, fate) in sent.iter().zip(fates.iter().cycle()) {
            if *fate < loss {
                lost.insert((piece.key.lane, piece.sequence), ());
                continue;
            }
            arriving.push(piece.clone());
            if *fate >= 100 - copies {
                arriving.push(piece.clone());
            }
        }
        shuffle(&mut arriving, seed, spread);
        let (mut out, mut accepted) = (Vec::new(), 0);
        for piece in &arriving {
            match put(&mut to, &mut pool, 0, piece) {
                Ok(Some(whole)) => out.push((piece.key.lane, whole)),
                Ok(None) => accepted += 1,
                Err(reason) => {
                    prop_assert!(reason == FragmentDrop::Duplicate || reused, "{reason:?}");
                }
            }
            prop_assert!(to.peer_memory(7) <= DEFAULT_PEER_MEMORY);
            prop_assert!(to.open_frames() <= 2 * MAX_OPEN_PER_LANE);
        }
        prop_assert!(accepted <= arriving.len());
        // Never a mixture: everything that came out went in.
        let known = |(lane, whole): &(u8, Vec<u8>)| {
            frames.iter().any(|(of, frame, _)| of == lane && frame == whole)
        };
        prop_assert!(out.iter().all(known));
        // All that arrived whole came out, where no frame had to give way.
        if !reused {
            let mut at = [0u32; 2];
            for (lane, frame, pieces) in &frames {
                let from = at[usize::from(*lane)];
                at[usize::from(*lane)] += *pieces as u32 + u32::from(*lane);
                let complete = (from..from + *pieces as u32).all(|n| !lost.contains_key(&(*lane, n)));
                let came = out.iter().any(|(of, whole)| of == lane && whole == frame);
                prop_assert_eq!(came, complete);
            }
        }
        to.expire(1_000, &mut pool);
        prop_assert_eq!((to.open_frames(), to.peer_memory(7)), (0, 0));
    }

    #[test]
    fn hostile_pieces_stay_within_the_bounds(
        pieces in prop::collection::vec(
            (
                (0u64..2, 0u8..3, 0u32..2, 0u32..80),
                (0u16..3, any::<bool>(), 0usize..8_192),
                prop_oneof![0usize..40, 0usize..70_000, Just(8), Just(1_024)],
                0u64..20,
            ),
            1..400,
        ),
        max_len in 1usize..3_000,
    ) {
        let (mut to, mut pool) = (Reassembler::new(), BufPool::new(max_len, 8));
        to.set_peer_memory(200_000);
        let (mut now_ms, bytes) = (0, vec![7; 70_000]);
        for ((session, lane, epoch, sequence), (id, more, units), len, wait) in pieces {
            now_ms += wait;
            let key = Key { session, peer: session as u32, lane, epoch };
            let header = FragmentHeader { id, more, offset: units * 8 % 4_096 };
            let outcome =
                to.insert(now_ms, key, sequence, header, false, &bytes[..len], &mut pool);
            if let Ok(Some(whole)) = outcome {
                prop_assert!(whole.buf.len() <= MAX_CONTENT_LEN);
                prop_assert!(whole.buf.data().iter().all(|byte| *byte == 7));
                pool.free(whole.buf);
            }
            let held: usize = to.lanes.values().flat_map(|lane| &lane.open)
                .filter(|open| open.peer == session as u32)
                .map(|open| open.buf.capacity())
                .sum();
            prop_assert_eq!(held, to.peer_memory(session as u32));
            prop_assert!(held <= 200_000);
            let open: usize = to.lanes.values().map(|lane| lane.open.len()).sum();
            prop_assert_eq!(open, to.open_frames());
        }
    }
}
