//! The resend ring of one worker for one peer: what was sealed a moment ago, for another link.
//!
//! When a link is suspected, what was sent on it alone may be lost. The stored ciphertext goes out
//! again on another link; the peer's replay window drops what it had already. So the ring must
//! reach as far back as a link can be dead without our knowing: the worst detection time plus a
//! round trip. It is bounded in bytes too, and says how often that bound came first.
//!
//! One ring of bytes and a queue of records. A push is one copy, and allocates only while the ring
//! still grows to what the traffic needs.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use super::id::LinkSet;

/// How long datagrams are kept unless [`ResendRing::set_window`] says otherwise.
pub const DEFAULT_WINDOW: Duration = Duration::from_millis(10);
/// How long an empty ring keeps its memory: a flow that pauses shorter does not allocate anew.
pub const IDLE_RELEASE: Duration = Duration::from_secs(1);
/// Bytes of the first allocation.
const FIRST_LEN: usize = 16 << 10;

/// A stored datagram: where its bytes are and what is known of it.
#[derive(Debug)]
struct Record {
    /// First byte in the memory. Its bytes are in one piece.
    start: usize,
    len: usize,
    at: Instant,
    /// Serial number of the session, and epoch.
    epoch: (u64, u32),
    links: LinkSet,
    mark: u8,
}

/// Copies of sealed datagrams, oldest first.
///
/// The records lie in the memory in their order, except that it wraps once at the end; a datagram
/// that would be cut there starts at the beginning. No record is empty, so no two start at the
/// same byte.
#[derive(Debug)]
pub struct ResendRing {
    memory: Vec<u8>,
    records: VecDeque<Record>,
    cap: usize,
    window: Duration,
    /// Sum of the records' lengths.
    bytes: usize,
    overruns: u64,
    /// Since when it is empty, as far as [`Self::expire`] saw.
    empty_since: Option<Instant>,
}

impl ResendRing {
    /// An empty ring of at most `cap_bytes` of memory for datagrams, with [`DEFAULT_WINDOW`].
    /// Allocates nothing yet.
    #[must_use]
    pub fn new(cap_bytes: usize) -> Self {
        Self {
            memory: Vec::new(),
            records: VecDeque::new(),
            cap: cap_bytes,
            window: DEFAULT_WINDOW,
            bytes: 0,
            overruns: 0,
            empty_since: None,
        }
    }

    /// Sets how long datagrams are kept; counts for those that are stored too.
    pub fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    /// Stores a copy of a sealed datagram. `now` must not be before that of the push before.
    ///
    /// The oldest give way where the byte cap asks for it; one that exceeds the cap by itself is
    /// not stored. Both count as [`Self::overruns`].
    pub fn push(
        &mut self,
        now: Instant,
        epoch: (u64, u32),
        links: LinkSet,
        mark: u8,
        bytes: &[u8],
    ) {
        if bytes.is_empty() {
            return;
        }
        self.expire(now);
        if bytes.len() > self.cap {
            self.overruns += 1;
            return;
        }
        let start = loop {
            if let Some(start) = self.place(bytes.len()) {
                break start;
            }
            if !self.grow(bytes.len()) && self.drop_oldest() {
                self.overruns += 1;
            }
        };
        if let Some(place) = self.memory.get_mut(start..start + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        self.bytes += bytes.len();
        self.empty_since = None;
        self.records.push_back(Record { start, len: bytes.len(), at: now, epoch, links, mark });
    }

    /// Forgets what is older than the window, and gives memory back after a time of emptiness.
    /// To be called now and then while nothing is pushed.
    pub fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.records.front()
            && now.saturating_duration_since(oldest.at) > self.window
        {
            self.drop_oldest();
        }
        if self.records.is_empty() && !self.memory.is_empty() {
            let since = *self.empty_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= IDLE_RELEASE {
                self.release();
            }
        }
    }

    /// Gives every datagram that was sent on links in `dead` only (or on none at all) to `each`
    /// with its mark, oldest first. They stay stored, as sent on `to`, for the rest of their time.
    ///
    /// Call [`Self::expire`] first, or what is beyond the window is sent again too.
    pub fn resend(&mut self, dead: LinkSet, to: LinkSet, mut each: impl FnMut(&[u8], u8)) {
        let lost = |record: &&mut Record| record.links.minus(dead).is_empty();
        for record in self.records.iter_mut().filter(lost) {
            if let Some(bytes) = self.memory.get(record.start..record.start + record.len) {
                each(bytes, record.mark);
            }
            record.links = to;
        }
    }

    /// Number of datagrams stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of all datagrams stored.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory held for datagrams; each also costs a record of some 50 bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Session and epoch of the oldest datagram: while this is not the present epoch, the peer
    /// must go on opening the one before, and the next but one must wait.
    #[must_use]
    pub fn oldest_epoch(&self) -> Option<(u64, u32)> {
        self.records.front().map(|record| record.epoch)
    }

    /// Datagrams that the byte cap pushed out, or kept out, before their time.
    #[must_use]
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// Forgets the datagrams of a session that is over.
    pub fn purge_session(&mut self, serial: u64) {
        let bytes = &mut self.bytes;
        self.records.retain(|record| {
            let stays = record.epoch.0 != serial;
            if !stays {
                *bytes -= record.len;
            }
            stays
        });
    }

    /// Forgets everything and gives the memory back; the count of overruns stays.
    pub fn clear(&mut self) {
        self.records.clear();
        self.release();
    }

    fn release(&mut self) {
        self.memory = Vec::new();
        self.records = VecDeque::new();
        self.bytes = 0;
        self.empty_since = None;
    }

    fn drop_oldest(&mut self) -> bool {
        let oldest = self.records.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, |record| record.len);
        oldest.is_some()
    }

    /// Where `len` bytes in one piece are free.
    fn place(&self, len: usize) -> Option<usize> {
        let (Some(oldest), Some(newest)) = (self.records.front(), self.records.back()) else {
            return (len <= self.memory.len()).then_some(0);
        };
        let end = newest.start + newest.len;
        if newest.start < oldest.start {
            // Wrapped: free is what lies between.
            return (len <= oldest.start - end).then_some(end);
        }
        if len <= self.memory.len() - end {
            return Some(end);
        }
        (len <= oldest.start).then_some(0)
    }

    /// Makes the memory larger, by at least `len` bytes if the cap lets it; false at the cap.
    fn grow(&mut self, len: usize) -> bool {
        let old = self.memory.len();
        if old >= self.cap {
            return false;
        }
        let wanted = (old * 2).max(old + len).max(FIRST_LEN).min(self.cap);
        let mut memory = vec![0; wanted];
        let old = mem::take(&mut self.memory);
        let mut next = 0;
        for record in &mut self.records {
            let from = old.get(record.start..record.start + record.len);
            let to = memory.get_mut(next..next + record.len);
            if let (Some(from), Some(to)) = (from, to) {
                to.copy_from_slice(from);
            }
            record.start = next;
            next += record.len;
        }
        self.memory = memory;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::id::LinkIndex;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn links(bits: u8) -> LinkSet {
        LinkSet(bits)
    }

    fn stored(ring: &mut ResendRing) -> Vec<(Vec<u8>, u8)> {
        let mut found = Vec::new();
        let every = ring.records.iter().map(|record| record.links).collect::<Vec<_>>();
        ring.resend(links(0xff), links(0xff), |bytes, mark| found.push((bytes.to_vec(), mark)));
        for (record, links) in ring.records.iter_mut().zip(every) {
            record.links = links;
        }
        found
    }

    #[test]
    fn resends_what_went_by_dead_links_only() {
        let (now, mut ring) = (Instant::now(), ResendRing::new(1 << 20));
        let link = |index| LinkSet::only(LinkIndex::new(index).unwrap());
        ring.push(now, (1, 0), link(0), 7, b"on 0");
        ring.push(now, (1, 0), link(1), 8, b"on 1");
        ring.push(now, (1, 1), link(0).union(link(1)), 9, b"on both");
        ring.push(now, (1, 1), LinkSet::EMPTY, 5, b"on none");
        let again = |ring: &mut ResendRing, dead, to| {
            let mut sent = Vec::new();
            ring.resend(dead, to, |bytes, mark| sent.push((bytes.to_vec(), mark)));
            sent
        };
        let first = again(&mut ring, link(0), link(1));
        assert_eq!(first, [(b"on 0".to_vec(), 7), (b"on none".to_vec(), 5)]);
        assert!(again(&mut ring, link(0), link(1)).is_empty(), "they count as sent on link 1");
        assert_eq!(again(&mut ring, link(1), link(2)).len(), 3);
        assert_eq!((ring.len(), ring.bytes(), ring.oldest_epoch()), (4, 22, Some((1, 0))));
    }

    #[test]
    fn memory_comes_once_and_goes_after_idleness() {
        let (start, mut ring) = (Instant::now(), ResendRing::new(8 << 20));
        assert_eq!(ring.capacity(), 0);
        let mut now = start;
        let mut held = 0;
        for round in 0..2_000 {
            now += MS;
            ring.push(now, (1, 0), links(1), 0, &[1; 9_000]);
            if round == 100 {
                held = ring.capacity();
            }
        }
        assert_eq!(ring.capacity(), held, "no allocation once grown");
        assert_eq!((ring.len(), ring.overruns()), (11, 0));
        ring.expire(now + MS * 11);
        assert_eq!((ring.len(), ring.bytes(), ring.capacity()), (0, 0, held));
        ring.expire(now + MS * 500);
        assert_eq!(ring.capacity(), held, "not yet");
        ring.expire(now + MS * 1_100);
        assert_eq!(ring.capacity(), 0);
    }

    #[test]
    fn one_larger_than_the_cap_pushes_nothing_out() {
        let (now, mut ring) = (Instant::now(), ResendRing::new(1_000));
        ring.push(now, (1, 0), links(1), 0, &[1; 1_000]);
        ring.push(now, (1, 0), links(1), 0, &[1; 1_001]);
        assert_eq!((ring.len(), ring.overruns()), (1, 1));
        ring.push(now, (2, 0), links(1), 0, &[1; 1]);
        assert_eq!((ring.len(), ring.overruns(), ring.oldest_epoch()), (1, 2, Some((2, 0))));
        ring.clear();
        assert_eq!((ring.capacity(), ring.bytes(), ring.oldest_epoch()), (0, 0, None));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { session: u64, links: u8, len: usize },
        Wait(u64),
        Expire,
        Resend { dead: u8, to: u8 },
        Purge(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u64..3, any::<u8>(), 1usize..700)
                .prop_map(|(session, links, len)| Step::Push { session, links, len }),
            2 => (0u64..6).prop_map(Step::Wait),
            1 => Just(Step::Expire),
            1 => (any::<u8>(), any::<u8>()).prop_map(|(dead, to)| Step::Resend { dead, to }),
            1 => (0u64..3).prop_map(Step::Purge),
        ]
    }

    #[derive(Debug, Clone, PartialEq)]
    struct Kept {
        at: Instant,
        session: u64,
        links: LinkSet,
        mark: u8,
        bytes: Vec<u8>,
    }

    proptest! {
        #[test]
        fn holds_what_a_naive_list_holds(
            cap in 500usize..40_000,
            steps in prop::collection::vec(step(), 1..400),
        ) {
            let mut ring = ResendRing::new(cap);
            ring.set_window(MS * 10);
            let mut model: VecDeque<Kept> = VecDeque::new();
            let (mut now, mut serial, mut pushed_out) = (Instant::now(), 0u32, 0);
            let mut purged = false;
            for step in steps {
                match step {
                    Step::Push { session, links, len } => {
                        serial += 1;
                        let bytes: Vec<_> = (0..len as u32).map(|n| (n + serial * 31) as u8).collect();
                        let (links, mark) = (LinkSet(links), serial as u8);
                        ring.push(now, (session, 0), links, mark, &bytes);
                        model.retain(|kept| now - kept.at <= MS * 10);
                        let before = model.iter().map(|kept| kept.bytes.len()).sum::<usize>();
                        if len <= cap {
                            model.push_back(Kept { at: now, session, links, mark, bytes });
                        } else {
                            pushed_out += 1;
                        }
                        // The cap takes the oldest, and only where bytes and holes need it.
                        let gone = model.len().saturating_sub(ring.len());
                        model.drain(..gone);
                        pushed_out += gone as u64;
                        // Free bytes in two places, neither large enough, at the most; but what
                        // was purged leaves holes of any size.
                        prop_assert!(gone == 0 || purged || before + 2 * 700 > cap);
                    }
                    Step::Wait(ms) => now += MS * ms as u32,
                    Step::Expire => {
                        ring.expire(now);
                        model.retain(|kept| now - kept.at <= MS * 10);
                    }
                    Step::Resend { dead, to } => {
                        let mut sent = Vec::new();
                        ring.resend(LinkSet(dead), LinkSet(to), |bytes, mark| {
                            sent.push((bytes.to_vec(), mark));
                        });
                        let mut expected = Vec::new();
                        for kept in &mut model {
                            if kept.links.minus(LinkSet(dead)).is_empty() {
                                expected.push((kept.bytes.clone(), kept.mark));
                                kept.links = LinkSet(to);
                            }
                        }
                        prop_assert_eq!(sent, expected);
                    }
                    Step::Purge(session) => {
                        purged = true;
                        ring.purge_session(session);
                        model.retain(|kept| kept.session != session);
                    }
                }
                prop_assert!(ring.capacity() <= cap);
                prop_assert_eq!(ring.overruns(), pushed_out);
                let bytes = model.iter().map(|kept| kept.bytes.len()).sum::<usize>();
                prop_assert_eq!((ring.len(), ring.bytes()), (model.len(), bytes));
                let all: Vec<_> =
                    model.iter().map(|kept| (kept.bytes.clone(), kept.mark)).collect();
                prop_assert_eq!(stored(&mut ring), all);
            }
        }

        #[test]
        fn nothing_is_pushed_out_below_the_cap(lens in prop::collection::vec(1usize..1_500, 1..300)) {
            // All that a window can hold and one datagram more, for the hole before the wrap.
            let mut ring = ResendRing::new(11 * 1_500 + 1_500);
            let mut now = Instant::now();
            for len in lens {
                ring.push(now, (1, 0), links(1), 0, &vec![3; len]);
                now += MS;
            }
            prop_assert_eq!(ring.overruns(), 0);
        }
    }
}
