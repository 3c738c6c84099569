//! The tap: where frames of the local kernel come in and where remote frames go out.
//!
//! Each frame is one `read` or `writev`, with a virtio-net header in front that says whether the
//! L4 checksum is still to be taken, and whether the frame is a super-frame: a run of TCP or UDP
//! segments with one set of headers.
//!
//! Next: [`crate::port`], then the worker.

mod open;
mod offload;
mod read;
mod write;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use encap::offload::coalesce::Coalescer;
use encap::wire::buf::{FrameBurst, OutFrame, Pieces};
use encap::wire::ethernet::{ETHERNET_HEADER_LEN, MAX_VLAN_TAGS, VLAN_TAG_LEN};

pub use self::offload::{OffloadSwitches, TapOffload};

use self::open::{attach_first, open_device, prepare, set_iff};
use crate::counter::counters;
use crate::error::OpenError;
use crate::interface::{Interface, is_valid_name};
use crate::port::{FrameCapabilities, FramePort, TxReport};

/// Largest MTU that the kernel lets a tap have, in bytes of IP packet.
pub const MAX_TAP_MTU: u32 = 65_521;
/// Largest frame that a tap can give, tags included, in bytes.
pub const MAX_TAP_FRAME_LEN: usize =
    MAX_TAP_MTU as usize + ETHERNET_HEADER_LEN + MAX_VLAN_TAGS * VLAN_TAG_LEN;
/// Largest super-frame that a tap can give, tags included, in bytes: that of an IP packet of 65,535.
pub const MAX_SUPER_FRAME_LEN: usize = 65_535 + ETHERNET_HEADER_LEN + MAX_VLAN_TAGS * VLAN_TAG_LEN;
/// Most queues of one tap (the kernel's own limit).
pub const MAX_QUEUES: usize = 256;
/// Unread frames that the kernel keeps per queue; the default of 500 overflows in one burst.
const TX_QUEUE_LEN: u32 = 4000;

/// Which tap, and how.
#[derive(Debug, Clone)]
pub struct TapOptions {
    /// Name of the interface, 1 to 15 bytes.
    pub name: String,
    /// Queues, one per worker: 1 to [`MAX_QUEUES`].
    pub queues: usize,
    /// Attach to a persistent tap that somebody made, instead of making one.
    pub existing: bool,
    /// Bytes of the largest IP packet; None leaves what the kernel chose.
    pub tap_mtu: Option<u32>,
    /// What to leave to others; all of it is asked for where the kernel has it.
    pub offload: OffloadSwitches,
    /// Bytes that a frame grows by on its way into a UDP payload. With it the kernel is told to
    /// make TCP super-frames no longer than what leaves the node in one run of datagrams; see
    /// [`Interface::limit_super_frames`] for whom that serves. None leaves what there is: 64 KiB.
    pub super_frame_overhead: Option<u32>,
}

/// Something that the kernel or an existing tap could not give; the tap works without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Degraded {
    /// No virtio-net header: checksums are taken in software on write.
    #[error("no virtio-net header: partial checksums are completed in software")]
    NoVnetHeader,
    /// Fewer queues than workers.
    #[error("the tap has a single queue: only the first worker reads it")]
    SingleQueue,
    /// The kernel takes every checksum before a frame is read.
    #[error("no checksum offload: the kernel completes every checksum")]
    NoChecksumOffload,
    /// The kernel cuts TCP super-frames before they are read.
    #[error("no TCP segmentation offload: the kernel cuts super-frames of TCP")]
    NoTcpSegmentation,
    /// The kernel cuts UDP super-frames before they are read (before Linux 6.2).
    #[error("no UDP segmentation offload: the kernel cuts super-frames of UDP (Linux 6.2 has it)")]
    NoUdpSegmentation,
    /// Super-frames are as long as the kernel likes.
    #[error("the length of super-frames cannot be set: some leave as two runs of datagrams")]
    NoSuperFrameLimit,
}

counters! {
    /// What one queue of a tap has seen. Written by the worker that owns the queue.
    pub struct TapCounters {
        /// Frames read; a super-frame counts once.
        rx_frames,
        /// Bytes of frames read, headers of the tap not counted.
        rx_bytes,
        /// Super-frames read.
        rx_super_frames,
        /// Bytes of super-frames read.
        rx_super_frame_bytes,
        /// Frames read whose checksum is left partial for the far end.
        rx_partial_checksums,
        /// Frames read whose partial checksum was completed here, as no parser would find it.
        rx_checksums_completed,
        /// Reads dropped: shorter than an Ethernet header.
        rx_dropped_short,
        /// Reads that failed, one frame each.
        rx_errors,
        /// Reads dropped: longer than a packet buffer.
        rx_dropped_long,
        /// Reads dropped: the virtio-net header lies or speaks of what was not negotiated.
        rx_dropped_bad_header,
        /// Reads dropped: the virtio-net header announces a super-frame that the frame is not.
        rx_dropped_bad_super_frame,
        /// Frames written, each member of a super-frame counted.
        tx_frames,
        /// Bytes of frames written.
        tx_bytes,
        /// Super-frames written.
        tx_super_frames,
        /// Frames written as part of super-frames.
        tx_coalesced_frames,
        /// Super-frames that the kernel refused; their frames were written one by one.
        tx_super_frames_refused,
        /// Protocols whose frames are written one by one for good, since super-frames of them
        /// were refused. Counted by the queue that met the last refusal.
        tx_coalescing_ended,
        /// Frames dropped: no room in the kernel.
        tx_dropped_no_room,
        /// Frames dropped: the interface is down.
        tx_dropped_down,
        /// Frames dropped: shorter than an Ethernet header, or a checksum field outside of it.
        tx_dropped_malformed,
        /// Frames dropped: larger than the tap takes.
        tx_dropped_too_large,
        /// Frames dropped: refused by the kernel for another reason, a tap that is gone included.
        tx_dropped_refused,
    }
}

/// What is known of an open tap. The interface vanishes with the last [`TapQueue`] unless it
/// was made persistent by somebody else.
#[derive(Debug)]
pub struct Tap {
    interface: Interface,
    counters: Vec<Arc<TapCounters>>,
    degraded: Vec<Degraded>,
    offload: Arc<TapOffload>,
}

impl Tap {
    /// Opens the tap and all its queues; the interface is left down.
    ///
    /// Asks the kernel for the most and degrades step by step; [`Self::degraded`] tells.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is left behind.
    pub fn open(options: &TapOptions) -> Result<(Self, Vec<TapQueue>), OpenError> {
        let tap = options.name.as_str();
        if !is_valid_name(tap) {
            return Err(OpenError::InvalidName(tap.to_owned()));
        }
        if !(1..=MAX_QUEUES).contains(&options.queues) {
            return Err(OpenError::QueueCount { tap: tap.to_owned(), queues: options.queues });
        }
        if options.existing && Interface::open(tap).is_err() {
            return Err(OpenError::Missing { tap: tap.to_owned() });
        }
        let setup =
            |action| move |source| OpenError::Setup { tap: options.name.clone(), action, source };
        let (first, mode) = attach_first(options)?;
        let mut degraded = Vec::new();
        if !mode.vnet {
            degraded.push(Degraded::NoVnetHeader);
        }
        if options.queues > 1 && !mode.multi_queue {
            degraded.push(Degraded::SingleQueue);
        }
        let mut files = vec![first];
        let queues = if mode.multi_queue { options.queues } else { 1 };
        while files.len() < queues {
            let file = open_device()?;
            set_iff(&file, tap, mode, false).map_err(setup("open another queue"))?;
            files.push(file);
        }
        let mut granted = options.offload;
        for file in &files {
            granted = prepare(file, mode, granted).map_err(setup("set the virtio-net header"))?;
        }
        degraded.extend(missing(options.offload, granted).filter(|_| mode.vnet));
        let mut interface = Interface::open(tap).map_err(setup("find its interface"))?;
        interface.set_tx_queue_len(TX_QUEUE_LEN).map_err(setup("set the transmit queue length"))?;
        if let Some(tap_mtu) = options.tap_mtu {
            interface.set_tap_mtu(tap_mtu).map_err(setup("set the MTU"))?;
        }
        if let Some(overhead) = options.super_frame_overhead
            && granted.segmentation_tcp
            && interface.limit_super_frames(overhead).is_err()
        {
            degraded.push(Degraded::NoSuperFrameLimit);
        }
        let offload = Arc::new(TapOffload::new(granted));
        let queue = |file| TapQueue::new(file, tap, mode.vnet, Arc::clone(&offload));
        let queues: Vec<_> = files.into_iter().map(queue).collect();
        let counters = queues.iter().map(|queue| Arc::clone(&queue.counters)).collect();
        Ok((Self { interface, counters, degraded, offload }, queues))
    }

    /// The interface, to set its addresses, its MTU and its state.
    #[must_use]
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Counters of each queue, in the order of the queues.
    #[must_use]
    pub fn counters(&self) -> &[Arc<TapCounters>] {
        &self.counters
    }

    /// What the tap has to do without.
    #[must_use]
    pub fn degraded(&self) -> &[Degraded] {
        &self.degraded
    }

    /// Which of its offloads are at work; any thread may keep it and look.
    #[must_use]
    pub fn offload(&self) -> &Arc<TapOffload> {
        &self.offload
    }

    /// Whether the kernel gives super-frames of TCP or UDP.
    #[must_use]
    pub fn segmentation(&self) -> bool {
        let granted = self.offload.granted();
        granted.segmentation_tcp || granted.segmentation_udp
    }

    /// Whether frames of TCP or UDP are written as super-frames at the moment.
    #[must_use]
    pub fn coalescing(&self) -> bool {
        self.offload.coalescing_tcp() || self.offload.coalescing_udp()
    }
}

/// What was wanted and is not to be had.
fn missing(wanted: OffloadSwitches, granted: OffloadSwitches) -> impl Iterator<Item = Degraded> {
    let wanted = wanted.consistent();
    [
        (wanted.checksum && !granted.checksum, Degraded::NoChecksumOffload),
        (wanted.segmentation_tcp && !granted.segmentation_tcp, Degraded::NoTcpSegmentation),
        (wanted.segmentation_udp && !granted.segmentation_udp, Degraded::NoUdpSegmentation),
    ]
    .into_iter()
    .filter_map(|(missing, what)| missing.then_some(what))
}

/// One queue of a tap, owned by one worker.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
    name: String,
    vnet: bool,
    offload: Arc<TapOffload>,
    counters: Arc<TapCounters>,
    /// Memory for [`Self::write_burst`].
    coalescer: Coalescer,
    /// The errno of every write of a super-frame, for tests.
    #[cfg(test)]
    refuse_super_frames: Option<i32>,
}

impl TapQueue {
    fn new(file: File, name: &str, vnet: bool, offload: Arc<TapOffload>) -> Self {
        Self {
            file,
            name: name.to_owned(),
            vnet,
            offload,
            counters: Arc::default(),
            coalescer: Coalescer::new(),
            #[cfg(test)]
            refuse_super_frames: None,
        }
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<TapCounters> {
        &self.counters
    }

    /// Which offloads of the tap are at work.
    #[must_use]
    pub fn offload(&self) -> &Arc<TapOffload> {
        &self.offload
    }
}

impl FramePort for TapQueue {
    fn rx_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()> {
        self.read_burst(frames)
    }

    fn tx_burst(&mut self, pieces: &mut Pieces, frames: &[OutFrame]) -> TxReport {
        self.write_burst(pieces, frames)
    }

    fn capabilities(&self) -> FrameCapabilities {
        FrameCapabilities { max_frame_len: MAX_TAP_FRAME_LEN, tx_partial_checksum: self.vnet }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests;
