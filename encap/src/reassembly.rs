//! Puts the pieces of fragmented frames together again: one [`Reassembler`] for each worker.
//!
//! Pieces come here after they were opened, so that only a peer can send any, and each one once:
//! the replay window took copies out. What is left to fear is a peer that is broken or hostile,
//! and pieces that never come. Hence the bounds, all of them on what one peer can hold: frames for
//! each lane, memory, and time. A frame whose pieces contradict each other is dropped whole.
//!
//! The sender seals the pieces of a frame back to back in one lane and epoch, so piece i has the
//! number of the first one plus i. That tells the pieces of two frames apart even where the 16-bit
//! id has come round: a frame is never put together from two.
//!
//! Next: [`crate::rx`] reads the whole as if it had just been opened.

use std::collections::{HashMap, VecDeque};

use crate::wire::buf::{BufPool, PacketBuf};
use crate::wire::fragment::{FragmentHeader, MAX_CONTENT_LEN, MAX_OFFSET, MAX_PIECES, OFFSET_UNIT};

/// Most frames that one lane of a session has open.
pub const MAX_OPEN_PER_LANE: usize = 64;
/// How long the pieces of a frame may take, unless set otherwise, in ms.
pub const DEFAULT_TIMEOUT_MS: u64 = 200;
/// Memory in bytes that the open frames of one peer may take, unless set otherwise.
pub const DEFAULT_PEER_MEMORY: usize = 4 << 20;
/// How long a lane without open frames is remembered, in ms: it will have some again.
const LANE_IDLE_MS: u64 = 10_000;

/// Whose pieces belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Serial number of the session.
    pub session: u64,
    /// Index of the peer, whose memory it is.
    pub peer: u32,
    /// The sender's lane.
    pub lane: u8,
    /// The sender's epoch.
    pub epoch: u32,
}

/// Why a piece, or a frame with the pieces it had, was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FragmentDrop {
    /// A piece that contradicts itself or the others of its frame; these are dropped with it.
    Invalid,
    /// A piece that was there already; its frame stays open.
    Duplicate,
    /// A piece for which its peer may not take more memory; its frame is dropped with it.
    NoMemory,
    /// A frame that gave way: too many were open in its lane, or its id was used again.
    TooMany,
    /// A frame whose pieces did not all come in time, or while its session lasted.
    Expired,
}

impl FragmentDrop {
    /// All, in the order of their counts.
    pub const ALL: [Self; 5] =
        [Self::Invalid, Self::Duplicate, Self::NoMemory, Self::TooMany, Self::Expired];
}

/// A frame that is complete.
#[derive(Debug)]
pub struct Whole {
    /// All pieces, joined: an inner header and its payload.
    pub buf: PacketBuf,
    /// Whether any piece came with the ECN mark Congestion Experienced (RFC 3168 section 5.3).
    pub ecn_ce: bool,
}

/// The piece without `more`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    offset: usize,
    len: usize,
    sequence: u32,
}

/// What the pieces that are not the last one agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Front {
    /// Length of each.
    piece_len: usize,
    /// Sequence number of piece 0, whether it came or not.
    base: u32,
}

/// A frame some of whose pieces are missing.
#[derive(Debug)]
struct Open {
    epoch: u32,
    id: u16,
    peer: u32,
    started_ms: u64,
    front: Option<Front>,
    last: Option<Last>,
    /// Which pieces with `more` are there, by bit.
    have: u64,
    ecn_ce: bool,
    buf: PacketBuf,
}

/// How a piece relates to the open frame of its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// It belongs to it and was missing.
    New,
    /// It is there.
    Duplicate,
    /// It belongs to it by its number and cannot.
    Contradiction,
    /// By its number it belongs to another frame.
    Stranger,
}

/// A piece by itself, checked.
#[derive(Debug, Clone, Copy)]
enum Piece {
    More { index: usize, front: Front },
    Last(Last),
}

impl Piece {
    /// None when no frame can have such a piece.
    fn new(sequence: u32, header: FragmentHeader, len: usize) -> Option<Self> {
        let FragmentHeader { offset, more, .. } = header;
        let places = offset <= MAX_OFFSET && offset.is_multiple_of(OFFSET_UNIT);
        if len == 0 || !places || offset + len > MAX_CONTENT_LEN {
            return None;
        }
        if !more {
            return Some(Self::Last(Last { offset, len, sequence }));
        }
        if !len.is_multiple_of(OFFSET_UNIT) || !offset.is_multiple_of(len) {
            return None;
        }
        let index = offset / len;
        // One more follows.
        if index + 1 >= MAX_PIECES {
            return None;
        }
        let base = sequence.checked_sub(index as u32)?;
        Some(Self::More { index, front: Front { piece_len: len, base } })
    }
}

impl Last {
    /// Which piece of a frame with these others it is, if it can be.
    fn index(self, front: Front) -> Option<usize> {
        let index = self.sequence.checked_sub(front.base)? as usize;
        (1..MAX_PIECES).contains(&index).then_some(index)
    }

    /// Whether it ends such a frame, given that its number says so.
    fn continues(self, index: usize, front: Front) -> bool {
        self.offset == index * front.piece_len && self.len <= front.piece_len
    }
}

impl Open {
    fn fit(&self, piece: Piece) -> Fit {
        match piece {
            Piece::More { index, front } => {
                if self.front.is_some_and(|mine| mine.base != front.base) {
                    return Fit::Stranger;
                }
                if self.front.is_some_and(|mine| mine != front) {
                    return Fit::Contradiction;
                }
                if self.have & (1 << index) != 0 {
                    return Fit::Duplicate;
                }
                let Some(last) = self.last else { return Fit::New };
                match last.index(front) {
                    Some(end) if last.continues(end, front) && index < end => Fit::New,
                    // A last piece alone: its frame is not known yet, and not this one.
                    None if self.front.is_none() => Fit::Stranger,
                    _ => Fit::Contradiction,
                }
            }
            Piece::Last(last) => match (self.front, self.last) {
                (_, Some(mine)) if mine == last => Fit::Duplicate,
                (None, Some(mine)) if mine.sequence != last.sequence => Fit::Stranger,
                (None, _) => Fit::Contradiction,
                (Some(front), mine) => match last.index(front) {
                    None => Fit::Stranger,
                    Some(index)
                        if mine.is_none()
                            && last.continues(index, front)
                            && self.have >> index == 0 =>
                    {
                        Fit::New
                    }
                    Some(_) => Fit::Contradiction,
                },
            },
        }
    }

    /// Makes the buffer hold `end` bytes: exactly, when the content ends there; else with room for
    /// more. Buffers of the pool hold most frames as they are.
    fn make_room(
        &mut self,
        end: usize,
        is_end: bool,
        account: &mut Account,
        pool: &mut BufPool,
    ) -> bool {
        let old = self.buf.capacity();
        if end <= old {
            return true;
        }
        let len = match self.last {
            Some(last) => last.offset + last.len,
            None if is_end => end,
            None => end.max(2 * old).min(MAX_CONTENT_LEN),
        };
        let Some(mut buf) = account.buffer(self.peer, len, old, pool) else { return false };
        buf.set_len(self.buf.len());
        for (to, from) in buf.data_mut().iter_mut().zip(self.buf.data()) {
            *to = *from;
        }
        pool.free(std::mem::replace(&mut self.buf, buf));
        true
    }

    /// Enters a piece that fits.
    fn add(&mut self, parsed: Piece, offset: usize, piece: &[u8]) {
        match parsed {
            Piece::More { index, front } => {
                self.front = Some(front);
                self.have |= 1 << index;
            }
            Piece::Last(last) => self.last = Some(last),
        }
        let end = offset + piece.len();
        self.buf.set_len(self.buf.len().max(end));
        if let Some(place) = self.buf.data_mut().get_mut(offset..end) {
            place.copy_from_slice(piece);
        }
    }

    /// Length of the content, when all of it is there.
    fn complete(&self) -> Option<usize> {
        let last = self.last?;
        let before = self.front.map_or(Some(0), |front| last.index(front))?;
        let all = before < MAX_PIECES && self.have == (1u64 << before) - 1;
        (all && (before > 0 || last.offset == 0)).then_some(last.offset + last.len)
    }
}

/// Bytes of open frames by peer, and what was dropped.
#[derive(Debug)]
struct Account {
    memory: HashMap<u32, usize>,
    limit: usize,
    open: usize,
    dropped: [u64; FragmentDrop::ALL.len()],
}

impl Account {
    fn count(&mut self, reason: FragmentDrop) {
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count += 1;
        }
    }

    fn held(&self, peer: u32) -> usize {
        self.memory.get(&peer).copied().unwrap_or(0)
    }

    /// A buffer for `len` bytes in the place of one of `old` bytes (0 for none), booked for the
    /// peer; none when that is too much.
    fn buffer(
        &mut self,
        peer: u32,
        len: usize,
        old: usize,
        pool: &mut BufPool,
    ) -> Option<PacketBuf> {
        let capacity = len.max(pool.max_len());
        let held = (self.held(peer) + capacity).saturating_sub(old);
        if held > self.limit {
            return None;
        }
        self.memory.insert(peer, held);
        let pooled = capacity == pool.max_len();
        Some(if pooled { pool.alloc() } else { PacketBuf::with_capacity(capacity) })
    }

    /// Books the end of a frame.
    fn close(&mut self, open: &Open) {
        self.open = self.open.saturating_sub(1);
        if let Some(held) = self.memory.get_mut(&open.peer) {
            *held = held.saturating_sub(open.buf.capacity());
            if *held == 0 {
                self.memory.remove(&open.peer);
            }
        }
    }

    /// Ends a frame that is not delivered.
    fn discard(&mut self, open: Open, pool: &mut BufPool) {
        self.close(&open);
        pool.free(open.buf);
    }
}

/// The open frames of one lane of a session, oldest first.
#[derive(Debug, Default)]
struct LaneFrames {
    open: VecDeque<Open>,
    used_ms: u64,
}

impl LaneFrames {
    fn expire(&mut self, now_ms: u64, timeout_ms: u64, account: &mut Account, pool: &mut BufPool) {
        while let Some(oldest) = self.open.front()
            && now_ms.saturating_sub(oldest.started_ms) >= timeout_ms
        {
            self.drop_at(Some(0), account, pool);
            account.count(FragmentDrop::Expired);
        }
    }

    fn drop_at(&mut self, at: Option<usize>, account: &mut Account, pool: &mut BufPool) {
        if let Some(open) = at.and_then(|at| self.open.remove(at)) {
            account.discard(open, pool);
        }
    }

    /// Opens a frame with room for `len` bytes; gives its position.
    fn begin(
        &mut self,
        now_ms: u64,
        key: Key,
        id: u16,
        len: usize,
        account: &mut Account,
        pool: &mut BufPool,
    ) -> Result<usize, FragmentDrop> {
        if self.open.len() >= MAX_OPEN_PER_LANE {
            self.drop_at(Some(0), account, pool);
            account.count(FragmentDrop::TooMany);
        }
        let buf = account.buffer(key.peer, len, 0, pool).ok_or(FragmentDrop::NoMemory)?;
        account.open += 1;
        self.open.push_back(Open {
            epoch: key.epoch,
            id,
            peer: key.peer,
            started_ms: now_ms,
            front: None,
            last: None,
            have: 0,
            ecn_ce: false,
            buf,
        });
        Ok(self.open.len() - 1)
    }
}

/// The open frames of one worker.
///
/// After [`Self::insert`], [`Self::expire`] and [`Self::forget_session`], [`Self::take_dropped`]
/// says which frames were dropped beside the piece that `insert` speaks of itself.
#[derive(Debug)]
pub struct Reassembler {
    lanes: HashMap<(u64, u8), LaneFrames>,
    account: Account,
    timeout_ms: u64,
    /// When all lanes were last looked through for want of memory.
    swept_ms: u64,
}

impl Default for Reassembler {
    fn default() -> Self {
        Self::new()
    }
}

impl Reassembler {
    /// Nothing open; [`DEFAULT_TIMEOUT_MS`] and [`DEFAULT_PEER_MEMORY`].
    #[must_use]
    pub fn new() -> Self {
        let dropped = [0; FragmentDrop::ALL.len()];
        let memory = HashMap::new();
        let account = Account { memory, limit: DEFAULT_PEER_MEMORY, open: 0, dropped };
        Self { lanes: HashMap::new(), account, timeout_ms: DEFAULT_TIMEOUT_MS, swept_ms: 0 }
    }

    /// Sets how long the pieces of a frame may take, in ms from the first that came.
    pub fn set_timeout(&mut self, timeout_ms: u64) {
        self.timeout_ms = timeout_ms;
    }

    /// Sets how many bytes the open frames of one peer may take, counted by the capacity of their
    /// buffers.
    pub fn set_peer_memory(&mut self, bytes: usize) {
        self.account.limit = bytes;
    }

    /// Takes a piece; gives the frame when it was the last one missing.
    ///
    /// `sequence` is the number of the piece's datagram in its lane and epoch; `now_ms` never goes
    /// back. The buffer of a whole frame is one of `pool` when the frame fits those.
    ///
    /// # Errors
    /// [`FragmentDrop::Invalid`], [`FragmentDrop::Duplicate`] or [`FragmentDrop::NoMemory`]: the
    /// piece was not taken. [`Self::take_dropped`] does not count it again.
    // These are the facts of one datagram; a struct for this one call would only rename them.
    #[allow(clippy::too_many_arguments)]
    pub fn insert(
        &mut self,
        now_ms: u64,
        key: Key,
        sequence: u32,
        header: FragmentHeader,
        ecn_ce: bool,
        piece: &[u8],
        pool: &mut BufPool,
    ) -> Result<Option<Whole>, FragmentDrop> {
        self.sweep_if_short(now_ms, key.peer, pool);
        let account = &mut self.account;
        let lane = self.lanes.entry((key.session, key.lane)).or_default();
        lane.used_ms = now_ms;
        lane.expire(now_ms, self.timeout_ms, account, pool);

        let is_it = |open: &Open| open.id == header.id && open.epoch == key.epoch;
        let mut found = lane.open.iter().position(is_it);
        let open = found.and_then(|at| lane.open.get(at));
        let parsed = Piece::new(sequence, header, piece.len());
        let fit = match (parsed, open) {
            (None, _) => Fit::Contradiction,
            (Some(_), None) => Fit::New,
            (Some(parsed), Some(open)) => open.fit(parsed),
        };
        match fit {
            Fit::New => {}
            Fit::Duplicate => return Err(FragmentDrop::Duplicate),
            Fit::Contradiction => {
                lane.drop_at(found, account, pool);
                return Err(FragmentDrop::Invalid);
            }
            Fit::Stranger => {
                lane.drop_at(found.take(), account, pool);
                account.count(FragmentDrop::TooMany);
            }
        }
        let end = header.offset + piece.len();
        let at = match found {
            Some(at) => at,
            None => lane.begin(now_ms, key, header.id, end, account, pool)?,
        };
        let (Some(open), Some(parsed)) = (lane.open.get_mut(at), parsed) else {
            return Err(FragmentDrop::Invalid);
        };
        if !open.make_room(end, !header.more, account, pool) {
            lane.drop_at(Some(at), account, pool);
            return Err(FragmentDrop::NoMemory);
        }
        open.add(parsed, header.offset, piece);
        open.ecn_ce |= ecn_ce;
        let Some(len) = open.complete() else { return Ok(None) };
        let Some(mut open) = lane.open.remove(at) else { return Ok(None) };
        account.close(&open);
        open.buf.set_len(len);
        Ok(Some(Whole { buf: open.buf, ecn_ce: open.ecn_ce }))
    }

    /// Before a peer is refused memory, what it holds for too long goes, in all lanes: at most
    /// once in a millisecond.
    fn sweep_if_short(&mut self, now_ms: u64, peer: u32, pool: &mut BufPool) {
        let wanted = MAX_CONTENT_LEN.max(pool.max_len());
        if self.swept_ms != now_ms && self.account.held(peer) + wanted > self.account.limit {
            self.swept_ms = now_ms;
            self.expire(now_ms, pool);
        }
    }

    /// Drops the frames whose time is over. To be called now and then while any is open.
    pub fn expire(&mut self, now_ms: u64, pool: &mut BufPool) {
        let (account, timeout_ms) = (&mut self.account, self.timeout_ms);
        self.lanes.retain(|_, lane| {
            lane.expire(now_ms, timeout_ms, account, pool);
            !lane.open.is_empty() || now_ms.saturating_sub(lane.used_ms) < LANE_IDLE_MS
        });
    }

    /// Drops what is open of a session that is over.
    pub fn forget_session(&mut self, serial: u64, pool: &mut BufPool) {
        let account = &mut self.account;
        self.lanes.retain(|(session, _), lane| {
            if *session != serial {
                return true;
            }
            for open in lane.open.drain(..) {
                account.discard(open, pool);
                account.count(FragmentDrop::Expired);
            }
            false
        });
    }

    /// The frames dropped since the last call, by reason; reasons without any are left out.
    pub fn take_dropped(&mut self) -> impl Iterator<Item = (FragmentDrop, u64)> + use<> {
        let counts = std::mem::take(&mut self.account.dropped);
        FragmentDrop::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }

    /// Number of frames open.
    #[must_use]
    pub fn open_frames(&self) -> usize {
        self.account.open
    }

    /// Bytes that the open frames of a peer take, by the capacity of their buffers.
    #[must_use]
    pub fn peer_memory(&self, peer: u32) -> usize {
        self.account.held(peer)
    }
}

#[cfg(test)]
mod tests;
