//! What a path to a peer is worth: alive or not, how fast, how large a datagram it takes.
//!
//! Nothing here knows keys, sockets or the peer itself: [`crate::vtep`] feeds these parts and acts
//! on what they say.

pub mod id;
pub mod profile;
mod rounds;
mod histogram;
pub mod estimate;
pub mod liveness;
pub mod choice;
pub mod pmtu;
pub mod resend;
