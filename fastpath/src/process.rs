//! Settings of the whole process.

use std::io;
use std::time::Duration;

/// From now on no program that is executed gains privileges (`PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// The kernel's, which knows the call since Linux 3.5.
pub fn set_no_new_privileges() -> io::Result<()> {
    // SAFETY: prctl with PR_SET_NO_NEW_PRIVS takes numbers only and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the process's memory unreadable to others and keeps keys out of core dumps
/// (`PR_SET_DUMPABLE`).
///
/// # Errors
/// The kernel's.
pub fn set_undumpable() -> io::Result<()> {
    // SAFETY: prctl with PR_SET_DUMPABLE takes numbers only and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How long the machine has been suspended since it was started: the difference between the clock
/// that counts sleep and the one that does not. Setting the time of day changes neither.
#[must_use]
pub fn suspended_time() -> Duration {
    read_clock(libc::CLOCK_BOOTTIME).saturating_sub(read_clock(libc::CLOCK_MONOTONIC))
}

fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours that lives during the call, which fills it.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspended_time_stands_still_while_awake() {
        let before = suspended_time();
        let spent: u64 = (0..1_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        let moved = suspended_time().abs_diff(before);
        assert!(moved < Duration::from_millis(100), "{moved:?} {spent}");
    }
}
