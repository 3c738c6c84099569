//! The protocol in the deterministic world. Names by kind: `flow_` a scenario, `sec_` an attack.
#![allow(missing_docs, unreachable_pub)]
// The world begins its virtual time somewhere, and a test may panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic)]

#[path = "../world/mod.rs"]
mod world;

mod handshakes;
mod keys;
mod suites;
mod peers;
mod forwarding;
mod links;
mod policies;
mod paths;
mod roaming;
mod budget;
mod attacks;

use std::collections::HashSet;
use std::time::Duration;

use encap::crypto::aead::Suite;
use encap::crypto::key::ClusterKey;
use encap::crypto::seal::KeyLimits;
use encap::event::{DownReason, Event};
use encap::stats::DropReason;
use encap::vtep::SILENCE_LIMIT;
use encap::vtep::config::{Limits, VtepConfig};
use encap::wire::ethernet::MacAddr;
use world::{Wire, World, address, config, for_seeds, frame, id, mac, peer};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Sends numbered frames from node 0 to node 1 (node 1's address is learnt first) and gives the
/// numbers that came out, in their order.
fn stream(world: &mut World, count: u32, gap: Duration) -> Vec<u32> {
    world.transmit(1, &frame(MacAddr::BROADCAST, mac(2), b"hello"));
    world.run_for(ms(5));
    world.nodes[1].delivered.clear();
    for number in 0..count {
        world.transmit(0, &frame(mac(2), mac(1), &number.to_be_bytes()));
        world.run_for(gap);
    }
    world.run_for(ms(500));
    numbers(world, 1)
}

fn numbers(world: &World, node: usize) -> Vec<u32> {
    let payload = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.get(14..18)?.try_into().ok()?));
    world.nodes[node].delivered.iter().filter_map(|(_, bytes)| payload(bytes)).collect()
}

fn rotating(me: u16) -> VtepConfig {
    let key = KeyLimits { soft_packets: 1_000, ..KeyLimits::AES_256_GCM };
    let base = config(me, 2);
    VtepConfig { limits: Limits { key, ..base.limits }, ..base }
}
