//! `tapd send`: what is read becomes messages, or a stream.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use fastpath::channel::client::{
    Channel, Event, SendOptions, Stream, StreamReader, StreamWriter, To,
};

use super::patience::{Patience, Steps, TICK, is_waiting};
use super::{CHUNK_LEN, Connected, Nodes, Peers, Target, broken, open_stream, refused, say};
use crate::cli::SendArgs;
use crate::exit::{Exit, Failure};

/// Messages after which events are looked at, so that tapd has not to keep many.
const MESSAGES_PER_LOOK: u32 = 64;

/// Bytes of a stream that are written at once: each time that so many left is progress, so the
/// fewer, the slower a path can be before `--timeout` ends a stream that gets on. Enough that calls
/// cost little.
const PART_LEN: usize = 32 << 10;

/// Sends what the file or standard input has.
pub(crate) fn run(args: &SendArgs) -> Result<(), Failure> {
    let nodes = Nodes::parse(&args.to);
    // Before tapd is asked: a file that is not there is found at once.
    let input = open(&args.file)?;
    let limit = args.timeout.map(|seconds| Duration::from_secs(seconds.into()));
    let mut patience = Patience::new(limit);
    let mut peers = Peers::default();
    let target = Target::new(&args.channel)?;
    match target.connect(false)? {
        Connected::Messages(mut channel) => {
            peers.is_peer = target.check_peer(&channel.welcome().name, &nodes)?;
            let peer = peers.wait_for(&mut channel, &nodes, &mut patience)?;
            let to = if nodes == Nodes::All { To::All } else { To::One(peer) };
            let ttl = args.ttl.map(|ttl| Duration::from_millis(ttl.into()));
            let options = SendOptions { priority: args.priority.unwrap_or_default(), ttl };
            channel.set_read_timeout(Some(TICK)).map_err(broken)?;
            channel.set_write_timeout(Some(TICK)).map_err(broken)?;
            Sender { channel, peers, nodes: &nodes, patience, to, options, unlooked: 0 }
                .run(input, args.lines)
        }
        Connected::Stream(mut channel) => {
            if nodes == Nodes::All || args.priority.is_some() || args.ttl.is_some() || args.lines {
                let message = "this is a channel of streams: a stream goes to one node, and has \
                               no --priority, --ttl or --lines";
                return Err(Failure::message(Exit::Usage, message));
            }
            peers.is_peer = target.check_peer(&channel.welcome().name, &nodes)?;
            let peer = peers.wait_for(&mut channel, &nodes, &mut patience)?;
            let stream = open_stream(channel, peer, &mut peers, &nodes, &mut patience)?;
            carry(stream, input, &nodes, patience)
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
    nodes: &'a Nodes,
    patience: Patience,
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
            // Waiting for input is none of the nodes' doing.
            self.patience.get_on();
            while let Err(error) = self.channel.send(self.to, self.options, &message) {
                self.wait_for_room(error)?;
            }
            // Before input is waited for: the end of a long message must not wait with it.
            self.flush()?;
            self.unlooked += 1;
            if self.unlooked >= MESSAGES_PER_LOOK {
                self.look()?;
            }
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

    /// Sends what is left of a message that tapd had no room for at once.
    fn flush(&mut self) -> Result<(), Failure> {
        loop {
            let unsent = self.channel.unsent();
            let Err(error) = self.channel.flush() else { break };
            if self.channel.unsent() < unsent {
                self.patience.get_on();
            }
            self.wait_for_room(error)?;
        }
        self.patience.get_on();
        Ok(())
    }

    /// Nothing was sent for some time, or never will be.
    fn wait_for_room(&mut self, error: io::Error) -> Result<(), Failure> {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(self.ended(error));
        }
        self.look()?;
        self.patience.wait(&self.peers.lack(self.nodes))
    }

    /// Tells what came meanwhile.
    fn look(&mut self) -> Result<(), Failure> {
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
        while let Err(error) = self.channel.finish() {
            self.wait_for_room(error)?;
        }
        self.patience.get_on();
        loop {
            match self.channel.recv() {
                Ok(Event::Closed(0)) => return Ok(()),
                Ok(Event::Closed(lost)) => return Err(not_arrived(lost)),
                Ok(event) => self.tell(&event)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(broken(error)),
            }
            self.patience.wait(&self.peers.lack(self.nodes))?;
        }
    }

    /// The reason why tapd hung up, as far as it said one.
    fn ended(&mut self, error: io::Error) -> Failure {
        if error.kind() != io::ErrorKind::BrokenPipe {
            return broken(error);
        }
        // What it said is there already.
        if let Err(error) = self.channel.set_read_timeout(None) {
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
            say(format_args!("{line}"));
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
fn carry(
    stream: Stream,
    input: Box<dyn Read + Send>,
    nodes: &Nodes,
    patience: Patience,
) -> Result<(), Failure> {
    stream.set_read_timeout(Some(TICK)).map_err(broken)?;
    let (mut reader, writer) = stream.into_split();
    let (failures, failed) = mpsc::channel();
    let steps = Arc::new(Steps::default());
    let of_thread = Arc::clone(&steps);
    // It may wait for input when the stream has failed long ago: then the process ends without it.
    let sending = thread::spawn(move || copy_in(input, writer, &of_thread, &failures));
    let mut watch = Watch { patience, steps: &steps, seen: 0, nodes };
    // The other side may end long before this one. When the stream fails, reading says why; writing
    // says only that it did.
    let closed = watch.receive(&mut reader).and_then(|()| watch.wait_closed(&mut reader));
    if let Ok(failure) = failed.try_recv() {
        return Err(failure.into());
    }
    closed?;
    // Both sides have ended.
    sending.join().map_err(|_| anyhow!("the thread that sends panicked"))?;
    Ok(())
}

/// Copies the input into the stream, to its end.
fn copy_in(
    mut input: impl Read,
    mut writer: StreamWriter,
    steps: &Steps,
    failures: &mpsc::Sender<anyhow::Error>,
) {
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let failure = match input.read(&mut chunk) {
            Ok(0) => {
                steps.step();
                match writer.shutdown() {
                    Ok(()) => return steps.end(),
                    Err(error) => anyhow!(error),
                }
            }
            Ok(count) => {
                steps.step();
                let written = write(&mut writer, chunk.get(..count).unwrap_or_default(), steps);
                steps.step();
                match written {
                    Ok(()) => continue,
                    Err(error) => anyhow!(error),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => anyhow!(error).context("cannot read what to send"),
        };
        // Where tapd has hung up, what it said last tells more.
        let kind = failure.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind != Some(io::ErrorKind::BrokenPipe) {
            let _ = failures.send(failure);
        }
        // Half of the input is not to look like all of it.
        let _ = writer.reset(0);
        return;
    }
}

/// Writes all of it; each part that went is progress.
fn write(writer: &mut impl Write, bytes: &[u8], steps: &Steps) -> io::Result<()> {
    for part in bytes.chunks(PART_LEN) {
        writer.write_all(part)?;
        steps.get_on();
    }
    Ok(())
}

/// Looks now and then how a stream gets on while it is read.
struct Watch<'a> {
    patience: Patience,
    steps: &'a Steps,
    /// Steps of the thread that writes when it was looked at last.
    seen: u64,
    nodes: &'a Nodes,
}

impl Watch<'_> {
    /// Copies the stream to standard output, to its end.
    fn receive(&mut self, reader: &mut StreamReader) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    hand_on(&mut out, chunk.get(..count).unwrap_or_default())?;
                    self.patience.get_on();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.look(reader, "to end its side")?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Waits until everything has arrived.
    fn wait_closed(&mut self, reader: &mut StreamReader) -> Result<(), Failure> {
        loop {
            match reader.wait_closed() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.look(reader, "to confirm that it has everything")?;
                }
                closed => return closed.map_err(broken),
            }
        }
    }

    /// Nothing came for a moment, which is as it should be while there is no input. Once all was
    /// written, `rest` is what the other side has still to do.
    fn look(&mut self, reader: &StreamReader, rest: &str) -> Result<(), Failure> {
        let steps = self.steps.made();
        if steps != self.seen || !is_waiting(steps) {
            self.seen = steps;
            self.patience.get_on();
            return Ok(());
        }
        let nodes = self.nodes;
        let what = match reader.is_cut_off() {
            true => format!("{nodes}: no link is up"),
            false if self.steps.has_ended() => format!("{nodes} {rest}"),
            false => format!("{nodes} to take what was sent"),
        };
        self.patience.wait(&what)
    }
}

/// Copies a stream to its end, and hands on what arrives at once.
pub(super) fn receive(reader: &mut StreamReader, to: &mut impl Write) -> Result<(), Failure> {
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let count = match reader.read(&mut chunk) {
            Ok(0) => return Ok(()),
            count => count.map_err(broken)?,
        };
        hand_on(to, chunk.get(..count).unwrap_or_default())?;
    }
}

fn hand_on(to: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).and_then(|()| to.flush()).context("cannot write what came")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails at the end of its room.
    struct Room(usize);

    impl Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.0);
            self.0 -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_part_that_went_is_progress() {
        let steps = Steps::default();
        steps.step();
        let mut seen = vec![steps.made()];
        for parts in 0..4 {
            // A part that did not go as a whole is none.
            let mut room = Room(parts * PART_LEN + 1);
            assert!(write(&mut room, &[0; 4 * PART_LEN], &steps).is_err());
            assert_eq!(steps.made() - seen[parts], 2 * parts as u64);
            assert!(is_waiting(steps.made()));
            seen.push(steps.made());
        }
    }
}
