//! Processes of their own, and the shim.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fastpath::dpdk::{Eal, EalOptions, Hugepages, Pool, Port, PortOptions, RxQueue, TxQueue};

/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says which test a process is for.
const CASE: &str = "TAPD_DPDK_CASE";

/// Runs a test's body in a process of its own, with DPDK started.
pub(crate) fn with_dpdk(body: impl FnOnce(Eal)) {
    alone(|| body(Eal::start(&options()).unwrap()));
}

/// Runs a test's body in a process of its own.
pub(crate) fn alone(body: impl FnOnce()) {
    let name = std::thread::current().name().unwrap().to_owned();
    if std::env::var(CASE).is_ok_and(|case| case == name) {
        return body();
    }
    let Some(shim) = shim() else {
        let reason = "no DPDK shim: fastpath/dpdk-sys/build-shim target/debug builds it";
        assert!(std::env::var("TAPD_STRICT").as_deref() != Ok("1"), "{name} cannot run: {reason}");
        // Not eprintln!: the test harness would swallow it.
        std::io::stderr().write_all(format!("SKIPPED: {name}: {reason}\n").as_bytes()).unwrap();
        if let Some(list) = std::env::var_os("TAPD_SKIP_FILE") {
            let mut list =
                std::fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
            writeln!(list, "{name}: {reason}").unwrap();
        }
        return;
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture", "--include-ignored"])
        .env(CASE, &name)
        .env(dpdk_sys::SHIM_VARIABLE, shim)
        .output()
        .unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let passed = output.status.success() && text[0].contains("1 passed");
    assert!(passed, "{}\n{}\n{}", output.status, text[0], text[1]);
}

fn shim() -> Option<PathBuf> {
    let named = std::env::var_os(dpdk_sys::SHIM_VARIABLE).map(PathBuf::from);
    let exe = std::env::current_exe().unwrap();
    let built = exe.ancestors().nth(2).unwrap().join(dpdk_sys::SHIM);
    named.into_iter().chain([built]).find(|path| path.exists())
}

/// Asks again and again until there is what is waited for.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        std::thread::yield_now();
    }
}

/// Small, without hugepages.
pub(crate) fn options() -> EalOptions {
    EalOptions { memory_mb: 64, hugepages: Hugepages::Never, ..EalOptions::default() }
}

/// A port with one queue.
pub(crate) fn open(eal: &Eal, pool: &Pool, device: &str) -> (Port, RxQueue, TxQueue) {
    let options = PortOptions {
        device: device.to_owned(),
        queues: 1,
        rx_descriptors: 256,
        tx_descriptors: 256,
        mtu: None,
        interrupts: false,
        capabilities: 0,
        pool: pool.clone(),
    };
    let (port, mut rx, mut tx) = Port::open(eal, &options).unwrap();
    (port, rx.remove(0), tx.remove(0))
}
