//! From a peer to the links that carry one frame to it.
//!
//! Which links are alive and which is best is decided elsewhere and changes a few times a second;
//! here is what a worker does with that for every frame: no allocation, no float, no clock.
//!
//! Next: [`crate::wire::header`]; the same sealed datagram goes out on every link chosen here.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::link::id::{LinkIndex, LinkSet};
use crate::wire::ethernet::EthernetView;
use crate::wire::inner_ip::{InnerIp, protocol};

/// How the links to a peer are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The best link carries everything; the others wait.
    #[default]
    Passive,
    /// Each frame goes out on several links; the receiver's replay window removes the copies.
    Active {
        /// Number of links, best first; 0 for all that are alive.
        copies: u8,
    },
    /// Each flow keeps to one link, in shares that follow the weights.
    FlowHash,
    /// Frames take turns over the links, in shares that follow the weights. Reorders.
    RoundRobin,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passive => f.write_str("passive"),
            Self::Active { copies: 0 } => f.write_str("active"),
            Self::Active { copies } => write!(f, "active:{copies}"),
            Self::FlowHash => f.write_str("flow-hash"),
            Self::RoundRobin => f.write_str("round-robin"),
        }
    }
}

/// The text names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a policy; write passive, active, active:N (N is 1 to 8), flow-hash or round-robin")]
pub struct InvalidPolicy;

impl FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        match text {
            "passive" => Ok(Self::Passive),
            "active" => Ok(Self::Active { copies: 0 }),
            "flow-hash" => Ok(Self::FlowHash),
            "round-robin" => Ok(Self::RoundRobin),
            _ => match text.strip_prefix("active:").map(str::as_bytes) {
                Some([digit @ b'1'..=b'8']) => Ok(Self::Active { copies: digit - b'0' }),
                _ => Err(InvalidPolicy),
            },
        }
    }
}

/// The links to one peer as they stand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ways {
    /// Links that may carry frames, best first, with their weights. A link of weight 0 shares in
    /// nothing unless all are 0.
    pub order: Vec<(LinkIndex, u16)>,
    /// Links that are alive, those of `order` and what is held back beside them.
    pub live: LinkSet,
    /// A link that was the best until now: gets a copy too, until what is under way on the new
    /// one has arrived.
    pub fade: Option<LinkIndex>,
}

impl Ways {
    /// The links for one frame of a flow (see [`flow_of`]). Empty when there is no link.
    ///
    /// `turn` belongs to the caller and moves on with each call for [`Policy::RoundRobin`].
    #[must_use]
    pub fn choose(&self, policy: Policy, flow: u64, turn: &mut u32) -> LinkSet {
        let first = self.order.first().map(|(link, _)| *link);
        let chosen = match policy {
            Policy::Passive => {
                return set_of(first).union(set_of(self.fade));
            }
            Policy::Active { copies: 0 } => return set_of(first).union(self.live),
            Policy::Active { copies } => return self.best(copies.into()),
            Policy::FlowHash => self.by_flow(flow),
            Policy::RoundRobin => {
                *turn = turn.wrapping_add(1);
                self.by_turn(*turn)
            }
        };
        set_of(chosen.or(first))
    }

    /// The first `count` links of the order; where those are fewer, others that are alive.
    fn best(&self, count: usize) -> LinkSet {
        let ordered = self.order.iter().map(|(link, _)| *link);
        let mut set: LinkSet = ordered.take(count).collect();
        for link in self.live.minus(set).iter() {
            if set.len() >= count {
                break;
            }
            set.set(link, true);
        }
        set
    }

    /// Weighted rendezvous hashing: a link's score is `weight / -ln(h)`, with `h` in 0 to 1 drawn
    /// from the flow and the link; the highest wins. A link that goes takes only its own flows
    /// along, and each of the others gets its share of them.
    ///
    /// Integers throughout, and blind to the order of the links: every machine agrees.
    fn by_flow(&self, flow: u64) -> Option<LinkIndex> {
        let mut best: Option<(LinkIndex, u64, u64)> = None;
        for &(link, weight) in self.order.iter().filter(|(_, weight)| *weight > 0) {
            let draw = mix(flow ^ LINK_SALT.wrapping_mul(u64::from(link.get()) + 1), FLOW_KEY);
            let (weight, cost) = (u64::from(weight), negative_log2(draw));
            let wins = best.is_none_or(|(other, other_weight, other_cost)| {
                // Scores are fractions, compared crosswise: 16 bits times 39.
                let (ours, theirs) = (weight * other_cost, other_weight * cost);
                ours > theirs || ours == theirs && link < other
            });
            if wins {
                best = Some((link, weight, cost));
            }
        }
        best.map(|(link, _, _)| link)
    }

    /// Links of equal weight take turns one by one. Else the turn, times the golden ratio, falls
    /// on a circle that is divided by the weights: the marks are spread as evenly as can be
    /// without remembering anything, so no link gets long runs.
    fn by_turn(&self, turn: u32) -> Option<LinkIndex> {
        let (&(_, weight), rest) = self.order.split_first()?;
        if rest.iter().all(|(_, other)| *other == weight) {
            let at = turn as usize % self.order.len();
            return self.order.get(at).map(|(link, _)| *link);
        }
        let total: u64 = self.order.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut at = (u64::from(turn.wrapping_mul(GOLDEN_RATIO)) * total) >> 32;
        for &(link, weight) in &self.order {
            let Some(behind) = at.checked_sub(weight.into()) else { return Some(link) };
            at = behind;
        }
        None
    }
}

fn set_of(link: Option<LinkIndex>) -> LinkSet {
    link.map_or(LinkSet::EMPTY, LinkSet::only)
}

/// 2^32 over the golden ratio.
const GOLDEN_RATIO: u32 = 0x9e37_79b9;
/// Odd numbers with about as many ones as zeros, from the SplitMix64 generator.
const FLOW_KEY: u64 = 0x9e37_79b9_7f4a_7c15;
const LINK_SALT: u64 = 0xbf58_476d_1ce4_e5b9;
const FRAME_KEY: u64 = 0x94d0_49bb_1331_11eb;

/// Multiplies to 128 bits and folds the halves: each bit of either number touches all of the
/// result. 0 gives 0, so constants are mixed in before.
const fn mix(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// `-log2(h / 2^64)` with 32 bits behind the point, at least 1: 256 steps and straight lines
/// between them, right to one part in 300,000.
const fn negative_log2(h: u64) -> u64 {
    let h = if h == 0 { 1 } else { h };
    let zeros = h.leading_zeros();
    let mantissa = h << zeros;
    let step = (mantissa >> 55) as usize & 0xff;
    let within = mantissa >> 23 & 0xffff_ffff;
    let (low, high) = (LOG2[step], LOG2[step + 1]);
    let fraction = low + (((high - low) * within) >> 32);
    let result = ((zeros as u64 + 1) << 32).saturating_sub(fraction);
    if result == 0 { 1 } else { result }
}

/// `log2(1 + i / 256)` with 32 bits behind the point.
static LOG2: [u64; 257] = log2_table();

/// Bit by bit: squaring a number doubles its logarithm.
const fn log2_table() -> [u64; 257] {
    let mut table = [0; 257];
    let mut step = 0;
    while step < 256 {
        // 1 to 2 with 63 bits behind the point.
        let mut x = (256 + step as u128) << 55;
        let mut log = 0;
        let mut bit = 0;
        while bit < 32 {
            x = (x * x) >> 63;
            log <<= 1;
            if x >> 64 != 0 {
                x >>= 1;
                log |= 1;
            }
            bit += 1;
        }
        table[step] = log;
        step += 1;
    }
    table[256] = 1 << 32;
    table
}

/// The number of the flow that a frame belongs to.
///
/// Of an IP packet: addresses, protocol and, for protocols that have them, ports. Of a fragment
/// the addresses alone, so that all pieces of a packet go one way. Of any other frame: the MAC
/// addresses and the EtherType. The way back is another flow. Not keyed: a tenant can find flows
/// that meet on one link, which costs that tenant alone. `ip` is what was found in `frame`, if any.
#[must_use]
pub fn flow_of(frame: &[u8], ip: Option<&InnerIp>) -> u64 {
    let Some(ip) = ip else { return flow_of_addresses(frame) };
    let addresses = match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => mix_wide(src.to_bits(), dst.to_bits()),
        _ => 0,
    };
    let transport = if ip.is_fragment {
        0
    } else {
        u64::from(ip.proto) << 32 | u64::from(ports(frame, ip).unwrap_or(0))
    };
    mix(mix(addresses ^ FRAME_KEY, FLOW_KEY) ^ transport, FRAME_KEY)
}

/// Source and destination port in one number.
fn ports(frame: &[u8], ip: &InnerIp) -> Option<u32> {
    let has_ports = matches!(
        ip.proto,
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE
    );
    let bytes = frame.get(ip.l4_offset?..)?.first_chunk()?;
    has_ports.then_some(u32::from_be_bytes(*bytes))
}

fn flow_of_addresses(frame: &[u8]) -> u64 {
    let Ok(ethernet) = EthernetView::new(frame) else { return 0 };
    let [d0, d1, d2, d3, d4, d5] = ethernet.destination().0;
    let [s0, s1, s2, s3, s4, s5] = ethernet.source().0;
    let [t0, t1] = ethernet.ether_type().0.to_be_bytes();
    let to = u64::from_be_bytes([d0, d1, d2, d3, d4, d5, t0, t1]);
    let from = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, 0, 0]);
    mix(mix(to ^ FRAME_KEY, FLOW_KEY) ^ from, FRAME_KEY)
}

fn mix_wide(a: u128, b: u128) -> u64 {
    let words = [(a >> 64) as u64, a as u64, (b >> 64) as u64, b as u64];
    words.into_iter().fold(LINK_SALT, |state, word| mix(state ^ word, FLOW_KEY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn flow(frame: &[u8]) -> u64 {
        flow_of(frame, InnerIp::find(frame).as_ref())
    }

    fn link(index: u8) -> LinkIndex {
        LinkIndex::new(index).unwrap()
    }

    fn links(indices: &[u8]) -> LinkSet {
        indices.iter().map(|index| link(*index)).collect()
    }

    fn ways(order: &[(u8, u16)]) -> Ways {
        let order: Vec<_> = order.iter().map(|(index, weight)| (link(*index), *weight)).collect();
        let live = order.iter().map(|(link, _)| *link).collect();
        Ways { order, live, fade: None }
    }

    fn one(ways: &Ways, policy: Policy, flow: u64, turn: &mut u32) -> LinkIndex {
        let set = ways.choose(policy, flow, turn);
        assert_eq!(set.len(), 1);
        set.iter().next().unwrap()
    }

    #[test]
    fn policies_are_read_back_as_written() {
        for (text, policy) in [
            ("passive", Policy::Passive),
            ("active", Policy::Active { copies: 0 }),
            ("active:2", Policy::Active { copies: 2 }),
            ("active:8", Policy::Active { copies: 8 }),
            ("flow-hash", Policy::FlowHash),
            ("round-robin", Policy::RoundRobin),
        ] {
            assert_eq!(text.parse(), Ok(policy));
            assert_eq!(policy.to_string(), text);
        }
        for bad in
            ["", "Passive", "active:", "active:0", "active:9", "active:+2", "active:22", "rr"]
        {
            assert_eq!(bad.parse::<Policy>(), Err(InvalidPolicy), "{bad}");
        }
    }

    #[test]
    fn passive_takes_the_best_and_the_one_that_fades() {
        let mut ways = ways(&[(2, 1), (0, 1)]);
        assert_eq!(ways.choose(Policy::Passive, 7, &mut 0), links(&[2]));
        ways.fade = Some(link(0));
        assert_eq!(ways.choose(Policy::Passive, 7, &mut 0), links(&[0, 2]));
    }

    #[test]
    fn active_takes_all_or_the_best_few() {
        let mut ways = ways(&[(3, 1), (0, 1)]);
        ways.live = links(&[0, 1, 2, 3]);
        for (copies, expected) in [
            (0, &[0, 1, 2, 3][..]),
            (1, &[3]),
            (2, &[0, 3]),
            (3, &[0, 1, 3]),
            (4, &[0, 1, 2, 3]),
            (u8::MAX, &[0, 1, 2, 3]),
        ] {
            assert_eq!(ways.choose(Policy::Active { copies }, 7, &mut 0), links(expected));
        }
        ways.live = LinkSet::EMPTY;
        assert_eq!(ways.choose(Policy::Active { copies: 0 }, 7, &mut 0), links(&[3]));
    }

    #[test]
    fn no_link_gives_the_empty_set() {
        for policy in
            [Policy::Passive, Policy::Active { copies: 0 }, Policy::FlowHash, Policy::RoundRobin]
        {
            assert!(Ways::default().choose(policy, 7, &mut 0).is_empty(), "{policy}");
        }
    }

    #[test]
    fn equal_links_take_strict_turns_and_weights_leave_no_long_runs() {
        let mut turn = u32::MAX - 2;
        let equal = ways(&[(0, 5), (1, 5)]);
        let taken: Vec<_> =
            (0..6).map(|_| one(&equal, Policy::RoundRobin, 0, &mut turn).get()).collect();
        assert_eq!(taken, [0, 1, 0, 1, 0, 1]);

        let unequal = ways(&[(0, 30), (1, 10), (2, 0)]);
        let taken: Vec<_> =
            (0..4000).map(|_| one(&unequal, Policy::RoundRobin, 0, &mut turn).get()).collect();
        assert!((990..=1010).contains(&taken.iter().filter(|link| **link == 1).count()));
        assert!(!taken.contains(&2));
        assert!(taken.windows(8).all(|run| run.contains(&1)));
    }

    #[test]
    fn weight_zero_serves_only_when_all_are_zero() {
        let idle = ways(&[(4, 0), (1, 0)]);
        let mut turn = 0;
        assert_eq!(one(&idle, Policy::FlowHash, 9, &mut turn), link(4));
        assert_ne!(
            one(&idle, Policy::RoundRobin, 9, &mut turn),
            one(&idle, Policy::RoundRobin, 9, &mut turn)
        );
        let backup = ways(&[(4, 0), (1, 1)]);
        assert!((0..1000).all(|flow| one(&backup, Policy::FlowHash, flow, &mut turn) == link(1)));
    }

    /// Known answers: nodes of different builds and machines must agree.
    #[test]
    fn flows_go_the_same_way_on_every_machine() {
        let ways = ways(&[(0, 10), (1, 20), (2, 30)]);
        let taken: Vec<_> =
            (0..16).map(|flow| one(&ways, Policy::FlowHash, flow, &mut 0).get()).collect();
        assert_eq!(taken, KNOWN_WAYS);
        assert_eq!(flow(&udp(1, 2)), KNOWN_FLOW);
    }

    const KNOWN_WAYS: [u8; 16] = [1, 2, 2, 2, 2, 0, 0, 1, 1, 2, 2, 0, 1, 1, 2, 0];
    const KNOWN_FLOW: u64 = 0xae03_5190_bd27_d5ca;

    #[test]
    fn logarithm_is_close() {
        for h in [1, 2, 3, 1 << 20, 0x1234_5678_9abc_def1, u64::MAX / 3, u64::MAX / 2, u64::MAX] {
            let exact = 64.0 - (h as f64).log2();
            let ours = negative_log2(h) as f64 / f64::from(1 << 16) / f64::from(1 << 16);
            assert!((exact - ours).abs() < 4e-6, "{h:x}: {exact} {ours}");
        }
    }

    fn udp(from: u16, to: u16) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(from, to);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &[0; 8]).unwrap();
        bytes
    }

    #[test]
    fn flow_is_of_ports_unless_the_packet_is_in_pieces() {
        assert_eq!(flow(&udp(1, 2)), flow(&udp(1, 2)));
        assert_ne!(flow(&udp(1, 2)), flow(&udp(2, 1)));
        let (mut first, mut later) = (udp(1, 2), udp(3, 4));
        first[20] = 0x20;
        later[21] = 9;
        assert_eq!(flow(&first), flow(&later));
        assert_ne!(flow(&first), flow(&udp(1, 2)));

        let esp = |spi: u16| {
            let mut bytes = udp(spi, 2);
            bytes[23] = 50;
            bytes
        };
        assert_eq!(flow(&esp(1)), flow(&esp(2)));
        assert_ne!(flow(&esp(1)), flow(&udp(1, 2)));
    }

    #[test]
    fn flow_of_other_frames_is_of_their_addresses() {
        let base = [[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6].as_slice(), &[1; 40]].concat();
        for (at, differs) in [(5, true), (11, true), (13, true), (20, false)] {
            let mut other = base.clone();
            other[at] ^= 1;
            assert_eq!(flow(&other) != flow(&base), differs, "byte {at}");
        }
        assert_eq!(flow(&[]), 0);
        let v6 = |last: u8| {
            let mut dst = [0xfd; 16];
            dst[15] = last;
            let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
                .ipv6([0xfd; 16], dst, 64)
                .udp(1, 2);
            let mut bytes = Vec::new();
            builder.write(&mut bytes, &[]).unwrap();
            flow(&bytes)
        };
        assert_ne!(v6(1), v6(2));
    }

    /// Real frames whose ports count up, as a client's do, must spread as well as noise.
    #[test]
    fn neighbouring_flows_spread_evenly() {
        let ways = ways(&[(0, 1), (1, 1), (2, 1), (3, 1)]);
        let mut counts = [0_u32; 4];
        for port in 0..20_000 {
            let taken = one(&ways, Policy::FlowHash, flow(&udp(30_000 + port, 80)), &mut 0);
            counts[taken.at()] += 1;
        }
        assert!(counts.iter().all(|count| (4500..=5500).contains(count)), "{counts:?}");
    }

    fn any_ways() -> impl Strategy<Value = Ways> {
        let all: Vec<u8> = (0..8).collect();
        (prop::sample::subsequence(all, 1..=8).prop_shuffle(), prop::array::uniform8(1..1000_u16))
            .prop_map(|(indices, weights)| {
                let order: Vec<_> = indices.into_iter().zip(weights).collect();
                ways(&order)
            })
    }

    proptest! {
        #[test]
        fn a_link_that_goes_moves_only_its_flows(
            before in any_ways(),
            gone in any::<prop::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let mut after = before.clone();
            let (gone, _) = after.order.remove(gone.index(before.order.len()));
            // The rest may change places: it plays no part.
            after.order.reverse();
            for flow in 0..500 {
                let flow = mix(seed ^ flow, FRAME_KEY);
                let old = one(&before, Policy::FlowHash, flow, &mut 0);
                let new = after.choose(Policy::FlowHash, flow, &mut 0);
                if old == gone {
                    prop_assert_eq!(new.is_empty(), after.order.is_empty());
                } else {
                    prop_assert_eq!(new, LinkSet::only(old));
                }
            }
        }

        #[test]
        fn turns_follow_the_weights(ways in any_ways(), start in any::<u32>()) {
            let mut turn = start;
            let mut counts = [0_u32; 8];
            for _ in 0..20_000 {
                counts[one(&ways, Policy::RoundRobin, 0, &mut turn).at()] += 1;
            }
            let total: f64 = ways.order.iter().map(|(_, weight)| f64::from(*weight)).sum();
            for (link, weight) in &ways.order {
                let expected = 20_000.0 * f64::from(*weight) / total;
                let off = (f64::from(counts[link.at()]) - expected).abs();
                prop_assert!(off <= expected / 10.0 + 10.0, "{counts:?} {ways:?}");
            }
        }

        #[test]
        fn every_choice_is_of_the_links_there_are(
            ways in any_ways(),
            flow in any::<u64>(),
            mut turn in any::<u32>(),
            copies in any::<u8>(),
        ) {
            for policy in
                [Policy::Passive, Policy::Active { copies }, Policy::FlowHash, Policy::RoundRobin]
            {
                let set = ways.choose(policy, flow, &mut turn);
                prop_assert!(!set.is_empty() && set.minus(ways.live).is_empty());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn shares_of_flows_follow_the_weights(ways in any_ways(), seed in any::<u64>()) {
            const FLOWS: u32 = 200_000;
            let mut counts = [0_u32; 8];
            for flow in 0..FLOWS {
                let flow = mix(seed ^ u64::from(flow), FRAME_KEY);
                counts[one(&ways, Policy::FlowHash, flow, &mut 0).at()] += 1;
            }
            let total: f64 = ways.order.iter().map(|(_, weight)| f64::from(*weight)).sum();
            for (link, weight) in &ways.order {
                let expected = f64::from(FLOWS) * f64::from(*weight) / total;
                // Ten percent, and for tiny shares what chance may do.
                let slack = (expected / 10.0).max(6.0 * expected.sqrt() + 10.0);
                let off = (f64::from(counts[link.at()]) - expected).abs();
                prop_assert!(off <= slack, "{counts:?} {ways:?}");
            }
        }
    }
}
