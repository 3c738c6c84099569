//! A byte stream on its way in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::Carried;
use super::super::spans::Spans;
use super::{Credit, Fault, Memory, max_ranges};
use crate::wire::channel::{ChannelId, Frame, Stream};
use crate::wire::varint::MAX_VARINT;

/// Bytes of one piece of memory, which is there as soon as any byte of it came.
const BLOCK_LEN: u64 = 16 << 10;

/// What the receiver keeps of one stream.
///
/// Memory: what the credit allows, rounded up to 16 KiB blocks at both ends, and a bounded number
/// of ranges. Where pieces overlap, the bytes that came first stay.
#[derive(Debug)]
pub struct IncomingStream {
    channel: ChannelId,
    credit: Credit,
    /// Blocks from the one that `taken` lies in.
    blocks: VecDeque<Option<Box<[u8]>>>,
    received: Spans,
    /// All before went to the program.
    taken: u64,
    /// The end of the last byte that came.
    highest: u64,
    end: Option<u64>,
}

impl IncomingStream {
    /// Nothing came yet. `channel` is named as in frames that this node sends.
    #[must_use]
    pub fn new(channel: ChannelId, credit: Credit) -> Self {
        let (blocks, received) = (VecDeque::new(), Spans::new());
        Self { channel, credit, blocks, received, taken: 0, highest: 0, end: None }
    }

    /// Takes bytes that came.
    ///
    /// # Errors
    /// [`Fault`]; nothing was taken.
    pub fn on_stream(&mut self, frame: &Stream<'_>) -> Result<(), Fault> {
        let start = frame.offset;
        let end = start.saturating_add(frame.bytes.len() as u64).min(MAX_VARINT);
        if end > self.credit.limit() {
            return Err(Fault::BeyondCredit);
        }
        let behind = self.end.is_some_and(|last| end > last || frame.fin && end != last);
        if behind || frame.fin && end < self.highest {
            return Err(Fault::FinalSize);
        }
        let full = self.received.len() >= max_ranges(self.credit.outstanding());
        if start < end && full && !self.received.joins(&(start..end)) {
            return Err(Fault::Gaps);
        }
        for gap in self.received.missing(start..end) {
            let skip = usize::try_from(gap.start - start).unwrap_or(usize::MAX);
            let bytes = frame.bytes.get(skip..).unwrap_or_default();
            let base = self.taken - self.taken % BLOCK_LEN;
            store(&mut self.blocks, base, gap.start, gap.end, bytes);
        }
        self.received.insert(start..end);
        self.highest = self.highest.max(end);
        if frame.fin {
            self.end = Some(end);
        }
        Ok(())
    }

    /// Bytes that the program may take next, as many as lie together; none until more came.
    #[must_use]
    pub fn readable(&self) -> &[u8] {
        let [piece] = self.readable_pieces();
        piece
    }

    /// The same, and what comes after it: pieces that together are what the program may take next,
    /// or the first of it. Those that there is nothing for are empty.
    #[must_use]
    pub fn readable_pieces<const N: usize>(&self) -> [&[u8]; N] {
        let mut pieces = [&[][..]; N];
        let mut rest = self.in_order();
        let mut at = self.taken % BLOCK_LEN;
        for (piece, block) in pieces.iter_mut().zip(&self.blocks) {
            let len = rest.min(BLOCK_LEN - at);
            let block = block.as_deref().unwrap_or_default();
            // Both are at most BLOCK_LEN.
            *piece = block.get(at as usize..(at + len) as usize).unwrap_or_default();
            (rest, at) = (rest - len, 0);
        }
        pieces
    }

    /// Bytes that came and have no gap before them.
    fn in_order(&self) -> u64 {
        self.received.prefix().saturating_sub(self.taken)
    }

    /// The program took `len` bytes of [`Self::readable_pieces`]; more than there are count as these.
    pub fn consume(&mut self, len: usize, memory: &mut Memory) {
        let len = self.in_order().min(len as u64);
        let blocks = (self.taken + len) / BLOCK_LEN - self.taken / BLOCK_LEN;
        self.taken += len;
        if self.taken == self.highest {
            // Nothing is left in the last one.
            self.blocks.clear();
        } else {
            let blocks = usize::try_from(blocks).unwrap_or(usize::MAX).min(self.blocks.len());
            self.blocks.drain(..blocks);
        }
        self.credit.release(len, memory);
    }

    /// Whether the program took all, up to the end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.end == Some(self.taken)
    }

    /// Bytes of memory that hold bytes of the stream.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.blocks.iter().flatten().map(|block| block.len()).sum()
    }

    /// Its credit, for who wants another window. A stream has no use for BLOCKED: it goes on with
    /// any credit.
    pub fn credit_mut(&mut self) -> &mut Credit {
        &mut self.credit
    }

    /// Whether there would be more credit to say if memory had room.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.end.is_none() && self.credit.is_starved()
    }

    /// The peer gives back so many bytes of credit since the beginning.
    ///
    /// # Errors
    /// [`Fault::BeyondCredit`] if it used them; nothing was changed.
    pub fn on_return(&mut self, total: u64, memory: &mut Memory) -> Result<(), Fault> {
        self.credit.on_return(total, self.highest, memory)
    }

    /// Looks whether it is idle; says whether credit is to be asked back.
    pub fn look(&mut self) -> bool {
        self.credit.look(self.highest)
    }

    /// Credit that is to be said now. `rtt` is the round trip time.
    pub fn next_frame(
        &mut self,
        now: Instant,
        rtt: Duration,
        memory: &mut Memory,
    ) -> Option<(Frame<'static>, Carried)> {
        if self.credit.take_recall() {
            return Some((Frame::Recall { channel: self.channel }, Carried::Recall));
        }
        // Who has said its end needs none.
        if self.end.is_some() {
            return None;
        }
        let limit = self.credit.poll(now, rtt, self.highest, memory)?;
        Some((Frame::MaxData { channel: self.channel, limit }, Carried::MaxData { limit }))
    }

    /// The packet with this was lost.
    pub fn on_lost(&mut self, carried: &Carried) {
        match *carried {
            Carried::MaxData { limit } => self.credit.on_lost(limit),
            Carried::Recall => self.credit.on_recall_lost(),
            _ => {}
        }
    }

    /// The channel is over: gives its memory back.
    pub fn close(mut self, memory: &mut Memory) {
        self.credit.close(memory);
    }
}

/// Copies `bytes` to `start..end` of a stream whose first block begins at `base`.
fn store(blocks: &mut VecDeque<Option<Box<[u8]>>>, base: u64, start: u64, end: u64, bytes: &[u8]) {
    let (mut at, mut rest) = (start, bytes);
    while at < end {
        // Within the credit, which memory was booked for.
        let index = usize::try_from((at - base) / BLOCK_LEN).unwrap_or(usize::MAX);
        if blocks.len() <= index {
            blocks.resize_with(index + 1, || None);
        }
        let Some(slot) = blocks.get_mut(index) else { return };
        let block = slot.get_or_insert_with(|| vec![0; BLOCK_LEN as usize].into_boxed_slice());
        let inside = at % BLOCK_LEN;
        let len = (BLOCK_LEN - inside).min(end - at) as usize;
        let (now, later) = rest.split_at(len.min(rest.len()));
        if let Some(place) = block.get_mut(inside as usize..inside as usize + now.len()) {
            place.copy_from_slice(now);
        }
        rest = later;
        at += len as u64;
    }
}
