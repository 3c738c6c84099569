//! Sends again what left by a link that failed.

use std::time::Instant;

use super::pack::address;
use crate::datapath::Datapath;
use crate::id::PeerIndex;
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use crate::wire::buf::Transmits;

impl Datapath {
    /// Sends again what left lately by links that carry no frames any more. To be called before
    /// newer frames are sealed: these come after.
    pub fn resend(&mut self, now: Instant, out: &mut Transmits) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        if tables.generation == self.resend_generation {
            return;
        }
        self.resend_generation = tables.generation;
        let count = tables.peers.len().max(self.failures.len());
        self.failures.resize(count, [0; MAX_LINKS]);
        for (index, seen) in (0..).zip(&mut self.failures) {
            let Some(peer) = tables.peer(PeerIndex(index)) else { continue };
            let before = std::mem::replace(seen, peer.failures);
            // Also a link that is alive again by now: what was lost on it stays lost.
            let failed: LinkSet = LinkIndex::all(MAX_LINKS)
                .filter(|link| before.get(link.at()) != peer.failures.get(link.at()))
                .collect();
            if failed.is_empty() {
                continue;
            }
            let ring = self.rings.get_mut(index as usize).and_then(Option::as_mut);
            let best = peer.ways.order.first().map(|(link, _)| *link);
            let target = best.and_then(|link| address(peer, link));
            let (Some(ring), Some((link, uplink, remote))) = (ring, target) else { continue };
            ring.expire(now);
            let (worker, counters) = (self.worker, &self.counters);
            let base = peer.links.get(link.at()).map_or(0, |entry| entry.base_udp_payload);
            ring.resend(failed, LinkSet::only(link), |bytes, mark| {
                counters.resent.add(1);
                counters.datagrams_out.add(1);
                counters.datagram_bytes_out.add(bytes.len() as u64);
                if let Some(meter) = peer.meter(worker, link) {
                    meter.resent.add(1);
                    meter.sent(bytes.len(), bytes.len() > base);
                }
                let start = out.memory.len();
                out.memory.extend_from_slice(bytes);
                out.extend_run(start, std::iter::once((uplink, remote)), mark);
            });
        }
    }
}
