//! The input of `decapsulate`: a script of what reaches two nodes and what they do meanwhile.
//!
//! One step is an operation byte, whose high bit chooses the node that it is for, and its
//! arguments; what is missing at the end of the input is zero. `corpus/decapsulate` has one
//! example of each.

use std::cell::RefCell;
use std::time::Duration;

use encap::crypto::aead::Suite;
use encap::datapath::ControlInput;
use encap::handshake::features::Features;
use encap::handshake::hello::{Hello, Status, Welcome};
use encap::handshake::psk::{Initiator, NOISE_OVERHEAD, Responder};
use encap::link::id::LinkIndex;
use encap::wire::control::Bindings;
use encap::wire::header::{Handle, InnerHeader, Kind, Slot};
use encap::wire::long::{COOKIE_LEN, INITIATION_LEN, LONG_HEADER_LEN, LongHeader, Type, VERSION};

use super::pair::{Pair, source};
use super::world::{NodeIndex, Random, id};

/// Most steps of a script; the rest is not looked at.
const MAX_STEPS: usize = 24;
/// Operations; their numbers are those of the arms in [`step`].
const OPERATIONS: u8 = 14;
/// Room for the payload of an initiation.
const HELLO_LEN: usize = INITIATION_LEN - LONG_HEADER_LEN - NOISE_OVERHEAD;

thread_local! {
    /// A pair that is as new: making one costs two handshakes.
    static FRESH: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

/// Nothing is delivered but what the peer sealed, once, and every datagram is counted once.
pub fn decapsulate(data: &[u8]) {
    let mut pair = FRESH.take().unwrap_or_else(Pair::new);
    let mut script = Script(data);
    for _ in 0..MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        step(&mut pair, &mut script);
    }
    // A pair that something happened to is not used again: an input must replay alone.
    if !pair.used {
        FRESH.set(Some(pair));
    }
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Up to `len` bytes.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn short(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.take(len.into())
    }

    fn long(&mut self) -> &'a [u8] {
        let len = self.word();
        self.take(len.into())
    }

    /// Changes up to three bytes.
    fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.byte() % 4 {
            let (at, change) = (usize::from(self.word()), self.byte());
            if !bytes.is_empty() {
                let len = bytes.len();
                bytes[at % len] ^= change;
            }
        }
    }

    /// Cuts bytes off the end, or adds some.
    fn resize(&mut self, bytes: &mut Vec<u8>) {
        let change = usize::from(self.byte());
        if change < 128 {
            bytes.truncate(bytes.len().saturating_sub(change));
        } else {
            bytes.resize(bytes.len() + change - 127, 0);
        }
    }
}

fn step(pair: &mut Pair, script: &mut Script<'_>) {
    let operation = script.byte();
    let to = usize::from(operation >> 7);
    match operation % 128 % OPERATIONS {
        0 => {
            let from = source(to, script.byte());
            pair.receive(to, from, script.long());
        }
        1 => {
            let bytes = pick(pair, script, to);
            pair.receive(to, source(to, script.byte()), &bytes);
        }
        2 => {
            let bytes = damaged(pair, script, to);
            pair.receive(to, source(to, script.byte()), &bytes);
        }
        3 => {
            let from = source(to, script.byte());
            pair.hand_over(to, from, script.long());
        }
        4 => {
            let bytes = damaged(pair, script, to);
            pair.hand_over(to, source(to, script.byte()), &bytes);
        }
        5 => pair.send_frame(1 - to, script.short()),
        6 => seal(pair, script, to),
        7 => pair.wait(Duration::from_millis(script.word().into())),
        8 => pair.talk(Duration::from_millis(script.byte().into())),
        9 => rehandshake(pair, to),
        10 => pair.rotate(1 - to),
        11 => late_input(pair, script, to),
        12 => hostile_handshake(pair, script, to),
        _ => keyed_junk(pair, script, to),
    }
}

/// One of the datagrams sent so far, counted from the latest: one for `to`, or one of its own.
fn pick(pair: &Pair, script: &mut Script<'_>, to: NodeIndex) -> Vec<u8> {
    let back = script.byte();
    let target = if back < 0xc0 { to } else { 1 - to };
    let sent: Vec<_> = pair.world.sent.iter().filter(|sent| sent.to == target).collect();
    let back = usize::from(back % 0xc0) % sent.len();
    sent[sent.len() - 1 - back].bytes.clone()
}

fn damaged(pair: &Pair, script: &mut Script<'_>, to: NodeIndex) -> Vec<u8> {
    let mut bytes = pick(pair, script, to);
    script.resize(&mut bytes);
    script.damage(&mut bytes);
    bytes
}

/// An authentic datagram with anything in it.
fn seal(pair: &mut Pair, script: &mut Script<'_>, to: NodeIndex) {
    let kinds = [
        Kind::Frame,
        Kind::FrameWithVni,
        Kind::Control,
        Kind::FramePartialChecksum,
        Kind::Fragment,
        Kind::Probe,
    ];
    let kind = kinds[usize::from(script.byte()) % kinds.len()];
    let handle = Handle::new(script.word() & Handle::MAX).unwrap_or_default();
    let payload = script.long();
    // It arrives at once: what is to wait is made by the other operations.
    if let Some(bytes) = pair.seal(1 - to, InnerHeader { kind, handle }, payload) {
        pair.receive(to, source(to, 0), &bytes);
    }
}

fn rehandshake(pair: &mut Pair, to: NodeIndex) {
    pair.used = true;
    let now = pair.world.now;
    let asked = pair.world.nodes[1 - to].vtep.rehandshake(now, None);
    assert_eq!(asked, Ok(()));
    pair.world.drain(1 - to);
}

/// Serial numbers begin at 1 and grow, so these sessions never were.
fn late_input(pair: &mut Pair, script: &mut Script<'_>, to: NodeIndex) {
    let slot = Slot(script.word().into());
    let session = [0, u64::MAX][usize::from(script.byte() % 2)];
    let input = match script.byte() % 3 {
        0 => ControlInput::Message {
            slot,
            session,
            link: LinkIndex::FIRST,
            from: source(to, 0),
            payload: script.short().to_vec(),
        },
        1 => ControlInput::SessionProven { slot, session },
        _ => ControlInput::EpochOpened { slot, session, epoch: script.word().into() },
    };
    pair.late_input(to, input);
}

/// A holder of the cluster key says anything in a handshake.
fn hostile_handshake(pair: &mut Pair, script: &mut Script<'_>, to: NodeIndex) {
    let (key, seed) = (pair.key(), script.byte());
    let bindings = Bindings { revision: 7, part: 0, parts: 1, entries: Vec::new() };
    let (from, node) = (id(2 - to as u16), id(to as u16 + 1));
    let mut rng = Random(u64::from(seed));
    let outstanding = pair
        .world
        .sent
        .iter()
        .rev()
        .find(|sent| sent.from == to && sent.bytes.first() == Some(&0x21))
        .map(|sent| sent.bytes.clone());
    let made = if let (true, Some(asked)) = (seed & 1 == 1, outstanding) {
        let header = LongHeader::read(&asked).unwrap();
        let asked = &asked[LONG_HEADER_LEN..];
        let Ok((responder, _)) = Responder::read(&key, &header.prologue(), asked, &mut rng) else {
            return;
        };
        let welcome = Welcome {
            from,
            to: node,
            boot: seed.into(),
            status: Status::Accepted,
            slot: Slot(script.word().into()),
            suite: Suite::Aes256Gcm,
            bindings,
            features: Features::from_bits(seed.into()),
        };
        let mut payload = welcome.write();
        script.damage(&mut payload);
        script.resize(&mut payload);
        let reply = LongHeader { kind: Type::Response, cookie: [0; COOKIE_LEN], ..header };
        let Ok((message, _)) = responder.respond(&payload) else { return };
        [&reply.write(&key)[..], &message].concat()
    } else {
        let stamp = 1 << (script.word() % 64);
        let suites = vec![Suite::Aes256Gcm];
        let slot = Slot(seed.into());
        let features = Features::from_bits(seed.into());
        let boot = seed.into();
        let hello = Hello { from, to: node, boot, stamp, slot, suites, bindings, features };
        let mut payload = hello.write(HELLO_LEN);
        script.damage(&mut payload);
        let header = header(Type::Initiation, pair, script, to);
        let Ok((_, message)) = Initiator::start(&key, &header.prologue(), &payload, &mut rng)
        else {
            return;
        };
        [&header.write(&key)[..], &message].concat()
    };
    pair.push_genuine(1 - to, made.clone());
    pair.receive(to, source(to, script.byte()), &made);
}

/// A header with the right MAC in front of anything.
fn keyed_junk(pair: &mut Pair, script: &mut Script<'_>, to: NodeIndex) {
    let kinds = [Type::Initiation, Type::Response, Type::Cookie];
    let kind = kinds[usize::from(script.byte() % 3)];
    let header = header(kind, pair, script, to);
    let mut made = header.write(&pair.key()).to_vec();
    made.extend(script.short());
    if kind == Type::Initiation {
        made.resize(INITIATION_LEN, 0);
    }
    if kind == Type::Cookie {
        // There is nothing in a cookie message but its header: this one is authentic.
        made.truncate(LONG_HEADER_LEN);
        pair.push_genuine(1 - to, made.clone());
    }
    pair.receive(to, source(to, script.byte()), &made);
}

/// The header of an own message, with the token of one that was sent where there is one.
fn header(kind: Type, pair: &Pair, script: &mut Script<'_>, to: NodeIndex) -> LongHeader {
    let token = LongHeader::read(&pick(pair, script, to)).map_or(3, |header| header.token);
    let mut cookie = [0; COOKIE_LEN];
    cookie[0] = script.byte();
    LongHeader { kind, highest_version: VERSION, key_id: pair.key().id(), token, cookie }
}
