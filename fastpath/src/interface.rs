//! Network interfaces of the current network namespace: what a tap's set-up and the uplinks
//! need to know and to change. CAP_NET_ADMIN suffices for every change.
//!
//! Simple values go by `ioctl`. Addresses go by rtnetlink, since the old calls know one IPv4
//! address per interface only and cannot skip duplicate address detection.

use std::ffi::CStr;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use encap::wire::ethernet::{ETHERNET_HEADER_LEN, MacAddr};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netlink::Asker;

/// Longest interface name, in bytes.
pub const MAX_NAME_LEN: usize = libc::IFNAMSIZ - 1;

/// Bytes of the headers, without options.
const IPV4_HEADER_LEN: u32 = 20;
const IPV6_HEADER_LEN: u32 = 40;
const TCP_HEADER_LEN: u32 = 20;
/// Most UDP payload, in bytes, and most segments that leave in one send (udp(7), `UDP_SEGMENT`).
const MAX_RUN_LEN: u32 = 65_535 - 20 - 8;
const MAX_RUN_SEGMENTS: u32 = 64;
/// What the kernel takes off `gso_max_size` for headers, at most: MAX_TCP_HEADER + 1.
const KERNEL_RESERVE: u32 = 321;
/// The largest `gso_max_size` without packets beyond 64 KiB.
const MAX_GSO_SIZE: u32 = 65_536;

/// Whether the kernel would take `name` for an interface as it stands.
///
/// `%` is excluded as well: the kernel takes it for a pattern.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name != "."
        && name != ".."
        && !name.contains(forbidden)
}

/// A request block that names an interface.
///
/// # Errors
/// The name is not usable.
pub(crate) fn request_for(name: &str) -> io::Result<libc::ifreq> {
    if !is_valid_name(name) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: `ifreq` is made of integers and a null pointer, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// An existing interface, to be asked and changed.
#[derive(Debug)]
pub struct Interface {
    name: String,
    /// Bytes that frames from it grow by before they are a UDP payload; see
    /// [`Self::limit_super_frames`].
    super_frame_overhead: Option<u32>,
    /// Carries the calls; bound to the network namespace that it was made in.
    socket: Socket,
}

impl Interface {
    /// The interface of that name in the current network namespace.
    ///
    /// # Errors
    /// There is none ([`io::ErrorKind::NotFound`]), or no socket can be made.
    pub fn open(name: &str) -> io::Result<Self> {
        // A UNIX socket serves, also on kernels that lack one of the IP versions.
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
        let interface = Self { name: name.to_owned(), super_frame_overhead: None, socket };
        match interface.index() {
            Ok(_) => Ok(interface),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no interface {name}"),
            )),
            Err(error) => Err(error),
        }
    }

    /// The interface of that number in the current network namespace.
    ///
    /// # Errors
    /// There is none, or no socket can be made.
    pub fn of_index(index: u32) -> io::Result<Self> {
        let mut name = [0_u8; libc::IF_NAMESIZE];
        // SAFETY: the call writes at most IF_NAMESIZE bytes, zero byte included, to `name`.
        let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
        if found.is_null() {
            return Err(io::Error::last_os_error());
        }
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Self::open(&String::from_utf8_lossy(name))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn index(&self) -> io::Result<u32> {
        let request = self.call(libc::SIOCGIFINDEX, |_| ())?;
        // SAFETY: SIOCGIFINDEX fills this member.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex }.cast_unsigned())
    }

    /// Whether it is administratively up.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn is_up(&self) -> io::Result<bool> {
        Ok(i32::from(self.flags()?) & libc::IFF_UP != 0)
    }

    /// Whether it is up and has a carrier (`IFF_RUNNING`).
    ///
    /// # Errors
    /// The interface is gone.
    pub fn is_running(&self) -> io::Result<bool> {
        let both = libc::IFF_UP | libc::IFF_RUNNING;
        Ok(i32::from(self.flags()?) & both == both)
    }

    /// Sets it administratively up or down.
    ///
    /// # Errors
    /// The interface is gone or CAP_NET_ADMIN is missing.
    pub fn set_up(&self, up: bool) -> io::Result<()> {
        let iff_up = libc::IFF_UP as libc::c_short;
        let old = self.flags()?;
        let new = if up { old | iff_up } else { old & !iff_up };
        if new == old {
            return Ok(());
        }
        self.call(libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = new).map(drop)
    }

    /// Bytes of the largest IP packet that it takes, without the Ethernet header.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn tap_mtu(&self) -> io::Result<u32> {
        let request = self.call(libc::SIOCGIFMTU, |_| ())?;
        // SAFETY: SIOCGIFMTU fills this member.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.cast_unsigned())
    }

    /// Sets the bytes of the largest IP packet that it takes (a tap: 68 to 65,521).
    ///
    /// # Errors
    /// The value is out of range, the interface is gone or CAP_NET_ADMIN is missing.
    pub fn set_tap_mtu(&self, tap_mtu: u32) -> io::Result<()> {
        let value = to_c_int(tap_mtu)?;
        self.call(libc::SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = value)?;
        if let Err(error) = self.fit_super_frames() {
            log::debug!("{}: the length of super-frames stays as it was: {error}", self.name);
        }
        Ok(())
    }

    /// Has the kernel make TCP super-frames for it that leave the node in one run of datagrams
    /// (`gso_max_size`), each frame of which has `overhead` bytes more as a UDP payload than as an
    /// Ethernet frame. Follows later changes of the MTU that are made here.
    ///
    /// Of super-frames that others made and this kernel only forwards, it cuts those above the
    /// limit into single frames, which costs far more than a second run: an interface in a bridge
    /// gets no limit, and one whose node routes for others should get none.
    ///
    /// # Errors
    /// The interface is gone, CAP_NET_ADMIN is missing, or the kernel does not know how.
    pub fn limit_super_frames(&mut self, overhead: u32) -> io::Result<()> {
        self.super_frame_overhead = Some(overhead);
        self.fit_super_frames().inspect_err(|_| self.super_frame_overhead = None)
    }

    /// Does again what [`Self::limit_super_frames`] did, if it was called: for an interface that has
    /// become the port of a bridge, or is one no more.
    ///
    /// # Errors
    /// As there.
    pub fn fit_super_frames(&self) -> io::Result<()> {
        let Some(overhead) = self.super_frame_overhead else { return Ok(()) };
        let (mut ipv4, mut ipv6) = (MAX_GSO_SIZE, MAX_GSO_SIZE);
        if !is_bridged(&self.name) {
            let tap_mtu = self.tap_mtu()?;
            ipv4 = super_frame_limit(tap_mtu, IPV4_HEADER_LEN, overhead);
            ipv6 = super_frame_limit(tap_mtu, IPV6_HEADER_LEN, overhead);
        }
        Asker::open()?.set_gso_max_size(self.index()?, ipv4, ipv6)
    }

    /// Its Ethernet address.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn mac(&self) -> io::Result<MacAddr> {
        let request = self.call(libc::SIOCGIFHWADDR, |_| ())?;
        // SAFETY: SIOCGIFHWADDR fills this member.
        let [a, b, c, d, e, f, ..] = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        Ok(MacAddr([a, b, c, d, e, f].map(|byte| byte as u8)))
    }

    /// Sets its Ethernet address.
    ///
    /// # Errors
    /// A group or zero address, the interface is gone or CAP_NET_ADMIN is missing.
    pub fn set_mac(&self, mac: MacAddr) -> io::Result<()> {
        let mut data = [0; 14];
        for (to, from) in data.iter_mut().zip(mac.0) {
            *to = from as libc::c_char;
        }
        let address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
        self.call(libc::SIOCSIFHWADDR, |request| request.ifr_ifru.ifru_hwaddr = address).map(drop)
    }

    /// Packets that wait at most in each of its transmit queues: for a tap, unread frames.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn tx_queue_len(&self) -> io::Result<u32> {
        let request = self.call(libc::SIOCGIFTXQLEN, |_| ())?;
        // SAFETY: SIOCGIFTXQLEN fills ifr_qlen, the kernel's name for this same int.
        Ok(unsafe { request.ifr_ifru.ifru_metric }.cast_unsigned())
    }

    /// Sets the packets that wait at most in each transmit queue.
    ///
    /// # Errors
    /// The value is out of range, the interface is gone or CAP_NET_ADMIN is missing.
    pub fn set_tx_queue_len(&self, packets: u32) -> io::Result<()> {
        let value = to_c_int(packets)?;
        self.call(libc::SIOCSIFTXQLEN, |request| request.ifr_ifru.ifru_metric = value).map(drop)
    }

    /// Gives it an address; one that it has already is no error.
    ///
    /// Duplicate address detection is skipped for IPv6: the address is usable at once.
    ///
    /// # Errors
    /// The prefix length is out of range, the interface is gone or CAP_NET_ADMIN is missing.
    pub fn add_address(&self, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        change_address(libc::RTM_NEWADDR, flags, self.index()?, address, prefix_len)
    }

    /// Takes an address from it; one that it does not have is no error.
    ///
    /// # Errors
    /// The interface is gone or CAP_NET_ADMIN is missing.
    pub fn remove_address(&self, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        match change_address(libc::RTM_DELADDR, 0, self.index()?, address, prefix_len) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            result => result,
        }
    }

    fn flags(&self) -> io::Result<libc::c_short> {
        let request = self.call(libc::SIOCGIFFLAGS, |_| ())?;
        // SAFETY: SIOCGIFFLAGS fills this member.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    fn call(
        &self,
        number: libc::Ioctl,
        fill: impl FnOnce(&mut libc::ifreq),
    ) -> io::Result<libc::ifreq> {
        let mut request = request_for(&self.name)?;
        fill(&mut request);
        // SAFETY: every number passed to this private function is a SIOC[GS]IF* call, which
        // reads and writes one `ifreq`; `request` is one, alive and exclusively ours.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), number, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
    }
}

/// What the kernel is to take for the length of the largest super-frame, in bytes.
///
/// The largest number of whole segments is looked for that leave as one run: at most 64, and no more
/// UDP payload than an IPv4 packet holds. The kernel sets its own reserve aside from what it is
/// told before it divides by the payload of a segment.
fn super_frame_limit(tap_mtu: u32, ip_header_len: u32, overhead: u32) -> u32 {
    let datagram = tap_mtu.saturating_add(ETHERNET_HEADER_LEN as u32).saturating_add(overhead);
    let segments = (MAX_RUN_LEN / datagram.max(1)).clamp(1, MAX_RUN_SEGMENTS);
    let payload = tap_mtu.saturating_sub(ip_header_len + TCP_HEADER_LEN);
    segments.saturating_mul(payload).saturating_add(KERNEL_RESERVE).min(MAX_GSO_SIZE)
}

fn to_c_int(value: u32) -> io::Result<libc::c_int> {
    libc::c_int::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Sends one RTM_NEWADDR or RTM_DELADDR (rtnetlink(7)) and waits for the kernel's answer.
fn change_address(
    kind: u16,
    flags: libc::c_int,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> io::Result<()> {
    let max_prefix_len = if address.is_ipv4() { 32 } else { 128 };
    if prefix_len > max_prefix_len {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("prefix length {prefix_len} of {address} is above {max_prefix_len}"),
        ));
    }
    let message = address_message(kind, flags, index, address, prefix_len);
    let protocol = Protocol::from(libc::NETLINK_ROUTE);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(&message)?;

    // NLMSG_ERROR: 16 bytes of header, then the negated error number, 0 for success.
    let mut answer = [0; 1024];
    let len = (&socket).read(&mut answer)?;
    let error: Option<&[u8; 4]> = answer.get(16..len).and_then(<[u8]>::first_chunk);
    match error.map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// `nlmsghdr`, `ifaddrmsg` and the attributes, in native byte order.
fn address_message(
    kind: u16,
    flags: libc::c_int,
    index: u32,
    address: IpAddr,
    prefix_len: u8,
) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut attributes = Vec::new();
    let mut attribute = |number: u16, value: &[u8]| {
        // Values are 4 or 16 bytes: no padding is needed.
        attributes.extend((4 + value.len() as u16).to_ne_bytes());
        attributes.extend(number.to_ne_bytes());
        attributes.extend(value);
    };
    attribute(libc::IFA_LOCAL, &octets);
    attribute(libc::IFA_ADDRESS, &octets);
    if let (IpAddr::V4(address), true) = (address, prefix_len < 31) {
        let broadcast = address.to_bits() | u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
        attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
    }
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
    let mut message = Vec::new();
    message.extend((24 + attributes.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, one answer
    let no_detection = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    message.extend([family as u8, prefix_len, no_detection, libc::RT_SCOPE_UNIVERSE]);
    message.extend(index.to_ne_bytes());
    message.extend(attributes);
    message
}

/// An address of this node and the interface that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// The interface's name.
    pub interface: String,
}

/// Every IP address of the current network namespace.
///
/// # Errors
/// The kernel does not answer.
pub fn local_addresses() -> io::Result<Vec<LocalAddress>> {
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: `list` is a place for the head of the list.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: `next` is null or an entry of the list, which lives until `freeifaddrs` below.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: `ifa_addr` is null or points to an address whose size follows from its
        // family, as getifaddrs(3) lays it out.
        let Some(address) = (unsafe { ip_of(entry.ifa_addr) }) else { continue };
        // SAFETY: `ifa_name` is a terminated string of the same entry.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        found.push(LocalAddress { address, interface: name.to_string_lossy().into_owned() });
    }
    // SAFETY: `list` came from `getifaddrs` and is freed once; nothing points into it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// The IP address that `address` points to, if it is one.
///
/// # Safety
/// Null, or a readable `sockaddr` followed by as many bytes as its family has.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: by contract null or readable.
    let family = i32::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: the family says that a `sockaddr_in` is there; it may be unaligned.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that a `sockaddr_in6` is there; it may be unaligned.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// The interface behind an underlay address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayInterface {
    /// Its name.
    pub name: String,
    /// Bytes of the largest IP packet that it takes.
    pub ip_mtu: u32,
}

/// The interface that has `address`, if this node has it.
///
/// # Errors
/// The kernel does not answer.
pub fn interface_of(address: IpAddr) -> io::Result<Option<UnderlayInterface>> {
    let all = local_addresses()?;
    let Some(found) = all.into_iter().find(|local| local.address == address) else {
        return Ok(None);
    };
    // An IPv4 alias carries a label "name:label"; the interface is what stands before it.
    let name = found.interface.split(':').next().unwrap_or_default().to_owned();
    let ip_mtu = Interface::open(&name)?.tap_mtu()?;
    Ok(Some(UnderlayInterface { name, ip_mtu }))
}

/// Whether the interface of that name is a port of something that passes its frames on: a bridge,
/// Open vSwitch, a bond, any master but a VRF. False too if there is no such interface, or the
/// kernel does not say.
#[must_use]
pub fn is_bridged(name: &str) -> bool {
    let link = || Asker::open().and_then(|mut asker| asker.link(name));
    is_valid_name(name) && link().ok().flatten().is_some_and(|link| link.bridged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_kernel() {
        for good in ["tap100", "a", "vm.7", "fifteen-bytes-x"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", ".", "..", "sixteen-bytes-xx", "a b", "a/b", "tap%d", "eth0:1", "a\n"] {
            assert!(!is_valid_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn address_message_is_what_iproute_sends() {
        let address = "10.1.2.3".parse().unwrap();
        let message = address_message(libc::RTM_NEWADDR, 0, 7, address, 24);
        assert_eq!(message.len(), 16 + 8 + 3 * 8);
        assert_eq!(message[0..4], 48_u32.to_ne_bytes());
        assert_eq!(message[16..20], [2, 24, 0, 0]);
        assert_eq!(message[44..48], [10, 1, 2, 255]);
        let address = "fd00::1".parse().unwrap();
        let message = address_message(libc::RTM_NEWADDR, 0, 7, address, 64);
        assert_eq!(message.len(), 16 + 8 + 2 * 20);
        assert_eq!(message[16..20], [10, 64, 2, 0]);
    }

    #[test]
    fn super_frame_is_as_long_as_one_run_of_datagrams() {
        for (tap_mtu, segments) in [(1500, 42), (1400, 45), (9000, 7), (576, 64), (65_521, 1)] {
            for header_len in [IPV4_HEADER_LEN, IPV6_HEADER_LEN] {
                let limit = super_frame_limit(tap_mtu, header_len, 26);
                let payload = tap_mtu - header_len - TCP_HEADER_LEN;
                // With less of a reserve, as other builds of the kernel have it, too.
                for reserve in [257, KERNEL_RESERVE] {
                    assert_eq!(((limit - reserve) / payload).max(1), segments, "{tap_mtu}");
                }
                assert!(limit <= MAX_GSO_SIZE);
            }
        }
        assert_eq!(super_frame_limit(0, IPV6_HEADER_LEN, 0), KERNEL_RESERVE);
        assert_eq!(super_frame_limit(u32::MAX, IPV6_HEADER_LEN, u32::MAX), MAX_GSO_SIZE);
    }

    #[test]
    fn missing_interface_is_not_found() {
        let error = Interface::open("no-such-if").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn address_of_nobody_has_no_interface() {
        assert_eq!(interface_of("203.0.113.213".parse().unwrap()).unwrap(), None);
    }
}
