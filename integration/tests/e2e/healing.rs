//! A node that dies and comes back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::cluster::{Duo, overlay_v4};
use integration::node::Node;
use integration::skip::case;
use integration::traffic::{
    IperfRun, IperfServer, SteadyPing, ping_all, ping_until_answer, start_iperf,
};

/// From the start of the new process to the first frame across.
const BOUND: Duration = Duration::from_secs(2);

fn come_back(node: &mut Node, probe: impl Fn() -> Result<()>) -> Result<Duration> {
    node.restart()?;
    let begin = Instant::now();
    probe()?;
    let took = begin.elapsed();
    node.wait_ready()?;
    Ok(took)
}

#[test]
fn flow_killed_node_heals_under_load() {
    case(|| {
        let mut duo = Duo::new()?;
        let (alpha_host, beta_host) = (duo.pair.alpha.clone(), duo.pair.beta.clone());
        let patience = Duration::from_secs(20);
        for round in 0..2 {
            // The load: a ping flood of 1,000 a second towards the node that dies.
            let load = SteadyPing::start(&alpha_host, overlay_v4(100, 2), 1)?;
            ping_all(&alpha_host, overlay_v4(100, 2))?;
            duo.beta.kill();
            let took = come_back(&mut duo.beta, || {
                ping_until_answer(&alpha_host, overlay_v4(100, 2), patience)
            })?;
            ensure!(took < BOUND, "round {round}: {took:?} until the node that stayed got through");
            let (report, _) = load.finish()?;
            ensure!(report.received > 0, "the load never got through: {report:?}");

            // The other way: the lower node id dies, and the other one is first to speak.
            let load = SteadyPing::start(&beta_host, overlay_v4(100, 1), 1)?;
            duo.alpha.kill();
            let took = come_back(&mut duo.alpha, || {
                ping_until_answer(&beta_host, overlay_v4(100, 1), patience)
            })?;
            ensure!(took < BOUND, "round {round}: {took:?} the other way");
            drop(load);
        }
        Ok(())
    });
}

#[test]
fn flow_both_nodes_killed_heal() {
    case(|| {
        let mut duo = Duo::new()?;
        let host = duo.pair.alpha.clone();
        duo.alpha.kill();
        duo.beta.kill();
        duo.alpha.restart()?;
        let took = come_back(&mut duo.beta, || {
            ping_until_answer(&host, overlay_v4(100, 2), Duration::from_secs(20))
        })?;
        ensure!(took < BOUND, "{took:?} until the first ping");
        duo.alpha.wait_ready()
    });
}

#[test]
fn api_sigterm_under_load_leaves_nothing() {
    case(|| {
        let mut duo = Duo::new()?;
        let _server = IperfServer::start(&duo.pair.beta)?;
        let run = IperfRun { seconds: 3, streams: 2, reverse: false, udp: None };
        let _load = start_iperf(&duo.pair.alpha, overlay_v4(100, 2), run)?;
        integration::wait::until("load on the tap", Duration::from_secs(5), || {
            duo.beta
                .netns()
                .interface_attribute("tap100", "statistics/rx_packets")
                .is_ok_and(|count| count.parse().is_ok_and(|count: u64| count > 1000))
        })?;
        let begin = Instant::now();
        duo.alpha.stop(&["tap100"])?;
        duo.beta.stop(&["tap100"])?;
        ensure!(begin.elapsed() < Duration::from_secs(4), "{:?} to stop", begin.elapsed());
        Ok(())
    });
}
