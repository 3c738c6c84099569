//! What the node says in its log about events and path errors: rare, and rationed where a packet
//! can cause it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

use encap::event::Event;
use encap::id::NodeId;
use fastpath::uplink::{UplinkError, UplinkErrorKind};
use log::{debug, error, info, warn};

use crate::config::Config;
use crate::control;
use crate::logging::{LimitKey, RateLimit, Suppressed};

/// Rations lines and keeps the errors of each link.
#[derive(Default)]
pub(super) struct Notices {
    limit: RateLimit,
    errors: HashMap<SocketAddr, BTreeMap<String, u64>>,
}

impl Notices {
    /// Errors of the path to an address, by kind.
    pub(super) fn errors(&self, remote: SocketAddr) -> BTreeMap<String, u64> {
        self.errors.get(&remote).cloned().unwrap_or_default()
    }

    /// Forgets the errors of addresses that are not in the configuration any more.
    pub(super) fn retain(&mut self, config: &Config) {
        self.errors.retain(|remote, _| {
            config.peers().any(|peer| peer.addresses().any(|a| a == remote.ip()))
        });
    }

    fn admit(
        &mut self,
        now: Instant,
        kind: &'static str,
        peer: Option<NodeId>,
    ) -> Option<Suppressed> {
        self.limit.admit(now, LimitKey { kind, peer, link: None })
    }

    pub(super) fn uplink_error(&mut self, now: Instant, config: &Config, error: &UplinkError) {
        let peer = config.peers().find(|peer| peer.addresses().any(|a| a == error.remote.ip()));
        // Only configured addresses are sent to, so the map stays small; strangers, to whom a
        // cookie may have gone, are not kept.
        let Some(peer) = peer else { return };
        // Nor are other ports of theirs, which only a forger's ICMP names.
        if error.remote.port() != config.cluster.port {
            return;
        }
        let kind = match error.kind {
            UplinkErrorKind::Refused => "refused",
            UplinkErrorKind::Unreachable => "unreachable",
            UplinkErrorKind::TooBig => "too_big",
            UplinkErrorKind::Other => "other",
        };
        let errors = self.errors.entry(error.remote).or_default();
        *errors.entry(kind.to_owned()).or_default() += 1;
        let (id, name, remote) = (peer.id, peer.name.clone(), error.remote);
        if let Some(more) = self.admit(now, kind, Some(id)) {
            let cause = std::io::Error::from_raw_os_error(error.errno);
            let fits =
                error.ip_mtu.map_or_else(String::new, |mtu| format!("; the path takes {mtu}"));
            info!("link to {name} ({remote}): {cause}{fits}{more}");
        }
    }

    pub(super) fn event(&mut self, now: Instant, config: &Config, event: &Event) {
        let name = |node: NodeId| name(config, node);
        match event {
            Event::PeerUp { node, cipher } => info!("peer {} is up ({cipher})", name(*node)),
            Event::PeerDown { node, reason } => {
                info!("peer {} is down: {}", name(*node), reason.text());
            }
            Event::Rekeyed { node } => debug!("peer {}: new keys", name(*node)),
            Event::NodeIdConflict { node, from } => {
                if let Some(more) = self.admit(now, "id conflict", Some(*node)) {
                    error!(
                        "two running nodes use id {node} ({}), one of them at {from}: \
                         give one of them another id{more}",
                        name(*node)
                    );
                }
            }
            Event::SourceUnknown { node, from } => {
                if let Some(more) = self.admit(now, "source", Some(*node)) {
                    warn!(
                        "{from} has the cluster key and claims to be {}, which is not at that \
                         address in the configuration: refused{more}",
                        name(*node)
                    );
                }
            }
            Event::NoCommonSuite { node } => {
                if let Some(more) = self.admit(now, "suite", Some(*node)) {
                    warn!(
                        "peer {}: no cipher in common; compare `ciphers` there and here{more}",
                        name(*node)
                    );
                }
            }
            Event::KeyUnknown { from } => {
                if let Some(more) = self.admit(now, "key", peer_at(config, *from)) {
                    warn!("{from} uses another cluster key; compare the key files{more}");
                }
            }
            Event::VersionUnknown { from, version, highest } => {
                if let Some(more) = self.admit(now, "version", peer_at(config, *from)) {
                    warn!(
                        "{from} speaks protocol version {version} (up to {highest}), \
                         this node speaks 1{more}"
                    );
                }
            }
            Event::MacFrozen { vni, mac } => {
                if let Some(more) = self.admit(now, "mac moves", None) {
                    warn!(
                        "network {vni}: {mac} moves between nodes too often and is frozen where \
                         it is for 30 s; look for a loop or a duplicate address{more}"
                    );
                }
            }
            // Logged where the tap is changed.
            Event::MaxFrameLen { .. } => {}
        }
    }
}

fn name(config: &Config, node: NodeId) -> String {
    let known = config.nodes.iter().find(|known| known.id == node);
    known.map_or_else(|| format!("node {node}"), |known| known.name.clone())
}

/// What those who watch are told of an event.
pub(super) fn told(config: &Config, event: &Event) -> Option<control::Event> {
    let (node, told) = match event {
        Event::PeerUp { node, cipher } => (node, control::Event::new("peer_up", *cipher)),
        Event::PeerDown { node, reason } => (node, control::Event::new("peer_down", reason.text())),
        Event::Rekeyed { node } => (node, control::Event::new("rekeyed", "new keys")),
        _ => return None,
    };
    Some(told.of_peer(node.get(), name(config, *node)))
}

fn peer_at(config: &Config, from: SocketAddr) -> Option<NodeId> {
    config.peers().find(|peer| peer.addresses().any(|a| a == from.ip())).map(|peer| peer.id)
}
