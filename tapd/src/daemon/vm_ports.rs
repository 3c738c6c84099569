//! VM ports of a network: opened, told apart, looked after.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::anyhow;
use encap::id::LocalPort;
use encap::vtep::Vtep;
use encap::wire::header::Handle;
use fastpath::overlay::OverlayPort;
use fastpath::tap::OffloadSwitches;
use fastpath::vhost::{VhostEvent, VhostOptions, VhostPort};
use log::{info, warn};

use super::RunningWorker;
use super::dpdk::Dpdk;
use super::networks::{GIVE_BACK_PATIENCE, Network};
use crate::config::{Config, VhostMode, VhostUser};
use crate::exit::Failure;

/// Virtio feature bits (virtio 1.2, section 5.1.3) that say what the two leave to each other.
const FEATURES: [(u32, &str); 7] = [
    (0, "guest sends partial checksums"),
    (1, "guest takes partial checksums"),
    (7, "guest takes TSO4"),
    (8, "guest takes TSO6"),
    (11, "guest sends TSO4"),
    (12, "guest sends TSO6"),
    (15, "buffers are joined"),
];

/// What a guest negotiated, in words.
pub(super) fn feature_names(features: u64) -> impl Iterator<Item = &'static str> {
    FEATURES.into_iter().filter(move |(bit, _)| features >> bit & 1 == 1).map(|(_, name)| name)
}

/// A VM port.
pub(super) struct VmPort {
    pub(super) config: VhostUser,
    pub(super) local: LocalPort,
    pub(super) port: VhostPort,
    /// Whether a guest is there.
    pub(super) connected: bool,
}

impl VmPort {
    /// What the port is called where ports are named.
    pub(super) fn name(&self) -> String {
        format!("vm {}", self.config.socket.display())
    }
}

impl Network {
    /// Opens the VM ports of the configuration that are not open yet.
    ///
    /// # Errors
    /// What stands in the way of the first one that cannot be opened; the others are open then.
    pub(super) fn open_vm_ports(
        &mut self,
        wanted: &[VhostUser],
        config: &Config,
        dpdk: &mut Option<Dpdk>,
    ) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for port in wanted {
            if self.vm_ports.iter().any(|open| open.config == *port) {
                continue;
            }
            if let Err(failure) = self.open_vm_port(port, config, dpdk) {
                warn!("network {}: {failure}", self.config.vni);
                outcome = outcome.and(Err(failure));
            }
        }
        outcome
    }

    fn open_vm_port(
        &mut self,
        wanted: &VhostUser,
        config: &Config,
        dpdk: &mut Option<Dpdk>,
    ) -> Result<(), Failure> {
        let used = self.local_ports();
        let free = (1..=LocalPort::MAX).find(|number| used >> number & 1 == 0);
        let local = free.and_then(LocalPort::new).ok_or_else(|| anyhow!("it has 63 VM ports"))?;
        if dpdk.is_none() {
            *dpdk = Dpdk::start(config)?;
        }
        let dpdk = dpdk.as_mut().ok_or_else(|| anyhow!("DPDK is not wanted"))?;
        let offload = &config.offload;
        let workers = config.daemon.workers;
        let options = VhostOptions {
            socket: wanted.socket.clone(),
            client: wanted.mode == VhostMode::Client,
            queues: wanted.queues(workers),
            workers,
            offload: OffloadSwitches {
                checksum: offload.tap_checksum,
                segmentation_tcp: offload.tap_tcp,
                segmentation_udp: offload.tap_udp,
            },
            interrupts: config.dpdk.interrupts,
            pool: dpdk.vm_pool().map_err(Failure::cannot_start)?,
        };
        let (port, queues) = VhostPort::open(&dpdk.eal, &options).map_err(Failure::cannot_start)?;
        info!(
            "network {}: VM port {} ({}), {} queues",
            self.config.vni,
            wanted.socket.display(),
            wanted.mode.name(),
            options.queues
        );
        let queues = queues.into_iter().map(|queue| OverlayPort::Vhost(Box::new(queue))).collect();
        self.queues.push((local, queues));
        self.vm_ports.push(VmPort { config: wanted.clone(), local, port, connected: false });
        Ok(())
    }

    /// Closes the VM ports that are not wanted any more.
    pub(super) fn close_vm_ports(
        &mut self,
        wanted: &[VhostUser],
        handle: Handle,
        vtep: &mut Vtep,
        workers: &[RunningWorker],
    ) {
        let unwanted = |port: &mut VmPort| !wanted.contains(&port.config);
        let closing: Vec<_> = self.vm_ports.extract_if(.., unwanted).collect();
        for VmPort { config, local, port, .. } in closing {
            self.take_back(handle, local, workers);
            drop(port);
            info!("network {}: VM port {} closed", self.config.vni, config.socket.display());
        }
        // Now, as the next port may get the number of one of these.
        self.tell_ports(vtep);
    }

    /// The ports that the network has here, as bits: the tap's is the first.
    pub(super) fn local_ports(&self) -> u64 {
        let vm_ports = self.vm_ports.iter().map(|port| 1 << port.local.get());
        vm_ports.fold(self.tap.is_some().into(), |bits, bit: u64| bits | bit)
    }

    /// Asks which guests came and went.
    pub(super) fn poll_vm_ports(&mut self) {
        let vni = self.config.vni;
        for VmPort { config, port, connected, .. } in &mut self.vm_ports {
            let socket = config.socket.display();
            while let Some(event) = port.poll() {
                match event {
                    VhostEvent::Connected { features } => {
                        *connected = true;
                        let names: Vec<_> = feature_names(features).collect();
                        info!("network {vni}: VM port {socket}: a guest is there ({})", {
                            names.join(", ")
                        });
                    }
                    VhostEvent::Disconnected => {
                        *connected = false;
                        info!("network {vni}: VM port {socket}: the guest is gone");
                    }
                }
            }
        }
    }
}

/// Closes what workers give back. Ends when every worker has answered; one that does not must not
/// hold up the rest.
pub(super) fn drop_given(given: &Receiver<OverlayPort>) {
    let deadline = Instant::now() + GIVE_BACK_PATIENCE;
    while let Ok(queue) = given.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        drop(queue);
    }
}
