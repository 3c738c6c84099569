//! Guests on VM ports of two nodes that are joined by DPDK ports.
//!
//! ```text
//!   guest one                                                    guest two
//!   10.100.0.11                                                  10.100.0.12
//!       |  vhost-user                                  vhost-user  |
//!    alpha (tap100 10.100.0.1)               beta (tap100 10.100.0.2)
//!       |  198.18.0.1 under0 ---------------- under0 198.18.0.2    |
//!       +- 198.18.1.1 under1 ---------------- under1 198.18.1.2   -+
//! ```

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use integration::cluster::overlay_v4;
use integration::config::{ClusterConfig, ClusterDir};
use integration::guest::{Guest, GuestOptions, GuestPort, Socket};
use integration::lanes::{Cut, Lanes};
use integration::links::{Link, links, wait_links};
use integration::node::Node;
use integration::skip::case;
use integration::topology::Family;
use integration::traffic::ping_until_answer;

const ONE: &str = "10.100.0.11";
const TWO: &str = "10.100.0.12";
/// How long the overlay may take to carry a guest's frames again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a file may take between two emulated machines.
const FILE_PATIENCE: Duration = Duration::from_secs(120);
/// Size of the files.
const FILE_MIB: u32 = 20;

/// Two nodes and a guest at each. (Fields are dropped in this order.)
struct Guests {
    one: Guest,
    two: Guest,
    alpha: Node,
    beta: Node,
    _dir: ClusterDir,
    lanes: Lanes,
}

/// What the guests' cards are.
#[derive(Clone, Copy)]
struct Cards {
    queues: u8,
    socket: Socket,
}

impl Guests {
    /// Boots them, with addresses.
    fn boot(cards: Cards, change: impl FnOnce(&mut ClusterConfig)) -> Result<Self> {
        let lanes = Lanes::plain(Family::V4, 2)?;
        let config = lanes.give_to_dpdk()?;
        Self::boot_over(lanes, config, cards, change)
    }

    /// The same over these cables.
    fn boot_over(
        lanes: Lanes,
        mut config: ClusterConfig,
        cards: Cards,
        change: impl FnOnce(&mut ClusterConfig),
    ) -> Result<Self> {
        config.networks[0].subnets.truncate(1);
        config.sections = "[dpdk]\nmemory_mb = 128\nhugepages = false\n".to_owned();
        change(&mut config);
        let dir = ClusterDir::new(&config)?;
        let mode = match cards.socket {
            Socket::Theirs => "server",
            Socket::Qemus => "client",
        };
        let start = |name: &str, host| {
            let socket = dir.path(&format!("{name}.vm"));
            let local = dir.path(&format!("{name}.local.toml"));
            let port =
                format!("{{ socket = {socket:?}, mode = {mode:?}, queues = {} }}", cards.queues);
            fs::write(&local, format!("[[networks]]\nvni = 100\nvhost_user = [{port}]\n"))?;
            let local = local.to_str().ok_or_else(|| anyhow!("a folder without a name"))?;
            Node::start_with(&dir, host, name, &["--local", local])
        };
        let (alpha, beta) = (start("alpha", &lanes.alpha)?, start("beta", &lanes.beta)?);
        let boot = |name: &str, node: &str, number| {
            let port = GuestPort::new(dir.path(&format!("{node}.vm")), number);
            let port = GuestPort { queues: cards.queues, socket: cards.socket, ..port };
            let processors = cards.queues;
            Guest::start(&GuestOptions { processors, ..GuestOptions::new(name, port) })
        };
        let (mut one, mut two) = (boot("one", "alpha", 1)?, boot("two", "beta", 2)?);
        alpha.wait_peer_up(2)?;
        beta.wait_peer_up(1)?;
        for (guest, address) in [(&mut one, ONE), (&mut two, TWO)] {
            guest.wait_booted()?;
            guest.set_address(0, &format!("{address}/24"))?;
        }
        let mut this = Self { one, two, alpha, beta, _dir: dir, lanes };
        this.one.ping_until_answer(TWO, PATIENCE)?;
        Ok(this)
    }

    /// A file from the second guest arrives whole at the first.
    fn check_file(&mut self) -> Result<()> {
        let sum = self.two.make_file("noise", FILE_MIB)?;
        self.two.serve("noise")?;
        let got = self.one.get_file(TWO, FILE_PATIENCE)?;
        ensure!(got == sum, "{got} arrived of {sum}");
        Ok(())
    }

    fn power_off(self) -> Result<()> {
        self.one.power_off()?;
        self.two.power_off()
    }
}

const PLAIN: Cards = Cards { queues: 1, socket: Socket::Theirs };

#[test]
fn flow_guests_on_two_nodes_reach_each_other() {
    case(|| {
        let mut guests = Guests::boot(PLAIN, |_| {})?;
        guests.one.ping(TWO, 5, 56)?;
        // The largest that its card's MTU of 1500 lets pass: more than a datagram carries.
        guests.one.ping(TWO, 5, 1472)?;
        // The node's own tap, and that of the other one, are in the same network.
        guests.one.ping("10.100.0.1", 3, 56)?;
        guests.one.ping("10.100.0.2", 3, 56)?;
        ping_until_answer(&guests.lanes.beta, ONE.parse()?, PATIENCE)?;
        guests.check_file()?;
        guests.two.serve_dhcp(0, "10.100.0.100", "10.100.0.120")?;
        let got = guests.one.ask_dhcp(0)?;
        ensure!(got.starts_with("10.100.0.1") && got != ONE, "the server gave {got}");
        guests.one.ping(TWO, 3, 56)?;
        for (node, to) in [(&guests.alpha, 1), (&guests.beta, 2)] {
            let drops = node.drops()?;
            ensure!(drops.get("open_failed").is_none_or(|count| *count == 0), "{drops:?}");
            ping_until_answer(node.netns(), overlay_v4(100, 3 - to), PATIENCE)?;
        }
        guests.power_off()
    });
}

#[test]
fn flow_guests_outlive_cables_nodes_and_themselves() {
    case(|| {
        let mut guests = Guests::boot(PLAIN, |_| {})?;
        guests.one.start_pinging(TWO, 50)?;
        guests.one.ping(TWO, 10, 56)?;
        let all = links(&guests.alpha, 2)?;
        let carrying = all.iter().position(Link::is_sending).context("no link carries frames")?;
        guests.lanes.cut(carrying, Cut::Carrier)?;
        wait_links(&guests.alpha, 2, "a link to be down", PATIENCE, |links| {
            links.iter().any(|link| !link.is_up())
        })?;
        guests.one.ping_until_answer(TWO, PATIENCE)?;
        guests.one.ping(TWO, 10, 56)?;
        let gap = guests.one.stop_pinging()?;
        eprintln!("a cable was cut: {} ms without an answer", gap * 50);
        ensure!(gap < 40, "{gap} pings in a row without an answer");
        guests.lanes.heal(carrying, Cut::Carrier)?;
        wait_links(&guests.alpha, 2, "both links to be up", PATIENCE, |links| {
            links.len() == 2 && links.iter().all(|link| link.is_up())
        })?;
        // The node behind the first guest's port ends and comes back, then crashes and comes back.
        for crash in [false, true] {
            match crash {
                false => guests.alpha.stop(&["tap100"])?,
                true => guests.alpha.kill(),
            }
            guests.alpha.restart()?;
            guests.alpha.wait_ready()?;
            guests
                .one
                .ping_until_answer(TWO, PATIENCE)
                .with_context(|| format!("after a restart of the node (crash: {crash})"))?;
            guests.one.ping(TWO, 5, 1472)?;
        }
        guests.one.reboot()?;
        guests.one.set_address(0, &format!("{ONE}/24"))?;
        guests.one.ping_until_answer(TWO, PATIENCE)?;
        guests.check_file()?;
        guests.power_off()
    });
}

#[test]
fn flow_guests_with_two_queues_make_their_own_sockets() {
    case(|| {
        let cards = Cards { queues: 2, socket: Socket::Qemus };
        let mut guests = Guests::boot(cards, |config| {
            config.workers = 2;
            // One queue of a DPDK port for each worker.
            for node in &mut config.nodes {
                node.extra = node.extra.replace("net_af_packet,", "net_af_packet,qpairs=2,");
            }
        })?;
        let queues = guests.one.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l")?;
        ensure!(queues == "2", "the guest has {queues} queues");
        guests.one.ping(TWO, 5, 1472)?;
        guests.check_file()?;
        guests.power_off()
    });
}

/// What the node's workers counted under this name.
fn count(node: &Node, name: &str) -> Result<u64> {
    let shown = node.show("counters")?;
    let workers = shown["workers"].as_array().ok_or_else(|| anyhow!("no workers in {shown}"))?;
    let counts = workers.iter().map(|worker| worker["counters"][name].as_u64());
    counts.sum::<Option<u64>>().ok_or_else(|| anyhow!("no {name} in {shown}"))
}

#[test]
fn flow_guests_wake_nodes_that_have_nothing_to_do() {
    case(|| {
        let lanes = Lanes::plain(Family::V4, 1)?;
        let config = lanes.config();
        let mut guests = Guests::boot_over(lanes, config, PLAIN, |_| {})?;
        let counts = |node: &Node| -> Result<[u64; 2]> {
            Ok([count(node, "waits")?, count(node, "wakes")?])
        };
        let before = counts(&guests.alpha)?;
        // Long enough apart for everybody to sleep between them.
        guests.one.run_within(&format!("ping -q -c 10 -i 1 -W 5 {TWO}"), PATIENCE)?;
        guests.one.reboot()?;
        guests.one.set_address(0, &format!("{ONE}/24"))?;
        guests.one.ping_until_answer(TWO, PATIENCE)?;
        guests.one.ping(TWO, 5, 56)?;
        let after = counts(&guests.alpha)?;
        for (node, name) in [(&guests.alpha, "alpha"), (&guests.beta, "beta")] {
            ensure!(count(node, "sleeps")? == 0, "{name} naps and looks: its ports do not wake it");
        }
        let [waits, wakes] = [0, 1].map(|at| after[at] - before[at]);
        ensure!(wakes > 20 && waits >= wakes, "{wakes} wake-ups in {waits} waits");
        for node in [&guests.alpha, &guests.beta] {
            let shown = node.show("ports")?;
            ensure!(shown.to_string().contains("\"interrupts\""), "{shown}");
        }
        guests.check_file()?;
        guests.power_off()
    });
}
