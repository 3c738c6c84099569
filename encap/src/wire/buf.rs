//! Packet memory: bursts of frames, runs of datagrams, and spans into received buffers.
//!
//! Segmentation offload makes one buffer hold many packets: a tap gives super-frames, a socket takes
//! and gives runs of datagrams. So a burst has one memory with its packets one behind the other, and
//! what was received is opened where it lies. Memory belongs to one worker and is used again: after
//! start-up the packet path allocates nothing.
//!
//! Overlay to underlay: [`FrameBurst`], then [`Transmits`]. Back: [`Received`], then spans in
//! [`Pieces`].

use std::net::SocketAddr;

/// A buffer with data at its front.
#[derive(Debug, Default)]
pub struct PacketBuf {
    memory: Box<[u8]>,
    len: usize,
}

impl PacketBuf {
    /// An empty buffer for `max_len` bytes.
    #[must_use]
    pub fn with_capacity(max_len: usize) -> Self {
        Self { memory: vec![0; max_len].into_boxed_slice(), len: 0 }
    }

    /// A buffer that holds a copy of `data` and no more.
    #[must_use]
    pub fn from_slice(data: &[u8]) -> Self {
        Self { memory: data.into(), len: data.len() }
    }

    /// The data bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }

    /// The data bytes, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(..self.len).unwrap_or_default()
    }

    /// Number of data bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no data bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most data bytes that it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// The free bytes behind the data, where a device may write; follow with [`Self::set_len`].
    pub fn spare_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.len..).unwrap_or_default()
    }

    /// Adds a copy of `bytes` behind the data if there is room; gives where they begin.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let start = self.len;
        if let Some(room) = self.spare_mut().get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
        start
    }

    /// Sets the number of data bytes; clipped to the capacity.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.memory.len());
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

    /// An empty buffer.
    pub fn alloc(&mut self) -> PacketBuf {
        self.free.pop().unwrap_or_else(|| PacketBuf::with_capacity(self.max_len))
    }

    /// Takes a buffer back.
    pub fn free(&mut self, mut buf: PacketBuf) {
        if self.free.len() < self.limit && buf.capacity() == self.max_len {
            buf.set_len(0);
            self.free.push(buf);
        }
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

/// Index of a local attachment to the underlay (a socket set or a DPDK port).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkId(pub u8);

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

/// Most datagrams of a run: what every kernel with UDP_SEGMENT takes (64 until Linux 6.9, the headers
/// counted in some).
pub const MAX_RUN: usize = 63;
/// Most bytes of a run: what an IPv4 datagram can hold.
pub const MAX_RUN_BYTES: usize = 65_507;

impl Transmit {
    /// Whether a datagram at `next` can be one more of the run.
    fn takes(&self, next: std::ops::Range<usize>) -> bool {
        self.range.end == next.start
            && next.len() <= self.segment_size
            && self.range.len().is_multiple_of(self.segment_size)
            && self.count() < MAX_RUN
            && self.range.len() + next.len() <= MAX_RUN_BYTES
    }

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

    /// Sends what lies in the memory from `start` on, one datagram, to every address in `to`: as one
    /// more of the last run where it continues that.
    pub fn extend_run(
        &mut self,
        start: usize,
        to: impl Iterator<Item = (UplinkId, SocketAddr)> + Clone,
        mark: u8,
    ) {
        let end = self.memory.len();
        let count = to.clone().count();
        let first = self.list.len().saturating_sub(count);
        let tail = self.list.get_mut(first..).unwrap_or_default();
        let continues = tail.len() == count
            && tail.iter().zip(to.clone()).all(|(run, (uplink, remote))| {
                run.takes(start..end)
                    && (run.uplink, run.remote, run.mark) == (uplink, remote, mark)
            });
        if continues {
            for run in tail {
                run.range.end = end;
            }
            return;
        }
        for (uplink, remote) in to {
            let segment_size = (end - start).max(1);
            self.list.push(Transmit { range: start..end, segment_size, uplink, remote, mark });
        }
    }

    /// Every datagram by itself, in the order they are to leave: its run and its bytes.
    pub fn datagrams(&self) -> impl Iterator<Item = (&Transmit, &[u8])> {
        self.list.iter().flat_map(|transmit| {
            let datagrams = self.bytes(transmit).chunks(transmit.segment_size.max(1));
            datagrams.map(move |bytes| (transmit, bytes))
        })
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

impl Received {
    /// A datagram by itself.
    #[must_use]
    pub fn single(buf: PacketBuf, uplink: UplinkId, remote: SocketAddr, mark: u8) -> Self {
        Self { segment_size: buf.len().max(1), buf, uplink, remote, mark }
    }
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

impl Span {
    /// What is left behind the first `len` bytes.
    #[must_use]
    pub fn after(self, len: usize) -> Self {
        let len = len.min(self.len);
        Self { start: self.start + len, len: self.len - len, ..self }
    }
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

    /// Adds a copy of `frame`: behind what lies in the last buffer, or in another one of `pool` if
    /// that has no room.
    pub fn append(&mut self, frame: &[u8], pool: &mut BufPool) -> Span {
        let has_room =
            self.0.last().is_some_and(|last| last.capacity() - last.len() >= frame.len());
        if !has_room {
            let fits = frame.len() <= pool.max_len();
            self.0.push(if fits { pool.alloc() } else { PacketBuf::with_capacity(frame.len()) });
        }
        let piece = self.0.len().saturating_sub(1);
        let start = self.0.last_mut().map_or(0, |last| last.append(frame));
        Span { piece, start, len: frame.len() }
    }

    /// Adds a copy of the frame at `span`, as [`Self::append`] does.
    pub fn append_copy(&mut self, span: Span, pool: &mut BufPool) -> Span {
        let Some(source) = self.0.get_mut(span.piece) else {
            return Span { len: 0, ..span };
        };
        let source = std::mem::take(source);
        let frame = source.data().get(span.start..span.start + span.len).unwrap_or_default();
        // The source is away: an empty buffer in its place has no room.
        let copy = self.append(frame, pool);
        if let Some(place) = self.0.get_mut(span.piece) {
            *place = source;
        }
        copy
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
    fn a_burst_holds_frames_behind_each_other_and_no_more_than_it_has_room_for() {
        let mut burst = FrameBurst::new(200, 3);
        assert!(burst.push_slice(b"first", Offload::default()));
        let room = burst.room();
        assert_eq!(room.len(), 200 - 64);
        room[..8].copy_from_slice(b"hdrframe");
        assert!(burst.push(3, 5, Offload::default()));
        assert!(!burst.push(0, 73, Offload::default()), "72 bytes are left");
        assert!(burst.push(72, 0, Offload::default()));
        assert!(burst.room().is_empty() && !burst.push(0, 0, Offload::default()));
        let frames: Vec<_> = burst.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(frames, [&b"first"[..], b"frame", b""]);
        burst.clear();
        assert!(burst.is_empty() && burst.room().len() == 200);
    }

    fn to(port: u16) -> (UplinkId, SocketAddr) {
        (UplinkId(0), SocketAddr::from(([192, 0, 2, 1], port)))
    }

    /// Lays datagrams of these lengths down, each for these ports; gives the runs' ports and lengths.
    fn runs(datagrams: &[(usize, &'static [u16], u8)]) -> Vec<(u16, usize, usize)> {
        let mut out = Transmits::default();
        for (len, ports, mark) in datagrams {
            let start = out.memory.len();
            out.memory.resize(start + len, 0);
            out.extend_run(start, ports.iter().map(|port| to(*port)), *mark);
        }
        out.list.iter().map(|run| (run.remote.port(), run.segment_size, run.range.len())).collect()
    }

    #[test]
    fn equal_datagrams_to_one_address_are_one_run_that_a_shorter_one_ends() {
        assert_eq!(
            runs(&[(9, &[1], 0), (9, &[1], 0), (4, &[1], 0), (4, &[1], 0)]),
            [(1, 9, 22), (1, 4, 4)]
        );
        assert_eq!(runs(&[(9, &[1], 0), (10, &[1], 0)]), [(1, 9, 9), (1, 10, 10)]);
        assert_eq!(runs(&[(9, &[1], 0), (9, &[1], 4)]), [(1, 9, 9), (1, 9, 9)]);
        assert_eq!(runs(&[(9, &[1], 0), (9, &[2], 0), (9, &[1], 0)]).len(), 3);
    }

    #[test]
    fn every_address_of_a_datagram_has_its_run() {
        assert_eq!(runs(&[(9, &[1, 2], 0), (9, &[1, 2], 0)]), [(1, 9, 18), (2, 9, 18)]);
        assert_eq!(runs(&[(9, &[1, 2], 0), (9, &[2], 0)]), [(1, 9, 9), (2, 9, 18)]);
        assert_eq!(runs(&[(9, &[2], 0), (9, &[1, 2], 0)]).len(), 3);
        assert!(runs(&[(9, &[], 0), (9, &[], 0)]).is_empty());
    }

    #[test]
    fn runs_are_bounded() {
        assert_eq!(runs(&[(10, &[1][..], 0); 64]), [(1, 10, 630), (1, 10, 10)]);
        assert_eq!(runs(&[(30_000, &[1][..], 0); 3]), [(1, 30_000, 60_000), (1, 30_000, 30_000)]);
    }

    #[test]
    fn copies_lie_behind_each_other_and_leave_what_is_there_alone() {
        let mut pool = BufPool::new(10, 4);
        let mut pieces = Pieces(vec![PacketBuf::from_slice(b"first")]);
        let first = Span { piece: 0, start: 0, len: 5 };
        let one = pieces.append(b"four", &mut pool);
        let two = pieces.append_copy(first, &mut pool);
        assert_eq!((one.piece, two.piece, two.start), (1, 1, 4), "in the room of the last one");
        // A copy of what lies in the last one, with room behind it and without.
        let three = pieces.append_copy(Span { start: 0, len: 1, ..one }, &mut pool);
        let four = pieces.append_copy(two, &mut pool);
        pieces.get_mut(four).copy_from_slice(b"other");
        let large = pieces.append(&[7; 11], &mut pool);
        let bytes = |span| pieces.get(span).to_vec();
        assert_eq!((bytes(first), bytes(one)), (b"first".to_vec(), b"four".to_vec()));
        assert_eq!((bytes(two), bytes(three)), (b"first".to_vec(), b"f".to_vec()));
        assert_eq!((bytes(four), bytes(large)), (b"other".to_vec(), vec![7; 11]));
        let outside = pieces.append_copy(Span { piece: 99, start: 0, len: 5 }, &mut pool);
        assert_eq!((outside.len, pieces.get(outside)), (0, &b""[..]));
    }

    #[test]
    fn spans_outside_of_their_piece_are_empty() {
        let mut pieces = Pieces(vec![PacketBuf::from_slice(b"frames")]);
        let span = |piece, start, len| Span { piece, start, len };
        assert_eq!(pieces.get(span(0, 1, 3)), b"ram");
        assert_eq!(pieces.get(span(0, 1, 3).after(2)), b"m");
        assert!(pieces.get(span(0, 1, 6)).is_empty() && pieces.get_mut(span(1, 0, 1)).is_empty());
    }
}
