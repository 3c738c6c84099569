//! Nodes with several links, and what is said of links, traffic and the detector.

use super::*;
use crate::config::links::{Family, NodeAddress};

const TWO_LINKS: &str = include_str!("../../../../docs/example/two-links.toml");

/// `[cluster]` with `keys`, and nodes with these keys, by ascending id from 1.
fn nodes(keys: &str, nodes: &[&str]) -> String {
    let mut text = format!("[cluster]\nkey_file = 'cluster.key'\n{keys}\n");
    for (node, id) in nodes.iter().zip(1..) {
        text.push_str(&format!("[[nodes]]\nid = {id}\n{node}\n"));
    }
    text
}

/// A node's `links`, each `name address`.
fn links(links: &[&str]) -> String {
    let links: Vec<_> = links
        .iter()
        .map(|link| {
            let (name, address) = link.split_once(' ').unwrap();
            format!("{{ name = '{name}', address = '{address}' }}")
        })
        .collect();
    format!("links = [{}]", links.join(", "))
}

fn load(text: &str) -> Config {
    Place::new().load(text, None, "1").unwrap()
}

/// Names, own positions and remote addresses of the links to the other node.
fn pairs(config: &Config) -> Vec<(String, usize, String)> {
    let peer = config.peers().next().unwrap();
    let pairs = config.pairs(peer).into_iter();
    pairs.map(|pair| (pair.name, pair.local, pair.remote.to_string())).collect()
}

fn pair(name: &str, local: usize, remote: &str) -> (String, usize, String) {
    (name.to_owned(), local, remote.to_owned())
}

#[test]
fn two_links_example_is_good() {
    let config = load(TWO_LINKS);
    let expected = [pair("cable", 0, "192.0.2.2"), pair("radio", 1, "198.51.100.2")];
    assert_eq!(pairs(&config), expected);
    let options = config.pairs(config.find_node("beta").unwrap());
    let priorities: Vec<_> = options.iter().map(|pair| pair.options.priority).collect();
    assert_eq!(priorities, [10, 0]);
    assert_eq!(config.cluster.protect, Protect::All);
    let place = Place::new();
    let path = place.write("two-links.toml", TWO_LINKS);
    let checked = Config::check(&path, None, &NodeSelector::Named("beta".into())).unwrap();
    assert_eq!((checked.nodes, checked.networks), (2, 1));
}

#[test]
fn addresses_are_links_by_position() {
    let two = "addresses = ['192.0.2.1', 'dynamic']";
    let config = load(&nodes("", &[two, "addresses = ['192.0.2.2', '198.51.100.2']"]));
    let own = config.own_node().unwrap();
    let names: Vec<_> = own.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["0", "1"]);
    let dynamic = NodeAddress::Dynamic { family: Family::Ipv4, interface: None };
    assert_eq!(own.links[1].address, dynamic);
    assert_eq!(own.addresses().count(), 1);
    assert_eq!(pairs(&config), [pair("0", 0, "192.0.2.2"), pair("1", 1, "198.51.100.2")]);
}

#[test]
fn a_node_may_have_some_of_the_links_and_name_positions() {
    let roaming =
        "links = [{ name = '1', address = 'dynamic', family = 'ipv6', interface = 'wwan0' },
        { name = 'own', address = '203.0.113.1' }]";
    let config = load(&nodes("", &["addresses = ['192.0.2.1', '2001:db8::1']", roaming]));
    let expected = [pair("1", 1, "dynamic ipv6 on wwan0")];
    assert_eq!(pairs(&config), expected);
}

#[test]
fn mesh_joins_every_two_addresses_of_a_family() {
    let lower = links(&["lan 192.0.2.1", "wan 198.51.100.1", "six 2001:db8::1"]);
    let higher = links(&["wan 198.51.100.2", "lan 192.0.2.2"]);
    let options = "[[links]]\nname = 'lan-wan'\nweight = 7";
    let text = nodes("mesh = true", &[&lower, &higher]) + options;
    let config = load(&text);
    let expected = [
        pair("lan-wan", 0, "198.51.100.2"),
        pair("lan-lan", 0, "192.0.2.2"),
        pair("wan-wan", 1, "198.51.100.2"),
        pair("wan-lan", 1, "192.0.2.2"),
    ];
    assert_eq!(pairs(&config), expected);
    assert_eq!(config.pairs(&config.nodes[1])[0].options.weight, 7);
    let other = Place::new().load(&text, None, "2").unwrap();
    let names: Vec<_> = pairs(&other).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["lan-wan", "lan-lan", "wan-wan", "wan-lan"]);
}

#[test]
fn links_of_a_node_have_single_faults() {
    let one = |node: &str| nodes("", &[node]);
    one_fault(
        &one("addresses = ['192.0.2.1']\nlinks = [{ name = 'lan', address = '192.0.2.2' }]"),
        "cluster.toml:7: [[nodes]] has both links and addresses (line 6); keep one of the two",
    );
    one_fault(&one(""), "[[nodes]] has no addresses");
    one_fault(&one("links = []"), "links is empty; write a list such as");
    one_fault(&one("links = ['192.0.2.1']"), "a link is a string; write a list such as");
    one_fault(&one("links = [{ address = '192.0.2.1' }]"), "a link of a node has no name");
    one_fault(&one("links = [{ name = 'lan' }]"), "has no address; write address =");
    one_fault(&one(&links(&["lan home"])), "\"home\" is not an IP address such as");
    one_fault(&one(&links(&["lan 0.0.0.0"])), "stands for every address");
    one_fault(&one(&links(&["lan 192.0.2.1", "lan 192.0.2.2"])), "link name lan is taken already");
    one_fault(&one(&links(&["lan 192.0.2.1", "wan 192.0.2.1"])), "address 192.0.2.1 is taken");
    one_fault(&one(&links(&["8 192.0.2.1"])), "link name \"8\" looks like an id");
    one_fault(&one(&links(&["a/b 192.0.2.1"])), "may only have letters");
    assert!(Place::new().load(&one(&links(&["7 192.0.2.1"])), None, "1").is_ok());
    let nine: Vec<_> = (1..10).map(|n| format!("link{n} 192.0.2.{n}")).collect();
    let nine: Vec<_> = nine.iter().map(String::as_str).collect();
    one_fault(&one(&links(&nine)), "9 links are more links than there can be; keep at most 8");
    let link = |keys: &str| one(&format!("links = [{{ name = 'lan', {keys} }}]"));
    one_fault(&link("address = 'dynamic', family = 'ipv5'"), "neither \"ipv4\" nor \"ipv6\"");
    one_fault(&link("address = 'dynamic', interface = 'a b'"), "cannot be an interface's name");
    one_fault(&link("address = '192.0.2.1', family = 'ipv4'"), "family is only for address");
    one_fault(&link("address = '192.0.2.1', interface = 'e'"), "interface is only for address");
    one_fault(&link("adress = '', address = '192.0.2.1'"), "did you mean \"address\"?");
    one_fault(
        &one("addresses = ['dynamic', 'dynamic']"),
        "links \"0\" and \"1\" both are dynamic ipv4; give each an interface of its own",
    );
}

#[test]
fn every_two_nodes_need_a_link() {
    let lan = |n: u8| format!("addresses = ['192.0.2.{n}']");
    one_fault(
        &nodes("", &[&lan(1), &lan(2), &links(&["lan 192.0.2.3"])]),
        "cluster.toml:12: node 3 (node3) and node 1 (node1, line 6) have no link: no name of their links",
    );
    let both = links(&["lan 192.0.2.3", "0 198.51.100.3"]);
    let bridged = nodes("", &[&lan(1), &links(&["lan 192.0.2.2"]), &both]);
    one_fault(&bridged, "node 2 (node2) and node 1 (node1, line 6) have no link");
    let dynamic = "addresses = ['dynamic']";
    one_fault(&nodes("", &[&lan(1), dynamic, dynamic]), "both addresses are dynamic");
    assert!(Place::new().load(&nodes("", &[&lan(1), dynamic]), None, "2").is_ok());
    one_fault(
        &nodes("", &[&lan(1), "addresses = ['2001:db8::2']"]),
        "2001:db8::2 and 192.0.2.1 (line 6) both are link \"0\" of their node, but of different families",
    );
    one_fault(
        &nodes("", &[&lan(1), "links = [{ name = '0', address = 'dynamic', family = 'ipv6' }]"]),
        "dynamic ipv6 and 192.0.2.1 (line 6) both are link \"0\"",
    );
    // Both that are without one say so.
    let faults = Place::new()
        .faults(&nodes("", &[&lan(1), &links(&["a 192.0.2.2"]), &links(&["a 192.0.2.3"])]), None);
    assert_eq!(faults.len(), 2, "{faults:#?}");
}

#[test]
fn mesh_has_faults_of_its_own() {
    let mesh = |list: &[&str]| nodes("mesh = true", list);
    let three = |n: u8| format!("addresses = ['192.0.2.{n}', '198.51.100.{n}', '203.0.113.{n}']");
    one_fault(
        &mesh(&[&three(1), &three(2)]),
        "cluster.toml:9: node 2 (node2) and node 1 (node1, line 6) would have 9 links",
    );
    one_fault(
        &mesh(&["addresses = ['192.0.2.1']", "addresses = ['2001:db8::2']"]),
        "no two of their addresses are of one family",
    );
    one_fault(&mesh(&[&links(&["my-lan 192.0.2.1"])]), "\"my-lan\" has a '-'");
    let crossed = mesh(&["addresses = ['192.0.2.1']", &links(&["lan 192.0.2.2"])]);
    assert_eq!(pairs(&load(&crossed)), [pair("0-lan", 0, "192.0.2.2")]);
    one_fault(
        &format!("{crossed}[[links]]\nname = 'lan'"),
        "write two names with '-' between them",
    );
}

#[test]
fn options_of_links_are_checked() {
    let with = |keys: &str| format!("{TWO_LINKS}\n[[links]]\n{keys}");
    let radio = |keys: &str| with(&format!("name = 'radio'\n{keys}"));
    let config = load(&radio(
        "priority = 255\nweight = 1000\nmtu = 1280\nallow = ['198.51.100.0/24', '203.0.113.5-203.0.113.9']\ndeny = ['198.51.100.7']",
    ));
    let options = config.link_options("radio");
    assert_eq!((options.priority, options.weight, options.mtu), (255, 1000, Some(1280)));
    assert_eq!(options.allow, ["198.51.100.0/24", "203.0.113.5-203.0.113.9"]);
    assert_eq!(options.deny, ["198.51.100.7"]);
    assert_eq!(config.link_options("other"), LinkOptions::default());
    one_fault(&with("priority = 1"), "[[links]] has no name");
    one_fault(&with("name = 'cable'"), "link cable is taken already in line 27");
    one_fault(&with("name = 'radar'"), "no node has a link \"radar\"; nodes have cable, radio");
    one_fault(&radio("priority = 256"), "choose 0 to 255");
    one_fault(&radio("weight = 0"), "choose 1 to 1000");
    one_fault(&radio("mtu = 1279"), "choose 1280 to 65535");
    one_fault(&radio("mtu = 'auto'"), "mtu must be a whole number");
    one_fault(&radio("allow = '198.51.100.0/24'"), "allow must be a list such as");
    one_fault(&radio("allow = ['198.51.100.1/24']"), "write \"198.51.100.0/24\"");
    one_fault(&radio("deny = ['home']"), "\"home\" is no range of addresses such as");
    one_fault(
        &radio("deny = ['fd00::/8']"),
        "can hold no address of link \"radio\", which is ipv4",
    );
}

#[test]
fn traffic_is_the_networks_then_the_peers_then_the_clusters() {
    let text = "[cluster]\nkey_file = 'cluster.key'\npolicy = 'active:2'\nprotect = 'off'\ndscp = 46\n\
        ecn = false\nprofile = 'wan'\n[[nodes]]\nid = 1\naddresses = ['192.0.2.1']\n[[nodes]]\nid = 2\n\
        addresses = ['192.0.2.2']\npolicy = 'flow-hash'\nprotect = 'all'\n[[nodes]]\nid = 3\n\
        addresses = ['192.0.2.3']\n[[networks]]\nvni = 1\npolicy = 'round-robin'\ndscp = 'inherit'\n\
        mss_clamp = false\ntoo_big = false\nloop_probe = false\n[[networks]]\nvni = 2\n";
    let config = load(text);
    let peers: Vec<_> = config.peers().collect();
    let policies = |network: &NetworkConfig| {
        peers.iter().map(|peer| config.policy(Some(network), peer)).collect::<Vec<_>>()
    };
    assert_eq!(policies(&config.networks[0]), [Policy::RoundRobin; 2]);
    let expected = [Policy::FlowHash, Policy::Active { copies: 2 }];
    assert_eq!(policies(&config.networks[1]), expected);
    assert_eq!(config.policy(None, peers[0]), Policy::FlowHash);
    assert_eq!(config.protect(peers[0]), Protect::All);
    assert_eq!(config.protect(peers[1]), Protect::Off);
    assert_eq!(config.dscp(&config.networks[0]), &Dscp::Inherit);
    assert_eq!(config.dscp(&config.networks[1]), &Dscp::Fixed(46));
    assert!(!config.cluster.ecn);
    assert_eq!(config.detector.profile, Profile::Wan);
    let [first, second] = config.networks.as_slice() else { panic!() };
    assert!(!first.mss_clamp && !first.too_big && !first.loop_probe);
    assert!(second.mss_clamp && second.too_big && second.loop_probe);
}

#[test]
fn compression_is_a_networks_and_off_where_nothing_is_said() {
    let with = |keys: &str| {
        format!(
            "[cluster]\nkey_file = 'cluster.key'\n[[nodes]]\nid = 1\naddresses = ['192.0.2.1']\n\
            [[networks]]\nvni = 1\n{keys}\n[[networks]]\nvni = 2\n"
        )
    };
    let levels = |keys: &str| {
        let config = load(&with(keys));
        assert_eq!(config.networks[1].compression, None);
        config.networks[0].compression.map(Level::get)
    };
    assert_eq!(levels(""), None);
    assert_eq!(levels("compression = 'off'"), None);
    assert_eq!(levels("compression = 'zstd'"), Some(1));
    assert_eq!(levels("compression = 'zstd'\ncompression_level = 19"), Some(19));
    // Switching it off for a while need not take the level out.
    assert_eq!(levels("compression = 'off'\ncompression_level = 3"), None);
    let expected = "is no compression; there are \"off\", \"zstd\"";
    one_fault(&with("compression = 'lz4'"), expected);
    one_fault(&with("compression = true"), "compression must be a string in quotes");
    for level in [0, 20, -1] {
        let keys = format!("compression_level = {level}");
        one_fault(&with(&keys), "is out of range; choose 1 to 19");
    }
}

#[test]
fn dscp_is_a_number_or_a_word_or_a_table() {
    let dscp = |value: &str| cluster(&format!("dscp = {value}"));
    let loaded = |value: &str| load(&dscp(value)).cluster.dscp;
    assert_eq!(loaded("63"), Dscp::Fixed(63));
    assert_eq!(loaded("\"inherit\""), Dscp::Inherit);
    assert_eq!(loaded("{ '46' = 40, default = 8, 0 = 1 }"), Dscp::Map(vec![(0, 1), (46, 40)], 8));
    assert_eq!(loaded("{ 46 = 40 }"), Dscp::Map(vec![(46, 40)], 0));
    one_fault(&dscp("64"), "dscp must be 0 to 63, \"inherit\", or a table such as");
    one_fault(&dscp("'EF'"), "dscp must be 0 to 63");
    one_fault(
        &dscp("{ 64 = 1 }"),
        "dscp maps from \"0\" to \"63\" and from default, not from \"64\"",
    );
    one_fault(&dscp("{ 046 = 1 }"), "not from \"046\"");
    one_fault(&dscp("{ 46 = 64 }"), "dscp maps to a number from 0 to 63");
    one_fault(&dscp("{ default = 'EF' }"), "dscp maps to a number from 0 to 63");
}

#[test]
fn words_of_the_cluster_are_checked() {
    one_fault(&cluster("policy = 'activ'"), "policy = \"activ\" is no policy; there are");
    one_fault(&cluster("policy = 'active:1'"), "that is \"passive\"");
    one_fault(&cluster("policy = 2"), "policy must be a string in quotes");
    one_fault(&cluster("protect = 'frames'"), "is not one of \"off\", \"control\", \"all\"");
    one_fault(&cluster("profile = 'slow'"), "is no profile; there are \"fast\", \"normal\"");
    one_fault(&cluster("mesh = 'yes'"), "mesh must be true or false");
    one_fault(&cluster("heartbeats_per_s = 1"), "it belongs into [detector]");
}

#[test]
fn detector_overrides_its_profile() {
    let with = |profile: &str, keys: &str| {
        cluster(&format!("profile = '{profile}'"))
            .replace("[[nodes]]", &format!("[detector]\n{keys}\n[[nodes]]"))
    };
    let config = load(&with(
        "normal",
        "fast_us = 2000\nnormal_ms = 2\nidle_ms = 2\nsole_ms = 3\nmin_missed = 32\nmax_missed = 32\n\
        min_grace_us = 400\ndown_after_ms = 70\nclear_rounds = 4\nup_rounds = 6\n\
        max_up_loss_percent = 7\nhold_s = 8\nmax_hold_s = 8\npeer_timeout_ms = 900\n\
        heartbeats_per_s = 100",
    ));
    let ms = |ms| Some(Duration::from_millis(ms));
    let expected = DetectorConfig {
        profile: Profile::Normal,
        fast: ms(2),
        normal: ms(2),
        idle: ms(2),
        sole: ms(3),
        min_missed: Some(32),
        max_missed: Some(32),
        min_grace: Some(Duration::from_micros(400)),
        down_after: ms(70),
        clear_rounds: Some(4),
        up_rounds: Some(6),
        max_up_loss_percent: Some(7),
        hold: ms(8_000),
        max_hold: ms(8_000),
        peer_timeout: ms(900),
        heartbeats_per_s: 100,
    };
    assert_eq!(config.detector, expected);
    one_fault(
        &with("fast", "fast_us = 10001"),
        "cluster.toml:5: fast_us = 10001 is more than normal_ms = 10 (of the profile \"fast\")",
    );
    one_fault(
        &with("knet-like", "normal_ms = 999"),
        "normal_ms = 999 is less than fast_us = 1000000 (of the profile \"knet-like\")",
    );
    one_fault(
        &with("fast", "idle_ms = 40\nnormal_ms = 50"),
        "cluster.toml:6: normal_ms = 50 is more than idle_ms = 40 (line 5); change one of them",
    );
    one_fault(&with("fast", "min_missed = 17"), "min_missed = 17 is more than max_missed = 16");
    one_fault(&with("fast", "max_hold_s = 4"), "max_hold_s = 4 is less than hold_s = 5");
    one_fault(&with("fast", "min_missed = 1"), "choose 2 to 32");
    one_fault(&with("fast", "heartbeats_per_s = 99"), "choose 100 to 1000000");
    one_fault(&with("fast", "heartbeat_per_s = 99"), "did you mean \"heartbeats_per_s\"?");
}

#[test]
fn thousands_of_nodes_with_names_of_their_own_are_checked_in_time() {
    let list: Vec<_> = (1..2_000_u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            links(&[&format!("only{n} 10.{high}.{low}.1"), &format!("hub 10.{high}.{low}.2")])
        })
        .collect();
    let list: Vec<_> = list.iter().map(String::as_str).collect();
    assert_eq!(load(&nodes("", &list)).nodes.len(), 1_999);
}
