//! Ordinary traffic between two nodes.

use anyhow::{Result, ensure};
use integration::cluster::{Duo, overlay_v4, overlay_v6};
use integration::config::ClusterConfig;
use integration::skip::case;
use integration::topology::{Family, Pair};
use integration::traffic::{IperfRun, IperfServer, iperf, ping, ping_all};

/// All that programs do, both ways; `tap_mtu` is what the tap should have.
fn exercise(duo: &Duo, tap_mtu: u32) -> Result<()> {
    for (node, peer) in [(&duo.alpha, 2), (&duo.beta, 1)] {
        let netns = node.netns();
        let shown = netns.interface_attribute("tap100", "mtu")?;
        ensure!(shown == tap_mtu.to_string(), "tap100 has an MTU of {shown}, not {tap_mtu}");
        ping_all(netns, overlay_v4(100, peer))?;
        ping_all(netns, overlay_v6(100, peer))?;
        // 20 bytes of IPv4 and 8 of ICMP around the payload: the largest packet that fits.
        let largest = ping(netns, overlay_v4(100, peer), 3, tap_mtu - 28)?;
        ensure!(largest.received == 3, "packets of {tap_mtu} bytes: {largest:?}");
    }
    Ok(())
}

fn tcp(seconds: u32, streams: u32, reverse: bool) -> IperfRun {
    IperfRun { seconds, streams, reverse, udp: None }
}

#[test]
fn flow_ping_v4_and_v6() {
    case(|| exercise(&Duo::new()?, 1432));
}

#[test]
fn flow_ipv6_underlay() {
    case(|| {
        let config = ClusterConfig::new(Family::V6, 2);
        let duo = Duo::with(Pair::new(Family::V6, 1500)?, &config)?;
        exercise(&duo, 1412)?;
        let _server = IperfServer::start(&duo.pair.beta)?;
        for reverse in [false, true] {
            let report = iperf(&duo.pair.alpha, overlay_v6(100, 2), tcp(1, 1, reverse))?;
            ensure!(report.bits_per_second > 20e6, "reverse {reverse}: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn flow_clear_mode() {
    case(|| {
        let config = ClusterConfig::new(Family::V4, 2).in_clear();
        let duo = Duo::with(Pair::new(Family::V4, 1500)?, &config)?;
        let cipher = duo.alpha.peer(2).map(|peer| peer["cipher"].clone());
        ensure!(cipher == Some("none".into()), "cipher {cipher:?}");
        ping_all(&duo.pair.alpha, overlay_v4(100, 2))?;
        ping_all(&duo.pair.beta, overlay_v6(100, 1))
    });
}

#[test]
fn flow_jumbo_underlay() {
    case(|| {
        let config = ClusterConfig::new(Family::V4, 2);
        let duo = Duo::with(Pair::new(Family::V4, 9000)?, &config)?;
        exercise(&duo, 9000 - 68)
    });
}

#[test]
fn flow_tcp_both_ways() {
    case(|| {
        let duo = Duo::new()?;
        let _server = IperfServer::start(&duo.pair.beta)?;
        for (streams, reverse) in [(1, false), (1, true), (4, false)] {
            let report = iperf(&duo.pair.alpha, overlay_v4(100, 2), tcp(1, streams, reverse))?;
            ensure!(report.bits_per_second > 20e6, "{streams} streams, {reverse}: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn flow_udp_both_ways() {
    case(|| {
        let duo = Duo::new()?;
        let _server = IperfServer::start(&duo.pair.beta)?;
        for (to, reverse) in
            [(overlay_v4(100, 2), false), (overlay_v4(100, 2), true), (overlay_v6(100, 2), false)]
        {
            let run = IperfRun { seconds: 1, streams: 1, reverse, udp: Some((20, 1300)) };
            let report = iperf(&duo.pair.alpha, to, run)?;
            ensure!(report.lost_percent < 1.0, "to {to}, reverse {reverse}: {report:?}");
            ensure!(report.bits_per_second > 15e6, "to {to}, reverse {reverse}: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn flow_two_workers() {
    case(|| {
        let config = ClusterConfig { workers: 2, ..ClusterConfig::new(Family::V4, 2) };
        let duo = Duo::with(Pair::new(Family::V4, 1500)?, &config)?;
        exercise(&duo, 1432)?;
        let status = duo.alpha.show("status")?;
        ensure!(status["workers"] == 2, "status: {status}");
        let _server = IperfServer::start(&duo.pair.beta)?;
        for reverse in [false, true] {
            let report = iperf(&duo.pair.alpha, overlay_v4(100, 2), tcp(1, 4, reverse))?;
            ensure!(report.bits_per_second > 20e6, "reverse {reverse}: {report:?}");
        }
        Ok(())
    });
}

#[test]
fn flow_one_worker_against_two() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let one = ClusterConfig::new(Family::V4, 2);
        let two = ClusterConfig { workers: 2, ..one.clone() };
        let mut duo = Duo::with(pair, &one)?;
        duo.dir.write(&two)?;
        duo.beta.stop(&["tap100"])?;
        duo.beta.restart()?;
        duo.beta.wait_ready()?;
        duo.alpha.wait_peer_up(2)?;
        duo.beta.wait_peer_up(1)?;
        exercise(&duo, 1432)
    });
}
