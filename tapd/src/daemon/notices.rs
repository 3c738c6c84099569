//! What the node says in its log about events and path errors: rare, and rationed where a packet
//! can cause it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

use encap::event::Event;
use encap::id::{NodeId, Vni};
use encap::link::choice::MoveCause;
use encap::link::id::LinkIndex;
use encap::link::liveness::{State, Transition};
use encap::wire::buf::UplinkId;
use fastpath::uplink::{UplinkError, UplinkErrorKind};
use log::{debug, error, info, warn};

use crate::config::Config;
use crate::control;
use crate::logging::{LimitKey, RATE_LIMIT_INTERVAL, RateLimit, Suppressed};

/// Rations lines and keeps the errors of each link.
#[derive(Default)]
pub(super) struct Notices {
    limit: RateLimit,
    errors: HashMap<SocketAddr, BTreeMap<String, u64>>,
    /// What may keep a peer down, by what came from its addresses since it went down. Anybody can
    /// have sent that: it is for people only.
    hints: HashMap<NodeId, &'static str>,
}

/// What people were last told of an address of this node, which may come and go often: each way at
/// most once in [`RATE_LIMIT_INTERVAL`], but how it is in the end always.
#[derive(Debug)]
pub(super) struct AddressNews {
    /// Whether it was there by what they were told.
    present: bool,
    gone_at: Option<Instant>,
    came_at: Option<Instant>,
}

impl AddressNews {
    /// They know whether it is there.
    pub(super) const fn new(present: bool) -> Self {
        Self { present, gone_at: None, came_at: None }
    }

    /// Whether to tell them now that it is there, or is not. To be asked again later: what is held
    /// back stays due.
    pub(super) fn is_due(&mut self, now: Instant, present: bool) -> bool {
        // Each way by itself, so that the last line is not held back by the one before.
        let last = if present { &mut self.came_at } else { &mut self.gone_at };
        let recent = last.is_some_and(|at| now.duration_since(at) < RATE_LIMIT_INTERVAL);
        if self.present == present || recent {
            return false;
        }
        *last = Some(now);
        self.present = present;
        true
    }
}

impl Notices {
    /// Errors of the path to an address, by kind.
    pub(super) fn errors(&self, remote: SocketAddr) -> BTreeMap<String, u64> {
        self.errors.get(&remote).cloned().unwrap_or_default()
    }

    /// What may keep a peer down, in a few words.
    pub(super) fn hint(&self, peer: NodeId) -> Option<&'static str> {
        self.hints.get(&peer).copied()
    }

    /// Forgets what is of addresses and nodes that are not in the configuration any more.
    pub(super) fn retain(&mut self, config: &Config) {
        self.hints.retain(|node, _| config.peers().any(|peer| peer.id == *node));
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

    /// Whether a line of this kind about an attachment is due; any station on its link can cause one.
    pub(super) fn of_uplink(
        &mut self,
        now: Instant,
        kind: &'static str,
        uplink: UplinkId,
    ) -> Option<Suppressed> {
        self.limit.admit(now, LimitKey { kind, peer: None, link: Some(uplink.0) })
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
            Event::PeerUp { node, cipher } => {
                self.hints.remove(node);
                info!("peer {} is up ({cipher})", name(*node));
            }
            Event::PeerDown { node, reason } => {
                // What came while it was up does not explain this: what still comes will say so.
                self.hints.remove(node);
                info!("peer {} is down: {}", name(*node), reason.text());
            }
            Event::Link { node, link, transition } => {
                let link_index = *link;
                let Transition { from, to, cause, .. } = transition;
                let (name, link) = (name(*node), link_name(config, *node, *link));
                let key = LimitKey {
                    kind: state_kind(*to),
                    peer: Some(*node),
                    link: Some(link_index.get()),
                };
                if let Some(more) = self.limit.admit(now, key) {
                    info!("link {link} to {name}: {from} -> {to}: {cause}{more}");
                }
            }
            Event::Moved { node, moved } => {
                if let Some(more) = self.admit(now, "link choice", Some(*node)) {
                    let link = |link| link_name(config, *node, link);
                    let (from, to) = (link(moved.from), link(moved.to));
                    info!(
                        "frames to {} go by link {to}, not {from}: {}{more}",
                        name(*node),
                        moved.cause.text()
                    );
                }
            }
            Event::PathMtu { node, link, from, to, how } => {
                if let Some(more) = self.admit(now, "path MTU", Some(*node)) {
                    let link = link_name(config, *node, *link);
                    info!(
                        "link {link} to {}: path MTU {from} -> {to} ({}){more}",
                        name(*node),
                        how.text()
                    );
                }
            }
            Event::Roamed { node, link, to } => {
                if let Some(more) = self.admit(now, "roamed", Some(*node)) {
                    let link = link_name(config, *node, *link);
                    info!("link {link} to {}: the peer is at {to} now{more}", name(*node));
                }
            }
            Event::LoopFound { vni, blocked } => warn!(
                "network {vni} loops: what left by its tap came back; it is closed here for {} s. \
                 Look for a second way between the bridges of its taps",
                blocked.as_secs()
            ),
            Event::LoopOver { vni } => info!("network {vni} is open again"),
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
                let peer = peer_at(config, *from);
                // Of configured nodes only: there are not more hints than those.
                self.hints.extend(peer.map(|peer| (peer, "it uses another cluster key")));
                if let Some(more) = self.admit(now, "key", peer) {
                    warn!("{from} uses another cluster key; compare the key files{more}");
                }
            }
            Event::VersionUnknown { from, version, highest } => {
                let peer = peer_at(config, *from);
                self.hints.extend(peer.map(|peer| (peer, "it speaks another version")));
                if let Some(more) = self.admit(now, "version", peer) {
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

/// Each state has lines of its own, so that the last one is not held back by the one before.
const fn state_kind(state: State) -> &'static str {
    match state {
        State::Up => "link up",
        State::Suspect => "link suspect",
        State::Down => "link down",
    }
}

/// The name of a link to a node, as the configuration has it.
pub(super) fn link_name(config: &Config, node: NodeId, link: LinkIndex) -> String {
    let peer = config.nodes.iter().find(|known| known.id == node);
    let pairs = peer.map(|peer| config.pairs(peer)).unwrap_or_default();
    pairs.get(link.at()).map_or_else(|| link.to_string(), |pair| pair.name.clone())
}

/// What those who watch are told of an event.
pub(super) fn told(config: &Config, event: &Event) -> Option<control::Event> {
    use control::Event as Told;
    let (node, told) = match event {
        Event::PeerUp { node, cipher } => (node, Told::new("peer_up", *cipher)),
        Event::PeerDown { node, reason } => (node, Told::new("peer_down", reason.text())),
        Event::Rekeyed { node } => (node, Told::new("rekeyed", "new keys")),
        Event::Link { node, link, transition } => {
            let name = match transition.to {
                State::Up => "link_up",
                State::Suspect => "link_suspect",
                State::Down => "link_down",
            };
            let mut told = Told::new(name, transition.cause.to_string());
            told.link = Some(link_name(config, *node, *link));
            told.more.insert("from".to_owned(), transition.from.to_string().into());
            (node, told)
        }
        Event::Moved { node, moved } => {
            let name = match moved.cause {
                MoveCause::FailOver => "fail_over",
                MoveCause::FailBack => "fail_back",
                MoveCause::Preferred => "preferred",
                MoveCause::Drain => "drained",
            };
            let (from, to) =
                (link_name(config, *node, moved.from), link_name(config, *node, moved.to));
            let mut told = Told::new(name, moved.cause.text());
            // Who reads "drained" wants to know which.
            let drained = moved.cause == MoveCause::Drain;
            told.link = Some(if drained { from.clone() } else { to.clone() });
            told.more.insert("from".to_owned(), from.into());
            told.more.insert("to".to_owned(), to.into());
            (node, told)
        }
        Event::PathMtu { node, link, from, to, how } => {
            let mut told = Told::new("path_mtu", how.text());
            told.link = Some(link_name(config, *node, *link));
            told.more.insert("from".to_owned(), (*from).into());
            told.more.insert("to".to_owned(), (*to).into());
            (node, told)
        }
        Event::Roamed { node, link, to } => {
            let mut told = Told::new("roamed", format!("the peer answers at {to}"));
            told.link = Some(link_name(config, *node, *link));
            (node, told)
        }
        Event::LoopFound { vni, blocked } => {
            let cause = "what left by the tap came back";
            return Some(of_network(config, *vni, "loop_found", cause, Some(blocked.as_secs())));
        }
        Event::LoopOver { vni } => {
            return Some(of_network(config, *vni, "loop_over", "the network is open again", None));
        }
        _ => return None,
    };
    Some(told.of_peer(node.get(), name(config, *node)))
}

fn of_network(
    config: &Config,
    vni: Vni,
    event: &str,
    cause: &str,
    blocked_s: Option<u64>,
) -> control::Event {
    let mut told = control::Event::new(event, cause);
    told.more.insert("vni".to_owned(), vni.get().into());
    if let Some(network) = config.own_networks().find(|network| network.vni == vni) {
        told.more.insert("network".to_owned(), network.name.clone().into());
    }
    if let Some(seconds) = blocked_s {
        told.more.insert("blocked_s".to_owned(), seconds.into());
    }
    told
}

fn peer_at(config: &Config, from: SocketAddr) -> Option<NodeId> {
    config.peers().find(|peer| peer.addresses().any(|a| a == from.ip())).map(|peer| peer.id)
}

#[cfg(test)]
mod tests {
    use encap::event::DownReason;

    use super::*;
    use crate::config::testing;

    #[test]
    fn the_last_state_of_an_address_is_told_once_the_interval_is_over() {
        let start = Instant::now();
        let mut news = AddressNews::new(true);
        let due: Vec<_> = [false, true, false, true, false]
            .into_iter()
            .map(|present| news.is_due(start, present))
            .collect();
        assert_eq!(due, [true, true, false, false, false]);
        let later = start + RATE_LIMIT_INTERVAL;
        assert!(news.is_due(later, false));
        assert!(!news.is_due(later, false), "told already");
        // What changed and changed back is no news.
        assert!(!news.is_due(later + RATE_LIMIT_INTERVAL, false));
    }

    #[test]
    fn a_hint_from_before_does_not_explain_why_a_peer_is_down() {
        let now = Instant::now();
        let config = testing::config(vec![testing::node(1), testing::node(2)]);
        let peer = config.peers().next().unwrap();
        let node = peer.id;
        let from = SocketAddr::new(peer.addresses().next().unwrap(), config.cluster.port);
        let mut notices = Notices::default();
        // Anybody can have sent that while the peer was up.
        notices.event(now, &config, &Event::KeyUnknown { from });
        notices.event(now, &config, &Event::PeerDown { node, reason: DownReason::Silent });
        assert_eq!(notices.hint(node), None);
        notices.event(now, &config, &Event::KeyUnknown { from });
        assert_eq!(notices.hint(node), Some("it uses another cluster key"));
    }
}
