//! A program's connection to a channel's socket.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use encap::channel::hub::{ChannelEvent, ChannelKey, Hub, StreamKey};
use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::{Domain, SockRef, Socket, Type};

use super::batch::{BATCH, RxBatch, TxBatch};
use super::entry::Channel;
use super::framing::{Code, Flags, HEADER_LEN, Header, Kind, MAX_RECORD_LEN, VERSION, mode_number};
use super::inbound::{Fault, Inbound, RawTarget};
use super::news::News;
use super::port::{ConnectionId, Port, Token};
use super::stream::{Buffers, Input, Phase, StreamLink, Wish};
use super::system::{self, Epoll};

/// Room that is asked for in a program's socket, in bytes: some thousand small messages, so that a
/// program that is not always quick loses no unreliable ones and is not woken for each few.
const SOCKET_BUFFER: usize = 1 << 20;
/// Reads at the end of a connection, of up to [`MAX_RECORD_LEN`] bytes each, that make sure that the
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
            // A program that will send no more sees by the end of the connection that all was taken.
            Role::Messages(inbound) => read && !inbound.is_blocked(),
            Role::Stream(link) if link.phase == Phase::Over => {
                !link.has_output() || self.control.hung_up
            }
            Role::Stream(link) => {
                // What the program wrote before it went counts if it had both ends.
                (self.control.hung_up && !link.peer_ended)
                    || (read && (self.control.hung_up || !link.program_ended))
            }
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

    /// The program gets no more messages, and its stream is reset unless it was done with it.
    fn detach(&mut self, turn: &mut Turn<'_>) {
        self.release_receiver(turn);
        let Role::Stream(link) = &mut self.role else { return };
        if let Some(key) = link.key() {
            turn.streams.remove(&key);
            if !link.has_both_ends() {
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

    /// Reads the first record, with what descriptors came with it.
    fn read_first(&mut self, turn: &mut Turn<'_>) {
        let room = turn.shared.rx.room();
        let first = match system::receive_first(self.control.socket.as_fd(), room) {
            Ok(first) => first,
            Err(error) => return self.read_failed(&error, turn),
        };
        if first.len == 0 {
            self.control.read_closed = true;
            return;
        }
        *turn.moved += 1;
        turn.channel.counters.records_in += 1;
        let record = room.get(..first.len).unwrap_or_default();
        let attach = match Header::read(record) {
            Ok((header, _)) if header.kind == Kind::Attach && !first.truncated => header,
            Ok(_) => {
                let text = "the first record of a connection is ATTACH";
                return self.fail(Fault::new(Code::NotAttached, text), turn);
            }
            Err(fault) => return self.fail(fault.into(), turn),
        };
        if let Err(fault) = self.attach(attach, first.descriptors, turn) {
            self.fail(fault, turn);
        }
    }

    /// The program is one of the channel's from now on.
    fn attach(
        &mut self,
        attach: Header,
        mut descriptors: Vec<OwnedFd>,
        turn: &mut Turn<'_>,
    ) -> Result<(), Fault> {
        if self.attached {
            return Err(Fault::new(Code::Invalid, "a second ATTACH"));
        }
        if attach.number != VERSION {
            let text = format!("version {} of records; this is {VERSION}", attach.number);
            return Err(Fault::new(Code::Version, text));
        }
        let raw = attach.flags.contains(Flags::RAW);
        let descriptor = descriptors.pop();
        if raw != descriptor.is_some() || !descriptors.is_empty() {
            let text = "ATTACH brings one descriptor if it says RAW, else none";
            return Err(Fault::new(Code::Invalid, text));
        }
        let channel = &mut *turn.channel;
        let mut longest = channel.max_message_len();
        if let Role::Messages(inbound) = &mut self.role {
            if let Some(descriptor) = descriptor {
                let socket = checked_raw(descriptor)?;
                system::set_send_buffer(socket.as_fd(), SOCKET_BUFFER);
                self.raw = Some(Port::new(socket, Token::Raw(self.id)));
                inbound.raw = Some(RawTarget { to: attach.peer(), priority: attach.priority });
                longest = longest.min(MAX_RECORD_LEN as u32);
            }
            if attach.flags.contains(Flags::RECEIVE) {
                if channel.receiver.is_some() {
                    let text = "another program gets the messages of this channel";
                    return Err(Fault::new(Code::Busy, text));
                }
                channel.receiver = Some(self.id);
            }
        }
        self.attached = true;
        let longest = if channel.mode == Mode::Stream { 0 } else { longest };
        self.welcome(longest, turn);
        Ok(())
    }

    fn welcome(&mut self, longest: u32, turn: &mut Turn<'_>) {
        let header = Header {
            peer: turn.shared.own.map_or(0, NodeId::get),
            number: VERSION,
            length: longest,
            priority: mode_number(turn.channel.mode),
            ..Header::new(Kind::Welcome)
        };
        let name = turn.channel.name.as_bytes();
        match &mut self.role {
            Role::Messages(_) => {
                // The socket is empty still; a program that is gone already will be seen so.
                let _ = write_record(&mut self.control, header, name);
            }
            Role::Stream(link) => link.tell(header, name),
        }
        turn.channel.counters.records_out += 1;
        for peer in turn.hub.reachable(self.channel) {
            self.news.up(peer);
        }
        self.flush_news(turn);
        if turn.channel.receiver == Some(self.id) {
            turn.channel.readable = true;
            turn.queue_delivery();
        }
    }

    /// Reads what a program left behind in a raw descriptor, as far as the hub has room.
    fn drain_raw(&mut self, turn: &mut Turn<'_>) {
        let gone = self.control.hung_up && self.ending.is_none();
        for _ in 0..MAX_DRAIN {
            if !gone || self.raw.is_none() || self.is_blocked() {
                return;
            }
            if self.read_messages(turn) < BATCH {
                break;
            }
        }
        if gone
            && !self.is_blocked()
            && let Some(raw) = &mut self.raw
        {
            raw.read_closed = true;
        }
    }

    /// Reads packets of an attached program into the hub; says how many came.
    fn read_messages(&mut self, turn: &mut Turn<'_>) -> usize {
        let is_raw = self.raw.is_some();
        let port = self.data_port();
        let count = match turn.shared.rx.receive(port.socket.as_fd()) {
            Ok(count) => count,
            Err(error) => {
                self.read_failed(&error, turn);
                return 0;
            }
        };
        let keeps_empty = is_raw && port.socket.r#type().is_ok_and(|kind| kind == Type::DGRAM);
        let mut closed = false;
        let Role::Messages(inbound) = &mut self.role else { return 0 };
        let mut fault = None;
        for packet in turn.shared.rx.packets() {
            if packet.bytes.is_empty() && !keeps_empty {
                // Of a connection of packets nothing is its end.
                closed = true;
                break;
            }
            *turn.moved += 1;
            turn.channel.counters.records_in += 1;
            let result = if is_raw {
                inbound.take_raw(packet, turn.now, turn.channel, turn.hub)
            } else {
                inbound.take_record(packet, turn.now, turn.channel, turn.hub)
            };
            if let Err(wrong) = result {
                fault = Some(wrong);
                break;
            }
        }
        if inbound.is_blocked() {
            turn.channel.blocked.push_back(self.id);
        }
        if closed {
            self.data_port().read_closed = true;
        }
        if let Some(fault) = fault {
            self.fail(fault, turn);
        }
        count
    }

    /// Beside a raw descriptor the connection carries events only.
    fn read_lifeline(&mut self, turn: &mut Turn<'_>) {
        let mut byte = [0; HEADER_LEN];
        match (&self.control.socket).read(&mut byte) {
            Ok(0) => self.control.read_closed = true,
            Ok(_) => {
                turn.channel.counters.records_in += 1;
                let text = "a record beside a raw descriptor";
                self.fail(Fault::new(Code::Invalid, text), turn);
            }
            Err(error) if is_gone(&error) => {
                self.control.hang_up();
                self.hang_up(turn);
            }
            Err(_) => {}
        }
    }

    /// A read gave an error.
    fn read_failed(&mut self, error: &io::Error, turn: &mut Turn<'_>) {
        if is_transient(error) {
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

    /// Tries messages again that the hub had no room for: if the first of them is for this peer,
    /// or any. Says whether some were taken.
    pub(super) fn retry(&mut self, peer: Option<NodeId>, turn: &mut Turn<'_>) -> bool {
        let Role::Messages(inbound) = &mut self.role else { return false };
        if !inbound.is_blocked() || peer.is_some_and(|peer| !inbound.waits_for(peer)) {
            return false;
        }
        let taken = match inbound.retry(turn.now, turn.hub, self.channel) {
            Ok(taken) => taken > 0,
            Err(fault) => {
                inbound.end(turn.channel);
                self.fail(fault, turn);
                true
            }
        };
        self.tell_ending();
        self.drain_raw(turn);
        taken
    }

    /// Sends the program what came for it.
    pub(super) fn deliver(&mut self, turn: &mut Turn<'_>) {
        let is_raw = self.raw.is_some();
        let unreliable = turn.channel.mode == Mode::Unreliable;
        if self.data_port().is_open_for_output() {
            turn.channel.fill_outbox(turn.hub);
            if is_raw {
                turn.channel.counters.dropped_raw_too_long += turn.channel.outbox.drop_long();
            }
            let packets = turn.channel.outbox.packets(is_raw);
            let port = self.raw.as_mut().unwrap_or(&mut self.control);
            match turn.shared.tx.send(port.socket.as_fd(), packets) {
                Ok((sent, of)) => {
                    turn.channel.outbox.written(sent, is_raw);
                    turn.channel.counters.records_out += sent as u64;
                    *turn.moved += sent;
                    // What stopped the call is asked for by the next one, which the set calls for.
                    port.stalled = sent < of;
                }
                Err(error) => self.send_failed(&error, turn),
            }
        }
        if unreliable && !self.data_port().is_open_for_output() {
            *turn.moved += turn.channel.drop_unreliable(turn.hub);
            if turn.channel.readable {
                turn.queue_delivery();
            }
        } else if self.data_port().is_open_for_output()
            && (turn.channel.readable || !turn.channel.outbox.is_empty())
        {
            turn.queue_delivery();
        }
    }

    fn send_failed(&mut self, error: &io::Error, turn: &mut Turn<'_>) {
        let port = self.raw.as_mut().unwrap_or(&mut self.control);
        if is_transient(error) {
            port.stalled = true;
            return;
        }
        let counters = &mut turn.channel.counters;
        if self.raw.is_none() && is_gone(error) {
            self.control.hang_up();
            self.hang_up(turn);
        } else if self.raw.is_none() {
            let text = format!("the socket takes nothing: {error}");
            self.fail(Fault::new(Code::Invalid, text), turn);
        } else if error.raw_os_error() == Some(libc::EMSGSIZE) {
            counters.dropped_raw_too_long += 1;
            turn.channel.outbox.drop_first();
        } else if self.raw.as_ref().is_some_and(|raw| is_local(&raw.socket)) {
            let text = format!("the raw descriptor takes nothing: {error}");
            self.fail(Fault::new(Code::Invalid, text), turn);
        } else {
            counters.dropped_raw_failed += 1;
            turn.channel.outbox.drop_first();
        }
    }

    /// Reads what the program sent of its stream.
    fn read_stream(&mut self, turn: &mut Turn<'_>) {
        let Role::Stream(link) = &mut self.role else { return };
        if link.blocked || link.phase == Phase::Over {
            return;
        }
        match link.receive(&self.control.socket, &mut turn.shared.buffers) {
            Ok(0) => self.control.read_closed = true,
            Ok(_) => self.use_stream_input(turn),
            Err(error) => self.read_failed(&error, turn),
        }
    }

    /// Uses what was read, now that the hub may have room.
    pub(super) fn use_stream_input(&mut self, turn: &mut Turn<'_>) {
        let Role::Stream(link) = &mut self.role else { return };
        let was_blocked = std::mem::take(&mut link.blocked);
        let mut key = link.key();
        let mut records = 0;
        let fault = loop {
            let Role::Stream(link) = &mut self.role else { return };
            key = link.key().or(key);
            match link.use_input(turn.hub, &mut turn.shared.buffers, &mut records) {
                Ok(Input::Nothing) => break None,
                Ok(Input::Wish(wish)) => {
                    if let Err(fault) = self.grant(wish, turn) {
                        break Some(fault);
                    }
                }
                Err(fault) => break Some(fault),
            }
        };
        turn.channel.counters.records_in += records;
        *turn.moved += records as usize;
        if let Some(fault) = fault {
            return self.fail(fault, turn);
        }
        if self.is_blocked() && !was_blocked {
            turn.channel.counters.held_back += 1;
        }
        if let (Role::Stream(link), Some(key)) = (&self.role, key)
            && link.phase == Phase::Over
        {
            // The program has reset it.
            turn.streams.remove(&key);
        }
        self.deliver_stream(turn);
    }

    fn grant(&mut self, wish: Wish, turn: &mut Turn<'_>) -> Result<(), Fault> {
        if let Wish::Attach(header) = wish {
            return self.attach(header, Vec::new(), turn);
        }
        if !self.attached {
            let text = "the first record of a connection is ATTACH";
            return Err(Fault::new(Code::NotAttached, text));
        }
        match wish {
            Wish::Connect(peer) => {
                let key = turn.hub.open_stream(turn.now, self.channel, peer)?;
                turn.streams.insert(key, self.id);
                if let Role::Stream(link) = &mut self.role {
                    link.phase = Phase::Connecting(key, peer);
                }
            }
            _ => {
                if let Role::Stream(link) = &mut self.role {
                    link.phase = Phase::Accepting;
                }
                turn.channel.accepting.push_back(self.id);
                turn.queue_delivery();
            }
        }
        Ok(())
    }

    /// The program has a stream.
    pub(super) fn open(&mut self, key: StreamKey, peer: NodeId, turn: &mut Turn<'_>) {
        turn.streams.insert(key, self.id);
        let Role::Stream(link) = &mut self.role else { return };
        link.phase = Phase::Open(key);
        link.readable = true;
        link.tell(Header::event(Kind::Connected, peer, 0, 0), &[]);
        turn.channel.counters.records_out += 1;
        self.deliver_stream(turn);
    }

    /// Something happened to its stream.
    pub(super) fn handle_stream_event(
        &mut self,
        key: StreamKey,
        event: ChannelEvent,
        turn: &mut Turn<'_>,
    ) {
        let Role::Stream(link) = &mut self.role else { return };
        match (event, link.phase) {
            (ChannelEvent::StreamOpened(_), Phase::Connecting(_, peer)) => {
                return self.open(key, peer, turn);
            }
            (ChannelEvent::StreamReadable(_), _) => link.readable = true,
            (ChannelEvent::StreamWritable(_), _) if link.blocked => {
                return self.use_stream_input(turn);
            }
            (ChannelEvent::StreamDone(_), _) => link.done(),
            (ChannelEvent::StreamFailed(_, error), _) => link.fail(error),
            _ => return,
        }
        self.deliver_stream(turn);
    }

    /// Writes what there is for the program.
    pub(super) fn deliver_stream(&mut self, turn: &mut Turn<'_>) {
        if !self.control.is_open_for_output() {
            return;
        }
        let Role::Stream(link) = &mut self.role else { return };
        match link.deliver(&self.control.socket, turn.hub) {
            Ok((records, all)) => {
                self.control.stalled = !all;
                turn.channel.counters.records_out += records;
                *turn.moved += records as usize;
                let open = matches!(link.phase, Phase::Open(_));
                if all && open && link.readable && !link.peer_ended && !link.queued {
                    link.queued = true;
                    turn.jobs.push_back(Job::Stream(self.id));
                }
            }
            Err(_) => {
                self.control.hang_up();
                self.hang_up(turn);
            }
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

/// Writes what waits on a connection of streams. Says whether all went out.
fn flush(link: &mut StreamLink, port: &mut Port) -> bool {
    match link.flush(&port.socket) {
        Ok(all) => {
            port.stalled = !all;
            all
        }
        Err(_) => {
            port.hang_up();
            false
        }
    }
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

/// Whether the other end is on this node for sure.
fn is_local(socket: &Socket) -> bool {
    socket.domain().is_ok_and(|domain| domain == Domain::UNIX)
}

/// A descriptor of a program, if it can carry messages.
fn checked_raw(descriptor: OwnedFd) -> Result<Socket, Fault> {
    let wrong = |text| Fault::new(Code::Invalid, text);
    let socket = Socket::from(descriptor);
    let no_socket = |_| wrong("the raw descriptor is no socket");
    let (domain, kind) = (socket.domain().map_err(no_socket)?, socket.r#type().map_err(no_socket)?);
    if ![Domain::UNIX, Domain::IPV4, Domain::IPV6].contains(&domain) {
        return Err(wrong("the raw descriptor is neither a UNIX nor an IP socket"));
    }
    if kind != Type::DGRAM && kind != Type::SEQPACKET {
        return Err(wrong("the raw descriptor is no socket of packets (SEQPACKET or DGRAM)"));
    }
    if socket.peer_addr().is_err() {
        return Err(wrong("the raw descriptor is not connected"));
    }
    Ok(socket)
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
