//! What the paths of links take: sizes that change, black holes, fragments.

use encap::forward::policy::Policy;
use encap::forward::protect::Protect;
use encap::link::liveness::{Cause, State};
use encap::link::pmtu::PRECISION;
use encap::vtep::{PathTrouble, UplinkNews};
use encap::wire::buf::UplinkId;

use super::links::{bound, cut_some, policy, protect_all, protect_off, us};
use super::*;
use crate::world::flow::{Flows, SHORTEST};
use crate::world::*;

/// UDP payload of the smallest path that is supported.
const BASE: usize = 1252;

fn size(world: &World, node: usize, link: u8) -> usize {
    world.nodes[node].vtep.peer_status(world.now)[0].links[usize::from(link)].max_udp_payload
}

fn set_size(world: &mut World, from: usize, link: u8, size: usize) {
    world.on_link(from, 1 - from, link, |wire| wire.max_udp_payload = size);
}

/// All paths of the world take this much at first.
fn all_take(size: usize) -> impl FnOnce(&mut World) {
    move |world| world.default_wire.max_udp_payload = size
}

/// The interfaces take more than the paths.
fn large_interfaces(config: &mut VtepConfig) {
    for link in &mut config.peers[0].links {
        link.max_udp_payload = 8_972;
    }
}

#[test]
fn flow_sizes_are_found_to_within_8_bytes_and_never_above() {
    for_seeds(60, |seed| {
        let mut dice = Random(seed);
        let mut sizes = [[0; 2]; 2];
        for (from, of_node) in sizes.iter_mut().enumerate() {
            for size in of_node.iter_mut() {
                let most = if from == 0 { 1_472 } else { 8_972 };
                *size = BASE + dice.below((most - BASE + 1) as u64) as usize;
            }
        }
        let set = |world: &mut World| {
            for (from, of_node) in sizes.iter().enumerate() {
                for (link, size) in (0..).zip(of_node) {
                    set_size(world, from, link, *size);
                }
            }
        };
        let world = World::pair_by(seed, 2, set, large_interfaces);
        for (from, of_node) in sizes.iter().enumerate() {
            for (link, true_size) in of_node.iter().enumerate() {
                let found = size(&world, from, link as u8);
                assert!(
                    (true_size.saturating_sub(PRECISION)..=*true_size).contains(&found),
                    "{found} of {true_size}"
                );
            }
        }
        assert!(world.now - world.start < ms(2_000), "{:?}", world.now - world.start);
    });
}

#[test]
fn flow_a_black_hole_heals_within_a_second_and_small_frames_never_notice() {
    for_seeds(20, |seed| {
        let mut dice = Random(seed);
        let links = 1 + dice.below(2) as u8;
        let mut world = World::pair(seed, links, |config| {
            if seed % 2 == 0 { protect_all(config) } else { protect_off(config) }
        });
        let mut large = Flows::both_ways(&mut world, 1_300..=1_514);
        large.run(&mut world, ms(300), ms(1));
        let smaller = BASE + dice.below(200) as usize;
        let (at, from) = (world.now, dice.below(2) as usize);
        set_size(&mut world, from, 0, smaller);
        large.run(&mut world, ms(3_000), ms(1));
        large.settle(&mut world);
        for (flow, number) in large.lost() {
            let after = large.list[flow].sent[number].1 - at;
            assert!(after < ms(1_000), "lost {after:?} after the path became smaller");
        }
        let found = size(&world, from, 0);
        assert!((smaller - PRECISION..=smaller).contains(&found), "{found} of {smaller}");
        // What every path takes is not in danger.
        let mut small = Flows::both_ways(&mut world, SHORTEST..=1_200);
        set_size(&mut world, from, 0, BASE);
        small.run(&mut world, ms(1_500), ms(1));
        small.assert_complete(&mut world);
    });
}

#[test]
fn flow_steps_of_all_paths_at_random_times_are_followed() {
    for_seeds(4, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair_by(seed, 2, all_take(1_472), protect_all);
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=3_000);
        for _ in 0..6 {
            let (from, link) = (dice.below(2) as usize, dice.below(2) as u8);
            set_size(&mut world, from, link, BASE + dice.below(221) as usize);
            flows.run(&mut world, ms(300 + dice.below(2_000)), ms(1));
            if dice.below(2) == 0 {
                let link = dice.below(2) as u8;
                world.cut(link, true);
                flows.run(&mut world, ms(100), ms(1));
                world.cut(link, false);
                let end = world.now + ms(500);
                assert!(flows.run_until(&mut world, end, ms(1), |world| {
                    (0..2).all(|link| world.link_state(0, link) == State::Up)
                }));
            }
        }
        // What no frames go by is confirmed every 10 s only.
        flows.run(&mut world, ms(11_000), ms(10));
        for (from, link) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let takes = world.link_wires.get(&(from, 1 - from, link));
            let takes = takes.map_or(1_472, |wire| wire.max_udp_payload);
            assert!(size(&world, from, link) <= takes);
        }
        flows.settle(&mut world);
        let before: Vec<_> = flows.list.iter().map(|flow| flow.sent.len()).collect();
        flows.run(&mut world, ms(8_000), ms(10));
        flows.settle(&mut world);
        let late: Vec<_> = flows.lost().into_iter().filter(|l| l.1 >= before[l.0]).collect();
        assert!(late.is_empty(), "{} {late:?}", late.len());
    });
}

#[test]
fn flow_a_path_that_grows_is_used_in_the_end() {
    for_seeds(3, |seed| {
        let mut world = World::pair_by(seed, 2, all_take(1_372), |_| {});
        assert_eq!(size(&world, 0, 0), 1_372);
        set_size(&mut world, 0, 0, 1_472);
        world.run_for(secs(620));
        assert_eq!((size(&world, 0, 0), size(&world, 0, 1)), (1_472, 1_372));
    });
}

#[test]
fn flow_failover_onto_a_smaller_path_drops_nothing() {
    for_seeds(60, |seed| {
        let mut dice = Random(seed);
        let smaller = BASE + dice.below(200) as usize;
        let set = |world: &mut World| {
            set_size(world, 0, 1, smaller);
            set_size(world, 1, 1, BASE + 20);
        };
        let mut world = World::pair_by(seed, 2, set, protect_all);
        // What a host with an MTU of 1500 sends.
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_514);
        flows.run(&mut world, ms(50), us(500));
        for _ in 0..4 {
            let (how, limit) = (dice.below(3), bound(&world, 0));
            cut_some(&mut world, 0, how, true);
            flows.run(&mut world, limit + ms(dice.below(150)), us(250));
            cut_some(&mut world, 0, how, false);
            let end = world.now + ms(800);
            assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        }
        flows.assert_complete(&mut world);
        for node in &world.nodes {
            assert_eq!(node.drops(DropReason::FrameTooLarge), 0);
        }
    });
}

#[test]
fn flow_frames_up_to_the_longest_cross_whatever_fails() {
    for_seeds(20, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair_by(seed, 2, all_take(BASE), protect_all);
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=65_535);
        flows.run(&mut world, ms(30), ms(2));
        for _ in 0..2 {
            let (link, how) = (dice.below(2) as u8, dice.below(3));
            cut_some(&mut world, link, how, true);
            flows.run(&mut world, ms(80), ms(2));
            cut_some(&mut world, link, how, false);
            let end = world.now + ms(800);
            assert!(flows.run_until(&mut world, end, ms(2), World::all_links_up));
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_fragments_under_loss_and_disorder_are_never_mixed() {
    for_seeds(12, |seed| {
        let mut dice = Random(seed);
        let active = Policy::Active { copies: 0 };
        let policies = [Policy::Passive, active, Policy::RoundRobin];
        let which = policies[dice.below(3) as usize];
        let mut world = World::pair(seed, 3, policy(which, Protect::All));
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=12_000);
        flows.ordered = false;
        for link in 0..3 {
            let (jitter, loss) = (us(dice.below(20_000)), dice.below(100_000) as u32);
            world.on_both(link, |wire| *wire = Wire { jitter, loss, duplicate: 50_000, ..*wire });
        }
        flows.run(&mut world, ms(600), us(400));
        flows.settle(&mut world);
        for node in &world.nodes {
            let counters = node.datapath.counters();
            assert!(counters.frames_reassembled.get() > 50);
            assert_eq!(node.drops(DropReason::FragmentInvalid), 0);
        }
        // Nothing of them stays.
        world.run_for(secs(1));
        for node in 0..2 {
            world.tidy(node);
            assert_eq!(world.nodes[node].datapath.held_bytes(encap::id::PeerIndex(0)).1, 0);
        }
    });
}

#[test]
fn flow_a_path_below_1280_bytes_is_not_used() {
    for_seeds(20, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_514);
        flows.run(&mut world, ms(300), ms(1));
        let from = dice.below(2) as usize;
        set_size(&mut world, from, 0, 700 + dice.below(500) as usize);
        let end = world.now + ms(3_000);
        let down = |world: &World| world.link_state(from, 0) == State::Down;
        assert!(flows.run_until(&mut world, end, ms(1), down));
        let too_small = |e: &Event| matches!(e, Event::Link { transition, .. } if transition.cause == Cause::PathTooSmall);
        assert!(world.nodes[from].events.iter().any(too_small));
        flows.settle(&mut world);
        let before: Vec<_> = flows.list.iter().map(|flow| flow.sent.len()).collect();
        flows.run(&mut world, ms(500), ms(1));
        flows.settle(&mut world);
        let late: Vec<_> = flows.lost().into_iter().filter(|l| l.1 >= before[l.0]).collect();
        assert!(late.is_empty(), "{} {late:?}", late.len());
        set_size(&mut world, from, 0, 1_472);
        let end = world.now + ms(5_000);
        assert!(flows.run_until(&mut world, end, ms(1), World::all_links_up), "not up again");
    });
}

#[test]
fn flow_a_smaller_interface_is_heeded_at_once() {
    for_seeds(30, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_514);
        for _ in 0..6 {
            let (node, link) = (dice.below(2) as usize, dice.below(2) as u8);
            let takes = BASE + dice.below(221) as usize;
            let now = world.now;
            let news = UplinkNews::MaxUdpPayload(takes);
            world.nodes[node].vtep.handle_uplink(now, UplinkId(link), news);
            world.drain(node);
            set_size(&mut world, node, link, takes);
            assert!(size(&world, node, link) <= takes);
            flows.run(&mut world, ms(50 + dice.below(300)), us(500));
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_carrier_and_address_signals_move_frames_at_once() {
    for_seeds(60, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_446);
        flows.run(&mut world, ms(50), us(500));
        for _ in 0..6 {
            let (node, link) = (dice.below(2) as usize, dice.below(2) as u8);
            let carrier = dice.below(2) == 0;
            let news = |up| if carrier { UplinkNews::Carrier(up) } else { UplinkNews::Address(up) };
            let limit = bound(&world, link);
            world.cut(link, true);
            flows.run(&mut world, us(dice.below(1_500)), us(100));
            let now = world.now;
            world.nodes[node].vtep.handle_uplink(now, UplinkId(link), news(false));
            world.drain(node);
            assert_ne!(world.link_state(node, link), State::Up);
            flows.send(&mut world, node);
            assert_eq!(world.last_ways, [1 - link]);
            // The other end has no signal: it must have the time to find out.
            flows.run(&mut world, limit + ms(dice.below(100)), us(500));
            world.cut(link, false);
            let now = world.now;
            world.nodes[node].vtep.handle_uplink(now, UplinkId(link), news(true));
            world.drain(node);
            let end = world.now + ms(800);
            assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn sec_forged_icmp_moves_nothing_and_makes_little_traffic() {
    for_seeds(20, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_514);
        flows.run(&mut world, ms(200), ms(1));
        let from = world.nodes[0].events.len();
        world.put.clear();
        flows.run(&mut world, ms(500), ms(1));
        let usual: u64 = (0..2).map(|link| world.put[&(0, link)]).sum();
        world.put.clear();
        for _ in 0..500 {
            for _ in 0..10 {
                let link = dice.below(2) as u8;
                let (uplink, remote) = (UplinkId(link), address_on(2, link).ip());
                let trouble = match dice.below(3) {
                    0 => PathTrouble::Unreachable,
                    1 => PathTrouble::TooBig(None),
                    _ => PathTrouble::TooBig(Some(dice.below(2_000) as usize)),
                };
                let now = world.now;
                world.nodes[0].vtep.handle_trouble(now, uplink, remote, trouble, false);
                world.drain(0);
            }
            flows.run(&mut world, ms(1), ms(1));
        }
        let harassed: u64 = (0..2).map(|link| world.put[&(0, link)]).sum();
        assert!(harassed < usual + 200, "{harassed} datagrams, {usual} without");
        let events = &world.nodes[0].events[from..];
        assert!(events.is_empty(), "{events:?}");
        flows.assert_complete(&mut world);
    });
}
