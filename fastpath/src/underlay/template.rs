//! The header in front of the datagrams to one remote end, built once and patched for each.
//!
//! Next: a port's transmit queue.

use std::net::{IpAddr, SocketAddr};

use encap::wire::checksum::{fold_sum, sum_of};
use encap::wire::ethernet::{EtherType, MacAddr};

use super::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, LocalAddress, MAX_UNDERLAY_HEADER_LEN, TTL, UDP_HEADER_LEN,
    protocol, pseudo_header_sum, wire_sum,
};

/// Who takes the UDP checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpChecksum {
    /// We do; one that comes out as 0 is sent as 0xffff (RFC 768).
    Software,
    /// The port does: the field holds the folded sum over the pseudo header.
    Hardware,
    /// Nobody does. Over IPv6, which does not allow it, the same as [`Self::Software`].
    Zero,
}

/// What differs from one datagram to the next, beside the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Varying {
    /// TOS byte or traffic class.
    pub mark: u8,
    /// That of the IPv4 header; over IPv6 there is none.
    pub identification: u16,
    /// Who takes the UDP checksum.
    pub checksum: UdpChecksum,
}

/// A prebuilt Ethernet, IP and UDP header.
///
/// TTL 64, never to be fragmented. 66 bytes at most.
#[derive(Debug, Clone)]
pub struct Template {
    header: [u8; MAX_UNDERLAY_HEADER_LEN],
    len: usize,
    /// Bytes in front of the IP header.
    link_len: usize,
    ipv4: bool,
    /// Sum over the IPv4 header without TOS, total length, identification and checksum.
    ip_sum: u64,
    /// Sum over the pseudo header without its length.
    pseudo_sum: u64,
    /// Sum of both ports.
    port_sum: u64,
}

impl Template {
    /// The header of datagrams from `local` and `source_port` to `remote`, by way of the station
    /// `remote_mac`. None when the addresses are of different IP versions.
    #[must_use]
    pub fn new(
        local: &LocalAddress,
        remote_mac: MacAddr,
        remote: SocketAddr,
        source_port: u16,
    ) -> Option<Self> {
        let mut bytes = Vec::with_capacity(MAX_UNDERLAY_HEADER_LEN);
        let link_len;
        let ip_sum;
        match (local.ip, remote.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                local.write_link_header(remote_mac, EtherType::IPV4, &mut bytes);
                link_len = bytes.len();
                // Do not fragment. RFC 6864: the identification of such a packet means nothing.
                bytes.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, protocol::UDP, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                ip_sum = wire_sum(bytes.get(link_len..)?);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                local.write_link_header(remote_mac, EtherType::IPV6, &mut bytes);
                link_len = bytes.len();
                bytes.extend([0x60, 0, 0, 0, 0, 0, protocol::UDP, TTL]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                ip_sum = 0;
            }
            _ => return None,
        }
        bytes.extend(source_port.to_be_bytes());
        bytes.extend(remote.port().to_be_bytes());
        bytes.extend([0; 4]);
        let mut header = [0; MAX_UNDERLAY_HEADER_LEN];
        header.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        Some(Self {
            header,
            len: bytes.len(),
            link_len,
            ipv4: local.ip.is_ipv4(),
            ip_sum: ip_sum.into(),
            pseudo_sum: pseudo_header_sum(local.ip, remote.ip(), protocol::UDP),
            port_sum: u64::from(source_port) + u64::from(remote.port()),
        })
    }

    /// Length of the header in bytes, 42 to 66.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes in front of the IP header, and of that header; a port that takes checksums asks.
    #[must_use]
    pub fn header_lens(&self) -> (usize, usize) {
        (self.link_len, self.len - self.link_len - UDP_HEADER_LEN)
    }

    /// Writes a whole frame to the start of `out`: the header and a copy of `payload`. Gives the
    /// frame's length in bytes; none when `out` is too short or `payload` too long for UDP.
    #[inline]
    pub fn write(&self, out: &mut [u8], payload: &[u8], varying: Varying) -> Option<usize> {
        let (head, rest) = out.split_at_mut_checked(self.len)?;
        rest.get_mut(..payload.len())?.copy_from_slice(payload);
        self.write_header(head, payload, varying)?;
        Some(self.len + payload.len())
    }

    /// Writes the header alone to the start of `out`, for a `payload` that lies behind it already.
    /// Otherwise as [`Self::write`]; gives the header's length in bytes.
    #[inline]
    pub fn write_header(&self, out: &mut [u8], payload: &[u8], varying: Varying) -> Option<usize> {
        let Varying { mark, identification, checksum } = varying;
        let udp_len = u16::try_from(payload.len() + UDP_HEADER_LEN).ok()?;
        let out = out.get_mut(..self.len)?;
        out.copy_from_slice(self.header.get(..self.len)?);
        let udp_checksum = self.udp_checksum(udp_len, payload, checksum).to_be_bytes();
        let packet = out.get_mut(self.link_len..)?;
        let udp = if self.ipv4 {
            let (ip, udp) = packet.split_first_chunk_mut::<IPV4_HEADER_LEN>()?;
            let total_len = udp_len.checked_add(IPV4_HEADER_LEN as u16)?;
            let sum =
                self.ip_sum + u64::from(mark) + u64::from(total_len) + u64::from(identification);
            ip[1] = mark;
            [ip[2], ip[3]] = total_len.to_be_bytes();
            [ip[4], ip[5]] = identification.to_be_bytes();
            [ip[10], ip[11]] = (!fold_sum(sum)).to_be_bytes();
            udp
        } else {
            let (ip, udp) = packet.split_first_chunk_mut::<IPV6_HEADER_LEN>()?;
            ip[0] |= mark >> 4;
            ip[1] = mark << 4;
            [ip[4], ip[5]] = udp_len.to_be_bytes();
            udp
        };
        let (udp, _) = udp.split_first_chunk_mut::<UDP_HEADER_LEN>()?;
        [udp[4], udp[5]] = udp_len.to_be_bytes();
        [udp[6], udp[7]] = udp_checksum;
        Some(self.len)
    }

    #[inline]
    fn udp_checksum(&self, udp_len: u16, payload: &[u8], checksum: UdpChecksum) -> u16 {
        let udp_len = u64::from(udp_len);
        match checksum {
            UdpChecksum::Zero if self.ipv4 => 0,
            UdpChecksum::Hardware => fold_sum(self.pseudo_sum + udp_len),
            UdpChecksum::Software | UdpChecksum::Zero => {
                // The length is in both headers.
                let headers = self.pseudo_sum + self.port_sum + 2 * udp_len;
                let payload = u16::from_be_bytes(fold_sum(sum_of(payload)).to_ne_bytes());
                match !fold_sum(headers + u64::from(payload)) {
                    0 => 0xffff,
                    sum => sum,
                }
            }
        }
    }
}
