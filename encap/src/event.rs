//! What the daemon is told. Events are rare; packets never make one each.

use std::net::SocketAddr;
use std::time::Duration;

use crate::id::{NodeId, Vni};
use crate::link::choice::{MoveCause, Moved};
use crate::link::id::LinkIndex;
use crate::link::liveness::Transition;
use crate::link::pmtu::How;
use crate::wire::ethernet::MacAddr;

/// Why a peer is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// No handshake was answered yet.
    NoAnswer,
    /// The cipher lists have nothing in common.
    NoCommonSuite,
    /// Nothing authentic came for the silence limit.
    Silent,
    /// The peer said goodbye.
    Goodbye,
    /// It was taken out of the configuration.
    Removed,
    /// This node was suspended: nothing is sealed under keys from before.
    Suspended,
    /// The cluster key of its session is no longer in the configuration.
    KeyRemoved,
}

impl DownReason {
    /// In a few words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoAnswer => "no answer yet",
            Self::NoCommonSuite => "no cipher in common",
            Self::Silent => "nothing authentic received",
            Self::Goodbye => "peer is stopping",
            Self::Removed => "removed from the configuration",
            Self::Suspended => "this node was suspended",
            Self::KeyRemoved => "cluster key removed",
        }
    }
}

impl How {
    /// In a few words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Probed => "probed",
            Self::Interface => "interface",
            Self::Manual => "manual",
            Self::BlackHole => "black hole",
        }
    }
}

impl MoveCause {
    /// In a few words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::FailOver => "the link failed",
            Self::FailBack => "the link was good for long enough",
            Self::Preferred => "the link was better for long enough",
            Self::Drain => "the link was taken out of service",
        }
    }
}

/// A change that someone who runs the node wants to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session is established and proven by an opened datagram.
    PeerUp {
        /// The peer.
        node: NodeId,
        /// Cipher suite of the session.
        cipher: &'static str,
    },
    /// The peer cannot be reached any more.
    PeerDown {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: DownReason,
    },
    /// A link to a peer changed its state.
    Link {
        /// The peer.
        node: NodeId,
        /// Which link.
        link: LinkIndex,
        /// What it was, what it is now, and why.
        transition: Transition,
    },
    /// Frames to a peer go by another link now.
    Moved {
        /// The peer.
        node: NodeId,
        /// From where to where, and why.
        moved: Moved,
    },
    /// The largest datagram that a link takes changed.
    PathMtu {
        /// The peer.
        node: NodeId,
        /// Which link.
        link: LinkIndex,
        /// Bytes of IP packet before.
        from: usize,
        /// Bytes of IP packet now.
        to: usize,
        /// How that was found.
        how: How,
    },
    /// The other end of a dynamic link is at another address now.
    Roamed {
        /// The peer.
        node: NodeId,
        /// Which link.
        link: LinkIndex,
        /// The address, proven by a challenge.
        to: SocketAddr,
    },
    /// A frame that left by this node's tap came back: the network loops. It is closed here.
    LoopFound {
        /// The network.
        vni: Vni,
        /// For how long.
        blocked: Duration,
    },
    /// The network is open again after a loop.
    LoopOver {
        /// The network.
        vni: Vni,
    },
    /// A new handshake replaced the keys of a running session.
    Rekeyed {
        /// The peer.
        node: NodeId,
    },
    /// Two running nodes use one id; neither is preferred. One of them must be renamed.
    NodeIdConflict {
        /// The id.
        node: NodeId,
        /// Where the latest claim came from.
        from: SocketAddr,
    },
    /// An authentic initiation came from an address that the configuration does not list.
    SourceUnknown {
        /// The node that it claims to be.
        node: NodeId,
        /// Where it came from.
        from: SocketAddr,
    },
    /// The two nodes' cipher lists have nothing in common.
    NoCommonSuite {
        /// The peer.
        node: NodeId,
    },
    /// A message of a key that this node does not have: usually a wrong key file there or here.
    KeyUnknown {
        /// Where it came from.
        from: SocketAddr,
    },
    /// A message of another protocol version.
    VersionUnknown {
        /// Where it came from.
        from: SocketAddr,
        /// Its version.
        version: u8,
        /// The highest version that its sender speaks.
        highest: u8,
    },
    /// A MAC address moved too often and is frozen where it is.
    MacFrozen {
        /// The network.
        vni: Vni,
        /// The address.
        mac: MacAddr,
    },
    /// The smallest frame size among the members of a network changed.
    MaxFrameLen {
        /// The network.
        vni: Vni,
        /// Largest untagged frame in bytes that every known member takes.
        max_frame_len: u16,
    },
}
