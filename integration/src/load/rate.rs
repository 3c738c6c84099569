//! Frames per second: a paced or flooding sender, a counting receiver, and the search for the
//! highest rate at which (nearly) nothing is lost.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::Serialize;

use super::UdpPath;
use crate::sys::{self, MAX_BATCH};

/// How long the receiver waits for stragglers after the last datagram.
const STRAGGLERS: Duration = Duration::from_millis(40);
/// A paced sender sends in batches about this far apart: often enough to be smooth, seldom enough
/// not to take a core from what is measured.
const BATCH_INTERVAL: f64 = 100e-6;
/// Trial number and sequence number.
const MARK_LEN: usize = 12;
/// Most paths of one run.
pub const MAX_FLOWS: usize = 4;
/// The sender has not finished.
const STILL_SENDING: u64 = u64::MAX;

static NEXT_MARK: AtomicU32 = AtomicU32::new(0);

/// One run at one rate.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Trial {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received.
    pub received: u64,
    /// Seconds from the first send to the last receipt (or to the last send if that was later),
    /// so that what waits in a buffer counts as time.
    pub seconds: f64,
}

impl Trial {
    /// Share of the datagrams that was lost, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { 1.0 - self.received as f64 / self.sent as f64 }
    }

    /// Datagrams received per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.seconds
    }
}

/// How a search goes about it.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// UDP payload in bytes, at least 12.
    pub payload: usize,
    /// Highest loss that counts as none, 0 to 1.
    pub max_loss: f64,
    /// How long one trial sends.
    pub trial: Duration,
    /// No trial starts after this.
    pub budget: Duration,
}

/// What a search found.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Highest rate with a loss within the bound, datagrams per second; 0 if there was none.
    pub rate: f64,
    /// What a flood got through, datagrams per second, whatever it lost.
    pub flood_rate: f64,
    /// Every trial made.
    pub trials: Vec<Trial>,
}

/// Searches for the highest rate by bisection, starting from what a flood got through.
///
/// # Errors
/// A socket failed.
pub fn search(path: &UdpPath, search: Search) -> Result<Found> {
    search_flows(std::slice::from_ref(path), search)
}

/// [`search`] with the datagrams spread evenly over several paths.
///
/// # Errors
/// A socket failed.
pub fn search_flows(paths: &[UdpPath], search: Search) -> Result<Found> {
    let start = Instant::now();
    let trial = |rate| trial_flows(paths, search.payload, rate, search.trial);
    let flood = trial(None)?;
    let mut found = Found { rate: 0.0, flood_rate: flood.rate(), trials: vec![flood] };
    if flood.loss() <= search.max_loss {
        found.rate = flood.rate();
        return Ok(found);
    }
    let (mut low, mut high) = (0.0, flood.rate() * 1.2);
    let mut rate = flood.rate() * 0.9;
    while start.elapsed() < search.budget && high > low * 1.03 {
        let mut at = trial(Some(rate))?;
        found.trials.push(at);
        // A small loss may be a hiccup of the machine: once more before the rate is ruled out.
        if at.loss() > search.max_loss && at.loss() < 0.02 && start.elapsed() < search.budget {
            at = trial(Some(rate))?;
            found.trials.push(at);
        }
        if at.loss() <= search.max_loss {
            low = rate;
            found.rate = found.rate.max(at.rate());
        } else {
            high = rate;
        }
        rate = if low == 0.0 { high * 0.7 } else { f64::midpoint(low, high) };
    }
    Ok(found)
}

/// Sends for `span` at `rate` datagrams per second (none: as fast as it goes) and counts what
/// arrives.
///
/// # Errors
/// A socket failed.
pub fn trial(path: &UdpPath, payload: usize, rate: Option<f64>, span: Duration) -> Result<Trial> {
    trial_flows(std::slice::from_ref(path), payload, rate, span)
}

/// [`trial`] with the datagrams spread evenly over several paths: one sender and one receiver,
/// whatever their number, so that it is not the load that takes more of the machine.
///
/// # Errors
/// A socket failed, or there is no path.
pub fn trial_flows(
    paths: &[UdpPath],
    payload: usize,
    rate: Option<f64>,
    span: Duration,
) -> Result<Trial> {
    ensure!(!paths.is_empty() && paths.len() <= MAX_FLOWS, "1 to {MAX_FLOWS} paths");
    ensure!(payload >= MARK_LEN, "a payload has at least {MARK_LEN} bytes");
    // The trial's number, so that stragglers of an earlier one do not count.
    let mark = NEXT_MARK.fetch_add(1, Ordering::Relaxed);
    let total = AtomicU64::new(STILL_SENDING);
    let start = Instant::now();
    let (received, last) = std::thread::scope(|scope| -> Result<(u64, Instant)> {
        let receiver = scope.spawn(|| receive(paths, mark, &total));
        let sent = send(paths, mark, payload, rate, span);
        total.store(*sent.as_ref().unwrap_or(&0), Ordering::Release);
        let received = receiver.join().map_err(|_| anyhow!("the receiver died"))?;
        sent?;
        received
    })?;
    let sent = total.into_inner();
    let end = if received == 0 { start + span } else { last.max(start) };
    Ok(Trial { sent, received, seconds: (end - start).as_secs_f64() })
}

/// Sends and says how many datagrams left.
fn send(
    paths: &[UdpPath],
    mark: u32,
    payload: usize,
    rate: Option<f64>,
    span: Duration,
) -> Result<u64> {
    sys::sharpen_timers();
    let mut datagrams = vec![vec![0x5a; payload]; MAX_BATCH];
    let start = Instant::now();
    let mut sent = 0;
    // A batch goes by one path, the next one by the next.
    for path in paths.iter().cycle() {
        let elapsed = start.elapsed();
        if elapsed >= span {
            return Ok(sent);
        }
        let due = match rate {
            None => MAX_BATCH as u64,
            Some(rate) => ((elapsed.as_secs_f64() * rate) as u64 + 1).saturating_sub(sent),
        };
        let batch = due.min(MAX_BATCH as u64) as usize;
        for (number, datagram) in (sent..).zip(&mut datagrams[..batch]) {
            datagram[..4].copy_from_slice(&mark.to_le_bytes());
            datagram[4..MARK_LEN].copy_from_slice(&number.to_le_bytes());
        }
        let slices: Vec<&[u8]> = datagrams[..batch].iter().map(Vec::as_slice).collect();
        sent += send_all(&path.near, &slices)?;
        if let Some(rate) = rate
            && due <= MAX_BATCH as u64
        {
            // Pacing is the purpose here: until a batch is due again, at least one datagram.
            let next = start
                + Duration::from_secs_f64((sent as f64 / rate).max(0.0))
                + Duration::from_secs_f64(BATCH_INTERVAL);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    Ok(sent)
}

/// Sends a batch; a full queue on the way is not an error of the sender but waits a moment.
fn send_all(socket: &UdpSocket, datagrams: &[&[u8]]) -> Result<u64> {
    if datagrams.is_empty() {
        return Ok(0);
    }
    match sys::send_batch(socket.as_fd(), datagrams, None) {
        Ok(sent) => Ok(sent as u64),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ECONNREFUSED)) => Ok(0),
        Err(e) if e.kind() == ErrorKind::Interrupted => Ok(0),
        Err(e) => Err(e).context("sending"),
    }
}

/// Counts datagrams with `mark` until `total` are there or no more come.
fn receive(paths: &[UdpPath], mark: u32, total: &AtomicU64) -> Result<(u64, Instant)> {
    let mut buffers = vec![vec![0; 2048]; MAX_BATCH];
    let mut lengths = [0; MAX_BATCH];
    // Unused places repeat the last socket: looking twice does no harm.
    let last_path = paths.last().context("no path")?;
    let sockets: [BorrowedFd<'_>; MAX_FLOWS] =
        std::array::from_fn(|i| paths.get(i).unwrap_or(last_path).far.as_fd());
    let mut received = 0;
    let mut last = Instant::now();
    loop {
        let mut fresh = 0;
        for socket in &sockets[..paths.len()] {
            fresh += match sys::recv_batch(*socket, &mut buffers, &mut lengths) {
                Ok(count) => {
                    let ours = |(buffer, &length): (&Vec<u8>, &usize)| {
                        length >= MARK_LEN && buffer[..4] == mark.to_le_bytes()
                    };
                    buffers.iter().zip(&lengths).take(count).filter(|&x| ours(x)).count()
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => 0,
                Err(e) => return Err(e).context("receiving"),
            };
        }
        if fresh > 0 {
            received += fresh as u64;
            last = Instant::now();
            continue;
        }
        let total = total.load(Ordering::Acquire);
        let done = total != STILL_SENDING;
        if received >= total || (done && last.elapsed() >= STRAGGLERS) {
            return Ok((received, last));
        }
        sys::readable_any(sockets, Duration::from_millis(5))?;
    }
}
