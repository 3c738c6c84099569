//! A program's stream.

use encap::channel::hub::{ChannelEvent, StreamKey};
use encap::id::NodeId;

use super::{Connection, Job, Role, Turn};
use crate::channel::framing::{Code, Header, Kind};
use crate::channel::inbound::Fault;
use crate::channel::port::Port;
use crate::channel::stream::{Input, Phase, StreamLink, Wish};

impl Connection {
    /// Reads what the program sent of its stream.
    pub(super) fn read_stream(&mut self, turn: &mut Turn<'_>) {
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
    pub(in crate::channel) fn use_stream_input(&mut self, turn: &mut Turn<'_>) {
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

    pub(super) fn grant(&mut self, wish: Wish, turn: &mut Turn<'_>) -> Result<(), Fault> {
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
    pub(in crate::channel) fn open(&mut self, key: StreamKey, peer: NodeId, turn: &mut Turn<'_>) {
        turn.streams.insert(key, self.id);
        let Role::Stream(link) = &mut self.role else { return };
        link.phase = Phase::Open(key);
        link.readable = true;
        link.tell(Header::event(Kind::Connected, peer, 0, 0), &[]);
        turn.channel.counters.records_out += 1;
        self.deliver_stream(turn);
    }

    /// Something happened to its stream.
    pub(in crate::channel) fn handle_stream_event(
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
    pub(in crate::channel) fn deliver_stream(&mut self, turn: &mut Turn<'_>) {
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

/// Writes what waits on a connection of streams. Says whether all went out.
pub(super) fn flush(link: &mut StreamLink, port: &mut Port) -> bool {
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
