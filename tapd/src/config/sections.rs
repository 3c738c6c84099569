//! The sections of the configuration and their keys, and what to say about a key that is not one.

/// A table of the configuration and the keys it may have.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) keys: &'static [&'static str],
}

pub(super) const TOP: Section = Section {
    title: "the file",
    keys: &[
        "cluster",
        "detector",
        "daemon",
        "offload",
        "dpdk",
        "nodes",
        "links",
        "networks",
        "channels",
        "channel_transport",
    ],
};
pub(super) const CLUSTER: Section = Section {
    title: "[cluster]",
    keys: &[
        "key_file",
        "next_key_file",
        "ciphers",
        "insecure",
        "port",
        "policy",
        "protect",
        "profile",
        "mesh",
        "dscp",
        "ecn",
    ],
};
pub(super) const DETECTOR: Section = Section {
    title: "[detector]",
    keys: &[
        "fast_us",
        "normal_ms",
        "idle_ms",
        "sole_ms",
        "min_missed",
        "max_missed",
        "min_grace_us",
        "down_after_ms",
        "clear_rounds",
        "up_rounds",
        "max_up_loss_percent",
        "hold_s",
        "max_hold_s",
        "peer_timeout_ms",
        "heartbeats_per_s",
    ],
};
pub(super) const DAEMON: Section = Section {
    title: "[daemon]",
    keys: &[
        "workers",
        "dedicated",
        "spin_us",
        "control_socket",
        "log",
        "rehandshake_minutes",
        "fdb_ageing_s",
        "fdb_max_entries",
        "bum_frames_per_s",
        "rotate_packets",
    ],
};
pub(super) const OFFLOAD: Section = Section {
    title: "[offload]",
    keys: &[
        "tap_checksum",
        "tap_tcp",
        "tap_udp",
        "uplink_segmentation",
        "uplink_coalescing",
        "source_ports",
        "bundles",
    ],
};
pub(super) const DPDK: Section = Section {
    title: "[dpdk]",
    keys: &["memory_mb", "hugepages", "eal", "shim", "max_sleep_us", "interrupts"],
};
pub(super) const NODE: Section = Section {
    title: "[[nodes]]",
    keys: &["id", "name", "addresses", "links", "policy", "protect"],
};
pub(super) const NODE_LINK: Section = Section {
    title: "a link of a node",
    keys: &["name", "address", "family", "interface", "dpdk"],
};
pub(super) const LINK_DPDK: Section = Section {
    title: "dpdk of a link",
    keys: &[
        "port",
        "prefix",
        "gateway",
        "routes",
        "neighbors",
        "vlan",
        "mac",
        "mtu",
        "exception_tap",
        "udp_checksum",
    ],
};
pub(super) const ROUTE: Section = Section { title: "a route", keys: &["to", "via"] };
pub(super) const NEIGHBOR: Section = Section { title: "a neighbor", keys: &["address", "mac"] };
pub(super) const LINK: Section =
    Section { title: "[[links]]", keys: &["name", "priority", "weight", "mtu", "allow", "deny"] };
pub(super) const NETWORK: Section = Section {
    title: "[[networks]]",
    keys: &[
        "vni",
        "name",
        "tap",
        "tap_mtu",
        "subnets",
        "mac",
        "existing",
        "members",
        "stp",
        "fdb",
        "mss_clamp",
        "too_big",
        "loop_probe",
        "compression",
        "compression_level",
        "policy",
        "dscp",
        "vhost_user",
    ],
};
pub(super) const VHOST_USER: Section =
    Section { title: "a vhost_user port", keys: &["socket", "mode", "queues"] };
pub(super) const FDB: Section = Section { title: "an fdb entry", keys: &["mac", "node"] };
pub(super) const CHANNEL: Section = Section {
    title: "[[channels]]",
    keys: &[
        "name",
        "mode",
        "members",
        "socket",
        "socket_mode",
        "socket_owner",
        "socket_group",
        "copies",
        "send_buffer_kb",
        "compression",
        "compression_level",
    ],
};
pub(super) const CHANNEL_TRANSPORT: Section =
    Section { title: "[channel_transport]", keys: &["congestion", "receive_memory_mb"] };

/// Every section, for "did you mean" and for the test of the documentation.
pub(super) const SECTIONS: [&Section; 17] = [
    &TOP,
    &CLUSTER,
    &DETECTOR,
    &DAEMON,
    &OFFLOAD,
    &DPDK,
    &NODE,
    &NODE_LINK,
    &LINK_DPDK,
    &ROUTE,
    &NEIGHBOR,
    &LINK,
    &NETWORK,
    &VHOST_USER,
    &FDB,
    &CHANNEL,
    &CHANNEL_TRANSPORT,
];

/// Edits between a mistyped key and the one that is meant, at most.
const MAX_TYPOS: usize = 2;

/// What to say about a key that is not one.
pub(super) fn unknown_key(key: &str, section: &Section) -> String {
    let title = section.title;
    let fault = format!("unknown key \"{key}\" in {title}");
    let close = section
        .keys
        .iter()
        .map(|known| (strsim::osa_distance(known, key), known))
        .filter(|(distance, known)| *distance <= MAX_TYPOS.min(known.len() / 2))
        .min();
    if let Some((_, known)) = close {
        return format!("{fault}; did you mean \"{known}\"?");
    }
    let elsewhere = SECTIONS.iter().find(|other| other.keys.contains(&key));
    if let Some(other) = elsewhere {
        return format!("{fault}; it belongs into {}", other.title);
    }
    format!("{fault}; known are {}", section.keys.join(", "))
}
