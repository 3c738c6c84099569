//! What the cable sees.

use anyhow::ensure;
use integration::capture::datagrams;
use integration::cluster::{Duo, overlay_v4};
use integration::config::ClusterConfig;
use integration::look::{self, SEALED_OVERHEAD, packets_with};
use integration::skip::case;
use integration::topology::{Family, Offloads, Pair, UNDERLAY};

/// Ping payloads; frames are 42 bytes longer. All are longer than what a kernel says by itself
/// (ARP, neighbour discovery, MLD).
const SIZES: [u32; 6] = [150, 300, 500, 800, 1100, 1390];
const TEXT: &[u8] = b"this must not be readable on the cable";
/// What clear mode adds: 8 + 2 header bytes, no tag.
const CLEAR_OVERHEAD: usize = 10;

/// Every frame in a datagram of its own, which is what is counted and measured here.
fn single(config: ClusterConfig) -> ClusterConfig {
    ClusterConfig { sections: "[offload]\nbundles = false\n".to_owned(), ..config }
}

fn duo(family: Family) -> anyhow::Result<Duo> {
    let duo = Duo::with(Pair::new(family, 1500)?, &single(ClusterConfig::new(family, 2)))?;
    duo.pair.set_offloads(Offloads::Wire)?;
    Ok(duo)
}

#[test]
fn sec_overhead_is_26_bytes_above_udp() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let duo = duo(family)?;
            let sizes = if family == Family::V4 { &SIZES[..] } else { &SIZES[..5] };
            let netns = &duo.pair.alpha;
            let carried = look::overheads(netns, "tap100", UNDERLAY, overlay_v4(100, 2), sizes)?;
            // A ping whose answer is late goes out again.
            let mut frames: Vec<usize> = carried.iter().map(|c| c.frame).collect();
            frames.dedup();
            let wanted: Vec<usize> = sizes.iter().map(|size| *size as usize + 42).collect();
            ensure!(frames == wanted, "frames on the tap: {frames:?}");
            for pair in carried {
                ensure!(pair.overhead() == SEALED_OVERHEAD, "{family:?}: {pair:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn sec_nothing_readable_on_the_cable() {
    case(|| {
        let duo = duo(Family::V4)?;
        let ends = (overlay_v4(100, 1), overlay_v4(100, 2));
        let seen = look::send_text(&duo.pair.alpha, "tap100", UNDERLAY, ends, TEXT, 50)?;
        // The control: the same search finds the text where it may be read.
        ensure!(packets_with(&seen.tap, TEXT) == 50, "the text is not even on the tap");
        ensure!(seen.cable.len() >= 51, "only {} packets on the cable", seen.cable.len());
        for needle in [TEXT, &TEXT[..8], &[10, 100, 0, 1], &[10, 100, 0, 2], &[2, 0, 0, 100, 0, 2]]
        {
            let found = packets_with(&seen.cable, needle);
            ensure!(found == 0, "{needle:02x?} is readable in {found} packets");
        }
        Ok(())
    });
}

#[test]
fn sec_equal_frames_look_different() {
    case(|| {
        let duo = duo(Family::V4)?;
        let ends = (overlay_v4(100, 1), overlay_v4(100, 2));
        let seen = look::send_text(&duo.pair.alpha, "tap100", UNDERLAY, ends, TEXT, 50)?;
        // 42 bytes of headers in front of the text, and what sealing adds.
        let length = TEXT.len() + 42 + SEALED_OVERHEAD;
        let mut sealed: Vec<Vec<u8>> = datagrams(&seen.cable)
            .into_iter()
            .filter(|d| d.is_sealed_data() && d.payload.len() == length)
            .map(|d| d.payload[8..].to_vec())
            .collect();
        ensure!(sealed.len() >= 50, "{} datagrams of {length} bytes", sealed.len());
        let before = sealed.len();
        sealed.sort();
        sealed.dedup();
        ensure!(sealed.len() == before, "two datagrams hold the same sealed bytes");
        Ok(())
    });
}

#[test]
fn flow_clear_mode_adds_10_bytes() {
    case(|| {
        let config = single(ClusterConfig::new(Family::V4, 2).in_clear());
        let duo = Duo::with(Pair::new(Family::V4, 1500)?, &config)?;
        duo.pair.set_offloads(Offloads::Wire)?;
        let ends = (overlay_v4(100, 1), overlay_v4(100, 2));
        let seen = look::send_text(&duo.pair.alpha, "tap100", UNDERLAY, ends, TEXT, 20)?;
        // By length as well: a kernel that refuses the port sends the text back inside an ICMP.
        let length = TEXT.len() + 42 + CLEAR_OVERHEAD;
        let right = datagrams(&seen.cable)
            .iter()
            .filter(|d| d.payload.len() == length && d.payload.ends_with(TEXT))
            .count();
        ensure!(right == 20, "{right} datagrams of {length} bytes that end in the text");
        Ok(())
    });
}
