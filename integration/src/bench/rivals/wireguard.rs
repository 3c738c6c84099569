//! WireGuard in user space, over a tun: it carries IP packets, not frames. With the kernel's vxlan
//! inside it becomes what tapd is: frames, sealed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Daemon, Need, Scratch, Site, Up, crate_program, version_line};
use crate::command::run;

/// Of an outer IPv4 and UDP header, WireGuard's own header, counter and tag, bytes.
const OVERHEAD: u32 = 20 + 8 + 32;
/// Of a vxlan packet: Ethernet, IPv4, UDP and vxlan headers, bytes.
const VXLAN_OVERHEAD: u32 = 14 + 20 + 8 + 8;
/// Where all of them have their control sockets, which `wg` asks for.
const SOCKETS: &str = "/var/run/wireguard";

const WG: Need = Need::Debian { proof: "wg", package: "wireguard-tools" };

/// A program that does WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// The original, in Go.
    WireguardGo,
    /// Mullvad's, in Rust.
    Gotatun,
    /// Cloudflare's, in Rust.
    Boringtun,
}

impl Program {
    /// What it cannot do without.
    #[must_use]
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::WireguardGo => {
                &[WG, Need::Debian { proof: "wireguard-go", package: "wireguard-go" }]
            }
            Self::Gotatun => {
                &[WG, Need::Crate { program: "gotatun", name: "gotatun-cli", version: "0.10.2" }]
            }
            Self::Boringtun => &[
                WG,
                Need::Crate { program: "boringtun-cli", name: "boringtun-cli", version: "0.7.1" },
            ],
        }
    }

    /// Where it is, and a name for its interfaces.
    fn path(self) -> Result<(PathBuf, &'static str)> {
        Ok(match self {
            Self::WireguardGo => ("wireguard-go".into(), "wgo"),
            Self::Gotatun => (crate_program("gotatun")?, "gota"),
            Self::Boringtun => (crate_program("boringtun-cli")?, "bori"),
        })
    }
}

/// Two hosts, each the other's only peer.
///
/// # Errors
/// It does not work here.
pub fn set_up(program: Program, site: &Site<'_>) -> Result<Up> {
    let mut up = start(program, site)?;
    site.join(&mut up, Some(site.underlay_mtu - OVERHEAD))?;
    Ok(up)
}

/// The kernel's vxlan with WireGuard's interface as its underlay.
///
/// # Errors
/// It does not work here.
pub fn set_up_with_vxlan(program: Program, site: &Site<'_>) -> Result<Up> {
    let mut up = start(program, site)?;
    // Addresses of the tunnel; the overlay's are those of the vxlan inside.
    let tunnel = |host: u8| format!("172.16.{}.{host}", site.number);
    let wireguard_mtu = site.underlay_mtu - OVERHEAD;
    let id = site.number.to_string();
    let vxlan = format!("vx{id}");
    for ((host, netns, peer), interface) in site.hosts().into_iter().zip(&up.interfaces) {
        netns.ip(&["link", "set", interface, "mtu", &wireguard_mtu.to_string(), "up"])?;
        netns.add_address(interface, &format!("{}/24", tunnel(host)))?;
        let (local, remote) = (tunnel(host), tunnel(peer));
        let port = (site.port() + 1).to_string();
        let kind = ["link", "add", &vxlan, "type", "vxlan", "id", &id, "dstport", &port];
        let ends = ["local", &local, "remote", &remote, "dev", interface];
        netns.ip(&[&kind[..], &ends[..]].concat()).context("the kernel has no vxlan")?;
    }
    up.interfaces = [vxlan.clone(), vxlan];
    up.version += ", kernel vxlan inside";
    site.join(&mut up, Some(wireguard_mtu - VXLAN_OVERHEAD))?;
    Ok(up)
}

/// Daemons, keys and peers, without addresses.
fn start(program: Program, site: &Site<'_>) -> Result<Up> {
    let (path, prefix) = program.path()?;
    let argument = if program == Program::WireguardGo { "--version" } else { "-V" };
    let version = version_line(&path, argument)?;
    let scratch = Scratch::new()?;
    let mut daemons = Vec::new();
    // Control sockets are the machine's: our process id keeps two runs apart.
    let pid = std::process::id();
    let interfaces = [1, 2].map(|host| format!("{prefix}{pid}-{}{host}", site.number % 100));
    for ((host, netns, _), interface) in site.hosts().into_iter().zip(&interfaces) {
        scratch.shell(&format!("wg genkey > {host}.key; wg pubkey < {host}.key > {host}.pub"))?;
        let mut command = netns.command(&path);
        // Stays root, as tapd does in the benches.
        command.envs([("WG_SUDO", "true"), ("LOG_LEVEL", "error"), ("NO_COLOR", "1")]);
        command.args(["-f", interface]);
        let socket = Path::new(SOCKETS).join(format!("{interface}.sock"));
        let name = format!("{prefix}{host}");
        let mut daemon = Daemon::start(&scratch, &name, &mut command)?.leaving(socket.clone());
        daemon.wait("the control socket of WireGuard", || socket.exists())?;
        daemons.push(daemon);
    }
    let port = site.port().to_string();
    for ((host, _, peer), interface) in site.hosts().into_iter().zip(&interfaces) {
        let key = scratch.path(&format!("{host}.key"));
        let public = scratch.read(&format!("{peer}.pub"))?;
        let endpoint = format!("{}:{port}", Site::underlay(peer));
        let own = ["set", interface, "listen-port", &port, "private-key", &key.to_string_lossy()];
        let other = ["peer", &public, "allowed-ips", "0.0.0.0/0", "endpoint", &endpoint];
        run("wg", &[&own[..], &other[..]].concat())?;
    }
    Ok(Up { version, interfaces, daemons, _scratch: scratch })
}
