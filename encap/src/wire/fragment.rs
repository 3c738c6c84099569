//! Fragments: the payload of kind 2, for what does not fit the path in one datagram.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! |              id               |M|rsv|     offset / 8 (13)     |
//! |  piece ...
//! ```
//!
//! Big-endian. The pieces of one frame, joined, are the whole sealed part of the datagram that did
//! not fit: its own 2-byte inner header and payload; so every kind can be fragmented. M says that
//! more pieces follow. The outer inner header has kind 2 and handle 0.
//!
//! Pieces are equal, but for a shorter last one, rather than one full and one crumb: a little more
//! path overhead later does not cut them again. They are sealed back to back in one lane and
//! epoch, so that piece i has the first one's sequence number plus i.
//!
//! Next: [`crate::crypto::seal`] on the way out, [`crate::reassembly`] on the way in.

use std::ops::Range;

use super::header::INNER_HEADER_LEN;

/// Bytes in front of each piece.
pub const FRAGMENT_HEADER_LEN: usize = 4;
/// Most pieces of one frame.
pub const MAX_PIECES: usize = 64;
/// Most bytes that the pieces of one frame have together: inner header, explicit VNI, and a frame
/// of the longest length that a binding can announce.
pub const MAX_CONTENT_LEN: usize = INNER_HEADER_LEN + super::header::EXPLICIT_VNI_LEN + 65_535;
/// Offsets count in these; all pieces but the last are a multiple long.
pub const OFFSET_UNIT: usize = 8;
/// Largest offset that the header can say.
pub const MAX_OFFSET: usize = 0x1fff * OFFSET_UNIT;

const _: () = assert!(MAX_CONTENT_LEN == 65_541);

const MORE: u16 = 0x8000;
const RESERVED: u16 = 0x6000;

/// What stands in front of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Which frame, among those that one lane sends at about the same time.
    pub id: u16,
    /// Whether this is not the last piece.
    pub more: bool,
    /// Where the piece begins, in bytes; a multiple of [`OFFSET_UNIT`], at most [`MAX_OFFSET`].
    pub offset: usize,
}

/// A fragment header with reserved bits: of a later version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reserved bits in a fragment header")]
pub struct ReservedBits;

impl FragmentHeader {
    /// Reads the four bytes.
    ///
    /// # Errors
    /// [`ReservedBits`] when one of the two reserved bits is set.
    pub fn read(bytes: [u8; FRAGMENT_HEADER_LEN]) -> Result<Self, ReservedBits> {
        let [id_high, id_low, high, low] = bytes;
        let word = u16::from_be_bytes([high, low]);
        if word & RESERVED != 0 {
            return Err(ReservedBits);
        }
        Ok(Self {
            id: u16::from_be_bytes([id_high, id_low]),
            more: word & MORE != 0,
            offset: usize::from(word & !(MORE | RESERVED)) * OFFSET_UNIT,
        })
    }

    /// The four bytes. An offset of [`Plan`] can always be said; another is cut to what can.
    #[must_use]
    pub fn write(self) -> [u8; FRAGMENT_HEADER_LEN] {
        // At most 13 bits, after `min`.
        let units = (self.offset.min(MAX_OFFSET) / OFFSET_UNIT) as u16;
        let word = if self.more { units | MORE } else { units };
        let [id_high, id_low] = self.id.to_be_bytes();
        let [high, low] = word.to_be_bytes();
        [id_high, id_low, high, low]
    }
}

/// How a content is cut: yields `(offset, range of the content, whether more follow)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    len: usize,
    piece_len: usize,
    offset: usize,
}

/// Cuts `len` content bytes into pieces of at most `max_piece` bytes each, of which there are as
/// few as possible and which are as equal as multiples of [`OFFSET_UNIT`] can be.
///
/// None for nothing, for more than [`MAX_CONTENT_LEN`] bytes or more than [`MAX_PIECES`] pieces.
#[must_use]
pub fn plan(len: usize, max_piece: usize) -> Option<Plan> {
    if len == 0 || len > MAX_CONTENT_LEN {
        return None;
    }
    if len <= max_piece {
        return Some(Plan { len, piece_len: len, offset: 0 });
    }
    let largest = max_piece / OFFSET_UNIT * OFFSET_UNIT;
    if largest == 0 {
        return None;
    }
    let count = len.div_ceil(largest);
    // Not above `largest`, a multiple itself; so the count stays what it is.
    let piece_len = len.div_ceil(count).next_multiple_of(OFFSET_UNIT);
    (count <= MAX_PIECES).then_some(Plan { len, piece_len, offset: 0 })
}

impl Plan {
    /// Bytes of each piece but the last, which has at most as many.
    #[must_use]
    pub fn piece_len(&self) -> usize {
        self.piece_len
    }
}

impl Iterator for Plan {
    type Item = (usize, Range<usize>, bool);

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.len {
            return None;
        }
        let start = self.offset;
        let end = self.len.min(start + self.piece_len);
        self.offset = end;
        Some((start, start..end, end < self.len))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.len - self.offset).div_ceil(self.piece_len);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Plan {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(len: usize, max_piece: usize) {
        let Some(plan) = plan(len, max_piece) else {
            let pieces = len.div_ceil((max_piece / OFFSET_UNIT * OFFSET_UNIT).max(1));
            let refusable = max_piece < OFFSET_UNIT || pieces > MAX_PIECES;
            assert!(len == 0 || len > MAX_CONTENT_LEN || refusable, "{len} by {max_piece}");
            return;
        };
        let count = plan.len();
        let piece_len = plan.piece_len();
        let pieces: Vec<_> = plan.collect();
        assert_eq!(pieces.len(), count);
        assert!(count <= MAX_PIECES && piece_len <= max_piece);
        let mut end = 0;
        for (index, (offset, range, more)) in pieces.iter().enumerate() {
            assert_eq!((range.start, *offset), (end, end));
            assert_eq!(*more, index + 1 < count);
            assert!(range.len() == piece_len || !more && range.len() < piece_len);
            assert!(!range.is_empty() && *offset <= MAX_OFFSET && offset % OFFSET_UNIT == 0);
            end = range.end;
        }
        assert_eq!(end, len);
    }

    #[test]
    fn halves_rather_than_crumbs() {
        let pieces: Vec<_> = plan(1516, 1440).unwrap().collect();
        assert_eq!(pieces, [(0, 0..760, true), (760, 760..1516, false)]);
        assert_eq!(plan(1440, 1440).unwrap().collect::<Vec<_>>(), [(0, 0..1440, false)]);
        assert_eq!(plan(0, 1000), None);
        assert_eq!(plan(9, 7), None);
        assert_eq!(plan(64 * 8 + 1, 15), None, "65 pieces");
        assert_eq!(plan(MAX_CONTENT_LEN + 1, 60_000), None);
        // The longest content over the smallest path.
        let smallest = 1232 - 26 - FRAGMENT_HEADER_LEN;
        assert!(plan(MAX_CONTENT_LEN, smallest).unwrap().len() <= MAX_PIECES);
    }

    #[test]
    fn no_offset_is_too_large_to_say() {
        for len in MAX_OFFSET..=MAX_CONTENT_LEN {
            for max_piece in (1000..MAX_CONTENT_LEN + 8).step_by(509) {
                check(len, max_piece);
            }
        }
    }

    proptest! {
        #[test]
        fn any_plan_covers_the_content_once(len in 0usize..70_000, max_piece in 0usize..70_000) {
            check(len, max_piece);
        }

        #[test]
        fn every_header_round_trips_or_has_reserved_bits(bytes: [u8; 4]) {
            match FragmentHeader::read(bytes) {
                Ok(header) => prop_assert_eq!(header.write(), bytes),
                Err(ReservedBits) => prop_assert!(bytes[2] & 0x60 != 0),
            }
        }
    }
}
