//! What is known of interfaces, addresses and neighbours, and what of it is news.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::LinkNews;
use crate::netlink::{Address, Link, Message, Neighbour};

/// The state of the network namespace as far as it matters to the watched addresses.
#[derive(Debug, Default)]
pub(super) struct Table {
    watched: BTreeSet<IpAddr>,
    remotes: BTreeSet<IpAddr>,
    /// Every interface by its number.
    links: BTreeMap<u32, Link>,
    /// Every usable address; one may be on several interfaces, or on one with several prefixes.
    addresses: BTreeSet<Address>,
    /// Whether a remote address failed, for each interface that it was looked for behind.
    neighbours: BTreeMap<(IpAddr, u32), bool>,
    /// What was told so far.
    told: View,
}

/// What news is about: the watched part of a table.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct View {
    /// Watched addresses, and whether this node has them.
    present: BTreeMap<IpAddr, bool>,
    /// Interfaces with a watched address.
    links: BTreeMap<u32, (Link, Vec<IpAddr>)>,
    /// Remote addresses that failed.
    failed: BTreeSet<IpAddr>,
}

impl Table {
    /// Takes one message in; gives the news of it.
    pub(super) fn apply(&mut self, message: Message) -> Vec<LinkNews> {
        let changed = match message {
            Message::Link(link) => {
                let index = link.index;
                let known = self.links.get(&index) == Some(&link);
                self.links.insert(index, link);
                !known
            }
            Message::LinkGone(index) => {
                self.addresses.retain(|address| address.index != index);
                self.neighbours.retain(|(_, behind), _| *behind != index);
                self.links.remove(&index);
                true
            }
            Message::Address(address, true) => self.addresses.insert(address),
            Message::Address(address, false) => self.addresses.remove(&address),
            Message::Neighbour(ip, index, state) => self.set_neighbour(ip, index, state),
        };
        if changed { self.news() } else { Vec::new() }
    }

    /// Takes over lists of all there is in place of what was known; gives the differences.
    pub(super) fn replace(&mut self, lists: impl IntoIterator<Item = Message>) -> Vec<LinkNews> {
        self.links.clear();
        self.addresses.clear();
        // One that failed stays so, whether or not it is still listed: see `set_neighbour`.
        self.neighbours.retain(|_, failed| *failed);
        for message in lists {
            match message {
                Message::Link(link) => drop(self.links.insert(link.index, link)),
                Message::Address(address, true) => drop(self.addresses.insert(address)),
                Message::Neighbour(ip, index, state) => drop(self.set_neighbour(ip, index, state)),
                Message::Address(_, false) | Message::LinkGone(_) => {}
            }
        }
        let links = &self.links;
        self.neighbours.retain(|(_, behind), _| links.contains_key(behind));
        self.news()
    }

    /// Watches these addresses of this node from now on; gives the news of those that are new.
    pub(super) fn watch(&mut self, addresses: &[IpAddr]) -> Vec<LinkNews> {
        self.watched = addresses.iter().copied().collect();
        let watched = &self.watched;
        self.told.present.retain(|ip, _| watched.contains(ip));
        self.news()
    }

    /// Watches these remote addresses from now on; says whether there are new ones among them.
    pub(super) fn watch_remotes(&mut self, remotes: &[IpAddr]) -> bool {
        let remotes: BTreeSet<_> = remotes.iter().copied().collect();
        let new = remotes.difference(&self.remotes).next().is_some();
        self.remotes = remotes;
        let watched = &self.remotes;
        self.neighbours.retain(|(ip, _), _| watched.contains(ip));
        // Nobody asks for these any more, so their recovery is no news.
        self.told.failed.retain(|ip| watched.contains(ip));
        new
    }

    /// All that would be told of now if nothing had been told before.
    pub(super) fn snapshot(&self) -> Vec<LinkNews> {
        self.news_since(&View::default(), &self.view())
    }

    fn set_neighbour(&mut self, ip: IpAddr, index: u32, state: Neighbour) -> bool {
        if !self.remotes.contains(&ip) {
            return false;
        }
        let key = (ip, index);
        match state {
            Neighbour::Failed => self.neighbours.insert(key, true) != Some(true),
            Neighbour::Valid => self.neighbours.insert(key, false) != Some(false),
            // The kernel soon forgets the entry of one that failed, and asks again when there is
            // something to send. Neither means that it answers.
            Neighbour::Gone if self.neighbours.get(&key) == Some(&false) => {
                self.neighbours.remove(&key);
                true
            }
            Neighbour::Gone | Neighbour::Asked => false,
        }
    }

    fn view(&self) -> View {
        let mut view = View::default();
        for ip in &self.watched {
            let mut present = false;
            for address in self.addresses.iter().filter(|address| address.ip == *ip) {
                // One on an interface that was not heard of yet waits for it.
                if let Some(link) = self.links.get(&address.index) {
                    present = true;
                    let entry = view.links.entry(address.index);
                    let (_, ips) = entry.or_insert_with(|| (link.clone(), Vec::new()));
                    if !ips.contains(ip) {
                        ips.push(*ip);
                    }
                }
            }
            view.present.insert(*ip, present);
        }
        let valid =
            |ip: &IpAddr| self.neighbours.iter().any(|((of, _), failed)| of == ip && !failed);
        let failed = self.neighbours.iter().filter(|(_, failed)| **failed);
        view.failed = failed.map(|((ip, _), _)| *ip).filter(|ip| !valid(ip)).collect();
        view
    }

    fn news(&mut self) -> Vec<LinkNews> {
        let view = self.view();
        let news = self.news_since(&self.told, &view);
        self.told = view;
        news
    }

    /// What changed from `old` to `new`.
    fn news_since(&self, old: &View, new: &View) -> Vec<LinkNews> {
        let mut news = Vec::new();
        for (&address, &present) in &new.present {
            if old.present.get(&address) != Some(&present) {
                news.push(LinkNews::Address { address, present });
            }
        }
        for (index, (link, addresses)) in &new.links {
            let before = old.links.get(index);
            // An address that has just come here must hear all about its interface.
            let met = |of: &[IpAddr]| addresses.iter().all(|ip| of.contains(ip));
            let before = before.filter(|(_, of)| met(of)).map(|(link, _)| link);
            if before.is_none_or(|before| before.up != link.up) {
                news.push(LinkNews::Carrier {
                    interface: link.name.clone(),
                    index: *index,
                    up: link.up,
                    addresses: addresses.clone(),
                });
            }
            if before.is_none_or(|before| before.mtu != link.mtu) {
                news.push(LinkNews::Mtu {
                    interface: link.name.clone(),
                    addresses: addresses.clone(),
                    mtu: link.mtu,
                });
            }
        }
        let changed = old.failed.symmetric_difference(&new.failed);
        news.extend(changed.filter(|ip| self.remotes.contains(ip)).map(|address| {
            LinkNews::Neighbour { address: *address, failed: new.failed.contains(address) }
        }));
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn link(index: u32, up: bool, mtu: u32) -> Link {
        Link { index, name: format!("eth{index}"), up, mtu, bridged: false }
    }

    fn address(last: u8, index: u32, prefix_len: u8) -> Address {
        Address { ip: ip(last), index, prefix_len }
    }

    fn carrier(index: u32, up: bool, addresses: &[u8]) -> LinkNews {
        let addresses = addresses.iter().copied().map(ip).collect();
        LinkNews::Carrier { interface: format!("eth{index}"), index, up, addresses }
    }

    fn mtu(index: u32, mtu: u32, addresses: &[u8]) -> LinkNews {
        let addresses = addresses.iter().copied().map(ip).collect();
        LinkNews::Mtu { interface: format!("eth{index}"), addresses, mtu }
    }

    fn is_at(last: u8, present: bool) -> LinkNews {
        LinkNews::Address { address: ip(last), present }
    }

    /// A table that watches .1 on eth1.
    fn table() -> Table {
        let mut table = Table::default();
        table.watch(&[ip(1)]);
        table.apply(Message::Link(link(1, true, 1500)));
        table.apply(Message::Address(address(1, 1, 24), true));
        table
    }

    #[test]
    fn only_changes_of_what_is_watched_are_news() {
        let mut table = table();
        let now = [is_at(1, true), carrier(1, true, &[1]), mtu(1, 1500, &[1])];
        assert_eq!(table.snapshot(), now);
        let mut tell = |message| table.apply(message);
        assert_eq!(tell(Message::Link(link(1, true, 1500))), []);
        assert_eq!(tell(Message::Link(link(2, true, 1500))), []);
        assert_eq!(tell(Message::Address(address(9, 1, 24), true)), []);
        assert_eq!(tell(Message::Link(link(1, false, 1500))), [carrier(1, false, &[1])]);
        let both = [carrier(1, true, &[1]), mtu(1, 1400, &[1])];
        assert_eq!(tell(Message::Link(link(1, true, 1400))), both);
        assert_eq!(tell(Message::Address(address(1, 1, 24), false)), [is_at(1, false)]);
        assert_eq!(tell(Message::Link(link(1, false, 1500))), []);
    }

    #[test]
    fn one_address_with_two_prefixes_goes_with_the_last() {
        let mut table = table();
        assert_eq!(table.apply(Message::Address(address(1, 1, 32), true)), []);
        assert_eq!(table.apply(Message::Address(address(1, 1, 24), false)), []);
        assert_eq!(table.apply(Message::Address(address(1, 1, 32), false)), [is_at(1, false)]);
    }

    #[test]
    fn an_address_that_moves_hears_of_its_new_interface() {
        let mut table = table();
        table.apply(Message::Link(link(2, false, 9000)));
        let both = [carrier(2, false, &[1]), mtu(2, 9000, &[1])];
        assert_eq!(table.apply(Message::Address(address(1, 2, 24), true)), both);
        assert_eq!(table.apply(Message::Address(address(1, 1, 24), false)), []);
        assert_eq!(table.apply(Message::LinkGone(2)), [is_at(1, false)]);
    }

    #[test]
    fn neighbours_fail_until_they_answer() {
        let mut table = table();
        assert!(table.watch_remotes(&[ip(7)]));
        assert!(!table.watch_remotes(&[ip(7)]));
        let mut tell = |last, index, state| table.apply(Message::Neighbour(ip(last), index, state));
        let news = |failed| LinkNews::Neighbour { address: ip(7), failed };
        assert_eq!(tell(7, 1, Neighbour::Valid), []);
        assert_eq!(tell(8, 1, Neighbour::Failed), []);
        assert_eq!(tell(7, 1, Neighbour::Failed), [news(true)]);
        assert_eq!(tell(7, 1, Neighbour::Failed), []);
        assert_eq!(tell(7, 1, Neighbour::Gone), []);
        assert_eq!(tell(7, 1, Neighbour::Asked), []);
        // Found behind another interface.
        assert_eq!(tell(7, 2, Neighbour::Valid), [news(false)]);
        assert_eq!(tell(7, 2, Neighbour::Gone), [news(true)]);
        assert_eq!(tell(7, 1, Neighbour::Valid), [news(false)]);
        // No longer of interest.
        assert_eq!(tell(7, 1, Neighbour::Failed), [news(true)]);
        assert!(!table.watch_remotes(&[]));
        assert_eq!(table.apply(Message::Link(link(1, false, 1500))).len(), 1);
        assert_eq!(table.snapshot().len(), 3);
    }

    #[test]
    fn watching_other_addresses_tells_of_the_new_ones() {
        let mut table = table();
        table.apply(Message::Address(address(2, 1, 24), true));
        let all =
            [is_at(2, true), is_at(3, false), carrier(1, true, &[1, 2]), mtu(1, 1500, &[1, 2])];
        assert_eq!(table.watch(&[ip(1), ip(2), ip(3)]), all);
        assert_eq!(table.watch(&[ip(1)]), []);
    }

    /// What somebody who only hears the news makes of it.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Listener {
        present: BTreeMap<IpAddr, bool>,
        links: BTreeMap<IpAddr, (Option<bool>, Option<u32>)>,
        failed: BTreeSet<IpAddr>,
    }

    impl Listener {
        fn hear(&mut self, news: Vec<LinkNews>) {
            for item in news {
                match item {
                    LinkNews::Address { address, present } => {
                        self.present.insert(address, present);
                        if !present {
                            self.links.remove(&address);
                        }
                    }
                    LinkNews::Carrier { up, addresses, .. } => {
                        for ip in addresses {
                            self.links.entry(ip).or_default().0 = Some(up);
                        }
                    }
                    LinkNews::Mtu { mtu, addresses, .. } => {
                        for ip in addresses {
                            self.links.entry(ip).or_default().1 = Some(mtu);
                        }
                    }
                    LinkNews::Neighbour { address, failed: true } => {
                        assert!(self.failed.insert(address), "told twice");
                    }
                    LinkNews::Neighbour { address, failed: false } => {
                        assert!(self.failed.remove(&address), "told twice");
                    }
                }
            }
        }
    }

    fn message() -> impl Strategy<Value = Message> {
        // Each address on an interface of its own: what one on several hears last is a matter of
        // order.
        prop_oneof![
            (1..4_u32, any::<bool>(), 1..4_u32)
                .prop_map(|(index, up, mtu)| Message::Link(link(index, up, mtu))),
            (1..4_u32).prop_map(Message::LinkGone),
            (1..4_u8, 1..3_u8, any::<bool>())
                .prop_map(|(n, prefix, on)| Message::Address(address(n, n.into(), prefix), on)),
            (
                1..4_u8,
                1..3_u32,
                prop_oneof![
                    Just(Neighbour::Failed),
                    Just(Neighbour::Valid),
                    Just(Neighbour::Asked),
                    Just(Neighbour::Gone)
                ]
            )
                .prop_map(|(last, index, state)| Message::Neighbour(
                    ip(last),
                    index,
                    state
                )),
        ]
    }

    proptest! {
        #[test]
        fn news_add_up_to_the_snapshot(
            before in prop::collection::vec(message(), 0..40),
            lists in prop::collection::vec(message(), 0..20),
            after in prop::collection::vec(message(), 0..40),
        ) {
            let mut table = Table::default();
            let mut listener = Listener::default();
            listener.hear(table.watch(&[ip(1), ip(2)]));
            table.watch_remotes(&[ip(1), ip(2)]);
            for message in before {
                listener.hear(table.apply(message));
            }
            listener.hear(table.replace(lists));
            for message in after {
                listener.hear(table.apply(message));
            }
            let mut now = Listener::default();
            now.hear(table.snapshot());
            prop_assert_eq!(listener, now);
        }
    }
}
