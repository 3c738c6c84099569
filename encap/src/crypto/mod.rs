//! Lanes, epochs and the AEAD. Nothing here knows peers or networks.

pub mod aead;
pub mod key;
pub mod seal;
pub mod replay;
pub mod open;
pub mod session;
