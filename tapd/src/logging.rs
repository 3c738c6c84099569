//! Logging: env_logger to standard error, with a filter that a reload can change, and a limit on
//! lines that a packet can cause.

use std::collections::HashMap;
use std::fmt;
use std::sync::{OnceLock, RwLock};
use std::time::{Duration, Instant};

use encap::id::NodeId;
use log::{LevelFilter, Log, Metadata, Record};

/// A line of one kind, peer and link is logged at most this often.
pub(crate) const RATE_LIMIT_INTERVAL: Duration = Duration::from_secs(60);

/// Most (kind, peer, link) combinations that are remembered: bounds what hostile datagrams cost.
const MAX_LIMITED: usize = 4096;

static LOGGER: OnceLock<FilteredLogger> = OnceLock::new();

struct FilteredLogger {
    filter: RwLock<env_filter::Filter>,
    writer: env_logger::Logger,
}

impl Log for FilteredLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.read().is_ok_and(|filter| filter.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.read().is_ok_and(|filter| filter.matches(record)) {
            self.writer.log(record);
        }
    }

    fn flush(&self) {
        self.writer.flush();
    }
}

/// Parts of tapd that lines come from: where the paths of their modules begin.
const PARTS: [&str; 3] = ["tapd", "fastpath", "encap"];

/// Parses a filter such as `info,tapd::daemon::notices=debug`.
pub(crate) fn parse_filter(text: &str) -> Result<env_filter::Filter, String> {
    // Behind a slash is what lines must contain.
    let words = text.split('/').next().unwrap_or_default().split(',').map(str::trim);
    for word in words.filter(|word| !word.is_empty()) {
        // What is no level would be taken for a module, of which everything is logged, and of all
        // others nothing. A module that does not exist would leave the daemon silent.
        let (module, level) = match word.split_once('=') {
            Some((module, level)) => (module.trim(), Some(level)),
            None => (word, None),
        };
        let part = module.split("::").next().unwrap_or_default();
        if PARTS.contains(&part) || level.is_none() && word.parse::<LevelFilter>().is_ok() {
            continue;
        }
        let modules = PARTS.join(", ");
        return Err(match level {
            Some(_) => format!("{module:?} is no module; their paths begin with one of {modules}"),
            None => format!(
                "{word:?} is no level; there are error, warn, info, debug, trace, off, and \
                 modules, whose paths begin with one of {modules}"
            ),
        });
    }
    let mut builder = env_filter::Builder::new();
    builder.try_parse(text).map_err(|error| error.to_string())?;
    Ok(builder.build())
}

/// Starts logging to standard error.
///
/// # Errors
/// When the filter is not one, or a logger is set already.
pub(crate) fn init(filter: &str) -> anyhow::Result<()> {
    let parsed = parse_filter(filter).map_err(anyhow::Error::msg)?;
    let level = parsed.filter();
    let writer = env_logger::Builder::new()
        .filter_level(LevelFilter::Trace)
        .format_target(true)
        .format_timestamp_millis()
        .target(env_logger::Target::Stderr)
        .build();
    let logger = LOGGER.get_or_init(|| FilteredLogger { filter: RwLock::new(parsed), writer });
    log::set_logger(logger)?;
    log::set_max_level(level);
    Ok(())
}

/// Replaces the filter of a running daemon.
///
/// # Errors
/// When the filter is not one; the old one stays.
pub(crate) fn set_filter(filter: &str) -> anyhow::Result<()> {
    let parsed = parse_filter(filter).map_err(anyhow::Error::msg)?;
    let level = parsed.filter();
    if let Some(logger) = LOGGER.get() {
        match logger.filter.write() {
            Ok(mut current) => *current = parsed,
            Err(poisoned) => *poisoned.into_inner() = parsed,
        }
        log::set_max_level(level);
    }
    Ok(())
}

/// What a limited line is about; lines that share it share one slot a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LimitKey {
    /// Kind of line, such as a drop reason's name.
    pub(crate) kind: &'static str,
    /// The peer, where it is known.
    pub(crate) peer: Option<NodeId>,
    /// Position of the link, where there is one.
    pub(crate) link: Option<u8>,
}

/// How many lines were held back since the last one that was logged; prints as a suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suppressed(pub(crate) u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} more suppressed)", self.0) }
    }
}

/// At most one line per [`LimitKey`] and [`RATE_LIMIT_INTERVAL`].
///
/// ```ignore
/// if let Some(more) = limit.admit(now, LimitKey { kind: "bad_tag", peer, link }) {
///     log::warn!("datagram of node {id} failed authentication{more}");
/// }
/// ```
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    slots: HashMap<LimitKey, Slot>,
    /// Lines that no slot was left for.
    overflow: u64,
}

#[derive(Debug)]
struct Slot {
    logged: Instant,
    suppressed: u64,
}

impl RateLimit {
    /// Whether a line may be logged now, and how many like it were not.
    pub(crate) fn admit(&mut self, now: Instant, key: LimitKey) -> Option<Suppressed> {
        if let Some(slot) = self.slots.get_mut(&key) {
            if now.saturating_duration_since(slot.logged) < RATE_LIMIT_INTERVAL {
                slot.suppressed = slot.suppressed.saturating_add(1);
                return None;
            }
            slot.logged = now;
            return Some(Suppressed(std::mem::take(&mut slot.suppressed)));
        }
        if self.slots.len() >= MAX_LIMITED {
            self.slots
                .retain(|_, slot| now.saturating_duration_since(slot.logged) < RATE_LIMIT_INTERVAL);
        }
        if self.slots.len() >= MAX_LIMITED {
            self.overflow = self.overflow.saturating_add(1);
            return None;
        }
        self.slots.insert(key, Slot { logged: now, suppressed: 0 });
        Some(Suppressed(std::mem::take(&mut self.overflow)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &'static str, peer: u16) -> LimitKey {
        LimitKey { kind, peer: NodeId::new(peer), link: None }
    }

    #[test]
    fn one_line_a_minute_and_the_rest_is_counted() {
        let mut limit = RateLimit::default();
        let start = Instant::now();
        assert_eq!(limit.admit(start, key("bad_tag", 1)), Some(Suppressed(0)));
        for second in 1..60 {
            assert_eq!(limit.admit(start + Duration::from_secs(second), key("bad_tag", 1)), None);
        }
        let more = limit.admit(start + RATE_LIMIT_INTERVAL, key("bad_tag", 1)).unwrap();
        assert_eq!(more.to_string(), " (59 more suppressed)");
        assert_eq!(Suppressed(0).to_string(), "");
    }

    #[test]
    fn kinds_peers_and_links_do_not_share() {
        let mut limit = RateLimit::default();
        let now = Instant::now();
        assert!(limit.admit(now, key("bad_tag", 1)).is_some());
        assert!(limit.admit(now, key("bad_tag", 2)).is_some());
        assert!(limit.admit(now, key("replayed", 1)).is_some());
        assert!(limit.admit(now, LimitKey { link: Some(1), ..key("bad_tag", 1) }).is_some());
        assert!(limit.admit(now, key("bad_tag", 1)).is_none());
    }

    #[test]
    fn memory_is_bounded_and_freed() {
        let mut limit = RateLimit::default();
        let start = Instant::now();
        for peer in 1..=5000 {
            let _ = limit.admit(start, key("bad_tag", peer));
        }
        assert_eq!(limit.slots.len(), MAX_LIMITED);
        let later = start + RATE_LIMIT_INTERVAL;
        assert_eq!(limit.admit(later, key("replayed", 1)), Some(Suppressed(5000 - 4096)));
        assert_eq!(limit.slots.len(), 1);
    }

    #[test]
    fn filters_are_checked() {
        assert!(parse_filter("info,tapd::daemon::notices=debug").is_ok());
        for good in ["", "Info", "tapd::daemon", "warn,encap", "info/link"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["encap=loud", "verbose", "info;debug", "info,verbose", "notices"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
        assert!(parse_filter("warn, fastpath::uplink = debug").is_ok());
        for bad in ["notices=debug", "info,daemon::notices=debug", "=debug", "tapdd=info"] {
            let error = parse_filter(bad).unwrap_err();
            assert!(error.contains("tapd, fastpath, encap"), "{bad}: {error}");
        }
        for bad in ["verbose", "notices=debug"] {
            let error = parse_filter(bad).unwrap_err();
            assert!(!error.contains("  "), "{bad}: {error}");
        }
    }
}
