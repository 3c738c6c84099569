//! Numbered flows through the world, and what must hold of them after every step.
//!
//! A frame says which flow it is of, its number, and a hash of the rest: what comes out is held
//! against what went in, byte for byte.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use encap::event::Event;
use encap::id::PeerIndex;
use encap::reassembly::DEFAULT_PEER_MEMORY;
use encap::wire::ethernet::MacAddr;

use super::{NodeIndex, Random, World, frame, mac};

/// Shortest frame of a flow: Ethernet header, flow, number, hash.
pub const SHORTEST: usize = 14 + 2 + 4 + 8;
/// Flows have station addresses from here on, two each.
const FIRST_STATION: u16 = 1000;
/// Frames may overtake each other so long after a link changed.
const UNSETTLED: Duration = Duration::from_millis(100);
/// Frames that a tap holds while nobody reads it.
const TAP_QUEUE: usize = 500;

/// One flow: frames from one station behind a node to one behind another.
pub struct Flow {
    pub from: NodeIndex,
    pub to: NodeIndex,
    lens: RangeInclusive<usize>,
    /// By number: a hash of the frame, and when it went in.
    pub sent: Vec<(u64, Instant)>,
    /// By number: when it came out.
    pub got: Vec<Option<Instant>>,
    newest: Option<usize>,
    /// Frames that wait in the tap of a node that is stalled.
    waiting: usize,
}

/// All flows of a world. [`Self::check`] after every step.
pub struct Flows {
    pub list: Vec<Flow>,
    random: Random,
    /// Events looked at, by node.
    looked: Vec<usize>,
    changed_at: Option<Instant>,
    /// Frames of a flow arrive in their order while no link changes.
    pub ordered: bool,
    tidy_at: Instant,
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The station that a flow comes from, or the one that it goes to.
pub fn station(flow: usize, receiver: bool) -> MacAddr {
    mac(FIRST_STATION + 2 * flow as u16 + u16::from(receiver))
}

impl Flows {
    /// Flows between these nodes, of frames of these lengths in bytes. The receivers are known.
    pub fn new(
        world: &mut World,
        ways: &[(NodeIndex, NodeIndex)],
        lens: RangeInclusive<usize>,
    ) -> Self {
        let list = ways.iter().map(|(from, to)| Flow {
            from: *from,
            to: *to,
            lens: lens.clone(),
            sent: Vec::new(),
            got: Vec::new(),
            newest: None,
            waiting: 0,
        });
        let flows = Self {
            list: list.collect(),
            random: Random(world.random.next()),
            looked: vec![0; world.nodes.len()],
            changed_at: Some(world.now),
            ordered: true,
            tidy_at: world.now,
        };
        for (at, flow) in flows.list.iter().enumerate() {
            world.transmit(flow.to, &frame(MacAddr::BROADCAST, station(at, true), b"here"));
        }
        world.run_for(Duration::from_millis(20));
        for node in &mut world.nodes {
            node.delivered.clear();
            node.delivered_at.clear();
        }
        flows
    }

    /// One flow each way between nodes 0 and 1.
    pub fn both_ways(world: &mut World, lens: RangeInclusive<usize>) -> Self {
        Self::new(world, &[(0, 1), (1, 0)], lens)
    }

    /// The next frame of a flow goes into the tap.
    pub fn send(&mut self, world: &mut World, at: usize) {
        let flow = &mut self.list[at];
        if !world.nodes[flow.from].alive {
            return;
        }
        flow.waiting = (flow.waiting + 1).min(TAP_QUEUE);
        while self.list[at].waiting > 0 && !world.is_stalled(self.list[at].from) {
            self.list[at].waiting -= 1;
            self.send_one(world, at);
        }
    }

    fn send_one(&mut self, world: &mut World, at: usize) {
        let flow = &mut self.list[at];
        let (least, most) = (*flow.lens.start(), *flow.lens.end());
        // The largest are the ones that meet limits.
        let len = match self.random.below(4) {
            0 => most,
            _ => least + self.random.below((most - least + 1) as u64) as usize,
        };
        let mut rest = Vec::with_capacity(len);
        while rest.len() < len.saturating_sub(SHORTEST) {
            rest.extend(self.random.next().to_be_bytes());
        }
        rest.truncate(len.saturating_sub(SHORTEST));
        let mut payload = (at as u16).to_be_bytes().to_vec();
        payload.extend((flow.sent.len() as u32).to_be_bytes());
        payload.extend(hash(&rest).to_be_bytes());
        payload.extend(rest);
        let bytes = frame(station(at, true), station(at, false), &payload);
        flow.sent.push((hash(&bytes), world.now));
        flow.got.push(None);
        world.transmit(flow.from, &bytes);
    }

    /// Sends a frame of every flow in every `gap`, and checks after each.
    pub fn run(&mut self, world: &mut World, time: Duration, gap: Duration) {
        let end = world.now + time;
        self.run_until(world, end, gap, |_| false);
    }

    /// The same until `done`, at the longest until `end`; says whether it was done.
    pub fn run_until(
        &mut self,
        world: &mut World,
        end: Instant,
        gap: Duration,
        done: impl Fn(&World) -> bool,
    ) -> bool {
        while world.now < end {
            if done(world) {
                return true;
            }
            for at in 0..self.list.len() {
                self.send(world, at);
            }
            world.run_for(gap.min(end - world.now));
            self.check(world);
        }
        done(world)
    }

    /// Sends nothing more and lets all arrive that is under way.
    pub fn settle(&mut self, world: &mut World) {
        for _ in 0..100 {
            for at in 0..self.list.len() {
                while self.list[at].waiting > 0 && !world.is_stalled(self.list[at].from) {
                    self.list[at].waiting -= 1;
                    self.send_one(world, at);
                }
            }
            world.run_for(Duration::from_millis(5));
            self.check(world);
        }
    }

    /// What must hold after every step: nothing comes twice, nothing that was not sent, nothing out
    /// of order while no link changed, and memory is within its caps.
    pub fn check(&mut self, world: &mut World) {
        for node in 0..world.nodes.len() {
            let events = &world.nodes[node].events;
            let new = events.get(self.looked[node]..).unwrap_or_default();
            let changes = |event: &Event| {
                !matches!(event, Event::MaxFrameLen { .. } | Event::MacFrozen { .. })
            };
            if new.iter().any(changes) {
                self.changed_at = Some(world.now);
            }
            self.looked[node] = events.len();
        }
        let unsettled = self.changed_at.is_some_and(|at| world.now - at < UNSETTLED);
        for node in 0..world.nodes.len() {
            let frames = std::mem::take(&mut world.nodes[node].delivered);
            let times = std::mem::take(&mut world.nodes[node].delivered_at);
            for ((_, bytes), at) in frames.iter().zip(times) {
                self.take(node, bytes, at, unsettled);
            }
            if world.now >= self.tidy_at {
                world.tidy(node);
            }
            assert_within_caps(world, node);
        }
        if world.now >= self.tidy_at {
            self.tidy_at = world.now + Duration::from_secs(1);
        }
    }

    fn take(&mut self, node: NodeIndex, bytes: &[u8], at: Instant, unsettled: bool) {
        let Some((head, _)) = bytes.split_at_checked(SHORTEST) else {
            assert!(bytes.ends_with(b"here"), "a frame that was not sent: {bytes:x?}");
            return;
        };
        let index = usize::from(u16::from_be_bytes([head[14], head[15]]));
        let number = u32::from_be_bytes([head[16], head[17], head[18], head[19]]) as usize;
        let flow = self.list.get_mut(index).expect("a frame of no flow");
        assert_eq!(flow.to, node, "a frame for another node");
        let sent = flow.sent.get(number).map(|(hash, _)| *hash);
        assert_eq!(sent, Some(hash(bytes)), "flow {index}: frame {number} is not as it was sent");
        let before = flow.got[number].replace(at);
        assert_eq!(before, None, "flow {index}: frame {number} came twice");
        if self.ordered && !unsettled {
            let newest = flow.newest.unwrap_or(0);
            assert!(newest <= number, "flow {index}: frame {number} came after {newest}");
        }
        flow.newest = flow.newest.max(Some(number));
    }

    /// Frames that did not come out, by flow and number.
    pub fn lost(&self) -> Vec<(usize, usize)> {
        let lost = |flow: &Flow| -> Vec<usize> {
            let missing = flow.got.iter().enumerate().filter(|(_, got)| got.is_none());
            missing.map(|(number, _)| number).collect()
        };
        let by_flow = self.list.iter().enumerate();
        by_flow.flat_map(|(at, flow)| lost(flow).into_iter().map(move |n| (at, n))).collect()
    }

    /// Number of frames sent.
    pub fn sent(&self) -> usize {
        self.list.iter().map(|flow| flow.sent.len()).sum()
    }

    /// Longest time in which nothing of a flow came out, from its first frame on.
    pub fn longest_gap(&self, at: usize) -> Duration {
        let mut times: Vec<_> = self.list[at].got.iter().flatten().copied().collect();
        times.sort_unstable();
        times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
    }

    /// All that was sent came.
    pub fn assert_complete(&mut self, world: &mut World) {
        self.settle(world);
        let lost = self.lost();
        let when = |(flow, number): &(usize, usize)| {
            (*flow, *number, self.list[*flow].sent[*number].1 - world.start)
        };
        let first: Vec<_> = lost.iter().take(5).map(when).collect();
        assert!(
            lost.is_empty(),
            "{} of {} lost, first {first:?}; drops {:?} {:?}",
            lost.len(),
            self.sent(),
            world.nodes[0].all_drops(),
            world.nodes[1].all_drops()
        );
    }
}

fn assert_within_caps(world: &World, node: NodeIndex) {
    let node = &world.nodes[node];
    let cap = node.config.limits.resend_bytes;
    for peer in 0..node.config.peers.len() as u32 {
        let (resend, fragments) = node.datapath.held_bytes(PeerIndex(peer));
        assert!(resend <= cap, "{resend} bytes kept to be sent again, of {cap}");
        assert!(fragments <= DEFAULT_PEER_MEMORY, "{fragments} bytes of incomplete frames");
    }
}
