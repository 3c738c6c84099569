//! Users and groups of the system by their names.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Bytes for one entry at first; most have fewer.
const FIRST_LEN: usize = 1 << 12;
/// Most bytes for one entry: a group with many thousands of members.
const MAX_LEN: usize = 1 << 22;

/// The number of a user (`getpwnam_r`(3)); none where there is no such user.
///
/// # Errors
/// The system's list of users cannot be read, or the name has a zero byte.
pub fn user_id(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    look_up(|room| {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: the name is a string that ends with zero; `entry` and `found` are variables of
        // this frame for the call to write to; the strings of the entry go to `room`, of the length
        // that is given. Nothing of these is kept by the C library.
        let code = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                room.as_mut_ptr(),
                room.len(),
                &raw mut found,
            )
        };
        if found.is_null() {
            return (code, None);
        }
        // SAFETY: where the call sets `found` it points to `entry`, which it has filled.
        (code, Some(unsafe { entry.assume_init() }.pw_uid))
    })
}

/// The number of a group (`getgrnam_r`(3)); none where there is no such group.
///
/// # Errors
/// The system's list of groups cannot be read, or the name has a zero byte.
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    look_up(|room| {
        let mut entry = MaybeUninit::<libc::group>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: as in `user_id`.
        let code = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                room.as_mut_ptr(),
                room.len(),
                &raw mut found,
            )
        };
        if found.is_null() {
            return (code, None);
        }
        // SAFETY: as in `user_id`.
        (code, Some(unsafe { entry.assume_init() }.gr_gid))
    })
}

/// Asks with ever more room until the entry fits.
fn look_up(
    ask: impl Fn(&mut [libc::c_char]) -> (libc::c_int, Option<u32>),
) -> io::Result<Option<u32>> {
    let mut len = FIRST_LEN;
    loop {
        let mut room = vec![0; len];
        match ask(&mut room) {
            (_, Some(number)) => return Ok(Some(number)),
            // What these systems say instead of an entry that is not there (getpwnam(3)).
            (0 | libc::ENOENT | libc::ESRCH, None) => return Ok(None),
            (libc::ERANGE, None) if len < MAX_LEN => len *= 2,
            (libc::EINTR, None) => {}
            (code, None) => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_0_and_nobody_has_a_number_of_their_own() {
        assert_eq!(user_id("root").unwrap(), Some(0));
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert!(user_id("nobody").unwrap().is_some_and(|id| id > 0));
    }

    #[test]
    fn names_that_are_not_there_are_no_error() {
        assert_eq!(user_id("no-such-user-here").unwrap(), None);
        assert_eq!(group_id("no-such-group-here").unwrap(), None);
        assert_eq!(user_id("a\0b").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn an_entry_that_does_not_fit_gets_more_room() {
        let needed = FIRST_LEN * 3;
        let found = look_up(|room| match room.len() >= needed {
            true => (0, Some(7)),
            false => (libc::ERANGE, None),
        });
        assert_eq!(found.unwrap(), Some(7));
        let error = look_up(|_| (libc::ERANGE, None)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ERANGE));
    }
}
