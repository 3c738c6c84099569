//! Streams arrive byte for byte, whatever is left to kernel and cards, and whatever is lost between.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::cluster::{overlay_v4, overlay_v6};
use integration::config::ClusterConfig;
use integration::lanes::{Lanes, Side};
use integration::links::LaneDuo;
use integration::netns::Netns;
use integration::skip::case;
use integration::topology::Family;

/// Nothing here waits longer for the next byte.
const PATIENCE: Duration = Duration::from_secs(20);
const LEN: usize = 4 << 20;
const PORT: u16 = 5201;

/// Bytes that no two places of a stream share: a shift by any segment size is seen.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sends a stream and compares what comes out.
fn stream(from: &Netns, to: &Netns, address: IpAddr, sent: &[u8]) -> Result<()> {
    let at = SocketAddr::new(address, PORT);
    let listener = to.enter(|| Ok(TcpListener::bind(at)?))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> Result<Vec<u8>> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
            Ok(received)
        });
        let mut stream = from.enter(|| Ok(TcpStream::connect_timeout(&at, PATIENCE)?))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(sent)?;
        drop(stream);
        let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver died"))??;
        let differs = received.iter().zip(sent).position(|(one, other)| one != other);
        ensure!(received.len() == sent.len(), "{} of {} bytes came", received.len(), sent.len());
        ensure!(differs.is_none(), "byte {differs:?} is another");
        Ok(())
    })
}

/// Both ways over both IP versions, between nodes whose configuration was changed.
fn streams_cross(change: impl FnOnce(ClusterConfig) -> ClusterConfig) -> Result<()> {
    let lanes = Lanes::plain(Family::V4, 1)?;
    let config = change(lanes.config());
    let duo = LaneDuo::with(lanes, &config)?;
    // One in two hundred of what the veth hands over, single datagrams and whole runs of them.
    for side in [Side::Alpha, Side::Beta] {
        duo.lanes.add_rule(side, 0, "meta l4proto udp numgen random mod 200 == 0 drop")?;
    }
    let (alpha, beta) = (&*duo.lanes.alpha, &*duo.lanes.beta);
    let sent = content(7, LEN);
    for address in [overlay_v4, overlay_v6] {
        stream(alpha, beta, address(100, 2), &sent).context("from alpha to beta")?;
        stream(beta, alpha, address(100, 1), &sent).context("from beta to alpha")?;
    }
    Ok(())
}

#[test]
fn flow_streams_arrive_byte_for_byte_with_every_offload_and_without() {
    case(|| {
        for switches in [
            "",
            "tap_tcp = false\ntap_udp = false\n",
            "uplink_segmentation = false\n",
            "uplink_coalescing = false\nbundles = false\n",
            "tap_checksum = false\nuplink_segmentation = false\nuplink_coalescing = false\n",
        ] {
            let sections = format!("[offload]\n{switches}");
            streams_cross(|config| ClusterConfig { sections, ..config }).context(switches)?;
        }
        Ok(())
    });
}

#[test]
fn flow_streams_arrive_byte_for_byte_in_clear_under_aegis_and_compressed() {
    case(|| {
        streams_cross(ClusterConfig::in_clear).context("in clear")?;
        for cipher in ["aegis-256", "aegis-128l"] {
            let ciphers = vec![cipher.to_owned()];
            streams_cross(|config| ClusterConfig { ciphers, ..config }).context(cipher)?;
        }
        streams_cross(|mut config| {
            for network in &mut config.networks {
                network.extra = "compression = \"zstd\"\n".to_owned();
            }
            config
        })
        .context("compressed")
    });
}
