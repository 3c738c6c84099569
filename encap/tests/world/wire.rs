//! What becomes of datagrams between the nodes.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use encap::wire::buf::UplinkId;

use super::{NodeIndex, World, decapsulate};

/// What a wire does to datagrams, in one direction.
#[derive(Clone, Copy)]
pub struct Wire {
    /// Lost, in parts per million.
    pub loss: u32,
    /// Delivered twice, in parts per million.
    pub duplicate: u32,
    /// One bit changed, in parts per million.
    pub corrupt: u32,
    /// Least delay.
    pub delay: Duration,
    /// Added to it at random: what arrives out of order.
    pub jitter: Duration,
    /// Nothing overtakes what was sent before.
    pub fifo: bool,
    /// Largest UDP payload that passes.
    pub max_udp_payload: usize,
    /// Nothing passes.
    pub cut: bool,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            loss: 0,
            duplicate: 0,
            corrupt: 0,
            delay: Duration::from_micros(100),
            jitter: Duration::from_micros(20),
            fifo: false,
            max_udp_payload: 1472,
            cut: false,
        }
    }
}

/// A datagram that was put on a wire once.
#[derive(Clone)]
pub struct Sent {
    pub from: NodeIndex,
    pub to: NodeIndex,
    pub bytes: Vec<u8>,
}

/// A datagram that is under way.
pub(super) struct InFlight {
    from: SocketAddr,
    to: NodeIndex,
    uplink: UplinkId,
    mark: u8,
    bytes: Vec<u8>,
}

/// The bits of a datagram's number that say when it was sent; what is above, which socket holds it.
const ORDER_BITS: u32 = 48;

impl World {
    /// Changes one direction of one link.
    pub fn on_link(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        link: u8,
        change: impl Fn(&mut Wire),
    ) {
        let usual = self.wires.get(&(from, to)).copied().unwrap_or(self.default_wire);
        change(self.link_wires.entry((from, to, link)).or_insert(usual));
    }

    /// Changes both directions of a link between nodes 0 and 1.
    pub fn on_both(&mut self, link: u8, change: impl Fn(&mut Wire)) {
        self.on_link(0, 1, link, &change);
        self.on_link(1, 0, link, &change);
    }

    /// Cuts or heals both directions of a link between nodes 0 and 1.
    pub fn cut(&mut self, link: u8, cut: bool) {
        self.on_both(link, |wire| wire.cut = cut);
    }

    /// A datagram of any origin reaches `to`, as if from `from`.
    pub fn inject(&mut self, from: SocketAddr, to: NodeIndex, bytes: Vec<u8>) {
        self.inject_on(from, to, 0, bytes);
    }

    /// The same, by one of its uplinks.
    pub fn inject_on(&mut self, from: SocketAddr, to: NodeIndex, uplink: u8, bytes: Vec<u8>) {
        self.deliver(InFlight { from, to, uplink: UplinkId(uplink), mark: 0, bytes });
        self.nodes[to].datapath.end_pass();
    }

    pub(super) fn put_on_wire(
        &mut self,
        from: NodeIndex,
        uplink: UplinkId,
        remote: SocketAddr,
        mark: u8,
        bytes: Vec<u8>,
    ) {
        if bytes[0] >> 6 == 1 {
            let tag: [u8; 16] = bytes[bytes.len() - 16..].try_into().unwrap();
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            let before = self.tags.insert((from, tag), hasher.finish());
            assert!(
                before.is_none_or(|hash| hash == hasher.finish()),
                "a tag left twice with other bytes: the nonce was used twice"
            );
        }
        *self.put.entry((from, uplink.0)).or_default() += 1;
        let source = self.nodes[from].addresses[usize::from(uplink.0)];
        let targets: Vec<_> = (0..self.nodes.len())
            .filter_map(|to| {
                let at = self.nodes[to].addresses.iter().position(|a| *a == remote)?;
                Some((to, UplinkId(at as u8)))
            })
            .collect();
        for (to, to_uplink) in targets {
            let usual = self.wires.get(&(from, to)).copied().unwrap_or(self.default_wire);
            let wire = self.link_wires.get(&(from, to, uplink.0)).copied().unwrap_or(usual);
            if self.keep_sent {
                self.sent.push(Sent { from, to, bytes: bytes.clone() });
            }
            if wire.cut || bytes.len() > wire.max_udp_payload || self.random.chance(wire.loss) {
                continue;
            }
            let mark = if self.congested && mark & 3 != 0 { mark | 3 } else { mark };
            let copies = 1 + usize::from(self.random.chance(wire.duplicate));
            for _ in 0..copies {
                let mut bytes = bytes.clone();
                if self.random.chance(wire.corrupt) {
                    let at = self.random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << self.random.below(8);
                }
                let jitter = self.random.below(wire.jitter.as_nanos() as u64 + 1);
                let mut at = self.now + wire.delay + Duration::from_nanos(jitter);
                let last = self.last.entry((from, to, uplink.0)).or_insert(at);
                if wire.fifo {
                    at = at.max(*last);
                }
                *last = at;
                self.queue.push(Reverse((at, self.next)));
                let packet = InFlight { from: source, to, uplink: to_uplink, mark, bytes };
                self.in_flight.insert(self.next, packet);
                self.next += 1;
            }
        }
    }

    fn deliver(&mut self, packet: InFlight) {
        let now = self.now;
        let node = &mut self.nodes[packet.to];
        if !node.alive || node.suspended {
            return;
        }
        let from = (packet.uplink, packet.from, packet.mark);
        let (out, control) = decapsulate(&mut node.datapath, now, from, &packet.bytes);
        for (delivery, bytes) in out.iter() {
            node.delivered.push((delivery.vni, bytes.to_vec()));
            node.delivered_to.push(delivery.to);
            node.delivered_at.push(now);
        }
        self.hand_over(packet.to, control);
        self.take_returns(packet.to);
    }

    /// Delivers all that is due.
    pub(super) fn read_sockets(&mut self) {
        let mut readers = Vec::new();
        while let Some(Reverse((at, number))) = self.queue.peek().copied()
            && at <= self.now
        {
            self.queue.pop();
            let packet = self.in_flight.remove(&number).unwrap();
            // Sockets hold what comes while nobody reads.
            if let Some(until) = self.nodes[packet.to].stalled_until.filter(|u| *u > self.now) {
                let turn = packet.uplink.0.wrapping_sub(self.first_socket) & 7;
                let number = u64::from(turn) << ORDER_BITS | number & ((1 << ORDER_BITS) - 1);
                self.queue.push(Reverse((until, number)));
                self.in_flight.insert(number, packet);
                continue;
            }
            if !readers.contains(&packet.to) {
                readers.push(packet.to);
            }
            self.reading = Some(packet.to);
            self.deliver(packet);
            self.reading = None;
        }
        for node in readers {
            self.nodes[node].datapath.end_pass();
        }
    }
}
