//! The configuration, and the daemon that runs by it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::Report;
use crate::config::{Config, Source};
use crate::control::{Client, Request, StatusReply, Topic};

/// Loads the configuration as `tapd run` does; every fault is a finding.
pub(super) fn load(source: &Source, report: &mut Report) -> Option<Config> {
    match source.load() {
        Ok(config) => {
            let own = config.own_node().map_or("", |node| node.name.as_str());
            let (nodes, networks) = (config.nodes.len(), config.own_networks().count());
            let what = format!(
                "no faults; node {} ({own}) of {nodes}, member of {networks} networks",
                config.own
            );
            report.ok("configuration", what);
            report.ok("key files", "readable for their owner only");
            Some(config)
        }
        Err(faults) => {
            for fault in faults.to_string().lines() {
                let advice = "the rest is checked without the configuration";
                report.fail("configuration", fault, advice);
            }
            None
        }
    }
}

/// The process id of the daemon that runs as this node: what it holds is not in its way.
pub(super) fn running(socket: &Path, config: Option<&Config>, report: &mut Report) -> Option<u32> {
    let check = "daemon";
    let shown = socket.display();
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            report.warn(check, format_args!("{shown}: {error}"), "run this as tapd's user");
            return None;
        }
        Err(_) => {
            report.ok(check, format_args!("none answers at {shown}"));
            return None;
        }
        Ok(_) => {}
    }
    let request = Request::Show { topic: Topic::Status, name: None };
    let asked = Client::connect(socket).and_then(|client| client.request::<StatusReply>(request));
    let status = match asked {
        Ok(status) => status,
        Err(error) => {
            let advice = "another program or version: set control_socket in [daemon]";
            report.fail(check, format_args!("{shown}: {error}"), advice);
            return None;
        }
    };
    let StatusReply { node, name, version, pid, .. } = status;
    let who = format!("tapd {version} runs as node {node} ({name}), pid {pid}");
    if config.is_some_and(|config| config.own.get() != node) {
        let advice = "it has the control socket: give each daemon one of its own";
        report.fail(check, who, advice);
        return None;
    }
    report.ok(check, who);
    Some(pid)
}
