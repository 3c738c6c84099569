//! A frame that looks for the way back: bridged taps that form a loop around the overlay.
//!
//! The overlay alone cannot loop, but two taps of one network whose bridges meet elsewhere can.
//! So a node sends a probe out of each tap; when its own probe comes back, over a peer or into
//! the same tap, the network is blocked on this node for a while. Other nodes' probes are
//! forwarded as any frame, or they would never come back.
//!
//! ```text
//! 0  destination 03:74:61:70:64:00   6 | 14 "tapdloop"    8 | 23 node id (big-endian)   2
//! 6  source 06, VNI (3), node (2)    6 | 22 version 1     1 | 25 VNI (big-endian)       3
//! 12 EtherType 0x88b5                2 |                    | 28 token 16, zeros up to 60
//! ```
//!
//! The destination is a locally administered group address ("tapd" in ASCII), so that bridges
//! flood it; the EtherType is IEEE 802's first one for local experiments. The source is the
//! address that a tap has by default with the bit 0x04 set: never the tap's own, so that no
//! table takes the probe's way for the tap's.
//!
//! A probe is not secret: who sits on the segment can send it back and so block the network on
//! this node, as he could by making the loop.

use std::time::{Duration, Instant};

use crate::id::{NodeId, Vni};
use crate::rng::Rng;
use crate::wire::ethernet::{EtherType, EthernetView, MacAddr};

/// Where probes go to: a locally administered group address.
pub const LOOP_PROBE_DESTINATION: MacAddr = MacAddr([0x03, 0x74, 0x61, 0x70, 0x64, 0x00]);
/// IEEE 802 local experimental EtherType 1.
pub const LOOP_PROBE_ETHER_TYPE: EtherType = EtherType(0x88b5);
/// Length of a probe, the least of an Ethernet frame without FCS, in bytes.
pub const LOOP_PROBE_LEN: usize = 60;
/// Length of a token, in bytes.
pub const TOKEN_LEN: usize = 16;

/// First byte of the source address: locally administered, and not 02 as taps have.
const SOURCE_PREFIX: u8 = 0x06;
const MAGIC: [u8; 8] = *b"tapdloop";
const VERSION: u8 = 1;
/// Magic, version, node id, VNI and token, in bytes.
const PAYLOAD_LEN: usize = 30;

/// What a probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopProbe {
    /// The node that sent it.
    pub node: NodeId,
    /// The network that it was sent into.
    pub vni: Vni,
    /// Random and new in every probe, so that an old one or a guess proves nothing.
    pub token: [u8; TOKEN_LEN],
}

impl LoopProbe {
    /// The source address of a node's probes in a network.
    #[must_use]
    pub const fn source(node: NodeId, vni: Vni) -> MacAddr {
        let [v0, v1, v2] = vni.to_be_bytes();
        let [n0, n1] = node.get().to_be_bytes();
        MacAddr([SOURCE_PREFIX, v0, v1, v2, n0, n1])
    }

    /// The probe as a frame of [`LOOP_PROBE_LEN`] bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(LOOP_PROBE_LEN);
        frame.extend_from_slice(&LOOP_PROBE_DESTINATION.0);
        frame.extend_from_slice(&Self::source(self.node, self.vni).0);
        frame.extend_from_slice(&LOOP_PROBE_ETHER_TYPE.0.to_be_bytes());
        frame.extend_from_slice(&MAGIC);
        frame.push(VERSION);
        frame.extend_from_slice(&self.node.get().to_be_bytes());
        frame.extend_from_slice(&self.vni.to_be_bytes());
        frame.extend_from_slice(&self.token);
        frame.resize(LOOP_PROBE_LEN, 0);
        frame
    }

    /// Reads a probe, also behind VLAN tags that a bridge put on. None for any other frame.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let ethernet = EthernetView::new(frame).ok()?;
        if ethernet.destination() != LOOP_PROBE_DESTINATION
            || ethernet.ether_type() != LOOP_PROBE_ETHER_TYPE
        {
            return None;
        }
        let payload: &[u8; PAYLOAD_LEN] = ethernet.payload().first_chunk()?;
        let (magic, rest) = payload.split_first_chunk::<8>()?;
        let (&[version, n0, n1, v0, v1, v2], token) = rest.split_first_chunk()?;
        if *magic != MAGIC || version != VERSION {
            return None;
        }
        Some(Self {
            node: NodeId::new(u16::from_be_bytes([n0, n1]))?,
            vni: Vni::from_be_bytes([v0, v1, v2]),
            token: token.try_into().ok()?,
        })
    }
}

/// Time between two probes; up to [`JITTER`] is added.
const INTERVAL: Duration = Duration::from_secs(2);
/// Keeps the probes of many nodes from falling into step.
const JITTER: Duration = Duration::from_millis(500);
/// How long a first loop blocks.
const FIRST_BLOCK: Duration = Duration::from_secs(60);
/// How long a loop blocks that keeps coming back.
const LONGEST_BLOCK: Duration = Duration::from_secs(600);
/// Probes whose return counts: one that took longer than three intervals proves little.
const REMEMBERED: usize = 3;

/// Looks for a loop around one network, and says when the network is blocked for it.
///
/// While it is blocked no frame of the network passes between tap and overlay, except probes:
/// [`Self::poll_probe`] goes on, and own probes that come back are still shown to
/// [`Self::on_probe_seen`], which holds the block for as long as the loop is seen. A loop that is
/// seen again soon after the block blocks for twice as long, up to ten minutes.
///
/// Call [`Self::poll_probe`] when [`Self::poll_timeout`] is due, then ask [`Self::blocked`].
#[derive(Debug)]
pub struct LoopGuard {
    node: NodeId,
    vni: Vni,
    /// Tokens of the last probes, newest first.
    tokens: [Option<[u8; TOKEN_LEN]>; REMEMBERED],
    next_probe: Instant,
    block: Option<Block>,
    loops: u64,
}

/// The block in force, or the last one while it is remembered.
#[derive(Debug, Clone, Copy)]
struct Block {
    len: Duration,
    until: Instant,
    /// Whether the end was noticed, and a probe sent at once to see whether the loop is gone.
    over: bool,
}

impl LoopGuard {
    /// A guard that sends its first probe at once.
    #[must_use]
    pub fn new(node: NodeId, vni: Vni, now: Instant) -> Self {
        Self { node, vni, tokens: [None; REMEMBERED], next_probe: now, block: None, loops: 0 }
    }

    /// The probe to send out of the tap, when one is due: every 2 to 2.5 s, and at once when a
    /// block ends.
    pub fn poll_probe(&mut self, now: Instant, rng: &mut dyn Rng) -> Option<Vec<u8>> {
        if let Some(block) = &mut self.block
            && !block.over
            && now >= block.until
        {
            block.over = true;
            self.next_probe = now;
        }
        if now < self.next_probe {
            return None;
        }
        let mut token = [0; TOKEN_LEN];
        rng.fill(&mut token);
        self.tokens.rotate_right(1);
        self.tokens[0] = Some(token);
        let [.., high, low] = token;
        let jitter = JITTER * u32::from(u16::from_be_bytes([high, low])) / u32::from(u16::MAX);
        self.next_probe = now + INTERVAL + jitter;
        Some(LoopProbe { node: self.node, vni: self.vni, token }.write())
    }

    /// A probe came in, over a peer or from the tap. True when it is one of our own last three:
    /// there is a loop, the network is blocked from now on, and the probe goes no further. False
    /// for all others, which are forwarded as any frame.
    pub fn on_probe_seen(&mut self, now: Instant, probe: &LoopProbe) -> bool {
        let own = probe.node == self.node
            && probe.vni == self.vni
            && self.tokens.contains(&Some(probe.token));
        if !own {
            return false;
        }
        let len = match self.block {
            Some(block) if now < block.until => block.len,
            // It stayed away for less time than it was blocked for: the same loop.
            Some(block) if now < block.until + block.len => (block.len * 2).min(LONGEST_BLOCK),
            _ => FIRST_BLOCK,
        };
        if !self.blocked(now) {
            self.loops += 1;
        }
        self.block = Some(Block { len, until: now + len, over: false });
        true
    }

    /// Whether the network is blocked.
    #[must_use]
    pub fn blocked(&self, now: Instant) -> bool {
        self.block.is_some_and(|block| now < block.until)
    }

    /// When the present block ends, if there is one and no probe comes back until then.
    #[must_use]
    pub fn blocked_until(&self, now: Instant) -> Option<Instant> {
        self.block.map(|block| block.until).filter(|until| now < *until)
    }

    /// Blocks so far; grows by one with each new block, not with each probe that comes back.
    #[must_use]
    pub fn loops(&self) -> u64 {
        self.loops
    }

    /// When [`Self::poll_probe`] is due: for a probe, or because a block ends.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        match self.block {
            Some(block) if !block.over => self.next_probe.min(block.until),
            _ => self.next_probe,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    /// Counts, so that each token differs.
    struct Counting(u8);

    impl Rng for Counting {
        fn fill(&mut self, bytes: &mut [u8]) {
            self.0 = self.0.wrapping_add(1);
            bytes.fill(self.0);
        }
    }

    fn node(id: u16) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn vni(id: u32) -> Vni {
        Vni::new(id).unwrap()
    }

    fn guard(now: Instant) -> LoopGuard {
        LoopGuard::new(node(7), vni(100), now)
    }

    fn send(guard: &mut LoopGuard, now: Instant, rng: &mut Counting) -> LoopProbe {
        LoopProbe::read(&guard.poll_probe(now, rng).unwrap()).unwrap()
    }

    #[test]
    fn frame_is_as_documented() {
        let probe = LoopProbe { node: node(0x0102), vni: vni(0x03_0405), token: [9; 16] };
        let frame = probe.write();
        let mut expected = vec![0x03, 0x74, 0x61, 0x70, 0x64, 0, 6, 3, 4, 5, 1, 2, 0x88, 0xb5];
        expected.extend(b"tapdloop\x01\x01\x02\x03\x04\x05");
        expected.extend([9; 16]);
        expected.extend([0; 16]);
        assert_eq!(frame, expected);
        assert_eq!(frame.len(), LOOP_PROBE_LEN);
        assert_eq!(LoopProbe::read(&frame), Some(probe));
        let ethernet = EthernetView::new(&frame).unwrap();
        assert!(ethernet.destination().is_multicast() && !ethernet.destination().is_link_local());
        assert!(!ethernet.source().is_multicast());

        let mut tagged = frame.clone();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        assert_eq!(LoopProbe::read(&tagged), Some(probe));
        assert_eq!(LoopProbe::read(&frame[..44]), Some(probe), "padding is not needed");
        assert_eq!(LoopProbe::read(&frame[..43]), None);
    }

    #[test]
    fn other_frames_are_no_probes() {
        let frame = LoopProbe { node: node(1), vni: vni(1), token: [9; 16] }.write();
        for at in [0, 5, 12, 13, 14, 21, 22] {
            let mut other = frame.clone();
            other[at] ^= 0x10;
            assert_eq!(LoopProbe::read(&other), None, "byte {at}");
        }
        let mut no_node = frame;
        no_node[24] = 0;
        assert_eq!(LoopProbe::read(&no_node), None);
    }

    #[test]
    fn probes_come_every_two_seconds_and_a_bit() {
        let start = Instant::now();
        let (mut guard, mut rng) = (guard(start), Counting(0));
        assert_eq!(guard.poll_timeout(), start);
        let mut now = start;
        for _ in 0..20 {
            assert!(guard.poll_probe(now, &mut rng).is_some());
            assert!(guard.poll_probe(now, &mut rng).is_none());
            let due = guard.poll_timeout();
            let wait = due - now;
            assert!(wait >= INTERVAL && wait <= INTERVAL + JITTER, "{wait:?}");
            assert!(guard.poll_probe(due - Duration::from_nanos(1), &mut rng).is_none());
            now = due;
        }
    }

    #[test]
    fn only_own_recent_tokens_count() {
        let start = Instant::now();
        let (mut guard, mut rng) = (guard(start), Counting(0));
        let probes: Vec<_> = (0..4)
            .map(|_| {
                let now = guard.poll_timeout();
                send(&mut guard, now, &mut rng)
            })
            .collect();
        let now = guard.poll_timeout();
        for foreign in [
            probes[0],
            LoopProbe { node: node(8), ..probes[3] },
            LoopProbe { vni: vni(101), ..probes[3] },
            LoopProbe { token: [0; 16], ..probes[3] },
        ] {
            assert!(!guard.on_probe_seen(now, &foreign));
        }
        assert!(!guard.blocked(now));
        for own in &probes[1..] {
            assert!(guard.on_probe_seen(now, own));
            assert!(guard.blocked(now));
        }
        assert_eq!(guard.loops(), 1, "one loop, however often it is seen");
    }

    #[test]
    fn block_doubles_while_the_loop_comes_back_and_is_forgotten_when_it_stays_away() {
        let mut now = Instant::now();
        let (mut guard, mut rng) = (guard(now), Counting(0));
        // The peer is blocked as well, so nothing comes back before the end.
        for (round, seconds) in [60, 120, 240, 480, 600, 600].into_iter().enumerate() {
            let probe = send(&mut guard, now, &mut rng);
            now += Duration::from_millis(3);
            assert!(guard.on_probe_seen(now, &probe));
            assert_eq!(guard.loops(), round as u64 + 1);
            let end = now + Duration::from_secs(seconds);
            assert_eq!(guard.blocked_until(now), Some(end));
            while guard.poll_timeout() < end {
                now = guard.poll_timeout();
                assert!(guard.poll_probe(now, &mut rng).is_some(), "probes go on");
                assert!(guard.blocked(now));
            }
            assert_eq!(guard.poll_timeout(), end, "the end is noticed at once");
            now = end;
            assert!(!guard.blocked(now));
        }
        let probe = send(&mut guard, now, &mut rng);
        now += Duration::from_secs(600);
        assert!(guard.on_probe_seen(now, &probe));
        assert_eq!(guard.blocked_until(now), Some(now + Duration::from_secs(60)), "begins anew");
    }

    #[test]
    fn loop_that_is_still_seen_holds_the_block() {
        let mut now = Instant::now();
        let (mut guard, mut rng) = (guard(now), Counting(0));
        for _ in 0..100 {
            let probe = send(&mut guard, now, &mut rng);
            assert!(guard.on_probe_seen(now, &probe));
            assert_eq!(guard.blocked_until(now), Some(now + Duration::from_secs(60)));
            now = guard.poll_timeout();
        }
        assert_eq!(guard.loops(), 1);
    }

    proptest! {
        #[test]
        fn probes_round_trip(id in 1..=u16::MAX, network in 0..=Vni::MAX, token in any::<[u8; 16]>()) {
            let probe = LoopProbe { node: node(id), vni: vni(network), token };
            prop_assert_eq!(LoopProbe::read(&probe.write()), Some(probe));
        }

        #[test]
        fn any_bytes_are_a_probe_or_none(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let frame = LoopProbe { node: node(1), vni: vni(1), token: [9; 16] }.write();
            for (byte, good) in bytes.iter_mut().zip(frame).take(23) {
                *byte = good;
            }
            if let Some(probe) = LoopProbe::read(&bytes) {
                prop_assert!(bytes.len() >= 44);
                prop_assert_eq!(LoopProbe::read(&probe.write()), Some(probe));
            }
        }
    }
}
