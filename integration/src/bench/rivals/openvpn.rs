//! OpenVPN with a tap, over UDP, AES-256-GCM, two throw-away certificates that know each other by
//! their fingerprints.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Daemon, ETHERNET, Need, OUTER, Scratch, Site, Up, version_line};

/// Opcode and peer id, packet id, tag, bytes.
const OVERHEAD: u32 = 4 + 4 + 16;

/// What it cannot do without.
pub const NEEDS: &[Need] = &[
    Need::Debian { proof: "openvpn", package: "openvpn" },
    Need::Debian { proof: "openssl", package: "openssl" },
];

/// Two hosts, point to point.
///
/// # Errors
/// It does not work here.
pub fn set_up(site: &Site<'_>) -> Result<Up> {
    let version = version_line(Path::new("openvpn"), "--version")?;
    // "OpenVPN 2.6.14 x86_64-pc-linux-gnu [SSL (OpenSSL)] ..."
    let version = version.split(' ').take(2).collect::<Vec<_>>().join(" ") + " (AES-256-GCM)";
    let scratch = Scratch::new()?;
    for host in [1, 2] {
        scratch.shell(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
             -subj /CN=host{host} -keyout {host}.key -out {host}.crt; \
             openssl x509 -fingerprint -sha256 -noout -in {host}.crt > {host}.fingerprint"
        ))?;
    }
    let mtu = site.underlay_mtu - OUTER - OVERHEAD - ETHERNET;
    let interfaces = [1, 2].map(|_| format!("ovpn{}", site.number));
    let mut daemons = Vec::new();
    for ((host, netns, peer), interface) in site.hosts().into_iter().zip(&interfaces) {
        let (own, other) = (Site::underlay(host).to_string(), Site::underlay(peer).to_string());
        let fingerprint = scratch.read(&format!("{peer}.fingerprint"))?;
        let fingerprint = fingerprint.split('=').nth(1).context("openssl told no fingerprint")?;
        let mut command = netns.command("openvpn");
        command.args(["--dev", interface, "--dev-type", "tap", "--proto", "udp4"]);
        command.args(["--local", &own, "--remote", &other, "--port", &site.port().to_string()]);
        command.args(["--cert", &format!("{host}.crt"), "--key", &format!("{host}.key")]);
        command.args(["--peer-fingerprint", fingerprint, "--data-ciphers", "AES-256-GCM"]);
        command.args(if host == 1 {
            &["--tls-server", "--dh", "none"][..]
        } else {
            &["--tls-client"][..]
        });
        // No clamping and no pieces: the tap's MTU fits the path.
        command.args(["--tun-mtu", &mtu.to_string(), "--mssfix", "0", "--fast-io"]);
        command.args(["--sndbuf", "4194304", "--rcvbuf", "4194304", "--txqueuelen", "1000"]);
        daemons.push(Daemon::start(&scratch, &format!("openvpn{host}"), &mut command)?);
    }
    let mut up = Up { version, interfaces, daemons, _scratch: scratch };
    site.join(&mut up, Some(mtu))?;
    Ok(up)
}
