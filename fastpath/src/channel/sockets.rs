//! The sockets that programs use channels by.
//!
//! [`ChannelSockets`] belongs to the worker that owns the hub; it has no locks and never waits.
//! What a program sends is read as long as the hub has room: [`ChannelEvent::Writable`] has the
//! reading go on. What comes for programs is taken from the hub as their sockets take it, so that
//! what a program does not read stays with the sender; unreliable messages are dropped instead.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use encap::channel::hub::{ChannelEvent, ChannelKey, Hub, StreamKey};
use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::SockRef;

use super::batch::{RxBatch, TxBatch};
use super::connection::{self, Connection, Job, Shared, Turn};
use super::entry::Channel;
use super::framing::Code;
use super::inbound::Fault;
use super::port::{ConnectionId, GENERATIONS, Token};
use super::stream::Buffers;
use super::system::{Epoll, MAX_READY, Ready, Timer};

mod misfits;

pub use super::report::{SocketCounters, SocketReport};
pub(super) use misfits::Misfit;

/// Programs that one channel has at a time at most: each costs descriptors, and of streams up to
/// 320 KiB.
pub const MAX_CONNECTIONS: usize = 64;
/// Connections that are accepted in one turn at most.
const ACCEPTS_PER_TURN: usize = 16;
/// Events of the hub that are handled in one turn at most.
const EVENTS_PER_TURN: usize = 1024;
/// How long no connections are accepted after descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A configured channel and the socket that programs connect to.
#[derive(Debug)]
pub struct ChannelSetup {
    /// Which channel of the hub.
    pub key: ChannelKey,
    /// Its name.
    pub name: String,
    /// What it carries.
    pub mode: Mode,
    /// Its messages are compressed, which takes a byte of the longest.
    pub compressed: bool,
    /// Listens: `SOCK_STREAM` for [`Mode::Stream`], else `SOCK_SEQPACKET`.
    pub listener: OwnedFd,
}

/// The sockets of all channels of a worker.
#[derive(Debug)]
pub struct ChannelSockets {
    shared: Shared,
    channels: BTreeMap<ChannelKey, Channel>,
    connections: Connections,
    /// Who has which stream.
    streams: HashMap<StreamKey, ConnectionId>,
    /// What is to be done in the next turn.
    jobs: VecDeque<Job>,
    /// The hub has more events than were handled.
    events_left: bool,
    /// Ends the pause in which no connections are accepted.
    timer: Timer,
    /// What the set told last.
    ready: Vec<Ready>,
}

/// The connections by their numbers; the one that is being handled is taken out.
#[derive(Debug, Default)]
struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Connections {
    /// A number for a new connection.
    fn reserve(&mut self) -> ConnectionId {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get(index as usize)
        {
            return ConnectionId { index, generation: slot.generation };
        }
        let index = self.slots.len() as u32;
        self.slots.push(Slot { generation: 0, connection: None });
        ConnectionId { index, generation: 0 }
    }

    fn slot(&mut self, id: ConnectionId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation).then_some(slot)
    }

    fn take(&mut self, id: ConnectionId) -> Option<Box<Connection>> {
        self.slot(id)?.connection.take()
    }

    fn put(&mut self, id: ConnectionId, connection: Box<Connection>) {
        if let Some(slot) = self.slot(id) {
            slot.connection = Some(connection);
        }
    }

    fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let slot = self.slots.get(id.index as usize)?;
        slot.connection.as_deref().filter(|_| slot.generation == id.generation)
    }

    /// The number may be used again, for another generation.
    fn release(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slot(id) {
            slot.generation = (slot.generation + 1) % GENERATIONS;
            self.free.push(id.index);
        }
    }
}

impl ChannelSockets {
    /// The channels that there are.
    #[must_use]
    pub fn keys(&self) -> Vec<ChannelKey> {
        self.channels.keys().copied().collect()
    }

    /// No channels yet.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, Timer::new()?);
        epoll.add(timer.borrow(), Token::Timer.to_number(), libc::EPOLLIN as u32)?;
        Ok(Self {
            shared: Shared {
                epoll,
                rx: RxBatch::new(),
                tx: TxBatch::new(),
                buffers: Buffers::default(),
                own: None,
                names: HashMap::new(),
            },
            channels: BTreeMap::new(),
            connections: Connections::default(),
            streams: HashMap::new(),
            jobs: VecDeque::new(),
            events_left: false,
            timer,
            ready: Vec::with_capacity(MAX_READY),
        })
    }

    /// Readable when [`Self::poll`] has something to do; events of the hub do not count.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.shared.epoll.fd()
    }

    /// Sets what programs are told of nodes from now on: this node's id, and names.
    pub fn set_nodes(&mut self, own: NodeId, names: Vec<(NodeId, String)>) {
        self.shared.own = Some(own);
        self.shared.names = names.into_iter().collect();
    }

    /// Adds a channel, which the hub has or is about to have. One with the same key is removed.
    ///
    /// # Errors
    /// The listener is no socket, or the kernel is out of memory.
    pub fn add(&mut self, setup: ChannelSetup) -> io::Result<()> {
        let ChannelSetup { key, name, mode, compressed, listener } = setup;
        self.remove(key);
        SockRef::from(&listener).set_nonblocking(true)?;
        let mut channel = Channel::new(key, name, mode, listener);
        channel.compressed = compressed;
        listen(&mut channel, &self.shared.epoll)?;
        self.channels.insert(key, channel);
        Ok(())
    }

    /// Removes a channel: programs are told that it is closed, and their connections end. The hub
    /// ends their streams when it loses the channel.
    pub fn remove(&mut self, key: ChannelKey) {
        self.close(key, "the channel is not configured any more");
    }

    /// tapd ends: programs are told.
    pub fn end(&mut self) {
        for key in self.keys() {
            self.close(key, "tapd ends");
        }
    }

    fn close(&mut self, key: ChannelKey, why: &'static str) {
        let Some(channel) = self.channels.remove(&key) else { return };
        let fault = Fault::new(Code::Closed, why);
        for id in channel.connections {
            if let Some(connection) = self.connections.take(id) {
                connection.abandon(&fault, &mut self.shared);
                self.connections.release(id);
            }
        }
        self.streams.retain(|_, id| self.connections.get(*id).is_some());
        // It is closed now, which takes it out of the set.
    }

    /// Reads what programs sent into the hub, and takes the hub's events and messages to programs.
    /// Never waits, and does bounded work. Says how many records were moved.
    pub fn poll(&mut self, now: Instant, hub: &mut Hub) -> usize {
        let mut moved = 0;
        self.handle_ready(now, hub, &mut moved);
        self.handle_events(now, hub, &mut moved);
        for _ in 0..self.jobs.len() {
            match self.jobs.pop_front() {
                Some(Job::Deliver(key)) => self.deliver(key, now, hub, &mut moved),
                Some(Job::Stream(id)) => self.with(id, now, hub, &mut moved, |connection, turn| {
                    if let Some(link) = connection.link() {
                        link.queued = false;
                    }
                    connection.deliver_stream(turn);
                }),
                // It is asked whenever a connection was looked after.
                Some(Job::Settle(id)) => self.with(id, now, hub, &mut moved, |connection, _| {
                    connection.asks_later = false;
                }),
                None => break,
            }
        }
        moved
    }

    /// Whether [`Self::poll`] would have something to do at once, beside what [`Self::fd`] and new
    /// events of the hub tell: its work was cut off.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.events_left || !self.jobs.is_empty()
    }

    /// What there is to tell, by key.
    #[must_use]
    pub fn report(&self) -> Vec<SocketReport> {
        let attached = |id: &&ConnectionId| {
            self.connections.get(**id).is_some_and(|connection| connection.attached)
        };
        let report =
            |channel: &Channel| channel.report(channel.connections.iter().filter(attached).count());
        self.channels.values().map(report).collect()
    }

    /// Has something done with a connection, and looks after it: it waits for what it needs next, or
    /// is closed if it is over.
    fn with(
        &mut self,
        id: ConnectionId,
        now: Instant,
        hub: &mut Hub,
        moved: &mut usize,
        act: impl FnOnce(&mut Connection, &mut Turn<'_>),
    ) {
        let Some(mut connection) = self.connections.take(id) else { return };
        let Some(channel) = self.channels.get_mut(&connection.channel) else {
            return self.connections.release(id);
        };
        let mut turn = Turn {
            now,
            hub,
            channel,
            shared: &mut self.shared,
            jobs: &mut self.jobs,
            streams: &mut self.streams,
            moved,
        };
        act(&mut connection, &mut turn);
        connection.tell_closed(&mut turn);
        // One that cannot be waited for would hang for ever.
        if connection.is_over() || connection.watch(&turn.shared.epoll).is_err() {
            connection.close(&mut turn);
            self.connections.release(id);
        } else {
            self.connections.put(id, connection);
        }
    }

    fn handle_ready(&mut self, now: Instant, hub: &mut Hub, moved: &mut usize) {
        let mut ready = std::mem::take(&mut self.ready);
        if self.shared.epoll.wait(&mut ready).is_err() {
            // A signal came; the set still knows what is ready.
            ready.clear();
        }
        for Ready { token, events } in ready.drain(..) {
            match Token::from_number(token) {
                Token::Listener(key) => self.accept(ChannelKey(key)),
                Token::Control(id) => self.with(id, now, hub, moved, |connection, turn| {
                    connection.handle_control(events, turn);
                }),
                Token::Raw(id) => self.with(id, now, hub, moved, |connection, turn| {
                    connection.handle_raw(events, turn);
                }),
                Token::Timer => self.listen_again(),
            }
        }
        self.ready = ready;
    }

    /// Accepts new connections. Without descriptors for them they wait: the listener would tell of
    /// them again and again, so it is not looked at for a while.
    fn accept(&mut self, key: ChannelKey) {
        let Some(channel) = self.channels.get_mut(&key) else { return };
        for _ in 0..ACCEPTS_PER_TURN {
            let accepted = SockRef::from(&channel.listener).accept();
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    channel.counters.accept_failures += 1;
                    pause(channel, &self.shared.epoll, &self.timer);
                    return;
                }
            };
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            if channel.connections.len() >= MAX_CONNECTIONS {
                channel.counters.refused_connections += 1;
                let text = format!("{MAX_CONNECTIONS} programs use the channel already");
                connection::turn_away(&socket, &Fault::new(Code::TooMany, text));
                continue;
            }
            let id = self.connections.reserve();
            let mut connection = Box::new(Connection::new(id, channel, socket));
            if connection.watch(&self.shared.epoll).is_err() {
                channel.counters.accept_failures += 1;
                self.connections.release(id);
                continue;
            }
            channel.connections.push(id);
            self.connections.put(id, connection);
        }
    }

    fn listen_again(&mut self) {
        let mut failed = self.timer.set(Duration::ZERO).is_err();
        for channel in self.channels.values_mut().filter(|channel| !channel.listening) {
            failed |= listen(channel, &self.shared.epoll).is_err();
        }
        if failed {
            // Without memory even for that; the next try is as far off.
            let _ = self.timer.set(ACCEPT_PAUSE);
        }
    }

    fn handle_events(&mut self, now: Instant, hub: &mut Hub, moved: &mut usize) {
        self.events_left = true;
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = hub.poll_event() else {
                self.events_left = false;
                return;
            };
            self.handle_event(event, now, hub, moved);
        }
    }

    fn handle_event(
        &mut self,
        event: ChannelEvent,
        now: Instant,
        hub: &mut Hub,
        moved: &mut usize,
    ) {
        match event {
            ChannelEvent::Readable(key) | ChannelEvent::StreamWaiting(key) => self.queue(key),
            ChannelEvent::Writable(key, peer) => {
                self.retry(key, Some(peer), now, hub, moved);
            }
            ChannelEvent::PeerUp(..)
            | ChannelEvent::PeerDown(..)
            | ChannelEvent::EpochChanged(..)
            | ChannelEvent::Expired(..)
            | ChannelEvent::Refused(..) => {
                if let ChannelEvent::Refused(key, peer) = event {
                    self.warn(key, Misfit::Refused(peer), now);
                }
                self.tell(event, now, hub, moved);
            }
            ChannelEvent::Accepted(key, peer) => self.note_accepted(key, peer),
            ChannelEvent::Mismatched(key, peer) => self.warn(key, Misfit::Asked(peer), now),
            ChannelEvent::Settled(key, _) => self.look_at_finished(key, now, hub, moved),
            ChannelEvent::StreamOpened(key)
            | ChannelEvent::StreamReadable(key)
            | ChannelEvent::StreamWritable(key)
            | ChannelEvent::StreamDone(key)
            | ChannelEvent::StreamFailed(key, _) => {
                self.handle_stream_event(key, event, now, hub, moved);
            }
            // Of a later version.
            _ => {}
        }
    }

    /// Has messages or streams of a channel taken to programs.
    fn queue(&mut self, key: ChannelKey) {
        let Some(channel) = self.channels.get_mut(&key) else { return };
        channel.readable = true;
        if !std::mem::replace(&mut channel.queued, true) {
            self.jobs.push_back(Job::Deliver(key));
        }
    }

    /// Tells the programs of a channel what happened.
    fn tell(&mut self, event: ChannelEvent, now: Instant, hub: &mut Hub, moved: &mut usize) {
        let (ChannelEvent::PeerUp(key, peer)
        | ChannelEvent::PeerDown(key, peer)
        | ChannelEvent::EpochChanged(key, peer, _)
        | ChannelEvent::Expired(key, peer, _)
        | ChannelEvent::Refused(key, peer)) = event
        else {
            return;
        };
        let Some(channel) = self.channels.get(&key) else { return };
        for id in channel.connections.clone() {
            self.with(id, now, hub, moved, |connection, turn| {
                if let ChannelEvent::EpochChanged(_, _, count)
                | ChannelEvent::Expired(_, _, count) = event
                {
                    connection.note_given_up(peer, count);
                }
                connection.add_news(
                    |news| match event {
                        ChannelEvent::PeerUp(..) => news.up(peer),
                        ChannelEvent::PeerDown(..) => news.down(peer),
                        ChannelEvent::EpochChanged(_, _, count) => news.epoch(peer, count),
                        ChannelEvent::Expired(_, _, count) => news.expired(peer, count),
                        _ => news.refused(peer),
                    },
                    turn,
                );
            });
        }
        // What was given up, or a new way, may have made room.
        self.retry(key, Some(peer), now, hub, moved);
    }

    /// Programs that have sent all may hear what became of it.
    fn look_at_finished(
        &mut self,
        key: ChannelKey,
        now: Instant,
        hub: &mut Hub,
        moved: &mut usize,
    ) {
        let Some(channel) = self.channels.get(&key) else { return };
        for id in channel.connections.clone() {
            self.with(id, now, hub, moved, Connection::tell_closed);
        }
    }

    /// Tries messages again that the hub had no room for. Those who got something through are the
    /// last to be tried the next time.
    fn retry(
        &mut self,
        key: ChannelKey,
        peer: Option<NodeId>,
        now: Instant,
        hub: &mut Hub,
        moved: &mut usize,
    ) {
        let Some(channel) = self.channels.get_mut(&key) else { return };
        if channel.blocked.is_empty() {
            return;
        }
        let (mut without, mut with) = (VecDeque::new(), VecDeque::new());
        for id in std::mem::take(&mut channel.blocked) {
            let (mut taken, mut blocked) = (false, false);
            self.with(id, now, hub, moved, |connection, turn| {
                taken = connection.retry(peer, turn);
                blocked = connection.is_blocked();
            });
            match (blocked, taken) {
                (true, false) => without.push_back(id),
                (true, true) => with.push_back(id),
                (false, _) => {}
            }
        }
        let Some(channel) = self.channels.get_mut(&key) else { return };
        // Who was blocked again after the drain of a raw descriptor is there already.
        without.extend(with);
        let again = std::mem::replace(&mut channel.blocked, without);
        for id in again {
            if !channel.blocked.contains(&id) {
                channel.blocked.push_back(id);
            }
        }
    }

    fn handle_stream_event(
        &mut self,
        key: StreamKey,
        event: ChannelEvent,
        now: Instant,
        hub: &mut Hub,
        moved: &mut usize,
    ) {
        let Some(&id) = self.streams.get(&key) else { return };
        if matches!(event, ChannelEvent::StreamDone(_) | ChannelEvent::StreamFailed(..)) {
            self.streams.remove(&key);
        }
        self.with(id, now, hub, moved, |connection, turn| {
            connection.handle_stream_event(key, event, turn);
        });
    }

    /// Takes messages, or streams, of a channel to programs.
    fn deliver(&mut self, key: ChannelKey, now: Instant, hub: &mut Hub, moved: &mut usize) {
        let Some(channel) = self.channels.get_mut(&key) else { return };
        channel.queued = false;
        if channel.mode == Mode::Stream {
            return self.hand_out_streams(key, now, hub, moved);
        }
        if let Some(id) = channel.receiver {
            return self.with(id, now, hub, moved, Connection::deliver);
        }
        if channel.mode == Mode::Unreliable {
            *moved += channel.drop_unreliable(hub);
            if channel.readable {
                self.queue(key);
            }
        }
    }

    /// Gives streams that peers ask for to the programs that wait for one.
    fn hand_out_streams(
        &mut self,
        key: ChannelKey,
        now: Instant,
        hub: &mut Hub,
        moved: &mut usize,
    ) {
        while let Some(channel) = self.channels.get_mut(&key) {
            let Some(id) = channel.accepting.front().copied() else { return };
            let Some((stream, peer)) = hub.accept_stream(now, key) else { return };
            channel.accepting.pop_front();
            self.with(id, now, hub, moved, |connection, turn| {
                connection.open(stream, peer, turn);
            });
        }
    }
}

/// Waits for new connections of a channel.
fn listen(channel: &mut Channel, epoll: &Epoll) -> io::Result<()> {
    let token = Token::Listener(channel.key.0).to_number();
    epoll.add(channel.listener.as_fd(), token, libc::EPOLLIN as u32)?;
    channel.listening = true;
    Ok(())
}

/// Does not look at new connections of a channel for a while.
fn pause(channel: &mut Channel, epoll: &Epoll, timer: &Timer) {
    // Only once the timer is set: it would not be looked at any more else.
    if timer.set(ACCEPT_PAUSE).is_ok() && epoll.delete(channel.listener.as_fd()).is_ok() {
        channel.listening = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    use encap::channel::hub::HubOptions;

    use crate::wake::PollSet;

    #[test]
    fn without_descriptors_new_connections_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blue");
        let listener = UnixListener::bind(&path).unwrap().into();
        let (key, name) = (ChannelKey(1), "blue".to_owned());
        let mut sockets = ChannelSockets::new().unwrap();
        let (mode, compressed) = (Mode::Stream, false);
        sockets.add(ChannelSetup { key, name, mode, compressed, listener }).unwrap();
        let channel = sockets.channels.get_mut(&key).unwrap();
        // What is done when the kernel says so.
        pause(channel, &sockets.shared.epoll, &sockets.timer);
        assert!(!channel.listening);
        let _program = UnixStream::connect(&path).unwrap();
        let mut hub = Hub::new(HubOptions::default());
        sockets.poll(Instant::now(), &mut hub);
        assert_eq!(sockets.channels[&key].connections, []);
        let mut set = PollSet::default();
        set.set([sockets.fd()]);
        for _ in 0..2 {
            assert!(set.wait(Duration::from_secs(10)));
            sockets.poll(Instant::now(), &mut hub);
        }
        assert_eq!(sockets.channels[&key].connections.len(), 1);
        assert!(!set.wait(Duration::ZERO) && !sockets.has_pending());
    }

    #[test]
    fn numbers_of_connections_are_used_again_for_others() {
        let mut connections = Connections::default();
        let first = connections.reserve();
        connections.release(first);
        let second = connections.reserve();
        assert_eq!((first.index, connections.slots.len()), (second.index, 1));
        assert_ne!(first, second);
        assert!(connections.slot(first).is_none() && connections.slot(second).is_some());
    }
}
