//! Datagrams for other nodes: outer headers in front, and into the port's queue.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use encap::wire::ethernet::MacAddr;
use encap::wire::header::Format;

use super::{DpdkCounters, PORT_COUNT, Shared, lock};
use crate::dpdk::{TxOffload, TxQueue};
use crate::neighbor::{Pending, Resolution};
use crate::port::{MAX_BURST, TxReport};
use crate::underlay::{MAX_UNDERLAY_HEADER_LEN, Template, UdpChecksum, Varying};

/// Times that a port without room is asked again at once.
const RETRIES: u32 = 32;
/// A template is good for so long; then its neighbour is asked for again, which keeps it in use.
const REFRESH: Duration = Duration::from_secs(1);
/// Templates that a sender keeps; all are made anew when there are more.
const MAX_TEMPLATES: usize = 4096;
/// Byte of the data header that holds the lane; its upper four bits are the bucket.
const LANE_BYTE: usize = 3;
/// The control thread's bucket, whose datagrams leave from the base port.
const CONTROL_BUCKET: u8 = 15;
/// Shortest Ethernet frame without its check sequence, in bytes (IEEE 802.3).
const MIN_FRAME_LEN: usize = 60;

/// Datagrams to one address, all of one size but the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'m> {
    /// One behind the other.
    pub(super) bytes: &'m [u8],
    pub(super) segment_size: usize,
    pub(super) remote: SocketAddr,
    pub(super) mark: u8,
}

#[derive(Debug, Clone)]
struct Way {
    template: Template,
    until: Instant,
}

/// A thread's way out of a DPDK uplink.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<DpdkCounters>,
    /// Index of its transmit queue.
    queue: usize,
    /// By remote address and our port.
    ways: HashMap<(SocketAddr, u16), Way>,
    /// The neighbours that `ways` are of.
    generation: u64,
    /// Templates of a burst, by the order of its runs.
    templates: Vec<Option<Template>>,
    identification: u16,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, queue: usize, counters: Arc<DpdkCounters>) -> Self {
        Self {
            shared,
            counters,
            queue,
            ways: HashMap::new(),
            generation: 0,
            templates: Vec::with_capacity(MAX_BURST),
            identification: 0,
        }
    }

    /// Sends runs of datagrams in their order; the report counts datagrams.
    pub(super) fn send<'m>(
        &mut self,
        now: Instant,
        runs: impl Iterator<Item = Run<'m>> + Clone,
    ) -> TxReport {
        let mut report = TxReport::default();
        let mut templates = std::mem::take(&mut self.templates);
        templates.clear();
        // All ways are known before the queue is locked: asking for one takes another lock.
        templates.extend(runs.clone().map(|run| self.way(now, &run, &mut report)));
        let shared = Arc::clone(&self.shared);
        let Some(queue) = shared.queues.get(self.queue) else { return report };
        let mut queue = lock(queue);
        for (run, template) in runs.zip(&templates) {
            if let Some(template) = template {
                self.write_run(&mut queue, template, &run, &mut report);
            }
        }
        self.flush(&mut queue, &mut report);
        drop(queue);
        self.templates = templates;
        report
    }

    /// The outer header of a run; none when its datagrams wait or cannot go.
    fn way(&mut self, now: Instant, run: &Run<'_>, report: &mut TxReport) -> Option<Template> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.generation || self.ways.len() > MAX_TEMPLATES {
            self.ways.clear();
            self.generation = generation;
        }
        let source_port = self.shared.ports.start().saturating_add(bucket(run.bytes).into());
        if let Some(way) = self.ways.get(&(run.remote, source_port))
            && now < way.until
        {
            return Some(way.template.clone());
        }
        self.resolve(now, run, source_port, report)
    }

    /// Asks the neighbours for the way; datagrams that have to wait for the answer are left there.
    #[cold]
    fn resolve(
        &mut self,
        now: Instant,
        run: &Run<'_>,
        source_port: u16,
        report: &mut TxReport,
    ) -> Option<Template> {
        let shared = Arc::clone(&self.shared);
        let count = run.bytes.len().div_ceil(run.segment_size.max(1));
        let mut neighbors = lock(&shared.neighbors);
        let resolution = neighbors.resolve(now, run.remote.ip());
        let mut template = None;
        match resolution {
            Resolution::Known(mac) => {
                template = Template::new(&shared.local, mac, run.remote, source_port);
                if template.is_none() {
                    report.failed += count;
                    self.counters.tx_dropped_no_route.add(count as u64);
                }
            }
            Resolution::Pending(hop) => {
                for payload in run.bytes.chunks(run.segment_size.max(1)) {
                    let (remote, mark) = (run.remote, run.mark);
                    let payload = payload.to_vec();
                    self.counters.tx_held.add(1);
                    let pending = Pending { remote, source_port, mark, payload };
                    if neighbors.hold(now, hop, pending).is_some() {
                        self.counters.tx_dropped_held.add(1);
                    }
                }
                report.sent += count;
            }
            Resolution::Failed(_) => {
                report.failed += count;
                self.counters.tx_dropped_unreachable.add(count as u64);
            }
            Resolution::NoRoute => {
                report.failed += count;
                self.counters.tx_dropped_no_route.add(count as u64);
            }
        }
        shared.publish(&mut neighbors);
        let frames: Vec<_> = std::iter::from_fn(|| neighbors.poll_frame()).collect();
        drop(neighbors);
        if !frames.is_empty() {
            self.send_frames(frames.iter().map(Vec::as_slice));
        }
        let key = (run.remote, source_port);
        match &template {
            Some(template) => {
                let way = Way { template: template.clone(), until: now + REFRESH };
                self.ways.insert(key, way);
            }
            None => drop(self.ways.remove(&key)),
        }
        template
    }

    /// Sends whole frames: those of the neighbours, answers, and the host's.
    pub(super) fn send_frames<'f>(&mut self, frames: impl Iterator<Item = &'f [u8]>) {
        let shared = Arc::clone(&self.shared);
        let Some(queue) = shared.queues.get(self.queue) else { return };
        let mut queue = lock(queue);
        let mut ready = 0;
        for frame in frames {
            let len = frame.len().max(MIN_FRAME_LEN);
            match queue.push(len).and_then(|room| room.split_at_mut_checked(frame.len())) {
                Some((room, padding)) => {
                    room.copy_from_slice(frame);
                    padding.fill(0);
                    ready += 1;
                }
                None => self.counters.tx_dropped_no_buffer.add(1),
            }
        }
        let taken = queue.flush(RETRIES);
        self.counters.tx_dropped_no_room.add((ready - taken.min(ready)) as u64);
    }

    /// Sends datagrams whose neighbour is known by now.
    pub(super) fn send_released(&mut self, released: &[(MacAddr, Pending)]) {
        if released.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let Some(queue) = shared.queues.get(self.queue) else { return };
        let mut queue = lock(queue);
        // Their senders were told that they are sent: what becomes of them is only counted.
        let mut report = TxReport::default();
        for (mac, pending) in released {
            let Pending { remote, source_port, mark, payload } = pending;
            let Some(template) = Template::new(&shared.local, *mac, *remote, *source_port) else {
                self.counters.tx_dropped_no_route.add(1);
                continue;
            };
            let run =
                Run { bytes: payload, segment_size: payload.len(), remote: *remote, mark: *mark };
            self.write_run(&mut queue, &template, &run, &mut report);
        }
        self.flush(&mut queue, &mut report);
    }

    fn write_run(
        &mut self,
        queue: &mut TxQueue,
        template: &Template,
        run: &Run<'_>,
        report: &mut TxReport,
    ) {
        let (link_len, ip_len) = template.header_lens();
        let room = usize::from(self.shared.ip_mtu) + link_len;
        for payload in run.bytes.chunks(run.segment_size.max(1)) {
            let len = template.len() + payload.len();
            if len > room {
                self.counters.tx_dropped_too_large.add(1);
                report.too_large += 1;
                continue;
            }
            if queue.ready() >= MAX_BURST {
                self.flush(queue, report);
            }
            self.identification = self.identification.wrapping_add(1);
            let written = match self.shared.checksum {
                UdpChecksum::Hardware => {
                    self.write_for_hardware(queue, template, payload, run.mark, link_len, ip_len)
                }
                checksum => queue.push(len.max(MIN_FRAME_LEN)).and_then(|room| {
                    room.get_mut(len..)?.fill(0);
                    let (mark, identification) = (run.mark, self.identification);
                    template.write(room, payload, Varying { mark, identification, checksum })
                }),
            };
            if written.is_none() {
                self.counters.tx_dropped_no_buffer.add(1);
                report.no_room += 1;
                continue;
            }
            self.counters.tx_bytes.add(payload.len() as u64);
        }
    }

    /// Writes a datagram whose checksum the port completes.
    fn write_for_hardware(
        &self,
        queue: &mut TxQueue,
        template: &Template,
        payload: &[u8],
        mark: u8,
        link_len: usize,
        ip_len: usize,
    ) -> Option<usize> {
        let mut header = [0; MAX_UNDERLAY_HEADER_LEN];
        let (identification, checksum) = (self.identification, UdpChecksum::Hardware);
        let varying = Varying { mark, identification, checksum };
        let len = template.write_header(&mut header, payload, varying)?;
        let version =
            if self.shared.local.ip.is_ipv4() { dpdk_sys::TX_IPV4 } else { dpdk_sys::TX_IPV6 };
        let offload = TxOffload {
            flags: version | dpdk_sys::TX_UDP_SUM,
            l2_len: u16::try_from(link_len).ok()?,
            l3_len: u16::try_from(ip_len).ok()?,
            ..TxOffload::default()
        };
        let whole = len + payload.len();
        let mut writer = queue.start(whole.max(MIN_FRAME_LEN), offload)?;
        writer.write(header.get(..len)?);
        writer.write(payload);
        writer.write(&[0; MIN_FRAME_LEN]);
        Some(whole)
    }

    fn flush(&mut self, queue: &mut TxQueue, report: &mut TxReport) {
        let ready = queue.ready();
        if ready == 0 {
            return;
        }
        let taken = queue.flush(RETRIES).min(ready);
        self.counters.tx_datagrams.add(taken as u64);
        self.counters.tx_dropped_no_room.add((ready - taken) as u64);
        report.sent += taken;
        report.no_room += ready - taken;
    }
}

/// By which of our ports a datagram leaves, counted from the base port: that of its lane, so that
/// cards and routers that look at ports see several flows and each keeps its order.
fn bucket(datagram: &[u8]) -> u8 {
    let first = datagram.first().copied().unwrap_or(0);
    match (Format::of(first), datagram.get(LANE_BYTE)) {
        (Format::Sealed | Format::Clear, Some(lane)) if lane >> 4 != CONTROL_BUCKET => {
            (lane >> 4).min(PORT_COUNT as u8 - 1)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_have_ports_and_all_else_has_the_base_port() {
        let sealed = (0..=u8::MAX).find(|first| Format::of(*first) == Format::Sealed).unwrap();
        assert_eq!(bucket(&[sealed, 0, 0, 0x37, 0]), 3);
        assert_eq!(bucket(&[sealed, 0, 0, 0xf7, 0]), 0);
        assert_eq!(bucket(&[sealed, 0, 0]), 0);
        assert_eq!(bucket(&[0x20, 0, 0, 0x37, 0]), 0);
        assert_eq!(bucket(&[]), 0);
    }
}
