//! Counters: documented u64s, one set per worker, one writer each.
//!
//! Every packet that is not delivered is counted under exactly one [`DropReason`].

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writing thread; anyone may read it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only by the owning thread, which makes a plain load and store enough.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was not delivered. The documentation is the help text of the counter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The counter's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What the counter counts, in a sentence.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

drop_reasons! {
    /// Frame from a tap that ends inside its Ethernet header.
    FrameTruncated = "frame_truncated",
    /// Frame whose source address is a group address or zero.
    FrameBadSource = "frame_bad_source",
    /// Frame to a link-constrained group address (pause, LACP, LLDP, or STP where it is off).
    FrameLinkLocal = "frame_link_local",
    /// Frame that does not fit into the fragments that one frame may have.
    FrameTooLarge = "frame_too_large",
    /// Frame to an address that is known to be behind the port that it came from.
    FrameLocalDestination = "frame_local_destination",
    /// Broadcast, unknown or multicast frame above the policer's rate.
    FramePoliced = "frame_policed",
    /// Frame with a partial checksum whose offsets do not fit its headers.
    FrameBadChecksumOffset = "frame_bad_checksum_offset",
    /// Super-frame that cannot be cut: its headers and what was said of it do not agree.
    FrameBadSegmentation = "frame_bad_segmentation",
    /// Frame of a network with no other member to send it to.
    FrameNoMember = "frame_no_member",
    /// Frame for a peer without an established session.
    PeerNoSession = "peer_no_session",
    /// Frame for a peer none of whose addresses is known (yet).
    PeerNoPath = "peer_no_path",
    /// Frame of a network whose tap is part of a loop, which was broken here.
    NetworkLooped = "network_looped",
    /// Channel packet or unreliable message that does not parse.
    ChannelInvalid = "channel_invalid",
    /// Channel packet or unreliable message of a process or a channel that is over.
    ChannelStale = "channel_stale",
    /// Channel packet or unreliable message that was here before.
    ChannelDuplicate = "channel_duplicate",
    /// Channel packet or unreliable message that no node sends that keeps to the rules.
    ChannelFault = "channel_fault",
    /// Channel packet or unreliable message for which there was no room; the former comes again.
    ChannelNoRoom = "channel_no_room",
    /// Channel packet or unreliable message that the worker which serves channels was too slow to
    /// take over from another one; the former comes again.
    ChannelQueueFull = "channel_queue_full",
    /// Frame that the key in force may not seal any more; a new epoch or handshake is due.
    KeyExhausted = "key_exhausted",
    /// Frame of a network that this node does not have (any more).
    NetworkUnknown = "network_unknown",
    /// Datagram shorter than its headers and tag.
    DatagramTruncated = "datagram_truncated",
    /// Datagram with the reserved first bits 11.
    FormatReserved = "format_reserved",
    /// Clear-mode datagram for a protected session, or the reverse.
    FormatMismatch = "format_mismatch",
    /// Datagram for a session index that is not in use.
    SlotUnknown = "slot_unknown",
    /// Datagram for a session from an address that is not one of its peer's.
    SourceUnknown = "source_unknown",
    /// Datagram of an epoch that is neither previous, current nor next.
    EpochUnknown = "epoch_unknown",
    /// Datagram of a number that was accepted before: a replay or a redundant copy.
    ReplayDuplicate = "replay_duplicate",
    /// Datagram of a number below the replay window.
    ReplayTooOld = "replay_too_old",
    /// First datagram of a lane while too many forged ones came in this second.
    LaneUnproven = "lane_unproven",
    /// Datagram that failed authentication: forged, damaged, or for other keys.
    OpenFailed = "open_failed",
    /// Authentic datagram of a kind that this version does not know.
    KindUnknown = "kind_unknown",
    /// Authentic fragment that contradicts its frame, or a frame in it that cannot be in fragments.
    FragmentInvalid = "fragment_invalid",
    /// Fragment that came already.
    FragmentDuplicate = "fragment_duplicate",
    /// Incomplete frame that gave way to a newer one: too many at once, or too much memory.
    FragmentDisplaced = "fragment_displaced",
    /// Incomplete frame whose missing fragments did not come in time.
    FragmentExpired = "fragment_expired",
    /// Authentic bundle of frames that does not parse; nothing of it was used.
    BundleInvalid = "bundle_invalid",
    /// Authentic compressed payload that no sender makes, or that does not decompress.
    CompressionInvalid = "compression_invalid",
    /// Authentic frame from a path that was congested, of a packet that may not be marked (RFC 6040).
    InnerEcnInvalid = "inner_ecn_invalid",
    /// Authentic frame with a handle that names no network here.
    HandleUnknown = "handle_unknown",
    /// Authentic frame from a node that is not a member of the network.
    NetworkNotMember = "network_not_member",
    /// Authentic frame that is no Ethernet frame or has a bad source address.
    InnerFrameInvalid = "inner_frame_invalid",
    /// Authentic frame to a link-constrained group address.
    InnerFrameLinkLocal = "inner_frame_link_local",
    /// Authentic frame with a partial checksum that cannot be completed.
    InnerBadChecksum = "inner_bad_checksum",
    /// Handshake or control message while the queue to the control thread was full.
    ControlQueueFull = "control_queue_full",
    /// Authentic control message that does not parse.
    ControlInvalid = "control_invalid",
    /// Long header of a type that this version does not know (first byte 0x20 to 0x3f).
    LongTypeUnknown = "long_type_unknown",
    /// Datagram that begins as a long header and is no tapd message at all.
    LongInvalid = "long_invalid",
    /// Long header of another protocol version.
    LongVersionUnknown = "long_version_unknown",
    /// Handshake under a cluster key that this node does not have.
    HandshakeKeyUnknown = "handshake_key_unknown",
    /// Handshake message whose outer MAC is wrong.
    HandshakeBadMac = "handshake_bad_mac",
    /// Initiation that was answered with a cookie instead, or not at all, above the rate limit.
    HandshakeRateLimited = "handshake_rate_limited",
    /// Handshake message that fails authentication or does not parse inside.
    HandshakeInvalid = "handshake_invalid",
    /// Initiation that an earlier one of the same node outdates: a replay.
    HandshakeReplayed = "handshake_replayed",
    /// Own initiation that came back.
    HandshakeReflected = "handshake_reflected",
    /// Initiation that is for another node, or from a node that is not in the configuration.
    HandshakeWrongNode = "handshake_wrong_node",
    /// Initiation from an address that is not one of the node's.
    HandshakeSourceUnknown = "handshake_source_unknown",
    /// Initiation while too many of the same peer wait for their confirmation.
    HandshakeBusy = "handshake_busy",
    /// Response or cookie that answers nothing outstanding, or initiation whose session is in
    /// force already.
    HandshakeStale = "handshake_stale",
    /// Initiation without a common cipher suite.
    HandshakeNoSuite = "handshake_no_suite",
}

/// Number of drop reasons.
pub const DROP_REASONS: usize = DropReason::ALL.len();

/// Counters of one thread.
#[derive(Debug)]
pub struct Counters {
    drops: [Counter; DROP_REASONS],
    /// Frames read from taps.
    pub frames_in: Counter,
    /// Bytes of frames read from taps.
    pub frame_bytes_in: Counter,
    /// Super-frames among them.
    pub super_frames_in: Counter,
    /// Segments made of super-frames, for every member that they go to.
    pub segments_out: Counter,
    /// Frames opened for taps.
    pub frames_out: Counter,
    /// Bytes of frames opened for taps.
    pub frame_bytes_out: Counter,
    /// Datagrams received.
    pub datagrams_in: Counter,
    /// Bytes of UDP payload received.
    pub datagram_bytes_in: Counter,
    /// Datagrams made for uplinks.
    pub datagrams_out: Counter,
    /// Bytes of UDP payload made for uplinks.
    pub datagram_bytes_out: Counter,
    /// Frames sent to every member because their destination was a group or unknown.
    pub floods: Counter,
    /// Frames from one local port for a station behind another one: they stay on this node.
    pub frames_local: Counter,
    /// Authentic control messages handed to the control thread.
    pub control_in: Counter,
    /// Authentic path-MTU probes.
    pub probes_in: Counter,
    /// Frames sent in fragments.
    pub frames_fragmented: Counter,
    /// Fragments made.
    pub fragments_out: Counter,
    /// Authentic fragments received.
    pub fragments_in: Counter,
    /// Datagrams sent with several frames.
    pub bundles_out: Counter,
    /// Frames in these.
    pub bundled_frames_out: Counter,
    /// Datagrams received with several frames.
    pub bundles_in: Counter,
    /// Frames in these.
    pub bundled_frames_in: Counter,
    /// Frames put together from fragments.
    pub frames_reassembled: Counter,
    /// Datagrams sent again on another link.
    pub resent: Counter,
    /// Datagrams that fell out of a resend ring before their time, it being full.
    pub resend_overruns: Counter,
    /// Connections whose maximum segment size was lowered.
    pub mss_clamped: Counter,
    /// ICMP messages to senders of packets larger than the path.
    pub too_big_sent: Counter,
    /// Channel packets and unreliable messages received.
    pub channel_packets_in: Counter,
    /// Channel packets and unreliable messages made.
    pub channel_packets_out: Counter,
    /// Frames that were marked as having met congestion (RFC 6040).
    pub ecn_marked: Counter,
    /// Payloads sent compressed.
    pub compressed: Counter,
    /// Bytes of these payloads before.
    pub compress_bytes_in: Counter,
    /// Bytes of these payloads after.
    pub compress_bytes_out: Counter,
    /// Payloads that were tried and did not become shorter.
    pub compress_misses: Counter,
    /// Payloads that were not tried, for others of their flow did not become shorter.
    pub compress_skipped: Counter,
    /// Payloads decompressed.
    pub decompressed: Counter,
    /// Bytes of these payloads as they came.
    pub decompress_bytes_in: Counter,
    /// Bytes of these payloads decompressed.
    pub decompress_bytes_out: Counter,
    /// Learning refused: table full, address frozen or static.
    pub learn_refused: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            drops: std::array::from_fn(|_| Counter::default()),
            frames_in: Counter::default(),
            frame_bytes_in: Counter::default(),
            super_frames_in: Counter::default(),
            segments_out: Counter::default(),
            frames_out: Counter::default(),
            frame_bytes_out: Counter::default(),
            datagrams_in: Counter::default(),
            datagram_bytes_in: Counter::default(),
            datagrams_out: Counter::default(),
            datagram_bytes_out: Counter::default(),
            floods: Counter::default(),
            frames_local: Counter::default(),
            control_in: Counter::default(),
            probes_in: Counter::default(),
            frames_fragmented: Counter::default(),
            fragments_out: Counter::default(),
            fragments_in: Counter::default(),
            bundles_out: Counter::default(),
            bundled_frames_out: Counter::default(),
            bundles_in: Counter::default(),
            bundled_frames_in: Counter::default(),
            frames_reassembled: Counter::default(),
            resent: Counter::default(),
            resend_overruns: Counter::default(),
            mss_clamped: Counter::default(),
            too_big_sent: Counter::default(),
            channel_packets_in: Counter::default(),
            channel_packets_out: Counter::default(),
            ecn_marked: Counter::default(),
            compressed: Counter::default(),
            compress_bytes_in: Counter::default(),
            compress_bytes_out: Counter::default(),
            compress_misses: Counter::default(),
            compress_skipped: Counter::default(),
            decompressed: Counter::default(),
            decompress_bytes_in: Counter::default(),
            decompress_bytes_out: Counter::default(),
            learn_refused: Counter::default(),
        }
    }
}

impl Counters {
    /// Counts one packet as dropped.
    pub fn count_drop(&self, reason: DropReason) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(1);
        }
    }

    /// Counts several packets as dropped.
    pub fn count_drops(&self, reason: DropReason, count: u64) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.add(count);
        }
    }

    /// Packets dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, Counter::get)
    }

    /// The counters that are no drops: name, help, value.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        [
            ("frames_in", "frames read from taps", &self.frames_in),
            ("frame_bytes_in", "bytes of frames read from taps", &self.frame_bytes_in),
            ("super_frames_in", "super-frames among these", &self.super_frames_in),
            ("segments_out", "segments made of super-frames, for every member", &self.segments_out),
            ("frames_out", "frames opened for taps", &self.frames_out),
            ("frame_bytes_out", "bytes of frames opened for taps", &self.frame_bytes_out),
            ("datagrams_in", "datagrams received", &self.datagrams_in),
            ("datagram_bytes_in", "bytes of UDP payload received", &self.datagram_bytes_in),
            ("datagrams_out", "datagrams made", &self.datagrams_out),
            ("datagram_bytes_out", "bytes of UDP payload made", &self.datagram_bytes_out),
            ("floods", "frames sent to every member", &self.floods),
            ("frames_local", "frames from one local port for another", &self.frames_local),
            ("control_in", "authentic control messages received", &self.control_in),
            ("probes_in", "authentic path-MTU probes received", &self.probes_in),
            ("frames_fragmented", "frames sent in fragments", &self.frames_fragmented),
            ("fragments_out", "fragments made", &self.fragments_out),
            ("fragments_in", "authentic fragments received", &self.fragments_in),
            ("bundles_out", "datagrams sent with several frames", &self.bundles_out),
            ("bundled_frames_out", "frames in these", &self.bundled_frames_out),
            ("bundles_in", "datagrams received with several frames", &self.bundles_in),
            ("bundled_frames_in", "frames in these", &self.bundled_frames_in),
            ("frames_reassembled", "frames put together", &self.frames_reassembled),
            ("resent", "datagrams sent again on another link", &self.resent),
            ("resend_overruns", "datagrams that a full resend ring lost", &self.resend_overruns),
            ("mss_clamped", "connections whose segment size was lowered", &self.mss_clamped),
            ("too_big_sent", "ICMP messages about too large packets", &self.too_big_sent),
            (
                "channel_packets_in",
                "channel packets and messages received",
                &self.channel_packets_in,
            ),
            ("channel_packets_out", "channel packets and messages made", &self.channel_packets_out),
            ("ecn_marked", "frames marked as having met congestion", &self.ecn_marked),
            ("compressed", "payloads sent compressed", &self.compressed),
            ("compress_bytes_in", "bytes of these before", &self.compress_bytes_in),
            ("compress_bytes_out", "bytes of these after", &self.compress_bytes_out),
            ("compress_misses", "payloads that did not become shorter", &self.compress_misses),
            ("compress_skipped", "payloads of flows that did not", &self.compress_skipped),
            ("decompressed", "payloads decompressed", &self.decompressed),
            ("decompress_bytes_in", "bytes of these as they came", &self.decompress_bytes_in),
            ("decompress_bytes_out", "bytes of these decompressed", &self.decompress_bytes_out),
            ("learn_refused", "source addresses not learnt", &self.learn_refused),
        ]
        .into_iter()
        .map(|(name, help, counter)| (name, help, counter.get()))
    }
}

/// Traffic with one peer or of one network as one worker saw it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Traffic {
    /// Frames sent.
    pub tx_frames: Counter,
    /// Bytes of frames sent.
    pub tx_bytes: Counter,
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes of frames received.
    pub rx_bytes: Counter,
}

impl Traffic {
    pub(crate) fn sent(&self, bytes: usize) {
        self.tx_frames.add(1);
        self.tx_bytes.add(bytes as u64);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.rx_frames.add(1);
        self.rx_bytes.add(bytes as u64);
    }
}

/// One link to a peer as one thread saw it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct LinkMeter {
    /// When anything authentic came last, in microseconds of [`crate::tables::Clock`]; 0 for never.
    pub heard_us: AtomicU64,
    /// Authentic datagrams received.
    pub rx_datagrams: Counter,
    /// Bytes of their UDP payload.
    pub rx_bytes: Counter,
    /// Datagrams sent.
    pub tx_datagrams: Counter,
    /// Bytes of their UDP payload.
    pub tx_bytes: Counter,
    /// Datagrams sent that were larger than what every path takes.
    pub tx_large: Counter,
    /// Datagrams received whose number had come before: copies on another link, or replays. Not
    /// authenticated: a hint.
    pub copies: Counter,
    /// Datagrams sent again here when another link failed.
    pub resent: Counter,
}

impl LinkMeter {
    pub(crate) fn received(&self, now_us: u64, bytes: usize) {
        self.heard_us.store(now_us.max(1), Ordering::Relaxed);
        self.rx_datagrams.add(1);
        self.rx_bytes.add(bytes as u64);
    }

    pub(crate) fn sent(&self, bytes: usize, large: bool) {
        self.tx_datagrams.add(1);
        self.tx_bytes.add(bytes as u64);
        if large {
            self.tx_large.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_snake_case_with_help() {
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DROP_REASONS);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert!(reason.help().len() > 10 && !reason.help().starts_with(' '));
        }
    }
}
