//! The client commands.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use etherparse::{SlicedPacket, TransportSlice};
use integration::cluster::{Duo, overlay_v4};
use integration::command::{Running, built_binary, output_of, run};
use integration::skip::case;
use integration::traffic::{SteadyPing, ping_all};
use pcap_file::pcapng::{Block, PcapNgReader};

/// The frames in a pcapng file; insists that its interfaces are Ethernet.
fn frames(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut reader = PcapNgReader::new(bytes).context("no pcapng")?;
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.context("a block that does not parse")? {
            Block::InterfaceDescription(interface) => {
                ensure!(interface.linktype == pcap_file::DataLink::ETHERNET, "{interface:?}");
            }
            Block::EnhancedPacket(packet) => frames.push(packet.data.into_owned()),
            Block::SimplePacket(packet) => frames.push(packet.data.into_owned()),
            _ => {}
        }
    }
    Ok(frames)
}

fn is_ping(frame: &[u8]) -> bool {
    SlicedPacket::from_ethernet(frame)
        .is_ok_and(|sliced| matches!(sliced.transport, Some(TransportSlice::Icmpv4(_))))
}

#[test]
fn api_capture_is_readable_pcapng() {
    case(|| {
        let duo = Duo::new()?;
        let _pings = SteadyPing::start(&duo.pair.alpha, overlay_v4(100, 2), 5)?;
        let file = duo.dir.path("capture.pcapng");
        let path = file.to_string_lossy().into_owned();
        duo.alpha.tapd(&["capture", "--vni", "100", "--write", &path, "--count", "20"])?;
        let captured = frames(&std::fs::read(&file)?)?;
        ensure!(captured.len() == 20, "{} frames", captured.len());
        let pings = captured.iter().filter(|frame| is_ping(frame)).count();
        ensure!(pings >= 16, "{pings} of 20 frames are pings");
        // Both directions, and other programs can read it too.
        for source in [[10, 100, 0, 1], [10, 100, 0, 2]] {
            ensure!(captured.iter().any(|f| f.get(26..30) == Some(&source[..])), "{source:?}");
        }
        let text = run("tcpdump", &["-n", "-r", &path])?;
        ensure!(text.contains("ICMP echo request"), "tcpdump reads:\n{text}");

        let stdout = duo.alpha.tapd_output(&["capture", "--count", "5", "--write", "-"])?;
        ensure!(stdout.status.success() && frames(&stdout.stdout)?.len() == 5);
        // Another network: refused or silent, but never this one's frames.
        let mut other = duo.alpha.client(&["capture", "--vni", "7", "--count", "1"]);
        let running = Running::spawn(other.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        match running.finish(Duration::from_secs(1)) {
            Ok(output) => ensure!(!output.status.success(), "frames of a network that is not"),
            Err(_still_waiting) => {}
        }
        Ok(())
    });
}

#[test]
fn api_show_everything_as_text_and_json() {
    case(|| {
        let duo = Duo::new()?;
        ping_all(&duo.pair.alpha, overlay_v4(100, 2))?;
        for what in ["status", "peers", "links", "networks", "fdb", "counters"] {
            let text = duo.alpha.tapd(&["show", what])?;
            ensure!(text.lines().count() > 1, "show {what}:\n{text}");
            duo.alpha.show(what)?;
        }
        let networks = duo.alpha.tapd(&["show", "networks"])?;
        ensure!(networks.contains("1432"), "no tap MTU in:\n{networks}");
        ensure!(networks.contains("1500") && networks.contains("26"), "no sum in:\n{networks}");
        let peer = duo.alpha.peer(2).ok_or_else(|| anyhow!("no peer 2"))?;
        ensure!(peer["name"] == "beta" && peer["cipher"] == "aes-256-gcm", "{peer}");
        ensure!(peer["rx_frames"].as_u64() > Some(9), "{peer}");
        Ok(())
    });
}

#[test]
fn api_fdb_entries_can_be_set_and_removed() {
    case(|| {
        let duo = Duo::new()?;
        let fdb = || duo.alpha.tapd(&["show", "fdb"]);
        let mac = "02:00:00:00:00:77";
        duo.alpha.tapd(&["fdb", "add", mac, "--vni", "100", "--node", "beta"])?;
        ensure!(fdb()?.contains(mac));
        duo.alpha.tapd(&["fdb", "del", mac, "--vni", "100"])?;
        ensure!(!fdb()?.contains(mac));
        ping_all(&duo.pair.alpha, overlay_v4(100, 2))?;
        ensure!(fdb()?.contains("02:00:00:64:00:02"), "beta's address was not learnt:\n{}", fdb()?);
        duo.alpha.tapd(&["fdb", "flush"])?;
        ping_all(&duo.pair.alpha, overlay_v4(100, 2))
    });
}

#[test]
fn api_exit_codes() {
    case(|| {
        let duo = Duo::new()?;
        let code = |arguments: &[&str]| -> Result<Option<i32>> {
            Ok(duo.alpha.tapd_output(arguments)?.status.code())
        };
        ensure!(code(&["show", "status"])? == Some(0));
        ensure!(code(&["show", "nonsense"])? == Some(2));
        ensure!(
            code(&["fdb", "add", "02:00:00:00:00:07", "--vni", "9", "--node", "2"])? == Some(6)
        );
        ensure!(code(&["peer", "rehandshake", "nobody"])? == Some(6));
        let mut nowhere = std::process::Command::new(built_binary("tapd")?);
        nowhere.args(["show", "status", "--control-socket"]).arg(duo.dir.path("none.sock"));
        let output = output_of(&mut nowhere)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(5) && said.contains("none.sock"), "{said}");
        Ok(())
    });
}

#[test]
fn api_help_completions_and_man_page() {
    case(|| {
        let tapd = built_binary("tapd")?.to_string_lossy().into_owned();
        let help = run(&tapd, &["--help"])?;
        for command in ["run", "check", "keygen", "show", "fdb", "reload", "peer", "capture"] {
            ensure!(help.contains(command), "{command} is not in the help");
        }
        for shell in ["bash", "zsh", "fish"] {
            ensure!(run(&tapd, &["completions", shell])?.contains("rehandshake"), "{shell}");
        }
        ensure!(run(&tapd, &["man"])?.contains(".TH"));
        Ok(())
    });
}
