//! ARP packets (RFC 826) and neighbour discovery messages (RFC 4861 section 4), read into one form
//! and written as whole frames. Multicast listener reports (RFC 3810) are only written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use encap::wire::checksum::fold_sum;
use encap::wire::ethernet::{EtherType, MacAddr};

use crate::underlay::{
    ALL_NODES, Classified, LocalAddress, RxChecksum, classify, link_layer, multicast_mac, protocol,
    pseudo_header_sum, solicited_node, wire_sum,
};

/// Hardware type Ethernet, protocol type IPv4 and their address lengths.
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_LEN: usize = 28;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Shortest Ethernet frame without its FCS: not every driver pads.
const MIN_FRAME_LEN: usize = 60;

const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// Type, code, checksum, flags, target (RFC 4861 sections 4.3 and 4.4).
const ND_LEN: usize = 24;
const ND_HOP_LIMIT: u8 = 255;
/// RFC 3810 section 5.2: MLDv2 report.
const MEMBERSHIP_REPORT: u8 = 143;
/// All routers that speak MLDv2, and switches that listen (RFC 3810 section 5.2.14).
const MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
/// RFC 3810 section 5.2.5: everything that is sent to the group, whoever sends it.
const CHANGE_TO_EXCLUDE: u8 = 4;
/// Hop-by-hop header: ICMPv6 follows; a router alert for MLD and padding (RFC 2711 section 2.1).
const ROUTER_ALERT: [u8; 8] = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;
const OPTION_SOURCE_ADDRESS: u8 = 1;
const OPTION_TARGET_ADDRESS: u8 = 2;
/// Units of 8 bytes: an option with an Ethernet address is one.
const OPTION_UNIT: usize = 8;

/// What a neighbour says, whichever protocol it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// Who has `target`?
    Request {
        /// Who asks; none when it is not sure of its address (RFC 5227 probe, RFC 4862 DAD).
        sender: Option<IpAddr>,
        /// The asker's MAC address, if it gives one to learn.
        sender_mac: Option<MacAddr>,
        /// Where an answer goes.
        reply_to: MacAddr,
        target: IpAddr,
    },
    /// `subject` is at `mac`.
    Answer {
        subject: IpAddr,
        /// Neighbour discovery may leave it out.
        mac: Option<MacAddr>,
        /// The station that sent the frame.
        station: MacAddr,
        /// To us alone and, as it says, because we asked.
        directed: bool,
        /// Whether it is to replace what is known.
        overrides: bool,
    },
}

/// Why a frame gives no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoMessage {
    /// Something else, or of no interest to a host with a configured address.
    Other,
    /// Our own frame came back.
    Own,
    /// Breaks its protocol's rules.
    Malformed,
}

/// Reads a whole frame.
pub(super) fn parse(frame: &[u8], local: &LocalAddress) -> Result<Message, NoMessage> {
    // Port 0 is nobody's: datagrams are of no interest here.
    let no_ports = 0..=0;
    let classified = classify(frame, local, &no_ports, RxChecksum::Unknown);
    let link = link_layer(frame, local).map_err(|_| NoMessage::Other)?;
    if link.source == local.mac {
        return Err(NoMessage::Own);
    }
    let to_us = link.destination == local.mac;
    match classified {
        Classified::Arp(range) => {
            let packet = frame.get(range).and_then(|bytes| bytes.first_chunk());
            parse_arp(packet.ok_or(NoMessage::Malformed)?, local, link.source, to_us)
        }
        Classified::Nd(range) => {
            let packet = frame.get(link.payload..range.end).ok_or(NoMessage::Malformed)?;
            parse_nd(packet, local, link.source)
        }
        _ => Err(NoMessage::Other),
    }
}

fn parse_arp(
    packet: &[u8; ARP_LEN],
    local: &LocalAddress,
    station: MacAddr,
    to_us: bool,
) -> Result<Message, NoMessage> {
    let [h0, h1, p0, p1, hl, pl, o0, o1, sender @ .., t0, t1, t2, t3] = *packet;
    let [m0, m1, m2, m3, m4, m5, s0, s1, s2, s3, ..] = sender;
    let mac = MacAddr([m0, m1, m2, m3, m4, m5]);
    let sender = Ipv4Addr::new(s0, s1, s2, s3);
    let target = Ipv4Addr::new(t0, t1, t2, t3);
    let known = sender.is_unspecified() || local.is_station(sender.into());
    if [h0, h1, p0, p1, hl, pl] != ARP_START || mac.is_multicast() || mac.is_zero() || !known {
        return Err(NoMessage::Malformed);
    }
    let subject = IpAddr::V4(sender);
    match u16::from_be_bytes([o0, o1]) {
        // RFC 5227 section 3: an announcement is a request for one's own address.
        ARP_REQUEST if sender != target => Ok(Message::Request {
            sender: (!sender.is_unspecified()).then_some(subject),
            sender_mac: Some(mac),
            reply_to: mac,
            target: target.into(),
        }),
        ARP_REQUEST | ARP_REPLY if !sender.is_unspecified() => Ok(Message::Answer {
            subject,
            mac: Some(mac),
            station,
            directed: to_us && local.ip == target,
            overrides: true,
        }),
        _ => Err(NoMessage::Malformed),
    }
}

/// Checks of RFC 4861 sections 7.1.1 and 7.1.2; that the hop limit is 255 is known already.
fn parse_nd(packet: &[u8], local: &LocalAddress, station: MacAddr) -> Result<Message, NoMessage> {
    let malformed = NoMessage::Malformed;
    let (ip, message) = packet.split_first_chunk::<40>().ok_or(malformed)?;
    let source = address(&ip[8..]).ok_or(malformed)?;
    let destination = address(&ip[24..]).ok_or(malformed)?;
    let len = u64::try_from(message.len()).map_err(|_| malformed)?;
    let pseudo = pseudo_header_sum(source.into(), destination.into(), protocol::ICMPV6) + len;
    if fold_sum(pseudo + u64::from(wire_sum(message))) != 0xffff {
        return Err(malformed);
    }
    let (kind, option) = match message.first() {
        Some(&NEIGHBOR_SOLICITATION) => (NEIGHBOR_SOLICITATION, OPTION_SOURCE_ADDRESS),
        Some(&NEIGHBOR_ADVERTISEMENT) => (NEIGHBOR_ADVERTISEMENT, OPTION_TARGET_ADDRESS),
        // Routers are configured, and redirects are not obeyed.
        _ => return Err(NoMessage::Other),
    };
    let (header, options) = message.split_first_chunk::<ND_LEN>().ok_or(malformed)?;
    let target = address(&header[8..]).ok_or(malformed)?;
    let sender_is_bad = !source.is_unspecified() && !local.is_station(source.into());
    if header[1] != 0 || !local.is_station(target.into()) || sender_is_bad {
        return Err(malformed);
    }
    let mac = mac_option(options, option)?;
    if kind == NEIGHBOR_SOLICITATION {
        let probe = source.is_unspecified();
        if probe && (mac.is_some() || destination != solicited_node(target)) {
            return Err(malformed);
        }
        return Ok(Message::Request {
            sender: (!probe).then_some(source.into()),
            sender_mac: mac,
            reply_to: mac.unwrap_or(station),
            target: target.into(),
        });
    }
    let solicited = header[4] & FLAG_SOLICITED != 0;
    if source.is_unspecified() || (solicited && destination.is_multicast()) {
        return Err(malformed);
    }
    Ok(Message::Answer {
        subject: target.into(),
        mac,
        station,
        directed: solicited,
        overrides: header[4] & FLAG_OVERRIDE != 0,
    })
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from_octets(*octets))
}

/// The Ethernet address in the first option of this kind (RFC 4861 section 4.6.1). All options are
/// looked at: one of length 0, or that ends outside, spoils the message.
fn mac_option(mut options: &[u8], kind: u8) -> Result<Option<MacAddr>, NoMessage> {
    let mut mac = None;
    while !options.is_empty() {
        let &[option, units, ..] = options else { return Err(NoMessage::Malformed) };
        let len = usize::from(units) * OPTION_UNIT;
        let (whole, rest) = options.split_at_checked(len).ok_or(NoMessage::Malformed)?;
        if whole.is_empty() {
            return Err(NoMessage::Malformed);
        }
        if let (&[_, 1, a, b, c, d, e, f], true) = (whole, option == kind && mac.is_none()) {
            mac = Some(MacAddr([a, b, c, d, e, f]));
        }
        options = rest;
    }
    let bad = mac.is_some_and(|mac| mac.is_multicast() || mac.is_zero());
    if bad { Err(NoMessage::Malformed) } else { Ok(mac) }
}

/// Asks for `target`: everybody, or the one station that had it last.
pub(super) fn request(local: &LocalAddress, target: IpAddr, to: Option<MacAddr>) -> Vec<u8> {
    match (local.ip, target) {
        (IpAddr::V4(ours), IpAddr::V4(target)) => {
            let to = to.unwrap_or(MacAddr::BROADCAST);
            arp(local, to, ARP_REQUEST, ours, MacAddr::default(), target)
        }
        (IpAddr::V6(ours), IpAddr::V6(target)) => {
            let group = solicited_node(target);
            let (mac, destination) = to.map_or((multicast_mac(group), group), |mac| (mac, target));
            let option = Some(OPTION_SOURCE_ADDRESS);
            let body = nd_message(NEIGHBOR_SOLICITATION, 0, target, local.mac, option);
            nd(local, mac, ours, destination, &body)
        }
        _ => Vec::new(),
    }
}

/// Answers one who asked for our address; one who has no address yet is told by way of all nodes
/// (RFC 4861 section 7.2.4).
pub(super) fn reply(local: &LocalAddress, to: MacAddr, asker: Option<IpAddr>) -> Vec<u8> {
    match (local.ip, asker) {
        (IpAddr::V4(ours), Some(IpAddr::V4(asker))) => arp(local, to, ARP_REPLY, ours, to, asker),
        (IpAddr::V4(ours), _) => arp(local, to, ARP_REPLY, ours, to, Ipv4Addr::UNSPECIFIED),
        (IpAddr::V6(ours), Some(IpAddr::V6(asker))) => {
            advertisement(local, to, ours, asker, FLAG_SOLICITED | FLAG_OVERRIDE)
        }
        (IpAddr::V6(_), _) => announcement(local),
    }
}

/// Tells everybody where our address is (RFC 5227 section 2.3, RFC 4861 section 7.2.6).
pub(super) fn announcement(local: &LocalAddress) -> Vec<u8> {
    match local.ip {
        IpAddr::V4(ours) => {
            arp(local, MacAddr::BROADCAST, ARP_REQUEST, ours, MacAddr::default(), ours)
        }
        IpAddr::V6(ours) => {
            advertisement(local, multicast_mac(ALL_NODES), ours, ALL_NODES, FLAG_OVERRIDE)
        }
    }
}

/// Asks whether anybody else has our address (RFC 5227 section 2.1.1, RFC 4862 section 5.4.2).
pub(super) fn probe(local: &LocalAddress) -> Vec<u8> {
    match local.ip {
        IpAddr::V4(ours) => {
            let nobody = Ipv4Addr::UNSPECIFIED;
            arp(local, MacAddr::BROADCAST, ARP_REQUEST, nobody, MacAddr::default(), ours)
        }
        IpAddr::V6(ours) => {
            let group = solicited_node(ours);
            let body = nd_message(NEIGHBOR_SOLICITATION, 0, ours, local.mac, None);
            nd(local, multicast_mac(group), Ipv6Addr::UNSPECIFIED, group, &body)
        }
    }
}

/// Tells switches that the group in which our address is asked for is to come to this port. From no
/// address, which is what hosts without a link-local one have to write (RFC 3810 section 5.2.13);
/// nothing over IPv4.
pub(super) fn membership(local: &LocalAddress) -> Vec<u8> {
    let IpAddr::V6(ours) = local.ip else { return Vec::new() };
    let mut body = vec![MEMBERSHIP_REPORT, 0, 0, 0, 0, 0, 0, 1, CHANGE_TO_EXCLUDE, 0, 0, 0];
    body.extend(solicited_node(ours).octets());
    let source = if ours.is_unicast_link_local() { ours } else { Ipv6Addr::UNSPECIFIED };
    let to = multicast_mac(MLD_ROUTERS);
    icmpv6(local, to, (source, MLD_ROUTERS), (protocol::IPV6_HOP_BY_HOP, 1), &ROUTER_ALERT, &body)
}

fn arp(
    local: &LocalAddress,
    to: MacAddr,
    operation: u16,
    sender: Ipv4Addr,
    target_mac: MacAddr,
    target: Ipv4Addr,
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(MIN_FRAME_LEN);
    local.write_link_header(to, EtherType::ARP, &mut frame);
    frame.extend(ARP_START);
    frame.extend(operation.to_be_bytes());
    frame.extend(local.mac.0);
    frame.extend(sender.octets());
    frame.extend(target_mac.0);
    frame.extend(target.octets());
    frame.resize(MIN_FRAME_LEN, 0);
    frame
}

fn advertisement(
    local: &LocalAddress,
    to: MacAddr,
    ours: Ipv6Addr,
    destination: Ipv6Addr,
    flags: u8,
) -> Vec<u8> {
    let option = Some(OPTION_TARGET_ADDRESS);
    let body = nd_message(NEIGHBOR_ADVERTISEMENT, flags, ours, local.mac, option);
    nd(local, to, ours, destination, &body)
}

/// The ICMPv6 message without its checksum.
fn nd_message(kind: u8, flags: u8, target: Ipv6Addr, mac: MacAddr, option: Option<u8>) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(target.octets());
    if let Some(option) = option {
        body.extend([option, 1]);
        body.extend(mac.0);
    }
    body
}

fn nd(
    local: &LocalAddress,
    to: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    body: &[u8],
) -> Vec<u8> {
    icmpv6(local, to, (source, destination), (protocol::ICMPV6, ND_HOP_LIMIT), &[], body)
}

/// A whole frame, its checksum completed; `next` is the next header and the hop limit, `extension`
/// the headers between.
fn icmpv6(
    local: &LocalAddress,
    to: MacAddr,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    (next, hop_limit): (u8, u8),
    extension: &[u8],
    body: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(100);
    local.write_link_header(to, EtherType::IPV6, &mut frame);
    let [len0, len1] = ((extension.len() + body.len()) as u16).to_be_bytes();
    frame.extend([0x60, 0, 0, 0, len0, len1, next, hop_limit]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(extension);
    let pseudo = pseudo_header_sum(source.into(), destination.into(), protocol::ICMPV6);
    let sum = fold_sum(pseudo + body.len() as u64 + u64::from(wire_sum(body)));
    let checksum = (!sum).to_be_bytes();
    for (at, byte) in body.iter().enumerate() {
        // The checksum's place, bytes 2 and 3, is empty so far.
        frame.push(match at {
            2 => checksum[0],
            3 => checksum[1],
            _ => *byte,
        });
    }
    frame
}
