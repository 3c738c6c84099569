//! A steady flow of numbered datagrams: how long it paused, what was lost, repeated, overtaken.
//!
//! The sender keeps an absolute schedule and catches up after a stall. It notes when each number
//! left, so that a pause of its own is not blamed on what is measured. The kernel notes when each
//! datagram arrived (`SO_TIMESTAMPNS`), so that a late wake-up of the receiver does not count
//! either.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use socket2::SockRef;

use crate::netns::Netns;
use crate::{sys, wait};

/// Number in front, number at the end.
const MIN_PAYLOAD: usize = 16;
/// The sender notes the times of so many datagrams: at 10,000 per second the last 100 s.
const NOTED: u64 = 1 << 20;
/// Most datagrams that a sender sends without a look at the clock when it catches up.
const CATCH_UP: u64 = 64;
/// Socket buffers of both ends, in bytes.
const BUFFER: i32 = 4 << 20;
/// A pause between two sends counts as a stall from so many intervals on.
const STALL: u64 = 3;
/// How long the last datagrams may be under way.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct FlowOptions {
    /// Datagrams per second.
    pub rate: f64,
    /// UDP payload in bytes, at least 16. Frames are 42 bytes longer over IPv4, 62 over IPv6.
    pub payload: usize,
    /// TOS byte of the packets (IPv4 only).
    pub tos: u8,
}

impl FlowOptions {
    /// Datagrams of 58 bytes (frames of 100 over IPv4), `rate` per second.
    #[must_use]
    pub fn at(rate: f64) -> Self {
        Self { rate, payload: 58, tos: 0 }
    }

    /// The same with another payload.
    #[must_use]
    pub fn with_payload(self, payload: usize) -> Self {
        Self { payload, ..self }
    }

    /// The same with a TOS byte.
    #[must_use]
    pub fn with_tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }
}

/// What became of a part of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// Datagrams sent.
    pub sent: u64,
    /// Those of them that have not arrived.
    pub lost: u64,
    /// Arrivals of what had arrived before.
    pub duplicated: u64,
    /// Arrivals that a later number had overtaken.
    pub reordered: u64,
    /// Datagrams that arrived with another length or other bytes.
    pub damaged: u64,
    /// Longest time without an arrival of something new, in milliseconds.
    pub raw_gap_ms: f64,
    /// The same when the sender's own stalls at the beginning and end of each gap are taken off.
    pub gap_ms: f64,
    /// Longest stall of the sender, in milliseconds; 0 if there was none.
    pub stall_ms: f64,
}

/// How something arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrived {
    InOrder,
    Overtaken,
    Again,
    Damaged,
}

/// An arrival: when, in nanoseconds since the flow began, and how.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: u64,
    how: Arrived,
}

/// All that arrived.
#[derive(Debug, Default)]
struct Arrivals {
    /// In the order of time.
    list: Vec<Arrival>,
    /// A bit for each number.
    seen: Vec<u64>,
    distinct: u64,
    next: u64,
}

impl Arrivals {
    fn push(&mut self, at: u64, number: Option<u64>) {
        let at = self.list.last().map_or(at, |last| at.max(last.at));
        let how = match number {
            None => Arrived::Damaged,
            Some(number) if self.has(number) => Arrived::Again,
            Some(number) => {
                self.mark(number);
                let overtaken = number < self.next;
                self.next = self.next.max(number + 1);
                if overtaken { Arrived::Overtaken } else { Arrived::InOrder }
            }
        };
        self.list.push(Arrival { at, how });
    }

    fn has(&self, number: u64) -> bool {
        self.seen.get((number / 64) as usize).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn mark(&mut self, number: u64) {
        let index = (number / 64) as usize;
        if self.seen.len() <= index {
            self.seen.resize(index + 1, 0);
        }
        if let Some(word) = self.seen.get_mut(index) {
            *word |= 1 << (number % 64);
        }
        self.distinct += 1;
    }

    /// Arrivals in `[from, until)`.
    fn within(&self, from: u64, until: u64) -> &[Arrival] {
        let begin = self.list.partition_point(|arrival| arrival.at < from);
        let end = self.list.partition_point(|arrival| arrival.at < until);
        self.list.get(begin..end.max(begin)).unwrap_or_default()
    }

    /// Spans between arrivals of something new that reach into `[from, until)`; the last one may
    /// end `now`.
    fn gaps(&self, from: u64, until: u64, now: u64) -> Vec<(u64, u64)> {
        let fresh =
            |arrival: &&Arrival| matches!(arrival.how, Arrived::InOrder | Arrived::Overtaken);
        let begin = self.list.partition_point(|arrival| arrival.at < from);
        let (before, after) = self.list.split_at(begin);
        let mut last = before.iter().rfind(fresh).map_or(from, |arrival| arrival.at);
        let mut gaps = Vec::new();
        for arrival in after.iter().filter(fresh) {
            if last >= until {
                return gaps;
            }
            gaps.push((last, arrival.at));
            last = arrival.at;
        }
        if last < until {
            gaps.push((last, now.max(last)));
        }
        gaps
    }
}

/// When the last [`NOTED`] numbers left, in nanoseconds since the flow began.
#[derive(Debug)]
struct Departures {
    times: Box<[AtomicU64]>,
    count: AtomicU64,
}

impl Departures {
    fn new(capacity: u64) -> Self {
        let times = (0..capacity).map(|_| AtomicU64::new(0)).collect();
        Self { times, count: AtomicU64::new(0) }
    }

    fn push(&self, at: u64) {
        let number = self.count.load(Ordering::Relaxed);
        let slot = (number % self.times.len() as u64) as usize;
        if let Some(time) = self.times.get(slot) {
            time.store(at, Ordering::Relaxed);
        }
        self.count.store(number + 1, Ordering::Release);
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    fn at(&self, number: u64) -> u64 {
        let slot = (number % self.times.len() as u64) as usize;
        self.times.get(slot).map_or(0, |time| time.load(Ordering::Relaxed))
    }

    /// The first number that left at `at` or later.
    fn first_since(&self, at: u64) -> u64 {
        let count = self.count();
        // One slot of slack, because the sender may be at work on it.
        let (mut low, mut high) = (count.saturating_sub(self.times.len() as u64 - 1), count);
        while low < high {
            let middle = u64::midpoint(low, high);
            if self.at(middle) < at { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The stalls of the sender in `[from, until)`: from when the next one was due by its
    /// `interval` until it left.
    fn stalls(&self, from: u64, until: u64, interval: u64) -> Vec<(u64, u64)> {
        let count = self.count();
        let mut number = self.first_since(from);
        let mut last = number.checked_sub(1).map(|before| self.at(before));
        let mut stalls = Vec::new();
        loop {
            let at = if number < count { self.at(number) } else { until };
            if let Some(last) = last
                && at.saturating_sub(last) >= STALL * interval
            {
                let (begin, end) = ((last + interval).max(from), at.min(until));
                if begin < end {
                    stalls.push((begin, end));
                }
            }
            if at >= until || number >= count {
                return stalls;
            }
            last = Some(at);
            number += 1;
        }
    }

    /// How much of a gap between two arrivals is the sender's: its stalls at the beginning and at
    /// the end. What it sent between two others did not arrive either, so those excuse nothing.
    fn excused(&self, from: u64, until: u64, interval: u64) -> u64 {
        let slack = STALL * interval;
        let stalls = self.stalls(from, until, interval).into_iter();
        stalls
            .filter(|(begin, end)| *begin <= from + slack || *end + slack >= until)
            .map(|(begin, end)| end - begin)
            .sum()
    }
}

/// A flow under way; it ends on drop.
#[derive(Debug)]
pub struct Flow {
    begin: Instant,
    interval: u64,
    departures: Arc<Departures>,
    arrivals: Arc<Mutex<Arrivals>>,
    stop_sending: Arc<AtomicBool>,
    stop_receiving: Arc<AtomicBool>,
    sender: Option<JoinHandle<Result<()>>>,
    receiver: Option<JoinHandle<Result<()>>>,
}

/// Where a flow begins or ends: a host and an address that it has.
pub type End<'a> = (&'a Netns, IpAddr);

impl Flow {
    /// Starts to send from one host to another.
    ///
    /// # Errors
    /// An address is not there, or a socket cannot be had.
    pub fn start(from: End<'_>, to: End<'_>, options: FlowOptions) -> Result<Self> {
        ensure!(options.payload >= MIN_PAYLOAD, "a payload has at least {MIN_PAYLOAD} bytes");
        let (near, far) = (bind(from)?, bind(to)?);
        if options.tos != 0 {
            SockRef::from(&near).set_tos_v4(options.tos.into())?;
        }
        sys::stamp_arrivals(far.as_fd())?;
        let target = far.local_addr()?;
        let begin = Instant::now();
        let departures = Arc::new(Departures::new(NOTED));
        let arrivals = Arc::new(Mutex::new(Arrivals::default()));
        let (stop_sending, stop_receiving) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let receiver = {
            let (arrivals, stop) = (Arc::clone(&arrivals), Arc::clone(&stop_receiving));
            let thread = std::thread::Builder::new().name("flow-receiver".to_owned());
            thread.spawn(move || receive(&far, begin, options.payload, &arrivals, &stop))?
        };
        let sender = {
            let (departures, stop) = (Arc::clone(&departures), Arc::clone(&stop_sending));
            let thread = std::thread::Builder::new().name("flow-sender".to_owned());
            thread.spawn(move || send(&near, target, begin, options, &departures, &stop))?
        };
        Ok(Self {
            begin,
            interval: (1e9 / options.rate) as u64,
            departures,
            arrivals,
            stop_sending,
            stop_receiving,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    /// Datagrams sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.departures.count()
    }

    /// Different datagrams received so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.arrivals().distinct
    }

    /// Waits until `count` more have arrived.
    ///
    /// # Errors
    /// They had not within `deadline`.
    pub fn wait_received(&self, count: u64, deadline: Duration) -> Result<()> {
        let wanted = self.received() + count;
        wait::until(&format!("{count} more of the flow"), deadline, || self.received() >= wanted)
            .with_context(|| format!("{} of {} arrived", self.received(), self.sent()))
    }

    /// What became of what was sent between two instants, of which the second may lie in the
    /// future. A gap counts with its whole length if it reaches into that time.
    #[must_use]
    pub fn outcome(&self, from: Instant, until: Instant) -> Outcome {
        let ns = |instant: Instant| nanos(instant.saturating_duration_since(self.begin));
        let now = ns(Instant::now());
        let (from, until) = (ns(from), ns(until));
        let arrivals = self.arrivals();
        let numbers = self.departures.first_since(from)..self.departures.first_since(until);
        let mut outcome = Outcome {
            sent: numbers.end - numbers.start,
            lost: numbers.filter(|number| !arrivals.has(*number)).count() as u64,
            duplicated: 0,
            reordered: 0,
            damaged: 0,
            raw_gap_ms: 0.0,
            gap_ms: 0.0,
            stall_ms: self.longest_stall(from, until.min(now)),
        };
        for arrival in arrivals.within(from, until) {
            match arrival.how {
                Arrived::InOrder => {}
                Arrived::Overtaken => outcome.reordered += 1,
                Arrived::Again => outcome.duplicated += 1,
                Arrived::Damaged => outcome.damaged += 1,
            }
        }
        for (begin, end) in arrivals.gaps(from, until, now) {
            let excused = self.departures.excused(begin, end, self.interval);
            outcome.raw_gap_ms = outcome.raw_gap_ms.max(ms(end - begin));
            outcome.gap_ms = outcome.gap_ms.max(ms((end - begin).saturating_sub(excused)));
        }
        outcome
    }

    /// Ends the flow, waits for what is under way, and says what became of all of it (of the last
    /// million at least).
    ///
    /// # Errors
    /// A socket failed.
    pub fn finish(mut self) -> Result<Outcome> {
        let end = Instant::now();
        self.stop_sending.store(true, Ordering::Relaxed);
        join(self.sender.take())?;
        let all = self.sent();
        // What is lost never comes: then the deadline is the end, and no failure.
        let _ = wait::until("the last of the flow", STRAGGLERS, || self.received() >= all);
        self.stop_receiving.store(true, Ordering::Relaxed);
        join(self.receiver.take())?;
        // The sender may have been in the middle of one; arrivals have until now.
        let mut outcome = self.outcome(self.begin, Instant::now());
        let whole = self.outcome(self.begin, end);
        (outcome.raw_gap_ms, outcome.gap_ms) = (whole.raw_gap_ms, whole.gap_ms);
        outcome.stall_ms = whole.stall_ms;
        Ok(outcome)
    }

    fn longest_stall(&self, from: u64, until: u64) -> f64 {
        let stalls = self.departures.stalls(from, until, self.interval);
        ms(stalls.into_iter().map(|(begin, end)| end - begin).max().unwrap_or(0))
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop_sending.store(true, Ordering::Relaxed);
        self.stop_receiving.store(true, Ordering::Relaxed);
        for thread in [self.sender.take(), self.receiver.take()] {
            let _ = join(thread);
        }
    }
}

fn join(thread: Option<JoinHandle<Result<()>>>) -> Result<()> {
    thread.map_or(Ok(()), |thread| {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of a flow died"))?
    })
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn bind((netns, address): End<'_>) -> Result<UdpSocket> {
    let socket = netns.enter(|| {
        UdpSocket::bind(SocketAddr::new(address, 0)).with_context(|| format!("bind to {address}"))
    })?;
    sys::force_recv_buffer(socket.as_fd(), BUFFER)?;
    sys::force_send_buffer(socket.as_fd(), BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn fill(payload: &mut [u8], number: u64) {
    let bytes = number.to_le_bytes();
    if let Some(first) = payload.first_chunk_mut() {
        *first = bytes;
    }
    if let Some(last) = payload.last_chunk_mut() {
        *last = bytes;
    }
}

/// The number of a datagram that is as it was sent.
fn number_of(payload: &[u8], length: usize) -> Option<u64> {
    let first = u64::from_le_bytes(*payload.first_chunk()?);
    let last = u64::from_le_bytes(*payload.last_chunk()?);
    let filling = payload.get(8..payload.len().checked_sub(8)?)?;
    (payload.len() == length && first == last && filling.iter().all(|byte| *byte == FILLING))
        .then_some(first)
}

const FILLING: u8 = 0x5a;

fn send(
    socket: &UdpSocket,
    target: SocketAddr,
    begin: Instant,
    options: FlowOptions,
    departures: &Departures,
    stop: &AtomicBool,
) -> Result<()> {
    sys::sharpen_timers();
    let interval = Duration::from_secs_f64(1.0 / options.rate);
    let start = begin.elapsed();
    let mut payload = vec![FILLING; options.payload];
    while !stop.load(Ordering::Relaxed) {
        let elapsed = begin.elapsed().saturating_sub(start);
        let sent = departures.count();
        let due = ((elapsed.as_secs_f64() * options.rate) as u64 + 1).saturating_sub(sent);
        for _ in 0..due.min(CATCH_UP) {
            fill(&mut payload, departures.count());
            departures.push(nanos(begin.elapsed()));
            match socket.send_to(&payload, target) {
                Ok(_) => {}
                // What a full queue refuses is lost, as is what a route refuses for a while.
                Err(e) if lost_on_the_way(&e) => {}
                Err(e) => return Err(e).context("sending"),
            }
        }
        if due <= CATCH_UP {
            // Pacing is the purpose here: until the next one is due.
            let next = start + interval.mul_f64(departures.count() as f64);
            std::thread::sleep(next.saturating_sub(begin.elapsed()));
        }
    }
    Ok(())
}

fn lost_on_the_way(error: &std::io::Error) -> bool {
    let known = [
        libc::ENOBUFS,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::ECONNREFUSED,
        libc::EMSGSIZE,
        libc::ENETDOWN,
    ];
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        || error.raw_os_error().is_some_and(|code| known.contains(&code))
}

fn receive(
    socket: &UdpSocket,
    begin: Instant,
    length: usize,
    arrivals: &Mutex<Arrivals>,
    stop: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; length + 1];
    while !stop.load(Ordering::Relaxed) {
        if !sys::readable(socket.as_fd(), Duration::from_millis(20))? {
            continue;
        }
        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        // Both clocks at once; the wall clock may be set while this runs.
        let (now, wall) = (begin.elapsed(), SystemTime::now());
        let wall = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        for _ in 0..sys::MAX_BATCH {
            match sys::recv_stamped(socket.as_fd(), &mut buffer) {
                Ok((got, stamp)) => {
                    let age = stamp.map_or(Duration::ZERO, |stamp| wall.saturating_sub(stamp));
                    let number = buffer.get(..got).and_then(|bytes| number_of(bytes, length));
                    arrivals.push(nanos(now.saturating_sub(age)), number);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if lost_on_the_way(&e) => {}
                Err(e) => return Err(e).context("receiving"),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(of: &[(u64, u64)]) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for (at, number) in of {
            arrivals.push(*at, Some(*number));
        }
        arrivals
    }

    fn departures(of: &[u64]) -> Departures {
        let departures = Departures::new(8);
        for at in of {
            departures.push(*at);
        }
        departures
    }

    #[test]
    fn arrivals_are_told_apart() {
        let mut all = arrivals(&[(1, 0), (2, 1), (3, 3), (4, 2), (5, 3), (6, 200)]);
        all.push(7, None);
        let how: Vec<_> = all.within(0, 100).iter().map(|arrival| arrival.how).collect();
        use Arrived::{Again, Damaged, InOrder, Overtaken};
        assert_eq!(how, [InOrder, InOrder, InOrder, Overtaken, Again, InOrder, Damaged]);
        assert_eq!((all.distinct, all.has(3), all.has(4), all.has(200)), (5, true, false, true));
        assert_eq!(all.within(3, 5).len(), 2);
    }

    #[test]
    fn gaps_reach_over_the_ends_of_the_window() {
        let all = arrivals(&[(10, 0), (20, 1), (50, 2), (55, 2), (60, 3)]);
        assert_eq!(all.gaps(0, 100, 100), [(0, 10), (10, 20), (20, 50), (50, 60), (60, 100)]);
        assert_eq!(all.gaps(30, 40, 100), [(20, 50)]);
        // A duplicate ends no gap; what goes on ends now.
        assert_eq!(all.gaps(52, 58, 100), [(50, 60)]);
        assert_eq!(all.gaps(70, 80, 300), [(60, 300)]);
    }

    #[test]
    fn departures_are_found_by_time_also_after_a_wrap() {
        let few = departures(&[10, 20, 30]);
        assert_eq!([0, 10, 11, 30, 31].map(|at| few.first_since(at)), [0, 0, 1, 2, 3]);
        let times: Vec<u64> = (0..20).map(|n| n * 10).collect();
        let many = departures(&times);
        assert_eq!((many.first_since(150), many.first_since(155), many.at(19)), (15, 16, 190));
        // What was forgotten reads as the oldest that is known.
        assert_eq!(many.first_since(0), 13);
    }

    #[test]
    fn stalls_of_the_sender_are_measured_within_the_window() {
        let sender = departures(&[0, 10, 20, 100, 110]);
        assert_eq!(sender.stalls(0, 120, 10), [(30, 100)]);
        assert_eq!(sender.stalls(50, 120, 10), [(50, 100)]);
        assert_eq!(sender.stalls(50, 60, 10), [(50, 60)]);
        assert_eq!(sender.stalls(100, 120, 10), []);
        // The sender that never came back.
        assert_eq!(sender.stalls(110, 200, 10), [(120, 200)]);
    }

    #[test]
    fn only_stalls_at_the_ends_of_a_gap_excuse_it() {
        let sender = departures(&[20, 100, 110, 120, 130, 140, 150, 220]);
        // It had nothing to receive before 100.
        assert_eq!(sender.excused(22, 102, 10), 70);
        // Lost from 22 on, and back as soon as the second stall was over.
        assert_eq!(sender.excused(22, 222, 10), 70 + 60);
        // Sent all the time.
        assert_eq!(sender.excused(100, 145, 10), 0);
        // In the middle of a gap a stall is no excuse.
        let sender = departures(&[0, 10, 20, 30, 100, 110, 120, 130]);
        assert_eq!(sender.excused(0, 135, 10), 0);
    }

    #[test]
    fn a_changed_datagram_is_no_number() {
        let mut payload = vec![FILLING; 58];
        fill(&mut payload, 77);
        assert_eq!(number_of(&payload, 58), Some(77));
        assert_eq!(number_of(&payload, 59), None);
        payload[20] ^= 1;
        assert_eq!(number_of(&payload, 58), None);
        assert_eq!(number_of(&[1; 10], 10), None);
    }
}
