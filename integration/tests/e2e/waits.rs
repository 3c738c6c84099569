//! What people are told while something waits: a link for its address, a program for a node.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use integration::command::{built_binary, run_command};
use integration::lanes::{Cut, Lanes, Side};
use integration::links::{LaneDuo, PATIENCE, wait_links};
use integration::skip::case;
use integration::topology::Family;
use integration::wait;

use super::channels::duo;

/// The address comes this often and goes again, with one line in the log.
const TIMES: usize = 3;

/// How often the log says that a link waits.
fn warnings(duo: &LaneDuo, missing: &str) -> usize {
    duo.alpha.log().lines().filter(|line| line.contains(missing)).count()
}

/// A link whose address comes and goes, over one IP version.
fn link_waits(family: Family) {
    case(|| {
        let lanes = Lanes::plain(family, 2)?;
        let address = lanes.lane(1)?.alpha;
        let interface = lanes.lane(1)?.interface.clone();
        lanes.host(Side::Alpha).ip(&["link", "set", &interface, "mtu", "1400"])?;
        // There is always a way to the far end, but with an address that is none of the host's there.
        let near = lanes.lane(0)?;
        let (gateway, first) = (near.beta.to_string(), near.interface.clone());
        lanes.host(Side::Alpha).ip(&["route", "add", "default", "via", &gateway, "dev", &first])?;
        lanes.cut(1, Cut::Address)?;
        let config = lanes.config();
        let begun = Instant::now();
        let duo = LaneDuo::start(lanes, &config)?;
        let missing = format!("waiting: no interface has {address}");

        for round in 0..TIMES {
            wait_links(&duo.alpha, 2, "the reason", PATIENCE, |links| {
                links[0].is_up() && links[1].text("reason") == missing && !links[1].is_up()
            })?;
            let text = duo.alpha.tapd(&["show", "links"])?;
            ensure!(text.contains(&format!("; {missing}")), "{text}");
            nothing_leaves(&duo, address)?;
            // What is held back is no error of the path, which would be said of each peer. Later the
            // kernel may be quicker than its news.
            let log = duo.alpha.log();
            ensure!(round > 0 || !log.contains("Invalid argument"), "{log}");
            // At the start, and once more when it goes: never more within a minute.
            let said = warnings(&duo, &missing);
            let minutes = begun.elapsed().as_secs() as usize / 60;
            let most = (round + 1).min(2 + minutes);
            ensure!((1..=most).contains(&said), "{said} lines in round {round}");
            ensure!(duo.alpha.log().contains(&format!("run: ip addr add {address}/LENGTH")));

            let file = duo.dir.config_file().to_string_lossy().into_owned();
            let tapd = built_binary("tapd")?.to_string_lossy().into_owned();
            let mut check = duo.alpha.netns().command(&tapd);
            let checked = run_command(check.args(["check", "--node", "alpha", &file]))?;
            let warning = format!("warning: link 1: no interface has {address}; run: ip addr add");
            ensure!(checked.contains(&warning) && checked.lines().count() == 2, "{checked}");

            duo.lanes.heal(1, Cut::Address)?;
            duo.wait_all_up()?;
            let row = wait_links(&duo.alpha, 2, "the MTU", PATIENCE, |links| {
                links[1].number("uplink_mtu") == 1400
            })?;
            ensure!(!row[1].text("reason").contains("waiting"), "{row:?}");
            duo.lanes.cut(1, Cut::Address)?;
        }
        wait::until("the address to be told of", Duration::from_secs(5), || {
            duo.alpha.log().contains(&format!("uplink 1: {address} is there now"))
        })
    });
}

/// Whatever an attachment without its address has to send is dropped and counted.
fn nothing_leaves(duo: &LaneDuo, address: IpAddr) -> Result<()> {
    let counters = || -> Result<(u64, u64)> {
        let shown = duo.alpha.show("counters")?;
        let ports = shown["ports"].as_object().ok_or_else(|| anyhow!("no ports: {shown}"))?;
        let one = ports.iter().find(|(name, _)| name.contains(&address.to_string()));
        let (_, row) = one.ok_or_else(|| anyhow!("no port of {address}: {shown}"))?;
        let count = |name: &str| row[name].as_u64().ok_or_else(|| anyhow!("no {name}: {row}"));
        Ok((count("tx_datagrams")?, count("tx_dropped_no_address")?))
    };
    let (sent, dropped) = counters()?;
    wait::until("more to be held back", PATIENCE, || {
        counters().is_ok_and(|(_, now)| now > dropped)
    })?;
    let (sent_since, _) = counters()?;
    ensure!(sent_since == sent, "{sent_since} datagrams left, {sent} before");
    Ok(())
}

#[test]
fn api_link_waits_for_its_address_and_says_so() {
    link_waits(Family::V4);
}

#[test]
fn api_link_waits_for_its_ipv6_address_and_says_so() {
    link_waits(Family::V6);
}

#[test]
fn api_send_says_what_it_waits_for() {
    case(|| {
        let mut duo = duo()?;
        // Nobody waits for a name that was mistyped.
        for words in [
            &["send", "messages", "--to", "gamma"][..],
            &["forward", "streams", "--listen", "127.0.0.1:0", "--to", "gamma"],
        ] {
            let output = duo.alpha.tapd_output(words)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(6), "{words:?}: {said}");
            ensure!(said.contains("node gamma is no peer of channel"), "{said}");
            ensure!(said.contains("its peers: beta (2)"), "{said}");
        }
        duo.beta.stop(&["tap100"])?;
        wait::until("beta to be down", PATIENCE, || !duo.alpha.peer_is_up(2))?;
        for channel in ["messages", "streams"] {
            let words = ["send", channel, "--to", "beta", "--timeout", "3"];
            let output = duo.alpha.tapd_output(&words)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(7), "{channel}: {said}");
            let lines: Vec<_> = said.lines().collect();
            let told = "tapd: waiting for node beta: no link is up";
            ensure!(lines.len() == 2 && lines[0] == told, "{channel}: {said}");
            ensure!(lines[1].starts_with("tapd: gave up after 3 s"), "{channel}: {said}");
        }
        Ok(())
    });
}
