//! What `tapd show channels` says: the worker's report, with the names of the control thread.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use encap::channel::hub::{ChannelKey, ChannelReport, PathReport, PeerReport, PeerState};
use encap::id::NodeId;
use fastpath::channel::sockets::SocketReport;
use fastpath::worker::{ChannelCommand, ChannelsReport, Command};

use crate::config::{ChannelMode, mode_name};
use crate::control::{
    ChannelPathReply, ChannelPeerReply, ChannelReply, ChannelsReply, ReplySender,
};
use crate::daemon::Daemon;

/// How long the worker may take to tell; one that is well takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the worker does not know.
struct Names {
    /// Of the channels that are asked for, by name.
    channels: Vec<Asked>,
    nodes: HashMap<NodeId, String>,
    /// Names of the links to each peer, by index.
    links: HashMap<NodeId, Vec<String>>,
}

struct Asked {
    key: ChannelKey,
    name: String,
    mode: ChannelMode,
    socket: PathBuf,
}

impl Daemon {
    /// Answers with all channels, or the one of that name, as soon as the worker has told of them.
    pub(in crate::daemon) fn show_channels(&self, name: Option<&str>, reply: ReplySender) {
        if let Some(name) = name.filter(|name| !self.channels.has(name)) {
            return reply.refuse(format!("no channel {name:?} on this node"));
        }
        let Some(worker) = self.workers.first() else {
            return reply.refuse("no worker has the channels");
        };
        let (to, report) = channel();
        worker.handle.send(Command::Channels(ChannelCommand::Report(to)));
        let names = self.channel_names(name);
        let single = name.is_some();
        reply.later(move || match report.recv_timeout(PATIENCE) {
            Ok(report) => Ok(names.reply(&report, single)),
            Err(_) => Err(format!(
                "the worker that has the channels did not answer within {} s",
                PATIENCE.as_secs()
            )),
        });
    }

    /// Answers with all counters. Where the worker does not tell of channels the others are told
    /// nevertheless: they may be what is looked for then.
    pub(in crate::daemon) fn show_counters(&self, reply: ReplySender) {
        let mut counters = self.counters();
        let worker = self.workers.first().filter(|_| self.channels.iter().next().is_some());
        let Some(worker) = worker else { return reply.ok(&counters) };
        let (to, report) = channel();
        worker.handle.send(Command::Channels(ChannelCommand::Report(to)));
        let names = self.channel_names(None);
        reply.later(move || {
            if let Ok(report) = report.recv_timeout(PATIENCE) {
                counters.channels = names.counters(&report);
            }
            Ok(counters)
        });
    }

    fn channel_names(&self, name: Option<&str>) -> Names {
        let asked = self.channels.iter().filter(|c| name.is_none_or(|name| name == c.config.name));
        let links = |peer| self.config.pairs(peer).into_iter().map(|pair| pair.name).collect();
        Names {
            channels: asked
                .map(|channel| Asked {
                    key: channel.key,
                    name: channel.config.name.clone(),
                    mode: channel.config.mode,
                    socket: channel.socket().to_owned(),
                })
                .collect(),
            nodes: self.config.nodes.iter().map(|node| (node.id, node.name.clone())).collect(),
            links: self.config.peers().map(|peer| (peer.id, links(peer))).collect(),
        }
    }
}

impl Names {
    /// Only the paths to the peers of the one channel where it is a `single` one.
    fn reply(&self, report: &ChannelsReport, single: bool) -> ChannelsReply {
        let channels: Vec<_> = self.channels.iter().map(|asked| self.row(asked, report)).collect();
        let wanted = |path: &&PathReport| {
            let peer = path.peer.get();
            !single || channels.iter().flat_map(|channel| &channel.peers).any(|p| p.node == peer)
        };
        ChannelsReply {
            paths: report.hub.paths.iter().filter(wanted).map(|path| self.path(path)).collect(),
            memory_booked: report.hub.memory_booked,
            memory_limit: report.hub.memory_limit,
            credit_limited: report.hub.credit_limited,
            credit_returned: report.hub.credit_returned,
            channels,
        }
    }

    /// What each channel counted, at its socket and with all of its peers together.
    fn counters(&self, report: &ChannelsReport) -> BTreeMap<String, BTreeMap<String, u64>> {
        let counted = |asked: &Asked| {
            let ChannelReply { name, mut counters, peers, .. } = self.row(asked, report);
            for peer in &peers {
                for (name, count) in [
                    ("tx_messages", peer.tx_messages),
                    ("tx_bytes", peer.tx_bytes),
                    ("rx_messages", peer.rx_messages),
                    ("rx_bytes", peer.rx_bytes),
                    ("expired", peer.expired),
                    ("given_up", peer.given_up),
                    ("resent", peer.resent),
                    ("dropped", peer.dropped),
                ] {
                    *counters.entry(name.to_owned()).or_default() += count;
                }
            }
            (name, counters)
        };
        self.channels.iter().map(counted).collect()
    }

    /// What the worker has not heard of yet is there with nothing counted.
    fn row(&self, asked: &Asked, report: &ChannelsReport) -> ChannelReply {
        let is_it = |channel: &&ChannelReport| channel.key == asked.key;
        let peers = report.hub.channels.iter().find(is_it).map(|channel| channel.peers.as_slice());
        let socket = report.sockets.iter().find(|socket: &&SocketReport| socket.key == asked.key);
        let counters = socket.into_iter().flat_map(|socket| socket.counters.values());
        ChannelReply {
            name: asked.name.clone(),
            mode: mode_name(asked.mode).to_owned(),
            socket: asked.socket.display().to_string(),
            programs: socket.map_or(0, |socket| socket.programs),
            receiving: socket.is_some_and(|socket| socket.receiving),
            counters: counters.map(|(name, count)| (name.to_owned(), count)).collect(),
            peers: peers.unwrap_or_default().iter().map(|peer| self.peer(peer)).collect(),
        }
    }

    fn peer(&self, peer: &PeerReport) -> ChannelPeerReply {
        ChannelPeerReply {
            node: peer.peer.get(),
            peer: self.node(peer.peer),
            state: state_name(peer.state).to_owned(),
            tx_messages: peer.messages_out,
            tx_bytes: peer.bytes_out,
            rx_messages: peer.messages_in,
            rx_bytes: peer.bytes_in,
            queued_bytes: peer.queued as u64,
            waiting_bytes: peer.waiting as u64,
            expired: peer.expired,
            given_up: peer.given_up,
            resent: peer.resent,
            dropped: peer.dropped,
            streams: peer.streams as u64,
        }
    }

    fn path(&self, path: &PathReport) -> ChannelPathReply {
        let links = self.links.get(&path.peer);
        let name = links.and_then(|links| links.get(usize::from(path.link)));
        let rtt_us = u64::try_from(path.rtt.as_micros()).ok();
        ChannelPathReply {
            node: path.peer.get(),
            peer: self.node(path.peer),
            index: path.link,
            name: name.map_or_else(|| path.link.to_string(), Clone::clone),
            rtt_us: rtt_us.filter(|us| *us > 0),
            window_bytes: path.window,
            in_flight_bytes: path.in_flight,
            sent: path.sent,
            lost: path.lost,
            spurious: path.spurious,
            timeouts: path.timeouts,
            congestion: path.congestion.to_owned(),
        }
    }

    fn node(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| format!("node{node}"), Clone::clone)
    }
}

const fn state_name(state: PeerState) -> &'static str {
    match state {
        PeerState::Idle => "idle",
        PeerState::Opening => "opening",
        PeerState::Open => "open",
        PeerState::Refused => "refused",
        PeerState::Unreachable => "unreachable",
    }
}

#[cfg(test)]
mod tests {
    use encap::channel::hub::HubReport;
    use fastpath::channel::sockets::SocketCounters;

    use super::*;
    use crate::config::testing::id;

    fn peer(peer: u16, messages_out: u64) -> PeerReport {
        PeerReport {
            peer: id(peer),
            state: PeerState::Open,
            messages_out,
            bytes_out: 10 * messages_out,
            messages_in: 1,
            bytes_in: 2,
            queued: 3,
            waiting: 4,
            expired: 5,
            given_up: 6,
            resent: 7,
            dropped: 8,
            streams: 9,
        }
    }

    fn path(peer: u16, link: u8, rtt_us: u64) -> PathReport {
        PathReport {
            peer: id(peer),
            link,
            rtt: Duration::from_micros(rtt_us),
            window: 1,
            in_flight: 2,
            sent: 3,
            lost: 4,
            spurious: 5,
            timeouts: 6,
            congestion: "cubic",
        }
    }

    fn report() -> ChannelsReport {
        let channel = |key, peers| ChannelReport {
            key: ChannelKey(key),
            name: "never looked at".to_owned(),
            mode: ChannelMode::Ordered,
            peers,
        };
        let socket = SocketReport {
            key: ChannelKey(4),
            name: "a".to_owned(),
            mode: ChannelMode::Ordered,
            programs: 2,
            receiving: true,
            counters: SocketCounters { records_in: 11, ..SocketCounters::default() },
        };
        ChannelsReport {
            hub: HubReport {
                channels: vec![channel(4, vec![peer(2, 1)]), channel(7, vec![peer(3, 5)])],
                paths: vec![path(2, 1, 150), path(3, 9, 0)],
                memory_booked: 100,
                memory_limit: 200,
                credit_limited: 3,
                credit_returned: 50,
            },
            sockets: vec![socket],
        }
    }

    fn names(keys: &[(u32, &str)]) -> Names {
        let asked = |(key, name): &(u32, &str)| Asked {
            key: ChannelKey(*key),
            name: (*name).to_owned(),
            mode: ChannelMode::Stream,
            socket: format!("/run/{name}").into(),
        };
        Names {
            channels: keys.iter().map(asked).collect(),
            nodes: HashMap::from([(id(2), "beta".to_owned())]),
            links: HashMap::from([(id(2), vec!["lan".to_owned(), "wan".to_owned()])]),
        }
    }

    #[test]
    fn numbers_get_the_names_of_the_configuration() {
        let reply = names(&[(4, "a"), (7, "b"), (8, "new")]).reply(&report(), false);
        let [a, b, new] = reply.channels.as_slice() else { panic!("{reply:?}") };
        assert_eq!(
            (a.name.as_str(), a.mode.as_str(), a.socket.as_str()),
            ("a", "stream", "/run/a")
        );
        assert_eq!((a.programs, a.receiving, a.counters["records_in"]), (2, true, 11));
        let expected = ChannelPeerReply {
            node: 2,
            peer: "beta".to_owned(),
            state: "open".to_owned(),
            tx_messages: 1,
            tx_bytes: 10,
            rx_messages: 1,
            rx_bytes: 2,
            queued_bytes: 3,
            waiting_bytes: 4,
            expired: 5,
            given_up: 6,
            resent: 7,
            dropped: 8,
            streams: 9,
        };
        assert_eq!(a.peers, [expected]);
        assert_eq!((b.peers[0].peer.as_str(), b.peers[0].tx_messages), ("node3", 5));
        assert_eq!((b.programs, b.counters.len()), (0, 0));
        let nothing = ChannelReply {
            name: "new".to_owned(),
            mode: "stream".to_owned(),
            socket: "/run/new".to_owned(),
            ..ChannelReply::default()
        };
        assert_eq!(*new, nothing);
        assert_eq!((reply.memory_booked, reply.memory_limit), (100, 200));
        assert_eq!((reply.credit_limited, reply.credit_returned), (3, 50));
        let shown: Vec<_> = reply.paths.iter().map(|p| (p.name.as_str(), p.rtt_us)).collect();
        assert_eq!(shown, [("wan", Some(150)), ("9", None)]);
    }

    #[test]
    fn counters_are_those_of_the_socket_and_of_all_peers() {
        let mut report = report();
        report.hub.channels[0].peers.push(peer(3, 4));
        let counters = names(&[(4, "a"), (8, "new")]).counters(&report);
        let a = &counters["a"];
        assert_eq!((a["records_in"], a["held_back"]), (11, 0));
        assert_eq!(
            (a["tx_messages"], a["tx_bytes"], a["rx_messages"], a["rx_bytes"]),
            (5, 50, 2, 4)
        );
        assert_eq!((a["expired"], a["given_up"], a["resent"], a["dropped"]), (10, 12, 14, 16));
        assert!(counters["new"].is_empty());
    }

    #[test]
    fn one_channel_has_the_paths_to_its_peers() {
        let reply = names(&[(4, "a")]).reply(&report(), true);
        assert_eq!(reply.channels.len(), 1);
        assert_eq!(reply.paths.iter().map(|path| path.node).collect::<Vec<_>>(), [2]);
    }
}
