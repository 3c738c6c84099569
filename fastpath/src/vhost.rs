//! vhost-user ports: a virtual machine's network card, without the kernel in between.
//!
//! The machine's own memory is where frames are read from and written to; DPDK's vhost library
//! keeps the rings. What the guest leaves to its card travels as from a tap: partial checksums stay
//! partial, TCP super-frames are carried as runs of datagrams and written as super-frames again.
//!
//! A [`VhostPort`] is the owner, whose [`VhostPort::poll`] tells when a guest comes or goes; each
//! worker has a [`VhostQueue`] of it, the [`FramePort`]. Machines may have fewer queues than there
//! are workers, so sending is shared where it must be.
//!
//! Next: [`crate::worker`].

use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use encap::offload::coalesce::{Coalescer, Group, Limits};
use encap::wire::buf::{
    Checksum, FrameBurst, Offload, OutFrame, Pieces, SegmentKind, Segmentation,
};
use encap::wire::checksum::{
    TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, complete_checksum, derive_partial,
};
use encap::wire::ethernet::{ETHERNET_HEADER_LEN, EtherType, EthernetView};

use dpdk_sys::{VHOST_GUEST, VhostState};

use crate::counter::counters;
use crate::dpdk::{
    DpdkError, Eal, Interrupts, Pool, Port, PortOptions, RxPacket, RxQueue, TxOffload, TxQueue,
    capability,
};
use crate::port::{Armed, FrameCapabilities, FramePort, MAX_BURST, TxReport};
use crate::tap::{MAX_SUPER_FRAME_LEN, OffloadSwitches};

/// Descriptors of a queue that are asked for; the guest decides.
const DESCRIPTORS: u16 = 1024;
/// Times that a guest whose ring is full is asked again, without a pause between.
const RETRIES: u32 = 16;
/// Most frames of one super-frame.
const MAX_MEMBERS: usize = 64;
/// Segments that the super-frames of one burst stand for at most, so that a guest that asks for tiny
/// ones cannot hold a worker.
const MAX_SEGMENTS: usize = 1024;
/// Smallest segment in bytes of payload: what Linux takes for the smallest sensible one.
const MIN_SEGMENT: u16 = 48;
/// Virtio feature bits (virtio 1.2, section 5.1.3): UDP in IP fragments and ECN of super-frames, in
/// both directions.
const UNWANTED: u64 = 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14;
/// The guest takes TCP super-frames.
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;

counters! {
    /// What one worker's queue of a vhost-user port has seen.
    pub struct VhostCounters {
        /// Frames that the guest sent.
        rx_frames,
        /// Their bytes.
        rx_bytes,
        /// Super-frames among them.
        rx_super_frames,
        /// Frames whose checksum the guest left to its card.
        rx_partial_checksums,
        /// Frames dropped: shorter than an Ethernet header.
        rx_dropped_short,
        /// Frames dropped: longer than any super-frame.
        rx_dropped_long,
        /// Frames dropped: a checksum or segmentation is left to us that the frame has no place for.
        rx_dropped_bad_offload,
        /// Frames that the guest took.
        tx_frames,
        /// Their bytes.
        tx_bytes,
        /// Super-frames that the guest took.
        tx_super_frames,
        /// Frames that the guest took in super-frames.
        tx_coalesced_frames,
        /// Frames dropped: there is no guest.
        tx_dropped_no_guest,
        /// Frames dropped: the guest's ring was full, or it takes nothing.
        tx_dropped_no_room,
        /// Frames dropped: no packet buffer was left.
        tx_dropped_no_buffer,
        /// Frames dropped: without header, or with a checksum outside.
        tx_dropped_malformed,
    }
}

/// How a vhost-user port is opened.
#[derive(Debug, Clone)]
pub struct VhostOptions {
    /// The UNIX socket over which the rings are agreed.
    pub socket: PathBuf,
    /// The socket is the machine's, which may come and go; otherwise it is made here.
    pub client: bool,
    /// Most queue pairs of the guest, at least 1.
    pub queues: u16,
    /// Workers that serve it.
    pub workers: usize,
    /// What the guest may leave to us.
    pub offload: OffloadSwitches,
    /// Whether the guest is to wake workers that have nothing to do; it is polled without.
    pub interrupts: bool,
    /// Where frames lie on their way.
    pub pool: Pool,
}

/// Why a vhost-user port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// Somebody listens on the socket.
    #[error(
        "vhost-user socket {0} is in use by another program; stop that, or choose another path"
    )]
    InUse(PathBuf),
    /// Something else is there.
    #[error(
        "{0} is there and is no socket; remove it, or choose another path for the vhost-user socket"
    )]
    NoSocket(PathBuf),
    /// The socket's path has characters that cannot be passed on.
    #[error("vhost-user socket {0}: a path with a comma, or one that is no text, is not possible")]
    BadPath(PathBuf),
    /// There is no place for the socket.
    #[error("there is no directory {0} for the vhost-user socket; make it (mkdir -p {0})")]
    NoDirectory(PathBuf),
    /// A socket that nobody uses cannot be removed.
    #[error("cannot remove the unused vhost-user socket {path}")]
    Stale {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// DPDK refuses.
    #[error(transparent)]
    Dpdk(#[from] DpdkError),
}

/// What changed on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VhostEvent {
    /// A guest drives the port now.
    Connected {
        /// The virtio features it negotiated.
        features: u64,
    },
    /// No guest does.
    Disconnected,
}

#[derive(Debug)]
struct Shared {
    eal: Eal,
    /// Kept up by DPDK's own thread.
    guest: Arc<VhostState>,
    queues: Vec<Mutex<TxQueue>>,
}

impl Shared {
    /// The virtio features that the guest negotiated; none while there is none.
    fn features(&self) -> Option<u64> {
        let state = self.guest.features.load(Ordering::Acquire);
        (state & VHOST_GUEST != 0).then_some(state & !VHOST_GUEST)
    }

    /// Whether the guest takes from a queue.
    fn is_enabled(&self, queue: usize) -> bool {
        queue < 64 && self.guest.tx_queues.load(Ordering::Relaxed) >> queue & 1 == 1
    }
}

/// A vhost-user port; see the module.
#[derive(Debug)]
pub struct VhostPort {
    port: Port,
    shared: Arc<Shared>,
    counters: Vec<Arc<VhostCounters>>,
    connected: bool,
}

impl VhostPort {
    /// Opens the port; gives a queue for each worker.
    ///
    /// # Errors
    /// See [`VhostError`].
    pub fn open(eal: &Eal, options: &VhostOptions) -> Result<(Self, Vec<VhostQueue>), VhostError> {
        let path = options.socket.to_str().filter(|path| !path.contains(','));
        let path = path.ok_or_else(|| VhostError::BadPath(options.socket.clone()))?;
        if !options.client {
            remove_stale(&options.socket)?;
        }
        let tso = u8::from(options.offload.checksum && options.offload.segmentation_tcp);
        let (client, count) = (u8::from(options.client), options.queues.max(1));
        let mut capabilities = capability::TX_MULTI;
        if options.offload.checksum {
            capabilities |= capability::RX_L4_SUM | capability::TX_TCP_SUM | capability::TX_UDP_SUM;
        }
        let (port, rx, tx) = Port::open(
            eal,
            &PortOptions {
                device: format!("net_vhost,iface={path},queues={count},client={client},tso={tso}"),
                queues: count,
                rx_descriptors: DESCRIPTORS,
                tx_descriptors: DESCRIPTORS,
                mtu: None,
                interrupts: options.interrupts,
                capabilities,
                pool: options.pool.clone(),
            },
        )?;
        let failed = |action| {
            let device = path.to_owned();
            move |source| VhostError::Dpdk(DpdkError::Port { device, action, source })
        };
        port.disable_vhost(path, UNWANTED).map_err(failed("choose its features"))?;
        let guest = port.watch_vhost().map_err(failed("watch its guest"))?;
        let queues = tx.into_iter().map(Mutex::new).collect();
        let shared = Arc::new(Shared { eal: eal.clone(), guest, queues });
        let workers = options.workers.max(1);
        let mut queues: Vec<_> = (0..workers)
            .map(|number| VhostQueue {
                rx: Vec::new(),
                interrupts: None,
                tx: number % usize::from(count),
                shared: Arc::clone(&shared),
                offload: options.offload,
                coalescer: Coalescer::new(),
                counters: Arc::default(),
                batch: Vec::new(),
                registered: false,
            })
            .collect();
        for (number, queue) in rx.into_iter().enumerate() {
            if let Some(worker) = queues.get_mut(number % workers) {
                worker.rx.push(queue);
            }
        }
        if options.interrupts {
            queues.iter_mut().for_each(|queue| queue.interrupts = Interrupts::of(&mut queue.rx));
        }
        let counters = queues.iter().map(|queue| Arc::clone(&queue.counters)).collect();
        Ok((Self { port, shared, counters, connected: false }, queues))
    }

    /// The next thing that happened; call to the end now and then.
    pub fn poll(&mut self) -> Option<VhostEvent> {
        let features = self.shared.features();
        if features.is_some() == self.connected {
            return None;
        }
        self.connected = features.is_some();
        Some(
            features
                .map_or(VhostEvent::Disconnected, |features| VhostEvent::Connected { features }),
        )
    }

    /// The virtio features that the guest negotiated; none while there is none.
    #[must_use]
    pub fn features(&self) -> Option<u64> {
        self.shared.features()
    }

    /// Sending queues that the guest takes from at the moment.
    #[must_use]
    pub fn enabled_queues(&self) -> usize {
        (0..self.shared.queues.len()).filter(|queue| self.shared.is_enabled(*queue)).count()
    }

    /// The DPDK port below.
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Counters of each worker's queue.
    #[must_use]
    pub fn counters(&self) -> &[Arc<VhostCounters>] {
        &self.counters
    }
}

/// A socket that a program left behind would keep this one from being made. DPDK would not say why.
fn remove_stale(socket: &Path) -> Result<(), VhostError> {
    use std::os::unix::fs::FileTypeExt;
    if let Some(directory) = socket.parent().filter(|directory| !directory.is_dir()) {
        return Err(VhostError::NoDirectory(directory.to_owned()));
    }
    let Ok(found) = std::fs::symlink_metadata(socket) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(VhostError::NoSocket(socket.to_owned()));
    }
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let stale = |source| VhostError::Stale { path: socket.to_owned(), source };
            std::fs::remove_file(socket).map_err(stale)
        }
        _ => Err(VhostError::InUse(socket.to_owned())),
    }
}

/// One worker's share of a vhost-user port.
#[derive(Debug)]
pub struct VhostQueue {
    /// Queues that this worker alone reads.
    rx: Vec<RxQueue>,
    /// Those of these queues.
    interrupts: Option<Interrupts>,
    /// The one it sends by, if the guest takes from it.
    tx: usize,
    shared: Arc<Shared>,
    offload: OffloadSwitches,
    coalescer: Coalescer,
    counters: Arc<VhostCounters>,
    /// Frames, and bytes, of each packet that is handed over at once.
    batch: Vec<(usize, usize)>,
    /// The thread that polls is one of DPDK's.
    registered: bool,
}

impl VhostQueue {
    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<VhostCounters> {
        &self.counters
    }
}

impl FramePort for VhostQueue {
    fn rx_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()> {
        if !std::mem::replace(&mut self.registered, true)
            && let Err(error) = self.shared.eal.register_thread()
        {
            // It works all the same, at twice the time for each buffer.
            log::warn!("a worker cannot be one of DPDK's threads: {error}");
        }
        let mut segments = 0;
        for queue in &mut self.rx {
            let burst = queue.receive(MAX_BURST);
            let mut taken = 0;
            for packet in burst.iter() {
                let len = packet.len();
                let fits = len <= frames.room().len();
                segments += packet.segment_size().map_or(1, |size| len.div_ceil(size.into()));
                let later = !fits && len <= MAX_SUPER_FRAME_LEN || segments > MAX_SEGMENTS;
                if later && !frames.is_empty() {
                    // With the next burst.
                    break;
                }
                taken += 1;
                take(&packet, frames, self.offload, &self.counters);
            }
            let left = taken < burst.len();
            burst.keep(taken);
            if left {
                break;
            }
        }
        Ok(())
    }

    fn tx_burst(&mut self, pieces: &mut Pieces, frames: &[OutFrame]) -> TxReport {
        let shared = Arc::clone(&self.shared);
        let queue = if shared.is_enabled(self.tx) { self.tx } else { 0 };
        let Some(queue) = shared.queues.get(queue) else { return TxReport::default() };
        let mut queue = lock(queue);
        let Some(features) = shared.features() else {
            self.counters.tx_dropped_no_guest.add(frames.len() as u64);
            return TxReport { failed: frames.len(), ..TxReport::default() };
        };
        let mut report = TxReport::default();
        let tcp = features & (GUEST_TSO4 | GUEST_TSO6) == GUEST_TSO4 | GUEST_TSO6;
        if frames.len() < 2 || !tcp || !self.offload.segmentation_tcp || !self.offload.checksum {
            for frame in frames {
                self.push(&mut queue, pieces, frame, &mut report);
            }
        } else {
            self.push_groups(&mut queue, pieces, frames, &mut report);
        }
        self.flush(&mut queue, &mut report);
        report
    }

    fn capabilities(&self) -> FrameCapabilities {
        FrameCapabilities { max_frame_len: MAX_SUPER_FRAME_LEN, tx_partial_checksum: true }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.interrupts.as_ref().map(Interrupts::fd)
    }

    fn arm(&mut self) -> Armed {
        let Some(interrupts) = &self.interrupts else { return Armed::Ready };
        let armed = interrupts.arm(&mut self.rx);
        if armed == Armed::Impossible {
            log::warn!("a guest does not say when it sends: it is polled from now on");
            self.interrupts = None;
        }
        armed
    }

    fn disarm(&mut self) {
        if let Some(interrupts) = &self.interrupts {
            interrupts.disarm(&mut self.rx);
        }
    }
}

fn lock(queue: &Mutex<TxQueue>) -> MutexGuard<'_, TxQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a packet of the guest on as a frame; what is wrong with it is counted.
fn take(
    packet: &RxPacket<'_>,
    frames: &mut FrameBurst,
    negotiated: OffloadSwitches,
    counters: &VhostCounters,
) {
    if packet.len() < ETHERNET_HEADER_LEN {
        return counters.rx_dropped_short.add(1);
    }
    if packet.len() > MAX_SUPER_FRAME_LEN {
        return counters.rx_dropped_long.add(1);
    }
    let room = frames.room();
    let Some(len) = packet.copy_to(room) else { return counters.rx_dropped_long.add(1) };
    let frame = room.get(..len).unwrap_or_default();
    let Some(offload) = offload(packet, frame, negotiated) else {
        return counters.rx_dropped_bad_offload.add(1);
    };
    counters.rx_frames.add(1);
    counters.rx_bytes.add(len as u64);
    if offload.checksum != Checksum::Complete {
        counters.rx_partial_checksums.add(1);
    }
    if offload.segmentation.is_some() {
        counters.rx_super_frames.add(1);
    }
    frames.push(0, len, offload);
}

/// What the guest left to its card, found in the frame itself: nothing that it says of offsets is
/// believed.
fn offload(packet: &RxPacket<'_>, frame: &[u8], negotiated: OffloadSwitches) -> Option<Offload> {
    let flags = packet.flags();
    if flags & (dpdk_sys::RX_L4_PARTIAL | dpdk_sys::RX_SUPER) == 0 {
        return Some(Offload::default());
    }
    let checksum = derive_partial(frame)?;
    if flags & dpdk_sys::RX_SUPER == 0 {
        return Some(Offload { checksum, segmentation: None });
    }
    let size = packet.segment_size().filter(|size| *size >= MIN_SEGMENT)?;
    let Checksum::Partial { offset, .. } = checksum else { return None };
    let kind = match EthernetView::new(frame).ok()?.ether_type() {
        EtherType::IPV4 if offset == TCP_CHECKSUM_OFFSET => SegmentKind::Tcp4,
        EtherType::IPV6 if offset == TCP_CHECKSUM_OFFSET => SegmentKind::Tcp6,
        _ => return None,
    };
    let segmentation = Segmentation { kind, size, ecn: false };
    negotiated.allow(kind).then_some(Offload { checksum, segmentation: Some(segmentation) })
}

/// What is left to the guest to do to a frame whose checksum is to be completed.
fn tx_offload(frame: &[u8], checksum: Checksum) -> Option<TxOffload> {
    let Checksum::Partial { start, offset } = checksum else { return Some(TxOffload::default()) };
    let ethernet = EthernetView::new(frame).ok()?;
    let l2_len = u16::try_from(ethernet.payload_offset()).ok()?;
    let version = match ethernet.ether_type() {
        EtherType::IPV4 => dpdk_sys::TX_IPV4,
        EtherType::IPV6 => dpdk_sys::TX_IPV6,
        _ => return None,
    };
    let sum = match offset {
        TCP_CHECKSUM_OFFSET => dpdk_sys::TX_TCP_SUM,
        UDP_CHECKSUM_OFFSET => dpdk_sys::TX_UDP_SUM,
        _ => return None,
    };
    let l3_len = start.checked_sub(l2_len)?;
    // The card's library reads and writes there.
    let shortest = usize::from(start) + if offset == TCP_CHECKSUM_OFFSET { 20 } else { 8 };
    let sound = frame.len() >= shortest && derive_partial(frame) == Some(checksum);
    sound.then_some(TxOffload { flags: version | sum, l2_len, l3_len, ..TxOffload::default() })
}

impl VhostQueue {
    /// Lays a frame down to be sent.
    fn push(
        &mut self,
        queue: &mut TxQueue,
        pieces: &mut Pieces,
        frame: &OutFrame,
        report: &mut TxReport,
    ) {
        let bytes = pieces.get_mut(frame.span);
        let mut offload = tx_offload(bytes, frame.checksum);
        if offload.is_none()
            && let Checksum::Partial { start, offset } = frame.checksum
            && complete_checksum(bytes, start, offset).is_ok()
        {
            offload = Some(TxOffload::default());
        }
        let Some(offload) = offload.filter(|_| bytes.len() >= ETHERNET_HEADER_LEN) else {
            self.counters.tx_dropped_malformed.add(1);
            report.failed += 1;
            return;
        };
        if self.batch.len() >= MAX_BURST {
            self.flush(queue, report);
        }
        let Some(mut writer) = queue.start(bytes.len(), offload) else {
            self.counters.tx_dropped_no_buffer.add(1);
            report.no_room += 1;
            return;
        };
        writer.write(bytes);
        self.batch.push((1, bytes.len()));
    }

    /// Lays frames down, those that follow one another in a flow as super-frames.
    fn push_groups(
        &mut self,
        queue: &mut TxQueue,
        pieces: &mut Pieces,
        frames: &[OutFrame],
        report: &mut TxReport,
    ) {
        let limits =
            Limits { tcp: true, udp: false, max_segments: MAX_MEMBERS, ..Limits::default() };
        let mut coalescer = std::mem::take(&mut self.coalescer);
        coalescer.clear();
        for (index, frame) in frames.iter().enumerate() {
            coalescer.add(index, pieces.get(frame.span), frame.checksum, limits);
        }
        for group in coalescer.groups() {
            if self.push_super_frame(queue, &group, pieces, frames, report).is_some() {
                continue;
            }
            for member in group.members.clone() {
                if let Some(frame) = frames.get(member.index) {
                    self.push(queue, pieces, frame, report);
                }
            }
        }
        self.coalescer = coalescer;
    }

    /// Lays a group down as one; none where its frames are to go one by one.
    fn push_super_frame(
        &mut self,
        queue: &mut TxQueue,
        group: &Group<'_>,
        pieces: &Pieces,
        frames: &[OutFrame],
        report: &mut TxReport,
    ) -> Option<()> {
        let segmentation = group.offload.segmentation?;
        let Checksum::Partial { start, .. } = group.offload.checksum else { return None };
        let mut offload = tx_offload(group.header, group.offload.checksum)?;
        offload.flags |= dpdk_sys::TX_TCP_SEG;
        offload.segment_size = segmentation.size;
        offload.l4_len = u16::try_from(group.header.len()).ok()?.checked_sub(start)?;
        let (mut len, mut count) = (group.header.len(), 0);
        for member in group.members.clone() {
            pieces.get(frames.get(member.index)?.span).get(member.payload.clone())?;
            len += member.payload.len();
            count += 1;
        }
        if self.batch.len() >= MAX_BURST {
            self.flush(queue, report);
        }
        let mut writer = queue.start(len, offload)?;
        writer.write(group.header);
        for member in group.members.clone() {
            let frame = frames.get(member.index).map_or(&[][..], |frame| pieces.get(frame.span));
            writer.write(frame.get(member.payload).unwrap_or_default());
        }
        self.batch.push((count, len));
        Some(())
    }

    /// Hands over what was laid down.
    fn flush(&mut self, queue: &mut TxQueue, report: &mut TxReport) {
        let taken = queue.flush(RETRIES);
        for (number, (frames, bytes)) in self.batch.drain(..).enumerate() {
            if number >= taken {
                self.counters.tx_dropped_no_room.add(frames as u64);
                report.no_room += frames;
                continue;
            }
            self.counters.tx_frames.add(frames as u64);
            self.counters.tx_bytes.add(bytes as u64);
            if frames > 1 {
                self.counters.tx_super_frames.add(1);
                self.counters.tx_coalesced_frames.add(frames as u64);
            }
            report.sent += frames;
        }
    }
}
