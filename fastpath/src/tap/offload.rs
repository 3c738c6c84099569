//! Which offloads a tap is asked for, and which are at work.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use encap::wire::buf::SegmentKind;

/// Super-frames that the kernel refuses before no more of their protocol are written.
const MAX_REFUSALS: u32 = 3;

/// What a tap may leave to others: the kernel to us, and we to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffloadSwitches {
    /// Partial checksums. All else needs it.
    pub checksum: bool,
    /// Super-frames of TCP, in both directions.
    pub segmentation_tcp: bool,
    /// Super-frames of UDP, in both directions.
    pub segmentation_udp: bool,
}

impl OffloadSwitches {
    /// All there is.
    pub const ALL: Self = Self { checksum: true, segmentation_tcp: true, segmentation_udp: true };
    /// Partial checksums and no super-frames.
    pub const CHECKSUM: Self =
        Self { checksum: true, segmentation_tcp: false, segmentation_udp: false };
    /// Every frame by itself, and complete.
    pub const NONE: Self =
        Self { checksum: false, segmentation_tcp: false, segmentation_udp: false };

    /// Without what depends on something that is off.
    pub(super) fn consistent(self) -> Self {
        if self.checksum { self } else { Self::NONE }
    }

    /// Whether super-frames of that kind are on.
    #[must_use]
    pub fn allow(self, kind: SegmentKind) -> bool {
        match kind {
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => self.segmentation_tcp,
            SegmentKind::Udp => self.segmentation_udp,
        }
    }
}

impl Default for OffloadSwitches {
    fn default() -> Self {
        Self::ALL
    }
}

/// Whether frames of one protocol are written as super-frames.
#[derive(Debug, Default)]
struct Coalescing {
    on: AtomicBool,
    refusals: AtomicU32,
}

impl Coalescing {
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn refused(&self) -> bool {
        let refusals = self.refusals.fetch_add(1, Ordering::Relaxed) + 1;
        refusals >= MAX_REFUSALS && self.on.swap(false, Ordering::Relaxed)
    }
}

/// Which offloads of a tap are at work; shared by its queues and readable by any thread.
#[derive(Debug, Default)]
pub struct TapOffload {
    granted: OffloadSwitches,
    tcp: Coalescing,
    udp: Coalescing,
}

impl TapOffload {
    pub(super) fn new(granted: OffloadSwitches) -> Self {
        let coalescing = |on| Coalescing { on: AtomicBool::new(on), ..Coalescing::default() };
        let tcp = coalescing(granted.segmentation_tcp);
        Self { granted, tcp, udp: coalescing(granted.segmentation_udp) }
    }

    /// What the kernel gives: partial checksums, super-frames.
    #[must_use]
    pub fn granted(&self) -> OffloadSwitches {
        self.granted
    }

    /// Whether TCP frames on their way into the tap are written as super-frames.
    #[must_use]
    pub fn coalescing_tcp(&self) -> bool {
        self.tcp.is_on()
    }

    /// Whether UDP frames on their way into the tap are written as super-frames.
    #[must_use]
    pub fn coalescing_udp(&self) -> bool {
        self.udp.is_on()
    }

    pub(super) fn coalesces(&self, kind: SegmentKind) -> bool {
        self.of(kind).is_on()
    }

    /// Super-frames of TCP and of UDP that the kernel refused.
    #[must_use]
    pub fn refusals(&self) -> [u32; 2] {
        [&self.tcp, &self.udp].map(|kind| kind.refusals.load(Ordering::Relaxed))
    }

    /// Notes that the kernel refused a super-frame; says whether that was the last one written.
    pub(super) fn refused(&self, kind: SegmentKind) -> bool {
        self.of(kind).refused()
    }

    fn of(&self, kind: SegmentKind) -> &Coalescing {
        match kind {
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => &self.tcp,
            SegmentKind::Udp => &self.udp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn third_refusal_switches_one_protocol_off_once() {
        let offload = TapOffload::new(OffloadSwitches::ALL);
        let told: Vec<_> = (0..5).map(|_| offload.refused(SegmentKind::Tcp6)).collect();
        assert_eq!(told, [false, false, true, false, false]);
        assert!(!offload.coalescing_tcp() && offload.coalescing_udp());
        assert_eq!(offload.granted(), OffloadSwitches::ALL);
        assert_eq!(offload.refusals(), [5, 0]);
    }

    #[test]
    fn super_frames_need_partial_checksums() {
        let lacking = OffloadSwitches { checksum: false, ..OffloadSwitches::ALL };
        assert_eq!(lacking.consistent(), OffloadSwitches::NONE);
        assert_eq!(OffloadSwitches::ALL.consistent(), OffloadSwitches::ALL);
    }
}
