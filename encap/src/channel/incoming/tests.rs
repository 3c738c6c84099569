use super::super::Carried;
use super::super::outgoing::{Options, OutgoingMessages, OutgoingStream, Ticket};
use super::*;
use crate::wire::channel::unreliable::{MAX_UNRELIABLE_LEN, Unreliable};
use crate::wire::channel::{ChannelId, Frame, Frames, MAX_MESSAGE_LEN, Message, Opener, Stream};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

mod faults;

const CHANNEL: ChannelId = ChannelId { number: 3, opener: Opener::Sender };
const LIMIT: u64 = 64 << 20;
const RTT: Duration = Duration::from_millis(2);
/// Steps within which every exchange of the tests ends, many times what it takes.
const MAX_STEPS: u32 = 20_000;

/// The xorshift of Marsaglia.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Content that differs by message and by place.
fn content(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(77)) as u8)
        .collect()
}

/// The two halves of one channel and direction, whatever it carries.
trait Halves {
    fn fill(&mut self, now: Instant, room: usize, out: &mut Vec<u8>) -> Option<Carried>;
    fn acked(&mut self, carried: &Carried);
    fn lost(&mut self, carried: &Carried);
    fn receive(&mut self, frame: Frame<'_>) -> Result<(), Fault>;
    fn credit(&mut self, now: Instant) -> Option<(Frame<'static>, Carried)>;
    fn credit_came(&mut self, frame: Frame<'_>);
    fn credit_lost(&mut self, carried: &Carried);
    /// Credit that is idle is asked back.
    fn look(&mut self);
    fn read(&mut self);
    fn check(&self);
    fn is_over(&self) -> bool;
}

/// Packets that are lost, doubled, reordered, and declared lost when they are not.
struct Net {
    random: Random,
    now: Instant,
    /// Of packets and of acknowledgements, in percent.
    loss: u64,
    /// How often the program reads, in percent of steps.
    reads: u64,
    flying: Vec<(Vec<u8>, Vec<Carried>)>,
}

impl Net {
    fn new(seed: u64, loss: u64, reads: u64) -> Self {
        let random = Random(seed * 2 + 1);
        Self { random, now: Instant::now(), loss, reads, flying: Vec::new() }
    }

    fn step(&mut self, halves: &mut impl Halves) {
        self.now += Duration::from_millis(1);
        for _ in 0..8 {
            let room = 80 + self.random.below(1300) as usize;
            let (mut bytes, mut all) = (Vec::new(), Vec::new());
            while let Some(one) = halves.fill(self.now, room - bytes.len(), &mut bytes) {
                all.push(one);
            }
            assert!(bytes.len() <= room);
            if !all.is_empty() {
                self.flying.push((bytes, all));
            }
        }
        for _ in 0..self.flying.len() * 2 / 3 + 1 {
            self.land(halves);
            halves.check();
        }
        if self.random.percent(20) {
            halves.look();
        }
        while let Some((frame, carried)) = halves.credit(self.now) {
            if self.random.percent(self.loss) {
                halves.credit_lost(&carried);
                break;
            }
            halves.credit_came(frame);
        }
        if self.random.percent(self.reads) {
            halves.read();
        }
        halves.check();
    }

    /// One of the packets under way arrives, or does not.
    fn land(&mut self, halves: &mut impl Halves) {
        if self.flying.is_empty() {
            return;
        }
        let at = self.random.below(self.flying.len() as u64) as usize;
        let (bytes, all) = self.flying.swap_remove(at);
        if self.random.percent(self.loss) {
            return all.iter().for_each(|one| halves.lost(one));
        }
        let mut taken = true;
        for _ in 0..1 + self.random.below(2) {
            Frames::new(&bytes).check().unwrap();
            for frame in Frames::new(&bytes) {
                match halves.receive(frame.unwrap()) {
                    Ok(()) => {}
                    Err(fault) if !fault.is_hostile() => taken = false,
                    Err(fault) => panic!("{fault}: {frame:?}"),
                }
            }
        }
        if !taken || self.random.percent(self.loss) {
            all.iter().for_each(|one| halves.lost(one));
            // The acknowledgement was only late.
            if !taken || self.random.percent(50) {
                return;
            }
        }
        all.iter().for_each(|one| halves.acked(one));
    }

    fn run(&mut self, halves: &mut impl Halves) {
        for _ in 0..MAX_STEPS {
            self.step(halves);
            if halves.is_over() {
                return;
            }
        }
        panic!("it does not come to its end");
    }
}

struct Messages {
    out: OutgoingMessages,
    incoming: IncomingMessages,
    memory: Memory,
    limit: usize,
    sent: BTreeMap<Ticket, Vec<u8>>,
    done: Vec<Ticket>,
    expired: Vec<Ticket>,
    got: Vec<Delivery>,
}

impl Messages {
    fn new(ordered: bool, limit: usize, window: u64) -> Self {
        let mut memory = Memory::new(LIMIT);
        let credit = Credit::new(Instant::now(), window, TOP_WINDOW, &mut memory);
        let out = OutgoingMessages::new(CHANNEL, ordered, limit, credit.granted(), MESSAGE_WINDOW);
        let incoming = IncomingMessages::new(CHANNEL.flipped(), ordered, credit);
        let (done, expired, got) = (Vec::new(), Vec::new(), Vec::new());
        Self { out, incoming, memory, limit, sent: BTreeMap::new(), done, expired, got }
    }

    /// Whether it was taken.
    fn push(&mut self, now: Instant, len: usize, options: Options) -> bool {
        let bytes = content(self.sent.len() as u64, len);
        match self.out.try_push(now, bytes.clone(), options) {
            Ok(ticket) => self.sent.insert(ticket, bytes).is_none(),
            Err(_) => false,
        }
    }

    fn over(self) {
        let Self { incoming, mut memory, .. } = self;
        incoming.close(&mut memory);
        assert_eq!(memory.booked(), 0);
    }
}

impl Halves for Messages {
    fn fill(&mut self, now: Instant, room: usize, bytes: &mut Vec<u8>) -> Option<Carried> {
        self.expired.extend(self.out.expire(now));
        let (frame, carried) = self.out.next_frame(now, room)?;
        frame.write(bytes);
        Some(carried)
    }

    fn acked(&mut self, carried: &Carried) {
        self.done.extend(self.out.on_acked(carried));
    }

    fn lost(&mut self, carried: &Carried) {
        self.out.on_lost(carried);
    }

    fn receive(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        match frame {
            Frame::Message(message) => self.incoming.on_message(&message),
            Frame::Expired { id, total, .. } => {
                self.incoming.on_expired(id, total, &mut self.memory)
            }
            Frame::Close { count, .. } => self.incoming.on_close(count),
            Frame::Blocked { number, at, .. } => {
                self.incoming.on_blocked(number, at);
                Ok(())
            }
            Frame::Return { total, .. } => self.incoming.on_return(total, &mut self.memory),
            _ => panic!("{frame:?}"),
        }
    }

    fn credit(&mut self, now: Instant) -> Option<(Frame<'static>, Carried)> {
        self.incoming.next_frame(now, RTT, &mut self.memory)
    }

    fn credit_came(&mut self, frame: Frame<'_>) {
        match frame {
            Frame::MaxData { limit, .. } => self.out.on_max_data(limit),
            Frame::MaxMessages { limit, .. } => self.out.on_max_messages(limit),
            Frame::Recall { .. } => self.out.on_recall(),
            _ => panic!("{frame:?}"),
        }
    }

    fn credit_lost(&mut self, carried: &Carried) {
        self.incoming.on_lost(carried);
    }

    fn look(&mut self) {
        self.incoming.look();
    }

    fn read(&mut self) {
        while let Some(delivery) = self.incoming.next_message(&mut self.memory) {
            self.got.push(delivery);
        }
    }

    fn check(&self) {
        assert!(self.out.kept() <= self.limit);
        assert!(self.incoming.memory() as u64 <= self.memory.booked());
        assert!(self.memory.booked() <= LIMIT);
    }

    fn is_over(&self) -> bool {
        self.out.is_done() && self.incoming.is_finished()
    }
}

/// Pushes `count` messages as there is room, with a deadline for some if `ttl`, and runs to the end.
fn exchange(ordered: bool, ttl: bool, seed: u64) -> Messages {
    let mut halves = Messages::new(ordered, 200_000, 40_000);
    let mut net = Net::new(seed, 30, 40);
    let mut next = None;
    while halves.sent.len() < 300 {
        let (random, now) = (&mut net.random, net.now);
        let (len, options) = *next.get_or_insert_with(|| {
            let longest = [1, 100, 5000, 100_000][random.below(4) as usize];
            let priority = random.below(8) as u8;
            let after = Duration::from_millis(random.below(60));
            let deadline = (ttl && random.percent(40)).then(|| now + after);
            (random.below(longest) as usize, Options { priority, deadline })
        });
        if halves.push(now, len, options) {
            next = None;
        } else {
            net.step(&mut halves);
        }
    }
    halves.out.finish();
    net.run(&mut halves);
    halves
}

#[test]
fn ordered_messages_arrive_exactly_in_order() {
    for seed in 0..6 {
        let halves = exchange(true, false, seed);
        assert!(halves.got.iter().map(|got| &got.bytes).eq(halves.sent.values()));
        assert!(halves.got.iter().map(|got| got.id).eq(0..300));
        halves.over();
    }
}

#[test]
fn unordered_messages_arrive_exactly_once() {
    for seed in 0..6 {
        let mut halves = exchange(false, false, seed);
        let in_order = halves.got.is_sorted_by_key(|got| got.id);
        assert!(!in_order, "nothing was reordered");
        let mut got: Vec<_> = halves.got.iter().map(|got| got.bytes.clone()).collect();
        let mut sent: Vec<_> = halves.sent.values().cloned().collect();
        got.sort();
        sent.sort();
        assert!(got == sent);
        halves.done.sort();
        assert!(halves.done.iter().eq(halves.sent.keys()));
        halves.over();
    }
}

#[test]
fn messages_with_a_deadline_arrive_at_most_once_and_hold_nothing_up() {
    for (seed, ordered) in (0..10).map(|seed| (seed, seed % 2 == 0)) {
        let mut halves = exchange(ordered, true, seed);
        assert!(halves.expired.len() > 5, "{} expired", halves.expired.len());
        // Each was acknowledged or given up.
        let mut ended = [&halves.done[..], &halves.expired].concat();
        ended.sort();
        assert!(ended.iter().eq(halves.sent.keys()));
        if ordered {
            assert!(halves.got.is_sorted_by_key(|got| got.id));
        }
        // All that was not given up is there, and what was may be.
        let mut missing: Vec<_> = halves.sent.iter().map(|(a, b)| (*a, b.clone())).collect();
        for got in &halves.got {
            let at = missing.iter().position(|(_, bytes)| *bytes == got.bytes);
            missing.remove(at.expect("came twice, or was never sent"));
        }
        // Messages of few bytes may be equal to one that was given up.
        let lost = missing
            .iter()
            .filter(|(ticket, bytes)| bytes.len() > 8 && !halves.expired.contains(ticket));
        assert_eq!(lost.count(), 0);
        halves.got.clear();
        halves.over();
    }
}

#[test]
fn the_longest_message_passes_a_small_window() {
    let mut halves = Messages::new(true, 40 << 20, START_WINDOW);
    let mut net = Net::new(5, 2, 100);
    for len in [0, MAX_MESSAGE_LEN as usize, 0, 1] {
        assert!(halves.push(net.now, len, Options::default()));
    }
    halves.out.finish();
    net.run(&mut halves);
    assert!(halves.got.iter().map(|got| &got.bytes).eq(halves.sent.values()));
    halves.over();
}

#[test]
fn a_slow_reader_stops_the_sender() {
    for ordered in [true, false] {
        let mut halves = Messages::new(ordered, 10 << 20, 100_000);
        let mut net = Net::new(1, 0, 0);
        for _ in 0..5000 {
            assert!(halves.push(net.now, 1000, Options::default()));
        }
        halves.out.finish();
        for _ in 0..500 {
            net.step(&mut halves);
        }
        assert_eq!(halves.incoming.memory(), 100_000, "all of the window and no more");
        assert_eq!(halves.memory.booked(), 100_000);
        net.reads = 10;
        net.run(&mut halves);
        assert_eq!(halves.got.len(), 5000);
    }
    // Messages without bytes are held by their number.
    let mut halves = Messages::new(false, 10 << 20, 100_000);
    let mut net = Net::new(1, 0, 0);
    while halves.sent.len() < 3000 {
        assert!(halves.push(net.now, 0, Options::default()));
    }
    (0..100).for_each(|_| net.step(&mut halves));
    halves.read();
    assert_eq!(halves.got.len() as u64, MESSAGE_WINDOW);
    halves.out.finish();
    net.reads = 100;
    net.run(&mut halves);
    assert_eq!(halves.got.len(), 3000);
}

struct Bytes {
    out: OutgoingStream,
    incoming: IncomingStream,
    memory: Memory,
    rest: Vec<u8>,
    got: Vec<u8>,
}

impl Bytes {
    fn new(len: usize, limit: usize, window: u64) -> Self {
        let mut memory = Memory::new(LIMIT);
        let credit = Credit::new(Instant::now(), window, TOP_WINDOW, &mut memory);
        let out = OutgoingStream::new(CHANNEL, limit, credit.granted());
        let incoming = IncomingStream::new(CHANNEL.flipped(), credit);
        Self { out, incoming, memory, rest: content(9, len), got: Vec::new() }
    }
}

impl Halves for Bytes {
    fn fill(&mut self, _: Instant, room: usize, bytes: &mut Vec<u8>) -> Option<Carried> {
        let taken = self.out.try_push(&self.rest);
        self.rest.drain(..taken);
        if self.rest.is_empty() {
            self.out.finish();
        }
        let (frame, carried) = self.out.next_frame(room)?;
        frame.write(bytes);
        Some(carried)
    }

    fn acked(&mut self, carried: &Carried) {
        self.out.on_acked(carried);
    }

    fn lost(&mut self, carried: &Carried) {
        self.out.on_lost(carried);
    }

    fn receive(&mut self, frame: Frame<'_>) -> Result<(), Fault> {
        match frame {
            Frame::Stream(stream) => self.incoming.on_stream(&stream),
            Frame::Blocked { .. } => Ok(()),
            Frame::Return { total, .. } => self.incoming.on_return(total, &mut self.memory),
            _ => panic!("{frame:?}"),
        }
    }

    fn credit(&mut self, now: Instant) -> Option<(Frame<'static>, Carried)> {
        self.incoming.next_frame(now, RTT, &mut self.memory)
    }

    fn credit_came(&mut self, frame: Frame<'_>) {
        match frame {
            Frame::MaxData { limit, .. } => self.out.on_max_data(limit),
            Frame::Recall { .. } => self.out.on_recall(),
            _ => panic!("{frame:?}"),
        }
    }

    fn credit_lost(&mut self, carried: &Carried) {
        self.incoming.on_lost(carried);
    }

    fn look(&mut self) {
        self.incoming.look();
    }

    fn read(&mut self) {
        for most in [1, 700, 20_000, usize::MAX] {
            let pieces: [&[u8]; 3] = self.incoming.readable_pieces();
            assert_eq!(pieces[0], self.incoming.readable());
            let readable = pieces.concat();
            let len = readable.len().min(most);
            self.got.extend_from_slice(&readable[..len]);
            self.incoming.consume(len, &mut self.memory);
        }
    }

    fn check(&self) {
        assert!(self.out.kept() <= 50_000);
        // A block at each end is not full.
        assert!(self.incoming.memory() as u64 <= self.memory.booked() + 2 * (16 << 10));
        assert!(self.memory.booked() <= LIMIT);
    }

    fn is_over(&self) -> bool {
        self.out.is_done() && self.incoming.is_finished()
    }
}

#[test]
fn streams_arrive_exactly() {
    for (seed, len) in [0, 1, 16 << 10, 300_000, 300_001].into_iter().enumerate() {
        for window in [1, 5000, 100_000] {
            // One byte at a time takes its time.
            let len = if window == 1 { len.min(3000) } else { len };
            let mut halves = Bytes::new(len, 50_000, window);
            Net::new(seed as u64, 30, 60).run(&mut halves);
            assert!(halves.got == content(9, len));
            assert_eq!(halves.incoming.memory(), 0);
            halves.incoming.close(&mut halves.memory);
            assert_eq!(halves.memory.booked(), 0);
        }
    }
}

/// What is idle is given back, whatever is lost, and comes again when it is used.
#[test]
fn credit_that_is_idle_is_given_back() {
    for seed in 0..10 {
        let mut halves = Messages::new(true, 300_000, 200_000);
        let mut net = Net::new(seed, 30, 100);
        (0..60).for_each(|_| net.step(&mut halves));
        assert_eq!(halves.memory.booked(), GUARANTEED, "all but what is set aside");
        assert_eq!(halves.memory.returned(), 200_000 - GUARANTEED);
        for len in [30_000, 100_000, 5_000, 80_000] {
            assert!(halves.push(net.now, len, Options::default()));
        }
        (0..300).for_each(|_| net.step(&mut halves));
        assert_eq!(halves.got.len(), 4);
        halves.over();
    }
}

#[test]
fn a_stream_that_is_not_read_stops_at_its_window() {
    let mut halves = Bytes::new(200_000, 50_000, 40_000);
    let mut net = Net::new(3, 10, 0);
    (0..300).for_each(|_| net.step(&mut halves));
    assert_eq!((halves.memory.booked(), halves.out.kept()), (40_000, 50_000));
    net.reads = 50;
    net.run(&mut halves);
    assert!(halves.got == content(9, 200_000));
}
