//! vpncloud: a mesh of taps in Rust, AES-256-GCM by ring.

use anyhow::Result;

use super::{Daemon, Need, Scratch, Site, Up, crate_program, version_line};
use crate::topology::UNDERLAY;

/// What it takes off a path of 1500 bytes, as it sets the MTU itself there, bytes.
const OVERHEAD: u32 = 1500 - 1413;

/// What it cannot do without.
pub const NEEDS: &[Need] =
    &[Need::Crate { program: "vpncloud", name: "vpncloud", version: "2.3.0" }];

/// Two hosts as a switch.
///
/// # Errors
/// It does not work here.
pub fn set_up(site: &Site<'_>) -> Result<Up> {
    let path = crate_program("vpncloud")?;
    let version = version_line(&path, "--version")? + " (aes256)";
    let scratch = Scratch::new()?;
    let interfaces = [1, 2].map(|_| format!("vpnc{}", site.number));
    let mut daemons = Vec::new();
    for ((host, netns, peer), interface) in site.hosts().into_iter().zip(&interfaces) {
        // It panics without a route to the Internet, by which it guesses its own address. Nothing
        // is sent there, and the cable ends at the other host.
        netns.ip(&["route", "replace", "default", "dev", UNDERLAY])?;
        let listen = format!("{}:{}", Site::underlay(host), site.port());
        let other = format!("{}:{}", Site::underlay(peer), site.port());
        let mut command = netns.command(&path);
        command.args(["--type", "tap", "--mode", "switch", "--device", interface]);
        command.args(["--algorithm", "aes256", "--password", "of this bench alone"]);
        command.args(["--listen", &listen, "--peer", &other, "--no-port-forwarding"]);
        daemons.push(Daemon::start(&scratch, &format!("vpncloud{host}"), &mut command)?);
    }
    let mut up = Up { version, interfaces, daemons, _scratch: scratch };
    site.join(&mut up, Some(site.underlay_mtu - OVERHEAD))?;
    Ok(up)
}
