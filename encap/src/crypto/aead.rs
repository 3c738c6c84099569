//! What seals a datagram: the cipher suites, and a key of any of them.
//!
//! Each suite has its provider in a file of its own: `aes.rs`, `aegis.rs`. All of them work in
//! place and put a 16-byte tag behind the text, so a datagram has the same length under each.

use std::fmt;

use zeroize::Zeroizing;

use super::{aegis, aes};

/// Tag bytes of every suite.
pub const TAG_LEN: usize = 16;
/// Most key bytes that a suite has.
pub const MAX_KEY_LEN: usize = 32;
/// Most nonce bytes that a suite has.
pub const MAX_NONCE_LEN: usize = 32;

/// What protects the datagrams of a session. The number is its code on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// No protection at all: only where both sides say `insecure = true`.
    Clear = 0,
    /// AES-256-GCM, 16-byte tag.
    Aes256Gcm = 1,
    /// AEGIS-256 of draft-irtf-cfrg-aegis-aead, 16-byte tag.
    Aegis256 = 2,
    /// AEGIS-128L of draft-irtf-cfrg-aegis-aead, 16-byte tag.
    Aegis128L = 3,
}

impl Suite {
    /// Every suite, by its code.
    pub const ALL: [Self; 4] = [Self::Clear, Self::Aes256Gcm, Self::Aegis256, Self::Aegis128L];

    /// The name in configs and in every key derivation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clear => "none",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Aegis256 => "aegis-256",
            Self::Aegis128L => "aegis-128l",
        }
    }

    /// Bytes of its key. Clear mode derives keys of the length of AES-256-GCM and uses none.
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Clear | Self::Aes256Gcm | Self::Aegis256 => 32,
            Self::Aegis128L => 16,
        }
    }

    /// Bytes of its nonce and of the IV of a lane.
    #[must_use]
    pub const fn nonce_len(self) -> usize {
        match self {
            Self::Clear | Self::Aes256Gcm => 12,
            Self::Aegis256 => 32,
            Self::Aegis128L => 16,
        }
    }

    /// The name of the code that does the work in this build, for people.
    #[must_use]
    pub const fn provider(self) -> &'static str {
        match self {
            Self::Clear => "-",
            Self::Aes256Gcm => aes::PROVIDER,
            Self::Aegis256 | Self::Aegis128L => aegis::PROVIDER,
        }
    }

    /// The suite with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }

    /// The suite with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.code() == code)
    }

    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// The tag does not fit the data: forged, damaged or sealed under another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Unauthentic;

/// A key, ready to seal and open; wiped when dropped.
#[allow(clippy::large_enum_variant, reason = "the default is the large one, and used per packet")]
pub(super) enum Key {
    Aes256Gcm(aes::Key),
    Aegis256(aegis::Key256),
    Aegis128L(aegis::Key128L),
}

impl Key {
    /// The key of `suite` from the first [`Suite::key_len`] bytes; none in clear mode.
    pub(super) fn new(suite: Suite, bytes: &[u8; MAX_KEY_LEN]) -> Option<Self> {
        match suite {
            Suite::Clear => None,
            Suite::Aes256Gcm => Some(Self::Aes256Gcm(aes::Key::new(bytes))),
            Suite::Aegis256 => Some(Self::Aegis256(aegis::Key256::new(bytes))),
            Suite::Aegis128L => {
                let mut key = Zeroizing::new([0; 16]);
                for (to, from) in key.iter_mut().zip(bytes) {
                    *to = *from;
                }
                Some(Self::Aegis128L(aegis::Key128L::new(&key)))
            }
        }
    }

    /// Encrypts `data` in place and gives its tag.
    ///
    /// # Errors
    /// [`Unauthentic`] if the nonce has not the suite's length or the provider refuses the data
    /// for its length.
    #[inline]
    pub(super) fn seal(
        &self,
        nonce: &[u8],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Unauthentic> {
        match self {
            Self::Aes256Gcm(key) => key.seal(sized(nonce)?, aad, data),
            Self::Aegis256(key) => Ok(key.seal(sized(nonce)?, aad, data)),
            Self::Aegis128L(key) => Ok(key.seal(sized(nonce)?, aad, data)),
        }
    }

    /// Checks and decrypts `data`, which ends in the tag, in place. What it leaves in the place of
    /// the text after a failure is good for nothing.
    ///
    /// # Errors
    /// [`Unauthentic`].
    #[inline]
    pub(super) fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<(), Unauthentic> {
        match self {
            Self::Aes256Gcm(key) => key.open(sized(nonce)?, aad, data),
            Self::Aegis256(key) => key.open(sized(nonce)?, aad, data),
            Self::Aegis128L(key) => key.open(sized(nonce)?, aad, data),
        }
    }
}

fn sized<const N: usize>(nonce: &[u8]) -> Result<&[u8; N], Unauthentic> {
    nonce.try_into().map_err(|_| Unauthentic)
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEALED: [Suite; 3] = [Suite::Aes256Gcm, Suite::Aegis256, Suite::Aegis128L];

    #[test]
    fn names_and_codes_lead_back_to_the_suite() {
        for (code, suite) in (0..).zip(Suite::ALL) {
            assert_eq!(suite.code(), code);
            assert_eq!(Suite::from_code(code), Some(suite));
            assert_eq!(Suite::from_name(suite.name()), Some(suite));
            assert!(suite.key_len() <= MAX_KEY_LEN && suite.nonce_len() <= MAX_NONCE_LEN);
        }
        assert_eq!(Suite::from_code(4), None);
        assert_eq!(Suite::from_name("aegis"), None);
    }

    #[test]
    fn clear_mode_has_no_key() {
        assert!(Key::new(Suite::Clear, &[1; 32]).is_none());
    }

    #[test]
    fn a_nonce_of_another_length_is_refused() {
        for suite in SEALED {
            let key = Key::new(suite, &[1; 32]).unwrap();
            for len in (0..40).filter(|len| *len != suite.nonce_len()) {
                let mut data = [7; 40];
                assert_eq!(key.seal(&[0; 40][..len], b"", &mut data), Err(Unauthentic));
                assert_eq!(key.open(&[0; 40][..len], b"", &mut data), Err(Unauthentic));
                assert_eq!(data, [7; 40], "{suite:?} {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_nothing_else_does(
            suite in prop::sample::select(&SEALED[..]),
            bytes: [u8; 32], nonce: [u8; 32], aad: [u8; 8],
            plain in prop::collection::vec(any::<u8>(), 0..300),
            (flip, short) in (any::<prop::sample::Index>(), 0_usize..TAG_LEN),
        ) {
            let key = Key::new(suite, &bytes).unwrap();
            let nonce = &nonce[..suite.nonce_len()];
            let mut data = plain.clone();
            let tag = key.seal(nonce, &aad, &mut data).unwrap();
            prop_assert_eq!(data.len(), plain.len());
            data.extend(tag);
            let mut forged = data.clone();
            forged[flip.index(data.len())] ^= 1;
            prop_assert_eq!(key.open(nonce, &aad, &mut forged), Err(Unauthentic));
            let mut other = aad;
            other[7] ^= 0x80;
            prop_assert_eq!(key.open(nonce, &other, &mut data.clone()), Err(Unauthentic));
            let mut cut = data[..short].to_vec();
            prop_assert_eq!(key.open(nonce, &aad, &mut cut), Err(Unauthentic));
            let mut bytes = bytes;
            bytes[suite.key_len() - 1] ^= 1;
            let wrong = Key::new(suite, &bytes).unwrap();
            prop_assert_eq!(wrong.open(nonce, &aad, &mut data.clone()), Err(Unauthentic));
            key.open(nonce, &aad, &mut data).unwrap();
            prop_assert_eq!(&data[..plain.len()], &plain[..]);
        }
    }
}
