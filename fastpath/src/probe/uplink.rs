//! A trial of an uplink address: buffers, runs of datagrams, steering.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use encap::wire::buf::UplinkId;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Passage, link_state};
use crate::error::BindError;
use crate::interface::Interface;
use crate::uplink::socket::set_int;
use crate::uplink::{GrantedBuffers, UplinkOptions, steering};

/// What goes across: datagrams of so many bytes each, which every usable path takes.
const DATAGRAMS: usize = 8;
const DATAGRAM_LEN: usize = 1000;
/// How long to wait for what a socket of ours sent to another.
const PATIENCE: Duration = Duration::from_secs(1);
/// All systems: with a time to live of 0 it stays on the host (RFC 1112 section 6.1). Linux looks at
/// that only for groups that it is in itself, and it is in this one without having to tell others.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// A transient group of interface-local scope, which never leaves (RFC 4291 section 2.7).
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff11, 0, 0, 0, 0, 0, 0xdb8, 1);
/// The discard port.
const GROUP_PORT: u16 = 9;

/// What an address turned out to do.
#[derive(Debug)]
pub struct UplinkTrial {
    /// Kernel buffers, as [`UplinkOptions::buffer_len`] asks for; the kernel says twice that.
    pub buffers: GrantedBuffers,
    /// A run of datagrams from one socket on the address to another.
    pub run: io::Result<Passage>,
    /// A single datagram handed to the interface; it does not leave.
    /// [`io::ErrorKind::Unsupported`] where that is not sure and nothing was tried.
    pub single: io::Result<()>,
    /// A run of datagrams handed to the interface (`UDP_SEGMENT`). Kernels without a way to cut it
    /// for this interface say so here: EIO without transmit checksums (before Linux 6.11), EINVAL.
    pub segmented: io::Result<()>,
    /// Whether several sockets can share a port, each with datagrams of its own.
    pub steering: Result<(), BindError>,
}

/// Tries an address of this machine on ports that the kernel chooses. `interface` owns it.
///
/// # Errors
/// No socket can be bound to it.
pub fn try_uplink(address: IpAddr, interface: &str) -> Result<UplinkTrial, BindError> {
    let local = SocketAddr::new(address, 0);
    let options = UplinkOptions::default();
    let alone = steering::bind_group(UplinkId(0), local, 1, &options)?;
    let buffers = alone
        .first()
        .map_or(GrantedBuffers { receive: 0, send: 0 }, |socket| socket.granted_buffers());
    Ok(UplinkTrial {
        buffers,
        run: run(local),
        single: hand_over(local, interface, false),
        segmented: hand_over(local, interface, true),
        steering: steering::bind_group(UplinkId(0), local, 2, &options).map(drop),
    })
}

fn socket(local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    if local.is_ipv4() {
        set_int(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    } else {
        let probe = libc::IPV6_PMTUDISC_PROBE;
        set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
    }
    socket.bind(&local.into())?;
    Ok(socket)
}

/// From socket to socket, by the loopback interface.
fn run(local: SocketAddr) -> io::Result<Passage> {
    let (from, to) = (socket(local)?, socket(local)?);
    set_int(&to, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    set_int(&from, libc::SOL_UDP, libc::UDP_SEGMENT, DATAGRAM_LEN as i32)?;
    to.set_read_timeout(Some(PATIENCE))?;
    from.connect(&to.local_addr()?)?;
    from.send(&[0x5a; DATAGRAMS * DATAGRAM_LEN])?;
    let mut room = vec![0; 64 << 10];
    let (mut pieces, mut bytes) = (0, 0);
    while bytes < DATAGRAMS * DATAGRAM_LEN {
        match (&to).read(&mut room) {
            Ok(0) | Err(_) => return Ok(Passage::Lost),
            Ok(len) => (pieces, bytes) = (pieces + 1, bytes + len),
        }
    }
    Ok(if pieces == 1 { Passage::Whole } else { Passage::Cut })
}

/// Hands datagrams to the interface. They are for a group that ends at this host: the kernel
/// prepares them as all others and drops them where they would leave.
fn hand_over(local: SocketAddr, interface: &str, segment: bool) -> io::Result<()> {
    if !link_state(interface)?.multicast {
        let error = format!("{interface} has no multicast");
        return Err(io::Error::new(io::ErrorKind::Unsupported, error));
    }
    let socket = socket(local)?;
    let group = match local.ip() {
        IpAddr::V4(address) => {
            socket.set_multicast_if_v4(&address)?;
            socket.set_multicast_ttl_v4(0)?;
            socket.set_multicast_loop_v4(false)?;
            IpAddr::V4(GROUP_V4)
        }
        IpAddr::V6(_) => {
            socket.set_multicast_if_v6(Interface::open(interface)?.index()?)?;
            socket.set_multicast_hops_v6(0)?;
            socket.set_multicast_loop_v6(false)?;
            IpAddr::V6(GROUP_V6)
        }
    };
    let mut payload = vec![0x5a; DATAGRAM_LEN];
    if segment {
        set_int(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, DATAGRAM_LEN as i32)?;
        payload.resize(DATAGRAMS * DATAGRAM_LEN, 0x5a);
    }
    socket.send_to(&payload, &SocketAddr::new(group, GROUP_PORT).into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_runs() {
        for address in [IpAddr::from([127, 0, 0, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let trial = match try_uplink(address, "lo") {
                Ok(trial) => trial,
                // A kernel without IPv6.
                Err(_) if address.is_ipv6() => continue,
                Err(error) => panic!("{error}"),
            };
            assert!(matches!(trial.run, Ok(Passage::Whole)), "{trial:?}");
            assert!(trial.steering.is_ok() && trial.buffers.receive > 0, "{trial:?}");
        }
    }

    #[test]
    fn foreign_address_is_refused() {
        assert!(try_uplink([203, 0, 113, 77].into(), "lo").is_err());
    }
}
