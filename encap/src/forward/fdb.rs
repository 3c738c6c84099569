//! The forwarding table of one network: which MAC address is behind which peer or local port.
//!
//! One concurrent map, lock-free to read. Workers learn into it, from authentic frames and from
//! the own ports only; the control thread ages it. An entry that moves too often is frozen where it
//! is (RFC 7432 section 15.1). Rules F1 to F6 are in `docs/protocol.md`.
//!
//! Next: [`crate::tx`] seals for the peers found here.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use papaya::HashMap;

use crate::id::{LocalPort, PeerIndex};
use crate::wire::ethernet::MacAddr;

/// Where a MAC address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Behind this port of the own node.
    Local(LocalPort),
    /// Behind a peer.
    Peer(PeerIndex),
}

impl Place {
    /// Local ports have the numbers from the top down, which no peer reaches.
    fn encode(self) -> u32 {
        match self {
            Self::Local(port) => u32::MAX - u32::from(port.get()),
            Self::Peer(index) => index.0,
        }
    }

    fn decode(code: u32) -> Self {
        let port = u8::try_from(u32::MAX - code).ok().and_then(LocalPort::new);
        port.map_or(Self::Peer(PeerIndex(code)), Self::Local)
    }
}

/// What came of learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learn {
    /// A new entry.
    Added,
    /// Known, and seen again.
    Refreshed,
    /// Known elsewhere until now.
    Moved,
    /// Static or frozen elsewhere, or the table is full.
    Refused,
}

/// Sizes and times of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbLimits {
    /// Milliseconds after which an entry that was not seen again is forgotten.
    pub ageing_ms: u64,
    /// Most entries.
    pub max_entries: usize,
}

impl Default for FdbLimits {
    fn default() -> Self {
        Self { ageing_ms: 300_000, max_entries: 65_536 }
    }
}

/// More moves than this within [`MOVE_WINDOW_MS`] freeze an address.
pub const MAX_MOVES: u32 = 5;
/// Window in which moves are counted, in ms.
pub const MOVE_WINDOW_MS: u64 = 180_000;
/// How long an address stays frozen, in ms.
pub const FREEZE_MS: u64 = 30_000;
/// An entry is marked as seen at most this often, in ms, so that its line is not always written.
const REFRESH_MS: u64 = 1_000;
/// Frozen addresses that wait to be reported; more are frozen all the same.
const MAX_REPORTS: usize = 64;

#[derive(Debug)]
struct Entry {
    place: AtomicU32,
    is_static: bool,
    seen_ms: AtomicU64,
    moves: AtomicU32,
    moves_since_ms: AtomicU64,
    frozen_until_ms: AtomicU64,
}

/// One entry, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbRow {
    /// The address.
    pub mac: MacAddr,
    /// Where it is.
    pub place: Place,
    /// Whether it was configured.
    pub is_static: bool,
    /// Milliseconds since it was seen.
    pub age_ms: u64,
    /// Whether it is frozen.
    pub frozen: bool,
}

/// MAC addresses of one network.
#[derive(Debug)]
pub struct Fdb {
    entries: HashMap<MacAddr, Entry>,
    ageing_ms: AtomicU64,
    max_entries: AtomicU32,
    /// Grows whenever a cached lookup may have become wrong.
    generation: AtomicU32,
    frozen: Mutex<Vec<MacAddr>>,
}

impl Fdb {
    /// An empty table.
    #[must_use]
    pub fn new(limits: FdbLimits) -> Self {
        let fdb = Self {
            entries: HashMap::new(),
            ageing_ms: AtomicU64::new(0),
            max_entries: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            frozen: Mutex::default(),
        };
        fdb.set_limits(limits);
        fdb
    }

    /// Changes sizes and times; entries stay.
    pub fn set_limits(&self, limits: FdbLimits) {
        self.ageing_ms.store(limits.ageing_ms, Ordering::Relaxed);
        let max = u32::try_from(limits.max_entries).unwrap_or(u32::MAX);
        self.max_entries.store(max, Ordering::Relaxed);
    }

    /// A number that changes when any address moves or is forgotten.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Where `mac` is, if that is known and not too old (rule F2).
    #[must_use]
    pub fn lookup(&self, mac: MacAddr, now_ms: u64) -> Option<Place> {
        let entries = self.entries.pin();
        let entry = entries.get(&mac)?;
        let ageing = self.ageing_ms.load(Ordering::Relaxed);
        if !entry.is_static && entry.seen_ms.load(Ordering::Relaxed).saturating_add(ageing) < now_ms
        {
            return None;
        }
        Some(Place::decode(entry.place.load(Ordering::Acquire)))
    }

    /// `mac` was a source address of a frame from `place` (rules F1, F3, F4).
    pub fn learn(&self, mac: MacAddr, place: Place, now_ms: u64) -> Learn {
        if mac.is_multicast() || mac.is_zero() {
            return Learn::Refused;
        }
        let entries = self.entries.pin();
        let Some(entry) = entries.get(&mac) else {
            if entries.len() >= self.max_entries.load(Ordering::Relaxed) as usize {
                return Learn::Refused;
            }
            // Never over an entry, static perhaps, that came in between: that frame learns again.
            let added = entries.try_insert(mac, Entry::new(place, false, now_ms)).is_ok();
            self.changed();
            return if added { Learn::Added } else { Learn::Refused };
        };
        let was = entry.place.load(Ordering::Acquire);
        if was == place.encode() {
            if entry.seen_ms.load(Ordering::Relaxed) + REFRESH_MS <= now_ms {
                entry.seen_ms.store(now_ms, Ordering::Relaxed);
            }
            return Learn::Refreshed;
        }
        let ageing = self.ageing_ms.load(Ordering::Relaxed);
        let expired = entry.seen_ms.load(Ordering::Relaxed).saturating_add(ageing) < now_ms;
        if entry.is_static || (!expired && !self.may_move(mac, entry, now_ms)) {
            return Learn::Refused;
        }
        entry.place.store(place.encode(), Ordering::Release);
        entry.seen_ms.store(now_ms, Ordering::Relaxed);
        self.changed();
        Learn::Moved
    }

    /// Counts a move; false while the address is frozen or when this move freezes it.
    fn may_move(&self, mac: MacAddr, entry: &Entry, now_ms: u64) -> bool {
        if entry.frozen_until_ms.load(Ordering::Relaxed) > now_ms {
            return false;
        }
        if entry.moves_since_ms.load(Ordering::Relaxed) + MOVE_WINDOW_MS < now_ms {
            entry.moves_since_ms.store(now_ms, Ordering::Relaxed);
            entry.moves.store(0, Ordering::Relaxed);
        }
        if entry.moves.fetch_add(1, Ordering::Relaxed) < MAX_MOVES {
            return true;
        }
        entry.frozen_until_ms.store(now_ms + FREEZE_MS, Ordering::Relaxed);
        entry.moves.store(0, Ordering::Relaxed);
        entry.moves_since_ms.store(now_ms + FREEZE_MS, Ordering::Relaxed);
        let mut frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
        if frozen.len() < MAX_REPORTS {
            frozen.push(mac);
        }
        false
    }

    /// Sets an entry that neither ages nor moves.
    pub fn set_static(&self, mac: MacAddr, place: Place, now_ms: u64) {
        self.entries.pin().insert(mac, Entry::new(place, true, now_ms));
        self.changed();
    }

    /// Forgets `mac`; says whether it was there.
    pub fn remove(&self, mac: MacAddr) -> bool {
        let removed = self.entries.pin().remove(&mac).is_some();
        self.changed();
        removed
    }

    /// Forgets every learnt entry; gives their number.
    pub fn flush(&self) -> usize {
        self.remove_where(|entry| !entry.is_static)
    }

    /// Forgets what is behind a peer that is no member any more, static entries too.
    pub fn forget_peer(&self, peer: PeerIndex) -> usize {
        let code = Place::Peer(peer).encode();
        self.remove_where(|entry| entry.place.load(Ordering::Relaxed) == code)
    }

    /// Forgets what was learnt behind a local port that is gone; gives the number of entries. Static
    /// ones stay: they name the node, not a port.
    pub fn forget_port(&self, port: LocalPort) -> usize {
        let code = Place::Local(port).encode();
        self.remove_where(|entry| !entry.is_static && entry.place.load(Ordering::Relaxed) == code)
    }

    /// Forgets learnt entries that were not seen for the ageing time; gives their number.
    pub fn age(&self, now_ms: u64) -> usize {
        let ageing = self.ageing_ms.load(Ordering::Relaxed);
        self.remove_where(|entry| {
            !entry.is_static
                && entry.seen_ms.load(Ordering::Relaxed).saturating_add(ageing) < now_ms
        })
    }

    fn remove_where(&self, gone: impl Fn(&Entry) -> bool) -> usize {
        let entries = self.entries.pin();
        let macs: Vec<_> =
            entries.iter().filter(|(_, entry)| gone(entry)).map(|(mac, _)| *mac).collect();
        for mac in &macs {
            entries.remove(mac);
        }
        if !macs.is_empty() {
            self.changed();
        }
        macs.len()
    }

    /// Addresses frozen since the last call.
    pub fn take_frozen(&self) -> Vec<MacAddr> {
        std::mem::take(&mut *self.frozen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in the order of their addresses.
    #[must_use]
    pub fn rows(&self, now_ms: u64) -> Vec<FdbRow> {
        let entries = self.entries.pin();
        let mut rows: Vec<_> = entries
            .iter()
            .map(|(mac, entry)| FdbRow {
                mac: *mac,
                place: Place::decode(entry.place.load(Ordering::Relaxed)),
                is_static: entry.is_static,
                age_ms: now_ms.saturating_sub(entry.seen_ms.load(Ordering::Relaxed)),
                frozen: entry.frozen_until_ms.load(Ordering::Relaxed) > now_ms,
            })
            .collect();
        rows.sort_by_key(|row| row.mac);
        rows
    }
}

impl Entry {
    fn new(place: Place, is_static: bool, now_ms: u64) -> Self {
        Self {
            place: AtomicU32::new(place.encode()),
            is_static,
            seen_ms: AtomicU64::new(now_ms),
            moves: AtomicU32::new(0),
            moves_since_ms: AtomicU64::new(now_ms),
            frozen_until_ms: AtomicU64::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const A: Place = Place::Peer(PeerIndex(0));
    const B: Place = Place::Peer(PeerIndex(1));

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn every_place_is_kept_as_it_is() {
        let fdb = Fdb::new(FdbLimits::default());
        let local = (0..=LocalPort::MAX).map(|port| Place::Local(LocalPort::new(port).unwrap()));
        let peers = [0, 1, 65_535].map(|index| Place::Peer(PeerIndex(index)));
        for (last, place) in (0..).zip(local.chain(peers)) {
            assert_eq!(fdb.learn(mac(last), place, 0), Learn::Added);
            assert_eq!(fdb.lookup(mac(last), 0), Some(place));
        }
    }

    #[test]
    fn a_station_moves_between_local_ports_and_is_forgotten_with_its_port() {
        let fdb = Fdb::new(FdbLimits::default());
        let port = |number| LocalPort::new(number).unwrap();
        fdb.learn(MAC, Place::Local(port(1)), 0);
        fdb.learn(mac(2), Place::Local(port(1)), 0);
        fdb.set_static(mac(3), Place::Local(LocalPort::TAP), 0);
        let before = fdb.generation();
        assert_eq!(fdb.learn(MAC, Place::Local(port(2)), 1), Learn::Moved);
        assert_ne!(fdb.generation(), before);
        assert_eq!(fdb.forget_port(port(1)), 1);
        assert_eq!(fdb.lookup(mac(2), 1), None);
        assert_eq!(fdb.lookup(MAC, 1), Some(Place::Local(port(2))));
        assert_eq!(fdb.forget_port(LocalPort::TAP), 0, "a static entry names the node");
        // Between ports it freezes as between nodes.
        for step in 2..=u64::from(MAX_MOVES) {
            let to = port(1 + u8::from(step % 2 == 1));
            assert_eq!(fdb.learn(MAC, Place::Local(to), step), Learn::Moved, "{step}");
        }
        assert_eq!(fdb.learn(MAC, Place::Local(LocalPort::TAP), 9), Learn::Refused);
        assert_eq!(fdb.take_frozen(), [MAC]);
    }

    #[test]
    fn learns_refreshes_and_ages() {
        let fdb = Fdb::new(FdbLimits::default());
        assert_eq!(fdb.learn(MAC, A, 0), Learn::Added);
        assert_eq!(fdb.learn(MAC, A, 200_000), Learn::Refreshed);
        assert_eq!(fdb.lookup(MAC, 500_000), Some(A));
        assert_eq!(fdb.lookup(MAC, 500_001), None);
        assert_eq!(fdb.age(500_000), 0);
        assert_eq!(fdb.age(500_001), 1);
        assert!(fdb.is_empty());
    }

    #[test]
    fn static_entries_neither_age_nor_move() {
        let fdb = Fdb::new(FdbLimits::default());
        fdb.set_static(MAC, A, 0);
        assert_eq!(fdb.learn(MAC, B, 1), Learn::Refused);
        assert_eq!(fdb.lookup(MAC, u64::MAX), Some(A));
        assert_eq!(fdb.age(u64::MAX), 0);
        assert_eq!(fdb.flush(), 0);
        assert!(fdb.remove(MAC));
    }

    #[test]
    fn group_and_zero_addresses_are_never_learnt() {
        let fdb = Fdb::new(FdbLimits::default());
        for bad in [MacAddr::BROADCAST, MacAddr([1, 0, 0x5e, 0, 0, 1]), MacAddr::default()] {
            assert_eq!(fdb.learn(bad, A, 0), Learn::Refused);
        }
        assert!(fdb.is_empty());
    }

    #[test]
    fn a_full_table_refuses_the_new_and_keeps_the_old() {
        let fdb = Fdb::new(FdbLimits { max_entries: 2, ..FdbLimits::default() });
        assert_eq!(fdb.learn(mac(1), A, 0), Learn::Added);
        assert_eq!(fdb.learn(mac(2), A, 0), Learn::Added);
        assert_eq!(fdb.learn(mac(3), A, 0), Learn::Refused);
        assert_eq!(fdb.learn(mac(2), B, 1), Learn::Moved);
        assert_eq!(fdb.len(), 2);
    }

    #[test]
    fn an_address_that_moves_too_often_freezes_and_thaws() {
        let fdb = Fdb::new(FdbLimits::default());
        fdb.learn(MAC, A, 0);
        for step in 1..=u64::from(MAX_MOVES) {
            let place = if step % 2 == 1 { B } else { A };
            assert_eq!(fdb.learn(MAC, place, step), Learn::Moved);
        }
        assert_eq!(fdb.lookup(MAC, 6), Some(B));
        assert_eq!(fdb.learn(MAC, A, 6), Learn::Refused);
        assert_eq!(fdb.take_frozen(), [MAC]);
        assert!(fdb.rows(6)[0].frozen);
        assert_eq!(fdb.learn(MAC, A, 6 + FREEZE_MS - 1), Learn::Refused);
        assert_eq!(fdb.take_frozen(), []);
        assert_eq!(fdb.learn(MAC, A, 6 + FREEZE_MS), Learn::Moved);
    }

    #[test]
    fn slow_moves_are_fine() {
        let fdb = Fdb::new(FdbLimits { ageing_ms: 1_000_000, ..FdbLimits::default() });
        fdb.learn(MAC, A, 0);
        for step in 1..50 {
            let place = if step % 2 == 1 { B } else { A };
            assert_eq!(fdb.learn(MAC, place, step * 60_000), Learn::Moved, "{step}");
        }
    }

    #[test]
    fn generation_tells_a_cache_that_it_is_stale() {
        let fdb = Fdb::new(FdbLimits::default());
        fdb.learn(MAC, A, 0);
        let before = fdb.generation();
        fdb.learn(MAC, A, 5_000);
        assert_eq!(fdb.generation(), before);
        fdb.learn(MAC, B, 5_001);
        assert_ne!(fdb.generation(), before);
        assert_eq!(fdb.forget_peer(PeerIndex(1)), 1);
        assert_eq!(fdb.lookup(MAC, 5_002), None);
    }
}
