//! Links on DPDK ports, and ports of virtual machines: with other such nodes, with the kernel's, and
//! with whoever else is on the wire.
//!
//! The ports are `net_af_packet` over cables of the kernel, once each of the other drivers that do
//! without a card, and `net_virtio_user` in the place of virtual machines: no hugepages are needed.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use etherparse::PacketBuilder;
use integration::cluster::{Duo, overlay_v4, overlay_v6};
use integration::command::{Running, built_binary, output_of};
use integration::config::{ClusterConfig, ClusterDir, NetworkEntry};
use integration::dpdk::{self, End, counter, port};
use integration::flow::FlowOptions;
use integration::frames::{Probe, ethernet, test_frame};
use integration::lanes::{Cut, Lanes};
use integration::links::LaneDuo;
use integration::netns::Netns;
use integration::node::Node;
use integration::skip::case;
use integration::topology::{Family, Offloads, Pair, Star, UNDERLAY, make_bridge};
use integration::traffic::{IperfRun, IperfServer, SteadyPing, iperf, ping_all};
use integration::wait;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);
/// Bit 12, as /proc/PID/status prints it.
const CAP_NET_ADMIN_ONLY: &str = "0000000000001000";

/// What a node's link is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Dpdk,
    Kernel,
}

/// The usual two, each on what is said.
fn config(family: Family, on: [On; 2]) -> ClusterConfig {
    let mut config = ClusterConfig::new(family, 2);
    config.sections = dpdk::SMALL.to_owned();
    for ((host, node), on) in (1..).zip(&mut config.nodes).zip(on) {
        if on == On::Dpdk {
            dpdk::set_links(node, &[End::dpdk("0", family.address(host), UNDERLAY)]);
        } else {
            dpdk::set_links(node, &[End::kernel("0", family.address(host))]);
        }
    }
    config
}

fn pair(family: Family, on: [On; 2]) -> Result<Pair> {
    dpdk::require()?;
    let pair = Pair::new(family, 1500)?;
    // Frames as they are on a wire, of the cable's MTU; their checksums are left to whoever gets
    // them, as the kernel does where it takes a cable for its own memory.
    pair.set_offloads(Offloads::Wire)?;
    for (netns, on) in [&pair.alpha, &pair.beta].into_iter().zip(on) {
        if on == On::Dpdk {
            dpdk::take_over(netns, UNDERLAY)?;
        }
    }
    Ok(pair)
}

fn duo(family: Family, on: [On; 2]) -> Result<Duo> {
    Duo::with(pair(family, on)?, &config(family, on))
}

fn uplink(family: Family, host: u8) -> String {
    match family.address(host) {
        IpAddr::V4(address) => format!("uplink 0 {address}:26026"),
        IpAddr::V6(address) => format!("uplink 0 [{address}]:26026"),
    }
}

/// All that programs do, both ways.
fn exercise(duo: &Duo) -> Result<()> {
    for (node, peer) in [(&duo.alpha, 2), (&duo.beta, 1)] {
        ping_all(node.netns(), overlay_v4(100, peer))?;
        ping_all(node.netns(), overlay_v6(100, peer))?;
    }
    let _server = IperfServer::start(&duo.pair.beta)?;
    for reverse in [false, true] {
        let run = IperfRun { seconds: 1, streams: 1, reverse, udp: None };
        let report = iperf(&duo.pair.alpha, overlay_v4(100, 2), run)?;
        ensure!(report.bits_per_second > 10e6, "reverse {reverse}: {report:?}");
    }
    Ok(())
}

#[test]
fn flow_dpdk_nodes_reach_each_other() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let mut duo = duo(family, [On::Dpdk; 2])?;
            exercise(&duo)?;
            let shown = port(&duo.alpha, &uplink(family, 1))?;
            ensure!(shown["kind"] == "dpdk" && shown["driver"] == "net_af_packet", "{shown}");
            ensure!(shown["up"] == true && shown["rx_packets"].as_u64() > Some(0), "{shown}");
            let neighbors = duo.alpha.show("neighbors")?;
            let far = duo.pair.beta.interface_attribute(UNDERLAY, "address")?;
            let of_beta = |n: &Value| n["address"] == family.address(2).to_string();
            let list = neighbors.as_array().context("no list")?;
            let found = list.iter().find(|neighbor| of_beta(neighbor)).context("no beta")?;
            ensure!(found["mac"] == far && found["state"] != "failed", "{neighbors}");
            duo.alpha.stop(&["tap100"])?;
            duo.beta.stop(&["tap100"])?;
        }
        Ok(())
    });
}

/// The usual two on ports of any driver.
fn config_of(ports: [&str; 2]) -> ClusterConfig {
    let mut config = config(Family::V4, [On::Dpdk; 2]);
    for ((host, node), port) in (1..).zip(&mut config.nodes).zip(ports) {
        dpdk::set_links(node, &[End::port("0", Family::V4.address(host), port)]);
    }
    config
}

#[test]
fn flow_dpdk_af_xdp_carries_a_stream() {
    case(|| {
        let pair = pair(Family::V4, [On::Dpdk; 2])?;
        let config = config_of(["net_af_xdp,iface=under0"; 2]);
        let duo = Duo::with(pair, &config)?;
        exercise(&duo)?;
        // A port that ran out of buffers under the load stays silent from then on.
        ping_all(&duo.pair.alpha, overlay_v4(100, 2))
    });
}

#[test]
fn flow_dpdk_memif_joins_two_nodes() {
    case(|| {
        let pair = pair(Family::V4, [On::Dpdk; 2])?;
        let place = tempfile::tempdir()?;
        let socket = place.path().join("wire.sock");
        let end =
            |role| format!("net_memif,role={role},socket={},socket-abstract=no", socket.display());
        let sides = [end("server"), end("client")];
        let config = config_of([&sides[0], &sides[1]]);
        exercise(&Duo::with(pair, &config)?)
    });
}

/// The kernel's end of the tap lies at a switch; it has to have another address than the port,
/// or the switch takes what is for the port.
#[test]
fn flow_dpdk_net_tap_reaches_the_wire_by_a_bridge() {
    case(|| {
        let pair = pair(Family::V4, [On::Dpdk; 2])?;
        let dir = ClusterDir::new(&config_of(["net_tap0,iface=port0"; 2]))?;
        let start = |netns: &Arc<Netns>, name: &str| -> Result<Node> {
            let node = Node::start(&dir, netns, name)?;
            make_bridge(netns, "br0")?;
            netns.ip(&["link", "set", "port0", "address", "02:00:00:00:00:77"])?;
            for interface in ["port0", UNDERLAY] {
                netns.ip(&["link", "set", interface, "master", "br0"])?;
            }
            netns.ip(&["link", "set", "br0", "up"])?;
            Ok(node)
        };
        let (alpha, beta) = (start(&pair.alpha, "alpha")?, start(&pair.beta, "beta")?);
        alpha.wait_peer_up(2)?;
        beta.wait_peer_up(1)?;
        exercise(&Duo { alpha, beta, dir, pair })
    });
}

/// Frames of every size cross byte for byte, both ways.
fn cross_whole(duo: &Duo) -> Result<()> {
    let probes = [&duo.pair.alpha, &duo.pair.beta].map(|netns| Probe::attach(netns, "tap100"));
    let [alpha, beta] = probes;
    let (alpha, beta) = (alpha?, beta?);
    let (one, two) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]);
    let largest: usize = duo.pair.alpha.interface_attribute("tap100", "mtu")?.parse()?;
    let largest = largest + 14;
    for (from, to, source, destination) in
        [(&alpha, &beta, one, two), (&beta, &alpha, two, one), (&alpha, &beta, one, two)]
    {
        for (seed, length) in (0..).zip([60, 61, 64, 511, 1024, 1301, largest - 1, largest]) {
            let frame = test_frame(destination, source, &[], length, seed);
            from.send(&frame)?;
            // The nodes' loop probes are of the same type.
            let ours = |seen: &[u8]| seen[6..14] == frame[6..14];
            let seen = to.receive_where(PATIENCE, ours)?;
            ensure!(seen.as_ref() == Some(&frame), "{length} bytes: {seen:02x?}");
        }
    }
    Ok(())
}

#[test]
fn flow_dpdk_and_kernel_nodes_interoperate() {
    case(|| {
        for (family, on) in
            [(Family::V4, [On::Dpdk, On::Kernel]), (Family::V6, [On::Kernel, On::Dpdk])]
        {
            exercise(&duo(family, on)?)?;
            let pair = pair(family, on)?;
            cross_whole(&Duo::with(pair, &config(family, on).without_addresses())?)?;
        }
        Ok(())
    });
}

#[test]
fn flow_dpdk_port_answers_for_its_address() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let duo = duo(family, [On::Dpdk, On::Kernel])?;
            ping_all(&duo.pair.beta, family.address(1))?;
            let echoes = counter(&duo.alpha, &uplink(family, 1), "rx_echoes")?;
            ensure!(echoes > 0, "somebody else answered");
        }
        Ok(())
    });
}

#[test]
fn flow_dpdk_fails_over_to_the_kernel_and_back() {
    case(|| {
        dpdk::require()?;
        let lanes = Lanes::plain(Family::V4, 2)?;
        let mut config = lanes.config();
        let ends: Vec<_> = lanes.lanes.iter().map(|lane| [lane.alpha, lane.beta]).collect();
        for (side, node) in config.nodes.iter_mut().enumerate() {
            let fast = End::dpdk("0", ends[0][side], "under0");
            dpdk::set_links(node, &[fast, End::kernel("1", ends[1][side])]);
        }
        config.sections = format!(
            "{}\n[[links]]\nname = \"0\"\npriority = 10\n\n[detector]\nhold_s = 1\nmax_hold_s = 2\n",
            dpdk::SMALL
        );
        for netns in [&lanes.alpha, &lanes.beta] {
            dpdk::take_over(netns, "under0")?;
        }
        let duo = LaneDuo::with(lanes, &config)?;
        for how in [Cut::Carrier, Cut::CarrierFar] {
            duo.wait_sending(0)?;
            let flow = duo.flow(FlowOptions::at(500.0))?;
            let cut = duo.lanes.cut(0, how)?;
            duo.wait_sending(1)?;
            let window = Duration::from_millis(500);
            wait::until("the window to be over", PATIENCE, || cut.before.elapsed() > window)?;
            flow.wait_received(100, PATIENCE)?;
            let outcome = flow.outcome(cut.before, cut.before + window);
            ensure!(outcome.gap_ms < 400.0 && outcome.damaged == 0, "{how:?}: {outcome:?}");
            let healed = Instant::now();
            duo.lanes.heal(0, how)?;
            duo.wait_all_up()?;
            duo.wait_sending(0)?;
            let back = flow.outcome(healed, Instant::now() - Duration::from_millis(50));
            ensure!(back.damaged + back.duplicated == 0, "{how:?}: the way back: {back:?}");
            flow.finish()?;
        }
        // Frames that come back to the port are announced there, though its link was never down.
        let neighbors = format!("uplink 0 {}:26026 neighbors", ends[0][0]);
        let announced = || counter(&duo.alpha, &neighbors, "tx_announcements");
        duo.alpha.tapd(&["link", "drain", "beta", "0"])?;
        duo.wait_sending(1)?;
        let mut last = (announced()?, Instant::now());
        wait::until("the last announcements to be over", PATIENCE, || {
            let now = announced().unwrap_or(last.0);
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > Duration::from_millis(1500)
        })?;
        let before = announced()?;
        duo.alpha.tapd(&["link", "undrain", "beta", "0"])?;
        duo.wait_sending(0)?;
        let told = || announced().is_ok_and(|now| now > before);
        wait::until("the port to be announced", PATIENCE, told)?;
        Ok(())
    });
}

/// Frames that nobody should believe, and the counter of each. Of what the kernel takes before a
/// packet socket sees it (fragments), and bridges (source addresses of groups), there is none.
fn hostile(us: [u8; 6], them: [u8; 6]) -> Vec<(&'static str, Vec<u8>)> {
    let (alpha, beta, other) = ([192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 77]);
    let udp = |to: [u8; 4]| {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(them, us).ipv4(beta, to, 64).udp(26026, 26026);
        builder.write(&mut frame, &[7; 60]).map(|()| frame)
    };
    let sound = udp(alpha).unwrap_or_default();
    let change = |act: fn(&mut Vec<u8>)| {
        let mut frame = sound.clone();
        act(&mut frame);
        frame
    };
    vec![
        ("rx_dropped_bad_ip_checksum", change(|frame| frame[24] ^= 0x55)),
        ("rx_dropped_bad_ip_header", change(|frame| frame[14] = 0x44)),
        ("rx_dropped_truncated", change(|frame| frame.truncate(30))),
        ("rx_dropped_bad_udp_checksum", change(|frame| frame[50] ^= 0x55)),
        ("rx_dropped_wrong_destination", udp(other).unwrap_or_default()),
        ("rx_dropped_foreign", test_frame(us, them, &[], 100, 3)),
    ]
}

/// An ARP answer that nobody asked for: `ip` is at `mac`.
fn arp_claim(us: [u8; 6], mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
    let head = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2];
    let rest = [&head[..], &mac, &ip, &us, &[192, 0, 2, 1]].concat();
    let mut frame = ethernet(us, mac, &rest);
    frame.resize(60, 0);
    frame
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes?.try_into().map_err(|_| anyhow::anyhow!("{text} is no MAC address"))
}

#[test]
fn sec_dpdk_hostile_frames_are_counted_and_service_goes_on() {
    case(|| {
        dpdk::require()?;
        let star = Star::new(Family::V4, 3)?;
        dpdk::take_over(&star.hosts[0], UNDERLAY)?;
        star.hosts[2].silence_ipv6()?;
        let dir = ClusterDir::new(&config(Family::V4, [On::Dpdk, On::Kernel]))?;
        let alpha = Node::start(&dir, &star.hosts[0], "alpha")?;
        let _beta = Node::start(&dir, &star.hosts[1], "beta")?;
        alpha.wait_peer_up(2)?;
        let attacker = Probe::attach(&star.hosts[2], UNDERLAY)?;
        let name = uplink(Family::V4, 1);
        let us = mac(port(&alpha, &name)?["mac"].as_str().unwrap_or_default())?;
        let them = [2, 0, 0, 0, 0x66, 0x66];
        let steady = SteadyPing::start(&star.hosts[0], overlay_v4(100, 2), 20)?;
        for (reason, frame) in hostile(us, them) {
            let before = counter(&alpha, &name, reason)?;
            for _ in 0..50 {
                attacker.send(&frame)?;
            }
            let what = format!("{reason} to be counted");
            // The switch and beta's kernel speak too (multicast reports, solicitations): of what is
            // foreign there can be more than ours.
            let more = reason == "rx_dropped_foreign";
            let enough = |counted: u64| counted == 50 || (more && counted > 50);
            let all = || counter(&alpha, &name, reason).is_ok_and(|now| enough(now - before));
            wait::until(&what, PATIENCE, all).with_context(|| {
                format!("{:#?}", alpha.show("counters").map(|all| all["ports"].clone()))
            })?;
        }
        // Lies about who has an address.
        let neighbors = format!("{name} neighbors");
        for _ in 0..20 {
            attacker.send(&arp_claim(us, them, [192, 0, 2, 1]))?;
            attacker.send(&arp_claim(us, them, [192, 0, 2, 2]))?;
        }
        for reason in ["address_conflicts", "spoof_suspected"] {
            let seen = || counter(&alpha, &neighbors, reason).is_ok_and(|count| count > 0);
            wait::until(&format!("{reason} to be counted"), PATIENCE, seen)?;
        }
        alpha.wait_log("uses our address 192.0.2.1 too")?;
        ping_all(&star.hosts[0], overlay_v4(100, 2))?;
        let lost = steady.lost()?;
        ensure!(lost <= 1, "{lost} pings were lost");
        Ok(())
    });
}

/// Starts alpha, which must not start; gives its exit code and log.
fn failing_start(config: &ClusterConfig) -> Result<(i32, String)> {
    let pair = pair(Family::V4, [On::Dpdk; 2])?;
    let dir = ClusterDir::new(config)?;
    let mut node = Node::spawn(&dir, &pair.alpha, "alpha", &[])?;
    let status = node.wait_end()?;
    let left = pair.alpha.interfaces()?;
    ensure!(!left.iter().any(|name| name == "tap100"), "it left {left:?} behind");
    Ok((status.code().unwrap_or(-1), node.log()))
}

#[test]
fn api_dpdk_start_errors_say_what_to_do() {
    case(|| {
        let base = config(Family::V4, [On::Dpdk; 2]);
        let no_shim = ClusterConfig {
            sections: "[dpdk]\nshim = \"/nonexistent/shim.so\"\n".to_owned(),
            ..base.clone()
        };
        let two_workers = ClusterConfig { workers: 2, ..base.clone() };
        let mut no_interface = base.clone();
        let end = End::dpdk("0", Family::V4.address(1), "nowhere0");
        dpdk::set_links(&mut no_interface.nodes[0], &[end]);
        // Where there is a tap, tapd starts without the machine's port.
        let mut no_directory = base.clone();
        no_directory.networks[0].tap = "none".to_owned();
        no_directory.networks[0].subnets.clear();
        no_directory.networks[0].extra =
            "vhost_user = [\"/nonexistent/directory/vm.sock\"]\n".to_owned();
        let mut no_driver = base.clone();
        let end = End::port("0", Family::V4.address(1), "net_nonsense");
        dpdk::set_links(&mut no_driver.nodes[0], &[end]);
        let mut nobody = base.clone();
        let end = End::port("0", Family::V4.address(1), "net_memif,role=client");
        dpdk::set_links(&mut nobody.nodes[0], &[end]);
        let mut too_large = base;
        let end = End::dpdk("0", Family::V4.address(1), UNDERLAY);
        let end = End { extra: ", mtu = 9000".to_owned(), ..end };
        dpdk::set_links(&mut too_large.nodes[0], &[end]);
        for (config, parts) in [
            (no_shim, ["/nonexistent/shim.so", "libdpdk-dev"]),
            (two_workers, ["has 1 queues", "workers = 1"]),
            (no_interface, ["iface=nowhere0", "no interface nowhere0"]),
            (no_driver, ["net_nonsense", "librte-net-"]),
            (no_directory, ["/nonexistent/directory", "mkdir -p"]),
            (too_large, ["9000", "set mtu"]),
            (nobody, ["nobody listens", "role=server"]),
        ] {
            let (code, log) = failing_start(&config)?;
            ensure!(code == 4, "exit code {code}: {log}");
            let said = log.lines().last().unwrap_or_default();
            ensure!(parts.iter().all(|part| said.contains(part)), "{parts:?} not in: {said}");
        }
        Ok(())
    });
}

#[test]
fn api_dpdk_doctor_names_what_is_missing() {
    case(|| {
        let pair = pair(Family::V4, [On::Dpdk; 2])?;
        let mut config = config(Family::V4, [On::Dpdk; 2]);
        let dir = ClusterDir::new(&config)?;
        let socket = dir.path("vm.sock");
        config.networks[0].extra = format!("vhost_user = [{socket:?}]\n");
        let examine = |config: &ClusterConfig| -> Result<Vec<Value>> {
            dir.write(config)?;
            let mut command = pair.alpha.command(built_binary("tapd")?);
            command.args(["doctor", "--json", "--node", "alpha", "--config"]);
            command.arg(dir.config_file()).arg("--control-socket").arg(dir.path("none.sock"));
            Ok(serde_json::from_slice(&output_of(&mut command)?.stdout)?)
        };
        let expect = |findings: &[Value], check: &str, status: &str, part: &str| -> Result<()> {
            let found = findings.iter().find(|finding| finding["check"] == check);
            let found = found.with_context(|| format!("no {check} in {findings:#?}"))?;
            let text = format!("{} {}", found["found"], found["advice"]);
            ensure!(found["status"] == status && text.contains(part), "{found:#}");
            Ok(())
        };
        let vm_port = format!("VM port {}", socket.display());
        let good = examine(&config)?;
        for check in ["dpdk", "hugepages", "port 0", "frame size 0", "queues 0", "rights 0"] {
            expect(&good, check, "ok", "")?;
        }
        expect(&good, &vm_port, "ok", "")?;
        expect(&good, "MTU of tap100", "ok", "1432 fit a datagram")?;
        config.workers = 2;
        config.networks[0].extra = "vhost_user = [\"/nonexistent/vm.sock\"]\n".to_owned();
        pair.alpha.ip(&["link", "set", UNDERLAY, "mtu", "1400"])?;
        let bad = examine(&config)?;
        expect(&bad, "queues 0", "fail", "qpairs=2")?;
        expect(&bad, "VM port /nonexistent/vm.sock", "fail", "mkdir -p /nonexistent")?;
        expect(&bad, "port 0", "fail", "mtu 1500")?;
        pair.alpha.ip(&["link", "set", UNDERLAY, "mtu", "1500"])?;
        pair.alpha.ip(&["addr", "add", "192.0.2.1/24", "dev", UNDERLAY])?;
        expect(&examine(&config)?, "port 0", "warn", "ip addr del 192.0.2.1/24")?;
        Ok(())
    });
}

/// A virtual machine that sends, or counts.
fn guest(role: &str, socket: &Path, arguments: &[&str]) -> Result<Running> {
    let device = format!("net_virtio_user,path={},queues=1", socket.display());
    let mut command = Command::new(built_binary("dpdk-traffic")?);
    command.args([role, "--port", &device]).args(arguments);
    Running::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// The last line that a guest wrote.
fn last_line(guest: Running) -> Result<Value> {
    let output = guest.finish(Duration::from_secs(30))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().last().with_context(|| format!("it said nothing: {errors}"))?;
    serde_json::from_str(line).with_context(|| line.to_owned())
}

/// A machine at `from` sends frames to one at `to`, a port of `node`; none between
/// two others is lost, and none is overtaken.
fn machines_talk(from: &Path, node: &Node, to: &Path) -> Result<()> {
    let mut sink = guest("sink", to, &["--seconds", "30"])?;
    let name = format!("vm {}", to.display());
    let is_there = || port(node, &name).is_ok_and(|row| row["up"] == true);
    wait::until(&format!("a guest at {name}"), PATIENCE, is_there)?;
    // It stays for a while, as the node may have to wait for a core that long.
    let pace = ["--seconds", "2", "--rate", "500", "--frame-len", "300", "--linger", "500"];
    let source = guest("source", from, &pace)?;
    let sent = last_line(source)?;
    sink.signal(libc::SIGTERM)?;
    let seen = last_line(sink)?;
    let count = sent["sent"].as_u64().unwrap_or(0);
    // What the node has not taken when a machine is switched off goes with it.
    let received = seen["received"].as_u64().unwrap_or(0);
    ensure!(count > 500 && (count - 5..=count).contains(&received), "{sent}\n{seen}");
    for trouble in ["lost", "reordered", "duplicated"] {
        ensure!(seen[trouble] == 0, "{trouble}: {seen}");
    }
    Ok(())
}

#[test]
fn flow_machines_talk_across_nodes_and_on_one() {
    case(|| {
        let pair = pair(Family::V4, [On::Dpdk, On::Kernel])?;
        let mut config = config(Family::V4, [On::Dpdk, On::Kernel]);
        let dir = ClusterDir::new(&config)?;
        let sockets = ["one", "two"].map(|name| dir.path(&format!("{name}.sock")));
        // Both nodes read the same file and have machines of their own.
        let local = |name: &str| -> Result<String> {
            let own = sockets.each_ref().map(|socket| socket.with_extension(name));
            let file = dir.path(&format!("{name}.toml"));
            fs::write(&file, format!("[[networks]]\nvni = 100\nvhost_user = {own:?}\n"))?;
            Ok(file.to_string_lossy().into_owned())
        };
        config.log = "debug".to_owned();
        dir.write(&config)?;
        let alpha = Node::start_with(&dir, &pair.alpha, "alpha", &["--local", &local("a")?])?;
        let mut beta = Node::start_with(&dir, &pair.beta, "beta", &["--local", &local("b")?])?;
        alpha.wait_peer_up(2)?;
        beta.wait_peer_up(1)?;
        let [one, two] = sockets;
        machines_talk(&one.with_extension("a"), &beta, &one.with_extension("b"))?;
        machines_talk(&one.with_extension("a"), &alpha, &two.with_extension("a"))?;
        machines_talk(&two.with_extension("b"), &alpha, &one.with_extension("a"))?;
        let row = port(&alpha, &format!("vm {}", one.with_extension("a").display()))?;
        ensure!(row["kind"] == "vhost-user" && row["rx_packets"].as_u64() > Some(1000), "{row}");
        alpha.wait_log("a guest is there")?;
        alpha.wait_log("the guest is gone")?;
        // No thread has more rights than it needs, not even one of DPDK's.
        for task in fs::read_dir(format!("/proc/{}/task", beta.pid()))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
            let held = line.map(str::trim).unwrap_or_default();
            ensure!(held == CAP_NET_ADMIN_ONLY, "a thread has capabilities {held}: {status}");
        }
        beta.stop(&["tap100"])?;
        ensure!(!one.with_extension("b").exists(), "it left a machine's socket behind");
        Ok(())
    });
}

#[test]
fn api_vm_ports_come_and_go_with_a_reload() {
    case(|| {
        dpdk::require()?;
        let mut config = ClusterConfig::new(Family::V4, 2);
        config.sections = dpdk::SMALL.to_owned();
        let duo = Duo::with(Pair::new(Family::V4, 1500)?, &config)?;
        let socket = duo.dir.path("vm.sock");
        let other = duo.dir.path("other.sock");
        let reload = |ports: &[&Path]| -> Result<String> {
            let mut config = config.clone();
            config.networks[0].extra = format!("vhost_user = {ports:?}\n");
            duo.dir.write(&config)?;
            duo.alpha.tapd(&["reload"])
        };
        let steady = SteadyPing::start(&duo.pair.alpha, overlay_v4(100, 2), 20)?;
        let said = reload(&[&socket, &other])?;
        ensure!(said.contains("applied: network 100: vhost_user"), "{said}");
        ensure!(socket.exists() && other.exists(), "there is no socket");
        machines_talk(&socket, &duo.alpha, &other)?;
        let said = reload(&[&other])?;
        ensure!(said.contains("applied"), "{said}");
        ensure!(!socket.exists() && other.exists(), "the wrong socket is gone");
        let name = format!("vm {}", socket.display());
        ensure!(port(&duo.alpha, &name).is_err(), "{name} is still shown");
        // What is in the way is named, and tried again.
        fs::write(&socket, b"a file")?;
        let said = duo.alpha.tapd_output(&["reload"])?;
        ensure!(said.status.success(), "nothing changed, and it says {said:?}");
        let failed = reload(&[&other, &socket]).map_err(|error| error.to_string());
        ensure!(failed.as_ref().is_err_and(|text| text.contains("no socket")), "{failed:?}");
        fs::remove_file(&socket)?;
        let said = duo.alpha.tapd(&["reload"])?;
        ensure!(said.contains("applied") && socket.exists(), "{said}");
        reload(&[])?;
        ensure!(!socket.exists() && !other.exists(), "a socket is left");
        let lost = steady.lost()?;
        ensure!(lost == 0, "{lost} pings of the host were lost");
        Ok(())
    });
}

#[test]
fn api_vm_ports_come_late_move_and_outlive_the_tap() {
    case(|| {
        dpdk::require()?;
        let mut config = ClusterConfig::new(Family::V4, 2);
        config.sections = dpdk::SMALL.to_owned();
        config.networks.push(NetworkEntry::new(200));
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&config)?;
        let run = dir.path("run");
        let [one, two] = ["one", "two"].map(|name| run.join(name).with_extension("sock"));
        let write = |ports: [&[&Path]; 2]| -> Result<()> {
            let mut config = config.clone();
            for (network, ports) in config.networks.iter_mut().zip(ports) {
                network.extra = format!("vhost_user = {ports:?}\n");
            }
            dir.write(&config)
        };
        // The directory is missing as it is after a boot: the node starts, and a reload mends it.
        write([&[&one], &[&two]])?;
        let alpha = Node::start(&dir, &pair.alpha, "alpha")?;
        alpha.wait_log("starts without those")?;
        fs::create_dir(&run)?;
        let said = alpha.tapd(&["reload"])?;
        ensure!(said.contains("applied") && one.exists() && two.exists(), "{said}");
        // Sockets change places between networks, then meet in each of them.
        let networks: [[&[&Path]; 2]; 3] =
            [[&[&two], &[&one]], [&[], &[&one, &two]], [&[&one, &two], &[]]];
        for ports in networks {
            write(ports)?;
            let said = alpha.tapd(&["reload"])?;
            ensure!(!said.contains("failed") && one.exists() && two.exists(), "{said}");
        }
        machines_talk(&one, &alpha, &two)?;
        // Without its tap the network goes on for its machines.
        pair.alpha.ip(&["link", "del", "tap100"])?;
        wait::until("the loss of the tap to be noticed", PATIENCE, || {
            port(&alpha, "tap tap100").is_err()
        })?;
        // The one that receives was switched off for a while, so that it is not taken for there.
        machines_talk(&two, &alpha, &one)?;
        let said = alpha.tapd(&["reload"])?;
        ensure!(said.contains("tap100 anew"), "{said}");
        port(&alpha, "tap tap100")?;
        ensure!(pair.alpha.interfaces()?.iter().any(|name| name == "tap100"), "no tap");
        machines_talk(&one, &alpha, &two)
    });
}
