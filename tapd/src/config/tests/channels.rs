use super::*;
use encap::channel::hub::{Congestion, HubOptions};

fn channel(keys: &str) -> String {
    example_and(&format!("[[channels]]\nname = 'backup'\n{keys}\n"))
}

#[test]
fn channels_have_the_documented_defaults() {
    let config = loaded("[[channels]]\nname = 'backup'\nmode = 'message'");
    assert_eq!(config.transport, HubOptions::default());
    assert_eq!(config.transport.receive_memory, 128 << 20);
    assert_eq!(config.channels, [testing::channel("backup")]);
    assert_eq!(config.own_channels().count(), 1);
    let socket = config.channel_socket(&config.channels[0]);
    assert_eq!(socket, Path::new("/run/tapd-channels/backup"));
    let mut moved = config;
    moved.daemon.control_socket = "/tmp/a/b.sock".into();
    let socket = moved.channel_socket(&moved.channels[0]);
    assert_eq!(socket, Path::new("/tmp/a/tapd-channels/backup"));
}

#[test]
fn every_key_of_a_channel_can_be_given() {
    let config = loaded(
        "[channel_transport]
        congestion = 'fixed:100M'
        receive_memory_mb = 64
        [[channels]]
        name = 'two words'
        mode = 'unordered'
        members = ['beta', 1]
        socket = '/run/x.sock'
        socket_mode = '0660'
        socket_owner = 'postgres'
        socket_group = 70
        send_buffer_kb = 64
        compression = 'zstd'
        compression_level = 3
        [[channels]]
        name = 'alive'
        mode = 'datagram'
        members = [2]
        copies = true",
    );
    let rate = 12_500_000;
    let transport = HubOptions { congestion: Congestion::Fixed(rate), receive_memory: 64 << 20 };
    assert_eq!(config.transport, transport);
    let [alive, words] = config.channels.as_slice() else { panic!("{:?}", config.channels) };
    assert_eq!(
        (alive.name.as_str(), alive.mode, alive.copies),
        ("alive", ChannelMode::Unreliable, true)
    );
    assert_eq!(words.members, Some(vec![testing::id(1), testing::id(2)]));
    assert_eq!(words.access.to_string(), "0660, owner postgres, group 70");
    assert_eq!(words.access.owner, Some(Account::Name("postgres".into())));
    assert_eq!((words.send_buffer, words.compression), (64 << 10, Level::new(3)));
    assert_eq!(config.channel_socket(words), Path::new("/run/x.sock"));
    let own: Vec<_> = config.own_channels().map(|channel| channel.name.as_str()).collect();
    assert_eq!(own, ["two words"]);
}

#[test]
fn faults_of_channels_say_what_to_do() {
    let long = "x".repeat(129);
    for (keys, expected) in [
        ("", "[[channels]] has no mode; write mode ="),
        ("mode = 'raw'", "\"raw\" is no mode; there are \"datagram\", \"message\""),
        ("mode = 'message'\ncopies = true", "copies is for mode \"datagram\", not for \"message\""),
        ("mode = 'datagram'\nsend_buffer_kb = 64", "send_buffer_kb is not for mode \"datagram\""),
        ("mode = 'stream'\ncompression = 'zstd'", "compression is not for mode \"stream\""),
        ("mode = 'message'\ncompression = 'lz4'", "there are \"off\", \"zstd\""),
        ("mode = 'message'\nsend_buffer_kb = 63", "choose 64 to 1048576"),
        ("mode = 'message'\nsend_buffer_kb = 1048577", "choose 64 to 1048576"),
        ("mode = 'message'\nmembers = []", "members is empty"),
        ("mode = 'message'\nmembers = ['gamma']", "\"gamma\" is not in [[nodes]]"),
        ("mode = 'message'\nmembers = [1, 'alpha']", "node 1 is a member twice"),
        ("mode = 'message'\nsocket = 'x.sock'", "must be an absolute path"),
        ("mode = 'message'\nsocket = '/run/tapd.sock'", "is the control socket"),
        ("mode = 'message'\nsocket_mode = '0800'", "write octal digits such as \"0660\""),
        ("mode = 'message'\nsocket_mode = '1777'", "write octal digits"),
        ("mode = 'message'\nsocket_mode = 0o600", "socket_mode must be a string in quotes"),
        ("mode = 'message'\nsocket_owner = -1", "the name or the number of a user"),
        ("mode = 'message'\nsocket_group = 'a:b'", "the name or the number of a group"),
        ("mode = 'message'\nsend_bufer_kb = 64", "did you mean \"send_buffer_kb\"?"),
        ("mode = 'message'\ncongestion = 'cubic'", "it belongs into [channel_transport]"),
    ] {
        one_fault(&channel(keys), expected);
    }
    for (name, expected) in [
        ("''", "is empty"),
        ("'a/b'", "has a '/'"),
        ("\"a\\u0007\"", "cannot be printed"),
        ("'..'", "is a directory's"),
        (&format!("'{long}'"), "is 129 bytes long; keep it to 128"),
    ] {
        one_fault(
            &example_and(&format!("[[channels]]\nname = {name}\nmode = 'message'")),
            expected,
        );
    }
    one_fault(&example_and("[[channels]]\nmode = 'message'"), "has no name");
}

#[test]
fn faults_of_the_transport_say_what_to_do() {
    for (keys, expected) in [
        ("congestion = 'bbr'", "\"bbr\" is no congestion control; there are \"cubic\""),
        ("congestion = 'fixed:'", "must have a rate in bits a second"),
        ("congestion = 'fixed:10m'", "must have a rate"),
        ("congestion = 'fixed:-1M'", "must have a rate"),
        ("congestion = 'fixed:63k'", "from \"fixed:64k\" to \"fixed:1000G\""),
        ("congestion = 'fixed:1001G'", "from \"fixed:64k\""),
        ("congestion = 'fixed:99999999999999999999G'", "must have a rate"),
        ("receive_memory_mb = 63", "choose 64 to 65536"),
    ] {
        one_fault(&example_and(&format!("[channel_transport]\n{keys}")), expected);
    }
    for (text, bytes) in [("64k", 8_000), ("64000", 8_000), ("1000G", 125_000_000_000)] {
        let config = loaded(&format!("[channel_transport]\ncongestion = 'fixed:{text}'"));
        assert_eq!(config.transport.congestion, Congestion::Fixed(bytes), "{text}");
    }
}

#[test]
fn no_two_channels_share_a_name_or_a_socket() {
    let two = |one: &str, other: &str| {
        example_and(&format!(
            "[[channels]]\nmode = 'message'\n{one}\n[[channels]]\nmode = 'stream'\n{other}\n"
        ))
    };
    let twice = two("name = 'a'\nsocket = '/a'", "name = 'a'\nsocket = '/b'");
    one_fault(&twice, "channel name a is taken already in line");
    let sockets = two("name = 'a'\nsocket = '/a'", "name = 'b'\nsocket = '/a'");
    one_fault(&sockets, "channel socket /a is taken already in line");
    let default = two("name = 'a'\nsocket = '/run/tapd-channels/b'", "name = 'b'");
    one_fault(&default, "channel socket /run/tapd-channels/b is taken already");
    let network = "[[networks]]\nvni = 7\nvhost_user = ['/vm']\n[[channels]]\nmode = 'message'\n";
    one_fault(&example_and(&format!("{network}name = 'a'\nsocket = '/vm'")), "a VM port's socket");
    let many: String =
        (0..=256).map(|n| format!("[[channels]]\nname = '{n}'\nmode = 'message'\n")).collect();
    one_fault(&example_and(&many), "257 channels are too many; keep at most 256");
}

#[test]
fn a_long_control_socket_leaves_no_room_for_default_sockets() {
    let directory = format!("/{}", "x".repeat(87));
    let text = |name: &str| {
        example_and(&format!(
            "[daemon]\ncontrol_socket = '{directory}/c'\n[[channels]]\nmode = 'message'\nname = '{name}'\n"
        ))
    };
    assert!(Place::new().load(&text("abcd"), None, "1").is_ok());
    one_fault(&text("abcde"), "the kernel takes at most 107; give it a socket");
}

#[test]
fn the_local_file_changes_channels_by_name() {
    let cluster = example_and("[[channels]]\nname = 'a'\nmode = 'message'\n");
    let local =
        "[[channels]]\nname = 'a'\nsocket = '/run/a'\n[[channels]]\nname = 'b'\nmode = 'stream'\n";
    let config = Place::new().load(&cluster, Some(local), "1").unwrap();
    let shown: Vec<_> = config.channels.iter().map(|c| (c.name.as_str(), c.mode)).collect();
    assert_eq!(shown, [("a", ChannelMode::Ordered), ("b", ChannelMode::Stream)]);
    assert_eq!(config.channels[0].socket.as_deref(), Some(Path::new("/run/a")));
}
