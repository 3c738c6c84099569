//! The ACK frame: ranges of packet numbers from the largest down, as in RFC 9000 section 19.3, for
//! one path.

use std::ops::RangeInclusive;

use super::super::reader::Reader;
use super::super::varint::{read_varint, varint_len, write_varint};
use super::{FrameFault, code};

/// Most ranges of one frame: with more, those of the smallest numbers are left out.
pub const MAX_ACK_RANGES: usize = 32;

/// How many packets of a path came with each ECN mark (RFC 9000 section 19.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EcnCounts {
    /// Packets with ECT(0).
    pub ect0: u64,
    /// Packets with ECT(1).
    pub ect1: u64,
    /// Packets with CE, congestion experienced.
    pub ce: u64,
}

/// Packets of one path that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// The path: the number of the link that their sender, who gets this frame, gave it.
    pub path: u8,
    /// The largest packet number.
    pub largest: u64,
    /// How long the largest waited for this frame, in units of 8 us.
    pub delay: u64,
    /// All numbers, the largest first.
    pub ranges: AckRanges<'a>,
    /// What marks they had, if the receiver could see.
    pub ecn: Option<EcnCounts>,
}

/// Ranges that were found to be in order and not below 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckRanges<'a> {
    largest: u64,
    /// Length - 1 of the first range, then pairs of gap - 2 and length - 1.
    bytes: &'a [u8],
    /// Ranges after the first.
    further: u8,
}

impl<'a> AckRanges<'a> {
    /// The ranges, of descending numbers, with at least one number between them.
    pub fn iter(&self) -> impl Iterator<Item = RangeInclusive<u64>> + use<'a> {
        let mut reader = Reader(self.bytes);
        let mut next = Some(self.largest);
        let mut left = usize::from(self.further) + 1;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let end = next?;
            let start = end.checked_sub(read_varint(&mut reader).ok()?)?;
            next = read_varint(&mut reader).ok().and_then(|gap| below(start, gap));
            Some(start..=end)
        })
    }

    /// Number of ranges, 1 to [`MAX_ACK_RANGES`].
    #[must_use]
    // There is always one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        usize::from(self.further) + 1
    }
}

/// The end of the range below one that begins at `start`.
fn below(start: u64, gap: u64) -> Option<u64> {
    start.checked_sub(gap)?.checked_sub(2)
}

impl<'a> Ack<'a> {
    pub(super) fn read(code: u8, reader: &mut Reader<'a>) -> Result<Self, FrameFault> {
        let invalid = FrameFault::Value(code);
        let path = reader.u8()?;
        let (largest, delay) = (read_varint(reader)?, read_varint(reader)?);
        let further = u8::try_from(read_varint(reader)?).map_err(|_| invalid)?;
        if usize::from(further) >= MAX_ACK_RANGES {
            return Err(invalid);
        }
        let all = reader.0;
        let mut start = largest.checked_sub(read_varint(reader)?).ok_or(invalid)?;
        for _ in 0..further {
            let end = below(start, read_varint(reader)?).ok_or(invalid)?;
            start = end.checked_sub(read_varint(reader)?).ok_or(invalid)?;
        }
        let bytes = all.get(..all.len() - reader.0.len()).unwrap_or_default();
        let ecn = if code == code::ACK_ECN {
            let (ect0, ect1) = (read_varint(reader)?, read_varint(reader)?);
            Some(EcnCounts { ect0, ect1, ce: read_varint(reader)? })
        } else {
            None
        };
        Ok(Self { path, largest, delay, ranges: AckRanges { largest, bytes, further }, ecn })
    }

    pub(super) fn encoded_len(&self) -> usize {
        let fixed = 2 + varint_len(self.largest) + varint_len(self.delay);
        fixed + varint_len(self.ranges.further.into()) + self.ranges.bytes.len() + ecn_len(self.ecn)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_head(self.path, self.largest, self.delay, self.ecn, out);
        write_varint(self.ranges.further.into(), out);
        out.extend_from_slice(self.ranges.bytes);
        write_ecn(self.ecn, out);
    }
}

fn ecn_len(ecn: Option<EcnCounts>) -> usize {
    ecn.map_or(0, |ecn| varint_len(ecn.ect0) + varint_len(ecn.ect1) + varint_len(ecn.ce))
}

fn write_head(path: u8, largest: u64, delay: u64, ecn: Option<EcnCounts>, out: &mut Vec<u8>) {
    out.extend([if ecn.is_some() { code::ACK_ECN } else { code::ACK }, path]);
    write_varint(largest, out);
    write_varint(delay, out);
}

fn write_ecn(ecn: Option<EcnCounts>, out: &mut Vec<u8>) {
    if let Some(ecn) = ecn {
        for count in [ecn.ect0, ecn.ect1, ecn.ce] {
            write_varint(count, out);
        }
    }
}

/// Appends an ACK frame with as many of the ranges as go into `room` bytes, at most
/// [`MAX_ACK_RANGES`]. `ranges` come from the largest down, with a number missing between them;
/// `delay` is in units of 8 us. False, and nothing appended, without ranges or room for one.
pub fn write_ack(
    path: u8,
    delay: u64,
    ranges: impl IntoIterator<Item = RangeInclusive<u64>>,
    ecn: Option<EcnCounts>,
    room: usize,
    out: &mut Vec<u8>,
) -> bool {
    let mut ranges = ranges.into_iter();
    let Some(first) = ranges.next() else { return false };
    let begin = out.len();
    write_head(path, *first.end(), delay, ecn, out);
    // The count of further ranges has one byte, being small; it is known at the end.
    let count_at = out.len();
    out.push(0);
    write_varint(first.end().saturating_sub(*first.start()), out);
    let full = |out: &Vec<u8>| out.len() - begin + ecn_len(ecn) > room;
    if full(out) {
        out.truncate(begin);
        return false;
    }
    let (mut further, mut start) = (0u8, *first.start());
    for range in ranges.take(MAX_ACK_RANGES - 1) {
        let Some(gap) = start.checked_sub(*range.end()).and_then(|gap| gap.checked_sub(2)) else {
            break;
        };
        let kept = out.len();
        write_varint(gap, out);
        write_varint(range.end().saturating_sub(*range.start()), out);
        if full(out) {
            out.truncate(kept);
            break;
        }
        further += 1;
        start = *range.start();
    }
    if let Some(count) = out.get_mut(count_at) {
        *count = further;
    }
    write_ecn(ecn, out);
    true
}
