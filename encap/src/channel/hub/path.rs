//! One link to a peer: what is on its way there, how fast it may leave, and what came from there.

use std::time::{Duration, Instant};

use super::association::Item;
use super::{Congestion, PathReport};
use crate::channel::congestion::{Controller, Cubic, Fixed, NewReno, Pacer, Rtt};
use crate::channel::recovery::ack::{AckSchedule, MAX_ACK_DELAY};
use crate::channel::recovery::{Outcome, Recovery};
use crate::id::NodeId;
use crate::link::id::LinkIndex;
use crate::wire::header::SEALED_OVERHEAD;

/// How late a worker's timers are, besides what it is at when they fire: what flows into the pacer's
/// bucket in that time is not lost.
const TIMER_LATENESS: Duration = Duration::from_micros(200);

/// Timeouts in a row after which another link is tried.
const SUSPECT_TIMEOUTS: u32 = 2;

/// Packets that are acknowledged at once in each [`MAX_ACK_DELAY`]. A small window is held up by an ACK
/// that waits for a second packet, and by one that is lost if it was for two. Of a fast sender these
/// are few: thousands of ACKs a second more, whatever its speed.
const PROMPT_ACKS: u32 = 8;

/// What a packet carried.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent {
    first: Option<Item>,
    /// Most packets carry one thing: no memory is taken for it.
    more: Vec<Item>,
    /// The ACK that it carried: of which path, and its serial number.
    pub(super) ack: Option<(u8, u64)>,
}

impl Sent {
    pub(super) fn push(&mut self, item: Item) {
        if self.first.is_none() {
            self.first = Some(item);
        } else {
            self.more.push(item);
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.first.iter().chain(&self.more)
    }
}

/// A link to a peer.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) recovery: Recovery<Sent>,
    /// What came from the peer by the link that it gives this path's number.
    pub(super) acks: AckSchedule,
    /// Which of our links that is.
    pub(super) arrived_by: Option<LinkIndex>,
    controller: Box<dyn Controller>,
    pacer: Pacer,
    /// Bytes of a full datagram's UDP payload.
    size: u16,
    /// There was nothing to send when the window had room.
    app_limited: bool,
    /// When the pacer lets the next packet leave.
    pub(super) paced_until: Option<Instant>,
    largest_acked: Option<u64>,
    /// Packets sent that ask for an acknowledgement.
    sent: u64,
    /// It was silent for so long that another link took over, and nothing was heard since.
    pub(super) distrusted: bool,
    /// A PING is to leave by it, whether there is anything to say or not.
    pub(super) ping: bool,
    /// Since when packets that ask for an acknowledgement are counted, and how many came.
    asked: (Option<Instant>, u32),
}

impl Path {
    /// A path whose packets carry at most `room` bytes.
    pub(super) fn new(now: Instant, room: usize, congestion: Congestion) -> Self {
        let size = datagram_size(room);
        let controller: Box<dyn Controller> = match congestion {
            Congestion::Cubic => Box::new(Cubic::new(size)),
            Congestion::NewReno => Box::new(NewReno::new(size)),
            Congestion::Fixed(rate) => Box::new(Fixed::new(size, rate)),
        };
        Self {
            recovery: Recovery::new(MAX_ACK_DELAY),
            acks: AckSchedule::default(),
            arrived_by: None,
            controller,
            pacer: Pacer::new(now, Pacer::burst_of(size, true), TIMER_LATENESS),
            size,
            app_limited: true,
            paced_until: None,
            largest_acked: None,
            sent: 0,
            distrusted: false,
            ping: false,
            asked: (None, 0),
        }
    }

    /// A packet came that was not here before. Where they are few, each is acknowledged by itself.
    pub(super) fn on_received(&mut self, now: Instant, number: u64, asks: bool, ecn: u8) {
        self.acks.on_received(now, number, asks, ecn);
        if asks {
            let (since, count) = &mut self.asked;
            if since.is_none_or(|at| now.saturating_duration_since(at) >= MAX_ACK_DELAY) {
                (*since, *count) = (Some(now), 0);
            }
            *count = count.saturating_add(1);
            if *count <= PROMPT_ACKS {
                self.acks.flush();
            }
        }
    }

    /// Whether it is silent while packets are on their way.
    pub(super) fn is_suspect(&self) -> bool {
        self.distrusted || self.recovery.timeouts_in_a_row() >= SUSPECT_TIMEOUTS
    }

    /// Another link takes over. What is on its way here is given back; a PING finds out when this
    /// one is heard again.
    pub(super) const fn distrust(&mut self) {
        (self.distrusted, self.ping) = (true, true);
    }

    /// The link is there again, as its heartbeats say, or something was heard of it.
    pub(super) const fn trust(&mut self) {
        self.recovery.on_link_up();
        (self.distrusted, self.ping) = (false, false);
    }

    pub(super) fn set_room(&mut self, room: usize) {
        let size = datagram_size(room);
        if size != self.size {
            self.size = size;
            self.controller.on_mtu_update(size);
            self.pacer.set_burst(Pacer::burst_of(size, true));
        }
    }

    /// Smoothed round trip.
    pub(super) fn rtt(&self) -> Duration {
        self.recovery.rtt().smoothed()
    }

    fn rtts(&self) -> Rtt {
        let rtt = self.recovery.rtt();
        Rtt { latest: rtt.latest(), min: rtt.min(), smoothed: rtt.smoothed() }
    }

    /// Whether one more full packet may leave now.
    pub(super) fn may_send(&mut self, now: Instant) -> bool {
        let size = u64::from(self.size);
        let in_flight = self.recovery.bytes_in_flight();
        if in_flight + size > self.controller.window() || !self.recovery.can_send() {
            self.app_limited = false;
            return false;
        }
        let delay = self.pacer.delay(now, size);
        self.paced_until = delay.map(|delay| now + delay);
        if delay.is_some() {
            self.app_limited = false;
        }
        delay.is_none()
    }

    /// There is nothing more to send though it could leave.
    pub(super) fn on_idle(&mut self) {
        self.app_limited = true;
    }

    /// A packet with `payload` bytes leaves.
    ///
    /// # Errors
    /// What it carries comes back if there is no room to keep track of it: it must not leave.
    pub(super) fn on_sent(&mut self, now: Instant, payload: usize, sent: Sent) -> Result<(), Sent> {
        let number = self.recovery.next_number();
        let bytes = u32::try_from(payload + SEALED_OVERHEAD).unwrap_or(u32::MAX);
        let asks = !sent.is_empty();
        self.recovery.on_sent(now, number, bytes, asks, false, sent)?;
        if asks {
            self.sent += 1;
            self.controller.on_sent(now, bytes.into(), number);
            self.pacer.on_sent(now, bytes.into());
        }
        Ok(())
    }

    /// Tells the congestion control what an ACK or a timeout told.
    pub(super) fn on_outcome(&mut self, now: Instant, outcome: &Outcome<Sent>, by_ack: bool) {
        let (rtt, limited) = (self.rtts(), self.app_limited);
        for spurious in &outcome.spurious {
            self.controller.on_spurious(now, spurious.sent, spurious.bytes.into());
        }
        for packet in &outcome.acked {
            self.controller.on_ack(now, packet.sent, packet.bytes.into(), limited, &rtt);
        }
        if let Some(newest) = outcome.acked.last() {
            self.largest_acked = self.largest_acked.max(Some(newest.number));
            if outcome.ce_increase > 0 {
                self.controller.on_ecn(now, newest.sent);
            }
        }
        if by_ack {
            let in_flight = self.recovery.bytes_in_flight();
            self.controller.on_end_acks(now, in_flight, limited, self.largest_acked);
        }
        if let Some(newest) = outcome.lost.last() {
            let (persistent, bytes) = (outcome.persistent, outcome.lost_bytes);
            self.controller.on_congestion_event(now, newest.sent, persistent, bytes);
        }
        let rate = self.controller.pacing_rate(&self.rtts());
        self.pacer.set_rate(now, rate);
    }

    pub(super) fn report(&self, peer: NodeId, link: u8) -> PathReport {
        let counters = self.recovery.counters();
        PathReport {
            peer,
            link,
            rtt: self.rtt(),
            window: self.controller.window(),
            in_flight: self.recovery.bytes_in_flight(),
            sent: self.sent,
            lost: counters.lost,
            spurious: counters.spurious,
            timeouts: counters.probe_timeouts,
            congestion: self.controller.name(),
        }
    }
}

fn datagram_size(room: usize) -> u16 {
    u16::try_from(room + SEALED_OVERHEAD).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_packets_of_a_millisecond_are_acknowledged_one_by_one() {
        let (now, mut ranges) = (Instant::now(), Vec::new());
        let mut path = Path::new(now, 1_400, Congestion::Cubic);
        let mut acked = |us: u64, number: u64| {
            let now = now + Duration::from_micros(us);
            path.on_received(now, number, true, 0);
            path.acks.poll_ack(now, &mut ranges).is_some()
        };
        let first = u64::from(PROMPT_ACKS);
        assert!((0..first).all(|number| acked(number * 100, number)));
        let rest = [0, 1, 2, 3].map(|more| acked(999, first + more));
        assert_eq!(rest, [false, true, false, true], "every second one");
        assert!((4..4 + first).all(|more| acked(1_000, first + more)));
        assert!(!acked(1_000, 2 * first + 4));
    }
}
