//! DPDK ports, driven as the workers drive them.
//!
//! A process starts DPDK once for ever, so each test runs in a process of its own: the test binary
//! starts itself again for that one test. No hugepages and no card are needed; some tests need
//! root. Where the shim is missing a test is skipped with `SKIPPED` on stderr, or fails if
//! TAPD_STRICT=1. `integration/run test` builds the shim; by hand:
//! `fastpath/dpdk-sys/build-shim target/debug`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

mod basics;
mod vhost;
mod uplink;
mod interrupts;
