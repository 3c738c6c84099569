//! What one worker owns: its lanes, caches and counters. The two directions are [`crate::tx`] and
//! [`crate::rx`].

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::channel::hub::Hub;
pub use crate::channels::ChannelInput;
use crate::compress::{Compressor, Decompressor};
use crate::crypto::seal::{SealError, TxLane};
use crate::crypto::session::Session;
use crate::forward::fdb::Place;
use crate::forward::loop_probe::LoopProbe;
use crate::forward::policer::Policer;
use crate::forward::too_big::TooBigLimiter;
use crate::id::{LocalPort, PeerIndex, Vni};
use crate::link::id::{LinkIndex, MAX_LINKS};
use crate::link::resend::ResendRing;
use crate::reassembly::{FragmentDrop, Reassembler};
use crate::stats::{Counters, DropReason};
use crate::tables::{Clock, NetworkEntry, PeerEntry, Tables};
use crate::wire::buf::{BufPool, Burst, Checksum, Offload, OutFrame, PacketBuf, Pieces, Span};
use crate::wire::ethernet::MacAddr;
use crate::wire::header::{Handle, Lane, Slot};
use crate::wire::heartbeat::Heartbeat;

pub use crate::tables::To;

/// A frame for local ports, and the network it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Our handle of the network.
    pub handle: Handle,
    /// Its identifier.
    pub vni: Vni,
    /// Which of its ports get it.
    pub to: To,
    /// The frame.
    pub frame: OutFrame,
}

/// Frames for local ports, and the buffers that they lie in.
#[derive(Debug, Default)]
pub struct Deliveries {
    /// The buffers.
    pub pieces: Pieces,
    /// The frames, in the order they came.
    pub list: Vec<Delivery>,
}

impl Deliveries {
    /// Whether there is nothing, not even buffers to be given back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.pieces.0.is_empty()
    }

    /// Adds a frame that is complete.
    pub fn push_slice(&mut self, handle: Handle, vni: Vni, to: To, frame: &[u8]) {
        let span = Span { piece: self.pieces.0.len(), start: 0, len: frame.len() };
        self.pieces.0.push(PacketBuf::from_slice(frame));
        let frame = OutFrame { span, checksum: Checksum::Complete };
        self.list.push(Delivery { handle, vni, to, frame });
    }

    /// Moves all of `other` behind what is here.
    pub fn append(&mut self, other: &mut Self) {
        let before = self.pieces.0.len();
        self.pieces.0.append(&mut other.pieces.0);
        self.list.extend(other.list.drain(..).map(|mut delivery| {
            delivery.frame.span.piece += before;
            delivery
        }));
    }

    /// The frames with their bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&Delivery, &[u8])> {
        self.list.iter().map(|delivery| (delivery, self.pieces.get(delivery.frame.span)))
    }
}

/// A frame of a burst, and the peer it is for; none for all members of its network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) peer: Option<PeerIndex>,
    /// Index in its burst.
    pub(crate) frame: usize,
}

/// Who the frames of a burst are for, and how far they are done.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) handle: Handle,
    /// The local port that they came from.
    pub(crate) port: LocalPort,
    pub(crate) list: Vec<Planned>,
    /// The first one that is left to do.
    pub(crate) next: usize,
    /// Of a flood that is half done: the member to go on with.
    pub(crate) member: u32,
}

impl Plan {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        (self.next, self.member) = (0, 0);
    }

    pub(crate) fn push(&mut self, peer: Option<PeerIndex>, frame: usize) {
        self.list.push(Planned { peer, frame });
    }

    /// Number of frames left to do.
    pub(crate) fn left(&self) -> usize {
        self.list.len() - self.next.min(self.list.len())
    }
}

/// What a worker hands to the control thread, through a bounded queue.
#[derive(Debug)]
pub enum ControlInput {
    /// A handshake datagram.
    Long {
        /// By which local attachment it came.
        uplink: crate::wire::buf::UplinkId,
        /// From where.
        from: SocketAddr,
        /// All of it.
        datagram: Vec<u8>,
    },
    /// A handshake message that is not for us to read; a few a second are reported.
    Foreign {
        /// From where.
        from: SocketAddr,
        /// Its version and the highest that its sender speaks; none when only its key is unknown.
        version: Option<(u8, u8)>,
    },
    /// A heartbeat. Goes through a queue of its own, in which the newest displace the oldest.
    Pulse(Box<Pulse>),
    /// An authentic control message.
    Message {
        /// The session that it came in.
        slot: Slot,
        /// Serial number of that session, as slots are used again.
        session: u64,
        /// By which link it came.
        link: LinkIndex,
        /// From where.
        from: SocketAddr,
        /// The payload behind the inner header.
        payload: Vec<u8>,
    },
    /// An authentic path-MTU probe.
    Probe {
        /// The session that it came in.
        slot: Slot,
        /// Serial number of that session.
        session: u64,
        /// The probe's number.
        id: u32,
        /// Bytes of UDP payload.
        size: usize,
    },
    /// Something authentic came by a dynamic link from another address than before.
    Elsewhere {
        /// The session that it came in.
        slot: Slot,
        /// Serial number of that session.
        session: u64,
        /// The link.
        link: LinkIndex,
        /// The address.
        from: SocketAddr,
    },
    /// Frames go to or come from a peer whose heartbeats rest.
    Awake(PeerIndex),
    /// A loop probe came out of a network, or out of its tap.
    LoopProbe {
        /// The network.
        vni: Vni,
        /// What it says.
        probe: LoopProbe,
    },
    /// The first datagram of a session was opened.
    SessionProven {
        /// The session.
        slot: Slot,
        /// Its serial number.
        session: u64,
    },
    /// The first datagram of an epoch was opened.
    EpochOpened {
        /// The session.
        slot: Slot,
        /// Its serial number.
        session: u64,
        /// The epoch.
        epoch: u32,
    },
}

/// A heartbeat and how it came.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// The session that it came in.
    pub slot: Slot,
    /// Serial number of that session.
    pub session: u64,
    /// By which link.
    pub link: LinkIndex,
    /// When.
    pub at: Instant,
    /// What it says.
    pub heartbeat: Heartbeat,
}

/// The last FDB answer: most frames go where the one before went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FdbCache {
    pub(crate) handle: Handle,
    pub(crate) mac: MacAddr,
    pub(crate) place: Option<Place>,
    pub(crate) generation: u32,
    pub(crate) until_ms: u64,
}

impl FdbCache {
    pub(crate) const EMPTY: Self = Self {
        handle: Handle::NONE,
        mac: MacAddr([0; 6]),
        place: None,
        generation: 0,
        until_ms: 0,
    };

    /// Where `mac` is, by what is remembered or by the table.
    pub(crate) fn lookup(
        &mut self,
        network: &NetworkEntry,
        mac: MacAddr,
        now_ms: u64,
    ) -> Option<Place> {
        let (handle, generation) = (network.handle, network.fdb.generation());
        if self.mac == mac
            && self.handle == handle
            && self.generation == generation
            && now_ms < self.until_ms
        {
            return self.place;
        }
        let place = network.fdb.lookup(mac, now_ms);
        *self = Self { handle, mac, place, generation, until_ms: now_ms + 1_000 };
        place
    }
}

/// A frame for a peer whose handshake is under way.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) handle: Handle,
    /// The local port that it came from.
    pub(crate) port: LocalPort,
    pub(crate) peer: PeerIndex,
    pub(crate) frame: Vec<u8>,
    pub(crate) offload: Offload,
    pub(crate) until_ms: u64,
}

/// Handshake messages a second that a worker hands to the control thread: twice what that answers.
pub(crate) const LONGS_PER_SECOND: u32 = 2_000;
/// Most frames that wait for sessions; the oldest gives way.
pub(crate) const MAX_WAITING: usize = 128;
/// How long a frame waits, in ms: longer than a handshake, shorter than its sender's patience.
pub(crate) const WAITING_MS: u64 = 500;

/// Bytes of the buffers that frames are put together in: most fit.
const FRAGMENT_BUF_LEN: usize = 9_280;
/// Idle ones of these that are kept.
const MAX_FRAGMENT_BUFS: usize = 128;
/// Bytes of the buffers in which frames from one local port wait to go to another, many in each. No
/// other buffer has this size: by it they are told when they come back.
const LOCAL_BUF_LEN: usize = 64 << 10;
/// Idle ones of these that are kept.
const MAX_LOCAL_BUFS: usize = 8;

/// Datagrams a second that a worker tries from addresses where a dynamic link was not heard before.
const STRANGERS_PER_SECOND: u32 = 10_000;
/// Notices of such addresses a second.
const MOVES_PER_SECOND: u32 = 100;

/// One worker's half of the packet path. Made by [`crate::vtep::Vtep::datapath`].
///
/// First [`Self::resend`], then [`Self::admit`] and [`Self::encapsulate`]; send what is in `out`.
/// After [`Self::decapsulate`] write the frames in `out` and [`Self::release`] them, hand the control
/// inputs to the control thread, in this order, and say [`Self::end_pass`]. After either take
/// [`Self::take_returns`] and [`Self::take_news`].
#[derive(Debug)]
pub struct Datapath {
    pub(crate) tables: Arc<ArcSwap<Tables>>,
    pub(crate) clock: Clock,
    /// Which worker: selects its traffic counters.
    pub(crate) worker: usize,
    /// The lane that this worker sends in, one for each peer.
    pub(crate) lane: Lane,
    /// Sending contexts by peer index.
    pub(crate) lanes: Vec<Option<TxLane>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) policers: HashMap<Vni, Policer>,
    /// Rations what a stranger's datagram can make the control thread hear.
    pub(crate) notices: Policer,
    /// Rations handshake messages to the control thread: one recorded header makes any number.
    pub(crate) longs: Policer,
    /// Frames for peers without a session, which is usually a moment away.
    pub(crate) waiting: VecDeque<Waiting>,
    /// The tables that `waiting` was last held against.
    pub(crate) waiting_generation: u64,
    pub(crate) destination: FdbCache,
    /// The same for what peers sent to networks with several local ports.
    pub(crate) inward_destination: FdbCache,
    pub(crate) source: FdbCache,
    pub(crate) local_source: FdbCache,
    /// What was sealed lately, by peer index.
    pub(crate) rings: Vec<Option<ResendRing>>,
    /// By peer index, then by link: the failures that were made good.
    pub(crate) failures: Vec<[u32; MAX_LINKS]>,
    /// The tables that the rings were last held against.
    pub(crate) resend_generation: u64,
    /// Position in the round-robin.
    pub(crate) turn: u32,
    pub(crate) reassembler: Reassembler,
    /// Buffers of frames that are put together from fragments.
    pub(crate) fragment_pool: BufPool,
    /// Who the frames at hand are for.
    pub(crate) plan: Plan,
    /// The local port that what is being sealed came from.
    pub(crate) port: LocalPort,
    /// What is cut into fragments, or compressed.
    pub(crate) scratch: Vec<u8>,
    pub(crate) compressor: Compressor,
    /// Made when it is first wanted.
    pub(crate) decompressor: Option<Decompressor>,
    /// Bytes that may still be decompressed in this pass.
    pub(crate) decompressible: usize,
    pub(crate) fragment_id: u16,
    pub(crate) too_big: TooBigLimiter,
    /// Frames to go back into local ports, or from one of them to others.
    pub(crate) returns: Deliveries,
    /// Buffers of the latter.
    pub(crate) local_pool: BufPool,
    pub(crate) news: Burst<ControlInput>,
    /// Rations the decryption of what comes from unexpected addresses.
    pub(crate) unknown_sources: Policer,
    /// Rations notices of such addresses.
    pub(crate) moves: Policer,
    /// Rations notices of loop probes.
    pub(crate) probes: Policer,
    /// All channels of the node, in the first worker's.
    pub(crate) hub: Option<Box<Hub>>,
    /// The tables that the hub was last told of.
    pub(crate) hub_generation: u64,
    /// What came for the hub, in another worker's.
    pub(crate) channel_inputs: Vec<ChannelInput>,
    /// Passes over all sockets that are complete.
    passes: Arc<AtomicU64>,
}

impl Datapath {
    pub(crate) fn new(
        tables: Arc<ArcSwap<Tables>>,
        clock: Clock,
        worker: usize,
        lane: Lane,
    ) -> Self {
        let counters = Arc::<Counters>::default();
        let compressor = Compressor::new(Arc::clone(&counters));
        Self {
            tables,
            clock,
            worker,
            lane,
            lanes: Vec::new(),
            counters,
            policers: HashMap::new(),
            notices: Policer::new(clock.0, 10, 10),
            longs: Policer::new(clock.0, LONGS_PER_SECOND, LONGS_PER_SECOND / 10),
            waiting: VecDeque::new(),
            waiting_generation: 0,
            destination: FdbCache::EMPTY,
            inward_destination: FdbCache::EMPTY,
            source: FdbCache::EMPTY,
            local_source: FdbCache::EMPTY,
            rings: Vec::new(),
            failures: Vec::new(),
            resend_generation: 0,
            turn: 0,
            reassembler: Reassembler::new(),
            fragment_id: 0,
            too_big: TooBigLimiter::new(),
            returns: Deliveries::default(),
            local_pool: BufPool::new(LOCAL_BUF_LEN, MAX_LOCAL_BUFS),
            plan: Plan::default(),
            port: LocalPort::TAP,
            scratch: Vec::new(),
            compressor,
            decompressor: None,
            decompressible: 0,
            fragment_pool: BufPool::new(FRAGMENT_BUF_LEN, MAX_FRAGMENT_BUFS),
            news: Burst::new(),
            unknown_sources: Policer::new(clock.0, STRANGERS_PER_SECOND, STRANGERS_PER_SECOND / 10),
            moves: Policer::new(clock.0, MOVES_PER_SECOND, MOVES_PER_SECOND / 10),
            probes: Policer::new(clock.0, 10, 10),
            hub: None,
            hub_generation: 0,
            channel_inputs: Vec::new(),
            passes: Arc::default(),
        }
    }

    /// Number of complete passes, for the control half.
    pub(crate) fn passes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.passes)
    }

    /// All sockets were read, and what they gave was taken apart: what has not been seen now had not
    /// come when the pass before began.
    pub fn end_pass(&self) {
        self.passes.store(self.passes.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Whether [`Self::take_returns`] would give something.
    #[must_use]
    pub fn has_returns(&self) -> bool {
        !self.returns.is_empty()
    }

    /// Moves to `out` the frames that stay on this node: those from one local port for others, and
    /// ICMP messages that go back into the port that something came from.
    pub fn take_returns(&mut self, out: &mut Deliveries) {
        out.append(&mut self.returns);
    }

    /// Takes the buffers of frames back that were delivered: those of received datagrams go to
    /// `pool`.
    pub fn release(&mut self, deliveries: &mut Deliveries, pool: &mut BufPool) {
        deliveries.list.clear();
        for buf in deliveries.pieces.0.drain(..) {
            match buf.capacity() {
                FRAGMENT_BUF_LEN => self.fragment_pool.free(buf),
                LOCAL_BUF_LEN => self.local_pool.free(buf),
                _ => pool.free(buf),
            }
        }
    }

    /// What the control thread is to hear of.
    pub fn take_news(&mut self) -> impl Iterator<Item = ControlInput> {
        self.news.drain(..)
    }

    /// Frames go to or come from this peer: its heartbeats must not rest.
    pub(crate) fn keep_awake(&mut self, peer: &PeerEntry) {
        if peer.resting.load(Ordering::Relaxed) && peer.resting.swap(false, Ordering::Relaxed) {
            self.news.push(ControlInput::Awake(peer.index));
        }
    }

    /// Forgets what is over: sending contexts of sessions and epochs, incomplete frames, what was
    /// kept to be sent again. To be called about once a second.
    pub fn tidy(&mut self, now: Instant) {
        self.forget_old_lanes();
        self.reassembler.expire(self.clock.ms(now), &mut self.fragment_pool);
        self.count_fragments();
        for ring in self.rings.iter_mut().flatten() {
            ring.expire(now);
        }
    }

    pub(crate) fn count_fragments(&mut self) {
        for (reason, count) in self.reassembler.take_dropped() {
            let reason = match reason {
                FragmentDrop::Invalid => DropReason::FragmentInvalid,
                FragmentDrop::Duplicate => DropReason::FragmentDuplicate,
                FragmentDrop::NoMemory | FragmentDrop::TooMany => DropReason::FragmentDisplaced,
                FragmentDrop::Expired => DropReason::FragmentExpired,
            };
            self.counters.count_drops(reason, count);
        }
    }

    /// Wipes sending contexts of sessions and epochs that are over.
    pub fn forget_old_lanes(&mut self) {
        let tables = arc_swap::Guard::into_inner(self.tables.load());
        for (place, index) in self.lanes.iter_mut().zip(0..) {
            let session = tables.peer(PeerIndex(index)).and_then(|peer| peer.session.as_ref());
            let live = place.as_ref().zip(session).is_some_and(|(lane, session)| {
                lane.session() == session.facts().serial && lane.epoch() == session.tx_epoch()
            });
            if !live {
                *place = None;
            }
        }
    }

    /// Number of sending contexts held.
    #[must_use]
    pub fn held_lanes(&self) -> usize {
        self.lanes.iter().flatten().count()
    }

    /// Bytes of memory held for one peer: for what may be sent again, and for incomplete frames.
    #[must_use]
    pub fn held_bytes(&self, peer: PeerIndex) -> (usize, usize) {
        let ring = self.rings.get(peer.0 as usize).and_then(Option::as_ref);
        (ring.map_or(0, ResendRing::capacity), self.reassembler.peer_memory(peer.0))
    }

    /// Whether frames wait for a session: then [`Self::send_waiting`] is to be called soon.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// This worker's counters, for readers.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Takes so many packets from the BUM allowance of a network: all, or none.
    pub(crate) fn police(&mut self, vni: Vni, rate: u32, count: u32, now: Instant) -> bool {
        if rate == 0 {
            return true;
        }
        let fresh = || Policer::new(now, rate, (rate / 10).max(32));
        let policer = self.policers.entry(vni).or_insert_with(fresh);
        if !policer.is_rate(rate) {
            *policer = fresh();
        }
        policer.take_many(now, count)
    }

    /// This worker's sending context for `peer`, of a new epoch where one is due. The fragments of
    /// one frame stay in one epoch: only for the `first` one another begins.
    pub(crate) fn lane_for(
        &mut self,
        peer: &PeerEntry,
        session: &Session,
        first: bool,
    ) -> Result<&mut TxLane, DropReason> {
        let index = peer.index.0 as usize;
        if self.lanes.len() <= index {
            self.lanes.resize_with(index + 1, || None);
        }
        let serial = session.facts().serial;
        let oldest =
            self.rings.get(index).and_then(Option::as_ref).and_then(ResendRing::oldest_epoch);
        let place = self.lanes.get_mut(index).ok_or(DropReason::PeerNoSession)?;
        if first || place.as_ref().is_none_or(|lane| lane.session() != serial) {
            // What is kept of an earlier epoch could not be opened in the epoch after next.
            let held = oldest
                .zip(place.as_ref())
                .is_some_and(|((session, epoch), lane)| session == serial && epoch < lane.epoch());
            current_lane(place, session, self.lane, !held).map_err(drop_reason)?;
        }
        place.as_mut().ok_or(DropReason::KeyExhausted)
    }
}

pub(crate) fn drop_reason(error: SealError) -> DropReason {
    match error {
        SealError::Exhausted => DropReason::KeyExhausted,
        SealError::NoRoom => DropReason::FrameTooLarge,
    }
}

/// The context in `place` when it is of this session and epoch, else a new one.
pub(crate) fn current_lane<'a>(
    place: &'a mut Option<TxLane>,
    session: &Session,
    lane: Lane,
    may_rotate: bool,
) -> Result<&'a mut TxLane, SealError> {
    let serial = session.facts().serial;
    if let Some(current) = place
        && may_rotate
        && current.session() == serial
        && current.wants_rotation()
    {
        // Refused while the peer has not confirmed this epoch: the key goes on to its hard limit.
        session.rotate_tx(current.epoch());
    }
    let valid = place
        .as_ref()
        .is_some_and(|held| held.session() == serial && held.epoch() == session.tx_epoch());
    if !valid {
        *place = Some(session.tx_lane(lane)?);
    }
    place.as_mut().ok_or(SealError::Exhausted)
}
