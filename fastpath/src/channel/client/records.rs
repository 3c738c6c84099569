//! Records that come on a socket of streams.

use std::io::{self, IoSliceMut, Read};
use std::sync::Arc;

use encap::id::NodeId;
use socket2::Socket;

use super::{
    Event, MAX_TEXT_LEN, StreamReset, Welcome, hung_up, nonsense, peer, read_event, read_welcome,
    uninterrupted,
};
use crate::channel::framing::{Code, HEADER_LEN, Header, Kind, MAX_STREAM_PAYLOAD};

/// Bytes that are read ahead: some small records at once, and more than the longest text.
const INBOX_LEN: usize = 16 << 10;
const _: () = assert!(HEADER_LEN + MAX_TEXT_LEN as usize <= INBOX_LEN);

/// What comes from tapd, record by record.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) socket: Arc<Socket>,
    inbox: Box<[u8]>,
    /// Where the bytes in the inbox that nobody took begin and end.
    start: usize,
    end: usize,
    /// Bytes of the DATA record that is being read which were not taken yet.
    left: usize,
}

/// A record that came.
#[derive(Debug)]
pub(super) enum Record {
    /// Bytes of the stream: [`Records::read_data`] gives them.
    Data,
    /// The peer's side of the stream is at its end.
    Fin,
    /// The stream was given up.
    Reset(StreamReset),
    /// There is a stream.
    Connected(NodeId),
    /// The answer to ATTACH.
    Welcome(Welcome),
    /// Something else.
    Event(Event),
}

impl Records {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        let inbox = vec![0; INBOX_LEN].into_boxed_slice();
        Self { socket, inbox, start: 0, end: 0, left: 0 }
    }

    /// Whether bytes of a DATA record are to be read before the next record.
    pub(super) const fn is_within_data(&self) -> bool {
        self.left > 0
    }

    /// The next record. Must not be called within a DATA record.
    pub(super) fn next(&mut self) -> io::Result<Record> {
        let header = self.peek(HEADER_LEN)?.first_chunk().map(|header| Header::decode(*header));
        let header = header.ok_or_else(hung_up)?;
        let header = header.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
        if header.kind == Kind::Data {
            if header.length as usize > MAX_STREAM_PAYLOAD {
                return Err(nonsense("a record of tapd that is too long"));
            }
            self.start += HEADER_LEN;
            self.left = header.length as usize;
            return Ok(Record::Data);
        }
        if header.length > MAX_TEXT_LEN {
            return Err(nonsense("a record of tapd that is too long"));
        }
        let len = HEADER_LEN + header.length as usize;
        let payload = self.peek(len)?.get(HEADER_LEN..len).unwrap_or_default();
        let record = read_other(&header, payload)?;
        self.start += len;
        Ok(record)
    }

    /// Reads bytes of the DATA record that [`Self::next`] found.
    pub(super) fn read_data(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = self.left.min(out.len());
        let out = out.get_mut(..wanted).unwrap_or_default();
        let ready = self.inbox.get(self.start..self.end).unwrap_or_default();
        if !ready.is_empty() || wanted == 0 {
            let count = ready.len().min(wanted);
            if let (Some(out), Some(ready)) = (out.get_mut(..count), ready.get(..count)) {
                out.copy_from_slice(ready);
            }
            self.start += count;
            self.left -= count;
            return Ok(count);
        }
        // Straight to where it goes; what is behind the record's end, the next header, is read with
        // the same call.
        (self.start, self.end) = (0, 0);
        let ahead = if wanted == self.left { INBOX_LEN } else { 0 };
        let ahead = self.inbox.get_mut(..ahead).unwrap_or_default();
        let mut buffers = [IoSliceMut::new(out), IoSliceMut::new(ahead)];
        let count = read(&self.socket, &mut buffers)?;
        let direct = count.min(wanted);
        self.left -= direct;
        self.end = count - direct;
        Ok(direct)
    }

    /// The next `count` bytes, at most [`INBOX_LEN`], without taking them.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.end - self.start < count {
            if self.start > 0 {
                self.inbox.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let room = self.inbox.get_mut(self.end..).unwrap_or_default();
            self.end += read(&self.socket, &mut [IoSliceMut::new(room)])?;
        }
        Ok(self.inbox.get(self.start..self.end).unwrap_or_default())
    }
}

/// Reads at least one byte.
fn read(socket: &Socket, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    match uninterrupted(|| (&mut &*socket).read_vectored(buffers)) {
        Ok(0) => Err(hung_up()),
        // The same, with something of ours unread; what tapd sent last was read before.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(hung_up()),
        done => done,
    }
}

fn read_other(header: &Header, payload: &[u8]) -> io::Result<Record> {
    Ok(match header.kind {
        Kind::Fin => Record::Fin,
        Kind::Reset => {
            let (code, number) = (Code::from_number(header.code), header.number);
            Record::Reset(StreamReset { code, number })
        }
        Kind::Connected => Record::Connected(peer(header)?),
        Kind::Welcome => Record::Welcome(read_welcome(header, payload)?),
        _ => Record::Event(read_event(header, payload)?),
    })
}
