//! Long messages in several records: cut for sending, put together again.

use super::framing::{Flags, Header, MAX_PIECE_LEN, PEER_ID_LEN};

/// Why records are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PieceFault {
    /// The length in the header is more than may be.
    #[error("a message of {0} bytes is longer than the channel allows")]
    TooLong(u32),
    /// A piece tells another length than the first one, more bytes came than that, fewer came and
    /// no piece is to follow, or a piece is empty that others are to follow.
    #[error("the pieces of a message do not add up to its length")]
    Length,
}

/// Puts the pieces of one message after the other together.
///
/// It holds no more than what came, and never more than the longest message.
#[derive(Debug)]
pub struct Joiner {
    max_len: u32,
    /// The header of the first piece, while there is one.
    first: Option<Header>,
    bytes: Vec<u8>,
}

impl Joiner {
    /// For messages of at most `max_len` bytes.
    #[must_use]
    pub const fn new(max_len: u32) -> Self {
        Self { max_len, first: None, bytes: Vec::new() }
    }

    /// Whether the next DATA record goes on with a message.
    #[must_use]
    pub const fn is_within(&self) -> bool {
        self.first.is_some()
    }

    /// Takes a DATA record: its header, and the payload without the ids of nodes. When the message
    /// is whole, gives the header of its first piece and all of its bytes.
    ///
    /// # Errors
    /// What came is no message. The pieces so far are forgotten.
    pub fn push(
        &mut self,
        header: Header,
        payload: &[u8],
    ) -> Result<Option<(Header, Vec<u8>)>, PieceFault> {
        let first = self.first.take().unwrap_or(header);
        let mut bytes = std::mem::take(&mut self.bytes);
        if first.length > self.max_len {
            return Err(PieceFault::TooLong(first.length));
        }
        let total = first.length as usize;
        let more = header.flags.contains(Flags::MORE);
        let len = bytes.len() + payload.len();
        let fits = if more { len < total && !payload.is_empty() } else { len == total };
        if header.length != first.length || !fits {
            return Err(PieceFault::Length);
        }
        bytes.extend_from_slice(payload);
        if more {
            (self.first, self.bytes) = (Some(first), bytes);
            return Ok(None);
        }
        Ok(Some((first, bytes)))
    }
}

/// Cuts a message into the payloads of records.
#[derive(Debug, Clone)]
pub struct Cutter<'a> {
    rest: &'a [u8],
    /// Bytes that the next piece has room for.
    room: usize,
    ended: bool,
}

impl<'a> Cutter<'a> {
    /// For `message`, whose first record carries the ids of `count` nodes too.
    #[must_use]
    pub const fn new(message: &'a [u8], count: u8) -> Self {
        let room = MAX_PIECE_LEN - count as usize * PEER_ID_LEN;
        Self { rest: message, room, ended: false }
    }
}

impl<'a> Iterator for Cutter<'a> {
    /// The payload, and whether more follow. A message without bytes is one empty piece.
    type Item = (&'a [u8], bool);

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let (piece, rest) = self.rest.split_at(self.room.min(self.rest.len()));
        (self.rest, self.room, self.ended) = (rest, MAX_PIECE_LEN, rest.is_empty());
        Some((piece, !self.ended))
    }
}

#[cfg(test)]
mod tests {
    use super::super::framing::Kind;
    use super::*;

    fn header(length: usize, more: bool) -> Header {
        let flags = if more { Flags::MORE } else { Flags::NONE };
        let length = u32::try_from(length).unwrap();
        Header { flags, length, peer: 3, ..Header::new(Kind::Data) }
    }

    #[test]
    fn any_length_survives() {
        let first = MAX_PIECE_LEN - 4;
        for (len, pieces) in [
            (0, 1),
            (1, 1),
            (first, 1),
            (first + 1, 2),
            (first + MAX_PIECE_LEN, 2),
            (first + MAX_PIECE_LEN + 1, 3),
            (1 << 20, 17),
        ] {
            let message = (0..len).map(|at| (at % 251) as u8).collect::<Vec<_>>();
            let mut joiner = Joiner::new(1 << 20);
            let mut count = 0;
            for (piece, more) in Cutter::new(&message, 2) {
                count += 1;
                let joined = joiner.push(header(len, more), piece).unwrap();
                assert_eq!(joined.is_none(), more);
                assert_eq!(joiner.is_within(), more);
                if let Some((first, bytes)) = joined {
                    assert_eq!((first.peer, bytes == message), (3, true), "{len}");
                }
            }
            assert_eq!(count, pieces, "{len}");
        }
    }

    #[test]
    fn the_first_piece_counts() {
        let mut joiner = Joiner::new(10);
        assert_eq!(joiner.push(header(4, true), b"ab"), Ok(None));
        let other = Header { peer: 9, ..header(4, false) };
        assert_eq!(joiner.push(other, b"cd"), Ok(Some((header(4, true), b"abcd".to_vec()))));
    }

    #[test]
    fn pieces_that_do_not_add_up_are_refused() {
        let cases: [&[(usize, bool, &[u8])]; 8] = [
            &[(3, false, b"ab")],
            &[(1, false, b"ab")],
            &[(2, true, b"ab")],
            &[(2, true, b"abc")],
            &[(2, true, b"")],
            &[(4, true, b"ab"), (5, false, b"cd")],
            &[(4, true, b"ab"), (4, false, b"c")],
            &[(4, true, b"ab"), (4, true, b"cd")],
        ];
        for case in cases {
            let mut joiner = Joiner::new(10);
            let mut last = Ok(None);
            for (len, more, payload) in case {
                last = joiner.push(header(*len, *more), payload);
            }
            assert_eq!(last, Err(PieceFault::Length), "{case:?}");
            assert_eq!(
                joiner.push(header(1, false), b"x"),
                Ok(Some((header(1, false), b"x".into())))
            );
        }
    }

    #[test]
    fn length_has_a_bound() {
        let mut joiner = Joiner::new(10);
        assert_eq!(joiner.push(header(11, true), b"ab"), Err(PieceFault::TooLong(11)));
        assert_eq!(joiner.push(header(10, true), b"ab"), Ok(None));
    }
}
