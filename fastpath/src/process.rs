//! Settings of the whole process, and how soon a thread gets its turn.

use std::io;
use std::mem;
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

/// Slice asked for by [`prefer_latency`]: the shortest that the kernel takes.
const SHORT_SLICE: Duration = Duration::from_micros(100);
/// Lateness of timers that it allows: the default is 50 us.
const SHORT_SLACK: Duration = Duration::from_micros(1);

/// Has the calling thread wake up soon rather than run for long: for one that sleeps between
/// short pieces of work which must not come late.
///
/// The thread asks the fair scheduler for slices of 100 us (Linux 6.12), so that its deadline is
/// nearer than that of threads which compute and it runs first when it wakes up; its share of the
/// processor stays the same. Its timers fire at most 1 us late of their own accord instead of
/// 50 us. Neither needs a privilege; threads that it starts from now on inherit both. A thread
/// under another policy, which somebody chose for it, keeps that one as it is.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] if the kernel knows no slices; the timers are set even so. Others
/// are the kernel's.
pub fn prefer_latency() -> io::Result<()> {
    sharpen_timers()?;
    let mut attributes = scheduling()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    let slice = SHORT_SLICE.as_nanos() as u64;
    attributes.sched_runtime = slice;
    set_scheduling(attributes)?;
    // Older kernels ignore the value.
    if scheduling()?.sched_runtime == slice {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel has no slices to choose"))
    }
}

/// Timers of the calling thread fire at most 1 us late of their own accord instead of 50 us: for one
/// whose sleeps are shorter than that. Needs no privilege; threads that it starts from now on inherit
/// it.
///
/// # Errors
/// The kernel's.
pub fn sharpen_timers() -> io::Result<()> {
    set_timer_slack(SHORT_SLACK)
}

/// How late timers of the calling thread may fire, so that several fire at once.
fn set_timer_slack(slack: Duration) -> io::Result<()> {
    let slack = slack.as_nanos() as libc::c_ulong;
    // SAFETY: prctl with PR_SET_TIMERSLACK takes numbers only and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the scheduler knows of the calling thread (sched_setattr(2)).
fn scheduling() -> io::Result<libc::sched_attr> {
    // SAFETY: `sched_attr` is made of integers, for which all zeros is a value.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    let room = size_of::<libc::sched_attr>() as libc::c_uint;
    let flags: libc::c_uint = 0;
    // SAFETY: the pointer is to a struct of this frame with as many bytes as `room` says, and the
    // kernel writes no more than that. Thread 0 is the calling one. The C library has no wrapper.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, room, flags) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

fn set_scheduling(mut attributes: libc::sched_attr) -> io::Result<()> {
    attributes.size = size_of::<libc::sched_attr>() as u32;
    let flags: libc::c_uint = 0;
    // SAFETY: the pointer is to a struct of this frame whose `size` member gives its true length.
    // The kernel reads no more than that, and writes that member alone, if it wants another size.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, flags) };
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

    /// Linux major and minor version.
    fn kernel() -> (u32, u32) {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    #[test]
    fn latency_is_preferred_and_nothing_else_changes() {
        // A thread of its own: the harness's must not keep the settings.
        let thread = std::thread::spawn(|| {
            let before = scheduling().unwrap();
            let result = prefer_latency();
            let after = scheduling().unwrap();
            // SAFETY: prctl with PR_GET_TIMERSLACK takes and gives numbers only.
            let slack = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK, 0, 0, 0, 0) };
            assert_eq!(slack, 1_000);
            assert_eq!(before.sched_policy, libc::SCHED_OTHER as u32);
            assert_eq!(after.sched_policy, before.sched_policy);
            assert_eq!(after.sched_nice, before.sched_nice);
            assert_eq!(after.sched_flags, before.sched_flags);
            if kernel() >= (6, 12) {
                result.unwrap();
                assert_ne!(before.sched_runtime, 100_000);
                assert_eq!(after.sched_runtime, 100_000);
                let inherited = std::thread::spawn(|| scheduling().unwrap().sched_runtime);
                assert_eq!(inherited.join().unwrap(), 100_000);
            } else {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::Unsupported);
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn niceness_is_kept() {
        let thread = std::thread::spawn(|| {
            let mut attributes = scheduling().unwrap();
            attributes.sched_nice = (attributes.sched_nice + 3).min(19);
            set_scheduling(attributes).unwrap();
            // Whether the kernel has slices is the other test's.
            let _ = prefer_latency();
            assert_eq!(scheduling().unwrap().sched_nice, attributes.sched_nice);
        });
        thread.join().unwrap();
    }
}
