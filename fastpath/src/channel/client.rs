//! What a program uses to send and receive over channels: the other end of tapd's sockets.
//!
//! [`Channel`] is for the channels of messages, [`Stream`] and [`StreamChannel`] for those of
//! streams, and [`hand_over`] gives tapd a socket of its own to carry. All of it blocks unless told
//! not to; then what cannot be done now fails as [`io::ErrorKind::WouldBlock`], and the descriptor
//! ([`std::os::fd::AsFd`]) says when to try again.
//!
//! ```no_run
//! use fastpath::channel::client::{Channel, Event, SendOptions, To};
//!
//! # fn main() -> std::io::Result<()> {
//! let mut channel = Channel::connect("/run/tapd-channels/replication".as_ref(), true)?;
//! channel.send(To::All, SendOptions::default(), b"hello")?;
//! loop {
//!     match channel.recv()? {
//!         Event::Message(message) => println!("{}: {:?}", message.from, message.bytes),
//!         Event::Error(refusal) => return Err(refusal.into()),
//!         event => println!("{event:?}"),
//!     }
//! }
//! # }
//! ```

use std::io;
use std::path::Path;
use std::time::Duration;

use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use super::framing::{Code, Header, Kind, VERSION, mode_from_number};

mod messages;
mod raw;
mod records;
mod stream;
#[cfg(test)]
mod tests;

pub use encap::channel::hub::SendOptions;
pub use messages::{Channel, Message, To};
pub use raw::hand_over;
pub use stream::{Stream, StreamChannel, StreamReader, StreamReset, StreamWriter};

/// How long tapd's answer to ATTACH is waited for: it comes at once from a daemon that is well.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of payload at most of a record that is no DATA: names and texts for people.
const MAX_TEXT_LEN: u32 = 4096;

/// What tapd says of a channel when a program comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// This node.
    pub own: NodeId,
    /// What the channel carries.
    pub mode: Mode,
    /// Its name.
    pub name: String,
    /// Bytes of its longest message; of a channel of streams 0.
    pub max_len: u32,
}

/// What comes from tapd.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message.
    Message(Message),
    /// The peer can be reached, and this is its name.
    PeerUp(NodeId, String),
    /// It cannot be reached now. Messages that are on their way stay, but for datagrams.
    PeerDown(NodeId),
    /// It was restarted: so many messages were given up, of which some may have arrived.
    Epoch(NodeId, u32),
    /// So many messages to it were given up as their time was over.
    Expired(NodeId, u32),
    /// It has no such channel, or not for this node. Messages wait.
    Refused(NodeId),
    /// After [`Channel::finish`]: all that was sent has arrived or was given up, and tapd ends the
    /// connection. So many messages may not have arrived: those to [`To::All`] that came to nobody,
    /// and those that were given up, which may be other programs' where these send to the same
    /// peers.
    Closed(u32),
    /// tapd ends the connection, and says why.
    Error(Refusal),
}

/// Why tapd ended a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tapd refused: {text}")]
pub struct Refusal {
    /// The reason, if it is one that is known here.
    pub code: Option<Code>,
    /// The reason in words.
    pub text: String,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.code {
            Some(Code::Busy) => io::ErrorKind::ResourceBusy,
            Some(Code::NoPeer) => io::ErrorKind::HostUnreachable,
            Some(Code::Invalid | Code::TooLong) => io::ErrorKind::InvalidInput,
            Some(Code::NotAttached) => io::ErrorKind::NotConnected,
            Some(Code::Version) => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, refusal)
    }
}

/// Whether connecting failed because the channel carries streams and not messages, or the other way
/// round.
#[must_use]
pub fn is_other_kind(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPROTOTYPE)
}

/// A socket that is connected to a channel's.
fn connect(path: &Path, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_read_timeout(Some(WELCOME_TIMEOUT))?;
    Ok(socket)
}

/// A wait for [`Welcome`] that took too long, in words.
fn without_welcome(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        return io::Error::new(io::ErrorKind::TimedOut, "tapd does not answer on its channel");
    }
    error
}

/// Something that tapd must not send.
fn nonsense(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// That tapd hung up.
fn hung_up() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "tapd ended without a word; what it had not delivered is lost",
    )
}

/// `error` of a send; what tapd said before it hung up can still be read.
fn send_failure(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => io::Error::new(
            io::ErrorKind::BrokenPipe,
            "tapd ended the connection; what it sent last says why",
        ),
        _ => error,
    }
}

/// What came of sending something that tapd answers. That it has hung up already is no failure: its
/// answer says why.
fn asked<T>(sent: io::Result<T>) -> io::Result<()> {
    match sent.map_err(send_failure) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Calls until no signal comes between.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

/// A header whose peer must be one.
fn peer(header: &Header) -> io::Result<NodeId> {
    header.peer().ok_or_else(|| nonsense("a record of tapd about no peer"))
}

/// What a WELCOME says. On a socket of streams its length is that of the payload.
fn read_welcome(header: &Header, payload: &[u8]) -> io::Result<Welcome> {
    if header.kind == Kind::Error {
        return Err(read_refusal(header, payload).into());
    }
    let mode = mode_from_number(header.priority);
    let (Kind::Welcome, Some(mode), Some(own)) = (header.kind, mode, header.peer()) else {
        return Err(nonsense("what listens there is no channel of tapd"));
    };
    if header.number != VERSION {
        let message = format!("tapd speaks version {} of channels", header.number);
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let max_len = if mode == Mode::Stream { 0 } else { header.length };
    Ok(Welcome { own, mode, name: text(payload), max_len })
}

fn read_refusal(header: &Header, payload: &[u8]) -> Refusal {
    Refusal { code: Code::from_number(header.code), text: text(payload) }
}

/// What a record tells that is about no message and no stream.
fn read_event(header: &Header, payload: &[u8]) -> io::Result<Event> {
    Ok(match header.kind {
        Kind::PeerUp => Event::PeerUp(peer(header)?, text(payload)),
        Kind::PeerDown => Event::PeerDown(peer(header)?),
        Kind::Epoch => Event::Epoch(peer(header)?, header.number),
        Kind::Expired => Event::Expired(peer(header)?, header.number),
        Kind::Refused => Event::Refused(peer(header)?),
        Kind::Closed => Event::Closed(header.number),
        Kind::Error => Event::Error(read_refusal(header, payload)),
        _ => return Err(nonsense("a record of tapd that cannot be here")),
    })
}
