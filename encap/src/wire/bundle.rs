//! Bundles: the payload of kind 3, small frames of one network that share a datagram.
//!
//! ```text
//!  0                   1
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5
//! |P|        length (15)          |   2 to 32 times,
//! |  frame ...                        and nothing behind the last one
//! ```
//!
//! Big-endian. P says that the frame's L4 checksum is partial, as kind 9 does for a frame alone. A
//! datagram costs the same whatever it holds, in headers, tag, and system calls; many small frames
//! pay that once. Rules B1 and B2 are in `docs/protocol.md`.
//!
//! Next: [`crate::crypto::seal`] on the way out; on the way in each entry is taken as a frame that
//! came alone.

use std::ops::Range;

use super::ethernet::ETHERNET_HEADER_LEN;

/// Bytes in front of each frame.
pub const ENTRY_HEADER_LEN: usize = 2;
/// Fewest frames: one alone is kind 0 or 9.
pub const MIN_ENTRIES: usize = 2;
/// Most frames.
pub const MAX_ENTRIES: usize = 32;
/// Shortest frame in bytes.
pub const MIN_FRAME_LEN: usize = ETHERNET_HEADER_LEN;
/// Longest frame in bytes that an entry can say.
pub const MAX_FRAME_LEN: usize = 0x7fff;

const PARTIAL: u16 = 0x8000;

/// Why a payload is no bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BundleFault {
    /// It ends inside an entry.
    #[error("bundle ends inside an entry")]
    Truncated,
    /// A frame has fewer bytes than an Ethernet header.
    #[error("bundle with a frame of {0} bytes")]
    Short(usize),
    /// There are fewer than [`MIN_ENTRIES`] or more than [`MAX_ENTRIES`].
    #[error("bundle of too few or too many frames")]
    Count,
}

/// One frame of a bundle: where in the payload it is, and whether its L4 checksum is partial.
pub type Entry = (Range<usize>, bool);

/// The frames of a payload that was found to be a bundle, in order.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    payload: &'a [u8],
    at: usize,
}

/// The entry that begins at `at`; [`BundleFault::Truncated`] at the end of the payload too.
fn entry(payload: &[u8], at: usize) -> Result<Entry, BundleFault> {
    let rest = payload.get(at..).unwrap_or_default();
    let (header, rest) = rest.split_first_chunk().ok_or(BundleFault::Truncated)?;
    let word = u16::from_be_bytes(*header);
    let len = usize::from(word & !PARTIAL);
    if len < MIN_FRAME_LEN {
        return Err(BundleFault::Short(len));
    }
    if len > rest.len() {
        return Err(BundleFault::Truncated);
    }
    let start = at + ENTRY_HEADER_LEN;
    Ok((start..start + len, word & PARTIAL != 0))
}

/// Checks all of a payload before the first frame of it is used (rule B1).
///
/// # Errors
/// [`BundleFault`], for the first fault.
pub fn entries(payload: &[u8]) -> Result<Entries<'_>, BundleFault> {
    let (mut at, mut count) = (0, 0);
    while at < payload.len() {
        count += 1;
        if count > MAX_ENTRIES {
            return Err(BundleFault::Count);
        }
        at = entry(payload, at)?.0.end;
    }
    if count < MIN_ENTRIES { Err(BundleFault::Count) } else { Ok(Entries { payload, at: 0 }) }
}

/// What stands in front of a frame of `len` bytes, which is [`MIN_FRAME_LEN`] to
/// [`MAX_FRAME_LEN`]; a greater length cannot be said, and the greatest is.
#[must_use]
pub fn entry_header(len: usize, partial: bool) -> [u8; ENTRY_HEADER_LEN] {
    // 15 bits, after `min`.
    let len = len.min(MAX_FRAME_LEN) as u16;
    (if partial { len | PARTIAL } else { len }).to_be_bytes()
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Self::Item> {
        let (range, partial) = entry(self.payload, self.at).ok()?;
        self.at = range.end;
        Some((range, partial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bundle(frames: &[(Vec<u8>, bool)]) -> Vec<u8> {
        let mut payload = Vec::new();
        for (frame, partial) in frames {
            payload.extend(entry_header(frame.len(), *partial));
            payload.extend(frame);
        }
        payload
    }

    fn of(lens: &[usize]) -> Vec<u8> {
        bundle(&lens.iter().map(|len| (vec![7; *len], false)).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_no_bundle_has_a_name() {
        let fault = |payload: &[u8]| entries(payload).map(|_| ()).unwrap_err();
        assert_eq!(fault(&[]), BundleFault::Count);
        assert_eq!(fault(&of(&[60])), BundleFault::Count, "one alone is no bundle");
        assert_eq!(fault(&of(&[14; MAX_ENTRIES + 1])), BundleFault::Count);
        assert_eq!(fault(&of(&[14, 13])), BundleFault::Short(13));
        assert_eq!(fault(&of(&[0, 14])), BundleFault::Short(0));
        assert_eq!(entries(&of(&[14; MIN_ENTRIES])).unwrap().count(), MIN_ENTRIES);
        assert_eq!(entries(&of(&[14; MAX_ENTRIES])).unwrap().count(), MAX_ENTRIES);
        assert_eq!(entries(&of(&[MAX_FRAME_LEN; 2])).unwrap().count(), 2);
        // Whatever is missing at the end, or too much, voids all of it.
        let whole = of(&[20, 30]);
        for len in 1..whole.len() {
            let expected = if len == 22 { BundleFault::Count } else { BundleFault::Truncated };
            assert_eq!(fault(&whole[..len]), expected, "{len}");
        }
        assert_eq!(fault(&[&whole[..], &[0]].concat()), BundleFault::Truncated);
        assert_eq!(fault(&[&whole[..], &[0, 0]].concat()), BundleFault::Short(0));
    }

    #[test]
    fn the_longest_length_is_not_the_flag() {
        assert_eq!(entry_header(60, false), [0, 60]);
        assert_eq!(entry_header(60, true), [0x80, 60]);
        assert_eq!(entry_header(MAX_FRAME_LEN + 1, false), [0x7f, 0xff]);
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_went_in(
            frames in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), MIN_FRAME_LEN..200), any::<bool>()),
                MIN_ENTRIES..=MAX_ENTRIES,
            ),
        ) {
            let payload = bundle(&frames);
            let read: Vec<_> = entries(&payload)
                .unwrap()
                .map(|(range, partial)| (payload[range].to_vec(), partial))
                .collect();
            prop_assert_eq!(read, frames);
        }

        /// Lengths that are often right, so that not only the first entry is looked at.
        #[test]
        fn any_bytes_are_a_bundle_or_refused(
            lens in prop::collection::vec(0u16..60, 0..40),
            change in any::<(u16, u8)>(),
        ) {
            let mut payload = of(&lens.iter().map(|len| usize::from(*len)).collect::<Vec<_>>());
            let at = usize::from(change.0) % payload.len().max(1);
            if let Some(byte) = payload.get_mut(at) {
                *byte ^= change.1;
            }
            let Ok(entries) = entries(&payload) else { return Ok(()) };
            let (mut end, mut count) = (0, 0);
            for (range, _) in entries {
                prop_assert_eq!(range.start, end + ENTRY_HEADER_LEN);
                prop_assert!(range.len() >= MIN_FRAME_LEN && range.end <= payload.len());
                (end, count) = (range.end, count + 1);
            }
            prop_assert_eq!(end, payload.len(), "nothing is left over");
            prop_assert!((MIN_ENTRIES..=MAX_ENTRIES).contains(&count));
        }
    }
}
