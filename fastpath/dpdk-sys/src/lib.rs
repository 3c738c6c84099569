//! The narrow interface between tapd and DPDK.
//!
//! A small C library, the shim, keeps DPDK's inline functions and structures on its side and is
//! loaded at run time, so that one `tapd` binary runs on hosts with and without DPDK.
//! `build-shim` builds it against the DPDK of the machine, 22.11 or later. [`Api::load`] looks for
//! it; nothing here pretends to be one that is missing.
//!
//! `shim/tapd-dpdk.h` documents each call. Results are 0 or a count, or the negative of an errno;
//! sizes are in bytes. The safe layer is `fastpath::dpdk`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

/// The interface's version; a shim with another one is refused.
pub const ABI: u32 = 2;
/// Name of the shim's file.
pub const SHIM: &str = "libtapd-dpdk.so.1";
/// Environment variable that names the shim's file, before all other places.
pub const SHIM_VARIABLE: &str = "TAPD_DPDK_SHIM";
/// Packets that one call of [`Api::rx`] gives at most.
pub const MAX_BURST: usize = 64;

/// The L4 checksum of a received packet holds only the pseudo-header sum.
pub const RX_L4_PARTIAL: u32 = 1 << 0;
/// The port found the L4 checksum right.
pub const RX_L4_GOOD: u32 = 1 << 1;
/// The port found the L4 checksum wrong.
pub const RX_L4_BAD: u32 = 1 << 2;
/// The port found the IPv4 header checksum wrong.
pub const RX_IP_BAD: u32 = 1 << 3;
/// The port found the IPv4 header checksum right.
pub const RX_IP_GOOD: u32 = 1 << 4;
/// A received packet stands for several segments of `segment_size` payload bytes.
pub const RX_SUPER: u32 = 1 << 5;
/// The next entry is a further segment of the same packet.
pub const TX_MORE: u32 = 1 << 16;
/// The packet to be sent is IPv4.
pub const TX_IPV4: u32 = 1 << 17;
/// The packet to be sent is IPv6.
pub const TX_IPV6: u32 = 1 << 18;
/// Device or guest completes the TCP checksum.
pub const TX_TCP_SUM: u32 = 1 << 19;
/// Device or guest completes the UDP checksum.
pub const TX_UDP_SUM: u32 = 1 << 20;
/// Device or guest cuts the packet into TCP segments of `segment_size` payload bytes.
pub const TX_TCP_SEG: u32 = 1 << 21;

/// The port checks TCP and UDP checksums.
pub const CAP_RX_L4_SUM: u32 = 1 << 0;
/// The port checks IPv4 header checksums.
pub const CAP_RX_IP_SUM: u32 = 1 << 1;
/// The port spreads large packets over several buffers.
pub const CAP_RX_SCATTER: u32 = 1 << 2;
/// The port completes TCP checksums.
pub const CAP_TX_TCP_SUM: u32 = 1 << 3;
/// The port completes UDP checksums.
pub const CAP_TX_UDP_SUM: u32 = 1 << 4;
/// The port writes IPv4 header checksums.
pub const CAP_TX_IP_SUM: u32 = 1 << 5;
/// The port cuts TCP super-frames.
pub const CAP_TX_TCP_SEG: u32 = 1 << 6;
/// The port sends packets of several buffers.
pub const CAP_TX_MULTI: u32 = 1 << 7;
/// The port gives TCP super-frames.
pub const CAP_RX_LRO: u32 = 1 << 8;

/// A packet, or a segment of one.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// DPDK's buffer.
    pub mbuf: *mut c_void,
    /// First byte of the first segment.
    pub data: *mut u8,
    /// Bytes of the first segment.
    pub len: u32,
    /// Bytes of all segments.
    pub total: u32,
    /// Bytes that may be written at `data`.
    pub room: u32,
    /// `RX_` or `TX_` bits.
    pub flags: u32,
    /// Number of segments.
    pub segments: u16,
    /// Payload bytes of each segment of a super-frame.
    pub segment_size: u16,
    /// Bytes of Ethernet header with tags, where a flag asks for work.
    pub l2_len: u16,
    /// Bytes of IP header.
    pub l3_len: u16,
    /// Bytes of TCP header.
    pub l4_len: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

impl Packet {
    /// No packet.
    pub const EMPTY: Self = Self {
        mbuf: std::ptr::null_mut(),
        data: std::ptr::null_mut(),
        len: 0,
        total: 0,
        room: 0,
        flags: 0,
        segments: 0,
        segment_size: 0,
        l2_len: 0,
        l3_len: 0,
        l4_len: 0,
        reserved: [0; 3],
    };
}

/// What a port is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PortInfo {
    /// Name of its driver, ended by a zero byte.
    pub driver: [u8; 32],
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Most receive queues.
    pub max_rx_queues: u16,
    /// Most transmit queues.
    pub max_tx_queues: u16,
    /// Smallest MTU.
    pub min_mtu: u16,
    /// Largest MTU.
    pub max_mtu: u16,
    /// MTU at the moment.
    pub mtu: u16,
    /// Largest frame that it receives.
    pub max_frame_len: u32,
    /// `CAP_` bits.
    pub capabilities: u32,
    /// NUMA node, or -1.
    pub numa_node: i32,
    /// Index of the kernel interface behind it, or 0.
    pub if_index: u32,
}

/// What a port is to do; see `td_port_start`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PortConfig {
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Descriptors of each receive queue; in and out.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue; in and out.
    pub tx_descriptors: u16,
    /// Largest layer-3 packet, 0 for the driver's own; in and out.
    pub mtu: u16,
    /// Whether receive interrupts are wanted, and whether they are configured; in and out.
    pub rx_interrupts: u16,
    /// `CAP_` bits to be used, and those in use; in and out.
    pub capabilities: u32,
    /// Where received packets are kept.
    pub pool: *mut c_void,
}

/// What a port counted.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets dropped, the port's ring being full.
    pub rx_missed: u64,
    /// Packets received with errors.
    pub rx_errors: u64,
    /// Packets not sent.
    pub tx_errors: u64,
    /// Packets dropped for lack of buffers.
    pub rx_no_mbuf: u64,
}

/// State of a port's link.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    /// Mbit/s.
    pub speed_mbps: u32,
    /// 1 when it is up.
    pub up: u8,
    /// 1 when it is full duplex.
    pub full_duplex: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// What is known of the guest of a vhost-user port; written by DPDK's own thread.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VhostState {
    /// Negotiated virtio features, with [`VHOST_GUEST`] while there is a guest.
    pub features: AtomicU64,
    /// A bit for each queue that the guest takes from.
    pub tx_queues: AtomicU64,
}

/// There is a guest.
pub const VHOST_GUEST: u64 = 1 << 63;

/// Takes a line of DPDK's log: its level (1 emergency to 8 debug), its bytes.
pub type LogFn = unsafe extern "C" fn(level: u32, text: *const c_char, len: usize);

/// Why the shim is not there.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is in none of the places.
    #[error(
        "{SHIM} is not installed; looked for it at {}. Install tapd's DPDK shim, or build it with \
         fastpath/dpdk-sys/build-shim (Debian: apt install libdpdk-dev) and name it in {SHIM_VARIABLE}",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NotFound(Vec<PathBuf>),
    /// It is there and cannot be loaded: usually DPDK is missing.
    #[error(
        "{path} cannot be loaded: {reason}. It needs the DPDK that it was built with (Debian: \
         apt install dpdk librte-net-vhost23)"
    )]
    NotLoadable {
        /// Its file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// It is for another tapd.
    #[error(
        "{path} is of interface version {found}, and this tapd needs {ABI}; install the one that came with it"
    )]
    OtherVersion {
        /// Its file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

macro_rules! api {
    ($( $(#[$doc:meta])* $field:ident = $symbol:literal : unsafe extern "C" fn($($arg:ty),* $(,)?) $(-> $ret:ty)?; )*) => {
        /// The shim's calls. What each asks of its caller is in `shim/tapd-dpdk.h`.
        pub struct Api {
            path: PathBuf,
            $( $(#[$doc])* pub $field: unsafe extern "C" fn($($arg),*) $(-> $ret)?, )*
            /// Keeps the code where the calls lead.
            _library: libloading::Library,
        }

        impl Api {
            fn over(path: &Path, library: libloading::Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    path: path.to_owned(),
                    $(
                        // SAFETY: the library said that it is of this interface's version, whose
                        // header declares the symbol with this signature.
                        $field: *unsafe {
                            library.get::<unsafe extern "C" fn($($arg),*) $(-> $ret)?>($symbol)?
                        },
                    )*
                    _library: library,
                })
            }
        }
    };
}

api! {
    /// DPDK's version as text.
    version = b"td_version\0": unsafe extern "C" fn() -> *const c_char;
    /// Redirects DPDK's log.
    log_to = b"td_log_to\0": unsafe extern "C" fn(LogFn) -> c_int;
    /// Starts DPDK's environment; once in a process.
    eal_init = b"td_eal_init\0": unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int;
    /// Makes the calling thread one of DPDK's, with caches of its own.
    thread_register = b"td_thread_register\0": unsafe extern "C" fn() -> c_int;
    /// Undoes it, before the thread ends.
    thread_unregister = b"td_thread_unregister\0": unsafe extern "C" fn();
    /// Makes a store of packet buffers.
    pool_new = b"td_pool_new\0":
        unsafe extern "C" fn(*const c_char, u32, u32, u16, *mut *mut c_void) -> c_int;
    /// Frees a store that nobody uses any more.
    pool_free = b"td_pool_free\0": unsafe extern "C" fn(*mut c_void);
    /// Buffers in use.
    pool_in_use = b"td_pool_in_use\0": unsafe extern "C" fn(*const c_void) -> u32;
    /// Adds a port.
    port_add = b"td_port_add\0":
        unsafe extern "C" fn(*const c_char, *const c_char, *mut u16) -> c_int;
    /// Stops and removes a port.
    port_remove = b"td_port_remove\0": unsafe extern "C" fn(u16) -> c_int;
    /// What a port is.
    port_info = b"td_port_info\0": unsafe extern "C" fn(u16, *mut PortInfo) -> c_int;
    /// Configures and starts a port.
    port_start = b"td_port_start\0": unsafe extern "C" fn(u16, *mut PortConfig) -> c_int;
    /// Stops a port.
    port_stop = b"td_port_stop\0": unsafe extern "C" fn(u16) -> c_int;
    /// What a port counted.
    port_stats = b"td_port_stats\0": unsafe extern "C" fn(u16, *mut Stats) -> c_int;
    /// State of a port's link.
    port_link = b"td_port_link\0": unsafe extern "C" fn(u16, *mut Link) -> c_int;
    /// Gives a port another MAC address.
    port_set_mac = b"td_port_set_mac\0": unsafe extern "C" fn(u16, *const u8) -> c_int;
    /// Whether a port receives everything.
    port_promiscuous = b"td_port_promiscuous\0": unsafe extern "C" fn(u16, c_int) -> c_int;
    /// Whether a port receives all multicast.
    port_all_multicast = b"td_port_all_multicast\0": unsafe extern "C" fn(u16, c_int) -> c_int;
    /// Receives up to [`MAX_BURST`] packets, which the caller then owns.
    rx = b"td_rx\0": unsafe extern "C" fn(u16, u16, *mut Packet, u16) -> u16;
    /// Sends packets and takes them all; gives how many the port took.
    tx = b"td_tx\0": unsafe extern "C" fn(u16, u16, *mut Packet, u16, u32) -> u16;
    /// Takes empty packets from a pool: all or none.
    alloc = b"td_alloc\0": unsafe extern "C" fn(*mut c_void, *mut Packet, u16) -> c_int;
    /// Gives packets back.
    free = b"td_free\0": unsafe extern "C" fn(*mut Packet, u16);
    /// Copies all segments of a packet.
    copy = b"td_copy\0": unsafe extern "C" fn(*const Packet, *mut u8, u32) -> u32;
    /// Has an epoll descriptor become readable with a queue's interrupts; -1 ends it.
    rx_wait = b"td_rx_wait\0": unsafe extern "C" fn(u16, u16, c_int) -> c_int;
    /// Switches a queue's interrupts.
    rx_interrupt = b"td_rx_interrupt\0": unsafe extern "C" fn(u16, u16, c_int) -> c_int;
    /// Has what is known of a vhost-user port's guest kept up.
    vhost_watch = b"td_vhost_watch\0": unsafe extern "C" fn(u16, *const VhostState) -> c_int;
    /// Takes features from what a vhost-user port offers.
    vhost_disable = b"td_vhost_disable\0": unsafe extern "C" fn(*const c_char, u64) -> c_int;
}

impl Api {
    /// Loads the shim from `named`, or else from [`SHIM_VARIABLE`], or else from the first place
    /// that has it: beside the executable, `/usr/local/lib/tapd`, `/usr/lib/tapd`, and where the
    /// system's loader looks.
    ///
    /// # Errors
    /// See [`LoadError`]; each says what to do.
    pub fn load(named: Option<&Path>) -> Result<Self, LoadError> {
        let named = named
            .map(Path::to_owned)
            .or_else(|| std::env::var_os(SHIM_VARIABLE).map(PathBuf::from));
        let places = named.map_or_else(places, |path| vec![path]);
        for path in &places {
            // A bare name is for the loader to find.
            let bare = path.components().count() == 1;
            if !bare && !path.exists() {
                continue;
            }
            // SAFETY: the shim and DPDK's libraries have constructors that only register drivers
            // and log types. The file is the administrator's choice or beside our own executable.
            match unsafe { libloading::Library::new(path) } {
                Ok(library) => return Self::check(path, library),
                Err(_) if bare => {}
                Err(error) => {
                    let reason = error.to_string();
                    return Err(LoadError::NotLoadable { path: path.clone(), reason });
                }
            }
        }
        Err(LoadError::NotFound(places))
    }

    fn check(path: &Path, library: libloading::Library) -> Result<Self, LoadError> {
        let not_loadable = |error: libloading::Error| LoadError::NotLoadable {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        // SAFETY: every version of the shim has this call, which takes nothing.
        let abi = unsafe { library.get::<unsafe extern "C" fn() -> u32>(b"td_abi\0") }
            .map(|abi| {
                // SAFETY: as above.
                unsafe { abi() }
            })
            .map_err(not_loadable)?;
        if abi != ABI {
            return Err(LoadError::OtherVersion { path: path.to_owned(), found: abi });
        }
        Self::over(path, library).map_err(not_loadable)
    }

    /// The file it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name and version of DPDK.
    #[must_use]
    pub fn dpdk_version(&self) -> String {
        // SAFETY: the call takes nothing and gives a text that is never freed.
        let text = unsafe { CStr::from_ptr((self.version)()) };
        text.to_string_lossy().into_owned()
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Where the shim is looked for.
fn places() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(SHIM)));
    let fixed = ["/usr/local/lib/tapd", "/usr/lib/tapd"].map(|folder| Path::new(folder).join(SHIM));
    beside.into_iter().chain(fixed).chain([PathBuf::from(SHIM)]).collect()
}

const _: () = {
    assert!(size_of::<Packet>() == 48);
    assert!(size_of::<PortInfo>() == 64);
    assert!(size_of::<PortConfig>() == 24);
    assert!(size_of::<Stats>() == 64);
    assert!(size_of::<Link>() == 8);
    assert!(size_of::<VhostState>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_that_is_not_there_is_named_with_all_places() {
        let error = Api::load(Some(Path::new("/nonexistent/shim.so"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/shim.so") && error.contains("libdpdk-dev"), "{error}");
        assert!(places().len() >= 3);
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_of_its_own() {
        let file = std::env::temp_dir().join(format!("no-shim-{}.so", std::process::id()));
        std::fs::write(&file, b"not a library").unwrap();
        let error = Api::load(Some(&file)).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(error, LoadError::NotLoadable { .. }), "{error}");
    }
}
