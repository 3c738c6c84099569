//! The daemon's side of the control socket: threads of its own, off the packet path.
//!
//! A connection is one request. Its thread reads the line, hands an [`Incoming`] to the daemon's
//! control loop through a bounded channel, and writes what comes back.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use socket2::{Socket, Type};

use super::message::{ReplyLine, Request, RequestLine, VersionOnly};
use super::{CONTROL_VERSION, MAX_REQUEST_LEN};
use crate::socket_file::{self, Found, SocketFile};

/// Most connections at once, captures and watches included.
const MAX_CONNECTIONS: usize = 16;
/// Connections that wait at most to be accepted.
const BACKLOG: i32 = 128;
/// A client has so long to send its line, and to take its reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The control loop has so long to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// [`hung_up`] waits so long for a sign of its client.
const HUNG_UP_WAIT: Duration = Duration::from_millis(1);
/// Pause after a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Called after every request that was queued, to wake the control loop.
pub(crate) type Waker = Box<dyn Fn() + Send + Sync>;

/// A request on its way to the control loop.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// What is asked.
    pub(crate) request: Request,
    /// Takes the answer.
    pub(crate) reply: ReplySender,
}

/// Takes the one answer to a request; dropped without one, the client is told so. Never blocks.
#[derive(Debug)]
pub(crate) struct ReplySender(SyncSender<Answer>);

enum Answer {
    Data(serde_json::Value),
    Refused(String),
    Later(Box<dyn FnOnce() -> Result<serde_json::Value, String> + Send>),
    Stream(Box<dyn FnOnce(UnixStream) + Send>),
}

impl ReplySender {
    /// Answers with data; `()` for a request that has none.
    pub(crate) fn ok(self, data: &impl Serialize) {
        self.send(match as_json(data) {
            Ok(value) => Answer::Data(value),
            Err(error) => Answer::Refused(error),
        });
    }

    /// Answers with what `make` gives, or refuses with its error. It runs on the connection's own
    /// thread: for what another thread than the control loop has to say, which may take a moment.
    pub(crate) fn later<T: Serialize>(
        self,
        make: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) {
        self.send(Answer::Later(Box::new(move || as_json(&make()?))));
    }

    /// Refuses, with one sentence on why and what to do.
    pub(crate) fn refuse(self, error: impl Into<String>) {
        self.send(Answer::Refused(error.into()));
    }

    /// Accepts, and hands the bare connection to `run`, on the connection's own thread.
    ///
    /// Writes of `run` time out after [`CLIENT_TIMEOUT`]; it ends when a write fails.
    pub(crate) fn stream(self, run: impl FnOnce(UnixStream) + Send + 'static) {
        self.send(Answer::Stream(Box::new(run)));
    }

    fn send(self, answer: Answer) {
        // The channel has room for the one answer; it fails only when the client gave up.
        let _ = self.0.try_send(answer);
    }
}

/// Whether the client of a [`ReplySender::stream`] is gone; takes at most [`HUNG_UP_WAIT`].
///
/// To be asked while there is nothing to write, since only a write would tell otherwise.
pub(crate) fn hung_up(stream: &UnixStream) -> bool {
    if stream.set_read_timeout(Some(HUNG_UP_WAIT)).is_err() {
        return true;
    }
    // Clients send nothing behind their request; what one sends all the same is passed over.
    match (&mut &*stream).read(&mut [0; 64]) {
        Ok(count) => count == 0,
        Err(error) => {
            !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        }
    }
}

/// The listening socket; dropping it stops listening and removes the socket's file.
#[derive(Debug)]
pub(crate) struct Server {
    file: SocketFile,
    /// Kept to be shut down, which ends the thread's accept.
    listener: Arc<UnixListener>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Makes the socket, mode 0600, and starts listening.
    ///
    /// Requests arrive in the receiver; `waker` is called after each.
    ///
    /// # Errors
    /// When another daemon listens there, or the socket cannot be made; says which and what to do.
    pub(crate) fn bind(path: &Path, waker: Waker) -> anyhow::Result<(Self, Receiver<Incoming>)> {
        remove_stale(path)?;
        let listener =
            socket_file::bind_private(path, Type::STREAM).and_then(listen).with_context(|| {
                format!(
                    "cannot make the control socket {}; check that its directory exists and can be \
                    written, or choose another with --control-socket",
                    path.display()
                )
            })?;
        let listener = Arc::new(listener);
        let file = SocketFile::new(path)?;
        // One request per connection: this queue never fills.
        let (requests, incoming) = mpsc::sync_channel(MAX_CONNECTIONS);
        let stopping = Arc::new(AtomicBool::new(false));
        let acceptor = Acceptor {
            listener: Arc::clone(&listener),
            stopping: Arc::clone(&stopping),
            shared: Arc::new(Shared { requests, waker, open: AtomicUsize::new(0) }),
        };
        let thread = thread::Builder::new()
            .name("control-socket".to_owned())
            .spawn(move || acceptor.run())
            .context("cannot start the control socket's thread")?;
        Ok((Self { file, listener, stopping, thread: Some(thread) }, incoming))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the accept, also where the file is gone and nobody could connect to it.
        let woken = socket2::SockRef::from(&*self.listener).shutdown(Shutdown::Both).is_ok();
        self.file.remove();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn listen(socket: Socket) -> io::Result<UnixListener> {
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

/// Removes the socket of a daemon that is gone; refuses if one answers, or it is another file.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    match socket_file::make_room(path)? {
        Found::Room | Found::LeftBehind => Ok(()),
        Found::NoSocket => {
            bail!("{shown} exists and is not a socket; choose another path with --control-socket")
        }
        Found::Listener => bail!(
            "another tapd already listens on {shown}; stop it first, or give this one its own \
             --control-socket, port and taps"
        ),
    }
}

struct Shared {
    requests: SyncSender<Incoming>,
    waker: Waker,
    open: AtomicUsize,
}

struct Acceptor {
    listener: Arc<UnixListener>,
    stopping: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Acceptor {
    fn run(self) {
        loop {
            let accepted = self.listener.accept();
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            match accepted {
                Ok((stream, _)) => self.start(stream),
                Err(error) => {
                    log::warn!("control socket cannot accept: {error}");
                    thread::sleep(ACCEPT_RETRY);
                }
            }
        }
    }

    fn start(&self, mut stream: UnixStream) {
        let slot = Slot::take(&self.shared);
        if stream.set_write_timeout(Some(CLIENT_TIMEOUT)).is_err() {
            return;
        }
        let Some(slot) = slot else {
            let error = format!("{MAX_CONNECTIONS} clients are connected already; try again later");
            // Fits the new socket's buffer: does not block.
            let _ = write_line(&mut stream, &ReplyLine::refused(error));
            return;
        };
        let started = thread::Builder::new()
            .name("control-client".to_owned())
            .spawn(move || serve(stream, &slot.0));
        if let Err(error) = started {
            log::warn!("control socket cannot start a thread: {error}");
        }
    }
}

/// One of the [`MAX_CONNECTIONS`]; given back when dropped.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let before = shared.open.fetch_add(1, Ordering::AcqRel);
        let slot = Self(Arc::clone(shared));
        (before < MAX_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection from its request to its reply.
fn serve(mut stream: UnixStream, shared: &Shared) {
    let answer = match read_line(&mut stream) {
        Ok(line) => match parse(&line) {
            Ok(request) => ask(request, shared),
            Err(error) => Answer::Refused(error),
        },
        Err(ReadFault::HungUp) => return,
        Err(ReadFault::Told(error)) => Answer::Refused(error),
    };
    let written = match answer {
        Answer::Data(data) => write_line(&mut stream, &ReplyLine::ok(data)),
        Answer::Refused(error) => write_line(&mut stream, &ReplyLine::refused(error)),
        Answer::Later(make) => {
            let line = make().map_or_else(ReplyLine::refused, ReplyLine::ok);
            write_line(&mut stream, &line)
        }
        Answer::Stream(run) => {
            let accepted = write_line(&mut stream, &ReplyLine::ok(serde_json::Value::Null));
            accepted.map(|()| run(stream))
        }
    };
    if let Err(error) = written {
        log::debug!("control client did not take its reply: {error}");
    }
}

fn ask(request: Request, shared: &Shared) -> Answer {
    let (reply, answer) = mpsc::sync_channel(1);
    match shared.requests.try_send(Incoming { request, reply: ReplySender(reply) }) {
        Ok(()) => (shared.waker)(),
        Err(TrySendError::Full(_)) => {
            return Answer::Refused("the daemon is busy; try again".into());
        }
        Err(TrySendError::Disconnected(_)) => {
            return Answer::Refused("the daemon is shutting down".into());
        }
    }
    match answer.recv_timeout(ANSWER_TIMEOUT) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Answer::Refused("the daemon shut down, or failed, before it answered".into())
        }
        Err(mpsc::RecvTimeoutError::Timeout) => Answer::Refused(format!(
            "the daemon's control loop did not answer within {} s; its log may say why",
            ANSWER_TIMEOUT.as_secs()
        )),
    }
}

fn as_json(data: &impl Serialize) -> Result<serde_json::Value, String> {
    serde_json::to_value(data).map_err(|error| format!("cannot write the reply as JSON: {error}"))
}

enum ReadFault {
    HungUp,
    Told(String),
}

/// Reads up to a line end, within [`CLIENT_TIMEOUT`] in all and [`MAX_REQUEST_LEN`].
fn read_line(stream: &mut UnixStream) -> Result<Vec<u8>, ReadFault> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_slow());
        }
        stream.set_read_timeout(Some(left)).map_err(|_| ReadFault::HungUp)?;
        let count = match stream.read(&mut chunk) {
            Ok(0) if line.is_empty() => return Err(ReadFault::HungUp),
            Ok(0) => return Err(ReadFault::Told("the request has no line end".into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(too_slow()),
            Err(_) => return Err(ReadFault::HungUp),
        };
        let read = chunk.get(..count).unwrap_or_default();
        let end = read.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(read.get(..end.unwrap_or(count)).unwrap_or_default());
        if line.len() > MAX_REQUEST_LEN {
            let error = format!("the request is longer than {MAX_REQUEST_LEN} bytes");
            return Err(ReadFault::Told(error));
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}

fn too_slow() -> ReadFault {
    ReadFault::Told(format!("no whole request within {} s", CLIENT_TIMEOUT.as_secs()))
}

fn parse(line: &[u8]) -> Result<Request, String> {
    let version: VersionOnly = serde_json::from_slice(line).map_err(|error| {
        format!(
            "not a request: {error}; send one line such as \
            {{\"version\":1,\"command\":\"show\",\"topic\":\"status\"}}"
        )
    })?;
    if version.version != CONTROL_VERSION {
        return Err(format!(
            "this daemon speaks version {CONTROL_VERSION} of the control protocol, not {}; use \
                the tapd program that it was started from",
            version.version
        ));
    }
    let line: RequestLine =
        serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    Ok(line.request)
}

fn write_line(stream: &mut UnixStream, reply: &ReplyLine) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
