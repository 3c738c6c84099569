//! The node's virtual networks: their taps, addresses and MTUs.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, anyhow};
use encap::event::Event;
use encap::id::{LocalPort, NodeId, Vni};
use encap::vtep::Vtep;
use encap::wire::header::Handle;
use fastpath::overlay::OverlayPort;
use fastpath::tap::{OffloadSwitches, Tap, TapCounters, TapOptions};
use fastpath::worker::Command;
use log::{info, warn};

use super::RunningWorker;
use super::dpdk::Dpdk;
use super::uplinks::{ETHERNET_LEN, Uplinks};
use super::vm_ports::{VmPort, drop_given};
use crate::config::{Config, MacPolicy, NetworkConfig, TapMtu, derived_address, derived_mac};
use crate::exit::Failure;

/// Smallest MTU on which the kernel runs IPv6, in bytes (RFC 8200).
const MIN_IPV6_TAP_MTU: u32 = 1280;
/// How long a worker may take to give a queue back.
pub(super) const GIVE_BACK_PATIENCE: Duration = Duration::from_secs(1);

/// One network with its ports.
pub(super) struct Network {
    pub(super) config: NetworkConfig,
    /// Absent where the network has VM ports only.
    pub(super) tap: Option<Tap>,
    /// MTU that this node alone would give the tap.
    pub(super) own_tap_mtu: u32,
    /// MTU in force: lowered where another member takes less.
    pub(super) tap_mtu: u32,
    pub(super) arithmetic: String,
    pub(super) vm_ports: Vec<VmPort>,
    /// Queues that no worker has yet, one for each worker.
    pub(super) queues: Vec<(LocalPort, Vec<OverlayPort>)>,
}

/// All networks that this node takes part in.
#[derive(Default)]
pub(super) struct Networks {
    list: Vec<Network>,
}

impl Networks {
    pub(super) fn open(config: &Config, uplinks: &Uplinks) -> Result<Self, Failure> {
        let mut networks = Self::default();
        for network in config.own_networks() {
            networks.add(config, network, uplinks)?;
        }
        Ok(networks)
    }

    /// Opens the tap of one network and sets it up.
    pub(super) fn add(
        &mut self,
        config: &Config,
        network: &NetworkConfig,
        uplinks: &Uplinks,
    ) -> Result<(), Failure> {
        let auto = uplinks.tap_mtu();
        let (tap_mtu, arithmetic) = match network.tap_mtu {
            // Below this the kernel would switch IPv6 off; what does not fit goes in fragments.
            TapMtu::Auto if auto < MIN_IPV6_TAP_MTU => (
                MIN_IPV6_TAP_MTU,
                format!("{}; at least {MIN_IPV6_TAP_MTU}", uplinks.tap_mtu_arithmetic()),
            ),
            TapMtu::Auto => (auto, uplinks.tap_mtu_arithmetic()),
            TapMtu::Fixed(fixed) => {
                let fixed = u32::from(fixed);
                if fixed > auto {
                    info!(
                        "network {}: tap_mtu {fixed} is more than a datagram takes ({}); larger \
                         frames go in fragments",
                        network.vni,
                        uplinks.tap_mtu_arithmetic()
                    );
                }
                (fixed, format!("fixed in the configuration = {fixed}"))
            }
        };
        let has_ipv6 = network.subnets.iter().any(|subnet| subnet.addr().is_ipv6());
        if has_ipv6 && tap_mtu < MIN_IPV6_TAP_MTU {
            return Err(Failure::cannot_start(anyhow!(
                "network {}: its IPv6 subnet needs a tap MTU of {MIN_IPV6_TAP_MTU}; set tap_mtu to \
                 that or more, or take the IPv6 subnet out",
                network.vni
            )));
        }
        let (tap, queues) = match &network.tap {
            Some(name) => {
                let (tap, queues) = open_tap(config, network, name, tap_mtu)?;
                (Some(tap), vec![(LocalPort::TAP, queues)])
            }
            None => (None, Vec::new()),
        };
        info!(
            "network {} ({}): tap {}, MTU {tap_mtu} ({arithmetic})",
            network.vni,
            network.name,
            network.tap.as_deref().unwrap_or("none")
        );
        let config = network.clone();
        let own_tap_mtu = tap_mtu;
        let vm_ports = Vec::new();
        self.list.push(Network { config, tap, own_tap_mtu, tap_mtu, arithmetic, vm_ports, queues });
        Ok(())
    }

    /// Opens the VM ports of all networks. One that cannot be opened is left to the next reload: the
    /// directory of its socket may come later in the start of the machine.
    ///
    /// # Errors
    /// A network would have no port at all.
    pub(super) fn open_vm_ports(
        &mut self,
        config: &Config,
        dpdk: &mut Option<Dpdk>,
    ) -> Result<(), Failure> {
        for network in &mut self.list {
            let wanted = network.config.vhost_user.clone();
            let Err(failure) = network.open_vm_ports(&wanted, config, dpdk) else { continue };
            if network.local_ports() == 0 {
                return Err(failure);
            }
            let vni = network.config.vni;
            warn!("network {vni} starts without those; `tapd reload` tries them again");
        }
        Ok(())
    }

    pub(super) fn has_vm_ports(&self) -> bool {
        self.list.iter().any(|network| !network.vm_ports.is_empty())
    }

    /// Asks which guests came and went.
    pub(super) fn poll_vm_ports(&mut self) {
        self.list.iter_mut().for_each(Network::poll_vm_ports);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Network> {
        self.list.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Network> {
        self.list.iter_mut()
    }

    pub(super) fn get(&self, vni: Vni) -> Option<&Network> {
        self.list.iter().find(|network| network.config.vni == vni)
    }

    pub(super) fn get_mut(&mut self, vni: Vni) -> Option<&mut Network> {
        self.list.iter_mut().find(|network| network.config.vni == vni)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Gives queues that no worker has yet to the workers, one each.
    pub(super) fn hand_queues(&mut self, vtep: &mut Vtep, workers: &[RunningWorker]) {
        for network in &mut self.list {
            let vni = network.config.vni;
            let Some(handle) = vtep.tables().handles.get(&vni).copied() else { continue };
            // Before a worker serves them.
            network.tell_ports(vtep);
            for (local, queues) in network.queues.drain(..) {
                for (worker, port) in workers.iter().zip(queues) {
                    worker.handle.send(Command::AddPort { handle, vni, local, port });
                }
            }
        }
    }

    /// Takes over what may change while the tap goes on.
    pub(super) fn update(&mut self, config: &Config) {
        for network in &mut self.list {
            let vni = network.config.vni;
            if let Some(new) = config.own_networks().find(|new| new.vni == vni) {
                network.config = new.clone();
            }
        }
    }

    /// Closes the ports of a network. Their queues come back from the workers first, as an interface
    /// or a socket is there as long as one of them is open.
    pub(super) fn remove(&mut self, handle: Handle, vni: Vni, workers: &[RunningWorker]) {
        let (give_back, given) = channel();
        for worker in workers {
            let give_back = give_back.clone();
            worker.handle.send(Command::RemovePorts { handle, give_back });
        }
        drop(give_back);
        drop_given(&given);
        self.forget(vni);
    }

    /// The workers have no queue of the network any more.
    pub(super) fn forget(&mut self, vni: Vni) {
        self.list.retain(|network| network.config.vni != vni);
    }

    /// The members agreed on another frame size: the tap follows, unless its MTU is fixed.
    pub(super) fn take_event(&mut self, event: &Event) {
        let Event::MaxFrameLen { vni, max_frame_len } = *event else { return };
        let Some(network) = self.list.iter_mut().find(|n| n.config.vni == vni) else { return };
        let agreed = u32::from(max_frame_len).saturating_sub(ETHERNET_LEN);
        let TapMtu::Auto = network.config.tap_mtu else {
            if agreed < network.own_tap_mtu {
                warn!("network {vni}: another member takes only {agreed} bytes; tap_mtu is fixed");
            }
            return;
        };
        // Below 1280 the kernel would switch IPv6 off.
        let tap_mtu = agreed.max(MIN_IPV6_TAP_MTU).min(network.own_tap_mtu);
        if tap_mtu == network.tap_mtu {
            return;
        }
        let set = network.tap.as_ref().map_or(Ok(()), |tap| tap.interface().set_tap_mtu(tap_mtu));
        match set {
            Ok(()) => {
                info!(
                    "network {vni}: tap MTU {} -> {tap_mtu}, as all members take",
                    network.tap_mtu
                );
                network.tap_mtu = tap_mtu;
            }
            Err(error) => warn!("network {vni}: cannot set the tap's MTU to {tap_mtu}: {error}"),
        }
    }
}

impl Network {
    pub(super) fn counters(&self) -> &[Arc<TapCounters>] {
        self.tap.as_ref().map_or(&[], Tap::counters)
    }

    /// Somebody deleted the tap: the network goes on with its VM ports.
    pub(super) fn lose_tap(&mut self, handle: Handle, vtep: &mut Vtep, workers: &[RunningWorker]) {
        // Whoever has not noticed must not take the next tap for this one.
        self.take_back(handle, LocalPort::TAP, workers);
        self.tap = None;
        self.tell_ports(vtep);
    }

    /// Makes a tap anew that was lost; says whether it was.
    ///
    /// # Errors
    /// It cannot be opened or set up.
    pub(super) fn mend_tap(&mut self, config: &Config) -> Result<bool, Failure> {
        let (Some(name), None) = (&self.config.tap, &self.tap) else { return Ok(false) };
        let (tap, queues) = open_tap(config, &self.config, name, self.tap_mtu)?;
        self.tap = Some(tap);
        self.queues.push((LocalPort::TAP, queues));
        Ok(true)
    }

    /// Closes a port at the workers; it is no longer served then.
    pub(super) fn take_back(
        &mut self,
        handle: Handle,
        local: LocalPort,
        workers: &[RunningWorker],
    ) {
        let (give_back, given) = channel();
        for worker in workers {
            let give_back = give_back.clone();
            worker.handle.send(Command::RemovePort { handle, local, give_back });
        }
        drop(give_back);
        drop_given(&given);
        self.queues.retain(|(queued, _)| *queued != local);
    }

    /// Tells the protocol which ports the network has here.
    pub(super) fn tell_ports(&self, vtep: &mut Vtep) {
        if let Err(error) = vtep.set_local_ports(self.config.vni, self.local_ports()) {
            warn!("{error}");
        }
    }

    /// What the tap is called where a port is named.
    pub(super) fn tap_name(&self) -> &str {
        self.config.tap.as_deref().unwrap_or("none")
    }

    /// The tap, or the network where there is none.
    pub(super) fn label(&self) -> &str {
        self.config.tap.as_deref().unwrap_or(&self.config.name)
    }

    /// How the MTU in force comes about.
    pub(super) fn explain_tap_mtu(&self) -> String {
        if self.tap_mtu == self.own_tap_mtu {
            return self.arithmetic.clone();
        }
        format!("{}; another member takes only {}", self.arithmetic, self.tap_mtu)
    }
}

/// Opens the tap of a network and sets it up.
fn open_tap(
    config: &Config,
    network: &NetworkConfig,
    name: &str,
    tap_mtu: u32,
) -> Result<(Tap, Vec<OverlayPort>), Failure> {
    let (own, workers) = (config.own, config.daemon.workers);
    let offload = OffloadSwitches {
        checksum: config.offload.tap_checksum,
        segmentation_tcp: config.offload.tap_tcp,
        segmentation_udp: config.offload.tap_udp,
    };
    let options = TapOptions {
        name: name.to_owned(),
        queues: workers,
        existing: network.existing,
        tap_mtu: Some(tap_mtu),
        offload,
        // A limit would save local TCP a second run, and cost what is forwarded from containers
        // and VMs behind this node, whose super-frames the kernel would cut, forty times as much.
        super_frame_overhead: None,
    };
    let (tap, queues) = Tap::open(&options).map_err(Failure::cannot_start)?;
    for degraded in tap.degraded() {
        warn!("tap {name}: {degraded}");
    }
    if queues.len() < workers {
        // What other workers receive could not be written anywhere.
        return Err(Failure::cannot_start(anyhow!(
            "tap {name} has one queue for {workers} workers: make it with `multi_queue`, or set \
             workers = 1"
        )));
    }
    set_up(own, network, &tap)
        .with_context(|| format!("cannot set up tap {name}"))
        .map_err(Failure::cannot_start)?;
    Ok((tap, queues.into_iter().map(|queue| OverlayPort::Tap(Box::new(queue))).collect()))
}

fn set_up(own: NodeId, network: &NetworkConfig, tap: &Tap) -> anyhow::Result<()> {
    let interface = tap.interface();
    if network.mac == MacPolicy::Derived && !network.existing {
        interface.set_mac(derived_mac(network.vni, own)).context("cannot set its MAC address")?;
    }
    interface.set_up(true).context("cannot bring it up")?;
    for subnet in &network.subnets {
        let address = derived_address(*subnet, own)
            .ok_or_else(|| anyhow!("{subnet} has no address for node {own}"))?;
        add_address(interface, address)?;
    }
    Ok(())
}

fn add_address(
    interface: &fastpath::interface::Interface,
    address: ipnet::IpNet,
) -> anyhow::Result<()> {
    match interface.add_address(address.addr(), address.prefix_len()) {
        // An existing tap may have it from before.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.with_context(|| format!("cannot add address {address}")),
    }
}
