//! A machine of its own behind a vhost-user socket: a guest of QEMU with a kernel that knows
//! nothing of tapd.
//!
//! Its memory is shared with whoever is behind the socket, its commands go over a port of virtio.
//! There is no KVM: the guest's processor is emulated, so it says what works and never how fast.
//! `integration/guest-image` makes what it boots.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tempfile::TempDir;

use crate::cleanup::{self, Leftover};
use crate::command::{Running, built_binary, is_installed};
use crate::netns::Netns;
use crate::{skip, sys, wait};

pub mod console;
pub mod files;
pub mod traffic;

use console::Console;

/// How long a guest may take to boot: some 15 s alone, and everything else runs beside it.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// How long a command may take that only sets something.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to switch itself off.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// Longest path of a Unix socket, bytes.
const MAX_SOCKET_PATH: usize = 107;
/// What the guest's kernel says, in the guest's folder.
const BOOT_LOG: &str = "boot.log";
/// What QEMU says, in the guest's folder.
const QEMU_LOG: &str = "qemu.log";
/// The emulator.
const QEMU: &str = "qemu-system-x86_64";

/// Who makes the socket of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// The other side; QEMU connects, and again every second after it lost the connection.
    Theirs,
    /// QEMU; the other side connects whenever it likes.
    Qemus,
}

/// A network card of a guest, with a vhost-user socket behind it.
#[derive(Debug, Clone)]
pub struct GuestPort {
    /// Path of the socket.
    pub path: PathBuf,
    /// Who makes it.
    pub socket: Socket,
    /// The card's address.
    pub mac: String,
    /// Pairs of queues, 1 to 8. The guest uses as many as it has processors.
    pub queues: u8,
}

impl GuestPort {
    /// A card with one pair of queues and the address 02:00:00:00:fe:`number`; the other side
    /// makes the socket.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, number: u8) -> Self {
        let mac = format!("02:00:00:00:fe:{number:02x}");
        Self { path: path.into(), socket: Socket::Theirs, mac, queues: 1 }
    }

    /// What QEMU is told of it as card `index`.
    fn arguments(&self, index: usize) -> Vec<String> {
        let Self { path, mac, queues, .. } = self;
        let how = match self.socket {
            Socket::Theirs => "reconnect=1",
            Socket::Qemus => "server=on,wait=off",
        };
        let mq = if *queues > 1 { ",mq=on" } else { "" };
        [
            "-chardev".to_owned(),
            format!("socket,id=chr{index},path={},{how}", path.display()),
            "-netdev".to_owned(),
            format!("vhost-user,id=net{index},chardev=chr{index},queues={queues}"),
            "-device".to_owned(),
            // No ROM: it would wait for a network boot. No MSI-X: without KVM, QEMU 7.2 crashes
            // as soon as the guest switches a vhost-user card with it on.
            format!("virtio-net-pci,netdev=net{index},mac={mac},vectors=0,romfile={mq}"),
        ]
        .into()
    }
}

/// What a guest is to be.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Its name in logs.
    pub name: String,
    /// Its memory in MiB, all of it shared with the other side of its ports.
    pub memory_mib: u32,
    /// Its processors, 1 to 8.
    pub processors: u8,
    /// Its cards, `eth0` first.
    pub ports: Vec<GuestPort>,
    /// More arguments for QEMU, such as other cards.
    pub hardware: Vec<String>,
    /// More words for its kernel.
    pub kernel: String,
    /// An archive that is unpacked over the image: see [`files::Files`].
    pub files: Option<PathBuf>,
    /// Where QEMU runs, if not here: its taps are there.
    pub netns: Option<Arc<Netns>>,
}

impl GuestOptions {
    /// 192 MiB, one processor, one card.
    #[must_use]
    pub fn new(name: &str, port: GuestPort) -> Self {
        Self { ports: vec![port], ..Self::without_card(name) }
    }

    /// 192 MiB, one processor, no card.
    #[must_use]
    pub fn without_card(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 192,
            processors: 1,
            ports: Vec::new(),
            hardware: Vec::new(),
            kernel: String::new(),
            files: None,
            netns: None,
        }
    }
}

/// A running guest; killed on drop, what it wrote kept for the case that the
/// test fails.
#[derive(Debug)]
pub struct Guest {
    name: String,
    console: Console,
    running: Running,
    dir: TempDir,
}

impl Guest {
    /// Starts a guest; [`Guest::wait_booted`] awaits its shell.
    ///
    /// # Errors
    /// There is no QEMU or no image here (a skip), or QEMU does not start.
    pub fn start(options: &GuestOptions) -> Result<Self> {
        let image = image_dir()?;
        for port in &options.ports {
            let length = port.path.as_os_str().len();
            ensure!(length <= MAX_SOCKET_PATH, "{}: {length} bytes", port.path.display());
        }
        let dir = tempfile::Builder::new().prefix("tapdtest-").tempdir()?;
        cleanup::register(Leftover::Directory(dir.path().to_owned()));
        let shell = dir.path().join("shell");
        let listener = UnixListener::bind(&shell).context("the guest's shell")?;
        let initramfs = initramfs(&image, options.files.as_deref(), dir.path())?;
        let mut command =
            options.netns.as_ref().map_or_else(|| Command::new(QEMU), |netns| netns.command(QEMU));
        command.args(arguments(options, &image, &initramfs, &shell, &dir.path().join(BOOT_LOG)));
        sys::die_with_parent(&mut command);
        let log = std::fs::File::create(dir.path().join(QEMU_LOG))?;
        let mut running = Running::spawn(command.stdout(log.try_clone()?).stderr(log))?;
        let console = Console::accept(&listener, || running.ended().is_some());
        let console = console.with_context(|| qemu_log(&dir))?;
        Ok(Self { name: options.name.clone(), console, running, dir })
    }

    /// Starts a guest and waits until it takes commands.
    ///
    /// # Errors
    /// As [`Guest::start`], or it does not boot.
    pub fn boot(options: &GuestOptions) -> Result<Self> {
        let mut this = Self::start(options)?;
        this.wait_booted()?;
        Ok(this)
    }

    /// Waits until it takes commands.
    ///
    /// # Errors
    /// It ended, or did not boot within [`BOOT_PATIENCE`].
    pub fn wait_booted(&mut self) -> Result<()> {
        self.wait_init(0)
    }

    /// Waits until the guest's first process says, after `mark`, that it takes commands.
    fn wait_init(&mut self, mark: usize) -> Result<()> {
        let what = format!("guest {} to boot", self.name);
        wait::until(&what, BOOT_PATIENCE, || {
            self.running.ended().is_some() || self.console.since(mark).contains("guest-init")
        })
        .with_context(|| self.console.tail())?;
        self.check_alive()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id of its QEMU.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Runs a line of shell and gives what it wrote.
    ///
    /// # Errors
    /// It did not end with 0, or not in time.
    pub fn run(&mut self, line: &str) -> Result<String> {
        self.run_within(line, COMMAND_PATIENCE)
    }

    /// [`Guest::run`] for a line that takes up to `deadline`.
    ///
    /// # Errors
    /// It did not end with 0, or not in time.
    pub fn run_within(&mut self, line: &str, deadline: Duration) -> Result<String> {
        let (status, text) = self.output(line, deadline)?;
        ensure!(status == 0, "{line:?} in guest {} ended with {status}:\n{text}", self.name);
        Ok(text)
    }

    /// Runs a line of shell whatever its end: its exit status and what it wrote.
    ///
    /// # Errors
    /// It did not end in time, or the guest did.
    pub fn output(&mut self, line: &str, deadline: Duration) -> Result<(i32, String)> {
        self.check_alive()?;
        let pending = self.console.start(line)?;
        let what = format!("the end of {line:?} in guest {}", self.name);
        let found = wait::until_some(&what, deadline, || {
            if self.running.ended().is_some() {
                return Some(None);
            }
            self.console.answer(&pending).map(Some)
        });
        match found.with_context(|| self.console.tail())? {
            Some(answer) => Ok(answer),
            None => bail!("guest {} ended: {}", self.name, qemu_log(&self.dir)),
        }
    }

    /// Gives card `card` (0 is `eth0`) an address with prefix length and switches it on.
    ///
    /// # Errors
    /// There is no such card.
    pub fn set_address(&mut self, card: usize, address: &str) -> Result<()> {
        self.run(&format!(
            "ip addr flush dev eth{card} && ip addr add {address} dev eth{card} && \
             ip link set eth{card} up"
        ))
        .map(|_| ())
    }

    /// Boots it again from within, as its administrator would.
    ///
    /// # Errors
    /// It does not come back.
    pub fn reboot(&mut self) -> Result<()> {
        self.check_alive()?;
        let mark = self.console.mark();
        self.console.write_line("reboot -f")?;
        self.wait_init(mark)
    }

    /// Switches it off from within and waits until QEMU has ended.
    ///
    /// # Errors
    /// It does not switch itself off.
    pub fn power_off(mut self) -> Result<()> {
        self.check_alive()?;
        self.console.write_line("poweroff -f")?;
        let status = self.running.wait_end(END_PATIENCE)?;
        ensure!(status.success(), "QEMU ended with {status}: {}", qemu_log(&self.dir));
        Ok(())
    }

    fn check_alive(&mut self) -> Result<()> {
        match self.running.ended() {
            None => Ok(()),
            Some(status) => {
                bail!("guest {} ended with {status}: {}", self.name, qemu_log(&self.dir))
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.running.kill();
        let (name, said) = (&self.name, qemu_log(&self.dir));
        skip::note(format!("--- guest {name} ---\n{said}{}", self.console.tail()));
        cleanup::unregister(&Leftover::Directory(self.dir.path().to_owned()));
    }
}

/// The folder with `vmlinuz` and `initramfs`: the one in `TAPD_GUEST_DIR`, else `guest` in the
/// folder of the builds.
///
/// # Errors
/// A skip: there is no QEMU, or the image has not been made.
pub fn image_dir() -> Result<PathBuf> {
    if !is_installed(QEMU) {
        return Err(skip::skip(format!("no {QEMU}: apt-get install qemu-system-x86")));
    }
    let dir = match std::env::var_os("TAPD_GUEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let tapd = built_binary("tapd")?;
            let target = tapd.parent().and_then(Path::parent);
            target.ok_or_else(|| anyhow!("tapd was built nowhere"))?.join("guest")
        }
    };
    if !dir.join("vmlinuz").is_file() || !dir.join("initramfs").is_file() {
        let dir = dir.display();
        return Err(skip::skip(format!("no guest to boot: integration/guest-image {dir}")));
    }
    Ok(dir)
}

/// What the guest boots from: the image's, with more files behind it if there are any.
fn initramfs(image: &Path, files: Option<&Path>, dir: &Path) -> Result<PathBuf> {
    let own = image.join("initramfs");
    let Some(files) = files else { return Ok(own) };
    let both = dir.join("initramfs");
    // The kernel unpacks one archive after the other.
    std::fs::write(&both, [std::fs::read(own)?, std::fs::read(files)?].concat())?;
    Ok(both)
}

fn arguments(
    options: &GuestOptions,
    image: &Path,
    initramfs: &Path,
    shell: &Path,
    boot: &Path,
) -> Vec<String> {
    let memory = options.memory_mib;
    let mut list: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
        .into_iter()
        // A file in memory that can be handed over is what lets the other side see the guest's.
        .chain(["-accel", "tcg,thread=multi", "-machine", "q35", "-numa", "node,memdev=mem"])
        .map(str::to_owned)
        .collect();
    list.extend([
        "-object".to_owned(),
        format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
        "-m".to_owned(),
        format!("{memory}M"),
        "-smp".to_owned(),
        options.processors.to_string(),
        "-kernel".to_owned(),
        image.join("vmlinuz").display().to_string(),
        "-initrd".to_owned(),
        initramfs.display().to_string(),
        "-append".to_owned(),
        format!("console=ttyS0 quiet mitigations=off net.ifnames=0 {}", options.kernel),
        "-chardev".to_owned(),
        format!("socket,id=shell,path={}", shell.display()),
        "-serial".to_owned(),
        format!("file:{}", boot.display()),
        "-device".to_owned(),
        "virtio-serial-pci".to_owned(),
        "-device".to_owned(),
        "virtserialport,chardev=shell".to_owned(),
    ]);
    list.extend(options.hardware.iter().cloned());
    let ports = options.ports.iter().enumerate();
    list.extend(ports.flat_map(|(index, port)| port.arguments(index)));
    list
}

/// What QEMU and the guest's kernel said.
fn qemu_log(dir: &TempDir) -> String {
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap_or_default();
    String::from_utf8_lossy(&[read(QEMU_LOG), read(BOOT_LOG)].concat()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_shares_its_memory_and_does_without_msix() {
        let mut port = GuestPort::new("/run/a.sock", 7);
        port.queues = 2;
        let options = GuestOptions::new("one", port);
        let [image, initramfs, shell, boot] =
            ["/image", "/image/initramfs", "/shell", "/boot"].map(Path::new);
        let line = arguments(&options, image, initramfs, shell, boot).join(" ");
        for part in ["share=on", "vectors=0,romfile=,mq=on", "fe:07", "reconnect=1", "queues=2"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn a_socket_of_qemus_own_is_not_waited_for() {
        let port = GuestPort { socket: Socket::Qemus, ..GuestPort::new("/run/a.sock", 1) };
        let line = port.arguments(0).join(" ");
        assert!(line.contains("server=on,wait=off") && !line.contains("mq=on"), "{line}");
    }
}
