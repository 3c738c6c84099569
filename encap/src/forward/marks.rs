//! The outer DSCP and ECN of a datagram (RFC 2474, RFC 6040 section 4).

use crate::wire::inner_ip::{InnerIp, encap_ecn};

/// The mark of heartbeats, control messages and handshakes: DSCP CS6, internetwork control
/// (RFC 4594), so that overload by frames does not delay them.
pub const CONTROL_MARK: u8 = 48 << 2;

/// Where the outer DSCP of a frame comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dscp {
    /// Always this one, 0 to 63.
    Fixed(u8),
    /// The inner packet's: says something of the tenants' traffic to whoever sees the underlay.
    Inherit,
    /// By the inner packet's.
    Map(Box<[u8; 64]>),
}

impl Default for Dscp {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

/// The mark of the datagram that carries a frame; `inner` is none for what is no IP packet.
#[must_use]
pub fn mark(dscp: &Dscp, ecn: bool, inner: Option<&InnerIp>) -> u8 {
    let inner_tos = inner.map_or(0, |ip| ip.tos);
    let dscp = match dscp {
        Dscp::Fixed(dscp) => *dscp,
        Dscp::Inherit => inner_tos >> 2,
        Dscp::Map(map) => map.get(usize::from(inner_tos >> 2)).copied().unwrap_or(0),
    };
    let ecn = if ecn { encap_ecn(inner_tos) } else { 0 };
    dscp << 2 | ecn & 3
}
