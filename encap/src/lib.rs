//! The tapd protocol: Ethernet frames to sealed datagrams and back.
//!
//! Pure: no sockets, no clock, no threads, no unsafe. Time and randomness are arguments.
//!
//! A node is a [`vtep::Vtep`], the control half, and one [`datapath::Datapath`] for each worker.
//! Who reads the files in this order reads one frame's life:
//!
//! 1. [`tx`]: the stages of the way out, one line each
//! 2. [`wire::ethernet`]: checked view of the frame
//! 3. [`forward::fdb`]: destination address to peer, or to all
//! 4. [`wire::header`]: the 8 clear and 2 sealed header bytes
//! 5. [`crypto::seal`]: number taken, sealed in place, tag appended
//! 6. [`rx`]: the stages of the way in, one line each
//! 7. [`crypto::replay`]: copies and ancient numbers stop before any decryption
//! 8. [`crypto::open`]: opened in place, then committed
//! 9. [`forward::fdb`]: source address learnt for this peer
//!
//! The rules that code and tests cite (H1, L2, ...) are those of `docs/protocol.md`.
#![forbid(unsafe_code)]
// A test begins its virtual time somewhere.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod tx;
pub mod rx;
pub mod reassembly;
pub mod compress;
pub mod datapath;
pub mod vtep;
mod channels;
mod paths;
mod peer;
pub mod tables;
pub mod wire;
pub mod offload;
pub mod forward;
pub mod crypto;
pub mod handshake;
pub mod channel;
pub mod link;
pub mod stats;
pub mod event;
mod timer;
pub mod rng;
pub mod id;
