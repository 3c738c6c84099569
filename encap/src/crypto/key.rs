//! The key schedule: from the cluster key and a handshake to the key of one lane.
//!
//! HKDF-SHA256 (RFC 5869) with labels in the manner of RFC 8446 section 7.1; the labels begin
//! with `tapd1 `. Rules K1 to K5 and the test vectors are in `docs/protocol.md`.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::aead::{KEY_LEN, NONCE_LEN, Suite};
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

    /// Key and IV of one lane (rule K4).
    #[must_use]
    pub fn lane(&self, lane: Lane) -> LaneKey {
        let mut context = self.suite.name().as_bytes().to_vec();
        context.push(lane.0);
        let mut out = Zeroizing::new([0; KEY_LEN + NONCE_LEN]);
        expand_label(&self.secret, "lane", &context, &mut *out);
        let (mut key, mut iv) = (Zeroizing::new([0; KEY_LEN]), [0; NONCE_LEN]);
        for (to, from) in key.iter_mut().chain(&mut iv).zip(out.iter()) {
            *to = *from;
        }
        LaneKey { key, iv }
    }
}

/// Key and IV of one (direction, epoch, lane).
pub struct LaneKey {
    key: Zeroizing<[u8; KEY_LEN]>,
    iv: [u8; NONCE_LEN],
}

impl LaneKey {
    /// The AEAD key.
    #[must_use]
    pub fn key(&self) -> &[u8; KEY_LEN] {
        &self.key
    }

    /// The IV that the sequence number is xored into.
    #[must_use]
    pub fn iv(&self) -> [u8; NONCE_LEN] {
        self.iv
    }
}

impl fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LaneKey(..)")
    }
}

/// The nonce of one datagram: the IV with the number xored, big-endian, into its last four bytes
/// (rule K5).
#[must_use]
pub fn nonce(iv: &[u8; NONCE_LEN], sequence: u32) -> [u8; NONCE_LEN] {
    let mut nonce = *iv;
    for (byte, number) in nonce.iter_mut().rev().zip(sequence.to_le_bytes()) {
        *byte ^= number;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_takes_the_number_big_endian_at_the_end() {
        let iv = [0x10; 12];
        assert_eq!(nonce(&iv, 0), iv);
        assert_eq!(nonce(&iv, 0x0102_0304)[8..], [0x11, 0x12, 0x13, 0x14]);
        assert_eq!(nonce(&iv, 0x0102_0304)[..8], [0x10; 8]);
    }

    #[test]
    fn every_input_changes_the_lane_key() {
        let base = EpochSecret::first(&[1; 32], &[2; 32], Suite::Aes256Gcm);
        let key = *base.lane(Lane(0)).key();
        assert_ne!(key, *base.lane(Lane(1)).key());
        assert_ne!(key, *base.next().lane(Lane(0)).key());
        for other in [
            EpochSecret::first(&[3; 32], &[2; 32], Suite::Aes256Gcm),
            EpochSecret::first(&[1; 32], &[3; 32], Suite::Aes256Gcm),
            EpochSecret::first(&[1; 32], &[2; 32], Suite::Clear),
        ] {
            assert_ne!(key, *other.lane(Lane(0)).key());
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
