//! DPDK: the shim, memory and rights, the ports of links and of virtual machines.
//!
//! Nothing is started and no port is opened: a card would be lost to the kernel by that.
//!
//! Next: [`super::pci`].

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use caps::{CapSet, Capability};
use fastpath::dpdk::Shim;
use fastpath::interface::{self, Interface};
use fastpath::probe;

use super::Report;
use super::pci::{self, HugepageSize, Machine};
use super::uplink::Uplink;
use crate::config::{
    Config, DpdkConfig, DpdkPort, Hugepages, NetworkConfig, NodeLink, Port, VhostMode, VhostUser,
};

/// Bytes around an IP packet in a frame: Ethernet header, a tag.
const FRAME_OVERHEAD: u32 = 14 + 4;
/// Bytes before the frame in a slot of net_af_packet's rings (net/packet/af_packet.c,
/// `tpacket_rcv`: version 2's header, rounded up so that the IP header is aligned).
const AF_PACKET_OVERHEAD: u32 = 66;
/// Default of its `framesz`, in bytes.
const AF_PACKET_FRAME: u32 = 2048;
/// Largest IP packet of net_af_xdp in bytes: a frame lies in one page, with its headroom.
const AF_XDP_MTU: u32 = 3542;

/// The ports of this node's links.
fn ports(config: &Config) -> impl Iterator<Item = (&NodeLink, &DpdkPort)> {
    let links = config.own_node().map_or(&[][..], |own| own.links.as_slice());
    links.iter().filter_map(|link| Some((link, link.dpdk.as_ref()?)))
}

/// The links on DPDK ports, for what asks how much an uplink takes.
pub(super) fn uplinks(config: Option<&Config>) -> Vec<Uplink> {
    let list = config.into_iter().flat_map(ports).filter_map(|(link, port)| {
        let (interface, ip_mtu) = (port.to_string(), port.mtu.into());
        Some(Uplink { name: link.name.clone(), address: link.address.fixed()?, interface, ip_mtu })
    });
    list.collect()
}

/// Makes the checks; one line where nothing of it is wanted.
pub(super) fn check(config: Option<&Config>, running: bool, report: &mut Report) {
    let wanted = config.filter(|config| config.needs_dpdk());
    let shim = Shim::find(config.and_then(|config| config.dpdk.shim.as_deref()));
    let Some(config) = wanted else {
        let found = shim.map_or_else(
            |_| "shim not found".to_owned(),
            |shim| format!("shim found at {} ({})", shim.path.display(), shim.version),
        );
        return report.ok("dpdk", format_args!("not used; {found}"));
    };
    match shim {
        Ok(Shim { path, version }) => {
            report.ok("dpdk", format_args!("{version}, by {}", path.display()));
        }
        Err(error) => report.fail("dpdk", error, "without it tapd does not start here"),
    }
    let machine = Machine::real();
    let cards = ports(config).any(|(_, port)| matches!(port.port, Port::Pci { .. }));
    check_memory(&machine, &config.dpdk, cards, running, report);
    for (link, port) in ports(config) {
        let name = &link.name;
        match &port.port {
            Port::Pci { address, .. } => {
                pci::check(&machine, name, address, config, running, report);
            }
            Port::Virtual { name: device, .. } => {
                check_virtual(name, link, device, port, config.daemon.workers, report);
            }
        }
        if let Some(tap) = &port.exception_tap {
            super::tap::check_new(&format!("exception tap {name}"), tap, running, report);
        }
    }
    for network in config.own_networks() {
        check_vm_ports(network, config.daemon.workers, running, report);
    }
}

/// Where packets lie.
fn check_memory(
    machine: &Machine,
    config: &DpdkConfig,
    cards: bool,
    running: bool,
    report: &mut Report,
) {
    let check = "hugepages";
    let (sizes, wanted) = (machine.hugepages(), u64::from(config.memory_mb));
    let free: u64 = sizes.iter().map(HugepageSize::free_mb).sum();
    let list: Vec<_> = sizes
        .iter()
        .map(|size| format!("{} of {} of {} kB free", size.free, size.total, size.kb))
        .collect();
    let list = if list.is_empty() { "the kernel has none".to_owned() } else { list.join(", ") };
    let found = format!("{list}; {wanted} MiB wanted");
    let advice = || match sizes.iter().find(|size| size.kb == 2048) {
        Some(size) => {
            let pages = size.total - size.free + wanted.div_ceil(2);
            format!(
                "run: echo {pages} > {}/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                machine.sys.display()
            )
        }
        None => "boot with hugepagesz=1G hugepages=1, or as many as are wanted".to_owned(),
    };
    match (config.hugepages, free >= wanted) {
        (Hugepages::Never, _) if cards => {
            let advice = "set hugepages = \"auto\" in [dpdk]: cards without an IOMMU need them";
            report.warn(check, "hugepages = false, and a card is to be driven", advice);
        }
        (Hugepages::Never, _) => report.ok(check, "not wanted"),
        (_, true) => report.ok(check, found),
        // It has those that are not free.
        _ if running => report.ok(check, format_args!("{found}; a daemon runs already")),
        (Hugepages::Always, false) => report.fail(check, found, advice()),
        (Hugepages::Auto, false) if cards => {
            report.warn(check, format_args!("{found}: ordinary pages instead"), advice());
        }
        (Hugepages::Auto, false) => {
            report.ok(check, format_args!("{found}: ordinary pages instead"));
        }
    }
}

/// A port without a card: what is behind it must be there.
fn check_virtual(
    name: &str,
    link: &NodeLink,
    device: &str,
    port: &DpdkPort,
    workers: usize,
    report: &mut Report,
) {
    let check = format!("port {name}");
    let driver = device.trim_end_matches(|last: char| last.is_ascii_digit());
    let (queues, capabilities): (_, &[Capability]) = match driver {
        "net_af_packet" => (Some("qpairs"), &[Capability::CAP_NET_RAW]),
        "net_af_xdp" => {
            (Some("queue_count"), &[Capability::CAP_NET_RAW, Capability::CAP_SYS_ADMIN])
        }
        _ => (None, &[]),
    };
    if let Some(key) = queues {
        check_interface(&check, link, port, report);
        check_size(&format!("frame size {name}"), driver, port, report);
        let has = port.port.argument(key).map_or(Some(1), |text| text.parse().ok());
        check_queues(&format!("queues {name}"), has, workers, key, report);
    } else {
        report.ok(&check, format_args!("{}: not tried", port.port));
    }
    let lacks =
        |wanted: &&Capability| !caps::has_cap(None, CapSet::Effective, **wanted).unwrap_or(false);
    let check = format!("rights {name}");
    match capabilities.iter().find(lacks) {
        Some(missing) => report.fail(
            &check,
            format_args!("{missing} is missing"),
            "run as root, or add it to AmbientCapabilities in the systemd unit or to the \
             container (--cap-add)",
        ),
        None if capabilities.is_empty() => {}
        None => report.ok(&check, "all that this port needs"),
    }
}

/// The kernel's interface below the port.
fn check_interface(check: &str, link: &NodeLink, port: &DpdkPort, report: &mut Report) {
    let Some(name) = port.port.argument("iface") else {
        let advice = format!("write port = \"{},iface=eth1\"", port.port);
        return report.fail(check, "it has no iface", advice);
    };
    let Ok(state) = Interface::open(name).and_then(|_| probe::link_state(name)) else {
        let found = format!("there is no interface {name}");
        return report.fail(check, found, "correct iface in the port's arguments");
    };
    if !state.up {
        let advice = format!("run: ip link set {name} up");
        return report.fail(check, format_args!("{name} is down"), advice);
    }
    if let Ok(mtu) = Interface::open(name).and_then(|interface| interface.tap_mtu())
        && mtu < u32::from(port.mtu)
    {
        return report.fail(
            check,
            format_args!("{name} has an MTU of {mtu}, and the port is to have {}", port.mtu),
            format_args!("run: ip link set {name} mtu {}, or set mtu = {mtu}", port.mtu),
        );
    }
    let owner = link.address.fixed().and_then(|address| {
        let found = interface::interface_of(address).ok()??;
        Some((address, found.name))
    });
    if let Some((address, owner)) = owner {
        return report.warn(
            check,
            format_args!("{owner} has {address} too: the kernel answers for it beside tapd"),
            format_args!("run: ip addr del {address}/{} dev {owner}", port.prefix),
        );
    }
    if !state.running {
        return report.warn(
            check,
            format_args!("{name} has no carrier"),
            "look at cable and switch",
        );
    }
    report.ok(check, format_args!("{name}, up"));
}

/// Frames of the port's MTU fit its driver's buffers.
fn check_size(check: &str, driver: &str, port: &DpdkPort, report: &mut Report) {
    let mtu = u32::from(port.mtu);
    if driver == "net_af_xdp" {
        return match mtu <= AF_XDP_MTU {
            true => report.ok(check, format_args!("an MTU of {mtu} fits")),
            false => report.fail(
                check,
                format_args!("an MTU of {mtu} does not fit net_af_xdp"),
                format_args!("set mtu = {AF_XDP_MTU} or less, or use net_af_packet"),
            ),
        };
    }
    let written = port.port.argument("framesz").and_then(|text| text.parse().ok());
    let (has, needs) =
        (written.unwrap_or(AF_PACKET_FRAME), mtu + FRAME_OVERHEAD + AF_PACKET_OVERHEAD);
    if has >= needs {
        return report.ok(check, format_args!("{has} bytes take an MTU of {mtu}"));
    }
    let size = needs.next_power_of_two();
    report.fail(
        check,
        format_args!("framesz = {has} is too small for an MTU of {mtu}"),
        format_args!("add framesz={size},blocksz={} to the port", size.max(4096)),
    );
}

pub(super) fn check_queues(
    check: &str,
    has: Option<usize>,
    workers: usize,
    key: &str,
    report: &mut Report,
) {
    match has {
        Some(has) if has < workers => report.fail(
            check,
            format_args!("{has} for {workers} workers"),
            format_args!("add {key}={workers} to the port, or set workers = {has} in [daemon]"),
        ),
        Some(has) => report.ok(check, format_args!("{has} for {workers} workers")),
        None => report.warn(check, format_args!("{key} is no number"), "correct it"),
    }
}

fn check_vm_ports(network: &NetworkConfig, workers: usize, running: bool, report: &mut Report) {
    for port in &network.vhost_user {
        let check = format!("VM port {}", port.socket.display());
        match port.mode {
            VhostMode::Server => check_server(&check, port, workers, running, report),
            VhostMode::Client if port.socket.exists() => {
                report.ok(&check, "the VM's socket is there");
            }
            VhostMode::Client => report.ok(&check, "the VM's socket is not there yet"),
        }
    }
}

/// tapd can make the socket.
fn check_server(check: &str, port: &VhostUser, workers: usize, running: bool, report: &mut Report) {
    let queues = port.queues(workers);
    if let Ok(found) = fs::symlink_metadata(&port.socket) {
        if !found.file_type().is_socket() {
            let advice = "remove it, or choose another path";
            return report.fail(check, "something is there that is no socket", advice);
        }
        match (UnixStream::connect(&port.socket), running) {
            (Err(error), _) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            (_, true) => return report.ok(check, "is there, made by the daemon that runs"),
            (_, false) => {
                let advice = "stop that program, or choose another path";
                return report.fail(check, "another program listens there", advice);
            }
        }
    }
    let directory = port.socket.parent().unwrap_or(Path::new("/"));
    match writable(directory) {
        Ok(()) => report.ok(
            check,
            format_args!("{} takes it; queues {queues}, workers {workers}", directory.display()),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => report.fail(
            check,
            format_args!("there is no directory {}", directory.display()),
            format_args!("run: mkdir -p {}", directory.display()),
        ),
        Err(error) => report.fail(
            check,
            format_args!("{}: {error}", directory.display()),
            "choose a directory that tapd may write to",
        ),
    }
}

/// Tries whether a file can be made in a directory, and leaves none behind.
pub(super) fn writable(directory: &Path) -> io::Result<()> {
    let trial = directory.join(format!(".tapd-doctor-{}", std::process::id()));
    fs::OpenOptions::new().write(true).create_new(true).open(&trial)?;
    fs::remove_file(&trial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;
    use crate::doctor::Status;

    fn lines(fill: impl FnOnce(&mut Report)) -> Vec<(Status, String)> {
        let mut report = Report::default();
        fill(&mut report);
        let line = |f: super::super::Finding| {
            (f.status, format!("{}; {}", f.found, f.advice.unwrap_or_default()))
        };
        report.findings.into_iter().map(line).collect()
    }

    fn port(text: &str, mtu: u16) -> DpdkPort {
        DpdkPort { mtu, ..testing::port(text) }
    }

    #[test]
    fn frames_must_fit_the_drivers_buffers() {
        let size = |text, driver, mtu| {
            lines(|report| check_size("frame size", driver, &port(text, mtu), report)).remove(0)
        };
        assert_eq!(size("net_af_packet,iface=x", "net_af_packet", 1500).0, Status::Ok);
        let (status, line) = size("net_af_packet,iface=x", "net_af_packet", 9000);
        assert_eq!(status, Status::Fail);
        assert!(line.contains("framesz=16384,blocksz=16384"), "{line}");
        let jumbo = "net_af_packet,iface=x,framesz=16384,blocksz=16384";
        assert_eq!(size(jumbo, "net_af_packet", 9000).0, Status::Ok);
        assert_eq!(size("net_af_xdp,iface=x", "net_af_xdp", 9000).0, Status::Fail);
        assert_eq!(size("net_af_xdp,iface=x", "net_af_xdp", 1500).0, Status::Ok);
    }

    #[test]
    fn every_worker_needs_a_queue() {
        let queues = |has, workers| {
            lines(|report| check_queues("queues", has, workers, "qpairs", report)).remove(0)
        };
        assert_eq!(queues(Some(2), 2).0, Status::Ok);
        let (status, line) = queues(Some(1), 2);
        assert_eq!(status, Status::Fail);
        assert!(line.contains("qpairs=2") && line.contains("workers = 1"), "{line}");
        assert_eq!(queues(None, 2).0, Status::Warn);
    }

    #[test]
    fn memory_is_asked_for_by_what_is_to_use_it() {
        let (machine, _dir) = Machine::fake();
        machine.add_hugepages(HugepageSize { kb: 2048, total: 10, free: 4 });
        let memory = |hugepages, cards, running| {
            let config = DpdkConfig {
                memory_mb: 256,
                hugepages,
                eal: Vec::new(),
                shim: None,
                max_sleep: std::time::Duration::ZERO,
                interrupts: true,
            };
            lines(|report| check_memory(&machine, &config, cards, running, report)).remove(0)
        };
        assert_eq!(memory(Hugepages::Auto, false, false).0, Status::Ok);
        assert_eq!(memory(Hugepages::Never, false, false).0, Status::Ok);
        assert_eq!(memory(Hugepages::Never, true, false).0, Status::Warn);
        assert_eq!(memory(Hugepages::Always, false, true).0, Status::Ok);
        let (status, line) = memory(Hugepages::Always, false, false);
        assert_eq!(status, Status::Fail);
        // What is used stays.
        assert!(line.contains("echo 134 >"), "{line}");
        machine.add_hugepages(HugepageSize { kb: 2048, total: 200, free: 200 });
        assert_eq!(memory(Hugepages::Always, true, false).0, Status::Ok);
    }

    #[test]
    fn sockets_need_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let server = |path: &str| {
            let port =
                VhostUser { socket: dir.path().join(path), mode: VhostMode::Server, queues: None };
            lines(|report| check_server("VM port", &port, 2, false, report)).remove(0)
        };
        assert_eq!(server("vm.sock").0, Status::Ok);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
        let (status, line) = server("none/vm.sock");
        assert!(status == Status::Fail && line.contains("mkdir -p"), "{line}");
        fs::write(dir.path().join("file"), b"").unwrap();
        assert_eq!(server("file").0, Status::Fail);
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("taken")).unwrap();
        let (status, line) = server("taken");
        assert!(status == Status::Fail && line.contains("another program"), "{line}");
    }
}
