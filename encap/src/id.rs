//! The names of things: nodes and virtual networks on the wire, peers and local ports inside the
//! node.

use std::fmt;

/// A node of the cluster, 1 to 65,535; the lower id's initiation wins a simultaneous open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u16);

impl NodeId {
    /// A node id, unless it is 0 (never a node).
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A virtual network identifier, 24 bits (RFC 7348 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier, 2^24 - 1.
    pub const MAX: u32 = 0x00ff_ffff;

    /// An identifier, unless it does not fit in 24 bits.
    #[must_use]
    pub const fn new(vni: u32) -> Option<Self> {
        if vni > Self::MAX { None } else { Some(Self(vni)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Three bytes, big-endian.
    #[must_use]
    pub const fn to_be_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// From three bytes, big-endian: always fits.
    #[must_use]
    pub const fn from_be_bytes([a, b, c]: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, a, b, c]))
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A peer's place in the tables; kept while it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerIndex(pub u32);

/// A port of a network on this node, 0 to 63: what frames come from and go to here. The tap is the
/// default.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalPort(u8);

impl LocalPort {
    /// The network's tap.
    pub const TAP: Self = Self(0);
    /// The largest number.
    pub const MAX: u8 = 63;

    /// The port of that number, unless it is larger than 63. Those above 0 are virtual machines'.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number > Self::MAX { None } else { Some(Self(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for LocalPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The ports that a network has on this node: a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPorts(u64);

impl LocalPorts {
    /// The tap alone.
    pub const TAP: Self = Self::from_bits(1);

    /// The ports whose bits are set; the tap's is the least significant one.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The ports as bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the network has this port.
    #[must_use]
    pub const fn contains(self, port: LocalPort) -> bool {
        self.0 & Self::bit(port) != 0
    }

    /// The port, if there is exactly one.
    #[must_use]
    pub const fn only(self) -> Option<LocalPort> {
        if self.0.is_power_of_two() { Some(LocalPort(self.0.trailing_zeros() as u8)) } else { None }
    }

    /// Whether there is any port besides this one.
    #[must_use]
    pub const fn has_others(self, port: LocalPort) -> bool {
        self.0 & !Self::bit(port) != 0
    }

    /// All of them, the tap first.
    pub fn iter(self) -> impl Iterator<Item = LocalPort> {
        (0..=LocalPort::MAX).map(LocalPort).filter(move |port| self.contains(*port))
    }

    const fn bit(port: LocalPort) -> u64 {
        1 << port.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_local_ports_know_one_from_several() {
        let last = LocalPort::new(63).unwrap();
        assert_eq!(LocalPort::new(64), None);
        assert_eq!(LocalPorts::TAP.only(), Some(LocalPort::TAP));
        assert_eq!(LocalPorts::from_bits(1 << 63).only(), Some(last));
        assert_eq!(LocalPorts::from_bits(0).only(), None);
        let both = LocalPorts::from_bits(1 << 63 | 1);
        assert_eq!(both.only(), None);
        assert_eq!(both.iter().collect::<Vec<_>>(), [LocalPort::TAP, last]);
        assert!(both.has_others(LocalPort::TAP) && both.has_others(last));
        assert!(!LocalPorts::TAP.has_others(LocalPort::TAP) && LocalPorts::TAP.has_others(last));
        assert!(both.contains(last) && !LocalPorts::TAP.contains(last));
    }
}
