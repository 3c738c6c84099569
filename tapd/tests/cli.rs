//! The program as a user meets it: help, checks, keys, exit codes.

#![allow(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

const EXAMPLE: &str = include_str!("../../docs/example/cluster.toml");

fn tapd(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tapd"))
        .args(arguments)
        .current_dir(directory)
        .env_remove("TAPD_NODE")
        .env_remove("TAPD_CONTROL_SOCKET")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
}

/// A directory with the documented example and a key.
fn example() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("cluster.toml"), EXAMPLE).unwrap();
    expect(&tapd(directory.path(), &["keygen", "cluster.key"]), 0);
    directory
}

#[test]
fn help_teaches() {
    let directory = tempfile::tempdir().unwrap();
    let help = tapd(directory.path(), &["--help"]);
    expect(&help, 0);
    for part in ["Examples:", "tapd keygen", "Exit codes:", "3  the configuration has faults"] {
        assert!(stdout(&help).contains(part), "{part}\n{}", stdout(&help));
    }
    for command in [
        "run",
        "check",
        "doctor",
        "keygen",
        "show",
        "fdb",
        "reload",
        "peer",
        "link",
        "watch",
        "capture",
        "send",
        "recv",
        "forward",
        "bench-crypto",
        "completions",
        "man",
    ] {
        assert!(stdout(&help).contains(&format!("  {command} ")), "{command}");
        expect(&tapd(directory.path(), &[command, "--help"]), 0);
    }
    let run = tapd(directory.path(), &["run", "--help"]);
    for part in ["--config", "--local", "TAPD_NODE", "/run/tapd.sock", "SIGHUP"] {
        assert!(stdout(&run).contains(part), "{part}\n{}", stdout(&run));
    }
    let version = tapd(directory.path(), &["--version"]);
    assert_eq!(stdout(&version), concat!("tapd ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn wrong_usage_is_2() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [
        &[][..],
        &["dance"],
        &["run"],
        &["peer", "rehandshake"],
        &["fdb", "add", "x"],
        &["link", "mtu", "beta", "lan", "12"],
    ] {
        expect(&tapd(directory.path(), arguments), 2);
    }
}

#[test]
fn check_accepts_the_example() {
    let directory = example();
    let output = tapd(directory.path(), &["check", "cluster.toml", "--node", "beta"]);
    expect(&output, 0);
    let expected =
        "cluster.toml: no faults; 2 nodes, 1 network, 0 channels; this machine is node 2 (beta)\n";
    assert_eq!(stdout(&output), expected);
}

#[test]
fn check_takes_every_cipher_by_name() {
    let directory = example();
    let with = |ciphers: &str| {
        let key = "key_file = \"cluster.key\"";
        let text = EXAMPLE.replace(key, &format!("{key}\nciphers = {ciphers}"));
        assert_ne!(text, EXAMPLE);
        fs::write(directory.path().join("cluster.toml"), text).unwrap();
        tapd(directory.path(), &["check", "cluster.toml"])
    };
    expect(&with("[\"aegis-256\", \"aegis-128l\", \"aes-256-gcm\"]"), 0);
    let unknown = with("[\"aegis\"]");
    expect(&unknown, 3);
    let known = "no cipher \"aegis\"; there are \"aes-256-gcm\", \"aegis-256\", \"aegis-128l\"";
    assert!(stderr(&unknown).contains(known), "{}", stderr(&unknown));
}

#[test]
fn bench_crypto_measures_every_cipher_without_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["bench-crypto", "--seconds", "1", "--size", "64", "1424", "--json"];
    let output = tapd(directory.path(), &arguments);
    expect(&output, 0);
    let report: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    let rows = report["results"].as_array().unwrap();
    for size in [64, 1424] {
        for cipher in ["aes-256-gcm", "aegis-256", "aegis-128l"] {
            let mut found = rows.iter().filter(|r| r["size"] == size && r["cipher"] == cipher);
            let row = found.next().unwrap();
            assert!(found.next().is_none(), "{cipher} is there twice");
            for direction in ["seal", "open"] {
                for part in ["ns", "gb_per_s", "ratio"] {
                    assert!(row[direction][part].as_f64().unwrap() > 0.0, "{row}");
                }
            }
        }
    }
    assert_eq!(rows.len(), 6);
    assert!(report["rounds"].as_u64().unwrap() > 0);
    assert!(report["advice"].as_str().unwrap().contains("aes-256-gcm"));
    assert!(report["cpu_features"].is_array());
    let people = tapd(directory.path(), &["bench-crypto", "--seconds", "1", "--size", "64"]);
    expect(&people, 0);
    assert!(stdout(&people).starts_with("CPU features: "), "{}", stdout(&people));
    assert_eq!(stdout(&people).lines().count(), 6);
}

#[test]
fn check_says_every_fault_with_its_line() {
    let directory = example();
    let text = "[cluster]\nkey_file = \"cluster.key\"\nport = 4789\ninsecur = true\n\
        [[nodes]]\nid = 1\naddresses = [\"192.0.2.1\"]\n\
        [[nodes]]\nid = 70000\naddresses = [\"192.0.2.1\", 5]\n\
        [[networks]]\nvni = 100\ntap_mtu = 12\nmembers = [3]\n";
    fs::write(directory.path().join("faulty.toml"), text).unwrap();
    let output = tapd(directory.path(), &["check", "faulty.toml"]);
    expect(&output, 3);
    let expected = [
        "tapd: the configuration has 7 faults",
        "faulty.toml:3: ports 4789 to 4804 contain 4789",
        "faulty.toml:4: unknown key \"insecur\" in [cluster]; did you mean \"insecure\"?",
        "faulty.toml:9: id = 70000 is out of range; choose 1 to 65535",
        "faulty.toml:10: address 192.0.2.1 is taken already in line 7",
        "faulty.toml:10: an IP address such as",
        "faulty.toml:13: tap_mtu must be",
        "faulty.toml:14: member \"3\" is not in [[nodes]]",
    ];
    let lines: Vec<_> = stderr(&output).lines().collect();
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    expect(&tapd(directory.path(), &["run", "--config", "faulty.toml"]), 3);
}

#[test]
fn check_reads_the_local_file_and_the_environment() {
    let directory = example();
    fs::write(directory.path().join("local.toml"), "[daemon]\nworkers = 0\n").unwrap();
    let output = tapd(directory.path(), &["check", "cluster.toml", "--local", "local.toml"]);
    expect(&output, 3);
    assert!(stderr(&output).contains("local.toml:2: workers = 0"), "{}", stderr(&output));
    let output = Command::new(env!("CARGO_BIN_EXE_tapd"))
        .args(["check", "cluster.toml"])
        .current_dir(directory.path())
        .env("TAPD_NODE", "gamma")
        .output()
        .unwrap();
    expect(&output, 3);
    assert!(stderr(&output).contains("\"gamma\""), "{}", stderr(&output));
    let unset = Command::new(env!("CARGO_BIN_EXE_tapd"))
        .args(["check", "cluster.toml"])
        .current_dir(directory.path())
        .env("TAPD_NODE", "")
        .output()
        .unwrap();
    expect(&unset, 0);
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cluster.key");
    expect(&tapd(directory.path(), &["keygen", "cluster.key"]), 0);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let key = fs::read_to_string(&path).unwrap();
    assert_eq!(key.trim_end().len(), 64);
    let again = tapd(directory.path(), &["keygen", "cluster.key"]);
    expect(&again, 1);
    assert!(stderr(&again).contains("not overwritten"), "{}", stderr(&again));
    assert_eq!(fs::read_to_string(&path).unwrap(), key);
    let printed = tapd(directory.path(), &["keygen"]);
    expect(&printed, 0);
    assert_eq!(stdout(&printed).trim_end().len(), 64);
    assert_ne!(stdout(&printed), key);
}

#[test]
fn key_that_others_can_read_is_refused() {
    let directory = example();
    let path = directory.path().join("cluster.key");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let output = tapd(directory.path(), &["check", "cluster.toml"]);
    expect(&output, 3);
    assert!(stderr(&output).contains("chmod 600"), "{}", stderr(&output));
}

#[test]
fn commands_without_a_daemon_are_5() {
    let directory = tempfile::tempdir().unwrap();
    for command in [
        &["show"][..],
        &["show", "peers", "--json"],
        &["reload"],
        &["peer", "rehandshake", "--all"],
        &["fdb", "flush"],
        &["link", "drain", "beta", "lan"],
        &["link", "mtu", "beta", "0", "auto"],
        &["watch"],
        &["capture", "--write", "x.pcapng"],
    ] {
        let socket = ["--control-socket", "none.sock"];
        let arguments: Vec<_> = command.iter().chain(&socket).copied().collect();
        let output = tapd(directory.path(), &arguments);
        expect(&output, 5);
        assert!(stderr(&output).contains("is tapd running?"), "{}", stderr(&output));
    }
    assert!(!directory.path().join("x.pcapng").exists());
}

/// Runs a client command against a daemon that answers with `reply`, whatever it is asked.
fn answered(directory: &Path, arguments: &[&str], reply: &[u8]) -> Output {
    let path = directory.join("fake.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = listener.accept().unwrap().0;
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            stream.write_all(reply).unwrap();
        });
        let socket = ["--control-socket", "fake.sock"];
        let output = tapd(directory, &[arguments, &socket].concat());
        fs::remove_file(&path).unwrap();
        output
    })
}

#[test]
fn capture_that_the_daemon_ends_is_1() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.pcapng");
    fs::write(&file, "an earlier one").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    // A section header and two frames; only block types and lengths matter here.
    let block = |kind: u32, len: u8| {
        let mut block = vec![0; len.into()];
        block[..4].copy_from_slice(&kind.to_le_bytes());
        block[4] = len;
        block
    };
    let stream = [block(0x0a0d_0d0a, 28), block(6, 96), block(6, 32)].concat();
    let reply = [b"{\"version\":1,\"ok\":true}\n", stream.as_slice()].concat();
    let capture = |more: &[&str]| {
        let arguments = [&["capture", "--write", "x.pcapng"], more].concat();
        answered(directory.path(), &arguments, &reply)
    };
    expect(&capture(&["--count", "2"]), 0);
    assert_eq!(fs::read(&file).unwrap(), stream);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    for (more, part) in [(&["--count", "3"][..], "after 2 of 3 frames"), (&[], "after 2 frames")] {
        let output = capture(more);
        expect(&output, 1);
        let said = stderr(&output);
        assert!(said.contains("the daemon ended the capture") && said.contains(part), "{said}");
    }
}

#[test]
fn watch_that_the_daemon_ends_is_1() {
    let directory = tempfile::tempdir().unwrap();
    let event = "{\"time_ms\":45296789,\"event\":\"link_suspect\",\"node\":2,\"peer\":\"beta\",\
        \"link\":\"lan\",\"cause\":\"6 rounds behind link wan\"}\n";
    let reply = format!("{{\"version\":1,\"ok\":true}}\n{event}{event}");
    let watch = |more: &[&str]| {
        let arguments = [&["watch"], more].concat();
        answered(directory.path(), &arguments, reply.as_bytes())
    };
    let line = "12:34:56.789 beta lan  suspect  6 rounds behind link wan\n";
    let output = watch(&["--count", "2"]);
    expect(&output, 0);
    assert_eq!(stdout(&output), line.repeat(2));
    assert_eq!(stdout(&watch(&["--count", "1", "--json"])), event);
    for (more, part) in [(&["--count", "3"][..], "after 2 of 3 events"), (&[], "after 2 events")] {
        let output = watch(more);
        expect(&output, 1);
        assert_eq!(stdout(&output), line.repeat(2));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}

#[test]
fn link_commands_ask_for_what_was_said() {
    let directory = tempfile::tempdir().unwrap();
    let refused = b"{\"version\":1,\"ok\":false,\"error\":\"no link \\\"lan\\\"\"}\n";
    let output = answered(directory.path(), &["link", "drain", "beta", "lan"], refused);
    expect(&output, 6);
    assert!(stderr(&output).contains("the daemon refused: no link \"lan\""), "{}", stderr(&output));
    let accepted = b"{\"version\":1,\"ok\":true}\n";
    for arguments in [&["link", "undrain", "2", "0"][..], &["link", "mtu", "beta", "lan", "1400"]] {
        expect(&answered(directory.path(), arguments, accepted), 0);
    }
}

#[test]
fn reload_that_fails_in_part_says_all_and_is_6() {
    let directory = tempfile::tempdir().unwrap();
    let reply = |failed: &str| {
        let data = format!(r#"{{"applied":["a"],"needs_restart":["b"]{failed}}}"#);
        let reply = format!("{{\"version\":1,\"ok\":true,\"data\":{data}}}\n");
        answered(directory.path(), &["reload"], reply.as_bytes())
    };
    let output = reply(r#","failed":["tap tap7: in use"]"#);
    expect(&output, 6);
    assert_eq!(stdout(&output), "applied: a\nneeds a restart: b\nfailed: tap tap7: in use\n");
    assert!(stderr(&output).contains("could not apply 1 change"), "{}", stderr(&output));
    expect(&reply(""), 0);
}

#[test]
fn socket_path_is_checked_before_anything_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let run = ["run", "--config", "missing.toml"];
    let output = tapd(directory.path(), &[&run[..], &["--control-socket", "x.sock"]].concat());
    expect(&output, 2);
    assert!(stderr(&output).contains("must be an absolute path"), "{}", stderr(&output));
    let output = Command::new(env!("CARGO_BIN_EXE_tapd"))
        .args(run)
        .env("TAPD_CONTROL_SOCKET", format!("/{}", "x".repeat(107)))
        .output()
        .unwrap();
    expect(&output, 2);
    assert!(stderr(&output).contains("at most 107"), "{}", stderr(&output));
}

#[test]
fn completions_and_manual_pages() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = tapd(directory.path(), &["completions", shell]);
        expect(&output, 0);
        assert!(stdout(&output).contains("rehandshake"), "{shell}");
    }
    let page = tapd(directory.path(), &["man"]);
    expect(&page, 0);
    assert!(stdout(&page).contains(".TH tapd 1"), "{}", stdout(&page));
    assert!(stdout(&page).contains("Exit codes"), "{}", stdout(&page));
    expect(&tapd(directory.path(), &["man", "--directory", "."]), 0);
    assert!(directory.path().join("tapd-fdb-add.1").exists());
}

#[test]
fn only_channels_are_shown_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = tapd(directory.path(), &["show", "peers", "beta"]);
    expect(&wrong, 2);
    assert!(
        stderr(&wrong).contains("only `tapd show channels` takes a name"),
        "{}",
        stderr(&wrong)
    );
    let socket = ["--control-socket", "none.sock"];
    let channels = tapd(directory.path(), &[&["show", "channels", "backup"][..], &socket].concat());
    expect(&channels, 5);
}
