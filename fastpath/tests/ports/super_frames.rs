//! Super-frames of a tap.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Instant;

use encap::offload::segment::SuperFrame;
use encap::wire::buf::{
    BufPool, Burst, Checksum, FrameBurst, Offload, OutFrame, PacketBuf, Pieces, SegmentKind,
    Segmentation, Span,
};
use encap::wire::checksum::derive_partial;
use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use fastpath::interface::Interface;
use fastpath::port::{DatagramPort, FramePort, TxReport};
use fastpath::tap::{MAX_SUPER_FRAME_LEN, OffloadSwitches, Tap, TapOptions, TapQueue};
use fastpath::vnet::VnetHeader;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cable::{cable, ip};
use crate::uplink::uplink;
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
    // The kernel takes what is for an IPv6 address a little later than it lets it be bound.
    await_text(&["route", "get", &local.to_string()], |text| text.starts_with("local"));
    (tap, queues.pop().unwrap())
}

/// Waits until what `ip` prints is as `wanted`.
fn await_text(arguments: &[&str], wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let printed = Command::new("ip").args(arguments).output().unwrap();
        let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
        if wanted(&printed) {
            return;
        }
        assert!(Instant::now() < deadline, "{printed}");
    }
}

/// Reads until `wanted` frames came that `pick` takes; what it makes of them.
pub(crate) fn read_frames<T>(
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

#[test]
fn super_frames_from_a_bridge_stay_whole() {
    in_namespace(|| {
        let options =
            TapOptions { super_frame_overhead: Some(26), ..options(OffloadSwitches::ALL) };
        let (tap, mut queues) = Tap::open(&options).unwrap();
        for line in [
            "link add br0 type bridge",
            "link add inner type veth peer name outer",
            "link set outer master br0 up",
            "link set inner up",
            "link set tap0 master br0 up",
            "link set br0 up",
        ] {
            ip(&line.split(' ').collect::<Vec<_>>());
        }
        for port in ["outer", "tap0"] {
            let forwards = |text: &str| text.contains("state forwarding");
            await_text(&["-d", "link", "show", port], forwards);
        }
        let sender = vnet_socket(&Interface::open("inner").unwrap());
        // What a neighbour's kernel makes of 64 KiB, which is beyond what leaves as one run.
        let frame = tcp_frame(false, 1, &pattern(45 * 1448));
        let segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448, ecn: false });
        let checksum = derive_partial(&frame).unwrap();
        let header = VnetHeader::for_offload(Offload { checksum, segmentation }, 54).to_bytes();
        let mut payloads = |frames| {
            sender.send(&[&header[..SHORT_HEADER_LEN], &frame].concat()).unwrap();
            let is_ours =
                |bytes: &[u8], _| bytes.starts_with(&frame[..12]).then_some(bytes.len() - 54);
            read_frames(&mut queues[0], frames, is_ours)
        };
        // The limit was set before the tap became a port: the kernel cuts them, one by one.
        assert_eq!(payloads(45), [1448; 45]);
        tap.interface().fit_super_frames().unwrap();
        assert_eq!(super_frame_limits("tap0").0, 65_536);
        assert_eq!(payloads(1), [45 * 1448]);
        ip(&["link", "set", "tap0", "nomaster"]);
        tap.interface().fit_super_frames().unwrap();
        assert_eq!(super_frame_limits("tap0").0, 42 * 1440 + 321);
    });
}

/// Frames as they come from the tunnel: one behind the other in one piece.
#[derive(Default)]
pub(crate) struct FromTunnel {
    bytes: Vec<u8>,
    frames: Vec<OutFrame>,
}

impl FromTunnel {
    pub(crate) fn push(&mut self, frame: &[u8], checksum: Checksum) {
        let span = Span { piece: 0, start: self.bytes.len(), len: frame.len() };
        self.bytes.extend(frame);
        self.frames.push(OutFrame { span, checksum });
    }

    pub(crate) fn write(&mut self, queue: &mut TapQueue) -> TxReport {
        let mut pieces = Pieces(vec![PacketBuf::from_slice(&self.bytes)]);
        let report = queue.write_burst(&mut pieces, &self.frames);
        self.bytes.clear();
        self.frames.clear();
        report
    }
}

/// Leaves the checksum of a UDP frame as a sender does that has an offload: the sum over the
/// addresses, the protocol and the length only (RFC 768, RFC 8200 section 8.1).
fn leave_partial(frame: &mut [u8]) -> Checksum {
    let checksum = derive_partial(frame).unwrap();
    let Checksum::Partial { start, offset } = checksum else { panic!("{checksum:?}") };
    let start = usize::from(start);
    let addresses = if frame[14] >> 4 == 4 { start - 8 } else { start - 32 };
    let words = frame[addresses..start].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let mut sum = words.sum::<u32>() + 17 + (frame.len() - start) as u32;
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let field = start + usize::from(offset);
    frame[field..field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    checksum
}

#[test]
fn datagrams_of_a_flow_enter_the_kernel_as_one() {
    for (local, remote) in ADDRESSES {
        let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
        in_namespace(move || {
            let (tap, mut queue) = tap_with(&options(OffloadSwitches::ALL), local, remote);
            let mac = tap.interface().mac().unwrap();
            let mut whole = uplink(&SocketAddr::new(local, 5000).to_string());
            let apart = UdpSocket::bind((local, 5001)).unwrap();
            apart.set_read_timeout(Some(PATIENCE)).unwrap();
            let payload = |n: usize| pattern(if n == 9 { 7 } else { 1000 });
            let complete = Checksum::Complete;
            let mut burst = FromTunnel::default();
            for n in 0..10 {
                for port in [5000, 5001] {
                    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x99], mac.0);
                    let builder = match (remote, local) {
                        (IpAddr::V4(from), IpAddr::V4(to)) => {
                            builder.ipv4(from.octets(), to.octets(), 64)
                        }
                        (IpAddr::V6(from), IpAddr::V6(to)) => {
                            builder.ipv6(from.octets(), to.octets(), 64)
                        }
                        _ => panic!("of one family"),
                    };
                    let mut frame = Vec::new();
                    builder.udp(4000, port).write(&mut frame, &payload(n)).unwrap();
                    // As both kinds come: complete, and partial where the sender left it so.
                    let checksum = if n % 2 == 0 { leave_partial(&mut frame) } else { complete };
                    burst.push(&frame, checksum);
                }
            }
            let report = burst.write(&mut queue);
            assert_eq!(report, TxReport { sent: 20, ..TxReport::default() });
            let counters = &tap.counters()[0];
            assert_eq!(counters.tx_super_frames.get(), 2);
            assert_eq!(counters.tx_coalesced_frames.get(), 20);
            assert_eq!(counters.tx_super_frames_refused.get(), 0);

            let expected: Vec<_> = (0..10).map(payload).collect();
            let mut received = Burst::new();
            wait_readable(whole.poll_fd().unwrap());
            whole.receive_burst(&mut BufPool::new(65_535, 64), &mut received).unwrap();
            assert_eq!(received.len(), 1);
            assert_eq!(received[0].segment_size, 1000);
            assert_eq!(received[0].buf.data(), expected.concat());
            let mut room = [0; 2000];
            for expected in expected {
                let len = apart.recv(&mut room).unwrap();
                assert_eq!(room[..len], expected);
            }
        });
    }
}

#[test]
fn segments_of_a_connection_enter_the_kernel_as_one() {
    for (ipv6, gso_type) in [(false, 1), (true, 4)] {
        in_namespace(move || {
            let (tap, mut queues) = Tap::open(&options(OffloadSwitches::ALL)).unwrap();
            tap.interface().set_up(true).unwrap();
            let capture = vnet_socket(tap.interface());
            let payload = pattern(5 * 1000 + 7);
            let mut burst = FromTunnel::default();
            for (n, part) in payload.chunks(1000).enumerate() {
                let frame = tcp_frame(ipv6, 1 + 1000 * n as u32, part);
                burst.push(&frame, Checksum::Complete);
            }
            assert_eq!(burst.write(&mut queues[0]).sent, 6);
            let whole = tcp_frame(ipv6, 1, &payload);
            let mut room = vec![0; MAX_SUPER_FRAME_LEN];
            // Between them may be what the kernel itself says on a new interface.
            let (header, frame) = loop {
                let len = (&capture).read(&mut room).unwrap();
                let (header, frame) = room[..len].split_at(SHORT_HEADER_LEN);
                if frame.starts_with(&whole[..12]) {
                    break (header, frame);
                }
            };
            let l4 = if ipv6 { 54 } else { 34 };
            let header_len = l4 + 20;
            assert_eq!((header[0], header[1]), (1, gso_type));
            let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            let expected = [header_len, 1000, l4, 16].map(|value| value as u16);
            assert_eq!([field(2), field(4), field(6), field(8)], expected);
            // But for the checksum, which is partial, it is the frame that was never cut.
            let field = l4 + 16..l4 + 18;
            assert_eq!(frame[..field.start], whole[..field.start]);
            assert_eq!(frame[field.end..], whole[field.end..]);
        });
    }
}

/// Passes on what one tap gives to another, super-frames cut as a tunnel would; the most segments
/// that one had.
fn pass_on(from: &mut TapQueue, to: &mut TapQueue, burst: &mut FrameBurst) -> usize {
    burst.clear();
    from.read_burst(burst).unwrap();
    let mut tunnel = FromTunnel::default();
    let mut most = 0;
    let mut segment = Vec::new();
    for (frame, bytes) in burst.iter() {
        let Some(segmentation) = frame.offload.segmentation else {
            tunnel.push(bytes, frame.offload.checksum);
            continue;
        };
        let whole = SuperFrame::new(bytes, segmentation, frame.offload.checksum).unwrap();
        most = most.max(whole.count());
        for index in 0..whole.count() {
            segment.clear();
            // Whether the far end gets complete ones is the tunnel's choice: both.
            let complete = index % 3 == 0;
            whole.write(index, complete, &mut segment);
            tunnel.push(&segment, if complete { Checksum::Complete } else { whole.checksum() });
        }
    }
    tunnel.write(to);
    most
}

/// A connection between two kernels: all it says gets there, in super-frames at both ends.
fn stream_between_taps(near_ip: IpAddr, far_ip: IpAddr, most_segments: usize) {
    const LEN: usize = 20 << 20;
    let options = TapOptions {
        tap_mtu: Some(1500),
        super_frame_overhead: Some(26),
        ..options(OffloadSwitches::ALL)
    };
    let far = cable(1);
    let far_options = options.clone();
    let (far_tap, mut far_queue, server) = far.run(move || {
        let (tap, mut queues) = Tap::open(&far_options).unwrap();
        tap.interface().set_up(true).unwrap();
        tap.interface().add_address(far_ip, 24).unwrap();
        let listener = TcpListener::bind((far_ip, 5000)).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = Vec::with_capacity(LEN);
            stream.read_to_end(&mut received).unwrap();
            stream.write_all(b"done").unwrap();
            received
        });
        (tap, queues.remove(0), server)
    });
    let (near_tap, mut near_queues) = Tap::open(&options).unwrap();
    near_tap.interface().set_up(true).unwrap();
    near_tap.interface().add_address(near_ip, 24).unwrap();
    let near_queue = &mut near_queues[0];
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect((far_ip, 5000)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&pattern(LEN)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let mut burst = FrameBurst::new(8 * MAX_SUPER_FRAME_LEN, 64);
    let mut most = 0;
    let deadline = Instant::now() + 3 * PATIENCE;
    while !client.is_finished() {
        assert!(Instant::now() < deadline, "{:?}", near_tap.counters());
        wait_either(near_queue.poll_fd().unwrap(), far_queue.poll_fd().unwrap());
        most = most.max(pass_on(near_queue, &mut far_queue, &mut burst));
        pass_on(&mut far_queue, near_queue, &mut burst);
    }
    assert_eq!(client.join().unwrap(), "done");
    assert!(server.join().unwrap() == pattern(LEN), "what arrived is not what was sent");
    let (near, far) = (&near_tap.counters()[0], &far_tap.counters()[0]);
    assert_eq!(most, most_segments);
    assert!(near.rx_super_frame_bytes.get() > LEN as u64 / 2, "{near:?}");
    assert!(far.tx_coalesced_frames.get() > 10 * far.tx_super_frames.get(), "{far:?}");
    assert_eq!(far.tx_super_frames_refused.get() + far.tx_dropped_refused.get(), 0);
    assert_eq!(near.rx_dropped_bad_header.get() + near.rx_dropped_bad_super_frame.get(), 0);
}

/// Waits a moment for one of the two to become readable.
fn wait_either(a: libc::c_int, b: libc::c_int) {
    let mut polls = [a, b].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: `polls` are two pollfd, as the count says.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), 2, 20) };
    assert!(ready >= 0, "{}", io::Error::last_os_error());
}

#[test]
fn streams_cross_from_tap_to_tap_ipv4() {
    in_namespace(|| {
        stream_between_taps([10, 9, 0, 1].into(), [10, 9, 0, 2].into(), 42);
    });
}

#[test]
fn streams_cross_from_tap_to_tap_ipv6() {
    in_namespace(|| {
        stream_between_taps("fd00:9::1".parse().unwrap(), "fd00:9::2".parse().unwrap(), 42);
    });
}
