//! Cards that DPDK drives: their drivers, the IOMMU, where they are in the machine.

use std::fs;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use fastpath::affinity;

use super::Report;
use crate::config::Config;

/// Drivers of the kernel that hand a card over to a process.
const USER_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];
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
            check_rights(machine, name, config.dpdk.memory_mb.into(), report);
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
    if driver != "vfio-pci" {
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

/// vfio's device, and how much memory may be shown to cards.
fn check_rights(machine: &Machine, name: &str, wanted_mb: u64, report: &mut Report) {
    let check = format!("rights {name}");
    let container = machine.dev.join("vfio/vfio");
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(&container) {
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
        let mut report = Report::default();
        check(machine, "fast", CARD, &testing::config(vec![testing::node(1)]), &mut report);
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
            ("rights fast", Status::Fail),
        ];
        assert_eq!(status, expected, "{lines:?}");
        Machine::write(&machine.dev.join("vfio/vfio"), "");
        let flag = machine.sys.join("module/vfio/parameters/enable_unsafe_noiommu_mode");
        Machine::write(&flag, "Y\n");
        let lines = examine(&machine);
        assert_eq!(lines[1].1, Status::Warn, "{lines:?}");
        fs::create_dir_all(machine.sys.join("kernel/iommu_groups/0")).unwrap();
        assert_eq!(examine(&machine)[1].1, Status::Ok);
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
