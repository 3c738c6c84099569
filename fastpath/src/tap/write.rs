//! Remote frames, written to one queue of a tap.

use std::io::{self, IoSlice, Write};

use encap::wire::buf::{Checksum, Offload, OutFrame, Pieces};
use encap::wire::checksum::complete_checksum;
use encap::wire::ethernet::ETHERNET_HEADER_LEN;

use super::TapQueue;
use crate::port::TxReport;
use crate::vnet::VnetHeader;

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Sent,
    NoRoom,
    TooLarge,
    Failed,
}

impl TxReport {
    /// Adds `count` frames that one write came to.
    pub(super) fn add(&mut self, written: Written, count: usize) {
        match written {
            Written::Sent => self.sent += count,
            Written::NoRoom => self.no_room += count,
            Written::TooLarge => self.too_large += count,
            Written::Failed => self.failed += count,
        }
    }
}

impl TapQueue {
    /// Writes frames of one network in order. The report counts frames, not writes.
    pub fn write_burst(&mut self, pieces: &mut Pieces, frames: &[OutFrame]) -> TxReport {
        let mut report = TxReport::default();
        for frame in frames {
            let written = self.write_frame(pieces.get_mut(frame.span), frame.checksum);
            report.add(written, 1);
        }
        report
    }

    pub(super) fn write_frame(&mut self, frame: &mut [u8], checksum: Checksum) -> Written {
        if !is_sound(frame, checksum) {
            self.counters.tx_dropped_malformed.add(1);
            return Written::Failed;
        }
        let result = if self.vnet {
            let offload = Offload { checksum, segmentation: None };
            let header = VnetHeader::for_offload(offload, 0).to_bytes();
            self.file.write_vectored(&[IoSlice::new(&header), IoSlice::new(frame)])
        } else {
            if let Checksum::Partial { start, offset } = checksum
                && complete_checksum(frame, start, offset).is_err()
            {
                self.counters.tx_dropped_malformed.add(1);
                return Written::Failed;
            }
            self.file.write(frame)
        };
        match result {
            Ok(_) => {
                self.counters.tx_frames.add(1);
                self.counters.tx_bytes.add(frame.len() as u64);
                Written::Sent
            }
            Err(error) => self.refused(&error, 1),
        }
    }

    /// Accounts for `count` frames that the kernel did not take.
    fn refused(&self, error: &io::Error, count: u64) -> Written {
        let counters = &self.counters;
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                counters.tx_dropped_no_room.add(count);
                Written::NoRoom
            }
            Some(libc::EMSGSIZE) => {
                counters.tx_dropped_too_large.add(count);
                Written::TooLarge
            }
            Some(libc::EIO) => {
                counters.tx_dropped_down.add(count);
                Written::Failed
            }
            _ => {
                counters.tx_dropped_refused.add(count);
                Written::Failed
            }
        }
    }
}

/// Whether a frame has a header and its checksum field lies within.
///
/// The kernel checks the range of a partial checksum as well; asking it costs a call.
fn is_sound(frame: &[u8], checksum: Checksum) -> bool {
    let field_end = match checksum {
        Checksum::Complete => 0,
        Checksum::Partial { start, offset } => usize::from(start) + usize::from(offset) + 2,
    };
    frame.len() >= ETHERNET_HEADER_LEN && field_end <= frame.len()
}
