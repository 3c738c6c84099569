//! Whether a UDP port is free, and if not, who has it.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};

/// Whether the port can be bound.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Port {
    Free,
    /// With its owners, where they can be seen: process ids and names.
    InUse(Vec<(u32, String)>),
    /// For another reason.
    Refused(String),
}

/// Binds the port for a moment.
pub(super) fn look(address: IpAddr, port: u16) -> Port {
    match UdpSocket::bind((address, port)) {
        Ok(_) => Port::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Port::InUse(owners(port)),
        Err(error) => Port::Refused(error.to_string()),
    }
}

/// The processes that have a UDP socket on the port, whatever its address.
fn owners(port: u16) -> Vec<(u32, String)> {
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
    let read = |path: &&str| fs::read_to_string(path).unwrap_or_default();
    let inodes: Vec<_> = tables.iter().map(read).flat_map(|text| inodes(&text, port)).collect();
    let wanted: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pid = |name: std::ffi::OsString| name.to_str().and_then(|name| name.parse().ok());
    let pids = processes.flatten().filter_map(|entry| pid(entry.file_name()));
    let holds = |pid: &u32| {
        // Processes of others do not let us look; they may end while we do.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        targets.into_iter().any(|to| to.to_str().is_some_and(|to| wanted.iter().any(|w| w == to)))
    };
    let name = |pid| (pid, super::read_line(&format!("/proc/{pid}/comm")).unwrap_or_default());
    if wanted.is_empty() { Vec::new() } else { pids.filter(holds).map(name).collect() }
}

/// Inodes of the sockets on a local port, of a table such as /proc/net/udp.
fn inodes(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, found) = fields.get(1)?.rsplit_once(':')?;
        let inode = fields.get(9)?.parse().ok()?;
        (u16::from_str_radix(found, 16) == Ok(port)).then_some(inode)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
        \x20 123: 0100007F:65AA 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000 0\n\
        \x20 124: 0100007F:65AB 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000 0\n";

    #[test]
    fn table_names_the_sockets_of_a_port() {
        assert_eq!(inodes(TABLE, 26026), [4711]);
        assert!(inodes(TABLE, 26030).is_empty());
    }

    #[test]
    fn this_process_is_found_by_its_socket() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let Port::InUse(owners) = look(address.ip(), address.port()) else { panic!() };
        let own = std::process::id();
        assert!(owners.iter().any(|(pid, name)| *pid == own && !name.is_empty()), "{owners:?}");
        drop(socket);
        assert_eq!(look(address.ip(), address.port()), Port::Free);
        let foreign = look([203, 0, 113, 77].into(), 26026);
        assert!(matches!(foreign, Port::Refused(_)), "{foreign:?}");
    }

    proptest! {
        #[test]
        fn no_table_panics(text in "\\PC*", rows in prop::collection::vec("[ 0-9A-F:]{0,120}", 0..4)) {
            inodes(&text, 1);
            inodes(&rows.join("\n"), 0);
        }
    }
}
