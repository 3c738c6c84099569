//! The guests themselves, without tapd: DPDK's own test program between them.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::command::{Running, is_installed};
use integration::guest::{Guest, GuestOptions, GuestPort, Socket};
use integration::skip::{case, skip};
use integration::{sys, wait};

const TESTPMD: &str = "dpdk-testpmd";

/// A wire between two vhost-user sockets; with `connects` it does not make the second one.
fn testpmd(prefix: &str, sockets: [&str; 2], connects: bool) -> Result<Running> {
    if !is_installed(TESTPMD) {
        return Err(skip(format!("no {TESTPMD}: apt-get install dpdk-dev")));
    }
    let mut command = Command::new(TESTPMD);
    command.args(["--no-huge", "-m", "512", "--no-shconf", "--no-pci", "--no-telemetry"]);
    command.args(["--file-prefix", prefix, "--lcores", "0@0,1@1"]);
    let client = if connects { ",client=1" } else { "" };
    command.args(["--vdev", &format!("net_vhost0,iface={}", sockets[0])]);
    command.args(["--vdev", &format!("net_vhost1,iface={}{client}", sockets[1])]);
    // Without a terminal it ends at once, unless it prints statistics.
    command.args(["--", "--total-num-mbufs=16384", "--stats-period", "60", "--forward-mode=io"]);
    sys::die_with_parent(&mut command);
    Running::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

#[test]
fn harness_two_guests_talk_over_testpmd() {
    case(|| {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let sockets = [path("one.sock"), path("two.sock")];
        let mut wire = testpmd("tapdtest-wire", [&sockets[0], &sockets[1]], true)?;
        wait::until("testpmd's socket", Duration::from_secs(10), || {
            std::path::Path::new(&sockets[0]).exists()
        })?;
        let one = GuestOptions::new("one", GuestPort::new(&sockets[0], 1));
        let port = GuestPort { socket: Socket::Qemus, ..GuestPort::new(&sockets[1], 2) };
        let two = GuestOptions::new("two", port);
        let (mut one, mut two) = (Guest::start(&one)?, Guest::start(&two)?);
        one.wait_booted()?;
        two.wait_booted()?;
        one.set_address(0, "10.9.0.1/24")?;
        two.set_address(0, "10.9.0.2/24")?;
        one.ping_until_answer("10.9.0.2", Duration::from_secs(20))?;
        one.ping("10.9.0.2", 5, 1400)?;
        let (status, _) = one.output("false", Duration::from_secs(5))?;
        ensure!(status == 1, "false gives {status}");
        let sum = two.make_file("noise", 4)?;
        two.serve("noise")?;
        let got = one.get_file("10.9.0.2", Duration::from_secs(60))?;
        ensure!(got == sum, "{got} arrived of {sum}");
        ensure!(wire.ended().is_none(), "testpmd ended");
        two.reboot()?;
        two.set_address(0, "10.9.0.2/24")?;
        one.start_pinging("10.9.0.2", 100)?;
        one.ping("10.9.0.2", 10, 56)?;
        let gap = one.stop_pinging()?;
        ensure!(gap == 0, "{gap} pings in a row without an answer");
        one.power_off()?;
        two.power_off()
    });
}
