//! Round-trip time of one UDP datagram at a time, as a program sees it.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::UdpPath;
use crate::stats::percentile;

/// An answer that takes longer counts as lost.
const PATIENCE: Duration = Duration::from_millis(200);
/// Round trips before the measured ones: neighbour and FDB entries, warm caches.
const WARM_UP: u64 = 50;

/// Round-trip times in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RoundTrips {
    /// Round trips measured.
    pub count: u64,
    /// Datagrams without an answer.
    pub lost: u64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
}

/// Sends `payload` bytes (8 and up) forth and back, one at a time, for `span`.
///
/// # Errors
/// A socket failed or nothing came back.
pub fn measure(path: &UdpPath, payload: usize, span: Duration) -> Result<RoundTrips> {
    ensure!(payload >= 8, "a payload has at least 8 bytes");
    for socket in [&path.near, &path.far] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let stop = AtomicBool::new(false);
    let (micros, lost) = std::thread::scope(|scope| {
        scope.spawn(|| echo(&path.far, &stop));
        let result = ping(&path.near, payload, span);
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    summarize(micros, lost)
}

/// Percentiles of round trips in microseconds, of which `lost` more had no answer.
///
/// # Errors
/// There are none.
pub(super) fn summarize(mut micros: Vec<f64>, lost: u64) -> Result<RoundTrips> {
    micros.sort_by(f64::total_cmp);
    let at = |percent| percentile(&micros, percent).context("nothing came back");
    Ok(RoundTrips {
        count: micros.len() as u64,
        lost,
        p50_us: at(50.0)?,
        p99_us: at(99.0)?,
        p999_us: at(99.9)?,
    })
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(length) = socket.recv(&mut buffer) {
            let _ = socket.send(&buffer[..length]);
        }
    }
}

fn ping(socket: &UdpSocket, payload: usize, span: Duration) -> Result<(Vec<f64>, u64)> {
    let mut datagram = vec![0; payload];
    let mut buffer = [0; 2048];
    let mut micros = Vec::new();
    let mut lost = 0;
    let mut start = Instant::now();
    for number in 0u64.. {
        if number == WARM_UP {
            start = Instant::now();
            micros.clear();
            lost = 0;
        }
        if number >= WARM_UP && start.elapsed() >= span {
            break;
        }
        datagram[..8].copy_from_slice(&number.to_le_bytes());
        let sent = Instant::now();
        socket.send(&datagram)?;
        // A late answer to an earlier number is not this one's.
        let answered = loop {
            match socket.recv(&mut buffer) {
                Ok(_) if buffer[..8] == number.to_le_bytes() => break true,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    break false;
                }
                Err(e) => return Err(e).context("receiving"),
            }
        };
        if answered {
            micros.push(sent.elapsed().as_secs_f64() * 1e6);
        } else {
            lost += 1;
        }
    }
    Ok((micros, lost))
}
