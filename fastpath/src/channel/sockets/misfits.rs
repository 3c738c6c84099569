//! Channels that do not fit those of peers: they are in the log once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use encap::channel::hub::{ChannelKey, Hub};
use encap::id::NodeId;
use encap::wire::channel::Mode;

use super::ChannelSockets;
use crate::channel::entry::Channel;

/// The log hears no more often of the same peer, whatever it asks for: one that changes its mind all
/// the time would fill it.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// How a channel does not fit that of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::channel) enum Misfit {
    /// The peer refuses it.
    Refused(NodeId),
    /// The peer asks for it as what it is not here.
    Asked(NodeId),
}

impl Misfit {
    /// One sentence for the log, with what to do.
    fn text(self, channel: &Channel, names: &HashMap<NodeId, String>) -> String {
        let (name, mode) = (&channel.name, mode_name(channel.mode));
        match self {
            Self::Refused(peer) => format!(
                "channel {name}: {} has no such channel of mode {mode}, or not for this node; its \
                 name and mode have to be the same on both, and each one of the other's members",
                node_name(peer, names)
            ),
            Self::Asked(peer) => format!(
                "channel {name}: {} asked for it in another mode, or is none of its members, and \
                 was refused; here its mode is {mode}. Compare the configurations of both",
                node_name(peer, names)
            ),
        }
    }
}

/// What people call a node.
fn node_name(node: NodeId, names: &HashMap<NodeId, String>) -> String {
    names.get(&node).cloned().unwrap_or_else(|| format!("node {node}"))
}

/// As the configuration calls it.
const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Stream => "stream",
        Mode::Ordered => "message",
        Mode::Unordered => "unordered",
        Mode::Unreliable => "datagram",
    }
}

impl ChannelSockets {
    /// The configuration was read anew: what does not fit still is said again.
    pub fn warn_anew(&mut self, now: Instant, hub: &Hub) {
        for key in self.keys() {
            if let Some(channel) = self.channels.get_mut(&key) {
                channel.misfits.clear();
                channel.warned.clear();
            }
            let refused = hub.refused(key).into_iter().map(Misfit::Refused);
            let asked = hub.mismatched(key).into_iter().map(Misfit::Asked);
            refused.chain(asked).for_each(|misfit| self.warn(key, misfit, now));
        }
    }

    /// Says in the log how a channel does not fit a peer's. That it is refused is said once: every
    /// process of the peer will refuse it. What comes too often is counted instead.
    pub(super) fn warn(&mut self, key: ChannelKey, misfit: Misfit, now: Instant) {
        let Some(channel) = self.channels.get_mut(&key) else { return };
        if channel.misfits.contains(&misfit) && matches!(misfit, Misfit::Refused(_)) {
            return;
        }
        let last = channel.warned.get(&misfit);
        if last.is_some_and(|last| now.saturating_duration_since(*last) < WARN_INTERVAL) {
            channel.counters.warnings_held_back += 1;
            return;
        }
        channel.warned.insert(misfit, now);
        channel.misfits.insert(misfit);
        log::warn!("{}", misfit.text(channel, &self.shared.names));
    }

    /// A peer that refused a channel has it.
    pub(super) fn note_accepted(&mut self, key: ChannelKey, peer: NodeId) {
        let Some(channel) = self.channels.get_mut(&key) else { return };
        if channel.misfits.remove(&Misfit::Refused(peer)) {
            let name = node_name(peer, &self.shared.names);
            log::info!("channel {}: {name} has it now", channel.name);
        }
    }

    /// What the log has of a channel that does not fit.
    #[cfg(test)]
    pub(in crate::channel) fn misfits(&self, key: ChannelKey) -> Vec<String> {
        let (channel, names) = (&self.channels[&key], &self.shared.names);
        channel.misfits.iter().map(|misfit| misfit.text(channel, names)).collect()
    }
}
