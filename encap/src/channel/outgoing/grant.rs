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
    /// What is needed to go on, as the receiver counts, when that was last looked at.
    need: u64,
    /// How often that changed: of two needs the receiver takes the later one.
    needs: u64,
    /// The largest need there ever was: the receiver knows of none beyond it.
    most: u64,
    blocked: Notice,
}

impl Grant {
    pub(super) const fn new(said: u64) -> Self {
        let (notice, blocked) = (Notice::Idle, Notice::Idle);
        Self { said, returned: 0, notice, need: 0, needs: 0, most: 0, blocked }
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

    /// Nothing goes on with less than so many bytes since the beginning. That is to be said whenever it
    /// is another need than before, a smaller one too: what was too much for the receiver's memory
    /// may have been given up since.
    pub(super) fn need(&mut self, bytes: u64) {
        let need = self.outward(bytes);
        if need != self.need {
            self.need = need;
            self.needs += 1;
            self.most = self.most.max(need);
            self.blocked = Notice::Due;
        }
    }

    /// Whether more is needed than there is.
    pub(super) const fn is_short(&self) -> bool {
        self.need > self.said
    }

    /// Says what was given back, or what is needed, if that is due.
    pub(super) fn next_frame(
        &mut self,
        channel: ChannelId,
        room: usize,
    ) -> Option<(Frame<'static>, Carried)> {
        let (total, number, at) = (self.returned, self.needs, self.need);
        let (notice, frame, carried) = if self.notice == Notice::Due {
            let carried = Carried::Return { total };
            (&mut self.notice, Frame::Return { channel, total }, carried)
        } else if self.blocked == Notice::Due && self.most > self.said {
            let carried = Carried::Blocked { number };
            (&mut self.blocked, Frame::Blocked { channel, number, at }, carried)
        } else {
            return None;
        };
        if frame.encoded_len() > room {
            return None;
        }
        *notice = Notice::Said;
        Some((frame, carried))
    }

    /// The packet that said this arrived.
    pub(super) const fn on_acked(&mut self, carried: &Carried) {
        match *carried {
            Carried::Return { total } if total == self.returned => self.notice = Notice::Known,
            Carried::Blocked { number } if number == self.needs => self.blocked = Notice::Known,
            _ => {}
        }
    }

    /// The packet that said this was lost.
    pub(super) fn on_lost(&mut self, carried: &Carried) {
        match *carried {
            Carried::Return { total } if total == self.returned => self.notice.on_lost(),
            Carried::Blocked { number } if number == self.needs => self.blocked.on_lost(),
            _ => {}
        }
    }
}
