//! What is answered about raw channels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Answers [`super::Topic::Channels`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ChannelsReply {
    /// The channels of this node by name, or the one that was asked for.
    pub(crate) channels: Vec<ChannelReply>,
    /// The links that the reliable ones share, by peer and link.
    pub(crate) paths: Vec<ChannelPathReply>,
    /// Bytes of memory that peers may come to fill, of `memory_limit`.
    pub(crate) memory_booked: u64,
    /// Bytes of memory for what came and no program took.
    pub(crate) memory_limit: u64,
    /// Times that a peer got less credit than it had use for, as memory was short.
    pub(crate) credit_limited: u64,
    /// Bytes of credit that idle peers gave back when memory was short.
    pub(crate) credit_returned: u64,
}

/// A channel of this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ChannelReply {
    /// Name.
    pub(crate) name: String,
    /// `datagram`, `message`, `unordered` or `stream`.
    pub(crate) mode: String,
    /// Path of the socket that programs connect to.
    pub(crate) socket: String,
    /// Programs that are attached.
    pub(crate) programs: usize,
    /// One of them gets the messages.
    pub(crate) receiving: bool,
    /// What happened at the socket, by the counter's name.
    pub(crate) counters: BTreeMap<String, u64>,
    /// How it stands with each peer, by node id.
    pub(crate) peers: Vec<ChannelPeerReply>,
}

/// A channel and one of its peers, since the daemon was started or the channel began.
///
/// Bytes are those of messages or streams, without headers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ChannelPeerReply {
    /// Node id.
    pub(crate) node: u16,
    /// Node name.
    pub(crate) peer: String,
    /// `idle` (nothing was sent yet), `opening` (the peer was asked for it), `open`, `refused` (the
    /// peer does not have it) or `unreachable`.
    pub(crate) state: String,
    /// Messages, or streams, taken from programs.
    pub(crate) tx_messages: u64,
    /// Bytes taken from programs.
    pub(crate) tx_bytes: u64,
    /// Messages, or streams, for programs.
    pub(crate) rx_messages: u64,
    /// Bytes for programs.
    pub(crate) rx_bytes: u64,
    /// Bytes that wait to be sent or acknowledged.
    pub(crate) queued_bytes: u64,
    /// Bytes that wait for a program.
    pub(crate) waiting_bytes: u64,
    /// Messages given up as their time was over.
    pub(crate) expired: u64,
    /// Messages given up as the peer was restarted or removed.
    pub(crate) given_up: u64,
    /// Pieces that were sent again.
    pub(crate) resent: u64,
    /// Datagrams that were dropped: no program, no way to the peer, copies, incomplete.
    pub(crate) dropped: u64,
    /// Streams that are open.
    pub(crate) streams: u64,
}

/// A link to a peer, as the reliable channels that share it see it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ChannelPathReply {
    /// Id of the peer.
    pub(crate) node: u16,
    /// Name of the peer.
    pub(crate) peer: String,
    /// Position among the peer's links, as in [`super::LinkReply::index`].
    pub(crate) index: u8,
    /// Name of the link.
    pub(crate) name: String,
    /// Smoothed round-trip time in microseconds, once it was measured.
    pub(crate) rtt_us: Option<u64>,
    /// Congestion window in bytes.
    pub(crate) window_bytes: u64,
    /// Bytes on their way.
    pub(crate) in_flight_bytes: u64,
    /// Packets sent that ask for an acknowledgement.
    pub(crate) sent: u64,
    /// Packets declared lost.
    pub(crate) lost: u64,
    /// Packets of these that arrived after all.
    pub(crate) spurious: u64,
    /// Timeouts at which probes were sent.
    pub(crate) timeouts: u64,
    /// Name of the congestion control.
    pub(crate) congestion: String,
}
