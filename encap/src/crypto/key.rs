//! The key schedule: from the cluster key and a handshake to the key of one lane.
//!
//! HKDF-SHA256 (RFC 5869) with labels in the manner of RFC 8446 section 7.1; the labels begin
//! with `tapd1 `. Rules K1 to K5 and the test vectors are in `docs/protocol.md`.

use std::fmt;
use std::ops::Deref;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::aead::{Key, MAX_KEY_LEN, MAX_NONCE_LEN, Suite};
use crate::wire::header::Lane;

/// A 32-byte secret that is wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// Takes over the bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `HKDF-Expand(secret, length(2) | len(label)(1) | "tapd1 " label | len(context)(1) | context)`.
fn expand_label(secret: &Secret, label: &str, context: &[u8], out: &mut [u8]) {
    let mut info = Vec::with_capacity(64);
    info.extend(u16::try_from(out.len()).unwrap_or(0).to_be_bytes());
    info.push(u8::try_from(label.len() + 6).unwrap_or(0));
    info.extend(b"tapd1 ");
    info.extend(label.as_bytes());
    info.push(u8::try_from(context.len()).unwrap_or(0));
    info.extend(context);
    // Both calls fail only for lengths that are out of the question here: a secret shorter than
    // the hash, more than 255 blocks out.
    if let Ok(hkdf) = Hkdf::<Sha256>::from_prk(secret.bytes()) {
        let _ = hkdf.expand(&info, out);
    }
}

fn derive(secret: &Secret, label: &str, context: &[u8]) -> Secret {
    let mut out = Zeroizing::new([0; 32]);
    expand_label(secret, label, context, &mut *out);
    Secret(out)
}

/// Bytes of the public name of a cluster key.
pub const KEY_ID_LEN: usize = 8;

/// A cluster key and what follows from it alone (rule K1).
#[derive(Debug, Clone)]
pub struct ClusterKey {
    psk: Secret,
    mac: Secret,
    id: [u8; KEY_ID_LEN],
}

impl ClusterKey {
    /// Derives the public key id and the key of the handshake's outer MAC.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        let raw = Secret::new(bytes);
        let mut id = [0; KEY_ID_LEN];
        expand_label(&raw, "key id", b"", &mut id);
        Self { psk: derive(&raw, "psk", b""), mac: derive(&raw, "mac", b""), id }
    }

    /// The public name: says which key a handshake uses without saying the key.
    #[must_use]
    pub fn id(&self) -> [u8; KEY_ID_LEN] {
        self.id
    }

    pub(crate) fn psk(&self) -> &Secret {
        &self.psk
    }

    pub(crate) fn mac(&self) -> &Secret {
        &self.mac
    }
}

/// The secret of one direction in one epoch; the next epoch's follows from it, never the last's.
#[derive(Debug, Clone)]
pub struct EpochSecret {
    secret: Secret,
    suite: Suite,
}

impl EpochSecret {
    /// Epoch 0 of the direction that owns `split`, one of Noise's two 32-byte outputs (rule K2).
    #[must_use]
    pub fn first(split: &[u8; 32], transcript_hash: &[u8; 32], suite: Suite) -> Self {
        let (prk, _) = Hkdf::<Sha256>::extract(Some(transcript_hash), split);
        let prk = Secret::new(prk.into());
        Self { secret: derive(&prk, "dir", suite.name().as_bytes()), suite }
    }

    /// The epoch after this one (rule K3).
    #[must_use]
    pub fn next(&self) -> Self {
        let secret = derive(&self.secret, "upd", self.suite.name().as_bytes());
        Self { secret, suite: self.suite }
    }

    /// Key and IV of one lane, of the lengths that the suite has (rule K4).
    #[must_use]
    pub fn lane(&self, lane: Lane) -> LaneKey {
        let suite = self.suite;
        let mut context = suite.name().as_bytes().to_vec();
        context.push(lane.0);
        let mut both = Zeroizing::new([0; MAX_KEY_LEN + MAX_NONCE_LEN]);
        let (both, _) = both.split_at_mut(suite.key_len() + suite.nonce_len());
        expand_label(&self.secret, "lane", &context, both);
        let (from_key, from_iv) = both.split_at(suite.key_len());
        let mut key = Zeroizing::new([0; MAX_KEY_LEN]);
        for (to, from) in key.iter_mut().zip(from_key) {
            *to = *from;
        }
        LaneKey { suite, key, iv: Iv::new(from_iv) }
    }
}

/// Key and IV of one (direction, epoch, lane).
pub struct LaneKey {
    suite: Suite,
    /// The suite's key, then zeros.
    key: Zeroizing<[u8; MAX_KEY_LEN]>,
    iv: Iv,
}

impl LaneKey {
    /// The AEAD key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        self.key.get(..self.suite.key_len()).unwrap_or_default()
    }

    /// The IV that the sequence number is xored into.
    #[must_use]
    pub fn iv(&self) -> Iv {
        self.iv
    }

    /// The key, ready for use; none in clear mode.
    pub(super) fn aead(&self) -> Option<Key> {
        Key::new(self.suite, &self.key)
    }
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneKey(..)")
    }
}

/// The IV of a lane, or the nonce of one datagram, of the length that the suite has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iv {
    /// At the end, so that the number's place does not depend on the length.
    bytes: [u8; MAX_NONCE_LEN],
    len: u8,
}

impl Iv {
    /// Takes at most the first 32 bytes.
    #[must_use]
    pub fn new(iv: &[u8]) -> Self {
        let iv = iv.get(..MAX_NONCE_LEN).unwrap_or(iv);
        let mut bytes = [0; MAX_NONCE_LEN];
        for (to, from) in bytes.iter_mut().rev().zip(iv.iter().rev()) {
            *to = *from;
        }
        Self { bytes, len: iv.len() as u8 }
    }
}

impl Deref for Iv {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(MAX_NONCE_LEN - usize::from(self.len)..).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Iv {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The nonce of one datagram: the IV with the number xored, big-endian, into its last four bytes
/// (rule K5).
#[must_use]
pub fn nonce(iv: &Iv, sequence: u32) -> Iv {
    let mut nonce = *iv;
    for (byte, number) in nonce.bytes.iter_mut().rev().zip(sequence.to_le_bytes()) {
        *byte ^= number;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_takes_the_number_big_endian_at_the_end() {
        for len in [12, 16, 32] {
            let iv = Iv::new(&[0x10; 40][..len]);
            assert_eq!(iv.len(), len);
            assert_eq!(nonce(&iv, 0), iv);
            assert_eq!(nonce(&iv, 0x0102_0304)[len - 4..], [0x11, 0x12, 0x13, 0x14]);
            assert_eq!(nonce(&iv, 0x0102_0304)[..len - 4], [0x10; 40][..len - 4]);
        }
        assert_eq!(*Iv::new(&[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5]);
        assert_eq!(*Iv::new(&[7; 40]), [7; 32]);
    }

    #[test]
    fn every_input_changes_the_lane_key() {
        let base = EpochSecret::first(&[1; 32], &[2; 32], Suite::Aes256Gcm);
        let key = base.lane(Lane(0)).key().to_vec();
        assert_ne!(key, base.lane(Lane(1)).key());
        assert_ne!(key, base.next().lane(Lane(0)).key());
        let others = [
            EpochSecret::first(&[3; 32], &[2; 32], Suite::Aes256Gcm),
            EpochSecret::first(&[1; 32], &[3; 32], Suite::Aes256Gcm),
            EpochSecret::first(&[1; 32], &[2; 32], Suite::Clear),
            EpochSecret::first(&[1; 32], &[2; 32], Suite::Aegis256),
            EpochSecret::first(&[1; 32], &[2; 32], Suite::Aegis128L),
        ];
        for other in others {
            let other = other.lane(Lane(0));
            assert_ne!(key[..other.key().len()], *other.key());
        }
    }

    #[test]
    fn key_and_iv_have_the_lengths_of_the_suite() {
        for suite in Suite::ALL {
            let lane = EpochSecret::first(&[1; 32], &[2; 32], suite).lane(Lane(0));
            assert_eq!((lane.key().len(), lane.iv().len()), (suite.key_len(), suite.nonce_len()));
            assert!(lane.iv().iter().any(|byte| *byte != 0));
            assert_eq!(lane.aead().is_none(), suite == Suite::Clear);
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let key = ClusterKey::new([0xab; 32]);
        let secret = EpochSecret::first(&[0xab; 32], &[2; 32], Suite::Aes256Gcm);
        let text = format!("{key:?} {secret:?} {:?}", secret.lane(Lane(0)));
        assert!(!text.contains("171, 171"), "{text}");
    }
}
