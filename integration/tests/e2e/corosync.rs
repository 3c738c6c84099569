//! Debian's corosync on a network of tapd while an underlay fails, and on its own two links.
//!
//! ```text
//!   host 1 .. 3, each:                      switches that can die and tell nobody:
//!   corosync -- tap100 -- tapd -- under0 -- switch
//!                              \- under1 -- switch1
//! ```
//!
//! Takes a minute, so it runs with `--all` only.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::cluster::{Mesh, overlay_v4};
use integration::config::ClusterConfig;
use integration::corosync::{Cluster, Transport, require};
use integration::flow::{Flow, FlowOptions};
use integration::links::{Link, PATIENCE, links, wait_links};
use integration::skip::case;
use integration::topology::{Family, Star, second_address};
use integration::wait;

/// Longest pause of a steady flow through the tap when a switch dies.
const LONGEST_GAP_MS: f64 = 1000.0;
/// Twice the time, and a little more, after which corosync gives a node up whose token does not
/// come: 3650 ms with three nodes and timers as they come.
const WATCH: Duration = Duration::from_secs(8);
/// libknet waits up to ten times as long for a link that was just made; that is over after this.
const SETTLED: Duration = Duration::from_secs(15);
/// It then has 2 s and a few ticks to notice.
const KNET_PATIENCE: Duration = Duration::from_secs(15);

fn three_hosts() -> Result<Star> {
    let star = Star::new(Family::V4, 3)?;
    star.add_switch(1)?;
    Ok(star)
}

/// Three nodes with two links to each other.
fn mesh() -> Result<Mesh> {
    let mut config = ClusterConfig::new(Family::V4, 3);
    for (host, node) in (1..).zip(&mut config.nodes) {
        node.addresses.push(second_address(1, host));
    }
    let mesh = Mesh::with(three_hosts()?, &config)?;
    wait_all_up(&mesh)?;
    Ok(mesh)
}

fn wait_all_up(mesh: &Mesh) -> Result<()> {
    for (node, id) in mesh.nodes.iter().zip(1..) {
        for peer in (1..=3).filter(|peer| *peer != id) {
            wait_links(node, peer, "both links to be up", PATIENCE, |links| {
                links.len() == 2 && links.iter().all(Link::is_up)
            })?;
        }
    }
    Ok(())
}

/// What a switch's death did to a cluster on tapd's network.
fn on_tapd(transport: Transport) -> Result<()> {
    require()?;
    let mesh = mesh()?;
    let cluster = Cluster::start(&mesh.star.hosts, transport, |host| vec![overlay_v4(100, host)])?;
    let ends = [1, 2].map(|host: u8| (&*mesh.star.hosts[usize::from(host) - 1], host));
    let [near, far] = ends.map(|(netns, host)| (netns, overlay_v4(100, host)));
    let flow = Flow::start(near, far, FlowOptions::at(1000.0))?;
    flow.wait_received(100, PATIENCE)?;
    let carries = links(&mesh.nodes[0], 2)?.iter().position(Link::is_sending).unwrap_or(0) as u8;
    let before = (cluster.memberships(), cluster.count("is down"));

    let died = Instant::now();
    mesh.star.set_switch(carries, false)?;
    for (node, id) in mesh.nodes.iter().zip(1..) {
        for peer in (1..=3).filter(|peer| *peer != id) {
            wait_links(node, peer, "the dead link to be seen", PATIENCE, |links| {
                links.get(usize::from(carries)).is_some_and(|link| !link.is_up())
            })?;
        }
    }
    let seen = died.elapsed();
    wait::holds_for("corosync to keep its membership", WATCH, || {
        (cluster.memberships(), cluster.count("is down")) == before
    })?;
    cluster.ensure_whole()?;
    mesh.star.set_switch(carries, true)?;
    wait_all_up(&mesh)?;
    cluster.ensure_whole()?;
    let outcome = flow.finish()?;
    eprintln!(
        "corosync ({transport:?}) on tapd: longest gap {:.0} ms, {} of {} lost, all six ends knew \
         of the dead link after {:.0} ms, no membership formed",
        outcome.gap_ms,
        outcome.lost,
        outcome.sent,
        seen.as_secs_f64() * 1e3,
    );
    ensure!(outcome.gap_ms < LONGEST_GAP_MS, "{outcome:?}");
    ensure!(
        (cluster.memberships(), cluster.count("is down")) == before,
        "the way back was noticed"
    );
    Ok(())
}

/// The same death below corosync's own two links: how long until each node has left the dead one.
fn on_knet() -> Result<()> {
    require()?;
    let star = three_hosts()?;
    let cluster = Cluster::start(&star.hosts, Transport::Knet, |host| {
        vec![Family::V4.address(host), second_address(1, host)]
    })?;
    let up = Instant::now();
    // Time is the condition here.
    wait::until("libknet's timers to settle", SETTLED * 2, || up.elapsed() > SETTLED)?;
    let memberships = cluster.memberships();
    let died = Instant::now();
    star.set_switch(0, false)?;
    let mut times = Vec::new();
    for count in [1, 6] {
        // Each of the three nodes says it of its two peers.
        wait::until("libknet to see the dead link", KNET_PATIENCE, || {
            cluster.count("link: 0 is down") >= count
        })?;
        times.push(died.elapsed().as_secs_f64() * 1e3);
    }
    cluster.ensure_whole()?;
    eprintln!(
        "corosync on its own two links (knet, timers as they come): first link down after {:.0} ms, \
         all six ends after {:.0} ms, {} memberships formed",
        times[0],
        times[1],
        cluster.memberships() - memberships,
    );
    Ok(())
}

#[test]
#[ignore = "takes a minute: integration/run test --all"]
fn flow_corosync_on_tapd_does_not_notice_a_dead_link() {
    case(|| {
        on_tapd(Transport::Knet)?;
        on_tapd(Transport::Udpu)?;
        on_knet()
    });
}
