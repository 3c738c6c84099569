//! Taps bridged into a circle.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration::frames::{BRIDGE, Probe, test_frame};
use integration::lanes::{LaneSpec, Lanes};
use integration::links::{LaneDuo, PATIENCE, Watch};
use integration::netns::{VethEnd, veth_pair};
use integration::node::Node;
use integration::skip::case;
use integration::topology::Family;
use integration::wait;

const NEAR: [u8; 6] = [2, 0, 0, 0, 0xaa, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
/// Frames in half a second that still count as quiet.
const QUIET: u64 = 50;

/// Frames that went through a node's tap, both ways.
fn frames_of(node: &Node) -> Result<u64> {
    ["statistics/rx_packets", "statistics/tx_packets"]
        .iter()
        .map(|counter| Ok(node.netns().interface_attribute("tap100", counter)?.parse::<u64>()?))
        .sum()
}

/// Waits until hardly any frames go through a node's tap for half a second.
fn wait_quiet(node: &Node) -> Result<()> {
    let mut since = Instant::now();
    let mut count = frames_of(node)?;
    wait::until("the storm to be over", PATIENCE * 2, || {
        let Ok(now) = frames_of(node) else { return false };
        if now > count + QUIET {
            (since, count) = (Instant::now(), now);
        }
        since.elapsed() > Duration::from_millis(500)
    })
}

/// ```text
///   probe0 -- wire0 -- tap100 -- tapd ====== tapd -- tap100 -- wire0 -- probe0
///               |                                                |
///               o----------------- "extra" (veth) --------------o
/// ```
#[test]
fn flow_loop_through_two_taps_is_found_and_broken() {
    case(|| {
        let lanes = Lanes::new(&[LaneSpec::new(Family::V4)])?;
        for netns in [&lanes.alpha, &lanes.beta] {
            netns.silence_ipv6()?;
        }
        let config = lanes.config().without_addresses();
        let duo = LaneDuo::with(lanes, &config)?;
        let near = Probe::attach(&duo.lanes.alpha, "tap100")?;
        let _far = Probe::attach(&duo.lanes.beta, "tap100")?;
        let watches = [Watch::start(&duo.alpha)?, Watch::start(&duo.beta)?];
        let ends =
            [&duo.lanes.alpha, &duo.lanes.beta].map(|netns| VethEnd { netns, name: "extra" });
        veth_pair(ends[0], ends[1], 1432)?;
        for end in ends {
            end.netns.ip(&["link", "set", end.name, "master", BRIDGE])?;
        }
        // One frame is enough for a storm.
        near.send(&test_frame(BROADCAST, NEAR, &[], 60, 1))?;
        wait::until("a node to find the loop", PATIENCE, || {
            watches.iter().any(|watch| watch.count("loop_found") > 0)
        })?;
        wait_quiet(&duo.alpha)?;
        let counted = duo.nodes().into_iter().any(|(node, _)| {
            node.drops().is_ok_and(|drops| {
                drops.iter().any(|(name, count)| name.contains("loop") && *count > 0)
            })
        });
        ensure!(counted, "no node counts what it drops because of a loop");
        let networks =
            [duo.alpha.tapd(&["show", "networks"])?, duo.beta.tapd(&["show", "networks"])?];
        ensure!(networks.iter().any(|text| text.contains("loop")), "{networks:?}");
        Ok(())
    });
}

#[test]
fn flow_bridged_taps_without_a_loop_are_left_alone() {
    case(|| {
        let lanes = Lanes::new(&[LaneSpec::new(Family::V4)])?;
        for netns in [&lanes.alpha, &lanes.beta] {
            netns.silence_ipv6()?;
        }
        let mut config = lanes.config().without_addresses();
        config.daemon_extra = "bum_frames_per_s = 0\n".to_owned();
        let duo = LaneDuo::with(lanes, &config)?;
        let near = Probe::attach(&duo.lanes.alpha, "tap100")?;
        let far = Probe::attach(&duo.lanes.beta, "tap100")?;
        let watch = Watch::start(&duo.alpha)?;
        // At least two probes go out in this time; they reach the other tap as any frame would.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            let frame = test_frame(BROADCAST, NEAR, &[], 200, 9);
            near.send(&frame)?;
            let got = far.receive_where(PATIENCE, |got| got == frame)?;
            ensure!(got.is_some(), "a broadcast did not cross");
        }
        ensure!(watch.count("loop_found") == 0, "{:?}", watch.events());
        Ok(())
    });
}
