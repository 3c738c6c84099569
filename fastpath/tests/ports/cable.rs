//! Cables to a second network namespace.

use std::any::Any;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use fastpath::interface::Interface;

use crate::PATIENCE;

type Job = Box<dyn FnOnce() + Send>;

/// The namespace at the other end: that of a thread, which does there what it is told.
pub(crate) struct Far {
    jobs: Sender<Job>,
    thread_id: libc::pid_t,
}

impl Far {
    fn new() -> Self {
        let (jobs, work): (_, Receiver<Job>) = channel();
        let (tell_id, id) = channel();
        thread::spawn(move || {
            // SAFETY: takes a flag and touches no memory of ours; it moves this thread only.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            // SAFETY: takes nothing and gives a number.
            tell_id.send(unsafe { libc::gettid() }).unwrap();
            work.into_iter().for_each(|job| job());
        });
        Self { jobs, thread_id: id.recv().unwrap() }
    }

    /// Has `job` done at the far end and waits for what comes of it.
    pub(crate) fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (give, result): (Sender<Result<R, Box<dyn Any + Send>>>, _) = channel();
        let job = move || drop(give.send(panic::catch_unwind(AssertUnwindSafe(job))));
        self.jobs.send(Box::new(job)).unwrap();
        result.recv().unwrap().unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    /// Lays one more cable, of that number; see [`cable`].
    pub(crate) fn lay(&self, number: u8) {
        let (near, far) = (near_name(number), far_name(number));
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far]);
        ip(&["link", "set", &far, "netns", &self.thread_id.to_string()]);
        set_up(&near, near_ipv4(number), near_ipv6(number));
        self.run(move || {
            set_up(&far, far_ipv4(number), far_ipv6(number));
            await_operation(&far);
        });
        await_operation(&near);
    }
}

/// A namespace behind a cable of that number, with addresses of both families at both ends.
pub(crate) fn cable(number: u8) -> Far {
    let far = Far::new();
    far.lay(number);
    far
}

fn set_up(name: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) {
    let interface = Interface::open(name).unwrap();
    interface.set_up(true).unwrap();
    interface.add_address(ipv4.into(), 24).unwrap();
    interface.add_address(ipv6.into(), 64).unwrap();
}

/// Waits until the kernel has noticed the carrier, which it does by and by.
fn await_operation(name: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = Command::new("ip").args(["-o", "link", "show", name]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        if shown.contains("state UP") {
            return;
        }
        assert!(Instant::now() < deadline, "{shown}");
    }
}

pub(crate) fn near_name(number: u8) -> String {
    format!("near{number}")
}

pub(crate) fn far_name(number: u8) -> String {
    format!("far{number}")
}

pub(crate) fn near_ipv4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, number, 1)
}

pub(crate) fn far_ipv4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, number, 2)
}

pub(crate) fn near_ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, number.into(), 0, 0, 0, 1)
}

pub(crate) fn far_ipv6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, number.into(), 0, 0, 0, 2)
}

/// Runs `ip` in the namespace of the calling thread.
pub(crate) fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "ip {arguments:?}");
}
