//! Who the peer is, and a fresh secret with it.
//!
//! The engine in use is [`psk`]. The rest of the crate sees only what an [`Agreement`] holds, so
//! that other engines can stand beside it.

pub mod features;
pub mod hello;
pub mod psk;
pub mod cookie;

use zeroize::Zeroizing;

/// What a finished handshake gives.
pub struct Agreement {
    /// Secret of the direction from initiator to responder.
    pub initiator_to_responder: Zeroizing<[u8; 32]>,
    /// Secret of the direction from responder to initiator.
    pub responder_to_initiator: Zeroizing<[u8; 32]>,
    /// Hash of everything that both sides said.
    pub transcript_hash: [u8; 32],
}

impl std::fmt::Debug for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Agreement(..)")
    }
}

/// The message is not authentic, or not of this handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("handshake message does not authenticate")]
pub struct Invalid;
