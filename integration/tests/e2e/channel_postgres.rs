//! PostgreSQL's streaming replication through `tapd forward`: nothing of it listens on a network.
//!
//! ```text
//!    alpha                                        beta
//!   standby -- :15432 tapd forward == 2 cables == tapd forward -- :5432 primary
//! ```

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration::command::{Running, run_command};
use integration::lanes::Cut;
use integration::links::LaneDuo;
use integration::netns::Netns;
use integration::port::PATIENCE;
use integration::skip::{case, skip};
use integration::wait;

use super::channel_streams::forward;
use super::channels::duo;

/// Where Debian has the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Debian's `nobody` and `nogroup`: PostgreSQL does not run as root.
const NOBODY: u32 = 65_534;
/// Where both databases listen, each on its own machine only.
const PORT: &str = "5432";
/// Where the relay beside the standby stands for the primary.
const RELAY_PORT: &str = "15432";
/// Rows that there are before the standby comes, and that are written afterwards. Each has 1 KiB
/// or so.
const EARLY_ROWS: u32 = 4_000;
const ROWS: u32 = 10_000;
/// Rows of one statement.
const STEP: u32 = 1_000;
/// What neither the machine's memory nor its disk has to keep when the test is over.
const SETTINGS: [&str; 6] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "autovacuum=off",
    "shared_buffers=16MB",
    // Files in its folder, which go with it.
    "dynamic_shared_memory_type=mmap",
];

/// The folder with the programs of the newest version that is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.flatten();
    let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let folders = versions.filter_map(|entry| Some((number(&entry)?, entry.path().join("bin"))));
    let whole = folders.filter(|(_, folder)| folder.join("postgres").is_file());
    whole.max().map(|(_, folder)| folder)
}

/// One database.
struct Postgres<'a> {
    netns: &'a Netns,
    programs: &'a Path,
    running: Running,
}

/// How long one of them may take that ends by itself: what it waits for may never come.
const LONGEST_S: &str = "60";

/// A program of PostgreSQL in a namespace, as nobody. What it asks of System V goes with it.
fn as_nobody(netns: &Netns, program: &Path) -> Command {
    let nobody = NOBODY.to_string();
    let mut command = netns.command("unshare");
    command.args(["--ipc", "setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
    command.args(["--pdeathsig", "keep"]).arg(program);
    command
}

impl<'a> Postgres<'a> {
    /// Starts one on what `folder` has, and waits until it answers.
    fn start(netns: &'a Netns, programs: &'a Path, folder: &Path) -> Result<Self> {
        let log = folder.with_extension("log");
        let mut command = as_nobody(netns, &programs.join("postgres"));
        command.arg("-D").arg(folder).args(["-p", PORT]);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.stderr(File::create(&log)?);
        let this = Self { netns, programs, running: Running::spawn(&mut command)? };
        let answers = || this.ask("SELECT 1").is_ok_and(|answer| answer == "1");
        wait::until(&format!("{} to answer", folder.display()), PATIENCE, answers)
            .with_context(|| fs::read_to_string(log).unwrap_or_default())?;
        Ok(this)
    }

    fn ask(&self, question: &str) -> Result<String> {
        let mut command = self.netns.command(self.programs.join("psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", PORT]);
        command.args(["-U", "postgres", "-d", "postgres", "-c", question]);
        command.env("PGCONNECT_TIMEOUT", "10").env("PGOPTIONS", "-c statement_timeout=60s");
        Ok(run_command(&mut command)?.trim().to_owned())
    }

    /// Writes rows `from` to `to - 1`.
    fn write(&self, from: u32, to: u32) -> Result<()> {
        let last = to - 1;
        self.ask(&format!(
            "INSERT INTO rows SELECT number, repeat(md5(number::text), 32) \
             FROM generate_series({from}, {last}) AS number"
        ))
        .map(|_| ())
    }

    /// How many rows there are, and a hash over all of them.
    fn contents(&self) -> Result<String> {
        self.ask("SELECT count(*), md5(string_agg(number || ' ' || filling, ',' ORDER BY number)) FROM rows")
    }

    /// Ends it in order, and everything that belongs to it.
    fn stop(mut self) -> Result<()> {
        self.running.signal(libc::SIGINT)?;
        let status = self.running.wait_end(PATIENCE)?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

/// A primary with the early rows.
fn primary<'a>(duo: &'a LaneDuo, programs: &'a Path, folder: &Path) -> Result<Postgres<'a>> {
    let netns = duo.beta.netns();
    let mut command = as_nobody(netns, Path::new("timeout"));
    command.arg(LONGEST_S).arg(programs.join("initdb"));
    command.args(["-U", "postgres", "--auth", "trust", "--no-sync", "--no-instructions"]);
    run_command(command.args(["--locale", "C", "-E", "UTF8", "-D"]).arg(folder))?;
    let primary = Postgres::start(netns, programs, folder)?;
    primary.ask("CREATE TABLE rows (number integer PRIMARY KEY, filling text NOT NULL)")?;
    primary.write(0, EARLY_ROWS)?;
    Ok(primary)
}

/// A standby that was copied from the primary by way of the relays, and goes on from there.
fn standby<'a>(duo: &'a LaneDuo, programs: &'a Path, folder: &Path) -> Result<Postgres<'a>> {
    let netns = duo.alpha.netns();
    let mut command = as_nobody(netns, Path::new("timeout"));
    command.arg(LONGEST_S).arg(programs.join("pg_basebackup"));
    command.args(["-h", "127.0.0.1", "-p", RELAY_PORT, "-U", "postgres", "--no-password"]);
    command.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]).arg(folder);
    run_command(&mut command)?;
    Postgres::start(netns, programs, folder)
}

#[test]
fn flow_channel_postgres_standby_is_the_same_after_a_link_failed() {
    case(|| {
        let Some(programs) = programs() else {
            return Err(skip("PostgreSQL's server is not installed"));
        };
        let duo = duo()?;
        // Nobody has to get to its folders, in a directory that is root's.
        fs::set_permissions(duo.dir.directory(), Permissions::from_mode(0o711))?;
        let folders = ["primary", "standby"].map(|name| duo.dir.path(name));
        for folder in &folders {
            fs::create_dir(folder)?;
            fs::set_permissions(folder, Permissions::from_mode(0o700))?;
            chown(folder, Some(NOBODY), Some(NOBODY))?;
        }
        let primary = primary(&duo, &programs, &folders[0])?;
        let relay = format!("127.0.0.1:{RELAY_PORT}");
        let connect = forward(&duo.beta, &["--connect", &format!("127.0.0.1:{PORT}")])?;
        let listen = forward(&duo.alpha, &["--listen", &relay, "--to", "beta"])?;
        duo.alpha.netns().enter(|| {
            let listens = || std::net::TcpStream::connect(&relay).is_ok();
            wait::until("the relay to listen", PATIENCE, listens)
        })?;
        let standby = standby(&duo, &programs, &folders[1])?;
        // Not what made the copy, which may not have ended yet at this end.
        let sender = "SELECT pid FROM pg_stat_replication \
                      WHERE state = 'streaming' AND application_name = 'walreceiver'";
        let streams = || primary.ask(sender).is_ok_and(|pid| !pid.is_empty());
        wait::until("the standby to be sent what is written", PATIENCE, streams)?;
        let before = primary.ask(sender)?;

        let lane = duo.sending()?;
        for from in (EARLY_ROWS..EARLY_ROWS + ROWS).step_by(STEP as usize) {
            if from == EARLY_ROWS + ROWS / 2 {
                duo.lanes.cut(lane, Cut::DropBoth)?;
            }
            primary.write(from, from + STEP)?;
        }
        duo.wait_not_up(lane)?;
        let end = primary.ask("SELECT pg_current_wal_lsn()")?;
        let question = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        let arrived = || standby.ask(&question).is_ok_and(|answer| answer == "t");
        wait::until("all rows to arrive", PATIENCE, arrived)?;
        let contents = [primary.contents()?, standby.contents()?];
        ensure!(contents[0] == contents[1], "{contents:?}");
        ensure!(contents[0].starts_with(&format!("{}|", EARLY_ROWS + ROWS)), "{contents:?}");
        // By one connection from the beginning to the end.
        ensure!(primary.ask(sender)? == before, "it had to connect again");

        // While the relays are there: a primary ends when its standby has everything.
        primary.stop()?;
        standby.stop()?;
        drop((connect, listen));
        Ok(())
    });
}
