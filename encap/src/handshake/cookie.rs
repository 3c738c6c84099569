//! Cookies and rates: what keeps a flood of initiations from costing more than a hash each.
//!
//! Below the rate limit an initiation is answered at once. Above it, and for one that an earlier
//! one outdates, the sender must first show that it receives at its address and holds the cluster
//! key now: it is sent a cookie and repeats its initiation with it. No state is kept before.
//! Rules G7 to G9 are in `docs/protocol.md`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use crate::crypto::key::Secret;
use crate::forward::policer::Policer;
use crate::rng::Rng;
use crate::wire::long::{COOKIE_LEN, keyed_hash};

/// Initiations a second that are read without a cookie.
pub const INITIATIONS_PER_SECOND: u32 = 1_000;
/// Cookies a second that are given out.
pub const COOKIES_PER_SECOND: u32 = 1_000;
/// Initiations a second that one source may send with good cookies, and at once.
const SOURCE_PER_SECOND: u32 = 20;
const SOURCE_BURST: u32 = 10;
/// Sources that are told apart; beyond, all share the common limit.
const MAX_SOURCES: usize = 1_024;
/// Age at which the cookie secret is replaced; a cookie is good for one to two of these.
const SECRET_LIFE: Duration = Duration::from_secs(120);

/// What to do with an initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Read it.
    Read,
    /// Answer with this cookie.
    SendCookie([u8; COOKIE_LEN]),
    /// Drop it.
    Drop,
}

/// Guards the responder.
#[derive(Debug)]
pub struct Guard {
    secrets: [Secret; 2],
    changed: Instant,
    initiations: Policer,
    cookies: Policer,
    sources: HashMap<IpAddr, Policer>,
}

impl Guard {
    /// A guard with fresh secrets.
    pub fn new(now: Instant, rng: &mut dyn Rng) -> Self {
        Self {
            secrets: [fresh(rng), fresh(rng)],
            changed: now,
            initiations: Policer::new(now, INITIATIONS_PER_SECOND, INITIATIONS_PER_SECOND / 10),
            cookies: Policer::new(now, COOKIES_PER_SECOND, COOKIES_PER_SECOND / 10),
            sources: HashMap::new(),
        }
    }

    /// Whether an initiation with `cookie` from `from` is to be read.
    pub fn admit(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cookie: &[u8; COOKIE_LEN],
        rng: &mut dyn Rng,
    ) -> Admission {
        self.rotate(now, rng);
        if self.proves_address(from, cookie) {
            return if self.source(now, from.ip()).take(now) {
                Admission::Read
            } else {
                Admission::Drop
            };
        }
        if self.initiations.take(now) { Admission::Read } else { self.challenge(now, from) }
    }

    /// Whether `cookie` shows that its bearer receives at `from`, not long ago.
    #[must_use]
    pub fn proves_address(&self, from: SocketAddr, cookie: &[u8; COOKIE_LEN]) -> bool {
        self.secrets.iter().any(|secret| cookie_for(secret, from).ct_eq(cookie).into())
    }

    /// A cookie to send, unless too many were sent.
    pub fn challenge(&mut self, now: Instant, from: SocketAddr) -> Admission {
        let [newest, _] = &self.secrets;
        let cookie = cookie_for(newest, from);
        if self.cookies.take(now) { Admission::SendCookie(cookie) } else { Admission::Drop }
    }

    fn rotate(&mut self, now: Instant, rng: &mut dyn Rng) {
        let age = now.saturating_duration_since(self.changed);
        if age >= SECRET_LIFE {
            self.changed = now;
            let [newest, _] = &self.secrets;
            let previous = if age < 2 * SECRET_LIFE { newest.clone() } else { fresh(rng) };
            self.secrets = [fresh(rng), previous];
            self.sources.clear();
        }
    }

    fn source(&mut self, now: Instant, ip: IpAddr) -> &mut Policer {
        if !self.sources.contains_key(&ip) && self.sources.len() >= MAX_SOURCES {
            return &mut self.initiations;
        }
        self.sources.entry(ip).or_insert_with(|| Policer::new(now, SOURCE_PER_SECOND, SOURCE_BURST))
    }
}

fn fresh(rng: &mut dyn Rng) -> Secret {
    let mut bytes = [0; 32];
    rng.fill(&mut bytes);
    Secret::new(bytes)
}

fn cookie_for(secret: &Secret, from: SocketAddr) -> [u8; COOKIE_LEN] {
    let ip = match from.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    keyed_hash(secret.bytes(), &[&ip, &from.port().to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting(u8);

    impl Rng for Counting {
        fn fill(&mut self, bytes: &mut [u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_mul(5).wrapping_add(3);
                *byte = self.0;
            }
        }
    }

    const NONE: [u8; COOKIE_LEN] = [0; COOKIE_LEN];

    fn from(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 26026))
    }

    #[test]
    fn a_flood_is_challenged_and_a_cookie_opens_the_way() {
        let (now, mut rng) = (Instant::now(), Counting(1));
        let mut guard = Guard::new(now, &mut rng);
        let read = (0..10_000)
            .filter(|_| guard.admit(now, from(1), &NONE, &mut rng) == Admission::Read)
            .count();
        assert_eq!(read, (INITIATIONS_PER_SECOND / 10) as usize);
        let mut guard = Guard::new(now, &mut rng);
        let cookie = loop {
            if let Admission::SendCookie(cookie) = guard.admit(now, from(1), &NONE, &mut rng) {
                break cookie;
            }
        };
        assert_eq!(guard.admit(now, from(1), &cookie, &mut rng), Admission::Read);
        assert_ne!(guard.admit(now, from(2), &cookie, &mut rng), Admission::Read, "other address");
        let later = now + SECRET_LIFE;
        assert!(guard.proves_address(from(1), &cookie));
        guard.admit(later, from(1), &cookie, &mut rng);
        guard.admit(later + SECRET_LIFE, from(1), &NONE, &mut rng);
        assert!(!guard.proves_address(from(1), &cookie), "expired");
        // Also when nothing came for a long time in between.
        let Admission::SendCookie(cookie) = guard.challenge(later, from(1)) else {
            panic!("a cookie is given out");
        };
        guard.admit(later + 10 * SECRET_LIFE, from(2), &NONE, &mut rng);
        assert!(!guard.proves_address(from(1), &cookie), "expired in silence");
    }

    #[test]
    fn one_source_with_a_cookie_is_rationed() {
        let (now, mut rng) = (Instant::now(), Counting(1));
        let mut guard = Guard::new(now, &mut rng);
        let Admission::SendCookie(cookie) = guard.challenge(now, from(1)) else {
            panic!("the first cookie is given out");
        };
        let read = (0..1_000)
            .filter(|_| guard.admit(now, from(1), &cookie, &mut rng) == Admission::Read)
            .count();
        assert_eq!(read, SOURCE_BURST as usize);
    }
}
