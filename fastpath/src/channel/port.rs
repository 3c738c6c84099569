//! One descriptor of a program, and what is waited for at it.

use std::io;
use std::os::fd::AsFd;

use socket2::Socket;

use super::system::Epoll;

/// A connection; its place may be taken by another one with a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnectionId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Reads in a row that give nothing although the set tells of something, after which nothing more is
/// to come: of a socket of datagrams whose reading side was shut down it tells again and again.
const MAX_EMPTY_READS: u8 = 16;

/// What a descriptor is for: told by the epoll set as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// New connections for the channel with this key.
    Listener(u32),
    /// Records of a connection.
    Control(ConnectionId),
    /// Packets of a connection, without headers.
    Raw(ConnectionId),
    /// The time after which connections are accepted again.
    Timer,
}

/// Generations are counted modulo this: they stand in 30 bits of a token.
pub(super) const GENERATIONS: u32 = 1 << 30;

impl Token {
    pub(super) fn to_number(self) -> u64 {
        let pack = |kind: u64, id: ConnectionId| {
            kind << 62 | u64::from(id.generation % GENERATIONS) << 32 | u64::from(id.index)
        };
        match self {
            Self::Listener(key) => key.into(),
            Self::Control(id) => pack(1, id),
            Self::Raw(id) => pack(2, id),
            Self::Timer => 3 << 62,
        }
    }

    pub(super) fn from_number(number: u64) -> Self {
        let index = number as u32;
        let id = ConnectionId { index, generation: (number >> 32) as u32 % GENERATIONS };
        match number >> 62 {
            0 => Self::Listener(index),
            1 => Self::Control(id),
            2 => Self::Raw(id),
            _ => Self::Timer,
        }
    }
}

/// A connected socket in the epoll set.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) socket: Socket,
    token: Token,
    /// What it is registered for; None while it is not.
    registered: Option<u32>,
    /// The other end is closed: nothing can be written any more.
    pub(super) hung_up: bool,
    /// All was read that will ever come.
    pub(super) read_closed: bool,
    /// It took no more of what is to be written.
    pub(super) stalled: bool,
    /// Reads in a row that gave nothing.
    empty_reads: u8,
}

impl Port {
    pub(super) fn new(socket: Socket, token: Token) -> Self {
        let (registered, hung_up, read_closed, stalled) = (None, false, false, false);
        let empty_reads = 0;
        Self { socket, token, registered, hung_up, read_closed, stalled, empty_reads }
    }

    /// Whether something can be written now, as far as is known.
    pub(super) fn is_open_for_output(&self) -> bool {
        !self.hung_up && !self.stalled
    }

    /// Nothing can be written any more.
    pub(super) fn hang_up(&mut self) {
        (self.hung_up, self.stalled) = (true, false);
    }

    /// It was read, and gave something or nothing.
    pub(super) fn note_read(&mut self, something: bool) {
        self.empty_reads = if something { 0 } else { self.empty_reads.saturating_add(1) };
        self.read_closed |= self.empty_reads >= MAX_EMPTY_READS;
    }

    /// Waits for what is needed: to be read if `reading`, and to be written to if it is stalled. Of
    /// one whose other end is closed the set would tell again and again, so it is taken out when it
    /// need not be read.
    pub(super) fn watch(&mut self, epoll: &Epoll, reading: bool) -> io::Result<()> {
        let reading = if reading && !self.read_closed { libc::EPOLLIN as u32 } else { 0 };
        let writing = if self.stalled { libc::EPOLLOUT as u32 } else { 0 };
        let events = reading | writing;
        let wanted = (events != 0 || !self.hung_up).then_some(events);
        let number = self.token.to_number();
        match (self.registered, wanted) {
            (None, Some(events)) => epoll.add(self.socket.as_fd(), number, events)?,
            (Some(old), Some(events)) if old != events => {
                epoll.modify(self.socket.as_fd(), number, events)?;
            }
            (Some(_), None) => epoll.delete(self.socket.as_fd())?,
            _ => {}
        }
        self.registered = wanted;
        Ok(())
    }

    /// Takes it out of the set: a descriptor that the program has too stays in it else.
    pub(super) fn unwatch(&mut self, epoll: &Epoll) {
        if self.registered.take().is_some() {
            // It is in the set, so this works; if not, its token is of no connection any more.
            let _ = epoll.delete(self.socket.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_numbers_both_ways() {
        for index in [0, 7, u32::MAX] {
            let id = ConnectionId { index, generation: GENERATIONS - 1 };
            let tokens = [Token::Listener(index), Token::Control(id), Token::Raw(id), Token::Timer];
            for token in tokens {
                assert_eq!(Token::from_number(token.to_number()), token);
            }
        }
    }
}
