//! `tapd doctor`: tries out what this machine can do, and says what to change.
//!
//! A check never ends another one: each says what it found, and all are made.

mod config;
mod machine;
mod tap;
mod uplink;
mod ports;
mod dpdk;
mod pci;
mod channels;

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;

use crate::config::{Config, DEFAULT_CONTROL_SOCKET, NodeSelector, Source};
use crate::exit::{Exit, Failure};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be, or worth knowing.
    Ok,
    /// tapd runs, but slower or less surely than it could.
    Warn,
    /// tapd does not start, or does not carry.
    Fail,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: String,
    status: Status,
    found: String,
    /// What to change, as a command where there is one.
    advice: Option<String>,
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, check: &str, status: Status, found: String, advice: Option<String>) {
        self.findings.push(Finding { check: check.to_owned(), status, found, advice });
    }

    fn ok(&mut self, check: &str, found: impl fmt::Display) {
        self.add(check, Status::Ok, found.to_string(), None);
    }

    fn warn(&mut self, check: &str, found: impl fmt::Display, advice: impl fmt::Display) {
        self.add(check, Status::Warn, found.to_string(), Some(advice.to_string()));
    }

    fn fail(&mut self, check: &str, found: impl fmt::Display, advice: impl fmt::Display) {
        self.add(check, Status::Fail, found.to_string(), Some(advice.to_string()));
    }

    fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    /// One line for each finding, and a last one that sums up.
    fn text(&self) -> String {
        let width = self.findings.iter().map(|f| f.check.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { check, status, found, advice } in &self.findings {
            let advice = advice.as_ref().map_or_else(String::new, |advice| format!("; {advice}"));
            text.push_str(&format!("{status:<4}  {check:<width$}  {found}{advice}\n"));
        }
        let [ok, warn, fail] = [Status::Ok, Status::Warn, Status::Fail].map(|s| self.count(s));
        text.push_str(&format!("{ok} ok, {warn} to look at, {fail} failed\n"));
        text
    }
}

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Request {
    /// The cluster file; without it the machine is looked at in general.
    pub(crate) config: Option<PathBuf>,
    /// The local file.
    pub(crate) local: Option<PathBuf>,
    /// Which node this is.
    pub(crate) node: NodeSelector,
    /// Where a daemon may listen.
    pub(crate) control_socket: Option<PathBuf>,
    /// For programs.
    pub(crate) json: bool,
}

/// Makes all checks and prints what was found.
///
/// # Errors
/// [`Exit::Runtime`] if a check failed.
pub(crate) fn run(request: Request) -> Result<(), Failure> {
    let json = request.json;
    let report = examine(request);
    let text = if json {
        let mut text = serde_json::to_string_pretty(&report).context("cannot write JSON")?;
        text.push('\n');
        text
    } else {
        report.text()
    };
    crate::print(text.as_bytes())?;
    match report.count(Status::Fail) {
        0 => Ok(()),
        failed => {
            let all = report.findings.len();
            Err(Failure::message(Exit::Runtime, format_args!("{failed} of {all} checks failed")))
        }
    }
}

fn examine(request: Request) -> Report {
    let mut report = Report::default();
    let Request { config, local, node, control_socket, json: _ } = request;
    let config = config.and_then(|cluster| {
        let control_socket = control_socket.clone();
        let source = Source { cluster, local, node, control_socket, log: None };
        config::load(&source, &mut report)
    });
    let socket = match &config {
        Some(config) => config.daemon.control_socket.clone(),
        None => control_socket.unwrap_or_else(|| DEFAULT_CONTROL_SOCKET.into()),
    };
    let config = config.as_ref();
    let running = config::running(&socket, config, &mut report);
    let net_admin = machine::check(config, &mut report);
    tap::check_kernel(net_admin, &mut report);
    let uplinks = uplink::list(config, &mut report);
    uplink::check(&uplinks, config, running, &mut report);
    dpdk::check(config, running.is_some(), &mut report);
    if let Some(config) = config {
        let uplinks = [uplinks, dpdk::uplinks(Some(config))].concat();
        tap::check_networks(config, &uplinks, running.is_some(), &mut report);
        channels::check(config, running.is_some(), &mut report);
        if running.is_some() {
            channels::check_running(&socket, &mut report);
        }
    }
    report
}

/// A line of /proc or /sys.
fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A setting of /proc/sys, `net/core/rmem_max` say.
fn sysctl(path: &str) -> Option<String> {
    read_line(&format!("/proc/sys/{path}"))
}

/// The command that sets it.
fn set_sysctl(path: &str, value: impl fmt::Display) -> String {
    // With dots between the parts, unless one of them has a dot itself.
    let name = if path.contains('.') { path.to_owned() } else { path.replace('/', ".") };
    format!("run: sysctl -w {name}={value}")
}

/// The part of a configuration's interface that matters here.
fn workers(config: Option<&Config>) -> usize {
    config.map_or(1, |config| config.daemon.workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.ok("kernel", "Linux 6.18");
        report.warn("gro eth0", "off", "run: ethtool -K eth0 gro on");
        report.fail("tun device", "missing", "run: modprobe tun");
        report
    }

    #[test]
    fn each_finding_is_a_line_and_the_last_one_sums_up() {
        let expected = "ok    kernel      Linux 6.18\n\
            warn  gro eth0    off; run: ethtool -K eth0 gro on\n\
            fail  tun device  missing; run: modprobe tun\n\
            1 ok, 1 to look at, 1 failed\n";
        assert_eq!(report().text(), expected);
    }

    #[test]
    fn programs_get_a_list() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json[1]["check"], "gro eth0");
        assert_eq!(json[2]["status"], "fail");
        assert_eq!(json[2]["advice"], "run: modprobe tun");
        assert!(json[0]["advice"].is_null() && json[0]["found"] == "Linux 6.18");
    }

    #[test]
    fn settings_are_named_as_sysctl_takes_them() {
        let plain = set_sysctl("net/core/rmem_max", 5);
        assert_eq!(plain, "run: sysctl -w net.core.rmem_max=5");
        let dotted = set_sysctl("net/ipv4/conf/eth0.7/rp_filter", 2);
        assert_eq!(dotted, "run: sysctl -w net/ipv4/conf/eth0.7/rp_filter=2");
    }
}
