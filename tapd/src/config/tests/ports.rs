//! DPDK ports of links, `[dpdk]`, and VM ports of networks.

use super::*;
use crate::config::dpdk::{Hugepages, Port, Route, StaticNeighbor};
use crate::config::vhost::{MAX_VM_PORTS, Mode};

const DPDK: &str = include_str!("../../../../docs/example/dpdk.toml");
const VMS: &str = include_str!("../../../../docs/example/vm-local.toml");

/// One node whose link has these keys of `dpdk`, at `address`.
fn at(address: &str, keys: &str) -> String {
    format!(
        "[cluster]\nkey_file = 'cluster.key'\n[[nodes]]\nid = 1\n\
        links = [{{ name = 'lan', address = '{address}', dpdk = {{ {keys} }} }}]\n"
    )
}

/// The same with the two required keys, at 192.0.2.1/24.
fn with(keys: &str) -> String {
    at("192.0.2.1", &format!("port = 'net_null', prefix = 24, {keys}"))
}

fn port_of(text: &str) -> DpdkPort {
    let config = Place::new().load(text, None, "1").unwrap();
    config.own_node().unwrap().links[0].dpdk.clone().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn examples_are_good() {
    let place = Place::new();
    let config = place.load(DPDK, Some(VMS), "alpha").unwrap();
    let [fast, slow] = config.own_node().unwrap().links.as_slice() else { panic!() };
    let port = fast.dpdk.as_ref().unwrap();
    assert_eq!(port.port, Port::Pci { address: "0000:3b:00.0".into(), arguments: String::new() });
    assert_eq!((port.prefix, port.gateway, port.mtu), (24, Some(ip("192.0.2.254")), 9000));
    assert_eq!(slow.dpdk, None);
    assert!(config.needs_dpdk());
    assert_eq!(config.dpdk.memory_mb, 512);
    let ports: Vec<_> = config
        .networks
        .iter()
        .map(|network| {
            let ports: Vec<_> = network.vhost_user.iter().map(ToString::to_string).collect();
            (network.tap.as_deref(), ports.join(", "))
        })
        .collect();
    let expected = [
        (Some("tap100"), "/run/tapd/vm1.sock".to_owned()),
        (None, "/run/tapd/vm2.sock queues 2, /run/tapd/vm3.sock client".to_owned()),
    ];
    assert_eq!(ports, expected);
    let [first, second] = config.networks[1].vhost_user.as_slice() else { panic!() };
    assert_eq!((first.mode, first.queues(4)), (Mode::Server, 2));
    assert_eq!((second.mode, second.queues(4), second.queues(15)), (Mode::Client, 4, 8));
    let beta = place.load(DPDK, Some(VMS), "beta").unwrap();
    let port = beta.own_node().unwrap().links[0].dpdk.as_ref().unwrap();
    assert_eq!(port.port.argument("iface"), Some("eth1"));
    assert_eq!(port.port.to_string(), "net_af_packet,iface=eth1");
    let route = Route { to: "10.0.0.0/8".parse().unwrap(), via: ip("192.0.2.253") };
    assert_eq!(port.routes, [route]);
    let neighbor =
        StaticNeighbor { address: ip("192.0.2.9"), mac: "02:00:00:00:00:09".parse().unwrap() };
    assert_eq!(port.neighbors, [neighbor]);
}

#[test]
fn defaults_and_every_key_of_a_port() {
    let expected = testing::port("net_null");
    let port = Port::Virtual { name: "net_null".into(), arguments: String::new() };
    assert_eq!(expected.port, port);
    assert_eq!(port_of(&with("")), expected);
    let changed = port_of(&with(
        "vlan = 4094, mac = '02:00:00:00:00:01', mtu = 1280, exception_tap = 'except0', \
        udp_checksum = false",
    ));
    let mac = Some("02:00:00:00:00:01".parse().unwrap());
    let (vlan, exception_tap) = (Some(4094), Some("except0".to_owned()));
    assert_eq!(
        changed,
        DpdkPort { vlan, mac, mtu: 1280, exception_tap, udp_checksum: false, ..expected }
    );
    let v6 = port_of(&at(
        "2001:db8::1",
        "port = '0000:AF:00.1,dv_flow_en=0', prefix = 64, gateway = '2001:db8::ff', \
        routes = [{ to = 'fd00::/8', via = '2001:db8::fe' }]",
    ));
    assert_eq!(v6.port.to_string(), "0000:af:00.1,dv_flow_en=0");
    assert_eq!(v6.prefix, 64);
}

#[test]
fn ports_are_pci_addresses_or_virtual_devices() {
    let port = |text: &str| at("192.0.2.1", &format!("prefix = 24, port = '{text}'"));
    for good in
        ["0000:3b:00.0", "net_tap0", "net_af_xdp,iface=eth1,start_queue=2", "net_null0,copy=1"]
    {
        assert_eq!(port_of(&port(good)).port.to_string(), good);
    }
    let neither = "is neither a PCI address such as \"0000:3b:00.0\" nor a virtual device";
    for bad in
        ["", "eth1", "3b:00.0", "0000:3b:00.8", "0000:3g:00.0", "net_", "net_a-b", "crypto_null"]
    {
        one_fault(&port(bad), neither);
    }
    for bad in ["net_null,", "net_null,,", "net_null,copy", "net_null,=1", "net_null,a=b c"] {
        one_fault(&port(bad), "has something else than key=value behind a comma");
    }
}

#[test]
fn ports_have_single_faults() {
    one_fault(&at("192.0.2.1", "prefix = 24"), "cluster.toml:5: dpdk of a link has no port; write");
    one_fault(&at("192.0.2.1", "port = 'net_null'"), "dpdk of a link has no prefix; write");
    one_fault(
        &at("192.0.2.1", "port = 'net_null', prefix = 33, gateway = '192.0.2.9'"),
        "prefix = 33 is too long for 192.0.2.1; choose 0 to 32",
    );
    one_fault(&at("2001:db8::1", "port = 'net_null', prefix = 129"), "choose 0 to 128");
    one_fault(&with("vlan = 0"), "choose 1 to 4094");
    one_fault(&with("vlan = 4095"), "choose 1 to 4094");
    one_fault(&with("mtu = 1279"), "choose 1280 to 9000");
    one_fault(&with("mtu = 9001"), "choose 1280 to 9000");
    one_fault(&with("mac = '03:00:00:00:00:01'"), "mac 03:00:00:00:00:01 is not a station's");
    one_fault(&with("mac = '02'"), "\"02\" is not a MAC address");
    one_fault(&with("exception_tap = 'a/b'"), "cannot be a tap's name");
    one_fault(&with("gatway = '192.0.2.2'"), "did you mean \"gateway\"?");
    one_fault(&with("memory_mb = 512"), "it belongs into [dpdk]");
    one_fault(
        &at("2001:db8::1", "port = 'net_null', prefix = 64, udp_checksum = false"),
        "udp_checksum = false is for IPv4 only",
    );
    let link = |rest: &str| {
        format!(
            "[cluster]\nkey_file = 'cluster.key'\n[[nodes]]\nid = 1\nlinks = [{{ name = 'lan', \
            {rest} }}]\n"
        )
    };
    one_fault(
        &link("address = 'dynamic', dpdk = { port = 'net_null', prefix = 24 }"),
        "a DPDK port has no DHCP and so no dynamic address",
    );
    one_fault(&link("address = '192.0.2.1', dpdk = 'net_null'"), "dpdk must be a table such as {");
}

#[test]
fn who_is_reached_directly_is_in_the_subnet() {
    one_fault(&with("gateway = '192.0.3.1'"), "gateway 192.0.3.1 is not in 192.0.2.0/24");
    one_fault(&with("gateway = '192.0.2.1'"), "gateway 192.0.2.1 is the link's own address");
    one_fault(&with("gateway = 'fe80::1'"), "is of another family than 192.0.2.1");
    one_fault(&with("gateway = '255.255.255.255'"), "is nobody's own address");
    one_fault(&with("gateway = 'router'"), "\"router\" is not an IP address such as");
    let route = |keys: &str| with(&format!("routes = [{{ {keys} }}]"));
    one_fault(&route("to = '10.0.0.0/8'"), "a route has no via");
    one_fault(&route("via = '192.0.2.2'"), "a route has no to");
    one_fault(&route("to = '10.0.0.0/8', via = '192.0.3.2'"), "route via 192.0.3.2 is not in");
    one_fault(&route("to = '10.0.0.0/8', via = '192.0.2.1'"), "is the link's own address");
    one_fault(&route("to = '10.0.0.1/8', via = '192.0.2.2'"), "write 10.0.0.0/8");
    one_fault(&route("to = 'fd00::/8', via = '192.0.2.2'"), "route to fd00::/8 is of another");
    one_fault(&route("to = 'home', via = '192.0.2.2'"), "\"home\" is not a subnet such as");
    let route = "{ to = '10.0.0.0/8', via = '192.0.2.2' }";
    one_fault(&with(&format!("routes = [{route}, {route}]")), "route to 10.0.0.0/8 is taken");
    one_fault(&with("routes = ['10.0.0.0/8']"), "one of routes is a string; write a list");
    let default = "routes = [{ to = '0.0.0.0/0', via = '192.0.2.2' }]";
    assert_eq!(port_of(&with(default)).routes.len(), 1);
    one_fault(
        &with(&format!("gateway = '192.0.2.3', {default}")),
        "route to 0.0.0.0/0 is what gateway says; keep one of the two",
    );
    let neighbor = |address: &str, mac: &str| {
        with(&format!("neighbors = [{{ address = '{address}', mac = '{mac}' }}]"))
    };
    one_fault(&neighbor("192.0.3.2", "02:00:00:00:00:01"), "neighbor 192.0.3.2 is not in");
    one_fault(&neighbor("192.0.2.2", "ff:ff:ff:ff:ff:ff"), "is not a station's address");
    one_fault(&with("neighbors = [{ address = '192.0.2.2' }]"), "a neighbor has no mac");
    let neighbor = "{ address = '192.0.2.2', mac = '02:00:00:00:00:01' }";
    one_fault(&with(&format!("neighbors = [{neighbor}, {neighbor}]")), "neighbor 192.0.2.2 is");
}

#[test]
fn a_port_and_a_tap_are_one_links_only() {
    let two = |one: &str, other: &str| {
        format!(
            "[cluster]\nkey_file = 'cluster.key'\n[[nodes]]\nid = 1\nlinks = [\n\
            {{ name = 'a', address = '192.0.2.1', dpdk = {{ prefix = 24, {one} }} }},\n\
            {{ name = 'b', address = '192.0.3.1', dpdk = {{ prefix = 24, {other} }} }},\n]\n"
        )
    };
    one_fault(
        &two("port = '0000:3b:00.0'", "port = '0000:3B:00.0,x=1'"),
        "cluster.toml:7: port 0000:3b:00.0 is taken already in line 6",
    );
    let null =
        |tap: &str, number: u8| format!("port = 'net_null{number}', exception_tap = '{tap}'");
    one_fault(&two(&null("x0", 0), &null("x0", 1)), "exception_tap x0 is taken already");
    let apart = two(&null("x0", 0), &null("x1", 1));
    assert!(Place::new().load(&apart, None, "1").is_ok());
    one_fault(
        &format!("{apart}[[networks]]\nvni = 1\ntap = 'x1'\n"),
        "tap x1 is the exception_tap of a port of node 1 (line 3)",
    );
    // Another node may have the same card and the same tap.
    let nodes = with("exception_tap = 'x0'")
        + "[[nodes]]\nid = 2\nlinks = [{ name = 'lan', address = '192.0.2.2', \
        dpdk = { port = 'net_null', prefix = 24, exception_tap = 'x0' } }]\n";
    assert!(Place::new().load(&nodes, None, "2").is_ok());
}

#[test]
fn how_dpdk_runs() {
    let dpdk = |keys: &str| format!("{}[dpdk]\n{keys}\n", cluster(""));
    let load = |keys: &str| Place::new().load(&dpdk(keys), None, "1").unwrap();
    let config = load("");
    assert!(!config.needs_dpdk());
    let defaults = DpdkConfig {
        memory_mb: 256,
        hugepages: Hugepages::Auto,
        eal: Vec::new(),
        shim: None,
        max_sleep: Duration::from_micros(100),
        interrupts: true,
    };
    assert_eq!(config.dpdk, defaults);
    let all = "memory_mb = 64\nhugepages = true\neal = ['--log-level=8']\nshim = '/opt/s.so'\n\
        max_sleep_us = 0\ninterrupts = false";
    let changed = DpdkConfig {
        memory_mb: 64,
        hugepages: Hugepages::Always,
        eal: vec!["--log-level=8".to_owned()],
        shim: Some("/opt/s.so".into()),
        max_sleep: Duration::ZERO,
        interrupts: false,
    };
    assert_eq!(load(all).dpdk, changed);
    assert_eq!(load("hugepages = false").dpdk.hugepages, Hugepages::Never);
    one_fault(&dpdk("hugepages = 'yes'"), "hugepages must be \"auto\", or true or false");
    one_fault(&dpdk("memory_mb = 63"), "choose 64 to 65536");
    one_fault(&dpdk("max_sleep_us = 10001"), "choose 0 to 10000");
    one_fault(&dpdk("shim = 's.so'"), "shim = \"s.so\" must be an absolute path, such as");
    one_fault(&dpdk("eal = ['']"), "an EAL argument is empty");
    one_fault(&dpdk("eal = '--no-pci'"), "eal must be a list such as");
    one_fault(&dpdk("memory = 1"), "unknown key \"memory\" in [dpdk]");
}

#[test]
fn vm_ports_are_checked() {
    let network = |keys: &str| example_and(&format!("[[networks]]\nvni = 7\n{keys}"));
    let ports = |list: &str| network(&format!("vhost_user = [{list}]"));
    one_fault(&ports("'vm.sock'"), "vhost_user socket \"vm.sock\" must be an absolute path");
    let long = format!("'/{}'", "x".repeat(107));
    one_fault(&ports(&long), "is 108 bytes long; the kernel takes at most 107");
    assert!(Place::new().load(&ports(&long.replacen('x', "", 1)), None, "1").is_ok());
    one_fault(&ports("'/a', { socket = '/a' }"), "vhost_user socket /a is taken already");
    one_fault(&ports("'/run/tapd.sock'"), "is the control socket; choose another path");
    one_fault(&ports("{ mode = 'client' }"), "a vhost_user port has no socket");
    one_fault(&ports("{ socket = '/a', mode = 'both' }"), "mode = \"both\" is neither \"server\"");
    one_fault(&ports("{ socket = '/a', queues = 0 }"), "choose 1 to 8");
    one_fault(&ports("{ socket = '/a', queues = 9 }"), "choose 1 to 8");
    one_fault(&ports("{ socket = '/a', sockets = 9 }"), "did you mean \"socket\"?");
    one_fault(&ports("7"), "one of vhost_user is a number; write a list such as");
    one_fault(&network("vhost_user = '/a'"), "vhost_user must be a list such as");
    let many = |count: usize| {
        let list: Vec<_> = (0..count).map(|number| format!("'/vm{number}'")).collect();
        ports(&list.join(", "))
    };
    let config = Place::new().load(&many(MAX_VM_PORTS), None, "1").unwrap();
    assert_eq!(config.networks[0].vhost_user.len(), MAX_VM_PORTS);
    one_fault(&many(MAX_VM_PORTS + 1), "64 ports of vhost_user are more than a network has");
    let other = "[[networks]]\nvni = 8\nvhost_user = ['/a']";
    one_fault(&format!("{}\n{other}", ports("'/a'")), "vhost_user socket /a is taken already in");
}

#[test]
fn a_network_of_this_node_has_a_port() {
    let text = example_and("[[networks]]\nvni = 7\ntap = 'none'\nmembers = [1]\n");
    one_fault(&text, "cluster.toml:31: network 7 has neither a tap nor a VM port on this node");
    let place = Place::new();
    assert_eq!(place.load(&text, None, "2").unwrap().networks[0].tap, None);
    let local = "[[networks]]\nvni = 7\nvhost_user = ['/run/vm']";
    let config = place.load(&text, Some(local), "1").unwrap();
    assert_eq!(config.networks[0].vhost_user.len(), 1);
    // Whose local file is not here is not judged.
    let path = place.write("cluster.toml", &text);
    assert!(Config::check(&path, None, &NodeSelector::ByAddress).is_ok());
    let own = Config::check(&path, None, &NodeSelector::Named("1".into())).unwrap_err();
    assert!(own.to_string().contains("neither a tap nor a VM port"), "{own}");
}

#[test]
fn an_own_node_on_dpdk_ports_alone_has_to_be_named() {
    let place = Place::new();
    let path = place.write("cluster.toml", &with(""));
    let fault = Config::load(&path, None, &NodeSelector::ByAddress).unwrap_err().to_string();
    assert!(fault.contains("the kernel knows nothing of addresses on DPDK ports"), "{fault}");
    assert!(fault.contains("--node ID|NAME or TAPD_NODE"), "{fault}");
    let path = place.write("cluster.toml", &cluster(""));
    let fault = Config::load(&path, None, &NodeSelector::ByAddress).unwrap_err().to_string();
    assert!(!fault.contains("DPDK"), "{fault}");
}
