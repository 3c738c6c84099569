//! Frames for DPDK ports: sends them, counts them, gives them back, or hands them on.
//!
//! The benches and guests' tests use it in the place of a virtual machine: a port
//! `net_virtio_user,path=SOCKET` drives a vhost-user port as a guest's card does. Each frame has a
//! number, by which the counting end knows what was lost or overtaken. A line of JSON per interval,
//! and one at the end.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use fastpath::dpdk::{Eal, EalOptions, Hugepages, Pool, Port, PortOptions, RxQueue, TxQueue};
use serde_json::json;

/// Ethernet, IPv4, UDP.
const HEADERS_LEN: usize = 42;
/// Number and time of sending, in ns.
const STAMP_LEN: usize = 16;
const BURST: usize = 32;

#[derive(Parser)]
#[command(name = "dpdk-traffic", about = "Frames for DPDK ports, numbered and counted")]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Send frames
    Source {
        #[command(flatten)]
        common: Common,
        /// Bytes of each frame, 60 to 9000
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(60..=9000))]
        frame_len: u16,
        /// Frames a second; as many as the port takes without it
        #[arg(long)]
        rate: Option<u64>,
        /// Frames on their way at a time: the next ones leave as others come back from an echo
        #[arg(long, conflicts_with = "rate", value_parser = clap::value_parser!(u64).range(1..))]
        window: Option<u64>,
        /// Flows, by UDP source port
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
        flows: u16,
        /// Number of the station that sends, 1 to 250: MAC address 02:00:00:00:00:N, IP 10.77.0.N
        #[arg(long, default_value_t = 1)]
        from: u8,
        /// Number of the station that receives
        #[arg(long, default_value_t = 2)]
        to: u8,
        /// Milliseconds that the port stays open after the last frame: what still lies in its ring as it
        /// closes is lost
        #[arg(long, default_value_t = 0)]
        linger: u64,
    },
    /// Count frames of a source; says hello now and then, so that switches know where it is
    Sink {
        #[command(flatten)]
        common: Common,
        /// Number of the station
        #[arg(long, default_value_t = 2)]
        station: u8,
        /// Count every frame, whatever it is, and say nothing
        #[arg(long)]
        any: bool,
    },
    /// Send every frame back to where it came from
    Echo {
        #[command(flatten)]
        common: Common,
    },
    /// Hand frames on between two ports, unread
    Forward {
        #[command(flatten)]
        common: Common,
        /// The other port
        #[arg(long)]
        other: String,
    },
}

#[derive(Args)]
struct Common {
    /// DPDK device, such as "net_virtio_user,path=/tmp/vm.sock,queues=1"
    #[arg(long)]
    port: String,
    /// Seconds until it ends
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Milliseconds between lines
    #[arg(long, default_value_t = 1000)]
    interval: u64,
    /// Use hugepages
    #[arg(long)]
    hugepages: bool,
    /// Never yield the core
    #[arg(long)]
    spin: bool,
    /// Yield the core after every burst, for those who share it
    #[arg(long, conflicts_with = "spin")]
    polite: bool,
}

/// What was counted so far.
#[derive(Default, Clone, Copy)]
struct Counts {
    sent: u64,
    refused: u64,
    received: u64,
    bytes: u64,
    reordered: u64,
    duplicated: u64,
    highest: u64,
    delay_ns: u64,
}

struct Run {
    counts: Counts,
    started: Instant,
    first: Option<Duration>,
    end: Instant,
    next_line: Instant,
    interval: Duration,
    spin: bool,
    polite: bool,
    stop: Arc<AtomicBool>,
}

impl Run {
    fn new(common: &Common) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let started = Instant::now();
        let interval = Duration::from_millis(common.interval.max(1));
        Ok(Self {
            counts: Counts::default(),
            started,
            first: None,
            end: started + Duration::from_secs_f64(common.seconds),
            next_line: started + interval,
            interval,
            spin: common.spin,
            polite: common.polite,
            stop,
        })
    }

    /// Says whether to go on; prints what is due.
    fn goes_on(&mut self, idle: bool) -> bool {
        let now = Instant::now();
        if now >= self.next_line {
            self.print(now, false);
            self.next_line = now + self.interval;
        }
        if self.polite || idle && !self.spin {
            std::thread::yield_now();
        }
        now < self.end && !self.stop.load(Ordering::Relaxed)
    }

    fn print(&self, now: Instant, last: bool) {
        let Counts { sent, refused, received, bytes, reordered, duplicated, highest, delay_ns } =
            self.counts;
        let line = json!({
            "end": last,
            "seconds": now.duration_since(self.started).as_secs_f64(),
            "cpu_seconds": cpu_seconds(),
            "sent": sent,
            "refused": refused,
            "received": received,
            "bytes": bytes,
            "lost": highest.saturating_sub(received - duplicated),
            "reordered": reordered,
            "duplicated": duplicated,
            "mean_delay_us": delay_ns as f64 / 1000.0 / received.max(1) as f64,
            "first_ms": self.first.map(|first| first.as_secs_f64() * 1000.0),
        });
        // A reader that has gone is no reason to fail.
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let main: f64 = stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
    main / 1e9
}

fn open(eal: &Eal, device: &str, large: bool) -> Result<(Port, RxQueue, TxQueue)> {
    let room = if large { 9216 } else { 2048 };
    let options = PortOptions {
        device: device.to_owned(),
        queues: 1,
        rx_descriptors: 1024,
        tx_descriptors: 1024,
        mtu: None,
        interrupts: false,
        capabilities: 0,
        pool: Pool::new(eal, 4000, room)?,
    };
    let (port, mut rx, mut tx) = Port::open(eal, &options)?;
    let (rx, tx) = (rx.pop().context("no queue")?, tx.pop().context("no queue")?);
    Ok((port, rx, tx))
}

fn start(common: &Common) -> Result<Eal> {
    let hugepages = if common.hugepages { Hugepages::Always } else { Hugepages::Never };
    // A card is driven only when it is named.
    let name = common.port.split(',').next().unwrap_or_default();
    let pci = if name.contains(':') { vec![name.to_owned()] } else { Vec::new() };
    let eal = Eal::start(&EalOptions { memory_mb: 96, hugepages, pci, ..EalOptions::default() })?;
    eal.register_thread()?;
    Ok(eal)
}

/// The headers of a frame from one station to another; group 255 is everyone.
fn headers(from: u8, to: u8, source_port: u16, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADERS_LEN);
    let mac = |station: u8| match station {
        255 => [0xff; 6],
        station => [2, 0, 0, 0, 0, station],
    };
    frame.extend(mac(to));
    frame.extend(mac(from));
    frame.extend([8, 0]);
    let ip_len = (len - 14) as u16;
    frame.extend([0x45, 0]);
    frame.extend(ip_len.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 77, 0, from, 10, 77, 0, to]);
    let words =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(source_port.to_be_bytes());
    frame.extend(9_u16.to_be_bytes());
    frame.extend((ip_len - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame
}

fn main() -> Result<()> {
    match Cli::parse().mode {
        Mode::Source { common, frame_len, rate, window, flows, from, to, linger } => {
            let len = usize::from(frame_len);
            let templates: Vec<_> =
                (0..flows).map(|flow| headers(from, to, 1000 + flow, len)).collect();
            let pace = match (rate, window) {
                (Some(rate), _) => Pace::Rate(rate),
                (None, Some(window)) => Pace::Window(Window::new(window)),
                (None, None) => Pace::Flood,
            };
            source(&common, len, pace, &templates, Duration::from_millis(linger))
        }
        Mode::Sink { common, station, any } => sink(&common, station, any),
        Mode::Echo { common } => echo(&common),
        Mode::Forward { common, other } => forward(&common, &other),
    }
}

/// How fast a source sends.
enum Pace {
    /// As many as the port takes.
    Flood,
    /// So many frames a second.
    Rate(u64),
    /// As fast as they come back.
    Window(Window),
}

/// Frames that may be on their way at a time.
struct Window {
    size: u64,
    /// Those that are taken for lost.
    lost: u64,
    returned: u64,
    returned_at: Instant,
}

impl Window {
    /// Without an answer for so long, frames were lost.
    const PATIENCE: Duration = Duration::from_millis(100);

    fn new(size: u64) -> Self {
        Self { size, lost: 0, returned: 0, returned_at: Instant::now() }
    }

    /// Frames that may leave now.
    fn room(&mut self, counts: &Counts) -> u64 {
        if counts.received > self.returned {
            (self.returned, self.returned_at) = (counts.received, Instant::now());
        }
        let away = counts.sent.saturating_sub(counts.received + self.lost);
        if away >= self.size && self.returned_at.elapsed() > Self::PATIENCE {
            self.lost += away;
            self.returned_at = Instant::now();
            return self.size;
        }
        self.size.saturating_sub(away)
    }
}

/// The number in a source's frame; hellos and the network's own frames have none.
fn number_of(bytes: &[u8]) -> Option<u64> {
    let bytes = bytes.get(..HEADERS_LEN + STAMP_LEN)?;
    if bytes[12..14] != [8, 0] || bytes[23] != 17 || bytes[36..38] != [0, 9] {
        return None;
    }
    let number = bytes[HEADERS_LEN..HEADERS_LEN + 8].iter();
    Some(number.fold(0_u64, |all, byte| all << 8 | u64::from(*byte))).filter(|number| *number > 0)
}

fn source(
    common: &Common,
    len: usize,
    mut pace: Pace,
    templates: &[Vec<u8>],
    linger: Duration,
) -> Result<()> {
    ensure!(len >= HEADERS_LEN + STAMP_LEN, "a frame of {len} bytes has no room for its number");
    let eal = start(common)?;
    let (_port, mut rx, mut tx) = open(&eal, &common.port, len > 2000)?;
    let mut run = Run::new(common)?;
    loop {
        // Also what is not for us has to be taken: it must not fill the ring.
        let back = rx.receive(BURST);
        run.counts.received +=
            back.iter().filter_map(|packet| packet.bytes().and_then(number_of)).count() as u64;
        drop(back);
        let counts = &run.counts;
        let due = match &mut pace {
            Pace::Flood => u64::MAX,
            Pace::Rate(rate) => {
                let due = (run.started.elapsed().as_secs_f64() * *rate as f64) as u64;
                due.saturating_sub(counts.sent + counts.refused)
            }
            Pace::Window(window) => window.room(counts),
        };
        let count = due.min(BURST as u64);
        let now = run.started.elapsed().as_nanos() as u64;
        let mut ready = 0;
        for number in 0..count {
            let template = &templates[(run.counts.sent + number) as usize % templates.len()];
            let Some(frame) = tx.push(len) else { break };
            frame[..HEADERS_LEN].copy_from_slice(template);
            // Only what arrives counts: the number of a frame that is refused is used again.
            let stamp = run.counts.sent + number + 1;
            frame[HEADERS_LEN..HEADERS_LEN + 8].copy_from_slice(&stamp.to_be_bytes());
            frame[HEADERS_LEN + 8..HEADERS_LEN + STAMP_LEN].copy_from_slice(&now.to_be_bytes());
            ready += 1;
        }
        let taken = tx.flush(0) as u64;
        run.counts.sent += taken;
        run.counts.refused += if matches!(pace, Pace::Rate(_)) { ready - taken } else { 0 };
        run.counts.bytes += taken * len as u64;
        if taken > 0 && run.first.is_none() {
            run.first = Some(run.started.elapsed());
        }
        if !run.goes_on(taken == 0) {
            break;
        }
    }
    run.print(Instant::now(), true);
    let lingering = Instant::now();
    while lingering.elapsed() < linger {
        drop(rx.receive(BURST));
        // Nobody can be asked whether the other side has taken everything.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn sink(common: &Common, station: u8, any: bool) -> Result<()> {
    let eal = start(common)?;
    let (_port, mut rx, mut tx) = open(&eal, &common.port, true)?;
    let mut run = Run::new(common)?;
    let mut hello_at = run.started;
    loop {
        let now = Instant::now();
        if now >= hello_at && !any {
            hello_at = now + Duration::from_millis(500);
            if let Some(frame) = tx.push(60) {
                frame.fill(0);
                frame[..HEADERS_LEN].copy_from_slice(&headers(station, 255, 9, 60));
            }
            tx.flush(0);
        }
        let burst = rx.receive(64);
        let idle = burst.is_empty();
        if any {
            run.counts.received += burst.len() as u64;
            run.counts.bytes += burst.iter().map(|packet| packet.len() as u64).sum::<u64>();
        }
        for packet in burst.iter().take(if any { 0 } else { usize::MAX }) {
            let Some(number) = packet.bytes().and_then(number_of) else { continue };
            let counts = &mut run.counts;
            counts.received += 1;
            counts.bytes += packet.len() as u64;
            match number.cmp(&counts.highest) {
                std::cmp::Ordering::Greater => counts.highest = number,
                std::cmp::Ordering::Equal => counts.duplicated += 1,
                std::cmp::Ordering::Less => counts.reordered += 1,
            }
            if run.first.is_none() {
                run.first = Some(run.started.elapsed());
            }
        }
        drop(burst);
        if !run.goes_on(idle) {
            break;
        }
    }
    run.print(Instant::now(), true);
    Ok(())
}

fn echo(common: &Common) -> Result<()> {
    let eal = start(common)?;
    let (_port, mut rx, mut tx) = open(&eal, &common.port, true)?;
    let mut run = Run::new(common)?;
    loop {
        let burst = rx.receive(BURST);
        let idle = burst.is_empty();
        for packet in burst.iter() {
            let Some(room) = tx.push(packet.len()) else { break };
            if packet.copy_to(room).is_some() && room.len() >= 12 {
                let (to, from) = room.split_at_mut(6);
                to.swap_with_slice(&mut from[..6]);
            }
        }
        run.counts.received += burst.len() as u64;
        drop(burst);
        run.counts.sent += tx.flush(64) as u64;
        if !run.goes_on(idle) {
            break;
        }
    }
    run.print(Instant::now(), true);
    Ok(())
}

fn forward(common: &Common, other: &str) -> Result<()> {
    let eal = start(common)?;
    let (_port, mut rx, mut tx) = open(&eal, &common.port, false)?;
    let (_other, mut other_rx, mut other_tx) = open(&eal, other, false)?;
    let mut run = Run::new(common)?;
    loop {
        let moved = hand_on(&mut rx, &mut other_tx, &mut run.counts)
            + hand_on(&mut other_rx, &mut tx, &mut run.counts);
        if !run.goes_on(moved == 0) {
            break;
        }
    }
    run.print(Instant::now(), true);
    Ok(())
}

/// Copies a burst from one port to another; gives the number of frames.
fn hand_on(rx: &mut RxQueue, tx: &mut TxQueue, counts: &mut Counts) -> usize {
    let burst = rx.receive(BURST);
    for packet in burst.iter() {
        if let Some(room) = tx.push(packet.len())
            && packet.copy_to(room).is_some()
        {
            counts.received += 1;
            counts.bytes += packet.len() as u64;
        }
    }
    let moved = burst.len();
    drop(burst);
    counts.sent += tx.flush(0) as u64;
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_opens_as_frames_return_and_after_a_loss() {
        let mut window = Window::new(10);
        let mut counts = Counts { sent: 10, received: 3, ..Counts::default() };
        assert_eq!(window.room(&counts), 3);
        counts.sent = 13;
        assert_eq!(window.room(&counts), 0);
        window.returned_at = Instant::now().checked_sub(Window::PATIENCE * 2).unwrap();
        assert_eq!(window.room(&counts), 10);
        counts.sent = 23;
        assert_eq!(window.room(&counts), 0);
    }

    #[test]
    fn only_frames_of_a_source_have_a_number() {
        let mut frame = headers(1, 2, 1000, 60);
        assert_eq!(number_of(&frame), None);
        frame.resize(60, 0);
        assert_eq!(number_of(&frame), None);
        frame[HEADERS_LEN + 7] = 5;
        assert_eq!(number_of(&frame), Some(5));
        frame[37] = 10;
        assert_eq!(number_of(&frame), None);
    }
}
