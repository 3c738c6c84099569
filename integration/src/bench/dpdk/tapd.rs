//! Two tapds between two guests' ports.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::What;
use super::traffic::{Course, Mark, PATIENCE, Place, Traffic, guest, lossless, number, wire};
use crate::command::{Running, built_binary, run_command};
use crate::wait;

/// Frames on their way at a time, between a source and an echo.
const WINDOW: &str = "256";

/// A node, killed when it is dropped.
pub(super) struct Node {
    running: Running,
    socket: std::path::PathBuf,
}

impl Node {
    pub(super) fn start(
        place: Place<'_>,
        scratch: &Path,
        number: u8,
        config: &str,
    ) -> Result<Self> {
        let file = scratch.join(format!("node{number}.toml"));
        fs::write(&file, config)?;
        let log = fs::File::create(scratch.join(format!("node{number}.log")))?;
        let mut command = place.command(&built_binary("tapd")?);
        command.args(["run", "--node", &number.to_string(), "--config"]).arg(&file).stderr(log);
        let socket = scratch.join(format!("node{number}.ctl"));
        Ok(Self { running: Running::spawn(&mut command)?, socket })
    }

    pub(super) fn wait_log(&mut self, text: &str) -> Result<()> {
        let log = self.socket.with_extension("log");
        let mut ended = false;
        wait::until(text, PATIENCE, || {
            ended = self.running.ended().is_some();
            ended || fs::read_to_string(&log).is_ok_and(|log| log.contains(text))
        })?;
        if ended {
            bail!("tapd ended: {}", fs::read_to_string(&log).unwrap_or_default());
        }
        Ok(())
    }

    pub(super) fn wait_peer(&self) -> Result<()> {
        wait::until("the nodes to be up with each other", PATIENCE, || {
            let mut command = std::process::Command::new(built_binary("tapd").unwrap_or_default());
            command.args(["show", "peers", "--json", "--control-socket"]).arg(&self.socket);
            run_command(&mut command).is_ok_and(|text| text.contains("\"up\""))
        })
    }

    /// CPU seconds of its workers so far.
    fn worker_seconds(&self) -> Result<f64> {
        let mut nanos = 0_u64;
        for thread in fs::read_dir(format!("/proc/{}/task", self.running.pid()))? {
            let path = thread?.path();
            if fs::read_to_string(path.join("comm"))?.starts_with("worker") {
                let text = fs::read_to_string(path.join("schedstat"))?;
                let field = text.split(' ').next().context("schedstat is empty")?;
                nanos += field.trim().parse::<u64>().context("schedstat has an unknown shape")?;
            }
        }
        Ok(nanos as f64 / 1e9)
    }

    fn resident_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.running.pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        let kb: f64 = line.split_whitespace().nth(1).context("no VmRSS")?.parse()?;
        Ok(kb / 1024.0)
    }
}

/// Makes the cluster's key.
pub(super) fn make_key(scratch: &Path) -> Result<()> {
    let mut command = std::process::Command::new(built_binary("tapd")?);
    run_command(command.arg("keygen").arg(scratch.join("key"))).map(drop)
}

/// The configuration of node `number`, whose links are written in `links`.
pub(super) fn config(scratch: &Path, number: u8, cipher: &str, links: [&str; 2]) -> String {
    config_with(
        scratch,
        &format!("\"{}/vm{number}.sock\"", scratch.display()),
        number,
        cipher,
        links,
    )
}

/// The same with this port of a machine.
fn config_with(
    scratch: &Path,
    machine: &str,
    number: u8,
    cipher: &str,
    links: [&str; 2],
) -> String {
    let dir = scratch.display();
    let [one, two] = links;
    let insecure = cipher == "none";
    format!(
        "[cluster]\n\
         key_file = \"{dir}/key\"\n\
         ciphers = [\"{cipher}\"]\n\
         insecure = {insecure}\n\
         [daemon]\n\
         control_socket = \"{dir}/node{number}.ctl\"\n\
         bum_frames_per_s = 0\n\
         [dpdk]\n\
         memory_mb = 96\n\
         hugepages = false\n\
         [[nodes]]\n\
         id = 1\n\
         links = [{one}]\n\
         [[nodes]]\n\
         id = 2\n\
         links = [{two}]\n\
         [[networks]]\n\
         vni = 100\n\
         tap = \"none\"\n\
         vhost_user = [{machine}]\n"
    )
}

/// Two nodes that are up with each other, and their machines' sockets.
struct Nodes {
    scratch: tempfile::TempDir,
    a: Node,
    b: Node,
    ready_ms: f64,
}

/// The ends of the wire between the nodes: the first one has the vhost-user side.
fn links(scratch: &Path) -> [String; 2] {
    let cable = scratch.join("wire.sock");
    // No UDP checksum over IPv4, as vxlan has it (RFC 7348 section 5).
    let link = |node: u8, port: &str| {
        format!(
            "{{ name = \"wire\", address = \"198.18.0.{node}\", dpdk = {{ port = \"{port}\", \
             prefix = 24, udp_checksum = false }} }}"
        )
    };
    let vhost = format!("net_vhost,iface={},queues=1", cable.display());
    [link(1, &vhost), link(2, &wire(&cable, false))]
}

impl Nodes {
    /// The first one on core 1, the other where it is said.
    fn start(cipher: &str, other: Place<'_>) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let path = scratch.path();
        make_key(path)?;
        let links = links(path);
        let links = [links[0].as_str(), links[1].as_str()];
        let begin = Instant::now();
        let mut a = Node::start(Place::core(1), path, 1, &config(path, 1, cipher, links))?;
        a.wait_log("ready: ")?;
        let ready_ms = begin.elapsed().as_secs_f64() * 1000.0;
        let mut b = Node::start(other, path, 2, &config(path, 2, cipher, links))?;
        b.wait_log("ready: ")?;
        a.wait_peer()?;
        b.wait_peer()?;
        Ok(Self { scratch, a, b, ready_ms })
    }

    fn socket(&self, node: u8) -> std::path::PathBuf {
        self.scratch.path().join(format!("vm{node}.sock"))
    }
}

/// Floods of both sizes through two nodes, all on one core.
pub(super) fn measure(cipher: &str, span: Duration) -> Result<Vec<(What, f64)>> {
    let nodes = Nodes::start(cipher, Place::core(1))?;
    let Nodes { a, b, .. } = &nodes;
    let mut values = vec![(What::ReadyMs, nodes.ready_ms)];
    let (from, to) = (guest(&nodes.socket(1), false), wire(&nodes.socket(2), false));
    for (len, [core, receiver, through, lost]) in [
        (60, [What::Core60, What::Receiver60, What::Through60, What::Lost60]),
        (1400, [What::Core1400, What::Receiver1400, What::Through1400, What::Lost1400]),
    ] {
        let ports = [(from.as_str(), Place::core(1)), (to.as_str(), Place::core(1))];
        let scratch = nodes.scratch.path();
        let course = Course { scratch, ports, any: false, polite: false, span };
        let (mut begin, mut used) = ((0.0, 0.0), (0.0, 0.0));
        let flood = lossless(course, len, |mark| {
            let now = (a.worker_seconds()?, b.worker_seconds()?);
            match mark {
                Mark::Begin => begin = now,
                Mark::End => used = (now.0 - begin.0, now.1 - begin.1),
            }
            Ok(())
        })?;
        values.push((core, flood.received / used.0.max(1e-9) / 1000.0));
        values.push((receiver, flood.received / used.1.max(1e-9) / 1000.0));
        values.push((through, flood.through_kfps()));
        values.push((lost, flood.lost_percent()));
    }
    values.push((What::ResidentMb, a.resident_mb()?));
    Ok(values)
}

/// Frames that go round between a source and an echo through two nodes, some always on their way:
/// nobody has more to do than the others give it, and whoever holds its core while it has nothing to do
/// is in their way. Source and echo have core 0, the first node core 1, the other node either.
pub(super) fn measure_loop(apart: bool, span: Duration) -> Result<Vec<(What, f64)>> {
    let machines = Place::core(0);
    let nodes = Nodes::start("aes-256-gcm", if apart { machines } else { Place::core(1) })?;
    let scratch = nodes.scratch.path();
    let (from, to) = (guest(&nodes.socket(1), false), guest(&nodes.socket(2), false));
    let mut echo =
        Traffic::start(machines, scratch, "echo", &["echo", "--port", &to, "--seconds", "600"])?;
    echo.wait_started()?;
    let mut values = Vec::new();
    for (len, through) in [("60", What::Through60), ("1400", What::Through1400)] {
        let seconds = span.as_secs_f64().to_string();
        let arguments = [
            "source",
            "--port",
            &from,
            "--frame-len",
            len,
            "--window",
            WINDOW,
            "--seconds",
            &seconds,
        ];
        let source = Traffic::start(machines, scratch, "source", &arguments)?.finish()?;
        values.push((through, number(&source, "received") / number(&source, "seconds") / 1000.0));
    }
    echo.stop()?;
    Ok(values)
}

/// Milliseconds from the start of a node to the first frame of its machine that arrives at another
/// node's: the machine is there before, and so is everything else.
pub(super) fn measure_start() -> Result<Vec<(What, f64)>> {
    let scratch = tempfile::tempdir()?;
    let path = scratch.path();
    make_key(path)?;
    let ends = links(path);
    // The one that is there already has the side of the wire that makes its socket.
    let links =
        [ends[1].replace("198.18.0.2", "198.18.0.1"), ends[0].replace("198.18.0.1", "198.18.0.2")];
    let links = [links[0].as_str(), links[1].as_str()];
    let mut b = Node::start(Place::core(0), path, 2, &config(path, 2, "aes-256-gcm", links))?;
    b.wait_log("ready: ")?;
    let machine = path.join("vm1.sock");
    let (from, to) = (guest(&machine, true), wire(&path.join("vm2.sock"), false));
    let sink = ["sink", "--port", &to, "--seconds", "600"];
    let mut sink = Traffic::start(Place::core(0), path, "sink", &sink)?;
    sink.wait_started()?;
    let source = ["source", "--port", &from, "--rate", "1000", "--seconds", "600"];
    let source = Traffic::start(Place::core(0), path, "source", &source)?;
    wait::until("the machine's socket", PATIENCE, || machine.exists())?;
    let port = format!("{{ socket = \"{}\", mode = \"client\" }}", machine.display());
    let config = config_with(path, &port, 1, "aes-256-gcm", links);
    let begin = Instant::now();
    let _a = Node::start(Place::core(1), path, 1, &config)?;
    wait::until("the first frame", PATIENCE, || {
        sink.last().is_some_and(|line| number(&line, "received") > 0.0)
    })?;
    let first_ms = begin.elapsed().as_secs_f64() * 1000.0;
    source.stop()?;
    sink.stop()?;
    Ok(vec![(What::FirstFrameMs, first_ms)])
}
