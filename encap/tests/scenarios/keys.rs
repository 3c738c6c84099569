//! Keys are stepped on, renewed and rolled with nothing lost.

use super::*;

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
