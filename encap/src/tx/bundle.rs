//! Small frames that are at hand at once for one peer share a datagram (kind 3).
//!
//! A datagram costs its receiver and its sender the same whatever it holds. Nothing waits for more
//! frames to come: what one burst of a tap held is all.

use crate::compress::Level;
use crate::crypto::seal::ROOM_IN_FRONT;
use crate::datapath::Datapath;
use crate::forward::policy::Policy;
use crate::handshake::features::Features;
use crate::wire::bundle::{ENTRY_HEADER_LEN, MAX_ENTRIES, MAX_FRAME_LEN, entry_header};
use crate::wire::header::{Handle, InnerHeader, Kind};

use super::Pass;
use super::outbound::Outbound;

/// Frames that lie at the end of the memory, behind room for the headers, and wait for others.
pub(super) struct Bundle<'t> {
    /// How all of them leave.
    outbound: Outbound<'t>,
    start: usize,
    count: usize,
}

/// How hard what leaves so is compressed. The flow of the first frame stands for all.
fn level(outbound: &Outbound<'_>) -> Option<Level> {
    outbound.compression.map(|(level, _)| level)
}

impl Bundle<'_> {
    /// Whether a frame that leaves so may come in too, `end` being the end of the memory.
    fn takes(&self, outbound: &Outbound<'_>, end: usize, len: usize) -> bool {
        let mine = &self.outbound;
        let payload = end - self.start - ROOM_IN_FRONT;
        self.count < MAX_ENTRIES
            && len <= MAX_FRAME_LEN
            && payload + ENTRY_HEADER_LEN + len + mine.overhead <= mine.limit
            && mine.peer.index == outbound.peer.index
            && mine.inner.handle == outbound.inner.handle
            && mine.links == outbound.links
            && mine.mark == outbound.mark
            && level(mine) == level(outbound)
    }
}

impl Datapath {
    /// Puts a frame into the open bundle, or begins one if `more` frames for the peer follow; says
    /// whether it did. Closes the open bundle where the frame does not fit in.
    pub(super) fn join_bundle<'t>(
        &mut self,
        pass: &mut Pass<'t, '_>,
        outbound: &Outbound<'t>,
        frame: &[u8],
        more: bool,
    ) -> bool {
        let end = pass.out.memory.len();
        match &mut pass.bundle {
            Some(bundle) if bundle.takes(outbound, end, frame.len()) => {
                bundle.count += 1;
                // One that is to be kept has all kept.
                bundle.outbound.keep = bundle.outbound.keep.or(outbound.keep);
            }
            _ => {
                self.close_bundle(pass);
                let two = outbound.overhead + 2 * (ENTRY_HEADER_LEN + frame.len());
                let features = outbound.session.facts().features;
                // By turns, the next one leaves by another link.
                let by_turns =
                    outbound.policy == Policy::RoundRobin && outbound.peer.links.len() > 1;
                if !more
                    || by_turns
                    || two > outbound.limit
                    || outbound.inner.handle == Handle::NONE
                    || !features.contains(Features::BUNDLES)
                {
                    return false;
                }
                let start = pass.out.memory.len();
                pass.out.memory.resize(start + ROOM_IN_FRONT, 0);
                pass.bundle = Some(Bundle { outbound: *outbound, start, count: 1 });
            }
        }
        let partial = outbound.inner.kind == Kind::FramePartialChecksum;
        pass.out.memory.extend_from_slice(&entry_header(frame.len(), partial));
        pass.out.memory.extend_from_slice(frame);
        true
    }

    /// Seals what is open at the end of the memory.
    pub(super) fn close_bundle(&mut self, pass: &mut Pass<'_, '_>) {
        let Some(Bundle { outbound, start, count }) = pass.bundle.take() else { return };
        let mut inner = InnerHeader { kind: Kind::Bundle, ..outbound.inner };
        if count == 1 {
            // Alone after all: a frame as any other, of the kind that it has for itself.
            let front = start + ROOM_IN_FRONT;
            pass.out.memory.drain(front..front + ENTRY_HEADER_LEN);
            inner = outbound.inner;
        }
        let inner = self.compress(&outbound, inner, pass.out, start);
        match self.finish(&outbound, inner, pass.out, start, true) {
            Ok(()) if count > 1 => {
                self.counters.bundles_out.add(1);
                self.counters.bundled_frames_out.add(count as u64);
            }
            Ok(()) => {}
            Err(reason) => {
                pass.out.memory.truncate(start);
                self.counters.count_drops(reason, count as u64);
            }
        }
    }
}
