//! What two or more values must agree on; the result is what a [`super::Config`] is made of.
//!
//! Next: [`super::networks`] for `[[networks]]`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checks::{Unique, check_name, or};
use super::fault::{Collector, Located};
use super::reader::{Field, Raw, RawCluster, RawDaemon, RawNode};
use super::{
    Cipher, ClusterConfig, ClusterKey, DEFAULT_BUM_FRAMES_PER_S, DEFAULT_CONTROL_SOCKET,
    DEFAULT_FDB_AGEING_S, DEFAULT_FDB_MAX_ENTRIES, DEFAULT_LOG, DEFAULT_PORT,
    DEFAULT_REHANDSHAKE_MINUTES, DEFAULT_ROTATE_PACKETS, DEFAULT_WORKERS, DaemonConfig, MAX_LINKS,
    MAX_SOCKET_PATH_LEN, NetworkConfig, NodeConfig, PORT_COUNT, VXLAN_PORTS, networks,
};
use crate::logging;

/// A configuration that is not yet tied to a node.
#[derive(Debug)]
pub(super) struct Parts {
    /// Absent where it is at fault.
    pub(super) cluster: Option<ClusterConfig>,
    pub(super) daemon: DaemonConfig,
    pub(super) nodes: Vec<NodeConfig>,
    pub(super) networks: Vec<NetworkConfig>,
}

/// Checks everything; `files` are the configuration's files by [`super::fault::At::file`].
///
/// Parts are also returned beside faults, as far as they go, so that later checks find theirs.
pub(super) fn validate(raw: Raw, files: &[PathBuf], faults: &mut Collector) -> Parts {
    let cluster = raw.cluster.and_then(|raw| validate_cluster(raw, files, faults));
    let daemon = validate_daemon(raw.daemon, faults);
    let nodes = validate_nodes(raw.nodes, faults);
    let networks = networks::validate(raw.networks, &nodes, faults);
    let mut nodes: Vec<_> = nodes.into_iter().map(|located| located.value).collect();
    nodes.sort_by_key(|node| node.id);
    Parts { cluster, daemon, nodes, networks }
}

fn validate_cluster(
    raw: RawCluster,
    files: &[PathBuf],
    faults: &mut Collector,
) -> Option<ClusterConfig> {
    let mut read_key = |field: &Located<String>| {
        let directory = files.get(field.at.file).and_then(|file| file.parent());
        let path = directory.unwrap_or(Path::new("")).join(&field.value);
        ClusterKey::read(&path).map_err(|fault| faults.add(field.at, fault)).ok()
    };
    let key = raw.key_file.as_ref().and_then(&mut read_key);
    let next_key = raw.next_key_file.as_ref().and_then(&mut read_key);
    let insecure = or(raw.insecure, false);
    let ciphers = validate_ciphers(raw.ciphers, insecure, faults);
    if let Some(port) = &raw.port {
        validate_port(port, faults);
    }
    Some(ClusterConfig { key: key?, next_key, ciphers, insecure, port: or(raw.port, DEFAULT_PORT) })
}

fn validate_ciphers(
    field: Field<Vec<Located<Cipher>>>,
    insecure: bool,
    faults: &mut Collector,
) -> Vec<Cipher> {
    let Some(list) = field else { return vec![Cipher::Aes256Gcm] };
    let mut seen = Unique::new("cipher");
    for cipher in &list.value {
        seen.check(cipher.value.name(), cipher.at, faults);
        if cipher.value == Cipher::None && !insecure {
            faults.add(
                cipher.at,
                "cipher \"none\" sends everything readable; remove it, or add insecure = true \
                    to [cluster] if the underlay is trusted",
            );
        }
    }
    list.value.into_iter().map(|cipher| cipher.value).collect()
}

fn validate_port(port: &Located<u16>, faults: &mut Collector) {
    let first = port.value;
    let Some(last) = first.checked_add(PORT_COUNT - 1) else {
        let most = u16::MAX - (PORT_COUNT - 1);
        faults.add(
            port.at,
            format!("port = {first} leaves no room for {PORT_COUNT} ports; choose at most {most}"),
        );
        return;
    };
    if let Some(taken) = VXLAN_PORTS.into_iter().find(|taken| (first..=last).contains(taken)) {
        faults.add(
            port.at,
            format!(
                "ports {first} to {last} contain {taken}, which belongs to vxlan; choose \
                others, such as {DEFAULT_PORT}"
            ),
        );
    }
}

fn validate_daemon(raw: RawDaemon, faults: &mut Collector) -> DaemonConfig {
    if let Some(path) = &raw.control_socket
        && let Err(fault) = check_socket_path(Path::new(&path.value))
    {
        faults.add(path.at, format!("control_socket = {:?} {fault}", path.value));
    }
    if let Some(filter) = &raw.log
        && let Err(fault) = logging::parse_filter(&filter.value)
    {
        faults.add(
            filter.at,
            format!(
                "log is no filter ({fault}); write \"info\" or \"info,tapd::daemon::notices=debug\""
            ),
        );
    }
    let minutes = or(raw.rehandshake_minutes, DEFAULT_REHANDSHAKE_MINUTES);
    DaemonConfig {
        workers: or(raw.workers, DEFAULT_WORKERS),
        dedicated: or(raw.dedicated, false),
        control_socket: raw
            .control_socket
            .map_or_else(|| DEFAULT_CONTROL_SOCKET.into(), |path| path.value.into()),
        log: raw.log.map_or_else(|| DEFAULT_LOG.to_owned(), |filter| filter.value),
        rehandshake_interval: Duration::from_secs(60 * u64::from(minutes)),
        fdb_ageing: Duration::from_secs(or(raw.fdb_ageing_s, DEFAULT_FDB_AGEING_S).into()),
        fdb_max_entries: or(raw.fdb_max_entries, DEFAULT_FDB_MAX_ENTRIES),
        bum_frames_per_s: or(raw.bum_frames_per_s, DEFAULT_BUM_FRAMES_PER_S),
        rotate_packets: or(raw.rotate_packets, DEFAULT_ROTATE_PACKETS),
    }
}

/// Whether a path can be a control socket's.
///
/// # Errors
/// What is wrong, to be read behind the path.
pub(crate) fn check_socket_path(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if !path.is_absolute() {
        return Err(format!("must be an absolute path, such as {DEFAULT_CONTROL_SOCKET:?}"));
    }
    if length > MAX_SOCKET_PATH_LEN {
        return Err(format!(
            "is {length} bytes long; the kernel takes at most {MAX_SOCKET_PATH_LEN}"
        ));
    }
    Ok(())
}

fn validate_nodes(raw: Vec<RawNode>, faults: &mut Collector) -> Vec<Located<NodeConfig>> {
    let mut ids = Unique::new("node id");
    let mut names = Unique::new("node name");
    let mut addresses = Unique::new("address");
    let mut families = Families::default();
    let mut nodes = Vec::with_capacity(raw.len());
    for node in raw {
        let list = node_addresses(node.addresses, faults);
        for address in &list {
            addresses.check(address.value, address.at, faults);
        }
        families.check(&list, faults);
        let Some(id) = node.id else { continue };
        ids.check(id.value, id.at, faults);
        let name =
            node.name.unwrap_or_else(|| Located { at: id.at, value: format!("node{}", id.value) });
        check_name("node", &name, faults);
        names.check(name.value.clone(), name.at, faults);
        let addresses = list.into_iter().map(|address| address.value).collect();
        nodes.push(Located {
            at: node.at,
            value: NodeConfig { id: id.value, name: name.value, addresses },
        });
    }
    nodes
}

fn node_addresses(
    field: Field<Vec<Located<IpAddr>>>,
    faults: &mut Collector,
) -> Vec<Located<IpAddr>> {
    let Some(list) = field else { return Vec::new() };
    if list.value.len() > MAX_LINKS {
        let count = list.value.len();
        faults.add(
            list.at,
            format!("{count} addresses are more links than there can be; keep at most {MAX_LINKS}"),
        );
    }
    for address in &list.value {
        if let Some(fault) = address_fault(address.value) {
            faults.add(address.at, format!("address {} {fault}", address.value));
        }
    }
    list.value
}

fn address_fault(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("stands for every address; write the one that other nodes send to");
    }
    if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("is a group's; write the node's own unicast address");
    }
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(
            "is link-local and means something else on each interface; use a global or unique \
                local one",
        ),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("is an IPv4 address in disguise; write it in its IPv4 form")
        }
        _ => None,
    }
}

/// The address family of each link position: it must be the same on all nodes.
#[derive(Default)]
struct Families(HashMap<usize, Located<IpAddr>>);

impl Families {
    fn check(&mut self, addresses: &[Located<IpAddr>], faults: &mut Collector) {
        for (position, address) in addresses.iter().enumerate().take(MAX_LINKS) {
            // Said already; its family is no news.
            if address_fault(address.value).is_some() {
                continue;
            }
            let first = self.0.entry(position).or_insert_with(|| address.clone());
            if first.value.is_ipv4() != address.value.is_ipv4() {
                faults.add(
                    address.at,
                    format!(
                        "{} and {} ({}) both are address {} of their node, but of different \
                            families; such a link cannot work, so use one family",
                        address.value,
                        first.value,
                        first.at.seen_from(address.at),
                        position + 1
                    ),
                );
            }
        }
    }
}
