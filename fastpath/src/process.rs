//! Settings of the whole process.

use std::io;

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
