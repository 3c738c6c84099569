//! A program's connection to a channel's socket.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Instant;

use encap::channel::hub::{ChannelKey, Hub, StreamKey};
use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::{SockRef, Socket};

use super::batch::{RxBatch, TxBatch};
use super::entry::Channel;
use super::framing::{Code, Header, Kind};
use super::inbound::{Fault, Inbound};
use super::news::News;
use super::port::{ConnectionId, Port, Token};
use super::stream::{Buffers, Phase, StreamLink};
use super::system::{self, Epoll};

use messages::is_local;
use streams::flush;

mod attach;
mod messages;
mod streams;

/// Room that is asked for in a program's socket, in bytes: some thousand small messages, so that a
/// program that is not always quick loses no unreliable ones and is not woken for each few.
const SOCKET_BUFFER: usize = 1 << 20;
/// Reads at the end of a connection, of up to [`super::framing::MAX_RECORD_LEN`] bytes each, that make sure that the
/// program sees why it ended: more than a socket holds.
const MAX_DRAIN: usize = 4096;

/// What all connections of a worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) epoll: Epoll,
    pub(super) rx: RxBatch,
    pub(super) tx: TxBatch,
    pub(super) buffers: Buffers,
    pub(super) own: Option<NodeId>,
    pub(super) names: HashMap<NodeId, String>,
}

/// What is to be looked after in the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// Messages of a channel.
    Deliver(ChannelKey),
    /// Bytes for a program.
    Stream(ConnectionId),
    /// Whether what a program sent is settled, once the hub's events are handled.
    Settle(ConnectionId),
}

/// What a connection is handled with.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    pub(super) hub: &'a mut Hub,
    pub(super) channel: &'a mut Channel,
    pub(super) shared: &'a mut Shared,
    pub(super) jobs: &'a mut VecDeque<Job>,
    pub(super) streams: &'a mut HashMap<StreamKey, ConnectionId>,
    /// Records moved.
    pub(super) moved: &'a mut usize,
}

impl Turn<'_> {
    /// Has the channel's messages delivered in the next turn.
    pub(super) fn queue_delivery(&mut self) {
        if !self.channel.queued {
            self.channel.queued = true;
            self.jobs.push_back(Job::Deliver(self.channel.key));
        }
    }
}

/// What a connection carries.
#[derive(Debug)]
pub(super) enum Role {
    Messages(Inbound),
    Stream(StreamLink),
}

/// A program's connection.
#[derive(Debug)]
pub(super) struct Connection {
    id: ConnectionId,
    pub(super) channel: ChannelKey,
    control: Port,
    /// Carries the messages instead, without headers.
    raw: Option<Port>,
    pub(super) role: Role,
    /// The first record has come.
    pub(super) attached: bool,
    news: News,
    /// What the program is told last.
    ending: Option<Fault>,
    /// It was told, or cannot be.
    told: bool,
    /// The program was told that all that it sent is settled.
    closed: bool,
    /// Whether it is settled is to be asked in the next turn.
    pub(super) asks_later: bool,
}

impl Connection {
    pub(super) fn new(id: ConnectionId, channel: &Channel, socket: Socket) -> Self {
        system::set_send_buffer(socket.as_fd(), SOCKET_BUFFER);
        let role = if channel.mode == Mode::Stream {
            Role::Stream(StreamLink::new())
        } else {
            Role::Messages(Inbound::new(channel.max_message_len()))
        };
        Self {
            id,
            channel: channel.key,
            control: Port::new(socket, Token::Control(id)),
            raw: None,
            role,
            attached: false,
            news: News::default(),
            ending: None,
            told: false,
            closed: false,
            asks_later: false,
        }
    }

    /// The stream of it, if it is of that kind.
    pub(super) fn link(&mut self) -> Option<&mut StreamLink> {
        match &mut self.role {
            Role::Stream(link) => Some(link),
            Role::Messages(_) => None,
        }
    }

    fn data_port(&mut self) -> &mut Port {
        self.raw.as_mut().unwrap_or(&mut self.control)
    }

    /// Whether the program's messages wait for room in the hub.
    pub(super) fn is_blocked(&self) -> bool {
        match &self.role {
            Role::Messages(inbound) => inbound.is_blocked(),
            Role::Stream(link) => link.blocked,
        }
    }

    /// Whether there is nothing left to be done for the program.
    pub(super) fn is_over(&self) -> bool {
        let told = self.told || self.control.hung_up;
        let read = self.raw.as_ref().unwrap_or(&self.control).read_closed;
        match &self.role {
            Role::Messages(inbound) if self.ending.is_some() => told && !inbound.is_blocked(),
            Role::Messages(_) if !self.attached => self.control.hung_up || read,
            // A program that will send no more hears what became of what it sent, if it is there.
            Role::Messages(inbound) => {
                read && !inbound.is_blocked() && (self.closed || self.control.hung_up)
            }
            Role::Stream(link) if link.phase == Phase::Over => {
                !link.has_output() || self.control.hung_up
            }
            Role::Stream(link) if link.key().is_none() => self.control.hung_up || read,
            Role::Stream(link) if link.program_ended => self.control.hung_up,
            // What the program wrote before it went is read: it may have said its end.
            Role::Stream(_) => read,
        }
    }

    /// Waits for what can be done next.
    pub(super) fn watch(&mut self, epoll: &Epoll) -> io::Result<()> {
        let over = matches!(&self.role, Role::Stream(link) if link.phase == Phase::Over);
        let reading = self.ending.is_none() && !self.is_blocked() && !over;
        if let Some(raw) = &mut self.raw {
            raw.watch(epoll, reading)?;
            return self.control.watch(epoll, self.ending.is_none());
        }
        self.control.watch(epoll, reading)
    }

    /// Ends the connection once what came before is in the hub; the program is told why.
    pub(super) fn fail(&mut self, fault: Fault, turn: &mut Turn<'_>) {
        if self.ending.is_some() {
            return;
        }
        let counters = &mut turn.channel.counters;
        match fault.code {
            Code::Busy | Code::TooMany => counters.refused_connections += 1,
            Code::Closed => {}
            _ => counters.protocol_errors += 1,
        }
        self.detach(turn);
        self.ending = Some(fault);
        if let Role::Stream(link) = &mut self.role {
            link.blocked = false;
        }
        self.tell_ending();
    }

    /// Tells the program why its connection ends, if it is time to.
    pub(super) fn tell_ending(&mut self) {
        if self.told || self.is_blocked() {
            return;
        }
        let Some(fault) = &self.ending else { return };
        let text = fault.text.as_bytes();
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let header = Header { code: fault.code.number(), length, ..Header::new(Kind::Error) };
        match &mut self.role {
            Role::Messages(_) => self.told = write_record(&mut self.control, header, text),
            Role::Stream(link) => {
                link.tell(header, text);
                link.phase = Phase::Over;
                self.told = true;
                flush(link, &mut self.control);
            }
        }
    }

    /// Tells a program that will send no more when all that it sent has arrived or was given up.
    /// What there is to tell of that comes before. While the hub has events that were not handled,
    /// messages may have been given up that are not counted yet: it is asked when they are.
    pub(super) fn tell_closed(&mut self, turn: &mut Turn<'_>) {
        let read = self.raw.as_ref().unwrap_or(&self.control).read_closed;
        if !read || !self.attached || self.closed || self.ending.is_some() || self.is_blocked() {
            return;
        }
        let Role::Messages(inbound) = &mut self.role else { return };
        if turn.hub.has_events() {
            if !std::mem::replace(&mut self.asks_later, true) {
                turn.jobs.push_back(Job::Settle(self.id));
            }
            return;
        }
        let Some(lost) = inbound.settle(self.channel, turn.hub) else { return };
        self.flush_news(turn);
        if self.news.is_empty() && self.control.is_open_for_output() {
            let number = u32::try_from(lost).unwrap_or(u32::MAX);
            let header = Header { number, ..Header::new(Kind::Closed) };
            self.closed = write_record(&mut self.control, header, &[]);
            turn.channel.counters.records_out += u64::from(self.closed);
        }
    }

    /// Messages to a peer were given up.
    pub(super) fn note_given_up(&mut self, peer: NodeId, count: u64) {
        if let Role::Messages(inbound) = &mut self.role {
            inbound.note_given_up(peer, count);
        }
    }

    /// The program gets no more messages, and its stream is reset unless it was done with it.
    fn detach(&mut self, turn: &mut Turn<'_>) {
        self.release_receiver(turn);
        let Role::Stream(link) = &mut self.role else { return };
        if let Some(key) = link.key() {
            turn.streams.remove(&key);
            if link.program_ended {
                // Without effect if the peer has ended its side, too.
                turn.hub.leave_stream(key);
            } else {
                turn.hub.reset_stream(key, 0);
                turn.channel.counters.streams_reset += 1;
            }
        }
        link.phase = Phase::Over;
    }

    /// Ends it. What the program sent and was not read is taken out of the socket: it would else
    /// see that instead of what it was told.
    pub(super) fn close(mut self, turn: &mut Turn<'_>) {
        self.detach(turn);
        if let Role::Messages(inbound) = &mut self.role {
            inbound.end(turn.channel);
        }
        turn.channel.forget(self.id);
        if let Some(raw) = &mut self.raw {
            raw.unwatch(&turn.shared.epoll);
        }
        self.control.unwatch(&turn.shared.epoll);
        drain(&self.control.socket, turn.shared.rx.room());
    }

    /// Ends it as its channel is no more.
    pub(super) fn abandon(mut self, fault: &Fault, shared: &mut Shared) {
        if self.ending.is_none() {
            if let Role::Messages(inbound) = &mut self.role {
                *inbound = Inbound::new(0);
            }
            self.ending = Some(fault.clone());
            self.tell_ending();
        }
        if let Some(raw) = &mut self.raw {
            raw.unwatch(&shared.epoll);
        }
        self.control.unwatch(&shared.epoll);
        drain(&self.control.socket, shared.rx.room());
    }

    /// Something can be read, or the other end is closed.
    pub(super) fn handle_control(&mut self, events: u32, turn: &mut Turn<'_>) {
        if events & libc::EPOLLHUP as u32 != 0 && !self.control.hung_up {
            self.control.hang_up();
            self.hang_up(turn);
        }
        if events & libc::EPOLLOUT as u32 != 0 {
            self.control.stalled = false;
            self.handle_writable(turn);
        }
        if events & (libc::EPOLLIN | libc::EPOLLERR | libc::EPOLLHUP) as u32 == 0 {
            return;
        }
        if self.ending.is_some() {
            // The error is taken away, or the set would tell of it again and again.
            let _ = self.control.socket.take_error();
            return;
        }
        if self.raw.is_none() && self.is_blocked() {
            return;
        }
        match (&self.role, &self.raw, self.attached) {
            (Role::Stream(_), ..) => self.read_stream(turn),
            (Role::Messages(_), _, false) => self.read_first(turn),
            (Role::Messages(_), None, true) => _ = self.read_messages(turn),
            (Role::Messages(_), Some(_), true) => self.read_lifeline(turn),
        }
        self.drain_raw(turn);
    }

    /// The same of the raw descriptor.
    pub(super) fn handle_raw(&mut self, events: u32, turn: &mut Turn<'_>) {
        let Some(raw) = &mut self.raw else { return };
        if events & libc::EPOLLHUP as u32 != 0 && !raw.hung_up {
            raw.hang_up();
            self.release_receiver(turn);
        } else if events & libc::EPOLLOUT as u32 != 0 {
            raw.stalled = false;
            turn.queue_delivery();
        }
        if events & (libc::EPOLLIN | libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0 {
            if self.ending.is_none() && !self.is_blocked() {
                self.read_messages(turn);
            } else if let Some(raw) = &self.raw {
                let _ = raw.socket.take_error();
            }
            self.drain_raw(turn);
        }
    }

    fn release_receiver(&mut self, turn: &mut Turn<'_>) {
        if turn.channel.receiver == Some(self.id) {
            turn.channel.lose_receiver();
            turn.queue_delivery();
        }
    }

    /// The program is gone: it gets nothing more. What it sent is read to the end.
    fn hang_up(&mut self, turn: &mut Turn<'_>) {
        self.news.clear();
        self.release_receiver(turn);
    }

    fn handle_writable(&mut self, turn: &mut Turn<'_>) {
        self.tell_ending();
        self.flush_news(turn);
        match &mut self.role {
            Role::Messages(_) => turn.queue_delivery(),
            Role::Stream(_) => self.deliver_stream(turn),
        }
    }

    /// A read gave an error.
    fn read_failed(&mut self, error: &io::Error, turn: &mut Turn<'_>) {
        if is_transient(error) {
            if let Some(raw) =
                self.raw.as_mut().filter(|_| error.kind() == io::ErrorKind::WouldBlock)
            {
                raw.note_read(false);
            }
            return;
        }
        let Some(raw) = &mut self.raw else {
            // A program that went with records unread is told by an error first; what it wrote can
            // be read after it.
            self.control.read_closed |= !is_gone(error);
            self.control.hang_up();
            self.hang_up(turn);
            return;
        };
        if is_local(&raw.socket) && is_gone(error) {
            raw.hang_up();
            self.release_receiver(turn);
        } else {
            turn.channel.counters.dropped_raw_failed += 1;
        }
    }

    /// Tells the program what there is to tell, as far as it reads.
    pub(super) fn flush_news(&mut self, turn: &mut Turn<'_>) {
        while self.attached && self.control.is_open_for_output() && self.ending.is_none() {
            if let Role::Stream(link) = &mut self.role
                && !flush(link, &mut self.control)
            {
                return;
            }
            let Some(mut header) = self.news.next() else { return };
            let name = match header.peer() {
                Some(peer) if header.kind == Kind::PeerUp => turn.shared.names.get(&peer),
                _ => None,
            };
            let name = name.map_or(&[][..], String::as_bytes);
            header.length = u32::try_from(name.len()).unwrap_or(u32::MAX);
            match &mut self.role {
                Role::Messages(_) => {
                    if !write_record(&mut self.control, header, name) {
                        return;
                    }
                }
                Role::Stream(link) => link.tell(header, name),
            }
            self.news.told();
            turn.channel.counters.records_out += 1;
            *turn.moved += 1;
        }
    }

    /// Adds something to tell, unless the program cannot be told any more.
    pub(super) fn add_news(&mut self, add: impl FnOnce(&mut News), turn: &mut Turn<'_>) {
        if self.attached && !self.control.hung_up && self.ending.is_none() {
            add(&mut self.news);
            self.flush_news(turn);
        }
    }
}

/// Writes a record of a connection of messages at once. Says whether it went out.
fn write_record(port: &mut Port, header: Header, payload: &[u8]) -> bool {
    let header = header.encode();
    let slices = [IoSlice::new(&header), IoSlice::new(payload)];
    match port.socket.send_vectored_with_flags(&slices, libc::MSG_NOSIGNAL) {
        Ok(_) => return true,
        Err(error) if is_transient(&error) => port.stalled = true,
        Err(_) => port.hang_up(),
    }
    false
}

/// The same call may work later.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// Nobody is at the other end any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPIPE | libc::ECONNRESET | libc::ECONNREFUSED | libc::ENOTCONN | libc::ESHUTDOWN
        )
    )
}

/// Takes a new connection that is not wanted, tells it why and closes it.
pub(super) fn turn_away(socket: &Socket, fault: &Fault) {
    let text = fault.text.as_bytes();
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let header = Header { code: fault.code.number(), length, ..Header::new(Kind::Error) }.encode();
    let slices = [IoSlice::new(&header), IoSlice::new(text)];
    // Whether it is there to read it is no matter any more.
    let _ = socket.send_vectored_with_flags(&slices, libc::MSG_NOSIGNAL);
}

/// Takes what was not read out of a socket that is about to be closed: unread bytes would have the
/// other end see a reset in place of the last records.
fn drain(socket: &Socket, room: &mut [u8]) {
    let socket = SockRef::from(socket);
    let _ = socket.shutdown(Shutdown::Read);
    for _ in 0..MAX_DRAIN {
        match (&*socket).read(room) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
