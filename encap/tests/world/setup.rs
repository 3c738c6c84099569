//! Names, addresses and configurations of the nodes of a world.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use encap::channel::hub::HubOptions;
use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::handshake::features::Features;
use encap::id::{NodeId, Vni};
use encap::vtep::config::{Limits, LinkConfig, NetworkConfig, PeerConfig, VtepConfig};
use encap::wire::buf::UplinkId;
use encap::wire::ethernet::MacAddr;

pub const VNI: u32 = 100;

pub fn vni() -> Vni {
    Vni::new(VNI).unwrap()
}

pub fn id(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

pub fn address(number: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number as u8)), 26026)
}

/// A node's address on one of its uplinks.
pub fn address_on(number: u16, uplink: u8) -> SocketAddr {
    let net = if uplink == 0 { [192, 0, 2] } else { [198, 51, 100 + uplink] };
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(net[0], net[1], net[2], number as u8)), 26026)
}

pub fn mac(number: u16) -> MacAddr {
    MacAddr([2, 0, 0, 0, (number >> 8) as u8, number as u8])
}

pub fn frame(to: MacAddr, from: MacAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = to.0.to_vec();
    bytes.extend(from.0);
    bytes.extend([0x88, 0xb5]);
    bytes.extend(payload);
    bytes
}

/// A cluster of nodes 1 to `count` in network 100, as node `me` sees it.
pub fn config(me: u16, count: u16) -> VtepConfig {
    let others = || (1..=count).filter(move |other| *other != me);
    VtepConfig {
        node: id(me),
        keys: vec![ClusterKey::new([7; 32])],
        suites: vec![Suite::Aes256Gcm],
        features: Features::SUPPORTED,
        peers: others().map(peer).collect(),
        networks: vec![NetworkConfig {
            vni: vni(),
            members: others().map(id).collect(),
            ..network()
        }],
        limits: Limits { bum_rate: 0, ..Limits::default() },
        channels: HubOptions::default(),
        workers: 1,
        start_stamp: 1_000_000,
    }
}

/// Network 100 without members, as most scenarios want it.
pub fn network() -> NetworkConfig {
    NetworkConfig {
        vni: vni(),
        members: vec![],
        stp: true,
        max_frame_len: 1446,
        follows_path: true,
        static_fdb: vec![],
        policy: None,
        dscp: None,
        mss_clamp: true,
        too_big: true,
        compression: None,
    }
}

pub fn peer(number: u16) -> PeerConfig {
    peer_on(number, 1)
}

/// A peer with several links of one kind.
pub fn peer_on(number: u16, links: u8) -> PeerConfig {
    let link = |uplink| LinkConfig::to(UplinkId(uplink), address_on(number, uplink), 1472);
    PeerConfig::new(id(number), (0..links).map(link).collect())
}

/// As [`config`], with several links between any two nodes.
pub fn config_on(me: u16, count: u16, links: u8) -> VtepConfig {
    let others = (1..=count).filter(|other| *other != me);
    let peers = others.map(|other| peer_on(other, links)).collect();
    VtepConfig { peers, ..config(me, count) }
}
