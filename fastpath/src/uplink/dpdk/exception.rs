//! The exception tap: what reaches a DPDK port and is not ours belongs to the host.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use encap::forward::policer::Policer;
use encap::wire::buf::{Checksum, FrameBurst, OutFrame, PacketBuf, Pieces, Span};

use super::DpdkUplinkError;
use crate::port::FramePort;
use crate::tap::{MAX_SUPER_FRAME_LEN, OffloadSwitches, Tap, TapOptions, TapQueue};
use crate::underlay::LocalAddress;

/// How often the host is asked for frames of its own: a system call each time.
const INTERVAL: Duration = Duration::from_micros(100);

/// Frames that one worker gives to the host in a second at most: a storm on the cable is no reason to
/// keep datagrams waiting.
const FRAMES_PER_SECOND: u32 = 20_000;

/// One worker's queue of a tap of the host.
#[derive(Debug)]
pub(super) struct Exception {
    queue: TapQueue,
    frames: FrameBurst,
    asked: Instant,
    limit: Policer,
    /// Keeps the interface.
    _tap: Arc<Tap>,
}

impl Exception {
    /// Makes the tap, with the port's MAC address, so that the host can have addresses beside ours;
    /// gives a queue for each worker.
    pub(super) fn open(
        name: &str,
        local: &LocalAddress,
        mtu: u16,
        workers: usize,
    ) -> Result<Vec<Self>, DpdkUplinkError> {
        let options = TapOptions {
            name: name.to_owned(),
            queues: workers,
            existing: false,
            tap_mtu: Some(mtu.into()),
            // What leaves here must be complete: no card behind completes it.
            offload: OffloadSwitches::NONE,
            super_frame_overhead: None,
        };
        let (tap, queues) = Tap::open(&options)?;
        let setup = |source| DpdkUplinkError::ExceptionSetup { name: name.to_owned(), source };
        tap.interface().set_mac(local.mac).map_err(setup)?;
        tap.interface().set_up(true).map_err(setup)?;
        if queues.len() < workers {
            return Err(setup(io::Error::other("it has fewer queues than there are workers")));
        }
        let (tap, now) = (Arc::new(tap), Instant::now());
        let exceptions = queues.into_iter().map(|queue| Self {
            queue,
            frames: FrameBurst::new(2 * (MAX_SUPER_FRAME_LEN + 64), 64),
            asked: now,
            limit: Policer::new(now, FRAMES_PER_SECOND, FRAMES_PER_SECOND / 10),
            _tap: Arc::clone(&tap),
        });
        Ok(exceptions.collect())
    }

    /// Gives a frame to the host; says whether it took it.
    pub(super) fn give(&mut self, now: Instant, frame: &[u8]) -> bool {
        if !self.limit.take(now) {
            return false;
        }
        let mut pieces = Pieces(vec![PacketBuf::from_slice(frame)]);
        let span = Span { piece: 0, start: 0, len: frame.len() };
        let out = OutFrame { span, checksum: Checksum::Complete };
        self.queue.write_burst(&mut pieces, &[out]).sent == 1
    }

    /// Readable while the host has frames.
    pub(super) fn poll_fd(&self) -> Option<RawFd> {
        self.queue.poll_fd()
    }

    /// Whether it is time to ask the host again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked) >= INTERVAL
    }

    /// Frames that the host sends.
    pub(super) fn take(&mut self) -> &mut FrameBurst {
        self.asked = Instant::now();
        self.frames.clear();
        // A tap that is gone gives nothing more; the port goes on without it.
        let _ = self.queue.read_burst(&mut self.frames);
        &mut self.frames
    }
}
