//! `tapd send`, `tapd recv` and `tapd forward`: programs that use channels.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use encap::id::NodeId;
use fastpath::channel::client::{Channel, Event, Refusal, Stream, StreamChannel, is_other_kind};

use crate::cli::ChannelArgs;
use crate::control::{ChannelPeerReply, ChannelReply, ChannelsReply, Client, Request, Topic};
use crate::exit::{Exit, Failure};

pub(crate) mod forward;
pub(crate) mod recv;
pub(crate) mod send;
mod patience;

use patience::{Patience, TICK};

/// Folder beside the control socket in which channels have their sockets.
const SOCKETS_FOLDER: &str = "tapd-channels";
/// Bytes that are copied at once between a stream and something else.
const CHUNK_LEN: usize = 256 << 10;

/// A channel's socket, as a user named it.
#[derive(Debug, Clone)]
struct Target {
    path: PathBuf,
    /// The channel's name, where one was given.
    name: Option<String>,
    /// Where the daemon listens, if it is the one.
    control: PathBuf,
}

impl Target {
    /// Finds the socket: where the user says, else where the daemon says, else in its usual place.
    ///
    /// # Errors
    /// The daemon has no such channel.
    fn new(args: &ChannelArgs) -> Result<Self, Failure> {
        let control = args.control.path.clone();
        // Names of channels have no slash.
        if args.name.contains('/') {
            return Ok(Self { path: PathBuf::from(&args.name), name: None, control });
        }
        let path = match &args.socket {
            Some(path) => path.clone(),
            None => find(&args.name, &args.control.path)?,
        };
        Ok(Self { path, name: Some(args.name.clone()), control })
    }

    /// Connects to it, whatever it carries.
    fn connect(&self, receive: bool) -> Result<Connected, Failure> {
        let connected = match Channel::connect(&self.path, receive) {
            Err(error) if is_other_kind(&error) => {
                StreamChannel::connect(&self.path).map(Connected::Stream)
            }
            connected => connected.map(Connected::Messages),
        };
        self.checked(connected)
    }

    /// Connects to it as to a channel of streams.
    fn connect_stream(&self) -> Result<StreamChannel, Failure> {
        self.checked_stream(StreamChannel::connect(&self.path))
    }

    /// Asks the daemon whether a node is a peer of a channel, so that nobody waits for a name that
    /// was mistyped. Says whether it is known to be one: not everybody may ask.
    ///
    /// # Errors
    /// It is none.
    fn check_peer(&self, channel: &str, nodes: &Nodes) -> Result<bool, Failure> {
        let topic = Topic::Channels;
        let request = Request::Show { topic, name: Some(channel.to_owned()) };
        let reply = Client::connect(&self.control)
            .and_then(|client| client.request::<ChannelsReply>(request));
        let found = reply.ok().and_then(|reply| reply.channels.into_iter().next());
        // Another daemon may have that control socket, and a channel of the same name.
        let is_same = |found: &ChannelReply| {
            let paths = [Path::new(&found.socket), &self.path].map(|path| path.canonicalize().ok());
            paths[0].is_some() && paths[0] == paths[1]
        };
        let Some(found) = found.filter(is_same) else {
            return Ok(false);
        };
        is_among(&found.peers, channel, nodes)
    }

    /// What came of that.
    fn checked_stream(
        &self,
        connected: io::Result<StreamChannel>,
    ) -> Result<StreamChannel, Failure> {
        match self.checked(connected.map(Connected::Stream))? {
            Connected::Stream(channel) => Ok(channel),
            Connected::Messages(_) => Err(Failure::message(Exit::Usage, "a channel of messages")),
        }
    }

    /// What came of connecting, if it is the channel that was meant.
    fn checked(&self, connected: io::Result<Connected>) -> Result<Connected, Failure> {
        let connected = connected.map_err(|error| self.failure(&error))?;
        let name = match &connected {
            Connected::Messages(channel) => &channel.welcome().name,
            Connected::Stream(channel) => &channel.welcome().name,
        };
        match &self.name {
            Some(wanted) if wanted != name => Err(Failure::message(
                Exit::Refused,
                format_args!(
                    "{} is the socket of channel {name}, not {wanted}",
                    self.path.display()
                ),
            )),
            _ => Ok(connected),
        }
    }

    /// Why there is no connection, and what to do.
    fn failure(&self, error: &io::Error) -> Failure {
        let path = self.path.display();
        if is_other_kind(error) {
            let message = format_args!("{path} carries messages; this needs mode = \"stream\"");
            return Failure::message(Exit::Refused, message);
        }
        if error.get_ref().is_some_and(|inner| inner.is::<Refusal>()) {
            return Failure::message(Exit::Refused, format_args!("{path}: {error}"));
        }
        let advice = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "is tapd running, and the channel in the configuration of this node? If its \
                 socket is elsewhere, name it with --socket"
            }
            io::ErrorKind::PermissionDenied => {
                "run this as a user that socket_owner, socket_group and socket_mode of the channel \
                 let in"
            }
            _ => "name the socket of a channel",
        };
        Failure::message(Exit::Unreachable, format_args!("cannot use {path}: {error}; {advice}"))
    }
}

/// Whether one of these nodes is known to be among the peers of a channel.
///
/// # Errors
/// It is none of them.
fn is_among(peers: &[ChannelPeerReply], channel: &str, nodes: &Nodes) -> Result<bool, Failure> {
    // Before the daemon has met any, that says nothing.
    if peers.is_empty() {
        return Ok(false);
    }
    let is_it =
        |peer: &ChannelPeerReply| NodeId::new(peer.node).is_some_and(|id| nodes.is(id, &peer.peer));
    if peers.iter().any(is_it) {
        return Ok(true);
    }
    let peers: Vec<_> = peers.iter().map(|peer| format!("{} ({})", peer.peer, peer.node)).collect();
    let peers = peers.join(", ");
    Err(Failure::message(
        Exit::Refused,
        format_args!("{nodes} is no peer of channel {channel} on this node; its peers: {peers}"),
    ))
}

/// Asks the daemon where the socket of a channel is. Who may use a channel need not be one who may
/// use the control socket: then it is taken to be in its usual place.
fn find(name: &str, control: &Path) -> Result<PathBuf, Failure> {
    let Ok(client) = Client::connect(control) else {
        let folder = control.parent().unwrap_or(Path::new("/"));
        return Ok(folder.join(SOCKETS_FOLDER).join(name));
    };
    let request = Request::Show { topic: Topic::Channels, name: Some(name.to_owned()) };
    let reply: ChannelsReply = client.request(request)?;
    let channel = reply.channels.into_iter().next();
    let channel = channel.with_context(|| format!("the daemon tells nothing of channel {name}"))?;
    Ok(channel.socket.into())
}

/// A connection to a channel.
#[derive(Debug)]
enum Connected {
    Messages(Channel),
    Stream(StreamChannel),
}

/// Where events come from.
trait Events {
    fn next_event(&mut self) -> io::Result<Event>;
    fn wait_at_most(&self, timeout: Option<Duration>) -> io::Result<()>;
}

impl Events for Channel {
    fn next_event(&mut self) -> io::Result<Event> {
        self.recv()
    }

    fn wait_at_most(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)
    }
}

impl Events for StreamChannel {
    fn next_event(&mut self) -> io::Result<Event> {
        self.recv()
    }

    fn wait_at_most(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_read_timeout(timeout)
    }
}

/// The nodes that something is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Nodes {
    All,
    Id(NodeId),
    Name(String),
}

impl Nodes {
    fn parse(text: &str) -> Self {
        if text == "all" {
            return Self::All;
        }
        let id = text.parse().ok().and_then(NodeId::new);
        id.map_or_else(|| Self::Name(text.to_owned()), Self::Id)
    }

    fn is(&self, id: NodeId, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Id(wanted) => *wanted == id,
            Self::Name(wanted) => wanted == name,
        }
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("any node"),
            Self::Id(id) => write!(f, "node {id}"),
            Self::Name(name) => write!(f, "node {name}"),
        }
    }
}

/// The peers that were up at some time, and what is known of them.
#[derive(Debug, Default)]
struct Peers {
    names: BTreeMap<NodeId, String>,
    /// Those that cannot be reached now.
    down: BTreeSet<NodeId>,
    /// Those that do not have the channel.
    refusing: BTreeSet<NodeId>,
    /// The node that something is for is known to be a peer of the channel.
    is_peer: bool,
}

impl Peers {
    /// Learns from an event; gives it as a line for people, unless it is a message.
    fn learn(&mut self, event: &Event) -> Option<String> {
        Some(match event {
            Event::PeerUp(id, name) => {
                self.names.insert(*id, name.clone());
                self.down.remove(id);
                self.refusing.remove(id);
                format!("{name} is up")
            }
            Event::PeerDown(id) => {
                self.down.insert(*id);
                format!("{} is down", self.name(*id))
            }
            Event::Epoch(id, count) => format!(
                "{} was restarted; {count} messages were given up, some may have arrived",
                self.name(*id)
            ),
            Event::Expired(id, count) => {
                format!("{count} messages to {} were given up: their time was over", self.name(*id))
            }
            Event::Refused(id) => {
                self.refusing.insert(*id);
                format!(
                    "{} has no such channel, or not for this node; messages wait in tapd",
                    self.name(*id)
                )
            }
            _ => return None,
        })
    }

    /// Whether it was up and no link to it is now.
    fn is_down(&self, id: NodeId) -> bool {
        self.down.contains(&id)
    }

    /// The name, or the id where none is known.
    fn name(&self, id: NodeId) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// What something that is for these nodes waits for.
    fn lack(&self, nodes: &Nodes) -> String {
        let seen: Vec<_> = self
            .names
            .iter()
            .filter(|(id, name)| nodes.is(**id, name))
            .map(|(id, _)| *id)
            .collect();
        let named = |ids: &[NodeId]| {
            let names = ids.iter().map(|id| self.name(*id)).collect::<Vec<_>>().join(", ");
            format!("node{} {names}", if ids.len() == 1 { "" } else { "s" })
        };
        let among = |those: &BTreeSet<NodeId>| {
            let ids: Vec<_> = seen.iter().copied().filter(|id| those.contains(id)).collect();
            (!ids.is_empty()).then(|| named(&ids))
        };
        if seen.is_empty() && self.is_peer {
            return format!("{nodes}: no link is up");
        }
        if seen.is_empty() && *nodes == Nodes::All {
            return "a first node: no peer of this channel is known yet".to_owned();
        }
        if seen.is_empty() {
            let others = self.names.iter().map(|(id, name)| format!("{name} ({id})"));
            let others = others.collect::<Vec<_>>().join(", ");
            let others = if others.is_empty() { "none".to_owned() } else { others };
            return format!("{nodes}, which is not up on this channel; seen were: {others}");
        }
        if let Some(down) = among(&self.down) {
            return format!("{down}: no link is up");
        }
        if let Some(refusing) = among(&self.refusing) {
            return format!("{refusing}: no such channel there, or not for this node");
        }
        format!("{} to take what was sent", named(&seen))
    }

    /// Waits until one of the nodes is up, and gives it.
    fn wait_for(
        &mut self,
        channel: &mut impl Events,
        nodes: &Nodes,
        patience: &mut Patience,
    ) -> Result<NodeId, Failure> {
        loop {
            channel.wait_at_most(Some(patience.tick())).map_err(broken)?;
            match channel.next_event() {
                // Only now: what tapd has said already is read, however short the time.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    patience.wait(&self.lack(nodes))?;
                }
                Err(error) => return Err(broken(error)),
                Ok(Event::Error(refusal)) => return Err(refused(&refusal)),
                Ok(event) => {
                    self.learn(&event);
                    if let Event::PeerUp(id, name) = event
                        && nodes.is(id, &name)
                    {
                        channel.wait_at_most(None).map_err(broken)?;
                        patience.get_on();
                        return Ok(id);
                    }
                    patience.tell(&self.lack(nodes));
                }
            }
        }
    }
}

/// Asks a node for a stream, and waits for the answer: it comes within seconds, unless the node went
/// down just now or the program there has to begin first.
fn open_stream(
    channel: StreamChannel,
    peer: NodeId,
    peers: &mut Peers,
    nodes: &Nodes,
    patience: &mut Patience,
) -> Result<Stream, Failure> {
    channel.set_read_timeout(Some(TICK)).map_err(broken)?;
    let mut ended = None;
    let opened = channel.open_while(peer, |event| {
        if let Some(event) = event {
            peers.learn(event);
        }
        let what = match peers.is_down(peer) {
            true => format!("{nodes}: no link is up"),
            false => format!("{nodes} to answer"),
        };
        let waited = patience.wait(&what);
        waited.map_err(|failure| ended = Some(failure)).is_ok()
    });
    if let Some(failure) = ended {
        return Err(failure);
    }
    let stream = opened.map_err(broken)?;
    stream.set_read_timeout(None).map_err(broken)?;
    patience.get_on();
    Ok(stream)
}

/// Tells the user something, if anybody reads it.
fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "tapd: {text}");
}

/// tapd ended the connection with this.
fn refused(refusal: &Refusal) -> Failure {
    Failure::message(Exit::Refused, refusal)
}

/// The connection to tapd failed.
fn broken(error: io::Error) -> Failure {
    match error.downcast::<Refusal>() {
        Ok(refusal) => refused(&refusal),
        Err(error) => Failure::new(Exit::Runtime, error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Events that are there already; then nothing comes.
    struct Queue(VecDeque<Event>);

    impl Events for Queue {
        fn next_event(&mut self) -> io::Result<Event> {
            self.0.pop_front().ok_or_else(|| io::ErrorKind::WouldBlock.into())
        }

        fn wait_at_most(&self, _: Option<Duration>) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn without_time_what_was_said_already_counts() {
        let up = |id, name: &str| Event::PeerUp(NodeId::new(id).unwrap(), name.to_owned());
        let mut queue = Queue([up(2, "beta"), up(3, "gamma")].into());
        let (mut peers, mut patience) = (Peers::default(), Patience::new(Some(Duration::ZERO)));
        let gamma = Nodes::parse("gamma");
        let found = peers.wait_for(&mut queue, &gamma, &mut patience).unwrap();
        assert_eq!(found.get(), 3);
        let ended = peers.wait_for(&mut queue, &Nodes::parse("delta"), &mut patience).unwrap_err();
        assert_eq!(ended.exit(), Exit::TimedOut);
        assert!(ended.to_string().contains("seen were: beta (2), gamma (3)"), "{ended}");
    }

    #[test]
    fn peers_that_are_not_known_yet_refuse_nothing() {
        let beta = ChannelPeerReply { node: 2, peer: "beta".into(), ..Default::default() };
        for (name, known) in [("beta", true), ("2", true), ("all", true), ("gamma", false)] {
            let nodes = Nodes::parse(name);
            assert!(!is_among(&[], "letters", &nodes).unwrap(), "{name}");
            let found = is_among(std::slice::from_ref(&beta), "letters", &nodes);
            assert_eq!(found.ok(), known.then_some(true), "{name}");
        }
        let lack = Peers::default().lack(&Nodes::All);
        assert_eq!(lack, "a first node: no peer of this channel is known yet");
    }
}
