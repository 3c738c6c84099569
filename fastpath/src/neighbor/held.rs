//! Datagrams that wait for their neighbour's MAC address.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// A datagram that cannot be sent yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Where it goes.
    pub remote: SocketAddr,
    /// Which of our UDP ports it comes from.
    pub source_port: u16,
    /// TOS byte or traffic class.
    pub mark: u8,
    /// UDP payload.
    pub payload: Vec<u8>,
}

/// Datagrams by next hop, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_hop: BTreeMap<IpAddr, VecDeque<(u64, Pending)>>,
    len: usize,
    /// Number of the next datagram: tells which is the oldest of all.
    next: u64,
}

impl Held {
    pub(super) fn has(&self, hop: IpAddr) -> bool {
        self.by_hop.contains_key(&hop)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes a datagram in; gives the one that has to give way: the oldest of those to the same
    /// neighbour when they are `per_hop`, or else the oldest of all when they are `all`.
    pub(super) fn push(
        &mut self,
        hop: IpAddr,
        pending: Pending,
        per_hop: usize,
        all: usize,
    ) -> Option<Pending> {
        if per_hop == 0 || all == 0 {
            return Some(pending);
        }
        let full = self.by_hop.get(&hop).is_some_and(|queue| queue.len() >= per_hop);
        let displaced = if full {
            self.pop(hop)
        } else if self.len >= all {
            self.oldest().and_then(|oldest| self.pop(oldest))
        } else {
            None
        };
        self.by_hop.entry(hop).or_default().push_back((self.next, pending));
        self.next += 1;
        self.len += 1;
        displaced
    }

    /// All that wait for `hop`, in their order.
    pub(super) fn take(&mut self, hop: IpAddr) -> impl ExactSizeIterator<Item = Pending> + use<> {
        let queue = self.by_hop.remove(&hop).unwrap_or_default();
        self.len -= queue.len();
        queue.into_iter().map(|(_, pending)| pending)
    }

    fn oldest(&self) -> Option<IpAddr> {
        let fronts = self.by_hop.iter().filter_map(|(hop, queue)| Some((queue.front()?.0, *hop)));
        fronts.min().map(|(_, hop)| hop)
    }

    fn pop(&mut self, hop: IpAddr) -> Option<Pending> {
        let queue = self.by_hop.get_mut(&hop)?;
        let (_, pending) = queue.pop_front()?;
        if queue.is_empty() {
            self.by_hop.remove(&hop);
        }
        self.len -= 1;
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(number: u8) -> Pending {
        let remote = SocketAddr::from(([192, 0, 2, 1], 4789));
        Pending { remote, source_port: 1, mark: 0, payload: vec![number] }
    }

    #[test]
    fn oldest_gives_way_within_a_neighbour_and_among_all() {
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut held = Held::default();
        let mut push = |hop, number| held.push(hop, pending(number), 2, 4).map(|p| p.payload[0]);
        assert_eq!([push(a, 1), push(b, 2), push(a, 3)], [None; 3]);
        assert_eq!(push(a, 4), Some(1));
        assert_eq!(push(b, 5), None);
        assert_eq!(push(c, 6), Some(2));
        assert_eq!(push(c, 7), Some(3));
        let mut numbers = |hop| held.take(hop).map(|p| p.payload[0]).collect::<Vec<_>>();
        assert_eq!([numbers(c), numbers(b), numbers(a)], [vec![6, 7], vec![5], vec![4]]);
        assert_eq!((held.len, held.has(a)), (0, false));
        assert_eq!(held.push(a, pending(8), 0, 4), Some(pending(8)));
    }
}
