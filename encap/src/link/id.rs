//! Names of the links to one peer, and sets of them.

use std::fmt;

/// Most links between two nodes.
pub const MAX_LINKS: usize = 8;

/// A link to a peer: its position in the peer's list, 0 to 7. Both ends use the same position for
/// the same pair of addresses; it is never taken from a datagram's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkIndex(u8);

impl LinkIndex {
    /// The first link.
    pub const FIRST: Self = Self(0);

    /// A link index, unless it is above 7.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if (index as usize) < MAX_LINKS { Some(Self(index)) } else { None }
    }

    /// All indices of a peer with `count` links, in order.
    pub fn all(count: usize) -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..count.min(MAX_LINKS) as u8).map(Self)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The number, for indexing.
    #[must_use]
    pub const fn at(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of links: one bit for each index, the lowest for link 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LinkSet(pub u8);

impl LinkSet {
    /// No link.
    pub const EMPTY: Self = Self(0);

    /// One link.
    #[must_use]
    pub const fn only(link: LinkIndex) -> Self {
        Self(1 << link.0)
    }

    /// Whether the link is in it.
    #[must_use]
    pub const fn contains(self, link: LinkIndex) -> bool {
        self.0 & (1 << link.0) != 0
    }

    /// Puts the link in or takes it out.
    pub fn set(&mut self, link: LinkIndex, inside: bool) {
        if inside {
            self.0 |= 1 << link.0;
        } else {
            self.0 &= !(1 << link.0);
        }
    }

    /// Number of links in it.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The links of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The links that `other` does not have.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The links, lowest first.
    pub fn iter(self) -> impl Iterator<Item = LinkIndex> + Clone {
        LinkIndex::all(MAX_LINKS).filter(move |link| self.contains(*link))
    }
}

impl FromIterator<LinkIndex> for LinkSet {
    fn from_iter<T: IntoIterator<Item = LinkIndex>>(links: T) -> Self {
        links.into_iter().fold(Self::EMPTY, |set, link| set.union(Self::only(link)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_put_in() {
        let link = |index| LinkIndex::new(index).unwrap();
        let mut set: LinkSet = [link(0), link(7)].into_iter().collect();
        assert!(set.contains(link(7)) && !set.contains(link(3)));
        set.set(link(3), true);
        set.set(link(0), false);
        assert_eq!(set.iter().collect::<Vec<_>>(), [link(3), link(7)]);
        assert_eq!(set.minus(LinkSet::only(link(3))).len(), 1);
        assert!(LinkIndex::new(8).is_none());
    }
}
