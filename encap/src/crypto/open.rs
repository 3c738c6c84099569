//! The receiving half of one lane: the number is checked, the datagram opened in place, the
//! number committed. In this order (rule R1).
//!
//! Next: [`crate::rx`], which takes the payload on by its kind.

use std::ops::Range;

use super::aead::{Key, TAG_LEN};
use super::key::{Iv, LaneKey, nonce};
use super::replay::{ReplayWindow, Verdict};
use crate::stats::DropReason;
use crate::wire::header::{CLEAR_HEADER_LEN, DataHeader, INNER_HEADER_LEN};

/// One lane of one epoch of one session, for receiving.
#[derive(Debug)]
pub(crate) struct RxLane {
    /// None in clear mode.
    key: Option<Key>,
    iv: Iv,
    window: ReplayWindow,
}

impl RxLane {
    pub(crate) fn new(lane_key: &LaneKey) -> Self {
        Self { key: lane_key.aead(), iv: lane_key.iv(), window: ReplayWindow::new() }
    }

    /// Opens a datagram in place and gives what was sealed, as a range of it: the inner header and
    /// the payload.
    pub(crate) fn open(
        &mut self,
        header: &DataHeader,
        datagram: &mut [u8],
    ) -> Result<Range<usize>, DropReason> {
        match self.window.check(header.sequence) {
            Verdict::Fresh => {}
            Verdict::Duplicate => return Err(DropReason::ReplayDuplicate),
            Verdict::TooOld => return Err(DropReason::ReplayTooOld),
        }
        let tag_len = if self.key.is_some() { TAG_LEN } else { 0 };
        let end = datagram.len().saturating_sub(tag_len);
        if end < CLEAR_HEADER_LEN + INNER_HEADER_LEN {
            return Err(DropReason::DatagramTruncated);
        }
        if let Some(key) = &self.key {
            let nonce = nonce(&self.iv, header.sequence);
            let sealed = datagram.get_mut(CLEAR_HEADER_LEN..).unwrap_or_default();
            key.open(&nonce, &header.write(), sealed).map_err(|_| DropReason::OpenFailed)?;
        }
        // Cannot fail: the same number was fresh above and the lane is locked.
        self.window.commit(header.sequence);
        Ok(CLEAR_HEADER_LEN..end)
    }
}
