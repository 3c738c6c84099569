//! The queues of a port: where packets come out of and go into.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dpdk_sys::{MAX_BURST, Packet};

use super::port::Inner;

/// Empty buffers that a transmit queue takes from its pool at once.
const REFILL: usize = 32;

/// A receive queue, for one thread at a time.
pub struct RxQueue {
    port: Arc<Inner>,
    queue: u16,
    packets: Box<[Packet; MAX_BURST]>,
    /// Where in `packets` those are that were received and not taken yet.
    waiting: Range<usize>,
    /// What its interrupts make readable.
    epoll: Option<Arc<OwnedFd>>,
}

// SAFETY: the packets' pointers are to buffers that only this queue's owner has; DPDK lets any
// thread use a queue, as long as it is one at a time, which `&mut self` sees to.
unsafe impl Send for RxQueue {}

impl fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxQueue({}.{})", self.port.number, self.queue)
    }
}

impl RxQueue {
    pub(super) fn new(port: Arc<Inner>, queue: u16) -> Self {
        let packets = Box::new([Packet::EMPTY; MAX_BURST]);
        Self { port, queue, packets, waiting: 0..0, epoll: None }
    }

    /// Receives up to `limit` packets, 64 at most; they go back to their pool when the burst is
    /// dropped. Packets that [`RxBurst::keep`] kept come first, alone.
    pub fn receive(&mut self, limit: usize) -> RxBurst<'_> {
        let limit = limit.min(MAX_BURST);
        self.fill(limit);
        let count = self.waiting.len().min(limit);
        RxBurst { queue: self, count }
    }

    /// Has `epoll` become readable with interrupts; says whether the queue has any.
    pub(super) fn interrupt_by(&mut self, epoll: &Arc<OwnedFd>) -> bool {
        if self.port.interrupts() == 0 {
            return false;
        }
        // Kept before it is used, so that it is open for as long as it is.
        self.epoll = Some(Arc::clone(epoll));
        let has = self.wait_with(epoll.as_raw_fd()) == 0;
        self.port.waking.store(has, Ordering::Relaxed);
        has
    }

    fn wait_with(&self, epoll: RawFd) -> i32 {
        // No two workers change the interrupts of one port, nor does anybody else here.
        self.port.eal.control(|api| {
            // SAFETY: the port is started and has this queue; `epoll` is open, or ends it.
            unsafe { (api.rx_wait)(self.port.number, self.queue, epoll) }
        })
    }

    /// Asks for an interrupt with the next packet, or for no more; says whether the port does it.
    pub(super) fn arm(&mut self, on: bool) -> bool {
        // Drivers of cards have registers that are several queues'.
        let _one_at_a_time = self.port.arming.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the port is started and has this queue; no other thread is in this call for it.
        let result =
            unsafe { (self.port.eal.api().rx_interrupt)(self.port.number, self.queue, on.into()) };
        if result != 0 && on {
            self.port.waking.store(false, Ordering::Relaxed);
        }
        result == 0
    }

    /// Whether packets wait; they come with the next burst.
    pub(super) fn look(&mut self) -> bool {
        self.fill(MAX_BURST);
        !self.waiting.is_empty()
    }

    /// Takes packets from the port, if none are left of those that were taken before.
    fn fill(&mut self, limit: usize) {
        if !self.waiting.is_empty() || limit == 0 {
            return;
        }
        // SAFETY: the port is started and has this queue, which nobody else uses (&mut self).
        // `packets` has room for `limit` entries, none of which is in use.
        let count = unsafe {
            (self.port.eal.api().rx)(
                self.port.number,
                self.queue,
                self.packets.as_mut_ptr(),
                limit as u16,
            )
        };
        self.waiting = 0..usize::from(count);
    }
}

/// Packets that were received together.
pub struct RxBurst<'q> {
    queue: &'q mut RxQueue,
    count: usize,
}

impl fmt::Debug for RxBurst<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxBurst({} packets of {:?})", self.count, self.queue)
    }
}

impl RxBurst<'_> {
    /// Number of packets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The packets, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = RxPacket<'_>> {
        let start = self.queue.waiting.start;
        let packets = self.queue.packets.get(start..start + self.count).unwrap_or_default();
        packets.iter().map(|packet| RxPacket { packet, port: &self.queue.port })
    }

    /// Gives only the first `count` packets back; the others come again with the next burst.
    pub fn keep(mut self, count: usize) {
        self.count = self.count.min(count);
    }
}

impl Drop for RxBurst<'_> {
    fn drop(&mut self) {
        let RxQueue { port, packets, waiting, .. } = &mut *self.queue;
        if let Some(packets) = packets.get_mut(waiting.start..waiting.start + self.count)
            && !packets.is_empty()
        {
            // SAFETY: these entries were received and given to nobody else; no borrow of their
            // bytes outlives this burst.
            unsafe { (port.eal.api().free)(packets.as_mut_ptr(), packets.len() as u16) };
            waiting.start += packets.len();
        }
    }
}

impl Drop for RxQueue {
    fn drop(&mut self) {
        let count = self.waiting.len();
        // What waits goes back as well.
        drop(RxBurst { queue: self, count });
        if self.epoll.is_some() {
            self.wait_with(-1);
        }
    }
}

/// A received packet.
#[derive(Clone, Copy)]
pub struct RxPacket<'b> {
    packet: &'b Packet,
    port: &'b Inner,
}

impl fmt::Debug for RxPacket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RxPacket({} bytes)", self.packet.total)
    }
}

impl RxPacket<'_> {
    /// Bytes of the packet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packet.total as usize
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packet.total == 0
    }

    /// The bytes of the packet, where they lie in one piece.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        if self.packet.segments != 1 {
            return None;
        }
        // SAFETY: DPDK gave `len` initialised bytes at `data`, in a buffer that the burst owns and
        // nobody writes to while it is borrowed.
        Some(unsafe { std::slice::from_raw_parts(self.packet.data, self.packet.len as usize) })
    }

    /// Copies the packet to the front of `room`, from as many pieces as there are; gives its bytes,
    /// none when they do not fit.
    #[must_use]
    pub fn copy_to(&self, room: &mut [u8]) -> Option<usize> {
        if let Some(bytes) = self.bytes() {
            room.get_mut(..bytes.len())?.copy_from_slice(bytes);
            return Some(bytes.len());
        }
        let len = self.len();
        let room = room.get_mut(..len)?;
        // SAFETY: the packet's segments are DPDK's and owned by the burst; `room` has as many bytes
        // as is said.
        let copied =
            unsafe { (self.port.eal.api().copy)(self.packet, room.as_mut_ptr(), len as u32) };
        (copied as usize == len).then_some(len)
    }

    /// Bits `dpdk_sys::RX_*`: what the port, or the guest behind it, says of its checksums.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.packet.flags
    }

    /// Payload bytes of each segment, of a packet that stands for several.
    #[must_use]
    pub fn segment_size(&self) -> Option<u16> {
        let is_super = self.packet.flags & dpdk_sys::RX_SUPER != 0;
        Some(self.packet.segment_size).filter(|size| is_super && *size != 0)
    }
}

/// What is left to device or guest to do to a packet that is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxOffload {
    /// Bits `dpdk_sys::TX_*`.
    pub flags: u32,
    /// Bytes of Ethernet header with tags.
    pub l2_len: u16,
    /// Bytes of IP header.
    pub l3_len: u16,
    /// Bytes of TCP header, of a super-frame.
    pub l4_len: u16,
    /// Payload bytes of each segment of a super-frame.
    pub segment_size: u16,
}

/// A transmit queue, for one thread at a time.
pub struct TxQueue {
    port: Arc<Inner>,
    queue: u16,
    /// Empty buffers.
    spare: Vec<Packet>,
    /// Filled ones, in the order they are to leave.
    ready: Vec<Packet>,
}

// SAFETY: as for `RxQueue`.
unsafe impl Send for TxQueue {}

impl fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxQueue({}.{}, {} ready)", self.port.number, self.queue, self.ready.len())
    }
}

impl TxQueue {
    pub(super) fn new(port: Arc<Inner>, queue: u16) -> Self {
        let (spare, ready) = (Vec::with_capacity(REFILL), Vec::with_capacity(2 * MAX_BURST));
        Self { port, queue, spare, ready }
    }

    /// Bytes of packet that one buffer holds.
    #[must_use]
    pub fn room(&self) -> usize {
        self.port.pool.room().into()
    }

    /// A packet of `len` bytes in one buffer, to be written now; none when it does not fit in one
    /// or no buffer is left. Its bytes are what the buffer held before.
    pub fn push(&mut self, len: usize) -> Option<&mut [u8]> {
        let mut packet = self.buffer()?;
        if len > packet.room as usize {
            self.spare.push(packet);
            return None;
        }
        packet.len = len as u32;
        packet.flags = 0;
        self.ready.push(packet);
        // SAFETY: the buffer has `room` bytes at `data` and belongs to this queue alone until it is
        // sent; `&mut self` keeps others away as long as the slice lives. Buffers lie in memory that
        // DPDK has mapped and cleared at start.
        Some(unsafe { std::slice::from_raw_parts_mut(packet.data, len) })
    }

    /// A packet of `len` bytes in as many buffers as it takes, to be written from its front to its
    /// end; none when there are not as many.
    pub fn start(&mut self, len: usize, offload: TxOffload) -> Option<PacketWriter<'_>> {
        let first = self.ready.len();
        let mut left = len;
        loop {
            let Some(mut packet) = self.buffer() else {
                self.spare.extend(self.ready.drain(first..));
                return None;
            };
            packet.len = left.min(packet.room as usize) as u32;
            packet.flags = 0;
            left -= packet.len as usize;
            if left > 0 {
                packet.flags = dpdk_sys::TX_MORE;
            }
            self.ready.push(packet);
            if left == 0 {
                break;
            }
        }
        if let Some(packet) = self.ready.get_mut(first) {
            packet.flags |= offload.flags;
            packet.segment_size = offload.segment_size;
            (packet.l2_len, packet.l3_len, packet.l4_len) =
                (offload.l2_len, offload.l3_len, offload.l4_len);
        }
        Some(PacketWriter { queue: self, at: first, done: 0 })
    }

    /// Packets, or buffers of them, that wait for [`Self::flush`].
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Hands all packets over to the port, which is asked up to `retries` times again while it has
    /// no room; gives how many it took. The others are dropped.
    pub fn flush(&mut self, retries: u32) -> usize {
        let mut taken = 0;
        // A packet's buffers stay together: `ready` is bounded by the bursts that fill it.
        if !self.ready.is_empty() {
            let count = self.ready.len().min(usize::from(u16::MAX)) as u16;
            // SAFETY: the port is started and has this queue, which nobody else uses (&mut self).
            // The entries are buffers of our own that the call takes.
            taken = unsafe {
                (self.port.eal.api().tx)(
                    self.port.number,
                    self.queue,
                    self.ready.as_mut_ptr(),
                    count,
                    retries,
                )
            };
            self.ready.clear();
        }
        taken.into()
    }

    fn buffer(&mut self) -> Option<Packet> {
        if let Some(packet) = self.spare.pop() {
            return Some(packet);
        }
        if self.ready.len() >= usize::from(u16::MAX) {
            return None;
        }
        for count in [REFILL, 1] {
            self.spare.resize(count, Packet::EMPTY);
            // SAFETY: the pool lives as long as the port; `spare` has room for `count` entries.
            let result = unsafe {
                (self.port.eal.api().alloc)(
                    self.port.pool.raw(),
                    self.spare.as_mut_ptr(),
                    count as u16,
                )
            };
            if result == 0 {
                return self.spare.pop();
            }
            self.spare.clear();
        }
        None
    }
}

impl Drop for TxQueue {
    fn drop(&mut self) {
        for packets in [&mut self.spare, &mut self.ready] {
            if !packets.is_empty() {
                // SAFETY: the entries are buffers of our own, given to nobody. There are at most
                // u16::MAX of them.
                unsafe { (self.port.eal.api().free)(packets.as_mut_ptr(), packets.len() as u16) };
                packets.clear();
            }
        }
    }
}

/// Writes a packet into its buffers, one behind the other.
#[derive(Debug)]
pub struct PacketWriter<'q> {
    queue: &'q mut TxQueue,
    at: usize,
    /// Bytes written into the buffer at `at`.
    done: usize,
}

impl PacketWriter<'_> {
    /// Adds bytes; what is beyond the packet's length is left out.
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(packet) = self.queue.ready.get(self.at) else { return };
            let room = packet.len as usize - self.done;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            // SAFETY: the buffer has `len` bytes at `data`, of which `done` are written, and
            // belongs to the queue alone.
            unsafe {
                let to = packet.data.add(self.done);
                std::ptr::copy_nonoverlapping(now.as_ptr(), to, now.len());
            }
            self.done += now.len();
            if self.done == packet.len as usize {
                self.at += 1;
                self.done = 0;
            }
            bytes = later;
        }
    }
}
