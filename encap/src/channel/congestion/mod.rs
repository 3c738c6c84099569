//! Congestion control: how many bytes may be on their way to one peer by one link, and how fast
//! they leave.
//!
//! A [`Controller`] holds the window of one (peer, link); a [`pacer::Pacer`] spreads that window
//! over the round trip. Both are told what happens and when; neither has a clock.
//!
//! For each acknowledgement that comes in the owner calls, in this order:
//!
//! 1. [`Controller::on_spurious`] for each packet that was declared lost and is acknowledged now
//! 2. [`Controller::on_ack`] for each packet that is acknowledged for the first time
//! 3. [`Controller::on_end_acks`] once
//! 4. [`Controller::on_ecn`] if the peer counted more packets with congestion experienced
//! 5. [`Controller::on_congestion_event`] once if packets are declared lost now
//!
//! Windows and packets are counted in bytes of UDP payload.

use std::fmt::Debug;
use std::time::{Duration, Instant};

pub mod pacer;
pub mod cubic;
pub mod new_reno;
pub mod fixed;
mod hystart;
mod episode;

pub use cubic::Cubic;
pub use fixed::Fixed;
pub use new_reno::NewReno;
pub use pacer::Pacer;

/// What a sender may have on its way before the first acknowledgement, in packets of full size
/// (RFC 6928, RFC 9002 section 7.2; without the latter's bound of 14,720 bytes, which packets of
/// more than 1,472 bytes would meet: an underlay with jumbo frames is nobody's modem line).
pub const INITIAL_WINDOW_PACKETS: u32 = 10;
/// The window never gets smaller than this many packets: two make the peer acknowledge at once
/// (RFC 9002 section 7.2).
pub const MIN_WINDOW_PACKETS: u32 = 2;
/// The window never gets larger, in bytes: 100 Gbit/s with a round trip of 80 ms. What is on its
/// way takes memory at both ends.
pub const MAX_WINDOW: u64 = 1 << 30;
/// Pacing is this much faster than the window by round trip, so that the window stays what limits
/// (RFC 9002 section 7.7).
pub const PACING_GAIN: f64 = 1.25;
/// The same in slow start, where the window doubles within the round trip.
pub const PACING_GAIN_SLOW_START: f64 = 2.0;

/// The round trip time of a link as its owner measures it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtt {
    /// Newest sample, without the delay that the peer reported.
    pub latest: Duration,
    /// Smallest sample.
    pub min: Duration,
    /// Moving average (RFC 9002 section 5.3).
    pub smoothed: Duration,
}

/// Decides how many bytes may be on their way.
pub trait Controller: Send + Debug {
    /// A packet of `bytes` bytes was sent with this number, the highest so far.
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        let _ = (now, bytes, last_packet_number);
    }

    /// A packet of `bytes` bytes, sent at `sent`, was acknowledged.
    ///
    /// `app_limited`: the window was not what kept the sender from sending more (RFC 9002
    /// section 7.8). A sender that only waits for its pacer is not limited by the application.
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &Rtt);

    /// All packets of one acknowledgement were told. `in_flight`: bytes still on their way.
    /// `largest`: highest packet number acknowledged so far.
    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest: Option<u64>,
    ) {
        let _ = (now, in_flight, app_limited, largest);
    }

    /// `lost_bytes` bytes are declared lost; `sent` is when the newest of these packets was sent.
    /// `is_persistent`: losses reach over so long a time that the path may have changed
    /// altogether (RFC 9002 section 7.6).
    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent: bool,
        lost_bytes: u64,
    );

    /// The peer received packets with congestion experienced; `sent` is when the newest packet of
    /// that acknowledgement was sent (RFC 9002 section 7.1).
    fn on_ecn(&mut self, now: Instant, sent: Instant);

    /// A packet of `bytes` bytes, sent at `sent`, was declared lost and arrived all the same. When
    /// that is true of all losses of one congestion event, its reduction is taken back.
    fn on_spurious(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let _ = (now, sent, bytes);
    }

    /// Packets of full size have `new` bytes from now on.
    fn on_mtu_update(&mut self, new: u16);

    /// Bytes that may be on their way.
    fn window(&self) -> u64;

    /// Window at which slow start ends, in bytes; `None` while nothing is known.
    fn ssthresh(&self) -> Option<u64>;

    /// Whether the window grows by what is acknowledged.
    fn is_slow_start(&self) -> bool {
        self.ssthresh().is_none_or(|ssthresh| self.window() < ssthresh)
    }

    /// Bytes per second at which packets should leave; `u64::MAX` where nothing is to be paced.
    fn pacing_rate(&self, rtt: &Rtt) -> u64 {
        let gain = if self.is_slow_start() { PACING_GAIN_SLOW_START } else { PACING_GAIN };
        // Without a round trip the quotient is infinite, which saturates.
        (gain * self.window() as f64 / rtt.smoothed.as_secs_f64()) as u64
    }

    /// A copy with the same state.
    fn clone_box(&self) -> Box<dyn Controller>;

    /// Name of the algorithm, for logs and counters.
    fn name(&self) -> &'static str;
}

impl Clone for Box<dyn Controller> {
    fn clone(&self) -> Self {
        self.as_ref().clone_box()
    }
}

/// First window for packets of `mtu` bytes, in bytes.
fn initial_window(mtu: f64) -> f64 {
    f64::from(INITIAL_WINDOW_PACKETS) * mtu
}

/// Smallest window for packets of `mtu` bytes, in bytes.
fn min_window(mtu: f64) -> f64 {
    f64::from(MIN_WINDOW_PACKETS) * mtu
}

/// A packet size that can be divided by.
fn packet_size(mtu: u16) -> f64 {
    f64::from(mtu.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What an owner may tell, in any order and with any numbers.
    #[derive(Debug, Clone)]
    enum Call {
        Sent(u64),
        Ack { age: u64, bytes: u64, limited: bool, rtt: u64 },
        EndAcks { in_flight: u64, limited: bool, largest: Option<u64> },
        Loss { age: u64, persistent: bool, bytes: u64 },
        Ecn { age: u64 },
        Spurious { age: u64, bytes: u64 },
        Mtu(u16),
    }

    fn call() -> impl Strategy<Value = Call> {
        let age = || 0_u64..100_000_000;
        let bytes = || prop_oneof![4 => 1_u64..100_000, 1 => Just(u64::MAX)];
        prop_oneof![
            4 => any::<u64>().prop_map(Call::Sent),
            20 => (age(), bytes(), prop::bool::weighted(0.1), 0_u64..10_000_000_000)
                .prop_map(|(age, bytes, limited, rtt)| Call::Ack { age, bytes, limited, rtt }),
            8 => (prop_oneof![Just(0), Just(9_000)], any::<bool>(), any::<Option<u64>>()).prop_map(
                |(in_flight, limited, largest)| Call::EndAcks { in_flight, limited, largest }
            ),
            2 => (age(), prop::bool::weighted(0.2), bytes())
                .prop_map(|(age, persistent, bytes)| Call::Loss { age, persistent, bytes }),
            1 => age().prop_map(|age| Call::Ecn { age }),
            2 => (age(), bytes()).prop_map(|(age, bytes)| Call::Spurious { age, bytes }),
            1 => any::<u16>().prop_map(Call::Mtu),
        ]
    }

    fn tell(controller: &mut dyn Controller, now: Instant, call: &Call) {
        let ago = |age: u64| now.checked_sub(Duration::from_nanos(age)).unwrap_or(now);
        match *call {
            Call::Sent(number) => controller.on_sent(now, 1_200, number),
            Call::Ack { age, bytes, limited, rtt } => {
                let rtt = Duration::from_nanos(rtt);
                let rtt = Rtt { latest: rtt, min: rtt, smoothed: rtt };
                controller.on_ack(now, ago(age), bytes, limited, &rtt);
                assert!(controller.pacing_rate(&rtt) > 0);
            }
            Call::EndAcks { in_flight, limited, largest } => {
                controller.on_end_acks(now, in_flight, limited, largest);
            }
            Call::Loss { age, persistent, bytes } => {
                controller.on_congestion_event(now, ago(age), persistent, bytes);
            }
            Call::Ecn { age } => controller.on_ecn(now, ago(age)),
            Call::Spurious { age, bytes } => controller.on_spurious(now, ago(age), bytes),
            Call::Mtu(new) => controller.on_mtu_update(new),
        }
    }

    proptest! {
        /// Whatever is told, the window has its bounds, and a loss never makes it larger.
        #[test]
        fn windows_have_bounds(calls in prop::collection::vec((call(), 0_u64..50_000_000), 1..300)) {
            let mut controllers: [Box<dyn Controller>; 3] = [
                Box::new(Cubic::new(1_200)),
                Box::new(NewReno::new(1_200)),
                Box::new(Fixed::new(1_200, 1_000_000)),
            ];
            let (mut now, mut mtu) = (Instant::now(), 1_200);
            for (call, pause) in &calls {
                now += Duration::from_nanos(*pause);
                if let Call::Mtu(new) = call {
                    mtu = (*new).max(1);
                }
                for controller in &mut controllers {
                    let before = controller.clone();
                    tell(controller.as_mut(), now, call);
                    let window = controller.window();
                    prop_assert!(window >= 2 * u64::from(mtu), "{controller:?}");
                    prop_assert!(window <= MAX_WINDOW, "{controller:?}");
                    if matches!(call, Call::Loss { .. } | Call::Ecn { .. }) {
                        prop_assert!(window <= before.window(), "{before:?} to {controller:?}");
                    }
                }
            }
        }
    }
}
