//! Network namespaces with names of our own, and what is plugged into them.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::cleanup::{self, Leftover};
use crate::command::{self, run};
use crate::sys;

/// Every namespace of ours is called `tapdtest-PID-START-COUNTER-LABEL`.
const PREFIX: &str = "tapdtest";
/// Where iproute2 keeps the named namespaces.
const NETNS_DIR: &str = "/run/netns";

static SWEEP: Once = Once::new();
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A network namespace that is removed, with every interface in it, on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes a namespace with a unique name that ends in `label`; its loopback is up.
    ///
    /// # Errors
    /// Not root, or iproute2 is missing.
    pub fn new(label: &str) -> Result<Self> {
        SWEEP.call_once(sweep_stale);
        let pid = std::process::id();
        let start = start_time(pid).context("reading our own start time")?;
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{pid}-{start}-{counter}-{label}");
        cleanup::register(Leftover::Namespace(name.clone()));
        run("ip", &["netns", "add", &name])
            .context("cannot make a network namespace: this needs root and iproute2")?;
        let handle = File::open(Path::new(NETNS_DIR).join(&name))?;
        let netns = Self { name, handle };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The name that `ip netns` knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, which other programs can take with `--netns`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// `ip` inside the namespace.
    ///
    /// # Errors
    /// `ip` refused.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// A command that will run inside the namespace and die with the thread that starts it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        sys::die_with_parent(&mut command);
        command
    }

    /// Runs a program inside the namespace to its end.
    ///
    /// # Errors
    /// It could not be started or failed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        command::run_command(self.command(program).args(arguments))
    }

    /// Calls `body` on a thread of its own that is inside the namespace. Sockets and taps that it
    /// opens stay there wherever they are used later.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `body` failed.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(&self.handle, body).with_context(|| format!("in namespace {}", self.name))
    }

    /// Gives an interface an address with prefix length, for example `192.0.2.1/24`. IPv6
    /// addresses are usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// `ip` refused.
    pub fn add_address(&self, interface: &str, address: &str) -> Result<()> {
        let mut arguments = vec!["addr", "add", address, "dev", interface];
        if address.contains(':') {
            arguments.push("nodad");
        }
        self.ip(&arguments).map(|_| ())
    }

    /// Sets a sysctl of the namespace, for example `net/ipv6/conf/all/disable_ipv6`.
    ///
    /// # Errors
    /// There is no such sysctl.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.enter(|| {
            fs::write(Path::new("/proc/sys").join(path), value)
                .with_context(|| format!("writing sysctl {path}"))
        })
    }

    /// Stops the kernel from sending IPv6 messages of its own on interfaces made from now on, for
    /// tests that count frames.
    ///
    /// # Errors
    /// The kernel has no IPv6.
    pub fn silence_ipv6(&self) -> Result<()> {
        self.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        self.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    }

    /// A file under `/sys/class/net/INTERFACE/`, trimmed. Read with `ip netns exec`, because
    /// /sys shows the namespace that mounted it.
    ///
    /// # Errors
    /// There is no such interface or file.
    pub fn interface_attribute(&self, interface: &str, attribute: &str) -> Result<String> {
        let path = format!("/sys/class/net/{interface}/{attribute}");
        Ok(self.run("cat", &[&path])?.trim().to_owned())
    }

    /// Names of all interfaces.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let json: serde_json::Value = serde_json::from_str(&self.ip(&["-json", "link", "show"])?)?;
        let links = json.as_array().ok_or_else(|| anyhow!("ip -json gives no list"))?;
        Ok(links.iter().filter_map(|l| l["ifname"].as_str()).map(str::to_owned).collect())
    }

    /// Datagrams that the namespace's UDP sockets lost to full receive buffers since it was made.
    ///
    /// # Errors
    /// The kernel's statistics cannot be read.
    pub fn udp_receive_errors(&self) -> Result<u64> {
        // The thread's own view: /proc/net would be that of the process's first thread.
        let (v4, v6) = self.enter(|| {
            Ok((
                fs::read_to_string("/proc/thread-self/net/snmp")?,
                fs::read_to_string("/proc/thread-self/net/snmp6")?,
            ))
        })?;
        Ok(snmp_counter(&v4, "Udp:", "RcvbufErrors")? + snmp6_counter(&v6, "Udp6RcvbufErrors"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        match run("ip", &["netns", "del", &self.name]) {
            Ok(_) => cleanup::unregister(&Leftover::Namespace(self.name.clone())),
            Err(error) => eprintln!("namespace {} is left behind: {error}", self.name),
        }
    }
}

/// Calls `body` on a thread of its own that is inside `namespace` (an open namespace file).
///
/// # Errors
/// The namespace cannot be entered, or `body` failed.
pub fn enter<T: Send>(namespace: &File, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                sys::enter_netns(namespace).context("entering the namespace")?;
                body()
            })
            .join()
            .map_err(|_| anyhow!("a thread inside a namespace died"))?
    })
}

/// Opens the namespace called `name`, or the file at that path.
///
/// # Errors
/// There is none.
pub fn open(name: &str) -> Result<File> {
    let path = Path::new(NETNS_DIR).join(name);
    File::open(&path).with_context(|| format!("no network namespace {}", path.display()))
}

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Where it is.
    pub netns: &'a Netns,
    /// What it is called there.
    pub name: &'a str,
}

/// Joins two namespaces by a veth pair, both ends up, with the given MTU (L3 bytes).
///
/// # Errors
/// `ip` refused.
pub fn veth_pair(a: VethEnd<'_>, b: VethEnd<'_>, interface_mtu: u32) -> Result<()> {
    let bytes = interface_mtu.to_string();
    a.netns.ip(&[
        "link",
        "add",
        a.name,
        "mtu",
        &bytes,
        "type",
        "veth",
        "peer",
        "name",
        b.name,
        "mtu",
        &bytes,
        "netns",
        b.netns.name(),
    ])?;
    for end in [a, b] {
        end.netns.ip(&["link", "set", end.name, "up"])?;
    }
    Ok(())
}

/// `address/prefix` with a prefix that fits the test networks: /24 for IPv4 and /64 for IPv6.
#[must_use]
pub fn with_prefix(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}/24"),
        IpAddr::V6(v6) => format!("{v6}/64"),
    }
}

/// Removes namespaces of test runs that are dead (killed by SIGKILL, say).
pub fn sweep_stale() {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner_of(&name).is_some_and(|(pid, start)| start_time(pid).ok() != Some(start)) {
            eprintln!("removing namespace {name} of a dead test run");
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}

/// Process id and start time in a name of ours.
fn owner_of(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.split('-');
    if parts.next() != Some(PREFIX) {
        return None;
    }
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Start time of a process in clock ticks since boot; with the pid it names a process for good.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses and may hold spaces.
    stat.rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').nth(19))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/PID/stat has an unknown shape"))
}

fn snmp_counter(text: &str, protocol: &str, name: &str) -> Result<u64> {
    let mut rows = text.lines().filter(|line| line.starts_with(protocol));
    let (header, values) = (rows.next(), rows.next());
    let column = header
        .and_then(|h| h.split_whitespace().position(|word| word == name))
        .ok_or_else(|| anyhow!("no {name} in /proc/net/snmp"))?;
    let value = values.and_then(|v| v.split_whitespace().nth(column));
    ensure!(value.is_some(), "no value for {name} in /proc/net/snmp");
    Ok(value.and_then(|v| v.parse().ok()).unwrap_or(0))
}

fn snmp6_counter(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_names() {
        assert_eq!(owner_of("tapdtest-12-3456-0-alpha"), Some((12, 3456)));
        assert_eq!(owner_of("somebody-12-3456-0-alpha"), None);
        assert_eq!(owner_of("tapdtest-alpha"), None);
    }

    #[test]
    fn start_time_tells_processes_apart() {
        let me = std::process::id();
        assert_eq!(start_time(me).unwrap(), start_time(me).unwrap());
        assert_ne!(start_time(me).unwrap(), start_time(1).unwrap());
    }

    #[test]
    fn reads_snmp_by_column_name() {
        let text = "Ip: A B\nIp: 1 2\nUdp: InDatagrams RcvbufErrors\nUdp: 7 9\n";
        assert_eq!(snmp_counter(text, "Udp:", "RcvbufErrors").unwrap(), 9);
        assert!(snmp_counter(text, "Udp:", "Nonsense").is_err());
        assert_eq!(snmp6_counter("Udp6RcvbufErrors    \t4\n", "Udp6RcvbufErrors"), 4);
    }
}
