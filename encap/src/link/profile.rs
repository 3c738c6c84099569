//! How fast links are watched and how patient their judge is: named sets of times.
//!
//! Next: [`super::estimate`].

use std::time::Duration;

/// The times and counts that heartbeats and [`super::liveness::Liveness`] go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Time between two rounds of heartbeats to a peer with traffic in the last second.
    pub fast: Duration,
    /// The same to a peer with traffic in the last 60 s.
    pub normal: Duration,
    /// The same to a peer without.
    pub idle: Duration,
    /// The same to a peer with a single link: there is nowhere to fail over to.
    pub sole: Duration,
    /// Rounds that another link must be ahead at least, on a link without loss. At least 1.
    pub min_missed: u8,
    /// Rounds that another link must be ahead at most, however lossy the link. At most 32.
    pub max_missed: u8,
    /// Least patience with a link after the last of these rounds.
    pub min_grace: Duration,
    /// From suspect to down.
    pub down_after: Duration,
    /// Rounds in a row that clear a suspicion.
    pub clear_rounds: u8,
    /// Rounds in a row that bring a link up that was down.
    pub up_rounds: u8,
    /// Most rounds lost of the last 20, in percent, for a link to come up again.
    pub max_up_loss_percent: u8,
    /// How long a link that came back must be good before frames return to it.
    pub hold: Duration,
    /// What the hold grows to while the link flaps.
    pub max_hold: Duration,
    /// All links silent for so long: the peer is gone.
    pub peer_timeout: Duration,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Failover within milliseconds, for peers on one LAN.
pub const FAST: Profile = Profile {
    fast: ms(1),
    normal: ms(10),
    idle: ms(1_000),
    sole: ms(250),
    min_missed: 3,
    max_missed: 16,
    min_grace: Duration::from_micros(200),
    down_after: ms(50),
    clear_rounds: 3,
    up_rounds: 5,
    max_up_loss_percent: 5,
    hold: ms(5_000),
    max_hold: ms(60_000),
    peer_timeout: ms(1_000),
};

/// A tenth of the heartbeats of [`FAST`], and ten times its delay.
pub const NORMAL: Profile = Profile { fast: ms(10), normal: ms(50), ..FAST };

/// For links over the internet, whose delay wanders.
pub const WAN: Profile = Profile {
    fast: ms(50),
    normal: ms(200),
    sole: ms(1_000),
    min_grace: ms(5),
    down_after: ms(500),
    peer_timeout: ms(3_000),
    ..FAST
};

/// The pace of kronosnet's defaults: seconds, not milliseconds.
pub const KNET_LIKE: Profile = Profile {
    fast: ms(1_000),
    normal: ms(1_000),
    idle: ms(1_000),
    sole: ms(1_000),
    min_missed: 2,
    down_after: ms(1_000),
    peer_timeout: ms(3_000),
    ..FAST
};

impl Default for Profile {
    fn default() -> Self {
        FAST
    }
}

/// Most rounds that a verdict may need, whatever a profile says: the memory of arrivals is finite.
const MOST_MISSED: u8 = 32;

/// Seconds of a year.
const YEAR: f64 = 365.25 * 86_400.0;

/// How many rounds in a row must be missing on a link with this loss (a fraction) before that says
/// something: the least k at which independent loss, `interval` after `interval`, makes k gaps in a
/// row at most once a year, within the bounds of the profile. 3 at 0.01 % of 1,000 rounds a second,
/// 6 at 1 %, 16 at 20 %.
#[must_use]
pub fn missed_for(loss: f64, interval: Duration, profile: &Profile) -> u32 {
    let least = u32::from(profile.min_missed.clamp(1, MOST_MISSED));
    let most = u32::from(profile.max_missed.min(MOST_MISSED)).max(least);
    if loss >= 1.0 {
        return most;
    }
    // What is no number, or below any number that could be measured, is no loss.
    if loss.is_nan() || loss < 1e-9 {
        return least;
    }
    let a_year = YEAR / interval.as_secs_f64().max(1e-6);
    let rounds = (a_year.ln() / -loss.ln()).ceil();
    (rounds as u32).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounds_by_loss_as_modelled() {
        let table =
            [(0.0, 3), (1e-4, 3), (1e-3, 4), (0.01, 6), (0.05, 9), (0.1, 11), (0.2, 16), (0.6, 16)];
        for (loss, rounds) in table {
            assert_eq!(missed_for(loss, ms(1), &FAST), rounds, "loss {loss}");
        }
        assert_eq!(missed_for(f64::NAN, ms(1), &FAST), 3);
        assert_eq!(missed_for(0.0, ms(1_000), &KNET_LIKE), 2);
        // Fewer rounds a year, fewer accidents.
        assert!(missed_for(0.05, ms(1_000), &FAST) < missed_for(0.05, ms(1), &FAST));
    }

    #[test]
    fn the_values_of_each_profile_agree() {
        for profile in [FAST, NORMAL, WAN, KNET_LIKE] {
            assert!(profile.fast <= profile.normal && profile.normal <= profile.idle);
            assert!(profile.min_missed <= profile.max_missed && profile.max_missed <= 32);
            assert!(profile.hold <= profile.max_hold && profile.down_after < profile.peer_timeout);
        }
        assert_eq!(Profile::default(), FAST);
    }

    proptest! {
        #[test]
        fn rounds_stay_within_bounds(loss: f64, ns: u64, least: u8, most: u8) {
            let profile = Profile { min_missed: least, max_missed: most, ..FAST };
            let rounds = missed_for(loss, Duration::from_nanos(ns), &profile);
            prop_assert!(rounds >= 1 && rounds <= u32::from(most.max(least).clamp(1, 32)));
        }
    }
}
