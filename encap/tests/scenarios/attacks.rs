//! Whoever has no business here gets nothing, and is counted.

use super::*;

#[test]
fn sec_a_clear_node_and_a_sealed_node_never_talk() {
    for_seeds(3, |seed| {
        let mut world = World::new(seed);
        world.add(VtepConfig { suites: vec![Suite::Clear], ..config(1, 2) });
        world.add(config(2, 2));
        world.run_for(secs(10));
        for (node, peer) in [(0, 2), (1, 1)] {
            assert!(!world.nodes[node].is_up(world.now, id(peer)));
            let named = Event::NoCommonSuite { node: id(peer) };
            assert!(world.nodes[node].events.contains(&named), "{:?}", world.nodes[node].events);
        }
        assert!(world.nodes[1].drops(DropReason::HandshakeNoSuite) > 0);
    });
}

#[test]
fn sec_clear_datagrams_do_not_enter_a_sealed_session() {
    let mut world = World::cluster(1, 2);
    let slot = world.nodes[1].vtep.tables().sessions.iter().position(Option::is_some).unwrap();
    let mut forged = vec![0x80, (slot >> 8) as u8, slot as u8, 0, 0, 0, 0, 1, 0x00, 0x01];
    forged.extend(frame(mac(2), mac(1), b"forged"));
    world.inject(address(1), 1, forged);
    assert_eq!(world.nodes[1].drops(DropReason::FormatMismatch), 1);
    assert!(world.nodes[1].delivered.is_empty());
}

#[test]
fn sec_every_datagram_ever_sent_is_replayed_and_none_is_accepted() {
    for_seeds(5, |seed| {
        let mut world = World::new(seed);
        world.add(rotating(1));
        world.add(rotating(2));
        world.run_for(secs(1));
        assert_eq!(stream(&mut world, 5_000, Duration::from_micros(100)).len(), 5_000);
        world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
        world.drain(0);
        assert_eq!(stream(&mut world, 500, Duration::from_micros(100)).len(), 500);
        let recorded = world.sent.clone();
        world.keep_sent = false;
        let before: Vec<_> = world.nodes.iter().map(|n| n.delivered.len()).collect();
        let keys: Vec<_> =
            world.nodes.iter().map(|n| n.vtep.peer_status(world.now)[0].handshakes).collect();
        for pass in 0..2 {
            for sent in &recorded {
                let from = world.nodes[sent.from].addresses[0];
                world.inject(from, sent.to, sent.bytes.clone());
            }
            world.run_for(secs(2 * pass));
        }
        let after: Vec<_> = world.nodes.iter().map(|n| n.delivered.len()).collect();
        assert_eq!(before, after, "nothing accepted of {} replays", 2 * recorded.len());
        // Replayed initiations left no session and no new keys behind.
        world.run_for(secs(15));
        for (node, handshakes) in world.nodes.iter().zip(keys) {
            assert_eq!(node.vtep.peer_status(world.now)[0].handshakes, handshakes);
            assert_eq!(node.vtep.tables().sessions.iter().flatten().count(), 1);
        }
        assert_eq!(stream(&mut world, 100, ms(1)).len(), 100);
        let replayed: u64 =
            [0, 1].iter().map(|node| world.nodes[*node].drops(DropReason::HandshakeReplayed)).sum();
        assert!(replayed > 0, "{:?}", world.nodes[0].all_drops());
    });
}

#[test]
fn sec_damaged_datagrams_are_counted_and_never_delivered() {
    for_seeds(10, |seed| {
        let mut world = World::cluster(seed, 2);
        world.default_wire = Wire { corrupt: 300_000, duplicate: 100_000, ..Wire::default() };
        let got = stream(&mut world, 2_000, Duration::from_micros(100));
        assert!(got.len() > 1_000 && got.len() < 2_000, "{}", got.len());
        let sent: HashSet<_> =
            (0..2_000_u32).map(|n| frame(mac(2), mac(1), &n.to_be_bytes())).collect();
        for (_, bytes) in &world.nodes[1].delivered {
            assert!(sent.contains(bytes), "a frame that was never sent");
        }
        assert_eq!(got.iter().collect::<HashSet<_>>().len(), got.len(), "no duplicate");
        assert!(world.nodes[1].drops(DropReason::OpenFailed) > 100);
        assert!(world.nodes[1].drops(DropReason::ReplayDuplicate) > 0);
    });
}

#[test]
fn sec_the_wrong_key_gets_silence_and_a_name() {
    let mut world = World::new(1);
    world.add(config(1, 2));
    world.add(VtepConfig { keys: vec![ClusterKey::new([9; 32])], ..config(2, 2) });
    world.run_for(secs(10));
    for (node, peer) in [(0, 2), (1, 1)] {
        assert!(!world.nodes[node].is_up(world.now, id(peer)));
        assert!(world.nodes[node].drops(DropReason::HandshakeKeyUnknown) > 0);
        let named = |e: &Event| matches!(e, Event::KeyUnknown { .. });
        assert!(world.nodes[node].events.iter().any(named));
    }
    let only_initiations = world.sent.iter().all(|sent| sent.bytes[0] == 0x21);
    assert!(only_initiations, "no answer of any kind");
}

#[test]
fn sec_reflected_initiations_are_dropped_by_name() {
    let mut world = World::new(1);
    world.add(config(1, 2));
    let own: Vec<_> = (0..2)
        .map(|_| {
            world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
            world.nodes[0].vtep.poll_transmit().unwrap().payload
        })
        .collect();
    for datagram in own {
        world.inject(address(2), 0, datagram);
    }
    assert_eq!(world.nodes[0].drops(DropReason::HandshakeReflected), 2);
    assert_eq!(world.nodes[0].vtep.tables().sessions.iter().flatten().count(), 0);
}

#[test]
fn sec_a_stranger_with_the_key_cannot_come_from_elsewhere() {
    let mut world = World::cluster(1, 2);
    let stranger = VtepConfig { start_stamp: 9_000_000_000_000, ..config(2, 2) };
    let elsewhere = std::net::SocketAddr::from(([192, 0, 2, 66], 26026));
    world.add_at(stranger, elsewhere);
    world.run_for(secs(5));
    assert!(world.nodes[0].drops(DropReason::HandshakeSourceUnknown) > 0);
    let named = Event::SourceUnknown { node: id(2), from: elsewhere };
    assert!(world.nodes[0].events.contains(&named));
    assert_eq!(stream(&mut world, 50, ms(1)).len(), 50);
}

#[test]
fn sec_data_from_an_unknown_address_is_not_even_opened() {
    let mut world = World::cluster(1, 2);
    assert_eq!(stream(&mut world, 3, ms(1)).len(), 3);
    let sealed = world.sent.iter().rev().find(|s| s.to == 1 && s.bytes[0] >> 6 == 1).unwrap();
    let bytes = sealed.bytes.clone();
    world.inject(std::net::SocketAddr::from(([203, 0, 113, 9], 26026)), 1, bytes);
    assert_eq!(world.nodes[1].drops(DropReason::SourceUnknown), 1);
}

#[test]
fn sec_two_nodes_with_one_id_are_reported() {
    for_seeds(5, |seed| {
        let mut world = World::cluster(seed, 2);
        // A second process with id 2 behind the same address: both get what is sent there.
        world.add_at(config(2, 2), address(2));
        world.run_for(secs(90));
        let named = |e: &Event| matches!(e, Event::NodeIdConflict { node, .. } if *node == id(2));
        assert!(world.nodes[0].events.iter().any(named), "{:?}", world.nodes[0].events);
    });
}

#[test]
fn sec_a_node_that_meets_its_own_id_says_so() {
    let mut world = World::new(1);
    world.add(config(1, 2));
    // Misconfigured: another process that believes to be node 1 and reaches node 1 as a peer.
    let mut twin = config(1, 2);
    twin.peers = vec![encap::vtep::config::PeerConfig { node: id(2), ..peer(1) }];
    world.add_at(twin, address(2));
    world.run_for(secs(2));
    let named = |e: &Event| matches!(e, Event::NodeIdConflict { node, .. } if *node == id(1));
    assert!(world.nodes[0].events.iter().any(named), "{:?}", world.nodes[0].events);
}

#[test]
fn sec_a_suspended_node_wakes_after_an_hour_and_takes_new_keys() {
    for_seeds(5, |seed| {
        let mut world = World::cluster(seed, 2);
        assert_eq!(stream(&mut world, 10, ms(1)).len(), 10);
        world.nodes[1].suspended = true;
        world.run_for(secs(3_600));
        let before = world.nodes[1].vtep.peer_status(world.now)[0].handshakes;
        world.nodes[1].suspended = false;
        let woke = world.now;
        let end = world.now + secs(2);
        assert!(world.run_until(end, |w| {
            w.nodes[1].vtep.peer_status(w.now)[0].handshakes > before
                && w.nodes[1].is_up(w.now, id(1))
        }));
        assert!(world.now - woke < secs(2));
        let suspended = Event::PeerDown { node: id(1), reason: DownReason::Suspended };
        assert!(world.nodes[1].events.contains(&suspended), "{:?}", world.nodes[1].events);
        assert_eq!(stream(&mut world, 10, ms(1)).len(), 10);
    });
}

#[test]
fn sec_a_flood_of_good_initiations_is_challenged_and_harms_no_session() {
    let mut world = World::cluster(1, 2);
    // Someone with the key floods node 1 with fresh initiations of node 2.
    let mut flooder = config(2, 2);
    flooder.start_stamp = 5_000_000_000;
    let mut rng_seed = 1_000;
    let mut cookies = 0;
    let live = |w: &World| w.nodes[0].vtep.tables().sessions.iter().flatten().count();
    for _ in 0..2_000 {
        rng_seed += 1;
        flooder.start_stamp += 1_000;
        let rng = Box::new(world::Random(rng_seed));
        let mut vtep = encap::vtep::Vtep::new(world.now, flooder.clone(), rng);
        let initiation = vtep.poll_transmit().unwrap();
        let sent = world.sent.len();
        world.inject(address(2), 0, initiation.payload);
        for answer in &world.sent[sent..] {
            assert!(answer.bytes.len() <= 1200, "never larger than the question");
            cookies += usize::from(answer.bytes[0] == 0x23);
        }
        assert!(live(&world) <= 1 + 4, "bounded state");
    }
    assert!(cookies > 0);
    assert!(world.nodes[0].drops(DropReason::HandshakeRateLimited) > 1_000);
    assert!(world.nodes[0].drops(DropReason::HandshakeBusy) > 0);
    assert_eq!(stream(&mut world, 100, ms(1)).len(), 100);
    world.run_for(secs(12));
    assert_eq!(live(&world), 1, "nothing is left");
}

#[test]
fn sec_random_junk_is_counted_to_the_last_datagram() {
    for_seeds(3, |seed| {
        let mut world = World::cluster(seed, 2);
        let count = 30_000;
        let before = world.nodes[1].datapath.counters().datagrams_in.get();
        let dropped_before: u64 = world.nodes[1].all_drops().values().sum();
        let mut random = world::Random(seed);
        for _ in 0..count {
            let len = random.below(200) as usize;
            let mut bytes = vec![0; len];
            encap::rng::Rng::fill(&mut random, &mut bytes);
            world.inject(address(1), 1, bytes);
        }
        let after = world.nodes[1].datapath.counters().datagrams_in.get();
        let dropped: u64 = world.nodes[1].all_drops().values().sum();
        assert_eq!(after - before, count);
        assert_eq!(dropped - dropped_before, count, "{:?}", world.nodes[1].all_drops());
        assert!(world.nodes[1].delivered.is_empty());
        assert_eq!(stream(&mut world, 50, ms(1)).len(), 50);
    });
}

#[test]
fn sec_a_node_that_is_no_member_cannot_send_into_a_network() {
    let mut world = World::new(1);
    let mut closed = config(1, 3);
    closed.networks[0].members = vec![id(2)];
    world.add(closed);
    world.add(config(2, 3));
    world.add(config(3, 3));
    world.run_for(secs(2));
    world.transmit(2, &frame(MacAddr::BROADCAST, mac(3), b"let me in"));
    world.run_for(ms(5));
    assert!(world.nodes[0].delivered.is_empty());
    assert_eq!(world.nodes[1].delivered.len(), 1);
    let refused = world.nodes[0].drops(DropReason::NetworkNotMember);
    assert!(refused <= 1, "not told of the network, so at most one by its explicit number");
}

#[test]
fn sec_forged_lanes_do_not_stop_a_rotation() {
    // An attacker who spoofs the peer's address and guesses the slot, at a thousand a second.
    let mut world = World::new(1);
    world.keep_sent = false;
    world.add(rotating(1));
    world.add(rotating(2));
    world.run_for(secs(1));
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
    world.run_for(ms(5));
    world.nodes[1].delivered.clear();
    let mut random = world::Random(7);
    for number in 0..10_000_u32 {
        world.transmit(0, &frame(mac(2), mac(1), &number.to_be_bytes()));
        let epoch_and_slot = 0x40 | (random.below(4) as u8) << 4;
        let mut forged = vec![epoch_and_slot, 0, random.below(2) as u8, random.next() as u8];
        forged.extend([0; 60]);
        world.inject(address(1), 1, forged);
        world.run_for(Duration::from_micros(730));
    }
    world.run_for(ms(100));
    assert_eq!(numbers(&world, 1).len(), 10_000, "{:?}", world.nodes[1].all_drops());
}

#[test]
fn sec_initiations_with_a_wrong_mac_never_reach_the_control_thread() {
    let mut world = World::cluster(1, 2);
    world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
    world.drain(0);
    let first = world.sent.iter().find(|s| s.to == 1 && s.bytes[0] == 0x21).unwrap();
    let mut forged = first.bytes.clone();
    forged[40] ^= 1;
    let control_drops = |w: &World| w.nodes[1].vtep.counters().dropped(DropReason::HandshakeBadMac);
    let worker_drops =
        |w: &World| w.nodes[1].datapath.counters().dropped(DropReason::HandshakeBadMac);
    for _ in 0..1_000 {
        world.inject(address(1), 1, forged.clone());
    }
    assert_eq!((worker_drops(&world), control_drops(&world)), (1_000, 0));
}

#[test]
fn sec_bindings_of_a_process_that_is_gone_are_not_taken() {
    let mut world = World::cluster(1, 2);
    // The old process announces networks with a high revision; the datagrams are held back.
    for _ in 0..20 {
        let config = world.nodes[0].config.clone();
        world.nodes[0].vtep.reconfigure(world.now, config);
    }
    let mut held = Vec::new();
    while let Some(transmit) = world.nodes[0].vtep.poll_transmit() {
        held.push(transmit.payload);
    }
    world.kill(0);
    world.restart(0);
    world.run_for(ms(500));
    for datagram in held {
        world.inject(address(1), 1, datagram);
    }
    let mut new = config(1, 2);
    let mut second = new.networks[0].clone();
    second.vni = encap::id::Vni::new(200).unwrap();
    new.networks = vec![second.clone()];
    world.nodes[0].vtep.reconfigure(world.now, new);
    world.drain(0);
    let mut other = config(2, 2);
    second.members = vec![id(1)];
    other.networks.push(second);
    world.nodes[1].vtep.reconfigure(world.now, other);
    world.drain(1);
    world.run_for(secs(5));
    let members: Vec<_> =
        world.nodes[1].vtep.network_status().iter().map(|n| n.members.clone()).collect();
    assert_eq!(members, [vec![(id(1), false)], vec![(id(1), true)]]);
}

#[test]
fn sec_a_session_under_any_removed_key_ends() {
    let (kept, leaked) = (ClusterKey::new([7; 32]), ClusterKey::new([8; 32]));
    let mut world = World::new(1);
    world.add(VtepConfig { keys: vec![kept.clone(), leaked.clone()], ..config(1, 2) });
    world.add(VtepConfig { keys: vec![leaked.clone()], ..config(2, 2) });
    world.run_for(secs(2));
    assert_eq!(world.nodes[0].vtep.peer_status(world.now)[0].key_id, Some(leaked.id()));
    let config = VtepConfig { keys: vec![kept], ..config(1, 2) };
    world.nodes[0].vtep.reconfigure(world.now, config);
    world.drain(0);
    let removed = Event::PeerDown { node: id(2), reason: DownReason::KeyRemoved };
    assert!(world.nodes[0].events.contains(&removed));
    world.run_for(secs(20));
    assert!(!world.nodes[0].is_up(world.now, id(2)));
}

#[test]
fn sec_keys_of_sessions_that_are_over_are_wiped_from_the_workers() {
    let mut world = World::cluster(1, 2);
    assert_eq!(stream(&mut world, 5, ms(1)).len(), 5);
    assert_eq!(world.nodes[0].datapath.held_lanes(), 1);
    world.nodes[0].datapath.forget_old_lanes();
    assert_eq!(world.nodes[0].datapath.held_lanes(), 1, "in force");
    world.nodes[0].vtep.shutdown(world.now);
    world.nodes[0].datapath.forget_old_lanes();
    assert_eq!(world.nodes[0].datapath.held_lanes(), 0);
}
