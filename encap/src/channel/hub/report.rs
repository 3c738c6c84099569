//! What there is to tell of channels, for people and monitors.

use std::time::Duration;

use super::{Body, ChannelKey, Hub};
use crate::id::NodeId;
use crate::wire::channel::Mode;

/// How a channel stands with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// Nothing was sent yet.
    Idle,
    /// The peer was asked for it.
    Opening,
    /// Messages go to the peer.
    Open,
    /// The peer does not have it.
    Refused,
    /// The peer cannot be reached.
    Unreachable,
}

/// What a channel did with one peer since this node was started. Bytes are those of messages or
/// streams, without headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerReport {
    /// The peer.
    pub peer: NodeId,
    /// How it stands.
    pub state: PeerState,
    /// Messages taken from programs; of a stream channel, streams.
    pub messages_out: u64,
    /// Bytes taken from programs.
    pub bytes_out: u64,
    /// Messages for programs; of a stream channel, streams.
    pub messages_in: u64,
    /// Bytes for programs.
    pub bytes_in: u64,
    /// Bytes that wait to be sent or acknowledged.
    pub queued: usize,
    /// Bytes that wait for a program.
    pub waiting: usize,
    /// Messages given up as their time was over.
    pub expired: u64,
    /// Messages given up as the peer was restarted or removed.
    pub given_up: u64,
    /// Pieces that were sent again.
    pub resent: u64,
    /// Unreliable messages that were dropped: no program, no way to the peer, copies, incomplete.
    pub dropped: u64,
    /// Streams that are open.
    pub streams: usize,
}

/// A channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelReport {
    /// Which.
    pub key: ChannelKey,
    /// Its name.
    pub name: String,
    /// What it carries.
    pub mode: Mode,
    /// Its peers, by node id.
    pub peers: Vec<PeerReport>,
}

/// A link to a peer, as the reliable channels that share it see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathReport {
    /// The peer.
    pub peer: NodeId,
    /// The link's index.
    pub link: u8,
    /// Smoothed round trip.
    pub rtt: Duration,
    /// Congestion window in bytes.
    pub window: u64,
    /// Bytes on their way.
    pub in_flight: u64,
    /// Packets sent that ask for an acknowledgement.
    pub sent: u64,
    /// Packets declared lost.
    pub lost: u64,
    /// Packets of these that arrived after all.
    pub spurious: u64,
    /// Timeouts at which probes were sent.
    pub timeouts: u64,
    /// Name of the congestion control.
    pub congestion: &'static str,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HubReport {
    /// The channels, by name.
    pub channels: Vec<ChannelReport>,
    /// The paths, by peer and link.
    pub paths: Vec<PathReport>,
    /// Bytes of memory that peers may come to fill, of those that there are.
    pub memory_booked: u64,
    /// Bytes of memory for what came and no program took.
    pub memory_limit: u64,
    /// Times that a channel could be given less credit than it had use for, as memory was short.
    pub credit_limited: u64,
    /// Bytes of credit that idle peers gave back when memory was short.
    pub credit_returned: u64,
}

impl Hub {
    /// What there is to tell.
    #[must_use]
    pub fn report(&self) -> HubReport {
        let mut channels: Vec<ChannelReport> = self
            .channels
            .iter()
            .map(|(key, channel)| ChannelReport {
                key: *key,
                name: channel.config.name.clone(),
                mode: channel.config.mode,
                peers: self
                    .peers
                    .values()
                    .filter(|peer| peer.view.is_some() && channel.takes(peer.node))
                    .map(|peer| self.report_peer(*key, peer.node))
                    .collect(),
            })
            .collect();
        channels.sort_by(|one, other| one.name.cmp(&other.name));
        let paths = self.peers.values().flat_map(|peer| {
            let made = (0_u8..).zip(&peer.paths);
            made.filter_map(|(link, path)| Some(path.as_ref()?.report(peer.node, link)))
        });
        HubReport {
            channels,
            paths: paths.collect(),
            memory_booked: self.memory.booked(),
            memory_limit: self.options.receive_memory.max(super::MIN_RECEIVE_MEMORY),
            credit_limited: self.memory.limited(),
            credit_returned: self.memory.returned(),
        }
    }

    fn report_peer(&self, key: ChannelKey, node: NodeId) -> PeerReport {
        let member = self.channels.get(&key).and_then(|channel| channel.peers.get(&node));
        let mut report = member.map_or(super::Membership::new(node).stats, |member| member.stats);
        let Some(peer) = self.peers.get(&node) else { return report };
        let mut open = None;
        for conduit in peer.conduits.values().filter(|conduit| conduit.channel == key) {
            report.queued += conduit.queued();
            report.waiting += conduit.waiting();
            report.resent += conduit.resent;
            report.streams += usize::from(matches!(conduit.body, Body::Stream(_)));
            if conduit.id.ours {
                open = Some(open.unwrap_or(false) || conduit.accepted);
            }
        }
        report.state = if !peer.is_reachable() {
            PeerState::Unreachable
        } else if member.is_some_and(|member| member.refused) {
            PeerState::Refused
        } else {
            match open {
                None => PeerState::Idle,
                Some(false) => PeerState::Opening,
                Some(true) => PeerState::Open,
            }
        };
        report
    }
}
