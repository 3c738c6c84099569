//! The daemon as a process: faults, starts, ends, privileges.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Result, ensure};
use integration::cluster::{Duo, overlay_v4};
use integration::command::{built_binary, output_of};
use integration::config::{ClusterConfig, ClusterDir};
use integration::node::Node;
use integration::skip::case;
use integration::topology::{Family, Pair};
use integration::traffic::ping_all;

/// Bit 12, as /proc/PID/status prints it.
const CAP_NET_ADMIN_ONLY: &str = "0000000000001000";

/// Exit code and everything that was printed.
fn tapd(arguments: &[&str]) -> Result<(i32, String)> {
    let output = output_of(
        Command::new(built_binary("tapd")?)
            .args(arguments)
            .env_remove("TAPD_NODE")
            .env_remove("TAPD_CONTROL_SOCKET"),
    )?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

/// Starts a node that must not start; gives its exit code and log.
fn failing_start(
    dir: &ClusterDir,
    pair: &Pair,
    name: &str,
    more: &[&str],
) -> Result<(i32, String)> {
    let mut node = Node::spawn(dir, &pair.alpha, name, more)?;
    let status = node.wait_end()?;
    Ok((status.code().unwrap_or(-1), node.log()))
}

#[test]
fn api_check_says_every_fault_with_its_line() {
    case(|| {
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let file = dir.config_file();
        let file = file.to_string_lossy();
        let (code, text) = tapd(&["check", &file])?;
        ensure!(code == 0, "a good file: exit code {code}, {text}");

        let faulty = dir.config_file().with_file_name("cluster.toml");
        let lines = [
            "[cluster]",
            "key_file = \"missing.key\"", // 2: no such file
            "ciphers = [\"rot13\"]",      // 3: unknown
            "port = 4789",                // 4: vxlan's
            "[daemon]",
            "workers = 0",      // 6: none
            "colour = \"red\"", // 7: unknown key
            "[[nodes]]",
            "id = 1",
            "addresses = [\"192.0.2.1\"]",
            "[[nodes]]",
            "id = 1",                        // 12: twice
            "addresses = [\"192.0.2.300\"]", // 13: no address
            "[[networks]]",
            "vni = 16777216",                   // 15: 25 bits
            "tap = \"a-name-of-more-than-15\"", // 16: too long
            "subnets = [\"10.0.0.0/33\"]",      // 17: no such prefix
            "tap_mtu = 20",                     // 18: too small
        ];
        std::fs::write(&faulty, lines.join("\n"))?;
        let (code, text) = tapd(&["check", &file])?;
        ensure!(code == 3, "exit code {code}: {text}");
        for line in [2, 3, 4, 6, 7, 12, 13, 15, 16, 17, 18] {
            let place = format!("cluster.toml:{line}:");
            ensure!(text.contains(&place), "nothing about line {line} in:\n{text}");
        }
        Ok(())
    });
}

#[test]
fn api_faulty_configuration_does_not_start() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        dir.write_text("[cluster]\nkey_file = 3\n")?;
        let (code, log) = failing_start(&dir, &pair, "alpha", &[])?;
        ensure!(code == 3 && log.contains("cluster.toml:2:"), "exit code {code}: {log}");
        dir.write_text("this is no TOML\n")?;
        let (code, log) = failing_start(&dir, &pair, "alpha", &[])?;
        ensure!(code == 3 && log.contains("cluster.toml:1:"), "exit code {code}: {log}");
        Ok(())
    });
}

#[test]
fn api_clear_mode_must_be_asked_for() {
    case(|| {
        let config =
            ClusterConfig { insecure: false, ..ClusterConfig::new(Family::V4, 2).in_clear() };
        let dir = ClusterDir::new(&config)?;
        let (code, text) = tapd(&["check", &dir.config_file().to_string_lossy()])?;
        ensure!(code == 3 && text.contains("insecure"), "exit code {code}: {text}");
        Ok(())
    });
}

#[test]
fn api_key_file_must_be_private() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let key = dir.path("cluster.key");
        for mode in [0o640, 0o604] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode))?;
            let (code, log) = failing_start(&dir, &pair, "alpha", &[])?;
            ensure!(code == 3 && log.contains("cluster.key"), "mode {mode:o}, code {code}: {log}");
        }
        Ok(())
    });
}

#[test]
fn api_keygen_is_private_and_never_overwrites() {
    case(|| {
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let key = dir.path("cluster.key");
        let mode = std::fs::metadata(&key)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "mode {mode:o}");
        let text = std::fs::read_to_string(&key)?;
        let digits = text.trim();
        ensure!(digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let (code, said) = tapd(&["keygen", &key.to_string_lossy()])?;
        ensure!(code != 0 && !said.is_empty(), "it overwrote a key");
        ensure!(std::fs::read_to_string(&key)? == text, "the key changed");
        let (code, printed) = tapd(&["keygen"])?;
        ensure!(code == 0 && printed.trim().len() == 64 && printed.trim() != digits, "{printed}");
        Ok(())
    });
}

#[test]
fn api_second_start_says_why_it_cannot() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let first = Node::start(&dir, &pair.alpha, "alpha")?;
        let socket = first.socket().to_string_lossy().into_owned();

        // The very same command again.
        let other = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let (code, log) = failing_start(&dir, &pair, "alpha", &[])?;
        ensure!(code == 4, "exit code {code}: {log}");
        ensure!(log.contains(&socket) || log.to_lowercase().contains("in use"), "{log}");
        ensure!(first.show("status").is_ok(), "the first one suffered");

        // Another control socket and the same port.
        let (code, log) = failing_start(&other, &pair, "alpha", &[])?;
        ensure!(code == 4, "exit code {code}: {log}");
        ensure!(log.contains("2602") || log.contains("tap100"), "neither port nor tap in: {log}");
        ensure!(first.show("status").is_ok(), "the first one suffered");

        // Other ports and the same tap.
        let config = ClusterConfig { port: 27000, ..ClusterConfig::new(Family::V4, 2) };
        other.write(&config)?;
        let (code, log) = failing_start(&other, &pair, "alpha", &[])?;
        ensure!(code == 4 && log.contains("tap100"), "exit code {code}: {log}");
        ensure!(pair.alpha.interfaces()?.iter().any(|name| name == "tap100"));
        ensure!(first.show("status").is_ok(), "the first one suffered");
        Ok(())
    });
}

#[test]
fn api_socket_of_a_dead_daemon_does_not_block() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let mut node = Node::start(&dir, &pair.alpha, "alpha")?;
        node.kill();
        node.restart()?;
        node.wait_ready()?;
        node.stop(&["tap100"])
    });
}

#[test]
fn api_sigterm_and_sigint_leave_nothing() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let before = pair.alpha.interfaces()?;
        let mut node = Node::start(&dir, &pair.alpha, "alpha")?;
        node.stop(&["tap100"])?;
        ensure!(pair.alpha.interfaces()? == before);
        node.restart()?;
        node.wait_ready()?;
        node.signal(libc::SIGINT)?;
        let status = node.wait_end()?;
        ensure!(status.success(), "SIGINT: {status}");
        ensure!(pair.alpha.interfaces()? == before && !node.socket().exists());
        Ok(())
    });
}

#[test]
fn api_only_net_admin_is_kept() {
    case(|| {
        let duo = Duo::new()?;
        ping_all(&duo.pair.alpha, overlay_v4(100, 2))?;
        for field in ["CapEff", "CapPrm"] {
            let value = duo.alpha.status_field(field)?;
            ensure!(value == CAP_NET_ADMIN_ONLY, "{field} is {value}");
        }
        for field in ["CapInh", "CapAmb"] {
            let value = duo.alpha.status_field(field)?;
            ensure!(value.bytes().all(|digit| digit == b'0'), "{field} is {value}");
        }
        // Every thread, not only the first.
        for task in std::fs::read_dir(format!("/proc/{}/task", duo.alpha.pid()))? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            let wanted = format!("CapEff:\t{CAP_NET_ADMIN_ONLY}");
            ensure!(status.contains(&wanted), "a thread has more:\n{status}");
        }
        Ok(())
    });
}

#[test]
fn api_node_is_found_by_environment_and_by_address() {
    case(|| {
        let pair = Pair::new(Family::V4, 1500)?;
        let dir = ClusterDir::new(&ClusterConfig::new(Family::V4, 2))?;
        let config = dir.config_file().to_string_lossy().into_owned();
        let socket = dir.path("other.sock").to_string_lossy().into_owned();
        let tapd = built_binary("tapd")?;
        for (netns, environment, wanted) in
            [(&pair.alpha, Some("2"), 2), (&pair.beta, None, 2), (&pair.alpha, None, 1)]
        {
            let mut command = netns.command(&tapd);
            command.args(["run", "--config", &config, "--control-socket", &socket]);
            command.env_remove("TAPD_NODE");
            if let Some(node) = environment {
                // beta's address must exist for beta to be started here.
                netns.add_address("under0", "192.0.2.2/24")?;
                command.env("TAPD_NODE", node);
            }
            let mut running = integration::command::Running::spawn(&mut command)?;
            let mut said = serde_json::Value::Null;
            integration::wait::until("an answer", integration::node::PATIENCE, || {
                let mut show = Command::new(&tapd);
                show.args(["show", "status", "--json", "--control-socket", &socket]);
                said = output_of(&mut show)
                    .ok()
                    .and_then(|output| serde_json::from_slice(&output.stdout).ok())
                    .unwrap_or_default();
                said["node"].is_u64() || running.ended().is_some()
            })?;
            ensure!(said["node"] == wanted, "environment {environment:?}: {said}");
            running.signal(libc::SIGTERM)?;
            running.wait_end(integration::node::PATIENCE)?;
            if environment.is_some() {
                netns.ip(&["addr", "del", "192.0.2.2/24", "dev", "under0"])?;
            }
        }
        Ok(())
    });
}
