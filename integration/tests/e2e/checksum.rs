//! A checksum that a sending kernel left partial never leaves a node unmarked.
//!
//! alpha's traffic comes from its kernel, which leaves checksums to the tap. beta's tap is bridged
//! with a plain tap that has no offload, so what the probe reads is complete: the kernel sums what
//! tapd marked as partial, and would pass on a wrong sum that tapd had not marked.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::capture::{Capture, CapturedDatagram, datagrams, transport_checksum_is_right};
use integration::cluster::{Duo, overlay_v4, overlay_v6};
use integration::config::ClusterConfig;
use integration::frames::Probe;
use integration::skip::case;
use integration::topology::{Family, Offloads, Pair, UNDERLAY};

const PATIENCE: Duration = Duration::from_secs(3);
/// A station that exists only as a neighbour entry.
const NOBODY: &str = "02:00:00:00:cc:01";

fn duo(config: &ClusterConfig) -> Result<Duo> {
    let duo = Duo::with(Pair::new(Family::V4, 1500)?, config)?;
    duo.pair.set_offloads(Offloads::Wire)?;
    let alpha = &duo.pair.alpha;
    let features = alpha.run("ethtool", &["-k", "tap100"])?;
    ensure!(
        features.lines().any(|line| line.trim().starts_with("tx-checksumming: on")),
        "tap100 takes no partial checksums, so this test proves nothing:\n{features}"
    );
    for address in [overlay_v4(100, 9), overlay_v6(100, 9)] {
        alpha.ip(&["neigh", "add", &address.to_string(), "lladdr", NOBODY, "dev", "tap100"])?;
    }
    Ok(duo)
}

/// Sends one UDP datagram and tries one TCP connection to a station that does not answer.
fn send_both(duo: &Duo, to: IpAddr) -> Result<()> {
    duo.pair.alpha.enter(|| {
        let any: IpAddr =
            if to.is_ipv4() { [0; 4].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
        UdpSocket::bind(SocketAddr::new(any, 0))?.send_to(&[0xa5; 333], (to, 9998))?;
        let address = SocketAddr::new(to, 9998);
        let refused = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        ensure!(refused.is_err(), "somebody answered");
        Ok(())
    })
}

#[test]
fn flow_partial_checksums_are_completed() {
    case(|| {
        let duo = duo(&ClusterConfig::new(Family::V4, 2))?;
        let probe = Probe::attach(&duo.pair.beta, "tap100")?;
        for to in [overlay_v4(100, 9), overlay_v6(100, 9)] {
            send_both(&duo, to)?;
            // Offsets of the protocol field and of the destination port behind both IP headers.
            let (protocol_at, port_at) = if to.is_ipv4() { (23, 36) } else { (20, 56) };
            for protocol in [17, 6] {
                let frame = probe.receive_where(PATIENCE, |frame| {
                    frame.get(protocol_at) == Some(&protocol)
                        && frame.get(port_at..port_at + 2) == Some(&9998u16.to_be_bytes()[..])
                })?;
                let right = frame.as_deref().and_then(transport_checksum_is_right);
                ensure!(right == Some(true), "protocol {protocol} to {to}: {frame:02x?}");
            }
        }
        Ok(())
    });
}

#[test]
fn flow_clear_mode_completes_checksums_before_the_wire() {
    case(|| {
        let duo = duo(&ClusterConfig::new(Family::V4, 2).in_clear())?;
        let capture = Capture::start(&duo.pair.alpha, UNDERLAY, "udp")?;
        send_both(&duo, overlay_v4(100, 9))?;
        // A clear datagram: 10 bytes, then the frame as it is.
        let inner = |packet: &[u8]| {
            let datagram = CapturedDatagram::parse(packet)?;
            (datagram.payload.first()? >> 6 == 0b10).then(|| datagram.payload[10..].to_vec())
        };
        let is_udp = |frame: &[u8]| {
            CapturedDatagram::parse(frame).is_some_and(|d| d.destination_port == 9998)
        };
        let packets = capture.finish_after("the datagram on the cable", PATIENCE, |packet| {
            inner(packet).is_some_and(|frame| is_udp(&frame))
        })?;
        let frames: Vec<Vec<u8>> = packets.iter().filter_map(|packet| inner(packet)).collect();
        ensure!(datagrams(&frames).iter().any(|d| d.payload == [0xa5; 333]));
        for frame in &frames {
            ensure!(transport_checksum_is_right(frame) != Some(false), "{frame:02x?}");
        }
        Ok(())
    });
}
