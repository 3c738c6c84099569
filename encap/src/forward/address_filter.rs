//! Which underlay addresses a peer with a dynamic address may come from.
//!
//! A peer that may roam is known by its key, not by its address; the lists say where it may not
//! turn up all the same. IPv4-mapped IPv6 addresses count as IPv4 throughout.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses from one to another, both included, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

/// The text is no address, prefix or range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a range of addresses; write one like 10.0.0.1, 10.0.0.0/8 or 10.0.0.5-10.0.0.9, or with IPv6 addresses"
)]
pub struct InvalidRange;

impl AddressRange {
    /// The addresses from `first` to `last`; None when they are of two families or the wrong way
    /// round.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        let (first, last) = (first.to_canonical(), last.to_canonical());
        let fits = first.is_ipv4() == last.is_ipv4() && first <= last;
        fits.then_some(Self { first, last })
    }

    /// The addresses that share the first `len` bits of `address`; None when it has fewer.
    #[must_use]
    pub fn prefix(address: IpAddr, len: u8) -> Option<Self> {
        // Only a whole prefix of mapped addresses is one of IPv4.
        let (address, len) = match address {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && len >= 96 => {
                (address.to_canonical(), len - 96)
            }
            _ => (address, len),
        };
        match address {
            IpAddr::V4(v4) => {
                let host = u32::MAX.checked_shr(len.into()).unwrap_or(0);
                let (first, last) = (v4.to_bits() & !host, v4.to_bits() | host);
                (len <= 32).then_some(Self {
                    first: Ipv4Addr::from_bits(first).into(),
                    last: Ipv4Addr::from_bits(last).into(),
                })
            }
            IpAddr::V6(v6) => {
                let host = u128::MAX.checked_shr(len.into()).unwrap_or(0);
                let (first, last) = (v6.to_bits() & !host, v6.to_bits() | host);
                (len <= 128).then_some(Self {
                    first: Ipv6Addr::from_bits(first).into(),
                    last: Ipv6Addr::from_bits(last).into(),
                })
            }
        }
    }

    /// Whether the address is in it. An IPv6 range holds no IPv4-mapped address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        // All IPv4 addresses sort before all IPv6 ones, and both ends are of one family.
        let ip = ip.to_canonical();
        self.first <= ip && ip <= self.last
    }

    /// Length of the prefix that this is, if it is one.
    fn prefix_len(&self) -> Option<u32> {
        let (first, last, width) = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (first.to_bits().into(), last.to_bits().into(), 32)
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits(), last.to_bits(), 128),
            _ => return None,
        };
        let host: u128 = first ^ last;
        let whole = host & host.wrapping_add(1) == 0 && first & host == 0;
        whole.then_some(width - host.count_ones())
    }
}

impl FromStr for AddressRange {
    type Err = InvalidRange;

    /// `address`, `address/prefix length` (bits behind the prefix are ignored) or
    /// `address-address`.
    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| InvalidRange);
        if let Some((of, len)) = text.split_once('/') {
            let len = len.trim();
            // `parse` would take a sign.
            if !len.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(InvalidRange);
            }
            let len = len.parse().map_err(|_| InvalidRange)?;
            Self::prefix(address(of)?, len).ok_or(InvalidRange)
        } else if let Some((first, last)) = text.split_once('-') {
            Self::new(address(first)?, address(last)?).ok_or(InvalidRange)
        } else {
            let only = address(text)?;
            Self::new(only, only).ok_or(InvalidRange)
        }
    }
}

impl fmt::Display for AddressRange {
    /// The shortest text that is read back as the same range.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        match self.prefix_len() {
            Some(len) => write!(f, "{}/{len}", self.first),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// What is forbidden, and what alone is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressFilter {
    /// Never admitted, whatever `allow` says.
    pub deny: Vec<AddressRange>,
    /// Admitted, unless denied. Empty: all.
    pub allow: Vec<AddressRange>,
}

impl AddressFilter {
    /// Whether a peer may come from this address.
    #[must_use]
    pub fn admits(&self, ip: IpAddr) -> bool {
        let within = |ranges: &[AddressRange]| ranges.iter().any(|range| range.contains(ip));
        !within(&self.deny) && (self.allow.is_empty() || within(&self.allow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(texts: &[&str]) -> Vec<AddressRange> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_hold_their_edges_and_nothing_beyond() {
        for (range, inside, outside) in [
            ("10.0.0.1", vec!["10.0.0.1", "::ffff:10.0.0.1"], vec!["10.0.0.0", "10.0.0.2", "::1"]),
            (
                "10.0.0.0/8",
                vec!["10.0.0.0", "10.255.255.255"],
                vec!["9.255.255.255", "11.0.0.0", "::ffff:11.0.0.0"],
            ),
            ("10.0.0.5-10.0.0.9", vec!["10.0.0.5", "10.0.0.9"], vec!["10.0.0.4", "10.0.0.10"]),
            ("0.0.0.0/0", vec!["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], vec!["::", "::1"]),
            ("192.0.2.7/32", vec!["192.0.2.7"], vec!["192.0.2.6", "192.0.2.8"]),
            ("2001:db8::1", vec!["2001:db8::1"], vec!["2001:db8::", "2001:db8::2", "1.2.3.4"]),
            (
                "2001:db8::/32",
                vec!["2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"],
                vec!["2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"],
            ),
            ("fe80::5-fe80::9", vec!["fe80::5", "fe80::9"], vec!["fe80::4", "fe80::a"]),
            (
                "::/0",
                vec!["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
                vec!["0.0.0.0", "::ffff:10.0.0.1"],
            ),
            ("::ffff:10.0.0.0/104", vec!["10.9.9.9", "::ffff:10.9.9.9"], vec!["11.0.0.0"]),
            ("::ffff:10.0.0.1-::ffff:10.0.0.3", vec!["10.0.0.2"], vec!["10.0.0.4"]),
        ] {
            let range: AddressRange = range.parse().unwrap();
            for ip in inside {
                assert!(range.contains(ip.parse().unwrap()), "{range} {ip}");
            }
            for ip in outside {
                assert!(!range.contains(ip.parse().unwrap()), "{range} {ip}");
            }
        }
    }

    #[test]
    fn text_comes_back_in_its_shortest_form() {
        for (text, shortest) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.0.0.0-10.0.0.255", "10.0.0.0/24"),
            ("10.0.0.5 - 10.0.0.9", "10.0.0.5-10.0.0.9"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("2001:DB8::1/128", "2001:db8::1"),
            ("2001:db8::1-2001:db8::2", "2001:db8::1-2001:db8::2"),
        ] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), shortest);
        }
        for bad in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0.0/8/9",
            "::/129",
            "10.0.0.9-10.0.0.5",
            "10.0.0.1-::2",
            "::1-::ffff:10.0.0.1",
            "10.0.0.1-",
            "-",
            "fe80::1%eth0",
            "host",
        ] {
            assert_eq!(bad.parse::<AddressRange>(), Err(InvalidRange), "{bad}");
        }
    }

    #[test]
    fn deny_wins_and_an_empty_allow_list_admits_all() {
        let (net, host) = (["10.0.0.0/8", "fd00::/8"], ["10.0.0.1", "fd00::1"]);
        for (deny, allow, in_both, in_net, elsewhere) in [
            (&[][..], &[][..], true, true, true),
            (&[], &net[..], true, true, false),
            (&host[..], &[], false, true, true),
            (&host[..], &net[..], false, true, false),
            (&net[..], &host[..], false, false, false),
        ] {
            let filter = AddressFilter { deny: ranges(deny), allow: ranges(allow) };
            for (ips, expected) in [
                (["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"], in_both),
                (["10.0.0.2", "::ffff:10.255.255.255", "fdff::"], in_net),
                (["11.0.0.0", "::ffff:9.255.255.255", "fe00::"], elsewhere),
            ] {
                for ip in ips {
                    assert_eq!(filter.admits(ip.parse().unwrap()), expected, "{filter:?} {ip}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn ranges_round_trip_through_text(a in any::<IpAddr>(), b in any::<IpAddr>(), len in 0..=128_u8) {
            for range in [AddressRange::new(a, b), AddressRange::prefix(a, len)].into_iter().flatten() {
                prop_assert_eq!(range.to_string().parse(), Ok(range));
                prop_assert!(range.first <= range.last);
            }
            if let Some(prefix) = AddressRange::prefix(a, len) {
                // Mapped addresses are IPv4, whatever longer prefix they stand in.
                let is_cut = a != a.to_canonical() && len < 96;
                prop_assert_eq!(prefix.contains(a), !is_cut);
            }
        }

        #[test]
        fn any_text_is_a_range_or_an_error(text in "[0-9a-f:./ -]{0,40}") {
            if let Ok(range) = text.parse::<AddressRange>() {
                prop_assert!(range.first <= range.last);
            }
        }
    }
}
