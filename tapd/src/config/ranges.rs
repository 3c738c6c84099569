//! Ranges of addresses, as `allow` and `deny` of a link have them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::links::Family;

/// A range that was found to be good, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddressRange {
    pub(super) text: String,
    pub(super) family: Family,
}

impl AddressRange {
    /// An address, a prefix, or two addresses with `-` between them.
    ///
    /// # Errors
    /// What is wrong, to be read behind the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let family = if let Some((first, last)) = text.split_once('-') {
            Self::ends(first, last)?
        } else if text.contains('/') {
            Self::prefix(text)?
        } else {
            Family::of(text.parse().map_err(|_| NO_RANGE)?)
        };
        Ok(Self { text: text.to_owned(), family })
    }

    fn ends(first: &str, last: &str) -> Result<Family, String> {
        let (Ok(first), Ok(last)) = (first.parse::<IpAddr>(), last.parse::<IpAddr>()) else {
            return Err(NO_RANGE.to_owned());
        };
        if first.is_ipv4() != last.is_ipv4() {
            return Err("begins in one address family and ends in the other".to_owned());
        }
        if first > last {
            return Err(format!("ends before it begins; write \"{last}-{first}\""));
        }
        Ok(Family::of(first))
    }

    fn prefix(text: &str) -> Result<Family, String> {
        let net: IpNet = text.parse().map_err(|_| NO_RANGE)?;
        if net.addr() != net.network() {
            return Err(format!("has bits behind its prefix; write \"{}\"", net.trunc()));
        }
        Ok(Family::of(net.addr()))
    }
}

const NO_RANGE: &str =
    "is no range of addresses such as \"192.0.2.7\", \"192.0.2.0/24\" or \"192.0.2.5-192.0.2.9\"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_of_two_families() {
        for (text, family) in [
            ("192.0.2.7", Family::Ipv4),
            ("0.0.0.0/0", Family::Ipv4),
            ("192.0.2.9-192.0.2.10", Family::Ipv4),
            ("192.0.2.9-192.0.2.9", Family::Ipv4),
            ("2001:db8::1", Family::Ipv6),
            ("2001:db8::/32", Family::Ipv6),
            ("2001:db8::1-2001:db8::ff", Family::Ipv6),
        ] {
            let range = AddressRange::parse(text).unwrap();
            assert_eq!((range.text.as_str(), range.family), (text, family));
            // What is good here is what the protocol reads.
            assert!(text.parse::<encap::forward::address_filter::AddressRange>().is_ok(), "{text}");
        }
    }

    #[test]
    fn faults_say_what_to_write() {
        for (text, advice) in [
            ("home", "is no range"),
            ("", "is no range"),
            ("192.0.2.1 - 192.0.2.2", "is no range"),
            ("192.0.2.0/33", "is no range"),
            ("192.0.2.1/24", "write \"192.0.2.0/24\""),
            ("192.0.2.10-192.0.2.9", "write \"192.0.2.9-192.0.2.10\""),
            ("192.0.2.1-2001:db8::1", "the other"),
        ] {
            let fault = AddressRange::parse(text).unwrap_err();
            assert!(fault.contains(advice), "{text}: {fault}");
        }
    }
}
