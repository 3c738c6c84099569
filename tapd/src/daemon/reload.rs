//! Another configuration in a running node: what changed comes and goes, the rest goes on.

use std::time::Instant;

use log::{info, warn};

use super::{Daemon, protocol};
use crate::config::{Change, Config};
use crate::control::ReloadReply;
use crate::logging;

impl Daemon {
    /// Reads the configuration again and puts it in force.
    fn reload(&mut self) -> Result<ReloadReply, String> {
        let new = self.source.load().map_err(|faults| {
            format!("the configuration has faults; nothing was changed\n{faults}")
        })?;
        let changes = self.config.diff(&new);
        let config = self.config.with_live_changes(&new);
        let mut applied = Vec::new();
        let mut failed = Vec::new();
        for (change, line) in &changes.live {
            match self.apply(change, &config) {
                Ok(()) => applied.push(line.clone()),
                Err(error) => failed.push(format!("{line}: {error}")),
            }
        }
        // A tap that could not be opened, or that somebody deleted, is tried again.
        for network in config.own_networks() {
            if self.networks.get(network.vni).is_some()
                || changes.live.iter().any(|(c, _)| *c == Change::NetworkAdded(network.vni))
            {
                continue;
            }
            match self.apply(&Change::NetworkAdded(network.vni), &config) {
                Ok(()) => applied.push(format!("tap {} made anew", network.tap)),
                Err(error) => failed.push(format!("tap {}: {error}", network.tap)),
            }
        }
        self.networks.update(&config);
        let vtep_config = protocol::vtep_config(&config, &self.uplinks, &self.networks)
            .map_err(|error| error.to_string())?;
        self.vtep.reconfigure(Instant::now(), vtep_config);
        self.networks.hand_queues(&self.vtep, &self.workers);
        self.config = config;
        if !failed.is_empty() {
            return Err(format!("applied except for: {}", failed.join("; ")));
        }
        Ok(ReloadReply { applied, needs_restart: changes.restart })
    }

    /// The part of a change that the protocol does not do itself.
    fn apply(&mut self, change: &Change, config: &Config) -> Result<(), String> {
        match change {
            Change::NetworkAdded(vni) => {
                let network = config.own_networks().find(|network| network.vni == *vni);
                let network = network.ok_or("it is not in the configuration")?;
                let workers = self.config.daemon.workers;
                self.networks
                    .add(config.own, network, workers, &self.uplinks)
                    .map_err(|failure| failure.to_string())
            }
            Change::NetworkRemoved(vni) => {
                self.networks.remove(*vni, &self.workers);
                Ok(())
            }
            Change::LogChanged => {
                logging::set_filter(&config.daemon.log).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        }
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
                if reply.applied.is_empty() && reply.needs_restart.is_empty() {
                    info!("reload: nothing changed");
                }
            }
            Err(error) => warn!("reload: {error}"),
        }
        outcome
    }
}
