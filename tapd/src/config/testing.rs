//! Parts of a configuration, for tests.

use std::collections::BTreeMap;
use std::time::Duration;

use encap::channel::hub::HubOptions;
use encap::id::{NodeId, Vni};

use super::detector::{self, DetectorConfig};
use super::fault::Collector;
use super::hardware::RawDpdk;
use super::links::NodeAddress;
use super::reader::RawDetector;
use super::{
    ChannelConfig, ChannelMode, Cipher, ClusterConfig, ClusterKey, Config, DaemonConfig, DpdkPort,
    Dscp, MacPolicy, NetworkConfig, NodeConfig, NodeLink, OffloadConfig, Policy, Port, Profile,
    Protect, SocketAccess, TapMtu, dpdk,
};

/// A node id.
pub(crate) fn id(id: u16) -> NodeId {
    NodeId::new(id).unwrap()
}

/// A network's number.
pub(crate) fn vni(vni: u32) -> Vni {
    Vni::new(vni).unwrap()
}

/// A node whose one link is 0, at 192.0.2.`number`.
pub(crate) fn node(number: u16) -> NodeConfig {
    let address = [192, 0, 2, number.to_be_bytes()[1]].into();
    let address = NodeAddress::Static(address);
    let link = NodeLink { name: "0".to_owned(), address, dpdk: None };
    node_with(number, vec![link])
}

/// A node with these links.
pub(crate) fn node_with(number: u16, links: Vec<NodeLink>) -> NodeConfig {
    let name = format!("node{number}");
    NodeConfig { id: id(number), name, links, policy: None, protect: None }
}

/// A link's port with the defaults, in a network of 24 bits.
pub(crate) fn port(text: &str) -> DpdkPort {
    DpdkPort {
        port: Port::parse(text).unwrap(),
        prefix: 24,
        gateway: None,
        routes: Vec::new(),
        neighbors: Vec::new(),
        vlan: None,
        mac: None,
        mtu: 1500,
        exception_tap: None,
        udp_checksum: true,
    }
}

/// A network with the defaults.
pub(crate) fn network(number: u32, members: &[u16]) -> NetworkConfig {
    NetworkConfig {
        vni: vni(number),
        name: format!("vni{number}"),
        tap: Some(format!("tap{number}")),
        vhost_user: Vec::new(),
        tap_mtu: TapMtu::Auto,
        subnets: Vec::new(),
        mac: MacPolicy::Derived,
        existing: false,
        members: members.iter().map(|member| id(*member)).collect(),
        stp: true,
        static_fdb: Vec::new(),
        mss_clamp: true,
        too_big: true,
        loop_probe: true,
        compression: None,
        policy: None,
        dscp: None,
    }
}

/// A key of one digit.
pub(crate) fn key(digit: &str) -> ClusterKey {
    ClusterKey::parse(digit.repeat(64).as_bytes()).unwrap()
}

fn detector() -> DetectorConfig {
    detector::validate(Profile::Fast, RawDetector::default(), &mut Collector::default())
}

/// Node 1 of these nodes, without networks.
pub(crate) fn config(nodes: Vec<NodeConfig>) -> Config {
    Config {
        own: id(1),
        cluster: ClusterConfig {
            key: key("0"),
            next_key: None,
            ciphers: vec![Cipher::Aes256Gcm],
            insecure: false,
            port: 26026,
            policy: Policy::Passive,
            protect: Protect::Control,
            mesh: false,
            dscp: Dscp::Fixed(0),
            ecn: true,
        },
        detector: detector(),
        daemon: DaemonConfig {
            workers: 1,
            dedicated: false,
            spin: None,
            control_socket: "/run/tapd.sock".into(),
            log: "info".into(),
            rehandshake_interval: Duration::from_secs(3600),
            fdb_ageing: Duration::from_secs(300),
            fdb_max_entries: 100,
            bum_frames_per_s: 100,
            rotate_packets: 1000,
        },
        offload: OffloadConfig {
            tap_checksum: true,
            tap_tcp: true,
            tap_udp: true,
            uplink_segmentation: true,
            uplink_coalescing: true,
            source_ports: true,
            bundles: true,
        },
        dpdk: dpdk::validate(RawDpdk::default(), &mut Collector::default()),
        nodes,
        links: BTreeMap::new(),
        networks: Vec::new(),
        channels: Vec::new(),
        transport: HubOptions::default(),
    }
}

/// A channel with the defaults, of all nodes.
pub(crate) fn channel(name: &str) -> ChannelConfig {
    ChannelConfig {
        name: name.to_owned(),
        mode: ChannelMode::Ordered,
        members: None,
        socket: None,
        access: SocketAccess { mode: 0o600, owner: None, group: None },
        copies: false,
        send_buffer: 4 << 20,
        compression: None,
    }
}
