//! The protocol in the deterministic world. Names by kind: `flow_` a scenario, `sec_` an attack.
#![allow(missing_docs, unreachable_pub)]
// The world begins its virtual time somewhere, and a test may panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

mod world;

use std::collections::HashSet;
use std::time::Duration;

use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::crypto::seal::KeyLimits;
use encap::event::{DownReason, Event};
use encap::stats::DropReason;
use encap::vtep::SILENCE_LIMIT;
use encap::vtep::config::{Limits, VtepConfig};
use encap::wire::ethernet::MacAddr;
use world::{Wire, World, address, config, for_seeds, frame, id, mac, peer};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Sends numbered frames from node 0 to node 1 (node 1's address is learnt first) and gives the
/// numbers that came out, in their order.
fn stream(world: &mut World, count: u32, gap: Duration) -> Vec<u32> {
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
    world.run_for(ms(5));
    world.nodes[1].delivered.clear();
    for number in 0..count {
        world.transmit(0, &frame(mac(2), mac(1), &number.to_be_bytes()));
        world.run_for(gap);
    }
    world.run_for(ms(500));
    numbers(world, 1)
}

fn numbers(world: &World, node: usize) -> Vec<u32> {
    let payload = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.get(14..18)?.try_into().ok()?));
    world.nodes[node].delivered.iter().filter_map(|(_, bytes)| payload(bytes)).collect()
}

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
        // One byte more does not fit and says so.
        world.transmit(0, &frame(mac(2), mac(1), &[0; 1433]));
        assert_eq!(world.nodes[0].drops(DropReason::FrameTooLarge), 1);
    });
}

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

fn rotating(me: u16) -> VtepConfig {
    let key = KeyLimits { soft_packets: 1_000, ..KeyLimits::AES_256_GCM };
    let base = config(me, 2);
    VtepConfig { limits: Limits { key, ..base.limits }, ..base }
}

#[test]
fn flow_rotation_every_1000_packets_loses_nothing() {
    for_seeds(5, |seed| {
        let mut world = World::new(seed);
        world.keep_sent = false;
        world.default_wire = Wire { jitter: Duration::from_micros(200), ..Wire::default() };
        world.add(rotating(1));
        world.add(rotating(2));
        world.run_for(secs(1));
        let count = 50_000;
        let got = stream(&mut world, count, Duration::from_micros(2));
        assert_eq!(got.len(), count as usize, "{:?}", world.nodes[1].all_drops());
        assert_eq!(got.iter().collect::<HashSet<_>>().len(), count as usize, "no duplicate");
        let (epoch, _) = world.nodes[0].vtep.peer_status(world.now)[0].epochs.unwrap();
        assert!(epoch >= 40, "epoch {epoch}");
    });
}

#[test]
fn flow_rotation_without_confirmation_goes_on_in_the_old_epoch() {
    for_seeds(3, |seed| {
        let mut world = World::new(seed);
        world.add(rotating(1));
        world.add(rotating(2));
        world.run_for(secs(1));
        world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
        world.run_for(ms(5));
        // Nothing comes back: no confirmation of epoch 1 can arrive.
        world.wires.insert((1, 0), Wire { cut: true, ..Wire::default() });
        world.nodes[1].delivered.clear();
        for number in 0..5_000_u32 {
            world.transmit(0, &frame(mac(2), mac(1), &number.to_be_bytes()));
            world.run_for(Duration::from_micros(10));
        }
        world.run_for(ms(100));
        assert_eq!(numbers(&world, 1).len(), 5_000);
        let (epoch, _) = world.nodes[0].vtep.peer_status(world.now)[0].epochs.unwrap();
        assert_eq!(epoch, 1);
    });
}

#[test]
fn flow_idle_peers_rotate_by_time_and_rehandshake() {
    for_seeds(3, |seed| {
        let mut world = World::cluster(seed, 2);
        world.keep_sent = false;
        world.run_for(secs(40 * 60));
        let status = &world.nodes[0].vtep.peer_status(world.now)[0];
        let (tx, rx) = status.epochs.unwrap();
        assert!(tx >= 2 && rx >= 2, "epochs {tx} {rx}");
        assert_eq!(status.handshakes, 1);
        world.run_for(secs(40 * 60));
        let status = &world.nodes[0].vtep.peer_status(world.now)[0];
        assert!(status.handshakes >= 2, "a new Diffie-Hellman within 66 minutes");
        let downs = world.nodes[0].events.iter().filter(|e| matches!(e, Event::PeerDown { .. }));
        assert_eq!(downs.count(), 0);
        assert_eq!(stream(&mut world, 10, ms(1)).len(), 10);
    });
}

#[test]
fn flow_rehandshake_under_load_loses_nothing() {
    for_seeds(20, |seed| {
        let mut world = World::cluster(seed, 2);
        world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
        world.run_for(ms(5));
        world.nodes[1].delivered.clear();
        for number in 0..10_000_u32 {
            if number % 1_000 == 500 {
                let node = (number / 1_000 % 2) as usize;
                world.nodes[node].vtep.rehandshake(world.now, None).unwrap();
                world.drain(node);
            }
            world.transmit(0, &frame(mac(2), mac(1), &number.to_be_bytes()));
            world.run_for(Duration::from_micros(50));
        }
        world.run_for(ms(100));
        assert_eq!(numbers(&world, 1).len(), 10_000, "{:?}", world.nodes[1].all_drops());
        assert!(world.nodes[0].vtep.peer_status(world.now)[0].handshakes >= 5);
    });
}

#[test]
fn flow_cluster_key_is_rolled_with_nothing_lost() {
    for_seeds(10, |seed| {
        let (old, new) = (ClusterKey::new([7; 32]), ClusterKey::new([8; 32]));
        let mut world = World::cluster(seed, 2);
        world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
        world.run_for(ms(5));
        world.nodes[1].delivered.clear();
        let mut sent = 0_u32;
        let steps = [vec![old.clone(), new.clone()], vec![new.clone(), old], vec![new.clone()]];
        for keys in steps {
            for node in [1, 0] {
                let config = VtepConfig { keys: keys.clone(), ..world.nodes[node].config.clone() };
                world.nodes[node].vtep.reconfigure(world.now, config);
                world.drain(node);
                for _ in 0..2_000 {
                    world.transmit(0, &frame(mac(2), mac(1), &sent.to_be_bytes()));
                    sent += 1;
                    world.run_for(Duration::from_micros(500));
                }
            }
        }
        world.run_for(ms(100));
        assert_eq!(numbers(&world, 1).len(), sent as usize, "{:?}", world.nodes[1].all_drops());
        for node in &world.nodes {
            let status = &node.vtep.peer_status(world.now)[0];
            assert_eq!(status.key_id, Some(new.id()));
            assert!(!node.events.iter().any(|e| matches!(e, Event::PeerDown { .. })));
        }
    });
}

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
                let from = world.nodes[sent.from].address;
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
