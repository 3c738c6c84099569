//! Underlay to overlay: datagrams become frames, and control inputs for the control thread.
//!
//! Read [`Datapath::decapsulate`] first: one line per stage. Cheap checks stand before dear ones,
//! and nothing that is not authentic changes anything but a counter.
//!
//! Next: the tap's `tx_burst`, in `fastpath`; control inputs go to [`crate::vtep`].

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::compress::{Compressed, Decompressor};
use crate::crypto::aead::Suite;
use crate::crypto::session::{self, LaneGuard, Session};
use crate::datapath::{ControlInput, Datapath, Deliveries, Delivery, FdbCache, Pulse};
use crate::forward::fdb::{Learn, Place};
use crate::forward::{filter, mss};
use crate::handshake::features::Features;
use crate::id::Vni;
use crate::link::id::LinkIndex;
use crate::reassembly::{FragmentDrop, Key, Whole};
use crate::stats::DropReason;
use crate::tables::{Arrival, NetworkEntry, PeerEntry, Tables, To};
use crate::wire::buf::{BufPool, Burst, Checksum, OutFrame, PacketBuf, Received, Span, UplinkId};
use crate::wire::bundle::{self, MAX_ENTRIES};
use crate::wire::checksum;
use crate::wire::control::Message;
use crate::wire::ethernet::EthernetView;
use crate::wire::fragment::FragmentHeader;
use crate::wire::header::{
    CLEAR_HEADER_LEN, CLEAR_OVERHEAD, DataHeader, EXPLICIT_VNI_LEN, Format, Handle,
    INNER_HEADER_LEN, InnerHeader, Kind, Lane, SEALED_OVERHEAD, Slot,
};
use crate::wire::inner_ip::{EcnOutcome, InnerIp, decap_ecn, set_ecn};
use crate::wire::long::{LongError, LongHeader};
use crate::wire::probe;

/// The ECN bits, and their value for congestion experienced (RFC 3168 section 5).
const ECN_CE: u8 = 3;

/// Most bytes that the datagrams of one pass are decompressed to: a few times what they can be with
/// data that compresses well. Beyond, they are dropped.
const MAX_DECOMPRESSED: usize = 8 << 20;

/// What is known of an authentic datagram.
struct Origin<'t> {
    session: &'t Session,
    peer: &'t PeerEntry,
    link: LinkIndex,
    from: SocketAddr,
    /// Bytes of UDP payload.
    size: usize,
    /// The outer TOS or traffic class.
    mark: u8,
    lane: Lane,
    epoch: u32,
    sequence: u32,
}

/// Where a datagram came from, and its outer TOS or traffic class.
#[derive(Debug, Clone, Copy)]
struct From {
    uplink: UplinkId,
    remote: SocketAddr,
    mark: u8,
}

/// A session's lane that stays locked over a run of datagrams in it.
struct Held<'a> {
    slot: Slot,
    lane: Lane,
    session: &'a Arc<Session>,
    peer: &'a Arc<PeerEntry>,
    guard: LaneGuard<'a>,
}

impl Datapath {
    /// Takes `received` apart; empties it. Frames go to `out`, what the control thread must see to
    /// `control`. Dropped datagrams are counted; buffers without frames go back to `pool`.
    pub fn decapsulate(
        &mut self,
        now: Instant,
        pool: &mut BufPool,
        received: &mut Burst<Received>,
        out: &mut Deliveries,
        control: &mut Burst<ControlInput>,
    ) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        let mut held = None;
        self.decompressible = MAX_DECOMPRESSED;
        for Received { mut buf, segment_size, uplink, remote, mark } in received.drain(..) {
            // Its place, so that the frames in it can be named while it is still at work here.
            let piece = out.pieces.0.len();
            out.pieces.0.push(PacketBuf::default());
            let before = out.list.len();
            let from = From { uplink, remote, mark };
            let (len, size) = (buf.len(), segment_size.max(1));
            // An empty datagram is one too.
            for start in (0..len.max(1)).step_by(size) {
                let end = (start + size).min(len);
                let at = Span { piece, start, len: end - start };
                let Some(datagram) = buf.data_mut().get_mut(start..end) else { break };
                self.counters.datagrams_in.add(1);
                self.counters.datagram_bytes_in.add(datagram.len() as u64);
                let outcome = self.take(now, &tables, &mut held, from, datagram, at, out, control);
                if let Err(reason) = outcome {
                    self.counters.count_drop(reason);
                }
            }
            let empty_again = out.pieces.0.len() == piece + 1 && out.list.len() == before;
            if empty_again {
                out.pieces.0.pop();
                pool.free(buf);
            } else if let Some(place) = out.pieces.0.get_mut(piece) {
                *place = buf;
            }
        }
    }

    /// Takes one datagram apart, which lies at `at`.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn take<'t>(
        &mut self,
        now: Instant,
        tables: &'t Arc<Tables>,
        held: &mut Option<Held<'t>>,
        from: From,
        datagram: &mut [u8],
        at: Span,
        out: &mut Deliveries,
        control: &mut Burst<ControlInput>,
    ) -> Result<(), DropReason> {
        let Some(header) = self.classify(now, tables, from, datagram, control)? else {
            return Ok(());
        };
        let (origin, inner) = self.open(now, tables, held, &header, from, datagram, control)?;
        let at = Span { start: at.start + inner.start, len: inner.len(), ..at };
        let inner = datagram.get_mut(inner).unwrap_or_default();
        self.dispatch(now, tables, &origin, inner, at, out, control)
    }

    /// Gives the header of a data datagram; hands a plausible handshake message on.
    fn classify(
        &mut self,
        now: Instant,
        tables: &Tables,
        from: From,
        bytes: &[u8],
        control: &mut Burst<ControlInput>,
    ) -> Result<Option<DataHeader>, DropReason> {
        let first = *bytes.first().ok_or(DropReason::DatagramTruncated)?;
        match Format::of(first) {
            Format::Sealed | Format::Clear => {
                let clear = bytes.first_chunk().ok_or(DropReason::DatagramTruncated)?;
                Ok(Some(DataHeader::read(clear)))
            }
            Format::Reserved => Err(DropReason::FormatReserved),
            Format::Long => {
                // Keys and MACs are checked here already, so that only who has a key can fill the
                // control queue.
                let From { uplink, remote: from, .. } = from;
                match LongHeader::read(bytes) {
                    Ok(long) => {
                        let Some(key) = tables.keys.iter().find(|key| key.id() == long.key_id)
                        else {
                            self.notice(now, from, None, control);
                            return Err(DropReason::HandshakeKeyUnknown);
                        };
                        if !LongHeader::authenticate(bytes, key) {
                            return Err(DropReason::HandshakeBadMac);
                        }
                    }
                    Err(LongError::Version(version, highest)) => {
                        self.notice(now, from, Some((version, highest)), control);
                        return Err(DropReason::LongVersionUnknown);
                    }
                    Err(LongError::Type) if first & 0xe0 == 0x20 => {
                        return Err(DropReason::LongTypeUnknown);
                    }
                    Err(_) => return Err(DropReason::LongInvalid),
                }
                if !self.longs.take(now) {
                    return Err(DropReason::HandshakeRateLimited);
                }
                control.push(ControlInput::Long { uplink, from, datagram: bytes.to_vec() });
                Ok(None)
            }
        }
    }

    fn notice(
        &mut self,
        now: Instant,
        from: SocketAddr,
        version: Option<(u8, u8)>,
        control: &mut Burst<ControlInput>,
    ) {
        if self.notices.take(now) {
            control.push(ControlInput::Foreign { from, version });
        }
    }

    /// Finds the session, checks where the datagram came from, then replay, AEAD, commit.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn open<'t>(
        &mut self,
        now: Instant,
        tables: &'t Tables,
        held: &mut Option<Held<'t>>,
        header: &DataHeader,
        from: From,
        datagram: &mut [u8],
        control: &mut Burst<ControlInput>,
    ) -> Result<(Origin<'t>, Range<usize>), DropReason> {
        let same = held.as_ref().is_some_and(|h| h.slot == header.slot && h.lane == header.lane);
        if !same {
            // Two lanes of one session must never be locked at once.
            *held = None;
            *held = Some(hold(tables, header)?);
        }
        let Some(Held { session, peer, guard, .. }) = held.as_mut() else {
            return Err(DropReason::SlotUnknown);
        };
        let (session, peer): (&'t Session, &'t PeerEntry) = (session, peer);
        let clear_session = session.facts().suite == Suite::Clear;
        if clear_session != (header.format == Format::Clear) {
            return Err(DropReason::FormatMismatch);
        }
        let arrival = peer.arrival(from.uplink, from.remote).ok_or(DropReason::SourceUnknown)?;
        let (link, moved) = match arrival {
            Arrival::Known(link) => (link, false),
            // Nothing vouches for where a clear datagram comes from.
            Arrival::Elsewhere(link) if !clear_session && self.unknown_sources.take(now) => {
                (link, true)
            }
            Arrival::Elsewhere(_) => return Err(DropReason::SourceUnknown),
        };
        let From { remote: from, mark, .. } = from;
        let size = datagram.len();
        let meter = peer.meter(self.worker, link);
        let opened = session.open(guard, header, datagram, self.clock.ms(now));
        if matches!(opened, Err(DropReason::ReplayDuplicate))
            && let Some(meter) = meter
        {
            meter.copies.add(1);
        }
        let opened = opened?;
        if let Some(meter) = meter {
            meter.received(self.clock.us(now), size);
        }
        report(session, &opened, control);
        if moved && self.moves.take(now) {
            let (slot, session) = (session.facts().local_slot, session.facts().serial);
            control.push(ControlInput::Elsewhere { slot, session, link, from });
        }
        let (lane, epoch, sequence) = (header.lane, opened.epoch, header.sequence);
        let origin = Origin { session, peer, link, from, size, mark, lane, epoch, sequence };
        Ok((origin, opened.inner))
    }

    /// Reads the inner header and takes the payload where its kind says. `bytes` lies at `at`.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn dispatch(
        &mut self,
        now: Instant,
        tables: &Arc<Tables>,
        origin: &Origin<'_>,
        bytes: &mut [u8],
        at: Span,
        out: &mut Deliveries,
        control: &mut Burst<ControlInput>,
    ) -> Result<(), DropReason> {
        let (inner, payload) = read_inner(bytes)?;
        let at = at.after(INNER_HEADER_LEN);
        let facts = origin.session.facts();
        let (slot, session) = (facts.local_slot, facts.serial);
        match inner.kind {
            Kind::Control => {
                control.push(control_input(now, origin, payload)?);
                self.counters.control_in.add(1);
                Ok(())
            }
            Kind::Probe => {
                let id = probe::read(payload).map_err(|_| DropReason::ControlInvalid)?;
                self.counters.probes_in.add(1);
                control.push(ControlInput::Probe { slot, session, id, size: origin.size });
                Ok(())
            }
            Kind::Channel | Kind::Unreliable => {
                agreed(origin, Features::CHANNELS)?;
                let what = (inner.kind, origin.mark & ECN_CE);
                let from = (facts.boot, origin.link);
                self.receive_channel(now, tables, origin.peer, from, what, payload)
            }
            Kind::Fragment => {
                let Some(mut whole) = self.reassemble(now, tables, origin, payload)? else {
                    return Ok(());
                };
                // One fragment that met congestion stands for the frame (RFC 3168 section 5.3).
                let mark = if whole.ecn_ce { origin.mark | ECN_CE } else { origin.mark };
                let at = Span { piece: out.pieces.0.len(), start: 0, len: whole.buf.len() };
                let (inner, payload) = read_inner(whole.buf.data_mut())?;
                if inner.kind == Kind::Bundle {
                    return Err(DropReason::FragmentInvalid);
                }
                let at = at.after(INNER_HEADER_LEN);
                self.payload(now, tables, origin, mark, inner, payload, at, out)?;
                out.pieces.0.push(whole.buf);
                Ok(())
            }
            _ => self.payload(now, tables, origin, origin.mark, inner, payload, at, out),
        }
    }

    /// Puts a fragment where it belongs; gives its frame when that is complete.
    fn reassemble(
        &mut self,
        now: Instant,
        tables: &Tables,
        origin: &Origin<'_>,
        payload: &[u8],
    ) -> Result<Option<Whole>, DropReason> {
        self.counters.fragments_in.add(1);
        let (header, piece) = payload.split_first_chunk().ok_or(DropReason::DatagramTruncated)?;
        let header = FragmentHeader::read(*header).map_err(|_| DropReason::FragmentInvalid)?;
        let key = Key {
            session: origin.session.facts().serial,
            peer: origin.peer.index.0,
            lane: origin.lane.0,
            epoch: origin.epoch,
        };
        self.reassembler.set_timeout(tables.reassembly_ms);
        let congested = origin.mark & ECN_CE == ECN_CE;
        let (now_ms, pool) = (self.clock.ms(now), &mut self.fragment_pool);
        let outcome =
            self.reassembler.insert(now_ms, key, origin.sequence, header, congested, piece, pool);
        self.count_fragments();
        match outcome {
            Ok(Some(whole)) => {
                self.counters.frames_reassembled.add(1);
                Ok(Some(whole))
            }
            Ok(None) => Ok(None),
            Err(FragmentDrop::Duplicate) => Err(DropReason::FragmentDuplicate),
            Err(FragmentDrop::Invalid) => Err(DropReason::FragmentInvalid),
            Err(_) => Err(DropReason::FragmentDisplaced),
        }
    }

    /// Takes Ethernet frames on.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn payload(
        &mut self,
        now: Instant,
        tables: &Tables,
        origin: &Origin<'_>,
        mark: u8,
        inner: InnerHeader,
        payload: &mut [u8],
        at: Span,
        out: &mut Deliveries,
    ) -> Result<(), DropReason> {
        let partial = inner.kind == Kind::FramePartialChecksum;
        let (handle, frame, at) = match inner.kind {
            Kind::Compressed => {
                agreed(origin, Features::COMPRESSION)?;
                return self.decompress(now, tables, origin, mark, inner.handle, payload, out);
            }
            Kind::Bundle => {
                agreed(origin, Features::BUNDLES)?;
                return self.unbundle(now, tables, origin, mark, inner.handle, payload, at, out);
            }
            Kind::Frame | Kind::FramePartialChecksum => (inner.handle, payload, at),
            Kind::FrameWithVni => {
                let (handle, frame) = explicit_vni(tables, payload)?;
                (handle, frame, at.after(EXPLICIT_VNI_LEN))
            }
            _ => return Err(DropReason::FragmentInvalid),
        };
        self.frame(now, tables, origin, mark, (handle, partial), frame, at, out)
    }

    /// Takes on what a compressed payload becomes.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn decompress(
        &mut self,
        now: Instant,
        tables: &Tables,
        origin: &Origin<'_>,
        mark: u8,
        handle: Handle,
        payload: &[u8],
        out: &mut Deliveries,
    ) -> Result<(), DropReason> {
        let compressed = Compressed::read(payload).map_err(|_| DropReason::CompressionInvalid)?;
        // A few bytes can say that they become 64 KiB: what one pass makes of them is bounded.
        let left = self.decompressible.checked_sub(compressed.len());
        self.decompressible = left.ok_or(DropReason::CompressionInvalid)?;
        if self.decompressor.is_none() {
            self.decompressor = Decompressor::new(Arc::clone(&self.counters));
        }
        let decompressor = self.decompressor.as_mut().ok_or(DropReason::CompressionInvalid)?;
        let len = compressed.len();
        let mut buf = match self.fragment_pool.max_len() {
            enough if len <= enough => self.fragment_pool.alloc(),
            _ => PacketBuf::with_capacity(len),
        };
        buf.set_len(len);
        let at = Span { piece: out.pieces.0.len(), start: 0, len };
        // Its place, so that what comes out of it can name it.
        out.pieces.0.push(PacketBuf::default());
        let mut outcome = decompressor
            .decompress(&compressed, buf.data_mut())
            .map_err(|_| DropReason::CompressionInvalid);
        if outcome.is_ok() {
            let inner = InnerHeader { kind: compressed.inner(), handle };
            outcome = self.payload(now, tables, origin, mark, inner, buf.data_mut(), at, out);
        }
        if let Some(place) = out.pieces.0.get_mut(at.piece) {
            *place = buf;
        }
        outcome
    }

    /// Takes the frames of a bundle on, each for itself.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn unbundle(
        &mut self,
        now: Instant,
        tables: &Tables,
        origin: &Origin<'_>,
        mark: u8,
        handle: Handle,
        payload: &mut [u8],
        at: Span,
        out: &mut Deliveries,
    ) -> Result<(), DropReason> {
        let entries = bundle::entries(payload).map_err(|_| DropReason::BundleInvalid)?;
        // The ranges are few: they are taken down before the frames may be changed.
        let mut ranges: [(Range<usize>, bool); MAX_ENTRIES] = Default::default();
        let mut count = 0;
        for (place, entry) in ranges.iter_mut().zip(entries) {
            *place = entry;
            count += 1;
        }
        self.counters.bundles_in.add(1);
        self.counters.bundled_frames_in.add(count as u64);
        for (range, partial) in ranges.into_iter().take(count) {
            let at = Span { start: at.start + range.start, len: range.len(), ..at };
            let frame = payload.get_mut(range).unwrap_or_default();
            let what = (handle, partial);
            if let Err(reason) = self.frame(now, tables, origin, mark, what, frame, at, out) {
                self.counters.count_drop(reason);
            }
        }
        Ok(())
    }

    /// Takes an Ethernet frame on, which lies at `at`.
    #[allow(clippy::too_many_arguments)] // a stage of the packet path: everything is at hand
    fn frame(
        &mut self,
        now: Instant,
        tables: &Tables,
        origin: &Origin<'_>,
        mark: u8,
        (handle, partial): (Handle, bool),
        frame: &mut [u8],
        at: Span,
        out: &mut Deliveries,
    ) -> Result<(), DropReason> {
        let network = tables.network(handle).ok_or(DropReason::HandleUnknown)?;
        let checksum = if partial {
            // Nothing in clear mode vouches for it, and what does not parse cannot be completed.
            let partial = checksum::derive_partial(frame);
            if origin.session.facts().suite == Suite::Clear {
                return Err(DropReason::InnerBadChecksum);
            }
            partial.ok_or(DropReason::InnerBadChecksum)?
        } else {
            Checksum::Complete
        };
        network.member(origin.peer.index).ok_or(DropReason::NetworkNotMember)?;
        self.keep_awake(origin.peer);
        self.notice_probe(now, tables, network, frame);
        self.accept(network, handle, origin.peer, frame, self.clock.ms(now))?;
        self.adapt(network, origin, mark, checksum, frame)?;
        self.counters.frames_out.add(1);
        self.counters.frame_bytes_out.add(frame.len() as u64);
        for traffic in [&origin.peer.traffic, &network.traffic] {
            if let Some(mine) = traffic.get(self.worker) {
                mine.received(frame.len());
            }
        }
        let to = match network.all_inwards {
            Some(to) => to,
            None => self.inwards(now, network, frame),
        };
        let frame = OutFrame { span: at, checksum };
        out.list.push(Delivery { handle, vni: network.vni, to, frame });
        Ok(())
    }

    /// Which of several local ports a frame is for (rule F10).
    fn inwards(&mut self, now: Instant, network: &NetworkEntry, frame: &[u8]) -> To {
        let now_ms = self.clock.ms(now);
        let cache = &mut self.inward_destination;
        let place = EthernetView::new(frame)
            .ok()
            .map(|view| view.destination())
            .filter(|destination| !destination.is_multicast())
            .and_then(|destination| cache.lookup(network, destination, now_ms));
        network.inwards(place)
    }

    /// Marks a packet that met congestion, and lowers the segment size that a connection begins
    /// with: the other end's datagrams come back by this path.
    fn adapt(
        &mut self,
        network: &NetworkEntry,
        origin: &Origin<'_>,
        mark: u8,
        checksum: Checksum,
        frame: &mut [u8],
    ) -> Result<(), DropReason> {
        let outer_ecn = mark & ECN_CE;
        let congested = origin.peer.ecn && outer_ecn != 0;
        if !congested && !network.mss_clamp {
            return Ok(());
        }
        let Some(ip) = InnerIp::find(frame) else { return Ok(()) };
        if congested {
            match decap_ecn(ip.tos & 3, outer_ecn) {
                EcnOutcome::Keep => {}
                EcnOutcome::Set(ecn) => {
                    set_ecn(frame, &ip, ecn);
                    self.counters.ecn_marked.add(1);
                }
                EcnOutcome::Drop => return Err(DropReason::InnerEcnInvalid),
            }
        }
        if network.mss_clamp {
            let clear = origin.session.facts().suite == Suite::Clear;
            let overhead = if clear { CLEAR_OVERHEAD } else { SEALED_OVERHEAD };
            let expected = origin.peer.expected_udp_payload;
            let max_l3 = expected.saturating_sub(overhead + ip.l3_offset);
            if mss::clamp(frame, &ip, checksum, max_l3) {
                self.counters.mss_clamped.add(1);
            }
        }
        Ok(())
    }

    /// Checks an authentic frame and learns its source (rule F1).
    fn accept(
        &mut self,
        network: &NetworkEntry,
        handle: Handle,
        peer: &PeerEntry,
        frame: &[u8],
        now_ms: u64,
    ) -> Result<(), DropReason> {
        let view = EthernetView::new(frame).map_err(|_| DropReason::InnerFrameInvalid)?;
        if view.source().is_multicast() || view.source().is_zero() {
            return Err(DropReason::InnerFrameInvalid);
        }
        if !filter::passes(&view, network.stp) {
            return Err(DropReason::InnerFrameLinkLocal);
        }
        if network.looped {
            return Err(DropReason::NetworkLooped);
        }
        let place = Place::Peer(peer.index);
        let generation = network.fdb.generation();
        let cache = &self.source;
        let known = cache.mac == view.source()
            && cache.handle == handle
            && cache.place == Some(place)
            && cache.generation == generation
            && now_ms < cache.until_ms;
        if !known {
            if network.fdb.learn(view.source(), place, now_ms) == Learn::Refused {
                self.counters.learn_refused.add(1);
            } else {
                self.source = FdbCache {
                    handle,
                    mac: view.source(),
                    place: Some(place),
                    // From before: what moved meanwhile is looked at again.
                    generation,
                    until_ms: now_ms + 1_000,
                };
            }
        }
        Ok(())
    }
}

fn hold<'t>(tables: &'t Tables, header: &DataHeader) -> Result<Held<'t>, DropReason> {
    let session = tables.session(header.slot).ok_or(DropReason::SlotUnknown)?;
    let peer = tables.peer(session.facts().peer).ok_or(DropReason::SlotUnknown)?;
    let guard = session.lock_lane(header.lane).ok_or(DropReason::SlotUnknown)?;
    Ok(Held { slot: header.slot, lane: header.lane, session, peer, guard })
}

fn read_inner(bytes: &mut [u8]) -> Result<(InnerHeader, &mut [u8]), DropReason> {
    let (inner, payload) = bytes.split_first_chunk_mut().ok_or(DropReason::DatagramTruncated)?;
    let inner = InnerHeader::read(*inner).map_err(|_| DropReason::KindUnknown)?;
    Ok((inner, payload))
}

/// Whether both ends said that they take such a kind.
fn agreed(origin: &Origin<'_>, feature: Features) -> Result<(), DropReason> {
    let agreed = origin.session.facts().features.contains(feature);
    if agreed { Ok(()) } else { Err(DropReason::KindUnknown) }
}

/// A control payload for the control thread; heartbeats, of which there are many, are read here.
fn control_input(
    at: Instant,
    origin: &Origin<'_>,
    payload: &[u8],
) -> Result<ControlInput, DropReason> {
    let facts = origin.session.facts();
    let (slot, session, link) = (facts.local_slot, facts.serial, origin.link);
    let heartbeat = Message::read_heartbeat(payload).map_err(|_| DropReason::ControlInvalid)?;
    Ok(match heartbeat {
        Some(heartbeat) => {
            ControlInput::Pulse(Box::new(Pulse { slot, session, link, at, heartbeat }))
        }
        None => {
            let (from, payload) = (origin.from, payload.to_vec());
            ControlInput::Message { slot, session, link, from, payload }
        }
    })
}

fn report(session: &Session, opened: &session::Opened, control: &mut Burst<ControlInput>) {
    let (slot, serial) = (session.facts().local_slot, session.facts().serial);
    if opened.first {
        control.push(ControlInput::SessionProven { slot, session: serial });
    }
    if let Some(epoch) = opened.new_epoch {
        control.push(ControlInput::EpochOpened { slot, session: serial, epoch });
    }
}

/// Takes the explicit VNI of kind 1 off and gives our handle for it.
fn explicit_vni<'a>(
    tables: &Tables,
    payload: &'a mut [u8],
) -> Result<(Handle, &'a mut [u8]), DropReason> {
    let (&mut [a, b, c, _], frame) =
        payload.split_first_chunk_mut::<EXPLICIT_VNI_LEN>().ok_or(DropReason::DatagramTruncated)?;
    let vni = Vni::from_be_bytes([a, b, c]);
    let handle = tables.handles.get(&vni).copied().ok_or(DropReason::HandleUnknown)?;
    Ok((handle, frame))
}

const _: () = assert!(CLEAR_HEADER_LEN == 8);
