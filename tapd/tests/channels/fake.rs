//! Two nodes in one: what is sent on a channel comes out on the same socket, from node 2, "beta".

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use encap::id::NodeId;
use encap::wire::channel::Mode;
use fastpath::channel::framing::{
    Code, Flags, HEADER_LEN, Header, Kind, MAX_RECORD_LEN, MAX_STREAM_PAYLOAD, VERSION, mode_number,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Bytes of the longest message.
pub(crate) const MAX_LEN: u32 = 2 << 20;
/// Nothing takes so long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a program that was ended may still seem to be there.
const LEAVING: Duration = Duration::from_secs(2);
/// Longer than a program that sends waits for room at once.
const STALL: Duration = Duration::from_millis(800);

/// Serves channels until the test ends.
pub(crate) struct Fake {
    pub(crate) directory: tempfile::TempDir,
    pipes: Arc<Shared>,
}

impl Fake {
    /// With a channel of messages, "letters", and two of streams, "pipes" and "busy". Of messages
    /// and of streams there is one whose peer never is up ("lonely", "lonely-pipes"), and one whose
    /// peer goes down at the first bytes and stays so ("stuck", "stuck-pipes"). At "silent-pipes" a
    /// program takes everything and does nothing more, at "mute-pipes" none answers.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("tapd-channels");
        std::fs::create_dir(&folder).unwrap();
        serve(&folder.join("letters"), Type::SEQPACKET, letters);
        let pipes = serve(&folder.join("pipes"), Type::STREAM, pipes);
        serve(&folder.join("busy"), Type::STREAM, busy);
        serve(&folder.join("lonely"), Type::SEQPACKET, lonely);
        serve(&folder.join("lonely-pipes"), Type::STREAM, lonely_pipes);
        serve(&folder.join("mute-pipes"), Type::STREAM, mute_pipes);
        serve(&folder.join("silent-pipes"), Type::STREAM, silent_pipes);
        serve(&folder.join("stuck"), Type::SEQPACKET, stuck);
        serve(&folder.join("stuck-pipes"), Type::STREAM, stuck_pipes);
        Self { directory, pipes }
    }

    /// Waits until a program accepts streams of "pipes".
    pub(crate) fn wait_for_accept(&self) {
        self.pipes.with_taker(|_| ());
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join("tapd-channels").join(name)
    }
}

/// What the connections of a channel share.
#[derive(Default)]
struct Shared {
    /// Who receives messages, or accepted and waits for a stream.
    taker: Mutex<Option<Socket>>,
    changed: Condvar,
    /// Programs that came.
    came: AtomicUsize,
}

impl Shared {
    /// Waits for somebody who takes.
    fn with_taker<T>(&self, act: impl FnOnce(&mut Option<Socket>) -> T) -> T {
        let taker = self.taker.lock().unwrap();
        let (mut taker, late) =
            self.changed.wait_timeout_while(taker, TIMEOUT, |taker| taker.is_none()).unwrap();
        assert!(!late.timed_out(), "nobody takes what is sent");
        act(&mut taker)
    }

    /// Whether nobody takes, or leaves in this moment.
    fn is_free(&self) -> bool {
        let taker = self.taker.lock().unwrap();
        let taken = |taker: &mut Option<Socket>| taker.is_some();
        !self.changed.wait_timeout_while(taker, LEAVING, taken).unwrap().1.timed_out()
    }

    fn set(&self, socket: Socket) {
        *self.taker.lock().unwrap() = Some(socket);
        self.changed.notify_all();
    }
}

fn serve(path: &Path, kind: Type, program: fn(Socket, &Shared)) -> Arc<Shared> {
    let listener = Socket::new(Domain::UNIX, kind, None).unwrap();
    listener.bind(&SockAddr::unix(path).unwrap()).unwrap();
    listener.listen(64).unwrap();
    let shared = Arc::new(Shared::default());
    let given = Arc::clone(&shared);
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let shared = Arc::clone(&shared);
            thread::spawn(move || program(socket, &shared));
        }
    });
    given
}

fn send(mut socket: &Socket, header: Header, payload: &[u8]) -> bool {
    let record = [&header.encode()[..], payload].concat();
    std::io::Write::write_all(&mut socket, &record).is_ok()
}

fn welcome(socket: &Socket, mode: Mode, name: &str) {
    welcome_alone(socket, mode, name);
    let beta = NodeId::new(2).unwrap();
    send(socket, Header::event(Kind::PeerUp, beta, 0, 4), b"beta");
}

/// No peer is up.
fn welcome_alone(socket: &Socket, mode: Mode, name: &str) {
    let own = NodeId::new(1).unwrap();
    let length = if mode == Mode::Stream { name.len() as u32 } else { MAX_LEN };
    let welcome = Header::event(Kind::Welcome, own, VERSION, length);
    send(socket, Header { priority: mode_number(mode), ..welcome }, name.as_bytes());
}

fn error(socket: &Socket, code: Code, text: &str) {
    let header =
        Header { code: code.number(), length: text.len() as u32, ..Header::new(Kind::Error) };
    send(socket, header, text.as_bytes());
}

/// All was taken, but for so many messages.
fn closed(socket: &Socket, lost: u32) {
    send(socket, Header { number: lost, ..Header::new(Kind::Closed) }, b"");
}

fn letters(socket: Socket, shared: &Shared) {
    let mut record = vec![0; MAX_RECORD_LEN];
    let (mut receives, mut lost) = (false, 0);
    loop {
        let len = match (&socket).read(&mut record) {
            Ok(0) => {
                closed(&socket, lost);
                break;
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            len => len.unwrap(),
        };
        let (header, payload) = Header::read(&record[..len]).unwrap();
        match header.kind {
            Kind::Attach if header.flags.contains(Flags::RECEIVE) => {
                if !shared.is_free() {
                    return error(&socket, Code::Busy, "another program receives letters");
                }
                welcome(&socket, Mode::Ordered, "letters");
                shared.set(socket.try_clone().unwrap());
                receives = true;
            }
            Kind::Attach => welcome(&socket, Mode::Ordered, "letters"),
            Kind::Data if payload == b"poison" => {
                return error(&socket, Code::Closed, "the channel was taken out");
            }
            // As a tapd that is killed: with it the next message is unread, or nothing is.
            Kind::Data if payload == b"kill" => return,
            Kind::Data if payload == b"nobody" => lost += 1,
            Kind::Data => {
                if payload.starts_with(b"slow") {
                    // Meanwhile the socket becomes full.
                    thread::sleep(STALL);
                }
                shared.with_taker(|taker| {
                    send(taker.as_ref().unwrap(), Header { peer: 2, ..header }, payload);
                });
            }
            _ => return error(&socket, Code::Invalid, "not here"),
        }
    }
    if receives {
        *shared.taker.lock().unwrap() = None;
        shared.changed.notify_all();
    }
}

fn read(mut socket: &Socket) -> Option<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    socket.read_exact(&mut header).ok()?;
    let header = Header::decode(header).unwrap();
    assert!(header.length as usize <= MAX_STREAM_PAYLOAD);
    let mut payload = vec![0; header.length as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((header, payload))
}

fn pipes(socket: Socket, shared: &Shared) {
    let Some((attach, _)) = read(&socket) else { return };
    assert_eq!(attach.kind, Kind::Attach);
    welcome(&socket, Mode::Stream, "pipes");
    let connected = Header::event(Kind::Connected, NodeId::new(2).unwrap(), 0, 0);
    match read(&socket) {
        Some((request, _)) if request.kind == Kind::Accept => {
            // One waits at a time, as `tapd recv` and `tapd forward` do.
            shared.set(socket);
        }
        Some((request, _)) if request.kind == Kind::Connect => {
            let other = shared.with_taker(|taker| taker.take().unwrap());
            send(&socket, connected, b"");
            send(&other, connected, b"");
            let ended = thread::scope(|scope| {
                let there = scope.spawn(|| pump(&socket, &other));
                pump(&other, &socket) & there.join().unwrap()
            });
            if ended {
                closed(&socket, 0);
                closed(&other, 0);
            }
        }
        _ => {}
    }
}

/// Gives each program a stream that ends at once, but has no room for the second one.
fn busy(socket: Socket, shared: &Shared) {
    if read(&socket).is_none() {
        return;
    }
    if shared.came.fetch_add(1, Ordering::Relaxed) == 1 {
        return error(&socket, Code::TooMany, "64 programs use the channel already");
    }
    welcome(&socket, Mode::Stream, "busy");
    if read(&socket).is_some_and(|(request, _)| request.kind == Kind::Accept) {
        send(&socket, Header::event(Kind::Connected, NodeId::new(2).unwrap(), 0, 0), b"");
        send(&socket, Header::new(Kind::Fin), b"");
        while read(&socket).is_some_and(|(header, _)| header.kind != Kind::Fin) {}
        closed(&socket, 0);
    }
}

fn lonely(socket: Socket, _: &Shared) {
    welcome_alone(&socket, Mode::Ordered, "lonely");
    until_gone(&socket);
}

fn lonely_pipes(socket: Socket, _: &Shared) {
    welcome_alone(&socket, Mode::Stream, "lonely-pipes");
    until_gone(&socket);
}

fn stuck(mut socket: Socket, _: &Shared) {
    welcome(&socket, Mode::Ordered, "stuck");
    let mut record = vec![0; MAX_RECORD_LEN];
    // ATTACH, and a message.
    if (1..=2).all(|_| socket.read(&mut record).is_ok_and(|len| len > 0)) {
        send(&socket, Header::event(Kind::PeerDown, NodeId::new(2).unwrap(), 0, 0), b"");
    }
    // The end of sending is no end of the connection, which shows when it is written to.
    // News of others do not make it a shorter one.
    let event = Header::event(Kind::PeerUp, NodeId::new(3).unwrap(), 0, 5);
    while send(&socket, event, b"gamma") {
        thread::sleep(Duration::from_millis(100));
    }
}

/// The program there never takes a stream.
fn mute_pipes(socket: Socket, _: &Shared) {
    welcome(&socket, Mode::Stream, "mute-pipes");
    // News of others do not make it a shorter wait.
    let event = Header::event(Kind::PeerUp, NodeId::new(3).unwrap(), 0, 5);
    while send(&socket, event, b"gamma") {
        thread::sleep(Duration::from_millis(100));
    }
}

fn silent_pipes(socket: Socket, _: &Shared) {
    let Some((attach, _)) = read(&socket) else { return };
    assert_eq!(attach.kind, Kind::Attach);
    welcome(&socket, Mode::Stream, "silent-pipes");
    if read(&socket).is_some_and(|(request, _)| request.kind == Kind::Connect) {
        send(&socket, Header::event(Kind::Connected, NodeId::new(2).unwrap(), 0, 0), b"");
    }
    until_gone(&socket);
}

fn stuck_pipes(socket: Socket, _: &Shared) {
    let Some((attach, _)) = read(&socket) else { return };
    assert_eq!(attach.kind, Kind::Attach);
    welcome(&socket, Mode::Stream, "stuck-pipes");
    let beta = NodeId::new(2).unwrap();
    if read(&socket).is_some_and(|(request, _)| request.kind == Kind::Connect) {
        send(&socket, Header::event(Kind::Connected, beta, 0, 0), b"");
        read(&socket);
        // The program there has nothing to say, and there is no room for more.
        send(&socket, Header::new(Kind::Fin), b"");
        send(&socket, Header::event(Kind::PeerDown, beta, 0, 0), b"");
    }
    let event = Header::event(Kind::PeerUp, NodeId::new(3).unwrap(), 0, 5);
    while send(&socket, event, b"gamma") {
        thread::sleep(Duration::from_millis(500));
    }
}

/// Reads what comes until the program has gone.
fn until_gone(mut socket: &Socket) {
    let mut record = vec![0; MAX_RECORD_LEN];
    while socket.read(&mut record).is_ok_and(|len| len > 0) {}
}

/// Hands records on. Where one side goes without an end, the stream is reset. Says whether the end
/// was handed on, and nothing happens then that a tapd that is killed does not do.
fn pump(from: &Socket, to: &Socket) -> bool {
    let mut killed = false;
    loop {
        match read(from) {
            Some((header, payload)) if header.kind == Kind::Data => {
                killed |= payload.ends_with(b"kill");
                if !send(to, header, &payload) {
                    // Gone: its own pump says so.
                    return false;
                }
            }
            Some((header, _)) if header.kind == Kind::Fin => {
                send(to, header, b"");
                return !killed;
            }
            ended => {
                let number = ended.map_or(0, |(header, _)| header.number);
                let code = Code::Reset.number();
                send(to, Header { code, number, ..Header::new(Kind::Reset) }, b"");
                let _ = to.shutdown(std::net::Shutdown::Both);
                return false;
            }
        }
    }
}
