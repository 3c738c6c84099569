//! Opening a tap: the most that the kernel gives, step by step.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::{OffloadSwitches, TapOptions};
use crate::error::OpenError;
use crate::interface::request_for;
use crate::vnet::VNET_HEADER_LEN;

/// How a queue is attached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    pub(super) vnet: bool,
    pub(super) multi_queue: bool,
}

pub(super) fn open_device() -> Result<File, OpenError> {
    let mut open = OpenOptions::new();
    open.read(true).write(true).custom_flags(libc::O_NONBLOCK); // std adds O_CLOEXEC
    open.open("/dev/net/tun").map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoTunDevice,
        Some(libc::EPERM | libc::EACCES) => OpenError::TunDeviceForbidden,
        _ => OpenError::Setup {
            tap: "device".to_owned(),
            action: "open /dev/net/tun",
            source: error,
        },
    })
}

/// Opens the first queue in the best mode that kernel and tap have.
///
/// A multi-queue interface costs a queueing discipline per possible queue, so one is made only
/// where it is needed. An existing tap must be taken as it was made: the other kind is refused
/// with EINVAL, as is an interface that is no tap at all.
pub(super) fn attach_first(options: &TapOptions) -> Result<(File, Mode), OpenError> {
    let tap = options.name.as_str();
    let file = open_device()?;
    let features = device_features(&file);
    let vnet = features & libc::IFF_VNET_HDR != 0;
    let wanted = options.queues > 1;
    let kinds: &[bool] = match (features & libc::IFF_MULTI_QUEUE != 0, options.existing) {
        (false, _) => &[false],
        (true, false) => &[wanted],
        (true, true) => &[wanted, !wanted],
    };
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for &multi_queue in kinds {
        let mode = Mode { vnet, multi_queue };
        match set_iff(&file, tap, mode, !options.existing) {
            Ok(()) => return Ok((file, mode)),
            Err(error) => last = error,
        }
        if last.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    let tap = tap.to_owned();
    Err(match (last.raw_os_error(), options.existing) {
        (Some(libc::EPERM | libc::EACCES), _) => OpenError::NotPermitted { tap },
        (Some(libc::EBUSY), false) => OpenError::Exists { tap },
        (Some(libc::EBUSY), true) => OpenError::InUse { tap },
        (Some(libc::EINVAL), true) => OpenError::NotATap { tap },
        _ => OpenError::Setup { tap, action: "create it", source: last },
    })
}

/// The flags that this kernel's driver knows; none when it is too old to say.
fn device_features(file: &File) -> libc::c_int {
    let mut features: libc::c_int = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, for which `features` has the room.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) };
    if result < 0 { 0 } else { features }
}

/// Attaches `file` as a queue of `tap`, which is made if it is not there.
pub(super) fn set_iff(file: &File, tap: &str, mode: Mode, exclusive: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if mode.vnet {
        flags |= libc::IFF_VNET_HDR;
    }
    if mode.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    if exclusive {
        flags |= libc::IFF_TUN_EXCL;
    }
    let mut request = request_for(tap)?;
    // The 16 bits of the field are a bit set; IFF_TUN_EXCL is the one that is the sign.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`; `request` is one, exclusively ours.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets header size, byte order and offloads; says which of the `wanted` offloads there are.
///
/// All three belong to the device and outlive whoever set them before on a persistent tap, so
/// they are set even where the value is the default.
pub(super) fn prepare(
    file: &File,
    mode: Mode,
    wanted: OffloadSwitches,
) -> io::Result<OffloadSwitches> {
    if mode.vnet {
        let mut size = VNET_HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int from `size`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut size) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut little_endian: libc::c_int = 0;
        // SAFETY: TUNSETVNETLE reads one int. A kernel without the call has native order only,
        // so that its refusal says the same.
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETLE, &raw mut little_endian) };
    }
    let wanted = if mode.vnet { wanted.consistent() } else { OffloadSwitches::NONE };
    // UDP is the youngest (Linux 6.2): a kernel that does not know a bit refuses the whole mask.
    let ladder = [
        wanted,
        OffloadSwitches { segmentation_udp: false, ..wanted },
        OffloadSwitches { checksum: wanted.checksum, ..OffloadSwitches::NONE },
    ];
    for step in ladder {
        match set_offload(file, mask(step)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => return result.map(|()| step),
        }
    }
    set_offload(file, 0).map(|()| OffloadSwitches::NONE)
}

/// The bits that TUNSETOFFLOAD takes.
fn mask(switches: OffloadSwitches) -> libc::c_uint {
    let mut mask = 0;
    if switches.checksum {
        mask |= libc::TUN_F_CSUM;
    }
    if switches.segmentation_tcp {
        mask |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    }
    if switches.segmentation_udp {
        // One without the other is refused.
        mask |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    mask
}

fn set_offload(file: &File, mask: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its mask by value; no memory is involved.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
