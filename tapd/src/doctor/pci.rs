//! Cards that DPDK drives: their drivers, the IOMMU, where they are in the machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use fastpath::affinity;

use super::Report;
use crate::config::{Config, DpdkConfig, Hugepages};

/// The driver that shows a card tapd's memory by an IOMMU, or all memory where there is none.
const VFIO: &str = "vfio-pci";
/// Drivers of the kernel that hand a card over to a process.
const USER_DRIVERS: [&str; 3] = [VFIO, "uio_pci_generic", "igb_uio"];
/// Drivers of the kernel that share a card with a process.
const SHARED_DRIVERS: [&str; 3] = ["mlx5_core", "mlx4_core", "mana"];

/// Where the kernel shows the machine.
#[derive(Debug)]
pub(super) struct Machine {
    /// `/sys`.
    pub(super) sys: PathBuf,
    /// `/dev`.
    dev: PathBuf,
}

/// Hugepages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HugepageSize {
    /// Size of one, in KiB.
    pub(super) kb: u64,
    pub(super) total: u64,
    pub(super) free: u64,
}

impl HugepageSize {
    /// What is free, in MiB.
    pub(super) fn free_mb(&self) -> u64 {
        self.kb * self.free / 1024
    }
}

impl Machine {
    /// This one.
    pub(super) fn real() -> Self {
        Self { sys: PathBuf::from("/sys"), dev: PathBuf::from("/dev") }
    }

    /// The hugepages of every size that the kernel has, the smallest first.
    pub(super) fn hugepages(&self) -> Vec<HugepageSize> {
        let Ok(folder) = fs::read_dir(self.sys.join("kernel/mm/hugepages")) else {
            return Vec::new();
        };
        let size = |path: PathBuf| {
            let name = path.file_name()?.to_str()?;
            let kb = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let number = |file: &str| read(&path.join(file))?.parse().ok();
            let (total, free) = (number("nr_hugepages")?, number("free_hugepages")?);
            Some(HugepageSize { kb, total, free })
        };
        let mut sizes: Vec<_> = folder.filter_map(|entry| size(entry.ok()?.path())).collect();
        sizes.sort_by_key(|size| size.kb);
        sizes
    }

    fn device(&self, address: &str) -> PathBuf {
        self.sys.join("bus/pci/devices").join(address)
    }

    /// Name of the driver that has a card.
    fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.device(address).join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// The kernel's interfaces on a card.
    fn interfaces(&self, address: &str) -> Vec<String> {
        let folder = fs::read_dir(self.device(address).join("net"));
        let names = folder.into_iter().flatten().filter_map(Result::ok);
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Name of the device by which a uio driver hands out a card.
    fn uio(&self, address: &str) -> Option<String> {
        let mut folder = fs::read_dir(self.device(address).join("uio")).ok()?;
        Some(folder.next()?.ok()?.file_name().to_string_lossy().into_owned())
    }

    fn has_iommu(&self) -> bool {
        let groups = fs::read_dir(self.sys.join("kernel/iommu_groups"));
        groups.is_ok_and(|mut groups| groups.next().is_some())
    }

    fn allows_no_iommu(&self) -> bool {
        let flag = self.sys.join("module/vfio/parameters/enable_unsafe_noiommu_mode");
        read(&flag).is_some_and(|text| ["Y", "1"].contains(&text.as_str()))
    }

    fn numa_node(&self, address: &str) -> Option<u32> {
        read(&self.device(address).join("numa_node"))?.parse().ok()
    }

    /// The cores of a NUMA node.
    fn cores_of(&self, node: u32) -> Option<Vec<usize>> {
        let file = self.sys.join(format!("devices/system/node/node{node}/cpulist"));
        core_list(&read(&file)?)
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// `0-3,8` as the kernel writes it.
fn core_list(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

/// Makes the checks of the card that the link `name` is on.
pub(super) fn check(
    machine: &Machine,
    name: &str,
    address: &str,
    config: &Config,
    running: bool,
    report: &mut Report,
) {
    let check = format!("port {name}");
    if !machine.device(address).exists() {
        let advice = "see lspci -D for the addresses of this machine's cards";
        return report.fail(&check, format_args!("there is no PCI device {address}"), advice);
    }
    let bind = format!("run: dpdk-devbind.py --bind=vfio-pci {address}");
    match machine.driver(address) {
        Some(driver) if SHARED_DRIVERS.contains(&driver.as_str()) => {
            report.ok(&check, format_args!("{address}, shared with {driver}"));
        }
        Some(driver) if USER_DRIVERS.contains(&driver.as_str()) => {
            report.ok(&check, format_args!("{address}, held by {driver}"));
            check_iommu(machine, name, &driver, report);
            if driver != VFIO || !machine.has_iommu() {
                check_pages(machine, name, &config.dpdk, running, report);
            }
            if driver == VFIO {
                check_vfio_rights(machine, name, config.dpdk.memory_mb.into(), report);
            } else {
                check_uio_rights(machine, name, address, &driver, report);
            }
        }
        Some(driver) => {
            let on = machine.interfaces(address).join(", ");
            let lost = if on.is_empty() { on } else { format!("; interface {on} goes away then") };
            let found = format!("{address} is driven by the kernel's {driver}");
            report.fail(&check, found, format_args!("{bind}{lost}"));
        }
        None => report.fail(&check, format_args!("{address} has no driver"), bind),
    }
    check_numa(machine, name, address, config.daemon.workers, report);
}

fn check_iommu(machine: &Machine, name: &str, driver: &str, report: &mut Report) {
    let check = format!("iommu {name}");
    if driver != VFIO {
        let advice = "boot with intel_iommu=on or amd_iommu=on, and bind the card to vfio-pci";
        return report.warn(&check, format_args!("{driver}: the card reaches all memory"), advice);
    }
    match (machine.has_iommu(), machine.allows_no_iommu()) {
        (true, _) => report.ok(&check, "the card reaches tapd's memory only"),
        (false, true) => report.warn(
            &check,
            "there is none, and vfio does without: the card reaches all memory",
            "boot with intel_iommu=on or amd_iommu=on, if the machine has one",
        ),
        (false, false) => report.fail(
            &check,
            "there is none, and vfio needs one",
            format_args!(
                "boot with intel_iommu=on or amd_iommu=on; or, where the card may reach all \
                 memory, run: echo 1 > {}/module/vfio/parameters/enable_unsafe_noiommu_mode",
                machine.sys.display()
            ),
        ),
    }
}

/// A card that no IOMMU stands in front of is told physical addresses, which DPDK has only for
/// hugepages.
fn check_pages(
    machine: &Machine,
    name: &str,
    config: &DpdkConfig,
    running: bool,
    report: &mut Report,
) {
    let check = format!("memory {name}");
    let wanted = u64::from(config.memory_mb);
    let free: u64 = machine.hugepages().iter().map(HugepageSize::free_mb).sum();
    match config.hugepages {
        Hugepages::Never => report.fail(
            &check,
            "the card wants physical addresses, and with hugepages = false there are none",
            "set hugepages = \"auto\" in [dpdk], or bind the card to vfio-pci behind an IOMMU",
        ),
        // A daemon that runs has those that are not free.
        _ if free >= wanted || running => report.ok(&check, "in hugepages, as the card wants it"),
        Hugepages::Auto | Hugepages::Always => report.fail(
            &check,
            format_args!("the card wants hugepages: {free} MiB are free, {wanted} are wanted"),
            "do as \"hugepages\" above says",
        ),
    }
}

/// The device that a uio driver made for the card.
fn check_uio_rights(
    machine: &Machine,
    name: &str,
    address: &str,
    driver: &str,
    report: &mut Report,
) {
    let check = format!("rights {name}");
    let Some(number) = machine.uio(address) else {
        return report.fail(
            &check,
            format_args!("{driver} made no uio device for {address}"),
            format_args!("run: dpdk-devbind.py --bind={driver} {address}"),
        );
    };
    let device = machine.dev.join(number);
    match open_both_ways(&device) {
        Ok(()) => report.ok(&check, format_args!("{} opens", device.display())),
        Err(error) => report.fail(
            &check,
            format_args!("{}: {error}", device.display()),
            "start tapd as root, and in a container add the device (--device)",
        ),
    }
}

fn open_both_ways(device: &Path) -> io::Result<()> {
    fs::OpenOptions::new().read(true).write(true).open(device).map(drop)
}

/// vfio's device, and how much memory may be shown to cards.
fn check_vfio_rights(machine: &Machine, name: &str, wanted_mb: u64, report: &mut Report) {
    let check = format!("rights {name}");
    let container = machine.dev.join("vfio/vfio");
    if let Err(error) = open_both_ways(&container) {
        return report.fail(
            &check,
            format_args!("{}: {error}", container.display()),
            "run: modprobe vfio-pci, and start tapd as root",
        );
    }
    let unlimited = caps::has_cap(None, CapSet::Effective, Capability::CAP_IPC_LOCK);
    let limit = read(Path::new("/proc/self/limits")).and_then(|text| locked_limit_mb(&text));
    match limit.filter(|limit| *limit < wanted_mb && !unlimited.unwrap_or(false)) {
        Some(limit) => report.fail(
            &check,
            format_args!("{limit} MiB may be locked, and {wanted_mb} are wanted"),
            "set LimitMEMLOCK=infinity in the systemd unit, or run: ulimit -l unlimited",
        ),
        None => report.ok(&check, format_args!("{} opens", container.display())),
    }
}

/// How much memory may be locked, of /proc/self/limits; none is no limit.
fn locked_limit_mb(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max locked memory"))?;
    let bytes: u64 = line.split_whitespace().nth(3)?.parse().ok()?;
    Some(bytes >> 20)
}

fn check_numa(machine: &Machine, name: &str, address: &str, workers: usize, report: &mut Report) {
    let check = format!("numa {name}");
    // A machine of one node has none to tell apart.
    let Some(node) = machine.numa_node(address) else { return };
    let Some(near) = machine.cores_of(node) else { return };
    let allowed = affinity::allowed_cores().unwrap_or_default();
    // Workers are pinned to the first ones.
    let far = allowed.iter().take(workers).filter(|core| !near.contains(core)).count();
    if far == 0 {
        return report
            .ok(&check, format_args!("the card and the workers' cores are on node {node}"));
    }
    let cores: Vec<_> = near.iter().map(ToString::to_string).collect();
    report.warn(
        &check,
        format_args!("the card is on node {node}, and {far} of {workers} workers' cores are not"),
        format_args!(
            "set CPUAffinity={0} in the systemd unit, or run tapd with taskset -c {0}",
            cores.join(",")
        ),
    );
}

#[cfg(test)]
impl Machine {
    /// One in a directory, which lives as long as what comes with it.
    pub(super) fn fake() -> (Self, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { sys: dir.path().join("sys"), dev: dir.path().join("dev") };
        (machine, dir)
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn add_hugepages(&self, size: HugepageSize) {
        let folder = self.sys.join(format!("kernel/mm/hugepages/hugepages-{}kB", size.kb));
        Self::write(&folder.join("nr_hugepages"), &format!("{}\n", size.total));
        Self::write(&folder.join("free_hugepages"), &format!("{}\n", size.free));
    }

    fn add_card(&self, address: &str, driver: &str) {
        let device = self.device(address);
        fs::create_dir_all(&device).unwrap();
        let _ = fs::remove_file(device.join("driver"));
        std::os::unix::fs::symlink(format!("../drivers/{driver}"), device.join("driver")).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;
    use crate::doctor::Status;

    const CARD: &str = "0000:3b:00.0";

    fn examine(machine: &Machine) -> Vec<(String, Status, String)> {
        examine_with(machine, Hugepages::Auto, false)
    }

    fn examine_with(
        machine: &Machine,
        hugepages: Hugepages,
        running: bool,
    ) -> Vec<(String, Status, String)> {
        let mut report = Report::default();
        let mut config = testing::config(vec![testing::node(1)]);
        config.dpdk.hugepages = hugepages;
        config.dpdk.memory_mb = 256;
        check(machine, "fast", CARD, &config, running, &mut report);
        let line = |f: super::super::Finding| {
            (f.check, f.status, format!("{}; {}", f.found, f.advice.unwrap_or_default()))
        };
        report.findings.into_iter().map(line).collect()
    }

    #[test]
    fn cards_are_looked_at_step_by_step() {
        let (machine, _dir) = Machine::fake();
        let lines = examine(&machine);
        assert!(lines.len() == 1 && lines[0].2.contains("lspci -D"), "{lines:?}");
        machine.add_card(CARD, "ixgbe");
        fs::create_dir_all(machine.device(CARD).join("net/eth7")).unwrap();
        let lines = examine(&machine);
        assert!(lines[0].2.contains("--bind=vfio-pci 0000:3b:00.0"), "{lines:?}");
        assert!(lines[0].2.contains("interface eth7 goes away"), "{lines:?}");
        machine.add_card(CARD, "mlx5_core");
        assert!(examine(&machine).iter().all(|line| line.1 == Status::Ok));
        machine.add_card(CARD, "vfio-pci");
        let lines = examine(&machine);
        let status: Vec<_> = lines.iter().map(|line| (line.0.as_str(), line.1)).collect();
        let expected = [
            ("port fast", Status::Ok),
            ("iommu fast", Status::Fail),
            ("memory fast", Status::Fail),
            ("rights fast", Status::Fail),
        ];
        assert_eq!(status, expected, "{lines:?}");
        Machine::write(&machine.dev.join("vfio/vfio"), "");
        let flag = machine.sys.join("module/vfio/parameters/enable_unsafe_noiommu_mode");
        Machine::write(&flag, "Y\n");
        let lines = examine(&machine);
        assert_eq!(lines[1].1, Status::Warn, "{lines:?}");
        fs::create_dir_all(machine.sys.join("kernel/iommu_groups/0")).unwrap();
        let lines = examine_with(&machine, Hugepages::Never, false);
        assert_eq!(lines[1].1, Status::Ok);
        assert!(!lines.iter().any(|line| line.0 == "memory fast"), "ordinary pages do: {lines:?}");
    }

    #[test]
    fn cards_behind_uio_need_hugepages_and_their_own_device() {
        let (machine, _dir) = Machine::fake();
        machine.add_card(CARD, "uio_pci_generic");
        // It is none of theirs.
        Machine::write(&machine.dev.join("vfio/vfio"), "");
        let line = |hugepages, running, check: &str| {
            let lines = examine_with(&machine, hugepages, running);
            lines.into_iter().find(|line| line.0 == check).unwrap()
        };
        let rights = || line(Hugepages::Auto, false, "rights fast");
        assert!(
            rights().1 == Status::Fail && rights().2.contains("no uio device"),
            "{rights:?}",
            rights = rights()
        );
        fs::create_dir_all(machine.device(CARD).join("uio/uio7")).unwrap();
        assert!(
            rights().1 == Status::Fail && rights().2.contains("uio7: "),
            "{rights:?}",
            rights = rights()
        );
        Machine::write(&machine.dev.join("uio7"), "");
        assert!(
            rights().1 == Status::Ok && rights().2.contains("uio7 opens"),
            "{rights:?}",
            rights = rights()
        );

        let memory = |hugepages, running| line(hugepages, running, "memory fast").1;
        assert_eq!(memory(Hugepages::Auto, false), Status::Fail, "ordinary pages do not do");
        assert_eq!(memory(Hugepages::Always, true), Status::Ok, "the daemon has them");
        machine.add_hugepages(HugepageSize { kb: 2048, total: 128, free: 128 });
        assert_eq!(memory(Hugepages::Auto, false), Status::Ok);
        let (_, status, text) = line(Hugepages::Never, true, "memory fast");
        assert!(status == Status::Fail && text.contains("hugepages = \"auto\""), "{text}");
    }

    #[test]
    fn cores_far_from_the_card_are_named() {
        let (machine, _dir) = Machine::fake();
        machine.add_card(CARD, "mlx5_core");
        Machine::write(&machine.device(CARD).join("numa_node"), "1\n");
        let cores = machine.sys.join("devices/system/node/node1/cpulist");
        Machine::write(&cores, "2000-2001,2004\n");
        let lines = examine(&machine);
        assert!(lines[1].2.contains("taskset -c 2000,2001,2004"), "{lines:?}");
        Machine::write(&cores, "0-2047\n");
        assert_eq!(examine(&machine)[1].1, Status::Ok);
        Machine::write(&machine.device(CARD).join("numa_node"), "-1\n");
        assert_eq!(examine(&machine).len(), 1);
    }

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
            Max locked memory         8388608              8388608              bytes\n";
        assert_eq!(locked_limit_mb(text), Some(8));
        assert_eq!(locked_limit_mb(&text.replace("8388608", "unlimited")), None);
        assert_eq!(core_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(core_list(""), Some(vec![]));
        assert_eq!(core_list("x"), None);
    }
}
