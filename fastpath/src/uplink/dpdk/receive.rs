//! Frames from the underlay: datagrams of other nodes, neighbours, echo requests, and what is the
//! host's.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use encap::forward::policer::Policer;
use encap::wire::buf::{BufPool, Burst, PacketBuf, Received, Transmit, UplinkId};

use super::exception::Exception;
use super::sender::{Run, Sender};
use super::{Shared, lock};
use crate::dpdk::{Interrupts, RxPacket, RxQueue};
use crate::neighbor::Neighbors;
use crate::port::{Armed, DatagramCapabilities, DatagramPort, MAX_BURST, TxReport};
use crate::underlay::{
    Classified, IPV4_HEADER_LEN, IPV6_HEADER_LEN, UDP_HEADER_LEN, UnderlayCounters, classify,
    echo_reply,
};

/// Echo requests that are answered in a second.
const ECHOES_PER_SECOND: u32 = 100;
/// Longest frame that can hold a datagram, in bytes.
const MAX_FRAME_LEN: usize = 65_535 + 18;

/// One worker's share of a DPDK uplink.
#[derive(Debug)]
pub struct DpdkUplink {
    rx: RxQueue,
    /// Those of its queue, the host's frames, and neighbours that want something done.
    interrupts: Option<Interrupts>,
    pub(super) share: Share,
}

/// All of it but the queue that packets are borrowed from.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) sender: Sender,
    pub(super) underlay: Arc<UnderlayCounters>,
    echoes: Policer,
    exception: Option<Exception>,
    /// The first worker serves the neighbours' timers.
    first: bool,
    /// What a frame in several buffers is copied to.
    scratch: Vec<u8>,
}

impl DpdkUplink {
    pub(super) fn new(
        shared: &Arc<Shared>,
        mut rx: RxQueue,
        number: usize,
        exception: Option<Exception>,
        interrupts: bool,
    ) -> Self {
        let interrupts = if interrupts { Interrupts::of(slice::from_mut(&mut rx)) } else { None };
        let share = Share {
            sender: Sender::new(Arc::clone(shared), number, Arc::default()),
            underlay: Arc::default(),
            echoes: Policer::new(shared.started, ECHOES_PER_SECOND, ECHOES_PER_SECOND),
            exception,
            first: number == 0,
            scratch: Vec::new(),
        };
        let interrupts = interrupts.filter(|interrupts| share.wake_by(interrupts));
        Self { rx, interrupts, share }
    }

    /// The local attachment that datagrams are labelled with.
    #[must_use]
    pub fn id(&self) -> UplinkId {
        self.share.sender.shared.id
    }
}

impl Share {
    /// Has the descriptor become readable with what else is to be done; says whether that is possible.
    fn wake_by(&self, interrupts: &Interrupts) -> bool {
        let neighbors =
            self.first.then(|| interrupts.add(self.sender.shared.due_sooner.fd(), true));
        let exception = self.exception.as_ref().and_then(Exception::poll_fd);
        let exception = exception.map(|fd| interrupts.add(fd, false));
        match neighbors.into_iter().chain(exception).find_map(Result::err) {
            Some(error) => {
                log::warn!("a DPDK port is polled: {error}");
                false
            }
            None => true,
        }
    }

    /// Sends what the neighbours want sent, when that is due.
    fn look_at_neighbors(&mut self, now: Instant) {
        let shared = &self.sender.shared;
        if shared.us(now) < shared.due_us.load(Ordering::Relaxed) {
            return;
        }
        self.with_neighbors(|neighbors| neighbors.handle_timeout(now));
    }

    /// Lets the neighbours work, and sends what they have to be sent then.
    fn with_neighbors(&mut self, work: impl FnOnce(&mut Neighbors)) {
        let shared = Arc::clone(&self.sender.shared);
        let mut neighbors = lock(&shared.neighbors);
        work(&mut neighbors);
        shared.publish(&mut neighbors);
        let frames: Vec<_> = std::iter::from_fn(|| neighbors.poll_frame()).collect();
        let released: Vec<_> = std::iter::from_fn(|| neighbors.poll_released()).collect();
        drop(neighbors);
        self.sender.send_frames(frames.iter().map(Vec::as_slice));
        self.sender.send_released(&released);
    }

    fn take(
        &mut self,
        now: Instant,
        frame: &[u8],
        flags: u32,
        pool: &mut BufPool,
        received: &mut Burst<Received>,
    ) {
        let shared = &self.sender.shared;
        let counters = &self.sender.counters;
        match classify(frame, &shared.local, &shared.ports, shared.rx_checksum(flags)) {
            Classified::Datagram { remote, mark, payload, .. } => {
                let payload = frame.get(payload).unwrap_or_default();
                counters.rx_datagrams.add(1);
                counters.rx_bytes.add(payload.len() as u64);
                if joins(received, payload, shared.id, remote, mark) {
                    return;
                }
                counters.rx_messages.add(1);
                let mut buf = pool.alloc();
                if append(&mut buf, payload) {
                    received.push(Received::single(buf, shared.id, remote, mark));
                } else {
                    counters.rx_dropped_long.add(1);
                    pool.free(buf);
                }
            }
            Classified::Arp(_) | Classified::Nd(_) => {
                counters.rx_neighbor.add(1);
                self.with_neighbors(|neighbors| neighbors.handle_frame(now, frame));
                // The host behind the exception tap has neighbours of its own.
                if self.exception.as_mut().is_some_and(|exception| !exception.give(now, frame)) {
                    self.sender.counters.rx_dropped_foreign.add(1);
                }
            }
            Classified::Echo(_) => self.answer_echo(now, frame),
            Classified::Foreign => {
                if self.exception.as_mut().is_some_and(|exception| exception.give(now, frame)) {
                    counters.rx_exception.add(1);
                } else {
                    counters.rx_dropped_foreign.add(1);
                }
            }
            Classified::NotOurs => counters.rx_dropped_not_ours.add(1),
            // The host may have other addresses behind our MAC address, and other VLANs.
            Classified::Drop(reason)
                if reason.may_be_hosts()
                    && self
                        .exception
                        .as_mut()
                        .is_some_and(|exception| exception.give(now, frame)) =>
            {
                counters.rx_exception.add(1);
            }
            Classified::Drop(reason) => self.underlay.count(reason),
        }
    }

    /// Takes a frame that lies in several buffers.
    fn take_in_pieces(
        &mut self,
        now: Instant,
        packet: &RxPacket<'_>,
        pool: &mut BufPool,
        received: &mut Burst<Received>,
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(MAX_FRAME_LEN, 0);
        match packet.copy_to(&mut scratch) {
            Some(len) => {
                let frame = scratch.get(..len).unwrap_or_default();
                self.take(now, frame, packet.flags(), pool, received);
            }
            None => self.sender.counters.rx_dropped_long.add(1),
        }
        self.scratch = scratch;
    }

    fn answer_echo(&mut self, now: Instant, frame: &[u8]) {
        let reply = echo_reply(frame, &self.sender.shared.local);
        match reply.filter(|_| self.echoes.take(now)) {
            Some(reply) => {
                self.sender.counters.rx_echoes.add(1);
                self.sender.send_frames([reply.as_slice()].into_iter());
            }
            None => self.sender.counters.rx_dropped_echo.add(1),
        }
    }

    /// Sends what the host wants to send by the exception tap.
    fn serve_exception(&mut self, now: Instant) {
        let Some(exception) = self.exception.as_mut().filter(|exception| exception.is_due(now))
        else {
            return;
        };
        let frames = exception.take();
        if !frames.is_empty() {
            self.sender.counters.tx_exception.add(frames.len() as u64);
            self.sender.send_frames(frames.iter().map(|(_, bytes)| bytes));
            frames.clear();
        }
    }
}

/// Puts a datagram behind the last run if it continues that.
fn joins(
    received: &mut Burst<Received>,
    payload: &[u8],
    uplink: UplinkId,
    remote: SocketAddr,
    mark: u8,
) -> bool {
    let Some(run) = received.last_mut() else { return false };
    let continues = (run.uplink, run.remote, run.mark) == (uplink, remote, mark)
        && run.buf.len().is_multiple_of(run.segment_size)
        && !run.buf.is_empty()
        && !payload.is_empty()
        && payload.len() <= run.segment_size;
    continues && append(&mut run.buf, payload)
}

fn append(buf: &mut PacketBuf, payload: &[u8]) -> bool {
    let len = buf.len();
    let Some(room) = buf.spare_mut().get_mut(..payload.len()) else { return false };
    room.copy_from_slice(payload);
    buf.set_len(len + payload.len());
    true
}

impl DatagramPort for DpdkUplink {
    fn rx_burst(&mut self, pool: &mut BufPool, received: &mut Burst<Received>) -> io::Result<()> {
        let now = Instant::now();
        let Self { rx, share, .. } = self;
        if share.first {
            share.look_at_neighbors(now);
        }
        for packet in rx.receive(MAX_BURST).iter() {
            match packet.bytes() {
                Some(frame) => share.take(now, frame, packet.flags(), pool, received),
                None => share.take_in_pieces(now, &packet, pool, received),
            }
        }
        share.serve_exception(now);
        Ok(())
    }

    fn tx_burst(&mut self, memory: &[u8], transmits: &[Transmit]) -> TxReport {
        self.share.sender.send(
            Instant::now(),
            transmits.iter().map(|transmit| Run {
                bytes: memory.get(transmit.range.clone()).unwrap_or_default(),
                segment_size: transmit.segment_size,
                remote: transmit.remote,
                mark: transmit.mark,
            }),
        )
    }

    fn capabilities(&self) -> DatagramCapabilities {
        let shared = &self.share.sender.shared;
        let header = if shared.local.ip.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
        let max = usize::from(shared.ip_mtu);
        DatagramCapabilities { max_udp_payload: max.saturating_sub(header + UDP_HEADER_LEN) }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.interrupts.as_ref().map(Interrupts::fd)
    }

    fn arm(&mut self) -> Armed {
        let Some(interrupts) = &self.interrupts else { return Armed::Ready };
        let armed = interrupts.arm(slice::from_mut(&mut self.rx));
        if armed == Armed::Impossible {
            log::warn!("a DPDK port refuses its interrupts: it is polled from now on");
            self.interrupts = None;
        }
        armed
    }

    fn disarm(&mut self) {
        if let Some(interrupts) = &self.interrupts {
            interrupts.disarm(slice::from_mut(&mut self.rx));
        }
    }

    /// Until the neighbours want to be looked at.
    fn longest_wait(&self, now: Instant) -> Duration {
        if !self.share.first {
            return Duration::MAX;
        }
        let shared = &self.share.sender.shared;
        let due = shared.due_us.load(Ordering::Relaxed);
        Duration::from_micros(due.saturating_sub(shared.us(now)))
    }
}
