//! A program's first record.

use std::os::fd::{AsFd, OwnedFd};

use encap::id::NodeId;
use encap::wire::channel::Mode;
use socket2::{Domain, Socket, Type};

use super::{Connection, Role, SOCKET_BUFFER, Turn, write_record};
use crate::channel::framing::{Code, Flags, Header, Kind, MAX_RECORD_LEN, VERSION, mode_number};
use crate::channel::inbound::{Fault, RawTarget};
use crate::channel::port::{Port, Token};
use crate::channel::system;

impl Connection {
    /// Reads the first record, with what descriptors came with it.
    pub(super) fn read_first(&mut self, turn: &mut Turn<'_>) {
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
    pub(super) fn attach(
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
        if raw && matches!(self.role, Role::Stream(_)) {
            return Err(Fault::new(Code::Invalid, "streams take no RAW"));
        }
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

    pub(super) fn welcome(&mut self, longest: u32, turn: &mut Turn<'_>) {
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
        // What the others were told.
        for peer in turn.hub.refused(self.channel) {
            self.news.refused(peer);
        }
        self.flush_news(turn);
        if turn.channel.receiver == Some(self.id) {
            turn.channel.readable = true;
            turn.queue_delivery();
        }
    }
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
