//! The sending half of one lane: takes the number, seals in place, appends the tag.
//!
//! A lane belongs to one thread: `seal` takes `&mut self`, and [`super::session::Session`] never
//! hands out the same lane twice in one epoch, so a nonce cannot repeat. Rules L1 to L5 are in
//! `docs/protocol.md`.
//!
//! Next: the uplink's `tx_burst`, in `fastpath`.

use super::aead::{Key, Suite, TAG_LEN};
use super::key::{Iv, LaneKey, nonce};
use crate::wire::header::{
    CLEAR_HEADER_LEN, DataHeader, Format, INNER_HEADER_LEN, InnerHeader, Lane, Slot,
};

/// Bytes that a payload leaves free in front of itself for [`TxLane::seal`].
pub const ROOM_IN_FRONT: usize = CLEAR_HEADER_LEN + INNER_HEADER_LEN;

/// How much one key may seal (rule L4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLimits {
    /// Datagrams after which the next epoch should begin.
    pub soft_packets: u32,
    /// Blocks of 16 bytes after which the next epoch should begin.
    pub soft_blocks: u64,
    /// Datagrams after which the key refuses.
    pub hard_packets: u32,
    /// Blocks of 16 bytes after which the key refuses.
    pub hard_blocks: u64,
}

impl KeyLimits {
    /// The protocol's limits for AES-256-GCM.
    pub const AES_256_GCM: Self = Self {
        soft_packets: 1 << 28,
        soft_blocks: 1 << 34,
        hard_packets: u32::MAX - (1 << 20) + 1,
        hard_blocks: 1 << 35,
    };

    /// The protocol's limits for a suite.
    ///
    /// Published attacks on AEGIS need far more than these, but an epoch costs next to nothing, and
    /// the number has 32 bits under every suite.
    #[must_use]
    pub const fn of(suite: Suite) -> Self {
        match suite {
            Suite::Clear | Suite::Aes256Gcm | Suite::Aegis256 | Suite::Aegis128L => {
                Self::AES_256_GCM
            }
        }
    }

    /// The lower of each limit.
    #[must_use]
    pub fn at_most(self, other: Self) -> Self {
        Self {
            soft_packets: self.soft_packets.min(other.soft_packets),
            soft_blocks: self.soft_blocks.min(other.soft_blocks),
            hard_packets: self.hard_packets.min(other.hard_packets),
            hard_blocks: self.hard_blocks.min(other.hard_blocks),
        }
    }
}

/// Why a datagram was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key has sealed as much as it may; a new epoch or handshake must come first.
    #[error("key is used up")]
    Exhausted,
    /// There is no room for the headers in front of the payload.
    #[error("no room for the headers")]
    NoRoom,
}

/// One lane of one epoch of one session, for sending.
#[derive(Debug)]
pub struct TxLane {
    /// None in clear mode.
    key: Option<Key>,
    iv: Iv,
    header: DataHeader,
    limits: KeyLimits,
    blocks: u64,
    session: u64,
    epoch: u32,
}

impl TxLane {
    pub(crate) fn new(
        suite: Suite,
        lane_key: &LaneKey,
        limits: KeyLimits,
        (slot, lane): (Slot, Lane),
        (session, epoch): (u64, u32),
    ) -> Self {
        let format = if suite == Suite::Clear { Format::Clear } else { Format::Sealed };
        let key = lane_key.aead();
        let epoch_bits = (epoch & 3) as u8;
        let header = DataHeader { format, epoch_bits, slot, lane, sequence: 0 };
        Self { key, iv: lane_key.iv(), header, limits, blocks: 0, session, epoch }
    }

    /// Serial number of the session that the lane is of.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// The epoch that the lane is of.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether the next epoch should begin (rule L4, soft).
    #[must_use]
    pub fn wants_rotation(&self) -> bool {
        self.header.sequence >= self.limits.soft_packets || self.blocks >= self.limits.soft_blocks
    }

    /// The datagram that holds `payload`.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal_payload(
        &mut self,
        inner: InnerHeader,
        payload: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let mut out = Vec::with_capacity(ROOM_IN_FRONT + payload.len() + TAG_LEN);
        out.resize(ROOM_IN_FRONT, 0);
        out.extend_from_slice(payload);
        self.seal(inner, &mut out, 0)?;
        Ok(out)
    }

    /// Makes what lies in `out` from `start` on a datagram: [`ROOM_IN_FRONT`] bytes for the headers,
    /// then the payload. Headers are written, the rest is sealed in place, the tag is appended.
    ///
    /// # Errors
    /// [`SealError`]; what lies in `out` from `start` on must be thrown away.
    pub fn seal(
        &mut self,
        inner: InnerHeader,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), SealError> {
        let len = out.len().saturating_sub(start + CLEAR_HEADER_LEN);
        let blocks = (len as u64).div_ceil(16) + 1;
        if self.header.sequence >= self.limits.hard_packets
            || self.blocks.saturating_add(blocks) > self.limits.hard_blocks
        {
            return Err(SealError::Exhausted);
        }
        let datagram = out.get_mut(start..).unwrap_or_default();
        let Some((clear, sealed)) = datagram.split_first_chunk_mut::<CLEAR_HEADER_LEN>() else {
            return Err(SealError::NoRoom);
        };
        let front = sealed.first_chunk_mut::<INNER_HEADER_LEN>().ok_or(SealError::NoRoom)?;
        *front = inner.write();
        *clear = self.header.write();
        // The number is taken before it is used: whatever fails below, it is never used again.
        // It is below the hard stop, so it cannot wrap.
        let sequence = self.header.sequence;
        self.header.sequence += 1;
        self.blocks += blocks;
        if let Some(key) = &self.key {
            let nonce = nonce(&self.iv, sequence);
            let tag = key.seal(&nonce, clear, sealed).map_err(|_| SealError::NoRoom)?;
            out.extend_from_slice(&tag);
        }
        Ok(())
    }
}
