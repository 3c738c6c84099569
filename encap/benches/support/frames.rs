//! Frames as a tap with offloads hands them over: their L4 checksum is left partial.

use encap::offload::segment::SuperFrame;
use encap::wire::buf::{Checksum, Offload, SegmentKind, Segmentation};
use encap::wire::checksum::{TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET};
use etherparse::{PacketBuilder, TcpHeader};

/// Bytes of TCP payload in each segment: an MTU of 1,500, with timestamps.
pub const SEGMENT: usize = 1_448;
/// Segments of a full super-frame.
pub const SEGMENTS: usize = 44;

const NEAR: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 0, 1], [10, 0, 0, 1]);
const FAR: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 0, 2], [10, 0, 0, 2]);
/// Where IPv4 begins behind untagged Ethernet, and what lies behind it.
const L3: usize = 14;
const L4: usize = 34;

/// A frame and what is left to do to it.
#[derive(Clone)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub offload: Offload,
}

impl Frame {
    fn new(mut bytes: Vec<u8>, offset: u16, segmentation: Option<Segmentation>) -> Self {
        let sum = pseudo_sum(&bytes);
        let at = L4 + usize::from(offset);
        let field = bytes.get_mut(at..at + 2).expect("the header is there");
        field.copy_from_slice(&sum.to_be_bytes());
        let checksum = Checksum::Partial { start: L4 as u16, offset };
        Self { bytes, offload: Offload { checksum, segmentation } }
    }
}

/// UDP over IPv4 of `len` bytes from the Ethernet header on, from the near station to the far one or
/// `there` being false, back.
pub fn udp(len: usize, there: bool) -> Frame {
    let (from, to) = if there { (NEAR, FAR) } else { (FAR, NEAR) };
    let payload: Vec<u8> = (0..len - L4 - 8).map(|at| at as u8).collect();
    let mut bytes = Vec::with_capacity(len);
    let builder = PacketBuilder::ethernet2(from.0, to.0).ipv4(from.1, to.1, 64).udp(4_000, 5_000);
    builder.write(&mut bytes, &payload).expect("the payload is short");
    assert_eq!(bytes.len(), len);
    Frame::new(bytes, UDP_CHECKSUM_OFFSET, None)
}

/// A TCP super-frame of [`SEGMENTS`] full segments.
pub fn super_frame() -> Frame {
    let payload: Vec<u8> = (0..SEGMENT * SEGMENTS).map(|at| (at / 7) as u8).collect();
    let mut header = TcpHeader::new(4_000, 5_000, 1_000_000, 4_096);
    (header.ack, header.acknowledgment_number) = (true, 99);
    header.set_options_raw(&[1, 1, 8, 10, 0, 0, 1, 0, 0, 0, 2, 0]).expect("a timestamp fits");
    let builder = PacketBuilder::ethernet2(NEAR.0, FAR.0).ipv4(NEAR.1, FAR.1, 64);
    let mut bytes = Vec::new();
    builder.tcp_header(header).write(&mut bytes, &payload).expect("the payload is short");
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, size: SEGMENT as u16, ecn: false };
    Frame::new(bytes, TCP_CHECKSUM_OFFSET, Some(segmentation))
}

/// Cuts a super-frame into frames of their own.
pub fn segments(whole: &Frame) -> Vec<Frame> {
    let Offload { checksum, segmentation } = whole.offload;
    let segmentation = segmentation.expect("a super-frame");
    let cut = SuperFrame::new(&whole.bytes, segmentation, checksum).expect("a sound super-frame");
    let segment = |index| {
        let mut bytes = Vec::new();
        cut.write(index, false, &mut bytes);
        Frame { bytes, offload: Offload { checksum, segmentation: None } }
    };
    (0..cut.count()).map(segment).collect()
}

/// Sum over the pseudo-header (RFC 9293 section 3.1), folded, not complemented.
fn pseudo_sum(frame: &[u8]) -> u16 {
    let addresses = frame.get(L3 + 12..L4).expect("an IPv4 header");
    let protocol = frame.get(L3 + 9).expect("an IPv4 header");
    let words = addresses
        .chunks(2)
        .map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
    let mut sum = words.sum::<u32>() + u32::from(*protocol) + (frame.len() - L4) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
