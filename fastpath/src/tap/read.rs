//! Frames of the local kernel, read from one queue of a tap.

use std::io::{self, Read};

use encap::wire::buf::{Checksum, FrameBurst, Offload};
use encap::wire::ethernet::ETHERNET_HEADER_LEN;

use super::{MAX_SUPER_FRAME_LEN, TapQueue};
use crate::port::MAX_BURST;
use crate::vnet::{Settled, VNET_HEADER_LEN, VnetFault, VnetHeader, settle};

/// What one read gave.
enum ReadFrame {
    /// A frame of that many bytes, behind the tap's header.
    Frame(usize, Offload),
    Bad,
    Nothing,
}

impl TapQueue {
    /// Reads frames until the queue is empty, the burst is full or less than the largest frame +
    /// header fits.
    ///
    /// # Errors
    /// The tap is gone, or the largest frame does not even fit an empty burst.
    pub fn read_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()> {
        let header_len = self.header_len();
        // One byte more than allowed: the kernel cuts a long frame silently.
        let needed = header_len + MAX_SUPER_FRAME_LEN + 1;
        let mut bad = 0;
        while bad < MAX_BURST {
            let room = frames.room();
            let Some(room) = room.get_mut(..needed) else {
                if frames.is_empty() {
                    return Err(io::Error::other("a burst has no room for the largest frame"));
                }
                break;
            };
            match self.read_into(room)? {
                ReadFrame::Frame(len, offload) => {
                    self.counters.rx_frames.add(1);
                    self.counters.rx_bytes.add(len as u64);
                    if offload.segmentation.is_some() {
                        self.counters.rx_super_frames.add(1);
                        self.counters.rx_super_frame_bytes.add(len as u64);
                    }
                    frames.push(header_len, len, offload);
                }
                ReadFrame::Bad => bad += 1,
                ReadFrame::Nothing => break,
            }
        }
        Ok(())
    }

    fn header_len(&self) -> usize {
        if self.vnet { VNET_HEADER_LEN } else { 0 }
    }

    /// Reads one frame and the tap's header in front of it into `room`, and makes its offload state
    /// one that can travel.
    fn read_into(&self, room: &mut [u8]) -> io::Result<ReadFrame> {
        let header_len = self.header_len();
        let len = match (&self.file).read(room) {
            Ok(len) => len,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(ReadFrame::Nothing),
                // One frame that the kernel cannot hand over is not the end of the tap.
                _ if !is_gone(&error) => {
                    self.counters.rx_errors.add(1);
                    return Ok(ReadFrame::Bad);
                }
                _ => {
                    return Err(io::Error::new(
                        io::ErrorKind::NotConnected,
                        format!("tap {} is gone: {error}", self.name),
                    ));
                }
            },
        };
        if len > header_len + MAX_SUPER_FRAME_LEN {
            self.counters.rx_dropped_long.add(1);
            return Ok(ReadFrame::Bad);
        }
        let Some((header, frame)) =
            room.get_mut(..len).and_then(|r| r.split_at_mut_checked(header_len))
        else {
            self.counters.rx_dropped_short.add(1);
            return Ok(ReadFrame::Bad);
        };
        if frame.len() < ETHERNET_HEADER_LEN {
            self.counters.rx_dropped_short.add(1);
            return Ok(ReadFrame::Bad);
        }
        let offload = match header.first_chunk() {
            Some(header) => self.settle(&VnetHeader::from_bytes(header), frame),
            None => Some(Offload::default()),
        };
        Ok(offload.map_or(ReadFrame::Bad, |offload| ReadFrame::Frame(frame.len(), offload)))
    }

    fn settle(&self, header: &VnetHeader, frame: &mut [u8]) -> Option<Offload> {
        match settle(header, frame, self.offload.granted()) {
            Ok(Settled::AsAnnounced(offload)) => {
                if offload.checksum != Checksum::Complete {
                    self.counters.rx_partial_checksums.add(1);
                }
                Some(offload)
            }
            Ok(Settled::CompletedHere) => {
                self.counters.rx_checksums_completed.add(1);
                Some(Offload::default())
            }
            Err(VnetFault::SuperFrame) => {
                self.counters.rx_dropped_bad_super_frame.add(1);
                None
            }
            Err(_) => {
                self.counters.rx_dropped_bad_header.add(1);
                None
            }
        }
    }
}

/// Whether a read says that the interface was deleted or the descriptor is not one any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::EFAULT))
}
