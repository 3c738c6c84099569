//! OVS-DPDK's vxlan between the same ports.
//!
//! Needs hugepages: they are taken for the time of the measurement and given back. Everything that
//! belongs to it is in a folder and a namespace of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::traffic::{Course, Mark, PATIENCE, Place, guest, lossless, wire};
use super::{NEEDS, What};
use crate::cleanup::{self, Leftover};
use crate::command::{Running, run_command};
use crate::netns::Netns;
use crate::wait;

const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// Of 2 MiB each.
const WANTED_PAGES: u32 = 512;

/// Hugepages that are given back.
struct Hugepages(u32);

impl Hugepages {
    fn take() -> Result<Self> {
        let before = fs::read_to_string(PAGES)?.trim().parse()?;
        cleanup::register(Self::setting(before));
        let taken = Self(before);
        fs::write(PAGES, (before + WANTED_PAGES).to_string())?;
        let now: u32 = fs::read_to_string(PAGES)?.trim().parse()?;
        ensure!(now >= before + WANTED_PAGES, "no {WANTED_PAGES} hugepages are to be had");
        Ok(taken)
    }
}

impl Hugepages {
    fn setting(before: u32) -> Leftover {
        Leftover::Setting(PAGES.into(), before.to_string())
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let _ = fs::write(PAGES, self.0.to_string());
        cleanup::unregister(&Self::setting(self.0));
    }
}

/// The switch with its database.
struct Ovs {
    dir: PathBuf,
    netns: Netns,
    // In the order in which they end.
    switch: Option<Running>,
    _database: Running,
    _hugepages: Hugepages,
}

impl Ovs {
    fn start(dir: &Path) -> Result<Self> {
        NEEDS[0].check()?;
        let netns = Netns::new("ovs")?;
        let hugepages = Hugepages::take()?;
        // Some of it looks there whatever it is told.
        fs::create_dir_all("/var/run/openvswitch")?;
        let path = |name: &str| dir.join(name).display().to_string();
        run_command(Command::new("ovsdb-tool").args(["create", &path("conf.db"), SCHEMA]))?;
        let with = |command: &mut Command| {
            for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
                command.env(name, dir);
            }
        };
        let mut command = netns.command("ovsdb-server");
        with(&mut command);
        let log = fs::File::create(dir.join("ovsdb.log"))?;
        command.args([
            &path("conf.db"),
            &format!("--remote=punix:{}", path("db.sock")),
            &format!("--unixctl={}", path("db.ctl")),
        ]);
        let database = Running::spawn(command.stderr(log))?;
        let mut ovs = Self {
            dir: dir.to_owned(),
            netns,
            switch: None,
            _database: database,
            _hugepages: hugepages,
        };
        let socket = dir.join("db.sock");
        wait::until("the switch's database", PATIENCE, || socket.exists())?;
        ovs.vsctl(&["--no-wait", "init"])?;
        let extra = format!(
            "other_config:dpdk-extra=--no-pci --no-telemetry --in-memory --single-file-segments \
             --file-prefix=ovs{}",
            std::process::id()
        );
        // Its polling thread has the core that tapd's worker has.
        let mask =
            if std::thread::available_parallelism().map_or(1, usize::from) > 1 { 2 } else { 1 };
        let mask = format!("other_config:pmd-cpu-mask={mask:#x}");
        ovs.vsctl(&[
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            "other_config:dpdk-socket-mem=512",
            "other_config:dpdk-lcore-mask=0x1",
            &mask,
            &extra,
        ])?;
        let mut command = ovs.netns.command(SWITCH);
        with(&mut command);
        let log = fs::File::create(dir.join("switch.log"))?;
        command.args([
            &format!("unix:{}", path("db.sock")),
            &format!("--unixctl={}", path("switch.ctl")),
            &format!("--log-file={}", path("switch-own.log")),
        ]);
        ovs.switch = Some(Running::spawn(command.stderr(log))?);
        let control = dir.join("switch.ctl");
        wait::until("the switch", PATIENCE, || control.exists())?;
        Ok(ovs)
    }

    fn vsctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.netns.command("ovs-vsctl");
        command.env("OVS_RUNDIR", &self.dir);
        command.arg(format!("--db=unix:{}", self.dir.join("db.sock").display()));
        run_command(command.args(["-t", "20"]).args(arguments))
    }

    fn appctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.netns.command("ovs-appctl");
        command.env("OVS_RUNDIR", &self.dir);
        run_command(command.arg("-t").arg(self.dir.join("switch.ctl")).args(arguments))
    }

    /// A machine's port on one bridge, a vxlan that leaves by the wire on another one.
    fn set_up(&self) -> Result<()> {
        let port =
            |name: &str| format!("options:vhost-server-path={}", self.socket(name).display());
        self.vsctl(&["add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev"])?;
        self.vsctl(&["add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev"])?;
        // No learning: frames to a station that it does not know would go to its bridges' own
        // ports too, with a copy each.
        for bridge in ["br-phy", "br-int"] {
            self.vsctl(&["set-fail-mode", bridge, "secure"])?;
        }
        for (bridge, name) in [("br-phy", "wire"), ("br-int", "vm")] {
            let add = ["add-port", bridge, name, "--", "set", "Interface", name];
            self.vsctl(&[&add[..], &["type=dpdkvhostuserclient", &port(name)]].concat())?;
        }
        let vxlan = ["add-port", "br-int", "vx0", "--", "set", "Interface", "vx0", "type=vxlan"];
        let ends = ["options:remote_ip=192.0.2.2", "options:local_ip=192.0.2.1", "options:key=100"];
        self.vsctl(&[&vxlan[..], &ends[..]].concat())?;
        self.netns.ip(&["addr", "add", "192.0.2.1/24", "dev", "br-phy"])?;
        self.netns.ip(&["link", "set", "br-phy", "up"])?;
        let neighbour = ["tnl/neigh/set", "br-phy", "192.0.2.2", "02:00:00:00:00:99"];
        self.appctl(&neighbour)?;
        for (bridge, flow) in [
            ("br-int", "in_port=vm,actions=output:vx0"),
            ("br-int", "in_port=vx0,actions=output:vm"),
            ("br-phy", "in_port=LOCAL,actions=output:wire"),
            ("br-phy", "in_port=wire,actions=LOCAL"),
        ] {
            let target = format!("unix:{}", self.dir.join(format!("{bridge}.mgmt")).display());
            let mut command = Command::new("ovs-ofctl");
            run_command(command.args(["-t", "20", "add-flow", &target, flow]))?;
        }
        Ok(())
    }

    /// Waits until somebody is at the wire's other end: the switch looks for its socket once a
    /// second.
    fn wait_wire(&self) -> Result<()> {
        wait::until("the switch's wire", PATIENCE, || {
            let state = self.vsctl(&["get", "Interface", "wire", "link_state"]);
            state.is_ok_and(|state| state.trim() == "up")
        })
    }

    /// CPU time of the polling thread so far, seconds.
    fn polling_seconds(&self) -> Result<f64> {
        let switch = self.switch.as_ref().context("no switch")?;
        for thread in fs::read_dir(format!("/proc/{}/task", switch.pid()))? {
            let path = thread?.path();
            if fs::read_to_string(path.join("comm"))?.starts_with("pmd-") {
                let text = fs::read_to_string(path.join("schedstat"))?;
                let field = text.split(' ').next().context("schedstat is empty")?;
                return Ok(field.trim().parse::<f64>()? / 1e9);
            }
        }
        bail!("the switch has no polling thread")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.sock"))
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        // By its own word it gives devices and memory back.
        let _ = self.appctl(&["exit"]);
        if let Some(switch) = &mut self.switch {
            let _ = switch.wait_end(PATIENCE);
        }
    }
}

/// Cycles of the polling thread.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PmdStats {
    idle: f64,
    processing: f64,
}

fn parse(text: &str) -> Result<PmdStats> {
    let pmd = text.split("main thread").next().unwrap_or_default();
    let field = |name: &str| -> Result<f64> {
        let line = pmd.lines().find_map(|line| line.trim().strip_prefix(name));
        let value = line.and_then(|rest| rest.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in {text}"))
    };
    Ok(PmdStats { idle: field("idle cycles:")?, processing: field("processing cycles:")? })
}

/// Floods of both sizes through the switch.
pub(super) fn measure(span: Duration) -> Result<Vec<(What, f64)>> {
    let scratch = tempfile::tempdir()?;
    let ovs = Ovs::start(scratch.path())?;
    ovs.set_up()?;
    let mut values = Vec::new();
    for (len, core, through, lost) in [
        (60, What::Core60, What::Through60, What::Lost60),
        (1400, What::Core1400, What::Through1400, What::Lost1400),
    ] {
        let (from, to) = (guest(&ovs.socket("vm"), true), wire(&ovs.socket("wire"), true));
        let ports = [(from.as_str(), Place::core(0)), (to.as_str(), Place::core(0))];
        let course = Course { scratch: scratch.path(), ports, any: true, polite: true, span };
        let (mut begin, mut stats) = (0.0, None);
        let flood = lossless(course, len, |mark| {
            match mark {
                Mark::Begin => {
                    ovs.wait_wire()?;
                    ovs.appctl(&["dpif-netdev/pmd-stats-clear"])?;
                    begin = ovs.polling_seconds()?;
                }
                Mark::End => {
                    let used = ovs.polling_seconds()? - begin;
                    stats = Some((used, parse(&ovs.appctl(&["dpif-netdev/pmd-stats-show"])?)?));
                }
            }
            Ok(())
        })?;
        let (used, stats) = stats.context("no statistics")?;
        // It polls all the time: the share of its cycles in which there were frames counts. Others
        // on its core take from both kinds alike, and from its CPU time.
        let busy_seconds = used * stats.processing / (stats.idle + stats.processing).max(1.0);
        values.push((core, flood.received / busy_seconds.max(1e-9) / 1000.0));
        values.extend([(through, flood.through_kfps()), (lost, flood.lost_percent())]);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_polling_thread() {
        let text = "pmd thread numa_id 0 core_id 1:\n  packets received: 1637344\n\
                    \x20 idle cycles: 3010213325 (57.40%)\n  processing cycles: 2233842141 (42.60%)\n\
                    main thread:\n  packets received: 7\n";
        let stats = parse(text).unwrap();
        assert_eq!((stats.idle, stats.processing), (3_010_213_325.0, 2_233_842_141.0));
        assert!(parse("main thread:\n  packets received: 7\n").is_err());
    }
}
