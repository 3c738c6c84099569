mod channels;
mod links;
mod ports;

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

const DOCUMENTATION: &str = include_str!("../../../docs/configuration.md");
const EXAMPLE: &str = include_str!("../../../docs/example/cluster.toml");

/// A directory with a good key file, for configurations to stand in.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for name in ["cluster.key", "next.key"] {
            let digit = if name == "next.key" { "1" } else { "0" };
            let path = place.write(name, &digit.repeat(64));
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        place
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self, text: &str, local: Option<&str>, node: &str) -> Result<Config, Faults> {
        let cluster = self.write("cluster.toml", text);
        let local = local.map(|text| self.write("local.toml", text));
        Config::load(&cluster, local.as_deref(), &NodeSelector::Named(node.to_owned()))
    }

    /// The faults of a configuration, without the directory's name.
    fn faults(&self, text: &str, local: Option<&str>) -> Vec<String> {
        let faults = self.load(text, local, "1").unwrap_err().to_string();
        let directory = format!("{}/", self.0.path().display());
        faults.replace(&directory, "").lines().map(str::to_owned).collect()
    }
}

/// The example, with lines added to it; nodes 1 and 2 are in it.
fn example_and(more: &str) -> String {
    format!("{EXAMPLE}\n{more}")
}

/// Loads the example with `more`, for node 1.
fn loaded(more: &str) -> Config {
    Place::new().load(&example_and(more), None, "1").unwrap()
}

/// `[cluster]` with `keys`, and one node.
fn cluster(keys: &str) -> String {
    format!(
        "[cluster]\nkey_file = 'cluster.key'\n{keys}\n[[nodes]]\nid = 1\naddresses = ['192.0.2.1']\n"
    )
}

/// Expects exactly one fault, and that it contains `expected`.
#[track_caller]
fn one_fault(text: &str, expected: &str) {
    let faults = Place::new().faults(text, None);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert!(faults[0].contains(expected), "{faults:#?}\nexpected: {expected}");
}

#[test]
fn example_has_the_documented_defaults() {
    let config = loaded("");
    assert_eq!(config.own.get(), 1);
    let ClusterConfig { policy, protect, mesh, dscp, ecn, .. } = &config.cluster;
    assert_eq!((*policy, *protect, dscp), (Policy::Passive, Protect::Control, &Dscp::Fixed(0)));
    assert!(!mesh && *ecn && config.links.is_empty());
    assert_eq!((config.detector.profile, config.detector.heartbeats_per_s), (Profile::Fast, 5000));
    let ClusterConfig { next_key, ciphers, insecure, port, .. } = &config.cluster;
    assert!(next_key.is_none() && !insecure);
    assert_eq!((ciphers.as_slice(), *port), ([Cipher::Aes256Gcm].as_slice(), 26026));
    let daemon = &config.daemon;
    assert_eq!((daemon.workers, daemon.dedicated), (1, false));
    assert_eq!(daemon.spin, None);
    assert_eq!(daemon.control_socket, Path::new("/run/tapd.sock"));
    assert_eq!(daemon.log, "info");
    assert_eq!(daemon.rehandshake_interval, Duration::from_secs(3600));
    assert_eq!(daemon.fdb_ageing, Duration::from_secs(300));
    assert_eq!((daemon.fdb_max_entries, daemon.bum_frames_per_s), (65_536, 10_000));
    assert_eq!(daemon.rotate_packets, 268_435_456);
    assert!(config.offload.switches().iter().all(|(_, on)| *on), "{:?}", config.offload);
    let network = &config.networks[0];
    assert_eq!((network.name.as_str(), network.tap.as_deref()), ("vni100", Some("tap100")));
    assert_eq!((network.tap_mtu, network.mac), (TapMtu::Auto, MacPolicy::Derived));
    assert!(network.stp && !network.existing && network.static_fdb.is_empty());
    assert!(network.mss_clamp && network.too_big && network.loop_probe);
    assert!(network.policy.is_none() && network.dscp.is_none());
    assert_eq!(network.members.len(), 2);
    assert_eq!(config.own_node().unwrap().name, "alpha");
    assert_eq!(config.peers().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["beta"]);
    assert_eq!(config.find_node("beta"), config.find_node("2"));
}

#[test]
fn every_key_can_be_given() {
    let text = "
        [cluster]
        key_file = 'cluster.key'
        next_key_file = 'next.key'
        ciphers = ['aes-256-gcm', 'none']
        insecure = true
        port = 30000
        [daemon]
        workers = 15
        dedicated = true
        spin_us = 0
        control_socket = '/tmp/x.sock'
        log = 'warn,encap=trace'
        rehandshake_minutes = 1440
        fdb_ageing_s = 10
        fdb_max_entries = 100
        bum_frames_per_s = 0
        rotate_packets = 1000
        [offload]
        tap_checksum = true
        tap_tcp = false
        tap_udp = false
        uplink_segmentation = false
        uplink_coalescing = false
        source_ports = false
        bundles = false
        [[nodes]]
        id = 2
        addresses = ['2001:db8::2', '192.0.2.2']
        [[nodes]]
        id = 1
        name = 'alpha'
        addresses = ['2001:db8::1', '192.0.2.1']
        [[networks]]
        vni = 0xffffff
        name = 'blue'
        tap = 'blue0'
        tap_mtu = 1400
        subnets = ['10.0.0.0/24', 'fd00::/64']
        mac = 'random'
        existing = true
        members = ['node2', 1]
        stp = false
        fdb = [{ mac = '02:00:00:00:00:05', node = 'alpha' }, { mac = '02-00-00-00-00-04', node = 2 }]
    ";
    let config = Place::new().load(text, None, "alpha").unwrap();
    assert_eq!(config.nodes[0].id.get(), 1);
    assert!(config.cluster.next_key.is_some());
    assert_eq!(config.cluster.ciphers, [Cipher::Aes256Gcm, Cipher::None]);
    let on = config.offload.switches().map(|(key, on)| on.then_some(key));
    assert_eq!(on, [Some("tap_checksum"), None, None, None, None, None, None]);
    let network = &config.networks[0];
    assert_eq!(network.vni.get(), Vni::MAX);
    assert_eq!(network.tap_mtu, TapMtu::Fixed(1400));
    assert_eq!(network.members.iter().map(|id| id.get()).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(network.static_fdb[0].mac.to_string(), "02:00:00:00:00:04");
    assert_eq!(network.static_fdb[1].node.get(), 1);
}

#[test]
fn every_fault_is_said_with_its_line() {
    let text = "[cluster]
key_file = 'missing.key'
ciphers = ['none', 'rot13']
port = 4780
prot = 1
[daemon]
workers = 99
dedicated = 'yes'
log = 'encap=loud'
control_socket = 'tapd.sock'
[[nodes]]
id = 1
addresses = ['192.0.2.1', '192.0.2.1']
[[nodes]]
id = 1
name = '7'
addresses = ['fd00::1', '224.0.0.1', 'fe80::1', 'home']
[[nodes]]
name = 'gamma'
[[networks]]
vni = 100
subnets = ['10.0.0.1/24', '192.0.2.0/24']
members = [1, 9]
fdb = [{ mac = '01:00:00:00:00:01', node = 8 }, { mac = '02' }]
tap = 'a-name-that-is-too-long'
";
    let faults = Place::new().faults(text, None);
    let expected = [
        (2, "missing.key does not exist"),
        (3, "cipher \"none\" sends everything readable"),
        (3, "no cipher \"rot13\""),
        (4, "contain 4789"),
        (5, "unknown key \"prot\" in [cluster]; did you mean \"port\"?"),
        (7, "workers = 99 is out of range; choose 1 to 15"),
        (8, "dedicated must be true or false"),
        (9, "log is no filter"),
        (10, "must be an absolute path"),
        (13, "address 192.0.2.1 is taken already"),
        (15, "node id 1 is taken already in line 12"),
        (16, "looks like an id"),
        (17, "different families"),
        (17, "address 224.0.0.1 is a group's"),
        (17, "link-local"),
        (17, "\"home\" is not an IP address"),
        (18, "[[nodes]] has no id"),
        (18, "[[nodes]] has no addresses"),
        (22, "write 10.0.0.0/24"),
        (22, "contains 192.0.2.1, a link address of node 1 (line 11)"),
        (23, "member \"9\" is not in [[nodes]]"),
        (24, "not a station's address"),
        (24, "fdb node \"8\" is not in [[nodes]]"),
        (24, "\"02\" is not a MAC address"),
        (24, "an fdb entry has no node"),
        (25, "cannot be a tap's name: use 1 to 15 bytes"),
    ];
    for (line, part) in expected {
        let start = format!("cluster.toml:{line}: ");
        let found = faults.iter().any(|fault| fault.starts_with(&start) && fault.contains(part));
        assert!(found, "missing: {line}: {part}\n{faults:#?}");
    }
}

#[test]
fn single_faults_have_no_followers() {
    one_fault(&cluster("ciphers = []"), "ciphers is empty");
    one_fault(&cluster("ciphers = ['none']"), "insecure = true");
    one_fault(&cluster("ciphers = ['aes-256-gcm', 'aes-256-gcm']"), "taken already");
    one_fault(&cluster("port = 65521"), "choose 1 to 65520");
    one_fault(&cluster("port = 8460"), "8472");
    one_fault(&cluster("port = 0"), "choose 1 to 65520");
    one_fault(&cluster("port = 99999999999999999999"), "far too large");
    one_fault(&cluster("port = 1.5"), "a number with a fraction");
    one_fault(&cluster("workers = 1"), "belongs into [daemon]");
    one_fault(&cluster("next_key_file = 'none.key'"), "none.key does not exist");
    one_fault(&cluster("key_file = 'again'"), "cluster.toml:3: not TOML");
    one_fault("[[nodes]]\nid = 1\naddresses = ['192.0.2.1']", "no [cluster] section");
    one_fault("[cluster]\nkey_file = 'cluster.key'", "no [[nodes]]");
    one_fault(&example_and("[[nodes]]\nid = 3\naddresses = []"), "addresses is empty");
    one_fault(&example_and("[[nodes]]\nid = 3\naddresses = ['::']"), "every address");
    one_fault(&example_and("[[nodes]]\nid = 0\naddresses = ['192.0.2.3']"), "choose 1 to 65535");
    one_fault(
        &example_and("[[nodes]]\nid = 3\nname = 'beta'\naddresses = ['192.0.2.3']"),
        "node name beta is taken",
    );
    one_fault(&example_and("[[nodes]]\nid = 3\nname = ''\naddresses = ['192.0.2.3']"), "is empty");
    one_fault(&example_and("[[nodes]]\nid = 3\naddresses = ['::ffff:192.0.2.3']"), "disguise");
    let nine: Vec<_> = (3..12).map(|n| format!("'192.0.2.{n}'")).collect();
    let nine = format!("[[nodes]]\nid = 3\naddresses = [{}]", nine.join(","));
    one_fault(&example_and(&nine), "at most 8");
    one_fault("nodes = 1\n[cluster]\nkey_file = 'cluster.key'", "[[nodes]]");
}

#[test]
fn network_faults() {
    let network = |keys: &str| example_and(&format!("[[networks]]\nvni = 7\n{keys}"));
    one_fault(&example_and("[[networks]]\nvni = 100\nname = 'b'\ntap = 'b'"), "vni 100 is taken");
    one_fault(&example_and("[[networks]]\ntap = 'b'"), "has no vni");
    one_fault(&example_and("[[networks]]\nvni = 16777216"), "choose 0 to 16777215");
    one_fault(&network("tap = 'tap100'"), "tap tap100 is taken already in line");
    one_fault(&network("name = 'vni100'"), "network name vni100 is taken");
    one_fault(&network("tap = 'a/b'"), "\"a/b\" cannot be a tap's name");
    one_fault(&network("tap = 'tap%d'"), "cannot be a tap's name");
    one_fault(&network("tap_mtu = 67"), "68 to 65521");
    one_fault(&network("tap_mtu = 65522"), "68 to 65521");
    assert!(Place::new().load(&network("tap_mtu = 65521"), None, "1").is_ok());
    one_fault(&network("tap_mtu = 'large'"), "\"auto\"");
    one_fault(&network("tap_mtu = 1279\nsubnets = ['fd00::/64']"), "below 1280");
    one_fault(&network("mac = 'mine'"), "neither \"derived\" nor \"random\"");
    one_fault(&network("members = []"), "members is empty");
    one_fault(&network("members = [1, 'alpha']"), "node 1 is a member twice");
    one_fault(&network("members = [true]"), "id or name");
    one_fault(
        &network("subnets = ['10.7.0.0/30', '10.8.0.0/32']"),
        "10.8.0.0/32 is too small for node 2",
    );
    one_fault(&network("subnets = ['10.100.0.128/25']"), "overlaps 10.100.0.0/24");
    one_fault(&network("subnets = ['10.0.0.0/8']"), "overlaps 10.100.0.0/24");
    one_fault(&network("subnets = ['224.0.0.0/24']"), "not one that hosts can have");
    one_fault(
        &network("subnets = ['192.0.0.0/16']\nmembers = [1]")
            .replace("addresses = [\"192.0.2.2\"]", "addresses = [\"198.51.100.2\"]"),
        "link address of node 1",
    );
    one_fault(
        &network("members = [1]\nfdb = [{ mac = '02:00:00:00:00:05', node = 2 }]"),
        "not a member",
    );
    one_fault(
        &network(
            "fdb = [{ mac = '02:00:00:00:00:05', node = 2 }, { mac = '02:00:00:00:00:05', node = 1 }]",
        ),
        "taken already",
    );
    one_fault(&network("fdb = [{ mac = '00:00:00:00:00:00', node = 2 }]"), "not a station");
    one_fault(&network("fdb = [7]"), "an fdb entry is a number");
    one_fault(
        &network("fdb = [{ mac = '02:00:00:00:00:05', nod = 2, node = 2 }]"),
        "did you mean \"node\"",
    );
}

#[test]
fn networks_that_share_no_node_may_share_a_subnet() {
    let text = example_and(
        "[[networks]]\nvni = 7\nmembers = [1]\nsubnets = ['10.7.0.0/24']\n[[networks]]\nvni = 8\nmembers = [2]\nsubnets = ['10.7.0.0/24']",
    );
    let config = Place::new().load(&text, None, "2").unwrap();
    let own: Vec<_> = config.own_networks().map(|network| network.vni.get()).collect();
    assert_eq!(own, [8, 100]);
}

#[test]
fn local_file_overrides_key_by_key_and_its_faults_are_its_own() {
    let local = "[daemon]\nworkers = 3\n[[networks]]\nvni = 100\nexisting = true\n[[networks]]\nvni = 200\n";
    let config = Place::new().load(EXAMPLE, Some(local), "1").unwrap();
    assert_eq!(config.daemon.workers, 3);
    assert!(config.networks[0].existing);
    assert_eq!(config.networks[0].subnets.len(), 1);
    assert_eq!(config.networks[1].tap.as_deref(), Some("tap200"));
    let faults = Place::new()
        .faults(EXAMPLE, Some("[daemon]\nworker = 1\n[[nodes]]\nid = 2\nname = 'alpha'"));
    assert_eq!(faults.len(), 2, "{faults:#?}");
    assert!(faults[0].starts_with("local.toml:2: unknown key \"worker\""), "{faults:#?}");
    assert!(
        faults[1].starts_with(
            "local.toml:5: node name alpha is taken already in line 11 of the cluster file"
        ),
        "{faults:#?}"
    );
}

#[test]
fn key_file_is_relative_to_the_file_that_names_it() {
    let (one, other) = (Place::new(), Place::new());
    fs::remove_file(one.0.path().join("cluster.key")).unwrap();
    let cluster = one.write("cluster.toml", EXAMPLE);
    let local = other.write("local.toml", "[cluster]\nkey_file = 'cluster.key'");
    let node = NodeSelector::Named("1".to_owned());
    assert!(Config::load(&cluster, None, &node).is_err());
    assert!(Config::load(&cluster, Some(&local), &node).is_ok());
}

#[test]
fn unreadable_files_are_both_named() {
    let place = Place::new();
    let binary = place.0.path().join("binary");
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    let missing = place.0.path().join("missing");
    let text = Config::load(&missing, Some(&binary), &NodeSelector::ByAddress).unwrap_err();
    assert_eq!(text.len(), 2);
    assert!(text.to_string().contains("cannot read this file"), "{text}");
    assert!(text.to_string().contains("is not UTF-8"), "{text}");
}

#[test]
fn check_needs_no_node_but_refuses_a_wrong_one() {
    let place = Place::new();
    let path = place.write("cluster.toml", EXAMPLE);
    let checked = Config::check(&path, None, &NodeSelector::ByAddress).unwrap();
    assert_eq!((checked.nodes, checked.networks), (2, 1));
    let named = |name: &str| Config::check(&path, None, &NodeSelector::Named(name.to_owned()));
    assert_eq!(named("beta").unwrap().own.unwrap().1, "beta");
    assert!(named("gamma").unwrap_err().to_string().contains("known are 1 (alpha), 2 (beta)"));
}

#[test]
fn offloads_are_switched_off_one_by_one_and_for_one_node() {
    let place = Place::new();
    let config = place.load(EXAMPLE, Some("[offload]\ntap_udp = false\n"), "1").unwrap();
    let off: Vec<_> = config.offload.switches().into_iter().filter(|(_, on)| !on).collect();
    assert_eq!(off, [("tap_udp", false)]);
    one_fault(
        &format!("{}[offload]\ntap_tpc = false\n", cluster("")),
        "unknown key \"tap_tpc\" in [offload]; did you mean \"tap_tcp\"?",
    );
    one_fault(&format!("{}[offload]\nbundles = 1\n", cluster("")), "bundles must be true or false");
}

#[test]
fn secrets_are_not_printed() {
    let place = Place::new();
    place.write("cluster.key", &"ab".repeat(32));
    let shown = format!("{:?}", place.load(EXAMPLE, None, "1").unwrap());
    assert!(shown.contains("ClusterKey(secret)"), "{shown}");
    assert!(!shown.contains("171, 171") && !shown.contains("abab"), "{shown}");
}

#[test]
fn documentation_names_every_key() {
    for section in sections::SECTIONS {
        for key in section.keys {
            let shown = if section.title == "the file" {
                format!("{key}]")
            } else {
                format!("| `{key}` |")
            };
            assert!(DOCUMENTATION.contains(&shown), "{key} of {} is not documented", section.title);
        }
    }
}

#[test]
fn documentation_names_every_default() {
    for default in [
        DEFAULT_PORT.to_string(),
        DEFAULT_WORKERS.to_string(),
        DEFAULT_SPIN_US.to_string(),
        format!("\"{DEFAULT_CONTROL_SOCKET}\""),
        format!("\"{DEFAULT_LOG}\""),
        DEFAULT_REHANDSHAKE_MINUTES.to_string(),
        DEFAULT_FDB_AGEING_S.to_string(),
        DEFAULT_FDB_MAX_ENTRIES.to_string(),
        DEFAULT_BUM_FRAMES_PER_S.to_string(),
        DEFAULT_ROTATE_PACKETS.to_string(),
        detector::DEFAULT_HEARTBEATS_PER_S.to_string(),
        dpdk::DEFAULT_MEMORY_MB.to_string(),
        format!("\"{}\"", Hugepages::default().name()),
        dpdk::DEFAULT_MAX_SLEEP_US.to_string(),
        dpdk::DEFAULT_PORT_MTU.to_string(),
        format!("\"{}\"", vhost::Mode::default().name()),
        format!("\"{:04o}\"", super::channels::DEFAULT_SOCKET_MODE),
        super::channels::DEFAULT_SEND_BUFFER_KB.to_string(),
        super::channels::DEFAULT_RECEIVE_MEMORY_MB.to_string(),
        format!("\"{}\"", super::channels::congestion_name(HubOptions::default().congestion)),
        format!("\"{}\"", Policy::default()),
        format!("\"{}\"", Protect::default()),
        format!("\"{}\"", Profile::default()),
        Dscp::default().to_string(),
    ] {
        assert!(DOCUMENTATION.contains(&format!("| `{default}` |")), "{default}");
    }
}

/// A configuration with every key, for mutation.
const SEED: &str = "[cluster]\nkey_file='/dev/null/x'\nciphers=['none']\nport=1\nmesh=true\n\
    policy='active:2'\ndscp={'46'=40,default=0}\n[detector]\nfast_us=1000\nhold_s=5\n[daemon]\nlog='info'\nworkers=1\n[offload]\ntap_tcp=false\n\
    [dpdk]\nmemory_mb=64\nhugepages='auto'\neal=['-v']\n\
    [[nodes]]\nid=1\nname='a'\naddresses=['192.0.2.1','fd00::1']\n[[nodes]]\nid=3\nlinks=[{name='l',\
    address='192.0.3.1',dpdk={port='net_null,a=b',prefix=24,gateway='192.0.3.2',vlan=5,mtu=1500,\
    routes=[{to='10.0.0.0/8',via='192.0.3.3'}],neighbors=[{address='192.0.3.4',mac='02:00:00:00:00:01'}]}}]\n\
    [[nodes]]\nid=2\nprotect='all'\n\
    links=[{name='l',address='dynamic',family='ipv4',interface='e'}]\n\
    [[links]]\nname='0-l'\nmtu=1400\nallow=['192.0.2.0/24','fd00::1-fd00::9']\n\
    [[networks]]\nvni=1\ntap='t'\ntap_mtu='auto'\nsubnets=['10.0.0.0/24','fd00::/64']\nmembers=[1,'a']\n\
    vhost_user=['/a',{socket='/b',mode='client',queues=2}]\n\
    mac='derived'\nfdb=[{mac='02:00:00:00:00:05',node=2}]\n\
    [[channels]]\nname='c'\nmode='message'\nmembers=[1,'a']\nsocket='/c'\nsocket_mode='0660'\n\
    socket_owner='u'\nsocket_group=7\nsend_buffer_kb=64\ncompression='zstd'\ncompression_level=1\n\
    [channel_transport]\ncongestion='fixed:1M'\nreceive_memory_mb=64\n";

fn parse_any(cluster: &str, local: Option<&str>) -> bool {
    let mut faults = Collector::default();
    let files = ["/nonexistent/a".into(), "/nonexistent/b".into()];
    let parts = parse(&files, cluster, local, &mut faults);
    if let Some(parts) = parts {
        let _ = node::resolve(&NodeSelector::Named("1".into()), &parts.nodes, &|_| false);
    }
    // Prints, and so walks, every fault.
    let empty = faults.is_empty();
    let text = faults.into_faults(&files).to_string();
    empty == text.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_panics(cluster in "\\PC*", local in proptest::option::of("\\PC*")) {
        prop_assert!(parse_any(&cluster, local.as_deref()));
    }

    #[test]
    fn no_change_of_a_good_text_panics(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..4, "[\\[\\]{}=',\"\n0-9a-z./:_#-]{0,6}"), 1..8),
        swap in any::<bool>(),
    ) {
        let mut bytes = SEED.as_bytes().to_vec();
        for (position, length, insert) in cuts {
            let start = position.index(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, insert.bytes());
        }
        let text = String::from_utf8(bytes).unwrap();
        let (cluster, local) = if swap { (SEED, text.as_str()) } else { (text.as_str(), SEED) };
        prop_assert!(parse_any(cluster, Some(local)));
    }
}
