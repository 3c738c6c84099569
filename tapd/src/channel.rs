//! `tapd send`, `tapd recv` and `tapd forward`: programs that use channels.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use encap::id::NodeId;
use fastpath::channel::client::{Channel, Event, Refusal, StreamChannel, is_other_kind};

use crate::cli::ChannelArgs;
use crate::control::{ChannelsReply, Client, Request, Topic};
use crate::exit::{Exit, Failure};

pub(crate) mod forward;
pub(crate) mod recv;
pub(crate) mod send;

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
}

impl Target {
    /// Finds the socket: where the user says, else where the daemon says, else in its usual place.
    ///
    /// # Errors
    /// The daemon has no such channel.
    fn new(args: &ChannelArgs) -> Result<Self, Failure> {
        // Names of channels have no slash.
        if args.name.contains('/') {
            return Ok(Self { path: PathBuf::from(&args.name), name: None });
        }
        let path = match &args.socket {
            Some(path) => path.clone(),
            None => find(&args.name, &args.control.path)?,
        };
        Ok(Self { path, name: Some(args.name.clone()) })
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

/// Names of the peers that were up at some time.
#[derive(Debug, Default)]
struct Peers(BTreeMap<NodeId, String>);

impl Peers {
    /// Learns from an event; gives it as a line for people, unless it is a message.
    fn learn(&mut self, event: &Event) -> Option<String> {
        Some(match event {
            Event::PeerUp(id, name) => {
                self.0.insert(*id, name.clone());
                format!("{name} is up")
            }
            Event::PeerDown(id) => format!("{} is down", self.name(*id)),
            Event::Epoch(id, count) => format!(
                "{} was restarted; {count} messages were given up, some may have arrived",
                self.name(*id)
            ),
            Event::Expired(id, count) => {
                format!("{count} messages to {} were given up: their time was over", self.name(*id))
            }
            Event::Refused(id) => format!(
                "{} has no such channel, or not for this node; messages wait in tapd",
                self.name(*id)
            ),
            _ => return None,
        })
    }

    /// The name, or the id where none is known.
    fn name(&self, id: NodeId) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// Waits until one of the nodes is up, and gives it.
    fn wait_for(
        &mut self,
        channel: &mut impl Events,
        nodes: &Nodes,
        timeout: Duration,
    ) -> Result<NodeId, Failure> {
        let end = Instant::now() + timeout;
        loop {
            // None at all would be for ever.
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            channel.wait_at_most(Some(left)).map_err(broken)?;
            let event = match channel.next_event() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(self.nobody(nodes, timeout));
                }
                event => event.map_err(broken)?,
            };
            self.learn(&event);
            match event {
                Event::PeerUp(id, name) if nodes.is(id, &name) => {
                    channel.wait_at_most(None).map_err(broken)?;
                    return Ok(id);
                }
                Event::Error(refusal) => return Err(refused(&refusal)),
                _ => {}
            }
        }
    }

    fn nobody(&self, nodes: &Nodes, timeout: Duration) -> Failure {
        let wanted = match nodes {
            Nodes::All => "no node".to_owned(),
            Nodes::Id(id) => format!("node {id}"),
            Nodes::Name(name) => format!("node {name}"),
        };
        let seen = self.0.iter().map(|(id, name)| format!("{name} ({id})")).collect::<Vec<_>>();
        let seen = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
        let is = if *nodes == Nodes::All { "is" } else { "is not" };
        Failure::message(
            Exit::Runtime,
            format_args!(
                "{wanted} {is} up on this channel after {} s; seen were: {seen}. Look at tapd show \
                 peers and at members of the channel, or wait longer with --timeout",
                timeout.as_secs()
            ),
        )
    }
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
