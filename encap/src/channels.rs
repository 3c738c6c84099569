//! The hub of channels in the datapath of the first worker: what was opened goes in, and what comes
//! out is sealed and sent.
//!
//! The other workers hand over what came to them ([`ChannelInput`]).

use std::sync::Arc;
use std::time::Instant;

use crate::channel::hub::{ChannelDrop, Hub, LinkView, Packet, PeerView, Progress, SessionView};
use crate::crypto::aead::Suite;
use crate::crypto::seal::ROOM_IN_FRONT;
use crate::datapath::{Datapath, drop_reason};
use crate::forward::marks;
use crate::forward::policy::Policy;
use crate::handshake::features::Features;
use crate::id::NodeId;
use crate::link::id::LinkIndex;
use crate::stats::DropReason;
use crate::tables::{PeerEntry, Tables};
use crate::tx::address;
use crate::wire::buf::Transmits;
use crate::wire::header::{CLEAR_OVERHEAD, Handle, InnerHeader, Kind, SEALED_OVERHEAD};

/// A channel packet or unreliable message that came to another worker than the hub's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInput {
    /// Who sent it.
    pub node: NodeId,
    /// The process that did.
    pub boot: u64,
    /// By which of our links it came.
    pub link: LinkIndex,
    /// [`Kind::Channel`] or [`Kind::Unreliable`].
    pub kind: Kind,
    /// The two ECN bits of its outer header.
    pub ecn: u8,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Datapath {
    /// The hub, in the first worker's datapath.
    pub fn hub(&mut self, now: Instant) -> Option<&mut Hub> {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        self.tell_hub(now, &tables);
        self.hub.as_deref_mut()
    }

    /// When [`Self::transmit_channels`] has something to do, if nothing happens before.
    #[must_use]
    pub fn channels_due(&self, now: Instant) -> Option<Instant> {
        let hub = self.hub.as_ref().filter(|hub| !hub.is_empty())?;
        let stale = self.tables.load().generation != self.hub_generation;
        if stale { Some(now) } else { hub.timeout(now) }
    }

    /// Whether there is anything to do for the hub now, besides programs.
    #[must_use]
    pub fn has_channel_work(&self, now: Instant) -> bool {
        let Some(hub) = &self.hub else { return false };
        let stale = self.tables.load().generation != self.hub_generation;
        hub.timeout(now).is_some_and(|due| due <= now) || stale && !hub.is_empty()
    }

    /// Seals about `budget` bytes of what channels have to send.
    pub fn transmit_channels(
        &mut self,
        now: Instant,
        budget: usize,
        out: &mut Transmits,
    ) -> Progress {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        self.tell_hub(now, &tables);
        let Some(mut hub) = self.hub.take() else { return Progress::default() };
        let progress = hub.transmit(now, budget, &mut |packet| {
            let sealed = self.seal_channel(&tables, &packet, out);
            if let Err(reason) = sealed {
                self.counters.count_drop(reason);
            }
            sealed.is_ok()
        });
        self.hub = Some(hub);
        progress
    }

    /// Takes what another worker handed over.
    pub fn handle_channel_input(&mut self, now: Instant, input: &ChannelInput) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        self.tell_hub(now, &tables);
        let ChannelInput { node, boot, link, kind, ecn, payload } = input;
        let outcome = self.give_to_hub(now, *node, *boot, *link, (*kind, *ecn), payload);
        if let Err(reason) = outcome {
            self.counters.count_drop(reason);
        }
    }

    /// What came for the hub of another worker.
    pub fn take_channel_inputs(&mut self) -> impl Iterator<Item = ChannelInput> {
        self.channel_inputs.drain(..)
    }

    /// Takes a payload of channels that was opened here.
    pub(crate) fn receive_channel(
        &mut self,
        now: Instant,
        tables: &Arc<Tables>,
        peer: &PeerEntry,
        (boot, link): (u64, LinkIndex),
        (kind, ecn): (Kind, u8),
        payload: &[u8],
    ) -> Result<(), DropReason> {
        self.counters.channel_packets_in.add(1);
        self.keep_awake(peer);
        if self.hub.is_some() {
            self.tell_hub(now, tables);
            return self.give_to_hub(now, peer.node, boot, link, (kind, ecn), payload);
        }
        let (node, payload) = (peer.node, payload.to_vec());
        self.channel_inputs.push(ChannelInput { node, boot, link, kind, ecn, payload });
        Ok(())
    }

    fn give_to_hub(
        &mut self,
        now: Instant,
        node: NodeId,
        boot: u64,
        link: LinkIndex,
        (kind, ecn): (Kind, u8),
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let Some(hub) = &mut self.hub else { return Err(DropReason::KindUnknown) };
        let outcome = match kind {
            Kind::Channel => hub.on_packet(now, node, boot, link, payload, ecn),
            _ => hub.on_unreliable(now, node, boot, payload),
        };
        outcome.map_err(|drop| match drop {
            ChannelDrop::Malformed => DropReason::ChannelInvalid,
            ChannelDrop::Stale => DropReason::ChannelStale,
            ChannelDrop::Duplicate => DropReason::ChannelDuplicate,
            ChannelDrop::Fault => DropReason::ChannelFault,
            ChannelDrop::NoRoom => DropReason::ChannelNoRoom,
        })
    }

    fn tell_hub(&mut self, now: Instant, tables: &Arc<Tables>) {
        if self.hub_generation == tables.generation {
            return;
        }
        self.hub_generation = tables.generation;
        let Some(hub) = &mut self.hub else { return };
        let mut turn = 0;
        let peers = tables.peers.iter().flatten();
        hub.set_peers(now, peers.map(|peer| view(peer, &mut turn)).collect());
    }

    fn seal_channel(
        &mut self,
        tables: &Tables,
        packet: &Packet<'_>,
        out: &mut Transmits,
    ) -> Result<(), DropReason> {
        let peer = tables.peer(packet.peer).ok_or(DropReason::PeerNoSession)?;
        let session = peer.session.as_deref().ok_or(DropReason::PeerNoSession)?;
        if session.facts().boot != packet.boot {
            return Err(DropReason::PeerNoSession);
        }
        self.keep_awake(peer);
        let start = out.memory.len();
        out.memory.resize(start + ROOM_IN_FRONT, 0);
        out.memory.extend_from_slice(packet.payload);
        let inner = InnerHeader { kind: packet.kind, handle: Handle::NONE };
        let sealed = self
            .lane_for(peer, session, true)
            .and_then(|lane| lane.seal(inner, &mut out.memory, start).map_err(drop_reason));
        if let Err(reason) = sealed {
            out.memory.truncate(start);
            return Err(reason);
        }
        let len = out.memory.len() - start;
        for link in packet.links.iter().filter(|link| address(peer, *link).is_some()) {
            self.counters.channel_packets_out.add(1);
            self.counters.datagrams_out.add(1);
            self.counters.datagram_bytes_out.add(len as u64);
            let base = peer.links.get(link.at()).map_or(0, |entry| entry.base_udp_payload);
            if let Some(meter) = peer.meter(self.worker, link) {
                meter.sent(len, len > base);
            }
        }
        let to = packet.links.iter().filter_map(|link| address(peer, link));
        let mark = marks::mark(&peer.dscp, false, None);
        out.extend_run(start, to.map(|(_, uplink, remote)| (uplink, remote)), mark);
        Ok(())
    }
}

/// What the hub is told of a peer.
fn view(peer: &PeerEntry, turn: &mut u32) -> PeerView {
    // A silent peer keeps its session for minutes, so that it need not begin anew.
    let session = peer.session.as_ref().filter(|_| peer.up);
    let session = session.filter(|s| s.facts().features.contains(Features::CHANNELS));
    let session = session.map(|session| {
        let facts = session.facts();
        let overhead = if facts.suite == Suite::Clear { CLEAR_OVERHEAD } else { SEALED_OVERHEAD };
        let link_view = |link: LinkIndex| {
            let entry = peer.links.get(link.at()).filter(|entry| entry.remote.is_some())?;
            let room = entry.max_udp_payload.saturating_sub(overhead);
            let (rtt, rtt_var) = entry.rtt;
            Some(LinkView { link, room, rtt, rtt_var })
        };
        let ordered = peer.ways.order.iter().map(|(link, _)| *link);
        let known = ordered.clone().collect();
        let others = peer.ways.live.minus(known);
        // Policies that spread frames have nothing to spread here: a channel is one flow.
        let policy = match peer.policy {
            Policy::Active { copies } => Policy::Active { copies },
            _ => Policy::Passive,
        };
        SessionView {
            boot: facts.boot,
            links: ordered.chain(others.iter()).filter_map(link_view).collect(),
            chosen: peer.ways.choose(policy, 0, turn),
            live: known.union(peer.ways.live),
            compression: facts.features.contains(Features::COMPRESSION),
            failures: peer.failures,
        }
    });
    PeerView { index: peer.index, node: peer.node, session }
}
