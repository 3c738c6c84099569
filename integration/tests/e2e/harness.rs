//! The tools that the other tests stand on, without tapd.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use integration::bench::parts::tap_pass::TapPass;
use integration::bench::parts::udp_run;
use integration::bench::work::Servers;
use integration::capture::{Capture, datagrams};
use integration::frames::{Probe, test_frame};
use integration::load::junk::{Junk, Kind};
use integration::load::rate::{self, Search};
use integration::load::{Place, UdpPath, pingpong};
use integration::netns::{self, Netns};
use integration::skip::case;
use integration::topology::{Family, Offloads, Pair, Star, UNDERLAY};
use integration::traffic::{IperfRun, IperfServer, SteadyPing, iperf, ping, ping_all};
use integration::wait;

const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn harness_namespaces_go_when_dropped() {
    case(|| {
        let netns = Netns::new("gone")?;
        let path = netns.path();
        ensure!(path.exists(), "{} is not there", path.display());
        drop(netns);
        ensure!(!path.exists(), "{} is left behind", path.display());
        Ok(())
    });
}

#[test]
fn harness_namespaces_of_the_dead_are_swept() {
    case(|| {
        // A name that claims a process which cannot exist, as a SIGKILL would leave it.
        let stale = "tapdtest-4194999-1-0-stale";
        integration::command::run("ip", &["netns", "add", stale])?;
        netns::sweep_stale();
        ensure!(netns::open(stale).is_err(), "{stale} was not swept");
        Ok(())
    });
}

#[test]
fn harness_pair_and_star_carry_ping_and_iperf() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let pair = Pair::new(family, 1500)?;
            ping_all(&pair.alpha, family.address(2))?;
            let star = Star::new(family, 3)?;
            ping_all(&star.hosts[0], family.address(3))?;
        }
        let pair = Pair::new(Family::V4, 1500)?;
        let steady = SteadyPing::start(&pair.beta, Family::V4.address(1), 2)?;
        let _server = IperfServer::start(&pair.beta)?;
        let run = IperfRun { seconds: 1, streams: 2, reverse: true, udp: None };
        ensure!(iperf(&pair.alpha, Family::V4.address(2), run)?.bytes > 1e6);
        ensure!(steady.lost()? == 0);
        let judged_at_once = SteadyPing::start(&pair.beta, Family::V4.address(1), 20)?;
        ensure!(judged_at_once.lost()? == 0);
        let unreachable = ping(&pair.alpha, Family::V4.address(9), 2, 56)?;
        ensure!(unreachable.received == 0 && unreachable.sent == 2);
        Ok(())
    });
}

#[test]
fn harness_offloads_hold_and_are_checked() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        for offloads in [Offloads::Wire, Offloads::Superpacket, Offloads::Bare] {
            pair.set_offloads(offloads)?;
            ping_all(&pair.alpha, Family::V4.address(2))?;
        }
        Ok(())
    });
}

/// ```text
///  probe0 -- bridge -- under0 ==== under0 -- bridge -- probe0
/// ```
#[test]
fn harness_probes_are_byte_exact() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        for netns in [&pair.alpha, &pair.beta] {
            netns.silence_ipv6()?;
        }
        let near = Probe::attach(&pair.alpha, UNDERLAY)?;
        let far = Probe::attach(&pair.beta, UNDERLAY)?;
        let (us, them) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let tags = [[0x88, 0xa8, 0, 5], [0x81, 0, 0x20, 7]];
        for length in [14, 15, 59, 60, 64, 1000, 1514] {
            for tags in [&[][..], &tags[1..], &tags[..]] {
                // The kernel wants two bytes behind a tag: 20 is the shortest tagged frame.
                let length = if tags.is_empty() { length } else { length.max(16) + tags.len() * 4 };
                let frame = test_frame(them, us, tags, length, length as u8);
                near.send(&frame)?;
                let got = far.receive(PATIENCE)?;
                ensure!(got.as_ref() == Some(&frame), "sent {frame:02x?}, got {got:02x?}");
            }
        }
        Ok(())
    });
}

#[test]
fn harness_traffic_tool_measures_and_junk_arrives() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let (near, far) = (netns::open(pair.alpha.name())?, netns::open(pair.beta.name())?);
        let path = UdpPath::open(
            &Place { netns: &near, address: Family::V4.address(1) },
            &Place { netns: &far, address: Family::V4.address(2) },
        )?;
        let paced = rate::trial(&path, 64, Some(10_000.0), Duration::from_millis(300))?;
        ensure!(paced.sent.abs_diff(3000) < 150, "10,000 per second for 0.3 s: {paced:?}");
        ensure!(paced.loss() < 0.01, "{paced:?}");
        let search = Search {
            payload: 1400,
            max_loss: 0.001,
            trial: Duration::from_millis(50),
            budget: Duration::from_millis(500),
        };
        let found = rate::search(&path, search)?;
        ensure!(found.rate > 1000.0, "{found:?}");
        let trips = pingpong::measure(&path, 64, Duration::from_millis(100))?;
        ensure!(trips.p50_us > 1.0 && trips.p99_us >= trips.p50_us, "{trips:?}");

        let capture = Capture::start(&pair.beta, UNDERLAY, "udp port 26026")?;
        let junk = Junk {
            kind: Kind::Mix,
            source: ("198.51.100.7".parse()?, 7),
            destination: ("192.0.2.2".parse()?, 26026),
            rate: 50_000.0,
            count: 5_000,
            seed: 1,
            material: vec![vec![0x41; 100]],
        };
        ensure!(junk.send(&near)?.sent == junk.count);
        let seen = || capture.so_far().map(|packets| datagrams(&packets)).unwrap_or_default();
        wait::until("all junk to arrive", PATIENCE, || seen().len() as u64 == junk.count)?;
        ensure!(seen().iter().all(|datagram| datagram.source_port == 7));
        Ok(())
    });
}

#[test]
fn harness_parts_of_the_bench_carry_their_bytes() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        pair.set_offloads(Offloads::Wire)?;
        let servers = Servers::start(&pair)?;
        let (rate, cost) = udp_run::measure(&servers, 1500, Duration::from_millis(200))?;
        ensure!(rate > 0.1 && cost > 0.0, "runs of datagrams: {rate} Gbit/s, {cost} s/GB");
        let pass = TapPass::set_up(&pair, 1500)?;
        let (rate, cost) = pass.measure(&pair, 1)?;
        ensure!(rate > 0.1 && cost > 0.0, "taps: {rate} Gbit/s, {cost} s/GB");
        drop(pass);
        let left = pair.alpha.interfaces()?;
        ensure!(!left.iter().any(|name| name == "pass0"), "a tap is left: {left:?}");
        Ok(())
    });
}

#[test]
fn harness_several_flows_are_several_and_all_arrive() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let (near, far) = (netns::open(pair.alpha.name())?, netns::open(pair.beta.name())?);
        let (near, far) = (
            Place { netns: &near, address: Family::V4.address(1) },
            Place { netns: &far, address: Family::V4.address(2) },
        );
        let open = |_| UdpPath::open(&near, &far);
        let paths = (0..rate::MAX_FLOWS).map(open).collect::<anyhow::Result<Vec<_>>>()?;
        let capture = Capture::start(&pair.beta, UNDERLAY, "udp")?;
        let span = Duration::from_millis(200);
        let paced = rate::trial_flows(&paths, 64, Some(10_000.0), span)?;
        ensure!(paced.sent > 1_500 && paced.loss() < 0.01, "{paced:?}");
        let seen = || capture.so_far().map(|packets| datagrams(&packets)).unwrap_or_default();
        let mut counts = BTreeMap::new();
        wait::until("all datagrams to be captured", PATIENCE, || {
            counts.clear();
            for datagram in seen() {
                *counts.entry(datagram.source_port).or_insert(0_u64) += 1;
            }
            counts.values().sum::<u64>() >= paced.received
        })?;
        ensure!(counts.len() == rate::MAX_FLOWS, "not every flow has its share: {counts:?}");
        ensure!(counts.values().all(|&count| count > paced.sent / 8), "uneven: {counts:?}");
        Ok(())
    });
}
