//! The client against a server that the test plays.

use std::io::{ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use encap::channel::hub::SendOptions;
use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::{Domain, MaybeUninitSlice, MsgHdrMut, SockAddr, Socket, Type};

use super::*;
use crate::channel::framing::{Flags, HEADER_LEN, MAX_PIECE_LEN, MAX_RECORD_LEN, mode_number};
use crate::channel::pieces::{Cutter, Joiner};

mod streams;

/// Nothing that a test waits for takes so long.
const TIMEOUT: Duration = Duration::from_secs(20);
const MAX_LEN: u32 = 16 << 20;

fn node(id: u16) -> NodeId {
    NodeId::new(id).unwrap()
}

/// tapd's side of a channel.
struct Tapd {
    directory: tempfile::TempDir,
    listener: Socket,
}

impl Tapd {
    fn new(kind: Type) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = Socket::new(Domain::UNIX, kind, None).unwrap();
        listener.bind(&SockAddr::unix(directory.path().join("blue")).unwrap()).unwrap();
        listener.listen(8).unwrap();
        listener.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { directory, listener }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("blue")
    }

    /// A program's connection, and the ATTACH that it began with.
    fn accept(&self) -> (Connection, Header) {
        let socket = self.listener.accept().unwrap().0;
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.set_write_timeout(Some(TIMEOUT)).unwrap();
        let is_stream = socket.r#type().unwrap() == Type::STREAM;
        let mut connection = Connection { socket, is_stream };
        let (attach, payload) = connection.read();
        assert_eq!((attach.kind, attach.number, payload.len()), (Kind::Attach, VERSION, 0));
        (connection, attach)
    }

    /// The same, and it is welcome.
    fn welcome(&self, mode: Mode) -> Connection {
        let (connection, _) = self.accept();
        connection.welcome(mode);
        connection
    }
}

struct Connection {
    socket: Socket,
    is_stream: bool,
}

impl Connection {
    fn welcome(&self, mode: Mode) {
        let length = if self.is_stream { 4 } else { MAX_LEN };
        let priority = mode_number(mode);
        let header =
            Header { priority, length, ..Header::event(Kind::Welcome, node(1), VERSION, 0) };
        self.send(header, b"blue");
    }

    fn send(&self, header: Header, payload: &[u8]) {
        let record = [&header.encode()[..], payload].concat();
        let mut sent = 0;
        while sent < record.len() {
            sent += self.socket.send(&record[sent..]).unwrap();
        }
    }

    fn event(&self, kind: Kind, peer: u16, number: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap();
        self.send(Header::event(kind, node(peer), number, length), payload);
    }

    fn error(&self, code: Code, text: &str) {
        let length = u32::try_from(text.len()).unwrap();
        let code = code.number();
        self.send(Header { code, length, ..Header::new(Kind::Error) }, text.as_bytes());
    }

    /// The next record, and what follows its header: on a socket of messages with the ids.
    fn read(&mut self) -> (Header, Vec<u8>) {
        if self.is_stream {
            let mut header = [0; HEADER_LEN];
            self.socket.read_exact(&mut header).unwrap();
            let header = Header::decode(header).unwrap();
            let mut payload = vec![0; header.length as usize];
            self.socket.read_exact(&mut payload).unwrap();
            return (header, payload);
        }
        let mut record = vec![0; MAX_RECORD_LEN + 1];
        let len = self.socket.read(&mut record).unwrap();
        assert!(len <= MAX_RECORD_LEN);
        let (header, payload) = Header::read(&record[..len]).unwrap();
        (header, payload.to_vec())
    }

    /// The next message: the header of its first record, ids, and bytes.
    fn read_message(&mut self) -> (Header, Vec<u16>, Vec<u8>) {
        let mut joiner = Joiner::new(MAX_LEN);
        let mut ids = Vec::new();
        loop {
            let (header, rest) = self.read();
            let (peers, payload) = header.split_peers(&rest).unwrap();
            ids.extend(peers.map(|peer| peer.unwrap().get()));
            if let Some((first, bytes)) = joiner.push(header, payload).unwrap() {
                return (first, ids, bytes);
            }
        }
    }

    fn send_message(&self, from: u16, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap();
        for (piece, more) in Cutter::new(message, 0) {
            let flags = if more { Flags::MORE } else { Flags::NONE };
            self.send(Header { flags, ..Header::event(Kind::Data, node(from), 0, length) }, piece);
            if more {
                // Events may stand between pieces.
                self.event(Kind::PeerDown, 7, 0, b"");
            }
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as u8).collect()
}

#[test]
fn messages_and_events_pass() {
    let tapd = Tapd::new(Type::SEQPACKET);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut connection, attach) = tapd.accept();
            assert!(attach.flags.contains(Flags::RECEIVE));
            connection.welcome(Mode::Ordered);
            let (header, ids, bytes) = connection.read_message();
            assert_eq!((header.priority, header.peer, header.number), (3, 2, 1));
            assert_eq!((ids, bytes), (vec![], b"one".to_vec()));
            let (header, ids, bytes) = connection.read_message();
            assert_eq!((header.peer, header.number, bytes.len()), (0, 0, 0));
            assert!(ids.is_empty());
            let (header, ids, bytes) = connection.read_message();
            assert_eq!((header.peer, header.number), (0, 1500));
            assert_eq!((ids, bytes), (vec![2, 3], b"set".to_vec()));
            connection.event(Kind::PeerUp, 2, 0, b"beta");
            connection.event(Kind::PeerDown, 2, 0, b"");
            connection.event(Kind::Epoch, 2, 5, b"");
            connection.event(Kind::Expired, 3, 6, b"");
            connection.event(Kind::Refused, 3, 0, b"");
            connection.send(Header { number: 9, ..Header::new(Kind::Closed) }, b"");
            connection.send_message(2, b"answer");
            connection.error(Code::Closed, "it ends");
        });
        let mut channel = Channel::connect(&tapd.path(), true).unwrap();
        let welcome =
            Welcome { own: node(1), mode: Mode::Ordered, name: "blue".into(), max_len: MAX_LEN };
        assert_eq!(*channel.welcome(), welcome);
        let options = SendOptions { priority: 3, ttl: Some(Duration::from_nanos(1)) };
        channel.send(To::One(node(2)), options, b"one").unwrap();
        channel.send(To::All, SendOptions::default(), b"").unwrap();
        let options = SendOptions { priority: 0, ttl: Some(Duration::from_micros(1_499_001)) };
        channel.send(To::Each(&[node(2), node(3)]), options, b"set").unwrap();
        for expected in [
            Event::PeerUp(node(2), "beta".into()),
            Event::PeerDown(node(2)),
            Event::Epoch(node(2), 5),
            Event::Expired(node(3), 6),
            Event::Refused(node(3)),
            Event::Closed(9),
            Event::Message(Message { from: node(2), priority: 0, bytes: b"answer".to_vec() }),
            Event::Error(Refusal { code: Some(Code::Closed), text: "it ends".into() }),
        ] {
            assert_eq!(channel.recv().unwrap(), expected);
        }
        assert_eq!(channel.recv().unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let error = channel.send(To::All, SendOptions::default(), b"late").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn what_cannot_be_sent_is_refused_here() {
    let tapd = Tapd::new(Type::SEQPACKET);
    thread::scope(|scope| {
        let server = scope.spawn(|| tapd.welcome(Mode::Unordered));
        let mut channel = Channel::connect(&tapd.path(), false).unwrap();
        let mut refused = |to, priority, len: usize| {
            let options = SendOptions { priority, ttl: None };
            let error = channel.send(to, options, &vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            error.to_string()
        };
        assert!(refused(To::All, 0, MAX_LEN as usize + 1).contains("16777216 at most"));
        assert!(refused(To::All, 8, 0).contains("priority 8"));
        assert!(refused(To::Each(&[]), 0, 0).contains("0 nodes"));
        assert!(refused(To::Each(&[node(1); 256]), 0, 0).contains("256 nodes"));
        let mut connection = server.join().unwrap();
        channel.finish().unwrap();
        assert_eq!(connection.socket.read(&mut [0; 1]).unwrap(), 0, "something was sent");
    });
}

#[test]
fn long_messages_pass_both_ways() {
    let tapd = Tapd::new(Type::SEQPACKET);
    let message = pattern(MAX_LEN as usize);
    let lengths = [MAX_PIECE_LEN, MAX_PIECE_LEN + 1, MAX_LEN as usize];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = tapd.welcome(Mode::Unordered);
            for _ in lengths {
                let (header, ids, bytes) = connection.read_message();
                assert_eq!((header.count, ids), (2, vec![4, 5]));
                connection.send_message(9, &bytes);
            }
        });
        let mut channel = Channel::connect(&tapd.path(), true).unwrap();
        for len in lengths {
            let to = To::Each(&[node(4), node(5)]);
            channel.send(to, SendOptions::default(), &message[..len]).unwrap();
            let came = loop {
                match channel.recv().unwrap() {
                    Event::Message(came) => break came,
                    event => assert_eq!(event, Event::PeerDown(node(7))),
                }
            };
            assert_eq!(came.from, node(9));
            assert!(came.bytes == message[..len], "{len} bytes");
        }
    });
}

#[test]
fn without_room_nothing_waits_and_nothing_is_lost() {
    let tapd = Tapd::new(Type::SEQPACKET);
    thread::scope(|scope| {
        let server = scope.spawn(|| tapd.welcome(Mode::Ordered));
        let mut channel = Channel::connect(&tapd.path(), true).unwrap();
        let mut connection = server.join().unwrap();
        channel.set_nonblocking(true).unwrap();
        assert_eq!(channel.recv().unwrap_err().kind(), ErrorKind::WouldBlock);
        let message = pattern(1 << 20);
        let all = SendOptions::default();
        // More than a socket's buffer: begun, so taken.
        channel.send(To::One(node(2)), all, &message).unwrap();
        assert!(channel.wants_write());
        assert_eq!(channel.send(To::All, all, b"next").unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(channel.finish().unwrap_err().kind(), ErrorKind::WouldBlock);
        let reader = scope.spawn(move || {
            let long = connection.read_message();
            (long, connection.read_message(), connection.socket.read(&mut [0; 1]).unwrap())
        });
        let mut poll = crate::wake::PollSet::default();
        let mut rounds = 0;
        while channel.flush().is_err() {
            rounds += 1;
            assert!(rounds < 100_000);
            poll.set([channel.as_fd().as_raw_fd()]);
            // It watches for what can be read; here the time only bounds the turn.
            poll.wait(Duration::from_micros(100));
        }
        assert!(!channel.wants_write());
        channel.set_nonblocking(false).unwrap();
        channel.send(To::All, all, b"next").unwrap();
        channel.finish().unwrap();
        let (long, next, end) = reader.join().unwrap();
        assert_eq!((long.0.peer, long.2 == message), (2, true));
        assert_eq!((next.0.peer, next.2, end), (0, b"next".to_vec(), 0));
    });
}

#[test]
fn refusals_are_told() {
    let tapd = Tapd::new(Type::SEQPACKET);
    thread::scope(|scope| {
        scope.spawn(|| tapd.accept().0.error(Code::Busy, "another program receives"));
        let error = Channel::connect(&tapd.path(), true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        assert_eq!(error.to_string(), "tapd refused: another program receives");
    });
    // tapd may say it before it reads anything, so before or after the program spoke.
    for kind in [Type::SEQPACKET, Type::STREAM] {
        let tapd = Tapd::new(kind);
        for _ in 0..50 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let socket = tapd.listener.accept().unwrap().0;
                    let connection = Connection { socket, is_stream: kind == Type::STREAM };
                    connection.error(Code::TooMany, "64 programs");
                });
                let error = match kind {
                    Type::STREAM => StreamChannel::connect(&tapd.path()).unwrap_err(),
                    _ => Channel::connect(&tapd.path(), false).unwrap_err(),
                };
                assert_eq!(error.to_string(), "tapd refused: 64 programs");
            });
        }
    }
    // What tapd says is there although it left something of ours unread.
    thread::scope(|scope| {
        let server = scope.spawn(|| tapd.welcome(Mode::Ordered));
        let mut channel = Channel::connect(&tapd.path(), false).unwrap();
        channel.send(To::One(node(9)), SendOptions::default(), b"unread").unwrap();
        let connection = server.join().unwrap();
        connection.error(Code::NoPeer, "node 9 is no peer");
        drop(connection);
        let text = "node 9 is no peer".to_owned();
        let refusal = Refusal { code: Some(Code::NoPeer), text };
        assert_eq!(channel.recv().unwrap(), Event::Error(refusal));
        assert_eq!(channel.recv().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn other_sockets_are_named() {
    let path = tempfile::tempdir().unwrap().path().join("none");
    assert_eq!(Channel::connect(&path, false).unwrap_err().kind(), ErrorKind::NotFound);
    let long = PathBuf::from("/x".repeat(100));
    assert_eq!(Channel::connect(&long, false).unwrap_err().kind(), ErrorKind::InvalidInput);
    let streams = Tapd::new(Type::STREAM);
    let error = Channel::connect(&streams.path(), false).unwrap_err();
    assert!(is_other_kind(&error), "{error}");
    let messages = Tapd::new(Type::SEQPACKET);
    let error = Stream::accept(&messages.path()).unwrap_err();
    assert!(is_other_kind(&error), "{error}");
}

#[test]
fn nonsense_of_tapd_is_an_error() {
    let data = Header::event(Kind::Data, node(2), 0, 1);
    let cases: [(Header, &[u8]); 6] = [
        (data, b"too much"),
        (Header { length: MAX_LEN + 1, flags: Flags::MORE, ..data }, b"x"),
        (Header { peer: 0, ..data }, b"x"),
        (Header::new(Kind::PeerDown), b""),
        (Header::new(Kind::Attach), b""),
        (Header::event(Kind::Connected, node(2), 0, 0), b""),
    ];
    let tapd = Tapd::new(Type::SEQPACKET);
    for (header, payload) in cases {
        thread::scope(|scope| {
            scope.spawn(|| tapd.welcome(Mode::Ordered).send(header, payload));
            let mut channel = Channel::connect(&tapd.path(), true).unwrap();
            let error = channel.recv().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{header:?}");
        });
    }
    let versions = Header { number: 2, ..Header::event(Kind::Welcome, node(1), 2, 0) };
    for (welcome, expected) in [
        (Header { priority: 1, ..versions }, ErrorKind::Unsupported),
        (Header { priority: 5, ..versions }, ErrorKind::InvalidData),
        (Header { peer: 0, priority: 1, ..versions }, ErrorKind::InvalidData),
        (Header { priority: 0, number: VERSION, ..versions }, ErrorKind::InvalidData),
    ] {
        thread::scope(|scope| {
            scope.spawn(|| tapd.accept().0.send(welcome, b"blue"));
            assert_eq!(Channel::connect(&tapd.path(), true).unwrap_err().kind(), expected);
        });
    }
}

#[test]
fn descriptors_are_handed_over() {
    let tapd = Tapd::new(Type::SEQPACKET);
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_read_timeout(Some(TIMEOUT)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let socket = tapd.listener.accept().unwrap().0;
            let mut record = [MaybeUninit::uninit(); HEADER_LEN + 1];
            let mut control = [MaybeUninit::uninit(); 64];
            let mut buffers = [MaybeUninitSlice::new(&mut record)];
            let mut message =
                MsgHdrMut::new().with_buffers(&mut buffers).with_control(&mut control);
            assert_eq!(socket.recvmsg(&mut message, libc::MSG_CMSG_CLOEXEC).unwrap(), HEADER_LEN);
            let len = message.control_len();
            // SAFETY: the kernel wrote that many bytes there.
            let control = unsafe { control[..len].assume_init_ref() };
            // Length (a word), level and type, each an int, then the descriptor.
            let at = size_of::<usize>();
            let int = |at: usize| i32::from_ne_bytes(control[at..at + 4].try_into().unwrap());
            assert_eq!((int(at), int(at + 4)), (libc::SOL_SOCKET, libc::SCM_RIGHTS));
            // SAFETY: the kernel made the descriptor for this call; nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(int(at + 8)) };
            // SAFETY: the kernel wrote the whole record, as its length said.
            let header = unsafe { record[..HEADER_LEN].assume_init_ref() };
            let (header, _) = Header::read(header).unwrap();
            assert_eq!((header.kind, header.peer), (Kind::Attach, 6));
            assert_eq!(header.flags, Flags::RAW.with(Flags::RECEIVE));
            let connection = Connection { socket, is_stream: false };
            connection.welcome(Mode::Unreliable);
            UnixDatagram::from(fd).send(b"from tapd").unwrap();
            connection.event(Kind::PeerUp, 6, 0, b"zeta");
        });
        let mut channel = hand_over(&tapd.path(), theirs.as_fd(), NodeId::new(6), true).unwrap();
        drop(theirs);
        assert_eq!(channel.welcome().mode, Mode::Unreliable);
        let mut bytes = [0; 32];
        let len = ours.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"from tapd");
        assert_eq!(channel.recv().unwrap(), Event::PeerUp(node(6), "zeta".into()));
    });
}
