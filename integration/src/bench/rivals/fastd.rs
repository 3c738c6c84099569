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
    let interfaces = [1, 2].map(|_| format!("fastd{}", site.number));
    let mut daemons = Vec::new();
    let others = keys.iter().rev();
    for (((host, netns, peer), interface), ((secret, _), (_, public))) in
        site.hosts().into_iter().zip(&interfaces).zip(keys.iter().zip(others))
    {
        let (port, own) = (site.port(), Site::underlay(host));
        // One of them begins: where both do at the same moment, no session comes of it.
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
        daemons.push(Daemon::start(&scratch, &format!("fastd{host}"), &mut command)?);
    }
    let mut up = Up { version, interfaces, daemons, _scratch: scratch };
    site.join(&mut up, None)?;
    Ok(up)
}
