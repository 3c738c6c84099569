//! What rtnetlink(7) says of interfaces, addresses and neighbours, as far as this crate asks.
//!
//! Of each message only the few attributes that matter are read. A decoder of all attributes
//! refuses the whole message for one that a newer kernel has grown, and a node would go deaf.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NlaBuffer, NlasIterator,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

/// Room for one datagram: the kernel makes none above 32 KiB for an answer.
const ROOM: usize = 64 << 10;
/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A list that changed while it was read is read again this often.
const MAX_READINGS: usize = 4;

/// Lengths of the fixed parts: `ifinfomsg`, `ifaddrmsg`, `ndmsg`.
const LINK_LEN: usize = 16;
const ADDRESS_LEN: usize = 8;
const NEIGHBOUR_LEN: usize = 12;

/// `IFLA_EXT_MASK` and the bit that leaves statistics out (linux/rtnetlink.h).
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `IFLA_INFO_SLAVE_KIND` (linux/if_link.h): the kind of the master.
const IFLA_INFO_SLAVE_KIND: u16 = 4;

/// `IFLA_GSO_IPV4_MAX_SIZE` (linux/if_link.h, Linux 6.3).
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Administratively up, with a carrier, and operational.
    pub(crate) up: bool,
    /// Bytes of the largest IP packet that it takes.
    pub(crate) mtu: u32,
    /// It has a master that passes frames on: any but a VRF.
    pub(crate) bridged: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    /// The interface.
    pub(crate) index: u32,
    pub(crate) prefix_len: u8,
}

/// What a neighbour's entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// It does not answer.
    Failed,
    /// Its link-layer address is known.
    Valid,
    /// It is being asked for.
    Asked,
    /// There is no entry any more.
    Gone,
}

/// One message, of those that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Link(Link),
    /// The interface of this number is gone.
    LinkGone(u32),
    /// An address, and whether it can be used: it is there, and no duplicate is being looked for.
    Address(Address, bool),
    /// A neighbour at an address behind an interface.
    Neighbour(IpAddr, u32, Neighbour),
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    v4().or_else(v6)
}

/// A name, which ends with a zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// The attributes behind the first `fixed` bytes, up to the first malformed one.
fn attributes(payload: &[u8], fixed: usize) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(fixed..).unwrap_or_default()).map_while(Result::ok)
}

impl Link {
    fn decode(payload: &[u8]) -> Option<Self> {
        let index = u32_at(payload, 4)?;
        // IFF_RUNNING is the operational state: not dormant, no lower layer down.
        let needed = libc::IFF_UP | libc::IFF_LOWER_UP | libc::IFF_RUNNING;
        let up = u32_at(payload, 8)? & needed.cast_unsigned() == needed.cast_unsigned();
        let (mut name, mut mtu, mut master, mut vrf) = (None, None, false, false);
        for attribute in attributes(payload, LINK_LEN) {
            match attribute.kind() {
                libc::IFLA_IFNAME => name = Some(text(attribute.value())),
                libc::IFLA_MTU => mtu = u32_at(attribute.value(), 0),
                libc::IFLA_MASTER => master = u32_at(attribute.value(), 0).is_some_and(|n| n != 0),
                libc::IFLA_LINKINFO => {
                    vrf = attributes(attribute.value(), 0).any(|info| {
                        info.kind() == IFLA_INFO_SLAVE_KIND && text(info.value()) == "vrf"
                    });
                }
                _ => {}
            }
        }
        Some(Self { index, name: name?, up, mtu: mtu?, bridged: master && !vrf })
    }
}

fn decode_address(payload: &[u8], present: bool) -> Option<Message> {
    let (prefix_len, short_flags) = (*payload.get(1)?, *payload.get(2)?);
    let index = u32_at(payload, 4)?;
    let (mut local, mut address, mut flags) = (None, None, u32::from(short_flags));
    for attribute in attributes(payload, ADDRESS_LEN) {
        match attribute.kind() {
            // The other end's on a point-to-point interface, where IFA_LOCAL is ours.
            libc::IFA_ADDRESS => address = ip(attribute.value()),
            libc::IFA_LOCAL => local = ip(attribute.value()),
            libc::IFA_FLAGS => flags = u32_at(attribute.value(), 0)?,
            _ => {}
        }
    }
    // While duplicates are looked for nothing can be bound to it (RFC 4862), unless optimistic.
    let tentative = flags & libc::IFA_F_TENTATIVE != 0 && flags & libc::IFA_F_OPTIMISTIC == 0;
    let usable = present && !tentative && flags & libc::IFA_F_DADFAILED == 0;
    Some(Message::Address(Address { ip: local.or(address)?, index, prefix_len }, usable))
}

fn decode_neighbour(payload: &[u8], present: bool) -> Option<Message> {
    let family = i32::from(*payload.first()?);
    let (index, state, flags) = (u32_at(payload, 4)?, u16_at(payload, 8)?, *payload.get(10)?);
    // Neither bridges' stations nor addresses that we answer for.
    if ![libc::AF_INET, libc::AF_INET6].contains(&family) || flags & libc::NTF_PROXY != 0 {
        return None;
    }
    let valid = libc::NUD_REACHABLE
        | libc::NUD_STALE
        | libc::NUD_DELAY
        | libc::NUD_PROBE
        | libc::NUD_PERMANENT
        | libc::NUD_NOARP;
    let state = match state {
        _ if !present => Neighbour::Gone,
        state if state & libc::NUD_FAILED != 0 => Neighbour::Failed,
        state if state & valid != 0 => Neighbour::Valid,
        _ => Neighbour::Asked,
    };
    let mut all = attributes(payload, NEIGHBOUR_LEN);
    let remote = all.find(|attribute| attribute.kind() == libc::NDA_DST)?;
    Some(Message::Neighbour(ip(remote.value())?, index, state))
}

fn decode(kind: u16, payload: &[u8]) -> Option<Message> {
    // Bridges tell of their ports in the same group: one that leaves a bridge is not gone.
    let of_links = payload.first() == Some(&(libc::AF_UNSPEC as u8));
    match kind {
        libc::RTM_NEWLINK if of_links => Link::decode(payload).map(Message::Link),
        libc::RTM_DELLINK if of_links => u32_at(payload, 4).map(Message::LinkGone),
        libc::RTM_NEWADDR => decode_address(payload, true),
        libc::RTM_DELADDR => decode_address(payload, false),
        libc::RTM_NEWNEIGH => decode_neighbour(payload, true),
        libc::RTM_DELNEIGH => decode_neighbour(payload, false),
        _ => None,
    }
}

/// Netlink messages of one datagram, up to the first malformed one.
fn packets(mut datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let packet = NetlinkBuffer::new_checked(datagram).ok()?;
        let len = (packet.length() as usize).next_multiple_of(4);
        datagram = datagram.get(len..).unwrap_or_default();
        Some(packet)
    })
}

/// The messages of one datagram that matter.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message> {
    packets(datagram).filter_map(|packet| decode(packet.message_type(), packet.payload()))
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    Links,
    Addresses,
    Neighbours,
}

/// What one answer to a request came to.
enum Answer {
    /// To be continued.
    More,
    Done,
}

/// The way to ask the kernel; bound to the network namespace that it was made in.
pub(crate) struct Asker {
    socket: Socket,
    sequence: u32,
    room: Vec<u8>,
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Asker {
    /// # Errors
    /// Out of descriptors.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // The kernel's: nobody else's datagrams are taken.
        socket.connect(&SocketAddr::new(0, 0))?;
        SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0, room: vec![0; ROOM] })
    }

    /// All there is of a kind. May wait for whoever changes interfaces at the moment.
    ///
    /// # Errors
    /// The kernel's, or it does not answer.
    pub(crate) fn list(&mut self, list: List) -> io::Result<Vec<Message>> {
        let (kind, fixed) = match list {
            List::Links => (libc::RTM_GETLINK, LINK_LEN),
            List::Addresses => (libc::RTM_GETADDR, ADDRESS_LEN),
            List::Neighbours => (libc::RTM_GETNEIGH, NEIGHBOUR_LEN),
        };
        let mut body = vec![0; fixed];
        if list == List::Links {
            push_attribute(&mut body, libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        }
        let mut found = Vec::new();
        for _ in 0..MAX_READINGS {
            found.clear();
            if self.ask(kind, NLM_F_REQUEST | NLM_F_DUMP, &body, &mut found)? {
                break;
            }
        }
        Ok(found)
    }

    /// The interface of that name; None if there is none.
    ///
    /// # Errors
    /// The kernel's, or it does not answer.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut body = vec![0; LINK_LEN];
        push_attribute(&mut body, libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        push_attribute(&mut body, libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        let mut found = Vec::new();
        match self.ask(libc::RTM_GETLINK, NLM_F_REQUEST, &body, &mut found) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(found.into_iter().find_map(|message| match message {
                Message::Link(link) => Some(link),
                _ => None,
            })),
        }
    }

    /// Sets how long super-frames for an interface become at most, in bytes. A kernel that does
    /// not know IPv4's own limit takes that of IPv6 for both.
    ///
    /// # Errors
    /// The kernel's, or it does not answer.
    pub(crate) fn set_gso_max_size(&mut self, index: u32, ipv4: u32, ipv6: u32) -> io::Result<()> {
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        body.resize(LINK_LEN, 0);
        push_attribute(&mut body, libc::IFLA_GSO_MAX_SIZE, &ipv6.to_ne_bytes());
        push_attribute(&mut body, IFLA_GSO_IPV4_MAX_SIZE, &ipv4.to_ne_bytes());
        self.ask(libc::RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, &body, &mut Vec::new()).map(drop)
    }

    /// Sends one request and adds its answer to `found`; says whether that is consistent.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        found: &mut Vec<Message>,
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request(kind, flags, self.sequence, body), 0)?;
        let mut consistent = true;
        loop {
            let len = match receive(&self.socket, &mut self.room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            for packet in packets(self.room.get(..len).unwrap_or_default()) {
                // What is left of a request that was given up.
                if packet.sequence_number() != self.sequence {
                    continue;
                }
                consistent &= packet.flags() & NLM_F_DUMP_INTR == 0;
                if let Answer::Done = take(&packet, flags, found)? {
                    return Ok(consistent);
                }
            }
        }
    }
}

/// Takes one message of an answer.
fn take(packet: &NetlinkBuffer<&[u8]>, flags: u16, found: &mut Vec<Message>) -> io::Result<Answer> {
    let kind = packet.message_type();
    if kind == NLMSG_DONE || kind == NLMSG_ERROR {
        // Both begin with the negated error number, 0 for success.
        let number = u32_at(packet.payload(), 0).map_or(0, u32::cast_signed);
        return match number {
            0 => Ok(Answer::Done),
            number => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        };
    }
    found.extend(decode(kind, packet.payload()));
    // One that asks for a single object gets a single message.
    if flags & NLM_F_DUMP == NLM_F_DUMP { Ok(Answer::More) } else { Ok(Answer::Done) }
}

/// Receives one datagram and gives its length.
///
/// # Errors
/// The kernel's; [`libc::ENOBUFS`] also for one that is longer than `room`.
pub(crate) fn receive(socket: &Socket, room: &mut [u8]) -> io::Result<usize> {
    let len = room.len();
    let (received, from) = socket.recv_from(&mut &mut *room, libc::MSG_TRUNC)?;
    if received > len {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    // Another program needs CAP_NET_ADMIN to write to us, but has nothing to say.
    Ok(if from.port_number() == 0 { received } else { 0 })
}

/// `nlmsghdr` and what follows, in native byte order.
fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 16 + body.len()];
    let mut header = NetlinkBuffer::new(&mut message);
    header.set_length(16 + body.len() as u32);
    header.set_message_type(kind);
    header.set_flags(flags);
    header.set_sequence_number(sequence);
    header.payload_mut().copy_from_slice(body);
    message
}

fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link_message(kind: u16, family: i32, flags: i32, slave_of: Option<&str>) -> Vec<u8> {
        let mut body = vec![family as u8, 0];
        body.extend(1_u16.to_ne_bytes());
        body.extend(7_u32.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        push_attribute(&mut body, libc::IFLA_IFNAME, b"eth7\0");
        push_attribute(&mut body, 0x3fff, b"of the future");
        push_attribute(&mut body, libc::IFLA_MTU, &9000_u32.to_ne_bytes());
        if let Some(of) = slave_of {
            push_attribute(&mut body, libc::IFLA_MASTER, &3_u32.to_ne_bytes());
            let mut info = Vec::new();
            push_attribute(&mut info, IFLA_INFO_SLAVE_KIND, &[of.as_bytes(), &[0]].concat());
            push_attribute(&mut body, libc::IFLA_LINKINFO, &info);
        }
        request(kind, 0, 1, &body)
    }

    fn link(flags: i32, slave_of: Option<&str>) -> Link {
        let bytes = link_message(libc::RTM_NEWLINK, libc::AF_UNSPEC, flags, slave_of);
        let found: Vec<_> = messages(&bytes).collect();
        let [Message::Link(link)] = found.as_slice() else { panic!("{found:?}") };
        link.clone()
    }

    #[test]
    fn links_are_up_when_they_carry() {
        let (up, lower, running) = (libc::IFF_UP, libc::IFF_LOWER_UP, libc::IFF_RUNNING);
        let whole = link(up | lower | running, None);
        let name = "eth7".to_owned();
        assert_eq!(whole, Link { index: 7, name, up: true, mtu: 9000, bridged: false });
        for part in [0, up, up | lower, up | running, lower | running] {
            assert!(!link(part, None).up, "{part:#x}");
        }
    }

    #[test]
    fn bridged_links_have_a_master_that_passes_frames_on() {
        assert!(link(0, Some("bridge")).bridged);
        assert!(link(0, Some("openvswitch")).bridged);
        assert!(!link(0, Some("vrf")).bridged);
    }

    #[test]
    fn leaving_a_bridge_is_not_the_end_of_a_link() {
        let of_bridge = link_message(libc::RTM_DELLINK, libc::AF_BRIDGE, 0, None);
        assert_eq!(messages(&of_bridge).count(), 0);
        let end = link_message(libc::RTM_DELLINK, libc::AF_UNSPEC, 0, None);
        let both = [of_bridge, end].concat();
        assert_eq!(messages(&both).collect::<Vec<_>>(), [Message::LinkGone(7)]);
    }

    fn address_message(flags: u32, attributes: &[(u16, &[u8])]) -> Vec<Message> {
        let mut body = vec![libc::AF_INET as u8, 24, 0, 0];
        body.extend(3_u32.to_ne_bytes());
        push_attribute(&mut body, libc::IFA_FLAGS, &flags.to_ne_bytes());
        for (kind, value) in attributes {
            push_attribute(&mut body, *kind, value);
        }
        messages(&request(libc::RTM_NEWADDR, 0, 1, &body)).collect()
    }

    #[test]
    fn own_address_is_the_local_one_and_usable_without_duplicates() {
        let own: &[u8] = &[192, 0, 2, 1];
        let other: &[u8] = &[192, 0, 2, 2];
        let address = Address { ip: [192, 0, 2, 1].into(), index: 3, prefix_len: 24 };
        let both = [(libc::IFA_ADDRESS, other), (libc::IFA_LOCAL, own)];
        assert_eq!(address_message(0, &both), [Message::Address(address, true)]);
        for (flags, usable) in [
            (libc::IFA_F_PERMANENT, true),
            (libc::IFA_F_TENTATIVE, false),
            (libc::IFA_F_TENTATIVE | libc::IFA_F_OPTIMISTIC, true),
            (libc::IFA_F_DADFAILED, false),
        ] {
            let found = address_message(flags, &[(libc::IFA_ADDRESS, own)]);
            assert_eq!(found, [Message::Address(address, usable)], "{flags:#x}");
        }
    }

    #[test]
    fn kernel_lists_the_loopback_interface() {
        let mut asker = Asker::open().unwrap();
        let lo = asker.link("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.bridged), ("lo", false));
        assert_eq!(asker.link("no-such-if").unwrap(), None);
        assert!(asker.list(List::Links).unwrap().contains(&Message::Link(lo)));
        asker.list(List::Addresses).unwrap();
        asker.list(List::Neighbours).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(kind in 16_u16..32, body in prop::collection::vec(any::<u8>(), 0..200)) {
            // A whole message of a kind that is decoded, and the bytes by themselves.
            prop_assert!(messages(&request(kind, 0, 1, &body)).count() <= 1);
            prop_assert!(messages(&body).count() <= body.len() / 16);
        }

        #[test]
        fn cut_messages_are_taken(len in 0_usize..120) {
            let whole = link_message(libc::RTM_NEWLINK, libc::AF_UNSPEC, 0, Some("bridge"));
            let part = whole.get(..len.min(whole.len())).unwrap_or_default();
            prop_assert_eq!(messages(part).count(), usize::from(part.len() == whole.len()));
        }
    }
}
