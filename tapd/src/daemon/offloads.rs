//! What `tapd show offloads` says: which offloads are at work, and what they bring.

use std::time::Instant;

use encap::handshake::features::Features;
use fastpath::tap::{Tap, TapCounters};
use fastpath::uplink::UplinkCounters;

use super::Daemon;
use super::networks::Network;
use super::uplinks::Sockets;
use crate::config::OffloadConfig;
use crate::control::{OffloadReply, OffloadsReply, RunsReply};

/// One switch: what is wanted, what there was at first, what is left of it.
struct Switch {
    key: &'static str,
    wanted: bool,
    granted: bool,
    on: bool,
    refused: u64,
}

impl Switch {
    fn state(&self) -> &'static str {
        match (self.wanted, self.granted, self.on) {
            (false, ..) => "off in the configuration",
            (true, false, _) => "not to be had",
            (true, true, true) => "on",
            (true, true, false) => "ended: the kernel refused what it had granted",
        }
    }

    fn reply(&self, port: &str) -> OffloadReply {
        OffloadReply {
            port: port.to_owned(),
            offload: self.key.to_owned(),
            wanted: self.wanted,
            granted: self.wanted && self.granted,
            on: self.wanted && self.on,
            state: self.state().to_owned(),
            refused: self.refused,
        }
    }
}

impl Daemon {
    pub(super) fn offloads(&self, now: Instant) -> OffloadsReply {
        let mut reply = OffloadsReply { bundles: self.bundles(now), ..OffloadsReply::default() };
        let config = &self.config.offload;
        for network in self.networks.iter() {
            let Some(tap) = &network.tap else { continue };
            let port = format!("tap {}", network.tap_name());
            let switches = tap_switches(config, tap);
            reply.offloads.extend(switches.iter().map(|switch| switch.reply(&port)));
            reply.runs.extend(tap_runs(&port, network));
        }
        for (number, uplink) in self.uplinks.iter().enumerate() {
            let port = format!("uplink {number} {}", uplink.local);
            // A DPDK port's are the card's: `tapd show ports` has them.
            if let Some(sockets) = uplink.sockets() {
                let switches = uplink_switches(config, sockets);
                reply.offloads.extend(switches.iter().map(|switch| switch.reply(&port)));
                reply.runs.extend(uplink_runs(&port, sockets));
            }
        }
        reply.runs.push(self.segments());
        reply.runs.extend(self.bundled());
        reply
    }

    fn bundles(&self, now: Instant) -> String {
        if !self.config.offload.bundles {
            return "off in the configuration".to_owned();
        }
        let peers = self.vtep.peer_status(now);
        let up = peers.iter().filter(|peer| peer.up);
        let with = up.clone().filter(|peer| peer.features.contains(Features::BUNDLES)).count();
        format!("on, with {with} of {} peers that are up", up.count())
    }

    fn total(&self, name: &str) -> u64 {
        let of = |worker: &super::RunningWorker| {
            worker.counters.totals().find(|(known, ..)| *known == name).map_or(0, |(_, _, n)| n)
        };
        self.workers.iter().map(of).sum()
    }

    /// Frames that the super-frames of all taps stood for.
    fn segments(&self) -> RunsReply {
        let (packets, calls) = (self.total("segments_in"), self.total("super_frames_in"));
        runs("all taps", "super-frames read", Some(packets), calls, None)
    }

    fn bundled(&self) -> [RunsReply; 2] {
        let row = |direction, frames, bundles| {
            runs("all uplinks", direction, Some(self.total(frames)), self.total(bundles), None)
        };
        [
            row("bundles sent", "bundled_frames_out", "bundles_out"),
            row("bundles received", "bundled_frames_in", "bundles_in"),
        ]
    }
}

fn tap_switches(config: &OffloadConfig, tap: &Tap) -> [Switch; 3] {
    let offload = tap.offload();
    let granted = offload.granted();
    let [tcp_refused, udp_refused] = offload.refusals();
    // The two super-frame switches depend on the first one.
    let checksum = config.tap_checksum;
    [
        Switch {
            key: "tap_checksum",
            wanted: checksum,
            granted: granted.checksum,
            on: granted.checksum,
            refused: 0,
        },
        Switch {
            key: "tap_tcp",
            wanted: checksum && config.tap_tcp,
            granted: granted.segmentation_tcp,
            on: offload.coalescing_tcp(),
            refused: tcp_refused.into(),
        },
        Switch {
            key: "tap_udp",
            wanted: checksum && config.tap_udp,
            granted: granted.segmentation_udp,
            on: offload.coalescing_udp(),
            refused: udp_refused.into(),
        },
    ]
}

fn uplink_switches(config: &OffloadConfig, sockets: &Sockets) -> [Switch; 2] {
    let sum = |pick: fn(&UplinkCounters) -> u64| -> u64 {
        sockets.counters.iter().map(|counters| pick(counters)).sum()
    };
    let ended = sum(|counters| counters.tx_segmentation_ended.get()) > 0;
    // Each worker has a socket of its own: it is on while all of them have it.
    let sending = sockets.offloads.iter().all(|offload| offload.segmentation());
    let receiving = sockets.offloads.iter().all(|offload| offload.receive_coalescing());
    [
        Switch {
            key: "uplink_segmentation",
            wanted: config.uplink_segmentation,
            granted: sending || ended,
            on: sending,
            refused: sum(|counters| counters.tx_segmentation_failed.get()),
        },
        Switch {
            key: "uplink_coalescing",
            wanted: config.uplink_coalescing,
            granted: receiving,
            on: receiving,
            refused: 0,
        },
    ]
}

fn tap_runs(port: &str, network: &Network) -> [RunsReply; 2] {
    let sum = |pick: fn(&TapCounters) -> u64| -> u64 {
        network.counters().iter().map(|counters| pick(counters)).sum()
    };
    let read = sum(|counters| counters.rx_frames.get());
    let written = sum(|counters| counters.tx_frames.get());
    let coalesced = sum(|counters| counters.tx_coalesced_frames.get());
    let writes = written.saturating_sub(coalesced) + sum(|counters| counters.tx_super_frames.get());
    let (bytes_read, bytes_written) =
        (sum(|counters| counters.rx_bytes.get()), sum(|counters| counters.tx_bytes.get()));
    [
        // How many frames a super-frame stands for is known when it was cut, for all taps together.
        runs(port, "read", None, read, Some(bytes_read)),
        runs(port, "written", Some(written), writes, Some(bytes_written)),
    ]
}

fn uplink_runs(port: &str, sockets: &Sockets) -> [RunsReply; 2] {
    let sum = |pick: fn(&UplinkCounters) -> u64| -> u64 {
        sockets.counters.iter().map(|counters| pick(counters)).sum()
    };
    [
        runs(
            port,
            "received",
            Some(sum(|counters| counters.rx_datagrams.get())),
            sum(|counters| counters.rx_messages.get()),
            Some(sum(|counters| counters.rx_bytes.get())),
        ),
        runs(
            port,
            "sent",
            Some(sum(|counters| counters.tx_datagrams.get())),
            sum(|counters| counters.tx_messages.get()),
            Some(sum(|counters| counters.tx_bytes.get())),
        ),
    ]
}

fn runs(
    port: &str,
    direction: &str,
    packets: Option<u64>,
    calls: u64,
    bytes: Option<u64>,
) -> RunsReply {
    RunsReply {
        port: port.to_owned(),
        direction: direction.to_owned(),
        packets,
        calls,
        packets_per_call: packets.filter(|_| calls > 0).map(|n| n as f64 / calls as f64),
        bytes_per_call: bytes.and_then(|bytes| bytes.checked_div(calls)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_tell_who_switched_it_off() {
        let state = |wanted, granted, on| {
            Switch { key: "tap_tcp", wanted, granted, on, refused: 0 }.state()
        };
        assert_eq!(state(true, true, true), "on");
        assert_eq!(state(false, false, false), "off in the configuration");
        assert_eq!(state(true, false, false), "not to be had");
        assert!(state(true, true, false).starts_with("ended"));
    }

    #[test]
    fn ratios_need_calls() {
        assert_eq!(runs("p", "sent", Some(0), 0, Some(0)).packets_per_call, None);
        let row = runs("p", "sent", Some(15), 10, Some(1999));
        assert_eq!((row.packets_per_call, row.bytes_per_call), (Some(1.5), Some(199)));
    }
}
