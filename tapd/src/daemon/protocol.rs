//! The configuration as the protocol wants it.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::crypto::seal::KeyLimits;
use encap::forward::fdb::FdbLimits;
use encap::rng::Rng;
use encap::tables::LinkAddress;
use encap::vtep::config::{Limits, NetworkConfig, PeerConfig, VtepConfig};
use encap::wire::buf::UplinkId;
use encap::wire::header::Handle;

use super::networks::Networks;
use super::uplinks::{ETHERNET_LEN, Uplinks};
use crate::config::{Cipher, Config, NodeConfig};

/// The operating system's randomness.
pub(super) struct SystemRng;

impl Rng for SystemRng {
    fn fill(&mut self, bytes: &mut [u8]) {
        // Without randomness there is no security: nothing may go on.
        if let Err(error) = getrandom::fill(bytes) {
            log::error!("the operating system gives no randomness: {error}");
            std::process::abort();
        }
    }
}

pub(super) fn vtep_config(
    config: &Config,
    uplinks: &Uplinks,
    networks: &Networks,
) -> anyhow::Result<VtepConfig> {
    let keys = [Some(&config.cluster.key), config.cluster.next_key.as_ref()];
    let list: Vec<_> = config.own_networks().collect();
    anyhow::ensure!(
        list.len() <= usize::from(Handle::MAX),
        "{} networks are more than a node can take part in ({})",
        list.len(),
        Handle::MAX
    );
    Ok(VtepConfig {
        node: config.own,
        keys: keys.into_iter().flatten().map(|key| ClusterKey::new(**key.bytes())).collect(),
        suites: config.cluster.ciphers.iter().map(|cipher| suite(*cipher)).collect(),
        peers: config
            .peers()
            .map(|peer| peer_config(config, peer, uplinks))
            .collect::<anyhow::Result<_>>()?,
        networks: list
            .into_iter()
            .filter_map(|network| {
                let opened = networks.get(network.vni)?;
                let max_frame_len = opened.own_tap_mtu + ETHERNET_LEN;
                Some(NetworkConfig {
                    vni: network.vni,
                    members: network
                        .members
                        .iter()
                        .filter(|m| **m != config.own)
                        .copied()
                        .collect(),
                    stp: network.stp,
                    max_frame_len: u16::try_from(max_frame_len).unwrap_or(u16::MAX),
                    static_fdb: network.static_fdb.iter().map(|e| (e.mac, e.node)).collect(),
                })
            })
            .collect(),
        limits: limits(config),
        workers: config.daemon.workers,
        start_stamp: unix_micros(),
    })
}

const fn suite(cipher: Cipher) -> Suite {
    match cipher {
        Cipher::Aes256Gcm => Suite::Aes256Gcm,
        Cipher::None => Suite::Clear,
    }
}

fn peer_config(
    config: &Config,
    peer: &NodeConfig,
    uplinks: &Uplinks,
) -> anyhow::Result<PeerConfig> {
    let links: Vec<_> = config
        .pairs(peer)
        .iter()
        .filter_map(|pair| {
            let id = UplinkId(u8::try_from(pair.local).ok()?);
            Some(LinkAddress {
                uplink: id,
                remote: SocketAddr::new(pair.remote.fixed()?, config.cluster.port),
                max_udp_payload: uplinks.get(id)?.max_udp_payload() as usize,
            })
        })
        .collect();
    anyhow::ensure!(!links.is_empty(), "there is no link to node {}", peer.name);
    Ok(PeerConfig { node: peer.id, links })
}

fn limits(config: &Config) -> Limits {
    let daemon = &config.daemon;
    let soft_packets = u32::try_from(daemon.rotate_packets).unwrap_or(u32::MAX);
    let standard = KeyLimits::AES_256_GCM;
    Limits {
        key: KeyLimits { soft_packets: soft_packets.min(standard.soft_packets), ..standard },
        rehandshake: daemon.rehandshake_interval,
        fdb: FdbLimits {
            ageing_ms: u64::try_from(daemon.fdb_ageing.as_millis()).unwrap_or(u64::MAX),
            max_entries: daemon.fdb_max_entries,
        },
        bum_rate: daemon.bum_frames_per_s,
        ..Limits::default()
    }
}

fn unix_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
