//! Overlay to underlay: frames of one tap become datagrams.
//!
//! Read [`Datapath::encapsulate`] first: one line per stage.
//!
//! Next: the uplink's `tx_burst`, in `fastpath`.

use std::time::Instant;

use crate::crypto::aead::Suite;
use crate::crypto::session::Session;
use crate::datapath::{
    ControlInput, Datapath, Delivery, FdbCache, MAX_WAITING, WAITING_MS, Waiting,
};
use crate::forward::fdb::{Learn, Place};
use crate::forward::loop_probe::LoopProbe;
use crate::forward::policy::{Policy, flow_of};
use crate::forward::protect::{Protect, is_control};
use crate::forward::{filter, marks, mss, too_big};
use crate::id::PeerIndex;
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use crate::link::resend::ResendRing;
use crate::stats::DropReason;
use crate::tables::{NetworkEntry, PeerEntry, Tables};
use crate::wire::buf::{BufPool, Burst, Checksum, Datagram, Frame, PacketBuf};
use crate::wire::checksum;
use crate::wire::ethernet::{EthernetView, MacAddr};
use crate::wire::fragment::{self, FRAGMENT_HEADER_LEN, FragmentHeader};
use crate::wire::header::{
    CLEAR_OVERHEAD, EXPLICIT_VNI_LEN, Handle, INNER_HEADER_LEN, InnerHeader, Kind, SEALED_OVERHEAD,
};
use crate::wire::inner_ip::InnerIp;

/// Smallest MTU of an IPv6 path, in bytes (RFC 8200 section 5).
const MIN_IPV6_MTU: usize = 1280;

/// Who a frame is for.
enum Target {
    Peer(PeerIndex),
    Flood,
}

/// How a frame leaves for a peer.
struct Outbound<'t> {
    now: Instant,
    peer: &'t PeerEntry,
    session: &'t Session,
    inner: InnerHeader,
    /// The links that it leaves by, each with the same datagrams.
    links: LinkSet,
    /// Largest UDP payload.
    limit: usize,
    /// What a datagram adds.
    overhead: usize,
    /// Outer TOS or traffic class.
    mark: u8,
    /// Kept to be sent again, among so many bytes at most.
    keep: Option<usize>,
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
        if network.looped {
            for frame in frames.drain(..) {
                self.notice_probe(now, &tables, network, frame.buf.data());
                self.discard(frame, DropReason::NetworkLooped, pool);
            }
            return;
        }
        for frame in frames.drain(..) {
            self.counters.frames_in.add(1);
            self.counters.frame_bytes_in.add(frame.buf.len() as u64);
            let target = self
                .admit(handle, network, &frame, now_ms)
                .and_then(|to| self.forward(now, now_ms, handle, network, to));
            match target {
                Ok(Target::Peer(peer)) => {
                    self.send_or_wait(now, handle, &tables, network, peer, frame, pool, out);
                }
                Ok(Target::Flood) => {
                    self.notice_probe(now, &tables, network, frame.buf.data());
                    self.flood(now, handle, &tables, network, frame, pool, out);
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
                    self.send(now, &tables, network, waiting.peer, waiting.frame, pool, out);
                }
                None => self.discard(waiting.frame, DropReason::NetworkUnknown, pool),
            }
        }
    }

    /// Sends a frame, or keeps it for a moment while the peer's handshake is under way.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn send_or_wait(
        &mut self,
        now: Instant,
        handle: Handle,
        tables: &Tables,
        network: &NetworkEntry,
        peer: PeerIndex,
        frame: Frame,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) {
        if !tables.peer(peer).is_some_and(|peer| peer.connecting) {
            return self.send(now, tables, network, peer, frame, pool, out);
        }
        let now_ms = self.clock.ms(now);
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
        now: Instant,
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
                self.send_or_wait(now, handle, tables, network, peer, frame, pool, out);
                return;
            }
            let copy = Frame { buf: pool.duplicate(&frame.buf), checksum: frame.checksum };
            self.send_or_wait(now, handle, tables, network, peer, copy, pool, out);
        }
    }

    /// Tells the control thread of a loop probe of this node's, a few times a second: tenants can
    /// make some too.
    pub(crate) fn notice_probe(
        &mut self,
        now: Instant,
        tables: &Tables,
        network: &NetworkEntry,
        frame: &[u8],
    ) {
        let to_group = frame.first().is_some_and(|first| first & 1 == 1);
        if to_group
            && let Some(probe) = LoopProbe::read(frame)
            && Some(probe.node) == tables.node
            && self.probes.take(now)
        {
            self.news.push(ControlInput::LoopProbe { vni: network.vni, probe });
        }
    }

    /// Seals a frame for one peer, in fragments where the path takes no datagram of its size.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn send(
        &mut self,
        now: Instant,
        tables: &Tables,
        network: &NetworkEntry,
        peer: PeerIndex,
        mut frame: Frame,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) {
        let len = frame.buf.len();
        let Some(peer) = tables.peer(peer) else {
            return self.discard(frame, DropReason::PeerNoSession, pool);
        };
        self.keep_awake(peer);
        let outcome = match self.prepare(now, tables, peer, network, &mut frame) {
            Ok(outbound) if frame.buf.len() + outbound.overhead <= outbound.limit => {
                self.send_whole(&outbound, frame.buf, pool, out)
            }
            Ok(outbound) => self.send_pieces(&outbound, frame.buf, pool, out),
            Err(reason) => Err((reason, frame.buf)),
        };
        match outcome {
            Ok(()) => {
                for traffic in [&peer.traffic, &network.traffic] {
                    if let Some(mine) = traffic.get(self.worker) {
                        mine.sent(len);
                    }
                }
            }
            Err((reason, buf)) => {
                self.counters.count_drop(reason);
                pool.free(buf);
            }
        }
    }

    /// Decides on links, size and mark, and makes the frame what the sealed part holds.
    fn prepare<'t>(
        &mut self,
        now: Instant,
        tables: &Tables,
        peer: &'t PeerEntry,
        network: &NetworkEntry,
        frame: &mut Frame,
    ) -> Result<Outbound<'t>, DropReason> {
        let session = peer.session.as_deref().ok_or(DropReason::PeerNoSession)?;
        let suite = session.facts().suite;
        let handle = network.member(peer.index).ok_or(DropReason::FrameNoMember)?.handle;
        let overhead = if suite == Suite::Clear { CLEAR_OVERHEAD } else { SEALED_OVERHEAD };
        let policy = network.policy.unwrap_or(peer.policy);
        let inner_ip = InnerIp::find(frame.buf.data());
        let flow = match policy {
            Policy::FlowHash => flow_of(frame.buf.data(), inner_ip.as_ref()),
            _ => 0,
        };
        let links = peer.ways.choose(policy, flow, &mut self.turn);
        if links.is_empty() {
            return Err(DropReason::PeerNoPath);
        }
        let limit = largest_payload(peer, links);
        if let Some(ip) = &inner_ip {
            // The explicit VNI is for the moments before the peer named the network: sizes that
            // senders are told do not depend on it.
            let max_l3 =
                limit.max(peer.expected_udp_payload).saturating_sub(overhead + ip.l3_offset);
            self.fit_sender(now, network, frame, ip, max_l3);
        }
        let dscp = network.dscp.as_ref().unwrap_or(&peer.dscp);
        let mark = marks::mark(dscp, peer.ecn, inner_ip.as_ref());
        let keep = peer.links.len() > 1
            && match peer.protect {
                Protect::Off => false,
                Protect::Control => is_control(frame.buf.data(), inner_ip.as_ref()),
                Protect::All => true,
            };
        let keep = keep.then_some(tables.resend_bytes);
        let kind = self.mark_checksum(frame, suite, handle)?;
        if handle == Handle::NONE {
            let [a, b, c] = network.vni.to_be_bytes();
            let front =
                frame.buf.prepend(EXPLICIT_VNI_LEN).map_err(|_| DropReason::FrameTooLarge)?;
            front.copy_from_slice(&[a, b, c, 0]);
        }
        let inner = InnerHeader { kind, handle };
        Ok(Outbound { now, peer, session, inner, links, limit, overhead, mark, keep })
    }

    /// Has the sender make packets that fit: by TCP's segment size as a connection begins, else by
    /// ICMP, while what it sent is carried in fragments.
    fn fit_sender(
        &mut self,
        now: Instant,
        network: &NetworkEntry,
        frame: &mut Frame,
        ip: &InnerIp,
        max_l3: usize,
    ) {
        if network.mss_clamp && mss::clamp(frame.buf.data_mut(), ip, frame.checksum, max_l3) {
            self.counters.mss_clamped.add(1);
        }
        let l3_len = frame.buf.len().saturating_sub(ip.l3_offset);
        // RFC 8200 section 5: no IPv6 sender goes below 1280 bytes, whatever it is told.
        let hopeless = ip.version == 6 && l3_len <= MIN_IPV6_MTU;
        let heeds = ip.version == 6 || ip.dont_fragment;
        if !network.too_big || l3_len <= max_l3 || hopeless || !heeds {
            return;
        }
        // The ration first: a stream of large packets must not have a message built for each.
        let now_ms = self.clock.ms(now);
        if !self.too_big.admits(ip.src, ip.dst, now_ms) {
            return;
        }
        let mtu = u32::try_from(max_l3).unwrap_or(u32::MAX);
        if let Some(message) = too_big::build(frame.buf.data(), mtu) {
            self.counters.too_big_sent.add(1);
            let frame =
                Frame { buf: PacketBuf::from_slice(&message), checksum: Checksum::Complete };
            self.returns.push(Delivery { handle: network.handle, vni: network.vni, frame });
        }
    }

    fn send_whole(
        &mut self,
        outbound: &Outbound<'_>,
        mut buf: PacketBuf,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) -> Result<(), (DropReason, PacketBuf)> {
        match self.seal(outbound.peer, outbound.session, outbound.inner, &mut buf, true) {
            Ok(epoch) => {
                self.emit(outbound, epoch, buf, pool, out);
                Ok(())
            }
            Err(reason) => Err((reason, buf)),
        }
    }

    /// Cuts the sealed part to be into equal pieces, and seals each for itself (rule F8).
    fn send_pieces(
        &mut self,
        outbound: &Outbound<'_>,
        mut buf: PacketBuf,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) -> Result<(), (DropReason, PacketBuf)> {
        let max_piece = outbound.limit.saturating_sub(outbound.overhead + FRAGMENT_HEADER_LEN);
        let Ok(front) = buf.prepend(INNER_HEADER_LEN) else {
            return Err((DropReason::FrameTooLarge, buf));
        };
        front.copy_from_slice(&outbound.inner.write());
        let Some(plan) = fragment::plan(buf.len(), max_piece) else {
            return Err((DropReason::FrameTooLarge, buf));
        };
        let id = self.fragment_id;
        self.fragment_id = id.wrapping_add(1);
        self.counters.frames_fragmented.add(1);
        let inner = InnerHeader { kind: Kind::Fragment, handle: Handle::NONE };
        for (number, (offset, range, more)) in plan.enumerate() {
            let content = buf.data().get(range).unwrap_or_default();
            let header = FragmentHeader { id, more, offset };
            let Some(mut part) = fragment_buf(pool, &header.write(), content) else {
                return Err((DropReason::FrameTooLarge, buf));
            };
            let Outbound { peer, session, .. } = *outbound;
            let epoch = match self.seal(peer, session, inner, &mut part, number == 0) {
                Ok(epoch) => epoch,
                Err(reason) => {
                    pool.free(part);
                    return Err((reason, buf));
                }
            };
            self.counters.fragments_out.add(1);
            self.emit(outbound, epoch, part, pool, out);
        }
        pool.free(buf);
        Ok(())
    }

    /// Puts a sealed datagram on its links, and keeps a copy where it may have to be sent again.
    fn emit(
        &mut self,
        outbound: &Outbound<'_>,
        epoch: u32,
        buf: PacketBuf,
        pool: &mut BufPool,
        out: &mut Burst<Datagram>,
    ) {
        let Outbound { peer, links, mark, .. } = *outbound;
        if let Some(most) = outbound.keep {
            self.keep_for_resending(outbound, most, epoch, buf.data());
        }
        let mut targets = links.iter().filter_map(|link| address(peer, link)).peekable();
        let mut buf = Some(buf);
        while let Some((link, uplink, remote)) = targets.next() {
            let copy = match targets.peek() {
                Some(_) => buf.as_ref().map(|buf| pool.duplicate(buf)),
                None => buf.take(),
            };
            let Some(copy) = copy else { break };
            self.counters.datagrams_out.add(1);
            self.counters.datagram_bytes_out.add(copy.len() as u64);
            let base = peer.links.get(link.at()).map_or(0, |entry| entry.base_udp_payload);
            if let Some(meter) = peer.meter(self.worker, link) {
                meter.sent(copy.len(), copy.len() > base);
            }
            out.push(Datagram { buf: copy, uplink, remote, mark });
        }
        if let Some(buf) = buf {
            pool.free(buf);
        }
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

    /// Sends again what left lately by links that carry no frames any more. To be called before
    /// newer frames are sealed: these come after.
    pub fn resend(&mut self, now: Instant, pool: &mut BufPool, out: &mut Burst<Datagram>) {
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
                let mut buf = pool.alloc();
                if buf.append(bytes.len()).map(|room| room.copy_from_slice(bytes)).is_err() {
                    pool.free(buf);
                    buf = PacketBuf::from_slice(bytes);
                }
                out.push(Datagram { buf, uplink, remote, mark });
            });
        }
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

/// Where datagrams of a link go, if that is known.
fn address(
    peer: &PeerEntry,
    link: LinkIndex,
) -> Option<(LinkIndex, crate::wire::buf::UplinkId, std::net::SocketAddr)> {
    let entry = peer.links.get(link.at())?;
    Some((link, entry.uplink, entry.remote?))
}

/// Largest UDP payload that may leave by these links.
fn largest_payload(peer: &PeerEntry, links: LinkSet) -> usize {
    if peer.fits_all {
        return peer.max_udp_payload;
    }
    let sizes = links.iter().filter_map(|link| peer.links.get(link.at()));
    sizes.map(|entry| entry.max_udp_payload).min().unwrap_or(peer.max_udp_payload)
}

/// A buffer with the header and content of one fragment.
fn fragment_buf(
    pool: &mut BufPool,
    header: &[u8; FRAGMENT_HEADER_LEN],
    content: &[u8],
) -> Option<PacketBuf> {
    let len = header.len() + content.len();
    let mut buf = pool.alloc();
    if buf.capacity() < len {
        pool.free(buf);
        buf = PacketBuf::with_capacity(len);
    }
    let (front, back) = buf.append(len).ok()?.split_at_mut(header.len());
    front.copy_from_slice(header);
    back.copy_from_slice(content);
    Some(buf)
}
