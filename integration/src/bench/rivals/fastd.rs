//! fastd with a tap: Salsa20/12 with UMAC, the fastest of its methods that seal.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Daemon, ETHERNET, Need, OUTER, Scratch, Site, Up, version_line};

/// Type, flags, nonce and tag, bytes.
const OVERHEAD: u32 = 24;
/// The method.
const METHOD: &str = "salsa2012+umac";

/// What it cannot do without.
pub const NEEDS: &[Need] = &[Need::Debian { proof: "fastd", package: "fastd" }];

/// Two hosts, each the other's only peer.
///
/// # Errors
/// It does not work here.
pub fn set_up(site: &Site<'_>) -> Result<Up> {
    let version = format!("{} ({METHOD})", version_line(Path::new("fastd"), "--version")?);
    let scratch = Scratch::new()?;
    let mut keys = Vec::new();
    for host in [1, 2] {
        scratch.shell(&format!("fastd --generate-key > {host}.keys"))?;
        let text = scratch.read(&format!("{host}.keys"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(|key| key.trim().to_owned()).context("fastd made no key")
        };
        keys.push((field("Secret:")?, field("Public:")?));
    }
    let mtu = site.underlay_mtu - OUTER - OVERHEAD - ETHERNET;
    let interface = format!("fastd{}", site.number);
    let mut daemons = Vec::new();
    let mut hosts = site.hosts();
    // The second host only answers, and is up before the first one begins: fastd does not try
    // again for 20 s, and where both begin at once the sessions may not match.
    hosts.reverse();
    for ((host, netns, peer), ((secret, _), (_, public))) in
        hosts.into_iter().zip(keys.iter().rev().zip(&keys))
    {
        let (port, own) = (site.port(), Site::underlay(host));
        let remote = match host {
            1 => format!("remote {}:{port};", Site::underlay(peer)),
            _ => String::new(),
        };
        scratch.write(
            &format!("{host}.conf"),
            format!(
                "mode tap; interface \"{interface}\"; method \"{METHOD}\"; mtu {mtu};\n\
                 bind {own}:{port}; secret \"{secret}\";\n\
                 peer \"other\" {{ key \"{public}\"; {remote} }}\n"
            ),
        )?;
        let mut command = netns.command("fastd");
        command.args(["--config", &format!("{host}.conf")]);
        let mut daemon = Daemon::start(&scratch, &format!("fastd{host}"), &mut command)?;
        daemon.wait("fastd to listen", || netns.ip(&["link", "show", &interface]).is_ok())?;
        daemons.push(daemon);
    }
    let interfaces = [interface.clone(), interface];
    let mut up = Up { version, interfaces, daemons, _scratch: scratch };
    site.join(&mut up, None)?;
    Ok(up)
}
