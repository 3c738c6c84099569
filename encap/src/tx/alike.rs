//! Frames that leave as the one before them did.
//!
//! How a frame leaves is found out by a look at its headers and at what is known of its peer. In a
//! burst most frames are like the one before in all that matters there, and that can be seen from a
//! few bytes: those take what was found for it.

use crate::forward::policy::Policy;
use crate::forward::protect::Protect;
use crate::id::PeerIndex;
use crate::tables::NetworkEntry;
use crate::wire::header::Handle;
use crate::wire::inner_ip::protocol;

use super::outbound::Outbound;

/// TCP's flags, counted from its header (RFC 9293 section 3.1), and the one that says that it
/// begins a connection.
const TCP_FLAGS: usize = 13;
const TCP_SYN: u8 = 0x02;
/// Where TCP's header lies behind Ethernet without a tag and IP without options or extensions.
const TCP_OVER_IPV4: usize = 34;
const TCP_OVER_IPV6: usize = 54;

/// What of a frame's headers matters for how it leaves: its IP version and its TOS byte or traffic
/// class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    version: u8,
    tos: u8,
}

impl Shape {
    /// Of a frame without a tag whose IP header has nothing unusual, and which begins no
    /// connection of TCP, since such a frame may be changed: everything else has no shape.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let header: &[u8; TCP_OVER_IPV4] = frame.first_chunk()?;
        let (version, tos, protocol, tcp) = match [header[12], header[13], header[14]] {
            [0x08, 0x00, 0x45] => (4, header[15], header[23], TCP_OVER_IPV4),
            [0x86, 0xdd, first] if first >> 4 == 6 && frame.len() >= TCP_OVER_IPV6 => {
                (6, first << 4 | header[15] >> 4, header[20], TCP_OVER_IPV6)
            }
            _ => return None,
        };
        let plain = match protocol {
            protocol::UDP => true,
            protocol::TCP => frame.get(tcp + TCP_FLAGS).is_some_and(|flags| flags & TCP_SYN == 0),
            _ => false,
        };
        plain.then_some(Self { version, tos })
    }
}

/// How a frame left, and which others leave so.
#[derive(Clone, Copy)]
pub(super) struct Alike<'t> {
    shape: Shape,
    network: Handle,
    outbound: Outbound<'t>,
}

impl<'t> Alike<'t> {
    /// None where frames of one shape may leave in different ways: by flow, by turns, or kept for
    /// what they carry.
    pub(super) fn new(
        shape: Shape,
        network: &NetworkEntry,
        outbound: &Outbound<'t>,
    ) -> Option<Self> {
        let by_frame = matches!(outbound.policy, Policy::FlowHash | Policy::RoundRobin)
            || outbound.compression.is_some()
            || outbound.peer.protect == Protect::Control && outbound.peer.links.len() > 1;
        (!by_frame).then_some(Self { shape, network: network.handle, outbound: *outbound })
    }

    /// How a frame for this peer leaves, if it is known; a frame of a size that its sender might
    /// have to be told of is looked at itself.
    pub(super) fn find(
        &self,
        network: &NetworkEntry,
        peer: PeerIndex,
        frame: &[u8],
    ) -> Option<Outbound<'t>> {
        let outbound = &self.outbound;
        let known = outbound.peer.index == peer
            && self.network == network.handle
            && frame.len() <= outbound.largest_frame()
            && Shape::of(frame) == Some(self.shape);
        known.then_some(*outbound)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(ipv6: bool, tos: u8, tcp: Option<bool>, vlan: bool) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut ipv4 = etherparse::Ipv4Header { time_to_live: 9, ..Default::default() };
        ipv4.dscp = (tos >> 2).try_into().unwrap();
        ipv4.ecn = (tos & 3).try_into().unwrap();
        let six = etherparse::Ipv6Header { traffic_class: tos, ..Default::default() };
        let ip = if ipv6 {
            etherparse::IpHeaders::Ipv6(six, etherparse::Ipv6Extensions::default())
        } else {
            etherparse::IpHeaders::Ipv4(ipv4, etherparse::Ipv4Extensions::default())
        };
        let builder =
            if vlan { builder.single_vlan(7.try_into().unwrap()).ip(ip) } else { builder.ip(ip) };
        let mut frame = Vec::new();
        match tcp {
            None => builder.udp(1, 2).write(&mut frame, &[1; 20]).unwrap(),
            Some(false) => builder.tcp(1, 2, 3, 4).ack(7).write(&mut frame, &[1; 20]).unwrap(),
            Some(true) => builder.tcp(1, 2, 3, 4).syn().write(&mut frame, &[]).unwrap(),
        }
        frame
    }

    #[test]
    fn plain_packets_have_the_shape_of_their_version_and_tos_byte() {
        for (ipv6, version) in [(false, 4), (true, 6)] {
            for tos in [0, 1, 0xb8, 0xff] {
                let shape = Some(Shape { version, tos });
                assert_eq!(Shape::of(&frame(ipv6, tos, None, false)), shape);
                assert_eq!(Shape::of(&frame(ipv6, tos, Some(false), false)), shape);
                assert_eq!(Shape::of(&frame(ipv6, tos, Some(true), false)), None, "SYN");
                assert_eq!(Shape::of(&frame(ipv6, tos, None, true)), None, "tagged");
            }
        }
    }

    #[test]
    fn what_is_cut_or_unusual_has_none() {
        for ipv6 in [false, true] {
            let whole = frame(ipv6, 0, Some(false), false);
            let flags = if ipv6 { TCP_OVER_IPV6 } else { TCP_OVER_IPV4 } + TCP_FLAGS;
            for len in 0..whole.len() {
                assert_eq!(Shape::of(&whole[..len]).is_some(), len > flags, "{len}");
            }
        }
        let mut options = frame(false, 0, None, false);
        options[14] = 0x46;
        assert_eq!(Shape::of(&options), None);
        let mut icmp = frame(false, 0, None, false);
        icmp[23] = protocol::ICMP;
        assert_eq!(Shape::of(&icmp), None);
        let mut extension = frame(true, 0, None, false);
        extension[20] = protocol::FRAGMENT;
        assert_eq!(Shape::of(&extension), None);
        let mut arp = frame(false, 0, None, false);
        arp[13] = 6;
        assert_eq!(Shape::of(&arp), None);
    }
}
