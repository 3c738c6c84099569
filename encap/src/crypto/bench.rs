//! A load for measuring a suite as the packet path uses it. It has no clock: who asks measures.

use super::aead::{Suite, TAG_LEN};
use super::key::{EpochSecret, Iv, nonce};
use crate::wire::header::{CLEAR_HEADER_LEN, INNER_HEADER_LEN, Lane};

/// Datagrams of one size side by side, all sealed or all readable, under one lane key.
#[derive(Debug)]
pub struct Load {
    key: super::aead::Key,
    iv: Iv,
    arena: Vec<u8>,
    datagram_len: usize,
    sequence: u32,
}

impl Load {
    /// As many datagrams with frames of `frame_len` bytes as fit `arena_len` bytes, at least one,
    /// readable at first. None for a suite that seals nothing.
    #[must_use]
    pub fn new(suite: Suite, frame_len: usize, arena_len: usize) -> Option<Self> {
        let lane = EpochSecret::first(&[1; 32], &[2; 32], suite).lane(Lane(0));
        let key = lane.aead()?;
        let datagram_len = CLEAR_HEADER_LEN + INNER_HEADER_LEN + frame_len + TAG_LEN;
        let count = (arena_len / datagram_len).max(1);
        let arena = vec![0x5a; count * datagram_len];
        Some(Self { key, iv: lane.iv(), arena, datagram_len, sequence: 0 })
    }

    /// How many datagrams there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.arena.len() / self.datagram_len
    }

    /// Seals each once, under the numbers that follow the last ones. Says whether it could.
    pub fn seal(&mut self) -> bool {
        let first = self.sequence;
        let mut good = true;
        for (number, datagram) in (first..).zip(self.arena.chunks_exact_mut(self.datagram_len)) {
            let (clear, rest) = datagram.split_at_mut(CLEAR_HEADER_LEN);
            let (text, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
            match self.key.seal(&nonce(&self.iv, number), clear, text) {
                Ok(made) => tag.copy_from_slice(&made),
                Err(_) => good = false,
            }
        }
        good
    }

    /// Opens each once; to be called after each [`Self::seal`]. Says whether all were authentic.
    pub fn open(&mut self) -> bool {
        let first = self.sequence;
        let mut good = true;
        for (number, datagram) in (first..).zip(self.arena.chunks_exact_mut(self.datagram_len)) {
            let (clear, rest) = datagram.split_at_mut(CLEAR_HEADER_LEN);
            good &= self.key.open(&nonce(&self.iv, number), clear, rest).is_ok();
            self.sequence = number.wrapping_add(1);
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_seals_and_opens_its_load_again_and_again() {
        for suite in [Suite::Aes256Gcm, Suite::Aegis256, Suite::Aegis128L] {
            for (frame_len, count) in [(0, 157), (64, 45), (9_000, 1)] {
                let mut load = Load::new(suite, frame_len, 4_096).unwrap();
                assert_eq!(load.count(), count);
                let readable = load.arena.clone();
                for round in 1..4 {
                    assert!(load.seal());
                    assert_ne!(load.arena, readable);
                    assert!(load.open());
                    assert_eq!(load.sequence, round * count as u32);
                }
                assert!(!load.open(), "{suite:?}: what is readable is not authentic");
            }
        }
        assert!(Load::new(Suite::Clear, 64, 4_096).is_none());
    }
}
