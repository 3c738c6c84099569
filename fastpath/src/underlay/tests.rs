use super::*;
use encap::wire::checksum::complete_checksum;
use etherparse::{
    EtherType as OracleType, Ethernet2Header, IcmpEchoHeader, Icmpv4Slice, Icmpv4Type, Icmpv6Slice,
    Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder,
    SlicedPacket, TransportSlice, UdpHeader, VlanId, VlanPcp,
};
use proptest::prelude::*;
use std::net::SocketAddr;
use std::ops::Range;

const OUR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const THEIR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const OUR_PORT: u16 = 47_000;
const THEIR_PORT: u16 = 47_001;

/// Both ends of a link: `1` is we, `2` is they.
fn local(ipv6: bool, vlan: Option<u16>) -> LocalAddress {
    end(ipv6, vlan, 1)
}

fn remote(ipv6: bool, vlan: Option<u16>) -> LocalAddress {
    end(ipv6, vlan, 2)
}

fn end(ipv6: bool, vlan: Option<u16>, last: u8) -> LocalAddress {
    let ip: IpAddr = if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
    } else {
        [192, 0, 2, last].into()
    };
    let prefix = if ipv6 { 64 } else { 24 };
    LocalAddress { mac: MacAddr([2, 0, 0, 0, 0, last]), ip, prefix, vlan }
}

fn varying(identification: u16, checksum: UdpChecksum) -> Varying {
    Varying { mark: 0, identification, checksum }
}

/// What they send to us.
fn incoming(ipv6: bool, vlan: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let to = SocketAddr::new(local(ipv6, vlan).ip, OUR_PORT);
    let template = Template::new(&remote(ipv6, vlan), OUR_MAC, to, THEIR_PORT).unwrap();
    let mut out = vec![0; 3000];
    let len = template.write(&mut out, payload, varying(7, UdpChecksum::Software)).unwrap();
    out.truncate(len);
    out
}

fn classify_ours(frame: &[u8], local: &LocalAddress) -> Classified {
    classify(frame, local, &(OUR_PORT..=OUR_PORT + 3), RxChecksum::Unknown)
}

/// The same frame by etherparse.
fn oracle(ipv6: bool, vlan: Option<u16>, payload: &[u8], mark: u8, identification: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let ether_type = if ipv6 { OracleType::IPV6 } else { OracleType::IPV4 };
    Ethernet2Header {
        source: THEIR_MAC.0,
        destination: OUR_MAC.0,
        ether_type: if vlan.is_some() { OracleType::VLAN_TAGGED_FRAME } else { ether_type },
    }
    .write(&mut frame)
    .unwrap();
    if let Some(vlan) = vlan {
        etherparse::SingleVlanHeader {
            pcp: VlanPcp::ZERO,
            drop_eligible_indicator: false,
            vlan_id: VlanId::try_new(vlan).unwrap(),
            ether_type,
        }
        .write(&mut frame)
        .unwrap();
    }
    match (remote(ipv6, vlan).ip, local(ipv6, vlan).ip) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let len = (payload.len() + 8) as u16;
            let mut ip =
                Ipv4Header::new(len, 64, IpNumber::UDP, source.octets(), destination.octets())
                    .unwrap();
            ip.dscp = (mark >> 2).try_into().unwrap();
            ip.ecn = (mark & 3).try_into().unwrap();
            ip.identification = identification;
            ip.dont_fragment = true;
            ip.fragment_offset = IpFragOffset::ZERO;
            ip.header_checksum = ip.calc_header_checksum();
            ip.write(&mut frame).unwrap();
            let udp = UdpHeader::with_ipv4_checksum(THEIR_PORT, OUR_PORT, &ip, payload).unwrap();
            udp.write(&mut frame).unwrap();
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = Ipv6Header {
                traffic_class: mark,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: (payload.len() + 8) as u16,
                next_header: IpNumber::UDP,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            ip.write(&mut frame).unwrap();
            let udp = UdpHeader::with_ipv6_checksum(THEIR_PORT, OUR_PORT, &ip, payload).unwrap();
            udp.write(&mut frame).unwrap();
        }
        _ => unreachable!(),
    }
    frame.extend(payload);
    frame
}

fn vlans() -> impl Strategy<Value = Option<u16>> {
    prop_oneof![Just(None), (1..4095_u16).prop_map(Some)]
}

proptest! {
    #[test]
    fn frames_are_those_of_the_oracle_and_read_back(
        ipv6 in any::<bool>(),
        vlan in vlans(),
        mark in any::<u8>(),
        identification in any::<u16>(),
        payload in prop::collection::vec(any::<u8>(), 0..1500),
        padding in 0..40_usize,
    ) {
        let ours = local(ipv6, vlan);
        let to = SocketAddr::new(ours.ip, OUR_PORT);
        let template = Template::new(&remote(ipv6, vlan), OUR_MAC, to, THEIR_PORT).unwrap();
        let mut frame = vec![0xee; template.len() + payload.len() + padding];
        let expected = oracle(ipv6, vlan, &payload, mark, identification);
        let read = Classified::Datagram {
            remote: SocketAddr::new(remote(ipv6, vlan).ip, THEIR_PORT),
            port: OUR_PORT,
            mark,
            payload: template.len()..template.len() + payload.len(),
        };
        for checksum in [UdpChecksum::Software, UdpChecksum::Zero, UdpChecksum::Hardware] {
            let len = template.write(&mut frame, &payload, Varying { mark, identification, checksum });
            prop_assert_eq!(len, Some(expected.len()));
            let written = &mut frame[..expected.len()];
            if checksum == UdpChecksum::Hardware {
                let (link, ip) = template.header_lens();
                complete_checksum(written, (link + ip) as u16, 6).unwrap();
            } else if checksum == UdpChecksum::Zero && !ipv6 {
                let at = template.len() - 2;
                prop_assert_eq!(&written[at..at + 2], &[0, 0]);
                written[at..at + 2].copy_from_slice(&expected[at..at + 2]);
            }
            prop_assert_eq!(&frame[..expected.len()], &expected[..]);
            prop_assert_eq!(&classify_ours(&frame, &ours), &read);
        }
    }

    #[test]
    fn any_bytes_are_classified(bytes in prop::collection::vec(any::<u8>(), 0..128), vlan in vlans()) {
        for ipv6 in [false, true] {
            check_ranges(&bytes, &local(ipv6, vlan));
        }
    }

    #[test]
    fn mutated_and_cut_frames_are_classified(
        ipv6 in any::<bool>(),
        vlan in vlans(),
        faults in prop::collection::vec((0..90_usize, any::<u8>()), 0..5),
        keep in 0..120_usize,
    ) {
        let ours = local(ipv6, vlan);
        for mut frame in [incoming(ipv6, vlan, &[7; 40]), echo_request(ipv6, vlan, b"data")] {
            for (at, byte) in &faults {
                if let Some(target) = frame.get_mut(*at) {
                    *target = *byte;
                }
            }
            frame.truncate(keep);
            check_ranges(&frame, &ours);
        }
    }
}

/// Whatever the frame is, what is said of it lies within it.
fn check_ranges(frame: &[u8], local: &LocalAddress) {
    let reply = echo_reply(frame, local);
    for checksum in [RxChecksum::Unknown, RxChecksum::Good, RxChecksum::Bad] {
        match classify(frame, local, &(0..=u16::MAX), checksum) {
            Classified::Datagram { payload: range, .. }
            | Classified::Arp(range)
            | Classified::Nd(range)
            | Classified::Echo(range) => assert!(frame.get(range).is_some()),
            Classified::Drop(reason) => UnderlayCounters::default().count(reason),
            Classified::Foreign | Classified::NotOurs => assert_eq!(reply, None),
        }
    }
}

#[test]
fn header_lengths_and_what_does_not_fit() {
    let to = |ipv6| SocketAddr::new(remote(ipv6, None).ip, 1);
    for (ipv6, vlan, len) in
        [(false, None, 42), (false, Some(5), 46), (true, None, 62), (true, Some(5), 66)]
    {
        let template = Template::new(&local(ipv6, vlan), THEIR_MAC, to(ipv6), 2).unwrap();
        assert_eq!(template.len(), len);
        assert!(template.len() <= MAX_UNDERLAY_HEADER_LEN);
        let mut out = vec![0; 70_000];
        let software = UdpChecksum::Software;
        assert_eq!(template.write(&mut out[..len + 9], &[0; 10], varying(0, software)), None);
        assert_eq!(
            template.write_header(&mut out[..len - 1], &[0; 10], varying(0, software)),
            None
        );
        let most = if ipv6 { 65_527 } else { 65_507 };
        assert_eq!(
            template.write(&mut out, &vec![1; most], varying(0, software)),
            Some(len + most)
        );
        assert_eq!(template.write(&mut out, &vec![1; most + 1], varying(0, software)), None);
        assert!(Template::new(&local(ipv6, vlan), THEIR_MAC, to(!ipv6), 2).is_none());
    }
}

#[test]
fn checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    for ipv6 in [false, true] {
        let frame = incoming(ipv6, None, &[0, 0]);
        let at = frame.len() - 4;
        // Adding the checksum itself makes the sum all ones.
        let payload = [frame[at], frame[at + 1]];
        let frame = incoming(ipv6, None, &payload);
        assert_eq!(frame[at..at + 2], [0xff, 0xff]);
        let read = classify_ours(&frame, &local(ipv6, None));
        assert!(matches!(read, Classified::Datagram { .. }), "{read:?}");
    }
}

/// Frames to us that differ in a byte or two, and what they are then. IPv4 header checksums are
/// put right.
#[test]
fn every_reason_to_drop_an_ipv4_frame() {
    use UnderlayDrop as D;
    let good = incoming(false, None, b"payload");
    let cases: [(&str, usize, &[u8], Classified); 28] = [
        ("to another", 5, &[9], Classified::NotOurs),
        ("from group", 6, &[3], Classified::Drop(D::BadSourceMac)),
        ("from nobody", 6, &[0; 6], Classified::Drop(D::BadSourceMac)),
        ("tagged", 12, &[0x81, 0, 0, 9], Classified::Drop(D::BadVlan)),
        ("service tag", 12, &[0x88, 0xa8, 0, 0], Classified::Drop(D::BadVlan)),
        ("other type", 12, &[0x88, 0xcc], Classified::Foreign),
        ("IPv6", 12, &[0x86, 0xdd], Classified::Foreign),
        ("version", 14, &[0x65], Classified::Drop(D::BadIpHeader)),
        ("short header", 14, &[0x44], Classified::Drop(D::BadIpHeader)),
        ("short total", 16, &[0, 19], Classified::Drop(D::BadIpHeader)),
        ("long total", 16, &[0, 36], Classified::Drop(D::Truncated)),
        ("no UDP header", 16, &[0, 27], Classified::Drop(D::BadUdpLength)),
        ("first fragment", 20, &[0x20], Classified::Drop(D::Fragment)),
        ("later fragment", 20, &[0, 1], Classified::Drop(D::Fragment)),
        ("TCP", 23, &[6], Classified::Foreign),
        ("from 0.0.0.0", 26, &[0, 0, 0, 0], Classified::Drop(D::BadSource)),
        ("from loopback", 26, &[127, 0, 0, 1], Classified::Drop(D::BadSource)),
        ("from group", 26, &[224, 0, 0, 1], Classified::Drop(D::BadSource)),
        ("from broadcast", 26, &[192, 0, 2, 255], Classified::Drop(D::BadSource)),
        ("from us", 26, &[192, 0, 2, 1], Classified::Drop(D::BadSource)),
        ("to other IP", 33, &[7], Classified::Drop(D::WrongDestination)),
        ("to group", 30, &[224, 0, 0, 1], Classified::Foreign),
        ("to all of the prefix", 33, &[255], Classified::Foreign),
        ("other port", 36, &[1, 1], Classified::Foreign),
        ("short UDP", 38, &[0, 7], Classified::Drop(D::BadUdpLength)),
        ("long UDP", 38, &[0, 16], Classified::Drop(D::BadUdpLength)),
        ("UDP checksum", 40, &[0x12, 0x34], Classified::Drop(D::BadUdpChecksum)),
        ("payload", 42, b"P", Classified::Drop(D::BadUdpChecksum)),
    ];
    let ours = local(false, None);
    for (what, at, bytes, expected) in cases {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        if at != 12 {
            put_ipv4_checksum(&mut frame, 14);
        }
        assert_eq!(classify_ours(&frame, &ours), expected, "{what}");
    }
    let drop = |frame: &[u8], checksum| classify(frame, &ours, &(OUR_PORT..=OUR_PORT), checksum);
    for cut in [0, 13, 33] {
        let read = drop(&good[..cut], RxChecksum::Unknown);
        assert_eq!(read, Classified::Drop(D::Truncated), "{cut}");
    }
    let mut frame = good.clone();
    frame[24] ^= 1;
    assert_eq!(drop(&frame, RxChecksum::Good), Classified::Drop(D::BadIpChecksum));
    let mut frame = good.clone();
    frame[..6].fill(0xff);
    assert_eq!(drop(&frame, RxChecksum::Unknown), Classified::Drop(D::GroupMac));
    assert_eq!(drop(&good, RxChecksum::Bad), Classified::Drop(D::BadUdpChecksum));
    let mut frame = good;
    frame[40..42].fill(0);
    for checksum in [RxChecksum::Unknown, RxChecksum::Bad, RxChecksum::Good] {
        assert!(matches!(drop(&frame, checksum), Classified::Datagram { .. }));
    }
    frame[40] = 1;
    assert!(matches!(drop(&frame, RxChecksum::Good), Classified::Datagram { .. }));
}

#[test]
fn every_reason_to_drop_an_ipv6_frame() {
    use UnderlayDrop as D;
    let good = incoming(true, None, b"payload");
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
    let ours = local(true, None);
    let IpAddr::V6(our_ip) = ours.ip else { unreachable!() };
    let cases: [(&str, usize, &[u8], Classified); 17] = [
        ("version", 14, &[0x45], Classified::Drop(D::BadIpHeader)),
        ("long", 18, &[0, 16], Classified::Drop(D::Truncated)),
        ("no UDP header", 18, &[0, 7], Classified::Drop(D::BadUdpLength)),
        ("fragment", 20, &[44], Classified::Drop(D::Fragment)),
        ("hop-by-hop", 20, &[0], Classified::Foreign),
        ("TCP", 20, &[6], Classified::Foreign),
        ("from nobody", 22, &[0; 16], Classified::Drop(D::BadSource)),
        ("from group", 22, &group, Classified::Drop(D::BadSource)),
        ("from mapped", 22, &mapped, Classified::Drop(D::BadSource)),
        ("from us", 22, &our_ip.octets(), Classified::Drop(D::BadSource)),
        ("to other IP", 53, &[7], Classified::Drop(D::WrongDestination)),
        ("to group", 38, &group, Classified::Foreign),
        ("other port", 56, &[1, 1], Classified::Foreign),
        ("short UDP", 58, &[0, 7], Classified::Drop(D::BadUdpLength)),
        ("long UDP", 58, &[0, 16], Classified::Drop(D::BadUdpLength)),
        ("UDP checksum", 60, &[0x12, 0x34], Classified::Drop(D::BadUdpChecksum)),
        ("no UDP checksum", 60, &[0, 0], Classified::Drop(D::NoUdpChecksum)),
    ];
    for (what, at, bytes, expected) in cases {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(classify_ours(&frame, &ours), expected, "{what}");
    }
    assert_eq!(classify_ours(&good[..53], &ours), Classified::Drop(D::Truncated));
    let mut frame = good.clone();
    frame[..6].copy_from_slice(&[0x33, 0x33, 0xff, 0, 0, 1]);
    assert_eq!(classify_ours(&frame, &ours), Classified::Drop(D::GroupMac));

    // Neighbour discovery, to us and to a group, from the link and from beyond.
    let nd = |destination: &[u8; 16], hop_limit| {
        let mut frame = good.clone();
        (frame[20], frame[21], frame[54]) = (58, hop_limit, 135);
        frame[38..54].copy_from_slice(destination);
        classify_ours(&frame, &ours)
    };
    let body: Range<usize> = 54..good.len();
    assert_eq!(nd(&our_ip.octets(), 255), Classified::Nd(body.clone()));
    assert_eq!(nd(&group, 255), Classified::Nd(body));
    assert_eq!(nd(&our_ip.octets(), 254), Classified::Drop(D::NdHopLimit));
    assert_eq!(nd(&mapped, 255), Classified::Drop(D::WrongDestination));
}

#[test]
fn tags_are_taken_as_configured() {
    let bad = Classified::Drop(UnderlayDrop::BadVlan);
    for ipv6 in [false, true] {
        let untagged = incoming(ipv6, None, b"1234");
        let tagged = incoming(ipv6, Some(7), b"1234");
        let taken = |frame: &[u8], vlan| classify_ours(frame, &local(ipv6, vlan));
        assert!(matches!(taken(&tagged, Some(7)), Classified::Datagram { .. }));
        assert_eq!(taken(&tagged, Some(8)), bad);
        assert_eq!(taken(&tagged, None), bad);
        assert_eq!(taken(&untagged, Some(7)), bad);
        // Priority 5 without a VLAN.
        let mut priority = tagged.clone();
        priority[14..16].copy_from_slice(&[0xa0, 0]);
        assert!(matches!(taken(&priority, None), Classified::Datagram { .. }));
        assert_eq!(taken(&priority, Some(7)), bad);
        let cut = taken(&tagged[..17], Some(7));
        assert_eq!(cut, Classified::Drop(UnderlayDrop::Truncated));
    }
}

#[test]
fn ipv4_options_and_bytes_behind_the_datagram_are_passed_over() {
    let ours = local(false, None);
    let mut frame = incoming(false, None, b"payload");
    frame.splice(34..34, [1, 1, 1, 0]);
    frame.extend([0xaa; 3]);
    frame[14] = 0x46;
    frame[17] += 4 + 3;
    put_ipv4_checksum(&mut frame, 14);
    let Classified::Datagram { payload, .. } = classify_ours(&frame, &ours) else { panic!() };
    assert_eq!(&frame[payload], b"payload");
}

#[test]
fn arp_is_for_the_machine_where_our_address_is_ipv4() {
    let mut frame = vec![0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&THEIR_MAC.0);
    frame[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(classify_ours(&frame, &local(false, None)), Classified::Arp(14..60));
    assert_eq!(classify_ours(&frame, &local(true, None)), Classified::Foreign);
}

fn put_ipv4_checksum(frame: &mut [u8], at: usize) {
    let header_len = usize::from(frame[at] & 0x0f) * 4;
    frame[at + 10..at + 12].fill(0);
    let sum = !wire_sum(&frame[at..at + header_len]);
    frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
}

fn echo_request(ipv6: bool, vlan: Option<u16>, data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let link = PacketBuilder::ethernet2(THEIR_MAC.0, OUR_MAC.0);
    let vlan_id = VlanId::try_new(vlan.unwrap_or(0)).unwrap();
    match (remote(ipv6, vlan).ip, local(ipv6, vlan).ip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let ip = match vlan {
                Some(_) => link.single_vlan(vlan_id).ipv4(from.octets(), to.octets(), 9),
                None => link.ipv4(from.octets(), to.octets(), 9),
            };
            ip.icmpv4_echo_request(3, 4).write(&mut frame, data).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = match vlan {
                Some(_) => link.single_vlan(vlan_id).ipv6(from.octets(), to.octets(), 9),
                None => link.ipv6(from.octets(), to.octets(), 9),
            };
            ip.icmpv6_echo_request(3, 4).write(&mut frame, data).unwrap();
        }
        _ => unreachable!(),
    }
    frame
}

#[test]
fn echo_requests_are_answered() {
    for (ipv6, vlan, data) in [
        (false, None, &b"odd"[..]),
        (false, Some(5), b"even"),
        (true, None, b"odd"),
        (true, Some(5), b""),
    ] {
        let ours = local(ipv6, vlan);
        let request = echo_request(ipv6, vlan, data);
        assert!(matches!(classify_ours(&request, &ours), Classified::Echo(_)));
        let mut padded = request.clone();
        padded.resize(100, 0);
        let reply = echo_reply(&padded, &ours).unwrap();
        assert_eq!(reply.len(), request.len());
        assert_eq!(reply[..12], [THEIR_MAC.0, OUR_MAC.0].concat());
        // They take it: an answer is nothing that we have a name for.
        assert_eq!(classify_ours(&reply, &remote(ipv6, vlan)), Classified::Foreign);
        let sliced = SlicedPacket::from_ethernet(&reply).unwrap();
        let echo = IcmpEchoHeader { id: 3, seq: 4 };
        match sliced.transport.unwrap() {
            TransportSlice::Icmpv4(icmp) => {
                assert_eq!(icmp.icmp_type(), Icmpv4Type::EchoReply(echo));
                assert_eq!(icmp.payload(), data);
                assert_eq!(icmp4_checksum(&icmp), icmp.checksum());
            }
            TransportSlice::Icmpv6(icmp) => {
                assert_eq!(icmp.icmp_type(), Icmpv6Type::EchoReply(echo));
                assert_eq!(icmp.payload(), data);
                assert!(icmp6_is_good(&icmp, &ours, &remote(ipv6, vlan)));
            }
            other => panic!("{other:?}"),
        }
        for at in [request.len() - 1, request.len() - data.len() - 5] {
            let mut wrong = request.clone();
            wrong[at] ^= 0x10;
            assert_eq!(echo_reply(&wrong, &ours), None, "checksum {at}");
        }
        assert_eq!(echo_reply(&reply, &ours), None);
        assert_eq!(echo_reply(&incoming(ipv6, vlan, b""), &ours), None);
    }
}

fn icmp4_checksum(icmp: &Icmpv4Slice<'_>) -> u16 {
    icmp.icmp_type().calc_checksum(icmp.payload())
}

fn icmp6_is_good(icmp: &Icmpv6Slice<'_>, from: &LocalAddress, to: &LocalAddress) -> bool {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (from.ip, to.ip) else { return false };
    icmp.is_checksum_valid(from.octets(), to.octets())
}

#[test]
fn addresses_of_a_prefix() {
    let v4 = local(false, None);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(v4.is_on_link(ip("192.0.2.9")) && !v4.is_on_link(ip("192.0.3.9")));
    assert!(!v4.is_on_link(ip("2001:db8::2")));
    assert!(v4.multicast_macs().is_empty());
    for prefix in [31, 32] {
        let narrow = LocalAddress { ip: ip("192.0.2.255"), prefix, ..v4.clone() };
        assert!(narrow.is_station(ip("192.0.2.255")), "/{prefix}");
    }
    let all = LocalAddress { prefix: 0, ..v4 };
    assert!(all.is_on_link(ip("8.8.8.8")) && !all.is_station(ip("255.255.255.255")));
    let v6 = local(true, None);
    assert!(v6.is_on_link(ip("2001:db8::ffff")) && v6.is_on_link(ip("fe80::1")));
    assert!(!v6.is_on_link(ip("2001:db8:0:1::1")));
    let groups = [MacAddr([0x33, 0x33, 0, 0, 0, 1]), MacAddr([0x33, 0x33, 0xff, 0, 0, 1])];
    assert_eq!(v6.multicast_macs(), groups);
}

#[test]
fn every_reason_has_a_counter_of_its_own() {
    use UnderlayDrop as D;
    let reasons = [
        D::Truncated,
        D::BadVlan,
        D::BadSourceMac,
        D::BadIpHeader,
        D::BadIpChecksum,
        D::Fragment,
        D::WrongDestination,
        D::GroupMac,
        D::BadSource,
        D::BadUdpLength,
        D::BadUdpChecksum,
        D::NoUdpChecksum,
        D::NdHopLimit,
    ];
    let counters = UnderlayCounters::default();
    for reason in reasons {
        counters.count(reason);
    }
    assert_eq!(counters.values().map(|(_, count)| count).collect::<Vec<_>>(), [1; 13]);
    let hosts: Vec<_> = reasons.into_iter().filter(|reason| reason.may_be_hosts()).collect();
    assert_eq!(hosts, [D::BadVlan, D::WrongDestination]);
}

#[test]
fn sums_left_to_a_card_pass_only_where_the_sender_may_be_on_this_machine() {
    for ipv6 in [false, true] {
        let (us, them) = (local(ipv6, None), remote(ipv6, None));
        let to = SocketAddr::new(us.ip, OUR_PORT);
        let template = Template::new(&them, us.mac, to, 4000).unwrap();
        let mut frame = vec![0; template.len() + 7];
        template.write(&mut frame, b"payload", varying(1, UdpChecksum::Hardware)).unwrap();
        let read = |frame: &[u8], sum| classify(frame, &us, &(OUR_PORT..=OUR_PORT), sum);
        let bad = Classified::Drop(UnderlayDrop::BadUdpChecksum);
        assert_eq!(read(&frame, RxChecksum::Unknown), bad);
        let taken = read(&frame, RxChecksum::MaybePartial);
        assert!(matches!(taken, Classified::Datagram { .. }), "{taken:?}");
        // A sum that is merely wrong does not pass, a whole one does.
        let at = template.len() - 1;
        frame[at] ^= 1;
        assert_eq!(read(&frame, RxChecksum::MaybePartial), bad);
        template.write(&mut frame, b"payload", varying(1, UdpChecksum::Software)).unwrap();
        let taken = read(&frame, RxChecksum::MaybePartial);
        assert!(matches!(taken, Classified::Datagram { .. }), "{taken:?}");
    }
}
