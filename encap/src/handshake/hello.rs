//! What the two sides say to each other inside the handshake.
//!
//! ```text
//! initiation: from(2) to(2) boot(8) stamp(8) slot(4) count(1) suites(count) bindings features(4)
//! response:   from(2) to(2) boot(8) status(1) slot(4) suite(1) bindings features(4)
//! ```
//!
//! Big-endian; what follows the features is padding. Where there are none behind the bindings, a
//! node is older than they are and takes none: the set is empty. Rules G4 to G6 and G10 are in
//! `docs/protocol.md`.

use super::features::Features;
use crate::crypto::aead::Suite;
use crate::id::NodeId;
use crate::wire::control::Bindings;
use crate::wire::header::Slot;
use crate::wire::reader::{Malformed, Reader};

/// Most suites that a list names.
const MAX_SUITES: usize = 16;

/// Payload of an initiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Who asks.
    pub from: NodeId,
    /// Who is meant.
    pub to: NodeId,
    /// Random number of the asking process: differs after a restart.
    pub boot: u64,
    /// Grows with every initiation of the node, also over restarts while its clock is right.
    pub stamp: u64,
    /// The asker's session index.
    pub slot: Slot,
    /// Suites that the asker takes, best first.
    pub suites: Vec<Suite>,
    /// The first slice of the asker's networks.
    pub bindings: Bindings,
    /// What the asker takes.
    pub features: Features,
}

/// How an initiation was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// A session is ready.
    Accepted,
    /// No suite of the asker's list is on the answerer's.
    NoCommonSuite,
}

/// Payload of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Who answers.
    pub from: NodeId,
    /// Who asked.
    pub to: NodeId,
    /// Random number of the answering process.
    pub boot: u64,
    /// Whether there is a session.
    pub status: Status,
    /// The answerer's session index.
    pub slot: Slot,
    /// The suite that the answerer chose.
    pub suite: Suite,
    /// The first slice of the answerer's networks.
    pub bindings: Bindings,
    /// What the answerer takes.
    pub features: Features,
}

fn node(reader: &mut Reader<'_>) -> Result<NodeId, Malformed> {
    NodeId::new(reader.u16()?).ok_or(Malformed)
}

fn slot(reader: &mut Reader<'_>) -> Result<Slot, Malformed> {
    let slot = reader.u32()?;
    if slot < Slot::COUNT { Ok(Slot(slot)) } else { Err(Malformed) }
}

/// What stands behind the bindings, if there is as much.
fn features(reader: &mut Reader<'_>) -> Features {
    reader.u32().map_or(Features::NONE, Features::from_bits)
}

impl Hello {
    /// The bytes, padded with zeros to `len`.
    #[must_use]
    pub fn write(&self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        out.extend(self.from.get().to_be_bytes());
        out.extend(self.to.get().to_be_bytes());
        out.extend(self.boot.to_be_bytes());
        out.extend(self.stamp.to_be_bytes());
        out.extend(self.slot.0.to_be_bytes());
        out.push(u8::try_from(self.suites.len()).unwrap_or(0));
        out.extend(self.suites.iter().map(|suite| suite.code()));
        self.bindings.write(&mut out);
        out.extend(self.features.bits().to_be_bytes());
        out.resize(len.max(out.len()), 0);
        out
    }

    /// Reads the bytes; suites of later versions are passed over.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let (from, to) = (node(&mut reader)?, node(&mut reader)?);
        let (boot, stamp, slot) = (reader.u64()?, reader.u64()?, slot(&mut reader)?);
        let count = usize::from(reader.u8()?);
        if count > MAX_SUITES {
            return Err(Malformed);
        }
        let suites =
            reader.take(count)?.iter().filter_map(|code| Suite::from_code(*code)).collect();
        let bindings = Bindings::read(&mut reader)?;
        let features = features(&mut reader);
        Ok(Self { from, to, boot, stamp, slot, suites, bindings, features })
    }
}

impl Welcome {
    /// The bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.from.get().to_be_bytes());
        out.extend(self.to.get().to_be_bytes());
        out.extend(self.boot.to_be_bytes());
        out.push(match self.status {
            Status::Accepted => 0,
            Status::NoCommonSuite => 1,
        });
        out.extend(self.slot.0.to_be_bytes());
        out.push(self.suite.code());
        self.bindings.write(&mut out);
        out.extend(self.features.bits().to_be_bytes());
        out
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let (from, to) = (node(&mut reader)?, node(&mut reader)?);
        let boot = reader.u64()?;
        let status = match reader.u8()? {
            0 => Status::Accepted,
            1 => Status::NoCommonSuite,
            _ => return Err(Malformed),
        };
        let slot = slot(&mut reader)?;
        let suite = Suite::from_code(reader.u8()?).ok_or(Malformed)?;
        let bindings = Bindings::read(&mut reader)?;
        let features = features(&mut reader);
        Ok(Self { from, to, boot, status, slot, suite, bindings, features })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            from: NodeId::new(1).unwrap(),
            to: NodeId::new(2).unwrap(),
            boot: 3,
            stamp: 4,
            slot: Slot(5),
            suites: vec![Suite::Aes256Gcm, Suite::Clear],
            bindings: Bindings { revision: 6, part: 0, parts: 1, entries: vec![] },
            features: Features::BUNDLES,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Hello::read(&hello().write(1100)), Ok(hello()));
        let welcome = Welcome {
            from: NodeId::new(2).unwrap(),
            to: NodeId::new(1).unwrap(),
            boot: 9,
            status: Status::NoCommonSuite,
            slot: Slot(Slot::COUNT - 1),
            suite: Suite::Aes256Gcm,
            bindings: hello().bindings,
            features: Features::ALL,
        };
        assert_eq!(Welcome::read(&welcome.write()), Ok(welcome));
    }

    #[test]
    fn a_node_older_than_the_features_has_none() {
        let hello = hello();
        let exact = hello.write(0);
        let older = Hello { features: Features::NONE, ..hello.clone() };
        // Its padding says so in an initiation, and its silence in a response.
        for cut in 1..=4 {
            let short = &exact[..exact.len() - cut];
            assert_eq!(Hello::read(short).as_ref(), Ok(&older));
        }
        let mut padded = exact[..exact.len() - 4].to_vec();
        padded.resize(1_100, 0);
        assert_eq!(Hello::read(&padded), Ok(older));
        let welcome = Welcome {
            from: NodeId::new(2).unwrap(),
            to: NodeId::new(1).unwrap(),
            boot: 9,
            status: Status::Accepted,
            slot: Slot(7),
            suite: Suite::Aes256Gcm,
            bindings: hello.bindings,
            features: Features::ALL,
        };
        let exact = welcome.write();
        let read = Welcome::read(&exact[..exact.len() - 4]).unwrap();
        assert_eq!(read, Welcome { features: Features::NONE, ..welcome });
    }

    #[test]
    fn later_features_are_kept_and_what_follows_is_padding() {
        let features = Features::from_bits(0x8000_0003);
        let mut bytes = Hello { features, ..hello() }.write(0);
        bytes.extend([0xff; 9]);
        assert_eq!(Hello::read(&bytes).unwrap().features, features);
    }

    #[test]
    fn later_suites_are_passed_over() {
        let mut bytes = hello().write(0);
        bytes[25] = 200;
        assert_eq!(Hello::read(&bytes).unwrap().suites, [Suite::Clear]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(hello) = Hello::read(&bytes) {
                prop_assert!(hello.slot.0 < Slot::COUNT);
            }
            if let Ok(welcome) = Welcome::read(&bytes) {
                prop_assert!(welcome.slot.0 < Slot::COUNT);
            }
        }
    }
}
