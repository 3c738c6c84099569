//! Frames made by other code than ours, for the tests of this folder.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder, PacketHeaders, TcpHeader,
};

use crate::wire::buf::{Checksum, SegmentKind};

/// What a frame says, lengths and checksums aside.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) v6: bool,
    pub(super) tcp: bool,
    pub(super) tags: usize,
    /// IPv4 options, or an IPv6 hop-by-hop header.
    pub(super) extra: bool,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) df: bool,
    pub(super) id: u16,
    pub(super) flow_label: u32,
    pub(super) port: u16,
    pub(super) sequence: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    /// The flags byte.
    pub(super) flags: u8,
    /// Value of a TCP timestamps option.
    pub(super) timestamp: Option<u32>,
    pub(super) payload: Vec<u8>,
}

impl Shape {
    pub(super) fn new(v6: bool, tcp: bool, payload_len: usize) -> Self {
        Self {
            v6,
            tcp,
            tags: 0,
            extra: false,
            tos: 0,
            ttl: 64,
            df: true,
            id: 7,
            flow_label: 0,
            port: 4000,
            sequence: 0x0102_0304,
            ack: 99,
            window: 4096,
            flags: 0x10,
            timestamp: None,
            payload: (0..payload_len).map(|at| (at * 7 + at / 251) as u8).collect(),
        }
    }

    pub(super) fn kind(&self) -> SegmentKind {
        match (self.tcp, self.v6) {
            (true, false) => SegmentKind::Tcp4,
            (true, true) => SegmentKind::Tcp6,
            (false, _) => SegmentKind::Udp,
        }
    }

    /// The frames that a sender without offloads makes of this one.
    pub(super) fn segments(&self, size: usize) -> Vec<Self> {
        let count = self.payload.len().div_ceil(size).max(1);
        let cut = |index: usize| {
            let start = index * size;
            let end = self.payload.len().min(start + size);
            let mut flags = self.flags;
            if index > 0 {
                flags &= !0x80;
            }
            if index + 1 < count {
                flags &= !0x09;
            }
            Self {
                id: self.id.wrapping_add(index as u16),
                sequence: self.sequence.wrapping_add(start as u32),
                flags,
                payload: self.payload[start..end].to_vec(),
                ..self.clone()
            }
        };
        (0..count).map(cut).collect()
    }

    fn ip(&self) -> IpHeaders {
        let number = if self.tcp { IpNumber::TCP } else { IpNumber::UDP };
        if self.v6 {
            let mut extensions = Ipv6Extensions::default();
            if self.extra {
                let options = Ipv6RawExtHeader::new_raw(number, &[1, 4, 0, 0, 0, 0]).unwrap();
                extensions.hop_by_hop_options = Some(options);
            }
            let header = Ipv6Header {
                traffic_class: self.tos,
                flow_label: self.flow_label.try_into().unwrap(),
                source: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                destination: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
                hop_limit: self.ttl,
                next_header: number,
                ..Default::default()
            };
            return IpHeaders::Ipv6(header, extensions);
        }
        let mut header =
            Ipv4Header::new(0, self.ttl, number, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.dscp = (self.tos >> 2).try_into().unwrap();
        header.ecn = (self.tos & 3).try_into().unwrap();
        header.dont_fragment = self.df;
        header.identification = self.id;
        if self.extra {
            header.options = Ipv4Options::try_from(&[1; 8][..]).unwrap();
        }
        IpHeaders::Ipv4(header, Default::default())
    }

    /// The frame with complete checksums.
    pub(super) fn frame(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let vlan = |id: u16| id.try_into().unwrap();
        let builder = match self.tags {
            0 => builder.ip(self.ip()),
            1 => builder.single_vlan(vlan(7)).ip(self.ip()),
            _ => builder.double_vlan(vlan(7), vlan(8)).ip(self.ip()),
        };
        let mut bytes = Vec::new();
        if !self.tcp {
            builder.udp(self.port, 5000).write(&mut bytes, &self.payload).unwrap();
            return bytes;
        }
        let mut header = TcpHeader::new(self.port, 5000, self.sequence, self.window);
        header.acknowledgment_number = self.ack;
        let has = |bit: u8| self.flags & bit != 0;
        (header.fin, header.syn, header.rst, header.psh) = (has(1), has(2), has(4), has(8));
        (header.ack, header.urg, header.ece, header.cwr) =
            (has(0x10), has(0x20), has(0x40), has(0x80));
        if let Some(value) = self.timestamp {
            let mut options = vec![1, 1, 8, 10];
            options.extend(value.to_be_bytes());
            options.extend([0; 4]);
            header.set_options_raw(&options).unwrap();
        }
        builder.tcp_header(header).write(&mut bytes, &self.payload).unwrap();
        bytes
    }

    /// The frame as a kernel with checksum offload leaves it, and the place of its checksum.
    pub(super) fn partial(&self) -> (Vec<u8>, Checksum) {
        let mut frame = self.frame();
        let headers = PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let l4_len = headers.transport.unwrap().header_len() + self.payload.len();
        let start = frame.len() - l4_len;
        let mut pseudo = Vec::new();
        match self.ip() {
            IpHeaders::Ipv4(header, _) => {
                pseudo.extend([header.source, header.destination].concat());
            }
            IpHeaders::Ipv6(header, _) => {
                pseudo.extend([header.source, header.destination].concat());
            }
        }
        pseudo.extend((l4_len as u32).to_be_bytes());
        pseudo.extend([0, if self.tcp { 6 } else { 17 }]);
        // By the book, one 16-bit word at a time.
        let mut sum = 0_u32;
        for word in pseudo.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(word[1]);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let offset = if self.tcp { 16 } else { 6 };
        let at = start + usize::from(offset);
        frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        (frame, Checksum::Partial { start: start as u16, offset })
    }
}
