//! Sizes of datagrams, fragments, and what the outer and inner IP headers tell each other.

use encap::datapath::Deliveries;
use encap::forward::marks::Dscp;
use encap::forward::policy::Policy;
use encap::forward::protect::Protect;
use encap::vtep::config::{Limits, NetworkConfig};
use encap::wire::buf::{Offload, UplinkId};
use encap::wire::fragment::FragmentHeader;
use encap::wire::inner_ip::InnerIp;

use super::links::{clear_datagram, clear_pair};
use super::*;

/// What node 0 makes of a frame from its tap: uplink, mark and bytes of each datagram.
fn sent(world: &mut World, bytes: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let (now, node) = (world.now, &mut world.nodes[0]);
    let handle = node.vtep.tables().handles[&vni()];
    let frames = [(bytes, Offload::default())];
    let out = world::encapsulate(&mut node.datapath, now, handle, &frames);
    out.datagrams().map(|(run, bytes)| (run.uplink.0, run.mark, bytes.to_vec())).collect()
}

/// What node 1 delivers of a datagram from node 0 that comes with this outer mark.
fn received(world: &mut World, mark: u8, bytes: &[u8]) -> Vec<Vec<u8>> {
    let (now, node) = (world.now, &mut world.nodes[1]);
    let from = (UplinkId(0), address(1), mark);
    let (out, _) = world::decapsulate(&mut node.datapath, now, from, bytes);
    out.iter().map(|(_, bytes)| bytes.to_vec()).collect()
}

/// What node 0 writes back into its tap.
fn returns(world: &mut World) -> Vec<Vec<u8>> {
    let mut out = Deliveries::default();
    world.nodes[0].datapath.take_returns(&mut out);
    out.iter().map(|(_, bytes)| bytes.to_vec()).collect()
}

/// An IPv4 UDP frame to node 2 with this TOS byte and DF.
fn ip_frame(tos: u8, payload: usize) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1_000, 2_000);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &vec![7; payload]).unwrap();
    let mut header = etherparse::Ipv4Header::from_slice(&bytes[14..]).unwrap().0;
    (header.dscp, header.ecn) = (
        etherparse::IpDscp::try_new(tos >> 2).unwrap(),
        etherparse::IpEcn::try_new(tos & 3).unwrap(),
    );
    header.dont_fragment = true;
    header.header_checksum = header.calc_header_checksum();
    bytes[14..34].copy_from_slice(&header.to_bytes());
    bytes
}

/// A fragment of kind 2 with this id and flags, as node 1 gets it.
fn fragment(world: &World, number: u32, header: [u8; 4], piece: &[u8]) -> Vec<u8> {
    clear_datagram(world, 1, number, 0x2000, &[&header[..], piece].concat())
}

#[test]
fn rule_f7_a_datagram_fits_every_link_that_may_have_to_carry_it() {
    let narrow = |protect: Protect, policy: Policy| {
        move |config: &mut VtepConfig| {
            config.peers[0].links[1].max_udp_payload = 1_332;
            (config.peers[0].protect, config.peers[0].policy) = (protect, policy);
        }
    };
    let bytes = frame(mac(2), mac(1), &[7; 1_400]);
    for (protect, policy, largest) in [
        (Protect::Off, Policy::Passive, 1_424),
        (Protect::Off, Policy::Active { copies: 1 }, 1_332),
        (Protect::Control, Policy::Passive, 1_332),
        (Protect::All, Policy::Passive, 1_332),
    ] {
        let mut world = clear_pair(2, narrow(protect, policy));
        let sent = sent(&mut world, &bytes);
        assert!(!sent.is_empty());
        assert!(sent.iter().all(|(_, _, bytes)| bytes.len() <= largest), "{protect:?}");
        assert_eq!(sent.len() > 1, largest == 1_332, "{protect:?} {policy}");
        let whole: Vec<_> =
            sent.iter().flat_map(|(_, mark, bytes)| received(&mut world, *mark, bytes)).collect();
        assert_eq!(whole, [&bytes[..]]);
        // The control half keeps to what every supported path takes.
        world.run_for(secs(1));
        let control: Vec<_> = world.sent.iter().filter(|sent| !messages(sent).is_empty()).collect();
        assert!(!control.is_empty());
        assert!(control.iter().all(|sent| sent.bytes.len() <= 1_232));
    }
}

#[test]
fn rule_f8_pieces_are_equal_and_in_a_row() {
    let mut world = clear_pair(1, |_| {});
    for len in [1_500, 3_000, 9_000, 65_535] {
        // 1,472 less headers, in multiples of 8.
        let bytes = frame(mac(2), mac(1), &vec![7; len - 14]);
        let sent = sent(&mut world, &bytes);
        assert_eq!(sent.len(), (len + 2).div_ceil(1_456), "as few as can be");
        let (mut first, mut end, mut piece_len) = (None, 0, 0);
        for (at, (_, _, bytes)) in sent.iter().enumerate() {
            let header = DataHeader::read(bytes.first_chunk().unwrap());
            assert_eq!(bytes[8..10], [0x20, 0], "kind 2, handle 0");
            let fragment = FragmentHeader::read(bytes[10..14].try_into().unwrap()).unwrap();
            let (base, id) = *first.get_or_insert((header.sequence, fragment.id));
            assert_eq!((header.sequence, fragment.id), (base + at as u32, id));
            assert_eq!(fragment.offset, end);
            assert_eq!(fragment.more, at + 1 < sent.len());
            let piece = bytes.len() - 14;
            if at == 0 {
                piece_len = piece;
            }
            assert!(piece == piece_len && piece % 8 == 0 || !fragment.more && piece <= piece_len);
            end += piece;
        }
        assert_eq!(end, len + 2);
        // In any order.
        let mut whole = Vec::new();
        for (_, mark, bytes) in sent.iter().rev() {
            assert!(whole.is_empty());
            whole = received(&mut world, *mark, bytes);
        }
        assert_eq!(whole, [bytes]);
    }
    let moved = world.nodes[0].drops(DropReason::FrameTooLarge);
    assert!(sent(&mut world, &frame(mac(2), mac(1), &[7; 65_540])).is_empty());
    assert_eq!(world.nodes[0].drops(DropReason::FrameTooLarge), moved + 1);
}

#[test]
fn rule_f8_what_no_sender_makes_is_dropped_by_name() {
    let mut world = clear_pair(1, |_| {});
    let mine = handle(&world, 1);
    let inner = frame(mac(2), mac(1), b"sixteen bytes...");
    let content = |kind: u16| [&(kind << 12 | mine).to_be_bytes()[..], &inner].concat();
    let last = |id: u8| [0, id, 0, 0];
    let one = |world: &mut World, bytes: Vec<u8>| {
        counted(world, |world| world.inject(address(1), 1, bytes))
    };
    for (number, (header, piece, name)) in [
        ([0, 1, 0x40, 0], &content(0)[..], "fragment_invalid"), // reserved bit
        ([0, 1, 0x20, 0], &content(0), "fragment_invalid"),     // the other one
        (last(2), &content(2), "fragment_invalid"),             // a fragment in a fragment
        (last(3), &content(5), "fragment_invalid"),             // control in a fragment
        (last(4), &content(7), "fragment_invalid"),             // a probe in a fragment
        (last(10), &content(3), "fragment_invalid"),            // a bundle in a fragment
        (last(11), &content(4), "fragment_invalid"),            // a channel packet in a fragment
        (last(12), &content(8), "fragment_invalid"), // an unreliable message in a fragment
        (last(5), &content(6), "kind_unknown"),
        (last(6), &[], "fragment_invalid"), // no piece
        ([0, 7, 0x80, 0], &[0; 13], "fragment_invalid"), // not a multiple of 8
        ([0, 8, 0x80, 1], &[0; 16], "fragment_invalid"), // not a multiple of its length
        ([0, 9, 0x1f, 0xff], &[0; 16], "fragment_invalid"), // ends beyond 65,541
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = fragment(&world, 10 + number as u32, header, piece);
        assert_eq!(one(&mut world, bytes), BTreeMap::from([(name, 1)]), "{header:?}");
    }
    let short = clear_datagram(&world, 1, 30, 0x2000, &[0, 1, 0]);
    assert_eq!(one(&mut world, short), BTreeMap::from([("datagram_truncated", 1)]));
    assert!(world.nodes[1].delivered.is_empty());
    // A whole frame in one piece is odd and no fault.
    let bytes = fragment(&world, 31, last(9), &content(0));
    assert_eq!(one(&mut world, bytes), BTreeMap::new());
    assert_eq!(world.nodes[1].delivered, [(vni(), inner)]);
}

#[test]
fn rule_f8_incomplete_frames_are_bounded_and_counted() {
    let mut world = clear_pair(1, |_| {});
    let first = |id: u16| {
        let [high, low] = id.to_be_bytes();
        [high, low, 0x80, 0]
    };
    // The same piece again, under another number: a contradiction, or not of this frame.
    let moved = counted(&mut world, |world| {
        for number in 0..70 {
            let bytes = fragment(world, 100 + number * 2, first(number as u16), &[7; 16]);
            world.inject(address(1), 1, bytes);
        }
    });
    assert_eq!(moved, BTreeMap::from([("fragment_displaced", 6)]), "64 in a lane");
    let moved = counted(&mut world, |world| {
        world.run_for(ms(1_500));
        let (now, node) = (world.now, &mut world.nodes[1]);
        node.datapath.tidy(now);
    });
    assert_eq!(moved, BTreeMap::from([("fragment_expired", 64)]));
}

#[test]
fn rule_m4_senders_are_told_what_fits_and_are_carried_meanwhile() {
    let mut world = clear_pair(1, |_| {});
    let bytes = ip_frame(0, 1_600);
    let carried = sent(&mut world, &bytes);
    assert_eq!(carried.len(), 2);
    let told = returns(&mut world);
    assert_eq!(told.len(), 1);
    let icmp = &told[0][..];
    let ip = InnerIp::find(icmp).unwrap();
    let l4 = ip.l4_offset.unwrap();
    assert_eq!(icmp[l4..l4 + 2], [3, 4], "fragmentation needed");
    assert_eq!(icmp[l4 + 6..l4 + 8], (1_472_u16 - 10 - 14).to_be_bytes());
    sent(&mut world, &bytes);
    assert_eq!(returns(&mut world).len(), 0, "one in 100 ms");
    // Without DF there is nothing to be told.
    let mut fragmentable = bytes;
    fragmentable[20] = 0;
    world.run_for(ms(200));
    assert_eq!(sent(&mut world, &fragmentable).len(), 2);
    assert_eq!(returns(&mut world).len(), 0);
}

#[test]
fn rule_t1_control_is_cs6_probes_are_not_and_frames_as_configured() {
    let mut world = World::new(1);
    world.add(config(1, 2));
    let (mut other, initiation) = {
        let mut vtep = Vtep::new(world.now, config(2, 2), Box::new(Random(2)));
        let initiation = vtep.poll_transmit().unwrap();
        (vtep, initiation)
    };
    assert_eq!(initiation.mark, 0xc0);
    // Between two control halves alone nothing but control and probes is sent.
    let mut queue: std::collections::VecDeque<_> = [(0, initiation)].into();
    let (mut kinds, mut datapath) = (BTreeMap::new(), other.datapath());
    for _ in 0..2_000 {
        while let Some((to, transmit)) = queue.pop_front() {
            let is_probe = transmit.payload.len() > 1_200;
            *kinds.entry((is_probe, transmit.mark)).or_insert(0) += 1;
            let from = (UplinkId(0), address(if to == 0 { 2 } else { 1 }), 0);
            let node = &mut world.nodes[0];
            let (vtep, path) = match to {
                0 => (&mut node.vtep, &mut node.datapath),
                _ => (&mut other, &mut datapath),
            };
            let (_, control) = world::decapsulate(path, world.now, from, &transmit.payload);
            control.into_iter().for_each(|input| vtep.handle_input(world.now, input));
            path.end_pass();
            queue.extend(std::iter::from_fn(|| vtep.poll_transmit()).map(|t| (1 - to, t)));
        }
        world.now += ms(5);
        for (to, vtep) in [(1, &mut world.nodes[0].vtep), (0, &mut other)] {
            vtep.handle_timeout(world.now);
            queue.extend(std::iter::from_fn(|| vtep.poll_transmit()).map(|t| (to, t)));
        }
    }
    let seen: Vec<_> = kinds.keys().copied().collect();
    assert_eq!(seen, [(false, 0xc0), (true, 0)], "{kinds:?}");

    let map = {
        let mut map = Box::new([0; 64]);
        map[46] = 40;
        Dscp::Map(map)
    };
    for (dscp, inner, outer) in [
        (Dscp::default(), 46 << 2, 0),
        (Dscp::Fixed(10), 46 << 2, 10 << 2),
        (Dscp::Inherit, 46 << 2 | 2, 46 << 2 | 2),
        (map.clone(), 46 << 2, 40 << 2),
        (map, 12 << 2, 0),
    ] {
        let mut world = clear_pair(1, |config| {
            let network = config.networks.remove(0);
            config.networks.push(NetworkConfig { dscp: Some(dscp.clone()), ..network });
        });
        let marks: Vec<_> =
            sent(&mut world, &ip_frame(inner, 100)).iter().map(|(_, mark, _)| *mark).collect();
        assert_eq!(marks, [outer], "{dscp:?}");
        // What is no IP packet has no class to inherit.
        let marks = sent(&mut world, &frame(mac(2), mac(1), &[7; 60]));
        assert_eq!(marks[0].1, if let Dscp::Fixed(dscp) = dscp { dscp << 2 } else { 0 });
    }
}

#[test]
fn rule_t2_congestion_marks_cross_the_tunnel_both_ways() {
    const CE: u8 = 3;
    let mut world = clear_pair(1, |_| {});
    for (inner, outer) in [(0, 0), (1, 1), (2, 2), (CE, CE)] {
        let sent = sent(&mut world, &ip_frame(inner, 100));
        assert_eq!(sent[0].1, outer, "RFC 6040, normal mode");
    }
    for inner in [1, 2, CE] {
        let datagram = sent(&mut world, &ip_frame(inner, 100)).swap_remove(0).2;
        let whole = received(&mut world, CE, &datagram);
        assert_eq!(whole, [ip_frame(CE, 100)], "with a header checksum that is right");
    }
    let datagram = sent(&mut world, &ip_frame(0, 100)).swap_remove(0).2;
    let before = world.nodes[1].drops(DropReason::InnerEcnInvalid);
    assert!(received(&mut world, CE, &datagram).is_empty());
    assert_eq!(world.nodes[1].drops(DropReason::InnerEcnInvalid), before + 1);
    // One fragment that met congestion stands for the frame.
    let pieces = sent(&mut world, &ip_frame(2, 1_600));
    assert_eq!(pieces.len(), 2);
    assert!(received(&mut world, CE, &pieces[0].2).is_empty());
    let whole = received(&mut world, 2, &pieces[1].2);
    assert_eq!(InnerIp::find(&whole[0]).unwrap().tos, CE);
    // Where it is off nothing is looked at.
    let mut world = clear_pair(1, |config| {
        config.limits = Limits { ecn: false, ..config.limits };
    });
    let datagram = sent(&mut world, &ip_frame(2, 100)).swap_remove(0);
    assert_eq!(datagram.1, 0);
    assert_eq!(received(&mut world, CE, &datagram.2), [ip_frame(2, 100)]);
}
