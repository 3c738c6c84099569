//! Decides how a frame leaves: by which links, of what size at most, with what mark.

use std::time::Instant;

use crate::compress::Level;
use crate::crypto::aead::Suite;
use crate::crypto::session::Session;
use crate::datapath::Datapath;
use crate::forward::policy::{Policy, flow_of};
use crate::forward::protect::{Protect, is_control};
use crate::forward::{marks, mss, too_big};
use crate::handshake::features::Features;
use crate::id::PeerIndex;
use crate::link::id::LinkSet;
use crate::stats::DropReason;
use crate::tables::{NetworkEntry, PeerEntry, To};
use crate::wire::buf::{Checksum, Offload};
use crate::wire::checksum;
use crate::wire::header::{CLEAR_OVERHEAD, Handle, InnerHeader, Kind, SEALED_OVERHEAD};
use crate::wire::inner_ip::{InnerIp, protocol};

use super::Pass;
use super::alike::{Alike, Shape};

/// Smallest MTU of an IPv6 path, in bytes (RFC 8200 section 5).
const MIN_IPV6_MTU: usize = 1280;
/// Where a TCP header says its length, in words, in the upper four bits (RFC 9293 section 3.1).
const TCP_DATA_OFFSET: usize = 12;
const UDP_HEADER_LEN: usize = 8;

/// How a frame leaves for a peer.
#[derive(Clone, Copy)]
pub(super) struct Outbound<'t> {
    pub(super) now: Instant,
    pub(super) peer: &'t PeerEntry,
    pub(super) session: &'t Session,
    pub(super) network: &'t NetworkEntry,
    pub(super) inner: InnerHeader,
    pub(super) policy: Policy,
    /// The links that it leaves by, each with the same datagrams.
    pub(super) links: LinkSet,
    /// Largest UDP payload.
    pub(super) limit: usize,
    /// What a datagram adds.
    pub(super) overhead: usize,
    /// Outer TOS or traffic class.
    pub(super) mark: u8,
    /// Kept to be sent again, among so many bytes at most.
    pub(super) keep: Option<usize>,
    /// How hard to compress it, and its flow.
    pub(super) compression: Option<(Level, u64)>,
}

impl Outbound<'_> {
    /// Largest frame whose sender need not be told that it is too large, in bytes.
    pub(super) fn largest_frame(&self) -> usize {
        told_payload(self.peer, self.limit).saturating_sub(self.overhead)
    }
}

impl Datapath {
    /// Seals a frame for one peer: in segments if it is a super-frame, in fragments where the path
    /// takes no datagram of its size.
    pub(super) fn send<'t>(
        &mut self,
        pass: &mut Pass<'t, '_>,
        network: &'t NetworkEntry,
        peer: PeerIndex,
        frame: &mut [u8],
        offload: &mut Offload,
        more: bool,
    ) {
        let Some(peer) = pass.tables.peer(peer) else {
            return self.counters.count_drop(DropReason::PeerNoSession);
        };
        self.keep_awake(peer);
        let outcome = self
            .look_up(pass, peer, network, frame, offload, more)
            .and_then(|outbound| self.pack(pass, &outbound, frame, *offload, more));
        match outcome {
            Ok(()) => {
                for traffic in [&peer.traffic, &network.traffic] {
                    if let Some(mine) = traffic.get(self.worker) {
                        mine.sent(frame.len());
                    }
                }
            }
            Err(reason) => self.counters.count_drop(reason),
        }
    }

    /// How the frame leaves: as the one before it, or as is found out now.
    #[inline]
    fn look_up<'t>(
        &mut self,
        pass: &mut Pass<'t, '_>,
        peer: &'t PeerEntry,
        network: &'t NetworkEntry,
        frame: &mut [u8],
        offload: &mut Offload,
        more: bool,
    ) -> Result<Outbound<'t>, DropReason> {
        // Of a super-frame it is the segments that leave.
        if offload.segmentation.is_some() {
            return self.prepare(pass, peer, network, frame, offload);
        }
        let alike = pass.alike.as_ref();
        if let Some(mut outbound) = alike.and_then(|alike| alike.find(network, peer.index, frame)) {
            let (suite, handle) = (outbound.session.facts().suite, outbound.inner.handle);
            outbound.inner.kind = self.mark_checksum(frame, offload, suite, handle)?;
            return Ok(outbound);
        }
        let outbound = self.prepare(pass, peer, network, frame, offload)?;
        if more && let Some(shape) = Shape::of(frame) {
            pass.alike = Alike::new(shape, network, &outbound);
        }
        Ok(outbound)
    }

    /// Decides on links, size and mark.
    fn prepare<'t>(
        &mut self,
        &Pass { now, tables, .. }: &Pass<'t, '_>,
        peer: &'t PeerEntry,
        network: &'t NetworkEntry,
        frame: &mut [u8],
        offload: &mut Offload,
    ) -> Result<Outbound<'t>, DropReason> {
        let session = peer.session.as_deref().ok_or(DropReason::PeerNoSession)?;
        let suite = session.facts().suite;
        let handle = network.member(peer.index).ok_or(DropReason::FrameNoMember)?.handle;
        let overhead = if suite == Suite::Clear { CLEAR_OVERHEAD } else { SEALED_OVERHEAD };
        let policy = network.policy.unwrap_or(peer.policy);
        let inner_ip = InnerIp::find(frame);
        let compression = network
            .compression
            .filter(|_| session.facts().features.contains(Features::COMPRESSION));
        let flow = if policy == Policy::FlowHash || compression.is_some() {
            flow_of(frame, inner_ip.as_ref())
        } else {
            0
        };
        let links = peer.ways.choose(policy, flow, &mut self.turn);
        if links.is_empty() {
            return Err(DropReason::PeerNoPath);
        }
        let limit = largest_payload(peer, links);
        if let Some(ip) = &inner_ip {
            let max_l3 = told_payload(peer, limit).saturating_sub(overhead + ip.l3_offset);
            self.fit_sender(now, network, frame, *offload, ip, max_l3);
        }
        let dscp = network.dscp.as_ref().unwrap_or(&peer.dscp);
        let mark = marks::mark(dscp, peer.ecn, inner_ip.as_ref());
        let keep = peer.links.len() > 1
            && match peer.protect {
                Protect::Off => false,
                Protect::Control => is_control(frame, inner_ip.as_ref()),
                Protect::All => true,
            };
        let keep = keep.then_some(tables.resend_bytes);
        let kind = self.mark_checksum(frame, offload, suite, handle)?;
        let inner = InnerHeader { kind, handle };
        let compression = compression.map(|level| (level, flow));
        Ok(Outbound {
            now,
            peer,
            session,
            network,
            inner,
            policy,
            links,
            limit,
            overhead,
            mark,
            keep,
            compression,
        })
    }

    /// Has the sender make packets that fit: by TCP's segment size as a connection begins, else by
    /// ICMP, while what it sent is carried in fragments.
    fn fit_sender(
        &mut self,
        now: Instant,
        network: &NetworkEntry,
        frame: &mut [u8],
        offload: Offload,
        ip: &InnerIp,
        max_l3: usize,
    ) {
        if network.mss_clamp && mss::clamp(frame, ip, offload.checksum, max_l3) {
            self.counters.mss_clamped.add(1);
        }
        // Of a super-frame it is the segments that leave.
        let longest = offload.segmentation.map_or(frame.len(), |segmentation| {
            frame.len().min(headers_len(frame, ip) + usize::from(segmentation.size))
        });
        let l3_len = longest.saturating_sub(ip.l3_offset);
        // RFC 8200 section 5: no IPv6 sender goes below 1280 bytes, whatever it is told.
        let hopeless = ip.version == 6 && l3_len <= MIN_IPV6_MTU;
        let heeds = ip.version == 6 || ip.dont_fragment;
        if !network.too_big || l3_len <= max_l3 || hopeless || !heeds {
            return;
        }
        // The ration first: a stream of large packets must not have a message built for each.
        let now_ms = self.clock.ms(now);
        if !self.too_big.admits(ip.src, ip.dst, now_ms) {
            return;
        }
        let mtu = u32::try_from(max_l3).unwrap_or(u32::MAX);
        if let Some(message) = too_big::build(frame, mtu) {
            self.counters.too_big_sent.add(1);
            self.returns.push_slice(network.handle, network.vni, To::Port(self.port), &message);
        }
    }

    /// The kind that says what became of a partial checksum: it travels as such inside a seal, and
    /// is completed where nothing protects it or where the kind has no room to say so (rule P1).
    /// The segments of a super-frame are made with the checksum that `offload` says afterwards.
    fn mark_checksum(
        &self,
        frame: &mut [u8],
        offload: &mut Offload,
        suite: Suite,
        handle: Handle,
    ) -> Result<Kind, DropReason> {
        let plain = if handle == Handle::NONE { Kind::FrameWithVni } else { Kind::Frame };
        let Checksum::Partial { start, offset } = offload.checksum else { return Ok(plain) };
        // The receiver derives the offsets by parsing: only what parses to the same travels so. The
        // segments of a super-frame are found to do so as it is cut.
        let travels = suite != Suite::Clear && plain == Kind::Frame;
        if offload.segmentation.is_some() {
            return Ok(if travels { Kind::FramePartialChecksum } else { plain });
        }
        if travels && checksum::derive_partial(frame) == Some(offload.checksum) {
            return Ok(Kind::FramePartialChecksum);
        }
        checksum::complete_checksum(frame, start, offset)
            .map_err(|_| DropReason::FrameBadChecksumOffset)?;
        offload.checksum = Checksum::Complete;
        Ok(plain)
    }
}

/// Bytes of the headers of a frame, those of TCP or UDP included.
fn headers_len(frame: &[u8], ip: &InnerIp) -> usize {
    let Some(l4) = ip.l4_offset else { return ip.l3_offset };
    if ip.proto == protocol::TCP {
        l4 + usize::from(frame.get(l4 + TCP_DATA_OFFSET).map_or(0, |byte| byte >> 4)) * 4
    } else {
        l4 + UDP_HEADER_LEN
    }
}

/// The UDP payload that senders of larger packets are told of. The explicit VNI is for the moments
/// before the peer named the network: what they are told does not depend on it.
fn told_payload(peer: &PeerEntry, limit: usize) -> usize {
    limit.max(peer.expected_udp_payload)
}

/// Largest UDP payload that may leave by these links.
fn largest_payload(peer: &PeerEntry, links: LinkSet) -> usize {
    if peer.fits_all {
        return peer.max_udp_payload;
    }
    let sizes = links.iter().filter_map(|link| peer.links.get(link.at()));
    sizes.map(|entry| entry.max_udp_payload).min().unwrap_or(peer.max_udp_payload)
}
