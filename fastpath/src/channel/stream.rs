//! A program's connection to a channel of streams: one stream, both ways.

use std::io::{self, IoSlice, Read};

use encap::channel::hub::{Hub, StreamError, StreamKey, StreamRead};
use encap::id::NodeId;
use socket2::Socket;

use super::framing::{Code, Flags, HEADER_LEN, Header, Kind, MAX_STREAM_PAYLOAD};
use super::inbound::Fault;

/// Bytes that are read of a program in one call: no socket holds more unless it was told to.
const READ_LEN: usize = 256 << 10;
/// Records in one call, each of a piece of memory of the hub: half of what a socket holds by default.
/// What of a record the socket did not take is kept, so that the record can be ended whatever becomes
/// of the stream.
const RECORDS: usize = 6;
/// Calls in one turn: a fast program does not hold the others up.
const CALLS_PER_TURN: usize = 2;
/// Buffers that are kept for the next one who reads; others are given back.
const SPARE_BUFFERS: usize = 4;

/// Buffers that bytes of programs are read into, for all connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| vec![0; READ_LEN])
    }

    fn give(&mut self, buffer: Vec<u8>) {
        if self.0.len() < SPARE_BUFFERS {
            self.0.push(buffer);
        }
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It may ask for a stream or accept one.
    Idle,
    /// It waits for a stream that a peer asks for.
    Accepting,
    /// It asked this peer; bytes may be written already.
    Connecting(StreamKey, NodeId),
    /// It has a stream.
    Open(StreamKey),
    /// Its stream is no more; what waits to be written goes out, and then it ends.
    Over,
}

/// What a connection wants of its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// The first record is this.
    Attach(Header),
    /// A stream to this peer.
    Connect(NodeId),
    /// A stream that a peer asks for.
    Accept,
}

/// What became of reading.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Nothing more for now.
    Nothing,
    /// Something is to be done before it goes on.
    Wish(Wish),
}

/// Bytes that were read and not yet used: of a record that is not complete, or that the hub has no
/// room for.
#[derive(Debug, Default)]
struct Held {
    /// None while nothing is held.
    buffer: Option<Vec<u8>>,
    start: usize,
    end: usize,
}

/// A connection's stream.
#[derive(Debug)]
pub(super) struct StreamLink {
    pub(super) phase: Phase,
    held: Held,
    /// Bytes of the DATA record that is being read that are to come.
    payload_left: usize,
    /// The hub had no room: it is not read until there is.
    pub(super) blocked: bool,
    /// The program has ended its side.
    pub(super) program_ended: bool,
    /// The program was told that the peer has ended its side.
    pub(super) peer_ended: bool,
    /// The hub may have something to read.
    pub(super) readable: bool,
    /// It is to be written to in the next turn.
    pub(super) queued: bool,
    /// Bytes that go out before anything else: events and the rest of a record. Bounded by the
    /// events of all peers and one record: more is taken only when it is empty.
    out: Vec<u8>,
    /// Bytes of `out` that were written.
    written: usize,
}

impl StreamLink {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Idle,
            held: Held::default(),
            payload_left: 0,
            blocked: false,
            program_ended: false,
            peer_ended: false,
            readable: false,
            queued: false,
            out: Vec::new(),
            written: 0,
        }
    }

    /// The stream, while there is one.
    pub(super) fn key(&self) -> Option<StreamKey> {
        match self.phase {
            Phase::Connecting(key, _) | Phase::Open(key) => Some(key),
            Phase::Idle | Phase::Accepting | Phase::Over => None,
        }
    }

    /// Whether bytes wait to be written.
    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Has a record go out behind those that wait.
    pub(super) fn tell(&mut self, header: Header, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.out.extend_from_slice(&Header { length, ..header }.encode());
        self.out.extend_from_slice(payload);
    }

    /// The stream ended before its end: the program is told why.
    pub(super) fn fail(&mut self, error: StreamError) {
        let (code, said) = match error {
            StreamError::Refused => (Code::NoChannel, 0),
            StreamError::NobodyAccepts => (Code::NobodyAccepts, 0),
            StreamError::Reset(said) => (Code::Reset, u32::try_from(said).unwrap_or(u32::MAX)),
            StreamError::PeerGone => (Code::PeerGone, 0),
            StreamError::Protocol => (Code::Protocol, 0),
        };
        let header = Header { code: code.number(), number: said, ..Header::new(Kind::Reset) };
        self.tell(header, &[]);
        self.phase = Phase::Over;
    }

    /// All of the stream has arrived and was read.
    pub(super) fn done(&mut self) {
        if !self.peer_ended {
            self.peer_ended = true;
            self.tell(Header::new(Kind::Fin), &[]);
        }
        self.tell(Header::new(Kind::Closed), &[]);
        self.phase = Phase::Over;
    }

    /// Reads once what the program sent, if all before it was used. Says how many bytes came; 0 at
    /// the end of the connection.
    pub(super) fn receive(
        &mut self,
        mut socket: &Socket,
        buffers: &mut Buffers,
    ) -> io::Result<usize> {
        let mut buffer = self.held.buffer.take().unwrap_or_else(|| buffers.take());
        let held = self.held.start..self.held.end;
        let kept = held.len();
        // No more than a part of a header: see `use_input`.
        buffer.copy_within(held, 0);
        (self.held.start, self.held.end) = (0, kept);
        let result = socket.read(buffer.get_mut(kept..).unwrap_or_default());
        if let Ok(count) = result {
            self.held.end += count;
        }
        if self.held.end == 0 {
            buffers.give(buffer);
        } else {
            self.held.buffer = Some(buffer);
        }
        result
    }

    /// Uses what was read: as far as the hub has room, and up to a record that the owner is to do
    /// something about.
    pub(super) fn use_input(
        &mut self,
        hub: &mut Hub,
        buffers: &mut Buffers,
        records: &mut u64,
    ) -> Result<Input, Fault> {
        let Some(buffer) = self.held.buffer.take() else { return Ok(Input::Nothing) };
        let result = self.use_bytes(&buffer, hub, records);
        if self.held.start == self.held.end {
            (self.held.start, self.held.end) = (0, 0);
            buffers.give(buffer);
        } else {
            self.held.buffer = Some(buffer);
        }
        result
    }

    fn use_bytes(
        &mut self,
        buffer: &[u8],
        hub: &mut Hub,
        records: &mut u64,
    ) -> Result<Input, Fault> {
        loop {
            if self.phase == Phase::Over {
                // The program will read that it failed; what it sent on is void.
                self.held.start = self.held.end;
                return Ok(Input::Nothing);
            }
            let bytes = buffer.get(self.held.start..self.held.end).unwrap_or_default();
            if self.payload_left > 0 {
                let part = bytes.get(..self.payload_left.min(bytes.len())).unwrap_or_default();
                if part.is_empty() {
                    return Ok(Input::Nothing);
                }
                // Bytes are taken where there is a stream only.
                let Some(key) = self.key() else { return Ok(Input::Nothing) };
                let taken = hub.write_stream(key, part).min(part.len());
                self.held.start += taken;
                self.payload_left -= taken;
                if taken < part.len() {
                    self.blocked = true;
                    return Ok(Input::Nothing);
                }
                continue;
            }
            let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(Input::Nothing) };
            let header = Header::decode(*header)?;
            self.held.start += HEADER_LEN;
            *records += 1;
            if let Some(wish) = self.use_header(header, hub)? {
                return Ok(Input::Wish(wish));
            }
        }
    }

    fn use_header(&mut self, header: Header, hub: &mut Hub) -> Result<Option<Wish>, Fault> {
        let wrong = |text: &'static str| Err(Fault::new(Code::Invalid, text));
        if header.length != 0 && header.kind != Kind::Data {
            return wrong("a payload in a record that has none");
        }
        match (header.kind, self.phase) {
            (Kind::Attach, _) => return Ok(Some(Wish::Attach(header))),
            (Kind::Connect, Phase::Idle) => {
                let Some(peer) = header.peer() else {
                    return Err(Fault::new(Code::NoPeer, "a stream to node 0"));
                };
                return Ok(Some(Wish::Connect(peer)));
            }
            (Kind::Accept, Phase::Idle) => return Ok(Some(Wish::Accept)),
            (Kind::Connect | Kind::Accept, _) => return wrong("a second stream on a connection"),
            (Kind::Data | Kind::Fin | Kind::Reset, Phase::Idle | Phase::Accepting) => {
                return Err(Fault::new(Code::NotAttached, "there is no stream yet"));
            }
            (Kind::Data | Kind::Fin, _) if self.program_ended => {
                return wrong("a record of a stream after its end");
            }
            (Kind::Data, _) if header.count != 0 || header.flags != Flags::NONE => {
                return wrong("a set of nodes or flags in a record of a stream");
            }
            (Kind::Data, _) if header.length as usize > MAX_STREAM_PAYLOAD => {
                let text = format!("a record of more than {MAX_STREAM_PAYLOAD} bytes of a stream");
                return Err(Fault::new(Code::TooLong, text));
            }
            (Kind::Data, _) => self.payload_left = header.length as usize,
            (Kind::Fin, Phase::Connecting(key, _) | Phase::Open(key)) => {
                self.program_ended = true;
                hub.finish_stream(key);
            }
            (Kind::Reset, Phase::Connecting(key, _) | Phase::Open(key)) => {
                hub.reset_stream(key, header.number.into());
                self.phase = Phase::Over;
            }
            (kind, _) => {
                let text = format!("{kind:?} is not for a program to send");
                return Err(Fault::new(Code::Invalid, text));
            }
        }
        Ok(None)
    }

    /// Writes what waits. Says whether all went out.
    pub(super) fn flush(&mut self, socket: &Socket) -> io::Result<bool> {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match socket.send_with_flags(rest, libc::MSG_NOSIGNAL) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(true)
    }

    /// Writes what came for the program, straight out of the hub. Says how many records, and
    /// whether all went out that was to be written.
    pub(super) fn deliver(&mut self, socket: &Socket, hub: &mut Hub) -> io::Result<(u64, bool)> {
        let mut records = 0;
        for _ in 0..CALLS_PER_TURN {
            if !self.flush(socket)? {
                return Ok((records, false));
            }
            let Phase::Open(key) = self.phase else { break };
            if !self.readable || self.peer_ended {
                break;
            }
            match hub.read_stream(key) {
                StreamRead::Bytes(_) => {
                    let pieces = hub.read_stream_vectored(key);
                    let (taken, count) = write_records(socket, pieces, &mut self.out)?;
                    hub.consume_stream(key, taken);
                    records += count;
                    if taken == 0 {
                        return Ok((records, false));
                    }
                }
                StreamRead::Nothing => self.readable = false,
                StreamRead::End => {
                    self.peer_ended = true;
                    self.tell(Header::new(Kind::Fin), &[]);
                    records += 1;
                    // The end was read, with which the stream may be done.
                    hub.consume_stream(key, 0);
                }
            }
        }
        Ok((records, self.flush(socket)?))
    }
}

/// Writes bytes of a stream as records, one of each piece, in one call. Says how many bytes were used,
/// and in how many records; the last one may have its rest in `out`. None were used when the socket
/// took nothing.
fn write_records(
    socket: &Socket,
    pieces: [&[u8]; RECORDS],
    out: &mut Vec<u8>,
) -> io::Result<(usize, u64)> {
    let headers = pieces.map(|piece| {
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        Header { length, ..Header::new(Kind::Data) }.encode()
    });
    let parts = || headers.iter().zip(pieces).filter(|(_, piece)| !piece.is_empty());
    let mut slices = [IoSlice::new(&[]); 2 * RECORDS];
    for (pair, (header, piece)) in slices.chunks_exact_mut(2).zip(parts()) {
        if let [first, second] = pair {
            (*first, *second) = (IoSlice::new(header), IoSlice::new(piece));
        }
    }
    let mut written = match socket.send_vectored_with_flags(&slices, libc::MSG_NOSIGNAL) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((0, 0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
        Err(error) => return Err(error),
    };
    let (mut used, mut records) = (0, 0);
    for (header, piece) in parts() {
        if written == 0 {
            break;
        }
        let in_header = written.min(HEADER_LEN);
        let in_piece = (written - in_header).min(piece.len());
        out.extend_from_slice(header.get(in_header..).unwrap_or_default());
        out.extend_from_slice(piece.get(in_piece..).unwrap_or_default());
        written -= in_header + in_piece;
        used += piece.len();
        records += 1;
    }
    Ok((used, records))
}
