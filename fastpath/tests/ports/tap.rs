//! Taps.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use encap::wire::buf::{Checksum, FrameBurst, Offload};
use encap::wire::checksum::complete_checksum;
use encap::wire::ethernet::{EtherType, EthernetView, MacAddr};
use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use fastpath::error::OpenError;
use fastpath::interface::{Interface, interface_of, local_addresses};
use fastpath::port::{FramePort, TxReport};
use fastpath::tap::{
    MAX_SUPER_FRAME_LEN, MAX_TAP_FRAME_LEN, MAX_TAP_MTU, OffloadSwitches, Tap, TapOptions, TapQueue,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::super_frames::{FromTunnel, read_frames};
use crate::{PATIENCE, in_namespace};

/// Local experimental EtherType 1: no protocol of the kernel answers it.
const EXPERIMENTAL: EtherType = EtherType(0x88b5);

fn options(name: &str) -> TapOptions {
    TapOptions {
        name: name.to_owned(),
        queues: 1,
        existing: false,
        tap_mtu: None,
        offload: OffloadSwitches::ALL,
        super_frame_overhead: None,
    }
}

/// A tap that is up, with its one queue.
fn tap_up(options: &TapOptions) -> (Tap, TapQueue) {
    let (tap, mut queues) = Tap::open(options).unwrap();
    assert!(tap.degraded().is_empty(), "{:?}", tap.degraded());
    tap.interface().set_up(true).unwrap();
    (tap, queues.pop().unwrap())
}

/// A frame on its way in, or as it was read.
struct Frame {
    bytes: Vec<u8>,
    checksum: Checksum,
}

fn frame(bytes: &[u8]) -> Frame {
    Frame { bytes: bytes.to_vec(), checksum: Checksum::Complete }
}

fn write(queue: &mut TapQueue, frames: &[Frame]) -> TxReport {
    let mut burst = FromTunnel::default();
    frames.iter().for_each(|frame| burst.push(&frame.bytes, frame.checksum));
    burst.write(queue)
}

/// The next frame that `wanted` picks; others (neighbour discovery, say) are passed over.
fn next_frame(queue: &mut TapQueue, wanted: impl Fn(&[u8]) -> bool) -> Frame {
    let pick = |bytes: &[u8], offload: Offload| {
        assert_eq!(offload.segmentation, None);
        wanted(bytes).then(|| Frame { bytes: bytes.to_vec(), checksum: offload.checksum })
    };
    read_frames(queue, 1, pick).remove(0)
}

/// A packet socket on `interface`: writes and reads whole frames of the experimental type.
fn packet_socket(interface: &Interface) -> Socket {
    let protocol = Protocol::from(i32::from(EXPERIMENTAL.0.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
    // SAFETY: `sockaddr_ll` is made of integers, for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = EXPERIMENTAL.0.to_be();
    address.sll_ifindex = interface.index().unwrap() as i32;
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a `sockaddr_ll` of the length given.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn experimental_frame(len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9];
    bytes.extend(EXPERIMENTAL.0.to_be_bytes());
    bytes.extend((0..len - bytes.len()).map(|n| (n * 7 + len) as u8));
    bytes
}

fn frame_lengths() -> impl Iterator<Item = usize> {
    let largest = MAX_TAP_MTU as usize + 14;
    (14..80).chain([255, 256, 1513, 1514, 1518, 1522, 4096, 9014, 32_768, largest - 1, largest])
}

#[test]
fn frames_of_every_length_cross_the_tap_byte_exact() {
    in_namespace(|| {
        let (tap, mut queue) =
            tap_up(&TapOptions { tap_mtu: Some(MAX_TAP_MTU), ..options("tap0") });
        let peer = packet_socket(tap.interface());
        let mut received = vec![0; MAX_TAP_FRAME_LEN];
        let mut bytes_total = 0;
        for len in frame_lengths() {
            let bytes = experimental_frame(len);
            let report = write(&mut queue, &[frame(&bytes)]);
            assert_eq!(report, TxReport { sent: 1, ..TxReport::default() }, "{len} bytes");
            let got = io::Read::read(&mut &peer, &mut received).unwrap();
            assert_eq!(received[..got], bytes, "kernel got {len} bytes");

            // A packet socket refuses to send a frame without payload.
            if len > 14 {
                peer.send(&bytes).unwrap();
                let is_ours = |data: &[u8]| data.get(12..14) == Some(&[0x88, 0xb5]);
                let back = next_frame(&mut queue, is_ours);
                assert_eq!(back.bytes, bytes, "tap gave {len} bytes");
                assert_eq!(back.checksum, Checksum::Complete);
            }
            bytes_total += len as u64;
        }
        let counters = &tap.counters()[0];
        assert_eq!(counters.tx_frames.get(), frame_lengths().count() as u64);
        assert_eq!(counters.tx_bytes.get(), bytes_total);
        assert_eq!(counters.rx_dropped_long.get(), 0);
        assert_eq!(counters.values().next(), Some(("rx_frames", counters.rx_frames.get())));
    });
}

#[test]
fn tagged_frames_keep_their_tags_in_the_frame() {
    in_namespace(|| {
        let (tap, mut queue) = tap_up(&options("tap0"));
        let peer = packet_socket(tap.interface());
        let mut bytes = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9];
        bytes.extend([0x88, 0xa8, 0x20, 5, 0x81, 0x00, 0x60, 7, 0x88, 0xb5]);
        bytes.extend([0xab; 100]);
        peer.send(&bytes).unwrap();
        let got = next_frame(&mut queue, |data| data.get(20..22) == Some(&[0x88, 0xb5]));
        assert_eq!(got.bytes, bytes);
        assert_eq!(EthernetView::new(&got.bytes).unwrap().vlan_tags(), 2);
    });
}

/// What the kernel does to the checksum of a UDP datagram that a local program sends.
fn udp_over_tap(local: &str, remote: &str, prefix_len: u8) {
    let (tap, mut queue) = tap_up(&options("tap0"));
    let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
    tap.interface().add_address(local, prefix_len).unwrap();
    tap.interface().add_address(local, prefix_len).unwrap();
    let found = interface_of(local).unwrap().unwrap();
    assert_eq!((found.name.as_str(), found.ip_mtu), ("tap0", 1500));
    assert!(local_addresses().unwrap().iter().any(|a| a.address == local && a.interface == "tap0"));

    let socket = UdpSocket::bind((local, 4000)).unwrap();
    // Answers neighbour discovery in place of a remote host: static entry by `ip neigh`.
    let status = std::process::Command::new("ip")
        .args(["neigh", "add", &remote.to_string(), "lladdr", "02:00:00:00:00:99", "dev", "tap0"])
        .status()
        .unwrap();
    assert!(status.success());
    socket.send_to(b"hello over the tap", (remote, 5000)).unwrap();

    let is_udp = |data: &[u8]| {
        let headers = PacketHeaders::from_ethernet_slice(data);
        matches!(headers.map(|h| h.transport), Ok(Some(TransportHeader::Udp(udp))) if udp.destination_port == 5000)
    };
    let mut got = next_frame(&mut queue, is_udp);
    let start = if local.is_ipv4() { 34 } else { 54 };
    assert_eq!(got.checksum, Checksum::Partial { start, offset: 6 });
    assert_eq!(tap.counters()[0].rx_partial_checksums.get(), 1);

    complete_checksum(&mut got.bytes, start, 6).unwrap();
    let headers = PacketHeaders::from_ethernet_slice(&got.bytes).unwrap();
    let (net, udp) = (headers.net.unwrap(), headers.transport.unwrap().udp().unwrap());
    let payload = headers.payload.slice();
    let expected = match net {
        etherparse::NetHeaders::Ipv4(ip, _) => udp.calc_checksum_ipv4(&ip, payload),
        etherparse::NetHeaders::Ipv6(ip, _) => udp.calc_checksum_ipv6(&ip, payload),
        etherparse::NetHeaders::Arp(_) => panic!("not ARP"),
    };
    assert_eq!(udp.checksum, expected.unwrap());

    tap.interface().remove_address(local, prefix_len).unwrap();
    tap.interface().remove_address(local, prefix_len).unwrap();
    assert_eq!(interface_of(local).unwrap(), None);
}

#[test]
fn checksum_of_local_udp_is_partial_ipv4() {
    in_namespace(|| udp_over_tap("10.9.0.1", "10.9.0.2", 24));
}

#[test]
fn checksum_of_local_udp_is_partial_ipv6() {
    in_namespace(|| udp_over_tap("fd00:9::1", "fd00:9::2", 64));
}

#[test]
fn partial_checksum_is_accepted_by_the_kernel_and_a_wrong_one_is_not() {
    in_namespace(|| {
        let (tap, mut queue) = tap_up(&options("tap0"));
        tap.interface().add_address("10.9.0.1".parse().unwrap(), 24).unwrap();
        let receiver = UdpSocket::bind("10.9.0.1:5000").unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let mac = tap.interface().mac().unwrap();
        let build = |payload: &[u8]| {
            let mut bytes = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], mac.0)
                .ipv4([10, 9, 0, 2], [10, 9, 0, 1], 64)
                .udp(4000, 5000)
                .write(&mut bytes, payload)
                .unwrap();
            bytes
        };
        let mut wrong = build(b"wrong");
        wrong[40] ^= 0x55;
        // The field of a partial checksum is not checked: any value in it passes.
        let mut partial = build(b"partial");
        partial[40] ^= 0x55;
        let checksum = Checksum::Partial { start: 34, offset: 6 };
        let partial = Frame { bytes: partial, checksum };
        let outside = Checksum::Partial { start: 34, offset: 600 };
        let lying = Frame { bytes: build(b"lying"), checksum: outside };
        let burst = [frame(&wrong), lying, partial, frame(&build(b"complete"))];
        let report = write(&mut queue, &burst);
        assert_eq!(report, TxReport { sent: 3, failed: 1, ..TxReport::default() });
        assert_eq!(tap.counters()[0].tx_dropped_malformed.get(), 1);

        let mut payload = [0; 64];
        for expected in [b"partial".as_slice(), b"complete"] {
            let len = receiver.recv(&mut payload).unwrap();
            assert_eq!(payload[..len], *expected);
        }
    });
}

#[test]
fn interface_is_set_up_as_asked() {
    in_namespace(|| {
        let (tap, _queues) =
            Tap::open(&TapOptions { tap_mtu: Some(1432), ..options("tap7") }).unwrap();
        let interface = tap.interface();
        assert_eq!(interface.name(), "tap7");
        assert_eq!(interface.tap_mtu().unwrap(), 1432);
        assert_eq!(interface.tx_queue_len().unwrap(), 4000);
        assert!(!interface.is_up().unwrap());
        let mac = MacAddr([2, 0, 0, 100, 0, 1]);
        interface.set_mac(mac).unwrap();
        assert_eq!(interface.mac().unwrap(), mac);
        assert!(interface.set_mac(MacAddr::BROADCAST).is_err());
        interface.set_tap_mtu(68).unwrap();
        assert!(interface.set_tap_mtu(MAX_TAP_MTU + 1).is_err());
        interface.set_up(true).unwrap();
        assert!(interface.is_up().unwrap());
        interface.set_up(false).unwrap();
        assert!(!interface.is_up().unwrap());
        assert!(interface.add_address("10.0.0.1".parse().unwrap(), 33).is_err());
    });
}

#[test]
fn tap_opens_exclusively_and_says_why_not() {
    in_namespace(|| {
        let (tap, queues) = Tap::open(&options("tap0")).unwrap();
        let error = Tap::open(&options("tap0")).unwrap_err();
        assert!(matches!(error, OpenError::Exists { .. }), "{error:?}");
        assert!(
            error.to_string().contains("tap0") && error.to_string().contains("existing = true")
        );

        let attach = TapOptions { existing: true, ..options("tap0") };
        let error = Tap::open(&attach).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");

        // Not persistent: it goes with its queues. A test beside this one that starts a program
        // holds copies of all descriptors from fork to exec.
        drop(queues);
        let deadline = Instant::now() + Duration::from_secs(5);
        while tap.interface().index().is_ok() {
            assert!(Instant::now() < deadline, "the tap is still there");
            std::thread::yield_now();
        }
        let error = Tap::open(&attach).unwrap_err();
        assert!(matches!(error, OpenError::Missing { .. }), "{error:?}");

        let error = Tap::open(&TapOptions { existing: true, ..options("lo") }).unwrap_err();
        assert!(matches!(error, OpenError::NotATap { .. }), "{error:?}");
        let error = Tap::open(&options("a-name-much-too-long")).unwrap_err();
        assert!(matches!(error, OpenError::InvalidName(_)), "{error:?}");
        let error = Tap::open(&TapOptions { queues: 0, ..options("tap0") }).unwrap_err();
        assert!(matches!(error, OpenError::QueueCount { .. }), "{error:?}");
    });
}

#[test]
fn without_the_capability_the_error_names_it() {
    in_namespace(|| {
        // SAFETY: changes the credentials of this thread only, by the plain system call (the
        // library's wrapper would change those of every thread); the thread ends with the test.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(changed, 0);
        let error = Tap::open(&options("tap0")).unwrap_err();
        // The device file decides which of the two doors is shut.
        assert!(
            matches!(error, OpenError::NotPermitted { .. } | OpenError::TunDeviceForbidden),
            "{error:?}"
        );
        assert!(error.to_string().contains("root"));
    });
}

/// Makes a persistent tap with the 10-byte header and every offload that older programs ask
/// for, then lets go of it.
fn stale_persistent_tap(name: &str, multi_queue: bool) {
    let mut arguments = vec!["tuntap", "add", name, "mode", "tap", "vnet_hdr"];
    arguments.extend(multi_queue.then_some("multi_queue"));
    let made = std::process::Command::new("ip").args(arguments).status().unwrap();
    assert!(made.success());
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: `ifreq` is made of integers and a null pointer, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(attached, 0, "{}", io::Error::last_os_error());
    let all = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: TUNSETOFFLOAD takes its mask by value.
    let set =
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(all)) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// Whether the interface has segmentation offload, by `ethtool`'s own call.
fn has_tso(interface: &str) -> bool {
    const ETHTOOL_GTSO: u32 = 0x1e;
    let mut value = [ETHTOOL_GTSO, 0];
    // SAFETY: `ifreq` is made of integers and a null pointer, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
    // SAFETY: SIOCETHTOOL with ETHTOOL_GTSO reads and writes two u32 behind `ifru_data`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value[1] != 0
}

#[test]
fn attaching_to_a_persistent_tap_resets_what_its_last_user_left() {
    in_namespace(|| {
        for (name, multi_queue) in [("ptap0", false), ("ptap1", true)] {
            stale_persistent_tap(name, multi_queue);
            assert!(has_tso(name), "{name}: the mask survives its user");
            let offload = OffloadSwitches::CHECKSUM;
            let (tap, mut queue) = tap_up(&TapOptions { existing: true, offload, ..options(name) });
            assert!(!has_tso(name), "{name}: attaching resets the mask");
            // The header is 12 bytes again: a frame passes unharmed.
            let peer = packet_socket(tap.interface());
            peer.send(&experimental_frame(60)).unwrap();
            let is_ours = |data: &[u8]| data.get(12..14) == Some(&[0x88, 0xb5]);
            let got = next_frame(&mut queue, is_ours);
            assert_eq!(got.bytes, experimental_frame(60));
            drop(queue);
            assert!(tap.interface().index().is_ok(), "{name}: persistent, it stays");
        }
    });
}

#[test]
fn every_queue_of_a_tap_works() {
    in_namespace(|| {
        let (tap, mut queues) = Tap::open(&TapOptions { queues: 3, ..options("tap0") }).unwrap();
        assert!(tap.degraded().is_empty());
        assert_eq!((queues.len(), tap.counters().len()), (3, 3));
        tap.interface().set_up(true).unwrap();
        let peer = packet_socket(tap.interface());
        let mut received = [0; 2048];
        for (index, queue) in queues.iter_mut().enumerate() {
            let bytes = experimental_frame(100 + index);
            assert_eq!(write(queue, &[frame(&bytes)]).sent, 1);
            let len = io::Read::read(&mut &peer, &mut received).unwrap();
            assert_eq!(received[..len], bytes);
            assert_eq!(tap.counters()[index].tx_frames.get(), 1);
        }
        // A persistent tap with one queue gives what it has.
        stale_persistent_tap("ptap0", false);
        let narrow = TapOptions { queues: 2, existing: true, ..options("ptap0") };
        let (tap, queues) = Tap::open(&narrow).unwrap();
        assert_eq!((queues.len(), tap.degraded().len()), (1, 1));
    });
}

#[test]
fn tap_that_is_down_or_gone() {
    in_namespace(|| {
        let (tap, mut queue) = tap_up(&options("tap0"));
        tap.interface().set_up(false).unwrap();
        let report = write(&mut queue, &[frame(&experimental_frame(60)), frame(&[1; 13])]);
        assert_eq!(report, TxReport { failed: 2, ..TxReport::default() });
        assert_eq!(tap.counters()[0].tx_dropped_down.get(), 1);
        assert_eq!(tap.counters()[0].tx_dropped_malformed.get(), 1);

        let deleted = std::process::Command::new("ip").args(["link", "del", "tap0"]).status();
        assert!(deleted.unwrap().success());
        let mut frames = FrameBurst::new(2 * MAX_SUPER_FRAME_LEN, 2);
        let error = queue.rx_burst(&mut frames).unwrap_err();
        assert!(error.to_string().contains("tap0 is gone"), "{error}");
        assert_eq!(write(&mut queue, &[frame(&experimental_frame(60))]).failed, 1);
        assert_eq!(tap.counters()[0].tx_dropped_refused.get(), 1);
    });
}
