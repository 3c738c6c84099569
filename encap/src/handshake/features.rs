//! What a node can take beyond what every node of version 1 can.
//!
//! Both sides name what they take, and use what both named: a node that knows a feature and one that
//! does not are on the same footing as before there was one. Rule G10 is in `docs/protocol.md`.

use crate::crypto::aead::Suite;

/// A set of features, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u32);

impl Features {
    /// None: what a node says that is older than the first of them.
    pub const NONE: Self = Self(0);
    /// Bundles of small frames (kind 3).
    pub const BUNDLES: Self = Self(1);
    /// Compressed payloads (kind 10).
    pub const COMPRESSION: Self = Self(2);
    /// Raw channels (kinds 4 and 8).
    pub const CHANNELS: Self = Self(4);
    /// All that this version has a name for.
    pub const ALL: Self = Self(Self::BUNDLES.0 | Self::COMPRESSION.0 | Self::CHANNELS.0);
    /// What a node of this version names: what its way in takes apart.
    pub const SUPPORTED: Self = Self::ALL;

    /// The set that was read; bits of later versions stay, and mean nothing here.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits, as they are written.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are in here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What two sides use in a session: what both named. In clear mode nothing is decompressed, for
    /// anybody can have written it.
    #[must_use]
    pub const fn agree(self, theirs: Self, suite: Suite) -> Self {
        let common = self.0 & theirs.0;
        match suite {
            Suite::Clear => Self(common & !Self::COMPRESSION.0),
            _ => Self(common),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_used_where_both_name_it() {
        let (none, all) = (Features::NONE, Features::ALL);
        let sealed = Suite::Aes256Gcm;
        assert_eq!(all.agree(all, sealed), all);
        assert_eq!(all.agree(none, sealed), none);
        assert_eq!(none.agree(all, sealed), none);
        assert_eq!(all.agree(Features::BUNDLES, sealed), Features::BUNDLES);
        let clear = all.agree(all, Suite::Clear);
        assert!(clear.contains(Features::BUNDLES) && !clear.contains(Features::COMPRESSION));
        // A later version's bits are no reason for anything.
        let later = Features::from_bits(0xffff_fffa);
        assert_eq!(all.agree(later, sealed), Features::COMPRESSION);
        assert_eq!(later.bits(), 0xffff_fffa);
        assert!(all.contains(Features::BUNDLES) && !Features::BUNDLES.contains(all));
        assert!(none.contains(none) && !none.contains(Features::COMPRESSION));
    }
}
