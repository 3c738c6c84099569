//! A byte stream on its way out.

use std::collections::VecDeque;

use super::super::Carried;
use super::super::spans::Spans;
use super::grant::Grant;
use super::{Notice, piece_len};
use crate::wire::channel::{ChannelId, Frame, Stream};

/// Bytes that are kept in one piece of memory. Frames do not reach across: 16 KiB are many packets.
const BLOCK_LEN: usize = 16 << 10;

/// Bytes that lie together.
#[derive(Debug)]
struct Block {
    start: u64,
    /// At most [`BLOCK_LEN`], which is its capacity.
    bytes: Vec<u8>,
}

impl Block {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What the sender keeps of one stream.
///
/// Memory: the limit rounded up to blocks, and ranges of what was acknowledged or lost, which are
/// at most as many as pieces were sent and not yet acknowledged in order.
#[derive(Debug)]
pub struct OutgoingStream {
    channel: ChannelId,
    limit: usize,
    blocks: VecDeque<Block>,
    /// All bytes that the program gave.
    end: u64,
    /// All before were sent at least once.
    sent: u64,
    credit: Grant,
    acked: Spans,
    lost: Spans,
    fin: Notice,
}

impl OutgoingStream {
    /// A stream that keeps at most `limit` bytes and may send `credit`.
    #[must_use]
    pub fn new(channel: ChannelId, limit: usize, credit: u64) -> Self {
        Self {
            channel,
            limit,
            blocks: VecDeque::new(),
            end: 0,
            sent: 0,
            credit: Grant::new(credit),
            acked: Spans::new(),
            lost: Spans::new(),
            fin: Notice::Idle,
        }
    }

    /// Takes bytes from the program as far as there is room, and says how many it took; none after
    /// [`Self::finish`].
    pub fn try_push(&mut self, bytes: &[u8]) -> usize {
        if self.fin != Notice::Idle {
            return 0;
        }
        let room = self.limit.saturating_sub(self.kept());
        let (mut rest, _) = bytes.split_at(bytes.len().min(room));
        let taken = rest.len();
        while !rest.is_empty() {
            if self.blocks.back().is_none_or(|block| block.bytes.len() >= BLOCK_LEN) {
                let bytes = Vec::with_capacity(BLOCK_LEN);
                self.blocks.push_back(Block { start: self.end, bytes });
            }
            let Some(block) = self.blocks.back_mut() else { break };
            let (now, later) = rest.split_at(rest.len().min(BLOCK_LEN - block.bytes.len()));
            block.bytes.extend_from_slice(now);
            self.end += now.len() as u64;
            rest = later;
        }
        taken
    }

    /// Nothing more will come from the program.
    pub fn finish(&mut self) {
        if self.fin == Notice::Idle {
            self.fin = Notice::Due;
        }
    }

    /// Bytes that the program gave and the peer has not acknowledged in order.
    #[must_use]
    pub fn kept(&self) -> usize {
        usize::try_from(self.end - self.acked.prefix()).unwrap_or(usize::MAX)
    }

    /// Whether the peer has all, the end included.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.fin == Notice::Known && self.acked.prefix() == self.end
    }

    /// Credit in bytes since the beginning; an older, smaller one changes nothing.
    pub fn on_max_data(&mut self, limit: u64) {
        self.credit.on_max_data(limit);
    }

    /// The receiver has use for credit that is idle here.
    pub fn on_recall(&mut self) {
        self.credit.on_recall(self.sent, self.end - self.sent);
    }

    /// The next frame that goes into `room` bytes. What was lost comes first.
    pub fn next_frame(&mut self, room: usize) -> Option<(Frame<'_>, Carried)> {
        let (start, end) = match self.lost.first() {
            Some(lost) => (lost.start, lost.end),
            None if self.sent < self.end.min(self.credit.limit()) => {
                (self.sent, self.end.min(self.credit.limit()))
            }
            None if self.fin == Notice::Due && self.sent == self.end => (self.end, self.end),
            None => {
                // Once for each credit that is not enough.
                if self.sent < self.end && !self.credit.is_short() {
                    self.credit.need(self.end);
                }
                return self.credit.next_frame(self.channel, room);
            }
        };
        let block = self.block_at(start);
        let in_block = block.map_or(start, Block::end).min(end).saturating_sub(start);
        let stream = Stream { channel: self.channel, offset: start, fin: false, bytes: &[] };
        let header = stream.header_len(room.min(usize::try_from(in_block).unwrap_or(room)));
        let len = piece_len(in_block, header, room)?;
        let piece = start..start + len as u64;
        self.lost.remove(piece.clone());
        self.sent = self.sent.max(piece.end);
        let fin = piece.end == self.end && self.fin != Notice::Idle;
        if fin && self.fin == Notice::Due {
            self.fin = Notice::Said;
        }
        let bytes = self.bytes(start, len);
        let carried = Carried::Stream { offset: start, len: len as u32, fin };
        Some((Frame::Stream(Stream { fin, bytes, ..stream }), carried))
    }

    fn block_at(&self, offset: u64) -> Option<&Block> {
        let after = self.blocks.partition_point(|block| block.start <= offset);
        self.blocks.get(after.checked_sub(1)?).filter(|block| offset < block.end())
    }

    fn bytes(&self, offset: u64, len: usize) -> &[u8] {
        let Some(block) = self.block_at(offset) else { return &[] };
        let at = usize::try_from(offset - block.start).unwrap_or(usize::MAX);
        block.bytes.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default()
    }

    /// The packet with this arrived. What all before it has too is let go.
    pub fn on_acked(&mut self, carried: &Carried) {
        match *carried {
            Carried::Stream { offset, len, fin } => {
                let range = offset..offset + u64::from(len);
                self.lost.remove(range.clone());
                self.acked.insert(range);
                if fin {
                    self.fin = Notice::Known;
                }
                let done = self.acked.prefix();
                while self.blocks.front().is_some_and(|block| block.end() <= done) {
                    self.blocks.pop_front();
                }
            }
            Carried::Blocked { .. } | Carried::Return { .. } => self.credit.on_acked(carried),
            _ => {}
        }
    }

    /// The packet with this was lost: what of it is not known to be there comes again.
    pub fn on_lost(&mut self, carried: &Carried) {
        match *carried {
            Carried::Stream { offset, len, fin } => {
                for gap in self.acked.missing(offset..offset + u64::from(len)) {
                    self.lost.insert(gap);
                }
                if fin {
                    self.fin.on_lost();
                }
            }
            Carried::Blocked { .. } | Carried::Return { .. } => self.credit.on_lost(carried),
            _ => {}
        }
    }
}
