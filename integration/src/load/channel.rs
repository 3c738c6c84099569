//! Programs on channels: round trips, floods and streams, as `channel-traffic` runs them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fastpath::channel::client::{Channel, Event, Message, SendOptions, Stream, StreamChannel, To};
use serde::Serialize;

use super::pingpong::{RoundTrips, summarize};

/// How long the peer is waited for.
const PEER_PATIENCE: Duration = Duration::from_secs(10);
/// How long the first message or byte of a flood is waited for.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);
/// An answer that takes longer counts as lost, and a flood without a message for so long is over.
const PATIENCE: Duration = Duration::from_millis(300);
/// Round trips before the measured ones.
const WARM_UP: u64 = 50;
/// Bytes of one write to a stream, and of one read.
const CHUNK: usize = 256 << 10;

/// Messages of a flood.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Flood {
    /// Sent, or received.
    pub count: u64,
    /// From the first to the last of them.
    pub seconds: f64,
}

/// Bytes of a stream.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bytes {
    /// Sent, or received.
    pub bytes: u64,
    /// From the first to the end.
    pub seconds: f64,
}

/// The next message, `None` when none came in time. What else is told on the way is passed over.
fn next_message(channel: &mut Channel) -> Result<Option<Message>> {
    loop {
        match channel.recv() {
            Ok(Event::Message(message)) => return Ok(Some(message)),
            Ok(Event::Error(refusal)) => return Err(refusal.into()),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(e) => return Err(e).context("receiving"),
        }
    }
}

/// Waits until some peer can be reached.
fn wait_peer(channel: &mut Channel) -> Result<()> {
    channel.set_read_timeout(Some(PEER_PATIENCE))?;
    loop {
        match channel.recv().context("no peer can be reached")? {
            Event::PeerUp(..) => return Ok(()),
            Event::Error(refusal) => return Err(refusal.into()),
            _ => {}
        }
    }
}

/// Sends back every message to who sent it, until it is ended.
///
/// # Errors
/// tapd refuses or hangs up.
pub fn echo(path: &Path) -> Result<()> {
    let mut channel = Channel::connect(path, true)?;
    up();
    loop {
        if let Some(message) = next_message(&mut channel)? {
            channel.send(To::One(message.from), SendOptions::default(), &message.bytes)?;
        }
    }
}

/// Sends messages of `size` bytes (8 and up) to all peers, one at a time, for `span`, and waits for
/// the echo of each.
///
/// # Errors
/// tapd refuses or hangs up, or nothing came back.
pub fn ping(path: &Path, size: usize, span: Duration) -> Result<RoundTrips> {
    ensure!(size >= 8, "a message has at least 8 bytes");
    let mut channel = Channel::connect(path, true)?;
    wait_peer(&mut channel)?;
    channel.set_read_timeout(Some(PATIENCE))?;
    let mut message = vec![0; size];
    let (mut micros, mut lost) = (Vec::new(), 0);
    let mut start = Instant::now();
    for number in 0u64.. {
        if number == WARM_UP {
            start = Instant::now();
            micros.clear();
            lost = 0;
        }
        if number >= WARM_UP && start.elapsed() >= span {
            break;
        }
        message[..8].copy_from_slice(&number.to_le_bytes());
        let sent = Instant::now();
        channel.send(To::All, SendOptions::default(), &message)?;
        // A late answer to an earlier number is not this one's.
        let answered = loop {
            match next_message(&mut channel)? {
                Some(answer) if answer.bytes.starts_with(&number.to_le_bytes()) => break true,
                Some(_) => {}
                None => break false,
            }
        };
        if answered {
            micros.push(sent.elapsed().as_secs_f64() * 1e6);
        } else {
            lost += 1;
        }
    }
    summarize(micros, lost)
}

/// Sends messages of `size` bytes to all peers as fast as tapd takes them, for `span`.
///
/// # Errors
/// tapd refuses or hangs up.
pub fn flood(path: &Path, size: usize, span: Duration) -> Result<Flood> {
    let mut channel = Channel::connect(path, false)?;
    wait_peer(&mut channel)?;
    let message = vec![0; size];
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < span {
        channel.send(To::All, SendOptions::default(), &message)?;
        count += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    channel.finish()?;
    // tapd says when it has taken all of it.
    channel.set_read_timeout(Some(PEER_PATIENCE))?;
    while !matches!(channel.recv()?, Event::Closed(_)) {}
    Ok(Flood { count, seconds })
}

/// Counts messages until none came for a while.
///
/// # Errors
/// tapd refuses or hangs up, or nothing came at all.
pub fn sink(path: &Path) -> Result<Flood> {
    let mut channel = Channel::connect(path, true)?;
    channel.set_read_timeout(Some(FIRST_PATIENCE))?;
    up();
    next_message(&mut channel)?.context("no message came")?;
    channel.set_read_timeout(Some(PATIENCE))?;
    let first = Instant::now();
    let (mut count, mut last) = (1, first);
    while next_message(&mut channel)?.is_some() {
        count += 1;
        last = Instant::now();
    }
    Ok(Flood { count, seconds: (last - first).as_secs_f64() })
}

/// Opens a stream to the first peer that can be reached and sends for `span`.
///
/// # Errors
/// There is no stream to be had, or it is reset.
pub fn stream_source(path: &Path, span: Duration) -> Result<Bytes> {
    let mut channel = StreamChannel::connect(path)?;
    channel.set_read_timeout(Some(PEER_PATIENCE))?;
    let peer = loop {
        match channel.recv().context("no peer can be reached")? {
            Event::PeerUp(peer, _) => break peer,
            Event::Error(refusal) => return Err(refusal.into()),
            _ => {}
        }
    };
    let mut stream = channel.open(peer)?;
    let sent = write_for(&mut stream, span)?;
    stream.shutdown()?;
    // To the peer's end, which says that it has read all.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(sent)
}

/// Accepts a stream and reads to its end.
///
/// # Errors
/// There is none, or it is reset.
pub fn stream_sink(path: &Path) -> Result<Bytes> {
    let channel = StreamChannel::connect(path)?;
    up();
    let mut stream: Stream = channel.accept()?;
    let got = read_all(&mut stream)?;
    stream.shutdown()?;
    stream.wait_closed()?;
    Ok(got)
}

/// The same as [`stream_source`] on a TCP flow with CUBIC.
///
/// # Errors
/// Nobody listens there, or the flow breaks.
pub fn tcp_source(address: SocketAddr, span: Duration) -> Result<Bytes> {
    let mut stream = TcpStream::connect(address)?;
    socket2::SockRef::from(&stream).set_tcp_congestion(b"cubic").context("no CUBIC here")?;
    let sent = write_for(&mut stream, span)?;
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(sent)
}

/// The same as [`stream_sink`] on a TCP flow.
///
/// # Errors
/// The address is taken, or the flow breaks.
pub fn tcp_sink(address: SocketAddr) -> Result<Bytes> {
    let listener = TcpListener::bind(address)?;
    up();
    let (mut stream, _) = listener.accept()?;
    read_all(&mut stream)
}

fn write_for(stream: &mut impl Write, span: Duration) -> Result<Bytes> {
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < span {
        stream.write_all(&chunk)?;
        bytes += CHUNK as u64;
    }
    stream.flush()?;
    Ok(Bytes { bytes, seconds: start.elapsed().as_secs_f64() })
}

fn read_all(stream: &mut impl Read) -> Result<Bytes> {
    let mut chunk = vec![0; CHUNK];
    let (mut bytes, mut first) = (0, None);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => {
                first.get_or_insert_with(Instant::now);
                bytes += got as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("reading"),
        }
    }
    let Some(first) = first else { bail!("nothing came") };
    Ok(Bytes { bytes, seconds: first.elapsed().as_secs_f64() })
}

/// Says that the program is ready for its peer.
fn up() {
    println!("up");
}
