//! What became of the packets that were sent on one path to a peer: acknowledged, or lost.
//!
//! 1. [`rtt`]: how long a round trip takes
//! 2. [`ranges`]: what came, and what an ACK reports of it

pub mod ranges;
pub mod rtt;
