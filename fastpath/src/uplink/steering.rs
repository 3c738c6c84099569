//! Which worker's socket gets a datagram: by its lane, in the kernel.
//!
//! The sockets of all workers share one address and port (`SO_REUSEPORT`). A classic BPF program
//! reads the first bytes of the UDP payload, so that all datagrams of a lane reach one worker
//! and a replay window has one user. A run that the kernel put together is steered by its first
//! datagram: others in it may be of other lanes, whose windows then have a second user for once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use encap::wire::buf::UplinkId;
use socket2::Socket;

use super::UplinkOptions;
use super::socket::UdpUplink;
use crate::error::BindError;

/// Byte of the data header that holds the lane; its upper four bits are the bucket.
const LANE_BYTE: u32 = 3;
/// The bucket of the control thread, whose datagrams go to the first worker.
const CONTROL_BUCKET: u32 = 15;

/// The program for `workers` sockets: the result is the index of a socket, in bind order.
///
/// Long headers (upper two bits of the first byte 0), bucket 15 and datagrams too short to have
/// a lane go to the first; the others to bucket mod `workers`.
fn program(workers: u32) -> [libc::sock_filter; 9] {
    const fn op(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt, jf, k }
    }
    let load = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let shift = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let modulo = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
    [
        op(load, 0, 0, 0),
        op(shift, 6, 0, 0),
        op(equal, 0, 5, 0),
        op(load, LANE_BYTE, 0, 0), // a load beyond the end ends the program with 0
        op(shift, 4, 0, 0),
        op(equal, CONTROL_BUCKET, 2, 0),
        op(modulo, workers, 0, 0),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

/// Steers the datagrams of the group that `socket` belongs to.
fn attach(socket: &Socket, workers: u32) -> io::Result<()> {
    let mut filter = program(workers);
    let program =
        libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_mut_ptr() };
    // SAFETY: `program` points to `filter` with its true length; the kernel copies both during
    // the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A socket on the base port plus the worker's number; none where that cannot be had.
fn sender(
    id: UplinkId,
    local: SocketAddr,
    worker: usize,
    options: &UplinkOptions,
) -> Option<UdpUplink> {
    let port = local.port().checked_add(u16::try_from(worker).ok()?)?;
    let source = SocketAddr::new(local.ip(), port);
    // Nothing comes in by it: the room is for errors.
    let options = UplinkOptions { receive_coalescing: false, ..options.clone() };
    match UdpUplink::bind(id, source, &options) {
        Ok(uplink) => Some(uplink),
        Err(error) => {
            log::warn!("worker {worker} sends from port {} instead: {error}", local.port());
            None
        }
    }
}

/// Opens one socket per worker on the same address and port, steered by lane.
///
/// The result is in the order of the workers. `local` may be the wildcard address, and its port 0:
/// then all sockets have the port that the kernel chose for the first. With one worker nothing is
/// shared, so that a second program on the port is refused; with more, the first is bound before
/// it is told to share, which checks that.
///
/// With `source_ports` every worker but the first sends from the base port plus its number, where
/// that is free. All receive by the base port: a peer looks at addresses, not at source ports.
///
/// # Errors
/// See [`BindError`].
pub fn bind_group(
    id: UplinkId,
    local: SocketAddr,
    workers: usize,
    options: &UplinkOptions,
) -> Result<Vec<UdpUplink>, BindError> {
    let alone = UplinkOptions { reuse_port: false, ..options.clone() };
    let first = UdpUplink::bind(id, local, &alone)?;
    if workers <= 1 {
        return Ok(vec![first]);
    }
    // With the port that the kernel chose, where that was left to it. The first socket keeps the
    // port while the others join, so nobody else can take it in between.
    let local = first.local();
    let setup = |action| move |source| BindError::Setup { local, action, source };
    first.socket().set_reuse_port(true).map_err(setup("share the port"))?;
    let shared = UplinkOptions { reuse_port: true, ..options.clone() };
    let mut group = vec![first];
    for worker in 1..workers {
        let mut uplink = UdpUplink::bind(id, local, &shared)?;
        if options.source_ports
            && let Some(sender) = sender(id, local, worker, &alone)
        {
            uplink.send_by(sender);
        }
        group.push(uplink);
    }
    if let Some(first) = group.first() {
        let setup = setup("steer datagrams by lane");
        let count =
            u32::try_from(workers).map_err(|_| setup(io::ErrorKind::InvalidInput.into()))?;
        attach(first.socket(), count).map_err(setup)?;
    }
    Ok(group)
}
