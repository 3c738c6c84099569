//! Files of listening UNIX sockets: never open to anyone too early, never in the way of another
//! daemon, gone at the end.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, Socket, Type};

/// Permission bits of a new socket: its owner only.
const PRIVATE_MODE: u32 = 0o600;
/// What the kernel answers to a connect of another type than the socket's (`EPROTOTYPE`).
const WRONG_TYPE: i32 = 91;
/// In the kernel's list of UNIX sockets: waits for connections (`__SO_ACCEPTCON`).
const ACCEPTS: u32 = 0x1_0000;

/// A socket at `path` that nobody can connect to before it listens. It is never open to others: the
/// file that bind makes has the mode that the socket had before.
pub(crate) fn bind_private(path: &Path, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(Permissions::from_mode(PRIVATE_MODE))?;
    let socket = Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// What was found where a socket is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Room,
    /// A socket that nobody listens on any more.
    LeftBehind,
    /// A socket that somebody listens on.
    Listener,
    /// Another kind of file.
    NoSocket,
}

/// Removes the socket of a daemon that is gone, which leaves [`Found::Room`].
///
/// # Errors
/// It cannot be told whether it is gone, or its socket cannot be removed.
pub(crate) fn make_room(path: &Path) -> anyhow::Result<Found> {
    let found = look(path)?;
    if found != Found::LeftBehind {
        return Ok(found);
    }
    fs::remove_file(path).with_context(|| {
        format!("cannot remove {}, left behind by an earlier daemon", path.display())
    })?;
    Ok(Found::Room)
}

/// Looks what is there.
///
/// # Errors
/// It cannot be told whether somebody listens.
pub(crate) fn look(path: &Path) -> anyhow::Result<Found> {
    let shown = path.display();
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Room),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
    };
    if !metadata.file_type().is_socket() {
        return Ok(Found::NoSocket);
    }
    let listens = match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => false,
        Err(error) if error.raw_os_error() == Some(WRONG_TYPE) => true,
        // It is another user's, and tapd may not connect to it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => match is_listed(path) {
            Ok(listed) => listed,
            Err(_) => bail!(
                "cannot tell whether another tapd listens on {shown}: {error}; check its permission"
            ),
        },
        Err(error) => {
            return Err(error).with_context(|| {
                format!("cannot tell whether another tapd listens on {shown}; check its permission")
            });
        }
    };
    Ok(if listens { Found::Listener } else { Found::LeftBehind })
}

/// Whether the kernel knows of a socket in this network namespace that listens at `path`.
fn is_listed(path: &Path) -> io::Result<bool> {
    let path = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let sockets = fs::read_to_string("/proc/net/unix")?;
    Ok(lists(&sockets, path))
}

/// Whether the kernel's list has a socket that listens at `path`.
fn lists(sockets: &str, path: &str) -> bool {
    sockets.lines().any(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let flags = line.split_whitespace().nth(3);
        let flags = flags.and_then(|flags| u32::from_str_radix(flags, 16).ok());
        let at_path = line.strip_suffix(path).is_some_and(|rest| rest.ends_with(' '));
        at_path && flags.is_some_and(|flags| flags & ACCEPTS != 0)
    })
}

/// The file of a socket of ours; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: whether it is still this socket.
    identity: (u64, u64),
}

impl SocketFile {
    /// The socket that was bound there just now.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Self> {
        let metadata = fs::symlink_metadata(path);
        let metadata = metadata.with_context(|| format!("cannot look at {}", path.display()))?;
        Ok(Self { path: path.to_owned(), identity: identity(&metadata) })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file at the path is still this socket's.
    pub(crate) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Removes the file. Another daemon's, or anything else that took its place meanwhile, stays.
    pub(crate) fn remove(&self) {
        // The number is not given to another file while the socket is open.
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_before_it_can_be_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        for (name, kind) in [("s", Type::STREAM), ("p", Type::SEQPACKET)] {
            let path = directory.path().join(name);
            let _socket = bind_private(&path, kind).unwrap();
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let refused = UnixStream::connect(&path).unwrap_err();
            assert_ne!(refused.kind(), io::ErrorKind::NotFound, "{refused}");
        }
    }

    #[test]
    fn who_listens_stays_whatever_the_type_and_who_is_gone_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        for (name, kind) in [("s", Type::STREAM), ("p", Type::SEQPACKET)] {
            let path = directory.path().join(name);
            assert_eq!(make_room(&path).unwrap(), Found::Room);
            let socket = bind_private(&path, kind).unwrap();
            socket.listen(1).unwrap();
            assert_eq!(make_room(&path).unwrap(), Found::Listener);
            assert!(is_listed(&path).unwrap());
            drop(socket);
            assert_eq!(look(&path).unwrap(), Found::LeftBehind);
            assert!(path.exists());
            assert!(!is_listed(&path).unwrap());
            assert_eq!(make_room(&path).unwrap(), Found::Room);
            assert!(!path.exists());
        }
        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert_eq!(make_room(&path).unwrap(), Found::NoSocket);
        assert!(path.exists());
    }

    #[test]
    fn the_kernels_list_is_read_by_flags_and_path() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01  8345 /run/a b\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 28345 /run/c\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 28346\n";
        assert!(lists(sockets, "/run/a b"));
        for path in ["/run/c", "/run/a", "un/a b", "/run/d"] {
            assert!(!lists(sockets, path), "{path}");
        }
    }

    #[test]
    fn only_its_own_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let one = bind_private(&path, Type::STREAM).unwrap();
        let file = SocketFile::new(&path).unwrap();
        assert!(file.is_there());
        fs::remove_file(&path).unwrap();
        let _other = bind_private(&path, Type::STREAM).unwrap();
        assert!(!file.is_there());
        drop(file);
        assert!(path.exists());
        drop(one);
        drop(SocketFile::new(&path).unwrap());
        assert!(!path.exists());
    }
}
