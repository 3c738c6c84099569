//! Packet input and output for tapd: ports and the workers between them.
//!
//! A [`worker::Worker`] runs frames to completion: it reads a burst from a tap ([`tap`]), has it
//! sealed ([`encap::tx`]), sends it by an uplink ([`uplink`]), and the same back
//! ([`encap::rx`]). Unsafe code is in the files that talk to the kernel only: `tap`, `interface`,
//! `wake`, `process`, `accounts`, `probe`, `affinity`, `channel::{batch,system}`, and those under
//! `uplink` and `dpdk`.

pub mod tap;
pub mod vhost;
pub mod overlay;
pub mod channel;
pub mod vnet;
pub mod port;
pub mod worker;
pub mod uplink;
pub mod dpdk;
pub mod underlay;
pub mod neighbor;
pub mod memory;
pub mod capture;
pub mod counter;
pub mod interface;
pub mod monitor;
mod netlink;
pub mod accounts;
pub mod affinity;
pub mod process;
pub mod probe;
pub mod wake;
pub mod error;
