//! The whole ways: frames to datagrams, datagrams to frames.

use encap::crypto::aead::Suite;
use encap::datapath::{ControlInput, Deliveries};
use encap::id::LocalPort;
use encap::wire::buf::{BufPool, Burst, FrameBurst, PacketBuf, Received, Transmits};
use encap::wire::header::Handle;

use super::frames::{self, Frame, SEGMENTS};
use super::pair::{Pair, burst_of, refill};
use super::{Case, Stage};

/// What the ways are measured with.
struct Load {
    name: &'static str,
    /// Bursts that go through at a time.
    rounds: usize,
    /// The frames of a burst.
    frames: fn() -> Vec<Frame>,
}

const LOADS: [Load; 4] = [
    Load { name: "64", rounds: 64, frames: || vec![frames::udp(64, true)] },
    Load { name: "32x106", rounds: 8, frames: || vec![frames::udp(106, true); 32] },
    Load { name: "1400", rounds: 64, frames: || vec![frames::udp(1_400, true)] },
    Load { name: "44x1448", rounds: 2, frames: || vec![frames::super_frame()] },
];

/// The cases of one suite.
pub fn cases(suite: Suite) -> impl Iterator<Item = Case> {
    LOADS.into_iter().flat_map(move |Load { name, rounds, frames }| {
        let encapsulate = move || Encapsulate::new(suite, rounds, frames());
        let decapsulate = move || Decapsulate::new(suite, rounds, frames());
        [
            Case::of_suite(&format!("encapsulate-{name}"), suite, encapsulate),
            Case::of_suite(&format!("decapsulate-{name}"), suite, decapsulate),
        ]
    })
}

/// Frames of a burst, the segments of super-frames being frames.
fn count(frames: &[Frame]) -> usize {
    frames.iter().map(|f| if f.offload.segmentation.is_some() { SEGMENTS } else { 1 }).sum()
}

/// Bursts of frames that are for one peer.
pub struct Encapsulate {
    pair: Pair,
    handle: Handle,
    frames: Vec<Frame>,
    bursts: Vec<FrameBurst>,
    out: Transmits,
}

impl Encapsulate {
    fn new(suite: Suite, rounds: usize, frames: Vec<Frame>) -> Self {
        let bursts = (0..rounds).map(|_| burst_of(&frames)).collect();
        let pair = Pair::new(suite);
        let handle = pair.near.handle();
        Self { pair, handle, frames, bursts, out: Transmits::default() }
    }

    /// Takes each burst through; `each` gets what it became.
    fn run(&mut self, mut each: impl FnMut(&Transmits)) -> usize {
        let Self { pair: Pair { now, near, .. }, handle, frames, bursts, out } = self;
        let mut done = 0;
        for burst in bursts {
            near.datapath.admit(*now, *handle, LocalPort::TAP, burst);
            while {
                out.clear();
                let pauses = !near.datapath.encapsulate(*now, burst, out);
                each(out);
                pauses
            } {}
            done += count(frames);
        }
        done
    }
}

impl Stage for Encapsulate {
    fn frames(&self) -> usize {
        count(&self.frames) * self.bursts.len()
    }

    fn prepare(&mut self) {
        assert_eq!(self.pair.near.drops(), 0, "frames are dropped");
        for burst in &mut self.bursts {
            refill(burst, &self.frames);
        }
    }

    fn work(&mut self) -> usize {
        let mut bytes = 0;
        let done = self.run(|out| bytes += out.memory.len());
        if bytes > 0 { done } else { 0 }
    }
}

/// Runs of datagrams from one peer, as a socket with UDP_GRO gives them.
pub struct Decapsulate {
    from: Encapsulate,
    received: Vec<Burst<Received>>,
    pool: BufPool,
    out: Deliveries,
    control: Burst<ControlInput>,
}

impl Decapsulate {
    fn new(suite: Suite, rounds: usize, frames: Vec<Frame>) -> Self {
        Self {
            from: Encapsulate::new(suite, rounds, frames),
            received: Vec::new(),
            pool: BufPool::new(65_536, 0),
            out: Deliveries::default(),
            control: Burst::new(),
        }
    }
}

impl Stage for Decapsulate {
    fn frames(&self) -> usize {
        self.from.frames()
    }

    fn prepare(&mut self) {
        let Self { from, received, pool, out, .. } = self;
        from.pair.far.datapath.release(out, pool);
        from.prepare();
        received.clear();
        let address = from.pair.near.address;
        from.run(|sent| {
            let run = |run| Received {
                buf: PacketBuf::from_slice(sent.bytes(run)),
                segment_size: run.segment_size,
                uplink: run.uplink,
                remote: address,
                mark: run.mark,
            };
            received.push(sent.list.iter().map(run).collect());
        });
    }

    fn work(&mut self) -> usize {
        let Self { from: Encapsulate { pair, .. }, received, pool, out, control } = self;
        let before = out.list.len();
        for burst in received {
            pair.far.datapath.decapsulate(pair.now, pool, burst, out, control);
        }
        out.list.len() - before
    }
}
