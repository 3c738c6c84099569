//! What must not survive us: children and namespaces, also on Ctrl-C.
//!
//! The owners remove their things on drop, which covers a panic too. A signal does not unwind, so
//! everything that lives outside the process is listed here as well, and a thread that waits for
//! the signals removes what is listed and ends the process.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::sys;

/// Something outside the process that has to be removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// A child that has not been reaped.
    Process(u32),
    /// A named network namespace.
    Namespace(String),
    /// A temporary directory.
    Directory(PathBuf),
    /// A socket or file of a program that is ended without a chance to remove it.
    File(PathBuf),
    /// A setting of the kernel, and what it was before.
    Setting(PathBuf, String),
}

static LISTED: Mutex<BTreeSet<Leftover>> = Mutex::new(BTreeSet::new());
static WATCH: Once = Once::new();

/// Lists `leftover` for removal if a signal ends the process. Call it before the thing is made.
pub fn register(leftover: Leftover) {
    WATCH.call_once(watch_signals);
    listed().insert(leftover);
}

/// Takes `leftover` off the list. Call it after the thing is gone.
pub fn unregister(leftover: &Leftover) {
    listed().remove(leftover);
}

fn listed() -> MutexGuard<'static, BTreeSet<Leftover>> {
    LISTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch_signals() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        eprintln!("cannot watch for Ctrl-C; namespaces would be left behind by it");
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\ninterrupted: removing processes and namespaces");
            // Held to the end: nobody makes anything new meanwhile.
            let listed = listed();
            remove(&listed);
            std::process::exit(128 + signal);
        }
    });
}

/// Removes in the order of [`Leftover`]'s variants: processes hold namespaces and directories.
fn remove(listed: &BTreeSet<Leftover>) {
    for leftover in listed {
        match leftover {
            Leftover::Process(pid) => {
                let _ = sys::send_signal(*pid, libc::SIGKILL);
            }
            Leftover::Namespace(name) => {
                let _ = Command::new("ip").args(["netns", "del", name]).output();
            }
            Leftover::Directory(path) => {
                let _ = std::fs::remove_dir_all(path);
            }
            Leftover::File(path) => {
                let _ = std::fs::remove_file(path);
            }
            Leftover::Setting(path, before) => {
                let _ = std::fs::write(path, before);
            }
        }
    }
}
