//! Raw channels: whether their sockets can be made, and be whose they are to be.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability};
use fastpath::accounts;

use super::Report;
use super::dpdk::writable;
use crate::config::{Account, ChannelConfig, Config, mode_name};
use crate::control::{ChannelsReply, Client, Request, Topic};
use crate::socket_file::{self, Found};

/// The state of a peer that does not have a channel, as the daemon tells it.
const REFUSED: &str = "refused";

/// Looks at each channel of this node.
pub(super) fn check(config: &Config, running: bool, report: &mut Report) {
    for channel in config.own_channels() {
        check_channel(channel, &config.channel_socket(channel), running, report);
    }
}

/// Asks the daemon that runs which peers refuse a channel.
pub(super) fn check_running(control: &Path, report: &mut Report) {
    let request = Request::Show { topic: Topic::Channels, name: None };
    let asked = Client::connect(control).and_then(|client| client.request(request));
    match asked {
        Ok(reply) => check_peers(&reply, report),
        Err(error) => {
            let advice = "look into the log of tapd";
            report.warn("channels", format_args!("the daemon does not tell: {error}"), advice);
        }
    }
}

fn check_peers(reply: &ChannelsReply, report: &mut Report) {
    for channel in &reply.channels {
        let refused = channel.peers.iter().filter(|peer| peer.state == REFUSED);
        let peers: Vec<_> = refused.map(|peer| peer.peer.as_str()).collect();
        if !peers.is_empty() {
            report.warn(
                &format!("channel {}", channel.name),
                format_args!("refused by {}", peers.join(", ")),
                format_args!(
                    "have a channel of that name and mode {} on both nodes, each a member",
                    channel.mode
                ),
            );
        }
    }
}

fn check_channel(channel: &ChannelConfig, socket: &Path, running: bool, report: &mut Report) {
    let check = format!("channel {}", channel.name);
    if check_accounts(&check, channel, report) && check_socket(&check, socket, running, report) {
        let (mode, access) = (mode_name(channel.mode), &channel.access);
        report.ok(&check, format_args!("{mode}, {}, mode {access}", socket.display()));
    }
}

/// Whether the socket's owner and group are there, and tapd can give it to them.
fn check_accounts(check: &str, channel: &ChannelConfig, report: &mut Report) -> bool {
    let access = &channel.access;
    let owner = number("user", access.owner.as_ref(), accounts::user_id);
    let group = number("group", access.group.as_ref(), accounts::group_id);
    let owner = match (owner, group) {
        (Ok(owner), Ok(_)) => owner,
        (Err(fault), _) | (_, Err(fault)) => {
            let advice = "make it, or correct socket_owner and socket_group of the channel";
            report.fail(check, fault, advice);
            return false;
        }
    };
    let own = fs::metadata("/proc/self").map(|metadata| metadata.uid()).ok();
    let able = caps::has_cap(None, CapSet::Effective, Capability::CAP_CHOWN).unwrap_or(false);
    if let Some(owner) = owner.filter(|owner| Some(*owner) != own && !able) {
        report.warn(
            check,
            format_args!("its socket is to belong to user {owner}, which takes CAP_CHOWN"),
            "start tapd with CAP_CHOWN, or give the socket a group that tapd's user is in",
        );
        return false;
    }
    true
}

fn number(
    what: &str,
    account: Option<&Account>,
    look_up: impl Fn(&str) -> io::Result<Option<u32>>,
) -> Result<Option<u32>, String> {
    match account {
        None => Ok(None),
        Some(Account::Number(number)) => Ok(Some(*number)),
        Some(Account::Name(name)) => match look_up(name) {
            Ok(Some(number)) => Ok(Some(number)),
            Ok(None) => Err(format!("there is no {what} {name} on this machine")),
            Err(error) => Err(format!("cannot look up {what} {name}: {error}")),
        },
    }
}

/// Whether there is room for the socket.
fn check_socket(check: &str, socket: &Path, running: bool, report: &mut Report) -> bool {
    match socket_file::look(socket) {
        Ok(Found::Room | Found::LeftBehind) => {}
        Ok(Found::Listener) if running => return true,
        Ok(Found::Listener) => {
            let found = format_args!("another program listens on {}", socket.display());
            report.fail(check, found, "stop that program, or give the channel another socket");
            return false;
        }
        Ok(Found::NoSocket) => {
            let found = format_args!("{} is there and is no socket", socket.display());
            report.fail(check, found, "remove it, or give the channel another socket");
            return false;
        }
        Err(error) => {
            report.fail(
                check,
                format_args!("{error:#}"),
                "run tapd doctor as tapd's user, or root",
            );
            return false;
        }
    }
    // What is missing below, tapd makes.
    let directory = socket.ancestors().skip(1).find(|directory| directory.exists());
    let directory = directory.unwrap_or(Path::new("/"));
    if let Err(error) = writable(directory) {
        let advice = "give the channel a socket in a directory that tapd may write to";
        report.fail(check, format_args!("{}: {error}", directory.display()), advice);
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::{SocketAccess, testing};
    use crate::control::{ChannelPeerReply, ChannelReply};
    use crate::doctor::Status;

    fn examined(channel: &ChannelConfig, socket: &Path, running: bool) -> (Status, String) {
        let mut report = Report::default();
        check_channel(channel, socket, running, &mut report);
        let [finding] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
        let advice = finding.advice.clone().unwrap_or_default();
        (finding.status, format!("{}: {}; {advice}", finding.check, finding.found))
    }

    #[test]
    fn sockets_need_room_and_nothing_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let channel = testing::channel("a");
        let (status, line) = examined(&channel, &directory.path().join("x/y/a"), false);
        assert!(status == Status::Ok && line.ends_with("x/y/a, mode 0600; "), "{line}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let taken = directory.path().join("taken");
        let listener = UnixListener::bind(&taken).unwrap();
        let (status, line) = examined(&channel, &taken, false);
        assert!(status == Status::Fail && line.contains("another program listens"), "{line}");
        assert_eq!(examined(&channel, &taken, true).0, Status::Ok);
        drop(listener);
        assert_eq!(examined(&channel, &taken, false).0, Status::Ok);
        assert!(taken.exists());
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        let (status, line) = examined(&channel, &file, false);
        assert!(status == Status::Fail && line.contains("is no socket"), "{line}");
    }

    #[test]
    fn peers_that_refuse_are_named() {
        let peer = |peer: &str, state: &str| ChannelPeerReply {
            peer: peer.into(),
            state: state.into(),
            ..ChannelPeerReply::default()
        };
        let channel = |name: &str, peers| ChannelReply {
            name: name.into(),
            mode: "message".into(),
            peers,
            ..ChannelReply::default()
        };
        let peers = vec![peer("beta", "refused"), peer("gamma", "open"), peer("delta", "refused")];
        let well = vec![peer("beta", "open")];
        let channels = vec![channel("a", well), channel("b", peers)];
        let mut report = Report::default();
        check_peers(&ChannelsReply { channels, ..ChannelsReply::default() }, &mut report);
        let [finding] = report.findings.as_slice() else { panic!("{:?}", report.findings) };
        assert_eq!((finding.check.as_str(), finding.status), ("channel b", Status::Warn));
        assert_eq!(finding.found, "refused by beta, delta");
        assert!(finding.advice.as_ref().unwrap().contains("mode message"));
    }

    #[test]
    fn owners_have_to_be_there_and_may_take_a_capability() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("a");
        let owned = |owner| {
            let access = SocketAccess { mode: 0o600, owner: Some(owner), group: None };
            ChannelConfig { access, ..testing::channel("a") }
        };
        let (status, line) = examined(&owned(Account::Name("no-such-user".into())), &socket, false);
        assert!(status == Status::Fail && line.contains("no user no-such-user"), "{line}");
        let other = owned(Account::Number(12_345));
        let unable = std::thread::spawn(move || {
            caps::clear(None, CapSet::Effective).unwrap();
            examined(&other, &socket, false)
        });
        let (status, line) = unable.join().unwrap();
        assert!(status == Status::Warn && line.contains("takes CAP_CHOWN"), "{line}");
    }
}
