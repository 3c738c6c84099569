//! A bad cable: a relay between two interfaces that loses, delays, reorders and repeats frames.
//!
//! It works on whole Ethernet frames (a relay of UDP would show another source address, which a
//! static link refuses) in a namespace of its own between the two hosts:
//!
//! ```text
//!   alpha                middle                beta
//!   under0 o===veth===o near  far o===veth===o under0
//!                       \  relay /
//! ```
//!
//! The kernels of these machines come without netem, and a relay in user space repeats a run by its
//! seed. One thread serves both ways; it is good for some 50,000 frames per second. Turn
//! segmentation and checksum offload off on the hosts' interfaces ([`Offloads::Bare`]): a packet
//! socket passes on what is in the buffer, unfinished checksums and all.
//!
//! [`Offloads::Bare`]: crate::topology::Offloads::Bare

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;
use crate::stats::Random;
use crate::sys;

/// More than any frame of a veth.
const MAX_FRAME: usize = 65_600;
/// How often the thread looks whether it is to stop.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Frames read from one side before the other side has its turn.
const TURN: usize = 64;
/// Socket buffers in bytes.
const BUFFER: i32 = 4 << 20;
/// Frames under way at most; what comes beyond is lost, as in a switch that is full.
const MAX_WAITING: usize = 100_000;

/// What a relay does to the frames of one direction. May be changed at any time.
#[derive(Debug, Default)]
pub struct Impairment {
    loss_ppm: AtomicU32,
    duplicate_ppm: AtomicU32,
    reorder_ppm: AtomicU32,
    delay_us: AtomicU32,
    jitter_us: AtomicU32,
    hold_us: AtomicU32,
    passed: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
}

impl Impairment {
    /// Share of the frames that are lost, 0 to 1.
    pub fn set_loss(&self, share: f64) {
        self.loss_ppm.store(ppm(share), Ordering::Relaxed);
    }

    /// Share of the frames that come twice, 0 to 1.
    pub fn set_duplication(&self, share: f64) {
        self.duplicate_ppm.store(ppm(share), Ordering::Relaxed);
    }

    /// Share of the frames that are held back for `hold`, so that later ones overtake them.
    pub fn set_reordering(&self, share: f64, hold: Duration) {
        self.hold_us.store(micros(hold), Ordering::Relaxed);
        self.reorder_ppm.store(ppm(share), Ordering::Relaxed);
    }

    /// What every frame waits: `delay` and something between zero and `jitter`. Jitter alone does
    /// not change the order.
    pub fn set_delay(&self, delay: Duration, jitter: Duration) {
        self.delay_us.store(micros(delay), Ordering::Relaxed);
        self.jitter_us.store(micros(jitter), Ordering::Relaxed);
    }

    /// A perfect cable again.
    pub fn clear(&self) {
        for setting in [
            &self.loss_ppm,
            &self.duplicate_ppm,
            &self.reorder_ppm,
            &self.delay_us,
            &self.jitter_us,
            &self.hold_us,
        ] {
            setting.store(0, Ordering::Relaxed);
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            passed: read(&self.passed),
            lost: read(&self.lost),
            duplicated: read(&self.duplicated),
            reordered: read(&self.reordered),
        }
    }
}

/// What a relay did in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Frames sent on, the second ones included.
    pub passed: u64,
    /// Frames lost.
    pub lost: u64,
    /// Frames sent twice.
    pub duplicated: u64,
    /// Frames held back.
    pub reordered: u64,
}

fn ppm(share: f64) -> u32 {
    (share.clamp(0.0, 1.0) * 1e6).round() as u32
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}

/// A frame that waits for its time. Ordered by time, then by arrival.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    frame: Vec<u8>,
}

/// The frames of one direction: what to do with each, and when. No sockets, no clock.
#[derive(Debug)]
struct Queue {
    impairment: Arc<Impairment>,
    random: Random,
    waiting: BinaryHeap<Reverse<Waiting>>,
    number: u64,
    last_due: Option<Instant>,
}

impl Queue {
    fn new(impairment: Arc<Impairment>, seed: u64) -> Self {
        let random = Random::new(seed);
        Self { impairment, random, waiting: BinaryHeap::new(), number: 0, last_due: None }
    }

    fn chance(&mut self, share: &AtomicU32) -> bool {
        let share = share.load(Ordering::Relaxed) as usize;
        share > 0 && self.random.below(1_000_000) < share
    }

    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        let impairment = Arc::clone(&self.impairment);
        if self.chance(&impairment.loss_ppm) || self.waiting.len() >= MAX_WAITING {
            impairment.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let copies = if self.chance(&impairment.duplicate_ppm) {
            impairment.duplicated.fetch_add(1, Ordering::Relaxed);
            2
        } else {
            1
        };
        for _ in 0..copies {
            let due = self.due(now, &impairment);
            let number = self.number;
            self.number += 1;
            self.waiting.push(Reverse(Waiting { due, number, frame: frame.to_vec() }));
        }
    }

    /// When a frame that came `now` leaves.
    fn due(&mut self, now: Instant, impairment: &Impairment) -> Instant {
        let us = |setting: &AtomicU32| u64::from(setting.load(Ordering::Relaxed));
        let jitter = self.random.below(us(&impairment.jitter_us) as usize + 1) as u64;
        let due = now + Duration::from_micros(us(&impairment.delay_us) + jitter);
        if self.chance(&impairment.reorder_ppm) {
            impairment.reordered.fetch_add(1, Ordering::Relaxed);
            return due + Duration::from_micros(us(&impairment.hold_us));
        }
        // Never before the one in front of it.
        let due = self.last_due.map_or(due, |last| due.max(last));
        self.last_due = Some(due);
        due
    }

    fn poll_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.poll_timeout()? > now {
            return None;
        }
        self.impairment.passed.fetch_add(1, Ordering::Relaxed);
        self.waiting.pop().map(|Reverse(waiting)| waiting.frame)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(waiting)| waiting.due)
    }
}

/// A relay under way; it ends on drop.
#[derive(Debug)]
pub struct Relay {
    /// What it does to frames from the near to the far interface.
    pub forth: Arc<Impairment>,
    /// What it does to frames from the far to the near interface.
    pub back: Arc<Impairment>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Joins the interfaces `near` and `far` of `middle`, which must be up. The same `seed` gives
    /// the same fates.
    ///
    /// # Errors
    /// The packet sockets cannot be had.
    pub fn start(middle: &Netns, near: &str, far: &str, seed: u64) -> Result<Self> {
        middle.silence_ipv6()?;
        let sockets = [open(middle, near)?, open(middle, far)?];
        let (forth, back) = (Arc::new(Impairment::default()), Arc::new(Impairment::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let queues = [
            Queue::new(Arc::clone(&forth), seed),
            Queue::new(Arc::clone(&back), seed.wrapping_add(1)),
        ];
        let told = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name(format!("relay-{near}")).spawn(move || {
                sys::sharpen_timers();
                if let Err(error) = work(&sockets, queues, &told) {
                    // An interface that goes with its namespace ends the relay too.
                    eprintln!("a relay ended: {error:#}");
                }
            })?;
        Ok(Self { forth, back, stop, thread: Some(thread) })
    }

    /// What it does in both directions.
    #[must_use]
    pub fn both(&self) -> [&Impairment; 2] {
        [&self.forth, &self.back]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(netns: &Netns, interface: &str) -> Result<Socket> {
    let index: i32 = netns.interface_attribute(interface, "ifindex")?.parse()?;
    let socket = netns.enter(|| Ok(Socket::new(Domain::PACKET, Type::RAW, None)?))?;
    sys::bind_packet(socket.as_fd(), index).with_context(|| format!("binding to {interface}"))?;
    sys::force_recv_buffer(socket.as_fd(), BUFFER)?;
    sys::force_send_buffer(socket.as_fd(), BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn work(sockets: &[Socket; 2], mut queues: [Queue; 2], stop: &AtomicBool) -> Result<()> {
    let mut buffer = vec![0; MAX_FRAME];
    while !stop.load(Ordering::Relaxed) {
        let due = queues.iter().filter_map(Queue::poll_timeout).min();
        let wait = due.map_or(LONGEST_WAIT, |due| due.saturating_duration_since(Instant::now()));
        let fds = [sockets[0].as_fd(), sockets[1].as_fd()];
        let ready = sys::readable_any(fds, wait.min(LONGEST_WAIT))?;
        for (side, queue) in queues.iter_mut().enumerate() {
            if ready[side] {
                take_in(&sockets[side], queue, &mut buffer)?;
            }
            let now = Instant::now();
            while let Some(frame) = queue.poll_frame(now) {
                // A full or downed interface loses frames, as a cable that is pulled does.
                let _ = sockets[1 - side].send(&frame);
            }
        }
    }
    Ok(())
}

fn take_in(mut socket: &Socket, queue: &mut Queue, buffer: &mut [u8]) -> Result<()> {
    for _ in 0..TURN {
        match socket.read(buffer) {
            Ok(length) => queue.handle_frame(Instant::now(), &buffer[..length]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("reading a frame"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(seed: u64) -> (Queue, Arc<Impairment>) {
        let impairment = Arc::new(Impairment::default());
        (Queue::new(Arc::clone(&impairment), seed), impairment)
    }

    /// Feeds `count` numbered frames 100 us apart and gives what comes out, with its time.
    fn run(queue: &mut Queue, count: u32) -> Vec<(Duration, u32)> {
        let start = Instant::now();
        let mut out = Vec::new();
        let mut drain = |queue: &mut Queue, now| {
            while let Some(frame) = queue.poll_frame(now) {
                let number = u32::from_le_bytes(frame.try_into().unwrap());
                out.push((now - start, number));
            }
        };
        for number in 0..count {
            let now = start + Duration::from_micros(100) * number;
            queue.handle_frame(now, &number.to_le_bytes());
            drain(queue, now);
        }
        while let Some(due) = queue.poll_timeout() {
            drain(queue, due);
        }
        out
    }

    #[test]
    fn a_perfect_cable_is_exact() {
        let (mut queue, impairment) = queue(1);
        let out = run(&mut queue, 100);
        assert!(out.iter().map(|(_, number)| *number).eq(0..100));
        let counts = Counts { passed: 100, lost: 0, duplicated: 0, reordered: 0 };
        assert_eq!(impairment.counts(), counts);
    }

    #[test]
    fn loss_and_duplication_have_the_share_that_was_asked() {
        let (mut queue, impairment) = queue(2);
        impairment.set_loss(0.1);
        impairment.set_duplication(0.05);
        let out = run(&mut queue, 100_000);
        let counts = impairment.counts();
        assert!(counts.lost.abs_diff(10_000) < 500, "{counts:?}");
        assert!(counts.duplicated.abs_diff(4_500) < 400, "{counts:?}");
        assert_eq!(out.len() as u64, 100_000 - counts.lost + counts.duplicated);
        impairment.clear();
        assert_eq!(run(&mut queue, 100).len(), 100);
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_breaks_it() {
        let (mut queue, impairment) = queue(3);
        impairment.set_delay(Duration::from_millis(5), Duration::from_millis(3));
        let out = run(&mut queue, 1000);
        assert!(out.is_sorted_by_key(|(_, number)| *number));
        for (at, number) in &out {
            let waited = *at - Duration::from_micros(100) * *number;
            assert!(waited >= Duration::from_millis(5) && waited <= Duration::from_millis(8));
        }
        impairment.set_reordering(0.1, Duration::from_millis(2));
        let out = run(&mut queue, 1000);
        assert!(!out.is_sorted_by_key(|(_, number)| *number));
        assert_eq!(out.len(), 1000);
        assert!(impairment.counts().reordered.abs_diff(100) < 40, "{:?}", impairment.counts());
    }

    #[test]
    fn a_seed_repeats_a_run() {
        let fates = |seed| {
            let (mut queue, impairment) = queue(seed);
            impairment.set_loss(0.3);
            run(&mut queue, 200).iter().map(|(_, number)| *number).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
    }
}
