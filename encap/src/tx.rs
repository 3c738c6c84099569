//! Overlay to underlay: frames of one local port become datagrams, or go to other local ports.
//!
//! Read [`Datapath::admit`] and [`Datapath::encapsulate`] first: one line per stage. Frames are
//! taken in the order of their peers, so that those of one peer can share system calls; those of
//! one flow stay in order.
//!
//! Next: the uplink's `tx_burst`, in `fastpath`.

use std::time::Instant;

use crate::datapath::{
    ControlInput, Datapath, FdbCache, MAX_WAITING, Plan, Planned, WAITING_MS, Waiting,
};
use crate::forward::fdb::{Learn, Place};
use crate::forward::filter;
use crate::forward::loop_probe::LoopProbe;
use crate::id::{LocalPort, PeerIndex};
use crate::offload::MAX_SEGMENTS;
use crate::stats::DropReason;
use crate::tables::{NetworkEntry, Tables, To};
use crate::wire::buf::{FrameBurst, FrameRef, Offload, Transmits};
use crate::wire::ethernet::{EthernetView, MacAddr};
use crate::wire::header::Handle;
use alike::Alike;
use bundle::Bundle;

mod local;
mod outbound;
mod alike;
mod pack;
pub(crate) use pack::address;
mod bundle;
mod resend;

/// [`Datapath::encapsulate`] pauses to have sent what it made when that exceeds so many bytes.
pub const MAX_TRANSMIT_BYTES: usize = 256 << 10;

/// Frames that a frame stands for: its segments, which are at least as many as this.
fn segments(frame: FrameRef, len: usize) -> u32 {
    let segments = frame.offload.segmentation.map_or(1, |segmentation| {
        len.div_ceil(usize::from(segmentation.size.max(1))).clamp(1, MAX_SEGMENTS)
    });
    segments as u32
}

/// Who a frame is for.
enum Target {
    Peer(PeerIndex),
    /// Other local ports, and nobody else.
    Local(To),
    Flood,
}

/// What one call works with.
struct Pass<'t, 'o> {
    now: Instant,
    tables: &'t Tables,
    out: &'o mut Transmits,
    /// At the end of `out`: not sealed yet, as more may come in.
    bundle: Option<Bundle<'t>>,
    /// How the last frame left, where others may leave so.
    alike: Option<Alike<'t>>,
}

impl Pass<'_, '_> {
    fn is_full(&self) -> bool {
        self.out.memory.len() >= MAX_TRANSMIT_BYTES
    }
}

impl Datapath {
    /// Looks at `frames`, which came from a local port of the network with our `handle`: decides who
    /// each is for, and drops what may not pass. Those for other local ports are copied, for
    /// [`Self::take_returns`]. [`Self::encapsulate`] follows, with the same frames.
    pub fn admit(&mut self, now: Instant, handle: Handle, port: LocalPort, frames: &FrameBurst) {
        self.plan.clear();
        (self.plan.handle, self.plan.port) = (handle, port);
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        let Some(network) = tables.network(handle) else {
            self.counters.count_drops(DropReason::NetworkUnknown, frames.len() as u64);
            return;
        };
        let now_ms = self.clock.ms(now);
        for (index, (frame, bytes)) in (0..).zip(frames.iter()) {
            if network.looped {
                self.notice_probe(now, &tables, network, bytes);
                self.counters.count_drop(DropReason::NetworkLooped);
                continue;
            }
            self.counters.frames_in.add(1);
            self.counters.frame_bytes_in.add(bytes.len() as u64);
            let segments = segments(frame, bytes.len());
            if frame.offload.segmentation.is_some() {
                self.counters.super_frames_in.add(1);
            }
            let target = self
                .admit_frame(handle, network, port, bytes, now_ms)
                .and_then(|to| self.forward(now, now_ms, network, port, to, segments));
            let outcome = match target {
                Ok(Target::Peer(peer)) => {
                    self.plan.push(Some(peer), index);
                    continue;
                }
                Ok(Target::Local(to)) => self
                    .switch(network, to, bytes, frame.offload)
                    .map(|()| self.counters.frames_local.add(1)),
                Ok(Target::Flood) => self
                    .admit_flood(now, &tables, network, bytes, frame.offload)
                    .map(|()| self.plan.push(None, index)),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = outcome {
                self.counters.count_drop(reason);
            }
        }
        // Stable: what goes to one peer keeps its order. Floods go to all, and keep their place.
        let between_floods =
            self.plan.list.chunk_by_mut(|one, next| one.peer.is_some() && next.peer.is_some());
        for stretch in between_floods {
            if !stretch.is_sorted_by_key(|planned| planned.peer) {
                stretch.sort_by_key(|planned| planned.peer);
            }
        }
    }

    /// Other local ports get a flooded frame before anything is changed for the sake of a peer.
    fn admit_flood(
        &mut self,
        now: Instant,
        tables: &Tables,
        network: &NetworkEntry,
        frame: &[u8],
        offload: Offload,
    ) -> Result<(), DropReason> {
        self.notice_probe(now, tables, network, frame);
        self.counters.floods.add(1);
        match network.to_others(self.plan.port) {
            Some(to) => self.switch(network, to, frame, offload),
            None => Ok(()),
        }
    }

    /// Makes datagrams of the frames that [`Self::admit`] let pass; dropped ones are counted. False
    /// when there is more to do: send what is in `out`, clear it, call again.
    pub fn encapsulate(
        &mut self,
        now: Instant,
        frames: &mut FrameBurst,
        out: &mut Transmits,
    ) -> bool {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        let mut plan = std::mem::take(&mut self.plan);
        self.port = plan.port;
        let mut pass = Pass { now, tables: &tables, out, bundle: None, alike: None };
        let done = self.work_off(&mut pass, &mut plan, frames);
        self.close_bundle(&mut pass);
        self.plan = plan;
        done
    }

    fn work_off(
        &mut self,
        pass: &mut Pass<'_, '_>,
        plan: &mut Plan,
        frames: &mut FrameBurst,
    ) -> bool {
        let Some(network) = pass.tables.network(plan.handle) else {
            self.counters.count_drops(DropReason::NetworkUnknown, plan.left() as u64);
            plan.clear();
            return true;
        };
        while let Some(&Planned { peer, frame }) = plan.list.get(plan.next) {
            if pass.is_full() {
                return false;
            }
            let more = plan.list.get(plan.next + 1).is_some_and(|next| next.peer == peer);
            if let Some((offload, bytes)) = frames.get_mut(frame) {
                match peer {
                    Some(peer) => {
                        self.send_or_wait(pass, network, peer, bytes, offload, more);
                    }
                    None => {
                        let from = plan.member;
                        plan.member = self.flood(pass, network, from, bytes, offload);
                        if plan.member != 0 {
                            continue;
                        }
                    }
                }
            }
            plan.next += 1;
        }
        true
    }

    /// Sends what waited for a session that is there now; drops what waited too long.
    pub fn send_waiting(&mut self, now: Instant, out: &mut Transmits) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        let now_ms = self.clock.ms(now);
        // The oldest is in front: nothing has changed while it may wait and the tables are the same.
        let overdue = self.waiting.front().is_some_and(|oldest| oldest.until_ms <= now_ms);
        if !overdue && self.waiting_generation == tables.generation {
            return;
        }
        self.waiting_generation = tables.generation;
        let mut pass = Pass { now, tables: &tables, out, bundle: None, alike: None };
        for _ in 0..self.waiting.len() {
            let Some(mut waiting) = self.waiting.pop_front() else { break };
            let connecting = tables.peer(waiting.peer).is_some_and(|peer| peer.connecting);
            if connecting && now_ms < waiting.until_ms {
                self.waiting.push_back(waiting);
                continue;
            }
            let Waiting { handle, port, peer, mut offload, .. } = waiting;
            self.port = port;
            match tables.network(handle) {
                Some(network) => {
                    self.send(&mut pass, network, peer, &mut waiting.frame, &mut offload, false);
                }
                None => self.counters.count_drop(DropReason::NetworkUnknown),
            }
        }
    }

    /// Sends a frame, or keeps it for a moment while the peer's handshake is under way. `more` says
    /// that another one for the same peer follows.
    fn send_or_wait<'t>(
        &mut self,
        pass: &mut Pass<'t, '_>,
        network: &'t NetworkEntry,
        peer: PeerIndex,
        frame: &mut [u8],
        offload: &mut Offload,
        more: bool,
    ) {
        if !pass.tables.peer(peer).is_some_and(|peer| peer.connecting) {
            return self.send(pass, network, peer, frame, offload, more);
        }
        if self.waiting.len() >= MAX_WAITING && self.waiting.pop_front().is_some() {
            self.counters.count_drop(DropReason::PeerNoSession);
        }
        self.waiting.push_back(Waiting {
            handle: network.handle,
            port: self.port,
            peer,
            frame: frame.to_vec(),
            offload: *offload,
            until_ms: self.clock.ms(pass.now) + WAITING_MS,
        });
    }

    /// Checks the frame, learns its source as local, gives its destination.
    fn admit_frame(
        &mut self,
        handle: Handle,
        network: &NetworkEntry,
        port: LocalPort,
        frame: &[u8],
        now_ms: u64,
    ) -> Result<MacAddr, DropReason> {
        let view = EthernetView::new(frame).map_err(|_| DropReason::FrameTruncated)?;
        if !filter::passes(&view, network.stp) {
            return Err(DropReason::FrameLinkLocal);
        }
        let source = view.source();
        if source.is_multicast() || source.is_zero() {
            return Err(DropReason::FrameBadSource);
        }
        let place = Place::Local(port);
        let generation = network.fdb.generation();
        let cache = &self.local_source;
        let known = cache.mac == source
            && cache.handle == handle
            && matches!(cache.place, Some(Place::Local(at)) if at == port)
            && cache.generation == generation
            && now_ms < cache.until_ms;
        if !known {
            if network.fdb.learn(source, place, now_ms) == Learn::Refused {
                self.counters.learn_refused.add(1);
            } else {
                self.local_source = FdbCache {
                    handle,
                    mac: source,
                    place: Some(place),
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
        network: &NetworkEntry,
        port: LocalPort,
        to: MacAddr,
        segments: u32,
    ) -> Result<Target, DropReason> {
        let cache = &mut self.destination;
        let place = if to.is_multicast() { None } else { cache.lookup(network, to, now_ms) };
        match place {
            Some(Place::Peer(peer)) if network.member(peer).is_some_and(|m| m.present) => {
                Ok(Target::Peer(peer))
            }
            Some(Place::Local(at)) => {
                network.across(port, at).map(Target::Local).ok_or(DropReason::FrameLocalDestination)
            }
            _ if self.police(network.vni, network.bum_rate, segments, now) => Ok(Target::Flood),
            _ => Err(DropReason::FramePoliced),
        }
    }

    /// Head-end replication: one sealed copy for every member (rule F5). Frames that came from a
    /// peer never come here, so the overlay itself cannot loop (split horizon). Begins with the
    /// member at `from`; gives where to go on when there is enough in `out`, 0 when all have a copy.
    /// The other local ports have theirs already.
    fn flood<'t>(
        &mut self,
        pass: &mut Pass<'t, '_>,
        network: &'t NetworkEntry,
        from: u32,
        frame: &mut [u8],
        offload: &mut Offload,
    ) -> u32 {
        let mut any = from > 0;
        for (index, member) in (0u32..).zip(&network.members).skip(from as usize) {
            if !member.is_some_and(|member| member.present) {
                continue;
            }
            if pass.is_full() {
                return index;
            }
            any = true;
            let peer = PeerIndex(index);
            self.send_or_wait(pass, network, peer, frame, offload, false);
        }
        if !any && !network.local_ports.has_others(self.port) {
            self.counters.count_drop(DropReason::FrameNoMember);
        }
        0
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
}
