//! The `psk` engine: `Noise_NNpsk0_25519_AESGCM_SHA256` by `snow`.
//!
//! Message 1 is already encrypted under the cluster key, so that a stranger costs the responder
//! one AEAD and no Diffie-Hellman. Any holder of the cluster key can claim any node id:
//! `docs/security.md` says what that means.

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{BoxedCryptoResolver, CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::{Agreement, Invalid};
use crate::crypto::key::ClusterKey;
use crate::rng::Rng;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// Bytes that Noise adds to a payload: an ephemeral public key and a tag.
pub const NOISE_OVERHEAD: usize = 32 + 16;

/// Gives out bytes that were drawn beforehand, once: the only thing that Noise draws here is one
/// ephemeral key, and it must come from the injected source.
struct Drawn(Option<Zeroizing<[u8; 32]>>);

impl Random for Drawn {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let drawn = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != drawn.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(&*drawn);
        Ok(())
    }
}

/// The default primitives over injected randomness.
struct Resolver(Zeroizing<[u8; 32]>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Drawn(Some(self.0.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

fn builder<'a>(
    key: &'a ClusterKey,
    prologue: &'a [u8],
    rng: &mut dyn Rng,
) -> Result<Builder<'a>, Invalid> {
    let mut seed = Zeroizing::new([0; 32]);
    rng.fill(&mut *seed);
    let resolver: BoxedCryptoResolver = Box::new(Resolver(seed));
    Builder::with_resolver(PATTERN.parse().map_err(|_| Invalid)?, resolver)
        .psk(0, key.psk().bytes())
        .and_then(|builder| builder.prologue(prologue))
        .map_err(|_| Invalid)
}

fn write(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, Invalid> {
    let mut message = vec![0; payload.len() + NOISE_OVERHEAD];
    let len = state.write_message(payload, &mut message).map_err(|_| Invalid)?;
    message.truncate(len);
    Ok(message)
}

fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, Invalid> {
    let mut payload = vec![0; message.len()];
    let len = state.read_message(message, &mut payload).map_err(|_| Invalid)?;
    payload.truncate(len);
    Ok(payload)
}

fn agreement(mut state: HandshakeState) -> Result<Agreement, Invalid> {
    let (first, second) = state.dangerously_get_raw_split();
    let transcript_hash = state.get_handshake_hash().try_into().map_err(|_| Invalid)?;
    Ok(Agreement {
        initiator_to_responder: Zeroizing::new(first),
        responder_to_initiator: Zeroizing::new(second),
        transcript_hash,
    })
}

/// The side that asks; waits for the response.
#[derive(Debug)]
pub struct Initiator(HandshakeState);

impl Initiator {
    /// Begins; gives the Noise message that carries `payload`.
    ///
    /// # Errors
    /// [`Invalid`] when the payload is larger than a Noise message.
    pub fn start(
        key: &ClusterKey,
        prologue: &[u8],
        payload: &[u8],
        rng: &mut dyn Rng,
    ) -> Result<(Self, Vec<u8>), Invalid> {
        let mut state = builder(key, prologue, rng)?.build_initiator().map_err(|_| Invalid)?;
        let message = write(&mut state, payload)?;
        Ok((Self(state), message))
    }

    /// Reads the response. A forged one leaves the handshake as it was.
    ///
    /// # Errors
    /// [`Invalid`] when it is not authentic.
    pub fn finish(&mut self, message: &[u8]) -> Result<Vec<u8>, Invalid> {
        read(&mut self.0, message)
    }

    /// The secrets, after [`Self::finish`].
    ///
    /// # Errors
    /// [`Invalid`] before.
    pub fn agreement(self) -> Result<Agreement, Invalid> {
        if self.0.is_handshake_finished() { agreement(self.0) } else { Err(Invalid) }
    }
}

/// The side that answers.
#[derive(Debug)]
pub struct Responder(HandshakeState);

impl Responder {
    /// Reads an initiation's Noise message and gives its payload. No Diffie-Hellman yet.
    ///
    /// # Errors
    /// [`Invalid`] when it is not authentic.
    pub fn read(
        key: &ClusterKey,
        prologue: &[u8],
        message: &[u8],
        rng: &mut dyn Rng,
    ) -> Result<(Self, Vec<u8>), Invalid> {
        let mut state = builder(key, prologue, rng)?.build_responder().map_err(|_| Invalid)?;
        let payload = read(&mut state, message)?;
        Ok((Self(state), payload))
    }

    /// Answers with `payload`.
    ///
    /// # Errors
    /// [`Invalid`] when the peer's public key is of low order.
    pub fn respond(mut self, payload: &[u8]) -> Result<(Vec<u8>, Agreement), Invalid> {
        let message = write(&mut self.0, payload)?;
        Ok((message, agreement(self.0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(u8);

    impl Rng for Counting {
        fn fill(&mut self, bytes: &mut [u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_mul(5).wrapping_add(3);
                *byte = self.0;
            }
        }
    }

    fn run(
        a: [u8; 32],
        b: [u8; 32],
        damage: Option<usize>,
    ) -> Result<(Agreement, Agreement), Invalid> {
        let (mut rng_a, mut rng_b) = (Counting(1), Counting(77));
        let (mut initiator, mut message) =
            Initiator::start(&ClusterKey::new(a), b"prologue", b"hello", &mut rng_a)?;
        if let Some(at) = damage {
            message[at] ^= 1;
        }
        let (responder, hello) =
            Responder::read(&ClusterKey::new(b), b"prologue", &message, &mut rng_b)?;
        assert_eq!(hello, b"hello");
        let (message, second) = responder.respond(b"welcome")?;
        let mut forged = message.clone();
        forged[40] ^= 1;
        assert!(initiator.finish(&forged).is_err());
        assert_eq!(initiator.finish(&message)?, b"welcome");
        Ok((initiator.agreement()?, second))
    }

    #[test]
    fn both_sides_agree_and_a_forged_response_does_no_harm() {
        let (a, b) = run([1; 32], [1; 32], None).unwrap();
        assert_eq!(a.transcript_hash, b.transcript_hash);
        assert_eq!(*a.initiator_to_responder, *b.initiator_to_responder);
        assert_eq!(*a.responder_to_initiator, *b.responder_to_initiator);
        assert_ne!(*a.responder_to_initiator, *a.initiator_to_responder);
    }

    #[test]
    fn another_key_or_a_changed_byte_is_refused() {
        assert!(run([1; 32], [2; 32], None).is_err());
        for at in 0..32 + 5 + 16 {
            assert!(run([1; 32], [1; 32], Some(at)).is_err(), "byte {at}");
        }
    }
}
