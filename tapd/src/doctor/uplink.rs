//! Uplinks: the addresses that datagrams leave from, and the interfaces under them.

use std::io;
use std::net::IpAddr;

use fastpath::interface::{self, Interface};
use fastpath::probe::{self, Passage, UplinkTrial};
use fastpath::uplink::UplinkOptions;

use super::ports::{self, Port};
use super::{Report, set_sysctl, sysctl, workers};
use crate::config::{
    Config, DEFAULT_PORT, Family, MIN_UNDERLAY_MTU, NodeAddress, NodeLink, PORT_COUNT,
    missing_advice,
};

/// Addresses that are looked at where no configuration says which.
const MAX_GENERAL: usize = 8;
/// Largest UDP payload over IPv4 in bytes (RFC 768, RFC 791).
const MAX_UDP_PAYLOAD: u32 = 65_507;

/// An address of this machine that datagrams leave from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uplink {
    /// Name of the link.
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) interface: String,
    /// Bytes of the largest IP packet that the interface takes.
    pub(super) ip_mtu: u32,
}

impl Uplink {
    /// Largest UDP payload that leaves unfragmented, in bytes.
    pub(super) fn max_udp_payload(&self) -> u32 {
        let headers = if self.address.is_ipv4() { 20 + 8 } else { 40 + 8 };
        self.ip_mtu.saturating_sub(headers).min(MAX_UDP_PAYLOAD)
    }
}

/// The uplinks of the configuration that are there, or those that the machine could have.
pub(super) fn list(config: Option<&Config>, report: &mut Report) -> Vec<Uplink> {
    match config {
        Some(config) => {
            let links = config.own_node().map_or(&[][..], |own| own.links.as_slice());
            // What is on a DPDK port is nothing that the kernel knows.
            let kernel = links.iter().filter(|link| link.dpdk.is_none());
            kernel.filter_map(|link| configured(link, links.len() > 1, report)).collect()
        }
        None => general(),
    }
}

fn configured(link: &NodeLink, several: bool, report: &mut Report) -> Option<Uplink> {
    let check = format!("uplink {}", link.name);
    let (address, interface) = match &link.address {
        NodeAddress::Static(address) => (Some(*address), None),
        NodeAddress::Dynamic { interface: None, .. } => {
            report.ok(&check, "dynamic, by any interface: not tried");
            return None;
        }
        NodeAddress::Dynamic { family, interface: Some(name) } => {
            let of_family = |address: IpAddr| Family::of(address) == *family;
            (first_address(name, of_family), Some(name))
        }
    };
    let found = address.and_then(|address| {
        let found = interface::interface_of(address).ok()??;
        let (interface, ip_mtu) = (found.name, found.ip_mtu);
        Some(Uplink { name: link.name.clone(), address, interface, ip_mtu })
    });
    if found.is_some() {
        return found;
    }
    let (what, advice) = match (address, interface) {
        (Some(address), _) => (format!("no interface has {address}"), missing_advice(address)),
        (None, Some(name)) if Interface::open(name).is_err() => {
            (format!("there is no interface {name}"), "correct its name".to_owned())
        }
        (None, name) => (
            format!("{} has no address yet", name.map_or("it", String::as_str)),
            "its links come up when it has one".to_owned(),
        ),
    };
    // One of several may come up later than the node does.
    match several || interface.is_some() {
        true => report.warn(&check, what, advice),
        false => report.fail(&check, what, advice),
    }
    None
}

fn first_address(name: &str, pick: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let all = interface::local_addresses().ok()?;
    let mine = all.into_iter().filter(|local| local.interface == name).map(|local| local.address);
    mine.into_iter().find(|address| pick(*address) && !is_link_local(*address))
}

const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Addresses that other machines may reach; those of loopback only if there is nothing else.
fn general() -> Vec<Uplink> {
    let all = interface::local_addresses().unwrap_or_default();
    let far = |address: &IpAddr| !address.is_loopback() && !is_link_local(*address);
    let mut addresses: Vec<_> = all.iter().map(|local| local.address).filter(far).collect();
    if addresses.is_empty() {
        addresses.extend(all.iter().map(|local| local.address).find(IpAddr::is_loopback));
    }
    addresses.truncate(MAX_GENERAL);
    let uplink = |address: IpAddr| {
        let found = interface::interface_of(address).ok()??;
        let (interface, ip_mtu) = (found.name, found.ip_mtu);
        Some(Uplink { name: address.to_string(), address, interface, ip_mtu })
    };
    addresses.into_iter().filter_map(uplink).collect()
}

/// Everything that an uplink stands on.
pub(super) fn check(
    uplinks: &[Uplink],
    config: Option<&Config>,
    running: Option<u32>,
    report: &mut Report,
) {
    let port = config.map_or(DEFAULT_PORT, |config| config.cluster.port);
    let several = config.and_then(Config::own_node).is_some_and(|own| own.links.len() > 1);
    for uplink in uplinks {
        check_interface(uplink, several, report);
        let dynamic = config.and_then(Config::own_node).is_some_and(|own| {
            own.links.iter().any(|l| l.name == uplink.name && l.address.fixed().is_none())
        });
        if !dynamic {
            check_ports(uplink, port, running, report);
        }
        match probe::try_uplink(uplink.address, &uplink.interface) {
            Ok(trial) => take_trial(uplink, &trial, workers(config), report),
            Err(error) => {
                report.fail(&format!("sockets {}", uplink.name), error, "no socket can be opened");
            }
        }
    }
    let mut seen: Vec<&Uplink> = Vec::new();
    for uplink in uplinks {
        let mut before = seen.iter().filter(|before| before.interface == uplink.interface);
        if before.clone().next().is_none() {
            check_features(&uplink.interface, report);
        }
        if before.all(|before| before.address.is_ipv4() != uplink.address.is_ipv4()) {
            check_settings(uplink, several, report);
        }
        seen.push(uplink);
    }
}

fn check_interface(uplink: &Uplink, several: bool, report: &mut Report) {
    let Uplink { name, address, interface, ip_mtu } = uplink;
    let check = format!("uplink {name}");
    let state = match probe::link_state(interface) {
        Ok(state) => state,
        Err(error) => return report.fail(&check, error, "the interface went away"),
    };
    if !state.up {
        let advice = format!("run: ip link set {interface} up");
        return report.fail(&check, format_args!("{address}: {interface} is down"), advice);
    }
    if !state.running {
        let (found, advice) =
            (format!("{address}: {interface} has no carrier"), "look at cable and switch");
        return match several {
            true => report.warn(&check, found, advice),
            false => report.fail(&check, found, advice),
        };
    }
    if *ip_mtu < MIN_UNDERLAY_MTU.into() {
        return report.fail(
            &check,
            format_args!("{address}: {interface} has an MTU of {ip_mtu}"),
            format_args!("run: ip link set {interface} mtu 1500 (at least {MIN_UNDERLAY_MTU})"),
        );
    }
    report.ok(&check, format_args!("{address} on {interface}, up, MTU {ip_mtu}"));
}

fn check_ports(uplink: &Uplink, base: u16, running: Option<u32>, report: &mut Report) {
    let check = format!("ports {}", uplink.name);
    let last = base.saturating_add(PORT_COUNT - 1);
    let mut own = false;
    let mut spare = Vec::new();
    for port in base..=last {
        match ports::look(uplink.address, port) {
            Port::Free => {}
            Port::InUse(owners) if owners.iter().any(|(pid, _)| Some(*pid) == running) => {
                own = true;
            }
            Port::InUse(owners) if port == base => {
                let found = format!("UDP port {port} is in use by {}", shown(&owners));
                return report.fail(&check, found, "stop it, or choose another port in [cluster]");
            }
            Port::InUse(owners) => spare.push(format!("{port} by {}", shown(&owners))),
            Port::Refused(error) => {
                let found = format!("UDP port {port}: {error}");
                return report.fail(&check, found, "choose another port in [cluster]");
            }
        }
    }
    if !spare.is_empty() {
        let advice = "later versions use all 16: choose another port in [cluster]";
        return report.warn(&check, format_args!("in use: {}", spare.join(", ")), advice);
    }
    let by = if own { ", used by the daemon that runs" } else { ", free" };
    report.ok(&check, format_args!("UDP {base} to {last}{by}"));
}

fn shown(owners: &[(u32, String)]) -> String {
    let list: Vec<_> = owners.iter().map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    if list.is_empty() { "a process that cannot be seen".to_owned() } else { list.join(", ") }
}

fn take_trial(uplink: &Uplink, trial: &UplinkTrial, workers: usize, report: &mut Report) {
    let (name, interface) = (&uplink.name, &uplink.interface);
    let check = |what: &str| format!("{what} {name}");
    take_buffers(&check("buffers"), trial, report);
    match (&trial.single, &trial.segmented) {
        (Err(error), _) if error.kind() == io::ErrorKind::Unsupported => {
            report.ok(&check("send"), format_args!("not tried: {error}"));
        }
        (Err(error), _) => report.fail(
            &check("send"),
            format_args!("{interface} takes no datagram: {error}"),
            "see whether a firewall or a route refuses it (ip route, nft list ruleset)",
        ),
        (Ok(()), Ok(())) => report.ok(&check("send"), "runs of datagrams in one piece"),
        (Ok(()), Err(error)) => report.warn(
            &check("send"),
            format_args!("{interface} refuses runs of datagrams: {error}"),
            segmentation_advice(interface, error),
        ),
    }
    match &trial.run {
        Ok(Passage::Whole) => report.ok(&check("receive"), "runs of datagrams in one piece"),
        Ok(Passage::Cut) => {
            report.warn(
                &check("receive"),
                "datagrams one by one",
                "Linux 5.0 or later has UDP_GRO",
            );
        }
        Ok(Passage::Lost) => report.fail(
            &check("receive"),
            "a datagram from this machine to itself is lost",
            "run: ip link set lo up, or see whether a firewall drops it",
        ),
        Err(error) => report.warn(
            &check("receive"),
            format_args!("not tried: {error}"),
            "Linux 5.0 or later has UDP_SEGMENT and UDP_GRO",
        ),
    }
    match &trial.steering {
        Ok(()) => report.ok(&check("steering"), "sockets of several workers share a port"),
        Err(error) if workers > 1 => {
            report.fail(&check("steering"), error, "set workers = 1 in [daemon]");
        }
        Err(error) => report.warn(&check("steering"), error, "leave workers = 1 in [daemon]"),
    }
}

/// Why the kernel does not cut runs for an interface (net/ipv4/udp.c, `udp_send_skb`).
fn segmentation_advice(interface: &str, error: &io::Error) -> String {
    const EIO: i32 = 5;
    const EINVAL: i32 = 22;
    match error.raw_os_error() {
        Some(EIO) => format!(
            "no transmit checksums (ethtool -k {interface}); run: ethtool -K {interface} tx on"
        ),
        Some(EINVAL) => "the interface's MTU is below 1028, or a transformation (IPsec) is in the \
            way"
        .to_owned(),
        _ => "set uplink_segmentation = false in [offload]".to_owned(),
    }
}

fn take_buffers(check: &str, trial: &UplinkTrial, report: &mut Report) {
    let wanted = UplinkOptions::default().buffer_len;
    // The kernel accounts twice what is asked for.
    let (receive, send) = (trial.buffers.receive / 2, trial.buffers.send / 2);
    if receive >= wanted && send >= wanted {
        return report.ok(check, format_args!("{wanted} bytes in each direction"));
    }
    let limits = format!("net.core.rmem_max={wanted} net.core.wmem_max={wanted}");
    report.warn(
        check,
        format_args!("{receive} bytes to receive and {send} to send, of {wanted}"),
        format_args!("give CAP_NET_ADMIN, or run: sysctl -w {limits}"),
    );
}

fn check_features(interface: &str, report: &mut Report) {
    let features = probe::features(interface).unwrap_or_default();
    let mut switch = |name: &str, key: &str, state: Option<bool>, effect: &str| {
        let check = format!("{name} {interface}");
        match state {
            Some(true) => report.ok(&check, "on"),
            Some(false) => report.warn(
                &check,
                format_args!("off: {effect}"),
                format_args!("run: ethtool -K {interface} {key} on"),
            ),
            None => report.ok(&check, "the driver does not say"),
        }
    };
    switch("tx checksum", "tx", features.tx_checksum, "the processor sums what leaves");
    switch("rx checksum", "rx", features.rx_checksum, "the processor sums what arrives");
    switch("gro", "gro", features.gro, "datagrams arrive one by one");
    let word = |state: Option<bool>| match state {
        Some(true) => "on",
        Some(false) => "off",
        None => "unknown",
    };
    let found = format!("tso {}, gso {}", word(features.tso), word(features.gso));
    report.ok(&format!("segmentation {interface}"), found);
}

fn check_settings(uplink: &Uplink, several: bool, report: &mut Report) {
    let interface = &uplink.interface;
    if uplink.address.is_ipv6() {
        let path = format!("net/ipv6/conf/{interface}/disable_ipv6");
        let check = format!("ipv6 {interface}");
        return match sysctl(&path).as_deref() {
            Some("1") => report.fail(&check, "disabled", set_sysctl(&path, 0)),
            _ => report.ok(&check, "enabled"),
        };
    }
    let check = format!("reverse path {interface}");
    let path = |name: &str| format!("net/ipv4/conf/{name}/rp_filter");
    let value = |name: &str| sysctl(&path(name)).and_then(|text| text.parse::<u8>().ok());
    // The stricter in number counts (Documentation/networking/ip-sysctl.rst).
    let strictness = value("all").unwrap_or(0).max(value(interface).unwrap_or(0));
    match (strictness, several) {
        (1, true) => report.warn(
            &check,
            "strict: what a peer sends to this link by another route is dropped",
            set_sysctl(&path(interface), 2),
        ),
        (1, false) => report.ok(&check, "strict, which one link does not mind"),
        (2, _) => report.ok(&check, "loose"),
        _ => report.ok(&check, "off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;
    use fastpath::uplink::GrantedBuffers;

    fn uplink() -> Uplink {
        let interface = "eth0".to_owned();
        Uplink { name: "lan".into(), address: [192, 0, 2, 1].into(), interface, ip_mtu: 1500 }
    }

    fn good() -> UplinkTrial {
        UplinkTrial {
            buffers: GrantedBuffers { receive: 16 << 20, send: 16 << 20 },
            run: Ok(Passage::Whole),
            single: Ok(()),
            segmented: Ok(()),
            steering: Ok(()),
        }
    }

    fn found(trial: &UplinkTrial) -> Vec<(String, Status, String)> {
        let mut report = Report::default();
        take_trial(&uplink(), trial, 1, &mut report);
        let line = |f: super::super::Finding| (f.check, f.status, f.advice.unwrap_or_default());
        report.findings.into_iter().map(line).filter(|(_, s, _)| *s != Status::Ok).collect()
    }

    #[test]
    fn a_good_trial_gives_nothing_to_do() {
        assert_eq!(found(&good()), []);
        let mut report = Report::default();
        take_trial(&uplink(), &good(), 1, &mut report);
        assert_eq!(report.findings.len(), 4);
    }

    #[test]
    fn causes_are_told() {
        let refused = |errno| Err(io::Error::from_raw_os_error(errno));
        let lines = found(&UplinkTrial { segmented: refused(5), ..good() });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].2.contains("ethtool -K eth0 tx on"), "{lines:?}");
        let lines = found(&UplinkTrial { single: refused(1), ..good() });
        assert_eq!((lines[0].0.as_str(), lines[0].1), ("send lan", Status::Fail));
        let untried = || Err(io::ErrorKind::Unsupported.into());
        assert_eq!(found(&UplinkTrial { single: untried(), segmented: untried(), ..good() }), []);
        let small = GrantedBuffers { receive: 425_984, send: 16 << 20 };
        let lines = found(&UplinkTrial { buffers: small, ..good() });
        assert!(lines[0].2.contains("sysctl -w net.core.rmem_max=8388608"), "{lines:?}");
        let lines = found(&UplinkTrial { run: Ok(Passage::Lost), ..good() });
        assert!(lines[0].1 == Status::Fail && lines[0].2.contains("lo up"), "{lines:?}");
    }

    #[test]
    fn address_that_nobody_has_is_a_failure_unless_there_are_others() {
        let address = NodeAddress::Static([203, 0, 113, 77].into());
        let link = NodeLink { name: "lan".into(), address, dpdk: None };
        for (several, expected) in [(false, Status::Fail), (true, Status::Warn)] {
            let mut report = Report::default();
            assert_eq!(configured(&link, several, &mut report), None);
            assert_eq!(report.findings[0].status, expected);
        }
    }

    #[test]
    fn payload_is_what_the_headers_leave() {
        assert_eq!(uplink().max_udp_payload(), 1472);
        let v6 = Uplink { address: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), ..uplink() };
        assert_eq!(v6.max_udp_payload(), 1452);
        assert_eq!(Uplink { ip_mtu: 65_536, ..uplink() }.max_udp_payload(), 65_507);
    }
}
