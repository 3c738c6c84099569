//! The load that `tapd-traffic` and `channel-traffic` make: frames per second, latency, junk,
//! messages, streams.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};

use crate::netns;
use crate::sys;

pub mod rate;
pub mod pingpong;
pub mod channel;
pub mod junk;

/// Socket buffers of both ends, in bytes; the same whatever is measured.
const SOCKET_BUFFER: i32 = 4 << 20;

/// Where one end of a measurement is.
#[derive(Debug)]
pub struct Place<'a> {
    /// An open namespace file.
    pub netns: &'a File,
    /// An address of an interface in that namespace.
    pub address: IpAddr,
}

/// Two UDP sockets in different namespaces, connected with each other.
#[derive(Debug)]
pub struct UdpPath {
    near: UdpSocket,
    far: UdpSocket,
}

impl UdpPath {
    /// Opens the two sockets on ports that the kernel picks.
    ///
    /// # Errors
    /// A namespace cannot be entered or an address is not there.
    pub fn open(near: &Place<'_>, far: &Place<'_>) -> Result<Self> {
        let (near, far) = (bind(near)?, bind(far)?);
        near.connect(far.local_addr()?)?;
        far.connect(near.local_addr()?)?;
        Ok(Self { near, far })
    }

    /// The first place's socket.
    #[must_use]
    pub fn near(&self) -> &UdpSocket {
        &self.near
    }

    /// The second place's socket.
    #[must_use]
    pub fn far(&self) -> &UdpSocket {
        &self.far
    }
}

fn bind(place: &Place<'_>) -> Result<UdpSocket> {
    let socket = netns::enter(place.netns, || {
        UdpSocket::bind(SocketAddr::new(place.address, 0))
            .with_context(|| format!("binding to {}", place.address))
    })?;
    sys::force_recv_buffer(socket.as_fd(), SOCKET_BUFFER)?;
    sys::force_send_buffer(socket.as_fd(), SOCKET_BUFFER)?;
    Ok(socket)
}
