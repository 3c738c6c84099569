//! Stores of packet buffers.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use log::Level;

use super::{DpdkError, Eal, check};

/// Buffers that a thread keeps for itself.
const CACHE: u32 = 256;
/// Drivers that close a port without giving back the buffers that wait in the kernel's rings.
const KEEPERS: [&str; 1] = ["net_af_xdp"];
/// Pools need names of their own.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A store of equal packet buffers, shared by ports.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    eal: Eal,
    raw: *mut c_void,
    count: u32,
    room: u16,
    /// A port of one of [`KEEPERS`] had buffers of it.
    kept: AtomicBool,
}

// SAFETY: DPDK's pools are made to be used by all threads at once; the pointer is only passed on.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Pool {
    /// Makes a store of at least `count` buffers for `room` bytes of packet each.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(eal: &Eal, count: u32, room: u16) -> Result<Self, DpdkError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("tapd{number}")).unwrap_or_default();
        // A power of two less one takes the least memory; twice the cache is the least it works with.
        let count = (count.max(4 * CACHE) + 1).next_power_of_two() - 1;
        let mut raw = std::ptr::null_mut();
        let made = eal.control(|api| {
            // SAFETY: the name is a C string that DPDK copies, `raw` is a pointer of this frame.
            check(unsafe { (api.pool_new)(name.as_ptr(), count, CACHE, room, &raw mut raw) })
        });
        made.map_err(|source| match eal.may_need_hugepages(&source) {
            true => DpdkError::NeedsHugepages,
            false => DpdkError::NoMemory { count, room, source },
        })?;
        Ok(Self(Arc::new(Inner {
            eal: eal.clone(),
            raw,
            count,
            room,
            kept: AtomicBool::new(false),
        })))
    }

    /// Number of buffers.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.count
    }

    /// Bytes of packet in each buffer.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.0.room
    }

    /// Buffers in use at the moment; those that wait in rings for packets are.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        // SAFETY: the pool lives as long as this handle.
        unsafe { (self.0.eal.api().pool_in_use)(self.0.raw) }
    }

    /// A port of this driver takes buffers from now on.
    pub(super) fn serve(&self, driver: &str) {
        if KEEPERS.contains(&driver) {
            self.0.kept.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn raw(&self) -> *mut c_void {
        self.0.raw
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Ports in memory hand buffers over to others, which may still hold some.
        // SAFETY: nobody has a handle any more, so the pool is used by none of our threads.
        let in_use = unsafe { (self.eal.api().pool_in_use)(self.raw) };
        if in_use > 0 {
            let level = level_of_rest(self.kept.load(Ordering::Relaxed));
            log::log!(level, "{in_use} packet buffers are still in use; their memory stays");
            return;
        }
        // SAFETY: as above, and all buffers are back.
        self.eal.control(|api| unsafe { (api.pool_free)(self.raw) });
    }
}

/// How loud to tell of buffers that are in use when nobody has the pool any more: nothing is wrong
/// where a driver keeps some.
const fn level_of_rest(kept: bool) -> Level {
    if kept { Level::Debug } else { Level::Warn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_rest_that_no_driver_explains_is_worth_a_warning() {
        assert_eq!(level_of_rest(KEEPERS.contains(&"net_af_xdp")), Level::Debug);
        assert_eq!(level_of_rest(KEEPERS.contains(&"net_af_packet")), Level::Warn);
    }
}
