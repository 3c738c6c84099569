//! Taps alone: a tap in each host, and a thread that carries super-frames from one to the other.
//!
//! ```text
//!   alpha                                     beta
//!  +-----------------+                       +-----------------+
//!  | iperf3          |                       |          iperf3 |
//!  | TCP             |                       |             TCP |
//!  | pass0  o--------|-- read -- write ------|--------o  pass0 |
//!  +-----------------+                       +-----------------+
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::super::work::timed_tcp;
use crate::netns::Netns;
use crate::node::PATIENCE;
use crate::sys::{self, offload};
use crate::topology::Pair;
use crate::traffic::ping_until_answer;

/// Name of the taps.
const TAP: &str = "pass0";
/// What tapd's taps are below the MTU of the underlay, bytes: outer headers, 26 of its own, the
/// inner Ethernet header.
const OVERHEAD: u32 = 28 + 26 + 14;
/// Longest super-frame that TCP makes, bytes: what tapd asks for.
const SUPER_FRAME: &str = "60000";
/// Virtio-net header and the longest frame that a tap gives, bytes.
const BUFFER: usize = 10 + 14 + (1 << 16);
/// Frames of one direction before the other has its turn.
const BURST: usize = 16;

/// The two taps and the thread between them; gone on drop.
#[derive(Debug)]
pub struct TapPass {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TapPass {
    /// Makes the taps and makes sure that pings get from one to the other.
    ///
    /// # Errors
    /// No permission, or no `/dev/net/tun`.
    pub fn set_up(pair: &Pair, underlay_mtu: u32) -> Result<Self> {
        let alpha = make_tap(&pair.alpha, 1, underlay_mtu - OVERHEAD)?;
        let beta = make_tap(&pair.beta, 2, underlay_mtu - OVERHEAD)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || carry(&alpha, &beta, &stopped));
        let pass = Self { stop, thread: Some(thread) };
        ping_until_answer(&pair.alpha, address(2), PATIENCE)?;
        Ok(pass)
    }

    /// One TCP stream for `seconds`: Gbit/s, and busy seconds of the whole machine for 10^9 bytes.
    ///
    /// # Errors
    /// iperf3 failed.
    pub fn measure(&self, pair: &Pair, seconds: u32) -> Result<(f64, f64)> {
        let (report, cost) = timed_tcp(pair, address(2), seconds, 1)?;
        Ok((report.bits_per_second / 1e9, cost))
    }
}

impl Drop for TapPass {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Address of a host's tap: of a network that no contender has.
fn address(host: u8) -> IpAddr {
    IpAddr::from([10, 99, 0, host])
}

fn make_tap(netns: &Netns, host: u8, mtu: u32) -> Result<File> {
    let tap = netns.enter(|| offload::open_super_tap(TAP).context("making a tap"))?;
    let mtu = mtu.to_string();
    netns.ip(&["link", "set", TAP, "mtu", &mtu, "gso_max_size", SUPER_FRAME])?;
    netns.add_address(TAP, &format!("{}/24", address(host)))?;
    netns.ip(&["link", "set", TAP, "up"])?;
    Ok(tap)
}

/// Carries frames both ways, header and all, until it is told to stop.
fn carry(alpha: &File, beta: &File, stop: &AtomicBool) {
    let mut buffer = vec![0; BUFFER];
    while !stop.load(Ordering::Acquire) {
        // The timeout is for `stop` alone.
        match sys::readable_any([alpha.as_fd(), beta.as_fd()], Duration::from_millis(100)) {
            Ok([from_alpha, from_beta]) => {
                if from_alpha {
                    copy(alpha, beta, &mut buffer);
                }
                if from_beta {
                    copy(beta, alpha, &mut buffer);
                }
            }
            Err(_) => return,
        }
    }
}

/// Up to a burst of frames; a frame that the other tap refuses is lost, as on a cable.
fn copy(mut from: &File, mut to: &File, buffer: &mut [u8]) {
    for _ in 0..BURST {
        match from.read(buffer) {
            Ok(length) => {
                let _ = to.write(&buffer[..length]);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
