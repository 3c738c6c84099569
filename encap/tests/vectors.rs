//! The test vectors of `docs/protocol.md`, read from that file and checked twice: against this
//! crate's public interface, and against HKDF, HMAC, AES-GCM and AEGIS called as their
//! specifications say.
#![allow(missing_docs, unreachable_pub)]
// A check that fails may panic.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../src/crypto/reference.rs"]
mod reference;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use encap::compress::{Compressed, Decompressor};
use encap::crypto::aead::Suite;
use encap::crypto::key::{ClusterKey, EpochSecret, Iv, nonce};
use encap::crypto::seal::{KeyLimits, TxLane};
use encap::crypto::session::{Session, SessionFacts};
use encap::handshake::features::Features;
use encap::handshake::hello::{Hello, Status, Welcome};
use encap::handshake::psk::{Initiator, Responder};
use encap::id::PeerIndex;
use encap::id::{NodeId, Vni};
use encap::link::id::LinkSet;
use encap::rng::Rng;
use encap::wire::bundle;
use encap::wire::control::{Binding, Bindings, Message};
use encap::wire::header::{
    CLEAR_OVERHEAD, DataHeader, Format, Handle, InnerHeader, Kind, Lane, SEALED_OVERHEAD, Slot,
};
use encap::wire::heartbeat::{Heartbeat, LinkReport};
use encap::wire::long::{COOKIE_LEN, INITIATION_LEN, LONG_HEADER_LEN, LongHeader, Type, VERSION};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

const PROTOCOL: &str = include_str!("../../docs/protocol.md");
const PROTOCOL_NAME: &[u8; 32] = b"Noise_NNpsk0_25519_AESGCM_SHA256";
const SUITE: &[u8] = b"aes-256-gcm";
/// The suites of the vectors, by the name that begins theirs.
const AEGIS: [(&str, Suite); 2] = [("aegis256", Suite::Aegis256), ("aegis128l", Suite::Aegis128L)];
const HELLO_LEN: usize = 1_100;

/// The vectors by name; remembers which ones were asked for.
struct Vectors {
    values: BTreeMap<String, Vec<u8>>,
    used: RefCell<BTreeSet<String>>,
}

impl Vectors {
    /// Takes the `name = hex` lines from the code blocks of the section; an indented line goes on
    /// with the value above.
    fn read() -> Self {
        let (_, section) = PROTOCOL.split_once("\n## Test vectors\n").expect("the section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let blocks = section.split("```").skip(1).step_by(2);
        let mut texts: Vec<(String, String)> = Vec::new();
        for line in blocks.flat_map(|block| block.lines().skip(1)) {
            if let Some((name, value)) = line.split_once(" =") {
                texts.push((name.to_owned(), value.trim().to_owned()));
            } else if line.starts_with(' ') {
                let (_, value) = texts.last_mut().expect("a value to go on with");
                value.push_str(line.trim());
            } else {
                assert!(line.is_empty(), "neither a vector nor its continuation: {line}");
            }
        }
        let mut values = BTreeMap::new();
        for (name, text) in texts {
            assert!(text.len().is_multiple_of(2) && !text.is_empty(), "{name} is no hex: {text}");
            let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
            let value: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect();
            assert!(values.insert(name.clone(), value).is_none(), "{name} is there twice");
        }
        Self { values, used: RefCell::default() }
    }

    fn get(&self, name: &str) -> &[u8] {
        self.used.borrow_mut().insert(name.to_owned());
        self.values.get(name).unwrap_or_else(|| panic!("docs/protocol.md has no vector {name}"))
    }

    fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.get(name).try_into().unwrap_or_else(|_| panic!("{name} has not {N} bytes"))
    }

    #[track_caller]
    fn check(&self, name: &str, computed: impl AsRef<[u8]>) {
        assert_eq!(hex(computed.as_ref()), hex(self.get(name)), "{name}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 5869 and the label of section 2, without this crate.
fn label(secret: &[u8], label: &str, context: &[u8], len: usize) -> Vec<u8> {
    let mut info = (len as u16).to_be_bytes().to_vec();
    let text = format!("tapd1 {label}");
    info.push(text.len() as u8);
    info.extend(text.as_bytes());
    info.push(context.len() as u8);
    info.extend(context);
    let mut out = vec![0; len];
    Hkdf::<Sha256>::from_prk(secret).unwrap().expand(&info, &mut out).unwrap();
    out
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    hmac.update(data);
    hmac.finalize().into_bytes().into()
}

fn gcm_seal(key: &[u8], nonce: &[u8], aad: &[u8], msg: &[u8]) -> Vec<u8> {
    let nonce: [u8; 12] = nonce.try_into().unwrap();
    Aes256Gcm::new_from_slice(key).unwrap().encrypt(&nonce.into(), Payload { msg, aad }).unwrap()
}

fn gcm_open(key: &[u8], nonce: &[u8], aad: &[u8], msg: &[u8]) -> Option<Vec<u8>> {
    let nonce: [u8; 12] = nonce.try_into().unwrap();
    Aes256Gcm::new_from_slice(key).unwrap().decrypt(&nonce.into(), Payload { msg, aad }).ok()
}

/// Xor of the number, big-endian, into the last four bytes.
fn plain_nonce(iv: &[u8], sequence: u32) -> Vec<u8> {
    let number = [&vec![0; iv.len() - 4][..], &sequence.to_be_bytes()].concat();
    iv.iter().zip(number).map(|(iv, number)| iv ^ number).collect()
}

fn cluster_key(vectors: &Vectors) -> ClusterKey {
    ClusterKey::new(vectors.array("cluster_key"))
}

fn check_cluster_key(vectors: &Vectors) {
    vectors.check("key_id", cluster_key(vectors).id());
    let key = vectors.get("cluster_key");
    vectors.check("key_id", label(key, "key id", b"", 8));
    // The two secrets are not public: the header's MAC and the handshake show that the crate
    // has the same.
    vectors.check("psk", label(key, "psk", b"", 32));
    vectors.check("mac_key", label(key, "mac", b"", 32));
}

fn long_header(vectors: &Vectors, kind: Type, cookie: [u8; COOKIE_LEN]) -> LongHeader {
    LongHeader {
        kind,
        highest_version: VERSION,
        key_id: vectors.array("key_id"),
        token: u64::from_be_bytes(vectors.array("token")),
        cookie,
    }
}

fn check_long_headers(vectors: &Vectors) {
    let key = cluster_key(vectors);
    let initiation = long_header(vectors, Type::Initiation, [0; COOKIE_LEN]);
    let cookie_reply = long_header(vectors, Type::Cookie, vectors.array("cookie"));
    vectors.check("prologue", initiation.prologue());
    let plain = [b"tapd1\x01", vectors.get("key_id"), vectors.get("token")].concat();
    vectors.check("prologue", plain);
    for (name, header) in [("initiation_header", initiation), ("cookie_reply", cookie_reply)] {
        vectors.check(name, header.write(&key));
        let first = [0x20 | header.kind as u8, VERSION, VERSION, 0];
        let ids = [vectors.get("key_id"), vectors.get("token")].concat();
        let plain = [&first[..], &ids, &header.cookie].concat();
        let mac = hmac(vectors.get("mac_key"), &plain);
        vectors.check(name, [&plain[..], &mac[..16]].concat());
        let mut datagram = vectors.get(name).to_vec();
        datagram.resize(if name == "cookie_reply" { LONG_HEADER_LEN } else { INITIATION_LEN }, 0);
        assert_eq!(LongHeader::read(&datagram), Ok(header));
        assert!(LongHeader::authenticate(&datagram, &key));
    }
}

/// Gives out one ephemeral private key.
struct Given([u8; 32]);

impl Rng for Given {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0);
    }
}

/// The symmetric half of Noise (revision 34, section 5.2), by HKDF, SHA-256 and AES-GCM alone.
struct Noise {
    chaining: Vec<u8>,
    hash: Vec<u8>,
    key: Vec<u8>,
    count: u64,
}

impl Noise {
    fn new(prologue: &[u8]) -> Self {
        let mut noise = Self {
            chaining: PROTOCOL_NAME.to_vec(),
            hash: PROTOCOL_NAME.to_vec(),
            key: Vec::new(),
            count: 0,
        };
        noise.mix_hash(prologue);
        noise
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = Sha256::digest([&self.hash[..], data].concat()).to_vec();
    }

    /// Noise's HKDF is that of RFC 5869 with the chaining key for salt and no info.
    fn derive(&self, input: &[u8]) -> [Vec<u8>; 3] {
        let mut out = [0; 96];
        Hkdf::<Sha256>::new(Some(&self.chaining), input).expand(&[], &mut out).unwrap();
        [out[..32].to_vec(), out[32..64].to_vec(), out[64..].to_vec()]
    }

    fn mix_key(&mut self, input: &[u8]) {
        [self.chaining, self.key, _] = self.derive(input);
        self.count = 0;
    }

    fn mix_key_and_hash(&mut self, input: &[u8]) {
        let hashed;
        [self.chaining, hashed, self.key] = self.derive(input);
        self.count = 0;
        self.mix_hash(&hashed);
    }

    fn encrypt_and_hash(&mut self, plain: &[u8]) -> Vec<u8> {
        let nonce = [&[0; 4][..], &self.count.to_be_bytes()].concat();
        let sealed = gcm_seal(&self.key, &nonce, &self.hash, plain);
        self.count += 1;
        self.mix_hash(&sealed);
        sealed
    }
}

fn bindings(handle: u16) -> Bindings {
    let binding = Binding {
        vni: Vni::new(100).unwrap(),
        handle: Handle::new(handle).unwrap(),
        max_frame_len: 1446,
    };
    Bindings { revision: 1, part: 0, parts: 1, entries: vec![binding] }
}

fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

fn hello() -> Hello {
    Hello {
        from: node(1),
        to: node(2),
        boot: 0x0102_0304_0506_0708,
        stamp: 0x0006_3f1e_2d3c_4b5a,
        slot: Slot(5),
        suites: vec![Suite::Aes256Gcm],
        bindings: bindings(1),
        features: Features::from_bits(3),
    }
}

fn welcome() -> Welcome {
    Welcome {
        from: node(2),
        to: node(1),
        boot: 0x1112_1314_1516_1718,
        status: Status::Accepted,
        slot: Slot(6),
        suite: Suite::Aes256Gcm,
        bindings: bindings(7),
        features: Features::from_bits(3),
    }
}

fn check_initiation(vectors: &Vectors, datagram: &[u8]) {
    assert_eq!(datagram.len(), INITIATION_LEN);
    vectors.check("initiation_header", &datagram[..LONG_HEADER_LEN]);
    vectors.check("initiator_public", &datagram[LONG_HEADER_LEN..LONG_HEADER_LEN + 32]);
    vectors.check("initiation_tag", &datagram[INITIATION_LEN - 16..]);
    vectors.check("initiation_sha256", Sha256::digest(datagram));
}

fn check_handshake(vectors: &Vectors) {
    let key = cluster_key(vectors);
    let header = long_header(vectors, Type::Initiation, [0; COOKIE_LEN]);
    vectors.check("hello", hello().write(0));
    vectors.check("welcome", welcome().write());
    let mut rng = Given(vectors.array("initiator_private"));
    let (mut initiator, first) =
        Initiator::start(&key, &header.prologue(), &hello().write(HELLO_LEN), &mut rng).unwrap();
    check_initiation(vectors, &[&header.write(&key)[..], &first].concat());
    let mut rng = Given(vectors.array("responder_private"));
    let (responder, read) = Responder::read(&key, &header.prologue(), &first, &mut rng).unwrap();
    assert_eq!(Hello::read(&read), Ok(hello()));
    let (second, agreed) = responder.respond(&welcome().write()).unwrap();
    let header = LongHeader { kind: Type::Response, ..header };
    vectors.check("response", [&header.write(&key)[..], &second].concat());
    let read = initiator.finish(&vectors.get("response")[LONG_HEADER_LEN..]).unwrap();
    assert_eq!(Welcome::read(&read), Ok(welcome()));
    for agreed in [agreed, initiator.agreement().unwrap()] {
        vectors.check("transcript_hash", agreed.transcript_hash);
        vectors.check("split_i2r", *agreed.initiator_to_responder);
        vectors.check("split_r2i", *agreed.responder_to_initiator);
    }
}

/// NNpsk0 from the published public keys and shared secret: psk, e; e, ee.
fn check_noise(vectors: &Vectors) {
    let mut noise = Noise::new(vectors.get("prologue"));
    noise.mix_key_and_hash(vectors.get("psk"));
    let public = vectors.get("initiator_public");
    noise.mix_hash(public);
    noise.mix_key(public);
    let mut padded = vectors.get("hello").to_vec();
    padded.resize(HELLO_LEN, 0);
    let sealed = noise.encrypt_and_hash(&padded);
    check_initiation(vectors, &[vectors.get("initiation_header"), public, &sealed].concat());
    let public = vectors.get("responder_public");
    noise.mix_hash(public);
    noise.mix_key(public);
    noise.mix_key(vectors.get("dh"));
    let sealed = noise.encrypt_and_hash(vectors.get("welcome"));
    assert_eq!(hex(&vectors.get("response")[LONG_HEADER_LEN..]), hex(public) + &hex(&sealed));
    vectors.check("transcript_hash", &noise.hash);
    let [first, second, _] = noise.derive(b"");
    vectors.check("split_i2r", first);
    vectors.check("split_r2i", second);
}

fn first_epoch(vectors: &Vectors, direction: &str, suite: Suite) -> EpochSecret {
    let split = vectors.array(&format!("split_{direction}"));
    EpochSecret::first(&split, &vectors.array("transcript_hash"), suite)
}

fn check_lane_keys(vectors: &Vectors) {
    for direction in ["i2r", "r2i"] {
        let split = vectors.get(&format!("split_{direction}"));
        let mut epoch_secret = first_epoch(vectors, direction, Suite::Aes256Gcm);
        let extracted = hmac(vectors.get("transcript_hash"), split);
        let mut plain = label(&extracted, "dir", SUITE, 32);
        for epoch in [0, 1] {
            let name = format!("{direction}_epoch{epoch}");
            vectors.check(&format!("{name}_secret"), &plain);
            for lane in [Lane::new(0, 0), Lane::CONTROL] {
                let name = format!("{name}_lane{:02x}", lane.0);
                let key = epoch_secret.lane(lane);
                vectors.check(&format!("{name}_key"), key.key());
                vectors.check(&format!("{name}_iv"), key.iv());
                let both = label(&plain, "lane", &[SUITE, &[lane.0]].concat(), 44);
                vectors.check(&format!("{name}_key"), &both[..32]);
                vectors.check(&format!("{name}_iv"), &both[32..]);
            }
            epoch_secret = epoch_secret.next();
            plain = label(&plain, "upd", SUITE, 32);
        }
    }
}

fn check_nonces(vectors: &Vectors) {
    let iv = Iv::new(vectors.get("i2r_epoch0_lane00_iv"));
    for sequence in [0, 2, 0x0102_0304, KeyLimits::AES_256_GCM.hard_packets - 1] {
        let name = format!("i2r_epoch0_lane00_nonce_{sequence:08x}");
        vectors.check(&name, nonce(&iv, sequence));
        vectors.check(&name, plain_nonce(&iv, sequence));
    }
}

/// A session of one of the two nodes, from the published secrets.
fn session(vectors: &Vectors, initiator: bool, suite: Suite) -> Session {
    let (local_slot, remote_slot) = if initiator { (Slot(5), Slot(6)) } else { (Slot(6), Slot(5)) };
    let (tx, rx) = if initiator { ("i2r", "r2i") } else { ("r2i", "i2r") };
    let facts = SessionFacts {
        serial: 1,
        peer: PeerIndex(0),
        local_slot,
        remote_slot,
        suite,
        boot: 0,
        features: Features::NONE,
        limits: KeyLimits::AES_256_GCM,
    };
    let first = |direction| first_epoch(vectors, direction, suite);
    Session::new(facts, first(tx), first(rx))
}

/// Seals `payload` until the number is `sequence`; gives that datagram.
fn seal(lane: &mut TxLane, inner: InnerHeader, payload: &[u8], sequence: u32) -> Vec<u8> {
    for _ in 0..sequence {
        lane.seal_payload(inner, payload).unwrap();
    }
    lane.seal_payload(inner, payload).unwrap()
}

/// One direction, epoch and lane under each of the other suites, and the sealed frame.
fn check_aegis(vectors: &Vectors) {
    let payload = vectors.get("frame_payload");
    let inner = InnerHeader { kind: Kind::Frame, handle: Handle::new(7).unwrap() };
    let text = [&inner.write()[..], payload].concat();
    for (prefix, suite) in AEGIS {
        let name = |part: &str| format!("{prefix}_{part}");
        let get = |part: &str| vectors.get(&name(part));
        let extracted = hmac(vectors.get("transcript_hash"), vectors.get("split_i2r"));
        let secret = label(&extracted, "dir", suite.name().as_bytes(), 32);
        vectors.check(&name("secret"), &secret);
        let context = [suite.name().as_bytes(), &[0]].concat();
        let both = label(&secret, "lane", &context, suite.key_len() + suite.nonce_len());
        vectors.check(&name("lane00_key"), &both[..suite.key_len()]);
        vectors.check(&name("lane00_iv"), &both[suite.key_len()..]);
        let lane_key = first_epoch(vectors, "i2r", suite).lane(Lane(0));
        vectors.check(&name("lane00_key"), lane_key.key());
        vectors.check(&name("lane00_iv"), lane_key.iv());
        vectors.check(&name("frame_nonce"), plain_nonce(get("lane00_iv"), 2));
        vectors.check(&name("frame_nonce"), nonce(&lane_key.iv(), 2));
        let clear = vectors.get("frame_clear_header");
        let (key, nonce) = (get("lane00_key"), get("frame_nonce"));
        let work = |text: &[u8], work| {
            if suite == Suite::Aegis256 {
                let (key, nonce) = (key.try_into().unwrap(), nonce.try_into().unwrap());
                reference::aegis_256(key, nonce, clear, text, work)
            } else {
                let (key, nonce) = (key.try_into().unwrap(), nonce.try_into().unwrap());
                reference::aegis_128l(key, nonce, clear, text, work)
            }
        };
        let (sealed, tag) = work(&text, reference::Work::Seal);
        assert_eq!(work(&sealed, reference::Work::Open), (text.clone(), tag));
        vectors.check(&name("frame_ciphertext"), &sealed);
        vectors.check(&name("frame_tag"), tag);
        vectors.check(&name("frame_datagram"), [clear, &sealed, &tag].concat());
        let mut lane = session(vectors, true, suite).tx_lane(Lane(0)).unwrap();
        let datagram = seal(&mut lane, inner, payload, 2);
        assert_eq!(datagram.len(), payload.len() + SEALED_OVERHEAD);
        vectors.check(&name("frame_datagram"), datagram);
    }
}

/// The parts of a sealed datagram against AES-GCM as the rules say, both ways.
fn check_parts(vectors: &Vectors, name: &str, lane: &str, header: DataHeader, inner: InnerHeader) {
    let get = |part: &str| vectors.get(&format!("{name}_{part}"));
    let key = vectors.get(&format!("{lane}_key"));
    let iv = vectors.get(&format!("{lane}_iv"));
    vectors.check(&format!("{name}_clear_header"), header.write());
    vectors.check(&format!("{name}_inner_header"), inner.write());
    vectors.check(&format!("{name}_nonce"), plain_nonce(iv, header.sequence));
    let text = [get("inner_header"), get("payload")].concat();
    let body = [get("ciphertext"), get("tag")].concat();
    let (nonce, clear) = (get("nonce"), get("clear_header"));
    assert_eq!(hex(&gcm_seal(key, nonce, clear, &text)), hex(&body), "{name}");
    assert_eq!(gcm_open(key, nonce, clear, &body), Some(text), "{name}");
    let mut other = clear.to_vec();
    other[7] ^= 1;
    assert_eq!(gcm_open(key, nonce, &other, &body), None, "the clear header is authenticated");
    assert_eq!(get("datagram"), [clear, &body].concat(), "{name}");
    assert_eq!(get("datagram").len(), get("payload").len() + SEALED_OVERHEAD);
}

fn check_sealed_frame(vectors: &Vectors) {
    let inner = InnerHeader { kind: Kind::Frame, handle: Handle::new(7).unwrap() };
    let header = DataHeader {
        format: Format::Sealed,
        epoch_bits: 0,
        slot: Slot(6),
        lane: Lane::new(0, 0),
        sequence: 2,
    };
    check_parts(vectors, "frame", "i2r_epoch0_lane00", header, inner);
    let mut lane = session(vectors, true, Suite::Aes256Gcm).tx_lane(header.lane).unwrap();
    let datagram = seal(&mut lane, inner, vectors.get("frame_payload"), header.sequence);
    vectors.check("frame_datagram", datagram);
}

fn check_sealed_heartbeat(vectors: &Vectors) {
    let inner = InnerHeader { kind: Kind::Control, handle: Handle::NONE };
    let header = DataHeader {
        format: Format::Sealed,
        epoch_bits: 1,
        slot: Slot(5),
        lane: Lane::CONTROL,
        sequence: 0,
    };
    let mut heartbeat = Heartbeat::default();
    heartbeat.round = 9;
    heartbeat.epoch_opened = 1;
    heartbeat.sent_us = 1_000_000;
    heartbeat.interval_us = 10_000;
    heartbeat.lost = LinkSet(2);
    heartbeat.drained = LinkSet(1);
    heartbeat.push(LinkReport {
        tag: 0x0102_0304,
        highest: 8,
        echo_us: 990_000,
        echo_delay_us: 150,
        rounds: 8,
        datagrams: 20,
    });
    heartbeat.push(LinkReport::default());
    let message = Message::Heartbeat(heartbeat);
    let mut payload = Vec::new();
    message.write(&mut payload);
    let expected = Message::read_all(&payload);
    assert_eq!(expected, Ok(vec![message]));
    let session = session(vectors, false, Suite::Aes256Gcm);
    assert!(session.rotate_tx(0));
    let datagram = seal(&mut session.tx_lane(Lane::CONTROL).unwrap(), inner, &payload, 0);
    vectors.check("heartbeat_payload", &payload);
    check_parts(vectors, "heartbeat", "r2i_epoch1_lanefe", header, inner);
    vectors.check("heartbeat_datagram", datagram);
}

fn check_bundle(vectors: &Vectors) {
    let inner = InnerHeader { kind: Kind::Bundle, handle: Handle::new(7).unwrap() };
    vectors.check("bundle_inner_header", inner.write());
    let (first, second) = (vectors.get("frame_payload"), vectors.get("bundle_second"));
    let plain = [&[0, 18][..], first, &[0x80, 20], second].concat();
    vectors.check("bundle_payload", &plain);
    let mut written = Vec::new();
    for (frame, partial) in [(first, false), (second, true)] {
        written.extend(bundle::entry_header(frame.len(), partial));
        written.extend(frame);
    }
    vectors.check("bundle_payload", &written);
    let entries: Vec<_> = bundle::entries(&written).unwrap().collect();
    assert_eq!(entries, [(2..20, false), (22..42, true)]);
}

fn check_compressed(vectors: &Vectors) {
    let inner = InnerHeader { kind: Kind::Compressed, handle: Handle::new(7).unwrap() };
    vectors.check("compressed_inner_header", inner.write());
    // Frame header, a raw block, a block of one byte 286 times (RFC 8878 section 3.1.1).
    let start = &vectors.get("frame_payload")[..14];
    let blocks = [&[0x70, 0, 0][..], start, &[0xf3, 0x08, 0], &[0]].concat();
    let plain = [&[0, 1, 44, 0x60, 44, 0][..], &blocks].concat();
    vectors.check("compressed_payload", &plain);
    let compressed = Compressed::read(vectors.get("compressed_payload")).unwrap();
    let mut out = vec![0xee; compressed.len()];
    Decompressor::new(Arc::default()).unwrap().decompress(&compressed, &mut out).unwrap();
    assert_eq!(out, [start, &[0; 286]].concat());
    assert_eq!(compressed.inner(), Kind::Frame);
}

fn check_clear_mode(vectors: &Vectors) {
    let (frame, with_vni) = (vectors.get("frame_payload"), vectors.get("vni_payload"));
    assert_eq!(with_vni, [&[0, 0, 100, 0][..], frame].concat());
    let mut lane = session(vectors, true, Suite::Clear).tx_lane(Lane(0)).unwrap();
    let inner = InnerHeader { kind: Kind::Frame, handle: Handle::new(7).unwrap() };
    let datagram = seal(&mut lane, inner, frame, 2);
    assert_eq!(datagram.len(), frame.len() + CLEAR_OVERHEAD);
    vectors.check("clear_datagram", datagram);
    vectors.check("clear_datagram", [&[0x80, 0, 6, 0, 0, 0, 0, 2, 0, 7][..], frame].concat());
    let inner = InnerHeader { kind: Kind::FrameWithVni, handle: Handle::NONE };
    vectors.check("clear_vni_datagram", seal(&mut lane, inner, with_vni, 0));
    let plain = [&[0x80, 0, 6, 0, 0, 0, 0, 3, 0x10, 0][..], with_vni].concat();
    vectors.check("clear_vni_datagram", plain);
}

#[test]
fn vectors_cluster_key() {
    check_cluster_key(&Vectors::read());
}

#[test]
fn vectors_long_headers() {
    check_long_headers(&Vectors::read());
}

#[test]
fn vectors_handshake() {
    check_handshake(&Vectors::read());
}

#[test]
fn vectors_handshake_by_hand() {
    check_noise(&Vectors::read());
}

#[test]
fn vectors_lane_keys() {
    check_lane_keys(&Vectors::read());
}

#[test]
fn vectors_nonces() {
    check_nonces(&Vectors::read());
}

#[test]
fn vectors_sealed_frame() {
    check_sealed_frame(&Vectors::read());
}

#[test]
fn vectors_sealed_heartbeat() {
    check_sealed_heartbeat(&Vectors::read());
}

#[test]
fn vectors_bundle() {
    check_bundle(&Vectors::read());
}

#[test]
fn vectors_aegis() {
    check_aegis(&Vectors::read());
}

#[test]
fn vectors_compressed() {
    check_compressed(&Vectors::read());
}

#[test]
fn vectors_clear_mode() {
    check_clear_mode(&Vectors::read());
}

/// A vector that is published and not checked would be worth nothing.
#[test]
fn vectors_are_all_checked() {
    let vectors = Vectors::read();
    for check in [
        check_cluster_key,
        check_long_headers,
        check_handshake,
        check_noise,
        check_lane_keys,
        check_nonces,
        check_sealed_frame,
        check_sealed_heartbeat,
        check_bundle,
        check_aegis,
        check_compressed,
        check_clear_mode,
    ] {
        check(&vectors);
    }
    let published: BTreeSet<_> = vectors.values.keys().cloned().collect();
    assert_eq!(published, *vectors.used.borrow());
    assert!(published.len() > 50, "{}", published.len());
}
