//! Datagrams for other nodes: `sendmmsg`, each message perhaps a run that the kernel cuts.

use std::os::fd::AsFd;

use encap::wire::buf::Transmit;

use super::message::{MAX_RUN, Message};
use super::socket::UdpUplink;
use super::{UplinkError, UplinkErrorKind};
use crate::port::{MAX_BURST, TxReport};

/// Calls repeated because the kernel reported an earlier datagram's error instead of working.
const MAX_PENDING_RETRIES: usize = 4;
/// Calls repeated in one burst for want of room in the kernel.
const MAX_ROOM_RETRIES: usize = 3;

/// Calls repeated so far.
#[derive(Debug, Default)]
struct Retries {
    room: usize,
    pending: usize,
}

impl UdpUplink {
    /// Sends runs of datagrams that lie in `memory`, in order. The report counts datagrams.
    pub fn send_burst(&mut self, memory: &[u8], transmits: &[Transmit]) -> TxReport {
        let max_run = if self.segmentation() { MAX_RUN } else { 1 };
        let max_len = self.max_udp_payload();
        self.send_all(transmits.iter().flat_map(move |transmit| {
            let bytes = memory.get(transmit.range.clone()).unwrap_or_default();
            Message::of_transmit(bytes, transmit, max_run, max_len)
        }))
    }

    /// Sends all messages, whatever single ones run into.
    pub(super) fn send_all<'a>(
        &mut self,
        messages: impl Iterator<Item = Message<'a>> + Clone,
    ) -> TxReport {
        let mut report = TxReport::default();
        // Asked once for each burst: the control thread hardly ever sets it.
        if !self.gate.is_open() {
            let (_, datagrams) = count(messages);
            self.counters.tx_dropped_no_address.add(datagrams as u64);
            report.failed += datagrams;
            return report;
        }
        let mut retries = Retries::default();
        let mut rest = messages;
        while let Some(first) = rest.clone().next() {
            if first.remote.is_ipv4() != self.local.is_ipv4() {
                let count = first.count();
                self.counters.tx_dropped_wrong_family.add(count as u64);
                report.failed += count;
                rest.next();
                continue;
            }
            let segmentation = self.segmentation();
            if first.cut().is_some() && !segmentation {
                report.merge(self.send_all(first.singles()));
                rest.next();
                continue;
            }
            let ipv4 = self.local.is_ipv4();
            let fits = |message: &Message<'_>| {
                message.remote.is_ipv4() == ipv4 && (segmentation || message.cut().is_none())
            };
            let now = rest.clone().take(MAX_BURST).take_while(fits);
            let run = now.clone().count();
            let socket = self.sender.as_ref().unwrap_or(&self.socket);
            let errno = match self.tx.send(socket.as_fd(), now) {
                Ok(count) => {
                    self.sent(rest.by_ref().take(count), &mut report);
                    if count < run {
                        // The kernel stopped at an error and swallowed it, as some were sent.
                        self.drain_errors();
                    }
                    retries.pending = 0;
                    continue;
                }
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            let lost = self.lost(errno, &first, rest.clone(), &mut retries, &mut report);
            if let Some(last) = lost.checked_sub(1) {
                rest.nth(last);
            }
        }
        report
    }

    /// Sends the datagrams of a run that the kernel refused one by one, so that each gets a verdict
    /// of its own.
    fn send_apart(&mut self, run: Message<'_>, errno: i32) -> TxReport {
        self.counters.tx_segmentation_failed.add(1);
        let report = self.send_all(run.singles());
        // What is too large for the interface is so in a run as well: EMSGSIZE, or EINVAL from older
        // kernels. It is segmentation that fails only where the same datagrams pass without.
        let of_segmentation = errno != libc::EMSGSIZE && report.sent > 0 && report.too_large == 0;
        if of_segmentation && self.offload.end_segmentation() {
            self.counters.tx_segmentation_ended.add(1);
            log::warn!(
                "UDP {}: runs of datagrams are refused ({}) and sent one by one from now on: slower, but nothing is lost",
                self.local,
                std::io::Error::from_raw_os_error(errno)
            );
        }
        report
    }

    fn sent<'a>(&self, messages: impl Iterator<Item = Message<'a>>, report: &mut TxReport) {
        let (mut sent, mut datagrams, mut bytes, mut segmented) = (0, 0, 0, 0);
        for message in messages {
            let count = message.count();
            sent += 1;
            datagrams += count;
            bytes += message.bytes.len();
            if message.cut().is_some() {
                segmented += count;
            }
        }
        report.sent += datagrams;
        self.counters.tx_messages.add(sent);
        self.counters.tx_datagrams.add(datagrams as u64);
        self.counters.tx_bytes.add(bytes as u64);
        self.counters.tx_segmented.add(segmented as u64);
    }

    /// Decides how many messages of the `rest`, whose `first` was not taken, are lost: none if the
    /// call is to be repeated.
    fn lost<'a>(
        &mut self,
        errno: i32,
        first: &Message<'a>,
        rest: impl Iterator<Item = Message<'a>>,
        retries: &mut Retries,
        report: &mut TxReport,
    ) -> usize {
        match errno {
            libc::EINTR => return 0,
            libc::EIO | libc::EINVAL if first.cut().is_some() => {
                report.merge(self.send_apart(*first, errno));
                return 1;
            }
            libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => {
                retries.room += 1;
                return self.no_room(errno, retries.room, rest, report);
            }
            _ => {}
        }
        // Either this datagram's own error, or one that an earlier datagram left on the socket: what
        // is still there with the queue emptied is its own.
        let drained = self.drain_errors();
        let own = errno == libc::EMSGSIZE && drained.own_mtu.is_some();
        let doubt = retries.pending == 0 || drained.foreign;
        if !own && doubt && retries.pending < MAX_PENDING_RETRIES {
            retries.pending += 1;
            return 0;
        }
        retries.pending = 0;
        if errno == libc::EMSGSIZE && first.cut().is_some() {
            report.merge(self.send_apart(*first, errno));
            return 1;
        }
        // What may be of the network's making costs one message, no more.
        let forged = !own && self.doubt.is_raised();
        let kind = UplinkErrorKind::from_errno(errno);
        let all = kind == UplinkErrorKind::Unreachable && !forged;
        let (lost, datagrams) = as_lost(first, rest, all);
        let told = UplinkError {
            uplink: self.id,
            remote: first.remote,
            kind,
            errno,
            ip_mtu: drained.own_mtu,
            local: !forged,
        };
        self.refused(told, datagrams, report);
        lost
    }

    /// Decides how many messages of the `rest` are lost for want of room: none while there are
    /// attempts left.
    fn no_room<'a>(
        &self,
        errno: i32,
        attempt: usize,
        rest: impl Iterator<Item = Message<'a>>,
        report: &mut TxReport,
    ) -> usize {
        if attempt <= MAX_ROOM_RETRIES {
            std::thread::yield_now();
            return 0;
        }
        // A full socket buffer refuses all that is left; a full queue further down (ENOBUFS) may
        // have room for the next one.
        let messages = if errno == libc::ENOBUFS { 1 } else { usize::MAX };
        let (lost, datagrams) = count(rest.take(messages));
        report.no_room += datagrams;
        self.counters.tx_dropped_no_room.add(datagrams as u64);
        lost
    }

    /// Accounts for `lost` datagrams that the kernel did not take.
    fn refused(&mut self, error: UplinkError, lost: usize, report: &mut TxReport) {
        let kind = error.kind;
        match kind {
            UplinkErrorKind::TooBig => {
                report.too_large += lost;
                self.counters.tx_dropped_too_large.add(lost as u64);
            }
            UplinkErrorKind::Unreachable => {
                report.failed += lost;
                self.counters.tx_dropped_unreachable.add(lost as u64);
            }
            UplinkErrorKind::Refused | UplinkErrorKind::Other => {
                report.failed += lost;
                self.counters.tx_dropped_refused.add(lost as u64);
            }
        }
        self.keep(error);
    }
}

/// How many messages of the `rest` are lost with its `first`, which was refused, and how many
/// datagrams these are: of `all`, the next ones to the same address too, since there is no way to
/// it. Asking for each would cost a dead link four system calls and an error per message.
fn as_lost<'a>(
    first: &Message<'a>,
    rest: impl Iterator<Item = Message<'a>>,
    all: bool,
) -> (usize, usize) {
    if all {
        count(rest.take_while(|next| next.remote == first.remote))
    } else {
        (1, first.count())
    }
}

/// Messages, and datagrams in them.
fn count<'a>(messages: impl Iterator<Item = Message<'a>>) -> (usize, usize) {
    messages.fold((0, 0), |(count, datagrams), next| (count + 1, datagrams + next.count()))
}

impl TxReport {
    fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.no_room += other.no_room;
        self.too_large += other.too_large;
        self.failed += other.failed;
    }
}
