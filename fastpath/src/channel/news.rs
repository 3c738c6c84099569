//! Events that a program is to be told of, put together while it does not read.

use std::collections::BTreeMap;

use encap::id::NodeId;

use super::framing::{Code, Header, Kind};

/// What there is to tell about one peer.
#[derive(Debug, Clone, Copy, Default)]
struct PeerNews {
    up: bool,
    down: bool,
    refused: bool,
    /// Messages given up at restarts, if there were any restarts.
    epoch: Option<u64>,
    expired: u64,
}

/// The events that wait for one program: at most one of a kind for each peer, so a program that
/// never reads them costs no more memory than the peers are many. Counts are added up, and whether a
/// peer can be reached is said as it is.
#[derive(Debug, Default)]
pub(super) struct News(BTreeMap<NodeId, PeerNews>);

impl News {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn up(&mut self, peer: NodeId) {
        let news = self.0.entry(peer).or_default();
        (news.up, news.down) = (true, false);
    }

    pub(super) fn down(&mut self, peer: NodeId) {
        let news = self.0.entry(peer).or_default();
        (news.up, news.down) = (false, true);
    }

    pub(super) fn epoch(&mut self, peer: NodeId, given_up: u64) {
        let news = self.0.entry(peer).or_default();
        news.epoch = Some(news.epoch.unwrap_or(0).saturating_add(given_up));
    }

    pub(super) fn expired(&mut self, peer: NodeId, count: u64) {
        let news = self.0.entry(peer).or_default();
        news.expired = news.expired.saturating_add(count);
    }

    pub(super) fn refused(&mut self, peer: NodeId) {
        self.0.entry(peer).or_default().refused = true;
    }

    /// What is to be told next; [`Self::told`] takes it away. The name of the peer is not yet in it.
    pub(super) fn next(&self) -> Option<Header> {
        let (peer, news) = self.0.first_key_value()?;
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let (kind, number) = match *news {
            PeerNews { down: true, .. } => (Kind::PeerDown, 0),
            PeerNews { epoch: Some(given_up), .. } => (Kind::Epoch, count(given_up)),
            PeerNews { expired: 1.., .. } => (Kind::Expired, count(news.expired)),
            PeerNews { up: true, .. } => (Kind::PeerUp, 0),
            // A program that waits for the peer to be up hears it after that.
            _ => (Kind::Refused, 0),
        };
        let mut header = Header::event(kind, *peer, number, 0);
        if kind == Kind::Refused {
            header.code = Code::NoChannel.number();
        }
        Some(header)
    }

    /// What [`Self::next`] gave was told.
    pub(super) fn told(&mut self) {
        let Some(kind) = self.next().map(|header| header.kind) else { return };
        let Some(mut entry) = self.0.first_entry() else { return };
        let news = entry.get_mut();
        match kind {
            Kind::PeerDown => news.down = false,
            Kind::Epoch => news.epoch = None,
            Kind::Expired => news.expired = 0,
            Kind::Refused => news.refused = false,
            _ => news.up = false,
        }
        if matches!(
            news,
            PeerNews { up: false, down: false, refused: false, epoch: None, expired: 0 }
        ) {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(news: &mut News) -> Vec<(u16, Kind, u32)> {
        std::iter::from_fn(|| {
            let header = news.next()?;
            news.told();
            Some((header.peer, header.kind, header.number))
        })
        .collect()
    }

    #[test]
    fn events_of_a_kind_are_one() {
        let (a, b) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut news = News::default();
        news.up(b);
        news.down(b);
        news.up(a);
        news.expired(a, 3);
        news.expired(a, 4);
        news.epoch(b, 0);
        news.epoch(b, 5);
        news.refused(b);
        let expected = [
            (1, Kind::Expired, 7),
            (1, Kind::PeerUp, 0),
            (2, Kind::PeerDown, 0),
            (2, Kind::Epoch, 5),
            (2, Kind::Refused, 0),
        ];
        assert_eq!(told(&mut news), expected);
        assert!(news.0.is_empty());
    }

    #[test]
    fn a_restart_without_messages_is_told() {
        let mut news = News::default();
        news.epoch(NodeId::new(9).unwrap(), 0);
        news.up(NodeId::new(9).unwrap());
        assert_eq!(told(&mut news), [(9, Kind::Epoch, 0), (9, Kind::PeerUp, 0)]);
    }

    #[test]
    fn counts_end_at_the_largest() {
        let mut news = News::default();
        news.expired(NodeId::new(9).unwrap(), u64::MAX);
        news.expired(NodeId::new(9).unwrap(), 1);
        assert_eq!(told(&mut news), [(9, Kind::Expired, u32::MAX)]);
    }
}
