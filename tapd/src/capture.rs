//! `tapd capture`: copies the daemon's pcapng stream to a file or to standard output.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, anyhow};

use crate::control::{Client, Request};
use crate::exit::{Exit, Failure};

/// Permission bits of a capture: it holds readable frames.
const CAPTURE_MODE: u32 = 0o600;
/// Bytes copied at once.
const CHUNK_LEN: usize = 64 * 1024;
/// Bytes at a block's start that tell its type, its length and, in a section header, the byte
/// order. No block is shorter.
const BLOCK_HEAD_LEN: usize = 12;
/// Type of a section header block, the same in both byte orders.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
/// What follows a section header's length, in the byte order of the section.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Type of an Enhanced Packet Block: one frame.
const ENHANCED_PACKET: u32 = 6;

/// Asks for a capture of `count` frames, or without an end, and writes it to `target`, `-` being
/// standard output.
///
/// Without an end it is for the user to interrupt, or for who reads standard output to leave.
pub(crate) fn run(
    socket: &Path,
    request: Request,
    count: Option<u64>,
    target: &Path,
) -> Result<(), Failure> {
    let to_stdout = target == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::message(
            Exit::Usage,
            "a capture is binary; name a file with --write FILE, or pipe it into a program",
        ));
    }
    let client = Client::connect(socket)?;
    let mut stream = client.stream(request)?;
    let copied = if to_stdout {
        copy(&mut stream, &mut io::stdout().lock())
    } else {
        let mut file =
            open_private(target).with_context(|| format!("cannot write {}", target.display()))?;
        copy(&mut stream, &mut file)
    };
    let frames = match copied {
        Ok(frames) => frames,
        // Who reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(anyhow!(error).context("the capture broke off").into()),
    };
    let wanted = match count {
        Some(count) if frames >= count => return Ok(()),
        Some(count) => format!("{frames} of {count} frames"),
        None => format!("{frames} frames"),
    };
    Err(Failure::message(
        Exit::Runtime,
        format_args!(
            "the daemon ended the capture after {wanted}: it was stopped, or what reads the \
             capture was too slow; the daemon's log says which"
        ),
    ))
}

/// Empties or makes a file that only its owner can read.
fn open_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(CAPTURE_MODE)
        .open(path)?;
    // Devices and pipes stay as they are.
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(CAPTURE_MODE))?;
        file.set_len(0)?;
    }
    Ok(file)
}

/// Hands on what arrives at once, so that a reader behind a pipe sees frames as they pass; returns
/// how many frames did.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK_LEN];
    let mut counter = FrameCounter::default();
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => return Ok(counter.frames),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let read = chunk.get(..count).unwrap_or_default();
        to.write_all(read)?;
        to.flush()?;
        counter.pass(read);
    }
}

/// Counts the frames of a pcapng stream that passes in pieces of any length.
#[derive(Debug, Default)]
struct FrameCounter {
    /// Frames that passed whole.
    frames: u64,
    /// The start of a block, as far as it passed.
    head: Vec<u8>,
    /// Bytes of the block that are still to pass, behind its head.
    left: usize,
    /// Whether the block is a frame.
    is_frame: bool,
    /// The section's byte order.
    big_endian: bool,
}

impl FrameCounter {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let in_head = self.left == 0;
            let wanted = if in_head { BLOCK_HEAD_LEN - self.head.len() } else { self.left };
            let (now, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            if !in_head {
                self.left -= now.len();
                self.frames += u64::from(self.left == 0 && self.is_frame);
                continue;
            }
            self.head.extend_from_slice(now);
            if let Ok(head) = <[u8; BLOCK_HEAD_LEN]>::try_from(self.head.as_slice()) {
                self.begin(head);
                self.head.clear();
            }
        }
    }

    fn begin(&mut self, head: [u8; BLOCK_HEAD_LEN]) {
        let [t0, t1, t2, t3, l0, l1, l2, l3, magic @ ..] = head;
        if u32::from_be_bytes([t0, t1, t2, t3]) == SECTION_HEADER {
            self.big_endian = u32::from_be_bytes(magic) == BYTE_ORDER_MAGIC;
        }
        let number = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        self.is_frame = number([t0, t1, t2, t3]) == ENHANCED_PACKET;
        self.left = (number([l0, l1, l2, l3]) as usize).saturating_sub(BLOCK_HEAD_LEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use encap::id::Vni;
    use fastpath::capture::{CaptureWriter, CapturedFrame, Direction};
    use std::collections::HashMap;
    use std::time::Duration;

    /// What a daemon sends for `count` frames of two networks.
    fn stream(count: u32) -> Vec<u8> {
        let mut writer = CaptureWriter::new(Vec::new(), HashMap::new()).unwrap();
        for number in 0..count {
            let data = vec![6; 14 + number as usize * 61 % 1500];
            let frame = CapturedFrame {
                timestamp: Duration::ZERO,
                vni: Vni::new(number % 2).unwrap(),
                direction: Direction::ToPort,
                frame_len: data.len(),
                data,
            };
            writer.write(&frame).unwrap();
        }
        writer.into_inner()
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let bytes = stream(50);
        for piece in [1, 3, 11, 12, 13, 1000, bytes.len()] {
            let mut counter = FrameCounter::default();
            bytes.chunks(piece).for_each(|piece| counter.pass(piece));
            assert_eq!(counter.frames, 50, "in pieces of {piece}");
        }
        let mut copied = Vec::new();
        assert_eq!(copy(&mut &bytes[..], &mut copied).unwrap(), 50);
        assert_eq!(copied, bytes);
        // The last one is not whole.
        assert_eq!(copy(&mut &bytes[..bytes.len() - 1], &mut io::sink()).unwrap(), 49);
    }

    #[test]
    fn both_byte_orders_are_read() {
        let block = |kind: u32, body: &[u8], bytes: fn(u32) -> [u8; 4]| {
            let len = bytes(12 + u32::try_from(body.len()).unwrap());
            [&bytes(kind)[..], &len, body, &len].concat()
        };
        let mut all = Vec::new();
        for bytes in [u32::to_be_bytes, u32::to_le_bytes] {
            let magic = bytes(BYTE_ORDER_MAGIC);
            all.extend(block(SECTION_HEADER, &[&magic[..], &[0; 12]].concat(), bytes));
            all.extend(block(0x4000_0000, &[], bytes));
            all.extend(block(ENHANCED_PACKET, &[0; 20], bytes));
        }
        let mut counter = FrameCounter::default();
        counter.pass(&all);
        assert_eq!(counter.frames, 2);
    }

    #[test]
    fn garbage_ends_nothing() {
        let mut counter = FrameCounter::default();
        for byte in 0..=255 {
            counter.pass(&[byte; 1000]);
        }
        assert_eq!(counter.frames, 0);
    }

    #[test]
    fn existing_files_become_private_and_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pcapng");
        std::fs::write(&path, "an old and longer capture").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        open_private(&path).unwrap().write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), CAPTURE_MODE);
        let null = Path::new("/dev/null");
        let before = mode(null);
        open_private(null).unwrap();
        assert_eq!(mode(null), before);
    }
}
