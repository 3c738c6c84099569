//! What frames that are at hand at once become: super-frames in segments, small frames in bundles,
//! equal datagrams in runs, payloads compressed.

use encap::compress::Level;
use encap::datapath::Deliveries;
use encap::forward::marks::Dscp;
use encap::forward::policy::Policy;
use encap::forward::protect::Protect;
use encap::handshake::features::Features;
use encap::wire::buf::{SegmentKind, Segmentation, Transmit, Transmits};
use encap::wire::bundle;
use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, TcpOptionElement};

use super::*;

/// What node 0 makes of frames that its tap gave at once.
fn sent_at_once(world: &mut World, frames: &[(&[u8], Offload)]) -> Transmits {
    let (now, node) = (world.now, &mut world.nodes[0]);
    let handle = node.vtep.tables().handles[&vni()];
    world::encapsulate(&mut node.datapath, now, handle, frames)
}

fn complete(frames: &[Vec<u8>]) -> Vec<(&[u8], Offload)> {
    frames.iter().map(|bytes| (bytes.as_slice(), Offload::default())).collect()
}

/// What node 1 delivers of these datagrams, with the state of the checksums.
fn delivered(world: &mut World, sent: &Transmits) -> Vec<(Checksum, Vec<u8>)> {
    let mut all = Vec::new();
    for (run, bytes) in sent.datagrams() {
        let from = (run.uplink, address(1), run.mark);
        let (out, _) = world::decapsulate(&mut world.nodes[1].datapath, world.now, from, bytes);
        all.extend(out.iter().map(|(d, bytes)| (d.frame.checksum, bytes.to_vec())));
    }
    all
}

fn bytes_of(delivered: Vec<(Checksum, Vec<u8>)>) -> Vec<Vec<u8>> {
    delivered.into_iter().map(|(_, bytes)| bytes).collect()
}

/// Numbered frames of these lengths from node 0's host to node 1's.
fn numbered(lens: &[usize]) -> Vec<Vec<u8>> {
    let one = |(number, len): (usize, &usize)| {
        let mut payload = vec![number as u8; len - 14];
        payload[0] = 0xee;
        frame(mac(2), mac(1), &payload)
    };
    lens.iter().enumerate().map(one).collect()
}

/// Node 1's host is known to node 0, so that nothing is flooded.
fn acquainted(mut world: World) -> World {
    world.transmit(1, &frame(mac(1), mac(2), &[1; 40]));
    world.run_for(ms(50));
    world.transmit(0, &frame(mac(2), mac(1), &[1; 40]));
    world.run_for(ms(50));
    world
}

/// An IP packet to node 1's host, of any kind.
fn any_packet(random: &mut Random) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(mac(1).0, mac(2).0);
    let tos = [0, 0, 0, 0, 1, 2, 3, 0xb8][random.below(8) as usize];
    let (ipv4, ipv6) = (
        Ipv4Header {
            time_to_live: 9,
            dscp: (tos >> 2).try_into().unwrap(),
            ecn: (tos & 3).try_into().unwrap(),
            dont_fragment: true,
            source: [10, 0, 0, 1],
            destination: [10, 0, 0, random.below(2) as u8],
            ..Default::default()
        },
        Ipv6Header {
            traffic_class: tos,
            source: [0xfd; 16],
            destination: [random.below(2) as u8; 16],
            ..Default::default()
        },
    );
    let ip = match random.below(3) {
        0 => IpHeaders::Ipv6(ipv6, Default::default()),
        _ => IpHeaders::Ipv4(ipv4, Default::default()),
    };
    let builder = match random.below(6) {
        0 => builder.single_vlan(7.try_into().unwrap()).ip(ip),
        _ => builder.ip(ip),
    };
    let len = [1, 20, 600, 1_360, 1_380, 1_420][random.below(6) as usize] + random.below(8);
    let payload = vec![len as u8; len as usize];
    let mut bytes = Vec::new();
    match random.below(6) {
        0 => {
            let options = [TcpOptionElement::MaximumSegmentSize(1_460)];
            let syn = builder.tcp(1, 2, 3, 4).syn().options(&options).unwrap();
            syn.write(&mut bytes, &[]).unwrap();
        }
        1 | 2 => builder.tcp(1, 2, 3, 4).ack(5).write(&mut bytes, &payload).unwrap(),
        _ => builder.udp(1, 2).write(&mut bytes, &payload).unwrap(),
    }
    // Fragments, options and extensions that are none, ends in the middle.
    match random.below(12) {
        0 => bytes[20] |= 0x20,
        1 => bytes[14] += 1,
        2 => bytes.truncate(15 + random.below(60) as usize),
        _ => {}
    }
    bytes
}

/// What was found out for one frame is used for the next ones that are like it: that must not be
/// seen from outside.
#[test]
fn frames_that_come_at_once_leave_as_each_would_alone() {
    let policies =
        [Policy::Passive, Policy::Active { copies: 0 }, Policy::FlowHash, Policy::RoundRobin];
    let protects = [Protect::Off, Protect::Control, Protect::All];
    let mut alike = 0;
    for seed in 1..=24 {
        let world = || {
            let policy = policies[seed as usize % 4];
            let world = World::pair(seed, 1 + (seed / 4 % 2) as u8, |config| {
                // Bundles are the one thing that frames do together.
                config.features = Features::NONE;
                config.suites = vec![[Suite::Clear, Suite::Aes256Gcm][(seed / 8) as usize % 2]];
                for peer in &mut config.peers {
                    (peer.policy, peer.dscp) = (policy, Dscp::Inherit);
                    peer.protect = protects[(seed / 2) as usize % 3];
                }
            });
            acquainted(world)
        };
        let (mut together, mut single) = (world(), world());
        let mut random = Random(seed);
        for _ in 0..20 {
            let mut frames = vec![any_packet(&mut random)];
            while frames.len() < 24 {
                let last = frames[frames.len() - 1].clone();
                let like = random.below(2) == 0;
                alike += u32::from(like);
                frames.push(if like { last } else { any_packet(&mut random) });
            }
            // A run goes by one link, then by the next: each link's own order is what counts.
            let by_link = |sent: &[Transmits]| {
                let mut all: Vec<_> = sent.iter().flat_map(Transmits::datagrams).collect();
                all.sort_by_key(|(run, _)| run.uplink.0);
                let one = |(run, bytes): (&Transmit, &[u8])| {
                    (run.uplink, run.remote, run.mark, bytes.to_vec())
                };
                all.into_iter().map(one).collect::<Vec<_>>()
            };
            // Checksums are complete, or the receiver's to complete.
            let mut partial = |bytes: &[u8]| derive_partial(bytes).filter(|_| random.below(2) == 0);
            let offload = |checksum| Offload { checksum, segmentation: None };
            let checksums: Vec<_> = frames.iter().map(|bytes| partial(bytes)).collect();
            let frames = frames.iter().zip(checksums);
            let frames = frames
                .map(|(bytes, checksum)| {
                    (&bytes[..], checksum.map_or_else(Offload::default, offload))
                })
                .collect::<Vec<_>>();
            let sent = [sent_at_once(&mut together, &frames)];
            let alone = frames.iter().map(|frame| sent_at_once(&mut single, &[*frame]));
            let alone: Vec<_> = alone.collect();
            assert!(by_link(&sent) == by_link(&alone), "seed {seed}");
            let told = |world: &mut World| {
                let mut out = Deliveries::default();
                world.nodes[0].datapath.take_returns(&mut out);
                out.iter().map(|(_, bytes)| bytes.to_vec()).collect::<Vec<_>>()
            };
            assert!(told(&mut together) == told(&mut single), "seed {seed}: what senders are told");
        }
    }
    assert!(alike > 1_000);
}

#[test]
fn rule_b2_small_frames_of_one_burst_share_datagrams_in_their_order() {
    let mut world = acquainted(World::cluster(1, 2));
    let frames = numbered(&[60; 70]);
    let moved = counted(&mut world, |world| {
        let sent = sent_at_once(world, &complete(&frames));
        // 23 entries of 62 bytes fit in 1,446: three bundles, and one frame that is left over.
        assert_eq!(sent.datagrams().count(), 4);
        assert_eq!(sent.list.len(), 1, "a run of three equal ones and a shorter one");
        assert_eq!(bytes_of(delivered(world, &sent)), frames);
    });
    assert!(moved.is_empty(), "{moved:?}");
    let counters = world.nodes[0].datapath.counters();
    assert_eq!((counters.bundles_out.get(), counters.bundled_frames_out.get()), (3, 69));
    let counters = world.nodes[1].datapath.counters();
    assert_eq!((counters.bundles_in.get(), counters.bundled_frames_in.get()), (3, 69));
}

#[test]
fn rule_b2_a_bundle_ends_at_its_limits() {
    let mut world = acquainted(World::cluster(1, 2));
    let mut datagrams = |lens: &[usize]| {
        let frames = numbered(lens);
        let sent = sent_at_once(&mut world, &complete(&frames));
        assert_eq!(bytes_of(delivered(&mut world, &sent)), frames, "{lens:?}");
        sent.datagrams().map(|(_, bytes)| bytes.len() - 26).collect::<Vec<_>>()
    };
    assert_eq!(datagrams(&[60]), [60], "alone it is a frame as ever");
    assert_eq!(datagrams(&[15; 33]), [32 * 17, 15], "32 at most");
    assert_eq!(datagrams(&[60, 1_400]), [60, 1_400], "the second does not fit");
    assert_eq!(datagrams(&[60, 60, 1_400, 60]), [2 * 62, 1_400, 60]);
    assert_eq!(datagrams(&[721, 721]), [2 * 723], "two that just fit");
    assert_eq!(datagrams(&[722, 722]), [722, 722]);
}

#[test]
fn rule_b2_only_what_leaves_alike_shares_a_datagram() {
    let mut world = acquainted(World::cluster(1, 3));
    // To a node that is known, to one that is not (flooded to both), and to the first again.
    let frames = [
        frame(mac(2), mac(1), &[1; 50]),
        frame(mac(3), mac(1), &[2; 50]),
        frame(mac(2), mac(1), &[3; 50]),
    ];
    let sent = sent_at_once(&mut world, &complete(&frames));
    let to: Vec<_> = sent.datagrams().map(|(run, bytes)| (run.remote, bytes.len() - 26)).collect();
    let (second, third) = (address(2), address(3));
    // What is for all keeps its place, so nothing overtakes it.
    assert_eq!(to, [(second, 64), (second, 64), (third, 64), (second, 64)]);
    // Between two of that, those of one peer come together.
    world.transmit(2, &frame(mac(1), mac(3), &[1; 40]));
    world.run_for(ms(50));
    let sent = sent_at_once(&mut world, &complete(&frames));
    let to: Vec<_> = sent.datagrams().map(|(run, bytes)| (run.remote, bytes.len() - 26)).collect();
    assert_eq!(to, [(second, 2 * 66), (third, 64)]);
    // Another mark is another datagram.
    let mut marked = udp_frame();
    marked[15] |= 2; // ECT(0), which the outer header bears too
    let frames = [udp_frame(), marked, udp_frame(), udp_frame()];
    let sent = sent_at_once(&mut world, &complete(&frames));
    let marks: Vec<_> = sent.list.iter().map(|run| run.mark & 3).collect();
    assert_eq!(marks, [0, 2, 0]);
}

#[test]
fn rule_b2_partial_checksums_stay_partial_in_a_bundle() {
    let mut world = acquainted(World::cluster(1, 2));
    let bytes = udp_frame();
    let partial = Checksum::Partial { start: 34, offset: 6 };
    let offload = Offload { checksum: partial, segmentation: None };
    let sent = sent_at_once(&mut world, &[(&bytes, offload), (&bytes, Offload::default())]);
    assert_eq!(sent.datagrams().count(), 1);
    let expected = [(partial, bytes.clone()), (Checksum::Complete, bytes)];
    assert_eq!(delivered(&mut world, &sent), expected);
}

#[test]
fn rule_b2_nothing_is_bundled_for_a_peer_that_takes_none() {
    let mut world = World::new(1);
    world.add(config(1, 2));
    world.add(VtepConfig { features: Features::NONE, ..config(2, 2) });
    world.run_for(secs(2));
    let mut world = acquainted(world);
    let frames = numbered(&[60; 5]);
    let sent = sent_at_once(&mut world, &complete(&frames));
    assert_eq!((sent.datagrams().count(), sent.list.len()), (5, 1), "a run of single frames");
    assert_eq!(bytes_of(delivered(&mut world, &sent)), frames);
}

#[test]
fn rule_b2_a_bundle_is_sent_again_if_one_of_its_frames_would_be() {
    let mut world = World::pair(1, 2, |_| {});
    world.run_for(secs(3));
    let mut world = acquainted(world);
    assert!(world.all_links_up());
    let held = |world: &World| {
        let tables = world.nodes[0].vtep.tables();
        let peer = tables.peers[0].as_ref().unwrap().index;
        world.nodes[0].datapath.held_bytes(peer).0
    };
    let before = held(&world);
    // The first is small enough to count as control, the second is not.
    sent_at_once(&mut world, &complete(&numbered(&[60, 400])));
    assert!(held(&world) > 0 && held(&world) >= before);
}

#[test]
fn rule_b1_a_bad_entry_spoils_no_other() {
    let mut world = clear_world();
    let (good, bad) = (frame(mac(1), mac(9), &[5; 40]), frame(mac(1), MacAddr([1; 6]), &[5; 40]));
    let mut payload = Vec::new();
    for frame in [&good, &bad, &good] {
        payload.extend(bundle::entry_header(frame.len(), false));
        payload.extend(frame);
    }
    let inner = 3 << 12 | handle(&world, 1);
    let moved = counted(&mut world, |world| inject_clear(world, 0, inner, &payload));
    assert_eq!(moved, BTreeMap::from([("inner_frame_invalid", 1)]));
    let last = world.nodes[1].delivered.iter().rev().take(2);
    assert!(last.clone().count() == 2 && last.clone().all(|(_, bytes)| *bytes == good));
}

/// A frame that several get is completed once, not once for each.
#[test]
fn rule_p1_every_copy_of_a_flooded_frame_has_the_right_checksum() {
    let mut world = World::new(1);
    for me in 1..=3 {
        world.add(VtepConfig { suites: vec![Suite::Clear], ..config(me, 3) });
    }
    world.run_for(secs(2));
    let mut bytes = udp_frame();
    bytes[..6].fill(0xff);
    let mut completed = bytes.clone();
    encap::wire::checksum::complete_checksum(&mut completed, 34, 6).unwrap();
    let checksum = Checksum::Partial { start: 34, offset: 6 };
    let sent = sent_at_once(&mut world, &[(&bytes, Offload { checksum, segmentation: None })]);
    let copies: Vec<_> = sent.datagrams().map(|(run, bytes)| (run.remote, &bytes[10..])).collect();
    assert_eq!(copies, [(address(2), &completed[..]), (address(3), &completed[..])]);
}

/// A super-frame to all counts as what it stands for.
#[test]
fn rule_p2_the_policer_counts_segments() {
    let mut world = World::new(1);
    for me in 1..=2 {
        let limits = Limits { bum_rate: 1_000, ..Limits::default() };
        world.add(VtepConfig { limits, ..config(me, 2) });
    }
    world.run_for(secs(2));
    let (mut bytes, checksum) = super_frame(44 * 1_000);
    bytes[..6].fill(0xff);
    let frames = vec![(bytes.as_slice(), Offload { checksum, segmentation: tcp(1_000) }); 5];
    let sent = sent_at_once(&mut world, &frames);
    // The bucket holds 100: two of 44 or 45, and not a third.
    assert_eq!(sent.datagrams().count(), 2 * 44);
    assert_eq!(world.nodes[0].datapath.counters().dropped(DropReason::FramePoliced), 3);
}

/// A TCP super-frame to node 1's host with its partial checksum, and so many bytes of payload.
pub(super) fn super_frame(payload: usize) -> (Vec<u8>, Checksum) {
    let builder = PacketBuilder::ethernet2(mac(1).0, mac(2).0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1_000, 2_000, 7, 512)
        .ack(1)
        .psh();
    let payload: Vec<_> = (0..payload).map(|at| (at / 7) as u8).collect();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &payload).unwrap();
    bytes[20] = 0x40; // DF
    let mut header = Ipv4Header::from_slice(&bytes[14..]).unwrap().0;
    header.header_checksum = header.calc_header_checksum();
    bytes[14..34].copy_from_slice(&header.to_bytes());
    // The pseudo-header's sum over the whole length, as a kernel leaves it.
    let len = (bytes.len() - 34) as u32;
    let sum: u32 = [0x0a00_u32, 0x0001, 0x0a00, 0x0002, 6].iter().sum::<u32>() + len;
    let sum = (sum >> 16) + (sum & 0xffff);
    bytes[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
    (bytes, Checksum::Partial { start: 34, offset: 16 })
}

pub(super) fn tcp(size: u16) -> Option<Segmentation> {
    Some(Segmentation { kind: SegmentKind::Tcp4, size, ecn: false })
}

#[test]
fn rule_p2_a_super_frame_crosses_in_segments_as_one_run() {
    let mut world = acquainted(World::cluster(1, 2));
    let (bytes, checksum) = super_frame(44 * 1_392 - 100);
    let offload = Offload { checksum, segmentation: tcp(1_392) };
    let sent = sent_at_once(&mut world, &[(&bytes, offload)]);
    assert_eq!((sent.datagrams().count(), sent.list.len()), (44, 1));
    assert_eq!(sent.list[0].segment_size, 54 + 1_392 + 26);
    let segments = delivered(&mut world, &sent);
    assert_eq!(segments.len(), 44);
    let mut stream = Vec::<u8>::new();
    for (number, (checksum, mut segment)) in segments.into_iter().enumerate() {
        assert_eq!(checksum, Checksum::Partial { start: 34, offset: 16 });
        encap::wire::checksum::complete_checksum(&mut segment, 34, 16).unwrap();
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(&segment).unwrap();
        let ip = parsed.net.as_ref().unwrap().ipv4_ref().unwrap().0;
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let tcp = parsed.transport.unwrap().tcp().unwrap();
        let payload = parsed.payload.slice();
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).unwrap(), "{number}");
        assert_eq!((tcp.sequence_number, tcp.psh), (7 + stream.len() as u32, number == 43));
        stream.extend(payload);
    }
    assert_eq!(stream, bytes[54..]);
}

#[test]
fn rule_p2_segments_in_clear_mode_are_complete() {
    let mut world = acquainted(clear_world());
    let (bytes, checksum) = super_frame(3_000);
    let offload = Offload { checksum, segmentation: tcp(1_000) };
    let sent = sent_at_once(&mut world, &[(&bytes, offload)]);
    let segments = delivered(&mut world, &sent);
    assert_eq!(segments.len(), 3);
    for (checksum, segment) in segments {
        assert_eq!(checksum, Checksum::Complete);
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(&segment).unwrap();
        let ip = parsed.net.as_ref().unwrap().ipv4_ref().unwrap().0;
        let tcp = parsed.transport.unwrap().tcp().unwrap();
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(ip, parsed.payload.slice()).unwrap());
    }
}

#[test]
fn rule_p2_segments_larger_than_the_path_go_in_fragments() {
    let mut world = acquainted(World::cluster(1, 2));
    let (bytes, checksum) = super_frame(6_000);
    let offload = Offload { checksum, segmentation: tcp(3_000) };
    let sent = sent_at_once(&mut world, &[(&bytes, offload)]);
    assert_eq!(sent.datagrams().count(), 2 * 3);
    let segments = delivered(&mut world, &sent);
    let payloads: Vec<_> = segments.iter().flat_map(|(_, bytes)| &bytes[54..]).copied().collect();
    assert_eq!(payloads, bytes[54..]);
}

#[test]
fn rule_p2_what_cannot_be_cut_is_dropped_by_name() {
    let mut world = acquainted(World::cluster(1, 2));
    let (bytes, checksum) = super_frame(5_000);
    let udp = Segmentation { kind: SegmentKind::Udp, size: 1_000, ecn: false };
    let elsewhere = Checksum::Partial { start: 36, offset: 16 };
    for (checksum, segmentation) in [
        (checksum, tcp(0)),
        (checksum, tcp(2)),
        (checksum, Some(udp)),
        (elsewhere, tcp(1_000)),
        (Checksum::Complete, tcp(1_000)),
    ] {
        let offload = Offload { checksum, segmentation };
        let moved = counted(&mut world, |world| {
            let sent = sent_at_once(world, &[(&bytes, offload)]);
            assert!(sent.list.is_empty() && sent.memory.is_empty(), "{offload:?}");
        });
        assert!(moved.is_empty(), "node 1 saw something");
    }
    let counters = world.nodes[0].datapath.counters();
    assert_eq!(counters.dropped(DropReason::FrameBadSegmentation), 5);
}

#[test]
fn rule_z2_what_becomes_shorter_crosses_compressed() {
    let mut world = World::new(1);
    for me in 1..=2 {
        let mut config = config(me, 2);
        config.networks[0].compression = Level::new(1);
        world.add(config);
    }
    world.run_for(secs(2));
    let mut world = acquainted(world);
    let mut dice = Random(1);
    let noise: Vec<_> = (0..1_000).map(|_| dice.next() as u8).collect();
    for len in [1_200, 3_000] {
        let frame = frame(mac(2), mac(1), &vec![b'a'; len]);
        let sent = sent_at_once(&mut world, &[(&frame, Offload::default())]);
        assert!(sent.datagrams().count() == 1 && sent.memory.len() < 200);
        assert_eq!(bytes_of(delivered(&mut world, &sent)), [frame]);
    }
    // A bundle is a payload as any other.
    let small = numbered(&[90; 10]);
    let sent = sent_at_once(&mut world, &complete(&small));
    assert!(sent.memory.len() < 10 * 90 / 2, "{}", sent.memory.len());
    assert_eq!(bytes_of(delivered(&mut world, &sent)), small);
    let noise = frame(mac(2), mac(1), &noise);
    let sent = sent_at_once(&mut world, &[(&noise, Offload::default())]);
    assert_eq!(sent.memory.len(), noise.len() + 26);
    assert_eq!(bytes_of(delivered(&mut world, &sent)), [noise]);
    assert_eq!(world.nodes[0].datapath.counters().compressed.get(), 3);
    assert_eq!(world.nodes[1].datapath.counters().decompressed.get(), 3);
}
