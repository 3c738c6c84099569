//! A test for each rule of `docs/protocol.md` that the unit tests and scenarios leave open.
#![allow(missing_docs, unreachable_pub)]
// The world begins its virtual time somewhere, and a check that fails may panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

#[allow(dead_code)] // what only the scenarios need
mod world;

#[path = "rules/control.rs"]
mod control;
#[path = "rules/features.rs"]
mod features;
#[path = "rules/links.rs"]
mod links;
#[path = "rules/ports.rs"]
mod ports;
#[path = "rules/runs.rs"]
mod runs;
#[path = "rules/sizes.rs"]
mod sizes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::event::{DownReason, Event};
use encap::id::Vni;
use encap::stats::DropReason;
use encap::vtep::Vtep;
use encap::vtep::config::{Limits, VtepConfig};
use encap::wire::buf::{Checksum, Offload};
use encap::wire::checksum::derive_partial;
use encap::wire::control::Message;
use encap::wire::ethernet::MacAddr;
use encap::wire::header::{DataHeader, Format, Lane, Slot};
use encap::wire::heartbeat::Heartbeat;
use encap::wire::long::{COOKIE_LEN, LONG_HEADER_LEN, LongHeader, Type};
use world::{Random, Sent, Wire, World, address, config, frame, id, mac, vni};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn clear(me: u16) -> VtepConfig {
    VtepConfig { suites: vec![Suite::Clear], ..config(me, 2) }
}

/// Two nodes in clear mode, where a test can write any datagram.
fn clear_world() -> World {
    let mut world = World::new(1);
    world.add(clear(1));
    world.add(clear(2));
    world.run_for(secs(2));
    world.assert_all_up(0);
    world.assert_all_up(1);
    world
}

/// The slot of the only session of a node.
fn slot(world: &World, node: usize) -> Slot {
    let tables = world.nodes[node].vtep.tables();
    let at = tables.sessions.iter().position(Option::is_some).unwrap();
    Slot(at as u32)
}

/// Injects a clear datagram into node 1, as if from node 0, in a lane that nobody uses.
fn inject_clear(world: &mut World, sequence: u32, inner: u16, payload: &[u8]) {
    let lane = Lane::new(9, 9);
    let (format, slot) = (Format::Clear, slot(world, 1));
    let header = DataHeader { format, epoch_bits: 0, slot, lane, sequence };
    let bytes = [&header.write()[..], &inner.to_be_bytes(), payload].concat();
    world.inject(address(1), 1, bytes);
}

fn handle(world: &World, node: usize) -> u16 {
    world.nodes[node].vtep.tables().handles[&vni()].get()
}

/// Which counters one more datagram moved at node 1, and by how much.
fn counted(world: &mut World, act: impl FnOnce(&mut World)) -> BTreeMap<&'static str, u64> {
    let before = world.nodes[1].all_drops();
    act(world);
    let after = world.nodes[1].all_drops();
    let grown = |name: &str, count: u64| count - before.get(name).copied().unwrap_or(0);
    let moved = after.into_iter().map(|(name, count)| (name, grown(name, count)));
    moved.filter(|(_, count)| *count > 0).collect()
}

/// Injects `bytes` into node 1 as if from node 0; gives the one counter that moved.
fn dropped(world: &mut World, bytes: Vec<u8>) -> &'static str {
    let moved = counted(world, |world| world.inject(address(1), 1, bytes));
    assert_eq!(moved.values().sum::<u64>(), 1, "{moved:?}");
    moved.into_keys().next().unwrap()
}

/// What node 0 makes of a frame from its tap, checksum state included.
fn encapsulate(world: &mut World, bytes: &[u8], checksum: Checksum) -> Vec<Vec<u8>> {
    let (now, node) = (world.now, &mut world.nodes[0]);
    let handle = node.vtep.tables().handles[&vni()];
    let offload = Offload { checksum, segmentation: None };
    let out = world::encapsulate(&mut node.datapath, now, handle, &[(bytes, offload)]);
    out.datagrams().map(|(_, bytes)| bytes.to_vec()).collect()
}

/// The first initiation of a node with this configuration, and the node.
fn initiation(world: &World, config: VtepConfig, seed: u64) -> (Vtep, Vec<u8>) {
    let mut vtep = Vtep::new(world.now, config, Box::new(Random(seed)));
    let payload = vtep.poll_transmit().unwrap().payload;
    (vtep, payload)
}

/// The control messages in a clear datagram.
fn messages(sent: &Sent) -> Vec<Message> {
    control_messages(&sent.bytes)
}

fn control_messages(bytes: &[u8]) -> Vec<Message> {
    let is_control = bytes.len() >= 10 && Format::of(bytes[0]) == Format::Clear && bytes[8] == 0x50;
    if is_control { Message::read_all(&bytes[10..]).unwrap() } else { Vec::new() }
}

/// The heartbeats that a node of a clear world has sent, in their order.
fn heartbeats(world: &World, node: usize) -> Vec<Heartbeat> {
    let sent = world.sent.iter().filter(|sent| sent.from == node);
    let heartbeat = |message| match message {
        Message::Heartbeat(heartbeat) => Some(heartbeat),
        _ => None,
    };
    sent.flat_map(messages).filter_map(heartbeat).collect()
}

fn header_of(sent: &Sent) -> Option<DataHeader> {
    let bytes = sent.bytes.first_chunk()?;
    (Format::of(bytes[0]) != Format::Long).then(|| DataHeader::read(bytes))
}

#[test]
fn rule_h1_format_and_length() {
    let mut world = World::cluster(1, 2);
    let header = |slot: Slot| {
        let (format, lane) = (Format::Sealed, Lane::new(3, 0));
        DataHeader { format, epoch_bits: 0, slot, lane, sequence: 0 }.write().to_vec()
    };
    assert_eq!(dropped(&mut world, vec![0xc0; 100]), "format_reserved");
    assert_eq!(dropped(&mut world, vec![]), "datagram_truncated");
    assert_eq!(dropped(&mut world, vec![0x40; 7]), "datagram_truncated");
    let mut short = header(slot(&world, 1));
    short.resize(25, 0);
    assert_eq!(dropped(&mut world, short.clone()), "datagram_truncated");
    short.push(0);
    assert_eq!(dropped(&mut world, short), "open_failed");
    // The slot is looked at before the length.
    assert_eq!(dropped(&mut world, header(Slot(77))), "slot_unknown");
    let mut world = clear_world();
    let (format, slot) = (Format::Clear, slot(&world, 1));
    let header =
        DataHeader { format, epoch_bits: 0, slot, lane: Lane::new(3, 0), sequence: 0 }.write();
    assert_eq!(dropped(&mut world, [&header[..], &[0]].concat()), "datagram_truncated");
}

#[test]
fn rule_h2_slot_must_be_in_use() {
    let mut world = World::cluster(1, 2);
    for slot in [1_000, Slot::COUNT - 1] {
        let header = DataHeader {
            format: Format::Sealed,
            epoch_bits: 0,
            slot: Slot(slot),
            lane: Lane(0),
            sequence: 0,
        };
        let bytes = [&header.write()[..], &[0; 40]].concat();
        assert_eq!(dropped(&mut world, bytes), "slot_unknown");
    }
}

#[test]
fn rule_h5_unknown_kinds_are_dropped_and_end_nothing() {
    let mut world = clear_world();
    let known = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10];
    let unknown: Vec<u16> = (0..16).filter(|kind| !known.contains(kind)).collect();
    assert_eq!(unknown, [6, 11, 12, 13, 14, 15]);
    for (number, kind) in unknown.iter().enumerate() {
        let inner = kind << 12 | handle(&world, 1);
        let moved =
            counted(&mut world, |world| inject_clear(world, number as u32, inner, &[7; 60]));
        assert_eq!(moved, BTreeMap::from([("kind_unknown", 1)]), "kind {kind}");
    }
    assert!(world.nodes[1].delivered.is_empty());
    world.run_for(secs(2));
    world.assert_all_up(1);
}

#[test]
fn rule_h6_handle_or_explicit_vni() {
    let mut world = clear_world();
    let bytes = frame(mac(2), mac(1), b"payload");
    let mine = handle(&world, 1);
    inject_clear(&mut world, 0, mine, &bytes);
    assert_eq!(world.nodes[1].delivered.len(), 1);
    for (number, handle) in [(1, 0), (2, mine + 1), (3, 0xfff)] {
        let moved = counted(&mut world, |world| inject_clear(world, number, handle, &bytes));
        assert_eq!(moved, BTreeMap::from([("handle_unknown", 1)]), "handle {handle}");
    }
    // Kind 1: the handle field and the reserved byte are ignored.
    let explicit = |vni: [u8; 4]| [&vni[..], &bytes].concat();
    inject_clear(&mut world, 4, 0x1000, &explicit([0, 0, 100, 0]));
    inject_clear(&mut world, 5, 0x1abc, &explicit([0, 0, 100, 0xff]));
    assert_eq!(world.nodes[1].delivered, vec![(vni(), bytes.clone()); 3]);
    let moved = counted(&mut world, |world| {
        inject_clear(world, 6, 0x1000, &explicit([0, 0, 101, 0]));
        inject_clear(world, 7, 0x1000, &[0, 0, 100]);
    });
    assert_eq!(moved, BTreeMap::from([("datagram_truncated", 1), ("handle_unknown", 1)]));
}

#[test]
fn rule_l1_workers_and_control_have_their_lanes() {
    let mut world = World::cluster(1, 2);
    for number in 0..50_u32 {
        world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), &number.to_be_bytes()));
    }
    let lanes: BTreeSet<_> =
        world.sent.iter().filter_map(header_of).map(|header| header.lane.0).collect();
    assert_eq!(lanes, BTreeSet::from([0x00, 0xfe]));
    let mut vtep =
        Vtep::new(world.now, VtepConfig { workers: 15, ..config(1, 2) }, Box::new(Random(1)));
    let lanes: Vec<_> = (0..15).map(|_| format!("{:?}", vtep.datapath())).collect();
    for (worker, text) in lanes.iter().enumerate() {
        let lane = Lane::new(worker as u8, 0);
        assert!(text.contains(&format!("lane: {lane:?}")), "worker {worker}");
    }
}

#[test]
fn rule_l3_numbers_begin_at_0_and_leave_nothing_out() {
    let mut world = World::cluster(1, 2);
    for number in 0..200_u32 {
        world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), &number.to_be_bytes()));
        world.run_for(ms(50));
    }
    let mut next: BTreeMap<_, u32> = BTreeMap::new();
    for (from, header) in world.sent.iter().filter_map(|s| Some((s.from, header_of(s)?))) {
        let expected =
            next.entry((from, header.slot.0, header.lane, header.epoch_bits)).or_default();
        assert_eq!(header.sequence, *expected);
        *expected += 1;
    }
    assert!(next.len() >= 3, "{next:?}");
}

#[test]
fn rule_g1_long_headers_of_other_kinds_have_names() {
    let mut world = World::cluster(1, 2);
    let config = VtepConfig { start_stamp: 9_000_000_000, ..config(1, 2) };
    let (_, good) = initiation(&world, config, 5);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    assert_eq!(dropped(&mut world, with(0, 0x20)), "long_type_unknown");
    assert_eq!(dropped(&mut world, with(0, 0x3f)), "long_type_unknown");
    assert_eq!(dropped(&mut world, with(0, 0x01)), "long_invalid");
    assert_eq!(dropped(&mut world, with(0, 0x08)), "long_invalid");
    assert_eq!(dropped(&mut world, with(0, 0x23)), "long_invalid", "a cookie of 1,200 bytes");
    for len in [1, LONG_HEADER_LEN - 1, LONG_HEADER_LEN, 1_199] {
        assert_eq!(dropped(&mut world, good[..len].to_vec()), "long_invalid", "{len}");
    }
    let mut long = good.clone();
    long.push(0);
    assert_eq!(dropped(&mut world, long), "long_invalid");
    assert_eq!(dropped(&mut world, with(1, 2)), "long_version_unknown");
    let version = Event::VersionUnknown { from: address(1), version: 2, highest: 1 };
    assert!(world.nodes[1].events.contains(&version));
}

#[test]
fn rule_g2_nothing_is_answered_before_key_id_and_mac_are_right() {
    let mut world = World::cluster(1, 2);
    let config = VtepConfig { start_stamp: 9_000_000_000, ..config(1, 2) };
    let (_, good) = initiation(&world, config, 5);
    let sent = world.sent.len();
    for at in [2, 12, 20, 36, 51] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert_eq!(dropped(&mut world, bytes), "handshake_bad_mac", "byte {at}");
    }
    let mut bytes = good.clone();
    bytes[4] ^= 1;
    assert_eq!(dropped(&mut world, bytes), "handshake_key_unknown");
    assert!(world.nodes[1].events.contains(&Event::KeyUnknown { from: address(1) }));
    // The MAC is not over the Noise message; that has its own.
    let mut bytes = good;
    bytes[LONG_HEADER_LEN + 40] ^= 1;
    assert_eq!(dropped(&mut world, bytes), "handshake_invalid");
    assert_eq!(world.sent.len(), sent, "no answer of any kind");
}

#[test]
fn rule_g4_an_initiation_for_another_or_of_a_stranger_is_dropped() {
    let mut world = World::cluster(1, 2);
    let later = |me| VtepConfig { start_stamp: 9_000_000_000, ..config(me, 3) };
    // Node 1 asks node 3, and node 2 gets it; node 3 asks node 2, which does not know it.
    let third = VtepConfig { peers: vec![world::peer(3)], ..later(1) };
    let (_, for_another) = initiation(&world, third, 5);
    assert_eq!(dropped(&mut world, for_another), "handshake_wrong_node");
    let stranger = VtepConfig { peers: vec![world::peer(2)], ..later(3) };
    let (_, of_stranger) = initiation(&world, stranger, 6);
    assert_eq!(dropped(&mut world, of_stranger), "handshake_wrong_node");
}

#[test]
fn rule_g5_the_responder_chooses_and_waits_for_proof() {
    let both = |me, first, second| VtepConfig { suites: vec![first, second], ..config(me, 2) };
    let mut world = World::new(1);
    world.add(both(1, Suite::Clear, Suite::Aes256Gcm));
    world.add(both(2, Suite::Aes256Gcm, Suite::Clear));
    world.run_for(secs(2));
    for (asker, cipher) in [(0, "aes-256-gcm"), (1, "none")] {
        world.nodes[asker].vtep.rehandshake(world.now, None).unwrap();
        world.drain(asker);
        world.run_for(secs(1));
        for node in &world.nodes {
            assert_eq!(node.vtep.peer_status(world.now)[0].cipher, Some(cipher));
        }
    }
    // Nothing of the asker's arrives any more but its initiation: the answer changes nothing.
    let mut world = World::cluster(1, 2);
    let sessions = |world: &World| world.nodes[1].vtep.tables().sessions.iter().flatten().count();
    let handshakes = |world: &World| world.nodes[1].vtep.peer_status(world.now)[0].handshakes;
    let before = (handshakes(&world), slot(&world, 1));
    world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
    world.drain(0);
    world.wires.insert((0, 1), Wire { cut: true, ..Wire::default() });
    world.run_for(ms(50));
    assert_eq!(sessions(&world), 2, "answered");
    let entry = world.nodes[1].vtep.tables().peers[0].clone().unwrap();
    assert_eq!((handshakes(&world), entry.session.as_ref().unwrap().facts().local_slot), before);
}

#[test]
fn rule_g8_a_repeated_initiation_gets_the_same_answer_until_it_is_confirmed() {
    let mut world = World::cluster(1, 2);
    let later = VtepConfig { start_stamp: 9_000_000_000, ..config(1, 2) };
    let (_, asked) = initiation(&world, later, 5);
    // The real node 1 knows nothing of it, so the answers stay unconfirmed.
    let mut answers = Vec::new();
    for _ in 0..3 {
        let sent = world.sent.len();
        world.inject(address(1), 1, asked.clone());
        answers.extend(world.sent[sent..].iter().map(|sent| sent.bytes.clone()));
    }
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer[0] == 0x22));
    // The initiation of the session in force answers nothing.
    let mut world = World::cluster(1, 2);
    world.nodes[0].vtep.rehandshake(world.now, None).unwrap();
    world.drain(0);
    let asked = world.sent.last().unwrap().bytes.clone();
    assert_eq!(asked[0], 0x21);
    world.run_for(secs(1));
    let sent = world.sent.len();
    assert_eq!(dropped(&mut world, asked), "handshake_stale");
    assert_eq!(world.sent.len(), sent);
}

#[test]
fn rule_g9_answers_to_nothing_are_stale_and_retries_slow_down() {
    let mut world = World::cluster(1, 2);
    let response = world.sent.iter().find(|sent| sent.to == 1 && sent.bytes[0] == 0x22);
    let response = response.or_else(|| world.sent.iter().find(|sent| sent.bytes[0] == 0x22));
    let response = response.unwrap().bytes.clone();
    assert_eq!(dropped(&mut world, response), "handshake_stale");
    let key = ClusterKey::new([7; 32]);
    let header = LongHeader {
        kind: Type::Cookie,
        highest_version: 1,
        key_id: key.id(),
        token: 99,
        cookie: [1; COOKIE_LEN],
    };
    assert_eq!(dropped(&mut world, header.write(&key).to_vec()), "handshake_stale");
    // A node that nobody answers.
    let mut world = World::new(3);
    world.add(config(1, 2));
    world.add(config(2, 2));
    world.kill(1);
    let mut times = Vec::new();
    let (start, mut sent) = (world.now, world.sent.len());
    for _ in 0..60_000 {
        world.run_for(ms(1));
        let new = world.sent[sent..].iter().filter(|sent| sent.from == 0).count();
        times.extend((0..new).map(|_| world.now - start));
        sent = world.sent.len();
    }
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| *gap <= ms(6_252)), "at most 5 s and a quarter: {gaps:?}");
    let late = &gaps[gaps.len() - 5..];
    assert!(late.iter().all(|gap| *gap >= ms(3_748)), "at least 5 s less a quarter: {gaps:?}");
    assert!(times[0] <= ms(315), "{:?}", times[0]);
}

#[test]
fn rule_s5_sessions_under_a_removed_key_end_at_once() {
    let mut world = World::cluster(1, 2);
    let other = VtepConfig { keys: vec![ClusterKey::new([8; 32])], ..config(1, 2) };
    world.nodes[0].vtep.reconfigure(world.now, other);
    world.drain(0);
    let ended = Event::PeerDown { node: id(2), reason: DownReason::KeyRemoved };
    assert!(world.nodes[0].events.contains(&ended), "{:?}", world.nodes[0].events);
    assert_eq!(world.nodes[0].vtep.tables().sessions.iter().flatten().count(), 0);
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"nobody"));
    world.run_for(secs(2));
    assert_eq!(world.nodes[0].drops(DropReason::PeerNoSession), 1);
}

#[test]
fn rule_f1_frames_that_teach_nothing_are_dropped_at_both_ends() {
    let group = MacAddr([0x03, 0, 0, 0, 0, 1]);
    let bad = [frame(mac(2), group, b"x"), frame(mac(2), MacAddr::default(), b"x")];
    let mut world = clear_world();
    for bytes in &bad {
        world.transmit(0, bytes);
    }
    assert_eq!(world.nodes[0].drops(DropReason::FrameBadSource), 2);
    let mut tagged = frame(mac(2), mac(1), b"");
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    for cut in [&tagged[..], &tagged[..13], &[]] {
        world.transmit(0, cut);
    }
    assert_eq!(world.nodes[0].drops(DropReason::FrameTruncated), 3);
    let mine = handle(&world, 1);
    for (number, bytes) in bad.iter().chain([&tagged]).enumerate() {
        let moved = counted(&mut world, |world| inject_clear(world, number as u32, mine, bytes));
        assert_eq!(moved, BTreeMap::from([("inner_frame_invalid", 1)]));
    }
    assert_eq!(world.nodes[1].vtep.fdb_rows(world.now, vni()).unwrap().len(), 0);
    assert!(world.nodes[1].delivered.is_empty());
}

#[test]
fn rule_f1_a_member_by_handle_and_nobody_else() {
    // Node 1 leaves node 0 out of its network; node 0 guesses the handle all the same.
    let mut world = World::new(1);
    world.add(clear(1));
    let mut closed = clear(2);
    closed.networks[0].members.clear();
    world.add(closed);
    world.run_for(secs(2));
    let mine = handle(&world, 1);
    let bytes = frame(mac(2), mac(1), b"let me in");
    let moved = counted(&mut world, |world| inject_clear(world, 0, mine, &bytes));
    assert_eq!(moved, BTreeMap::from([("network_not_member", 1)]));
    assert_eq!(world.nodes[1].vtep.fdb_rows(world.now, vni()).unwrap().len(), 0);
}

#[test]
fn rule_f2_a_frame_for_this_side_does_not_leave_it() {
    let mut world = World::cluster(1, 2);
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"here"));
    let sent = world.sent.len();
    world.transmit(0, &frame(mac(1), mac(9), b"to a neighbour"));
    assert_eq!(world.nodes[0].drops(DropReason::FrameLocalDestination), 1);
    assert_eq!(world.sent.len(), sent);
}

#[test]
fn rule_f5_floods_are_policed_and_known_addresses_are_not() {
    let slow =
        |me| VtepConfig { limits: Limits { bum_rate: 100, ..Limits::default() }, ..config(me, 2) };
    let mut world = World::new(1);
    world.add(slow(1));
    world.add(slow(2));
    world.run_for(secs(2));
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"here"));
    world.run_for(ms(5));
    for number in 0..200_u32 {
        world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), &number.to_be_bytes()));
    }
    assert_eq!(world.nodes[0].drops(DropReason::FramePoliced), 200 - 32);
    for number in 0..200_u32 {
        world.transmit(0, &frame(mac(2), mac(1), &number.to_be_bytes()));
    }
    world.run_for(ms(5));
    assert_eq!(world.nodes[0].drops(DropReason::FramePoliced), 200 - 32);
    assert_eq!(world.nodes[1].delivered.len(), 32 + 200);
    // A network of one.
    let mut world = World::cluster(1, 2);
    let mut alone = config(1, 2);
    alone.networks[0].members.clear();
    world.nodes[0].vtep.reconfigure(world.now, alone);
    world.drain(0);
    world.transmit(0, &frame(MacAddr::BROADCAST, mac(1), b"anyone?"));
    assert_eq!(world.nodes[0].drops(DropReason::FrameNoMember), 1);
}

#[test]
fn rule_f6_link_constrained_frames_are_dropped_at_both_ends() {
    let stp = frame(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]), mac(1), b"bpdu");
    let lldp = frame(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]), mac(1), b"lldp");
    let mut pause = frame(mac(2), mac(1), b"pause");
    pause[12..14].copy_from_slice(&[0x88, 0x08]);
    // The sender lets spanning tree pass, the receiver does not.
    let mut world = World::new(1);
    world.add(clear(1));
    let mut strict = clear(2);
    strict.networks[0].stp = false;
    world.add(strict);
    world.run_for(secs(2));
    let moved = counted(&mut world, |world| {
        world.transmit(0, &stp);
        world.run_for(ms(5));
    });
    assert_eq!(moved, BTreeMap::from([("inner_frame_link_local", 1)]));
    for bytes in [&lldp, &pause] {
        world.transmit(0, bytes);
    }
    world.transmit(1, &stp);
    assert_eq!(world.nodes[0].drops(DropReason::FrameLinkLocal), 2);
    assert_eq!(world.nodes[1].drops(DropReason::FrameLinkLocal), 1);
    let mine = handle(&world, 1);
    for (number, bytes) in [lldp, pause].into_iter().enumerate() {
        let moved = counted(&mut world, |world| inject_clear(world, number as u32, mine, &bytes));
        assert_eq!(moved, BTreeMap::from([("inner_frame_link_local", 1)]));
    }
}

/// An IPv4 UDP frame whose checksum field holds something that is not the checksum.
fn udp_frame() -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1_000, 2_000);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"payload").unwrap();
    let at = 14 + 20 + 6;
    bytes[at..at + 2].copy_from_slice(&[0x12, 0x34]);
    bytes
}

/// What node 1 delivers of these datagrams from node 0.
fn decapsulate(world: &mut World, datagrams: Vec<Vec<u8>>) -> Vec<(Checksum, Vec<u8>)> {
    let from: SocketAddr = address(1);
    let uplink = encap::wire::buf::UplinkId(0);
    let datapath = &mut world.nodes[1].datapath;
    let deliver = |bytes| {
        let (out, _) = world::decapsulate(datapath, world.now, (uplink, from, 0), bytes);
        out.iter().map(|(d, bytes)| (d.frame.checksum, bytes.to_vec())).collect::<Vec<_>>()
    };
    datagrams.iter().map(Vec::as_slice).flat_map(deliver).collect()
}

#[test]
fn rule_p1_a_partial_checksum_crosses_sealed_and_is_completed_elsewhere() {
    let bytes = udp_frame();
    let partial = Checksum::Partial { start: 34, offset: 6 };
    assert_eq!(derive_partial(&bytes), Some(partial));
    let mut completed = bytes.clone();
    encap::wire::checksum::complete_checksum(&mut completed, 34, 6).unwrap();
    assert_ne!(bytes, completed);
    let mut world = World::cluster(1, 2);
    let datagrams = encapsulate(&mut world, &bytes, partial);
    assert_eq!(decapsulate(&mut world, datagrams), [(partial, bytes.clone())]);
    // A place that parsing does not find, and one outside of the frame.
    let elsewhere = Checksum::Partial { start: 34, offset: 8 };
    let datagrams = encapsulate(&mut world, &bytes, elsewhere);
    let delivered = decapsulate(&mut world, datagrams);
    assert_eq!(delivered.len(), 1);
    assert_eq!(delivered[0].0, Checksum::Complete);
    let outside = Checksum::Partial { start: 34, offset: 2_000 };
    assert!(encapsulate(&mut world, &bytes, outside).is_empty());
    assert_eq!(world.nodes[0].drops(DropReason::FrameBadChecksumOffset), 1);
    // Nothing vouches for kind 9 in clear mode.
    let mut world = clear_world();
    let datagrams = encapsulate(&mut world, &bytes, partial);
    assert_eq!(decapsulate(&mut world, datagrams), [(Checksum::Complete, completed)]);
    let kind_9 = 0x9000 | handle(&world, 1);
    let moved = counted(&mut world, |world| inject_clear(world, 0, kind_9, &bytes));
    assert_eq!(moved, BTreeMap::from([("inner_bad_checksum", 1)]));
}
