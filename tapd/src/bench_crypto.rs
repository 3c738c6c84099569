//! `tapd bench-crypto`: how fast this machine seals and opens with each cipher.
//!
//! The work is the protocol's own ([`encap::crypto::bench`]); the clock is here. A round gives each
//! cipher a short turn at each size, in an order that moves on, so that whatever else the machine
//! does hits all of them alike; what is told is the median of the rounds, and the median of the
//! ratios within a round.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use encap::crypto::aead::Suite;
use encap::crypto::bench::Load;
use serde::Serialize;

use crate::exit::{Exit, Failure};

/// Frames of a small packet, and of full ones on paths of 1,450 and of 9,000 bytes or so.
pub(crate) const DEFAULT_SIZES: [u32; 3] = [64, 1424, 8972];
/// Longest frame that is measured, bytes.
pub(crate) const MAX_SIZE: i64 = 65_535;

/// The first is what the others are compared with.
const SUITES: [Suite; 3] = [Suite::Aes256Gcm, Suite::Aegis256, Suite::Aegis128L];
/// Datagrams of a load, bytes: stays in the second-level cache.
const ARENA_LEN: usize = 256 << 10;
/// A cipher's turn.
const TURN: Duration = Duration::from_millis(2);
/// The advice is about frames of this many bytes, or of the nearest size measured.
const ADVISED_SIZE: u32 = 1_424;
/// A cipher that is not approved must be faster by so much to be advised.
const WORTH_IT: f64 = 1.2;

/// Time of one frame, ns.
#[derive(Debug, Clone, Copy)]
struct Turn {
    seal: f64,
    open: f64,
}

/// One direction.
#[derive(Debug, Clone, Copy, Serialize)]
struct Rate {
    /// Of one frame.
    ns: f64,
    /// Bytes of frames, in 10^9 a second.
    gb_per_s: f64,
    /// How many times as fast as the first cipher.
    ratio: f64,
}

/// One cipher at one size.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    size: u32,
    cipher: &'static str,
    provider: &'static str,
    seal: Rate,
    open: Rate,
    /// Both directions together.
    ratio: f64,
}

/// All there is to tell.
#[derive(Debug, Serialize)]
struct Report {
    /// Instructions of this CPU that ciphers use.
    cpu_features: Vec<&'static str>,
    rounds: usize,
    results: Vec<Measured>,
    advice: String,
}

/// Measures for about `seconds` and gives what there is to print.
pub(crate) fn run(json: bool, seconds: u64, sizes: &[u32]) -> Result<String, Failure> {
    let report = measure(Duration::from_secs(seconds), sizes)?;
    if !json {
        return Ok(text(&report));
    }
    let json = serde_json::to_string_pretty(&report).map_err(|e| Failure::new(Exit::Runtime, e))?;
    Ok(json + "\n")
}

fn measure(time: Duration, sizes: &[u32]) -> Result<Report, Failure> {
    let mut loads = Vec::new();
    for size in sizes {
        for suite in SUITES {
            let load = Load::new(suite, *size as usize, ARENA_LEN);
            let load = load.ok_or_else(|| failed("a cipher seals nothing"))?;
            loads.push((*size, suite, load, Vec::new()));
        }
    }
    let (begin, mut round) = (Instant::now(), 0);
    // The first round warms up, the second one is needed in any case.
    while round < 2 || begin.elapsed() < time {
        for group in loads.chunks_mut(SUITES.len()) {
            group.rotate_left(round % SUITES.len());
            for (_, suite, load, turns) in group.iter_mut() {
                let turn = take_turn(load).ok_or_else(|| failed(suite.name()))?;
                if round > 0 {
                    turns.push(turn);
                }
            }
            group.rotate_right(round % SUITES.len());
        }
        round += 1;
    }
    let mut results = Vec::new();
    for group in loads.chunks(SUITES.len()) {
        let Some((_, _, _, base)) = group.first() else { continue };
        for (size, suite, _, turns) in group {
            results.push(Measured {
                size: *size,
                cipher: suite.name(),
                provider: suite.provider(),
                seal: rate(*size, turns, base, |turn| turn.seal),
                open: rate(*size, turns, base, |turn| turn.open),
                ratio: ratio(turns, base, |turn| turn.seal + turn.open),
            });
        }
    }
    let cpu_features = cpu_features();
    let advice = advice(&results, cpu_features.contains(&"aes"));
    Ok(Report { cpu_features, rounds: round - 1, results, advice })
}

fn failed(what: &str) -> Failure {
    Failure::new(Exit::Runtime, anyhow!("{what}: what was sealed did not open"))
}

/// Seals and opens the load again and again; the mean times of a frame.
fn take_turn(load: &mut Load) -> Option<Turn> {
    let (mut seal, mut open, mut frames) = (Duration::ZERO, Duration::ZERO, 0);
    while seal + open < TURN {
        let begin = Instant::now();
        let sealed = load.seal();
        let between = Instant::now();
        let opened = load.open();
        open += between.elapsed();
        seal += between - begin;
        frames += load.count();
        if !(sealed && opened) {
            return None;
        }
    }
    let each = |time: Duration| time.as_nanos() as f64 / frames as f64;
    Some(Turn { seal: each(seal), open: each(open) })
}

fn rate(size: u32, turns: &[Turn], base: &[Turn], of: impl Fn(&Turn) -> f64) -> Rate {
    let ns = median(turns.iter().map(&of).collect());
    Rate { ns, gb_per_s: f64::from(size) / ns, ratio: ratio(turns, base, of) }
}

fn ratio(turns: &[Turn], base: &[Turn], of: impl Fn(&Turn) -> f64) -> f64 {
    median(turns.iter().zip(base).map(|(turn, base)| of(base) / of(turn)).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One line: what to write into the configuration.
fn advice(results: &[Measured], aes_instructions: bool) -> String {
    let distance = |row: &&Measured| row.size.abs_diff(ADVISED_SIZE);
    let Some(size) = results.iter().min_by_key(distance).map(|row| row.size) else {
        return String::new();
    };
    let ratio = |suite: Suite| {
        let row = results.iter().find(|row| row.size == size && row.cipher == suite.name());
        row.map_or(0.0, |row| row.ratio)
    };
    let (long, short) = (ratio(Suite::Aegis256), ratio(Suite::Aegis128L));
    // The longer key, unless it costs much.
    let (best, times) =
        if short > WORTH_IT * long { (Suite::Aegis128L, short) } else { (Suite::Aegis256, long) };
    let slow = if aes_instructions { "" } else { "No AES instructions were found. " };
    let best = best.name();
    if times < WORTH_IT {
        return format!(
            "{slow}Stay with \"aes-256-gcm\": {best} takes frames of {size} bytes at {times:.1} \
             times its speed here."
        );
    }
    format!(
        "{slow}ciphers = [\"{best}\", \"aes-256-gcm\"] seals and opens frames of {size} bytes at \
         {times:.1} times the speed; AEGIS is not FIPS-approved: keep the default where that counts."
    )
}

fn text(report: &Report) -> String {
    let features = match report.cpu_features.as_slice() {
        [] => "none that ciphers use".to_owned(),
        found => found.join(" "),
    };
    let mut out = format!("CPU features: {features}\n");
    // Writing into a string cannot fail.
    let _ = writeln!(
        out,
        "{:>6}  {:<11}  {:<8}  {:>8}  {:>6}  {:>5}  {:>8}  {:>6}  {:>5}",
        "FRAME", "CIPHER", "BY", "SEAL ns", "GB/s", "x aes", "OPEN ns", "GB/s", "x aes"
    );
    for row in &report.results {
        let (seal, open) = (row.seal, row.open);
        let _ = writeln!(
            out,
            "{:>6}  {:<11}  {:<8}  {:>8.1}  {:>6.2}  {:>5.2}  {:>8.1}  {:>6.2}  {:>5.2}",
            row.size,
            row.cipher,
            row.provider,
            seal.ns,
            seal.gb_per_s,
            seal.ratio,
            open.ns,
            open.gb_per_s,
            open.ratio
        );
    }
    out + &report.advice + "\n"
}

/// The CPU's instructions that ciphers use, as found at run time.
#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let all = [
        ("aes", is_x86_feature_detected!("aes")),
        ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
        ("avx", is_x86_feature_detected!("avx")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("vaes", is_x86_feature_detected!("vaes")),
        ("vpclmulqdq", is_x86_feature_detected!("vpclmulqdq")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    all.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

/// The CPU's instructions that ciphers use, as found at run time.
#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected;
    let all = [
        ("aes", is_aarch64_feature_detected!("aes")),
        ("pmull", is_aarch64_feature_detected!("pmull")),
        ("sha3", is_aarch64_feature_detected!("sha3")),
    ];
    all.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

/// Not known for this kind of CPU.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_is_measured_at_every_size() {
        let report = measure(Duration::ZERO, &[64, 1424]).unwrap();
        let rows: Vec<_> = report.results.iter().map(|row| (row.size, row.cipher)).collect();
        let ciphers = ["aes-256-gcm", "aegis-256", "aegis-128l"];
        let expected: Vec<_> =
            [64, 1424].into_iter().flat_map(|size| ciphers.map(|cipher| (size, cipher))).collect();
        assert_eq!(rows, expected);
        for row in &report.results {
            for rate in [row.seal, row.open] {
                assert!(rate.ns > 0.0 && rate.ratio > 0.0, "{row:?}");
                assert!((rate.gb_per_s * rate.ns - f64::from(row.size)).abs() < 0.01, "{row:?}");
            }
            assert!(row.cipher != "aes-256-gcm" || row.ratio == 1.0, "{row:?}");
        }
        assert_eq!(report.rounds, 1);
        assert_eq!(text(&report).lines().count(), 1 + 1 + 6 + 1);
    }

    fn row(size: u32, suite: Suite, ratio: f64) -> Measured {
        let rate = Rate { ns: 1.0, gb_per_s: 1.0, ratio };
        let (cipher, provider) = (suite.name(), suite.provider());
        Measured { size, cipher, provider, seal: rate, open: rate, ratio }
    }

    #[test]
    fn advice_follows_the_size_nearest_to_a_full_frame() {
        let advised = |long, short| {
            let rows = [
                row(64, Suite::Aegis256, 9.0),
                row(1400, Suite::Aes256Gcm, 1.0),
                row(1400, Suite::Aegis256, long),
                row(1400, Suite::Aegis128L, short),
            ];
            advice(&rows, true)
        };
        assert!(advised(1.1, 1.1).starts_with("Stay with \"aes-256-gcm\""));
        assert!(advised(2.0, 2.3).contains("[\"aegis-256\", \"aes-256-gcm\"]"));
        assert!(advised(1.3, 2.5).contains("[\"aegis-128l\", \"aes-256-gcm\"]"));
        assert!(advised(2.0, 2.3).contains("not FIPS-approved"));
        assert!(advice(&[row(64, Suite::Aegis256, 2.0)], false).starts_with("No AES"));
        assert_eq!(advice(&[], true), "");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
