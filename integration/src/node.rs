//! One tapd process inside a namespace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::command::{Running, built_binary, output_of, run_command};
use crate::config::ClusterDir;
use crate::netns::Netns;
use crate::{skip, sys, wait};

/// How long a daemon may take to start or stop before a test gives up. Far more than it needs:
/// tests of start-up time measure that themselves.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A running daemon; killed on drop, its log kept for the case that the test fails.
#[derive(Debug)]
pub struct Node {
    name: String,
    netns: Arc<Netns>,
    config_file: PathBuf,
    socket: PathBuf,
    log_file: PathBuf,
    arguments: Vec<String>,
    running: Running,
}

impl Node {
    /// Starts the node called `name` and waits until it is ready.
    ///
    /// # Errors
    /// It ended, or was not ready in time; the error holds its log.
    pub fn start(dir: &ClusterDir, netns: &Arc<Netns>, name: &str) -> Result<Self> {
        Self::start_with(dir, netns, name, &[])
    }

    /// [`Node::start`] with more command-line arguments.
    ///
    /// # Errors
    /// It ended, or was not ready in time; the error holds its log.
    pub fn start_with(
        dir: &ClusterDir,
        netns: &Arc<Netns>,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let mut node = Self::spawn(dir, netns, name, arguments)?;
        node.wait_ready()?;
        Ok(node)
    }

    /// Starts the node called `name` and returns at once.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(
        dir: &ClusterDir,
        netns: &Arc<Netns>,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        // A folder of its own: the sockets of channels are beside the control socket.
        fs::create_dir_all(dir.path(name))?;
        let socket = dir.path(name).join("tapd.sock");
        let log_file = dir.path(&format!("{name}.log"));
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let config_file = dir.config_file();
        let running = spawn_daemon(netns, name, &config_file, &socket, &log_file, &arguments)?;
        let netns = Arc::clone(netns);
        Ok(Self { name: name.to_owned(), netns, config_file, socket, log_file, arguments, running })
    }

    /// Waits until the daemon says `ready` and answers on its control socket.
    ///
    /// # Errors
    /// It ended, or was not ready in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        let what = format!("{} to be ready", self.name);
        let end = wait::until_some(&what, PATIENCE, || {
            if let Some(status) = self.running.ended() {
                return Some(Some(status));
            }
            (self.log().contains("ready") && self.show("status").is_ok()).then_some(None)
        });
        match end {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!("{} ended with {status}:\n{}", self.name, self.log()),
            Err(error) => bail!("{error}\n{}", self.log()),
        }
    }

    /// What `--node` was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Where it runs.
    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The socket of one of its channels, where it is unless the configuration says otherwise.
    #[must_use]
    pub fn channel(&self, name: &str) -> PathBuf {
        self.socket.with_file_name("tapd-channels").join(name)
    }

    /// All that it logged since the test began.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    /// Waits until `text` is in the log.
    ///
    /// # Errors
    /// It was not within [`PATIENCE`].
    pub fn wait_log(&self, text: &str) -> Result<()> {
        wait::until(&format!("{text:?} in the log of {}", self.name), PATIENCE, || {
            self.log().contains(text)
        })
    }

    /// A client command to this node, for example `["reload"]`.
    #[must_use]
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("tapd");
        if let Ok(tapd) = built_binary("tapd") {
            command = Command::new(tapd);
        }
        command.args(arguments).arg("--control-socket").arg(&self.socket);
        sys::die_with_parent(&mut command);
        command
    }

    /// Runs a client command to its end and gives its output.
    ///
    /// # Errors
    /// It did not end with 0.
    pub fn tapd(&self, arguments: &[&str]) -> Result<String> {
        run_command(&mut self.client(arguments))
    }

    /// Runs a client command whatever its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn tapd_output(&self, arguments: &[&str]) -> Result<Output> {
        output_of(&mut self.client(arguments))
    }

    /// What `tapd show WHAT --json` says.
    ///
    /// # Errors
    /// The daemon does not answer, or not in JSON.
    pub fn show(&self, what: &str) -> Result<Value> {
        let text = self.tapd(&["show", what, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("show {what} --json said: {text}"))
    }

    /// What it says about the peer with this node id, if it knows it.
    #[must_use]
    pub fn peer(&self, id: u16) -> Option<Value> {
        let peers = self.show("peers").ok()?;
        let list = peers.as_array().or_else(|| peers.get("peers")?.as_array())?;
        list.iter().find(|peer| peer["node"] == id).cloned()
    }

    /// Whether the peer with this node id is up.
    #[must_use]
    pub fn peer_is_up(&self, id: u16) -> bool {
        self.peer(id).is_some_and(|peer| peer["state"] == "up")
    }

    /// Waits until the peer with this node id is up.
    ///
    /// # Errors
    /// It was not within [`PATIENCE`].
    pub fn wait_peer_up(&self, id: u16) -> Result<()> {
        let what = format!("peer {id} to be up at {}", self.name);
        wait::until(&what, PATIENCE, || self.peer_is_up(id))
            .with_context(|| format!("peers: {:?}", self.show("peers").ok()))
    }

    /// Its drop counters by name.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn drops(&self) -> Result<BTreeMap<String, u64>> {
        self.counters("drops")
    }

    /// Its total counters by name.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn totals(&self) -> Result<BTreeMap<String, u64>> {
        self.counters("totals")
    }

    fn counters(&self, group: &str) -> Result<BTreeMap<String, u64>> {
        let shown = self.show("counters")?;
        let map = shown[group].as_object().ok_or_else(|| anyhow!("no {group} in {shown}"))?;
        Ok(map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_u64()?))).collect())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// The process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let kib = self.status_field("VmRSS")?;
        let kib: u64 = kib.trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// A field of /proc/PID/status.
    ///
    /// # Errors
    /// The process is gone or there is no such field.
    pub fn status_field(&self, name: &str) -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim().to_owned())
            .ok_or_else(|| anyhow!("no {name} in /proc/PID/status"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.running.signal(signal)
    }

    /// Stops it with SIGTERM and insists on exit code 0 and that nothing is left: none of its
    /// `taps`, no control socket.
    ///
    /// # Errors
    /// It ended otherwise, not in time, or left something behind.
    pub fn stop(&mut self, taps: &[&str]) -> Result<()> {
        self.signal(libc::SIGTERM)?;
        let status = self.wait_end()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.log());
        ensure!(!self.socket.exists(), "{} left its control socket behind", self.name);
        let interfaces = self.netns.interfaces()?;
        for tap in taps {
            ensure!(!interfaces.iter().any(|i| i == tap), "{} left {tap} behind", self.name);
        }
        Ok(())
    }

    /// Waits until the daemon ends by itself.
    ///
    /// # Errors
    /// It did not within [`PATIENCE`].
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        self.running.wait_end(PATIENCE).with_context(|| self.log())
    }

    /// Kills it with SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// Starts it again after [`Node::stop`] or [`Node::kill`], with the same arguments and log.
    ///
    /// # Errors
    /// It still runs, or cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.running.ended().is_some(), "{} still runs", self.name);
        self.running = spawn_daemon(
            &self.netns,
            &self.name,
            &self.config_file,
            &self.socket,
            &self.log_file,
            &self.arguments,
        )?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.running.ended().is_none() {
            let _ = self.signal(libc::SIGTERM);
            if self.wait_end().is_err() {
                eprintln!("{} does not end on SIGTERM; killing it", self.name);
                self.running.kill();
            }
        }
        skip::note(format!("--- log of {} ---\n{}", self.name, self.log()));
    }
}

fn spawn_daemon(
    netns: &Netns,
    name: &str,
    config_file: &Path,
    socket: &Path,
    log_file: &Path,
    arguments: &[String],
) -> Result<Running> {
    let log = File::options().create(true).append(true).open(log_file)?;
    let mut command = netns.command(built_binary("tapd")?);
    command.arg("run").arg("--config").arg(config_file);
    command.args(["--node", name, "--control-socket"]).arg(socket).args(arguments);
    Running::spawn(command.stdout(log.try_clone()?).stderr(log))
}
