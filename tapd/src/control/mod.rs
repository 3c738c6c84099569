//! The control socket: one JSON line asks, one JSON line answers, on a UNIX socket.
//!
//! `{"version":1,"command":"show","topic":"status"}` is answered by `{"version":1,"ok":true,
//! "data":{...}}` or `{"version":1,"ok":false,"error":"..."}`. Behind the line that accepts
//! `capture` follow the raw bytes of a pcapng file, behind the one that accepts `watch` a JSON line
//! for each event, until either side hangs up.

mod message;
mod channels;
mod server;
mod events;
mod client;

pub(crate) use channels::{ChannelPathReply, ChannelPeerReply, ChannelReply, ChannelsReply};
pub(crate) use client::Client;
pub(crate) use events::{Event, Events};
pub(crate) use message::{
    CountersReply, FdbReply, LinkReply, MemberReply, NeighborReply, NetworkReply, OffloadReply,
    OffloadsReply, PeerReply, PortReply, ReloadReply, Request, RunsReply, StatusReply, Topic,
    TransitionReply, WorkerCounters,
};
pub(crate) use server::{Incoming, ReplySender, Server, hung_up};

/// Version of the requests and replies.
pub(crate) const CONTROL_VERSION: u32 = 1;

/// Longest request line, in bytes.
const MAX_REQUEST_LEN: usize = 64 * 1024;

#[cfg(test)]
mod tests;
