//! Channel packets and unreliable messages: read or refused, bounded, and written back the same.

use encap::wire::channel::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};
use encap::wire::channel::{
    Ack, Frame, Frames, MAX_ACK_RANGES, MAX_MESSAGE_LEN, MAX_NAME_LEN, MAX_PRIORITY,
    PACKET_HEADER_LEN, PacketHeader, write_ack,
};

/// The same bytes as a channel packet and as an unreliable message.
pub fn channel(data: &[u8]) {
    match PacketHeader::read(data) {
        Ok((header, frames)) => {
            assert_eq!(header.write(), data[..PACKET_HEADER_LEN]);
            packet(frames, &data[PACKET_HEADER_LEN..]);
        }
        Err(_) => assert!(data.len() < PACKET_HEADER_LEN),
    }
    if let Ok(message) = Unreliable::read(data) {
        assert!(message.total <= MAX_UNRELIABLE_LEN && message.priority <= MAX_PRIORITY);
        piece(message.offset, message.total, message.bytes);
        let mut again = Vec::new();
        message.write(&mut again);
        assert_eq!(again.len(), message.header_len() + message.bytes.len());
        assert_eq!(again, data);
    }
}

fn packet(frames: Frames<'_>, data: &[u8]) {
    let parses = frames.check();
    let mut again = Vec::new();
    let mut fault = None;
    for frame in frames {
        assert!(fault.is_none(), "nothing comes after a fault");
        match frame {
            Ok(frame) => {
                let start = again.len();
                frame.write(&mut again);
                assert_eq!(again.len() - start, frame.encoded_len());
                fields(frame);
            }
            Err(e) => fault = Some(e),
        }
    }
    assert_eq!(parses.err(), fault);
    assert_eq!(again, data[..again.len()]);
    assert!(fault.is_some() || again.len() == data.len());
}

fn fields(frame: Frame<'_>) {
    match frame {
        Frame::Ack(ack) => ranges(&ack),
        Frame::Message(message) => {
            assert!(message.total <= MAX_MESSAGE_LEN && message.priority <= MAX_PRIORITY);
            piece(message.offset, message.total, message.bytes);
        }
        Frame::Stream(stream) => {
            assert!(stream.offset + (stream.bytes.len() as u64) < 1 << 62);
        }
        Frame::Expired { total, .. } => assert!(total <= MAX_MESSAGE_LEN),
        Frame::Open { name, .. } => assert!((1..=MAX_NAME_LEN).contains(&name.len())),
        _ => {}
    }
}

/// Whole, or some of it.
fn piece(offset: u32, total: u32, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    assert!(end <= total as usize);
    assert!(!bytes.is_empty() || total == 0);
}

fn ranges(ack: &Ack<'_>) {
    let ranges: Vec<_> = ack.ranges.iter().collect();
    assert_eq!(ranges.len(), ack.ranges.len());
    assert!((1..=MAX_ACK_RANGES).contains(&ranges.len()));
    assert_eq!(ranges.first().map(|range| *range.end()), Some(ack.largest));
    assert!(ranges.iter().all(|range| range.start() <= range.end()));
    assert!(ranges.windows(2).all(|pair| pair[1].end() + 1 < *pair[0].start()));
    let (mut first, mut second) = (Vec::new(), Vec::new());
    Frame::Ack(*ack).write(&mut first);
    assert!(write_ack(ack.path, ack.delay, ranges, ack.ecn, first.len(), &mut second));
    assert_eq!(first, second);
}
