//! The world: two hubs, links with weather between them, and virtual time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::*;
use crate::id::PeerIndex;
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use crate::wire::header::{Kind, SEALED_OVERHEAD};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const ROOM: usize = 1_446;
/// Steps at one instant: with more, somebody spins.
const MOST_STEPS: u32 = 10_000;

/// What a link does to packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    /// Parts of 1,000.
    pub(super) loss: u64,
    /// Parts of 1,000.
    pub(super) copies: u64,
    pub(super) delay: Duration,
    /// Up to so much more delay.
    pub(super) jitter: Duration,
    /// Bytes a second and bytes of the queue in front, in each direction.
    pub(super) bottleneck: Option<(u64, u64)>,
}

pub(super) const CALM: Weather = Weather {
    loss: 0,
    copies: 0,
    delay: Duration::from_micros(100),
    jitter: Duration::ZERO,
    bottleneck: None,
};

pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

struct Flight {
    to: usize,
    kind: Kind,
    /// The sender's process, and the one that it is sealed for.
    boots: (u64, u64),
    link: u8,
    payload: Vec<u8>,
}

/// Two nodes, 1 and 2.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) hubs: [Hub; 2],
    pub(super) boots: [u64; 2],
    pub(super) configs: [Vec<(ChannelKey, ChannelConfig)>; 2],
    pub(super) weather: Vec<Weather>,
    /// Links that swallow everything.
    pub(super) cut: Vec<bool>,
    pub(super) failures: [u32; MAX_LINKS],
    /// Links in the order in which they are published, the same for both.
    pub(super) order: Vec<u8>,
    /// There is a session.
    pub(super) linked: bool,
    flights: BTreeMap<(Instant, u64), Flight>,
    /// When the queue of a link and direction is empty.
    busy: Vec<[Instant; 2]>,
    serial: u64,
    rng: Rng,
    /// Full packets of the first node are lost by dice of their own, in the order in which they leave.
    pub(super) dice: Option<Rng>,
    pub(super) packets: u64,
    /// Bytes of payload that left by each link.
    pub(super) by_link: Vec<u64>,
    pub(super) errors: Vec<ChannelDrop>,
    pub(super) events: [Vec<ChannelEvent>; 2],
    /// The shortest time that a hub asked to be left alone for, since it was last looked at.
    pub(super) impatience: Duration,
    same: u32,
    /// The second node numbers its links the other way round.
    pub(super) crossed: bool,
}

pub(super) fn node(index: usize) -> NodeId {
    NodeId::new(index as u16 + 1).unwrap()
}

pub(super) fn config(name: &str, mode: Mode) -> ChannelConfig {
    ChannelConfig {
        name: name.into(),
        mode,
        peers: None,
        copies: false,
        send_buffer: 1 << 20,
        compression: None,
    }
}

impl World {
    pub(super) fn new(links: usize, weather: Weather, seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            hubs: [Hub::new(HubOptions::default()), Hub::new(HubOptions::default())],
            boots: [11, 22],
            configs: [Vec::new(), Vec::new()],
            weather: vec![weather; links],
            cut: vec![false; links],
            failures: [0; MAX_LINKS],
            order: (0..links as u8).collect(),
            linked: true,
            flights: BTreeMap::new(),
            busy: vec![[now; 2]; links],
            serial: 0,
            rng: Rng(seed * 2 + 1),
            crossed: false,
            dice: None,
            packets: 0,
            by_link: vec![0; links],
            errors: Vec::new(),
            events: [Vec::new(), Vec::new()],
            impatience: SECOND,
            same: 0,
        };
        world.publish();
        world
    }

    /// What the heartbeats and the handshake would have said by now.
    pub(super) fn publish(&mut self) {
        for index in 0..2 {
            self.publish_to(index);
        }
    }

    /// From a node's number of a link to that of the cable, and back.
    fn cable(&self, index: usize, link: usize) -> usize {
        if self.crossed && index == 1 { self.weather.len() - 1 - link } else { link }
    }

    pub(super) fn publish_to(&mut self, index: usize) {
        let own = |link: u8| LinkIndex::new(self.cable(index, link.into()) as u8).unwrap();
        let links: Vec<LinkView> = self
            .order
            .iter()
            .map(|link| LinkView {
                link: own(*link),
                room: ROOM,
                rtt: self.weather[usize::from(*link)].delay * 2,
                rtt_var: Duration::from_micros(50),
            })
            .collect();
        let live: LinkSet = links.iter().map(|view| view.link).collect();
        let chosen = links.iter().take(1).map(|view| view.link).collect();
        let boot = self.boots[1 - index];
        let mut failures = [0; MAX_LINKS];
        for (cable, count) in self.failures.iter().enumerate().take(self.weather.len()) {
            failures[self.cable(index, cable)] = *count;
        }
        let session = self.linked.then_some(SessionView {
            boot,
            links,
            chosen,
            live,
            compression: true,
            failures,
        });
        let view = PeerView { index: PeerIndex(0), node: node(1 - index), session };
        self.hubs[index].set_peers(self.now, vec![view]);
    }

    /// The same channels on both nodes, with keys from 1.
    pub(super) fn configure(&mut self, configs: &[ChannelConfig]) {
        for index in 0..2 {
            self.configure_one(index, configs);
        }
    }

    pub(super) fn configure_one(&mut self, index: usize, configs: &[ChannelConfig]) {
        let keyed = (1..).map(ChannelKey).zip(configs.iter().cloned());
        self.configs[index] = keyed.collect();
        self.hubs[index].configure(self.now, self.configs[index].clone());
    }

    /// The process of a node ends and another begins; both hear of it.
    pub(super) fn restart(&mut self, index: usize) {
        self.boots[index] += 1_000;
        self.hubs[index] = Hub::new(HubOptions::default());
        self.hubs[index].configure(self.now, self.configs[index].clone());
        self.events[index].clear();
        self.publish();
    }

    fn transmit(&mut self, index: usize) {
        let mut out = Vec::new();
        self.hubs[index].transmit(self.now, 256 << 10, &mut |packet| {
            for link in packet.links.iter() {
                let payload = packet.payload.to_vec();
                assert!(payload.len() <= ROOM);
                out.push((link.get(), packet.kind, packet.boot, payload));
            }
            true
        });
        for (link, kind, boot, payload) in out {
            self.fly(index, link, kind, boot, payload);
        }
        while let Some(event) = self.hubs[index].poll_event() {
            self.events[index].push(event);
        }
    }

    /// Whether a packet is lost by chance, of so many parts of 1,000.
    fn loses(&mut self, index: usize, len: usize, parts: u64) -> bool {
        let own = self.dice.as_mut().filter(|_| index == 0 && len > ROOM / 2);
        own.unwrap_or(&mut self.rng).below(1_000) < parts
    }

    fn fly(&mut self, index: usize, link: u8, kind: Kind, boot: u64, payload: Vec<u8>) {
        let at = self.cable(index, link.into());
        self.packets += 1;
        self.by_link[at] += payload.len() as u64;
        let weather = self.weather[at];
        if self.cut[at] || self.loses(index, payload.len(), weather.loss) {
            return;
        }
        let mut leaves = self.now;
        if let Some((rate, queue)) = weather.bottleneck {
            let busy = self.busy[at][index].max(self.now);
            let bytes = (payload.len() + SEALED_OVERHEAD) as u64;
            if (busy - self.now).as_nanos() as u64 * rate / 1_000_000_000 + bytes > queue {
                return;
            }
            leaves = busy + Duration::from_nanos(bytes * 1_000_000_000 / rate);
            self.busy[at][index] = leaves;
        }
        let copies = 1 + u64::from(self.rng.below(1_000) < weather.copies);
        for _ in 0..copies {
            let jitter = self.rng.below(weather.jitter.as_nanos() as u64 + 1);
            let arrives = leaves + weather.delay + Duration::from_nanos(jitter);
            self.serial += 1;
            let boots = (self.boots[index], boot);
            let (to, link) = (1 - index, at as u8);
            let flight = Flight { to, kind, boots, link, payload: payload.clone() };
            self.flights.insert((arrives, self.serial), flight);
        }
    }

    /// One step of the world: what is due happens. False when nothing will ever happen.
    pub(super) fn step(&mut self) -> bool {
        self.step_until(self.now + Duration::from_secs(3_600))
    }

    fn step_until(&mut self, limit: Instant) -> bool {
        self.transmit(0);
        self.transmit(1);
        let arrival = self.flights.first_key_value().map(|((at, _), _)| *at);
        let timers = self.hubs.iter().filter_map(|hub| hub.timeout(self.now)).min();
        if let Some(due) = timers {
            self.impatience = self.impatience.min(due.saturating_duration_since(self.now));
        }
        let Some(next) = timers.into_iter().chain(arrival).min() else { return false };
        self.same = if next > self.now { 0 } else { self.same + 1 };
        assert!(self.same < MOST_STEPS, "spins");
        self.now = self.now.max(next.min(limit));
        self.arrive();
        for hub in &self.hubs {
            assert!(hub.memory.booked() <= hub.report_limit());
        }
        true
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.flights.first_entry()
            && entry.key().0 <= self.now
        {
            let flight = entry.remove();
            if self.boots[flight.to] != flight.boots.1 {
                // No key of that process is left.
                continue;
            }
            let from = node(1 - flight.to);
            let by = self.cable(flight.to, flight.link.into()) as u8;
            let sender = self.cable(1 - flight.to, flight.link.into()) as u8;
            let hub = &mut self.hubs[flight.to];
            let boot = flight.boots.0;
            let outcome = match flight.kind {
                Kind::Channel => {
                    assert_eq!(flight.payload[0], sender);
                    let by = LinkIndex::new(by).unwrap();
                    hub.on_packet(self.now, from, boot, by, &flight.payload, 0)
                }
                _ => hub.on_unreliable(self.now, from, boot, &flight.payload),
            };
            self.errors.extend(outcome.err());
        }
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end && self.step_until(end) {}
    }

    /// Nothing is to be done: says how soon anybody asks to be woken in the next seconds.
    pub(super) fn assert_quiet(&mut self) {
        self.run_for(SECOND * 10);
        let (before, mut wakes) = (self.packets, 0);
        let end = self.now + SECOND * 20;
        while self.now < end && self.step() {
            wakes += 1;
        }
        assert!(wakes <= 50, "{wakes} wakes in 20 s");
        assert_eq!(self.packets, before, "packets without a reason");
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Drops that are no copies.
    pub(super) fn faults(&self) -> Vec<ChannelDrop> {
        let mut faults = self.errors.clone();
        faults.retain(|drop| *drop != ChannelDrop::Duplicate);
        faults
    }

    /// Whether this event is there behind the first so many.
    fn has_since(&self, index: usize, since: usize, event: ChannelEvent) -> bool {
        self.events[index].iter().skip(since).any(|seen| *seen == event)
    }

    pub(super) fn count(&self, index: usize, wanted: impl Fn(&ChannelEvent) -> bool) -> usize {
        self.events[index].iter().filter(|event| wanted(event)).count()
    }
}

impl Hub {
    pub(super) fn report_limit(&self) -> u64 {
        self.options.receive_memory.max(MIN_RECEIVE_MEMORY)
    }
}

/// A message that says which one it is.
pub(super) fn body(index: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(index * 77 + 1);
    let mut bytes = index.to_be_bytes().to_vec();
    bytes.resize_with(len.max(8), || rng.below(256) as u8);
    bytes
}

/// Messages of one channel in one direction, and what came of them.
pub(super) struct Talk {
    pub(super) key: ChannelKey,
    pub(super) from: usize,
    pub(super) lengths: Vec<usize>,
    pub(super) options: SendOptions,
    pub(super) next: usize,
    /// Numbers of the messages that came, in their order.
    pub(super) got: Vec<u64>,
    /// The receiving program takes what comes.
    pub(super) reads: bool,
    pub(super) refused: u64,
    /// The message that was refused, and how many events there were then: no sooner than one of
    /// them says so it is tried again.
    waits: Option<(Vec<u8>, usize)>,
}

impl Talk {
    pub(super) fn new(key: u32, from: usize, lengths: Vec<usize>) -> Self {
        Self {
            key: ChannelKey(key),
            from,
            lengths,
            options: SendOptions::default(),
            next: 0,
            got: Vec::new(),
            reads: true,
            refused: 0,
            waits: None,
        }
    }

    pub(super) fn write(&mut self, world: &mut World) {
        while let Some(len) = self.lengths.get(self.next) {
            let (to, now) = (node(1 - self.from), world.now);
            let writable = ChannelEvent::Writable(self.key, to);
            let bytes = match self.waits.take() {
                Some((bytes, since)) if !world.has_since(self.from, since, writable) => {
                    self.waits = Some((bytes, since));
                    return;
                }
                Some((bytes, _)) => bytes,
                None => body(self.next as u64, *len),
            };
            match world.hubs[self.from].send(now, self.key, to, self.options, bytes) {
                Ok(()) => self.next += 1,
                Err(refused) => {
                    assert_eq!(refused.error, SendError::Full);
                    self.refused += 1;
                    self.waits = Some((refused.bytes, world.events[self.from].len()));
                    return;
                }
            }
        }
    }

    pub(super) fn read(&mut self, world: &mut World) {
        while self.reads
            && let Some(message) = world.hubs[1 - self.from].next_message(self.key)
        {
            assert_eq!(message.from, node(self.from));
            let index = u64::from_be_bytes(message.bytes[..8].try_into().unwrap());
            let len = self.lengths[index as usize];
            assert!(message.bytes == body(index, len), "message {index} is another one");
            self.got.push(index);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.got.len() >= self.lengths.len()
    }

    pub(super) fn assert_ordered(&self) {
        let all: Vec<u64> = (0..self.lengths.len() as u64).collect();
        assert!(self.got == all, "{} of {} in order", self.got.len(), all.len());
    }

    pub(super) fn assert_once(&self) {
        let mut got = self.got.clone();
        got.sort_unstable();
        let all: Vec<u64> = (0..self.lengths.len() as u64).collect();
        assert!(got == all, "{} of {} once", got.len(), all.len());
    }
}

/// Lets talks go on until all of them are done, or panics.
pub(super) fn run(
    world: &mut World,
    talks: &mut [Talk],
    limit: Duration,
    mut during: impl FnMut(&mut World),
) {
    let end = world.now + limit;
    while !talks.iter().all(Talk::is_done) {
        talks.iter_mut().for_each(|talk| talk.write(world));
        assert!(world.step(), "nothing will happen any more");
        during(world);
        talks.iter_mut().for_each(|talk| talk.read(world));
        if world.now > end {
            let state: Vec<_> = talks.iter().map(|t| (t.got.len(), t.lengths.len())).collect();
            panic!("after {limit:?}: {state:?}");
        }
    }
}

/// The byte of a stream at an offset.
fn byte(offset: usize, from: usize) -> u8 {
    (offset.wrapping_mul(31) ^ (offset >> 8) ^ (offset >> 16) ^ (from * 0x55)) as u8
}

/// One stream, both ways.
pub(super) struct Pipe {
    pub(super) channel: ChannelKey,
    pub(super) opener: usize,
    pub(super) keys: [Option<StreamKey>; 2],
    /// Bytes that each side has to write.
    pub(super) want: [usize; 2],
    pub(super) sent: [usize; 2],
    pub(super) got: [usize; 2],
    pub(super) finished: [bool; 2],
    pub(super) ended: [bool; 2],
    pub(super) reads: [bool; 2],
    /// How many events there were when a side could not write on.
    waits: [Option<usize>; 2],
    /// When something was last read, and the longest time between two such moments.
    pub(super) last: Option<Instant>,
    pub(super) stall: Duration,
}

impl Pipe {
    pub(super) fn open(world: &mut World, channel: u32, opener: usize, want: [usize; 2]) -> Self {
        let (channel, to) = (ChannelKey(channel), node(1 - opener));
        let key = world.hubs[opener].open_stream(world.now, channel, to).unwrap();
        let mut keys = [None; 2];
        keys[opener] = Some(key);
        Self {
            channel,
            opener,
            keys,
            want,
            sent: [0; 2],
            got: [0; 2],
            finished: [false; 2],
            ended: [false; 2],
            reads: [true; 2],
            waits: [None; 2],
            last: None,
            stall: Duration::ZERO,
        }
    }

    pub(super) fn accept(&mut self, world: &mut World) {
        let other = 1 - self.opener;
        if self.keys[other].is_none() {
            let accepted = world.hubs[other].accept_stream(world.now, self.channel);
            self.keys[other] = accepted.map(|(key, from)| {
                assert_eq!(from, node(self.opener));
                key
            });
        }
    }

    pub(super) fn work(&mut self, world: &mut World) {
        self.accept(world);
        for side in 0..2 {
            let Some(key) = self.keys[side] else { continue };
            let writable = ChannelEvent::StreamWritable(key);
            if self.waits[side].is_some_and(|since| !world.has_since(side, since, writable)) {
                self.read(world, side, key);
                continue;
            }
            self.waits[side] = None;
            while self.sent[side] < self.want[side] {
                let end = self.want[side].min(self.sent[side] + (64 << 10));
                let bytes: Vec<u8> = (self.sent[side]..end).map(|at| byte(at, side)).collect();
                let taken = world.hubs[side].write_stream(key, &bytes);
                self.sent[side] += taken;
                if taken < bytes.len() {
                    self.waits[side] = Some(world.events[side].len());
                    break;
                }
            }
            if self.sent[side] == self.want[side] && !self.finished[side] {
                self.finished[side] = true;
                world.hubs[side].finish_stream(key);
            }
            self.read(world, side, key);
        }
    }

    fn read(&mut self, world: &mut World, side: usize, key: StreamKey) {
        while self.reads[side] {
            match world.hubs[side].read_stream(key) {
                StreamRead::Bytes(bytes) => {
                    let len = bytes.len();
                    assert!(len > 0);
                    for (at, found) in (self.got[side]..).zip(bytes) {
                        assert_eq!(*found, byte(at, 1 - side), "at {at}");
                    }
                    self.got[side] += len;
                    world.hubs[side].consume_stream(key, len);
                    let since = world.now - self.last.replace(world.now).unwrap_or(world.now);
                    self.stall = self.stall.max(since);
                }
                StreamRead::Nothing => break,
                StreamRead::End => {
                    self.ended[side] = true;
                    break;
                }
            }
        }
        let done = ChannelEvent::StreamDone(key);
        if world.events[side].contains(&done) {
            self.ended[side] = true;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        (0..2).all(|side| self.ended[side] && self.got[side] == self.want[1 - side])
    }
}

/// Lets streams go on until they are done, or panics.
pub(super) fn pipe(
    world: &mut World,
    pipes: &mut [Pipe],
    limit: Duration,
    mut during: impl FnMut(&mut World),
) {
    let end = world.now + limit;
    while !pipes.iter().all(Pipe::is_done) {
        pipes.iter_mut().for_each(|pipe| pipe.work(world));
        assert!(world.step(), "nothing will happen any more");
        during(world);
        if world.now > end {
            let state: Vec<_> = pipes.iter().map(|p| (p.got, p.ended)).collect();
            panic!("after {limit:?}: {state:?}");
        }
    }
}
