//! Features: what both sides name, whatever each is made of.

use encap::compress::Level;
use encap::handshake::features::Features;
use encap::vtep::config::VtepConfig;

use super::*;

/// What the two ends of a pair agreed on, where each names its own set; node 1 asked first.
fn agreed(suite: Suite, named: [Features; 2]) -> [Features; 2] {
    let mut world = World::new(1);
    for (me, features) in (1..).zip(named) {
        world.add(VtepConfig { features, suites: vec![suite], ..config(me, 2) });
    }
    world.run_for(secs(2));
    [0, 1].map(|node| {
        world.assert_all_up(node);
        let entry = world.nodes[node].vtep.tables().peers[0].clone().unwrap();
        let facts = *entry.session.as_ref().unwrap().facts();
        assert_eq!(world.nodes[node].vtep.peer_status(world.now)[0].features, facts.features);
        facts.features
    })
}

#[test]
fn rule_g10_a_feature_is_used_where_both_name_it() {
    let single = [Features::BUNDLES, Features::COMPRESSION, Features::CHANNELS];
    let sets = single.into_iter().chain([Features::NONE, Features::ALL]);
    for one in sets.clone() {
        for other in sets.clone() {
            let both = Features::from_bits(one.bits() & other.bits());
            assert_eq!(agreed(Suite::Aes256Gcm, [one, other]), [both; 2], "{one:?} {other:?}");
        }
    }
    // A later version knows more, and no version decompresses what nothing vouches for.
    let later = Features::from_bits(u32::MAX);
    assert_eq!(agreed(Suite::Aes256Gcm, [later, Features::ALL]), [Features::ALL; 2]);
    let clear = Features::from_bits(Features::ALL.bits() & !Features::COMPRESSION.bits());
    assert_eq!(agreed(Suite::Clear, [Features::ALL; 2]), [clear; 2]);
}

#[test]
fn rule_g10_each_handshake_agrees_anew() {
    let named = |me, features| VtepConfig { features, ..config(me, 2) };
    let mut world = World::new(1);
    world.add(named(1, Features::ALL));
    world.add(named(2, Features::NONE));
    world.run_for(secs(2));
    let used = |world: &World| world.nodes[0].vtep.peer_status(world.now)[0].features;
    assert_eq!(used(&world), Features::NONE);
    // The same configuration in force: what was named does not change while the process lives.
    let config = VtepConfig { features: Features::NONE, ..world.nodes[0].config.clone() };
    let now = world.now;
    world.nodes[0].vtep.reconfigure(now, config);
    // Node 2 comes back in a later version.
    world.nodes[1].config = named(2, Features::ALL);
    world.kill(1);
    world.restart(1);
    world.run_for(secs(5));
    world.assert_all_up(0);
    assert_eq!(used(&world), Features::ALL);
}

#[test]
fn rule_z2_compression_is_the_networks_choice_and_a_reload_applies_it() {
    let mut world = World::cluster(1, 2);
    let chosen = |world: &World| {
        let tables = world.nodes[0].vtep.tables();
        tables.network(tables.handles[&vni()]).unwrap().compression
    };
    let before = world.nodes[0].vtep.peer_status(world.now)[0].handshakes;
    assert_eq!(chosen(&world), None);
    for level in [Level::new(3), Level::new(19), None] {
        let mut config = world.nodes[0].config.clone();
        config.networks[0].compression = level;
        let now = world.now;
        world.nodes[0].vtep.reconfigure(now, config);
        assert_eq!(chosen(&world), level);
    }
    world.run_for(secs(2));
    world.assert_all_up(0);
    assert_eq!(world.nodes[0].vtep.peer_status(world.now)[0].handshakes, before);
}

#[test]
fn rule_g10_a_kind_that_was_not_agreed_is_unknown() {
    let mut world = World::new(1);
    world.add(clear(1));
    world.add(VtepConfig { features: Features::NONE, ..clear(2) });
    world.run_for(secs(2));
    for (number, kind) in [3, 4, 8, 10].into_iter().enumerate() {
        let inner = kind << 12 | handle(&world, 1);
        let moved =
            counted(&mut world, |world| inject_clear(world, number as u32, inner, &[7; 60]));
        assert_eq!(moved, BTreeMap::from([("kind_unknown", 1)]), "kind {kind}");
    }
}
