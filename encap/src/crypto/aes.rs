//! AES-256-GCM from two providers, in place.
//!
//! The fast one (`fast`, feature `fast-aead`) serves the packet path. The portable one
//! (`portable`) is the oracle that the fast one is checked against, and serves the packet path in
//! builds without the feature. `docs/decisions/0001-aead-provider.md` has the measurements.

/// Key bytes of AES-256-GCM.
const KEY_LEN: usize = 32;
/// Nonce bytes of AES-256-GCM.
const NONCE_LEN: usize = 12;

/// The provider of this build's packet path.
#[cfg(feature = "fast-aead")]
pub(super) use fast::Key;
#[cfg(not(feature = "fast-aead"))]
pub(super) use portable::Key;

/// The provider's name, for people.
#[cfg(feature = "fast-aead")]
pub(super) const PROVIDER: &str = "ring";
/// The provider's name, for people.
#[cfg(not(feature = "fast-aead"))]
pub(super) const PROVIDER: &str = "aes-gcm";

/// The provider of choice: `ring`.
#[cfg(feature = "fast-aead")]
pub(super) mod fast {
    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    use super::super::aead::{TAG_LEN, Unauthentic};
    use super::{KEY_LEN, NONCE_LEN};

    /// An expanded AES-256-GCM key.
    pub(in crate::crypto) struct Key(Option<LessSafeKey>);

    fn expand(key: &[u8; KEY_LEN]) -> Option<LessSafeKey> {
        // Fails only for another key length, which the type rules out.
        UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
    }

    impl Key {
        pub(in crate::crypto) fn new(key: &[u8; KEY_LEN]) -> Self {
            Self(expand(key))
        }

        /// Encrypts `data` in place and gives its tag.
        pub(in crate::crypto) fn seal(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            data: &mut [u8],
        ) -> Result<[u8; TAG_LEN], Unauthentic> {
            let key = self.0.as_ref().ok_or(Unauthentic)?;
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let tag = key
                .seal_in_place_separate_tag(nonce, Aad::from(aad), data)
                .map_err(|_| Unauthentic)?;
            tag.as_ref().try_into().map_err(|_| Unauthentic)
        }

        /// Checks and decrypts `data`, which ends in the tag, in place.
        pub(in crate::crypto) fn open(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            data: &mut [u8],
        ) -> Result<(), Unauthentic> {
            let key = self.0.as_ref().ok_or(Unauthentic)?;
            let nonce = Nonce::assume_unique_for_key(*nonce);
            key.open_in_place(nonce, Aad::from(aad), data).map_err(|_| Unauthentic)?;
            Ok(())
        }
    }

    impl Drop for Key {
        /// ring does not wipe its keys, so the schedule of the zero key is written over this one;
        /// `black_box` keeps the store from being removed as dead.
        fn drop(&mut self) {
            self.0 = expand(&[0; KEY_LEN]);
            std::hint::black_box(&self.0);
        }
    }
}

/// The portable provider and oracle: RustCrypto `aes-gcm`, which wipes its keys itself.
#[cfg(any(test, not(feature = "fast-aead")))]
pub(super) mod portable {
    use aes_gcm::aead::AeadInOut;
    use aes_gcm::{Aes256Gcm, KeyInit};

    use super::super::aead::{TAG_LEN, Unauthentic};
    use super::{KEY_LEN, NONCE_LEN};

    /// An expanded AES-256-GCM key.
    pub(in crate::crypto) struct Key(Aes256Gcm);

    impl Key {
        pub(in crate::crypto) fn new(key: &[u8; KEY_LEN]) -> Self {
            Self(Aes256Gcm::new(&(*key).into()))
        }

        /// Encrypts `data` in place and gives its tag.
        pub(in crate::crypto) fn seal(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            data: &mut [u8],
        ) -> Result<[u8; TAG_LEN], Unauthentic> {
            let tag = self
                .0
                .encrypt_inout_detached(nonce.into(), aad, data.into())
                .map_err(|_| Unauthentic)?;
            Ok(tag.into())
        }

        /// Checks and decrypts `data`, which ends in the tag, in place.
        pub(in crate::crypto) fn open(
            &self,
            nonce: &[u8; NONCE_LEN],
            aad: &[u8],
            data: &mut [u8],
        ) -> Result<(), Unauthentic> {
            let at = data.len().checked_sub(TAG_LEN).ok_or(Unauthentic)?;
            let (text, tag) = data.split_at_mut(at);
            let tag: [u8; TAG_LEN] = (&*tag).try_into().map_err(|_| Unauthentic)?;
            self.0
                .decrypt_inout_detached(nonce.into(), aad, text.into(), &tag.into())
                .map_err(|_| Unauthentic)
        }
    }
}

#[cfg(test)]
#[cfg(feature = "fast-aead")]
mod tests {
    use super::super::aead::Unauthentic;
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    /// Test case 16 of the GCM specification (McGrew and Viega), the AES-256 one with AAD.
    #[test]
    fn both_providers_give_the_published_vector() {
        let key: [u8; 32] = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
            .try_into()
            .unwrap();
        let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888").try_into().unwrap();
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plain = hex(concat!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ));
        let sealed = hex(concat!(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa",
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        ));
        let tag = hex("76fc6ece0f4e1768cddf8853bb2d551b");
        let mut data = plain.clone();
        assert_eq!(Key::new(&key).seal(&nonce, &aad, &mut data).unwrap().to_vec(), tag);
        assert_eq!(data, sealed);
        let mut data = plain;
        assert_eq!(portable::Key::new(&key).seal(&nonce, &aad, &mut data).unwrap().to_vec(), tag);
        assert_eq!(data, sealed);
    }

    proptest! {
        #[test]
        fn fast_provider_equals_the_oracle(
            key: [u8; 32], nonce: [u8; 12], aad: [u8; 8],
            plain in prop::collection::vec(any::<u8>(), 0..300),
            flip in any::<prop::sample::Index>(),
        ) {
            let (fast, portable) = (Key::new(&key), portable::Key::new(&key));
            let (mut a, mut b) = (plain.clone(), plain.clone());
            let tag = fast.seal(&nonce, &aad, &mut a).unwrap();
            prop_assert_eq!(portable.seal(&nonce, &aad, &mut b).unwrap(), tag);
            prop_assert_eq!(&a, &b);
            a.extend(tag);
            b.extend(tag);
            fast.open(&nonce, &aad, &mut b).unwrap();
            prop_assert_eq!(&b[..plain.len()], &plain[..]);
            let at = flip.index(a.len());
            a[at] ^= 1;
            let mut c = a.clone();
            prop_assert_eq!(fast.open(&nonce, &aad, &mut a), Err(Unauthentic));
            prop_assert_eq!(portable.open(&nonce, &aad, &mut c), Err(Unauthentic));
        }
    }
}
