//! Raw channels: their sockets are made here, while tapd may still give them to others, and handed
//! to the worker that has the channels.

mod report;

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use encap::channel::hub::{self, ChannelKey};
use encap::id::NodeId;
use fastpath::accounts;
use fastpath::channel::sockets::ChannelSetup;
use fastpath::worker::{ChannelCommand, Command};
use log::info;
use socket2::Type;

use super::RunningWorker;
use crate::config::{Account, ChannelConfig, ChannelMode, Config, SocketAccess, mode_name};
use crate::exit::Failure;
use crate::socket_file::{self, Found, SocketFile};

/// Programs that wait at most to be accepted, for each channel.
const BACKLOG: i32 = 128;
/// Permission bits of a directory that is made for a socket: who may connect is up to the socket.
const DIRECTORY_MODE: u32 = 0o755;

/// A channel whose socket is there.
pub(super) struct OpenChannel {
    /// What is in force.
    pub(super) config: ChannelConfig,
    pub(super) key: ChannelKey,
    file: SocketFile,
    /// User and group of the socket where nothing is said.
    own: (u32, u32),
    /// Until the worker has it.
    listener: Option<OwnedFd>,
}

impl OpenChannel {
    /// Where programs connect.
    pub(super) fn socket(&self) -> &Path {
        self.file.path()
    }
}

/// All channels of this node. Their sockets go with it, and the directories that were made for them.
#[derive(Default)]
pub(super) struct Channels {
    /// By name.
    list: Vec<OpenChannel>,
    /// Directories that were made for sockets, the outermost first.
    directories: Vec<PathBuf>,
    /// Of the next channel.
    next_key: u32,
    /// The worker knows of channels, and so has to hear when there are none.
    told: bool,
}

impl Channels {
    /// Opens the sockets of all channels of this node; call it while there are all capabilities.
    ///
    /// # Errors
    /// What stands in the way of the first one that cannot be opened.
    pub(super) fn open(config: &Config) -> Result<Self, Failure> {
        let mut channels = Self::default();
        for channel in config.own_channels() {
            let added = channels.add(config, channel);
            added
                .with_context(|| format!("channel {}", channel.name))
                .map_err(Failure::cannot_start)?;
        }
        Ok(channels)
    }

    /// Opens the socket of a channel, which gets a key that none had before.
    ///
    /// # Errors
    /// What stands in the way, and what to do.
    pub(super) fn add(&mut self, config: &Config, channel: &ChannelConfig) -> anyhow::Result<()> {
        let path = config.channel_socket(channel);
        if let Some(directory) = path.parent() {
            self.make_directory(directory)
                .with_context(|| format!("cannot make directory {}", directory.display()))?;
        }
        let opened = open(&path, channel, ChannelKey(self.next_key))?;
        // More than four billion reloads are not to be expected.
        self.next_key = self.next_key.wrapping_add(1);
        info!("channel {} ({}): {}", channel.name, mode_name(channel.mode), path.display());
        let place = self.list.partition_point(|other| other.config.name < channel.name);
        self.list.insert(place, opened);
        Ok(())
    }

    /// Removes a channel's socket. The worker ends what was connected when it is told next.
    pub(super) fn remove(&mut self, name: &str) {
        self.list.retain(|channel| channel.config.name != name);
        info!("channel {name} closed");
    }

    /// Has others connect to a channel's socket from now on.
    ///
    /// # Errors
    /// What stands in the way, and what to do.
    pub(super) fn set_access(&mut self, name: &str, access: &SocketAccess) -> anyhow::Result<()> {
        let known = self.list.iter_mut().find(|channel| channel.config.name == name);
        let channel = known.ok_or_else(|| anyhow!("it is not open"))?;
        if !channel.file.is_there() {
            bail!("its socket {} is gone; restart tapd", channel.socket().display());
        }
        set_access(channel.file.path(), access, channel.own)?;
        channel.config.access.clone_from(access);
        Ok(())
    }

    /// The channels by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &OpenChannel> {
        self.list.iter()
    }

    /// Whether this node has a channel of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|channel| channel.config.name == name)
    }

    /// Leaves in the configuration what is in force: the next reload finds the rest to be new.
    pub(super) fn keep_opened(&self, config: &mut Config) {
        let own = config.own;
        let open = |channel: &ChannelConfig| {
            self.list.iter().find(|open| open.config.name == channel.name)
        };
        config.channels.retain(|channel| !channel.has(own) || open(channel).is_some());
        for channel in &mut config.channels {
            if let Some(open) = open(channel).filter(|_| channel.has(own)) {
                channel.access.clone_from(&open.config.access);
            }
        }
    }

    /// Tells the worker that has the channels which there are, and what the nodes are called.
    pub(super) fn hand_over(&mut self, config: &Config, workers: &[RunningWorker]) {
        if self.list.is_empty() && !self.told {
            return;
        }
        if let Some(worker) = workers.first() {
            worker.handle.send(Command::Channels(self.command(config)));
            self.told = !self.list.is_empty();
        }
    }

    fn command(&mut self, config: &Config) -> ChannelCommand {
        let setup = |channel: &mut OpenChannel| {
            Some(ChannelSetup {
                key: channel.key,
                name: channel.config.name.clone(),
                mode: channel.config.mode,
                compressed: channel.config.compression.is_some(),
                listener: channel.listener.take()?,
            })
        };
        ChannelCommand::Set {
            own: config.own,
            nodes: config.nodes.iter().map(|node| (node.id, node.name.clone())).collect(),
            listeners: self.list.iter_mut().filter_map(setup).collect(),
            channels: self
                .list
                .iter()
                .map(|channel| (channel.key, hub_config(config.own, &channel.config)))
                .collect(),
        }
    }

    fn make_directory(&mut self, directory: &Path) -> io::Result<()> {
        let missing: Vec<_> = directory.ancestors().take_while(|path| !path.exists()).collect();
        for directory in missing.into_iter().rev() {
            match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
                Ok(()) => {}
                // Somebody else was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            // The umask may have taken something away.
            fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))?;
            self.directories.push(directory.to_owned());
        }
        Ok(())
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.list.clear();
        for directory in self.directories.iter().rev() {
            // Others may have put something there, which stays.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// What the hub has to know of a channel of this node.
fn hub_config(own: NodeId, channel: &ChannelConfig) -> hub::ChannelConfig {
    let peers = channel
        .members
        .as_ref()
        .map(|members| members.iter().copied().filter(|member| *member != own).collect());
    hub::ChannelConfig {
        name: channel.name.clone(),
        mode: channel.mode,
        peers,
        copies: channel.copies,
        send_buffer: channel.send_buffer,
        compression: channel.compression,
    }
}

/// Makes a channel's socket. Who may connect is settled before anyone can: until it listens, nobody.
fn open(path: &Path, channel: &ChannelConfig, key: ChannelKey) -> anyhow::Result<OpenChannel> {
    let shown = path.display();
    match socket_file::make_room(path)? {
        Found::Room | Found::LeftBehind => {}
        Found::NoSocket => {
            bail!("{shown} exists and is not a socket; give the channel another socket")
        }
        Found::Listener => bail!(
            "another program already listens on {shown}, perhaps another tapd; stop it first, or \
             give the channel another socket"
        ),
    }
    let kind = match channel.mode {
        ChannelMode::Stream => Type::STREAM,
        ChannelMode::Ordered | ChannelMode::Unordered | ChannelMode::Unreliable => Type::SEQPACKET,
    };
    let socket = socket_file::bind_private(path, kind).with_context(|| {
        format!("cannot make the socket {shown}; check that its directory can be written")
    })?;
    let file = SocketFile::new(path)?;
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot look at {shown}"))?;
    let own = (metadata.uid(), metadata.gid());
    set_access(path, &channel.access, own)?;
    let listen = || -> io::Result<()> {
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("cannot listen on {shown}"))?;
    let listener = Some(OwnedFd::from(socket));
    Ok(OpenChannel { config: channel.clone(), key, file, own, listener })
}

/// Gives a socket the permissions, owner and group that are wanted; `own` where nothing is said.
fn set_access(path: &Path, access: &SocketAccess, own: (u32, u32)) -> anyhow::Result<()> {
    let owner = match &access.owner {
        Some(owner) => number("user", owner, accounts::user_id)?,
        None => own.0,
    };
    let group = match &access.group {
        Some(group) => number("group", group, accounts::group_id)?,
        None => own.1,
    };
    let shown = path.display();
    let before = fs::symlink_metadata(path).with_context(|| format!("cannot look at {shown}"))?;
    let set_mode = |mode| fs::set_permissions(path, Permissions::from_mode(mode));
    let set_wanted_mode = || {
        if before.mode() & 0o777 == access.mode {
            return Ok(());
        }
        set_mode(access.mode).with_context(|| {
            format!("cannot set the mode of {shown}; another user's needs a restart of tapd")
        })
    };
    let owner = (owner != before.uid()).then_some(owner);
    let group = (group != before.gid()).then_some(group);
    if owner.is_none() && group.is_none() {
        return set_wanted_mode();
    }
    let give = || {
        lchown(path, owner, group).map_err(|error| {
            let owner =
                owner.map(|number| format!("user {}", named(access.owner.as_ref(), number)));
            let group =
                group.map(|number| format!("group {}", named(access.group.as_ref(), number)));
            let to: Vec<_> = owner.into_iter().chain(group).collect();
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "; that takes CAP_CHOWN, which tapd has only while it starts: restart it, with \
                     CAP_CHOWN in its systemd unit or container, or choose a group that its user \
                     is in"
                }
                _ => "",
            };
            anyhow!("cannot give {shown} to {}: {error}{advice}", to.join(" and "))
        })
    };
    // Whatever fails, all is as it was: a wider mode is not left to the group from before.
    if owner.is_none() {
        give()?;
        return set_wanted_mode();
    }
    // Only the owner may set the mode, so before there is another one.
    set_wanted_mode()?;
    give().inspect_err(|_| {
        // It was just set, so this works as well.
        let _ = set_mode(before.mode() & 0o7777);
    })
}

/// An account as it is written; what nothing is written of is tapd's own.
fn named(account: Option<&Account>, number: u32) -> String {
    account.map_or_else(|| number.to_string(), ToString::to_string)
}

fn number(
    what: &str,
    account: &Account,
    look_up: impl Fn(&str) -> io::Result<Option<u32>>,
) -> anyhow::Result<u32> {
    let name = match account {
        Account::Number(number) => return Ok(*number),
        Account::Name(name) => name,
    };
    let found = look_up(name).with_context(|| format!("cannot look up {what} {name}"))?;
    found.with_context(|| format!("there is no {what} {name} on this machine"))
}

#[cfg(test)]
mod tests;
