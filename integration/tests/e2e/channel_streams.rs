//! Raw channels of streams, and the programs of others on them: rsync through `tapd forward`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use encap::id::NodeId;
use fastpath::channel::client::{Stream, StreamChannel};
use integration::command::{Running, is_installed, run_command};
use integration::links::LaneDuo;
use integration::node::Node;
use integration::port::PATIENCE;
use integration::skip::{case, skip};
use integration::stats::Random;
use integration::wait;

use super::channels::{duo, shown};

/// Port of the rsync daemon, and of the relay that stands for it at the other node.
const RSYNC_PORT: &str = "127.0.0.1:8730";

/// More streams than a node keeps in mind by accident.
const MANY: u64 = 300;

/// A stream from alpha to beta, both its ends.
pub(crate) fn streams(duo: &LaneDuo) -> Result<[Stream; 2]> {
    let path = duo.beta.channel("streams");
    let acceptor = std::thread::spawn(move || {
        let channel = StreamChannel::connect(&path)?;
        channel.set_read_timeout(Some(PATIENCE))?;
        channel.accept()
    });
    let channel = StreamChannel::connect(&duo.alpha.channel("streams"))?;
    channel.set_read_timeout(Some(PATIENCE))?;
    let near = channel.open(NodeId::new(2).context("an id")?)?;
    let far = acceptor.join().map_err(|_| anyhow::anyhow!("the acceptor died"))??;
    Ok([near, far])
}

pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Random::new(seed).fill(&mut bytes);
    bytes
}

#[test]
fn flow_channel_stream_carries_both_ways_and_ends_each_by_itself() {
    case(|| {
        let duo = duo()?;
        let [near, far] = streams(&duo)?;
        ensure!((near.peer().get(), far.peer().get()) == (2, 1), "other peers");
        let (forth, back) = (bytes(1, 20 << 20), bytes(2, 5 << 20));
        let ends = [(near, &forth, &back), (far, &back, &forth)];
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (stream, out, wanted) in ends {
                let (mut reader, mut writer) = stream.into_split();
                threads.push(scope.spawn(move || {
                    writer.write_all(out)?;
                    writer.flush()?;
                    writer.shutdown()?;
                    anyhow::Ok(())
                }));
                threads.push(scope.spawn(move || {
                    let mut got = Vec::new();
                    reader.read_to_end(&mut got)?;
                    ensure!(&got == wanted, "{} of {} bytes, or changed", got.len(), wanted.len());
                    Ok(())
                }));
            }
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("an end died"))??;
            }
            Ok(())
        })
    });
}

#[test]
fn flow_channel_stream_that_is_given_up_fails_at_the_other_end() {
    case(|| {
        let duo = duo()?;
        let [near, mut far] = streams(&duo)?;
        near.reset(42)?;
        let Err(error) = far.read(&mut [0; 16]) else { bail!("the stream goes on") };
        ensure!(error.to_string().contains("42"), "without what the program said: {error}");
        // A program that ends without a word gives its stream up too.
        let [near, mut far] = streams(&duo)?;
        drop(near);
        ensure!(far.read(&mut [0; 16]).is_err(), "a program that is gone has not ended its side");
        Ok(())
    });
}

#[test]
fn flow_channel_streams_that_have_ended_leave_nothing_behind() {
    case(|| {
        let duo = duo()?;
        for number in 0..MANY {
            let [mut near, mut far] = streams(&duo)?;
            near.write_all(&bytes(number, 1000))?;
            near.shutdown()?;
            let mut got = Vec::new();
            far.read_to_end(&mut got)?;
            ensure!(got == bytes(number, 1000), "stream {number}: {} bytes", got.len());
            // One side after the other, in turns: whoever ends last must not matter.
            if number % 2 == 0 {
                far.shutdown()?;
                ensure!(near.read(&mut [0; 16])? == 0, "stream {number} goes on");
                near.wait_closed()?;
                far.wait_closed()?;
            }
        }
        for node in [&duo.alpha, &duo.beta] {
            wait::until("all streams to be forgotten", PATIENCE, || {
                shown(node, "streams").is_ok_and(|told| told["peers"][0]["streams"] == 0)
            })
            .with_context(|| format!("{:?}", shown(node, "streams")))?;
            let told = shown(node, "streams")?;
            ensure!(told["programs"] == 0, "programs are left: {told}");
        }
        Ok(())
    });
}

/// A tree of files of all kinds of lengths.
fn make_tree(root: &Path) -> Result<()> {
    for folder in 0..5 {
        let path = root.join(format!("folder{folder}/deep"));
        fs::create_dir_all(&path)?;
        for file in 0..20_u64 {
            let seed = folder * 100 + file;
            fs::write(
                path.join(format!("file{file}")),
                bytes(seed, (seed * 977 % 40_000) as usize),
            )?;
        }
    }
    fs::write(root.join("large"), bytes(9, 24 << 20))?;
    Ok(())
}

/// All files below `root` by their paths.
fn read_tree(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                files.insert(name, fs::read(path)?);
            }
        }
    }
    Ok(files)
}

/// `tapd forward` at a node, in its namespace.
pub(crate) fn forward(node: &Node, arguments: &[&str]) -> Result<Running> {
    let mut command = node.netns().command(integration::command::built_binary("tapd")?);
    command.arg("forward").arg(node.channel("streams")).args(arguments);
    Running::spawn(&mut command)
}

#[test]
fn flow_channel_rsync_over_tapd_forward_copies_a_tree() {
    case(|| {
        if !is_installed("rsync") {
            return Err(skip("rsync is not installed"));
        }
        let duo = duo()?;
        let (from, to) = (duo.dir.path("from"), duo.dir.path("to"));
        make_tree(&from)?;
        let config = duo.dir.path("rsyncd.conf");
        fs::write(
            &config,
            format!(
                "pid file = {}\nuse chroot = no\n[tree]\npath = {}\nread only = yes\nuid = 0\ngid = 0\n",
                duo.dir.path("rsyncd.pid").display(),
                from.display()
            ),
        )?;
        let mut command = duo.beta.netns().command("rsync");
        command.args(["--daemon", "--no-detach", "--address", "127.0.0.1", "--port", "8730"]);
        let _daemon = Running::spawn(command.arg("--config").arg(&config))?;
        let _relays = [
            forward(&duo.beta, &["--connect", RSYNC_PORT])?,
            forward(&duo.alpha, &["--listen", RSYNC_PORT, "--to", "beta"])?,
        ];
        let rsync = |arguments: &[&str]| {
            let mut command = duo.alpha.netns().command("rsync");
            command.args(["--timeout", "20", "-a"]).args(arguments);
            command.arg(format!("rsync://{RSYNC_PORT}/tree/")).arg(&to);
            run_command(&mut command)
        };
        // Daemon and relays come up by themselves.
        wait::until("rsync to reach its daemon", Duration::from_secs(10), || {
            rsync(&["--dry-run"]).is_ok()
        })?;
        rsync(&[])?;
        let (sent, got) = (read_tree(&from)?, read_tree(&to)?);
        ensure!(sent.len() == 101, "a tree of {} files", sent.len());
        ensure!(sent == got, "the copy differs: {} of {} files", got.len(), sent.len());
        Ok(())
    });
}
