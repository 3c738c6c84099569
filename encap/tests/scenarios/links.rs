//! Several links between two nodes: watched, chosen, failed over.

use encap::forward::policy::Policy;
use encap::forward::protect::Protect;
use encap::link::liveness::State;
use encap::link::profile::missed_for;

use super::*;
use crate::world::flow::Flows;
use crate::world::*;

/// Frames of all lengths that the paths take whole.
pub const LENS: std::ops::RangeInclusive<usize> = flow::SHORTEST..=1446;

pub const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// Everything is kept to be sent again.
pub fn protect_all(config: &mut VtepConfig) {
    config.peers.iter_mut().for_each(|peer| peer.protect = Protect::All);
}

/// Wires that differ, on none of which anything overtakes.
pub fn uneven(world: &mut World, links: u8, dice: &mut Random) {
    for link in 0..links {
        let (delay, jitter) = (us(20 + dice.below(1_000)), us(dice.below(200)));
        world.on_both(link, |wire| *wire = Wire { delay, jitter, fifo: true, ..*wire });
    }
}

/// Cuts one way of a link, the other, or both.
pub fn cut_some(world: &mut World, link: u8, how: u64, cut: bool) {
    if how != 1 {
        world.on_link(0, 1, link, |wire| wire.cut = cut);
    }
    if how != 0 {
        world.on_link(1, 0, link, |wire| wire.cut = cut);
    }
}

/// How long a link may be cut before it is found: the rounds that its loss asks for and 4 more, and
/// what it is slower and less steady.
pub fn bound(world: &World, link: u8) -> Duration {
    let longest = |node: usize| {
        let status = &world.nodes[node].vtep.peer_status(world.now)[0];
        let link = &status.links[usize::from(link)];
        let loss = f64::from(link.measured.loss_in_ppm) / 1e6;
        let interval = link.interval.max(ms(1));
        let rounds = missed_for(loss, interval, &encap::link::profile::FAST) + 4;
        interval * rounds + us(4 * u64::from(link.measured.jitter_us)) + us(2_500)
    };
    longest(0).max(longest(1))
}

#[test]
fn flow_cuts_are_found_in_time_and_lose_nothing() {
    for_seeds(150, |seed| {
        let mut dice = Random(seed);
        let links = 2 + dice.below(2) as u8;
        let mut shape = dice.clone();
        let mut world =
            World::pair_by(seed, links, |world| uneven(world, links, &mut shape), protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        for _ in 0..8 {
            let (link, how) = (dice.below(links.into()) as u8, dice.below(3));
            flows.run(&mut world, us(dice.below(3_000)), us(250));
            let limit = bound(&world, link);
            let at = world.now;
            cut_some(&mut world, link, how, true);
            let found =
                |world: &World| (0..2).all(|node| world.link_state(node, link) != State::Up);
            let in_time = flows.run_until(&mut world, at + limit, us(250), found);
            assert!(in_time, "link {link}, way {how}: not found within {limit:?}");
            flows.run(&mut world, ms(dice.below(100)), us(500));
            cut_some(&mut world, link, how, false);
            let end = world.now + ms(500);
            let up = flows.run_until(&mut world, end, us(500), World::all_links_up);
            assert!(up, "link {link}, way {how}: not up again");
        }
        flows.assert_complete(&mut world);
    });
}

/// Nothing is kept to be sent again.
pub fn protect_off(config: &mut VtepConfig) {
    config.peers.iter_mut().for_each(|peer| peer.protect = Protect::Off);
}

pub fn policy(policy: Policy, protect: Protect) -> impl Fn(&mut VtepConfig) {
    move |config| {
        config.peers.iter_mut().for_each(|p| (p.policy, p.protect) = (policy, protect));
    }
}

/// Transitions that a node reported from an event on.
fn transitions(world: &World, node: usize, from: usize, to: State) -> usize {
    let to_it = |e: &&Event| matches!(e, Event::Link { transition, .. } if transition.to == to);
    world.nodes[node].events[from..].iter().filter(to_it).count()
}

fn moves(world: &World, node: usize) -> usize {
    world.nodes[node].events.iter().filter(|e| matches!(e, Event::Moved { .. })).count()
}

#[test]
fn flow_without_protection_a_cut_costs_what_was_sent_until_it_was_found() {
    for_seeds(20, |seed| {
        let mut world = World::pair(seed, 2, protect_off);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        let limit = bound(&world, 0);
        world.cut(0, true);
        flows.run(&mut world, ms(300), us(500));
        flows.settle(&mut world);
        let most = 2 * (limit.as_micros() / 500) as usize;
        assert!((1..=most).contains(&flows.lost().len()), "{} lost", flows.lost().len());
    });
}

#[test]
fn flow_two_one_way_cuts_on_different_links_leave_a_way() {
    for_seeds(150, |seed| {
        let mut dice = Random(seed);
        let mut shape = dice.clone();
        let mut world = World::pair_by(seed, 2, |world| uneven(world, 2, &mut shape), protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        let first = dice.below(2) as u8;
        let limit = bound(&world, first);
        world.on_link(0, 1, first, |wire| wire.cut = true);
        // At once, while the first is being found, or long after.
        let between = [0, dice.below(10_000), 200_000][dice.below(3) as usize];
        flows.run(&mut world, us(between), us(250));
        world.on_link(1, 0, 1 - first, |wire| wire.cut = true);
        flows.run(&mut world, limit * 2, us(250));
        let before = flows.sent();
        flows.run(&mut world, ms(300), us(500));
        flows.settle(&mut world);
        let late = flows.lost().into_iter().filter(|(_, number)| *number > before / 2).count();
        assert_eq!(late, 0, "there is a way");
        for link in 0..2 {
            world.cut(link, false);
        }
        let end = world.now + ms(500);
        assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_grey_links_are_used_and_never_stuck() {
    for_seeds(30, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.ordered = false;
        let loss = [1_000, 10_000, 50_000, 100_000, 200_000][dice.below(5) as usize];
        for link in 0..2 {
            world.on_both(link, |wire| wire.loss = loss);
        }
        flows.run(&mut world, ms(3_000), ms(1));
        flows.settle(&mut world);
        let share = flows.lost().len() as f64 / flows.sent() as f64;
        let most = 1.3 * f64::from(loss) / 1e6 + 0.005;
        assert!(share < most, "{share} lost at {loss} ppm");
        for at in 0..2 {
            let gap = flows.longest_gap(at);
            assert!(gap < ms(40), "nothing came for {gap:?} at {loss} ppm");
        }
        for node in &world.nodes {
            let down = |e: &Event| matches!(e, Event::PeerDown { .. });
            assert!(!node.events.iter().any(down), "{:?}", node.events);
        }
    });
}

#[test]
fn flow_stalls_of_either_end_or_both_take_no_link_down() {
    for_seeds(80, |seed| {
        let mut dice = Random(seed);
        let mut shape = dice.clone();
        let mut world = World::pair_by(seed, 2, |world| uneven(world, 2, &mut shape), protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        let from: Vec<_> = world.nodes.iter().map(|node| node.events.len()).collect();
        world.first_socket = dice.below(2) as u8;
        for _ in 0..10 {
            let who = dice.below(3) as usize;
            for node in 0..2 {
                if who != node {
                    let time = us(1_000 + dice.below(49_000));
                    world.stall(node, time);
                }
            }
            flows.run(&mut world, us(10_000 + dice.below(90_000)), us(500));
        }
        for (node, from) in from.into_iter().enumerate() {
            let events = &world.nodes[node].events[from..];
            assert_eq!(transitions(&world, node, from, State::Down), 0, "{events:?}");
            assert_eq!(transitions(&world, node, from, State::Suspect), 0, "{events:?}");
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_stalls_and_cuts_together_lose_nothing() {
    for_seeds(60, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        world.first_socket = dice.below(2) as u8;
        for _ in 0..6 {
            let (link, how) = (dice.below(2) as u8, dice.below(3));
            cut_some(&mut world, link, how, true);
            flows.run(&mut world, us(dice.below(8_000)), us(500));
            // As long as what is kept reaches back.
            world.stall(dice.below(2) as usize, us(1_000 + dice.below(9_000)));
            flows.run(&mut world, ms(100), us(500));
            cut_some(&mut world, link, how, false);
            let end = world.now + ms(500);
            assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_all_links_silent_is_a_peer_that_is_gone_and_comes_back() {
    for_seeds(40, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(200), ms(1));
        let from: Vec<_> = world.nodes.iter().map(|node| node.events.len()).collect();
        world.cut(0, true);
        world.cut(1, true);
        flows.run(&mut world, ms(900), ms(1));
        for (node, from) in from.iter().enumerate() {
            let events = &world.nodes[node].events[*from..];
            assert_eq!(transitions(&world, node, *from, State::Suspect), 0, "{events:?}");
            assert!(world.nodes[node].is_up(world.now, id(2 - node as u16)));
        }
        flows.run(&mut world, ms(300), ms(1));
        for (node, from) in from.iter().enumerate() {
            let silent = Event::PeerDown { node: id(2 - node as u16), reason: DownReason::Silent };
            let events = &world.nodes[node].events[*from..];
            assert!(events.contains(&silent), "{events:?}");
        }
        flows.run(&mut world, ms(dice.below(3_000)), ms(1));
        let (first, other) = (dice.below(2) as u8, ms(dice.below(300)));
        world.cut(first, false);
        flows.run(&mut world, other, ms(1));
        world.cut(1 - first, false);
        let end = world.now + ms(1_000);
        assert!(flows.run_until(&mut world, end, ms(1), World::all_links_up), "not up again");
        let before = flows.sent() / 2;
        flows.run(&mut world, ms(200), ms(1));
        flows.settle(&mut world);
        let late: Vec<_> = flows.lost().into_iter().filter(|lost| lost.1 >= before).collect();
        assert!(late.is_empty(), "{late:?}");
    });
}

#[test]
fn flow_a_short_silence_of_all_links_is_no_failure() {
    for_seeds(60, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 3, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(100), ms(1));
        let from: Vec<_> = world.nodes.iter().map(|node| node.events.len()).collect();
        for link in 0..3 {
            world.cut(link, true);
        }
        flows.run(&mut world, ms(1 + dice.below(800)), ms(1));
        for link in 0..3 {
            world.cut(link, false);
        }
        flows.run(&mut world, ms(200), ms(1));
        for (node, from) in from.into_iter().enumerate() {
            let events = &world.nodes[node].events[from..];
            assert_eq!(transitions(&world, node, from, State::Down), 0, "{events:?}");
            assert_eq!(transitions(&world, node, from, State::Suspect), 0, "{events:?}");
        }
    });
}

#[test]
fn flow_a_flapping_link_is_left_alone() {
    for_seeds(2, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(100), ms(2));
        let end = world.now + secs(60);
        while world.now < end {
            cut_some(&mut world, 0, dice.below(3), true);
            flows.run(&mut world, ms(5 + dice.below(150)), ms(2));
            world.cut(0, false);
            flows.run(&mut world, ms(20 + dice.below(400)), ms(2));
        }
        for node in 0..2 {
            let moves = moves(&world, node);
            assert!((1..=3).contains(&moves), "node {node}: {moves} moves in a minute");
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_eight_links_die_one_after_the_other_and_nothing_is_lost() {
    for_seeds(30, |seed| {
        let mut dice = Random(seed);
        let mut shape = dice.clone();
        let mut world = World::pair_by(seed, 8, |world| uneven(world, 8, &mut shape), protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        let mut alive: Vec<u8> = (0..8).collect();
        while alive.len() > 1 {
            let link = alive.swap_remove(dice.below(alive.len() as u64) as usize);
            cut_some(&mut world, link, dice.below(3), true);
            flows.run(&mut world, ms(10 + dice.below(60)), us(500));
        }
        flows.run(&mut world, ms(100), us(500));
        for link in 0..8 {
            world.cut(link, false);
        }
        let end = world.now + ms(500);
        assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_several_links_of_eight_die_at_once_and_nothing_is_lost() {
    for_seeds(30, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 8, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        for _ in 0..4 {
            let stays = dice.below(8) as u8;
            for link in (0..8).filter(|link| *link != stays) {
                cut_some(&mut world, link, dice.below(3), true);
                flows.run(&mut world, us(dice.below(1_000)), us(250));
            }
            flows.run(&mut world, ms(100), us(500));
            for link in 0..8 {
                world.cut(link, false);
            }
            let end = world.now + ms(500);
            assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_rotation_during_failover_loses_nothing() {
    for_seeds(10, |seed| {
        let mut dice = Random(seed);
        let soft_packets = [100, 300, 1_000][dice.below(3) as usize];
        let mut world = World::pair(seed, 2, |config| {
            config.limits.key = KeyLimits { soft_packets, ..KeyLimits::AES_256_GCM };
            protect_all(config);
        });
        let mut flows = Flows::both_ways(&mut world, flow::SHORTEST..=3_000);
        flows.run(&mut world, ms(50), us(100));
        for _ in 0..6 {
            let (link, how) = (dice.below(2) as u8, dice.below(3));
            cut_some(&mut world, link, how, true);
            flows.run(&mut world, ms(60), us(50));
            cut_some(&mut world, link, how, false);
            let end = world.now + ms(500);
            assert!(flows.run_until(&mut world, end, us(50), World::all_links_up));
        }
        flows.assert_complete(&mut world);
        let (epoch, _) = world.nodes[0].vtep.peer_status(world.now)[0].epochs.unwrap();
        assert!(epoch >= 5, "epoch {epoch}");
    });
}

#[test]
fn flow_rehandshake_during_failover_loses_nothing() {
    for_seeds(100, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        for _ in 0..4 {
            let (link, how) = (dice.below(2) as u8, dice.below(3));
            cut_some(&mut world, link, how, true);
            flows.run(&mut world, us(dice.below(8_000)), us(250));
            let node = dice.below(2) as usize;
            world.nodes[node].vtep.rehandshake(world.now, None).unwrap();
            world.drain(node);
            flows.run(&mut world, ms(100), us(500));
            cut_some(&mut world, link, how, false);
            let end = world.now + ms(500);
            assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_a_restart_during_failover_heals() {
    for_seeds(40, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.ordered = false;
        flows.run(&mut world, ms(50), us(500));
        let (link, how, node) = (dice.below(2) as u8, dice.below(3), dice.below(2) as usize);
        cut_some(&mut world, link, how, true);
        flows.run(&mut world, us(dice.below(10_000)), us(500));
        world.kill(node);
        flows.run(&mut world, ms(dice.below(2_000)), us(500));
        world.restart(node);
        flows.run(&mut world, ms(2_000), ms(2));
        let before: Vec<_> = flows.list.iter().map(|flow| flow.sent.len()).collect();
        flows.run(&mut world, ms(300), us(500));
        cut_some(&mut world, link, how, false);
        let end = world.now + ms(500);
        assert!(flows.run_until(&mut world, end, us(500), World::all_links_up));
        flows.settle(&mut world);
        let late: Vec<_> = flows.lost().into_iter().filter(|l| l.1 >= before[l.0]).collect();
        assert!(late.is_empty(), "{} {late:?}", late.len());
    });
}
