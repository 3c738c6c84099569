//! `tapd forward`: carries connections, each over a stream of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use fastpath::channel::client::{Stream, StreamChannel, StreamReader, StreamWriter, is_other_kind};
use socket2::{SockRef, Socket};

use super::{CHUNK_LEN, Nodes, Patience, Peers, Target, broken, open_stream, say};
use crate::cli::ForwardArgs;
use crate::exit::{Exit, Failure};

/// Connections that are carried at once: each is a program at the channel, and some are left for
/// others.
const MAX_CONNECTIONS: usize = 60;
const _: () = assert!(MAX_CONNECTIONS < fastpath::channel::sockets::MAX_CONNECTIONS);
/// How long nothing is accepted when descriptors or memory are short: they are not there sooner if
/// they are asked for at once.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a connection waits where the user does not say: programs do not wait much longer.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a channel that refused a program is not asked again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// What the program at the peer is told when the connection here cannot be made, or fails.
const CONNECTION_FAILED: u32 = 1;

/// Carries connections, without an end.
pub(crate) fn run(args: &ForwardArgs) -> Result<(), Failure> {
    let target = Target::new(&args.channel)?;
    let timeout = args.timeout.map(|seconds| Duration::from_secs(seconds.into()));
    match (&args.listen, &args.to, &args.connect) {
        (Some(listen), Some(to), _) => {
            let nodes = Nodes::parse(to);
            if nodes == Nodes::All {
                let message = "a connection goes to one node; name it with --to";
                return Err(Failure::message(Exit::Usage, message));
            }
            // What is wrong with the channel is told now and not with the first connection.
            let channel = target.connect_stream()?;
            let is_peer = target.check_peer(&channel.welcome().name, &nodes)?;
            drop(channel);
            let listener = Listener::new(&Address::parse(listen)?)?;
            say(format_args!("listening on {}, for {to}", listener.name()?));
            listen_side(&target, &listener, &To { nodes, is_peer, timeout })
        }
        (_, _, Some(connect)) => {
            let address = Address::parse(connect)?;
            connect_side(&target, &address, timeout.unwrap_or(DEFAULT_TIMEOUT))
        }
        _ => Err(Failure::message(Exit::Usage, "name --listen with --to, or --connect")),
    }
}

/// Where connections are carried to.
#[derive(Debug, Clone)]
struct To {
    nodes: Nodes,
    /// See [`Peers::is_peer`].
    is_peer: bool,
    /// How long a connection waits for the node to be up, and then for its answer, as
    /// the user says.
    timeout: Option<Duration>,
}

/// Takes connections here and carries them to a node.
fn listen_side(target: &Target, listener: &Listener, to: &To) -> Result<(), Failure> {
    let slots = Slots::default();
    loop {
        let slot = slots.take();
        let local = match listener.accept() {
            Ok(local) => local,
            Err(error) if is_short(&error) => {
                say(format_args!("cannot accept a connection: {error}"));
                thread::sleep(PAUSE);
                continue;
            }
            // A client that has left already, or a signal.
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(anyhow!(error).context("cannot accept connections").into()),
        };
        let (target, to) = (target.clone(), to.clone());
        thread::spawn(move || {
            let _slot = slot;
            let stream = target.connect_stream().and_then(|mut channel| {
                let mut peers = Peers { is_peer: to.is_peer, ..Peers::default() };
                let mut patience = Patience::with_default(to.timeout, DEFAULT_TIMEOUT);
                let peer = peers.wait_for(&mut channel, &to.nodes, &mut patience)?;
                open_stream(channel, peer, &mut peers, &to.nodes, &mut patience)
            });
            match stream {
                Ok(stream) => relay(local, stream),
                Err(failure) => {
                    say(format_args!("a connection was reset: {failure}"));
                    reset(&local);
                }
            }
        });
    }
}

/// Takes streams of other nodes and connects each to an address.
fn connect_side(target: &Target, address: &Address, timeout: Duration) -> Result<(), Failure> {
    let slots = Slots::default();
    let mut next = Some(target.connect_stream()?);
    say(format_args!("carrying streams to {}", address.name()));
    loop {
        let slot = slots.take();
        let channel = match next.take() {
            Some(channel) => channel,
            None => connect_again(target)?,
        };
        let stream = accept(channel)?;
        let address = address.clone();
        thread::spawn(move || {
            let _slot = slot;
            match address.connect(timeout) {
                Ok(local) => relay(local, stream),
                Err(error) => {
                    let name = address.name();
                    say(format_args!("cannot connect to {name}: {error}; the stream was reset"));
                    // The peer may have left; what is left of the stream goes with it.
                    let _ = stream.reset(CONNECTION_FAILED);
                }
            }
        });
    }
}

/// Connects to the channel as often as it takes, as connections are carried meanwhile; without the
/// daemon there is nothing to wait for.
fn connect_again(target: &Target) -> Result<StreamChannel, Failure> {
    loop {
        let error = match StreamChannel::connect(&target.path) {
            Err(error) if !is_final(&error) => error,
            connected => return target.checked_stream(connected),
        };
        say(format_args!("cannot take another stream yet: {}", target.failure(&error)));
        thread::sleep(REFUSED_PAUSE);
    }
}

fn accept(channel: StreamChannel) -> Result<Stream, Failure> {
    channel.accept().map_err(broken)
}

/// Carries one connection until both sides have ended, or one is reset.
fn relay(local: Socket, stream: Stream) {
    let (mut reader, mut writer) = stream.into_split();
    let Ok(socket) = reader.as_fd().try_clone_to_owned() else { return reset(&local) };
    let abort = || {
        // Both directions of the stream end without FIN, with which tapd resets it. First, so that
        // the end of the connection is not sent as one that the program meant.
        let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
        reset(&local);
    };
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // Of a connection that was reset nobody needs to hear here.
        scope.spawn(|| copy_out(&local, &mut writer, &ended).inspect_err(|_| abort()));
        if copy_in(&mut reader, &local, &ended).is_err() {
            abort();
        }
    });
}

/// From the connection into the stream, to the end, which is noted before it is said.
fn copy_out(mut local: &Socket, writer: &mut StreamWriter, ended: &AtomicBool) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        match local.read(&mut chunk) {
            // A reset connection reads as ended.
            Ok(0) => {
                local.take_error()?.map_or(Ok(()), Err)?;
                ended.store(true, Ordering::Release);
                return writer.shutdown();
            }
            Ok(count) => writer.write_all(chunk.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// From the stream into the connection, to the end. Where the other direction has ended before, the
/// connection hears of the end only once all that it sent has arrived: else it would take what tapd
/// lost, being killed, for sent.
fn copy_in(
    reader: &mut StreamReader,
    mut local: &Socket,
    other_ended: &AtomicBool,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let count = reader.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        local.write_all(chunk.get(..count).unwrap_or_default())?;
    }
    if other_ended.load(Ordering::Acquire) {
        reader.wait_closed()?;
    }
    match local.shutdown(Shutdown::Write) {
        // It has gone already, with all that it wanted.
        Err(error) if error.kind() == ErrorKind::NotConnected => {}
        done => done?,
    }
    reader.wait_closed()
}

/// Has a connection end as reset when it is closed, and ends what waits to read from it. A UNIX
/// socket is only closed.
fn reset(local: &Socket) {
    let _ = local.set_linger(Some(Duration::ZERO));
    // The writing side stays: its end would look like one that the program meant.
    let _ = local.shutdown(Shutdown::Read);
}

/// Where connections come from or go to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl Address {
    fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            let message = format_args!("{text:?} is no address: write HOST:PORT, or unix:PATH");
            return Err(Failure::message(Exit::Usage, message));
        }
        Ok(Self::Tcp(text.to_owned()))
    }

    fn name(&self) -> String {
        match self {
            Self::Tcp(address) => address.clone(),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    fn connect(&self, timeout: Duration) -> io::Result<Socket> {
        let address = match self {
            Self::Unix(path) => return UnixStream::connect(path).map(Socket::from),
            Self::Tcp(address) => address,
        };
        let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, timeout.max(Duration::from_secs(1))) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream.into());
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    fn new(address: &Address) -> Result<Self, Failure> {
        let listener = match address {
            Address::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            Address::Unix(path) => {
                remove_stale(path);
                UnixListener::bind(path).map(|listener| Self::Unix(listener, path.clone()))
            }
        };
        let listener = listener.with_context(|| format!("cannot listen on {}", address.name()));
        listener.map_err(Failure::cannot_start)
    }

    fn name(&self) -> Result<String, Failure> {
        Ok(match self {
            Self::Tcp(listener) => listener.local_addr().context("no address")?.to_string(),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        })
    }

    fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| stream.into()),
        }
    }
}

/// Removes a socket file that nobody listens on any more.
fn remove_stale(path: &Path) {
    let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    if UnixStream::connect(path).is_err_and(refused) {
        // If it cannot be removed, binding says why.
        let _ = std::fs::remove_file(path);
    }
}

/// Whether the daemon, or the channel, is not there any more.
fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
        || is_other_kind(error)
}

/// Whether what accepting needs is not there now.
fn is_short(error: &io::Error) -> bool {
    error.kind() == ErrorKind::OutOfMemory
        // Too many open files: ENFILE, EMFILE, ENOBUFS have no kind of their own.
        || matches!(error.raw_os_error(), Some(23 | 24 | 105))
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

/// Room for so many connections at once.
#[derive(Debug, Default)]
struct Slots(Arc<(Mutex<usize>, Condvar)>);

/// Room for one connection, given back when it is dropped.
#[derive(Debug)]
struct Slot(Arc<(Mutex<usize>, Condvar)>);

impl Slots {
    /// Waits for room.
    fn take(&self) -> Slot {
        let (taken, freed) = &*self.0;
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken >= MAX_CONNECTIONS;
        let mut taken = freed.wait_while(taken, full).unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Slot(Arc::clone(&self.0))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (taken, freed) = &*self.0;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        freed.notify_one();
    }
}
