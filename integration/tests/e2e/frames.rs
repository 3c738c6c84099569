//! Raw frames, byte for byte.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cluster::Duo;
use integration::config::{ClusterConfig, ClusterDir};
use integration::frames::{BRIDGE, Probe, test_frame};
use integration::node::Node;
use integration::skip::case;
use integration::topology::{Family, Pair};

const PATIENCE: Duration = Duration::from_secs(3);
const NEAR: [u8; 6] = [2, 0, 0, 0, 0xaa, 1];
const FAR: [u8; 6] = [2, 0, 0, 0, 0xaa, 2];
const BROADCAST: [u8; 6] = [0xff; 6];
/// Largest untagged frame on a 1500-byte IPv4 underlay.
const LARGEST: usize = 1432 + 14;

/// Two nodes whose taps carry nothing but what the probes write.
struct Probed {
    near: Probe,
    far: Probe,
    duo: Duo,
}

impl Probed {
    fn new() -> Result<Self> {
        Self::with(&ClusterConfig::new(Family::V4, 2).without_addresses())
    }

    fn with(config: &ClusterConfig) -> Result<Self> {
        let pair = Pair::new(Family::V4, 1500)?;
        for netns in [&pair.alpha, &pair.beta] {
            netns.silence_ipv6()?;
        }
        let duo = Duo::with(pair, config)?;
        let near = Probe::attach(&duo.pair.alpha, "tap100")?;
        let far = Probe::attach(&duo.pair.beta, "tap100")?;
        Ok(Self { near, far, duo })
    }

    /// Sends a frame each way, so that both nodes know where NEAR and FAR are.
    fn introduce(&self) -> Result<()> {
        let hello = test_frame(BROADCAST, NEAR, &[], 60, 1);
        crosses(&self.near, &self.far, &hello)?;
        crosses(&self.far, &self.near, &test_frame(NEAR, FAR, &[], 60, 2))
    }
}

fn crosses(from: &Probe, to: &Probe, frame: &[u8]) -> Result<()> {
    from.send(frame)?;
    let got = to.receive(PATIENCE)?;
    ensure!(
        got.as_deref() == Some(frame),
        "sent {} bytes {frame:02x?}\ngot {} bytes {got:02x?}",
        frame.len(),
        got.as_ref().map_or(0, Vec::len),
    );
    Ok(())
}

#[test]
fn flow_every_frame_length_is_byte_exact() {
    case(|| {
        let probed = Probed::new()?;
        probed.introduce()?;
        for length in 14..=LARGEST {
            let seed = length as u8;
            crosses(&probed.near, &probed.far, &test_frame(FAR, NEAR, &[], length, seed))?;
            crosses(&probed.far, &probed.near, &test_frame(NEAR, FAR, &[], length, !seed))?;
        }
        Ok(())
    });
}

#[test]
fn flow_vlan_and_qinq_frames() {
    case(|| {
        let probed = Probed::new()?;
        probed.introduce()?;
        let vlan = [0x81, 0x00, 0x60, 0x64];
        let service = [0x88, 0xa8, 0x00, 0x07];
        for tags in [&[vlan][..], &[service], &[service, vlan], &[vlan, vlan]] {
            // The kernel wants two bytes behind a tag: 20 is the shortest tagged frame.
            for length in [16 + 4 * tags.len(), 64, 500, LARGEST] {
                crosses(&probed.near, &probed.far, &test_frame(FAR, NEAR, tags, length, 3))?;
                crosses(&probed.far, &probed.near, &test_frame(NEAR, FAR, tags, length, 4))?;
            }
        }
        Ok(())
    });
}

#[test]
fn flow_broadcast_multicast_and_strange_types() {
    case(|| {
        let probed = Probed::new()?;
        for group in [BROADCAST, [1, 0, 0x5e, 0, 0, 5], [0x33, 0x33, 0, 0, 0, 1]] {
            crosses(&probed.near, &probed.far, &test_frame(group, NEAR, &[], 100, 5))?;
            crosses(&probed.far, &probed.near, &test_frame(group, FAR, &[], 100, 6))?;
        }
        // An 802.3 length field with LLC (IS-IS), an unknown type, an IPv4 header that lies.
        for start in [&[0x00, 0x20, 0xfe, 0xfe, 0x03][..], &[0xfe, 0xdc], &[0x08, 0x00, 0x4f, 0xff]]
        {
            let mut frame = test_frame(FAR, NEAR, &[], 80, 7);
            frame[12..12 + start.len()].copy_from_slice(start);
            crosses(&probed.near, &probed.far, &frame)?;
        }
        Ok(())
    });
}

#[test]
fn flow_link_local_groups_are_filtered() {
    case(|| {
        let probed = Probed::new()?;
        // Let the kernel's bridge forward LLDP (bit 14), which it would keep to itself.
        for netns in [&probed.duo.pair.alpha, &probed.duo.pair.beta] {
            netns.ip(&["link", "set", BRIDGE, "type", "bridge", "group_fwd_mask", "0x4000"])?;
        }
        let stp = test_frame([1, 0x80, 0xc2, 0, 0, 0], NEAR, &[], 60, 8);
        crosses(&probed.near, &probed.far, &stp)?;
        let before = probed.duo.alpha.drops()?["frame_link_local"];
        probed.near.send(&test_frame([1, 0x80, 0xc2, 0, 0, 0x0e], NEAR, &[], 60, 9))?;
        // What comes after the LLDP frame arrives; it did not.
        crosses(&probed.near, &probed.far, &test_frame(BROADCAST, NEAR, &[], 60, 10))?;
        let after = probed.duo.alpha.drops()?["frame_link_local"];
        ensure!(after == before + 1, "frame_link_local went from {before} to {after}");
        Ok(())
    });
}

#[test]
fn flow_storm_is_policed() {
    case(|| {
        let mut config = ClusterConfig::new(Family::V4, 2).without_addresses();
        config.daemon_extra = "bum_frames_per_s = 50\n".to_owned();
        let probed = Probed::with(&config)?;
        let storm = test_frame(BROADCAST, NEAR, &[], 60, 11);
        for _ in 0..500 {
            probed.near.send(&storm)?;
        }
        integration::wait::until("the policer to drop", PATIENCE, || {
            probed.duo.alpha.drops().is_ok_and(|drops| drops["frame_policed"] > 300)
        })?;
        Ok(())
    });
}

#[test]
fn flow_existing_tap_is_used_and_left() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let mut config = ClusterConfig::new(Family::V4, 2);
        config.networks[0].extra = "existing = true\n".to_owned();
        for netns in [&pair.alpha, &pair.beta] {
            netns.run(
                "ip",
                &["tuntap", "add", "dev", "tap100", "mode", "tap", "vnet_hdr", "multi_queue"],
            )?;
        }
        let dir = ClusterDir::new(&config)?;
        let mut alpha = Node::start(&dir, &pair.alpha, "alpha")?;
        let _beta = Node::start(&dir, &pair.beta, "beta")?;
        alpha.wait_peer_up(2)?;
        integration::traffic::ping_all(&pair.alpha, integration::cluster::overlay_v4(100, 2))?;
        alpha.stop(&[])?;
        let left = pair.alpha.interfaces()?;
        ensure!(left.iter().any(|name| name == "tap100"), "tap100 is gone: {left:?}");
        Ok(())
    });
}
