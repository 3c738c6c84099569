//! Many peers: heartbeats stay within their budget, and what that costs in detection time.

use encap::link::profile::{FAST, missed_for};

use super::*;
use crate::world::flow::{Flows, SHORTEST};
use crate::world::*;

/// A hub with so many peers and two links to each. Those have as many other peers, as far as their
/// own budget goes, or else only the hub.
fn star(seed: u64, peers: u16, alike: bool) -> World {
    let mut world = World::new(seed);
    world.keep_sent = false;
    let hub = config_on(1, peers + 1, 2);
    let budget = hub.limits.heartbeats_per_second;
    world.add(hub);
    for me in 2..=peers + 1 {
        let mut leaf = config_on(me, 1, 2);
        leaf.networks[0].members = vec![id(1)];
        if alike {
            leaf.limits.heartbeats_per_second = (budget / u32::from(peers)).max(1);
        }
        world.add(leaf);
    }
    for _ in 0..600 {
        world.run_for(ms(100));
        if world.all_links_up() {
            return world;
        }
    }
    panic!("links do not come up");
}

/// A flow from each leaf to the hub.
fn flows_of_all(world: &mut World) -> Flows {
    let ways: Vec<_> = (1..world.nodes.len()).map(|leaf| (leaf, 0)).collect();
    Flows::new(world, &ways, SHORTEST..=100)
}

/// Datagrams that the hub puts on all its links in a second; it sends no frames.
fn rate_of_hub(world: &mut World, flows: &mut Flows) -> f64 {
    flows.run(world, ms(1_500), ms(250));
    world.put.clear();
    let from = world.now;
    flows.run(world, ms(1_000), ms(250));
    let put: u64 = (0..2).map(|link| world.put[&(0, link)]).sum();
    put as f64 / (world.now - from).as_secs_f64()
}

#[test]
fn flow_heartbeats_of_50_and_200_peers_stay_within_their_budget() {
    for peers in [50, 200] {
        let mut world = star(1, peers, true);
        let mut flows = flows_of_all(&mut world);
        let rate = rate_of_hub(&mut world, &mut flows);
        let budget = f64::from(world.nodes[0].config.limits.heartbeats_per_second);
        println!("{peers} peers: {rate:.0} heartbeats a second of {budget}");
        assert!(rate < budget * 1.1, "{peers} peers: {rate} of {budget}");
        assert!(rate > budget * 0.7, "{peers} peers: {rate} of {budget} is too few");
    }
}

#[test]
fn flow_peers_in_a_hurry_do_not_take_more_than_the_budget() {
    for peers in [10, 50] {
        let mut world = star(1, peers, false);
        let mut flows = flows_of_all(&mut world);
        let rate = rate_of_hub(&mut world, &mut flows);
        let budget = f64::from(world.nodes[0].config.limits.heartbeats_per_second);
        println!("{peers} fast peers: {rate:.0} heartbeats a second of {budget}");
        assert!(rate < budget * 1.1, "{peers} peers: {rate} of {budget}");
    }
}

/// Whether both ends have left link 0 between the hub and a leaf.
fn is_left(world: &World, leaf: NodeIndex) -> bool {
    let left = |node: NodeIndex, peer: usize| {
        let tables = world.nodes[node].vtep.tables();
        tables.peers[peer].as_ref().is_some_and(|peer| peer.failures[0] > 0)
    };
    left(0, leaf - 1) && left(leaf, 0)
}

/// The interval of both ends, and in what time a cut of link 0 must be found.
fn expected(world: &World, leaf: NodeIndex) -> (Duration, Duration) {
    let of = |node: NodeIndex, peer: usize| {
        let link = &world.nodes[node].vtep.peer_status(world.now)[peer].links[0];
        let loss = f64::from(link.measured.loss_in_ppm) / 1e6;
        let rounds = missed_for(loss, link.interval, &FAST) + 4;
        (link.interval, link.interval * rounds)
    };
    of(0, leaf - 1).max(of(leaf, 0))
}

#[test]
fn flow_detection_time_by_number_of_peers() {
    println!("| Peers | Interval, ms | Found after, ms: median | Worst | Bound |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    let in_ms = |time: Duration| time.as_secs_f64() * 1e3;
    for peers in [2, 10, 50, 200] {
        let mut world = star(1, peers, true);
        let mut flows = flows_of_all(&mut world);
        flows.run(&mut world, ms(1_500), ms(250));
        let mut dice = Random(u64::from(peers));
        let (mut interval, mut bound) = expected(&world, 1);
        let mut times = Vec::new();
        // A cut is loss too, as far as the next one on the same link goes.
        for leaf in 1..=usize::from(peers.min(6)) {
            (interval, bound) = expected(&world, leaf);
            world.run_for(Duration::from_micros(dice.below(interval.as_micros() as u64)));
            let at = world.now;
            set_cut(&mut world, leaf, true);
            let found = world.run_until(at + bound, |world| is_left(world, leaf));
            assert!(found, "{peers} peers: not found within {bound:?}");
            times.push(world.now - at);
            set_cut(&mut world, leaf, false);
            flows.run(&mut world, ms(500), ms(250));
        }
        times.sort_unstable();
        println!(
            "| {peers} | {:.1} | {:.1} | {:.1} | {:.1} |",
            in_ms(interval),
            in_ms(times[times.len() / 2]),
            in_ms(times[times.len() - 1]),
            in_ms(bound)
        );
    }
}

fn set_cut(world: &mut World, leaf: NodeIndex, cut: bool) {
    world.on_link(0, leaf, 0, |wire| wire.cut = cut);
    world.on_link(leaf, 0, 0, |wire| wire.cut = cut);
}
