//! Two nodes, their hubs joined in memory, and programs that the test plays.

use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use encap::channel::hub::{
    ChannelConfig, ChannelKey, Hub, HubOptions, LinkView, PeerView, SessionView,
};
use encap::id::{NodeId, PeerIndex};
use encap::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use encap::wire::channel::Mode;
use encap::wire::header;
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};

use crate::channel::framing::{Code, Flags, HEADER_LEN, Header, Kind, MAX_RECORD_LEN, VERSION};
use crate::channel::pieces::{Cutter, Joiner};
use crate::channel::sockets::{ChannelSetup, ChannelSockets, SocketCounters};
use crate::wake::PollSet;

pub(super) const KEY: ChannelKey = ChannelKey(7);
const SEND_BUFFER: usize = 256 << 10;
/// Turns in a row without anything moved, after which nothing more will. Each is as long as the
/// next timer takes, but no longer than this.
const QUIET: usize = 12;
const IDLE: Duration = Duration::from_millis(50);
/// What a turn takes.
const TURN: Duration = Duration::from_micros(20);
/// Bytes of payload of a datagram.
const ROOM: usize = 1_446;
/// Bytes that a hub sends in one turn.
const BUDGET: usize = 256 << 10;
/// More turns than any test needs.
const TURNS: usize = 200_000;

pub(super) fn node(id: u16) -> NodeId {
    NodeId::new(id).unwrap()
}

/// The channel of both nodes.
pub(super) fn config(mode: Mode) -> ChannelConfig {
    ChannelConfig {
        name: "blue".to_owned(),
        mode,
        peers: None,
        copies: false,
        send_buffer: SEND_BUFFER,
        compression: None,
    }
}

/// One node with one channel.
pub(super) struct Node {
    pub(super) hub: Hub,
    pub(super) sockets: ChannelSockets,
    directory: tempfile::TempDir,
    kind: Type,
}

impl Node {
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("blue")
    }

    fn add_channel(&mut self, mode: Mode, now: Instant) {
        let listener = Socket::new(Domain::UNIX, self.kind, None).unwrap();
        listener.bind(&SockAddr::unix(self.path()).unwrap()).unwrap();
        listener.listen(128).unwrap();
        let name = "blue".to_owned();
        let setup =
            ChannelSetup { key: KEY, name, mode, compressed: false, listener: listener.into() };
        self.sockets.add(setup).unwrap();
        self.hub.configure(now, vec![(KEY, config(mode))]);
    }

    pub(super) fn counters(&self) -> SocketCounters {
        self.sockets.report()[0].counters
    }

    /// A program that has connected and said nothing.
    pub(super) fn connect(&self) -> Program {
        let socket = Socket::new(Domain::UNIX, self.kind, None).unwrap();
        socket.connect(&SockAddr::unix(self.path()).unwrap()).unwrap();
        Program::new(socket)
    }

    /// Whether there is something to do at once.
    pub(super) fn is_busy(&self) -> bool {
        let mut set = PollSet::default();
        set.set([self.sockets.fd()]);
        set.wait(Duration::ZERO) || self.sockets.has_pending() || self.hub.has_events()
    }
}

/// Two nodes, 1 and 2.
pub(super) struct World {
    pub(super) nodes: [Node; 2],
    /// What the processes of the nodes drew.
    boots: [u64; 2],
    pub(super) now: Instant,
}

impl World {
    pub(super) fn new(mode: Mode) -> Self {
        let now = Instant::now();
        let kind = if mode == Mode::Stream { Type::STREAM } else { Type::SEQPACKET };
        let nodes = [1, 2].map(|id| {
            let mut sockets = ChannelSockets::new().unwrap();
            sockets.set_nodes(node(id), vec![(node(1), "one".into()), (node(2), "two".into())]);
            let mut node = Node {
                hub: Hub::new(HubOptions::default()),
                sockets,
                directory: tempfile::tempdir().unwrap(),
                kind,
            };
            node.add_channel(mode, now);
            node
        });
        let mut world = Self { nodes, boots: [11, 22], now };
        world.set_up(0, true);
        world.set_up(1, true);
        world.settle();
        world
    }

    /// Has a node see the other one or not.
    pub(super) fn set_up(&mut self, on: usize, up: bool) {
        let link = LinkIndex::new(0).unwrap();
        let links: LinkSet = std::iter::once(link).collect();
        let rtt = Duration::from_micros(100);
        let view = LinkView { link, room: ROOM, rtt, rtt_var: rtt / 2 };
        let session = SessionView {
            boot: self.boots[1 - on],
            compression: false,
            links: vec![view],
            chosen: links,
            live: links,
            failures: [0; MAX_LINKS],
        };
        let peer = node(2 - on as u16);
        let view = PeerView { index: PeerIndex(0), node: peer, session: up.then_some(session) };
        self.nodes[on].hub.set_peers(self.now, vec![view]);
    }

    /// The first node sees another process on the second one.
    pub(super) fn restart_second(&mut self) {
        self.boots[1] += 1;
        self.set_up(0, true);
    }

    /// Each node does what there is to do, once, and what it sends arrives. Says how many records
    /// and packets moved.
    pub(super) fn turn(&mut self) -> usize {
        self.now += TURN;
        self.act()
    }

    /// The same, without time going by.
    pub(super) fn act(&mut self) -> usize {
        let mut moved = 0;
        for (from, boot) in self.boots.into_iter().enumerate() {
            let [a, b] = &mut self.nodes;
            let (here, there) = if from == 0 { (a, b) } else { (b, a) };
            moved += here.sockets.poll(self.now, &mut here.hub);
            let (now, own) = (self.now, node(from as u16 + 1));
            here.hub.transmit(now, BUDGET, &mut |packet| {
                moved += 1;
                let _ = if packet.kind == header::Kind::Channel {
                    there.hub.on_packet(now, own, boot, LinkIndex::FIRST, packet.payload, 0)
                } else {
                    there.hub.on_unreliable(now, own, boot, packet.payload)
                };
                true
            });
        }
        moved
    }

    /// Lets time go by until the next timer, if nothing is to be done at once.
    fn idle(&mut self) {
        let now = self.now;
        let timers = self.nodes.iter().filter_map(|node| node.hub.timeout(now));
        self.now = timers.min().map_or(now + IDLE, |at| at.clamp(now, now + IDLE));
    }

    /// Turns until nothing moves any more.
    pub(super) fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..TURNS {
            if self.turn() > 0 || self.nodes.iter().any(Node::is_busy) {
                quiet = 0;
                continue;
            }
            quiet += 1;
            if quiet == QUIET {
                return;
            }
            self.idle();
        }
        panic!("there is always something to do");
    }

    /// Turns until `done` gives something.
    pub(super) fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..TURNS {
            if let Some(value) = done(self) {
                return value;
            }
            if self.turn() == 0 {
                self.idle();
            }
        }
        panic!("it did not come to that");
    }

    /// A program on a node that is attached; what it was told of peers is read.
    pub(super) fn attach(&mut self, on: usize, flags: Flags) -> Program {
        let mut program = self.nodes[on].connect();
        program.send(attach(flags), &[]).unwrap();
        self.settle();
        let (welcome, _) = program.record().unwrap();
        assert_eq!(welcome.kind, Kind::Welcome, "{:?}", program.record());
        assert_eq!(program.record().unwrap().0.kind, Kind::PeerUp);
        program
    }

    /// What a program is told when its connection is ended.
    pub(super) fn error(&mut self, program: &mut Program) -> (Code, String) {
        self.settle();
        loop {
            let (header, payload) = program.record().expect("an ERROR");
            if header.kind == Kind::Error {
                assert!(program.is_at_end(), "the connection goes on");
                let code = Code::from_number(header.code).unwrap();
                return (code, String::from_utf8(payload).unwrap());
            }
        }
    }
}

pub(super) fn attach(flags: Flags) -> Header {
    Header { flags, number: VERSION, ..Header::new(Kind::Attach) }
}

pub(super) fn data(peer: u16, length: usize) -> Header {
    Header { peer, length: length.try_into().unwrap(), ..Header::new(Kind::Data) }
}

/// A program's end of a connection; never waits.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) socket: Socket,
    is_stream: bool,
    /// Of a stream, what was read and is not a whole record.
    read: Vec<u8>,
    joiner: Joiner,
}

impl Program {
    fn new(socket: Socket) -> Self {
        socket.set_nonblocking(true).unwrap();
        let is_stream = socket.r#type().unwrap() == Type::STREAM;
        Self { socket, is_stream, read: Vec::new(), joiner: Joiner::new(16 << 20) }
    }

    /// Sends one record.
    pub(super) fn send(&self, header: Header, payload: &[u8]) -> io::Result<()> {
        self.send_bytes(&header.encode(), payload)
    }

    pub(super) fn send_bytes(&self, header: &[u8], payload: &[u8]) -> io::Result<()> {
        let slices = [IoSlice::new(header), IoSlice::new(payload)];
        let sent = self.socket.send_vectored_with_flags(&slices, libc::MSG_NOSIGNAL)?;
        assert_eq!(sent, header.len() + payload.len(), "a part of a record");
        Ok(())
    }

    /// Sends a record and a descriptor.
    pub(super) fn send_with(&self, header: Header, descriptors: &[BorrowedFd<'_>]) {
        let mut control = (16 + 4 * descriptors.len()).to_ne_bytes().to_vec();
        control.extend(libc::SOL_SOCKET.to_ne_bytes());
        control.extend(libc::SCM_RIGHTS.to_ne_bytes());
        for descriptor in descriptors {
            control.extend(descriptor.as_raw_fd().to_ne_bytes());
        }
        control.resize(control.len().next_multiple_of(8), 0);
        let header = header.encode();
        let slices = [IoSlice::new(&header)];
        let message = MsgHdr::new().with_buffers(&slices).with_control(&control);
        self.socket.sendmsg(&message, 0).unwrap();
    }

    /// Sends a message in as many records as it needs, with the world turning while there is no
    /// room.
    pub(super) fn send_message(&self, world: &mut World, header: Header, message: &[u8]) {
        for (piece, more) in Cutter::new(message, 0) {
            let flags = if more { Flags::MORE } else { Flags::NONE };
            let length = message.len() as u32;
            world.until(|_| match self.send(Header { flags, length, ..header }, piece) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                result => {
                    result.unwrap();
                    Some(())
                }
            });
        }
    }

    fn fill(&mut self, len: usize) -> bool {
        while self.read.len() < len {
            let mut room = vec![0; len - self.read.len()];
            match (&self.socket).read(&mut room) {
                Ok(count @ 1..) => self.read.extend(&room[..count]),
                _ => return false,
            }
        }
        true
    }

    /// The next record, if one is there.
    pub(super) fn record(&mut self) -> Option<(Header, Vec<u8>)> {
        if self.is_stream {
            if !self.fill(HEADER_LEN) {
                return None;
            }
            let header = Header::read(&self.read).unwrap().0;
            if !self.fill(HEADER_LEN + header.length as usize) {
                return None;
            }
            return Some((header, std::mem::take(&mut self.read).split_off(HEADER_LEN)));
        }
        let mut record = vec![0; MAX_RECORD_LEN + 1];
        let len = (&self.socket).read(&mut record).ok().filter(|len| *len > 0)?;
        assert!(len <= MAX_RECORD_LEN);
        let (header, payload) = Header::read(&record[..len]).unwrap();
        Some((header, payload.to_vec()))
    }

    /// The next message, if all of it is there; events are read over.
    pub(super) fn message(&mut self) -> Option<(Header, Vec<u8>)> {
        while let Some((header, payload)) = self.record() {
            if header.kind == Kind::Data {
                let joined = self.joiner.push(header, &payload).unwrap();
                if joined.is_some() {
                    return joined;
                }
            }
        }
        None
    }

    /// How many messages may not have arrived, if the next record says that the connection ends as
    /// all is settled, and it has ended.
    pub(super) fn closed(&mut self) -> Option<u32> {
        let (header, payload) = self.record()?;
        let is_it = header.kind == Kind::Closed && payload.is_empty() && self.is_at_end();
        is_it.then_some(header.number)
    }

    /// Whether the connection was ended, all else being read.
    pub(super) fn is_at_end(&self) -> bool {
        matches!((&self.socket).read(&mut [0; 1]), Ok(0))
    }
}

/// Bytes that are not the same everywhere.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}
