//! Parts of the way, each without the others.

use std::hint::black_box;

use encap::crypto::aead::{Suite, TAG_LEN};
use encap::crypto::bench::Load;
use encap::crypto::key::EpochSecret;
use encap::crypto::replay::{ReplayWindow, Verdict};
use encap::crypto::seal::{KeyLimits, ROOM_IN_FRONT, TxLane};
use encap::crypto::session::{Session, SessionFacts};
use encap::forward::fdb::{Fdb, FdbLimits, Learn, Place};
use encap::handshake::features::Features;
use encap::id::PeerIndex;
use encap::offload::coalesce::{Coalescer, Limits};
use encap::offload::segment::SuperFrame;
use encap::wire::buf::Checksum;
use encap::wire::checksum::complete_checksum;
use encap::wire::ethernet::MacAddr;
use encap::wire::header::{Handle, InnerHeader, Kind, Lane, Slot};

use super::frames::{self, Frame, SEGMENTS};
use super::{Case, Stage};

/// Datagrams or frames that go through at a time.
const ROUNDS: usize = 64;

/// What is done to a frame in front of its seal.
pub fn before_sealing() -> Vec<Case> {
    vec![
        Case::new("fdb-lookup", Lookup::new),
        Case::new("split-44x1448", || Split {
            frame: frames::super_frame(),
            out: Vec::with_capacity(1 << 17),
        }),
        Case::new("checksum-1400", || Sum { frames: vec![frames::udp(1_400, true); ROUNDS] }),
    ]
}

/// What is done to a datagram besides opening it, and to its frame afterwards.
pub fn behind_opening() -> Vec<Case> {
    vec![
        Case::new("replay", || Replay { window: ReplayWindow::new(), next: 0 }),
        Case::new("coalesce-44x1448", || Coalesce {
            frames: frames::segments(&frames::super_frame()),
            coalescer: Coalescer::new(),
        }),
    ]
}

/// Seals payloads where they lie, with the headers in front.
pub struct Seal {
    lane: TxLane,
    len: usize,
    datagrams: Vec<Vec<u8>>,
}

impl Seal {
    /// Payloads of `len` bytes.
    pub fn new(suite: Suite, len: usize) -> Self {
        let secret = |direction: u8| EpochSecret::first(&[direction; 32], &[2; 32], suite);
        let slot = Slot(1);
        let facts = SessionFacts {
            serial: 1,
            peer: PeerIndex(0),
            local_slot: slot,
            remote_slot: slot,
            suite,
            boot: 0,
            features: Features::SUPPORTED,
            limits: KeyLimits::of(suite),
        };
        let session = Session::new(facts, secret(1), secret(3));
        let lane = session.tx_lane(Lane(0)).expect("nobody had the lane");
        let datagram = || Vec::with_capacity(ROOM_IN_FRONT + len + TAG_LEN);
        Self { lane, len, datagrams: (0..ROUNDS).map(|_| datagram()).collect() }
    }
}

impl Stage for Seal {
    fn frames(&self) -> usize {
        ROUNDS
    }

    fn prepare(&mut self) {
        for datagram in &mut self.datagrams {
            datagram.clear();
            datagram.resize(ROOM_IN_FRONT + self.len, 0x5a);
        }
    }

    fn work(&mut self) -> usize {
        let inner = InnerHeader { kind: Kind::Frame, handle: Handle::NONE };
        let lane = &mut self.lane;
        self.datagrams.iter_mut().filter_map(|out| lane.seal(inner, out, 0).ok()).count()
    }
}

/// Opens datagrams where they lie: the cipher alone.
pub struct Open(Load);

impl Open {
    /// Frames of `len` bytes.
    pub fn new(suite: Suite, len: usize) -> Self {
        Self(Load::new(suite, len, ROUNDS * (len + 32)).expect("the suite seals"))
    }
}

impl Stage for Open {
    fn frames(&self) -> usize {
        self.0.count()
    }

    fn prepare(&mut self) {
        assert!(self.0.seal(), "sealing works");
    }

    fn work(&mut self) -> usize {
        if self.0.open() { self.0.count() } else { 0 }
    }
}

/// Looks every station of a network up, past the workers' own memory of the last one.
struct Lookup {
    fdb: Fdb,
    stations: Vec<MacAddr>,
}

impl Lookup {
    /// As many as make the luck of the map's random hash no matter.
    const STATIONS: u16 = 4_096;

    fn new() -> Self {
        let fdb = Fdb::new(FdbLimits { max_entries: 8_192, ..FdbLimits::default() });
        let station = |number: u16| {
            let [high, low] = number.to_be_bytes();
            let mac = MacAddr([2, 0, 0, 1, high, low]);
            assert_ne!(
                fdb.learn(mac, Place::Peer(PeerIndex(u32::from(number))), 0),
                Learn::Refused
            );
            mac
        };
        let stations = (0..Self::STATIONS).map(station).collect();
        Self { fdb, stations }
    }
}

impl Stage for Lookup {
    fn frames(&self) -> usize {
        self.stations.len()
    }

    fn prepare(&mut self) {}

    fn work(&mut self) -> usize {
        self.stations.iter().filter(|mac| self.fdb.lookup(**mac, 1).is_some()).count()
    }
}

/// Checks and commits numbers in order, as they come without loss.
struct Replay {
    window: ReplayWindow,
    next: u32,
}

impl Stage for Replay {
    fn frames(&self) -> usize {
        ROUNDS * ROUNDS
    }

    fn prepare(&mut self) {}

    fn work(&mut self) -> usize {
        let first = self.next;
        self.next = first.wrapping_add(self.frames() as u32);
        let window = &mut self.window;
        let mut is_new = |number: u32| {
            // The cipher stands between the two.
            let checked = black_box(window.check(number));
            checked == Verdict::Fresh && window.commit(number) == Verdict::Fresh
        };
        (0..(ROUNDS * ROUNDS) as u32).filter(|at| is_new(first.wrapping_add(*at))).count()
    }
}

/// Cuts a super-frame.
struct Split {
    frame: Frame,
    out: Vec<u8>,
}

impl Stage for Split {
    fn frames(&self) -> usize {
        SEGMENTS
    }

    fn prepare(&mut self) {
        self.out.clear();
    }

    fn work(&mut self) -> usize {
        let offload = self.frame.offload;
        let Some(segmentation) = offload.segmentation else { return 0 };
        let Ok(cut) = SuperFrame::new(&self.frame.bytes, segmentation, offload.checksum) else {
            return 0;
        };
        (0..cut.count()).for_each(|index| cut.write(index, false, &mut self.out));
        cut.count()
    }
}

/// Makes a super-frame of frames that follow each other.
struct Coalesce {
    frames: Vec<Frame>,
    coalescer: Coalescer,
}

impl Stage for Coalesce {
    fn frames(&self) -> usize {
        self.frames.len()
    }

    fn prepare(&mut self) {
        self.coalescer.clear();
    }

    fn work(&mut self) -> usize {
        for (index, frame) in self.frames.iter().enumerate() {
            self.coalescer.add(index, &frame.bytes, frame.offload.checksum, Limits::default());
        }
        let mut largest = 0;
        for group in self.coalescer.groups() {
            largest = largest.max(group.members.map(black_box).count());
        }
        largest
    }
}

/// Completes checksums that came partial.
struct Sum {
    frames: Vec<Frame>,
}

impl Stage for Sum {
    fn frames(&self) -> usize {
        self.frames.len()
    }

    fn prepare(&mut self) {}

    fn work(&mut self) -> usize {
        // What the field holds is part of the sum, so any number of times is as good as once.
        let complete = |frame: &mut Frame| match frame.offload.checksum {
            Checksum::Partial { start, offset } => {
                complete_checksum(&mut frame.bytes, start, offset).is_ok()
            }
            Checksum::Complete => false,
        };
        self.frames.iter_mut().map(complete).filter(|done| *done).count()
    }
}
