//! What is measured, in which unit, and which way is better.

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// TCP payload, one stream, at the receiver.
    Tcp1Gbps,
    /// TCP payload, four streams together.
    Tcp4Gbps,
    /// Busy seconds of the whole machine, both ends and the programs that make the load, for
    /// 10^9 bytes of TCP payload.
    Tcp1CpuSecondsPerGb,
    /// The same with four streams.
    Tcp4CpuSecondsPerGb,
    /// Datagrams of 64 bytes per second with at most 0.1 % lost.
    Udp64Kfps,
    /// Busy seconds of the whole machine for a million datagrams of 64 bytes that arrived, a
    /// little below that rate.
    Udp64CpuSecondsPerMframe,
    /// Datagrams of 64 bytes in four flows per second with at most 0.1 % lost.
    Udp64x4Kfps,
    /// Datagrams of 1400 bytes per second with at most 0.1 % lost.
    Udp1400Kfps,
    /// Median round trip of one datagram at a time.
    PingpongP50,
    /// 99th percentile of the same.
    PingpongP99,
    /// 99.9th percentile of the same.
    PingpongP999,
    /// Median round trip while a TCP stream takes all it gets.
    PingloadP50,
    /// 99th percentile of the same.
    PingloadP99,
    /// Payload per second of a part.
    PartGbps,
    /// CPU seconds of a part for 10^9 bytes of payload.
    PartCpuSecondsPerGb,
    /// CPU time of a node with two peers and no traffic, in percent of a core.
    IdlePercent,
}

impl Metric {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 16] = [
        Self::Tcp1Gbps,
        Self::Tcp4Gbps,
        Self::Tcp1CpuSecondsPerGb,
        Self::Tcp4CpuSecondsPerGb,
        Self::Udp64Kfps,
        Self::Udp64CpuSecondsPerMframe,
        Self::Udp64x4Kfps,
        Self::Udp1400Kfps,
        Self::PingpongP50,
        Self::PingpongP99,
        Self::PingpongP999,
        Self::PingloadP50,
        Self::PingloadP99,
        Self::PartGbps,
        Self::PartCpuSecondsPerGb,
        Self::IdlePercent,
    ];

    /// As in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1Gbps => "tcp1_gbps",
            Self::Tcp4Gbps => "tcp4_gbps",
            Self::Tcp1CpuSecondsPerGb => "tcp1_cpu_s_per_gb",
            Self::Tcp4CpuSecondsPerGb => "tcp4_cpu_s_per_gb",
            Self::Udp64Kfps => "udp64_kfps",
            Self::Udp64CpuSecondsPerMframe => "udp64_cpu_s_per_mframe",
            Self::Udp64x4Kfps => "udp64x4_kfps",
            Self::Udp1400Kfps => "udp1400_kfps",
            Self::PingpongP50 => "pingpong_p50_us",
            Self::PingpongP99 => "pingpong_p99_us",
            Self::PingpongP999 => "pingpong_p999_us",
            Self::PingloadP50 => "pingload_p50_us",
            Self::PingloadP99 => "pingload_p99_us",
            Self::PartGbps => "gbps",
            Self::PartCpuSecondsPerGb => "cpu_s_per_gb",
            Self::IdlePercent => "idle_cpu_percent",
        }
    }

    /// The unit of its values.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Tcp1Gbps | Self::Tcp4Gbps | Self::PartGbps => "Gbit/s",
            Self::Tcp1CpuSecondsPerGb | Self::Tcp4CpuSecondsPerGb | Self::PartCpuSecondsPerGb => {
                "s/GB"
            }
            Self::Udp64Kfps | Self::Udp64x4Kfps | Self::Udp1400Kfps => "kframes/s",
            Self::Udp64CpuSecondsPerMframe => "s/Mframe",
            Self::PingpongP50
            | Self::PingpongP99
            | Self::PingpongP999
            | Self::PingloadP50
            | Self::PingloadP99 => "us",
            Self::IdlePercent => "% of a core",
        }
    }
}
