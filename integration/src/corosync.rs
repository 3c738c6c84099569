//! Debian's corosync as a user of a network: a cluster of it, a node in each namespace.
//!
//! Its files and shared memory have fixed places. Each node has private mounts over them, so that
//! several run on one machine and nothing is left behind. Its own sockets are abstract ones, which
//! belong to the network namespace.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::cleanup::{self, Leftover};
use crate::command::{Running, is_installed, output_of};
use crate::netns::Netns;
use crate::skip::{self, skip};
use crate::{sys, wait};

/// How long a cluster may take to form: corosync tells nobody before the links have answered a few
/// pings, and gathers for a second or two after that.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long a node may take to leave.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Covers every place that corosync writes to, then becomes corosync. `$1` is the folder with the
/// configuration.
const START: &str = "set -e
mount --bind \"$1\" /etc/corosync
for place in /dev/shm /var/lib/corosync /run; do mount -t tmpfs tmpfs $place; done
mkdir -p /run/corosync
exec corosync -f";

/// What corosync sends by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// libknet over UDP, what corosync takes if it is told nothing: up to 8 links.
    Knet,
    /// Plain UDP, one link.
    Udpu,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Knet => "knet",
            Self::Udpu => "udpu",
        }
    }
}

/// Ends the test as skipped unless corosync is installed.
///
/// # Errors
/// It is not.
pub fn require() -> Result<()> {
    for program in ["corosync", "corosync-quorumtool", "nsenter"] {
        if !is_installed(program) {
            return Err(skip(format!("{program} is not installed")));
        }
    }
    Ok(())
}

/// A cluster of corosync; its nodes are told to end on drop.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, id 1 first.
    pub nodes: Vec<Member>,
    dir: TempDir,
}

/// One node of corosync.
#[derive(Debug)]
pub struct Member {
    id: usize,
    log_file: PathBuf,
    running: Running,
}

impl Cluster {
    /// Starts a node on each host, with timers as they come; `addresses` gives a node's by its
    /// number, one for each link. All of them see each other when this returns.
    ///
    /// # Errors
    /// They do not within 40 s; the error holds a log.
    pub fn start(
        hosts: &[Arc<Netns>],
        transport: Transport,
        addresses: impl Fn(u8) -> Vec<IpAddr>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tapdtest-").tempdir()?;
        cleanup::register(Leftover::Directory(dir.path().to_owned()));
        let all: Vec<_> = (1..).zip(hosts).map(|(id, _)| addresses(id)).collect();
        let config = configuration(transport, &all);
        let mut nodes = Vec::new();
        for (id, netns) in (1..).zip(hosts) {
            let folder = dir.path().join(format!("node{id}"));
            fs::create_dir(&folder)?;
            fs::write(folder.join("corosync.conf"), &config)?;
            let log_file = dir.path().join(format!("node{id}.log"));
            let log = File::create(&log_file)?;
            let mut command = netns.command("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"]);
            command.arg(&folder).stdout(log.try_clone()?).stderr(log);
            nodes.push(Member { id, log_file, running: Running::spawn(&mut command)? });
        }
        let mut this = Self { nodes, dir };
        let count = this.nodes.len();
        for node in &mut this.nodes {
            let what = format!("corosync {} to see {count} nodes", node.id);
            wait::until(&what, PATIENCE, || {
                node.running.ended().is_some() || node.sees(count).unwrap_or(false)
            })
            .with_context(|| node.log())?;
            ensure!(node.running.ended().is_none(), "corosync ended:\n{}", node.log());
        }
        Ok(this)
    }

    /// How often any node formed a membership since the start.
    #[must_use]
    pub fn memberships(&self) -> usize {
        self.count("A new membership")
    }

    /// How many lines of all logs hold `text`.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        let lines = |node: &Member| node.log().lines().filter(|line| line.contains(text)).count();
        self.nodes.iter().map(lines).sum()
    }

    /// Insists that every node is quorate and sees all of them.
    ///
    /// # Errors
    /// One does not.
    pub fn ensure_whole(&self) -> Result<()> {
        for node in &self.nodes {
            ensure!(node.sees(self.nodes.len())?, "corosync {} is alone:\n{}", node.id, node.log());
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // A node that does not end is killed with `running`.
            let _ = node.running.signal(libc::SIGTERM);
        }
        for node in &mut self.nodes {
            let _ = node.running.wait_end(END_PATIENCE);
            skip::note(format!("--- log of corosync {} ---\n{}", node.id, node.log()));
        }
        cleanup::unregister(&Leftover::Directory(self.dir.path().to_owned()));
    }
}

impl Member {
    /// All that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    /// Whether it is quorate with so many nodes.
    fn sees(&self, count: usize) -> Result<bool> {
        let text = self.tool("corosync-quorumtool", &["-s"])?;
        let value = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find_map(|(key, value)| (key == name).then(|| value.trim().to_owned()))
        };
        Ok(value("Nodes") == Some(count.to_string()) && value("Quorate").as_deref() == Some("Yes"))
    }

    /// What a tool of corosync says at this node, whatever its exit code.
    fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        // Its mounts have the shared memory, its network namespace the sockets.
        command.args(["--target", &self.running.pid().to_string(), "--mount", "--net", program]);
        sys::die_with_parent(command.args(arguments));
        let output = output_of(&mut command)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// As an administrator writes it: addresses and nothing else that changes how corosync works.
fn configuration(transport: Transport, nodes: &[Vec<IpAddr>]) -> String {
    let transport = transport.name();
    let mut text = format!(
        "totem {{\n    version: 2\n    cluster_name: tapdtest\n    transport: {transport}\n}}\n\
         logging {{\n    to_stderr: yes\n    to_syslog: no\n    to_logfile: no\n    \
         timestamp: hires\n}}\n\
         quorum {{\n    provider: corosync_votequorum\n}}\n\
         system {{\n    move_to_root_cgroup: no\n}}\n\
         nodelist {{\n"
    );
    for (id, addresses) in (1..).zip(nodes) {
        text.push_str(&format!("    node {{\n        nodeid: {id}\n        name: node{id}\n"));
        for (ring, address) in addresses.iter().enumerate() {
            text.push_str(&format!("        ring{ring}_addr: {address}\n"));
        }
        text.push_str("    }\n");
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_its_rings() {
        let nodes = ["192.0.2.1", "192.0.2.2"].map(|a| vec![a.parse().unwrap(); 2]);
        let text = configuration(Transport::Knet, &nodes);
        assert!(text.contains("transport: knet"), "{text}");
        assert_eq!(text.matches("ring1_addr: 192.0.2.2\n").count(), 1);
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
