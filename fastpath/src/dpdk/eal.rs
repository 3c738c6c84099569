//! DPDK's environment: started once, on a thread of its own.

use std::ffi::{CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dpdk_sys::Api;
use log::Level;

use super::{DpdkError, check};

/// Whether packet memory lies in hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hugepages {
    /// Where the machine has enough free ones.
    #[default]
    Auto,
    /// Or not at all.
    Always,
    /// In ordinary pages: slower to reach, and cards can be driven only behind an IOMMU, which
    /// makes scattered pages one piece.
    Never,
}

/// How DPDK is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EalOptions {
    /// The shim's file; looked for without it.
    pub shim: Option<PathBuf>,
    /// Packet memory in MiB.
    pub memory_mb: u32,
    /// Where it lies.
    pub hugepages: Hugepages,
    /// The cards that are to be driven; others are left alone. PCI addresses, each with the
    /// arguments of its driver behind a comma, if it has any: DPDK opens cards as it starts, and
    /// does not look at what [`super::PortOptions::device`] says behind the address.
    pub pci: Vec<String>,
    /// Further arguments, as DPDK's documentation names them.
    pub extra: Vec<String>,
}

impl Default for EalOptions {
    fn default() -> Self {
        let hugepages = Hugepages::default();
        Self { shim: None, memory_mb: 128, hugepages, pci: Vec::new(), extra: Vec::new() }
    }
}

/// DPDK's environment, started. Any number of handles stand for the same.
#[derive(Debug, Clone)]
pub struct Eal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: Api,
    hugepages: bool,
    /// Whether there are cards to be driven.
    cards: bool,
    /// DPDK's calls that change ports and pools are not made for several threads.
    control: Mutex<()>,
}

/// A process starts DPDK once, for ever.
static STARTED: Mutex<Option<Eal>> = Mutex::new(None);

impl Eal {
    /// Starts DPDK, or gives what was started before, whatever the options said then.
    ///
    /// # Errors
    /// The shim is missing, or DPDK does not start; it cannot be tried again with success.
    pub fn start(options: &EalOptions) -> Result<Self, DpdkError> {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(eal) = &*started {
            return Ok(eal.clone());
        }
        let api = Api::load(options.shim.as_deref())?;
        let hugepages = match options.hugepages {
            Hugepages::Auto => free_hugepage_mb() >= u64::from(options.memory_mb),
            Hugepages::Always => true,
            Hugepages::Never => false,
        };
        let arguments = arguments(options, hugepages)?;
        log::debug!("EAL arguments: {arguments:?}");
        let arguments: Vec<_> = arguments
            .into_iter()
            .map(|text| CString::new(text.clone()).map_err(|_| DpdkError::BadArgument(text)))
            .collect::<Result<_, _>>()?;
        // It pins the thread that calls and changes its name: that is none of ours.
        let api = std::thread::spawn(move || initialize(api, arguments))
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("its thread panicked")))
            .map_err(|source| DpdkError::Start { source, hint: hint(hugepages) })?;
        let cards = !options.pci.is_empty();
        let eal = Self(Arc::new(Inner { api, hugepages, cards, control: Mutex::default() }));
        *started = Some(eal.clone());
        Ok(eal)
    }

    /// DPDK, where it was started.
    #[must_use]
    pub fn get() -> Option<Self> {
        STARTED.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the calling thread one of DPDK's. Threads that are not take twice the time for each
    /// buffer.
    ///
    /// # Errors
    /// There are as many as DPDK takes (128).
    pub fn register_thread(&self) -> std::io::Result<()> {
        // SAFETY: the call concerns the calling thread only, and DPDK is started.
        check(unsafe { (self.api().thread_register)() }).map(drop)
    }

    /// Name and version of DPDK.
    #[must_use]
    pub fn version(&self) -> String {
        self.api().dpdk_version()
    }

    /// The shim's file.
    #[must_use]
    pub fn shim(&self) -> &Path {
        self.api().path()
    }

    /// Whether packet memory lies in hugepages.
    #[must_use]
    pub fn hugepages(&self) -> bool {
        self.0.hugepages
    }

    /// Whether an argument that DPDK calls invalid may be its word for packet memory that cards
    /// cannot reach: in scattered pages, and no IOMMU to make one piece of them.
    pub(super) fn may_need_hugepages(&self, source: &std::io::Error) -> bool {
        self.0.cards && !self.0.hugepages && source.raw_os_error() == Some(libc::EINVAL)
    }

    pub(super) fn api(&self) -> &Api {
        &self.0.api
    }

    /// Runs what no other thread may do at the same time.
    pub(super) fn control<T>(&self, act: impl FnOnce(&Api) -> T) -> T {
        let _one_at_a_time = self.0.control.lock().unwrap_or_else(PoisonError::into_inner);
        act(&self.0.api)
    }
}

fn initialize(api: Api, arguments: Vec<CString>) -> std::io::Result<Api> {
    let mut pointers: Vec<*mut c_char> =
        arguments.into_iter().map(CString::into_raw).chain([std::ptr::null_mut()]).collect();
    let count = i32::try_from(pointers.len() - 1).unwrap_or(0);
    // SAFETY: `take_log` may be called from any thread at any time, and lives for ever.
    check(unsafe { (api.log_to)(take_log) })?;
    // SAFETY: `pointers` has `count` C strings and a null behind them. DPDK keeps pointers to the
    // strings, which `into_raw` has leaked for that; the array itself it only permutes.
    check(unsafe { (api.eal_init)(count, pointers.as_mut_ptr()) })?;
    Ok(api)
}

const fn hint(hugepages: bool) -> &'static str {
    if hugepages {
        "its own words are in the log; hugepages must be free and the process root"
    } else {
        "its own words are in the log"
    }
}

fn arguments(options: &EalOptions, hugepages: bool) -> Result<Vec<String>, DpdkError> {
    let ends = |argument: &str| {
        let name = argument.split('=').next().unwrap_or_default();
        ["-h", "--help", "-v", "--version", "--proc-type", "--no-huge", "--in-memory"]
            .contains(&name)
    };
    if let Some(bad) = options.extra.iter().find(|argument| ends(argument)) {
        return Err(DpdkError::BadArgument(bad.clone()));
    }
    let text = str::to_owned;
    // The first CPU set that this process may use: nothing is pinned by that.
    let mut all = vec![text("tapd"), text("--no-telemetry")];
    let cores = crate::affinity::allowed_cores().unwrap_or_default();
    if !cores.is_empty() {
        let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
        all.push(format!("--lcores=0@({})", cores.join(",")));
    }
    // Nothing is shared under it: one directory for all, instead of one that each leaves behind.
    all.push(text("--file-prefix=tapd"));
    all.extend([text("-m"), options.memory_mb.to_string()]);
    if hugepages {
        // One file for all of it: a vhost-user connection takes at most eight regions.
        all.extend([text("--in-memory"), text("--single-file-segments")]);
    } else {
        all.extend([text("--no-huge"), text("--no-shconf")]);
    }
    if options.pci.is_empty() {
        all.extend([text("--no-pci"), text("--iova-mode=va")]);
    }
    for address in &options.pci {
        all.push(format!("--allow={address}"));
    }
    all.extend(options.extra.iter().cloned());
    Ok(all)
}

/// MiB of free hugepages of the sizes that the machine has.
fn free_hugepage_mb() -> u64 {
    let Ok(folder) = fs::read_dir("/sys/kernel/mm/hugepages") else { return 0 };
    let size_mb = |path: &Path| -> Option<u64> {
        let kb = path.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let free = fs::read_to_string(path.join("free_hugepages")).ok()?;
        Some(kb.parse::<u64>().ok()? * free.trim().parse::<u64>().ok()? / 1024)
    };
    folder.filter_map(|entry| size_mb(&entry.ok()?.path())).sum()
}

/// DPDK's log becomes ours.
///
/// # Safety
/// `text` is readable for `len` bytes while this runs.
unsafe extern "C" fn take_log(level: u32, text: *const c_char, len: usize) {
    // Emergency to error, warning, notice, info, debug (`rte_log.h`). Its notices are what
    // administrators look for only when something is wrong.
    let level = match level {
        0..=4 => Level::Error,
        5 => Level::Warn,
        6 | 7 => Level::Debug,
        _ => Level::Trace,
    };
    // SAFETY: by contract; the shim, the only caller, keeps to it.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    for line in String::from_utf8_lossy(bytes).lines().filter(|line| !line.trim().is_empty()) {
        log::log!(target: "dpdk", level, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_would_end_the_process_are_refused() {
        let options =
            |extra: &str| EalOptions { extra: vec![extra.to_owned()], ..EalOptions::default() };
        for bad in ["--help", "-v", "--proc-type=secondary"] {
            let error = arguments(&options(bad), false).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
        let fine = arguments(&options("--log-level=8"), false).unwrap();
        assert_eq!(fine.last().map(String::as_str), Some("--log-level=8"));
    }

    #[test]
    fn cards_are_driven_only_when_they_are_named() {
        let none = arguments(&EalOptions::default(), false).unwrap();
        assert!(none.contains(&"--no-pci".to_owned()) && none.contains(&"--no-huge".to_owned()));
        let pci = vec!["0000:3b:00.0".to_owned(), "0000:3b:00.1,key=1".to_owned()];
        let one = arguments(&EalOptions { pci, ..EalOptions::default() }, true).unwrap();
        assert!(one.contains(&"--allow=0000:3b:00.0".to_owned()), "{one:?}");
        assert!(one.contains(&"--allow=0000:3b:00.1,key=1".to_owned()), "{one:?}");
        // Without an IOMMU cards want physical addresses: the bus knows which.
        assert!(!one.iter().any(|argument| argument.starts_with("--iova-mode")), "{one:?}");
        assert!(!one.contains(&"--no-pci".to_owned()), "{one:?}");
        assert!(one.contains(&"--single-file-segments".to_owned()), "{one:?}");
    }
}
