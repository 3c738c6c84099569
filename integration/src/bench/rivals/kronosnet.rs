//! kronosnet through a tap, by a small program of ours (`integration/rivals/knet-tap.c`): libknet
//! has none that can be had without the configuration of a cluster. AES-256 with HMAC-SHA-256 by
//! its openssl plugin.

use std::process::Command;

use anyhow::Result;

use super::{Daemon, Need, Scratch, Site, Up};
use crate::command::run_command;
use crate::stats::Random;

/// The program's source.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rivals/knet-tap.c");
/// Of a key, bytes; libknet wants at least 128.
const KEY_LEN: usize = 256;

/// What it cannot do without.
pub const NEEDS: &[Need] = &[
    Need::Debian { proof: "cc", package: "build-essential" },
    Need::Debian { proof: "/usr/include/libknet.h", package: "libknet-dev" },
];

/// Two hosts on one link.
///
/// # Errors
/// It does not work here.
pub fn set_up(site: &Site<'_>) -> Result<Up> {
    let scratch = Scratch::new()?;
    let program = scratch.path("knet-tap");
    run_command(Command::new("cc").args(["-O2", "-o"]).arg(&program).args([SOURCE, "-lknet"]))?;
    // Keeps nothing secret: the key lives as long as the run.
    let mut key = [0; KEY_LEN];
    Random::new(std::process::id().into()).fill(&mut key);
    scratch.write("key", key)?;
    let interfaces = [1, 2].map(|_| format!("knet{}", site.number));
    let mut daemons = Vec::new();
    for ((host, netns, peer), interface) in site.hosts().into_iter().zip(&interfaces) {
        let (own, other) = (Site::underlay(host).to_string(), Site::underlay(peer).to_string());
        let mut command = netns.command(&program);
        command.args([&host.to_string(), interface, &own, &other]);
        command.args([&site.port().to_string(), "key"]);
        daemons.push(Daemon::start(&scratch, &format!("knet{host}"), &mut command)?);
    }
    let mut up = Up { version: version(), interfaces, daemons, _scratch: scratch };
    // The program sets the MTU as soon as libknet knows it.
    site.join(&mut up, None)?;
    Ok(up)
}

/// libknet does not tell its version; the package does.
fn version() -> String {
    let mut query = Command::new("dpkg-query");
    let version = run_command(query.args(["-W", "-f", "${Version}", "libknet-dev"]));
    let version = version.unwrap_or_else(|_| "of unknown version".to_owned());
    format!("libknet {version} (openssl aes256 sha256)")
}
