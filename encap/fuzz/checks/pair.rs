//! Two nodes with a session between them, and a judge over everything that reaches either.
//!
//! Every wire is cut: a datagram arrives only through [`Pair::receive`], which knows what is
//! genuine, because it sees all that either side ever sent.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use encap::crypto::key::ClusterKey;
use encap::crypto::seal::TxLane;
use encap::crypto::session::Session;
use encap::datapath::ControlInput;
use encap::id::PeerIndex;
use encap::stats::DropReason;
use encap::tables::Tables;
use encap::wire::buf::UplinkId;
use encap::wire::header::{CLEAR_HEADER_LEN, DataHeader, Format, InnerHeader, Kind, Lane};

use super::world::{NodeIndex, Sent, World, address, config, frame, mac, vni};

/// Lane of what a hostile peer seals: never handed out by [`encap::vtep::Vtep::datapath`] here.
const HOSTILE_LANE: Lane = Lane::new(5, 0);
/// How often waiting datagrams are carried over while the nodes talk.
const CARRY: Duration = Duration::from_millis(10);

/// What is known of a sealed datagram that the script had made.
struct Sealed {
    /// The frame that may come out; none for a control message or what is no frame.
    frame: Option<Vec<u8>>,
    /// It is of the session that both sides began with.
    first: bool,
    /// It got as far as being opened once.
    spent: bool,
}

/// What a node shows of itself, to compare before and after.
struct View {
    datagrams: u64,
    frames: u64,
    control: u64,
    fragments: u64,
    worker_drops: Vec<u64>,
    control_drops: Vec<u64>,
    delivered: usize,
    sent: usize,
    tables: Arc<Tables>,
}

pub(crate) struct Pair {
    pub(crate) world: World,
    sealed: HashMap<Vec<u8>, Sealed>,
    /// What the nodes began with: the two ends of one session. A later one may have been agreed
    /// on with somebody who merely holds the cluster key.
    first: Vec<Arc<Session>>,
    /// Frames, by sender, that wait for a session.
    waiting: Vec<(NodeIndex, Vec<u8>)>,
    /// Sealed datagrams that were taken, by receiver.
    accepted: HashSet<(NodeIndex, Vec<u8>)>,
    /// Where a hostile peer's own sealing stands, by node and session.
    hostile: [Option<(u64, TxLane)>; 2],
    /// How much of [`World::sent`] was carried over by [`Self::talk`].
    carried: usize,
    /// Something happened that the next script would notice.
    pub(crate) used: bool,
}

impl Pair {
    /// Nodes 1 and 2, both up. The same every time.
    pub(crate) fn new() -> Self {
        let mut world = World::new(1);
        world.default_wire.cut = true;
        world.add(config(1, 2));
        world.add(config(2, 2));
        let mut pair = Self {
            world,
            sealed: HashMap::new(),
            first: Vec::new(),
            waiting: Vec::new(),
            accepted: HashSet::new(),
            hostile: [None, None],
            carried: 0,
            used: false,
        };
        pair.talk(Duration::from_millis(500));
        pair.world.assert_all_up(0);
        pair.world.assert_all_up(1);
        pair.first = (0..2).filter_map(|node| pair.session(node)).collect();
        pair.used = false;
        pair
    }

    /// The session that `node` sends by.
    fn session(&self, node: NodeIndex) -> Option<Arc<Session>> {
        self.world.nodes[node].vtep.tables().peer(PeerIndex(0))?.session.clone()
    }

    fn is_first(&self, node: NodeIndex, session: Option<&Arc<Session>>) -> bool {
        matches!((self.first.get(node), session), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }

    pub(crate) fn key(&self) -> ClusterKey {
        self.world.nodes[0].config.keys[0].clone()
    }

    /// Time passes; what is sent waits in [`World::sent`].
    pub(crate) fn wait(&mut self, time: Duration) {
        self.used = true;
        self.world.run_for(time);
    }

    /// Time passes and everything arrives that was sent since the last talk; for the second time,
    /// if the script delivered it before.
    pub(crate) fn talk(&mut self, time: Duration) {
        let end = self.world.now + time;
        self.carry();
        while self.world.now < end {
            self.wait(CARRY);
            self.carry();
        }
    }

    fn carry(&mut self) {
        while let Some(sent) = self.world.sent.get(self.carried).cloned() {
            self.carried += 1;
            let from = self.world.nodes[sent.from].addresses[0];
            self.receive(sent.to, from, &sent.bytes);
        }
    }

    /// A frame goes into the tap of `from`.
    pub(crate) fn send_frame(&mut self, from: NodeIndex, payload: &[u8]) {
        self.used = true;
        let bytes = frame(mac(2 - from as u16), mac(from as u16 + 1), payload);
        let before = self.world.sent.len();
        self.world.transmit(from, &bytes);
        let made: Vec<_> = self.world.sent[before..].iter().map(|s| s.bytes.clone()).collect();
        if made.is_empty() {
            self.waiting.push((from, bytes.clone()));
        }
        for sealed in made {
            self.note_sealed(from, sealed, Some(bytes.clone()));
        }
    }

    /// The peer itself is hostile: seals `payload` as whatever `inner` says.
    pub(crate) fn seal(
        &mut self,
        from: NodeIndex,
        inner: InnerHeader,
        payload: &[u8],
    ) -> Option<Vec<u8>> {
        self.used = true;
        let session = self.session(from)?;
        let serial = session.facts().serial;
        let place = &mut self.hostile[from];
        if place.as_ref().is_none_or(|(of, _)| *of != serial) {
            *place = session.tx_lane(HOSTILE_LANE).ok().map(|lane| (serial, lane));
        }
        let (_, lane) = place.as_mut()?;
        let sealed = lane.seal_payload(inner, payload).ok()?;
        let frame = match inner.kind {
            Kind::Frame | Kind::FramePartialChecksum => Some(payload.to_vec()),
            Kind::FrameWithVni => payload.get(4..).map(<[u8]>::to_vec),
            Kind::Control | Kind::Fragment | Kind::Probe => None,
            // Of neither end: no pair here names a feature.
            Kind::Bundle | Kind::Compressed | Kind::Channel | Kind::Unreliable => None,
        };
        self.note_sealed(from, sealed.clone(), frame);
        self.push_genuine(from, sealed.clone());
        Some(sealed)
    }

    /// The next datagrams of a hostile peer are of the next epoch, if it may begin one.
    pub(crate) fn rotate(&mut self, from: NodeIndex) {
        self.used = true;
        if let Some(session) = self.session(from) {
            session.rotate_tx(session.tx_epoch());
            self.hostile[from] = None;
        }
    }

    fn note_sealed(&mut self, from: NodeIndex, bytes: Vec<u8>, frame: Option<Vec<u8>>) {
        let first = self.is_first(from, self.session(from).as_ref());
        self.sealed.insert(bytes, Sealed { frame, first, spent: false });
    }

    /// What a holder of the keys made counts as sent by `from`.
    pub(crate) fn push_genuine(&mut self, from: NodeIndex, bytes: Vec<u8>) {
        self.used = true;
        self.world.sent.push(Sent { from, to: 1 - from, bytes });
    }

    fn is_genuine(&self, to: NodeIndex, bytes: &[u8]) -> bool {
        self.world.sent.iter().any(|sent| sent.to == to && sent.bytes == bytes)
    }

    fn view(&self, node: NodeIndex) -> View {
        let this = &self.world.nodes[node];
        let (worker, control) = (this.datapath.counters(), this.vtep.counters());
        View {
            datagrams: worker.datagrams_in.get(),
            frames: worker.frames_out.get(),
            control: worker.control_in.get() + worker.probes_in.get(),
            fragments: worker.fragments_in.get(),
            worker_drops: DropReason::ALL.iter().map(|reason| worker.dropped(*reason)).collect(),
            control_drops: DropReason::ALL.iter().map(|reason| control.dropped(*reason)).collect(),
            delivered: this.delivered.len(),
            sent: self.world.sent.len(),
            tables: this.vtep.tables(),
        }
    }

    /// A datagram reaches the socket of `to`.
    pub(crate) fn receive(&mut self, to: NodeIndex, from: SocketAddr, bytes: &[u8]) {
        let genuine = self.is_genuine(to, bytes);
        let before = self.view(to);
        self.world.inject(from, to, bytes.to_vec());
        let after = self.view(to);

        let worker = dropped(&before.worker_drops, &after.worker_drops);
        let control = dropped(&before.control_drops, &after.control_drops);
        let frames = after.frames - before.frames;
        let messages = after.control - before.control;
        let long = bytes.first().is_some_and(|first| Format::of(*first) == Format::Long);
        let handed_over = u64::from(long && worker.is_empty());
        assert_eq!(after.datagrams - before.datagrams, 1);
        assert_eq!((after.delivered - before.delivered) as u64, frames);
        let outcomes = worker.len() as u64 + frames + messages + handed_over;
        let piece = after.fragments - before.fragments == 1;
        // A fragment is kept without a word, or takes others down with it.
        assert!(outcomes == 1 || piece, "not counted exactly once: {worker:?}");
        assert!(control.len() as u64 <= messages + handed_over, "counted again: {control:?}");

        if handed_over == 1 {
            self.judge_handshake(genuine, &control, &before, &after, bytes);
            return;
        }
        let taken = frames + messages == 1 || piece && worker.is_empty();
        assert!(!taken || genuine, "took what nobody sealed");
        if !taken && !genuine {
            assert!(Arc::ptr_eq(&before.tables, &after.tables));
            assert_eq!(before.sent, after.sent, "answered a forged datagram");
        }
        self.used |= taken || genuine || !worker.iter().all(|reason| leaves_no_trace(*reason));
        if taken {
            assert_eq!(from.ip().to_canonical(), self.world.nodes[1 - to].addresses[0].ip());
            assert!(self.accepted.insert((to, bytes.to_vec())), "taken twice");
        }
        if frames == 1 {
            self.judge_frame(to, bytes);
        }
        if genuine {
            self.judge_refusal(to, from.ip(), bytes, worker.first().copied());
        }
    }

    /// A handshake datagram reaches the control half, with or without a worker's checks before.
    pub(crate) fn hand_over(&mut self, to: NodeIndex, from: SocketAddr, bytes: &[u8]) {
        let genuine = self.is_genuine(to, bytes);
        let before = self.view(to);
        let datagram = bytes.to_vec();
        self.control_input(to, ControlInput::Long { uplink: UplinkId(0), from, datagram });
        let after = self.view(to);
        let control = dropped(&before.control_drops, &after.control_drops);
        self.judge_handshake(genuine, &control, &before, &after, bytes);
    }

    /// Something about a session that is no more, as a late worker may say it: changes nothing.
    pub(crate) fn late_input(&mut self, to: NodeIndex, input: ControlInput) {
        let before = self.view(to);
        self.control_input(to, input);
        let after = self.view(to);
        assert!(Arc::ptr_eq(&before.tables, &after.tables));
        assert_eq!(before.sent, after.sent);
        assert!(dropped(&before.control_drops, &after.control_drops).is_empty());
    }

    fn control_input(&mut self, to: NodeIndex, input: ControlInput) {
        self.used = true;
        let now = self.world.now;
        self.world.nodes[to].vtep.handle_input(now, input);
        self.world.drain(to);
    }

    /// A forged handshake message is dropped by name, changes no table, and is not answered with
    /// more bytes than it has.
    fn judge_handshake(
        &mut self,
        genuine: bool,
        drops: &[DropReason],
        before: &View,
        after: &View,
        bytes: &[u8],
    ) {
        self.used = true;
        assert!(drops.len() <= 1, "counted again: {drops:?}");
        if genuine {
            return;
        }
        assert_eq!(drops.len(), 1, "took what nobody sent");
        assert!(Arc::ptr_eq(&before.tables, &after.tables));
        let answer: usize = self.world.sent[before.sent..].iter().map(|s| s.bytes.len()).sum();
        assert!(answer <= bytes.len(), "amplifies {} to {answer} bytes", bytes.len());
    }

    /// The frame is the one that was sealed; one that waited was sealed out of sight, but once.
    fn judge_frame(&mut self, to: NodeIndex, bytes: &[u8]) {
        let (network, frame) = self.world.nodes[to].delivered.last().unwrap();
        assert_eq!(*network, vni());
        if let Some(sealed) = self.sealed.get(bytes) {
            assert_eq!(sealed.frame.as_ref(), Some(frame));
            return;
        }
        let waited = self.waiting.iter().position(|(from, sent)| *from != to && sent == frame);
        self.waiting.swap_remove(waited.expect("a frame that nobody sent"));
    }

    /// A fresh datagram of a session that both sides still have is refused only for a reason that the
    /// rules name.
    fn judge_refusal(
        &mut self,
        to: NodeIndex,
        from: IpAddr,
        bytes: &[u8],
        reason: Option<DropReason>,
    ) {
        let right_source = from.to_canonical() == self.world.nodes[1 - to].addresses[0].ip();
        let slot = clear_header(bytes).map(|header| header.slot);
        let now = slot.and_then(|slot| self.world.nodes[to].vtep.tables().session(slot).cloned());
        let still_there = self.is_first(to, now.as_ref());
        let Some(sealed) = self.sealed.get_mut(bytes) else { return };
        let Some(reason) = reason else {
            sealed.spent = true;
            return;
        };
        if sealed.first && still_there && right_source && !sealed.spent {
            let impossible = [
                DropReason::DatagramTruncated,
                DropReason::FormatMismatch,
                DropReason::OpenFailed,
                DropReason::ReplayDuplicate,
                DropReason::SlotUnknown,
                DropReason::SourceUnknown,
            ];
            // A frame of a kind with a VNI may be too short for one.
            let short = reason == DropReason::DatagramTruncated && sealed.frame.is_none();
            assert!(short || !impossible.contains(&reason), "refused a fresh one: {reason:?}");
        }
        sealed.spent |= was_opened(reason);
    }
}

/// The reasons whose counters moved, each as often as it did. What a node drops of its own, while
/// it answers or sends what waited, is another packet.
fn dropped(before: &[u64], after: &[u64]) -> Vec<DropReason> {
    let mut reasons = Vec::new();
    for (reason, (before, after)) in DropReason::ALL.iter().zip(before.iter().zip(after)) {
        if !is_of_sending(*reason) {
            reasons.extend((*before..*after).map(|_| *reason));
        }
    }
    reasons
}

fn is_of_sending(reason: DropReason) -> bool {
    let others = [DropReason::KeyExhausted, DropReason::PeerNoSession, DropReason::NetworkUnknown];
    reason.name().starts_with("frame_") || others.contains(&reason)
}

fn clear_header(bytes: &[u8]) -> Option<DataHeader> {
    let clear: &[u8; CLEAR_HEADER_LEN] = bytes.first_chunk()?;
    Some(DataHeader::read(clear)).filter(|header| header.format == Format::Sealed)
}

/// Refused for what was inside: the number is used up.
fn was_opened(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::KindUnknown
            | DropReason::HandleUnknown
            | DropReason::NetworkNotMember
            | DropReason::InnerFrameInvalid
            | DropReason::InnerFrameLinkLocal
            | DropReason::InnerBadChecksum
            | DropReason::InnerEcnInvalid
            | DropReason::NetworkLooped
            | DropReason::ControlInvalid
            | DropReason::FragmentInvalid
            | DropReason::FragmentDuplicate
            | DropReason::FragmentDisplaced
            | DropReason::BundleInvalid
            | DropReason::CompressionInvalid
            | DropReason::DatagramTruncated
            | DropReason::ReplayDuplicate
    )
}

/// Drops that no ration is spent on: the next script finds the pair as this one did.
fn leaves_no_trace(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::DatagramTruncated
            | DropReason::FormatReserved
            | DropReason::FormatMismatch
            | DropReason::SlotUnknown
            | DropReason::SourceUnknown
            | DropReason::EpochUnknown
            | DropReason::ReplayDuplicate
            | DropReason::ReplayTooOld
            | DropReason::LongTypeUnknown
            | DropReason::LongInvalid
    )
}

/// Where a datagram for `to` says it is from: the peer in three spellings, a stranger, oneself.
pub(crate) fn source(to: NodeIndex, choice: u8) -> SocketAddr {
    let peer = address(2 - to as u16);
    match (choice % 8, peer.ip()) {
        (4, IpAddr::V4(ip)) => SocketAddr::new(ip.to_ipv6_mapped().into(), peer.port()),
        (5, ip) => SocketAddr::new(ip, peer.port() ^ 1),
        (6, _) => address(9),
        (7, _) => address(to as u16 + 1),
        _ => peer,
    }
}
