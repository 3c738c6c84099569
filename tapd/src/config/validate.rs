//! What two or more values must agree on; the result is what a [`super::Config`] is made of.
//!
//! Next: [`super::nodes`] for `[[nodes]]` and `[[links]]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use encap::channel::hub::HubOptions;
use encap::id::Vni;

use super::channels::{self, ChannelConfig};
use super::checks::{Unique, or};
use super::detector::{self, DetectorConfig};
use super::fault::{Collector, Located};
use super::fields::Field;
use super::links::LinkOptions;
use super::reader::{Raw, RawCluster, RawDaemon, RawOffload};
use super::traffic::{Dscp, Policy, Protect};
use super::{
    Cipher, ClusterConfig, ClusterKey, DEFAULT_BUM_FRAMES_PER_S, DEFAULT_CONTROL_SOCKET,
    DEFAULT_FDB_AGEING_S, DEFAULT_FDB_MAX_ENTRIES, DEFAULT_LOG, DEFAULT_PORT,
    DEFAULT_REHANDSHAKE_MINUTES, DEFAULT_ROTATE_PACKETS, DEFAULT_WORKERS, DaemonConfig, DpdkConfig,
    MAX_SOCKET_PATH_LEN, NetworkConfig, NodeConfig, OffloadConfig, PORT_COUNT, VXLAN_PORTS, dpdk,
    networks, nodes,
};
use crate::logging;

/// A configuration that is not yet tied to a node.
#[derive(Debug)]
pub(super) struct Parts {
    /// Absent where it is at fault.
    pub(super) cluster: Option<ClusterConfig>,
    pub(super) detector: DetectorConfig,
    pub(super) daemon: DaemonConfig,
    pub(super) offload: OffloadConfig,
    pub(super) dpdk: DpdkConfig,
    pub(super) nodes: Vec<NodeConfig>,
    pub(super) links: BTreeMap<String, LinkOptions>,
    pub(super) networks: Vec<NetworkConfig>,
    /// By ascending name.
    pub(super) channels: Vec<ChannelConfig>,
    pub(super) transport: HubOptions,
    /// See [`networks::Checked::portless`].
    pub(super) portless: Vec<Located<Vni>>,
}

/// Checks everything; `files` are the configuration's files by [`super::fault::At::file`].
///
/// Parts are also returned beside faults, as far as they go, so that later checks find theirs.
pub(super) fn validate(raw: Raw, files: &[PathBuf], faults: &mut Collector) -> Parts {
    // These two matter elsewhere too, also where [cluster] is at fault.
    let cluster = raw.cluster.as_ref();
    let mesh = cluster.and_then(|raw| raw.mesh.as_ref()).is_some_and(|mesh| mesh.value);
    let profile = cluster.and_then(|raw| raw.profile.as_ref()).map(|profile| profile.value);
    let cluster = raw.cluster.and_then(|raw| validate_cluster(raw, files, faults));
    let detector = detector::validate(profile.unwrap_or_default(), raw.detector, faults);
    let daemon = validate_daemon(raw.daemon, faults);
    let offload = offload(raw.offload);
    let dpdk = dpdk::validate(raw.dpdk, faults);
    let nodes = nodes::validate(raw.nodes, mesh, faults);
    let links = nodes::validate_links(raw.links, &nodes, mesh, faults);
    let networks::Checked { networks, portless } =
        networks::validate(raw.networks, &nodes, &daemon.control_socket, faults);
    let known = networks::Names::new(&nodes);
    let channels =
        channels::validate(raw.channels, &known, &networks, &daemon.control_socket, faults);
    let transport = channels::validate_transport(raw.transport);
    let mut nodes: Vec<_> = nodes.into_iter().map(|located| located.value).collect();
    nodes.sort_by_key(|node| node.id);
    Parts {
        cluster,
        detector,
        daemon,
        offload,
        dpdk,
        nodes,
        links,
        networks,
        channels,
        transport,
        portless,
    }
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
    Some(ClusterConfig {
        key: key?,
        next_key,
        ciphers,
        insecure,
        port: or(raw.port, DEFAULT_PORT),
        policy: or(raw.policy, Policy::default()),
        protect: or(raw.protect, Protect::default()),
        mesh: or(raw.mesh, false),
        dscp: or(raw.dscp, Dscp::default()),
        ecn: or(raw.ecn, true),
    })
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
    let last = first.saturating_add(PORT_COUNT - 1);
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
        spin: raw.spin_us.map(|us| Duration::from_micros(us.value.into())),
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

fn offload(raw: RawOffload) -> OffloadConfig {
    OffloadConfig {
        tap_checksum: or(raw.tap_checksum, true),
        tap_tcp: or(raw.tap_tcp, true),
        tap_udp: or(raw.tap_udp, true),
        uplink_segmentation: or(raw.uplink_segmentation, true),
        uplink_coalescing: or(raw.uplink_coalescing, true),
        source_ports: or(raw.source_ports, true),
        bundles: or(raw.bundles, true),
    }
}

/// Whether a path can be a UNIX socket's.
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
