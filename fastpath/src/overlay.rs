//! Overlay ports of either kind, so that one worker serves both.

use std::io;
use std::os::fd::RawFd;

use encap::wire::buf::{FrameBurst, OutFrame, Pieces};

use crate::port::{Armed, FrameCapabilities, FramePort, TxReport};
use crate::tap::TapQueue;
use crate::vhost::VhostQueue;

/// A worker's port to a network's stations on this node.
#[derive(Debug)]
pub enum OverlayPort {
    /// The host's: a tap.
    Tap(Box<TapQueue>),
    /// A virtual machine's.
    Vhost(Box<VhostQueue>),
}

impl FramePort for OverlayPort {
    fn rx_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()> {
        match self {
            Self::Tap(queue) => queue.rx_burst(frames),
            Self::Vhost(queue) => queue.rx_burst(frames),
        }
    }

    fn tx_burst(&mut self, pieces: &mut Pieces, frames: &[OutFrame]) -> TxReport {
        match self {
            Self::Tap(queue) => queue.tx_burst(pieces, frames),
            Self::Vhost(queue) => queue.tx_burst(pieces, frames),
        }
    }

    fn capabilities(&self) -> FrameCapabilities {
        match self {
            Self::Tap(queue) => queue.capabilities(),
            Self::Vhost(queue) => queue.capabilities(),
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        match self {
            Self::Tap(queue) => queue.poll_fd(),
            Self::Vhost(queue) => queue.poll_fd(),
        }
    }
    fn arm(&mut self) -> Armed {
        match self {
            Self::Tap(queue) => queue.arm(),
            Self::Vhost(queue) => queue.arm(),
        }
    }

    fn disarm(&mut self) {
        match self {
            Self::Tap(queue) => queue.disarm(),
            Self::Vhost(queue) => queue.disarm(),
        }
    }
}
