//! Lays datagrams one behind the other, seals them, and says where they go.
//!
//! A run of equal datagrams to one address leaves in one system call, so everything here is
//! appended to one memory: the segments of a super-frame, the fragments of a frame, and frames
//! that follow each other.

use crate::crypto::seal::ROOM_IN_FRONT;
use crate::datapath::{Datapath, drop_reason};
use crate::link::id::LinkIndex;
use crate::link::resend::ResendRing;
use crate::offload::segment::SuperFrame;
use crate::stats::DropReason;
use crate::tables::PeerEntry;
use crate::wire::buf::{Checksum, Offload, Segmentation, Transmits, UplinkId};
use crate::wire::fragment::{self, FRAGMENT_HEADER_LEN, FragmentHeader};
use crate::wire::header::{Handle, InnerHeader, Kind};

use super::Pass;
use super::outbound::Outbound;

impl Datapath {
    /// Makes datagrams of one frame, or puts it into one with others if `more` follow.
    pub(super) fn pack<'t>(
        &mut self,
        pass: &mut Pass<'t, '_>,
        outbound: &Outbound<'t>,
        frame: &[u8],
        offload: Offload,
        more: bool,
    ) -> Result<(), DropReason> {
        if let Some(segmentation) = offload.segmentation {
            self.close_bundle(pass);
            return self.pack_segments(outbound, frame, segmentation, offload.checksum, pass.out);
        }
        if self.join_bundle(pass, outbound, frame, more) {
            return Ok(());
        }
        self.pack_payload(outbound, pass.out, true, |payload| payload.extend_from_slice(frame))
    }

    /// Cuts a super-frame; every segment travels as a frame of its own, so that the loss of one is
    /// the loss of no other.
    fn pack_segments(
        &mut self,
        outbound: &Outbound<'_>,
        frame: &[u8],
        segmentation: Segmentation,
        checksum: Checksum,
        out: &mut Transmits,
    ) -> Result<(), DropReason> {
        let segments = SuperFrame::new(frame, segmentation, checksum)
            .map_err(|_| DropReason::FrameBadSegmentation)?;
        let complete = outbound.inner.kind != Kind::FramePartialChecksum;
        self.counters.segments_out.add(segments.count() as u64);
        for index in 0..segments.count() {
            self.pack_payload(outbound, out, index == 0, |payload| {
                segments.write(index, complete, payload);
            })?;
        }
        Ok(())
    }

    /// Seals what `write` appends, in one datagram or in pieces.
    fn pack_payload(
        &mut self,
        outbound: &Outbound<'_>,
        out: &mut Transmits,
        first: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), DropReason> {
        let start = out.memory.len();
        out.memory.resize(start + ROOM_IN_FRONT, 0);
        if outbound.inner.handle == Handle::NONE {
            let [a, b, c] = outbound.network.vni.to_be_bytes();
            out.memory.extend_from_slice(&[a, b, c, 0]);
        }
        write(&mut out.memory);
        let inner = self.compress(outbound, outbound.inner, out, start);
        let len = out.memory.len() - start - ROOM_IN_FRONT;
        let sealed = if len + outbound.overhead <= outbound.limit {
            self.finish(outbound, inner, out, start, first)
        } else {
            self.pack_pieces(outbound, inner, out, start, first)
        };
        if sealed.is_err() {
            out.memory.truncate(start);
        }
        sealed
    }

    /// Cuts the sealed part to be, which lies at the end of `out`, into equal pieces, and seals each
    /// for itself (rule F8).
    fn pack_pieces(
        &mut self,
        outbound: &Outbound<'_>,
        whole_inner: InnerHeader,
        out: &mut Transmits,
        start: usize,
        first: bool,
    ) -> Result<(), DropReason> {
        let max_piece = outbound.limit.saturating_sub(outbound.overhead + FRAGMENT_HEADER_LEN);
        let mut whole = std::mem::take(&mut self.scratch);
        whole.clear();
        whole.extend_from_slice(&whole_inner.write());
        whole.extend_from_slice(out.memory.get(start + ROOM_IN_FRONT..).unwrap_or_default());
        out.memory.truncate(start);
        let outcome = self.seal_pieces(outbound, &whole, max_piece, first, out);
        self.scratch = whole;
        outcome
    }

    fn seal_pieces(
        &mut self,
        outbound: &Outbound<'_>,
        whole: &[u8],
        max_piece: usize,
        first: bool,
        out: &mut Transmits,
    ) -> Result<(), DropReason> {
        let plan = fragment::plan(whole.len(), max_piece).ok_or(DropReason::FrameTooLarge)?;
        let id = self.fragment_id;
        self.fragment_id = id.wrapping_add(1);
        self.counters.frames_fragmented.add(1);
        let inner = InnerHeader { kind: Kind::Fragment, handle: Handle::NONE };
        for (number, (offset, range, more)) in plan.enumerate() {
            let start = out.memory.len();
            out.memory.resize(start + ROOM_IN_FRONT, 0);
            out.memory.extend_from_slice(&FragmentHeader { id, more, offset }.write());
            out.memory.extend_from_slice(whole.get(range).unwrap_or_default());
            // The fragments of one frame stay in one epoch.
            if let Err(reason) = self.finish(outbound, inner, out, start, first && number == 0) {
                out.memory.truncate(start);
                return Err(reason);
            }
            self.counters.fragments_out.add(1);
        }
        Ok(())
    }

    /// Compresses the payload at the end of `out` where its network wants that and it becomes
    /// shorter; gives the inner header that it has now (rule Z1).
    pub(super) fn compress(
        &mut self,
        outbound: &Outbound<'_>,
        inner: InnerHeader,
        out: &mut Transmits,
        start: usize,
    ) -> InnerHeader {
        let Some((level, flow)) = outbound.compression else { return inner };
        let payload = out.memory.get(start + ROOM_IN_FRONT..).unwrap_or_default();
        self.scratch.clear();
        if !self.compressor.try_compress(level, flow, inner.kind, payload, &mut self.scratch) {
            return inner;
        }
        out.memory.truncate(start + ROOM_IN_FRONT);
        out.memory.extend_from_slice(&self.scratch);
        InnerHeader { kind: Kind::Compressed, ..inner }
    }

    /// Seals the datagram at the end of `out` and says where it goes.
    pub(super) fn finish(
        &mut self,
        outbound: &Outbound<'_>,
        inner: InnerHeader,
        out: &mut Transmits,
        start: usize,
        first: bool,
    ) -> Result<(), DropReason> {
        let Outbound { peer, session, links, mark, .. } = *outbound;
        let lane = self.lane_for(peer, session, first)?;
        lane.seal(inner, &mut out.memory, start).map_err(drop_reason)?;
        let epoch = lane.epoch();
        let sealed = out.memory.get(start..).unwrap_or_default();
        if let Some(most) = outbound.keep {
            self.keep_for_resending(outbound, most, epoch, sealed);
        }
        let len = sealed.len();
        for link in links.iter().filter(|link| address(peer, *link).is_some()) {
            self.counters.datagrams_out.add(1);
            self.counters.datagram_bytes_out.add(len as u64);
            let base = peer.links.get(link.at()).map_or(0, |entry| entry.base_udp_payload);
            if let Some(meter) = peer.meter(self.worker, link) {
                meter.sent(len, len > base);
            }
        }
        let to = links.iter().filter_map(|link| address(peer, link));
        out.extend_run(start, to.map(|(_, uplink, remote)| (uplink, remote)), mark);
        Ok(())
    }

    fn keep_for_resending(
        &mut self,
        outbound: &Outbound<'_>,
        most: usize,
        epoch: u32,
        bytes: &[u8],
    ) {
        let Outbound { now, peer, session, links, mark, .. } = *outbound;
        let index = peer.index.0 as usize;
        if self.rings.len() <= index {
            self.rings.resize_with(index + 1, || None);
        }
        let Some(place) = self.rings.get_mut(index) else { return };
        let ring = place.get_or_insert_with(|| ResendRing::new(most));
        ring.set_window(peer.window);
        let before = ring.overruns();
        ring.push(now, (session.facts().serial, epoch), links, mark, bytes);
        self.counters.resend_overruns.add(ring.overruns() - before);
    }
}

/// Where datagrams of a link go, if that is known.
pub(crate) fn address(
    peer: &PeerEntry,
    link: LinkIndex,
) -> Option<(LinkIndex, UplinkId, std::net::SocketAddr)> {
    let entry = peer.links.get(link.at())?;
    Some((link, entry.uplink, entry.remote?))
}
