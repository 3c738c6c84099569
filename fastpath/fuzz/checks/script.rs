//! The input of `neighbors`: a script of what reaches a neighbour machine, what is wanted of it,
//! and how time passes.
//!
//! The first byte is the kind of segment. One step is an operation byte and its arguments; what is
//! missing at the end of the input is zero. `corpus/neighbors` has one example of each.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use encap::wire::ethernet::MacAddr;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpNumber, NetSlice, PacketBuilder,
    SlicedPacket, TransportSlice, VlanId,
};
use fastpath::neighbor::{NeighborConfig, NeighborLimits, Neighbors, Pending, Resolution};
use fastpath::underlay::LocalAddress;

use super::station;

/// Most steps of a script; the rest is not looked at.
const MAX_STEPS: usize = 200;
/// Operations; their numbers are those of the arms in [`Run::step`].
const OPERATIONS: u8 = 9;
/// Number of the static neighbour, and of the gateway.
const STATIC: u8 = 8;
const GATEWAY: u8 = 9;
const ENTRIES: usize = 4;
const HELD: usize = 5;
/// Frames and events that wait to be fetched.
const QUEUED: usize = 1024;

/// Nothing grows beyond its bounds, no datagram is lost unseen, no timer is left behind, and every
/// frame that is to be sent is a right one.
pub fn neighbors(data: &[u8]) {
    let mut script = Script(data);
    let kind = script.byte();
    let mut run = Run::new(kind);
    for _ in 0..MAX_STEPS {
        if script.0.is_empty() {
            break;
        }
        run.step(&mut script);
        run.check();
    }
    run.end();
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// A number of a station.
    fn station(&mut self) -> u8 {
        1 + self.byte() % 12
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        self.0.split_off(..len).unwrap_or_default()
    }
}

struct Run {
    kind: u8,
    start: Instant,
    now: Instant,
    ours: LocalAddress,
    neighbors: Neighbors,
    /// Datagrams given to be held, given back, and sent after all.
    given: usize,
    returned: usize,
    released: usize,
}

impl Run {
    fn new(kind: u8) -> Self {
        let now = Instant::now();
        let ours = station(kind, 1);
        let fixed = station(kind, STATIC);
        let neighbors = Neighbors::new(
            now,
            NeighborConfig {
                local: ours.clone(),
                gateway: Some(station(kind, GATEWAY).ip),
                routes: Vec::new(),
                statics: vec![(fixed.ip, fixed.mac)],
                limits: NeighborLimits {
                    entries: ENTRIES,
                    held_per_neighbor: 2,
                    held: HELD,
                    ..NeighborLimits::default()
                },
            },
        );
        Self { kind, start: now, now, ours, neighbors, given: 0, returned: 0, released: 0 }
    }

    /// The address of a station; that of number 12 is off the link.
    fn ip(&self, last: u8) -> IpAddr {
        match (last, self.ours.ip) {
            (12, IpAddr::V4(_)) => [198, 51, 100, 1].into(),
            (12, IpAddr::V6(_)) => [0x2001, 0xdb8, 9, 0, 0, 0, 0, 1].into(),
            _ => station(self.kind, last).ip,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % OPERATIONS {
            0 => self.pass(Duration::from_millis(u64::from(script.word()))),
            1 => {
                let ip = self.ip(script.station());
                self.resolve(ip);
            }
            2 => {
                let ip = self.ip(script.station());
                self.hold(ip, script.byte());
            }
            3 => {
                let ip = self.ip(script.station());
                self.neighbors.confirm(self.now, ip);
            }
            4 => self.neighbors.announce(self.now),
            5 => {
                let frame = script.bytes();
                self.neighbors.handle_frame(self.now, frame);
            }
            6 => {
                let frame = self.message(script);
                self.neighbors.handle_frame(self.now, &frame);
            }
            7 => {
                let mut frame = self.message(script);
                let (at, bits) = (usize::from(script.byte()) % frame.len(), script.byte());
                frame[at] ^= bits;
                frame.truncate(frame.len() - usize::from(script.byte() % 4));
                self.neighbors.handle_frame(self.now, &frame);
            }
            _ => self.fetch(),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.neighbors.handle_timeout(self.now);
        let next = self.neighbors.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "a timer that is over");
    }

    fn resolve(&mut self, ip: IpAddr) {
        let known = self.neighbors.resolve(self.now, ip);
        let list = self.neighbors.list(self.now);
        let mac = |hop| list.iter().find(|info| info.ip == hop).and_then(|info| info.mac);
        match known {
            Resolution::Known(found) => {
                assert_eq!(self.neighbors.next_hop(ip).and_then(mac), Some(found));
            }
            Resolution::Pending(hop) | Resolution::Failed(hop) => {
                assert_eq!((self.neighbors.next_hop(ip), mac(hop)), (Some(hop), None));
            }
            Resolution::NoRoute => assert_eq!(self.neighbors.next_hop(ip), None),
        }
    }

    fn hold(&mut self, hop: IpAddr, number: u8) {
        let remote = SocketAddr::new(hop, 26026);
        let pending = Pending { remote, source_port: 26026, mark: 0, payload: vec![number] };
        self.given += 1;
        self.returned += usize::from(self.neighbors.hold(self.now, hop, pending).is_some());
    }

    /// An ARP packet or a message of neighbour discovery that is formally right, of any station to
    /// any station about any address.
    fn message(&self, script: &mut Script<'_>) -> Vec<u8> {
        let what = script.byte();
        let (from, to) =
            (station(self.kind, script.station()), station(self.kind, script.station()));
        let (claimed, target) = (script.station(), script.station());
        let destination = if what & 1 == 0 { to.mac } else { MacAddr::BROADCAST };
        let link = PacketBuilder::ethernet2(from.mac.0, destination.0);
        let vlan = self.ours.vlan.map(|vlan| VlanId::try_new(vlan).unwrap());
        let mut frame = Vec::new();
        match (self.ip(claimed), self.ip(target)) {
            (IpAddr::V4(claimed), IpAddr::V4(target)) => {
                let asks = what & 2 == 0;
                let operation = if asks { ArpOperation::REQUEST } else { ArpOperation::REPLY };
                let claimed = if what & 4 == 0 { claimed.octets() } else { [0; 4] };
                let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
                let (us, them) = (from.mac.0, to.mac.0);
                let target = target.octets();
                let arp =
                    ArpPacket::new(hardware, protocol, operation, &us, &claimed, &them, &target);
                let arp = arp.unwrap();
                match vlan {
                    Some(vlan) => link.single_vlan(vlan).arp(arp).write(&mut frame).unwrap(),
                    None => link.arp(arp).write(&mut frame).unwrap(),
                }
            }
            (IpAddr::V6(claimed), IpAddr::V6(target)) => {
                let asks = what & 2 == 0;
                let (kind, option) = if asks { (135, 1) } else { (136, 2) };
                let source = if what & 4 == 0 { claimed.octets() } else { [0; 16] };
                let IpAddr::V6(to) = to.ip else { panic!("another family") };
                let mut body = target.octets().to_vec();
                if what & 8 == 0 {
                    body.extend([option, 1]);
                    body.extend(from.mac.0);
                }
                let flags = [what & 0xe0, 0, 0, 0];
                let to = to.octets();
                match vlan {
                    Some(vlan) => link.single_vlan(vlan).ipv6(source, to, 255),
                    None => link.ipv6(source, to, 255),
                }
                .icmpv6_raw(kind, 0, flags)
                .write(&mut frame, &body)
                .unwrap();
            }
            other => panic!("{other:?}"),
        }
        frame
    }

    /// Takes what the machine has to give.
    fn fetch(&mut self) {
        let frames: Vec<_> = std::iter::from_fn(|| self.neighbors.poll_frame()).collect();
        assert!(frames.len() <= QUEUED);
        for frame in frames {
            check_frame(&frame, &self.ours);
        }
        let released = std::iter::from_fn(|| self.neighbors.poll_released()).count();
        assert!(released <= HELD);
        self.released += released;
        let events = std::iter::from_fn(|| self.neighbors.poll_event()).count();
        assert!(events <= QUEUED);
        assert!(!self.neighbors.has_output());
    }

    fn failed(&self) -> usize {
        self.neighbors.counters().held_dropped_failed.get() as usize
    }

    fn check(&self) {
        let list = self.neighbors.list(self.now);
        assert!(list.len() <= ENTRIES);
        let fixed = station(self.kind, STATIC);
        let found = list.iter().find(|info| info.ip == fixed.ip);
        assert_eq!(found.and_then(|info| info.mac), Some(fixed.mac), "the static neighbour");
        assert!(list.iter().all(|info| info.ip != self.ours.ip), "a neighbour with our address");
        let macs = list.iter().filter_map(|info| info.mac);
        assert!(macs.into_iter().all(|mac| !mac.is_multicast() && !mac.is_zero()));
        let kept = self.given - self.returned - self.released - self.failed();
        assert!(kept <= HELD, "{kept} datagrams are held");
        // A burst, and what may be looked into since: as many for others as for those in use.
        let seconds = (self.now - self.start).as_secs() as usize + 1;
        let moved = self.neighbors.counters().neighbors_moved.get() as usize;
        assert!(moved <= 2 * 2 * (20 + 20 * seconds), "{moved} moves in {seconds} s");
    }

    /// Everybody is silent from now on: nothing stays.
    fn end(mut self) {
        for _ in 0..30 {
            self.pass(Duration::from_secs(60));
            self.check();
        }
        self.fetch();
        assert_eq!(self.neighbors.list(self.now).len(), 1, "only the static neighbour stays");
        assert_eq!(self.given, self.returned + self.released + self.failed());
        // Over IPv6 switches are told of our group for ever.
        let due = self.neighbors.poll_timeout();
        assert_eq!(due.is_some(), self.ours.ip.is_ipv6());
        assert!(due.is_none_or(|at| at <= self.now + Duration::from_secs(60)));
    }
}

/// A frame that the machine wants sent is ARP, neighbour discovery or a membership report of ours,
/// as another reader sees it.
fn check_frame(frame: &[u8], ours: &LocalAddress) {
    assert!((60..=94).contains(&frame.len()), "{} bytes", frame.len());
    assert_eq!(frame[6..12], ours.mac.0);
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let vlans: Vec<u16> = packet.vlan_ids().iter().map(|id| id.value()).collect();
    assert_eq!(vlans, ours.vlan.as_slice());
    match (packet.net.as_ref().unwrap(), &packet.transport, ours.ip) {
        (NetSlice::Arp(arp), None, IpAddr::V4(ip)) => {
            assert_eq!(arp.hw_addr_type(), ArpHardwareId::ETHERNET);
            assert_eq!(arp.sender_hw_addr(), ours.mac.0);
            assert!(
                [&[0; 4], &ip.octets()]
                    .contains(&arp.sender_protocol_addr().try_into().as_ref().unwrap())
            );
        }
        (NetSlice::Ipv6(ip), Some(TransportSlice::Icmpv6(icmp)), IpAddr::V6(own)) => {
            let header = ip.header();
            let (kind, hops) = (icmp.type_u8(), header.hop_limit());
            assert!(matches!((kind, hops), (135 | 136, 255) | (143, 1)), "{kind}, {hops} hops");
            // Of the three, reports alone have a router alert.
            assert_eq!(
                ip.extensions().first_header(),
                (kind == 143).then_some(IpNumber::IPV6_HEADER_HOP_BY_HOP)
            );
            assert_eq!(icmp.code_u8(), 0);
            assert!(icmp.is_checksum_valid(header.source(), header.destination()));
            let source = header.source_addr();
            assert!(source == own || source.is_unspecified(), "{source}");
        }
        other => panic!("{other:?}"),
    }
}
