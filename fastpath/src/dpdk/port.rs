//! A DPDK port: opened with its queues, stopped and removed when the last of them is dropped.

use std::ffi::CString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use dpdk_sys::{Link, PortConfig, Stats, VhostState};
use encap::wire::ethernet::MacAddr;

use super::queue::{RxQueue, TxQueue};
use super::{DpdkError, Eal, Pool, check};
use crate::interface::Interface;

/// Virtual devices without a number of their own get one.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What DPDK does not say when a card cannot be opened: errno is one of two, whatever is wrong.
const OPEN_CARD: &str = "open that card: is it there, bound to vfio-pci (not to a driver of the \
    kernel), and its DPDK driver installed?";

/// How long a vhost-user port may take to be removed before others go on.
const REMOVE_PATIENCE: Duration = Duration::from_millis(500);

/// How a port is opened.
#[derive(Debug, Clone)]
pub struct PortOptions {
    /// A PCI address (`0000:3b:00.0`), or a virtual device and its arguments
    /// (`net_af_packet,iface=eth1`).
    pub device: String,
    /// Queues in each direction.
    pub queues: u16,
    /// Descriptors of each receive queue.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue.
    pub tx_descriptors: u16,
    /// Largest layer-3 packet in bytes; the driver's own without it.
    pub mtu: Option<u16>,
    /// Whether receive interrupts are wanted; [`super::Interrupts::of`] says whether there are any.
    pub interrupts: bool,
    /// Bits of [`super::capability`]; those that the port lacks are left out.
    pub capabilities: u32,
    /// Where packets lie.
    pub pool: Pool,
}

/// What a port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// Name of its driver.
    pub driver: String,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Most queues in each direction.
    pub max_queues: u16,
    /// Largest layer-3 packet in bytes at the moment.
    pub mtu: u16,
    /// Bits of [`super::capability`]: all that it has.
    pub capabilities: u32,
    /// Its NUMA node, where it has one.
    pub numa_node: Option<u32>,
    /// Index of the kernel interface behind it, where there is one.
    pub interface: Option<u32>,
}

/// A port; queues hold on to it too.
#[derive(Clone)]
pub struct Port(Arc<Inner>);

pub(super) struct Inner {
    pub(super) eal: Eal,
    pub(super) number: u16,
    pub(super) pool: Pool,
    device: String,
    /// What is in use.
    config: PortConfig,
    /// Held while interrupts are asked for.
    pub(super) arming: Mutex<()>,
    /// Whether they wake anybody.
    pub(super) waking: AtomicBool,
    /// Of a vhost-user port; behind an `Arc` so that it stays where it is.
    vhost: Arc<VhostState>,
}

// SAFETY: the pool's pointer in `config` is only passed on, and the pool lives as long as this.
unsafe impl Send for Inner {}
// SAFETY: nothing is changed after it was made; DPDK's calls on ports go through `Eal::control`.
unsafe impl Sync for Inner {}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({} = {})", self.0.number, self.0.device)
    }
}

/// A driver's reason for not coming up, where it is something else than its number says.
fn said_plainly(device: &str, source: io::Error) -> io::Error {
    let not_found = |reason: String| io::Error::new(io::ErrorKind::NotFound, reason);
    let named = device.split(',').find_map(|part| part.strip_prefix("iface="));
    let of_kernel = ["net_af_packet", "net_af_xdp"].iter().any(|name| device.starts_with(name));
    if let Some(interface) = named.filter(|_| of_kernel)
        && Interface::open(interface).and_then(|interface| interface.index()).is_err()
    {
        return not_found(format!("there is no interface {interface} here (see: ip link)"));
    }
    match source.raw_os_error() {
        Some(libc::EPERM) if device.starts_with("net_memif") => not_found(
            "nobody listens at its socket; the side with role=server starts first, and both name \
             the same socket and the same socket-abstract"
                .to_owned(),
        ),
        Some(libc::EFAULT) => not_found(
            "DPDK has no driver of that name; Debian has each in a package of its own, \
             librte-net-NAME23"
                .to_owned(),
        ),
        _ => source,
    }
}

impl Port {
    /// Adds the port, configures and starts it; gives its queues.
    ///
    /// # Errors
    /// The port is not there, has too few queues, or refuses what is asked of it.
    pub fn open(
        eal: &Eal,
        options: &PortOptions,
    ) -> Result<(Self, Vec<RxQueue>, Vec<TxQueue>), DpdkError> {
        let failed = |action| {
            let device = options.device.clone();
            move |source| DpdkError::Port { device, action, source }
        };
        let (name, arguments) = device(&options.device);
        let text = |text: String| {
            CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
        };
        let name = text(name).map_err(failed("use its name"))?;
        let arguments = text(arguments).map_err(failed("use its arguments"))?;
        let mut number = 0;
        eal.control(|api| {
            // SAFETY: both are C strings of this frame, which DPDK copies; `number` is of this frame.
            check(unsafe { (api.port_add)(name.as_ptr(), arguments.as_ptr(), &raw mut number) })
        })
        .map_err(|source| match eal.may_need_hugepages(&source) {
            true if is_card(&options.device) => DpdkError::NeedsHugepages,
            _ if is_card(&options.device) => failed(OPEN_CARD)(source),
            _ => failed("open it")(said_plainly(&options.device, source)),
        })?;
        let mut inner = Inner {
            eal: eal.clone(),
            number,
            pool: options.pool.clone(),
            device: options.device.clone(),
            arming: Mutex::default(),
            waking: AtomicBool::new(false),
            vhost: Arc::default(),
            config: PortConfig {
                rx_queues: options.queues,
                tx_queues: options.queues,
                rx_descriptors: options.rx_descriptors,
                tx_descriptors: options.tx_descriptors,
                mtu: options.mtu.unwrap_or(0),
                rx_interrupts: (options.interrupts && !is_uio_card(&options.device)).into(),
                capabilities: options.capabilities,
                pool: options.pool.raw(),
            },
        };
        let info = inner.info().map_err(failed("ask what it is"))?;
        options.pool.serve(&info.driver);
        if info.max_queues < options.queues {
            let (device, has) = (options.device.clone(), info.max_queues);
            return Err(DpdkError::TooFewQueues { device, has, needs: options.queues });
        }
        let (eal, config) = (inner.eal.clone(), &raw mut inner.config);
        eal.control(|api| {
            // SAFETY: the port was just added, nobody else has it. `config` is our own and its pool
            // lives as long as the port does.
            check(unsafe { (api.port_start)(number, config) })
        })
        .map_err(|source| failed("start it")(said_plainly(&options.device, source)))?;
        let inner = Arc::new(inner);
        let rx = (0..options.queues).map(|queue| RxQueue::new(Arc::clone(&inner), queue)).collect();
        let tx = (0..options.queues).map(|queue| TxQueue::new(Arc::clone(&inner), queue)).collect();
        Ok((Self(inner), rx, tx))
    }

    /// The port as it was named.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.0.device
    }

    /// Where its packets lie.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// What the port is.
    ///
    /// # Errors
    /// It is gone.
    pub fn info(&self) -> io::Result<PortInfo> {
        self.0.info()
    }

    /// Bits of [`super::capability`] that are in use.
    #[must_use]
    pub fn capabilities(&self) -> u32 {
        self.0.config.capabilities
    }

    /// Largest layer-3 packet in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.0.config.mtu
    }

    /// Whether its interrupts wake who reads it.
    #[must_use]
    pub fn has_interrupts(&self) -> bool {
        self.0.waking.load(Ordering::Relaxed)
    }

    /// What the port counted.
    ///
    /// # Errors
    /// It is gone.
    pub fn stats(&self) -> io::Result<Stats> {
        let mut stats = Stats::default();
        // SAFETY: the port is open as long as this handle lives; `stats` is of this frame.
        self.control(|api, number| unsafe { (api.port_stats)(number, &raw mut stats) })?;
        Ok(stats)
    }

    /// Whether its link is up. Ports in memory always say so.
    ///
    /// # Errors
    /// It is gone.
    pub fn link_is_up(&self) -> io::Result<bool> {
        let mut link = Link::default();
        // SAFETY: as above.
        self.control(|api, number| unsafe { (api.port_link)(number, &raw mut link) })?;
        Ok(link.up == 1)
    }

    /// Gives it another MAC address.
    ///
    /// # Errors
    /// It cannot.
    pub fn set_mac(&self, mac: MacAddr) -> io::Result<()> {
        // SAFETY: as above; the address has six bytes, as many as are read.
        self.control(|api, number| unsafe { (api.port_set_mac)(number, mac.0.as_ptr()) })
    }

    /// Has it receive everything, or what is for its address only.
    ///
    /// # Errors
    /// It cannot.
    pub fn set_promiscuous(&self, on: bool) -> io::Result<()> {
        // SAFETY: as above.
        self.control(|api, number| unsafe { (api.port_promiscuous)(number, on.into()) })
    }

    /// Has it receive all multicast.
    ///
    /// # Errors
    /// It cannot.
    pub fn set_all_multicast(&self, on: bool) -> io::Result<()> {
        // SAFETY: as above.
        self.control(|api, number| unsafe { (api.port_all_multicast)(number, on.into()) })
    }

    /// Of a vhost-user port: has what is known of its guest kept up by DPDK from now on.
    ///
    /// # Errors
    /// It is no such port.
    pub fn watch_vhost(&self) -> io::Result<Arc<VhostState>> {
        let state = Arc::clone(&self.0.vhost);
        // SAFETY: as above; `state` lives as long as the port, which is removed before it in
        // `Inner::drop`, and consists of atomics that anybody may write.
        self.control(|api, number| unsafe { (api.vhost_watch)(number, Arc::as_ptr(&state)) })?;
        Ok(state)
    }

    /// Of a vhost-user port on `socket`: does not offer these virtio features to guests that come
    /// after this.
    ///
    /// # Errors
    /// There is no such port.
    pub fn disable_vhost(&self, socket: &str, features: u64) -> io::Result<()> {
        let socket =
            CString::new(socket).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: a C string of this frame, which is only read.
        self.control(|api, _| unsafe { (api.vhost_disable)(socket.as_ptr(), features) })
    }

    fn control(&self, act: impl FnOnce(&dpdk_sys::Api, u16) -> i32) -> io::Result<()> {
        check(self.0.eal.control(|api| act(api, self.0.number))).map(drop)
    }
}

impl Inner {
    pub(super) fn interrupts(&self) -> u16 {
        self.config.rx_interrupts
    }

    fn info(&self) -> io::Result<PortInfo> {
        let mut info = dpdk_sys::PortInfo::default();
        self.eal.control(|api| {
            // SAFETY: the port was added and not removed; `info` is of this frame.
            check(unsafe { (api.port_info)(self.number, &raw mut info) })
        })?;
        let driver = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(PortInfo {
            driver: String::from_utf8_lossy(driver).into_owned(),
            mac: MacAddr(info.mac),
            max_queues: info.max_rx_queues.min(info.max_tx_queues),
            mtu: info.mtu,
            capabilities: info.capabilities,
            numa_node: u32::try_from(info.numa_node).ok(),
            interface: Some(info.if_index).filter(|index| *index != 0),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (eal, number, device) = (self.eal.clone(), self.number, self.device.clone());
        let kept = (self.pool.clone(), Arc::clone(&self.vhost));
        let remove = move |alone: bool| {
            // SAFETY: no queue and no handle is left, so no thread uses the port; its pool and what
            // is written to on its behalf live until this is over.
            let act = |api: &dpdk_sys::Api| unsafe { (api.port_remove)(number) };
            let result = if alone { eal.control(act) } else { act(eal.api()) };
            drop(kept);
            if let Err(error) = check(result) {
                log::warn!("DPDK port {device} cannot be removed: {error}");
            }
        };
        if !self.device.starts_with("net_vhost") {
            return remove(true);
        }
        // It ends when the other side of its socket lets it, so nobody may wait for that with a lock,
        // and not for long.
        let (told, over) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("port-remove".to_owned()).spawn(move || {
            remove(false);
            let _ = told.send(());
        });
        if thread.is_err() || over.recv_timeout(REMOVE_PATIENCE).is_err() {
            log::warn!("DPDK port {} is still being removed; going on", self.device);
        }
    }
}

/// Whether a device is one of the PCI bus.
fn is_card(device: &str) -> bool {
    device.split(',').next().unwrap_or_default().contains(':')
}

/// Whether a device is a card that Linux hands out with one interrupt for everything.
fn is_uio_card(device: &str) -> bool {
    let address = device.split(',').next().unwrap_or_default();
    let driver = Path::new("/sys/bus/pci/devices").join(address).join("driver");
    is_card(device)
        && std::fs::read_link(driver)
            .ok()
            .and_then(|driver| Some(driver.file_name()?.to_string_lossy().contains("uio")))
            .unwrap_or(false)
}

/// Name and arguments of a device.
fn device(text: &str) -> (String, String) {
    let (name, arguments) = text.split_once(',').unwrap_or((text, ""));
    let is_virtual = name.contains("net_") || name.contains("eth_");
    let numbered = name.ends_with(|last: char| last.is_ascii_digit());
    let name = if is_virtual && !numbered {
        format!("{name}{}", 100 + NUMBER.fetch_add(1, Ordering::Relaxed))
    } else {
        name.to_owned()
    };
    (name, arguments.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_devices_get_numbers_and_cards_keep_their_address() {
        let (one, arguments) = device("net_af_packet,iface=eth0,qpairs=2");
        let (other, _) = device("net_af_packet,iface=eth1");
        assert!(one.starts_with("net_af_packet1") && one != other, "{one} {other}");
        assert_eq!(arguments, "iface=eth0,qpairs=2");
        assert_eq!(device("net_memif7,role=server").0, "net_memif7");
        assert_eq!(device("0000:3b:00.0"), ("0000:3b:00.0".to_owned(), String::new()));
        assert!(is_card("0000:3b:00.0,key=1") && !is_card("net_memif,mac=02:00:00:00:00:01"));
    }
}
