//! VM ports of a network: the vhost-user sockets that QEMU and others attach by.

use std::fmt;
use std::path::{Path, PathBuf};

use super::checks::{Unique, or};
use super::fault::{Collector, Located};
use super::fields::Field;
use super::hardware::RawVhost;
use super::validate::check_socket_path;

/// Most queue pairs of a VM port.
pub(crate) const MAX_QUEUES: u16 = 8;
/// Most VM ports of a network on one node: with the tap, what a set of 64 bits can hold.
pub(crate) const MAX_VM_PORTS: usize = 63;

/// One of a network's `vhost_user`: a VM port of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VhostUser {
    /// Where the two meet; absolute, at most [`super::MAX_SOCKET_PATH_LEN`] bytes, unique on the
    /// node.
    pub(crate) socket: PathBuf,
    /// Who makes the socket.
    pub(crate) mode: Mode,
    /// Queue pairs, 1 to [`MAX_QUEUES`]; see [`Self::queues`].
    pub(crate) queues: Option<u16>,
}

/// Who makes the socket of a VM port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// tapd; the VM connects.
    #[default]
    Server,
    /// The VM; tapd connects, and again whenever it went.
    Client,
}

impl Mode {
    /// From the configuration's text.
    ///
    /// # Errors
    /// What is wrong, to be read behind the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "server" => Ok(Self::Server),
            "client" => Ok(Self::Client),
            _ => Err("is neither \"server\" (tapd makes the socket) nor \"client\" (the VM does)"
                .to_owned()),
        }
    }

    /// The name in the configuration and in `tapd show`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

impl VhostUser {
    /// Queue pairs on a node with so many workers: one each where nothing is said.
    pub(crate) fn queues(&self, workers: usize) -> u16 {
        let workers = u16::try_from(workers).unwrap_or(MAX_QUEUES);
        self.queues.unwrap_or_else(|| workers.clamp(1, MAX_QUEUES))
    }
}

impl fmt::Display for VhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.display().fmt(f)?;
        if self.mode != Mode::default() {
            write!(f, " {}", self.mode.name())?;
        }
        self.queues.map_or(Ok(()), |queues| write!(f, " queues {queues}"))
    }
}

/// The sockets of one node.
pub(super) struct Sockets<'c> {
    seen: Unique<String>,
    control: &'c Path,
}

impl<'c> Sockets<'c> {
    /// With the control socket, which is one of them.
    pub(super) fn new(control: &'c Path) -> Self {
        Self { seen: Unique::new("vhost_user socket"), control }
    }

    fn check(&mut self, socket: &Located<String>, faults: &mut Collector) {
        let Located { at, value } = socket;
        let path = Path::new(value);
        if let Err(fault) = check_socket_path(path) {
            faults.add(*at, format!("vhost_user socket {value:?} {fault}"));
        } else if path == self.control {
            faults.add(*at, format!("{value:?} is the control socket; choose another path"));
        }
        self.seen.check(value.clone(), *at, faults);
    }
}

/// Checks the VM ports of one network.
pub(super) fn validate(
    raw: Field<Vec<Located<RawVhost>>>,
    sockets: &mut Sockets<'_>,
    faults: &mut Collector,
) -> Vec<VhostUser> {
    let Some(list) = raw else { return Vec::new() };
    if list.value.len() > MAX_VM_PORTS {
        let count = list.value.len();
        faults.add(
            list.at,
            format!(
                "{count} ports of vhost_user are more than a network has on one node; keep at \
                most {MAX_VM_PORTS}"
            ),
        );
    }
    let mut ports = Vec::with_capacity(list.value.len());
    for Located { value: raw, .. } in list.value {
        let Some(socket) = raw.socket else { continue };
        sockets.check(&socket, faults);
        ports.push(VhostUser {
            socket: socket.value.into(),
            mode: or(raw.mode, Mode::default()),
            queues: raw.queues.map(|queues| queues.value),
        });
    }
    ports
}
