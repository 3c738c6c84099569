//! Three nodes: flooding, learning, split horizon.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cluster::{Mesh, overlay_v4, overlay_v6};
use integration::config::ClusterConfig;
use integration::frames::{Probe, test_frame};
use integration::skip::case;
use integration::topology::{Family, Star};
use integration::traffic::ping_all;

const PATIENCE: Duration = Duration::from_secs(3);
const BROADCAST: [u8; 6] = [0xff; 6];

fn mac(host: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0xbb, host]
}

/// Three silent nodes with a probe each.
fn probed_mesh() -> Result<(Vec<Probe>, Mesh)> {
    let star = Star::new(Family::V4, 3)?;
    for host in &star.hosts {
        host.silence_ipv6()?;
    }
    let mesh = Mesh::with(star, &ClusterConfig::new(Family::V4, 3).without_addresses())?;
    let probes: Result<Vec<Probe>> =
        mesh.star.hosts.iter().map(|host| Probe::attach(host, "tap100")).collect();
    Ok((probes?, mesh))
}

#[test]
fn flow_three_nodes_reach_each_other() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let mesh = Mesh::with(Star::new(family, 3)?, &ClusterConfig::new(family, 3))?;
            for (host, from) in mesh.star.hosts.iter().zip(1..) {
                for to in (1..=3).filter(|to| *to != from) {
                    ping_all(host, overlay_v4(100, to))?;
                    ping_all(host, overlay_v6(100, to))?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn flow_unicast_is_flooded_until_learnt() {
    case(|| {
        let (probes, mesh) = probed_mesh()?;
        let [one, two, three] = &probes[..] else { anyhow::bail!("three probes") };
        // Unknown: reaches both others.
        let unknown = test_frame(mac(3), mac(1), &[], 64, 1);
        one.send(&unknown)?;
        ensure!(two.receive(PATIENCE)?.as_ref() == Some(&unknown));
        ensure!(three.receive(PATIENCE)?.as_ref() == Some(&unknown));
        // The answer teaches node 1 (and went to node 1 only, which had been learnt).
        let answer = test_frame(mac(1), mac(3), &[], 64, 2);
        three.send(&answer)?;
        ensure!(one.receive(PATIENCE)?.as_ref() == Some(&answer));
        let fdb = mesh.nodes[0].show("fdb")?;
        let entry =
            fdb.as_array().and_then(|all| all.iter().find(|e| e["mac"] == "02:00:00:00:bb:03"));
        ensure!(entry.is_some_and(|e| e["where"] == "gamma"), "FDB of node 1: {fdb}");
        // Known: reaches node 3 and not node 2, whose next frame is the broadcast after it.
        let known = test_frame(mac(3), mac(1), &[], 64, 3);
        let mark = test_frame(BROADCAST, mac(1), &[], 64, 4);
        one.send(&known)?;
        one.send(&mark)?;
        ensure!(three.receive(PATIENCE)?.as_ref() == Some(&known));
        let next = two.receive(PATIENCE)?;
        ensure!(next.as_ref() == Some(&mark), "node 2 got {next:02x?}");
        Ok(())
    });
}

#[test]
fn flow_flooded_frames_arrive_once() {
    case(|| {
        let (probes, _mesh) = probed_mesh()?;
        let count = 50u8;
        for seed in 0..count {
            probes[0].send(&test_frame(BROADCAST, mac(1), &[], 64, seed))?;
        }
        // In order, each once: a node that flooded on what came from a peer would make copies.
        for probe in &probes[1..] {
            for seed in 0..count {
                let wanted = test_frame(BROADCAST, mac(1), &[], 64, seed);
                let got = probe.receive(PATIENCE)?;
                ensure!(got.as_ref() == Some(&wanted), "number {seed}: {got:02x?}");
            }
            ensure!(probe.receive(Duration::from_millis(100))?.is_none(), "one too many");
        }
        ensure!(probes[0].receive(Duration::ZERO)?.is_none(), "it came back to its sender");
        Ok(())
    });
}

#[test]
fn flow_station_that_moves_is_followed() {
    case(|| {
        let (probes, mesh) = probed_mesh()?;
        let behind = |wanted: &str| {
            mesh.nodes[0].show("fdb").is_ok_and(|fdb| {
                fdb.as_array().is_some_and(|all| {
                    all.iter().any(|e| e["mac"] == "02:00:00:00:bb:09" && e["where"] == wanted)
                })
            })
        };
        let hello = test_frame(BROADCAST, mac(9), &[], 64, 1);
        probes[1].send(&hello)?;
        integration::wait::until("the station behind beta", PATIENCE, || behind("beta"))?;
        probes[2].send(&hello)?;
        integration::wait::until("the station behind gamma", PATIENCE, || behind("gamma"))?;
        Ok(())
    });
}

#[test]
fn flow_static_entry_and_members() {
    case(|| {
        let star = Star::new(Family::V4, 3)?;
        let mut config = ClusterConfig::new(Family::V4, 3);
        // Node 3 is in the cluster but not in the network.
        config.networks[0].extra = "members = [\"alpha\", 2]\n\
            fdb = [ { mac = \"02:00:00:00:bb:07\", node = 2 } ]\n"
            .to_owned();
        let mesh = Mesh::with(star, &config)?;
        ping_all(&mesh.star.hosts[0], overlay_v4(100, 2))?;
        ensure!(!mesh.star.hosts[2].interfaces()?.iter().any(|name| name == "tap100"));
        let fdb = mesh.nodes[0].show("fdb")?.to_string();
        ensure!(fdb.contains("02:00:00:00:bb:07") && fdb.contains("static"), "FDB: {fdb}");
        Ok(())
    });
}
