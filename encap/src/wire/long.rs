//! The long header: handshake messages, on the same port as data.
//!
//! ```text
//!  0      001 type(5)
//!  1      version of this message's format
//!  2      highest version that the sender speaks
//!  3      reserved, 0
//!  4..12  key id: the public name of the cluster key
//! 12..20  token: chosen by the initiator, echoed by the responder
//! 20..36  cookie: zero in a first initiation and in a response
//! 36..52  MAC of bytes 0..36 under a key that follows from the cluster key
//! 52..    Noise message (initiation, response)
//! ```
//!
//! Big-endian. Rules G1 to G9 are in `docs/protocol.md`.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::crypto::key::{ClusterKey, KEY_ID_LEN};

/// Bytes in front of the Noise message.
pub const LONG_HEADER_LEN: usize = 52;
/// Every initiation is this long: no answer is larger, and the path is known to carry it.
pub const INITIATION_LEN: usize = 1200;
/// The version that this crate speaks.
pub const VERSION: u8 = 1;
/// Bytes of a cookie.
pub const COOKIE_LEN: usize = 16;
/// Bytes of the outer MAC.
pub const MAC_LEN: usize = 16;
const MAC_OFFSET: usize = LONG_HEADER_LEN - MAC_LEN;

/// What a long datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// First message of a handshake.
    Initiation = 1,
    /// Its answer.
    Response = 2,
    /// "Come again with this": the sender is under load.
    Cookie = 3,
}

impl Type {
    /// The type that a first byte says, if it is one of ours.
    #[must_use]
    pub const fn of(first_byte: u8) -> Option<Self> {
        match first_byte {
            0x21 => Some(Self::Initiation),
            0x22 => Some(Self::Response),
            0x23 => Some(Self::Cookie),
            _ => None,
        }
    }
}

/// The fields of a long header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader {
    /// What it is.
    pub kind: Type,
    /// Highest version that the sender speaks.
    pub highest_version: u8,
    /// Which cluster key.
    pub key_id: [u8; KEY_ID_LEN],
    /// Which handshake.
    pub token: u64,
    /// The cookie.
    pub cookie: [u8; COOKIE_LEN],
}

/// Why bytes are no long datagram that this version takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LongError {
    /// The first byte is no type of ours.
    #[error("unknown type")]
    Type,
    /// Fewer bytes than the header, or an initiation of another length.
    #[error("wrong length")]
    Length,
    /// Another version; the second number is the highest that the sender speaks.
    #[error("version {0}, sender speaks up to {1}")]
    Version(u8, u8),
}

impl LongHeader {
    /// Checks type, length and version; the MAC is for [`Self::authenticate`].
    ///
    /// # Errors
    /// [`LongError`].
    pub fn read(datagram: &[u8]) -> Result<Self, LongError> {
        let first = *datagram.first().ok_or(LongError::Length)?;
        let kind = Type::of(first).ok_or(LongError::Type)?;
        let (header, rest) =
            datagram.split_first_chunk::<LONG_HEADER_LEN>().ok_or(LongError::Length)?;
        let (front, rest_of_header) = header.split_at(4);
        if let &[_, version, highest, _] = front
            && version != VERSION
        {
            return Err(LongError::Version(version, highest));
        }
        let right_length = match kind {
            Type::Initiation => datagram.len() == INITIATION_LEN,
            Type::Response => datagram.len() <= INITIATION_LEN,
            Type::Cookie => rest.is_empty(),
        };
        if !right_length {
            return Err(LongError::Length);
        }
        let mut key_id = [0; KEY_ID_LEN];
        let mut token = [0; 8];
        let mut cookie = [0; COOKIE_LEN];
        let fields = key_id.iter_mut().chain(&mut token).chain(&mut cookie);
        for (to, from) in fields.zip(rest_of_header) {
            *to = *from;
        }
        let highest_version = front.get(2).copied().unwrap_or(0);
        Ok(Self { kind, highest_version, key_id, token: u64::from_be_bytes(token), cookie })
    }

    /// The header's bytes, MAC included.
    #[must_use]
    pub fn write(&self, key: &ClusterKey) -> [u8; LONG_HEADER_LEN] {
        let mut header = [0; LONG_HEADER_LEN];
        let fields = [0x20 | self.kind as u8, VERSION, self.highest_version, 0]
            .into_iter()
            .chain(self.key_id)
            .chain(self.token.to_be_bytes())
            .chain(self.cookie);
        for (to, from) in header.iter_mut().zip(fields) {
            *to = from;
        }
        let mac = mac(key, &header);
        header.iter_mut().skip(MAC_OFFSET).zip(mac).for_each(|(to, from)| *to = from);
        header
    }

    /// Whether the MAC of `datagram` is right: its sender has the cluster key.
    #[must_use]
    pub fn authenticate(datagram: &[u8], key: &ClusterKey) -> bool {
        let Some((header, _)) = datagram.split_first_chunk::<LONG_HEADER_LEN>() else {
            return false;
        };
        let expected = mac(key, header);
        header.get(MAC_OFFSET..).is_some_and(|found| found.ct_eq(&expected).into())
    }

    /// What both sides feed into the Noise prologue: everything that must not be changed on the
    /// way but the cookie, which a repeated initiation fills in.
    #[must_use]
    pub fn prologue(&self) -> Vec<u8> {
        let mut prologue = b"tapd1".to_vec();
        prologue.push(VERSION);
        prologue.extend(self.key_id);
        prologue.extend(self.token.to_be_bytes());
        prologue
    }
}

fn mac(key: &ClusterKey, header: &[u8; LONG_HEADER_LEN]) -> [u8; MAC_LEN] {
    keyed_hash(key.mac().bytes(), &[header.get(..MAC_OFFSET).unwrap_or_default()])
}

/// The first 16 bytes of HMAC-SHA256.
pub(crate) fn keyed_hash(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 16] {
    let mut out = [0; 16];
    // HMAC takes keys of any length.
    if let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(key) {
        parts.iter().for_each(|part| hmac.update(part));
        out.iter_mut().zip(hmac.finalize().into_bytes()).for_each(|(to, from)| *to = from);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: Type) -> LongHeader {
        LongHeader { kind, highest_version: 1, key_id: [7; 8], token: 0x0102_0304, cookie: [9; 16] }
    }

    #[test]
    fn round_trips_and_authenticates() {
        let key = ClusterKey::new([1; 32]);
        for (kind, len) in [(Type::Initiation, 1200), (Type::Response, 300), (Type::Cookie, 52)] {
            let mut datagram = header(kind).write(&key).to_vec();
            datagram.resize(len, 0);
            assert_eq!(LongHeader::read(&datagram), Ok(header(kind)));
            assert!(LongHeader::authenticate(&datagram, &key));
            assert!(!LongHeader::authenticate(&datagram, &ClusterKey::new([2; 32])));
            for at in 0..LONG_HEADER_LEN {
                let mut changed = datagram.clone();
                changed[at] ^= 0x80;
                assert!(!LongHeader::authenticate(&changed, &key), "byte {at}");
            }
        }
    }

    #[test]
    fn names_what_is_wrong() {
        let key = ClusterKey::new([1; 32]);
        let mut datagram = header(Type::Initiation).write(&key).to_vec();
        assert_eq!(LongHeader::read(&datagram), Err(LongError::Length));
        datagram.resize(INITIATION_LEN, 0);
        datagram[1] = 9;
        datagram[2] = 12;
        assert_eq!(LongHeader::read(&datagram), Err(LongError::Version(9, 12)));
        datagram[0] = 0x2f;
        assert_eq!(LongHeader::read(&datagram), Err(LongError::Type));
        assert_eq!(LongHeader::read(&[]), Err(LongError::Length));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            first in prop_oneof![Just(0x21u8), Just(0x22), Just(0x23), any::<u8>()],
            version in prop_oneof![Just(VERSION), any::<u8>()],
            bytes in prop::collection::vec(any::<u8>(), 0..1300),
        ) {
            let mut datagram = vec![first, version];
            datagram.extend(bytes);
            if let Ok(read) = LongHeader::read(&datagram) {
                prop_assert!(datagram.len() >= LONG_HEADER_LEN && datagram.len() <= INITIATION_LEN);
                let written = read.write(&ClusterKey::new([0; 32]));
                prop_assert_eq!(&written[4..36], &datagram[4..36]);
            }
        }
    }
}
