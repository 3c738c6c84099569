//! Links, path MTUs, where a peer is, and loops.

use std::net::SocketAddr;
use std::time::Instant;

use encap::datapath::ControlInput;
use encap::forward::address_filter::AddressFilter;
use encap::link::id::{LinkIndex, LinkSet};
use encap::link::liveness::State;
use encap::vtep::Transmit;
use encap::vtep::config::{PeerConfig, Remote};
use encap::wire::buf::UplinkId;

use super::*;
use crate::world::address_on;

/// Two nodes in clear mode with several links.
pub(super) fn clear_pair(links: u8, change: impl Fn(&mut VtepConfig)) -> World {
    let mut world = World::pair(1, links, |config| {
        config.suites = vec![Suite::Clear];
        change(config);
    });
    // Sessions of crossed handshakes are gone by then.
    world.run_for(secs(5));
    (world.keep_sent, world.sent) = (true, Vec::new());
    world
}

/// A clear datagram for the session of a node, in a lane that nobody uses.
pub(super) fn clear_datagram(
    world: &World,
    to: usize,
    number: u32,
    inner: u16,
    payload: &[u8],
) -> Vec<u8> {
    let (format, slot, lane) = (Format::Clear, slot(world, to), Lane::new(9, 9));
    let header = DataHeader { format, epoch_bits: 0, slot, lane, sequence: number };
    [&header.write()[..], &inner.to_be_bytes(), payload].concat()
}

/// What a node sends when a datagram comes by an uplink, from anywhere.
fn feed(world: &mut World, to: usize, uplink: u8, from: SocketAddr, bytes: &[u8]) -> Vec<Transmit> {
    let (now, node) = (world.now, &mut world.nodes[to]);
    let from = (UplinkId(uplink), from, 0);
    let (_, control) = world::decapsulate(&mut node.datapath, now, from, bytes);
    control.into_iter().for_each(|input: ControlInput| node.vtep.handle_input(now, input));
    std::iter::from_fn(|| node.vtep.poll_transmit()).collect()
}

/// What the control half of a node sends when it is next due.
fn next_transmits(world: &mut World, node: usize) -> Vec<Transmit> {
    let vtep = &mut world.nodes[node].vtep;
    for _ in 0..100 {
        world.now = world.now.max(vtep.poll_timeout());
        vtep.handle_timeout(world.now);
        let sent: Vec<_> = std::iter::from_fn(|| vtep.poll_transmit()).collect();
        if !sent.is_empty() {
            return sent;
        }
    }
    panic!("nothing is sent");
}

fn message(message: &Message) -> Vec<u8> {
    let mut payload = Vec::new();
    message.write(&mut payload);
    payload
}

fn remote(world: &World, node: usize) -> Option<SocketAddr> {
    world.nodes[node].vtep.peer_status(world.now)[0].links[0].remote
}

#[test]
fn rule_d1_a_round_is_one_heartbeat_on_all_links() {
    let mut world = clear_pair(3, |_| {});
    let mut rounds = 0;
    while rounds < 20 {
        let sent = next_transmits(&mut world, 0);
        let beats: Vec<_> = sent
            .iter()
            .filter_map(|sent| match control_messages(&sent.payload)[..] {
                [Message::Heartbeat(beat)] => Some((sent, beat)),
                _ => None,
            })
            .collect();
        if beats.is_empty() {
            continue;
        }
        rounds += 1;
        let uplinks: Vec<_> = beats.iter().map(|(sent, _)| sent.uplink.0).collect();
        assert_eq!(uplinks, [0, 1, 2]);
        assert!(beats.iter().all(|(_, beat)| *beat == beats[0].1), "the same on all");
        assert_eq!(beats[0].1.reports().len(), 3);
        let numbers = beats
            .iter()
            .map(|(sent, _)| DataHeader::read(sent.payload.first_chunk().unwrap()).sequence);
        let first = numbers.clone().next().unwrap();
        assert!(numbers.eq(first..first + 3), "back to back, each sealed for itself");
    }
}

#[test]
fn rule_d1_the_pace_follows_the_traffic() {
    let mut world = clear_pair(2, |_| {});
    let rate = |world: &mut World, time: Duration| {
        world.sent.clear();
        world.run_for(time);
        heartbeats(world, 0).len() as f64 / 2.0 / time.as_secs_f64()
    };
    world.run_for(secs(70));
    assert_eq!(rate(&mut world, secs(20)), 1.0);
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"wakes it"));
    let busy = rate(&mut world, ms(900));
    assert!((950.0..=1_050.0).contains(&busy), "{busy}");
    world.run_for(ms(500));
    let quiet = rate(&mut world, secs(20));
    assert!((95.0..=105.0).contains(&quiet), "{quiet}");
    world.run_for(secs(50));
    assert_eq!(rate(&mut world, secs(20)), 1.0);
}

#[test]
fn rule_d3_what_is_not_heard_is_reported() {
    let mut world = clear_pair(2, |_| {});
    world.on_link(0, 1, 1, |wire| wire.cut = true);
    // Frames of both, or one end would look less often than it is looked at.
    for number in 0..200_u32 {
        world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), &number.to_be_bytes()));
        world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), &number.to_be_bytes()));
        world.run_for(ms(1));
    }
    let last = |node| *heartbeats(&world, node).last().unwrap();
    let (deaf, dumb) = (last(1), last(0));
    assert_eq!((deaf.lost, dumb.lost), (LinkSet(2), LinkSet(0)), "bit 1 is link 1");
    let [good, bad] = [deaf.reports()[0], deaf.reports()[1]];
    assert!(good.highest > bad.highest + 100 && good.rounds > bad.rounds + 100);
    assert!(good.datagrams > good.rounds + 100, "frames count too");
    assert!(bad.echo_us < good.echo_us && bad.echo_delay_us > 100_000);
    // The end that hears goes by what the other one says.
    for node in 0..2 {
        assert_ne!(world.link_state(node, 1), State::Up);
        assert_eq!(world.link_state(node, 0), State::Up);
    }
}

#[test]
fn rule_c2_links_are_told_apart_by_tags_not_by_places() {
    // What is link 0 to one is link 1 to the other.
    let mut world = clear_pair(2, |config| {
        if config.node == id(2) {
            config.peers[0].links.reverse();
        }
    });
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"wakes it"));
    world.on_link(0, 1, 1, |wire| wire.cut = true);
    world.run_for(ms(200));
    let deaf = *heartbeats(&world, 1).last().unwrap();
    assert_eq!(deaf.lost, LinkSet(1), "the first of its reports");
    assert!(deaf.reports()[0].highest < deaf.reports()[1].highest);
    let ours: Vec<_> = heartbeats(&world, 0)[0].reports().iter().map(|r| r.tag).collect();
    let theirs: Vec<_> = deaf.reports().iter().rev().map(|r| r.tag).collect();
    assert_eq!(ours, theirs);
    for (node, cut) in [(0, 1), (1, 0)] {
        assert_ne!(world.link_state(node, cut), State::Up);
        assert_eq!(world.link_state(node, 1 - cut), State::Up);
    }
}

#[test]
fn rule_d7_a_drain_is_told_to_the_other_end() {
    let mut world = clear_pair(2, |_| {});
    let sending = |world: &World, node: usize| -> Vec<bool> {
        let status = world.nodes[node].vtep.peer_status(world.now);
        status[0].links.iter().map(|link| link.sending).collect()
    };
    assert_eq!((sending(&world, 0), sending(&world, 1)), (vec![true, false], vec![true, false]));
    let now = world.now;
    world.nodes[0].vtep.drain_link(now, id(2), LinkIndex::FIRST, true).unwrap();
    world.drain(0);
    world.run_for(ms(1));
    assert_eq!(heartbeats(&world, 0).last().unwrap().drained, LinkSet(1));
    // The old way gets copies for a moment.
    world.run_for(secs(1));
    assert_eq!((sending(&world, 0), sending(&world, 1)), (vec![false, true], vec![false, true]));
    assert_eq!(world.link_state(1, 0), State::Up, "watched as before");
}

#[test]
fn rule_d5_hearsay_of_the_network_moves_nothing() {
    use encap::vtep::PathTrouble;
    let mut world = clear_pair(2, |_| {});
    let (now, far) = (world.now, address_on(2, 0).ip());
    let vtep = &mut world.nodes[0].vtep;
    vtep.handle_trouble(now, UplinkId(0), far, PathTrouble::Unreachable, false);
    let sent: Vec<_> = std::iter::from_fn(|| vtep.poll_transmit()).collect();
    assert_eq!(sent.len(), 2, "a round, to see");
    assert_eq!(world.link_state(0, 0), State::Up);
    world.nodes[0].vtep.handle_trouble(now, UplinkId(0), far, PathTrouble::Unreachable, true);
    assert_eq!(world.link_state(0, 0), State::Suspect, "the own kernel is believed");
    world.drain(0);
    world.run_for(secs(2));
    assert_eq!(world.link_state(0, 0), State::Up, "heard again");
}

#[test]
fn rule_d5_news_concern_the_attachment_that_they_come_from() {
    use encap::vtep::PathTrouble;
    let mut world = clear_pair(2, |_| {});
    let (now, far) = (world.now, address_on(2, 0).ip());
    let vtep = &mut world.nodes[0].vtep;
    // Another attachment, whose links may lead to the same address.
    vtep.handle_neighbour(now, UplinkId(1), far, false);
    vtep.handle_trouble(now, UplinkId(1), far, PathTrouble::Unreachable, true);
    assert_eq!(world.link_state(0, 0), State::Up);
    world.nodes[0].vtep.handle_neighbour(now, UplinkId(0), far, false);
    assert_eq!(world.link_state(0, 0), State::Suspect);
    assert_eq!(world.link_state(0, 1), State::Up);
    // Only those may tell of its return.
    world.nodes[0].vtep.handle_neighbour(now, UplinkId(1), far, true);
    assert_eq!(world.link_state(0, 0), State::Suspect);
}

#[test]
fn rule_d6_a_silent_peer_is_down_after_its_timeout() {
    let mut world = clear_pair(2, |_| {});
    for number in 0..20_u32 {
        world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), &number.to_be_bytes()));
        world.run_for(ms(10));
    }
    world.default_wire = Wire { cut: true, ..Wire::default() };
    let cut_at = world.now;
    world.run_for(ms(900));
    for link in 0..2 {
        assert_eq!(world.link_state(0, link), State::Up, "nothing to compare with");
    }
    world.assert_all_up(0);
    let gone = |world: &World| !world.nodes[0].is_up(world.now, id(2));
    assert!(world.run_until(cut_at + ms(1_100), gone));
    let down = Event::PeerDown { node: id(2), reason: DownReason::Silent };
    assert!(world.nodes[0].events.contains(&down));
    // On all links, as none is known to work.
    world.sent.clear();
    world.run_for(secs(3));
    let asked = world.sent.iter().filter(|sent| sent.from == 0 && sent.bytes[0] == 0x21).count();
    assert!(asked >= 4 && asked % 2 == 0, "{asked}");
}

/// Node 1 knows node 2 by a dynamic link only.
fn dynamic_world(filter: &AddressFilter) -> World {
    let mut world = World::new(1);
    let mut asked = config(1, 2);
    asked.peers = asked.peers.into_iter().map(|peer| with_filter(peer, filter)).collect();
    world.add(asked);
    world.add(config(2, 2));
    world.run_for(secs(5));
    world
}

fn with_filter(mut peer: PeerConfig, filter: &AddressFilter) -> PeerConfig {
    peer.links[0].remote = Remote::Dynamic(filter.clone());
    peer
}

#[test]
fn rule_d9_a_dynamic_link_is_learnt_within_its_filter() {
    let world = dynamic_world(&AddressFilter::default());
    assert_eq!(remote(&world, 0), Some(address(2)));
    let link = LinkIndex::FIRST;
    let learnt = Event::Roamed { node: id(2), link, to: address(2) };
    assert!(world.nodes[0].events.contains(&learnt));
    let deny = AddressFilter { deny: vec!["192.0.2.0/24".parse().unwrap()], allow: vec![] };
    let world = dynamic_world(&deny);
    assert_eq!(remote(&world, 0), None);
    assert!(!world.nodes[0].is_up(world.now, id(2)));
    assert!(world.nodes[0].drops(DropReason::HandshakeSourceUnknown) > 0);
}

#[test]
fn rule_d9_nothing_is_learnt_in_clear_mode() {
    let mut world = World::new(1);
    let mut asked = clear(1);
    asked.peers =
        asked.peers.into_iter().map(|p| with_filter(p, &AddressFilter::default())).collect();
    world.add(asked);
    world.add(clear(2));
    world.run_for(secs(5));
    assert_eq!(remote(&world, 0), None);
    assert!(world.nodes[0].drops(DropReason::SourceUnknown) > 0);
}

#[test]
fn rule_d10_only_who_answers_a_challenge_moves_a_link() {
    let mut world = dynamic_world(&AddressFilter::default());
    let elsewhere = address(77);
    let beat = |world: &mut World| next_transmits(world, 1).swap_remove(0).payload;
    // An authentic datagram that somebody sends on from elsewhere is worth a question.
    let bytes = beat(&mut world);
    let asked = feed(&mut world, 0, 0, elsewhere, &bytes);
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].remote, asked[0].mark), (elsewhere, 0xc0));
    let bytes = beat(&mut world);
    let again = feed(&mut world, 0, 0, elsewhere, &bytes);
    let first: Instant = world.now;
    assert!(again.iter().all(|sent| sent.remote != elsewhere), "asked already");
    assert_eq!(remote(&world, 0), Some(address(2)));
    // The answer, from where the question did not go: nothing.
    let answer = feed(&mut world, 1, 0, address(1), &asked[0].payload);
    assert_eq!(answer.len(), 1);
    feed(&mut world, 0, 0, address(78), &answer[0].payload);
    assert_eq!(remote(&world, 0), Some(address(2)));
    // A second later it is asked anew, and now the answer comes from there.
    let mut question = Vec::new();
    while question.is_empty() {
        assert!(world.now < first + secs(5));
        let bytes = beat(&mut world);
        let sent = feed(&mut world, 0, 0, elsewhere, &bytes);
        question.extend(sent.into_iter().filter(|sent| sent.remote == elsewhere));
    }
    let answer = feed(&mut world, 1, 0, address(1), &question[0].payload);
    feed(&mut world, 0, 0, elsewhere, &answer[0].payload);
    assert_eq!(remote(&world, 0), Some(elsewhere));
}

#[test]
fn rule_d10_a_challenge_is_answered_to_where_it_came_from() {
    let mut world = clear_pair(2, |_| {});
    for (number, uplink, port) in [(0, 0, 26_026), (1, 1, 40_000)] {
        let from = SocketAddr::new(address_on(1, uplink).ip(), port);
        let token = 0x0102_0304_0506_0708 + u64::from(number);
        let challenge = message(&Message::PathChallenge { token });
        let bytes = clear_datagram(&world, 1, number, 0x5000, &challenge);
        let answers = feed(&mut world, 1, uplink, from, &bytes);
        let answers: Vec<_> = answers
            .iter()
            .map(|sent| (sent.uplink.0, sent.remote, sent.mark, control_messages(&sent.payload)))
            .collect();
        let answer = vec![Message::PathResponse { token }];
        assert_eq!(answers, [(uplink, from, 0xc0, answer)]);
    }
}

#[test]
fn rule_u1_a_probe_is_answered_with_its_id_and_size() {
    let mut world = clear_pair(2, |_| {});
    for (number, fill) in [(0, 0), (1, 500), (2, 1_400), (3, 60_000)] {
        let id: u32 = 0x0100_0000 + number;
        let payload = [&id.to_be_bytes()[..], &vec![7; fill]].concat();
        let bytes = clear_datagram(&world, 1, number, 0x7000, &payload);
        let answers = feed(&mut world, 1, 0, address(1), &bytes);
        let size = bytes.len() as u16;
        let answers: Vec<_> = answers.iter().map(|sent| control_messages(&sent.payload)).collect();
        assert_eq!(answers, [[Message::ProbeReceived { id, size }]]);
    }
    let moved = counted(&mut world, |world| inject_clear(world, 9, 0x7000, &[1, 2, 3]));
    assert_eq!(moved, BTreeMap::from([("control_invalid", 1)]));
}

#[test]
fn rule_u2_the_path_is_measured_before_it_is_used() {
    let mut world = World::pair(1, 2, |_| {});
    world.run_for(secs(1));
    let sizes = |world: &World| {
        let links = world.nodes[0].vtep.peer_status(world.now)[0].links.clone();
        links.iter().map(|link| link.max_udp_payload).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&world), [1_472, 1_472]);
    // Smaller from now on: noticed by nothing but probes that do not come back.
    world.on_link(0, 1, 1, |wire| wire.max_udp_payload = 1_372);
    world.run_for(secs(15));
    let [whole, narrow] = sizes(&world)[..] else { panic!() };
    assert_eq!(whole, 1_472);
    assert!(narrow <= 1_372 && narrow + 8 >= 1_372, "{narrow}");
}

#[test]
fn rule_f9_a_loop_blocks_the_network_where_it_is_seen() {
    let mut world = World::cluster(1, 2);
    world.run_for(secs(3));
    // What node 0 writes into its tap comes out of the tap of node 1: their bridges meet.
    let probe = world.nodes[0].injected.last().unwrap().clone();
    let before = world.nodes[0].delivered.len();
    world.transmit(1, &probe);
    world.run_for(ms(5));
    let found =
        |event: &Event| matches!(event, Event::LoopFound { blocked, .. } if *blocked <= secs(60));
    assert!(world.nodes[0].events.iter().any(found), "{:?}", world.nodes[0].events);
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"out"));
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"in"));
    world.run_for(ms(5));
    assert_eq!(world.nodes[0].drops(DropReason::NetworkLooped), 2);
    assert!(world.nodes[0].delivered.len() <= before + 1);
    // Nobody else is blocked, and what was not sent lately is no proof.
    assert!(!world.nodes[1].vtep.network_status()[0].looped);
    world.run_for(secs(61));
    assert!(world.nodes[0].events.contains(&Event::LoopOver { vni: vni() }));
    world.transmit(1, &probe);
    world.run_for(ms(5));
    assert!(!world.nodes[0].vtep.network_status()[0].looped);
}
