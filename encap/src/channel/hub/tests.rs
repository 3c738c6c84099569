//! Two hubs and a bad path between them, in virtual time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::id::PeerIndex;
use crate::link::id::{LinkIndex, LinkSet, MAX_LINKS};
use crate::wire::header::Kind;

const MS: Duration = Duration::from_millis(1);
const ROOM: usize = 1_446;

/// What a path does to packets.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Parts of 1,000.
    loss: u64,
    /// Parts of 1,000.
    copies: u64,
    delay: Duration,
    /// Up to so much more delay.
    jitter: Duration,
}

const CALM: Weather =
    Weather { loss: 0, copies: 0, delay: Duration::from_micros(100), jitter: Duration::ZERO };

struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

struct Flight {
    to: usize,
    kind: Kind,
    boot: u64,
    link: u8,
    payload: Vec<u8>,
}

/// Two nodes, 1 and 2.
struct World {
    now: Instant,
    start: Instant,
    hubs: [Hub; 2],
    boots: [u64; 2],
    weather: Vec<Weather>,
    /// Links that swallow everything.
    cut: Vec<bool>,
    failures: [u32; MAX_LINKS],
    order: Vec<u8>,
    flights: BTreeMap<(Instant, u64), Flight>,
    serial: u64,
    rng: Rng,
    packets: u64,
    errors: Vec<ChannelDrop>,
}

fn node(index: usize) -> NodeId {
    NodeId::new(index as u16 + 1).unwrap()
}

impl World {
    fn new(links: usize, weather: Weather, seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            hubs: [Hub::new(HubOptions::default()), Hub::new(HubOptions::default())],
            boots: [11, 22],
            weather: vec![weather; links],
            cut: vec![false; links],
            failures: [0; MAX_LINKS],
            order: (0..links as u8).collect(),
            flights: BTreeMap::new(),
            serial: 0,
            rng: Rng(seed * 2 + 1),
            packets: 0,
            errors: Vec::new(),
        };
        world.publish();
        world
    }

    fn publish(&mut self) {
        let links: Vec<LinkView> = self
            .order
            .iter()
            .map(|link| LinkView {
                link: LinkIndex::new(*link).unwrap(),
                room: ROOM,
                rtt: self.weather[usize::from(*link)].delay * 2,
                rtt_var: Duration::from_micros(50),
            })
            .collect();
        let live: LinkSet = links.iter().map(|view| view.link).collect();
        let chosen = links.iter().take(1).map(|view| view.link).collect();
        for index in 0..2 {
            let session = SessionView {
                boot: self.boots[1 - index],
                links: links.clone(),
                chosen,
                live,
                compression: true,
                failures: self.failures,
            };
            let view =
                PeerView { index: PeerIndex(0), node: node(1 - index), session: Some(session) };
            self.hubs[index].set_peers(self.now, vec![view]);
        }
    }

    fn configure(&mut self, mode: Mode) -> ChannelKey {
        let config = ChannelConfig {
            name: "test".into(),
            mode,
            peers: None,
            copies: false,
            send_buffer: 1 << 20,
            compression: None,
        };
        for hub in &mut self.hubs {
            hub.configure(self.now, vec![(ChannelKey(1), config.clone())]);
        }
        ChannelKey(1)
    }

    fn transmit(&mut self, index: usize) {
        let mut out = Vec::new();
        self.hubs[index].transmit(self.now, 256 << 10, &mut |packet| {
            for link in packet.links.iter() {
                let payload = packet.payload.to_vec();
                assert!(payload.len() <= ROOM);
                out.push((link.get(), packet.kind, payload));
            }
            true
        });
        for (link, kind, payload) in out {
            self.packets += 1;
            let weather = self.weather[usize::from(link)];
            if self.cut[usize::from(link)] || self.rng.below(1_000) < weather.loss {
                continue;
            }
            let copies = 1 + u64::from(self.rng.below(1_000) < weather.copies);
            for _ in 0..copies {
                let jitter = self.rng.below(weather.jitter.as_nanos() as u64 + 1);
                let at = self.now + weather.delay + Duration::from_nanos(jitter);
                self.serial += 1;
                let boot = self.boots[index];
                let flight = Flight { to: 1 - index, kind, boot, link, payload: payload.clone() };
                self.flights.insert((at, self.serial), flight);
            }
        }
    }

    /// One step of the world: what is due happens. False when nothing will ever happen.
    fn step(&mut self) -> bool {
        self.transmit(0);
        self.transmit(1);
        let arrival = self.flights.first_key_value().map(|((at, _), _)| *at);
        let timers = self.hubs.iter().filter_map(|hub| hub.timeout(self.now));
        let Some(next) = timers.chain(arrival).min() else { return false };
        self.now = self.now.max(next);
        while let Some(entry) = self.flights.first_entry()
            && entry.key().0 <= self.now
        {
            let flight = entry.remove();
            let from = node(1 - flight.to);
            let hub = &mut self.hubs[flight.to];
            let outcome = match flight.kind {
                Kind::Channel => {
                    assert_eq!(flight.payload[0], flight.link);
                    hub.on_packet(self.now, from, flight.boot, &flight.payload, 0)
                }
                _ => hub.on_unreliable(self.now, from, flight.boot, &flight.payload),
            };
            self.errors.extend(outcome.err());
        }
        true
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }
}

fn body(index: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(index * 77 + 1);
    let mut bytes = index.to_be_bytes().to_vec();
    bytes.resize_with(len.max(8), || rng.below(256) as u8);
    bytes
}

/// Sends messages of these lengths from node 1 to node 2 while `during` changes the world.
fn messages(
    world: &mut World,
    mode: Mode,
    lengths: &[usize],
    limit: Duration,
    mut during: impl FnMut(&mut World),
) -> Vec<Vec<u8>> {
    let key = world.configure(mode);
    let mut got = Vec::new();
    let mut next = 0;
    while got.len() < lengths.len() {
        while next < lengths.len() {
            let bytes = body(next as u64, lengths[next]);
            match world.hubs[0].send(world.now, key, node(1), SendOptions::default(), bytes) {
                Ok(()) => next += 1,
                Err(refused) => {
                    assert_eq!(refused.error, SendError::Full);
                    break;
                }
            }
        }
        assert!(world.step(), "nothing will happen any more");
        during(world);
        while let Some(message) = world.hubs[1].next_message(key) {
            assert_eq!(message.from, node(0));
            got.push(message.bytes);
        }
        assert!(world.elapsed() < limit, "{} of {} after {limit:?}", got.len(), lengths.len());
    }
    got
}

fn expected(lengths: &[usize]) -> Vec<Vec<u8>> {
    (0..).zip(lengths).map(|(index, len)| body(index, *len)).collect()
}

#[test]
fn messages_arrive_in_order() {
    let mut world = World::new(1, CALM, 1);
    let lengths = [0, 8, 100, 1_400, 1_500, 70_000, 3_000_000, 16 << 20, 5];
    let got = messages(&mut world, Mode::Ordered, &lengths, Duration::from_secs(20), |_| {});
    assert!(got == expected(&lengths));
    assert_eq!(world.errors, []);
}

#[test]
fn loss_copies_and_disorder_are_not_seen() {
    for seed in 1..6 {
        let weather = Weather { loss: 300, copies: 500, delay: MS, jitter: MS * 5 };
        let mut world = World::new(2, weather, seed);
        let lengths: Vec<usize> = (0..300).map(|n| (n * 37) % 5_000).collect();
        let got = messages(&mut world, Mode::Ordered, &lengths, Duration::from_secs(120), |_| {});
        assert!(got == expected(&lengths), "seed {seed}");
    }
}
