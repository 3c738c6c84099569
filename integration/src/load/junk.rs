//! Hostile datagrams: random bytes, replays of a capture, mutations of a capture.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::PacketBuilder;
use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns;
use crate::stats::Random;
use crate::sys::{self, MAX_BATCH};

/// Longest random payload in bytes: fits an underlay MTU of 1500 with IPv4 and UDP.
const MAX_RANDOM: usize = 1472;

/// What the datagrams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Random bytes of random length.
    Random,
    /// Exact copies of captured payloads.
    Replay,
    /// Captured payloads with bits flipped, bytes cut off or added, or headers spliced.
    Mutate,
    /// A third of each.
    Mix,
}

/// A stream of hostile datagrams.
#[derive(Debug, Clone)]
pub struct Junk {
    /// What they are.
    pub kind: Kind,
    /// Source address on the packets, true or not. IPv4 only.
    pub source: (Ipv4Addr, u16),
    /// Where they go. IPv4 only.
    pub destination: (Ipv4Addr, u16),
    /// Datagrams per second.
    pub rate: f64,
    /// How many in all.
    pub count: u64,
    /// Repeats a run.
    pub seed: u64,
    /// Captured payloads; may be empty for [`Kind::Random`] only.
    pub material: Vec<Vec<u8>>,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sent {
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Junk {
    /// Sends all of them from inside `netns` through a raw socket, which can carry any source.
    ///
    /// # Errors
    /// The raw socket cannot be had or fails, or there is no material.
    pub fn send(&self, netns: &File) -> Result<Sent> {
        ensure!(
            self.kind == Kind::Random || !self.material.is_empty(),
            "{:?} needs captured payloads",
            self.kind
        );
        let socket = netns::enter(netns, || {
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
                .context("opening a raw socket")
        })?;
        sys::force_send_buffer(socket.as_fd(), 4 << 20)?;
        sys::sharpen_timers();
        let address: SockAddr = SocketAddr::new(IpAddr::V4(self.destination.0), 0).into();
        let mut random = Random::new(self.seed);
        let mut packets: Vec<Vec<u8>> = Vec::with_capacity(MAX_BATCH);
        let start = Instant::now();
        let mut sent = 0;
        while sent < self.count {
            let due = (start.elapsed().as_secs_f64() * self.rate) as u64 + 1;
            let batch = due.saturating_sub(sent).min(self.count - sent).min(MAX_BATCH as u64);
            if batch == 0 {
                // Pacing is the purpose here.
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            packets.clear();
            for _ in 0..batch {
                packets.push(self.packet(&self.payload(&mut random))?);
            }
            let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
            match sys::send_batch(socket.as_fd(), &slices, Some(&address)) {
                Ok(count) => sent += count as u64,
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => bail!("sending junk: {e}"),
            }
        }
        Ok(Sent { sent, seconds: start.elapsed().as_secs_f64() })
    }

    /// The next payload.
    fn payload(&self, random: &mut Random) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Mix => [Kind::Random, Kind::Replay, Kind::Mutate][random.below(3)],
            kind => kind,
        };
        if kind == Kind::Random || self.material.is_empty() {
            let mut bytes = vec![0; random.below(MAX_RANDOM + 1)];
            random.fill(&mut bytes);
            return bytes;
        }
        let original = &self.material[random.below(self.material.len())];
        if kind == Kind::Replay {
            original.clone()
        } else {
            mutate(original, &self.material, random)
        }
    }

    /// The whole IPv4 packet around a payload.
    fn packet(&self, payload: &[u8]) -> Result<Vec<u8>> {
        let builder = PacketBuilder::ipv4(self.source.0.octets(), self.destination.0.octets(), 64)
            .udp(self.source.1, self.destination.1);
        let mut packet = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut packet, payload)?;
        Ok(packet)
    }
}

/// Longest payload that is made longer: the underlay of the tests takes 1452 bytes and more.
const LONGEST: usize = 1400;

/// A payload that differs from `original` in one of the ways that an attacker would try.
fn mutate(original: &[u8], material: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    match random.below(5) {
        // Cut short, possibly to nothing.
        0 => bytes.truncate(random.below(original.len())),
        // Made longer, but for what fills the path already.
        1 if bytes.len() <= LONGEST => {
            bytes.extend((0..=random.below(16)).map(|i| i as u8));
        }
        // A later sequence number on an old body: bytes 4 to 7 of the clear header.
        2 if bytes.len() > 8 => {
            bytes[4..8].copy_from_slice(&(random.next_u64() as u32).to_be_bytes());
        }
        // The header of one on the body of another.
        3 if bytes.len() > 8 => {
            let other = &material[random.below(material.len())];
            let header = other.len().min(8);
            bytes[..header].copy_from_slice(&other[..header]);
        }
        _ => flip_bits(&mut bytes, random),
    }
    if bytes == original {
        flip_bits(&mut bytes, random);
    }
    bytes
}

/// Flips 1 to 8 bits, never the same one twice.
fn flip_bits(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(random.next_u64() as u8);
        return;
    }
    let first = random.below(bytes.len() * 8);
    for i in 0..=random.below(8) {
        let bit = (first + i * 7) % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if i + 1 >= bytes.len() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn junk(kind: Kind) -> Junk {
        Junk {
            kind,
            source: (Ipv4Addr::LOCALHOST, 26026),
            destination: (Ipv4Addr::LOCALHOST, 26026),
            rate: 1.0,
            count: 1,
            seed: 1,
            material: vec![vec![0x41; 40], (0..90).collect(), vec![7]],
        }
    }

    #[test]
    fn a_mutation_is_never_the_original() {
        let junk = junk(Kind::Mutate);
        let mut random = Random::new(7);
        for _ in 0..20_000 {
            let payload = junk.payload(&mut random);
            assert!(!junk.material.contains(&payload), "{payload:?}");
        }
    }

    #[test]
    fn a_replay_is_always_an_original() {
        let junk = junk(Kind::Replay);
        let mut random = Random::new(7);
        for _ in 0..100 {
            assert!(junk.material.contains(&junk.payload(&mut random)));
        }
    }

    #[test]
    fn packets_carry_the_source_that_was_asked() {
        let packet = junk(Kind::Random).packet(&[1, 2, 3]).unwrap();
        assert_eq!(packet.len(), 20 + 8 + 3);
        assert_eq!(&packet[20..24], &[0x65, 0xaa, 0x65, 0xaa]);
    }
}
