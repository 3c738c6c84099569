use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use socket2::{Domain, SockAddr, SockRef, Socket};

use super::*;
use crate::config::testing::{self, channel, id, node};

/// Two nodes whose control socket would be in `directory`.
fn config(directory: &Path, channels: Vec<ChannelConfig>) -> Config {
    let mut config = Config { channels, ..testing::config(vec![node(1), node(2)]) };
    config.daemon.control_socket = directory.join("tapd.sock");
    config
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn connect(path: &Path, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// The channels that the worker is told of, and the names and keys of new listeners.
fn told(channels: &mut Channels, config: &Config) -> (Vec<u32>, Vec<(String, u32)>) {
    match channels.command(config) {
        ChannelCommand::Set { channels, listeners, .. } => (
            channels.into_iter().map(|(key, _)| key.0).collect(),
            listeners.into_iter().map(|setup| (setup.name, setup.key.0)).collect(),
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sockets_are_made_with_their_permissions_and_go_with_their_directories() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("a/b/s.sock");
    let group = SocketAccess { mode: 0o660, owner: None, group: None };
    let config = config(
        directory.path(),
        vec![
            channel("one"),
            ChannelConfig { mode: ChannelMode::Stream, access: group, ..channel("two") },
            ChannelConfig { socket: Some(deep.clone()), ..channel("three") },
            ChannelConfig { members: Some(vec![id(2)]), ..channel("of others") },
        ],
    );
    let channels = Channels::open(&config).unwrap();
    let default = directory.path().join("tapd-channels");
    let (one, two) = (default.join("one"), default.join("two"));
    assert_eq!([mode_of(&default), mode_of(&one), mode_of(&two)], [0o755, 0o600, 0o660]);
    assert_eq!((mode_of(&directory.path().join("a")), mode_of(&deep)), (0o755, 0o600));
    assert_eq!(fs::read_dir(&default).unwrap().count(), 2);
    connect(&one, Type::SEQPACKET).unwrap();
    connect(&deep, Type::SEQPACKET).unwrap();
    UnixStream::connect(&two).unwrap();
    for listener in channels.list.iter().map(|channel| channel.listener.as_ref().unwrap()) {
        let socket = SockRef::from(listener);
        assert!(socket.nonblocking().unwrap());
        assert!(listener.as_fd().try_clone_to_owned().is_ok());
    }
    drop(channels);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), vec![channel("one")]);
    let first = Channels::open(&config).unwrap();
    let failure = Channels::open(&config).err().unwrap().to_string();
    assert!(failure.contains("channel one: another program already listens on"), "{failure}");
    let path = first.iter().next().unwrap().socket().to_owned();
    connect(&path, Type::SEQPACKET).unwrap();
    // As if it had died: the file stays.
    fs::rename(&path, directory.path().join("kept")).unwrap();
    drop(first);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::rename(directory.path().join("kept"), &path).unwrap();
    let second = Channels::open(&config).unwrap();
    connect(&path, Type::SEQPACKET).unwrap();
    drop(second);
    fs::write(&path, "precious").unwrap();
    let failure = Channels::open(&config).err().unwrap().to_string();
    assert!(failure.contains("is not a socket; give the channel another"), "{failure}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn listeners_are_handed_over_once_and_keys_never_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), vec![channel("a"), channel("b")]);
    let mut channels = Channels::open(&config).unwrap();
    let (keys, listeners) = told(&mut channels, &config);
    assert_eq!(keys, [0, 1]);
    assert_eq!(listeners, [("a".to_owned(), 0), ("b".to_owned(), 1)]);
    assert_eq!(told(&mut channels, &config), (vec![0, 1], Vec::new()));
    let stream = ChannelConfig { mode: ChannelMode::Stream, ..channel("a") };
    channels.remove("a");
    channels.add(&config, &stream).unwrap();
    config.channels[0] = stream;
    let expected = (vec![2, 1], vec![("a".to_owned(), 2)]);
    assert_eq!(told(&mut channels, &config), expected);
    assert!(channels.has("a") && channels.has("b") && !channels.has("c"));
}

#[test]
fn permissions_change_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), vec![channel("a")]);
    let mut channels = Channels::open(&config).unwrap();
    told(&mut channels, &config);
    let path = channels.list[0].socket().to_owned();
    let (uid, gid) = channels.list[0].own;
    let access = SocketAccess {
        mode: 0o666,
        owner: Some(Account::Number(uid)),
        group: Some(Account::Number(gid)),
    };
    channels.set_access("a", &access).unwrap();
    assert_eq!(mode_of(&path), 0o666);
    assert_eq!(told(&mut channels, &config), (vec![0], Vec::new()));
    // What is in force is what the next reload compares with.
    channels.keep_opened(&mut config);
    assert_eq!(config.channels[0].access, access);
    let nobody = SocketAccess { owner: Some(Account::Name("no-such-user".into())), ..access };
    let error = channels.set_access("a", &nobody).unwrap_err().to_string();
    assert_eq!(error, "there is no user no-such-user on this machine");
    fs::remove_file(&path).unwrap();
    let error = channels.set_access("a", &nobody).unwrap_err().to_string();
    assert!(error.contains("is gone"), "{error}");
}

#[test]
fn a_channel_that_could_not_be_opened_is_new_to_the_next_reload() {
    let directory = tempfile::tempdir().unwrap();
    let others = ChannelConfig { members: Some(vec![id(2)]), ..channel("others") };
    let nobody = Some(Account::Name("no-such-user".into()));
    let access = SocketAccess { mode: 0o600, owner: nobody, group: None };
    let bad = ChannelConfig { access, ..channel("bad") };
    let mut config = config(directory.path(), vec![channel("a"), bad.clone(), others]);
    let mut channels = Channels::default();
    channels.add(&config, &channel("a")).unwrap();
    let error = channels.add(&config, &bad).unwrap_err();
    assert_eq!(format!("{error:#}"), "there is no user no-such-user on this machine");
    // Nothing is left of it.
    assert!(!config.channel_socket(&bad).exists());
    channels.keep_opened(&mut config);
    let kept: Vec<_> = config.channels.iter().map(|channel| channel.name.as_str()).collect();
    assert_eq!(kept, ["a", "others"]);
}

/// On a thread of its own, whose capabilities alone are given up.
#[test]
fn another_owner_takes_a_capability_that_is_named_where_it_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let access = SocketAccess { mode: 0o600, owner: Some(Account::Number(12_345)), group: None };
    let config = config(directory.path(), vec![ChannelConfig { access, ..channel("a") }]);
    let able = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_CHOWN).unwrap();
    if able {
        let channels = Channels::open(&config).unwrap();
        assert_eq!(fs::symlink_metadata(channels.list[0].socket()).unwrap().uid(), 12_345);
    }
    let unable = std::thread::spawn(move || {
        caps::clear(None, caps::CapSet::Effective).unwrap();
        Channels::open(&config).err().unwrap().to_string()
    });
    let failure = unable.join().unwrap();
    let expected =
        "tapd-channels/a to user 12345: Operation not permitted (os error 1); that takes CAP_CHOWN";
    assert!(failure.contains(expected), "{failure}");
    assert!(failure.starts_with("channel a: cannot give "), "{failure}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_given_away_keeps_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), vec![channel("a")]);
    let mut channels = Channels::open(&config).unwrap();
    let unable = std::thread::spawn(move || {
        caps::clear(None, caps::CapSet::Effective).unwrap();
        let other = Some(Account::Number(12_345));
        for (owner, group) in [(other.clone(), None), (None, other.clone()), (other.clone(), other)]
        {
            let access = SocketAccess { mode: 0o666, owner, group };
            let error = channels.set_access("a", &access).unwrap_err().to_string();
            assert!(error.contains("takes CAP_CHOWN"), "{error}");
            assert_eq!(mode_of(channels.list[0].socket()), 0o600);
            assert_eq!(channels.list[0].config.access.mode, 0o600);
        }
        let own = SocketAccess { mode: 0o660, owner: None, group: None };
        channels.set_access("a", &own).unwrap();
        assert_eq!(mode_of(channels.list[0].socket()), 0o660);
    });
    unable.join().unwrap();
}

#[test]
fn the_hub_is_told_of_the_other_members() {
    let given =
        ChannelConfig { members: Some(vec![id(1), id(2)]), send_buffer: 64 << 10, ..channel("a") };
    let made = hub_config(id(1), &given);
    assert_eq!((made.name.as_str(), made.peers), ("a", Some(vec![id(2)])));
    assert_eq!((made.mode, made.send_buffer), (ChannelMode::Ordered, 64 << 10));
    assert_eq!(hub_config(id(1), &channel("a")).peers, None);
}
