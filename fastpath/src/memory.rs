//! Ports in memory: two ends of a cable, with faults from a seed. No clock, no descriptor.
//!
//! The same seed and the same calls give the same faults.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use encap::wire::buf::{
    BufPool, Burst, Checksum, FrameBurst, Offload, OutFrame, PacketBuf, Pieces, Received, Transmit,
    UplinkId,
};

use crate::port::{
    DatagramCapabilities, DatagramPort, FrameCapabilities, FramePort, MAX_BURST, TxReport,
};

/// What goes wrong on a cable, each in packets of a thousand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Never arrive.
    pub drop: u16,
    /// Arrive twice.
    pub duplicate: u16,
    /// Arrive with one bit flipped.
    pub corrupt: u16,
    /// Arrive behind the packet that was sent after them.
    pub reorder: u16,
}

/// Marsaglia's xorshift64: plain, and the same everywhere.
#[derive(Debug)]
struct Xorshift(u64);

impl Xorshift {
    fn new(seed: u64) -> Self {
        // 0 is the one state that it never leaves.
        Self(if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed })
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    fn hits(&mut self, of_a_thousand: u16) -> bool {
        self.below(1000) < u64::from(of_a_thousand)
    }
}

/// A packet on the way, and what its receiver has to know besides its bytes.
#[derive(Debug, Clone)]
struct InFlight<T> {
    data: Vec<u8>,
    note: T,
}

/// One direction of a cable.
#[derive(Debug)]
struct Wire<T> {
    faults: Faults,
    random: Xorshift,
    queue: VecDeque<InFlight<T>>,
    /// Waits for the next packet to overtake it.
    held: Option<InFlight<T>>,
}

impl<T: Clone> Wire<T> {
    fn new(faults: Faults, seed: u64) -> Arc<Mutex<Self>> {
        let random = Xorshift::new(seed);
        Arc::new(Mutex::new(Self { faults, random, queue: VecDeque::new(), held: None }))
    }

    fn send(&mut self, data: &[u8], note: T) {
        if self.random.hits(self.faults.drop) {
            return;
        }
        let mut packet = InFlight { data: data.to_vec(), note };
        if self.random.hits(self.faults.corrupt) {
            let bit = self.random.below(8 * packet.data.len() as u64);
            if let Some(byte) = packet.data.get_mut(bit as usize / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
        if self.random.hits(self.faults.duplicate) {
            self.queue.push_back(packet.clone());
        }
        if self.held.is_none() && self.random.hits(self.faults.reorder) {
            self.held = Some(packet);
            return;
        }
        self.queue.push_back(packet);
        self.queue.extend(self.held.take());
    }

    fn receive(&mut self) -> Option<InFlight<T>> {
        self.queue.pop_front().or_else(|| self.held.take())
    }
}

fn with<T, R>(wire: &Mutex<Wire<T>>, act: impl FnOnce(&mut Wire<T>) -> R) -> R {
    act(&mut wire.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Copies `data` into a buffer of `pool`; None if it does not fit.
fn fill(pool: &mut BufPool, data: &[u8]) -> Option<PacketBuf> {
    let mut buf = pool.alloc();
    match buf.spare_mut().get_mut(..data.len()) {
        Some(room) => {
            room.copy_from_slice(data);
            buf.set_len(data.len());
            Some(buf)
        }
        None => {
            pool.free(buf);
            None
        }
    }
}

/// One end of a cable that carries frames.
#[derive(Debug)]
pub struct MemoryFramePort {
    rx: Arc<Mutex<Wire<Checksum>>>,
    tx: Arc<Mutex<Wire<Checksum>>>,
    max_frame_len: usize,
}

/// A cable for frames of at most `max_frame_len` bytes, with the same faults in each direction.
#[must_use]
pub fn frame_cable(
    max_frame_len: usize,
    faults: Faults,
    seed: u64,
) -> (MemoryFramePort, MemoryFramePort) {
    let (ab, ba) = (Wire::new(faults, seed), Wire::new(faults, !seed));
    let a = MemoryFramePort { rx: Arc::clone(&ba), tx: Arc::clone(&ab), max_frame_len };
    (a, MemoryFramePort { rx: ab, tx: ba, max_frame_len })
}

impl FramePort for MemoryFramePort {
    fn rx_burst(&mut self, frames: &mut FrameBurst) -> io::Result<()> {
        while frames.room().len() >= self.max_frame_len {
            let Some(packet) = with(&self.rx, Wire::receive) else { break };
            let offload = Offload { checksum: packet.note, segmentation: None };
            frames.push_slice(&packet.data, offload);
        }
        Ok(())
    }

    fn tx_burst(&mut self, pieces: &mut Pieces, frames: &[OutFrame]) -> TxReport {
        let mut report = TxReport::default();
        for frame in frames {
            let bytes = pieces.get(frame.span);
            if bytes.len() > self.max_frame_len {
                report.too_large += 1;
            } else {
                with(&self.tx, |wire| wire.send(bytes, frame.checksum));
                report.sent += 1;
            }
        }
        report
    }

    fn capabilities(&self) -> FrameCapabilities {
        FrameCapabilities { max_frame_len: self.max_frame_len, tx_partial_checksum: true }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

/// One end of a cable that carries datagrams.
#[derive(Debug)]
pub struct MemoryDatagramPort {
    id: UplinkId,
    local: SocketAddr,
    remote: SocketAddr,
    /// Packets with their marks.
    rx: Arc<Mutex<Wire<u8>>>,
    tx: Arc<Mutex<Wire<u8>>>,
    max_udp_payload: usize,
}

/// A cable between two addresses for at most `max_udp_payload` bytes, with the same faults in
/// each direction. What is sent to any other address fails.
#[must_use]
pub fn datagram_cable(
    [a, b]: [(UplinkId, SocketAddr); 2],
    max_udp_payload: usize,
    faults: Faults,
    seed: u64,
) -> (MemoryDatagramPort, MemoryDatagramPort) {
    let (ab, ba) = (Wire::new(faults, seed), Wire::new(faults, !seed));
    let end = |here: (UplinkId, SocketAddr), there: (UplinkId, SocketAddr), rx, tx| {
        MemoryDatagramPort { id: here.0, local: here.1, remote: there.1, rx, tx, max_udp_payload }
    };
    (end(a, b, Arc::clone(&ba), Arc::clone(&ab)), end(b, a, ab, ba))
}

impl MemoryDatagramPort {
    /// The address of this end.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

impl DatagramPort for MemoryDatagramPort {
    fn rx_burst(&mut self, pool: &mut BufPool, received: &mut Burst<Received>) -> io::Result<()> {
        for _ in 0..MAX_BURST {
            let Some(packet) = with(&self.rx, Wire::receive) else { break };
            if let Some(buf) = fill(pool, &packet.data) {
                received.push(Received::single(buf, self.id, self.remote, packet.note));
            }
        }
        Ok(())
    }

    fn tx_burst(&mut self, memory: &[u8], transmits: &[Transmit]) -> TxReport {
        let mut report = TxReport::default();
        for transmit in transmits {
            let bytes = memory.get(transmit.range.clone()).unwrap_or_default();
            for datagram in bytes.chunks(transmit.segment_size.max(1)) {
                if transmit.remote != self.remote {
                    report.failed += 1;
                } else if datagram.len() > self.max_udp_payload {
                    report.too_large += 1;
                } else {
                    with(&self.tx, |wire| wire.send(datagram, transmit.mark));
                    report.sent += 1;
                }
            }
        }
        report
    }

    fn capabilities(&self) -> DatagramCapabilities {
        DatagramCapabilities { max_udp_payload: self.max_udp_payload }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use encap::wire::buf::Span;

    /// Sends `count` numbered frames through a cable and returns what arrives.
    fn through(faults: Faults, seed: u64, count: u16) -> Vec<Vec<u8>> {
        let (mut a, mut b) = frame_cable(64, faults, seed);
        let mut pieces = Pieces::default();
        let frame = |piece| {
            let span = Span { piece, start: 0, len: 2 };
            OutFrame { span, checksum: Checksum::Complete }
        };
        pieces.0.extend((0..count).map(|n| PacketBuf::from_slice(&n.to_be_bytes())));
        let frames: Vec<_> = (0..usize::from(count)).map(frame).collect();
        assert_eq!(a.tx_burst(&mut pieces, &frames).sent, usize::from(count));
        let (mut burst, mut arrived) = (FrameBurst::new(4096, 8), Vec::new());
        loop {
            burst.clear();
            b.rx_burst(&mut burst).unwrap();
            if burst.is_empty() {
                return arrived;
            }
            arrived.extend(burst.iter().map(|(_, bytes)| bytes.to_vec()));
        }
    }

    fn numbered(count: u16) -> Vec<Vec<u8>> {
        (0..count).map(|n| n.to_be_bytes().to_vec()).collect()
    }

    #[test]
    fn sound_cable_keeps_everything_in_order() {
        assert_eq!(through(Faults::default(), 1, 500), numbered(500));
    }

    #[test]
    fn each_fault_does_what_it_says_and_repeats_with_its_seed() {
        let sent = numbered(1000);
        let run = |faults| {
            let arrived = through(faults, 7, 1000);
            assert_eq!(arrived, through(faults, 7, 1000));
            assert_ne!(arrived, through(faults, 8, 1000));
            arrived
        };
        let dropped = run(Faults { drop: 300, ..Faults::default() });
        assert!((600..800).contains(&dropped.len()), "{}", dropped.len());

        let doubled = run(Faults { duplicate: 300, ..Faults::default() });
        assert!((1200..1400).contains(&doubled.len()), "{}", doubled.len());

        let mut reordered = run(Faults { reorder: 300, ..Faults::default() });
        assert_ne!(reordered, sent);
        reordered.sort();
        assert_eq!(reordered, sent);

        let corrupted = run(Faults { corrupt: 1000, ..Faults::default() });
        for (got, sent) in corrupted.iter().zip(&sent) {
            let bits: u32 = got.iter().zip(sent).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(bits, 1);
        }
    }

    #[test]
    fn last_packet_is_not_held_for_ever() {
        let always = Faults { reorder: 1000, ..Faults::default() };
        assert_eq!(through(always, 3, 1), numbered(1));
    }

    #[test]
    fn datagrams_know_where_they_come_from_and_limits_hold() {
        let a_address = "192.0.2.1:1".parse().unwrap();
        let b_address = "192.0.2.2:2".parse().unwrap();
        let ends = [(UplinkId(1), a_address), (UplinkId(2), b_address)];
        let (mut a, mut b) = datagram_cable(ends, 4, Faults::default(), 1);
        let mut pool = BufPool::new(64, 8);
        let run = |range, segment_size, remote| {
            let uplink = UplinkId(1);
            Transmit { range, segment_size, uplink, remote, mark: 0xb8 }
        };
        let runs = [run(0..9, 5, b_address), run(9..13, 4, a_address)];
        let report = a.tx_burst(b"fivesfourlost", &runs);
        assert_eq!(report, TxReport { sent: 1, too_large: 1, failed: 1, no_room: 0 });
        let mut burst = Vec::new();
        b.rx_burst(&mut pool, &mut burst).unwrap();
        assert_eq!(burst.len(), 1);
        assert_eq!(burst[0].buf.data(), b"four");
        assert_eq!((burst[0].remote, burst[0].uplink), (a_address, UplinkId(2)));
        assert_eq!(burst[0].mark, 0xb8);
    }
}
