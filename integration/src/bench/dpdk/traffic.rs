//! Sources and sinks: `dpdk-traffic`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::What;
use crate::command::{Running, built_binary};
use crate::netns::Netns;
use crate::wait;

/// How long anything may take to start.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Where a program runs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place<'n> {
    pub(super) netns: Option<&'n Netns>,
    /// The only core that it may use.
    pub(super) core: Option<usize>,
}

impl Place<'_> {
    /// This core, if the machine has more than one.
    pub(super) fn core(core: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Place { netns: None, core: (cores > 1).then_some(core % cores) }
    }

    pub(super) fn command(&self, program: &Path) -> Command {
        let pinned = |mut command: Command| {
            command.arg(program);
            command
        };
        match (self.netns, self.core) {
            (None, None) => Command::new(program),
            (Some(netns), None) => netns.command(program),
            (None, Some(core)) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]);
                pinned(command)
            }
            (Some(netns), Some(core)) => {
                let mut command = netns.command("taskset");
                command.args(["-c", &core.to_string()]);
                pinned(command)
            }
        }
    }
}

/// A running `dpdk-traffic`, whose lines go to a file.
#[derive(Debug)]
pub(super) struct Traffic {
    running: Running,
    lines: PathBuf,
}

impl Traffic {
    pub(super) fn start(
        place: Place<'_>,
        scratch: &Path,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let lines = scratch.join(format!("{name}.json"));
        let log = File::create(scratch.join(format!("{name}.log")))?;
        let mut command = place.command(&built_binary("dpdk-traffic")?);
        command.args(arguments).args(["--interval", "10"]);
        command.stdout(Stdio::from(File::create(&lines)?)).stderr(log);
        Ok(Self { running: Running::spawn(&mut command)?, lines })
    }

    /// The newest line.
    pub(super) fn last(&self) -> Option<Value> {
        let text = std::fs::read_to_string(&self.lines).ok()?;
        text.lines().rev().find_map(|line| serde_json::from_str(line).ok())
    }

    /// Waits until it has started its work.
    pub(super) fn wait_started(&mut self) -> Result<()> {
        let mut ended = None;
        wait::until("the traffic tool to start", PATIENCE, || {
            ended = self.running.ended();
            ended.is_some() || self.last().is_some()
        })?;
        if ended.is_some_and(|status| !status.success()) {
            let log = std::fs::read_to_string(self.lines.with_extension("log")).unwrap_or_default();
            bail!("the traffic tool ended: {log}");
        }
        Ok(())
    }

    /// Waits until its work is done. A process with shared memory can take seconds to end after
    /// that.
    pub(super) fn wait_done(&mut self) -> Result<()> {
        wait::until("the traffic tool to be done", PATIENCE * 4, || {
            self.running.ended().is_some() || self.last().is_some_and(|line| line["end"] == true)
        })
    }

    /// Waits for its end and gives its last line.
    pub(super) fn finish(mut self) -> Result<Value> {
        self.running.wait_end(PATIENCE * 4)?;
        self.stopped()
    }

    /// Ends it and gives its last line.
    pub(super) fn stop(mut self) -> Result<Value> {
        // It may have come to its end by itself.
        if self.running.ended().is_none() {
            self.running.signal(libc::SIGTERM)?;
            self.running.wait_end(PATIENCE)?;
        }
        self.stopped()
    }

    fn stopped(&self) -> Result<Value> {
        let line = self
            .last()
            .with_context(|| format!("the traffic tool said nothing: {}", self.log()))?;
        ensure!(line["end"] == true, "the traffic tool did not end well: {}", self.log());
        Ok(line)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.lines.with_extension("log")).unwrap_or_default()
    }
}

pub(super) fn number(line: &Value, field: &str) -> f64 {
    line[field].as_f64().unwrap_or(0.0)
}

/// Descriptors of a machine's card: as many as QEMU gives it.
const RING: u16 = 256;
/// Descriptors of the wire and of the machine that counts: on one core a program that gets its turn
/// hands on all that the one before it had room for.
const WIRE_RING: u16 = 1024;
/// The loss that counts as none, percent.
const MAX_LOST: f64 = 0.1;
/// Floods until one loses nearly nothing: what else the machine does takes a reader's turn now and
/// then.
const ATTEMPTS: u32 = 3;

/// A port that drives a vhost-user socket as a guest does.
pub(super) fn guest(socket: &Path, server: bool) -> String {
    virtio(socket, server, RING)
}

/// A port that takes frames from a vhost-user socket: the far end of a wire, or a machine that
/// counts.
pub(super) fn wire(socket: &Path, server: bool) -> String {
    virtio(socket, server, WIRE_RING)
}

fn virtio(socket: &Path, server: bool, ring: u16) -> String {
    let (path, server) = (socket.display(), u8::from(server));
    format!("net_virtio_user,path={path},queues=1,queue_size={ring},server={server}")
}

/// A moment of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// The sink is there, the source not yet.
    Begin,
    /// The source has sent its last frame.
    End,
}

/// What came of one flood.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flood {
    pub(super) sent: f64,
    pub(super) received: f64,
    pub(super) seconds: f64,
}

impl Flood {
    pub(super) fn through_kfps(self) -> f64 {
        self.received / self.seconds / 1000.0
    }

    pub(super) fn lost_percent(self) -> f64 {
        // What the source leaves in its ring at its end is not lost on the way.
        let lost = self.sent - self.received - f64::from(RING);
        100.0 * (lost / self.sent.max(1.0)).max(0.0)
    }
}

/// A flow from one port to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course<'a> {
    /// Where files go.
    pub(super) scratch: &'a Path,
    /// Source and sink.
    pub(super) ports: [(&'a str, Place<'a>); 2],
    /// Whether the sink counts whatever comes.
    pub(super) any: bool,
    /// Whether the source lets others on its core run after every burst: a sink that has to wait
    /// for the end of its time loses frames.
    pub(super) polite: bool,
    /// How long the source sends.
    pub(super) span: Duration,
}

/// The first of some floods that loses nearly nothing, or the last. `at_work` is called at begin and
/// end of each.
pub(super) fn lossless(
    course: Course<'_>,
    frame_len: usize,
    mut at_work: impl FnMut(Mark) -> Result<()>,
) -> Result<Flood> {
    let mut last = flood(course, frame_len, &mut at_work)?;
    for _ in 1..ATTEMPTS {
        if last.lost_percent() <= MAX_LOST {
            break;
        }
        last = flood(course, frame_len, &mut at_work)?;
    }
    Ok(last)
}

/// Floods from one port to another for a while.
pub(super) fn flood(
    course: Course<'_>,
    frame_len: usize,
    mut at_work: impl FnMut(Mark) -> Result<()>,
) -> Result<Flood> {
    let Course { scratch, ports, any, polite, span } = course;
    let [(from, from_place), (to, to_place)] = ports;
    let mut sink_arguments = vec!["sink", "--port", to, "--seconds", "600"];
    if any {
        sink_arguments.push("--any");
    }
    let mut sink = Traffic::start(to_place, scratch, "sink", &sink_arguments)?;
    sink.wait_started()?;
    // Its station is known to everybody after its first word.
    wait::holds_for("the sink to be known", Duration::from_millis(700), || true)?;
    let seconds = span.as_secs_f64().to_string();
    let len = frame_len.to_string();
    let mut arguments = vec!["source", "--port", from, "--frame-len", &len, "--seconds", &seconds];
    if polite {
        arguments.push("--polite");
    }
    at_work(Mark::Begin)?;
    let before = sink.last().map_or(0.0, |line| number(&line, "received"));
    let mut source = Traffic::start(from_place, scratch, "source", &arguments)?;
    source.wait_started()?;
    source.wait_done()?;
    at_work(Mark::End)?;
    let source = source.finish()?;
    // What is on its way arrives.
    wait::holds_for("the last frames", Duration::from_millis(200), || true)?;
    let sink = sink.stop()?;
    Ok(Flood {
        sent: number(&source, "sent"),
        received: number(&sink, "received") - before,
        seconds: number(&source, "seconds"),
    })
}

/// Plain forwarding between the same ports: the limit.
pub(super) fn measure_forward(span: Duration) -> Result<Vec<(What, f64)>> {
    let scratch = tempfile::tempdir()?;
    let (vm, cable) = (scratch.path().join("vm.sock"), scratch.path().join("wire.sock"));
    let mut values = Vec::new();
    for (len, core, through) in
        [(60, What::Core60, What::Through60), (1400, What::Core1400, What::Through1400)]
    {
        let port = |socket: &Path| format!("net_vhost,iface={},queues=1", socket.display());
        let (port, other) = (port(&vm), port(&cable));
        let mut forward = Traffic::start(
            Place::core(1),
            scratch.path(),
            "forward",
            &["forward", "--port", &port, "--other", &other, "--seconds", "60"],
        )?;
        forward.wait_started()?;
        let ports = [guest(&vm, false), wire(&cable, false)];
        let ports = [(ports[0].as_str(), Place::core(1)), (ports[1].as_str(), Place::core(1))];
        let course = Course { scratch: scratch.path(), ports, any: true, polite: false, span };
        let (mut begin, mut used) = ((0.0, 0.0), (0.0, 0.0));
        let flood = lossless(course, len, |mark| {
            let line = forward.last().context("forwarding says nothing")?;
            let now = (number(&line, "received"), number(&line, "cpu_seconds"));
            match mark {
                Mark::Begin => begin = now,
                Mark::End => used = (now.0 - begin.0, now.1 - begin.1),
            }
            Ok(())
        })?;
        values.push((core, used.0 / used.1.max(1e-9) / 1000.0));
        values.push((through, flood.through_kfps()));
        forward.stop()?;
    }
    Ok(values)
}
