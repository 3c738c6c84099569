//! `tapd send`: what is read becomes messages, or a stream.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use fastpath::channel::client::{Channel, Event, SendOptions, Stream, StreamReader, To};

use super::{CHUNK_LEN, Connected, Nodes, Peers, Target, broken, refused};
use crate::cli::SendArgs;
use crate::exit::{Exit, Failure};

/// Messages after which events are looked at, so that tapd has not to keep many.
const MESSAGES_PER_LOOK: u32 = 64;

/// Sends what the file or standard input has.
pub(crate) fn run(args: &SendArgs) -> Result<(), Failure> {
    let nodes = Nodes::parse(&args.to);
    // Before tapd is asked: a file that is not there is found at once.
    let input = open(&args.file)?;
    let timeout = Duration::from_secs(args.timeout.into());
    let mut peers = Peers::default();
    match Target::new(&args.channel)?.connect(false)? {
        Connected::Messages(mut channel) => {
            let peer = peers.wait_for(&mut channel, &nodes, timeout)?;
            let to = if nodes == Nodes::All { To::All } else { To::One(peer) };
            let ttl = args.ttl.map(|ttl| Duration::from_millis(ttl.into()));
            let options = SendOptions { priority: args.priority.unwrap_or_default(), ttl };
            Sender { channel, peers, to, options, unlooked: 0 }.run(input, args.lines)
        }
        Connected::Stream(mut channel) => {
            if nodes == Nodes::All || args.priority.is_some() || args.ttl.is_some() || args.lines {
                let message = "this is a channel of streams: a stream goes to one node, and has \
                               no --priority, --ttl or --lines";
                return Err(Failure::message(Exit::Usage, message));
            }
            let peer = peers.wait_for(&mut channel, &nodes, timeout)?;
            stream(channel.open(peer).map_err(broken)?, input)
        }
    }
}

fn open(file: &Path) -> Result<Box<dyn Read + Send>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Box::new(opened))
}

/// Sends messages, and tells on standard error what becomes of them.
struct Sender<'a> {
    channel: Channel,
    peers: Peers,
    to: To<'a>,
    options: SendOptions,
    /// Messages since events were looked at.
    unlooked: u32,
}

impl Sender<'_> {
    fn run(mut self, input: impl Read, lines: bool) -> Result<(), Failure> {
        let mut input = BufReader::with_capacity(CHUNK_LEN, input);
        let mut message = Vec::new();
        let mut is_first = true;
        loop {
            message.clear();
            let count = self.read(&mut input, lines, &mut message)?;
            // Without lines there is one message, which may be empty.
            if count == 0 && (lines || !is_first) {
                return self.finish();
            }
            is_first = false;
            if let Err(error) = self.channel.send(self.to, self.options, &message) {
                return Err(self.ended(error));
            }
            self.look()?;
        }
    }

    /// Reads the next message, and says how many bytes were read for it.
    fn read(
        &self,
        input: &mut impl BufRead,
        lines: bool,
        message: &mut Vec<u8>,
    ) -> Result<usize, Failure> {
        let max_len = u64::from(self.channel.welcome().max_len);
        // One more for the line end, or to see that it is too long.
        let mut input = input.take(max_len + 1);
        let read =
            if lines { input.read_until(b'\n', message) } else { input.read_to_end(message) };
        let count = read.map_err(|error| anyhow!(error).context("cannot read what to send"))?;
        if lines && message.ends_with(b"\n") {
            message.pop();
        }
        if message.len() as u64 > max_len {
            let what = if lines { "a line" } else { "the input" };
            return Err(Failure::message(
                Exit::Runtime,
                format_args!(
                    "{what} is longer than the {max_len} bytes that a message of this channel can \
                     have; cut it into lines for --lines, or use a channel of mode = \"stream\""
                ),
            ));
        }
        Ok(count)
    }

    /// Now and then tells what came meanwhile.
    fn look(&mut self) -> Result<(), Failure> {
        self.unlooked += 1;
        if self.unlooked < MESSAGES_PER_LOOK {
            return Ok(());
        }
        self.unlooked = 0;
        self.channel.set_nonblocking(true).map_err(broken)?;
        loop {
            match self.channel.recv() {
                Ok(event) => self.tell(&event)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(broken(error)),
            }
        }
        self.channel.set_nonblocking(false).map_err(broken)
    }

    /// Waits until the nodes have everything.
    fn finish(mut self) -> Result<(), Failure> {
        if let Err(error) = self.channel.finish() {
            return Err(self.ended(error));
        }
        loop {
            match self.channel.recv().map_err(broken)? {
                Event::Closed(0) => return Ok(()),
                Event::Closed(lost) => return Err(not_arrived(lost)),
                event => self.tell(&event)?,
            }
        }
    }

    /// The reason why tapd hung up, as far as it said one.
    fn ended(&mut self, error: io::Error) -> Failure {
        if error.kind() != io::ErrorKind::BrokenPipe {
            return broken(error);
        }
        loop {
            match self.channel.recv() {
                Ok(event) => {
                    if let Err(failure) = self.tell(&event) {
                        return failure;
                    }
                }
                // If it said none, that is what there is to say.
                Err(error) => return broken(error),
            }
        }
    }

    fn tell(&mut self, event: &Event) -> Result<(), Failure> {
        if let Event::Error(refusal) = event {
            return Err(refused(refusal));
        }
        let line = self.peers.learn(event);
        // Who is up does not matter once the command has begun; what was not delivered does.
        if let Some(line) = line.filter(|_| !matches!(event, Event::PeerUp(..))) {
            let _ = writeln!(io::stderr(), "tapd: {line}");
        }
        Ok(())
    }
}

/// So many messages may not have arrived.
fn not_arrived(lost: u32) -> Failure {
    Failure::message(
        Exit::Runtime,
        format_args!(
            "{lost} messages may not have arrived: they were given up, or no node was there to \
             take them"
        ),
    )
}

/// Copies the input into the stream, and what comes back to standard output.
fn stream(stream: Stream, mut input: Box<dyn Read + Send>) -> Result<(), Failure> {
    let (mut reader, mut writer) = stream.into_split();
    let (unread, input_failure) = mpsc::channel();
    // It may wait for input when the stream has failed long ago: then the process ends without it.
    let sending = thread::spawn(move || {
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            let count = match input.read(&mut chunk) {
                Ok(0) => return writer.shutdown(),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // Half of the input is not to look like all of it.
                    let _ = unread.send(error);
                    return writer.reset(0);
                }
            };
            writer.write_all(chunk.get(..count).unwrap_or_default())?;
        }
    });
    // When the stream fails, reading says why; writing says only that it did.
    let received = receive(&mut reader, &mut io::stdout().lock());
    if let Ok(error) = input_failure.try_recv() {
        return Err(anyhow!(error).context("cannot read what to send").into());
    }
    received?;
    let sent = sending.join().map_err(|_| anyhow!("the thread that sends panicked"))?;
    // Where tapd has hung up, what it said last tells more.
    let hung_up = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    if sent.as_ref().err().is_none_or(hung_up) {
        reader.wait_closed().map_err(broken)?;
    }
    sent.map_err(broken)
}

/// Copies a stream to its end, and hands on what arrives at once.
pub(super) fn receive(reader: &mut StreamReader, to: &mut impl Write) -> Result<(), Failure> {
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let count = match reader.read(&mut chunk) {
            Ok(0) => return Ok(()),
            count => count.map_err(broken)?,
        };
        let read = chunk.get(..count).unwrap_or_default();
        to.write_all(read).and_then(|()| to.flush()).context("cannot write what came")?;
    }
}
