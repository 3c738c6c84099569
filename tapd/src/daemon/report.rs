//! Answers to what is asked on the control socket.

use std::collections::BTreeMap;
use std::time::Instant;

use encap::forward::fdb::Place;
use encap::id::{NodeId, Vni};
use encap::link::liveness::{Cause, State};
use encap::stats::{Counters, DropReason, Traffic};
use encap::vtep::{LinkStatus, PeerStatus};
use fastpath::capture::CaptureFilter;

use super::notices::link_name;
use super::uplinks::waiting_for;
use super::{Daemon, stream};
use crate::config::derived_address;
use crate::control::{
    CountersReply, FdbReply, Incoming, LinkReply, MemberReply, NetworkReply, PeerReply,
    ReplySender, Request, StatusReply, Topic, TransitionReply, WorkerCounters,
};

impl Daemon {
    pub(super) fn answer(&mut self, incoming: Incoming) {
        let Incoming { request, reply } = incoming;
        let now = Instant::now();
        match request {
            Request::Show { topic, name } => self.show(now, topic, name.as_deref(), reply),
            Request::FdbAdd { vni, mac, node } => {
                let outcome = self.node(&node).and_then(|node| {
                    self.vtep.fdb_add(now, vni, mac, node).map_err(|error| error.to_string())
                });
                finish(reply, outcome);
            }
            Request::FdbDel { vni, mac } => {
                let outcome = match self.vtep.fdb_del(vni, mac) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(format!("network {vni} has no entry for {mac}")),
                    Err(error) => Err(error.to_string()),
                };
                finish(reply, outcome);
            }
            Request::FdbFlush { vni } => {
                let outcome = self.vtep.fdb_flush(vni).map(|_| ());
                finish(reply, outcome.map_err(|error| error.to_string()));
            }
            Request::Reload => match self.logged_reload() {
                Ok(done) => reply.ok(&done),
                Err(error) => reply.refuse(error),
            },
            Request::Rehandshake { node } => {
                let outcome = node.map(|node| self.node(&node)).transpose().and_then(|node| {
                    self.vtep.rehandshake(now, node).map_err(|error| error.to_string())
                });
                finish(reply, outcome);
            }
            Request::Watch {} => self.events.watch(reply),
            Request::LinkDrain { node, link } => {
                finish(reply, self.drain_link(now, &node, &link, true));
            }
            Request::LinkUndrain { node, link } => {
                finish(reply, self.drain_link(now, &node, &link, false));
            }
            Request::LinkMtu { node, link, size } => {
                let outcome = self.link(&node, &link).and_then(|(node, link)| {
                    self.check_link_mtu(node, link, size)?;
                    let size = size.map(usize::from);
                    self.vtep.set_link_mtu(now, node, link, size).map_err(|e| e.to_string())
                });
                finish(reply, outcome);
            }
            Request::Capture { vni, count } => self.capture(reply, vni, count),
        }
    }

    fn node(&self, text: &str) -> Result<NodeId, String> {
        let found = self.config.find_node(text).map(|node| node.id);
        found.ok_or_else(|| format!("no node {text:?} in the configuration"))
    }

    fn capture(&mut self, reply: ReplySender, vni: Option<Vni>, count: Option<u64>) {
        if let Some(vni) = vni
            && self.networks.get(vni).is_none()
        {
            reply.refuse(format!("no network {vni} on this node"));
            return;
        }
        match self.capture.start(CaptureFilter { vni, snap_len: None }) {
            Ok(drain) => {
                let name = |n: &super::networks::Network| (n.config.vni, n.config.name.clone());
                let names = self.networks.iter().map(name).collect();
                reply.stream(move |to| stream::run(&drain, names, count, to));
            }
            Err(error) => reply.refuse(error.to_string()),
        }
    }

    fn show(&self, now: Instant, topic: Topic, name: Option<&str>, reply: ReplySender) {
        match topic {
            Topic::Status => reply.ok(&self.status(now)),
            Topic::Peers => reply.ok(&self.peers(now)),
            Topic::Links => reply.ok(&self.links(now)),
            Topic::Networks => reply.ok(&self.network_rows()),
            Topic::Fdb => reply.ok(&self.fdb(now)),
            Topic::Offloads => reply.ok(&self.offloads(now)),
            Topic::Ports => reply.ok(&self.port_rows()),
            Topic::Channels => self.show_channels(name, reply),
            Topic::Neighbors => reply.ok(&self.neighbor_rows()),
            Topic::Counters => self.show_counters(reply),
        }
    }

    fn name(&self, node: NodeId) -> String {
        let known = self.config.nodes.iter().find(|known| known.id == node);
        known.map_or_else(|| format!("node{node}"), |known| known.name.clone())
    }

    fn status(&self, now: Instant) -> StatusReply {
        let peers = self.vtep.peer_status(now);
        let lines = self
            .networks
            .iter()
            .map(|network| format!("{}: {}", network.label(), network.explain_tap_mtu()));
        StatusReply {
            node: self.config.own.get(),
            name: self.name(self.config.own),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_duration_since(self.started).as_secs(),
            ciphers: self.config.cluster.ciphers.iter().map(|c| c.name().to_owned()).collect(),
            insecure: self.config.cluster.insecure,
            port: self.config.cluster.port,
            workers: self.workers.len(),
            pid: std::process::id(),
            rss_bytes: resident_bytes(),
            peers_up: peers.iter().filter(|peer| peer.up).count(),
            peers: peers.len(),
            tap_mtu: lines.collect(),
        }
    }

    fn peers(&self, now: Instant) -> Vec<PeerReply> {
        self.vtep.peer_status(now).iter().map(|status| self.peer(status)).collect()
    }

    fn peer(&self, status: &PeerStatus) -> PeerReply {
        let [rx_frames, rx_bytes, tx_frames, tx_bytes] = sums(&status.traffic);
        let state = if status.up { "up" } else { "down" };
        let peer = self.config.nodes.iter().find(|peer| peer.id == status.node);
        PeerReply {
            node: status.node.get(),
            name: self.name(status.node),
            state: state.to_owned(),
            cipher: status.cipher.filter(|_| status.up).map(str::to_owned),
            key_id: status.key_id.filter(|_| status.up).map(hex),
            address: status.remote.map_or_else(String::new, |remote| remote.to_string()),
            age_s: status.session_age.filter(|_| status.up).map(|age| age.as_secs()),
            epoch_tx: status.epochs.map(|(tx, _)| tx),
            epoch_rx: status.epochs.map(|(_, rx)| rx),
            rtt_us: status.rtt.and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
            last_seen_ms: status.last_heard.and_then(|ago| u64::try_from(ago.as_millis()).ok()),
            handshakes: status.handshakes,
            rx_frames,
            tx_frames,
            rx_bytes,
            tx_bytes,
            down_reason: status.down_reason.map(|reason| {
                let hint = self.notices.hint(status.node).filter(|_| !status.up);
                [Some(reason.text()), hint].into_iter().flatten().collect::<Vec<_>>().join("; ")
            }),
            policy: peer.map(|p| self.config.policy(None, p).to_string()).unwrap_or_default(),
            protect: peer.map(|p| self.config.protect(p).to_string()).unwrap_or_default(),
            links_up: status.links.iter().filter(|link| link.state == State::Up).count(),
            links: status.links.len(),
            max_udp_payload: u32::try_from(status.max_udp_payload).unwrap_or(u32::MAX),
        }
    }

    fn links(&self, now: Instant) -> Vec<LinkReply> {
        let mut rows = Vec::new();
        for peer in self.vtep.peer_status(now) {
            let name = self.name(peer.node);
            for link in &peer.links {
                rows.push(self.link_row(&peer, name.clone(), link));
            }
        }
        rows
    }

    fn link_row(&self, peer: &PeerStatus, peer_name: String, link: &LinkStatus) -> LinkReply {
        let uplink = self.uplinks.get(link.uplink);
        let measured = &link.measured;
        // Nothing goes by it before that, whatever else happened to it. Without the kernel's news
        // nobody knows whether it is still so.
        let missing = uplink
            .filter(|uplink| self.monitor.is_some() && !uplink.present && link.state != State::Up);
        let reason = match missing {
            Some(uplink) => waiting_for(uplink.local.ip()),
            None if link.cause == Cause::Starting => "nothing heard yet".to_owned(),
            None => link.cause.to_string(),
        };
        let micros = |us: u32| (us > 0).then_some(u64::from(us));
        let transitions = link.transitions.iter().rev().map(|(ago, transition)| TransitionReply {
            ago_ms: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
            from: transition.from.to_string(),
            to: transition.to.to_string(),
            cause: transition.cause.to_string(),
        });
        let remote = match link.remote {
            Some(remote) => remote.to_string(),
            None => "not heard yet".to_owned(),
        };
        LinkReply {
            node: peer.node.get(),
            peer: peer_name,
            index: link.link.get(),
            name: link_name(&self.config, peer.node, link.link),
            local: uplink.map_or_else(String::new, |uplink| uplink.local.to_string()),
            remote,
            state: link.state.to_string(),
            drained: link.drained,
            sending: link.sending,
            reason: Some(reason),
            priority: link.priority,
            weight: link.weight,
            uplink_mtu: uplink.map(|uplink| uplink.ip_mtu),
            path_mtu: u32::try_from(link.max_udp_payload + link.ip_overhead).ok(),
            max_udp_payload: u32::try_from(link.max_udp_payload).unwrap_or(u32::MAX),
            path_mtu_how: Some(link.how.text().to_owned()),
            path_mtu_age_s: Some(link.found_ago.as_secs()),
            searching: link.searching,
            interval_us: u64::try_from(link.interval.as_micros()).ok(),
            rtt_min_us: micros(measured.rtt_min_us),
            rtt_us: micros(measured.srtt_us),
            rtt_p50_us: micros(measured.rtt_p50_us),
            rtt_p99_us: micros(measured.rtt_p99_us),
            rtt_p999_us: micros(measured.rtt_p999_us),
            jitter_us: micros(measured.jitter_us),
            skew_us: Some(link.skew_us),
            loss_rx_ppm: Some(measured.loss_in_ppm),
            loss_tx_ppm: Some(measured.loss_out_ppm),
            rx_datagrams: link.rx.0,
            rx_bytes: link.rx.1,
            tx_datagrams: link.tx.0,
            tx_bytes: link.tx.1,
            copies: link.copies,
            resent: link.resent,
            transitions: transitions.collect(),
            errors: link.remote.map(|remote| self.notices.errors(remote)).unwrap_or_default(),
        }
    }

    fn network_rows(&self) -> Vec<NetworkReply> {
        let mut rows = Vec::new();
        for status in self.vtep.network_status() {
            let Some(network) = self.networks.get(status.vni) else { continue };
            // From the tap's point of view: what peers sent is received.
            let [rx_frames, rx_bytes, tx_frames, tx_bytes] = sums(&status.traffic);
            let local = MemberReply {
                node: self.config.own.get(),
                name: self.name(self.config.own),
                state: "local".to_owned(),
            };
            let others = status.members.iter().map(|(node, up)| MemberReply {
                node: node.get(),
                name: self.name(*node),
                state: if *up { "up" } else { "down" }.to_owned(),
            });
            let mac = network.tap.as_ref().and_then(|tap| tap.interface().mac().ok());
            let address = |subnet: &ipnet::IpNet| derived_address(*subnet, self.config.own);
            rows.push(NetworkReply {
                vni: status.vni.get(),
                name: network.config.name.clone(),
                tap: network.tap_name().to_owned(),
                tap_mtu: network.tap_mtu,
                tap_mtu_arithmetic: network.explain_tap_mtu(),
                mac: mac.map_or_else(String::new, |mac| mac.to_string()),
                addresses: network
                    .config
                    .subnets
                    .iter()
                    .filter_map(address)
                    .map(|address| address.to_string())
                    .collect(),
                looped: status.looped,
                members: std::iter::once(local).chain(others).collect(),
                fdb_entries: status.fdb_entries as u64,
                rx_frames,
                tx_frames,
                rx_bytes,
                tx_bytes,
            });
        }
        rows
    }

    fn fdb(&self, now: Instant) -> Vec<FdbReply> {
        let mut replies = Vec::new();
        for network in self.networks.iter() {
            let vni = network.config.vni;
            let Ok(rows) = self.vtep.fdb_rows(now, vni) else { continue };
            replies.extend(rows.into_iter().map(|(row, node)| FdbReply {
                vni: vni.get(),
                mac: row.mac.to_string(),
                port: match row.place {
                    Place::Local(local) => network.port_name(local),
                    Place::Peer(_) => None,
                },
                behind: node.map_or_else(|| "local".to_owned(), |node| self.name(node)),
                kind: if row.is_static { "static" } else { "learnt" }.to_owned(),
                age_s: (!row.is_static).then_some(row.age_ms / 1_000),
                frozen: row.frozen,
            }));
        }
        replies
    }

    pub(super) fn counters(&self) -> CountersReply {
        let mut reply = CountersReply::default();
        let control = self.vtep.counters();
        let all: Vec<&Counters> =
            self.workers.iter().map(|worker| &*worker.counters).chain([&**control]).collect();
        for reason in DropReason::ALL {
            let sum = all.iter().map(|counters| counters.dropped(*reason)).sum();
            reply.drops.insert(reason.name().to_owned(), sum);
            reply.drop_help.insert(reason.name().to_owned(), reason.help().to_owned());
        }
        for counters in &all {
            for (name, _, value) in counters.totals() {
                *reply.totals.entry(name.to_owned()).or_default() += value;
            }
        }
        for (number, worker) in self.workers.iter().enumerate() {
            let mut counters: BTreeMap<_, _> =
                worker.counters.totals().map(|(name, _, value)| (name.to_owned(), value)).collect();
            counters.extend(named(worker.handle.counters().values()));
            reply.workers.push(WorkerCounters { worker: number, counters });
        }
        reply.ports = self.port_counters();
        reply
    }
}

pub(super) fn named(
    values: impl Iterator<Item = (&'static str, u64)>,
) -> impl Iterator<Item = (String, u64)> {
    values.map(|(name, value)| (name.to_owned(), value))
}

pub(super) fn summed(values: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, value) in named(values) {
        *sums.entry(name).or_default() += value;
    }
    sums
}

fn hex(bytes: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(bytes))
}

fn finish(reply: ReplySender, outcome: Result<(), String>) {
    match outcome {
        Ok(()) => reply.ok(&()),
        Err(error) => reply.refuse(error),
    }
}

/// Frames and bytes received, then sent, over all workers.
fn sums(traffic: &[Traffic]) -> [u64; 4] {
    traffic.iter().fold([0; 4], |[rf, rb, tf, tb], one| {
        [
            rf + one.rx_frames.get(),
            rb + one.rx_bytes.get(),
            tf + one.tx_frames.get(),
            tb + one.tx_bytes.get(),
        ]
    })
}

/// Resident memory of this process.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
