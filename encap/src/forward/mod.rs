//! Who gets a frame, and over which link.

pub mod fdb;
pub mod policy;
pub mod policer;
pub mod filter;
