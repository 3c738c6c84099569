//! The overlays that are compared.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::rivals::{
    Need, Site, Up, fastd, kronosnet, openvpn, tinc, vpncloud,
    wireguard::{self, Program},
};
use super::tapd::{Tapd, Variant};
use crate::topology::{Family, Pair, UNDERLAY};

/// An overlay between the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// The kernel's vxlan, in clear.
    KernelVxlan,
    /// One of tapd's.
    Tapd(Variant),
    /// WireGuard in user space: IP packets, not frames.
    Wireguard(Program),
    /// The kernel's vxlan inside `wireguard-go`: frames, sealed.
    VxlanOverWireguardGo,
    /// vpncloud, AES-256-GCM.
    Vpncloud,
    /// OpenVPN, AES-256-GCM.
    Openvpn,
    /// fastd, Salsa20/12 with UMAC.
    Fastd,
    /// tinc 1.0, AES-256-CBC with HMAC-SHA-256.
    Tinc,
    /// libknet through a tap, AES-256 with HMAC-SHA-256.
    Kronosnet,
}

/// Contenders that stand in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// tapd beside the kernel's vxlan.
    Tapd,
    /// WireGuard, bare and with a vxlan inside.
    Wireguard,
    /// Other programs that carry frames, all of them encrypting.
    Frames,
}

impl Group {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Tapd, Self::Wireguard, Self::Frames];
}

impl Contender {
    /// All of them, in the order of their turns.
    pub const ALL: [Self; 16] = [
        Self::KernelVxlan,
        Self::Tapd(Variant::Clear),
        Self::Tapd(Variant::Sealed),
        Self::Tapd(Variant::Aegis256),
        Self::Tapd(Variant::Aegis128L),
        Self::Tapd(Variant::Sealed2Workers),
        Self::Tapd(Variant::Sealed2Links),
        Self::Wireguard(Program::WireguardGo),
        Self::Wireguard(Program::Gotatun),
        Self::Wireguard(Program::Boringtun),
        Self::VxlanOverWireguardGo,
        Self::Vpncloud,
        Self::Openvpn,
        Self::Fastd,
        Self::Tinc,
        Self::Kronosnet,
    ];
    /// What the others are compared with.
    pub const RIVAL: Self = Self::KernelVxlan;
    /// tapd as it comes.
    pub const SEALED: Self = Self::Tapd(Variant::Sealed);

    /// As in tables, JSON and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KernelVxlan => "kernel-vxlan",
            Self::Tapd(variant) => variant.name(),
            Self::Wireguard(Program::WireguardGo) => "wireguard-go",
            Self::Wireguard(Program::Gotatun) => "gotatun",
            Self::Wireguard(Program::Boringtun) => "boringtun",
            Self::VxlanOverWireguardGo => "vxlan-over-wireguard-go",
            Self::Vpncloud => "vpncloud",
            Self::Openvpn => "openvpn",
            Self::Fastd => "fastd",
            Self::Tinc => "tinc",
            Self::Kronosnet => "kronosnet",
        }
    }

    /// The contender of this name, or those that a word stands for: `all`, `tapd`, `rivals`.
    #[must_use]
    pub fn choose(word: &str) -> Option<Vec<Self>> {
        let those = |wanted: fn(&Self) -> bool| Self::ALL.into_iter().filter(wanted).collect();
        Some(match word {
            "all" => Self::ALL.to_vec(),
            "tapd" => those(|c| matches!(c, Self::Tapd(_))),
            "rivals" => those(|c| c.group() != Group::Tapd),
            name => vec![Self::ALL.into_iter().find(|c| c.name() == name)?],
        })
    }

    /// Which table it stands in.
    #[must_use]
    pub fn group(self) -> Group {
        match self {
            Self::KernelVxlan | Self::Tapd(_) => Group::Tapd,
            Self::Wireguard(_) | Self::VxlanOverWireguardGo => Group::Wireguard,
            _ => Group::Frames,
        }
    }

    /// Whether it is another program that seals frames, as tapd does.
    #[must_use]
    pub fn seals_frames(self) -> bool {
        self.group() == Group::Frames || self == Self::VxlanOverWireguardGo
    }

    /// What it cannot do without, beyond what every bench needs.
    #[must_use]
    pub fn needs(self) -> &'static [Need] {
        match self {
            Self::KernelVxlan | Self::Tapd(_) => &[],
            Self::Wireguard(program) => program.needs(),
            Self::VxlanOverWireguardGo => Program::WireguardGo.needs(),
            Self::Vpncloud => vpncloud::NEEDS,
            Self::Openvpn => openvpn::NEEDS,
            Self::Fastd => fastd::NEEDS,
            Self::Tinc => tinc::NEEDS,
            Self::Kronosnet => kronosnet::NEEDS,
        }
    }

    /// Part of its addresses, ports and names, 100 and up.
    fn number(self) -> u8 {
        let place = Self::ALL.iter().position(|&other| other == self).unwrap_or_default();
        100 + place as u8
    }
}

/// A contender that is up; taken down on drop (the kernel's with its namespaces).
#[derive(Debug)]
pub struct Overlay {
    /// Which one.
    pub contender: Contender,
    /// What runs, for the report.
    pub version: String,
    /// Its address on the first host.
    pub alpha: IpAddr,
    /// Its address on the second host.
    pub beta: IpAddr,
    _running: Running,
}

/// What keeps an overlay up.
#[derive(Debug)]
enum Running {
    Kernel,
    Tapd(Box<Tapd>),
    Rival(Up),
}

impl Overlay {
    /// Sets a contender up between the two hosts, whose underlay has an MTU of `underlay_mtu` (L3
    /// bytes), and makes sure that it carries pings of every size.
    ///
    /// # Errors
    /// It cannot be had here or does not work.
    pub fn set_up(contender: Contender, pair: &Pair, underlay_mtu: u32) -> Result<Self> {
        let site = &Site { pair, underlay_mtu, number: contender.number() };
        for need in contender.needs() {
            need.check()?;
        }
        let running = match contender {
            Contender::KernelVxlan => {
                make_vxlan(site).context("the kernel has no vxlan")?;
                Running::Kernel
            }
            Contender::Tapd(variant) => Running::Tapd(Box::new(Tapd::set_up(variant, site)?)),
            Contender::Wireguard(program) => Running::Rival(wireguard::set_up(program, site)?),
            Contender::VxlanOverWireguardGo => {
                Running::Rival(wireguard::set_up_with_vxlan(Program::WireguardGo, site)?)
            }
            Contender::Vpncloud => Running::Rival(vpncloud::set_up(site)?),
            Contender::Openvpn => Running::Rival(openvpn::set_up(site)?),
            Contender::Fastd => Running::Rival(fastd::set_up(site)?),
            Contender::Tinc => Running::Rival(tinc::set_up(site)?),
            Contender::Kronosnet => Running::Rival(kronosnet::set_up(site)?),
        };
        let version = match &running {
            Running::Kernel => kernel_version()?,
            Running::Tapd(tapd) => tapd.version.clone(),
            Running::Rival(up) => up.version.clone(),
        };
        let (alpha, beta) = (site.overlay(1), site.overlay(2));
        Ok(Self { contender, version, alpha, beta, _running: running })
    }
}

fn kernel_version() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("Linux {}", release.trim()))
}

/// A vxlan interface as an administrator makes it; its MTU is the kernel's choice.
fn make_vxlan(site: &Site<'_>) -> Result<()> {
    let id = site.number.to_string();
    let name = format!("vxlan{id}");
    for (netns, host, remote) in [(&site.pair.alpha, 1, 2), (&site.pair.beta, 2, 1)] {
        let (local, remote) = (Family::V4.address(host), Family::V4.address(remote));
        let (local, remote) = (local.to_string(), remote.to_string());
        let kind = ["link", "add", &name, "type", "vxlan", "id", &id, "dstport", "4789"];
        let ends = ["local", &local, "remote", &remote, "dev", UNDERLAY];
        netns.ip(&[&kind[..], &ends[..]].concat())?;
        netns.add_address(&name, &format!("{}/24", site.overlay(host)))?;
        netns.ip(&["link", "set", &name, "up"])?;
    }
    site.prove(&name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_contender_can_be_chosen_and_has_a_number_of_its_own() {
        let mut numbers = BTreeSet::new();
        for contender in Contender::ALL {
            assert_eq!(Contender::choose(contender.name()), Some(vec![contender]));
            assert!(numbers.insert(contender.number()));
        }
        assert_eq!(numbers.last(), Some(&115));
        assert_eq!(Contender::choose("nonsense"), None);
    }

    #[test]
    fn words_stand_for_many() {
        let count = |word| Contender::choose(word).unwrap().len();
        assert_eq!(count("all"), count("tapd") + count("rivals") + 1);
        let rivals = Contender::choose("rivals").unwrap();
        // Only what has to be brought up from elsewhere has needs.
        for contender in Contender::ALL {
            assert_eq!(contender.needs().is_empty(), !rivals.contains(&contender));
        }
    }
}
