//! Overlay to underlay: frames of one tap become datagrams.
//!
//! Read [`Datapath::encapsulate`] first: one line per stage.
//!
//! Next: the uplink's `tx_burst`, in `fastpath`.

use std::time::Instant;

use crate::crypto::aead::Suite;
use crate::datapath::{Datapath, FdbCache, MAX_WAITING, WAITING_MS, Waiting};
use crate::forward::fdb::{Learn, Place};
use crate::forward::filter;
use crate::id::PeerIndex;
use crate::stats::DropReason;
use crate::tables::{NetworkEntry, PeerEntry, Tables};
use crate::wire::buf::{BufPool, Burst, Checksum, Datagram, Frame};
use crate::wire::checksum;
use crate::wire::ethernet::{EthernetView, MacAddr};
use crate::wire::header::{
    CLEAR_OVERHEAD, EXPLICIT_VNI_LEN, Handle, InnerHeader, Kind, SEALED_OVERHEAD,
};

/// Who a frame is for.
enum Target {
    Peer(PeerIndex),
    Flood,
}

impl Datapath {
    /// Makes datagrams of `frames`, which came from the tap of the network with our `handle`;
    /// empties `frames`. Dropped frames are counted and their buffers go back to `pool`.
    pub fn encapsulate(
        &mut self,
        now: Instant,
        handle: Handle,
        pool: &mut BufPool,
        frames: &mut Burst<Frame>,
        out: &mut Burst<Datagram>,
    ) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        let Some(network) = tables.network(handle) else {
            for frame in frames.drain(..) {
                self.counters.count_drop(DropReason::NetworkUnknown);
                pool.free(frame.buf);
            }
            return;
        };
        let now_ms = self.clock.ms(now);
        for frame in frames.drain(..) {
            self.counters.frames_in.add(1);
            self.counters.frame_bytes_in.add(frame.buf.len() as u64);
            let target = self
                .admit(handle, network, &frame, now_ms)
                .and_then(|to| self.forward(now, now_ms, handle, network, to));
            match target {
                Ok(Target::Peer(peer)) => {
                    self.send_or_wait(now_ms, handle, &tables, network, peer, frame, pool, out);
                }
                Ok(Target::Flood) => {
                    self.flood(now_ms, handle, &tables, network, frame, pool, out);
                }
                Err(reason) => self.discard(frame, reason, pool),
            }
        }
    }

    /// Sends what waited for a session that is there now; drops what waited too long.
    pub fn send_waiting(&mut self, now: Instant, pool: &mut BufPool, out: &mut Burst<Datagram>) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        let now_ms = self.clock.ms(now);
        // The oldest is in front: nothing has changed while it may wait and the tables are the same.
        let overdue = self.waiting.front().is_some_and(|oldest| oldest.until_ms <= now_ms);
        if !overdue && self.waiting_generation == tables.generation {
            return;
        }
        self.waiting_generation = tables.generation;
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else { break };
            let connecting = tables.peer(waiting.peer).is_some_and(|peer| peer.connecting);
            if connecting && now_ms < waiting.until_ms {
                self.waiting.push_back(waiting);
                continue;
            }
            match tables.network(waiting.handle) {
                Some(network) => {
                    self.send(&tables, network, waiting.peer, waiting.frame, pool, out);
                }
                None => self.discard(waiting.frame, DropReason::NetworkUnknown, pool),
            }
        }
    }

    /// Sends a frame, or keeps it for a moment while the peer's handshake is under way.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn send_or_wait(
        &mut self,
        now_ms: u64,
        handle: Handle,
        tables: &Tables,
        network: &NetworkEntry,
        peer: PeerIndex,
        frame: Frame,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) {
        if !tables.peer(peer).is_some_and(|peer| peer.connecting) {
            return self.send(tables, network, peer, frame, pool, out);
        }
        if self.waiting.len() >= MAX_WAITING
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.discard(oldest.frame, DropReason::PeerNoSession, pool);
        }
        self.waiting.push_back(Waiting { handle, peer, frame, until_ms: now_ms + WAITING_MS });
    }

    fn discard(&self, frame: Frame, reason: DropReason, pool: &mut BufPool) {
        self.counters.count_drop(reason);
        pool.free(frame.buf);
    }

    /// Checks the frame, learns its source as local, gives its destination.
    fn admit(
        &mut self,
        handle: Handle,
        network: &NetworkEntry,
        frame: &Frame,
        now_ms: u64,
    ) -> Result<MacAddr, DropReason> {
        let view = EthernetView::new(frame.buf.data()).map_err(|_| DropReason::FrameTruncated)?;
        if !filter::passes(&view, network.stp) {
            return Err(DropReason::FrameLinkLocal);
        }
        let source = view.source();
        if source.is_multicast() || source.is_zero() {
            return Err(DropReason::FrameBadSource);
        }
        let generation = network.fdb.generation();
        let cache = &self.local_source;
        let known = cache.mac == source
            && cache.handle == handle
            && cache.generation == generation
            && now_ms < cache.until_ms;
        if !known {
            if network.fdb.learn(source, Place::Local, now_ms) == Learn::Refused {
                self.counters.learn_refused.add(1);
            } else {
                self.local_source = FdbCache {
                    handle,
                    mac: source,
                    place: Some(Place::Local),
                    // From before: what moved meanwhile is looked at again.
                    generation,
                    until_ms: now_ms + 1_000,
                };
            }
        }
        Ok(view.destination())
    }

    /// Looks the destination up; polices what goes to everyone.
    fn forward(
        &mut self,
        now: Instant,
        now_ms: u64,
        handle: Handle,
        network: &NetworkEntry,
        to: MacAddr,
    ) -> Result<Target, DropReason> {
        let place = if to.is_multicast() { None } else { self.lookup(now_ms, handle, network, to) };
        match place {
            Some(Place::Peer(peer)) if network.member(peer).is_some_and(|m| m.present) => {
                Ok(Target::Peer(peer))
            }
            Some(Place::Local) => Err(DropReason::FrameLocalDestination),
            _ if self.police(network.vni, network.bum_rate, now) => Ok(Target::Flood),
            _ => Err(DropReason::FramePoliced),
        }
    }

    fn lookup(
        &mut self,
        now_ms: u64,
        handle: Handle,
        network: &NetworkEntry,
        mac: MacAddr,
    ) -> Option<Place> {
        let generation = network.fdb.generation();
        let cache = &self.destination;
        if cache.mac == mac
            && cache.handle == handle
            && cache.generation == generation
            && now_ms < cache.until_ms
        {
            return cache.place;
        }
        let place = network.fdb.lookup(mac, now_ms);
        self.destination = FdbCache { handle, mac, place, generation, until_ms: now_ms + 1_000 };
        place
    }

    /// Head-end replication: one sealed copy for every member (rule F5). Frames that came from a
    /// peer never come here, so the overlay itself cannot loop (split horizon).
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn flood(
        &mut self,
        now_ms: u64,
        handle: Handle,
        tables: &Tables,
        network: &NetworkEntry,
        frame: Frame,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) {
        self.counters.floods.add(1);
        let mut members = (0u32..)
            .map(PeerIndex)
            .zip(&network.members)
            .filter_map(|(peer, member)| member.filter(|m| m.present).map(|_| peer))
            .peekable();
        if members.peek().is_none() {
            return self.discard(frame, DropReason::FrameNoMember, pool);
        }
        while let Some(peer) = members.next() {
            if members.peek().is_none() {
                self.send_or_wait(now_ms, handle, tables, network, peer, frame, pool, out);
                return;
            }
            let copy = Frame { buf: pool.duplicate(&frame.buf), checksum: frame.checksum };
            self.send_or_wait(now_ms, handle, tables, network, peer, copy, pool, out);
        }
    }

    /// Seals a frame for one peer.
    fn send(
        &mut self,
        tables: &Tables,
        network: &NetworkEntry,
        peer: PeerIndex,
        mut frame: Frame,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) {
        let len = frame.buf.len();
        let sealed = tables
            .peer(peer)
            .ok_or(DropReason::PeerNoSession)
            .and_then(|peer| self.seal_frame(peer, network, &mut frame).map(|()| peer));
        match sealed {
            Ok(peer) => {
                self.counters.datagrams_out.add(1);
                self.counters.datagram_bytes_out.add(frame.buf.len() as u64);
                for traffic in [&peer.traffic, &network.traffic] {
                    if let Some(mine) = traffic.get(self.worker) {
                        mine.sent(len);
                    }
                }
                let (uplink, remote) = (peer.link.uplink, peer.link.remote);
                out.push(Datagram { buf: frame.buf, uplink, remote, mark: 0 });
            }
            Err(reason) => self.discard(frame, reason, pool),
        }
    }

    fn seal_frame(
        &mut self,
        peer: &PeerEntry,
        network: &NetworkEntry,
        frame: &mut Frame,
    ) -> Result<(), DropReason> {
        let session = peer.session.as_ref().ok_or(DropReason::PeerNoSession)?;
        let suite = session.facts().suite;
        let handle = network.member(peer.index).ok_or(DropReason::FrameNoMember)?.handle;
        let mut overhead = if suite == Suite::Clear { CLEAR_OVERHEAD } else { SEALED_OVERHEAD };
        if handle == Handle::NONE {
            overhead += EXPLICIT_VNI_LEN;
        }
        if frame.buf.len() + overhead > peer.link.max_udp_payload {
            return Err(DropReason::FrameTooLarge);
        }
        let kind = self.mark_checksum(frame, suite, handle)?;
        if handle == Handle::NONE {
            let [a, b, c] = network.vni.to_be_bytes();
            let front =
                frame.buf.prepend(EXPLICIT_VNI_LEN).map_err(|_| DropReason::FrameTooLarge)?;
            front.copy_from_slice(&[a, b, c, 0]);
        }
        self.seal(peer, session, InnerHeader { kind, handle }, &mut frame.buf)
    }

    /// The kind that says what became of a partial checksum: it travels as such inside a seal, and
    /// is completed where nothing protects it or where the kind has no room to say so (rule P1).
    fn mark_checksum(
        &self,
        frame: &mut Frame,
        suite: Suite,
        handle: Handle,
    ) -> Result<Kind, DropReason> {
        let plain = if handle == Handle::NONE { Kind::FrameWithVni } else { Kind::Frame };
        let Checksum::Partial { start, offset } = frame.checksum else { return Ok(plain) };
        // The receiver derives the offsets by parsing: only what parses to the same travels so.
        if suite != Suite::Clear
            && plain == Kind::Frame
            && checksum::derive_partial(frame.buf.data()) == Some(frame.checksum)
        {
            return Ok(Kind::FramePartialChecksum);
        }
        checksum::complete_checksum(frame.buf.data_mut(), start, offset)
            .map_err(|_| DropReason::FrameBadChecksumOffset)?;
        frame.checksum = Checksum::Complete;
        Ok(plain)
    }
}
