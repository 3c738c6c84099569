//! A node whose address changes.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::capture::{Capture, CapturedDatagram, datagrams};
use integration::cluster::{Mesh, overlay_v4};
use integration::config::ClusterConfig;
use integration::flow::{Flow, FlowOptions};
use integration::links::{PATIENCE, Watch, link};
use integration::load::junk::{Junk, Kind};
use integration::netns;
use integration::skip::case;
use integration::topology::{Family, Star, UNDERLAY};
use integration::wait;

/// Bytes of UDP payload that the cables of [`Star`] take in one packet of IPv4.
const LARGEST_PAYLOAD: usize = 1472;

/// alpha at 192.0.2.1, beta wherever it is (at first 192.0.2.2), and a host 3 that has no node.
/// `lan` are more lines for the link.
fn roaming(lan: &str) -> Result<Mesh> {
    let mut config = ClusterConfig::new(Family::V4, 2);
    for (node, address) in config.nodes.iter_mut().zip(["192.0.2.1", "dynamic"]) {
        node.addresses.clear();
        node.extra = format!("links = [{{ name = \"lan\", address = \"{address}\" }}]\n");
    }
    config.sections = format!("[[links]]\nname = \"lan\"\n{lan}\n");
    Mesh::with(Star::new(Family::V4, 3)?, &config)
}

/// Both directions at once.
fn flows(mesh: &Mesh) -> Result<[Flow; 2]> {
    let [alpha, beta] = [1, 2].map(|id| (&*mesh.star.hosts[id - 1], overlay_v4(100, id as u8)));
    let forth = Flow::start(alpha, beta, FlowOptions::at(500.0))?;
    let back = Flow::start(beta, alpha, FlowOptions::at(500.0))?;
    for flow in [&forth, &back] {
        flow.wait_received(50, PATIENCE)?;
    }
    Ok([forth, back])
}

/// Where alpha sends what is for beta.
fn remote(mesh: &Mesh) -> String {
    link(&mesh.nodes[0], 2, 0).map(|link| link.text("remote").to_owned()).unwrap_or_default()
}

fn move_beta(mesh: &Mesh, from: &str, to: &str) -> Result<()> {
    let host = &mesh.star.hosts[1];
    host.ip(&["addr", "del", from, "dev", UNDERLAY])?;
    host.add_address(UNDERLAY, to)
}

#[test]
fn flow_follows_a_node_that_moves() {
    case(|| {
        let mesh = roaming("")?;
        let watch = Watch::start(&mesh.nodes[0])?;
        let flows = flows(&mesh)?;
        ensure!(remote(&mesh).contains("192.0.2.2"), "{}", remote(&mesh));
        for (from, to) in [("192.0.2.2/24", "192.0.2.9/24"), ("192.0.2.9/24", "192.0.2.200/24")] {
            move_beta(&mesh, from, to)?;
            for flow in &flows {
                flow.wait_received(200, PATIENCE)?;
            }
            let at = to.trim_end_matches("/24");
            wait::until("the new address to be known", PATIENCE, || remote(&mesh).contains(at))?;
        }
        watch.wait("roamed", Some("lan"))?;
        ensure!(watch.count("peer_down") == 0, "{:?}", watch.events());
        Ok(())
    });
}

#[test]
fn sec_datagrams_from_elsewhere_move_nothing() {
    case(|| {
        let mesh = roaming("")?;
        let watch = Watch::start(&mesh.nodes[0])?;
        let capture = Capture::start(&mesh.star.hosts[0], UNDERLAY, "udp and src host 192.0.2.2")?;
        let [forth, back] = flows(&mesh)?;
        back.wait_received(200, PATIENCE)?;
        let captured = capture.finish_after("a datagram", PATIENCE, |packet| {
            CapturedDatagram::parse(packet).is_some()
        })?;
        // A run of datagrams that left at once is captured as one, longer than a cable takes.
        let material: Vec<Vec<u8>> = datagrams(&captured)
            .into_iter()
            .map(|datagram| datagram.payload)
            .filter(|payload| payload.len() <= LARGEST_PAYLOAD)
            .collect();
        ensure!(material.len() > 50, "{} datagrams captured", material.len());
        let dropped = || -> Result<u64> { Ok(mesh.nodes[0].drops()?.values().sum()) };
        let before = dropped()?;
        for kind in [Kind::Replay, Kind::Mutate] {
            let junk = Junk {
                kind,
                source: ("192.0.2.3".parse()?, 26026),
                destination: ("192.0.2.1".parse()?, 26026),
                rate: 10_000.0,
                count: 3_000,
                seed: 7,
                material: material.clone(),
            };
            ensure!(junk.send(&netns::open(mesh.star.hosts[2].name())?)?.sent == junk.count);
        }
        wait::until("the junk to be dropped", PATIENCE, || {
            dropped().is_ok_and(|now| now > before + 1_000)
        })?;
        ensure!(remote(&mesh).contains("192.0.2.2"), "{}", remote(&mesh));
        ensure!(watch.count("roamed") == 0, "{:?}", watch.events());
        for flow in [forth, back] {
            flow.wait_received(100, PATIENCE)?;
            let outcome = flow.finish()?;
            ensure!(outcome.lost + outcome.duplicated + outcome.damaged == 0, "{outcome:?}");
        }
        Ok(())
    });
}

#[test]
fn sec_denied_addresses_are_not_learnt() {
    case(|| {
        // An address, a prefix and a range.
        let mesh = roaming(
            "deny = [\"192.0.2.7\", \"192.0.2.8/30\", \"192.0.2.100-192.0.2.120\"]\n\
             allow = [\"192.0.2.0/24\"]",
        )?;
        let flows = flows(&mesh)?;
        let mut at = "192.0.2.2/24";
        for denied in ["192.0.2.7/24", "192.0.2.9/24", "192.0.2.101/24"] {
            move_beta(&mesh, at, denied)?;
            at = denied;
            let address = denied.trim_end_matches("/24");
            // In this time a node that moves to a good address has long been followed.
            wait::holds_for("denied", Duration::from_millis(700), || {
                !remote(&mesh).contains(address)
            })?;
        }
        move_beta(&mesh, at, "192.0.2.60/24")?;
        for flow in &flows {
            flow.wait_received(100, PATIENCE)?;
        }
        ensure!(remote(&mesh).contains("192.0.2.60"), "{}", remote(&mesh));
        Ok(())
    });
}

#[test]
fn sec_only_allowed_addresses_are_learnt() {
    case(|| {
        let mesh = roaming("allow = [\"192.0.2.0/28\"]")?;
        let flows = flows(&mesh)?;
        move_beta(&mesh, "192.0.2.2/24", "192.0.2.60/24")?;
        wait::holds_for("not allowed", Duration::from_millis(700), || {
            !remote(&mesh).contains("192.0.2.60")
        })?;
        move_beta(&mesh, "192.0.2.60/24", "192.0.2.14/24")?;
        for flow in &flows {
            flow.wait_received(100, PATIENCE)?;
        }
        ensure!(remote(&mesh).contains("192.0.2.14"), "{}", remote(&mesh));
        Ok(())
    });
}
