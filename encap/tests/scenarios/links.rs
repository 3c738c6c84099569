//! Several links between two nodes: watched, chosen, failed over.

use encap::forward::policy::Policy;
use encap::forward::protect::Protect;
use encap::link::liveness::State;
use encap::link::profile::missed_for;

use super::*;
use crate::world::flow::Flows;
use crate::world::*;

/// Frames of all lengths that the paths take whole.
const LENS: std::ops::RangeInclusive<usize> = flow::SHORTEST..=1446;

const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// Everything is kept to be sent again.
fn protect_all(config: &mut VtepConfig) {
    config.peers.iter_mut().for_each(|peer| peer.protect = Protect::All);
}

/// Wires that differ, none of which overtakes itself within 200 us.
fn uneven(world: &mut World, links: u8, dice: &mut Random) {
    for link in 0..links {
        let (delay, jitter) = (us(20 + dice.below(1_000)), us(dice.below(200)));
        world.on_both(link, |wire| (wire.delay, wire.jitter) = (delay, jitter));
    }
}

/// Cuts one way of a link, the other, or both.
fn cut_some(world: &mut World, link: u8, how: u64, cut: bool) {
    if how != 1 {
        world.on_link(0, 1, link, |wire| wire.cut = cut);
    }
    if how != 0 {
        world.on_link(1, 0, link, |wire| wire.cut = cut);
    }
}

/// How long a link may be cut before it is found: the rounds that its loss asks for and 4 more, and
/// what it is slower and less steady.
fn bound(world: &World, link: u8) -> Duration {
    let longest = |node: usize| {
        let status = &world.nodes[node].vtep.peer_status(world.now)[0];
        let link = &status.links[usize::from(link)];
        let loss = f64::from(link.measured.loss_in_ppm) / 1e6;
        let interval = link.interval.max(ms(1));
        let rounds = missed_for(loss, interval, &encap::link::profile::FAST) + 4;
        interval * rounds + us(4 * u64::from(link.measured.jitter_us)) + us(2_500)
    };
    longest(0).max(longest(1))
}

#[test]
fn flow_cuts_are_found_in_time_and_lose_nothing() {
    for_seeds(60, |seed| {
        let mut dice = Random(seed);
        let links = 2 + dice.below(2) as u8;
        let mut shape = dice.clone();
        let mut world =
            World::pair_by(seed, links, |world| uneven(world, links, &mut shape), protect_all);
        let mut flows = Flows::both_ways(&mut world, LENS);
        flows.run(&mut world, ms(50), us(500));
        for _ in 0..8 {
            let (link, how) = (dice.below(links.into()) as u8, dice.below(3));
            flows.run(&mut world, us(dice.below(3_000)), us(250));
            let limit = bound(&world, link);
            let at = world.now;
            cut_some(&mut world, link, how, true);
            let found =
                |world: &World| (0..2).all(|node| world.link_state(node, link) != State::Up);
            let in_time = flows.run_until(&mut world, at + limit, us(250), found);
            assert!(in_time, "link {link}, way {how}: not found within {limit:?}");
            flows.run(&mut world, ms(dice.below(100)), us(500));
            cut_some(&mut world, link, how, false);
            let end = world.now + ms(500);
            let up = flows.run_until(&mut world, end, us(500), World::all_links_up);
            assert!(up, "link {link}, way {how}: not up again");
        }
        flows.assert_complete(&mut world);
    });
}
