//! What a daemon says about its links: `tapd show links --json`, `tapd watch --json`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use crate::cluster::overlay_v4;
use crate::command::Running;
use crate::config::{ClusterConfig, ClusterDir};
use crate::flow::{Flow, FlowOptions};
use crate::lanes::{Lanes, Side};
use crate::node::Node;
use crate::wait;

/// How long a link may take to change its state before a test gives up. Tests of how fast it is
/// measure that themselves.
pub const PATIENCE: Duration = Duration::from_secs(8);

/// One link as `tapd show links --json` tells it.
#[derive(Debug, Clone)]
pub struct Link(Value);

impl Link {
    /// A text, empty if there is none.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    /// A number, 0 if there is none.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or(0)
    }

    /// A yes or no; no if there is neither.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.0[key].as_bool().unwrap_or(false)
    }

    /// Whether its state is `up`.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.text("state") == "up"
    }

    /// Whether it carries frames now.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.flag("sending")
    }

    /// How often it went from one state to another, of what the daemon remembers.
    #[must_use]
    pub fn transitions(&self, from: &str, to: &str) -> usize {
        let list = self.0["transitions"].as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter(|entry| entry["from"] == from && entry["to"] == to).count()
    }

    /// Whether the daemon says anything under this key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }
}

/// The links of `node` to the peer with this id, in the order of their index.
///
/// # Errors
/// The daemon does not answer.
pub fn links(node: &Node, peer: u16) -> Result<Vec<Link>> {
    let shown = node.show("links")?;
    let list = shown
        .as_array()
        .or_else(|| shown.get("links")?.as_array())
        .ok_or_else(|| anyhow!("no list of links in {shown}"))?;
    let mut links: Vec<Link> =
        list.iter().filter(|link| link["node"] == peer).cloned().map(Link).collect();
    links.sort_by_key(|link| link.number("index"));
    Ok(links)
}

/// One link of `node` to the peer with this id.
///
/// # Errors
/// There is none, or the daemon does not answer.
pub fn link(node: &Node, peer: u16, index: usize) -> Result<Link> {
    let all = links(node, peer)?;
    all.get(index).cloned().ok_or_else(|| anyhow!("no link {index} to node {peer}: {all:?}"))
}

/// Waits until the links of `node` to the peer with this id are as `wanted` says, and gives them.
///
/// # Errors
/// They were not within `deadline`; the error shows them.
pub fn wait_links(
    node: &Node,
    peer: u16,
    what: &str,
    deadline: Duration,
    wanted: impl Fn(&[Link]) -> bool,
) -> Result<Vec<Link>> {
    let what = format!("{} of {}", what, node.name());
    wait::until_some(&what, deadline, || links(node, peer).ok().filter(|links| wanted(links)))
        .with_context(|| format!("links: {}", node.tapd(&["show", "links"]).unwrap_or_default()))
}

/// An event of `tapd watch --json`.
#[derive(Debug, Clone)]
pub struct Event(Value);

impl Event {
    /// What happened.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text("event")
    }

    /// A text, empty if there is none.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    /// The whole of it.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.0
    }
}

/// A `tapd watch --json` under way; it ends on drop.
#[derive(Debug)]
pub struct Watch {
    events: Arc<Mutex<Vec<Event>>>,
    _running: Running,
}

impl Watch {
    /// Starts to watch; what happens from now on is seen.
    ///
    /// # Errors
    /// The program cannot be started, or does not reach the daemon.
    pub fn start(node: &Node) -> Result<Self> {
        let mut command = node.client(&["watch", "--json"]);
        let mut running = Running::spawn(command.stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
        let stdout = running.take_stdout().ok_or_else(|| anyhow!("no pipe to tapd watch"))?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(json) = serde_json::from_str(&line) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).push(Event(json));
                }
            }
        });
        wait::until("tapd watch to be connected", PATIENCE, || {
            running.ended().is_some() || has_client(node).unwrap_or(false)
        })?;
        ensure!(running.ended().is_none(), "tapd watch ended at once");
        // The daemon answers in order: once it has answered this, it has read the other.
        node.show("status")?;
        Ok(Self { events, _running: running })
    }

    /// All that happened so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many events of this name there were.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.events().iter().filter(|event| event.name() == name).count()
    }

    /// Waits for an event of this name, on this link if one is named, and gives it.
    ///
    /// # Errors
    /// There was none within [`PATIENCE`]; the error shows what there was.
    pub fn wait(&self, name: &str, link: Option<&str>) -> Result<Event> {
        let fits = |event: &Event| {
            event.name() == name && link.is_none_or(|link| event.text("link") == link)
        };
        let what = format!("event {name} on link {link:?}");
        wait::until_some(&what, PATIENCE, || self.events().into_iter().find(fits))
            .with_context(|| format!("events: {:?}", self.events()))
    }
}

/// Whether a client is connected to the control socket of `node`.
fn has_client(node: &Node) -> Result<bool> {
    // An accepted socket is listed in the network namespace of the process that connected: the
    // client's, which is ours or the node's.
    let table = || Ok(std::fs::read_to_string("/proc/thread-self/net/unix")?);
    let tables = [table()?, node.netns().enter(table)?];
    let path = node.socket();
    Ok(tables.iter().any(|table| connected(table, &path.to_string_lossy())))
}

/// Columns: number, references, protocol, flags, type, state (03 = connected), inode, path.
fn connected(table: &str, path: &str) -> bool {
    table.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.get(5) == Some(&"03") && columns.get(7) == Some(&path)
    })
}

/// Two nodes on several cables, all links up.
#[derive(Debug)]
pub struct LaneDuo {
    /// Node 1. (Fields are dropped in this order: daemons before what they stand on.)
    pub alpha: Node,
    /// Node 2.
    pub beta: Node,
    /// Their files.
    pub dir: ClusterDir,
    /// Their hosts.
    pub lanes: Lanes,
}

impl LaneDuo {
    /// Two nodes with `config` (see [`Lanes::config`]) on these hosts.
    ///
    /// # Errors
    /// Anything that keeps them and their links from being up.
    pub fn with(lanes: Lanes, config: &ClusterConfig) -> Result<Self> {
        let this = Self::start(lanes, config)?;
        this.wait_all_up()?;
        Ok(this)
    }

    /// The same, but only some of the links need come up.
    ///
    /// # Errors
    /// Anything that keeps them from being up with each other.
    pub fn start(lanes: Lanes, config: &ClusterConfig) -> Result<Self> {
        let dir = ClusterDir::new(config)?;
        let alpha = Node::start(&dir, &lanes.alpha, "alpha")?;
        let beta = Node::start(&dir, &lanes.beta, "beta")?;
        alpha.wait_peer_up(2)?;
        beta.wait_peer_up(1)?;
        let this = Self { alpha, beta, dir, lanes };
        // No question of who has an address disturbs what is measured.
        for (netns, host) in [(&this.lanes.alpha, 2), (&this.lanes.beta, 1)] {
            let (to, mac) = (overlay_v4(100, host).to_string(), overlay_mac(100, host));
            if netns.interfaces()?.iter().any(|name| name == "tap100") {
                netns.ip(&[
                    "neigh",
                    "replace",
                    &to,
                    "lladdr",
                    &mac,
                    "dev",
                    "tap100",
                    "nud",
                    "permanent",
                ])?;
            }
        }
        Ok(this)
    }

    /// Both nodes, each with the other's id.
    #[must_use]
    pub fn nodes(&self) -> [(&Node, u16); 2] {
        [(&self.alpha, 2), (&self.beta, 1)]
    }

    /// Waits until every link is up at both ends.
    ///
    /// # Errors
    /// One is not, within [`PATIENCE`].
    pub fn wait_all_up(&self) -> Result<()> {
        let count = self.lanes.lanes.len();
        for (node, peer) in self.nodes() {
            wait_links(node, peer, "all links to be up", PATIENCE, |links| {
                links.len() == count && links.iter().all(Link::is_up)
            })?;
        }
        Ok(())
    }

    /// Waits until a link is in another state than `up` at both ends.
    ///
    /// # Errors
    /// It is not, within [`PATIENCE`].
    pub fn wait_not_up(&self, index: usize) -> Result<()> {
        for (node, peer) in self.nodes() {
            let what = format!("link {index} not to be up");
            wait_links(node, peer, &what, PATIENCE, |links| {
                links.get(index).is_some_and(|link| !link.is_up())
            })?;
        }
        Ok(())
    }

    /// Waits until alpha sends by exactly this link.
    ///
    /// # Errors
    /// It does not, within [`PATIENCE`].
    pub fn wait_sending(&self, index: usize) -> Result<()> {
        let what = format!("link {index} alone to carry frames");
        wait_links(&self.alpha, 2, &what, PATIENCE, |links| {
            (0..).zip(links).all(|(at, link)| link.is_sending() == (at == index))
        })
        .map(|_| ())
    }

    /// The first link by which alpha sends.
    ///
    /// # Errors
    /// There is none, within [`PATIENCE`].
    pub fn sending(&self) -> Result<usize> {
        wait::until_some("a link to carry frames", PATIENCE, || {
            links(&self.alpha, 2).ok()?.iter().position(Link::is_sending)
        })
    }

    /// A flow from alpha to beta through network 100 that is under way.
    ///
    /// # Errors
    /// Nothing gets across.
    pub fn flow(&self, options: FlowOptions) -> Result<Flow> {
        self.flow_from(Side::Alpha, options)
    }

    /// A flow from one node to the other through network 100 that is under way.
    ///
    /// # Errors
    /// Nothing gets across.
    pub fn flow_from(&self, side: Side, options: FlowOptions) -> Result<Flow> {
        let alpha = (&*self.lanes.alpha, overlay_v4(100, 1));
        let beta = (&*self.lanes.beta, overlay_v4(100, 2));
        let (from, to) = if side == Side::Alpha { (alpha, beta) } else { (beta, alpha) };
        let flow = Flow::start(from, to, options)?;
        flow.wait_received((options.rate / 20.0) as u64 + 1, PATIENCE)?;
        Ok(flow)
    }
}

/// The derived MAC address of the tap of the node with this id in network `vni`.
#[must_use]
pub fn overlay_mac(vni: u32, id: u8) -> String {
    let [_, a, b, c] = vni.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:00:{id:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connected_clients_are_told_from_the_listener() {
        let listener = "0000000000000000: 00000002 00000000 00010000 0001 01 4711 /tmp/a.sock\n";
        let client = "0000000000000000: 00000003 00000000 00000000 0001 03 4712 /tmp/a.sock\n";
        assert!(!connected(listener, "/tmp/a.sock"));
        assert!(connected(&[listener, client].concat(), "/tmp/a.sock"));
        assert!(!connected(client, "/tmp/b.sock"));
    }

    #[test]
    fn a_link_answers_also_where_the_daemon_is_silent() {
        let link = Link(serde_json::json!({
            "state": "up", "sending": true, "path_mtu": 1500, "reason": null,
            "transitions": [{"from": "down", "to": "up"}, {"from": "up", "to": "suspect"}],
        }));
        assert!(link.is_up() && link.is_sending() && link.number("path_mtu") == 1500);
        assert_eq!((link.text("reason"), link.text("name"), link.number("copies")), ("", "", 0));
        assert_eq!((link.transitions("up", "suspect"), link.transitions("up", "down")), (1, 0));
        assert!(link.has("reason") && !link.has("copies"));
    }

    #[test]
    fn derived_addresses_of_taps() {
        assert_eq!(overlay_mac(100, 2), "02:00:00:64:00:02");
    }
}
