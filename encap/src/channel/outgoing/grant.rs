//! What a sender has of credit.

use super::super::Carried;
use super::super::incoming::GUARANTEED;
use super::Notice;
use crate::wire::channel::{ChannelId, Frame};
use crate::wire::varint::MAX_VARINT;

/// The credit in bytes of one channel and direction, as far as it was not given back.
#[derive(Debug)]
pub(super) struct Grant {
    /// Total since the beginning, as the receiver said.
    said: u64,
    /// Total of it that was given back.
    returned: u64,
    notice: Notice,
}

impl Grant {
    pub(super) const fn new(said: u64) -> Self {
        Self { said, returned: 0, notice: Notice::Idle }
    }

    /// Bytes since the beginning that may be sent.
    pub(super) const fn limit(&self) -> u64 {
        self.said - self.returned
    }

    /// What a receiver counts as `bytes` since the beginning, which includes what was given back.
    pub(super) fn outward(&self, bytes: u64) -> u64 {
        bytes.saturating_add(self.returned).min(MAX_VARINT)
    }

    /// An older, smaller total changes nothing.
    pub(super) fn on_max_data(&mut self, limit: u64) {
        self.said = self.said.max(limit);
    }

    /// The receiver has use for credit that is idle here: gives back all but what is `wanted` behind
    /// the `used` bytes, and a rest to begin with again.
    pub(super) fn on_recall(&mut self, used: u64, wanted: u64) {
        let kept = used.saturating_add(wanted.max(GUARANTEED));
        if self.limit() > kept {
            self.returned += self.limit() - kept;
            self.notice = Notice::Due;
        }
    }

    /// Says what was given back, if that is due.
    pub(super) fn next_frame(
        &mut self,
        channel: ChannelId,
        room: usize,
    ) -> Option<(Frame<'static>, Carried)> {
        let total = self.returned;
        let frame = Frame::Return { channel, total };
        if self.notice != Notice::Due || frame.encoded_len() > room {
            return None;
        }
        self.notice = Notice::Said;
        Some((frame, Carried::Return { total }))
    }

    /// The packet that said this total arrived.
    pub(super) fn on_acked(&mut self, total: u64) {
        if total == self.returned {
            self.notice = Notice::Known;
        }
    }

    /// The packet that said this total was lost.
    pub(super) fn on_lost(&mut self, total: u64) {
        if total == self.returned {
            self.notice.on_lost();
        }
    }
}
