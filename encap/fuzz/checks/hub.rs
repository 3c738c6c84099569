//! Two hubs of channels, a script of what programs and links do, and a hostile peer between them.
//!
//! Whatever comes: memory stays within its limit, and nobody asks for attention without end. As long
//! as no packet was changed or made up, messages arrive as they were sent, each once, and those of
//! an ordered channel in order.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use encap::channel::hub::{
    ChannelConfig, ChannelDrop, ChannelEvent, ChannelKey, Hub, HubOptions, LinkView, PeerView,
    SendOptions, SessionView, StreamKey, StreamRead,
};
use encap::id::{NodeId, PeerIndex};
use encap::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use encap::wire::channel::Mode;
use encap::wire::header::Kind;

/// Bytes of payload that links have room for.
const ROOM: usize = 1_300;
/// Packets on their way at most; older ones are lost.
const MOST_FLIGHTS: usize = 64;
/// Calls until a hub has nothing to send at one instant.
const MOST_CALLS: usize = 4_096;
/// Calls in a row that send nothing at one instant: one timer may follow another.
const MOST_IDLE: usize = 8;

struct Flight {
    to: usize,
    /// The sender's process, and the one that it is for.
    boots: (u64, u64),
    kind: Kind,
    payload: Vec<u8>,
}

struct Pair {
    now: Instant,
    hubs: [Hub; 2],
    boots: [u64; 2],
    failures: [u32; MAX_LINKS],
    links: u8,
    flights: VecDeque<Flight>,
    streams: [Vec<StreamKey>; 2],
    /// Number of the next message, by sender and channel.
    next: [[u32; 3]; 2],
    got: [[BTreeSet<u32>; 3]; 2],
    /// No packet was changed or made up.
    honest: bool,
}

const MODES: [(&str, Mode); 4] = [
    ("ordered", Mode::Ordered),
    ("unordered", Mode::Unordered),
    ("unreliable", Mode::Unreliable),
    ("stream", Mode::Stream),
];

fn node(index: usize) -> NodeId {
    NodeId::new(index as u16 + 1).unwrap()
}

fn configs(copies: bool) -> Vec<(ChannelKey, ChannelConfig)> {
    let config = |(name, mode): &(&str, Mode)| ChannelConfig {
        name: (*name).into(),
        mode: *mode,
        peers: None,
        copies,
        send_buffer: 64 << 10,
        compression: None,
    };
    (0..).map(ChannelKey).zip(MODES.iter().map(config)).collect()
}

/// The script: an operation and three bytes that say how, again and again; some take more.
pub fn hub(data: &[u8]) {
    let Some((first, mut rest)) = data.split_first() else { return };
    let mut pair = Pair::new(first & 1 == 1);
    while let Some((step, behind)) = rest.split_first_chunk::<4>() {
        rest = pair.step(*step, behind);
        pair.check();
    }
    pair.end();
}

impl Pair {
    fn new(copies: bool) -> Self {
        let now = Instant::now();
        let hubs = [0, 1].map(|_| {
            let mut hub = Hub::new(HubOptions::default());
            hub.configure(now, configs(copies));
            hub
        });
        let mut pair = Self {
            now,
            hubs,
            boots: [1, 2],
            failures: [0; MAX_LINKS],
            links: 3,
            flights: VecDeque::new(),
            streams: Default::default(),
            next: Default::default(),
            got: Default::default(),
            honest: true,
        };
        pair.publish();
        pair
    }

    fn publish(&mut self) {
        let links: LinkSet =
            (0..2).filter(|link| self.links >> link & 1 == 1).filter_map(LinkIndex::new).collect();
        let rtt = Duration::from_millis(1);
        let view = |link| LinkView { link, room: ROOM, rtt, rtt_var: rtt / 4 };
        for index in 0..2 {
            let session = SessionView {
                compression: true,
                boot: self.boots[1 - index],
                links: links.iter().map(view).collect(),
                chosen: links.iter().take(1).collect(),
                live: links,
                failures: self.failures,
            };
            // Without any link there is no session.
            let session = Some(session).filter(|_| !links.is_empty());
            let view = PeerView { index: PeerIndex(0), node: node(1 - index), session };
            self.hubs[index].set_peers(self.now, vec![view]);
        }
    }

    fn step<'a>(&mut self, [what, a, b, c]: [u8; 4], rest: &'a [u8]) -> &'a [u8] {
        let hub = usize::from(a & 1);
        let value = u16::from_be_bytes([b, c]);
        match what % 16 {
            0 | 1 => self.send(hub, usize::from(a >> 1) % 3, a >> 4, value),
            2 => self.open(hub),
            3 => self.write(hub, b, usize::from(c) * 64),
            4 => self.finish(hub, b, c),
            5 => self.read(hub),
            6..=8 => self.deliver(usize::from(b), usize::from(c % 3)),
            9 => self.lose(usize::from(b), c),
            10 => self.wait(Duration::from_micros(u64::from(value) * 50)),
            11 => self.restart(hub),
            12 => self.relink(b),
            13 => self.change(usize::from(a >> 1), b, c),
            14 => return self.invent(hub, value, rest),
            _ => self.transmit(hub),
        }
        rest
    }

    fn send(&mut self, from: usize, channel: usize, priority: u8, value: u16) {
        let number = self.next[from][channel];
        let mut bytes = number.to_be_bytes().to_vec();
        bytes.resize(4 + usize::from(value) / 4, number as u8);
        let ttl = value.is_multiple_of(5).then(|| Duration::from_millis(u64::from(value) / 64));
        let (options, key) = (SendOptions { priority, ttl }, ChannelKey(channel as u32));
        let sent = self.hubs[from].send(self.now, key, node(1 - from), options, bytes);
        self.next[from][channel] += u32::from(sent.is_ok());
    }

    fn open(&mut self, hub: usize) {
        let key = self.hubs[hub].open_stream(self.now, ChannelKey(3), node(1 - hub));
        self.streams[hub].extend(key);
    }

    fn stream(&self, hub: usize, choice: u8) -> Option<StreamKey> {
        let streams = &self.streams[hub];
        streams.get(usize::from(choice) % streams.len().max(1)).copied()
    }

    fn write(&mut self, hub: usize, choice: u8, len: usize) {
        if let Some(key) = self.stream(hub, choice) {
            self.hubs[hub].write_stream(key, &vec![7; len]);
        }
    }

    fn finish(&mut self, hub: usize, choice: u8, how: u8) {
        let Some(key) = self.stream(hub, choice) else { return };
        if how & 1 == 0 {
            self.hubs[hub].finish_stream(key);
        } else {
            self.hubs[hub].reset_stream(key, u64::from(how));
        }
    }

    fn read(&mut self, hub: usize) {
        let (from, honest) = (1 - hub, self.honest);
        for channel in 0..3 {
            let key = ChannelKey(channel as u32);
            while let Some(message) = self.hubs[hub].next_message(key) {
                let Some((number, rest)) = message.bytes.split_first_chunk() else {
                    assert!(!honest, "a message that nobody sent");
                    continue;
                };
                let number = u32::from_be_bytes(*number);
                let got = &mut self.got[hub][channel];
                let known = number < self.next[from][channel];
                let whole = rest.iter().all(|byte| *byte == number as u8);
                let ordered = channel != 0 || got.last().is_none_or(|last| *last < number);
                let once = got.insert(number);
                assert!(!honest || known && whole && ordered && once, "not as it was sent");
            }
        }
        if let Some((key, _)) = self.hubs[hub].accept_stream(self.now, ChannelKey(3)) {
            self.streams[hub].push(key);
        }
        for key in self.streams[hub].clone() {
            while let StreamRead::Bytes(bytes) = self.hubs[hub].read_stream(key) {
                let len = bytes.len();
                assert!(len > 0 && (!honest || bytes.iter().all(|byte| *byte == 7)));
                self.hubs[hub].consume_stream(key, len);
            }
        }
    }

    fn receive(&mut self, to: usize, boot: u64, kind: Kind, payload: &[u8]) {
        let (now, from, hub) = (self.now, node(1 - to), &mut self.hubs[to]);
        let outcome = match kind {
            Kind::Channel => hub.on_packet(now, from, boot, LinkIndex::FIRST, payload, 0),
            _ => hub.on_unreliable(now, from, boot, payload),
        };
        let fault = matches!(outcome, Err(ChannelDrop::Fault | ChannelDrop::Malformed));
        assert!(!fault || !self.honest, "a fault that nobody committed");
    }

    fn deliver(&mut self, choice: usize, times: usize) {
        let at = choice % self.flights.len().max(1);
        let Some(Flight { to, boots, kind, payload }) = self.flights.remove(at) else { return };
        for _ in 0..=times / 2 {
            if self.boots[to] == boots.1 {
                self.receive(to, boots.0, kind, &payload);
            }
        }
    }

    fn lose(&mut self, choice: usize, how: u8) {
        if how & 1 == 0 {
            self.flights.clear();
        } else {
            let at = choice % self.flights.len().max(1);
            self.flights.remove(at);
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        (0..2).for_each(|hub| self.transmit(hub));
    }

    fn restart(&mut self, index: usize) {
        self.boots[index] += 2;
        self.hubs[index] = Hub::new(HubOptions::default());
        self.hubs[index].configure(self.now, configs(false));
        self.streams[index].clear();
        self.got[index] = Default::default();
        // What the other reads from now on may be of the new process, whose numbers go on.
        self.publish();
    }

    fn relink(&mut self, how: u8) {
        self.links = how & 3;
        self.failures[usize::from(how >> 2 & 1)] += u32::from(how >> 3 & 1);
        self.publish();
    }

    fn change(&mut self, choice: usize, place: u8, mask: u8) {
        let at = choice % self.flights.len().max(1);
        let Some(flight) = self.flights.get_mut(at) else { return };
        let place = usize::from(place) % flight.payload.len().max(1);
        if let Some(byte) = flight.payload.get_mut(place) {
            *byte ^= mask;
            self.honest = false;
        }
    }

    fn invent<'a>(&mut self, to: usize, value: u16, rest: &'a [u8]) -> &'a [u8] {
        let (payload, rest) = rest.split_at(usize::from(value & 0x7f).min(rest.len()));
        let kind = if value >> 8 & 1 == 0 { Kind::Channel } else { Kind::Unreliable };
        self.honest = false;
        self.receive(to, self.boots[1 - to], kind, payload);
        rest
    }

    fn transmit(&mut self, from: usize) {
        let (hub, flights, boots) = (&mut self.hubs[from], &mut self.flights, self.boots);
        let mut idle = 0;
        for call in 0.. {
            assert!(call < MOST_CALLS && idle < MOST_IDLE, "asks to be called again and again");
            let progress = hub.transmit(self.now, 16 << 10, &mut |packet| {
                assert!(packet.payload.len() <= ROOM && packet.peer == PeerIndex(0));
                for _ in packet.links.iter() {
                    let (kind, payload) = (packet.kind, packet.payload.to_vec());
                    let boots = (boots[from], packet.boot);
                    flights.push_back(Flight { to: 1 - from, boots, kind, payload });
                }
                true
            });
            idle = if progress.packets == 0 { idle + 1 } else { 0 };
            if hub.timeout(self.now).is_none_or(|due| due > self.now) {
                break;
            }
        }
        while self.flights.len() > MOST_FLIGHTS {
            self.flights.pop_front();
        }
    }

    fn check(&mut self) {
        for hub in &mut self.hubs {
            while let Some(event) = hub.poll_event() {
                let epoch = matches!(event, ChannelEvent::EpochChanged(..));
                assert!(!epoch || !self.honest || self.boots != [1, 2], "no process has ended");
            }
            let report = hub.report();
            assert!(report.memory_booked <= report.memory_limit);
        }
    }

    /// In good weather, what honest nodes kept arrives.
    fn end(&mut self) {
        self.links = 3;
        self.publish();
        // Packets may have waited for many seconds: round trips are taken for as long, and timeouts
        // are longer yet.
        for round in 0..600 {
            (0..2).for_each(|hub| self.transmit(hub));
            while !self.flights.is_empty() {
                self.deliver(0, 0);
            }
            (0..2).for_each(|hub| self.read(hub));
            self.now += Duration::from_millis(if round < 200 { 20 } else { 500 });
        }
        self.check();
        for hub in self.hubs.iter().filter(|_| self.honest) {
            let reliable = hub.report().channels.into_iter().filter(|c| c.mode != Mode::Stream);
            let queued: usize = reliable.flat_map(|c| c.peers).map(|peer| peer.queued).sum();
            assert_eq!(queued, 0, "what was taken stays: {:?}", hub);
        }
    }
}
