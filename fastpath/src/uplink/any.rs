//! Underlay ports of either kind, so that one worker serves both.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use encap::wire::buf::{BufPool, Burst, Received, Transmit};

use super::UplinkError;
use super::dpdk::DpdkUplink;
use super::socket::UdpUplink;
use crate::port::{Armed, DatagramCapabilities, DatagramPort, TxReport};

/// A worker's port to the underlay.
#[derive(Debug)]
pub enum Uplink {
    /// Through the kernel.
    Udp(Box<UdpUplink>),
    /// Past it.
    Dpdk(Box<DpdkUplink>),
}

impl DatagramPort for Uplink {
    fn rx_burst(&mut self, pool: &mut BufPool, received: &mut Burst<Received>) -> io::Result<()> {
        match self {
            Self::Udp(uplink) => uplink.rx_burst(pool, received),
            Self::Dpdk(uplink) => uplink.rx_burst(pool, received),
        }
    }

    fn tx_burst(&mut self, memory: &[u8], transmits: &[Transmit]) -> TxReport {
        match self {
            Self::Udp(uplink) => uplink.tx_burst(memory, transmits),
            Self::Dpdk(uplink) => uplink.tx_burst(memory, transmits),
        }
    }

    fn poll_error(&mut self) -> Option<UplinkError> {
        match self {
            Self::Udp(uplink) => uplink.poll_error(),
            Self::Dpdk(uplink) => uplink.poll_error(),
        }
    }

    fn capabilities(&self) -> DatagramCapabilities {
        match self {
            Self::Udp(uplink) => uplink.capabilities(),
            Self::Dpdk(uplink) => uplink.capabilities(),
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        match self {
            Self::Udp(uplink) => uplink.poll_fd(),
            Self::Dpdk(uplink) => uplink.poll_fd(),
        }
    }
    fn arm(&mut self) -> Armed {
        match self {
            Self::Udp(uplink) => uplink.arm(),
            Self::Dpdk(uplink) => uplink.arm(),
        }
    }

    fn disarm(&mut self) {
        match self {
            Self::Udp(uplink) => uplink.disarm(),
            Self::Dpdk(uplink) => uplink.disarm(),
        }
    }

    fn longest_wait(&self, now: Instant) -> Duration {
        match self {
            Self::Udp(uplink) => uplink.longest_wait(now),
            Self::Dpdk(uplink) => uplink.longest_wait(now),
        }
    }
}
