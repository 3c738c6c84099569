//! Which frames are kept for the moment after a link fails.

use std::fmt;

use crate::wire::ethernet::EthernetView;
use crate::wire::inner_ip::InnerIp;

/// Frames up to this many bytes count as small: acknowledgements, name lookups, voice.
const SMALL_LEN: usize = 128;
const ARP: u16 = 0x0806;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
/// FIN, SYN and RST (RFC 9293 section 3.1).
const TCP_CONTROL_FLAGS: u8 = 0x07;
const TCP_FLAGS_OFFSET: usize = 13;
/// Router solicitation to redirect (RFC 4861 section 4).
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Which sealed datagrams are sent again when the link that they left by fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protect {
    /// None.
    Off,
    /// Those whose loss hurts most and that cost least: see [`is_control`].
    #[default]
    Control,
    /// All: a failed link loses nothing.
    All,
}

impl fmt::Display for Protect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Control => "control",
            Self::All => "all",
        })
    }
}

/// Whether a frame is small or controls something: ARP, neighbour discovery, spanning tree, and
/// the beginning and end of TCP connections.
#[must_use]
pub fn is_control(frame: &[u8], inner: Option<&InnerIp>) -> bool {
    if frame.len() <= SMALL_LEN {
        return true;
    }
    let Some(ip) = inner else {
        let view = EthernetView::new(frame);
        return view.is_ok_and(|v| v.ether_type().0 == ARP || v.destination().is_link_local());
    };
    let Some(l4) = ip.l4_offset else { return false };
    match ip.proto {
        TCP => frame.get(l4 + TCP_FLAGS_OFFSET).is_some_and(|flags| flags & TCP_CONTROL_FLAGS != 0),
        ICMPV6 => frame.get(l4).is_some_and(|kind| NEIGHBOUR_DISCOVERY.contains(kind)),
        _ => false,
    }
}
