//! The decoders: any bytes are read or refused, and what was read is written back the same.

use std::sync::Arc;

use encap::compress::{Compressed, Compressor, Decompressor, Level};
use encap::crypto::key::ClusterKey;
use encap::forward::filter;
use encap::handshake::features::Features;
use encap::handshake::hello::{Hello, Welcome};
use encap::wire::buf::Checksum;
use encap::wire::bundle::{self, MAX_ENTRIES, MIN_ENTRIES, MIN_FRAME_LEN};
use encap::wire::checksum::{
    TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, complete_checksum, derive_partial,
};
use encap::wire::control::{BINDING_LEN, Binding, Bindings, MAX_BINDINGS_PER_PART, Message};
use encap::wire::ethernet::{
    ETHERNET_HEADER_LEN, EtherType, EthernetView, MAX_VLAN_TAGS, VLAN_TAG_LEN,
};
use encap::wire::header::{
    CLEAR_HEADER_LEN, DataHeader, Format, Handle, InnerHeader, Kind, Slot, UnknownKind,
};
use encap::wire::long::{INITIATION_LEN, LONG_HEADER_LEN, LongError, LongHeader, Type, VERSION};

/// Clear and sealed header: the fields are the bits that the format says, and write back.
pub fn header(data: &[u8]) {
    let rest = match data.split_first_chunk::<CLEAR_HEADER_LEN>() {
        Some((clear, rest)) => {
            clear_header(clear);
            rest
        }
        None => data,
    };
    if let Some(inner) = rest.first_chunk() {
        inner_header(*inner);
    }
}

fn clear_header(bytes: &[u8; CLEAR_HEADER_LEN]) {
    let header = DataHeader::read(bytes);
    assert_eq!(header.write(), *bytes);
    // The same fields, cut out of one big-endian number.
    let word = u64::from_be_bytes(*bytes);
    let format = [Format::Long, Format::Sealed, Format::Clear, Format::Reserved];
    assert_eq!(header.format, format[(word >> 62) as usize]);
    assert_eq!(u64::from(header.epoch_bits), word >> 60 & 3);
    assert_eq!(u64::from(header.slot.0), word >> 40 & 0x000f_ffff);
    assert!(header.slot.0 < Slot::COUNT);
    assert_eq!(u64::from(header.lane.0), word >> 32 & 0xff);
    assert_eq!(u64::from(header.lane.bucket()), word >> 36 & 0xf);
    assert_eq!(u64::from(header.sequence), word & 0xffff_ffff);
}

fn inner_header(bytes: [u8; 2]) {
    let word = u16::from_be_bytes(bytes);
    match InnerHeader::read(bytes) {
        Ok(inner) => {
            assert_eq!(inner.write(), bytes);
            assert_eq!(Handle::new(word & Handle::MAX), Some(inner.handle));
            let kinds = [
                Kind::Frame,
                Kind::FrameWithVni,
                Kind::Fragment,
                Kind::Bundle,
                Kind::Channel,
                Kind::Control,
                Kind::Probe,
                Kind::Unreliable,
                Kind::FramePartialChecksum,
                Kind::Compressed,
            ];
            assert!(kinds.iter().any(|kind| *kind == inner.kind && *kind as u16 == word >> 12));
        }
        Err(UnknownKind(code)) => {
            assert_eq!(u16::from(code), word >> 12);
            assert!(![0, 1, 2, 3, 4, 5, 7, 8, 9, 10].contains(&code));
        }
    }
}

/// Long header: read, authenticate, write, prologue.
pub fn long_header(data: &[u8]) {
    let key = ClusterKey::new([7; 32]);
    let read = LongHeader::read(data);
    let authentic = LongHeader::authenticate(data, &key);
    let header = match read {
        Ok(header) => header,
        Err(LongError::Type) => {
            assert!(!data.is_empty() && Type::of(data[0]).is_none());
            return;
        }
        Err(LongError::Version(version, highest)) => {
            assert_eq!((data[1], data[2]), (version, highest));
            assert_ne!(version, VERSION);
            return;
        }
        Err(LongError::Length) => {
            assert!(data.len() != INITIATION_LEN || Type::of(data[0]) != Some(Type::Initiation));
            return;
        }
    };
    assert!((LONG_HEADER_LEN..=INITIATION_LEN).contains(&data.len()));

    // All fields but the reserved byte, which a sender of ours leaves zero, and the MAC.
    let written = header.write(&key);
    assert_eq!(written[..3], data[..3]);
    assert_eq!(written[4..36], data[4..36]);
    let mut again = data.to_vec();
    again[..LONG_HEADER_LEN].copy_from_slice(&written);
    assert_eq!(LongHeader::read(&again), Ok(header));
    assert!(LongHeader::authenticate(&again, &key));
    assert!(!LongHeader::authenticate(&again, &ClusterKey::new([8; 32])));
    if data[3] == 0 {
        assert_eq!(authentic, data[..LONG_HEADER_LEN] == written);
    }
    // The MAC covers every byte of the header; which one is tried is for the data to say.
    let at = data.iter().fold(0, |sum: usize, byte| sum + usize::from(*byte)) % LONG_HEADER_LEN;
    again[at] ^= 1;
    assert!(!LongHeader::authenticate(&again, &key));

    // The prologue binds version, key and token; a cookie may be filled in later.
    let expected = [&b"tapd1"[..], &data[1..2], &data[4..20]].concat();
    assert_eq!(header.prologue(), expected);
}

/// Ethernet view, link-local filter, and the place and value of a partial checksum.
pub fn frame_view(data: &[u8]) {
    let derived = derive_partial(data);
    match EthernetView::new(data) {
        Ok(view) => {
            view_is_inside(data, &view);
            filter_agrees(&view);
            if let Some(Checksum::Partial { start, offset }) = derived {
                place_is_sane(data, &view, start, offset);
                completes(data, start, offset);
            }
        }
        Err(_) => {
            assert!(data.len() < ETHERNET_HEADER_LEN + MAX_VLAN_TAGS * VLAN_TAG_LEN);
            assert_eq!(derived, None);
        }
    }
    assert_ne!(derived, Some(Checksum::Complete));
    // A place that some device named: inside or refused.
    if let Some(&[a, b, c, d]) = data.last_chunk() {
        completes(data, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        completes(data, u16::from(b), u16::from(d));
    }
}

fn view_is_inside(data: &[u8], view: &EthernetView<'_>) {
    assert_eq!(view.destination().0, data[..6]);
    assert_eq!(view.source().0, data[6..12]);
    assert!(view.vlan_tags() <= MAX_VLAN_TAGS);
    let offset = ETHERNET_HEADER_LEN + VLAN_TAG_LEN * view.vlan_tags();
    assert_eq!(view.payload_offset(), offset);
    assert_eq!(view.payload(), &data[offset..]);
    assert_eq!(view.ether_type().0.to_be_bytes(), data[offset - 2..offset]);
    let tags = [EtherType::C_TAG, EtherType::S_TAG, EtherType::OLD_S_TAG];
    // Every tag that was looked through is one, and none is left within the limit.
    for tag in 0..view.vlan_tags() {
        let at = ETHERNET_HEADER_LEN - 2 + VLAN_TAG_LEN * tag;
        assert!(tags.contains(&EtherType(u16::from_be_bytes([data[at], data[at + 1]]))));
    }
    assert!(view.vlan_tags() == MAX_VLAN_TAGS || !tags.contains(&view.ether_type()));
}

fn filter_agrees(view: &EthernetView<'_>) {
    let to = view.destination().0;
    let pause = view.ether_type() == EtherType::MAC_CONTROL;
    let link_local = to[..5] == [0x01, 0x80, 0xc2, 0, 0] && to[5] < 0x10;
    let bpdu = link_local && (to[5] == 0 || to[5] == 8);
    assert_eq!(filter::passes(view, false), !pause && !link_local);
    assert_eq!(filter::passes(view, true), !pause && (!link_local || bpdu));
}

fn place_is_sane(data: &[u8], view: &EthernetView<'_>, start: u16, offset: u16) {
    assert!([TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET].contains(&offset));
    let least = if view.ether_type() == EtherType::IPV4 { 20 } else { 40 };
    assert!([EtherType::IPV4, EtherType::IPV6].contains(&view.ether_type()));
    assert!(usize::from(start) >= view.payload_offset() + least);
    let end = usize::from(start) + usize::from(offset) + 2;
    assert!(end <= data.len());
    // The place does not depend on what follows it, and is never half outside.
    assert_eq!(derive_partial(&data[..end]), Some(Checksum::Partial { start, offset }));
    assert_eq!(derive_partial(&data[..end - 1]), None);
}

fn completes(data: &[u8], start: u16, offset: u16) {
    let mut frame = data.to_vec();
    let (from, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    if complete_checksum(&mut frame, start, offset).is_err() {
        assert!(at + 2 > data.len());
        assert_eq!(frame, data);
        return;
    }
    assert_eq!(frame[..at], data[..at]);
    assert_eq!(frame[at + 2..], data[at + 2..]);
    // By the book, when the field is one of the words that are summed.
    if offset.is_multiple_of(2) {
        let stored = u16::from_be_bytes([frame[at], frame[at + 1]]);
        let sum = !by_the_book(&data[from..]);
        let zero_is_none = sum == 0 && offset == UDP_CHECKSUM_OFFSET;
        assert_eq!(stored, if zero_is_none { 0xffff } else { sum });
    }
}

/// RFC 1071, one 16-bit word at a time.
fn by_the_book(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    words.fold(0_u32, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    }) as u16
}

/// The frames of a bundle are all of it, and write back the same.
pub fn bundle(data: &[u8]) {
    let Ok(entries) = bundle::entries(data) else { return };
    let (mut written, mut count) = (Vec::new(), 0);
    for (range, partial) in entries {
        assert!(range.len() >= MIN_FRAME_LEN);
        written.extend(bundle::entry_header(range.len(), partial));
        written.extend(&data[range]);
        count += 1;
    }
    assert!((MIN_ENTRIES..=MAX_ENTRIES).contains(&count));
    assert_eq!(written, data);
}

/// Whatever a compressed payload says, the decoder writes where it may and nowhere else; and what it
/// made can be compressed and read again.
pub fn compressed(data: &[u8]) {
    const BEHIND: usize = 32;
    let Ok(payload) = Compressed::read(data) else { return };
    let mut memory = vec![0xee; payload.len() + BEHIND];
    let (out, behind) = memory.split_at_mut(payload.len());
    let mut decompressor = Decompressor::new(Arc::default()).unwrap();
    let outcome = decompressor.decompress(&payload, out);
    assert!(behind.iter().all(|byte| *byte == 0xee));
    if outcome.is_err() {
        return;
    }
    let (mut again, mut other) = (Vec::new(), vec![0; out.len()]);
    let mut compressor = Compressor::new(Arc::default());
    if compressor.try_compress(Level::default(), 1, payload.inner(), out, &mut again) {
        let payload = Compressed::read(&again).unwrap();
        assert_eq!(decompressor.decompress(&payload, &mut other), Ok(()));
        assert_eq!(other, out);
    }
}

/// Control messages round-trip, and a list of networks survives being sliced.
pub fn control(data: &[u8]) {
    let Ok(messages) = Message::read_all(data) else { return };
    assert!(messages.len() * 3 <= data.len());
    let mut payload = Vec::new();
    messages.iter().for_each(|message| message.write(&mut payload));
    // Unknown types and surplus bytes of a body are left out.
    assert!(payload.len() <= data.len());
    assert_eq!(Message::read_all(&payload).as_ref(), Ok(&messages));
    let mut networks = Vec::new();
    for message in messages {
        if let Message::Bindings(bindings) = message {
            bindings_are_sane(&bindings);
            networks.extend(bindings.entries);
        }
    }
    slices_join(&networks);
}

fn bindings_are_sane(bindings: &Bindings) {
    assert!(bindings.part < bindings.parts);
    assert!(bindings.entries.len() <= MAX_BINDINGS_PER_PART);
    assert!(bindings.entries.iter().all(|entry| entry.handle != Handle::NONE));
}

fn slices_join(networks: &[Binding]) {
    let slices = Bindings::split(9, networks);
    let mut joined = Vec::new();
    for (part, slice) in slices.iter().enumerate() {
        bindings_are_sane(slice);
        assert_eq!((usize::from(slice.part), usize::from(slice.parts)), (part, slices.len()));
        let mut payload = Vec::new();
        Message::Bindings(slice.clone()).write(&mut payload);
        assert_eq!(payload.len(), 3 + 8 + BINDING_LEN * slice.entries.len());
        joined.extend_from_slice(&slice.entries);
    }
    assert_eq!(joined, networks);
}

/// The handshake's payloads round-trip; the padding behind them does not matter.
pub fn hello(data: &[u8]) {
    if let Ok(hello) = Hello::read(data) {
        assert!(hello.slot.0 < Slot::COUNT);
        bindings_are_sane(&hello.bindings);
        let exact = hello.write(0);
        assert_eq!(Hello::read(&exact).as_ref(), Ok(&hello));
        // Whoever has no features need not say so.
        let without = exact.len() - 4;
        assert!(without <= data.len());
        let none = Features::NONE;
        assert_eq!(Hello::read(&exact[..without]).map(|hello| hello.features), Ok(none));
        assert!(exact.len() <= data.len() || hello.features == none);
        assert!(Hello::read(&exact[..without - 1]).is_err());
        let len = exact.len().max(data.len()) + 1;
        let padded = hello.write(len);
        assert_eq!(padded.len(), len);
        assert_eq!(Hello::read(&padded), Ok(hello));
    }
    if let Ok(welcome) = Welcome::read(data) {
        assert!(welcome.slot.0 < Slot::COUNT);
        bindings_are_sane(&welcome.bindings);
        let exact = welcome.write();
        let without = exact.len() - 4;
        assert_eq!(exact[..without], data[..without]);
        assert!(
            exact[..] == data[..exact.len().min(data.len())] || welcome.features == Features::NONE
        );
        assert_eq!(Welcome::read(&exact), Ok(welcome));
        assert!(Welcome::read(&exact[..without - 1]).is_err());
    }
}
