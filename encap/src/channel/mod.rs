//! Raw channels: messages and streams between nodes, beside the Ethernet frames.
//!
//! Pure state machines. Nothing here knows keys, sockets or the peer.

pub mod recovery;
//! Raw channels: messages and streams between nodes beside the Ethernet frames.

pub mod congestion;
