//! How fast a link's failure is found: a profile, and what `[detector]` changes of it.

use std::fmt;
use std::time::Duration;

use encap::link::profile;

use super::checks::or;
use super::fault::{At, Collector};
use super::fields::Field;
use super::reader::RawDetector;

/// Default limit of heartbeats per node and second.
pub(crate) const DEFAULT_HEARTBEATS_PER_S: u32 = 5_000;

/// A set of intervals and thresholds that fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Profile {
    /// Failover within milliseconds, for data centres and LANs.
    #[default]
    Fast,
    /// A tenth of the heartbeats, for slower machines.
    Normal,
    /// For links over the Internet.
    Wan,
    /// As patient as kronosnet with its defaults.
    KnetLike,
}

impl Profile {
    /// Every profile.
    pub(crate) const ALL: [Self; 4] = [Self::Fast, Self::Normal, Self::Wan, Self::KnetLike];

    /// The name in the configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Normal => "normal",
            Self::Wan => "wan",
            Self::KnetLike => "knet-like",
        }
    }

    /// From the configuration's text.
    ///
    /// # Errors
    /// What is wrong, to be read behind the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|profile| profile.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(|profile| format!("\"{}\"", profile.name())).join(", ");
            format!("is no profile; there are {known}")
        })
    }

    /// Its intervals and thresholds.
    pub(crate) const fn values(self) -> profile::Profile {
        match self {
            Self::Fast => profile::FAST,
            Self::Normal => profile::NORMAL,
            Self::Wan => profile::WAN,
            Self::KnetLike => profile::KNET_LIKE,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `profile` and `[detector]`: what is absent is the profile's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetectorConfig {
    /// Where everything absent comes from.
    pub(crate) profile: Profile,
    /// Between the rounds for a peer with traffic in the last second.
    pub(crate) fast: Option<Duration>,
    /// The same, for traffic in the last minute.
    pub(crate) normal: Option<Duration>,
    /// The same, without traffic.
    pub(crate) idle: Option<Duration>,
    /// The same, for a peer with one link only.
    pub(crate) sole: Option<Duration>,
    /// Fewest rounds that a link is behind another before it is suspect.
    pub(crate) min_missed: Option<u8>,
    /// The same on a link that loses much.
    pub(crate) max_missed: Option<u8>,
    /// Shortest wait after the missed rounds.
    pub(crate) min_grace: Option<Duration>,
    /// From suspect to down.
    pub(crate) down_after: Option<Duration>,
    /// Rounds in a row that clear a suspicion.
    pub(crate) clear_rounds: Option<u8>,
    /// Rounds in a row that bring a link up again.
    pub(crate) up_rounds: Option<u8>,
    /// A link that loses more does not come up again.
    pub(crate) max_up_loss_percent: Option<u8>,
    /// A better link carries frames again after it was up for so long.
    pub(crate) hold: Option<Duration>,
    /// The same for a link that comes and goes, at most.
    pub(crate) max_hold: Option<Duration>,
    /// A peer of which nothing is heard on any link is down after so long.
    pub(crate) peer_timeout: Option<Duration>,
    /// Heartbeats of this node to all peers, at most; beyond, the intervals stretch.
    pub(crate) heartbeats_per_s: u32,
}

/// Checks what must be in ascending order, the profile's values included.
pub(super) fn validate(
    profile: Profile,
    raw: RawDetector,
    faults: &mut Collector,
) -> DetectorConfig {
    let own = profile.values();
    let mut order = Order { profile, faults };
    // In microseconds, where the keys' units differ.
    let whole = |count: u128| u32::try_from(count).unwrap_or(u32::MAX);
    let (ms, s) =
        (|time: Duration| whole(time.as_millis()), |t: Duration| whole(t.as_secs().into()));
    let fast = Side::new("fast_us", &raw.fast_us, whole(own.fast.as_micros()), 1);
    let normal = Side::new("normal_ms", &raw.normal_ms, ms(own.normal), 1_000);
    let idle = Side::new("idle_ms", &raw.idle_ms, ms(own.idle), 1_000);
    order.check(&fast, &normal);
    order.check(&normal, &idle);
    order.check(
        &Side::new("min_missed", &raw.min_missed, own.min_missed, 1),
        &Side::new("max_missed", &raw.max_missed, own.max_missed, 1),
    );
    order.check(
        &Side::new("hold_s", &raw.hold_s, s(own.hold), 1),
        &Side::new("max_hold_s", &raw.max_hold_s, s(own.max_hold), 1),
    );
    let micros = |field: Field<u32>| field.map(|us| Duration::from_micros(us.value.into()));
    let millis = |field: Field<u32>| field.map(|ms| Duration::from_millis(ms.value.into()));
    let seconds = |field: Field<u32>| field.map(|s| Duration::from_secs(s.value.into()));
    let count = |field: Field<u8>| field.map(|count| count.value);
    DetectorConfig {
        profile,
        fast: micros(raw.fast_us),
        normal: millis(raw.normal_ms),
        idle: millis(raw.idle_ms),
        sole: millis(raw.sole_ms),
        min_missed: count(raw.min_missed),
        max_missed: count(raw.max_missed),
        min_grace: micros(raw.min_grace_us),
        down_after: millis(raw.down_after_ms),
        clear_rounds: count(raw.clear_rounds),
        up_rounds: count(raw.up_rounds),
        max_up_loss_percent: count(raw.max_up_loss_percent),
        hold: seconds(raw.hold_s),
        max_hold: seconds(raw.max_hold_s),
        peer_timeout: millis(raw.peer_timeout_ms),
        heartbeats_per_s: or(raw.heartbeats_per_s, DEFAULT_HEARTBEATS_PER_S),
    }
}

/// One of two values that are compared.
struct Side {
    key: &'static str,
    /// Where it is written; absent where it is the profile's.
    at: Option<At>,
    /// As it is written.
    value: u64,
    /// In the unit that both sides share.
    common: u64,
}

impl Side {
    fn new<T: Copy + Into<u64>>(key: &'static str, field: &Field<T>, own: T, factor: u64) -> Self {
        let value = field.as_ref().map_or(own, |field| field.value).into();
        let at = field.as_ref().map(|field| field.at);
        Self { key, at, value, common: value * factor }
    }
}

struct Order<'f> {
    profile: Profile,
    faults: &'f mut Collector,
}

impl Order<'_> {
    /// Notes a fault if `small` is the larger one, at whichever the files have.
    fn check(&mut self, small: &Side, large: &Side) {
        if small.common <= large.common {
            return;
        }
        let ((at, wrong), other, word) = match (small.at, large.at) {
            (Some(first), Some(second)) if second > first => ((second, large), small, "less"),
            (Some(at), _) => ((at, small), large, "more"),
            (None, Some(at)) => ((at, large), small, "less"),
            // Profiles agree with themselves.
            (None, None) => return,
        };
        let whose = match other.at {
            Some(other) => other.seen_from(at),
            None => format!("of the profile \"{}\"", self.profile),
        };
        self.faults.add(
            at,
            format!(
                "{} = {} is {word} than {} = {} ({whose}); change one of them",
                wrong.key, wrong.value, other.key, other.value
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_agree_with_themselves() {
        for profile in Profile::ALL {
            assert_eq!(Profile::parse(profile.name()), Ok(profile));
            let mut faults = Collector::default();
            let config = validate(profile, RawDetector::default(), &mut faults);
            assert!(faults.is_empty());
            assert_eq!((config.profile, config.heartbeats_per_s), (profile, 5_000));
            let own = profile.values();
            assert!(own.fast <= own.normal && own.normal <= own.idle);
            assert!(own.min_missed <= own.max_missed && own.hold <= own.max_hold);
        }
        assert!(Profile::parse("slow").unwrap_err().contains("\"knet-like\""));
    }
}
