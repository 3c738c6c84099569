//! Frames on their way into one tap become groups: software coalescing (GRO).
//!
//! A group is written to the tap as one super-frame, for which the kernel walks its stack once.
//! Every rule here keeps something that the receiver would otherwise notice:
//!
//! | rule | what it protects |
//! | --- | --- |
//! | IPv4 without options, IPv6 with TCP or UDP next; no fragment | options and fragments have a meaning for each packet |
//! | IP length is that of the frame | padding would become payload |
//! | IP header and L4 checksums hold, in the form that a sender writes | a broken frame stays one, and is not repaired on the way |
//! | TCP flags are ACK, or ACK and PSH; at least a byte of payload | connections begin, end and report congestion by single segments; keep-alives and duplicate ACKs are counted |
//! | no UDP checksum of 0 | "none" would become a sum |
//! | same Ethernet header with all tags, addresses, ports | flows and tenants stay apart |
//! | same DSCP and ECN, hop limit, DF, flow label | a mark is on the packets that bore it, a path shows in traces |
//! | same acknowledgement, window, header length, options | each says something new to the sender; timestamps measure round trips |
//! | TCP: the sequence number that is next. UDP: next to the newest of its flow | order, loss and repetition stay visible |
//! | equal payloads, the last may be shorter; PSH is the last | segments are cut as they were; data is not held back |
//! | IPv4 without DF: identification counts up by one | fragments of different packets stay apart (RFC 6864) |
//! | what cannot join closes its flow's group; what has no flow closes all of its pair of stations | nothing overtakes within a flow, nothing overtakes an exotic protocol |
//!
//! With DF the identification means nothing (RFC 6864 section 4.1) and is not compared: it is the
//! one field that a kernel that cuts the group again may number otherwise.

use std::ops::Range;

use super::flow::{Flow, Piece, native, sound_pseudo_sum};
use super::tcp;
use crate::wire::buf::{Checksum, Offload, Segmentation};
use crate::wire::checksum::fold_sum;

/// What the receiving port takes. The same for all frames between two [`Coalescer::clear`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Whether it takes TCP super-frames.
    pub tcp: bool,
    /// Whether it takes UDP super-frames.
    pub udp: bool,
    /// Most bytes of a group, from the IP header on; at most 65,535.
    pub max_len: usize,
    /// Most frames of a group. Kernels take 64 of UDP.
    pub max_segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tcp: true, udp: true, max_len: usize::from(u16::MAX), max_segments: 64 }
    }
}

/// A frame of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The caller's name for the frame.
    pub index: usize,
    /// Its payload within it; of a group of one the whole frame.
    pub payload: Range<usize>,
}

/// Frames that go into the tap by one write.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// Its frames, in order.
    pub members: Members<'a>,
    /// Ethernet to L4 header of the super-frame, in front of the payloads. Empty of a group of
    /// one: that frame goes as it is.
    pub header: &'a [u8],
    /// What goes into the virtio-net header; of a group of one the checksum that came with it.
    pub offload: Offload,
}

/// The frames of a group, in order.
#[derive(Debug, Clone)]
pub struct Members<'a> {
    items: &'a [Item],
    next: Option<usize>,
    left: usize,
    is_alone: bool,
}

impl Iterator for Members<'_> {
    type Item = Member;

    fn next(&mut self) -> Option<Member> {
        let item = self.items.get(self.next.take()?)?;
        self.left = self.left.checked_sub(1)?;
        self.next = item.next;
        let start = if self.is_alone { 0 } else { item.payload };
        Some(Member { index: item.index, payload: start..item.end })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Members<'_> {}

/// A frame that was added.
#[derive(Debug)]
struct Item {
    index: usize,
    /// First byte of its payload.
    payload: usize,
    end: usize,
    /// The next one of its group.
    next: Option<usize>,
}

/// A group as it stands.
#[derive(Debug)]
struct Record {
    first: usize,
    last: usize,
    count: usize,
    /// Within the memory of headers; empty where nothing may join.
    header: Range<usize>,
    /// Of the first frame.
    checksum: Checksum,
    segmentation: Option<Segmentation>,
    place: Checksum,
}

/// A group that may still grow. A flow has one at most.
#[derive(Debug)]
struct Open {
    key: u64,
    flow: Flow,
    /// In the list of groups.
    group: usize,
    header: Range<usize>,
    /// Payload bytes of the first frame.
    size: usize,
    count: usize,
    /// Bytes from the IP header on.
    len: usize,
    next_sequence: u32,
    next_id: u16,
    /// Complement of the IPv4 header checksum without the total length; not folded.
    ip_sum: u64,
    /// The pseudo-header's sum without the L4 length, in native byte order.
    pseudo: u64,
}

/// Makes groups of frames. Its memory is used again after [`Self::clear`].
#[derive(Debug, Default)]
pub struct Coalescer {
    items: Vec<Item>,
    groups: Vec<Record>,
    headers: Vec<u8>,
    /// The one that was used last is at the end.
    open: Vec<Open>,
}

/// Most groups that are open at once: what bounds the search for a frame's flow.
const MAX_OPEN: usize = 64;

impl Coalescer {
    /// Without any frames.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.items.clear();
        self.groups.clear();
        self.headers.clear();
        self.open.clear();
    }

    /// Takes the next frame. `index` is the caller's name for it.
    pub fn add(&mut self, index: usize, frame: &[u8], checksum: Checksum, limits: Limits) {
        let Some(flow) = Flow::find(frame) else {
            self.close_pair(frame);
            self.push_alone(index, frame, checksum);
            return;
        };
        let piece = Piece::find(frame, &flow, limits);
        let open = self.find_open(frame, &flow);
        let Some(piece) = piece else {
            self.close(open);
            self.push_alone(index, frame, checksum);
            return;
        };
        let joins = open.is_some_and(|at| self.takes(at, frame, &piece, limits));
        if !joins {
            self.close(open);
        }
        if !joins && piece.is_last {
            self.push_alone(index, frame, checksum);
            return;
        }
        let Some(pseudo) = sound_pseudo_sum(frame, &flow, checksum) else {
            if joins {
                self.close(open);
            }
            self.push_alone(index, frame, checksum);
            return;
        };
        if joins {
            self.join(index, frame, &piece);
        } else {
            self.begin(index, frame, flow, &piece, checksum, pseudo);
        }
    }

    /// The groups, in the order of their first frames.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.groups.iter().map(|record| {
            let is_alone = record.count == 1;
            let members = Members {
                items: &self.items,
                next: Some(record.first),
                left: record.count,
                is_alone,
            };
            if is_alone {
                let offload = Offload { checksum: record.checksum, segmentation: None };
                return Group { members, header: &[], offload };
            }
            let header = self.headers.get(record.header.clone()).unwrap_or_default();
            let offload = Offload { checksum: record.place, segmentation: record.segmentation };
            Group { members, header, offload }
        })
    }

    /// Adds a group that stays one of one.
    fn push_alone(&mut self, index: usize, frame: &[u8], checksum: Checksum) {
        let item = self.items.len();
        self.items.push(Item { index, payload: 0, end: frame.len(), next: None });
        self.groups.push(Record {
            first: item,
            last: item,
            count: 1,
            header: 0..0,
            checksum,
            segmentation: None,
            place: checksum,
        });
    }

    /// Adds a group that others may join.
    fn begin(
        &mut self,
        index: usize,
        frame: &[u8],
        flow: Flow,
        piece: &Piece,
        checksum: Checksum,
        pseudo: u64,
    ) {
        if self.open.len() >= MAX_OPEN {
            self.open.remove(0);
        }
        self.push_alone(index, frame, checksum);
        let start = self.headers.len();
        self.headers.extend_from_slice(frame.get(..piece.payload).unwrap_or_default());
        let header = start..self.headers.len();
        let size = frame.len() - piece.payload;
        if let Some(item) = self.items.last_mut() {
            item.payload = piece.payload;
        }
        let group = self.groups.len() - 1;
        if let Some(record) = self.groups.last_mut() {
            record.header = header.clone();
            record.place = flow.place();
            record.segmentation =
                Some(Segmentation { kind: flow.kind(), size: size as u16, ecn: false });
        }
        let len = frame.len() - flow.l3;
        self.open.push(Open {
            key: flow.key(frame),
            flow,
            group,
            header,
            size,
            count: 1,
            len,
            next_sequence: piece.sequence.wrapping_add(size as u32),
            next_id: piece.id.wrapping_add(1),
            ip_sum: u64::from(!piece.ip_checksum) + u64::from(!(len as u16)),
            pseudo,
        });
    }

    /// Adds the frame to the group that is at the end of the open ones.
    fn join(&mut self, index: usize, frame: &[u8], piece: &Piece) {
        let Some(open) = self.open.last_mut() else { return };
        let item = self.items.len();
        self.items.push(Item { index, payload: piece.payload, end: frame.len(), next: None });
        let payload_len = frame.len() - piece.payload;
        open.count += 1;
        open.len += payload_len;
        open.next_sequence = open.next_sequence.wrapping_add(payload_len as u32);
        open.next_id = open.next_id.wrapping_add(1);
        if let Some(record) = self.groups.get_mut(open.group) {
            if let Some(last) = self.items.get_mut(record.last) {
                last.next = Some(item);
            }
            record.last = item;
            record.count += 1;
        }
        if let Some(header) = self.headers.get_mut(open.header.clone()) {
            open.rewrite(header, piece.is_last);
        }
        if piece.is_last || payload_len < open.size {
            self.open.pop();
        }
    }

    /// Whether the frame continues the group at `at` of the open ones.
    fn takes(&self, at: usize, frame: &[u8], piece: &Piece, limits: Limits) -> bool {
        let Some(open) = self.open.get(at) else { return false };
        let header = self.headers.get(open.header.clone()).unwrap_or_default();
        let payload_len = frame.len() - piece.payload;
        payload_len <= open.size
            && open.count < limits.max_segments
            && open.len + payload_len <= limits.max_len.min(usize::from(u16::MAX))
            && (!open.flow.is_tcp || piece.sequence == open.next_sequence)
            && (piece.is_id_free || piece.id == open.next_id)
            && header.len() == piece.payload
            && open.flow.agrees(header, frame)
    }

    /// Finds the group of the frame's flow and moves it to the end of the open ones.
    fn find_open(&mut self, frame: &[u8], flow: &Flow) -> Option<usize> {
        let (newest, others) = self.open.split_last()?;
        let is_same = |open: &Open| {
            let header = self.headers.get(open.header.clone()).unwrap_or_default();
            open.flow == *flow && flow.is_same(header, frame)
        };
        let last = others.len();
        if !is_same(newest) {
            let key = flow.key(frame);
            let at = others.iter().rposition(|open| open.key == key && is_same(open))?;
            self.open.swap(at, last);
        }
        Some(last)
    }

    fn close(&mut self, open: Option<usize>) {
        if let Some(at) = open {
            self.open.remove(at);
        }
    }

    /// Closes all groups between the two stations of this frame, whatever their tags.
    fn close_pair(&mut self, frame: &[u8]) {
        let pair: Option<&[u8; 12]> = frame.first_chunk();
        let headers = &self.headers;
        self.open.retain(|open| {
            let header = headers.get(open.header.clone()).unwrap_or_default();
            pair.is_some() && header.first_chunk() != pair
        });
    }
}

impl Open {
    /// Brings lengths and sums of the group's header up to its present length.
    fn rewrite(&self, header: &mut [u8], is_pushed: bool) {
        let len = self.len as u16;
        let l4_len = (self.len - (self.flow.l4 - self.flow.l3)) as u16;
        let checksum = fold_sum(self.pseudo + native(l4_len)).to_ne_bytes();
        if let Some(l4) = header.get_mut(self.flow.l4..) {
            if !self.flow.is_tcp {
                if let Some([_, _, _, _, l0, l1, c0, c1]) = l4.first_chunk_mut() {
                    [*l0, *l1] = l4_len.to_be_bytes();
                    [*c0, *c1] = checksum;
                }
            } else if let Some([_, _, _, _, _, _, _, _, _, _, _, _, _, flags, _, _, c0, c1]) =
                l4.first_chunk_mut()
            {
                if is_pushed {
                    *flags |= tcp::PSH;
                }
                [*c0, *c1] = checksum;
            }
        }
        let Some(ip) = header.get_mut(self.flow.l3..) else { return };
        if self.flow.is_v6 {
            if let Some([_, _, _, _, l0, l1]) = ip.first_chunk_mut() {
                [*l0, *l1] = l4_len.to_be_bytes();
            }
        } else if let Some([_, _, l0, l1, _, _, _, _, _, _, c0, c1]) = ip.first_chunk_mut() {
            [*l0, *l1] = len.to_be_bytes();
            [*c0, *c1] = (!fold_sum(self.ip_sum + u64::from(len))).to_be_bytes();
        }
    }
}

#[cfg(test)]
mod streams;
#[cfg(test)]
mod tests;
