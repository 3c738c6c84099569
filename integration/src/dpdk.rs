//! Nodes on DPDK ports: what they need of the machine, and how their links are written.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use serde_json::Value;

use crate::command::built_binary;
use crate::config::NodeEntry;
use crate::netns::Netns;
use crate::node::Node;
use crate::skip;

/// Name of the shim's file.
const SHIM: &str = "libtapd-dpdk.so.1";
/// Where it may be named.
const SHIM_VARIABLE: &str = "TAPD_DPDK_SHIM";

/// `[dpdk]` for machines without hugepages and with little memory.
pub const SMALL: &str = "[dpdk]\nmemory_mb = 64\nhugepages = false\n";

/// Skips the running test where tapd would not find its shim.
///
/// # Errors
/// The skip.
pub fn require() -> Result<()> {
    shim().map(drop)
}

/// The shim's file.
///
/// # Errors
/// A skip: it was not built.
pub fn shim() -> Result<PathBuf> {
    let beside = built_binary("tapd")?.with_file_name(SHIM);
    let named = std::env::var_os(SHIM_VARIABLE).map(PathBuf::from);
    if let Some(path) = named.into_iter().chain([beside.clone()]).find(|path| path.exists()) {
        return Ok(path);
    }
    let folder = beside.parent().unwrap_or(&beside).display();
    Err(skip::skip(format!("no DPDK shim: fastpath/dpdk-sys/build-shim {folder} builds it")))
}

/// One end of a link, as it is written in a node's `links`.
#[derive(Debug, Clone)]
pub struct End {
    /// Name of the link.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its DPDK port, as the configuration names it; the kernel's without it.
    pub port: Option<String>,
    /// More keys of `dpdk`, each with a comma in front.
    pub extra: String,
}

impl End {
    /// An end on the kernel.
    #[must_use]
    pub fn kernel(name: &str, address: IpAddr) -> Self {
        Self { name: name.to_owned(), address, port: None, extra: String::new() }
    }

    /// An end on a DPDK port over an interface of the kernel.
    #[must_use]
    pub fn dpdk(name: &str, address: IpAddr, interface: &str) -> Self {
        Self::port(name, address, &format!("net_af_packet,iface={interface}"))
    }

    /// An end on this DPDK port.
    #[must_use]
    pub fn port(name: &str, address: IpAddr, port: &str) -> Self {
        Self { port: Some(port.to_owned()), ..Self::kernel(name, address) }
    }

    fn toml(&self) -> String {
        let Self { name, address, port, extra } = self;
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        let dpdk = port.as_ref().map_or_else(String::new, |port| {
            format!(", dpdk = {{ port = {port:?}, prefix = {prefix}{extra} }}")
        });
        format!("{{ name = {name:?}, address = \"{address}\"{dpdk} }}")
    }
}

/// Gives a node these links.
pub fn set_links(node: &mut NodeEntry, ends: &[End]) {
    let list: Vec<_> = ends.iter().map(End::toml).collect();
    node.addresses.clear();
    node.extra = format!("links = [{}]", list.join(", "));
}

/// Takes the kernel's addresses from an interface, which from now on belongs to a DPDK port: the
/// kernel would answer beside it.
///
/// # Errors
/// `ip` refused.
pub fn take_over(netns: &Netns, interface: &str) -> Result<()> {
    netns.sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
    netns.ip(&["addr", "flush", "dev", interface]).map(|_| ())
}

/// A row of `tapd show ports` by its port's name.
///
/// # Errors
/// The daemon does not answer, or has no such port.
pub fn port(node: &Node, name: &str) -> Result<Value> {
    let ports = node.show("ports")?;
    let list = ports.as_array().map(Vec::as_slice).unwrap_or_default();
    let found = list.iter().find(|port| port["port"] == name);
    found.cloned().ok_or_else(|| anyhow!("no port {name:?} in {ports}"))
}

/// A counter of a port, of `tapd show counters`.
///
/// # Errors
/// The daemon does not answer, or has no such counter.
pub fn counter(node: &Node, port: &str, name: &str) -> Result<u64> {
    let counters = node.show("counters")?;
    let count = counters["ports"][port][name].as_u64();
    count.ok_or_else(|| anyhow!("no {name} of {port:?} in {}", counters["ports"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_written_as_the_configuration_takes_them() {
        let mut node = NodeEntry {
            id: 1,
            name: "alpha".into(),
            addresses: vec![[192, 0, 2, 1].into()],
            extra: String::new(),
        };
        let fast = End::dpdk("fast", [192, 0, 2, 1].into(), "under0");
        let fast = End { extra: ", mtu = 1400".into(), ..fast };
        set_links(&mut node, &[fast, End::kernel("slow", [198, 51, 100, 1].into())]);
        assert!(node.addresses.is_empty());
        assert_eq!(
            node.extra,
            "links = [{ name = \"fast\", address = \"192.0.2.1\", dpdk = { port = \
             \"net_af_packet,iface=under0\", prefix = 24, mtu = 1400 } }, \
             { name = \"slow\", address = \"198.51.100.1\" }]"
        );
    }
}
