//! The harness of the end-to-end tests, the benches and the demo.
//!
//! Everything here drives the built `tapd` as a user would: configuration file, command line,
//! signals and the JSON of `tapd show`; channels by the library that programs use. All traffic stays in
//! network namespaces that the harness makes and removes.

pub mod sys;
pub mod wait;
pub mod skip;
pub mod command;
pub mod cleanup;
pub mod netns;
pub mod topology;
pub mod relay;
pub mod lanes;
pub mod dpdk;
pub mod config;
pub mod node;
pub mod cluster;
pub mod links;
pub mod traffic;
pub mod flow;
pub mod frames;
pub mod capture;
pub mod look;
pub mod stats;
pub mod load;
pub mod bench;
pub mod failover;
pub mod guest;
pub mod corosync;
pub mod port;
