//! Nodes and networks come and go while others carry traffic.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration::cluster::{overlay_v4, overlay_v6};
use integration::config::{ClusterConfig, ClusterDir, NetworkEntry};
use integration::node::Node;
use integration::skip::case;
use integration::topology::{Family, Star};
use integration::traffic::{SteadyPing, ping_all};
use integration::wait;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn api_reload_adds_and_removes_without_disturbing() {
    case(|| {
        let star = Star::new(Family::V4, 3)?;
        let [one, two, three] = &star.hosts[..] else { anyhow::bail!("three hosts") };
        let small = ClusterConfig::new(Family::V4, 2);
        let dir = ClusterDir::new(&small)?;
        let alpha = Node::start(&dir, one, "alpha")?;
        let mut beta = Node::start(&dir, two, "beta")?;
        alpha.wait_peer_up(2)?;
        let pings = [
            SteadyPing::start(one, overlay_v4(100, 2), 2)?,
            SteadyPing::start(two, overlay_v6(100, 1), 2)?,
        ];

        // A third node and a second network: by command on one, by signal on the other.
        let mut large = ClusterConfig::new(Family::V4, 3);
        large.networks.push(NetworkEntry::new(101));
        dir.write(&large)?;
        let said = alpha.tapd(&["reload"])?;
        ensure!(said.contains("gamma") && said.contains("101"), "reload said:\n{said}");
        beta.signal(libc::SIGHUP)?;
        let gamma = Node::start(&dir, three, "gamma")?;
        for (node, peer) in [(&alpha, 3), (&beta, 3), (&gamma, 1), (&gamma, 2)] {
            node.wait_peer_up(peer)?;
        }
        for (from, to) in [(one, 2), (one, 3), (two, 3), (three, 1)] {
            ping_all(from, overlay_v4(101, to))?;
            ping_all(from, overlay_v6(101, to))?;
        }
        ping_all(three, overlay_v4(100, 2))?;

        // And away again.
        drop(gamma);
        dir.write(&small)?;
        alpha.tapd(&["reload"])?;
        beta.signal(libc::SIGHUP)?;
        for (node, netns) in [(&alpha, one), (&beta, two)] {
            wait::until("tap101 and gamma to be gone", PATIENCE, || {
                node.peer(3).is_none()
                    && netns.interfaces().is_ok_and(|all| !all.iter().any(|i| i == "tap101"))
            })?;
        }
        for ping in pings {
            let lost = ping.lost()?;
            let drops = [alpha.drops()?, beta.drops()?];
            let drops = drops.map(|node| node.into_iter().filter(|d| d.1 > 0).collect::<Vec<_>>());
            ensure!(lost == 0, "{lost} pings were lost; drops of alpha and beta: {drops:?}");
        }
        Ok(())
    });
}

#[test]
fn api_reload_says_what_needs_a_restart_and_refuses_faults() {
    case(|| {
        let star = Star::new(Family::V4, 1)?;
        let good = ClusterConfig::new(Family::V4, 2);
        let dir = ClusterDir::new(&good)?;
        let alpha = Node::start(&dir, &star.hosts[0], "alpha")?;
        dir.write(&ClusterConfig { workers: 2, ..good.clone() })?;
        let said = alpha.tapd(&["reload"])?;
        ensure!(said.contains("workers") && said.contains("restart"), "reload said:\n{said}");

        dir.write_text("[cluster]\ncolour = \"red\"\n")?;
        let output = alpha.tapd_output(&["reload"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(6), "{:?}: {said}", output.status);
        ensure!(said.contains("cluster.toml:2:"), "reload said:\n{said}");
        let networks = alpha.tapd(&["show", "networks"])?;
        ensure!(networks.contains("tap100"), "a refused reload changed something:\n{networks}");
        dir.write(&good)?;
        alpha.tapd(&["reload"]).context("after the fault was mended").map(|_| ())
    });
}

#[test]
fn api_reload_makes_a_deleted_tap_anew_and_gives_its_name_to_another_network() {
    case(|| {
        let star = Star::new(Family::V4, 2)?;
        let [one, two] = &star.hosts[..] else { anyhow::bail!("two hosts") };
        let mut config = ClusterConfig::new(Family::V4, 2);
        let dir = ClusterDir::new(&config)?;
        let (alpha, beta) = (Node::start(&dir, one, "alpha")?, Node::start(&dir, two, "beta")?);
        alpha.wait_peer_up(2)?;
        ping_all(one, overlay_v4(100, 2))?;

        one.ip(&["link", "del", "tap100"])?;
        wait::until("the loss of the tap to be noticed", PATIENCE, || {
            alpha.tapd(&["show", "networks"]).is_ok_and(|text| !text.contains("tap100"))
        })?;
        let said = alpha.tapd(&["reload"])?;
        ensure!(said.contains("100"), "reload said:\n{said}");
        ping_all(one, overlay_v4(100, 2))?;

        // Another network takes the tap's name over, in one step, and back, many times.
        for vni in [200, 100, 200, 100, 200] {
            config.networks[0].vni = vni;
            config.networks[0].subnets = vec![format!("10.{vni}.0.0/24")];
            dir.write(&config)?;
            for node in [&alpha, &beta] {
                let said = node.tapd(&["reload"])?;
                ensure!(!said.contains("failed"), "reload said:\n{said}");
            }
            wait::until("the network to be there on both sides", PATIENCE, || {
                ping_all(one, std::net::Ipv4Addr::new(10, vni as u8, 0, 2).into()).is_ok()
            })?;
        }
        Ok(())
    });
}
