//! Examples of RFC 9002 and RFC 8985, hostile ACKs, bounds.

use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const DELAY: Duration = MS;

/// A sender whose clock is moved by hand.
struct Sender {
    recovery: Recovery<u64>,
    out: Outcome<u64>,
    now: Instant,
}

impl Sender {
    fn new(rtt: Duration) -> Self {
        let now = Instant::now();
        let mut recovery = Recovery::new(DELAY);
        recovery.seed(now, rtt, rtt / 2);
        Self { recovery, out: Outcome::default(), now }
    }

    /// Packets of 100 bytes; each carries its number plus 1,000.
    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let number = self.recovery.next_number();
            self.recovery.on_sent(self.now, number, 100, true, false, number + 1_000).unwrap();
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn ack(&mut self, ranges: &[(u64, u64)]) -> Result<(), AckFault> {
        let ranges: Vec<_> =
            ranges.iter().map(|(first, last)| PacketRange { first: *first, last: *last }).collect();
        let ack = Ack { delay: Duration::ZERO, ranges: &ranges, ecn: None };
        self.recovery.on_ack(self.now, &ack, &mut self.out)
    }

    /// Lets the timer fire, after how long.
    fn fire(&mut self) -> Duration {
        let due = self.recovery.timeout().unwrap();
        let waited = due.saturating_duration_since(self.now);
        self.now = self.now.max(due);
        self.recovery.on_timeout(self.now, &mut self.out);
        waited
    }

    fn lost(&self) -> Vec<u64> {
        self.out.lost.iter().map(|packet| packet.number).collect()
    }

    fn acked(&self) -> Vec<u64> {
        self.out.acked.iter().map(|packet| packet.number).collect()
    }
}

#[test]
fn gives_back_what_arrived() {
    let mut sender = Sender::new(MS * 10);
    sender.send(3);
    assert_eq!((sender.recovery.bytes_in_flight(), sender.recovery.packets_in_flight()), (300, 3));
    sender.wait(MS * 12);
    sender.ack(&[(0, 1)]).unwrap();
    let first = &sender.out.acked[0];
    assert_eq!((first.number, first.item, first.bytes), (0, 1_000, 100));
    assert_eq!((sender.acked(), sender.out.acked_bytes), (vec![0, 1], 200));
    assert_eq!((sender.out.rtt_sample, sender.lost()), (Some(MS * 12), vec![]));
    assert_eq!(sender.recovery.unacked().collect::<Vec<_>>(), [(2, &1_002)]);
    // The same once more tells nothing, neither does an older one.
    for ranges in [[(0, 1)], [(0, 0)]] {
        sender.ack(&ranges).unwrap();
        assert_eq!((sender.acked(), sender.out.rtt_sample), (vec![], None));
    }
    assert_eq!(sender.recovery.bytes_in_flight(), 100);
}

/// RFC 9002 section 5.1: only when the largest number is news; and times that go back are none.
#[test]
fn measures_by_the_largest_number_alone() {
    let mut sender = Sender::new(MS * 10);
    sender.send(2);
    let sent = sender.now;
    sender.now -= MS * 5;
    sender.send(1);
    sender.now = sent + MS * 10;
    sender.ack(&[(2, 2)]).unwrap();
    assert_eq!((sender.out.acked[0].sent, sender.out.rtt_sample), (sent, Some(MS * 10)));
    sender.wait(MS * 2);
    sender.ack(&[(2, 2), (0, 0)]).unwrap();
    assert_eq!((sender.acked(), sender.out.rtt_sample), (vec![0], None));
}

/// RFC 9002 section 6.1.1: three packets behind.
#[test]
fn lost_when_three_later_ones_arrived() {
    let mut sender = Sender::new(MS * 10);
    sender.send(6);
    sender.wait(MS * 10);
    sender.ack(&[(2, 2)]).unwrap();
    assert_eq!(sender.lost(), [0_u64; 0]);
    sender.ack(&[(2, 3)]).unwrap();
    assert_eq!(sender.lost(), [0]);
    assert_eq!((sender.out.lost_bytes, sender.out.lost[0].item), (100, 1_000));
    sender.ack(&[(2, 5)]).unwrap();
    assert_eq!((sender.lost(), sender.recovery.bytes_in_flight()), (vec![1], 0));
    assert_eq!(sender.recovery.timeout(), None);
}

/// RFC 9002 section 6.1.2 with RACK's window: a round trip and a quarter after it was sent.
#[test]
fn lost_when_overdue() {
    let mut sender = Sender::new(MS * 40);
    sender.send(2);
    sender.wait(MS * 40);
    sender.ack(&[(1, 1)]).unwrap();
    assert_eq!(sender.lost(), [0_u64; 0]);
    assert_eq!(sender.fire(), MS * 10);
    assert_eq!((sender.lost(), sender.out.probes), (vec![0], 0));
    assert_eq!((sender.recovery.timeout(), sender.out.persistent), (None, false));
}

/// RFC 9002 section 6.2.1, and its backoff.
#[test]
fn probes_after_a_timeout_and_then_half_as_often() {
    let mut sender = Sender::new(MS * 10);
    sender.send(1);
    // 10 + 4 * 5 + 1.
    for (probes, wanted) in [(1, 31), (2, 62), (2, 124), (2, 248)] {
        assert_eq!(sender.fire(), MS * wanted);
        assert_eq!((sender.out.probes, sender.lost()), (probes, vec![]));
        sender.send(u64::from(probes));
    }
    assert_eq!(sender.recovery.timeouts_in_a_row(), 4);
    // Too early: nothing happens.
    let due = sender.recovery.timeout();
    sender.recovery.on_timeout(sender.now, &mut sender.out);
    assert_eq!((sender.out.probes, sender.recovery.timeout()), (0, due));
    // The link is back: no backoff.
    sender.recovery.on_link_up();
    assert_eq!(sender.fire(), MS * 31);
    assert_eq!(sender.recovery.counters().probe_timeouts, 5);
}

/// Where probes are not sent, or cannot be, the timer goes on slower and slower.
#[test]
fn a_timer_that_nobody_follows_does_not_spin() {
    let mut sender = Sender::new(MS * 10);
    sender.send(1);
    let waits: Vec<_> = (0..12).map(|_| sender.fire()).collect();
    assert!(waits.is_sorted() && waits[0] == MS * 31);
    assert_eq!(waits[11], MAX_BACKOFF);
}

/// A cut of two seconds: probes, then one ACK that tells all; what was lost is persistent
/// congestion, and the timeout is as short as before.
#[test]
fn a_blackout_and_what_follows_it() {
    let mut sender = Sender::new(MS * 20);
    sender.send(1);
    sender.wait(MS * 20);
    sender.ack(&[(0, 0)]).unwrap();
    let before = sender.recovery.rtt().pto(DELAY);
    let start = sender.now;
    sender.send(10);
    while sender.now < start + MS * 2_000 {
        sender.fire();
        sender.send(u64::from(sender.out.probes));
    }
    let newest = sender.recovery.next_number() - 1;
    sender.wait(MS * 20);
    sender.ack(&[(newest - 1, newest), (0, 0)]).unwrap();
    assert_eq!(sender.out.rtt_sample, Some(MS * 20));
    let mut lost = sender.lost();
    assert!(sender.out.persistent);
    // The last ones before the probe that got through are within the limits yet.
    while sender.recovery.packets_in_flight() > 0 {
        sender.fire();
        lost.extend(sender.lost());
    }
    assert_eq!(lost, (1..newest - 1).collect::<Vec<_>>());
    sender.send(1);
    assert!(sender.fire() <= before);
    assert_eq!(sender.recovery.counters().persistent, 1);
}

#[test]
fn losses_with_something_between_are_not_persistent() {
    let mut sender = Sender::new(MS * 20);
    for _ in 0..20 {
        sender.send(2);
        sender.wait(MS * 20);
    }
    let every_other: Vec<_> = (0..20).rev().map(|index| (index * 2 + 1, index * 2 + 1)).collect();
    sender.ack(&every_other).unwrap();
    assert!(sender.lost().len() > 15 && !sender.out.persistent);
}

/// A path over which every 50th packet is thousands of packets late.
#[test]
fn reordering_by_thousands_is_learnt() {
    let mut sender = Sender::new(MS * 20);
    let mut spurious = Vec::new();
    let mut lost = 0;
    for round in 0..40 {
        let first = sender.recovery.next_number();
        sender.send(2_000);
        // The first 40 packets overtake none and come half a round trip late.
        sender.wait(MS * 20);
        sender.ack(&[(first + 40, first + 1_999)]).unwrap();
        lost += sender.lost().len();
        sender.wait(MS * 10);
        if sender.recovery.timeout().is_some_and(|due| due <= sender.now) {
            sender.fire();
            lost += sender.lost().len();
        }
        sender.ack(&[(first, first + 1_999)]).unwrap();
        spurious.push(sender.out.spurious.len());
        assert_eq!(sender.recovery.packets_in_flight(), 0, "{round}");
        assert!(!sender.out.persistent);
    }
    // By count at first, by time then, and never again.
    assert_eq!(spurious[0], 40);
    assert_eq!(spurious[4..].iter().sum::<usize>(), 0, "{spurious:?}");
    assert_eq!(lost, spurious.iter().sum::<usize>());
    assert_eq!(sender.recovery.counters().spurious, lost as u64);
    // A loss is found nevertheless, within two round trips and a bit.
    let sent = sender.now;
    sender.send(10);
    sender.wait(MS * 20);
    let first = sender.recovery.next_number() - 10;
    sender.ack(&[(first + 1, first + 9)]).unwrap();
    sender.fire();
    assert_eq!(sender.lost(), [first]);
    assert!(sender.now - sent < MS * 50, "{:?}", sender.now - sent);
}

#[test]
fn acks_that_cannot_be_true_change_nothing() {
    let mut sender = Sender::new(MS * 10);
    assert_eq!(sender.ack(&[(0, 0)]), Err(AckFault::Unsent));
    sender.send(100);
    let many: Vec<_> = (0..33).rev().map(|index| (index * 3, index * 3)).collect();
    let malformed: [&[(u64, u64)]; 8] = [
        &[],
        &[(5, 4)],
        &[(1, 2), (8, 9)],
        &[(8, 9), (4, 8)],
        &[(8, 9), (4, 7)],
        &[(8, 9), (8, 9)],
        &[(8, 9), (0, u64::MAX)],
        &many,
    ];
    for ranges in malformed {
        assert_eq!(sender.ack(ranges), Err(AckFault::Malformed), "{ranges:?}");
    }
    for last in [100, u64::MAX] {
        assert_eq!(sender.ack(&[(0, last)]), Err(AckFault::Unsent));
    }
    assert_eq!(sender.recovery.packets_in_flight(), 100);
    let counters = sender.recovery.counters();
    assert_eq!((counters.unsent_acks, counters.malformed_acks), (3, 8));
    // The most that is allowed.
    sender.ack(&many[..32]).unwrap();
    assert_eq!(sender.acked().len(), 32);
}

#[test]
fn packets_that_ask_for_nothing_are_forgotten() {
    let mut sender = Sender::new(MS * 10);
    sender.send(1);
    for number in 1..200_000 {
        sender.recovery.on_sent(sender.now, number, 50, false, true, 0).unwrap();
    }
    assert_eq!((sender.recovery.packets_in_flight(), sender.recovery.bytes_in_flight()), (1, 100));
    sender.ack(&[(150, 199_999)]).unwrap();
    assert_eq!((sender.acked(), sender.out.rtt_sample), (vec![], None));
    assert_eq!(sender.lost(), [0]);
}

#[test]
fn memory_is_bounded() {
    let mut sender = Sender::new(MS * 10);
    sender.send(MAX_IN_FLIGHT as u64);
    assert!(!sender.recovery.can_send());
    // The oldest is on its way and holds the room of all.
    sender.ack(&[(65_000, MAX_IN_FLIGHT as u64 - 1), (60_000, 60_100)]).unwrap();
    assert_eq!(sender.recovery.counters().lost, 65_000 - 101);
    assert_eq!((sender.recovery.traces.span(), sender.recovery.in_flight.span()), (MAX_TRACES, 0));
    // Probes find room in a blackout however long it is; the oldest give it.
    sender.send(MAX_IN_FLIGHT as u64);
    let mut lost = 0;
    for _ in 0..1_000 {
        sender.fire();
        lost += sender.lost().len();
        assert_eq!(sender.out.probes, 2);
        sender.send(2);
        assert!(sender.recovery.in_flight.span() <= MAX_IN_FLIGHT + PROBE_RESERVE);
    }
    assert!((1_900..=2_000).contains(&lost), "{lost}");
    let refused = (0..1_000).filter(|_| {
        let number = sender.recovery.next_number();
        sender.recovery.on_sent(sender.now, number, 1, true, false, 9) == Err(9)
    });
    assert!(refused.count() >= 1_000 - PROBE_RESERVE);
    sender.recovery.abandon(&mut sender.out);
    assert_eq!(sender.recovery.bytes_in_flight(), 0);
    assert_eq!((sender.recovery.timeout(), sender.recovery.packets_in_flight()), (None, 0));
}

#[test]
fn numbers_are_never_used_twice() {
    let mut sender = Sender::new(MS * 10);
    sender.send(5);
    let recovery = &mut sender.recovery;
    for number in [0, 4, u64::MAX] {
        assert_eq!(recovery.on_sent(sender.now, number, 1, true, false, 7), Err(7));
    }
    assert_eq!(recovery.on_sent(sender.now, 9, 1, true, false, 7), Ok(()));
    assert_eq!(recovery.next_number(), 10);
}

/// What is given up when a link goes down is no sign of congestion, and no wrong loss if it
/// arrived.
#[test]
fn what_was_abandoned_and_arrived_is_not_spurious() {
    let mut sender = Sender::new(MS * 10);
    sender.send(50);
    sender.recovery.abandon(&mut sender.out);
    assert_eq!((sender.lost().len(), sender.out.persistent), (50, false));
    sender.send(1);
    sender.ack(&[(0, 50)]).unwrap();
    assert_eq!((sender.acked(), sender.out.spurious.len()), (vec![50], 0));
}

#[test]
fn marks_are_counted_once() {
    let mut sender = Sender::new(MS * 10);
    for number in 0..6 {
        sender.recovery.on_sent(sender.now, number, 1, true, true, 0).unwrap();
    }
    let mut ack = |last: u64, ect0: u64, ce: u64| {
        let ranges = [PacketRange { first: 0, last }];
        let ecn = Some(EcnCounts { ect0, ect1: 0, ce });
        let ack = Ack { delay: Duration::ZERO, ranges: &ranges, ecn };
        sender.recovery.on_ack(sender.now, &ack, &mut sender.out).unwrap();
        (sender.out.ce_increase, sender.recovery.ecn_usable())
    };
    assert_eq!(ack(3, 3, 1), (1, true));
    // An older ACK that was overtaken: its counts are old too.
    assert_eq!(ack(1, 2, 0), (0, true));
    assert_eq!(ack(4, 3, 2), (1, true));
    // The sixth was marked and is not counted.
    assert_eq!(ack(5, 3, 2), (0, false));
}

proptest! {
    /// Whatever ACKs say: nothing panics, every item comes back once, sums stay right.
    #[test]
    fn takes_anything(
        steps in prop::collection::vec(
            (0_u8..6, prop::collection::vec((0_u64..400, 0_u64..60), 0..6), 0_u64..100_000),
            1..150,
        ),
    ) {
        let mut sender = Sender::new(MS * 5);
        let mut back = std::collections::HashSet::new();
        for (what, shape, us) in steps {
            sender.wait(Duration::from_micros(us));
            match what {
                0 | 1 => sender.send(us % 50),
                2 => sender.recovery.on_timeout(sender.now, &mut sender.out),
                3 if us < 3_000 => sender.recovery.abandon(&mut sender.out),
                4 => {
                    // As it may come from the wire.
                    let ranges: Vec<_> = shape.iter().map(|(a, b)| (*a, *b)).collect();
                    let _ = sender.ack(&ranges);
                }
                _ => {
                    // In order.
                    let mut top = sender.recovery.next_number();
                    let mut ranges = Vec::new();
                    for (length, gap) in shape {
                        let Some(last) = top.checked_sub(gap + 1) else { break };
                        let first = last.saturating_sub(length % 20);
                        ranges.push((first, last));
                        let Some(below) = first.checked_sub(1) else { break };
                        top = below;
                    }
                    prop_assert_eq!(sender.ack(&ranges).is_ok(), !ranges.is_empty());
                }
            }
            if what > 1 {
                for packet in sender.out.acked.drain(..).chain(sender.out.lost.drain(..)) {
                    prop_assert_eq!(packet.item, packet.number + 1_000);
                    prop_assert!(back.insert(packet.number));
                }
            }
            let recovery = &sender.recovery;
            prop_assert_eq!(recovery.bytes_in_flight(), 100 * recovery.packets_in_flight() as u64);
            prop_assert_eq!(
                back.len() + recovery.packets_in_flight(),
                usize::try_from(recovery.next_number()).unwrap()
            );
            prop_assert_eq!(recovery.timeout().is_some(), recovery.packets_in_flight() > 0);
        }
    }
}
