//! Underlay to overlay: datagrams become frames, and control inputs for the control thread.
//!
//! Read [`Datapath::decapsulate`] first: one line per stage. Cheap checks stand before dear ones,
//! and nothing that is not authentic changes anything but a counter.
//!
//! Next: the tap's `tx_burst`, in `fastpath`; control inputs go to [`crate::vtep`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::crypto::aead::Suite;
use crate::crypto::session::{LaneGuard, Opened, Session};
use crate::datapath::{ControlInput, Datapath, Delivery, FdbCache};
use crate::forward::fdb::{Learn, Place};
use crate::forward::filter;
use crate::id::Vni;
use crate::stats::DropReason;
use crate::tables::{NetworkEntry, PeerEntry, Tables, canonical};
use crate::wire::buf::{BufPool, Burst, Checksum, Datagram, Frame, PacketBuf};
use crate::wire::checksum;
use crate::wire::ethernet::EthernetView;
use crate::wire::header::{
    CLEAR_HEADER_LEN, DataHeader, EXPLICIT_VNI_LEN, Format, Handle, INNER_HEADER_LEN, InnerHeader,
    Kind, Lane, Slot,
};
use crate::wire::long::{LongError, LongHeader};

/// Where an authentic datagram came from.
type Origin<'t> = (&'t Arc<Session>, &'t Arc<PeerEntry>);

/// A session's lane that stays locked over a run of datagrams in it.
struct Held<'a> {
    slot: Slot,
    lane: Lane,
    session: &'a Arc<Session>,
    peer: &'a Arc<PeerEntry>,
    guard: LaneGuard<'a>,
}

impl Datapath {
    /// Takes `datagrams` apart; empties it. Frames go to `out`, what the control thread must see
    /// to `control`. Dropped datagrams are counted and their buffers go back to `pool`.
    pub fn decapsulate(
        &mut self,
        now: Instant,
        pool: &mut BufPool,
        datagrams: &mut Burst<Datagram>,
        out: &mut Burst<Delivery>,
        control: &mut Burst<ControlInput>,
    ) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        let now_ms = self.clock.ms(now);
        let mut held = None;
        for mut datagram in datagrams.drain(..) {
            self.counters.datagrams_in.add(1);
            self.counters.datagram_bytes_in.add(datagram.buf.len() as u64);
            let outcome = self.classify(now, &tables, &datagram, control).and_then(|header| {
                let Some(header) = header else { return Ok(None) };
                let (session, peer) =
                    self.open(&tables, &mut held, &header, &mut datagram, now_ms, control)?;
                self.dispatch(&tables, session, peer, &mut datagram.buf, now_ms, control)
            });
            match outcome {
                Ok(Some((handle, vni, checksum))) => {
                    let frame = Frame { buf: datagram.buf, checksum };
                    out.push(Delivery { handle, vni, frame });
                }
                Ok(None) => pool.free(datagram.buf),
                Err(reason) => {
                    self.counters.count_drop(reason);
                    pool.free(datagram.buf);
                }
            }
        }
    }

    /// Gives the header of a data datagram; hands a plausible handshake message on.
    fn classify(
        &mut self,
        now: Instant,
        tables: &Tables,
        datagram: &Datagram,
        control: &mut Burst<ControlInput>,
    ) -> Result<Option<DataHeader>, DropReason> {
        let bytes = datagram.buf.data();
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
                let from = datagram.remote;
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
                let uplink = datagram.uplink;
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
    fn open<'t>(
        &self,
        tables: &'t Tables,
        held: &mut Option<Held<'t>>,
        header: &DataHeader,
        datagram: &mut Datagram,
        now_ms: u64,
        control: &mut Burst<ControlInput>,
    ) -> Result<Origin<'t>, DropReason> {
        let same = held.as_ref().is_some_and(|h| h.slot == header.slot && h.lane == header.lane);
        if !same {
            // Two lanes of one session must never be locked at once.
            *held = None;
            *held = Some(hold(tables, header)?);
        }
        let Some(Held { session, peer, guard, .. }) = held.as_mut() else {
            return Err(DropReason::SlotUnknown);
        };
        let clear_session = session.facts().suite == Suite::Clear;
        if clear_session != (header.format == Format::Clear) {
            return Err(DropReason::FormatMismatch);
        }
        if !peer.sources.contains(&canonical(datagram.remote)) {
            return Err(DropReason::SourceUnknown);
        }
        let opened = session.open(guard, header, &mut datagram.buf, now_ms)?;
        report(session, opened, control);
        Ok((session, peer))
    }

    /// Reads the inner header and takes the payload where its kind says.
    fn dispatch(
        &mut self,
        tables: &Tables,
        session: &Session,
        peer: &PeerEntry,
        buf: &mut PacketBuf,
        now_ms: u64,
        control: &mut Burst<ControlInput>,
    ) -> Result<Option<(Handle, Vni, Checksum)>, DropReason> {
        let inner = *buf.data().first_chunk().ok_or(DropReason::DatagramTruncated)?;
        let inner = InnerHeader::read(inner).map_err(|_| DropReason::KindUnknown)?;
        buf.trim_front(INNER_HEADER_LEN);
        let handle = match inner.kind {
            Kind::Control => {
                self.counters.control_in.add(1);
                let facts = session.facts();
                let (slot, session) = (facts.local_slot, facts.serial);
                control.push(ControlInput::Message { slot, session, payload: buf.data().to_vec() });
                return Ok(None);
            }
            Kind::Frame | Kind::FramePartialChecksum => inner.handle,
            Kind::FrameWithVni => explicit_vni(tables, buf)?,
        };
        let network = tables.network(handle).ok_or(DropReason::HandleUnknown)?;
        let checksum = if inner.kind == Kind::FramePartialChecksum {
            // Nothing in clear mode vouches for it, and what does not parse cannot be completed.
            let partial = checksum::derive_partial(buf.data());
            if session.facts().suite == Suite::Clear {
                return Err(DropReason::InnerBadChecksum);
            }
            partial.ok_or(DropReason::InnerBadChecksum)?
        } else {
            Checksum::Complete
        };
        self.accept(network, handle, peer, buf, now_ms)?;
        Ok(Some((handle, network.vni, checksum)))
    }

    /// Checks an authentic frame and learns its source (rule F1).
    fn accept(
        &mut self,
        network: &NetworkEntry,
        handle: Handle,
        peer: &PeerEntry,
        buf: &PacketBuf,
        now_ms: u64,
    ) -> Result<(), DropReason> {
        network.member(peer.index).ok_or(DropReason::NetworkNotMember)?;
        let view = EthernetView::new(buf.data()).map_err(|_| DropReason::InnerFrameInvalid)?;
        if view.source().is_multicast() || view.source().is_zero() {
            return Err(DropReason::InnerFrameInvalid);
        }
        if !filter::passes(&view, network.stp) {
            return Err(DropReason::InnerFrameLinkLocal);
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
        self.counters.frames_out.add(1);
        self.counters.frame_bytes_out.add(buf.len() as u64);
        for traffic in [&peer.traffic, &network.traffic] {
            if let Some(mine) = traffic.get(self.worker) {
                mine.received(buf.len());
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

fn report(session: &Session, opened: Opened, control: &mut Burst<ControlInput>) {
    let (slot, serial) = (session.facts().local_slot, session.facts().serial);
    if opened.first {
        control.push(ControlInput::SessionProven { slot, session: serial });
    }
    if let Some(epoch) = opened.new_epoch {
        control.push(ControlInput::EpochOpened { slot, session: serial, epoch });
    }
}

/// Takes the explicit VNI of kind 1 off and gives our handle for it.
fn explicit_vni(tables: &Tables, buf: &mut PacketBuf) -> Result<Handle, DropReason> {
    let [a, b, c, _] =
        *buf.data().first_chunk::<EXPLICIT_VNI_LEN>().ok_or(DropReason::DatagramTruncated)?;
    buf.trim_front(EXPLICIT_VNI_LEN);
    let vni = Vni::from_be_bytes([a, b, c]);
    tables.handles.get(&vni).copied().ok_or(DropReason::HandleUnknown)
}

const _: () = assert!(CLEAR_HEADER_LEN == 8);
