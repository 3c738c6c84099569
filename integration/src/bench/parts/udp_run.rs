//! The underlay alone: runs of full datagrams from one host to the other.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::super::work::Servers;
use crate::load::{Place, UdpPath};
use crate::stats::machine_busy_seconds;
use crate::sys::{self, offload};
use crate::topology::Family;

/// Of an outer IPv4 and UDP header, bytes.
const OUTER: u32 = 28;
/// Most UDP payload of one send, bytes.
const MAX_RUN: usize = 65_507;
/// The sender is at most this far ahead of the receiver, bytes: no more than its buffer holds.
const WINDOW: u64 = 1 << 20;
/// How long a sender whose window is full waits before it looks again.
const PAUSE: Duration = Duration::from_micros(50);
/// What has not arrived after so long is lost.
const LOST_AFTER: Duration = Duration::from_millis(10);
/// Buffers of one receive call; as many as tapd has.
const BUFFERS: usize = 16;

/// Sends for `span` and gives Gbit/s of payload and busy seconds of the whole machine for 10^9
/// bytes of it.
///
/// # Errors
/// The kernel cannot do runs, or nothing arrives.
pub fn measure(servers: &Servers, underlay_mtu: u32, span: Duration) -> Result<(f64, f64)> {
    let path = UdpPath::open(
        &Place { netns: &servers.alpha, address: Family::V4.address(1) },
        &Place { netns: &servers.beta, address: Family::V4.address(2) },
    )?;
    let payload = u16::try_from(underlay_mtu - OUTER)?;
    offload::send_in_segments(path.near().as_fd(), payload).context("no UDP_SEGMENT")?;
    offload::receive_runs(path.far().as_fd()).context("no UDP_GRO")?;
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let (busy, begin) = (machine_busy_seconds()?, Instant::now());
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(path.far(), &received, &done));
        let sent = send(path.near(), usize::from(payload), &received, span);
        done.store(true, Ordering::Release);
        receiver.join().map_err(|_| anyhow!("the receiver died"))??;
        sent
    })?;
    let (busy, seconds) = (machine_busy_seconds()? - busy, begin.elapsed().as_secs_f64());
    let bytes = received.into_inner() as f64;
    ensure!(bytes > 0.0, "no run arrived");
    Ok((bytes * 8.0 / 1e9 / seconds, busy / (bytes / 1e9)))
}

fn send(socket: &UdpSocket, payload: usize, received: &AtomicU64, span: Duration) -> Result<()> {
    sys::sharpen_timers();
    let run = vec![0x5a; MAX_RUN / payload * payload];
    let begin = Instant::now();
    let (mut sent, mut lost) = (0_u64, 0_u64);
    // When something arrived last, and how much there was then.
    let mut news = (begin, 0);
    while begin.elapsed() < span {
        let arrived = received.load(Ordering::Acquire);
        if arrived != news.1 {
            news = (Instant::now(), arrived);
        }
        let ahead = (sent - lost).saturating_sub(arrived);
        if ahead < WINDOW {
            socket.send(&run).context("sending a run")?;
            sent += run.len() as u64;
        } else if news.0.elapsed() > LOST_AFTER {
            lost += ahead;
        } else {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn receive(socket: &UdpSocket, received: &AtomicU64, done: &AtomicBool) -> Result<()> {
    let mut buffers = vec![vec![0; 1 << 16]; BUFFERS];
    let mut lengths = [0; BUFFERS];
    loop {
        match sys::recv_batch(socket.as_fd(), &mut buffers, &mut lengths) {
            Ok(count) => {
                let bytes: usize = lengths.iter().take(count).sum();
                received.fetch_add(bytes as u64, Ordering::Release);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if done.load(Ordering::Acquire) {
                    return Ok(());
                }
                sys::readable(socket.as_fd(), Duration::from_millis(5))?;
            }
            Err(e) => return Err(e).context("receiving runs"),
        }
    }
}
