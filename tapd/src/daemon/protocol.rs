//! The configuration as the protocol wants it.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use encap::crypto::key::ClusterKey;
use encap::crypto::seal::KeyLimits;
use encap::forward::address_filter::{AddressFilter, AddressRange};
use encap::forward::fdb::FdbLimits;
use encap::forward::marks::Dscp;
use encap::handshake::features::Features;
use encap::link::profile::Profile;
use encap::rng::Rng;
use encap::vtep::config::{Limits, LinkConfig, NetworkConfig, PeerConfig, Remote, VtepConfig};
use encap::wire::buf::UplinkId;
use encap::wire::header::Handle;

use super::networks::Networks;
use super::uplinks::{ETHERNET_LEN, UDP_LEN, Uplinks, ip_header_len};
use crate::config::{self, Config, DetectorConfig, NodeAddress, NodeConfig, Pair, TapMtu};

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
        suites: config.cluster.ciphers.iter().map(|cipher| cipher.suite()).collect(),
        features: features(config),
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
                    follows_path: network.tap_mtu == TapMtu::Auto,
                    policy: network.policy,
                    dscp: network.dscp.as_ref().map(dscp),
                    mss_clamp: network.mss_clamp,
                    too_big: network.too_big,
                    compression: network.compression,
                    static_fdb: network.static_fdb.iter().map(|e| (e.mac, e.node)).collect(),
                })
            })
            .collect(),
        limits: limits(config),
        channels: config.transport,
        workers: config.daemon.workers,
        start_stamp: unix_micros(),
    })
}

/// What this node says that it takes, and so what may be sent to it and by it.
fn features(config: &Config) -> Features {
    let unwanted = if config.offload.bundles { Features::NONE } else { Features::BUNDLES };
    Features::from_bits(Features::SUPPORTED.bits() & !unwanted.bits())
}

fn peer_config(
    config: &Config,
    peer: &NodeConfig,
    uplinks: &Uplinks,
) -> anyhow::Result<PeerConfig> {
    let pairs = config.pairs(peer);
    anyhow::ensure!(!pairs.is_empty(), "there is no link to node {}", peer.name);
    let links = pairs
        .iter()
        .map(|pair| link_config(config, pair, uplinks))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(PeerConfig {
        node: peer.id,
        links,
        policy: config.policy(None, peer),
        protect: config.protect(peer),
        profile: profile(&config.detector),
        dscp: dscp(&config.cluster.dscp),
    })
}

fn link_config(config: &Config, pair: &Pair, uplinks: &Uplinks) -> anyhow::Result<LinkConfig> {
    let id = UplinkId(u8::try_from(pair.local)?);
    let uplink = uplinks.get(id).with_context(|| {
        format!("link {} needs an address that this node had not when it started", pair.name)
    })?;
    let ip_overhead = (ip_header_len(uplink.local.ip()) + UDP_LEN) as usize;
    let remote = match &pair.remote {
        NodeAddress::Static(address) => {
            Remote::Static(SocketAddr::new(*address, config.cluster.port))
        }
        NodeAddress::Dynamic { .. } => Remote::Dynamic(AddressFilter {
            deny: ranges(&pair.options.deny)?,
            allow: ranges(&pair.options.allow)?,
        }),
    };
    Ok(LinkConfig {
        uplink: id,
        remote,
        tag: tag(&pair.name),
        priority: pair.options.priority,
        weight: pair.options.weight,
        max_udp_payload: uplink.max_udp_payload() as usize,
        ip_overhead,
        fixed_udp_payload: pair.options.mtu.map(|mtu| usize::from(mtu) - ip_overhead),
    })
}

/// What both ends call a link on the wire: FNV-1a, 32 bits, of its name.
fn tag(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn ranges(texts: &[String]) -> anyhow::Result<Vec<AddressRange>> {
    texts.iter().map(|text| text.parse().with_context(|| format!("{text:?}"))).collect()
}

fn dscp(dscp: &config::Dscp) -> Dscp {
    match dscp {
        config::Dscp::Fixed(dscp) => Dscp::Fixed(*dscp),
        config::Dscp::Inherit => Dscp::Inherit,
        config::Dscp::Map(pairs, rest) => {
            let mut map = Box::new([*rest; 64]);
            for (inner, outer) in pairs {
                if let Some(place) = map.get_mut(usize::from(*inner)) {
                    *place = *outer;
                }
            }
            Dscp::Map(map)
        }
    }
}

/// The profile, with what the configuration says otherwise.
fn profile(config: &DetectorConfig) -> Profile {
    let base = config.profile.values();
    Profile {
        fast: config.fast.unwrap_or(base.fast),
        normal: config.normal.unwrap_or(base.normal),
        idle: config.idle.unwrap_or(base.idle),
        sole: config.sole.unwrap_or(base.sole),
        min_missed: config.min_missed.unwrap_or(base.min_missed),
        max_missed: config.max_missed.unwrap_or(base.max_missed),
        min_grace: config.min_grace.unwrap_or(base.min_grace),
        down_after: config.down_after.unwrap_or(base.down_after),
        clear_rounds: config.clear_rounds.unwrap_or(base.clear_rounds),
        up_rounds: config.up_rounds.unwrap_or(base.up_rounds),
        max_up_loss_percent: config.max_up_loss_percent.unwrap_or(base.max_up_loss_percent),
        hold: config.hold.unwrap_or(base.hold),
        max_hold: config.max_hold.unwrap_or(base.max_hold),
        peer_timeout: config.peer_timeout.unwrap_or(base.peer_timeout),
    }
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
        heartbeats_per_second: config.detector.heartbeats_per_s,
        ecn: config.cluster.ecn,
        ..Limits::default()
    }
}

fn unix_micros() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
