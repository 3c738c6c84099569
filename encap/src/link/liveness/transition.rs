//! What a link's state is, and why it changed.

use std::fmt;
use std::time::Instant;

use crate::link::id::LinkIndex;

/// Transitions of a link that are kept.
pub const HISTORY: usize = 16;

/// Whether a link can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Nothing is expected of it.
    Down,
    /// Something speaks against it: frames go elsewhere until that is settled.
    Suspect,
    /// Good.
    Up,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Suspect => "suspect",
            Self::Up => "up",
        })
    }
}

/// Why a link changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing was heard on it yet.
    Starting,
    /// The first link on which something was heard while none was up.
    FirstHeard,
    /// So many rounds came over another link and none over this one.
    Missed {
        /// Rounds that came over the other link.
        rounds: u32,
        /// The other link.
        than: LinkIndex,
    },
    /// The peer hears nothing of us on it.
    NotHeardByPeer,
    /// The uplink has no carrier.
    Carrier,
    /// The uplink lost its address or route.
    AddressGone,
    /// The neighbour that the peer is reached through does not answer.
    NeighbourFailed,
    /// Our own kernel refused to send.
    Unreachable,
    /// Not even datagrams of the smallest supported size get through.
    PathTooSmall,
    /// Suspect for too long.
    StillBad,
    /// A suspicion was cleared.
    Recovered,
    /// So many rounds in a row came over a link that was down.
    RoundsBack(u8),
    /// Nothing came from the peer on any link.
    PeerSilent,
    /// The session ended.
    SessionEnded,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::FirstHeard => f.write_str("first heard"),
            Self::Missed { rounds, than } => {
                write!(f, "missed {rounds} rounds that link {than} had")
            }
            Self::NotHeardByPeer => f.write_str("not heard by the peer"),
            Self::Carrier => f.write_str("no carrier"),
            Self::AddressGone => f.write_str("address or route gone"),
            Self::NeighbourFailed => f.write_str("neighbour does not answer"),
            Self::Unreachable => f.write_str("kernel refuses to send"),
            Self::PathTooSmall => f.write_str("path MTU below 1280"),
            Self::StillBad => f.write_str("suspect for too long"),
            Self::Recovered => f.write_str("heard again"),
            Self::RoundsBack(rounds) => write!(f, "{rounds} rounds in a row"),
            Self::PeerSilent => f.write_str("peer silent on all links"),
            Self::SessionEnded => f.write_str("session ended"),
        }
    }
}

/// One change of a link's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Instant,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// Why.
    pub cause: Cause,
}
