//! Frames into local ports: opened ones, and those that never left this node.

use encap::datapath::{Deliveries, Delivery, To};
use encap::stats::DropReason;
use encap::wire::buf::OutFrame;
use encap::wire::header::Handle;

use super::{PortSlot, Worker, unix_time};
use crate::capture::Direction;
use crate::port::{DatagramPort, FramePort};

impl<F: FramePort, D: DatagramPort> Worker<F, D> {
    /// Writes frames to the ports that they are for, those of one port together.
    pub(super) fn deliver(&mut self) {
        if self.capture.is_running() {
            let time = unix_time();
            for (delivery, bytes) in self.deliveries.iter() {
                self.capture.offer(time, delivery.vni, Direction::ToPort, bytes);
            }
        }
        self.sort_out();
        for slot in self.ports.iter_mut().filter(|slot| !slot.out.is_empty()) {
            let report = slot.port.tx_burst(&mut self.deliveries.pieces, &slot.out);
            slot.out.clear();
            self.counters.tap_tx_no_room.add(report.no_room as u64);
            self.counters.tap_tx_too_large.add(report.too_large as u64);
            self.counters.tap_tx_failed.add(report.failed as u64);
        }
        self.datapath.release(&mut self.deliveries, &mut self.pool);
    }

    /// Finds the ports of each frame (rule F10). Writing may change its bytes, so each port after the
    /// first gets a copy.
    fn sort_out(&mut self) {
        let Deliveries { pieces, list } = &mut self.deliveries;
        for Delivery { handle, to, frame, .. } in list.drain(..) {
            let mut takers = self.ports.iter_mut().filter(|slot| slot.takes(handle, to));
            let Some(first) = takers.next() else {
                self.datapath.counters().count_drop(DropReason::NetworkUnknown);
                continue;
            };
            first.out.push(frame);
            if matches!(to, To::Port(_)) {
                continue;
            }
            for slot in takers {
                let span = pieces.append_copy(frame.span, &mut self.pool);
                slot.out.push(OutFrame { span, ..frame });
            }
        }
    }
}

impl<F> PortSlot<F> {
    fn takes(&self, handle: Handle, to: To) -> bool {
        self.handle == handle && to.takes_in(self.local)
    }
}
