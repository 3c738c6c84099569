//! The safe layer over DPDK: its environment, packet buffers and ports.
//!
//! DPDK is loaded at run time ([`dpdk_sys`]) and started once in a process ([`Eal`]). A [`Port`] has
//! queues, each owned by one thread at a time: received packets are borrowed from their
//! [`RxQueue`], packets to be sent are written into buffers of a [`TxQueue`] and handed over by
//! [`TxQueue::flush`], so that no packet outlives the memory it lies in. [`Interrupts`] wake who does
//! not want to look all the time.
//!
//! Next: [`crate::uplink::dpdk`] for the underlay, [`crate::vhost`] for virtual machines.

mod eal;
mod interrupts;
mod look;
mod pool;
mod port;
mod queue;

pub use eal::{Eal, EalOptions, Hugepages};
pub use interrupts::Interrupts;
pub use look::Shim;
pub use pool::Pool;
pub use port::{Port, PortInfo, PortOptions};
pub use queue::{PacketWriter, RxBurst, RxPacket, RxQueue, TxOffload, TxQueue};

pub use dpdk_sys::{LoadError, Stats};

use std::io;

/// What a port's hardware, or the other side of a virtual one, may be asked to do; see
/// `dpdk_sys::CAP_*`.
pub mod capability {
    pub use dpdk_sys::{
        CAP_RX_IP_SUM as RX_IP_SUM, CAP_RX_L4_SUM as RX_L4_SUM, CAP_RX_LRO as RX_LRO,
        CAP_RX_SCATTER as RX_SCATTER, CAP_TX_IP_SUM as TX_IP_SUM, CAP_TX_MULTI as TX_MULTI,
        CAP_TX_TCP_SEG as TX_TCP_SEG, CAP_TX_TCP_SUM as TX_TCP_SUM, CAP_TX_UDP_SUM as TX_UDP_SUM,
    };
}

/// Why DPDK, or a port of it, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DpdkError {
    /// The shim or DPDK is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// DPDK's environment does not start.
    #[error("DPDK does not start ({hint})")]
    Start {
        /// DPDK's errno.
        source: io::Error,
        /// What it usually is.
        hint: &'static str,
    },
    /// An argument that would end the process, or that cannot be passed on.
    #[error("EAL argument {0:?} is not possible here")]
    BadArgument(String),
    /// No memory for packet buffers.
    #[error("no memory for {count} packet buffers of {room} bytes; raise memory_mb in [dpdk]")]
    NoMemory {
        /// Buffers wanted.
        count: u32,
        /// Bytes of each.
        room: u16,
        /// DPDK's errno.
        source: io::Error,
    },
    /// A card without an IOMMU before it, and packet memory in ordinary pages.
    #[error(
        "without an IOMMU, cards reach packet memory only in hugepages: free some, as many as \
         memory_mb in [dpdk] says, or switch the IOMMU on and bind the cards to vfio-pci"
    )]
    NeedsHugepages,
    /// A port refuses.
    #[error("DPDK port {device}: cannot {action}")]
    Port {
        /// The port as it was named.
        device: String,
        /// What was asked of it.
        action: &'static str,
        /// DPDK's errno.
        source: io::Error,
    },
    /// A port has fewer queues than there are workers.
    #[error(
        "DPDK port {device} has {has} queues, and {needs} are needed, one for each worker: set \
         workers = {has}, or give the port more queues"
    )]
    TooFewQueues {
        /// The port as it was named.
        device: String,
        /// Its queues.
        has: u16,
        /// As many as there are workers.
        needs: u16,
    },
}

/// A negative errno as an error.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}
