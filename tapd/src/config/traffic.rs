//! How frames use the links, and the marks that their datagrams bear.

use std::fmt;

use super::MAX_LINKS;

/// Largest differentiated services code point (RFC 2474).
pub(super) const DSCP_MAX: u8 = 63;

/// Which links carry a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Policy {
    /// The best one.
    #[default]
    Passive,
    /// Several at once, each with a copy.
    Active {
        /// How many, 2 to [`MAX_LINKS`]; 0 is all.
        copies: u8,
    },
    /// One of them for each flow, by weight.
    FlowHash,
    /// One after the other, by weight.
    RoundRobin,
}

impl Policy {
    /// From the configuration's text.
    ///
    /// # Errors
    /// What is wrong, to be read behind the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let copies = match text {
            "passive" => return Ok(Self::Passive),
            "active" => return Ok(Self::Active { copies: 0 }),
            "flow-hash" => return Ok(Self::FlowHash),
            "round-robin" => return Ok(Self::RoundRobin),
            _ => text.strip_prefix("active:"),
        };
        let Some(copies) = copies else {
            return Err("is no policy; there are \"passive\", \"active\", \"active:2\", \
                        \"flow-hash\", \"round-robin\""
                .to_owned());
        };
        match copies.parse::<u8>() {
            Ok(1) => Err("sends one copy; that is \"passive\"".to_owned()),
            Ok(copies) if (2..=MAX_LINKS).contains(&copies.into()) => Ok(Self::Active { copies }),
            _ => Err(format!("must have 2 to {MAX_LINKS} copies, or be \"active\" for all links")),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passive => f.write_str("passive"),
            Self::Active { copies: 0 } => f.write_str("active"),
            Self::Active { copies } => write!(f, "active:{copies}"),
            Self::FlowHash => f.write_str("flow-hash"),
            Self::RoundRobin => f.write_str("round-robin"),
        }
    }
}

/// What is kept for a short time, to be sent again on another link when one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Protect {
    /// Nothing.
    Off,
    /// What the node itself says to its peers.
    #[default]
    Control,
    /// Frames too.
    All,
}

impl Protect {
    /// From the configuration's text.
    ///
    /// # Errors
    /// What is wrong, to be read behind the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "control" => Ok(Self::Control),
            "all" => Ok(Self::All),
            _ => Err("is not one of \"off\", \"control\", \"all\"".to_owned()),
        }
    }
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
            assert_eq!(Policy::parse(text).unwrap().to_string(), text);
        }
        for text in ["off", "control", "all"] {
            assert_eq!(Protect::parse(text).unwrap().to_string(), text);
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
            ("aktive", "\"flow-hash\""),
        ] {
            let fault = Policy::parse(text).unwrap_err();
            assert!(fault.contains(advice), "{text}: {fault}");
        }
        assert!(Protect::parse("none").unwrap_err().contains("\"control\""));
    }
}
