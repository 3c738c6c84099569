//! Capture of overlay frames into a pcapng stream.
//!
//! Workers offer every frame; while no capture runs that is one atomic load. A running capture
//! copies the frames that it wants into a bounded queue, never waits, and counts what did not
//! fit. Another thread drains the queue and writes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Cache};
use encap::id::Vni;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

/// Frames that wait at most to be written. With super-frames they are 64 MiB.
const QUEUE_LEN: usize = 1024;
/// pcapng's if_tsresol for nanoseconds: 10^-9.
const NANOSECONDS: u8 = 9;

/// Where a frame was going when it was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Read from the local port, towards other nodes.
    FromPort,
    /// From another node, towards the local port.
    ToPort,
}

/// A captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFrame {
    /// When, as time since 1970-01-01 00:00 UTC.
    pub timestamp: Duration,
    /// The network that it belongs to.
    pub vni: Vni,
    /// Where it was going.
    pub direction: Direction,
    /// Its length on the wire, in bytes.
    pub frame_len: usize,
    /// Its first bytes, from the destination address on.
    pub data: Vec<u8>,
}

/// Which frames a capture wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    /// Only those of this network.
    pub vni: Option<Vni>,
    /// At most this many bytes of each; None is all.
    pub snap_len: Option<usize>,
}

/// A running capture.
#[derive(Debug)]
struct Session {
    filter: CaptureFilter,
    queue: SyncSender<CapturedFrame>,
    dropped: AtomicU64,
}

type Slot = Arc<ArcSwapOption<Session>>;

/// Turns capture on and off; belongs to the control thread.
#[derive(Debug, Default)]
pub struct Capture {
    slot: Slot,
}

/// A capture is running already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a capture is running already: stop it first")]
pub struct AlreadyRunning;

impl Capture {
    /// Nothing is captured yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a worker offers its frames to.
    #[must_use]
    pub fn tap(&self) -> CaptureTap {
        CaptureTap { session: Cache::new(Arc::clone(&self.slot)) }
    }

    /// Starts to capture; the capture ends when the result is dropped.
    ///
    /// # Errors
    /// [`AlreadyRunning`]: there is one capture at a time.
    pub fn start(&self, filter: CaptureFilter) -> Result<CaptureDrain, AlreadyRunning> {
        let (queue, frames) = sync_channel(QUEUE_LEN);
        let session = Arc::new(Session { filter, queue, dropped: AtomicU64::new(0) });
        let none: Option<Arc<Session>> = None;
        let before = self.slot.compare_and_swap(&none, Some(Arc::clone(&session)));
        if before.is_some() {
            return Err(AlreadyRunning);
        }
        Ok(CaptureDrain { slot: Arc::clone(&self.slot), session, frames })
    }
}

/// A worker's end.
#[derive(Debug)]
pub struct CaptureTap {
    session: Cache<Slot, Option<Arc<Session>>>,
}

impl CaptureTap {
    /// Whether a capture runs: one atomic load. Ask once per burst and skip [`Self::offer`].
    pub fn is_running(&mut self) -> bool {
        self.session.load().is_some()
    }

    /// Captures `frame` if a capture runs that wants it. Never waits.
    ///
    /// `timestamp` is the time since 1970-01-01 00:00 UTC.
    pub fn offer(&mut self, timestamp: Duration, vni: Vni, direction: Direction, frame: &[u8]) {
        let Some(session) = self.session.load() else { return };
        if session.filter.vni.is_some_and(|wanted| wanted != vni) {
            return;
        }
        let kept = session.filter.snap_len.unwrap_or(usize::MAX).min(frame.len());
        let data = frame.get(..kept).unwrap_or_default().to_vec();
        let captured = CapturedFrame { timestamp, vni, direction, frame_len: frame.len(), data };
        if session.queue.try_send(captured).is_err() {
            session.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The end that takes captured frames out; dropping it ends the capture.
#[derive(Debug)]
pub struct CaptureDrain {
    slot: Slot,
    session: Arc<Session>,
    frames: Receiver<CapturedFrame>,
}

impl CaptureDrain {
    /// The next frame, for which it waits at most `timeout`.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<CapturedFrame> {
        self.frames.recv_timeout(timeout).ok()
    }

    /// The next frame, if one is there.
    #[must_use]
    pub fn try_next(&self) -> Option<CapturedFrame> {
        self.frames.try_recv().ok()
    }

    /// Frames that did not fit into the queue so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.session.dropped.load(Ordering::Relaxed)
    }

    /// Captures nothing more; what is queued can still be taken.
    pub fn stop(&self) {
        self.slot.compare_and_swap(&self.session, None);
    }
}

impl Drop for CaptureDrain {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes captured frames as pcapng, one pcapng interface per network.
pub struct CaptureWriter<W: Write> {
    out: PcapNgWriter<W>,
    /// Number of each network's interface.
    interfaces: HashMap<Vni, u32>,
    /// Names of interfaces that are better than "vni100".
    names: HashMap<Vni, String>,
}

impl<W: Write> std::fmt::Debug for CaptureWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureWriter")
            .field("interfaces", &self.interfaces)
            .finish_non_exhaustive()
    }
}

impl<W: Write> CaptureWriter<W> {
    /// Writes the section header. `names` are those of the networks, as far as there are any.
    ///
    /// # Errors
    /// `out` cannot be written to.
    pub fn new(out: W, names: HashMap<Vni, String>) -> io::Result<Self> {
        let out = PcapNgWriter::new(out).map_err(to_io)?;
        Ok(Self { out, interfaces: HashMap::new(), names })
    }

    /// Writes one frame, and before the first one of a network the network's interface.
    ///
    /// # Errors
    /// The output cannot be written to.
    pub fn write(&mut self, frame: &CapturedFrame) -> io::Result<()> {
        let interface_id = self.interface(frame.vni)?;
        // epb_flags: 1 is inbound and 2 outbound, as the local port sees it.
        let flags = match frame.direction {
            Direction::FromPort => 1,
            Direction::ToPort => 2,
        };
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: frame.timestamp,
            original_len: u32::try_from(frame.frame_len).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&frame.data),
            options: vec![EnhancedPacketOption::Flags(flags)],
        };
        self.out.write_pcapng_block(block).map_err(to_io).map(drop)
    }

    /// Hands the bytes on.
    ///
    /// # Errors
    /// The output cannot be written to.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.get_mut().flush()
    }

    /// The output.
    #[must_use]
    pub fn into_inner(self) -> W {
        self.out.into_inner()
    }

    fn interface(&mut self, vni: Vni) -> io::Result<u32> {
        if let Some(&number) = self.interfaces.get(&vni) {
            return Ok(number);
        }
        let name = self.names.get(&vni).cloned().unwrap_or_else(|| format!("vni{vni}"));
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0, // no limit
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name)),
                InterfaceDescriptionOption::IfDescription(Cow::Owned(format!("VNI {vni}"))),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.out.write_pcapng_block(block).map_err(to_io)?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(vni, number);
        Ok(number)
    }
}

fn to_io(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcapng::{Block, PcapNgReader};

    fn vni(number: u32) -> Vni {
        Vni::new(number).unwrap()
    }

    #[test]
    fn captures_what_the_filter_wants_only_while_it_runs() {
        let capture = Capture::new();
        let mut tap = capture.tap();
        assert!(!tap.is_running());
        tap.offer(Duration::ZERO, vni(1), Direction::ToPort, b"before");
        let filter = CaptureFilter { vni: Some(vni(1)), snap_len: Some(3) };
        let drain = capture.start(filter).unwrap();
        assert_eq!(capture.start(filter).unwrap_err(), AlreadyRunning);
        assert!(tap.is_running());
        tap.offer(Duration::from_secs(1), vni(1), Direction::FromPort, b"wanted");
        tap.offer(Duration::from_secs(2), vni(2), Direction::FromPort, b"other");
        let expected = CapturedFrame {
            timestamp: Duration::from_secs(1),
            vni: vni(1),
            direction: Direction::FromPort,
            frame_len: 6,
            data: b"wan".to_vec(),
        };
        assert_eq!(drain.try_next(), Some(expected));
        assert_eq!(drain.try_next(), None);
        drop(drain);
        assert!(!tap.is_running());
        assert!(capture.start(CaptureFilter::default()).is_ok());
    }

    #[test]
    fn full_queue_drops_and_counts() {
        let capture = Capture::new();
        let mut tap = capture.tap();
        let drain = capture.start(CaptureFilter::default()).unwrap();
        for _ in 0..QUEUE_LEN + 5 {
            tap.offer(Duration::ZERO, vni(1), Direction::ToPort, b"frame");
        }
        assert_eq!(drain.dropped(), 5);
        assert_eq!(std::iter::from_fn(|| drain.try_next()).count(), QUEUE_LEN);
    }

    #[test]
    fn written_stream_reads_back() {
        let names = HashMap::from([(vni(100), "blue".to_owned())]);
        let mut writer = CaptureWriter::new(Vec::new(), names).unwrap();
        let sent = [(100, b"first".as_slice()), (7, b"second"), (100, b"third")];
        for (number, data) in sent {
            let frame = CapturedFrame {
                timestamp: Duration::new(1_700_000_000, 123_456_789),
                vni: vni(number),
                direction: Direction::ToPort,
                frame_len: data.len() + 1,
                data: data.to_vec(),
            };
            writer.write(&frame).unwrap();
        }
        let bytes = writer.into_inner();
        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(block) => {
                    assert!(block.options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
                    names.extend(block.options.into_iter().find_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.into_owned()),
                        _ => None,
                    }));
                }
                Block::EnhancedPacket(block) => {
                    assert_eq!(block.timestamp, Duration::new(1_700_000_000, 123_456_789));
                    assert_eq!(block.original_len as usize, block.data.len() + 1);
                    assert_eq!(block.options, [EnhancedPacketOption::Flags(2)]);
                    packets.push((block.interface_id, block.data.into_owned()));
                }
                other => panic!("unexpected block {other:?}"),
            }
        }
        assert_eq!(names, ["blue", "vni7"]);
        let expected = [(0, b"first".to_vec()), (1, b"second".to_vec()), (0, b"third".to_vec())];
        assert_eq!(packets, expected);
    }
}
