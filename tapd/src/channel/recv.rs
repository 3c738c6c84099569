//! `tapd recv`: prints messages, or a stream.

use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::anyhow;
use fastpath::channel::client::{Channel, Event, Message, StreamChannel};
use fastpath::wake::PollSet;

use super::send::receive;
use super::{CHUNK_LEN, Connected, Peers, Target, broken, refused, say};
use crate::cli::RecvArgs;
use crate::exit::{Exit, Failure};

/// How long is waited for a message before it is looked again: it only bounds a wait.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Prints what comes on standard output.
pub(crate) fn run(args: &RecvArgs) -> Result<(), Failure> {
    let form = Form::new(args);
    match Target::new(&args.channel)?.connect(true)? {
        Connected::Messages(channel) => {
            let out = BufWriter::with_capacity(CHUNK_LEN, io::stdout().lock());
            let mut receiver = Receiver { channel, peers: Peers::default(), out, form };
            match receiver.run(args.count, args.events) {
                // Who reads has seen enough.
                Err(Ended::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                Err(Ended::Output(error)) => Err(anyhow!(error).context("cannot print").into()),
                Err(Ended::Tapd(failure)) => Err(failure),
                Ok(()) => Ok(()),
            }
        }
        Connected::Stream(channel) => {
            let with_form = args.from || args.lines || args.null || args.length;
            if with_form || args.count.is_some() || args.events {
                let message = "this is a channel of streams: one stream is written as it is, \
                               without any of the options about messages";
                return Err(Failure::message(Exit::Usage, message));
            }
            stream(channel)
        }
    }
}

/// How messages are written.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// The sender's name in front.
    from: bool,
    /// The length in front.
    length: bool,
    /// What stands behind.
    end: &'static [u8],
}

impl Form {
    fn new(args: &RecvArgs) -> Self {
        let end: &[u8] = match (args.lines, args.null) {
            (true, _) => b"\n",
            (_, true) => b"\0",
            _ => b"",
        };
        Self { from: args.from, length: args.length, end }
    }

    fn write(self, out: &mut impl Write, peers: &Peers, message: &Message) -> io::Result<()> {
        if self.from {
            write!(out, "{}\t", peers.name(message.from))?;
        }
        if self.length {
            writeln!(out, "{}", message.bytes.len())?;
        }
        out.write_all(&message.bytes)?;
        out.write_all(self.end)
    }
}

/// What ended it before its time.
#[derive(Debug)]
enum Ended {
    Tapd(Failure),
    Output(io::Error),
}

struct Receiver<W> {
    channel: Channel,
    peers: Peers,
    out: W,
    form: Form,
}

impl<W: Write> Receiver<W> {
    /// Prints `count` messages, or without an end.
    fn run(&mut self, count: Option<u64>, events: bool) -> Result<(), Ended> {
        self.channel.set_nonblocking(true).map_err(|error| Ended::Tapd(broken(error)))?;
        let mut readable = PollSet::default();
        readable.set([self.channel.as_fd().as_raw_fd()]);
        let mut printed = 0;
        while count.is_none_or(|count| printed < count) {
            let event = match self.channel.recv() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Only when nothing is behind it: many small messages are written at once.
                    self.out.flush().map_err(Ended::Output)?;
                    readable.wait(LOOK_AGAIN);
                    continue;
                }
                event => event,
            };
            match event {
                Ok(Event::Message(message)) => {
                    self.form.write(&mut self.out, &self.peers, &message).map_err(Ended::Output)?;
                    printed += 1;
                }
                Ok(Event::Error(refusal)) => {
                    self.out.flush().map_err(Ended::Output)?;
                    return Err(Ended::Tapd(refused(&refusal)));
                }
                Ok(event) => tell(&mut self.peers, &event, events),
                Err(error) => {
                    self.out.flush().map_err(Ended::Output)?;
                    return Err(Ended::Tapd(broken(error)));
                }
            }
        }
        self.out.flush().map_err(Ended::Output)
    }
}

/// Takes one stream and prints it.
fn stream(channel: StreamChannel) -> Result<(), Failure> {
    let mut stream = channel.accept().map_err(broken)?;
    // Nothing goes back.
    stream.shutdown().map_err(broken)?;
    let (mut reader, _writer) = stream.into_split();
    receive(&mut reader, &mut io::stdout().lock())?;
    reader.wait_closed().map_err(broken)
}

fn tell(peers: &mut Peers, event: &Event, aloud: bool) {
    if let Some(line) = peers.learn(event).filter(|_| aloud) {
        say(format_args!("{line}"));
    }
}
