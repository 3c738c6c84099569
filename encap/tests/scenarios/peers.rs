//! Peers come, go, fall silent and come back.

use encap::channel::hub::{ChannelConfig, ChannelEvent, ChannelKey};
use encap::wire::channel::Mode;

use super::*;

#[test]
fn flow_restart_of_either_side_heals_within_2_seconds() {
    for_seeds(40, |seed| {
        let mut world = World::cluster(seed, 2);
        world.default_wire = Wire { loss: 20_000, ..Wire::default() };
        let (victim, other) = if seed % 2 == 0 { (0, 1) } else { (1, 0) };
        world.kill(victim);
        // From a moment to long enough that the other side has given up.
        world.run_for(ms(seed * 250));
        world.restart(victim);
        let (to, from) = (mac(victim as u16 + 1), mac(other as u16 + 1));
        world.nodes[victim].delivered.clear();
        let end = world.now + secs(2);
        let mut healed = false;
        while world.now < end && !healed {
            world.transmit(other, &frame(to, from, b"are you there"));
            world.run_for(ms(10));
            healed = !world.nodes[victim].delivered.is_empty();
        }
        assert!(healed, "{:?}", world.nodes[victim].all_drops());
        world.default_wire = Wire::default();
        world.run_for(secs(5));
        world.assert_all_up(0);
        world.assert_all_up(1);
        let conflict = |e: &Event| matches!(e, Event::NodeIdConflict { .. });
        assert!(!world.nodes.iter().any(|node| node.events.iter().any(conflict)));
    });
}

#[test]
fn flow_goodbye_is_heard_at_once() {
    let mut world = World::cluster(1, 2);
    world.nodes[0].vtep.shutdown(world.now);
    world.drain(0);
    world.kill(0);
    world.run_for(ms(10));
    let goodbye = Event::PeerDown { node: id(1), reason: DownReason::Goodbye };
    assert!(world.nodes[1].events.contains(&goodbye));
    assert_eq!(world.nodes[1].vtep.tables().sessions.iter().flatten().count(), 0);
}

#[test]
fn flow_network_and_node_come_and_go_without_touching_the_rest() {
    let mut world = World::cluster(1, 2);
    let handshakes = world.nodes[0].vtep.peer_status(world.now)[0].handshakes;
    for node in 0..2 {
        let mut new = config(node as u16 + 1, 3);
        let mut second = new.networks[0].clone();
        second.vni = encap::id::Vni::new(200).unwrap();
        new.networks.push(second);
        world.nodes[node].vtep.reconfigure(world.now, new);
        world.drain(node);
    }
    world.add(config(3, 3));
    world.run_for(secs(2));
    for node in 0..3 {
        world.assert_all_up(node);
    }
    assert_eq!(stream(&mut world, 20, ms(1)).len(), 20);
    assert_eq!(world.nodes[0].vtep.peer_status(world.now)[0].handshakes, handshakes);
    let members = |w: &World, node: usize| {
        w.nodes[node].vtep.network_status().iter().map(|n| n.members.clone()).collect::<Vec<_>>()
    };
    assert_eq!(members(&world, 0)[1], [(id(2), true), (id(3), false)]);
    // Back to two nodes and one network.
    for node in 0..2 {
        world.nodes[node].vtep.reconfigure(world.now, config(node as u16 + 1, 2));
        world.drain(node);
    }
    world.run_for(secs(1));
    let gone = Event::PeerDown { node: id(3), reason: DownReason::Removed };
    assert!(world.nodes[0].events.contains(&gone));
    assert_eq!(stream(&mut world, 20, ms(1)).len(), 20);
    assert_eq!(world.nodes[0].vtep.network_status().len(), 1);
}

#[test]
fn flow_a_restart_under_full_traffic_is_up_at_once() {
    let mut world = World::cluster(1, 2);
    world.keep_sent = false;
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
    world.run_for(ms(5));
    world.kill(1);
    world.restart(1);
    let (start, count) = (world.now, 20_000);
    for _ in 0..count {
        world.transmit(0, &frame(mac(2), mac(1), b"data"));
        world.run_for(Duration::from_micros(20));
        if world.nodes[1].is_up(world.now, id(1)) && !world.nodes[1].delivered.is_empty() {
            break;
        }
    }
    assert!(world.now - start < ms(20), "{:?}", world.now - start);
}

/// A silent peer keeps its session for minutes; programs at channels hear of it all the same.
#[test]
fn flow_programs_hear_of_a_silent_peer_and_of_its_return() {
    let (key, a_while) = (ChannelKey(1), secs(5));
    let channel = ChannelConfig {
        name: "a".to_owned(),
        mode: Mode::Ordered,
        peers: None,
        copies: false,
        send_buffer: 1 << 20,
        compression: None,
    };
    let mut world = World::cluster(1, 2);
    let now = world.now;
    world.nodes[0].datapath.hub(now).unwrap().configure(now, vec![(key, channel)]);
    let heard = |world: &mut World| -> Vec<ChannelEvent> {
        let now = world.now;
        let hub = world.nodes[0].datapath.hub(now).unwrap();
        std::iter::from_fn(|| hub.poll_event()).collect()
    };
    assert_eq!(heard(&mut world), [ChannelEvent::PeerUp(key, id(2))]);
    for _ in 0..2 {
        world.default_wire.cut = true;
        world.run_for(a_while);
        assert_eq!(heard(&mut world), [ChannelEvent::PeerDown(key, id(2))]);
        assert!(world.nodes[0].vtep.tables().sessions.iter().flatten().count() > 0);
        world.default_wire.cut = false;
        world.run_for(a_while);
        assert_eq!(heard(&mut world), [ChannelEvent::PeerUp(key, id(2))]);
    }
}
