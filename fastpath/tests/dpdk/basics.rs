//! The environment, buffers, and the ports that need nothing: null and ring.

use fastpath::affinity;
use fastpath::dpdk::{DpdkError, Eal, EalOptions, Pool, Port, PortOptions, TxOffload};

use crate::support::{alone, open, options, with_dpdk};

#[test]
fn starts_once_and_leaves_the_threads_cores_alone() {
    alone(|| {
        let before = affinity::allowed_cores().unwrap();
        let eal = Eal::start(&options()).unwrap();
        assert!(eal.version().starts_with("DPDK "), "{}", eal.version());
        assert_eq!(affinity::allowed_cores().unwrap(), before);
        let again = Eal::start(&EalOptions { memory_mb: 1, ..options() }).unwrap();
        assert_eq!(again.version(), eal.version());
        eal.register_thread().unwrap();
        eal.register_thread().unwrap();
        assert_eq!(affinity::allowed_cores().unwrap(), before);
    });
}

#[test]
fn what_does_not_start_says_why() {
    alone(|| {
        let error = Eal::start(&EalOptions { extra: vec!["--no-such".into()], ..options() });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("DPDK does not start") && error.contains("log"), "{error}");
        assert!(Eal::get().is_none());
    });
}

#[test]
fn null_ports_give_and_take_and_count() {
    with_dpdk(|eal| {
        eal.register_thread().unwrap();
        let pool = Pool::new(&eal, 4096, 2048).unwrap();
        let (port, mut rx, mut tx) = open(&eal, &pool, "net_null,size=128");
        assert_eq!(port.info().unwrap().driver, "net_null");
        let burst = rx.receive(32);
        assert_eq!(burst.len(), 32);
        assert!(burst.iter().all(|packet| packet.bytes().is_some_and(|bytes| bytes.len() == 128)));
        let held = pool.in_use();
        drop(burst);
        assert!(held > 0 && pool.in_use() < held);
        for _ in 0..100 {
            tx.push(60).unwrap().fill(7);
        }
        assert_eq!((tx.ready(), tx.flush(0), tx.ready()), (100, 100, 0));
        assert_eq!(port.stats().unwrap().tx_packets, 100);
        assert!(port.link_is_up().is_ok());
    });
}

#[test]
fn ring_ports_hand_bytes_over_whole_and_in_order() {
    with_dpdk(|eal| {
        let pool = Pool::new(&eal, 4096, 2048).unwrap();
        let (_port, mut rx, mut tx) = open(&eal, &pool, "net_ring");
        for number in 0..40_u8 {
            tx.push(64 + usize::from(number)).unwrap().fill(number);
        }
        // Larger than one buffer.
        let large: Vec<u8> = (0..5000_u32).map(|at| (at % 251) as u8).collect();
        let mut writer = tx.start(large.len(), TxOffload::default()).unwrap();
        for part in large.chunks(777) {
            writer.write(part);
        }
        assert_eq!(tx.flush(0), 41);
        let burst = rx.receive(64);
        assert_eq!(burst.len(), 41);
        let mut packets = burst.iter();
        for number in 0..40_u8 {
            let packet = packets.next().unwrap();
            assert_eq!(packet.bytes().unwrap(), vec![number; 64 + usize::from(number)]);
        }
        let packet = packets.next().unwrap();
        assert!(packet.bytes().is_none() && packet.len() == 5000);
        let mut room = vec![0; 6000];
        assert_eq!(packet.copy_to(&mut room[..4999]), None);
        assert_eq!(packet.copy_to(&mut room), Some(5000));
        assert_eq!(room[..5000], large);
        drop(packets);
        drop(burst);
        drop((rx, tx));
        assert_eq!(pool.in_use(), 0);
    });
}

#[test]
fn a_pool_that_is_empty_gives_nothing_and_comes_back() {
    with_dpdk(|eal| {
        let pool = Pool::new(&eal, 1, 512).unwrap();
        let (_port, _rx, mut tx) = open(&eal, &pool, "net_null");
        assert!(tx.push(513).is_none(), "a packet larger than a buffer");
        let mut taken = 0;
        while tx.push(100).is_some() {
            taken += 1;
        }
        assert_eq!(taken, pool.count());
        assert!(tx.start(10, TxOffload::default()).is_none());
        assert_eq!(tx.flush(0) as u32, taken);
        assert!(tx.push(100).is_some());
    });
}

#[test]
fn ports_that_cannot_be_opened_say_which_and_why() {
    with_dpdk(|eal| {
        let pool = Pool::new(&eal, 1024, 2048).unwrap();
        let options = |device: &str, queues| PortOptions {
            device: device.to_owned(),
            queues,
            rx_descriptors: 64,
            tx_descriptors: 64,
            mtu: None,
            interrupts: false,
            capabilities: 0,
            pool: pool.clone(),
        };
        let error = Port::open(&eal, &options("net_nonsense,x=1", 1)).unwrap_err().to_string();
        assert!(error.contains("net_nonsense"), "{error}");
        let error = Port::open(&eal, &options("net_ring", 200)).unwrap_err();
        assert!(matches!(error, DpdkError::TooFewQueues { needs: 200, .. }), "{error}");
        // What failed is gone, and can be opened as it should be.
        assert!(Port::open(&eal, &options("net_ring", 2)).is_ok());
    });
}
