//! tinc 1.0 as a switch: AES-256-CBC with HMAC-SHA-256.

use std::path::Path;

use anyhow::Result;

use super::{Daemon, ETHERNET, Need, OUTER, Scratch, Site, Up, version_line};

/// Sequence number, padding of a block of 16, authentication code, bytes.
const OVERHEAD: u32 = 4 + 16 + 16;

/// What it cannot do without.
pub const NEEDS: &[Need] = &[Need::Debian { proof: "tincd", package: "tinc" }];

/// Two hosts, each connecting to the other.
///
/// # Errors
/// It does not work here.
pub fn set_up(site: &Site<'_>) -> Result<Up> {
    let version = version_line(Path::new("tincd"), "--version")? + " (aes-256-cbc, sha256)";
    let scratch = Scratch::new()?;
    let interfaces = [1, 2].map(|_| format!("tinc{}", site.number));
    for ((host, _, peer), interface) in site.hosts().into_iter().zip(&interfaces) {
        let (address, port) = (Site::underlay(host), site.port());
        scratch.shell(&format!("mkdir -p {host}/hosts"))?;
        scratch.write(
            &format!("{host}/tinc.conf"),
            format!(
                "Name = host{host}\nMode = switch\nDeviceType = tap\nInterface = {interface}\n\
                 AddressFamily = ipv4\nBindToAddress = {address} {port}\nConnectTo = host{peer}\n"
            ),
        )?;
        scratch.write(
            &format!("{host}/hosts/host{host}"),
            format!(
                "Address = {address}\nPort = {port}\nCipher = aes-256-cbc\nDigest = sha256\n\
                 MACLength = 16\nCompression = 0\n"
            ),
        )?;
        scratch.shell(&format!("tincd --config={host} --generate-keys=2048 < /dev/null"))?;
    }
    scratch.shell("cp 1/hosts/host1 2/hosts; cp 2/hosts/host2 1/hosts")?;
    let mut daemons = Vec::new();
    for (host, netns, _) in site.hosts() {
        let mut command = netns.command("tincd");
        command.args(["--no-detach", &format!("--config={host}")]);
        command.arg(format!("--pidfile={}", scratch.path(&format!("{host}.pid")).display()));
        daemons.push(Daemon::start(&scratch, &format!("tinc{host}"), &mut command)?);
    }
    let mut up = Up { version, interfaces, daemons, _scratch: scratch };
    site.join(&mut up, Some(site.underlay_mtu - OUTER - OVERHEAD - ETHERNET))?;
    Ok(up)
}
