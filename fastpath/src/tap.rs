//! The tap: where frames of the local kernel come in and where remote frames go out.
//!
//! Each frame is one `read` or `writev`, with a virtio-net header in front that says whether the
//! L4 checksum is still to be taken. The header lands in the buffer's headroom: no byte of the
//! frame is ever moved.
//!
//! Next: [`crate::port`], then the worker.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use encap::wire::buf::{BufPool, Burst, Checksum, Frame, PacketBuf};
use encap::wire::checksum::complete_checksum;
use encap::wire::ethernet::{ETHERNET_HEADER_LEN, MAX_VLAN_TAGS, VLAN_TAG_LEN};

use crate::counter::counters;
use crate::error::OpenError;
use crate::interface::{Interface, is_valid_name, request_for};
use crate::port::{FrameCapabilities, FramePort, MAX_BURST, TxReport};
use crate::vnet::{Settled, VNET_HEADER_LEN, VnetHeader, settle};

/// Largest MTU that the kernel lets a tap have, in bytes of IP packet.
pub const MAX_TAP_MTU: u32 = 65_521;
/// Largest frame that a tap can give, tags included, in bytes.
pub const MAX_TAP_FRAME_LEN: usize =
    MAX_TAP_MTU as usize + ETHERNET_HEADER_LEN + MAX_VLAN_TAGS * VLAN_TAG_LEN;
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
}

counters! {
    /// What one queue of a tap has seen. Written by the worker that owns the queue.
    pub struct TapCounters {
        /// Frames read.
        rx_frames,
        /// Bytes of frames read, headers of the tap not counted.
        rx_bytes,
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
        /// Frames written.
        tx_frames,
        /// Bytes of frames written.
        tx_bytes,
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
}

/// How a queue is attached.
#[derive(Debug, Clone, Copy)]
struct Mode {
    vnet: bool,
    multi_queue: bool,
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
        for file in &files {
            let offload = prepare(file, mode).map_err(setup("set the virtio-net header"))?;
            if mode.vnet && !offload && !degraded.contains(&Degraded::NoChecksumOffload) {
                degraded.push(Degraded::NoChecksumOffload);
            }
        }
        let interface = Interface::open(tap).map_err(setup("find its interface"))?;
        interface.set_tx_queue_len(TX_QUEUE_LEN).map_err(setup("set the transmit queue length"))?;
        if let Some(tap_mtu) = options.tap_mtu {
            interface.set_tap_mtu(tap_mtu).map_err(setup("set the MTU"))?;
        }
        let queues: Vec<_> = files.into_iter().map(|f| TapQueue::new(f, tap, mode.vnet)).collect();
        let counters = queues.iter().map(|queue| Arc::clone(&queue.counters)).collect();
        Ok((Self { interface, counters, degraded }, queues))
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
}

fn open_device() -> Result<File, OpenError> {
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(libc::O_NONBLOCK); // std adds O_CLOEXEC
    open.open("/dev/net/tun").map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoTunDevice,
        Some(libc::EPERM | libc::EACCES) => OpenError::TunDeviceForbidden,
        _ => OpenError::Setup {
            tap: "device".to_owned(),
            action: "open /dev/net/tun",
            source: error,
        },
    })
}

/// Opens the first queue in the best mode that kernel and tap have.
///
/// A multi-queue interface costs a queueing discipline per possible queue, so one is made only
/// where it is needed. An existing tap must be taken as it was made: the other kind is refused
/// with EINVAL, as is an interface that is no tap at all.
fn attach_first(options: &TapOptions) -> Result<(File, Mode), OpenError> {
    let tap = options.name.as_str();
    let file = open_device()?;
    let features = device_features(&file);
    let vnet = features & libc::IFF_VNET_HDR != 0;
    let wanted = options.queues > 1;
    let kinds: &[bool] = match (features & libc::IFF_MULTI_QUEUE != 0, options.existing) {
        (false, _) => &[false],
        (true, false) => &[wanted],
        (true, true) => &[wanted, !wanted],
    };
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for &multi_queue in kinds {
        let mode = Mode { vnet, multi_queue };
        match set_iff(&file, tap, mode, !options.existing) {
            Ok(()) => return Ok((file, mode)),
            Err(error) => last = error,
        }
        if last.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    let tap = tap.to_owned();
    Err(match (last.raw_os_error(), options.existing) {
        (Some(libc::EPERM | libc::EACCES), _) => OpenError::NotPermitted { tap },
        (Some(libc::EBUSY), false) => OpenError::Exists { tap },
        (Some(libc::EBUSY), true) => OpenError::InUse { tap },
        (Some(libc::EINVAL), true) => OpenError::NotATap { tap },
        _ => OpenError::Setup { tap, action: "create it", source: last },
    })
}

/// The flags that this kernel's driver knows; none when it is too old to say.
fn device_features(file: &File) -> libc::c_int {
    let mut features: libc::c_int = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, for which `features` has the room.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) };
    if result < 0 { 0 } else { features }
}

/// Attaches `file` as a queue of `tap`, which is made if it is not there.
fn set_iff(file: &File, tap: &str, mode: Mode, exclusive: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if mode.vnet {
        flags |= libc::IFF_VNET_HDR;
    }
    if mode.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if exclusive {
        flags |= libc::IFF_TUN_EXCL;
    }
    let mut request = request_for(tap)?;
    // The 16 bits of the field are a bit set; IFF_TUN_EXCL is the one that is the sign.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`; `request` is one, exclusively ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets header size, byte order and offloads; says whether checksums are offloaded.
///
/// All three belong to the device and outlive whoever set them before on a persistent tap, so
/// they are set even where the value is the default.
fn prepare(file: &File, mode: Mode) -> io::Result<bool> {
    if mode.vnet {
        let mut size = VNET_HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int from `size`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut size) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut little_endian: libc::c_int = 0;
        // SAFETY: TUNSETVNETLE reads one int. A kernel without the call has native order only,
        // so that its refusal says the same.
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETLE, &raw mut little_endian) };
    }
    let checksum = if mode.vnet { libc::TUN_F_CSUM } else { 0 };
    match set_offload(file, checksum) {
        Err(error) if checksum != 0 && error.raw_os_error() == Some(libc::EINVAL) => {
            set_offload(file, 0).map(|()| false)
        }
        result => result.map(|()| checksum != 0),
    }
}

fn set_offload(file: &File, mask: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its mask by value; no memory is involved.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One queue of a tap, owned by one worker.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
    name: String,
    vnet: bool,
    counters: Arc<TapCounters>,
}

/// What one read gave.
enum ReadFrame {
    Frame(Checksum),
    Bad,
    Nothing,
}

/// What one write came to.
enum Written {
    Sent,
    NoRoom,
    TooLarge,
    Failed,
}

impl TapQueue {
    fn new(file: File, name: &str, vnet: bool) -> Self {
        Self { file, name: name.to_owned(), vnet, counters: Arc::default() }
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<TapCounters> {
        &self.counters
    }

    /// Reads one frame into an empty buffer, its tap header into the headroom.
    fn read_frame(&mut self, buf: &mut PacketBuf) -> io::Result<ReadFrame> {
        let header_len = if self.vnet { VNET_HEADER_LEN } else { 0 };
        if buf.prepend(header_len).is_err() {
            return Err(io::Error::other("packet buffer has no headroom"));
        }
        buf.set_len(0);
        let max_len = header_len + buf.capacity();
        // One byte more than allowed: the kernel cuts a long frame silently.
        let spare = buf.spare_mut();
        let room = spare.len().min(max_len + 1);
        let len = match self.file.read(spare.get_mut(..room).unwrap_or_default()) {
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
        if len > max_len {
            self.counters.rx_dropped_long.add(1);
            return Ok(ReadFrame::Bad);
        }
        if len < header_len + ETHERNET_HEADER_LEN {
            self.counters.rx_dropped_short.add(1);
            return Ok(ReadFrame::Bad);
        }
        buf.set_len(len);
        let header = self.vnet.then(|| buf.data().first_chunk().map(VnetHeader::from_bytes));
        buf.trim_front(header_len);
        Ok(match header.flatten() {
            Some(header) => self.settle(&header, buf),
            None => ReadFrame::Frame(Checksum::Complete),
        })
    }

    fn settle(&self, header: &VnetHeader, buf: &mut PacketBuf) -> ReadFrame {
        match settle(header, buf.data_mut()) {
            Ok(Settled::AsAnnounced(checksum)) => {
                if checksum != Checksum::Complete {
                    self.counters.rx_partial_checksums.add(1);
                }
                ReadFrame::Frame(checksum)
            }
            Ok(Settled::CompletedHere) => {
                self.counters.rx_checksums_completed.add(1);
                ReadFrame::Frame(Checksum::Complete)
            }
            Err(_) => {
                self.counters.rx_dropped_bad_header.add(1);
                ReadFrame::Bad
            }
        }
    }

    fn write_frame(&mut self, frame: &mut Frame) -> Written {
        let counters = &self.counters;
        let len = frame.buf.len();
        // The kernel checks the range of a partial checksum as well; asking it costs a call.
        let field_end = match frame.checksum {
            Checksum::Complete => 0,
            Checksum::Partial { start, offset } => usize::from(start) + usize::from(offset) + 2,
        };
        if len < ETHERNET_HEADER_LEN || field_end > len {
            counters.tx_dropped_malformed.add(1);
            return Written::Failed;
        }
        let result = if self.vnet {
            let header = VnetHeader::for_checksum(frame.checksum).to_bytes();
            self.file.write_vectored(&[IoSlice::new(&header), IoSlice::new(frame.buf.data())])
        } else {
            if let Checksum::Partial { start, offset } = frame.checksum
                && complete_checksum(frame.buf.data_mut(), start, offset).is_err()
            {
                counters.tx_dropped_malformed.add(1);
                return Written::Failed;
            }
            self.file.write(frame.buf.data())
        };
        match result.map_err(|error| error.raw_os_error()) {
            Ok(_) => {
                counters.tx_frames.add(1);
                counters.tx_bytes.add(len as u64);
                Written::Sent
            }
            Err(Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)) => {
                counters.tx_dropped_no_room.add(1);
                Written::NoRoom
            }
            Err(Some(libc::EMSGSIZE)) => {
                counters.tx_dropped_too_large.add(1);
                Written::TooLarge
            }
            Err(Some(libc::EIO)) => {
                counters.tx_dropped_down.add(1);
                Written::Failed
            }
            Err(_) => {
                counters.tx_dropped_refused.add(1);
                Written::Failed
            }
        }
    }
}

/// Whether a read says that the interface was deleted or the descriptor is not one any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::EFAULT))
}

impl FramePort for TapQueue {
    fn rx_burst(&mut self, pool: &mut BufPool, frames: &mut Burst<Frame>) -> io::Result<()> {
        for _ in 0..MAX_BURST {
            let mut buf = pool.alloc();
            match self.read_frame(&mut buf) {
                Ok(ReadFrame::Frame(checksum)) => {
                    self.counters.rx_frames.add(1);
                    self.counters.rx_bytes.add(buf.len() as u64);
                    frames.push(Frame { buf, checksum });
                }
                Ok(ReadFrame::Bad) => pool.free(buf),
                Ok(ReadFrame::Nothing) => {
                    pool.free(buf);
                    break;
                }
                Err(error) => {
                    pool.free(buf);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn tx_burst(&mut self, pool: &mut BufPool, frames: &mut Burst<Frame>) -> TxReport {
        let mut report = TxReport::default();
        for mut frame in frames.drain(..) {
            match self.write_frame(&mut frame) {
                Written::Sent => report.sent += 1,
                Written::NoRoom => report.no_room += 1,
                Written::TooLarge => report.too_large += 1,
                Written::Failed => report.failed += 1,
            }
            pool.free(frame.buf);
        }
        report
    }

    fn capabilities(&self) -> FrameCapabilities {
        FrameCapabilities { max_frame_len: MAX_TAP_FRAME_LEN, tx_partial_checksum: self.vnet }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use encap::wire::checksum::derive_partial;
    use etherparse::PacketBuilder;

    /// A queue whose kernel is the other end of a socket pair: it can lie.
    fn queue(vnet: bool) -> (TapQueue, UnixDatagram) {
        let (ours, kernel) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (TapQueue::new(File::from(OwnedFd::from(ours)), "tap0", vnet), kernel)
    }

    fn udp_frame() -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut frame, b"payload")
            .unwrap();
        frame
    }

    fn read_all(queue: &mut TapQueue) -> Vec<(Vec<u8>, Checksum)> {
        let mut frames = Burst::new();
        queue.rx_burst(&mut BufPool::new(200, 4), &mut frames).unwrap();
        frames.iter().map(|frame| (frame.buf.data().to_vec(), frame.checksum)).collect()
    }

    #[test]
    fn lying_headers_are_dropped_and_counted() {
        let (mut queue, kernel) = queue(true);
        let frame = udp_frame();
        let partial = VnetHeader::for_checksum(derive_partial(&frame).unwrap()).to_bytes();
        let mut super_frame = partial;
        super_frame[1] = 5;
        let mut coalesced = partial;
        coalesced[0] |= 4;
        let outside = Checksum::Partial { start: 34, offset: 60_000 };
        let outside = VnetHeader::for_checksum(outside).to_bytes();
        for header in [super_frame, coalesced, outside, partial] {
            kernel.send(&[&header[..], &frame].concat()).unwrap();
        }
        kernel.send(&partial[..11]).unwrap();
        kernel.send(&[&[0; VNET_HEADER_LEN], &frame[..13]].concat()).unwrap();
        kernel.send(&[0; VNET_HEADER_LEN + 201]).unwrap();
        assert_eq!(read_all(&mut queue), [(frame.clone(), derive_partial(&frame).unwrap())]);
        let counters = queue.counters();
        assert_eq!(counters.rx_frames.get(), 1);
        assert_eq!(counters.rx_bytes.get(), frame.len() as u64);
        assert_eq!(counters.rx_dropped_bad_header.get(), 3);
        assert_eq!(counters.rx_dropped_short.get(), 2);
        assert_eq!(counters.rx_dropped_long.get(), 1);
    }

    #[test]
    fn checksum_where_no_parser_finds_it_is_completed() {
        let (mut queue, kernel) = queue(true);
        let mut frame = udp_frame();
        frame[12] = 0x12; // no longer IP
        let header = VnetHeader::for_checksum(Checksum::Partial { start: 34, offset: 6 });
        kernel.send(&[&header.to_bytes()[..], &frame].concat()).unwrap();
        complete_checksum(&mut frame, 34, 6).unwrap();
        assert_eq!(read_all(&mut queue), [(frame, Checksum::Complete)]);
        assert_eq!(queue.counters().rx_checksums_completed.get(), 1);
    }

    #[test]
    fn without_the_header_checksums_are_completed_on_write() {
        let (mut queue, kernel) = queue(false);
        assert!(!queue.capabilities().tx_partial_checksum);
        let mut frame = udp_frame();
        kernel.send(&frame).unwrap();
        assert_eq!(read_all(&mut queue), [(frame.clone(), Checksum::Complete)]);

        let checksum = derive_partial(&frame).unwrap();
        let mut burst = vec![Frame { buf: PacketBuf::from_slice(&frame), checksum }];
        assert_eq!(queue.tx_burst(&mut BufPool::new(200, 4), &mut burst).sent, 1);
        let mut written = vec![0; 300];
        let len = kernel.recv(&mut written).unwrap();
        complete_checksum(&mut frame, 34, 6).unwrap();
        assert_eq!(written[..len], frame);
    }

    #[test]
    fn burst_is_bounded() {
        let (mut queue, kernel) = queue(false);
        kernel.set_nonblocking(true).unwrap();
        let mut sent = 0;
        let mut received = 0;
        while sent < 3 * MAX_BURST {
            while sent < 3 * MAX_BURST && kernel.send(&udp_frame()).is_ok() {
                sent += 1;
            }
            let count = read_all(&mut queue).len();
            assert!((1..=MAX_BURST).contains(&count));
            received += count;
        }
        while received < sent {
            received += read_all(&mut queue).len();
        }
        assert_eq!(received, sent);
    }
}
