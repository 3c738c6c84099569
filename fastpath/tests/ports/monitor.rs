//! News of interfaces, addresses and neighbours, and what made it.

use std::net::IpAddr;
use std::time::Instant;

use encap::wire::buf::UplinkId;
use fastpath::interface::{Interface, is_bridged};
use fastpath::monitor::{LinkNews, Monitor};
use fastpath::uplink::UplinkOptions;
use fastpath::uplink::socket::UdpUplink;

use crate::cable::{cable, far_ipv4, far_ipv6, ip, near_ipv4, near_ipv6};
use crate::{PATIENCE, in_namespace, wait_readable};

fn carrier(number: u8, up: bool, addresses: &[IpAddr]) -> LinkNews {
    let interface = format!("near{number}");
    let index = Interface::open(&interface).unwrap().index().unwrap();
    LinkNews::Carrier { interface, index, up, addresses: addresses.to_vec() }
}

fn mtu(number: u8, mtu: u32, addresses: &[IpAddr]) -> LinkNews {
    LinkNews::Mtu { interface: format!("near{number}"), addresses: addresses.to_vec(), mtu }
}

/// Waits for `count` pieces of news, and that there are no more.
fn next(monitor: &mut Monitor, count: usize) -> Vec<LinkNews> {
    let deadline = Instant::now() + PATIENCE;
    let mut news = Vec::new();
    while news.len() < count {
        assert!(Instant::now() < deadline, "only {news:?}");
        wait_readable(monitor.fd());
        news.extend(monitor.poll().unwrap());
    }
    assert_eq!(news.len(), count, "{news:?}");
    news
}

fn near(name: u8) -> Interface {
    Interface::open(&format!("near{name}")).unwrap()
}

#[test]
fn carrier_is_lost_at_either_end_and_found_again() {
    in_namespace(|| {
        let far = cable(1);
        far.lay(2);
        let watched: [IpAddr; 1] = [near_ipv4(1).into()];
        let mut monitor = Monitor::open(&watched).unwrap();
        let address = LinkNews::Address { address: watched[0], present: true };
        let now = [address, carrier(1, true, &watched), mtu(1, 1500, &watched)];
        assert_eq!(monitor.snapshot(), now);
        assert_eq!(monitor.poll().unwrap(), []);

        // What happens elsewhere is no news.
        near(2).set_up(false).unwrap();
        near(1).set_up(false).unwrap();
        assert_eq!(next(&mut monitor, 1), [carrier(1, false, &watched)]);
        near(1).set_up(true).unwrap();
        assert_eq!(next(&mut monitor, 1), [carrier(1, true, &watched)]);
        far.run(|| Interface::open("far1").unwrap().set_up(false).unwrap());
        assert_eq!(next(&mut monitor, 1), [carrier(1, false, &watched)]);
        far.run(|| Interface::open("far1").unwrap().set_up(true).unwrap());
        assert_eq!(next(&mut monitor, 1), [carrier(1, true, &watched)]);
        assert_eq!(monitor.snapshot(), now);

        // With the interface its address goes.
        far.run(|| ip(&["link", "del", "far1"]));
        let news = monitor_until(&mut monitor, |news| matches!(news, LinkNews::Address { .. }));
        assert_eq!(news, LinkNews::Address { address: watched[0], present: false });
    });
}

/// Waits for the first news that `wanted` picks.
fn monitor_until(monitor: &mut Monitor, wanted: impl Fn(&LinkNews) -> bool) -> LinkNews {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "it did not come");
        wait_readable(monitor.fd());
        if let Some(news) = monitor.poll().unwrap().into_iter().find(&wanted) {
            return news;
        }
    }
}

#[test]
fn addresses_come_and_go() {
    in_namespace(|| {
        let _far = cable(1);
        let (v4, v6): (IpAddr, IpAddr) = (near_ipv4(1).into(), near_ipv6(1).into());
        let later: IpAddr = [10, 0, 1, 77].into();
        let mut monitor = Monitor::open(&[v4, v6, later]).unwrap();
        let here = |address, present| LinkNews::Address { address, present };
        let all = [
            here(v4, true),
            here(later, false),
            here(v6, true),
            carrier(1, true, &[v4, v6]),
            mtu(1, 1500, &[v4, v6]),
        ];
        assert_eq!(monitor.snapshot(), all);
        near(1).remove_address(v4, 24).unwrap();
        assert_eq!(next(&mut monitor, 1), [here(v4, false)]);
        near(1).remove_address(v6, 64).unwrap();
        assert_eq!(next(&mut monitor, 1), [here(v6, false)]);
        // One that comes hears all about its interface.
        near(1).add_address(later, 24).unwrap();
        let news = [here(later, true), carrier(1, true, &[later]), mtu(1, 1500, &[later])];
        assert_eq!(next(&mut monitor, 3), news);
        near(1).add_address(v6, 64).unwrap();
        let both = [later, v6];
        let news = [here(v6, true), carrier(1, true, &both), mtu(1, 1500, &both)];
        assert_eq!(next(&mut monitor, 3), news);
        // Other addresses are of interest now.
        near(1).add_address(v4, 24).unwrap();
        assert_eq!(monitor.poll().unwrap().len(), 3);
        let news = monitor.watch(&[v4, [10, 0, 1, 99].into()]);
        assert_eq!(news, [here([10, 0, 1, 99].into(), false)]);
        near(1).remove_address(later, 24).unwrap();
        near(1).remove_address(v4, 24).unwrap();
        assert_eq!(next(&mut monitor, 1), [here(v4, false)]);
    });
}

#[test]
fn ipv6_address_comes_when_no_duplicate_was_found() {
    in_namespace(|| {
        let _far = cable(1);
        let address: IpAddr = "fd00:0:0:1::77".parse().unwrap();
        let mut monitor = Monitor::open(&[address]).unwrap();
        // Through `ip`, which leaves the detection on.
        ip(&["addr", "add", "fd00:0:0:1::77/64", "dev", "near1"]);
        let news = next(&mut monitor, 3);
        assert_eq!(news[0], LinkNews::Address { address, present: true });
        // It can be bound now and not earlier.
        let options = UplinkOptions::default();
        UdpUplink::bind(UplinkId(0), (address, 0).into(), &options).unwrap();
        // IPv6 addresses go with their interface.
        near(1).set_up(false).unwrap();
        let gone = monitor_until(&mut monitor, |news| matches!(news, LinkNews::Address { .. }));
        assert_eq!(gone, LinkNews::Address { address, present: false });
    });
}

#[test]
fn mtu_changes_are_told() {
    in_namespace(|| {
        let _far = cable(1);
        let watched: [IpAddr; 1] = [near_ipv4(1).into()];
        let mut monitor = Monitor::open(&watched).unwrap();
        for value in [1400, 9000] {
            near(1).set_tap_mtu(value).unwrap();
            assert_eq!(next(&mut monitor, 1), [mtu(1, value, &watched)]);
        }
    });
}

/// A neighbour that does not answer, and does once it has its address.
fn neighbour(near_address: IpAddr, remote: IpAddr, prefix_len: u8) {
    let far = cable(1);
    // Three attempts, a second apart unless set: the far end is 20 us away.
    let family = if remote.is_ipv4() { "ipv4" } else { "ipv6" };
    let retransmit = format!("/proc/sys/net/{family}/neigh/near1/retrans_time_ms");
    std::fs::write(retransmit, "20").unwrap();
    let mut monitor = Monitor::open(&[near_address]).unwrap();
    assert_eq!(monitor.watch_remotes(&[remote]).unwrap(), []);
    let options = UplinkOptions::default();
    let mut uplink = UdpUplink::bind(UplinkId(0), (near_address, 0).into(), &options).unwrap();
    let news = |failed| LinkNews::Neighbour { address: remote, failed };

    assert_eq!(uplink.send_to(b"anybody there?", (remote, 9).into(), 0).sent, 1);
    assert_eq!(next(&mut monitor, 1), [news(true)]);
    assert!(monitor.snapshot().contains(&news(true)));
    // One that asks now is told at once.
    let mut second = Monitor::open(&[]).unwrap();
    assert_eq!(second.watch_remotes(&[remote]).unwrap(), [news(true)]);

    far.run(move || Interface::open("far1").unwrap().add_address(remote, prefix_len).unwrap());
    // The socket may still have the news of the first attempt to tell.
    uplink.send_to(b"and now?", (remote, 9).into(), 0);
    assert_eq!(next(&mut monitor, 1), [news(false)]);
    assert_eq!(next(&mut second, 1), [news(false)]);
    // Nobody wants to know any more.
    assert_eq!(monitor.watch_remotes(&[]).unwrap(), []);
    far.run(|| ip(&["link", "set", "far1", "down"]));
    assert!(matches!(next(&mut monitor, 1)[..], [LinkNews::Carrier { up: false, .. }]));
}

#[test]
fn neighbours_fail_and_answer_ipv4() {
    in_namespace(|| neighbour(near_ipv4(1).into(), [10, 0, 1, 77].into(), 24));
}

#[test]
fn neighbours_fail_and_answer_ipv6() {
    let remote = "fd00:0:0:1::77".parse().unwrap();
    in_namespace(move || neighbour(near_ipv6(1).into(), remote, 64));
}

#[test]
fn neighbours_that_answer_are_no_news() {
    in_namespace(|| {
        let _far = cable(1);
        let mut monitor = Monitor::open(&[near_ipv4(1).into()]).unwrap();
        let remotes: [IpAddr; 2] = [far_ipv4(1).into(), far_ipv6(1).into()];
        assert_eq!(monitor.watch_remotes(&remotes).unwrap(), []);
        let address = (near_ipv4(1), 0).into();
        let mut uplink = UdpUplink::bind(UplinkId(0), address, &UplinkOptions::default()).unwrap();
        assert_eq!(uplink.send_to(b"hello", (remotes[0], 9).into(), 0).sent, 1);
        near(1).set_tap_mtu(1300).unwrap();
        assert_eq!(next(&mut monitor, 1), [mtu(1, 1300, &[near_ipv4(1).into()])]);
    });
}

#[test]
fn news_beyond_the_kernels_room_is_made_up_for() {
    in_namespace(|| {
        let _far = cable(1);
        let (v4, v6): (IpAddr, IpAddr) = (near_ipv4(1).into(), near_ipv6(1).into());
        let mut monitor = Monitor::open(&[v4, v6]).unwrap();
        let interface = near(1);
        // More than any room that was asked for holds.
        for n in 0..6_000 {
            interface.set_tap_mtu(1300 + n % 2).unwrap();
        }
        // These find no room any more.
        interface.remove_address(v4, 24).unwrap();
        interface.set_tap_mtu(1357).unwrap();
        let mut news = Vec::new();
        let wanted = mtu(1, 1357, &[v6]);
        let deadline = Instant::now() + PATIENCE;
        while !news.contains(&wanted) {
            assert!(Instant::now() < deadline, "{} pieces of news", news.len());
            wait_readable(monitor.fd());
            news.extend(monitor.poll().unwrap());
        }
        assert!(news.contains(&LinkNews::Address { address: v4, present: false }));
        // Otherwise nothing was lost and the test is void.
        assert!(news.len() < 6_000, "{}", news.len());
        // And it still hears.
        interface.set_up(false).unwrap();
        let lost = monitor_until(&mut monitor, |news| matches!(news, LinkNews::Carrier { .. }));
        assert!(matches!(lost, LinkNews::Carrier { up: false, .. }), "{lost:?}");
    });
}

#[test]
fn a_monitor_stays_in_its_namespace() {
    in_namespace(|| {
        let far = cable(1);
        let watched: [IpAddr; 1] = [far_ipv4(1).into()];
        let mut monitor = far.run(move || Monitor::open(&watched).unwrap());
        assert!(
            monitor.snapshot().contains(&LinkNews::Address { address: watched[0], present: true })
        );
        near(1).set_up(false).unwrap();
        let news = next(&mut monitor, 1);
        let [LinkNews::Carrier { interface, up: false, .. }] = &news[..] else {
            panic!("{news:?}")
        };
        assert_eq!(interface, "far1");
    });
}

#[test]
fn ports_of_a_bridge_are_known() {
    in_namespace(|| {
        let _far = cable(1);
        assert!(!is_bridged("near1"));
        ip(&["link", "add", "br0", "type", "bridge"]);
        ip(&["link", "set", "near1", "master", "br0"]);
        assert!(is_bridged("near1"));
        assert!(!is_bridged("br0"));
        // The bridge tells in the monitor's group that its port has gone; the interface has not.
        let mut monitor = Monitor::open(&[near_ipv4(1).into()]).unwrap();
        ip(&["link", "set", "near1", "nomaster"]);
        assert!(!is_bridged("near1"));
        near(1).set_tap_mtu(1333).unwrap();
        assert_eq!(next(&mut monitor, 1), [mtu(1, 1333, &[near_ipv4(1).into()])]);
        for name in ["no-such-if", "", "a-name-beyond-15-bytes"] {
            assert!(!is_bridged(name));
        }
    });
}
