//! DPDK's drivers of real cards: a guest has the cards, as QEMU emulates them, and a process in the
//! guest drives them; with an IOMMU (`vfio-pci`) and without (`uio_pci_generic` and hugepages).

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use integration::cluster::overlay_v4;
use integration::config::{ClusterConfig, ClusterDir};
use integration::frames::test_frame;
use integration::guest::files::Files;
use integration::guest::{Guest, GuestOptions};
use integration::netns::Netns;
use integration::node::Node;
use integration::skip::case;
use integration::topology::Family;
use integration::traffic::{ping, ping_until_answer};
use integration::wait;

/// How long a program in a guest may take to start.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long a frame may take to a card and back.
const FRAME_PATIENCE: Duration = Duration::from_secs(5);
/// How long a file may take.
const FILE_PATIENCE: Duration = Duration::from_secs(90);
/// Frames that each card gives back.
const FRAMES: usize = 200;
/// Finds the number of datagrams with a bad checksum: a line has the names, the next the values.
const BAD_SUMS: &str = "/^Udp:/ { if (at) print $at; \
    else for (i = 1; i <= NF; i++) if ($i == \"InCsumErrors\") at = i }";
/// Drivers of the cards that QEMU has.
const DRIVERS: [&str; 3] = ["net_e1000", "net_virtio", "net_vmxnet3"];

/// What stands between the guest's cards and its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Nothing: cards see physical addresses.
    Bare,
    /// An IOMMU.
    Iommu,
}

impl Memory {
    /// The kernel's driver that hands cards over.
    fn driver(self) -> &'static str {
        match self {
            Self::Bare => "uio_pci_generic",
            Self::Iommu => "vfio-pci",
        }
    }

    /// A guest without cards.
    fn guest(self, name: &str, files: &Files) -> Result<GuestOptions> {
        let mut options = GuestOptions::without_card(name);
        options.memory_mib = 640;
        options.processors = 2;
        options.files = Some(files.pack()?);
        // DPDK does not start on the oldest of processors, which is what QEMU has by itself.
        add(&mut options, &["-cpu", "max"]);
        if self == Self::Iommu {
            // Before the cards. It does not remap interrupts: the kernel's timer gets lost in that.
            add(&mut options, &["-device", "intel-iommu,intremap=off,caching-mode=on"]);
            options.kernel = "intel_iommu=on".to_owned();
        }
        Ok(options)
    }

    /// What QEMU is told of a card in a slot.
    fn card(self, model: &str, slot: u8) -> String {
        let iommu = if self == Self::Iommu && model.starts_with("virtio") {
            ",iommu_platform=on,disable-legacy=on"
        } else {
            ""
        };
        format!("{model},netdev=card{slot},addr={slot:x},mac={},romfile={iommu}", mac(slot))
    }
}

fn add(options: &mut GuestOptions, words: &[&str]) {
    options.hardware.extend(words.iter().map(ToString::to_string));
}

fn mac(slot: u8) -> String {
    format!("02:00:00:00:fe:{slot:02x}")
}

fn address(slot: u8) -> String {
    format!("0000:00:{slot:02x}.0")
}

/// Loads what hands cards over.
fn prepare(guest: &mut Guest) -> Result<()> {
    // Which needs which is the order of the list that the image is made by; what is built in, or
    // needs what this kernel lacks, is missing. Without interrupt remapping vfio wants a yes.
    guest
        .run(
            "cd /modules/cards && for pass in 1 2 3; do for module in *; do case $module in \
         *type1*) insmod $module allow_unsafe_interrupts=1 ;; *) insmod $module ;; esac; done; \
         done 2>/dev/null; mkdir -p /var /run && ln -sf /run /var/run; true",
        )
        .map(drop)
}

/// Has a driver of the kernel take a card from whichever has it.
fn bind(guest: &mut Guest, slot: u8, driver: &str) -> Result<()> {
    let (address, device) = (address(slot), format!("/sys/bus/pci/devices/{}", address(slot)));
    guest.run(&format!("[ ! -e {device}/driver ] || echo {address} >{device}/driver/unbind"))?;
    guest.run(&format!("echo {driver} >{device}/driver_override"))?;
    guest.run(&format!("echo {address} >/sys/bus/pci/drivers_probe"))?;
    let bound = guest.run(&format!("readlink {device}/driver"))?;
    ensure!(bound.ends_with(&format!("/{driver}")), "{address} is bound to {bound}");
    Ok(())
}

fn set_hugepages(guest: &mut Guest, pages: u32) -> Result<()> {
    guest.run(&format!("echo {pages} >/proc/sys/vm/nr_hugepages"))?;
    let text = guest.run("cat /proc/sys/vm/nr_hugepages")?;
    ensure!(text == pages.to_string(), "{text} hugepages");
    Ok(())
}

/// The far end of a card's cable.
struct Cable {
    socket: UnixDatagram,
    slot: u8,
}

impl Cable {
    fn new(dir: &Path, slot: u8) -> Result<Self> {
        let socket = UnixDatagram::bind(dir.join(format!("far{slot}")))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(Self { socket, slot })
    }

    fn netdev(&self, dir: &Path) -> String {
        let (slot, dir) = (self.slot, dir.display());
        format!(
            "dgram,id=card{slot},local.type=unix,local.path={dir}/near{slot},\
             remote.type=unix,remote.path={dir}/far{slot}"
        )
    }

    /// Sends a frame and says whether it came back with its addresses exchanged.
    fn exchange(&self, dir: &Path, frame: &[u8], patience: Duration) -> Result<bool> {
        self.socket.send_to(frame, dir.join(format!("near{}", self.slot)))?;
        let mut expected = frame.to_vec();
        expected[..6].copy_from_slice(&frame[6..12]);
        expected[6..12].copy_from_slice(&frame[..6]);
        let end = Instant::now() + patience;
        let mut seen = [0; 2048];
        while Instant::now() < end {
            // Answers to earlier frames, which were given up, are not this one's.
            if let Ok(length) = self.socket.recv(&mut seen)
                && seen[..length] == expected
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has the echo at the other end give frames of every size back.
    fn exercise(&self, dir: &Path) -> Result<()> {
        let (to, from) = ([2, 0, 0, 0, 0xfe, self.slot], [2, 0, 0, 0, 0, 1]);
        let first = test_frame(to, from, &[], 60, 0xff);
        let deadline = Instant::now() + PATIENCE;
        while !self.exchange(dir, &first, Duration::from_millis(500))? {
            ensure!(Instant::now() < deadline, "card {} gives nothing back", self.slot);
        }
        for number in 0..FRAMES {
            let length = 60 + number * 1454 / (FRAMES - 1);
            let frame = test_frame(to, from, &[], length, number as u8);
            let back = self.exchange(dir, &frame, FRAME_PATIENCE)?;
            ensure!(back, "card {}: frame {number} of {length} bytes is gone", self.slot);
        }
        Ok(())
    }
}

/// Runs the echo of `dpdk-traffic` on a card while `body` runs.
fn echo(
    guest: &mut Guest,
    slot: u8,
    arguments: &str,
    body: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let port = address(slot);
    guest.run(&format!(
        "dpdk-traffic echo --port {port} --seconds 600 {arguments} >/tmp/echo 2>&1 & \
         echo $! >/tmp/echo.pid"
    ))?;
    if let Err(error) = body() {
        bail!("{error:#}: {}", guest.run("tail -n 5 /tmp/echo")?);
    }
    let (status, _) = guest.output("pid=$(cat /tmp/echo.pid); kill $pid; wait $pid", PATIENCE)?;
    let said = guest.run("tail -n 1 /tmp/echo")?;
    ensure!(status == 0 && said.contains("\"end\":true"), "the echo ended with {status}: {said}");
    let last: serde_json::Value = serde_json::from_str(&said).context("the echo's last line")?;
    ensure!(last["received"].as_u64() >= Some(FRAMES as u64), "{last}");
    ensure!(last["sent"] == last["received"], "{last}");
    Ok(())
}

/// A guest whose cards give back what they get.
fn cards(
    memory: Memory,
    models: &[&str],
    body: impl FnOnce(&mut Guest, &Path, &[Cable]) -> Result<()>,
) -> Result<()> {
    let files = Files::new()?;
    files.program("dpdk-traffic")?;
    files.dpdk(&DRIVERS)?;
    let dir = tempfile::tempdir()?;
    let mut options = memory.guest("cards", &files)?;
    let mut cables = Vec::new();
    for (slot, model) in (0x10..).zip(models) {
        let cable = Cable::new(dir.path(), slot)?;
        add(&mut options, &["-netdev", &cable.netdev(dir.path())]);
        add(&mut options, &["-device", &memory.card(model, slot)]);
        cables.push(cable);
    }
    let mut guest = Guest::boot(&options)?;
    prepare(&mut guest)?;
    body(&mut guest, dir.path(), &cables)?;
    guest.power_off()
}

#[test]
fn flow_guest_cards_without_an_iommu() {
    case(|| {
        let models = ["e1000", "virtio-net-pci", "vmxnet3"];
        cards(Memory::Bare, &models, |guest, dir, cables| {
            let try_once = |guest: &mut Guest, port: &str, arguments: &str| {
                let line = format!("dpdk-traffic echo --port {port} --seconds 1 {arguments} 2>&1");
                guest.output(&line, PATIENCE)
            };
            set_hugepages(guest, 128)?;
            // The kernel has this one.
            bind(guest, cables[1].slot, "virtio-pci")?;
            for slot in [cables[1].slot, 0x1b] {
                let (status, said) = try_once(guest, &address(slot), "--hugepages")?;
                ensure!(status != 0 && said.contains("bound to vfio-pci"), "{slot}: {said}");
            }
            for cable in cables {
                bind(guest, cable.slot, Memory::Bare.driver())?;
            }
            for cable in &cables[..2] {
                let (status, said) = try_once(guest, &address(cable.slot), "")?;
                ensure!(status != 0 && said.contains("only in hugepages"), "{said}");
            }
            for cable in cables {
                echo(guest, cable.slot, "--hugepages", || cable.exercise(dir))?;
            }
            Ok(())
        })
    });
}

#[test]
fn flow_guest_cards_behind_an_iommu() {
    case(|| {
        cards(Memory::Iommu, &["virtio-net-pci", "e1000e"], |guest, dir, cables| {
            for cable in cables {
                bind(guest, cable.slot, Memory::Iommu.driver())?;
            }
            echo(guest, cables[0].slot, "", || cables[0].exercise(dir))?;
            set_hugepages(guest, 128)?;
            // Not the second in ordinary pages: the emulated card loses frames that lie across two
            // pages which are apart in the guest's memory, though the IOMMU joins them.
            for cable in cables {
                echo(guest, cable.slot, "--hugepages", || cable.exercise(dir))?;
            }
            Ok(())
        })
    });
}

/// What a node in a guest has under it.
struct Setup {
    memory: Memory,
    model: &'static str,
    driver: &'static str,
    mtu: u16,
    hugepages: &'static str,
}

/// A node in a guest, on a card, and a node on the kernel's UDP here.
fn node_on_a_card(setup: &Setup) -> Result<()> {
    const SLOT: u8 = 0x10;
    let Setup { memory, model, driver, mtu, hugepages } = setup;
    let netns = Arc::new(Netns::new("card")?);
    netns.ip(&["tuntap", "add", "dev", "cable", "mode", "tap"])?;
    netns.ip(&["link", "set", "cable", "mtu", &mtu.to_string(), "up"])?;
    netns.add_address("cable", &format!("{}/24", Family::V4.address(2)))?;

    let mut config = ClusterConfig::new(Family::V4, 2);
    // Guests have IPv6 switched off.
    config.networks[0].subnets.truncate(1);
    config.nodes[0].addresses.clear();
    config.nodes[0].extra = format!(
        "links = [{{ name = \"0\", address = \"{}\", dpdk = {{ port = \"{}\", prefix = 24, \
         mtu = {mtu} }} }}]",
        Family::V4.address(1),
        address(SLOT)
    );
    config.nodes[1].addresses.clear();
    config.nodes[1].extra =
        format!("links = [{{ name = \"0\", address = \"{}\" }}]", Family::V4.address(2));
    config.sections = format!("[dpdk]\nmemory_mb = 96\nhugepages = {hugepages}\n");
    let dir = ClusterDir::new(&config)?;
    let mut beta = Node::start(&dir, &netns, "beta")?;

    let files = Files::new()?;
    files.program("tapd")?;
    files.dpdk(&DRIVERS)?;
    files.file(&dir.config_file(), "/etc/tapd/cluster.toml")?;
    files.file(&dir.path("cluster.key"), "/etc/tapd/cluster.key")?;
    let mut options = memory.guest("alpha", &files)?;
    options.netns = Some(Arc::clone(&netns));
    add(
        &mut options,
        &[
            "-netdev",
            &format!("tap,id=card{SLOT},ifname=cable,script=no,downscript=no"),
            "-device",
            &memory.card(model, SLOT),
        ],
    );
    let mut guest = Guest::boot(&options)?;
    prepare(&mut guest)?;
    bind(&mut guest, SLOT, memory.driver())?;
    set_hugepages(&mut guest, if *hugepages == "false" { 0 } else { 96 })?;
    guest.run(
        "tapd run --config /etc/tapd/cluster.toml --node alpha --control-socket /tmp/socket \
         >/tmp/tapd.log 2>&1 & echo $! >/tmp/tapd.pid",
    )?;
    if let Err(error) = ping_until_answer(&netns, overlay_v4(100, 1), PATIENCE) {
        bail!("{error:#}: {}", guest.run("cat /tmp/tapd.log")?);
    }

    let overlay = overlay_v4(100, 2).to_string();
    guest.ping(&overlay, 10, u32::from(*mtu) - 100)?;
    let report = ping(&netns, overlay_v4(100, 1), 10, 1000)?;
    ensure!(report.received == report.sent, "{report:?}");
    let sum = guest.make_file("noise", 4)?;
    guest.serve("noise")?;
    let line = format!("exec 3<>/dev/tcp/{}/8080 && md5sum <&3", overlay_v4(100, 1));
    let got = wait::until_some("the guest's file", FILE_PATIENCE, || {
        netns.run("timeout", &["60", "bash", "-c", &line]).ok()
    })?;
    ensure!(got.starts_with(&sum), "{got} arrived of {sum}");

    let shown = guest.run("tapd show ports --json --control-socket /tmp/socket")?;
    ensure!(shown.contains(driver), "no {driver} in {shown}");
    // The card completes the checksums, and the kernel looks at them.
    let errors = netns.run("awk", &[BAD_SUMS, "/proc/net/snmp"])?;
    ensure!(errors.trim() == "0", "{errors} datagrams had bad checksums");
    let (status, _) = guest.output("pid=$(cat /tmp/tapd.pid); kill $pid; wait $pid", PATIENCE)?;
    ensure!(status == 0, "tapd ended with {status}: {}", guest.run("tail /tmp/tapd.log")?);
    guest.power_off()?;
    beta.stop(&["tap100"])
}

#[test]
fn flow_guest_node_on_a_card_behind_an_iommu() {
    case(|| {
        node_on_a_card(&Setup {
            memory: Memory::Iommu,
            model: "virtio-net-pci,host_mtu=9000",
            driver: "net_virtio",
            mtu: 9000,
            hugepages: "false",
        })
    });
}

#[test]
fn flow_guest_node_on_a_card_without_an_iommu() {
    case(|| {
        node_on_a_card(&Setup {
            memory: Memory::Bare,
            // Its checksums are its own work: those of virtio may be left to the receiver.
            model: "e1000e",
            driver: "net_e1000_em",
            mtu: 9000,
            hugepages: "\"auto\"",
        })
    });
}
