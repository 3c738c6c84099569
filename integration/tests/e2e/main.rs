//! End-to-end tests: the built `tapd` on a real kernel, in network namespaces.
//!
//! One binary, one module per subject. A test's name begins with its kind: `flow_` frames get
//! across, `sec_` nothing else does, `api_` what an administrator sees, `perf_` bounds on time and
//! memory, `harness_` the test tools themselves. Run them one at a time (`--test-threads=1`, as
//! `integration/run test` does): they share the machine's cores.

mod harness;
mod lanes;
mod dpdk;
mod document;
mod flow;
mod frames;
mod mesh;
mod checksum;
mod healing;
mod wire;
mod keys;
mod junk;
mod daemon;
mod doctor;
mod client;
mod reload;
mod limits;
mod links;
mod waits;
mod policies;
mod mtu;
mod marks;
mod roaming;
mod bridge_loop;
mod overload;
mod offloads;
mod corosync;
mod channels;
mod channel_streams;
mod channel_faults;
mod channel_database;
mod channel_postgres;
