//! Records, and packets without headers, of a program on a channel of messages.

use std::io::{self, Read};
use std::os::fd::AsFd;

use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::{Domain, Socket, Type};

use super::{Connection, MAX_DRAIN, Role, Turn, is_gone, is_transient};
use crate::channel::batch::BATCH;
use crate::channel::entry::Channel;
use crate::channel::framing::{Code, HEADER_LEN};
use crate::channel::inbound::Fault;

impl Connection {
    /// Reads packets of an attached program into the hub; says how many came.
    pub(super) fn read_messages(&mut self, turn: &mut Turn<'_>) -> usize {
        let is_raw = self.raw.is_some();
        let port = self.data_port();
        let count = match turn.shared.rx.receive(port.socket.as_fd()) {
            Ok(count) => {
                port.note_read(true);
                count
            }
            Err(error) => {
                self.read_failed(&error, turn);
                return 0;
            }
        };
        let keeps_empty = is_raw && keeps_empty(&port.socket);
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

    /// Reads what a program that is gone, or has said its end, left behind in a raw descriptor, as
    /// far as the hub has room.
    pub(super) fn drain_raw(&mut self, turn: &mut Turn<'_>) {
        let over = self.control.hung_up || self.control.read_closed;
        let gone = over && self.ending.is_none();
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

    /// Beside a raw descriptor the connection carries events only, and the end of sending.
    pub(super) fn read_lifeline(&mut self, turn: &mut Turn<'_>) {
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

    /// Tries messages again that the hub had no room for: if the first of them is for this peer,
    /// or any. Says whether some were taken.
    pub(in crate::channel) fn retry(&mut self, peer: Option<NodeId>, turn: &mut Turn<'_>) -> bool {
        let Role::Messages(inbound) = &mut self.role else { return false };
        if !inbound.is_blocked() || peer.is_some_and(|peer| !inbound.waits_for(peer)) {
            return false;
        }
        let taken = match inbound.retry(turn.now, turn.hub, turn.channel) {
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
    pub(in crate::channel) fn deliver(&mut self, turn: &mut Turn<'_>) {
        let is_raw = self.raw.is_some();
        let unreliable = turn.channel.mode == Mode::Unreliable;
        if self.data_port().is_open_for_output() {
            turn.channel.fill_outbox(turn.hub);
            if let Some(raw) = &self.raw {
                let Channel { outbox, counters, .. } = &mut *turn.channel;
                counters.dropped_raw_too_long += outbox.drop_long();
                if outbox.has_empty() && !keeps_empty(&raw.socket) {
                    counters.dropped_raw_empty += outbox.drop_empty();
                }
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

    pub(super) fn send_failed(&mut self, error: &io::Error, turn: &mut Turn<'_>) {
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
}

/// Whether an empty packet is one as any other, and not the end.
fn keeps_empty(socket: &Socket) -> bool {
    socket.r#type().is_ok_and(|kind| kind == Type::DGRAM)
}

/// Whether the other end is on this node for sure.
pub(super) fn is_local(socket: &Socket) -> bool {
    socket.domain().is_ok_and(|domain| domain == Domain::UNIX)
}
