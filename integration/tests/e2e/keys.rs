//! Nodes that must not talk to each other, and keys that are rolled.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cluster::{Duo, overlay_v4};
use integration::config::{ClusterConfig, ClusterDir};
use integration::load::{Place, UdpPath, rate};
use integration::netns;
use integration::node::Node;
use integration::skip::case;
use integration::topology::{Family, Pair};
use integration::traffic::{SteadyPing, ping};
use integration::wait;

const PATIENCE: Duration = Duration::from_secs(10);

/// Two nodes with a configuration and key directory each, as on two hosts.
struct Apart {
    alpha: Node,
    beta: Node,
    alpha_dir: ClusterDir,
    beta_dir: ClusterDir,
    pair: Pair,
}

impl Apart {
    fn start(alpha: &ClusterConfig, beta: &ClusterConfig, same_key: bool) -> Result<Self> {
        let pair = Pair::new(Family::V4, 1500)?;
        let (alpha_dir, beta_dir) = (ClusterDir::new(alpha)?, ClusterDir::new(beta)?);
        if same_key {
            let key = fs::read_to_string(alpha_dir.path("cluster.key"))?;
            beta_dir.replace_key("cluster.key", &key)?;
        }
        let alpha = Node::start(&alpha_dir, &pair.alpha, "alpha")?;
        let beta = Node::start(&beta_dir, &pair.beta, "beta")?;
        Ok(Self { alpha, beta, alpha_dir, beta_dir, pair })
    }

    /// Insists that nothing gets across, and that at least one side counts `reason` and logs it
    /// with one of the `words`.
    fn refuse_each_other(&self, reasons: &[&str], words: &[&str]) -> Result<()> {
        let counted = |node: &Node| {
            node.drops().is_ok_and(|drops| {
                reasons.iter().any(|reason| drops.get(*reason).is_some_and(|n| *n > 0))
            })
        };
        wait::until(&format!("one of {reasons:?} to be counted"), PATIENCE, || {
            counted(&self.alpha) || counted(&self.beta)
        })?;
        wait::until(&format!("one of {words:?} in a log"), PATIENCE, || {
            [&self.alpha, &self.beta].iter().any(|node| {
                let log = node.log().to_lowercase();
                words.iter().any(|word| log.contains(word))
            })
        })?;
        let report = ping(&self.pair.alpha, overlay_v4(100, 2), 5, 56)?;
        ensure!(report.received == 0, "pings got across: {report:?}");
        wait::holds_for("both are down for each other", Duration::from_secs(2), || {
            !self.alpha.peer_is_up(2) && !self.beta.peer_is_up(1)
        })
    }
}

#[test]
fn sec_wrong_key_is_refused_by_name() {
    case(|| {
        let config = ClusterConfig::new(Family::V4, 2);
        let apart = Apart::start(&config, &config, false)?;
        apart.refuse_each_other(&["handshake_key_unknown", "handshake_bad_mac"], &["key"])?;
        // Who looks at the peers need not look at the log too.
        let peers = apart.alpha.tapd(&["show", "peers"])?;
        ensure!(peers.contains("no answer yet; it uses another cluster key"), "{peers}");
        let links = apart.alpha.tapd(&["show", "links"])?;
        ensure!(links.contains("nothing heard yet"), "{links}");
        Ok(())
    });
}

#[test]
fn sec_clear_and_sealed_refuse_each_other() {
    case(|| {
        let sealed = ClusterConfig::new(Family::V4, 2);
        let clear = sealed.clone().in_clear();
        let reasons = ["handshake_no_suite"];
        Apart::start(&clear, &sealed, true)?.refuse_each_other(&reasons, &["cipher", "suite"])?;
        Apart::start(&sealed, &clear, true)?.refuse_each_other(&reasons, &["cipher", "suite"])
    });
}

#[test]
fn sec_sealed_is_preferred_and_clear_needs_both() {
    case(|| {
        let mut both = ClusterConfig::new(Family::V4, 2);
        both.ciphers = vec!["aes-256-gcm".to_owned(), "none".to_owned()];
        both.insecure = true;
        let sealed = ClusterConfig::new(Family::V4, 2);
        let apart = Apart::start(&both, &sealed, true)?;
        apart.alpha.wait_peer_up(2)?;
        for (node, peer) in [(&apart.alpha, 2), (&apart.beta, 1)] {
            node.wait_peer_up(peer)?;
            let cipher = node.peer(peer).map(|p| p["cipher"].clone());
            ensure!(cipher == Some("aes-256-gcm".into()), "{cipher:?}");
        }
        Ok(())
    });
}

/// Counts a steady flow of datagrams while `body` runs; gives how many were lost.
fn lost_meanwhile(pair: &Pair, span: Duration, body: impl FnOnce() -> Result<()>) -> Result<u64> {
    let (near, far) = (netns::open(pair.alpha.name())?, netns::open(pair.beta.name())?);
    let path = UdpPath::open(
        &Place { netns: &near, address: overlay_v4(100, 1) },
        &Place { netns: &far, address: overlay_v4(100, 2) },
    )?;
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| rate::trial(&path, 200, Some(3000.0), span));
        let result = body();
        let trial = flow.join().map_err(|_| anyhow::anyhow!("the flow died"))??;
        result?;
        ensure!(trial.sent > 1000, "too few were sent: {trial:?}");
        Ok(trial.sent.saturating_sub(trial.received))
    })
}

#[test]
fn sec_key_roll_loses_nothing() {
    case(|| {
        let config = ClusterConfig::new(Family::V4, 2);
        let with_next = ClusterConfig { next_key: true, ..config.clone() };
        let mut apart = Apart::start(&config, &config, true)?;
        apart.alpha.wait_peer_up(2)?;
        apart.beta.wait_peer_up(1)?;
        let pings = SteadyPing::start(&apart.pair.beta, overlay_v4(100, 1), 2)?;
        let old = fs::read_to_string(apart.alpha_dir.path("cluster.key"))?;
        apart.alpha_dir.generate_key("next.key")?;
        let new = fs::read_to_string(apart.alpha_dir.path("next.key"))?;
        ensure!(new != old);
        apart.beta_dir.replace_key("next.key", &new)?;
        let handshakes = |node: &Node, peer| {
            node.peer(peer).and_then(|p| p["handshakes"].as_u64()).unwrap_or_default()
        };
        let lost = lost_meanwhile(&apart.pair, Duration::from_secs(5), || {
            let sides = [(&apart.alpha, &apart.alpha_dir), (&apart.beta, &apart.beta_dir)];
            // Each step on one host after the other, as an administrator would.
            for (node, dir) in sides {
                dir.write(&with_next)?;
                node.tapd(&["reload"])?;
            }
            for (node, dir) in sides {
                dir.replace_key("cluster.key", &new)?;
                dir.replace_key("next.key", &old)?;
                node.tapd(&["reload"])?;
            }
            let before = handshakes(&apart.alpha, 2);
            apart.alpha.tapd(&["peer", "rehandshake", "--all"])?;
            wait::until("a handshake under the new key", PATIENCE, || {
                handshakes(&apart.alpha, 2) > before
            })?;
            for (node, dir) in sides {
                dir.write(&config)?;
                node.tapd(&["reload"])?;
            }
            let before = handshakes(&apart.beta, 1);
            apart.beta.tapd(&["peer", "rehandshake", "alpha"])?;
            wait::until("a handshake with the old key gone", PATIENCE, || {
                handshakes(&apart.beta, 1) > before
            })
        })?;
        ensure!(lost == 0, "{lost} datagrams were lost");
        let lost = pings.lost()?;
        ensure!(lost == 0, "{lost} pings were lost");
        // The old key is worth nothing any more.
        apart.beta.stop(&["tap100"])?;
        apart.beta_dir.replace_key("cluster.key", &old)?;
        apart.beta.restart()?;
        apart.beta.wait_ready()?;
        apart.refuse_each_other(&["handshake_key_unknown", "handshake_bad_mac"], &["key"])
    });
}

#[test]
fn sec_rehandshake_and_rotation_lose_nothing() {
    case(|| {
        // A key for 1,000 packets: several rotations in every second of the flow.
        let mut config = ClusterConfig::new(Family::V4, 2);
        config.daemon_extra = "rotate_packets = 1000\n".to_owned();
        let duo = Duo::with(Pair::new(Family::V4, 1500)?, &config)?;
        let epoch =
            || duo.alpha.peer(2).and_then(|peer| peer["epoch_tx"].as_u64()).unwrap_or_default();
        let before = epoch();
        let lost = lost_meanwhile(&duo.pair, Duration::from_secs(3), || {
            wait::until("two rotations", PATIENCE, || epoch() >= before + 2)?;
            for node in [&duo.alpha, &duo.beta] {
                node.tapd(&["peer", "rehandshake", "--all"])?;
            }
            Ok(())
        })?;
        ensure!(lost == 0, "{lost} datagrams were lost");
        Ok(())
    });
}
