//! Another configuration in a running node: what changed comes and goes, the rest goes on.

use std::time::Instant;

use encap::id::{LocalPort, Vni};
use encap::wire::header::Handle;
use log::{info, warn};

use super::networks::Networks;
use super::{Daemon, protocol};
use crate::config::{Change, Config, NetworkConfig, VhostUser};
use crate::control::ReloadReply;
use crate::logging;

/// Leaves out the networks and VM ports that are not open: the next reload finds them to be new.
pub(super) fn keep_opened(networks: &Networks, config: &mut Config) {
    let own = config.own;
    config
        .networks
        .retain(|network| !network.members.contains(&own) || networks.get(network.vni).is_some());
    for network in &mut config.networks {
        let Some(opened) = networks.get(network.vni) else { continue };
        let is_open = |port: &VhostUser| opened.vm_ports.iter().any(|vm| vm.config == *port);
        network.vhost_user.retain(is_open);
    }
}

impl Daemon {
    /// Reads the configuration again and puts it in force.
    fn reload(&mut self) -> Result<ReloadReply, String> {
        let new = self.source.load().map_err(|faults| {
            format!("the configuration has faults; nothing was changed\n{faults}")
        })?;
        if new.own != self.config.own {
            return Err(format!(
                "this node would be node {} instead of {}: restart tapd for that; nothing was \
                 changed",
                new.own, self.config.own
            ));
        }
        let changes = self.config.diff(&new);
        let mut config = self.config.with_live_changes(&new);
        protocol::vtep_config(&config, &self.uplinks, &self.networks)
            .map_err(|error| format!("{error:#}; nothing was changed"))?;
        let mut reply = ReloadReply { needs_restart: changes.restart, ..ReloadReply::default() };
        // What goes away goes first: what comes may want the same tap name or socket.
        for (change, _) in &changes.live {
            self.close(change, &config);
        }
        for (change, line) in changes.live {
            match self.apply(&change, &config) {
                Ok(()) => reply.applied.push(line),
                Err(error) => reply.failed.push(format!("{line}: {error}")),
            }
        }
        self.networks.update(&config);
        self.mend_taps(&config, &mut reply);
        keep_opened(&self.networks, &mut config);
        self.channels.keep_opened(&mut config);
        self.notices.retain(&config);
        self.config = config;
        self.reconfigure()?;
        self.channels.hand_over(&self.config, &self.workers);
        self.watch_remotes();
        // Links that came with it have not heard of interfaces yet.
        self.look_at_interfaces();
        Ok(reply)
    }

    /// Makes the taps anew that networks lost and went on without.
    fn mend_taps(&mut self, config: &Config, reply: &mut ReloadReply) {
        for network in self.networks.iter_mut() {
            let line = format!("network {}: its tap {} anew", network.config.vni, network.label());
            match network.mend_tap(config) {
                Ok(false) => {}
                Ok(true) => reply.applied.push(line),
                Err(error) => reply.failed.push(format!("{line}: {error}")),
            }
        }
    }

    /// Tells the protocol what is in force, and the workers of new taps.
    fn reconfigure(&mut self) -> Result<(), String> {
        let config = protocol::vtep_config(&self.config, &self.uplinks, &self.networks)
            .map_err(|error| error.to_string())?;
        self.vtep.reconfigure(Instant::now(), config);
        self.networks.hand_queues(&mut self.vtep, &self.workers);
        Ok(())
    }

    /// Somebody deleted a tap. Without VM ports the network is not here any more, and the peers are
    /// told.
    pub(super) fn lose_port(
        &mut self,
        handle: Handle,
        vni: Vni,
        local: LocalPort,
        error: &std::io::Error,
    ) {
        if self.vtep.tables().handles.get(&vni) != Some(&handle) {
            // Another worker said so before, and the tap may have been made anew since.
            return;
        }
        let network = self.networks.get_mut(vni).filter(|network| !network.vm_ports.is_empty());
        if let Some(network) = network {
            // As above.
            if local == LocalPort::TAP && network.tap.is_some() {
                log::error!(
                    "the tap of network {vni} is gone ({error}), its VM ports are not; `tapd \
                     reload` makes it anew"
                );
                network.lose_tap(handle, &mut self.vtep, &self.workers);
            }
            return;
        }
        log::error!("the tap of network {vni} is gone ({error}); `tapd reload` makes it anew");
        self.networks.forget(vni);
        keep_opened(&self.networks, &mut self.config);
        if let Err(error) = self.reconfigure() {
            warn!("{error}");
        }
    }

    /// Closes what a change takes away.
    fn close(&mut self, change: &Change, config: &Config) {
        if let Change::ChannelRemoved(name) | Change::ChannelChanged(name) = change {
            return self.channels.remove(name);
        }
        let (Change::NetworkRemoved(vni) | Change::VmPortsChanged(vni)) = change else { return };
        let Some(handle) = self.vtep.tables().handles.get(vni).copied() else { return };
        let Some(wanted) = config.own_networks().find(|network| network.vni == *vni) else {
            return self.networks.remove(handle, *vni, &self.workers);
        };
        if let Some(network) = self.networks.get_mut(*vni) {
            network.close_vm_ports(&wanted.vhost_user, handle, &mut self.vtep, &self.workers);
        }
    }

    /// The part of a change that the protocol does not do itself, after [`Self::close`] for all.
    fn apply(&mut self, change: &Change, config: &Config) -> Result<(), String> {
        match change {
            Change::NetworkAdded(vni) => {
                let network = config.own_networks().find(|network| network.vni == *vni);
                let network = network.ok_or("it is not in the configuration")?;
                self.add_network(config, network)
            }
            Change::LogChanged => {
                logging::set_filter(&config.daemon.log).map_err(|error| error.to_string())
            }
            Change::VmPortsChanged(vni) => {
                let network = config.own_networks().find(|network| network.vni == *vni);
                self.open_vm_ports(config, network.ok_or("it is not in the configuration")?)
            }
            Change::ChannelAdded(name) | Change::ChannelChanged(name) => {
                let channel = config.own_channels().find(|channel| channel.name == *name);
                let channel = channel.ok_or("it is not in the configuration")?;
                self.channels.add(config, channel).map_err(|error| format!("{error:#}"))
            }
            Change::ChannelAccessChanged(name) => {
                let channel = config.own_channels().find(|channel| channel.name == *name);
                let channel = channel.ok_or("it is not in the configuration")?;
                self.channels
                    .set_access(name, &channel.access)
                    .map_err(|error| format!("{error:#}"))
            }
            _ => Ok(()),
        }
    }

    fn add_network(&mut self, config: &Config, network: &NetworkConfig) -> Result<(), String> {
        self.networks.add(config, network, &self.uplinks).map_err(|failure| failure.to_string())?;
        self.open_vm_ports(config, network)
    }

    fn open_vm_ports(&mut self, config: &Config, wanted: &NetworkConfig) -> Result<(), String> {
        let Some(network) = self.networks.get_mut(wanted.vni) else { return Ok(()) };
        let opened = network.open_vm_ports(&wanted.vhost_user, config, &mut self.dpdk);
        opened.map_err(|failure| failure.to_string())
    }

    /// [`Self::reload`] with lines in the log, whoever asked for it.
    pub(super) fn logged_reload(&mut self) -> Result<ReloadReply, String> {
        let outcome = self.reload();
        match &outcome {
            Ok(reply) => {
                for line in &reply.applied {
                    info!("reload: {line}");
                }
                for line in &reply.needs_restart {
                    warn!("reload: needs a restart: {line}");
                }
                for line in &reply.failed {
                    warn!("reload: failed: {line}");
                }
                let silent = [&reply.applied, &reply.needs_restart, &reply.failed];
                if silent.iter().all(|lines| lines.is_empty()) {
                    info!("reload: nothing changed");
                }
            }
            Err(error) => warn!("reload: {error}"),
        }
        outcome
    }
}
