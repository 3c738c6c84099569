//! What went over an interface: tcpdump writes it, pcap-file and etherparse read it.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use etherparse::{NetSlice, SlicedPacket, TcpOptionElement, TransportSlice};
use pcap_file::pcap::PcapReader;
use tempfile::TempDir;

use crate::command::Running;
use crate::netns::Netns;
use crate::wait;

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    running: Running,
    dir: TempDir,
}

impl Capture {
    /// Starts to capture whole packets on `interface`; `filter` is tcpdump's language. Returns
    /// when the capture has begun.
    ///
    /// # Errors
    /// tcpdump refused.
    pub fn start(netns: &Netns, interface: &str, filter: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tapdtest-").tempdir()?;
        let mut command = netns.command("tcpdump");
        // -Z root: tcpdump would give up root before it opens a file in our directory.
        command.args(["-n", "-s", "0", "-U", "-B", "16384", "-Z", "root", "-i", interface, "-w"]);
        command.arg(dir.path().join("capture.pcap"));
        if !filter.is_empty() {
            command.arg(filter);
        }
        let mut running = Running::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let stderr = running.take_stderr().ok_or_else(|| anyhow!("tcpdump has no stderr"))?;
        let mut said = String::new();
        let mut lines = BufReader::new(stderr);
        while !said.contains("listening on") {
            if lines.read_line(&mut said)? == 0 {
                return Err(anyhow!("tcpdump ended: {said}"));
            }
        }
        // Keep reading, or tcpdump dies of a broken pipe when it prints its counts.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok(Self { running, dir })
    }

    /// Reads what has been written so far.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn so_far(&self) -> Result<Vec<Vec<u8>>> {
        read_pcap(&self.dir.path().join("capture.pcap"))
    }

    /// Waits until the capture holds a packet that `wanted` accepts, then ends it.
    ///
    /// # Errors
    /// There was no such packet within `deadline`, or the file cannot be read.
    pub fn finish_after(
        self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>> {
        wait::until(what, deadline, || {
            self.so_far().is_ok_and(|packets| packets.iter().any(|packet| wanted(packet)))
        })?;
        self.finish()
    }

    /// Ends the capture and gives every packet, link-layer header first. What the interface saw
    /// just before may be missing; see [`Capture::finish_after`].
    ///
    /// # Errors
    /// tcpdump does not end, or the file cannot be read.
    pub fn finish(mut self) -> Result<Vec<Vec<u8>>> {
        self.running.signal(libc::SIGINT)?;
        self.running.wait_end(Duration::from_secs(5))?;
        self.so_far()
    }
}

/// Reads every whole packet of a pcap file.
///
/// # Errors
/// It is no pcap file.
pub fn read_pcap(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path)?;
    let mut reader = PcapReader::new(bytes.as_slice())
        .with_context(|| format!("{} is no pcap file", path.display()))?;
    // A capture under way may end in half a packet.
    Ok(std::iter::from_fn(|| reader.next_packet()?.ok().map(|p| p.data.into_owned())).collect())
}

/// A UDP datagram found in a captured packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedDatagram {
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// What UDP carried.
    pub payload: Vec<u8>,
}

impl CapturedDatagram {
    /// The datagram in an Ethernet packet, if there is a whole one.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(packet).ok()?;
        let (source, destination) = addresses(&sliced)?;
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { return None };
        Some(Self {
            source,
            source_port: udp.source_port(),
            destination,
            destination_port: udp.destination_port(),
            payload: udp.payload().to_vec(),
        })
    }

    /// Whether this is a sealed datagram of a worker: control messages have a lane of their own,
    /// 0xfe in the fourth byte.
    #[must_use]
    pub fn is_sealed_frame(&self) -> bool {
        self.is_sealed_data() && self.payload.get(3) != Some(&0xfe)
    }

    /// Whether this is a sealed data datagram (first byte 0x40 to 0x7f).
    #[must_use]
    pub fn is_sealed_data(&self) -> bool {
        self.payload.first().is_some_and(|byte| byte >> 6 == 0b01)
    }
}

fn addresses(sliced: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        NetSlice::Ipv6(ip) => {
            Some((ip.header().source_addr().into(), ip.header().destination_addr().into()))
        }
        NetSlice::Arp(_) => None,
    }
}

/// All UDP datagrams in captured Ethernet packets.
#[must_use]
pub fn datagrams(packets: &[Vec<u8>]) -> Vec<CapturedDatagram> {
    packets.iter().filter_map(|packet| CapturedDatagram::parse(packet)).collect()
}

/// Whether an Ethernet packet holds a piece of a fragmented IP packet, of either version.
#[must_use]
pub fn is_ip_fragment(packet: &[u8]) -> bool {
    // Of IPv4 the flag "more fragments" and the offset, without "don't fragment" and the reserved
    // bit; of IPv6 a fragment header right behind the fixed one.
    match packet.get(12..14) {
        Some([0x08, 0x00]) => {
            packet.get(20..22).is_some_and(|field| field != [0x40, 0] && field != [0, 0])
        }
        Some([0x86, 0xdd]) => packet.get(20) == Some(&44),
        _ => false,
    }
}

/// The TOS or traffic class byte of the IP packet in an untagged Ethernet packet.
#[must_use]
pub fn tos(packet: &[u8]) -> Option<u8> {
    match (packet.get(12..14)?, packet.get(14)?, packet.get(15)?) {
        ([0x08, 0x00], _, tos) => Some(*tos),
        ([0x86, 0xdd], first, second) => Some(first << 4 | second >> 4),
        _ => None,
    }
}

/// The largest segment that a TCP SYN in an Ethernet packet announces.
#[must_use]
pub fn syn_mss(packet: &[u8]) -> Option<u16> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    tcp.syn().then_some(())?;
    tcp.options_iterator().flatten().find_map(|option| match option {
        TcpOptionElement::MaximumSegmentSize(bytes) => Some(bytes),
        _ => None,
    })
}

/// Whether the UDP or TCP checksum in an Ethernet frame is right; none if it carries neither.
#[must_use]
pub fn transport_checksum_is_right(frame: &[u8]) -> Option<bool> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let net = sliced.net.as_ref()?;
    match (sliced.transport.as_ref()?, net) {
        (TransportSlice::Udp(udp), NetSlice::Ipv4(ip)) => {
            let header = udp.to_header();
            // Over IPv4 zero means "no checksum".
            let right = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).ok()?;
            Some(header.checksum == right)
        }
        (TransportSlice::Udp(udp), NetSlice::Ipv6(ip)) => {
            let header = udp.to_header();
            let right = header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).ok()?;
            Some(header.checksum == right)
        }
        (TransportSlice::Tcp(tcp), NetSlice::Ipv4(ip)) => {
            let right = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination());
            Some(tcp.checksum() == right.ok()?)
        }
        (TransportSlice::Tcp(tcp), NetSlice::Ipv6(ip)) => {
            let right = tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination());
            Some(tcp.checksum() == right.ok()?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn udp_frame() -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .udp(26027, 26026);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0x41, 2, 3]).unwrap();
        frame
    }

    #[test]
    fn finds_the_datagram() {
        let datagram = CapturedDatagram::parse(&udp_frame()).unwrap();
        assert_eq!((datagram.source_port, datagram.destination_port), (26027, 26026));
        assert_eq!(datagram.payload, [0x41, 2, 3]);
        assert!(datagram.is_sealed_data());
    }

    #[test]
    fn reads_fragments_marks_and_segment_sizes() {
        let mut frame = udp_frame();
        assert!(!is_ip_fragment(&frame));
        assert_eq!(tos(&frame), Some(0));
        frame[15] = 0xb8;
        frame[20] = 0x20;
        assert!(is_ip_fragment(&frame));
        assert_eq!((tos(&frame), syn_mss(&frame)), (Some(0xb8), None));

        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv6([1; 16], [2; 16], 64)
            .tcp(1, 2, 3, 4)
            .syn()
            .options(&[TcpOptionElement::MaximumSegmentSize(1292)])
            .unwrap();
        let mut frame = Vec::new();
        builder.write(&mut frame, &[]).unwrap();
        frame[14] = 0x6b;
        frame[15] = 0x80;
        assert_eq!((tos(&frame), syn_mss(&frame)), (Some(0xb8), Some(1292)));
        assert!(!is_ip_fragment(&frame) && !is_ip_fragment(&frame[..13]));
    }

    #[test]
    fn tells_a_wrong_checksum() {
        let mut frame = udp_frame();
        assert_eq!(transport_checksum_is_right(&frame), Some(true));
        if let Some(last) = frame.last_mut() {
            *last ^= 1;
        }
        assert_eq!(transport_checksum_is_right(&frame), Some(false));
    }
}
