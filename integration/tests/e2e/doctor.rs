//! `tapd doctor`: what is in order is said to be, and what is not is named with what to do.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::capture::Capture;
use integration::cluster::Duo;
use integration::command::{built_binary, output_of};
use integration::config::{ClusterConfig, ClusterDir};
use integration::netns::Netns;
use integration::skip::case;
use integration::topology::{Family, Offloads, Pair, UNDERLAY};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(5);

/// What `tapd doctor` found.
#[derive(Debug)]
struct Examined {
    code: i32,
    findings: Vec<Value>,
}

impl Examined {
    /// Status, and the rest of the line, of the one check of that name.
    fn check(&self, name: &str) -> Result<(&str, String)> {
        let found = self.findings.iter().find(|finding| finding["check"] == name);
        let found = found.with_context(|| format!("no check {name:?} in {self:#?}"))?;
        let text = |key: &str| found[key].as_str().unwrap_or_default();
        Ok((text("status"), format!("{}; {}", text("found"), text("advice"))))
    }

    fn expect(&self, name: &str, status: &str, part: &str) -> Result<()> {
        let (is, line) = self.check(name)?;
        ensure!(is == status && line.contains(part), "{name}: {is} {line}, not {status} {part}");
        Ok(())
    }

    fn failed(&self) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["status"] == "fail").collect()
    }
}

/// Runs `wrapper tapd doctor` for node alpha in a namespace.
fn examine(
    netns: &Netns,
    dir: &ClusterDir,
    wrapper: &[&str],
    socket: Option<&Path>,
) -> Result<Examined> {
    let tapd = built_binary("tapd")?.to_string_lossy().into_owned();
    let config = dir.config_file().to_string_lossy().into_owned();
    let none = dir.path("none.sock");
    let socket = socket.unwrap_or(&none).to_string_lossy();
    let doctor = ["doctor", "--json", "--config", &config, "--node", "alpha"];
    let words = [wrapper, &[&tapd], &doctor, &["--control-socket", &socket]].concat();
    let (program, arguments) = words.split_first().context("no program")?;
    let output = output_of(netns.command(program).args(arguments).env_remove("TAPD_NODE"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let findings = serde_json::from_str(&text).with_context(|| format!("{text}{errors}"))?;
    Ok(Examined { code: output.status.code().unwrap_or(-1), findings })
}

fn place(offloads: Offloads) -> Result<(Pair, ClusterDir)> {
    let pair = Pair::new(Family::V4, 1500)?;
    pair.set_offloads(offloads)?;
    let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
    Ok((pair, dir))
}

#[test]
fn api_doctor_finds_nothing_where_nothing_is_wrong() {
    case(|| {
        let (pair, dir) = place(Offloads::Superpacket)?;
        let before = pair.alpha.interfaces()?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        ensure!(examined.code == 0 && examined.failed().is_empty(), "{examined:#?}");
        for check in [
            "configuration",
            "key files",
            "daemon",
            "kernel",
            "tun device",
            "privileges",
            "tap offloads",
            "tap queues",
            "tap TCP read",
            "tap TCP written",
            "tap UDP read",
            "tap UDP written",
            "uplink 0",
            "ports 0",
            "buffers 0",
            "send 0",
            "receive 0",
            "steering 0",
            "tx checksum under0",
            "gro under0",
            "reverse path under0",
            "tap tap100",
            "MTU of tap100",
        ] {
            examined.expect(check, "ok", "")?;
        }
        examined.expect("MTU of tap100", "ok", "1432 fit a datagram on under0")?;
        ensure!(pair.alpha.interfaces()? == before, "it left an interface behind");
        Ok(())
    });
}

#[test]
fn sec_doctor_sends_nothing_to_others() {
    case(|| {
        for family in [Family::V4, Family::V6] {
            let pair = Pair::new(family, 1500)?;
            let dir = ClusterDir::new(&ClusterConfig::new(family, 2))?;
            let capture = Capture::start(&pair.beta, UNDERLAY, "udp")?;
            let examined = examine(&pair.alpha, &dir, &[], None)?;
            examined.expect("send 0", "ok", "runs of datagrams in one piece")?;
            // What is sent after it arrives after it.
            pair.alpha.enter(|| {
                let near = UdpSocket::bind((family.address(1), 0))?;
                near.send_to(b"the end", (family.address(2), 26100))?;
                Ok(())
            })?;
            let is_end = |packet: &[u8]| packet.ends_with(b"the end");
            let seen = capture.finish_after("the last datagram", PATIENCE, is_end)?;
            ensure!(seen.len() == 1, "{seen:02x?}");
        }
        Ok(())
    });
}

#[test]
fn api_doctor_runs_beside_a_daemon() {
    case(|| {
        let duo = Duo::new()?;
        let examined = examine(&duo.pair.alpha, &duo.dir, &[], Some(duo.alpha.socket()))?;
        examined.expect("daemon", "ok", &format!("pid {}", duo.alpha.pid()))?;
        examined.expect("ports 0", "ok", "used by the daemon that runs")?;
        examined.expect("tap tap100", "ok", "made by the daemon that runs")?;
        ensure!(examined.code == 0, "{examined:#?}");
        ensure!(duo.alpha.peer_is_up(2), "the daemon was disturbed");
        Ok(())
    });
}

#[test]
fn api_doctor_names_what_is_switched_off() {
    case(|| {
        let (pair, dir) = place(Offloads::Bare)?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        examined.expect("tx checksum under0", "warn", "run: ethtool -K under0 tx on")?;
        examined.expect("gro under0", "warn", "run: ethtool -K under0 gro on")?;
        examined.expect("segmentation under0", "ok", "tso off, gso off")?;
        ensure!(examined.code == 0, "warnings are no failure: {examined:#?}");
        let set = |value: &str| pair.alpha.sysctl("net/ipv4/conf/under0/rp_filter", value);
        set("1")?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        examined.expect("reverse path under0", "ok", "strict, which one link does not mind")?;
        pair.alpha.ip(&["link", "set", UNDERLAY, "mtu", "1200"])?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        examined.expect("uplink 0", "fail", "run: ip link set under0 mtu 1500")?;
        pair.alpha.ip(&["link", "set", UNDERLAY, "mtu", "1500", "down"])?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        examined.expect("uplink 0", "fail", "run: ip link set under0 up")?;
        pair.alpha.ip(&["addr", "flush", "dev", UNDERLAY])?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        examined.expect("uplink 0", "fail", "no interface has 192.0.2.1")?;
        ensure!(examined.code == 1, "{examined:#?}");
        Ok(())
    });
}

#[test]
fn api_doctor_says_who_has_the_port_and_the_tap() {
    case(|| {
        let (pair, dir) = place(Offloads::Wire)?;
        pair.alpha.ip(&["link", "add", "tap100", "type", "bridge"])?;
        // A socket stays in the namespace that it was made in.
        let socket = pair.alpha.enter(|| Ok(UdpSocket::bind(("192.0.2.1", 26026))?))?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        drop(socket);
        let pid = format!("(pid {})", std::process::id());
        examined.expect("ports 0", "fail", &pid)?;
        examined.expect("tap tap100", "fail", "run: ip link del tap100")?;
        ensure!(examined.code == 1 && examined.failed().len() == 2, "{examined:#?}");
        Ok(())
    });
}

#[test]
fn api_doctor_without_privilege_says_what_is_missing() {
    case(|| {
        let (pair, dir) = place(Offloads::Wire)?;
        let drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
        let examined = examine(&pair.alpha, &dir, &drop, None)?;
        examined.expect("privileges", "fail", "CAP_NET_ADMIN is missing")?;
        examined.expect("privileges", "fail", "--cap-add NET_ADMIN")?;
        examined.expect("tap", "warn", "not tried")?;
        ensure!(examined.code == 1, "{examined:#?}");
        // Without CAP_SYS_ADMIN no namespace, but a tap is asked all the same, and removed.
        let drop = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"];
        let before = pair.alpha.interfaces()?;
        let examined = examine(&pair.alpha, &dir, &drop, None)?;
        examined.expect("tap packets", "warn", "run this as root")?;
        examined.expect("tap offloads", "ok", "TSO4")?;
        ensure!(examined.code == 0 && pair.alpha.interfaces()? == before, "{examined:#?}");
        Ok(())
    });
}

#[test]
fn api_doctor_says_faults_of_the_configuration() {
    case(|| {
        let (pair, dir) = place(Offloads::Wire)?;
        dir.write_text("[cluster]\nkey_file = \"cluster.key\"\nport = 4789\n")?;
        let examined = examine(&pair.alpha, &dir, &[], None)?;
        examined.expect("configuration", "fail", "cluster.toml")?;
        ensure!(examined.code == 1, "{examined:#?}");
        // The machine is looked at all the same.
        examined.expect("tun device", "ok", "")?;
        examined.expect("uplink 192.0.2.1", "ok", "under0")?;
        Ok(())
    });
}

#[test]
fn api_show_offloads_tells_what_is_on_and_off() {
    case(|| {
        let mut config = ClusterConfig::new(Family::V4, 2);
        config.sections = "[offload]\ntap_udp = false\nbundles = false\n".to_owned();
        let duo = Duo::with(Pair::new(Family::V4, 1500)?, &config)?;
        let shown = duo.alpha.show("offloads")?;
        let state = |offload: &str| {
            let rows = shown["offloads"].as_array()?;
            rows.iter().find(|row| row["offload"] == offload)?["state"].as_str()
        };
        ensure!(state("tap_checksum") == Some("on"), "{shown:#}");
        ensure!(state("tap_tcp") == Some("on"), "{shown:#}");
        ensure!(state("tap_udp") == Some("off in the configuration"), "{shown:#}");
        ensure!(state("uplink_segmentation") == Some("on"), "{shown:#}");
        ensure!(state("uplink_coalescing") == Some("on"), "{shown:#}");
        ensure!(shown["bundles"] == "off in the configuration", "{shown:#}");
        let sent = shown["runs"].as_array().context("no runs")?;
        let sent = sent.iter().find(|row| row["direction"] == "sent").context("no uplink")?;
        let calls = sent["calls"].as_u64().unwrap_or(0);
        ensure!(calls > 0 && sent["packets"].as_u64() >= Some(calls), "{shown:#}");
        let text = duo.alpha.tapd(&["show", "offloads"])?;
        ensure!(text.contains("bundles of small frames: off in the configuration"), "{text}");
        Ok(())
    });
}
