//! Several ports of a network on one node: who gets what, and that nothing leaves needlessly.

use encap::datapath::{Deliveries, To};
use encap::id::LocalPort;
use encap::offload::SuperFrame;
use encap::wire::buf::BufPool;

use super::runs::{super_frame, tcp};
use super::*;

const TAP: LocalPort = LocalPort::TAP;

fn port(number: u8) -> LocalPort {
    LocalPort::new(number).unwrap()
}

/// Nodes 0 and 1. Node 0 has the tap and two virtual machines: station 11 at port 1, 12 at port 2;
/// node 1 has station 2. All know each other.
fn populated() -> World {
    let mut world = World::cluster(1, 2);
    set_ports(&mut world, 0b111);
    for number in [1, 2] {
        let hello = frame(MacAddr::BROADCAST, mac(10 + u16::from(number)), b"hello");
        world.transmit_from(0, port(number), &[(&hello, Offload::default())]);
    }
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
    world.run_for(ms(5));
    world
}

fn set_ports(world: &mut World, ports: u64) {
    world.nodes[0].vtep.set_local_ports(vni(), ports).unwrap();
}

/// What stays on node 0 of a frame from one of its ports, and how many datagrams leave.
fn from(world: &mut World, port: LocalPort, bytes: &[u8]) -> (Vec<(To, Vec<u8>)>, usize) {
    let returns = world.transmit_from(0, port, &[(bytes, Offload::default())]);
    let stays = returns.iter().map(|(delivery, bytes)| (delivery.to, bytes.to_vec())).collect();
    (stays, world.last_ways.len())
}

/// Which local ports of node 0 get a frame from node 1.
fn inwards(world: &mut World, bytes: &[u8]) -> To {
    world.nodes[0].delivered_to.clear();
    world.transmit(1, bytes);
    world.run_for(ms(5));
    assert_eq!(world.nodes[0].delivered.last().unwrap().1, bytes);
    assert_eq!(world.nodes[0].delivered_to.len(), 1);
    world.nodes[0].delivered_to[0]
}

#[test]
fn rule_f10_each_local_port_gets_what_is_for_it_and_no_echo() {
    let mut world = populated();
    let before = world.nodes[1].delivered.len();
    let unicast = frame(mac(11), mac(12), b"neighbour");
    assert_eq!(from(&mut world, port(2), &unicast), (vec![(To::Port(port(1)), unicast)], 0));
    let counters = world.nodes[0].datapath.counters();
    assert_eq!((counters.frames_local.get(), counters.floods.get()), (1, 2));
    // Everyone else gets what is for all, and what is for nobody known.
    for to in [MacAddr::BROADCAST, mac(99)] {
        let flood = frame(to, mac(11), b"who");
        assert_eq!(from(&mut world, port(1), &flood), (vec![(To::AllBut(port(1)), flood)], 1));
    }
    // What is for the peer goes there alone.
    let out = frame(mac(2), mac(11), b"away");
    assert_eq!(from(&mut world, port(1), &out), (vec![], 1));
    world.run_for(ms(5));
    assert_eq!(world.nodes[1].delivered.len(), before + 3);
    assert!(world.nodes[0].all_drops().is_empty(), "{:?}", world.nodes[0].all_drops());
    let echo = frame(mac(11), mac(13), b"behind the same port");
    assert_eq!(from(&mut world, port(1), &echo), (vec![], 0));
    assert_eq!(world.nodes[0].drops(DropReason::FrameLocalDestination), 1);
    assert_eq!(world.nodes[0].datapath.counters().frames_local.get(), 1);
}

#[test]
fn rule_f10_what_peers_send_goes_to_the_port_of_its_station() {
    let mut world = populated();
    assert_eq!(inwards(&mut world, &frame(mac(11), mac(2), b"one")), To::Port(port(1)));
    assert_eq!(inwards(&mut world, &frame(mac(12), mac(2), b"two")), To::Port(port(2)));
    for to in [MacAddr::BROADCAST, mac(99)] {
        assert_eq!(inwards(&mut world, &frame(to, mac(2), b"all")), To::All, "{to}");
    }
    // One port needs no looking up.
    set_ports(&mut world, 0b100);
    assert_eq!(inwards(&mut world, &frame(mac(99), mac(2), b"alone")), To::Port(port(2)));
    set_ports(&mut world, 0);
    assert_eq!(inwards(&mut world, &frame(mac(11), mac(2), b"nobody")), To::All);
}

#[test]
fn rule_f10_a_station_that_moves_to_another_port_is_followed() {
    let mut world = populated();
    let unicast = frame(mac(11), mac(12), b"where?");
    assert_eq!(from(&mut world, port(2), &unicast).0[0].0, To::Port(port(1)));
    // Without an answer from memory in between: the very next frame goes there.
    from(&mut world, TAP, &frame(MacAddr::BROADCAST, mac(11), b"moved"));
    assert_eq!(from(&mut world, port(2), &unicast).0[0].0, To::Port(TAP));
    assert_eq!(inwards(&mut world, &frame(mac(11), mac(2), b"follow")), To::Port(TAP));
    // The same source again and again, from one port and the other.
    for number in [1, 0, 2] {
        from(&mut world, port(number), &frame(mac(2), mac(11), b"moved on"));
        let at = inwards(&mut world, &frame(mac(11), mac(2), b"follow"));
        assert_eq!(at, To::Port(port(number)));
    }
    // To the other node: neighbours reach it there. That is the fifth move.
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(11), b"migrated"));
    world.run_for(ms(5));
    assert_eq!(from(&mut world, TAP, &unicast), (vec![], 1));
    from(&mut world, port(1), &frame(MacAddr::BROADCAST, mac(11), b"once too often"));
    assert_eq!(from(&mut world, TAP, &unicast), (vec![], 1), "frozen");
    assert_eq!(world.nodes[0].datapath.counters().learn_refused.get(), 1);
}

#[test]
fn rule_f10_a_port_that_is_gone_is_forgotten() {
    let mut world = populated();
    set_ports(&mut world, 0b101);
    let known: Vec<_> = world.nodes[0].vtep.fdb_rows(world.now, vni()).unwrap();
    let known: BTreeSet<_> = known.iter().map(|(row, _)| row.mac).collect();
    assert_eq!(known, BTreeSet::from([mac(2), mac(12)]));
    let unicast = frame(mac(11), mac(12), b"gone");
    let flooded = (vec![(To::AllBut(port(2)), unicast.clone())], 1);
    assert_eq!(from(&mut world, port(2), &unicast), flooded);
    assert!(world.nodes[0].vtep.set_local_ports(Vni::new(7).unwrap(), 1).is_err());
}

#[test]
fn rule_f10_a_static_entry_of_this_node_is_at_its_tap_or_everywhere() {
    let mut world = populated();
    world.nodes[0].vtep.fdb_add(world.now, vni(), mac(50), id(1)).unwrap();
    let unicast = frame(mac(50), mac(12), b"here");
    assert_eq!(from(&mut world, port(2), &unicast).0[0].0, To::Port(TAP));
    assert_eq!(inwards(&mut world, &frame(mac(50), mac(2), b"here")), To::Port(TAP));
    set_ports(&mut world, 0b110);
    assert_eq!(
        from(&mut world, port(2), &unicast),
        (vec![(To::AllBut(port(2)), unicast.clone())], 0)
    );
    assert_eq!(inwards(&mut world, &frame(mac(50), mac(2), b"here")), To::All);
    // Nobody else is here, and it is known not to be elsewhere.
    set_ports(&mut world, 0b100);
    assert_eq!(from(&mut world, port(2), &unicast), (vec![], 0));
    assert_eq!(world.nodes[0].drops(DropReason::FrameLocalDestination), 1);
}

/// The same frame in the segments that its receiver would see.
fn cut(bytes: &[u8], offload: Offload) -> Vec<(Checksum, Vec<u8>)> {
    let super_frame =
        SuperFrame::new(bytes, offload.segmentation.unwrap(), offload.checksum).unwrap();
    let segment = |index| {
        let mut segment = Vec::new();
        super_frame.write(index, false, &mut segment);
        (super_frame.checksum(), segment)
    };
    (0..super_frame.count()).map(segment).collect()
}

fn segments(returns: &Deliveries) -> Vec<(Checksum, Vec<u8>)> {
    returns.iter().map(|(d, bytes)| (d.frame.checksum, bytes.to_vec())).collect()
}

#[test]
fn rule_f10_a_super_frame_reaches_a_local_port_in_segments() {
    let mut world = populated();
    let (mut bytes, checksum) = super_frame(44 * 1_392 - 100);
    let offload = Offload { checksum, segmentation: tcp(1_392) };
    bytes[..6].copy_from_slice(&mac(12).0);
    bytes[6..12].copy_from_slice(&mac(11).0);
    let small = frame(mac(12), mac(11), b"behind it");
    let frames = [(bytes.as_slice(), offload), (&small, Offload::default())];
    for _ in 0..3 {
        let mut returns = world.transmit_from(0, port(1), &frames);
        assert!(returns.list.iter().all(|delivery| delivery.to == To::Port(port(2))));
        let mut expected = cut(&bytes, offload);
        assert_eq!(expected.len(), 44);
        expected.push((Checksum::Complete, small.clone()));
        assert!(segments(&returns) == expected, "changed, lost or out of order");
        assert!(returns.pieces.0.len() <= 2, "many lie in one buffer");
        // The buffers are used again.
        let node = &mut world.nodes[0];
        node.datapath.release(&mut returns, &mut BufPool::new(0, 0));
    }
    assert_eq!(world.nodes[0].datapath.counters().frames_local.get(), 6);
    // To a station that nobody knows it goes both ways.
    bytes[..6].copy_from_slice(&mac(99).0);
    let returns = world.transmit_from(0, port(1), &[(&bytes, offload)]);
    assert!(segments(&returns) == cut(&bytes, offload));
    assert!(returns.list.iter().all(|delivery| delivery.to == To::AllBut(port(1))));
    assert_eq!(world.last_ways.len(), 44);
    // What cannot be cut goes nowhere, and is one drop.
    let offload = Offload { checksum: Checksum::Complete, ..offload };
    let returns = world.transmit_from(0, port(1), &[(&bytes, offload)]);
    assert!(returns.is_empty() && world.last_ways.is_empty());
    assert_eq!(world.nodes[0].drops(DropReason::FrameBadSegmentation), 1);
}

#[test]
fn rule_f10_a_partial_checksum_stays_so_where_it_can_be_found() {
    let mut world = populated();
    let mut bytes = udp_frame();
    bytes[..6].copy_from_slice(&mac(12).0);
    let mut completed = bytes.clone();
    encap::wire::checksum::complete_checksum(&mut completed, 34, 6).unwrap();
    let mut with = |start, offset| {
        let checksum = Checksum::Partial { start, offset };
        let offload = Offload { checksum, segmentation: None };
        segments(&world.transmit_from(0, port(1), &[(&bytes, offload)]))
    };
    let partial = Checksum::Partial { start: 34, offset: 6 };
    assert_eq!(with(34, 6), [(partial, bytes.clone())]);
    let [(Checksum::Complete, elsewhere)] = &with(34, 8)[..] else { panic!("not completed") };
    assert_eq!(elsewhere.len(), bytes.len());
    assert_eq!(with(34, 2_000), []);
    assert_eq!(world.nodes[0].drops(DropReason::FrameBadChecksumOffset), 1);
    // Peers in clear mode get it completed, a local port does not.
    let mut world = clear_world();
    set_ports(&mut world, 0b11);
    bytes[..6].fill(0xff);
    let offload = Offload { checksum: partial, segmentation: None };
    let returns = world.transmit_from(0, port(1), &[(&bytes, offload)]);
    assert_eq!(segments(&returns), [(partial, bytes.clone())]);
    world.run_for(ms(5));
    completed[..6].fill(0xff);
    assert_eq!(world.nodes[1].delivered.last().unwrap().1, completed);
}

#[test]
fn rule_f10_a_flood_to_local_ports_is_policed_once_and_is_no_drop_without_peers() {
    let mut world = World::new(1);
    let limits = Limits { bum_rate: 100, ..Limits::default() };
    let mut alone = config(1, 2);
    alone.networks[0].members.clear();
    world.add(VtepConfig { limits, ..alone });
    set_ports(&mut world, 0b111);
    let flood = frame(MacAddr::BROADCAST, mac(11), b"all");
    let passed = (0..100).filter(|_| !from(&mut world, port(1), &flood).0.is_empty()).count();
    assert_eq!(passed, 32);
    assert_eq!(world.nodes[0].all_drops(), [("frame_policed", 68)].into());
    set_ports(&mut world, 0b010);
    world.run_for(secs(2));
    assert_eq!(from(&mut world, port(1), &flood), (vec![], 0));
    assert_eq!(world.nodes[0].drops(DropReason::FrameNoMember), 1);
}

#[test]
fn rule_f10_nothing_link_constrained_and_nothing_in_a_loop_crosses_locally() {
    let mut world = populated();
    let lldp = frame(MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]), mac(11), b"lldp");
    assert_eq!(from(&mut world, port(1), &lldp), (vec![], 0));
    assert_eq!(world.nodes[0].drops(DropReason::FrameLinkLocal), 1);
    // What the node writes into its tap comes out of a virtual machine.
    world.run_for(secs(3));
    let probe = world.nodes[0].injected.last().unwrap().clone();
    from(&mut world, port(2), &probe);
    assert!(world.nodes[0].vtep.network_status()[0].looped);
    for bytes in [frame(MacAddr::BROADCAST, mac(11), b"all"), frame(mac(12), mac(11), b"one")] {
        assert_eq!(from(&mut world, port(1), &bytes), (vec![], 0));
    }
    assert_eq!(world.nodes[0].drops(DropReason::NetworkLooped), 2);
}

#[test]
fn rule_m4_the_message_goes_to_the_port_that_the_packet_came_from() {
    let mut world = populated();
    let builder = etherparse::PacketBuilder::ethernet2(mac(11).0, mac(2).0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1_000, 2_000);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[7; 1_600]).unwrap();
    bytes[20] = 0x40; // DF
    let (stays, datagrams) = from(&mut world, port(1), &bytes);
    assert_eq!((stays.len(), datagrams), (1, 2));
    assert_eq!(stays[0].0, To::Port(port(1)));
    assert_eq!(stays[0].1[..6], mac(11).0);
}
