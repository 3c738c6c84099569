//! Packets that no node which obeys sends.

use super::super::*;
use super::world::*;
use crate::link::id::LinkIndex;
use crate::wire::channel::{ChannelId, Frame, Message, Opener, PacketHeader, Stream};

fn packet(number: u32, frames: &[Frame<'_>]) -> Vec<u8> {
    let mut bytes = PacketHeader { path: 0, number }.write().to_vec();
    frames.iter().for_each(|frame| frame.write(&mut bytes));
    bytes
}

fn theirs(number: u32) -> ChannelId {
    ChannelId { number, opener: Opener::Sender }
}

fn open(number: u32, mode: Mode, name: &str) -> Frame<'_> {
    let (channel, encoded) = (theirs(number), false);
    Frame::Open { channel, mode, encoded, credit: 1 << 20, messages: 1_000, name }
}

#[test]
fn chan_changed_packets_do_no_harm() {
    for seed in 1..30 {
        let mut world = World::new(2, Weather { delay: MS, ..CALM }, seed);
        let modes = [Mode::Ordered, Mode::Unordered, Mode::Unreliable, Mode::Stream];
        let configs: Vec<_> =
            ["a", "b", "c", "d"].iter().zip(modes).map(|(name, mode)| config(name, mode)).collect();
        world.configure(&configs);
        let mut rng = Rng(seed * 3 + 1);
        let mut seen: Vec<(bool, Vec<u8>)> = Vec::new();
        for round in 0..300_u64 {
            for hub in 0..2 {
                let (now, to) = (world.now, node(1 - hub));
                for key in 1..4 {
                    let options = SendOptions { priority: 3, ttl: Some(MS * 30) };
                    let bytes = body(round, 10 + rng.below(4_000) as usize);
                    drop(world.hubs[hub].send(now, ChannelKey(key), to, options, bytes));
                    while world.hubs[hub].next_message(ChannelKey(key)).is_some() {}
                }
                if let Ok(key) = world.hubs[hub].open_stream(now, ChannelKey(4), to) {
                    world.hubs[hub].write_stream(key, &[1; 3_000]);
                }
                while let Some((key, _)) = world.hubs[hub].accept_stream(now, ChannelKey(4)) {
                    if rng.below(3) == 0 {
                        world.hubs[hub].reset_stream(key, 1);
                    }
                }
                let mut out = Vec::new();
                world.hubs[hub].transmit(now, 20_000, &mut |packet| {
                    let reliable = packet.kind == crate::wire::header::Kind::Channel;
                    out.push((reliable, packet.payload.to_vec()));
                    true
                });
                seen.extend(out);
                for _ in 0..20 {
                    let Some((reliable, mut bytes)) =
                        seen.get(rng.below(seen.len() as u64) as usize).cloned()
                    else {
                        continue;
                    };
                    for _ in 0..rng.below(4) {
                        let at = rng.below(bytes.len() as u64) as usize;
                        bytes[at] ^= 1 << rng.below(8);
                    }
                    // A number that was not there yet, mostly.
                    if rng.below(4) > 0 {
                        bytes[4] = rng.below(256) as u8;
                        bytes[3] = round as u8;
                    }
                    let to = &mut world.hubs[rng.below(2) as usize];
                    let boot = world.boots[usize::from(to.peers.contains_key(&node(1)))];
                    let from = node(usize::from(to.peers.contains_key(&node(1))));
                    let _ = if reliable {
                        to.on_packet(now, from, boot, LinkIndex::FIRST, &bytes, 0)
                    } else {
                        to.on_unreliable(now, from, boot, &bytes)
                    };
                }
            }
            seen.drain(..seen.len().saturating_sub(200));
            world.run_for(MS * 2);
            for hub in &world.hubs {
                for peer in hub.peers.values() {
                    assert!(peer.conduits.len() <= 4_096 && peer.seen.len() <= 4_096);
                    assert!(peer.replies.len() <= 4_096 + 2_048);
                }
            }
        }
    }
}

/// Answers are bounded, and so is what is kept of numbers.
#[test]
fn chan_what_a_hostile_peer_opens_is_bounded() {
    let mut world = World::new(1, CALM, 1);
    world.configure(&[config("s", Mode::Stream), config("m", Mode::Ordered)]);
    world.run_for(MS);
    let (now, boot) = (world.now, world.boots[1]);
    let hub = &mut world.hubs[0];
    let mut refused = 0;
    for number in 0..20_000_u32 {
        let name = if number % 3 == 0 { "s" } else { "nothing" };
        // Each second number is left out.
        let bytes = packet(number, &[open(number * 2, Mode::Stream, name)]);
        refused +=
            u32::from(hub.on_packet(now, node(1), boot, LinkIndex::FIRST, &bytes, 0).is_err());
    }
    let peer = &hub.peers[&node(1)];
    assert!(refused > 10_000);
    assert!(
        peer.conduits.len() <= 4_096 && peer.replies.len() <= 1_024 && peer.seen.len() <= 4_096
    );
    assert!(hub.streams.len() <= 4_096 && hub.memory.booked() <= MIN_RECEIVE_MEMORY * 2);
}

#[test]
fn chan_data_against_the_rules_ends_its_conduit_only() {
    let mut world = World::new(1, CALM, 2);
    world.configure(&[config("m", Mode::Ordered), config("n", Mode::Ordered)]);
    let (now, boot) = (world.now, world.boots[1]);
    let hub = &mut world.hubs[0];
    let both = [open(0, Mode::Ordered, "m"), open(1, Mode::Ordered, "n")];
    assert_eq!(hub.on_packet(now, node(1), boot, LinkIndex::FIRST, &packet(0, &both), 0), Ok(()));
    let message = |channel, id, total| {
        Frame::Message(Message { channel, id, priority: 0, offset: 0, total, bytes: b"1234" })
    };
    let fine = packet(1, &[message(theirs(1), 0, 4)]);
    assert_eq!(hub.on_packet(now, node(1), boot, LinkIndex::FIRST, &fine, 0), Ok(()));
    for (number, bad) in [
        message(theirs(0), 0, 16 << 20),
        message(theirs(9), 0, 4),
        Frame::Stream(Stream { channel: theirs(1), offset: 0, fin: false, bytes: b"1" }),
        Frame::MaxData { channel: ChannelId { number: 3, opener: Opener::Receiver }, limit: 1 },
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = packet(number as u32 + 2, &[bad]);
        let outcome = hub.on_packet(now, node(1), boot, LinkIndex::FIRST, &bytes, 0);
        assert_eq!(outcome, Err(ChannelDrop::Fault), "{number}");
        assert_eq!(
            hub.on_packet(now, node(1), boot, LinkIndex::FIRST, &bytes, 0),
            Err(ChannelDrop::Duplicate)
        );
    }
    // What came before is read all the same.
    assert_eq!(
        hub.next_message(ChannelKey(2)).map(|message| message.bytes),
        Some(b"1234".to_vec())
    );
    assert!(hub.peers[&node(1)].conduits.is_empty());
    assert_eq!(hub.memory.booked(), 0);
    let cut = [0, 0, 0, 0];
    assert_eq!(
        hub.on_packet(now, node(1), boot, LinkIndex::FIRST, &cut, 0),
        Err(ChannelDrop::Malformed)
    );
    assert_eq!(
        hub.on_packet(now, node(2), boot, LinkIndex::FIRST, &fine, 0),
        Err(ChannelDrop::Stale)
    );
}
