//! Frames get where they should.

use encap::datapath::To;
use encap::id::LocalPort;
use encap::wire::buf::Offload;

use super::*;

#[test]
fn flow_a_frame_crosses_byte_for_byte() {
    for_seeds(5, |seed| {
        let mut world = World::cluster(seed, 2);
        for len in 0..=1432 {
            let payload = vec![len as u8; len];
            world.transmit(0, &frame(mac(2), mac(1), &payload));
            world.run_for(Duration::from_micros(10));
        }
        world.run_for(ms(10));
        let got: HashSet<_> = world.nodes[1].delivered.iter().map(|(_, f)| f.clone()).collect();
        assert_eq!(got.len(), 1433);
        for len in 0..=1432 {
            assert!(got.contains(&frame(mac(2), mac(1), &vec![len as u8; len])), "{len}");
        }
        // One byte more does not fit, and goes in two pieces.
        let long = frame(mac(2), mac(1), &[0xee; 1433]);
        world.transmit(0, &long);
        world.run_for(ms(10));
        assert_eq!(world.nodes[1].delivered.last().unwrap().1, long);
        assert_eq!(world.nodes[0].datapath.counters().frames_fragmented.get(), 1);
        assert_eq!(world.nodes[0].datapath.counters().fragments_out.get(), 2);
    });
}

#[test]
fn flow_three_nodes_flood_learn_and_follow_a_moving_address() {
    for_seeds(10, |seed| {
        let mut world = World::cluster(seed, 3);
        // Broadcast reaches both others, once each.
        world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"who"));
        world.run_for(ms(5));
        assert_eq!(world.nodes[1].delivered.len(), 1);
        assert_eq!(world.nodes[2].delivered.len(), 1);
        // An answer goes to node 1 alone: its address was learnt.
        world.transmit(1, &frame(mac(1), mac(2), b"me"));
        world.run_for(ms(5));
        assert_eq!(world.nodes[0].delivered.len(), 1);
        assert_eq!(world.nodes[2].delivered.len(), 1);
        // Station 2 moves behind node 3.
        world.run_for(secs(1));
        world.transmit(2, &frame(MacAddr::BROADCAST, mac(2), b"moved"));
        world.run_for(ms(5));
        let before = (world.nodes[1].delivered.len(), world.nodes[2].delivered.len());
        world.transmit(0, &frame(mac(2), mac(1), b"follow"));
        world.run_for(ms(5));
        assert_eq!(world.nodes[1].delivered.len(), before.0);
        assert_eq!(world.nodes[2].delivered.len(), before.1 + 1);
        // Split horizon: what came from a peer never goes to a peer.
        let sent = world.nodes[2].datapath.counters().datagrams_out.get();
        assert_eq!(sent, 2, "only its own broadcast");
    });
}

#[test]
fn flow_a_flapping_address_is_frozen_and_reported() {
    let mut world = World::cluster(1, 3);
    for round in 0..12 {
        let node = 1 + round % 2;
        world.transmit(node, &frame(MacAddr::BROADCAST, mac(99), b"here"));
        world.run_for(secs(2));
    }
    world.run_for(secs(6));
    let frozen = |e: &Event| matches!(e, Event::MacFrozen { mac: m, .. } if *m == mac(99));
    assert!(world.nodes[0].events.iter().any(frozen), "{:?}", world.nodes[0].events);
}

#[test]
fn flow_smallest_frame_size_of_the_members_is_agreed() {
    let mut world = World::new(1);
    let mut small = config(2, 2);
    small.networks[0].max_frame_len = 1286;
    world.add(config(1, 2));
    world.add(small.clone());
    world.run_for(secs(1));
    let lowered = Event::MaxFrameLen { vni: world::vni(), max_frame_len: 1286 };
    assert!(world.nodes[0].events.contains(&lowered), "{:?}", world.nodes[0].events);
    small.networks[0].max_frame_len = 1446;
    world.nodes[1].vtep.reconfigure(world.now, small);
    world.drain(1);
    world.run_for(secs(59));
    assert_eq!(world.nodes[0].vtep.network_status()[0].max_frame_len, 1286);
    world.run_for(secs(2));
    assert_eq!(world.nodes[0].vtep.network_status()[0].max_frame_len, 1446);
}

#[test]
fn flow_clear_mode_by_consent_of_both() {
    let clear = |me| VtepConfig { suites: vec![Suite::Clear], ..config(me, 2) };
    let mut world = World::new(1);
    world.add(clear(1));
    world.add(clear(2));
    world.run_for(secs(1));
    assert_eq!(world.nodes[0].vtep.peer_status(world.now)[0].cipher, Some("none"));
    assert_eq!(stream(&mut world, 20, ms(1)).len(), 20);
    let text = frame(mac(2), mac(1), &7_u32.to_be_bytes());
    let seen = world.sent.iter().find(|sent| sent.bytes.ends_with(&text)).unwrap();
    assert_eq!(seen.bytes.len(), text.len() + 10);
}

#[test]
fn flow_a_virtual_machine_is_followed_between_ports_and_nodes() {
    for_seeds(5, |seed| {
        let mut world = World::cluster(seed, 3);
        let port = |number| LocalPort::new(number).unwrap();
        for node in 0..2 {
            world.nodes[node].vtep.set_local_ports(world::vni(), 0b111).unwrap();
        }
        let machine = mac(99);
        let announce = frame(MacAddr::BROADCAST, machine, b"here");
        // One move less than would freeze it. The entry at its own node is the first to see each.
        for (node, at) in [(0, 1), (0, 2), (1, 2), (1, 1), (0, 1)] {
            let stays =
                world.transmit_from(node, port(at), &[(announce.as_slice(), Offload::default())]);
            assert!(stays.list.iter().all(|delivery| delivery.to == To::AllBut(port(at))));
            assert_eq!(stays.list.len(), 1);
            world.run_for(ms(5));
            for from in 0..3 {
                let bytes = frame(machine, mac(from as u16 + 1), b"found");
                let frames = [(bytes.as_slice(), Offload::default())];
                let before = world.nodes[node].delivered.len();
                let stays = world.transmit_from(from, LocalPort::TAP, &frames);
                world.run_for(ms(5));
                if from == node {
                    let to: Vec<_> = stays.list.iter().map(|delivery| delivery.to).collect();
                    assert_eq!(to, [To::Port(port(at))]);
                    assert_eq!(world.nodes[node].delivered.len(), before);
                } else {
                    assert!(stays.is_empty());
                    assert_eq!(world.nodes[node].delivered_to[before..], [To::Port(port(at))]);
                }
            }
        }
        for node in &world.nodes {
            assert!(node.all_drops().is_empty(), "{:?}", node.all_drops());
        }
    });
}
