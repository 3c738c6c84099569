//! Other programs that join two hosts: what they need, and how each is brought up.
//!
//! A family is a file. Its `set_up` starts the daemons in the two namespaces and says what their
//! interfaces are called; addresses, MTU and the first pings are the same for all and happen in
//! `Site::join`. Nothing of these programs is part of this repository: they come from Debian and
//! crates.io, see [`Need`].

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::cleanup::{self, Leftover};
use crate::cluster::overlay_v4;
use crate::command::{Running, built_binary, describe, is_installed, output_of};
use crate::netns::Netns;
use crate::node::PATIENCE;
use crate::topology::{Family, Pair};
use crate::traffic::{ping, ping_until_answer};
use crate::wait;

pub mod wireguard;
pub mod vpncloud;
pub mod openvpn;
pub mod fastd;
pub mod tinc;
pub mod kronosnet;

/// How long a daemon may take to end when it is told to.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Overhead of the worst of them is less than this many bytes of a datagram: an interface whose
/// MTU is further below the underlay's has not been set yet.
const MAX_OVERHEAD: u32 = 200;
/// Of an IPv4 header and a UDP header, bytes.
const OUTER: u32 = 20 + 8;
/// Of an Ethernet header, bytes.
const ETHERNET: u32 = 14;

/// Something that a rival cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A Debian package, there if the program is on the PATH or the absolute path exists.
    Debian {
        /// Program or absolute path.
        proof: &'static str,
        /// The package.
        package: &'static str,
    },
    /// A program of a crate, installed into the folder of [`rivals_dir`].
    Crate {
        /// The program.
        program: &'static str,
        /// The crate.
        name: &'static str,
        /// Exactly this version, so that runs are comparable.
        version: &'static str,
    },
    /// A program of ours with a Cargo.toml of its own, built into the folder of [`rivals_dir`].
    Folder {
        /// The program.
        program: &'static str,
        /// Where its Cargo.toml is, an absolute path.
        folder: &'static str,
    },
    /// A program that a script of ours builds into the folder of [`rivals_dir`] from source that is
    /// fetched.
    Script {
        /// The program.
        program: &'static str,
        /// The script, an absolute path; it is given the folder.
        script: &'static str,
    },
}

impl Need {
    /// As `integration/run` reads it: kind, proof, package or folder, and version of a crate.
    #[must_use]
    pub fn line(self) -> String {
        match self {
            Self::Debian { proof, package } => format!("debian {proof} {package}"),
            Self::Crate { program, name, version } => format!("crate {program} {name} {version}"),
            Self::Folder { program, folder } => format!("folder {program} {folder}"),
            Self::Script { program, script } => format!("script {program} {script}"),
        }
    }

    /// Makes sure that it is there.
    ///
    /// # Errors
    /// It is not; the error says how to get it.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Debian { proof, package } => {
                ensure!(
                    Path::new(proof).is_absolute() && Path::new(proof).exists()
                        || is_installed(proof),
                    "{proof} is missing: `apt-get install {package}`, which \
                     `integration/run bench` does if you name the contender"
                );
            }
            Self::Crate { program, name, version } => {
                let root = rivals_dir()?;
                ensure!(
                    crate_program(program).is_ok(),
                    "{program} is missing: `cargo install --locked --root {} {name}@{version}`, \
                     which `integration/run bench` does if you name the contender",
                    root.display()
                );
            }
            Self::Folder { program, folder } => {
                let root = rivals_dir()?;
                ensure!(
                    crate_program(program).is_ok(),
                    "{program} is missing: `cargo install --locked --root {} --path {folder}`, \
                     which `integration/run bench` does if you name the scenario",
                    root.display()
                );
            }
            Self::Script { program, script } => {
                let root = rivals_dir()?;
                ensure!(
                    crate_program(program).is_ok(),
                    "{program} is missing: `{script} {}`, which `integration/run bench` does if \
                     you name the scenario",
                    root.display()
                );
            }
        }
        Ok(())
    }
}

/// Where programs of crates are installed: `rivals` in the folder of the builds.
///
/// # Errors
/// tapd is not built, so there is no folder of builds.
pub fn rivals_dir() -> Result<PathBuf> {
    let tapd = built_binary("tapd")?;
    let target = tapd.parent().and_then(Path::parent).context("tapd was built nowhere")?;
    Ok(target.join("rivals"))
}

pub(super) fn crate_program(program: &str) -> Result<PathBuf> {
    let path = rivals_dir()?.join("bin").join(program);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

/// The first line of what a program says of its version.
fn version_line(program: &Path, argument: &str) -> Result<String> {
    let output = output_of(Command::new(program).arg(argument))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    Ok(line.with_context(|| format!("{} tells no version", program.display()))?.to_owned())
}

/// Where a contender is set up.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The two hosts.
    pub pair: &'a Pair,
    /// MTU of the underlay, L3 bytes.
    pub underlay_mtu: u32,
    /// Number of the contender, 100 to 199: part of its addresses, ports and names.
    pub number: u8,
}

impl Site<'_> {
    /// Host number (1 and 2), namespace, number of the other host.
    fn hosts(&self) -> [(u8, &Netns, u8); 2] {
        [(1, &self.pair.alpha, 2), (2, &self.pair.beta, 1)]
    }

    /// Underlay address of a host.
    fn underlay(host: u8) -> IpAddr {
        Family::V4.address(host)
    }

    /// Overlay address of a host.
    #[must_use]
    pub fn overlay(&self, host: u8) -> IpAddr {
        overlay_v4(self.number, host)
    }

    /// A port of the contender's own.
    #[must_use]
    pub fn port(&self) -> u16 {
        20_000 + u16::from(self.number) * 10
    }

    /// Gives the interfaces of the two hosts their addresses, and the MTU unless the program sets
    /// it, and sets them up.
    fn dress(&self, interfaces: &[String; 2], mtu: Option<u32>) -> Result<()> {
        for ((host, netns, _), interface) in self.hosts().into_iter().zip(interfaces) {
            wait::until(&format!("interface {interface}"), PATIENCE, || {
                netns.ip(&["link", "show", interface]).is_ok()
            })?;
            if let Some(mtu) = mtu {
                netns.ip(&["link", "set", interface, "mtu", &mtu.to_string()])?;
            }
            // The kernel's own messages would be in the other contenders' way.
            netns.sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
            netns.add_address(interface, &format!("{}/24", self.overlay(host)))?;
            netns.ip(&["link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// Waits until the first host reaches the second one, and insists that packets as large as the
    /// interface takes get there: an MTU that does not fit would cost a rival its speed.
    ///
    /// # Errors
    /// They do not.
    pub fn prove(&self, interface: &str) -> Result<()> {
        let (alpha, to) = (&self.pair.alpha, self.overlay(2));
        ping_until_answer(alpha, to, PATIENCE)?;
        let least = self.underlay_mtu - MAX_OVERHEAD;
        let mtu = wait::until_some(&format!("the MTU of {interface}"), PATIENCE, || {
            let mtu = alpha.interface_attribute(interface, "mtu").ok()?.parse::<u32>().ok()?;
            (mtu >= least).then_some(mtu)
        })?;
        let report = ping(alpha, to, 10, mtu - OUTER)?;
        ensure!(
            report.received == report.sent && report.sent == 10,
            "packets of {mtu} bytes, the MTU of {interface}, do not all get through: {report:?}"
        );
        Ok(())
    }

    /// The interfaces of a rival that was just started become part of the overlay.
    fn join(&self, up: &mut Up, mtu: Option<u32>) -> Result<()> {
        let [alpha, _] = &up.interfaces;
        let joined = self.dress(&up.interfaces, mtu).and_then(|()| self.prove(alpha));
        joined.map_err(|error| {
            let logs: Vec<String> = up.daemons.iter().map(Daemon::last_words).collect();
            anyhow!("{error:#}\n{}", logs.join("\n"))
        })
    }
}

/// A rival that is up; taken down on drop.
#[derive(Debug)]
pub struct Up {
    /// What runs, for the report.
    pub version: String,
    /// Names of the interfaces on the first and the second host.
    interfaces: [String; 2],
    /// Dropped before the files that they use.
    daemons: Vec<Daemon>,
    _scratch: Scratch,
}

/// A process of a rival: told to end on drop, killed if it does not.
#[derive(Debug)]
struct Daemon {
    running: Running,
    log: PathBuf,
    leaves: Vec<PathBuf>,
}

impl Daemon {
    /// Starts `command`; what it says goes to a file of `scratch`.
    fn start(scratch: &Scratch, name: &str, command: &mut Command) -> Result<Self> {
        let log = scratch.path(&format!("{name}.log"));
        let file = File::create(&log)?;
        command.current_dir(scratch.dir.path()).stdout(file.try_clone()?).stderr(file);
        Ok(Self { running: Running::spawn(command)?, log, leaves: Vec::new() })
    }

    /// Names a file that the process makes outside of its folder and may leave behind.
    fn leaving(mut self, path: PathBuf) -> Self {
        cleanup::register(Leftover::File(path.clone()));
        self.leaves.push(path);
        self
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Waits until `condition` holds, unless the process ends before.
    fn wait(&mut self, what: &str, condition: impl Fn() -> bool) -> Result<()> {
        let end = wait::until_some(what, PATIENCE, || match self.running.ended() {
            Some(status) => Some(Some(status)),
            None => condition().then_some(None),
        });
        match end.with_context(|| self.last_words())? {
            None => Ok(()),
            Some(status) => bail!("it ended with {status}: {}", self.last_words()),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running.signal(libc::SIGTERM).is_ok() {
            // If it does not end, dropping `running` kills it.
            let _ = self.running.wait_end(END_PATIENCE);
        }
        for path in &self.leaves {
            self.running.kill();
            let _ = std::fs::remove_file(path);
            cleanup::unregister(&Leftover::File(path.clone()));
        }
    }
}

/// A folder for keys, configurations and logs of a rival; removed on drop.
#[derive(Debug)]
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tapdtest-").tempdir()?;
        cleanup::register(Leftover::Directory(dir.path().to_owned()));
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<()> {
        std::fs::write(self.path(name), text).with_context(|| format!("writing {name}"))
    }

    fn read(&self, name: &str) -> Result<String> {
        let text = std::fs::read_to_string(self.path(name));
        Ok(text.with_context(|| format!("reading {name}"))?.trim().to_owned())
    }

    /// Runs a line of shell in the folder, with what it makes readable for nobody else.
    fn shell(&self, line: &str) -> Result<()> {
        let line = format!("umask 077; set -e; {line}");
        let mut command = Command::new("sh");
        command.args(["-c", &line]).current_dir(self.dir.path());
        let output = output_of(&mut command)?;
        ensure!(
            output.status.success(),
            "{}: {}",
            describe(&command),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        cleanup::unregister(&Leftover::Directory(self.dir.path().to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_how_to_get_it() {
        let need = Need::Debian { proof: "no-such-program", package: "some-package" };
        let text = need.check().unwrap_err().to_string();
        assert!(text.contains("apt-get install some-package"), "{text}");
        assert_eq!(need.line(), "debian no-such-program some-package");
        Need::Debian { proof: "/etc/passwd", package: "base-passwd" }.check().unwrap();
        Need::Debian { proof: "sh", package: "dash" }.check().unwrap();
        let need = Need::Crate { program: "p", name: "n", version: "1.2.3" };
        assert_eq!(need.line(), "crate p n 1.2.3");
        let need = Need::Folder { program: "p", folder: "/nowhere" };
        assert_eq!(need.line(), "folder p /nowhere");
        assert!(need.check().unwrap_err().to_string().contains("--path /nowhere"));
        let need = Need::Script { program: "p", script: "/nowhere/s" };
        assert_eq!(need.line(), "script p /nowhere/s");
        assert!(need.check().unwrap_err().to_string().contains("`/nowhere/s "));
    }

    #[test]
    fn a_daemon_is_told_to_end_and_what_it_leaves_is_removed() {
        let scratch = Scratch::new().unwrap();
        let left = scratch.path("left");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap 'echo told > told; exit' TERM; echo up > left; while :; do sleep 0.01; done",
        ]);
        let mut daemon = Daemon::start(&scratch, "sh", &mut command).unwrap().leaving(left.clone());
        daemon.wait("it to be up", || left.exists()).unwrap();
        drop(daemon);
        assert_eq!(scratch.read("told").unwrap(), "told");
        assert!(!left.exists());
    }

    #[test]
    fn a_daemon_that_ends_early_says_its_last_words() {
        let scratch = Scratch::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo because >&2; exit 3"]);
        let mut daemon = Daemon::start(&scratch, "sh", &mut command).unwrap();
        let error = daemon.wait("nothing", || false).unwrap_err().to_string();
        assert!(error.contains("because") && error.contains('3'), "{error}");
    }
}
