//! What `tapd show ports` and `tapd show neighbors` say: every port of this node, and who is asked
//! for at those past the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;

use encap::id::LocalPort;
use fastpath::dpdk::{Port, capability};
use fastpath::neighbor::NeighborState;
use fastpath::uplink::dpdk::DpdkPort;

use super::Daemon;
use super::networks::Network;
use super::report::summed;
use super::uplinks::{Kind, Sockets, Uplink};
use super::vm_ports::{VmPort, feature_names};
use crate::control::{NeighborReply, PortReply};

/// What a card, or the other side of a port in memory, does for us.
const CAPABILITIES: [(u32, &str); 9] = [
    (capability::RX_IP_SUM, "IP checksums in"),
    (capability::RX_L4_SUM, "checksums in"),
    (capability::RX_SCATTER, "scattered in"),
    (capability::RX_LRO, "super-frames in"),
    (capability::TX_IP_SUM, "IP checksums out"),
    (capability::TX_UDP_SUM, "UDP checksums out"),
    (capability::TX_TCP_SUM, "TCP checksums out"),
    (capability::TX_TCP_SEG, "super-frames out"),
    (capability::TX_MULTI, "scattered out"),
];

type Counts = BTreeMap<String, u64>;

/// Sums over the queues of a port.
fn sums<C>(
    queues: &[Arc<C>],
    values: impl Fn(&C) -> Vec<(&'static str, u64)>,
) -> BTreeMap<String, u64> {
    summed(queues.iter().flat_map(|counters| values(counters)))
}

impl Network {
    /// What a port of the network is called where ports are named.
    pub(super) fn port_name(&self, local: LocalPort) -> Option<String> {
        if local == LocalPort::TAP {
            return self.tap.as_ref().map(|_| format!("tap {}", self.tap_name()));
        }
        self.vm_ports.iter().find(|port| port.local == local).map(VmPort::name)
    }

    fn tap_counts(&self) -> Counts {
        sums(self.counters(), |counters| counters.values().collect())
    }
}

impl VmPort {
    fn counts(&self) -> Counts {
        sums(self.port.counters(), |counters| counters.values().collect())
    }
}

fn socket_counts(sockets: &Sockets) -> Counts {
    sums(&sockets.counters, |counters| counters.values().collect())
}

fn dpdk_counts(port: &DpdkPort) -> Counts {
    let mut counts = sums(port.counters(), |counters| counters.values().collect());
    counts.extend(sums(port.underlay_counters(), |counters| counters.values().collect()));
    counts
}

/// What an uplink is called where ports are named.
fn uplink_name(number: usize, uplink: &Uplink) -> String {
    format!("uplink {number} {}", uplink.local)
}

impl Daemon {
    /// Counters of every port.
    pub(super) fn port_counters(&self) -> BTreeMap<String, Counts> {
        let mut ports = BTreeMap::new();
        for (number, uplink) in self.uplinks.iter().enumerate() {
            let name = uplink_name(number, uplink);
            match &uplink.kind {
                Kind::Udp(sockets) => {
                    ports.insert(name, socket_counts(sockets));
                }
                Kind::Dpdk(port) => {
                    let neighbors = summed(port.neighbor_counters().values());
                    ports.insert(format!("{name} neighbors"), neighbors);
                    ports.insert(name, dpdk_counts(port));
                }
            }
        }
        for network in self.networks.iter() {
            if network.tap.is_some() {
                ports.insert(format!("tap {}", network.tap_name()), network.tap_counts());
            }
            ports.extend(network.vm_ports.iter().map(|port| (port.name(), port.counts())));
        }
        ports
    }

    pub(super) fn port_rows(&self) -> Vec<PortReply> {
        let mut rows = Vec::new();
        for network in self.networks.iter() {
            rows.extend(tap_row(network));
            rows.extend(network.vm_ports.iter().map(|port| vm_row(network, port)));
        }
        for (number, uplink) in self.uplinks.iter().enumerate() {
            let row = PortReply {
                port: uplink_name(number, uplink),
                device: uplink.interface.clone(),
                link: Some(uplink.name.clone()),
                address: Some(uplink.local.to_string()),
                mtu: Some(uplink.ip_mtu),
                queues: self.workers.len(),
                ..PortReply::default()
            };
            rows.push(match &uplink.kind {
                Kind::Udp(sockets) => udp_row(row, sockets),
                Kind::Dpdk(port) => dpdk_row(row, port),
            });
        }
        rows
    }

    pub(super) fn neighbor_rows(&self) -> Vec<NeighborReply> {
        let mut rows = Vec::new();
        for (number, uplink) in self.uplinks.iter().enumerate() {
            let Some(port) = uplink.dpdk() else { continue };
            rows.extend(port.neighbors().into_iter().map(|neighbor| NeighborReply {
                port: uplink_name(number, uplink),
                address: neighbor.ip.to_string(),
                mac: neighbor.mac.map(|mac| mac.to_string()),
                state: state_name(neighbor.state).to_owned(),
                age_ms: u64::try_from(neighbor.age.as_millis()).unwrap_or(u64::MAX),
            }));
        }
        rows
    }
}

const fn state_name(state: NeighborState) -> &'static str {
    match state {
        NeighborState::Incomplete => "incomplete",
        NeighborState::Reachable => "reachable",
        NeighborState::Stale => "stale",
        NeighborState::Delay => "delay",
        NeighborState::Probe => "probe",
        NeighborState::Failed => "failed",
        NeighborState::Static => "static",
    }
}

/// Takes packets and bytes from counters of these names.
fn take(row: &mut PortReply, counts: &Counts, [rx, tx]: [&str; 2]) {
    let of = |name: &str| counts.get(name).copied().unwrap_or(0);
    row.rx_packets = of(rx);
    row.tx_packets = of(tx);
    row.rx_bytes = of("rx_bytes");
    row.tx_bytes = of("tx_bytes");
}

/// Sum of the counters whose names begin so.
fn dropped(counts: &Counts, prefix: &str) -> Option<u64> {
    let list = counts.iter().filter(|(name, _)| name.starts_with(prefix));
    Some(list.map(|(_, count)| count).sum())
}

fn tap_row(network: &Network) -> Option<PortReply> {
    let tap = network.tap.as_ref()?;
    let offload = tap.offload();
    let granted = offload.granted();
    let offloads = [
        (granted.checksum, "checksums"),
        (granted.segmentation_tcp, "TCP super-frames in"),
        (granted.segmentation_udp, "UDP super-frames in"),
        (offload.coalescing_tcp(), "TCP super-frames out"),
        (offload.coalescing_udp(), "UDP super-frames out"),
    ];
    let mut row = PortReply {
        port: format!("tap {}", network.tap_name()),
        kind: "tap".to_owned(),
        device: tap.interface().name().to_owned(),
        vni: Some(network.config.vni.get()),
        mac: tap.interface().mac().ok().map(|mac| mac.to_string()),
        mtu: Some(network.tap_mtu),
        up: tap.interface().is_running().ok(),
        queues: tap.counters().len(),
        offloads: words(&offloads),
        ..PortReply::default()
    };
    let counts = network.tap_counts();
    take(&mut row, &counts, ["rx_frames", "tx_frames"]);
    row.rx_errors = dropped(&counts, "rx_dropped_");
    row.tx_errors = dropped(&counts, "tx_dropped_");
    Some(row)
}

fn words(list: &[(bool, &str)]) -> Vec<String> {
    list.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()).collect()
}

fn vm_row(network: &Network, vm: &VmPort) -> PortReply {
    let mut row = PortReply {
        port: vm.name(),
        kind: "vhost-user".to_owned(),
        device: format!("{} {}", vm.config.socket.display(), vm.config.mode.name()),
        vni: Some(network.config.vni.get()),
        mtu: Some(network.tap_mtu),
        up: Some(vm.connected),
        queues: vm.port.enabled_queues(),
        ..PortReply::default()
    };
    if let Some(features) = vm.port.features() {
        row.offloads = feature_names(features).map(ToOwned::to_owned).collect();
    }
    below(&mut row, vm.port.port());
    // A guest has an address of its own, which is none of the port's.
    row.mac = None;
    let counts = vm.counts();
    take(&mut row, &counts, ["rx_frames", "tx_frames"]);
    row.rx_errors = dropped(&counts, "rx_dropped_");
    row.tx_errors = dropped(&counts, "tx_dropped_");
    row
}

fn udp_row(mut row: PortReply, sockets: &Sockets) -> PortReply {
    row.kind = "udp".to_owned();
    let sending = sockets.offloads.iter().all(|offload| offload.segmentation());
    let receiving = sockets.offloads.iter().all(|offload| offload.receive_coalescing());
    row.offloads = words(&[(receiving, "runs in"), (sending, "runs out")]);
    let counts = socket_counts(sockets);
    take(&mut row, &counts, ["rx_datagrams", "tx_datagrams"]);
    row.rx_errors = dropped(&counts, "rx_dropped_");
    row.tx_errors = dropped(&counts, "tx_dropped_");
    row.rx_missed = counts.get("rx_dropped_kernel").copied();
    row
}

fn dpdk_row(mut row: PortReply, uplink: &DpdkPort) -> PortReply {
    row.kind = "dpdk".to_owned();
    row.up = Some(uplink.link_is_up());
    let capabilities = uplink.port().capabilities();
    row.offloads = words(&CAPABILITIES.map(|(bit, word)| (capabilities & bit != 0, word)));
    below(&mut row, uplink.port());
    row.mac = Some(uplink.local().mac.to_string());
    row
}

/// What DPDK says of a port.
fn below(row: &mut PortReply, port: &Port) {
    if let Ok(info) = port.info() {
        row.driver = Some(info.driver);
        row.mac = Some(info.mac.to_string());
        row.numa_node = info.numa_node;
    }
    if port.has_interrupts() {
        row.offloads.push("interrupts".to_owned());
    }
    if let Ok(stats) = port.stats() {
        row.rx_packets = stats.rx_packets;
        row.rx_bytes = stats.rx_bytes;
        row.tx_packets = stats.tx_packets;
        row.tx_bytes = stats.tx_bytes;
        row.rx_errors = Some(stats.rx_errors);
        row.tx_errors = Some(stats.tx_errors);
        row.rx_missed = Some(stats.rx_missed);
        row.rx_no_buffer = Some(stats.rx_no_mbuf);
    }
    row.buffers = Some(port.pool().count());
    row.buffers_used = Some(port.pool().in_use());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_taken_by_their_names() {
        let counts = Counts::from([
            ("rx_frames".to_owned(), 3),
            ("tx_bytes".to_owned(), 9),
            ("rx_dropped_short".to_owned(), 2),
            ("rx_dropped_long".to_owned(), 5),
        ]);
        let mut row = PortReply::default();
        take(&mut row, &counts, ["rx_frames", "tx_frames"]);
        assert_eq!((row.rx_packets, row.tx_packets, row.tx_bytes), (3, 0, 9));
        assert_eq!(dropped(&counts, "rx_dropped_"), Some(7));
        assert_eq!(words(&[(true, "a"), (false, "b")]), ["a"]);
    }
}
