//! The cluster's configuration file, written by tests.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::cleanup::{self, Leftover};
use crate::command::{built_binary, run};
use crate::topology::Family;

/// One `[[nodes]]` entry.
#[derive(Debug, Clone)]
pub struct NodeEntry {
    /// 1..65535.
    pub id: u16,
    /// What `--node` takes.
    pub name: String,
    /// Underlay addresses, one per link.
    pub addresses: Vec<IpAddr>,
    /// More lines of TOML for this node. A node without `addresses` has its `links` here.
    pub extra: String,
}

/// One `[[networks]]` entry.
#[derive(Debug, Clone)]
pub struct NetworkEntry {
    /// 24-bit network id.
    pub vni: u32,
    /// Name of the tap.
    pub tap: String,
    /// Subnets out of which every node gets the address base + node id.
    pub subnets: Vec<String>,
    /// More lines of TOML for this network.
    pub extra: String,
}

impl NetworkEntry {
    /// The network that most tests use: 10.VNI.0.0/24 and fd00:VNI::/64 on tapVNI.
    #[must_use]
    pub fn new(vni: u32) -> Self {
        Self {
            vni,
            tap: format!("tap{vni}"),
            subnets: vec![format!("10.{vni}.0.0/24"), format!("fd00:{vni}::/64")],
            extra: String::new(),
        }
    }

    /// The same without addresses, for tests that write frames of their own.
    #[must_use]
    pub fn without_addresses(vni: u32) -> Self {
        Self { subnets: Vec::new(), ..Self::new(vni) }
    }
}

/// The whole file.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Base UDP port.
    pub port: u16,
    /// Cipher preference list.
    pub ciphers: Vec<String>,
    /// Allows the cipher `none`.
    pub insecure: bool,
    /// Whether `next.key` is named as the second accepted key.
    pub next_key: bool,
    /// Packet threads.
    pub workers: u8,
    /// Log filter.
    pub log: String,
    /// More lines of TOML for `[cluster]`.
    pub cluster_extra: String,
    /// More lines of TOML for `[daemon]`.
    pub daemon_extra: String,
    /// The nodes.
    pub nodes: Vec<NodeEntry>,
    /// The networks.
    pub networks: Vec<NetworkEntry>,
    /// More sections of TOML, `[[links]]` and `[detector]` say.
    pub sections: String,
}

/// Names of the first nodes; node n of a test cluster is called `NODE_NAMES[n - 1]`.
pub const NODE_NAMES: [&str; 8] =
    ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"];

impl ClusterConfig {
    /// `count` sealed nodes (1 to 8) on the test underlay with network 100.
    #[must_use]
    pub fn new(family: Family, count: u8) -> Self {
        let nodes = (1..=count).zip(NODE_NAMES).map(|(id, name)| Self::node(family, id, name));
        Self {
            port: 26026,
            ciphers: vec!["aes-256-gcm".to_owned()],
            insecure: false,
            next_key: false,
            workers: 1,
            log: "info".to_owned(),
            cluster_extra: String::new(),
            daemon_extra: String::new(),
            nodes: nodes.collect(),
            networks: vec![NetworkEntry::new(100)],
            sections: String::new(),
        }
    }

    /// The entry of the node with this number.
    #[must_use]
    pub fn node(family: Family, id: u8, name: &str) -> NodeEntry {
        let addresses = vec![family.address(id)];
        NodeEntry { id: id.into(), name: name.to_owned(), addresses, extra: String::new() }
    }

    /// The same cluster with frames in clear.
    #[must_use]
    pub fn in_clear(mut self) -> Self {
        self.ciphers = vec!["none".to_owned()];
        self.insecure = true;
        self
    }

    /// The same cluster with one network that has no addresses.
    #[must_use]
    pub fn without_addresses(mut self) -> Self {
        self.networks = vec![NetworkEntry::without_addresses(100)];
        self
    }

    /// The file's text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let Self { port, ciphers, insecure, workers, log, cluster_extra, daemon_extra, .. } = self;
        let next = if self.next_key { "next_key_file = \"next.key\"\n" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[cluster]\nkey_file = \"cluster.key\"\n{next}ciphers = {ciphers:?}\n\
             insecure = {insecure}\nport = {port}\n{cluster_extra}\n\
             [daemon]\nworkers = {workers}\nlog = {log:?}\n{daemon_extra}\n"
        );
        for NodeEntry { id, name, addresses, extra } in &self.nodes {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "[[nodes]]\nid = {id}\nname = {name:?}");
            if !addresses.is_empty() {
                let _ = writeln!(text, "addresses = {addresses:?}");
            }
            let _ = writeln!(text, "{extra}");
        }
        for NetworkEntry { vni, tap, subnets, extra } in &self.networks {
            let _ = write!(
                text,
                "[[networks]]\nvni = {vni}\ntap = {tap:?}\nsubnets = {subnets:?}\n{extra}\n"
            );
        }
        text.push_str(&self.sections);
        text
    }
}

/// A temporary directory with the configuration and key files of a cluster; all nodes of a test
/// read the same files, as they would after an administrator copied them.
#[derive(Debug)]
pub struct ClusterDir {
    dir: TempDir,
}

impl ClusterDir {
    /// A directory with `config` in it and a fresh key.
    ///
    /// # Errors
    /// The files cannot be written, or `tapd keygen` failed.
    pub fn new(config: &ClusterConfig) -> Result<Self> {
        Self::from_text(&config.to_toml())
    }

    /// A directory with the given configuration text in it and a fresh key, `cluster.key`.
    ///
    /// # Errors
    /// The files cannot be written, or `tapd keygen` failed.
    pub fn from_text(text: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tapdtest-").tempdir()?;
        cleanup::register(Leftover::Directory(dir.path().to_owned()));
        let this = Self { dir };
        this.generate_key("cluster.key")?;
        this.write_text(text)?;
        Ok(this)
    }

    /// Writes (or overwrites) the configuration.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, config: &ClusterConfig) -> Result<()> {
        self.write_text(&config.to_toml())
    }

    /// Writes (or overwrites) the configuration with any text.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_text(&self, text: &str) -> Result<()> {
        fs::write(self.config_file(), text).context("writing the configuration")
    }

    /// Creates a key file as an administrator would, with `tapd keygen`.
    ///
    /// # Errors
    /// The file exists, or `tapd keygen` failed.
    pub fn generate_key(&self, name: &str) -> Result<()> {
        let tapd = built_binary("tapd")?;
        let file = self.path(name);
        run(&tapd.to_string_lossy(), &["keygen", &file.to_string_lossy()]).map(|_| ())
    }

    /// Copies a key file of another cluster.
    ///
    /// # Errors
    /// One of the files cannot be read or written.
    pub fn replace_key(&self, name: &str, text: &str) -> Result<()> {
        let _ = fs::remove_file(self.path(name));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(name))?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(())
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.path("cluster.toml")
    }

    /// A file in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for ClusterDir {
    fn drop(&mut self) {
        cleanup::unregister(&Leftover::Directory(self.dir.path().to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_lines_stand_in_their_sections() {
        let mut config = ClusterConfig::new(Family::V4, 1);
        config.cluster_extra = "policy = \"active\"\n".to_owned();
        config.nodes[0].addresses.clear();
        config.nodes[0].extra = "links = []\n".to_owned();
        config.sections = "[detector]\nhold_s = 1\n".to_owned();
        let text = config.to_toml();
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part}:\n{text}"));
        assert!(place("[cluster]") < place("policy") && place("policy") < place("[daemon]"));
        assert!(place("[[nodes]]") < place("links") && place("links") < place("[[networks]]"));
        assert!(place("[detector]") > place("[[networks]]") && !text.contains("addresses"));
    }

    #[test]
    fn the_file_names_what_was_asked() {
        let mut config = ClusterConfig::new(Family::V6, 2).in_clear();
        config.next_key = true;
        let text = config.to_toml();
        for part in [
            "next_key_file = \"next.key\"",
            "ciphers = [\"none\"]",
            "insecure = true",
            "addresses = [\"2001:db8::2\"]",
            "subnets = [\"10.100.0.0/24\", \"fd00:100::/64\"]",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
