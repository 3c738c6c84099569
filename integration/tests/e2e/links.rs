//! Several links to a peer: every way of losing one, and what an administrator sees of it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::cluster::overlay_v4;
use integration::command::Running;
use integration::config::ClusterConfig;
use integration::flow::{FlowOptions, Outcome};
use integration::lanes::{Cut, LaneSpec, Lanes, Side};
use integration::links::{LaneDuo, PATIENCE, Watch, link, links, wait_links};
use integration::skip::case;
use integration::topology::Family;
use integration::traffic::{IperfRun, IperfServer, SteadyPing, ping_all, start_iperf};
use integration::wait;

/// Longest pause that a failure may make on a busy machine. How short it is on a quiet one is what
/// `integration/run failover` measures.
const LONGEST_GAP_MS: f64 = 250.0;
/// How long after a failure the flow is looked at.
const WINDOW: Duration = Duration::from_millis(500);

/// Fails back soon, to the first link before the others.
const FIRST_PREFERRED: &str =
    "[[links]]\nname = \"0\"\npriority = 10\n\n[detector]\nhold_s = 1\nmax_hold_s = 2\n";

fn with_sections(lanes: Lanes, cluster: &str, sections: &str) -> Result<LaneDuo> {
    let config = ClusterConfig {
        cluster_extra: cluster.to_owned(),
        sections: sections.to_owned(),
        ..lanes.config()
    };
    LaneDuo::with(lanes, &config)
}

fn two_lanes() -> Result<LaneDuo> {
    with_sections(Lanes::plain(Family::V4, 2)?, "", FIRST_PREFERRED)
}

fn went_on(outcome: Outcome, what: &str) -> Result<()> {
    ensure!(outcome.gap_ms < LONGEST_GAP_MS, "{what}: {outcome:?}");
    ensure!(outcome.duplicated + outcome.damaged == 0, "{what}: {outcome:?}");
    Ok(())
}

/// One failure of the preferred link, its whole story at both ends, and the way back.
fn one_cut(duo: &LaneDuo, how: Cut) -> Result<()> {
    let watches = [Watch::start(&duo.alpha)?, Watch::start(&duo.beta)?];
    duo.wait_sending(0)?;
    let flows =
        [duo.flow(FlowOptions::at(1000.0))?, duo.flow_from(Side::Beta, FlowOptions::at(1000.0))?];

    let cut = duo.lanes.cut(0, how)?;
    duo.wait_not_up(0)?;
    duo.wait_sending(1)?;
    wait::until("the window to be over", PATIENCE, || cut.before.elapsed() > WINDOW)?;
    for flow in &flows {
        flow.wait_received(100, PATIENCE)?;
        went_on(flow.outcome(cut.before, cut.before + WINDOW), how.name())?;
    }
    for ((node, peer), watch) in duo.nodes().into_iter().zip(&watches) {
        let dead = link(node, peer, 0)?;
        ensure!(!dead.text("reason").is_empty(), "{} gives no reason: {dead:?}", node.name());
        ensure!(
            dead.transitions("up", "suspect") + dead.transitions("up", "down") > 0,
            "{} remembers no change: {dead:?}",
            node.name()
        );
        ensure!(link(node, peer, 1)?.is_up(), "the other link of {} is not up", node.name());
        watch.wait("fail_over", None)?;
        watch.wait("link_down", Some("0"))?;
    }

    let healed = Instant::now();
    duo.lanes.heal(0, how)?;
    duo.wait_all_up()?;
    for watch in &watches {
        watch.wait("link_up", Some("0"))?;
    }
    duo.wait_sending(0)?;
    watches[0].wait("fail_back", None)?;
    // The way back loses nothing: it is made before the other one is left.
    for flow in flows {
        flow.wait_received(100, PATIENCE)?;
        let back = flow.outcome(healed, Instant::now() - Duration::from_millis(50));
        ensure!(back.lost == 0, "{}: the way back: {back:?}", how.name());
        flow.finish()?;
    }
    Ok(())
}

#[test]
fn flow_goes_on_when_the_interface_is_set_down() {
    case(|| one_cut(&two_lanes()?, Cut::Carrier));
}

#[test]
fn flow_goes_on_when_the_carrier_is_lost() {
    case(|| one_cut(&two_lanes()?, Cut::CarrierFar));
}

#[test]
fn flow_goes_on_when_a_link_is_silent() {
    case(|| one_cut(&two_lanes()?, Cut::DropBoth));
}

#[test]
fn flow_goes_on_when_a_link_is_deaf() {
    case(|| one_cut(&two_lanes()?, Cut::DropIn));
}

#[test]
fn flow_goes_on_when_a_link_is_dumb() {
    case(|| one_cut(&two_lanes()?, Cut::DropOut));
}

#[test]
fn flow_goes_on_when_an_address_is_removed() {
    case(|| one_cut(&two_lanes()?, Cut::Address));
}

#[test]
fn flow_goes_on_over_links_of_both_families() {
    case(|| {
        let specs = [LaneSpec::new(Family::V6), LaneSpec::new(Family::V4)];
        let duo = with_sections(Lanes::new(&specs)?, "", FIRST_PREFERRED)?;
        one_cut(&duo, Cut::DropBoth)?;
        one_cut(&duo, Cut::Carrier)
    });
}

#[test]
fn flow_goes_on_until_the_last_of_four_links() {
    case(|| {
        let duo = with_sections(Lanes::plain(Family::V4, 4)?, "", "")?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        let kinds = [Cut::DropBoth, Cut::CarrierFar, Cut::DropOut];
        let mut dead = Vec::new();
        for how in kinds {
            let number = duo.sending()?;
            let cut = duo.lanes.cut(number, how)?;
            dead.push((number, how));
            duo.wait_not_up(number)?;
            wait::until("the window to be over", PATIENCE, || cut.before.elapsed() > WINDOW)?;
            flow.wait_received(100, PATIENCE)?;
            went_on(flow.outcome(cut.before, cut.before + WINDOW), how.name())?;
        }
        let left: Vec<usize> =
            (0..4).filter(|number| dead.iter().all(|(gone, _)| gone != number)).collect();
        ensure!(left == [duo.sending()?], "{left:?} should be sending");
        for (number, how) in dead {
            duo.lanes.heal(number, how)?;
        }
        duo.wait_all_up()?;
        flow.wait_received(100, PATIENCE)?;
        flow.finish().map(|_| ())
    });
}

#[test]
fn flow_two_one_way_cuts_leave_a_way() {
    case(|| {
        // alpha is not heard on one link, beta not on the other.
        let duo = with_sections(Lanes::plain(Family::V4, 2)?, "", "")?;
        let forth = duo.flow(FlowOptions::at(1000.0))?;
        let back = duo.flow_from(Side::Beta, FlowOptions::at(1000.0))?;
        duo.lanes.cut(0, Cut::DropOut)?;
        duo.lanes.cut(1, Cut::DropIn)?;
        let cut = Instant::now();
        wait::until("the cuts to be known", PATIENCE, || cut.elapsed() > WINDOW)?;
        for flow in [&forth, &back] {
            flow.wait_received(500, PATIENCE)?;
        }
        let late = Instant::now() - Duration::from_millis(300);
        for flow in [&forth, &back] {
            let outcome = flow.outcome(late, late + Duration::from_millis(200));
            ensure!(outcome.lost == 0, "{outcome:?}");
        }
        duo.lanes.heal(0, Cut::DropOut)?;
        duo.lanes.heal(1, Cut::DropIn)?;
        duo.wait_all_up()
    });
}

#[test]
fn flow_peer_is_down_when_all_links_are_and_heals() {
    case(|| {
        let duo = with_sections(Lanes::plain(Family::V4, 2)?, "", "")?;
        let watch = Watch::start(&duo.alpha)?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        for number in [0, 1] {
            duo.lanes.cut(number, Cut::DropBoth)?;
        }
        let cut = Instant::now();
        wait::until("the peer to be down at both ends", PATIENCE, || {
            !duo.alpha.peer_is_up(2) && !duo.beta.peer_is_up(1)
        })?;
        let took = cut.elapsed();
        let bounds = Duration::from_millis(300)..Duration::from_secs(4);
        ensure!(bounds.contains(&took), "down after {took:?}");
        let peer = duo.alpha.peer(2).unwrap_or_default();
        ensure!(peer["down_reason"].as_str().is_some_and(|why| !why.is_empty()), "{peer}");
        watch.wait("peer_down", None)?;
        for number in [0, 1] {
            duo.lanes.heal(number, Cut::DropBoth)?;
        }
        duo.alpha.wait_peer_up(2)?;
        duo.beta.wait_peer_up(1)?;
        duo.wait_all_up()?;
        watch.wait("peer_up", None)?;
        flow.wait_received(100, PATIENCE)
    });
}

#[test]
fn flow_tcp_and_ping_through_a_cut() {
    case(|| {
        let duo = two_lanes()?;
        let host = &duo.lanes.alpha;
        let pings = SteadyPing::start(host, overlay_v4(100, 2), 10)?;
        let _server = IperfServer::start(&duo.lanes.beta)?;
        let run = IperfRun { seconds: 3, streams: 1, reverse: false, udp: None };
        let tcp = start_iperf(host, overlay_v4(100, 2), run)?;
        let sent =
            || -> u64 { link(&duo.alpha, 2, 0).map(|link| link.number("tx_bytes")).unwrap_or(0) };
        wait::until("TCP to be under way", PATIENCE, || sent() > 1_000_000)?;
        duo.lanes.cut(0, Cut::DropBoth)?;
        duo.wait_sending(1)?;
        let report = tcp.finish()?;
        ensure!(report.bits_per_second > 20e6, "{report:?}");
        let lost = pings.lost()?;
        ensure!(lost < 30, "{lost} pings 10 ms apart were lost");
        Ok(())
    });
}

#[test]
fn flow_drain_loses_nothing() {
    case(|| {
        let duo = with_sections(Lanes::plain(Family::V4, 2)?, "", "")?;
        let flows = [
            duo.flow(FlowOptions::at(2000.0))?,
            duo.flow_from(Side::Beta, FlowOptions::at(2000.0))?,
        ];
        for _ in 0..4 {
            let number = duo.sending()?;
            let name = number.to_string();
            duo.alpha.tapd(&["link", "drain", "beta", &name])?;
            duo.wait_sending(1 - number)?;
            let drained = link(&duo.alpha, 2, number)?;
            ensure!(drained.flag("drained") && drained.is_up(), "{drained:?}");
            flows[0].wait_received(200, PATIENCE)?;
            duo.alpha.tapd(&["link", "undrain", "beta", &name])?;
            ensure!(!link(&duo.alpha, 2, number)?.flag("drained"));
        }
        for flow in flows {
            let outcome = flow.finish()?;
            ensure!(outcome.lost + outcome.duplicated + outcome.damaged == 0, "{outcome:?}");
        }
        Ok(())
    });
}

#[test]
fn flow_drain_of_every_link_still_sends() {
    case(|| {
        let duo = with_sections(Lanes::plain(Family::V4, 2)?, "", "")?;
        for name in ["0", "1"] {
            duo.alpha.tapd(&["link", "drain", "beta", name])?;
        }
        wait_links(&duo.alpha, 2, "both links to be drained", PATIENCE, |links| {
            links.iter().all(|link| link.flag("drained"))
        })?;
        ping_all(&duo.lanes.alpha, overlay_v4(100, 2))
    });
}

#[test]
fn api_priority_of_a_link_changes_live() {
    case(|| {
        let duo = two_lanes()?;
        duo.wait_sending(0)?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        let config = ClusterConfig {
            sections: FIRST_PREFERRED.replace("\"0\"", "\"1\""),
            ..duo.lanes.config()
        };
        duo.dir.write(&config)?;
        for (node, _) in duo.nodes() {
            let said = node.tapd(&["reload"])?;
            ensure!(!said.contains("restart"), "reload said:\n{said}");
        }
        duo.wait_sending(1)?;
        ensure!(link(&duo.alpha, 2, 1)?.number("priority") == 10);
        let outcome = flow.finish()?;
        ensure!(outcome.lost + outcome.duplicated == 0, "{outcome:?}");
        Ok(())
    });
}

#[test]
fn api_links_have_names_and_pair_by_them() {
    case(|| {
        let lanes = Lanes::plain(Family::V4, 2)?;
        let mut config = lanes.config();
        // Not in the same order, and one that the other node does not have.
        let sides = [
            [("wan", lanes.lane(1)?.alpha), ("lan", lanes.lane(0)?.alpha)],
            [("lan", lanes.lane(0)?.beta), ("wan", lanes.lane(1)?.beta)],
        ];
        for (node, links) in config.nodes.iter_mut().zip(sides) {
            node.addresses.clear();
            let links =
                links.map(|(name, at)| format!("{{ name = \"{name}\", address = \"{at}\" }}"));
            node.extra = format!("links = [{}]\n", links.join(", "));
        }
        config.sections = "[[links]]\nname = \"lan\"\npriority = 3\n".to_owned();
        let duo = LaneDuo::with(lanes, &config)?;
        let names = |node, peer| -> Result<Vec<String>> {
            Ok(links(node, peer)?.iter().map(|link| link.text("name").to_owned()).collect())
        };
        let seen = names(&duo.alpha, 2)?;
        ensure!(seen == names(&duo.beta, 1)?, "the ends number their links differently");
        ensure!(seen.len() == 2 && seen.contains(&"lan".to_owned()), "{seen:?}");
        for (node, peer) in duo.nodes() {
            for one in links(node, peer)? {
                let lane = usize::from(one.text("name") == "wan");
                let network = format!("198.18.{lane}.");
                ensure!(one.text("local").contains(&network), "{one:?}");
                ensure!(one.text("remote").contains(&network), "{one:?}");
            }
        }
        let said = duo.alpha.tapd(&["link", "drain", "beta", "lan"])?;
        let wan = seen.iter().position(|name| name == "wan").unwrap_or(0);
        duo.wait_sending(wan).with_context(|| format!("drain said {said:?}"))?;
        ping_all(&duo.lanes.alpha, overlay_v4(100, 2))
    });
}

/// What `tapd show links --json` says about each link.
const LINK_KEYS: &str = "node peer index name local remote state drained sending reason priority \
    weight uplink_mtu path_mtu max_udp_payload path_mtu_how path_mtu_age_s searching interval_us \
    rtt_min_us rtt_us rtt_p50_us rtt_p99_us rtt_p999_us jitter_us skew_us loss_rx_ppm loss_tx_ppm \
    rx_datagrams tx_datagrams rx_bytes tx_bytes copies resent transitions errors";

#[test]
fn api_show_links_says_everything() {
    case(|| {
        let duo = two_lanes()?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        wait_links(&duo.alpha, 2, "round-trip times", PATIENCE, |links| {
            links.iter().all(|link| link.number("rtt_us") > 0)
        })?;
        flow.finish()?;
        for one in links(&duo.alpha, 2)? {
            for key in LINK_KEYS.split_whitespace() {
                ensure!(one.has(key), "no {key} in {one:?}");
            }
            ensure!(one.number("path_mtu") == 1500 && one.number("uplink_mtu") == 1500, "{one:?}");
            ensure!(one.number("max_udp_payload") == 1472, "{one:?}");
            ensure!(one.number("rx_datagrams") > 0 && one.number("tx_bytes") > 0, "{one:?}");
            ensure!(one.number("rtt_min_us") <= one.number("rtt_p99_us"), "{one:?}");
        }
        let peer = duo.alpha.peer(2).unwrap_or_default();
        for (key, value) in [("policy", "passive"), ("protect", "control")] {
            ensure!(peer[key] == value, "{key} is {} in {peer}", peer[key]);
        }
        ensure!(peer["links_up"] == 2, "{peer}");
        for more in [&["show", "links"][..], &["show", "links", "--verbose"]] {
            let table = duo.alpha.tapd(more)?;
            let widest = table.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            ensure!(widest <= 140, "{widest} columns:\n{table}");
            ensure!(table.contains("beta") && table.contains("198.18.1.2"), "{table}");
        }
        Ok(())
    });
}

#[test]
fn api_link_commands_refuse_nonsense() {
    case(|| {
        let duo = two_lanes()?;
        let code = |arguments: &[&str]| -> Result<Option<i32>> {
            Ok(duo.alpha.tapd_output(&[&["link"], arguments].concat())?.status.code())
        };
        ensure!(code(&["drain", "nobody", "0"])? == Some(6));
        ensure!(code(&["drain", "beta", "nothing"])? == Some(6));
        ensure!(code(&["undrain", "beta", "7"])? == Some(6));
        ensure!(code(&["mtu", "beta", "0", "1279"])? != Some(0));
        ensure!(code(&["mtu", "beta", "0", "large"])? != Some(0));
        ensure!(code(&["drain", "beta"])? == Some(2));
        let untouched = links(&duo.alpha, 2)?;
        ensure!(untouched.iter().all(|link| link.is_up() && !link.flag("drained")));
        Ok(())
    });
}

#[test]
fn api_watch_tells_people_and_programs() {
    case(|| {
        let mut duo = two_lanes()?;
        duo.wait_sending(0)?;
        let start = |arguments: &[&str]| -> Result<Running> {
            let mut command = duo.alpha.client(&[&["watch"], arguments].concat());
            Running::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
        };
        let people = start(&["--count", "1"])?;
        let programs = start(&["--count", "2", "--json"])?;
        // Connected when the third one is, which connects last.
        let mut endless = start(&[])?;
        let watch = Watch::start(&duo.alpha)?;
        duo.lanes.cut(0, Cut::DropBoth)?;
        watch.wait("link_down", Some("0"))?;
        let output = people.finish(PATIENCE)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && text.lines().count() == 1, "{text}");
        ensure!(text.contains("beta"), "{text}");
        let output = programs.finish(PATIENCE)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && text.lines().count() == 2, "{text}");
        for line in text.lines() {
            let event: serde_json::Value = serde_json::from_str(line)?;
            for key in ["time_ms", "event", "node", "peer", "link", "cause"] {
                ensure!(event.get(key).is_some(), "no {key} in {line}");
            }
        }
        ensure!(endless.ended().is_none(), "watch without --count ended by itself");
        duo.alpha.stop(&["tap100"])?;
        let status = endless.wait_end(PATIENCE)?;
        ensure!(status.code() == Some(1), "{status} when the daemon ended");
        Ok(())
    });
}
