//! A database's replication through `tapd forward`: nothing of it listens on a network.
//!
//! ```text
//!    alpha                                       beta
//!   replica -- :16379 tapd forward == 2 cables == tapd forward -- :6379 primary
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::command::{Running, is_installed, run_command};
use integration::lanes::Cut;
use integration::links::LaneDuo;
use integration::netns::Netns;
use integration::port::PATIENCE;
use integration::skip::{case, skip};
use integration::wait;

use super::channel_streams::forward;
use super::channels::duo;

/// Where both databases listen, each on its own machine only.
const PORT: &str = "6379";
/// Where the relay beside the replica stands for the primary.
const RELAY_PORT: &str = "16379";
/// Keys that there are in the end, and before the replica comes. Each has 1 KiB or so.
const KEYS: u32 = 10_000;
const EARLY_KEYS: u32 = 4_000;
/// Keys of one script.
const STEP: u32 = 1_000;

/// One database.
struct Redis<'a> {
    netns: &'a Netns,
    _running: Running,
}

impl<'a> Redis<'a> {
    /// Starts one that keeps nothing on disk but what replication makes there, and waits until it
    /// answers.
    fn start(duo: &LaneDuo, netns: &'a Netns, name: &str, arguments: &[&str]) -> Result<Self> {
        let folder = duo.dir.path(name);
        std::fs::create_dir_all(&folder)?;
        let mut command = netns.command("redis-server");
        command.args(["--port", PORT, "--bind", "127.0.0.1", "--daemonize", "no"]);
        command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        command.args(["--enable-debug-command", "local", "--dir"]).arg(&folder);
        command.arg("--logfile").arg(folder.join("log")).args(arguments);
        let this = Self { netns, _running: Running::spawn(&mut command)? };
        let answers = || this.ask(&["PING"]).is_ok_and(|answer| answer == "PONG");
        wait::until(&format!("the {name} to answer"), PATIENCE, answers)
            .with_context(|| std::fs::read_to_string(folder.join("log")).unwrap_or_default())?;
        Ok(this)
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.netns.command("redis-cli");
        command.args(["-e", "-p", PORT]).args(arguments);
        Ok(run_command(&mut command)?.trim().to_owned())
    }

    /// Sets keys `from` to `to - 1`.
    fn set(&self, from: u32, to: u32) -> Result<()> {
        const SCRIPT: &str = "for i = ARGV[1], ARGV[2] do \
             redis.call('SET', 'key:' .. i, string.rep(i .. ',', 200)) end";
        let range = [from, to - 1].map(|number| number.to_string());
        self.ask(&["EVAL", SCRIPT, "0", &range[0], &range[1]]).map(|_| ())
    }

    /// A value out of INFO.
    fn info(&self, section: &str, key: &str) -> Result<String> {
        let text = self.ask(&["INFO", section])?;
        let found = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
        found.map(str::to_owned).with_context(|| format!("no {key} in {text}"))
    }

    /// A hash over all keys and values.
    fn digest(&self) -> Result<String> {
        self.ask(&["DEBUG", "DIGEST"])
    }
}

#[test]
fn flow_channel_redis_replica_is_the_same_after_a_link_failed() {
    case(|| {
        for program in ["redis-server", "redis-cli"] {
            if !is_installed(program) {
                return Err(skip(format!("{program} is not installed")));
            }
        }
        let duo = duo()?;
        let primary = Redis::start(&duo, duo.beta.netns(), "primary", &[])?;
        primary.set(0, EARLY_KEYS)?;
        let relay = format!("127.0.0.1:{RELAY_PORT}");
        let _relays = [
            forward(&duo.beta, &["--connect", &format!("127.0.0.1:{PORT}")])?,
            forward(&duo.alpha, &["--listen", &relay, "--to", "beta"])?,
        ];
        let of = ["--replicaof", "127.0.0.1", RELAY_PORT];
        let replica = Redis::start(&duo, duo.alpha.netns(), "replica", &of)?;
        // It asks again once a second until the relays are there.
        wait::until("the replica to have what there was", PATIENCE, || {
            replica.info("replication", "master_link_status").is_ok_and(|status| status == "up")
        })?;
        let lane = duo.sending()?;
        for from in (EARLY_KEYS..KEYS).step_by(STEP as usize) {
            if from == (EARLY_KEYS + KEYS) / 2 {
                duo.lanes.cut(lane, Cut::DropBoth)?;
            }
            primary.set(from, from + STEP)?;
        }
        duo.wait_not_up(lane)?;
        let count = KEYS.to_string();
        let arrived = || replica.ask(&["DBSIZE"]).is_ok_and(|size| size == count);
        wait::until("all keys to arrive", Duration::from_secs(10), arrived)
            .with_context(|| format!("{:?} of {count}", replica.ask(&["DBSIZE"])))?;
        let digests = [primary.digest()?, replica.digest()?];
        ensure!(digests[0] == digests[1] && digests[0].len() == 40, "{digests:?}");
        // By one connection from the beginning to the end.
        let syncs = ["sync_full", "sync_partial_ok", "sync_partial_err"];
        let syncs = syncs.map(|key| primary.info("stats", key));
        let [full, again, refused] = syncs;
        ensure!((&*full?, &*again?, &*refused?) == ("1", "0", "0"), "it had to begin again");
        Ok(())
    });
}
