//! Packet memory: one fixed allocation with room at both ends.
//!
//! A frame is read behind [`HEADROOM`] bytes and before [`TAILROOM`] bytes, so that headers are
//! prepended and the tag is appended without moving a payload byte. Buffers come from a
//! [`BufPool`] that belongs to one worker: after start-up the packet path allocates nothing.

use std::net::SocketAddr;

/// Bytes kept free in front of a freshly received frame or datagram.
///
/// Enough for the 12-byte virtio-net header, the 14-byte data header with an explicit VNI, and
/// an outer Ethernet, VLAN, IPv6 and UDP header (66 bytes) on ports that need one.
pub const HEADROOM: usize = 128;

/// Bytes kept free behind a freshly received frame: the 16-byte AEAD tag.
pub const TAILROOM: usize = 16;

/// The buffer has too little room at the end that was to grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("packet buffer has no room")]
pub struct NoRoom;

/// One packet: `headroom | data | tailroom` in one allocation.
#[derive(Debug)]
pub struct PacketBuf {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl PacketBuf {
    /// Makes a buffer that can hold `max_len` data bytes between [`HEADROOM`] and [`TAILROOM`].
    #[must_use]
    pub fn with_capacity(max_len: usize) -> Self {
        let memory = vec![0; HEADROOM + max_len + TAILROOM].into_boxed_slice();
        Self { memory, start: HEADROOM, end: HEADROOM }
    }

    /// Makes a buffer that holds a copy of `data`; for tests and off-path use.
    #[must_use]
    pub fn from_slice(data: &[u8]) -> Self {
        let mut buf = Self::with_capacity(data.len());
        buf.memory[HEADROOM..HEADROOM + data.len()].copy_from_slice(data);
        buf.end = HEADROOM + data.len();
        buf
    }

    /// The data bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// The data bytes, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.end]
    }

    /// Number of data bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there are no data bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Most data bytes that fit behind [`HEADROOM`] with [`TAILROOM`] kept free.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len() - HEADROOM - TAILROOM
    }

    /// Grows the data by `len` bytes into the headroom and returns the new first bytes.
    ///
    /// # Errors
    /// [`NoRoom`] when the headroom is smaller than `len`; the buffer is unchanged.
    pub fn prepend(&mut self, len: usize) -> Result<&mut [u8], NoRoom> {
        let start = self.start.checked_sub(len).ok_or(NoRoom)?;
        self.start = start;
        Ok(&mut self.memory[start..start + len])
    }

    /// Grows the data by `len` bytes into the tailroom and returns the new last bytes.
    ///
    /// # Errors
    /// [`NoRoom`] when the tailroom is smaller than `len`; the buffer is unchanged.
    pub fn append(&mut self, len: usize) -> Result<&mut [u8], NoRoom> {
        let end = self.end + len;
        if end > self.memory.len() {
            return Err(NoRoom);
        }
        let old = self.end;
        self.end = end;
        Ok(&mut self.memory[old..end])
    }

    /// Forgets the first `len` data bytes (at most all of them).
    pub fn trim_front(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    /// Forgets the last `len` data bytes (at most all of them).
    pub fn trim_back(&mut self, len: usize) {
        self.end = self.end.saturating_sub(len).max(self.start);
    }

    /// Empties the buffer and gives it its full headroom back.
    pub fn reset(&mut self) {
        self.start = HEADROOM;
        self.end = HEADROOM;
    }

    /// The free bytes behind the data, where a device may write; follow with [`Self::set_len`].
    pub fn spare_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.end..]
    }

    /// Sets the number of data bytes, counted from the present start; clipped to the memory.
    pub fn set_len(&mut self, len: usize) {
        self.end = (self.start + len).min(self.memory.len());
    }
}

/// A last-in-first-out store of equal buffers, owned by one worker.
///
/// `alloc` hands out a stored buffer, or makes a new one while fewer than the limit exist.
/// A buffer that is dropped instead of returned frees its memory and is made anew later.
#[derive(Debug)]
pub struct BufPool {
    free: Vec<PacketBuf>,
    max_len: usize,
    limit: usize,
}

impl BufPool {
    /// A pool of buffers for `max_len` data bytes that stores at most `limit` idle buffers.
    #[must_use]
    pub fn new(max_len: usize, limit: usize) -> Self {
        Self { free: Vec::with_capacity(limit), max_len, limit }
    }

    /// An empty buffer with full headroom.
    pub fn alloc(&mut self) -> PacketBuf {
        self.free.pop().unwrap_or_else(|| PacketBuf::with_capacity(self.max_len))
    }

    /// Takes a buffer back.
    pub fn free(&mut self, mut buf: PacketBuf) {
        if self.free.len() < self.limit && buf.capacity() == self.max_len {
            buf.reset();
            self.free.push(buf);
        }
    }

    /// A second buffer with the same data, for the next destination of a flooded frame.
    pub fn duplicate(&mut self, of: &PacketBuf) -> PacketBuf {
        let data = of.data();
        // Beyond the store, no larger than it must be: floods to many make many.
        let mut copy = match self.free.pop() {
            Some(copy) if copy.memory.len() >= of.end => copy,
            _ => PacketBuf::with_capacity(data.len()),
        };
        copy.start = of.start.min(copy.memory.len() - data.len());
        copy.end = copy.start + data.len();
        copy.memory[copy.start..copy.end].copy_from_slice(data);
        copy
    }

    /// Data bytes that each buffer holds.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Idle buffers at the moment.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.free.len()
    }
}

/// A burst: what one port call or one protocol call handles at once. Its memory is reused.
pub type Burst<T> = Vec<T>;

/// What the sender of a frame left for a device to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// The frame is complete: nothing to do.
    #[default]
    Complete,
    /// The L4 checksum field holds only the pseudo-header sum: the sum over the bytes
    /// from `start` (offset in the frame) must still be taken and stored at `start + offset`.
    Partial {
        /// First byte that the sum covers, counted from the start of the Ethernet frame.
        start: u16,
        /// Where the checksum is stored, counted from `start` (16 for TCP, 6 for UDP).
        offset: u16,
    },
}

/// An overlay Ethernet frame (without FCS) and its offload state.
#[derive(Debug)]
pub struct Frame {
    /// The frame, from its destination address on.
    pub buf: PacketBuf,
    /// Whether its L4 checksum is complete.
    pub checksum: Checksum,
}

/// Index of a local attachment to the underlay (a socket set or a DPDK port).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkId(pub u8);

/// An underlay UDP payload with the address at the other end.
#[derive(Debug)]
pub struct Datagram {
    /// The UDP payload.
    pub buf: PacketBuf,
    /// The local attachment it came in by or goes out by.
    pub uplink: UplinkId,
    /// The remote address: source when received, destination when sent.
    pub remote: SocketAddr,
    /// The outer TOS or traffic class byte: DSCP in the upper six bits, ECN in the lower two
    /// (RFC 2474, RFC 3168). Sent as it is; on receipt what the datagram bore, 0 where the port
    /// cannot tell.
    pub mark: u8,
}

/// How a super-frame is to be cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// What makes a frame a super-frame: one that stands for several, with one set of headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segmentation {
    /// Of which protocol.
    pub kind: SegmentKind,
    /// Payload bytes of each segment; the last may have fewer. Never 0.
    pub size: u16,
    /// TCP: the first segment bears CWR and the others must not (RFC 3168 section 6.1.2).
    pub ecn: bool,
}

/// What is left for a device to do to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// Whether its L4 checksum is complete. That of a super-frame is partial.
    pub checksum: Checksum,
    /// Whether it is a super-frame.
    pub segmentation: Option<Segmentation>,
}

/// A frame within a [`FrameBurst`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef {
    start: usize,
    len: usize,
    /// What is left to do to it.
    pub offload: Offload,
}

impl FrameRef {
    /// Bytes of the frame.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Frames that were read from one overlay port: one behind the other, in one memory that is used
/// again for every burst.
#[derive(Debug)]
pub struct FrameBurst {
    memory: Box<[u8]>,
    used: usize,
    frames: Vec<FrameRef>,
}

/// Frames begin at multiples of this: a cache line.
const FRAME_ALIGN: usize = 64;

impl FrameBurst {
    /// A burst of at most `max_frames` frames in `memory_len` bytes.
    #[must_use]
    pub fn new(memory_len: usize, max_frames: usize) -> Self {
        let memory = vec![0; memory_len].into_boxed_slice();
        Self { memory, used: 0, frames: Vec::with_capacity(max_frames) }
    }

    /// Where the next frame may be written; empty when there are as many frames as the burst takes.
    pub fn room(&mut self) -> &mut [u8] {
        if self.frames.len() == self.frames.capacity() {
            return &mut [];
        }
        self.memory.get_mut(self.used..).unwrap_or_default()
    }

    /// Takes `len` bytes from `skip` on of what [`Self::room`] gave as a frame. Says whether they
    /// lie within it.
    pub fn push(&mut self, skip: usize, len: usize, offload: Offload) -> bool {
        let start = self.used + skip;
        if self.frames.len() == self.frames.capacity() || start + len > self.memory.len() {
            return false;
        }
        self.used = (start + len).next_multiple_of(FRAME_ALIGN);
        self.frames.push(FrameRef { start, len, offload });
        true
    }

    /// Adds a copy of `frame`; says whether it had room.
    pub fn push_slice(&mut self, frame: &[u8], offload: Offload) -> bool {
        let Some(room) = self.room().get_mut(..frame.len()) else { return false };
        room.copy_from_slice(frame);
        self.push(0, frame.len(), offload)
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frame at `index` and its bytes.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<(FrameRef, &[u8])> {
        let frame = *self.frames.get(index)?;
        Some((frame, self.memory.get(frame.start..frame.start + frame.len)?))
    }

    /// The frame at `index`, to be changed in place.
    pub fn get_mut(&mut self, index: usize) -> Option<(&mut Offload, &mut [u8])> {
        let frame = self.frames.get_mut(index)?;
        let bytes = self.memory.get_mut(frame.start..frame.start + frame.len)?;
        Some((&mut frame.offload, bytes))
    }

    /// All frames.
    pub fn iter(&self) -> impl Iterator<Item = (FrameRef, &[u8])> {
        (0..self.frames.len()).filter_map(|index| self.get(index))
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.used = 0;
    }
}

/// A run of datagrams on their way out: all to one address, all of one size, the last perhaps
/// shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where the datagrams lie, one behind the other, in the memory of their [`Transmits`].
    pub range: std::ops::Range<usize>,
    /// Bytes of UDP payload of each datagram but the last. Never 0.
    pub segment_size: usize,
    /// The local attachment that they leave by.
    pub uplink: UplinkId,
    /// Where they go.
    pub remote: SocketAddr,
    /// The outer TOS or traffic class byte (RFC 2474, RFC 3168).
    pub mark: u8,
}

impl Transmit {
    /// Number of datagrams.
    #[must_use]
    pub fn count(&self) -> usize {
        self.range.len().div_ceil(self.segment_size.max(1))
    }
}

/// Datagrams on their way out. The same bytes may leave by several links.
#[derive(Debug, Default)]
pub struct Transmits {
    /// The datagrams' bytes.
    pub memory: Vec<u8>,
    /// Runs within it, in the order they are to leave.
    pub list: Vec<Transmit>,
}

impl Transmits {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.memory.clear();
        self.list.clear();
    }

    /// The bytes of a run.
    #[must_use]
    pub fn bytes(&self, transmit: &Transmit) -> &[u8] {
        self.memory.get(transmit.range.clone()).unwrap_or_default()
    }
}

/// A run of datagrams that were received together from one address.
#[derive(Debug)]
pub struct Received {
    /// UDP payloads, one behind the other.
    pub buf: PacketBuf,
    /// Bytes of each but the last. Never 0.
    pub segment_size: usize,
    /// The local attachment they came in by.
    pub uplink: UplinkId,
    /// Where they came from.
    pub remote: SocketAddr,
    /// The outer TOS or traffic class byte; 0 where the port cannot tell.
    pub mark: u8,
}

/// Where the bytes of a frame lie in [`Pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which piece.
    pub piece: usize,
    /// First byte in it.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

/// Buffers that frames on their way into overlay ports lie in, many to one.
#[derive(Debug, Default)]
pub struct Pieces(pub Vec<PacketBuf>);

impl Pieces {
    /// The bytes of a frame; none when the span lies outside.
    #[must_use]
    pub fn get(&self, span: Span) -> &[u8] {
        let piece = self.0.get(span.piece).map_or(&[][..], PacketBuf::data);
        piece.get(span.start..span.start + span.len).unwrap_or_default()
    }

    /// The bytes of a frame, to be changed in place.
    pub fn get_mut(&mut self, span: Span) -> &mut [u8] {
        let piece = self.0.get_mut(span.piece).map(PacketBuf::data_mut).unwrap_or_default();
        piece.get_mut(span.start..span.start + span.len).unwrap_or_default()
    }

    /// Gives all buffers back.
    pub fn release(&mut self, pool: &mut BufPool) {
        for buf in self.0.drain(..) {
            pool.free(buf);
        }
    }
}

/// A frame for an overlay port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutFrame {
    /// Where it lies.
    pub span: Span,
    /// Whether its L4 checksum is complete.
    pub checksum: Checksum,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks_at_both_ends() {
        let mut buf = PacketBuf::from_slice(b"frame");
        buf.prepend(2).unwrap().copy_from_slice(b"ab");
        buf.append(3).unwrap().copy_from_slice(b"xyz");
        assert_eq!(buf.data(), b"abframexyz");
        buf.trim_front(2);
        buf.trim_back(3);
        assert_eq!(buf.data(), b"frame");
        assert_eq!(buf.prepend(HEADROOM + 1), Err(NoRoom));
        assert_eq!(buf.append(TAILROOM + 1), Err(NoRoom));
        assert_eq!(buf.data(), b"frame");
        buf.trim_back(99);
        assert!(buf.is_empty());
    }

    #[test]
    fn pool_reuses_and_forgets_foreign_sizes() {
        let mut pool = BufPool::new(100, 1);
        let first = pool.alloc();
        let second = pool.alloc();
        pool.free(PacketBuf::with_capacity(7));
        assert_eq!(pool.idle(), 0);
        pool.free(first);
        pool.free(second);
        assert_eq!(pool.idle(), 1);
    }

    #[test]
    fn duplicate_keeps_data_and_headroom() {
        let mut pool = BufPool::new(64, 4);
        let mut buf = pool.alloc();
        buf.append(4).unwrap().copy_from_slice(b"data");
        let mut copy = pool.duplicate(&buf);
        assert_eq!(copy.data(), b"data");
        assert!(copy.prepend(HEADROOM).is_ok());
        let large = PacketBuf::from_slice(&[7; 300]);
        assert_eq!(pool.duplicate(&large).data(), &[7; 300]);
    }
}
