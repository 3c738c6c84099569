//! A test's end of a channel of messages: waits for bounded times only, and keeps events.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use encap::id::NodeId;
use fastpath::channel::client::{Channel, Event, Message, SendOptions, To};

use crate::node::Node;
use crate::sys;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A program at a channel of messages.
#[derive(Debug)]
pub struct Port {
    channel: Channel,
    events: Vec<Event>,
}

impl Port {
    /// Attaches to a channel of `node`, to get its messages if `receive` says so.
    ///
    /// # Errors
    /// tapd refuses.
    pub fn open(node: &Node, channel: &str, receive: bool) -> io::Result<Self> {
        let channel = Channel::connect(&node.channel(channel), receive)?;
        channel.set_nonblocking(true)?;
        Ok(Self { channel, events: Vec::new() })
    }

    /// [`Self::open`] to send and receive, when a peer can be reached; gives that peer.
    ///
    /// # Errors
    /// tapd refuses, or no peer can be reached.
    pub fn open_to_peer(node: &Node, channel: &str) -> Result<(Self, NodeId)> {
        let mut this = Self::open(node, channel, true)?;
        let event = this.wait_event("a peer to be up", |e| matches!(e, Event::PeerUp(..)))?;
        let Event::PeerUp(peer, _) = event else { bail!("no peer in {event:?}") };
        Ok((this, peer))
    }

    /// The program's connection.
    #[must_use]
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Sends a message; waits while there is no room.
    ///
    /// # Errors
    /// There was none within [`PATIENCE`], or tapd hung up.
    pub fn send(&mut self, to: To<'_>, message: &[u8]) -> Result<()> {
        self.send_with(to, SendOptions::default(), message)
    }

    /// [`Self::send`] with a priority or a time.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_with(&mut self, to: To<'_>, options: SendOptions, message: &[u8]) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.channel.send(to, options, message) {
                Ok(()) => break,
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait_writable(end)?,
                Err(e) => return Err(e).context("sending"),
            }
        }
        while self.channel.wants_write() {
            match self.channel.flush() {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait_writable(end)?,
                Err(e) => return Err(e).context("sending the rest"),
            }
        }
        Ok(())
    }

    /// Sends a message if there is room for all of it; says whether there was. The message is no
    /// longer than one record holds, so it is not taken in part.
    ///
    /// # Errors
    /// tapd hung up.
    pub fn try_send(&mut self, to: To<'_>, message: &[u8]) -> Result<bool> {
        match self.channel.send(to, SendOptions::default(), message) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e).context("sending"),
        }
    }

    fn wait_writable(&self, end: Instant) -> Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(sys::writable(self.channel.as_fd(), left)?, "no room within {PATIENCE:?}");
        Ok(())
    }

    /// What comes next within `patience`; none if nothing does. Events are kept too.
    ///
    /// # Errors
    /// tapd hung up.
    pub fn poll(&mut self, patience: Duration) -> Result<Option<Event>> {
        let end = Instant::now() + patience;
        loop {
            match self.channel.recv() {
                Ok(event) => {
                    if !matches!(event, Event::Message(_)) {
                        self.events.push(event.clone());
                    }
                    return Ok(Some(event));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let left = end.saturating_duration_since(Instant::now());
                    if !sys::readable(self.channel.as_fd(), left)? {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e).context("receiving"),
            }
        }
    }

    /// The next message; events before it are kept.
    ///
    /// # Errors
    /// None came within [`PATIENCE`], or tapd refused or hung up.
    pub fn next_message(&mut self) -> Result<Message> {
        loop {
            match self.poll(PATIENCE)? {
                Some(Event::Message(message)) => return Ok(message),
                Some(Event::Error(refusal)) => return Err(refusal.into()),
                Some(_) => {}
                None => bail!("no message within {PATIENCE:?}; events: {:?}", self.events),
            }
        }
    }

    /// Waits for an event, which must come before the next message.
    ///
    /// # Errors
    /// It did not come within [`PATIENCE`]; the error names `what` was waited for.
    pub fn wait_event(&mut self, what: &str, fits: impl Fn(&Event) -> bool) -> Result<Event> {
        loop {
            match self.poll(PATIENCE)? {
                Some(event) if fits(&event) => return Ok(event),
                Some(Event::Message(_)) => bail!("a message instead of {what}"),
                Some(_) => {}
                None => bail!("waited in vain for {what}; events: {:?}", self.events),
            }
        }
    }
}
