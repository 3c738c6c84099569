//! tapd's channels, and TCP through its tap on the same wire.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use super::programs::{Program, Scratch};
use super::{MESSAGE, What, of_flood, of_ping};
use crate::cluster::{Duo, overlay_v4};
use crate::command::built_binary;
use crate::config::{ClusterConfig, NetworkEntry};
use crate::node::Node;
use crate::topology::{Family, Pair};

/// The channels of both nodes.
const CHANNELS: &str = "
[[channels]]
name = \"datagrams\"
mode = \"datagram\"

[[channels]]
name = \"streams\"
mode = \"stream\"
";

/// Two nodes with channels and a tap.
#[derive(Debug)]
pub(super) struct Nodes {
    duo: Duo,
    vni: u8,
    port: u16,
    scratch: Scratch,
}

impl Nodes {
    /// Starts them, sealed with AES-256-GCM or in clear.
    ///
    /// # Errors
    /// tapd does not work here.
    pub(super) fn start(pair: &Pair, sealed: bool) -> Result<Self> {
        let vni = if sealed { 100 } else { 101 };
        let network = NetworkEntry {
            subnets: vec![format!("10.{vni}.0.0/24")],
            ..NetworkEntry::new(vni.into())
        };
        let mut config = ClusterConfig::new(Family::V4, 2);
        if !sealed {
            config = config.in_clear();
        }
        config.port = 20_000 + u16::from(vni) * 10;
        config.networks = vec![network];
        config.sections = CHANNELS.to_owned();
        let duo = Duo::with(pair.clone(), &config)?;
        Ok(Self { duo, vni, port: config.port, scratch: Scratch::new()? })
    }

    /// Where TCP through the tap goes.
    pub(super) fn overlay(&self) -> IpAddr {
        overlay_v4(self.vni, 2)
    }

    /// UDP port of both.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// A `channel-traffic` under way at a node's channel.
    fn traffic(&self, node: &Node, work: &str, channel: &str, more: &[String]) -> Result<Program> {
        let mut command = node.netns().command(built_binary("channel-traffic")?);
        command.arg(work).arg(node.channel(channel)).args(more);
        Program::start(&self.scratch, work, &mut command)
    }

    /// Round trips, then a flood one way.
    ///
    /// # Errors
    /// Nothing gets across.
    pub(super) fn messages(&self, span: Duration) -> Result<Vec<(What, f64)>> {
        let (seconds, size) =
            (format!("--seconds={}", span.as_secs_f64()), format!("--size={MESSAGE}"));
        let options = [size, seconds];
        let Duo { alpha, beta, .. } = &self.duo;
        let mut echo = self.traffic(beta, "echo", "datagrams", &[])?;
        echo.wait_up()?;
        let ping = self.traffic(alpha, "ping", "datagrams", &options)?;
        let mut values = of_ping(&ping.finish(span)?)?;
        drop(echo);
        let mut sink = self.traffic(beta, "sink", "datagrams", &[])?;
        sink.wait_up()?;
        let flood = self.traffic(alpha, "flood", "datagrams", &options)?;
        let sent = flood.finish(span)?;
        values.extend(of_flood(&sent, &sink.finish(span)?)?);
        Ok(values)
    }

    /// Starts a stream from the first host to the second that goes on for `span`.
    ///
    /// # Errors
    /// The programs cannot be run.
    pub(super) fn stream(&self, span: Duration) -> Result<[Program; 2]> {
        let seconds = format!("--seconds={}", span.as_secs_f64());
        let mut sink = self.traffic(&self.duo.beta, "stream-sink", "streams", &[])?;
        sink.wait_up()?;
        Ok([self.traffic(&self.duo.alpha, "stream-source", "streams", &[seconds])?, sink])
    }
}
