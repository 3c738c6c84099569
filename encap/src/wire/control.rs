//! Control messages: what the sealed payload of kind 5 holds.
//!
//! A payload is a list of `type (1) | length (2) | body`. A type that is not known is passed over,
//! so that later versions can add some. Big-endian. Rules C1 to C6 are in `docs/protocol.md`.

use super::header::Handle;
use super::heartbeat::Heartbeat;
use super::reader::{Malformed, Reader};
use crate::id::Vni;

/// Code of the heartbeat message. A heartbeat has a datagram of its own and stands first in it.
const HEARTBEAT: u8 = 1;

/// A binding entry on the wire: VNI (3), handle (2), largest frame (2).
pub const BINDING_LEN: usize = 7;
/// Most binding entries in one message: it fits the smallest supported path.
pub const MAX_BINDINGS_PER_PART: usize = 140;

/// One network of the sender: the short name it wants in datagrams for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The network.
    pub vni: Vni,
    /// The sender's handle for it, 1 to 4095.
    pub handle: Handle,
    /// Largest untagged frame in bytes that the sender's tap takes.
    pub max_frame_len: u16,
}

/// A slice of the sender's list of networks. The parts of one revision replace all earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    /// Grows with every change.
    pub revision: u32,
    /// Which slice, from 0.
    pub part: u8,
    /// How many slices, at least 1.
    pub parts: u8,
    /// The networks.
    pub entries: Vec<Binding>,
}

/// One control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Proof of life, and what came in on each link.
    Heartbeat(Heartbeat),
    /// Something of this epoch was opened: the next but one may begin.
    EpochOpened {
        /// The epoch.
        epoch: u32,
    },
    /// Networks of the sender.
    Bindings(Bindings),
    /// A slice arrived.
    BindingsReceived {
        /// Its revision.
        revision: u32,
        /// Which slice.
        part: u8,
    },
    /// The sender stops; its keys are wiped.
    Goodbye,
    /// A path-MTU probe arrived.
    ProbeReceived {
        /// The probe's number.
        id: u32,
        /// Bytes of UDP payload that it had.
        size: u16,
    },
    /// To an address that a dynamic link was heard from: is the peer really there?
    PathChallenge {
        /// Random.
        token: u64,
    },
    /// Yes.
    PathResponse {
        /// The challenge's.
        token: u64,
    },
}

impl Bindings {
    /// Appends revision, part, parts, count and entries.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.revision.to_be_bytes());
        out.extend([self.part, self.parts]);
        out.extend(u16::try_from(self.entries.len()).unwrap_or(0).to_be_bytes());
        for entry in &self.entries {
            out.extend(entry.vni.to_be_bytes());
            out.extend(entry.handle.get().to_be_bytes());
            out.extend(entry.max_frame_len.to_be_bytes());
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (revision, part, parts) = (reader.u32()?, reader.u8()?, reader.u8()?);
        let count = usize::from(reader.u16()?);
        if part >= parts || count > MAX_BINDINGS_PER_PART {
            return Err(Malformed);
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let vni = Vni::from_be_bytes(reader.array()?);
            let handle = Handle::new(reader.u16()?).ok_or(Malformed)?;
            if handle == Handle::NONE {
                return Err(Malformed);
            }
            entries.push(Binding { vni, handle, max_frame_len: reader.u16()? });
        }
        Ok(Self { revision, part, parts, entries })
    }

    /// The whole list of a node's networks, in slices that fit a datagram each.
    #[must_use]
    pub fn split(revision: u32, entries: &[Binding]) -> Vec<Self> {
        let chunks: Vec<_> = entries.chunks(MAX_BINDINGS_PER_PART).collect();
        let parts = u8::try_from(chunks.len().max(1)).unwrap_or(u8::MAX);
        (0..parts)
            .map(|part| Self {
                revision,
                part,
                parts,
                entries: chunks.get(usize::from(part)).map_or_else(Vec::new, |c| c.to_vec()),
            })
            .collect()
    }
}

impl Message {
    /// Appends the message to a payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let code = match self {
            Self::Heartbeat(heartbeat) => {
                heartbeat.write(&mut body);
                HEARTBEAT
            }
            Self::EpochOpened { epoch } => {
                body.extend(epoch.to_be_bytes());
                2
            }
            Self::Bindings(bindings) => {
                bindings.write(&mut body);
                3
            }
            Self::BindingsReceived { revision, part } => {
                body.extend(revision.to_be_bytes());
                body.push(*part);
                4
            }
            Self::Goodbye => 5,
            Self::ProbeReceived { id, size } => {
                body.extend(id.to_be_bytes());
                body.extend(size.to_be_bytes());
                6
            }
            Self::PathChallenge { token } => {
                body.extend(token.to_be_bytes());
                7
            }
            Self::PathResponse { token } => {
                body.extend(token.to_be_bytes());
                8
            }
        };
        out.push(code);
        out.extend(u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
        out.extend(body);
    }

    /// The heartbeat that a payload begins with, if it is one.
    ///
    /// # Errors
    /// [`Malformed`] when it begins as one and is none.
    pub fn read_heartbeat(payload: &[u8]) -> Result<Option<Heartbeat>, Malformed> {
        if payload.first() != Some(&HEARTBEAT) {
            return Ok(None);
        }
        let mut reader = Reader(payload);
        reader.u8()?;
        let len = usize::from(reader.u16()?);
        Heartbeat::read(&mut Reader(reader.take(len)?)).map(Some)
    }

    /// Reads a whole payload; unknown types are left out.
    ///
    /// # Errors
    /// [`Malformed`] when a length or a body is wrong; nothing of the payload counts then.
    pub fn read_all(payload: &[u8]) -> Result<Vec<Self>, Malformed> {
        let mut messages = Vec::new();
        let mut reader = Reader(payload);
        while !reader.0.is_empty() {
            let code = reader.u8()?;
            let len = usize::from(reader.u16()?);
            let mut body = Reader(reader.take(len)?);
            let message = match code {
                HEARTBEAT => Self::Heartbeat(Heartbeat::read(&mut body)?),
                2 => Self::EpochOpened { epoch: body.u32()? },
                3 => Self::Bindings(Bindings::read(&mut body)?),
                4 => Self::BindingsReceived { revision: body.u32()?, part: body.u8()? },
                5 => Self::Goodbye,
                6 => Self::ProbeReceived { id: body.u32()?, size: body.u16()? },
                7 => Self::PathChallenge { token: body.u64()? },
                8 => Self::PathResponse { token: body.u64()? },
                _ => continue,
            };
            messages.push(message);
        }
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::id::LinkSet;
    use crate::wire::heartbeat::LinkReport;
    use proptest::prelude::*;

    fn binding() -> impl Strategy<Value = Binding> {
        (0..=Vni::MAX, 1..=Handle::MAX, any::<u16>()).prop_map(|(vni, handle, max_frame_len)| {
            Binding {
                vni: Vni::new(vni).unwrap(),
                handle: Handle::new(handle).unwrap(),
                max_frame_len,
            }
        })
    }

    fn heartbeat() -> impl Strategy<Value = Heartbeat> {
        let reports = prop::collection::vec(any::<[u32; 6]>(), 0..=8);
        (any::<[u32; 4]>(), any::<[u8; 2]>(), reports).prop_map(|(words, sets, reports)| {
            let [round, epoch_opened, sent_us, interval_us] = words;
            let [lost, drained] = sets.map(LinkSet);
            let mut heartbeat = Heartbeat {
                round,
                epoch_opened,
                sent_us,
                interval_us,
                lost,
                drained,
                ..Heartbeat::default()
            };
            for [tag, highest, echo_us, echo_delay_us, rounds, datagrams] in reports {
                heartbeat.push(LinkReport {
                    tag,
                    highest,
                    echo_us,
                    echo_delay_us,
                    rounds,
                    datagrams,
                });
            }
            heartbeat
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            heartbeat().prop_map(Message::Heartbeat),
            (any::<u32>(), any::<u16>()).prop_map(|(id, size)| Message::ProbeReceived { id, size }),
            any::<u64>().prop_map(|token| Message::PathChallenge { token }),
            any::<u64>().prop_map(|token| Message::PathResponse { token }),
            any::<u32>().prop_map(|epoch| Message::EpochOpened { epoch }),
            (any::<u32>(), any::<u8>())
                .prop_map(|(revision, part)| Message::BindingsReceived { revision, part }),
            Just(Message::Goodbye),
            (any::<u32>(), 0u8..255, prop::collection::vec(binding(), 0..MAX_BINDINGS_PER_PART))
                .prop_map(|(revision, part, entries)| Message::Bindings(Bindings {
                    revision,
                    part,
                    parts: part + 1,
                    entries
                })),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(messages in prop::collection::vec(message(), 0..5)) {
            let mut payload = Vec::new();
            messages.iter().for_each(|message| message.write(&mut payload));
            let first = messages.first().cloned();
            prop_assert_eq!(Message::read_all(&payload), Ok(messages));
            let heartbeat = Message::read_heartbeat(&payload).unwrap().map(Message::Heartbeat);
            prop_assert_eq!(heartbeat, first.filter(|m| matches!(m, Message::Heartbeat(_))));
        }

        #[test]
        fn any_bytes_are_read_or_refused(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::read_heartbeat(&payload);
            if let Ok(messages) = Message::read_all(&payload) {
                prop_assert!(messages.len() <= payload.len());
            }
        }

        #[test]
        fn unknown_types_are_passed_over(code in 9u8.., body in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut payload = vec![code];
            payload.extend((body.len() as u16).to_be_bytes());
            payload.extend(body);
            Message::Goodbye.write(&mut payload);
            prop_assert_eq!(Message::read_all(&payload), Ok(vec![Message::Goodbye]));
        }
    }

    #[test]
    fn long_lists_are_split_to_fit() {
        let entries: Vec<_> = (1..=300)
            .map(|n| Binding {
                vni: Vni::new(n).unwrap(),
                handle: Handle::new(n as u16).unwrap(),
                max_frame_len: 1446,
            })
            .collect();
        let parts = Bindings::split(4, &entries);
        assert_eq!(parts.iter().map(|part| part.entries.len()).collect::<Vec<_>>(), [140, 140, 20]);
        let mut payload = Vec::new();
        Message::Bindings(parts[0].clone()).write(&mut payload);
        assert!(payload.len() + 26 <= 1232);
        assert_eq!(Bindings::split(1, &[]).len(), 1, "an empty list is said too");
    }
}
