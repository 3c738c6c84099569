//! Compressed payloads: kind 10, for who has more processor than line.
//!
//! ```text
//!  0                   1                   2
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3
//! |  inner kind   |      original length (16)      |
//! |  Zstandard frame (RFC 8878), without magic number ...
//! ```
//!
//! Big-endian. What is compressed is the payload of the inner kind: 0, 3 or 9. Each datagram is
//! compressed for itself, for others may be lost or overtake it. Rules Z1 and Z2 are in
//! `docs/protocol.md`.
//!
//! The decoder is C, and so it gets as little to read as can be: only what is authentic, and of
//! that only frames whose header is the one of two that a sender of ours makes, whose blocks end
//! where the payload does, and whose result has a place of exactly its size.
//!
//! Next: [`crate::wire::fragment`] or [`crate::crypto::seal`] on the way out; on the way in the
//! result is taken as if it had come in a datagram of the inner kind.

use std::sync::Arc;

use zstd::bulk;
use zstd::zstd_safe::{CParameter, DParameter, FrameFormat};

use crate::stats::Counters;
use crate::wire::header::Kind;

/// Bytes in front of the Zstandard frame.
pub const COMPRESSED_HEADER_LEN: usize = 3;
/// Longest payload in bytes that is compressed, and that is made of what came.
pub const MAX_ORIGINAL_LEN: usize = 65_535;
/// Shortest payload in bytes that is worth trying: headers of a packet hardly repeat themselves.
pub const MIN_ORIGINAL_LEN: usize = 128;
/// What came out must be shorter by this part of the payload, or it was not worth it.
const LEAST_GAIN: usize = 16;

/// Frame header descriptor (RFC 8878 section 3.1.1.1.1) of a single segment without checksum and
/// dictionary, whose content size has one byte.
const SHORT_CONTENT: u8 = 0x20;
/// The same, with two bytes, to which 256 is added.
const LONG_CONTENT: u8 = 0x60;
const LONG_CONTENT_BASE: usize = 256;
/// Bytes in front of each block.
const BLOCK_HEADER_LEN: usize = 3;
/// A window that holds every payload: log2 of bytes.
const WINDOW_LOG: u32 = 16;

const _: () = assert!(MAX_ORIGINAL_LEN < 1 << WINDOW_LOG);

/// How hard to try: a level of Zstandard, 1 (fast) to 19 (small).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(u8);

impl Level {
    /// The fastest.
    pub const MIN: u8 = 1;
    /// The slowest: tens of milliseconds for one large frame.
    pub const MAX: u8 = 19;

    /// A level, unless there is none of that number.
    #[must_use]
    pub const fn new(level: u8) -> Option<Self> {
        if level < Self::MIN || level > Self::MAX { None } else { Some(Self(level)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Level {
    fn default() -> Self {
        Self(Self::MIN)
    }
}

/// Why a payload of kind 10 was not decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompressionFault {
    /// It ends inside its header, or has none that a sender makes.
    #[error("compressed payload with another header than senders make")]
    Header,
    /// The inner kind is none that is compressed.
    #[error("compressed payload of kind {0}")]
    Kind(u8),
    /// The blocks of the frame do not end where the payload ends.
    #[error("compressed payload with blocks that end elsewhere")]
    Blocks,
    /// The frame does not decode to what its header says.
    #[error("compressed payload that does not decode")]
    Content,
}

/// Whether a payload of this kind may be compressed.
const fn is_compressible(kind: Kind) -> bool {
    matches!(kind, Kind::Frame | Kind::Bundle | Kind::FramePartialChecksum)
}

/// A payload of kind 10 as far as it can be checked without decoding (rule Z1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressed<'a> {
    inner: Kind,
    len: usize,
    frame: &'a [u8],
}

impl<'a> Compressed<'a> {
    /// Checks all that stands around the compressed bytes.
    ///
    /// # Errors
    /// [`CompressionFault`], any but [`CompressionFault::Content`].
    pub fn read(payload: &'a [u8]) -> Result<Self, CompressionFault> {
        let (header, frame) =
            payload.split_first_chunk::<COMPRESSED_HEADER_LEN>().ok_or(CompressionFault::Header)?;
        let [code, high, low] = *header;
        let inner = Kind::from_code(code).filter(|kind| is_compressible(*kind));
        let inner = inner.ok_or(CompressionFault::Kind(code))?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        let (content, blocks) = content_len(frame).ok_or(CompressionFault::Header)?;
        if content != len || len == 0 {
            return Err(CompressionFault::Header);
        }
        if !is_one_list(blocks) {
            return Err(CompressionFault::Blocks);
        }
        Ok(Self { inner, len, frame })
    }

    /// The kind that the result is a payload of: 0, 3 or 9.
    #[must_use]
    pub const fn inner(&self) -> Kind {
        self.inner
    }

    /// Bytes of the result, 1 to [`MAX_ORIGINAL_LEN`].
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // it never is
    pub const fn len(&self) -> usize {
        self.len
    }
}

/// The content size that a frame header says, and the blocks behind it. The window of such a frame
/// is its content, so that none can ask for a larger one.
fn content_len(frame: &[u8]) -> Option<(usize, &[u8])> {
    match *frame {
        [SHORT_CONTENT, len, ref blocks @ ..] => Some((usize::from(len), blocks)),
        [LONG_CONTENT, low, high, ref blocks @ ..] => {
            Some((usize::from(u16::from_le_bytes([low, high])) + LONG_CONTENT_BASE, blocks))
        }
        _ => None,
    }
}

/// Whether the last block ends where the bytes do: the decoder would go on behind it with another
/// frame. Block headers are little-endian: last (1), type (2), size (21).
fn is_one_list(mut blocks: &[u8]) -> bool {
    while let Some(([low, middle, high], rest)) = blocks.split_first_chunk::<BLOCK_HEADER_LEN>() {
        let word = u32::from_le_bytes([*low, *middle, *high, 0]);
        let size = word >> 3;
        // Raw, one byte many times, compressed; the last type is reserved.
        let stored = match word >> 1 & 3 {
            0 | 2 => size as usize,
            1 => 1,
            _ => return false,
        };
        let Some(rest) = rest.get(stored..) else { return false };
        if word & 1 == 1 {
            return rest.is_empty();
        }
        blocks = rest;
    }
    false
}

/// A worker's decoder. Its memory, some 140 KiB, is taken once.
pub struct Decompressor {
    context: bulk::Decompressor<'static>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Decompressor {
    /// A decoder that counts there; none when there is no memory for it.
    #[must_use]
    pub fn new(counters: Arc<Counters>) -> Option<Self> {
        let mut context = bulk::Decompressor::new().ok()?;
        context.set_parameter(DParameter::Format(FrameFormat::Magicless)).ok()?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).ok()?;
        Some(Self { context, counters })
    }

    /// Fills `out`, which has [`Compressed::len`] bytes, with the payload of the inner kind. After an
    /// error `out` holds anything.
    ///
    /// # Errors
    /// [`CompressionFault::Content`], also for an `out` of another length.
    pub fn decompress(
        &mut self,
        payload: &Compressed<'_>,
        out: &mut [u8],
    ) -> Result<(), CompressionFault> {
        if out.len() != payload.len {
            return Err(CompressionFault::Content);
        }
        let written = self.context.decompress_to_buffer(payload.frame, out);
        if written.ok() != Some(payload.len) {
            return Err(CompressionFault::Content);
        }
        self.counters.decompressed.add(1);
        self.counters.decompress_bytes_in.add((COMPRESSED_HEADER_LEN + payload.frame.len()) as u64);
        self.counters.decompress_bytes_out.add(payload.len as u64);
        Ok(())
    }
}

/// Number of places in [`Misses`]; flows that share one share their luck.
const PLACES: usize = 1_024;
/// Largest power of two of payloads that are passed over: 1,024.
const MAX_DOUBLINGS: u8 = 10;

/// Flows that do not compress: what is encrypted or compressed already stays so for the life of its
/// connection.
///
/// A payload that was tried in vain lets the next one of its flow pass untried, the second in a row
/// the next 2, and so on up to 1,024; then one is tried again. One that became shorter ends that.
/// So a bulk transfer of noise costs a thousandth of what trying all of it would, and a connection
/// that begins with a picture and goes on with text is noticed after as many packets, at most, as
/// were in vain before. Others decide for a whole link and for seconds, where one transfer spoils
/// it for all.
struct Misses(Box<[Place; PLACES]>);

#[derive(Clone, Copy, Default)]
struct Place {
    /// How many more payloads are passed over.
    left: u16,
    /// Misses in a row, up to [`MAX_DOUBLINGS`].
    doublings: u8,
}

impl Misses {
    fn new() -> Self {
        Self(Box::new([Place::default(); PLACES]))
    }

    fn place(&mut self, flow: u64) -> &mut Place {
        // The hash may be one of few bits, or a counter: the high bits of the product are none.
        let at = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - PLACES.trailing_zeros());
        &mut self.0[at as usize % PLACES]
    }
}

impl Place {
    /// Whether this payload is passed over.
    fn passes_over(&mut self) -> bool {
        let passed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        passed
    }

    fn note(&mut self, shorter: bool) {
        if shorter {
            *self = Self::default();
        } else {
            self.left = 1 << self.doublings;
            self.doublings = (self.doublings + 1).min(MAX_DOUBLINGS);
        }
    }
}

/// A worker's encoders, one for each level in use, made when it is first wanted. One takes from
/// 400 KiB (level 1) to 1.4 MiB (level 19) and keeps it; only where large payloads and more than a
/// hundred small ones in a row take turns it gives some back and takes it again.
pub struct Compressor {
    contexts: [Option<bulk::Compressor<'static>>; Level::MAX as usize + 1],
    misses: Misses,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// Encoders that count there.
    #[must_use]
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { contexts: std::array::from_fn(|_| None), misses: Misses::new(), counters }
    }

    /// Appends the payload of kind 10 to `out` that `payload`, of kind `inner`, becomes; says whether
    /// it did. It does not where `payload` has less than [`MIN_ORIGINAL_LEN`] bytes, where it would
    /// not be shorter by a sixteenth, and where others of its `flow`, any hash of that, were not.
    /// `out` is as it was then.
    pub fn try_compress(
        &mut self,
        level: Level,
        flow: u64,
        inner: Kind,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        if !(MIN_ORIGINAL_LEN..=MAX_ORIGINAL_LEN).contains(&payload.len())
            || !is_compressible(inner)
        {
            return false;
        }
        let place = self.misses.place(flow);
        if place.passes_over() {
            self.counters.compress_skipped.add(1);
            return false;
        }
        let start = out.len();
        // What does not fit here was not worth it, and the encoder stops where it notices.
        out.resize(start + payload.len() - payload.len().div_ceil(LEAST_GAIN), 0);
        let room = out.get_mut(start..).unwrap_or_default();
        let context = self.contexts.get_mut(usize::from(level.0));
        let written = context.and_then(|context| encode(context, level, inner, payload, room));
        place.note(written.is_some());
        out.truncate(start + written.unwrap_or(0));
        match written {
            Some(len) => {
                self.counters.compressed.add(1);
                self.counters.compress_bytes_in.add(payload.len() as u64);
                self.counters.compress_bytes_out.add(len as u64);
            }
            None => self.counters.compress_misses.add(1),
        }
        written.is_some()
    }
}

/// Writes header and frame; gives their length if there is room for them.
fn encode(
    place: &mut Option<bulk::Compressor<'static>>,
    level: Level,
    inner: Kind,
    payload: &[u8],
    room: &mut [u8],
) -> Option<usize> {
    if place.is_none() {
        *place = context(level);
    }
    let (header, room) = room.split_first_chunk_mut::<COMPRESSED_HEADER_LEN>()?;
    let [high, low] = u16::try_from(payload.len()).ok()?.to_be_bytes();
    *header = [inner as u8, high, low];
    let written = place.as_mut()?.compress_to_buffer(payload, room).ok()?;
    // Nothing goes out that would not be taken.
    let frame = room.get(..written)?;
    let (content, _) = content_len(frame)?;
    (content == payload.len()).then_some(COMPRESSED_HEADER_LEN + written)
}

fn context(level: Level) -> Option<bulk::Compressor<'static>> {
    let mut context = bulk::Compressor::new(i32::from(level.0)).ok()?;
    context.set_parameter(CParameter::Format(FrameFormat::Magicless)).ok()?;
    context.set_parameter(CParameter::ContentSizeFlag(true)).ok()?;
    context.set_parameter(CParameter::ChecksumFlag(false)).ok()?;
    context.set_parameter(CParameter::DictIdFlag(false)).ok()?;
    Some(context)
}

#[cfg(test)]
mod tests;
