//! Which links carry frames: policies, draining, the way back.

use encap::forward::policy::Policy;
use encap::forward::protect::Protect;
use encap::link::id::LinkIndex;

use super::links::{LENS, cut_some, policy, protect_off, uneven, us};
use super::*;
use crate::world::flow::Flows;
use crate::world::*;

#[test]
fn flow_active_loses_what_all_links_lose() {
    for_seeds(8, |seed| {
        let mut dice = Random(seed);
        let links = 2 + dice.below(2) as u8;
        let mut world =
            World::pair(seed, links, policy(Policy::Active { copies: 0 }, Protect::Off));
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.ordered = false;
        let loss = [1_000, 10_000, 50_000, 100_000, 200_000][dice.below(5) as usize];
        for link in 0..links {
            world.on_both(link, |wire| wire.loss = loss);
        }
        // Until the loss is known a link may be out for a moment.
        flows.run(&mut world, ms(1_500), ms(1));
        let before = flows.sent() / 2;
        flows.run(&mut world, ms(2_000), us(200));
        flows.settle(&mut world);
        let lost = flows.lost().into_iter().filter(|(_, number)| *number >= before).count();
        let share = lost as f64 / (flows.sent() - 2 * before) as f64;
        let product = (f64::from(loss) / 1e6).powi(links.into());
        assert!(share <= 1.5 * product + 0.0005, "{share} lost, not {product}");
    });
}

#[test]
fn flow_frames_return_to_a_link_without_a_gap() {
    for_seeds(10, |seed| {
        let mut dice = Random(seed);
        let mut shape = dice.clone();
        let wires = |world: &mut World| uneven(world, 2, &mut shape);
        let mut world = World::pair_by(seed, 2, wires, |config| {
            config.peers[0].links[0].priority = 1;
            protect_off(config);
        });
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        cut_some(&mut world, 0, dice.below(3), true);
        flows.run(&mut world, ms(100), ms(1));
        world.cut(0, false);
        flows.settle(&mut world);
        let before = flows.sent() / 2;
        let from: Vec<_> = world.nodes.iter().map(|node| node.events.len()).collect();
        flows.run(&mut world, ms(6_000), us(700));
        for (node, from) in world.nodes.iter().zip(from) {
            let back = |e: &&Event| matches!(e, Event::Moved { moved, .. } if moved.to.get() == 0);
            assert_eq!(node.events[from..].iter().filter(back).count(), 1);
        }
        flows.settle(&mut world);
        let late: Vec<_> = flows.lost().into_iter().filter(|lost| lost.1 >= before).collect();
        assert!(late.is_empty(), "{late:?}");
    });
}

#[test]
fn flow_draining_a_link_loses_nothing() {
    for_seeds(50, |seed| {
        let mut dice = Random(seed);
        let links = 2 + dice.below(3) as u8;
        let mut shape = dice.clone();
        let mut world =
            World::pair_by(seed, links, |world| uneven(world, links, &mut shape), protect_off);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        for _ in 0..20 {
            let (node, link) = (dice.below(2) as usize, dice.below(links.into()) as u8);
            let (index, drained) = (LinkIndex::new(link).unwrap(), dice.below(2) == 0);
            let peer = id(2 - node as u16);
            world.nodes[node].vtep.drain_link(world.now, peer, index, drained).unwrap();
            world.drain(node);
            // Until it has faded.
            flows.run(&mut world, us(15_000 + dice.below(15_000)), us(500));
            let status = &world.nodes[node].vtep.peer_status(world.now)[0];
            let others = status.links.iter().any(|link| !link.drained);
            flows.send(&mut world, node);
            let used = world.last_ways.last() == Some(&link);
            assert!(!(drained && others && used), "a drained link carries frames");
            flows.run(&mut world, us(dice.below(30_000)), us(500));
        }
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_flow_hash_moves_only_the_flows_of_a_dead_link() {
    for_seeds(8, |seed| {
        let mut dice = Random(seed);
        let links = 3 + dice.below(2) as u8;
        let mut world = World::pair(seed, links, policy(Policy::FlowHash, Protect::All));
        let mut flows = Flows::new(&mut world, &[(0, 1); 40], LENS);
        let ways = |world: &mut World, flows: &mut Flows| -> Vec<u8> {
            let way = |at| {
                flows.send(world, at);
                assert!(world.last_ways.windows(2).all(|two| two[0] == two[1]));
                world.last_ways[0]
            };
            let ways = (0..40).map(way).collect();
            world.run_for(ms(2));
            flows.check(world);
            ways
        };
        let before = ways(&mut world, &mut flows);
        for link in 0..links {
            assert!(before.contains(&link), "{before:?}");
        }
        flows.run(&mut world, ms(50), ms(1));
        let dead = dice.below(links.into()) as u8;
        cut_some(&mut world, dead, dice.below(3), true);
        flows.run(&mut world, ms(100), ms(1));
        let after = ways(&mut world, &mut flows);
        for (was, is) in before.iter().zip(&after) {
            assert!(if *was == dead { *is != dead } else { is == was }, "{before:?} {after:?}");
        }
        world.cut(dead, false);
        flows.run(&mut world, secs(6), ms(20));
        assert_eq!(ways(&mut world, &mut flows), before, "all are back");
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_round_robin_takes_turns_on_what_is_alive() {
    for_seeds(8, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 3, policy(Policy::RoundRobin, Protect::All));
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.ordered = false;
        let shares = |world: &mut World, flows: &mut Flows| {
            let mut shares = [0; 3];
            for _ in 0..300 {
                flows.send(world, 0);
                shares[usize::from(world.last_ways[0])] += 1;
                world.run_for(us(500));
                flows.check(world);
            }
            shares
        };
        assert_eq!(shares(&mut world, &mut flows), [100; 3]);
        let dead = dice.below(3) as u8;
        cut_some(&mut world, dead, dice.below(3), true);
        flows.run(&mut world, ms(50), us(500));
        let without = shares(&mut world, &mut flows);
        for link in 0..3 {
            assert_eq!(without[usize::from(link)], if link == dead { 0 } else { 150 });
        }
        world.cut(dead, false);
        flows.run(&mut world, secs(6), ms(5));
        assert_eq!(shares(&mut world, &mut flows), [100; 3]);
        flows.assert_complete(&mut world);
    });
}

#[test]
fn flow_copies_damage_and_disorder_are_never_seen() {
    for_seeds(15, |seed| {
        let mut dice = Random(seed);
        let active = Policy::Active { copies: 0 };
        let policies = [Policy::Passive, active, Policy::FlowHash, Policy::RoundRobin];
        let which = policies[dice.below(4) as usize];
        let mut world = World::pair(seed, 3, policy(which, Protect::All));
        let mut flows = Flows::both_ways(&mut world, flow::SHORTEST..=4_000);
        flows.ordered = false;
        for link in 0..3 {
            let (jitter, corrupt) = (us(dice.below(5_000)), dice.below(50_000) as u32);
            world.on_both(link, |wire| {
                *wire = Wire { duplicate: 200_000, corrupt, jitter, ..*wire };
            });
        }
        for _ in 0..3 {
            let (link, how) = (dice.below(3) as u8, dice.below(3));
            cut_some(&mut world, link, how, true);
            flows.run(&mut world, ms(150), us(300));
            cut_some(&mut world, link, how, false);
            flows.run(&mut world, ms(150), us(300));
        }
        flows.settle(&mut world);
        // Damage is loss: of one in 20 datagrams, of which a frame may have four.
        let share = flows.lost().len() as f64 / flows.sent() as f64;
        assert!(share < 0.25, "{share}");
    });
}
