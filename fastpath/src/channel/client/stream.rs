//! Channels of streams.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::{Socket, Type};

use super::messages::attach;
use super::records::{Record, Records};
use super::{
    Event, Welcome, asked, connect, nonsense, send_failure, uninterrupted, without_welcome,
};
use crate::channel::framing::{Code, Flags, HEADER_LEN, Header, Kind, MAX_STREAM_PAYLOAD};

/// Bytes of one record that is written, and so the most that a writer keeps when the socket has no
/// room: few enough to be at hand twice, enough that a record costs little.
const MAX_WRITE_LEN: usize = 256 << 10;
const _: () = assert!(MAX_WRITE_LEN <= MAX_STREAM_PAYLOAD);

/// Why a stream ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct StreamReset {
    /// Why, if it is something that is known here.
    pub code: Option<Code>,
    /// What the program at the peer says with [`Code::Reset`].
    pub number: u32,
}

impl StreamReset {
    fn text(&self) -> String {
        match self.code {
            Some(Code::Reset) | None => {
                format!("the program at the peer gave the stream up, code {}", self.number)
            }
            Some(Code::NoChannel) => {
                "the peer has no such channel of streams, or not for this node".to_owned()
            }
            Some(Code::NobodyAccepts) => "no program at the peer accepts streams".to_owned(),
            Some(Code::PeerGone) => "the peer was restarted, or is gone".to_owned(),
            Some(Code::TooMany) => "there are too many streams".to_owned(),
            Some(Code::Closed) => "the channel was taken out of the configuration".to_owned(),
            Some(code) => format!("the stream failed: {code:?}"),
        }
    }
}

impl From<StreamReset> for io::Error {
    fn from(reset: StreamReset) -> Self {
        let kind = match reset.code {
            Some(Code::NoChannel) => io::ErrorKind::NotFound,
            Some(Code::NobodyAccepts) => io::ErrorKind::ConnectionRefused,
            Some(Code::PeerGone) => io::ErrorKind::HostUnreachable,
            _ => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, reset)
    }
}

/// A program's end of a channel of streams that has no stream yet.
#[derive(Debug)]
pub struct StreamChannel {
    records: Records,
    welcome: Welcome,
}

impl StreamChannel {
    /// Connects to the socket of a channel.
    ///
    /// # Errors
    /// As [`super::Channel::connect`]; `EPROTOTYPE` when it is a channel of messages.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Arc::new(connect(path, Type::STREAM)?);
        asked(send_record(&socket, attach(false, Flags::NONE, None)))?;
        let mut records = Records::new(Arc::clone(&socket));
        let welcome = match records.next().map_err(without_welcome)? {
            Record::Welcome(welcome) if welcome.mode == Mode::Stream => welcome,
            Record::Event(Event::Error(refusal)) => return Err(refusal.into()),
            _ => return Err(nonsense("tapd does not welcome to a channel of streams")),
        };
        socket.set_read_timeout(None)?;
        Ok(Self { records, welcome })
    }

    /// What tapd says of the channel.
    #[must_use]
    pub const fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// How long calls wait at most before they fail as `WouldBlock`; None is for ever. A stream
    /// that comes of it keeps it.
    ///
    /// # Errors
    /// Those of the system call; no time at all is none.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.records.socket.set_read_timeout(timeout)
    }

    /// The next event: which peers can be reached.
    ///
    /// # Errors
    /// As [`super::Channel::recv`].
    pub fn recv(&mut self) -> io::Result<Event> {
        match self.records.next()? {
            Record::Event(event) => Ok(event),
            _ => Err(nonsense("tapd speaks of a stream that nobody asked for")),
        }
    }

    /// Asks a peer for a stream and waits until a program there has taken it.
    ///
    /// # Errors
    /// [`StreamReset`] when there is none to be had, or as [`super::Channel::recv`].
    pub fn open(self, peer: NodeId) -> io::Result<Stream> {
        self.open_while(peer, |event| event.is_some())
    }

    /// As [`Self::open`], but asks `waits` whether to wait on: with each event that comes meanwhile,
    /// and with None when nothing came within [`Self::set_read_timeout`].
    ///
    /// # Errors
    /// As [`Self::open`]; `WouldBlock` when `waits` said no.
    pub fn open_while(
        self,
        peer: NodeId,
        waits: impl FnMut(Option<&Event>) -> bool,
    ) -> io::Result<Stream> {
        self.ask(Header { peer: peer.get(), ..Header::new(Kind::Connect) }, waits)
    }

    /// Waits for a peer to ask for a stream.
    ///
    /// # Errors
    /// As [`super::Channel::recv`].
    pub fn accept(self) -> io::Result<Stream> {
        self.ask(Header::new(Kind::Accept), |event| event.is_some())
    }

    fn ask(
        mut self,
        request: Header,
        mut waits: impl FnMut(Option<&Event>) -> bool,
    ) -> io::Result<Stream> {
        asked(send_record(&self.records.socket, request))?;
        loop {
            let record = match self.records.next() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits(None) => continue,
                record => record?,
            };
            match record {
                Record::Connected(peer) => {
                    let writer = StreamWriter::new(Arc::clone(&self.records.socket));
                    let reader = StreamReader {
                        records: self.records,
                        peer,
                        cut_off: false,
                        ended: false,
                        closed: false,
                    };
                    return Ok(Stream { reader, writer, peer });
                }
                Record::Reset(reset) => return Err(reset.into()),
                Record::Event(Event::Error(refusal)) => return Err(refusal.into()),
                Record::Event(event) if waits(Some(&event)) => {}
                Record::Event(_) => return Err(io::ErrorKind::WouldBlock.into()),
                _ => return Err(nonsense("bytes of a stream that is none yet")),
            }
        }
    }
}

impl AsFd for StreamChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.records.socket.as_fd()
    }
}

/// A stream between a program here and one at a peer, bytes both ways.
///
/// Each side ends by itself ([`Self::shutdown`]). Dropped before both sides have ended, the stream is
/// reset.
#[derive(Debug)]
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
    peer: NodeId,
}

impl Stream {
    /// Connects to the socket of a channel and asks a peer for a stream.
    ///
    /// # Errors
    /// As [`StreamChannel::connect`] and [`StreamChannel::open`].
    pub fn connect(path: &Path, peer: NodeId) -> io::Result<Self> {
        StreamChannel::connect(path)?.open(peer)
    }

    /// Connects to the socket of a channel and waits for a peer to ask for a stream.
    ///
    /// # Errors
    /// As [`StreamChannel::connect`] and [`StreamChannel::accept`].
    pub fn accept(path: &Path) -> io::Result<Self> {
        StreamChannel::connect(path)?.accept()
    }

    /// The node at the other end.
    #[must_use]
    pub const fn peer(&self) -> NodeId {
        self.peer
    }

    /// Whether calls come back with `WouldBlock` where they would have to wait. Then
    /// [`Write::flush`] has to be called until it succeeds after what was written last.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.reader.records.socket.set_nonblocking(nonblocking)
    }

    /// How long reads wait at most before they fail as `WouldBlock`; None is for ever.
    ///
    /// # Errors
    /// Those of the system call; no time at all is none.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.reader.records.socket.set_read_timeout(timeout)
    }

    /// See [`StreamWriter::wants_write`].
    #[must_use]
    pub const fn wants_write(&self) -> bool {
        self.writer.wants_write()
    }

    /// Ends this side; see [`StreamWriter::shutdown`].
    ///
    /// # Errors
    /// As [`StreamWriter::shutdown`].
    pub fn shutdown(&mut self) -> io::Result<()> {
        self.writer.shutdown()
    }

    /// Gives the stream up; see [`StreamWriter::reset`].
    ///
    /// # Errors
    /// As [`StreamWriter::reset`].
    pub fn reset(self, number: u32) -> io::Result<()> {
        self.writer.reset(number)
    }

    /// Waits until all that was written has arrived; see [`StreamReader::wait_closed`].
    ///
    /// # Errors
    /// As [`StreamReader::wait_closed`].
    pub fn wait_closed(&mut self) -> io::Result<()> {
        self.reader.wait_closed()
    }

    /// The two directions, for two threads.
    #[must_use]
    pub fn into_split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.reader.read(out)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }
}

/// The direction of a stream from the peer.
#[derive(Debug)]
pub struct StreamReader {
    records: Records,
    peer: NodeId,
    /// The peer could not be reached when tapd spoke of it last.
    cut_off: bool,
    /// The peer's end was read.
    ended: bool,
    /// All is over and has arrived.
    closed: bool,
}

impl StreamReader {
    /// Whether the peer could not be reached when tapd spoke of it last, as far as that was read:
    /// the stream waits until it can.
    #[must_use]
    pub const fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// Learns from an event that neither ends the stream nor belongs to it.
    fn note(&mut self, event: &Event) {
        match event {
            Event::PeerUp(peer, _) if *peer == self.peer => self.cut_off = false,
            Event::PeerDown(peer) if *peer == self.peer => self.cut_off = true,
            _ => {}
        }
    }

    /// When both sides have ended, waits until tapd says that all that was written has arrived at
    /// the peer's tapd.
    ///
    /// # Errors
    /// [`StreamReset`] when the stream ended otherwise, `UnexpectedEof` when tapd did without saying
    /// so: what became of the last bytes is not known.
    pub fn wait_closed(&mut self) -> io::Result<()> {
        loop {
            let read = self.read(&mut [0; 4096])?;
            if read > 0 {
                continue;
            }
            if self.closed {
                return Ok(());
            }
            return match self.records.next() {
                Err(error) => Err(error),
                Ok(Record::Event(Event::Closed(_))) => {
                    self.closed = true;
                    Ok(())
                }
                Ok(Record::Reset(reset)) => Err(reset.into()),
                Ok(Record::Event(Event::Error(refusal))) => Err(refusal.into()),
                Ok(Record::Event(event)) => {
                    self.note(&event);
                    continue;
                }
                Ok(_) => Err(nonsense("bytes behind the end of a stream")),
            };
        }
    }
}

impl Read for StreamReader {
    /// Reads bytes; 0 at the peer's end.
    ///
    /// # Errors
    /// [`StreamReset`], `UnexpectedEof` when tapd hung up, or as [`super::Channel::recv`].
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !out.is_empty() {
            if self.records.is_within_data() {
                return self.records.read_data(out);
            }
            match self.records.next()? {
                Record::Event(Event::Error(refusal)) => return Err(refusal.into()),
                Record::Data => {}
                Record::Event(event) => self.note(&event),
                Record::Fin => self.ended = true,
                Record::Reset(reset) => return Err(reset.into()),
                Record::Connected(_) | Record::Welcome(_) => {
                    return Err(nonsense("tapd speaks of another stream"));
                }
            }
        }
        Ok(0)
    }
}

impl AsFd for StreamReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.records.socket.as_fd()
    }
}

/// The direction of a stream to the peer.
#[derive(Debug)]
pub struct StreamWriter {
    socket: Arc<Socket>,
    /// What a record still lacks of which the socket took only the beginning.
    rest: Vec<u8>,
    /// Bytes of it that are sent.
    sent: usize,
    ended: bool,
}

impl StreamWriter {
    const fn new(socket: Arc<Socket>) -> Self {
        Self { socket, rest: Vec::new(), sent: 0, ended: false }
    }

    /// Ends this side: the peer's program reads to the end. It can still send.
    ///
    /// # Errors
    /// `BrokenPipe` when tapd hung up, `WouldBlock` when there is no room.
    pub fn shutdown(&mut self) -> io::Result<()> {
        if !self.ended {
            self.put(Header::new(Kind::Fin), &[])?;
            self.ended = true;
        }
        self.flush()
    }

    /// Gives the stream up, both ways; the peer's program gets `number`. What was written may not
    /// arrive.
    ///
    /// # Errors
    /// As [`Self::shutdown`]. The stream is reset all the same when all of it is dropped, without
    /// `number`.
    pub fn reset(mut self, number: u32) -> io::Result<()> {
        self.put(Header { number, ..Header::new(Kind::Reset) }, &[])?;
        self.flush()
    }

    /// Whether bytes wait for [`Write::flush`], that is for the descriptor to be writable.
    #[must_use]
    pub const fn wants_write(&self) -> bool {
        self.sent < self.rest.len()
    }

    /// Sends a record, and keeps what the socket does not take of it. Takes nothing while something
    /// is kept.
    fn put(&mut self, header: Header, payload: &[u8]) -> io::Result<()> {
        self.flush()?;
        let header = header.encode();
        let record = [IoSlice::new(&header), IoSlice::new(payload)];
        let sent =
            uninterrupted(|| self.socket.send_vectored_with_flags(&record, libc::MSG_NOSIGNAL))
                .map_err(send_failure)?;
        if sent < HEADER_LEN + payload.len() {
            (self.rest, self.sent) = ([&header[..], payload].concat(), sent);
            // A call that may wait does, a signal may have cut it short.
            return match self.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                done => done,
            };
        }
        Ok(())
    }
}

impl Write for StreamWriter {
    /// Takes bytes, at least one of them. Those that the socket has no room for are kept for
    /// [`Self::flush`].
    ///
    /// # Errors
    /// `WouldBlock` while there is no room, `BrokenPipe` when tapd hung up or this side has ended:
    /// in the first case reading says why.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.get(..MAX_WRITE_LEN).unwrap_or(bytes);
        if taken.is_empty() {
            return Ok(0);
        }
        // At most MAX_WRITE_LEN.
        self.put(Header { length: taken.len() as u32, ..Header::new(Kind::Data) }, taken)?;
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.rest.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.sent += uninterrupted(|| self.socket.send_with_flags(rest, libc::MSG_NOSIGNAL))
                .map_err(send_failure)?;
        }
        self.rest.clear();
        self.sent = 0;
        Ok(())
    }
}

impl AsFd for StreamWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends a record without payload, all of it.
fn send_record(socket: &Socket, header: Header) -> io::Result<()> {
    let header = header.encode();
    let mut sent = 0;
    while let Some(rest) = header.get(sent..).filter(|rest| !rest.is_empty()) {
        sent += uninterrupted(|| socket.send_with_flags(rest, libc::MSG_NOSIGNAL))?;
    }
    Ok(())
}
