//! Variable-length integers of RFC 9000 section 16: 1, 2, 4 or 8 bytes, big-endian, the length in
//! the first two bits.
//!
//! Only the shortest form of a number is one here: what says the same has one spelling.

use super::reader::{Malformed, Reader};

/// The largest number, 2^62 - 1.
pub const MAX_VARINT: u64 = (1 << 62) - 1;

/// Bytes that a number takes, 1 to 8; a number above [`MAX_VARINT`] is taken for that.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends a number; one above [`MAX_VARINT`] cannot be said, and the largest is.
pub fn write_varint(value: u64, out: &mut Vec<u8>) {
    let value = value.min(MAX_VARINT);
    let len = varint_len(value);
    // Bits 0, 1, 2, 3 for the lengths 1, 2, 4, 8.
    let prefix = u64::from(len.trailing_zeros()) << (8 * len - 2);
    let bytes = (value | prefix).to_be_bytes();
    out.extend(bytes.iter().skip(8 - len));
}

/// Takes a number off the front.
pub(crate) fn read_varint(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    let first = reader.u8()?;
    let len = 1usize << (first >> 6);
    let mut value = u64::from(first & 0x3f);
    for byte in reader.take(len - 1)? {
        value = value << 8 | u64::from(*byte);
    }
    if varint_len(value) == len { Ok(value) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        write_varint(value, &mut out);
        out
    }

    #[test]
    fn the_examples_of_rfc_9000_appendix_a_1() {
        let examples: [(&[u8], u64); 4] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ];
        for (bytes, value) in examples {
            assert_eq!(written(value), bytes);
            assert_eq!(read_varint(&mut Reader(bytes)), Ok(value));
        }
        // The same 37 in two bytes.
        assert_eq!(read_varint(&mut Reader(&[0x40, 0x25])), Err(Malformed));
        assert_eq!(written(u64::MAX), [0xff; 8]);
    }

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64, shift in 0u32..64) {
            let value = (value >> shift).min(MAX_VARINT);
            let bytes = written(value);
            prop_assert_eq!(bytes.len(), varint_len(value));
            prop_assert_eq!(read_varint(&mut Reader(&bytes)), Ok(value));
            for len in 0..bytes.len() {
                prop_assert_eq!(read_varint(&mut Reader(&bytes[..len])), Err(Malformed));
            }
        }

        #[test]
        fn what_is_read_is_written_the_same(bytes: [u8; 8]) {
            let mut reader = Reader(&bytes);
            if let Ok(value) = read_varint(&mut reader) {
                prop_assert_eq!(&written(value)[..], &bytes[..8 - reader.0.len()]);
            }
        }
    }
}
