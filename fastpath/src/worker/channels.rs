//! Raw channels in a worker's turn: the first worker has the hub and the sockets of programs, the
//! others hand over what comes to them.
//!
//! Frames and channels share a worker by bytes: in each turn channels may send as much as frames
//! did, or a quantum if that is more. Control messages are neither: they leave from another thread.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use encap::channel::hub::{ChannelConfig, ChannelKey, HubReport};
use encap::datapath::ChannelInput;
use encap::id::NodeId;
use encap::stats::DropReason;

use super::Worker;
use crate::channel::sockets::{ChannelSetup, ChannelSockets, SocketReport};
use crate::port::{DatagramPort, FramePort};
use crate::process;
use crate::wake::Waker;

/// Bytes that channels may send in a turn in which frames sent less: about what an uplink takes in
/// one call.
const QUANTUM: usize = 256 << 10;
/// Bytes that a turn may owe to channels: with more, a burst of them would hold up frames.
const MOST_OWED: usize = 2 * QUANTUM;
/// Packets that wait to be taken over by the worker that has the hub: some milliseconds' worth.
const HAND_OVER: usize = 4096;

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

/// The way from the other workers to the one that has the hub.
#[derive(Debug, Clone)]
pub struct HandOver {
    queue: Arc<ArrayQueue<ChannelInput>>,
    waker: Waker,
}

impl HandOver {
    /// To the worker with this waker.
    pub(super) fn new(waker: Waker) -> Self {
        Self { queue: Arc::new(ArrayQueue::new(HAND_OVER)), waker }
    }
}

/// What a worker has of raw channels.
#[derive(Debug)]
pub(super) struct Channels {
    /// None until there is a channel, and in all workers but one.
    sockets: Option<ChannelSockets>,
    /// To this worker, in the one that has the hub; from it, in the others.
    pub(super) hand_over: HandOver,
    /// The hub is here.
    is_home: bool,
    /// Bytes that channels may send beyond their quantum, as frames sent more.
    owed: usize,
    /// Something was left to be done.
    pending: bool,
    /// Bytes of frames that were taken from ports before this turn.
    frame_bytes: u64,
}

impl Channels {
    pub(super) const fn new(hand_over: HandOver) -> Self {
        Self { sockets: None, hand_over, is_home: true, owed: 0, pending: false, frame_bytes: 0 }
    }

    /// The descriptor to wait for.
    pub(super) fn fd(&self) -> Option<RawFd> {
        self.sockets.as_ref().map(ChannelSockets::fd)
    }
}

impl<F: FramePort, D: DatagramPort> Worker<F, D> {
    /// The way to this worker, which is the first one and has the hub.
    #[must_use]
    pub fn channel_home(&self) -> HandOver {
        self.channels.hand_over.clone()
    }

    /// This worker is not the first one: what comes for channels goes this way.
    pub fn set_channel_home(&mut self, home: HandOver) {
        (self.channels.hand_over, self.channels.is_home) = (home, false);
    }

    /// Gives what came for the hub of another worker to that one.
    pub(super) fn hand_over_channels(&mut self) {
        let mut any = false;
        let mut lost = 0;
        for input in self.datapath.take_channel_inputs() {
            any = true;
            lost += u64::from(self.channels.hand_over.queue.push(input).is_err());
        }
        if any {
            self.channels.hand_over.waker.wake();
            self.datapath.counters().count_drops(DropReason::ChannelQueueFull, lost);
        }
    }

    /// The channels' share of a turn; gives the number of records of programs.
    pub(super) fn serve_channels(&mut self, now: Instant) -> usize {
        if !self.channels.is_home {
            return 0;
        }
        // What comes meanwhile has its turn in the next one.
        for _ in 0..self.channels.hand_over.queue.len() {
            let Some(input) = self.channels.hand_over.queue.pop() else { break };
            self.datapath.handle_channel_input(now, &input);
        }
        if self.channels.sockets.is_none() && !self.datapath.has_channel_work(now) {
            return 0;
        }
        let Some(hub) = self.datapath.hub(now) else { return 0 };
        let moved = match &mut self.channels.sockets {
            Some(sockets) => sockets.poll(now, hub),
            // A node without channels tells peers that ask for one.
            None => {
                while hub.poll_event().is_some() {}
                0
            }
        };
        self.send_channels(now);
        // What left made room, and what the program is to hear of that waits in the hub.
        if let (Some(sockets), Some(hub)) = (&mut self.channels.sockets, self.datapath.hub(now)) {
            self.channels.pending |= sockets.has_pending() || hub.has_events();
        }
        moved
    }

    fn send_channels(&mut self, now: Instant) {
        let bytes = self.datapath.counters().frame_bytes_in.get();
        let frames = bytes.wrapping_sub(std::mem::replace(&mut self.channels.frame_bytes, bytes));
        let frames = usize::try_from(frames).unwrap_or(usize::MAX);
        let budget = frames.saturating_add(self.channels.owed).clamp(QUANTUM, MOST_OWED);
        let progress = self.datapath.transmit_channels(now, budget, &mut self.transmits);
        self.send();
        let left = frames.saturating_add(self.channels.owed).saturating_sub(progress.bytes);
        self.channels.owed = if progress.more { left.min(MOST_OWED) } else { 0 };
        self.channels.pending = progress.more;
    }

    /// Programs hear that tapd ends.
    pub(super) fn end_channels(&mut self) {
        if let Some(sockets) = &mut self.channels.sockets {
            sockets.end();
        }
    }

    /// How long the worker may rest for the channels' sake; none if it may not.
    pub(super) fn channel_rest(&self, now: Instant) -> Option<Duration> {
        if self.channels.pending
            || !self.channels.hand_over.queue.is_empty() && self.channels.is_home
        {
            return None;
        }
        match self.datapath.channels_due(now) {
            Some(due) if due <= now => None,
            Some(due) => Some(due - now),
            None => Some(Duration::MAX),
        }
    }

    pub(super) fn take_channel_command(&mut self, command: ChannelCommand) {
        match command {
            ChannelCommand::Set { own, nodes, channels, listeners } => {
                if let Err(error) = self.set_channels(own, nodes, channels, listeners) {
                    log::error!("raw channels cannot be served: {error}");
                }
            }
            ChannelCommand::Report(to) => {
                let hub = self.datapath.hub(Instant::now()).map(|hub| hub.report());
                let sockets = self.channels.sockets.as_ref().map(ChannelSockets::report);
                let report = ChannelsReport {
                    hub: hub.unwrap_or_default(),
                    sockets: sockets.unwrap_or_default(),
                };
                // Nobody waits any more.
                let _ = to.send(report);
            }
        }
    }

    fn set_channels(
        &mut self,
        own: NodeId,
        nodes: Vec<(NodeId, String)>,
        channels: Vec<(ChannelKey, ChannelConfig)>,
        listeners: Vec<ChannelSetup>,
    ) -> io::Result<()> {
        if self.channels.sockets.is_none() {
            if channels.is_empty() {
                return Ok(());
            }
            self.channels.sockets = Some(ChannelSockets::new()?);
            // Pacing lives by timers.
            if let Err(error) = process::sharpen_timers() {
                log::warn!("channels are paced 50 us more coarsely than they could be: {error}");
            }
        }
        let Some(sockets) = &mut self.channels.sockets else { return Ok(()) };
        sockets.set_nodes(own, nodes);
        let now = Instant::now();
        let Some(hub) = self.datapath.hub(now) else { return Ok(()) };
        for gone in sockets.keys() {
            if !channels.iter().any(|(key, _)| *key == gone) {
                sockets.remove(gone);
            }
        }
        hub.configure(now, channels);
        for setup in listeners {
            let name = setup.name.clone();
            if let Err(error) = sockets.add(setup) {
                log::error!("channel {name} cannot be served: {error}");
            }
        }
        sockets.warn_anew(now, hub);
        Ok(())
    }
}
