//! Messages of a program on their way to the hub.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use encap::channel::hub::{ChannelKey, Hub, SendError, SendOptions};
use encap::id::NodeId;

use super::batch::Packet;
use super::entry::Channel;
use super::framing::{Code, Header, HeaderFault, Kind, MAX_RECORD_LEN};
use super::pieces::{Joiner, PieceFault};

/// Why a connection is ended; the program is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: Code,
    pub(super) text: Cow<'static, str>,
}

impl Fault {
    pub(super) fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code, text: text.into() }
    }
}

impl From<HeaderFault> for Fault {
    fn from(fault: HeaderFault) -> Self {
        Self::new(Code::Invalid, fault.to_string())
    }
}

impl From<PieceFault> for Fault {
    fn from(fault: PieceFault) -> Self {
        let code = match fault {
            PieceFault::TooLong(_) => Code::TooLong,
            PieceFault::Length => Code::Invalid,
        };
        Self::new(code, fault.to_string())
    }
}

impl From<SendError> for Fault {
    fn from(error: SendError) -> Self {
        let code = match error {
            SendError::Full => Code::TooMany,
            SendError::TooLong => Code::TooLong,
            SendError::NoChannel => Code::Closed,
            SendError::NoPeer => Code::NoPeer,
        };
        Self::new(code, error.to_string())
    }
}

/// Who a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    One(NodeId),
    /// Each of them, once.
    Many(Vec<NodeId>),
    /// The same of all that could be reached when it came: who is a peer no more is left out.
    All(Vec<NodeId>),
}

/// A message and the peers that it is still to be sent to.
#[derive(Debug)]
struct Outgoing {
    to: Target,
    options: SendOptions,
    bytes: Vec<u8>,
    /// A peer has got it, or will.
    given: bool,
}

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The hub has it for all that it is for.
    Taken,
    /// Those are left that had no room.
    Full,
    /// All that it was for were removed while it waited: it goes to nobody.
    Nobody,
}

impl Outgoing {
    const fn new(to: Target, options: SendOptions, bytes: Vec<u8>) -> Self {
        Self { to, options, bytes, given: false }
    }

    fn is_for(&self, peer: NodeId) -> bool {
        match &self.to {
            Target::One(one) => *one == peer,
            Target::Many(many) | Target::All(many) => many.contains(&peer),
        }
    }

    /// Gives it to the hub, and adds who gets it to `sent_to`.
    fn send(
        &mut self,
        now: Instant,
        hub: &mut Hub,
        key: ChannelKey,
        sent_to: &mut BTreeSet<NodeId>,
    ) -> Result<Progress, SendError> {
        let options = self.options;
        let (many, named) = match &mut self.to {
            Target::One(to) => {
                let bytes = std::mem::take(&mut self.bytes);
                let Err(refused) = hub.send(now, key, *to, options, bytes) else {
                    sent_to.insert(*to);
                    return Ok(Progress::Taken);
                };
                self.bytes = refused.bytes;
                return if refused.error == SendError::Full {
                    Ok(Progress::Full)
                } else {
                    Err(refused.error)
                };
            }
            Target::Many(many) => (many, true),
            Target::All(many) => (many, false),
        };
        let (mut fault, mut kept) = (None, false);
        let mut left = many.len();
        many.retain(|to| {
            left -= 1;
            if fault.is_some() {
                return true;
            }
            // Before it is copied, perhaps again and again.
            if !hub.has_room(key, *to, self.bytes.len()) {
                kept = true;
                return true;
            }
            // The last one gets the message itself.
            let last = left == 0 && !kept;
            let bytes = if last { std::mem::take(&mut self.bytes) } else { self.bytes.clone() };
            let Err(refused) = hub.send(now, key, *to, options, bytes) else {
                sent_to.insert(*to);
                self.given = true;
                return false;
            };
            if last {
                self.bytes = refused.bytes;
            }
            match refused.error {
                SendError::Full => kept = true,
                // Removed while the message waited.
                SendError::NoPeer if !named => return false,
                error => fault = Some(error),
            }
            true
        });
        match fault {
            Some(error) => Err(error),
            None if !many.is_empty() => Ok(Progress::Full),
            None if self.given => Ok(Progress::Taken),
            None => Ok(Progress::Nobody),
        }
    }
}

/// What a program's messages go through.
#[derive(Debug)]
pub(super) struct Inbound {
    joiner: Joiner,
    /// The nodes that the message whose pieces come is for.
    to: Vec<NodeId>,
    /// Messages that came with the one that the hub had no room for, and that one first. No more
    /// than one call reads: nothing is read while there are any.
    waiting: VecDeque<Outgoing>,
    /// Where packets without header go, and how.
    pub(super) raw: Option<RawTarget>,
    /// Who was sent anything.
    sent_to: BTreeSet<NodeId>,
    /// Messages that may not have arrived: they went to nobody, or were given up.
    lost: u64,
    /// When nothing more comes from the program: who has not yet everything that was sent until
    /// then, and how many messages that are.
    unsettled: Option<Vec<(NodeId, u64)>>,
}

/// Where the packets of a raw descriptor go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawTarget {
    /// None for all that can be reached.
    pub(super) to: Option<NodeId>,
    /// 0 (first) to 7 (last).
    pub(super) priority: u8,
}

impl Inbound {
    pub(super) fn new(max_message_len: u32) -> Self {
        let joiner = Joiner::new(max_message_len);
        let (to, waiting, sent_to) = (Vec::new(), VecDeque::new(), BTreeSet::new());
        Self { joiner, to, waiting, raw: None, sent_to, lost: 0, unsettled: None }
    }

    /// Whether messages wait for room in the hub.
    pub(super) fn is_blocked(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether room for a message to this peer is what is waited for.
    pub(super) fn waits_for(&self, peer: NodeId) -> bool {
        self.waiting.front().is_some_and(|message| message.is_for(peer))
    }

    /// Takes a record of an attached program.
    pub(super) fn take_record(
        &mut self,
        packet: Packet<'_>,
        now: Instant,
        channel: &mut Channel,
        hub: &mut Hub,
    ) -> Result<(), Fault> {
        if packet.truncated {
            let text = format!("a record of more than {MAX_RECORD_LEN} bytes");
            return Err(Fault::new(Code::TooLong, text));
        }
        let (header, rest) = Header::read(packet.bytes)?;
        if header.kind != Kind::Data {
            let text = format!("{:?} is not for a program on a channel of messages", header.kind);
            return Err(Fault::new(Code::Invalid, text));
        }
        let payload = if self.joiner.is_within() || header.count == 0 {
            rest
        } else {
            self.take_set(&header, rest)?
        };
        let Some((first, bytes)) = self.joiner.push(header, payload)? else { return Ok(()) };
        let to = if first.count == 0 {
            self.target(first.peer(), channel, hub)
        } else {
            Some(several(std::mem::take(&mut self.to)))
        };
        let ttl = (first.number != 0).then(|| Duration::from_millis(first.number.into()));
        let options = SendOptions { priority: first.priority, ttl };
        self.submit(to, options, bytes, now, channel, hub)
    }

    /// Reads the ids in front of a payload; each node counts once.
    fn take_set<'a>(&mut self, header: &Header, rest: &'a [u8]) -> Result<&'a [u8], Fault> {
        let cut = || Fault::new(Code::Invalid, "a record that is too short for its set of nodes");
        let (ids, payload) = header.split_peers(rest).ok_or_else(cut)?;
        self.to.clear();
        for id in ids {
            let zero = || Fault::new(Code::NoPeer, "0 in a set of nodes");
            self.to.push(id.ok_or_else(zero)?);
        }
        self.to.sort_unstable();
        self.to.dedup();
        Ok(payload)
    }

    /// Takes a packet of a raw descriptor.
    pub(super) fn take_raw(
        &mut self,
        packet: Packet<'_>,
        now: Instant,
        channel: &mut Channel,
        hub: &mut Hub,
    ) -> Result<(), Fault> {
        let Some(RawTarget { to, priority }) = self.raw else { return Ok(()) };
        if packet.truncated {
            channel.counters.dropped_raw_too_long += 1;
            return Ok(());
        }
        let to = self.target(to, channel, hub);
        let options = SendOptions { priority, ttl: None };
        self.submit(to, options, packet.bytes.to_vec(), now, channel, hub)
    }

    /// The peer, or for none all that can be reached; a message to nobody is dropped.
    fn target(&mut self, peer: Option<NodeId>, channel: &mut Channel, hub: &Hub) -> Option<Target> {
        if let Some(peer) = peer {
            return Some(Target::One(peer));
        }
        let peers = hub.reachable(channel.key);
        if peers.is_empty() {
            self.drop_for_nobody(channel);
            return None;
        }
        Some(Target::All(peers))
    }

    /// A message goes to nobody.
    const fn drop_for_nobody(&mut self, channel: &mut Channel) {
        channel.counters.dropped_nobody_reachable += 1;
        self.lost += 1;
    }

    /// Sends a message, or has it wait behind others.
    fn submit(
        &mut self,
        to: Option<Target>,
        options: SendOptions,
        bytes: Vec<u8>,
        now: Instant,
        channel: &mut Channel,
        hub: &mut Hub,
    ) -> Result<(), Fault> {
        let Some(to) = to else { return Ok(()) };
        let mut message = Outgoing::new(to, options, bytes);
        if self.is_blocked() {
            self.waiting.push_back(message);
            return Ok(());
        }
        match message.send(now, hub, channel.key, &mut self.sent_to)? {
            Progress::Taken => {}
            Progress::Nobody => self.drop_for_nobody(channel),
            Progress::Full => {
                channel.counters.held_back += 1;
                self.waiting.push_back(message);
            }
        }
        Ok(())
    }

    /// Tries messages that wait again; says how many the hub took.
    pub(super) fn retry(
        &mut self,
        now: Instant,
        hub: &mut Hub,
        channel: &mut Channel,
    ) -> Result<usize, Fault> {
        let mut taken = 0;
        while let Some(message) = self.waiting.front_mut() {
            match message.send(now, hub, channel.key, &mut self.sent_to) {
                Ok(Progress::Full) => break,
                Ok(progress) => {
                    self.waiting.pop_front();
                    taken += 1;
                    if progress == Progress::Nobody {
                        self.drop_for_nobody(channel);
                    }
                }
                Err(error) => {
                    // This one is lost as any other that is wrong; the rest is counted at the end.
                    self.waiting.pop_front();
                    return Err(error.into());
                }
            }
        }
        Ok(taken)
    }

    /// So many messages to a peer were given up; whose they were is not known.
    pub(super) fn note_given_up(&mut self, peer: NodeId, count: u64) {
        if self.sent_to.contains(&peer) {
            self.lost = self.lost.saturating_add(count);
        }
    }

    /// Nothing more comes from the program: when all that it sent has arrived or was given up, gives
    /// how many messages may not have arrived. Else the hub will say when to ask again.
    pub(super) fn settle(&mut self, key: ChannelKey, hub: &mut Hub) -> Option<u64> {
        let unsettled = self.unsettled.get_or_insert_with(|| {
            self.sent_to.iter().map(|peer| (*peer, hub.sent(key, *peer))).collect()
        });
        unsettled.retain(|(peer, count)| !hub.is_settled(key, *peer, *count));
        unsettled.is_empty().then(|| self.lost + u64::from(self.joiner.is_within()))
    }

    /// The connection is over: counts what is lost with it.
    pub(super) fn end(&mut self, channel: &mut Channel) {
        channel.counters.cut_short += u64::from(self.joiner.is_within());
        channel.counters.abandoned += self.waiting.len() as u64;
        *self = Self::new(0);
    }
}

/// These nodes, of which there is one at least.
fn several(peers: Vec<NodeId>) -> Target {
    match peers[..] {
        [one] => Target::One(one),
        _ => Target::Many(peers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use encap::channel::hub::{ChannelConfig, HubOptions, PeerView};
    use encap::id::PeerIndex;
    use encap::wire::channel::Mode;

    const KEY: ChannelKey = ChannelKey(1);

    fn node(id: u16) -> NodeId {
        NodeId::new(id).unwrap()
    }

    /// A hub whose peers 2, 3 and 4 never take anything; those named have no room.
    fn hub(now: Instant, full: &[u16]) -> Hub {
        let config = ChannelConfig {
            name: "blue".into(),
            mode: Mode::Ordered,
            peers: None,
            copies: false,
            send_buffer: 64 << 10,
            compression: None,
        };
        let mut hub = Hub::new(HubOptions::default());
        let view =
            |id: u16| PeerView { index: PeerIndex(id.into()), node: node(id), session: None };
        hub.set_peers(now, [2, 3, 4].map(view).to_vec());
        hub.configure(now, vec![(KEY, config)]);
        for id in full {
            let options = SendOptions::default();
            while hub.send(now, KEY, node(*id), options, vec![0; 1000]).is_ok() {}
        }
        hub
    }

    fn nodes(ids: &[u16]) -> Vec<NodeId> {
        ids.iter().copied().map(node).collect()
    }

    fn message(peers: &[u16]) -> Outgoing {
        Outgoing::new(Target::Many(nodes(peers)), SendOptions::default(), vec![7; 5000])
    }

    /// What came of giving it to the hub, and who got it.
    fn send(
        message: &mut Outgoing,
        now: Instant,
        hub: &mut Hub,
    ) -> (Result<Progress, SendError>, Vec<NodeId>) {
        let mut sent_to = BTreeSet::new();
        let progress = message.send(now, hub, KEY, &mut sent_to);
        (progress, sent_to.into_iter().collect())
    }

    #[test]
    fn only_those_without_room_are_waited_for() {
        let now = Instant::now();
        for full in [&[2][..], &[3], &[4], &[2, 3], &[2, 4], &[3, 4], &[2, 3, 4]] {
            let mut hub = hub(now, full);
            let mut outgoing = message(&[2, 3, 4]);
            let others = [2, 3, 4].into_iter().filter(|id| !full.contains(id)).map(node).collect();
            assert_eq!(send(&mut outgoing, now, &mut hub), (Ok(Progress::Full), others));
            assert_eq!(outgoing.to, message(full).to);
            assert_eq!(outgoing.bytes, [7; 5000]);
            // The same again: nothing is taken twice, nothing is lost and nothing is copied.
            let before = (hub.report(), outgoing.bytes.as_ptr());
            assert_eq!(send(&mut outgoing, now, &mut hub), (Ok(Progress::Full), vec![]));
            assert_eq!((hub.report(), outgoing.bytes.as_ptr()), before);
            assert_eq!(outgoing.bytes, [7; 5000]);
        }
    }

    #[test]
    fn of_all_who_is_a_peer_no_more_is_left_out() {
        let now = Instant::now();
        for (full, left) in [(&[][..], &[][..]), (&[2], &[2]), (&[3], &[3]), (&[2, 3], &[2, 3])] {
            for all in [[9, 2, 3], [2, 9, 3], [2, 3, 9]] {
                let mut hub = hub(now, full);
                let mut outgoing = Outgoing { to: Target::All(nodes(&all)), ..message(&[]) };
                let progress = if left.is_empty() { Progress::Taken } else { Progress::Full };
                assert_eq!(send(&mut outgoing, now, &mut hub).0, Ok(progress));
                assert_eq!(outgoing.to, Target::All(nodes(left)));
                assert!(left.is_empty() || outgoing.bytes == [7; 5000]);
            }
        }
        let mut alone = Outgoing { to: Target::All(nodes(&[9])), ..message(&[]) };
        assert_eq!(send(&mut alone, now, &mut hub(now, &[])), (Ok(Progress::Nobody), vec![]));
    }

    #[test]
    fn a_message_that_a_peer_got_before_the_others_went_is_not_for_nobody() {
        let now = Instant::now();
        let mut outgoing = Outgoing { to: Target::All(nodes(&[2, 3])), ..message(&[]) };
        let mut hub = hub(now, &[3]);
        assert_eq!(send(&mut outgoing, now, &mut hub), (Ok(Progress::Full), nodes(&[2])));
        hub.set_peers(now, Vec::new());
        assert_eq!(send(&mut outgoing, now, &mut hub), (Ok(Progress::Taken), vec![]));
    }

    #[test]
    fn all_with_room_get_it() {
        let now = Instant::now();
        let mut hub = hub(now, &[]);
        let (progress, got) = send(&mut message(&[2, 3, 4]), now, &mut hub);
        assert_eq!((progress, got), (Ok(Progress::Taken), nodes(&[2, 3, 4])));
        let report = hub.report();
        let got = report.channels[0].peers.iter().map(|peer| (peer.messages_out, peer.bytes_out));
        assert_eq!(got.collect::<Vec<_>>(), [(1, 5000); 3]);
    }

    #[test]
    fn a_set_with_a_stranger_is_a_fault() {
        let now = Instant::now();
        for peers in [&[2, 9][..], &[9, 2], &[9, 9]] {
            let mut hub = hub(now, &[]);
            assert_eq!(send(&mut message(peers), now, &mut hub).0, Err(SendError::NoPeer));
        }
    }
}
