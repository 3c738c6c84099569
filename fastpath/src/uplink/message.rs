//! What one message to be sent consists of.

use std::net::SocketAddr;

use encap::wire::buf::Transmit;

/// Most datagrams that the kernel makes of one send: UDP_MAX_SEGMENTS before Linux 6.9.
pub(super) const MAX_RUN: usize = 64;

/// One message for the kernel: a datagram, or a run of datagrams that it cuts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// UDP payloads, one behind the other.
    pub(super) bytes: &'a [u8],
    /// Bytes of each but the last.
    size: usize,
    /// Where they go.
    pub(super) remote: SocketAddr,
    /// Their TOS or traffic class byte.
    pub(super) mark: u8,
}

impl<'a> Message<'a> {
    /// A datagram.
    pub(super) fn single(bytes: &'a [u8], remote: SocketAddr, mark: u8) -> Self {
        Self { bytes, size: bytes.len().max(1), remote, mark }
    }

    /// The messages that a transmit's `bytes` are sent in: of no more than `max_run` datagrams and
    /// `max_len` bytes each.
    pub(super) fn of_transmit(
        bytes: &'a [u8],
        transmit: &Transmit,
        max_run: usize,
        max_len: usize,
    ) -> impl Iterator<Item = Self> + Clone + use<'a> {
        let size = transmit.segment_size.max(1);
        // The kernel is told the size in 16 bits.
        let fitting = if size > usize::from(u16::MAX) { 1 } else { max_len / size };
        let step = fitting.min(max_run).max(1).saturating_mul(size);
        let (remote, mark) = (transmit.remote, transmit.mark);
        bytes.chunks(step).map(move |bytes| Self { bytes, size, remote, mark })
    }

    /// Number of datagrams; an empty one is one.
    pub(super) fn count(&self) -> usize {
        self.bytes.len().div_ceil(self.size).max(1)
    }

    /// The size that the kernel is to cut it by; None for a single datagram.
    pub(super) fn cut(&self) -> Option<u16> {
        let size = u16::try_from(self.size).ok()?;
        (self.bytes.len() > self.size).then_some(size)
    }

    /// Its datagrams.
    pub(super) fn singles(self) -> impl Iterator<Item = Self> + Clone + use<'a> {
        self.bytes.chunks(self.size).map(move |bytes| Self { bytes, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use encap::wire::buf::UplinkId;
    use proptest::prelude::*;

    fn transmit(segment_size: usize) -> Transmit {
        let remote = SocketAddr::from(([127, 0, 0, 1], 9));
        Transmit { range: 0..0, segment_size, uplink: UplinkId(0), remote, mark: 7 }
    }

    #[test]
    fn runs_are_cut_where_the_kernel_ends() {
        let lens = |len: usize, size: usize| -> Vec<_> {
            let bytes = vec![0; len];
            let messages = Message::of_transmit(&bytes, &transmit(size), MAX_RUN, 65_507);
            messages.map(|m| (m.bytes.len(), m.count(), m.cut().map_or(0, usize::from))).collect()
        };
        assert_eq!(lens(0, 100), []);
        assert_eq!(lens(100, 100), [(100, 1, 0)]);
        assert_eq!(lens(101, 100), [(101, 2, 100)]);
        assert_eq!(lens(6500, 100), [(6400, 64, 100), (100, 1, 0)]);
        assert_eq!(lens(65_507, 1500), [(64_500, 43, 1500), (1007, 1, 0)]);
        assert_eq!(lens(70_000, 65_535), [(65_535, 1, 0), (4465, 1, 0)]);
        assert_eq!(lens(70_000, 70_000), [(70_000, 1, 0)]);
        assert_eq!(lens(2, 0), [(2, 2, 1)]);
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_or_moved(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            size in 0_usize..300,
            max_run in 1_usize..70,
            max_len in 0_usize..1000,
        ) {
            let size_or_1 = size.max(1);
            let transmit = transmit(size);
            let messages: Vec<_> =
                Message::of_transmit(&bytes, &transmit, max_run, max_len).collect();
            for message in &messages {
                prop_assert!(message.count() <= max_run);
                prop_assert!(message.bytes.len() <= max_len.max(size_or_1));
                prop_assert_eq!(message.cut().is_some(), message.count() > 1);
                prop_assert_eq!(message.singles().count(), message.count());
            }
            let singles: Vec<_> = messages.iter().flat_map(|m| m.singles()).collect();
            prop_assert!(singles.iter().all(|single| single.cut().is_none()));
            let cut: Vec<_> = singles.iter().map(|single| single.bytes).collect();
            prop_assert_eq!(cut, bytes.chunks(size_or_1).collect::<Vec<_>>());
        }
    }
}
