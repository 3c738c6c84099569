//! Links whose other end moves, and a peer with the keys that means harm.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use encap::crypto::seal::TxLane;
use encap::forward::address_filter::AddressFilter;
use encap::link::id::LinkSet;
use encap::vtep::config::Remote;
use encap::wire::control::Message;
use encap::wire::header::{Handle, InnerHeader, Kind, Lane};
use encap::wire::heartbeat::{Heartbeat, LinkReport};

use super::links::{protect_all, us};
use super::*;
use crate::world::flow::{Flows, SHORTEST};
use crate::world::*;

/// Node 1 (id 2) learns where node 0 is.
fn dynamic(config: &mut VtepConfig, filter: &AddressFilter) {
    protect_all(config);
    if config.node == id(2) {
        for link in &mut config.peers[0].links {
            link.remote = Remote::Dynamic(filter.clone());
        }
    }
}

fn elsewhere(number: u64) -> SocketAddr {
    let [_, _, c, d] = (number as u32).to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, c, d)), 1024 + number as u16)
}

fn remote(world: &World, link: u8) -> Option<SocketAddr> {
    world.nodes[1].vtep.peer_status(world.now)[0].links[usize::from(link)].remote
}

fn roamed(world: &World) -> usize {
    let roamed = |e: &&Event| matches!(e, Event::Roamed { .. });
    world.nodes[1].events.iter().filter(roamed).count()
}

#[test]
fn flow_a_peer_that_moves_is_followed() {
    for_seeds(12, |seed| {
        let mut dice = Random(seed);
        let filter = AddressFilter::default();
        let links = 1 + dice.below(3) as u8;
        let mut world = World::pair(seed, links, |config| dynamic(config, &filter));
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_446);
        flows.run(&mut world, ms(300), us(500));
        for link in 0..links {
            assert_eq!(remote(&world, link), Some(address_on(1, link)));
        }
        let mut moved_at = Vec::new();
        for step in 0..5 {
            moved_at.push(world.now);
            for link in 0..links {
                if links == 1 || dice.below(2) == 0 {
                    let to = elsewhere(100 * step + u64::from(link));
                    world.nodes[0].addresses[usize::from(link)] = to;
                }
            }
            flows.run(&mut world, ms(1_000 + dice.below(500)), us(500));
            for link in 0..links {
                let at = world.nodes[0].addresses[usize::from(link)];
                assert_eq!(remote(&world, link), Some(at), "link {link}");
            }
        }
        flows.settle(&mut world);
        for (flow, number) in flows.lost() {
            let sent = flows.list[flow].sent[number].1;
            let late = moved_at.iter().all(|at| sent + ms(1) < *at || sent > *at + ms(20));
            assert!(!late, "flow {flow}: lost long after the move");
        }
        for node in &world.nodes {
            assert!(!node.events.iter().any(|e| matches!(e, Event::PeerDown { .. })));
        }
    });
}

#[test]
fn flow_only_the_port_of_a_peer_changes() {
    for_seeds(8, |seed| {
        let mut world = World::pair(seed, 2, |config| dynamic(config, &AddressFilter::default()));
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_446);
        flows.run(&mut world, ms(300), us(500));
        for step in 1..=5 {
            world.nodes[0].addresses[0].set_port(40_000 + step);
            flows.run(&mut world, ms(300), us(500));
            assert_eq!(remote(&world, 0), Some(world.nodes[0].addresses[0]));
        }
        assert_eq!(remote(&world, 1), Some(address_on(1, 1)));
    });
}

#[test]
fn flow_a_peer_that_moves_while_links_fail_or_it_restarts_is_found_again() {
    for_seeds(40, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, |config| dynamic(config, &AddressFilter::default()));
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_446);
        flows.ordered = false;
        flows.run(&mut world, ms(200), us(500));
        let restarts = dice.below(2) == 0;
        if restarts {
            world.kill(0);
        } else {
            world.cut(0, true);
            world.cut(1, dice.below(2) == 0);
        }
        flows.run(&mut world, ms(dice.below(2_000)), ms(1));
        for link in 0..2_u8 {
            world.nodes[0].addresses[usize::from(link)] = elsewhere(500 + u64::from(link));
        }
        if restarts {
            world.restart(0);
        }
        for link in 0..2 {
            world.cut(link, false);
        }
        let end = world.now + ms(3_000);
        let there = |world: &World| {
            (0..2_u8).all(|at| remote(world, at) == Some(elsewhere(500 + u64::from(at))))
        };
        let found = |world: &World| world.all_links_up() && there(world);
        assert!(flows.run_until(&mut world, end, ms(1), found), "not found again");
        let before: Vec<_> = flows.list.iter().map(|flow| flow.sent.len()).collect();
        flows.run(&mut world, ms(200), us(500));
        flows.settle(&mut world);
        let late: Vec<_> = flows.lost().into_iter().filter(|l| l.1 >= before[l.0]).collect();
        assert!(late.is_empty(), "{} {late:?}", late.len());
    });
}

#[test]
fn sec_datagrams_that_somebody_sends_from_elsewhere_do_not_move_a_link() {
    for_seeds(40, |seed| {
        let mut dice = Random(seed);
        let mut world = World::pair(seed, 2, |config| dynamic(config, &AddressFilter::default()));
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_446);
        flows.run(&mut world, ms(100), us(500));
        let before = roamed(&world);
        for round in 0..20 {
            world.sent.clear();
            world.keep_sent = true;
            // One who sits on the path keeps the datagram from arriving, or lets it arrive.
            let held_back = dice.below(2) == 0;
            if held_back {
                world.cut(0, true);
            }
            flows.send(&mut world, 0);
            world.keep_sent = false;
            world.cut(0, false);
            if !held_back {
                world.run_for(ms(1));
            }
            let (attacker, recorded) = (elsewhere(9_000 + round), world.sent.clone());
            for sent in recorded.iter().filter(|sent| sent.to == 1) {
                world.inject_on(attacker, 1, 0, sent.bytes.clone());
            }
            flows.run(&mut world, ms(dice.below(50)), us(500));
        }
        assert_eq!(roamed(&world), before, "it answers no challenge");
        assert_eq!(remote(&world, 0), Some(address_on(1, 0)));
        flows.assert_complete(&mut world);
    });
}

#[test]
fn sec_a_filter_keeps_a_peer_from_places_where_it_has_no_business() {
    for_seeds(30, |seed| {
        let denied = vec!["203.0.0.0/16".parse().unwrap()];
        let filter = AddressFilter { deny: denied, allow: Vec::new() };
        let mut world = World::pair(seed, 2, |config| dynamic(config, &filter));
        let mut flows = Flows::both_ways(&mut world, SHORTEST..=1_446);
        flows.run(&mut world, ms(200), us(500));
        let before = roamed(&world);
        world.nodes[0].addresses[0] = elsewhere(seed);
        flows.run(&mut world, ms(500), us(500));
        assert_eq!(roamed(&world), before);
        assert!(world.nodes[1].drops(DropReason::SourceUnknown) > 0);
        assert_eq!(remote(&world, 0), Some(address_on(1, 0)));
        // The other link does its work.
        flows.assert_complete(&mut world);
    });
}

/// The keys of node 0 in somebody's hands: seals what it likes, as a worker that node 0 has not.
fn seal(world: &World, kind: Kind, payload: &[u8], lane: &mut Option<TxLane>) -> Option<Vec<u8>> {
    let tables = world.nodes[0].vtep.tables();
    let session = tables.peers[0].as_ref()?.session.clone()?;
    if lane.as_ref().is_none_or(|lane| lane.epoch() != session.tx_epoch()) {
        *lane = session.tx_lane(Lane::new(7, 3)).ok();
    }
    lane.as_mut()?.seal_payload(InnerHeader { kind, handle: Handle::NONE }, payload).ok()
}

fn any_number(dice: &mut Random) -> u32 {
    let edges = [0, 1, 2, u32::MAX, u32::MAX - 1, 1 << 31, (1 << 31) - 1];
    match dice.below(3) {
        0 => edges[dice.below(edges.len() as u64) as usize],
        1 => dice.below(2_000) as u32,
        _ => dice.next() as u32,
    }
}

fn hostile_heartbeat(dice: &mut Random, round: u32) -> Heartbeat {
    let mut heartbeat = Heartbeat::default();
    heartbeat.round = if dice.below(2) == 0 { round } else { any_number(dice) };
    heartbeat.epoch_opened = any_number(dice);
    heartbeat.sent_us = any_number(dice);
    heartbeat.interval_us = any_number(dice);
    heartbeat.lost = LinkSet(dice.next() as u8);
    for _ in 0..dice.below(9) {
        heartbeat.push(LinkReport {
            // Now and then the name of a link that there is.
            tag: dice.below(4) as u32,
            highest: any_number(dice),
            echo_us: any_number(dice),
            echo_delay_us: any_number(dice),
            rounds: any_number(dice),
            datagrams: any_number(dice),
        });
    }
    heartbeat
}

fn hostile_payload(dice: &mut Random, round: u32) -> (Kind, Vec<u8>) {
    let mut payload = Vec::new();
    match dice.below(8) {
        0..=3 => Message::Heartbeat(hostile_heartbeat(dice, round)).write(&mut payload),
        4 => {
            let (id, size) = (any_number(dice), any_number(dice) as u16);
            Message::ProbeReceived { id, size }.write(&mut payload);
        }
        5 => {
            let token = dice.next();
            let challenge = dice.below(2) == 0;
            let answer = Message::PathResponse { token };
            let message = if challenge { Message::PathChallenge { token } } else { answer };
            message.write(&mut payload);
        }
        6 => {
            payload = vec![0; dice.below(1_300) as usize];
            encap::rng::Rng::fill(dice, &mut payload);
            return ([Kind::Fragment, Kind::Probe][dice.below(2) as usize], payload);
        }
        _ => {
            payload = vec![0; dice.below(60) as usize];
            encap::rng::Rng::fill(dice, &mut payload);
        }
    }
    (Kind::Control, payload)
}

#[test]
fn sec_a_hostile_peer_harms_nobody_else() {
    for_seeds(12, |seed| {
        let mut dice = Random(seed);
        let mut world = World::new(seed);
        world.keep_sent = false;
        for me in 1..=3 {
            let mut config = config_on(me, 3, 2);
            protect_all(&mut config);
            if me == 2 && seed % 2 == 0 {
                for link in &mut config.peers[0].links {
                    link.remote = Remote::Dynamic(AddressFilter::default());
                }
            }
            world.add(config);
        }
        let end = world.now + secs(20);
        assert!(world.run_until(end, World::all_links_up));
        let mut flows = Flows::new(&mut world, &[(1, 2), (2, 1)], SHORTEST..=1_446);
        flows.run(&mut world, ms(200), ms(1));
        let from = world.nodes[1].events.len();
        world.put.clear();
        let (began, mut lane) = (world.now, None);
        for round in 0..600_u32 {
            for _ in 0..dice.below(6) {
                let (kind, payload) = hostile_payload(&mut dice, 10_000 + round);
                let link = dice.below(2) as u8;
                if let Some(bytes) = seal(&world, kind, &payload, &mut lane) {
                    world.inject_on(address_on(1, link), 1, link, bytes);
                }
            }
            flows.run(&mut world, ms(1), ms(1));
        }
        let limit = world.nodes[1].config.limits.heartbeats_per_second;
        let put: u64 = (0..2).map(|link| world.put[&(1, link)]).sum();
        let rate = put as f64 / (world.now - began).as_secs_f64();
        // Its own frames, and answers: one for each that came.
        assert!(rate < f64::from(limit) + 1_000.0 + 6_000.0, "{rate} datagrams a second");
        let others = |e: &Event| matches!(e, Event::Link { node, .. } if *node == id(3));
        let events = &world.nodes[1].events[from..];
        assert!(!events.iter().any(others), "{events:?}");
        flows.assert_complete(&mut world);
        // Node 0 under new management is a peer as before.
        world.kill(0);
        world.restart(0);
        let end = world.now + secs(5);
        assert!(flows.run_until(&mut world, end, ms(10), World::all_links_up), "not mended");
        assert_eq!(world.link_state(1, 0), encap::link::liveness::State::Up);
    });
}
