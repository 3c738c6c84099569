//! `[[channels]]` and `[channel_transport]`: raw channels, the sockets that programs reach them by,
//! and how fast they may be.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use encap::channel::hub::{Congestion, HubOptions, MIN_RECEIVE_MEMORY};
use encap::id::NodeId;
pub(crate) use encap::wire::channel::Mode;

use super::checks::{Unique, or};
use super::fault::{At, Collector, Located};
use super::fields::{Field, Fields};
use super::networks::{self, Names};
use super::reader::node_reference;
use super::sections::{CHANNEL, CHANNEL_TRANSPORT};
use super::traffic::{Level, parse_compression};
use super::tree::{Item, Table, Value};
use super::validate::check_socket_path;
use super::{Config, NetworkConfig};

/// Longest name of a channel, in bytes.
const MAX_NAME_LEN: usize = encap::wire::channel::MAX_NAME_LEN;
/// Most channels of a cluster: each takes a descriptor of every member, and more for its programs.
pub(crate) const MAX_CHANNELS: usize = 256;
/// Default of `send_buffer_kb`, in KiB.
pub(super) const DEFAULT_SEND_BUFFER_KB: u32 = 4096;
/// Least of it, in KiB: some datagrams' worth.
const MIN_SEND_BUFFER_KB: i64 = 64;
/// Most of it, in KiB: 1 GiB for each peer.
const MAX_SEND_BUFFER_KB: i64 = 1 << 20;
/// Default of `receive_memory_mb`, in MiB.
pub(super) const DEFAULT_RECEIVE_MEMORY_MB: u32 = 128;
/// Least of it, in MiB.
const MIN_RECEIVE_MEMORY_MB: i64 = (MIN_RECEIVE_MEMORY >> 20) as i64;
/// Most of it, in MiB.
const MAX_RECEIVE_MEMORY_MB: i64 = 65_536;
/// Default permission bits of a channel's socket: its owner only.
pub(super) const DEFAULT_SOCKET_MODE: u32 = 0o600;
/// Fixed rates in bits a second: one datagram now and then, and more than any link.
const FIXED_RATES: std::ops::RangeInclusive<u64> = 64_000..=1_000_000_000_000;
/// Directory of the sockets that have no path of their own, beside the control socket.
const SOCKET_DIRECTORY: &str = "tapd-channels";

/// `[[channels]]`: one raw channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelConfig {
    /// Unique; 1 to 128 bytes, can be a file's name.
    pub(crate) name: String,
    /// What it carries.
    pub(crate) mode: Mode,
    /// Nodes that have it, ascending, never empty; without a list all nodes, also those to come.
    pub(crate) members: Option<Vec<NodeId>>,
    /// Where programs connect, absolute; see [`Config::channel_socket`].
    pub(crate) socket: Option<PathBuf>,
    /// Who may connect.
    pub(crate) access: SocketAccess,
    /// A copy by each link that is alive; [`Mode::Unreliable`] only.
    pub(crate) copies: bool,
    /// Bytes kept per peer until they are acknowledged, 64 KiB to 1 GiB.
    pub(crate) send_buffer: usize,
    /// What is sent is compressed, so hard; not [`Mode::Stream`].
    pub(crate) compression: Option<Level>,
}

impl ChannelConfig {
    /// Whether a node has it.
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.members.as_ref().is_none_or(|members| members.contains(&node))
    }
}

/// Who may connect to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SocketAccess {
    /// Permission bits, at most 0777.
    pub(crate) mode: u32,
    /// User that it belongs to, unless it is tapd's own.
    pub(crate) owner: Option<Account>,
    /// Group that it belongs to, unless it is tapd's own.
    pub(crate) group: Option<Account>,
}

impl fmt::Display for SocketAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.mode)?;
        self.owner.iter().try_for_each(|owner| write!(f, ", owner {owner}"))?;
        self.group.iter().try_for_each(|group| write!(f, ", group {group}"))
    }
}

/// A user or a group. Names are looked up by the daemon, as the file may be checked elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Account {
    /// By name.
    Name(String),
    /// By number.
    Number(u32),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// The name of a mode in the configuration and in `tapd show`.
pub(crate) const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Unreliable => "datagram",
        Mode::Ordered => "message",
        Mode::Unordered => "unordered",
        Mode::Stream => "stream",
    }
}

/// A congestion control as it is written.
pub(crate) fn congestion_name(congestion: Congestion) -> String {
    match congestion {
        Congestion::Cubic => "cubic".to_owned(),
        Congestion::NewReno => "new-reno".to_owned(),
        Congestion::Fixed(bytes) => format!("fixed:{}", bytes.saturating_mul(8)),
    }
}

impl Config {
    /// The channels that this node is a member of.
    pub(crate) fn own_channels(&self) -> impl Iterator<Item = &ChannelConfig> {
        self.channels.iter().filter(|channel| channel.has(self.own))
    }

    /// Where programs reach a channel: the path that it has, or one beside the control socket.
    pub(crate) fn channel_socket(&self, channel: &ChannelConfig) -> PathBuf {
        let default = || default_socket(&self.daemon.control_socket, &channel.name);
        channel.socket.clone().unwrap_or_else(default)
    }
}

fn default_socket(control_socket: &Path, name: &str) -> PathBuf {
    control_socket.with_file_name(SOCKET_DIRECTORY).join(name)
}

/// `[[channels]]`, as it is written.
#[derive(Debug)]
pub(super) struct RawChannel {
    at: At,
    name: Field<String>,
    mode: Field<Mode>,
    members: Field<Vec<Located<String>>>,
    socket: Field<String>,
    socket_mode: Field<u32>,
    socket_owner: Field<Account>,
    socket_group: Field<Account>,
    copies: Field<bool>,
    send_buffer_kb: Field<u32>,
    compression: Field<bool>,
    compression_level: Field<u8>,
}

/// `[channel_transport]`, as it is written.
#[derive(Debug, Default)]
pub(super) struct RawTransport {
    congestion: Field<Congestion>,
    receive_memory_mb: Field<u32>,
}

pub(super) fn read_channel(at: At, table: &Table, faults: &mut Collector) -> RawChannel {
    let mut fields = Fields::open(table, &CHANNEL, faults);
    fields.require(at, "name", "write what the other nodes call it too, as name = \"backup\"");
    fields.require(
        at,
        "mode",
        "write mode = \"datagram\", \"message\", \"unordered\" or \"stream\"",
    );
    RawChannel {
        at,
        name: fields.text("name"),
        mode: fields.parsed("mode", parse_mode),
        members: fields.filled_list("members", "a list such as [1, \"beta\"]", node_reference),
        socket: fields.text("socket"),
        socket_mode: fields.parsed("socket_mode", parse_socket_mode),
        socket_owner: read_account(&mut fields, "socket_owner"),
        socket_group: read_account(&mut fields, "socket_group"),
        copies: fields.boolean("copies"),
        send_buffer_kb: fields.integer("send_buffer_kb", MIN_SEND_BUFFER_KB..=MAX_SEND_BUFFER_KB),
        compression: fields.parsed("compression", parse_compression),
        compression_level: fields
            .integer("compression_level", Level::MIN.into()..=Level::MAX.into()),
    }
}

pub(super) fn read_transport(table: &Table, faults: &mut Collector) -> RawTransport {
    let mut fields = Fields::open(table, &CHANNEL_TRANSPORT, faults);
    RawTransport {
        congestion: fields.parsed("congestion", parse_congestion),
        receive_memory_mb: fields
            .integer("receive_memory_mb", MIN_RECEIVE_MEMORY_MB..=MAX_RECEIVE_MEMORY_MB),
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    let modes = [Mode::Unreliable, Mode::Ordered, Mode::Unordered, Mode::Stream];
    modes.into_iter().find(|mode| mode_name(*mode) == text).ok_or_else(|| {
        "is no mode; there are \"datagram\", \"message\", \"unordered\", \"stream\"".to_owned()
    })
}

fn parse_socket_mode(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
    mode.ok_or_else(|| "is no mode of a file; write octal digits such as \"0660\"".to_owned())
}

fn read_account(fields: &mut Fields<'_, '_>, key: &'static str) -> Field<Account> {
    let item: &Item = fields.get(key)?;
    let value = match &item.value {
        Value::Text(name) if is_account_name(name) => Some(Account::Name(name.clone())),
        // The last one stands for "as it is" (chown(2)).
        Value::Integer(number) => {
            u32::try_from(*number).ok().filter(|id| *id < u32::MAX).map(Account::Number)
        }
        _ => None,
    };
    if value.is_none() {
        let what = if key == "socket_owner" { "user" } else { "group" };
        fields.faults.add(item.at, format!("{key} must be the name or the number of a {what}"));
    }
    Some(Located { at: item.at, value: value? })
}

/// Whether it can stand in the system's list of accounts, whose fields end with colons.
fn is_account_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_control() || c == ':')
}

/// A congestion control from the configuration's text.
///
/// # Errors
/// What is wrong, to be read behind the text.
fn parse_congestion(text: &str) -> Result<Congestion, String> {
    match text {
        "cubic" => return Ok(Congestion::Cubic),
        "new-reno" => return Ok(Congestion::NewReno),
        _ => {}
    }
    let Some(rate) = text.strip_prefix("fixed:") else {
        let known =
            "there are \"cubic\", \"new-reno\", and \"fixed:\" with a rate, as \"fixed:100M\"";
        return Err(format!("is no congestion control; {known}"));
    };
    let (digits, unit) = match rate.as_bytes().last() {
        Some(b'k') => (rate.strip_suffix('k'), 1_000),
        Some(b'M') => (rate.strip_suffix('M'), 1_000_000),
        Some(b'G') => (rate.strip_suffix('G'), 1_000_000_000),
        _ => (Some(rate), 1),
    };
    let number = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.and_then(|text| text.parse::<u64>().ok());
    let bits = number.and_then(|number| number.checked_mul(unit));
    bits.filter(|bits| FIXED_RATES.contains(bits))
        .map(|bits| Congestion::Fixed(bits / 8))
        .ok_or_else(|| {
            "must have a rate in bits a second, from \"fixed:64k\" to \"fixed:1000G\"".to_owned()
        })
}

/// What holds for all channels together.
pub(super) fn validate_transport(raw: RawTransport) -> HubOptions {
    let megabytes = or(raw.receive_memory_mb, DEFAULT_RECEIVE_MEMORY_MB);
    HubOptions {
        congestion: or(raw.congestion, Congestion::default()),
        receive_memory: u64::from(megabytes) << 20,
    }
}

/// Checks all channels, each and against one another; they come by ascending name.
pub(super) fn validate(
    raw: Vec<RawChannel>,
    known: &Names<'_>,
    networks: &[NetworkConfig],
    control_socket: &Path,
    faults: &mut Collector,
) -> Vec<ChannelConfig> {
    if let Some(surplus) = raw.get(MAX_CHANNELS) {
        let fault = format!("{} channels are too many; keep at most {MAX_CHANNELS}", raw.len());
        faults.add(surplus.at, fault);
    }
    let mut names = Unique::new("channel name");
    let mut sockets = Sockets::new(control_socket, networks);
    let mut channels = Vec::with_capacity(raw.len().min(MAX_CHANNELS));
    for channel in raw {
        check_combinations(&channel, faults);
        let members = channel.members.map(|list| {
            networks::members(Some(list), known, faults).into_iter().collect::<Vec<_>>()
        });
        let Some(name) = channel.name else {
            channel.socket.iter().for_each(|socket| sockets.check(socket, faults));
            continue;
        };
        let good = check_name(&name, faults);
        names.check(name.value.clone(), name.at, faults);
        match &channel.socket {
            Some(socket) => sockets.check(socket, faults),
            None if good => sockets.check_default(&name, faults),
            None => {}
        }
        let Some(mode) = channel.mode else { continue };
        let kilobytes = or(channel.send_buffer_kb, DEFAULT_SEND_BUFFER_KB);
        let level = || channel.compression_level.as_ref().and_then(|level| Level::new(level.value));
        channels.push(ChannelConfig {
            name: name.value,
            mode: mode.value,
            members,
            socket: channel.socket.map(|socket| socket.value.into()),
            access: SocketAccess {
                mode: or(channel.socket_mode, DEFAULT_SOCKET_MODE),
                owner: channel.socket_owner.map(|owner| owner.value),
                group: channel.socket_group.map(|group| group.value),
            },
            copies: or(channel.copies, false),
            send_buffer: (kilobytes as usize) << 10,
            compression: or(channel.compression, false).then(|| level().unwrap_or_default()),
        });
    }
    channels.sort_by(|one, other| one.name.cmp(&other.name));
    channels
}

/// Keys that a channel of another mode would have use for.
fn check_combinations(channel: &RawChannel, faults: &mut Collector) {
    let Some(mode) = &channel.mode else { return };
    let name = mode_name(mode.value);
    if let Some(copies) = channel.copies.as_ref().filter(|copies| copies.value)
        && mode.value != Mode::Unreliable
    {
        let fault = format!("copies is for mode \"datagram\", not for \"{name}\"; remove it");
        faults.add(copies.at, fault);
    }
    if let Some(buffer) = channel.send_buffer_kb.as_ref()
        && mode.value == Mode::Unreliable
    {
        let fault = "send_buffer_kb is not for mode \"datagram\", which keeps nothing; remove it";
        faults.add(buffer.at, fault);
    }
    if let Some(compression) = channel.compression.as_ref().filter(|compression| compression.value)
        && mode.value == Mode::Stream
    {
        let fault =
            "compression is not for mode \"stream\"; remove it, and have the programs do it";
        faults.add(compression.at, fault);
    }
}

/// A name that can also be a file's.
fn check_name(name: &Located<String>, faults: &mut Collector) -> bool {
    let text = &name.value;
    let fault = if text.is_empty() {
        "is empty; write one".to_owned()
    } else if text.len() > MAX_NAME_LEN {
        format!("is {} bytes long; keep it to {MAX_NAME_LEN}", text.len())
    } else if text == "." || text == ".." {
        "is a directory's; choose another".to_owned()
    } else if text.contains(|c: char| c.is_control() || c == '/') {
        "has a '/' or what cannot be printed; leave that out".to_owned()
    } else {
        return true;
    };
    faults.add(name.at, format!("channel name {text:?} {fault}"));
    false
}

/// The sockets of one node, so that no two are the same.
struct Sockets<'c> {
    seen: Unique<String>,
    control: &'c Path,
    vm_ports: HashSet<&'c Path>,
}

impl<'c> Sockets<'c> {
    fn new(control: &'c Path, networks: &'c [NetworkConfig]) -> Self {
        let ports = networks.iter().flat_map(|network| &network.vhost_user);
        let vm_ports = ports.map(|port| port.socket.as_path()).collect();
        Self { seen: Unique::new("channel socket"), control, vm_ports }
    }

    fn check(&mut self, socket: &Located<String>, faults: &mut Collector) {
        let Located { at, value } = socket;
        let path = Path::new(value);
        if let Err(fault) = check_socket_path(path) {
            faults.add(*at, format!("channel socket {value:?} {fault}"));
        } else if path == self.control {
            faults.add(*at, format!("{value:?} is the control socket; choose another path"));
        } else if self.vm_ports.contains(path) {
            faults.add(*at, format!("{value:?} is a VM port's socket; choose another path"));
        }
        self.seen.check(value.clone(), *at, faults);
    }

    fn check_default(&mut self, name: &Located<String>, faults: &mut Collector) {
        let path = default_socket(self.control, &name.value);
        // A control socket that is none is a fault already.
        if self.control.is_absolute()
            && let Err(fault) = check_socket_path(&path)
        {
            faults.add(name.at, format!("channel socket {path:?} {fault}; give it a socket"));
        }
        self.seen.check(path.display().to_string(), name.at, faults);
    }
}
