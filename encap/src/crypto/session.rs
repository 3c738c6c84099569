//! What one handshake gave: two directions of epochs, 256 lanes each.
//!
//! A session is shared by all threads. Sending: each thread takes a [`TxLane`] of its own by
//! [`Session::tx_lane`] and keeps it. Receiving: lanes are locked one by one; since lanes are
//! steered to workers the lock is as good as always free. Rules E1 to E6 are in
//! `docs/protocol.md`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::aead::Suite;
use super::key::EpochSecret;
use super::open::RxLane;
use super::seal::{KeyLimits, SealError, TxLane};
use crate::handshake::features::Features;
use crate::id::PeerIndex;
use crate::stats::DropReason;
use crate::wire::header::{DataHeader, Lane, Slot};

/// Failed first datagrams of lanes that were never used which a session tries in one second, so
/// that a forger cannot have a key derived for any number of junk datagrams: at 2 us each, 2 % of a
/// core (rule R4).
const UNPROVEN_TRIES_PER_SECOND: u32 = 10_000;

/// A poisoned lock means that another thread panicked; what it guards here is valid at any step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fixed facts of a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionFacts {
    /// Differs for every session of this process.
    pub serial: u64,
    /// The peer at the other end.
    pub peer: PeerIndex,
    /// Our index: what the peer writes into its datagrams.
    pub local_slot: Slot,
    /// The peer's index: what we write.
    pub remote_slot: Slot,
    /// What protects the datagrams.
    pub suite: Suite,
    /// What both sides take (rule G10).
    pub features: Features,
    /// The number that the peer's process drew when it was started.
    pub boot: u64,
    /// How much one key may seal.
    pub limits: KeyLimits,
}

#[derive(Debug)]
struct TxEpoch {
    number: u32,
    secret: EpochSecret,
    /// Lanes handed out in this epoch: never handed out again (rule L2).
    issued: [bool; Lane::COUNT],
}

#[derive(Debug)]
struct RxEpochs {
    /// The highest epoch in which something was opened.
    highest: u32,
    /// Secrets of `highest - 1` (from the first rotation on), `highest` and `highest + 1`.
    previous: Option<EpochSecret>,
    current: EpochSecret,
    next: EpochSecret,
    tries: u32,
    tries_second: u64,
}

impl RxEpochs {
    fn secret(&self, epoch: u32) -> Option<&EpochSecret> {
        if epoch == self.highest {
            Some(&self.current)
        } else if epoch == self.highest.wrapping_add(1) {
            Some(&self.next)
        } else if epoch.wrapping_add(1) == self.highest {
            self.previous.as_ref()
        } else {
            None
        }
    }
}

#[derive(Debug)]
struct LaneEpoch {
    epoch: u32,
    lane: RxLane,
}

/// One lane's contexts by the two epoch bits.
type LaneSlots = [Option<Box<LaneEpoch>>; 4];

/// A locked lane of a session: kept over a run of datagrams of the same lane.
#[derive(Debug)]
pub(crate) struct LaneGuard<'a>(MutexGuard<'a, LaneSlots>);

/// What a successfully opened datagram changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Opened {
    /// It was the first of the session.
    pub(crate) first: bool,
    /// It was the first of a new epoch, this one.
    pub(crate) new_epoch: Option<u32>,
    /// Its epoch.
    pub(crate) epoch: u32,
    /// Where in it the inner header and the payload lie.
    pub(crate) inner: Range<usize>,
}

/// Keys, epochs, lanes and windows shared with one peer.
#[derive(Debug)]
pub struct Session {
    facts: SessionFacts,
    tx: Mutex<TxEpoch>,
    /// Mirror of `tx.number`, read for every datagram.
    tx_epoch: AtomicU32,
    /// Highest of our epochs that the peer says it opened.
    tx_confirmed: AtomicU32,
    rx: Mutex<RxEpochs>,
    /// Mirror of `rx.highest`.
    rx_highest: AtomicU32,
    lanes: Box<[Mutex<LaneSlots>]>,
    /// Whether anything was ever opened.
    proven: AtomicBool,
    /// When anything was last opened, in ms of [`crate::tables::Clock`].
    last_opened: AtomicU64,
}

impl Session {
    /// A session from the secrets of its two directions.
    #[must_use]
    pub fn new(facts: SessionFacts, tx: EpochSecret, rx: EpochSecret) -> Self {
        let next = rx.next();
        Self {
            facts,
            tx: Mutex::new(TxEpoch { number: 0, secret: tx, issued: [false; Lane::COUNT] }),
            tx_epoch: AtomicU32::new(0),
            tx_confirmed: AtomicU32::new(0),
            rx: Mutex::new(RxEpochs {
                highest: 0,
                previous: None,
                current: rx,
                next,
                tries: 0,
                tries_second: 0,
            }),
            rx_highest: AtomicU32::new(0),
            lanes: (0..Lane::COUNT).map(|_| Mutex::default()).collect(),
            proven: AtomicBool::new(false),
            last_opened: AtomicU64::new(0),
        }
    }

    /// The fixed facts.
    #[must_use]
    pub fn facts(&self) -> &SessionFacts {
        &self.facts
    }

    /// The epoch that is sent in.
    #[must_use]
    pub fn tx_epoch(&self) -> u32 {
        self.tx_epoch.load(Ordering::Acquire)
    }

    /// The highest epoch in which something was opened.
    #[must_use]
    pub fn rx_epoch(&self) -> u32 {
        self.rx_highest.load(Ordering::Acquire)
    }

    /// Whether anything was ever opened: the peer holds the keys.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Acquire)
    }

    /// When anything was last opened, in ms of the node's clock; 0 for never.
    #[must_use]
    pub fn last_opened_ms(&self) -> u64 {
        self.last_opened.load(Ordering::Relaxed)
    }

    /// A sending context for `lane` that nobody had before in the present epoch; begins the next
    /// epoch if somebody had (rule L2).
    ///
    /// # Errors
    /// [`SealError::Exhausted`] when the lane was taken and the next epoch may not begin yet.
    pub fn tx_lane(&self, lane: Lane) -> Result<TxLane, SealError> {
        let mut tx = lock(&self.tx);
        if tx.issued.get(usize::from(lane.0)) == Some(&true) && !self.advance_tx(&mut tx) {
            return Err(SealError::Exhausted);
        }
        if let Some(issued) = tx.issued.get_mut(usize::from(lane.0)) {
            *issued = true;
        }
        Ok(TxLane::new(
            self.facts.suite,
            &tx.secret.lane(lane),
            self.facts.limits,
            (self.facts.remote_slot, lane),
            (self.facts.serial, tx.number),
        ))
    }

    /// Begins the epoch after `from`, unless somebody did already or the peer has not confirmed
    /// `from` yet (rule E3). Says whether an epoch after `from` is in force now.
    pub fn rotate_tx(&self, from: u32) -> bool {
        if self.tx_confirmed.load(Ordering::Acquire) < from {
            // Asked for every packet while the peer is slow: no lock for that.
            return self.tx_epoch() != from;
        }
        let mut tx = lock(&self.tx);
        tx.number != from || self.advance_tx(&mut tx)
    }

    fn advance_tx(&self, tx: &mut TxEpoch) -> bool {
        if self.tx_confirmed.load(Ordering::Acquire) < tx.number {
            return false;
        }
        let Some(number) = tx.number.checked_add(1) else { return false };
        // The old secret is wiped as it is dropped here.
        *tx = TxEpoch { number, secret: tx.secret.next(), issued: [false; Lane::COUNT] };
        self.tx_epoch.store(number, Ordering::Release);
        true
    }

    /// The peer says that it opened something in `epoch` of ours.
    pub fn confirm_tx(&self, epoch: u32) {
        if epoch <= self.tx_epoch() {
            self.tx_confirmed.fetch_max(epoch, Ordering::AcqRel);
        }
    }

    /// Locks the lane that `header` names.
    pub(crate) fn lock_lane(&self, lane: Lane) -> Option<LaneGuard<'_>> {
        self.lanes.get(usize::from(lane.0)).map(|lane| LaneGuard(lock(lane)))
    }

    /// Checks, opens and commits `datagram`, which `header` was read from.
    pub(crate) fn open(
        &self,
        guard: &mut LaneGuard<'_>,
        header: &DataHeader,
        datagram: &mut [u8],
        now_ms: u64,
    ) -> Result<Opened, DropReason> {
        let epoch = self.epoch_of(header.epoch_bits).ok_or(DropReason::EpochUnknown)?;
        let slot =
            guard.0.get_mut(usize::from(header.epoch_bits & 3)).ok_or(DropReason::EpochUnknown)?;
        let inner = match slot {
            Some(context) if context.epoch == epoch => context.lane.open(header, datagram)?,
            _ => self.open_first(guard, epoch, header, datagram, now_ms)?,
        };
        self.last_opened.store(now_ms.max(1), Ordering::Relaxed);
        let first = !self.is_proven() && !self.proven.swap(true, Ordering::AcqRel);
        let new_epoch = (epoch > self.rx_epoch()).then(|| self.advance_rx(epoch)).flatten();
        Ok(Opened { first, new_epoch, epoch, inner })
    }

    /// The only epoch near the highest one that has these two low bits (rule E2).
    fn epoch_of(&self, bits: u8) -> Option<u32> {
        let highest = self.rx_epoch();
        let lowest = highest.saturating_sub(1);
        (lowest..=highest.saturating_add(1)).find(|epoch| (epoch & 3) as u8 == bits)
    }

    /// Opens the first datagram of a lane in an epoch, with a context derived for it.
    ///
    /// The context of a lane that is in use in another epoch is kept even if this datagram is
    /// forged: there is one for each epoch at most, and a rotation must not have to win a race
    /// against forgers. That of a lane that was never used is kept only if the datagram is
    /// authentic, and failures are rationed (rule R4).
    fn open_first(
        &self,
        guard: &mut LaneGuard<'_>,
        epoch: u32,
        header: &DataHeader,
        datagram: &mut [u8],
        now_ms: u64,
    ) -> Result<Range<usize>, DropReason> {
        let in_use = guard.0.iter().any(Option::is_some);
        let lane_key = {
            let mut rx = lock(&self.rx);
            let second = now_ms / 1_000;
            if rx.tries_second != second {
                (rx.tries_second, rx.tries) = (second, 0);
            }
            if !in_use && rx.tries >= UNPROVEN_TRIES_PER_SECOND {
                return Err(DropReason::LaneUnproven);
            }
            rx.secret(epoch).ok_or(DropReason::EpochUnknown)?.lane(header.lane)
        };
        let mut lane = RxLane::new(&lane_key);
        let outcome = lane.open(header, datagram);
        if outcome.is_ok() || in_use {
            if let Some(slot) = guard.0.get_mut(usize::from(header.epoch_bits & 3)) {
                *slot = Some(Box::new(LaneEpoch { epoch, lane }));
            }
        } else {
            lock(&self.rx).tries += 1;
        }
        outcome
    }

    /// Something of the next epoch was opened: it is the current one from now on (rule E4).
    fn advance_rx(&self, epoch: u32) -> Option<u32> {
        let mut rx = lock(&self.rx);
        if epoch != rx.highest.checked_add(1)? {
            return None;
        }
        let next = rx.next.next();
        let current = std::mem::replace(&mut rx.next, next);
        rx.previous = Some(std::mem::replace(&mut rx.current, current));
        rx.highest = epoch;
        self.rx_highest.store(epoch, Ordering::Release);
        Some(epoch)
    }

    /// Wipes what could open epochs before `epoch`, once their stragglers are in (rule E5).
    pub fn wipe_rx_before(&self, epoch: u32) {
        {
            let mut rx = lock(&self.rx);
            if rx.highest.checked_sub(1).is_some_and(|previous| previous < epoch) {
                rx.previous = None;
            }
        }
        for lane in &self.lanes {
            for slot in lock(lane).iter_mut() {
                if slot.as_ref().is_some_and(|context| context.epoch < epoch) {
                    *slot = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::seal::ROOM_IN_FRONT;
    use crate::wire::header::{CLEAR_HEADER_LEN, Handle, InnerHeader, Kind};

    const LIMITS: KeyLimits =
        KeyLimits { soft_packets: 4, hard_packets: 6, ..KeyLimits::AES_256_GCM };

    fn pair(limits: KeyLimits) -> (Session, Session) {
        let ab = EpochSecret::first(&[1; 32], &[9; 32], Suite::Aes256Gcm);
        let ba = EpochSecret::first(&[2; 32], &[9; 32], Suite::Aes256Gcm);
        let facts = SessionFacts {
            serial: 1,
            peer: PeerIndex(0),
            local_slot: Slot(5),
            remote_slot: Slot(6),
            suite: Suite::Aes256Gcm,
            features: Features::NONE,
            boot: 0,
            limits,
        };
        let other = SessionFacts { local_slot: Slot(6), remote_slot: Slot(5), ..facts };
        (Session::new(facts, ab.clone(), ba.clone()), Session::new(other, ba, ab))
    }

    const INNER: InnerHeader = InnerHeader { kind: Kind::Frame, handle: Handle::NONE };

    fn try_seal(lane: &mut TxLane, text: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut out = b"before".to_vec();
        out.extend([0; ROOM_IN_FRONT]);
        out.extend(text);
        lane.seal(INNER, &mut out, 6)?;
        assert_eq!(out.drain(..6).as_slice(), b"before");
        Ok(out)
    }

    fn sealed(lane: &mut TxLane, text: &[u8]) -> Vec<u8> {
        try_seal(lane, text).unwrap()
    }

    fn open_at(session: &Session, bytes: &mut [u8], now_ms: u64) -> Result<Opened, DropReason> {
        let clear: [u8; CLEAR_HEADER_LEN] = bytes[..CLEAR_HEADER_LEN].try_into().unwrap();
        let header = DataHeader::read(&clear);
        let mut guard = session.lock_lane(header.lane).unwrap();
        session.open(&mut guard, &header, bytes, now_ms)
    }

    fn open(session: &Session, bytes: &mut [u8]) -> Result<Opened, DropReason> {
        open_at(session, bytes, 1_000)
    }

    #[test]
    fn carries_text_once_and_costs_26_bytes() {
        let (a, b) = pair(KeyLimits::AES_256_GCM);
        let mut lane = a.tx_lane(Lane::new(0, 0)).unwrap();
        let mut buf = sealed(&mut lane, b"frame");
        assert_eq!(buf.len(), 5 + 26);
        let mut copy = buf.clone();
        let opened = open(&b, &mut buf).unwrap();
        assert_eq!(opened, Opened { first: true, new_epoch: None, epoch: 0, inner: 8..15 });
        assert_eq!(buf[opened.inner], [&INNER.write()[..], b"frame"].concat());
        assert_eq!(open(&b, &mut copy), Err(DropReason::ReplayDuplicate));
    }

    #[test]
    fn a_reflected_datagram_does_not_open() {
        let (a, _) = pair(KeyLimits::AES_256_GCM);
        let mut buf = sealed(&mut a.tx_lane(Lane::new(0, 0)).unwrap(), b"frame");
        assert_eq!(open(&a, &mut buf), Err(DropReason::OpenFailed));
        assert!(!a.is_proven());
    }

    #[test]
    fn a_lane_is_handed_out_once_in_an_epoch() {
        let (a, _) = pair(KeyLimits::AES_256_GCM);
        assert_eq!(a.tx_lane(Lane(0)).unwrap().epoch(), 0);
        assert_eq!(a.tx_lane(Lane(0)).unwrap().epoch(), 1, "epoch 1 is entered freely");
        assert_eq!(a.tx_lane(Lane(0)).unwrap_err(), SealError::Exhausted, "epoch 1 unconfirmed");
        assert_eq!(a.tx_lane(Lane(1)).unwrap().epoch(), 1);
        a.confirm_tx(1);
        assert_eq!(a.tx_lane(Lane(0)).unwrap().epoch(), 2);
    }

    #[test]
    fn a_future_confirmation_is_ignored() {
        let (a, _) = pair(KeyLimits::AES_256_GCM);
        a.confirm_tx(7);
        assert!(a.rotate_tx(0));
        assert!(!a.rotate_tx(1));
    }

    #[test]
    fn soft_limit_asks_and_hard_limit_refuses() {
        let (a, _) = pair(LIMITS);
        let mut lane = a.tx_lane(Lane(0)).unwrap();
        for number in 0..6 {
            assert_eq!(lane.wants_rotation(), number >= 4);
            sealed(&mut lane, b"x");
        }
        assert_eq!(try_seal(&mut lane, b"x"), Err(SealError::Exhausted));
        let blocks = KeyLimits { soft_blocks: 2, hard_blocks: 5, ..KeyLimits::AES_256_GCM };
        let (a, _) = pair(blocks);
        let mut lane = a.tx_lane(Lane(0)).unwrap();
        sealed(&mut lane, b"one block");
        assert!(lane.wants_rotation());
        sealed(&mut lane, b"one block");
        assert_eq!(try_seal(&mut lane, b"one block"), Err(SealError::Exhausted));
    }

    #[test]
    fn stragglers_of_the_previous_epoch_open_until_wiped() {
        let (a, b) = pair(KeyLimits::AES_256_GCM);
        let mut old = a.tx_lane(Lane(0)).unwrap();
        let (mut first, mut late, mut later) =
            (sealed(&mut old, b"1"), sealed(&mut old, b"2"), sealed(&mut old, b"3"));
        assert!(open(&b, &mut first).is_ok());
        assert!(a.rotate_tx(0));
        let mut new = sealed(&mut a.tx_lane(Lane(0)).unwrap(), b"4");
        assert_eq!(open(&b, &mut new).unwrap().new_epoch, Some(1));
        assert!(open(&b, &mut late).is_ok());
        b.wipe_rx_before(1);
        assert_eq!(open(&b, &mut later), Err(DropReason::EpochUnknown));
    }

    #[test]
    fn forged_epoch_bits_and_lanes_are_rationed_and_leave_nothing() {
        let (a, b) = pair(KeyLimits::AES_256_GCM);
        let mut lane = a.tx_lane(Lane(0)).unwrap();
        let good = sealed(&mut lane, b"1");
        for number in 0..UNPROVEN_TRIES_PER_SECOND {
            let mut junk = good.clone();
            junk[3] = 1 + (number % 250) as u8;
            assert_eq!(open(&b, &mut junk), Err(DropReason::OpenFailed));
        }
        let mut junk = good.clone();
        junk[3] = 200;
        assert_eq!(open(&b, &mut junk), Err(DropReason::LaneUnproven));
        let mut junk = good.clone();
        junk[0] |= 0x20;
        assert_eq!(open(&b, &mut junk), Err(DropReason::EpochUnknown));
        assert_eq!(b.rx_epoch(), 0);
        let contexts = |b: &Session| -> usize {
            b.lanes.iter().map(|lane| lock(lane).iter().flatten().count()).sum()
        };
        assert_eq!(contexts(&b), 0);
        // A lane in use is tried whatever else goes on, and holds one context an epoch.
        let mut first = sealed(&mut a.tx_lane(Lane(7)).unwrap(), b"1");
        let later = |bytes: &mut [u8]| open_at(&b, bytes, 2_000);
        assert!(later(&mut first).is_ok());
        for number in 0..2 * UNPROVEN_TRIES_PER_SECOND {
            let mut junk = good.clone();
            junk[3] = if number % 2 == 0 { 7 } else { 8 };
            junk[0] = if number / 2 % 2 == 0 { 0x40 } else { 0x50 };
            assert!(later(&mut junk).is_err());
        }
        assert_eq!(contexts(&b), 2);
        assert!(a.rotate_tx(0));
        let mut next = sealed(&mut a.tx_lane(Lane(7)).unwrap(), b"2");
        assert_eq!(later(&mut next).unwrap().new_epoch, Some(1));
    }

    #[test]
    fn epochs_go_on_past_their_two_bits() {
        let (a, b) = pair(KeyLimits::AES_256_GCM);
        for epoch in 0..20 {
            let mut buf = sealed(&mut a.tx_lane(Lane(0)).unwrap(), b"x");
            let opened = open(&b, &mut buf).unwrap();
            assert_eq!(opened.new_epoch, (epoch > 0).then_some(epoch));
            a.confirm_tx(epoch);
            assert!(a.rotate_tx(epoch));
        }
    }
}
