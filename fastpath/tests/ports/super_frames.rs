//! Super-frames of a tap.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Instant;

use encap::wire::buf::{Checksum, FrameBurst, Offload, SegmentKind, Segmentation};
use encap::wire::checksum::derive_partial;
use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use fastpath::interface::Interface;
use fastpath::port::FramePort;
use fastpath::tap::{MAX_SUPER_FRAME_LEN, OffloadSwitches, Tap, TapOptions, TapQueue};
use fastpath::vnet::VnetHeader;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cable::ip;
use crate::{PATIENCE, in_namespace, wait_readable};

fn options(offload: OffloadSwitches) -> TapOptions {
    TapOptions {
        name: "tap0".to_owned(),
        queues: 1,
        existing: false,
        tap_mtu: None,
        offload,
        super_frame_overhead: None,
    }
}

/// A tap that is up, with an address and a neighbour that nobody has to be asked for.
fn tap_with(options: &TapOptions, local: IpAddr, remote: IpAddr) -> (Tap, TapQueue) {
    let (tap, mut queues) = Tap::open(options).unwrap();
    assert!(tap.degraded().is_empty(), "{:?}", tap.degraded());
    tap.interface().set_up(true).unwrap();
    tap.interface().add_address(local, if local.is_ipv4() { 24 } else { 64 }).unwrap();
    ip(&["neigh", "add", &remote.to_string(), "lladdr", "02:00:00:00:00:99", "dev", "tap0"]);
    (tap, queues.pop().unwrap())
}

/// Reads until `wanted` frames came that `pick` takes; what it makes of them.
fn read_frames<T>(
    queue: &mut TapQueue,
    wanted: usize,
    pick: impl Fn(&[u8], Offload) -> Option<T>,
) -> Vec<T> {
    let deadline = Instant::now() + PATIENCE;
    let mut burst = FrameBurst::new(8 * MAX_SUPER_FRAME_LEN, 64);
    let mut found = Vec::new();
    while found.len() < wanted {
        assert!(Instant::now() < deadline, "{} of {wanted} frames came", found.len());
        wait_readable(queue.poll_fd().unwrap());
        burst.clear();
        queue.read_burst(&mut burst).unwrap();
        found.extend(burst.iter().filter_map(|(frame, bytes)| pick(bytes, frame.offload)));
    }
    found
}

const ADDRESSES: [(&str, &str); 2] = [("10.9.0.1", "10.9.0.2"), ("fd00:9::1", "fd00:9::2")];

/// Bytes that tell where they stand.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 251 + n) as u8).collect()
}

/// Has the kernel cut what `socket` sends into datagrams of `size` bytes.
fn set_segment(socket: &UdpSocket, size: libc::c_int) {
    // SAFETY: the option's value is an int, as the length says.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn runs_of_a_local_udp_socket_are_read_whole() {
    for (local, remote) in ADDRESSES {
        let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
        in_namespace(move || {
            let (tap, mut queue) = tap_with(&options(OffloadSwitches::ALL), local, remote);
            assert!(tap.segmentation() && tap.coalescing());
            let socket = UdpSocket::bind((local, 4000)).unwrap();
            set_segment(&socket, 1000);
            let payload = pattern(10 * 1000 + 7);
            socket.send_to(&payload, (remote, 5000)).unwrap();
            let is_ours = |bytes: &[u8], offload| {
                let headers = PacketHeaders::from_ethernet_slice(bytes).ok()?;
                let Some(TransportHeader::Udp(udp)) = headers.transport else { return None };
                (udp.destination_port == 5000).then(|| (bytes.to_vec(), offload))
            };
            let [(bytes, offload)] = &read_frames(&mut queue, 1, is_ours)[..] else { panic!() };
            let start: u16 = if local.is_ipv4() { 34 } else { 54 };
            let segmentation = Segmentation { kind: SegmentKind::Udp, size: 1000, ecn: false };
            assert_eq!(offload.segmentation, Some(segmentation));
            assert_eq!(offload.checksum, Checksum::Partial { start, offset: 6 });
            assert_eq!(bytes[usize::from(start) + 8..], payload);
            let counters = &tap.counters()[0];
            assert_eq!(counters.rx_super_frames.get(), 1);
            assert_eq!(counters.rx_super_frame_bytes.get(), bytes.len() as u64);
        });
    }
}

/// A packet socket on `interface` for frames of every kind, with a virtio-net header of 10 bytes in
/// front of each.
fn vnet_socket(interface: &Interface) -> Socket {
    const PACKET_VNET_HDR: libc::c_int = 15;
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all)))).unwrap();
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, as the length says.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
    // SAFETY: `sockaddr_ll` is made of integers, for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = interface.index().unwrap() as i32;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a `sockaddr_ll` of the length given.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The 10-byte form of a header is the first part of the 12-byte form.
const SHORT_HEADER_LEN: usize = 10;

fn tcp_frame(ipv6: bool, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 8]);
    let builder = if ipv6 {
        builder.ipv6([1; 16], [2; 16], 64)
    } else {
        builder.ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
    };
    let mut frame = Vec::new();
    builder.tcp(4000, 5000, sequence, 4096).ack(7).write(&mut frame, payload).unwrap();
    frame
}

#[test]
fn runs_of_tcp_are_read_whole() {
    for (ipv6, kind, ecn) in [
        (false, SegmentKind::Tcp4, false),
        (false, SegmentKind::Tcp4, true),
        (true, SegmentKind::Tcp6, false),
    ] {
        in_namespace(move || {
            let (tap, mut queues) = Tap::open(&options(OffloadSwitches::ALL)).unwrap();
            tap.interface().set_up(true).unwrap();
            let sender = vnet_socket(tap.interface());
            let frame = tcp_frame(ipv6, 1, &pattern(5 * 1000 + 7));
            let header_len = frame.len() - 5007;
            let checksum = derive_partial(&frame).unwrap();
            let segmentation = Some(Segmentation { kind, size: 1000, ecn });
            let offload = Offload { checksum, segmentation };
            let header = VnetHeader::for_offload(offload, header_len).to_bytes();
            sender.send(&[&header[..SHORT_HEADER_LEN], &frame].concat()).unwrap();
            let is_ours = |bytes: &[u8], offload| (bytes == frame).then_some(offload);
            assert_eq!(read_frames(&mut queues[0], 1, is_ours), [offload]);
            assert_eq!(tap.counters()[0].rx_super_frames.get(), 1);
        });
    }
}

#[test]
fn runs_come_apart_where_they_are_not_wanted() {
    let (local, remote) = ADDRESSES[0];
    let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
    in_namespace(move || {
        let only_tcp = OffloadSwitches { segmentation_udp: false, ..OffloadSwitches::ALL };
        let (tap, mut queue) = tap_with(&options(only_tcp), local, remote);
        assert!(tap.offload().coalescing_tcp() && !tap.offload().coalescing_udp());
        let socket = UdpSocket::bind((local, 4000)).unwrap();
        set_segment(&socket, 1000);
        let payload = pattern(2 * 1000 + 7);
        socket.send_to(&payload, (remote, 5000)).unwrap();
        let payload_of = |bytes: &[u8], offload: Offload| {
            assert_eq!(offload.segmentation, None);
            let is_udp = bytes.get(23) == Some(&17);
            is_udp.then(|| bytes[42..].to_vec())
        };
        assert_eq!(read_frames(&mut queue, 3, payload_of).concat(), payload);
        assert_eq!(tap.counters()[0].rx_super_frames.get(), 0);
    });
}

/// Largest super-frames of the interface for IPv6 as `ip` says, and for IPv4 if it does.
fn super_frame_limits(name: &str) -> (u32, Option<u32>) {
    let shown = Command::new("ip").args(["-d", "link", "show", name]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let value = |name: &str| {
        let mut words = shown.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).and_then(|value| value.parse().ok())
    };
    (value("gso_max_size").unwrap(), value("gso_ipv4_max_size"))
}

#[test]
fn length_of_super_frames_follows_the_mtu() {
    in_namespace(|| {
        let options = TapOptions {
            tap_mtu: Some(1500),
            super_frame_overhead: Some(26),
            ..options(OffloadSwitches::ALL)
        };
        let (tap, _queues) = Tap::open(&options).unwrap();
        assert!(tap.degraded().is_empty(), "{:?}", tap.degraded());
        let (ipv6, ipv4) = super_frame_limits("tap0");
        assert_eq!(ipv6, 42 * 1440 + 321);
        assert!(ipv4.is_none_or(|len| len == 42 * 1460 + 321), "{ipv4:?}");
        tap.interface().set_tap_mtu(9000).unwrap();
        let (ipv6, ipv4) = super_frame_limits("tap0");
        assert_eq!(ipv6, 7 * 8940 + 321);
        assert!(ipv4.is_none_or(|len| len == 7 * 8960 + 321), "{ipv4:?}");
    });
    in_namespace(|| {
        let (tap, _queues) = Tap::open(&options(OffloadSwitches::ALL)).unwrap();
        tap.interface().set_tap_mtu(9000).unwrap();
        assert_eq!(super_frame_limits("tap0").0, 65_536);
    });
}
