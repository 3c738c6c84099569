//! The running node: ports, workers and the control thread, made from a configuration.
//!
//! The control thread is the process's first: it owns the [`Vtep`], serves the control socket and
//! the signals, and never touches a frame.

mod networks;
mod vm_ports;
mod channels;
mod uplinks;
mod dpdk;
mod ports;
mod links;
mod protocol;
mod report;
mod offloads;
mod notices;
mod reload;
mod stream;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use encap::stats::Counters;
use encap::vtep::Vtep;
use fastpath::capture::Capture;
use fastpath::dpdk::Eal;
use fastpath::monitor::Monitor;
use fastpath::overlay::OverlayPort;
use fastpath::uplink::any;
use fastpath::wake::{PollSet, Waker};
use fastpath::worker::{
    Notice, PULSE_QUEUE, Pulses, SHORT_SPIN, ToControl, Worker, WorkerHandle, WorkerOptions,
};
use fastpath::{affinity, process};
use log::{debug, info, warn};

use crate::config::{Config, DEFAULT_SPIN_US, Source};
use crate::control::{Events, Incoming, Server};
use crate::exit::Failure;
use crate::privileges;
use channels::Channels;
use dpdk::{Dpdk, Looked};
use networks::Networks;
use notices::Notices;
use uplinks::Uplinks;

/// Messages from the workers that wait at most for the control thread.
const NOTICE_QUEUE: usize = 256;
/// Requests of clients that are answered in one turn of the loop.
const REQUESTS_AT_ONCE: usize = 16;
/// Longest the control thread sleeps.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A sleep longer than this counts: a copy of the machine may have gone on meanwhile.
const SLEEP_LIMIT: Duration = Duration::from_secs(1);

/// A worker's thread and the way to it.
struct RunningWorker {
    thread: JoinHandle<std::io::Result<()>>,
    handle: WorkerHandle<OverlayPort>,
    counters: Arc<Counters>,
}

/// The control thread's state.
struct Daemon {
    config: Config,
    source: Source,
    vtep: Vtep,
    /// None while nothing needs it.
    dpdk: Option<Dpdk>,
    uplinks: Uplinks,
    networks: Networks,
    channels: Channels,
    looked: Looked,
    workers: Vec<RunningWorker>,
    notices: Notices,
    events: Events,
    pulses: Arc<Pulses>,
    /// None where the kernel does not tell of its interfaces.
    monitor: Option<Monitor>,
    capture: Capture,
    started: Instant,
}

/// Which signals came.
struct Signals {
    hangup: UnixStream,
    stop: UnixStream,
}

impl Signals {
    /// Each signal writes a byte, which wakes the control thread.
    fn register() -> anyhow::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let pipe = |signals: &[i32]| -> anyhow::Result<UnixStream> {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            for signal in signals {
                signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
            }
            Ok(reader)
        };
        Ok(Self { hangup: pipe(&[SIGHUP])?, stop: pipe(&[SIGTERM, SIGINT])? })
    }

    fn came(stream: &UnixStream) -> bool {
        use std::io::Read;
        let mut bytes = [0; 64];
        let mut reader = stream;
        reader.read(&mut bytes).is_ok_and(|count| count > 0)
    }
}

/// Runs until a signal ends it.
pub(crate) fn run(mut config: Config, source: Source) -> Result<(), Failure> {
    let signals = Signals::register().context("cannot catch signals")?;
    warn_of(&config);
    let mut dpdk = Dpdk::start(&config)?;
    let mut uplinks = Uplinks::open(&config, dpdk.as_ref())?;
    let mut networks = Networks::open(&config, &uplinks)?;
    // Programs of other users may be meant: it takes a capability to give a socket away.
    let mut channels = Channels::open(&config)?;
    let socket = &config.daemon.control_socket;
    let waker = Waker::new().context("cannot open an event descriptor")?;
    // Capabilities belong to threads: they are dropped before there are more than this one.
    privileges::drop_all_but_net_admin().map_err(Failure::cannot_start)?;
    process::set_no_new_privileges().context("cannot set no_new_privs")?;
    process::set_undumpable().context("cannot forbid core dumps")?;
    // Only now: what guests say is read by a thread that this starts.
    networks.open_vm_ports(&config, &mut dpdk)?;
    let wake = waker.clone();
    let (server, requests) =
        Server::bind(socket, Box::new(move || wake.wake())).map_err(Failure::cannot_start)?;
    let (notice_tx, notices) = sync_channel(NOTICE_QUEUE);
    let pulses = Arc::new(Pulses::new(PULSE_QUEUE));
    let to_control =
        ToControl { notices: notice_tx, pulses: Arc::clone(&pulses), waker: waker.clone() };
    let monitor = links::open_monitor(&config, &uplinks);

    let started = Instant::now();
    let vtep_config = protocol::vtep_config(&config, &uplinks, &networks)?;
    let mut vtep = Vtep::new(started, vtep_config, Box::new(protocol::SystemRng));
    let capture = Capture::new();
    // Only where this process may run at all: a container or taskset may have given it few.
    let cores = match config.daemon.dedicated {
        true => affinity::allowed_cores().context("cannot ask for the cores")?,
        false => Vec::new(),
    };
    let options = || worker_options(&config, dpdk.as_ref());
    let mut workers = Vec::new();
    let mut channel_home = None;
    for (number, queues) in uplinks.take_worker_queues().into_iter().enumerate() {
        let datapath = vtep.datapath();
        let counters = Arc::clone(datapath.counters());
        let (mut worker, handle) =
            Worker::new(datapath, queues, to_control.clone(), capture.tap(), options())
                .context("cannot make a worker")?;
        match &channel_home {
            None => channel_home = Some(worker.channel_home()),
            Some(home) => worker.set_channel_home(home.clone()),
        }
        let pinned = cores.get(number).copied();
        let thread = spawn(number, worker, pinned)?;
        workers.push(RunningWorker { thread, handle, counters });
    }
    drop(to_control);
    networks.hand_queues(&mut vtep, &workers);
    channels.hand_over(&config, &workers);
    reload::keep_opened(&networks, &mut config);

    let mut daemon = Daemon {
        config,
        source,
        vtep,
        dpdk,
        uplinks,
        networks,
        channels,
        looked: Looked::new(started),
        workers,
        notices: Notices::default(),
        events: Events::default(),
        pulses,
        monitor,
        capture,
        started,
    };
    daemon.greet();
    let outcome = daemon.serve(&waker, &signals, &notices, &requests);
    // No new request is taken while the node takes itself apart.
    drop(server);
    drop(requests);
    daemon.stop();
    outcome
}

/// A worker that spins uses up a ration of CPU time that it will want for frames.
fn default_spin() -> Duration {
    let rationed = affinity::has_cpu_quota();
    if rationed {
        info!(
            "this process may not use its CPUs all the time: workers spin {SHORT_SPIN:?} at most"
        );
    }
    if rationed { SHORT_SPIN } else { Duration::from_micros(DEFAULT_SPIN_US.into()) }
}

fn worker_options(config: &Config, dpdk: Option<&Dpdk>) -> WorkerOptions {
    let eal = dpdk.map(|dpdk| dpdk.eal.clone());
    let register = |eal: Eal| -> Box<dyn FnOnce() + Send> {
        Box::new(move || {
            if let Err(error) = eal.register_thread() {
                warn!("a worker goes without DPDK's caches, which costs it time: {error}");
            }
        })
    };
    WorkerOptions {
        dedicated: config.daemon.dedicated,
        spin: config.daemon.spin.unwrap_or_else(default_spin),
        max_sleep: config.dpdk.max_sleep,
        on_start: eal.map(register),
    }
}

fn spawn(
    number: usize,
    mut worker: Worker<OverlayPort, any::Uplink>,
    core: Option<usize>,
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let run = move || {
        if let Some(core) = core
            && let Err(error) = affinity::pin_current_thread(core)
        {
            warn!("worker {number} cannot be pinned to core {core}: {error}");
        }
        worker.run()
    };
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(run)
        .context("cannot start a worker thread")
}

fn warn_of(config: &Config) {
    let cores = affinity::available_cores();
    if config.daemon.dedicated && config.daemon.workers >= cores {
        warn!(
            "{} dedicated workers on {cores} cores leave none for anything else; \
             set dedicated = false or fewer workers",
            config.daemon.workers
        );
    }
    if config.cluster.insecure {
        warn!("insecure = true: frames may cross the underlay without any protection");
    }
}

impl Daemon {
    fn greet(&self) {
        let own = self.config.own_node();
        info!(
            "ready: node {} ({}), peers {}, networks {}, port {}, workers {}",
            self.config.own.get(),
            own.map_or("", |node| node.name.as_str()),
            self.config.peers().count(),
            self.networks.len(),
            self.config.cluster.port,
            self.workers.len()
        );
    }

    /// The control thread's loop.
    fn serve(
        &mut self,
        waker: &Waker,
        signals: &Signals,
        notices: &Receiver<Notice>,
        requests: &Receiver<Incoming>,
    ) -> Result<(), Failure> {
        if let Err(error) = process::prefer_latency() {
            debug!("the kernel has no short time slices to give: {error}");
        }
        let mut poll_set = PollSet::default();
        let fixed = [waker.fd(), signals.hangup.as_raw_fd(), signals.stop.as_raw_fd()];
        poll_set.set(fixed.into_iter().chain(self.monitor.as_ref().map(Monitor::fd)));
        self.look_at_interfaces();
        let mut sleep = SleepWatch::new();
        let mut more = false;
        let mut looked_at = Instant::now();
        self.drain();
        loop {
            let wait = self.vtep.poll_timeout().saturating_duration_since(Instant::now());
            // What was left over by the bounds below is taken at once.
            let longest =
                if std::mem::take(&mut more) { Duration::ZERO } else { self.longest_wait() };
            // Most turns are for heartbeats only: what has to be asked for is asked for otherwise.
            let called = poll_set.wait(wait.min(longest));
            if called {
                waker.clear();
                if Signals::came(&signals.stop) {
                    info!("stopping on a signal");
                    return Ok(());
                }
                self.take_interface_news();
            }
            if sleep.slept() {
                warn!("this machine was suspended: new handshakes with all peers");
                self.vtep.handle_suspend(Instant::now());
            }
            // At most one queue's worth at a time, so that nothing else starves.
            for notice in notices.try_iter().take(NOTICE_QUEUE) {
                self.take_notice(notice);
                more = true;
            }
            self.take_pulses();
            let now = Instant::now();
            if self.vtep.poll_timeout() <= now {
                self.vtep.handle_timeout(now);
            }
            self.look_at_ports(now);
            self.drain();
            let look_around = now.saturating_duration_since(looked_at) >= LONGEST_WAIT;
            if !called && !more && !look_around {
                continue;
            }
            looked_at = now;
            self.mend_monitor(&mut poll_set, fixed);
            self.tell_addresses(now);
            for incoming in requests.try_iter().take(REQUESTS_AT_ONCE) {
                self.answer(incoming);
                self.drain();
                more = true;
            }
            if Signals::came(&signals.hangup) {
                // The log says what came of it; there is nobody else to tell.
                let _ = self.logged_reload();
                self.drain();
            }
            if let Some(worker) = self.workers.iter().position(|w| w.thread.is_finished()) {
                return Err(anyhow!("worker {worker} ended unexpectedly").into());
            }
        }
    }

    fn take_notice(&mut self, notice: Notice) {
        let now = Instant::now();
        match notice {
            Notice::Control(input) => self.vtep.handle_input(now, input),
            Notice::UplinkError(error) => self.take_uplink_error(now, &error),
            Notice::PortGone { handle, vni, local, error } => {
                self.lose_port(handle, vni, local, &error);
            }
        }
        // Answers go out at once: a burst of handshakes must not wait for its last one.
        self.drain();
    }

    /// Sends what the protocol wants sent and reports what it reports.
    fn drain(&mut self) {
        loop {
            let transmits: Vec<_> = std::iter::from_fn(|| self.vtep.poll_transmit()).collect();
            if transmits.is_empty() {
                break;
            }
            let now = Instant::now();
            for error in self.uplinks.send(&transmits) {
                // May have more to be sent, by other links.
                self.take_uplink_error(now, &error);
            }
        }
        self.inject_tap_frames();
        if self.vtep.poll_wake() {
            self.workers.iter().for_each(|worker| worker.handle.wake());
        }
        while let Some(event) = self.vtep.poll_event() {
            self.networks.take_event(&event);
            self.announce_move(&event);
            self.notices.event(Instant::now(), &self.config, &event);
            if let Some(told) = notices::told(&self.config, &event) {
                self.events.publish(&told);
            }
        }
    }

    /// Says goodbye, ends the workers, closes everything.
    fn stop(mut self) {
        self.vtep.shutdown(Instant::now());
        let goodbyes: Vec<_> = std::iter::from_fn(|| self.vtep.poll_transmit()).collect();
        // Nobody is left to be told what fails.
        let _ = self.uplinks.send(&goodbyes);
        // Nobody is to connect who would not be served any more.
        drop(self.channels);
        for worker in &self.workers {
            worker.handle.stop();
        }
        for worker in self.workers {
            match worker.thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("a worker failed: {error}"),
                Err(_) => log::error!("a worker panicked"),
            }
        }
        info!("stopped");
    }
}

/// Notices that the machine slept.
struct SleepWatch(Duration);

impl SleepWatch {
    fn new() -> Self {
        Self(process::suspended_time())
    }

    fn slept(&mut self) -> bool {
        let before = std::mem::replace(&mut self.0, process::suspended_time());
        self.0.saturating_sub(before) > SLEEP_LIMIT
    }
}
