//! Compressed messages: of a channel whose OPEN says so, each begins with a byte that tells how the
//! rest is to be read.
//!
//! ```text
//! | 0 | the message
//! | 1 | length of the message (32) | Zstandard frame (RFC 8878)
//! ```
//!
//! Big-endian. The decoder gets a place of exactly the length that is said, which is bounded as that
//! of every message: a frame that holds more, or less, is a fault.

use zstd::bulk;

use crate::compress::Level;

/// What an encoded message may have more than the message.
pub(super) const ENCODING_LEN: usize = 1;
/// Bytes in front of the frame.
const HEADER_LEN: usize = 5;
/// Shortest message in bytes that is worth trying.
const LEAST_LEN: usize = 64;
/// In front of a message that is not compressed.
pub(super) const PLAIN: u8 = 0;
const COMPRESSED: u8 = 1;

/// Makes messages shorter.
#[derive(Default)]
pub(super) struct Encoder(Option<(Level, bulk::Compressor<'static>)>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Encoder").field(&self.0.as_ref().map(|(level, _)| level)).finish()
    }
}

impl Encoder {
    /// The message as it leaves.
    pub(super) fn encode(&mut self, level: Level, bytes: &[u8]) -> Vec<u8> {
        if bytes.len() >= LEAST_LEN
            && let Some(shorter) = self.compress(level, bytes)
        {
            return shorter;
        }
        let mut plain = Vec::with_capacity(bytes.len() + ENCODING_LEN);
        plain.push(PLAIN);
        plain.extend_from_slice(bytes);
        plain
    }

    fn compress(&mut self, level: Level, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.0.as_ref().is_none_or(|(made, _)| *made != level) {
            self.0 = Some((level, bulk::Compressor::new(level.get().into()).ok()?));
        }
        let (_, compressor) = self.0.as_mut()?;
        // What does not become shorter has no room: the compressor stops there.
        let mut out = vec![0; bytes.len()];
        let body = out.get_mut(HEADER_LEN..)?;
        let len = compressor.compress_to_buffer(bytes, body).ok()?;
        let [head, a, b, c, d, ..] = out.as_mut_slice() else { return None };
        *head = COMPRESSED;
        [*a, *b, *c, *d] = u32::try_from(bytes.len()).ok()?.to_be_bytes();
        out.truncate(HEADER_LEN + len);
        Some(out)
    }
}

/// The message does not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undecodable;

/// Makes of messages what they were.
#[derive(Default)]
pub(super) struct Decoder(Option<bulk::Decompressor<'static>>);

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Decoder").field(&self.0.is_some()).finish()
    }
}

impl Decoder {
    /// The message that was encoded, of at most `limit` bytes.
    pub(super) fn decode(
        &mut self,
        mut bytes: Vec<u8>,
        limit: u32,
    ) -> Result<Vec<u8>, Undecodable> {
        match bytes.first() {
            Some(&PLAIN) => {
                bytes.drain(..ENCODING_LEN);
                Ok(bytes)
            }
            Some(&COMPRESSED) => self.decompress(&bytes, limit),
            _ => Err(Undecodable),
        }
    }

    fn decompress(&mut self, bytes: &[u8], limit: u32) -> Result<Vec<u8>, Undecodable> {
        let (header, frame) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Undecodable)?;
        let [_, a, b, c, d] = *header;
        let len = u32::from_be_bytes([a, b, c, d]);
        if len > limit {
            return Err(Undecodable);
        }
        if self.0.is_none() {
            self.0 = Some(bulk::Decompressor::new().map_err(|_| Undecodable)?);
        }
        let decompressor = self.0.as_mut().ok_or(Undecodable)?;
        let mut out = vec![0; len as usize];
        let made = decompressor.decompress_to_buffer(frame, out.as_mut_slice());
        if made.is_ok_and(|made| made == out.len()) { Ok(out) } else { Err(Undecodable) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::channel::MAX_MESSAGE_LEN;
    use proptest::prelude::*;

    #[test]
    fn what_repeats_itself_gets_shorter() {
        let text = b"the same again and again ".repeat(1000);
        let encoded = Encoder::default().encode(Level::default(), &text);
        assert!(encoded.len() < text.len() / 10, "{}", encoded.len());
        assert_eq!(Decoder::default().decode(encoded, MAX_MESSAGE_LEN).unwrap(), text);
    }

    #[test]
    fn bombs_and_lies_are_faults() {
        let mut decoder = Decoder::default();
        let zeros = vec![0; 1 << 20];
        let honest = Encoder::default().encode(Level::default(), &zeros);
        assert!(honest.len() < 200);
        for said in [0_u32, (1 << 20) - 1, (1 << 20) + 1, MAX_MESSAGE_LEN + 1, u32::MAX] {
            let mut lie = honest.clone();
            lie[1..5].copy_from_slice(&said.to_be_bytes());
            assert_eq!(decoder.decode(lie, MAX_MESSAGE_LEN), Err(Undecodable), "{said}");
        }
        for short in 0..honest.len() {
            assert_eq!(
                decoder.decode(honest[..short].to_vec(), MAX_MESSAGE_LEN),
                Err(Undecodable),
                "{short}"
            );
        }
        assert_eq!(decoder.decode(vec![2, 1, 1], MAX_MESSAGE_LEN), Err(Undecodable));
        assert_eq!(decoder.decode(honest, MAX_MESSAGE_LEN).unwrap(), zeros);
    }

    proptest! {
        #[test]
        fn comes_out_as_it_went_in(bytes: Vec<u8>, times in 1_usize..40) {
            let bytes = bytes.repeat(times);
            let encoded = Encoder::default().encode(Level::default(), &bytes);
            prop_assert!(encoded.len() <= bytes.len() + ENCODING_LEN);
            prop_assert_eq!(Decoder::default().decode(encoded, MAX_MESSAGE_LEN).unwrap(), bytes);
        }

        #[test]
        fn any_bytes_are_a_message_or_a_fault(mut bytes: Vec<u8>) {
            if let Some(first) = bytes.first_mut() {
                *first %= 3;
            }
            if let Ok(message) = Decoder::default().decode(bytes, MAX_MESSAGE_LEN) {
                prop_assert!(message.len() <= MAX_MESSAGE_LEN as usize);
            }
        }
    }
}
