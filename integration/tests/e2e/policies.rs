//! Which links carry which frames.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use integration::capture::{Capture, datagrams};
use integration::cluster::overlay_v4;
use integration::config::ClusterConfig;
use integration::flow::FlowOptions;
use integration::lanes::{Cut, LaneSpec, Lanes};
use integration::links::{LaneDuo, Link, PATIENCE, links, wait_links};
use integration::look::SEALED_OVERHEAD;
use integration::skip::case;
use integration::topology::{Family, Offloads};
use integration::wait;

/// Ethernet, IPv4 and UDP headers in front of a payload.
const HEADERS: usize = 42;

fn with_policy(lanes: Lanes, policy: &str) -> Result<LaneDuo> {
    // Captures tell flows apart by the sizes of their datagrams.
    let sections = if policy == "flow-hash" { "[offload]\nbundles = false\n" } else { "" };
    let config = ClusterConfig {
        cluster_extra: format!("policy = \"{policy}\"\n"),
        sections: sections.to_owned(),
        ..lanes.config()
    };
    let duo = LaneDuo::with(lanes, &config)?;
    duo.lanes.set_offloads(Offloads::Wire)?;
    Ok(duo)
}

#[test]
fn flow_active_loses_nothing_and_delivers_once() {
    case(|| {
        let duo = with_policy(Lanes::plain(Family::V4, 2)?, "active")?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        for (number, how) in [(0, Cut::DropBoth), (1, Cut::CarrierFar), (0, Cut::Carrier)] {
            duo.lanes.cut(number, how)?;
            duo.wait_not_up(number)?;
            flow.wait_received(200, PATIENCE)?;
            duo.lanes.heal(number, how)?;
            duo.wait_all_up()?;
            flow.wait_received(200, PATIENCE)?;
        }
        let outcome = flow.finish()?;
        ensure!(outcome.lost + outcome.duplicated + outcome.damaged == 0, "{outcome:?}");
        let copies: u64 = links(&duo.beta, 1)?.iter().map(|link| link.number("copies")).sum();
        ensure!(copies > outcome.sent / 10, "{copies} copies of {}", outcome.sent);
        Ok(())
    });
}

#[test]
fn flow_active_over_bad_cables_delivers_each_once() {
    case(|| {
        let lanes = Lanes::new(&[
            LaneSpec::new(Family::V4).relayed(),
            LaneSpec::new(Family::V6).relayed(),
        ])?;
        let config =
            ClusterConfig { cluster_extra: "policy = \"active\"\n".to_owned(), ..lanes.config() };
        let duo = LaneDuo::with(lanes, &config)?;
        let [Some(bad), Some(slow)] = [0, 1].map(|n| duo.lanes.lanes[n].relay.as_ref()) else {
            bail!("no relays")
        };
        for way in bad.both() {
            way.set_loss(0.03);
            way.set_duplication(0.1);
            way.set_reordering(0.1, Duration::from_millis(2));
        }
        for way in slow.both() {
            way.set_delay(Duration::from_millis(2), Duration::from_millis(1));
        }
        let flow = duo.flow(FlowOptions::at(1000.0).with_payload(600))?;
        flow.wait_received(2000, PATIENCE)?;
        let outcome = flow.finish()?;
        ensure!(outcome.lost + outcome.duplicated + outcome.damaged == 0, "{outcome:?}");
        ensure!(bad.forth.counts().lost > 10, "{:?}", bad.forth.counts());
        Ok(())
    });
}

#[test]
fn flow_bad_cable_is_left_for_a_good_one() {
    case(|| {
        let lanes = Lanes::new(&[
            LaneSpec::new(Family::V4).relayed(),
            LaneSpec::new(Family::V4).relayed(),
        ])?;
        // The cables are programs here, and stand still for some rounds when the cores are busy: a
        // good one must not be held back for that again and again.
        let sections = "[detector]\nhold_s = 1\nmax_hold_s = 1\nmin_missed = 8\n".to_owned();
        let config = ClusterConfig { sections, ..lanes.config() };
        let duo = LaneDuo::with(lanes, &config)?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        let number = duo.sending()?;
        let Some(relay) = &duo.lanes.lane(number)?.relay else { bail!("no relay") };
        for way in relay.both() {
            way.set_loss(0.1);
        }
        duo.wait_sending(1 - number)?;
        wait_links(&duo.alpha, 2, "the loss to be shown", PATIENCE, |links| {
            links.get(number).is_some_and(|link| link.number("loss_tx_ppm") > 20_000)
        })?;
        flow.wait_received(100, PATIENCE)
    });
}

/// Sends `each` datagrams of every flow and tells by the captures of all lanes which flow went by
/// which. A flow is known by the size of its datagrams.
fn lanes_of_flows(duo: &LaneDuo, each: usize) -> Result<BTreeMap<usize, BTreeSet<usize>>> {
    let sizes: Vec<usize> = (0..24).map(|flow| 200 + 10 * flow).collect();
    let captures: Result<Vec<Capture>> = duo
        .lanes
        .lanes
        .iter()
        .map(|lane| {
            let filter = format!("udp and src host {}", lane.alpha);
            Capture::start(&duo.lanes.alpha, &lane.interface, &filter)
        })
        .collect();
    let captures = captures?;
    let to = SocketAddr::new(overlay_v4(100, 2), 9999);
    // Somebody must listen, or there would be answers.
    let listener = duo.lanes.beta.enter(|| Ok(UdpSocket::bind(to)?))?;
    duo.lanes.alpha.enter(|| {
        for (port, size) in (40_000..).zip(&sizes) {
            let socket = UdpSocket::bind(SocketAddr::new(overlay_v4(100, 1), port))?;
            for _ in 0..each {
                socket.send_to(&vec![0x77; *size], to)?;
            }
        }
        Ok(())
    })?;
    let seen = || -> Vec<Vec<usize>> {
        let lengths = |capture: &Capture| {
            let packets = capture.so_far().unwrap_or_default();
            let all = datagrams(&packets).into_iter().filter(|d| d.is_sealed_frame());
            let payloads = all.map(|d| d.payload.len().saturating_sub(HEADERS + SEALED_OVERHEAD));
            payloads.filter(|length| sizes.contains(length)).collect()
        };
        captures.iter().map(lengths).collect()
    };
    let lanes = wait::until_some("every datagram on a cable", PATIENCE, || {
        let seen = seen();
        (seen.iter().map(Vec::len).sum::<usize>() >= each * sizes.len()).then_some(seen)
    })
    .with_context(|| format!("seen: {:?}", seen()))?;
    drop(listener);
    let mut map: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (lane, lengths) in lanes.into_iter().enumerate() {
        for length in lengths {
            map.entry(length).or_default().insert(lane);
        }
    }
    Ok(map)
}

#[test]
fn flow_hash_uses_all_links_and_moves_only_flows_of_the_dead() {
    case(|| {
        let duo = with_policy(Lanes::plain(Family::V4, 3)?, "flow-hash")?;
        let before = lanes_of_flows(&duo, 10)?;
        println!("{before:?}");
        ensure!(before.values().all(|lanes| lanes.len() == 1), "a flow by two lanes: {before:?}");
        let used: BTreeSet<usize> = before.values().flatten().copied().collect();
        ensure!(used == BTreeSet::from([0, 1, 2]), "24 flows use only {used:?}");
        for one in links(&duo.alpha, 2)? {
            ensure!(one.number("tx_datagrams") > 0, "{one:?}");
        }

        duo.lanes.cut(1, Cut::DropBoth)?;
        duo.wait_not_up(1)?;
        let after = lanes_of_flows(&duo, 10)?;
        for (flow, lanes) in &before {
            let now = after.get(flow).context("a flow is gone")?;
            if lanes.contains(&1) {
                ensure!(now.iter().any(|lane| *lane != 1), "flow {flow} still goes by lane 1");
            } else {
                ensure!(
                    now.is_superset(lanes) && now.len() == 1,
                    "flow {flow}: {lanes:?} to {now:?}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn flow_round_robin_uses_all_links() {
    case(|| {
        let duo = with_policy(Lanes::plain(Family::V4, 2)?, "round-robin")?;
        wait_links(&duo.alpha, 2, "both to carry frames", PATIENCE, |links| {
            links.iter().all(Link::is_sending)
        })?;
        let bytes = || -> Result<Vec<u64>> {
            Ok(links(&duo.alpha, 2)?.iter().map(|link| link.number("tx_bytes")).collect())
        };
        let before = bytes()?;
        let flow = duo.flow(FlowOptions::at(1000.0).with_payload(1200))?;
        flow.wait_received(1000, PATIENCE)?;
        let outcome = flow.finish()?;
        ensure!(outcome.lost + outcome.duplicated == 0, "{outcome:?}");
        for (before, after) in before.into_iter().zip(bytes()?) {
            ensure!(after - before > outcome.sent * 1200 / 4, "{before} to {after}: {outcome:?}");
        }
        Ok(())
    });
}

#[test]
fn api_policy_changes_live_and_loses_nothing() {
    case(|| {
        let duo = with_policy(Lanes::plain(Family::V4, 2)?, "passive")?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        for policy in ["active", "round-robin", "flow-hash", "active:2", "passive"] {
            let cluster_extra = format!("policy = \"{policy}\"\n");
            duo.dir.write(&ClusterConfig { cluster_extra, ..duo.lanes.config() })?;
            for (node, peer) in duo.nodes() {
                let said = node.tapd(&["reload"])?;
                ensure!(!said.contains("restart"), "reload said:\n{said}");
                wait::until(&format!("policy {policy}"), PATIENCE, || {
                    node.peer(peer).is_some_and(|peer| peer["policy"] == policy)
                })?;
            }
            flow.wait_received(200, PATIENCE)?;
        }
        let outcome = flow.finish()?;
        ensure!(outcome.lost + outcome.duplicated == 0, "{outcome:?}");
        Ok(())
    });
}

#[test]
fn flow_protect_all_loses_nothing_at_a_cut() {
    case(|| {
        let lanes = Lanes::plain(Family::V4, 2)?;
        let config =
            ClusterConfig { cluster_extra: "protect = \"all\"\n".to_owned(), ..lanes.config() };
        let duo = LaneDuo::with(lanes, &config)?;
        let flow = duo.flow(FlowOptions::at(1000.0))?;
        flow.wait_received(500, PATIENCE)?;
        for how in [Cut::DropBoth, Cut::DropOut, Cut::Carrier, Cut::Address, Cut::CarrierFar] {
            let number = duo.sending()?;
            duo.lanes.cut(number, how)?;
            duo.wait_not_up(number)?;
            flow.wait_received(200, PATIENCE)?;
            duo.lanes.heal(number, how)?;
            duo.wait_all_up()?;
        }
        let outcome = flow.finish()?;
        ensure!(outcome.lost + outcome.duplicated + outcome.damaged == 0, "{outcome:?}");
        let resent: u64 = links(&duo.alpha, 2)?.iter().map(|link| link.number("resent")).sum();
        ensure!(resent > 0, "nothing was sent again");
        Ok(())
    });
}
