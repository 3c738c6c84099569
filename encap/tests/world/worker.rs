//! What a node's worker does with frames and datagrams, and its control thread with both halves.

use std::net::SocketAddr;
use std::time::Instant;

use encap::datapath::{ControlInput, Datapath, Deliveries};
use encap::id::LocalPort;
use encap::vtep::Transmit;
use encap::wire::buf::{BufPool, FrameBurst, Offload, PacketBuf, Received, Transmits, UplinkId};
use encap::wire::header::Handle;

use super::{NodeIndex, World, vni};

/// What a worker makes of frames from one tap.
pub fn encapsulate(
    datapath: &mut Datapath,
    now: Instant,
    handle: Handle,
    frames: &[(&[u8], Offload)],
) -> Transmits {
    encapsulate_from(datapath, now, (handle, LocalPort::TAP), frames)
}

/// The same, of frames from any local port.
pub fn encapsulate_from(
    datapath: &mut Datapath,
    now: Instant,
    (handle, port): (Handle, LocalPort),
    frames: &[(&[u8], Offload)],
) -> Transmits {
    let room = frames.iter().map(|(bytes, _)| bytes.len() + 64).sum();
    let mut burst = FrameBurst::new(room, frames.len());
    for (bytes, offload) in frames {
        assert!(burst.push_slice(bytes, *offload));
    }
    let mut all = Transmits::default();
    datapath.admit(now, handle, port, &burst);
    for _ in 0..1_000 {
        // A worker sends and clears after each part.
        let mut out = Transmits::default();
        let done = datapath.encapsulate(now, &mut burst, &mut out);
        let at = all.memory.len();
        all.memory.extend(out.memory);
        all.list.extend(out.list.into_iter().map(|mut run| {
            run.range = run.range.start + at..run.range.end + at;
            run
        }));
        if done {
            return all;
        }
    }
    panic!("this never ends");
}

/// What a worker makes of a datagram that came by an uplink, from an address, with a mark.
pub fn decapsulate(
    datapath: &mut Datapath,
    now: Instant,
    (uplink, remote, mark): (UplinkId, SocketAddr, u8),
    bytes: &[u8],
) -> (Deliveries, Vec<ControlInput>) {
    let mut received = vec![Received::single(PacketBuf::from_slice(bytes), uplink, remote, mark)];
    let (mut pool, mut out, mut control) = (BufPool::new(0, 0), Deliveries::default(), Vec::new());
    datapath.decapsulate(now, &mut pool, &mut received, &mut out, &mut control);
    (out, control)
}

impl World {
    /// A frame comes out of the node's host and into its tap.
    pub fn transmit(&mut self, node: NodeIndex, bytes: &[u8]) {
        let now = self.now;
        let handle = self.nodes[node].vtep.tables().handles[&vni()];
        let this = &mut self.nodes[node];
        let mut resent = Transmits::default();
        this.datapath.resend(now, &mut resent);
        let out = encapsulate(&mut this.datapath, now, handle, &[(bytes, Offload::default())]);
        self.last_ways = out.datagrams().map(|(run, _)| run.uplink.0).collect();
        self.send_all(node, resent);
        self.send_all(node, out);
        self.take_returns(node);
    }

    /// Frames come out of one of a node's local ports at once; gives what stays on the node.
    pub fn transmit_from(
        &mut self,
        node: NodeIndex,
        port: LocalPort,
        frames: &[(&[u8], Offload)],
    ) -> Deliveries {
        let now = self.now;
        let this = &mut self.nodes[node];
        let handle = this.vtep.tables().handles[&vni()];
        let out = encapsulate_from(&mut this.datapath, now, (handle, port), frames);
        let mut returns = Deliveries::default();
        this.datapath.take_returns(&mut returns);
        self.last_ways = out.datagrams().map(|(run, _)| run.uplink.0).collect();
        self.send_all(node, out);
        self.take_returns(node);
        returns
    }

    pub(super) fn send_all(&mut self, node: NodeIndex, out: Transmits) {
        for (run, bytes) in out.datagrams() {
            self.put_on_wire(node, run.uplink, run.remote, run.mark, bytes.to_vec());
        }
    }

    /// As the worker does after each half of its turn.
    pub(super) fn take_returns(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        let mut returns = Deliveries::default();
        this.datapath.take_returns(&mut returns);
        this.returned.extend(returns.iter().map(|(_, bytes)| bytes.to_vec()));
        let news: Vec<_> = this.datapath.take_news().collect();
        self.hand_over(node, news);
    }

    /// As the worker does when frames wait for a session.
    fn send_waiting(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        if !this.datapath.has_waiting() {
            return;
        }
        let mut out = Transmits::default();
        this.datapath.send_waiting(self.now, &mut out);
        self.send_all(node, out);
    }

    /// As the worker does when the control half wakes it.
    fn wake(&mut self, node: NodeIndex) {
        let this = &mut self.nodes[node];
        if !this.vtep.poll_wake() {
            return;
        }
        let mut out = Transmits::default();
        this.datapath.resend(self.now, &mut out);
        // In the middle of its sockets it has not seen all that came.
        if self.reading != Some(node) {
            this.datapath.end_pass();
            this.datapath.end_pass();
        }
        self.send_all(node, out);
    }

    pub(super) fn hand_over(&mut self, node: NodeIndex, control: Vec<ControlInput>) {
        for input in control {
            if self.drop_proofs && matches!(input, ControlInput::SessionProven { .. }) {
                continue;
            }
            self.nodes[node].vtep.handle_input(self.now, input);
            self.drain(node);
        }
    }

    /// Sends what the node wants sent and notes what it reports.
    pub fn drain(&mut self, node: NodeIndex) {
        while let Some(transmit) = self.nodes[node].vtep.poll_transmit() {
            if self.nodes[node].alive {
                let Transmit { uplink, remote, payload, mark } = transmit;
                self.put_on_wire(node, uplink, remote, mark, payload);
            }
        }
        while let Some((_, frame)) = self.nodes[node].vtep.poll_tap_frame() {
            self.nodes[node].injected.push(frame);
        }
        self.wake(node);
        while let Some(event) = self.nodes[node].vtep.poll_event() {
            self.nodes[node].events.push(event);
        }
        self.send_waiting(node);
    }
}
