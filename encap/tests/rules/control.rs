//! Control messages.

use super::*;

#[test]
fn rule_c1_one_fault_voids_the_whole_payload() {
    let mut world = clear_world();
    let mut goodbye = Vec::new();
    Message::Goodbye.write(&mut goodbye);
    let heartbeat = |len: u8, count: u8| [&[1, 0, len][..], &[0; 18], &[count]].concat();
    let faults: [&[u8]; 7] = [
        &heartbeat(18, 0)[..21],            // short heartbeat
        &heartbeat(19, 1),                  // a report is missing
        &heartbeat(19, 9),                  // nine links
        &[2, 0, 5, 0, 0, 0, 1],             // length too long
        &[9, 0],                            // no length
        &[3, 0, 8, 0, 0, 0, 9, 1, 1, 0, 0], // part 1 of 1
        &[7, 0, 7, 0, 0, 0, 0, 0, 0, 0],    // short token
    ];
    let mut number = 0;
    for fault in faults {
        let is_heartbeat = fault[0] == 1;
        let behind = [&goodbye[..], fault].concat();
        let alone = is_heartbeat.then(|| fault.to_vec());
        for payload in std::iter::once(behind).chain(alone) {
            let moved = counted(&mut world, |world| inject_clear(world, number, 0x5000, &payload));
            assert_eq!(moved, BTreeMap::from([("control_invalid", 1)]), "{payload:?}");
            number += 1;
        }
        world.assert_all_up(1);
    }
    // A heartbeat has its datagram to itself: nothing counts behind it, nor it behind others.
    let mut round = Vec::new();
    let mut later = Heartbeat::default();
    later.round = 7_000_000;
    Message::Heartbeat(later).write(&mut round);
    let highest = |world: &World| {
        let beats = heartbeats(world, 1);
        beats.last().unwrap().reports()[0].highest
    };
    for (payload, counts) in [([&round[..], &goodbye].concat(), true), (round.clone(), true)] {
        number += 1;
        let moved = counted(&mut world, |world| inject_clear(world, number, 0x5000, &payload));
        assert_eq!(moved, BTreeMap::new());
        world.run_for(secs(1));
        assert_eq!(highest(&world) == 7_000_000, counts);
        world.assert_all_up(1);
    }
    let mut world = clear_world();
    inject_clear(&mut world, 0, 0x5000, &[&[9, 0, 0][..], &round].concat());
    world.run_for(secs(1));
    assert!(highest(&world) < 7_000_000);
    // A later type and a longer body are passed over; the rest counts.
    let newer = [&[9, 0, 2, 7, 7][..], &[2, 0, 6, 0, 0, 0, 0, 7, 7], &goodbye].concat();
    inject_clear(&mut world, 9, 0x5000, &newer);
    let ended = Event::PeerDown { node: id(1), reason: DownReason::Goodbye };
    assert!(world.nodes[1].events.contains(&ended));
}

#[test]
fn rule_c2_heartbeats_measure_the_round_trip() {
    let mut world = clear_world();
    world.default_wire = Wire { delay: ms(20), jitter: ms(0), ..Wire::default() };
    world.run_for(secs(3));
    world.sent.clear();
    world.run_for(secs(20));
    for (node, other) in [(0, 1), (1, 0)] {
        // One link: four rounds a second.
        let (own, theirs) = (heartbeats(&world, node), heartbeats(&world, other));
        assert_eq!(own.len(), 80);
        for pair in own.windows(2) {
            assert_eq!(pair[1].round, pair[0].round + 1);
            assert_eq!(pair[1].sent_us - pair[0].sent_us, 250_000);
        }
        assert!(own.iter().all(|beat| beat.interval_us == 250_000 && beat.epoch_opened == 0));
        // What it says of the other's: the highest round, its clock, how long that waited.
        for beat in &own[1..] {
            let report = beat.reports()[0];
            let echoed = theirs.iter().find(|beat| beat.round == report.highest);
            assert!(echoed.is_none_or(|echoed| echoed.sent_us == report.echo_us));
            assert!(report.echo_delay_us < 250_000 && report.rounds == report.highest);
            assert!(report.datagrams >= report.rounds);
        }
        let rtt = world.nodes[node].vtep.peer_status(world.now)[0].rtt.unwrap();
        assert!(rtt >= ms(40) && rtt < ms(42), "{rtt:?}");
    }
}

#[test]
fn rule_c5_a_handle_is_used_again_as_late_as_can_be() {
    let mut world = World::cluster(1, 2);
    let second = |number| {
        let mut new = config(1, 2);
        let network = new.networks[0].clone();
        let vni = Vni::new(number).unwrap();
        new.networks.push(encap::vtep::config::NetworkConfig { vni, ..network });
        (vni, new)
    };
    let mut seen = BTreeSet::from([handle(&world, 0)]);
    for number in 200..1_200 {
        let (vni, new) = second(number);
        world.nodes[0].vtep.reconfigure(world.now, new);
        world.drain(0);
        let given = world.nodes[0].vtep.tables().handles[&vni].get();
        assert!((1..=4_095).contains(&given));
        assert!(seen.insert(given), "{given} again after {} others", seen.len());
    }
    assert_eq!(handle(&world, 0), 1, "a network that stays keeps its handle");
}

#[test]
fn rule_c6_bindings_are_sent_until_they_are_acknowledged() {
    let mut world = clear_world();
    let two = |me| {
        let mut new = clear(me);
        let mut network = new.networks[0].clone();
        network.vni = Vni::new(200).unwrap();
        new.networks.push(network);
        new
    };
    world.default_wire = Wire { cut: true, ..Wire::default() };
    let start = world.sent.len();
    for node in 0..2 {
        world.nodes[node].vtep.reconfigure(world.now, two(node as u16 + 1));
        world.drain(node);
    }
    // Goes on while the peer is down, as long as there is a session.
    world.run_for(ms(2_500));
    let has = |world: &World, node: usize| {
        let status = world.nodes[node].vtep.network_status();
        status.iter().find(|network| network.vni.get() == 200).unwrap().members[0].1
    };
    assert!(!has(&world, 0) && !has(&world, 1));
    let bindings = |world: &World, from: usize| {
        let sent = world.sent[from..].iter().filter(|sent| sent.from == 0);
        sent.flat_map(messages).filter(|m| matches!(m, Message::Bindings(_))).count()
    };
    assert_eq!(bindings(&world, start), 4, "at 0, 250, 750 and 1750 ms");
    world.default_wire = Wire::default();
    world.run_for(secs(8));
    assert!(has(&world, 0) && has(&world, 1));
    let settled = world.sent.len();
    world.run_for(secs(30));
    assert_eq!(bindings(&world, settled), 0, "acknowledged: not sent again");
}
