//! A trial of a tap: super-frames of TCP and UDP through it, both ways.
//!
//! In a network namespace of its own the kernel is one end, at 198.18.0.1 (RFC 2544), and this
//! file the other, behind the tap at 198.18.0.2: it answers a connection by hand.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use encap::wire::buf::{Checksum, FrameBurst, OutFrame, PacketBuf, Pieces, Span};
use encap::wire::checksum::{TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, complete_checksum};
use socket2::{Domain, Socket, Type};

use super::Passage;
use crate::error::OpenError;
use crate::port::FramePort;
use crate::tap::{Degraded, OffloadSwitches, Tap, TapOptions, TapQueue};
use crate::uplink::socket::set_int;
use crate::wake::PollSet;

/// Addresses of the kernel's end and of ours.
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Our port.
const FAR_PORT: u16 = 9;
/// What goes across, in each direction: segments of so many bytes each.
const SEGMENTS: usize = 8;
const SEGMENT_LEN: usize = 1000;
/// How long to wait for each step; a step takes microseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where the L4 header is in a frame without tags and options.
const L4: usize = 34;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// TCP flags (RFC 9293 section 3.1).
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Sequence number that our end begins with.
const FAR_SEQUENCE: u32 = 1_000_000;

/// What a tap turned out to do.
#[derive(Debug)]
pub struct TapTrial {
    /// What the kernel granted.
    pub granted: OffloadSwitches,
    /// What the tap has to do without.
    pub degraded: Vec<Degraded>,
    /// Whether it can have several queues.
    pub multi_queue: bool,
    /// TCP from the kernel; None if the trial could not go so far.
    pub tcp_out: Option<Passage>,
    /// TCP to the kernel.
    pub tcp_in: Option<Passage>,
    /// UDP from the kernel.
    pub udp_out: Option<Passage>,
    /// UDP to the kernel.
    pub udp_in: Option<Passage>,
    /// Why the trial of packets ended early.
    pub trouble: Option<String>,
}

/// Makes a tap of that name, which must not exist, and removes it. With `traffic` packets go
/// through it: only in a namespace of its own, see [`super::in_private_namespace`].
///
/// # Errors
/// See [`OpenError`].
pub fn try_tap(name: &str, traffic: bool) -> Result<TapTrial, OpenError> {
    let options = TapOptions {
        name: name.to_owned(),
        queues: 2,
        existing: false,
        tap_mtu: Some(1500),
        offload: OffloadSwitches::ALL,
        super_frame_overhead: Some(26),
    };
    let multi_queue = Tap::open(&options)?.1.len() == 2;
    let (tap, queues) = Tap::open(&TapOptions { queues: 1, ..options })?;
    let mut trial = TapTrial {
        granted: tap.offload().granted(),
        degraded: tap.degraded().to_vec(),
        multi_queue,
        tcp_out: None,
        tcp_in: None,
        udp_out: None,
        udp_in: None,
        trouble: None,
    };
    if let (true, Some(queue)) = (traffic, queues.into_iter().next()) {
        let outcome = Far::new(&tap, queue).and_then(|mut far| far.run(&mut trial));
        trial.trouble = outcome.err().map(|error| error.to_string());
    }
    Ok(trial)
}

/// Our end.
struct Far {
    queue: TapQueue,
    near_mac: [u8; 6],
    burst: FrameBurst,
}

/// What came out of the tap.
struct Seen {
    bytes: Vec<u8>,
    super_frame: bool,
}

impl Seen {
    fn is(&self, protocol: u8) -> bool {
        self.bytes.get(12..14) == Some(&[8, 0]) && self.bytes.get(23) == Some(&protocol)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.bytes.get(at..)?.first_chunk().map(|chunk| u16::from_be_bytes(*chunk))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().map(|chunk| u32::from_be_bytes(*chunk))
    }
}

impl Far {
    fn new(tap: &Tap, queue: TapQueue) -> io::Result<Self> {
        tap.interface().set_up(true)?;
        tap.interface().add_address(NEAR.into(), 24)?;
        let near_mac = tap.interface().mac()?.0;
        Ok(Self { queue, near_mac, burst: FrameBurst::new(256 << 10, 64) })
    }

    fn run(&mut self, trial: &mut TapTrial) -> io::Result<()> {
        self.introduce()?;
        let (out, back) = self.udp()?;
        (trial.udp_out, trial.udp_in) = (Some(out), Some(back));
        let (out, back) = self.tcp()?;
        (trial.tcp_out, trial.tcp_in) = (Some(out), Some(back));
        Ok(())
    }

    /// Asks for the kernel's address, by which it learns ours.
    fn introduce(&mut self) -> io::Result<()> {
        let mut frame = [[0xff; 6], FAR_MAC].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(FAR_MAC);
        frame.extend(FAR.octets());
        frame.extend([0; 6]);
        frame.extend(NEAR.octets());
        self.write(vec![frame])?;
        self.read("an answer to ARP", |seen| {
            (seen.bytes.get(12..14) == Some(&[8, 6])).then_some(())
        })
    }

    fn udp(&mut self) -> io::Result<(Passage, Passage)> {
        let near = UdpSocket::bind((NEAR, 0))?;
        near.set_read_timeout(Some(PATIENCE))?;
        let port = near.local_addr()?.port();
        let socket = Socket::from(near.try_clone()?);
        set_int(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, SEGMENT_LEN as i32)?;
        near.send_to(&[0x5a; SEGMENTS * SEGMENT_LEN], (FAR, FAR_PORT))?;
        let out = self.read("a datagram", |seen| {
            let ours = seen.is(UDP) && seen.u16(L4 + 2) == Some(FAR_PORT);
            ours.then_some(if seen.super_frame { Passage::Whole } else { Passage::Cut })
        })?;

        let datagram = |id| {
            let mut l4 = [FAR_PORT.to_be_bytes(), port.to_be_bytes()].concat();
            l4.extend((8 + SEGMENT_LEN as u16).to_be_bytes());
            l4.extend([0; 2]);
            l4.extend([0xa5; SEGMENT_LEN]);
            self.frame(UDP, id, l4)
        };
        let frames = (0..SEGMENTS as u16).map(datagram).collect();
        let whole = self.write(frames)?;
        let mut room = [0; 2 * SEGMENT_LEN];
        let mut came = 0;
        while came < SEGMENTS && near.recv(&mut room).is_ok_and(|len| len == SEGMENT_LEN) {
            came += 1;
        }
        Ok((out, passage(came == SEGMENTS, whole)))
    }

    fn tcp(&mut self) -> io::Result<(Passage, Passage)> {
        let near = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        near.bind(&SocketAddr::from((NEAR, 0)).into())?;
        let port = near.local_addr()?.as_socket_ipv4().map_or(0, |address| address.port());
        near.set_nonblocking(true)?;
        let far = SocketAddr::V4(SocketAddrV4::new(FAR, FAR_PORT));
        match near.connect(&far.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let theirs = self.read("the beginning of a connection", |seen| {
            let syn = seen.is(TCP) && seen.bytes.get(L4 + 13) == Some(&SYN);
            if syn { seen.u32(L4 + 4) } else { None }
        })?;
        let next = theirs.wrapping_add(1);
        // With the largest segment that it may send us: 1,460 bytes.
        let answer = segment(port, FAR_SEQUENCE, next, SYN | ACK, &[2, 4, 5, 0xb4], &[]);
        let answer = self.frame(TCP, 0, answer);
        self.write(vec![answer])?;
        self.read("the end of the handshake", |seen| {
            (seen.is(TCP) && seen.bytes.get(L4 + 13) == Some(&ACK)).then_some(())
        })?;
        near.set_nonblocking(false)?;
        near.set_read_timeout(Some(PATIENCE))?;
        near.send(&[0x5a; SEGMENTS * 1460])?;
        // Its first flight may begin with a single segment.
        let mut singles = 0;
        let out = self.read("data", |seen| {
            if !seen.is(TCP) || seen.bytes.len() < L4 + 20 + 1460 {
                return None;
            }
            singles += 1;
            match seen.super_frame {
                true => Some(Passage::Whole),
                false => (singles == SEGMENTS).then_some(Passage::Cut),
            }
        });
        let out = out.or_else(|error| if singles > 0 { Ok(Passage::Cut) } else { Err(error) })?;

        let data = |number: usize| {
            let sequence = FAR_SEQUENCE + 1 + (number * SEGMENT_LEN) as u32;
            let payload = [0xa5; SEGMENT_LEN];
            self.frame(TCP, number as u16, segment(port, sequence, next, ACK, &[], &payload))
        };
        let frames = (0..SEGMENTS).map(data).collect();
        let whole = self.write(frames)?;
        let mut room = vec![0; SEGMENTS * SEGMENT_LEN];
        let came = (&near).read_exact(&mut room).is_ok();
        Ok((out, passage(came, whole)))
    }

    /// An Ethernet frame to the kernel, checksums included.
    fn frame(&self, protocol: u8, id: u16, mut l4: Vec<u8>) -> Vec<u8> {
        let len = l4.len() as u16;
        let offset = if protocol == TCP { TCP_CHECKSUM_OFFSET } else { UDP_CHECKSUM_OFFSET };
        let mut summed = [FAR.octets(), NEAR.octets()].concat();
        summed.extend([0, protocol]);
        summed.extend(len.to_be_bytes());
        let pseudo = summed.len();
        summed.append(&mut l4);
        // The fields are there: the frames are made above.
        let _ = complete_checksum(&mut summed, 0, pseudo as u16 + offset);

        let mut ip = vec![0x45, 0];
        ip.extend((20 + len).to_be_bytes());
        ip.extend(id.to_be_bytes());
        ip.extend([0x40, 0, 64, protocol, 0, 0]);
        ip.extend(FAR.octets());
        ip.extend(NEAR.octets());
        let _ = complete_checksum(&mut ip, 0, 10);

        let mut frame = [self.near_mac, FAR_MAC].concat();
        frame.extend([8, 0]);
        frame.extend(ip);
        frame.extend(summed.get(pseudo..).unwrap_or_default());
        frame
    }

    /// Writes frames at once; says whether they went as a super-frame.
    fn write(&mut self, frames: Vec<Vec<u8>>) -> io::Result<bool> {
        let before = self.queue.counters().tx_super_frames.get();
        let place = |(piece, frame): (usize, &Vec<u8>)| OutFrame {
            span: Span { piece, start: 0, len: frame.len() },
            checksum: Checksum::Complete,
        };
        let out: Vec<_> = frames.iter().enumerate().map(place).collect();
        let mut pieces = Pieces(frames.iter().map(|frame| PacketBuf::from_slice(frame)).collect());
        let report = self.queue.tx_burst(&mut pieces, &out);
        if report.sent != out.len() {
            return Err(io::Error::other(format!("the tap takes no frames: {report:?}")));
        }
        Ok(self.queue.counters().tx_super_frames.get() > before)
    }

    /// Reads until `pick` finds what it wants in a frame.
    fn read<T>(&mut self, what: &str, mut pick: impl FnMut(&Seen) -> Option<T>) -> io::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut poll_set = PollSet::default();
        poll_set.set(self.queue.poll_fd());
        loop {
            self.burst.clear();
            self.queue.rx_burst(&mut self.burst)?;
            for (frame, bytes) in self.burst.iter() {
                let super_frame = frame.offload.segmentation.is_some();
                if let Some(found) = pick(&Seen { bytes: bytes.to_vec(), super_frame }) {
                    return Ok(found);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::other(format!("{what} did not come out of the tap")));
            }
            poll_set.wait(left);
        }
    }
}

const fn passage(came: bool, whole: bool) -> Passage {
    match (came, whole) {
        (true, true) => Passage::Whole,
        (true, false) => Passage::Cut,
        (false, _) => Passage::Lost,
    }
}

/// A TCP segment from us; `options` are whole words.
fn segment(
    port: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut l4 = [FAR_PORT.to_be_bytes(), port.to_be_bytes()].concat();
    l4.extend(sequence.to_be_bytes());
    l4.extend(acknowledged.to_be_bytes());
    let words = 5 + options.len() as u8 / 4;
    l4.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    l4.extend(options);
    l4.extend(payload);
    l4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::in_private_namespace;

    #[test]
    fn super_frames_pass_both_ways() {
        let trial = match in_private_namespace(|| try_tap("tapdoctor0", true)) {
            Ok(Ok(trial)) => trial,
            Ok(Err(OpenError::NoTunDevice | OpenError::TunDeviceForbidden)) => return,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            other => panic!("{other:?}"),
        };
        assert_eq!(trial.trouble, None, "{trial:?}");
        assert!(trial.multi_queue && trial.degraded.is_empty(), "{trial:?}");
        let all = [trial.tcp_out, trial.tcp_in, trial.udp_out, trial.udp_in];
        assert_eq!(all, [Some(Passage::Whole); 4], "{trial:?}");
    }

    #[test]
    fn a_taken_name_is_refused() {
        let outcome = in_private_namespace(|| try_tap("lo", false).map(drop));
        if let Ok(outcome) = outcome {
            assert!(outcome.is_err());
        }
    }
}
