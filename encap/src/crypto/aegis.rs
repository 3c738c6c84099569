//! AEGIS-256 and AEGIS-128L (draft-irtf-cfrg-aegis-aead), in place, by the crate `aegis`.
//!
//! It brings `libaegis` in C, which looks for AES instructions at run time and works without them
//! too; with the feature `pure-rust` it is Rust that looks at compile time. What that means is
//! measured in `docs/decisions/0006-aegis.md`. Neither has a key schedule: a key is its bytes.

use std::sync::Once;

use ::aegis::aegis128l::Aegis128L;
use ::aegis::aegis256::Aegis256;
use zeroize::Zeroizing;

use super::aead::{TAG_LEN, Unauthentic};

/// The provider's name, for people.
pub(super) const PROVIDER: &str = if cfg!(feature = "pure-rust") { "aegis" } else { "libaegis" };

/// Both ciphers choose their code at their first use, each under a lock of its own, but share what
/// they choose by. So both are used once, one after the other, before anything else is sealed.
fn choose_code() {
    static CHOSEN: Once = Once::new();
    CHOSEN.call_once(|| {
        let _ = Aegis256::<TAG_LEN>::new(&[0; 32], &[0; 32]);
        let _ = Aegis128L::<TAG_LEN>::new(&[0; 16], &[0; 16]);
    });
}

/// Text and tag of a sealed datagram.
fn split(data: &mut [u8]) -> Result<(&mut [u8], &[u8; TAG_LEN]), Unauthentic> {
    let (text, tag) = data.split_last_chunk_mut().ok_or(Unauthentic)?;
    Ok((text, tag))
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident, $cipher:ident, $len:literal) => {
        $(#[$doc])*
        pub(super) struct $name(Zeroizing<[u8; $len]>);

        impl $name {
            pub(super) fn new(key: &[u8; $len]) -> Self {
                choose_code();
                Self(Zeroizing::new(*key))
            }

            /// Encrypts `data` in place and gives its tag.
            pub(super) fn seal(
                &self,
                nonce: &[u8; $len],
                aad: &[u8],
                data: &mut [u8],
            ) -> [u8; TAG_LEN] {
                $cipher::<TAG_LEN>::new(&self.0, nonce).encrypt_in_place(data, aad)
            }

            /// Checks and decrypts `data`, which ends in the tag, in place; zeros the text if it
            /// is not authentic.
            pub(super) fn open(
                &self,
                nonce: &[u8; $len],
                aad: &[u8],
                data: &mut [u8],
            ) -> Result<(), Unauthentic> {
                let (text, tag) = split(data)?;
                let cipher = $cipher::<TAG_LEN>::new(&self.0, nonce);
                let outcome = cipher.decrypt_in_place(text, tag, aad);
                outcome.map_err(|_| {
                    // Not every provider does it.
                    text.fill(0);
                    Unauthentic
                })
            }
        }
    };
}

key! {
    /// A key of AEGIS-256, whose nonce is as long.
    Key256, Aegis256, 32
}
key! {
    /// A key of AEGIS-128L, whose nonce is as long.
    Key128L, Aegis128L, 16
}

#[cfg(test)]
mod tests {
    use super::super::reference::{Work, aegis_128l, aegis_256};
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    /// The first bytes of every key and nonce of the draft; zeros follow.
    fn padded<const N: usize>(start: &str) -> [u8; N] {
        let mut bytes = [0; N];
        let start = hex(start);
        bytes[..start.len()].copy_from_slice(&start);
        bytes
    }

    const KEY: &str = "1001";
    const NONCE: &str = "100002";
    const COUNT_FROM_10: &str = concat!(
        "101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f",
        "3031323334353637"
    );
    const COUNT_TO_1F: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const COUNT_TO_29: &str = concat!(
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "20212223242526272829"
    );
    const AD: &str = "0001020304050607";

    /// Test vectors 1 to 5 of both ciphers: aad, text, sealed text, tag of 128 bits.
    type Vector = (&'static str, &'static str, &'static str, &'static str);

    /// Appendix A.2 of the draft.
    const AEGIS_128L: [Vector; 5] = [
        (
            "",
            "00000000000000000000000000000000",
            "c1c0e58bd913006feba00f4b3cc3594e",
            "abe0ece80c24868a226a35d16bdae37a",
        ),
        ("", "", "", "c2b879a67def9d74e6c14f708bbcc9b4"),
        (
            AD,
            COUNT_TO_1F,
            "79d94593d8c2119d7e8fd9b8fc77845c5c077a05b2528b6ac54b563aed8efe84",
            "cc6f3372f6aa1bb82388d695c3962d9a",
        ),
        (
            AD,
            "000102030405060708090a0b0c0d",
            "79d94593d8c2119d7e8fd9b8fc77",
            "5c04b3dba849b2701effbe32c7f0fab7",
        ),
        (
            COUNT_TO_29,
            COUNT_FROM_10,
            concat!(
                "b31052ad1cca4e291abcf2df3502e6bdb1bfd6db36798be3607b1f94d34478aa",
                "7ede7f7a990fec10"
            ),
            "7542a745733014f9474417b337399507",
        ),
    ];

    /// Appendix A.3 of the draft.
    const AEGIS_256: [Vector; 5] = [
        (
            "",
            "00000000000000000000000000000000",
            "754fc3d8c973246dcc6d741412a4b236",
            "3fe91994768b332ed7f570a19ec5896e",
        ),
        ("", "", "", "e3def978a0f054afd1e761d7553afba3"),
        (
            AD,
            COUNT_TO_1F,
            "f373079ed84b2709faee373584585d60accd191db310ef5d8b11833df9dec711",
            "8d86f91ee606e9ff26a01b64ccbdd91d",
        ),
        (
            AD,
            "000102030405060708090a0b0c0d",
            "f373079ed84b2709faee37358458",
            "c60b9c2d33ceb058f96e6dd03c215652",
        ),
        (
            COUNT_TO_29,
            COUNT_FROM_10,
            concat!(
                "57754a7d09963e7c787583a2e7b859bb24fa1e04d49fd550b2511a358e3bca25",
                "2a9b1b8b30cc4a67"
            ),
            "ab8a7d53fd0e98d727accca94925e128",
        ),
    ];

    #[test]
    fn published_vectors_of_aegis_128l() {
        for (aad, text, sealed, tag) in AEGIS_128L {
            let (key, nonce, aad) = (padded(KEY), padded(NONCE), hex(aad));
            let mut data = hex(text);
            let made = Key128L::new(&key).seal(&nonce, &aad, &mut data);
            assert_eq!((&data, made.to_vec()), (&hex(sealed), hex(tag)));
            data.extend(made);
            Key128L::new(&key).open(&nonce, &aad, &mut data).unwrap();
            assert_eq!(data[..data.len() - TAG_LEN], hex(text));
            assert_eq!(aegis_128l(&key, &nonce, &aad, &hex(text), Work::Seal).0, hex(sealed));
        }
    }

    #[test]
    fn published_vectors_of_aegis_256() {
        for (aad, text, sealed, tag) in AEGIS_256 {
            let (key, nonce, aad) = (padded(KEY), padded(NONCE), hex(aad));
            let mut data = hex(text);
            let made = Key256::new(&key).seal(&nonce, &aad, &mut data);
            assert_eq!((&data, made.to_vec()), (&hex(sealed), hex(tag)));
            data.extend(made);
            Key256::new(&key).open(&nonce, &aad, &mut data).unwrap();
            assert_eq!(data[..data.len() - TAG_LEN], hex(text));
            assert_eq!(aegis_256(&key, &nonce, &aad, &hex(text), Work::Seal).0, hex(sealed));
        }
    }

    /// Test vectors 6 to 9: key and nonce exchanged, another text, other data, another tag. And
    /// nothing of the text is left behind.
    #[test]
    fn published_forgeries_are_refused() {
        let both = [
            (["79d94593d8c2119d7e8fd9b8fc77", "5c04b3dba849b2701effbe32c7f0fab7"], false),
            (["f373079ed84b2709faee37358458", "c60b9c2d33ceb058f96e6dd03c215652"], true),
        ];
        for (parts, long) in both {
            let good = hex(&parts.concat());
            let open = |key: &str, nonce: &str, aad: &str, data: &mut Vec<u8>| {
                if long {
                    Key256::new(&padded(key)).open(&padded(nonce), &hex(aad), data)
                } else {
                    Key128L::new(&padded(key)).open(&padded(nonce), &hex(aad), data)
                }
            };
            assert_eq!(open(KEY, NONCE, AD, &mut good.clone()), Ok(()));
            let (mut text, mut tag) = (good.clone(), good.clone());
            text[13] += 1;
            tag[29] += 1;
            if !long {
                tag[14] += 0x10;
            }
            let forged = [
                (NONCE, KEY, AD, good.clone()),
                (KEY, NONCE, AD, text),
                (KEY, NONCE, "0001020304050608", good),
                (KEY, NONCE, AD, tag),
            ];
            for (key, nonce, aad, mut data) in forged {
                assert_eq!(open(key, nonce, aad, &mut data), Err(Unauthentic));
                assert_eq!(data[..14], [0; 14]);
            }
        }
    }

    proptest! {
        #[test]
        fn aegis_equals_the_reference(
            key: [u8; 32], nonce: [u8; 32],
            aad in prop::collection::vec(any::<u8>(), 0..70),
            text in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut data = text.clone();
            let tag = Key256::new(&key).seal(&nonce, &aad, &mut data);
            prop_assert_eq!((data.clone(), tag), aegis_256(&key, &nonce, &aad, &text, Work::Seal));
            prop_assert_eq!((text.clone(), tag), aegis_256(&key, &nonce, &aad, &data, Work::Open));
            let (key, nonce) = (key.first_chunk().unwrap(), nonce.first_chunk().unwrap());
            let mut data = text.clone();
            let tag = Key128L::new(key).seal(nonce, &aad, &mut data);
            prop_assert_eq!((data.clone(), tag), aegis_128l(key, nonce, &aad, &text, Work::Seal));
            prop_assert_eq!((text, tag), aegis_128l(key, nonce, &aad, &data, Work::Open));
        }
    }
}
