//! DSCP and ECN on the underlay.

use anyhow::{Result, ensure};
use integration::capture::{Capture, CapturedDatagram, tos};
use integration::config::ClusterConfig;
use integration::flow::FlowOptions;
use integration::lanes::{LaneSpec, Lanes, Side};
use integration::links::{LaneDuo, PATIENCE};
use integration::look::SEALED_OVERHEAD;
use integration::skip::case;
use integration::topology::{Family, Offloads};
use integration::wait;

/// UDP payload of the flows; their datagrams are known by their size.
const PAYLOAD: usize = 700;
/// The same on the cable.
const ON_THE_CABLE: usize = PAYLOAD + 42 + SEALED_OVERHEAD;
/// Expedited forwarding and class selector 6, in the upper six bits.
const EF: u8 = 46 << 2;
const CS6: u8 = 48 << 2;
/// ECN: capable, and congestion met (RFC 3168).
const ECT0: u8 = 0b10;
const CE: u8 = 0b11;

fn duo(family: Family, dscp: &str) -> Result<LaneDuo> {
    let lanes = Lanes::new(&[LaneSpec::new(family)])?;
    lanes.set_offloads(Offloads::Bare)?;
    // Datagrams are told apart by their sizes here; a bundle of two frames has neither's, and shares
    // one mark between them.
    let sections = "[offload]\nbundles = false\n".to_owned();
    let config = ClusterConfig { cluster_extra: dscp.to_owned(), sections, ..lanes.config() };
    LaneDuo::with(lanes, &config)
}

/// The TOS bytes of the datagrams that carry a flow with `inner` as its TOS byte, as they are when
/// they leave alpha.
fn outer(duo: &LaneDuo, inner: u8) -> Result<Vec<u8>> {
    let capture = Capture::start(&duo.lanes.alpha, "under0", "udp")?;
    let flow = duo.flow(FlowOptions::at(200.0).with_payload(PAYLOAD).with_tos(inner))?;
    flow.wait_received(20, PATIENCE)?;
    flow.finish()?;
    let carries = |packet: &[u8]| {
        CapturedDatagram::parse(packet)
            .is_some_and(|d| d.is_sealed_frame() && d.payload.len() == ON_THE_CABLE)
    };
    let packets = capture.finish_after("the flow on the cable", PATIENCE, carries)?;
    Ok(packets.iter().filter(|packet| carries(packet)).filter_map(|packet| tos(packet)).collect())
}

fn all_are(marks: &[u8], wanted: u8) -> Result<()> {
    ensure!(!marks.is_empty() && marks.iter().all(|mark| *mark == wanted), "{marks:02x?}");
    Ok(())
}

#[test]
fn flow_dscp_is_fixed_inherited_or_mapped() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let fixed = duo(family, "dscp = 46\n")?;
            all_are(&outer(&fixed, 0)?, EF)?;
            all_are(&outer(&fixed, 8 << 2)?, EF)?;
        }
        let inherit = duo(Family::V4, "dscp = \"inherit\"\n")?;
        all_are(&outer(&inherit, EF)?, EF)?;
        all_are(&outer(&inherit, 0)?, 0)?;
        let map = duo(Family::V4, "dscp = { \"46\" = 40, default = 10 }\n")?;
        all_are(&outer(&map, EF)?, 40 << 2)?;
        all_are(&outer(&map, 8 << 2)?, 10 << 2)
    });
}

#[test]
fn flow_heartbeats_have_precedence() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let duo = duo(family, "")?;
            let capture = Capture::start(&duo.lanes.alpha, "under0", "udp")?;
            let heartbeats = || -> Vec<u8> {
                let control = |packet: &&Vec<u8>| {
                    CapturedDatagram::parse(packet)
                        .is_some_and(|d| d.is_sealed_data() && !d.is_sealed_frame())
                };
                let packets = capture.so_far().unwrap_or_default();
                packets.iter().filter(control).filter_map(|packet| tos(packet)).collect()
            };
            let _flow = duo.flow(FlowOptions::at(200.0))?;
            wait::until("heartbeats with CS6", PATIENCE, || {
                heartbeats().iter().filter(|mark| **mark == CS6).count() > 10
            })?;
            // The frames beside them have none.
            all_are(&outer(&duo, 0)?, 0)?;
        }
        Ok(())
    });
}

/// The TOS bytes of the flow's packets when they leave beta's tap.
fn delivered(duo: &LaneDuo, inner: u8) -> Result<Vec<u8>> {
    let capture = Capture::start(&duo.lanes.beta, "tap100", "udp")?;
    let flow = duo.flow(FlowOptions::at(200.0).with_payload(PAYLOAD).with_tos(inner))?;
    flow.wait_received(20, PATIENCE)?;
    flow.finish()?;
    let ours = |packet: &[u8]| packet.len() == PAYLOAD + 42;
    let packets = capture.finish_after("the flow on the tap", PATIENCE, ours)?;
    Ok(packets.iter().filter(|packet| ours(packet)).filter_map(|packet| tos(packet)).collect())
}

#[test]
fn flow_congestion_on_the_way_is_told_inside() {
    case(|| {
        let duo = duo(Family::V4, "")?;
        all_are(&outer(&duo, ECT0)?, ECT0)?;
        all_are(&delivered(&duo, ECT0)?, ECT0)?;
        // A router that has had too much.
        duo.lanes.add_rule(Side::Beta, 0, "ip ecn ect0 ip ecn set ce")?;
        all_are(&delivered(&duo, ECT0)?, CE)?;
        all_are(&delivered(&duo, EF | ECT0)?, EF | CE)?;
        // Who is not capable of it is left alone.
        all_are(&delivered(&duo, 0)?, 0)
    });
}

#[test]
fn sec_congestion_told_to_the_incapable_is_a_drop() {
    case(|| {
        let duo = duo(Family::V4, "")?;
        // RFC 6040, figure 4: the inner packet is not ECN-capable, so it must be dropped.
        let rule = format!("udp length > {PAYLOAD} ip ecn set ce");
        duo.lanes.add_rule(Side::Beta, 0, &rule)?;
        let small = duo.flow(FlowOptions::at(200.0))?;
        let ends = [
            (&*duo.lanes.alpha, integration::cluster::overlay_v4(100, 1)),
            (&*duo.lanes.beta, integration::cluster::overlay_v4(100, 2)),
        ];
        let options = FlowOptions::at(200.0).with_payload(PAYLOAD);
        let large = integration::flow::Flow::start(ends[0], ends[1], options)?;
        wait::until("drops to be counted by name", PATIENCE, || {
            duo.beta.drops().is_ok_and(|drops| {
                drops.iter().any(|(name, count)| name.contains("ecn") && *count > 10)
            })
        })?;
        ensure!(large.received() == 0, "{} were delivered", large.received());
        let outcome = small.finish()?;
        ensure!(outcome.lost == 0, "{outcome:?}");
        Ok(())
    });
}
