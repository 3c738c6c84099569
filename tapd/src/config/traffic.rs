//! How frames use the links, and the marks that their datagrams bear.

use std::fmt;

pub(crate) use encap::compress::Level;
use encap::forward::policy::InvalidPolicy;
pub(crate) use encap::forward::policy::Policy;
pub(crate) use encap::forward::protect::Protect;

use super::MAX_LINKS;

/// Largest differentiated services code point (RFC 2474).
pub(super) const DSCP_MAX: u8 = 63;

/// A policy from the configuration's text.
///
/// # Errors
/// What is wrong, to be read behind the text.
pub(super) fn parse_policy(text: &str) -> Result<Policy, String> {
    match text.parse() {
        Ok(Policy::Active { copies: 1 }) => Err("sends one copy; that is \"passive\"".to_owned()),
        Ok(policy) => Ok(policy),
        Err(InvalidPolicy) if text.starts_with("active:") => {
            Err(format!("must have 2 to {MAX_LINKS} copies, or be \"active\" for all links"))
        }
        Err(InvalidPolicy) => Err("is no policy; there are \"passive\", \"active\", \
                                   \"active:2\", \"flow-hash\", \"round-robin\""
            .to_owned()),
    }
}

/// A protection from the configuration's text.
///
/// # Errors
/// What is wrong, to be read behind the text.
pub(super) fn parse_protect(text: &str) -> Result<Protect, String> {
    match text {
        "off" => Ok(Protect::Off),
        "control" => Ok(Protect::Control),
        "all" => Ok(Protect::All),
        _ => Err("is not one of \"off\", \"control\", \"all\"".to_owned()),
    }
}

/// Whether to compress, from the configuration's text.
///
/// # Errors
/// What is wrong, to be read behind the text.
pub(super) fn parse_compression(text: &str) -> Result<bool, String> {
    match text {
        "off" => Ok(false),
        "zstd" => Ok(true),
        _ => Err("is no compression; there are \"off\", \"zstd\"".to_owned()),
    }
}

/// The differentiated services code point of datagrams, 0 to [`DSCP_MAX`] (RFC 2474, RFC 2983).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dscp {
    /// Always this one.
    Fixed(u8),
    /// The frame's own.
    Inherit,
    /// By the frame's own: pairs of inner and outer one, by ascending inner one, and the outer one
    /// of everything else, also of frames that are not IP.
    Map(Vec<(u8, u8)>, u8),
}

impl Default for Dscp {
    fn default() -> Self {
        Self::Fixed(0)
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(outer) => outer.fmt(f),
            Self::Inherit => f.write_str("inherit"),
            Self::Map(pairs, default) => {
                f.write_str("{ ")?;
                for (inner, outer) in pairs {
                    write!(f, "{inner} = {outer}, ")?;
                }
                write!(f, "default = {default} }}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in ["passive", "active", "active:2", "active:8", "flow-hash", "round-robin"] {
            assert_eq!(parse_policy(text).unwrap().to_string(), text);
        }
        for text in ["off", "control", "all"] {
            assert_eq!(parse_protect(text).unwrap().to_string(), text);
        }
        assert_eq!(Policy::default(), Policy::Passive);
        assert_eq!(Protect::default(), Protect::Control);
        assert_eq!(
            Dscp::Map(vec![(8, 0), (46, 40)], 1).to_string(),
            "{ 8 = 0, 46 = 40, default = 1 }"
        );
    }

    #[test]
    fn faults_say_what_to_write() {
        for (text, advice) in [
            ("active:1", "\"passive\""),
            ("active:0", "2 to 8"),
            ("active:9", "2 to 8"),
            ("active:", "2 to 8"),
            ("active:+2", "2 to 8"),
            ("aktive", "\"flow-hash\""),
        ] {
            let fault = parse_policy(text).unwrap_err();
            assert!(fault.contains(advice), "{text}: {fault}");
        }
        assert!(parse_protect("none").unwrap_err().contains("\"control\""));
    }
}
