//! Packet input and output.

pub mod tap;
pub mod vnet;
pub mod port;
pub mod uplink;
pub mod memory;
pub mod capture;
pub mod counter;
pub mod interface;
pub mod affinity;
pub mod error;
