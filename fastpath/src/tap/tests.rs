//! A queue against a kernel that lies.

use super::*;
use crate::vnet::{VNET_HEADER_LEN, VnetHeader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use encap::offload::segment::SuperFrame;
use encap::wire::buf::{
    Checksum, FrameBurst, Offload, OutFrame, PacketBuf, Pieces, SegmentKind, Segmentation, Span,
};
use encap::wire::checksum::{complete_checksum, derive_partial};
use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder};

/// A queue whose kernel is the other end of a socket pair: it can lie.
fn queue(vnet: bool) -> (TapQueue, UnixDatagram) {
    let (ours, kernel) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let granted = if vnet { OffloadSwitches::ALL } else { OffloadSwitches::NONE };
    let offload = Arc::new(TapOffload::new(granted));
    (TapQueue::new(File::from(OwnedFd::from(ours)), "tap0", vnet, offload), kernel)
}

fn udp_frame() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1, 2)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

fn read_all(queue: &mut TapQueue) -> Vec<(Vec<u8>, Checksum)> {
    let mut frames = frame_burst(8);
    queue.rx_burst(&mut frames).unwrap();
    frames.iter().map(|(frame, bytes)| (bytes.to_vec(), frame.offload.checksum)).collect()
}

#[test]
fn lying_headers_are_dropped_and_counted() {
    let (mut queue, kernel) = queue(true);
    let frame = udp_frame();
    let partial = VnetHeader::for_checksum(derive_partial(&frame).unwrap()).to_bytes();
    let mut super_frame = partial;
    super_frame[1] = 3;
    let mut coalesced = partial;
    coalesced[0] |= 4;
    let outside = Checksum::Partial { start: 34, offset: 60_000 };
    let outside = VnetHeader::for_checksum(outside).to_bytes();
    for header in [super_frame, coalesced, outside, partial] {
        kernel.send(&[&header[..], &frame].concat()).unwrap();
    }
    kernel.send(&partial[..11]).unwrap();
    kernel.send(&[&[0; VNET_HEADER_LEN], &frame[..13]].concat()).unwrap();
    kernel.send(&[0; VNET_HEADER_LEN + MAX_SUPER_FRAME_LEN + 1]).unwrap();
    assert_eq!(read_all(&mut queue), [(frame.clone(), derive_partial(&frame).unwrap())]);
    let counters = queue.counters();
    assert_eq!(counters.rx_frames.get(), 1);
    assert_eq!(counters.rx_bytes.get(), frame.len() as u64);
    assert_eq!(counters.rx_dropped_bad_header.get(), 3);
    assert_eq!(counters.rx_dropped_short.get(), 2);
    assert_eq!(counters.rx_dropped_long.get(), 1);
}

#[test]
fn checksum_where_no_parser_finds_it_is_completed() {
    let (mut queue, kernel) = queue(true);
    let mut frame = udp_frame();
    frame[12] = 0x12; // no longer IP
    let header = VnetHeader::for_checksum(Checksum::Partial { start: 34, offset: 6 });
    kernel.send(&[&header.to_bytes()[..], &frame].concat()).unwrap();
    complete_checksum(&mut frame, 34, 6).unwrap();
    assert_eq!(read_all(&mut queue), [(frame, Checksum::Complete)]);
    assert_eq!(queue.counters().rx_checksums_completed.get(), 1);
}

#[test]
fn without_the_header_checksums_are_completed_on_write() {
    let (mut queue, kernel) = queue(false);
    assert!(!queue.capabilities().tx_partial_checksum);
    let mut frame = udp_frame();
    kernel.send(&frame).unwrap();
    assert_eq!(read_all(&mut queue), [(frame.clone(), Checksum::Complete)]);

    let checksum = derive_partial(&frame).unwrap();
    let (mut pieces, frames) = out_frames(&[(frame.clone(), checksum)]);
    assert_eq!(queue.tx_burst(&mut pieces, &frames).sent, 1);
    let mut written = vec![0; 300];
    let len = kernel.recv(&mut written).unwrap();
    complete_checksum(&mut frame, 34, 6).unwrap();
    assert_eq!(written[..len], frame);
}

/// A burst of `frames` frames at most.
fn frame_burst(frames: usize) -> FrameBurst {
    FrameBurst::new(frames * (MAX_SUPER_FRAME_LEN + 100), frames)
}

fn tcp_super_frame(payload: usize) -> (Vec<u8>, Offload) {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut frame, &vec![7; payload])
        .unwrap();
    let segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 100, ecn: false });
    let checksum = derive_partial(&frame).unwrap();
    (frame, Offload { checksum, segmentation })
}

#[test]
fn super_frames_are_read_in_bursts_and_lying_ones_are_counted() {
    let (mut queue, kernel) = queue(true);
    let (frame, offload) = tcp_super_frame(120);
    let header = VnetHeader::for_offload(offload, 54).to_bytes();
    kernel.send(&[&header[..], &frame].concat()).unwrap();
    let mut lying = header;
    lying[1] = 4; // of IPv6
    kernel.send(&[&lying[..], &frame].concat()).unwrap();
    let mut not_negotiated = header;
    not_negotiated[1] = 3;
    kernel.send(&[&not_negotiated[..], &frame].concat()).unwrap();
    let plain = udp_frame();
    kernel.send(&[&[0; VNET_HEADER_LEN][..], &plain].concat()).unwrap();

    let mut frames = frame_burst(8);
    queue.read_burst(&mut frames).unwrap();
    let read: Vec<_> = frames.iter().map(|(frame, bytes)| (bytes, frame.offload)).collect();
    assert_eq!(read, [(&frame[..], offload), (&plain[..], Offload::default())]);
    let counters = queue.counters();
    assert_eq!((counters.rx_frames.get(), counters.rx_super_frames.get()), (2, 1));
    assert_eq!(counters.rx_super_frame_bytes.get(), frame.len() as u64);
    assert_eq!(counters.rx_bytes.get(), (frame.len() + plain.len()) as u64);
    assert_eq!(counters.rx_dropped_bad_super_frame.get(), 1);
    assert_eq!(counters.rx_dropped_bad_header.get(), 1);
}

#[test]
fn burst_of_reads_ends_when_it_is_full() {
    let (mut queue, kernel) = queue(false);
    for _ in 0..5 {
        kernel.send(&udp_frame()).unwrap();
    }
    // By number, and by memory: a second one of the largest would not fit.
    for (mut frames, expected) in [
        (frame_burst(2), 2),
        (FrameBurst::new(MAX_SUPER_FRAME_LEN + 40, 9), 1),
        (frame_burst(9), 2),
        (frame_burst(9), 0),
    ] {
        queue.read_burst(&mut frames).unwrap();
        assert_eq!(frames.len(), expected);
    }
    let mut full = frame_burst(1);
    full.push_slice(&udp_frame(), Offload::default());
    kernel.send(&udp_frame()).unwrap();
    queue.read_burst(&mut full).unwrap();
    assert_eq!(full.len(), 1);
    assert!(queue.read_burst(&mut FrameBurst::new(MAX_SUPER_FRAME_LEN, 9)).is_err());
}

/// Frames as they come from the tunnel, each in a piece of its own.
fn out_frames(frames: &[(Vec<u8>, Checksum)]) -> (Pieces, Vec<OutFrame>) {
    let pieces = frames.iter().map(|(bytes, _)| PacketBuf::from_slice(bytes)).collect();
    let span = |piece, bytes: &Vec<u8>| Span { piece, start: 0, len: bytes.len() };
    let frames = frames.iter().enumerate();
    let list =
        frames.map(|(n, (bytes, checksum))| OutFrame { span: span(n, bytes), checksum: *checksum });
    (Pieces(pieces), list.collect())
}

/// What the kernel was given: tap header and frame.
fn written(kernel: &UnixDatagram) -> Vec<Vec<u8>> {
    kernel.set_nonblocking(true).unwrap();
    let mut room = vec![0; MAX_SUPER_FRAME_LEN + VNET_HEADER_LEN];
    std::iter::from_fn(|| kernel.recv(&mut room).ok().map(|len| room[..len].to_vec())).collect()
}

#[test]
fn single_frames_are_written_with_the_state_of_their_checksum() {
    let frame = udp_frame();
    let partial = derive_partial(&frame).unwrap();
    let outside = Checksum::Partial { start: 34, offset: 60_000 };
    let list = [
        (frame.clone(), partial),
        (frame.clone(), outside),
        (frame[..13].to_vec(), Checksum::Complete),
        (frame.clone(), Checksum::Complete),
    ];
    for vnet in [true, false] {
        let (mut queue, kernel) = queue(vnet);
        let (mut pieces, frames) = out_frames(&list);
        let report = queue.write_burst(&mut pieces, &frames);
        assert_eq!(report, TxReport { sent: 2, failed: 2, ..TxReport::default() });
        assert_eq!(queue.counters().tx_dropped_malformed.get(), 2);
        let header = |checksum| VnetHeader::for_checksum(checksum).to_bytes();
        let expected = if vnet {
            let complete = header(Checksum::Complete);
            [[&header(partial)[..], &frame].concat(), [&complete[..], &frame].concat()]
        } else {
            let mut completed = frame.clone();
            complete_checksum(&mut completed, 34, 6).unwrap();
            [completed, frame.clone()]
        };
        assert_eq!(written(&kernel), expected);
    }
}

/// Frames of two connections, three of the first with one of the second between, and a datagram.
fn two_flows() -> Vec<(Vec<u8>, Checksum)> {
    let frame = |port, sequence, payload: &[u8]| {
        let (from, to) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, from, to).unwrap();
        ip.identification = (sequence / 100) as u16;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()))
            .tcp(port, 2, sequence, 4096)
            .ack(7)
            .write(&mut frame, payload)
            .unwrap();
        (frame, Checksum::Complete)
    };
    vec![
        frame(1, 1000, &[1; 100]),
        frame(1, 1100, &[2; 100]),
        frame(9, 5000, &[9; 70]),
        frame(1, 1200, &[3; 50]),
        (udp_frame(), Checksum::Complete),
    ]
}

/// The frames of a super-frame as it was written, complete.
fn members(written: &[u8]) -> Vec<(Vec<u8>, Checksum)> {
    let (header, frame) = written.split_first_chunk().unwrap();
    let mut frame = frame.to_vec();
    let header = VnetHeader::from_bytes(header);
    let settled = crate::vnet::settle(&header, &mut frame, OffloadSwitches::ALL).unwrap();
    let crate::vnet::Settled::AsAnnounced(offload) = settled else { panic!("{settled:?}") };
    let segmentation = offload.segmentation.expect("a super-frame");
    let whole = SuperFrame::new(&frame, segmentation, offload.checksum).unwrap();
    let cut = |index| {
        let mut segment = Vec::new();
        whole.write(index, true, &mut segment);
        (segment, Checksum::Complete)
    };
    (0..whole.count()).map(cut).collect()
}

#[test]
fn frames_of_a_flow_are_written_as_one() {
    let (mut queue, kernel) = queue(true);
    let list = two_flows();
    let (mut pieces, frames) = out_frames(&list);
    let report = queue.write_burst(&mut pieces, &frames);
    assert_eq!(report, TxReport { sent: 5, ..TxReport::default() });
    let written = written(&kernel);
    assert_eq!(written.len(), 3);
    assert_eq!(members(&written[0]), [list[0].clone(), list[1].clone(), list[3].clone()]);
    for (written, alone) in written[1..].iter().zip([&list[2], &list[4]]) {
        assert_eq!(written[..VNET_HEADER_LEN], [0; VNET_HEADER_LEN]);
        assert_eq!(written[VNET_HEADER_LEN..], alone.0);
    }
    let counters = queue.counters();
    assert_eq!((counters.tx_super_frames.get(), counters.tx_coalesced_frames.get()), (1, 3));
    assert_eq!(counters.tx_frames.get(), 5);
    let bytes: usize = list.iter().map(|(frame, _)| frame.len()).sum();
    assert_eq!(counters.tx_bytes.get(), bytes as u64);
}

#[test]
fn refused_super_frames_are_written_apart_and_end_coalescing() {
    let (mut queue, kernel) = queue(true);
    queue.refuse_super_frames = Some(libc::EINVAL);
    let list = two_flows();
    for round in 1..=5 {
        let (mut pieces, frames) = out_frames(&list);
        let report = queue.write_burst(&mut pieces, &frames);
        assert_eq!(report, TxReport { sent: 5, ..TxReport::default() });
        let mut frames: Vec<_> =
            written(&kernel).iter().map(|f| f[VNET_HEADER_LEN..].to_vec()).collect();
        let mut expected: Vec<_> = list.iter().map(|(frame, _)| frame.clone()).collect();
        frames.sort();
        expected.sort();
        assert_eq!(frames, expected);
        assert_eq!(queue.offload.coalescing_tcp(), round < 3);
        assert_eq!(queue.counters.tx_super_frames_refused.get(), round.min(3));
        assert_eq!(queue.counters.tx_coalescing_ended.get(), u64::from(round >= 3));
    }
    assert!(queue.offload.coalescing_udp());
    assert_eq!(queue.counters.tx_super_frames.get(), 0);
    assert_eq!(queue.counters.tx_frames.get(), 25);
}

#[test]
fn super_frame_without_room_costs_all_its_frames() {
    let (mut queue, _kernel) = queue(true);
    for (errno, report) in [
        (libc::ENOBUFS, TxReport { sent: 2, no_room: 3, ..TxReport::default() }),
        (libc::EMSGSIZE, TxReport { sent: 2, too_large: 3, ..TxReport::default() }),
        (libc::EIO, TxReport { sent: 2, failed: 3, ..TxReport::default() }),
    ] {
        queue.refuse_super_frames = Some(errno);
        let (mut pieces, frames) = out_frames(&two_flows());
        assert_eq!(queue.write_burst(&mut pieces, &frames), report);
    }
    let counters = queue.counters();
    assert_eq!(counters.tx_dropped_no_room.get(), 3);
    assert_eq!(counters.tx_dropped_too_large.get(), 3);
    assert_eq!(counters.tx_dropped_down.get(), 3);
    assert!(queue.offload.coalescing_tcp());
}
