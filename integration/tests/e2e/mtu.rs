//! Path MTUs: found, exact, lost, too small; frames that do not fit.

use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::capture::{Capture, is_ip_fragment, syn_mss};
use integration::cluster::{overlay_v4, overlay_v6};
use integration::config::ClusterConfig;
use integration::flow::FlowOptions;
use integration::lanes::{Cut, LaneSpec, Lanes, Side};
use integration::links::{LaneDuo, PATIENCE, Watch, link, wait_links};
use integration::netns::Netns;
use integration::skip::case;
use integration::topology::{Family, Offloads};
use integration::traffic::{IperfServer, ping, ping_all};
use integration::wait;

/// From the IP packet on the cable to the IP packet in it: IPv4, UDP, 26 bytes, Ethernet.
const V4_OVERHEAD: u32 = 20 + 8 + 26 + 14;

/// Two nodes on `lanes` without offloads, so that a packet is a packet; `network` are more lines
/// for the network.
fn duo(lanes: Lanes, cluster: &str, network: &str, sections: &str) -> Result<LaneDuo> {
    lanes.set_offloads(Offloads::Bare)?;
    let mut config = ClusterConfig {
        cluster_extra: cluster.to_owned(),
        sections: sections.to_owned(),
        ..lanes.config()
    };
    config.networks[0].extra = network.to_owned();
    LaneDuo::start(lanes, &config)
}

fn one_lane(family: Family, interface_mtu: u32) -> Result<Lanes> {
    Lanes::new(&[LaneSpec::new(family).with_mtu(interface_mtu)])
}

/// Waits until a link of alpha has exactly this path MTU (bytes of IP) and is not searching.
fn settled(duo: &LaneDuo, number: usize, bytes: u32) -> Result<()> {
    let what = format!("a path MTU of {bytes} on link {number}");
    wait_links(&duo.alpha, 2, &what, PATIENCE, |links| {
        links.get(number).is_some_and(|link| {
            link.is_up() && link.number("path_mtu") == u64::from(bytes) && !link.flag("searching")
        })
    })
    .map(|_| ())
}

/// Inner packets of all sizes up to a tap MTU of 1500 pass by an underlay of `interface_mtu`, and
/// nothing on the cable is larger than that or an IP fragment.
fn sweep(family: Family, interface_mtu: u32) -> Result<()> {
    let network = "tap_mtu = 1500\ntoo_big = false\n";
    let duo = duo(one_lane(family, interface_mtu)?, "", network, "")?;
    settled(&duo, 0, interface_mtu)?;
    let cable = Capture::start(&duo.lanes.alpha, "under0", "")?;
    let exact = interface_mtu.min(1500) - V4_OVERHEAD - 28;
    // The last one is the mark by which the capture is known to be complete.
    for payload in [0, 56, 1000, exact - 20, exact, (exact + 1).min(1472), 1471, 1472] {
        for (netns, peer) in [(&duo.lanes.alpha, 2), (&duo.lanes.beta, 1)] {
            let report = ping(netns, overlay_v4(100, peer), 2, payload)?;
            ensure!(report.received == 2, "{payload} bytes at {interface_mtu}: {report:?}");
        }
    }
    let packets = cable.finish_after("large packets", PATIENCE, |packet| packet.len() > 1000)?;
    let fragments = packets.iter().filter(|packet| is_ip_fragment(packet)).count();
    ensure!(fragments == 0, "{fragments} IP fragments at {interface_mtu}");
    let largest = packets.iter().map(Vec::len).max().unwrap_or(0);
    ensure!(largest <= interface_mtu as usize + 14, "a packet of {largest} at {interface_mtu}");
    Ok(())
}

#[test]
fn flow_inner_1500_over_small_underlays() {
    case(|| {
        for (family, bytes) in
            [(Family::V4, 1280), (Family::V6, 1280), (Family::V4, 1400), (Family::V4, 1500)]
        {
            sweep(family, bytes).with_context(|| format!("{family:?}, {bytes} bytes"))?;
        }
        Ok(())
    });
}

#[test]
fn flow_inner_1500_over_large_underlays() {
    case(|| {
        for (family, bytes) in [(Family::V4, 4352), (Family::V6, 9000), (Family::V4, 65520)] {
            sweep(family, bytes).with_context(|| format!("{family:?}, {bytes} bytes"))?;
        }
        Ok(())
    });
}

#[test]
fn flow_path_mtu_is_found_for_each_direction() {
    case(|| {
        let lanes = one_lane(Family::V4, 1500)?;
        // A router on the way that says nothing, in one direction only.
        lanes.add_rule(Side::Beta, 0, "ip length > 1400 drop")?;
        let begin = Instant::now();
        let duo = duo(lanes, "", "", "")?;
        settled(&duo, 0, 1400)?;
        println!("found {:?} after the nodes were started", begin.elapsed());
        wait_links(&duo.beta, 1, "the other direction to have 1500", PATIENCE, |links| {
            links.first().is_some_and(|link| link.number("path_mtu") == 1500)
        })?;
        let report = ping(&duo.lanes.alpha, overlay_v4(100, 2), 5, 1400 - V4_OVERHEAD - 28)?;
        ensure!(report.received == 5, "{report:?}");
        Ok(())
    });
}

#[test]
fn flow_black_hole_heals_within_a_second() {
    case(|| {
        let duo = duo(one_lane(Family::V4, 1500)?, "", "too_big = false\n", "")?;
        settled(&duo, 0, 1500)?;
        let watch = Watch::start(&duo.alpha)?;
        let flow = duo.flow(FlowOptions::at(500.0).with_payload(1350))?;
        flow.wait_received(200, PATIENCE)?;
        let begin = Instant::now();
        for side in [Side::Alpha, Side::Beta] {
            duo.lanes.add_rule(side, 0, "ip length > 1300 drop")?;
        }
        // Only the heartbeats pass, until the hole is found.
        flow.wait_received(100, PATIENCE)?;
        let outcome = flow.outcome(begin, begin + Duration::from_secs(2));
        ensure!(outcome.gap_ms < 1000.0, "{outcome:?}");
        let links = wait_links(&duo.alpha, 2, "the path to be measured", PATIENCE, |links| {
            links.first().is_some_and(|link| (1280..=1300).contains(&link.number("path_mtu")))
        })?;
        ensure!(links.iter().all(|link| link.is_up()), "the link went down: {links:?}");
        ensure!(!links[0].text("path_mtu_how").is_empty(), "{links:?}");
        watch.wait("path_mtu", None)?;
        flow.finish().map(|_| ())
    });
}

#[test]
fn flow_link_below_1280_is_down_and_says_so() {
    case(|| {
        let specs = [LaneSpec::new(Family::V4), LaneSpec::new(Family::V4).with_mtu(1200)];
        let duo = duo(Lanes::new(&specs)?, "", "", "")?;
        for (node, peer) in duo.nodes() {
            wait_links(node, peer, "link 1 to be down with a reason", PATIENCE, |links| {
                let small = |link: &integration::links::Link| {
                    link.text("state") == "down" && link.text("reason").contains("1280")
                };
                links.get(1).is_some_and(small) && links[0].is_up()
            })?;
        }
        ping_all(&duo.lanes.alpha, overlay_v4(100, 2))
    });
}

/// The MSS of the SYN that beta's tap gets when alpha connects to `to`.
fn mss_at_beta(duo: &LaneDuo, to: IpAddr) -> Result<u16> {
    let capture = Capture::start(&duo.lanes.beta, "tap100", "tcp")?;
    let _server = IperfServer::start(&duo.lanes.beta)?;
    duo.lanes.alpha.enter(|| {
        TcpStream::connect((to, 5201)).with_context(|| format!("connecting to {to}")).map(|_| ())
    })?;
    let is_syn = |packet: &[u8]| syn_mss(packet).is_some();
    let packets = capture.finish_after("a SYN", PATIENCE, is_syn)?;
    packets.iter().find_map(|packet| syn_mss(packet)).context("no SYN")
}

#[test]
fn flow_tcp_segments_are_clamped_to_the_path() {
    case(|| {
        let duo = duo(one_lane(Family::V4, 1400)?, "", "tap_mtu = 1500\n", "")?;
        settled(&duo, 0, 1400)?;
        let inner = (1400 - V4_OVERHEAD) as u16;
        for (to, headers) in [(overlay_v4(100, 2), 40), (overlay_v6(100, 2), 60)] {
            let mss = mss_at_beta(&duo, to)?;
            println!("MSS {mss}");
            ensure!(mss <= inner - headers && mss > inner - headers - 100, "{to}: {mss}");
        }
        let mut config = duo.lanes.config();
        config.networks[0].extra = "tap_mtu = 1500\nmss_clamp = false\n".to_owned();
        duo.dir.write(&config)?;
        for (node, _) in duo.nodes() {
            node.tapd(&["reload"])?;
        }
        let mss = mss_at_beta(&duo, overlay_v4(100, 2))?;
        ensure!(mss == 1460, "{mss} without clamping");
        Ok(())
    });
}

/// The MTU that the kernel of a host has noted for the way to `to`.
fn noted_mtu(netns: &Netns, to: IpAddr) -> Option<u32> {
    let text = netns.ip(&["route", "get", &to.to_string()]).ok()?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
}

#[test]
fn flow_hosts_are_told_what_fits() {
    case(|| {
        let duo = duo(one_lane(Family::V4, 1400)?, "", "tap_mtu = 1500\n", "")?;
        settled(&duo, 0, 1400)?;
        for to in [overlay_v4(100, 2), overlay_v6(100, 2)] {
            let bytes = if to.is_ipv4() { 1472 } else { 1452 };
            wait::until(&format!("the kernel to note the MTU to {to}"), PATIENCE, || {
                ping(&duo.lanes.alpha, to, 1, bytes).is_ok()
                    && noted_mtu(&duo.lanes.alpha, to)
                        .is_some_and(|mtu| (1280..=1400 - V4_OVERHEAD).contains(&mtu))
            })?;
            // What the kernel now sends fits.
            ping_all(&duo.lanes.alpha, to)?;
        }
        Ok(())
    });
}

#[test]
fn api_link_mtu_can_be_set_and_released() {
    case(|| {
        // Neither the tap nor the host may know better: the frame has to go in fragments.
        let fixed = "tap_mtu = 1432\ntoo_big = false\n";
        let duo = duo(one_lane(Family::V4, 1500)?, "", fixed, "")?;
        settled(&duo, 0, 1500)?;
        let watch = Watch::start(&duo.alpha)?;
        duo.alpha.tapd(&["link", "mtu", "beta", "0", "1400"])?;
        settled(&duo, 0, 1400)?;
        ensure!(link(&duo.alpha, 2, 0)?.text("path_mtu_how").contains("manual"));
        watch.wait("path_mtu", Some("0"))?;
        // A full frame of the tap is fragmented now.
        let report = ping(&duo.lanes.alpha, overlay_v4(100, 2), 3, 1404)?;
        ensure!(report.received == 3, "{report:?}");
        duo.alpha.tapd(&["link", "mtu", "beta", "0", "auto"])?;
        settled(&duo, 0, 1500)
    });
}

#[test]
fn api_link_mtu_in_the_configuration() {
    case(|| {
        let specs = [LaneSpec::new(Family::V4); 2];
        let sections = "[[links]]\nname = \"1\"\nmtu = 1300\n";
        let duo = duo(Lanes::new(&specs)?, "", "", sections)?;
        settled(&duo, 0, 1500)?;
        settled(&duo, 1, 1300)?;
        let report = ping(&duo.lanes.alpha, overlay_v4(100, 2), 3, 1200)?;
        ensure!(report.received == 3, "{report:?}");
        Ok(())
    });
}

#[test]
fn flow_packets_of_65000_bytes() {
    case(|| {
        for bytes in [1500, 9000] {
            let network = "tap_mtu = 65521\ntoo_big = false\n";
            let duo = duo(one_lane(Family::V4, bytes)?, "", network, "")?;
            settled(&duo, 0, bytes)?;
            // 65,000 bytes with the inner IP and UDP headers.
            let flow = duo.flow(FlowOptions::at(50.0).with_payload(65_000 - 28))?;
            flow.wait_received(50, PATIENCE)?;
            let outcome = flow.finish()?;
            ensure!(outcome.lost + outcome.damaged + outcome.duplicated == 0, "{outcome:?}");
        }
        Ok(())
    });
}

#[test]
fn flow_onto_a_link_with_a_smaller_mtu_loses_nothing() {
    case(|| {
        let specs = [LaneSpec::new(Family::V4).with_mtu(9000), LaneSpec::new(Family::V4)];
        let sections = "[[links]]\nname = \"0\"\npriority = 10\n";
        for protect in ["off", "all"] {
            let cluster = format!("protect = \"{protect}\"\n");
            let network = "tap_mtu = 8000\ntoo_big = false\n";
            let duo = duo(Lanes::new(&specs)?, &cluster, network, sections)?;
            settled(&duo, 0, 9000)?;
            settled(&duo, 1, 1500)?;
            duo.wait_sending(0)?;
            let flow = duo.flow(FlowOptions::at(300.0).with_payload(4000))?;
            flow.wait_received(100, PATIENCE)?;
            if protect == "off" {
                // Nothing is kept to be sent again, so the change must be a planned one.
                duo.alpha.tapd(&["link", "drain", "beta", "0"])?;
            } else {
                duo.lanes.cut(0, Cut::DropBoth)?;
            }
            duo.wait_sending(1)?;
            flow.wait_received(100, PATIENCE)?;
            let outcome = flow.finish()?;
            let bad = outcome.lost + outcome.damaged + outcome.duplicated;
            ensure!(bad == 0, "protect = {protect}: {outcome:?}");
        }
        Ok(())
    });
}

#[test]
fn flow_interface_mtu_changes_under_traffic() {
    case(|| {
        let duo = duo(one_lane(Family::V4, 1500)?, "", "too_big = false\n", "")?;
        settled(&duo, 0, 1500)?;
        let flow = duo.flow(FlowOptions::at(500.0).with_payload(1350))?;
        // The sender's own interface: known at once, without a search in the dark.
        for (bytes, ends) in [(1400, ["alpha", "beta"]), (1500, ["beta", "alpha"])] {
            let begin = Instant::now();
            for end in ends {
                let netns = if end == "alpha" { &duo.lanes.alpha } else { &duo.lanes.beta };
                netns.ip(&["link", "set", "under0", "mtu", &bytes.to_string()])?;
            }
            settled(&duo, 0, bytes)?;
            flow.wait_received(100, PATIENCE)?;
            let outcome = flow.outcome(begin, begin + Duration::from_secs(2));
            ensure!(outcome.gap_ms < 1000.0, "to {bytes}: {outcome:?}");
        }
        flow.finish().map(|_| ())
    });
}
