//! What the fuzz targets check, one function each. They panic on a fault.
//!
//! `tests/corpus.rs` replays the corpus through these same functions, so that a target and its
//! regression test cannot drift apart.

mod frames;
mod script;

pub use frames::classify;
pub use script::neighbors;

use std::net::{IpAddr, Ipv6Addr};

use encap::wire::ethernet::MacAddr;
use fastpath::underlay::LocalAddress;

/// A checking function: takes any bytes.
pub type Check = fn(&[u8]);

/// Every target: the name of its file and of its corpus folder, and its check.
pub const TARGETS: &[(&str, Check)] = &[("classify", classify), ("neighbors", neighbors)];

/// The VLAN of tagged segments.
const VLAN: u16 = 42;

/// Station number `last` of a segment: bit 0 of `kind` is IPv6, bit 1 says that it is tagged.
fn station(kind: u8, last: u8) -> LocalAddress {
    let ipv6 = kind & 1 != 0;
    let ip: IpAddr = if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
    } else {
        [192, 0, 2, last].into()
    };
    LocalAddress {
        mac: MacAddr([2, 0, 0, 0, 0, last]),
        ip,
        prefix: if ipv6 { 64 } else { 24 },
        vlan: (kind & 2 != 0).then_some(VLAN),
    }
}

/// Where a part of `whole` lies in it.
fn range_of(whole: &[u8], part: &[u8]) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}
