//! News of this node's interfaces, addresses and neighbours as they happen (rtnetlink(7)).
//!
//! A carrier that is lost, an address that is taken away or a neighbour that does not answer tells
//! of a dead link before any timer can. It tells nothing of a path that dies further away, and the
//! kernel may hold news back: after a change of any carrier it tells of the loss of another one
//! up to a second late. So news speeds a decision up; heartbeats alone decide.

mod table;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use socket2::SockRef;

use self::table::Table;
use crate::netlink::{self, Asker, List};

/// Datagrams taken from the kernel in one call, so that a flood of news cannot hold the caller.
const MAX_READS: usize = 256;
/// The same when they are only thrown away: more than there is room for.
const MAX_DISCARDED: usize = 4096;
/// Room for datagrams in the kernel, as far as the system allows it. What does not fit is made up
/// for by listing everything anew.
const BUFFER_LEN: usize = 1 << 20;
/// Room for one datagram.
const ROOM: usize = 64 << 10;

/// What has changed. Each is told once, when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNews {
    /// An interface with watched addresses carries packets, or does so no more.
    ///
    /// Also told, and so is its [`Self::Mtu`], when a watched address comes to the interface.
    Carrier {
        /// Its name.
        interface: String,
        /// Its number.
        index: u32,
        /// Whether it is administratively up, has a carrier and is operational.
        up: bool,
        /// The watched addresses that it has.
        addresses: Vec<IpAddr>,
    },
    /// A watched address came or went.
    ///
    /// An IPv6 address comes when no duplicate was found, and goes with its interface going down.
    Address {
        /// The address.
        address: IpAddr,
        /// Whether it can be used.
        present: bool,
    },
    /// The size limit of an interface with watched addresses changed.
    Mtu {
        /// Its name.
        interface: String,
        /// The watched addresses that it has.
        addresses: Vec<IpAddr>,
        /// Bytes of the largest IP packet that it takes.
        mtu: u32,
    },
    /// A watched remote address on an attached network does not answer ARP or neighbour
    /// discovery, or does again.
    ///
    /// Never told of addresses behind a router. An address that failed stays so until it answers,
    /// even if its entry expires.
    Neighbour {
        /// The remote address.
        address: IpAddr,
        /// Whether it does not answer.
        failed: bool,
    },
}

/// Listens to the kernel's news about one network namespace: the one that it was opened in.
///
/// Wait until [`Self::fd`] is readable, then call [`Self::poll`].
pub struct Monitor {
    events: Socket,
    asker: Asker,
    table: Table,
    room: Vec<u8>,
    /// News was lost, and the lists in its place could not be had so far.
    stale: bool,
    hears_neighbours: bool,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Monitor");
        debug.field("table", &self.table).field("stale", &self.stale).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Begins to watch these addresses of this node; [`Self::snapshot`] says how they are now.
    ///
    /// # Errors
    /// Out of descriptors, or the kernel does not answer.
    pub fn open(watched: &[IpAddr]) -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind_auto()?;
        events.set_non_blocking(true)?;
        SockRef::from(&events).set_recv_buffer_size(BUFFER_LEN)?;
        // Before the lists are read, so that nothing falls between.
        for group in [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR] {
            events.add_membership(group)?;
        }
        let asker = Asker::open()?;
        let mut monitor = Self {
            events,
            asker,
            table: Table::default(),
            room: vec![0; ROOM],
            stale: true,
            hears_neighbours: false,
        };
        monitor.table.watch(watched);
        monitor.catch_up()?;
        Ok(monitor)
    }

    /// Becomes readable when there may be news.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }

    /// The news since the last call, oldest first. Does not wait for any.
    ///
    /// Where the kernel had no room for all of it, everything is listed anew and the differences
    /// are the news; that alone may wait for whoever changes interfaces at the moment.
    ///
    /// # Errors
    /// The kernel's. Nothing is lost: the next call makes up for it.
    pub fn poll(&mut self) -> io::Result<Vec<LinkNews>> {
        let mut news = Vec::new();
        match self.read(&mut news) {
            // What was found before it happened is told first; it happens again, or is over.
            Err(error) if news.is_empty() => Err(error),
            _ => Ok(news),
        }
    }

    /// How everything that is watched is now, in the form of news.
    #[must_use]
    pub fn snapshot(&self) -> Vec<LinkNews> {
        self.table.snapshot()
    }

    /// Watches these addresses of this node from now on instead of those before; gives what is to
    /// be told of the new ones.
    pub fn watch(&mut self, addresses: &[IpAddr]) -> Vec<LinkNews> {
        self.table.watch(addresses)
    }

    /// Watches these remote addresses from now on instead of those before; gives those of them
    /// that are known not to answer.
    ///
    /// # Errors
    /// The kernel does not answer. The addresses are watched even so.
    pub fn watch_remotes(&mut self, remotes: &[IpAddr]) -> io::Result<Vec<LinkNews>> {
        let new = self.table.watch_remotes(remotes);
        if !self.hears_neighbours && !remotes.is_empty() {
            // Only now: on a large network there is much of it.
            self.events.add_membership(libc::RTNLGRP_NEIGH)?;
            self.hears_neighbours = true;
        }
        if !new {
            return Ok(Vec::new());
        }
        // If the list cannot be had now, the next poll makes up for it.
        let list = self.asker.list(List::Neighbours).inspect_err(|_| self.stale = true)?;
        Ok(list.into_iter().flat_map(|message| self.table.apply(message)).collect())
    }

    fn read(&mut self, news: &mut Vec<LinkNews>) -> io::Result<()> {
        if self.stale {
            news.extend(self.catch_up()?);
        }
        for _ in 0..MAX_READS {
            match netlink::receive(&self.events, &mut self.room) {
                Ok(len) => {
                    for message in netlink::messages(self.room.get(..len).unwrap_or_default()) {
                        news.extend(self.table.apply(message));
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => {
                        self.stale = true;
                        news.extend(self.catch_up()?);
                    }
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Lists everything anew in place of news that were lost; gives the differences.
    fn catch_up(&mut self) -> io::Result<Vec<LinkNews>> {
        // What waits is older than the lists.
        for _ in 0..MAX_DISCARDED {
            match netlink::receive(&self.events, &mut self.room) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => break,
                _ => {}
            }
        }
        let mut lists = self.asker.list(List::Links)?;
        lists.extend(self.asker.list(List::Addresses)?);
        if self.hears_neighbours {
            lists.extend(self.asker.list(List::Neighbours)?);
        }
        self.stale = false;
        Ok(self.table.replace(lists))
    }
}
