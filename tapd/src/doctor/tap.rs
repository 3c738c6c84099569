//! Taps: what the kernel's driver does, and those of the configuration.

use std::io;

use encap::wire::header::{CLEAR_OVERHEAD, SEALED_OVERHEAD};
use fastpath::error::OpenError;
use fastpath::interface::{Interface, is_bridged};
use fastpath::probe::{self, Passage, TapTrial};
use fastpath::tap::Degraded;

use super::uplink::Uplink;
use super::{Report, read_line};
use crate::config::{Cipher, Config, MIN_IPV6_TAP_MTU, NetworkConfig, TapMtu};

/// How the temporary tap is called; with another digit where that is taken.
const TEMPORARY: &str = "tapdoctor";
/// Bytes of an Ethernet header without tags.
const ETHERNET_LEN: u32 = 14;
/// `IFF_TAP` and `IFF_MULTI_QUEUE` (linux/if_tun.h), as `tun_flags` of an interface shows them.
const IFF_TAP: u32 = 2;
const IFF_MULTI_QUEUE: u32 = 0x100;

/// Tries a tap of its own.
pub(super) fn check_kernel(net_admin: bool, report: &mut Report) {
    if !net_admin {
        let advice = "without CAP_NET_ADMIN there is no tap";
        return report.warn("tap", "not tried", advice);
    }
    let name = format!("{TEMPORARY}0");
    match probe::in_private_namespace(|| probe::try_tap(&name, true)) {
        Ok(trial) => take_trial(trial, report),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let advice = "run this as root (CAP_SYS_ADMIN), which tries them in a namespace";
            report.warn("tap packets", "super-frames were not sent through a tap", advice);
            let unused = |digit: u32| Some(format!("{TEMPORARY}{digit}")).filter(is_free);
            if let Some(name) = (0..10).find_map(unused) {
                take_trial(probe::try_tap(&name, false), report);
            }
        }
        Err(error) => report.warn("tap", error, "taps were not tried"),
    }
}

#[allow(clippy::ptr_arg, reason = "a filter's signature")]
fn is_free(name: &String) -> bool {
    Interface::open(name).is_err()
}

fn take_trial(trial: Result<TapTrial, OpenError>, report: &mut Report) {
    let trial = match trial {
        Ok(trial) => trial,
        Err(error) => return report.fail("tap", &error, "no tap can be made"),
    };
    let granted = trial.granted;
    let list: Vec<_> = [
        (true, "12-byte virtio-net header"),
        (granted.checksum, "checksums"),
        (granted.segmentation_tcp, "TSO4, TSO6"),
        (granted.segmentation_udp, "USO4, USO6"),
        (!trial.degraded.contains(&Degraded::NoSuperFrameLimit), "gso_max_size"),
    ]
    .into_iter()
    .filter_map(|(granted, what)| granted.then_some(what))
    .collect();
    if trial.degraded.is_empty() {
        report.ok("tap offloads", list.join(", "));
    }
    for degraded in &trial.degraded {
        report.warn("tap offloads", degraded, "a newer kernel has it");
    }
    match trial.multi_queue {
        true => report.ok("tap queues", "several"),
        false => report.fail("tap queues", "one only", "set workers = 1 in [daemon]"),
    }
    let tcp = granted.segmentation_tcp;
    let udp = granted.segmentation_udp;
    for (check, passage, granted, key) in [
        ("tap TCP read", trial.tcp_out, tcp, "tap_tcp"),
        ("tap TCP written", trial.tcp_in, tcp, "tap_tcp"),
        ("tap UDP read", trial.udp_out, udp, "tap_udp"),
        ("tap UDP written", trial.udp_in, udp, "tap_udp"),
    ] {
        take_passage(check, passage, granted, key, report);
    }
    if let Some(trouble) = trial.trouble {
        let advice = "packets do not pass a tap of this kernel: see whether a firewall or a \
            security module filters inside of new namespaces";
        report.warn("tap packets", trouble, advice);
    }
}

fn take_passage(
    check: &str,
    passage: Option<Passage>,
    granted: bool,
    key: &str,
    report: &mut Report,
) {
    match passage {
        None => {}
        Some(Passage::Whole) => report.ok(check, "a super-frame passes in one piece"),
        // Said already, by what was not granted.
        Some(Passage::Cut) if !granted => report.ok(check, "frame by frame"),
        Some(Passage::Cut) => report.warn(
            check,
            "granted, and frame by frame all the same",
            "nothing is lost by it, only throughput",
        ),
        Some(Passage::Lost) => report.fail(
            check,
            "a super-frame was taken and lost",
            format_args!("set {key} = false in [offload]"),
        ),
    }
}

/// The taps of the configuration.
pub(super) fn check_networks(
    config: &Config,
    uplinks: &[Uplink],
    running: bool,
    report: &mut Report,
) {
    for network in config.own_networks() {
        let Some(tap) = &network.tap else { continue };
        let check = format!("tap {tap}");
        match network.existing {
            true => check_existing(&check, config.daemon.workers, tap, report),
            false => check_new(&check, tap, running, report),
        }
        check_mtu(&format!("MTU of {tap}"), config, network, uplinks, report);
    }
}

pub(super) fn check_new(check: &str, tap: &str, running: bool, report: &mut Report) {
    match Interface::open(tap) {
        Ok(_) if running => report.ok(check, "is there, made by the daemon that runs"),
        Ok(_) => report.fail(
            check,
            "an interface of that name is there, and tapd is to make it",
            format_args!("run: ip link del {tap}, or set existing = true if it is a tap of yours"),
        ),
        Err(_) => report.ok(check, "the name is free"),
    }
}

fn check_existing(check: &str, workers: usize, tap: &str, report: &mut Report) {
    let multi_queue = if workers > 1 { " multi_queue" } else { "" };
    if Interface::open(tap).is_err() {
        let advice = format!("run: ip tuntap add {tap} mode tap{multi_queue}");
        return report.fail(check, "existing = true, and there is none", advice);
    }
    let bridged = if is_bridged(tap) { ", a port of a bridge" } else { "" };
    // /sys shows the namespace that it was mounted in: where it is another one, nothing is there.
    let flags = read_line(&format!("/sys/class/net/{tap}/tun_flags"));
    match flags.as_deref().and_then(parse_hex) {
        None => report.ok(check, format_args!("is there{bridged}; its flags cannot be read")),
        Some(flags) if flags & IFF_TAP == 0 => {
            report.fail(check, "is a tun, not a tap", "choose another name");
        }
        Some(flags) if workers > 1 && flags & IFF_MULTI_QUEUE == 0 => report.fail(
            check,
            format_args!("has one queue for {workers} workers"),
            format_args!(
                "run: ip tuntap del {tap} mode tap; ip tuntap add {tap} mode tap multi_queue"
            ),
        ),
        Some(_) => report.ok(check, format_args!("is there{bridged}")),
    }
}

fn parse_hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn check_mtu(
    check: &str,
    config: &Config,
    network: &NetworkConfig,
    uplinks: &[Uplink],
    report: &mut Report,
) {
    let sealed = config.cluster.ciphers.iter().any(|cipher| *cipher != Cipher::None);
    let overhead = if sealed { SEALED_OVERHEAD } else { CLEAR_OVERHEAD } as u32 + ETHERNET_LEN;
    let narrowest = uplinks.iter().min_by_key(|uplink| uplink.max_udp_payload());
    let Some(narrowest) = narrowest else { return report.ok(check, "no uplink to compare with") };
    let fits = narrowest.max_udp_payload().saturating_sub(overhead);
    let from = format!("{fits} fit a datagram on {}", narrowest.interface);
    let (wanted, set) = match network.tap_mtu {
        TapMtu::Auto if fits < MIN_IPV6_TAP_MTU.into() => (MIN_IPV6_TAP_MTU.into(), "at least"),
        TapMtu::Auto => return report.ok(check, from),
        TapMtu::Fixed(fixed) => (u32::from(fixed), "fixed"),
    };
    if wanted <= fits {
        return report.ok(check, format_args!("{set} {wanted}; {from}"));
    }
    let underlay = narrowest.ip_mtu + (wanted - fits);
    report.warn(
        check,
        format_args!("{set} {wanted}, and {from}: full frames go as two datagrams"),
        format_args!(
            "run: ip link set {} mtu {underlay} where the path takes it, or set tap_mtu = \"auto\"",
            narrowest.interface
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{config, network, node};
    use crate::doctor::Status;

    fn uplink(ip_mtu: u32) -> Uplink {
        let interface = "eth0".to_owned();
        Uplink { name: "0".into(), address: [192, 0, 2, 1].into(), interface, ip_mtu }
    }

    fn mtu(tap_mtu: TapMtu, ip_mtu: u32) -> (Status, String) {
        let mut report = Report::default();
        let network = NetworkConfig { tap_mtu, ..network(1, &[1]) };
        check_mtu("MTU", &config(vec![node(1)]), &network, &[uplink(ip_mtu)], &mut report);
        let finding = report.findings.remove(0);
        (finding.status, format!("{}; {}", finding.found, finding.advice.unwrap_or_default()))
    }

    #[test]
    fn mtu_of_a_tap_is_compared_with_the_uplinks() {
        assert_eq!(mtu(TapMtu::Auto, 1500).0, Status::Ok);
        assert_eq!(mtu(TapMtu::Fixed(1432), 1500).0, Status::Ok);
        let (status, text) = mtu(TapMtu::Fixed(1500), 1500);
        assert_eq!(status, Status::Warn);
        assert!(text.contains("1432 fit a datagram") && text.contains("eth0 mtu 1568"), "{text}");
        let (status, text) = mtu(TapMtu::Auto, 1300);
        assert!(status == Status::Warn && text.contains("eth0 mtu 1348"), "{text}");
    }

    #[test]
    fn flags_are_hexadecimal() {
        assert_eq!(parse_hex("0x5102"), Some(0x5102));
        assert_eq!(parse_hex("5102"), None);
    }

    #[test]
    fn what_was_lost_is_to_be_switched_off() {
        let mut report = Report::default();
        take_passage("tap TCP read", Some(Passage::Lost), true, "tap_tcp", &mut report);
        take_passage("tap UDP read", Some(Passage::Cut), false, "tap_udp", &mut report);
        take_passage("tap UDP written", None, true, "tap_udp", &mut report);
        let found: Vec<_> = report.findings.iter().map(|f| (f.status, f.advice.clone())).collect();
        let advice = Some("set tap_tcp = false in [offload]".to_owned());
        assert_eq!(found, [(Status::Fail, advice), (Status::Ok, None)]);
    }
}
