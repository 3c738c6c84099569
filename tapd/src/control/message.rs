//! What is asked and answered on the control socket.

use std::collections::BTreeMap;

use encap::id::Vni;
use encap::wire::ethernet::MacAddr;
use serde::{Deserialize, Serialize};

use super::CONTROL_VERSION;
use crate::config::MIN_UNDERLAY_MTU;

/// The line that asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RequestLine {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) request: Request,
}

/// Only the version of a line: read first, so that another version is called by its name.
#[derive(Debug, Deserialize)]
pub(super) struct VersionOnly {
    pub(super) version: u32,
}

/// What a client can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Request {
    /// State, as the reply that belongs to the topic.
    Show {
        /// What about.
        topic: Topic,
        /// Only the one of that name, where the topic is [`Topic::Channels`]; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// A static entry is added, or replaced. No data.
    FdbAdd {
        /// The network.
        #[serde(with = "vni")]
        vni: Vni,
        /// The station.
        #[serde(with = "mac")]
        mac: MacAddr,
        /// Id or name of the node that it is behind.
        node: String,
    },
    /// An entry is removed, static or learnt. No data.
    FdbDel {
        /// The network.
        #[serde(with = "vni")]
        vni: Vni,
        /// The station.
        #[serde(with = "mac")]
        mac: MacAddr,
    },
    /// Learnt entries are removed. No data.
    FdbFlush {
        /// Only this network's.
        #[serde(with = "optional_vni", default, skip_serializing_if = "Option::is_none")]
        vni: Option<Vni>,
    },
    /// The configuration is read again: [`ReloadReply`].
    Reload,
    /// New handshakes. No data.
    Rehandshake {
        /// Id or name of the one peer; all without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
    /// A link carries no frames any more, for as long as another one can. No data.
    LinkDrain {
        /// Id or name of the peer.
        node: String,
        /// Name of the link, or its index.
        link: String,
    },
    /// A drained link carries frames again. No data.
    LinkUndrain {
        /// Id or name of the peer.
        node: String,
        /// Name of the link, or its index.
        link: String,
    },
    /// The path MTU of a link is fixed until the daemon ends, or discovered again. No data.
    LinkMtu {
        /// Id or name of the peer.
        node: String,
        /// Name of the link, or its index.
        link: String,
        /// Bytes of IP, [`MIN_UNDERLAY_MTU`] or more; discovered without it.
        #[serde(with = "underlay_mtu", default, skip_serializing_if = "Option::is_none")]
        size: Option<u16>,
    },
    /// What happens from now on, as a stream of [`super::Event`], one JSON line each.
    Watch {},
    /// Overlay frames as a stream of pcapng.
    Capture {
        /// Only this network's.
        #[serde(with = "optional_vni", default, skip_serializing_if = "Option::is_none")]
        vni: Option<Vni>,
        /// Ends after so many frames.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
    },
}

/// What `tapd show` can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Topic {
    /// The daemon: version, ciphers, MTU arithmetic
    #[default]
    Status,
    /// Nodes and their sessions
    Peers,
    /// Paths to the peers
    Links,
    /// Virtual networks and their taps
    Networks,
    /// Stations and where they are
    Fdb,
    /// What is left to kernel and cards, and how many packets share a call
    Offloads,
    /// Ports of this node: taps, VM ports, uplinks
    Ports,
    /// Raw channels of programs, their peers, and the paths that they share
    Channels,
    /// Who is asked for MAC addresses at DPDK ports
    Neighbors,
    /// Totals, and what was dropped for which reason
    Counters,
}

/// The line that answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReplyLine {
    pub(super) version: u32,
    pub(super) ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl ReplyLine {
    pub(super) fn ok(data: serde_json::Value) -> Self {
        Self { version: CONTROL_VERSION, ok: true, data: Some(data), error: None }
    }

    pub(super) fn refused(error: String) -> Self {
        Self { version: CONTROL_VERSION, ok: false, data: None, error: Some(error) }
    }
}

/// Answers [`Topic::Status`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusReply {
    /// Id of this node.
    pub(crate) node: u16,
    /// Name of this node.
    pub(crate) name: String,
    /// Version of the program.
    pub(crate) version: String,
    /// Seconds since the start.
    pub(crate) uptime_s: u64,
    /// Ciphers that may be used, in order of preference.
    pub(crate) ciphers: Vec<String>,
    /// Whether clear mode is allowed.
    pub(crate) insecure: bool,
    /// Base UDP port.
    pub(crate) port: u16,
    /// Packet threads.
    pub(crate) workers: usize,
    /// Process id.
    pub(crate) pid: u32,
    /// Resident memory in bytes, where it is known.
    pub(crate) rss_bytes: Option<u64>,
    /// Peers with a session.
    pub(crate) peers_up: usize,
    /// Peers in the configuration.
    pub(crate) peers: usize,
    /// How each tap's MTU comes about, one line per network.
    pub(crate) tap_mtu: Vec<String>,
}

/// One element of the answer to [`Topic::Peers`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PeerReply {
    /// Node id.
    pub(crate) node: u16,
    /// Node name.
    pub(crate) name: String,
    /// `up` or `down`.
    pub(crate) state: String,
    /// Negotiated cipher while up.
    pub(crate) cipher: Option<String>,
    /// Public name of the cluster key that the session was agreed under, while up: the same on
    /// all nodes that have the same key file.
    pub(crate) key_id: Option<String>,
    /// Address and port that datagrams go to.
    pub(crate) address: String,
    /// Seconds since the session's handshake, while up.
    pub(crate) age_s: Option<u64>,
    /// Epoch that this node seals with.
    pub(crate) epoch_tx: Option<u32>,
    /// Newest epoch that the peer sealed with.
    pub(crate) epoch_rx: Option<u32>,
    /// Round-trip time in microseconds, where it was measured.
    pub(crate) rtt_us: Option<u64>,
    /// Milliseconds since the last authenticated datagram.
    pub(crate) last_seen_ms: Option<u64>,
    /// Handshakes completed.
    pub(crate) handshakes: u64,
    /// Frames received.
    pub(crate) rx_frames: u64,
    /// Frames sent.
    pub(crate) tx_frames: u64,
    /// Bytes of frames received.
    pub(crate) rx_bytes: u64,
    /// Bytes of frames sent.
    pub(crate) tx_bytes: u64,
    /// Why the peer is down.
    pub(crate) down_reason: Option<String>,
    /// Which links carry the frames to it, unless a network has a policy of its own.
    pub(crate) policy: String,
    /// What is kept to be sent again when a link fails.
    pub(crate) protect: String,
    /// Links that are up.
    pub(crate) links_up: usize,
    /// Links in all.
    pub(crate) links: usize,
    /// Largest UDP payload in bytes that every link takes which may carry a frame.
    pub(crate) max_udp_payload: u32,
}

/// One element of the answer to [`Topic::Links`].
///
/// What was not measured yet is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LinkReply {
    /// Id of the peer.
    pub(crate) node: u16,
    /// Name of the peer.
    pub(crate) peer: String,
    /// Position among the peer's links, from 0; both ends have the same.
    pub(crate) index: u8,
    /// Name in the configuration.
    pub(crate) name: String,
    /// Local address and port.
    pub(crate) local: String,
    /// Remote address and port.
    pub(crate) remote: String,
    /// `up`, `suspect` or `down`.
    pub(crate) state: String,
    /// Taken out of use by `tapd link drain`.
    pub(crate) drained: bool,
    /// Carries frames now.
    pub(crate) sending: bool,
    /// Why it is in this state.
    pub(crate) reason: Option<String>,
    /// Links of a higher one are preferred.
    pub(crate) priority: u8,
    /// Share of the flows or frames.
    pub(crate) weight: u16,
    /// MTU of the uplink in bytes of IP, where it is known.
    pub(crate) uplink_mtu: Option<u32>,
    /// MTU of the path to the peer in bytes of IP, as far as it is known.
    pub(crate) path_mtu: Option<u32>,
    /// Largest UDP payload that is sent, in bytes.
    pub(crate) max_udp_payload: u32,
    /// How the path MTU is known, such as `probed`.
    pub(crate) path_mtu_how: Option<String>,
    /// Seconds since the path MTU changed.
    pub(crate) path_mtu_age_s: Option<u64>,
    /// A larger path MTU is being looked for.
    pub(crate) searching: bool,
    /// Between the heartbeats of this node, in microseconds.
    pub(crate) interval_us: Option<u64>,
    /// Smallest round-trip time of late, in microseconds.
    pub(crate) rtt_min_us: Option<u64>,
    /// Smoothed round-trip time, in microseconds.
    pub(crate) rtt_us: Option<u64>,
    /// Round-trip time in microseconds that half of the heartbeats stay below.
    pub(crate) rtt_p50_us: Option<u64>,
    /// The same for 99 in 100.
    pub(crate) rtt_p99_us: Option<u64>,
    /// The same for 999 in 1000.
    pub(crate) rtt_p999_us: Option<u64>,
    /// Smoothed variation of the time from the peer to here, in microseconds (RFC 3550).
    pub(crate) jitter_us: Option<u64>,
    /// How much longer than the quickest link of the peer it takes from there to here, in
    /// microseconds.
    pub(crate) skew_us: Option<i64>,
    /// Heartbeats lost on the way here, in millionths.
    pub(crate) loss_rx_ppm: Option<u32>,
    /// Heartbeats lost on the way to the peer, in millionths.
    pub(crate) loss_tx_ppm: Option<u32>,
    /// Datagrams received.
    pub(crate) rx_datagrams: u64,
    /// Datagrams sent.
    pub(crate) tx_datagrams: u64,
    /// Bytes of UDP payload received.
    pub(crate) rx_bytes: u64,
    /// Bytes of UDP payload sent.
    pub(crate) tx_bytes: u64,
    /// Datagrams received that another link had brought before.
    pub(crate) copies: u64,
    /// Datagrams sent here again as another link failed.
    pub(crate) resent: u64,
    /// Changes of the state, newest first, at most 16.
    pub(crate) transitions: Vec<TransitionReply>,
    /// Errors by kind.
    pub(crate) errors: BTreeMap<String, u64>,
}

/// A change of a link's state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TransitionReply {
    /// Milliseconds since it happened.
    pub(crate) ago_ms: u64,
    /// State before, as in [`LinkReply::state`].
    pub(crate) from: String,
    /// State after.
    pub(crate) to: String,
    /// Why, in a few words.
    pub(crate) cause: String,
}

/// A member of a network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MemberReply {
    /// Node id.
    pub(crate) node: u16,
    /// Node name.
    pub(crate) name: String,
    /// `up`, `down`, or `local` for this node.
    pub(crate) state: String,
}

/// One element of the answer to [`Topic::Networks`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkReply {
    /// Virtual network identifier.
    pub(crate) vni: u32,
    /// Name.
    pub(crate) name: String,
    /// Interface name of the tap.
    pub(crate) tap: String,
    /// MTU of the tap, in bytes.
    pub(crate) tap_mtu: u32,
    /// How it comes about, such as
    /// `uplink eth0 1500 - IPv4 20 - UDP 8 - tapd 26 - Ethernet 14 = 1432`.
    pub(crate) tap_mtu_arithmetic: String,
    /// MAC address of the tap.
    pub(crate) mac: String,
    /// Addresses of the tap, with prefix lengths.
    pub(crate) addresses: Vec<String>,
    /// A loop was found behind the tap: nothing passes for a while.
    #[serde(default)]
    pub(crate) looped: bool,
    /// Nodes of the network.
    pub(crate) members: Vec<MemberReply>,
    /// Entries of the forwarding database.
    pub(crate) fdb_entries: u64,
    /// Frames from other nodes, written to the tap.
    pub(crate) rx_frames: u64,
    /// Frames read from the tap.
    pub(crate) tx_frames: u64,
    /// Bytes of frames from other nodes.
    pub(crate) rx_bytes: u64,
    /// Bytes of frames read from the tap.
    pub(crate) tx_bytes: u64,
}

/// One element of the answer to [`Topic::Fdb`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FdbReply {
    /// Virtual network identifier.
    pub(crate) vni: u32,
    /// The station.
    pub(crate) mac: String,
    /// Name of the peer that it is behind, or `local`.
    #[serde(rename = "where")]
    pub(crate) behind: String,
    /// Where it is on this node, as in [`PortReply::port`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<String>,
    /// `static` or `learnt`.
    pub(crate) kind: String,
    /// Seconds since it was last seen, for learnt ones.
    pub(crate) age_s: Option<u64>,
    /// Held where it is, because it moved too often.
    pub(crate) frozen: bool,
}

/// Answers [`Topic::Offloads`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct OffloadsReply {
    /// Every offload of every tap and uplink.
    pub(crate) offloads: Vec<OffloadReply>,
    /// How many packets went in one call to the kernel, for every tap and uplink.
    pub(crate) runs: Vec<RunsReply>,
    /// Whether small frames share datagrams, and with how many peers.
    pub(crate) bundles: String,
}

/// One offload of a tap or an uplink.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct OffloadReply {
    /// The tap or the uplink, as in [`CountersReply::ports`].
    pub(crate) port: String,
    /// Its key in `[offload]`.
    pub(crate) offload: String,
    /// The configuration has it on.
    pub(crate) wanted: bool,
    /// The kernel gave it when the port was opened.
    pub(crate) granted: bool,
    /// It is at work.
    pub(crate) on: bool,
    /// The same three in words.
    pub(crate) state: String,
    /// Times that the kernel refused to do it.
    pub(crate) refused: u64,
}

/// How packets went through a tap or an uplink in one direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunsReply {
    /// The tap or the uplink, or all of them.
    pub(crate) port: String,
    /// `read` and `written` for taps, `received` and `sent` for uplinks.
    pub(crate) direction: String,
    /// Frames or datagrams; absent where only the calls are known.
    pub(crate) packets: Option<u64>,
    /// Reads, writes or messages: a super-frame or a run of datagrams is one.
    pub(crate) calls: u64,
    /// The one by the other, once there were calls.
    pub(crate) packets_per_call: Option<f64>,
    /// Bytes by calls.
    pub(crate) bytes_per_call: Option<u64>,
}

/// One element of the answer to [`Topic::Ports`].
///
/// What a port does not have, or does not count, is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PortReply {
    /// What it is called, as in [`CountersReply::ports`].
    pub(crate) port: String,
    /// `tap`, `vhost-user`, `udp` or `dpdk`.
    pub(crate) kind: String,
    /// What is behind it: an interface of the kernel, or what DPDK drives.
    pub(crate) device: String,
    /// Name of DPDK's driver.
    pub(crate) driver: Option<String>,
    /// Name of its link, of uplinks.
    pub(crate) link: Option<String>,
    /// Its network, of taps and VM ports.
    pub(crate) vni: Option<u32>,
    /// Address and port, of uplinks.
    pub(crate) address: Option<String>,
    /// MAC address.
    pub(crate) mac: Option<String>,
    /// Largest layer-3 packet in bytes.
    pub(crate) mtu: Option<u32>,
    /// Its link is up; of VM ports: a guest is there.
    pub(crate) up: Option<bool>,
    /// Queues that are served.
    pub(crate) queues: usize,
    /// What is left to the other side, in words.
    pub(crate) offloads: Vec<String>,
    /// Packets received from it; a super-frame or a run of datagrams counts as what it stands for
    /// where that is known.
    pub(crate) rx_packets: u64,
    /// Their bytes.
    pub(crate) rx_bytes: u64,
    /// Packets sent by it.
    pub(crate) tx_packets: u64,
    /// Their bytes.
    pub(crate) tx_bytes: u64,
    /// Packets that it received with errors.
    pub(crate) rx_errors: Option<u64>,
    /// Packets that it did not send.
    pub(crate) tx_errors: Option<u64>,
    /// Packets that it dropped, its ring being full.
    pub(crate) rx_missed: Option<u64>,
    /// Packets that it dropped for lack of buffers.
    pub(crate) rx_no_buffer: Option<u64>,
    /// Packet buffers of its store, which VM ports share.
    pub(crate) buffers: Option<u32>,
    /// Those in use, also those that wait in rings.
    pub(crate) buffers_used: Option<u32>,
    /// NUMA node of the card.
    pub(crate) numa_node: Option<u32>,
}

/// One element of the answer to [`Topic::Neighbors`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NeighborReply {
    /// The DPDK uplink, as in [`PortReply::port`].
    pub(crate) port: String,
    /// IP address.
    pub(crate) address: String,
    /// MAC address, where it is known.
    pub(crate) mac: Option<String>,
    /// `incomplete`, `reachable`, `stale`, `delay`, `probe`, `failed` or `static`.
    pub(crate) state: String,
    /// Milliseconds in this state.
    pub(crate) age_ms: u64,
}

/// What one worker counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerCounters {
    /// Position, from 0.
    pub(crate) worker: usize,
    /// Counters by name.
    pub(crate) counters: BTreeMap<String, u64>,
}

/// Answers [`Topic::Counters`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CountersReply {
    /// Sums over all workers, such as `rx_frames`.
    pub(crate) totals: BTreeMap<String, u64>,
    /// Drops by the reason's `snake_case` name; reasons that never occurred are 0.
    pub(crate) drops: BTreeMap<String, u64>,
    /// What each of `drops` means, by the same names.
    pub(crate) drop_help: BTreeMap<String, String>,
    /// Per worker.
    pub(crate) workers: Vec<WorkerCounters>,
    /// Per port, tap or uplink: counters by name.
    pub(crate) ports: BTreeMap<String, BTreeMap<String, u64>>,
    /// Per raw channel: what happened at its socket, and with its peers together.
    #[serde(default)]
    pub(crate) channels: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Answers [`Request::Reload`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReloadReply {
    /// What was changed, one line each.
    pub(crate) applied: Vec<String>,
    /// What only a restart changes, one line each.
    pub(crate) needs_restart: Vec<String>,
    /// What should have been changed and could not be, each with its reason.
    #[serde(default)]
    pub(crate) failed: Vec<String>,
}

/// A VNI as a number.
mod vni {
    use super::Vni;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(vni: &Vni, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(vni.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vni, D::Error> {
        let number = u32::deserialize(from)?;
        Vni::new(number)
            .ok_or_else(|| D::Error::custom(format!("vni {number} is above {}", Vni::MAX)))
    }
}

/// A VNI that may be absent.
mod optional_vni {
    use super::Vni;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[allow(clippy::ref_option, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(vni: &Option<Vni>, to: S) -> Result<S::Ok, S::Error> {
        vni.map(Vni::get).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vni>, D::Error> {
        let Some(number) = Option::<u32>::deserialize(from)? else { return Ok(None) };
        let vni = Vni::new(number);
        vni.map(Some).ok_or_else(|| D::Error::custom(format!("vni {number} is above {}", Vni::MAX)))
    }
}

/// The MTU of a path that may be absent.
mod underlay_mtu {
    use super::MIN_UNDERLAY_MTU;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[allow(clippy::ref_option, reason = "the signature is serde's")]
    pub(super) fn serialize<S: Serializer>(size: &Option<u16>, to: S) -> Result<S::Ok, S::Error> {
        size.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
        match Option::<u16>::deserialize(from)? {
            Some(size) if size < MIN_UNDERLAY_MTU => {
                Err(D::Error::custom(format!("size {size} is below {MIN_UNDERLAY_MTU}")))
            }
            size => Ok(size),
        }
    }
}

/// A MAC address as text.
mod mac {
    use super::MacAddr;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(mac: &MacAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MacAddr, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|error| D::Error::custom(format!("{text:?} is {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(text: &str) -> Request {
        let line: RequestLine = serde_json::from_str(text).unwrap();
        assert_eq!(line.version, CONTROL_VERSION);
        assert_eq!(serde_json::to_string(&line).unwrap(), text);
        line.request
    }

    #[test]
    fn requests_have_this_form() {
        let show = round_trip(r#"{"version":1,"command":"show","topic":"peers"}"#);
        assert_eq!(show, Request::Show { topic: Topic::Peers, name: None });
        round_trip(r#"{"version":1,"command":"show","topic":"channels"}"#);
        round_trip(r#"{"version":1,"command":"show","topic":"channels","name":"backup"}"#);
        round_trip(
            r#"{"version":1,"command":"fdb_add","vni":100,"mac":"02:00:00:00:00:05","node":"beta"}"#,
        );
        round_trip(r#"{"version":1,"command":"fdb_del","vni":100,"mac":"02:00:00:00:00:05"}"#);
        round_trip(r#"{"version":1,"command":"fdb_flush"}"#);
        round_trip(r#"{"version":1,"command":"fdb_flush","vni":0}"#);
        assert_eq!(round_trip(r#"{"version":1,"command":"reload"}"#), Request::Reload);
        round_trip(r#"{"version":1,"command":"rehandshake","node":"2"}"#);
        round_trip(r#"{"version":1,"command":"link_drain","node":"beta","link":"lan"}"#);
        round_trip(r#"{"version":1,"command":"link_undrain","node":"beta","link":"0"}"#);
        round_trip(r#"{"version":1,"command":"link_mtu","node":"2","link":"lan"}"#);
        round_trip(r#"{"version":1,"command":"link_mtu","node":"2","link":"lan","size":1280}"#);
        assert_eq!(round_trip(r#"{"version":1,"command":"watch"}"#), Request::Watch {});
        round_trip(r#"{"version":1,"command":"capture","vni":16777215,"count":10}"#);
    }

    #[test]
    fn replies_of_an_older_daemon_are_understood() {
        let link: LinkReply = serde_json::from_str(r#"{"node":2,"peer":"beta"}"#).unwrap();
        assert_eq!(link, LinkReply { node: 2, peer: "beta".into(), ..Default::default() });
        assert!(serde_json::from_str::<PeerReply>("{}").is_ok());
    }

    #[test]
    fn reload_reply_without_failures_is_understood() {
        let reply: ReloadReply =
            serde_json::from_str(r#"{"applied":["a"],"needs_restart":[]}"#).unwrap();
        assert_eq!(reply, ReloadReply { applied: vec!["a".into()], ..Default::default() });
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let parse = |text: &str| serde_json::from_str::<Request>(text).unwrap_err().to_string();
        assert!(parse(r#"{"command":"fdb_flush","vni":16777216}"#).contains("above 16777215"));
        assert!(parse(r#"{"command":"fdb_del","vni":1,"mac":"02:00"}"#).contains("not a MAC"));
        let mtu = |size| parse(&format!(r#"{{"command":"link_mtu","node":"2","link":"0"{size}}}"#));
        assert!(mtu(r#","size":1279"#).contains("below 1280"));
        assert!(mtu(r#","size":65536"#).contains("65536"));
        assert!(parse(r#"{"command":"dance"}"#).contains("dance"));
    }
}
