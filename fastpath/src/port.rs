//! The two edges of a worker: where frames and where datagrams come from and go to.
//!
//! Both traits speak in bursts and never block. A port that can be waited for offers a file
//! descriptor; one that cannot (memory, a polled device) returns none and the worker polls it.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use encap::wire::buf::{BufPool, Burst, FrameBurst, OutFrame, Pieces, Received, Transmit};

use crate::uplink::UplinkError;

/// Most frames that one burst holds, and most datagrams that one system call sends by themselves.
pub const MAX_BURST: usize = 64;

/// What became of a `tx_burst` call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TxReport {
    /// Packets that the device took.
    pub sent: usize,
    /// Packets that the device refused for lack of room (`EAGAIN`, `ENOBUFS`).
    pub no_room: usize,
    /// Packets larger than the path or the device allows (`EMSGSIZE`).
    pub too_large: usize,
    /// Packets that failed otherwise (unreachable, interface down).
    pub failed: usize,
}

/// What became of asking a port to wake its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    /// Its descriptor becomes readable with the next packet.
    Ready,
    /// There are packets already: look first.
    Pending,
    /// It cannot; `poll_fd` gives no descriptor from now on.
    Impossible,
}

/// What an overlay port can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameCapabilities {
    /// Largest frame in bytes that the port gives or takes, tags included.
    pub max_frame_len: usize,
    /// Whether a frame may be written with its L4 checksum still partial.
    pub tx_partial_checksum: bool,
}

/// An overlay port: a tap queue, a vhost-user queue, memory.
pub trait FramePort {
    /// Adds frames to `frames` until there are no more, or no room for the largest; adds none when
    /// there are none.
    ///
    /// # Errors
    /// The device is gone or broken; a single bad frame is not an error but counted by the port.
    fn rx_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()>;

    /// Writes `frames`, which lie in `pieces`, in their order. May change their bytes.
    fn tx_burst(&mut self, pieces: &mut Pieces, frames: &[OutFrame]) -> TxReport;

    /// What the port can do.
    fn capabilities(&self) -> FrameCapabilities;

    /// Becomes readable when `rx_burst` would give something, once [`Self::arm`] was called. None:
    /// it must be asked.
    fn poll_fd(&self) -> Option<RawFd>;

    /// Has the descriptor become readable with the next packet, where a port has to be asked for
    /// that; called before each wait.
    fn arm(&mut self) -> Armed {
        Armed::Ready
    }

    /// Takes back what [`Self::arm`] asked for, and what made the descriptor readable.
    fn disarm(&mut self) {}
}

/// What an underlay port can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramCapabilities {
    /// Largest UDP payload in bytes that the port could take, whatever the path.
    pub max_udp_payload: usize,
}

/// An underlay port: a kernel UDP socket, a DPDK queue, memory.
pub trait DatagramPort {
    /// Adds runs of datagrams in buffers of `pool`; adds none when there are none. Called once per pass
    /// of the worker, so a port that has something to do by itself does it here.
    ///
    /// # Errors
    /// The port is broken for good; errors of single datagrams are counted by the port.
    fn rx_burst(&mut self, pool: &mut BufPool, received: &mut Burst<Received>) -> io::Result<()>;

    /// Sends `transmits`, whose ranges are of `memory`, in their order; the report is in datagrams.
    fn tx_burst(&mut self, memory: &[u8], transmits: &[Transmit]) -> TxReport;

    /// The next error that the path reported for an earlier datagram; ask to the end after each
    /// burst. A port that hears of none gives none.
    fn poll_error(&mut self) -> Option<UplinkError> {
        None
    }

    /// How long nobody has to look at the port while nothing comes; `now` is about the time.
    fn longest_wait(&self, now: Instant) -> Duration {
        let _ = now;
        Duration::MAX
    }

    /// What the port can do.
    fn capabilities(&self) -> DatagramCapabilities;

    /// Becomes readable when `rx_burst` would give something, once [`Self::arm`] was called. None:
    /// it must be asked.
    fn poll_fd(&self) -> Option<RawFd>;

    /// Has the descriptor become readable with the next packet, where a port has to be asked for
    /// that; called before each wait.
    fn arm(&mut self) -> Armed {
        Armed::Ready
    }

    /// Takes back what [`Self::arm`] asked for, and what made the descriptor readable.
    fn disarm(&mut self) {}
}
