//! Path-MTU probes: the payload of kind 7.
//!
//! A probe is its 4-byte id, big-endian, and zeros up to the size to be tried. Who receives one
//! answers by a control message with the id and the UDP payload size that it saw, however it came.
//! [`crate::link::pmtu`] says which to send, and is told the answers.

/// Bytes of the id.
pub const PROBE_ID_LEN: usize = 4;

/// A payload that ends inside its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("probe is too short")]
pub struct TooShort;

/// A probe of `payload_len` bytes, the id included; never fewer than the id has.
#[must_use]
pub fn write(id: u32, payload_len: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(payload_len.max(PROBE_ID_LEN));
    payload.extend(id.to_be_bytes());
    payload.resize(payload_len.max(PROBE_ID_LEN), 0);
    payload
}

/// The id of a probe. What follows it only fills the datagram and may be anything.
///
/// # Errors
/// [`TooShort`].
pub fn read(payload: &[u8]) -> Result<u32, TooShort> {
    let id = payload.first_chunk::<PROBE_ID_LEN>().ok_or(TooShort)?;
    Ok(u32::from_be_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn too_short_is_refused() {
        assert_eq!(read(&[1, 2, 3]), Err(TooShort));
        assert_eq!(write(0x0102_0304, 6), [1, 2, 3, 4, 0, 0]);
    }

    proptest! {
        #[test]
        fn probes_round_trip_at_their_length(id: u32, payload_len in 0usize..70_000) {
            let payload = write(id, payload_len);
            prop_assert_eq!(payload.len(), payload_len.max(PROBE_ID_LEN));
            prop_assert_eq!(read(&payload), Ok(id));
        }
    }
}
