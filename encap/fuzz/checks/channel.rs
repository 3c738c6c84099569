//! Channel packets and unreliable messages: read or refused, bounded, and written back the same;
//! and what receivers make of them stays within their memory.

use std::time::{Duration, Instant};

use encap::channel::incoming::{Credit, IncomingMessages, IncomingStream, Memory};
use encap::wire::channel::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};
use encap::wire::channel::{
    Ack, ChannelId, Frame, Frames, MAX_ACK_RANGES, MAX_MESSAGE_LEN, MAX_NAME_LEN, MAX_PRIORITY,
    Opener, PACKET_HEADER_LEN, PacketHeader, write_ack,
};

/// Credit of a receiver in bytes: large enough for several messages, small enough to be run out of.
const WINDOW: u64 = 32 << 10;

/// The same bytes as a channel packet and as an unreliable message.
pub fn channel(data: &[u8]) {
    match PacketHeader::read(data) {
        Ok((header, frames)) => {
            assert_eq!(header.write(), data[..PACKET_HEADER_LEN]);
            packet(frames.clone(), &data[PACKET_HEADER_LEN..]);
            receive(frames);
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

/// The frames as of one channel, whichever they name, to a receiver of each mode.
fn receive(frames: Frames<'_>) {
    let (now, mut memory) = (Instant::now(), Memory::new(64 << 20));
    let mut credit = || Credit::new(now, WINDOW, WINDOW * 2, &mut memory);
    let (a, b, c) = (credit(), credit(), credit());
    let channel = ChannelId { number: 0, opener: Opener::Receiver };
    let mut stream = IncomingStream::new(channel, a);
    let mut messages =
        [IncomingMessages::new(channel, true, b), IncomingMessages::new(channel, false, c)];
    let mut next = 0;
    for frame in frames.flatten() {
        if let Frame::Stream(bytes) = frame {
            // A fault leaves all as it was.
            let _ = stream.on_stream(&bytes);
        }
        if let Frame::Return { total, .. } = frame {
            let _ = stream.on_return(total, &mut memory);
        }
        for to in &mut messages {
            let _ = match frame {
                Frame::Message(message) => to.on_message(&message),
                Frame::Expired { id, total, .. } => to.on_expired(id, total, &mut memory),
                Frame::Close { count, .. } => to.on_close(count),
                Frame::Blocked { number, at, .. } => {
                    to.on_blocked(number, at);
                    Ok(())
                }
                Frame::Return { total, .. } => to.on_return(total, &mut memory),
                Frame::Recall { .. } => {
                    to.look();
                    Ok(())
                }
                _ => Ok(()),
            };
        }
        let held: usize = messages.iter().map(IncomingMessages::memory).sum();
        // A block at each end of the stream is not full.
        let blocks = stream.memory().saturating_sub(32 << 10);
        assert!((held + blocks) as u64 <= memory.booked());
        // PING stands for a program that reads, and for credit that is sent.
        if frame == Frame::Ping {
            stream.consume(usize::MAX, &mut memory);
            stream.next_frame(now, Duration::ZERO, &mut memory);
            let [ordered, unordered] = &mut messages;
            while let Some(delivery) = ordered.next_message(&mut memory) {
                assert!(delivery.id >= next, "ordered messages come in order");
                next = delivery.id + 1;
            }
            unordered.next_message(&mut memory);
            for to in &mut messages {
                to.next_frame(now, Duration::ZERO, &mut memory);
            }
        }
    }
    assert!(memory.booked() <= 6 * WINDOW);
    stream.close(&mut memory);
    messages.into_iter().for_each(|to| to.close(&mut memory));
    assert_eq!(memory.booked(), 0);
}
