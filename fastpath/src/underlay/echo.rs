//! Answers to echo requests: a port of our own can be pinged.

use std::net::IpAddr;

use encap::wire::checksum::fold_sum;
use encap::wire::ethernet::EtherType;

use super::{
    Classified, LocalAddress, RxChecksum, TTL, classify, link_layer, protocol, pseudo_header_sum,
    wire_sum,
};

/// RFC 792 and RFC 4443 section 4.2: type of the answer.
const ICMP_ECHO_REPLY: u8 = 0;
const ICMPV6_ECHO_REPLY: u8 = 129;

/// The frame that answers an echo request to `local`, for both ICMP (RFC 792) and ICMPv6 (RFC 4443
/// section 4.2): to where it came from, with its mark and its data. None when `frame` is no such
/// request or its checksum is wrong.
///
/// The caller limits the rate.
#[must_use]
pub fn echo_reply(frame: &[u8], local: &LocalAddress) -> Option<Vec<u8>> {
    // Port 0 is nobody's: datagrams are of no interest here.
    let no_ports = 0..=0;
    let Classified::Echo(range) = classify(frame, local, &no_ports, RxChecksum::Unknown) else {
        return None;
    };
    let link = link_layer(frame, local).ok()?;
    let packet = frame.get(link.payload..)?;
    let request = frame.get(range)?;
    let len = u16::try_from(request.len()).ok()?;
    let (&[_, _, _, _], rest) = request.split_first_chunk()?;

    let mut reply = Vec::with_capacity(frame.len());
    local.write_link_header(link.source, link.ether_type, &mut reply);
    let pseudo;
    let reply_type;
    match (local.ip, link.ether_type) {
        (IpAddr::V4(ours), EtherType::IPV4) => {
            let (header, _) = packet.split_first_chunk::<20>()?;
            let total_len = len.checked_add(20)?.to_be_bytes();
            let start = reply.len();
            reply.extend([0x45, header[1], total_len[0], total_len[1]]);
            reply.extend([0, 0, 0x40, 0, TTL, protocol::ICMP, 0, 0]);
            reply.extend(ours.octets());
            reply.extend(&header[12..16]);
            let sum = !wire_sum(reply.get(start..)?);
            reply.get_mut(start + 10..start + 12)?.copy_from_slice(&sum.to_be_bytes());
            pseudo = 0;
            reply_type = ICMP_ECHO_REPLY;
        }
        (IpAddr::V6(ours), EtherType::IPV6) => {
            let (header, _) = packet.split_first_chunk::<40>()?;
            let source: [u8; 16] = header[8..24].try_into().ok()?;
            reply.extend(&header[..4]);
            reply.extend(len.to_be_bytes());
            reply.extend([protocol::ICMPV6, TTL]);
            reply.extend(ours.octets());
            reply.extend(source);
            pseudo =
                pseudo_header_sum(ours.into(), source.into(), protocol::ICMPV6) + u64::from(len);
            reply_type = ICMPV6_ECHO_REPLY;
        }
        _ => return None,
    }
    if fold_sum(pseudo + u64::from(wire_sum(request))) != 0xffff {
        return None;
    }
    let first = u64::from(u16::from_be_bytes([reply_type, 0]));
    let sum = !fold_sum(pseudo + first + u64::from(wire_sum(rest)));
    reply.extend([reply_type, 0]);
    reply.extend(sum.to_be_bytes());
    reply.extend(rest);
    Some(reply)
}
