//! Processor cores: which ones there are for us, and staying on one.

use std::io;

/// The cores that the calling thread may run on, ascending.
///
/// # Errors
/// The kernel numbers cores beyond 1,023.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: `cpu_set_t` is an array of integers, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is writable for exactly the size given; thread 0 is the calling one.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the core number is below CPU_SETSIZE, hence inside of the set.
    let holds = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(holds).collect())
}

/// How many cores this process may use, at least 1: affinity and CPU quota are respected.
#[must_use]
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether a cgroup gives this process less CPU time than there is of the cores that it may use.
#[must_use]
pub fn has_cpu_quota() -> bool {
    allowed_cores().is_ok_and(|cores| available_cores() < cores.len())
}

/// Keeps the calling thread on `core` from now on.
///
/// # Errors
/// There is no such core, or the process may not use it.
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `cpu_set_t` is an array of integers, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is below CPU_SETSIZE, hence inside of the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is readable for exactly the size given; thread 0 is the calling one.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_to_each_allowed_core_and_to_no_other() {
        let cores = allowed_cores().unwrap();
        assert!(!cores.is_empty());
        assert!(available_cores() >= 1 && available_cores() <= cores.len());
        // A thread of its own: the other tests keep their freedom.
        std::thread::spawn(move || {
            for core in cores {
                pin_current_thread(core).unwrap();
                assert_eq!(allowed_cores().unwrap(), [core]);
            }
            assert!(pin_current_thread(libc::CPU_SETSIZE as usize).is_err());
        })
        .join()
        .unwrap();
    }
}
