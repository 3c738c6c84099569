//! Randomness is injected, like time, so that a seed replays a whole world.

/// A source of random bytes that suits keys. The daemon gives the operating system's.
pub trait Rng: Send {
    /// Fills `bytes` with random data.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// Eight random bytes as a number.
pub(crate) fn u64(rng: &mut dyn Rng) -> u64 {
    let mut bytes = [0; 8];
    rng.fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

/// `value` made up to a `1/div` part larger or smaller, evenly spread: keeps timers of many nodes
/// from falling into step.
pub(crate) fn jitter(
    rng: &mut dyn Rng,
    value: std::time::Duration,
    div: u32,
) -> std::time::Duration {
    let span = value / div;
    // 2^16 steps over [-span, +span]; the modulo of a power of two has no bias.
    let step = u32::try_from(u64(rng) & 0xffff).unwrap_or(0);
    value - span + span * 2 * step / 0xffff
}
