//! Guests of QEMU: the built `tapd` as a virtual machine sees it, whose network cards are vhost-user
//! sockets; and in a virtual machine, on cards that QEMU emulates.
//!
//! Guests are emulated and take long to boot, so `integration/run test --all` runs these and the
//! plain run does not. One at a time (`--test-threads=1`).

mod harness;
mod pci;
mod ports;
