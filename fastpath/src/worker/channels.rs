//! What the control thread tells the worker that has the raw channels, and what it hears of them.

use std::sync::mpsc::Sender;

use encap::channel::hub::{ChannelConfig, ChannelKey, HubReport};
use encap::id::NodeId;

use crate::channel::sockets::{ChannelSetup, SocketReport};

/// What the worker that has the raw channels is to do with them.
#[derive(Debug)]
pub enum ChannelCommand {
    /// The channels that there are from now on. Those whose key was there before go on; those whose
    /// key is not named any more end, and their listeners are closed.
    Set {
        /// This node.
        own: NodeId,
        /// What the nodes of the cluster are called, this one included.
        nodes: Vec<(NodeId, String)>,
        /// All channels of this node.
        channels: Vec<(ChannelKey, ChannelConfig)>,
        /// Where programs connect: only of channels that are new.
        listeners: Vec<ChannelSetup>,
    },
    /// Tell what there is to tell.
    Report(Sender<ChannelsReport>),
}

/// What there is to tell of all channels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelsReport {
    /// Towards the peers.
    pub hub: HubReport,
    /// Towards the programs.
    pub sockets: Vec<SocketReport>,
}

impl<F, D> super::Worker<F, D> {
    /// Stands for what the worker does about channels until it does.
    pub(super) fn take_channel_command(&mut self, command: ChannelCommand) {
        if let ChannelCommand::Report(to) = command {
            // Nobody waits any more.
            let _ = to.send(ChannelsReport::default());
        }
    }
}
