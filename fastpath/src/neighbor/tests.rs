mod hostile;
mod segment;
mod wire;
mod world;

use super::*;
use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};

const PORT: u16 = 47_000;

/// The kinds of segment that every test runs on.
#[derive(Debug, Clone, Copy)]
struct Kind {
    ipv6: bool,
    vlan: Option<u16>,
}

const KINDS: [Kind; 4] = [
    Kind { ipv6: false, vlan: None },
    Kind { ipv6: false, vlan: Some(42) },
    Kind { ipv6: true, vlan: None },
    Kind { ipv6: true, vlan: Some(42) },
];

impl Kind {
    /// The address with this last part in network `net`; that of the segment is 0.
    fn ip(self, net: u8, last: u16) -> IpAddr {
        let [high, low] = last.to_be_bytes();
        if self.ipv6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, net.into(), 0, 0, 0, last).into()
        } else {
            [10, net, high, low].into()
        }
    }

    /// A station of the segment.
    fn local(self, last: u16) -> LocalAddress {
        let prefix = if self.ipv6 { 64 } else { 16 };
        LocalAddress { mac: mac(last), ip: self.ip(0, last), prefix, vlan: self.vlan }
    }

    fn config(self, last: u16) -> NeighborConfig {
        NeighborConfig {
            local: self.local(last),
            gateway: Some(self.ip(0, GATEWAY)),
            routes: Vec::new(),
            statics: Vec::new(),
            limits: NeighborLimits::default(),
        }
    }
}

impl Neighbors {
    /// The MAC address of each next hop that has one.
    fn table(&self) -> HashMap<IpAddr, MacAddr> {
        self.entries.iter().filter_map(|(ip, entry)| Some((*ip, entry.mac()?))).collect()
    }
}

const GATEWAY: u16 = 254;

fn mac(last: u16) -> MacAddr {
    let [high, low] = last.to_be_bytes();
    MacAddr([2, 0, 0, 0, high, low])
}

fn pending(remote: IpAddr, number: u16) -> Pending {
    let remote = SocketAddr::new(remote, PORT);
    Pending { remote, source_port: PORT, mark: 0, payload: number.to_be_bytes().to_vec() }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
