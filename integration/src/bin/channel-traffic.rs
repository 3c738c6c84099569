//! `channel-traffic`: messages and streams through the channels of a tapd that runs; prints JSON.
//!
//! Two of them belong together, one at each node: `echo` and `ping`, `sink` and `flood`,
//! `stream-sink` and `stream-source`. The first of each says `up` when it is ready. The same over
//! TCP is for comparison.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use integration::load::channel;

/// Messages and streams through tapd's channels; prints JSON
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Send one message at a time to all peers and wait for its echo
    Ping {
        /// The channel's socket
        socket: PathBuf,
        /// Bytes of a message
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How long to measure
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Send back every message, until ended
    Echo {
        /// The channel's socket
        socket: PathBuf,
    },
    /// Send messages to all peers as fast as tapd takes them
    Flood {
        /// The channel's socket
        socket: PathBuf,
        /// Bytes of a message
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// How long to send
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Count messages until none came for a while
    Sink {
        /// The channel's socket
        socket: PathBuf,
    },
    /// Open a stream to a peer and send
    StreamSource {
        /// The channel's socket
        socket: PathBuf,
        /// How long to send
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Accept a stream and read to its end
    StreamSink {
        /// The channel's socket
        socket: PathBuf,
    },
    /// Connect to a TCP sink and send
    TcpSource {
        /// Where the sink listens
        address: SocketAddr,
        /// How long to send
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Accept a TCP flow and read to its end
    TcpSink {
        /// Where to listen
        address: SocketAddr,
    },
}

fn main() -> Result<()> {
    let span = Duration::from_secs_f64;
    let json = match Cli::parse().work {
        Work::Ping { socket, size, seconds } => {
            serde_json::to_string(&channel::ping(&socket, size, span(seconds))?)?
        }
        Work::Echo { socket } => return channel::echo(&socket),
        Work::Flood { socket, size, seconds } => {
            serde_json::to_string(&channel::flood(&socket, size, span(seconds))?)?
        }
        Work::Sink { socket } => serde_json::to_string(&channel::sink(&socket)?)?,
        Work::StreamSource { socket, seconds } => {
            serde_json::to_string(&channel::stream_source(&socket, span(seconds))?)?
        }
        Work::StreamSink { socket } => serde_json::to_string(&channel::stream_sink(&socket)?)?,
        Work::TcpSource { address, seconds } => {
            serde_json::to_string(&channel::tcp_source(address, span(seconds))?)?
        }
        Work::TcpSink { address } => serde_json::to_string(&channel::tcp_sink(address)?)?,
    };
    println!("{json}");
    Ok(())
}
