//! One thread's loop: the only place where both directions meet.
//!
//! Run to completion: a burst is read, goes through every stage and is sent before the next one
//! is read. No queue between stages, no lock, no allocation per packet after start-up.
//!
//! Steps 2 and 11 of a packet's walk are `Worker::overlay_to_underlay` and
//! `Worker::underlay_to_overlay`.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_queue::ArrayQueue;
use encap::datapath::{ControlInput, Datapath, Deliveries, Pulse};
use encap::forward::policer::Policer;
use encap::id::{LocalPort, Vni};
use encap::stats::{Counters, DropReason};
use encap::tx::MAX_TRANSMIT_BYTES;
use encap::wire::buf::{BufPool, Burst, FrameBurst, OutFrame, Received, Transmit, Transmits};
use encap::wire::header::Handle;

use crate::capture::{CaptureTap, Direction};
use crate::counter::counters;
use crate::port::{DatagramPort, FramePort, MAX_BURST};
use crate::uplink::RX_BATCH;
use crate::wake::{PollSet, Waker};

use channels::Channels;
use command::Mailbox;
use idle::Idle;

pub use channels::{ChannelCommand, ChannelsReport, HandOver};
pub use command::{Command, Notice, WorkerHandle};
pub use idle::SHORT_SPIN;

mod deliver;
mod command;
mod channels;
mod idle;

/// How often keys of sessions that are over are looked for and wiped.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that the frames of one burst lie in: a super-frame, and as much again of small ones. More
/// would not stay in the core's own cache.
const FRAME_MEMORY: usize = 160 << 10;
/// Bytes of a buffer for received datagrams: a run of the largest size that the kernel gives.
const RECEIVE_BUF_LEN: usize = 65_535;
/// Bursts of one port in a row while they hold super-frames: about as many bytes as an uplink gives in
/// one call, so that neither direction starves.
const BURSTS_IN_A_ROW: usize = 4;
/// Heartbeats that wait at most for the control thread; then the newest displace the oldest.
pub const PULSE_QUEUE: usize = 4096;
/// Path errors a second that are handed to the control thread; all are counted by the uplink.
const ERROR_NOTICES_PER_SECOND: u32 = 100;

counters! {
    /// What a worker counts about its ports.
    pub struct WorkerCounters {
        /// Frames that a local port had no room for.
        tap_tx_no_room,
        /// Frames that were too large for a local port.
        tap_tx_too_large,
        /// Frames that a local port refused otherwise (it is down).
        tap_tx_failed,
        /// Datagrams that an uplink had no room for.
        uplink_tx_no_room,
        /// Datagrams that were too large for an uplink or path.
        uplink_tx_too_large,
        /// Datagrams that an uplink refused otherwise.
        uplink_tx_failed,
        /// Heartbeats that the control thread was too slow for; newer ones took their place.
        pulses_displaced,
        /// Times that the worker blocked for lack of work.
        waits,
        /// Times that a port ended a wait or a sleep, and not the time.
        wakes,
        /// Times that it slept instead, having ports that cannot be waited for.
        sleeps,
        /// Microseconds that it slept so.
        slept_us,
    }
}

/// Heartbeats on their way from the workers to the control thread: they never wait behind other
/// messages, and old ones give way to new ones.
pub type Pulses = ArrayQueue<Pulse>;

/// The ways from a worker to the control thread.
#[derive(Debug, Clone)]
pub struct ToControl {
    /// For everything but heartbeats; bounded.
    pub notices: SyncSender<Notice>,
    /// For heartbeats.
    pub pulses: Arc<Pulses>,
    /// Wakes it.
    pub waker: Waker,
}

/// What a worker needs besides its ports.
pub struct WorkerOptions {
    /// Never block: for a core that is given away.
    pub dedicated: bool,
    /// How long it polls on at most after the last frame, yielding to others, before it blocks:
    /// more than [`SHORT_SPIN`] only while frames come at intervals that are caught by that.
    pub spin: Duration,
    /// The longest that it sleeps while it has nothing to do and a port that cannot be waited for;
    /// after a second without frames it is 1 ms if that is longer. Zero: it never sleeps.
    pub max_sleep: Duration,
    /// Done first, on the worker's own thread.
    pub on_start: Option<Box<dyn FnOnce() + Send>>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        let max_sleep = Duration::from_micros(100);
        Self { dedicated: false, spin: SHORT_SPIN, max_sleep, on_start: None }
    }
}

impl fmt::Debug for WorkerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerOptions")
            .field("dedicated", &self.dedicated)
            .field("spin", &self.spin)
            .field("max_sleep", &self.max_sleep)
            .field("on_start", &self.on_start.is_some())
            .finish()
    }
}

/// A local port of a network, as one worker has it.
#[derive(Debug)]
struct PortSlot<F> {
    handle: Handle,
    vni: Vni,
    local: LocalPort,
    port: F,
    /// Frames on their way out, collected over a burst.
    out: Vec<OutFrame>,
}

/// One thread's share of the packet path.
#[derive(Debug)]
pub struct Worker<F, D> {
    datapath: Datapath,
    pool: BufPool,
    ports: Vec<PortSlot<F>>,
    uplinks: Vec<D>,
    control: SyncSender<Notice>,
    pulses: Arc<Pulses>,
    control_waker: Waker,
    capture: CaptureTap,
    mailbox: Arc<Mailbox<F>>,
    waker: Waker,
    poll_set: PollSet,
    counters: Arc<WorkerCounters>,
    error_notices: Policer,
    /// Local ports that are gone, until the control thread has taken the news.
    gone: Vec<Notice>,
    channels: Channels,
    options: WorkerOptions,
    idle: Idle,
    /// The wait was ended by the control thread: it wants two passes over all ports.
    woken: bool,
    /// The ports were asked to wake it.
    armed: bool,
    tidied: Instant,
    frames: FrameBurst,
    transmits: Transmits,
    received: Burst<Received>,
    deliveries: Deliveries,
    inputs: Burst<ControlInput>,
}

impl<F: FramePort, D: DatagramPort> Worker<F, D> {
    /// A worker over its uplinks (in the order of their ids), without local ports yet, and the way to
    /// it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(
        datapath: Datapath,
        uplinks: Vec<D>,
        to_control: ToControl,
        capture: CaptureTap,
        options: WorkerOptions,
    ) -> io::Result<(Self, WorkerHandle<F>)> {
        let waker = Waker::new()?;
        let counters = Arc::<WorkerCounters>::default();
        let mailbox = Arc::new(Mailbox {
            waiting: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            commands: Mutex::new(Vec::new()),
        });
        let handle = WorkerHandle {
            commands: Arc::clone(&mailbox),
            waker: waker.clone(),
            counters: Arc::clone(&counters),
        };
        let now = Instant::now();
        let channels = Channels::new(HandOver::new(waker.clone()));
        let ToControl { notices: control, pulses, waker: control_waker } = to_control;
        let worker = Self {
            datapath,
            pool: BufPool::new(RECEIVE_BUF_LEN, RX_BATCH * (uplinks.len() + 2)),
            ports: Vec::new(),
            uplinks,
            control,
            pulses,
            control_waker,
            capture,
            mailbox,
            waker,
            poll_set: PollSet::default(),
            counters,
            error_notices: Policer::new(now, ERROR_NOTICES_PER_SECOND, ERROR_NOTICES_PER_SECOND),
            gone: Vec::new(),
            channels,
            idle: Idle::new(now, options.spin, options.max_sleep),
            options,
            woken: false,
            armed: false,
            tidied: now,
            frames: FrameBurst::new(FRAME_MEMORY, MAX_BURST),
            transmits: Transmits::default(),
            received: Burst::with_capacity(MAX_BURST),
            deliveries: Deliveries::default(),
            inputs: Burst::new(),
        };
        Ok((worker, handle))
    }

    /// Runs until told to stop, or until an uplink is broken for good.
    ///
    /// # Errors
    /// The uplink's.
    pub fn run(&mut self) -> io::Result<()> {
        if let Some(start) = self.options.on_start.take() {
            start();
        }
        self.watch();
        self.idle.busy(Instant::now());
        while !self.mailbox.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if now.saturating_duration_since(self.tidied) >= TIDY_INTERVAL {
                self.tidied = now;
                self.tidy(now);
            }
            let frames = self.frames_seen();
            self.step(now)?;
            // Heartbeats come thousands of times a second and are no reason to spin.
            if self.frames_seen() != frames {
                self.idle.busy(Instant::now());
                if self.armed {
                    self.disarm();
                }
            } else if !self.options.dedicated {
                self.rest(now);
            }
        }
        self.end_channels();
        Ok(())
    }

    /// Frames and packets of channels that went by, either way.
    fn frames_seen(&self) -> u64 {
        let counters = self.datapath.counters();
        [&counters.frames_in, &counters.frames_out, &counters.channel_packets_in]
            .iter()
            .fold(counters.channel_packets_out.get(), |sum, one| sum.wrapping_add(one.get()))
    }

    /// One turn of the loop: a burst of every port in both directions; gives the number of packets.
    ///
    /// # Errors
    /// An uplink is broken for good.
    pub fn step(&mut self, now: Instant) -> io::Result<usize> {
        if self.mailbox.waiting.swap(false, Ordering::AcqRel) {
            self.take_commands();
        }
        // Heartbeats first: `now` is when they are read, which is what round trips are measured by.
        let moved = self.underlay_to_overlay(now)?
            + self.overlay_to_underlay(now)
            + self.serve_channels(now);
        self.datapath.end_pass();
        Ok(moved)
    }

    /// What is due now and then, besides packets.
    fn tidy(&mut self, now: Instant) {
        self.datapath.tidy(now);
        // The worst moment does not stay for ever.
        self.transmits.memory.shrink_to(2 * MAX_TRANSMIT_BYTES);
        self.tell_of_lost_ports();
    }

    /// The protocol's counters of this worker.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        self.datapath.counters()
    }

    /// Frames of every local port are sealed and sent, or go to other local ports; gives their number.
    fn overlay_to_underlay(&mut self, now: Instant) -> usize {
        // What left by a link that failed is older than all that leaves now.
        self.datapath.resend(now, &mut self.transmits);
        self.send();
        // What waited for a session is older than what comes out of a port now.
        if self.datapath.has_waiting() {
            self.datapath.send_waiting(now, &mut self.transmits);
            self.send();
        }
        let mut moved = 0;
        for at in 0..self.ports.len() {
            for _ in 0..BURSTS_IN_A_ROW {
                let Some(slot) = self.ports.get_mut(at) else { break };
                if let Err(error) = slot.port.rx_burst(&mut self.frames) {
                    self.lose_port(at, error);
                    self.take_returns();
                    return moved;
                }
                let from = (slot.handle, slot.vni, slot.local);
                moved += self.frames.len();
                if !self.seal_burst(now, from) {
                    break;
                }
            }
        }
        self.take_returns();
        moved
    }

    /// Seals and sends what a local port gave; says whether super-frames were among it.
    fn seal_burst(&mut self, now: Instant, (handle, vni, local): (Handle, Vni, LocalPort)) -> bool {
        if self.frames.is_empty() {
            return false;
        }
        if self.capture.is_running() {
            let time = unix_time();
            for (_, bytes) in self.frames.iter() {
                self.capture.offer(time, vni, Direction::FromPort, bytes);
            }
        }
        let large = self.frames.iter().any(|(frame, _)| frame.offload.segmentation.is_some());
        self.datapath.admit(now, handle, local, &self.frames);
        while !self.datapath.encapsulate(now, &mut self.frames, &mut self.transmits) {
            self.send();
        }
        self.send();
        self.frames.clear();
        // What goes to other local ports must not pile up over many bursts.
        if self.datapath.has_returns() {
            self.take_returns();
        }
        large
    }

    /// Writes what stays on this node, and hands over what the control thread is to hear of.
    fn take_returns(&mut self) {
        self.datapath.take_returns(&mut self.deliveries);
        if !self.deliveries.is_empty() {
            self.deliver();
        }
        self.inputs.extend(self.datapath.take_news());
        if !self.inputs.is_empty() {
            self.hand_over();
        }
    }

    /// Sends what was sealed, each datagram by its uplink.
    fn send(&mut self) {
        let Transmits { memory, list } = &mut self.transmits;
        if list.is_empty() {
            memory.clear();
            return;
        }
        // What leaves by one uplink keeps its order, and shares system calls.
        if !list.is_sorted_by_key(|transmit| transmit.uplink) {
            list.sort_by_key(|transmit| transmit.uplink);
        }
        for transmits in list.chunk_by(|one, next| one.uplink == next.uplink) {
            let uplink = transmits.first().map_or(0, |transmit| usize::from(transmit.uplink.0));
            let Some(uplink) = self.uplinks.get_mut(uplink) else {
                let lost: usize = transmits.iter().map(Transmit::count).sum();
                self.counters.uplink_tx_failed.add(lost as u64);
                continue;
            };
            let report = uplink.tx_burst(memory, transmits);
            self.counters.uplink_tx_no_room.add(report.no_room as u64);
            self.counters.uplink_tx_too_large.add(report.too_large as u64);
            self.counters.uplink_tx_failed.add(report.failed as u64);
        }
        self.transmits.clear();
        self.take_errors();
    }

    /// Datagrams of every uplink are opened and written to local ports; gives their number.
    ///
    /// # Errors
    /// An uplink is broken for good.
    fn underlay_to_overlay(&mut self, now: Instant) -> io::Result<usize> {
        let mut moved = 0;
        for uplink in &mut self.uplinks {
            uplink.rx_burst(&mut self.pool, &mut self.received)?;
            if self.received.is_empty() {
                continue;
            }
            moved += self.received.len();
            self.datapath.decapsulate(
                now,
                &mut self.pool,
                &mut self.received,
                &mut self.deliveries,
                &mut self.inputs,
            );
        }
        if moved > 0 {
            self.deliver();
            self.hand_over();
            self.take_returns();
            self.hand_over_channels();
        }
        self.take_errors();
        Ok(moved)
    }

    /// Gives the control thread what is for it; what does not fit is counted.
    fn hand_over(&mut self) {
        let mut told = false;
        for input in self.inputs.drain(..) {
            let input = match input {
                ControlInput::Pulse(pulse) => {
                    // The control thread takes heartbeats with its own rounds, unless one says
                    // that the peer does not hear us.
                    told |= !pulse.heartbeat.lost.is_empty();
                    if self.pulses.force_push(*pulse).is_some() {
                        self.counters.pulses_displaced.add(1);
                    }
                    continue;
                }
                other => other,
            };
            if self.control.try_send(Notice::Control(input)).is_err() {
                self.datapath.counters().count_drop(DropReason::ControlQueueFull);
            }
            told = true;
        }
        if told {
            self.control_waker.wake();
        }
    }

    fn tell(&self, notice: Notice) {
        if self.control.try_send(notice).is_ok() {
            self.control_waker.wake();
        }
    }

    fn take_errors(&mut self) {
        for at in 0..self.uplinks.len() {
            while let Some(error) = self.uplinks.get_mut(at).and_then(DatagramPort::poll_error) {
                if self.error_notices.take(Instant::now()) {
                    self.tell(Notice::UplinkError(error));
                }
            }
        }
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
