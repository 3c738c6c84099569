//! Channels of messages.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use encap::id::NodeId;
use encap::wire::channel::{MAX_MESSAGE_LEN, Mode};
use socket2::{Socket, Type};

use super::{
    Event, SendOptions, Welcome, asked, connect, hung_up, nonsense, peer, read_event, read_welcome,
    send_failure, uninterrupted, without_welcome,
};
use crate::channel::framing::{
    Flags, Header, Kind, MAX_PEERS, MAX_RECORD_LEN, PEER_ID_LEN, VERSION,
};
use crate::channel::pieces::{Cutter, Joiner};

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub from: NodeId,
    /// 0 (first) to 7 (last).
    pub priority: u8,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Who a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To<'a> {
    /// All peers that can be reached when tapd takes it.
    All,
    /// This one.
    One(NodeId),
    /// These, at least 1 and at most 255.
    Each(&'a [NodeId]),
}

/// A program's end of a channel of messages.
#[derive(Debug)]
pub struct Channel {
    socket: Socket,
    welcome: Welcome,
    /// A record that came.
    record: Box<[u8]>,
    joiner: Joiner,
    /// The part of a message that the socket had no room for.
    rest: Option<Rest>,
}

/// What is left of a message whose first piece is sent.
#[derive(Debug)]
struct Rest {
    header: Header,
    bytes: Vec<u8>,
    sent: usize,
}

impl Channel {
    /// Connects to the socket of a channel. With `receive` this program gets the channel's
    /// messages, which one program at a time can.
    ///
    /// # Errors
    /// Nobody listens there (`NotFound`, `ConnectionRefused`), it may not be used
    /// (`PermissionDenied`), it is a channel of streams (`EPROTOTYPE`), tapd refuses
    /// ([`super::Refusal`]; `ResourceBusy` when another program receives), or tapd does not answer
    /// (`TimedOut`).
    pub fn connect(path: &Path, receive: bool) -> io::Result<Self> {
        let socket = connect(path, Type::SEQPACKET)?;
        let header = attach(receive, Flags::NONE, None);
        asked(uninterrupted(|| socket.send_with_flags(&header.encode(), libc::MSG_NOSIGNAL)))?;
        Self::welcomed(socket)
    }

    /// The rest of [`Self::connect`], when ATTACH is sent.
    pub(super) fn welcomed(socket: Socket) -> io::Result<Self> {
        let mut record = vec![0; MAX_RECORD_LEN].into_boxed_slice();
        let len = read_record(&socket, &mut record).map_err(without_welcome)?;
        let (header, payload) = read_header(&record, len)?;
        let welcome = read_welcome(&header, payload)?;
        if welcome.mode == Mode::Stream || welcome.max_len > MAX_MESSAGE_LEN {
            return Err(nonsense("tapd welcomes to another kind of channel"));
        }
        socket.set_read_timeout(None)?;
        let joiner = Joiner::new(welcome.max_len);
        Ok(Self { socket, welcome, record, joiner, rest: None })
    }

    /// What tapd says of the channel.
    #[must_use]
    pub const fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Whether calls come back with `WouldBlock` where they would have to wait.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    /// How long [`Self::recv`] waits at most before it fails as `WouldBlock`; None is for ever.
    ///
    /// # Errors
    /// Those of the system call; no time at all is none.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// How long [`Self::send`] and [`Self::flush`] wait at most for room, before each piece, until
    /// they fail as `WouldBlock`; None is for ever. As with [`Self::set_nonblocking`], a message may
    /// then be taken whose rest needs [`Self::flush`], until it succeeds or [`Self::wants_write`] is
    /// false.
    ///
    /// # Errors
    /// Those of the system call; no time at all is none.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(timeout)
    }

    /// Sends a message. While tapd has no room for it, the call waits, or fails as `WouldBlock` and
    /// has taken nothing.
    ///
    /// A long message may be begun and not find room for its end: then the call has taken it and
    /// keeps the rest, which goes out with the next call of this or of [`Self::flush`].
    ///
    /// # Errors
    /// `InvalidInput` for one that is longer than [`Welcome::max_len`], an empty set or a priority
    /// above 7. `BrokenPipe` when tapd has hung up: [`Self::recv`] gives what came before, and why.
    pub fn send(&mut self, to: To<'_>, options: SendOptions, message: &[u8]) -> io::Result<()> {
        self.flush()?;
        let (header, ids) = self.header(to, options, message.len())?;
        let mut sent = 0;
        for (piece, more) in Cutter::new(message, header.count) {
            let ids = if sent == 0 { ids.as_slice() } else { &[] };
            match send_piece(&self.socket, header, ids, piece, more) {
                Ok(()) => sent += piece.len(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && sent > 0 => {
                    let bytes = message.get(sent..).unwrap_or_default().to_vec();
                    self.rest = Some(Rest { header, bytes, sent: 0 });
                    return Ok(());
                }
                Err(error) => return Err(send_failure(error)),
            }
        }
        Ok(())
    }

    /// Sends the rest of a message that was begun.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let unsent = rest.bytes.get(rest.sent..).unwrap_or_default();
        // Only a first piece has ids.
        for (piece, more) in Cutter::new(unsent, 0) {
            send_piece(&self.socket, rest.header, &[], piece, more).map_err(send_failure)?;
            rest.sent += piece.len();
        }
        self.rest = None;
        Ok(())
    }

    /// Whether a message was begun whose rest waits for [`Self::flush`], that is for the descriptor
    /// to be writable.
    #[must_use]
    pub const fn wants_write(&self) -> bool {
        self.rest.is_some()
    }

    /// Bytes that wait for [`Self::flush`], at most [`Welcome::max_len`]. They get fewer with each
    /// piece that went, also when the call fails as `WouldBlock`.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.bytes.len().saturating_sub(rest.sent))
    }

    /// Says that nothing more will be sent. When the peers have everything, or it was given up,
    /// [`Self::recv`] gives [`Event::Closed`]. `UnexpectedEof` instead of that means that tapd was
    /// ended: what became of the messages is not known.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        match self.socket.shutdown(Shutdown::Write) {
            // tapd was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        }
    }

    /// The next message or event. The pieces of a long message are kept until it is whole.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, `UnexpectedEof` when tapd has hung up (after
    /// [`Event::Closed`] or [`Event::Error`], unless it was ended itself), `InvalidData` for what
    /// tapd must not send.
    pub fn recv(&mut self) -> io::Result<Event> {
        loop {
            let len = read_record(&self.socket, &mut self.record)?;
            let (header, payload) = read_header(&self.record, len)?;
            if header.kind != Kind::Data {
                return read_event(&header, payload);
            }
            let joined = self.joiner.push(header, payload).map_err(invalid)?;
            if let Some((first, bytes)) = joined {
                let (from, priority) = (peer(&first)?, first.priority);
                return Ok(Event::Message(Message { from, priority, bytes }));
            }
        }
    }

    /// The header of a message's pieces, and the ids in front of the first one.
    fn header(
        &self,
        to: To<'_>,
        options: SendOptions,
        len: usize,
    ) -> io::Result<(Header, Vec<u8>)> {
        let max_len = self.welcome.max_len;
        let length = u32::try_from(len).ok().filter(|len| *len <= max_len).ok_or_else(|| {
            let name = &self.welcome.name;
            unusable(format!("a message of {len} bytes; channel {name} takes {max_len} at most"))
        })?;
        let priority = options.priority;
        if priority > encap::wire::channel::MAX_PRIORITY {
            return Err(unusable(format!("priority {priority}; 0 to 7 are possible")));
        }
        let (peer, peers) = match to {
            To::All => (0, &[][..]),
            To::One(peer) => (peer.get(), &[][..]),
            To::Each(peers) if peers.is_empty() || peers.len() > MAX_PEERS => {
                return Err(unusable(format!("a message for {} nodes", peers.len())));
            }
            To::Each(peers) => (0, peers),
        };
        let mut ids = Vec::with_capacity(peers.len() * PEER_ID_LEN);
        peers.iter().for_each(|peer| ids.extend(peer.get().to_ne_bytes()));
        let number = options.ttl.map_or(0, milliseconds);
        // At most MAX_PEERS.
        let count = peers.len() as u8;
        Ok((Header { priority, count, peer, number, length, ..Header::new(Kind::Data) }, ids))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The first record of a program.
pub(super) const fn attach(receive: bool, flags: Flags, to: Option<NodeId>) -> Header {
    let flags = if receive { flags.with(Flags::RECEIVE) } else { flags };
    let peer = match to {
        Some(peer) => peer.get(),
        None => 0,
    };
    Header { flags, peer, number: VERSION, ..Header::new(Kind::Attach) }
}

/// A time to live in a record: at least 1, as 0 is none.
fn milliseconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX).max(1)
}

fn send_piece(
    socket: &Socket,
    header: Header,
    ids: &[u8],
    piece: &[u8],
    more: bool,
) -> io::Result<()> {
    let flags = if more { Flags::MORE } else { Flags::NONE };
    // Ids are counted where they are: in the first piece.
    let count = if ids.is_empty() { 0 } else { header.count };
    let header = Header { flags, count, ..header }.encode();
    let record = [IoSlice::new(&header), IoSlice::new(ids), IoSlice::new(piece)];
    // A packet goes as a whole or not at all.
    uninterrupted(|| socket.send_vectored_with_flags(&record, libc::MSG_NOSIGNAL)).map(drop)
}

/// Reads one packet; gives its length.
fn read_record(socket: &Socket, record: &mut [u8]) -> io::Result<usize> {
    let mut is_first = true;
    loop {
        match (&mut &*socket).read(record) {
            Ok(0) => return Err(hung_up()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // That tapd hung up with something of ours unread. The kernel says so once, and before
            // what tapd sent last.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && is_first => {
                is_first = false;
            }
            done => return done,
        }
    }
}

fn read_header(record: &[u8], len: usize) -> io::Result<(Header, &[u8])> {
    Header::read(record.get(..len).unwrap_or_default()).map_err(invalid)
}

fn invalid(fault: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

fn unusable(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
