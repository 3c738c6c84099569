//! What the control thread tells a running worker, and what it hears of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};

use encap::datapath::{ControlInput, To};
use encap::id::{LocalPort, Vni};
use encap::stats::DropReason;
use encap::wire::header::Handle;

use super::channels::ChannelCommand;
use super::{PortSlot, Worker, WorkerCounters};
use crate::port::{DatagramPort, FramePort, MAX_BURST};
use crate::uplink::UplinkError;
use crate::wake::Waker;

/// What a worker tells the control thread, through a bounded queue.
#[derive(Debug)]
pub enum Notice {
    /// For [`encap::vtep::Vtep::handle_input`].
    Control(ControlInput),
    /// The path reported an error for a datagram.
    UplinkError(UplinkError),
    /// A local port is gone; the worker does without it.
    PortGone {
        /// Our handle of its network: tells it from a port that was made anew for the same one.
        handle: Handle,
        /// Its network.
        vni: Vni,
        /// Which of the network's ports.
        local: LocalPort,
        /// What the kernel said.
        error: io::Error,
    },
}

/// A change of what a worker serves while it runs.
#[derive(Debug)]
pub enum Command<F> {
    /// Serve this port too.
    AddPort {
        /// Our handle of its network.
        handle: Handle,
        /// Its network.
        vni: Vni,
        /// Which of the network's ports; [`encap::vtep::Vtep::set_local_ports`] knows it already.
        local: LocalPort,
        /// The port.
        port: F,
    },
    /// Give one port of this network back. Closing the last queue of a tap takes the kernel
    /// milliseconds, which no worker has.
    RemovePort {
        /// Our handle of the network.
        handle: Handle,
        /// Which of its ports.
        local: LocalPort,
        /// Where to.
        give_back: Sender<F>,
    },
    /// Give all ports of this network back.
    RemovePorts {
        /// Our handle of the network.
        handle: Handle,
        /// Where to.
        give_back: Sender<F>,
    },
    /// Write a frame of our own into the tap of a network: a loop probe.
    Inject {
        /// Our handle of the network.
        handle: Handle,
        /// All of it.
        frame: Vec<u8>,
    },
    /// About raw channels: for the one worker that has them.
    Channels(ChannelCommand),
}

/// The way to a running worker.
#[derive(Debug)]
pub struct WorkerHandle<F> {
    pub(super) commands: Arc<Mailbox<F>>,
    pub(super) waker: Waker,
    pub(super) counters: Arc<WorkerCounters>,
}

#[derive(Debug)]
pub(super) struct Mailbox<F> {
    pub(super) waiting: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) commands: Mutex<Vec<Command<F>>>,
}

impl<F> WorkerHandle<F> {
    /// Has the worker change its ports soon.
    pub fn send(&self, command: Command<F>) {
        self.commands.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.commands.waiting.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Has the worker look at its ports and at the tables now, even if nothing comes.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Has the worker end.
    pub fn stop(&self) {
        self.commands.stop.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// What the worker counts.
    #[must_use]
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.counters
    }
}

impl<F: FramePort, D: DatagramPort> Worker<F, D> {
    pub(super) fn take_commands(&mut self) {
        let commands = std::mem::take(
            &mut *self.mailbox.commands.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for command in commands {
            match command {
                Command::AddPort { handle, vni, local, port } => {
                    let out = Vec::with_capacity(MAX_BURST);
                    self.ports.push(PortSlot { handle, vni, local, port, out });
                }
                Command::RemovePort { handle, local, give_back } => {
                    let is_it =
                        |slot: &mut PortSlot<F>| (slot.handle, slot.local) == (handle, local);
                    for slot in self.ports.extract_if(.., is_it) {
                        // Nobody waits any more: it is closed here.
                        let _ = give_back.send(slot.port);
                    }
                }
                Command::RemovePorts { handle, give_back } => {
                    for slot in self.ports.extract_if(.., |slot| slot.handle == handle) {
                        let _ = give_back.send(slot.port);
                    }
                }
                Command::Inject { handle, frame } => self.inject(handle, &frame),
                Command::Channels(command) => self.take_channel_command(command),
            }
        }
        self.watch();
    }

    fn inject(&mut self, handle: Handle, frame: &[u8]) {
        let Some(slot) = self.ports.iter().find(|slot| slot.handle == handle) else {
            return self.datapath.counters().count_drop(DropReason::NetworkUnknown);
        };
        self.deliveries.push_slice(handle, slot.vni, To::Port(LocalPort::TAP), frame);
        self.deliver();
    }

    /// A port was deleted under us. What it gave before must not be taken for another port's.
    pub(super) fn lose_port(&mut self, at: usize, error: io::Error) {
        let lost = self.frames.len() as u64;
        self.datapath.counters().count_drops(DropReason::NetworkUnknown, lost);
        self.frames.clear();
        let PortSlot { handle, vni, local, .. } = self.ports.swap_remove(at);
        self.gone.push(Notice::PortGone { handle, vni, local, error });
        self.tell_of_lost_ports();
        self.watch();
    }

    pub(super) fn tell_of_lost_ports(&mut self) {
        while let Some(notice) = self.gone.pop() {
            if let Err(TrySendError::Full(notice)) = self.control.try_send(notice) {
                self.gone.push(notice);
                break;
            }
            self.control_waker.wake();
        }
    }
}
