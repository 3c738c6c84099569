//! The machine as a whole: kernel, privileges, clocks, cores.

use std::fs::OpenOptions;
use std::io;

use caps::{CapSet, Capability};
use fastpath::{affinity, probe};

use super::{Report, read_line, sysctl, workers};
use crate::config::Config;

/// Clock sources that are read without leaving the processor for long.
const FAST_CLOCKS: [&str; 6] = [
    "tsc",
    "kvm-clock",
    "arch_sys_counter",
    "hyperv_clocksource_tsc_page",
    "riscv_clocksource",
    "timebase",
];

/// Makes the checks; says whether CAP_NET_ADMIN is there.
pub(super) fn check(config: Option<&Config>, report: &mut Report) -> bool {
    kernel(report);
    tun_device(report);
    let net_admin = capabilities(report);
    clock_source(report);
    wall_clock(report);
    cores(config, report);
    aes(report);
    conntrack(report);
    net_admin
}

fn kernel(report: &mut Report) {
    let release = sysctl("kernel/osrelease").unwrap_or_default();
    let found = format!("Linux {release}");
    let lacks = match version(&release) {
        None => "no version that is understood",
        Some((6.., 2..) | (7.., _)) => return report.ok("kernel", found),
        Some((5.., _)) => "no super-frames of UDP at taps",
        Some((4, 18..)) => "no super-frames of UDP at taps, no runs of datagrams that arrive",
        Some(_) => "no super-frames of UDP at taps, no runs of datagrams",
    };
    report.warn("kernel", format_args!("{found}: {lacks}"), "Linux 6.2 or later has all");
}

/// Major and minor number.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn tun_device(report: &mut Report) {
    let check = "tun device";
    let found = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(found) {
        Ok(_) => report.ok(check, format_args!("{found} opens")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => report.fail(
            check,
            format_args!("{found}: {error}"),
            "run: chmod 666 /dev/net/tun, or allow a container the device (--device /dev/net/tun)",
        ),
        Err(error) => report.fail(
            check,
            format_args!("{found}: {error}"),
            "run: modprobe tun, or give a container the device (--device /dev/net/tun)",
        ),
    }
}

fn capabilities(report: &mut Report) -> bool {
    let held = caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN);
    match &held {
        Ok(true) => report.ok("privileges", "CAP_NET_ADMIN, which is all that tapd needs"),
        Ok(false) => report.fail(
            "privileges",
            "CAP_NET_ADMIN is missing",
            "run as root, with AmbientCapabilities=CAP_NET_ADMIN in the systemd unit, or with \
             --cap-add NET_ADMIN in a container",
        ),
        Err(error) => report.warn("privileges", error, "run as root"),
    }
    held.unwrap_or(false)
}

fn clock_source(report: &mut Report) {
    let directory = "/sys/devices/system/clocksource/clocksource0";
    let Some(current) = read_line(&format!("{directory}/current_clocksource")) else {
        return report.ok("clock source", "the kernel does not say");
    };
    if FAST_CLOCKS.contains(&current.as_str()) {
        return report.ok("clock source", current);
    }
    let others = read_line(&format!("{directory}/available_clocksource")).unwrap_or_default();
    let better = others.split_whitespace().find(|name| FAST_CLOCKS.contains(name));
    let advice = match better {
        Some(name) => format!("run: echo {name} > {directory}/current_clocksource"),
        None => "boot with tsc=reliable if the processor's counter can be trusted".to_owned(),
    };
    let found = format_args!("{current}: slow to read, and tapd reads it for every burst");
    report.warn("clock source", found, advice);
}

fn wall_clock(report: &mut Report) {
    match probe::is_clock_synchronised() {
        Ok(true) => report.ok("wall clock", "follows a time server"),
        Ok(false) => report.warn(
            "wall clock",
            "follows no other clock; one that is set back makes peers refuse this node's \
             handshakes after a restart",
            "run: timedatectl set-ntp true, or start chrony",
        ),
        Err(error) => report.ok("wall clock", format_args!("the kernel does not say: {error}")),
    }
}

fn cores(config: Option<&Config>, report: &mut Report) {
    let (cores, workers) = (affinity::available_cores(), workers(config));
    let dedicated = config.is_some_and(|config| config.daemon.dedicated);
    let found = format!("{cores} for tapd, {workers} wanted as workers");
    if dedicated && workers >= cores {
        let advice = "set dedicated = false or fewer workers in [daemon]";
        report.warn("cores", format_args!("{found}, dedicated: none is left"), advice);
    } else if workers > cores {
        let advice = format!("set workers = {cores} in [daemon]");
        report.warn("cores", found, advice);
    } else {
        report.ok("cores", found);
    }
}

fn aes(report: &mut Report) {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let found = aes_features(&text);
    if found.contains(&"aes") && (found.contains(&"pclmulqdq") || found.contains(&"pmull")) {
        let found = found.join(", ");
        report.ok("aes", format_args!("in the processor: {found}; tapd bench-crypto measures it"));
    } else {
        let advice = "give the virtual machine the host's processor (-cpu host), or expect a \
            fraction of the throughput; tapd bench-crypto measures it";
        report.warn("aes", "the processor does not say that it helps", advice);
    }
}

/// What /proc/cpuinfo says of AES-GCM, on x86 (`flags`) and ARM (`Features`).
fn aes_features(cpuinfo: &str) -> Vec<&str> {
    const WANTED: [&str; 6] = ["aes", "pclmulqdq", "vaes", "vpclmulqdq", "avx512f", "pmull"];
    let line = cpuinfo.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
    let words = line.and_then(|line| line.split_once(':')).map_or("", |(_, words)| words);
    words.split_whitespace().filter(|word| WANTED.contains(word)).collect()
}

fn conntrack(report: &mut Report) {
    let value = |name: &str| sysctl(&format!("net/netfilter/{name}"))?.parse::<u64>().ok();
    let (Some(count), Some(max)) = (value("nf_conntrack_count"), value("nf_conntrack_max")) else {
        return report.ok("conntrack", "not loaded");
    };
    let timeout = value("nf_conntrack_udp_timeout_stream").unwrap_or(0);
    let found = format!("{count} of {max} connections, UDP forgotten after {timeout} s");
    if count > max - max / 10 {
        let advice = super::set_sysctl("net/netfilter/nf_conntrack_max", max.saturating_mul(2));
        report.warn(
            "conntrack",
            format_args!("{found}: almost full, it drops what is new"),
            advice,
        );
    } else {
        report.ok("conntrack", found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.10.0-8-amd64"), Some((5, 10)));
        assert_eq!(version("7.0"), Some((7, 0)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn processors_say_what_they_have() {
        let x86 = "processor\t: 0\nflags\t\t: fpu vme aes pclmulqdq vaes\nbugs\t: x\n";
        assert_eq!(aes_features(x86), ["aes", "pclmulqdq", "vaes"]);
        let arm = "Features\t: fp asimd aes pmull sha1\n";
        assert_eq!(aes_features(arm), ["aes", "pmull"]);
        assert!(aes_features("flags : aesimd\n").is_empty());
    }

    #[test]
    fn this_machine_is_examined_to_the_end() {
        let mut report = Report::default();
        check(None, &mut report);
        let checks: Vec<_> = report.findings.iter().map(|f| f.check.as_str()).collect();
        let expected = [
            "kernel",
            "tun device",
            "privileges",
            "clock source",
            "wall clock",
            "cores",
            "aes",
            "conntrack",
        ];
        assert_eq!(checks, expected);
    }
}
