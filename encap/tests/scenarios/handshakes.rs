//! Sessions come about.

use super::*;

#[test]
fn flow_handshake_at_once_on_a_clean_wire() {
    for_seeds(20, |seed| {
        let mut world = World::new(seed);
        world.add(config(1, 2));
        world.add(config(2, 2));
        let end = world.now + ms(300);
        assert!(world.run_until(end, |w| {
            w.nodes[0].is_up(w.now, id(2)) && w.nodes[1].is_up(w.now, id(1))
        }));
    });
}

#[test]
fn flow_a_frame_waits_for_the_handshake_but_not_for_ever() {
    let mut world = World::new(1);
    world.add(config(1, 2));
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"early"));
    world.add(config(2, 2));
    world.run_for(ms(300));
    assert_eq!(world.nodes[1].delivered.len(), 1, "sent once the session was there");
    // Nobody is there: the frame is dropped by name, and the queue is bounded.
    let mut world = World::new(1);
    world.add(config(1, 2));
    for _ in 0..500 {
        world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"early"));
    }
    assert_eq!(world.nodes[0].drops(DropReason::PeerNoSession), 500 - 128);
    world.run_for(secs(2));
    assert_eq!(world.nodes[0].drops(DropReason::PeerNoSession), 500);
}

#[test]
fn flow_handshake_under_30_percent_loss() {
    for_seeds(100, |seed| {
        let mut world = World::new(seed);
        world.default_wire =
            Wire { loss: 300_000, duplicate: 50_000, jitter: ms(3), ..Wire::default() };
        world.add(config(1, 2));
        world.add(config(2, 2));
        let end = world.now + secs(30);
        assert!(
            world.run_until(end, |w| {
                w.nodes[0].is_up(w.now, id(2)) && w.nodes[1].is_up(w.now, id(1))
            }),
            "{:?} {:?}",
            world.nodes[0].all_drops(),
            world.nodes[1].all_drops()
        );
        // And it stays: neither side goes back and forth.
        world.default_wire = Wire::default();
        world.run_for(secs(20));
        let downs = |events: &[Event]| {
            events.iter().filter(|event| matches!(event, Event::PeerDown { .. })).count()
        };
        assert!(downs(&world.nodes[0].events) <= 1, "{:?}", world.nodes[0].events);
        world.assert_all_up(0);
        world.assert_all_up(1);
        assert_eq!(stream(&mut world, 50, ms(1)).len(), 50);
    });
}

#[test]
fn flow_handshake_on_a_slow_path() {
    // The round trip is longer than the first retries: repeated initiations must not outrun
    // their answers.
    for_seeds(10, |seed| {
        let mut world = World::new(seed);
        world.default_wire = Wire { delay: ms(750), jitter: ms(100), ..Wire::default() };
        world.add(config(1, 2));
        world.add(config(2, 2));
        world.run_for(secs(12));
        world.assert_all_up(0);
        world.assert_all_up(1);
    });
}

#[test]
fn flow_simultaneous_open_gives_one_session() {
    for_seeds(50, |seed| {
        let mut world = World::cluster(seed, 2);
        for round in 0..20 {
            world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
            world.nodes[1].vtep.rehandshake(world.now, None).unwrap();
            world.drain(0);
            world.drain(1);
            let got = stream(&mut world, 20, ms(u64::from(seed as u32 % 3)));
            assert_eq!(got.len(), 20, "round {round}");
        }
        world.run_for(secs(10));
        let session = |node: usize, peer: u16| {
            let tables = world.nodes[node].vtep.tables();
            let entry = tables.peers.iter().flatten().find(|p| p.node == id(peer)).unwrap();
            *entry.session.as_ref().unwrap().facts()
        };
        assert_eq!(session(0, 2).remote_slot, session(1, 1).local_slot);
        assert_eq!(session(1, 1).remote_slot, session(0, 2).local_slot);
        let live = |node: usize| world.nodes[node].vtep.tables().sessions.iter().flatten().count();
        assert_eq!((live(0), live(1)), (1, 1), "old sessions are gone");
    });
}

#[test]
fn flow_silence_is_noticed_and_the_path_heals_without_a_new_handshake_being_needed() {
    for_seeds(10, |seed| {
        let mut world = World::cluster(seed, 2);
        world.default_wire.cut = true;
        world.run_for(SILENCE_LIMIT + secs(2));
        for node in &world.nodes {
            let down = |e: &Event| matches!(e, Event::PeerDown { reason: DownReason::Silent, .. });
            assert!(node.events.iter().any(down), "{:?}", node.events);
        }
        world.default_wire.cut = false;
        world.run_for(ms(1_200));
        world.assert_all_up(0);
        world.assert_all_up(1);
        assert_eq!(stream(&mut world, 10, ms(1)).len(), 10);
    });
}

#[test]
fn flow_a_lost_proof_is_made_up_for_by_the_next_message() {
    let mut world = World::new(1);
    world.drop_proofs = true;
    world.add(config(1, 2));
    world.add(config(2, 2));
    world.run_for(secs(8));
    world.assert_all_up(0);
    world.assert_all_up(1);
    let down = |e: &Event| matches!(e, Event::PeerDown { .. });
    assert!(!world.nodes.iter().any(|node| node.events.iter().any(down)));
}

#[test]
fn flow_crossed_handshakes_that_part_are_mended_before_anything_is_lost() {
    let mut world = World::cluster(1, 2);
    world.default_wire = Wire { delay: ms(10), jitter: Duration::ZERO, ..Wire::default() };
    world.run_for(secs(5));
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"hello"));
    world.run_for(ms(50));
    // Each rekeys before the other's session is proven, and the lower id's first words are lost.
    world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
    world.drain(0);
    world.run_for(ms(11));
    world.nodes[1].vtep.rehandshake(world.now, None).unwrap();
    world.drain(1);
    world.wires.insert((0, 1), Wire { cut: true, ..world.default_wire });
    world.run_for(Duration::from_micros(9_500));
    world.wires.clear();
    world.run_for(ms(3));
    world.transmit(0, &frame(mac(2), mac(1), b"data"));
    world.run_for(secs(1));
    for step in 0..8_000 {
        let before = world.nodes[1].delivered.len();
        world.transmit(0, &frame(mac(2), mac(1), b"data"));
        world.run_for(ms(11));
        assert_eq!(world.nodes[1].delivered.len(), before + 1, "step {step}");
    }
    let down = |e: &Event| matches!(e, Event::PeerDown { .. });
    assert!(!world.nodes.iter().any(|node| node.events.iter().any(down)));
}

#[test]
fn flow_the_first_handshake_lists_the_networks() {
    let mut world = World::new(1);
    world.add(config(1, 2));
    world.add(config(2, 2));
    // Nothing but handshakes and what the session itself says: no bindings message arrives.
    let end = world.now + secs(1);
    assert!(world.run_until(end, |w| {
        let member = |node: usize| w.nodes[node].vtep.network_status()[0].members[0].1;
        member(0) && member(1)
    }));
    assert!(world.now - world.start < ms(2), "{:?}", world.now - world.start);
}
