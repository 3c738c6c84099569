//! Frames from one local port for others (rule F10): they never become datagrams.
//!
//! A copy of each goes where ICMP messages go, back to the worker. A super-frame is cut: the port
//! that it is for knows best what it may hand on in one piece.

use crate::datapath::{Datapath, Delivery};
use crate::offload::segment::SuperFrame;
use crate::stats::DropReason;
use crate::tables::{NetworkEntry, To};
use crate::wire::buf::{Checksum, Offload, OutFrame, Span};
use crate::wire::checksum;

impl Datapath {
    /// Has a frame handed to the local ports that `to` says.
    pub(super) fn switch(
        &mut self,
        network: &NetworkEntry,
        to: To,
        frame: &[u8],
        offload: Offload,
    ) -> Result<(), DropReason> {
        let Some(segmentation) = offload.segmentation else {
            return self.switch_frame(network, to, frame, offload.checksum);
        };
        let segments = SuperFrame::new(frame, segmentation, offload.checksum)
            .map_err(|_| DropReason::FrameBadSegmentation)?;
        let mut segment = std::mem::take(&mut self.scratch);
        for index in 0..segments.count() {
            segment.clear();
            segments.write(index, false, &mut segment);
            let span = self.copy_local(&segment);
            self.push_local(network, to, span, segments.checksum());
        }
        self.scratch = segment;
        Ok(())
    }

    /// A checksum stays partial where parsing finds its place too: what a sender says of its frame
    /// is not believed by the port that it goes to either.
    fn switch_frame(
        &mut self,
        network: &NetworkEntry,
        to: To,
        frame: &[u8],
        mut checksum: Checksum,
    ) -> Result<(), DropReason> {
        let span = self.copy_local(frame);
        if let Checksum::Partial { start, offset } = checksum
            && checksum::derive_partial(frame) != Some(checksum)
        {
            let copy = self.returns.pieces.get_mut(span);
            checksum::complete_checksum(copy, start, offset)
                .map_err(|_| DropReason::FrameBadChecksumOffset)?;
            checksum = Checksum::Complete;
        }
        self.push_local(network, to, span, checksum);
        Ok(())
    }

    fn copy_local(&mut self, frame: &[u8]) -> Span {
        self.returns.pieces.append(frame, &mut self.local_pool)
    }

    fn push_local(&mut self, network: &NetworkEntry, to: To, span: Span, checksum: Checksum) {
        let (handle, vni) = (network.handle, network.vni);
        let frame = OutFrame { span, checksum };
        self.returns.list.push(Delivery { handle, vni, to, frame });
    }
}
