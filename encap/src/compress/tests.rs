//! Compression: what it gains, when it rests, and what a hostile peer can make of it.

use proptest::prelude::*;

use super::*;

fn compressor() -> Compressor {
    Compressor::new(Arc::default())
}

fn text(len: usize) -> Vec<u8> {
    b"GET /index.html HTTP/1.1\r\nHost: tapd.example\r\n"
        .iter()
        .copied()
        .cycle()
        .take(len)
        .collect()
}

/// Bytes that nothing compresses (xorshift64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn open(payload: &[u8]) -> Result<(Kind, Vec<u8>), CompressionFault> {
    let compressed = Compressed::read(payload)?;
    let mut out = vec![0xee; compressed.len()];
    Decompressor::new(Arc::default()).unwrap().decompress(&compressed, &mut out)?;
    Ok((compressed.inner(), out))
}

/// One block: `kind` is 0 raw, 1 one byte many times, 2 compressed.
fn block(last: bool, kind: u32, size: u32, stored: &[u8]) -> Vec<u8> {
    let word = size << 3 | kind << 1 | u32::from(last);
    [&word.to_le_bytes()[..3], stored].concat()
}

/// A payload of kind 0 with a frame of these blocks, for a content of `len` bytes.
fn payload(len: usize, blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = vec![0];
    payload.extend((len as u16).to_be_bytes());
    match len.checked_sub(LONG_CONTENT_BASE) {
        Some(above) => {
            payload.push(LONG_CONTENT);
            payload.extend((above as u16).to_le_bytes());
        }
        None => payload.extend([SHORT_CONTENT, len as u8]),
    }
    payload.extend(blocks.concat());
    payload
}

#[test]
fn what_repeats_itself_is_shorter_and_comes_back() {
    for len in [MIN_ORIGINAL_LEN, 255, 256, 1_400, 9_000, MAX_ORIGINAL_LEN] {
        for level in [1, 3, 9, 19].map(|level| Level::new(level).unwrap()) {
            for inner in [Kind::Frame, Kind::Bundle, Kind::FramePartialChecksum] {
                let mut compressor = compressor();
                let mut out = b"before".to_vec();
                assert!(compressor.try_compress(level, 1, inner, &text(len), &mut out));
                let written = out.strip_prefix(b"before").unwrap();
                assert!(written.len() <= len - len.div_ceil(LEAST_GAIN), "{len} {level:?}");
                assert_eq!(open(written), Ok((inner, text(len))));
            }
        }
    }
}

#[test]
fn what_is_short_long_or_of_another_kind_is_left_alone() {
    let mut compressor = compressor();
    let mut out = vec![1, 2, 3];
    let mut attempt = |inner, len| {
        assert!(!compressor.try_compress(Level::default(), 1, inner, &text(len), &mut out));
        assert_eq!(out, [1, 2, 3]);
    };
    attempt(Kind::Frame, MIN_ORIGINAL_LEN - 1);
    attempt(Kind::Frame, MAX_ORIGINAL_LEN + 1);
    for kind in [Kind::FrameWithVni, Kind::Fragment, Kind::Control, Kind::Probe, Kind::Compressed] {
        attempt(kind, 1_000);
    }
    let counters = &compressor.counters;
    let all = [&counters.compressed, &counters.compress_skipped, &counters.compress_misses];
    assert_eq!(all.map(crate::stats::Counter::get), [0; 3], "nor counted");
}

#[test]
fn a_flow_of_noise_is_tried_ever_more_seldom() {
    let mut compressor = compressor();
    let noise = noise(1, 1_000);
    let mut out = Vec::new();
    let mut tried = Vec::new();
    for number in 0..6_000 {
        let before = compressor.counters.compress_misses.get();
        assert!(!compressor.try_compress(Level::default(), 7, Kind::Frame, &noise, &mut out));
        if compressor.counters.compress_misses.get() > before {
            tried.push(number);
        }
    }
    assert_eq!(tried, [0, 2, 5, 10, 19, 36, 69, 134, 263, 520, 1_033, 2_058, 3_083, 4_108, 5_133]);
    assert_eq!(compressor.counters.compress_skipped.get(), 6_000 - tried.len() as u64);
    // Another flow is none the worse for it.
    assert!(compressor.try_compress(Level::default(), 8, Kind::Frame, &text(1_000), &mut out));
    // What becomes text is found again, and tried every time from then on.
    let mut shorter = 0;
    for _ in 0..1_024 + 10 {
        let flow = (Level::default(), 7, Kind::Frame);
        shorter += u64::from(compressor.try_compress(flow.0, flow.1, flow.2, &text(999), &mut out));
    }
    assert!(shorter >= 10, "{shorter}");
    assert!(!compressor.try_compress(Level::default(), 7, Kind::Frame, &noise, &mut out));
    let skipped = compressor.counters.compress_skipped.get();
    assert!(!compressor.try_compress(Level::default(), 7, Kind::Frame, &noise, &mut out));
    assert!(!compressor.try_compress(Level::default(), 7, Kind::Frame, &noise, &mut out));
    assert_eq!(compressor.counters.compress_skipped.get(), skipped + 1, "from the beginning");
}

#[test]
fn flows_are_spread_whatever_the_hash() {
    let mut misses = Misses::new();
    for spread in [1_u64, 1 << 16, 1 << 32, 1 << 54] {
        for flow in 0..PLACES as u64 {
            misses.place(flow * spread).note(false);
        }
        let used = misses.0.iter().filter(|place| place.left > 0).count();
        assert!(used > PLACES / 3, "{spread}: {used}");
        misses = Misses::new();
    }
}

#[test]
fn gains_and_losses_are_counted() {
    let mut compressor = compressor();
    let mut out = Vec::new();
    assert!(compressor.try_compress(Level::default(), 1, Kind::Frame, &text(1_000), &mut out));
    let counters = &compressor.counters;
    assert_eq!((counters.compressed.get(), counters.compress_bytes_in.get()), (1, 1_000));
    assert_eq!(counters.compress_bytes_out.get(), out.len() as u64);
    let counters = Arc::<Counters>::default();
    let mut decompressor = Decompressor::new(Arc::clone(&counters)).unwrap();
    let compressed = Compressed::read(&out).unwrap();
    let mut whole = vec![0; 1_000];
    assert_eq!(decompressor.decompress(&compressed, &mut whole), Ok(()));
    assert_eq!((counters.decompressed.get(), counters.decompress_bytes_out.get()), (1, 1_000));
    assert_eq!(counters.decompress_bytes_in.get(), out.len() as u64);
    // The place must be the right one, and a failure counts for nothing.
    for len in [999, 1_001, 0] {
        let fault = decompressor.decompress(&compressed, &mut vec![0; len]);
        assert_eq!(fault, Err(CompressionFault::Content));
    }
    assert_eq!(counters.decompressed.get(), 1);
}

#[test]
fn levels_are_those_of_zstandard() {
    assert_eq!(Level::new(0), None);
    assert_eq!(Level::new(20), None);
    assert_eq!(Level::new(19).map(Level::get), Some(19));
    assert_eq!(Level::default().get(), 1);
}

#[test]
fn frames_by_hand_are_decoded() {
    let zeros = |len: usize| payload(len, &[block(true, 1, len as u32, &[0])]);
    assert_eq!(open(&zeros(1)), Ok((Kind::Frame, vec![0])));
    assert_eq!(open(&zeros(300)), Ok((Kind::Frame, vec![0; 300])));
    // The most that one datagram can become: 65,535 bytes of 10.
    assert_eq!(open(&zeros(MAX_ORIGINAL_LEN)), Ok((Kind::Frame, vec![0; MAX_ORIGINAL_LEN])));
    let two = [block(false, 0, 4, b"abcd"), block(true, 1, 6, b"x")];
    assert_eq!(open(&payload(10, &two)), Ok((Kind::Frame, b"abcdxxxxxx".to_vec())));
}

#[test]
fn sec_what_no_sender_makes_is_refused_before_it_is_decoded() {
    let good = payload(300, &[block(true, 1, 300, &[0])]);
    assert!(Compressed::read(&good).is_ok());
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Compressed::read(&bytes).map(|_| ())
    };
    // Nested, or of a kind that has other rules.
    for code in [1, 2, 4, 5, 7, 10, 11, 255] {
        assert_eq!(changed(0, code), Err(CompressionFault::Kind(code)));
    }
    // Another length than the frame says.
    assert_eq!(changed(2, 45), Err(CompressionFault::Header));
    assert_eq!(changed(4, 45), Err(CompressionFault::Header));
    // Every other descriptor: windows, dictionaries, checksums, sizes of 4 and 8 bytes.
    for descriptor in (0..=255).filter(|descriptor| *descriptor != LONG_CONTENT) {
        assert_ne!(changed(3, descriptor), Ok(()), "{descriptor:#x}");
    }
    // The reserved type of block.
    assert_eq!(changed(6, good[6] | 6), Err(CompressionFault::Blocks));
    // Cut anywhere, or with anything behind: a byte, an empty frame, a skippable one, another whole.
    for len in 0..good.len() {
        assert!(Compressed::read(&good[..len]).is_err(), "{len}");
    }
    let empty = [&[SHORT_CONTENT, 0][..], &block(true, 0, 0, &[])].concat();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for tail in [&[0][..], &empty, &skippable, &good[3..]] {
        let bytes = [&good[..], tail].concat();
        assert_eq!(Compressed::read(&bytes), Err(CompressionFault::Blocks));
    }
    // Nothing at all is no payload of any kind.
    let nothing = payload(0, &[block(true, 0, 0, &[])]);
    assert_eq!(Compressed::read(&nothing), Err(CompressionFault::Header));
    // With the magic number, as files have it.
    let file = [&good[..3], &[0x28, 0xb5, 0x2f, 0xfd], &good[3..]].concat();
    assert_eq!(Compressed::read(&file), Err(CompressionFault::Header));
}

#[test]
fn sec_a_bomb_has_no_more_room_than_its_header_says() {
    let most = 0x1f_ffff;
    let bomb = |len: usize, size: u32, count: usize| {
        let mut blocks = vec![block(false, 1, size, &[0]); count];
        blocks.push(block(true, 1, size, &[0]));
        payload(len, &blocks)
    };
    // Blocks of 2 MiB, of 128 KiB a hundred times, of one byte too much and too little.
    for (len, size, count) in [
        (300, most, 0),
        (300, 128 << 10, 100),
        (65_535, 128 << 10, 300),
        (300, 301, 0),
        (300, 299, 0),
    ] {
        let bytes = bomb(len, size, count);
        let compressed = Compressed::read(&bytes).unwrap();
        assert_eq!(compressed.len(), len);
        // What stands behind the place must not be written to.
        let mut memory = vec![0xee; len + 64];
        let (out, behind) = memory.split_at_mut(len);
        let mut decompressor = Decompressor::new(Arc::default()).unwrap();
        assert_eq!(decompressor.decompress(&compressed, out), Err(CompressionFault::Content));
        assert!(behind.iter().all(|byte| *byte == 0xee), "{len} {size} {count}");
        // The same decoder goes on as if nothing had been.
        let good = payload(300, &[block(true, 1, 300, &[9])]);
        let mut out = [0; 300];
        let compressed = Compressed::read(&good).unwrap();
        assert_eq!(decompressor.decompress(&compressed, &mut out), Ok(()));
        assert_eq!(out, [9; 300]);
    }
}

proptest! {
    #[test]
    fn any_payload_comes_back_or_stays(
        parts in prop::collection::vec((any::<u64>(), 1usize..400, 1usize..20), 1..12),
        level in 1u8..=6,
    ) {
        let bytes: Vec<u8> =
            parts.iter().flat_map(|(seed, len, times)| noise(*seed, *len).repeat(*times)).collect();
        let bytes = &bytes[..bytes.len().min(MAX_ORIGINAL_LEN)];
        let mut out = Vec::new();
        let level = Level::new(level).unwrap();
        if compressor().try_compress(level, 1, Kind::Bundle, bytes, &mut out) {
            prop_assert!(out.len() + bytes.len() / LEAST_GAIN <= bytes.len());
            prop_assert_eq!(open(&out), Ok((Kind::Bundle, bytes.to_vec())));
        } else {
            prop_assert!(out.is_empty());
        }
    }

    #[test]
    fn damaged_payloads_are_refused_or_of_their_length(
        len in 200usize..3_000,
        changes in prop::collection::vec((any::<u16>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = Vec::new();
        prop_assert!(compressor().try_compress(Level::default(), 1, Kind::Frame, &text(len), &mut bytes));
        for (at, with) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= with;
        }
        if let Ok((kind, out)) = open(&bytes) {
            prop_assert!(is_compressible(kind));
            prop_assert!((1..=MAX_ORIGINAL_LEN).contains(&out.len()));
        }
    }

    #[test]
    fn any_bytes_behind_a_header_are_refused_or_of_their_length(
        len in 1usize..2_000,
        tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        // One compressed block of anything: what the decoder itself must stand.
        let blocks = [block(true, 2, tail.len() as u32, &tail)];
        if let Ok((_, out)) = open(&payload(len, &blocks)) {
            prop_assert_eq!(out.len(), len);
        }
    }
}
