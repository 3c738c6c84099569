use super::*;
use crate::config::links::{Family, NodeAddress};
use crate::config::testing::{self, channel, id, key, network, node, vni};
use crate::config::vhost::Mode;
use crate::config::{
    Cipher, DaemonConfig, DpdkPort, Dscp, Level, LinkOptions, Policy, Profile, Protect,
    StaticEntry, VhostUser, derived_mac,
};
use encap::channel::hub::Congestion;
use encap::wire::channel::Mode as ChannelMode;
use std::time::Duration;

fn config() -> Config {
    let networks = vec![network(1, &[1, 2]), network(2, &[2])];
    Config { networks, ..testing::config(vec![node(1), node(2)]) }
}

fn set_address(node: &mut NodeConfig, last: u8) {
    node.links[0].address = NodeAddress::Static([192, 0, 2, last].into());
}

fn live(change: impl FnOnce(&mut Config)) -> Vec<Change> {
    let (old, mut new) = (config(), config());
    change(&mut new);
    let changes = old.diff(&new);
    assert_eq!(changes.restart, Vec::<String>::new());
    assert_eq!(old.with_live_changes(&new), new);
    changes.live.into_iter().map(|(change, _)| change).collect()
}

#[test]
fn equal_configurations_change_nothing() {
    let changes = config().diff(&config());
    assert!(changes.live.is_empty() && changes.restart.is_empty());
}

#[test]
fn what_is_applied_while_running() {
    assert_eq!(live(|new| new.nodes.push(node(3))), [Change::NodeAdded(id(3))]);
    let replaced = live(|new| new.nodes[1] = node(3));
    assert_eq!(replaced, [Change::NodeRemoved(id(2)), Change::NodeAdded(id(3))]);
    let moved = live(|new| set_address(&mut new.nodes[1], 9));
    assert_eq!(moved, [Change::NodeChanged(id(2))]);
    assert_eq!(live(|new| new.nodes[0].name = "a".into()), [Change::NodeChanged(id(1))]);
    let added = live(|new| new.networks.push(network(3, &[1])));
    assert_eq!(added, [Change::NetworkAdded(vni(3))]);
    let joined = live(|new| new.networks[1] = network(2, &[1, 2]));
    assert_eq!(joined, [Change::NetworkAdded(vni(2))]);
    let left = live(|new| new.networks[0].members = vec![id(2)]);
    assert_eq!(left, [Change::NetworkRemoved(vni(1))]);
    assert_eq!(live(|new| new.networks[0].members = vec![id(1)]), [Change::MembersChanged(vni(1))]);
    assert_eq!(live(|new| new.networks[0].name = "x".into()), [Change::NameChanged(vni(1))]);
    assert_eq!(live(|new| new.networks[0].stp = false), [Change::StpChanged(vni(1))]);
    let entry = StaticEntry { mac: derived_mac(vni(1), id(2)), node: id(2) };
    let entries = live(|new| new.networks[0].static_fdb.push(entry));
    assert_eq!(entries, [Change::StaticFdbChanged(vni(1))]);
    assert_eq!(live(|new| new.cluster.next_key = Some(key("1"))), [Change::KeysChanged]);
    assert_eq!(live(|new| new.daemon.log = "warn".into()), [Change::LogChanged]);
    let hours = live(|new| new.daemon.rehandshake_interval = Duration::from_secs(7200));
    assert_eq!(hours, [Change::RehandshakeChanged]);
    assert_eq!(live(|new| new.daemon.bum_frames_per_s = 0), [Change::LimitsChanged]);
}

#[test]
fn channels_come_and_go_while_running() {
    let named = |name: &str| name.to_owned();
    let with = |change: fn(&mut ChannelConfig)| {
        let old = Config { channels: vec![channel("a")], ..config() };
        let mut new = old.clone();
        change(&mut new.channels[0]);
        let changes = old.diff(&new);
        assert_eq!(changes.restart, Vec::<String>::new());
        assert_eq!(old.with_live_changes(&new), new);
        changes.live
    };
    assert_eq!(live(|new| new.channels.push(channel("a"))), [Change::ChannelAdded(named("a"))]);
    assert!(with(|_| {}).is_empty());
    let left = with(|channel| channel.members = Some(vec![id(2)]));
    assert_eq!(left, [(Change::ChannelRemoved(named("a")), named("channel a removed"))]);
    let renamed: Vec<_> =
        with(|channel| channel.name = "b".into()).into_iter().map(|c| c.0).collect();
    assert_eq!(renamed, [Change::ChannelRemoved(named("a")), Change::ChannelAdded(named("b"))]);
    for (change, shown) in [
        (
            (|channel| channel.mode = ChannelMode::Stream) as fn(&mut ChannelConfig),
            "mode message -> stream",
        ),
        (|channel| channel.members = Some(vec![id(1), id(2)]), "members all -> [1, 2]"),
        (|channel| channel.socket = Some("/a".into()), "socket the default -> /a"),
        (|channel| channel.copies = true, "copies = true"),
        (|channel| channel.send_buffer = 64 << 10, "send_buffer_kb = 64"),
        (|channel| channel.compression = Level::new(2), "compression = zstd, level 2"),
    ] {
        let expected =
            (Change::ChannelChanged(named("a")), format!("channel a begins anew: {shown}"));
        assert_eq!(with(change), [expected]);
    }
    let line = "channel a: socket 0600 -> 0660".to_owned();
    let access = with(|channel| channel.access.mode = 0o660);
    assert_eq!(access, [(Change::ChannelAccessChanged(named("a")), line)]);
}

#[test]
fn channels_of_others_are_nothing_to_this_node() {
    let others = ChannelConfig { members: Some(vec![id(2)]), ..channel("a") };
    assert!(live(|new| new.channels.push(others)).is_empty());
}

#[test]
fn the_transport_of_channels_needs_a_restart() {
    let (old, mut new) = (config(), config());
    new.transport.congestion = Congestion::Fixed(125_000);
    new.transport.receive_memory = 64 << 20;
    let changes = old.diff(&new);
    assert!(changes.live.is_empty(), "{changes:?}");
    let expected = ["congestion: cubic -> fixed:1000000", "receive_memory_mb: 128 -> 64"];
    assert_eq!(changes.restart, expected);
    assert_eq!(old.with_live_changes(&new), old);
}

#[test]
fn what_frames_do_is_applied_while_running() {
    assert_eq!(live(|new| new.cluster.policy = Policy::FlowHash), [Change::TrafficChanged]);
    assert_eq!(live(|new| new.cluster.protect = Protect::All), [Change::TrafficChanged]);
    assert_eq!(live(|new| new.cluster.dscp = Dscp::Inherit), [Change::TrafficChanged]);
    assert_eq!(live(|new| new.cluster.ecn = false), [Change::TrafficChanged]);
    assert_eq!(live(|new| new.detector.profile = Profile::Wan), [Change::DetectorChanged]);
    let fast = Some(Duration::from_millis(2));
    assert_eq!(live(|new| new.detector.fast = fast), [Change::DetectorChanged]);
    let weight = |weight| LinkOptions { weight, ..LinkOptions::default() };
    let heavy = live(|new| drop(new.links.insert("0".into(), weight(2))));
    assert_eq!(heavy, [Change::LinkOptionsChanged]);
    assert!(live(|new| drop(new.links.insert("0".into(), weight(1)))).is_empty());
    for change in [
        |network: &mut NetworkConfig| network.mss_clamp = false,
        |network: &mut NetworkConfig| network.too_big = false,
        |network: &mut NetworkConfig| network.loop_probe = false,
        |network: &mut NetworkConfig| network.compression = Some(Level::default()),
        |network: &mut NetworkConfig| network.policy = Some(Policy::Passive),
        |network: &mut NetworkConfig| network.dscp = Some(Dscp::Fixed(0)),
    ] {
        let changed = live(|new| change(&mut new.networks[0]));
        assert_eq!(changed, [Change::NetworkOptionsChanged(vni(1))]);
    }
}

fn vm_port(socket: &str) -> VhostUser {
    VhostUser { socket: socket.into(), mode: Mode::Server, queues: None }
}

#[test]
fn vm_ports_come_and_go_while_running() {
    let added = live(|new| new.networks[0].vhost_user.push(vm_port("/run/vm1")));
    assert_eq!(added, [Change::VmPortsChanged(vni(1))]);
    let (mut old, mut new) = (config(), config());
    old.networks[0].vhost_user = vec![vm_port("/run/vm1")];
    new.networks[0].vhost_user = vec![VhostUser { queues: Some(2), ..vm_port("/run/vm2") }];
    let changes = old.diff(&new);
    let lines: Vec<_> = changes.live.into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines, ["network 1: vhost_user [/run/vm1] -> [/run/vm2 queues 2]"]);
}

#[test]
fn ports_of_this_node_need_a_restart_and_those_of_others_say_nothing() {
    assert!(live(|new| new.nodes[1].links[0].dpdk = Some(testing::port("net_null"))).is_empty());
    let (old, mut new) = (config(), config());
    new.nodes[0].links[0].dpdk = Some(testing::port("net_null"));
    set_address(&mut new.nodes[1], 9);
    new.dpdk.memory_mb = 64;
    new.networks[0].tap = None;
    let changes = old.diff(&new);
    // The port pairs as before, so that other nodes' links change while running.
    let live: Vec<_> = changes.live.iter().map(|(change, _)| change.clone()).collect();
    assert_eq!(live, [Change::NodeChanged(id(2))]);
    let expected = [
        "network 1: tap: tap1 -> none",
        "dpdk memory_mb: 256 -> 64",
        "link 0: port: the kernel's -> net_null",
    ];
    assert_eq!(changes.restart, expected);
    let kept = old.with_live_changes(&new);
    assert_eq!((&kept.nodes[0], &kept.dpdk), (&old.nodes[0], &old.dpdk));
    assert_eq!(kept.nodes[1], new.nodes[1]);
    let mut other = new.clone();
    other.nodes[0].links[0].dpdk = Some(DpdkPort { vlan: Some(5), ..testing::port("net_null") });
    assert_eq!(new.diff(&other).restart, ["link 0: other options of port net_null"]);
}

#[test]
fn what_is_said_of_a_peer_is_live_and_of_this_node_is_for_its_peers() {
    let policy = Some(Policy::Active { copies: 2 });
    assert_eq!(live(|new| new.nodes[1].policy = policy), [Change::NodeChanged(id(2))]);
    let protect = Some(Protect::Off);
    assert_eq!(live(|new| new.nodes[1].protect = protect), [Change::NodeChanged(id(2))]);
    assert!(live(|new| new.nodes[0].policy = policy).is_empty());
    let (old, mut new) = (config(), config());
    let second = NodeLink {
        name: "wan".to_owned(),
        address: NodeAddress::Dynamic { family: Family::Ipv4, interface: None },
        dpdk: None,
    };
    new.nodes[1].links.push(second);
    new.nodes[1].policy = policy;
    let lines: Vec<_> = old.diff(&new).live.into_iter().map(|(_, line)| line).collect();
    let expected = "node 2: links [0 192.0.2.2] -> [0 192.0.2.2, wan dynamic ipv4], \
        policy = active:2";
    assert_eq!(lines, [expected]);
}

#[test]
fn networks_of_other_nodes_change_nothing_here() {
    assert!(live(|new| new.networks[1].tap = Some("other".into())).is_empty());
    assert!(live(|new| drop(new.networks.pop())).is_empty());
}

#[test]
fn what_needs_a_restart_stays_as_it_was() {
    let (old, mut new) = (config(), config());
    new.cluster.port = 30000;
    new.cluster.ciphers.push(Cipher::None);
    new.cluster.insecure = true;
    new.daemon.workers = 2;
    new.daemon.dedicated = true;
    new.daemon.spin = Some(Duration::from_micros(50));
    new.daemon.control_socket = "/tmp/x".into();
    new.cluster.mesh = true;
    new.offload.tap_tcp = false;
    new.offload.bundles = false;
    set_address(&mut new.nodes[0], 9);
    new.networks[0].tap = Some("blue".into());
    new.networks[0].existing = true;
    new.networks[0].tap_mtu = TapMtu::Fixed(1400);
    new.networks[0].subnets = vec!["10.0.0.0/24".parse().unwrap()];
    new.networks[0].mac = MacPolicy::Random;
    new.daemon.log = "warn".into();
    let changes = old.diff(&new);
    assert_eq!(changes.live.len(), 1, "{changes:#?}");
    for expected in [
        "ciphers: aes-256-gcm -> aes-256-gcm, none",
        "insecure: false -> true",
        "port: 26026 -> 30000",
        "mesh: false -> true",
        "tap_tcp: true -> false",
        "bundles: true -> false",
        "workers: 1 -> 2",
        "dedicated: false -> true",
        "spin_us: by default -> 50",
        "control_socket: /run/tapd.sock -> /tmp/x",
        "this node's addresses: [192.0.2.1] -> [192.0.2.9]",
        "network 1: tap: tap1 -> blue",
        "network 1: existing: false -> true",
        "network 1: tap_mtu: auto -> 1400",
        "network 1: subnets: [] -> [10.0.0.0/24]",
        "network 1: mac: derived -> random",
    ] {
        assert!(changes.restart.iter().any(|line| line == expected), "{expected}\n{changes:#?}");
    }
    assert_eq!(changes.restart.len(), 16);
    let kept = old.with_live_changes(&new);
    let expected =
        Config { daemon: DaemonConfig { log: "warn".into(), ..old.daemon.clone() }, ..old };
    assert_eq!(kept, expected);
    assert_eq!(kept.diff(&new).restart.len(), 16);
}
