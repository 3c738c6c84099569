//! Sending by a link that is dead: no call waits, and a burst costs what a burst costs.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use encap::wire::buf::{BufPool, Burst};
use fastpath::interface::Interface;
use fastpath::port::{DatagramPort, MAX_BURST, TxReport};
use fastpath::uplink::UplinkErrorKind;
use fastpath::uplink::socket::UdpUplink;

use crate::cable::{cable, far_ipv4, far_ipv6, near_ipv4, near_ipv6};
use crate::uplink::{datagram, receive, send, uplink};
use crate::{PATIENCE, in_namespace, wait_readable};

/// What none of these bursts comes near on any machine that is alive; the shortest wait anywhere
/// in the kernel's send path, for a neighbour, is three seconds.
const BOUND: Duration = Duration::from_secs(1);

fn uplink_at(address: IpAddr) -> UdpUplink {
    uplink(&SocketAddr::new(address, 0).to_string())
}

/// Sends a full burst to `remote`.
fn burst_to(uplink: &mut UdpUplink, remote: SocketAddr) -> TxReport {
    let burst: Vec<_> = (0..MAX_BURST).map(|_| datagram(&[1; 1000], remote)).collect();
    let start = Instant::now();
    let report = send(uplink, &burst);
    let elapsed = start.elapsed();
    assert!(elapsed < BOUND, "{elapsed:?}");
    assert_eq!(report.sent + report.no_room + report.too_large + report.failed, MAX_BURST);
    report
}

fn interface_down(near: IpAddr, far: IpAddr) {
    let cable = cable(1);
    // Somebody listens: no ICMP comes back that could be behind what follows.
    let there = cable.run(move || uplink_at(far));
    let mut uplink = uplink_at(near);
    let remote = there.local();
    assert_eq!(burst_to(&mut uplink, remote).sent, MAX_BURST);
    Interface::open("near1").unwrap().set_up(false).unwrap();
    // What the kernel still had of the first burst may have failed meanwhile.
    while uplink.poll_error().is_some() {}
    let report = burst_to(&mut uplink, remote);
    assert_eq!(report, TxReport { failed: MAX_BURST, ..TxReport::default() });
    assert_eq!(uplink.counters().tx_dropped_unreachable.get(), MAX_BURST as u64);
    // Told once, not for each datagram.
    let own = std::iter::from_fn(|| uplink.poll_error()).filter(|error| error.local);
    let own: Vec<_> = own.map(|error| (error.remote, error.kind)).collect();
    assert_eq!(own, [(remote, UplinkErrorKind::Unreachable)]);
}

#[test]
fn interface_that_is_down_refuses_at_once_ipv4() {
    in_namespace(|| interface_down(near_ipv4(1).into(), far_ipv4(1).into()));
}

#[test]
fn interface_that_is_down_refuses_at_once_ipv6() {
    in_namespace(|| interface_down(near_ipv6(1).into(), far_ipv6(1).into()));
}

#[test]
fn sec_errors_soon_after_one_from_the_network_are_not_taken_for_our_own() {
    in_namespace(|| {
        let _far = cable(1);
        let mut uplink = uplink_at(near_ipv4(1).into());
        let remote = SocketAddr::new(far_ipv4(1).into(), 9);
        // Nobody listens: the answers are ICMP, which anybody could send.
        burst_to(&mut uplink, remote);
        let told = || uplink.poll_error();
        let refused: Vec<_> = std::iter::from_fn(told).collect();
        assert!(refused.iter().all(|error| !error.local), "{refused:?}");
        Interface::open("near1").unwrap().set_up(false).unwrap();
        burst_to(&mut uplink, remote);
        let after: Vec<_> = std::iter::from_fn(|| uplink.poll_error()).collect();
        assert!(!after.is_empty() && after.iter().all(|error| !error.local), "{after:?}");
    });
}

#[test]
fn remotes_without_a_way_stop_no_others() {
    in_namespace(|| {
        let far = cable(1);
        let there = far.run(|| uplink_at(far_ipv4(1).into()));
        let mut near = uplink_at(near_ipv4(1).into());
        let nowhere: SocketAddr = "198.51.100.1:9".parse().unwrap();
        // A round of the control thread: runs of one, and longer ones.
        let order = [nowhere, nowhere, there.local(), nowhere, there.local(), nowhere, nowhere];
        let items = order.map(|remote| (b"round".as_slice(), remote, 0xb8));
        let report = near.send_many(&items);
        assert_eq!(report, TxReport { sent: 2, failed: 5, ..TxReport::default() });
        assert_eq!(near.counters().tx_dropped_unreachable.get(), 5);
        let errors: Vec<_> = std::iter::from_fn(|| near.poll_error()).collect();
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors.iter().all(|error| error.remote == nowhere && error.local));
        let marks = far.run(move || {
            let (mut there, mut pool) = (there, BufPool::new(2048, 2 * MAX_BURST));
            receive(&mut there, &mut pool, 2).iter().map(|got| got.mark).collect::<Vec<_>>()
        });
        assert_eq!(marks, [0xb8, 0xb8]);
    });
}

#[test]
fn lost_carrier_takes_no_time() {
    in_namespace(|| {
        let far = cable(1);
        let mut uplink = uplink_at(near_ipv4(1).into());
        let remote = SocketAddr::new(far_ipv4(1).into(), 9);
        far.run(|| Interface::open("far1").unwrap().set_up(false).unwrap());
        // The kernel takes them and throws them away: no error says so, ever.
        for _ in 0..20 {
            assert_eq!(burst_to(&mut uplink, remote).no_room, 0);
        }
    });
}

#[test]
fn neighbour_that_does_not_answer_takes_no_time_and_is_told_of() {
    in_namespace(|| {
        let _far = cable(1);
        std::fs::write("/proc/sys/net/ipv4/neigh/near1/retrans_time_ms", "20").unwrap();
        let mut uplink = uplink_at(near_ipv4(1).into());
        let remote = SocketAddr::new([10, 0, 1, 77].into(), 9);
        let mut pool = BufPool::new(2048, 2 * MAX_BURST);
        let mut nothing = Burst::new();
        let deadline = Instant::now() + PATIENCE;
        let error = loop {
            assert!(Instant::now() < deadline, "no error came");
            // More than the kernel keeps for a neighbour that it looks for.
            for _ in 0..10 {
                burst_to(&mut uplink, remote);
            }
            wait_readable(uplink.poll_fd().unwrap());
            uplink.rx_burst(&mut pool, &mut nothing).unwrap();
            if let Some(error) = uplink.poll_error() {
                break error;
            }
        };
        assert_eq!((error.remote, error.kind), (remote, UplinkErrorKind::Unreachable));
        assert!(!error.local);
        assert!(nothing.is_empty());
    });
}
