//! What there is to tell of the sockets of channels.

use encap::channel::hub::ChannelKey;
use encap::wire::channel::Mode;

/// What happened at a channel's socket since it was added. A record is one with its header, also
/// where a raw descriptor spares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketCounters {
    /// Records that programs sent.
    pub records_in: u64,
    /// Records that programs were sent.
    pub records_out: u64,
    /// Times that a program was not read as the hub had no room for its message or bytes.
    pub held_back: u64,
    /// Unreliable messages dropped as no program receives.
    pub dropped_no_receiver: u64,
    /// Unreliable messages dropped as the program that receives did not read.
    pub dropped_slow_receiver: u64,
    /// Messages to all that can be reached while nobody could be.
    pub dropped_nobody_reachable: u64,
    /// Packets dropped as they were longer than a raw descriptor takes or may bring.
    pub dropped_raw_too_long: u64,
    /// Empty messages that a raw descriptor was not given as they would look like its end.
    pub dropped_raw_empty: u64,
    /// Packets that a raw descriptor refused otherwise, or lost as it says.
    pub dropped_raw_failed: u64,
    /// Messages whose last pieces never came, as the program went or its connection ended.
    pub cut_short: u64,
    /// Messages of a program that still waited when its connection was ended for a fault.
    pub abandoned: u64,
    /// Streams that were reset as their program went.
    pub streams_reset: u64,
    /// Connections that were refused: too many, or a second program that receives.
    pub refused_connections: u64,
    /// Connections that were ended for what the program sent.
    pub protocol_errors: u64,
    /// Warnings of how the channel does not fit a peer's that were not logged, as the log had the
    /// same of that peer within the last minute.
    pub warnings_held_back: u64,
    /// Times that no connection could be accepted for lack of descriptors or memory.
    pub accept_failures: u64,
}

impl SocketCounters {
    /// Every counter with its name, in the order of declaration.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("records_in", self.records_in),
            ("records_out", self.records_out),
            ("held_back", self.held_back),
            ("dropped_no_receiver", self.dropped_no_receiver),
            ("dropped_slow_receiver", self.dropped_slow_receiver),
            ("dropped_nobody_reachable", self.dropped_nobody_reachable),
            ("dropped_raw_too_long", self.dropped_raw_too_long),
            ("dropped_raw_empty", self.dropped_raw_empty),
            ("dropped_raw_failed", self.dropped_raw_failed),
            ("cut_short", self.cut_short),
            ("abandoned", self.abandoned),
            ("streams_reset", self.streams_reset),
            ("refused_connections", self.refused_connections),
            ("protocol_errors", self.protocol_errors),
            ("warnings_held_back", self.warnings_held_back),
            ("accept_failures", self.accept_failures),
        ]
        .into_iter()
    }
}

/// How it stands with a channel's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketReport {
    /// Which channel.
    pub key: ChannelKey,
    /// Its name.
    pub name: String,
    /// What it carries.
    pub mode: Mode,
    /// Programs that are attached.
    pub programs: usize,
    /// Whether one of them gets the messages.
    pub receiving: bool,
    /// What happened.
    pub counters: SocketCounters,
}
