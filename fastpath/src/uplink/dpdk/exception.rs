//! The exception tap: what reaches a DPDK port and is not ours belongs to the host.

use std::io;
use std::time::{Duration, Instant};

use encap::wire::buf::{Checksum, FrameBurst, OutFrame, PacketBuf, Pieces, Span};

use super::DpdkUplinkError;
use crate::tap::{MAX_SUPER_FRAME_LEN, OffloadSwitches, Tap, TapOptions, TapQueue};
use crate::underlay::LocalAddress;

/// How often the host is asked for frames of its own: a system call each time.
const INTERVAL: Duration = Duration::from_micros(100);

/// A tap of the host.
#[derive(Debug)]
pub(super) struct Exception {
    queue: TapQueue,
    frames: FrameBurst,
    asked: Instant,
    /// Keeps the interface.
    _tap: Tap,
}

impl Exception {
    /// Makes the tap, with the port's MAC address, so that the host can have addresses beside ours.
    pub(super) fn open(
        name: &str,
        local: &LocalAddress,
        mtu: u16,
    ) -> Result<Self, DpdkUplinkError> {
        let options = TapOptions {
            name: name.to_owned(),
            queues: 1,
            existing: false,
            tap_mtu: Some(mtu.into()),
            // What leaves here must be complete: no card behind completes it.
            offload: OffloadSwitches::NONE,
            super_frame_overhead: None,
        };
        let (tap, mut queues) = Tap::open(&options)?;
        let setup = |source| DpdkUplinkError::ExceptionSetup { name: name.to_owned(), source };
        tap.interface().set_mac(local.mac).map_err(setup)?;
        tap.interface().set_up(true).map_err(setup)?;
        let queue = queues.pop().ok_or_else(|| setup(io::Error::other("it has no queue")))?;
        let frames = FrameBurst::new(2 * (MAX_SUPER_FRAME_LEN + 64), 64);
        Ok(Self { queue, frames, asked: Instant::now(), _tap: tap })
    }

    /// Gives a frame to the host; says whether it took it.
    pub(super) fn give(&mut self, frame: &[u8]) -> bool {
        let mut pieces = Pieces(vec![PacketBuf::from_slice(frame)]);
        let span = Span { piece: 0, start: 0, len: frame.len() };
        let out = OutFrame { span, checksum: Checksum::Complete };
        self.queue.write_burst(&mut pieces, &[out]).sent == 1
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
