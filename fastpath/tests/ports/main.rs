//! The ports on a real kernel: taps and sockets, each test in a network namespace of its own.
//!
//! Needs root (or CAP_SYS_ADMIN and CAP_NET_ADMIN) and /dev/net/tun. Without them a test says
//! `SKIPPED` on stderr, or fails if TAPD_STRICT=1.
//!
//! ```text
//!  thread with its own network namespace
//!  +-----------------------------------------------------------+
//!  |  test <-> TapQueue <-> tap0 <-> kernel <-> packet socket   |
//!  |  test <-> UdpUplink <-> lo <-> UdpUplink <-> test          |
//!  +-----------------------------------------------------------+
//!
//!  +----------------------+      +-----------------------------+
//!  | test    near1, near2 |------| far1, far2   another thread |
//!  +----------------------+ veth +-----------------------------+
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cable;
mod dead_link;
mod monitor;
mod runs;
mod super_frames;
mod tap;
mod uplink;

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::panic;
use std::thread;
use std::time::Duration;

use fastpath::interface::Interface;

/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the machine cannot run these tests, if it cannot.
fn missing() -> Option<String> {
    // SAFETY: takes a flag and touches no memory of ours; done on a thread that ends at once.
    let unshared = thread::spawn(|| match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => None,
        _ => Some(format!("no network namespace: {}", io::Error::last_os_error())),
    });
    let tun = std::fs::metadata("/dev/net/tun").err().map(|e| format!("no /dev/net/tun: {e}"));
    unshared.join().expect("the probe does not panic").or(tun)
}

/// Runs `test` on a thread with a fresh network namespace, in which `lo` is up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if let Some(reason) = missing() {
        assert!(std::env::var("TAPD_STRICT").as_deref() != Ok("1"), "cannot run: {reason}");
        // Not eprintln!, which the harness swallows when a test passes.
        io::stderr().write_all(format!("SKIPPED: {reason}\n").as_bytes()).unwrap();
        return;
    }
    let thread = thread::spawn(|| {
        // SAFETY: takes a flag and touches no memory of ours; it moves this thread only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        Interface::open("lo").unwrap().set_up(true).unwrap();
        test();
    });
    if let Err(cause) = thread.join() {
        panic::resume_unwind(cause);
    }
}

/// Waits until `fd` is readable.
fn wait_readable(fd: RawFd) {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one pollfd, as the count says.
    let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as libc::c_int) };
    assert_eq!(ready, 1, "nothing became readable");
}
