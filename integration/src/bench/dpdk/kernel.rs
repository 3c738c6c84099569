//! From a guest's port into the kernel's underlay, and the kernel's own way there.

use std::time::Duration;

use anyhow::Result;

use super::What;
use super::tapd::{Node, config, make_key};
use super::traffic::{Course, Place, flood, guest};
use crate::netns::Netns;
use crate::topology::{Family, Offloads, Pair, UNDERLAY, make_bridge};

const SIZES: [(usize, What, What); 2] =
    [(60, What::Through60, What::Lost60), (1400, What::Through1400, What::Lost1400)];

fn pair() -> Result<Pair> {
    let pair = Pair::new(Family::V4, 1500)?;
    pair.set_offloads(Offloads::Wire)?;
    Ok(pair)
}

/// vhost-user port, tapd, kernel UDP, tapd, vhost-user port; sealed.
pub(super) fn measure_tapd(span: Duration) -> Result<Vec<(What, f64)>> {
    let pair = pair()?;
    let scratch = tempfile::tempdir()?;
    let path = scratch.path();
    make_key(path)?;
    let link =
        |host: u8| format!("{{ name = \"wire\", address = \"{}\" }}", Family::V4.address(host));
    let (one, two) = (link(1), link(2));
    let start = |number: u8, netns: &Netns| -> Result<Node> {
        let place = Place { netns: Some(netns), core: None };
        let text = config(path, number, "aes-256-gcm", [one.as_str(), two.as_str()]);
        let mut node = Node::start(place, path, number, &text)?;
        node.wait_log("ready: ")?;
        Ok(node)
    };
    let (a, b) = (start(1, &pair.alpha)?, start(2, &pair.beta)?);
    a.wait_peer()?;
    b.wait_peer()?;
    let (from, to) = (guest(&path.join("vm1.sock"), false), guest(&path.join("vm2.sock"), false));
    let mut values = Vec::new();
    for (len, through, lost) in SIZES {
        let ports = [(from.as_str(), Place::default()), (to.as_str(), Place::default())];
        let course = Course { scratch: path, ports, any: false, polite: false, span };
        let flood = flood(course, len, |_| Ok(()))?;
        values.extend([(through, flood.through_kfps()), (lost, flood.lost_percent())]);
    }
    Ok(values)
}

/// Tap, bridge, kernel vxlan, bridge, tap; in clear.
pub(super) fn measure_vxlan(span: Duration) -> Result<Vec<(What, f64)>> {
    let pair = pair()?;
    let scratch = tempfile::tempdir()?;
    for (netns, host, remote) in [(&pair.alpha, 1, 2), (&pair.beta, 2, 1)] {
        make_bridge(netns, "br0")?;
        let (local, remote) = (Family::V4.address(host), Family::V4.address(remote));
        let (local, remote) = (local.to_string(), remote.to_string());
        let kind = ["link", "add", "vx0", "type", "vxlan", "id", "100", "dstport", "4789"];
        let ends = ["local", &local, "remote", &remote, "dev", UNDERLAY];
        netns.ip(&[&kind[..], &ends[..]].concat())?;
        netns.ip(&["link", "set", "vx0", "master", "br0", "up"])?;
        // The traffic tool attaches to these.
        netns.ip(&["tuntap", "add", "gen0", "mode", "tap"])?;
        netns.ip(&["link", "set", "gen0", "master", "br0", "up"])?;
    }
    let port = "net_af_packet,iface=gen1,framesz=2048,blocksz=4096,framecnt=1024,qdisc_bypass=1";
    for netns in [&pair.alpha, &pair.beta] {
        // A tap that DPDK itself made would have to be put into the bridge behind its back: a veth
        // pair gives the kernel the same frames.
        netns.ip(&["link", "del", "gen0"])?;
        netns.ip(&["link", "add", "gen0", "type", "veth", "peer", "name", "gen1"])?;
        netns.ip(&["link", "set", "gen0", "master", "br0", "up"])?;
        netns.ip(&["link", "set", "gen1", "up"])?;
    }
    let mut values = Vec::new();
    for (len, through, lost) in SIZES {
        let place = |netns| Place { netns: Some(netns), core: None };
        let ports = [(port, place(&*pair.alpha)), (port, place(&*pair.beta))];
        let course = Course { scratch: scratch.path(), ports, any: false, polite: false, span };
        let flood = flood(course, len, |_| Ok(()))?;
        values.extend([(through, flood.through_kfps()), (lost, flood.lost_percent())]);
    }
    Ok(values)
}
