//! Ethernet frames as they come from a tap: a checked view, never a copy.
//!
//! IEEE 802.3 and 802.1Q. There is no FCS, and frames may be shorter than 60 bytes (a tap does
//! not pad). At most two tags are looked through; what lies deeper is opaque payload.
//!
//! Next: [`crate::forward::fdb`].

use std::fmt;
use std::str::FromStr;

/// Destination, source and EtherType: the least a frame has, in bytes.
pub const ETHERNET_HEADER_LEN: usize = 14;
/// One 802.1Q or 802.1ad tag, in bytes.
pub const VLAN_TAG_LEN: usize = 4;
/// Most tags that are looked through.
pub const MAX_VLAN_TAGS: usize = 2;

/// A 48-bit IEEE 802 address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Group bit: multicast or broadcast.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// All bytes zero: never a valid station.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a | b | c | d | e | f == 0
    }

    /// A link-constrained group address, 01-80-C2-00-00-00 to -0F (IEEE 802.1Q table 8-1).
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last & 0xf0 == 0)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six hexadecimal bytes separated by `:` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address; write six hexadecimal bytes like 02:00:00:00:00:01")]
pub struct InvalidMac;

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or(InvalidMac)?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(InvalidMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() { Err(InvalidMac) } else { Ok(Self(bytes)) }
    }
}

/// The 16-bit type field; values below 1536 are an 802.3 length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// Address resolution for IPv4.
    pub const ARP: Self = Self(0x0806);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);
    /// 802.1Q customer tag.
    pub const C_TAG: Self = Self(0x8100);
    /// 802.1ad service tag.
    pub const S_TAG: Self = Self(0x88a8);
    /// The service tag that predates 802.1ad.
    pub const OLD_S_TAG: Self = Self(0x9100);
    /// 802.3x pause and other MAC control.
    pub const MAC_CONTROL: Self = Self(0x8808);

    const fn is_tag(self) -> bool {
        matches!(self, Self::C_TAG | Self::S_TAG | Self::OLD_S_TAG)
    }
}

/// The bytes are fewer than an Ethernet header, or end inside a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame ends inside its Ethernet header")]
pub struct Truncated;

/// A frame whose addresses, tags and type are known to be there.
#[derive(Debug, Clone, Copy)]
pub struct EthernetView<'a> {
    bytes: &'a [u8],
    destination: MacAddr,
    source: MacAddr,
    ether_type: EtherType,
    payload_offset: usize,
}

impl<'a> EthernetView<'a> {
    /// Checks the header and up to [`MAX_VLAN_TAGS`] tags.
    ///
    /// # Errors
    /// [`Truncated`] when the frame ends before its EtherType.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Truncated> {
        let (header, _) = bytes.split_first_chunk::<ETHERNET_HEADER_LEN>().ok_or(Truncated)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        let mut ether_type = EtherType(u16::from_be_bytes([t0, t1]));
        let mut payload_offset = ETHERNET_HEADER_LEN;
        for _ in 0..MAX_VLAN_TAGS {
            if !ether_type.is_tag() {
                break;
            }
            let tag = bytes.get(payload_offset..payload_offset + VLAN_TAG_LEN).ok_or(Truncated)?;
            let &[_, _, t0, t1] = tag else { return Err(Truncated) };
            ether_type = EtherType(u16::from_be_bytes([t0, t1]));
            payload_offset += VLAN_TAG_LEN;
        }
        Ok(Self {
            bytes,
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ether_type,
            payload_offset,
        })
    }

    /// Destination address.
    #[must_use]
    pub fn destination(&self) -> MacAddr {
        self.destination
    }

    /// Source address.
    #[must_use]
    pub fn source(&self) -> MacAddr {
        self.source
    }

    /// The type behind the tags.
    #[must_use]
    pub fn ether_type(&self) -> EtherType {
        self.ether_type
    }

    /// Number of tags in front of the type, 0 to [`MAX_VLAN_TAGS`].
    #[must_use]
    pub fn vlan_tags(&self) -> usize {
        (self.payload_offset - ETHERNET_HEADER_LEN) / VLAN_TAG_LEN
    }

    /// Offset of the first byte behind the type.
    #[must_use]
    pub fn payload_offset(&self) -> usize {
        self.payload_offset
    }

    /// What follows the type; padding, if the sender padded, is part of it.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.payload_offset..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(tags: &[u16], ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, 1]);
        for tag in tags {
            bytes.extend(tag.to_be_bytes());
            bytes.extend([0x20, 7]);
        }
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn looks_through_customer_and_service_tags() {
        for (tags, count) in [(vec![], 0), (vec![0x8100], 1), (vec![0x88a8, 0x8100], 2)] {
            let bytes = frame(&tags, 0x0800, b"ip");
            let view = EthernetView::new(&bytes).unwrap();
            assert_eq!(view.vlan_tags(), count);
            assert_eq!(view.ether_type(), EtherType::IPV4);
            assert_eq!(view.payload(), b"ip");
            assert_eq!(view.source(), MacAddr([2, 0, 0, 0, 0, 1]));
            assert!(view.destination().is_multicast());
        }
    }

    #[test]
    fn third_tag_is_payload() {
        let bytes = frame(&[0x88a8, 0x8100, 0x8100], 0x0800, b"");
        assert_eq!(EthernetView::new(&bytes).unwrap().ether_type(), EtherType::C_TAG);
    }

    #[test]
    fn non_ip_length_field_and_shortest_frames_are_fine() {
        let llc = frame(&[], 3, &[0x42, 0x42, 3]);
        assert_eq!(EthernetView::new(&llc).unwrap().ether_type(), EtherType(3));
        let shortest = frame(&[], 0x88b5, b"");
        assert_eq!(shortest.len(), ETHERNET_HEADER_LEN);
        assert!(EthernetView::new(&shortest).unwrap().payload().is_empty());
    }

    #[test]
    fn ends_inside_header_or_tag() {
        assert_eq!(EthernetView::new(&[0; 13]).unwrap_err(), Truncated);
        let bytes = frame(&[0x8100], 0x0800, b"");
        assert_eq!(EthernetView::new(&bytes[..bytes.len() - 1]).unwrap_err(), Truncated);
    }

    #[test]
    fn mac_text_round_trips_and_faults_are_refused() {
        let mac: MacAddr = "02:00:5E:10-fe-01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:fe:01");
        for bad in
            ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:00:00:00:00:0g", "+2:0:0:0:0:0"]
        {
            assert_eq!(bad.parse::<MacAddr>(), Err(InvalidMac), "{bad}");
        }
        assert!(MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]).is_link_local());
        assert!(!MacAddr([1, 0x80, 0xc2, 0, 0, 0x10]).is_link_local());
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_view_inside_them_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(view) = EthernetView::new(&bytes) {
                prop_assert!(view.payload_offset() <= bytes.len());
                prop_assert_eq!(view.payload_offset() + view.payload().len(), bytes.len());
            } else {
                prop_assert!(bytes.len() < ETHERNET_HEADER_LEN + MAX_VLAN_TAGS * VLAN_TAG_LEN);
            }
        }
    }
}
