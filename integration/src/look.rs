//! A look at both sides of a daemon at once: what its tap sees and what the cable sees.
//!
//! Segmentation offload must be off on the underlay interface (any [`Offloads`] but
//! `Superpacket`), or a capture shows several datagrams as one.
//!
//! [`Offloads`]: crate::topology::Offloads

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use crate::capture::{Capture, CapturedDatagram, datagrams};
use crate::netns::Netns;
use crate::traffic::ping;

/// What a tapd datagram has above UDP beyond its frame.
pub const SEALED_OVERHEAD: usize = 26;

/// A frame and the datagram that carried it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Bytes of the frame, Ethernet header included.
    pub frame: usize,
    /// Bytes of the UDP payload.
    pub datagram: usize,
}

impl Carried {
    /// What the datagram has beyond the frame.
    #[must_use]
    pub fn overhead(self) -> usize {
        self.datagram - self.frame
    }
}

/// Pings across with the given payload sizes and pairs each echo request seen on the overlay
/// interface with the shortest data datagram on the underlay interface that could hold it. The
/// sizes must lie further apart than any overhead.
///
/// # Errors
/// A ping got no answer, or a frame has no datagram.
pub fn overheads(
    netns: &Netns,
    overlay: &str,
    underlay: &str,
    to: IpAddr,
    payloads: &[u32],
) -> Result<Vec<Carried>> {
    // An ICMP echo request over IPv4: type 8 behind a header without options.
    let frames = Capture::start(netns, overlay, "icmp[icmptype] == icmp-echo")?;
    let wire = Capture::start(netns, underlay, "udp")?;
    for &payload in payloads {
        let report = ping(netns, to, 1, payload)?;
        ensure!(report.received == 1, "no answer to a ping of {payload} bytes");
    }
    let last = payloads.iter().max().copied().unwrap_or(0) as usize;
    let patience = Duration::from_secs(3);
    let frames = frames.finish_after("the longest ping", patience, |packet| packet.len() > last)?;
    let wire = wire.finish_after("the longest datagram", patience, |packet| packet.len() > last)?;
    pair(&frames, &datagrams(&wire))
}

fn pair(frames: &[Vec<u8>], wire: &[CapturedDatagram]) -> Result<Vec<Carried>> {
    let mut lengths: Vec<usize> =
        wire.iter().filter(|d| d.is_sealed_frame()).map(|d| d.payload.len()).collect();
    lengths.sort_unstable();
    frames
        .iter()
        .map(|frame| {
            let datagram =
                lengths.iter().copied().find(|&length| length >= frame.len()).ok_or_else(|| {
                    anyhow!("no datagram holds the frame of {} bytes", frame.len())
                })?;
            Ok(Carried { frame: frame.len(), datagram })
        })
        .collect()
}

/// What both sides saw while a text was sent.
#[derive(Debug)]
pub struct BothSides {
    /// Packets on the tap that belong to the text's flow.
    pub tap: Vec<Vec<u8>>,
    /// All packets on the cable.
    pub cable: Vec<Vec<u8>>,
}

/// Sends `text` `count` times in UDP from one overlay address to another (port 9999), then a
/// longer end mark by which both captures are known to be complete.
///
/// # Errors
/// The text cannot be sent, or the end mark does not show on both sides.
pub fn send_text(
    netns: &Netns,
    overlay: &str,
    underlay: &str,
    ends: (IpAddr, IpAddr),
    text: &[u8],
    count: usize,
) -> Result<BothSides> {
    const END_MARK: usize = 1000;
    let tap = Capture::start(netns, overlay, "udp port 9999")?;
    let cable = Capture::start(netns, underlay, "")?;
    let (from, to) = ends;
    netns.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
        for _ in 0..count {
            socket.send_to(text, (to, 9999))?;
        }
        socket.send_to(&[0; END_MARK], (to, 9999))?;
        Ok(())
    })?;
    let patience = Duration::from_secs(3);
    let is_mark = |packet: &[u8]| packet.len() > END_MARK;
    Ok(BothSides {
        tap: tap.finish_after("the end mark on the tap", patience, is_mark)?,
        cable: cable.finish_after("the end mark on the cable", patience, is_mark)?,
    })
}

/// How many of the packets hold `needle` somewhere.
#[must_use]
pub fn packets_with(packets: &[Vec<u8>], needle: &[u8]) -> usize {
    let holds = |packet: &&Vec<u8>| packet.windows(needle.len()).any(|window| window == needle);
    packets.iter().filter(holds).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(first_byte: u8, length: usize) -> CapturedDatagram {
        let localhost = IpAddr::from([127, 0, 0, 1]);
        let mut payload = vec![0; length];
        payload[0] = first_byte;
        CapturedDatagram {
            source: localhost,
            source_port: 1,
            destination: localhost,
            destination_port: 2,
            payload,
        }
    }

    #[test]
    fn finds_a_needle_anywhere() {
        let packets = [b"xxneedle".to_vec(), b"needlexx".to_vec(), b"need".to_vec(), Vec::new()];
        assert_eq!(packets_with(&packets, b"needle"), 2);
    }

    #[test]
    fn pairs_with_the_shortest_data_datagram() {
        let wire = [datagram(0x40, 600), datagram(0x20, 101), datagram(0x41, 128)];
        let paired = pair(&[vec![0; 100]], &wire).unwrap();
        assert_eq!(paired, [Carried { frame: 100, datagram: 128 }]);
        assert!(pair(&[vec![0; 700]], &wire).is_err());
    }
}
