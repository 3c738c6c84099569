//! Which suite two nodes come to, and that each of them carries frames.

use Suite::{Aegis128L, Aegis256, Aes256Gcm};

use super::*;

/// The cipher that two nodes with these lists come to, as both name it; none if they refuse each
/// other.
fn agreed(first: &[Suite], second: &[Suite]) -> Option<&'static str> {
    let mut world = World::new(1);
    world.add(VtepConfig { suites: first.to_vec(), ..config(1, 2) });
    world.add(VtepConfig { suites: second.to_vec(), ..config(2, 2) });
    world.run_for(secs(2));
    let status = |node: usize| world.nodes[node].vtep.peer_status(world.now)[0].cipher;
    let ciphers = [status(0), status(1)];
    assert_eq!(ciphers[0], ciphers[1]);
    assert_eq!(world.nodes[0].is_up(world.now, id(2)), ciphers[0].is_some());
    if ciphers[0].is_none() {
        for (node, peer) in [(0, 2), (1, 1)] {
            assert!(world.nodes[node].events.contains(&Event::NoCommonSuite { node: id(peer) }));
        }
        world.transmit(0, &frame(mac(2), mac(1), b"nowhere"));
        world.run_for(secs(1));
        assert!(world.nodes[1].delivered.is_empty());
    } else {
        assert_eq!(stream(&mut world, 100, ms(1)), (0..100).collect::<Vec<_>>());
    }
    ciphers[0]
}

#[test]
fn flow_the_best_suite_of_the_answerer_that_both_list_is_used() {
    assert_eq!(agreed(&[Aegis256], &[Aegis256]), Some("aegis-256"));
    assert_eq!(agreed(&[Aegis128L, Aes256Gcm], &[Aegis128L]), Some("aegis-128l"));
    assert_eq!(agreed(&[Aegis128L], &[Aegis256, Aegis128L]), Some("aegis-128l"));
    for both in [&[Aegis256, Aes256Gcm][..], &[Aegis256, Aegis128L, Aes256Gcm]] {
        assert_eq!(agreed(&[Aes256Gcm], both), Some("aes-256-gcm"));
        assert_eq!(agreed(both, &[Aes256Gcm]), Some("aes-256-gcm"));
        assert_eq!(agreed(both, both), Some("aegis-256"));
    }
}

#[test]
fn sec_no_suite_is_used_that_one_of_two_nodes_does_not_list() {
    for (first, second) in [(Aegis256, Aes256Gcm), (Aegis256, Aegis128L), (Aegis128L, Aes256Gcm)] {
        assert_eq!(agreed(&[first], &[second]), None);
        assert_eq!(agreed(&[second], &[first]), None);
        assert_eq!(agreed(&[first], &[Suite::Clear]), None);
    }
}

#[test]
fn flow_aegis_rotates_and_renews_its_keys_and_loses_nothing() {
    for suite in [Aegis256, Aegis128L] {
        let mut world = World::new(1);
        world.keep_sent = false;
        world.add(VtepConfig { suites: vec![suite], ..rotating(1) });
        world.add(VtepConfig { suites: vec![suite], ..rotating(2) });
        world.run_for(secs(1));
        // The wire changes the order.
        let all_arrive = |world: &mut World| {
            let mut got = stream(world, 5_000, Duration::from_micros(2));
            got.sort_unstable();
            assert_eq!(got, (0..5_000).collect::<Vec<_>>());
        };
        all_arrive(&mut world);
        let (epoch, _) = world.nodes[0].vtep.peer_status(world.now)[0].epochs.unwrap();
        assert!(epoch >= 4, "epoch {epoch}");
        world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
        world.drain(0);
        all_arrive(&mut world);
        let status = &world.nodes[0].vtep.peer_status(world.now)[0];
        assert_eq!((status.cipher, status.handshakes), (Some(suite.name()), 2));
        assert_eq!(world.nodes[1].drops(DropReason::OpenFailed), 0);
    }
}
