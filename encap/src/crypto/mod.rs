//! Lanes, epochs and the AEAD. Nothing here knows peers or networks.

pub mod aead;
mod aes;
mod aegis;
pub mod key;
pub mod seal;
pub mod replay;
pub mod open;
pub mod session;
pub mod bench;
#[cfg(test)]
mod reference;
