//! Several machines on one simulated segment, in virtual time.

use super::*;

/// A station: its neighbour machine, and what reached it.
pub(super) struct Station {
    pub(super) neighbors: Neighbors,
    /// Whether its cable is in.
    pub(super) up: bool,
    /// It takes datagrams to addresses off the segment.
    pub(super) router: bool,
    /// Numbers of the datagrams that reached it.
    pub(super) received: Vec<u16>,
    pub(super) events: Vec<NeighborEvent>,
    /// What it sent, and when.
    pub(super) sent: Vec<(Instant, Vec<u8>)>,
}

type Loss = Box<dyn FnMut(&[u8]) -> bool>;

pub(super) struct Segment {
    pub(super) kind: Kind,
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) stations: Vec<Station>,
    /// Says which ARP and ND frames get lost.
    pub(super) loss: Loss,
    /// Datagrams that went to nobody, were displaced or had no way.
    pub(super) lost: Vec<u16>,
}

impl Segment {
    pub(super) fn new(kind: Kind) -> Self {
        let start = Instant::now();
        let loss: Loss = Box::new(|_| false);
        Self { kind, start, now: start, stations: Vec::new(), loss, lost: Vec::new() }
    }

    /// A segment of three stations and the gateway, which is the last: numbers 0 to 3.
    pub(super) fn of_four(kind: Kind) -> Self {
        let mut segment = Self::new(kind);
        for last in [1, 2, 3, GATEWAY] {
            segment.add(kind.config(last));
        }
        segment.stations[3].router = true;
        // Their own probes and announcements are over.
        segment.run(secs(10));
        segment
    }

    pub(super) fn add(&mut self, config: NeighborConfig) -> usize {
        self.stations.push(Station {
            neighbors: Neighbors::new(self.now, config),
            up: true,
            router: false,
            received: Vec::new(),
            events: Vec::new(),
            sent: Vec::new(),
        });
        self.stations.len() - 1
    }

    pub(super) fn ip(&self, station: usize) -> IpAddr {
        self.stations[station].neighbors.local().ip
    }

    pub(super) fn neighbors(&mut self, station: usize) -> &mut Neighbors {
        &mut self.stations[station].neighbors
    }

    pub(super) fn list(&mut self, station: usize) -> Vec<NeighborInfo> {
        let now = self.now;
        self.neighbors(station).list(now)
    }

    pub(super) fn resolve(&mut self, station: usize, remote: IpAddr) -> Resolution {
        let now = self.now;
        self.neighbors(station).resolve(now, remote)
    }

    /// Sends a datagram as an uplink would.
    pub(super) fn send(&mut self, from: usize, remote: IpAddr, number: u16) -> Resolution {
        let now = self.now;
        let neighbors = self.neighbors(from);
        let resolution = neighbors.resolve(now, remote);
        match resolution {
            Resolution::Known(mac) => self.deliver(mac, &pending(remote, number)),
            Resolution::Pending(hop) => {
                let displaced = neighbors.hold(now, hop, pending(remote, number));
                self.lost.extend(displaced.map(|p| number_of(&p)));
            }
            Resolution::Failed(_) | Resolution::NoRoute => self.lost.push(number),
        }
        self.pump();
        resolution
    }

    /// Hands a frame to one station alone.
    pub(super) fn inject(&mut self, to: usize, frame: &[u8]) {
        let now = self.now;
        self.neighbors(to).handle_frame(now, frame);
        self.pump();
    }

    pub(super) fn announce(&mut self, station: usize) {
        let now = self.now;
        self.neighbors(station).announce(now);
        self.pump();
    }

    pub(super) fn confirm(&mut self, station: usize, remote: IpAddr) {
        let now = self.now;
        self.neighbors(station).confirm(now, remote);
    }

    /// Lets time pass, with every timer at its time.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.pump();
            let timers = self.stations.iter().filter_map(|s| s.neighbors.poll_timeout());
            let next = timers.min().filter(|at| *at <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            for station in &mut self.stations {
                station.neighbors.handle_timeout(self.now);
                let next = station.neighbors.poll_timeout();
                assert!(next.is_none_or(|at| at > self.now), "a timer that is over");
            }
        }
        self.now = end;
    }

    /// Carries frames until there are no more.
    pub(super) fn pump(&mut self) {
        loop {
            let mut frames = Vec::new();
            let mut released = Vec::new();
            for (from, station) in self.stations.iter_mut().enumerate() {
                while let Some(frame) = station.neighbors.poll_frame() {
                    station.sent.push((self.now, frame.clone()));
                    frames.push((from, frame));
                }
                while let Some(one) = station.neighbors.poll_released() {
                    released.push(one);
                }
                while let Some(event) = station.neighbors.poll_event() {
                    station.events.push(event);
                }
            }
            if frames.is_empty() && released.is_empty() {
                return;
            }
            for (mac, datagram) in released {
                self.deliver(mac, &datagram);
            }
            for (from, frame) in frames {
                self.carry(from, &frame);
            }
        }
    }

    fn carry(&mut self, from: usize, frame: &[u8]) {
        if !self.stations[from].up || (self.loss)(frame) {
            return;
        }
        let to = destination(frame);
        for (at, station) in self.stations.iter_mut().enumerate() {
            let meant = to.is_multicast() || to == station.neighbors.local().mac;
            if at != from && station.up && meant {
                station.neighbors.handle_frame(self.now, frame);
            }
        }
    }

    fn deliver(&mut self, mac: MacAddr, datagram: &Pending) {
        let to = datagram.remote.ip();
        let taker = self.stations.iter_mut().find(|station| {
            let local = station.neighbors.local();
            station.up && local.mac == mac && (local.ip == to || station.router)
        });
        match taker {
            Some(station) => station.received.push(number_of(datagram)),
            None => self.lost.push(number_of(datagram)),
        }
    }
}

pub(super) fn number_of(datagram: &Pending) -> u16 {
    u16::from_be_bytes(datagram.payload[..].try_into().unwrap())
}

pub(super) fn destination(frame: &[u8]) -> MacAddr {
    MacAddr(frame[..6].try_into().unwrap())
}
