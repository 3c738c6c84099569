//! Writing and reading raw Ethernet frames next to a daemon's tap.
//!
//! A plain tap of our own ("probe") is bridged with the daemon's tap; a frame written to the probe
//! goes byte for byte into the daemon, VLAN tags included, and the other way round.
//!
//! ```text
//!   test  <-->  probe0 ---- bridge "wire0" ---- tap100  <-->  tapd
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tun_tap::{Iface, Mode};

use crate::netns::Netns;
use crate::sys;
use crate::topology::make_bridge;

/// Name of the plain tap.
pub const PROBE: &str = "probe0";
/// Name of the bridge.
pub const BRIDGE: &str = "wire0";
/// More than any frame that a probe can see.
const MAX_FRAME: usize = 65536;

/// A plain tap bridged with a daemon's tap. It goes with its namespace.
pub struct Probe {
    tap: Iface,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("tap", &self.tap.name()).finish()
    }
}

impl Probe {
    /// Makes the plain tap and bridges it with the daemon's `tap`, whose MTU it takes over.
    /// Call [`Netns::silence_ipv6`] on the namespace before the daemon starts, or the kernel's own
    /// messages will be among the frames.
    ///
    /// # Errors
    /// The tap cannot be made.
    pub fn attach(netns: &Netns, tap: &str) -> Result<Self> {
        let probe = netns.enter(|| {
            Iface::without_packet_info(PROBE, Mode::Tap).context("making the plain tap")
        })?;
        let bytes = netns.interface_attribute(tap, "mtu")?;
        make_bridge(netns, BRIDGE)?;
        for port in [PROBE, tap] {
            netns.ip(&["link", "set", port, "mtu", &bytes, "master", BRIDGE, "up"])?;
        }
        Ok(Self { tap: probe })
    }

    /// Writes one frame.
    ///
    /// # Errors
    /// The kernel refused it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.tap
            .send(frame)
            .with_context(|| format!("writing a frame of {} bytes", frame.len()))?;
        Ok(())
    }

    /// The next frame, or none if there is none within `deadline`.
    ///
    /// # Errors
    /// The tap is gone.
    pub fn receive(&self, deadline: Duration) -> Result<Option<Vec<u8>>> {
        self.receive_where(deadline, |_| true)
    }

    /// The next frame that `wanted` accepts, or none if there is none within `deadline`. Others
    /// are dropped.
    ///
    /// # Errors
    /// The tap is gone.
    pub fn receive_where(
        &self,
        deadline: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + deadline;
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if !sys::readable(sys::tap_fd(&self.tap), left)? {
                if left.is_zero() {
                    return Ok(None);
                }
                continue;
            }
            let length = self.tap.recv(&mut buffer)?;
            if wanted(&buffer[..length]) {
                return Ok(Some(buffer[..length].to_vec()));
            }
        }
    }
}

/// An Ethernet frame: addresses, then `rest` from the first type field on.
#[must_use]
pub fn ethernet(destination: [u8; 6], source: [u8; 6], rest: &[u8]) -> Vec<u8> {
    [&destination[..], &source, rest].concat()
}

/// The type of our test frames: for local experiments (IEEE Std 802).
pub const TEST_TYPE: [u8; 2] = [0x88, 0xb5];

/// A test frame of exactly `length` bytes (14 and up), tagged with the given 802.1Q or 802.1ad
/// tags, its payload a pattern that depends on `seed` and the position.
#[must_use]
pub fn test_frame(
    destination: [u8; 6],
    source: [u8; 6],
    tags: &[[u8; 4]],
    length: usize,
    seed: u8,
) -> Vec<u8> {
    let mut frame = ethernet(destination, source, &tags.concat());
    frame.extend_from_slice(&TEST_TYPE);
    let mut position = 0u8;
    while frame.len() < length {
        frame.push(position.wrapping_mul(31).wrapping_add(seed));
        position = position.wrapping_add(1);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_length_that_was_asked() {
        let tag = [0x81, 0, 0, 7];
        assert_eq!(test_frame([0xff; 6], [2; 6], &[], 14, 0).len(), 14);
        let tagged = test_frame([0xff; 6], [2; 6], &[tag], 100, 0);
        assert_eq!((tagged.len(), &tagged[12..18]), (100, &[0x81, 0, 0, 7, 0x88, 0xb5][..]));
        assert_ne!(test_frame([0; 6], [2; 6], &[], 64, 1), test_frame([0; 6], [2; 6], &[], 64, 2));
    }
}
