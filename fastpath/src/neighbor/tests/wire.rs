//! The frames themselves: against etherparse, back and forth, and against the rules.

use super::*;
use crate::neighbor::message::{announcement, membership, parse, probe, reply, request};
use crate::underlay::{multicast_mac, protocol, pseudo_header_sum, solicited_node, wire_sum};
use encap::wire::checksum::fold_sum;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, VlanId};
use proptest::prelude::*;

const V4: Kind = KINDS[0];
const V6: Kind = KINDS[2];

fn group_of(ip: IpAddr) -> MacAddr {
    match ip {
        IpAddr::V4(_) => MacAddr::BROADCAST,
        IpAddr::V6(ip) => multicast_mac(solicited_node(ip)),
    }
}

#[test]
fn arp_frames_are_those_of_the_oracle() {
    let v4 = |ip| match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => unreachable!(),
    };
    for kind in [KINDS[0], KINDS[1]] {
        let (us, them) = (kind.local(1), kind.local(2));
        let (ours, theirs) = (v4(us.ip), v4(them.ip));
        let oracle =
            |to: MacAddr, operation, sender: [u8; 4], target_mac: MacAddr, target: [u8; 4]| {
                let arp = ArpPacket::new(
                    ArpHardwareId::ETHERNET,
                    EtherType::IPV4,
                    operation,
                    &us.mac.0,
                    &sender,
                    &target_mac.0,
                    &target,
                );
                let link = PacketBuilder::ethernet2(us.mac.0, to.0);
                let mut frame = Vec::new();
                let arp = arp.unwrap();
                match kind.vlan {
                    Some(vlan) => link.single_vlan(VlanId::try_new(vlan).unwrap()).arp(arp),
                    None => link.arp(arp),
                }
                .write(&mut frame)
                .unwrap();
                frame.resize(60, 0);
                frame
            };
        let (all, none) = (MacAddr::BROADCAST, MacAddr::default());
        let ask = ArpOperation::REQUEST;
        assert_eq!(request(&us, them.ip, None), oracle(all, ask, ours, none, theirs));
        assert_eq!(
            request(&us, them.ip, Some(them.mac)),
            oracle(them.mac, ask, ours, none, theirs)
        );
        assert_eq!(
            reply(&us, them.mac, Some(them.ip)),
            oracle(them.mac, ArpOperation::REPLY, ours, them.mac, theirs)
        );
        assert_eq!(announcement(&us), oracle(all, ask, ours, none, ours));
        assert_eq!(probe(&us), oracle(all, ask, [0; 4], none, ours));
    }
}

#[test]
fn nd_frames_are_those_of_the_oracle() {
    let (us, them) = (V6.local(1), V6.local(2));
    let octets = |ip| match ip {
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip),
        IpAddr::V4(_) => unreachable!(),
    };
    let (ours, theirs) = (octets(us.ip), octets(them.ip));
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let oracle = |to: MacAddr, from, destination, kind, flags: u8, target: [u8; 16], option| {
        let mut body = target.to_vec();
        if let Some(option) = option {
            body.extend([option, 1]);
            body.extend(us.mac.0);
        }
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(us.mac.0, to.0)
            .ipv6(from, destination, 255)
            .icmpv6_raw(kind, 0, [flags, 0, 0, 0])
            .write(&mut frame, &body)
            .unwrap();
        frame
    };
    let group = |ip: [u8; 16]| solicited_node(Ipv6Addr::from_octets(ip)).octets();
    assert_eq!(
        request(&us, them.ip, None),
        oracle(group_of(them.ip), ours, group(theirs), 135, 0, theirs, Some(1))
    );
    assert_eq!(
        request(&us, them.ip, Some(them.mac)),
        oracle(them.mac, ours, theirs, 135, 0, theirs, Some(1))
    );
    assert_eq!(
        reply(&us, them.mac, Some(them.ip)),
        oracle(them.mac, ours, theirs, 136, 0x60, ours, Some(2))
    );
    let everybody = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(announcement(&us), oracle(everybody, ours, all, 136, 0x20, ours, Some(2)));
    assert_eq!(reply(&us, everybody, None), announcement(&us));
    assert_eq!(probe(&us), oracle(group_of(us.ip), [0; 16], group(ours), 135, 0, ours, None));
}

#[test]
fn membership_reports_are_those_of_the_rfc() {
    assert!(membership(&V4.local(1)).is_empty());
    let us = V6.local(1);
    let IpAddr::V6(ours) = us.ip else { unreachable!() };
    let frame = membership(&us);
    assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 0x16]);
    // From nobody, to ff02::16, one hop, with a router alert before the message.
    let ip = &frame[14..54];
    assert_eq!(ip[..8], [0x60, 0, 0, 0, 0, 36, 0, 1]);
    assert_eq!(ip[8..24], [0; 16]);
    assert_eq!(ip[24..], Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16).octets());
    assert_eq!(frame[54..62], [58, 0, 5, 2, 0, 0, 1, 0]);
    // RFC 3810 section 5.2: one record, "to exclude nobody", of the solicited-node group.
    let message = &frame[62..];
    assert_eq!((message[0], message[1]), (143, 0));
    assert_eq!(message[4..12], [0, 0, 0, 1, 4, 0, 0, 0]);
    assert_eq!(message[12..], solicited_node(ours).octets());
    let icmp = etherparse::Icmpv6Slice::from_slice(message).unwrap();
    let destination = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16).octets();
    assert!(icmp.is_checksum_valid([0; 16], destination));
    // A host with a link-local address writes it (RFC 3810 section 5.2.13).
    let near = LocalAddress { ip: "fe80::7".parse().unwrap(), ..us };
    assert_eq!(membership(&near)[22..38], "fe80::7".parse::<Ipv6Addr>().unwrap().octets());
}

#[test]
fn what_is_written_is_read() {
    for kind in KINDS {
        let (us, them) = (kind.local(1), kind.local(2));
        let asked = Message::Request {
            sender: Some(us.ip),
            sender_mac: Some(us.mac),
            reply_to: us.mac,
            target: them.ip,
        };
        assert_eq!(parse(&request(&us, them.ip, None), &them), Ok(asked));
        assert_eq!(parse(&request(&us, them.ip, Some(them.mac)), &them), Ok(asked));
        let answer = |directed| Message::Answer {
            subject: us.ip,
            mac: Some(us.mac),
            station: us.mac,
            directed,
            overrides: true,
        };
        assert_eq!(parse(&reply(&us, them.mac, Some(them.ip)), &them), Ok(answer(true)));
        assert_eq!(parse(&announcement(&us), &them), Ok(answer(false)));
        // One who asks whether our own address is free.
        let twin = LocalAddress { mac: them.mac, ..us.clone() };
        let Ok(Message::Request { sender: None, reply_to, target, .. }) = parse(&probe(&us), &twin)
        else {
            panic!("not a probe");
        };
        assert_eq!((reply_to, target), (us.mac, us.ip));
        assert_eq!(parse(&announcement(&us), &us), Err(NoMessage::Own));
    }
}

#[test]
fn arp_that_breaks_the_rules_is_refused() {
    let them = V4.local(2);
    let good = reply(&V4.local(1), them.mac, Some(them.ip));
    let faults: [(&str, usize, &[u8]); 10] = [
        ("hardware type", 15, &[6]),
        ("protocol type", 16, &[0x86]),
        ("hardware length", 18, &[8]),
        ("protocol length", 19, &[16]),
        ("operation", 21, &[3]),
        ("group MAC", 22, &[3]),
        ("no MAC", 22, &[0; 6]),
        ("group IP", 28, &[224]),
        ("broadcast IP", 28, &[255; 4]),
        ("nobody's IP", 28, &[0; 4]),
    ];
    for (what, at, bytes) in faults {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(parse(&frame, &them), Err(NoMessage::Malformed), "{what}");
    }
    assert_eq!(parse(&good[..41], &them), Err(NoMessage::Malformed));
    assert!(parse(&good[..42], &them).is_ok());
}

/// Changes bytes of an ND frame without a tag, and puts the checksum right.
fn changed(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    let pseudo = pseudo_header_sum(address(22), address(38), protocol::ICMPV6);
    frame[56..58].fill(0);
    let body = &frame[54..];
    let sum = !fold_sum(pseudo + body.len() as u64 + u64::from(wire_sum(body)));
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn nd_that_breaks_the_rules_is_refused() {
    let (us, them) = (V6.local(1), V6.local(2));
    let solicitation = request(&us, them.ip, None);
    let advertisement = reply(&us, them.mac, Some(them.ip));
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let faults: [(&str, &[u8], usize, &[u8]); 11] = [
        ("code", &solicitation, 55, &[1]),
        ("target is a group", &solicitation, 62, &all_nodes),
        ("target is nobody", &solicitation, 62, &[0; 16]),
        ("option of length 0", &solicitation, 79, &[0]),
        ("option that ends outside", &solicitation, 79, &[2]),
        ("group MAC", &solicitation, 80, &[3]),
        ("probe with a MAC", &solicitation, 22, &[0; 16]),
        ("from a group", &solicitation, 22, &all_nodes),
        ("advertised by nobody", &advertisement, 22, &[0; 16]),
        ("solicited, but to all", &advertisement, 38, &all_nodes),
        ("code of an advertisement", &advertisement, 55, &[9]),
    ];
    for (what, frame, at, bytes) in faults {
        let frame = changed(frame, at, bytes);
        assert_eq!(parse(&frame, &them), Err(NoMessage::Malformed), "{what}");
    }
    let mut frame = solicitation.clone();
    frame[56] ^= 1;
    assert_eq!(parse(&frame, &them), Err(NoMessage::Malformed), "checksum");
    // A probe goes to the solicited-node group of its target only.
    let mut frame = probe(&LocalAddress { mac: mac(9), ..them });
    assert!(parse(&frame, &them).is_ok());
    frame = changed(&frame, 38, &all_nodes);
    assert_eq!(parse(&frame, &them), Err(NoMessage::Malformed), "group of a probe");
    // Routers' messages and redirects.
    for other in [133, 134, 137] {
        assert_eq!(parse(&changed(&solicitation, 54, &[other]), &them), Err(NoMessage::Other));
    }
    // An unknown option is passed over.
    let frame = changed(&solicitation, 78, &[200]);
    let Ok(Message::Request { sender_mac: None, reply_to, .. }) = parse(&frame, &them) else {
        panic!("refused");
    };
    assert_eq!(reply_to, us.mac);
    // The flags of an advertisement.
    let frame = changed(&advertisement, 58, &[0x80]);
    let Ok(Message::Answer { directed: false, overrides: false, .. }) = parse(&frame, &them) else {
        panic!("refused");
    };
}

proptest! {
    #[test]
    fn any_bytes_and_mutated_frames_are_read(
        noise in prop::collection::vec(any::<u8>(), 0..120),
        faults in prop::collection::vec((0..90_usize, any::<u8>()), 0..5),
        keep in 0..100_usize,
    ) {
        for kind in KINDS {
            let (us, them) = (kind.local(1), kind.local(2));
            let _ = parse(&noise, &them);
            for mut frame in [
                request(&us, them.ip, None),
                reply(&us, them.mac, Some(them.ip)),
                announcement(&us),
                probe(&us),
            ] {
                for (at, byte) in &faults {
                    if let Some(target) = frame.get_mut(*at) {
                        *target = *byte;
                    }
                }
                frame.truncate(keep);
                let claimed = match parse(&frame, &them) {
                    Ok(Message::Request { sender_mac, .. }) => sender_mac,
                    Ok(Message::Answer { mac, .. }) => mac,
                    Err(_) => None,
                };
                prop_assert!(claimed.is_none_or(|mac| !mac.is_multicast() && !mac.is_zero()));
            }
        }
    }
}
