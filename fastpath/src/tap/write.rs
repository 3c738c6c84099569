//! Remote frames, written to one queue of a tap: those that follow one another in a flow by one
//! write, as a super-frame.

use std::io::{self, IoSlice, Write};
use std::mem;

use encap::offload::coalesce::{Group, Limits};
use encap::wire::buf::{Checksum, Offload, OutFrame, Pieces, SegmentKind};
use encap::wire::checksum::complete_checksum;
use encap::wire::ethernet::ETHERNET_HEADER_LEN;

use super::TapQueue;
use crate::port::TxReport;
use crate::vnet::VnetHeader;

/// Most frames of one super-frame: what older kernels take of UDP.
const MAX_MEMBERS: usize = 64;

/// What a write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Sent,
    NoRoom,
    TooLarge,
    Failed,
}

impl TxReport {
    /// Adds `count` frames that one write came to.
    fn add(&mut self, written: Written, count: usize) {
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
        let limits = Limits {
            tcp: self.offload.coalescing_tcp(),
            udp: self.offload.coalescing_udp(),
            max_segments: MAX_MEMBERS,
            ..Limits::default()
        };
        if frames.len() < 2 || !(limits.tcp || limits.udp) {
            for frame in frames {
                report.add(self.write_member(pieces, frame), 1);
            }
            return report;
        }
        let mut coalescer = mem::take(&mut self.coalescer);
        coalescer.clear();
        for (index, frame) in frames.iter().enumerate() {
            let bytes = pieces.get(frame.span);
            if is_sound(bytes, frame.checksum) {
                coalescer.add(index, bytes, frame.checksum, limits);
            } else {
                self.counters.tx_dropped_malformed.add(1);
                report.failed += 1;
            }
        }
        for group in coalescer.groups() {
            self.write_group(&group, pieces, frames, &mut report);
        }
        self.coalescer = coalescer;
        report
    }

    /// Writes the frames of a group, all at once if that goes.
    fn write_group(
        &mut self,
        group: &Group<'_>,
        pieces: &mut Pieces,
        frames: &[OutFrame],
        report: &mut TxReport,
    ) {
        if let Some(segmentation) = group.offload.segmentation
            && let Some(written) = self.write_super_frame(group, segmentation.kind, pieces, frames)
        {
            report.add(written, group.members.len());
            return;
        }
        for member in group.members.clone() {
            if let Some(frame) = frames.get(member.index) {
                report.add(self.write_member(pieces, frame), 1);
            }
        }
    }

    /// Writes a group as one; None if its frames are to be written one by one.
    fn write_super_frame(
        &mut self,
        group: &Group<'_>,
        kind: SegmentKind,
        pieces: &Pieces,
        frames: &[OutFrame],
    ) -> Option<Written> {
        if !self.offload.coalesces(kind) {
            return None;
        }
        let header = VnetHeader::for_offload(group.offload, group.header.len()).to_bytes();
        let mut slices = [IoSlice::new(&[]); 2 + MAX_MEMBERS];
        let [first, second, payloads @ ..] = &mut slices;
        (*first, *second) = (IoSlice::new(&header), IoSlice::new(group.header));
        let (count, mut bytes) = (group.members.len(), 0);
        for (slot, member) in payloads.iter_mut().zip(group.members.clone()) {
            let frame = pieces.get(frames.get(member.index)?.span);
            *slot = IoSlice::new(frame.get(member.payload)?);
            bytes += frame.len();
        }
        match self.write_slices(slices.get(..2 + count)?) {
            Ok(()) => {
                self.counters.tx_frames.add(count as u64);
                self.counters.tx_bytes.add(bytes as u64);
                self.counters.tx_super_frames.add(1);
                self.counters.tx_coalesced_frames.add(count as u64);
                Some(Written::Sent)
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.super_frame_refused(kind);
                None
            }
            Err(error) => Some(self.refused(&error, count as u64)),
        }
    }

    fn write_slices(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(errno) = self.refuse_super_frames {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.file.write_vectored(slices).map(drop)
    }

    /// Notes that the kernel does not take a super-frame.
    fn super_frame_refused(&self, kind: SegmentKind) {
        self.counters.tx_super_frames_refused.add(1);
        if self.offload.refused(kind) {
            self.counters.tx_coalescing_ended.add(1);
            let protocol = if kind == SegmentKind::Udp { "UDP" } else { "TCP" };
            log::warn!(
                "tap {}: the kernel refuses super-frames of {protocol}; frames are written one by one from now on: slower, but nothing is lost",
                self.name
            );
        }
    }

    fn write_member(&mut self, pieces: &mut Pieces, frame: &OutFrame) -> Written {
        self.write_frame(pieces.get_mut(frame.span), frame.checksum)
    }

    fn write_frame(&mut self, frame: &mut [u8], checksum: Checksum) -> Written {
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
