use super::*;

const MTU: u16 = 1_200;
const RTT: Duration = Duration::from_millis(100);
const SAMPLE: Rtt = Rtt { latest: RTT, min: RTT, smoothed: RTT };

/// A sender that always fills the window, one acknowledgement for each packet.
struct Flow {
    cubic: Cubic,
    now: Instant,
    number: u64,
}

impl Flow {
    fn new() -> Self {
        Self { cubic: Cubic::new(MTU), now: Instant::now(), number: 0 }
    }

    fn packets(&self) -> f64 {
        self.cubic.state.window / f64::from(MTU)
    }

    /// One window is sent, and acknowledged evenly over the round trip that follows.
    fn round(&mut self, rtt: &Rtt) {
        let count = self.cubic.window() / u64::from(MTU);
        let sent = self.now;
        for _ in 0..count {
            self.cubic.on_sent(sent, u64::from(MTU), self.number);
            self.number += 1;
        }
        let gap = RTT / u32::try_from(count).unwrap();
        for packet in 0..count {
            self.now += gap;
            self.cubic.on_ack(self.now, sent, u64::from(MTU), false, rtt);
            let largest = self.number - count + packet;
            self.cubic.on_end_acks(self.now, u64::from(MTU), false, Some(largest));
        }
        self.now = sent + RTT;
    }

    /// Slow start up to a power of two times ten packets, then a loss.
    fn lose_at(&mut self, packets: f64) {
        while self.packets() < packets {
            self.round(&SAMPLE);
        }
        self.lose();
    }

    fn lose(&mut self) {
        self.cubic.on_congestion_event(self.now, self.now, false, u64::from(MTU));
        self.now += Duration::from_nanos(1);
    }

    fn rounds(&mut self, count: usize) {
        (0..count).for_each(|_| self.round(&SAMPLE));
    }
}

#[test]
fn follows_the_curve_of_the_rfc() {
    let mut flow = Flow::new();
    flow.lose_at(1_280.0);
    // 1280 packets lost, 896 left; K = cbrt(384 / 0.4) = 9.8648 s. Section 4.2, by hand:
    // W(t) = 0.4 * (t - 9.8648)^3 + 1280.
    let expected =
        [(20, 1_085.41), (50, 1_233.95), (80, 1_277.41), (98, 1_280.00), (150, 1_334.17)];
    assert!((flow.packets() - 896.0).abs() < 0.01);
    let mut done = 0;
    for (rounds, packets) in expected {
        flow.rounds(rounds - done);
        done = rounds;
        // The window reaches for the curve one round trip ahead, and has it one round trip later.
        let off = (flow.packets() - packets).abs();
        assert!(off < 1.0, "after {rounds} round trips {} for {packets}", flow.packets());
    }
}

#[test]
fn is_as_fast_as_reno_on_short_paths() {
    let mut flow = Flow::new();
    flow.lose_at(20.0);
    // 20 lost, 14 left. Reno: 0.529 packets a round trip until 20, then one (section 4.3). The
    // curve would need cbrt(6 / 0.4) = 2.47 s, 25 round trips, to be where Reno is after 12.
    assert!((flow.packets() - 14.0).abs() < 0.01);
    flow.rounds(10);
    let after_ten = flow.packets();
    assert!((18.8..=19.5).contains(&after_ten), "{after_ten}");
    flow.rounds(2);
    let before = flow.packets();
    flow.rounds(5);
    assert!((4.3..=5.1).contains(&(flow.packets() - before)), "{before} to {}", flow.packets());
}

#[test]
fn leaves_room_when_a_loss_comes_sooner_than_the_last() {
    let mut flow = Flow::new();
    flow.lose_at(320.0);
    assert!((flow.cubic.state.w_max / 1_200.0 - 320.0).abs() < 0.01);
    flow.round(&SAMPLE);
    let packets = flow.packets();
    flow.lose();
    let plateau = flow.cubic.state.w_max / 1_200.0;
    assert!((plateau - packets * 0.85).abs() < 0.01, "section 4.7: {plateau}");
    assert!((flow.packets() - packets * 0.7).abs() < 0.01);
}

#[test]
fn first_slow_start_ends_when_the_round_trip_grows() {
    let mut flow = Flow::new();
    flow.round(&SAMPLE);
    flow.round(&SAMPLE);
    assert_eq!(flow.packets(), 40.0);
    let slower = Rtt { latest: RTT * 2, min: RTT, smoothed: RTT };
    for _ in 0..5 {
        flow.round(&slower);
        assert!(flow.cubic.ssthresh().is_none());
    }
    flow.round(&slower);
    // Doubled for eight samples more, then five rounds with a quarter.
    assert!(flow.cubic.ssthresh().is_some());
    let packets = flow.packets();
    assert!((40.0 * 1.25_f64.powi(5)..150.0).contains(&packets), "{packets}");
    // Congestion avoidance without any loss: the curve begins at its plateau (section 4.10).
    flow.rounds(10);
    let stage = flow.cubic.state.stage.unwrap();
    assert_eq!(stage.k, 0.0);
    assert!(flow.packets() > packets && flow.packets() < packets + 12.0, "{}", flow.packets());
}

#[test]
fn a_window_that_nobody_fills_says_nothing_about_queues() {
    let mut flow = Flow::new();
    for number in 0..1_000 {
        flow.now += RTT / 10;
        flow.cubic.on_sent(flow.now, 1_200, number);
        let slower = RTT + Duration::from_millis(3 * number);
        let rtt = Rtt { latest: slower, min: RTT, smoothed: slower };
        flow.cubic.on_ack(flow.now, flow.now, 1_200, true, &rtt);
        let largest = number.checked_sub(10);
        flow.cubic.on_end_acks(flow.now, 12_000, true, largest);
    }
    assert_eq!((flow.cubic.window(), flow.cubic.ssthresh()), (12_000, None));
    assert_eq!(flow.cubic.hystart.divisor(), 1);
}

#[test]
fn grows_by_half_within_a_round_trip_at_most() {
    let mut flow = Flow::new();
    flow.lose_at(20.0);
    flow.round(&SAMPLE);
    // A minute without any acknowledgement: the curve is far above.
    flow.now += Duration::from_secs(60);
    let before = flow.packets();
    flow.round(&SAMPLE);
    let growth = flow.packets() / before;
    // Half a packet for each acknowledged one; what is sent meanwhile is not counted yet.
    assert!((1.4..=1.5).contains(&growth), "{growth}");
}

#[test]
fn packets_from_before_a_loss_do_not_count() {
    let mut flow = Flow::new();
    flow.round(&SAMPLE);
    let sent = flow.now;
    flow.lose();
    let window = flow.cubic.window();
    flow.cubic.on_ack(flow.now + RTT, sent, 1_200, false, &SAMPLE);
    assert_eq!(flow.cubic.window(), window);
    flow.cubic.on_ack(flow.now + RTT, flow.now, 1_200, false, &SAMPLE);
    assert!(flow.cubic.window() > window);
}

#[test]
fn time_without_data_is_not_on_the_curve() {
    let mut busy = Flow::new();
    busy.lose_at(320.0);
    busy.rounds(20);
    let mut limited = Flow { cubic: busy.cubic.clone(), ..busy };
    let mut idle = Flow { cubic: busy.cubic.clone(), ..busy };
    let before = busy.packets();
    // Ten minutes with little to send: the window stays, and then goes on as if they never were.
    for _ in 0..600 {
        limited.now += Duration::from_secs(1);
        limited.cubic.on_ack(limited.now, limited.now - RTT, 1_200, true, &SAMPLE);
    }
    assert_eq!(limited.packets(), before);
    // The same with nothing at all.
    idle.cubic.on_end_acks(idle.now, 0, false, None);
    idle.now += Duration::from_secs(600);
    for flow in [&mut busy, &mut limited, &mut idle] {
        flow.rounds(10);
    }
    for flow in [&limited, &idle] {
        assert!((flow.packets() - busy.packets()).abs() < 3.0, "{}", flow.packets());
    }
}

#[test]
fn goes_back_when_nothing_was_lost() {
    let mut flow = Flow::new();
    flow.lose_at(320.0);
    flow.rounds(5);
    let before = flow.cubic.clone();
    let sent = flow.now;
    flow.lose();
    flow.cubic.on_congestion_event(flow.now, sent, false, 1_200);
    assert!(flow.packets() < before.state.window);
    flow.cubic.on_spurious(flow.now, sent, 1_200);
    assert_ne!(flow.cubic.window(), before.window(), "one of two");
    flow.cubic.on_spurious(flow.now, sent, 1_200);
    let (undone, old) = (flow.cubic.state, before.state);
    assert_eq!((undone.window, undone.w_max), (old.window, old.w_max));
    assert_eq!((undone.ssthresh, undone.prior), (old.ssthresh, old.prior));
    assert_eq!(undone.stage.map(|stage| stage.start), old.stage.map(|stage| stage.start));
}

#[test]
fn does_not_go_back_below_what_it_has() {
    let mut flow = Flow::new();
    flow.lose_at(20.0);
    let sent = flow.now - Duration::from_nanos(1);
    flow.rounds(40);
    let window = flow.cubic.window();
    assert!(window > 24_000);
    flow.cubic.on_spurious(flow.now, sent, 1_200);
    assert_eq!(flow.cubic.window(), window);
}

#[test]
fn marks_count_once_each_round_trip_and_for_good() {
    let mut flow = Flow::new();
    flow.round(&SAMPLE);
    let sent = flow.now;
    flow.cubic.on_ecn(flow.now, sent);
    flow.cubic.on_ecn(flow.now, sent);
    flow.cubic.on_congestion_event(flow.now, sent, false, 1_200);
    assert_eq!(flow.cubic.window(), 16_800);
    flow.cubic.on_spurious(flow.now, sent, 1_200);
    assert_eq!(flow.cubic.window(), 16_800);
}

#[test]
fn persistent_congestion_begins_again() {
    let mut flow = Flow::new();
    flow.lose_at(320.0);
    flow.rounds(3);
    let sent = flow.now;
    let packets = flow.packets();
    flow.cubic.on_congestion_event(flow.now, sent, true, 384_000);
    assert_eq!(flow.cubic.window(), 2_400);
    let threshold = flow.cubic.ssthresh().unwrap();
    assert!((threshold as f64 / 1_200.0 - packets * 0.7).abs() < 1.0, "section 4.8");
    assert!(flow.cubic.state.stage.is_none());
    // What is left of the blackout takes nothing more.
    flow.cubic.on_congestion_event(flow.now, sent, false, 1_200);
    assert_eq!(flow.cubic.ssthresh(), Some(threshold));
    flow.now += Duration::from_nanos(1);
    flow.rounds(7);
    assert!(flow.packets() >= packets * 0.69, "{}", flow.packets());
    flow.rounds(4);
    assert_eq!(flow.cubic.state.stage.unwrap().k, 0.0);
}

#[test]
fn persistent_congestion_within_a_recovery_begins_again_too() {
    let mut flow = Flow::new();
    flow.lose_at(320.0);
    let sent = flow.now - Duration::from_nanos(1);
    flow.rounds(3);
    let threshold = flow.cubic.ssthresh();
    flow.cubic.on_congestion_event(flow.now, sent, true, 384_000);
    assert_eq!((flow.cubic.window(), flow.cubic.ssthresh()), (2_400, threshold));
    assert!(flow.cubic.state.stage.is_none());
}

#[test]
fn the_window_has_bounds() {
    let mut flow = Flow::new();
    for _ in 0..20 {
        flow.lose();
        assert!(flow.cubic.window() >= 2_400);
    }
    assert_eq!(flow.cubic.window(), 2_400);
    let mut flow = Flow::new();
    let sent = flow.now;
    for _ in 0..100 {
        flow.cubic.on_ack(sent + RTT, sent, u64::MAX, false, &SAMPLE);
        assert!(flow.cubic.window() <= MAX_WINDOW);
    }
}

#[test]
fn packets_of_another_size() {
    let mut cubic = Cubic::new(1_200);
    cubic.on_mtu_update(8_900);
    assert_eq!(cubic.window(), 89_000, "nothing was sent yet");
    cubic.on_mtu_update(0);
    assert!(cubic.window() > 0);
    let mut flow = Flow::new();
    flow.lose_at(320.0);
    flow.rounds(5);
    let window = flow.cubic.window();
    flow.cubic.on_mtu_update(8_900);
    assert_eq!(flow.cubic.window(), window);
    flow.rounds(3);
    assert!(flow.cubic.window() > window);
    flow.cubic.on_mtu_update(1_200);
    for _ in 0..30 {
        flow.lose();
    }
    flow.cubic.on_mtu_update(8_900);
    assert_eq!(flow.cubic.window(), 17_800);
}

#[test]
fn pacing_is_faster_than_the_window() {
    let mut flow = Flow::new();
    assert_eq!(flow.cubic.pacing_rate(&SAMPLE), 240_000);
    flow.lose_at(10.0);
    assert_eq!(flow.cubic.pacing_rate(&SAMPLE), 8_400 * 10 * 5 / 4);
    let unknown = Rtt { smoothed: Duration::ZERO, ..SAMPLE };
    assert_eq!(flow.cubic.pacing_rate(&unknown), u64::MAX);
    let copy = flow.cubic.clone_box();
    assert_eq!((copy.window(), copy.name()), (flow.cubic.window(), "cubic"));
}
